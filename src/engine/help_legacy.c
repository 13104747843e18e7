/*
 * help_legacy.c - what 64-bit mode dropped (decimal adjust, BOUND, PUSHA/POPA, SALC), XLAT, and ENTER.
 * Source: Intel SDM vol. 2. Flags that the manual leaves undefined come out as zero, except OF of DAA and DAS, which
 * is left alone.
 */
#include "engine/help.h"

#define SYS(id) enum xret sys_##id(struct vcpu *v, const struct insn *in)

static u8 al(const struct vcpu *v) { return (u8)v->regs[RAX]; }
static void set_al(struct vcpu *v, unsigned x) { v->regs[RAX] = (v->regs[RAX] & ~0xffull) | (u8)x; }
static void set_ax(struct vcpu *v, unsigned x) { v->regs[RAX] = (v->regs[RAX] & ~0xffffull) | (u16)x; }
static bool flag(const struct vcpu *v, u32 f) { return v->fl >> 8 & f; }

/* SF, ZF and PF of a byte, with the given others; OF set from `of`. */
static void set_flags(struct vcpu *v, u8 result, u32 others, bool of)
{
    u32 f = others | 2 | (result & EFL_SF) | (result ? 0 : EFL_ZF) | (__builtin_parity(result) ? 0 : EFL_PF);
    v->fl = (u16)(f << 8 | of);
}

/* -- Decimal and ASCII adjust ------------------------------------------------------------------------------- */

SYS(daa)
{
    u8 old = al(v), x = old;
    bool cf = flag(v, EFL_CF), af = flag(v, EFL_AF), carry = false;
    (void)in;
    if ((old & 15) > 9 || af) {
        carry = cf || x > 0xf9;
        x += 6;
        af = true;
    }
    if (old > 0x99 || cf) {
        x += 0x60;
        carry = true;
    }
    set_al(v, x);
    set_flags(v, x, (carry ? EFL_CF : 0) | (af ? EFL_AF : 0), v->fl & 1);
    return X_OK;
}

SYS(das)
{
    u8 old = al(v), x = old;
    bool cf = flag(v, EFL_CF), af = flag(v, EFL_AF), carry = false;
    (void)in;
    if ((old & 15) > 9 || af) {
        carry = cf || x < 6;
        x -= 6;
        af = true;
    }
    if (old > 0x99 || cf) {
        x -= 0x60;
        carry = true;
    }
    set_al(v, x);
    set_flags(v, x, (carry ? EFL_CF : 0) | (af ? EFL_AF : 0), v->fl & 1);
    return X_OK;
}

static enum xret ascii_adjust(struct vcpu *v, int step)
{
    u16 ax = (u16)v->regs[RAX];
    bool adjust = (ax & 15) > 9 || flag(v, EFL_AF);
    if (adjust)
        ax = (u16)(ax + step);
    ax &= 0xff0f;
    set_ax(v, ax);
    set_flags(v, (u8)ax, adjust ? EFL_CF | EFL_AF : 0, false);
    return X_OK;
}
SYS(aaa) { (void)in; return ascii_adjust(v, 0x106); }
SYS(aas) { (void)in; return ascii_adjust(v, -0x106); }

SYS(aam)
{
    u8 base = (u8)in->imm, x = al(v);
    if (!base)
        return raise_fault(v, VEC_DE);
    set_ax(v, (unsigned)(x / base) << 8 | x % base);
    set_flags(v, x % base, 0, false);
    return X_OK;
}

SYS(aad)
{
    u16 ax = (u16)v->regs[RAX];
    u8 x = (u8)((ax & 0xff) + (ax >> 8) * (u8)in->imm);
    set_ax(v, x);
    set_flags(v, x, 0, false);
    return X_OK;
}

SYS(salc)
{
    (void)in;
    set_al(v, flag(v, EFL_CF) ? 0xff : 0);
    return X_OK;
}

/* -- Memory ------------------------------------------------------------------------------------------------------ */

static u64 narrow(u64 x, unsigned size)
{
    return size == 8 ? x : size == 4 ? (u32)x : (u16)x;
}

SYS(xlat)
{
    gva_t off = narrow(v->regs[RBX] + al(v), in->addrsize);
    gla_t la;
    u8 x;
    if (seg_linear(v, in->seg_override ? in->seg : SEG_DS, off, 1, ACC_R, &la) != X_OK ||
        mem_read(v, la, &x, 1, ACC_R | vcpu_acc(v)) != X_OK)
        return X_FAULT;
    set_al(v, x);
    return X_OK;
}

SYS(bound)
{
    s32 low, high, x;
    gla_t la;
    unsigned size = in->opsize;
    s16 b16[2];
    s32 b32[2];
    if (insn_linear(v, in, size * 2, ACC_R, &la) != X_OK)
        return X_FAULT;
    if (size == 2) {
        if (mem_read(v, la, b16, 4, ACC_R | vcpu_acc(v)) != X_OK)
            return X_FAULT;
        low = b16[0], high = b16[1], x = (s16)v->regs[in->reg];
    } else {
        if (mem_read(v, la, b32, 8, ACC_R | vcpu_acc(v)) != X_OK)
            return X_FAULT;
        low = b32[0], high = b32[1], x = (s32)v->regs[in->reg];
    }
    return x < low || x > high ? raise_fault(v, VEC_BR) : X_OK;
}

/* -- Stack ----------------------------------------------------------------------------------------------------- */

static unsigned stack_size(const struct vcpu *v)
{
    return vcpu_code64(v) ? 8 : v->seg[SEG_SS].attr & SEG_DB ? 4 : 2;
}

static void set_stack_reg(struct vcpu *v, unsigned reg, u64 x)
{
    unsigned size = stack_size(v);
    v->regs[reg] = size == 2 ? (v->regs[reg] & ~0xffffull) | (u16)x : narrow(x, size);
}

static enum xret stack_read(struct vcpu *v, u64 sp, unsigned size, u64 *val)
{
    gla_t la;
    *val = 0;
    if (seg_linear(v, SEG_SS, narrow(sp, stack_size(v)), size, ACC_R, &la) != X_OK)
        return X_FAULT;
    return mem_read(v, la, val, size, ACC_R | vcpu_acc(v));
}

static enum xret stack_write(struct vcpu *v, u64 sp, unsigned size, u64 val)
{
    gla_t la;
    if (seg_linear(v, SEG_SS, narrow(sp, stack_size(v)), size, ACC_W, &la) != X_OK)
        return X_FAULT;
    return mem_write(v, la, &val, size, ACC_W | vcpu_acc(v));
}

/* SP moves only when all eight are stored; what a fault leaves below SP is no state. */
SYS(pusha)
{
    u64 sp = v->regs[RSP];
    for (unsigned reg = RAX; reg <= RDI; reg++) { /* AX CX DX BX SP BP SI DI, SP as it was */
        sp -= in->opsize;
        if (stack_write(v, sp, in->opsize, v->regs[reg]) != X_OK)
            return X_FAULT;
    }
    set_stack_reg(v, RSP, sp);
    return X_OK;
}

SYS(popa)
{
    u64 sp = v->regs[RSP], val[8];
    for (int reg = RDI; reg >= RAX; reg--, sp += in->opsize)
        if (stack_read(v, sp, in->opsize, &val[reg]) != X_OK)
            return X_FAULT;
    for (unsigned reg = RAX; reg <= RDI; reg++)
        if (reg != RSP)
            gpr_write(v, reg, in->opsize, true, val[reg]);
    set_stack_reg(v, RSP, sp);
    return X_OK;
}

SYS(enter)
{
    unsigned size = in->opsize, level = (in->imm >> 16) & 31;
    u16 alloc = (u16)in->imm;
    u64 sp = v->regs[RSP] - size, bp = v->regs[RBP], val;
    if (stack_write(v, sp, size, bp) != X_OK)
        return X_FAULT;
    /* The new frame pointer: of a 16-bit stack the upper half of ESP comes along. */
    u64 frame = stack_size(v) == 2 ? (v->regs[RSP] & ~0xffffull) | (sp & 0xffff) : narrow(sp, stack_size(v));
    for (unsigned i = 1; i < level; i++) {
        bp -= size;
        sp -= size;
        if (stack_read(v, bp, size, &val) != X_OK || stack_write(v, sp, size, val) != X_OK)
            return X_FAULT;
    }
    if (level) {
        sp -= size;
        if (stack_write(v, sp, size, frame) != X_OK)
            return X_FAULT;
    }
    sp -= alloc;
    /* The manual asks for a write check at the final SP, without a write. */
    gla_t la;
    if (seg_linear(v, SEG_SS, narrow(sp, stack_size(v)), size, ACC_W, &la) != X_OK ||
        mem_probe(v, la, size, ACC_W | vcpu_acc(v)) != X_OK)
        return X_FAULT;
    gpr_write(v, RBP, size, true, frame);
    set_stack_reg(v, RSP, sp);
    return X_OK;
}
