/* pmem.h - virtio persistent memory: a file that the guest has in its address space. */
#pragma once
#include "virtio/virtio.h"

struct disk;

/* virtio_pmem_create - announces [gpa, gpa + size) to the driver, where the caller has mapped the disk's file into guest memory;
 * its flushes are the disk's. 0 or -errno. */
int virtio_pmem_create(struct ram *ram, struct disk *disk, gpa_t gpa, u64 size, struct virtio_dev **out);
