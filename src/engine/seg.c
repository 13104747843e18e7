/*
 * seg.c - operands and segments: effective addresses, limit checks, descriptor loads.
 * Source: Intel SDM vol. 3 §3.4-3.5, §5.2-5.6, and the instructions' pages in vol. 2.
 *
 * Deviations: a null selector in FS or GS clears the base (Intel; AMD keeps it). The null descriptor's
 * SS keeps DPL = CPL. A stack access that would wrap in the middle of one transfer takes #SS.
 */
#include "engine/seg.h"

/* -- Registers and ModRM operands ------------------------------------------------------------------ */

u64 gpr_read(const struct vcpu *v, unsigned reg, unsigned size, bool rex)
{
    if (size == 1 && !rex && reg >= 4 && reg < 8)
        return (v->regs[reg - 4] >> 8) & 0xff;
    return size == 8 ? v->regs[reg] : v->regs[reg] & (BITULL(size * 8) - 1);
}

void gpr_write(struct vcpu *v, unsigned reg, unsigned size, bool rex, u64 val)
{
    if (size == 8) {
        v->regs[reg] = val;
    } else if (size == 4) {
        v->regs[reg] = (u32)val;
    } else if (size == 2) {
        v->regs[reg] = (v->regs[reg] & ~0xffffull) | (val & 0xffff);
    } else if (!rex && reg >= 4 && reg < 8) {
        v->regs[reg - 4] = (v->regs[reg - 4] & ~0xff00ull) | (val & 0xff) << 8;
    } else {
        v->regs[reg] = (v->regs[reg] & ~0xffull) | (val & 0xff);
    }
}

enum xret rm_read(struct vcpu *v, const struct insn *in, unsigned size, u64 *val)
{
    if (!in->has_mem) {
        *val = gpr_read(v, in->rm, size, in->prefixes & PFX_REX);
        return X_OK;
    }

    gla_t la;
    enum xret r = insn_linear(v, in, size, ACC_R, &la);

    if (r != X_OK)
        return r;
    *val = 0;
    return mem_read(v, la, val, size, ACC_R | vcpu_acc(v));
}

enum xret rm_write(struct vcpu *v, const struct insn *in, unsigned size, u64 val)
{
    if (!in->has_mem) {
        gpr_write(v, in->rm, size, in->prefixes & PFX_REX, val);
        return X_OK;
    }

    gla_t la;
    enum xret r = insn_linear(v, in, size, ACC_W, &la);

    if (r != X_OK)
        return r;
    return mem_write(v, la, &val, size, ACC_W | vcpu_acc(v));
}

/* -- Effective and linear addresses ------------------------------------------------------------------ */

gva_t insn_offset(const struct vcpu *v, const struct insn *in)
{
    u64 ea = (u64)in->disp;

    if (!in->moffs) {
        if (in->base == BASE_RIP)
            ea += v->rip + in->len;
        else if (in->base != REG_NONE)
            ea += v->regs[in->base & 15];
        if (in->index != REG_NONE && !in->vsib)
            ea += v->regs[in->index & 15] * in->scale;
    }
    return in->addrsize == 8 ? ea : in->addrsize == 4 ? (u32)ea : (u16)ea;
}

static inline enum xret seg_fault(struct vcpu *v, unsigned segreg)
{
    return raise_error(v, segreg == SEG_SS ? VEC_SS : VEC_GP, 0);
}

enum xret seg_linear(struct vcpu *v, unsigned segreg, gva_t off, unsigned size, unsigned acc, gla_t *la)
{
    const struct seg *s = &v->seg[segreg];

    if (likely(vcpu_code64(v))) {
        u64 a = segreg >= SEG_FS ? off + s->base : off;

        if (unlikely(!is_canonical(a) || !is_canonical(a + (size ? size - 1 : 0))))
            return seg_fault(v, segreg);
        *la = a;
        return X_OK;
    }
    if (vcpu_protected(v) && !vcpu_v86(v)) {
        if (s->attr & SEG_UNUSABLE)
            return seg_fault(v, segreg);
        if ((acc & ACC_W) && !attr_is_writable(s->attr))
            return seg_fault(v, segreg);
        if ((acc & ACC_R) && (s->attr & (SEG_CODE | SEG_R)) == SEG_CODE)
            return seg_fault(v, segreg);
    }
    if (!seg_holds(s, off, size ? size : 1))
        return seg_fault(v, segreg);
    *la = (u32)(s->base + off);
    return X_OK;
}

enum xret insn_linear(struct vcpu *v, const struct insn *in, unsigned size, unsigned acc, gla_t *la)
{
    return seg_linear(v, in->seg, insn_offset(v, in), size, acc, la);
}

/* -- Stacks ----------------------------------------------------------------------------------------- */

enum xret stack_pop(struct vcpu *v, unsigned delta, unsigned n, unsigned size, u64 *val)
{
    _Alignas(8) u8 raw[9 * 8];
    gla_t la;
    enum xret r = seg_linear(v, SEG_SS, (v->regs[RSP] + delta) & stack_mask(v), n * size, ACC_R, &la);

    if (r != X_OK)
        return r;
    r = mem_read(v, la, size == 8 ? (u8 *)val : raw, n * size, ACC_R | vcpu_acc(v));
    if (r != X_OK || size == 8)
        return r;
    for (unsigned i = 0; i < n; i++)
        val[i] = size == 4 ? *(const u32 *)(raw + i * 4) : *(const u16 *)(raw + i * 2);
    return X_OK;
}

enum xret stack_push(struct vcpu *v, const struct seg *ss, u64 mask, unsigned cpl, u32 err, const u64 *val,
                     unsigned n, unsigned size, u64 *sp)
{
    unsigned acc = ACC_W | (cpl == 3 ? ACC_USER : ACC_SYS), len = n * size;
    _Alignas(8) u8 raw[48 * 8];
    const void *src = val;
    u64 top = *sp - len;
    gla_t la = top;
    enum xret r;

    if (mask) {
        top &= mask;
        /* V86 and real mode have no type to check; elsewhere whoever loaded SS did. */
        if (!seg_holds(ss, top, len) || top + len - 1 > mask)
            return raise_error(v, VEC_SS, err);
        la = (u32)(ss->base + top);
    } else if (!is_canonical(top) || !is_canonical(top + len - 1)) {
        return raise_error(v, VEC_SS, err);
    }
    if (size != 8) {
        for (unsigned i = 0; i < n; i++) {
            if (size == 4)
                *(u32 *)(raw + i * 4) = (u32)val[i];
            else
                *(u16 *)(raw + i * 2) = (u16)val[i];
        }
        src = raw;
    }
    r = mem_write(v, la, src, len, acc);
    if (r == X_OK)
        *sp = mask ? stack_merge(*sp, top, mask) : top;
    return r;
}

enum xret tss_stack64(struct vcpu *v, unsigned index, u32 ext, u64 *rsp)
{
    const struct seg *tr = &v->seg[SEG_TR];
    unsigned off = 4 + index * 8; /* RSP0 at 4, IST1 at 36: the reserved quadword between is index 3 */

    if ((tr->attr & SEG_UNUSABLE) || off + 7 > tr->limit)
        return raise_error(v, VEC_TS, sel_error(tr->sel, ext));
    return mem_read(v, tr->base + off, rsp, 8, ACC_R | ACC_SYS);
}

enum xret tss_stack32(struct vcpu *v, unsigned cpl, u32 ext, struct seg *ss, u64 *sp)
{
    const struct seg *tr = &v->seg[SEG_TR];
    bool wide = tr->attr & 8; /* 32-bit TSS: types 9 and 11 */
    unsigned off = wide ? 4 + cpl * 8 : 2 + cpl * 4, last = off + (wide ? 5 : 3);
    enum xret r;
    u16 sel;
    u64 d;
    gla_t addr;

    if ((tr->attr & SEG_UNUSABLE) || last > tr->limit)
        return raise_error(v, VEC_TS, sel_error(tr->sel, ext));
    *sp = 0;
    r = mem_read(v, (u32)(tr->base + off), sp, wide ? 4 : 2, ACC_R | ACC_SYS);
    if (r == X_OK)
        r = mem_read(v, (u32)(tr->base + off + (wide ? 4 : 2)), &sel, 2, ACC_R | ACC_SYS);
    if (r != X_OK)
        return r;
    if (sel_is_null(sel))
        return raise_error(v, VEC_TS, ext);
    r = desc_read(v, sel, VEC_TS, ext, &d, &addr);
    if (r != X_OK)
        return r;
    if ((sel & 3) != cpl || attr_dpl(desc_attr(d)) != cpl || !attr_is_writable(desc_attr(d)))
        return raise_error(v, VEC_TS, sel_error(sel, ext));
    if (!(desc_attr(d) & SEG_P))
        return raise_error(v, VEC_SS, sel_error(sel, ext));
    r = desc_set_bits(v, addr, &d, SEG_A);
    if (r == X_OK)
        seg_fill(v, ss, sel, d);
    return r;
}

/* -- Descriptors -------------------------------------------------------------------------------------- */

/* desc_locate - linear address of `len` bytes of descriptor, or false beyond the table. */
static inline bool desc_locate(const struct vcpu *v, u16 sel, unsigned len, gla_t *addr)
{
    u32 off = sel & 0xfff8u;

    if (sel & 4) {
        const struct seg *ldt = &v->seg[SEG_LDTR];

        if ((ldt->attr & SEG_UNUSABLE) || off + len - 1 > ldt->limit)
            return false;
        *addr = ldt->base + off;
    } else {
        if (off + len - 1 > v->gdtr.limit)
            return false;
        *addr = v->gdtr.base + off;
    }
    if (!vcpu_long_mode(v))
        *addr = (u32)*addr;
    return true;
}

enum xret desc_read(struct vcpu *v, u16 sel, unsigned vector, u32 ext, u64 *desc, gla_t *addr)
{
    gla_t la;

    if (!desc_locate(v, sel, 8, &la))
        return raise_error(v, vector, sel_error(sel, ext));
    if (addr)
        *addr = la;
    return mem_read(v, la, desc, 8, ACC_R | ACC_SYS);
}

enum xret desc_set_bits(struct vcpu *v, gla_t addr, u64 *desc, u32 bits)
{
    u8 byte;

    if (likely((desc_attr(*desc) & bits) == bits))
        return X_OK;
    *desc |= (u64)bits << 40;
    byte = (u8)(*desc >> 40);
    return mem_write(v, addr + 5, &byte, 1, ACC_W | ACC_SYS);
}

void seg_load_real(struct vcpu *v, unsigned segreg, u16 sel)
{
    struct seg *s = &v->seg[segreg];

    s->sel = sel;
    s->base = (u64)sel << 4;
    if (vcpu_v86(v)) {
        s->limit = 0xffff;
        s->attr = SEG_P | SEG_S | SEG_W | SEG_A | ATTR_DPL3;
    } else if (s->attr & SEG_UNUSABLE) {
        /* Real mode keeps limit and size ("unreal" mode lives on that), but null has none to keep. */
        s->limit = 0xffff;
        s->attr = SEG_P | SEG_S | SEG_W | SEG_A;
    }
}

static enum xret load_null(struct vcpu *v, unsigned segreg, u16 sel)
{
    if (segreg == SEG_SS) {
        if (!vcpu_code64(v) || v->cpl == 3 || (sel & 3) != v->cpl)
            return raise_gp0(v);
        v->seg[SEG_SS] = seg_null_stack(v->cpl);
    } else {
        v->seg[segreg] = (struct seg){ .sel = sel, .attr = SEG_UNUSABLE };
    }
    return X_OK;
}

enum xret seg_load(struct vcpu *v, unsigned segreg, u16 sel)
{
    unsigned rpl = sel & 3;
    enum xret r;
    gla_t addr;
    u64 d;

    if (!vcpu_protected(v) || vcpu_v86(v)) {
        seg_load_real(v, segreg, sel);
        vcpu_mode_changed(v);
        return X_OK;
    }
    if (sel_is_null(sel)) {
        r = load_null(v, segreg, sel);
        if (r == X_OK)
            vcpu_mode_changed(v);
        return r;
    }
    r = desc_read(v, sel, VEC_GP, 0, &d, &addr);
    if (r != X_OK)
        return r;

    u32 attr = desc_attr(d);

    if (segreg == SEG_SS) {
        if (rpl != vcpu_shown_cpl(v) || attr_dpl(attr) != rpl || !attr_is_writable(attr))
            return raise_error(v, VEC_GP, sel_error(sel, 0));
        if (!(attr & SEG_P))
            return raise_error(v, VEC_SS, sel_error(sel, 0));
    } else {
        if (!(attr & SEG_S) || (attr & (SEG_CODE | SEG_R)) == SEG_CODE)
            return raise_error(v, VEC_GP, sel_error(sel, 0));
        if (!attr_is_conforming(attr) && MAX(rpl, vcpu_shown_cpl(v)) > attr_dpl(attr))
            return raise_error(v, VEC_GP, sel_error(sel, 0));
        if (!(attr & SEG_P))
            return raise_error(v, VEC_NP, sel_error(sel, 0));
    }
    r = desc_set_bits(v, addr, &d, SEG_A);
    if (r != X_OK)
        return r;
    seg_fill(v, &v->seg[segreg], sel, d);
    vcpu_mode_changed(v);
    return X_OK;
}

void seg_drop_inner(struct vcpu *v, unsigned cpl)
{
    static const u8 data[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };

    for (unsigned i = 0; i < ARRAY_SIZE(data); i++) {
        struct seg *s = &v->seg[data[i]];

        /* A null selector keeps its base: FS and GS bases set by MSR survive the return. */
        if (!(s->attr & SEG_UNUSABLE) && attr_dpl(s->attr) < cpl && !attr_is_conforming(s->attr))
            *s = (struct seg){ .attr = SEG_UNUSABLE };
    }
}

/* -- Segment register moves ---------------------------------------------------------------------------- */

/* mov sreg, r/m16 */
enum xret sys_mov_seg(struct vcpu *v, const struct insn *in)
{
    u64 sel;
    enum xret r;

    if (in->reg == SEG_CS || in->reg > SEG_GS)
        return raise_ud(v);
    r = rm_read(v, in, 2, &sel);
    if (r == X_OK)
        r = seg_load(v, in->reg, (u16)sel);
    if (r == X_OK && in->reg == SEG_SS)
        v->int_shadow = SHADOW_SS;
    return r;
}

/* mov r/m, sreg: registers by operand size, memory always 16 bits */
enum xret sys_mov_from_seg(struct vcpu *v, const struct insn *in)
{
    if (in->reg > SEG_GS)
        return raise_ud(v);
    return rm_write(v, in, in->has_mem ? 2 : in->opsize, v->seg[in->reg].sel);
}

enum xret sys_pop_seg(struct vcpu *v, const struct insn *in)
{
    unsigned segreg;
    u64 mask = stack_mask(v), val;
    enum xret r;

    if (in->map == MAP_0F)
        segreg = in->opcode == 0xa1 ? SEG_FS : SEG_GS;
    else
        segreg = in->opcode >> 3; /* 07 es, 17 ss, 1f ds */
    r = stack_pop(v, 0, 1, in->opsize, &val);
    if (r == X_OK)
        r = seg_load(v, segreg, (u16)val);
    if (r != X_OK)
        return r;
    v->regs[RSP] = stack_merge(v->regs[RSP], v->regs[RSP] + in->opsize, mask);
    if (segreg == SEG_SS)
        v->int_shadow = SHADOW_SS;
    return X_OK;
}

/* les lds lss lfs lgs: a far pointer from memory */
enum xret sys_lfp(struct vcpu *v, const struct insn *in)
{
    unsigned segreg, size = in->opsize;
    u8 raw[10];
    gla_t la;
    enum xret r;

    if (!in->has_mem)
        return raise_ud(v);
    if (in->map == MAP_ONE)
        segreg = in->opcode == 0xc4 ? SEG_ES : SEG_DS;
    else
        segreg = in->opcode == 0xb2 ? SEG_SS : in->opcode == 0xb4 ? SEG_FS : SEG_GS;
    r = insn_linear(v, in, size + 2, ACC_R, &la);
    if (r == X_OK)
        r = mem_read(v, la, raw, size + 2, ACC_R | vcpu_acc(v));
    if (r == X_OK)
        r = seg_load(v, segreg, (u16)(raw[size] | raw[size + 1] << 8));
    if (r != X_OK)
        return r;

    u64 off = 0;

    for (unsigned i = size; i--;)
        off = off << 8 | raw[i];
    gpr_write(v, in->reg, size, true, off);
    return X_OK;
}

/* -- LDTR and TR ------------------------------------------------------------------------------------------ */

static inline bool no_system_segments(const struct vcpu *v) { return !vcpu_protected(v) || vcpu_v86(v); }

/* system_read - a whole system descriptor from the GDT: 8 bytes, 16 in long mode. */
static enum xret system_read(struct vcpu *v, u16 sel, u64 desc[2], gla_t *addr)
{
    unsigned len = vcpu_long_mode(v) ? 16 : 8;

    desc[1] = 0;
    if ((sel & 4) || !desc_locate(v, sel, len, addr))
        return raise_error(v, VEC_GP, sel_error(sel, 0));
    return mem_read(v, *addr, desc, len, ACC_R | ACC_SYS);
}

static void system_fill(const struct vcpu *v, struct seg *s, u16 sel, const u64 desc[2])
{
    seg_fill(v, s, sel, desc[0]);
    s->base |= desc[1] << 32;
}

/* system_is_sound - long mode: canonical base, and type bits of the upper half zero. */
static bool system_is_sound(const u64 desc[2])
{
    return is_canonical(desc_base(desc[0]) | desc[1] << 32) && !((desc[1] >> 40) & 0x1f);
}

enum xret sys_lldt(struct vcpu *v, const struct insn *in)
{
    u64 val, d[2];
    gla_t addr;
    enum xret r;

    if (no_system_segments(v))
        return raise_ud(v);
    if (v->cpl)
        return raise_gp0(v);
    r = rm_read(v, in, 2, &val);
    if (r != X_OK)
        return r;

    u16 sel = (u16)val;

    if (sel_is_null(sel)) {
        v->seg[SEG_LDTR] = (struct seg){ .sel = sel, .attr = SEG_UNUSABLE };
        return X_OK;
    }
    r = system_read(v, sel, d, &addr);
    if (r != X_OK)
        return r;
    if ((desc_attr(d[0]) & (SEG_S | SEG_TYPE)) != SYS_LDT || !system_is_sound(d))
        return raise_error(v, VEC_GP, sel_error(sel, 0));
    if (!(desc_attr(d[0]) & SEG_P))
        return raise_error(v, VEC_NP, sel_error(sel, 0));
    system_fill(v, &v->seg[SEG_LDTR], sel, d);
    return X_OK;
}

enum xret sys_ltr(struct vcpu *v, const struct insn *in)
{
    u64 val, d[2];
    gla_t addr;
    enum xret r;

    if (no_system_segments(v))
        return raise_ud(v);
    if (v->cpl)
        return raise_gp0(v);
    r = rm_read(v, in, 2, &val);
    if (r != X_OK)
        return r;

    u16 sel = (u16)val;

    if (sel_is_null(sel))
        return raise_gp0(v);
    r = system_read(v, sel, d, &addr);
    if (r != X_OK)
        return r;

    u32 type = desc_attr(d[0]) & (SEG_S | SEG_TYPE);

    if ((type != SYS_TSS && (type != SYS_TSS16 || vcpu_long_mode(v))) || !system_is_sound(d))
        return raise_error(v, VEC_GP, sel_error(sel, 0));
    if (!(desc_attr(d[0]) & SEG_P))
        return raise_error(v, VEC_NP, sel_error(sel, 0));
    r = desc_set_bits(v, addr, d, 2); /* busy */
    if (r == X_OK)
        system_fill(v, &v->seg[SEG_TR], sel, d);
    return r;
}

static enum xret store_selector(struct vcpu *v, const struct insn *in, unsigned segreg)
{
    if (no_system_segments(v))
        return raise_ud(v);
    if ((v->cr4 & CR4_UMIP) && v->cpl)
        return raise_gp0(v);
    return rm_write(v, in, in->has_mem ? 2 : in->opsize, v->seg[segreg].sel);
}

enum xret sys_sldt(struct vcpu *v, const struct insn *in) { return store_selector(v, in, SEG_LDTR); }
enum xret sys_str(struct vcpu *v, const struct insn *in) { return store_selector(v, in, SEG_TR); }

/* -- Asking about selectors: the answer is ZF ---------------------------------------------------------- */

static void set_zf(struct vcpu *v, bool zf)
{
    v->fl = (u16)(zf ? v->fl | EFL_ZF << 8 : v->fl & ~(EFL_ZF << 8));
}

enum question { ASK_LAR, ASK_LSL, ASK_VERR, ASK_VERW };

/* Types of system segments LAR and LSL know (SDM vol. 2, tables in their pages), one bit a type. */
#define LAR_LEGACY 0x1a3eu /* 1-5, 9, 11, 12 */
#define LAR_LONG 0x1a04u   /* 2, 9, 11, 12   */
#define LSL_LEGACY 0x0a0eu /* 1-3, 9, 11     */
#define LSL_LONG 0x0a04u   /* 2, 9, 11       */

/* selector_ok - is the descriptor there, of a fit type, and visible at this privilege? X_FAULT: #PF. */
static enum xret selector_ok(struct vcpu *v, u16 sel, enum question ask, u64 *d, bool *ok)
{
    gla_t addr;
    enum xret r;

    *ok = false;
    if (sel_is_null(sel) || !desc_locate(v, sel, 8, &addr))
        return X_OK;
    r = mem_read(v, addr, d, 8, ACC_R | ACC_SYS);
    if (r != X_OK)
        return r;

    u32 attr = desc_attr(*d), types;

    if (!(attr & SEG_S)) {
        if (ask == ASK_VERR || ask == ASK_VERW)
            return X_OK;
        if (ask == ASK_LAR)
            types = vcpu_long_mode(v) ? LAR_LONG : LAR_LEGACY;
        else
            types = vcpu_long_mode(v) ? LSL_LONG : LSL_LEGACY;
        if (!(types >> (attr & SEG_TYPE) & 1))
            return X_OK;
    } else if (ask == ASK_VERW) {
        if (!attr_is_writable(attr))
            return X_OK;
    } else if (ask == ASK_VERR) {
        if ((attr & (SEG_CODE | SEG_R)) == SEG_CODE)
            return X_OK;
    }
    *ok = attr_is_conforming(attr) || MAX(sel & 3u, v->cpl) <= attr_dpl(attr);
    return X_OK;
}

static enum xret ask_selector(struct vcpu *v, const struct insn *in, enum question ask)
{
    u64 sel, d = 0;
    bool ok;
    enum xret r;

    if (no_system_segments(v))
        return raise_ud(v);
    r = rm_read(v, in, 2, &sel);
    if (r == X_OK)
        r = selector_ok(v, (u16)sel, ask, &d, &ok);
    if (r != X_OK)
        return r;
    if (ok && ask == ASK_LAR)
        gpr_write(v, in->reg, in->opsize, true, (d >> 32) & (in->opsize == 2 ? 0xff00u : 0xffff00u));
    if (ok && ask == ASK_LSL)
        gpr_write(v, in->reg, in->opsize, true, desc_limit(d));
    set_zf(v, ok);
    return X_OK;
}

enum xret sys_lar(struct vcpu *v, const struct insn *in) { return ask_selector(v, in, ASK_LAR); }
enum xret sys_lsl(struct vcpu *v, const struct insn *in) { return ask_selector(v, in, ASK_LSL); }
enum xret sys_verr(struct vcpu *v, const struct insn *in) { return ask_selector(v, in, ASK_VERR); }
enum xret sys_verw(struct vcpu *v, const struct insn *in) { return ask_selector(v, in, ASK_VERW); }

enum xret sys_arpl(struct vcpu *v, const struct insn *in)
{
    u64 dst, src = gpr_read(v, in->reg, 2, true);
    enum xret r;

    if (no_system_segments(v))
        return raise_ud(v);
    r = rm_read(v, in, 2, &dst);
    if (r != X_OK)
        return r;

    bool raise_rpl = (dst & 3) < (src & 3);

    if (raise_rpl) {
        r = rm_write(v, in, 2, (dst & ~3ull) | (src & 3));
        if (r != X_OK)
            return r;
    }
    set_zf(v, raise_rpl);
    return X_OK;
}
