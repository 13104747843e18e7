/* msi.c - MSI-X and MSI. Source: PCI Local Bus 3.0 §6.8. See msi.h. */
#include "machine/msi.h"
#include <string.h>

#define PBA_OFFSET 0x800u
_Static_assert(MSIX_MAX * 16 <= PBA_OFFSET, "table and pending bits in one page");

/* With x->lock held. */
static void send(struct msix *x, unsigned n)
{
    struct pci_host *host = x->dev->host;
    if (host->msi)
        host->msi(host->msi_opaque, x->entry[n].address, x->entry[n].data);
}

/* Send what became unmasked. */
static void flush(struct msix *x)
{
    if (!x->enabled || x->masked)
        return;
    for (unsigned n = 0; n < x->nr; n++) {
        if (!(x->pending[n / 64] >> n % 64 & 1) || (x->entry[n].control & 1))
            continue;
        x->pending[n / 64] &= ~BITULL(n % 64);
        send(x, n);
    }
}

static u64 table_read(void *opaque, u64 off, unsigned size)
{
    struct msix *x = opaque;
    u64 value = 0;
    pthread_mutex_lock(&x->lock);
    if (off / 16 < x->nr)
        memcpy(&value, (u8 *)&x->entry[off / 16] + off % 16, size);
    else if (off >= PBA_OFFSET && off + size <= PBA_OFFSET + sizeof(x->pending))
        memcpy(&value, (u8 *)x->pending + (off - PBA_OFFSET), size);
    pthread_mutex_unlock(&x->lock);
    return value;
}

static void table_write(void *opaque, u64 off, unsigned size, u64 value)
{
    struct msix *x = opaque;
    pthread_mutex_lock(&x->lock);
    if (off / 16 < x->nr) { /* aligned to its size, so within one entry */
        memcpy((u8 *)&x->entry[off / 16] + off % 16, &value, size);
        x->entry[off / 16].control &= 1;
        x->entry[off / 16].address &= ~3ull;
        flush(x);
    }
    pthread_mutex_unlock(&x->lock);
}

static const struct io_ops msix_io = { "msix", 4, 8, table_read, table_write };

void msix_init(struct msix *x, struct pci_dev *dev, unsigned bar, unsigned nr_vectors)
{
    _Static_assert(sizeof(x->entry[0]) == 16, "PCI 3.0 §6.8.2");
    bug_on(!nr_vectors || nr_vectors > MSIX_MAX);
    memset(x, 0, sizeof(*x));
    pthread_mutex_init(&x->lock, NULL);
    x->dev = dev;
    x->nr = nr_vectors;
    pci_add_bar(dev, bar, PCI_BAR_MEM32, PAGE_SIZE, &msix_io, x);
    x->cap = pci_add_cap(dev, PCI_CAP_MSIX, 12);
    u16 control = (u16)(nr_vectors - 1);
    u32 table = bar, pba = PBA_OFFSET | bar;
    memcpy(dev->config + x->cap + 2, &control, 2);
    memcpy(dev->config + x->cap + 4, &table, 4);
    memcpy(dev->config + x->cap + 8, &pba, 4);
    dev->writable[x->cap + 3] = 0xc0; /* enable, function mask */
    msix_reset(x);
}

void msix_fini(struct msix *x)
{
    pthread_mutex_destroy(&x->lock);
}

void msix_reset(struct msix *x)
{
    pthread_mutex_lock(&x->lock);
    x->enabled = x->masked = false;
    memset(x->pending, 0, sizeof(x->pending));
    memset(x->entry, 0, sizeof(x->entry));
    for (unsigned n = 0; n < x->nr; n++)
        x->entry[n].control = 1; /* §6.8.2.9 */
    pthread_mutex_unlock(&x->lock);
}

void msix_config_written(struct msix *x, unsigned off, unsigned size)
{
    if (off + size <= x->cap + 2 || off >= x->cap + 4)
        return;
    pthread_mutex_lock(&x->lock);
    x->enabled = x->dev->config[x->cap + 3] & 0x80;
    x->masked = x->dev->config[x->cap + 3] & 0x40;
    flush(x);
    pthread_mutex_unlock(&x->lock);
}

bool msix_enabled(struct msix *x)
{
    pthread_mutex_lock(&x->lock);
    bool enabled = x->enabled;
    pthread_mutex_unlock(&x->lock);
    return enabled;
}

void msix_raise(struct msix *x, unsigned vector)
{
    pthread_mutex_lock(&x->lock);
    if (vector < x->nr && x->enabled) {
        if (x->masked || (x->entry[vector].control & 1))
            x->pending[vector / 64] |= BITULL(vector % 64);
        else
            send(x, vector);
    }
    pthread_mutex_unlock(&x->lock);
}

/* -- MSI -------------------------------------------------------------------------------------- */

unsigned msi_init(struct pci_dev *dev)
{
    unsigned cap = pci_add_cap(dev, PCI_CAP_MSI, 14);
    dev->config[cap + 2] = 0x80;       /* 64-bit address; one vector */
    dev->writable[cap + 2] = 0x01;     /* enable */
    dev->writable[cap + 4] = 0xfc;
    memset(dev->writable + cap + 5, 0xff, 9); /* the rest of the address, data */
    return cap;
}

bool msi_raise(struct pci_dev *dev, unsigned cap)
{
    struct pci_host *host = dev->host;
    u64 address;
    u16 data;
    pthread_mutex_lock(&host->lock);
    bool on = dev->config[cap + 2] & 1;
    memcpy(&address, dev->config + cap + 4, 8);
    memcpy(&data, dev->config + cap + 12, 2);
    pthread_mutex_unlock(&host->lock);
    if (on && host->msi)
        host->msi(host->msi_opaque, address, data);
    return on;
}
