/* rng.h - virtio entropy device. Source: virtio 1.2 §5.4. */
#pragma once
#include "virtio/virtio.h"
/* virtio_rng_create - random bytes of the host's. 0 or -errno. */
int virtio_rng_create(struct ram *ram, struct virtio_dev **out);
