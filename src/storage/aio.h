/*
 * aio.h - disk requests that do not hold up who makes them. What the host's page cache can answer is done at once,
 * without waiting (RWF_NOWAIT), as is all of a file in tmpfs; the rest goes to one thread with an io_uring, and what
 * io_uring does not do, or a host without one, to a few threads that call disk.h.
 */
#pragma once
#include "storage/disk.h"
#include <sys/uio.h>

enum disk_op { DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_DISCARD, DISK_ZERO };

struct disk_req {
    enum disk_op op;
    bool unmap;       /* DISK_ZERO */
    bool sync;        /* DISK_WRITE: and flush, before it is done */
    u64 sector, count;
    struct iovec *iov; /* READ, WRITE: sums up to count sectors; must live until done */
    unsigned nr_iov;
    /* On a thread of the disk's; result 0 or -errno. The request is the caller's again. */
    void (*done)(struct disk_req *req, int result);
    /* private */
    struct disk_req *next;
    struct disk_extent extent;
};

struct disk_aio;
/* disk_aio_create - serve a disk, which must live longer; ring: with an io_uring if the host lets us. 0 or -errno. */
int disk_aio_create(struct disk *disk, bool ring, struct disk_aio **out);
/* disk_aio_destroy - waits for all requests. NULL is allowed. */
void disk_aio_destroy(struct disk_aio *aio);
/* disk_aio_try - do the request now if that takes no waiting: true, with *result. Any thread; done() is not called. */
bool disk_aio_try(struct disk_aio *aio, struct disk_req *req, int *result);
/* disk_aio_submit - done() will be called. Any thread, does not block. Flush covers writes whose done() was called. */
void disk_aio_submit(struct disk_aio *aio, struct disk_req *req);
/* disk_aio_drain - returns when no request is under way. Nobody may submit meanwhile. */
void disk_aio_drain(struct disk_aio *aio);
/* disk_aio_kind - "io_uring" or "threads", for messages and tests. */
const char *disk_aio_kind(const struct disk_aio *aio);
