/*
 * pci.c - host bridge. Source: PCI Local Bus 3.0 §3.2.2.3.2 (configuration mechanism #1), §6.1
 * (header), §6.2.5 (BARs); PCI Express base 3.0 §7.2.2 (ECAM); identity of Intel 82441FX (440FX).
 * Not modelled: bridges and buses other than 0, expansion ROMs, extended configuration space
 * (reads as all ones), master abort bits, hot plug.
 * Threads: configuration on vCPU threads under host->lock; decoding takes no lock.
 */
#include "machine/pci.h"
#include "machine/layout.h"
#include "base/state.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static u32 get(const struct pci_dev *dev, unsigned off, unsigned size)
{
    u32 v = 0;
    memcpy(&v, dev->config + off, size);
    return v;
}

static void put(struct pci_dev *dev, unsigned off, unsigned size, u32 v)
{
    memcpy(dev->config + off, &v, size);
}

/* -- BARs ----------------------------------------------------------------- */

static u64 bar_address(const struct pci_dev *dev, unsigned n)
{
    const struct pci_bar *bar = &dev->bar[n];
    u64 low = get(dev, PCI_BAR0 + n * 4, 4);
    switch (bar->kind) {
    case PCI_BAR_IO: return low & ~3ull;
    case PCI_BAR_MEM32: return low & ~15ull;
    case PCI_BAR_MEM64: return (low & ~15ull) | (u64)get(dev, PCI_BAR0 + n * 4 + 4, 4) << 32;
    default: return 0;
    }
}

/* Recompute where the BARs are. Those at 0, or half written during sizing, decode nothing
 * useful. */
static void update_bars(struct pci_dev *dev)
{
    u32 command = get(dev, PCI_COMMAND, 2);
    for (unsigned n = 0; n < PCI_BARS; n++) {
        struct pci_bar *bar = &dev->bar[n];
        if (!bar->kind)
            continue;
        u64 at = bar_address(dev, n);
        u32 need = bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
        if (!(command & need) || !at || at + bar->size - 1 < at)
            at = PCI_UNMAPPED;
        u64 was = atomic_exchange_explicit(&bar->at, at, memory_order_acq_rel);
        if (was != at && bar->moved)
            bar->moved(bar->dev, at);
    }
}

bool pci_decode(void *opaque, bool mmio, u64 addr, struct bus_region *out)
{
    struct pci_host *host = opaque;
    for (unsigned i = 0; i < host->nr; i++) {
        struct pci_dev *dev = host->list[i];
        for (unsigned n = 0; n < PCI_BARS; n++) {
            struct pci_bar *bar = &dev->bar[n];
            if (!bar->kind || (bar->kind != PCI_BAR_IO) != mmio)
                continue;
            u64 at = atomic_load_explicit(&bar->at, memory_order_acquire);
            if (at == PCI_UNMAPPED || addr - at >= bar->size)
                continue;
            *out = (struct bus_region){
                .first = at, .size = bar->size, .ops = bar->ops, .dev = bar->dev
            };
            return true;
        }
    }
    return false;
}

/* -- INTx ----------------------------------------------------------------- */

unsigned pci_gsi(unsigned slot, unsigned pin)
{
    return GSI_PCI + ((slot + pin) & (NR_GSI_PCI - 1));
}

static void update_intx(struct pci_dev *dev)
{
    unsigned pin = dev->config[PCI_INT_PIN];
    if (!pin)
        return;
    unsigned slot = dev->devfn >> 3;
    bool level = dev->intx && !(get(dev, PCI_COMMAND, 2) & PCI_COMMAND_INTX_OFF);
    dev->config[PCI_STATUS] &= (u8)~PCI_STATUS_INTX;
    if (dev->intx)
        dev->config[PCI_STATUS] |= PCI_STATUS_INTX;
    /* Unique on its line: the line and the pin give the slot's low three bits. */
    unsigned source = slot >> 3 | (dev->devfn & 7) << 2 | (pin - 1) << 5;
    irq_or_set(&dev->host->intx[pci_gsi(slot, pin - 1) - GSI_PCI], source, level);
}

void pci_set_intx(struct pci_dev *dev, bool level)
{
    pthread_mutex_lock(&dev->host->lock);
    dev->intx = level;
    update_intx(dev);
    pthread_mutex_unlock(&dev->host->lock);
}

/* -- Configuration space -------------------------------------------------- */

static struct pci_dev *find(struct pci_host *host, unsigned bus, unsigned devfn)
{
    return bus ? NULL : host->dev[devfn];
}

static u32 config_read(struct pci_host *host, unsigned bus, unsigned devfn, unsigned off,
                       unsigned size)
{
    struct pci_dev *dev = find(host, bus, devfn);
    if (!dev || off + size > sizeof(dev->config))
        return ~0u;
    if (dev->config_read)
        dev->config_read(dev, off, size);
    return get(dev, off, size);
}

static void config_write(struct pci_host *host, unsigned bus, unsigned devfn, unsigned off,
                         unsigned size, u32 value)
{
    struct pci_dev *dev = find(host, bus, devfn);
    if (!dev || off + size > sizeof(dev->config))
        return;
    for (unsigned i = 0; i < size; i++) {
        u8 mask = dev->writable[off + i];
        dev->config[off + i] =
            (u8)((dev->config[off + i] & ~mask) | ((value >> i * 8) & mask));
    }
    if (off < PCI_BAR0 + PCI_BARS * 4) {
        update_bars(dev);
        if (dev->host)
            update_intx(dev);
    }
    if (dev->config_write)
        dev->config_write(dev, off, size);
}

static u64 address_read(void *opaque, u64 off, unsigned size)
{
    struct pci_host *host = opaque;
    if (size == 4)
        return host->address;
    if (off == 1 && size == 1 && host->reset_io)
        return host->reset_io->read(host->reset_dev, host->reset_off, 1);
    return ~0ull;
}

static void address_write(void *opaque, u64 off, unsigned size, u64 value)
{
    struct pci_host *host = opaque;
    if (size == 4) {
        pthread_mutex_lock(&host->lock);
        host->address = (u32)value & 0x80fffffc;
        pthread_mutex_unlock(&host->lock);
    } else if (off == 1 && size == 1 && host->reset_io) {
        host->reset_io->write(host->reset_dev, host->reset_off, 1, value);
    }
}

/* One access to a register. The table of devices does not change while vCPUs run. */
static u32 locked_read(struct pci_host *host, unsigned bus, unsigned devfn, unsigned off, unsigned size)
{
    struct pci_dev *dev = find(host, bus, devfn);
    if (dev && dev->config_window && off + size <= sizeof(dev->config))
        dev->config_window(dev, off, size, false);
    pthread_mutex_lock(&host->lock);
    u32 value = config_read(host, bus, devfn, off, size);
    pthread_mutex_unlock(&host->lock);
    return value;
}

static void locked_write(struct pci_host *host, unsigned bus, unsigned devfn, unsigned off, unsigned size, u32 value)
{
    struct pci_dev *dev = find(host, bus, devfn);
    pthread_mutex_lock(&host->lock);
    config_write(host, bus, devfn, off, size, value);
    pthread_mutex_unlock(&host->lock);
    if (dev && dev->config_window && off + size <= sizeof(dev->config))
        dev->config_window(dev, off, size, true);
}

static u32 address(struct pci_host *host)
{
    pthread_mutex_lock(&host->lock);
    u32 a = host->address;
    pthread_mutex_unlock(&host->lock);
    return a;
}

static u64 data_read(void *opaque, u64 off, unsigned size)
{
    u32 a = address(opaque);
    return a >> 31 ? locked_read(opaque, a >> 16 & 0xff, a >> 8 & 0xff, (a & 0xfc) + (unsigned)off, size) : ~0u;
}

static void data_write(void *opaque, u64 off, unsigned size, u64 value)
{
    u32 a = address(opaque);
    if (a >> 31)
        locked_write(opaque, a >> 16 & 0xff, a >> 8 & 0xff, (a & 0xfc) + (unsigned)off, size, (u32)value);
}

/* ECAM offset: 27:20 bus, 19:12 device and function, 11:0 register. */
static u64 ecam_read(void *opaque, u64 off, unsigned size)
{
    return locked_read(opaque, off >> 20 & 0xff, off >> 12 & 0xff, off & 0xfff, size);
}

static void ecam_write(void *opaque, u64 off, unsigned size, u64 value)
{
    locked_write(opaque, off >> 20 & 0xff, off >> 12 & 0xff, off & 0xfff, size, (u32)value);
}

const struct io_ops pci_address_io = { "pci_address", 1, 4, address_read, address_write };
const struct io_ops pci_data_io = { "pci_data", 1, 4, data_read, data_write };
const struct io_ops pci_ecam = { "pci_ecam", 1, 4, ecam_read, ecam_write };

/* -- Building ------------------------------------------------------------- */

void pci_dev_init(struct pci_dev *dev, const char *name, const struct pci_ids *ids)
{
    memset(dev, 0, sizeof(*dev));
    dev->name = name;
    put(dev, PCI_VENDOR_ID, 2, ids->vendor);
    put(dev, PCI_DEVICE_ID, 2, ids->device);
    put(dev, PCI_SUBSYSTEM_VENDOR, 2, ids->subsystem_vendor);
    put(dev, PCI_SUBSYSTEM, 2, ids->subsystem);
    put(dev, PCI_REVISION, 1, ids->revision);
    put(dev, PCI_CLASS, 3, ids->class_code);
    put(dev, PCI_INT_PIN, 1, ids->int_pin);
    dev->writable[PCI_COMMAND] = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    dev->writable[PCI_COMMAND + 1] = PCI_COMMAND_INTX_OFF >> 8;
    dev->writable[PCI_INT_LINE] = 0xff;
    dev->cap_next = 0x40;
}

void pci_add_bar(struct pci_dev *dev, unsigned n, enum pci_bar_kind kind, u64 size,
                 const struct io_ops *ops, void *opaque)
{
    bug_on(n + (kind == PCI_BAR_MEM64) >= PCI_BARS || (size & (size - 1)) || size < 4);
    bug_on(kind != PCI_BAR_IO && size < PAGE_SIZE);
    struct pci_bar *bar = &dev->bar[n];
    bar->kind = kind;
    bar->size = size;
    bar->ops = ops;
    bar->dev = opaque;
    atomic_store(&bar->at, PCI_UNMAPPED);
    u64 mask = ~(size - 1);
    unsigned off = PCI_BAR0 + n * 4;
    u32 type = kind == PCI_BAR_IO ? 1 : kind == PCI_BAR_MEM64 ? 4 : 0, low = (u32)mask;
    put(dev, off, 4, type);
    memcpy(dev->writable + off, &low, 4);
    if (kind == PCI_BAR_MEM64) {
        u32 high = (u32)(mask >> 32);
        memcpy(dev->writable + off + 4, &high, 4);
    }
}

unsigned pci_add_cap(struct pci_dev *dev, u8 id, unsigned len)
{
    unsigned off = dev->cap_next;
    bug_on(off + len > sizeof(dev->config));
    dev->config[off] = id;
    dev->config[off + 1] = dev->config[PCI_CAP_POINTER];
    dev->config[PCI_CAP_POINTER] = (u8)off;
    dev->config[PCI_STATUS] |= PCI_STATUS_CAPS;
    dev->cap_next = (u8)((off + len + 3) & ~3u);
    return off;
}

int pci_add(struct pci_host *host, unsigned devfn, struct pci_dev *dev)
{
    bug_on(devfn > 255);
    if (host->dev[devfn])
        return -EEXIST;
    dev->host = host;
    dev->devfn = devfn;
    if (dev->config[PCI_INT_PIN]) /* what a kernel without ACPI or APIC goes by */
        dev->config[PCI_INT_LINE] =
            (u8)PCI_PIC_IRQ(pci_gsi(devfn >> 3, dev->config[PCI_INT_PIN] - 1u));
    if (devfn & 7) {
        struct pci_dev *first = host->dev[devfn & ~7u];
        if (first)
            first->config[PCI_HEADER_TYPE] |= 0x80; /* multifunction */
    }
    memcpy(dev->reset_config, dev->config, sizeof(dev->config));
    host->dev[devfn] = dev;
    host->list[host->nr++] = dev;
    return 0;
}

void pci_assign_bars(struct pci_host *host)
{
    u64 mem = LAYOUT_PCI_MMIO, mem64 = host->mmio64, io = PORT_PCI_BARS;
    pthread_mutex_lock(&host->lock);
    for (unsigned devfn = 0; devfn < 256; devfn++) {
        struct pci_dev *dev = host->dev[devfn];
        for (unsigned n = 0; dev && n < PCI_BARS; n++) {
            struct pci_bar *bar = &dev->bar[n];
            if (!bar->kind)
                continue;
            bool big = bar->kind == PCI_BAR_MEM64 && bar->size > 0x1000000; /* 16 MiB */
            u64 *next = bar->kind == PCI_BAR_IO ? &io : big ? &mem64 : &mem;
            u64 end = bar->kind == PCI_BAR_IO ? 0x10000
                      : big                   ? host->mmio64 + LAYOUT_PCI_MMIO64_SIZE
                                              : LAYOUT_PCI_MMIO_END;
            u64 at = (*next + bar->size - 1) & ~(bar->size - 1);
            if (at + bar->size > end)
                continue; /* no room: the guest's kernel may do better */
            *next = at + bar->size;
            put(dev, PCI_BAR0 + n * 4, 4, (u32)at | (get(dev, PCI_BAR0 + n * 4, 4) & 15));
            if (bar->kind == PCI_BAR_MEM64)
                put(dev, PCI_BAR0 + n * 4 + 4, 4, (u32)(at >> 32));
            dev->config[PCI_COMMAND] |=
                bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
        }
        if (dev)
            update_bars(dev);
    }
    pthread_mutex_unlock(&host->lock);
}

void pci_host_reset(struct pci_host *host)
{
    pthread_mutex_lock(&host->lock);
    host->address = 0;
    for (unsigned i = 0; i < host->nr; i++) {
        struct pci_dev *dev = host->list[i];
        memcpy(dev->config, dev->reset_config, sizeof(dev->config));
        dev->intx = false;
        update_bars(dev);
        update_intx(dev);
    }
    pthread_mutex_unlock(&host->lock);
    for (unsigned i = 0; i < host->nr; i++)
        if (host->list[i]->reset)
            host->list[i]->reset(host->list[i]);
    pci_assign_bars(host);
}

int pci_host_init(struct pci_host *host, const struct irq_line gsi[8])
{
    static const struct pci_ids i440fx = {
        .vendor = 0x8086, .device = 0x1237, .subsystem_vendor = 0x1af4, .subsystem = 0x1100,
        .class_code = 0x060000, .revision = 2,
    };
    memset(host, 0, sizeof(*host));
    /* Recursive: a device that changes its state and INTx together holds it around pci_set_intx(). */
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&host->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    for (unsigned i = 0; i < 8; i++)
        irq_or_init(&host->intx[i], gsi[i]);
    pci_dev_init(&host->bridge, "i440fx", &i440fx);
    return pci_add(host, 0, &host->bridge);
}

void pci_host_fini(struct pci_host *host)
{
    for (unsigned i = 0; i < 8; i++)
        irq_or_fini(&host->intx[i]);
    pthread_mutex_destroy(&host->lock);
}

/* -- Snapshots ------------------------------------------------------------ */

#define LINE(n) STATE(struct pci_host, intx[n].asserted)
static const struct state_field host_state[] = {
    STATE(struct pci_host, address), LINE(0), LINE(1), LINE(2), LINE(3), LINE(4), LINE(5), LINE(6), LINE(7),
    STATE_END
};
#undef LINE
static const struct state_field dev_state[] = {
    STATE(struct pci_dev, config), STATE(struct pci_dev, intx), STATE_END
};

static const char *section(const struct pci_dev *dev, char name[32])
{
    snprintf(name, 32, "pci.%02x.%u", dev->devfn >> 3, dev->devfn & 7);
    return name;
}

int pci_save(struct pci_host *host, struct state_set *set, char *err, size_t err_len)
{
    char name[32];
    state_set_save(set, "pci", host_state, host);
    for (unsigned i = 0; i < host->nr; i++) {
        const struct pci_dev *dev = host->list[i];
        state_set_save(set, section(dev, name), dev_state, dev);
        for (unsigned n = 0; n < PCI_BARS; n++) {
            if (!dev->bar[n].kind || dev->kept)
                continue;
            snprintf(err, err_len, "the device %s cannot be saved", dev->name);
            return -EOPNOTSUPP;
        }
    }
    return 0;
}

/* What the guest cannot write says which device it is and what it can do: that stays as it is here. */
static int load_dev(struct pci_dev *dev, struct state_set *set, char *err, size_t err_len)
{
    char name[32];
    u8 old[sizeof(dev->config)];
    memcpy(old, dev->config, sizeof(old));
    int r = state_set_load(set, section(dev, name), dev_state, dev, err, err_len);
    if (r)
        return r;
    if (memcmp(dev->config + PCI_VENDOR_ID, old + PCI_VENDOR_ID, 4)) {
        snprintf(err, err_len, "%s: is not the %s that is there now", name, dev->name);
        return -EINVAL;
    }
    for (unsigned i = 0; i < sizeof(old); i++)
        dev->config[i] = (u8)((dev->config[i] & dev->writable[i]) | (old[i] & ~dev->writable[i]));
    update_bars(dev);
    update_intx(dev);
    return 0;
}

int pci_load(struct pci_host *host, struct state_set *set, char *err, size_t err_len)
{
    pthread_mutex_lock(&host->lock);
    int r = state_set_load(set, "pci", host_state, host, err, err_len);
    for (unsigned i = 0; i < host->nr && !r; i++)
        r = load_dev(host->list[i], set, err, err_len);
    pthread_mutex_unlock(&host->lock);
    return r;
}

void pci_loaded(struct pci_host *host)
{
    pthread_mutex_lock(&host->lock);
    for (unsigned i = 0; i < host->nr; i++) {
        struct pci_dev *dev = host->list[i];
        if (dev->config_write)
            dev->config_write(dev, 0, sizeof(dev->config));
    }
    pthread_mutex_unlock(&host->lock);
}
