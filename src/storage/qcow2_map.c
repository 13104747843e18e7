/*
 * qcow2_map.c - tables of a qcow2 image: L1, L2 and refcounts. All changes stay in memory until qcow2_sync(); until then
 * the file describes the disk as of the last sync, so a process that is killed loses only what was not flushed.
 */
#include "storage/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIRTY_MAX 256 /* L2 tables; then they are written without being asked to */

int qcow2_pread(int fd, void *buf, size_t len, u64 at)
{
    u8 *to = buf;
    while (len) {
        ssize_t n = pread(fd, to, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (!n) {
            memset(to, 0, len);
            return 0;
        }
        to += n;
        at += (u64)n;
        len -= (size_t)n;
    }
    return 0;
}

int qcow2_pwrite(int fd, const void *buf, size_t len, u64 at)
{
    const u8 *from = buf;
    while (len) {
        ssize_t n = pwrite(fd, from, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? -errno : -EIO;
        from += n;
        at += (u64)n;
        len -= (size_t)n;
    }
    return 0;
}

/* Does an offset in a table point to a cluster of the file? */
static bool valid(const struct qcow2 *q, u64 offset)
{
    return offset && !(offset & (q->cluster - 1)) && offset / q->cluster < q->end;
}

/* -- Refcounts ---------------------------------------------------------------------------------- */

/* A bigger refcount table, at the end of the file: for `index` and half as much again. */
static int grow_refs(struct qcow2 *q, u64 index)
{
    u64 per_cluster = q->cluster / 8, clusters = (index + index / 2) / per_cluster + 1;
    u32 size = (u32)(clusters * per_cluster), old = q->refs_size;
    if (clusters * per_cluster > 1u << 28)
        return -EFBIG;
    u64 *refs = calloc(size, sizeof(*refs));
    u16 **block = calloc(size, sizeof(*block));
    bool *dirty = calloc(size, sizeof(*dirty));
    if (!refs || !block || !dirty) {
        free(refs);
        free(block);
        free(dirty);
        return -ENOMEM;
    }
    memcpy(refs, q->refs, old * sizeof(*refs));
    memcpy(block, q->block, old * sizeof(*block));
    memcpy(dirty, q->block_dirty, old * sizeof(*dirty));
    free(q->refs);
    free(q->block);
    free(q->block_dirty);
    u64 old_offset = q->refs_offset, old_clusters = q->refs_clusters;
    q->refs = refs;
    q->block = block;
    q->block_dirty = dirty;
    q->refs_size = size;
    q->refs_clusters = (u32)clusters;
    q->refs_dirty = q->header_dirty = q->any_dirty = true;
    int r = qcow2_alloc(q, clusters, &q->refs_offset);
    for (u64 i = 0; i < old_clusters && !r; i++)
        r = qcow2_release(q, old_offset + i * q->cluster);
    return r;
}

/* The refcount block that counts a cluster, made if need be. */
static int ref_block(struct qcow2 *q, u64 cluster, u16 **out)
{
    u64 i = cluster / q->block_entries;
    if (i >= q->refs_size) {
        int r = grow_refs(q, i);
        if (r)
            return r;
    }
    if (!q->block[i]) {
        u16 *b = calloc(1, q->cluster);
        if (!b)
            return -ENOMEM;
        if (q->refs[i]) {
            int r = valid(q, q->refs[i] & ~511ull) ? qcow2_pread(q->fd, b, q->cluster, q->refs[i] & ~511ull) : -EIO;
            if (r) {
                free(b);
                return r;
            }
            q->block[i] = b;
        } else { /* counts itself, or is counted by another new one */
            u64 self = q->end++;
            u16 *its;
            q->block[i] = b;
            q->refs[i] = self * q->cluster;
            q->refs_dirty = q->block_dirty[i] = q->any_dirty = true;
            int r = ref_block(q, self, &its);
            if (r)
                return r;
            its[self % q->block_entries] = __builtin_bswap16(1);
            q->block_dirty[self / q->block_entries] = true;
        }
    }
    *out = q->block[i];
    return 0;
}

int qcow2_alloc(struct qcow2 *q, u64 nr, u64 *offset)
{
    u64 first = q->end;
    q->end += nr;
    for (u64 c = first; c < first + nr; c++) {
        u16 *block;
        int r = ref_block(q, c, &block);
        if (r)
            return r;
        block[c % q->block_entries] = __builtin_bswap16(1);
        q->block_dirty[c / q->block_entries] = true;
    }
    q->any_dirty = true;
    *offset = first * q->cluster;
    return 0;
}

int qcow2_release(struct qcow2 *q, u64 offset)
{
    if (q->nr_stale == q->cap_stale) {
        size_t cap = q->cap_stale * 2 + 64;
        u64 *more = realloc(q->stale, cap * sizeof(*more));
        if (!more)
            return -ENOMEM;
        q->stale = more;
        q->cap_stale = cap;
    }
    q->stale[q->nr_stale++] = offset;
    return 0;
}

static int lower_stale(struct qcow2 *q)
{
    while (q->nr_stale) {
        u64 cluster = q->stale[--q->nr_stale] / q->cluster;
        u16 *block;
        int r = ref_block(q, cluster, &block);
        if (r)
            return r;
        u16 *count = &block[cluster % q->block_entries];
        if (!*count)
            return -EIO; /* used, and not counted */
        *count = __builtin_bswap16((u16)(__builtin_bswap16(*count) - 1));
        q->block_dirty[cluster / q->block_entries] = q->any_dirty = true;
    }
    return 0;
}

/* -- L1, L2 ------------------------------------------------------------------------------------- */

static int load_l2(struct qcow2 *q, u64 i)
{
    u64 offset = q->l1[i] & QCOW2_OFFSET;
    if (q->l2[i] || !offset)
        return 0;
    if (!valid(q, offset))
        return -EIO;
    u64 *t = malloc(q->cluster);
    int r = t ? qcow2_pread(q->fd, t, q->cluster, offset) : -ENOMEM;
    if (r) {
        free(t);
        return r;
    }
    for (u32 n = 0; n < q->l2_entries; n++)
        t[n] = __builtin_bswap64(t[n]);
    q->l2[i] = t;
    return 0;
}

/* Is this entry one we can follow? Everything an image says is checked here. */
static bool sane(const struct qcow2 *q, u64 e)
{
    if (e & QCOW2_COMPRESSED)
        return true; /* its reader looks where it points */
    if (q->version < 3 && (e & QCOW2_ZERO))
        return false;
    return !(e & QCOW2_OFFSET) || valid(q, e & QCOW2_OFFSET);
}

bool qcow2_entry_cached(struct qcow2 *q, u64 index, u64 *entry)
{
    u64 i = index / q->l2_entries;
    if (i >= q->l1_size || (!q->l2[i] && (q->l1[i] & QCOW2_OFFSET)))
        return false;
    *entry = q->l2[i] ? q->l2[i][index % q->l2_entries] : 0;
    return sane(q, *entry);
}

int qcow2_entry(struct qcow2 *q, u64 index, u64 *entry)
{
    u64 i = index / q->l2_entries;
    int r = i < q->l1_size ? load_l2(q, i) : -EIO;
    if (r)
        return r;
    return qcow2_entry_cached(q, index, entry) ? 0 : -EIO;
}

int qcow2_set_entry(struct qcow2 *q, u64 index, u64 entry)
{
    u64 i = index / q->l2_entries, old = q->l1[i] & QCOW2_OFFSET, offset;
    int r = load_l2(q, i);
    if (r)
        return r;
    if (!(q->l1[i] & QCOW2_COPIED)) { /* none yet, or a snapshot's too */
        r = qcow2_alloc(q, 1, &offset);
        if (!r && old)
            r = qcow2_release(q, old);
        if (!r && !q->l2[i] && !(q->l2[i] = calloc(1, q->cluster)))
            r = -ENOMEM;
        if (r)
            return r;
        q->l1[i] = offset | QCOW2_COPIED;
        q->l1_dirty = true;
    }
    q->l2[i][index % q->l2_entries] = entry;
    q->nr_dirty += !q->l2_dirty[i];
    q->l2_dirty[i] = q->any_dirty = true;
    return q->nr_dirty > DIRTY_MAX ? qcow2_sync(q) : 0;
}

/* -- Writing it out ----------------------------------------------------------------------------- */

static int write_words(struct qcow2 *q, const u64 *from, u32 count, u64 at, u64 room)
{
    u64 *be = calloc(1, room);
    if (!be)
        return -ENOMEM;
    for (u32 n = 0; n < count; n++)
        be[n] = __builtin_bswap64(from[n]);
    int r = qcow2_pwrite(q->fd, be, room, at);
    free(be);
    return r;
}

static int sync_fd(struct qcow2 *q)
{
    return disk_sync_fd(&q->disk, q->fd);
}

/* The header's pointer to the refcount table: bytes 48..59. */
static int write_header(struct qcow2 *q)
{
    struct { u64 offset; u32 clusters; } __attribute__((packed)) where = {
        __builtin_bswap64(q->refs_offset), __builtin_bswap32(q->refs_clusters)
    };
    int r = qcow2_pwrite(q->fd, &where, sizeof(where), 48);
    if (!r)
        r = sync_fd(q);
    q->header_dirty &= r != 0;
    return r;
}

/* Refcounts, and all data, to the medium: blocks, what points to them, what points to that. */
static int sync_refs(struct qcow2 *q)
{
    int r = 0;
    for (u32 i = 0; i < q->refs_size && !r; i++) {
        if (!q->block_dirty[i])
            continue;
        r = qcow2_pwrite(q->fd, q->block[i], q->cluster, q->refs[i] & ~511ull);
        q->block_dirty[i] = r != 0;
    }
    if (!r)
        r = sync_fd(q);
    if (!r && q->refs_dirty) {
        r = write_words(q, q->refs, q->refs_size, q->refs_offset, (u64)q->refs_clusters * q->cluster);
        if (!r)
            r = sync_fd(q);
        q->refs_dirty &= r != 0;
    }
    return r || !q->header_dirty ? r : write_header(q);
}

int qcow2_sync(struct qcow2 *q)
{
    int r = 0;
    if (q->throw_away) { /* the tables in memory are all there is */
        q->nr_stale = 0;
        return 0;
    }
    if (!q->any_dirty)
        return sync_fd(q);
    /* Counted before it is pointed to; tables before what leads to them. */
    r = sync_refs(q);
    for (u32 i = 0; i < q->l1_size && !r && q->nr_dirty; i++) {
        if (!q->l2_dirty[i])
            continue;
        r = write_words(q, q->l2[i], q->l2_entries, q->l1[i] & QCOW2_OFFSET, q->cluster);
        q->l2_dirty[i] = r != 0;
        q->nr_dirty -= !r;
    }
    if (!r)
        r = sync_fd(q);
    if (!r && q->l1_dirty) {
        r = write_words(q, q->l1, q->l1_size, q->l1_offset, (u64)q->l1_size * 8);
        if (!r)
            r = sync_fd(q);
        q->l1_dirty &= r != 0;
    }
    if (!r) {
        q->any_dirty = false;
        r = lower_stale(q); /* reaches the file with the next sync: until then they are only unused */
    }
    return r;
}
