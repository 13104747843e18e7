/* devices.c - makes virtio devices from the options and puts them into PCI slots. See devices.h. */
#include "machine/machine.h"
#include "machine/pci.h"
#include "monitor/config.h"
#include "monitor/vm_inner.h"
#include "virtio/blk.h"
#include "virtio/net.h"
#include "virtio/transport_pci.h"
#include <errno.h>
#include <string.h>

#define FIRST_SLOT 3 /* those below are the board's */

/* Put a new device into the next free slot; on failure it is gone. */
static int plug(struct guest *vm, struct virtio_dev *dev, const char *what)
{
    struct devices *d = &vm->devices;
    int r = d->nr == DEVICES_MAX ? -ENOSPC : -EEXIST;

    for (unsigned slot = FIRST_SLOT; slot < 32 && r == -EEXIST; slot++)
        r = virtio_pci_add(machine_pci(vm->machine), slot, dev, &d->virtio[d->nr].pci);
    if (r) {
        say("no room on the PCI bus for %s: at most %u devices", what, DEVICES_MAX);
        virtio_destroy(dev);
        return r;
    }
    d->virtio[d->nr++].dev = dev;
    return virtio_pci_keep(d->virtio[d->nr - 1].pci, vm->machine);
}

static int add_disk(struct guest *vm, const struct drive *drive, struct disk *disk)
{
    const struct blk_options options = {
        .queues = drive->queues ? drive->queues : 1, .packed = drive->packed, .threads = drive->threads,
        .serial = drive->serial,
    };
    struct virtio_dev *dev;
    int r = virtio_blk_create(&vm->view, disk, &options, &dev);

    if (r) {
        say("cannot make the disk for %s: %s", drive->path, strerror(-r));
        return r;
    }
    return plug(vm, dev, drive->path);
}

int devices_net(const struct nic *nic, unsigned index, struct net_backend **be, u8 mac[6])
{
    static const u8 no_mac[6];
    const u8 ours[6] = { 0x52, 0x54, 0x00, 0x12, 0x34, (u8)(0x56 + index) };
    char err[NET_ERR_LEN];
    int r = nic->kind == NIC_TAP ? net_tap_create(nic->ifname, be, err) : net_user_create(&nic->user, be, err);

    if (r)
        say("%s", err);
    memcpy(mac, memcmp(nic->mac, no_mac, 6) ? nic->mac : ours, 6);
    return r;
}

static int add_nic(struct guest *vm, const struct nic *nic, unsigned index)
{
    struct virtio_net_options options = { .queues = nic->queues, .packed = nic->packed };
    struct net_backend *be;
    struct virtio_dev *dev;
    int r = devices_net(nic, index, &be, options.mac);

    if (r)
        return r;
    r = virtio_net_create(&vm->view, be, &options, &dev);
    if (r) {
        say("cannot make network card %u: %s", index, strerror(-r));
        return r;
    }
    return plug(vm, dev, "--net");
}

int devices_create(struct guest *vm)
{
    const struct config *c = vm->config;
    int r = 0;

    for (unsigned i = 0; i < c->nr_drives && !r; i++)
        if (c->drive[i].bus == DRIVE_VIRTIO)
            r = add_disk(vm, &c->drive[i], vm->disk[i]);
    for (unsigned i = 0; i < c->nr_nics && !r; i++)
        if (!c->nic[i].vitro)
            r = add_nic(vm, &c->nic[i], i);
    if (!r)
        pci_assign_bars(machine_pci(vm->machine));
    return r;
}

void devices_destroy(struct devices *d)
{
    while (d->nr--) {
        virtio_destroy(d->virtio[d->nr].dev);
        virtio_pci_free(d->virtio[d->nr].pci);
    }
    d->nr = 0;
}
