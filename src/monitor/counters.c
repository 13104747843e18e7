/* counters.c - see counters.h. Threads: vCPU threads, under the lock. */
#include "monitor/counters.h"
#include "libvitro.h"
#include "machine/bus.h"
#include "machine/layout.h"
#include "machine/machine.h"
#include "monitor/vm_inner.h"
#include "paravirt/paravirt.h"
#include "paravirt/xen/xen.h"
#include <errno.h>
#include <stdlib.h>

enum { COMMAND = 0, LOW = 4, HIGH = 8, NR_PORTS = 12 };
enum { START = 1, STOP = 2, SELECT = 0x100 };
#define NR_COUNTERS (sizeof(struct vitro_counters) / sizeof(u64))

union values {
    struct vitro_counters counter;
    u64 at[NR_COUNTERS];
};

struct counters {
    struct guest *vm;
    pthread_mutex_t lock;
    union values start, difference;
    unsigned selected;
};

static u64 counters_read(void *dev, u64 off, unsigned size)
{
    struct counters *c = dev;
    (void)size;
    if (off == COMMAND)
        return NR_COUNTERS;
    pthread_mutex_lock(&c->lock);
    u64 value = c->difference.at[c->selected];
    pthread_mutex_unlock(&c->lock);
    return off == LOW ? (u32)value : value >> 32;
}

static void counters_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct counters *c = dev;
    union values now;

    (void)size;
    if (off != COMMAND)
        return;
    pthread_mutex_lock(&c->lock);
    if (value == START) {
        vitro_vm_counters(c->vm->vm, &c->start.counter);
    } else if (value == STOP) {
        vitro_vm_counters(c->vm->vm, &now.counter);
        for (unsigned i = 0; i < NR_COUNTERS; i++)
            c->difference.at[i] = now.at[i] - c->start.at[i];
    } else if (value - SELECT < NR_COUNTERS) {
        c->selected = (unsigned)(value - SELECT);
    }
    pthread_mutex_unlock(&c->lock);
}

static const struct io_ops counters_io = {
    .name = "counters", .min_width = 4, .max_width = 4, .read = counters_read, .write = counters_write,
};

int counters_create(struct guest *vm)
{
    struct counters *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    c->vm = vm;
    pthread_mutex_init(&c->lock, NULL);
    vm->counters = c;
    bus_add_ports(machine_bus(vm->machine), PORT_COUNTERS, NR_PORTS, 0, &counters_io, c);
    if (xen_wanted(vm->config))
        xen_give_ports(paravirt_xen(vm->pv), PORT_COUNTERS, NR_PORTS);
    return 0;
}

void counters_destroy(struct guest *vm)
{
    if (!vm->counters)
        return;
    pthread_mutex_destroy(&vm->counters->lock);
    free(vm->counters);
    vm->counters = NULL;
}
