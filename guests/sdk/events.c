/*
 * events.c - the upcall, and the time page.
 *
 * SPDX-License-Identifier: 0BSD
 */
#include "sdk/sdk.h"

#define UPCALL_VECTOR 0x40

static struct vt_events *events; /* a page shared with Vitro */
static struct {
    event_fn *fn;
    void *arg;
} port_handler[VT_PORTS];
static uint64_t bound[CPUS_MAX][VT_PORTS / 64]; /* the ports a processor looks after */
static bool ready[CPUS_MAX];

/* The order matters: `upcall` first, so that what is set after we looked interrupts again. No end-of-interrupt. */
static void upcall(struct sdk_regs *regs)
{
    unsigned cpu = cpu_index();

    (void)regs;
    __atomic_store_n(&events->vcpu[cpu].upcall, 0, __ATOMIC_SEQ_CST);
    for (unsigned w = 0; w < VT_PORTS / 64; w++) {
        if (!bound[cpu][w])
            continue;
        uint64_t due = __atomic_load_n(&events->pending[w], __ATOMIC_SEQ_CST) & bound[cpu][w] & ~events->mask[w];
        while (due) {
            unsigned bit = (unsigned)__builtin_ctzll(due);
            due &= due - 1;
            __atomic_fetch_and(&events->pending[w], ~(1ull << bit), __ATOMIC_SEQ_CST);
            if (port_handler[w * 64 + bit].fn)
                port_handler[w * 64 + bit].fn(port_handler[w * 64 + bit].arg);
        }
    }
}

void event_handle(unsigned port, event_fn *fn, void *arg)
{
    if (port >= VT_PORTS)
        die("event_handle: there is no port %u\n", port);
    unsigned cpu = cpu_index();
    port_handler[port].fn = fn;
    port_handler[port].arg = arg;
    if (!events) { /* the first processor comes here before it starts others */
        events = pages_alloc(1);
        trap_handle(UPCALL_VECTOR, upcall);
        if (vt_call1(VT_EVENT_PAGE, events))
            die("no events\n");
    }
    if (!ready[cpu] && vt_call2(VT_EVENT_VECTOR, cpu, UPCALL_VECTOR))
        die("no upcalls\n");
    ready[cpu] = true;
    __atomic_fetch_or(&bound[cpu][port / 64], 1ull << (port & 63), __ATOMIC_SEQ_CST);
    vt_call2(VT_EVENT_BIND, port, cpu);
}

void event_mask(unsigned port, bool masked)
{
    uint64_t bit = 1ull << (port & 63);

    if (masked)
        __atomic_fetch_or(&events->mask[port / 64], bit, __ATOMIC_SEQ_CST);
    else
        __atomic_fetch_and(&events->mask[port / 64], ~bit, __ATOMIC_SEQ_CST);
}

/* A processor that stops gets no more upcalls until it asks anew. */
void events_forget(unsigned cpu);
void events_forget(unsigned cpu)
{
    ready[cpu] = false;
    memset(bound[cpu], 0, sizeof(bound[cpu]));
}

/* -- Time ------------------------------------------------------------------------------------------------------ */

static struct vt_time time_page __attribute__((aligned(64)));

static const volatile struct vt_time *the_time(void)
{
    if (!time_page.mul && vt_call1(VT_TIME_PAGE, &time_page))
        die("no time page\n");
    return &time_page;
}

uint64_t mono_ns(void)
{
    return vt_mono_ns(the_time());
}

uint64_t wall_ns(void)
{
    return vt_wall_ns(the_time());
}
