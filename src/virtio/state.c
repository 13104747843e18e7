/* state.c - what a snapshot carries of a virtio device behind any transport. See virtio.h. */
#include "machine/state.h"
#include "virtio/virtio.h"
#include <stdio.h>

static const struct state_field queue_fields[] = {
    STATE(struct virtio_queue, size), STATE(struct virtio_queue, vector), STATE(struct virtio_queue, enabled),
    STATE(struct virtio_queue, desc), STATE(struct virtio_queue, avail), STATE(struct virtio_queue, used),
    STATE(struct virtio_queue, vq.broken), STATE(struct virtio_queue, vq.next_avail),
    STATE(struct virtio_queue, vq.next_used), STATE(struct virtio_queue, vq.avail_wrap),
    STATE(struct virtio_queue, vq.used_wrap), STATE(struct virtio_queue, vq.signalled),
    STATE(struct virtio_queue, vq.signalled_valid), STATE(struct virtio_queue, vq.signalled_wrap), STATE_END
};
static const struct state_field dev_fields[] = {
    STATE(struct virtio_dev, status), STATE(struct virtio_dev, driver_features),
    STATE(struct virtio_dev, generation), STATE(struct virtio_dev, running), STATE_END
};

static const char *refuse(void *obj)
{
    struct virtio_dev *dev = obj;

    for (unsigned i = 0; i < dev->nr_queues; i++)
        if (dev->queue[i].vq.in_flight && !dev->queue[i].vq.broken)
            return "it has not finished what it was asked for";
    return NULL;
}

static void drain(void *obj)
{
    struct virtio_dev *dev = obj;

    if (dev->class->drain)
        dev->class->drain(dev);
}

static void resume(void *obj)
{
    struct virtio_dev *dev = obj;

    if (dev->class->resume)
        dev->class->resume(dev);
}

static int save(void *obj, struct state_buf *buf, const char **why)
{
    struct virtio_dev *dev = obj;

    return dev->class->save(dev, buf, why);
}

static int load(void *obj, const void *bytes, size_t len)
{
    struct virtio_dev *dev = obj;

    return dev->class->load(dev, bytes, len);
}

int virtio_keep(struct virtio_dev *dev, struct machine *m, const char *name)
{
    struct device_part part = { .state = dev_fields, .obj = dev, .quiesce = drain, .resume = resume, .refuse = refuse };

    snprintf(part.name, sizeof(part.name), "%s", name);
    int r = machine_add_part(m, &part);
    for (unsigned i = 0; i < dev->nr_queues && !r; i++) {
        part = (struct device_part){ .state = queue_fields, .obj = &dev->queue[i] };
        snprintf(part.name, sizeof(part.name), "%s.queue%u", name, i);
        r = machine_add_part(m, &part);
    }
    if (!r && dev->class->state) {
        part = (struct device_part){ .state = dev->class->state, .obj = dev };
        snprintf(part.name, sizeof(part.name), "%s.type", name);
        r = machine_add_part(m, &part);
    }
    if (!r && dev->class->save) {
        part = (struct device_part){ .obj = dev, .save = save, .load = load };
        snprintf(part.name, sizeof(part.name), "%s.more", name);
        r = machine_add_part(m, &part);
    }
    return r;
}
