/*
 * hpet.c - see hpet.h. Source: IA-PC HPET specification 1.0a, §2.3 (registers), §2.4 (operation). 100 MHz. Not offered:
 * delivery as messages on the front-side bus. Periodic matches that come more often than every 50 us are given
 * together, as are those that the host was late for; their phase stays.
 * Threads: registers on vCPU threads, matches on the I/O thread; under h->lock.
 */
#include "machine/chips/hpet.h"
#include "machine/layout.h"
#include <errno.h>
#include <string.h>

#define REG_CAP 0x000
#define REG_CONFIG 0x010
#define REG_STATUS 0x020
#define REG_COUNTER 0x0f0
#define REG_TIMER 0x100

#define CONFIG_ENABLE 0x1u
#define CONFIG_LEGACY 0x2u

#define TN_LEVEL 0x0002u
#define TN_ENABLE 0x0004u
#define TN_PERIODIC 0x0008u
#define TN_CAPS 0x0030u     /* periodic, 64 bits wide */
#define TN_SET 0x0040u      /* the next write of the comparator sets it too, not just the period */
#define TN_32BIT 0x0100u
#define TN_ROUTE 0x3e00u
#define TN_WRITABLE (TN_LEVEL | TN_ENABLE | TN_PERIODIC | TN_SET | TN_32BIT | TN_ROUTE)

#define MIN_PERIOD_NS 50000u
#define FAR_NS (1ull << 60)

static u64 ticks(const struct hpet *h)
{
    return clock_now(h->wiring.clock) / HPET_TICK_NS;
}

static u64 counter(const struct hpet *h)
{
    return h->config & CONFIG_ENABLE ? ticks(h) + h->count : h->count;
}

/* -- Interrupts --------------------------------------------------------------------------------- */

/* Where comparator n's interrupt goes, or -1. */
static int route(const struct hpet *h, unsigned n)
{
    u32 gsi = (h->t[n].config & TN_ROUTE) >> 9;

    if ((h->config & CONFIG_LEGACY) && n < 2)
        return n ? GSI_RTC : GSI_PIT;
    return HPET_ROUTES & BIT(gsi) ? (int)gsi : -1;
}

static void drive(struct hpet *h, unsigned n, bool level)
{
    int gsi = route(h, n);

    if (gsi >= 0)
        h->wiring.set(h->wiring.opaque, n, (unsigned)gsi, level);
}

/* A level-triggered comparator's line, after any change. */
static void update_line(struct hpet *h, unsigned n)
{
    struct hpet_timer *t = &h->t[n];
    bool level = (t->config & TN_LEVEL) && (t->config & TN_ENABLE) && (h->status & BIT(n));

    if (level != t->level)
        drive(h, n, level);
    t->level = level;
}

static void fire(struct hpet *h, unsigned n)
{
    const struct hpet_timer *t = &h->t[n];

    if (t->config & TN_LEVEL) {
        h->status |= BIT(n);
        update_line(h, n);
    } else if ((t->config & TN_ENABLE) && (h->config & CONFIG_LEGACY) && n < 2) {
        /* The 8259 forgets an edge that is gone before INTA: as the 8254's output, the line stays up until the next match. */
        drive(h, n, false);
        drive(h, n, true);
    } else if (t->config & TN_ENABLE) {
        drive(h, n, true);
        drive(h, n, false);
    }
}

/* -- Matches ------------------------------------------------------------------------------------ */

static u64 width(const struct hpet_timer *t)
{
    return t->config & TN_32BIT ? 0xffffffffull : ~0ull;
}

/* When the counter shows the comparator next; a counter that shows it now has done so already. */
static void schedule(struct hpet *h, unsigned n)
{
    struct hpet_timer *t = &h->t[n];
    u64 left = (t->comparator - counter(h)) & width(t);

    if (!left)
        left = width(t) == ~0ull ? ~0ull : width(t) + 1;
    t->due_ns = CLOCK_NEVER;
    if ((h->config & CONFIG_ENABLE) && (t->config & TN_ENABLE) && left < FAR_NS / HPET_TICK_NS)
        t->due_ns = (ticks(h) + left) * HPET_TICK_NS;
    if (t->due_ns == CLOCK_NEVER)
        timer_cancel(h->wiring.clock, &t->timer);
    else
        timer_arm(h->wiring.clock, &t->timer, t->due_ns);
}

/* To the first multiple of the period after now, and not at once. */
static void advance(struct hpet *h, struct hpet_timer *t)
{
    u64 past = (counter(h) - t->comparator) & width(t), least = past + MIN_PERIOD_NS / HPET_TICK_NS;
    u64 steps = t->period >= least ? 1 : past / t->period + 1;

    if (t->period * steps < least)
        steps = least / t->period + 1;
    t->comparator = (t->comparator + steps * t->period) & width(t);
}

static void match(void *opaque)
{
    struct hpet_timer *t = opaque;
    struct hpet *h = t->hpet;

    pthread_mutex_lock(&h->lock);
    if (clock_now(h->wiring.clock) >= t->due_ns) {
        if ((t->config & TN_PERIODIC) && t->period)
            advance(h, t);
        fire(h, (unsigned)(t - h->t));
        schedule(h, (unsigned)(t - h->t));
    }
    pthread_mutex_unlock(&h->lock);
}

/* -- Registers ---------------------------------------------------------------------------------- */

static u64 timer_read(const struct hpet_timer *t, u64 reg)
{
    switch (reg) {
    case 0x00: return (u64)HPET_ROUTES << 32 | (t->config & ~TN_SET) | TN_CAPS;
    case 0x08: return t->comparator;
    default: return 0;
    }
}

static u64 reg_read(const struct hpet *h, u64 reg)
{
    switch (reg) {
    case REG_CAP: return (u64)HPET_TICK_NS * 1000000 << 32 | HPET_ID;
    case REG_CONFIG: return h->config;
    case REG_STATUS: return h->status;
    case REG_COUNTER: return counter(h);
    default: break;
    }
    u64 n = (reg - REG_TIMER) / 0x20;
    return reg >= REG_TIMER && n < HPET_TIMERS ? timer_read(&h->t[n], reg & 0x1f) : 0;
}

static void config_write(struct hpet *h, u32 value)
{
    u64 now = counter(h);
    u32 changed = (h->config ^ value) & (CONFIG_ENABLE | CONFIG_LEGACY);

    for (unsigned n = 0; n < HPET_TIMERS; n++) /* from where they are routed now */
        if (h->t[n].level || (h->config & CONFIG_LEGACY))
            drive(h, n, h->t[n].level = false);
    h->config ^= changed;
    if (changed & CONFIG_LEGACY)
        h->wiring.legacy(h->wiring.opaque, h->config & CONFIG_LEGACY);
    if (changed & CONFIG_ENABLE)
        h->count = h->config & CONFIG_ENABLE ? now - ticks(h) : now;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        update_line(h, n);
        schedule(h, n);
    }
}

static void timer_config_write(struct hpet *h, unsigned n, u32 value)
{
    struct hpet_timer *t = &h->t[n];

    if (t->level)
        drive(h, n, t->level = false);
    t->config = value & TN_WRITABLE;
    if (!(HPET_ROUTES & BIT((value & TN_ROUTE) >> 9)))
        t->config &= ~TN_ROUTE; /* how software finds out that it cannot go there */
    if (!(t->config & TN_LEVEL))
        h->status &= ~BIT(n);
    t->comparator &= width(t);
    t->period &= width(t);
    update_line(h, n);
    schedule(h, n);
}

static void comparator_write(struct hpet *h, unsigned n, u64 value)
{
    struct hpet_timer *t = &h->t[n];

    if (!(t->config & TN_PERIODIC) || (t->config & TN_SET))
        t->comparator = value & width(t);
    if (t->config & TN_PERIODIC)
        t->period = value & width(t);
    t->config &= ~TN_SET;
    schedule(h, n);
}

/* value: the register's 64 bits with what was written put in; mask: the bits that were written. */
static void reg_write(struct hpet *h, u64 reg, u64 value, u64 mask)
{
    u64 n = (reg - REG_TIMER) / 0x20;

    switch (reg) {
    case REG_CONFIG:
        config_write(h, (u32)value);
        return;
    case REG_STATUS:
        h->status &= ~(u32)(value & mask);
        for (unsigned i = 0; i < HPET_TIMERS; i++)
            update_line(h, i);
        return;
    case REG_COUNTER:
        if (!(h->config & CONFIG_ENABLE)) /* else undefined */
            h->count = value;
        return;
    default: break;
    }
    if (reg < REG_TIMER || n >= HPET_TIMERS)
        return;
    if ((reg & 0x1f) == 0 && (u32)mask)
        timer_config_write(h, (unsigned)n, (u32)value);
    else if ((reg & 0x1f) == 8)
        comparator_write(h, (unsigned)n, value);
}

static u64 mmio_read(void *dev, u64 off, unsigned size)
{
    struct hpet *h = dev;
    (void)size;
    pthread_mutex_lock(&h->lock);
    u64 value = reg_read(h, off & ~7ull) >> (off & 4) * 8;
    pthread_mutex_unlock(&h->lock);
    return value;
}

static void mmio_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct hpet *h = dev;
    u64 reg = off & ~7ull, mask = (size == 8 ? ~0ull : 0xffffffffull) << (off & 4) * 8;

    pthread_mutex_lock(&h->lock);
    value = (value << (off & 4) * 8 & mask) | (reg_read(h, reg) & ~mask);
    reg_write(h, reg, value, mask);
    pthread_mutex_unlock(&h->lock);
}

/* -- Life --------------------------------------------------------------------------------------- */

static void hpet_reset(void *dev)
{
    struct hpet *h = dev;

    pthread_mutex_lock(&h->lock);
    config_write(h, 0);
    h->status = 0;
    h->count = 0;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        timer_config_write(h, n, 0);
        h->t[n].comparator = ~0ull;
        h->t[n].period = 0;
    }
    pthread_mutex_unlock(&h->lock);
}

static int hpet_init(void *dev, const void *wiring)
{
    struct hpet *h = dev;

    memset(h, 0, sizeof(*h));
    h->wiring = *(const struct hpet_wiring *)wiring;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        h->t[n].hpet = h;
        int r = timer_init(h->wiring.clock, &h->t[n].timer, match, &h->t[n]);
        if (r)
            return r;
    }
    pthread_mutex_init(&h->lock, NULL);
    hpet_reset(h);
    return 0;
}

static void hpet_fini(void *dev)
{
    struct hpet *h = dev;

    pthread_mutex_destroy(&h->lock);
}

static int hpet_loaded(void *dev)
{
    struct hpet *h = dev;

    if (h->config & ~(CONFIG_ENABLE | CONFIG_LEGACY) || h->status >= BIT(HPET_TIMERS))
        return -EINVAL;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        const struct hpet_timer *t = &h->t[n];
        if (t->config & ~TN_WRITABLE || t->comparator & ~width(t) || t->period & ~width(t))
            return -EINVAL;
        schedule(h, n);
    }
    return 0;
}

/* clang-format off */
#define TIMER(n) \
    STATE(struct hpet, t[n].config), STATE(struct hpet, t[n].comparator), STATE(struct hpet, t[n].period), \
    STATE(struct hpet, t[n].level)
static const struct state_field hpet_state[] = {
    TIMER(0), TIMER(1), TIMER(2),
    STATE(struct hpet, config), STATE(struct hpet, status), STATE(struct hpet, count), STATE_END
};
#undef TIMER
/* clang-format on */

static const struct io_ops hpet_io = { "hpet", 4, 8, mmio_read, mmio_write };

const struct device_class hpet = {
    .name = "hpet", .size = sizeof(struct hpet),
    .init = hpet_init, .reset = hpet_reset, .fini = hpet_fini,
    .state = hpet_state, .io = &hpet_io, .loaded = hpet_loaded,
};
