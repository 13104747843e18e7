/* i8254.h - 8254 timer, and the part of system control port B (0x61) that belongs to it. */
#pragma once
#include "base/types.h"
#include "machine/clock.h"
#include "machine/device.h"
#include "machine/irq.h"

#define PIT_HZ 1193182ull

struct pit_wiring {
    struct irq_line irq; /* channel 0's OUT */
    struct vm_clock *clock;
};

struct pit_channel {
    u8 mode, rw, bcd;     /* control word: mode 0..5, rw 1 LSB, 2 MSB, 3 both */
    bool gate, loaded, running;
    bool write_msb, read_msb;
    u8 write_lsb;
    bool status_latched;
    u8 status, latched;   /* latched: bytes of `latch` still to be read */
    u16 latch, reload;    /* reload as written; 0 means 65536 */
    u64 start, held;      /* clock tick at which counting began; ticks done while not running */
};

struct i8254 {
    pthread_mutex_t lock;
    struct pit_wiring wiring;
    struct pit_channel ch[3];
    u8 port_b;            /* bits 0-3 as written */
    u64 irq_due_ns;       /* next rising edge of channel 0's OUT; 0: none */
    struct vm_timer timer;
};

/* Offsets: 0-3 the chip, 4 port B. */
extern const struct device_class i8254;
