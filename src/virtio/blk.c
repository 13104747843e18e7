/*
 * blk.c - virtio block device. Source: virtio 1.2 §5.2. Not offered: geometry, write-cache switch, secure erase, zones,
 * lifetime.
 *
 * Durability: a flush is done when fdatasync(2) is. A driver that does not know of flushes gets every write flushed.
 * Threads: notify() on vCPU threads answers from the host's page cache where that takes no waiting, so such a read wakes
 * no thread at all; the rest goes to disk_aio, whose threads push the buffer and send the MSI-X message themselves.
 */
#include "virtio/blk.h"
#include "storage/aio.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define F_SEG_MAX BITULL(2)
#define F_RO BITULL(5)
#define F_BLK_SIZE BITULL(6)
#define F_FLUSH BITULL(9)
#define F_TOPOLOGY BITULL(10)
#define F_MQ BITULL(12)
#define F_DISCARD BITULL(13)
#define F_WRITE_ZEROES BITULL(14)

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK, S_IOERR, S_UNSUPP };

#define QUEUE_SIZE 256
#define ID_LEN 20u
#define RANGES_MAX 16u       /* of a discard or write-zeroes request */
#define RANGE_SECTORS_MAX (1u << 22) /* 2 GiB */
#define UNMAP 1u             /* flag of a write-zeroes range */

struct blk_config { /* §5.2.4 */
    u64 capacity;
    u32 size_max, seg_max;
    u16 cylinders;
    u8 heads, sectors;
    u32 blk_size;
    u8 physical_exp, alignment;
    u16 min_io;
    u32 opt_io;
    u8 writeback, unused0;
    u16 num_queues;
    u32 max_discard_sectors, max_discard_seg, discard_alignment;
    u32 max_zero_sectors, max_zero_seg;
    u8 zero_may_unmap, unused1[3];
} __attribute__((packed));
_Static_assert(offsetof(struct blk_config, max_zero_sectors) == 48 && sizeof(struct blk_config) == 60, "virtio 1.2 §5.2.4");

struct blk_range {
    u64 sector;
    u32 count, flags;
};

struct blk_req {
    struct disk_req disk;
    struct virtio_queue *q;
    struct blk_req *next;       /* free */
    struct vq_chain chain;
    struct iovec iov[VQ_SEGS_MAX];
    struct blk_range range[RANGES_MAX]; /* what is left of the request */
    unsigned nr_ranges, at_range;
    u32 written;                /* bytes of the writable part, without the status */
};

struct virtio_blk {
    struct virtio_dev dev;
    struct blk_config config;
    struct disk *disk;
    struct disk_aio *aio;
    char id[ID_LEN];
    struct blk_req *free[VIRTIO_BLK_QUEUES_MAX]; /* by queue, under its lock */
};

static struct virtio_blk *blk_of(const struct virtio_queue *q)
{
    return container_of(q->dev, struct virtio_blk, dev);
}

/* With q->lock held: status, used ring. The caller interrupts. */
static void complete(struct blk_req *req, u8 status)
{
    struct virtio_queue *q = req->q;
    struct vq_chain *c = &req->chain;
    vq_written(q->dev->ram, c, req->written);
    vq_copy_in(c, c->in_len - 1, &status, 1);
    vq_push(&q->vq, c->id, c->nr_desc, req->written + 1);
    req->next = blk_of(q)->free[q->index];
    blk_of(q)->free[q->index] = req;
}

static u8 status_of(int result)
{
    return result == 0 ? S_OK : result == -EOPNOTSUPP ? S_UNSUPP : S_IOERR;
}

static void next_range(struct blk_req *req)
{
    const struct blk_range *r = &req->range[req->at_range++];
    req->disk.sector = r->sector;
    req->disk.count = r->count;
    req->disk.unmap = r->flags & UNMAP;
}

/* On a thread of the disk's. */
static void blk_done(struct disk_req *disk, int result)
{
    struct blk_req *req = container_of(disk, struct blk_req, disk);
    struct virtio_queue *q = req->q;

    if (!result && req->at_range < req->nr_ranges) {
        next_range(req);
        disk_aio_submit(blk_of(q)->aio, disk);
        return;
    }
    pthread_mutex_lock(&q->lock);
    if (result && disk->op == DISK_READ)
        req->written = 0;
    complete(req, status_of(result));
    virtio_interrupt(q);
    pthread_mutex_unlock(&q->lock);
}

/* -- Starting a request; with q->lock held. A status to complete with now, or -1: under way -------------------- */

static int submit(struct blk_req *req)
{
    int result;
    if (disk_aio_try(blk_of(req->q)->aio, &req->disk, &result))
        return status_of(result);
    disk_aio_submit(blk_of(req->q)->aio, &req->disk);
    return -1;
}

static int start_rw(struct blk_req *req, u64 sector, bool write)
{
    struct virtio_blk *blk = blk_of(req->q);
    struct vq_chain *c = &req->chain;
    u64 len = write ? c->out_len - 16 : c->in_len - 1;
    int n = vq_slice(c, !write, write ? 16 : 0, len, req->iov, ARRAY_SIZE(req->iov));

    if (n < 0 || len % DISK_SECTOR || !disk_has(blk->disk, sector, len / DISK_SECTOR))
        return S_IOERR;
    if (write && blk->disk->readonly)
        return S_IOERR; /* §5.2.6.2 */
    if (!len)
        return S_OK;
    req->disk.op = write ? DISK_WRITE : DISK_READ;
    req->disk.sync = write && !virtio_has(&blk->dev, F_FLUSH);
    req->disk.sector = sector;
    req->disk.count = len / DISK_SECTOR;
    req->disk.iov = req->iov;
    req->disk.nr_iov = (unsigned)n;
    req->written = write ? 0 : (u32)len;
    return submit(req);
}

static int start_ranges(struct blk_req *req, bool zero)
{
    struct virtio_blk *blk = blk_of(req->q);
    u64 len = req->chain.out_len - 16;

    if (blk->disk->readonly)
        return S_IOERR;
    if (!len || len % sizeof(struct blk_range) || len > sizeof(req->range))
        return S_IOERR;
    vq_copy_out(&req->chain, 16, req->range, len);
    req->nr_ranges = (unsigned)(len / sizeof(struct blk_range));
    req->at_range = 0;
    for (unsigned i = 0; i < req->nr_ranges; i++) {
        const struct blk_range *r = &req->range[i];
        if (r->flags & ~(zero ? UNMAP : 0u)) /* §5.2.6.2 */
            return S_UNSUPP;
        if (r->count > RANGE_SECTORS_MAX || !disk_has(blk->disk, r->sector, r->count))
            return S_IOERR;
    }
    req->disk.op = zero ? DISK_ZERO : DISK_DISCARD;
    next_range(req);
    disk_aio_submit(blk->aio, &req->disk);
    return -1;
}

static int start(struct blk_req *req)
{
    struct virtio_blk *blk = blk_of(req->q);
    struct vq_chain *c = &req->chain;
    struct { u32 type, reserved; u64 sector; } header;

    req->written = 0;
    req->nr_ranges = req->at_range = 0;
    if (vq_copy_out(c, 0, &header, sizeof(header)) != sizeof(header))
        return S_IOERR;
    switch (header.type) {
    case T_IN: return start_rw(req, header.sector, false);
    case T_OUT: return start_rw(req, header.sector, true);
    case T_DISCARD: return start_ranges(req, false);
    case T_WRITE_ZEROES: return start_ranges(req, true);
    case T_FLUSH:
        req->disk.op = DISK_FLUSH;
        disk_aio_submit(blk->aio, &req->disk);
        return -1;
    case T_GET_ID:
        req->written = (u32)vq_copy_in(c, 0, blk->id, MIN((u64)ID_LEN, c->in_len - 1));
        return S_OK;
    default: return S_UNSUPP;
    }
}

static struct blk_req *get_req(struct virtio_queue *q)
{
    struct blk_req *req = blk_of(q)->free[q->index];
    if (req) {
        blk_of(q)->free[q->index] = req->next;
        return req;
    }
    req = calloc(1, sizeof(*req));
    if (req) {
        req->q = q;
        req->disk.done = blk_done;
    }
    return req;
}

static void blk_notify(struct virtio_queue *q)
{
    pthread_mutex_lock(&q->lock);
    do {
        vq_want_notify(&q->vq, false);
        for (;;) {
            struct blk_req *req = get_req(q);
            if (!req || !virtio_pop(q, &req->chain)) {
                if (req) {
                    req->next = blk_of(q)->free[q->index];
                    blk_of(q)->free[q->index] = req;
                }
                break;
            }
            if (!req->chain.in_len) { /* nowhere to put the status */
                q->vq.broken = true;
                virtio_broken(q->dev);
                req->next = blk_of(q)->free[q->index];
                blk_of(q)->free[q->index] = req;
                break;
            }
            int status = start(req);
            if (status >= 0)
                complete(req, (u8)status);
        }
    } while (!virtio_idle(q));
    virtio_interrupt(q);
    pthread_mutex_unlock(&q->lock);
}

/* -- Life ------------------------------------------------------------------------------------- */

static void blk_stop(struct virtio_dev *dev)
{
    disk_aio_drain(container_of(dev, struct virtio_blk, dev)->aio);
}

static void blk_fini(struct virtio_dev *dev)
{
    struct virtio_blk *blk = container_of(dev, struct virtio_blk, dev);
    disk_aio_destroy(blk->aio);
    for (unsigned i = 0; i < ARRAY_SIZE(blk->free); i++) {
        for (struct blk_req *req = blk->free[i], *next; req; req = next) {
            next = req->next;
            free(req);
        }
    }
    free(blk);
}

static const struct virtio_class blk_class = {
    .name = "virtio-blk", .id = 2, .pci_class = 0x018000, .notify = blk_notify, .stop = blk_stop, .fini = blk_fini,
    .drain = blk_stop,
};

int virtio_blk_create(struct ram *ram, struct disk *disk, const struct blk_options *o, struct virtio_dev **out)
{
    struct virtio_blk *blk = calloc(1, sizeof(*blk));
    if (!blk)
        return -ENOMEM;
    bug_on(!o->queues || o->queues > VIRTIO_BLK_QUEUES_MAX);
    blk->disk = disk;
    if (o->serial)
        memcpy(blk->id, o->serial, strnlen(o->serial, ID_LEN));
    blk->config = (struct blk_config){
        .capacity = disk->sectors, .seg_max = VQ_SEGS_MAX - 4, .blk_size = DISK_SECTOR, .physical_exp = 3,
        .min_io = 8, .num_queues = (u16)o->queues, .max_discard_sectors = RANGE_SECTORS_MAX,
        .max_discard_seg = RANGES_MAX, .discard_alignment = 8, .max_zero_sectors = RANGE_SECTORS_MAX,
        .max_zero_seg = RANGES_MAX, .zero_may_unmap = 1,
    };
    u64 features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | (o->queues > 1 ? F_MQ : 0) |
                   (disk->readonly ? F_RO : F_DISCARD | F_WRITE_ZEROES) | (o->packed ? VIRTIO_F_RING_PACKED : 0);
    int err = disk_aio_create(disk, !o->threads, &blk->aio);
    if (!err)
        err = virtio_init(&blk->dev, &blk_class, ram, features, o->queues, QUEUE_SIZE, &blk->config,
                          sizeof(blk->config));
    if (err) {
        disk_aio_destroy(blk->aio);
        free(blk);
        return err;
    }
    *out = &blk->dev;
    return 0;
}
