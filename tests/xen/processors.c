/* processors.c - vcpu_op: another processor made, started, woken by an event, ended; and all that may be wrong with it. */
#include "guest.h"

extern char cpu_entry[];
void cpu_main(volatile uint64_t *what);

static uint64_t gdt[512] __attribute__((aligned(4096)));
static uint8_t stack[8192] __attribute__((aligned(16)));
static volatile uint64_t said;
static volatile uint32_t port;

#define WINDOW 0x20000000ull
static uint64_t table[512] __attribute__((aligned(4096)));
static volatile bool stop;

/* On vCPU 1, whose events go to vCPU 0's handler never: it polls, goes down, and is up again; then it writes a page whose entry
 * vCPU 0 changes all the time. */
void cpu_main(volatile uint64_t *what)
{
    struct xen_sched_poll p = { .ports = (uint64_t)&port, .nr_ports = 1 };

    *what += 1;
    while (!(shared.evtchn_pending[0] >> port & 1))
        xen_call2(XEN_sched_op, XEN_SCHEDOP_poll, &p);
    __atomic_fetch_and(&shared.evtchn_pending[0], ~(1ull << port), __ATOMIC_SEQ_CST);
    *what += 10;
    xen_call2(XEN_vcpu_op, XEN_VCPUOP_down, 1);
    *what += 1;
    for (uint64_t n = 1; !stop; n++)
        try_store((uint64_t *)WINDOW, n);
    *what += 10;
    for (;;)
        xen_call2(XEN_sched_op, XEN_SCHEDOP_yield, 0);
}

/* An entry is taken out by XCHG, as Linux does: whatever was written through it before, its Dirty bit says so. */
static void test_dirty(void)
{
    struct xen_mmuext_op flush = { .cmd = XEN_MMUEXT_TLB_FLUSH_ALL };
    struct xen_mmu_update link = { machine_of(entry_of(WINDOW, 2)), RO(table) | PTE_W };
    volatile uint64_t *page = page_a;
    unsigned lost = 0, seen_dirty = 0;
    uint64_t last = page[0];

    that(!map(table, RO(table)) && !xen_call4(XEN_mmu_update, &link, 1, 0, XEN_DOMID_SELF));
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t old = 0;
        *(volatile uint64_t *)table = RO(page_a) | PTE_W;
        for (unsigned spin = 0; spin < i % 64; spin++)
            __asm__ volatile("pause");
        __asm__ volatile("xchg %0, %1" : "+r"(old), "+m"(table[0])::"memory");
        xen_call4(XEN_mmuext_op, &flush, 1, 0, XEN_DOMID_SELF);
        lost += page[0] != last && !(old & PTE_D);
        seen_dirty += (old & PTE_D) != 0;
        last = page[0];
    }
    check(!lost, "3000 entries taken out, %u of them dirty; lost: %u", seen_dirty, lost);
    stop = true;
}

static void say_for(uint64_t value)
{
    while (said != value)
        xen_call2(XEN_sched_op, XEN_SCHEDOP_yield, 0);
    check(true, "vCPU 1 said %lu", value);
}

static void test_errors(struct xen_guest_context *good)
{
    static struct xen_guest_context c;

    want(-XEN_EEXIST, XEN_vcpu_op, XEN_VCPUOP_initialise, 0, good);
    want(-XEN_EFAULT, XEN_vcpu_op, XEN_VCPUOP_initialise, 1, NOWHERE);
    want(-XEN_EINVAL, XEN_vcpu_op, XEN_VCPUOP_up, 1);
    want(-XEN_EINVAL, XEN_vcpu_op, XEN_VCPUOP_down, 1);
#define WRONG(field, value) \
    do { \
        c = *good; \
        c.field = value; \
        check(xen_call3(XEN_vcpu_op, XEN_VCPUOP_initialise, 1, &c) == -XEN_EINVAL, "initialise: %s = %s", #field, #value); \
    } while (0)
    WRONG(flags, 0);
    WRONG(gdt_ents, XEN_GDT_ENTRIES + 1);
    WRONG(gdt_frames[0], NO_FRAME);
    WRONG(gdt_frames[0], frame_of(page_a));
    WRONG(user_regs.rip, NO_ADDRESS);
    WRONG(user_regs.cs, 0);
    WRONG(user_regs.ss, 0x10);
    WRONG(kernel_sp, NO_ADDRESS);
    WRONG(event_callback, NO_ADDRESS);
    WRONG(trap[255].address, NO_ADDRESS);
    WRONG(ldt_ents, 8193);
    WRONG(ctrlreg[3], NO_FRAME * PAGE);
    WRONG(ctrlreg[3], machine_of(page_a));
    WRONG(ctrlreg[1], machine_of(page_a));
}

void test_processors(void)
{
    static struct xen_guest_context good;
    struct xen_evtchn_bind_ipi ipi = { 1, 0 };
    struct xen_runstate_info *run = (struct xen_runstate_info *)(arg + 64);
    struct xen_register_vcpu_info info = { NO_FRAME, 0, 0 };
    uint64_t la = (uint64_t)run;

    want(-XEN_ENOENT, XEN_vcpu_op, XEN_VCPUOP_is_up, 64);
    want(1, XEN_vcpu_op, XEN_VCPUOP_is_up, 0);
    want(-XEN_ENOSYS, XEN_vcpu_op, 99, 0);
    want(-XEN_ENOSYS, XEN_vcpu_op, XEN_VCPUOP_send_nmi, 0);
    want(0, XEN_vcpu_op, XEN_VCPUOP_get_runstate_info, 0, arg);
    want(0, XEN_vcpu_op, XEN_VCPUOP_register_runstate, 0, put(la));
    that(run->state == XEN_RUNSTATE_running);
    want(0, XEN_vcpu_op, XEN_VCPUOP_register_time_info, 0, put(la));
    that(((struct xen_time_info *)la)->tsc_to_system_mul == shared.vcpu_info[0].time.tsc_to_system_mul);
    la = 0; /* no longer */
    want(0, XEN_vcpu_op, XEN_VCPUOP_register_time_info, 0, put(la));
    want(0, XEN_vcpu_op, XEN_VCPUOP_register_runstate, 0, put(la));
    la = NOWHERE;
    want(-XEN_EFAULT, XEN_vcpu_op, XEN_VCPUOP_register_time_info, 0, put(la));
    want(-XEN_EFAULT, XEN_vcpu_op, XEN_VCPUOP_register_runstate, 0, put(la));
    const uint32_t suspend = XEN_SHUTDOWN_suspend; /* nobody asked, so nobody would wake us */
    want(1, XEN_sched_op, XEN_SCHEDOP_shutdown, put(suspend), 0);
    want(-XEN_EINVAL, XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 0, put(info));
    info = (struct xen_register_vcpu_info){ frame_of(page_b), PAGE - 32, 0 };
    want(-XEN_EINVAL, XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 0, put(info));
    info.offset = 4;
    want(-XEN_EINVAL, XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 0, put(info));
    info = (struct xen_register_vcpu_info){ frame_of((void *)start->pt_base), 0, 0 };
    want(-XEN_EINVAL, XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 0, put(info));
    if (xen_call2(XEN_vcpu_op, XEN_VCPUOP_is_up, 1) == -XEN_ENOENT)
        return; /* with one vCPU that is all */

    gdt[2] = 0x00affb000000ffffull;
    gdt[3] = 0x00cff3000000ffffull;
    that(!map(gdt, RO(gdt)));
    good.flags = XEN_VGCF_IN_KERNEL;
    good.user_regs.rip = (uint64_t)cpu_entry;
    good.user_regs.rsp = good.kernel_sp = (uint64_t)(stack + sizeof(stack));
    good.user_regs.rdi = (uint64_t)&said;
    good.user_regs.cs = 0x13;
    good.user_regs.ss = 0x1b;
    good.gdt_frames[0] = frame_of(gdt);
    good.gdt_ents = 512;
    good.event_callback = (uint64_t)event_entry;
    good.failsafe_callback = (uint64_t)failsafe_entry;
    good.ctrlreg[3] = machine_of((void *)start->pt_base);
    for (unsigned i = 0; i < 32; i++)
        good.trap[i] = (struct xen_trap_info){ .vector = (uint8_t)i, .cs = XEN_FLAT_CS64, .address = (uint64_t)trap_stubs + 16 * i };
    test_errors(&good);

    struct xen_evtchn_bind_virq console = { XEN_VIRQ_CONSOLE, 1, 0 }; /* one for all */
    want(-XEN_EINVAL, XEN_event_channel_op, XEN_EVTCHNOP_bind_virq, put(console));
    want(0, XEN_event_channel_op, XEN_EVTCHNOP_bind_ipi, put(ipi));
    port = GOT(struct xen_evtchn_bind_ipi)->port;
    shared.evtchn_mask[0] |= 1ull << port;
    struct xen_set_singleshot s = { .timeout_abs_ns = 1 };
    want(-XEN_EINVAL, XEN_vcpu_op, XEN_VCPUOP_set_singleshot_timer, 1, put(s)); /* another one's timer */
    want(-XEN_EINVAL, XEN_vcpu_op, XEN_VCPUOP_stop_singleshot_timer, 1);

    want(0, XEN_vcpu_op, XEN_VCPUOP_initialise, 1, &good);
    want(-XEN_EEXIST, XEN_vcpu_op, XEN_VCPUOP_initialise, 1, &good);
    want(0, XEN_vcpu_op, XEN_VCPUOP_is_up, 1);
    want(0, XEN_vcpu_op, XEN_VCPUOP_up, 1);
    say_for(1);
    want(1, XEN_vcpu_op, XEN_VCPUOP_is_up, 1);
    uint32_t p = port;
    want(0, XEN_event_channel_op, XEN_EVTCHNOP_send, put(p));
    say_for(11);
    while (xen_call2(XEN_vcpu_op, XEN_VCPUOP_is_up, 1))
        xen_call2(XEN_sched_op, XEN_SCHEDOP_yield, 0);
    want(0, XEN_vcpu_op, XEN_VCPUOP_up, 1); /* it goes on where it was */
    say_for(12);
    test_dirty();
    say_for(22);
    want(0, XEN_vcpu_op, XEN_VCPUOP_down, 1); /* by somebody else */
    want(0, XEN_vcpu_op, XEN_VCPUOP_is_up, 1);
}
