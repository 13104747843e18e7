/*
 * tr_real.c - what real and virtual-8086 mode do with segments all the time, in line: loads of segment registers, far
 * jmp, call and ret, INT and IRET. A segment is a paragraph there; no descriptor is read, limit and attributes stay (seg_load_real in seg.c).
 * Source: Intel SDM vol. 3 §20.1.1; vol. 2, MOV, POP, LDS, JMP, CALL, RET.
 *
 * INT and IRET of real mode: SDM vol. 2, INT, IRET; vol. 3 §20.1.4. In V86 mode they are the monitor's.
 *
 * Not here, but with helpers: loads of SS by MOV and POP, which hold interrupts back; 32-bit far transfers.
 */
#include "engine/translate.h"

#define SEG_OFF(s, member) ((s32)(offsetof(struct vcpu, seg) + (s) * sizeof(struct seg) + \
                                  offsetof(struct seg, member)) - VCPU_BIAS)

/* -- Loads ------------------------------------------------------------------------------------------------ */

static unsigned loaded_segment(const struct insn *in)
{
    switch (in->id) {
    case I_MOV_SEG:
        return in->reg;
    case I_POP_SEG:
        return in->map == MAP_0F ? (in->opcode == 0xa1 ? SEG_FS : SEG_GS) : in->opcode >> 3;
    default: /* lfp */
        if (in->map == MAP_ONE)
            return in->opcode == 0xc4 ? SEG_ES : SEG_DS;
        return in->opcode == 0xb2 ? SEG_SS : in->opcode == 0xb4 ? SEG_FS : SEG_GS;
    }
}

bool tr_loads_segment(const struct xl *x, const struct insn *in)
{
    if (in->id != I_MOV_SEG && in->id != I_POP_SEG && in->id != I_LFP)
        return false;
    if (!(x->mode & MODE_REAL) || (x->mode & MODE_FLAT) || x->single || (x->vm->debug & VITRO_DEBUG_ONE_INSN))
        return false;
    unsigned seg = loaded_segment(in);
    if (in->id == I_LFP)
        return in->has_mem;
    /* MOV and POP to SS hold back what comes after the next instruction: the helper says so. */
    return seg <= SEG_GS && seg != SEG_CS && seg != SEG_SS;
}

/* rorx s1d, s1d, 28: times 16, for what is below 2^28, without touching flags */
static void shift_paragraph(struct buf *b)
{
    e8(b, 0xc4); e8(b, 0x43); e8(b, 0x7b); e8(b, 0xf0); e8(b, (u8)(0xc0 | (H_S1 & 7) << 3 | (H_S1 & 7))); e8(b, 28);
}

/* s1 = selector, zero-extended: mov [sel], s1w; rorx s1d, s1d, 28; mov [base], s1 */
static void set_paragraph(struct xl *x, unsigned seg)
{
    struct buf *b = &x->hot;
    e8(b, 0x66); e8(b, rex(0, H_S1, 0, H_VCPU)); e8(b, 0x89); e_modrm_disp(b, H_S1, H_VCPU, SEG_OFF(seg, sel));
    shift_paragraph(b);
    e_store_vcpu(b, H_S1, SEG_OFF(seg, base));
}

/* movzx s1d, word [mem] */
static void load_word(struct xl *x, const struct hostmem *m, s32 disp)
{
    struct buf *b = &x->hot;
    e8(b, rex(0, H_S1, m->index == REG_NONE ? 0 : m->index, m->base)); e8(b, 0x0f); e8(b, 0xb7);
    if (m->index == REG_NONE)
        e_modrm_disp(b, H_S1, m->base, m->disp + disp);
    else
        e_modrm_sib(b, H_S1, m->base, m->index, 1, m->disp + disp);
}

/* Offset and selector there, to tmp[0] and tmp[1] */
static void load_far(struct xl *x, const struct hostmem *m)
{
    for (unsigned i = 0; i < 2; i++) {
        load_word(x, m, 2 * (s32)i);
        e_store_vcpu(&x->hot, H_S1, VOFF(tmp[0]) + 8 * (s32)i);
    }
}

static void load_segment(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    unsigned seg = loaded_segment(in), size = in->opsize;
    struct guard g;
    if (in->id == I_MOV_SEG && !in->has_mem) { /* movzx s1d, reg16 */
        e8(b, rex(0, H_S1, 0, host_gpr[in->rm])); e8(b, 0x0f); e8(b, 0xb7);
        e8(b, (u8)(0xc0 | (H_S1 & 7) << 3 | (host_gpr[in->rm] & 7)));
        set_paragraph(x, seg);
        return;
    }
    if (in->id == I_POP_SEG)
        tr_guard_stack(x, 0, size, ACC_R, &g);
    else
        tr_guard(x, in, in->id == I_LFP ? size + 2 : 2, ACC_R, 0, true, &g);
    u32 op = hot_at(x);
    if (in->id == I_LFP) {
        e_lea_full(b, true, H_S2, g.mem.base, g.mem.index, 1, g.mem.disp);
        g.mem = (struct hostmem){ H_S2, REG_NONE, 0 };
        load_word(x, &g.mem, (s32)size);
        set_paragraph(x, seg);
        e_mem(b, 0x8b, size, host_gpr[in->reg], &g.mem);
    } else {
        load_word(x, &g.mem, 0);
        set_paragraph(x, seg);
        if (in->id == I_POP_SEG)
            tr_add_sp(x, (s32)size);
    }
    tr_guard_end(x, &g, op, true);
}

/* -- Far transfers ------------------------------------------------------------------------------------------- */

/* 16-bit code that lies in 64 KiB as real mode has them: vcpu->cs_tag is PARAGRAPH_TAG of the selector then. */
static bool transfers(const struct xl *x, const struct insn *in)
{
    if (in->id != I_CALL_FAR && in->id != I_JMP_FAR && in->id != I_RET_FAR)
        return false;
    return (x->mode & MODE_REAL) && !(x->mode & (MODE_32 | MODE_SS32)) && x->cs_limit == 0xffff && in->opsize == 2 &&
           !x->single && !x->nochain;
}

/* [cs.sel] is the new selector, tmp[0] the offset: base, tag, and on to s1. */
static void enter_paragraph(struct xl *x)
{
    struct buf *b = &x->hot;
    /* movzx s1d, word [cs.sel]; mov s2d, s1d; rorx s1d, s1d, 28; mov [cs.base], s1 */
    e8(b, rex(0, H_S1, 0, H_VCPU)); e8(b, 0x0f); e8(b, 0xb7); e_modrm_disp(b, H_S1, H_VCPU, SEG_OFF(SEG_CS, sel));
    e_rr32(b, 0x8b, H_S2, H_S1);
    shift_paragraph(b);
    e_store_vcpu(b, H_S1, SEG_OFF(SEG_CS, base));
    /* or s2d, 1 << 24; shl s2, 32; mov [cs_tag], s2; add s1, s2; add s1, [tmp0] */
    _Static_assert(PARAGRAPH_TAG(0) == 1ull << 56, "");
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xc8 | (H_S2 & 7)); e32(b, 1u << 24);
    e8(b, 0x49); e8(b, 0xc1); e8(b, 0xe0 | (H_S2 & 7)); e8(b, 32);
    e_store_vcpu(b, H_S2, VOFF(cs_tag));
    e_rr64(b, 0x03, H_S1, H_S2);
    e_rm64(b, 0x03, H_S1, H_VCPU, VOFF(tmp[0]));
    tr_probe(x);
}

/* mov [cs.sel], s1w */
static void set_cs(struct xl *x)
{
    struct buf *b = &x->hot;
    e8(b, 0x66); e8(b, rex(0, H_S1, 0, H_VCPU)); e8(b, 0x89); e_modrm_disp(b, H_S1, H_VCPU, SEG_OFF(SEG_CS, sel));
}
/* mov s1d, imm32 */
static void set_s1(struct xl *x, u32 val)
{
    e8(&x->hot, 0x41); e8(&x->hot, 0xb8 | (H_S1 & 7)); e32(&x->hot, val);
}

/* The pointer: offset to tmp[0], selector to tmp[1]. */
static void far_target(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    if (!in->has_mem) {
        set_s1(x, (u16)in->imm);
        e_store_vcpu(b, H_S1, VOFF(tmp[0]));
        set_s1(x, (u16)((u64)in->imm >> 32));
        e_store_vcpu(b, H_S1, VOFF(tmp[1]));
        return;
    }
    struct guard g;
    tr_guard(x, in, 4, ACC_R, 0, true, &g);
    u32 op = hot_at(x);
    e_lea_full(b, true, H_S2, g.mem.base, g.mem.index, 1, g.mem.disp);
    g.mem = (struct hostmem){ H_S2, REG_NONE, 0 };
    load_far(x, &g.mem);
    tr_guard_end(x, &g, op, false);
}

/* s1d = CS and IP of the next instruction: movzx s1d, word [cs.sel]; shl s1d, 16; or s1d, IP */
static void load_return(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    e8(b, rex(0, H_S1, 0, H_VCPU)); e8(b, 0x0f); e8(b, 0xb7); e_modrm_disp(b, H_S1, H_VCPU, SEG_OFF(SEG_CS, sel));
    e8(b, 0x41); e8(b, 0xc1); e8(b, 0xe0 | (H_S1 & 7)); e8(b, 16);
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xc8 | (H_S1 & 7)); e32(b, (u16)(x->page_eip + x->off[x->cur] + in->len));
}
static void push_far(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    struct guard g;
    tr_guard_stack(x, -4, 4, ACC_W, &g);
    u32 op = hot_at(x);
    e_lea_full(b, true, H_S2, g.mem.base, g.mem.index, 1, g.mem.disp);
    g.mem = (struct hostmem){ H_S2, REG_NONE, 0 };
    load_return(x, in);
    e_mem(b, 0x89, 4, H_S1, &g.mem);
    tr_add_sp(x, -4);
    tr_guard_end(x, &g, op, false);
}

static void far_transfer(struct xl *x, const struct insn *in)
{
    xl_need_saved(x);
    if (in->id == I_RET_FAR) {
        struct guard g;
        tr_guard_stack(x, 0, 4, ACC_R, &g);
        u32 op = hot_at(x);
        e_lea_full(&x->hot, true, H_S2, g.mem.base, g.mem.index, 1, g.mem.disp);
        g.mem = (struct hostmem){ H_S2, REG_NONE, 0 };
        load_word(x, &g.mem, 0);
        e_store_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
        load_word(x, &g.mem, 2);
        set_cs(x);
        tr_add_sp(x, 4 + (in->imm_size ? (u16)in->imm : 0));
        tr_guard_end(x, &g, op, false);
    } else {
        far_target(x, in);
        if (in->id == I_CALL_FAR)
            push_far(x, in);
        e_load_vcpu(&x->hot, H_S1, VOFF(tmp[1]));
        set_cs(x);
    }
    x->fstate = FLAGS_SAVED;
    enter_paragraph(x);
    x->ended = true;
}

/* -- Interrupts -------------------------------------------------------------------------------------------------- */

static bool interrupts(const struct xl *x, const struct insn *in)
{
    if (in->id != I_INT && in->id != I_IRET)
        return false;
    return (x->mode & MODE_REAL) && (x->mode & MODE_CPL0) && !(x->mode & (MODE_32 | MODE_SS32)) && x->slot == SLOT_K &&
           x->cs_limit == 0xffff && in->opsize == 2 && !x->single && !x->nochain;
}

/* s2 = where the guarded words are */
static void point_s2(struct xl *x, struct guard *g)
{
    e_lea_full(&x->hot, true, H_S2, g->mem.base, g->mem.index, 1, g->mem.disp);
    g->mem = (struct hostmem){ H_S2, REG_NONE, 0 };
}

static void int_real(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    struct guard g;
    u8 vector = (u8)in->imm;
    xl_need_saved(x);
    u32 slow = cold_at(x);
    tr_helper_cold(x, in);
    /* cmp word [idtr.limit], vector * 4 + 3; jb */
    e8(b, 0x66); e8(b, 0x41); e8(b, 0x81); e_modrm_disp(b, 7, H_VCPU, VOFF(idtr.limit)); e8(b, (u8)(vector * 4u + 3)); e8(b, (u8)((vector * 4u + 3) >> 8));
    xl_bind(x, xl_jcc(x, SEC_HOT, 2), SEC_COLD, slow);
    /* The frame wraps: cmp r15w, 6; jb */
    e8(b, 0x66); e8(b, 0x41); e8(b, 0x83); e8(b, 0xf8 | (H_SP & 7)); e8(b, 6);
    xl_bind(x, xl_jcc(x, SEC_HOT, 2), SEC_COLD, slow);
    /* AC goes, and with it the mode perhaps: test dword [eflags], AC; jne */
    e8(b, 0x41); e8(b, 0xf7); e_modrm_disp(b, 0, H_VCPU, VOFF(eflags)); e32(b, EFL_AC);
    xl_bind(x, xl_jcc(x, SEC_HOT, 5), SEC_COLD, slow);
    /* The vector */
    e_load_vcpu(b, H_S1, VOFF(idtr.base));
    e_lea(b, false, H_S1, H_S1, vector * 4);
    tr_guard_linear(x, 4, &g);
    u32 op = hot_at(x);
    point_s2(x, &g);
    load_far(x, &g.mem);
    tr_guard_end(x, &g, op, false);
    /* IP, CS, FLAGS */
    tr_flags_image(x);
    e_store_vcpu(b, H_S1, VOFF(tmp[2]));
    tr_guard_stack(x, -6, 6, ACC_W, &g);
    op = hot_at(x);
    point_s2(x, &g);
    e_load_vcpu(b, H_S1, VOFF(tmp[2]));
    g.mem.disp = 4;
    e_mem(b, 0x89, 2, H_S1, &g.mem);
    g.mem.disp = 0;
    load_return(x, in);
    e_mem(b, 0x89, 4, H_S1, &g.mem);
    tr_add_sp(x, -6);
    tr_guard_end(x, &g, op, false);
    /* and dword [eflags], ~(IF | RF): TF and AC are clear */
    e8(b, 0x41); e8(b, 0x81); e_modrm_disp(b, 4, H_VCPU, VOFF(eflags)); e32(b, ~(EFL_IF | EFL_RF));
    if (vector < 32) { /* inc qword [nr_exc] */
        e8(b, 0x49); e8(b, 0xff); e_modrm_disp(b, 0, H_VCPU, (s32)offsetof(struct vcpu, nr_exc[vector]) - VCPU_BIAS);
    }
    e_load_vcpu(b, H_S1, VOFF(tmp[1]));
    set_cs(x);
    x->fstate = FLAGS_SAVED;
    enter_paragraph(x);
    x->ended = true;
}

/* The helper is for what POPF's is, for NMIs that are held back, and for a frame that wraps. */
static void iret_real(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    struct guard g;
    xl_need_saved(x);
    u32 slow = cold_at(x);
    tr_helper_cold(x, in);
    /* cmp byte [nmi_masked], 0; jne; cmp r15w, 10000h - 6; ja */
    e8(b, 0x41); e8(b, 0x80); e_modrm_disp(b, 7, H_VCPU, VOFF(nmi_masked)); e8(b, 0);
    xl_bind(x, xl_jcc(x, SEC_HOT, 5), SEC_COLD, slow);
    e8(b, 0x66); e8(b, 0x41); e8(b, 0x81); e8(b, 0xf8 | (H_SP & 7)); e8(b, 0xfa); e8(b, 0xff);
    xl_bind(x, xl_jcc(x, SEC_HOT, 7), SEC_COLD, slow);
    tr_guard_stack(x, 0, 6, ACC_R, &g);
    u32 op = hot_at(x);
    point_s2(x, &g);
    load_far(x, &g.mem);
    load_word(x, &g.mem, 4);
    tr_guard_end(x, &g, op, false);
    tr_take_flags(x, EFL_ARITH | EFL_R1 | EFL_DF | EFL_IF | 0x8028 | 0xffff0000, EFL_DF | EFL_IF, slow);
    tr_add_sp(x, 6);
    e_load_vcpu(b, H_S1, VOFF(tmp[1]));
    set_cs(x);
    tr_unmask(x); /* the next block polls */
    enter_paragraph(x);
    x->ended = true;
}

bool tr_real(struct xl *x, const struct insn *in)
{
    if (tr_loads_segment(x, in))
        load_segment(x, in);
    else if (transfers(x, in))
        far_transfer(x, in);
    else if (interrupts(x, in))
        in->id == I_INT ? int_real(x, in) : iret_real(x, in);
    else
        return false;
    return true;
}
