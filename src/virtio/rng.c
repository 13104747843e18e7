/* rng.c - virtio entropy device: getrandom(2), on the vCPU's thread. Source: virtio 1.2 §5.4. */
#include "virtio/rng.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#define QUEUE_SIZE 64
#define BYTES_MAX 4096u /* a request; the driver asks again */

struct virtio_rng {
    struct virtio_dev dev;
    struct vq_chain chain; /* under the queue's lock */
};

static void rng_notify(struct virtio_queue *q)
{
    struct virtio_rng *rng = container_of(q->dev, struct virtio_rng, dev);
    struct vq_chain *c = &rng->chain;
    u8 bytes[BYTES_MAX];

    pthread_mutex_lock(&q->lock);
    while (virtio_pop(q, c) || (!virtio_idle(q) && virtio_pop(q, c))) {
        ssize_t n = getrandom(bytes, (size_t)MIN(c->in_len, (u64)BYTES_MAX), 0);
        u64 done = n > 0 ? vq_copy_in(c, 0, bytes, (u64)n) : 0;
        vq_written(q->dev->ram, c, done);
        vq_push(&q->vq, c->id, c->nr_desc, (u32)done);
    }
    virtio_interrupt(q);
    pthread_mutex_unlock(&q->lock);
}

static void rng_fini(struct virtio_dev *dev)
{
    free(container_of(dev, struct virtio_rng, dev));
}

static const struct virtio_class rng_class = {
    .name = "virtio-rng", .id = 4, .pci_class = 0x00ff00, .notify = rng_notify, .fini = rng_fini,
};

int virtio_rng_create(struct ram *ram, struct virtio_dev **out)
{
    struct virtio_rng *rng = calloc(1, sizeof(*rng));
    int err = rng ? virtio_init(&rng->dev, &rng_class, ram, 0, 1, QUEUE_SIZE, NULL, 0) : -ENOMEM;
    if (err) {
        free(rng);
        return err;
    }
    *out = &rng->dev;
    return 0;
}
