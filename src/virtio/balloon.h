/* balloon.h - virtio memory balloon. Source: virtio 1.2 §5.5. */
#pragma once
#include "virtio/virtio.h"
/* virtio_balloon_create - pages that the guest gives up, or reports free, go back to the host. 0 or -errno. */
int virtio_balloon_create(struct ram *ram, struct virtio_dev **out);
/* virtio_balloon_set - ask the guest to give up that many pages of 4 KiB in all. Any thread. */
void virtio_balloon_set(struct virtio_dev *dev, u32 pages);
/* virtio_balloon_actual - how many it has given up. Any thread. */
u32 virtio_balloon_actual(struct virtio_dev *dev);
