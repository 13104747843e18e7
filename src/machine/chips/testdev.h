/* testdev.h - what test kernels poke: ports and memory that echo, interrupt inputs to drive. As QEMU's pc-testdev. */
#pragma once
#include "base/types.h"
#include "machine/device.h"
#include "machine/irq.h"
#include <pthread.h>

#define TESTDEV_MEMORY 0x10000u
#define TESTDEV_IRQS 24u

struct testdev {
    pthread_mutex_t lock;
    struct irq_line irq[TESTDEV_IRQS]; /* by GSI */
    u8 port[4];
    u8 mem[TESTDEV_MEMORY];
};

void testdev_init(struct testdev *t);
void testdev_fini(struct testdev *t);
extern const struct io_ops testdev_ports; /* 4 ports that hold what was written */
extern const struct io_ops testdev_irqs;  /* TESTDEV_IRQS ports: the level of an interrupt input */
extern const struct io_ops testdev_mmio;  /* TESTDEV_MEMORY bytes */
