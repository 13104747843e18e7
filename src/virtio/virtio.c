/* virtio.c - status, features, queues: what all types and transports share. See virtio.h. */
#include "virtio/virtio.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define GENERAL_FEATURES (VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1)

/* Back to how it is before a driver looks at it. */
static void clear(struct virtio_dev *dev)
{
    dev->status = 0;
    dev->driver_features = 0;
    for (unsigned i = 0; i < dev->nr_queues; i++) {
        struct virtio_queue *q = &dev->queue[i];
        q->size = q->size_max;
        q->vector = VIRTIO_NO_VECTOR;
        q->enabled = false;
        q->desc = q->avail = q->used = 0;
        pthread_mutex_lock(&q->lock);
        q->vq.broken = true;
        pthread_mutex_unlock(&q->lock);
    }
}

int virtio_init(struct virtio_dev *dev, const struct virtio_class *class, struct ram *ram, u64 features,
                unsigned nr_queues, u16 size_max, void *config, unsigned config_len)
{
    bug_on(!nr_queues || nr_queues > VIRTIO_QUEUES_MAX || size_max > VQ_SIZE_MAX);
    dev->class = class;
    dev->ram = ram;
    dev->features = features | GENERAL_FEATURES;
    dev->config = config;
    dev->config_len = config_len;
    dev->nr_queues = nr_queues;
    dev->queue = calloc(nr_queues, sizeof(*dev->queue));
    if (!dev->queue)
        return -ENOMEM;
    pthread_mutex_init(&dev->lock, NULL);
    for (unsigned i = 0; i < nr_queues; i++) {
        struct virtio_queue *q = &dev->queue[i];
        q->dev = dev;
        q->index = i;
        q->size_max = size_max;
        pthread_mutex_init(&q->lock, NULL);
    }
    clear(dev);
    return 0;
}

static void stop(struct virtio_dev *dev)
{
    bool was = atomic_exchange(&dev->running, false);
    /* Whoever is in notify() finds nothing more to do; what completes from now on is not reported. */
    for (unsigned i = 0; i < dev->nr_queues; i++) {
        pthread_mutex_lock(&dev->queue[i].lock);
        dev->queue[i].vq.broken = true;
        pthread_mutex_unlock(&dev->queue[i].lock);
    }
    if ((was || (dev->status & VIRTIO_DRIVER_OK)) && dev->class->stop)
        dev->class->stop(dev);
}

void virtio_destroy(struct virtio_dev *dev)
{
    if (!dev)
        return;
    pthread_mutex_lock(&dev->lock);
    stop(dev);
    pthread_mutex_unlock(&dev->lock);
    if (dev->class->end)
        dev->class->end(dev);
    for (unsigned i = 0; i < dev->nr_queues; i++)
        pthread_mutex_destroy(&dev->queue[i].lock);
    pthread_mutex_destroy(&dev->lock);
    free(dev->queue);
    dev->class->fini(dev);
}

/* -- Towards the driver ----------------------------------------------------------------------- */

static void interrupt(struct virtio_dev *dev, struct virtio_queue *q)
{
    if (dev->transport)
        dev->transport->interrupt(dev->transport_dev, q);
}

void virtio_interrupt(struct virtio_queue *q)
{
    if (vq_need_interrupt(&q->vq))
        interrupt(q->dev, q);
}

void virtio_config_changed(struct virtio_dev *dev)
{
    atomic_fetch_add(&dev->generation, 1);
    if (atomic_load(&dev->running))
        interrupt(dev, NULL);
}

void virtio_broken(struct virtio_dev *dev)
{
    /* The status register shows NEEDS_RESET from now on: it is DRIVER_OK and not running. */
    if (atomic_exchange(&dev->running, false))
        interrupt(dev, NULL);
}

bool virtio_pop(struct virtio_queue *q, struct vq_chain *chain)
{
    int r = vq_pop(&q->vq, q->dev->ram, chain);
    if (r < 0)
        virtio_broken(q->dev);
    return r == 1;
}

bool virtio_idle(struct virtio_queue *q)
{
    vq_want_notify(&q->vq, true);
    return !vq_has_more(&q->vq);
}

/* -- From the driver -------------------------------------------------------------------------- */

void virtio_set_driver_features(struct virtio_dev *dev, unsigned word, u32 value)
{
    if (word > 1 || (dev->status & VIRTIO_FEATURES_OK))
        return;
    u64 mask = 0xffffffffull << word * 32;
    dev->driver_features = (dev->driver_features & ~mask) | (u64)value << word * 32;
}

void virtio_set_status(struct virtio_dev *dev, u8 status)
{
    u8 old = dev->status;
    if (!status) {
        stop(dev);
        clear(dev);
        return;
    }
    if ((status & VIRTIO_FEATURES_OK) && !(old & VIRTIO_FEATURES_OK) &&
        (dev->driver_features & ~dev->features || !virtio_has(dev, VIRTIO_F_VERSION_1)))
        status &= (u8)~VIRTIO_FEATURES_OK; /* §3.1.1 step 6: the driver will read it back */
    if (!(status & VIRTIO_FEATURES_OK))
        status &= (u8)~VIRTIO_DRIVER_OK;
    dev->status = (u8)(status & ~VIRTIO_NEEDS_RESET) | (old & VIRTIO_DRIVER_OK);
    if ((dev->status & VIRTIO_DRIVER_OK) && !(old & VIRTIO_DRIVER_OK)) {
        atomic_store(&dev->running, true);
        if (dev->class->start)
            dev->class->start(dev);
    }
}

void virtio_queue_enable(struct virtio_queue *q)
{
    struct virtio_dev *dev = q->dev;
    const struct vq_setup setup = {
        .size = q->size, .packed = virtio_has(dev, VIRTIO_F_RING_PACKED),
        .event_idx = virtio_has(dev, VIRTIO_F_EVENT_IDX), .indirect = virtio_has(dev, VIRTIO_F_INDIRECT_DESC),
        .desc = q->desc, .avail = q->avail, .used = q->used,
    };
    if (q->enabled || !(dev->status & VIRTIO_FEATURES_OK))
        return;
    pthread_mutex_lock(&q->lock);
    q->enabled = true;
    if (!vq_init(&q->vq, dev->ram, &setup))
        vq_want_notify(&q->vq, true);
    pthread_mutex_unlock(&q->lock);
}

/* What a driver may have done to a queue, from values that may be anybody's. */
static int queue_loaded(struct virtio_dev *dev, struct virtio_queue *q)
{
    const struct vq_setup setup = {
        .size = q->size, .packed = virtio_has(dev, VIRTIO_F_RING_PACKED),
        .event_idx = virtio_has(dev, VIRTIO_F_EVENT_IDX), .indirect = virtio_has(dev, VIRTIO_F_INDIRECT_DESC),
        .desc = q->desc, .avail = q->avail, .used = q->used,
    };
    const struct vq was = q->vq;

    if (!q->size || q->size > q->size_max)
        return -EINVAL;
    if (!q->enabled || vq_init(&q->vq, dev->ram, &setup)) {
        q->vq.broken = true;
        return 0;
    }
    if (setup.packed && (was.next_avail >= q->size || was.next_used >= q->size))
        return -EINVAL;
    q->vq.broken = was.broken;
    q->vq.next_avail = was.next_avail;
    q->vq.next_used = was.next_used;
    q->vq.avail_wrap = was.avail_wrap;
    q->vq.used_wrap = was.used_wrap;
    q->vq.signalled = was.signalled;
    q->vq.signalled_valid = was.signalled_valid;
    q->vq.signalled_wrap = was.signalled_wrap;
    return 0;
}

int virtio_loaded(struct virtio_dev *dev)
{
    int r = 0;

    pthread_mutex_lock(&dev->lock);
    if ((dev->status & VIRTIO_FEATURES_OK) &&
        (dev->driver_features & ~dev->features || !virtio_has(dev, VIRTIO_F_VERSION_1)))
        r = -EINVAL;
    if ((dev->status & VIRTIO_DRIVER_OK) && !(dev->status & VIRTIO_FEATURES_OK))
        r = -EINVAL;
    for (unsigned i = 0; i < dev->nr_queues && !r; i++) {
        pthread_mutex_lock(&dev->queue[i].lock);
        r = queue_loaded(dev, &dev->queue[i]);
        pthread_mutex_unlock(&dev->queue[i].lock);
    }
    void (*start)(struct virtio_dev *) = dev->class->restored ? dev->class->restored : dev->class->start;
    if (!r && atomic_load(&dev->running) && start)
        start(dev);
    pthread_mutex_unlock(&dev->lock);
    return r;
}

void virtio_notify(struct virtio_dev *dev, unsigned queue)
{
    if (queue < dev->nr_queues && atomic_load(&dev->running))
        dev->class->notify(&dev->queue[queue]);
}

/* -- Device-specific configuration ------------------------------------------------------------ */

u32 virtio_config_read(struct virtio_dev *dev, u64 off, unsigned size)
{
    u32 value = 0;
    if (off > dev->config_len || size > dev->config_len - off)
        return 0;
    if (dev->class->config_read)
        dev->class->config_read(dev, (unsigned)off, size, &value);
    else
        memcpy(&value, dev->config + off, size);
    return value;
}

void virtio_config_write(struct virtio_dev *dev, u64 off, unsigned size, u32 value)
{
    if (off <= dev->config_len && size <= dev->config_len - off && dev->class->config_write)
        dev->class->config_write(dev, (unsigned)off, size, &value);
}
