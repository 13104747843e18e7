/* disk.c - opens a file as a disk: which format it has, who may use it. See disk.h. */
#include "storage/disk.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int fail(char *err, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(err, DISK_ERR_LEN, fmt, ap);
    va_end(ap);
    return code;
}

/* The size of a file or block device in *bytes. */
static int size_of(int fd, const char *path, u64 *bytes, char *err)
{
    struct stat st;

    if (fstat(fd, &st))
        return fail(err, -errno, "cannot look at %s: %s", path, strerror(errno));
    if (S_ISREG(st.st_mode)) {
        *bytes = (u64)st.st_size;
        return 0;
    }
    if (!S_ISBLK(st.st_mode))
        return fail(err, -EINVAL, "%s is %s, not a disk image", path,
                    S_ISDIR(st.st_mode) ? "a directory" : "a special file");
    if (ioctl(fd, BLKGETSIZE64, bytes))
        return fail(err, -errno, "cannot ask %s for its size: %s", path, strerror(errno));
    return 0;
}

int disk_open(const char *path, const struct disk_options *options, struct disk **out, char *err)
{
    u64 bytes;

    if (options->format && strcmp(options->format, "raw") && strcmp(options->format, "qcow2"))
        return fail(err, -EINVAL, "%s: no disk format '%s'; there are: raw, qcow2", path, options->format);
    bool readonly = options->readonly || options->snapshot;
    struct stat st;
    bool block = !stat(path, &st) && S_ISBLK(st.st_mode);
    /* A block device that the host uses is not opened for writing: O_EXCL, open(2). */
    int fd = open(path, (readonly ? O_RDONLY : O_RDWR | (block ? O_EXCL : 0)) | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == EBUSY)
        return fail(err, -EBUSY, "%s is in use by the host; unmount it there, or give it with readonly=on or snapshot=on", path);
    if (fd < 0)
        return fail(err, -errno, "cannot open %s: %s%s", path, strerror(errno),
                    errno == EACCES || errno == EROFS ? "; readonly=on needs no right to write" : "");
    int r = size_of(fd, path, &bytes, err);
    if (!r && flock(fd, (readonly ? LOCK_SH : LOCK_EX) | LOCK_NB))
        r = fail(err, -EBUSY, "%s is in use by another virtual machine; stop that, or use a copy",
                 path);
    if (r) {
        close(fd);
        return r;
    }
    struct disk_options inner = *options;
    inner.readonly = readonly;
    if (options->format ? !strcmp(options->format, "qcow2") : qcow2_probe(fd)) {
        r = qcow2_disk_open(fd, path, &inner, NULL, out, err);
    } else {
        r = raw_disk_open(fd, readonly, bytes, out);
        if (r)
            fail(err, r, "cannot use %s: %s", path, strerror(-r));
        else
            (*out)->guessed = !options->format;
    }
    if (!r && options->snapshot)
        r = qcow2_overlay(*out, out, err);
    return r;
}

void disk_close(struct disk *disk)
{
    if (disk)
        disk->ops->close(disk);
}

/* A guest must not turn a file that was only guessed to be raw into a qcow2 image: its backing file, any file of the
 * host's, would be read the next time. */
static bool makes_qcow2(const struct disk *disk, u64 sector, const void *buf, size_t len)
{
    return disk->guessed && !sector && len >= 4 && !memcmp(buf, "QFI\xfb", 4);
}

int disk_read(struct disk *disk, u64 sector, void *buf, u32 count)
{
    return disk_has(disk, sector, count) ? disk->ops->read(disk, sector, buf, count) : -EINVAL;
}

int disk_write(struct disk *disk, u64 sector, const void *buf, u32 count)
{
    if (!disk_has(disk, sector, count))
        return -EINVAL;
    if (makes_qcow2(disk, sector, buf, count ? 4 : 0))
        return -EPERM;
    return disk->readonly ? -EROFS : disk->ops->write(disk, sector, buf, count);
}

bool disk_extent(struct disk *disk, u64 sector, u32 count, bool write, struct disk_extent *out)
{
    if (!disk_has(disk, sector, count) || !disk->ops->extent || (write && (disk->readonly || (disk->guessed && !sector))))
        return false;
    return disk->ops->extent(disk, sector, count, write, out);
}

int disk_sync_fd(struct disk *disk, int fd)
{
    if (__atomic_load_n(&disk->lost, __ATOMIC_RELAXED))
        return -EIO;
    if (!fdatasync(fd))
        return 0;
    int r = -errno;
    __atomic_store_n(&disk->lost, true, __ATOMIC_RELAXED);
    return r;
}

int disk_flush(struct disk *disk)
{
    return disk->readonly ? 0 : disk->ops->flush(disk);
}

int disk_discard(struct disk *disk, u64 sector, u64 count)
{
    if (!disk_has(disk, sector, count))
        return -EINVAL;
    return disk->readonly ? -EROFS : disk->ops->discard(disk, sector, count);
}

int disk_zero(struct disk *disk, u64 sector, u64 count, bool unmap)
{
    if (!disk_has(disk, sector, count))
        return -EINVAL;
    return disk->readonly ? -EROFS : count ? disk->ops->zero(disk, sector, count, unmap) : 0;
}

int disk_write_zeros(struct disk *disk, u64 sector, u64 count)
{
    static const u8 zeros[64 * 1024];
    int r = 0;
    while (count && !r) {
        u32 n = (u32)MIN(count, sizeof(zeros) / DISK_SECTOR);
        r = disk->ops->write(disk, sector, zeros, n);
        sector += n;
        count -= n;
    }
    return r;
}

/* A part of a request that ends within a sector: by way of a buffer of its own. */
static int rw_bounced(struct disk *disk, bool write, u64 sector, u32 count, const struct iovec *iov, unsigned nr)
{
    size_t len = (size_t)count * DISK_SECTOR, at = 0;
    u8 *buf = malloc(len);
    if (!buf)
        return -ENOMEM;
    for (unsigned i = 0; write && i < nr; at += iov[i++].iov_len)
        memcpy(buf + at, iov[i].iov_base, iov[i].iov_len);
    int r = write ? disk_write(disk, sector, buf, count) : disk->ops->read(disk, sector, buf, count);
    for (unsigned i = 0; !write && !r && i < nr; at += iov[i++].iov_len)
        memcpy(iov[i].iov_base, buf + at, iov[i].iov_len);
    free(buf);
    return r;
}

int disk_rwv(struct disk *disk, bool write, u64 sector, u32 count, const struct iovec *iov, unsigned nr)
{
    struct disk_extent e;
    u64 sum = 0, len = (u64)count * DISK_SECTOR;
    bool whole = true;
    int r = 0;

    for (unsigned i = 0; i < nr; i++) {
        sum += iov[i].iov_len;
        whole &= !(iov[i].iov_len % DISK_SECTOR);
    }
    if (!disk_has(disk, sector, count) || sum != len)
        return -EINVAL;
    if (write && disk->readonly)
        return -EROFS;
    if (nr <= IOV_MAX && disk_extent(disk, sector, count, write, &e)) {
        ssize_t n = write ? pwritev(e.fd, iov, (int)nr, (off_t)e.offset) : preadv(e.fd, iov, (int)nr, (off_t)e.offset);
        if (n >= 0 && (u64)n == len)
            return 0;
        /* Interrupted, short or failed: again the slow way, which says what is wrong. */
    }
    /* The guest may change its memory between a look and the write: what is looked at must be a copy. */
    if (!whole || (write && disk->guessed && !sector))
        return rw_bounced(disk, write, sector, count, iov, nr);
    for (unsigned i = 0; i < nr && !r; i++) {
        u32 n = (u32)(iov[i].iov_len / DISK_SECTOR);
        if (!n)
            continue;
        r = write ? disk->ops->write(disk, sector, iov[i].iov_base, n)
                  : disk->ops->read(disk, sector, iov[i].iov_base, n);
        sector += n;
    }
    return r;
}
