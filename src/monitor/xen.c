/* xen.c - what is different when the guest is to run as a Xen PV guest: its memory is one piece, and it has no PC. */
#include "monitor/vm_inner.h"
#include "monitor/file.h"
#include "monitor/snapshot.h"
#include "paravirt/paravirt.h"
#include "paravirt/xen/xen.h"
#include "storage/disk.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
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

/* -- Devices: which there are, in options' words, so that a snapshot can say it ------------------------------------- */

const struct xen_plug *xen_plug(struct guest *vm, unsigned *i)
{
    while (*i < vm->nr_plugs && !xen_attached(paravirt_xen(vm->pv), vm->plug[*i].name))
        ++*i;
    return *i < vm->nr_plugs ? &vm->plug[(*i)++] : NULL;
}

void xen_plugs_free(struct guest *vm)
{
    while (vm->nr_plugs)
        free(vm->plug[--vm->nr_plugs].value);
    free(vm->plug);
    vm->plug = NULL;
}

/* A device is about to come: room for it. 0 or -ENOMEM. */
static int plug_room(struct guest *vm)
{
    struct xen_plug *more = realloc(vm->plug, (vm->nr_plugs + 1) * sizeof(*more));

    if (!more)
        return -ENOMEM;
    vm->plug = more;
    return 0;
}

/* It came. Another one that was called the same is gone. */
static void plug_add(struct guest *vm, const struct xen_plug *p)
{
    for (unsigned i = 0; i < vm->nr_plugs; i++)
        if (!strcmp(vm->plug[i].name, p->name)) {
            free(vm->plug[i].value);
            memmove(&vm->plug[i], &vm->plug[i + 1], (--vm->nr_plugs - i) * sizeof(*p));
        }
    vm->plug[vm->nr_plugs++] = *p;
}

struct saved_devices {
    u32 nr_attached;
    char name[DRIVES_MAX + NICS_MAX][16]; /* in the order of the options; "": no more */
};
static const struct state_field devices_fields[] = {
    STATE(struct saved_devices, nr_attached), STATE(struct saved_devices, name), STATE_END
};

int xen_save_devices(struct guest *vm, struct state_set *set)
{
    struct saved_devices s = { .nr_attached = vm->nr_attached };
    unsigned nr[2] = { 0 }, at = 0;

    for (const struct xen_plug *p; (p = xen_plug(vm, &at));) {
        bool net = !strcmp(p->option, "net");
        if (nr[net] == (net ? NICS_MAX : DRIVES_MAX))
            return -E2BIG;
        memcpy(s.name[nr[0] + nr[1]], p->name, sizeof(p->name));
        nr[net]++;
    }
    state_set_save(set, "xen.devices", devices_fields, &s);
    return 0;
}

/* What the i-th disk or network card of the options was called. False: the snapshot has no more. */
static bool saved_name(const struct saved_devices *s, bool net, unsigned i, char name[16])
{
    for (unsigned k = 0; k < ARRAY_SIZE(s->name) && s->name[k][0] && !s->name[k][15]; k++)
        if (!strncmp(s->name[k], net ? "vif" : "xvd", 3) && !i--) {
            memcpy(name, s->name[k], 16);
            return true;
        }
    return false;
}

/* The disk is the guest's then. @value: of the option. */
static int add_disk(struct guest *vm, const struct drive *drive, const char *value, struct disk **d, char name[16])
{
    struct xen_plug p = { .option = "disk", .drive = *drive, .value = strdup(value) };
    const struct xen_disk disk = { .disk = *d, .queues = drive->queues ? drive->queues : 1, .threads = drive->threads,
                                   .persistent = drive->persistent };
    int r = p.value ? plug_room(vm) : -ENOMEM;

    if (!r)
        r = xen_disk_attach(paravirt_xen(vm->pv), &disk, name);
    if (r) {
        say("cannot make the disk for %s: %s", drive->path, strerror(-r));
        free(p.value);
        return r;
    }
    *d = NULL;
    memcpy(p.name, name, sizeof(p.name));
    plug_add(vm, &p);
    return 0;
}

static int add_nic(struct guest *vm, const struct nic *nic, const char *value, unsigned i, char name[16])
{
    struct xen_plug p = { .option = "net" };
    struct net_backend *be;
    u8 m[6];
    int r = devices_net(nic, i, &be, m);

    if (r)
        return r;
    /* The address depends on which one it was; of two, the last counts. */
    if (plug_room(vm) || asprintf(&p.value, "%s,mac=%02x:%02x:%02x:%02x:%02x:%02x", value, m[0], m[1], m[2], m[3], m[4], m[5]) < 0) {
        be->ops->free(be);
        return -ENOMEM;
    }
    r = xen_net_attach(paravirt_xen(vm->pv), be, m, nic->queues, name);
    if (r) {
        say("cannot make network card %u: %s", i, strerror(-r));
        free(p.value);
        return r;
    }
    memcpy(p.name, name, sizeof(p.name));
    plug_add(vm, &p);
    return 0;
}

/* The value of the i-th option of that name. */
static const char *given(const struct config *c, const char *option, unsigned i)
{
    for (unsigned k = 0; k < c->nr_given; k++)
        if (!strcmp(c->given[k].name, option) && !i--)
            return c->given[k].value;
    return "";
}

int xen_devices(struct guest *vm)
{
    const struct config *c = vm->config;
    struct saved_devices s = { 0 };
    char err[SNAPSHOT_ERR_LEN] = "it has other devices than the options say";
    int r = c->saved ? state_set_load(&c->saved->set, "xen.devices", devices_fields, &s, err, sizeof(err)) : 0;

    vm->nr_attached = s.nr_attached;
    for (unsigned i = 0; i < c->nr_nics + c->nr_drives && !r; i++) {
        bool net = i < c->nr_nics;
        unsigned k = net ? i : i - c->nr_nics;
        char name[16] = "";
        if (c->saved && !saved_name(&s, net, k, name))
            r = -EINVAL;
        else if (net)
            r = add_nic(vm, &c->nic[k], given(c, "net", k), k, name);
        else
            r = add_disk(vm, &c->drive[k], given(c, "disk", k), &vm->disk[k], name);
    }
    if (r && c->saved)
        say("--restore: %s does not fit: %s", c->saved->path, err);
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

    name[0] = 0;
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
        r = add_disk(vm, &drive, disk, &d, name);
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
        r = add_nic(vm, &nic, net, vm->nr_attached + NICS_MAX, name);
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
