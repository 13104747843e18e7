/*
 * vcpu.c - vcpu_op: processors that are made, started, stopped and asked about.
 * Source: Xen's public vcpu.h, arch-x86/xen.h (vcpu_guest_context).
 *
 * A vCPU that never ran waits in the monitor until `up` gives it the state of `initialise`. One that goes down is a vCPU that
 * halts, and that no event wakes (VITRO_PARK); `up` lets it go on where it was.
 * Not done: periodic timers, NMIs, time that the host takes away; vector state in the context of a new vCPU.
 */
#include "paravirt/xen/inner.h"
#include <string.h>

/* The guest names a frame that it keeps: the structure lives there from now on. */
static s64 register_info(struct xen *x, struct xen_cpu *c, struct vitro_vcpu *v, u64 arg)
{
    struct xen_register_vcpu_info r;

    if (vitro_vcpu_copy_in(v, arg, &r, sizeof(r)))
        return -XEN_EFAULT;
    if (r.mfn >= x->nr_frames || r.offset > PAGE_SIZE - sizeof(struct xen_vcpu_info) || (r.offset & 7) || c->info_frame)
        return -XEN_EINVAL;
    /* It can be no page table for as long as the guest lives. */
    int rc = frame_get(x, r.mfn, FRAME_WRITABLE);
    if (rc)
        return rc;
    struct xen_vcpu_info *info = (struct xen_vcpu_info *)(x->c.host + (r.mfn << PAGE_SHIFT) + r.offset);
    *info = *c->info;
    c->info_frame = r.mfn + 1;
    __atomic_store_n(&c->info, info, __ATOMIC_SEQ_CST);
    /* What was raised meanwhile may have gone to the old place: look at everything once. */
    __atomic_store_n(&info->pending_sel, ~0ull, __ATOMIC_SEQ_CST);
    __atomic_store_n(&info->upcall_pending, 1, __ATOMIC_SEQ_CST);
    return 0;
}

/* -- Where its time goes: Xen's runstate -------------------------------------------------------------------------- */

static struct xen_runstate_info runstate_now(const struct xen_cpu *c)
{
    struct xen_runstate_info r = c->runstate;

    r.time[r.state] += xen_now(c->xen) - r.state_entry_time;
    return r;
}

void runstate_set(struct xen_cpu *c, unsigned state)
{
    struct xen_runstate_info r = runstate_now(c);

    r.state_entry_time = xen_now(c->xen);
    r.state = state;
    c->runstate = r;
    if (c->runstate_la) /* it is the guest's to see that this can be written */
        (void)vitro_vcpu_copy_out(c->vcpu, c->runstate_la, &r, sizeof(r));
}

static s64 register_runstate(struct xen_cpu *c, struct vitro_vcpu *v, u64 arg)
{
    struct xen_runstate_info r = runstate_now(c);
    u64 la;

    if (vitro_vcpu_copy_in(v, arg, &la, sizeof(la)) || (la && vitro_vcpu_copy_out(v, la, &r, sizeof(r))))
        return -XEN_EFAULT;
    c->runstate_la = la; /* 0: nowhere from now on */
    return 0;
}

/* -- Starting ---------------------------------------------------------------------------------------------------- */

void vcpu_sregs(struct xen_cpu *c, struct vitro_sregs *s)
{
    c->cr0 = CR0_ALWAYS;
    c->cr4 = CR4_ALWAYS;
    vitro_vcpu_get_sregs(c->vcpu, s);
    s->ds = s->es = s->fs = s->gs = s->ldt = s->tr = (struct vitro_segment){ .attr = SEG_UNUSABLE };
    s->gdt_base = GDT_AREA + c->index * GDT_AREA_STRIDE;
    s->gdt_limit = GDT_LIMIT;
    s->idt_base = s->idt_limit = 0;
    s->cr0 = c->cr0;
    s->cr4 = c->cr4;
    s->efer = EFER_ALWAYS;
}

/* A segment register from the new vCPU's GDT. Null is good enough for data. */
static bool load_segment(const struct xen_cpu *c, u16 sel, bool code, bool null_ok, struct vitro_segment *s)
{
    u64 d;

    *s = (struct vitro_segment){ .attr = SEG_UNUSABLE };
    if (!(sel & ~3))
        return null_ok;
    sel |= 3;
    d = gdt_descriptor(c, sel);

    u32 attr = (u32)(d >> 40) & 0xf0ff, limit = (u32)(d & 0xffff) | (u32)(d >> 32 & 0xf0000);
    if (!(attr & SEG_P) || !(attr & SEG_S) || (code ? !(attr & SEG_CODE) || !(attr & SEG_L) : (attr & (SEG_CODE | SEG_W)) != SEG_W))
        return false;
    *s = (struct vitro_segment){ .base = (d >> 16 & 0xffffff) | (d >> 32 & 0xff000000), .attr = attr, .selector = sel,
                                 .limit = attr & SEG_G ? limit << 12 | 0xfff : limit };
    return true;
}

static void start_regs(const struct xen_user_regs *u, struct vitro_regs *r)
{
    *r = (struct vitro_regs){
        .gpr = { [RAX] = u->rax, [RCX] = u->rcx, [RDX] = u->rdx, [RBX] = u->rbx, [RSP] = u->rsp, [RBP] = u->rbp, [RSI] = u->rsi,
                 [RDI] = u->rdi, [R8] = u->r8, [R9] = u->r9, [R10] = u->r10, [R11] = u->r11, [R12] = u->r12, [R13] = u->r13,
                 [R14] = u->r14, [R15] = u->r15 },
        .rip = u->rip, .rflags = (u->rflags & (EFL_ARITH | EFL_DF)) | EFL_IF | EFL_R1,
    };
}

/* All that can be wrong comes before the first frame is counted; gdt_load() and the base pointers undo each other. */
static s64 initialise(struct xen *x, struct xen_cpu *c, struct vitro_vcpu *from, u64 arg)
{
    struct xen_guest_context g;
    u64 top, user;

    if (c->initialised)
        return -XEN_EEXIST;
    if (vitro_vcpu_copy_in(from, arg, &g, sizeof(g)))
        return -XEN_EFAULT;
    top = g.ctrlreg[3] >> PAGE_SHIFT;
    user = g.ctrlreg[1] >> PAGE_SHIFT;
    if (!(g.flags & XEN_VGCF_IN_KERNEL) || g.gdt_ents > XEN_GDT_ENTRIES || !cpu_canonical(g.user_regs.rip) ||
        !cpu_canonical(g.kernel_sp) || !cpu_canonical(g.event_callback) || !cpu_canonical(g.failsafe_callback) ||
        !cpu_canonical(g.syscall_callback) || !cpu_canonical(g.fs_base) || !cpu_canonical(g.gs_base_kernel) ||
        !cpu_canonical(g.gs_base_user) || g.ldt_ents > 8192 || (g.ldt_ents && (g.ldt_base & ~PAGE_MASK)))
        return -XEN_EINVAL;
    for (unsigned i = 0; i < ARRAY_SIZE(g.trap); i++)
        if (!cpu_canonical(g.trap[i].address))
            return -XEN_EINVAL;

    s64 r = gdt_load(c, g.gdt_frames, (unsigned)(g.gdt_ents + 511) / 512);
    if (r)
        return r;
    struct vitro_sregs *s = &c->start_sregs;
    vcpu_sregs(c, s);
    r = -XEN_EINVAL;
    if (!load_segment(c, g.user_regs.cs, true, false, &s->cs) || !load_segment(c, g.user_regs.ss, false, true, &s->ss) ||
        !load_segment(c, g.user_regs.ds, false, true, &s->ds) || !load_segment(c, g.user_regs.es, false, true, &s->es) ||
        !load_segment(c, g.user_regs.fs, false, true, &s->fs) || !load_segment(c, g.user_regs.gs, false, true, &s->gs))
        goto fail;
    r = top ? frame_get(x, top, FRAME_L4) : -XEN_EINVAL; /* 0 is "none" */
    if (r)
        goto fail;
    if (user) {
        r = frame_get(x, user, FRAME_L4);
        if (r) {
            frame_put(x, top);
            goto fail;
        }
    }
    mmu_kernel_half(x, c, top);
    c->kernel_cr3 = top << PAGE_SHIFT;
    c->user_cr3 = user << PAGE_SHIFT;
    c->kernel_sp = g.kernel_sp;
    for (unsigned i = 0; i < ARRAY_SIZE(g.trap); i++) /* by place, unlike set_trap_table's list; most are empty, with vector 0 */
        c->trap[i] = (struct trap_gate){ g.trap[i].address, g.trap[i].flags };
    c->callback[XEN_CALLBACK_EVENT].address = g.event_callback;
    c->callback[XEN_CALLBACK_FAILSAFE].address = g.failsafe_callback;
    c->callback[XEN_CALLBACK_FAILSAFE].mask = g.flags & XEN_VGCF_FAILSAFE_MASKS;
    c->callback[XEN_CALLBACK_SYSCALL].address = g.syscall_callback;
    c->callback[XEN_CALLBACK_SYSCALL].mask = g.flags & XEN_VGCF_SYSCALL_MASKS;
    c->cr4 = s->cr4 = (g.ctrlreg[4] & CR4_GUESTS) | CR4_ALWAYS;
    s->cr3 = c->kernel_cr3;
    if (!s->ss.selector)
        s->ss = (struct vitro_segment){ .limit = ~0u, .attr = SEG_P | SEG_S | SEG_A | SEG_G | SEG_W | SEG_DB, .selector = 3 };
    s->ss.attr = (s->ss.attr & ~(3u << SEG_DPL_SHIFT)) | 1u << SEG_DPL_SHIFT; /* the level to run at (struct vitro_outer) */
    s->fs.base = g.fs_base;
    s->gs.base = g.gs_base_kernel;
    c->start_gs_user = g.gs_base_user;
    if (g.ldt_ents)
        s->ldt = (struct vitro_segment){ .base = g.ldt_base, .limit = (u32)g.ldt_ents * 8 - 1, .attr = LDT_ATTR };
    start_regs(&g.user_regs, &c->start_regs);
    __atomic_store_n(&c->info->upcall_mask, 1, __ATOMIC_SEQ_CST);
    c->initialised = true;
    return 0;
fail:
    gdt_load(c, NULL, 0);
    return r;
}

static s64 up(struct xen *x, struct xen_cpu *c)
{
    if (!c->initialised)
        return -XEN_EINVAL;
    if (c->up)
        return 0;
    if (!c->started) {
        vitro_vcpu_wrmsr(c->vcpu, MSR_KERNEL_GS_BASE, c->start_gs_user); /* it does not run yet */
        time_publish(c);
        c->started = true;
        __atomic_store_n(&c->up, true, __ATOMIC_SEQ_CST);
        c->runstate = (struct xen_runstate_info){ .state_entry_time = xen_now(x) };
        return x->c.start && x->c.start(x->c.opaque, c->index, &c->start_sregs, &c->start_regs) ? 0 : -XEN_EINVAL;
    }
    __atomic_store_n(&c->up, true, __ATOMIC_SEQ_CST);
    x->c.kick(x->c.opaque, c->index, VITRO_KICK_INTR | VITRO_KICK_WAKE);
    return 0;
}

static s64 down(struct xen *x, struct xen_call *call, struct xen_cpu *c)
{
    bool last = true;

    for (unsigned i = 0; i < x->c.nr_cpus; i++)
        last &= &x->cpu[i] == c || !x->cpu[i].up;
    if (!c->initialised)
        return -XEN_EINVAL;
    if (last) { /* nobody could ever start one again */
        x->c.shutdown(x->c.shutdown_opaque, XEN_SHUTDOWN_poweroff);
        call->halt = true;
        return 0;
    }
    if (!c->up)
        return 0;
    __atomic_store_n(&c->up, false, __ATOMIC_SEQ_CST);
    if (c == call->cpu)
        call->park = true;
    else
        x->c.kick(x->c.opaque, c->index, VITRO_KICK_INTR);
    return 0;
}

s64 xen_vcpu_op(struct xen *x, struct xen_call *call)
{
    struct vitro_vcpu *v = call->cpu->vcpu;
    u64 arg = call->a[2];

    if (call->a[1] >= x->c.nr_cpus)
        return -XEN_ENOENT;
    struct xen_cpu *c = &x->cpu[call->a[1]];
    switch ((u32)call->a[0]) {
    case XEN_VCPUOP_is_up:
        return c->up;
    case XEN_VCPUOP_initialise:
        return initialise(x, c, v, arg);
    case XEN_VCPUOP_up:
        return up(x, c);
    case XEN_VCPUOP_down:
        return down(x, call, c);
    case XEN_VCPUOP_get_runstate_info: {
        struct xen_runstate_info r = runstate_now(c);
        return vitro_vcpu_copy_out(v, arg, &r, sizeof(r)) ? -XEN_EFAULT : 0;
    }
    case XEN_VCPUOP_register_runstate:
        return register_runstate(c, v, arg);
    case XEN_VCPUOP_register_time_info: {
        struct xen_time_info t = time_info(c);
        u64 la;
        if (vitro_vcpu_copy_in(v, arg, &la, sizeof(la)))
            return -XEN_EFAULT;
        return la && vitro_vcpu_copy_out(v, la, &t, sizeof(t)) ? -XEN_EFAULT : 0; /* 0: nowhere from now on */
    }
    case XEN_VCPUOP_register_vcpu_info:
        return register_info(x, c, v, arg);
    case XEN_VCPUOP_stop_periodic_timer:
        return 0;
    case XEN_VCPUOP_set_singleshot_timer: {
        struct xen_set_singleshot s;
        if (c != call->cpu)
            return -XEN_EINVAL;
        if (vitro_vcpu_copy_in(v, arg, &s, sizeof(s)))
            return -XEN_EFAULT;
        if ((s.flags & XEN_SSHOT_FUTURE) && s.timeout_abs_ns < xen_now(x))
            return -XEN_ETIME;
        set_deadline(c, MIN(s.timeout_abs_ns, CLOCK_NEVER - 1));
        return 0;
    }
    case XEN_VCPUOP_stop_singleshot_timer:
        if (c != call->cpu)
            return -XEN_EINVAL;
        set_deadline(c, CLOCK_NEVER);
        return 0;
    }
    return -XEN_ENOSYS;
}
