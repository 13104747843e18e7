/* xen.c - what is different when the guest is to run as a Xen PV guest: its memory is one piece, and it has no PC. */
#include "monitor/vm_inner.h"
#include "monitor/file.h"
#include "paravirt/paravirt.h"
#include "paravirt/xen/xen.h"
#include "storage/disk.h"
#include <errno.h>
#include <string.h>

#define LOW (1ull << 20)

bool xen_wanted(const struct config *c)
{
    return c->pv & PV_BIT(PV_XEN);
}

/* Two slots of one piece, as the walker expects most memory in the second. */
int xen_lay_out_ram(struct guest *vm)
{
    u8 *host = vm->ram.host;
    int r = ram_add_slot(&vm->view, 0, LOW, host, false);

    return r || vm->config->mem == LOW ? r : ram_add_slot(&vm->view, LOW, vm->config->mem - LOW, host + LOW, false);
}

void xen_ops(struct guest *vm, struct vitro_ops *ops)
{
    *ops = (struct vitro_ops){ .opaque = paravirt_xen(vm->pv), .mmio_read = xen_mmio_read, .mmio_write = xen_mmio_write };
}

int xen_add_memory(struct guest *vm)
{
    struct xen_memory m[2];
    int r = 0;

    xen_own_memory(paravirt_xen(vm->pv), m);
    for (unsigned i = 0; i < ARRAY_SIZE(m) && !r; i++)
        r = vitro_vm_add_memory(vm->vm, m[i].gpa, m[i].size, m[i].host, m[i].readonly ? VITRO_MEM_READONLY : 0);
    return r;
}

int xen_load_guest(struct guest *vm)
{
    const struct config *c = vm->config;
    const struct boot_e820 e820 = { 0, c->mem, BOOT_E820_RAM };
    struct file kernel, initrd = { 0 };
    char err[BOOT_ERR_LEN] = "";
    struct boot_xen k;

    int r = file_map(&kernel, "kernel", c->kernel);
    if (!r && c->initrd)
        r = file_map(&initrd, "initrd", c->initrd);
    if (r)
        goto out;
    const struct boot_input in = { .kernel_name = c->kernel, .kernel = kernel.data, .kernel_size = kernel.size,
                                   .e820 = &e820, .nr_e820 = 1 };
    r = xenimage_load(&vm->view, &in, &k, err);
    if (!r) {
        const struct xen_guest g = {
            .entry = k.entry, .virt_base = k.virt_base, .hypercall_page = k.hypercall_page, .p2m_base = k.p2m_base,
            .lo = k.lo, .hi = k.hi, .has_p2m_base = k.has_p2m_base, .mod_start_pfn = k.mod_start_pfn,
            .initrd = initrd.data, .initrd_size = initrd.size, .cmdline = c->cmdline,
        };
        char why[XEN_ERR_LEN] = "";
        r = xen_build(paravirt_xen(vm->pv), &g, why);
        if (r)
            snprintf(err, sizeof(err), "%s: %s", c->kernel, why);
    }
    if (r)
        say("%s", err);
out:
    file_unmap(&kernel);
    file_unmap(&initrd);
    return r;
}

static const char *refuses_drive(const struct drive *d)
{
    return d->kind != DRIVE_DISK || (d->bus_given && d->bus != DRIVE_VIRTIO) || d->packed || d->transport ?
           "--pv xen: a Xen PV guest has Xen's disks only: --disk FILE, without another if= and without virtio's own keys" : NULL;
}

static const char *refuses_nic(const struct nic *n)
{
    return n->vitro || n->e1000 || n->packed || n->transport ?
           "--pv xen: a Xen PV guest has Xen's network cards only: --net without another if= and without virtio's own keys" : NULL;
}

/* The disk is the guest's then. */
static int add_disk(struct guest *vm, const struct drive *drive, struct disk **d, char name[16])
{
    const struct xen_disk disk = { .disk = *d, .queues = drive->queues ? drive->queues : 1, .threads = drive->threads,
                                   .persistent = drive->persistent };
    int r = xen_disk_attach(paravirt_xen(vm->pv), &disk, name);

    if (r)
        say("cannot make the disk for %s: %s", drive->path, strerror(-r));
    else
        *d = NULL;
    return r;
}

static int add_nic(struct guest *vm, const struct nic *nic, unsigned i, char name[16])
{
    struct net_backend *be;
    u8 mac[6];
    int r = devices_net(nic, i, &be, mac);

    if (r)
        return r;
    r = xen_net_attach(paravirt_xen(vm->pv), be, mac, nic->queues, name);
    if (r)
        say("cannot make network card %u: %s", i, strerror(-r));
    return r;
}

int xen_devices(struct guest *vm)
{
    const struct config *c = vm->config;
    char name[16];
    int r = 0;

    for (unsigned i = 0; i < c->nr_nics && !r; i++)
        r = add_nic(vm, &c->nic[i], i, name);
    for (unsigned i = 0; i < c->nr_drives && !r; i++)
        r = add_disk(vm, &c->drive[i], &vm->disk[i], name);
    return r;
}

/* Of a guest that has one already: its threads may make such a card's system calls (thread_kinds()). */
static bool has_net(const struct config *c, enum nic_kind kind)
{
    for (unsigned i = 0; i < c->nr_nics; i++)
        if (c->nic[i].kind == kind)
            return true;
    return false;
}

int xen_attach_device(struct guest *vm, const char *disk, const char *net, char name[16], char *err)
{
    struct drive drive;
    struct nic nic;
    struct disk *d = NULL;
    int r;

    if (disk) {
        r = drive_parse(&drive, DRIVE_DISK, "disk", disk);
        const char *wrong = r >= 0 ? "it is not understood; the VM's own output says why" : refuses_drive(&drive);
        if (wrong) {
            snprintf(err, DISK_ERR_LEN, "%s", wrong);
            return -EINVAL;
        }
        const struct disk_options o = { .format = drive.format[0] ? drive.format : NULL, .readonly = drive.readonly,
                                        .snapshot = (drive.snapshot || vm->config->snapshot) && !drive.readonly };
        r = disk_open(drive.path, &o, &d, err);
        if (r)
            return r;
        r = add_disk(vm, &drive, &d, name);
        disk_close(d);
    } else {
        r = nic_parse(&nic, "net", net);
        const char *wrong = r >= 0 ? "it is not understood; the VM's own output says why" : refuses_nic(&nic) ? refuses_nic(&nic) :
                            has_net(vm->config, nic.kind) ? NULL :
                            "a VM that is to be given such a network card must have been started with one: its sandbox allows no other";
        if (wrong) {
            snprintf(err, DISK_ERR_LEN, "%s", wrong);
            return -EINVAL;
        }
        r = add_nic(vm, &nic, vm->nr_attached + NICS_MAX, name);
        vm->nr_attached++; /* addresses are not used again */
    }
    if (r)
        snprintf(err, DISK_ERR_LEN, "it cannot be attached: %s; the VM's own output says more", strerror(-r));
    return r;
}

const char *xen_ask(struct guest *vm, const char *what)
{
    int r = xen_ask_shutdown(paravirt_xen(vm->pv), what);

    return !r || r == -EBUSY /* it has been asked */ ? NULL :
           r == -ENOTCONN ? "the guest does not listen yet, or never will: it has no watch on control/shutdown" : strerror(-r);
}

const char *xen_refuses(const struct config *c)
{
    if (c->pv != PV_BIT(PV_XEN))
        return "--pv xen is the whole interface: it cannot be had with others, or without parts";
    for (unsigned i = 0; i < c->nr_drives; i++)
        if (refuses_drive(&c->drive[i]))
            return refuses_drive(&c->drive[i]);
    for (unsigned i = 0; i < c->nr_nics; i++)
        if (refuses_nic(&c->nic[i]))
            return refuses_nic(&c->nic[i]);
    if (c->rng || c->balloon || c->hvc || c->vsock || c->nr_shares || c->transport)
        return "--pv xen: a Xen PV guest has no virtio devices: leave --rng, --balloon, --hvc, --vsock, --share and --virtio out";
    if (c->firmware || c->screen == SCREEN_ON || c->vnc || c->nr_modules)
        return "--pv xen: a Xen PV guest has no firmware, screen or modules; it boots with --kernel and --initrd";
    return NULL;
}
