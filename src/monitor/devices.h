/* devices.h - what is plugged into the board's PCI bus because the user asked for it. */
#pragma once
#include "base/types.h"

struct guest;
struct net_backend;
struct nic;
struct virtio_dev;
struct virtio_pci;
struct i82540em;
struct ahci;
struct virtio_mmio;

#define DEVICES_MAX 28

struct devices {
    struct { struct virtio_dev *dev; struct virtio_pci *pci; struct virtio_mmio *mmio; } virtio[DEVICES_MAX];
    unsigned nr, nr_e1000;
    struct i82540em *e1000[8];
    struct ahci *ahci; /* NULL: none */
    struct virtio_dev *balloon; /* NULL: none */
};

/* devices_create - after the engine, before the guest is loaded. 0, or -errno with the reason said. */
int devices_create(struct guest *vm);
/* devices_net - what is behind a network card, and its address. 0, or -errno with the reason said. */
int devices_net(const struct nic *nic, unsigned index, struct net_backend **be, u8 mac[6]);
/* devices_destroy - no vCPU runs any more; before the board goes. Waits for what is under way. */
void devices_destroy(struct devices *d);
