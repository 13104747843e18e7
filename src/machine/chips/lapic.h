/*
 * lapic.h - the local APICs of all vCPUs, and the bus that joins them with the I/O APIC and MSIs.
 * Every function is called with the interrupt controllers' lock held, except lapic_pending(), lapic_post(),
 * lapic_icr_post() and lapic_timer_due() (a timer callback, which takes it). kick() may be called with the lock held
 * and must not call back.
 */
#pragma once
#include "base/types.h"
#include "machine/clock.h"
#include "machine/device.h"
#include <stdatomic.h>

/* What a vCPU has waiting: bits of lapic.pending. */
#define LAPIC_INTR 0x1u /* lapic_ack() would return a vector */
#define LAPIC_NMI 0x2u
#define LAPIC_INIT 0x4u
#define LAPIC_SIPI 0x8u

/* Delivery modes (SDM vol. 3 §11.5.1) */
enum apic_delivery {
    APIC_FIXED, APIC_LOWEST, APIC_SMI, APIC_REMOTE_READ, APIC_NMI, APIC_INIT, APIC_SIPI, APIC_EXTINT
};

#define APIC_BROADCAST 0xffffffffu

/* One message on the APIC bus: an IPI, an I/O APIC pin, or an MSI. */
struct apic_msg {
    u32 dest;      /* APIC ID or logical mask; APIC_BROADCAST is everyone */
    bool logical;
    bool level;    /* trigger mode */
    u8 mode;       /* enum apic_delivery */
    u8 vector;
};

enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR, NR_LVT };

/* Register numbers: MMIO offset >> 4, MSR - 0x800 (SDM vol. 3 table 11-1, table 11-6) */
enum lapic_reg {
    APIC_ID = 0x02, APIC_VERSION = 0x03, APIC_TPR = 0x08, APIC_APR = 0x09, APIC_PPR = 0x0a,
    APIC_EOI = 0x0b, APIC_RRD = 0x0c, APIC_LDR = 0x0d, APIC_DFR = 0x0e, APIC_SVR = 0x0f,
    APIC_ISR = 0x10, APIC_TMR = 0x18, APIC_IRR = 0x20, APIC_ESR = 0x28, APIC_LVT_CMCI = 0x2f,
    APIC_ICR = 0x30, APIC_ICR2 = 0x31, APIC_LVT = 0x32, APIC_TMICT = 0x38, APIC_TMCCT = 0x39,
    APIC_TDCR = 0x3e, APIC_SELF_IPI = 0x3f,
};

#define APIC_BASE_BSP 0x100ull
#define APIC_BASE_EXTD 0x400ull
#define APIC_BASE_EN 0x800ull
#define APIC_SVR_ENABLE 0x100u
#define APIC_SVR_NO_EOI_BROADCAST 0x1000u
#define APIC_LVT_MASKED 0x10000u
#define APIC_TIMER_HZ 1000000000ull /* bus clock of the timer before the divider: 1 ns */

struct lapic_bus;

struct lapic {
    /* Interrupts that other vCPUs sent without the lock; whoever has it moves them to irr. All that a sender touches. */
    _Atomic u64 posted[4] __attribute__((aligned(64)));
    _Atomic bool has_posted, takes; /* takes: enabled */
    struct lapic_bus *bus __attribute__((aligned(64)));
    unsigned cpu; /* also the initial APIC ID */
    _Atomic u32 pending;
    u64 base;     /* IA32_APIC_BASE */
    u32 tpr, ldr, dfr, svr, esr, esr_latched, divide, initial;
    u64 icr;
    u32 lvt[NR_LVT];
    u64 irr[4], isr[4], tmr[4];
    u64 timer_start_ns, timer_due_ns; /* due 0: stopped */
    u64 tsc_deadline;                 /* 0: off */
    u8 sipi_vector;
    bool wait_sipi, lint0, extint_msg;
    u64 pv_eoi;      /* MSR_KVM_PV_EOI_EN as the guest wrote it */
    u32 *pv_eoi_word; /* host address of the guest's word; NULL: off */
    bool pv_eoi_told; /* the guest may end the interrupt in service by clearing the word's bit 0 */
    struct vm_timer timer;
};

/* Filled by the board, then lapic_bus_init(). */
struct lapic_bus {
    pthread_mutex_t *lock;
    struct vm_clock *clock;
    u64 (*tsc_now)(void *opaque, unsigned cpu);
    void (*kick)(void *opaque, unsigned cpu);
    void *opaque; /* of the two above */
    u64 tsc_khz;
    void (*eoi_broadcast)(void *owner, u8 vector); /* to the I/O APIC */
    int (*extint_ack)(void *owner);                /* to the 8259 */
    void *owner;  /* of the two above */
    unsigned nr;
    struct lapic *cpu; /* [nr] */
    unsigned turn;     /* whose turn it is among equals in lowest-priority delivery */
};

int lapic_bus_init(struct lapic_bus *bus);
void lapic_bus_fini(struct lapic_bus *bus);
void lapic_bus_reset(struct lapic_bus *bus);
/* lapic_bus_send - deliver a message. Number of local APICs that took it. */
unsigned lapic_bus_send(struct lapic_bus *bus, const struct apic_msg *msg);
/* lapic_post - a fixed, edge-triggered interrupt for the APIC with this ID, sent by a vCPU's thread that does not hold the lock.
 * False: nothing was done; lapic_bus_send() it. (The idea of a posted-interrupt descriptor, SDM vol. 3 §30.6.) */
bool lapic_post(struct lapic_bus *bus, u32 id, u8 vector);
/* lapic_icr_post - the same for a write to l's ICR in x2APIC mode, by its own thread. */
bool lapic_icr_post(struct lapic *l, u64 icr);
/* lapic_bus_lint0 - level of the 8259's INTR output, wired to the boot CPU's LINT0. */
void lapic_bus_lint0(struct lapic_bus *bus, bool level);

/* MMIO, reg = offset >> 4. Ignored unless in xAPIC mode. */
u32 lapic_mmio_read(struct lapic *l, unsigned reg);
void lapic_mmio_write(struct lapic *l, unsigned reg, u32 value);
/* 0x1b, 0x6e0, 0x800-0x8ff. 0, or -1: #GP. */
int lapic_msr_read(struct lapic *l, u32 msr, u64 *value);
int lapic_msr_write(struct lapic *l, u32 msr, u64 value);

void lapic_eoi(struct lapic *l);
/* lapic_ack - take the pending interrupt: its vector, or -1. */
int lapic_ack(struct lapic *l);
void lapic_set_tpr(struct lapic *l, u32 tpr);
/* lapic_pv_eoi - switch the paravirtual end of interrupt on (word: where bit 0 is), or off (NULL). On the vCPU's own
 * thread, like all that reads or changes what is in service. */
void lapic_pv_eoi(struct lapic *l, u64 msr, u32 *word);
/* lapic_lint1 - a pulse on LINT1: the board's NMI. */
void lapic_lint1(struct lapic *l);
/* lapic_take - clear one of NMI, INIT, SIPI from pending; was it there? */
bool lapic_take(struct lapic *l, u32 bit);

static inline u32 lapic_pending(const struct lapic *l)
{
    u32 posted = atomic_load_explicit(&l->has_posted, memory_order_acquire) ? LAPIC_INTR : 0;
    return atomic_load_explicit(&l->pending, memory_order_acquire) | posted;
}
static inline bool lapic_in_x2apic(const struct lapic *l)
{
    return (l->base & (APIC_BASE_EN | APIC_BASE_EXTD)) == (APIC_BASE_EN | APIC_BASE_EXTD);
}
static inline bool lapic_in_xapic(const struct lapic *l)
{
    return (l->base & (APIC_BASE_EN | APIC_BASE_EXTD)) == APIC_BASE_EN;
}

extern const struct state_field lapic_state[];
/* lapic_settle - before its state is saved: nothing is left to a word in guest memory. */
void lapic_settle(struct lapic *l);
int lapic_loaded(void *lapic); /* as device_class.loaded */
