/*
 * native_block.c - disks: a call that does a batch of requests and returns, and a ring that a thread of ours works off
 * while the guest goes on. Structures: vt_block_* in include/vitro/shared.h. Data goes straight between the file and
 * guest memory.
 *
 * Threads: each disk with a ring has one. disk->lock guards the ring's numbers; it is not held while a request is done.
 */
#include "base/state.h"
#include "paravirt/native_inner.h"
#include "base/sandbox.h"
#include "storage/disk.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LEN (1u << 20)     /* of one request */
#define SUBMIT_MAX (16u << 20) /* of all in one BLOCK_SUBMIT: the vCPU waits for them */

struct native_disk {
    struct native *n;
    struct disk *disk;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock; /* what follows */
    pthread_cond_t wake;
    bool stop, bell, busy, paused;
    struct vt_block_ring *ring; /* in guest RAM; NULL: none */
    u32 size;                   /* ours: the guest's is read once */
    u32 req_tail, done_head;    /* ours */
    unsigned port;
};

static struct native_disk *disk_find(struct native *n, u64 dev)
{
    return dev < n->c.nr_disks ? &n->disk[dev] : NULL;
}

/* -- One request --------------------------------------------------------------------------------------- */

static s32 do_request(struct native_disk *d, const struct vt_block_req *r)
{
    u32 count = r->len / DISK_SECTOR;
    int err;

    if (r->op > VT_BLOCK_FLUSH || r->reserved)
        return -VT_EINVAL;
    if (r->op == VT_BLOCK_FLUSH)
        return disk_flush(d->disk) ? -VT_EIO : 0;
    if (!count || r->len % DISK_SECTOR || r->len > MAX_LEN || !disk_has(d->disk, r->sector, count))
        return -VT_EINVAL;
    if (r->op == VT_BLOCK_READ) {
        void *to = ram_dma_ptr(d->n->c.ram, r->pa, r->len);
        if (!to)
            return -VT_EFAULT;
        err = disk_read(d->disk, r->sector, to, count);
        ram_written(d->n->c.ram, r->pa, r->len);
    } else {
        const void *from = ram_ptr(d->n->c.ram, r->pa, r->len);
        if (!from)
            return -VT_EFAULT;
        err = disk_write(d->disk, r->sector, from, count);
    }
    return !err ? 0 : err == -EROFS ? -VT_EROFS : -VT_EIO;
}

/* -- The ring ------------------------------------------------------------------------------------------- */

static struct vt_block_req *req_at(struct native_disk *d, u32 i)
{
    return (struct vt_block_req *)((u8 *)d->ring + sizeof(*d->ring)) + i % d->size;
}
static struct vt_block_done *done_at(struct native_disk *d, u32 i)
{
    return (struct vt_block_done *)((u8 *)d->ring + sizeof(*d->ring) + d->size * sizeof(struct vt_block_req)) + i % d->size;
}

/* Under d->lock: the next request, copied. A ring that makes no sense has none. */
static bool next_request(struct native_disk *d, struct vt_block_req *r)
{
    if (!d->ring)
        return false;
    u32 waiting = __atomic_load_n(&d->ring->req_head, __ATOMIC_ACQUIRE) - d->req_tail;
    u32 full = d->done_head - __atomic_load_n(&d->ring->done_tail, __ATOMIC_ACQUIRE);
    if (!waiting || waiting > d->size || full >= d->size)
        return false;
    memcpy(r, req_at(d, d->req_tail), sizeof(*r));
    d->req_tail++;
    __atomic_store_n(&d->ring->req_tail, d->req_tail, __ATOMIC_RELEASE);
    return true;
}

static void *disk_thread(void *arg)
{
    struct native_disk *d = arg;
    struct vt_block_req r;

    sandbox_enter(SANDBOX_DISK);
    pthread_mutex_lock(&d->lock);
    while (!d->stop) {
        bool any = false;
        d->bell = false;
        while (!d->stop && !d->paused && next_request(d, &r)) {
            d->busy = any = true;
            pthread_mutex_unlock(&d->lock);
            struct vt_block_done done = { .id = r.id, .result = do_request(d, &r) };
            pthread_mutex_lock(&d->lock);
            d->busy = false;
            memcpy(done_at(d, d->done_head), &done, sizeof(done));
            d->done_head++;
            __atomic_store_n(&d->ring->done_head, d->done_head, __ATOMIC_RELEASE);
            if (d->paused)
                pthread_cond_broadcast(&d->wake); /* native_block_pause() waits */
        }
        if (any) { /* one event for all that is done */
            unsigned port = d->port;
            pthread_mutex_unlock(&d->lock);
            native_event(d->n, port);
            pthread_mutex_lock(&d->lock);
        }
        while ((!d->bell || d->paused) && !d->stop)
            pthread_cond_wait(&d->wake, &d->lock);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

static int disk_start(struct native_disk *d)
{
    sigset_t all, old;

    if (d->started)
        return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals from outside are for the main thread */
    d->stop = false;
    int r = pthread_create(&d->thread, NULL, disk_thread, d);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    d->started = !r;
    return r;
}

static void disk_stop(struct native_disk *d)
{
    if (d->started) {
        pthread_mutex_lock(&d->lock);
        d->stop = true;
        pthread_cond_broadcast(&d->wake);
        pthread_mutex_unlock(&d->lock);
        pthread_join(d->thread, NULL);
        d->started = false;
    }
    d->ring = NULL;
}

/* -- Calls --------------------------------------------------------------------------------------------------- */

s64 native_BLOCK_INFO(struct native *n, unsigned vcpu, const u64 *a)
{
    struct native_disk *d = disk_find(n, a[0]);

    (void)vcpu;
    if (!d)
        return -VT_ENOENT;
    struct vt_block_info info = {
        .sectors = d->disk->sectors, .max_len = MAX_LEN, .flags = d->disk->readonly ? VT_BLOCK_READONLY : 0
    };
    return native_copy_out(n, a[1], &info, sizeof(info));
}

s64 native_BLOCK_RING(struct native *n, unsigned vcpu, const u64 *a)
{
    struct native_disk *d = disk_find(n, a[0]);
    struct vt_block_ring *ring = NULL, copy;
    s64 r = 0;

    (void)vcpu;
    if (!d)
        return -VT_ENOENT;
    if (a[1] & ~PAGE_MASK || (a[1] && a[2] >= VT_PORTS))
        return -VT_EINVAL;
    if (a[1]) {
        if (ram_read(n->c.ram, a[1], &copy, sizeof(copy)))
            return -VT_EFAULT;
        if (!native_ring_size(copy.size, VT_BLOCK_RING_MAX))
            return -VT_EINVAL;
        ring = ram_dma_ptr(n->c.ram, a[1], VT_BLOCK_RING_BYTES(copy.size));
        if (!ring)
            return -VT_EFAULT;
    }
    pthread_mutex_lock(&d->lock);
    if (d->busy)
        r = -VT_EBUSY;
    else if (ring && d->ring)
        r = -VT_EEXIST;
    else if (ring && disk_start(d))
        r = -VT_ENOMEM;
    if (!r) {
        d->ring = ring;
        if (ring) { /* empty, from where the guest has its numbers */
            d->size = copy.size;
            d->port = (unsigned)a[2];
            d->req_tail = copy.req_head;
            d->done_head = copy.done_tail;
            __atomic_store_n(&ring->req_tail, d->req_tail, __ATOMIC_RELEASE);
            __atomic_store_n(&ring->done_head, d->done_head, __ATOMIC_RELEASE);
        }
    }
    pthread_mutex_unlock(&d->lock);
    if (!r && ring)
        ram_written(n->c.ram, a[1], VT_BLOCK_RING_BYTES(copy.size));
    return r;
}

s64 native_BLOCK_BELL(struct native *n, unsigned vcpu, const u64 *a)
{
    struct native_disk *d = disk_find(n, a[0]);

    (void)vcpu;
    if (!d)
        return -VT_ENOENT;
    pthread_mutex_lock(&d->lock);
    d->bell = true;
    pthread_cond_broadcast(&d->wake);
    pthread_mutex_unlock(&d->lock);
    return 0;
}

struct submit {
    struct native_disk *d;
    u64 left;
};

static s64 submit_one(struct native *n, unsigned vcpu, void *item, void *opaque)
{
    const struct vt_block_req *r = item;
    struct submit *s = opaque;

    (void)n, (void)vcpu;
    if (r->op != VT_BLOCK_FLUSH) {
        if (r->len > s->left)
            return -VT_E2BIG;
        s->left -= r->len;
    }
    return do_request(s->d, r);
}

s64 native_BLOCK_SUBMIT(struct native *n, unsigned vcpu, const u64 *a)
{
    struct submit s = { .d = disk_find(n, a[0]), .left = SUBMIT_MAX };

    if (!s.d)
        return -VT_ENOENT;
    return native_batch(n, vcpu, a[1], a[2], sizeof(struct vt_block_req), offsetof(struct vt_block_req, result), submit_one,
                        &s, NULL);
}

/* -- Snapshots: a ring is in guest memory; where, and how far we are ------------------------------------ */

struct saved_disk {
    u64 ring; /* guest-physical; 0: none */
    u32 size, req_tail, done_head, port;
};
static const struct state_field disk_fields[] = {
    STATE(struct saved_disk, ring), STATE(struct saved_disk, size), STATE(struct saved_disk, req_tail),
    STATE(struct saved_disk, done_head), STATE(struct saved_disk, port), STATE_END
};

void native_block_save(struct native *n, struct state_set *set)
{
    for (unsigned i = 0; i < n->c.nr_disks; i++) {
        const struct native_disk *d = &n->disk[i];
        struct saved_disk s = { native_pa(n, d->ring), d->size, d->req_tail, d->done_head, d->port };
        char name[32];
        snprintf(name, sizeof(name), "native.disk.%u", i);
        state_set_save(set, name, disk_fields, &s);
    }
}

int native_block_load(struct native *n, struct state_set *set, char *err, size_t err_len)
{
    for (unsigned i = 0; i < n->c.nr_disks; i++) {
        struct native_disk *d = &n->disk[i];
        struct saved_disk s;
        char name[32];
        snprintf(name, sizeof(name), "native.disk.%u", i);
        int r = state_set_load(set, name, disk_fields, &s, err, err_len);
        if (r)
            return r;
        if (!s.ring)
            continue;
        bool good = native_ring_size(s.size, VT_BLOCK_RING_MAX) && s.port < VT_PORTS &&
                    !(s.ring & ~PAGE_MASK) && ram_dma_ptr(n->c.ram, s.ring, VT_BLOCK_RING_BYTES(s.size));
        if (!good) {
            snprintf(err, err_len, "%s: no such ring is possible", name);
            return -EINVAL;
        }
        pthread_mutex_lock(&d->lock);
        d->ring = ram_dma_ptr(n->c.ram, s.ring, VT_BLOCK_RING_BYTES(s.size));
        d->size = s.size;
        d->req_tail = s.req_tail;
        d->done_head = s.done_head;
        d->port = s.port;
        d->paused = true; /* as everything, until native_resume() */
        r = disk_start(d);
        pthread_mutex_unlock(&d->lock);
        if (r) {
            snprintf(err, err_len, "%s: %s", name, strerror(r));
            return -ENOMEM;
        }
    }
    return 0;
}

/* -- Life --------------------------------------------------------------------------------------------------------- */

int native_block_init(struct native *n)
{
    n->disk = calloc(MAX(n->c.nr_disks, 1u), sizeof(*n->disk));
    if (!n->disk)
        return -ENOMEM;
    for (unsigned i = 0; i < n->c.nr_disks; i++) {
        struct native_disk *d = &n->disk[i];
        d->n = n;
        d->disk = n->c.disk[i];
        pthread_mutex_init(&d->lock, NULL);
        pthread_cond_init(&d->wake, NULL);
    }
    return 0;
}

void native_block_pause(struct native *n, bool on)
{
    for (unsigned i = 0; i < n->c.nr_disks; i++) {
        struct native_disk *d = &n->disk[i];
        pthread_mutex_lock(&d->lock);
        d->paused = on;
        d->bell = true; /* there may be something by then */
        pthread_cond_broadcast(&d->wake);
        while (on && d->busy)
            pthread_cond_wait(&d->wake, &d->lock);
        pthread_mutex_unlock(&d->lock);
    }
}

void native_block_fini(struct native *n)
{
    for (unsigned i = 0; n->disk && i < n->c.nr_disks; i++) {
        disk_stop(&n->disk[i]);
        pthread_cond_destroy(&n->disk[i].wake);
        pthread_mutex_destroy(&n->disk[i].lock);
    }
    free(n->disk);
}
