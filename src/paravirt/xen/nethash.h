/*
 * nethash.h - a network card's control ring: its front end chooses, by a hash of each packet for the guest, the queue that
 * takes it. For net.c.
 *
 * Threads: any. Locks: `lock`, then x->lock.
 */
#pragma once
#include "paravirt/xen/io.h"
#include <stdatomic.h>

#define HASH_KEY_MAX 40u
#define HASH_MAP_MAX 128u

struct net_hash {
    struct backend *b;
    pthread_mutex_t lock; /* what follows */
    struct xen_ring ring;
    u32 port;
    bool connected;
    unsigned queues;      /* of the card's, that are in use */
    atomic_bool on;       /* an algorithm is chosen */
    u32 flags;            /* XEN_NETIF_HASH_* */
    u8 key[HASH_KEY_MAX];
    u32 size;             /* entries of the map; 0: a hash is the queue, modulo how many there are */
    u32 map[HASH_MAP_MAX];
};

struct net_hashed {
    unsigned queue;
    u32 value;
    u8 type; /* XEN_NETIF_HASH_*; 0: such a packet has none */
};

void hash_init(struct net_hash *h, struct backend *b);
void hash_fini(struct net_hash *h);
/* hash_connect - x->lock held. NULL, also if the front end wants no control ring, or what is wrong. */
const char *hash_connect(struct net_hash *h, unsigned queues);
/* hash_switch - it is served from now on, or no more; no lock held. hash_disconnect - switched off, with x->lock held. */
void hash_switch(struct net_hash *h, bool on);
void hash_disconnect(struct net_hash *h);
/* hash_save, hash_load - for snapshots, of a card that is connected and paused; the latter in place of hash_connect() and
 * hash_switch(), x->lock held. Sections are called "CARD.hash" and "CARD.ctrl". */
void hash_save(const struct net_hash *h, struct state_set *set, const char *card);
int hash_load(struct net_hash *h, unsigned queues, struct state_set *set, const char *card, char *err, size_t err_len);
/* hash_frame - of a frame for the guest. False: no algorithm is chosen, the queue is the back end's to choose. */
bool hash_frame(struct net_hash *h, const u8 *frame, size_t len, struct net_hashed *out);
/* hash_toeplitz - of n (at most HASH_KEY_MAX - 4) bytes. */
u32 hash_toeplitz(const u8 key[HASH_KEY_MAX], const u8 *data, size_t n);
