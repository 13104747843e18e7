/* acpi_pm.h - the fixed hardware of ACPI: PM1 event and control blocks, PM timer, GPE0. */
#pragma once
#include "base/types.h"
#include "machine/clock.h"
#include "machine/device.h"
#include "machine/irq.h"

#define PM_TIMER_HZ 3579545ull

struct pm_wiring {
    struct irq_line sci;
    struct vm_clock *clock;
    void (*power_off)(void *opaque); /* called with the lock held */
    void *opaque;
};

struct acpi_pm {
    pthread_mutex_t lock;
    struct pm_wiring wiring;
    u16 status, enable, control, gpe_status, gpe_enable;
    u64 seen_half; /* half-periods of the timer looked at: its top bit's changes */
    bool sci_level;
    struct vm_timer timer;
};

/* pm_power_button - a press of the fixed-feature button. Any thread. */
void pm_power_button(struct acpi_pm *pm);
/* pm_gpe - raise a general-purpose event, 0..15. Any thread. */
void pm_gpe(struct acpi_pm *pm, unsigned n);
/* Offsets from PORT_PM1_EVT; the timer (offset 0) has its own access rules. */
extern const struct device_class acpi_pm;
extern const struct io_ops acpi_pm_timer;
