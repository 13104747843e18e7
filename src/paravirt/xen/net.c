/*
 * net.c - network back end: the card behind an eth0. Source: Xen's public io/netif.h. Offloads are what is behind it on the
 * host knows. The control ring is nethash.c's. Not offered: multicast control, page flipping.
 *
 * Threads: transmit on vCPU threads, straight into the back end of the host's; on_receive() on a thread of that, or from within
 * its send(). Locks: a queue's tx_lock, the host back end's own, a queue's rx_lock, x->lock.
 */
#include "paravirt/xen/io.h"
#include "machine/machine.h"
#include "net/net.h"
#include "paravirt/xen/nethash.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUEUES_MAX 8u
#define FLOWS 256u
#define EXTRAS_MAX 4u      /* of one packet */
#define START_BYTES 96u    /* of a packet: Ethernet with a VLAN tag, IP and TCP, with options */

struct vif;

struct vif_queue {
    struct vif *v;
    pthread_mutex_t tx_lock, rx_lock; /* each guards its half of what follows */
    struct xen_ring tx, rx;
    u32 tx_port, rx_port;
    bool tx_connected, rx_connected;
    bool untold;                      /* the front end waits for an event of what was sent */
    u32 told;                         /* the answers it knows of by one */
    bool starved;                     /* a frame waits for room */
};

struct vif {
    struct backend b;
    struct net_backend *be;
    u8 mac[6];
    unsigned queues;                  /* offered */
    atomic_uint nr_queues;            /* in use */
    struct vm_timer tell;
    atomic_bool telling;              /* that timer is set */
    atomic_bool held;                 /* the machine stands still: frames wait; written under the rx_locks */
    bool sg;                          /* the front end takes frames in several pages */
    bool csum;                        /* and unfinished checksums */
    u32 offload;                      /* NET_OFFLOAD_*, of frames for the guest */
    atomic_uchar flow[FLOWS];         /* the queue a flow was last sent by: answers go there */
    struct net_hash hash;
    struct vif_queue queue[QUEUES_MAX];
};

static struct vif *vif_of(struct backend *b) { return container_of(b, struct vif, b); }

/* -- To the guest ------------------------------------------------------------------------------------------------ */

/* What follows the first slot of a frame; the number of them. */
static unsigned extras_of(const struct net_hdr *hdr, const struct net_hashed *hash, struct xen_netif_extra e[2])
{
    u8 gso = hdr->gso_type & (u8)~NET_GSO_ECN;
    unsigned nr = 0;

    if (gso)
        e[nr++] = (struct xen_netif_extra){ .type = XEN_NETIF_EXTRA_GSO, .size = hdr->gso_size,
                                            .gso_type = gso == NET_GSO_TCPV4 ? XEN_NETIF_GSO_TCPV4 : XEN_NETIF_GSO_TCPV6 };
    if (hash->type) {
        e[nr] = (struct xen_netif_extra){ .type = XEN_NETIF_EXTRA_HASH,
                                          .hash = { (u8)__builtin_ctz(hash->type), XEN_NETIF_HASH_TOEPLITZ, { 0 } } };
        memcpy(e[nr++].hash.value, &hash->value, 4);
    }
    if (nr == 2)
        e[0].flags = XEN_NETIF_EXTRA_MORE;
    return nr;
}

/* With rx_lock held, and room for all of it. */
static void put_frame(struct vif_queue *q, const struct net_hdr *hdr, const u8 *frame, size_t len,
                      const struct xen_netif_extra *extra, unsigned extras)
{
    struct xen *x = q->v->b.x;
    unsigned slots = (unsigned)((len + PAGE_SIZE - 1) / PAGE_SIZE);
    struct xen_netif_rx_request req, extra_req;
    struct { struct xen_netif_rx_request req; u64 frame; bool good; } slot[XEN_NETIF_SLOTS];

    pthread_mutex_lock(&x->lock);
    for (unsigned i = 0; i < slots; i++) {
        ring_take(&q->rx, &req, sizeof(req));
        slot[i].req = req;
        slot[i].good = grant_get(x, req.gref, true, &slot[i].frame) == XEN_GNTST_okay;
        for (unsigned k = 0; !i && k < extras; k++)
            ring_take(&q->rx, &extra_req, sizeof(extra_req)); /* its place is for the extra */
    }
    pthread_mutex_unlock(&x->lock);
    for (unsigned i = 0; i < slots; i++) {
        size_t n = MIN(len - i * PAGE_SIZE, PAGE_SIZE + 0ul);
        if (slot[i].good)
            memcpy(grant_page(x, slot[i].frame), frame + i * PAGE_SIZE, n);
        struct xen_netif_rx_response rsp = {
            .id = slot[i].req.id, .status = slot[i].good ? (s16)n : XEN_NETIF_ERROR,
            .flags = i + 1 < slots ? XEN_NETIF_more_data : 0,
        };
        if (!i && q->v->csum && (hdr->flags & NET_NEEDS_CSUM))
            rsp.flags |= XEN_NETRXF_csum_blank | XEN_NETRXF_data_validated;
        else if (!i && (hdr->flags & NET_DATA_VALID))
            rsp.flags |= XEN_NETRXF_data_validated;
        if (!i && extras)
            rsp.flags |= XEN_NETIF_extra_info;
        ring_answer(&q->rx, &rsp, sizeof(rsp));
        for (unsigned k = 0; !i && k < extras; k++)
            ring_answer(&q->rx, &extra[k], sizeof(extra[k]));
    }
    pthread_mutex_lock(&x->lock);
    for (unsigned i = 0; i < slots; i++)
        if (slot[i].good)
            grant_put(x, slot[i].req.gref, true, slot[i].frame, true);
    pthread_mutex_unlock(&x->lock);
    if (ring_publish(&q->rx))
        port_raise(x, q->rx_port);
}

static bool on_receive(void *card, const struct net_hdr *hdr, const u8 *frame, size_t len)
{
    struct vif *v = card;
    unsigned queues = atomic_load(&v->nr_queues);
    unsigned at = queues > 1 ? atomic_load(&v->flow[net_flow(frame, len) % FLOWS]) % queues : 0;
    struct net_hashed hash = { 0 };
    struct xen_netif_extra extra[2];

    if (hash_frame(&v->hash, frame, len, &hash))
        at = queues ? hash.queue % queues : 0;
    struct vif_queue *q = &v->queue[at];
    bool taken = true;

    pthread_mutex_lock(&q->rx_lock);
    u32 need = (u32)((len + PAGE_SIZE - 1) / PAGE_SIZE), more = extras_of(hdr, &hash, extra);
    if (atomic_load(&v->held)) {
        taken = false; /* asked again after room() */
    } else if (q->rx_connected && len && need + more <= XEN_NETIF_SLOTS &&
               (v->sg || (need == 1 && !(hdr->gso_type & ~NET_GSO_ECN)))) { /* else it is lost */
        taken = ring_waiting(&q->rx) >= need + more || ring_rest(&q->rx, need + more - 1);
        if (taken)
            put_frame(q, hdr, frame, len, extra, more);
        else if (q->rx.broken)
            taken = true; /* and lost */
        else
            q->starved = true;
    }
    pthread_mutex_unlock(&q->rx_lock);
    return taken;
}

static bool on_rx_notify(void *opaque, bool rest)
{
    struct vif_queue *q = opaque;

    (void)rest; /* nothing is taken here, and so nothing asked for */
    pthread_mutex_lock(&q->rx_lock);
    bool starved = q->starved;
    q->starved = false;
    pthread_mutex_unlock(&q->rx_lock);
    if (starved)
        q->v->be->ops->room(q->v->be);
    return false;
}

/* -- From the guest ---------------------------------------------------------------------------------------------------- */

/* A packet as its requests describe it: private copies. */
struct packet {
    struct xen_netif_tx_request slot[XEN_NETIF_SLOTS];
    unsigned nr, nr_extras;
    u16 gso_size;
    u8 gso_type; /* XEN_NETIF_GSO_*; 0: none */
    bool bad;    /* to be answered with errors */
};

/* With tx_lock held. False: there is none. What is there only in part, or has no end, breaks the ring. */
static bool take_packet(struct vif_queue *q, struct packet *p)
{
    struct xen_netif_tx_request r;
    struct xen_netif_extra e;
    u32 rest = 0;

    *p = (struct packet){ 0 };
    if (!ring_take(&q->tx, &r, sizeof(r)))
        return false;
    p->slot[p->nr++] = r;
    for (bool more = r.flags & XEN_NETIF_extra_info; more; more = e.flags & XEN_NETIF_EXTRA_MORE) {
        if (p->nr_extras == EXTRAS_MAX || !ring_take(&q->tx, &e, sizeof(e)))
            goto broken;
        p->nr_extras++;
        if (e.type != XEN_NETIF_EXTRA_GSO || !e.size) {
            p->bad = true;
            continue;
        }
        p->gso_size = e.size;
        p->gso_type = e.gso_type;
    }
    while (r.flags & XEN_NETIF_more_data) {
        if (p->nr == XEN_NETIF_SLOTS || !ring_take(&q->tx, &r, sizeof(r)))
            goto broken;
        rest += r.size;
        p->slot[p->nr++] = r;
    }
    p->bad |= rest >= p->slot[0].size;
    p->slot[0].size -= p->bad ? 0 : (u16)rest;
    for (unsigned i = 0; i < p->nr; i++)
        p->bad |= !p->slot[i].size || p->slot[i].offset + (u32)p->slot[i].size > PAGE_SIZE;
    return true;
broken:
    q->tx.broken = true;
    return false;
}

static size_t gather(const struct iovec *iov, unsigned nr, u8 *to, size_t len)
{
    size_t at = 0;

    for (unsigned i = 0; i < nr && at < len; i++) {
        size_t n = MIN(len - at, iov[i].iov_len);
        memcpy(to + at, iov[i].iov_base, n);
        at += n;
    }
    return at;
}

/* Where the transport's header is: what a packet's front end does not say. 0: not TCP or UDP right behind IP. */
static unsigned transport(const u8 *f, size_t len, u8 *protocol)
{
    unsigned ip = len >= 18 && f[12] == 0x81 && f[13] == 0 ? 18 : 14;

    if (len < ip + 40u)
        return 0;
    unsigned type = (unsigned)f[ip - 2] << 8 | f[ip - 1];
    if (type != 0x0800 && type != 0x86dd)
        return 0;
    *protocol = f[ip + (type == 0x0800 ? 9 : 6)];
    return *protocol != 6 && *protocol != 17 ? 0 : ip + (type == 0x0800 ? (f[ip] & 15u) * 4 : 40);
}

static bool make_header(const struct vif *v, const struct packet *p, const u8 *start, size_t len, struct net_hdr *h)
{
    bool blank = p->slot[0].flags & XEN_NETTXF_csum_blank;
    u8 protocol = 0;

    *h = (struct net_hdr){ .flags = p->slot[0].flags & XEN_NETTXF_data_validated && !blank ? NET_DATA_VALID : 0 };
    if (!blank && !p->gso_type)
        return true;
    unsigned at = transport(start, len, &protocol);
    if (!at || !(v->be->takes & NET_OFFLOAD_CSUM))
        return false;
    h->flags = NET_NEEDS_CSUM;
    h->csum_start = (u16)at;
    h->csum_offset = protocol == 6 ? 16 : 6;
    if (!p->gso_type)
        return true;
    bool v4 = p->gso_type == XEN_NETIF_GSO_TCPV4, v6 = p->gso_type == XEN_NETIF_GSO_TCPV6;
    if (protocol != 6 || at + 20 > len || !((v4 && (v->be->takes & NET_OFFLOAD_TSO4)) || (v6 && (v->be->takes & NET_OFFLOAD_TSO6))))
        return false;
    h->gso_type = v4 ? NET_GSO_TCPV4 : NET_GSO_TCPV6;
    h->gso_size = p->gso_size;
    h->hdr_len = (u16)(at + (start[at + 12] >> 4) * 4u);
    return true;
}

/* The status to answer with. */
static s16 send_packet(struct vif_queue *q, struct packet *p)
{
    struct vif *v = q->v;
    struct xen *x = v->b.x;
    struct iovec iov[XEN_NETIF_SLOTS];
    u64 frame[XEN_NETIF_SLOTS];
    u8 start[START_BYTES];
    struct net_hdr hdr;
    unsigned nr = 0;
    size_t len = 0;

    if (p->bad)
        return XEN_NETIF_ERROR;
    pthread_mutex_lock(&x->lock);
    for (; nr < p->nr && !grant_get(x, p->slot[nr].gref, false, &frame[nr]); nr++) {
        iov[nr] = (struct iovec){ grant_page(x, frame[nr]) + p->slot[nr].offset, p->slot[nr].size };
        len += p->slot[nr].size;
    }
    pthread_mutex_unlock(&x->lock);
    bool good = nr == p->nr && len >= 14;
    size_t got = good ? gather(iov, nr, start, sizeof(start)) : 0;
    good = good && make_header(v, p, start, got, &hdr);
    if (good) {
        if (v->queues > 1)
            atomic_store(&v->flow[net_flow(start, got) % FLOWS], (unsigned char)(q - v->queue));
        v->be->ops->send(v->be, &hdr, iov, nr);
    }
    pthread_mutex_lock(&x->lock);
    while (nr--)
        grant_put(x, p->slot[nr].gref, false, frame[nr], false);
    pthread_mutex_unlock(&x->lock);
    return good ? XEN_NETIF_OKAY : XEN_NETIF_ERROR;
}

static void answer(struct vif_queue *q, const struct packet *p, s16 status)
{
    for (unsigned i = 0; i < p->nr; i++) {
        const struct xen_netif_tx_response r = { p->slot[i].id, status }, null = { 0, XEN_NETIF_NULL };
        ring_answer(&q->tx, &r, sizeof(r));
        for (unsigned k = 0; !i && k < p->nr_extras; k++)
            ring_answer(&q->tx, &null, sizeof(null));
    }
}

/*
 * That packets were sent is told TELL_NS later, if the front end has not found out by itself: Linux's looks whenever it sends
 * another, and would take an interrupt for each packet otherwise. tx_lock held.
 */
#define TELL_NS 1000000
static void tell_later(struct vif_queue *q, u32 seen)
{
    struct vif *v = q->v;
    struct vm_clock *clock = machine_clock(v->b.x->c.machine);

    if (!q->untold)
        q->told = seen;
    q->untold = true;
    if (!atomic_exchange(&v->telling, true))
        timer_arm(clock, &v->tell, clock_now(clock) + TELL_NS);
}

static void tell(void *opaque)
{
    struct vif *v = opaque;

    atomic_store(&v->telling, false);
    for (unsigned i = 0; i < QUEUES_MAX; i++) {
        struct vif_queue *q = &v->queue[i];
        pthread_mutex_lock(&q->tx_lock);
        if (q->untold && q->tx_connected && ring_awaits(&q->tx, q->told))
            port_raise(v->b.x, q->tx_port);
        q->untold = false;
        pthread_mutex_unlock(&q->tx_lock);
    }
}

static bool on_tx_notify(void *opaque, bool rest)
{
    struct vif_queue *q = opaque;
    struct vif *v = q->v;
    struct packet p;
    bool any = false;

    pthread_mutex_lock(&q->tx_lock);
    if (q->tx_connected) {
        do {
            while (take_packet(q, &p)) {
                answer(q, &p, send_packet(q, &p));
                any = true;
            }
        } while (rest && ring_rest(&q->tx, 0));
        u32 seen = q->tx.rsp_seen;
        if (ring_publish(&q->tx))
            tell_later(q, seen);
    }
    pthread_mutex_unlock(&q->tx_lock);
    if (any && v->be->ops->sent)
        v->be->ops->sent(v->be);
    return any;
}

static bool on_notify(void *opaque, bool rest)
{
    on_rx_notify(opaque, rest);
    return on_tx_notify(opaque, rest);
}

/* -- Coming and going ------------------------------------------------------------------------------------------------------ */

static void vif_publish(struct backend *b)
{
    struct vif *v = vif_of(b);
    const unsigned takes = v->be->takes;
    const struct { const char *name; u64 value; } node[] = {
        { "handle", b->id }, { "feature-rx-copy", 1 }, { "feature-rx-flip", 0 }, { "feature-sg", 1 },
        { "feature-gso-tcpv4", !!(takes & NET_OFFLOAD_TSO4) }, { "feature-gso-tcpv6", !!(takes & NET_OFFLOAD_TSO6) },
        { "feature-ipv6-csum-offload", !!(takes & NET_OFFLOAD_CSUM) }, { "feature-split-event-channels", 1 },
        { "feature-multicast-control", 0 }, { "feature-ctrl-ring", 1 }, { "multi-queue-max-queues", v->queues },
    };
    char path[128];
    const u8 *m = v->mac;

    for (unsigned i = 0; i < ARRAY_SIZE(node); i++) {
        snprintf(path, sizeof(path), "%s/%s", b->back, node[i].name);
        store_put(b->x->store, false, path, "%llu", (unsigned long long)node[i].value);
    }
    for (unsigned guests = 0; guests < 2; guests++) {
        snprintf(path, sizeof(path), "%s/mac", guests ? b->front : b->back);
        store_put(b->x->store, guests, path, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
    }
    snprintf(path, sizeof(path), "%s/handle", b->front);
    store_put(b->x->store, true, path, "%u", b->id);
}

/* x->lock held. NULL, or what is wrong; nothing is in use then. */
static const char *queue_connect(struct vif_queue *q, const char *dir)
{
    struct backend *b = &q->v->b;
    u64 tx, rx, port, rx_port;

    if (!bus_read(b, dir, "tx-ring-ref", ~0u, &tx) || !bus_read(b, dir, "rx-ring-ref", ~0u, &rx))
        return "tx-ring-ref, rx-ring-ref: there are no such numbers";
    bool split = bus_read(b, dir, "event-channel-tx", XEN_EVTCHNS - 1, &port) &&
                 bus_read(b, dir, "event-channel-rx", XEN_EVTCHNS - 1, &rx_port);
    if (!split && !bus_read(b, dir, "event-channel", XEN_EVTCHNS - 1, &port))
        return "event-channel: there is no such number";
    const u32 tx_ref = (u32)tx, rx_ref = (u32)rx;
    if (!ring_map(b->x, &q->tx, &tx_ref, 1, sizeof(struct xen_netif_tx_request)))
        return "tx-ring-ref: no page of this guest's is granted by that";
    if (!ring_map(b->x, &q->rx, &rx_ref, 1, sizeof(struct xen_netif_rx_request))) {
        ring_unmap(b->x, &q->tx);
        return "rx-ring-ref: no page of this guest's is granted by that";
    }
    bool bound = port_bind(b->x, port, split ? on_tx_notify : on_notify, q);
    if (bound && split && !port_bind(b->x, rx_port, on_rx_notify, q)) {
        port_unbind(b->x, (u32)port, q);
        bound = false;
    }
    if (!bound) {
        ring_unmap(b->x, &q->tx);
        ring_unmap(b->x, &q->rx);
        return "event-channel: it is not offered to domain 0";
    }
    q->tx_port = (u32)port;
    q->rx_port = split ? (u32)rx_port : (u32)port;
    q->starved = false;
    return NULL;
}

static void queue_switch(struct vif_queue *q, bool on)
{
    pthread_mutex_lock(&q->tx_lock);
    q->tx_connected = on;
    pthread_mutex_unlock(&q->tx_lock);
    pthread_mutex_lock(&q->rx_lock);
    q->rx_connected = on;
    pthread_mutex_unlock(&q->rx_lock);
}

static void vif_disconnect(struct backend *b)
{
    struct vif *v = vif_of(b);

    for (unsigned i = 0; i < QUEUES_MAX; i++)
        queue_switch(&v->queue[i], false);
    hash_switch(&v->hash, false);
    pthread_mutex_lock(&b->x->lock);
    hash_disconnect(&v->hash);
    for (unsigned i = 0; i < QUEUES_MAX; i++) {
        struct vif_queue *q = &v->queue[i];
        if (!q->tx.nr_pages)
            continue;
        port_unbind(b->x, q->tx_port, q);
        port_unbind(b->x, q->rx_port, q);
        ring_unmap(b->x, &q->tx);
        ring_unmap(b->x, &q->rx);
    }
    pthread_mutex_unlock(&b->x->lock);
    atomic_store(&v->nr_queues, 0);
}

static const char *vif_connect(struct backend *b)
{
    struct vif *v = vif_of(b);
    const char *wrong = NULL;
    u64 copy = 0, sg = 0, tso4 = 0, tso6 = 0, csum6 = 0, no_csum = 0;
    char dir[80];

    pthread_mutex_lock(&b->x->lock);
    unsigned queues = bus_queues(b, v->queues);
    bus_read(b, b->front, "request-rx-copy", 1, &copy);
    bus_read(b, b->front, "feature-sg", 1, &sg);
    bus_read(b, b->front, "feature-gso-tcpv4", 1, &tso4);
    bus_read(b, b->front, "feature-gso-tcpv6", 1, &tso6);
    bus_read(b, b->front, "feature-ipv6-csum-offload", 1, &csum6);
    bus_read(b, b->front, "feature-no-csum-offload", 1, &no_csum);
    if (!copy)
        wrong = "request-rx-copy: it must be 1, pages are not flipped";
    else if (!queues)
        wrong = "multi-queue-num-queues: more than are offered";
    for (unsigned i = 0; i < queues && !wrong; i++) {
        bus_queue_dir(b, queues, i, dir);
        wrong = queue_connect(&v->queue[i], dir);
    }
    if (!wrong)
        wrong = hash_connect(&v->hash, queues);
    pthread_mutex_unlock(&b->x->lock);
    if (wrong) {
        vif_disconnect(b);
        return wrong;
    }
    v->sg = sg;
    v->csum = !no_csum && csum6;
    v->offload = !v->csum ? 0 : NET_OFFLOAD_CSUM | (sg && tso4 ? NET_OFFLOAD_TSO4 : 0) | (sg && tso6 ? NET_OFFLOAD_TSO6 : 0);
    if (v->be->ops->set_offload)
        v->be->ops->set_offload(v->be, v->offload);
    atomic_store(&v->nr_queues, queues);
    hash_switch(&v->hash, true);
    for (unsigned i = 0; i < queues; i++) {
        queue_switch(&v->queue[i], true);
        on_tx_notify(&v->queue[i], true); /* what came before */
    }
    return NULL;
}

static void vif_pause(struct backend *b, bool on)
{
    struct vif *v = vif_of(b);

    for (unsigned i = 0; i < QUEUES_MAX; i++)
        pthread_mutex_lock(&v->queue[i].rx_lock);
    atomic_store(&v->held, on);
    for (unsigned i = 0; i < QUEUES_MAX; i++)
        pthread_mutex_unlock(&v->queue[i].rx_lock);
    if (!on)
        v->be->ops->room(v->be);
}

/* -- Snapshots --------------------------------------------------------------------------------------------------------------- */

/* clang-format off */
static const struct state_field vif_fields[] = {
    STATE(struct vif, sg), STATE(struct vif, csum), STATE(struct vif, offload), STATE(struct vif, flow), STATE_END
};
/* clang-format on */

struct saved_vif_queue {
    u32 tx_port, rx_port, told;
    bool tx_bound, rx_bound, untold; /* bound: the guest has not closed the port since */
};
/* clang-format off */
#define F(field) STATE(struct saved_vif_queue, field)
static const struct state_field queue_fields[] = {
    F(tx_port), F(rx_port), F(told), F(tx_bound), F(rx_bound), F(untold), STATE_END
};
#undef F
/* clang-format on */

static void vif_save(struct backend *b, struct state_set *set, const char *name)
{
    struct vif *v = vif_of(b);
    char part[32];

    snprintf(part, sizeof(part), "%s.offers", name);
    state_set_save(set, part, vif_fields, v);
    for (unsigned i = 0; i < atomic_load(&v->nr_queues); i++) {
        const struct vif_queue *q = &v->queue[i];
        const struct saved_vif_queue s = {
            .tx_port = q->tx_port, .rx_port = q->rx_port, .told = q->told, .untold = q->untold,
            .tx_bound = b->x->port[q->tx_port].opaque == q, .rx_bound = b->x->port[q->rx_port].opaque == q,
        };
        snprintf(part, sizeof(part), "%s.queue%u", name, i);
        state_set_save(set, part, queue_fields, &s);
        snprintf(part, sizeof(part), "%s.tx%u", name, i);
        ring_save(&q->tx, set, part);
        snprintf(part, sizeof(part), "%s.rx%u", name, i);
        ring_save(&q->rx, set, part);
    }
    hash_save(&v->hash, set, name);
}

/* x->lock held. */
static int queue_load(struct vif_queue *q, unsigned i, struct state_set *set, const char *name, char *err, size_t err_len)
{
    struct xen *x = q->v->b.x;
    struct saved_vif_queue s;
    char part[32];

    snprintf(part, sizeof(part), "%s.queue%u", name, i);
    int r = state_set_load(set, part, queue_fields, &s, err, err_len);
    if (r)
        return r;
    bool split = s.tx_port != s.rx_port;
    if (s.tx_port >= XEN_EVTCHNS || s.rx_port >= XEN_EVTCHNS ||
        (s.tx_bound && !port_bind(x, s.tx_port, split ? on_tx_notify : on_notify, q)) ||
        (s.rx_bound && split && !port_bind(x, s.rx_port, on_rx_notify, q)))
        return xen_impossible(err, err_len, part, "port");
    q->tx_port = s.tx_port;
    q->rx_port = s.rx_port;
    q->told = s.told;
    snprintf(part, sizeof(part), "%s.tx%u", name, i);
    r = ring_load(x, &q->tx, 1, sizeof(struct xen_netif_tx_request), set, part, err, err_len);
    snprintf(part, sizeof(part), "%s.rx%u", name, i);
    if (!r)
        r = ring_load(x, &q->rx, 1, sizeof(struct xen_netif_rx_request), set, part, err, err_len);
    if (!r && s.untold)
        tell_later(q, q->told);
    return r;
}

/* What is behind the card has frames for the guest already: it is held until it goes on. */
static int vif_load(struct backend *b, struct state_set *set, const char *name, char *err, size_t err_len)
{
    struct vif *v = vif_of(b);
    unsigned queues = 0;
    char part[32];

    vif_pause(b, true);
    snprintf(part, sizeof(part), "%s.offers", name);
    int r = state_set_load(set, part, vif_fields, v, err, err_len);
    pthread_mutex_lock(&b->x->lock);
    for (unsigned i = 0; i < v->queues && !r; i++) {
        snprintf(part, sizeof(part), "%s.queue%u", name, i);
        if (i && !state_set_has(set, part)) /* the front end took fewer */
            break;
        queues = i + 1;
        r = queue_load(&v->queue[i], i, set, name, err, err_len);
    }
    if (!r)
        r = hash_load(&v->hash, queues, set, name, err, err_len);
    pthread_mutex_unlock(&b->x->lock);
    if (r) {
        vif_disconnect(b);
        return r;
    }
    v->offload &= NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6;
    if (v->be->ops->set_offload)
        v->be->ops->set_offload(v->be, v->offload);
    atomic_store(&v->nr_queues, queues);
    for (unsigned i = 0; i < queues; i++)
        queue_switch(&v->queue[i], true);
    return 0;
}

static void vif_end(struct backend *b)
{
    struct vif *v = vif_of(b);

    v->be->ops->stop(v->be);
    v->be->ops->free(v->be);
}

static void vif_free(struct backend *b)
{
    struct vif *v = vif_of(b);

    for (unsigned i = 0; i < QUEUES_MAX; i++) {
        pthread_mutex_destroy(&v->queue[i].tx_lock);
        pthread_mutex_destroy(&v->queue[i].rx_lock);
    }
    hash_fini(&v->hash);
    free(v);
}

static const struct backend_class vif_class = {
    .type = "vif", .publish = vif_publish, .connect = vif_connect, .disconnect = vif_disconnect, .pause = vif_pause,
    .save = vif_save, .load = vif_load, .end = vif_end, .free = vif_free,
};

int xen_net_attach(struct xen *x, struct net_backend *be, const u8 mac[6], unsigned queues, char name[16])
{
    struct vif *v = calloc(1, sizeof(*v));

    if (!v) {
        be->ops->free(be);
        return -ENOMEM;
    }
    v->be = be;
    v->queues = MIN(queues, QUEUES_MAX);
    memcpy(v->mac, mac, 6);
    for (unsigned i = 0; i < QUEUES_MAX; i++) {
        v->queue[i].v = v;
        pthread_mutex_init(&v->queue[i].tx_lock, NULL);
        pthread_mutex_init(&v->queue[i].rx_lock, NULL);
    }
    hash_init(&v->hash, &v->b);
    if (timer_init(machine_clock(x->c.machine), &v->tell, tell, v)) {
        be->ops->free(be);
        vif_free(&v->b);
        return -ENOMEM;
    }
    v->b.class = &vif_class;
    v->b.id = bus_free_id(x, &vif_class, name[0] ? (unsigned)strtoul(name + 3, NULL, 10) : 0, 1);
    snprintf(v->b.name, sizeof(v->b.name), "vif%u", v->b.id);
    if (name[0] && strcmp(name, v->b.name)) {
        be->ops->free(be);
        vif_free(&v->b);
        return -EINVAL;
    }
    const struct net_port port = { on_receive, v };
    int r = be->ops->start(be, &port);
    if (!r)
        r = bus_add(x, &v->b);
    if (r) {
        vif_end(&v->b);
        vif_free(&v->b);
        return r;
    }
    snprintf(name, 16, "%s", v->b.name);
    return 0;
}
