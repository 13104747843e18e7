/* ioapic.h - 82093AA I/O APIC. All functions under the interrupt controllers' lock. */
#pragma once
#include "base/types.h"
#include "machine/chips/lapic.h"
#include "machine/device.h"

#define IOAPIC_PINS 24

struct ioapic {
    struct lapic_bus *apics;
    pthread_mutex_t *lock; /* taken by the MMIO handlers */
    u64 redir[IOAPIC_PINS];
    u32 lines; /* levels of the pins */
    u32 id;
    u8 select;
};

void ioapic_init(struct ioapic *io, struct lapic_bus *apics, pthread_mutex_t *lock);
void ioapic_reset(struct ioapic *io);
void ioapic_set_pin(struct ioapic *io, unsigned pin, bool level);
/* ioapic_eoi - a local APIC has ended this level-triggered vector. */
void ioapic_eoi(struct ioapic *io, u8 vector);
extern const struct io_ops ioapic_mmio; /* dev is the struct ioapic; takes the lock */
extern const struct state_field ioapic_state[];
