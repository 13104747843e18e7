/*
 * transport_pci.c - registers of a virtio PCI function. Source: virtio 1.2 §4.1; transitional registers (§4.1.4.10) are
 * not there. BAR 0 holds the four structures, BAR 1 the MSI-X table:
 *
 *   0x0000 common configuration   0x1000 ISR status   0x2000 device configuration   0x3000 notifications, 4 bytes a queue
 *
 * Threads: registers on vCPU threads, under dev->lock but for the notifications, which take none; interrupts from any.
 */
#include "virtio/transport_pci.h"
#include "machine/state.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BAR_SIZE 0x4000u
#define AT_COMMON 0x0000u
#define AT_ISR 0x1000u
#define AT_DEVICE 0x2000u
#define AT_NOTIFY 0x3000u
#define COMMON_LEN 0x3cu

#define CAP_VENDOR 0x09
enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI_CFG }; /* §4.1.4: cfg_type */

#define ISR_QUEUE 1u
#define ISR_CONFIG 2u

struct virtio_pci {
    struct pci_dev pci;
    struct msix msix;
    struct virtio_dev *dev;
    /* Under dev->lock. */
    u32 device_feature_select, driver_feature_select;
    u16 queue_select, config_vector;
    unsigned window;      /* offset of the VIRTIO_PCI_CAP_PCI_CFG capability */
    u8 isr;               /* and the level of INTx; under the bridge's lock */
};

/* -- Interrupts ------------------------------------------------------------------------------- */

static void transport_interrupt(void *opaque, struct virtio_queue *q)
{
    struct virtio_pci *vp = opaque;
    if (msix_enabled(&vp->msix)) {
        msix_raise(&vp->msix, q ? q->vector : vp->config_vector);
        return;
    }
    pthread_mutex_lock(&vp->pci.host->lock);
    vp->isr |= q ? ISR_QUEUE : ISR_CONFIG;
    pci_set_intx(&vp->pci, true);
    pthread_mutex_unlock(&vp->pci.host->lock);
}

static const struct virtio_transport pci_transport = { transport_interrupt };

static u8 isr_read(struct virtio_pci *vp) /* §4.1.4.5: reading clears and lowers */
{
    pthread_mutex_lock(&vp->pci.host->lock);
    u8 isr = vp->isr;
    vp->isr = 0;
    if (isr)
        pci_set_intx(&vp->pci, false);
    pthread_mutex_unlock(&vp->pci.host->lock);
    return isr;
}

/* -- Common configuration, §4.1.4.3 ----------------------------------------------------------- */

static struct virtio_queue *selected(struct virtio_pci *vp)
{
    return vp->queue_select < vp->dev->nr_queues ? &vp->dev->queue[vp->queue_select] : NULL;
}

/* A vector that does not exist reads back as none: the driver then copes with fewer (§4.1.5.1.2). */
static u16 valid_vector(struct virtio_pci *vp, u16 vector)
{
    return vector < vp->msix.nr ? vector : VIRTIO_NO_VECTOR;
}

static u32 feature_word(u64 features, u32 select)
{
    return select < 2 ? (u32)(features >> select * 32) : 0;
}

static u8 status(struct virtio_dev *dev)
{
    bool broken = (dev->status & VIRTIO_DRIVER_OK) && !atomic_load(&dev->running);
    return dev->status | (broken ? VIRTIO_NEEDS_RESET : 0);
}

static u64 common_read(struct virtio_pci *vp, unsigned off)
{
    struct virtio_dev *dev = vp->dev;
    struct virtio_queue *q = selected(vp);
    switch (off) {
    case 0x00: return vp->device_feature_select;
    case 0x04: return feature_word(dev->features, vp->device_feature_select);
    case 0x08: return vp->driver_feature_select;
    case 0x0c: return feature_word(dev->driver_features, vp->driver_feature_select);
    case 0x10: return vp->config_vector;
    case 0x12: return dev->nr_queues;
    case 0x14: return status(dev);
    case 0x15: return atomic_load(&dev->generation) & 0xff;
    case 0x16: return vp->queue_select;
    case 0x18: return q ? q->size : 0;
    case 0x1a: return q ? q->vector : VIRTIO_NO_VECTOR;
    case 0x1c: return q && q->enabled;
    case 0x1e: return vp->queue_select;
    case 0x20: return q ? (u32)q->desc : 0;
    case 0x24: return q ? q->desc >> 32 : 0;
    case 0x28: return q ? (u32)q->avail : 0;
    case 0x2c: return q ? q->avail >> 32 : 0;
    case 0x30: return q ? (u32)q->used : 0;
    case 0x34: return q ? q->used >> 32 : 0;
    default: return 0;
    }
}

static void set_half(u64 *to, bool high, u64 value)
{
    *to = high ? (u32)*to | value << 32 : (*to & ~0xffffffffull) | (u32)value;
}

static void common_write(struct virtio_pci *vp, unsigned off, u64 value)
{
    struct virtio_dev *dev = vp->dev;
    struct virtio_queue *q = selected(vp);
    switch (off) {
    case 0x00: vp->device_feature_select = (u32)value; return;
    case 0x08: vp->driver_feature_select = (u32)value; return;
    case 0x0c: virtio_set_driver_features(dev, MIN(vp->driver_feature_select, 2u), (u32)value); return;
    case 0x10: vp->config_vector = valid_vector(vp, (u16)value); return;
    case 0x14:
        virtio_set_status(dev, (u8)value);
        if (!value)
            vp->config_vector = VIRTIO_NO_VECTOR;
        return;
    case 0x16: vp->queue_select = (u16)value; return;
    default: break;
    }
    if (!q || (q->enabled && off != 0x1a))
        return;
    switch (off) {
    case 0x18:
        if (value && value <= q->size_max)
            q->size = (u16)value;
        break;
    case 0x1a: q->vector = valid_vector(vp, (u16)value); break;
    case 0x1c:
        if (value == 1)
            virtio_queue_enable(q);
        break;
    case 0x20: case 0x24: set_half(&q->desc, off & 4, value); break;
    case 0x28: case 0x2c: set_half(&q->avail, off & 4, value); break;
    case 0x30: case 0x34: set_half(&q->used, off & 4, value); break;
    default: break;
    }
}

/* -- BAR 0 ------------------------------------------------------------------------------------ */

static u64 bar_read(void *opaque, u64 off, unsigned size)
{
    struct virtio_pci *vp = opaque;
    u64 value = 0;
    if (off >= AT_NOTIFY)
        return 0;
    if (off >= AT_DEVICE)
        return virtio_config_read(vp->dev, off - AT_DEVICE, size);
    if (off >= AT_ISR)
        return off == AT_ISR ? isr_read(vp) : 0;
    if (off < COMMON_LEN) {
        pthread_mutex_lock(&vp->dev->lock);
        value = common_read(vp, (unsigned)off);
        pthread_mutex_unlock(&vp->dev->lock);
    }
    return value;
}

static void bar_write(void *opaque, u64 off, unsigned size, u64 value)
{
    struct virtio_pci *vp = opaque;
    if (off >= AT_NOTIFY) {
        virtio_notify(vp->dev, (unsigned)(off - AT_NOTIFY) / 4);
    } else if (off >= AT_DEVICE) {
        virtio_config_write(vp->dev, off - AT_DEVICE, size, (u32)value);
    } else if (off < COMMON_LEN) {
        pthread_mutex_lock(&vp->dev->lock);
        common_write(vp, (unsigned)off, value);
        pthread_mutex_unlock(&vp->dev->lock);
        if (off == 0x14 && !value)
            isr_read(vp);
    }
}

static const struct io_ops bar_io = { "virtio-pci", 1, 4, bar_read, bar_write };

/* -- Configuration space ---------------------------------------------------------------------- */

/* VIRTIO_PCI_CAP_PCI_CFG (§4.1.4.9): firmware that cannot reach the BAR reaches it through here. */
static bool window(struct virtio_pci *vp, unsigned off, unsigned size, u32 *at, u32 *len)
{
    const u8 *cap = vp->pci.config + vp->window;
    if (off < vp->window + 16 || off + size > vp->window + 20)
        return false;
    memcpy(at, cap + 8, 4);
    memcpy(len, cap + 12, 4);
    return cap[4] == 0 && (*len == 1 || *len == 2 || *len == 4) && !(*at & (*len - 1)) && *at < BAR_SIZE;
}

static void config_window(struct pci_dev *pci, unsigned off, unsigned size, bool write)
{
    struct virtio_pci *vp = container_of(pci, struct virtio_pci, pci);
    u32 at, len, value;
    if (!window(vp, off, size, &at, &len))
        return;
    if (write) {
        memcpy(&value, pci->config + vp->window + 16, 4);
        bar_write(vp, at, len, len == 4 ? value : value & ((1u << len * 8) - 1));
    } else {
        value = (u32)bar_read(vp, at, len);
        memcpy(pci->config + vp->window + 16, &value, 4);
    }
}

static void config_write(struct pci_dev *pci, unsigned off, unsigned size)
{
    struct virtio_pci *vp = container_of(pci, struct virtio_pci, pci);
    msix_config_written(&vp->msix, off, size);
}

static void pci_reset(struct pci_dev *pci)
{
    struct virtio_pci *vp = container_of(pci, struct virtio_pci, pci);
    pthread_mutex_lock(&vp->dev->lock);
    virtio_set_status(vp->dev, 0);
    vp->device_feature_select = vp->driver_feature_select = vp->queue_select = 0;
    vp->config_vector = VIRTIO_NO_VECTOR;
    pthread_mutex_unlock(&vp->dev->lock);
    isr_read(vp);
    msix_reset(&vp->msix);
}

/* struct virtio_pci_cap, §4.1.4: cap_vndr, cap_next, cap_len, cfg_type, bar, id, padding[2], offset, length */
static unsigned add_cap(struct virtio_pci *vp, u8 type, u8 len, u32 offset, u32 length)
{
    unsigned at = pci_add_cap(&vp->pci, CAP_VENDOR, len);
    u8 *cap = vp->pci.config + at;
    cap[2] = len;
    cap[3] = type;
    memcpy(cap + 8, &offset, 4);
    memcpy(cap + 12, &length, 4);
    return at;
}

int virtio_pci_add(struct pci_host *host, unsigned slot, struct virtio_dev *dev, struct virtio_pci **out)
{
    struct virtio_pci *vp = calloc(1, sizeof(*vp));
    if (!vp)
        return -ENOMEM;
    const struct pci_ids ids = { /* §4.1.2.1: 0x1040 + type, revision 1 or more */
        .vendor = 0x1af4, .device = (u16)(0x1040 + dev->class->id), .subsystem_vendor = 0x1af4,
        .subsystem = (u16)(0x1040 + dev->class->id), .class_code = dev->class->pci_class, .revision = 1, .int_pin = 1,
    };
    vp->dev = dev;
    vp->config_vector = VIRTIO_NO_VECTOR;
    pci_dev_init(&vp->pci, dev->class->name, &ids);
    pci_add_bar(&vp->pci, 0, PCI_BAR_MEM32, BAR_SIZE, &bar_io, vp);
    msix_init(&vp->msix, &vp->pci, 1, dev->nr_queues + 1);
    add_cap(vp, CAP_COMMON, 16, AT_COMMON, COMMON_LEN);
    add_cap(vp, CAP_ISR, 16, AT_ISR, 1);
    if (dev->config_len)
        add_cap(vp, CAP_DEVICE, 16, AT_DEVICE, dev->config_len);
    unsigned notify = add_cap(vp, CAP_NOTIFY, 20, AT_NOTIFY, 4 * dev->nr_queues);
    vp->pci.config[notify + 16] = 4; /* notify_off_multiplier */
    vp->window = add_cap(vp, CAP_PCI_CFG, 20, 0, 0);
    memset(vp->pci.writable + vp->window + 4, 0xff, 1);
    memset(vp->pci.writable + vp->window + 8, 0xff, 12);
    vp->pci.config_window = config_window;
    vp->pci.config_write = config_write;
    vp->pci.reset = pci_reset;
    int err = pci_add(host, PCI_DEVFN(slot, 0), &vp->pci);
    if (err) {
        virtio_pci_free(vp);
        return err;
    }
    dev->transport = &pci_transport;
    dev->transport_dev = vp;
    *out = vp;
    return 0;
}

void virtio_pci_free(struct virtio_pci *vp)
{
    if (!vp)
        return;
    msix_fini(&vp->msix);
    free(vp);
}

/* -- Snapshots -------------------------------------------------------------------------------- */

static const struct state_field pci_fields[] = {
    STATE(struct virtio_pci, device_feature_select), STATE(struct virtio_pci, driver_feature_select),
    STATE(struct virtio_pci, queue_select), STATE(struct virtio_pci, config_vector), STATE(struct virtio_pci, isr),
    STATE(struct virtio_pci, msix.pending), STATE(struct virtio_pci, msix.entry), STATE_END
};

static int loaded(void *obj)
{
    struct virtio_pci *vp = obj;

    vp->config_vector = valid_vector(vp, vp->config_vector);
    for (unsigned i = 0; i < vp->dev->nr_queues; i++)
        vp->dev->queue[i].vector = valid_vector(vp, vp->dev->queue[i].vector);
    for (unsigned n = 0; n < MSIX_MAX; n++) {
        vp->msix.entry[n].control &= 1;
        vp->msix.entry[n].address &= ~3ull;
    }
    return virtio_loaded(vp->dev);
}

int virtio_pci_keep(struct virtio_pci *vp, struct machine *m)
{
    struct device_part part = { .state = pci_fields, .obj = vp, .loaded = loaded };
    char name[16];

    vp->pci.kept = true;
    snprintf(name, sizeof(name), "virtio.%02x", vp->pci.devfn >> 3);
    int r = virtio_keep(vp->dev, m, name);
    /* Last: when it is judged, the others are there. */
    snprintf(part.name, sizeof(part.name), "%s.pci", name);
    return r ? r : machine_add_part(m, &part);
}
