/*
 * i8254.c - Intel 8254 programmable interval timer. Source: Intel 8254 data sheet (1993); port
 * 0x61: Intel 82371AB (PIIX4) §4.2. Counters are not stepped: everything is computed from the
 * clock.
 * Departures: in modes 2 and 3 a new count takes effect at once, not at the end of the period; the
 * one-clock delay of loading is left out; channel 0's OUT stays high between its rising edges, so
 * that an edge never withdraws itself; edges that the host was too late for are merged.
 * Threads: ports on vCPU threads, the timer on the I/O thread; under p->lock.
 */
#include "machine/chips/i8254.h"
#include <errno.h>
#include <string.h>

#define PORT_B_GATE2 0x01
#define PORT_B_REFRESH 0x10
#define PORT_B_OUT2 0x20
#define REFRESH_NS 15085ull

/* -- Counting ------------------------------------------------------------- */

static u64 now_ticks(const struct i8254 *p)
{
    return clock_scale(clock_now(p->wiring.clock), PIT_HZ, NS_PER_SEC);
}

static u64 elapsed(const struct i8254 *p, const struct pit_channel *c)
{
    return c->running ? now_ticks(p) - c->start : c->held;
}

static u32 from_bcd(u32 v)
{
    return (v & 15) + (v >> 4 & 15) * 10 + (v >> 8 & 15) * 100 + (v >> 12 & 15) * 1000;
}

static u32 to_bcd(u32 v)
{
    return v % 10 | (v / 10 % 10) << 4 | (v / 100 % 10) << 8 | (v / 1000 % 10) << 12;
}

static u32 modulus(const struct pit_channel *c)
{
    return c->bcd ? 10000 : 65536;
}

static u32 initial(const struct pit_channel *c)
{
    u32 n = c->bcd ? from_bcd(c->reload) : c->reload;
    return n ? n : modulus(c);
}

static u16 count(const struct i8254 *p, const struct pit_channel *c)
{
    u64 d = elapsed(p, c);
    u32 n = initial(c), v;
    if (!c->loaded)
        v = c->reload ? n : 0;
    else if (c->mode == 2)
        v = n - (u32)(d % n);
    else if (c->mode == 3) /* by twos, twice a period */
        v = (n - (u32)(d * 2 % n)) & ~1u;
    else
        v = (n - (u32)(d % modulus(c)) + modulus(c)) % modulus(c);
    v %= modulus(c);
    return (u16)(c->bcd ? to_bcd(v) : v);
}

static bool out(const struct i8254 *p, const struct pit_channel *c)
{
    u64 d = elapsed(p, c);
    u32 n = initial(c);
    if (!c->loaded)
        return c->mode != 0;
    switch (c->mode) {
    case 0: return d >= n;
    case 1: return !c->running || d >= n;
    case 2: return !c->running || d % n != n - 1;
    case 3: return !c->running || d % n < (n + 1) / 2;
    default: return d != n; /* 4, 5: low for one clock */
    }
}

/* -- Channel 0's interrupt ------------------------------------------------ */

/* The tick, counted from start, of the first rising edge of OUT after `d`; 0: none. */
static u64 next_edge(const struct pit_channel *c, u64 d)
{
    u32 n = initial(c);
    if (!c->loaded || !c->running)
        return 0;
    switch (c->mode) {
    case 0: case 1: return d < n ? n : 0;
    case 2: case 3: return (d / n + 1) * n;
    default: return d < n + 1ull ? n + 1ull : 0;
    }
}

static void schedule(struct i8254 *p)
{
    struct pit_channel *c = &p->ch[0];
    u64 edge = next_edge(c, elapsed(p, c));
    p->irq_due_ns = edge ? clock_scale_up(c->start + edge, NS_PER_SEC, PIT_HZ) : 0;
    if (edge)
        timer_arm(p->wiring.clock, &p->timer, p->irq_due_ns);
    else
        timer_cancel(p->wiring.clock, &p->timer);
}

static void timer_due(void *opaque)
{
    struct i8254 *p = opaque;
    pthread_mutex_lock(&p->lock);
    if (p->irq_due_ns && clock_now(p->wiring.clock) >= p->irq_due_ns) {
        irq_set(&p->wiring.irq, false);
        irq_set(&p->wiring.irq, true);
        schedule(p);
    }
    pthread_mutex_unlock(&p->lock);
}

/* The chip's channel 0 changed: its OUT now, and its next edge. */
static void update_irq(struct i8254 *p)
{
    struct pit_channel *c = &p->ch[0];
    bool level = c->loaded && c->mode >= 2 ? true : out(p, c);
    irq_set(&p->wiring.irq, level);
    schedule(p);
}

/* -- Registers ------------------------------------------------------------ */

static void start(struct i8254 *p, struct pit_channel *c)
{
    c->start = now_ticks(p);
    c->held = 0;
    c->running = true;
}

static void load(struct i8254 *p, struct pit_channel *c, u16 value)
{
    bool was_running = c->loaded && c->running;
    c->reload = value;
    c->loaded = true;
    if (c->mode == 1 || c->mode == 5) { /* wait for the gate's edge */
        if (!was_running) {
            c->running = false;
            c->held = 0;
        }
        return;
    }
    start(p, c);
    c->running = c->gate;
}

static void gate_set(struct i8254 *p, struct pit_channel *c, bool gate)
{
    if (gate == c->gate)
        return;
    u64 d = elapsed(p, c);
    c->gate = gate;
    switch (c->mode) {
    case 0: case 4: /* the gate stops and resumes counting */
        c->held = d;
        c->start = now_ticks(p) - d;
        c->running = gate && c->loaded;
        break;
    case 2: case 3:
        if (gate && c->loaded)
            start(p, c);
        else
            c->running = false;
        break;
    default: /* 1, 5: the rising edge triggers */
        if (gate && c->loaded)
            start(p, c);
    }
}

static void latch_count(struct i8254 *p, struct pit_channel *c)
{
    if (c->latched)
        return; /* a second latch is ignored until the first is read */
    c->latch = count(p, c);
    c->latched = c->rw == 3 ? 2 : 1;
    if (c->rw == 3)
        c->read_msb = false;
}

static void latch_status(struct i8254 *p, struct pit_channel *c)
{
    if (c->status_latched)
        return;
    c->status = (u8)(out(p, c) << 7 | !c->loaded << 6 | c->rw << 4 | c->mode << 1 | c->bcd);
    c->status_latched = true;
}

static void control_write(struct i8254 *p, u8 value)
{
    unsigned n = value >> 6;
    if (n == 3) { /* read-back: 5 clear: counts, 4 clear: status, 3..1: channels */
        for (unsigned i = 0; i < 3; i++) {
            if (!(value & BIT(i + 1)))
                continue;
            if (!(value & 0x20))
                latch_count(p, &p->ch[i]);
            if (!(value & 0x10))
                latch_status(p, &p->ch[i]);
        }
        return;
    }
    struct pit_channel *c = &p->ch[n];
    unsigned rw = value >> 4 & 3, mode = value >> 1 & 7;
    if (!rw) {
        latch_count(p, c);
        return;
    }
    c->rw = (u8)rw;
    c->mode = (u8)(mode > 5 ? mode & 3 : mode);
    c->bcd = value & 1;
    c->loaded = c->running = c->write_msb = c->read_msb = c->status_latched = false;
    c->latched = 0;
    c->held = 0;
    if (n == 0)
        update_irq(p);
}

static void count_write(struct i8254 *p, unsigned n, u8 value)
{
    struct pit_channel *c = &p->ch[n];
    if (c->rw == 1) {
        load(p, c, value);
    } else if (c->rw == 2) {
        load(p, c, (u16)(value << 8));
    } else if (!c->write_msb) {
        c->write_lsb = value;
        c->write_msb = true;
        if (c->mode != 0)
            return;
        c->loaded = c->running = false; /* mode 0: the first byte stops counting, OUT low */
        c->held = 0;
    } else {
        c->write_msb = false;
        load(p, c, (u16)(c->write_lsb | value << 8));
    }
    if (n == 0)
        update_irq(p);
}

static u8 count_read(struct i8254 *p, struct pit_channel *c)
{
    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    u16 v = c->latched ? c->latch : count(p, c);
    if (c->latched)
        c->latched--;
    if (c->rw == 1)
        return (u8)v;
    if (c->rw == 2)
        return (u8)(v >> 8);
    c->read_msb = !c->read_msb;
    return (u8)(c->read_msb ? v : v >> 8);
}

static u8 port_b_read(struct i8254 *p)
{
    u8 value = p->port_b;
    if (clock_now(p->wiring.clock) / REFRESH_NS & 1)
        value |= PORT_B_REFRESH;
    if (out(p, &p->ch[2]))
        value |= PORT_B_OUT2;
    return value;
}

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct i8254 *p = dev;
    u8 value;
    (void)size;
    pthread_mutex_lock(&p->lock);
    if (off == 4)
        value = port_b_read(p);
    else if (off == 3)
        value = 0xff; /* the control word is write-only */
    else
        value = count_read(p, &p->ch[off]);
    pthread_mutex_unlock(&p->lock);
    return value;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct i8254 *p = dev;
    (void)size;
    pthread_mutex_lock(&p->lock);
    if (off == 4) {
        p->port_b = value & 0x0f;
        gate_set(p, &p->ch[2], value & PORT_B_GATE2);
    } else if (off == 3) {
        control_write(p, (u8)value);
    } else {
        count_write(p, (unsigned)off, (u8)value);
    }
    pthread_mutex_unlock(&p->lock);
}

/* -- Class ---------------------------------------------------------------- */

static void pit_reset(void *dev)
{
    struct i8254 *p = dev;
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 0; i < 3; i++)
        p->ch[i] = (struct pit_channel){ .mode = 3, .rw = 3, .gate = i != 2 };
    p->port_b = 0;
    update_irq(p);
    pthread_mutex_unlock(&p->lock);
}

static int pit_init(void *dev, const void *wiring)
{
    struct i8254 *p = dev;
    memset(p, 0, sizeof(*p));
    p->wiring = *(const struct pit_wiring *)wiring;
    int err = timer_init(p->wiring.clock, &p->timer, timer_due, p);
    if (err)
        return err;
    pthread_mutex_init(&p->lock, NULL);
    pit_reset(p);
    return 0;
}

static void pit_fini(void *dev)
{
    struct i8254 *p = dev;
    pthread_mutex_destroy(&p->lock);
}

static int pit_loaded(void *dev)
{
    struct i8254 *p = dev;
    for (unsigned i = 0; i < 3; i++) {
        const struct pit_channel *c = &p->ch[i];
        if (c->mode > 5 || c->rw < 1 || c->rw > 3 || c->bcd > 1 || c->latched > 2 ||
            c->start > now_ticks(p) + 1)
            return -EINVAL;
    }
    if (p->irq_due_ns)
        timer_arm(p->wiring.clock, &p->timer, p->irq_due_ns);
    return 0;
}

/* clang-format off */
#define CHANNEL(n) \
    STATE(struct i8254, ch[n].mode), STATE(struct i8254, ch[n].rw), STATE(struct i8254, ch[n].bcd), \
    STATE(struct i8254, ch[n].gate), STATE(struct i8254, ch[n].loaded), STATE(struct i8254, ch[n].running), \
    STATE(struct i8254, ch[n].write_msb), STATE(struct i8254, ch[n].read_msb), \
    STATE(struct i8254, ch[n].write_lsb), STATE(struct i8254, ch[n].status_latched), \
    STATE(struct i8254, ch[n].status), STATE(struct i8254, ch[n].latched), STATE(struct i8254, ch[n].latch), \
    STATE(struct i8254, ch[n].reload), STATE(struct i8254, ch[n].start), STATE(struct i8254, ch[n].held)
static const struct state_field pit_state[] = {
    CHANNEL(0), CHANNEL(1), CHANNEL(2),
    STATE(struct i8254, port_b), STATE(struct i8254, irq_due_ns), STATE_END
};
#undef CHANNEL
/* clang-format on */

static const struct io_ops pit_io = { "i8254", 1, 1, io_read, io_write };

const struct device_class i8254 = {
    .name = "i8254", .size = sizeof(struct i8254),
    .init = pit_init, .reset = pit_reset, .fini = pit_fini,
    .state = pit_state, .io = &pit_io, .loaded = pit_loaded,
};
