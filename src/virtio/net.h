/* net.h - virtio network card. Source: virtio 1.2 §5.1. */
#pragma once
#include "virtio/virtio.h"

struct net_backend;
struct vm_clock;
struct virtio_net_options {
    u8 mac[6];
    unsigned queues; /* pairs, 1..VIRTIO_NET_PAIRS_MAX */
    bool packed;
    struct vm_clock *clock; /* NULL: the driver is told of each packet that was sent at once */
};
#define VIRTIO_NET_PAIRS_MAX 8u
/* virtio_net_create - takes the back end over, also on failure. 0 or -errno. */
int virtio_net_create(struct ram *ram, struct net_backend *be, const struct virtio_net_options *options,
                      struct virtio_dev **out);
