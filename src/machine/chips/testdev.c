/*
 * testdev.c - see testdev.h. Source: QEMU docs and the users of its pc-testdev (kvm-unit-tests, lib/x86).
 * Not modelled: flushing a page from QEMU's own tables (port 0xe4).
 * Threads: vCPU threads; ports and memory under t->lock.
 */
#include "machine/chips/testdev.h"
#include <string.h>

static u64 copy_out(struct testdev *t, const u8 *from, unsigned size)
{
    u64 value = 0;

    pthread_mutex_lock(&t->lock);
    memcpy(&value, from, size);
    pthread_mutex_unlock(&t->lock);
    return value;
}

static void copy_in(struct testdev *t, u8 *to, unsigned size, u64 value)
{
    pthread_mutex_lock(&t->lock);
    memcpy(to, &value, size);
    pthread_mutex_unlock(&t->lock);
}

static u64 port_read(void *dev, u64 off, unsigned size)
{
    struct testdev *t = dev;

    return copy_out(t, t->port + (off & 3), MIN(size, 4 - (unsigned)(off & 3)));
}

static void port_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct testdev *t = dev;

    copy_in(t, t->port + (off & 3), MIN(size, 4 - (unsigned)(off & 3)), value);
}

static u64 irq_read(void *dev, u64 off, unsigned size)
{
    (void)dev, (void)off, (void)size;
    return 0;
}

static void irq_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct testdev *t = dev;

    (void)size;
    if (off < TESTDEV_IRQS)
        irq_set(&t->irq[off], value & 1);
}

static u64 mem_read(void *dev, u64 off, unsigned size)
{
    struct testdev *t = dev;

    return copy_out(t, t->mem + (off & (TESTDEV_MEMORY - 8)) + (off & 7), size); /* aligned: it does not cross */
}

static void mem_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct testdev *t = dev;

    copy_in(t, t->mem + (off & (TESTDEV_MEMORY - 8)) + (off & 7), size, value);
}

const struct io_ops testdev_ports = { "testdev", 1, 4, port_read, port_write };
const struct io_ops testdev_irqs = { "testdev irq", 1, 1, irq_read, irq_write };
const struct io_ops testdev_mmio = { "testdev memory", 1, 8, mem_read, mem_write };

void testdev_init(struct testdev *t)
{
    memset(t, 0, sizeof(*t));
    pthread_mutex_init(&t->lock, NULL);
}

void testdev_fini(struct testdev *t)
{
    pthread_mutex_destroy(&t->lock);
}
