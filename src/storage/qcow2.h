/*
 * qcow2.h - inside of the qcow2 format: qcow2.c (header, reading, writing) and qcow2_map.c (where clusters are).
 * Source: QEMU's docs/interop/qcow2.txt.
 */
#pragma once
#include "storage/disk.h"
#include <pthread.h>

#define QCOW2_COPIED (1ull << 63)     /* L1, L2: refcount is one: may be written in place */
#define QCOW2_COMPRESSED (1ull << 62) /* L2 */
#define QCOW2_ZERO 1ull               /* L2, version 3: reads as zeros, even with a cluster */
#define QCOW2_OFFSET 0x00fffffffffffe00ull

struct qcow2 {
    struct disk disk;
    int fd;
    bool throw_away;      /* nobody reads it after us: nothing need reach the medium */
    struct disk *backing; /* NULL: none; owned */
    unsigned version, cluster_bits;
    u64 cluster, size;    /* bytes */
    u32 l2_entries;       /* in a table */
    u32 block_entries;    /* 16-bit refcounts in a block */

    pthread_mutex_t lock; /* what follows; taken for metadata, and while a cluster is being allocated */
    u64 end;              /* clusters in the file: new ones go there. None is ever used again while it is open, so a
                           * place that was looked up stays good. */
    u64 *l1, l1_offset;   /* host byte order */
    u32 l1_size;
    u64 **l2;             /* by L1 index; NULL: not read yet. Never dropped: 1/8192 of what was touched */
    bool *l2_dirty;
    u64 *refs, refs_offset; /* refcount table */
    u32 refs_size, refs_clusters;
    u16 **block;          /* refcount blocks by table index */
    bool *block_dirty;
    bool l1_dirty, refs_dirty, header_dirty, any_dirty;
    u64 *stale;           /* clusters to give up once nothing on the medium points to them */
    size_t nr_stale, cap_stale;
    u32 nr_dirty;         /* L2 tables */
};

/* -- qcow2_map.c; with q->lock held ------------------------------------------------------------- */

/* qcow2_entry - the L2 entry of a cluster of the disk's; *entry 0: not there. 0 or -errno (-EIO: the image is damaged). */
int qcow2_entry(struct qcow2 *q, u64 index, u64 *entry);
/* qcow2_entry_cached - the same without reading: false if that would be needed. */
bool qcow2_entry_cached(struct qcow2 *q, u64 index, u64 *entry);
/* qcow2_set_entry - in memory; reaches the file with qcow2_sync(). */
int qcow2_set_entry(struct qcow2 *q, u64 index, u64 entry);
/* qcow2_alloc - nr new clusters in a row at the end of the file, with refcount one; their offset. 0 or -errno. */
int qcow2_alloc(struct qcow2 *q, u64 nr, u64 *offset);
/* qcow2_release - lower a cluster's refcount once the tables that do not point to it any more are on the medium. */
int qcow2_release(struct qcow2 *q, u64 offset);
/* qcow2_sync - data and metadata to the medium, in an order in which a crash leaves at worst unused clusters. */
int qcow2_sync(struct qcow2 *q);

/* qcow2_pread, qcow2_pwrite - all bytes or -errno; reading behind the end gives zeros. */
int qcow2_pread(int fd, void *buf, size_t len, u64 at);
int qcow2_pwrite(int fd, const void *buf, size_t len, u64 at);
