/*
 * lapic.c - local APIC, xAPIC and x2APIC. Source: Intel SDM vol. 3 ch. 11 (APIC), §11.4.4 (base),
 * §11.5.4 (timer), §11.6 (ICR), §11.8 (priorities), §11.12 (x2APIC).
 * Not modelled: SMI, remote read, bus arbitration, thermal and counter interrupts ever firing,
 * CMCI. The xAPIC ID is read-only. Focus-processor checking is ignored. A periodic timer
 * faster than TIMER_MIN_NS runs at TIMER_MIN_NS, and periods the host was too late for are merged.
 * At reset the boot CPU's LINT0 is ExtINT and LINT1 NMI, as firmware would leave them: kernels
 * that we enter directly expect virtual wire mode.
 * Paravirtual end of interrupt: Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN.
 * Threads: vCPU threads and the I/O thread, all under bus->lock; `pending` is also read without, and interrupts are posted.
 */
#include "machine/chips/lapic.h"
#include "machine/layout.h"
#include "x86/x86.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TIMER_MIN_NS 50000ull

/* EOI-broadcast suppression (24), last LVT number (16-23), integrated APIC */
#define VERSION (1u << 24 | (NR_LVT - 1) << 16 | 0x15)

#define ESR_SEND_ILLEGAL 0x20u
#define ESR_RECV_ILLEGAL 0x40u
#define ESR_ILLEGAL_REG 0x80u

#define LVT_MODE(lvt) ((lvt) >> 8 & 7)
#define TIMER_MODE(lvt) ((lvt) >> 17 & 3)
enum { TIMER_ONESHOT, TIMER_PERIODIC, TIMER_TSC_DEADLINE };

/* Writable bits of each LVT entry. */
static const u32 lvt_bits[NR_LVT] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PMC] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};

static void lapic_local(struct lapic *l, enum lapic_lvt n);

/* -- 256-bit sets --------------------------------------------------------- */

static inline void set_bit(u64 *set, u8 v)
{
    set[v >> 6] |= BITULL(v & 63);
}
static inline void clear_bit(u64 *set, u8 v)
{
    set[v >> 6] &= ~BITULL(v & 63);
}
static inline bool test_bit(const u64 *set, u8 v)
{
    return set[v >> 6] >> (v & 63) & 1;
}
static inline int highest(const u64 *set)
{
    for (int i = 3; i >= 0; i--)
        if (set[i])
            return i * 64 + 63 - __builtin_clzll(set[i]);
    return -1;
}

/* -- Priorities and the one place that recomputes what the CPU sees ------- */

static u32 ppr(const struct lapic *l)
{
    int isrv = highest(l->isr);
    u32 in_service = isrv < 0 ? 0 : (u32)isrv & 0xf0;
    return (l->tpr & 0xf0) >= in_service ? l->tpr : in_service;
}

static bool enabled(const struct lapic *l)
{
    return (l->base & APIC_BASE_EN) && (l->svr & APIC_SVR_ENABLE);
}

/* Does an ExtINT reach this CPU? With the APIC disabled in its base MSR, LINT0 is the INTR pin. */
static bool extint(const struct lapic *l)
{
    if (!(l->base & APIC_BASE_EN))
        return l->lint0;
    u32 lvt = l->lvt[LVT_LINT0];
    return l->extint_msg ||
           (l->lint0 && !(lvt & APIC_LVT_MASKED) && LVT_MODE(lvt) == APIC_EXTINT);
}

static int deliverable(const struct lapic *l)
{
    if (!enabled(l))
        return -1;
    int v = highest(l->irr);
    return v >= 0 && ((u32)v & 0xf0) > (ppr(l) & 0xf0) ? v : -1;
}

static void publish(struct lapic *l, u32 bits)
{
    u32 old = atomic_load_explicit(&l->pending, memory_order_relaxed);
    /* Pairs with the acquire in lapic_pending(); only we, under the lock, write. */
    atomic_store_explicit(&l->pending, bits, memory_order_release);
    if (bits & ~old)
        l->bus->kick(l->bus->opaque, l->cpu);
}

/* First the flag, then the bits: one that is posted meanwhile kicks again. What a disabled APIC was sent is lost. */
static void take_posted(struct lapic *l)
{
    if (!atomic_load_explicit(&l->has_posted, memory_order_relaxed))
        return;
    atomic_store(&l->has_posted, false);
    for (unsigned i = 0; i < ARRAY_SIZE(l->posted); i++) {
        if (!atomic_load(&l->posted[i]))
            continue;
        u64 bits = atomic_exchange(&l->posted[i], 0);
        l->irr[i] |= enabled(l) ? bits : 0;
        l->tmr[i] &= enabled(l) ? ~bits : ~0ull;
    }
}

static void lapic_update(struct lapic *l)
{
    take_posted(l);
    if (atomic_load_explicit(&l->takes, memory_order_relaxed) != enabled(l))
        atomic_store(&l->takes, enabled(l));
    u32 bits = atomic_load_explicit(&l->pending, memory_order_relaxed) & ~LAPIC_INTR;
    /* With an end left to the guest's word only its own thread can tell what is in service: let it look. */
    if (extint(l) || deliverable(l) >= 0 || (l->pv_eoi_told && highest(l->irr) >= 0))
        bits |= LAPIC_INTR;
    publish(l, bits);
}

static void set_pending(struct lapic *l, u32 bit)
{
    publish(l, atomic_load_explicit(&l->pending, memory_order_relaxed) | bit);
}

bool lapic_take(struct lapic *l, u32 bit)
{
    u32 old = atomic_load_explicit(&l->pending, memory_order_relaxed);
    publish(l, old & ~bit);
    return old & bit;
}

static void lapic_error(struct lapic *l, u32 bit)
{
    bool first = !(l->esr & bit);
    l->esr |= bit;
    if (first)
        lapic_local(l, LVT_ERROR);
}

/* -- Accepting ------------------------------------------------------------ */

/* false: this APIC is switched off. */
static bool accept_vector(struct lapic *l, u8 vector, bool level)
{
    if (!enabled(l))
        return false;
    if (vector < 16) {
        lapic_error(l, ESR_RECV_ILLEGAL);
        return true;
    }
    set_bit(l->irr, vector);
    if (level)
        set_bit(l->tmr, vector);
    else
        clear_bit(l->tmr, vector);
    lapic_update(l);
    return true;
}

static void init_registers(struct lapic *l);

static bool accept(struct lapic *l, const struct apic_msg *msg)
{
    switch (msg->mode) {
    case APIC_FIXED:
    case APIC_LOWEST:
        return accept_vector(l, msg->vector, msg->level);
    case APIC_NMI:
        set_pending(l, LAPIC_NMI);
        break;
    case APIC_INIT:
        init_registers(l);
        l->wait_sipi = !(l->base & APIC_BASE_BSP);
        /* What was pending is gone, an earlier SIPI included. */
        atomic_store_explicit(&l->pending, 0, memory_order_relaxed);
        publish(l, LAPIC_INIT);
        break;
    case APIC_SIPI:
        if (!l->wait_sipi)
            break;
        l->wait_sipi = false;
        l->sipi_vector = msg->vector;
        set_pending(l, LAPIC_SIPI);
        break;
    case APIC_EXTINT:
        l->extint_msg = true;
        lapic_update(l);
        break;
    default: /* SMI, remote read: nothing there */
        break;
    }
    return true;
}

/* An interrupt of the APIC's own, by LVT entry n. */
static void lapic_local(struct lapic *l, enum lapic_lvt n)
{
    u32 lvt = l->lvt[n];
    if (!(l->base & APIC_BASE_EN) || (lvt & APIC_LVT_MASKED))
        return;
    unsigned mode = n == LVT_TIMER || n == LVT_ERROR ? APIC_FIXED : LVT_MODE(lvt);
    if (mode == APIC_FIXED)
        accept_vector(l, (u8)lvt, n == LVT_LINT0 && (lvt & 0x8000));
    else if (mode == APIC_NMI)
        set_pending(l, LAPIC_NMI);
}

void lapic_lint1(struct lapic *l)
{
    if (!(l->base & APIC_BASE_EN))
        set_pending(l, LAPIC_NMI); /* the pin is NMI itself */
    else
        lapic_local(l, LVT_LINT1);
}

void lapic_bus_lint0(struct lapic_bus *bus, bool level)
{
    struct lapic *l = &bus->cpu[0];
    if (l->lint0 == level)
        return;
    l->lint0 = level;
    if (level)
        lapic_local(l, LVT_LINT0); /* ExtINT is seen by lapic_update() */
    lapic_update(l);
}

/* -- The bus -------------------------------------------------------------- */

static bool matches(const struct lapic *l, const struct apic_msg *msg)
{
    u32 dest = msg->dest;
    if (!(l->base & APIC_BASE_EN))
        return false;
    if (dest == APIC_BROADCAST)
        return true;
    if (!msg->logical)
        return dest == l->cpu;
    if (lapic_in_x2apic(l)) /* cluster in 31:16, members in 15:0 */
        return dest >> 16 == l->ldr >> 16 && (dest & l->ldr & 0xffff);
    u32 ldr = l->ldr >> 24;
    if (l->dfr >> 28 == 0xf) /* flat */
        return dest & ldr & 0xff;
    if (dest >> 4 != 0xf && dest >> 4 != ldr >> 4) /* cluster, or all clusters */
        return false;
    return dest & ldr & 0xf;
}

static unsigned send_lowest(struct lapic_bus *bus, const struct apic_msg *msg)
{
    struct lapic *best = NULL;
    u32 best_ppr = 0;
    for (unsigned i = 0; i < bus->nr; i++) {
        struct lapic *l = &bus->cpu[(bus->turn + i) % bus->nr];
        if (!matches(l, msg) || !enabled(l))
            continue;
        u32 p = ppr(l);
        if (!best || p < best_ppr) {
            best = l;
            best_ppr = p;
        }
    }
    if (!best)
        return 0;
    bus->turn = best->cpu + 1;
    return accept(best, msg);
}

unsigned lapic_bus_send(struct lapic_bus *bus, const struct apic_msg *msg)
{
    if (msg->mode == APIC_LOWEST)
        return send_lowest(bus, msg);
    if (!msg->logical && msg->dest != APIC_BROADCAST) { /* the common case: one by ID */
        if (msg->dest >= bus->nr || !matches(&bus->cpu[msg->dest], msg))
            return 0;
        return accept(&bus->cpu[msg->dest], msg);
    }
    unsigned taken = 0;
    for (unsigned i = 0; i < bus->nr; i++) {
        if (matches(&bus->cpu[i], msg))
            taken += accept(&bus->cpu[i], msg);
    }
    return taken;
}

bool lapic_post(struct lapic_bus *bus, u32 id, u8 vector)
{
    if (id >= bus->nr || vector < 16)
        return false;
    struct lapic *l = &bus->cpu[id];
    prefetch_write(&l->has_posted);
    if (!atomic_load(&l->takes))
        return false;
    atomic_fetch_or(&l->posted[vector >> 6], BITULL(vector & 63));
    if (!atomic_exchange(&l->has_posted, true))
        bus->kick(bus->opaque, id);
    return true;
}

bool lapic_icr_post(struct lapic *l, u64 icr)
{
    /* One by ID: no reserved bit, no shorthand, not logical, mode fixed. */
    if (!lapic_in_x2apic(l) || (icr & 0xffff2f00) || !lapic_post(l->bus, (u32)(icr >> 32), (u8)icr))
        return false;
    l->icr = icr;
    return true;
}

/* Interrupt command, SDM vol. 3 figure 11-12:
 * 7:0 vector, 10:8 mode, 11 logical, 14 assert, 15 level, 19:18 shorthand */
static void icr_send(struct lapic *l, u32 low, u32 dest)
{
    struct lapic_bus *bus = l->bus;
    struct apic_msg msg = {
        .dest = dest, .logical = low & 0x800, .mode = low >> 8 & 7, .vector = (u8)low,
    };
    if (msg.mode == APIC_INIT && (low & 0x8000) && !(low & 0x4000))
        return; /* INIT level de-assert: arbitration IDs only */
    if (msg.mode <= APIC_LOWEST && msg.vector < 16) {
        lapic_error(l, ESR_SEND_ILLEGAL);
        return;
    }
    switch (low >> 18 & 3) {
    case 0:
        lapic_bus_send(bus, &msg);
        break;
    case 1: /* self */
        if (msg.mode <= APIC_LOWEST || msg.mode == APIC_NMI)
            accept(l, &msg);
        break;
    default: /* all, or all but self */
        for (unsigned i = 0; i < bus->nr; i++) {
            struct lapic *to = &bus->cpu[i];
            if ((to->base & APIC_BASE_EN) && (to != l || (low >> 18 & 3) == 2))
                accept(to, &msg);
        }
    }
}

/* -- Timer ---------------------------------------------------------------- */

static bool timer_in_deadline_mode(const struct lapic *l)
{
    return TIMER_MODE(l->lvt[LVT_TIMER]) == TIMER_TSC_DEADLINE;
}

static unsigned divisor(const struct lapic *l)
{
    unsigned code = (l->divide & 3) | (l->divide >> 1 & 4);
    return code == 7 ? 1 : 2u << code;
}

static u64 ticks_to_ns(const struct lapic *l, u64 ticks)
{
    return ticks * divisor(l) * (NS_PER_SEC / APIC_TIMER_HZ);
}

static u64 period_ns(const struct lapic *l)
{
    u64 ns = ticks_to_ns(l, l->initial);
    return TIMER_MODE(l->lvt[LVT_TIMER]) == TIMER_PERIODIC ? MAX(ns, TIMER_MIN_NS) : ns;
}

static void timer_stop(struct lapic *l)
{
    l->timer_due_ns = 0;
    l->tsc_deadline = 0;
    timer_cancel(l->bus->clock, &l->timer);
}

static u32 timer_current(const struct lapic *l)
{
    if (!l->timer_due_ns || !l->initial)
        return 0;
    u64 now = clock_now(l->bus->clock), due = l->timer_due_ns;
    if (now >= due) {
        if (TIMER_MODE(l->lvt[LVT_TIMER]) != TIMER_PERIODIC)
            return 0;
        u64 period = period_ns(l);
        due += ((now - due) / period + 1) * period; /* the interrupt is on its way */
    }
    u64 unit = ticks_to_ns(l, 1), left = (due - now + unit - 1) / unit;
    return (u32)MIN(left, (u64)l->initial);
}

static void timer_start(struct lapic *l, u32 initial)
{
    if (timer_in_deadline_mode(l))
        return;
    l->initial = initial;
    if (!initial) {
        timer_stop(l);
        return;
    }
    l->timer_start_ns = clock_now(l->bus->clock);
    l->timer_due_ns = l->timer_start_ns + period_ns(l);
    timer_arm(l->bus->clock, &l->timer, l->timer_due_ns);
}

static void timer_set_divide(struct lapic *l, u32 divide)
{
    u32 left = timer_current(l);
    l->divide = divide & 0xb;
    if (!left)
        return;
    l->timer_due_ns = clock_now(l->bus->clock) + ticks_to_ns(l, left);
    timer_arm(l->bus->clock, &l->timer, l->timer_due_ns);
}

/* Fire, or (re-)arm the host timer for the deadline that the guest asked for in TSC units. */
static void timer_check_deadline(struct lapic *l)
{
    u64 tsc = l->bus->tsc_now(l->bus->opaque, l->cpu);
    if (tsc >= l->tsc_deadline) {
        l->tsc_deadline = 0;
        lapic_local(l, LVT_TIMER);
        return;
    }
    u64 wait_ns = clock_scale_up(l->tsc_deadline - tsc, 1000000, l->bus->tsc_khz);
    u64 now = clock_now(l->bus->clock);
    u64 due = wait_ns > CLOCK_NEVER - 1 - now ? CLOCK_NEVER - 1 : now + wait_ns;
    timer_arm(l->bus->clock, &l->timer, due);
}

static void timer_set_deadline(struct lapic *l, u64 tsc)
{
    if (!timer_in_deadline_mode(l))
        return;
    l->tsc_deadline = tsc;
    if (tsc)
        timer_check_deadline(l);
    else
        timer_cancel(l->bus->clock, &l->timer);
}

static void lapic_timer_due(void *opaque)
{
    struct lapic *l = opaque;
    pthread_mutex_lock(l->bus->lock);
    u64 now = clock_now(l->bus->clock);
    if (l->tsc_deadline) {
        timer_check_deadline(l);
    } else if (l->timer_due_ns && now >= l->timer_due_ns) {
        if (TIMER_MODE(l->lvt[LVT_TIMER]) == TIMER_PERIODIC) {
            u64 period = period_ns(l);
            l->timer_due_ns += ((now - l->timer_due_ns) / period + 1) * period;
            timer_arm(l->bus->clock, &l->timer, l->timer_due_ns);
        } else {
            l->timer_due_ns = 0;
        }
        lapic_local(l, LVT_TIMER);
    }
    pthread_mutex_unlock(l->bus->lock);
}

/* -- Paravirtual end of interrupt -------------------------------------------- */

/*
 * An interrupt whose end changes nothing for anyone - edge triggered, none waiting - need not be reported at once. We
 * say so by setting bit 0 of a word of the guest's; the guest ends the interrupt by clearing it, with no access to the
 * APIC, or finds it clear and writes EOI as ever. The guest clears it with an instruction that is not locked, so only
 * its own thread may touch the word. Whoever else makes something pending meanwhile gets that thread to come here.
 */
static void pv_eoi_tell(struct lapic *l, u8 vector)
{
    if (!l->pv_eoi_word || test_bit(l->tmr, vector) || highest(l->irr) >= 0 || extint(l))
        return;
    __atomic_fetch_or(l->pv_eoi_word, 1, __ATOMIC_RELAXED);
    l->pv_eoi_told = true;
}

/* Before what is in service matters: did the guest end it? If not, it is to write EOI after all. */
static void pv_eoi_sync(struct lapic *l)
{
    if (!l->pv_eoi_told)
        return;
    l->pv_eoi_told = false;
    int v = highest(l->isr);
    if (!(__atomic_fetch_and(l->pv_eoi_word, ~1u, __ATOMIC_RELAXED) & 1) && v >= 0)
        clear_bit(l->isr, (u8)v);
}

void lapic_pv_eoi(struct lapic *l, u64 msr, u32 *word)
{
    pv_eoi_sync(l);
    l->pv_eoi = msr;
    l->pv_eoi_word = word;
    lapic_update(l);
}

/* -- Registers ------------------------------------------------------------ */

void lapic_eoi(struct lapic *l)
{
    pv_eoi_sync(l);
    int v = highest(l->isr);
    if (v < 0)
        return;
    clear_bit(l->isr, (u8)v);
    if (test_bit(l->tmr, (u8)v) && !(l->svr & APIC_SVR_NO_EOI_BROADCAST))
        l->bus->eoi_broadcast(l->bus->owner, (u8)v);
    lapic_update(l);
}

int lapic_ack(struct lapic *l)
{
    int v;
    take_posted(l);
    pv_eoi_sync(l);
    if (extint(l)) {
        l->extint_msg = false;
        v = l->bus->extint_ack(l->bus->owner); /* lowers lint0 when nothing else is pending */
    } else {
        v = deliverable(l);
        if (v >= 0) {
            clear_bit(l->irr, (u8)v);
            set_bit(l->isr, (u8)v);
            pv_eoi_tell(l, (u8)v);
        }
    }
    lapic_take(l, LAPIC_INTR); /* so that one that is still pending kicks again */
    lapic_update(l);
    return v;
}

void lapic_set_tpr(struct lapic *l, u32 tpr)
{
    pv_eoi_sync(l);
    l->tpr = tpr & 0xff;
    lapic_update(l);
}

static void lvt_write(struct lapic *l, unsigned n, u32 value)
{
    value &= lvt_bits[n];
    if (!(l->svr & APIC_SVR_ENABLE))
        value |= APIC_LVT_MASKED;
    if (n == LVT_TIMER) {
        bool was_deadline = timer_in_deadline_mode(l);
        l->lvt[n] = value;
        if (was_deadline != timer_in_deadline_mode(l))
            timer_stop(l);
        return;
    }
    l->lvt[n] = value;
    lapic_update(l); /* LINT0 may have become ExtINT */
}

static void svr_write(struct lapic *l, u32 value)
{
    take_posted(l);
    l->svr = value & 0x13ff;
    if (!(value & APIC_SVR_ENABLE))
        for (unsigned i = 0; i < NR_LVT; i++)
            l->lvt[i] |= APIC_LVT_MASKED;
    lapic_update(l);
}

/* false: no such register. */
static bool reg_read(struct lapic *l, unsigned reg, u32 *value)
{
    switch (reg) {
    case APIC_ID:
        *value = lapic_in_x2apic(l) ? l->cpu : l->cpu << 24;
        return true;
    case APIC_VERSION: *value = VERSION; return true;
    case APIC_TPR: *value = l->tpr; return true;
    case APIC_PPR:
        pv_eoi_sync(l);
        *value = ppr(l);
        return true;
    case APIC_LDR: *value = l->ldr; return true;
    case APIC_SVR: *value = l->svr; return true;
    case APIC_ISR ... APIC_ISR + 7:
        pv_eoi_sync(l);
        *value = (u32)(l->isr[(reg & 7) / 2] >> (reg & 1) * 32);
        return true;
    case APIC_TMR ... APIC_TMR + 7:
        take_posted(l);
        *value = (u32)(l->tmr[(reg & 7) / 2] >> (reg & 1) * 32);
        return true;
    case APIC_IRR ... APIC_IRR + 7:
        take_posted(l);
        *value = (u32)(l->irr[(reg & 7) / 2] >> (reg & 1) * 32);
        return true;
    case APIC_ESR: *value = l->esr_latched; return true;
    case APIC_ICR: *value = (u32)l->icr; return true;
    case APIC_LVT ... APIC_LVT + NR_LVT - 1: *value = l->lvt[reg - APIC_LVT]; return true;
    case APIC_TMICT: *value = l->initial; return true;
    case APIC_TMCCT: *value = timer_current(l); return true;
    case APIC_TDCR: *value = l->divide; return true;
    default: return false;
    }
}

static bool reg_write(struct lapic *l, unsigned reg, u32 value)
{
    switch (reg) {
    case APIC_TPR: lapic_set_tpr(l, value); return true;
    case APIC_EOI: lapic_eoi(l); return true;
    case APIC_SVR: svr_write(l, value); return true;
    case APIC_ESR:
        l->esr_latched = l->esr;
        l->esr = 0;
        return true;
    case APIC_LVT ... APIC_LVT + NR_LVT - 1: lvt_write(l, reg - APIC_LVT, value); return true;
    case APIC_TMICT: timer_start(l, value); return true;
    case APIC_TDCR: timer_set_divide(l, value); return true;
    default: return false;
    }
}

u32 lapic_mmio_read(struct lapic *l, unsigned reg)
{
    u32 value = 0;
    switch (reg) {
    case APIC_DFR: return l->dfr;
    case APIC_ICR2: return (u32)(l->icr >> 32);
    case APIC_EOI: case APIC_APR: case APIC_RRD: return 0;
    default:
        if (!reg_read(l, reg, &value))
            lapic_error(l, ESR_ILLEGAL_REG);
        return value;
    }
}

void lapic_mmio_write(struct lapic *l, unsigned reg, u32 value)
{
    switch (reg) {
    case APIC_ID: return; /* read-only */
    case APIC_LDR:
        l->ldr = value & 0xff000000;
        return;
    case APIC_DFR:
        l->dfr = value | 0x0fffffff;
        return;
    case APIC_ICR2:
        l->icr = (u32)l->icr | (u64)(value & 0xff000000) << 32;
        return;
    case APIC_ICR: {
        l->icr = (l->icr & ~0xffffffffull) | (value & 0xccfff); /* never busy */
        u32 dest = (u32)(l->icr >> 56);
        icr_send(l, value, dest == 0xff ? APIC_BROADCAST : dest);
        return;
    }
    default:
        if (!reg_write(l, reg, value))
            lapic_error(l, ESR_ILLEGAL_REG);
    }
}

/* -- MSRs ----------------------------------------------------------------- */

static void set_x2apic_ids(struct lapic *l)
{
    l->ldr = (l->cpu >> 4) << 16 | 1u << (l->cpu & 15);
}

/* IA32_APIC_BASE and its legal transitions: SDM vol. 3 figure 11-27. */
static int base_write(struct lapic *l, u64 value)
{
    u64 mode = APIC_BASE_EN | APIC_BASE_EXTD, from = l->base & mode, to = value & mode;
    if (value & ~(0xffffffffff000ull | mode | APIC_BASE_BSP))
        return -1;
    if (to == APIC_BASE_EXTD)                       /* invalid state */
        return -1;
    if (from == mode && to == APIC_BASE_EN)         /* x2APIC -> xAPIC */
        return -1;
    if (!from && to == mode)                        /* disabled -> x2APIC */
        return -1;
    take_posted(l);
    l->base = value;
    if (from != to) {
        if (!to || !from)
            init_registers(l);
        if (to == mode)
            set_x2apic_ids(l);
    }
    lapic_update(l);
    return 0;
}

int lapic_msr_read(struct lapic *l, u32 msr, u64 *value)
{
    if (msr == MSR_APIC_BASE) {
        *value = l->base;
        return 0;
    }
    if (msr == MSR_TSC_DEADLINE) {
        *value = timer_in_deadline_mode(l) ? l->tsc_deadline : 0;
        return 0;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !lapic_in_x2apic(l))
        return -1;
    unsigned reg = msr - MSR_X2APIC_FIRST;
    u32 low;
    if (reg == APIC_ICR) {
        *value = l->icr;
        return 0;
    }
    if (!reg_read(l, reg, &low))
        return -1;
    *value = low;
    return 0;
}

int lapic_msr_write(struct lapic *l, u32 msr, u64 value)
{
    if (msr == MSR_TSC_DEADLINE) {
        timer_set_deadline(l, value);
        return 0;
    }
    if (msr == MSR_APIC_BASE)
        return base_write(l, value);
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !lapic_in_x2apic(l))
        return -1;
    unsigned reg = msr - MSR_X2APIC_FIRST;
    if (reg == APIC_ICR) {
        if (value & 0xfff32000) /* reserved, delivery status included (§11.12.9) */
            return -1;
        l->icr = value;
        icr_send(l, (u32)value, (u32)(value >> 32));
        return 0;
    }
    if (value >> 32)
        return -1;
    switch (reg) {
    case APIC_SELF_IPI:
        if (value & ~0xffull)
            return -1;
        if (value < 16)
            lapic_error(l, ESR_SEND_ILLEGAL);
        else
            accept_vector(l, (u8)value, false);
        return 0;
    case APIC_EOI:
    case APIC_ESR: /* write zero only */
        if (value)
            return -1;
        break;
    case APIC_TPR:
        if (value & ~0xffull)
            return -1;
        break;
    case APIC_TDCR:
        if (value & ~0xbull)
            return -1;
        break;
    case APIC_LDR:
        return -1; /* read-only here */
    default:
        break;
    }
    return reg_write(l, reg, (u32)value) ? 0 : -1;
}

/* -- Reset ---------------------------------------------------------------- */

/* SDM vol. 3 §11.4.7.1, and what INIT leaves alone: the base MSR with its mode, and the ID. */
static void init_registers(struct lapic *l)
{
    atomic_store(&l->takes, false);
    take_posted(l);
    timer_stop(l);
    l->pv_eoi = 0;
    l->pv_eoi_word = NULL;
    l->pv_eoi_told = false;
    l->tpr = l->ldr = l->esr = l->esr_latched = l->divide = l->initial = 0;
    l->dfr = 0xffffffff;
    l->svr = 0xff;
    l->icr = 0;
    l->extint_msg = false;
    memset(l->irr, 0, sizeof(l->irr));
    memset(l->isr, 0, sizeof(l->isr));
    memset(l->tmr, 0, sizeof(l->tmr));
    for (unsigned i = 0; i < NR_LVT; i++)
        l->lvt[i] = APIC_LVT_MASKED;
    if (l->base & APIC_BASE_BSP) { /* virtual wire, as firmware sets it up */
        l->lvt[LVT_LINT0] = APIC_EXTINT << 8;
        l->lvt[LVT_LINT1] = APIC_NMI << 8;
    }
    if (lapic_in_x2apic(l))
        set_x2apic_ids(l);
}

void lapic_bus_reset(struct lapic_bus *bus)
{
    for (unsigned i = 0; i < bus->nr; i++) {
        struct lapic *l = &bus->cpu[i];
        l->base = LAYOUT_LAPIC | APIC_BASE_EN | (i ? 0 : APIC_BASE_BSP);
        l->wait_sipi = i != 0;
        l->sipi_vector = 0;
        l->lint0 = false;
        init_registers(l);
        atomic_store(&l->pending, 0);
    }
    bus->turn = 0;
}

int lapic_bus_init(struct lapic_bus *bus)
{
    bus->cpu = aligned_alloc(_Alignof(struct lapic), bus->nr * sizeof(*bus->cpu));
    if (!bus->cpu)
        return -ENOMEM;
    memset(bus->cpu, 0, bus->nr * sizeof(*bus->cpu));
    for (unsigned i = 0; i < bus->nr; i++) {
        bus->cpu[i].bus = bus;
        bus->cpu[i].cpu = i;
        int err = timer_init(bus->clock, &bus->cpu[i].timer, lapic_timer_due, &bus->cpu[i]);
        bus->cpu[i].timer.anywhere = true;
        if (err)
            return err;
    }
    lapic_bus_reset(bus);
    return 0;
}

void lapic_bus_fini(struct lapic_bus *bus)
{
    free(bus->cpu);
    bus->cpu = NULL;
}

void lapic_settle(struct lapic *l)
{
    pv_eoi_sync(l);
    lapic_update(l);
}

/* What was due while the machine stood still is looked at as soon as its clock runs. */
int lapic_loaded(void *dev)
{
    struct lapic *l = dev;
    u32 pending = atomic_load(&l->pending);
    if (pending & ~(LAPIC_INTR | LAPIC_NMI | LAPIC_INIT | LAPIC_SIPI))
        return -EINVAL;
    atomic_store(&l->takes, enabled(l));
    if (l->tsc_deadline)
        timer_arm(l->bus->clock, &l->timer, clock_now(l->bus->clock));
    else if (l->timer_due_ns)
        timer_arm(l->bus->clock, &l->timer, l->timer_due_ns);
    if (pending)
        l->bus->kick(l->bus->opaque, l->cpu);
    return 0;
}

const struct state_field lapic_state[] = {
    STATE(struct lapic, pending), STATE(struct lapic, base), STATE(struct lapic, tpr),
    STATE(struct lapic, ldr), STATE(struct lapic, dfr), STATE(struct lapic, svr),
    STATE(struct lapic, esr), STATE(struct lapic, esr_latched), STATE(struct lapic, divide),
    STATE(struct lapic, initial), STATE(struct lapic, icr), STATE(struct lapic, lvt),
    STATE(struct lapic, irr), STATE(struct lapic, isr), STATE(struct lapic, tmr),
    STATE(struct lapic, timer_start_ns), STATE(struct lapic, timer_due_ns),
    STATE(struct lapic, tsc_deadline), STATE(struct lapic, sipi_vector),
    STATE(struct lapic, wait_sipi), STATE(struct lapic, lint0), STATE(struct lapic, extint_msg),
    STATE_END
};
