/* blk.h - virtio block device. Source: virtio 1.2 §5.2. */
#pragma once
#include "virtio/virtio.h"

struct disk;
struct blk_options {
    unsigned queues;    /* 1..VIRTIO_BLK_QUEUES_MAX */
    bool packed;        /* offer packed rings */
    bool threads;       /* no io_uring */
    const char *serial; /* at most 20 bytes; NULL: none */
};
#define VIRTIO_BLK_QUEUES_MAX 16u
/* virtio_blk_create - a device for the disk, which must live longer. 0 or -errno. */
int virtio_blk_create(struct ram *ram, struct disk *disk, const struct blk_options *options, struct virtio_dev **out);
