/* transport_pci.h - a virtio device as a PCI function. Source: virtio 1.2 §4.1. */
#pragma once
#include "machine/msi.h"
#include "virtio/virtio.h"

struct virtio_pci;
/*
 * virtio_pci_add - put the device into a slot (function 0). The transport borrows dev: it must live until
 * virtio_pci_free(). 0, -EEXIST (slot taken), -ENOMEM.
 */
int virtio_pci_add(struct pci_host *host, unsigned slot, struct virtio_dev *dev, struct virtio_pci **out);
/* virtio_pci_free - after the last use of the bus. */
void virtio_pci_free(struct virtio_pci *vp);
/* virtio_pci_keep - what a snapshot carries of it, as parts of the machine (machine/state.h). 0 or -ENOMEM. */
struct machine;
int virtio_pci_keep(struct virtio_pci *vp, struct machine *m);
