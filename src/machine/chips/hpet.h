/* hpet.h - high precision event timers: a 64-bit counter and three comparators. */
#pragma once
#include "base/types.h"
#include "machine/clock.h"
#include "machine/device.h"
#include "machine/irq.h"
#include <pthread.h>

#define HPET_TIMERS 3
#define HPET_TICK_NS 10u
#define HPET_ROUTES 0x00f00000u /* the GSIs a comparator can be routed to */
#define HPET_ID 0x8086a201u     /* low half of the capabilities: revision 1, 3 timers, 64 bits, legacy routes */
#define HPET_SIZE 0x400u

struct hpet_wiring {
    struct vm_clock *clock;
    /* A comparator's output: its number, and a GSI of HPET_ROUTES, or GSI_PIT or GSI_RTC in legacy mode. */
    void (*set)(void *opaque, unsigned timer, unsigned gsi, bool level);
    /* The legacy routes are taken from 8254 and RTC, or given back. Both with the lock held. */
    void (*legacy)(void *opaque, bool on);
    void *opaque;
};

struct hpet_timer {
    struct hpet *hpet;
    u32 config;      /* what is written of TIMn_CONF */
    u64 comparator, period;
    u64 due_ns;      /* when it matches; CLOCK_NEVER: it does not */
    bool level;      /* its line is held */
    struct vm_timer timer;
};

struct hpet {
    pthread_mutex_t lock;
    struct hpet_wiring wiring;
    u32 config, status;
    u64 count; /* halted: the counter; enabled: what to add to the clock's ticks */
    struct hpet_timer t[HPET_TIMERS];
};

extern const struct device_class hpet;
