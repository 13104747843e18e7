/* gen.c - see gen.h. */
#include "tests/lib/gen.h"

#include <stdio.h>
#include <string.h>

#include "x86/x86.h"

#ifdef HAVE_ZYDIS
#include <Zydis/Zydis.h>
#endif

/* -- The table, as decode.c reads it ---------------------------------------------------------------------- */

enum { LEG, VEX, EVEX };
enum { M_ONE, M_0F, M_0F38, M_0F3A };
enum { NP = 1, P66 = 2, PF3 = 4, PF2 = 8, ANY = 15, NO = 3, NOF3 = 11 };
enum { W0 = 1, W1 = 2, WIG = 3 };
enum { L0 = 1, L1 = 2, L2 = 4, L01 = 3, L12 = 6, LIG = 7 };
enum { NR = 0x100, RM = 0x101 };
enum attr {
    LOCK = 1u << 0, CPL0 = 1u << 1, I64 = 1u << 2, O64 = 1u << 3, D64 = 1u << 4, F64 = 1u << 5, OP4 = 1u << 6,
    SHIMM = 1u << 7, SHCL = 1u << 8, RCX_ = 1u << 9, REP = 1u << 10, REPFL = 1u << 11, MODIGN = 1u << 12,
    NOP90 = 1u << 13, IW = 1u << 14, VLEN = 1u << 15, MK = 1u << 16, MZ = 1u << 17, KREQ = 1u << 18,
    ER = 1u << 19, SAE = 1u << 20, B32 = 1u << 21, B64 = 1u << 22, N1 = 1u << 23, N2 = 1u << 24, N4 = 1u << 25,
    N8 = 1u << 26,
};
#define RCX RCX_ /* in the attribute column */
const struct gen_row gen_rows[] = {
#define X(enc, map, pp, opc, modrm, w, l, id, ops, how, fr, fw, cls, feat, attr) \
    { enc, map, pp, opc, w, l, HOW_##how, CLS_##cls, FEAT_##feat, modrm, I_##id, attr, ops, #id },
#include "engine/insn.def"
#undef X
};
#undef RCX
const unsigned gen_nr_rows = ARRAY_SIZE(gen_rows);

const char *gen_row_name(const struct gen_row *r, char *buf, size_t len)
{
    static const char *const enc[] = { "", "vex ", "evex " };
    static const char *const map[] = { "", "0f", "0f38", "0f3a" };
    char digit[8] = "";
    if (r->modrm < 8)
        snprintf(digit, sizeof(digit), "/%u", r->modrm);
    else if (r->modrm < NR)
        snprintf(digit, sizeof(digit), "/%02x", r->modrm);
    snprintf(buf, len, "%s%s%s%s%02x%s %s %s", enc[r->enc],
             r->pp == P66   ? "66."
             : r->pp == PF3 ? "f3."
             : r->pp == PF2 ? "f2."
                            : "",
             map[r->map], r->map ? "." : "", r->opcode, digit, r->id_name, r->ops);
    return buf;
}

const char *gen_excluded(const struct gen_row *r)
{
    if (r->attr & I64 && !bare_m32)
        return "not in 64-bit mode";
    if (r->attr & O64 && bare_m32)
        return "only in 64-bit mode";
    if (bare_m32 && (r->id == I_PUSH_SEG || r->id == I_SYSRET || r->id == I_SYSEXIT))
        return "segments: tests/guest";
#ifdef __SANITIZE_ADDRESS__
    /* XSTATE_BV tells which components the CPU thinks in use (XINUSE): the sanitizer's own vector code changes that. */
    if (r->id == I_XSAVE || r->id == I_XSAVEOPT || r->id == I_XSAVEC)
        return "what it stores depends on vector code that only this build runs";
#endif
    switch (r->id) {
    case I_CPUID: case I_RDTSC: case I_RDTSCP: case I_RDPMC: case I_RDPID: case I_RDRAND: case I_RDSEED:
        return "its result differs by design";
    case I_XGETBV:
        return "XCR0 of the host has bits the guest's has not";
    case I_SYSCALL: case I_SYSENTER: case I_INT: case I_INT1: case I_INT3:
        return "enters the host's kernel";
    case I_VMCALL: case I_VMMCALL:
        return "calls the host's hypervisor";
    case I_SGDT: case I_SIDT: case I_SLDT: case I_STR: case I_SMSW:
        return "emulated by the host's kernel";
    case I_IRET: case I_RET_FAR: case I_CALL_FAR: case I_JMP_FAR: case I_MOV_SEG: case I_POP_SEG: case I_LFP:
        return "segment loads: tests/guest";
    case I_LAR: case I_LSL: case I_VERR: case I_VERW:
        if (!bare_linux_gdt)
            return "the host's GDT is not Linux's: tests/guest";
        break;
    case I_RDFSBASE: case I_RDGSBASE: case I_WRFSBASE: case I_WRGSBASE:
        if (!bare_fsgs)
            return "the host's kernel keeps FS and GS for itself: tests/guest";
        break;
    case I_SYSEXIT: /* APM vol. 3: #UD in long mode, #GP where CPL is not 0; Zen 5 raises the one in ring 3, Zen 4 the other */
        if (__builtin_cpu_is("amd"))
            return "which exception comes first differs among AMD's CPUs: tests/guest";
        break;
    case I_MONITOR: case I_MWAIT:
        return "not for user mode";
    default:
        break;
    }
    if (r->attr & CPL0)
        return NULL; /* #GP on both */
    return NULL;
}

/* -- Values -------------------------------------------------------------------------------------------------- */

u64 gen_value(struct rng *r)
{
    u64 v = rnd(r);
    switch (below(r, 12)) {
    case 0: return 0;
    case 1: return 1;
    case 2: return ~0ull;
    case 3: return 1ull << (v & 63);
    case 4: return (1ull << (v & 63)) - 1;
    case 5: return (u64)(s64)(s8)v;
    case 6: return (u64)(s64)(s32)v;
    case 7: return (u32)v;
    case 8: return v & 0xff;
    case 9: return 0x8000000080008080ull;
    default: return v;
    }
}

void gen_bytes(struct rng *r, u8 *p, unsigned len)
{
    static const u64 f64[] = {
        0, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000, 0xfff0000000000000,
        0x7ff8000000000000, 0x7ff0000000000001, 1, 0x000fffffffffffff, 0x7fefffffffffffff, 0x0010000000000000,
        0x4330000000000000, 0x41dfffffffc00000, 0xc1e0000000000000, 0x43e0000000000000, 0x3fe0000000000000,
        0x400921fb54442d18, 0x4059000000000000,
    };
    static const u32 f32[] = {
        0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 1, 0x007fffff,
        0x7f7fffff, 0x00800000, 0x4b000000, 0x4f000000, 0xcf000000, 0x5f000000, 0x3f000000, 0x40490fdb, 0x42c80000,
    };
    unsigned i = 0;
    while (i < len) {
        u64 v = rnd(r);
        switch (below(r, 5)) {
        case 0: v = f64[v % ARRAY_SIZE(f64)]; break;
        case 1: v = f32[v % ARRAY_SIZE(f32)] | (u64)f32[(v >> 32) % ARRAY_SIZE(f32)] << 32; break;
        case 2: v = gen_value(r); break;
        default: break;
        }
        unsigned n = MIN(8u, len - i);
        memcpy(p + i, &v, n);
        i += n;
    }
}

static void gen_x87(struct rng *r, u8 *p)
{
    static const u8 special[][10] = {
        { 0 },
        { 0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f },             /* 1.0 */
        { 0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f },             /* inf */
        { 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0x7f },             /* qnan */
        { 1, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff },             /* -snan */
        { 1, 0, 0, 0, 0, 0, 0, 0, 0, 0 },                      /* denormal */
        { 0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9, 0, 0x40 }, /* pi */
        { 0, 0, 0, 0, 0, 0, 0, 0x40, 0xff, 0x3f },             /* unnormal */
        { 0, 0, 0, 0, 0, 0, 0, 0xa0, 0x02, 0xc0 },             /* -10 */
    };
    for (unsigned i = 0; i < 8; i++) {
        u8 *st = p + 32 + i * 16;
        if (one_in(r, 3)) {
            memcpy(st, special[below(r, ARRAY_SIZE(special))], 10);
        } else {
            u64 m = rnd(r);
            u16 e = one_in(r, 4) ? (u16)rnd(r) : (u16)(0x3fff - 20 + below(r, 50)) | (u16)(below(r, 2) << 15);
            if (!one_in(r, 8))
                m |= 1ull << 63;
            memcpy(st, &m, 8);
            memcpy(st + 8, &e, 2);
        }
    }
    u16 fcw = one_in(r, 2) ? 0x37f : (u16)(0x7f | (below(r, 4) << 8) | (below(r, 4) << 10));
    if (one_in(r, 16))
        fcw = (u16)((fcw & 0xffc0) | (rnd(r) & 0x3f));
    u16 fsw = one_in(r, 2) ? 0 : (u16)(rnd(r) & 0x7f47);
    if (one_in(r, 2))
        fsw &= 0xff00;
    u8 ftw = one_in(r, 3) ? 0 : one_in(r, 2) ? 0xff : (u8)rnd(r);
    memcpy(p, &fcw, 2);
    memcpy(p + 2, &fsw, 2);
    p[4] = ftw;
    /* ES and B follow from the flags and the mask */
    if (fsw & ~fcw & 0x3f)
        p[2] |= 0x80, p[3] |= 0x80;
    else
        p[2] &= 0x7f, p[3] &= 0x7f;
}

void gen_state(struct rng *r, struct bare_state *s)
{
    memset(s, 0, offsetof(struct bare_state, fpu));
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = gen_value(r);
    s->gpr[RSP] = BARE_STACK + 0xf80 + below(r, 32) * 8;
    s->rflags = 0x202 | (rnd(r) & 0x8d5);
    if (one_in(r, 4))
        s->rflags |= rnd(r) & EFL_ID;
    memset(s->fpu, 0, bare_xsize);
    gen_x87(r, s->fpu);
    u32 mxcsr = one_in(r, 2) ? 0x1f80 : 0x1f80 | (u32)(rnd(r) & 0xe07f);
    if (one_in(r, 16))
        mxcsr &= (u32)rnd(r) | ~0x1f80u;
    memcpy(s->fpu + 24, &mxcsr, 4);
    gen_bytes(r, s->fpu + 160, 256);
    u64 bv = bare_xmask;
    if (one_in(r, 4))
        bv &= rnd(r) | 3;
    for (unsigned i = 2; i < 8; i++) {
        static const unsigned len[8] = { 0, 0, 256, 0, 0, 64, 512, 1024 };
        if (bare_xoff[i] && (bv >> i & 1))
            gen_bytes(r, s->fpu + bare_xoff[i], len[i]);
    }
    memcpy(s->fpu + 512, &bv, 8);
    if (bare_fsgs && !bare_m32) {
        s->fs = one_in(r, 2) ? rnd(r) & 0xfffffff : 0;
        s->gs = one_in(r, 2) ? rnd(r) & 0xfffffff : 0;
    }
}

/* -- Encodings -------------------------------------------------------------------------------------------- */

static unsigned pick_gpr(struct rng *r, enum palette pal)
{
    if (bare_m32)
        return below(r, 8);
    static const u8 low[] = { 0, 1, 2, 3, 6, 7, 8, 9 }, slot[] = { 10, 11, 14, 15 }, odd[] = { 4, 5, 12, 13 };
    if (pal != PAL_ANY && one_in(r, 5))
        pal = PAL_ANY;
    switch (pal) {
    case PAL_LOW: return low[below(r, 8)];
    case PAL_SLOT: return slot[below(r, 4)];
    case PAL_ODD: return odd[below(r, 4)];
    default: return below(r, 16);
    }
}

static unsigned pick_base(struct rng *r, const struct gen_want *w)
{
    if (!w->bases)
        return pick_gpr(r, w->pal);
    for (;;) {
        unsigned g = below(r, 16);
        if (w->bases >> g & 1)
            return g;
    }
}

static bool has_v(const char *ops)
{
    for (const char *p = ops; *p; p++)
        if (*p == 'v' || *p == 'z' || *p == 'y' || *p == 'r')
            if (p == ops || p[-1] != '=' || 1)
                return true;
    return strstr(ops, "rAX") != NULL;
}

static bool operand(const char *ops, char first, char second)
{
    bool start = true;
    for (const char *p = ops; *p; p++) {
        if (*p == ',') {
            start = true;
            continue;
        }
        if (*p == '=' || *p == '+')
            continue;
        if (start && *p == first && (!second || p[1] == second))
            return true;
        start = false;
    }
    return false;
}

bool gen_insn(struct rng *r, const struct gen_row *row, const struct gen_want *want, struct gen_insn *out)
{
    u8 *b = out->b;
    unsigned n = 0;
    const char *ops = row->ops;
    bool has_modrm = row->modrm != NR;
    bool may_mem = has_modrm && !(row->modrm >= 0xc0 && row->modrm < NR) && !(row->attr & MODIGN) &&
                   (operand(ops, 'E', 0) || operand(ops, 'M', 0) || operand(ops, 'W', 0) || operand(ops, 'Q', 0) ||
                    operand(ops, 'K', 'E') || (operand(ops, 'X', 0) && row->how != HOW_STRING));
    bool may_reg = has_modrm && !operand(ops, 'M', 0) && !(operand(ops, 'X', 0) && row->how != HOW_STRING);
    if (row->attr & MODIGN)
        may_reg = true;
    if (strcmp(ops, "ST") == 0)
        may_mem = false;
    bool mem = may_mem && (!may_reg || (want->mem < 0 ? one_in(r, 2) : want->mem));
    if (want->mem == 1 && has_modrm && !may_mem)
        mem = false;

    memset(out, 0, sizeof(*out));
    out->row = row;

    /* ModRM, SIB */
    unsigned modrm = 0, sib = 0, R = 0, Xb = 0, B = 0, R2 = 0, V = 0;
    bool has_sib = false;
    bool gpr_reg = operand(ops, 'G', 0), gpr_rm = operand(ops, 'E', 0) || operand(ops, 'R', 0);
    if (row->attr & MODIGN)
        gpr_rm = true;
    bool vec = operand(ops, 'V', 0) || operand(ops, 'W', 0) || operand(ops, 'U', 0) || operand(ops, 'H', 0);
    bool vsib = operand(ops, 'X', 0) && row->how != HOW_STRING;
    if (has_modrm) {
        unsigned reg = row->modrm < 8 ? row->modrm : below(r, 8), rm;
        if (row->modrm >= 8) {
            if (gpr_reg) {
                unsigned g = pick_gpr(r, want->pal);
                reg = g & 7;
                R = g >> 3;
            } else if (operand(ops, 'V', 0)) {
                unsigned g = below(r, bare_m32 ? 8 : row->enc == EVEX ? 32 : 16);
                reg = g & 7;
                R = g >> 3 & 1;
                R2 = g >> 4;
            }
        }
        if (!mem) {
            rm = below(r, 8);
            if (gpr_rm) {
                unsigned g = pick_gpr(r, want->pal);
                rm = g & 7;
                B = g >> 3;
            } else if (operand(ops, 'W', 0) || operand(ops, 'U', 0)) {
                unsigned g = below(r, bare_m32 ? 8 : row->enc == EVEX ? 32 : 16);
                rm = g & 7;
                B = g >> 3 & 1;
                Xb = row->enc == EVEX ? g >> 4 : 0;
            }
            modrm = 0xc0 | reg << 3 | rm;
            if (row->modrm >= 0xc0 && row->modrm < NR)
                modrm = row->modrm;
        } else {
            unsigned form = below(r, 10), mod = below(r, 3);
            if (want->rip_only)
                form = 8;
            if (vsib)
                form = 3;
            if (form < 3 || (form >= 8 && vsib)) { /* [base + disp] */
                unsigned g = pick_base(r, want);
                B = g >> 3;
                rm = g & 7;
                if (rm == 5 && mod == 0)
                    mod = 1;
                if (rm == 4) {
                    has_sib = true;
                    sib = 4 << 3 | 4 | below(r, 4) << 6;
                }
            } else if (form < 8) { /* SIB */
                unsigned g = pick_base(r, want), i;
                has_sib = true;
                rm = 4;
                if (vsib) {
                    i = below(r, bare_m32 ? 8 : row->enc == EVEX ? 32 : 16);
                    V = i >> 4;
                    i &= 15;
                } else {
                    do
                        i = want->bases    ? below(r, bare_m32 ? 8 : 16)
                            : one_in(r, 3) ? below(r, bare_m32 ? 8 : 16)
                                           : pick_base(r, want);
                    while (want->bases && !((want->indexes | 0x10u) >> i & 1)); /* 4: no index */
                }
                Xb = i >> 3;
                B = g >> 3;
                sib = below(r, 4) << 6 | (i & 7) << 3 | (g & 7);
                if ((g & 7) == 5 && mod == 0 && !one_in(r, 4))
                    mod = 1;
            } else { /* RIP-relative, absolute */
                mod = 0;
                rm = 5;
                if (below(r, bare_m32 ? 4 : 2) == 0) {
                    rm = 4;
                    has_sib = true;
                    sib = 0x25;
                }
            }
            modrm = mod << 6 | reg << 3 | rm;
        }
    } else if (operand(ops, 'Z', 0)) {
        B = below(r, 2); /* the low bits are the opcode's */
        if (want->pal == PAL_LOW)
            B = one_in(r, 4);
        if (want->pal == PAL_SLOT)
            B = !one_in(r, 8);
        if (bare_m32)
            B = 0;
    }

    /* prefixes */
    unsigned W = row->w == W1 ? 1 : row->w == W0 ? 0 : below(r, 2);
    if (row->enc == LEG) {
        u8 pfx[8];
        unsigned np = 0;
        if (row->pp == P66)
            pfx[np++] = 0x66;
        else if (row->pp == PF3)
            pfx[np++] = 0xf3;
        else if (row->pp == PF2)
            pfx[np++] = 0xf2;
        bool v = has_v(ops) || row->how == HOW_STRING || row->how == HOW_STACK;
        if (row->pp != P66 && row->pp != NP && v && !vec && one_in(r, 4) && row->how != HOW_BRANCH)
            pfx[np++] = 0x66;
        else if (row->pp == ANY && want->prefixes && one_in(r, 12) && row->how != HOW_BRANCH)
            pfx[np++] = 0x66;
        if (row->how == HOW_STRING && !one_in(r, 3))
            pfx[np++] = one_in(r, 2) ? 0xf2 : 0xf3;
        else if (row->pp == ANY && want->prefixes && one_in(r, 24) && row->id != I_LOOPE && row->id != I_LOOPNE)
            pfx[np++] = one_in(r, 2) ? 0xf2 : 0xf3;
        if (row->w == WIG && !v)
            W = one_in(r, 6);
        if (row->attr & OP4)
            W = one_in(r, 6);
        if ((row->attr & LOCK) && mem && one_in(r, 3))
            pfx[np++] = 0xf0;
        if (want->prefixes) {
            if (one_in(r, 8) &&
                !(bare_m32 && (mem || row->how == HOW_STRING || row->how == HOW_STACK || row->id == I_XLAT ||
                               row->id == I_MASKMOVQ || row->id == I_MASKMOVDQU || operand(ops, 'O', 0))))
                pfx[np++] = 0x67;
            if (bare_fsgs && !bare_m32 && one_in(r, 8))
                pfx[np++] = (u8)(0x64 + below(r, 2));
            else if (one_in(r, 16) && !(bare_m32 && row->how == HOW_BRANCH))
                pfx[np++] = (u8)(bare_m32 ? 0x36 + 8 * below(r, 2) : 0x26 + 8 * below(r, 4));
        }
        /* any order */
        for (unsigned i = np; i > 1; i--) {
            unsigned k = below(r, i);
            u8 t = pfx[i - 1];
            pfx[i - 1] = pfx[k];
            pfx[k] = t;
        }
        memcpy(b, pfx, np);
        n = np;
        unsigned rex = W << 3 | R << 2 | Xb << 1 | B;
        if (!bare_m32 && (rex || one_in(r, 6)))
            b[n++] = (u8)(0x40 | rex);
        if (row->map != M_ONE)
            b[n++] = 0x0f;
        if (row->map == M_0F38 || row->map == M_0F3A)
            b[n++] = row->map == M_0F38 ? 0x38 : 0x3a;
    } else {
        unsigned pp = row->pp == P66 ? 1 : row->pp == PF3 ? 2 : row->pp == PF2 ? 3 : 0;
        if (row->pp == ANY)
            pp = below(r, 4);
        if (want->prefixes && !bare_m32 && one_in(r, 8))
            b[n++] = 0x67;
        if (want->prefixes && bare_fsgs && !bare_m32 && one_in(r, 8))
            b[n++] = (u8)(0x64 + below(r, 2));
        unsigned vvvv = 0;
        if (operand(ops, 'H', 0)) {
            vvvv = below(r, bare_m32 ? 8 : row->enc == EVEX ? 32 : 16);
            if (!vsib)
                V = vvvv >> 4;
            vvvv &= 15;
        } else if (operand(ops, 'B', 0)) {
            vvvv = pick_gpr(r, want->pal);
        } else if (operand(ops, 'K', 'H')) {
            vvvv = below(r, 8);
        }
        if (bare_m32)
            vvvv &= 7;
        unsigned l;
        do
            l = below(r, row->enc == EVEX ? 3 : 2);
        while (row->l != LIG && !(row->l >> l & 1));
        if (row->enc == VEX) {
            if (row->map == M_0F && !W && !Xb && !B && row->w != W1 && one_in(r, 2)) {
                b[n++] = 0xc5;
                b[n++] = (u8)(!R << 7 | (~vvvv & 15) << 3 | l << 2 | pp);
            } else {
                b[n++] = 0xc4;
                b[n++] = (u8)(!R << 7 | !Xb << 6 | !B << 5 | row->map);
                b[n++] = (u8)(W << 7 | (~vvvv & 15) << 3 | l << 2 | pp);
            }
        } else {
            unsigned z = 0, bc = 0, aaa = 0;
            if ((row->attr & KREQ) || ((row->attr & MK) && !one_in(r, 3)))
                aaa = 1 + below(r, 7);
            if (aaa && (row->attr & MZ) && one_in(r, 2))
                z = 1;
            if (mem ? row->attr & (B32 | B64) : row->attr & (ER | SAE))
                bc = one_in(r, 3);
            if (bc && !mem && (row->attr & ER))
                l = below(r, 4);
            b[n++] = 0x62;
            b[n++] = (u8)(!R << 7 | !Xb << 6 | !B << 5 | !R2 << 4 | row->map);
            b[n++] = (u8)(W << 7 | (~vvvv & 15) << 3 | 4 | pp);
            b[n++] = (u8)(z << 7 | l << 5 | bc << 4 | !V << 3 | aaa);
        }
    }
    b[n++] = row->opcode;
    if (has_modrm) {
        b[n++] = (u8)modrm;
        if (has_sib)
            b[n++] = (u8)sib;
        if (mem) {
            unsigned mod = modrm >> 6, rm = modrm & 7;
            out->disp_off = (u8)n;
            out->disp_len = mod == 1 ? 1 : mod == 2 ? 4 : rm == 5 || (rm == 4 && (sib & 7) == 5) ? 4 : 0;
            u32 d = (u32)rnd(r);
            if (out->disp_len == 4) {
                s32 sd = (s32)d >> below(r, 25);
                memcpy(b + n, &sd, 4);
            } else if (out->disp_len) {
                b[n] = (u8)d;
            }
            n += out->disp_len;
        }
    }
    out->imm_off = (u8)n;
    u64 imm = gen_value(r);
    memcpy(b + n, &imm, 8);
    if (insn_decode(bare_m32 ? DMODE_32 : DMODE_64, b, sizeof(out->b), &out->in) != DECODE_OK)
        return false;
    if (out->in.id != row->id || out->in.how != row->how)
        return false;
    out->len = out->in.len;
    return true;
}

unsigned gen_mutate(struct rng *r, const struct gen_insn *from, u8 *out)
{
    memcpy(out, from->b, 16);
    unsigned n = 1 + below(r, 2);
    while (n--)
        out[below(r, MIN(from->imm_off, 15u))] ^= (u8)(1u << below(r, 8));
    return 15;
}

unsigned gen_mem_size(const struct gen_insn *g)
{
    const struct insn *in = &g->in;
    switch (in->id) {
    case I_FXSAVE: case I_FXRSTOR: return 512;
    case I_XSAVE: case I_XSAVEOPT: case I_XSAVEC: case I_XRSTOR: case I_XSAVES: case I_XRSTORS: return bare_xsize;
    default: return in->mem_size;
    }
}

unsigned gen_align(const struct gen_insn *g)
{
    const struct insn *in = &g->in;
    switch (in->id) {
    case I_FXSAVE: case I_FXRSTOR: return 16;
    case I_XSAVE: case I_XSAVEOPT: case I_XSAVEC: case I_XRSTOR: case I_XSAVES: case I_XRSTORS: return 64;
    default: break;
    }
    unsigned a = 1;
    while (a < in->mem_size && a < 64)
        a *= 2;
    return a;
}

static bool put_disp(struct gen_insn *g, u64 d)
{
    if (g->disp_len != 4 || (u64)(s64)(s32)d != d)
        return false;
    memcpy(g->b + g->disp_off, &d, 4);
    g->in.disp = (s32)d;
    return true;
}

void gen_narrow(struct bare_state *s)
{
    for (unsigned i = 0; bare_m32 && i < 16; i++)
        s->gpr[i] = (u32)s->gpr[i];
}

bool gen_solve(struct rng *r, struct gen_insn *g, struct bare_state *s, u64 rip, u64 ea)
{
    struct insn *in = &g->in;
    u64 off = ea;
    if (in->seg == SEG_FS)
        off -= s->fs;
    else if (in->seg == SEG_GS)
        off -= s->gs;
    bool narrow = in->addrsize == 4;
    if (narrow && off >> 32)
        return false;
    if (in->moffs) {
        memcpy(g->b + in->imm_off, &off, in->imm_size);
        in->disp = (s64)off;
        return true;
    }
    if (in->base == BASE_RIP)
        return put_disp(g, off - (rip + g->len));
    if (in->vsib) {
        if (in->base == REG_NONE)
            return put_disp(g, off);
        s->gpr[in->base] = off - (u64)in->disp;
        if (narrow)
            s->gpr[in->base] = (u32)s->gpr[in->base] | rnd(r) << 32;
        return true;
    }
    if (in->base == REG_NONE && in->index == REG_NONE)
        return put_disp(g, off);
    if (in->base == REG_NONE) {
        u64 i = one_in(r, 2) ? rnd(r) & 0xffffff : (u64)(s64)(s32)(rnd(r) & 0xff8fffff);
        s->gpr[in->index] = narrow ? (u32)i | rnd(r) << 32 : i;
        u64 d = off - i * in->scale;
        return put_disp(g, narrow ? (u64)(s64)(s32)d : d);
    }
    if (in->index == in->base) {
        u64 v = rnd(r) & 0xffffff;
        s->gpr[in->base] = narrow ? (u32)v | rnd(r) << 32 : v;
        return put_disp(g, off - v * (1u + in->scale));
    }
    u64 i = 0;
    if (in->index != REG_NONE) {
        i = gen_value(r);
        s->gpr[in->index] = i;
    }
    u64 base = off - (u64)in->disp - i * in->scale;
    s->gpr[in->base] = narrow ? (u32)base | rnd(r) << 32 : base;
    return true;
}

u64 gen_ea(const struct gen_insn *g, const struct bare_state *s, u64 rip)
{
    const struct insn *in = &g->in;
    u64 a = (u64)in->disp;
    if (in->base == BASE_RIP)
        a += rip + g->len;
    else if (in->base != REG_NONE)
        a += s->gpr[in->base];
    if (in->index != REG_NONE && !in->vsib)
        a += s->gpr[in->index] * in->scale;
    if (in->addrsize == 4)
        a = (u32)a;
    return a + (in->seg == SEG_FS ? s->fs : in->seg == SEG_GS ? s->gs : 0);
}

bool gen_fit(struct gen_insn *g, const struct bare_state *s, u64 rip, u64 ea)
{
    struct insn *in = &g->in;
    u64 off = ea - (in->seg == SEG_FS ? s->fs : in->seg == SEG_GS ? s->gs : 0);
    if (in->moffs) {
        if (in->addrsize == 4 && off >> 32)
            return false;
        memcpy(g->b + in->imm_off, &off, in->imm_size);
        in->disp = (s64)off;
        return true;
    }
    if (in->addrsize == 4 && off >> 32)
        return false;
    if (in->base == BASE_RIP)
        off -= rip + g->len;
    else if (in->base != REG_NONE)
        off -= s->gpr[in->base];
    if (in->index != REG_NONE)
        off -= s->gpr[in->index] * in->scale;
    return put_disp(g, in->addrsize == 4 ? (u64)(s64)(s32)off : off) && gen_ea(g, s, rip) == ea;
}

u64 gen_undefined_flags(const struct insn *in)
{
    switch (in->id) {
    case I_MUL: case I_IMUL: return EFL_SF | EFL_ZF | EFL_AF | EFL_PF;
    case I_DIV: case I_IDIV: return EFL_ARITH;
    case I_AAA: case I_AAS: return EFL_OF | EFL_SF | EFL_ZF | EFL_PF;
    case I_DAA: case I_DAS: return EFL_OF;
    case I_AAM: case I_AAD: return EFL_OF | EFL_AF | EFL_CF;
    case I_BT: case I_BTS: case I_BTR: case I_BTC: case I_TZCNT: case I_LZCNT: return EFL_OF | EFL_SF | EFL_AF | EFL_PF;
    default: return 0;
    }
}

void gen_disasm(const u8 *b, unsigned len, u64 rip, char *buf, size_t size)
{
    char hex[64] = "";
    for (unsigned i = 0; i < len && i < 15; i++)
        snprintf(hex + i * 3, sizeof(hex) - i * 3, "%02x ", b[i]);
    const char *text = "";
#ifdef HAVE_ZYDIS
    static ZydisDisassembledInstruction d;
    if (ZYAN_SUCCESS(ZydisDisassembleIntel(bare_m32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64,
                                           rip, b, len, &d)))
        text = d.text;
#endif
    snprintf(buf, size, "%llx: %-46s %s", (unsigned long long)rip, hex, text);
}
