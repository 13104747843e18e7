/* calls.c - hypercalls by number, and lists of them. Source: Xen's public xen.h. */
#include "paravirt/xen/io.h"

static xen_call_fn xen_multicall;

static xen_call_fn *const calls[XEN_nr_hypercalls] = {
    [XEN_set_trap_table] = xen_set_trap_table, [XEN_mmu_update] = xen_mmu_update, [XEN_set_gdt] = xen_set_gdt,
    [XEN_stack_switch] = xen_stack_switch, [XEN_set_callbacks] = xen_set_callbacks,
    [XEN_fpu_taskswitch] = xen_fpu_taskswitch, [XEN_set_debugreg] = xen_set_debugreg,
    [XEN_get_debugreg] = xen_get_debugreg, [XEN_update_descriptor] = xen_update_descriptor,
    [XEN_memory_op] = xen_memory_op, [XEN_multicall] = xen_multicall, [XEN_update_va_mapping] = xen_update_va_mapping,
    [XEN_set_timer_op] = xen_set_timer_op, [XEN_xen_version] = xen_xen_version, [XEN_console_io] = xen_console_io,
    [XEN_vm_assist] = xen_vm_assist, [XEN_vcpu_op] = xen_vcpu_op,
    [XEN_set_segment_base] = xen_set_segment_base, [XEN_mmuext_op] = xen_mmuext_op, [XEN_sched_op] = xen_sched_op,
    [XEN_callback_op] = xen_callback_op, [XEN_event_channel_op] = xen_event_channel_op,
    [XEN_physdev_op] = xen_physdev_op, [XEN_grant_table_op] = xen_grant_table_op,
};

void xen_lock(struct xen *x, struct xen_cpu *c)
{
    if (pthread_mutex_trylock(&x->lock)) {
        vitro_vcpu_wait_begin(c->vcpu);
        pthread_mutex_lock(&x->lock);
        vitro_vcpu_wait_end(c->vcpu);
    }
    x->holder = c->vcpu;
}

void xen_unlock(struct xen *x)
{
    x->holder = NULL;
    pthread_mutex_unlock(&x->lock);
}

/* Those that run with the guest's vector registers in place; they are put away for the others. */
static bool is_fast(u64 number)
{
    const u64 fast = 1ull << XEN_mmu_update | 1ull << XEN_stack_switch | 1ull << XEN_fpu_taskswitch | 1ull << XEN_multicall |
                     1ull << XEN_update_va_mapping | 1ull << XEN_set_segment_base | 1ull << XEN_mmuext_op;
    return fast >> number & 1;
}

/* Those that touch nothing but what the vCPU keeps for itself: they need no lock. */
static bool is_own(u64 number)
{
    const u64 own = 1ull << XEN_stack_switch | 1ull << XEN_fpu_taskswitch | 1ull << XEN_set_segment_base;
    return number < 64 && (own >> number & 1);
}

static s64 call(struct xen *x, u64 number, struct xen_call *c)
{
    xen_call_fn *fn = number < ARRAY_SIZE(calls) ? calls[number] : NULL;

    if (!fn)
        return -XEN_ENOSYS;
    if (is_fast(number))
        return fn(x, c);
    vitro_vcpu_vectors_away(c->cpu->vcpu);
    s64 r = fn(x, c);
    vitro_vcpu_vectors_back(c->cpu->vcpu);
    return r;
}

/* Calls that do not come back to where they were made cannot be in a list. */
static s64 xen_multicall(struct xen *x, struct xen_call *c)
{
    u64 list = c->a[0], count = (u32)c->a[1];

    if (count > 1u << 16)
        return -XEN_E2BIG;
    for (u64 i = 0; i < count; i++) {
        struct xen_multicall_entry e;
        u64 at = list + i * sizeof(e);
        if (vitro_vcpu_copy_in(c->cpu->vcpu, at, &e, sizeof(e)))
            return -XEN_EFAULT;
        struct xen_call one = { .cpu = c->cpu, .frame = c->frame };
        for (unsigned k = 0; k < ARRAY_SIZE(one.a); k++)
            one.a[k] = e.args[k];
        /* A vCPU cannot go down in the middle of a list. */
        bool down = e.op == XEN_vcpu_op && (u32)e.args[0] == XEN_VCPUOP_down;
        bool listed = !down && e.op != XEN_multicall && e.op != XEN_iret && e.op != XEN_sched_op;
        s64 r = listed ? call(x, e.op, &one) : -XEN_ENOSYS;
        if (vitro_vcpu_copy_out(c->cpu->vcpu, at + offsetof(struct xen_multicall_entry, result), &r, sizeof(r)))
            return -XEN_EFAULT;
    }
    return 0;
}

enum vitro_crossing xen_syscall(void *opaque, unsigned vcpu, struct vitro_frame *f, bool code64)
{
    struct xen *x = opaque;
    struct xen_cpu *c = &x->cpu[vcpu];
    u64 *g = f->gpr;

    if (!f->kernel)
        return cpu_syscall(c, f, code64);
    if (!code64)
        return VITRO_REFUSE;

    __atomic_store_n(&c->polling, false, __ATOMIC_RELAXED); /* it calls: so it no longer sleeps */
    if (c->runstate.state)
        cpu_runstate(c, XEN_RUNSTATE_running);
    u64 number = (u32)g[RAX];
    if (number == XEN_iret)
        return cpu_iret(c, f);

    struct xen_call one = { .cpu = c, .frame = f, .a = { g[RDI], g[RSI], g[RDX], g[R10], g[R8] } };
    if (number == XEN_sched_op || number == XEN_vcpu_op) /* it may sleep */
        cpu_left(c);
    bool lock = !is_own(number);
    if (lock)
        xen_lock(x, c);
    s64 r = call(x, number, &one);
    if (lock)
        xen_unlock(x);
    g[RAX] = (u64)r;
    if (one.park || (one.halt && !cpu_upcall_due(c))) {
        cpu_runstate(c, one.park ? XEN_RUNSTATE_offline : XEN_RUNSTATE_blocked);
        return one.park ? VITRO_PARK : VITRO_HALT;
    }
    return cpu_upcall(c, f);
}
