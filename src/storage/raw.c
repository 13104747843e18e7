/* raw.c - a disk whose sectors are the bytes of a file or block device, in order. */
#include "storage/disk.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct raw_disk {
    struct disk disk;
    int fd;
    u64 bytes;
    bool block; /* a block device */
};

static struct raw_disk *raw(struct disk *disk)
{
    return (struct raw_disk *)disk;
}

static int raw_read(struct disk *disk, u64 sector, void *buf, u32 count)
{
    size_t left = (size_t)count * DISK_SECTOR;
    off_t at = (off_t)(sector * DISK_SECTOR);
    u8 *to = buf;

    while (left) {
        ssize_t n = pread(raw(disk)->fd, to, left, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (!n) { /* behind the end: the last sector's padding, or a file that was cut */
            memset(to, 0, left);
            return 0;
        }
        to += n;
        at += n;
        left -= (size_t)n;
    }
    return 0;
}

static int raw_write(struct disk *disk, u64 sector, const void *buf, u32 count)
{
    size_t left = (size_t)count * DISK_SECTOR;
    off_t at = (off_t)(sector * DISK_SECTOR);
    const u8 *from = buf;

    while (left) {
        ssize_t n = pwrite(raw(disk)->fd, from, left, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? -errno : -EIO;
        from += n;
        at += n;
        left -= (size_t)n;
    }
    return 0;
}

static int raw_flush(struct disk *disk)
{
    return disk_sync_fd(disk, raw(disk)->fd);
}

static int raw_discard(struct disk *disk, u64 sector, u64 count)
{
    int r = fallocate(raw(disk)->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      (off_t)(sector * DISK_SECTOR), (off_t)(count * DISK_SECTOR));

    /* A hint: a file system that cannot punch holes keeps the bytes, and so does a block device for parts of its blocks. */
    return !count || !r || errno == EOPNOTSUPP || errno == ENOSYS || raw(disk)->block ? 0 : -errno;
}

static int raw_zero(struct disk *disk, u64 sector, u64 count, bool unmap)
{
    off_t at = (off_t)(sector * DISK_SECTOR), len = (off_t)(count * DISK_SECTOR);
    if (unmap && !fallocate(raw(disk)->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len))
        return 0;
    if (!fallocate(raw(disk)->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, at, len))
        return 0;
    return disk_write_zeros(disk, sector, count);
}

static bool raw_extent(struct disk *disk, u64 sector, u32 count, bool write, struct disk_extent *out)
{
    (void)write;
    if ((sector + count) * DISK_SECTOR > raw(disk)->bytes)
        return false; /* the last sector is padded */
    *out = (struct disk_extent){ raw(disk)->fd, sector * DISK_SECTOR };
    return true;
}

static void raw_close(struct disk *disk)
{
    close(raw(disk)->fd);
    free(disk);
}

static const struct disk_ops raw_ops = {
    .format = "raw", .read = raw_read, .write = raw_write, .flush = raw_flush,
    .discard = raw_discard, .zero = raw_zero, .extent = raw_extent, .close = raw_close,
};

int raw_disk_open(int fd, bool readonly, u64 bytes, struct disk **out)
{
    struct raw_disk *d = calloc(1, sizeof(*d));

    if (!d) {
        close(fd);
        return -ENOMEM;
    }
    struct stat st;
    d->fd = fd;
    d->bytes = bytes;
    d->block = !fstat(fd, &st) && S_ISBLK(st.st_mode);
    d->disk = (struct disk){
        .ops = &raw_ops, .sectors = bytes / DISK_SECTOR + !!(bytes % DISK_SECTOR),
        .readonly = readonly,
    };
    *out = &d->disk;
    return 0;
}
