/*
 * acpi_pm.c - ACPI fixed hardware. Source: ACPI 6.4 §4.8.3 (PM1, PM timer), §4.8.4 (GPE), §16.1.6
 * (S5). The machine is always in ACPI mode (the FADT has no SMI command), so SCI_EN reads as 1.
 * Not modelled: sleep states other than S5 (a request for them wakes at once), bus-master status.
 * Threads: ports on vCPU threads, timer on the I/O thread, the button from any; under pm->lock.
 */
#include "machine/chips/acpi_pm.h"
#include "machine/layout.h"
#include <string.h>

#define OFF(port) ((port) - PORT_PM1_EVT)
#define PM1_TMR 0x0001
#define PM1_GBL 0x0020
#define PM1_PWRBTN 0x0100
#define PM1_RTC 0x0400
#define PM1_WAK 0x8000
#define CNT_SCI_EN 0x0001
#define CNT_SLP_TYP 0x1c00
#define CNT_SLP_EN 0x2000

static u64 ticks(const struct acpi_pm *pm)
{
    return clock_scale(clock_now(pm->wiring.clock), PM_TIMER_HZ, NS_PER_SEC);
}

static void update_sci(struct acpi_pm *pm)
{
    bool level = (pm->status & pm->enable & (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_RTC)) ||
                 (pm->gpe_status & pm->gpe_enable);
    if (level == pm->sci_level)
        return;
    pm->sci_level = level;
    irq_set(&pm->wiring.sci, level);
}

/* TMR_STS is set when bit 31 of the timer changes, every 10 minutes. */
static void sync(struct acpi_pm *pm)
{
    u64 half = ticks(pm) >> 31;
    if (half != pm->seen_half)
        pm->status |= PM1_TMR;
    pm->seen_half = half;
    if ((pm->enable & PM1_TMR) && !(pm->status & PM1_TMR))
        timer_arm(pm->wiring.clock, &pm->timer,
                  clock_scale_up((half + 1) << 31, NS_PER_SEC, PM_TIMER_HZ));
    update_sci(pm);
}

static void timer_due(void *opaque)
{
    struct acpi_pm *pm = opaque;
    pthread_mutex_lock(&pm->lock);
    sync(pm);
    pthread_mutex_unlock(&pm->lock);
}

static void control_write(struct acpi_pm *pm, u16 value)
{
    pm->control = value & CNT_SLP_TYP;
    if (!(value & CNT_SLP_EN))
        return;
    /* Firmware does not read our \_S5: on the 82371AB, type 0 is soft off (290562 §7.2.3). */
    unsigned type = (value & CNT_SLP_TYP) >> 10;
    if (type == ACPI_SLP_TYP_S5 || type == 0)
        pm->wiring.power_off(pm->wiring.opaque);
    else
        pm->status |= PM1_WAK;
}

static u16 *reg(struct acpi_pm *pm, u64 off)
{
    switch (off & ~1ull) {
    case OFF(PORT_PM1_EVT): return &pm->status;
    case OFF(PORT_PM1_EVT) + 2: return &pm->enable;
    case OFF(PORT_PM1_CNT): return &pm->control;
    case OFF(PORT_GPE0): return &pm->gpe_status;
    case OFF(PORT_GPE0) + 2: return &pm->gpe_enable;
    default: return NULL;
    }
}

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct acpi_pm *pm = dev;
    u64 value = 0;
    (void)size;
    pthread_mutex_lock(&pm->lock);
    sync(pm);
    u16 *r = reg(pm, off);
    if (r)
        value = *r;
    if (r == &pm->control)
        value |= CNT_SCI_EN;
    pthread_mutex_unlock(&pm->lock);
    return value >> (off & 1) * 8;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct acpi_pm *pm = dev;
    unsigned shift = (off & 1) * 8;
    u16 mask = size == 1 ? (u16)(0xff << shift) : 0xffff;
    u16 bits = (u16)(value << shift) & mask;
    pthread_mutex_lock(&pm->lock);
    u16 *r = reg(pm, off);
    if (r == &pm->status || r == &pm->gpe_status)
        *r &= (u16)~bits; /* write one to clear */
    else if (r == &pm->control)
        control_write(pm, (u16)((pm->control & ~mask) | bits));
    else if (r)
        *r = (u16)((*r & ~mask) | bits);
    pm->enable &= PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_RTC;
    sync(pm);
    pthread_mutex_unlock(&pm->lock);
}

/* The timer is 32 bits wide and read in one go, so it needs a region of its own. */
static u64 tmr_read(void *dev, u64 off, unsigned size)
{
    struct acpi_pm *pm = dev;
    (void)size;
    return ticks(pm) >> (off * 8); /* no state: no lock */
}

static void tmr_write(void *dev, u64 off, unsigned size, u64 value)
{
    (void)dev, (void)off, (void)size, (void)value; /* read-only */
}

void pm_power_button(struct acpi_pm *pm)
{
    pthread_mutex_lock(&pm->lock);
    pm->status |= PM1_PWRBTN;
    update_sci(pm);
    pthread_mutex_unlock(&pm->lock);
}

void pm_gpe(struct acpi_pm *pm, unsigned n)
{
    pthread_mutex_lock(&pm->lock);
    pm->gpe_status |= (u16)BIT(n & 15);
    update_sci(pm);
    pthread_mutex_unlock(&pm->lock);
}

static void pm_reset(void *dev)
{
    struct acpi_pm *pm = dev;
    pthread_mutex_lock(&pm->lock);
    pm->status = pm->enable = pm->control = pm->gpe_status = pm->gpe_enable = 0;
    pm->seen_half = ticks(pm) >> 31;
    update_sci(pm);
    pthread_mutex_unlock(&pm->lock);
}

static int pm_init(void *dev, const void *wiring)
{
    struct acpi_pm *pm = dev;
    memset(pm, 0, sizeof(*pm));
    pm->wiring = *(const struct pm_wiring *)wiring;
    int err = timer_init(pm->wiring.clock, &pm->timer, timer_due, pm);
    if (err)
        return err;
    pthread_mutex_init(&pm->lock, NULL);
    pm_reset(pm);
    return 0;
}

static void pm_fini(void *dev)
{
    struct acpi_pm *pm = dev;
    pthread_mutex_destroy(&pm->lock);
}

static int pm_loaded(void *dev)
{
    struct acpi_pm *pm = dev;
    timer_arm(pm->wiring.clock, &pm->timer, clock_now(pm->wiring.clock));
    return 0;
}

static const struct state_field pm_state[] = {
    STATE(struct acpi_pm, sci_level),
    STATE(struct acpi_pm, status), STATE(struct acpi_pm, enable), STATE(struct acpi_pm, control),
    STATE(struct acpi_pm, gpe_status), STATE(struct acpi_pm, gpe_enable),
    STATE(struct acpi_pm, seen_half), STATE_END
};

static const struct io_ops pm_io = { "acpi_pm", 1, 2, io_read, io_write };
const struct io_ops acpi_pm_timer = { "pm_timer", 1, 4, tmr_read, tmr_write };

const struct device_class acpi_pm = {
    .name = "acpi_pm", .size = sizeof(struct acpi_pm),
    .init = pm_init, .reset = pm_reset, .fini = pm_fini,
    .state = pm_state, .io = &pm_io, .loaded = pm_loaded,
};
