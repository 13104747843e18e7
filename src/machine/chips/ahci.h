/* ahci.h - AHCI host bus adapter (as in Intel's ICH9) with SATA disks, for guests without virtio. */
#pragma once
#include "base/types.h"

#define AHCI_PORTS_MAX 6u

struct ram;
struct pci_host;
struct disk;
struct ahci;
/*
 * ahci_create - an adapter in a PCI slot (function 0), with one port for each disk. The disks must live longer. serial: at
 * most 20 characters each. 0, -EEXIST (slot taken), -ENOMEM.
 */
int ahci_create(struct pci_host *host, unsigned slot, struct ram *ram, struct disk *const disk[],
                const char *const serial[], unsigned nr, struct ahci **out);
/* ahci_keep - have snapshots carry it. 0 or -ENOMEM. */
struct machine;
int ahci_keep(struct ahci *a, struct machine *m);
/* ahci_free - no vCPU runs any more; waits for what is under way. NULL is allowed. */
void ahci_free(struct ahci *a);
