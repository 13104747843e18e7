/*
 * tr_copy.c - HOW_COPY, and bit strings: the guest's instruction again, with its registers renamed and its memory operand
 * guarded. Only the encoding is looked at; what the instruction computes is the host CPU's business.
 *
 * Guest registers that live in vcpu->regs are brought into scratch registers around the instruction.
 * ah, ch, dh, bh cannot be encoded beside a REX prefix: their register is swapped (xchg al, ah) around
 * the instruction, which then names the low byte.
 */
#include "engine/translate.h"

/* The operand registers of one emission: host numbers, or the guest's own for vector registers. */
struct regs {
    u8 reg, rm, vvvv, opreg;
    const struct hostmem *mem;
};

static bool is_high_byte(const struct insn *in, unsigned reg, unsigned size)
{
    return size == 1 && !(in->prefixes & PFX_REX) && in->enc == ENC_LEGACY && reg >= 4 && reg < 8;
}

/* ModRM and what follows it, for either form. */
static void modrm_tail(struct buf *b, const struct regs *r, bool force_disp32)
{
    if (!r->mem) {
        e8(b, (u8)(0xc0 | (r->reg & 7) << 3 | (r->rm & 7)));
        return;
    }
    const struct hostmem *m = r->mem;
    if (force_disp32 && m->disp) { /* EVEX scales disp8 */
        if (m->index != REG_NONE || (m->base & 7) == 4) {
            e8(b, (u8)(0x80 | (r->reg & 7) << 3 | 4));
            e8(b, (u8)((m->index == REG_NONE ? 4 : m->index & 7) << 3 | (m->base & 7)));
        } else {
            e8(b, (u8)(0x80 | (r->reg & 7) << 3 | (m->base & 7)));
        }
        e32(b, (u32)m->disp);
    } else if (m->index != REG_NONE) {
        /* mod 01 with a zero displacement (base 101) is scaled by EVEX too, but zero stays zero */
        e_modrm_sib(b, r->reg, m->base, m->index, 1, m->disp);
    } else {
        e_modrm_disp(b, r->reg, m->base, m->disp);
    }
}

static void ext_bits(const struct insn *in, const struct regs *r, unsigned *R, unsigned *X, unsigned *B)
{
    *R = r->reg >> 3 & 1;
    if (r->mem) {
        *X = r->mem->index == REG_NONE ? 0 : r->mem->index >> 3 & 1;
        *B = r->mem->base >> 3 & 1;
    } else {
        *X = in->enc == ENC_EVEX && in->rm_kind == RK_VEC ? r->rm >> 4 & 1 : 0;
        *B = r->rm >> 3 & 1;
    }
    if (r->opreg != REG_NONE)
        *B = r->opreg >> 3 & 1;
}

/* A memory operand that stands for a general register (vmovd, vpinsrd, vcvtsi2sd, ...), or implicit ones (vpcmpestri). */
static bool scalar_memory(const struct insn *in)
{
    unsigned op = in->opcode;
    if (in->map == MAP_0F)
        return op == 0x2a || (op == 0x7b && in->pp >= 2) || ((op == 0x6e || op == 0x7e) && in->pp == 1);
    return in->map == MAP_0F3A && ((op & 0xfc) == 0x60 || op == 0x16 || op == 0x22);
}

/*
 * Does the copy need a 66h prefix? In 16-bit code the prefix asks for 32 bits, and none for 16; the copy runs in 64-bit mode,
 * where it is the other way round. Where the prefix selects another instruction it stays what it is.
 */
static bool has_66(const struct xl *x, const struct insn *in)
{
    bool code16 = !x->m64 && !(x->mode & MODE_32);
    bool fixed = in->id == I_ADCX || (in->map == MAP_0F && in->opcode == 0xae); /* 66h is part of the opcode */
    if (code16 && (in->map == MAP_ONE || (in->cls == CLS_GPR && !fixed)))
        return in->opsize == 2;
    return in->prefixes & PFX_66;
}

/* The instruction with new register numbers into b. */
static void reencode(struct xl *x, struct buf *b, const struct insn *in, const struct regs *r)
{
    const u8 *raw = x->raw + x->off[x->cur];
    unsigned R, X, B, p = 0;
    ext_bits(in, r, &R, &X, &B);
    /* Skip the original's prefixes. */
    for (;; p++) {
        u8 c = raw[p];
        if (c == 0x66 || c == 0x67 || c == 0xf2 || c == 0xf3 || c == 0xf0 || c == 0x2e || c == 0x36 ||
            c == 0x3e || c == 0x26 || c == 0x64 || c == 0x65 || (x->m64 && (c & 0xf0) == 0x40))
            continue;
        break;
    }
    /* W means nothing to general registers outside 64-bit mode (SDM vol. 2 §2.3.5), but the copy runs in it. */
    u8 keep = 0xff;
    if (!x->m64 && (in->reg_kind == RK_GPR || in->rm_kind == RK_GPR || in->vvvv_kind == RK_GPR ||
                    scalar_memory(in)))
        keep = 0x7f;
    if (in->enc == ENC_VEX) {
        u8 b1, b2;
        if (raw[p] == 0xc5) {
            b1 = 1;
            b2 = raw[p + 1] & 0x7f;
        } else {
            b1 = raw[p + 1] & 0x1f;
            b2 = raw[p + 2];
        }
        b1 |= (u8)(!R << 7 | !X << 6 | !B << 5);
        if (in->vvvv_kind == RK_GPR)
            b2 = (u8)((b2 & 0x87) | (~r->vvvv & 15) << 3);
        e8(b, 0xc4); e8(b, b1); e8(b, b2 & keep);
    } else if (in->enc == ENC_EVEX) {
        u8 p0 = raw[p + 1], p1 = raw[p + 2], p2 = raw[p + 3];
        p0 = (u8)((p0 & 0x1f) | !R << 7 | !X << 6 | !B << 5);
        if (in->reg_kind == RK_VEC)
            p0 = (u8)((p0 & ~0x10u) | (unsigned)!(r->reg >> 4 & 1) << 4);
        if (in->vvvv_kind == RK_GPR)
            p1 = (u8)((p1 & 0x87) | (~r->vvvv & 15) << 3);
        e8(b, 0x62); e8(b, p0); e8(b, p1 & keep); e8(b, p2);
    } else {
        if (in->prefixes & PFX_LOCK)
            e8(b, 0xf0);
        if (has_66(x, in))
            e8(b, 0x66);
        if (in->prefixes & PFX_F2)
            e8(b, 0xf2);
        if (in->prefixes & PFX_F3)
            e8(b, 0xf3);
        u8 rx = (u8)(0x40 | (in->rex & 8) | R << 2 | X << 1 | B);
        if (rx != 0x40 || (in->prefixes & PFX_REX))
            e8(b, rx);
        static const u8 escape[][2] = { [MAP_0F] = { 0x0f, 0 }, [MAP_0F38] = { 0x0f, 0x38 }, [MAP_0F3A] = { 0x0f, 0x3a } };
        if (in->map != MAP_ONE)
            e8(b, 0x0f);
        if (in->map == MAP_0F38 || in->map == MAP_0F3A)
            e8(b, escape[in->map][1]);
    }
    u8 op = in->opcode;
    if (in->moffs) { /* mov al/eax/rax, moffs and back, by the ModRM form */
        e8(b, (u8)(op == 0xa0 ? 0x8a : op == 0xa1 ? 0x8b : op == 0xa2 ? 0x88 : 0x89));
        modrm_tail(b, r, false);
        return;
    }
    if (in->opreg != REG_NONE && !x->m64 && in->map == MAP_ONE && (op & 0xf0) == 0x40) {
        e8(b, 0xff); /* inc, dec by the ModRM form: 40-4f are REX now */
        e8(b, (u8)(0xc0 | (op & 8) | (r->opreg & 7)));
        return;
    }
    if (in->map == MAP_ONE && in->enc == ENC_LEGACY && op == 0x82)
        op = 0x80; /* the alias 64-bit mode lacks */
    if (in->opreg != REG_NONE)
        op = (u8)((op & 0xf8) | (r->opreg & 7));
    e8(b, op);
    if (in->has_modrm)
        modrm_tail(b, r, in->enc == ENC_EVEX);
    unsigned imm = in->imm_size ? in->imm_size : in->is4 != REG_NONE ? 1 : 0;
    if (in->is4 != REG_NONE && !x->m64) /* the register's top bit is ignored there */
        e8(b, raw[in->len - 1] & 0x7f);
    else if (imm)
        e_bytes(b, raw + in->len - imm, imm);
}

/* xchg low, high byte of one of rax..rbx */
static void swap_bytes(struct buf *b, unsigned g)
{
    e8(b, 0x86);
    e8(b, (u8)(0xc0 | g << 3 | (g + 4)));
}

/* The host register of a guest register that is read; one that lives in memory comes into s1 or s2, but not `other`. */
static unsigned lea_source(struct xl *x, unsigned g, unsigned other)
{
    if (g == REG_NONE || !gpr_in_slot(g))
        return g == REG_NONE ? REG_NONE : host_gpr[g];
    unsigned r = tr_held_value(x, g);
    if (r == REG_NONE) {
        r = tr_held_pick(x, other != H_S1, other != H_S2);
        e_load_vcpu(&x->hot, r, REG_OFF(g));
        tr_held_keep(x, r, g);
    }
    return r;
}

static void copy_lea(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    unsigned asz = in->addrsize, osz = in->opsize;
    bool wide = asz == 8 && osz == 8, slot = gpr_in_slot(in->reg), narrow = osz == 2 || asz == 2;
    if (narrow || (in->base == BASE_RIP && (slot || !wide)))
        tr_held_none(x);
    unsigned dst = slot ? H_S1 : host_gpr[in->reg];
    unsigned to = narrow ? H_S1 : dst; /* 16-bit results need a merge or a truncation */
    if (in->base == BASE_RIP) {
        tr_load_rip(x, b, wide ? to : H_S1, (s32)in->disp + x->off[x->cur] + in->len);
        if (!wide)
            e_rr32(b, 0x8b, to, H_S1);
    } else {
        unsigned has = in->index != REG_NONE && gpr_in_slot(in->index) ? tr_held_value(x, in->index) : REG_NONE;
        unsigned base = lea_source(x, in->base, has), index = in->index == in->base ? base : lea_source(x, in->index, base);
        if (slot && !narrow) {
            unsigned r = tr_held_value(x, in->reg);
            to = dst = r != REG_NONE ? r : tr_held_pick(x, true, true);
        }
        e_lea_full(b, wide, to, base, index, in->scale, (s32)in->disp);
        if (narrow)
            tr_held_none(x);
    }
    if (asz == 2) { /* movzx s1d, s1w */
        e8(b, 0x45); e8(b, 0x0f); e8(b, 0xb7); e8(b, 0xc0 | 2 << 3 | 2);
    }
    if (osz == 2) { /* the low half only: mov dst16, s1w */
        if (slot) {
            e8(b, 0x66); e8(b, rex(0, H_S1, 0, H_VCPU)); e8(b, 0x89); e_modrm_disp(b, H_S1, H_VCPU, REG_OFF(in->reg));
        } else {
            e8(b, 0x66); e_rr32(b, 0x8b, dst, H_S1);
        }
        return;
    }
    if (to != dst)
        e_rr32(b, 0x8b, dst, to);
    if (slot) {
        e_store_vcpu(b, dst, REG_OFF(in->reg));
        tr_held_keep(x, dst, in->reg);
    }
}

struct loan { /* a guest register that lives in memory, brought into a host register */
    u8 guest, host;
    bool read, write, borrowed;
};

/*
 * May a register operand that lives in memory be the ModRM memory operand itself? Where the form exists, and unless
 * 32 bits are written: that clears the upper half of a register, but not of memory.
 */
static bool slot_as_memory(const struct insn *in)
{
    if (in->enc != ENC_LEGACY || ((in->rm_acc & OPA_W) && in->rm_size == 4))
        return false;
    unsigned op = in->opcode;
    if (in->map == MAP_0F)
        return (op >= 0x40 && op < 0x50) || (op >= 0x90 && op < 0xa0) || op == 0xaf || op == 0xb6 || op == 0xb7 ||
               op == 0xbe || op == 0xbf;
    return in->map == MAP_ONE &&
           ((op < 0x40 && (op & 7) < 4) || op == 0x63 || op == 0x69 || op == 0x6b || op == 0x80 || op == 0x81 ||
            op == 0x83 || op == 0x84 || op == 0x85 || (op >= 0x88 && op <= 0x8b) || op == 0xc0 || op == 0xc1 ||
            op == 0xc6 || op == 0xc7 || (op >= 0xd0 && op <= 0xd3) || op == 0xf6 || op == 0xf7 || op >= 0xfe);
}

/* op rm, reg with reg in memory and rm not: the same as op reg, rm with the operands exchanged, where both exist. */
static bool exchangeable(const struct insn *in)
{
    unsigned op = in->opcode;
    return in->enc == ENC_LEGACY && in->map == MAP_ONE && in->has_modrm && !in->has_mem && in->rm_kind == RK_GPR &&
           in->reg_kind == RK_GPR && gpr_in_slot(in->reg) && !gpr_in_slot(in->rm) &&
           ((op < 0x40 && (op & 7) < 2) || op == 0x88 || op == 0x89);
}

/* VZEROUPPER and VZEROALL outside 64-bit mode reach registers 0-7 only: vmovdqa xmmN, xmmN or vpxor xmmN, xmmN, xmmN. */
static void vzero_low(struct buf *b, bool all)
{
    for (unsigned n = 0; n < 8; n++) {
        e8(b, 0xc5);
        e8(b, (u8)(all ? 0x81 | (~n & 15) << 3 : 0xf9));
        e8(b, all ? 0xef : 0x6f);
        e8(b, (u8)(0xc0 | n << 3 | n));
    }
}

void tr_copy(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    if (!x->m64 && (in->id == I_VZEROUPPER || in->id == I_VZEROALL)) {
        vzero_low(b, in->id == I_VZEROALL);
        return;
    }
    if ((in->id == I_ADD || in->id == I_SUB) && in->rm == RSP && tr_lag(x, (s32)(in->id == I_ADD ? in->imm : -in->imm)))
        return;
    struct insn turned;
    if (exchangeable(in)) {
        turned = *in;
        turned.opcode ^= 2;
        turned.reg = in->rm;
        turned.rm = in->reg;
        turned.reg_acc = in->rm_acc;
        turned.rm_acc = in->reg_acc;
        in = &turned;
    }
    if (in->id == I_LEA) {
        copy_lea(x, in);
        return;
    }
    bool mem = in->has_mem && in->mem_size;
    if (in->has_mem && !in->mem_size)
        return; /* nop, prefetch: hints at an address that is not the host's */

    struct regs r = { in->reg, in->rm, in->vvvv, REG_NONE, NULL };
    struct loan loan[4];
    unsigned nr = 0;
    struct operand { u8 *to; u8 guest, acc, size; } ops[4];
    unsigned nops = 0;
    if (in->moffs)
        r.reg = 0;
    struct hostmem slot;
    bool in_place = !in->has_mem && in->has_modrm && in->rm_kind == RK_GPR && gpr_in_slot(in->rm) && slot_as_memory(in) &&
                    !(in->reg_kind == RK_GPR && in->reg == in->rm) && tr_held_value(x, in->rm) == REG_NONE;
    if (in_place) {
        slot = (struct hostmem){ H_VCPU, REG_NONE, REG_OFF(in->rm) };
        r.mem = &slot;
    }
    if (in->reg_kind == RK_GPR && in->has_modrm)
        ops[nops++] = (struct operand){ &r.reg, in->reg, in->reg_acc, in->reg_size };
    if (!in->has_mem && in->rm_kind == RK_GPR && in->has_modrm && !in_place)
        ops[nops++] = (struct operand){ &r.rm, in->rm, in->rm_acc, in->rm_size };
    if (in->vvvv_kind == RK_GPR)
        ops[nops++] = (struct operand){ &r.vvvv, in->vvvv, in->vvvv_acc, in->vvvv_size };
    if (in->opreg != REG_NONE) {
        r.opreg = in->opreg;
        ops[nops++] = (struct operand){ &r.opreg, in->opreg, in->opreg_acc, in->opreg_size };
    }

    /* High bytes stay as they are unless something beside them needs REX. */
    unsigned high = 0; /* bit per register whose bytes are swapped */
    bool has_high = false, needs_rex = mem || in_place;
    for (unsigned i = 0; i < nops; i++) {
        if (is_high_byte(in, ops[i].guest, ops[i].size))
            has_high = true;
        else if (host_gpr[ops[i].guest] >= 8)
            needs_rex = true;
    }
    bool write_flags = in->fl_write & EFL_ARITH;
    struct guard g;
    if (mem) {
        if (insn_bit_string(in))
            tr_guard_bits(x, in, &g);
        else
            tr_guard(x, in, in->mem_size, in->mem_acc, 0, has_high, &g);
        r.mem = &g.mem;
    }
    u32 op = hot_at(x);
    if (mem && insn_bit_string(in) && g.mem.base == H_S1)
        tr_ea(x, in, 0);
    if ((in->fl_read & EFL_ARITH) || (write_flags && x->live[x->cur] && (x->live[x->cur] & ~in->fl_write)) ||
        (in->fl_maybe & x->live[x->cur + 1]))
        xl_need_host(x, !mem && xl_s1_free(x));
    if (x->fstate != FLAGS_SAVED && (x->fhost_real || x->live[x->cur])) /* if the instruction faults */
        x->map[x->cur] |= MAP_FLAGS_HOST;

    u8 rename[4];
    for (unsigned i = 0; i < nops; i++) {
        unsigned gst = ops[i].guest;
        if (is_high_byte(in, gst, ops[i].size)) {
            if (needs_rex) {
                high |= 1u << (gst - 4);
                rename[i] = (u8)(gst - 4);
            } else {
                rename[i] = (u8)gst;
            }
            continue;
        }
        if (!gpr_in_slot(gst)) {
            rename[i] = host_gpr[gst];
            continue;
        }
        struct loan *l = NULL;
        for (unsigned k = 0; k < nr; k++)
            if (loan[k].guest == gst)
                l = &loan[k];
        if (!l) {
            l = &loan[nr++];
            *l = (struct loan){ .guest = (u8)gst, .host = REG_NONE };
        }
        l->read |= (ops[i].acc & OPA_R) || ops[i].size < 4;
        l->write |= ops[i].acc & OPA_W;
        rename[i] = (u8)(0x80 | (l - loan));
    }
    /* Give each loan a register: scratch ones first, then any the instruction does not touch. */
    struct hostmem flat;
    bool s1_free = (!mem || g.mem.base != H_S1) && !(x->grp.active && x->grp.sum), s2_free = !mem && !x->grp.active;
    if (x->mode & MODE_WINDOW) {
        s1_free = !mem || (g.mem.base != H_S1 && g.mem.index != H_S1);
        s2_free = !mem || (g.mem.base != H_S2 && g.mem.index != H_S2);
    }
    if (mem && nr && !s1_free && !s2_free && !x->grp.active) {
        bool late = nr == 1 && !loan[0].read; /* a plain load: the address is used before it is overwritten */
        tr_held_none(x);
        if (!late) { /* lea s2, [s1 + s2] */
            e_lea_full(b, true, H_S2, H_S1, H_S2, 1, g.mem.disp);
            flat = (struct hostmem){ H_S2, REG_NONE, 0 };
            r.mem = &flat;
        }
        s1_free = true;
    }
    u16 busy = in->gpr_read | in->gpr_write | 1u << RSP;
    unsigned spill = 1;
    for (unsigned k = 0; k < nr; k++) {
        unsigned held = tr_held_value(x, loan[k].guest);
        if (held == H_S1 ? s1_free : held == H_S2 && s2_free) {
            loan[k].host = (u8)held;
            *(held == H_S1 ? &s1_free : &s2_free) = false;
        }
    }
    for (unsigned k = 0; k < nr; k++) {
        struct loan *l = &loan[k];
        if (l->host != REG_NONE)
            continue;
        if (s1_free || s2_free) {
            l->host = (u8)tr_held_pick(x, s1_free, s2_free);
            *(l->host == H_S1 ? &s1_free : &s2_free) = false;
        } else {
            for (unsigned c = 0; c < NR_GPR; c++)
                if (!gpr_in_slot(c) && !(busy >> c & 1)) {
                    l->host = host_gpr[c];
                    busy |= (u16)(1u << c);
                    break;
                }
            l->borrowed = true;
            e_store_vcpu(b, l->host, VOFF(tmp[0]) + 8 * (s32)spill++);
        }
        if (l->read)
            e_load_vcpu(b, l->host, REG_OFF(l->guest));
    }
    for (unsigned i = 0; i < nops; i++)
        *ops[i].to = rename[i] & 0x80 ? loan[rename[i] & 0x7f].host : rename[i];

    /* cmpxchg [m8], ah-bh compares al: its source goes through a borrowed low byte instead of a swap. */
    bool borrow_dl = high && in->id == I_CMPXCHG;
    if (borrow_dl) {
        unsigned tmp = ops[0].guest == 6 ? RCX : RDX; /* not the register of the high byte */
        e_store_vcpu(b, tmp, VOFF(tmp[1]));
        e8(b, 0x88); /* mov tmp8, high */
        e8(b, (u8)(0xc0 | ops[0].guest << 3 | tmp));
        *ops[0].to = (u8)tmp;
        reencode(x, b, in, &r);
        e_load_vcpu(b, tmp, VOFF(tmp[1]));
    } else {
        for (unsigned gst = 0; gst < 4; gst++)
            if (high >> gst & 1)
                swap_bytes(b, gst);
        u8 *start = b->p;
        reencode(x, b, in, &r);
        if (unlikely(x->recipe)) {
            unsigned pad = recipe_padding(x, in);
            if (pad) {
                b->p = start;
                recipe_pad(b, pad);
                reencode(x, b, in, &r);
            }
            recipe_imm(x, in);
        }
        for (unsigned gst = 0; gst < 4; gst++)
            if (high >> gst & 1)
                swap_bytes(b, gst);
    }
    for (unsigned k = 0; k < nr; k++) {
        if (loan[k].write)
            e_store_vcpu(b, loan[k].host, REG_OFF(loan[k].guest));
        if (!loan[k].borrowed && (loan[k].read || loan[k].write) && (!mem || g.shared)) /* a slow path does not bring it */
            tr_held_keep(x, loan[k].host, loan[k].guest);
    }
    spill = 1;
    for (unsigned k = 0; k < nr; k++)
        if (loan[k].borrowed)
            e_load_vcpu(b, loan[k].host, VOFF(tmp[0]) + 8 * (s32)spill++);
    if (write_flags) {
        x->fstate = FLAGS_HOST;
        x->fhost_real |= (in->fl_write & EFL_ARITH & ~in->fl_maybe) == EFL_ARITH;
    }
    if (mem)
        tr_guard_end(x, &g, op, true);
}
