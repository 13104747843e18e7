/*
 * powercut.c - for LD_PRELOAD: writes down, in order, what a process does to its regular files and block devices and what it
 * says on standard output, so that test_powercut.py can tell what would be left of an image had the power failed at
 * any point. POWERCUT_LOG names the file. Each record is a struct entry and, for some, bytes. Records are appended by single
 * writes, so their order in the file is an order in which things happened: BEGIN is written before the call starts, END
 * after it came back.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, ZERO, SYNC, TRUNCATE, END, SAID };

struct entry {
    uint32_t kind, bytes; /* bytes follow */
    uint64_t id;          /* END: of what ends */
    uint64_t inode, offset;
    int64_t len;          /* END: the result */
};

static int log_fd = -1;
static atomic_ulong ids = 1;

__attribute__((constructor)) static void powercut_start(void)
{
    const char *path = getenv("POWERCUT_LOG");
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (fd >= 0) { /* out of the way of programs that count descriptors */
        log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 500);
        close(fd);
    }
}

/* Never through a function that is replaced below. */
static void put(struct entry e, const struct iovec *iov, int nr, size_t len)
{
    struct iovec all[1100];
    int n = 1;

    if (log_fd < 0)
        return;
    e.bytes = (uint32_t)len;
    all[0] = (struct iovec){ &e, sizeof(e) };
    for (int i = 0; i < nr && len; i++) {
        size_t part = iov[i].iov_len < len ? iov[i].iov_len : len;
        all[n++] = (struct iovec){ iov[i].iov_base, part };
        len -= part;
    }
    long done = syscall(SYS_writev, log_fd, all, n);
    if (done != (long)(sizeof(e) + e.bytes))
        abort();
}

/* The file's number; 0: nothing that lasts. */
static uint64_t inode_of(int fd)
{
    struct stat st;
    if (syscall(SYS_fstat, fd, &st) || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
        return 0;
    return st.st_ino;
}

static uint64_t begin(uint32_t kind, int fd, const struct iovec *iov, int nr, uint64_t offset, int64_t len)
{
    uint64_t inode = inode_of(fd), id = inode ? atomic_fetch_add(&ids, 1) : 0;
    if (id)
        put((struct entry){ .kind = kind, .id = id, .inode = inode, .offset = offset, .len = len }, iov, nr,
            iov ? (size_t)len : 0);
    return id;
}

static long end(uint64_t id, long result)
{
    int saved = errno;
    if (id)
        put((struct entry){ .kind = END, .id = id, .len = result }, NULL, 0, 0);
    errno = saved;
    return result;
}

static size_t total(const struct iovec *iov, int nr)
{
    size_t sum = 0;
    for (int i = 0; i < nr; i++)
        sum += iov[i].iov_len;
    return sum;
}

/* -- io_uring ------------------------------------------------------------------------------------------ */

#define RUNNING_MAX 256
static struct { uint64_t user_data, id; } running[RUNNING_MAX];
static struct io_uring *the_ring; /* one a process is enough */
static unsigned looked_at;        /* of its completion queue */
static pthread_mutex_t ring_lock = PTHREAD_MUTEX_INITIALIZER;

/*
 * Results that have arrived. Its owner may have taken some before we are called: they are in the ring's memory until it
 * has gone all the way round. So this comes before each flush too, which covers what was known to have ended.
 */
static void ring_ends(void)
{
    pthread_mutex_lock(&ring_lock);
    unsigned tail = the_ring ? __atomic_load_n(the_ring->cq.ktail, __ATOMIC_ACQUIRE) : looked_at;
    for (; looked_at != tail; looked_at++) {
        const struct io_uring_cqe *cqe = &the_ring->cq.cqes[looked_at & *the_ring->cq.kring_mask];
        for (unsigned n = 0; n < RUNNING_MAX; n++) {
            if (running[n].id && running[n].user_data == cqe->user_data) {
                end(running[n].id, cqe->res);
                running[n].id = 0;
            }
        }
    }
    pthread_mutex_unlock(&ring_lock);
}

/* -- System calls by their libc names ------------------------------------------------------------------ */

ssize_t write(int fd, const void *buf, size_t len)
{
    struct iovec iov = { (void *)(uintptr_t)buf, len };
    long r = syscall(SYS_write, fd, buf, len);
    int saved = errno;
    if (fd == STDOUT_FILENO && r > 0)
        put((struct entry){ .kind = SAID }, &iov, 1, (size_t)r);
    errno = saved;
    return r;
}

ssize_t pwritev2(int fd, const struct iovec *iov, int nr, off_t at, int flags)
{
    uint64_t id = begin(WRITE, fd, iov, nr, (uint64_t)at, (int64_t)total(iov, nr));
    return end(id, syscall(SYS_pwritev2, fd, iov, nr, at, 0, flags));
}

ssize_t pwritev(int fd, const struct iovec *iov, int nr, off_t at)
{
    return pwritev2(fd, iov, nr, at, 0);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t at)
{
    struct iovec iov = { (void *)(uintptr_t)buf, len };
    return pwritev2(fd, &iov, 1, at, 0);
}

int fdatasync(int fd)
{
    ring_ends();
    uint64_t id = begin(SYNC, fd, NULL, 0, 0, 0);
    return (int)end(id, syscall(SYS_fdatasync, fd));
}

int fsync(int fd)
{
    ring_ends();
    uint64_t id = begin(SYNC, fd, NULL, 0, 0, 0);
    return (int)end(id, syscall(SYS_fsync, fd));
}

int fallocate(int fd, int mode, off_t at, off_t len)
{
    int zeros = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    uint64_t id = zeros ? begin(ZERO, fd, NULL, 0, (uint64_t)at, len) : 0;
    return (int)end(id, syscall(SYS_fallocate, fd, mode, at, len));
}

int ftruncate(int fd, off_t len)
{
    uint64_t id = begin(TRUNCATE, fd, NULL, 0, (uint64_t)len, 0);
    return (int)end(id, syscall(SYS_ftruncate, fd, len));
}

ssize_t pwrite64(int, const void *, size_t, off_t) __attribute__((alias("pwrite")));
ssize_t pwritev64(int, const struct iovec *, int, off_t) __attribute__((alias("pwritev")));
ssize_t pwritev64v2(int, const struct iovec *, int, off_t, int) __attribute__((alias("pwritev2")));
int fallocate64(int, int, off_t, off_t) __attribute__((alias("fallocate")));
int ftruncate64(int, off_t) __attribute__((alias("ftruncate")));

/* Requests that are about to be submitted. */
static void ring_begins(struct io_uring *ring)
{
    if (the_ring && the_ring != ring)
        abort();
    pthread_mutex_lock(&ring_lock);
    the_ring = ring;
    for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++) {
        const struct io_uring_sqe *sqe = &ring->sq.sqes[i & *ring->sq.kring_mask];
        if (sqe->opcode == IORING_OP_WRITEV) {
            const struct iovec *iov = (const struct iovec *)(uintptr_t)sqe->addr;
            unsigned at = 0;
            while (at < RUNNING_MAX && running[at].id)
                at++;
            if (at == RUNNING_MAX)
                abort();
            running[at].user_data = sqe->user_data;
            running[at].id = begin(WRITE, sqe->fd, iov, (int)sqe->len, sqe->off, (int64_t)total(iov, (int)sqe->len));
        } else if (sqe->opcode != IORING_OP_READV && sqe->opcode != IORING_OP_READ) {
            abort(); /* a flush by the ring would have to be understood here */
        }
    }
    pthread_mutex_unlock(&ring_lock);
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned wait)
{
    ring_ends();
    ring_begins(ring);
    /* What liburing does: the kernel's tail, then enter. */
    unsigned tail = ring->sq.sqe_tail, todo = tail - ring->sq.sqe_head;
    for (unsigned i = 0, k = *ring->sq.ktail; i < todo; i++, k++)
        ring->sq.array[k & *ring->sq.kring_mask] = (ring->sq.sqe_head + i) & *ring->sq.kring_mask;
    __atomic_store_n(ring->sq.ktail, *ring->sq.ktail + todo, __ATOMIC_RELEASE);
    ring->sq.sqe_head = tail;
    long r = syscall(SYS_io_uring_enter, ring->ring_fd, todo, wait, IORING_ENTER_GETEVENTS, NULL, 0);
    int saved = errno;
    ring_ends();
    return r < 0 ? -saved : (int)r;
}

void io_uring_queue_exit(struct io_uring *ring)
{
    ring_ends();
    pthread_mutex_lock(&ring_lock);
    the_ring = NULL;
    looked_at = 0;
    pthread_mutex_unlock(&ring_lock);
    void (*real)(struct io_uring *);
    *(void **)&real = dlsym(RTLD_NEXT, "io_uring_queue_exit");
    real(ring);
}
