/* devices.c - makes virtio devices from the options and puts them into PCI slots. See devices.h. */
#include "machine/chips/ahci.h"
#include "machine/chips/i82540em.h"
#include "machine/irq.h"
#include "machine/layout.h"
#include "machine/machine.h"
#include "machine/pci.h"
#include "monitor/config.h"
#include "monitor/vm_inner.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/console.h"
#include "virtio/net.h"
#include "virtio/p9.h"
#include "virtio/pmem.h"
#include "virtio/rng.h"
#include "virtio/transport_mmio.h"
#include "virtio/transport_pci.h"
#include "virtio/vsock.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_SLOT 3 /* those below are the board's */

/* Registers and an interrupt line of its own, outside PCI. */
static int plug_mmio(struct guest *vm, struct virtio_dev *dev)
{
    struct devices *d = &vm->devices;
    struct irq_line line;
    gpa_t gpa;
    int r = machine_virtio_mmio(vm->machine, &gpa, &line);

    if (!r)
        r = virtio_mmio_add(machine_bus(vm->machine), gpa, line, dev, &d->virtio[d->nr].mmio);
    if (r)
        return r;
    d->virtio[d->nr++].dev = dev;
    return virtio_mmio_keep(d->virtio[d->nr - 1].mmio, vm->machine);
}

/* Put a new device into the next free slot; on failure it is gone. */
static int plug(struct guest *vm, struct virtio_dev *dev, const char *what, enum transport transport)
{
    struct devices *d = &vm->devices;
    bool mmio = (transport ? transport : vm->config->transport) == TRANSPORT_MMIO;
    int r = d->nr == DEVICES_MAX ? -ENOSPC : mmio ? plug_mmio(vm, dev) : -EEXIST;
    if (!r)
        return 0;

    for (unsigned slot = FIRST_SLOT; slot < 32 && r == -EEXIST; slot++)
        r = virtio_pci_add(machine_pci(vm->machine), slot, dev, &d->virtio[d->nr].pci);
    if (r) {
        say("no room for %s: at most %u devices, and %u of them outside PCI", what, DEVICES_MAX, VIRTIO_MMIO_MAX);
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
    return plug(vm, dev, drive->path, drive->transport);
}

static int add_pmem(struct guest *vm, unsigned i)
{
    struct virtio_dev *dev;
    int r = virtio_pmem_create(&vm->view, vm->disk[i], vm->pmem[i].gpa, vm->pmem[i].size, &dev);

    if (r) {
        say("cannot make the memory for %s: %s", vm->config->drive[i].path, strerror(-r));
        return r;
    }
    return plug(vm, dev, vm->config->drive[i].path, vm->config->drive[i].transport);
}

int devices_net(const struct nic *nic, unsigned index, struct net_backend **be, u8 mac[6])
{
    static const u8 no_mac[6];
    const u8 ours[6] = { 0x52, 0x54, 0x00, 0x12, 0x34, (u8)(0x56 + index) };
    char err[NET_ERR_LEN];
    int r = nic->kind == NIC_TAP    ? net_tap_create(nic->ifname, be, err)
            : nic->kind == NIC_NULL ? net_null_create(be, err)
                                    : net_user_create(&nic->user, be, err);

    if (r)
        say("%s", err);
    memcpy(mac, memcmp(nic->mac, no_mac, 6) ? nic->mac : ours, 6);
    return r;
}

/* The next slot with nothing in it; 32: there is none. */
static unsigned free_slot(const struct pci_host *host)
{
    unsigned slot = FIRST_SLOT;
    while (slot < 32 && host->dev[PCI_DEVFN(slot, 0)])
        slot++;
    return slot;
}

/* One adapter for all disks with if=ahci. */
static int add_ahci(struct guest *vm)
{
    const struct config *c = vm->config;
    struct pci_host *host = machine_pci(vm->machine);
    struct disk *disk[AHCI_PORTS_MAX];
    const char *serial[AHCI_PORTS_MAX];
    unsigned nr = 0, slot = free_slot(host);

    for (unsigned i = 0; i < c->nr_drives; i++) {
        if (c->drive[i].bus != DRIVE_AHCI)
            continue;
        if (nr == AHCI_PORTS_MAX) {
            say("at most %u disks with if=ahci", AHCI_PORTS_MAX);
            return -ENOSPC;
        }
        serial[nr] = c->drive[i].serial[0] ? c->drive[i].serial : "VITRO";
        disk[nr++] = vm->disk[i];
    }
    if (!nr)
        return 0;
    int r = slot == 32 ? -ENOSPC : ahci_create(host, slot, &vm->view, disk, serial, nr, &vm->devices.ahci);
    if (r) {
        say("cannot make the AHCI adapter: %s", strerror(-r));
        return r;
    }
    return ahci_keep(vm->devices.ahci, vm->machine);
}

static int add_e1000(struct guest *vm, struct net_backend *be, const u8 mac[6])
{
    struct devices *d = &vm->devices;
    struct pci_host *host = machine_pci(vm->machine);
    unsigned slot = free_slot(host);

    if (slot == 32 || d->nr_e1000 == NICS_MAX) {
        be->ops->free(be);
        say("no room on the PCI bus for another network card");
        return -ENOSPC;
    }
    int r = i82540em_create(host, slot, &vm->view, be, mac, &d->e1000[d->nr_e1000]);
    if (r) {
        say("cannot make a network card: %s", strerror(-r));
        return r;
    }
    return i82540em_keep(d->e1000[d->nr_e1000++], vm->machine);
}

static int add_nic(struct guest *vm, const struct nic *nic, unsigned index)
{
    struct virtio_net_options options = { .queues = nic->queues, .packed = nic->packed, .clock = machine_clock(vm->machine) };
    struct net_backend *be;
    struct virtio_dev *dev;
    int r = devices_net(nic, index, &be, options.mac);

    if (r)
        return r;
    if (nic->e1000)
        return add_e1000(vm, be, options.mac);
    r = virtio_net_create(&vm->view, be, &options, &dev);
    if (r) {
        say("cannot make network card %u: %s", index, strerror(-r));
        return r;
    }
    return plug(vm, dev, "--net", nic->transport);
}

/* Plug what a creation function has made; r is its result, what names it in messages. */
static int made(struct guest *vm, int r, struct virtio_dev *dev, const char *what, const char *which)
{
    if (!r)
        return plug(vm, dev, what, TRANSPORT_AS_ALL);
    say("%s %s: %s%s", what, which, strerror(-r), r == -EADDRINUSE ? "; another process listens there" : "");
    return r;
}

static int add_vsock(struct guest *vm, const char *text)
{
    char path[256], key[32] = "", *end = key;
    const char *s = option_piece(text, path, sizeof(path));
    unsigned long cid = 3; /* 0 to 2 are taken (virtio 1.2 section 5.10.4) */
    struct virtio_dev *dev = NULL;

    if (s && *s)
        s = option_piece(s, key, sizeof(key));
    if (s && !strncmp(key, "cid=", 4))
        cid = strtoul(key + 4, &end, 10);
    if (!s || *s || *end || cid < 3 || cid > 0xfffffffe) {
        say("--vsock: '%s' is not understood; write --vsock PATH[,cid=N], N from 3 up", text);
        return -EINVAL;
    }
    int r = virtio_vsock_create(&vm->view, path, (u32)cid, &dev);
    return made(vm, r, dev, "--vsock", path);
}

static int add_others(struct guest *vm)
{
    const struct config *c = vm->config;
    struct virtio_dev *dev = NULL;
    int r = 0;

    if (c->rng)
        r = virtio_rng_create(&vm->view, &dev);
    if (c->rng)
        r = made(vm, r, dev, "--rng", "");
    if (c->balloon && !r) {
        r = virtio_balloon_create(&vm->view, &dev);
        r = made(vm, r, dev, "--balloon", "");
        vm->devices.balloon = r ? NULL : dev;
    }
    if (c->hvc && !r) {
        r = virtio_console_create(&vm->view, c->hvc, &dev);
        r = made(vm, r, dev, "--hvc", c->hvc);
    }
    if (c->vsock && !r)
        r = add_vsock(vm, c->vsock);
    for (unsigned i = 0; i < c->nr_shares && !r; i++) {
        r = virtio_p9_create(&vm->view, c->share[i].dir, c->share[i].tag, c->share[i].readonly, &dev);
        r = made(vm, r, dev, "--share", c->share[i].dir);
    }
    return r;
}

int devices_create(struct guest *vm)
{
    const struct config *c = vm->config;
    int r = 0;

    for (unsigned i = 0; i < c->nr_drives && !r; i++)
        if (c->drive[i].bus == DRIVE_VIRTIO)
            r = add_disk(vm, &c->drive[i], vm->disk[i]);
        else if (c->drive[i].bus == DRIVE_PMEM)
            r = add_pmem(vm, i);
    if (!r)
        r = add_ahci(vm);
    for (unsigned i = 0; i < c->nr_nics && !r; i++)
        if (!c->nic[i].vitro)
            r = add_nic(vm, &c->nic[i], i);
    if (!r)
        r = add_others(vm);
    if (!r)
        pci_assign_bars(machine_pci(vm->machine));
    return r;
}

void devices_destroy(struct devices *d)
{
    ahci_free(d->ahci);
    d->ahci = NULL;
    while (d->nr_e1000)
        i82540em_free(d->e1000[--d->nr_e1000]);
    while (d->nr--) {
        virtio_destroy(d->virtio[d->nr].dev);
        virtio_pci_free(d->virtio[d->nr].pci);
        virtio_mmio_free(d->virtio[d->nr].mmio);
    }
    d->nr = 0;
}
