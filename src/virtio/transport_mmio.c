/*
 * transport_mmio.c - registers of the memory-mapped transport, version 2. Source: virtio 1.2 §4.2.2. Not there: shared
 * memory regions, queue reset. Threads: as transport_pci.c.
 */
#include "virtio/transport_mmio.h"
#include "machine/state.h"
#include <errno.h>
#include <stdlib.h>
#include <stdio.h>

#define MAGIC 0x74726976u /* "virt" */
#define VENDOR 0x52544956u
#define AT_CONFIG 0x100u
#define INT_QUEUE 1u
#define INT_CONFIG 2u

struct virtio_mmio {
    struct virtio_dev *dev;
    gpa_t gpa;
    u32 device_select, driver_select, queue_select; /* under dev->lock */
    struct irq_line line;
    pthread_mutex_t int_lock; /* what follows, and the line's level */
    u32 interrupts;
};

static void set_interrupts(struct virtio_mmio *vm, u32 set, u32 clear)
{
    pthread_mutex_lock(&vm->int_lock);
    vm->interrupts = (vm->interrupts | set) & ~clear;
    irq_set(&vm->line, vm->interrupts != 0);
    pthread_mutex_unlock(&vm->int_lock);
}

static void transport_interrupt(void *opaque, struct virtio_queue *q)
{
    set_interrupts(opaque, q ? INT_QUEUE : INT_CONFIG, 0);
}

static const struct virtio_transport mmio_transport = { transport_interrupt };

static u32 reg_read(struct virtio_mmio *vm, u64 off)
{
    struct virtio_dev *dev = vm->dev;
    struct virtio_queue *q = vm->queue_select < dev->nr_queues ? &dev->queue[vm->queue_select] : NULL;
    switch (off) {
    case 0x000: return MAGIC;
    case 0x004: return 2;
    case 0x008: return dev->class->id;
    case 0x00c: return VENDOR;
    case 0x010: return vm->device_select < 2 ? (u32)(dev->features >> vm->device_select * 32) : 0;
    case 0x034: return q ? q->size_max : 0;
    case 0x044: return q && q->enabled;
    case 0x060: return vm->interrupts;
    case 0x070:
        return dev->status |
               ((dev->status & VIRTIO_DRIVER_OK) && !atomic_load(&dev->running) ? VIRTIO_NEEDS_RESET : 0);
    case 0x0fc: return atomic_load(&dev->generation);
    default: return 0;
    }
}

static void set_half(u64 *to, bool high, u32 value)
{
    *to = high ? (u32)*to | (u64)value << 32 : (*to & ~0xffffffffull) | value;
}

static void reg_write(struct virtio_mmio *vm, u64 off, u32 value)
{
    struct virtio_dev *dev = vm->dev;
    struct virtio_queue *q = vm->queue_select < dev->nr_queues ? &dev->queue[vm->queue_select] : NULL;
    switch (off) {
    case 0x014: vm->device_select = value; return;
    case 0x020: virtio_set_driver_features(dev, MIN(vm->driver_select, 2u), value); return;
    case 0x024: vm->driver_select = value; return;
    case 0x030: vm->queue_select = value; return;
    case 0x070: virtio_set_status(dev, (u8)value); return;
    default: break;
    }
    if (!q || q->enabled)
        return;
    switch (off) {
    case 0x038:
        if (value && value <= q->size_max)
            q->size = (u16)value;
        break;
    case 0x044:
        if (value == 1)
            virtio_queue_enable(q);
        break;
    case 0x080: case 0x084: set_half(&q->desc, off & 4, value); break;
    case 0x090: case 0x094: set_half(&q->avail, off & 4, value); break;
    case 0x0a0: case 0x0a4: set_half(&q->used, off & 4, value); break;
    default: break;
    }
}

static u64 mmio_read(void *opaque, u64 off, unsigned size)
{
    struct virtio_mmio *vm = opaque;
    if (off >= AT_CONFIG)
        return virtio_config_read(vm->dev, off - AT_CONFIG, size);
    if (size != 4) /* §4.2.2.2: registers are read as they are, 32 bits */
        return 0;
    pthread_mutex_lock(&vm->dev->lock);
    u32 value = reg_read(vm, off);
    pthread_mutex_unlock(&vm->dev->lock);
    return value;
}

static void mmio_write(void *opaque, u64 off, unsigned size, u64 value)
{
    struct virtio_mmio *vm = opaque;
    if (off >= AT_CONFIG) {
        virtio_config_write(vm->dev, off - AT_CONFIG, size, (u32)value);
    } else if (size != 4) {
        return;
    } else if (off == 0x050) {
        virtio_notify(vm->dev, (u32)value);
    } else if (off == 0x064) {
        set_interrupts(vm, 0, (u32)value);
    } else {
        pthread_mutex_lock(&vm->dev->lock);
        reg_write(vm, off, (u32)value);
        pthread_mutex_unlock(&vm->dev->lock);
        if (off == 0x070 && !value)
            set_interrupts(vm, 0, ~0u);
    }
}

static const struct io_ops mmio_io = { "virtio-mmio", 1, 4, mmio_read, mmio_write };

int virtio_mmio_add(struct bus *bus, gpa_t gpa, struct irq_line line, struct virtio_dev *dev, struct virtio_mmio **out)
{
    struct virtio_mmio *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return -ENOMEM;
    vm->dev = dev;
    vm->gpa = gpa;
    vm->line = line;
    pthread_mutex_init(&vm->int_lock, NULL);
    bus_add_mmio(bus, gpa, VIRTIO_MMIO_SIZE, 0, &mmio_io, vm);
    dev->transport = &mmio_transport;
    dev->transport_dev = vm;
    *out = vm;
    return 0;
}

static const struct state_field mmio_fields[] = {
    STATE(struct virtio_mmio, device_select), STATE(struct virtio_mmio, driver_select),
    STATE(struct virtio_mmio, queue_select), STATE(struct virtio_mmio, interrupts), STATE_END
};

static int loaded(void *obj)
{
    struct virtio_mmio *vm = obj;

    vm->interrupts &= INT_QUEUE | INT_CONFIG;
    set_interrupts(vm, 0, 0); /* the interrupt controllers saw that level before */
    return virtio_loaded(vm->dev);
}

int virtio_mmio_keep(struct virtio_mmio *vm, struct machine *m)
{
    struct device_part part = { .state = mmio_fields, .obj = vm, .loaded = loaded };
    char name[16];

    snprintf(name, sizeof(name), "virtio.%08llx", (unsigned long long)vm->gpa);
    int r = virtio_keep(vm->dev, m, name);
    snprintf(part.name, sizeof(part.name), "%s.mmio", name);
    return r ? r : machine_add_part(m, &part);
}

void virtio_mmio_free(struct virtio_mmio *vm)
{
    if (!vm)
        return;
    pthread_mutex_destroy(&vm->int_lock);
    free(vm);
}
