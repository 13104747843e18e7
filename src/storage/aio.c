/*
 * aio.c - see aio.h. Threads: WORKERS that call disk.h, and with io_uring one that owns the ring: submitters only append
 * to its list and wake it by an eventfd. (Submitting from a vCPU's thread would have the kernel interrupt that thread
 * to complete the request.)
 */
#include "storage/aio.h"
#include "base/sandbox.h"
#include <errno.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/vfs.h>
#include <unistd.h>
#if HAVE_URING
#include <liburing.h>
#endif

#define WORKERS 4
#define RING_DEPTH 128

struct list {
    struct disk_req *head, **tail;
};

struct disk_aio {
    struct disk *disk;
    pthread_mutex_t lock; /* what follows */
    pthread_cond_t work, idle;
    struct list jobs;     /* for the workers */
    unsigned in_flight;
    bool stop;
    pthread_t worker[WORKERS];
    unsigned nr_workers;
    bool has_ring;
    int now;              /* RWF_* for what must not wait for a device */
#if HAVE_URING
    struct io_uring ring; /* its thread's only */
    pthread_t ring_thread;
    int wake_fd;
    struct list submits;  /* under lock */
#endif
};

static void append(struct list *l, struct disk_req *req)
{
    req->next = NULL;
    *l->tail = req;
    l->tail = &req->next;
}

static struct disk_req *take(struct list *l)
{
    struct disk_req *req = l->head;
    if (req) {
        l->head = req->next;
        if (!l->head)
            l->tail = &l->head;
    }
    return req;
}

static void finish(struct disk_aio *aio, struct disk_req *req, int result)
{
    req->done(req, result);
    pthread_mutex_lock(&aio->lock);
    if (!--aio->in_flight)
        pthread_cond_broadcast(&aio->idle);
    pthread_mutex_unlock(&aio->lock);
}

/* -- Workers ---------------------------------------------------------------------------------- */

static int perform(struct disk_aio *aio, const struct disk_req *req)
{
    int r;
    switch (req->op) {
    case DISK_READ: return disk_rwv(aio->disk, false, req->sector, (u32)req->count, req->iov, req->nr_iov);
    case DISK_WRITE:
        r = disk_rwv(aio->disk, true, req->sector, (u32)req->count, req->iov, req->nr_iov);
        return r || !req->sync ? r : disk_flush(aio->disk);
    case DISK_FLUSH: return disk_flush(aio->disk);
    case DISK_DISCARD: return disk_discard(aio->disk, req->sector, req->count);
    case DISK_ZERO: return disk_zero(aio->disk, req->sector, req->count, req->unmap);
    }
    return -EINVAL;
}

static void *worker_main(void *arg)
{
    struct disk_aio *aio = arg;
    sandbox_enter(SANDBOX_DISK);
    pthread_mutex_lock(&aio->lock);
    while (!aio->stop) {
        struct disk_req *req = take(&aio->jobs);
        if (!req) {
            pthread_cond_wait(&aio->work, &aio->lock);
            continue;
        }
        pthread_mutex_unlock(&aio->lock);
        finish(aio, req, perform(aio, req));
        pthread_mutex_lock(&aio->lock);
    }
    pthread_mutex_unlock(&aio->lock);
    return NULL;
}

/* With the lock held. */
static void to_workers(struct disk_aio *aio, struct disk_req *req)
{
    append(&aio->jobs, req);
    pthread_cond_signal(&aio->work);
}

/* -- io_uring --------------------------------------------------------------------------------- */

#if HAVE_URING
static void ring_wake(struct disk_aio *aio)
{
    u64 one = 1;
    (void)!write(aio->wake_fd, &one, sizeof(one));
}

/* A read of the eventfd stands in the ring all the time: its completion says that there is something to submit. */
static bool arm_wake(struct disk_aio *aio, u64 *count)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
    if (!sqe)
        return false;
    io_uring_prep_read(sqe, aio->wake_fd, count, sizeof(*count), 0);
    io_uring_sqe_set_data(sqe, NULL);
    return true;
}

static void ring_submit(struct disk_aio *aio, unsigned *running)
{
    pthread_mutex_lock(&aio->lock);
    while (aio->submits.head && *running < RING_DEPTH - 2) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
        if (!sqe)
            break;
        struct disk_req *req = take(&aio->submits);
        if (req->op == DISK_READ)
            io_uring_prep_readv(sqe, req->extent.fd, req->iov, req->nr_iov, req->extent.offset);
        else
            io_uring_prep_writev(sqe, req->extent.fd, req->iov, req->nr_iov, req->extent.offset);
        io_uring_sqe_set_data(sqe, req);
        ++*running;
    }
    pthread_mutex_unlock(&aio->lock);
}

static void *ring_main(void *arg)
{
    struct disk_aio *aio = arg;
    unsigned running = 0;
    bool armed = false;
    u64 count;

    sandbox_enter(SANDBOX_DISK);
    for (;;) {
        ring_submit(aio, &running);
        pthread_mutex_lock(&aio->lock);
        bool stop = aio->stop && !running;
        pthread_mutex_unlock(&aio->lock);
        if (stop && !armed)
            return NULL;
        if (!armed) /* if one stands, who stops us ends it: nothing may be left that writes to `count` */
            armed = arm_wake(aio, &count);
        io_uring_submit_and_wait(&aio->ring, 1);
        struct io_uring_cqe *cqe;
        while (!io_uring_peek_cqe(&aio->ring, &cqe)) {
            struct disk_req *req = io_uring_cqe_get_data(cqe);
            int res = cqe->res;
            io_uring_cqe_seen(&aio->ring, cqe);
            if (!req) {
                armed = false;
                continue;
            }
            running--;
            if (res >= 0 && (u64)res == req->count * DISK_SECTOR) {
                finish(aio, req, 0);
            } else { /* short, interrupted or failed: a worker says what is wrong */
                pthread_mutex_lock(&aio->lock);
                to_workers(aio, req);
                pthread_mutex_unlock(&aio->lock);
            }
        }
    }
}

static void ring_start(struct disk_aio *aio)
{
    aio->submits.tail = &aio->submits.head;
    aio->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (aio->wake_fd < 0)
        return;
    if (!io_uring_queue_init(RING_DEPTH, &aio->ring, 0)) {
        if (!pthread_create(&aio->ring_thread, NULL, ring_main, aio)) {
            aio->has_ring = true;
            pthread_setname_np(aio->ring_thread, "vitro-disk");
            return;
        }
        io_uring_queue_exit(&aio->ring);
    }
    close(aio->wake_fd);
}

static void ring_stop(struct disk_aio *aio)
{
    if (!aio->has_ring)
        return;
    ring_wake(aio);
    pthread_join(aio->ring_thread, NULL);
    io_uring_queue_exit(&aio->ring);
    close(aio->wake_fd);
}
#endif

/* -- Public ----------------------------------------------------------------------------------- */

/* A file system in memory knows no RWF_NOWAIT, and needs none. */
static int flags_for_now(struct disk *disk)
{
    struct disk_extent e;
    struct statfs fs;

    return disk_extent(disk, 0, 1, false, &e) && !fstatfs(e.fd, &fs) && fs.f_type == TMPFS_MAGIC ? 0 : RWF_NOWAIT;
}

int disk_aio_create(struct disk *disk, bool ring, struct disk_aio **out)
{
    struct disk_aio *aio = calloc(1, sizeof(*aio));
    sigset_t all, old;

    if (!aio)
        return -ENOMEM;
    aio->disk = disk;
    aio->now = flags_for_now(disk);
    aio->jobs.tail = &aio->jobs.head;
    pthread_mutex_init(&aio->lock, NULL);
    pthread_cond_init(&aio->work, NULL);
    pthread_cond_init(&aio->idle, NULL);
    sigfillset(&all); /* signals from outside are the main thread's */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = 0;
    while (aio->nr_workers < WORKERS && !err) {
        err = pthread_create(&aio->worker[aio->nr_workers], NULL, worker_main, aio);
        if (!err)
            pthread_setname_np(aio->worker[aio->nr_workers++], "vitro-disk");
    }
    (void)ring;
#if HAVE_URING
    if (aio->nr_workers && disk->ops->extent && ring)
        ring_start(aio);
#endif
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!aio->nr_workers) {
        disk_aio_destroy(aio);
        return -err;
    }
    *out = aio;
    return 0;
}

void disk_aio_drain(struct disk_aio *aio)
{
    pthread_mutex_lock(&aio->lock);
    while (aio->in_flight)
        pthread_cond_wait(&aio->idle, &aio->lock);
    pthread_mutex_unlock(&aio->lock);
}

void disk_aio_destroy(struct disk_aio *aio)
{
    if (!aio)
        return;
    disk_aio_drain(aio);
    pthread_mutex_lock(&aio->lock);
    aio->stop = true;
    pthread_cond_broadcast(&aio->work);
    pthread_mutex_unlock(&aio->lock);
#if HAVE_URING
    ring_stop(aio);
#endif
    while (aio->nr_workers)
        pthread_join(aio->worker[--aio->nr_workers], NULL);
    pthread_cond_destroy(&aio->idle);
    pthread_cond_destroy(&aio->work);
    pthread_mutex_destroy(&aio->lock);
    free(aio);
}

bool disk_aio_try(struct disk_aio *aio, struct disk_req *req, int *result)
{
    struct disk *disk = aio->disk;
    bool write = req->op == DISK_WRITE;
    u64 len = req->count * DISK_SECTOR;

    if (req->op > DISK_WRITE || req->sync || !disk_extent(disk, req->sector, (u32)req->count, write, &req->extent))
        return false;
    ssize_t n = write ? pwritev2(req->extent.fd, req->iov, (int)req->nr_iov, (off_t)req->extent.offset, aio->now)
                      : preadv2(req->extent.fd, req->iov, (int)req->nr_iov, (off_t)req->extent.offset, aio->now);
    if (n < 0 || (u64)n != len)
        return false; /* not in memory, or only in part: from the start again, where waiting is allowed */
    *result = 0;
    return true;
}

void disk_aio_submit(struct disk_aio *aio, struct disk_req *req)
{
    bool ring = false;
#if HAVE_URING
    ring = aio->has_ring && req->op <= DISK_WRITE && !req->sync &&
           disk_extent(aio->disk, req->sector, (u32)req->count, req->op == DISK_WRITE, &req->extent);
#endif
    pthread_mutex_lock(&aio->lock);
    aio->in_flight++;
    if (!ring)
        to_workers(aio, req);
#if HAVE_URING
    bool wake = ring && !aio->submits.head;
    if (ring)
        append(&aio->submits, req);
#endif
    pthread_mutex_unlock(&aio->lock);
#if HAVE_URING
    if (wake)
        ring_wake(aio);
#endif
}

const char *disk_aio_kind(const struct disk_aio *aio)
{
    return aio->has_ring ? "io_uring" : "threads";
}
