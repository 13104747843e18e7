/*
 * far.c - control transfers that may change CS or CPL: iret, syscall, sysret, sysenter, sysexit, far
 * jmp/call/ret, call gates, int. Source: the instructions' pages in Intel SDM vol. 2, vol. 3 §5.8.
 *
 * Handlers check everything first and change state last, so a fault leaves nothing behind; the one
 * exception is iret, which unmasks NMIs even if it faults (SDM vol. 3 §6.7.1).
 *
 * Where vendors differ:
 *  - sysret with a non-canonical RCX: #GP(0) at CPL 0, before any change (Intel); AMD faults at CPL 3, on
 *    the fetch. The vendor that CPUID names decides.
 *  - syscall in compatibility mode goes to CSTAR (AMD); Intel raises #UD. The same.
 *  - sysenter and sysexit work in long mode (Intel); AMD raises #UD there. The same.
 *  - sysret loads SS whole (Intel); AMD leaves the cached attributes.
 * RF from iret is kept only while DR7 enables a breakpoint: nothing else can see it, and RF is due
 * to be cleared after the next instruction.
 * Task switches are in task.c. Not modelled: shadow stacks.
 */
#include "engine/cpuid.h"
#include "engine/seg.h"

static inline bool is_vendor(const struct vcpu *v, enum cpu_vendor vendor)
{
    return v->model && v->model->vendor == vendor;
}

/* A code segment about to be entered. */
struct target {
    struct seg cs;
    u64 rip;
};

static inline bool real_like(const struct vcpu *v) { return !vcpu_protected(v) || vcpu_v86(v); }

/* fits_code - is the target's RIP in the segment (canonical in 64-bit code)? */
static inline bool fits_code(const struct vcpu *v, const struct target *t)
{
    if ((t->cs.attr & SEG_L) && vcpu_long_mode(v))
        return is_canonical(t->rip);
    return t->rip <= t->cs.limit;
}

/* next_rip - the return address a call pushes */
static inline u64 next_rip(const struct vcpu *v, const struct insn *in)
{
    u64 next = vcpu_ip(v) + in->len;

    return vcpu_code64(v) ? next : (u32)next;
}

/* flat - a segment as the fast system-call instructions load it */
static inline struct seg flat(u16 sel, u32 attr) { return (struct seg){ .limit = 0xffffffff, .attr = attr, .sel = sel }; }

/* -- Returning: shared by iret and far ret ------------------------------------------------------------- */

/* return_cs - check and fetch the code segment a return pops. RPL becomes the CPL. */
static enum xret return_cs(struct vcpu *v, u16 sel, struct target *t)
{
    unsigned rpl = sel & 3;
    gla_t addr;
    u64 d;
    enum xret r;

    if (unlikely(sel_is_null(sel)))
        return raise_gp0(v);
    r = desc_read(v, sel, VEC_GP, 0, &d, &addr);
    if (unlikely(r != X_OK))
        return r;

    u32 attr = desc_attr(d);
    unsigned dpl = attr_dpl(attr);

    if (unlikely(!attr_is_code(attr) || rpl < vcpu_shown_cpl(v) || (attr & SEG_C ? dpl > rpl : dpl != rpl)))
        return raise_error(v, VEC_GP, sel_error(sel, 0));
    if (unlikely(!(attr & SEG_P)))
        return raise_error(v, VEC_NP, sel_error(sel, 0));
    if (unlikely((attr & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB) && vcpu_long_mode(v)))
        return raise_error(v, VEC_GP, sel_error(sel, 0));
    r = desc_set_bits(v, addr, &d, SEG_A);
    if (unlikely(r != X_OK))
        return r;
    seg_fill(v, &t->cs, sel, d);
    if (unlikely(!fits_code(v, t)))
        return raise_gp0(v);
    return X_OK;
}

/* return_ss - the same for the stack segment; `cpl` is the new one. */
static enum xret return_ss(struct vcpu *v, u16 sel, const struct target *t, struct seg *ss)
{
    unsigned cpl = t->cs.sel & 3;
    gla_t addr;
    u64 d;
    enum xret r;

    if (sel_is_null(sel)) {
        if (!vcpu_long_mode(v) || !(t->cs.attr & SEG_L) || cpl == 3 || (sel & 3) != cpl)
            return raise_gp0(v);
        *ss = seg_null_stack(cpl);
        return X_OK;
    }
    r = desc_read(v, sel, VEC_GP, 0, &d, &addr);
    if (unlikely(r != X_OK))
        return r;

    u32 attr = desc_attr(d);

    if (unlikely((sel & 3) != cpl || attr_dpl(attr) != cpl || !attr_is_writable(attr)))
        return raise_error(v, VEC_GP, sel_error(sel, 0));
    if (unlikely(!(attr & SEG_P)))
        return raise_error(v, VEC_SS, sel_error(sel, 0));
    r = desc_set_bits(v, addr, &d, SEG_A);
    if (likely(r == X_OK))
        seg_fill(v, ss, sel, d);
    return r;
}

/* sp_for - the popped stack pointer as the new stack segment's size takes it */
static inline u64 sp_for(const struct vcpu *v, const struct target *t, const struct seg *ss, u64 sp)
{
    if (vcpu_long_mode(v) && (t->cs.attr & SEG_L))
        return sp;
    return stack_merge(v->regs[RSP], sp, ss->attr & SEG_DB ? 0xffffffff : 0xffff);
}

static inline void enter_outer(struct vcpu *v, const struct target *t, const struct seg *ss)
{
    unsigned cpl = t->cs.sel & 3;

    if (cpl != vcpu_shown_cpl(v)) {
        seg_drop_inner(v, cpl);
        v->cpl = (u8)cpl;
    }
    v->seg[SEG_CS] = t->cs;
    v->seg[SEG_SS] = *ss;
    vcpu_set_ip(v, t->rip);
}

/* -- IRET -------------------------------------------------------------------------------------------------- */

/* iret_flags - the bits this privilege and operand size may change, taken from the image. */
static inline void iret_flags(struct vcpu *v, u32 image, unsigned size)
{
    u32 may = EFL_ARITH | EFL_TF | EFL_DF | EFL_NT;

    if (size > 2)
        may |= EFL_RF | EFL_AC | EFL_ID;
    if (v->cpl <= vcpu_iopl(v))
        may |= EFL_IF;
    if (v->cpl == 0)
        may |= EFL_IOPL | (size > 2 ? EFL_VIF | EFL_VIP : 0);
    if (!(v->dr[7] & 0xff))
        image &= ~EFL_RF;
    vcpu_set_eflags(v, (image & may) | (vcpu_eflags(v) & ~may));
}

/* Real and V86 mode: no checks but the limit. In V86, IOPL does not change; IF of the image is VIF if IOPL is below 3. */
static enum xret iret_real(struct vcpu *v, unsigned size)
{
    bool virtual = vcpu_v86(v) && vcpu_iopl(v) != 3;
    u32 may = EFL_ARITH | EFL_TF | EFL_DF | EFL_NT | (virtual ? EFL_VIF : EFL_IF) | (vcpu_v86(v) ? 0 : EFL_IOPL);
    u64 f[3];
    enum xret r = stack_pop(v, 0, 3, size, f);

    if (r != X_OK)
        return r;
    if (f[0] > v->seg[SEG_CS].limit)
        return raise_gp0(v);
    if (virtual) {
        if ((f[2] & EFL_TF) || ((f[2] & EFL_IF) && (v->eflags & EFL_VIP)))
            return raise_gp0(v);
        f[2] |= f[2] & EFL_IF ? EFL_VIF : 0;
    }
    if (size > 2)
        may |= EFL_RF | EFL_AC | EFL_ID;
    v->regs[RSP] = stack_merge(v->regs[RSP], v->regs[RSP] + 3 * size, stack_mask(v));
    seg_load_real(v, SEG_CS, (u16)f[1]);
    vcpu_set_ip(v, f[0]);

    u32 old = vcpu_eflags(v), now = ((u32)f[2] & may) | (old & ~may);

    vcpu_set_eflags(v, now);
    if ((old | now) & (EFL_TF | EFL_AC))
        vcpu_mode_changed(v);
    else
        vcpu_cs_changed(v);
    return X_JUMP;
}

/* From ring 0 of 32-bit protected mode into V86 mode: nine dwords. */
static enum xret iret_to_v86(struct vcpu *v)
{
    static const u8 order[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };
    u64 f[9]; /* EIP CS EFLAGS ESP SS ES DS FS GS */
    enum xret r = stack_pop(v, 0, 9, 4, f);

    if (r != X_OK)
        return r;
    if (f[0] > 0xffff)
        return raise_gp0(v);
    vcpu_set_eflags(v, (u32)f[2] & (EFL_ARITH | EFL_TF | EFL_IF | EFL_DF | EFL_IOPL | EFL_NT | EFL_RF | EFL_VM |
                                    EFL_AC | EFL_VIF | EFL_VIP | EFL_ID));
    v->cpl = 3;
    seg_load_real(v, SEG_CS, (u16)f[1]);
    seg_load_real(v, SEG_SS, (u16)f[4]);
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        seg_load_real(v, order[i], (u16)f[5 + i]);
    v->regs[RSP] = f[3];
    vcpu_set_ip(v, f[0]);
    vcpu_mode_changed(v);
    return X_JUMP;
}

enum xret sys_iret(struct vcpu *v, const struct insn *in)
{
    unsigned size = in->opsize, n;
    struct target t;
    struct seg ss;
    u64 f[5]; /* RIP CS RFLAGS RSP SS */
    bool code64;
    enum xret r;

    v->nmi_masked = 0;
    if (unlikely(real_like(v))) {
        if (vcpu_v86(v) && vcpu_iopl(v) != 3 && (!(v->cr4 & CR4_VME) || size != 2))
            return raise_gp0(v);
        return iret_real(v, size);
    }
    if (unlikely(v->eflags & EFL_NT)) {
        if (vcpu_long_mode(v))
            return raise_gp0(v);
        return task_return(v, (u32)next_rip(v, in));
    }
    code64 = vcpu_code64(v);
    n = code64 ? 5 : 3;
    r = stack_pop(v, 0, n, size, f);
    if (unlikely(r != X_OK))
        return r;
    if (unlikely((f[2] & EFL_VM) && size == 4 && !v->cpl && !vcpu_long_mode(v)))
        return iret_to_v86(v);
    t.rip = f[0];
    r = return_cs(v, (u16)f[1], &t);
    if (unlikely(r != X_OK))
        return r;
    if (!code64 && (t.cs.sel & 3) > vcpu_shown_cpl(v)) {
        r = stack_pop(v, 3 * size, 2, size, f + 3);
        if (r != X_OK)
            return r;
        n = 5;
    }
    if (n == 5) {
        r = return_ss(v, (u16)f[4], &t, &ss);
        if (unlikely(r != X_OK))
            return r;
        v->regs[RSP] = sp_for(v, &t, &ss, f[3]);
    } else {
        ss = v->seg[SEG_SS];
        v->regs[RSP] = stack_merge(v->regs[RSP], v->regs[RSP] + 3 * size, stack_mask(v));
    }
    iret_flags(v, (u32)f[2], size);
    enter_outer(v, &t, &ss);
    vcpu_mode_changed(v);
    return X_JUMP;
}

/* -- SYSCALL, SYSRET, SYSENTER, SYSEXIT: flat segments, no descriptors read --------------------------------- */

enum xret sys_syscall(struct vcpu *v, const struct insn *in)
{
    u16 cs = (u16)(v->star >> 32) & 0xfffc;
    u32 flags = vcpu_eflags(v) & ~EFL_RF;

    if (unlikely(vcpu_has_outer(v)))
        return outer_syscall(v, next_rip(v, in));
    if (unlikely(!(v->efer & EFER_SCE) || !vcpu_long_mode(v)))
        return raise_ud(v);
    if (unlikely(!vcpu_code64(v) && is_vendor(v, CPU_VENDOR_INTEL)))
        return raise_ud(v);
    v->regs[RCX] = next_rip(v, in);
    v->regs[R11] = flags;
    v->rip = vcpu_code64(v) ? v->lstar : v->cstar;
    vcpu_set_eflags(v, flags & ~(u32)v->sfmask);
    v->seg[SEG_CS] = flat(cs, ATTR_CODE64);
    v->seg[SEG_SS] = flat((u16)(cs + 8), ATTR_STACK);
    v->cpl = 0;
    vcpu_mode_changed(v);
    return X_JUMP;
}

enum xret sys_sysret(struct vcpu *v, const struct insn *in)
{
    const u32 may = EFL_ARITH | EFL_TF | EFL_IF | EFL_DF | EFL_IOPL | EFL_NT | EFL_AC | EFL_VIF | EFL_VIP | EFL_ID;
    u16 base = (u16)(v->star >> 48);

    if (unlikely(!(v->efer & EFER_SCE) || !vcpu_code64(v)))
        return raise_ud(v);
    if (unlikely(v->cpl))
        return raise_gp0(v);
    if (in->opsize == 8) {
        if (unlikely(!is_canonical(v->regs[RCX]) && !is_vendor(v, CPU_VENDOR_AMD)))
            return raise_gp0(v);
        v->rip = v->regs[RCX];
        v->seg[SEG_CS] = flat((u16)(base + 16) | 3, ATTR_CODE64 | ATTR_DPL3);
    } else {
        v->rip = (u32)v->regs[RCX];
        v->seg[SEG_CS] = flat(base | 3, ATTR_CODE32 | ATTR_DPL3);
    }
    v->seg[SEG_SS] = flat((u16)(base + 8) | 3, ATTR_STACK | ATTR_DPL3);
    v->cpl = 3;
    vcpu_set_eflags(v, (u32)v->regs[R11] & may);
    vcpu_mode_changed(v);
    return X_JUMP;
}

enum xret sys_sysenter(struct vcpu *v, const struct insn *in)
{
    u16 cs = (u16)v->sysenter_cs & 0xfffc;
    bool lma = vcpu_long_mode(v);

    if (vcpu_has_outer(v))
        return raise_ud(v);
    if (lma && is_vendor(v, CPU_VENDOR_AMD))
        return raise_ud(v);
    if (!vcpu_protected(v) || !cs)
        return raise_gp0(v);
    v->eflags &= ~(EFL_VM | EFL_IF | EFL_RF);
    v->regs[RSP] = lma ? v->sysenter_esp : (u32)v->sysenter_esp;
    v->rip = lma ? v->sysenter_eip : (u32)v->sysenter_eip;
    v->seg[SEG_CS] = flat(cs, lma ? ATTR_CODE64 : ATTR_CODE32);
    v->seg[SEG_SS] = flat((u16)(cs + 8), ATTR_STACK);
    v->cpl = 0;
    vcpu_mode_changed(v);
    return X_JUMP;
}

enum xret sys_sysexit(struct vcpu *v, const struct insn *in)
{
    u16 base = (u16)v->sysenter_cs & 0xfffc, cs;
    bool wide = in->opsize == 8;

    if (vcpu_long_mode(v) && is_vendor(v, CPU_VENDOR_AMD))
        return raise_ud(v);
    if (!vcpu_protected(v) || v->cpl || !base)
        return raise_gp0(v);
    if (wide && (!is_canonical(v->regs[RDX]) || !is_canonical(v->regs[RCX])))
        return raise_gp0(v);
    cs = (u16)(base + (wide ? 32 : 16)) | 3;
    v->rip = wide ? v->regs[RDX] : (u32)v->regs[RDX];
    v->regs[RSP] = wide ? v->regs[RCX] : (u32)v->regs[RCX];
    v->seg[SEG_CS] = flat(cs, (wide ? ATTR_CODE64 : ATTR_CODE32) | ATTR_DPL3);
    v->seg[SEG_SS] = flat((u16)(cs + 8), ATTR_STACK | ATTR_DPL3);
    v->cpl = 3;
    vcpu_mode_changed(v);
    return X_JUMP;
}

/* -- Far jmp and call ------------------------------------------------------------------------------------------ */

/* far_pointer - selector and offset of a far jmp or call: immediate, or in memory. */
static enum xret far_pointer(struct vcpu *v, const struct insn *in, u16 *sel, u64 *off)
{
    _Alignas(8) u8 raw[16];
    unsigned size = in->opsize;
    gla_t la;
    enum xret r;

    if (!in->has_mem) {
        *sel = (u16)((u64)in->imm >> 32);
        *off = (u32)in->imm;
        if (size == 2)
            *off = (u16)*off;
        return X_OK;
    }
    r = insn_linear(v, in, size + 2, ACC_R, &la);
    if (r == X_OK)
        r = mem_read(v, la, raw, size + 2, ACC_R | vcpu_acc(v));
    if (r != X_OK)
        return r;
    *off = size == 8 ? *(const u64 *)raw : size == 4 ? *(const u32 *)raw : *(const u16 *)raw;
    *sel = (u16)(raw[size] | raw[size + 1] << 8);
    return X_OK;
}

/* push_return - CS:RIP of the next instruction on the current stack; *sp gets the new pointer. */
static enum xret push_return(struct vcpu *v, const struct insn *in, unsigned size, u64 *sp)
{
    u64 frame[2] = { next_rip(v, in), v->seg[SEG_CS].sel };

    *sp = v->regs[RSP];
    return stack_push(v, &v->seg[SEG_SS], vcpu_code64(v) ? 0 : stack_mask(v), v->cpl, 0, frame, 2, size, sp);
}

static enum xret far_real(struct vcpu *v, const struct insn *in, u16 sel, u64 off, bool call)
{
    u64 sp = v->regs[RSP];

    if (off > v->seg[SEG_CS].limit)
        return raise_gp0(v);
    if (call) {
        enum xret r = push_return(v, in, in->opsize, &sp);

        if (r != X_OK)
            return r;
    }
    v->regs[RSP] = sp;
    seg_load_real(v, SEG_CS, sel);
    vcpu_set_ip(v, off);
    vcpu_cs_changed(v);
    return X_JUMP;
}

/* far_same - to a code segment at the current level: directly, or through a gate that keeps the level. */
static enum xret far_same(struct vcpu *v, const struct insn *in, struct target *t, unsigned size, bool call)
{
    u64 sp = v->regs[RSP];

    if (!fits_code(v, t))
        return raise_gp0(v);
    if (call) {
        enum xret r = push_return(v, in, size, &sp);

        if (r != X_OK)
            return r;
    }
    v->regs[RSP] = sp;
    t->cs.sel = (u16)((t->cs.sel & 0xfffc) | v->cpl);
    v->seg[SEG_CS] = t->cs;
    vcpu_set_ip(v, t->rip);
    vcpu_mode_changed(v);
    return X_JUMP;
}

/* gate_inner - a call gate to a more privileged level: new stack, parameters copied, both pointers pushed. */
static enum xret gate_inner(struct vcpu *v, const struct insn *in, struct target *t, unsigned size,
                            unsigned params, unsigned cpl)
{
    u64 frame[4 + 31], sp, mask = 0;
    unsigned n = 0;
    struct seg ss = seg_null_stack(cpl);
    enum xret r;

    if (size == 8) {
        r = tss_stack64(v, cpl, 0, &sp);
        params = 0;
    } else {
        r = tss_stack32(v, cpl, 0, &ss, &sp);
        mask = ss.attr & SEG_DB ? 0xffffffff : 0xffff;
    }
    if (r != X_OK)
        return r;
    if (!fits_code(v, t))
        return raise_gp0(v);
    frame[n++] = next_rip(v, in);
    frame[n++] = v->seg[SEG_CS].sel;
    if (params) {
        r = stack_pop(v, 0, MIN(params, 9u), size, frame + n);
        for (unsigned done = 9; r == X_OK && done < params; done += 9)
            r = stack_pop(v, done * size, MIN(params - done, 9u), size, frame + n + done);
        if (r != X_OK)
            return r;
        n += params;
    }
    frame[n++] = v->regs[RSP];
    frame[n++] = v->seg[SEG_SS].sel;
    r = stack_push(v, &ss, mask, cpl, sel_error(ss.sel, 0), frame, n, size, &sp);
    if (r != X_OK)
        return r;
    t->cs.sel = (u16)((t->cs.sel & 0xfffc) | cpl);
    v->seg[SEG_CS] = t->cs;
    v->seg[SEG_SS] = ss;
    v->cpl = (u8)cpl;
    v->regs[RSP] = sp;
    vcpu_set_ip(v, t->rip);
    vcpu_mode_changed(v);
    return X_JUMP;
}

/* far_gate - jmp or call through a call gate whose descriptor is d, at addr. */
static enum xret far_gate(struct vcpu *v, const struct insn *in, u16 gate_sel, u64 d, bool call)
{
    unsigned type = desc_attr(d) & SEG_TYPE, dpl = attr_dpl(desc_attr(d));
    unsigned size = vcpu_long_mode(v) ? 8 : type == SYS_CALL ? 4 : 2;
    u16 sel = (u16)(d >> 16);
    struct target t;
    u64 cd, upper = 0;
    gla_t addr;
    enum xret r;

    if (MAX((unsigned)v->cpl, gate_sel & 3u) > dpl)
        return raise_error(v, VEC_GP, sel_error(gate_sel, 0));
    if (!(desc_attr(d) & SEG_P))
        return raise_error(v, VEC_NP, sel_error(gate_sel, 0));
    t.rip = (d & 0xffff) | (size == 2 ? 0 : (d >> 32) & 0xffff0000);
    if (size == 8) {
        /* The second half must be in the table too, and have a zero type. */
        r = desc_read(v, (u16)(gate_sel + 8), VEC_GP, 0, &upper, NULL);
        if (r == X_FAULT && v->exc.vector == VEC_GP)
            return raise_error(v, VEC_GP, sel_error(gate_sel, 0));
        if (r != X_OK)
            return r;
        if (upper >> 40 & 0x1f)
            return raise_error(v, VEC_GP, sel_error(gate_sel, 0));
        t.rip |= upper << 32;
    }
    if (sel_is_null(sel))
        return raise_gp0(v);
    r = desc_read(v, sel, VEC_GP, 0, &cd, &addr);
    if (r != X_OK)
        return r;

    u32 attr = desc_attr(cd);
    bool inner = call && attr_dpl(attr) < v->cpl && !attr_is_conforming(attr);

    if (!attr_is_code(attr) || attr_dpl(attr) > v->cpl ||
        (!call && !attr_is_conforming(attr) && attr_dpl(attr) != v->cpl) ||
        (size == 8 && (attr & (SEG_L | SEG_DB)) != SEG_L))
        return raise_error(v, VEC_GP, sel_error(sel, 0));
    if (!(attr & SEG_P))
        return raise_error(v, VEC_NP, sel_error(sel, 0));
    r = desc_set_bits(v, addr, &cd, SEG_A);
    if (r != X_OK)
        return r;
    seg_fill(v, &t.cs, sel, cd);
    if (inner)
        return gate_inner(v, in, &t, size, (d >> 32) & 31, attr_dpl(attr));
    return far_same(v, in, &t, size, call);
}

static enum xret far_transfer(struct vcpu *v, const struct insn *in, bool call)
{
    struct target t;
    gla_t addr;
    u16 sel;
    u64 d;
    enum xret r = far_pointer(v, in, &sel, &t.rip);

    if (r != X_OK)
        return r;
    if (real_like(v))
        return far_real(v, in, sel, t.rip, call);
    if (sel_is_null(sel))
        return raise_gp0(v);
    r = desc_read(v, sel, VEC_GP, 0, &d, &addr);
    if (r != X_OK)
        return r;

    u32 attr = desc_attr(d);
    bool lma = vcpu_long_mode(v);

    if (!(attr & SEG_S)) {
        unsigned type = attr & SEG_TYPE;

        if (type == SYS_CALL || (type == SYS_CALL16 && !lma))
            return far_gate(v, in, sel, d, call);
        if (!lma && type == SYS_TASK_GATE)
            return task_gate(v, sel, d, call ? TASK_CALL : TASK_JMP, (u32)next_rip(v, in));
        if (!lma && (type == SYS_TSS || type == SYS_TSS16)) {
            const struct task_switch t2 = { .how = call ? TASK_CALL : TASK_JMP, .sel = sel, .eip = (u32)next_rip(v, in) };
            bool made;

            if (MAX((unsigned)v->cpl, sel & 3u) > attr_dpl(attr))
                return raise_error(v, VEC_GP, sel_error(sel, 0));
            return task_switch(v, &t2, &made);
        }
        return raise_error(v, VEC_GP, sel_error(sel, 0));
    }
    if (!attr_is_code(attr) ||
        (attr & SEG_C ? attr_dpl(attr) > v->cpl : attr_dpl(attr) != v->cpl || (sel & 3) > v->cpl) ||
        (lma && (attr & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB)))
        return raise_error(v, VEC_GP, sel_error(sel, 0));
    if (!(attr & SEG_P))
        return raise_error(v, VEC_NP, sel_error(sel, 0));
    r = desc_set_bits(v, addr, &d, SEG_A);
    if (r != X_OK)
        return r;
    seg_fill(v, &t.cs, sel, d);
    return far_same(v, in, &t, in->opsize, call);
}

enum xret sys_jmp_far(struct vcpu *v, const struct insn *in) { return far_transfer(v, in, false); }
enum xret sys_call_far(struct vcpu *v, const struct insn *in) { return far_transfer(v, in, true); }

/* -- Far ret ---------------------------------------------------------------------------------------------------- */

enum xret sys_ret_far(struct vcpu *v, const struct insn *in)
{
    unsigned size = in->opsize, drop = in->imm_size ? (u16)in->imm : 0;
    u64 f[4], mask = stack_mask(v); /* RIP CS, RSP SS */
    struct target t;
    struct seg ss = v->seg[SEG_SS];
    enum xret r = stack_pop(v, 0, 2, size, f);

    if (r != X_OK)
        return r;
    if (real_like(v)) {
        if (f[0] > v->seg[SEG_CS].limit)
            return raise_gp0(v);
        seg_load_real(v, SEG_CS, (u16)f[1]);
        vcpu_set_ip(v, f[0]);
        v->regs[RSP] = stack_merge(v->regs[RSP], v->regs[RSP] + 2 * size + drop, mask);
        vcpu_cs_changed(v);
        return X_JUMP;
    }
    t.rip = f[0];
    r = return_cs(v, (u16)f[1], &t);
    if (r != X_OK)
        return r;
    if ((t.cs.sel & 3) > v->cpl) {
        r = stack_pop(v, 2 * size + drop, 2, size, f + 2);
        if (r == X_OK)
            r = return_ss(v, (u16)f[3], &t, &ss);
        if (r != X_OK)
            return r;
        /* The parameters are dropped from the outer stack as well. */
        v->regs[RSP] = sp_for(v, &t, &ss, f[2] + drop);
    } else {
        v->regs[RSP] = stack_merge(v->regs[RSP], v->regs[RSP] + 2 * size + drop, mask);
    }
    enter_outer(v, &t, &ss);
    vcpu_mode_changed(v);
    return X_JUMP;
}

/* -- Software interrupts ---------------------------------------------------------------------------------------- */

enum xret sys_int(struct vcpu *v, const struct insn *in)
{
    if (vcpu_v86(v)) {
        bool redirect = false;

        if ((v->cr4 & CR4_VME) && exc_redirected(v, (u8)in->imm, &redirect) != X_OK)
            return X_FAULT;
        if (redirect)
            return exc_redirect(v, (u8)in->imm, next_rip(v, in));
        if (vcpu_iopl(v) != 3)
            return raise_gp0(v);
    }
    return exc_software(v, (u8)in->imm, next_rip(v, in), false);
}

enum xret sys_int3(struct vcpu *v, const struct insn *in) { return exc_software(v, VEC_BP, next_rip(v, in), false); }
enum xret sys_int1(struct vcpu *v, const struct insn *in) { return exc_software(v, VEC_DB, next_rip(v, in), true); }

enum xret sys_into(struct vcpu *v, const struct insn *in)
{
    if (vcpu_code64(v))
        return raise_ud(v);
    if (!(vcpu_eflags(v) & EFL_OF))
        return X_OK;
    return exc_software(v, VEC_OF, next_rip(v, in), false);
}
