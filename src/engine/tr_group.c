/*
 * tr_group.c - which neighbouring accesses share one check.
 *
 * Accesses at constant distances from one base register, in a run of instructions that move it only by
 * constants (push, pop, add, sub, lea), almost always fall on one page. The first of them checks the
 * whole span; s2 then holds host - guest for that page until the last, and the others are plain moves.
 * When the shared check fails for good (the span crosses a page, MMIO, a fault), slow.c runs the
 * same instructions in an unshared translation (MODE_NOSHARE), where each has its own check.
 *
 * Inside a group nothing may use s2, call C, or write memory through anything else. A conditional branch may
 * stand inside, but behind it no write may join a group that had none: a check for writing sets
 * the page's Dirty bit, which must not happen for a store that is never reached.
 */
#include "engine/translate.h"

#define SPAN_MAX 64        /* general registers                                        */
#define SPAN_VECTOR_MAX 256 /* while every access is 16 bytes or more: copies           */
#define SPAN_STACK_MAX 128 /* rsp: prologues and epilogues                             */

struct access {
    bool any;
    s32 off; /* from the base register, as the instruction starts */
    u32 size;
    unsigned acc;
};

/* Does the operand of this instruction go [base + disp] with a 64-bit host register as base? */
bool tr_simple_base(const struct xl *x, const struct insn *in)
{
    return x->m64 && in->addrsize == 8 && !in->moffs && in->base < NR_GPR && !gpr_in_slot(in->base) &&
           in->index == REG_NONE && in->seg != SEG_FS && in->seg != SEG_GS;
}

static bool has_high_byte(const struct insn *in)
{
    if (in->enc != ENC_LEGACY || (in->prefixes & PFX_REX))
        return false;
    return (in->reg_kind == RK_GPR && in->reg_size == 1 && in->reg >= 4 && in->reg < 8) ||
           (!in->has_mem && in->rm_kind == RK_GPR && in->rm_size == 1 && in->rm >= 4 && in->rm < 8);
}

/* The guest registers that live in vcpu->regs: an instruction that names one needs scratch registers. */
#define SLOT_GPRS (1u << R8 | 1u << R9 | 1u << R10 | 1u << R11)

unsigned tr_slot_operands(const struct insn *in)
{
    u16 slots = 0;
    if (in->reg_kind == RK_GPR && in->has_modrm && gpr_in_slot(in->reg))
        slots |= (u16)(1u << in->reg);
    if (in->vvvv_kind == RK_GPR && gpr_in_slot(in->vvvv))
        slots |= (u16)(1u << in->vvvv);
    if (in->opreg != REG_NONE && gpr_in_slot(in->opreg))
        slots |= (u16)(1u << in->opreg);
    return (unsigned)__builtin_popcount(slots);
}

s32 tr_mem_off(const struct xl *x, unsigned i)
{
    const struct insn *in = &x->in[i];
    return (s32)in->disp + (in->base == BASE_RIP ? x->off[i] + in->len : 0);
}

/* Of flat segments any will do. */
static bool in_segment(const struct xl *x, const struct insn *in, const struct group *key)
{
    return in->seg != SEG_FS && in->seg != SEG_GS && (x->m64 || (in->seg != SEG_CS && (tr_flat32(x) || in->seg == key->seg)));
}

/*
 * The same for operands with an index, a base that lives in memory, or RIP: the address stays in s1 and s2, so
 * nothing may use either, and the registers must not move (the instruction that moves one may be the last).
 */
static bool classify_sum(const struct xl *x, unsigned i, const struct group *key, struct access *a, bool *last)
{
    const struct insn *in = &x->in[i];
    u16 moves = (key->base < NR_GPR ? 1u << key->base : 0) | (key->index != REG_NONE ? 1u << key->index : 0);
    if (in->how == HOW_BRANCH)
        return in->id == I_JCC;
    if (in->how != HOW_COPY || in->moffs)
        return false;
    if (in->has_mem && in->mem_size) {
        if (in->base != key->base || in->index != key->index || (in->index != REG_NONE && in->scale != key->scale) ||
            in->addrsize != tr_share_width(x) || in->vsib || in->mask || insn_vex_masked(in) || has_high_byte(in) || in->mem_size > SPAN_MAX ||
            !in_segment(x, in, key) || in->disp < -(1 << 30) || in->disp > 1 << 30)
            return false;
        *a = (struct access){ true, tr_mem_off(x, i), in->mem_size, in->mem_acc };
        *last = in->gpr_write & moves;
        return true;
    }
    return !((in->gpr_read | in->gpr_write) & SLOT_GPRS) && !(in->gpr_write & moves) &&
           !(in->id == I_LEA && (in->base == BASE_RIP || in->opsize == 2 || in->addrsize == 2));
}

/* The same outside 64-bit mode. Copies cannot use the register: EA wraps at 4 GiB or 64 KiB, so the address is a sum. */
static bool sum_base(const struct xl *x, const struct insn *in, const struct group *key)
{
    return in->addrsize == tr_share_width(x) && !in->moffs && in->base < NR_GPR && in->index == REG_NONE && in_segment(x, in, key);
}

/*
 * What instruction i does with memory off `base`. False: it cannot stand in a group.
 * *shift: how it moves the base; *last: nothing may follow it in the group.
 */
static bool classify(const struct xl *x, unsigned i, const struct group *key, struct access *a, s32 *shift, bool *last)
{
    unsigned base = key->base;
    const struct insn *in = &x->in[i];
    a->any = false;
    *shift = 0;
    *last = false;
    if (in->id == I_PAUSE) /* may call C */
        return false;
    if (key->sum && !key->moves)
        return classify_sum(x, i, key, a, last);
    const u8 wide = (u8)tr_share_width(x); /* of a stack slot, and of an operation that moves the whole base */
    switch (in->how) {
    case HOW_COPY:
        if (in->has_mem && in->mem_size) {
            if (!(x->m64 ? tr_simple_base(x, in) : sum_base(x, in, key)) || in->base != base || has_high_byte(in) || in->mem_size > SPAN_MAX ||
                in->mask || insn_vex_masked(in) || (wide > 2 && (in->disp < -4096 || in->disp > 4096)))
                return false;
            *a = (struct access){ true, (s32)in->disp, in->mem_size, in->mem_acc };
            return !(in->gpr_write >> base & 1) || ((*last = true), true);
        }
        if (in->id == I_LEA && in->index != REG_NONE && gpr_in_slot(in->index))
            return false; /* needs s2 */
        if (key->sum && in->id == I_LEA && (in->opsize == 2 || in->addrsize == 2))
            return false; /* needs s1 */
        if (!(in->gpr_write >> base & 1))
            return true;
        if (in->opsize != wide)
            return false;
        if (in->id == I_LEA && in->base == base && in->index == REG_NONE && in->addrsize == wide) {
            *shift = (s32)in->disp;
            return true;
        }
        if ((in->id == I_ADD || in->id == I_SUB) && in->map == MAP_ONE && (in->opcode == 0x81 || in->opcode == 0x83) &&
            in->imm >= -4096 && in->imm <= 4096) {
            *shift = in->id == I_ADD ? (s32)in->imm : -(s32)in->imm;
            return true;
        }
        return false;
    case HOW_STACK:
        if (base != RSP || in->opsize != wide || in->has_mem)
            return false;
        if (in->id == I_PUSH) {
            *a = (struct access){ true, -wide, wide, ACC_W };
            *shift = -wide;
            return true;
        }
        if (in->id == I_POP) {
            *a = (struct access){ true, 0, wide, ACC_R };
            *shift = wide;
            *last = in->gpr_write >> RSP & 1 && (in->opreg == RSP || (in->opreg == REG_NONE && in->rm == RSP));
            return true;
        }
        return false;
    case HOW_BRANCH:
        if (in->id == I_JCC)
            return true;
        *last = true;
        if (base != RSP || in->opsize != wide || x->seg != (wide == 2))
            return false;
        if (x->seg && in->id == I_CALL && x->page_eip + (u32)xl_target(x, in, x->off[i]) > x->cs_limit) /* never pushes */
            return false;
        if (in->id == I_CALL || (x->m64 && in->id == I_CALL_IND && !in->has_mem)) {
            *a = (struct access){ true, -wide, wide, ACC_W };
            return true;
        }
        if (in->id == I_RET) {
            *a = (struct access){ true, 0, wide, ACC_R };
            return true;
        }
        return false;
    default:
        return false;
    }
}

/*
 * tr_plan_group - the group that starts with the access of instruction x->cur off these registers. True if at
 * least two accesses share; then x->grp is set, from x->cur to x->grp.last.
 */
bool tr_plan_group(struct xl *x, unsigned base, unsigned index, unsigned scale)
{
    struct group *g = &x->grp;
    const struct insn *first = &x->in[x->cur];
    if (x->noshare || !tr_share_width(x) || (x->mode & MODE_AC))
        return false;
    struct group key = { .base = (u8)base, .index = (u8)index, .scale = (u8)scale, .seg = first->has_mem ? first->seg : SEG_SS,
                         .sum = !x->m64 || index != REG_NONE || base >= NR_GPR || gpr_in_slot(base),
                         .moves = !x->m64 && index == REG_NONE && base < NR_GPR };
    s32 moved = 0, lo = 0, hi = 0, max = base == RSP && !(x->mode & MODE_EXTENT) ? SPAN_STACK_MAX : SPAN_MAX;
    unsigned acc = 0, n = 0, end = x->cur;
    bool branched = false, vectors = true;
    for (unsigned i = x->cur; i < x->nr; i++) {
        struct access a;
        s32 shift;
        bool last;
        if (!classify(x, i, &key, &a, &shift, &last))
            break;
        if (a.any) {
            if (branched && (a.acc & ~acc))
                break;
            s64 l = (s64)moved + a.off, h = l + (s64)a.size;
            s32 limit = a.size >= 16 && vectors ? SPAN_VECTOR_MAX : max;
            if (n && (MAX(hi, h) - MIN(lo, l) > limit))
                break;
            vectors &= a.size >= 16;
            lo = (s32)(n ? MIN(lo, l) : l);
            hi = (s32)(n ? MAX(hi, h) : h);
            acc |= a.acc;
            n++;
            end = i;
        }
        if (x->in[i].how == HOW_BRANCH)
            branched = true;
        moved += shift;
        if (last || moved < -4096 || moved > 4096)
            break;
    }
    if (n < 2)
        return false;
    *g = (struct group){ .active = true, .sum = key.sum, .moves = key.moves, .first = x->cur, .base = key.base, .index = key.index, .scale = key.scale, .seg = key.seg, .last = end, .lo = lo, .size = (u16)(hi - lo), .acc = (u8)acc,
                         .nr = (u8)(end - x->cur + 1) };
    return true;
}

s32 tr_group_moved(const struct xl *x)
{
    s32 moved = 0;
    for (unsigned i = x->grp.first; x->grp.moves && i < x->cur; i++) {
        struct access a;
        s32 shift;
        bool last;
        classify(x, i, &x->grp, &a, &shift, &last);
        moved += shift;
    }
    return moved;
}
