/*
 * native_net.c - network cards: a ring of packets to send, worked off while the guest waits at the bell (the back end has a
 * thread of its own), and a ring of room that the back end's thread fills. Structures: vt_net_* in include/vitro/shared.h.
 *
 * Locks: tx_lock and rx_lock guard their halves of the ring. A back end may receive from within send(), so rx_lock is
 * never taken before tx_lock, and room() is called with neither.
 */
#include "base/state.h"
#include "net/net.h"
#include "paravirt/native_inner.h"
#include "paravirt/paravirt.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FRAME_EXTRA 18u /* Ethernet header and a VLAN tag, beyond the MTU */

struct native_nic {
    struct native *n;
    struct paravirt_net net;
    struct net_port port;
    bool started;              /* setup_lock */
    pthread_mutex_t setup_lock, tx_lock, rx_lock;
    struct vt_net_ring *tx_ring, *rx_ring; /* the same, in guest RAM; NULL: none. Each under its lock */
    u32 size;                  /* ours */
    u32 tx_tail, rx_tail;      /* ours */
    unsigned event;
    bool starved, paused;      /* under rx_lock: a packet waits for room; all wait */
};

static struct native_nic *nic_find(struct native *n, u64 dev)
{
    return dev < n->c.nr_nics ? &n->nic[dev] : NULL;
}

static struct vt_net_desc *tx_at(struct vt_net_ring *ring, u32 size, u32 i)
{
    return (struct vt_net_desc *)(ring + 1) + i % size;
}
static struct vt_net_desc *rx_at(struct vt_net_ring *ring, u32 size, u32 i)
{
    return (struct vt_net_desc *)(ring + 1) + size + i % size;
}

/* -- From the net: any thread of the back end's ------------------------------------------------------- */

static bool on_receive(void *card, const struct net_hdr *hdr, const u8 *frame, size_t len)
{
    struct native_nic *c = card;
    bool taken = true, told = false;

    (void)hdr; /* no offloads were asked for: frames are complete */
    pthread_mutex_lock(&c->rx_lock);
    struct vt_net_ring *ring = c->rx_ring;
    u32 room = ring ? __atomic_load_n(&ring->rx_head, __ATOMIC_ACQUIRE) - c->rx_tail : 0;
    if (ring && (!room || c->paused)) {
        c->starved = true;
        taken = false;
    } else if (ring && room <= c->size) { /* else the ring makes no sense: the packet is lost */
        struct vt_net_desc *at = rx_at(ring, c->size, c->rx_tail), d;
        memcpy(&d, at, sizeof(d));
        void *to = d.len ? ram_dma_ptr(c->n->c.ram, d.pa, d.len) : NULL;
        s32 result = !to ? -VT_EFAULT : len > d.len ? -VT_E2BIG : (s32)len;
        if (result > 0) {
            memcpy(to, frame, len);
            ram_written(c->n->c.ram, d.pa, len);
        }
        __atomic_store_n(&at->result, result, __ATOMIC_RELAXED);
        c->rx_tail++;
        __atomic_store_n(&ring->rx_tail, c->rx_tail, __ATOMIC_RELEASE);
        told = true;
    }
    unsigned port = c->event;
    pthread_mutex_unlock(&c->rx_lock);
    if (told)
        native_event(c->n, port);
    return taken;
}

/* -- Calls ------------------------------------------------------------------------------------------------ */

s64 native_NET_INFO(struct native *n, unsigned vcpu, const u64 *a)
{
    struct native_nic *c = nic_find(n, a[0]);

    (void)vcpu;
    if (!c)
        return -VT_ENOENT;
    struct vt_net_info info = { .mtu = c->net.be->mtu };
    memcpy(info.mac, c->net.mac, sizeof(info.mac));
    return native_copy_out(n, a[1], &info, sizeof(info));
}

static void set_ring(struct native_nic *c, struct vt_net_ring *ring)
{
    pthread_mutex_lock(&c->tx_lock);
    pthread_mutex_lock(&c->rx_lock);
    c->tx_ring = c->rx_ring = ring;
    if (ring) { /* empty, from where the guest has its numbers */
        c->tx_tail = __atomic_load_n(&ring->tx_head, __ATOMIC_ACQUIRE);
        c->rx_tail = __atomic_load_n(&ring->rx_head, __ATOMIC_ACQUIRE);
        __atomic_store_n(&ring->tx_tail, c->tx_tail, __ATOMIC_RELEASE);
        __atomic_store_n(&ring->rx_tail, c->rx_tail, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&c->rx_lock);
    pthread_mutex_unlock(&c->tx_lock);
}

s64 native_NET_RING(struct native *n, unsigned vcpu, const u64 *a)
{
    struct native_nic *c = nic_find(n, a[0]);
    struct vt_net_ring *ring = NULL, copy;
    s64 r = 0;

    (void)vcpu;
    if (!c)
        return -VT_ENOENT;
    if (a[1] & ~PAGE_MASK || (a[1] && a[2] >= VT_PORTS))
        return -VT_EINVAL;
    if (a[1]) {
        if (ram_read(n->c.ram, a[1], &copy, sizeof(copy)))
            return -VT_EFAULT;
        if (!native_ring_size(copy.size, VT_NET_RING_MAX))
            return -VT_EINVAL;
        ring = ram_dma_ptr(n->c.ram, a[1], VT_NET_RING_BYTES(copy.size));
        if (!ring)
            return -VT_EFAULT;
    }
    pthread_mutex_lock(&c->setup_lock);
    if (ring && c->tx_ring) {
        r = -VT_EEXIST;
    } else {
        if (ring) {
            c->size = copy.size;
            c->event = (unsigned)a[2];
        }
        set_ring(c, ring);
        if (ring && !c->started && c->net.be->ops->start(c->net.be, &c->port)) {
            set_ring(c, NULL);
            r = -VT_EIO;
        } else if (ring) {
            c->started = true;
        }
    }
    pthread_mutex_unlock(&c->setup_lock);
    if (!r && ring)
        ram_written(n->c.ram, a[1], VT_NET_RING_BYTES(copy.size));
    return r;
}

static s32 send_one(struct native_nic *c, const struct vt_net_desc *d)
{
    static const struct net_hdr plain;

    if (d->len < 14 || d->len > c->net.be->mtu + FRAME_EXTRA)
        return -VT_EINVAL;
    void *from = ram_ptr(c->n->c.ram, d->pa, d->len);
    if (!from)
        return -VT_EFAULT;
    struct iovec v = { .iov_base = from, .iov_len = d->len };
    c->net.be->ops->send(c->net.be, &plain, &v, 1);
    return 0;
}

static void make_room(struct native_nic *c)
{
    pthread_mutex_lock(&c->rx_lock);
    bool starved = c->starved;
    c->starved = false;
    pthread_mutex_unlock(&c->rx_lock);
    if (starved)
        c->net.be->ops->room(c->net.be);
}

s64 native_NET_BELL(struct native *n, unsigned vcpu, const u64 *a)
{
    struct native_nic *c = nic_find(n, a[0]);
    s64 taken = 0;

    (void)vcpu;
    if (!c)
        return -VT_ENOENT;
    pthread_mutex_lock(&c->tx_lock);
    struct vt_net_ring *ring = c->tx_ring;
    u32 waiting = ring ? __atomic_load_n(&ring->tx_head, __ATOMIC_ACQUIRE) - c->tx_tail : 0;
    if (waiting > c->size)
        waiting = 0; /* not a ring any more */
    for (; waiting; waiting--, taken++) {
        struct vt_net_desc *at = tx_at(ring, c->size, c->tx_tail), d;
        memcpy(&d, at, sizeof(d));
        __atomic_store_n(&at->result, send_one(c, &d), __ATOMIC_RELAXED);
        c->tx_tail++;
        __atomic_store_n(&ring->tx_tail, c->tx_tail, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&c->tx_lock);
    if (taken && c->net.be->ops->sent)
        c->net.be->ops->sent(c->net.be);
    make_room(c);
    return taken;
}

/* -- Snapshots ----------------------------------------------------------------------------------------------- */

struct saved_nic {
    u64 ring; /* guest-physical; 0: none */
    u32 size, tx_tail, rx_tail, port;
};
static const struct state_field nic_fields[] = {
    STATE(struct saved_nic, ring), STATE(struct saved_nic, size), STATE(struct saved_nic, tx_tail),
    STATE(struct saved_nic, rx_tail), STATE(struct saved_nic, port), STATE_END
};

void native_net_save(struct native *n, struct state_set *set)
{
    for (unsigned i = 0; i < n->c.nr_nics; i++) {
        const struct native_nic *c = &n->nic[i];
        struct saved_nic s = { native_pa(n, c->tx_ring), c->size, c->tx_tail, c->rx_tail, c->event };
        char name[32];
        snprintf(name, sizeof(name), "native.nic.%u", i);
        state_set_save(set, name, nic_fields, &s);
    }
}

int native_net_load(struct native *n, struct state_set *set, char *err, size_t err_len)
{
    for (unsigned i = 0; i < n->c.nr_nics; i++) {
        struct native_nic *c = &n->nic[i];
        struct saved_nic s;
        char name[32];
        snprintf(name, sizeof(name), "native.nic.%u", i);
        int r = state_set_load(set, name, nic_fields, &s, err, err_len);
        if (r)
            return r;
        if (!s.ring)
            continue;
        bool good = native_ring_size(s.size, VT_NET_RING_MAX) && s.port < VT_PORTS &&
                    !(s.ring & ~PAGE_MASK) && ram_dma_ptr(n->c.ram, s.ring, VT_NET_RING_BYTES(s.size));
        if (!good) {
            snprintf(err, err_len, "%s: no such ring is possible", name);
            return -EINVAL;
        }
        c->size = s.size;
        c->event = s.port;
        c->tx_tail = s.tx_tail;
        c->rx_tail = s.rx_tail;
        c->paused = true; /* as everything, until native_resume() */
        c->tx_ring = c->rx_ring = ram_dma_ptr(n->c.ram, s.ring, VT_NET_RING_BYTES(s.size));
        r = c->net.be->ops->start(c->net.be, &c->port);
        if (r) {
            snprintf(err, err_len, "%s: %s", name, strerror(-r));
            return r;
        }
        c->started = true;
    }
    return 0;
}

/* -- Life ------------------------------------------------------------------------------------------------------- */

int native_net_init(struct native *n)
{
    n->nic = calloc(MAX(n->c.nr_nics, 1u), sizeof(*n->nic));
    if (!n->nic)
        return -ENOMEM;
    for (unsigned i = 0; i < n->c.nr_nics; i++) {
        struct native_nic *c = &n->nic[i];
        c->n = n;
        c->net = n->c.nic[i];
        c->port = (struct net_port){ .receive = on_receive, .card = c };
        pthread_mutex_init(&c->setup_lock, NULL);
        pthread_mutex_init(&c->tx_lock, NULL);
        pthread_mutex_init(&c->rx_lock, NULL);
    }
    return 0;
}

void native_net_pause(struct native *n, bool on)
{
    for (unsigned i = 0; i < n->c.nr_nics; i++) {
        struct native_nic *c = &n->nic[i];
        pthread_mutex_lock(&c->rx_lock);
        c->paused = on;
        pthread_mutex_unlock(&c->rx_lock);
        if (!on)
            make_room(c);
    }
}

void native_net_fini(struct native *n)
{
    for (unsigned i = 0; n->nic && i < n->c.nr_nics; i++) {
        struct native_nic *c = &n->nic[i];
        if (c->started)
            c->net.be->ops->stop(c->net.be);
        pthread_mutex_destroy(&c->rx_lock);
        pthread_mutex_destroy(&c->tx_lock);
        pthread_mutex_destroy(&c->setup_lock);
    }
    free(n->nic);
}
