/* events.c - the upcall, and the time page. */
#include "sdk/sdk.h"

#define UPCALL_VECTOR 0x40

static struct vt_events *events; /* a page shared with Vitro */
static struct {
    event_fn *fn;
    void *arg;
} port_handler[VT_PORTS];

/* The order matters: `upcall` first, so that what is set after we looked interrupts again. No end-of-interrupt. */
static void upcall(struct sdk_regs *regs)
{
    (void)regs;
    __atomic_store_n(&events->vcpu[0].upcall, 0, __ATOMIC_SEQ_CST);
    for (unsigned w = 0; w < VT_PORTS / 64; w++) {
        uint64_t due = __atomic_load_n(&events->pending[w], __ATOMIC_SEQ_CST) & ~events->mask[w];
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
    port_handler[port].fn = fn;
    port_handler[port].arg = arg;
    if (events)
        return;
    events = pages_alloc(1);
    trap_handle(UPCALL_VECTOR, upcall);
    if (vt_call1(VT_EVENT_PAGE, events) || vt_call2(VT_EVENT_VECTOR, 0, UPCALL_VECTOR))
        die("no events\n");
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
