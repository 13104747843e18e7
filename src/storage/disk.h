/*
 * disk.h - what is behind a disk, a CD drive or a floppy drive: sectors of 512 bytes in a file.
 * A device model sees only struct disk; a format is one struct disk_ops. Calls block. They may come
 * from several threads at once, as long as no two of them that overlap include a write.
 */
#pragma once
#include "base/types.h"

#define DISK_SECTOR 512u
#define DISK_ERR_LEN 320

struct disk;
struct iovec;

struct disk_extent {
    int fd;
    u64 offset; /* bytes */
};

/* All counts are sectors; the caller has checked them with disk_has(). 0 or -errno. */
struct disk_ops {
    const char *format;
    int (*read)(struct disk *disk, u64 sector, void *buf, u32 count);
    int (*write)(struct disk *disk, u64 sector, const void *buf, u32 count);
    int (*flush)(struct disk *disk); /* what was written survives a crash of the host */
    int (*discard)(struct disk *disk, u64 sector, u64 count); /* then reads as anything */
    int (*zero)(struct disk *disk, u64 sector, u64 count, bool unmap); /* unmap: room may be given back */
    /* Where those sectors lie in one piece, if that is known without waiting and, to write, nothing but the bytes
     * needs to change. May be NULL. */
    bool (*extent)(struct disk *disk, u64 sector, u32 count, bool write, struct disk_extent *out);
    void (*close)(struct disk *disk); /* frees it */
};

struct disk {
    const struct disk_ops *ops;
    u64 sectors; /* size; a last part of a sector reads as padded with zeros */
    bool readonly;
    bool guessed; /* raw, because it looked like nothing else */
    bool lost;    /* the host could not write something out: see disk_sync_fd() */
};

struct disk_options {
    const char *format; /* NULL: find out; "raw", "qcow2" */
    bool readonly;
    bool snapshot;      /* writes go to a temporary file and are gone at the end */
    unsigned depth;     /* of backing files above this one */
};

/*
 * disk_open - open the file at path, for one user at a time if it is to be written.
 * @err: DISK_ERR_LEN bytes; on failure one sentence that names the file and the remedy
 *
 * 0 and *out, or -errno of open(2), -EINVAL (not a file or block device, or no such format), -EBUSY
 * (someone else writes to it).
 */
int disk_open(const char *path, const struct disk_options *options, struct disk **out, char *err);
/* disk_close - NULL is allowed. What was written is in the file, but maybe not yet on the medium. */
void disk_close(struct disk *disk);

static inline bool disk_has(const struct disk *disk, u64 sector, u64 count)
{
    return sector <= disk->sectors && count <= disk->sectors - sector;
}
/* These four check the range (-EINVAL) and, for the last three, that writing is allowed (-EROFS). */
int disk_read(struct disk *disk, u64 sector, void *buf, u32 count);
int disk_write(struct disk *disk, u64 sector, const void *buf, u32 count);
int disk_flush(struct disk *disk); /* nothing to do, 0, when it is read-only */
int disk_discard(struct disk *disk, u64 sector, u64 count);
/* disk_zero - the sectors read as zeros afterwards; unmap: their room may be given back to the host. As above. */
int disk_zero(struct disk *disk, u64 sector, u64 count, bool unmap);
/* disk_rwv - read or write count sectors from or to scattered memory, whose sum must be as long (-EINVAL). */
int disk_rwv(struct disk *disk, bool write, u64 sector, u32 count, const struct iovec *iov, unsigned nr);

/* disk_write_zeros - for back ends: zeros written by ops->write, where there is no quicker way. 0 or -errno. */
int disk_write_zeros(struct disk *disk, u64 sector, u64 count);
/*
 * disk_sync_fd - for back ends: fdatasync(2) a file of the disk's. Once that has failed it fails for ever (-EIO): the host's
 * kernel tells of pages it could not write only once, and takes them for clean afterwards.
 */
int disk_sync_fd(struct disk *disk, int fd);
/* disk_extent - ops->extent, for what may be read or written that way. */
bool disk_extent(struct disk *disk, u64 sector, u32 count, bool write, struct disk_extent *out);

/* -- Formats ----------------------------------------------------------------------------------- */

/* raw_disk_open - the file's bytes are the disk's. Takes fd over, also on failure. */
int raw_disk_open(int fd, bool readonly, u64 bytes, struct disk **out);
/* qcow2_disk_open - path is for messages and to find the backing file, unless that is given. Takes fd and backing over,
 * also on failure; err as in disk_open(). */
int qcow2_disk_open(int fd, const char *path, const struct disk_options *options, struct disk *backing,
                    struct disk **out, char *err);
bool qcow2_probe(int fd);
/* qcow2_overlay - a temporary image on top of base, gone when it is closed. Takes base over, also on failure. */
int qcow2_overlay(struct disk *base, struct disk **out, char *err);
