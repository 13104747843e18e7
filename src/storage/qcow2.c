/*
 * qcow2.c - images that grow as they are written, on top of other images. Source: QEMU's docs/interop/qcow2.txt, versions
 * 2 and 3. Read: all but encryption, external data files, extended L2 entries and zstd. Written: 16-bit refcounts. Not
 * done: making or deleting internal snapshots, resizing, using freed clusters again while the image is open.
 *
 * A discarded cluster stays the disk's, marked as zero, with its bytes given back to the host's file system.
 */
#include "storage/qcow2.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#if HAVE_ZLIB
#include <zlib.h>
#endif

#define MAGIC 0x514649fbu
#define DEPTH_MAX 16
#define INCOMPATIBLE_DIRTY 1ull
#define INCOMPATIBLE_CORRUPT 2ull
#define EXT_BACKING_FORMAT 0xe2792acau

struct header { /* big endian */
    u32 magic, version;
    u64 backing_offset;
    u32 backing_size, cluster_bits;
    u64 size;
    u32 crypt_method, l1_size;
    u64 l1_offset, refs_offset;
    u32 refs_clusters, nr_snapshots;
    u64 snapshots_offset;
    u64 incompatible, compatible, autoclear; /* version 3 */
    u32 refcount_order, header_length;
} __attribute__((packed));
_Static_assert(sizeof(struct header) == 104, "qcow2.txt");

static struct qcow2 *qcow2(struct disk *disk)
{
    return (struct qcow2 *)disk;
}

/* -- Reading ------------------------------------------------------------------------------------ */

/* Bytes of the backing disk; zeros behind its end. */
static int backing_read(struct qcow2 *q, u8 *buf, size_t len, u64 at)
{
    u64 have = q->backing ? q->backing->sectors * DISK_SECTOR : 0;
    size_t n = at < have ? (size_t)MIN(have - at, (u64)len) : 0;
    memset(buf + n, 0, len - n);
    return n ? disk_read(q->backing, at / DISK_SECTOR, buf, (u32)(n / DISK_SECTOR)) : 0;
}

static int inflate_cluster(struct qcow2 *q, u64 entry, u8 *cluster)
{
#if HAVE_ZLIB
    unsigned x = 62 - (q->cluster_bits - 8);
    u64 at = entry & ((1ull << x) - 1);
    size_t len = (size_t)(((entry & ~QCOW2_COMPRESSED & ~QCOW2_COPIED) >> x) + 1) * 512 - (at & 511);
    u8 *packed = malloc(len);
    int r = packed ? qcow2_pread(q->fd, packed, len, at) : -ENOMEM;
    if (!r) {
        z_stream z = { .next_in = packed, .avail_in = (uInt)len, .next_out = cluster, .avail_out = (uInt)q->cluster };
        r = inflateInit2(&z, -12) == Z_OK ? 0 : -ENOMEM;
        if (!r) {
            inflate(&z, Z_FINISH);
            r = z.avail_out ? -EIO : 0;
            inflateEnd(&z);
        }
    }
    free(packed);
    return r;
#else
    (void)q;
    (void)entry;
    (void)cluster;
    return -ENOTSUP;
#endif
}

/* Bytes within one cluster, whose entry is given. No lock needed: what entries point to does not move. */
static int read_in_cluster(struct qcow2 *q, u64 entry, u64 at, u8 *buf, size_t len)
{
    u64 in = at & (q->cluster - 1);
    if (entry & QCOW2_COMPRESSED) {
        u8 *whole = malloc(q->cluster);
        int r = whole ? inflate_cluster(q, entry, whole) : -ENOMEM;
        if (!r)
            memcpy(buf, whole + in, len);
        free(whole);
        return r;
    }
    if (entry & QCOW2_ZERO) {
        memset(buf, 0, len);
        return 0;
    }
    if (entry & QCOW2_OFFSET)
        return qcow2_pread(q->fd, buf, len, (entry & QCOW2_OFFSET) + in);
    return backing_read(q, buf, len, at);
}

static int q_read(struct disk *disk, u64 sector, void *buf, u32 count)
{
    struct qcow2 *q = qcow2(disk);
    u64 at = sector * DISK_SECTOR, left = (u64)count * DISK_SECTOR;
    u8 *to = buf;
    int r = 0;

    while (left && !r) {
        size_t n = (size_t)MIN(left, q->cluster - (at & (q->cluster - 1)));
        u64 entry;
        pthread_mutex_lock(&q->lock);
        r = qcow2_entry(q, at >> q->cluster_bits, &entry);
        pthread_mutex_unlock(&q->lock);
        if (!r)
            r = read_in_cluster(q, entry, at, to, n);
        at += n;
        to += n;
        left -= n;
    }
    return r;
}

/* -- Writing ------------------------------------------------------------------------------------ */

/* A compressed cluster is given up: it may share the host clusters it touches with others. */
static int release_old(struct qcow2 *q, u64 entry)
{
    if (entry & QCOW2_COMPRESSED) {
        unsigned x = 62 - (q->cluster_bits - 8);
        u64 at = entry & ((1ull << x) - 1);
        u64 last = (at & ~511ull) + (((entry & ~QCOW2_COMPRESSED & ~QCOW2_COPIED) >> x) + 1) * 512 - 1;
        for (u64 c = at >> q->cluster_bits; c <= last >> q->cluster_bits; c++) {
            int r = qcow2_release(q, c << q->cluster_bits);
            if (r)
                return r;
        }
        return 0;
    }
    return entry & QCOW2_OFFSET ? qcow2_release(q, entry & QCOW2_OFFSET) : 0;
}

/* Write within one cluster that cannot be written in place: bring the rest along. With q->lock held. */
static int write_new(struct qcow2 *q, u64 index, u64 entry, u64 at, const u8 *buf, size_t len)
{
    u64 in = at & (q->cluster - 1), start = at - in, where = entry & QCOW2_OFFSET;
    bool own = !(entry & QCOW2_COMPRESSED) && (entry & QCOW2_COPIED) && where; /* marked as zero */
    u8 *whole = NULL;
    int r = 0;

    if (len < q->cluster) {
        whole = malloc(q->cluster);
        r = whole ? read_in_cluster(q, entry, start, whole, q->cluster) : -ENOMEM;
        if (!r)
            memcpy(whole + in, buf, len);
    }
    if (!r && !own)
        r = qcow2_alloc(q, 1, &where);
    if (!r)
        r = qcow2_pwrite(q->fd, whole ? whole : buf, q->cluster, where);
    free(whole);
    if (!r)
        r = qcow2_set_entry(q, index, where | QCOW2_COPIED);
    if (!r && !own)
        r = release_old(q, entry);
    return r;
}

static bool in_place(u64 entry)
{
    return (entry & (QCOW2_COPIED | QCOW2_COMPRESSED | QCOW2_ZERO)) == QCOW2_COPIED && (entry & QCOW2_OFFSET);
}

static int q_write(struct disk *disk, u64 sector, const void *buf, u32 count)
{
    struct qcow2 *q = qcow2(disk);
    u64 at = sector * DISK_SECTOR, left = (u64)count * DISK_SECTOR;
    const u8 *from = buf;
    int r = 0;

    while (left && !r) {
        size_t n = (size_t)MIN(left, q->cluster - (at & (q->cluster - 1)));
        u64 entry, index = at >> q->cluster_bits;
        pthread_mutex_lock(&q->lock);
        r = qcow2_entry(q, index, &entry);
        if (!r && !in_place(entry))
            r = write_new(q, index, entry, at, from, n);
        pthread_mutex_unlock(&q->lock);
        if (!r && in_place(entry))
            r = qcow2_pwrite(q->fd, from, n, (entry & QCOW2_OFFSET) + (at & (q->cluster - 1)));
        at += n;
        from += n;
        left -= n;
    }
    return r;
}

static int q_flush(struct disk *disk)
{
    struct qcow2 *q = qcow2(disk);
    pthread_mutex_lock(&q->lock);
    int r = qcow2_sync(q);
    pthread_mutex_unlock(&q->lock);
    return r;
}

/* A whole cluster to zeros, keeping its place. With q->lock held. */
static int zero_cluster(struct qcow2 *q, u64 index)
{
    u64 entry;
    int r = qcow2_entry(q, index, &entry);
    bool zero = (entry & (QCOW2_COMPRESSED | QCOW2_ZERO)) == QCOW2_ZERO; /* else it is a bit of an offset */
    if (r || zero || (!entry && !q->backing))
        return r;
    if (!in_place(entry)) {
        r = qcow2_set_entry(q, index, QCOW2_ZERO);
        return r ? r : release_old(q, entry);
    }
    r = qcow2_set_entry(q, index, entry | QCOW2_ZERO);
    if (!r) /* only to save room: the mark says zero */
        (void)!fallocate(q->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(entry & QCOW2_OFFSET),
                         (off_t)q->cluster);
    return r;
}

/* The whole clusters of a range; *head and *tail: sectors before and behind them. */
static int zero_range(struct qcow2 *q, u64 sector, u64 count, u64 *head, u64 *tail)
{
    u64 per = q->cluster / DISK_SECTOR, first = (sector + per - 1) / per, end = (sector + count) / per;
    int r = 0;
    if (sector + count == q->disk.sectors)
        end = (sector + count + per - 1) / per;
    if (first >= end) {
        *head = count;
        *tail = 0;
        return 0;
    }
    *head = first * per - sector;
    *tail = sector + count > end * per ? sector + count - end * per : 0;
    for (u64 i = first; i < end && !r; i++) {
        pthread_mutex_lock(&q->lock);
        r = zero_cluster(q, i);
        pthread_mutex_unlock(&q->lock);
    }
    return r;
}

static int q_discard(struct disk *disk, u64 sector, u64 count)
{
    u64 head, tail;
    return qcow2(disk)->version < 3 ? 0 : zero_range(qcow2(disk), sector, count, &head, &tail);
}

static int q_zero(struct disk *disk, u64 sector, u64 count, bool unmap)
{
    u64 head = count, tail = 0;
    int r = 0;
    (void)unmap;
    if (qcow2(disk)->version >= 3)
        r = zero_range(qcow2(disk), sector, count, &head, &tail);
    if (!r)
        r = disk_write_zeros(disk, sector, head);
    return r ? r : disk_write_zeros(disk, sector + count - tail, tail);
}

/* -- Where bytes are ---------------------------------------------------------------------------- */

static bool q_extent(struct disk *disk, u64 sector, u32 count, bool write, struct disk_extent *out)
{
    struct qcow2 *q = qcow2(disk);
    u64 at = sector * DISK_SECTOR, end = at + (u64)count * DISK_SECTOR, offset = 0, entry = 0;
    bool first = true, known = true, below = false;

    if (pthread_mutex_trylock(&q->lock))
        return false;
    for (u64 i = at >> q->cluster_bits; known && i << q->cluster_bits < end; i++) {
        known = qcow2_entry_cached(q, i, &entry);
        bool absent = !(entry & (QCOW2_OFFSET | QCOW2_COMPRESSED | QCOW2_ZERO));
        if (known && write)
            known = in_place(entry);
        else if (known)
            known = absent || !(entry & (QCOW2_COMPRESSED | QCOW2_ZERO));
        u64 here = entry & QCOW2_OFFSET;
        if (first) {
            offset = here;
            below = absent;
        } else if (absent != below || (!absent && here != offset + ((i - (at >> q->cluster_bits)) << q->cluster_bits))) {
            known = false;
        }
        first = false;
    }
    pthread_mutex_unlock(&q->lock);
    if (!known || first)
        return false;
    if (below)
        return q->backing && disk_extent(q->backing, sector, count, false, out);
    *out = (struct disk_extent){ q->fd, offset + (at & (q->cluster - 1)) };
    return true;
}

static void q_close(struct disk *disk)
{
    struct qcow2 *q = qcow2(disk);
    if (!disk->readonly && q->l2 && q->block && !qcow2_sync(q))
        qcow2_sync(q); /* and what the first one gave up */
    for (u32 i = 0; q->l2 && i < q->l1_size; i++)
        free(q->l2[i]);
    for (u32 i = 0; q->block && i < q->refs_size; i++)
        free(q->block[i]);
    free(q->l1);
    free(q->l2);
    free(q->l2_dirty);
    free(q->refs);
    free(q->block);
    free(q->block_dirty);
    free(q->stale);
    pthread_mutex_destroy(&q->lock);
    disk_close(q->backing);
    close(q->fd);
    free(q);
}

static const struct disk_ops qcow2_ops = {
    .format = "qcow2", .read = q_read, .write = q_write, .flush = q_flush, .discard = q_discard, .zero = q_zero,
    .extent = q_extent, .close = q_close,
};

/* -- Opening ------------------------------------------------------------------------------------ */

static int bad(char *err, const char *path, const char *what)
{
    snprintf(err, DISK_ERR_LEN, "%s: %s", path, what);
    return -EINVAL;
}

static int read_table(struct qcow2 *q, u64 at, u32 count, u64 **out)
{
    u64 *t = calloc((size_t)count + 1, 8);
    int r = t ? qcow2_pread(q->fd, t, (size_t)count * 8, at) : -ENOMEM;
    for (u32 i = 0; !r && i < count; i++)
        t[i] = __builtin_bswap64(t[i]);
    *out = t;
    return r;
}

/* The header's values, checked. */
static int check_header(struct qcow2 *q, struct header *h, const char *path, bool readonly, char *err)
{
    h->version = __builtin_bswap32(h->version);
    h->cluster_bits = __builtin_bswap32(h->cluster_bits);
    h->size = __builtin_bswap64(h->size);
    h->l1_size = __builtin_bswap32(h->l1_size);
    h->l1_offset = __builtin_bswap64(h->l1_offset);
    h->refs_offset = __builtin_bswap64(h->refs_offset);
    h->refs_clusters = __builtin_bswap32(h->refs_clusters);
    h->incompatible = h->version >= 3 ? __builtin_bswap64(h->incompatible) : 0;
    u32 order = h->version >= 3 ? __builtin_bswap32(h->refcount_order) : 4;

    if (h->version != 2 && h->version != 3)
        return bad(err, path, "a qcow2 image of another version than 2 and 3; qemu-img convert makes a new one");
    if (h->crypt_method)
        return bad(err, path, "encrypted qcow2 images are not supported; decrypt it with qemu-img convert");
    if (h->incompatible & ~(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT))
        return bad(err, path, "uses qcow2 features that are not supported; qemu-img convert -O qcow2 leaves them out");
    if (!readonly && (h->incompatible & (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT)))
        return bad(err, path, "was not closed properly; repair it with qemu-img check -r all");
    if (!readonly && order != 4)
        return bad(err, path, "has refcounts of another width than 16 bits; use readonly=on, or qemu-img convert");
    if (h->cluster_bits < 9 || h->cluster_bits > 21)
        return bad(err, path, "damaged: the cluster size is impossible");
    q->version = h->version;
    q->cluster_bits = h->cluster_bits;
    q->cluster = 1ull << h->cluster_bits;
    q->size = h->size;
    q->l2_entries = (u32)(q->cluster / 8);
    q->block_entries = (u32)(q->cluster / 2);
    u64 per_table = q->cluster * q->l2_entries, tables = h->size / per_table + !!(h->size % per_table);
    if (h->size > 1ull << 60 || h->l1_size < tables || h->l1_size > 1u << 22 || h->refs_clusters > 1u << 15 ||
        (h->l1_offset & (q->cluster - 1)) || (h->refs_offset & (q->cluster - 1)))
        return bad(err, path, "damaged: its tables have impossible sizes or places");
    q->l1_size = h->l1_size;
    q->l1_offset = h->l1_offset;
    q->refs_offset = h->refs_offset;
    q->refs_clusters = h->refs_clusters;
    q->refs_size = (u32)(h->refs_clusters * (q->cluster / 8));
    return 0;
}

/* The format of the backing file, from the header's extensions; "": not said. */
static void backing_format(struct qcow2 *q, u64 at, u64 end, char format[16])
{
    u32 ext[2];
    format[0] = '\0';
    while (at + 8 <= end && !qcow2_pread(q->fd, ext, 8, at)) {
        u32 type = __builtin_bswap32(ext[0]), len = __builtin_bswap32(ext[1]);
        if (!type || len > end - at - 8)
            return;
        if (type == EXT_BACKING_FORMAT && len < 16) {
            if (!qcow2_pread(q->fd, format, len, at + 8))
                format[len] = '\0';
            return;
        }
        at += 8 + ((len + 7) & ~7u);
    }
}

static int open_backing(struct qcow2 *q, const struct header *h, const char *path, unsigned depth, char *err)
{
    char name[1024] = "", full[PATH_MAX], format[16];
    u64 offset = __builtin_bswap64(h->backing_offset);
    u32 len = __builtin_bswap32(h->backing_size);

    if (!offset)
        return 0;
    if (!len || len >= sizeof(name) || offset > 1 << 21)
        return bad(err, path, "damaged: the name of its backing file is impossible");
    if (depth >= DEPTH_MAX)
        return bad(err, path, "more than 16 backing files in a row, or one that is its own");
    int r = qcow2_pread(q->fd, name, len, offset);
    if (r)
        return r;
    backing_format(q, h->version >= 3 ? __builtin_bswap32(h->header_length) : 72, MIN(offset, q->cluster), format);
    const char *slash = strrchr(path, '/');
    int n = name[0] == '/' || !slash ? snprintf(full, sizeof(full), "%s", name)
                                     : snprintf(full, sizeof(full), "%.*s/%s", (int)(slash - path), path, name);
    if (n < 0 || (size_t)n >= sizeof(full))
        return bad(err, path, "the name of its backing file is too long");
    const struct disk_options options = { .format = format[0] ? format : NULL, .readonly = true, .depth = depth + 1 };
    return disk_open(full, &options, &q->backing, err);
}

bool qcow2_probe(int fd)
{
    u32 magic;
    return pread(fd, &magic, 4, 0) == 4 && __builtin_bswap32(magic) == MAGIC;
}

static int open_tables(struct qcow2 *q, const char *path, char *err)
{
    struct stat st;
    if (fstat(q->fd, &st))
        return -errno;
    q->end = ((u64)st.st_size + q->cluster - 1) / q->cluster;
    q->l2 = calloc((size_t)q->l1_size + 1, sizeof(*q->l2));
    q->l2_dirty = calloc((size_t)q->l1_size + 1, 1);
    q->block = calloc((size_t)q->refs_size + 1, sizeof(*q->block));
    q->block_dirty = calloc((size_t)q->refs_size + 1, 1);
    if (!q->l2 || !q->l2_dirty || !q->block || !q->block_dirty)
        return -ENOMEM;
    int r = read_table(q, q->l1_offset, q->l1_size, &q->l1);
    if (!r)
        r = read_table(q, q->refs_offset, q->refs_size, &q->refs);
    if (r)
        snprintf(err, DISK_ERR_LEN, "cannot read the tables of %s: %s", path, strerror(-r));
    return r;
}

int qcow2_disk_open(int fd, const char *path, const struct disk_options *o, struct disk *backing, struct disk **out,
                    char *err)
{
    struct qcow2 *q = calloc(1, sizeof(*q));
    struct header h;

    if (!q) {
        close(fd);
        return -ENOMEM;
    }
    snprintf(err, DISK_ERR_LEN, "cannot open %s", path);
    q->fd = fd;
    q->backing = backing;
    pthread_mutex_init(&q->lock, NULL);
    q->disk.readonly = true; /* until it is known to be sound */
    q->disk.ops = &qcow2_ops;
    int r = qcow2_pread(fd, &h, sizeof(h), 0);
    if (!r && __builtin_bswap32(h.magic) != MAGIC)
        r = bad(err, path, "not a qcow2 image; format=raw takes any file");
    if (!r)
        r = check_header(q, &h, path, o->readonly, err);
    if (!r)
        r = open_tables(q, path, err);
    if (!r && !backing)
        r = open_backing(q, &h, path, o->depth, err);
    if (!r && !o->readonly && q->version >= 3 && h.autoclear) { /* bitmaps and the like would not be kept up to date */
        h.autoclear = 0;
        r = qcow2_pwrite(fd, &h.autoclear, 8, offsetof(struct header, autoclear));
    }
    if (r) {
        q_close(&q->disk);
        return r;
    }
    q->disk.sectors = q->size / DISK_SECTOR + !!(q->size % DISK_SECTOR);
    q->disk.readonly = o->readonly;
    *out = &q->disk;
    return 0;
}

int qcow2_overlay(struct disk *base, struct disk **out, char *err)
{
    const char *dir = getenv("TMPDIR");
    int fd = open(dir && *dir ? dir : "/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    static const struct disk_options options;
    const u64 cluster = 65536;

    if (fd < 0) {
        snprintf(err, DISK_ERR_LEN, "no temporary file for --snapshot in %s: %s; set TMPDIR", dir ? dir : "/var/tmp",
                 strerror(errno));
        int why = -errno;
        disk_close(base);
        return why;
    }
    /* Header, refcount table, one refcount block, L1: clusters 0, 1, 2, and from 3 on. */
    u64 size = base->sectors * DISK_SECTOR, per_table = cluster * (cluster / 8);
    u64 tables = size / per_table + 1, l1_clusters = (tables * 8 + cluster - 1) / cluster;
    struct header h = {
        .magic = __builtin_bswap32(MAGIC), .version = __builtin_bswap32(3), .cluster_bits = __builtin_bswap32(16),
        .size = __builtin_bswap64(size), .l1_size = __builtin_bswap32((u32)tables),
        .l1_offset = __builtin_bswap64(3 * cluster), .refs_offset = __builtin_bswap64(cluster),
        .refs_clusters = __builtin_bswap32(1), .refcount_order = __builtin_bswap32(4),
        .header_length = __builtin_bswap32(sizeof(h)),
    };
    u64 block = __builtin_bswap64(2 * cluster);
    u16 counts[64];
    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++)
        counts[i] = i < 3 + l1_clusters ? __builtin_bswap16(1) : 0;
    int r = l1_clusters > 60 ? -EFBIG : qcow2_pwrite(fd, &h, sizeof(h), 0);
    if (!r)
        r = qcow2_pwrite(fd, &block, 8, cluster);
    if (!r)
        r = qcow2_pwrite(fd, counts, sizeof(counts), 2 * cluster);
    if (!r && ftruncate(fd, (off_t)((3 + l1_clusters) * cluster)))
        r = -errno;
    if (r) {
        snprintf(err, DISK_ERR_LEN, "cannot write the temporary file for --snapshot: %s", strerror(-r));
        close(fd);
        disk_close(base);
        return r;
    }
    r = qcow2_disk_open(fd, "--snapshot", &options, base, out, err);
    if (!r)
        container_of(*out, struct qcow2, disk)->throw_away = true;
    return r;
}
