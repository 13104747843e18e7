/*
 * gain.c - the same work by driving the machine and by asking Vitro, side by side: the lines of `vitro bench pv` that are
 * not about Linux. Start it with --counters and --cpus 2, or --cpus 1 for those about memory, or with disks and network cards
 * of each kind for those about devices (devices.c); it prints `sdk: LINE WAY OPERATIONS NS COUNTERS...`.
 *
 * "Unaware" is what a kernel would do on real hardware: port accesses, the local APIC's registers, page-table entries and
 * INVLPG. One row of `lines` is one line. Each is done in parts, and the quickest counts: the host has other work too.
 */
#include "gain/pc.h"

#define PARTS 7
#define COUNTERS 0x520 /* src/monitor/counters.h */
enum { START = 1, STOP = 2, SELECT = 0x100, MAX_COUNTERS = 16 };

static inline void wrmsr(uint32_t msr, uint64_t v)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

/* -- Interrupts -------------------------------------------------------------------------------------------------------- */

enum { MSR_TSC_DEADLINE = 0x6e0 };

/* What one processor writes and another waits for has a cache line of its own: else they are in each other's way. */
#define ALONE __attribute__((aligned(64)))
static volatile uint32_t ticks ALONE, pings ALONE;

static void apic_on(void)
{
    APIC(APIC_SVR) = 0x1ff;
    APIC(APIC_TIMER) = 0x40000 | VECTOR_TIMER; /* TSC deadline */
}
static void on_apic_timer(struct sdk_regs *r)
{
    (void)r;
    ticks = ticks + 1;
    APIC(APIC_EOI) = 0;
}
static void on_apic_ipi(struct sdk_regs *r)
{
    (void)r;
    pings = pings + 1;
    APIC(APIC_EOI) = 0;
}

/* -- Time --------------------------------------------------------------------------------------------------------------- */

enum { PORT_TIMER = 20, PORT_IPI = 21, TIMER = 5 };
static uint64_t tsc_per_us;
static volatile uint64_t sink ALONE;
static struct vt_timers timers __attribute__((aligned(1024)));

static void on_event_timer(void *arg) { (void)arg; ticks = ticks + 1; }
static void on_event_ipi(void *arg) { (void)arg; pings = pings + 1; }

static void clock_hardware(uint32_t n)
{
    while (n--)
        sink = inl(0x608); /* the ACPI PM timer: what needs no calibration */
}
static void clock_ask(uint32_t n)
{
    while (n--)
        sink = mono_ns();
}
static void timer_hardware(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        wrmsr(MSR_TSC_DEADLINE, rdtsc() + 1000000 * tsc_per_us);
    wrmsr(MSR_TSC_DEADLINE, 0);
}
static void timer_ask(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint64_t deadline = mono_ns() + 1000000000;
        if (!vt_timer_write(&timers, TIMER, deadline)) /* the first time: none is armed that is sooner */
            vt_call4(VT_TIMER_SET, TIMER, deadline, 0, PORT_TIMER);
    }
    vt_timer_write(&timers, TIMER, 0);
}
static void tick_hardware(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seen = ticks;
        wrmsr(MSR_TSC_DEADLINE, rdtsc() + 20 * tsc_per_us);
        wait_until(ticks != seen);
    }
}
static void tick_ask(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seen = ticks;
        vt_timer_write(&timers, TIMER, mono_ns() + 20000); /* no call: we halt */
        wait_until(ticks != seen);
    }
}

/* -- Another processor --------------------------------------------------------------------------------------------------- */

#define AT 0x8000000000ull /* for mappings that change */
#define TOUCHED 16u
static uint64_t frames, *leaf;
static volatile bool other_ready, touching ALONE;
static void invlpg(uint64_t va) { __asm__ volatile("invlpg (%0)" ::"r"(va) : "memory"); }
static volatile uint32_t flushes ALONE, wanted ALONE, answered ALONE;

static void other(void *arg)
{
    (void)arg;
    apic_on();
    event_handle(PORT_IPI, on_event_ipi, NULL);
    other_ready = true;
    irq_on();
    for (uint32_t seen = 0;; seen = wanted) {
        __asm__ volatile("pause");
        for (unsigned i = 0; touching && i < TOUCHED; i++)
            (void)*(volatile uint8_t *)(AT + i * PAGE);
        if (answered != seen) /* wanted before they were read */
            answered = seen;
    }
}
static void ipi_hardware(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seen = pings;
        while (APIC(APIC_ICR) & 1u << 12) /* the one before is still being sent */
            ;
        APIC(APIC_ICR2) = 1u << 24;
        APIC(APIC_ICR) = 0x4000 | VECTOR_IPI;
        while (pings == seen)
            __asm__ volatile("pause");
    }
}
static void ipi_ask(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seen = pings;
        vt_call1(VT_EVENT_SEND, PORT_IPI);
        while (pings == seen)
            __asm__ volatile("pause");
    }
}

/* A page loses the right to write, or gets it again, and no processor goes on with what it knew. The other one reads it
 * and its neighbours all the time; read_on() waits until it has read them all once more. */
static void on_apic_flush(struct sdk_regs *r)
{
    (void)r;
    invlpg(AT);
    flushes = flushes + 1;
    APIC(APIC_EOI) = 0;
}
static void shootdown_start(void)
{
    for (unsigned i = 0; i < TOUCHED; i++)
        leaf[i] = (frames + i * PAGE) | 0x8000000000000003ull;
    touching = true;
}
static void read_on(void)
{
    wanted = wanted + 1;
    while (answered != wanted)
        __asm__ volatile("pause");
}
static void shootdown_by_hand(uint32_t n, bool reads)
{
    shootdown_start();
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seen = flushes;
        leaf[0] ^= 2;
        invlpg(AT);
        while (APIC(APIC_ICR) & 1u << 12)
            ;
        APIC(APIC_ICR2) = 1u << 24;
        APIC(APIC_ICR) = 0x4000 | VECTOR_FLUSH;
        while (flushes == seen)
            __asm__ volatile("pause");
        if (reads)
            read_on();
    }
    touching = false;
}
static void shootdown_by_call(uint32_t n, bool reads)
{
    struct vt_range r = { .va = AT, .pages = 1 };

    shootdown_start();
    for (uint32_t i = 0; i < n; i++) {
        r.flags ^= VT_W;
        if (vt_call3(VT_PROTECT, 0, &r, 1) != 1)
            die("shootdown: %d\n", r.result);
        if (reads)
            read_on();
    }
    touching = false;
}

static void shootdown_hardware(uint32_t n) { shootdown_by_hand(n, false); }
static void shootdown_ask(uint32_t n) { shootdown_by_call(n, false); }
static void reshoot_hardware(uint32_t n) { shootdown_by_hand(n, true); }
static void reshoot_ask(uint32_t n) { shootdown_by_call(n, true); }

/* -- Console -------------------------------------------------------------------------------------------------------------- */

static const char text[] = "                                                               \r"; /* 64 bytes that show nothing */

static void console_hardware(uint32_t n)
{
    while (n--)
        for (unsigned i = 0; i < 64; i++) {
            while (!(inb(0x3fd) & 0x20)) /* the transmitter is not empty */
                ;
            outb(0x3f8, (uint8_t)text[i]);
        }
    outb(0x3f8, '\n'); /* it is all out then; what print() says comes by another way, and must not be in between */
}
static void console_ask(uint32_t n)
{
    while (n--)
        vt_call2(VT_CONSOLE_WRITE, text, 64);
}

/* -- Memory: n operations of `pages` pages each ------------------------------------------------------------------------------ */

#define MOST 4096u

static uint32_t pages;

static void set_all(uint64_t keep, uint64_t set)
{
    for (uint32_t i = 0; i < pages; i++) {
        leaf[i] = (leaf[i] & keep) | (set ? set + i * PAGE : 0);
        invlpg(AT + i * PAGE);
    }
}
static void touch(void)
{
    for (uint32_t i = 0; i < pages; i++)
        *(volatile uint8_t *)(AT + i * PAGE) = 1;
}
static void ask(unsigned call, uint32_t flags)
{
    struct vt_range r = { .va = AT, .pa = frames, .pages = pages, .flags = flags };
    if (vt_call3(call, 0, &r, 1) != 1)
        die("call %x: %d\n", call, r.result);
}
/* Map, take the right to write away, unmap: what a batch has to do, in three pieces. */
static void remap_hardware(uint32_t n)
{
    while (n--) {
        set_all(0, frames | 0x8000000000000003ull);
        set_all(~2ull, 0);
        set_all(0, 0);
    }
}
static void remap_ask(uint32_t n)
{
    while (n--) {
        ask(VT_MAP, VT_W);
        ask(VT_PROTECT, 0);
        ask(VT_UNMAP, 0);
    }
}
/* One page is not a batch: a guest that knows its tables changes them itself, and knows when nothing need be forgotten. */
static void remap_one(uint32_t n)
{
    while (n--) {
        vt_page_set(leaf, AT, frames | 0x8000000000000003ull);
        vt_page_set(leaf, AT, *leaf & ~2ull);
        vt_page_set(leaf, AT, 0);
    }
}
/* Map and write to every page. */
static void first_touch_hardware(uint32_t n)
{
    while (n--) {
        set_all(0, frames | 0x8000000000000003ull);
        touch();
        set_all(0, 0);
    }
}
static void first_touch_ask(uint32_t n)
{
    while (n--) {
        ask(VT_MAP, VT_W | VT_FILL);
        touch();
        ask(VT_UNMAP, 0);
    }
}

/* -- The table --------------------------------------------------------------------------------------------------------------- */

/* clang-format off */
static const struct line {
    const char *name;
    uint32_t operations, pages;
    void (*hardware)(uint32_t n), (*ask)(uint32_t n);
} lines[] = {
    { "clock",      20000, 0,    clock_hardware,       clock_ask },
    { "timer",      5000,  0,    timer_hardware,       timer_ask },
    { "tick",       100,   0,    tick_hardware,        tick_ask },
    { "ipi",        2000,  0,    ipi_hardware,         ipi_ask },
    { "shootdown-call", 300,  0,    shootdown_hardware,   shootdown_ask },
    { "shootdown-read", 300,  0,    reshoot_hardware,     reshoot_ask },
    { "console",    100,   0,    console_hardware,     console_ask },
    { "remap-1",    2000,  1,    remap_hardware,       remap_one },
    { "remap-64",   200,   64,   remap_hardware,       remap_ask },
    { "remap-4096", 8,     MOST, remap_hardware,       remap_ask },
    { "touch-64",   200,   64,   first_touch_hardware, first_touch_ask },
    { "touch-1024", 20,    1024, first_touch_hardware, first_touch_ask },
};
/* clang-format on */

static uint32_t nr_counters;

void measure(const char *line, const char *way, uint32_t operations, void (*fn)(uint32_t n))
{
    uint64_t best = ~0ull, counter[MAX_COUNTERS] = { 0 };

    fn(operations / 4 + 1);
    for (unsigned part = 0; part < PARTS; part++) {
        outl(COUNTERS, START);
        uint64_t t = mono_ns();
        fn(operations);
        t = mono_ns() - t;
        outl(COUNTERS, STOP);
        if (t >= best)
            continue;
        best = t;
        for (uint32_t i = 0; i < nr_counters; i++) {
            outl(COUNTERS, SELECT + i);
            counter[i] = inl(COUNTERS + 4) | (uint64_t)inl(COUNTERS + 8) << 32;
        }
        if (counter[0])
            counter[0]--; /* the write that stopped */
    }
    print("sdk: %s %s %u %lu", line, way, operations, best);
    for (uint32_t i = 0; i < nr_counters; i++)
        print(" %lu", counter[i]);
    print("\n");
}

int main(void)
{
    nr_counters = inl(COUNTERS) <= MAX_COUNTERS ? inl(COUNTERS) : 0;
    uint64_t t = rdtsc(), ns = mono_ns();
    while (mono_ns() - ns < 1000000)
        ;
    tsc_per_us = (rdtsc() - t) / 1000;

    trap_handle(VECTOR_TIMER, on_apic_timer);
    trap_handle(VECTOR_IPI, on_apic_ipi);
    trap_handle(VECTOR_FLUSH, on_apic_flush);
    apic_on();
    event_handle(PORT_TIMER, on_event_timer, NULL);
    if (vt_call4(VT_TIMER_SET, TIMER, 0, 0, PORT_TIMER) || vt_call1(VT_TIMER_PAGE, &timers))
        die("no timers\n");
    bool alone = cpu_count() < 2;
    if (!alone && cpu_start(1, other, NULL))
        die("the other processor does not start\n");
    while (!alone && !other_ready)
        __asm__ volatile("pause");

    /* Tables of our own for AT, so that both ways find them made: PDPT, PD, then the leaves in a row. */
    uint64_t *pml4, *table = pages_alloc(2);
    leaf = pages_alloc(MOST / 512);
    for (unsigned i = 0; i < MOST / 512; i++)
        table[512 + i] = (uint64_t)(leaf + i * 512) | 3;
    table[0] = (uint64_t)(table + 512) | 3;
    __asm__ volatile("mov %%cr3, %0" : "=r"(pml4));
    pml4[AT >> 39] = (uint64_t)table | 3;
    frames = (uint64_t)pages_alloc(MOST);

    irq_on();
    bool only_devices = devices();
    for (unsigned i = 0; !only_devices && i < sizeof(lines) / sizeof(lines[0]); i++) {
        if ((lines[i].pages != 0) != alone) /* one processor: a call forgets translations everywhere, INVLPG does not */
            continue;
        pages = lines[i].pages;
        measure(lines[i].name, "unaware", lines[i].operations, lines[i].hardware);
        measure(lines[i].name, "aware", lines[i].operations, lines[i].ask);
    }
    print("sdk: done\n");
    return 0;
}
