/*
 * mc146818.c - Motorola MC146818A real-time clock with 128 bytes of RAM. Source: MC146818A data
 * sheet (1984); CMOS byte meanings as in SeaBIOS and bochs.
 * Not modelled: square wave output, daylight saving, divider chains other than "running" and "held
 * in reset". Flags are brought up to date when looked at; a timer runs only while an interrupt is
 * enabled.
 * Threads: ports on vCPU threads, the timer on the I/O thread; under r->lock.
 */
#define _GNU_SOURCE /* timegm */
#include "machine/chips/mc146818.h"
#include <errno.h>
#include <string.h>
#include <time.h>

enum { SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM,
       WEEKDAY, DAY, MONTH, YEAR, REG_A, REG_B, REG_C, REG_D };
#define A_UIP 0x80
#define A_DIVIDER 0x70
#define B_SET 0x80
#define B_PIE 0x40
#define B_AIE 0x20
#define B_UIE 0x10
#define B_BINARY 0x04
#define B_24H 0x02
#define C_IRQF 0x80
#define C_PF 0x40
#define C_AF 0x20
#define C_UF 0x10
#define D_VRT 0x80
#define UIP_NS 244000ull /* UIP rises this long before the update */

/* -- Time ----------------------------------------------------------------- */

static u64 wall_ns(const struct mc146818 *r)
{
    return clock_now(r->wiring.clock) + r->offset_ns;
}

static u8 encode(const struct mc146818 *r, unsigned v)
{
    return (u8)(r->cmos[REG_B] & B_BINARY ? v : v / 10 << 4 | v % 10);
}

static unsigned decode(const struct mc146818 *r, u8 v)
{
    return r->cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10u + (v & 15);
}

static u8 encode_hour(const struct mc146818 *r, unsigned hour)
{
    if (r->cmos[REG_B] & B_24H)
        return encode(r, hour);
    return encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const struct mc146818 *r, u8 v)
{
    if (r->cmos[REG_B] & B_24H)
        return decode(r, v);
    return decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

static bool stopped(const struct mc146818 *r)
{
    return (r->cmos[REG_B] & B_SET) || (r->cmos[REG_A] & 0x60) == 0x60;
}

static void show_time(struct mc146818 *r, u64 seconds)
{
    time_t t = (time_t)seconds;
    struct tm tm;
    gmtime_r(&t, &tm);
    r->cmos[SECONDS] = encode(r, (unsigned)tm.tm_sec);
    r->cmos[MINUTES] = encode(r, (unsigned)tm.tm_min);
    r->cmos[HOURS] = encode_hour(r, (unsigned)tm.tm_hour);
    r->cmos[WEEKDAY] = encode(r, (unsigned)tm.tm_wday + 1);
    r->cmos[DAY] = encode(r, (unsigned)tm.tm_mday);
    r->cmos[MONTH] = encode(r, (unsigned)tm.tm_mon + 1);
    r->cmos[YEAR] = encode(r, (unsigned)tm.tm_year % 100);
    r->cmos[CMOS_CENTURY] = encode(r, (unsigned)(tm.tm_year + 1900) / 100 % 100);
}

/* The guest has set the time registers: keep the fraction of the second running. */
static void take_time(struct mc146818 *r)
{
    struct tm tm = {
        .tm_sec = (int)decode(r, r->cmos[SECONDS]),
        .tm_min = (int)decode(r, r->cmos[MINUTES]),
        .tm_hour = (int)decode_hour(r, r->cmos[HOURS]),
        .tm_mday = (int)decode(r, r->cmos[DAY]),
        .tm_mon = (int)decode(r, r->cmos[MONTH]) - 1,
        .tm_year = (int)(decode(r, r->cmos[CMOS_CENTURY]) * 100 + decode(r, r->cmos[YEAR])) - 1900,
    };
    time_t t = timegm(&tm);
    u64 now = clock_now(r->wiring.clock);
    u64 fraction = (now + r->offset_ns) % NS_PER_SEC;
    r->offset_ns = (u64)t * NS_PER_SEC + fraction - now; /* modulo 2^64: before 1970 works too */
    r->seen_s = (now + r->offset_ns) / NS_PER_SEC;
}

/* An alarm byte of 0xc0 and above matches everything. */
static bool alarm_matches(const struct mc146818 *r, u64 seconds)
{
    const u8 *c = r->cmos;
    unsigned s = (unsigned)(seconds % 60), m = (unsigned)(seconds / 60 % 60);
    unsigned h = (unsigned)(seconds / 3600 % 24);
    return (c[SECONDS_ALARM] >= 0xc0 || decode(r, c[SECONDS_ALARM]) == s) &&
           (c[MINUTES_ALARM] >= 0xc0 || decode(r, c[MINUTES_ALARM]) == m) &&
           (((c[HOURS_ALARM] & 0xc0) == 0xc0) || decode_hour(r, c[HOURS_ALARM]) == h);
}

/* -- Interrupts ----------------------------------------------------------- */

/* Periodic rate in ns, 0: off. Rates 1 and 2 are those of 8 and 9 with this time base. */
static u64 period_ns(const struct mc146818 *r)
{
    unsigned rate = r->cmos[REG_A] & 15;
    if (!rate || (r->cmos[REG_A] & 0x60) == 0x60)
        return 0;
    if (rate < 3)
        rate += 7;
    return clock_scale(1ull << (rate - 1), NS_PER_SEC, 32768);
}

static void update_irq(struct mc146818 *r)
{
    u8 *c = r->cmos;
    c[REG_C] &= (u8)~C_IRQF;
    if (c[REG_B] & c[REG_C] & (C_PF | C_AF | C_UF))
        c[REG_C] |= C_IRQF;
    bool level = c[REG_C] & C_IRQF;
    if (level == r->irq_level)
        return;
    r->irq_level = level;
    irq_set(&r->wiring.irq, level);
}

/* Bring time registers and flags up to now. */
static void sync(struct mc146818 *r)
{
    u64 period = period_ns(r);
    if (period) {
        u64 n = clock_now(r->wiring.clock) / period;
        if (n != r->seen_period)
            r->cmos[REG_C] |= C_PF;
        r->seen_period = n;
    }
    if (stopped(r))
        return;
    u64 seconds = wall_ns(r) / NS_PER_SEC;
    if (seconds != r->seen_s) {
        r->cmos[REG_C] |= C_UF;
        /* A day has all alarms in it. */
        u64 from = seconds - r->seen_s > 86400 ? seconds - 86400 : r->seen_s;
        for (u64 s = from + 1; s <= seconds; s++) {
            if (alarm_matches(r, s)) {
                r->cmos[REG_C] |= C_AF;
                break;
            }
        }
        r->seen_s = seconds;
    }
    show_time(r, seconds);
}

/* Only enabled interrupts whose flag is clear need a wake-up. */
static void schedule(struct mc146818 *r)
{
    u8 want = r->cmos[REG_B] & ~r->cmos[REG_C];
    u64 now = clock_now(r->wiring.clock), due = CLOCK_NEVER, period = period_ns(r);
    if ((want & B_PIE) && period)
        due = (now / period + 1) * period;
    if ((want & (B_AIE | B_UIE)) && !stopped(r))
        due = MIN(due, now + NS_PER_SEC - wall_ns(r) % NS_PER_SEC);
    if (due != CLOCK_NEVER)
        timer_arm(r->wiring.clock, &r->timer, due);
    else
        timer_cancel(r->wiring.clock, &r->timer);
}

static void timer_due(void *opaque)
{
    struct mc146818 *r = opaque;
    pthread_mutex_lock(&r->lock);
    sync(r);
    update_irq(r);
    schedule(r);
    pthread_mutex_unlock(&r->lock);
}

/* -- Registers ------------------------------------------------------------ */

static u8 data_read(struct mc146818 *r)
{
    u8 value;
    sync(r);
    switch (r->index) {
    case REG_A:
        value = r->cmos[REG_A];
        if (!stopped(r) && wall_ns(r) % NS_PER_SEC >= NS_PER_SEC - UIP_NS)
            value |= A_UIP;
        return value;
    case REG_C:
        update_irq(r);
        value = r->cmos[REG_C];
        r->cmos[REG_C] = 0;
        update_irq(r);
        schedule(r);
        return value;
    case REG_D:
        return D_VRT;
    default:
        return r->cmos[r->index];
    }
}

static bool is_time(u8 index)
{
    return index == SECONDS || index == MINUTES || index == HOURS ||
           (index >= WEEKDAY && index <= YEAR) || index == CMOS_CENTURY;
}

static void data_write(struct mc146818 *r, u8 value)
{
    bool was_stopped = stopped(r);
    sync(r);
    switch (r->index) {
    case REG_A:
        r->cmos[REG_A] = value & 0x7f;
        if (period_ns(r))
            r->seen_period = clock_now(r->wiring.clock) / period_ns(r);
        break;
    case REG_B:
        r->cmos[REG_B] = value & B_SET ? value & (u8)~B_UIE : value;
        break;
    case REG_C:
    case REG_D:
        return; /* read-only */
    default:
        r->cmos[r->index] = value;
        if (is_time(r->index) && !stopped(r))
            take_time(r);
    }
    if (was_stopped && !stopped(r))
        take_time(r); /* what was written while stopped becomes the time */
    update_irq(r);
    schedule(r);
}

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct mc146818 *r = dev;
    (void)size;
    pthread_mutex_lock(&r->lock);
    u8 value = off ? data_read(r) : 0xff; /* the index is write-only */
    pthread_mutex_unlock(&r->lock);
    return value;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct mc146818 *r = dev;
    (void)size;
    pthread_mutex_lock(&r->lock);
    if (off)
        data_write(r, (u8)value);
    else
        r->index = value & 0x7f; /* bit 7 masks NMI on a PC: not modelled */
    pthread_mutex_unlock(&r->lock);
}

/* -- Class ---------------------------------------------------------------- */

static void put16(u8 *p, u64 v)
{
    v = MIN(v, (u64)0xffff);
    p[0] = (u8)v;
    p[1] = (u8)(v >> 8);
}

static void fill_cmos(struct mc146818 *r)
{
    const struct rtc_wiring *w = &r->wiring;
    const u64 mib = 1 << 20;
    put16(&r->cmos[CMOS_BASE_MEM], MIN(w->low_ram >> 10, (u64)640));
    u64 ext_kib = w->low_ram > mib ? (w->low_ram - mib) >> 10 : 0;
    put16(&r->cmos[CMOS_EXT_MEM], ext_kib);
    put16(&r->cmos[CMOS_EXT_MEM2], ext_kib);
    put16(&r->cmos[CMOS_MEM_16M], w->low_ram > 16 * mib ? (w->low_ram - 16 * mib) >> 16 : 0);
    u64 above = w->high_ram >> 16;
    for (unsigned i = 0; i < 3; i++)
        r->cmos[CMOS_MEM_4G + i] = (u8)(above >> i * 8);
    r->cmos[CMOS_NR_CPUS] = (u8)(w->nr_cpus - 1);
    static const char devices[] = "acdn";
    for (unsigned i = 0; w->boot_order && w->boot_order[i] && i < 3; i++) {
        const char *at = strchr(devices, w->boot_order[i]);
        u8 code = at ? (u8)(at - devices + 1) : 0;
        r->cmos[i < 2 ? CMOS_BOOT12 : CMOS_BOOT3] |= i == 1 || i == 2 ? (u8)(code << 4) : code;
    }
    r->cmos[0x10] = w->floppies;
    if (w->floppies)
        r->cmos[0x14] |= (u8)(0x01 | (w->floppies & 15 ? 0x40 : 0)); /* equipment: floppy drives */
    r->cmos[0x14] |= 0x02; /* equipment: a coprocessor */
}

/* RESET clears the interrupt enables and flags; time and RAM are on the battery. */
static void rtc_reset(void *dev)
{
    struct mc146818 *r = dev;
    pthread_mutex_lock(&r->lock);
    r->cmos[REG_A] = 0x26;
    r->cmos[REG_B] = B_24H;
    r->cmos[REG_C] = 0;
    r->index = 0;
    update_irq(r);
    schedule(r);
    pthread_mutex_unlock(&r->lock);
}

static int rtc_init(void *dev, const void *wiring)
{
    struct mc146818 *r = dev;
    memset(r, 0, sizeof(*r));
    r->wiring = *(const struct rtc_wiring *)wiring;
    int err = timer_init(r->wiring.clock, &r->timer, timer_due, r);
    if (err)
        return err;
    pthread_mutex_init(&r->lock, NULL);
    r->offset_ns = r->wiring.wall_ns;
    r->seen_s = wall_ns(r) / NS_PER_SEC;
    fill_cmos(r);
    rtc_reset(r);
    return 0;
}

static void rtc_fini(void *dev)
{
    struct mc146818 *r = dev;
    pthread_mutex_destroy(&r->lock);
}

void mc146818_skip(struct mc146818 *r, s64 ns)
{
    pthread_mutex_lock(&r->lock);
    sync(r);
    r->offset_ns += (u64)ns;
    if (ns < 0) /* alarms of this hour may ring again, not those of all times */
        r->seen_s = wall_ns(r) / NS_PER_SEC;
    schedule(r);
    pthread_mutex_unlock(&r->lock);
}

static int rtc_loaded(void *dev)
{
    struct mc146818 *r = dev;
    if (r->index > 0x7f || r->seen_s > wall_ns(r) / NS_PER_SEC)
        return -EINVAL;
    timer_arm(r->wiring.clock, &r->timer, clock_now(r->wiring.clock));
    return 0;
}

static const struct state_field rtc_state[] = {
    STATE(struct mc146818, irq_level), STATE(struct mc146818, index), STATE(struct mc146818, cmos), STATE(struct mc146818, offset_ns),
    STATE(struct mc146818, seen_s), STATE(struct mc146818, seen_period), STATE_END
};

static const struct io_ops rtc_io = { "mc146818", 1, 1, io_read, io_write };

const struct device_class mc146818 = {
    .name = "mc146818", .size = sizeof(struct mc146818),
    .init = rtc_init, .reset = rtc_reset, .fini = rtc_fini,
    .state = rtc_state, .io = &rtc_io, .loaded = rtc_loaded,
};
