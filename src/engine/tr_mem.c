/*
 * tr_mem.c - how a memory access is guarded. The one file that decides it.
 *
 *   lea   s1, EA
 *   rorx  s2, s1, 12 - TLB_ENTRY_SHIFT
 *   and   s2, mask
 *   sub   s1, [vcpu + s2 + tlb.tag]
 *   cmp   s1, 4096 - size
 *   ja    slow
 *   mov   s2, [vcpu + s2 + tlb.host or tlb.delta]
 *   op    [s1 + s2]  or  [base + disp + s2]
 *
 * In a loop that is one block there is no index: the access has a copy of the entry at a place of its own (tlb.h):
 *
 *   lea   s1, EA
 *   sub   s1, [vcpu + copy.tag]
 *   cmp   s1, 4096 - size
 *   ja    stub_loop_*, which copies the right one, or goes slow
 *   mov   s2, [vcpu + copy.host or copy.delta]
 *
 * Kernel code outside 64-bit mode asks an extent first (tlb.h), and its check may span pages:
 *
 *   lea   s1, EA
 *   sub   s1, [vcpu + extent.start]            for reads: mov s2, s1 before, and s2 here
 *   cmp   s1, [vcpu + extent.limit]
 *   ja    stub_extent_*, which looks in the table, or goes slow
 *   mov   s2, [vcpu + extent.host or extent.delta]
 *
 * In real mode a read compares s1 with the end of an extent that starts at 0 (loop_entries.low), and subtracts nothing.
 *
 * User code of a process that has run for a while has no check (MODE_WINDOW): tr_window.c.
 *
 * Where alignment is checked (MODE_AC) the compare is a jump: every access takes the slow path.
 *
 * slow (cold): call stub_slow; jmp back; record; then, for writes, the operation again for a bounce
 * buffer, and a call that commits it.
 */
#include "engine/translate.h"

#define TLB_SHIFT (PAGE_SHIFT - TLB_ENTRY_SHIFT)

void e_lea_full(struct buf *b, bool w, unsigned dst, unsigned base, unsigned index, unsigned scale, s32 disp)
{
    if (base != REG_NONE && index == REG_NONE) {
        if (disp == 0 && w && dst == base)
            return;
        if (disp == 0 && w)
            e_mov(b, dst, base);
        else if (disp == 0)
            e_rr32(b, 0x8b, dst, base);
        else
            e_lea(b, w, dst, base, disp);
        return;
    }
    e8(b, rex(w, dst, index == REG_NONE ? 0 : index, base == REG_NONE ? 0 : base));
    e8(b, 0x8d);
    if (base != REG_NONE) {
        e_modrm_sib(b, dst, base, index, scale, disp);
        return;
    }
    /* no base: SIB with base 101, mod 00, disp32 */
    unsigned ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
    e8(b, (u8)((dst & 7) << 3 | 4));
    e8(b, (u8)(index == REG_NONE ? 0x25 : ss << 6 | (index & 7) << 3 | 5));
    e32(b, (u32)disp);
}

/* mov reg, imm64 (shortest form) */
static void load_imm(struct buf *b, unsigned reg, u64 imm)
{
    if (imm <= 0xffffffffu) {
        e8(b, (u8)(0x40 | reg >> 3)); e8(b, (u8)(0xb8 | (reg & 7))); e32(b, (u32)imm);
    } else if ((s64)imm == (s32)imm) {
        e8(b, (u8)(0x48 | reg >> 3)); e8(b, 0xc7); e8(b, (u8)(0xc0 | (reg & 7))); e32(b, (u32)imm);
    } else {
        e8(b, (u8)(0x48 | reg >> 3)); e8(b, (u8)(0xb8 | (reg & 7))); e64(b, imm);
    }
}

void tr_load_rip(struct xl *x, struct buf *b, unsigned reg, s32 off)
{
    if (x->fixed) {
        load_imm(b, reg, x->page_la + (u64)(s64)off);
        return;
    }
    e_load_vcpu(b, reg, VOFF(vbase));
    if (off)
        e_lea(b, x->m64 || x->seg, reg, reg, off);
}

static bool needs_seg_base(const struct xl *x, unsigned seg)
{
    if (seg == SEG_FS || seg == SEG_GS)
        return true;
    return !x->m64 && !(x->mode & (seg == SEG_CS ? MODE_CSFLAT : MODE_FLAT));
}
/* add s1, [seg.base]; 32-bit outside 64-bit mode */
static void add_seg_base(struct xl *x, unsigned seg)
{
    struct buf *b = &x->hot;
    e8(b, rex(x->m64, H_S1, 0, H_VCPU)); e8(b, 0x03);
    e_modrm_disp(b, H_S1, H_VCPU, (s32)(offsetof(struct vcpu, seg) + seg * sizeof(struct seg) +
                                        offsetof(struct seg, base)) - VCPU_BIAS);
}
/*
 * Outside 64-bit mode: is the access at offset s1, computed by hot code from `ea` on, within its segment? MODE_FLAT
 * answers for DS, ES and SS, and MODE_64K for most of it if the offset has 16 bits. `in` describes the operand for C.
 */
static void check_segment(struct xl *x, const struct insn *in, unsigned size, unsigned acc, u32 ea)
{
    struct buf *b = &x->hot;
    struct insn operand = *in;
    if (x->m64 || ((x->mode & MODE_FLAT) && in->seg != SEG_FS && in->seg != SEG_GS && in->seg != SEG_CS))
        return;
    bool whole = (x->mode & MODE_64K) && in->addrsize == 2 && (in->seg == SEG_DS || in->seg == SEG_ES || in->seg == SEG_SS);
    if (whole && (size == 1 || (in->base == REG_NONE && in->index == REG_NONE && (u16)in->disp + size <= 0x10000)))
        return;
    operand.mem_size = (u16)size;
    operand.mem_acc = (acc & ACC_R ? OPA_R : 0) | (acc & ACC_W ? OPA_W : 0);
    u32 end = hot_at(x);
    if (whole) { /* cmp s1d, 10000h - size; ja */
        e8(b, 0x41); e8(b, 0x81); e8(b, 0xf8 | (H_S1 & 7)); e32(b, 0x10000u - size);
        xl_bind(x, xl_jcc(x, SEC_HOT, 7), SEC_COLD, cold_at(x));
    } else {
        e_lea(b, true, H_S2, H_S1, (s32)size - 1);
        e_rm64(b, 0x3b, H_S2, H_VCPU, (s32)offsetof(struct vcpu, seg_max[in->seg][!!(acc & ACC_W)]) - VCPU_BIAS);
        xl_bind(x, xl_jcc(x, SEC_HOT, 15), SEC_COLD, cold_at(x));
    }
    tr_check_cold(x, &operand, sys_check_segment, ea, end, hot_at(x));
}

/* movzx s1d, reg16 */
static void e_word_to_s1(struct buf *b, unsigned reg)
{
    e8(b, rex(0, H_S1, 0, reg)); e8(b, 0x0f); e8(b, 0xb7); e8(b, (u8)(0xc0 | (H_S1 & 7) << 3 | (reg & 7)));
}

/* The guest register `g` as a host register, loaded into `tmp` if it lives in memory. */
static unsigned in_reg(struct buf *b, unsigned g, unsigned tmp)
{
    if (g == REG_NONE)
        return REG_NONE;
    if (!gpr_in_slot(g))
        return host_gpr[g];
    e_load_vcpu(b, tmp, REG_OFF(g));
    return tmp;
}

/* Effective address, without the segment's base, into s1. */
void tr_ea(struct xl *x, const struct insn *in, s32 disp_extra)
{
    struct buf *b = &x->hot;
    s64 disp = in->disp + disp_extra;
    bool wide = in->addrsize == 8;
    if (in->moffs) {
        load_imm(b, H_S1, wide ? (u64)disp : in->addrsize == 4 ? (u32)disp : (u16)disp);
    } else if (in->base == BASE_RIP) {
        tr_load_rip(x, b, H_S1, (s32)disp + x->off[x->cur] + in->len);
        if (!wide)
            e_rr32(b, 0x8b, H_S1, H_S1);
    } else if (in->base == REG_NONE && in->index == REG_NONE) {
        load_imm(b, H_S1, wide ? (u64)disp : in->addrsize == 4 ? (u32)disp : (u16)disp);
    } else if (in->addrsize == 2 && in->index == REG_NONE && !disp) {
        e_word_to_s1(b, host_gpr[in->base]);
    } else {
        unsigned base = in_reg(b, in->base, H_S1), index = in_reg(b, in->index, H_S2);
        e_lea_full(b, wide, H_S1, base, index, in->scale, (s32)disp);
        if (in->addrsize == 2)
            e_word_to_s1(b, H_S1);
    }
}

/* The extent that the access asks before the table. */
static s32 own_extent(struct xl *x, const struct guard *g)
{
    if (!(x->mode & MODE_EXTENT) || x->slot != SLOT_K || g->size > EXTENT_ACCESS ||
        cache_wants(x->cache, x->page_pa + x->off[x->cur], x->mode, WANT_NO_COPY))
        return 0;
    unsigned nr = (g->stack ? EXTENT_STACK : 0) + (g->acc & ACC_W ? EXTENT_WRITE : EXTENT_READ);
    return (s32)(OFF_KLOOP + offsetof(struct loop_entries, extent[nr])) - VCPU_BIAS;
}
static s32 own_copy(struct xl *x)
{
    if (x->cur >= x->loop || x->slot == SLOT_KAC || (x->mode & MODE_AC) ||
        cache_wants(x->cache, x->page_pa + x->off[x->cur], x->mode, WANT_NO_COPY))
        return 0;
    u32 area = x->slot >= SLOT_U ? OFF_ULOOP : OFF_KLOOP;
    return (s32)(area + offsetof(struct loop_entries, entry[x->vm->next_loop++ % NR_LOOP])) - VCPU_BIAS;
}
static void call_slow(struct xl *x, const struct guard *g)
{
    static const enum stub loop[] = { STUB_LOOP_KR, STUB_LOOP_KW, STUB_LOOP_UR, STUB_LOOP_UW };
    bool write = g->acc & ACC_W;
    xl_call_stub(x, SEC_COLD, g->extent ? (write ? STUB_EXTENT_W : STUB_EXTENT_R) : g->loop ? loop[(x->slot >= SLOT_U) * 2 + write] : STUB_SLOW);
}

/* The check on s1 = EA; leaves s2 = host page or delta, and for FORM_SUM s1 = page offset. */
static void check(struct xl *x, struct guard *g)
{
    struct buf *b = &x->hot;
    const struct tlb_geometry *geo = &tlb_geo[x->slot];
    s32 tlb = (s32)geo->tlb_off - VCPU_BIAS;
    s32 tag = g->acc & ACC_W ? (s32)offsetof(struct tlb_entry, tag_w) : (s32)offsetof(struct tlb_entry, tag_r);
    s32 last = g->form == FORM_SUM ? (s32)offsetof(struct tlb_entry, host) : (s32)offsetof(struct tlb_entry, delta);
    bug_on(g->size == 0 || g->size > 512);
    g->loop = own_extent(x, g);
    g->extent = g->loop;
    if (g->extent) {
        bug_on(g->form != FORM_SUM);
        bool write = g->acc & ACC_W;
        unsigned at = write ? H_S1 : H_S2;
        if (!write && (x->mode & MODE_REAL)) { /* what it reads mostly lies in an extent that starts at 0: cmp s1, [low]; jae */
            e_rm64(b, 0x3b, H_S1, H_VCPU, (s32)(OFF_KLOOP + offsetof(struct loop_entries, low[g->stack])) - VCPU_BIAS);
            g->jcc = xl_jcc(x, SEC_HOT, 3);
        } else {
            if (!write) /* the operation need not wait for the subtraction */
                e_rr32(b, 0x8b, at, H_S1);
            e_rm64(b, 0x2b, at, H_VCPU, g->loop + (s32)offsetof(struct extent, start));
            e_rm64(b, 0x3b, at, H_VCPU, g->loop + (s32)offsetof(struct extent, limit));
            g->jcc = xl_jcc(x, SEC_HOT, 7);
        }
        e_load_vcpu(b, H_S2, g->loop + (s32)(write ? offsetof(struct extent, host) : offsetof(struct extent, delta)));
        g->resume = hot_at(x);
        xl_clobber(x);
        return;
    }
    g->loop = own_copy(x);
    if (g->loop) {
        bool sum = g->form == FORM_SUM;
        e_rm64(b, 0x2b, H_S1, H_VCPU, g->loop + (s32)offsetof(struct loop_entry, tag));
        e8(b, 0x49); e8(b, 0x81); e8(b, 0xf8 | (H_S1 & 7)); e32(b, 4096u - g->size);
        g->jcc = xl_jcc(x, SEC_HOT, 7);
        e_load_vcpu(b, H_S2, g->loop + (s32)(sum ? offsetof(struct loop_entry, host) : offsetof(struct loop_entry, delta)));
        g->resume = hot_at(x);
        xl_clobber(x);
        return;
    }
    /* rorx s2, s1, TLB_SHIFT; hashed: rorx s2, s1, HASH_SHIFT; xor s2, s1; rorx s2, s2, TLB_SHIFT */
    if (x->hashed) {
        e_rorx(b, H_S2, H_S1, HASH_SHIFT);
        e_rr64(b, 0x33, H_S2, H_S1);
        e_rorx(b, H_S2, H_S2, TLB_SHIFT);
    } else {
        e_rorx(b, H_S2, H_S1, TLB_SHIFT);
    }
    /* and s2d, mask */
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xe0 | (H_S2 & 7)); e32(b, geo->tlb_mask);
    /* sub s1, [vcpu + s2 + tag] */
    e8(b, rex(1, H_S1, H_S2, H_VCPU)); e8(b, 0x2b); e_modrm_sib(b, H_S1, H_VCPU, H_S2, 1, tlb + tag);
    if (x->mode & MODE_AC) {
        g->jcc = xl_jmp(x, SEC_HOT);
    } else { /* cmp s1, 4096 - size; ja slow */
        e8(b, 0x49); e8(b, 0x81); e8(b, 0xf8 | (H_S1 & 7)); e32(b, 4096u - g->size);
        g->jcc = xl_jcc(x, SEC_HOT, 7);
    }
    /* mov s2, [vcpu + s2 + last] */
    e8(b, rex(1, H_S2, H_S2, H_VCPU)); e8(b, 0x8b); e_modrm_sib(b, H_S2, H_VCPU, H_S2, 1, tlb + last);
    g->resume = hot_at(x);
    xl_clobber(x);
}

static void begin(struct xl *x, struct guard *g, unsigned size, unsigned acc, bool stack)
{
    if (x->live[x->cur])
        xl_need_saved(x);
    tr_held_none(x);
    g->size = (u16)size;
    g->acc = (u8)acc;
    g->stack = stack;
    g->shared = false;
}

/* The slow path of a shared check: no operation of its own. */
static void group_slow(struct xl *x, struct guard *g)
{
    xl_bind(x, g->jcc, SEC_COLD, cold_at(x));
    call_slow(x, g);
    xl_bind(x, xl_jmp(x, SEC_COLD), SEC_HOT, g->resume);
    struct group_site site = { .s = {
        .s = { .off = x->off[x->cur], .len = x->in[x->cur].len, .kind = g->stack },
        .size = g->size, .acc = g->acc, .form = g->form & 1, .slot = x->slot & 3, .hashed = x->hashed, .group = x->grp.nr, .loop = g->loop, .extent = g->extent,
    } };
    e_bytes(&x->cold, &site, sizeof(site));
}

/*
 * 16-bit addresses: s1 = offset of a group's span to linear address. Where the span wraps, or runs beyond the segment, its
 * instructions are made again with a check each: a record without a size says so (engine_slow).
 */
static void check_span(struct xl *x, unsigned seg)
{
    struct buf *b = &x->hot, *c = &x->cold;
    if (tr_share_width(x) != 2)
        return;
    /* cmp s1d, 10000h - size; ja */
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xf8 | (H_S1 & 7)); e32(b, 0x10000u - x->grp.size);
    xl_bind(x, xl_jcc(x, SEC_HOT, 7), SEC_COLD, cold_at(x));
    e_rr32(c, 0x33, H_S2, H_S2);
    xl_call_stub(x, SEC_COLD, STUB_SLOW);
    xl_bind(x, xl_jmp(x, SEC_COLD), SEC_COLD, cold_at(x)); /* it does not come back */
    struct group_site site = { .s = {
        .s = { .off = x->off[x->cur], .len = x->in[x->cur].len, .kind = seg == SEG_SS }, .slot = x->slot & 3, .group = x->grp.nr,
    } };
    e_bytes(c, &site, sizeof(site));
    add_seg_base(x, seg);
}

/*
 * An access [base + disp] that may share: the group's check if this starts one, nothing if a check before
 * covers it. False: it needs a check of its own.
 */
static bool shared(struct xl *x, unsigned base, s32 disp, unsigned size, unsigned acc, bool stack, struct guard *g)
{
    if (!x->grp.active) {
        if (!tr_plan_group(x, base, REG_NONE, 1))
            return false;
        begin(x, g, x->grp.size, x->grp.acc, stack);
        g->form = FORM_DELTA;
        e_lea_full(&x->hot, true, H_S1, host_gpr[base], REG_NONE, 1, x->grp.lo);
        check(x, g);
        group_slow(x, g);
    }
    *g = (struct guard){ .shared = true, .size = (u16)size, .acc = (u8)acc, .form = FORM_DELTA, .stack = stack,
                         .mem = { host_gpr[base], H_S2, disp } };
    return true;
}

/* The same for operands whose address needs computing: it stays in s1 and s2. */
static bool shared_sum(struct xl *x, const struct insn *in, unsigned size, unsigned acc, struct guard *g)
{
    s32 off = tr_mem_off(x, x->cur);
    if (!x->grp.active) {
        if (!tr_plan_group(x, in->base, in->index, in->scale))
            return false;
        begin(x, g, x->grp.size, x->grp.acc, in->seg == SEG_SS);
        g->form = FORM_SUM;
        tr_ea(x, in, x->grp.lo - off);
        check_span(x, in->seg);
        check(x, g);
        group_slow(x, g);
    }
    off += tr_group_moved(x);
    *g = (struct guard){ .shared = true, .size = (u16)size, .acc = (u8)acc, .form = FORM_SUM, .stack = in->seg == SEG_SS,
                         .mem = { H_S1, H_S2, off - x->grp.lo } };
    return true;
}

/* The offset [sp + disp] into s1, outside 64-bit mode */
static void stack_ea(struct xl *x, s32 disp)
{
    bool word = !(x->mode & MODE_SS32);
    if (!word || disp)
        e_lea_full(&x->hot, false, H_S1, H_SP, REG_NONE, 1, disp);
    if (word)
        e_word_to_s1(&x->hot, disp ? H_S1 : H_SP);
}

/* Push, pop, call and ret outside 64-bit mode */
static bool shared_stack(struct xl *x, s32 disp, unsigned size, unsigned acc, struct guard *g)
{
    if (!x->grp.active) {
        if (!tr_plan_group(x, RSP, REG_NONE, 1))
            return false;
        begin(x, g, x->grp.size, x->grp.acc, true);
        g->form = FORM_SUM;
        stack_ea(x, x->grp.lo);
        check_span(x, SEG_SS);
        check(x, g);
        group_slow(x, g);
    }
    *g = (struct guard){ .shared = true, .size = (u16)size, .acc = (u8)acc, .form = FORM_SUM, .stack = true,
                         .mem = { H_S1, H_S2, disp + tr_group_moved(x) - x->grp.lo } };
    return true;
}

void tr_guard(struct xl *x, const struct insn *in, unsigned size, unsigned acc, s32 disp_extra, bool plain,
              struct guard *g)
{
    s64 disp = in->disp + disp_extra;
    bool simple = !plain && tr_simple_base(x, in);
    if (tr_window(x, in, disp_extra, plain, g))
        return;
    bool window = x->mode & MODE_WINDOW; /* groups have no check there */
    if (!window && simple && in->how == HOW_COPY && !in->mask && !insn_vex_masked(in) && shared(x, in->base, (s32)disp, size, acc, in->seg == SEG_SS, g))
        return;
    if (!window && !simple && !plain && in->how == HOW_COPY && in->addrsize == tr_share_width(x) &&
        !in->moffs && !in->vsib && !in->mask &&
        !insn_vex_masked(in) && in->seg != SEG_FS && in->seg != SEG_GS && (x->m64 || in->seg != SEG_CS) &&
        (in->base != REG_NONE || in->index != REG_NONE) && in->disp >= -(1 << 30) && in->disp <= 1 << 30 &&
        shared_sum(x, in, size, acc, g))
        return;
    begin(x, g, size, acc, in->seg == SEG_SS);
    u32 ea = hot_at(x);
    tr_ea(x, in, disp_extra);
    if (!x->m64) {
        struct insn operand = *in;
        operand.disp = disp;
        check_segment(x, &operand, size, acc, ea);
    }
    if (needs_seg_base(x, in->seg))
        add_seg_base(x, in->seg);
    g->form = simple ? FORM_DELTA : FORM_SUM;
    check(x, g);
    g->mem = simple ? (struct hostmem){ host_gpr[in->base], H_S2, (s32)disp } : (struct hostmem){ H_S1, H_S2, 0 };
}

/* What needs a third scratch register, and what is rare, is the helper's. */
bool tr_bits_in_line(const struct xl *x, const struct insn *in)
{
    return x->m64 && in->addrsize == 8 && in->opsize >= 4 && in->seg != SEG_FS && in->seg != SEG_GS && !(x->mode & MODE_WINDOW) &&
           !(in->index != REG_NONE && gpr_in_slot(in->index)) && (tr_simple_base(x, in) || !gpr_in_slot(in->reg));
}

/* SDM vol. 2, BT: the word at EA + (index >> 5) * 4, or (index >> 6) * 8, with a sign. */
void tr_guard_bits(struct xl *x, const struct insn *in, struct guard *g)
{
    struct buf *b = &x->hot;
    bool wide = in->opsize == 8;
    begin(x, g, in->opsize, in->mem_acc, in->seg == SEG_SS);
    tr_ea(x, in, 0);
    if (gpr_in_slot(in->reg)) { /* mov s2, [slot], or movsxd s2, [slot] */
        e_rm64(b, wide ? 0x8b : 0x63, H_S2, H_VCPU, REG_OFF(in->reg));
    } else {
        e_rr64(b, wide ? 0x8b : 0x63, H_S2, host_gpr[in->reg]);
    }
    e8(b, 0x49); e8(b, 0xc1); e8(b, 0xf8 | (H_S2 & 7)); e8(b, wide ? 6 : 5); /* sar s2, imm8 */
    e_lea_full(b, true, H_S1, H_S1, H_S2, in->opsize, 0);
    g->form = FORM_DELTA;
    check(x, g);
    g->mem = tr_simple_base(x, in) ? (struct hostmem){ host_gpr[in->base], H_S2, (s32)in->disp } : (struct hostmem){ H_S1, H_S2, 0 };
}

void tr_guard_stack(struct xl *x, s32 disp, unsigned size, unsigned acc, struct guard *g)
{
    bool simple = x->m64;
    const struct insn *in = &x->in[x->cur];
    if (x->mode & MODE_WINDOW) {
        tr_window_stack(x, disp, g);
        return;
    }
    if (simple && !in->has_mem && size == 8 && shared(x, RSP, disp, size, acc, true, g))
        return;
    if (!simple && !in->has_mem && size == tr_share_width(x) && shared_stack(x, disp, size, acc, g))
        return;
    begin(x, g, size, acc, true);
    u32 ea = hot_at(x);
    if (x->m64) {
        e_lea_full(&x->hot, true, H_S1, H_SP, REG_NONE, 1, disp);
    } else {
        stack_ea(x, disp);
        struct insn operand = *in;
        operand.base = RSP;
        operand.index = REG_NONE;
        operand.disp = disp;
        operand.seg = SEG_SS;
        operand.addrsize = x->mode & MODE_SS32 ? 4 : 2;
        operand.moffs = operand.vsib = false;
        check_segment(x, &operand, size, acc, ea);
        if (needs_seg_base(x, SEG_SS))
            add_seg_base(x, SEG_SS);
    }
    g->form = simple ? FORM_DELTA : FORM_SUM;
    check(x, g);
    g->mem = simple ? (struct hostmem){ H_SP, H_S2, disp } : (struct hostmem){ H_S1, H_S2, 0 };
}

void tr_guard_linear(struct xl *x, unsigned size, struct guard *g)
{
    begin(x, g, size, ACC_R, false);
    g->form = FORM_SUM;
    check(x, g);
    g->mem = (struct hostmem){ H_S1, H_S2, 0 };
}

void tr_guard_end(struct xl *x, struct guard *g, u32 op, bool final)
{
    if (g->shared)
        return;
    u32 op_end = hot_at(x);
    bool copy = g->acc & ACC_W;
    const struct insn *in = &x->in[x->cur];
    xl_bind(x, g->jcc, SEC_COLD, cold_at(x));
    call_slow(x, g);
    xl_bind(x, xl_jmp(x, SEC_COLD), SEC_HOT, g->resume);
    u32 at = cold_at(x);
    struct slow_site site = {
        .s = { .off = x->off[x->cur], .len = in->len, .kind = g->stack },
        .size = g->size, .acc = g->acc, .form = g->form & 1, .slot = x->slot & 3, .hashed = x->hashed, .final = final, .copy = copy,
        .masked = (in->enc == ENC_EVEX && in->mask) || insn_vex_masked(in), .aligned = in->how == HOW_COPY && insn_aligned(in),
        .loose = insn_aligned(in) || insn_vex_masked(in),
        .locked = (in->prefixes & PFX_LOCK) || in->id == I_XCHG, .loop = g->loop, .extent = g->extent,
    };
    e_bytes(&x->cold, &site, sizeof(site));
    if (!copy)
        return;
    e_bytes(&x->cold, x->hot_buf + op, op_end - op);
    /* Host flags are live after the operation only if it, or a restore in it, left them there. */
    xl_call_stub(x, SEC_COLD, x->fstate == FLAGS_SAVED ? STUB_COMMIT_SAVED : STUB_COMMIT_HOST);
    u32 behind = cold_at(x);
    xl_bind(x, xl_jmp(x, SEC_COLD), SEC_HOT, op_end);
    bug_on(behind - at > 255);
    e8(&x->cold, (u8)(behind - at)); /* the stub finds the record by it */
}
