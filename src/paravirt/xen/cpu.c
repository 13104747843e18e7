/*
 * cpu.c - a PV guest's processor: how its kernel is entered, left, and what it may not do by itself.
 *
 * The frame that its kernel finds on its stack after a trap, an event or a system call, from RSP up:
 *
 *    0 rcx   8 r11   [error code | ds es fs gs]   rip   cs | mask before << 32   rflags   rsp   ss
 *
 * CS shows level 0 for the kernel's own code. IF in rflags says whether events were not masked.
 * All of this runs with the guest's vector registers in place (struct vitro_outer).
 * Source: Xen's public xen.h, arch-x86/xen-x86_64.h, callback.h.
 */
#include "paravirt/xen/inner.h"
#include <stdio.h>
#include <string.h>

static struct xen_cpu *cpu_of(void *opaque, unsigned vcpu)
{
    return &((struct xen *)opaque)->cpu[vcpu];
}

/* -- Into the kernel ----------------------------------------------------------------------------------------- */

struct bounce {
    u64 address;
    bool mask;            /* events, on the way in */
    bool has_error;
    u32 error;
    bool has_selectors;   /* of the failsafe callback */
    const char *what;     /* for messages; NULL: exception `vector` */
    unsigned vector;
};

static enum vitro_crossing dead(struct xen_cpu *c, const struct vitro_frame *f, const struct bounce *b, const char *why)
{
    char what[32];

    vitro_vcpu_vectors_away(c->vcpu);
    snprintf(what, sizeof(what), "exception %u", b->vector);
    vitro_vcpu_vectors_back(c->vcpu);
    vitro_vcpu_fail(c->vcpu, "%s at %#llx (error %#x, cr2 %#llx): %s", b->what ? b->what : what, (unsigned long long)f->rip,
                    b->error, (unsigned long long)c->info->cr2, why);
    return VITRO_DEAD;
}

/* The frame is on the kernel's stack, at sp: it goes on at a handler. @mask: which takes no events for now. */
static inline void to_kernel(struct xen_cpu *c, struct vitro_frame *f, u64 sp, u64 address, bool mask)
{
    if (mask)
        __atomic_store_n(&c->info->upcall_mask, 1, __ATOMIC_RELAXED);
    f->gpr[RSP] = sp;
    f->rip = address;
    f->rflags &= ~(u64)(EFL_AC | EFL_VM | EFL_RF | EFL_NT | EFL_TF);
    f->cs = XEN_FLAT_CS64;
    f->ss = XEN_FLAT_DS;
    f->cr3 = c->kernel_cr3;
    f->kernel = true;
}

static enum vitro_crossing bounce(struct xen_cpu *c, struct vitro_frame *f, const struct bounce *b)
{
    u64 frame[12], sp = f->gpr[RSP];
    unsigned n = 0;
    bool masked = __atomic_load_n(&c->info->upcall_mask, __ATOMIC_RELAXED);
    u16 cs = f->cs;

    if (!b->address)
        return dead(c, f, b, "the guest's kernel has no handler for it");
    if (f->kernel)
        cs &= (u16)~3;
    else
        sp = c->kernel_sp;
    sp &= ~15ull;
    frame[n++] = f->gpr[RCX];
    frame[n++] = f->gpr[R11];
    if (b->has_selectors) {
        vitro_vcpu_data_selectors(c->vcpu, frame + n);
        n += 4;
    }
    if (b->has_error)
        frame[n++] = b->error;
    frame[n++] = f->rip;
    frame[n++] = cs | (u64)masked << 32;
    frame[n++] = (f->rflags & ~(u64)(EFL_IF | EFL_IOPL)) | (masked ? 0 : EFL_IF);
    frame[n++] = f->gpr[RSP];
    frame[n++] = f->ss;
    sp -= n * 8;

    /* The kernel's stack is there in its own tables, which need not be the ones in use. */
    if (!f->kernel)
        vitro_vcpu_use_cr3(c->vcpu, c->kernel_cr3);
    if (vitro_vcpu_copy_out(c->vcpu, sp, frame, n * 8))
        return dead(c, f, b, "the stack of the guest's kernel cannot be written");
    to_kernel(c, f, sp, b->address, b->mask);
    return VITRO_GO;
}

/* CPUID with the prefix that a PV kernel puts before it: ud2, "xen". True: done, rip is behind it. */
static bool forced_cpuid(struct xen_cpu *c, struct vitro_frame *f)
{
    static const u8 code[] = { 0x0f, 0x0b, 'x', 'e', 'n', 0x0f, 0xa2 };
    u8 bytes[sizeof(code)];
    u32 r[4];

    if (vitro_vcpu_copy_in(c->vcpu, f->rip, bytes, sizeof(bytes)))
        return false;
    for (unsigned i = 0; i < sizeof(code); i++) /* memcmp() takes vector registers */
        if (bytes[i] != code[i])
            return false;
    vitro_vcpu_vectors_away(c->vcpu);
    xen_cpuid(c, (u32)f->gpr[RAX], (u32)f->gpr[RCX], r);
    vitro_vcpu_vectors_back(c->vcpu);
    f->gpr[RAX] = r[0];
    f->gpr[RBX] = r[1];
    f->gpr[RCX] = r[2];
    f->gpr[RDX] = r[3];
    f->rip += sizeof(code);
    return true;
}

static enum vitro_crossing on_trap(void *opaque, unsigned vcpu, struct vitro_frame *f, const struct vitro_trap *t)
{
    struct xen_cpu *c = cpu_of(opaque, vcpu);

    if (!f->kernel)
        vitro_vcpu_use_cr3(c->vcpu, c->kernel_cr3);
    if (t->vector == VEC_UD && forced_cpuid(c, f))
        return VITRO_GO;
    if (t->vector == VEC_PF)
        c->info->cr2 = t->cr2;
    if (t->vector == VEC_NM) /* the kernel's handler finds TS clear */
        vitro_vcpu_write_cr(c->vcpu, 0, c->cr0 & ~(u64)CR0_TS);

    const struct trap_gate *g = &c->trap[t->vector];
    struct bounce b = { .address = g->address, .mask = g->flags & XEN_TI_MASK, .has_error = t->has_error, .error = t->error,
                        .vector = t->vector };

    return bounce(c, f, &b);
}

static enum vitro_crossing on_soft_interrupt(void *opaque, unsigned vcpu, struct vitro_frame *f, unsigned vector)
{
    struct xen_cpu *c = cpu_of(opaque, vcpu);
    const struct trap_gate *g = &c->trap[vector & 255];
    unsigned dpl = g->flags & XEN_TI_DPL;

    if (!g->address || (f->kernel ? dpl < 1 : dpl < 3))
        return VITRO_REFUSE;
    return bounce(c, f, &(struct bounce){ .address = g->address, .mask = g->flags & XEN_TI_MASK, .what = "INT" });
}

/* What bounce() does for a SYSCALL of 64-bit user code, where the TLB has the kernel's stack. False: it has not. */
static bool syscall_at_once(struct xen_cpu *c, struct vitro_frame *f)
{
    const u64 sp = (c->kernel_sp & ~15ull) - 7 * 8, masked = __atomic_load_n(&c->info->upcall_mask, __ATOMIC_RELAXED) != 0;
    u64 *frame = vitro_vcpu_poke_begin(c->vcpu, sp, 7 * 8);

    if (unlikely(!frame))
        return false;
    frame[0] = f->gpr[RCX];
    frame[1] = f->gpr[R11];
    frame[2] = f->rip;
    frame[3] = XEN_FLAT_CS64 | masked << 32;
    frame[4] = (f->rflags & ~(u64)(EFL_IF | EFL_IOPL)) | (masked ? 0 : EFL_IF);
    frame[5] = f->gpr[RSP];
    frame[6] = XEN_FLAT_DS;
    vitro_vcpu_poke_end(c->vcpu);
    to_kernel(c, f, sp, c->callback[XEN_CALLBACK_SYSCALL].address, c->callback[XEN_CALLBACK_SYSCALL].mask);
    return true;
}

/* From user code; the kernel's own SYSCALL is a hypercall (calls.c). */
enum vitro_crossing cpu_syscall(struct xen_cpu *c, struct vitro_frame *f, bool code64)
{
    unsigned type = code64 ? XEN_CALLBACK_SYSCALL : XEN_CALLBACK_SYSCALL32;

    if (!c->callback[type].address)
        return VITRO_REFUSE;
    if (likely(code64) && syscall_at_once(c, f))
        return VITRO_GO;
    f->cs = code64 ? XEN_FLAT_CS64 : XEN_FLAT_CS32;
    f->ss = XEN_FLAT_DS;
    return bounce(c, f, &(struct bounce){ .address = c->callback[type].address, .mask = c->callback[type].mask,
                                          .what = "SYSCALL" });
}

bool cpu_upcall_due(const struct xen_cpu *c)
{
    return __atomic_load_n(&c->info->upcall_pending, __ATOMIC_SEQ_CST) &&
           !__atomic_load_n(&c->info->upcall_mask, __ATOMIC_SEQ_CST);
}

enum vitro_crossing cpu_upcall(struct xen_cpu *c, struct vitro_frame *f)
{
    if (!cpu_upcall_due(c))
        return VITRO_STAY;
    return bounce(c, f, &(struct bounce){ .address = c->callback[XEN_CALLBACK_EVENT].address, .mask = true, .what = "an event" });
}

void cpu_runstate(struct xen_cpu *c, unsigned state)
{
    vitro_vcpu_vectors_away(c->vcpu);
    runstate_set(c, state);
    vitro_vcpu_vectors_back(c->vcpu);
}

static void gathered(struct xen_cpu *c)
{
    if (likely(!c->nr_gathering))
        return;
    vitro_vcpu_vectors_away(c->vcpu);
    ports_left(c);
    vitro_vcpu_vectors_back(c->vcpu);
}

void cpu_left(struct xen_cpu *c)
{
    c->stays++;
    gathered(c);
}

static enum vitro_crossing on_event(void *opaque, unsigned vcpu, struct vitro_frame *f)
{
    struct xen_cpu *c = cpu_of(opaque, vcpu);

    __atomic_store_n(&c->polling, false, __ATOMIC_RELAXED);
    if (unlikely(__atomic_load_n(&c->gathered_late, __ATOMIC_RELAXED)) && __atomic_exchange_n(&c->gathered_late, false, __ATOMIC_SEQ_CST))
        gathered(c);
    bool up = __atomic_load_n(&c->up, __ATOMIC_SEQ_CST) && !__atomic_load_n(&c->xen->suspended, __ATOMIC_SEQ_CST);

    if (up ? c->runstate.state : c->runstate.state != XEN_RUNSTATE_offline)
        cpu_runstate(c, up ? XEN_RUNSTATE_running : XEN_RUNSTATE_offline);
    return up ? cpu_upcall(c, f) : VITRO_PARK;
}

static enum vitro_crossing on_bad_frame(void *opaque, unsigned vcpu, struct vitro_frame *f)
{
    struct xen_cpu *c = cpu_of(opaque, vcpu);

    return bounce(c, f, &(struct bounce){ .address = c->callback[XEN_CALLBACK_FAILSAFE].address, .has_selectors = true,
                                          .mask = c->callback[XEN_CALLBACK_FAILSAFE].mask,
                                          .what = "a frame that cannot be loaded" });
}

/* -- Out of it ------------------------------------------------------------------------------------------------- */

enum vitro_crossing cpu_iret(struct xen_cpu *c, struct vitro_frame *f)
{
    const volatile struct xen_iret_frame *at = f->gpr[RSP] & 7 ? NULL : vitro_vcpu_peek(c->vcpu, f->gpr[RSP], sizeof(*at));
    struct xen_iret_frame i;

    if (likely(at)) { /* each once: another vCPU may write there */
        i = (struct xen_iret_frame){ at->rax, at->r11, at->rcx, at->flags, at->rip, at->cs, at->rflags, at->rsp, at->ss };
    } else if (vitro_vcpu_copy_in(c->vcpu, f->gpr[RSP], &i, sizeof(i))) {
        vitro_vcpu_fail(c->vcpu, "iret: the stack of the guest's kernel at %#llx cannot be read",
                        (unsigned long long)f->gpr[RSP]);
        return VITRO_DEAD;
    }
    if ((i.cs & 3) == 3) {
        if (!c->user_cr3) {
            vitro_vcpu_fail(c->vcpu, "iret to user code, which has no page tables");
            return VITRO_DEAD;
        }
        cpu_left(c);
        f->kernel = false;
        f->cr3 = c->user_cr3;
    }
    f->rip = i.rip;
    f->cs = (u16)i.cs | 3;
    f->ss = (u16)i.ss | 3;
    f->rflags = (i.rflags & ~(u64)(EFL_IOPL | EFL_VM)) | EFL_IF;
    f->gpr[RSP] = i.rsp;
    f->gpr[RAX] = i.rax;
    if (!(i.flags & XEN_VGCF_IN_SYSCALL)) {
        f->gpr[R11] = i.r11;
        f->gpr[RCX] = i.rcx;
    }
    /* Looked at by this vCPU only. An event that it does not see now is kicked for after it was marked (port_raise()). */
    __atomic_store_n(&c->info->upcall_mask, !(i.rflags & EFL_IF), __ATOMIC_RELAXED);
    return cpu_upcall(c, f) == VITRO_DEAD ? VITRO_DEAD : VITRO_GO;
}

/* -- What is set by hypercall -------------------------------------------------------------------------------------- */

bool cpu_canonical(u64 a) { return (u64)((s64)(a << 16) >> 16) == a; }

s64 xen_set_trap_table(struct xen *x, struct xen_call *call)
{
    struct xen_cpu *c = call->cpu;

    (void)x;
    if (!call->a[0]) {
        memset(c->trap, 0, sizeof(c->trap));
        return 0;
    }
    for (unsigned i = 0; i < 257; i++) {
        struct xen_trap_info t;
        if (vitro_vcpu_copy_in(c->vcpu, call->a[0] + i * sizeof(t), &t, sizeof(t)))
            return -XEN_EFAULT;
        if (!t.address)
            return 0;
        if (!cpu_canonical(t.address))
            return -XEN_EINVAL;
        c->trap[t.vector] = (struct trap_gate){ t.address, t.flags };
    }
    return -XEN_EINVAL; /* without an end */
}

s64 xen_set_callbacks(struct xen *x, struct xen_call *call)
{
    static const u8 type[] = { XEN_CALLBACK_EVENT, XEN_CALLBACK_FAILSAFE, XEN_CALLBACK_SYSCALL };

    (void)x;
    for (unsigned i = 0; i < ARRAY_SIZE(type); i++)
        if (!cpu_canonical(call->a[i]))
            return -XEN_EINVAL;
    for (unsigned i = 0; i < ARRAY_SIZE(type); i++)
        call->cpu->callback[type[i]].address = call->a[i];
    return 0;
}

s64 xen_callback_op(struct xen *x, struct xen_call *call)
{
    struct xen_callback_register r;

    (void)x;
    if (call->a[0] == XEN_CALLBACKOP_unregister) {
        u16 type;
        if (vitro_vcpu_copy_in(call->cpu->vcpu, call->a[1], &type, sizeof(type)))
            return -XEN_EFAULT;
        if (type >= XEN_NR_CALLBACKS)
            return -XEN_ENOSYS;
        if (type == XEN_CALLBACK_EVENT || type == XEN_CALLBACK_FAILSAFE || type == XEN_CALLBACK_SYSCALL)
            return -XEN_EINVAL;
        call->cpu->callback[type].address = 0;
        return 0;
    }
    if (call->a[0] != XEN_CALLBACKOP_register)
        return -XEN_ENOSYS;
    if (vitro_vcpu_copy_in(call->cpu->vcpu, call->a[1], &r, sizeof(r)))
        return -XEN_EFAULT;
    if (!cpu_canonical(r.address))
        return -XEN_EINVAL;
    if (r.type >= XEN_NR_CALLBACKS || r.type == 3 || r.type == 6)
        return -XEN_ENOSYS;
    call->cpu->callback[r.type].address = r.address;
    call->cpu->callback[r.type].mask = r.flags & XEN_CALLBACKF_MASK;
    return 0;
}

s64 xen_stack_switch(struct xen *x, struct xen_call *call)
{
    (void)x;
    if (!cpu_canonical(call->a[1]))
        return -XEN_EINVAL;
    call->cpu->kernel_sp = call->a[1];
    return 0;
}

s64 xen_fpu_taskswitch(struct xen *x, struct xen_call *call)
{
    struct xen_cpu *c = call->cpu;

    (void)x;
    c->cr0 = call->a[0] ? c->cr0 | CR0_TS : c->cr0 & ~(u64)CR0_TS;
    vitro_vcpu_write_cr(c->vcpu, 0, c->cr0);
    return 0;
}

s64 xen_set_debugreg(struct xen *x, struct xen_call *call)
{
    (void)x;
    /* Breakpoints on the hypervisor's addresses are not the guest's to have. */
    if (call->a[0] < 4 && (!cpu_canonical(call->a[1]) || call->a[1] - XEN_VIRT_START < 0x80000000000ull))
        return -XEN_EPERM;
    if (call->a[0] > 7 || (call->a[0] == 7 && (call->a[1] & (1u << 13)))) /* general detect */
        return -XEN_EINVAL;
    return vitro_vcpu_write_dr(call->cpu->vcpu, (unsigned)call->a[0], call->a[1]) ? -XEN_EINVAL : 0;
}

s64 xen_get_debugreg(struct xen *x, struct xen_call *call)
{
    (void)x;
    return call->a[0] > 7 ? -XEN_EINVAL : (s64)vitro_vcpu_read_dr(call->cpu->vcpu, (unsigned)call->a[0]);
}

s64 xen_set_segment_base(struct xen *x, struct xen_call *call)
{
    static const u32 msr[] = { [XEN_SEGBASE_FS] = MSR_FS_BASE, [XEN_SEGBASE_GS_USER] = MSR_KERNEL_GS_BASE,
                               [XEN_SEGBASE_GS_KERNEL] = MSR_GS_BASE };

    (void)x;
    if (call->a[0] == XEN_SEGBASE_GS_USER_SEL)
        return vitro_vcpu_load_gs(call->cpu->vcpu, (u16)call->a[1]) ? -XEN_EINVAL : 0;
    if (call->a[0] >= ARRAY_SIZE(msr) || !cpu_canonical(call->a[1]))
        return -XEN_EINVAL;
    return vitro_vcpu_wrmsr(call->cpu->vcpu, msr[call->a[0]], call->a[1]) ? -XEN_EINVAL : 0;
}

/* -- What the kernel tries that needs ring 0 --------------------------------------------------------------------------- */

static int read_msr(struct xen_cpu *c, u32 msr, u64 *value)
{
    switch (msr) {
    case MSR_APIC_BASE:
        *value = 0;
        return 0;
    case MSR_FS_BASE: case MSR_GS_BASE: case MSR_KERNEL_GS_BASE: case MSR_EFER: case MSR_TSC: case MSR_PAT: case MSR_MISC_ENABLE:
    case 0x8b: /* microcode */
        return vitro_vcpu_rdmsr(c->vcpu, msr, value);
    }
    return -1;
}

static int write_msr(struct xen_cpu *c, u32 msr, u64 value)
{
    u64 now;

    switch (msr) {
    case MSR_FS_BASE: case MSR_GS_BASE: case MSR_KERNEL_GS_BASE:
        return vitro_vcpu_wrmsr(c->vcpu, msr, value);
    case MSR_PAT: case MSR_EFER: case MSR_MISC_ENABLE: /* as they are, or not at all */
        return read_msr(c, msr, &now) || now != value ? -1 : 0;
    case 0x8b:
        return 0;
    }
    return -1;
}

static int write_cr(struct xen_cpu *c, unsigned cr, u64 value)
{
    switch (cr) {
    case 0: /* only TS can change */
        if ((value ^ c->cr0) & ~(u64)CR0_TS)
            return -1;
        c->cr0 = value;
        return vitro_vcpu_write_cr(c->vcpu, 0, value);
    case 2:
        c->info->cr2 = value;
        return 0;
    case 4:
        c->cr4 = (value & CR4_GUESTS) | CR4_ALWAYS;
        return vitro_vcpu_write_cr(c->vcpu, 4, c->cr4);
    }
    return -1;
}

static enum vitro_crossing on_privileged(void *opaque, unsigned vcpu, struct vitro_frame *f, struct vitro_privileged *p)
{
    struct xen_cpu *c = cpu_of(opaque, vcpu);
    int r = 0;

    switch (p->op) {
    case VITRO_RDMSR: r = read_msr(c, p->reg, &p->value); break;
    case VITRO_WRMSR: r = write_msr(c, p->reg, p->value); break;
    case VITRO_RDCR:
        p->value = p->reg == 0 ? c->cr0 : p->reg == 2 ? c->info->cr2 : p->reg == 3 ? f->cr3 : c->cr4;
        break;
    case VITRO_WRCR: r = write_cr(c, p->reg, p->value); break;
    case VITRO_RDDR: p->value = vitro_vcpu_read_dr(c->vcpu, p->reg); break;
    case VITRO_WRDR: {
        struct xen_call call = { .cpu = c, .frame = f, .a = { p->reg, p->value } };
        r = (int)xen_set_debugreg(c->xen, &call);
        break;
    }
    case VITRO_CLTS: r = write_cr(c, 0, c->cr0 & ~(u64)CR0_TS); break;
    case VITRO_XSETBV: r = p->reg ? -1 : vitro_vcpu_write_cr(c->vcpu, 9, p->value); break;
    case VITRO_INVLPG: vitro_vcpu_flush_pages(c->vcpu, 0, p->value, 1, true); break;
    case VITRO_CLI: case VITRO_STI: /* events have a mask of their own */
    case VITRO_WBINVD:
        break;
    case VITRO_IN: case VITRO_OUT: r = ports_access(c, f, p) ? 0 : -1; break;
    case VITRO_HLT: r = -1; break;
    }
    return r ? VITRO_REFUSE : VITRO_STAY;
}

void cpu_table(struct vitro_outer *o)
{
    o->trap = on_trap;
    o->soft_interrupt = on_soft_interrupt;
    o->syscall = xen_syscall;
    o->privileged = on_privileged;
    o->event = on_event;
    o->bad_frame = on_bad_frame;
    o->write_fault = xen_write_fault;
    o->flush = mmu_flush_asked;
}
