/*
 * virtio.h - a virtio device between its transport (PCI or MMIO registers) and its type (block, network, ...).
 * Source: virtio 1.2 §2 (basic facilities), §3 (initialization). Only "modern" drivers (VIRTIO_F_VERSION_1).
 *
 * Threads: the transport calls on vCPU threads, several at once; a type's back end pushes buffers and interrupts
 * from threads of its own. Locks, outermost first: dev->lock (status, features, what the transport stores), then
 * q->lock (one ring and what the type does with it). A type never takes dev->lock.
 */
#pragma once
#include "base/types.h"
#include "virtio/queue.h"
#include <pthread.h>
#include <stdatomic.h>

#define VIRTIO_QUEUES_MAX 64u
#define VIRTIO_NO_VECTOR 0xffffu

/* Feature bits of every type, §6 */
#define VIRTIO_F_INDIRECT_DESC BITULL(28)
#define VIRTIO_F_EVENT_IDX BITULL(29)
#define VIRTIO_F_VERSION_1 BITULL(32)
#define VIRTIO_F_RING_PACKED BITULL(34)

/* Status bits, §2.1 */
#define VIRTIO_ACKNOWLEDGE 1u
#define VIRTIO_DRIVER 2u
#define VIRTIO_DRIVER_OK 4u
#define VIRTIO_FEATURES_OK 8u
#define VIRTIO_NEEDS_RESET 64u
#define VIRTIO_FAILED 128u

struct virtio_dev;
struct machine;
struct state_buf;
struct state_field;

struct virtio_queue {
    struct virtio_dev *dev;
    unsigned index;
    /* Under dev->lock: what the driver asked for. */
    u16 size, size_max, vector;
    bool enabled;
    u64 desc, avail, used;

    pthread_mutex_t lock;
    struct vq vq; /* under lock; broken while the device is not running */
};

/* What a type is. All members but name, id and notify may be NULL. */
struct virtio_class {
    const char *name;
    u16 id;           /* §5 */
    u32 pci_class;    /* class code */
    /* The driver has buffers in this queue; vCPU thread, no lock held. */
    void (*notify)(struct virtio_queue *q);
    /* The driver has finished initialization; with dev->lock held. */
    void (*start)(struct virtio_dev *dev);
    /* Stop: after return nothing touches guest memory, until start. With dev->lock held. */
    void (*stop)(struct virtio_dev *dev);
    /* §2.5: offsets and sizes are within config_len, size 1, 2 or 4. NULL read: from dev->config. */
    void (*config_read)(struct virtio_dev *dev, unsigned off, unsigned size, void *value);
    void (*config_write)(struct virtio_dev *dev, unsigned off, unsigned size, const void *value);
    void (*end)(struct virtio_dev *dev);  /* for good: its threads use the queues no more */
    void (*fini)(struct virtio_dev *dev); /* frees it; stopped and ended before */
    /* While no vCPU runs: after drain() nothing that was begun is under way and nothing touches guest memory, until
     * resume(). A snapshot carries struct virtio_dev, its queues, the fields of `state` (of the type's struct, which begins
     * with its virtio_dev), and what save() appends, as device_part.save. restored(): a driver goes on that came out of a
     * snapshot; in the place of start(), with dev->lock held. */
    const struct state_field *state;
    void (*drain)(struct virtio_dev *dev);
    void (*resume)(struct virtio_dev *dev);
    int (*save)(struct virtio_dev *dev, struct state_buf *buf, const char **why);
    int (*load)(struct virtio_dev *dev, const void *bytes, size_t len);
    void (*restored)(struct virtio_dev *dev); /* NULL: start() */
};

/* How a device reaches its driver. Any thread; q NULL: the configuration has changed. */
struct virtio_transport {
    void (*interrupt)(void *transport, struct virtio_queue *q);
};

struct virtio_dev {
    const struct virtio_class *class;
    struct ram *ram;
    u64 features;           /* offered */
    u8 *config;             /* device-specific configuration, config_len bytes */
    unsigned config_len;
    unsigned nr_queues;
    struct virtio_queue *queue;

    pthread_mutex_t lock;   /* what follows */
    u8 status;
    u64 driver_features;
    atomic_uint generation; /* of the configuration, §2.5.1 */
    atomic_bool running;    /* DRIVER_OK, and neither reset nor broken */

    const struct virtio_transport *transport;
    void *transport_dev;
};

/* virtio_init - for a type's creation function: class, offered features besides the general ones, queues of size_max.
 * 0 or -ENOMEM. */
int virtio_init(struct virtio_dev *dev, const struct virtio_class *class, struct ram *ram, u64 features,
                unsigned nr_queues, u16 size_max, void *config, unsigned config_len);
/* virtio_fini - stop, and free with the type's fini. */
void virtio_destroy(struct virtio_dev *dev);
/* virtio_loaded - after the fields of dev and its queues were read from a snapshot: judge them, run on. 0 or -EINVAL. */
int virtio_loaded(struct virtio_dev *dev);
/* virtio_keep - have snapshots carry it, in sections whose names begin with `name` (up to 15 characters). For transports, which
 * add a section of their own whose `loaded` calls virtio_loaded(). 0 or -ENOMEM. */
int virtio_keep(struct virtio_dev *dev, struct machine *m, const char *name);
/* virtio_has - did the driver accept a feature? Stable while running. */
static inline bool virtio_has(const struct virtio_dev *dev, u64 feature)
{
    return dev->driver_features & feature;
}

/* -- For types -------------------------------------------------------------------------------- */

/* virtio_interrupt - if the driver wants to know of what was pushed. With q->lock held. */
void virtio_interrupt(struct virtio_queue *q);
/* virtio_config_changed - bump the generation, tell the driver. Any thread. */
void virtio_config_changed(struct virtio_dev *dev);
/* virtio_broken - the driver broke the rules: §2.1.2, it must reset. With q->lock held or none. */
void virtio_broken(struct virtio_dev *dev);
/* virtio_pop - vq_pop(), and virtio_broken() if need be: 1, or 0. With q->lock held. */
bool virtio_pop(struct virtio_queue *q, struct vq_chain *chain);

/* virtio_idle - nothing more to take now: have the driver notify us from here on. False: look again, something came in
 * between. With q->lock held. */
bool virtio_idle(struct virtio_queue *q);

/* -- For transports, on vCPU threads ---------------------------------------------------------- */

void virtio_set_driver_features(struct virtio_dev *dev, unsigned word, u32 value); /* lock held */
void virtio_set_status(struct virtio_dev *dev, u8 status); /* lock held; 0 resets */
/* virtio_queue_enable - lock held. */
void virtio_queue_enable(struct virtio_queue *q);
void virtio_notify(struct virtio_dev *dev, unsigned queue); /* lock not held */
u32 virtio_config_read(struct virtio_dev *dev, u64 off, unsigned size);
void virtio_config_write(struct virtio_dev *dev, u64 off, unsigned size, u32 value);
