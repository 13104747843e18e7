#include "mem/backing.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

int backing_init(struct backing *b, u64 size)
{
    int err;

    size = (size + PAGE_SIZE - 1) & PAGE_MASK;
    *b = (struct backing){ .fd = -1, .host = MAP_FAILED, .size = size };
    b->fd = memfd_create("vitro-ram", MFD_CLOEXEC);
    if (b->fd < 0)
        return -errno;
    if (ftruncate(b->fd, (off_t)size)) {
        err = -errno;
        goto fail;
    }
    /* At a multiple of 2 MiB, as huge pages want it. */
    const u64 huge = 2ull << 20;
    u8 *room = mmap(NULL, size + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        err = -errno;
        goto fail;
    }
    u8 *at = room + (-(u64)room & (huge - 1));
    if (at > room)
        munmap(room, (size_t)(at - room));
    munmap(at + size, (size_t)(room + huge - at));
    b->host = mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, b->fd, 0);
    if (b->host == MAP_FAILED) {
        err = -errno;
        munmap(at, size);
        goto fail;
    }
    /* A core dump of the monitor should not hold the guest. */
    madvise(b->host, size, MADV_DONTDUMP);
    return 0;
fail:
    close(b->fd);
    b->fd = -1;
    return err;
}

int backing_map_file(struct backing *b, u64 size, int fd, u64 offset)
{
    *b = (struct backing){ .fd = -1, .size = size };
    b->host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, (off_t)offset);
    if (b->host == MAP_FAILED)
        return -errno;
    madvise(b->host, size, MADV_DONTDUMP);
    return 0;
}

int backing_zero(struct backing *b)
{
    if (fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                  (off_t)b->size))
        return -errno;
    return 0;
}

void backing_fini(struct backing *b)
{
    if (b->host && b->host != MAP_FAILED)
        munmap(b->host, b->size);
    b->host = NULL;
    if (b->fd >= 0)
        close(b->fd);
    b->fd = -1;
}
