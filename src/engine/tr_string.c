/*
 * tr_string.c - movs, stos and lods without a repeat prefix, in line: boot loaders and small C libraries copy memory
 * one element at a time with them. Source: SDM vol. 2 (each). rep movs and rep stos on flat segments: a stub does what it can
 * reach through the TLB (stubs.S), and help_string.c the rest, as it does all of the others.
 */
#include "engine/translate.h"

/* The element at [rSI] or [rDI] as an ordinary operand. */
static struct insn element(const struct insn *in, unsigned base, unsigned seg)
{
    struct insn e = *in;
    e.has_mem = true;
    e.moffs = e.vsib = false;
    e.base = (u8)base;
    e.index = REG_NONE;
    e.scale = 1;
    e.disp = 0;
    e.seg = (u8)seg;
    return e;
}

/* op reg, reg at the width of an address; /digit forms are the caller's */
static void e_addr(struct buf *b, unsigned addrsize, u8 op, unsigned reg, unsigned rm)
{
    if (addrsize == 2)
        e8(b, 0x66);
    u8 r = rex(addrsize == 8, reg, 0, rm);
    if (r != 0x40)
        e8(b, r);
    e8(b, op);
    e8(b, (u8)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

/* s2 = DF set ? 2 * size : 0. Clobbers host flags. */
static void load_df(struct xl *x, unsigned size)
{
    struct buf *b = &x->hot;
    unsigned log = (unsigned)__builtin_ctz(size);
    /* mov s2d, [eflags]; and s2d, DF; shr s2d, 9 - log */
    e8(b, 0x45); e8(b, 0x8b); e_modrm_disp(b, H_S2, H_VCPU, VOFF(eflags));
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xe0 | (H_S2 & 7)); e32(b, EFL_DF);
    e8(b, 0x41); e8(b, 0xc1); e8(b, 0xe8 | (H_S2 & 7)); e8(b, (u8)(9 - log));
}

/* reg += size - s2, at the width of an address: add reg, size; sub reg, s2 */
static void step(struct xl *x, const struct insn *in, unsigned reg, unsigned size)
{
    struct buf *b = &x->hot;
    e_addr(b, in->addrsize, 0x83, 0, reg);
    e8(b, (u8)size);
    e_addr(b, in->addrsize, 0x2b, reg, H_S2);
}

static u8 mov(u8 op, unsigned size)
{
    return size == 1 ? op & 0xfe : op;
}

static void movs(struct xl *x, const struct insn *in, unsigned size)
{
    struct insn src = element(in, RSI, in->seg_override ? in->seg : SEG_DS), dst = element(in, RDI, SEG_ES);
    struct guard g;

    tr_guard(x, &src, size, ACC_R, 0, true, &g);
    u32 op = hot_at(x);
    e_mem(&x->hot, mov(0x8b, size), size, H_S1, &g.mem);
    e_store_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
    tr_guard_end(x, &g, op, false);

    tr_guard(x, &dst, size, ACC_W, 0, true, &g);
    op = hot_at(x);
    e_lea_full(&x->hot, true, H_S2, g.mem.base, g.mem.index, 1, g.mem.disp);
    e_load_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
    const struct hostmem m = { H_S2, REG_NONE, 0 };
    e_mem(&x->hot, mov(0x89, size), size, H_S1, &m);
    load_df(x, size);
    step(x, in, RSI, size);
    step(x, in, RDI, size);
    tr_guard_end(x, &g, op, true);
}

static void stos(struct xl *x, const struct insn *in, unsigned size)
{
    struct insn dst = element(in, RDI, SEG_ES);
    struct guard g;

    tr_guard(x, &dst, size, ACC_W, 0, true, &g);
    u32 op = hot_at(x);
    e_mem(&x->hot, mov(0x89, size), size, RAX, &g.mem);
    load_df(x, size);
    step(x, in, RDI, size);
    tr_guard_end(x, &g, op, true);
}

static void lods(struct xl *x, const struct insn *in, unsigned size)
{
    struct insn src = element(in, RSI, in->seg_override ? in->seg : SEG_DS);
    struct guard g;

    tr_guard(x, &src, size, ACC_R, 0, true, &g);
    u32 op = hot_at(x);
    e_mem(&x->hot, mov(0x8b, size), size, RAX, &g.mem);
    load_df(x, size);
    step(x, in, RSI, size);
    tr_guard_end(x, &g, op, true);
}

static bool flat(const struct xl *x, unsigned seg)
{
    return seg != SEG_FS && seg != SEG_GS && (x->m64 || (tr_flat32(x) && seg != SEG_CS));
}

/* From the stubs that use the host's rep to those that use vector registers. TORTURE: so that both are tested on one host. */
static unsigned vectors(void)
{
#ifdef TORTURE
    return 0;
#else
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") ? STUB_MOVS_VECTOR - STUB_MOVS : 0;
#endif
}

static bool rep(struct xl *x, const struct insn *in, unsigned size)
{
    struct buf *b = &x->hot;
    bool movs = in->id == I_MOVS, wide = in->addrsize == 8;
    if ((!movs && in->id != I_STOS) || x->single || (x->mode & MODE_AC) || in->addrsize != (x->m64 ? 8 : 4) ||
        !flat(x, SEG_ES) || (movs && in->seg_override && !flat(x, in->seg)))
        return false;
    if (x->live[x->cur])
        xl_need_saved(x);
    const struct tlb_geometry *geo = &tlb_geo[x->slot];
    e_lea(b, true, H_S1, H_VCPU, (s32)geo->tlb_off - VCPU_BIAS);
    e8(b, 0x41); e8(b, 0xb8 | (H_S2 & 7)); e32(b, geo->tlb_mask | (u32)__builtin_ctz(size)); /* mov s2d, imm32 */
    xl_call_stub(x, SEC_HOT, (movs ? wide ? STUB_MOVS : STUB_MOVS_32 : wide ? STUB_STOS : STUB_STOS_32) + vectors());
    xl_bind(x, xl_jcc(x, SEC_HOT, 5), SEC_COLD, cold_at(x));
    xl_clobber(x);
    tr_check_cold(x, in, insn_handler(in->id), 0, 0, hot_at(x));
    return true;
}

bool tr_string(struct xl *x, const struct insn *in)
{
    unsigned size = in->opcode & 1 ? in->opsize : 1;

    if (in->prefixes & (PFX_F2 | PFX_F3))
        return rep(x, in, size);
    switch (in->id) {
    case I_MOVS: movs(x, in, size); return true;
    case I_STOS: stos(x, in, size); return true;
    case I_LODS: lods(x, in, size); return true;
    default: return false;
    }
}
