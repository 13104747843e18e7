/*
 * store.h - xenstore's parts: store.c has what concerns the whole of it (answers, the ring, domain 0's side), requests.c what the
 * guest asks for. All with x->lock held.
 */
#pragma once
#include "paravirt/xen/io.h"
#include "paravirt/xen/tree.h"

#define WATCHES_MAX 128
#define TX_MAX 10
#define VALUE_MAX 2048
#define OUT_MAX (64u << 10)

struct watch {
    char *path, *token;     /* as the guest gave them */
};
struct change { struct change *next; char path[]; };
struct tx {
    u32 id;
    struct node *root;
    unsigned nr_nodes;
    u64 generation;         /* of the tree it was copied from */
    struct change *changes;
};
struct store {
    struct xen *x;
    struct xen_store_ring *ring;
    struct node *root;
    unsigned nr_nodes;
    u64 generation;
    struct watch watch[WATCHES_MAX];
    unsigned nr_watches;
    struct tx tx[TX_MAX];
    u32 next_tx;
    struct xen_store_msg in;   /* the message that comes in, and how much of it is there */
    u32 in_at;
    char payload[XEN_STORE_PAYLOAD + 1];
    u8 *out;                   /* [OUT_MAX]: what waits for room in the ring */
    u32 out_len;
};

/* -- store.c ------------------------------------------------------------------------------------------------------------ */
/* store_answer - a message to the guest; it waits for room in the ring. store_watch_fire - one watch is told of a change at path.
 * store_changed - all that watch it, and the back ends. store_absolute - with HOME before it, if it does not begin with '/';
 * false: it is not a path. */
void store_answer(struct store *s, u32 type, u32 req, u32 tx, const void *data, size_t len);
void store_watch_fire(struct store *s, const struct watch *w, const char *path);
void store_changed(struct store *s, const char *path);
bool store_absolute(char out[PATH_MAX_ABS + 1], const char *path);

/* -- requests.c ----------------------------------------------------------------------------------------------------------- */
/* store_serve - the message in s->in and s->payload. */
void store_serve(struct store *s);
void store_tx_drop(struct tx *t);
void store_unwatch(struct store *s, unsigned i);
