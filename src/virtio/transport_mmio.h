/* transport_mmio.h - a virtio device behind a page of registers and an interrupt line. Source: virtio 1.2 §4.2. */
#pragma once
#include "machine/bus.h"
#include "machine/irq.h"
#include "virtio/virtio.h"

#define VIRTIO_MMIO_SIZE 0x1000u

struct virtio_mmio;
/* virtio_mmio_add - registers at gpa, before vCPUs run; line is level-triggered. Borrows dev. 0 or -ENOMEM. */
int virtio_mmio_add(struct bus *bus, gpa_t gpa, struct irq_line line, struct virtio_dev *dev, struct virtio_mmio **out);
/* virtio_mmio_keep - tell the machine that a snapshot cannot carry it. 0 or -ENOMEM. */
struct machine;
int virtio_mmio_keep(struct virtio_mmio *vm, struct machine *m);
void virtio_mmio_free(struct virtio_mmio *vm);
