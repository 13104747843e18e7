/*
 * exc.c - from an event to the first instruction of its handler: IDT, gates, stacks, #DF.
 * Source: Intel SDM vol. 3 §6 (6.10-6.15), INT n in vol. 2.
 *
 * Each delivery is two-phase: everything that can fault (gate, descriptor, TSS, pushes) comes first,
 * then the state changes, which cannot. A fault on the way leaves the guest as it was, but for CR2
 * and DR6, which belong to the event and are written when it is recognised.
 *
 * Deviations: the error code pushed for #DF is 0 and RIP is that of the first fault. A stack that would
 * wrap in the middle of the frame takes #SS. Not modelled: FRED, shadow stacks.
 */
#include "engine/seg.h"

/* What is being delivered. */
struct event {
    u8 vector;
    bool soft;      /* INT n, INT3, INTO: the gate's DPL is checked          */
    bool has_error;
    bool set_rf;    /* the pushed image has RF: a fault, to be restarted      */
    u32 ext;        /* EXT bit of error codes raised on the way              */
    u32 error;
    u64 rip;        /* pushed: an offset in CS                               */
};

static inline u32 idt_error(const struct event *e) { return e->vector * 8u + 2u + e->ext; }

static inline u32 pushed_flags(const struct vcpu *v, const struct event *e)
{
    return vcpu_eflags(v) | (e->set_rf ? EFL_RF : 0);
}

/* leave_old_context - what every delivery does last. `masks`: an interrupt gate, IF is cleared. */
static inline void leave_old_context(struct vcpu *v, u32 cleared, bool masks)
{
    bool same = !vcpu_protected(v) && !(v->eflags & (EFL_TF | EFL_AC));

    v->eflags &= ~(cleared | (masks ? EFL_IF : 0));
    v->int_shadow = 0;
    v->halted = 0;
    if (same)
        vcpu_cs_changed(v);
    else
        vcpu_mode_changed(v);
}

/* -- Real mode: the interrupt vector table -------------------------------------------------------- */

static enum xret deliver_real(struct vcpu *v, const struct event *e)
{
    struct { u16 ip, cs; } entry;
    u64 frame[3] = { e->rip, v->seg[SEG_CS].sel, pushed_flags(v, e) & 0xffff }, sp = v->regs[RSP];
    enum xret r;

    if (e->vector * 4u + 3 > v->idtr.limit)
        return raise_error(v, VEC_GP, idt_error(e));
    r = mem_read(v, (u32)(v->idtr.base + e->vector * 4u), &entry, 4, ACC_R | ACC_SYS);
    if (r == X_OK)
        r = stack_push(v, &v->seg[SEG_SS], stack_mask(v), 0, 0, frame, 3, 2, &sp);
    if (r != X_OK)
        return r;
    v->regs[RSP] = sp;
    seg_load_real(v, SEG_CS, entry.cs);
    vcpu_set_ip(v, entry.ip);
    leave_old_context(v, EFL_TF | EFL_RF | EFL_AC, true);
    return X_OK;
}

/* -- Protected modes: gates --------------------------------------------------------------------------- */

struct gate {
    u64 rip;
    struct seg cs;      /* filled, with RPL = new CPL */
    unsigned type, ist;
    unsigned cpl;       /* of the handler             */
};

/* gate_open - read and check the IDT gate and its code segment. */
static enum xret gate_open(struct vcpu *v, const struct event *e, struct gate *g)
{
    bool lma = vcpu_long_mode(v);
    unsigned size = lma ? 16 : 8;
    u64 raw[2] = { 0, 0 }, d;
    gla_t la = v->idtr.base + e->vector * size, addr;
    enum xret r;

    if (e->vector * size + size - 1 > v->idtr.limit)
        return raise_error(v, VEC_GP, idt_error(e));
    r = mem_read(v, lma ? la : (u32)la, raw, size, ACC_R | ACC_SYS);
    if (r != X_OK)
        return r;
    g->type = (raw[0] >> 40) & 0x1f;
    g->ist = lma ? (raw[0] >> 32) & 7 : 0;
    g->rip = (raw[0] & 0xffff) | ((raw[0] >> 32) & 0xffff0000) | raw[1] << 32;

    bool wide = g->type == SYS_INTR || g->type == SYS_TRAP;
    bool narrow = !lma && (g->type == SYS_INTR16 || g->type == SYS_TRAP16);

    if (!wide && !narrow && (lma || g->type != SYS_TASK_GATE))
        return raise_error(v, VEC_GP, idt_error(e));
    if (e->soft && ((raw[0] >> 45) & 3) < v->cpl)
        return raise_error(v, VEC_GP, idt_error(e));
    if (!(raw[0] >> 47 & 1))
        return raise_error(v, VEC_NP, idt_error(e));
    g->cs.sel = (u16)(raw[0] >> 16);
    if (g->type == SYS_TASK_GATE)
        return X_OK;
    if (narrow)
        g->rip &= 0xffff;

    u16 sel = g->cs.sel;

    if (sel_is_null(sel))
        return raise_error(v, VEC_GP, e->ext);
    r = desc_read(v, sel, VEC_GP, e->ext, &d, &addr);
    if (r != X_OK)
        return r;

    u32 attr = desc_attr(d);
    unsigned dpl = attr_dpl(attr);

    if (!attr_is_code(attr) || dpl > v->cpl || (lma && (attr & (SEG_L | SEG_DB)) != SEG_L))
        return raise_error(v, VEC_GP, sel_error(sel, e->ext));
    if (vcpu_v86(v) && (dpl || attr_is_conforming(attr)))
        return raise_error(v, VEC_GP, sel_error(sel, e->ext));
    if (!(attr & SEG_P))
        return raise_error(v, VEC_NP, sel_error(sel, e->ext));
    g->cpl = attr_is_conforming(attr) ? v->cpl : dpl;
    r = desc_set_bits(v, addr, &d, SEG_A);
    if (r != X_OK)
        return r;
    seg_fill(v, &g->cs, (u16)((sel & 0xfffc) | g->cpl), d);
    if (lma ? !is_canonical(g->rip) : g->rip > g->cs.limit)
        return raise_error(v, VEC_GP, e->ext);
    return X_OK;
}

static inline bool gate_masks(const struct gate *g) { return !(g->type & 1); }

/* -- Long mode (§6.14) ---------------------------------------------------------------------------------- */

static enum xret deliver_long(struct vcpu *v, const struct event *e)
{
    u64 frame[6] = { e->error, e->rip, v->seg[SEG_CS].sel, pushed_flags(v, e), v->regs[RSP], v->seg[SEG_SS].sel };
    const u64 *first = e->has_error ? frame : frame + 1;
    u64 rsp = v->regs[RSP];
    struct gate g;
    enum xret r = gate_open(v, e, &g);

    if (r != X_OK)
        return r;
    if (g.ist)
        r = tss_stack64(v, g.ist + 3, e->ext, &rsp);
    else if (g.cpl < v->cpl)
        r = tss_stack64(v, g.cpl, e->ext, &rsp);
    if (r != X_OK)
        return r;
    rsp &= ~15ull;
    r = stack_push(v, NULL, 0, g.cpl, e->ext, first, e->has_error ? 6 : 5, 8, &rsp);
    if (r != X_OK)
        return r;
    if (g.cpl != v->cpl) {
        v->seg[SEG_SS] = seg_null_stack(g.cpl);
        v->cpl = (u8)g.cpl;
    }
    v->seg[SEG_CS] = g.cs;
    v->regs[RSP] = rsp;
    v->rip = g.rip;
    leave_old_context(v, EFL_TF | EFL_NT | EFL_RF | EFL_VM, gate_masks(&g));
    return X_OK;
}

/* -- Legacy protected and V86 mode (§6.12, §20.3) --------------------------------------------------------- */

static enum xret deliver_task(struct vcpu *v, const struct event *e, u16 sel)
{
    bool made;
    enum xret r = task_switch(v, &(struct task_switch){ .how = TASK_EVENT, .sel = sel, .eip = (u32)e->rip, .set_rf = e->set_rf,
                                                        .has_error = e->has_error, .error = e->error, .ext = e->ext },
                              &made);

    if (r == X_FAULT && made) /* the event has been delivered; what comes now is the new task's */
        r = exc_deliver(v);
    return r == X_JUMP ? X_OK : r;
}

static enum xret deliver_legacy(struct vcpu *v, const struct event *e)
{
    u64 frame[10], sp = v->regs[RSP], mask = stack_mask(v);
    struct seg ss = v->seg[SEG_SS];
    bool v86 = vcpu_v86(v), outer;
    u32 err = e->ext;
    unsigned n = 0;
    struct gate g;
    enum xret r = gate_open(v, e, &g);

    if (r != X_OK)
        return r;
    if (g.type == SYS_TASK_GATE)
        return deliver_task(v, e, g.cs.sel);
    outer = g.cpl < v->cpl;
    if (outer) {
        r = tss_stack32(v, g.cpl, e->ext, &ss, &sp);
        if (r != X_OK)
            return r;
        mask = ss.attr & SEG_DB ? 0xffffffff : 0xffff;
        err = sel_error(ss.sel, e->ext);
    }
    if (e->has_error)
        frame[n++] = e->error;
    frame[n++] = e->rip;
    frame[n++] = v->seg[SEG_CS].sel;
    frame[n++] = pushed_flags(v, e);
    if (outer) {
        frame[n++] = v->regs[RSP];
        frame[n++] = v->seg[SEG_SS].sel;
    }
    if (v86) {
        frame[n++] = v->seg[SEG_ES].sel;
        frame[n++] = v->seg[SEG_DS].sel;
        frame[n++] = v->seg[SEG_FS].sel;
        frame[n++] = v->seg[SEG_GS].sel;
    }
    r = stack_push(v, &ss, mask, g.cpl, err, frame, n, g.type & 8 ? 4 : 2, &sp);
    if (r != X_OK)
        return r;
    if (v86)
        v->seg[SEG_ES] = v->seg[SEG_DS] = v->seg[SEG_FS] = v->seg[SEG_GS] = (struct seg){ .attr = SEG_UNUSABLE };
    v->seg[SEG_SS] = ss;
    v->seg[SEG_CS] = g.cs;
    v->cpl = (u8)g.cpl;
    v->regs[RSP] = sp;
    vcpu_set_ip(v, g.rip);
    leave_old_context(v, EFL_TF | EFL_NT | EFL_RF | EFL_VM, gate_masks(&g));
    return X_OK;
}

/* -- INT n in V86 mode with VME (§20.3, tables 20-1 and 20-2) ------------------------------------------------ */

enum xret exc_redirected(struct vcpu *v, unsigned vector, bool *redirect)
{
    const struct seg *tr = &v->seg[SEG_TR];
    u16 map;
    u8 byte;

    /* 32 bytes in front of the I/O permission bitmap. A clear bit: the 8086 program's handler. */
    if (!(tr->attr & 8) || tr->limit < 103)
        return raise_gp0(v);
    if (mem_read(v, (u32)(tr->base + 102), &map, 2, ACC_R | ACC_SYS) != X_OK)
        return X_FAULT;
    u32 at = map - 32u + vector / 8;
    if (map < 32 || at > tr->limit)
        return raise_gp0(v);
    if (mem_read(v, (u32)(tr->base + at), &byte, 1, ACC_R | ACC_SYS) != X_OK)
        return X_FAULT;
    *redirect = !(byte >> (vector & 7) & 1);
    return X_OK;
}

enum xret exc_redirect(struct vcpu *v, unsigned vector, u64 next_ip)
{
    struct { u16 ip, cs; } entry;
    bool virtual = vcpu_iopl(v) != 3;
    u64 flags = vcpu_eflags(v) & 0xffff, sp = v->regs[RSP];

    if (virtual)
        flags = (flags & ~(u64)EFL_IF) | EFL_IOPL | (v->eflags & EFL_VIF ? EFL_IF : 0);

    u64 frame[3] = { next_ip, v->seg[SEG_CS].sel, flags };
    enum xret r = mem_read(v, vector * 4, &entry, 4, ACC_R | ACC_USER);

    if (r == X_OK)
        r = stack_push(v, &v->seg[SEG_SS], 0xffff, 3, 0, frame, 3, 2, &sp);
    if (r != X_OK)
        return r;
    v->regs[RSP] = sp;
    seg_load_real(v, SEG_CS, entry.cs);
    vcpu_set_ip(v, entry.ip);
    leave_old_context(v, EFL_TF | EFL_RF | EFL_AC | (virtual ? EFL_VIF : EFL_IF), false);
    return X_JUMP;
}

static enum xret deliver(struct vcpu *v, const struct event *e)
{
    if (likely(vcpu_long_mode(v)))
        return deliver_long(v, e);
    return vcpu_protected(v) ? deliver_legacy(v, e) : deliver_real(v, e);
}

/* -- Escalation (§6.15, table 6-5) -------------------------------------------------------------------------- */

#define CONTRIBUTORY (BIT(VEC_DE) | BIT(VEC_TS) | BIT(VEC_NP) | BIT(VEC_SS) | BIT(VEC_GP) | BIT(21) /* #CP */)
/* Faults, whose frame has RF set so that an instruction breakpoint does not hit twice (vol. 3 §17.3.1.1).
 * Not #DB: a data breakpoint or step is a trap, and an instruction breakpoint is told apart by RF. */
#define NOT_FAULTS (BIT(VEC_DB) | BIT(VEC_NMI) | BIT(VEC_BP) | BIT(VEC_OF) | BIT(VEC_DF) | BIT(VEC_MC))

static inline bool is_contributory(unsigned vector) { return vector < 32 && (CONTRIBUTORY >> vector & 1); }

static bool makes_double_fault(unsigned first, unsigned second)
{
    if (first == VEC_PF)
        return second == VEC_PF || is_contributory(second);
    return is_contributory(first) && is_contributory(second);
}

enum xret exc_deliver(struct vcpu *v)
{
    if (unlikely(vcpu_has_outer(v)))
        return outer_trap(v);
    for (;;) {
        struct exc x = v->exc;
        struct event e = {
            .vector = x.vector,
            .has_error = x.has_error,
            .error = x.error,
            .set_rf = x.vector < 32 && !(NOT_FAULTS >> x.vector & 1),
            .ext = 1,
            .rip = vcpu_ip(v),
        };
        enum xret r;

        if (x.vector < 32)
            v->nr_exc[x.vector]++;
        if (x.vector == VEC_PF) {
            v->cr2 = x.cr2;
        } else if (x.vector == VEC_DB) {
            v->dr[6] |= x.dr6;
            v->dr[7] &= ~(1ull << 13); /* GD, so that the handler can use the debug registers */
        }
        r = deliver(v, &e);
        if (r == X_OK)
            return X_JUMP;
        if (r != X_FAULT)
            return r;
        if (x.vector == VEC_DF && (v->exc.vector == VEC_PF || is_contributory(v->exc.vector))) {
            v->exit = EXIT_SHUTDOWN;
            return X_EXIT;
        }
        if (makes_double_fault(x.vector, v->exc.vector)) {
            if (v->exc.vector == VEC_PF)
                v->cr2 = v->exc.cr2;
            raise_error(v, VEC_DF, 0);
        }
    }
}

enum xret intr_deliver(struct vcpu *v, unsigned vector)
{
    struct event e = { .vector = (u8)vector, .ext = 1, .rip = vcpu_ip(v) };
    enum xret r;

    v->nr_intr++;
    if (vector == VEC_NMI) {
        v->nr_exc[VEC_NMI]++;
        v->nmi_masked = 1; /* even if delivery faults: the NMI has been recognised */
    }
    r = deliver(v, &e);
    if (r == X_OK)
        return X_JUMP;
    return r == X_FAULT ? exc_deliver(v) : r; /* an interrupt is benign: its fault is simply next */
}

/* X_FAULT when the gate cannot be used: the fault belongs to the INT instruction, at v->rip. */
enum xret exc_software(struct vcpu *v, unsigned vector, u64 next_rip, bool is_int1)
{
    struct event e = { .vector = (u8)vector, .soft = !is_int1, .ext = is_int1, .rip = next_rip };
    if (unlikely(vcpu_has_outer(v)))
        return outer_soft_interrupt(v, vector, next_rip);
    enum xret r = deliver(v, &e);

    if (r != X_OK)
        return r;
    if (vector < 32)
        v->nr_exc[vector]++;
    return X_JUMP;
}
