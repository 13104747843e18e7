/*
 * nethash.c - a network card's control ring, and the hash by which its front end spreads packets over queues.
 * Source: Xen's public io/netif.h, "Control ring" and "Hash types"; for Toeplitz's hash Microsoft's "RSS hashing functions".
 *
 * Linux's front end does not ask for it. Other algorithms and extension headers of IPv6 are not known.
 */
#include "paravirt/xen/nethash.h"
#include <stdio.h>
#include <string.h>

#define HASH_FLAGS (XEN_NETIF_HASH_IPV4 | XEN_NETIF_HASH_IPV4_TCP | XEN_NETIF_HASH_IPV6 | XEN_NETIF_HASH_IPV6_TCP)

/* -- The hash -------------------------------------------------------------------------------------------------------- */

u32 hash_toeplitz(const u8 key[HASH_KEY_MAX], const u8 *data, size_t n)
{
    u32 window = (u32)key[0] << 24 | (u32)key[1] << 16 | (u32)key[2] << 8 | key[3], hash = 0;

    bug_on(n + 4 > HASH_KEY_MAX);
    for (size_t i = 0; i < n; i++)
        for (int bit = 7; bit >= 0; bit--) {
            if (data[i] >> bit & 1)
                hash ^= window;
            window = window << 1 | (key[i + 4] >> bit & 1);
        }
    return hash;
}

/* What of a frame is hashed: addresses, and the ports that follow each other behind a TCP header's start. 0 bytes: nothing. */
static size_t hash_input(const u8 *f, size_t len, u32 flags, u8 input[36], u8 *type)
{
    size_t ip = len >= 18 && f[12] == 0x81 && !f[13] ? 18 : 14, tcp;
    unsigned addresses;
    bool has_tcp;

    *type = 0;
    if (len < ip + 20)
        return 0;
    if (f[ip - 2] == 0x08 && !f[ip - 1]) {
        tcp = ip + (f[ip] & 15u) * 4;
        has_tcp = f[ip + 9] == 6 && !(f[ip + 6] & 0x3f) && !f[ip + 7] && tcp >= ip + 20; /* no fragment */
        addresses = 8;
        memcpy(input, f + ip + 12, addresses);
    } else if (f[ip - 2] == 0x86 && f[ip - 1] == 0xdd && len >= ip + 40) {
        tcp = ip + 40;
        has_tcp = f[ip + 6] == 6;
        addresses = 32;
        memcpy(input, f + ip + 8, addresses);
        flags >>= 2; /* the bits of IPv4 */
    } else {
        return 0;
    }
    unsigned shift = addresses == 8 ? 0 : 2;
    if (has_tcp && tcp + 4 <= len && (flags & XEN_NETIF_HASH_IPV4_TCP)) {
        memcpy(input + addresses, f + tcp, 4);
        *type = (u8)(XEN_NETIF_HASH_IPV4_TCP << shift);
        return addresses + 4;
    }
    if (!(flags & XEN_NETIF_HASH_IPV4))
        return 0;
    *type = (u8)(XEN_NETIF_HASH_IPV4 << shift);
    return addresses;
}

bool hash_frame(struct net_hash *h, const u8 *frame, size_t len, struct net_hashed *out)
{
    u8 input[36];

    if (likely(!atomic_load(&h->on)))
        return false;
    pthread_mutex_lock(&h->lock);
    size_t n = hash_input(frame, len, h->flags, input, &out->type);
    out->value = n ? hash_toeplitz(h->key, input, n) : 0;
    out->queue = h->size ? h->map[out->value % h->size] : h->queues ? out->value % h->queues : 0;
    pthread_mutex_unlock(&h->lock);
    return true;
}

/* -- Requests; with the lock held ---------------------------------------------------------------------------------------- */

/* The first bytes of a page that the guest grants. */
static bool copy_granted(struct net_hash *h, u32 ref, void *to, size_t len)
{
    struct xen *x = h->b->x;
    u64 frame;

    pthread_mutex_lock(&x->lock);
    bool good = grant_get(x, ref, false, &frame) == XEN_GNTST_okay;
    if (good) {
        memcpy(to, grant_page(x, frame), len);
        grant_put(x, ref, false, frame, false);
    }
    pthread_mutex_unlock(&x->lock);
    return good;
}

static u32 set_key(struct net_hash *h, u32 ref, u32 len)
{
    u8 key[HASH_KEY_MAX] = { 0 };

    if (len > sizeof(key))
        return XEN_NETIF_CTRL_OVERFLOW;
    if (len && !copy_granted(h, ref, key, len))
        return XEN_NETIF_CTRL_INVALID;
    memcpy(h->key, key, sizeof(key));
    return XEN_NETIF_CTRL_SUCCESS;
}

static u32 set_map(struct net_hash *h, u32 ref, u32 nr, u32 at)
{
    u32 map[HASH_MAP_MAX];

    if (nr > HASH_MAP_MAX)
        return XEN_NETIF_CTRL_OVERFLOW;
    if (at > h->size || nr > h->size - at || (nr && !copy_granted(h, ref, map, nr * sizeof(map[0]))))
        return XEN_NETIF_CTRL_INVALID;
    for (u32 i = 0; i < nr; i++)
        if (map[i] >= h->queues)
            return XEN_NETIF_CTRL_INVALID;
    if (nr)
        memcpy(h->map + at, map, nr * sizeof(map[0]));
    return XEN_NETIF_CTRL_SUCCESS;
}

static u32 control(struct net_hash *h, const struct xen_netif_ctrl_request *r, u32 *data)
{
    switch (r->type) {
    case XEN_NETIF_CTRL_get_hash_flags:
        *data = HASH_FLAGS;
        return XEN_NETIF_CTRL_SUCCESS;
    case XEN_NETIF_CTRL_set_hash_flags:
        if ((r->data[0] & ~HASH_FLAGS) || !atomic_load(&h->on))
            return XEN_NETIF_CTRL_INVALID;
        h->flags = r->data[0];
        return XEN_NETIF_CTRL_SUCCESS;
    case XEN_NETIF_CTRL_set_hash_key:
        return set_key(h, r->data[0], r->data[1]);
    case XEN_NETIF_CTRL_get_hash_mapping_size:
        *data = HASH_MAP_MAX;
        return XEN_NETIF_CTRL_SUCCESS;
    case XEN_NETIF_CTRL_set_hash_mapping_size:
        if (r->data[0] > HASH_MAP_MAX)
            return XEN_NETIF_CTRL_INVALID;
        h->size = r->data[0];
        memset(h->map, 0, sizeof(h->map));
        return XEN_NETIF_CTRL_SUCCESS;
    case XEN_NETIF_CTRL_set_hash_mapping:
        return set_map(h, r->data[0], r->data[1], r->data[2]);
    case XEN_NETIF_CTRL_set_hash_algorithm:
        if (r->data[0] > XEN_NETIF_HASH_TOEPLITZ)
            return XEN_NETIF_CTRL_INVALID;
        atomic_store(&h->on, r->data[0] != XEN_NETIF_HASH_NONE);
        return XEN_NETIF_CTRL_SUCCESS;
    }
    return XEN_NETIF_CTRL_NOT_SUPPORTED;
}

static bool on_notify(void *opaque, bool rest)
{
    struct net_hash *h = opaque;
    struct xen_netif_ctrl_request r;
    bool any = false;

    pthread_mutex_lock(&h->lock);
    if (h->connected) {
        do {
            while (ring_take(&h->ring, &r, sizeof(r))) {
                struct xen_netif_ctrl_response a = { .id = r.id, .type = r.type };
                a.status = control(h, &r, &a.data);
                ring_answer(&h->ring, &a, sizeof(a));
                any = true;
            }
        } while (rest && ring_rest(&h->ring, 0));
        if (ring_publish(&h->ring))
            port_raise(h->b->x, h->port);
    }
    pthread_mutex_unlock(&h->lock);
    return any;
}

/* -- Coming and going ----------------------------------------------------------------------------------------------------- */

void hash_init(struct net_hash *h, struct backend *b)
{
    h->b = b;
    pthread_mutex_init(&h->lock, NULL);
}

void hash_fini(struct net_hash *h)
{
    pthread_mutex_destroy(&h->lock);
}

const char *hash_connect(struct net_hash *h, unsigned queues)
{
    struct backend *b = h->b;
    char path[96];
    u64 ref, port;

    h->queues = queues;
    snprintf(path, sizeof(path), "%s/ctrl-ring-ref", b->front);
    if (!store_get(b->x->store, path, path, sizeof(path)))
        return NULL;
    if (!bus_read(b, b->front, "ctrl-ring-ref", ~0u, &ref))
        return "ctrl-ring-ref: there is no such number";
    if (!bus_read(b, b->front, "event-channel-ctrl", XEN_EVTCHNS - 1, &port))
        return "event-channel-ctrl: there is no such number";
    const u32 page = (u32)ref;
    if (!ring_map(b->x, &h->ring, &page, 1, sizeof(struct xen_netif_ctrl_request)))
        return "ctrl-ring-ref: no page of this guest's is granted by that";
    if (!port_bind(b->x, port, on_notify, h)) {
        ring_unmap(b->x, &h->ring);
        return "event-channel-ctrl: it is not offered to domain 0";
    }
    h->port = (u32)port;
    return NULL;
}

void hash_switch(struct net_hash *h, bool on)
{
    pthread_mutex_lock(&h->lock);
    h->connected = on && h->ring.nr_pages;
    if (!on) { /* as it was before there was a front end */
        atomic_store(&h->on, false);
        h->flags = h->size = 0;
        memset(h->key, 0, sizeof(h->key));
    }
    pthread_mutex_unlock(&h->lock);
    if (on)
        on_notify(h, true); /* what came before */
}

void hash_disconnect(struct net_hash *h)
{
    if (!h->ring.nr_pages)
        return;
    port_unbind(h->b->x, h->port, h);
    ring_unmap(h->b->x, &h->ring);
}

/* -- Snapshots --------------------------------------------------------------------------------------------------------------- */

struct saved_hash {
    u32 port, flags, size, map[HASH_MAP_MAX];
    u8 key[HASH_KEY_MAX];
    bool has_ring, bound, on; /* bound: the guest has not closed the port since */
};
/* clang-format off */
#define F(field) STATE(struct saved_hash, field)
static const struct state_field hash_fields[] = {
    F(port), F(flags), F(size), F(map), F(key), F(has_ring), F(bound), F(on), STATE_END
};
#undef F
/* clang-format on */

void hash_save(const struct net_hash *h, struct state_set *set, const char *card)
{
    struct saved_hash s = { .port = h->port, .flags = h->flags, .size = h->size, .has_ring = h->ring.nr_pages,
                            .bound = h->b->x->port[h->port].opaque == h, .on = atomic_load(&h->on) };
    char name[32];

    memcpy(s.map, h->map, sizeof(s.map));
    memcpy(s.key, h->key, sizeof(s.key));
    snprintf(name, sizeof(name), "%s.hash", card);
    state_set_save(set, name, hash_fields, &s);
    snprintf(name, sizeof(name), "%s.ctrl", card);
    if (s.has_ring)
        ring_save(&h->ring, set, name);
}

int hash_load(struct net_hash *h, unsigned queues, struct state_set *set, const char *card, char *err, size_t err_len)
{
    struct saved_hash s;
    char name[32];

    snprintf(name, sizeof(name), "%s.hash", card);
    int r = state_set_load(set, name, hash_fields, &s, err, err_len);
    if (r)
        return r;
    for (u32 i = 0; i < HASH_MAP_MAX; i++)
        if (s.map[i] >= queues)
            return xen_impossible(err, err_len, name, "queue");
    if ((s.flags & ~HASH_FLAGS) || s.size > HASH_MAP_MAX || s.port >= XEN_EVTCHNS ||
        (s.bound && !port_bind(h->b->x, s.port, on_notify, h)))
        return xen_impossible(err, err_len, name, "state");
    snprintf(name, sizeof(name), "%s.ctrl", card);
    r = s.has_ring ? ring_load(h->b->x, &h->ring, 1, sizeof(struct xen_netif_ctrl_request), set, name, err, err_len) : 0;
    if (r)
        return r;
    h->queues = queues;
    h->port = s.port;
    h->flags = s.flags;
    h->size = s.size;
    memcpy(h->map, s.map, sizeof(h->map));
    memcpy(h->key, s.key, sizeof(h->key));
    atomic_store(&h->on, s.on);
    h->connected = s.has_ring;
    return 0;
}
