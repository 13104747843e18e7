/*
 * io.h - what the back ends of split drivers share: grants, event channels, rings, xenstore as domain 0 sees it. Inside this
 * folder only.
 *
 * Locks: a device's own (of a ring, a queue) before x->lock; with x->lock held nobody calls a disk, a network or a device.
 */
#pragma once
#include "base/state.h"
#include "paravirt/xen/inner.h"
#include "vitro/xen_io.h"

#define GRANT_FRAMES 32u
#define GRANTS (GRANT_FRAMES * (u32)(PAGE_SIZE / sizeof(struct xen_grant_entry)))
#define DOM_GUEST 1u

/* -- grant.c; all with x->lock held ----------------------------------------------------------------------------- */
xen_call_fn xen_grant_table_op;
int grants_create(struct xen *x);
void grants_destroy(struct xen *x);
void grants_save(const struct xen *x, struct state_set *set);
int grants_load(struct xen *x, struct state_set *set, char *err, size_t err_len);
/*
 * grant_get - begin to use a page that the guest granted to domain 0: read it, or (write) read and write it. A page that
 * is written is no page table meanwhile.
 * @frame: out: which of the guest's
 *
 * XEN_GNTST_okay; bad_gntref: there is no such grant; permission_denied: not for us, or read-only; bad_page: it is not a
 * page of the guest's, or one that may not be written.
 */
enum xen_gntst grant_get(struct xen *x, u32 ref, bool write, u64 *frame);
/* grant_put - the end of it. written: the page's contents changed. */
void grant_put(struct xen *x, u32 ref, bool write, u64 frame, bool written);
/* grant_load - a use that there was when a snapshot was made, and of which the table knows. False: it cannot have been. */
bool grant_load(struct xen *x, u32 ref, bool write, u64 frame);
/* grant_page - where a frame that grant_get() gave is. */
static inline u8 *grant_page(const struct xen *x, u64 frame) { return x->c.host + (frame << PAGE_SHIFT); }

/* -- evtchn.c: ports that the guest offers to domain 0; with x->lock held --------------------------------------------- */
/* port_bind - take one: notify is called on the vCPU thread that sends, without locks. rest: there will be no other call without
 * a bell, so ask for one; else there will be. It returns whether there was a request. False: the port is not offered to us. */
bool port_bind(struct xen *x, u64 port, bool (*notify)(void *opaque, bool rest), void *opaque);
/* port_unbind - nothing, if the guest has closed it since. */
void port_unbind(struct xen *x, u32 port, const void *opaque);

/* -- store.c: xenstore as domain 0, which may do anything; with x->lock held ------------------------------------------------ */
/* store_put - write a value; a new node is the guest's own, or one that it may read. False: no memory. */
bool store_put(struct store *s, bool guests, const char *path, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* store_get - a value as a text. False: there is none, or it is no text, or does not fit. */
bool store_get(struct store *s, const char *path, char *buf, size_t len);
/* store_number - a value that is a decimal number of at most max. False: it is not, and *out stays as it is. */
bool store_number(struct store *s, const char *path, u64 max, u64 *out);
void store_rm(struct store *s, const char *path);
/* store_flush - what the guest was not told yet goes out. */
void store_flush(struct store *s);

/* -- ring.c ------------------------------------------------------------------------------------------------------------------- */
#define RING_PAGES_MAX 16u

/* One ring, seen from the back end. The front end's numbers are read, checked and never believed. */
struct xen_ring {
    u8 *page[RING_PAGES_MAX];
    u64 frame[RING_PAGES_MAX];
    u32 ref[RING_PAGES_MAX];
    unsigned nr_pages;      /* 0: not mapped */
    unsigned size, entry;   /* entries, and bytes in each */
    u32 req_cons, rsp_prod; /* ours */
    u32 rsp_seen;           /* what the front end was shown of rsp_prod */
    bool broken;            /* the front end claims more requests than there can be: nothing more is taken */
};
/* ring_map - x->lock held. The ring goes on where its indices are. False: a grant that cannot be used; nothing is mapped. */
bool ring_map(struct xen *x, struct xen_ring *r, const u32 *ref, unsigned nr_pages, unsigned entry);
void ring_unmap(struct xen *x, struct xen_ring *r);
/* ring_waiting - how many requests are there to take. */
u32 ring_waiting(struct xen_ring *r);
/* ring_take - a private copy of the next `len` bytes of a request. False: there is none. */
bool ring_take(struct xen_ring *r, void *req, size_t len);
/* ring_rest - ask to be told of a request after these `more`; true: it is there already. */
bool ring_rest(struct xen_ring *r, u32 more);
/* ring_answer - in the place of the oldest request without an answer. */
void ring_answer(struct xen_ring *r, const void *rsp, size_t len);
/* ring_publish - let the front end see the answers. True: it wants to be told. */
bool ring_publish(struct xen_ring *r);
/* ring_awaits - it wants to be told of an answer behind the first `told`, and there is one. */
bool ring_awaits(const struct xen_ring *r, u32 told);

/* ring_save, ring_load - a ring that is mapped; the latter of at most pages_max pages, x->lock held. 0, or -EINVAL with a sentence. */
void ring_save(const struct xen_ring *r, struct state_set *set, const char *name);
int ring_load(struct xen *x, struct xen_ring *r, unsigned pages_max, unsigned entry, struct state_set *set, const char *name,
              char *err, size_t err_len);

/* -- state.c: snapshots. What all have in common that put something aside. ------------------------------------------------------- */
/* xen_impossible - -EINVAL, and a sentence: of the section `name`, no such `what`. */
int xen_impossible(char *err, size_t err_len, const char *name, const char *what);
/* xen_save_list - a section of the bytes in buf, which is freed. xen_load_list - one of so many times `each` bytes; NULL: no. */
void xen_save_list(struct state_set *set, const char *name, struct state_buf *buf);
const u8 *xen_load_list(struct state_set *set, const char *name, size_t each, size_t *nr, char *err, size_t err_len);
void store_save(const struct store *s, struct state_set *set);
int store_load(struct store *s, struct state_set *set, char *err, size_t err_len);

/* -- bus.c: devices and their states ---------------------------------------------------------------------------------------------- */
struct backend;

struct backend_class {
    const char *type; /* in paths */
    /* x->lock held: into the store, what the device is and can do. */
    void (*publish)(struct backend *b);
    /* No lock held: the front end has said where its rings are. NULL, or what is wrong with that. */
    const char *(*connect)(struct backend *b);
    /* No lock held; afterwards nothing of the guest's is touched. */
    void (*disconnect)(struct backend *b);
    /* While no vCPU runs: nothing of the guest's is touched in between. */
    void (*pause)(struct backend *b, bool on);
    /* What the guest wrote is in the file: 0 or -errno. NULL: nothing is kept. */
    int (*flush)(struct backend *b);
    /* Of a device that is connected and paused. Sections are called "NAME..."; load: no lock held; -EINVAL with a sentence: it is
     * disconnected then. */
    void (*save)(struct backend *b, struct state_set *set, const char *name);
    int (*load)(struct backend *b, struct state_set *set, const char *name, char *err, size_t err_len);
    /* What is behind it on the host; disconnected, and for good. */
    void (*end)(struct backend *b);
    void (*free)(struct backend *b);
};

struct backend {
    struct backend *next;
    struct xen *x;
    const struct backend_class *class;
    unsigned id;
    char name[16];            /* for people */
    char front[64], back[64]; /* where the two ends are in the store */
    enum xenbus_state state;  /* of ours */
    bool connected, leaving;  /* leaving: it is to be taken away, */
    bool forced;              /* whether the guest lets go of it or not */
    bool gone;                /* and has been */
};
int bus_create(struct xen *x);
void bus_destroy(struct xen *x);
void bus_save(struct xen *x, struct state_set *set);
int bus_load(struct xen *x, struct state_set *set, char *err, size_t err_len);
/* bus_changed - x->lock held: a node of the store has changed. */
void bus_changed(struct xen *x, const char *path);
/*
 * bus_add - a new device, of which class, id and name are filled in. 0, or -errno: it is still the caller's.
 * It stays until the guest goes, so that who was about to notify it may: only end() comes when it is taken away.
 */
int bus_add(struct xen *x, struct backend *b);
/* bus_free_id - the first number of base, base + step, ... that no device of the class has. */
unsigned bus_free_id(struct xen *x, const struct backend_class *class, unsigned base, unsigned step);
/* bus_read - a number the front end wrote below `dir` (its own directory, or a queue's). */
bool bus_read(struct backend *b, const char *dir, const char *name, u64 max, u64 *out);
/* bus_queues - how many queues the front end wants, 1 without a word of it, and queue i's directory. 0: that is too many. */
unsigned bus_queues(struct backend *b, unsigned max);
void bus_queue_dir(const struct backend *b, unsigned queues, unsigned i, char dir[80]);
