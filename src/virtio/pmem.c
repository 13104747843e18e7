/*
 * pmem.c - virtio persistent memory. Source: virtio 1.2 §5.19. Reads and writes are the guest's own loads and stores, to pages of
 * the host's page cache; only flushes come here. Not offered: a region in a BAR (VIRTIO_PMEM_F_SHMEM_REGION).
 *
 * Threads: notify() on vCPU threads; a flush is done, and reported, on a thread of the disk's (aio.h): what the guest stored is in
 * the page cache, which fdatasync(2) writes out.
 */
#include "virtio/pmem.h"
#include "storage/aio.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE 64
#define REQ_FLUSH 0u
#define ID_PMEM 27

struct pmem_req {
    struct disk_req disk;
    struct virtio_queue *q;
    struct vq_chain chain;
};

struct virtio_pmem {
    struct virtio_dev dev;
    struct { u64 start, size; } config; /* §5.19.4 */
    struct disk *disk;
    struct disk_aio *aio;
};

static struct virtio_pmem *pmem_of(const struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_pmem, dev);
}

/* With q->lock held; §5.19.6: 0 is success. Frees the request. */
static void complete(struct pmem_req *req, bool failed)
{
    struct virtio_queue *q = req->q;
    const u32 result = failed ? ~0u : 0;
    u64 n = vq_copy_in(&req->chain, 0, &result, sizeof(result));

    vq_written(q->dev->ram, &req->chain, n);
    vq_push(&q->vq, req->chain.id, req->chain.nr_desc, (u32)n);
    free(req);
}

static void pmem_done(struct disk_req *disk, int result)
{
    struct pmem_req *req = container_of(disk, struct pmem_req, disk);
    struct virtio_queue *q = req->q;

    pthread_mutex_lock(&q->lock);
    complete(req, result);
    virtio_interrupt(q);
    pthread_mutex_unlock(&q->lock);
}

static void pmem_notify(struct virtio_queue *q)
{
    pthread_mutex_lock(&q->lock);
    do {
        vq_want_notify(&q->vq, false);
        for (;;) {
            struct pmem_req *req = malloc(sizeof(*req));
            u32 type = ~0u;
            if (!req || !virtio_pop(q, &req->chain)) {
                free(req);
                break;
            }
            req->q = q;
            req->disk = (struct disk_req){ .op = DISK_FLUSH, .done = pmem_done };
            vq_copy_out(&req->chain, 0, &type, sizeof(type));
            if (type == REQ_FLUSH)
                disk_aio_submit(pmem_of(q->dev)->aio, &req->disk);
            else
                complete(req, true);
        }
    } while (!virtio_idle(q));
    virtio_interrupt(q);
    pthread_mutex_unlock(&q->lock);
}

static void pmem_stop(struct virtio_dev *dev)
{
    disk_aio_drain(pmem_of(dev)->aio);
}

/* Once its pages are clean, the next store to the file changes its time: a snapshot is refused if the file changed since. */
static void pmem_drain(struct virtio_dev *dev)
{
    pmem_stop(dev);
    disk_flush(pmem_of(dev)->disk);
}

static void pmem_fini(struct virtio_dev *dev)
{
    disk_aio_destroy(pmem_of(dev)->aio);
    free(pmem_of(dev));
}

static const struct virtio_class pmem_class = {
    .name = "virtio-pmem", .id = ID_PMEM, .pci_class = 0x058000, .notify = pmem_notify, .stop = pmem_stop,
    .drain = pmem_drain, .fini = pmem_fini,
};

int virtio_pmem_create(struct ram *ram, struct disk *disk, gpa_t gpa, u64 size, struct virtio_dev **out)
{
    struct virtio_pmem *p = calloc(1, sizeof(*p));

    if (!p)
        return -ENOMEM;
    p->disk = disk;
    p->config.start = gpa;
    p->config.size = size;
    int err = disk_aio_create(disk, false, &p->aio);
    if (!err)
        err = virtio_init(&p->dev, &pmem_class, ram, 0, 1, QUEUE_SIZE, &p->config, sizeof(p->config));
    if (err) {
        disk_aio_destroy(p->aio);
        free(p);
        return err;
    }
    *out = &p->dev;
    return 0;
}
