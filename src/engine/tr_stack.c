/*
 * tr_stack.c - HOW_STACK: push, pop, leave in line; the rarer ones (enter, pusha, pushf, popf) by helper.
 * Each guest register changes only after the last access of its instruction was checked.
 */
#include "engine/translate.h"

void e_mem(struct buf *b, u8 op, unsigned size, unsigned reg, const struct hostmem *m)
{
    if (size == 2)
        e8(b, 0x66);
    u8 r = rex(size == 8, reg, m->index == REG_NONE ? 0 : m->index, m->base);
    if (r != 0x40)
        e8(b, r);
    e8(b, op);
    if (m->index != REG_NONE)
        e_modrm_sib(b, reg, m->base, m->index, 1, m->disp);
    else
        e_modrm_disp(b, reg, m->base, m->disp);
}

void tr_add_sp(struct xl *x, s32 n)
{
    struct buf *b = &x->hot;
    n += x->lag;
    x->lag = 0;
    if (x->m64 || (x->mode & MODE_SS32)) {
        e_lea(b, x->m64, H_SP, H_SP, n);
    } else if (x->fstate == FLAGS_SAVED && n >= -128 && n < 128) { /* sp alone: add r15w, n; nobody looks at the flags */
        e8(b, 0x66); e8(b, 0x41); e8(b, 0x83); e8(b, 0xc0 | (H_SP & 7)); e8(b, (u8)n);
    } else { /* lea r15w, [r15 + n] */
        e8(b, 0x66);
        e_lea(b, false, H_SP, H_SP, n);
    }
}

/*
 * Where accesses go through windows, and so need no check that names registers, a row of pushes and pops moves RSP's host register
 * once, at its end. What it lacks until then is the lag: operands on the stack add it to their displacement, and the fault handler
 * to RSP. ADD and SUB whose flags nobody wants are part of such a row.
 */
#define LAG_MAX 512
static bool lags(const struct xl *x, unsigned i)
{
    const struct insn *in = &x->in[i];
    if (i >= x->nr)
        return false;
    if (in->how == HOW_STACK && !in->has_mem && in->opsize == 8 && (in->id == I_PUSH || in->id == I_POP)) {
        unsigned g = in->opreg != REG_NONE ? in->opreg : in->rm_kind == RK_GPR ? in->rm : RSP;
        return g != RSP && g < NR_GPR;
    }
    if ((in->id == I_ADD || in->id == I_SUB) && in->how == HOW_COPY && !in->has_mem && in->opsize == 8 && in->rm_kind == RK_GPR && in->rm == RSP &&
        in->map == MAP_ONE && (in->opcode == 0x81 || in->opcode == 0x83))
        return !x->live[i + 1] && in->imm % 8 == 0 && in->imm >= -LAG_MAX / 2 && in->imm <= LAG_MAX / 2;
    return false;
}
bool tr_lag(struct xl *x, s32 n)
{
    const struct insn *next = &x->in[x->cur + 1];
    if (!(x->mode & MODE_WINDOW) || !lags(x, x->cur))
        return false;
    bool more = lags(x, x->cur + 1) || (x->cur + 1 < x->nr && next->opsize == 8 && (next->id == I_RET || next->id == I_CALL));
    if (!more || x->lag + n <= -LAG_MAX || x->lag + n >= LAG_MAX)
        tr_add_sp(x, n);
    else
        x->lag += n;
    return true;
}

static void push_reg(struct xl *x, unsigned guest, unsigned size)
{
    struct guard g;
    tr_guard_stack(x, -(s32)size, size, ACC_W, &g);
    u32 op = hot_at(x);
    unsigned reg = host_gpr[guest];
    if (gpr_in_slot(guest)) {
        if (g.mem.base == H_S1) { /* lea s2, [s1 + s2] */
            e_lea_full(&x->hot, true, H_S2, H_S1, H_S2, 1, g.mem.disp);
            g.mem = (struct hostmem){ H_S2, REG_NONE, 0 };
        }
        e_load_vcpu(&x->hot, H_S1, REG_OFF(guest));
        reg = H_S1;
    }
    e_mem(&x->hot, 0x89, size, reg, &g.mem);
    if (!tr_lag(x, -(s32)size))
        tr_add_sp(x, -(s32)size);
    tr_guard_end(x, &g, op, true);
}

/* Push what is in vcpu->tmp[0]. */
static void push_tmp(struct xl *x, unsigned size)
{
    struct guard g;
    tr_held_none(x);
    tr_guard_stack(x, -(s32)size, size, ACC_W, &g);
    u32 op = hot_at(x);
    if (g.mem.base == H_S1) {
        e_lea_full(&x->hot, true, H_S2, H_S1, H_S2, 1, g.mem.disp);
        g.mem = (struct hostmem){ H_S2, REG_NONE, 0 };
    }
    e_load_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
    e_mem(&x->hot, 0x89, size, H_S1, &g.mem);
    tr_add_sp(x, -(s32)size);
    tr_guard_end(x, &g, op, true);
}

static void push_imm(struct xl *x, s64 imm, unsigned size)
{
    struct guard g;
    tr_guard_stack(x, -(s32)size, size, ACC_W, &g);
    u32 op = hot_at(x);
    e_mem(&x->hot, 0xc7, size, 0, &g.mem);
    if (size == 2)
        e16(&x->hot, (u16)imm);
    else
        e32(&x->hot, (u32)imm);
    tr_add_sp(x, -(s32)size);
    tr_guard_end(x, &g, op, true);
}

/* mov [tmp0], value of a memory operand */
static void load_tmp(struct xl *x, const struct insn *in, unsigned size)
{
    struct guard g;
    tr_guard(x, in, size, ACC_R, 0, false, &g);
    u32 op = hot_at(x);
    e_mem(&x->hot, 0x8b, size, H_S1, &g.mem);
    e_store_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
    tr_guard_end(x, &g, op, false);
}

static void pop_reg(struct xl *x, unsigned guest, unsigned size)
{
    struct guard g;
    tr_guard_stack(x, 0, size, ACC_R, &g);
    u32 op = hot_at(x);
    if (gpr_in_slot(guest)) {
        struct hostmem slot = { H_VCPU, REG_NONE, REG_OFF(guest) };
        e_mem(&x->hot, 0x8b, size, H_S1, &g.mem);
        e_mem(&x->hot, 0x89, size == 4 ? 8 : size, H_S1, &slot);
        if (!tr_lag(x, (s32)size))
            tr_add_sp(x, (s32)size);
    } else if (guest == RSP && size == 2 && (x->mode & MODE_WINDOW)) { /* nothing may have changed when the access faults */
        e_mem(&x->hot, 0x8b, size, H_S1, &g.mem);
        tr_add_sp(x, 2);
        e8(&x->hot, 0x66);
        e_rr32(&x->hot, 0x8b, H_SP, H_S1);
    } else if (guest == RSP) { /* the popped value wins over the increment */
        if (size == 2)
            tr_add_sp(x, 2);
        if (size == 2 && g.mem.base == H_SP)
            g.mem.disp -= 2;
        e_mem(&x->hot, 0x8b, size, H_SP, &g.mem);
    } else {
        e_mem(&x->hot, 0x8b, size, host_gpr[guest], &g.mem);
        if (!tr_lag(x, (s32)size))
            tr_add_sp(x, (s32)size);
    }
    tr_guard_end(x, &g, op, true);
}

static void pop_mem(struct xl *x, const struct insn *in, unsigned size)
{
    struct guard g;
    tr_guard_stack(x, 0, size, ACC_R, &g);
    u32 op = hot_at(x);
    e_mem(&x->hot, 0x8b, size, H_S1, &g.mem);
    e_store_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
    tr_guard_end(x, &g, op, false);
    /* The address uses RSP as it is after the pop (SDM vol. 2, POP). */
    tr_guard(x, in, size, ACC_W, in->base == RSP ? (s32)size : 0, true, &g);
    op = hot_at(x);
    e_lea_full(&x->hot, true, H_S2, g.mem.base, g.mem.index, 1, g.mem.disp);
    e_load_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
    struct hostmem m = { H_S2, REG_NONE, 0 };
    e_mem(&x->hot, 0x89, size, H_S1, &m);
    tr_add_sp(x, (s32)size);
    tr_guard_end(x, &g, op, true);
}

/* 32- and 64-bit stacks only. */
static void leave(struct xl *x, unsigned size)
{
    struct guard g;
    struct insn at_rbp = x->in[x->cur];
    at_rbp.base = RBP;
    at_rbp.index = REG_NONE;
    at_rbp.disp = 0;
    at_rbp.seg = SEG_SS;
    at_rbp.addrsize = x->m64 ? 8 : 4;
    at_rbp.moffs = false;
    if ((x->mode & MODE_WINDOW) && size == 8) { /* nothing may have changed when the access faults */
        tr_guard(x, &at_rbp, size, ACC_R, 0, false, &g);
        e_mem(&x->hot, 0x8b, size, H_S1, &g.mem);
        e_lea(&x->hot, true, H_SP, RBP, (s32)size);
        e_mov(&x->hot, RBP, H_S1);
        return;
    }
    tr_guard(x, &at_rbp, size, ACC_R, 0, true, &g);
    u32 op = hot_at(x);
    e_lea(&x->hot, x->m64, H_SP, RBP, (s32)size);
    e_mem(&x->hot, 0x8b, size, RBP, &g.mem);
    tr_guard_end(x, &g, op, true);
}

/* Virtual-8086 mode has rules of its own for PUSHF and POPF. */
static bool v86_like(const struct xl *x) { return (x->mode & MODE_REAL) && !(x->mode & MODE_CPL0); }

/* eflags without RF and VM, AH of fl, OF */
void tr_flags_image(struct xl *x)
{
    struct buf *b = &x->hot;
    xl_need_saved(x);
    /* movzx s1d, word [fl]; mov s2d, s1d; shr s1d, 8; shl s2d, 11; and s2d, OF; or s1d, s2d */
    e8(b, 0x45); e8(b, 0x0f); e8(b, 0xb7); e_modrm_disp(b, H_S1, H_VCPU, VOFF(fl));
    e_rr32(b, 0x8b, H_S2, H_S1);
    e8(b, 0x41); e8(b, 0xc1); e8(b, 0xe8 | (H_S1 & 7)); e8(b, 8);
    e8(b, 0x41); e8(b, 0xc1); e8(b, 0xe0 | (H_S2 & 7)); e8(b, 11);
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xe0 | (H_S2 & 7)); e32(b, EFL_OF);
    e_rr32(b, 0x0b, H_S1, H_S2);
    /* mov s2d, [eflags]; and s2d, ~(RF | VM); or s1d, s2d; or s1d, 2; mov [tmp0], s1 */
    e8(b, rex(0, H_S2, 0, H_VCPU)); e8(b, 0x8b); e_modrm_disp(b, H_S2, H_VCPU, VOFF(eflags));
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xe0 | (H_S2 & 7)); e32(b, ~(EFL_RF | EFL_VM));
    e_rr32(b, 0x0b, H_S1, H_S2);
    e8(b, 0x41); e8(b, 0x83); e8(b, 0xc8 | (H_S1 & 7)); e8(b, 2);
    xl_clobber(x);
}
static void pushf(struct xl *x, unsigned size)
{
    tr_flags_image(x);
    e_store_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
    push_tmp(x, size);
}

void tr_take_flags(struct xl *x, u32 may, u32 take, u32 slow)
{
    struct buf *b = &x->hot;
    /* mov s2d, [eflags]; xor s2d, s1d; test s2d, ~may; jne slow */
    e8(b, rex(0, H_S2, 0, H_VCPU)); e8(b, 0x8b); e_modrm_disp(b, H_S2, H_VCPU, VOFF(eflags));
    e_rr32(b, 0x33, H_S2, H_S1);
    e8(b, 0x41); e8(b, 0xf7); e8(b, 0xc0 | (H_S2 & 7)); e32(b, ~may);
    xl_bind(x, xl_jcc(x, SEC_HOT, 5), SEC_COLD, slow);
    /* fl: OF, then the low byte */
    e_rr32(b, 0x8b, H_S2, H_S1);
    e8(b, 0x41); e8(b, 0xc1); e8(b, 0xe8 | (H_S2 & 7)); e8(b, 11);                 /* shr s2d, 11 */
    e8(b, 0x41); e8(b, 0x83); e8(b, 0xe0 | (H_S2 & 7)); e8(b, 1);                  /* and s2d, 1 */
    e8(b, rex(0, H_S2, 0, H_VCPU)); e8(b, 0x88); e_modrm_disp(b, H_S2, H_VCPU, VOFF(fl));
    e_rr32(b, 0x8b, H_S2, H_S1);
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xe0 | (H_S2 & 7)); e32(b, 0xd5);              /* and s2d, d5 */
    e8(b, 0x41); e8(b, 0x83); e8(b, 0xc8 | (H_S2 & 7)); e8(b, 2);                  /* or s2d, 2 */
    e8(b, rex(0, H_S2, 0, H_VCPU)); e8(b, 0x88); e_modrm_disp(b, H_S2, H_VCPU, VOFF(fl) + 1);
    /* and s1d, take; and dword [eflags], ~take; or [eflags], s1d */
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xe0 | (H_S1 & 7)); e32(b, take);
    e8(b, 0x41); e8(b, 0x81); e_modrm_disp(b, 4, H_VCPU, VOFF(eflags)); e32(b, ~take);
    e8(b, rex(0, H_S1, 0, H_VCPU)); e8(b, 0x09); e_modrm_disp(b, H_S1, H_VCPU, VOFF(eflags));
    x->fstate = FLAGS_SAVED;
}
void tr_unmask(struct xl *x)
{
    struct buf *b = &x->hot, *c = &x->cold;
    e8(b, 0x41); e8(b, 0x83); e_modrm_disp(b, 7, H_VCPU, VOFF(intr_wait)); e8(b, 0);
    xl_bind(x, xl_jcc(x, SEC_HOT, 5), SEC_COLD, cold_at(x));
    e8(c, 0x41); e8(c, 0xf7); e_modrm_disp(c, 0, H_VCPU, VOFF(eflags)); e32(c, EFL_IF);
    struct fixup off = xl_jcc(x, SEC_COLD, 4);
    e8(c, 0xf0); e8(c, 0x41); e8(c, 0x83); e_modrm_disp(c, 1, H_VCPU, VOFF(event)); e8(c, EVENT_INTR);
    xl_bind(x, off, SEC_HOT, hot_at(x));
    xl_bind(x, xl_jmp(x, SEC_COLD), SEC_HOT, hot_at(x));
}

/*
 * POPF at CPL 0, and in 64-bit mode at CPL 3: in line when only arithmetic flags, DF and (CPL 0) IF change; else the helper.
 * At CPL 3 IF and IOPL keep their values whatever is popped, as IOPL is 0 there (else: the helper, by class).
 */
static void popf(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    bool cpl0 = x->mode & MODE_CPL0;
    u32 may = EFL_ARITH | EFL_R1 | EFL_DF | 0x8028 | (cpl0 ? EFL_IF : EFL_IF | EFL_IOPL);
    u32 take = EFL_DF | (cpl0 ? EFL_IF : 0);
    struct guard g;
    unsigned size = in->opsize;
    tr_guard_stack(x, 0, size, ACC_R, &g);
    u32 op = hot_at(x);
    if (size == 2) { /* movzx s1d, word: the upper half of EFLAGS stays */
        e8(b, rex(0, H_S1, g.mem.index == REG_NONE ? 0 : g.mem.index, g.mem.base)); e8(b, 0x0f); e8(b, 0xb7);
        e_modrm_sib(b, H_S1, g.mem.base, g.mem.index, 1, g.mem.disp);
        may |= 0xffff0000;
    } else {
        e_mem(b, 0x8b, size, H_S1, &g.mem);
    }
    tr_guard_end(x, &g, op, false);
    u32 slow = cold_at(x);
    tr_helper_cold(x, in);
    tr_take_flags(x, may, take, slow);
    tr_add_sp(x, (s32)size);
    if (cpl0) {
        tr_unmask(x);
        tr_poll(x, x->off[x->cur] + in->len);
    }
}

void tr_stack(struct xl *x, const struct insn *in)
{
    unsigned size = in->opsize;
    switch (in->id) {
    case I_PUSH:
        if (in->has_mem) {
            load_tmp(x, in, size);
            push_tmp(x, size);
        } else if (in->opreg != REG_NONE || in->rm_kind == RK_GPR) {
            push_reg(x, in->opreg != REG_NONE ? in->opreg : in->rm, size);
        } else {
            push_imm(x, in->imm, size);
        }
        return;
    case I_POP:
        if (in->has_mem)
            pop_mem(x, in, size);
        else
            pop_reg(x, in->opreg != REG_NONE ? in->opreg : in->rm, size);
        return;
    case I_PUSH_SEG: { /* movzx s1d, word [seg.sel]; mov [tmp0], s1 */
        unsigned seg = in->map == MAP_0F ? (in->opcode == 0xa0 ? SEG_FS : SEG_GS) : in->opcode >> 3; /* 06 0e 16 1e */
        e8(&x->hot, rex(0, H_S1, 0, H_VCPU)); e8(&x->hot, 0x0f); e8(&x->hot, 0xb7);
        e_modrm_disp(&x->hot, H_S1, H_VCPU, (s32)(offsetof(struct vcpu, seg) + seg * sizeof(struct seg) +
                                                  offsetof(struct seg, sel)) - VCPU_BIAS);
        e_store_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
        push_tmp(x, size);
        return;
    }
    case I_PUSHF:
        if ((x->m64 && size != 8) || x->single || v86_like(x))
            break;
        pushf(x, size);
        return;
    case I_POPF:
        if ((x->m64 ? size != 8 : !(x->mode & MODE_CPL0)) || x->single)
            break;
        popf(x, in);
        return;
    case I_LEAVE:
        if (x->m64 || (x->mode & MODE_SS32)) {
            leave(x, size);
            return;
        }
        break;
    default:
        break;
    }
    tr_call_helper(x, in, insn_handler(in->id), false);
    if (in->id == I_POPF && !x->ended) {
        if (x->live[x->cur + 1])
            xl_need_saved(x);
        tr_poll(x, x->off[x->cur + 1]);
    }
}
