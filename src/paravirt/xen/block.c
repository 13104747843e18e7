/*
 * block.c - block back end: the disk behind an xvda. Source: Xen's public io/blkif.h. Not offered: barriers, secure discard,
 * sectors of other sizes, feature-grant-backoff.
 *
 * Data goes straight between the file and the pages that were granted for it. Persistent grants, if they are switched on, cost a
 * front end a copy that it would not have to make here: nothing is mapped or unmapped for a grant, so they are off.
 *
 * Threads: notify on vCPU threads answers from the host's page cache where that takes no waiting; the rest goes to disk_aio, whose
 * threads answer. Locks: a ring's, then x->lock for grants.
 */
#include "paravirt/xen/io.h"
#include "storage/aio.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUEUES_MAX 16u
#define RING_ORDER_MAX 4u
#define SEGMENTS_MAX 256u  /* of an indirect request */
#define KEPT_MAX 4096u     /* persistent grants of a ring */
#define FIRST_ID 51712u    /* xvda: major 202, then 16 minors for each */

_Static_assert(1u << RING_ORDER_MAX == RING_PAGES_MAX, "rings of up to 16 pages");

struct vbd;

/* A page in use: by a grant of its own, or one that is kept. */
struct page_use {
    u32 ref;
    u64 frame;
    bool kept;
};

struct vbd_req {
    struct disk_req disk;
    struct vbd_ring *q;
    struct vbd_req *next; /* free */
    u64 id;
    u8 op;                /* what the answer names: of an indirect request, what it is to do */
    bool then_write;      /* a flush that is to be followed by the request's data */
    unsigned nr_pages;
    struct page_use page[SEGMENTS_MAX];
    struct iovec iov[SEGMENTS_MAX];
};

struct vbd_ring {
    struct vbd *d;
    pthread_mutex_t lock; /* what follows */
    struct xen_ring ring;
    u32 port;
    bool connected, persistent;
    struct vbd_req *free;
    u32 *kept;            /* [GRANTS], if persistent: a grant's frame, plus 1 */
    unsigned nr_kept;
};

struct vbd {
    struct backend b;
    struct disk *disk;
    struct disk_aio *aio;
    unsigned queues;      /* offered */
    bool persistent;      /* offered */
    unsigned nr_rings;    /* in use */
    struct vbd_ring ring[QUEUES_MAX];
};

static struct vbd *vbd_of(struct backend *b) { return container_of(b, struct vbd, b); }

/* -- Pages; with the ring's lock held, and x->lock -------------------------------------------------------------- */

static bool page_get(struct vbd_ring *q, u32 ref, bool write, struct page_use *p)
{
    struct xen *x = q->d->b.x;

    *p = (struct page_use){ .ref = ref };
    if (q->persistent && ref < GRANTS) {
        if (q->kept[ref]) {
            p->frame = q->kept[ref] - 1;
            p->kept = true;
            return true;
        }
        if (q->nr_kept < KEPT_MAX && grant_get(x, ref, true, &p->frame) == XEN_GNTST_okay) {
            q->kept[ref] = (u32)p->frame + 1;
            q->nr_kept++;
            p->kept = true;
            return true;
        }
    }
    return grant_get(x, ref, write, &p->frame) == XEN_GNTST_okay;
}

static void pages_put(struct vbd_req *req, bool write, bool written)
{
    struct xen *x = req->q->d->b.x;

    while (req->nr_pages) {
        struct page_use *p = &req->page[--req->nr_pages];
        if (!p->kept)
            grant_put(x, p->ref, write, p->frame, written);
        else if (written)
            ram_written(x->c.ram, p->frame << PAGE_SHIFT, PAGE_SIZE);
    }
}

static void kept_put(struct vbd_ring *q)
{
    for (u32 ref = 0; q->kept && ref < GRANTS && q->nr_kept; ref++)
        if (q->kept[ref]) {
            grant_put(q->d->b.x, ref, true, q->kept[ref] - 1, true);
            q->nr_kept--;
        }
    free(q->kept);
    q->kept = NULL;
}

/* -- The end of a request; with the ring's lock held ------------------------------------------------------------------ */

static s16 status_of(int result)
{
    return result == 0 ? XEN_BLKIF_OKAY : result == -EOPNOTSUPP ? XEN_BLKIF_EOPNOTSUPP : XEN_BLKIF_ERROR;
}

static void complete(struct vbd_req *req, s16 status)
{
    struct vbd_ring *q = req->q;
    const struct xen_blkif_response rsp = { .id = req->id, .operation = req->op, .status = status };
    bool read = req->disk.op == DISK_READ;

    if (req->nr_pages) {
        pthread_mutex_lock(&q->d->b.x->lock);
        pages_put(req, read, read);
        pthread_mutex_unlock(&q->d->b.x->lock);
    }
    ring_answer(&q->ring, &rsp, sizeof(rsp));
    req->next = q->free;
    q->free = req;
}

static void publish(struct vbd_ring *q)
{
    if (ring_publish(&q->ring))
        port_raise(q->d->b.x, q->port);
}

/* On a thread of the disk's. */
static void on_done(struct disk_req *disk, int result)
{
    struct vbd_req *req = container_of(disk, struct vbd_req, disk);
    struct vbd_ring *q = req->q;

    if (!result && req->then_write) {
        req->then_write = false;
        req->disk.op = DISK_WRITE;
        disk_aio_submit(q->d->aio, disk);
        return;
    }
    pthread_mutex_lock(&q->lock);
    complete(req, status_of(result));
    publish(q);
    pthread_mutex_unlock(&q->lock);
}

/* -- Its beginning, with the ring's lock held. A status to complete it with now, or PENDING. ------------------------------- */

#define PENDING 1

static int submit(struct vbd_req *req)
{
    int result;

    if (disk_aio_try(req->q->d->aio, &req->disk, &result))
        return status_of(result);
    disk_aio_submit(req->q->d->aio, &req->disk);
    return PENDING;
}

/* One segment: its page, and another piece of data or more of the last. */
static bool segment(struct vbd_req *req, const struct xen_blkif_segment *s, bool write)
{
    struct disk_req *d = &req->disk;
    struct page_use *p = &req->page[req->nr_pages];

    if (s->last >= PAGE_SIZE / DISK_SECTOR || s->first > s->last || !page_get(req->q, s->gref, write, p))
        return false;
    req->nr_pages++;
    u8 *at = grant_page(req->q->d->b.x, p->frame) + s->first * DISK_SECTOR;
    size_t len = (s->last - s->first + 1u) * DISK_SECTOR;
    struct iovec *v = d->nr_iov ? &req->iov[d->nr_iov - 1] : NULL;
    if (v && (u8 *)v->iov_base + v->iov_len == at)
        v->iov_len += len;
    else
        req->iov[d->nr_iov++] = (struct iovec){ at, len };
    d->count += len / DISK_SECTOR;
    return true;
}

/* Segments in pages of their own: a private copy of each page's. */
static bool indirect(struct vbd_req *req, const struct xen_blkif_request *r, unsigned nr, bool write)
{
    struct xen *x = req->q->d->b.x;
    struct xen_blkif_segment seg[XEN_BLKIF_SEGMENTS_PER_PAGE];

    for (unsigned at = 0; at < nr;) {
        unsigned n = MIN(nr - at, XEN_BLKIF_SEGMENTS_PER_PAGE + 0u);
        struct page_use p;
        if (!page_get(req->q, r->u.indirect.gref[at / XEN_BLKIF_SEGMENTS_PER_PAGE], false, &p))
            return false;
        memcpy(seg, grant_page(x, p.frame), n * sizeof(seg[0]));
        if (!p.kept)
            grant_put(x, p.ref, false, p.frame, false);
        for (unsigned i = 0; i < n; i++, at++)
            if (!segment(req, &seg[i], write))
                return false;
    }
    return true;
}
_Static_assert(SEGMENTS_MAX <= XEN_BLKIF_SEGMENTS_PER_PAGE * XEN_BLKIF_INDIRECT_PAGES, "segments fit into the pages named");

static int start_data(struct vbd_req *req, const struct xen_blkif_request *r, u8 op, unsigned nr, bool is_indirect)
{
    struct vbd *d = req->q->d;
    bool read = op == XEN_BLKIF_READ, good = true;

    if (op != XEN_BLKIF_READ && op != XEN_BLKIF_WRITE && op != XEN_BLKIF_FLUSH)
        return XEN_BLKIF_EOPNOTSUPP;
    if (nr > (is_indirect ? SEGMENTS_MAX : XEN_BLKIF_SEGMENTS) || (!read && d->disk->readonly && nr))
        return XEN_BLKIF_ERROR;
    req->disk.op = read ? DISK_READ : DISK_WRITE;
    req->disk.sector = r->sector;
    if (nr) {
        pthread_mutex_lock(&d->b.x->lock);
        if (is_indirect)
            good = indirect(req, r, nr, read);
        else
            for (unsigned i = 0; i < nr && good; i++)
                good = segment(req, &r->u.seg[i], read);
        pthread_mutex_unlock(&d->b.x->lock);
    }
    if (!good || (nr ? !disk_has(d->disk, r->sector, req->disk.count) : op != XEN_BLKIF_FLUSH)) /* Linux's flush has sector -1 */
        return XEN_BLKIF_ERROR;
    if (op == XEN_BLKIF_FLUSH) {
        req->disk.op = DISK_FLUSH;
        req->then_write = nr;
        disk_aio_submit(d->aio, &req->disk);
        return PENDING;
    }
    return submit(req);
}

static int start_discard(struct vbd_req *req, const struct xen_blkif_request *r)
{
    struct vbd *d = req->q->d;

    if (d->disk->readonly || r->flag)
        return XEN_BLKIF_EOPNOTSUPP;
    if (!disk_has(d->disk, r->sector, r->u.nr_sectors))
        return XEN_BLKIF_ERROR;
    if (!r->u.nr_sectors)
        return XEN_BLKIF_OKAY;
    req->disk.op = DISK_DISCARD;
    req->disk.sector = r->sector;
    req->disk.count = r->u.nr_sectors;
    disk_aio_submit(d->aio, &req->disk);
    return PENDING;
}

static int begin(struct vbd_req *req, const struct xen_blkif_request *r)
{
    req->disk = (struct disk_req){ .op = DISK_FLUSH, .iov = req->iov, .done = on_done };
    req->then_write = false;
    req->nr_pages = 0;
    req->id = r->id;
    req->op = r->operation == XEN_BLKIF_INDIRECT ? r->indirect_op : r->operation;
    switch (r->operation) {
    case XEN_BLKIF_INDIRECT: return start_data(req, r, r->indirect_op, r->nr_indirect, true);
    case XEN_BLKIF_DISCARD: return start_discard(req, r);
    default: return start_data(req, r, r->operation, r->nr_segments, false);
    }
}

static struct vbd_req *req_get(struct vbd_ring *q)
{
    struct vbd_req *req = q->free;

    if (req) {
        q->free = req->next;
        return req;
    }
    req = calloc(1, sizeof(*req));
    if (req)
        req->q = q;
    return req;
}

static bool on_notify(void *opaque, bool rest)
{
    struct vbd_ring *q = opaque;
    struct xen_blkif_request r;
    struct vbd_req *req;
    bool any = false;

    pthread_mutex_lock(&q->lock);
    if (q->connected) {
        do {
            while (ring_waiting(&q->ring) && (req = req_get(q))) {
                ring_take(&q->ring, &r, sizeof(r));
                any = true;
                int status = begin(req, &r);
                if (status != PENDING)
                    complete(req, (s16)status);
            }
        } while (rest && ring_rest(&q->ring, 0));
        publish(q);
    }
    pthread_mutex_unlock(&q->lock);
    return any;
}

/* -- Coming and going --------------------------------------------------------------------------------------------------------- */

static void vbd_publish(struct backend *b)
{
    struct vbd *d = vbd_of(b);
    bool readonly = d->disk->readonly;
    const struct { const char *name; u64 value; } node[] = {
        { "max-ring-page-order", RING_ORDER_MAX }, { "multi-queue-max-queues", d->queues },
        { "feature-max-indirect-segments", SEGMENTS_MAX }, { "feature-persistent", d->persistent },
        { "feature-flush-cache", 1 }, { "feature-barrier", 0 }, { "feature-discard", !readonly },
        { "discard-granularity", 4096 }, { "discard-alignment", 0 }, { "discard-secure", 0 }, { "sectors", d->disk->sectors },
        { "info", readonly ? XEN_VDISK_READONLY : 0 }, { "sector-size", DISK_SECTOR }, { "physical-sector-size", 4096 },
        { "removable", 0 },
    };
    const struct { const char *name, *value; } text[] = { { "mode", readonly ? "r" : "w" }, { "dev", b->name } };
    char path[128];

    for (unsigned i = 0; i < ARRAY_SIZE(node); i++) {
        snprintf(path, sizeof(path), "%s/%s", b->back, node[i].name);
        store_put(b->x->store, false, path, "%llu", (unsigned long long)node[i].value);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(text); i++) {
        snprintf(path, sizeof(path), "%s/%s", b->back, text[i].name);
        store_put(b->x->store, false, path, "%s", text[i].value);
    }
    snprintf(path, sizeof(path), "%s/virtual-device", b->front);
    store_put(b->x->store, true, path, "%u", b->id);
    snprintf(path, sizeof(path), "%s/device-type", b->front);
    store_put(b->x->store, true, path, "disk");
}

/* x->lock held. NULL, or what is wrong. */
static const char *ring_connect(struct vbd_ring *q, const char *dir, bool persistent)
{
    struct backend *b = &q->d->b;
    u32 ref[RING_PAGES_MAX];
    u64 order = 0, value;
    char name[24];
    bool many = bus_read(b, b->front, "ring-page-order", ~0ull, &order);

    if (order > RING_ORDER_MAX)
        return "ring-page-order: more than is offered";
    for (unsigned i = 0; i < 1u << order; i++) {
        snprintf(name, sizeof(name), many ? "ring-ref%u" : "ring-ref", i);
        if (!bus_read(b, dir, name, ~0u, &value))
            return "ring-ref: there is no such number";
        ref[i] = (u32)value;
    }
    if (!bus_read(b, dir, "event-channel", XEN_EVTCHNS - 1, &value))
        return "event-channel: there is no such number";
    if (persistent && !(q->kept = calloc(GRANTS, sizeof(q->kept[0]))))
        return "out of memory";
    if (!ring_map(b->x, &q->ring, ref, 1u << order, sizeof(struct xen_blkif_request)))
        return "ring-ref: no page of this guest's is granted by that";
    if (!port_bind(b->x, value, on_notify, q)) {
        ring_unmap(b->x, &q->ring);
        return "event-channel: it is not offered to domain 0";
    }
    q->port = (u32)value;
    q->persistent = persistent;
    return NULL;
}

static void vbd_disconnect(struct backend *b)
{
    struct vbd *d = vbd_of(b);

    for (unsigned i = 0; i < d->nr_rings; i++) {
        pthread_mutex_lock(&d->ring[i].lock);
        d->ring[i].connected = false;
        pthread_mutex_unlock(&d->ring[i].lock);
    }
    disk_aio_drain(d->aio);
    pthread_mutex_lock(&b->x->lock);
    for (unsigned i = 0; i < d->nr_rings; i++) {
        struct vbd_ring *q = &d->ring[i];
        if (q->ring.nr_pages) {
            port_unbind(b->x, q->port, q);
            ring_unmap(b->x, &q->ring);
        }
        kept_put(q);
    }
    pthread_mutex_unlock(&b->x->lock);
    d->nr_rings = 0;
}

static const char *vbd_connect(struct backend *b)
{
    struct vbd *d = vbd_of(b);
    const char *wrong = NULL;
    char text[96], dir[80];
    u64 persistent = 0;

    pthread_mutex_lock(&b->x->lock);
    d->nr_rings = bus_queues(b, d->queues);
    snprintf(text, sizeof(text), "%s/protocol", b->front);
    if (store_get(b->x->store, text, text, sizeof(text)) && strcmp(text, "x86_64-abi"))
        wrong = "protocol: only x86_64-abi is known";
    else if (!d->nr_rings)
        wrong = "multi-queue-num-queues: more than are offered";
    bus_read(b, b->front, "feature-persistent", 1, &persistent);
    for (unsigned i = 0; i < d->nr_rings && !wrong; i++) {
        bus_queue_dir(b, d->nr_rings, i, dir);
        wrong = ring_connect(&d->ring[i], dir, d->persistent && persistent);
    }
    pthread_mutex_unlock(&b->x->lock);
    if (wrong) {
        vbd_disconnect(b);
        return wrong;
    }
    for (unsigned i = 0; i < d->nr_rings; i++) {
        pthread_mutex_lock(&d->ring[i].lock);
        d->ring[i].connected = true;
        pthread_mutex_unlock(&d->ring[i].lock);
        on_notify(&d->ring[i], true); /* what came before */
    }
    return NULL;
}

/* -- Snapshots: nothing is under way ---------------------------------------------------------------------------------------- */

struct saved_vbd_ring {
    u32 port;
    bool bound, persistent; /* bound: the guest has not closed the port since */
};
struct saved_kept {
    u32 ref, frame;
};
/* clang-format off */
static const struct state_field ring_fields[] = {
    STATE(struct saved_vbd_ring, port), STATE(struct saved_vbd_ring, bound), STATE(struct saved_vbd_ring, persistent), STATE_END
};
/* clang-format on */

static int vbd_flush(struct backend *b)
{
    return disk_flush(vbd_of(b)->disk);
}

static void vbd_save(struct backend *b, struct state_set *set, const char *name)
{
    struct vbd *d = vbd_of(b);
    char part[32];

    for (unsigned i = 0; i < d->nr_rings; i++) {
        const struct vbd_ring *q = &d->ring[i];
        struct state_buf kept = { 0 };
        snprintf(part, sizeof(part), "%s.queue%u", name, i);
        state_set_save(set, part, ring_fields, &(struct saved_vbd_ring){ q->port, b->x->port[q->port].opaque == q, q->persistent });
        snprintf(part, sizeof(part), "%s.ring%u", name, i);
        ring_save(&q->ring, set, part);
        for (u32 ref = 0; q->kept && ref < GRANTS; ref++)
            if (q->kept[ref])
                state_put(&kept, &(struct saved_kept){ ref, q->kept[ref] - 1 }, sizeof(struct saved_kept));
        snprintf(part, sizeof(part), "%s.kept%u", name, i);
        xen_save_list(set, part, &kept);
    }
}

static int kept_load(struct vbd_ring *q, struct state_set *set, const char *part, char *err, size_t err_len)
{
    size_t nr;
    const u8 *bytes = xen_load_list(set, part, sizeof(struct saved_kept), &nr, err, err_len);

    if (!bytes)
        return -EINVAL;
    if (nr > (q->kept ? KEPT_MAX : 0))
        return xen_impossible(err, err_len, part, "list");
    for (size_t i = 0; i < nr; i++) {
        struct saved_kept s;
        memcpy(&s, bytes + i * sizeof(s), sizeof(s));
        if (s.ref >= GRANTS || q->kept[s.ref] || !grant_load(q->d->b.x, s.ref, true, s.frame))
            return xen_impossible(err, err_len, part, "grant");
        q->kept[s.ref] = s.frame + 1;
        q->nr_kept++;
    }
    return 0;
}

/* x->lock held. */
static int queue_load(struct vbd_ring *q, unsigned i, struct state_set *set, const char *name, char *err, size_t err_len)
{
    struct xen *x = q->d->b.x;
    struct saved_vbd_ring s;
    char part[32];

    snprintf(part, sizeof(part), "%s.queue%u", name, i);
    int r = state_set_load(set, part, ring_fields, &s, err, err_len);
    if (r)
        return r;
    if (s.port >= XEN_EVTCHNS || (s.persistent && !q->d->persistent) || (s.bound && !port_bind(x, s.port, on_notify, q)))
        return xen_impossible(err, err_len, part, "port");
    q->port = s.port;
    q->persistent = s.persistent;
    if (q->persistent && !(q->kept = calloc(GRANTS, sizeof(q->kept[0]))))
        return xen_impossible(err, err_len, part, "memory");
    snprintf(part, sizeof(part), "%s.ring%u", name, i);
    r = ring_load(x, &q->ring, 1u << RING_ORDER_MAX, sizeof(struct xen_blkif_request), set, part, err, err_len);
    if (r)
        return r;
    snprintf(part, sizeof(part), "%s.kept%u", name, i);
    return kept_load(q, set, part, err, err_len);
}

static int vbd_load(struct backend *b, struct state_set *set, const char *name, char *err, size_t err_len)
{
    struct vbd *d = vbd_of(b);
    char part[32];
    int r = 0;

    pthread_mutex_lock(&b->x->lock);
    for (unsigned i = 0; i < d->queues && !r; i++) {
        snprintf(part, sizeof(part), "%s.queue%u", name, i);
        if (i && !state_set_has(set, part)) /* the front end took fewer */
            break;
        d->nr_rings = i + 1;
        r = queue_load(&d->ring[i], i, set, name, err, err_len);
    }
    pthread_mutex_unlock(&b->x->lock);
    if (r)
        vbd_disconnect(b);
    else
        for (unsigned i = 0; i < d->nr_rings; i++)
            d->ring[i].connected = true;
    return r;
}

/* The vCPUs stand still: nothing new comes. */
static void vbd_pause(struct backend *b, bool on)
{
    if (on)
        disk_aio_drain(vbd_of(b)->aio);
}

static void vbd_end(struct backend *b)
{
    struct vbd *d = vbd_of(b);

    disk_aio_destroy(d->aio);
    disk_close(d->disk);
}

static void vbd_free(struct backend *b)
{
    struct vbd *d = vbd_of(b);

    for (unsigned i = 0; i < QUEUES_MAX; i++) {
        for (struct vbd_req *req = d->ring[i].free, *next; req; req = next) {
            next = req->next;
            free(req);
        }
        pthread_mutex_destroy(&d->ring[i].lock);
    }
    free(d);
}

static const struct backend_class vbd_class = {
    .type = "vbd", .publish = vbd_publish, .connect = vbd_connect, .disconnect = vbd_disconnect, .pause = vbd_pause,
    .flush = vbd_flush, .save = vbd_save, .load = vbd_load, .end = vbd_end, .free = vbd_free,
};

int xen_disk_attach(struct xen *x, const struct xen_disk *disk, char name[16])
{
    struct vbd *d = calloc(1, sizeof(*d));
    int r = -ENOMEM;

    if (!d)
        return r;
    d->disk = disk->disk;
    d->queues = MIN(disk->queues, QUEUES_MAX);
    d->persistent = disk->persistent;
    for (unsigned i = 0; i < QUEUES_MAX; i++) {
        d->ring[i].d = d;
        pthread_mutex_init(&d->ring[i].lock, NULL);
    }
    d->b.class = &vbd_class;
    unsigned wish = name[0] ? ((u8)name[3] - 'a') * 16u : 0;
    d->b.id = bus_free_id(x, &vbd_class, FIRST_ID + wish, 16);
    unsigned at = (d->b.id - FIRST_ID) / 16;
    snprintf(d->b.name, sizeof(d->b.name), "xvd%c", 'a' + (at & 15));
    r = name[0] && strcmp(name, d->b.name) ? -EINVAL : at >= 16 ? -ENOSPC : disk_aio_create(d->disk, !disk->threads, &d->aio);
    if (!r)
        r = bus_add(x, &d->b);
    if (r) {
        disk_aio_destroy(d->aio);
        vbd_free(&d->b);
        return r;
    }
    snprintf(name, 16, "%s", d->b.name);
    return 0;
}
