/*
 * decode.c - bytes to struct insn, by table (insn.def). Two steps: the rows are
 * parsed once into `rows` and indexed by (encoding, map, opcode); a cell whose
 * rows differ by prefix, ModRM, W, L or mode is spread over just those
 * dimensions, so a decode is one look-up, never a search. Source: Intel SDM
 * vol. 2 §2 (formats), appendix A.
 */
#include "engine/decode.h"

#include <cpuid.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* ---- what a row may say ---- */
enum { LEG, VEX, EVEX };
enum { M_ONE, M_0F, M_0F38, M_0F3A };
enum { NP = 1, P66 = 2, PF3 = 4, PF2 = 8, ANY = 15, NO = 3, NOF3 = 11 };
enum { W0 = 1, W1 = 2, WIG = 3 };
enum { L0 = 1, L1 = 2, L2 = 4, L01 = 3, L12 = 6, LIG = 7 };
enum { NR = 0x100, RM = 0x101 };
enum attr {
    LOCK = 1u << 0,
    CPL0 = 1u << 1,
    I64 = 1u << 2,
    O64 = 1u << 3,
    D64 = 1u << 4,
    F64 = 1u << 5,
    OP4 = 1u << 6,
    SHIMM = 1u << 7,
    SHCL = 1u << 8,
    RCX_ = 1u << 9,
    REP = 1u << 10,
    REPFL = 1u << 11,
    MODIGN = 1u << 12,
    NOP90 = 1u << 13,
    IW = 1u << 14,
    VLEN = 1u << 15,
    MK = 1u << 16,
    MZ = 1u << 17,
    KREQ = 1u << 18,
    ER = 1u << 19,
    SAE = 1u << 20,
    B32 = 1u << 21,
    B64 = 1u << 22,
    N1 = 1u << 23,
    N2 = 1u << 24,
    N4 = 1u << 25,
    N8 = 1u << 26,
    OP1 = 1u << 27,    /* operand size 1: from the first operand */
    VECTOR = 1u << 28, /* has a vector operand                   */
    OPY = 1u << 29,    /* operand size at least 4: y and no v    */
};

/* Operand sizes: fixed ones first, then those that need the instruction at
 * hand. */
enum size {
    SZ_0,
    SZ_B,
    SZ_W,
    SZ_D,
    SZ_Q,
    SZ_T,
    SZ_DQ,
    SZ_QQ,
    SZ_ZZ,
    SZ_FX,
    NR_FIXED,
    SZ_V = NR_FIXED,
    SZ_Z,
    SZ_Y,
    SZ_R,
    SZ_X,
    SZ_H,
    SZ_F,
    SZ_E,
    SZ_P,
    SZ_S,
    SZ_A,
    SZ_N,
    SZ_M,
};
static const u16 fixed_size[NR_FIXED] = {0, 1, 2, 4, 8, 10, 16, 32, 64, 512};
static const char *const size_name[] = {
    "",  "b", "w", "d", "q", "t", "dq", "qq", "zz", "fx", "v", "z",
    "y", "r", "x", "h", "f", "e", "p",  "s",  "a",  "n",  "m"};

enum imm {
    IM_NONE,
    IM_B,
    IM_BS,
    IM_W,
    IM_Z,
    IM_V,
    IM_JB,
    IM_JZ,
    IM_AP,
    IM_MOFFS,
    IM_IS4,
    IM_BB,
    IM_WB
};
#define FORM_MEM 1u
#define FORM_REG 2u

struct row {
    u32 attr;
    u16 id;
    u8 how, cls, feat;
    u8 forms; /* FORM_*: what ModRM.mod may say, 0 if there is none */
    u8 reg_kind, reg_sz, reg_acc;
    u8 rm_kind, rm_sz, rm_acc, mem_sz, mem_acc, vsib;
    u8 vvvv_kind, vvvv_sz, vvvv_acc;
    u8 opreg_sz, opreg_acc;
    u8 imm, is4;
    u16 fix_r, fix_w, fix_wv; /* fixed GPRs; fix_wv: written in operand size
                                 (merging if < 4) */
    u16 fl_r, fl_w, fl_m; /* fl_m: undefined, in fact left alone by some CPUs */
};

struct src {
    u8 enc, map, pp, opcode, w, l, how, cls, feat;
    u16 modrm, id, fl_r, fl_w;
    u32 attr;
    const char *ops;
};

#define CF    EFL_CF
#define PF    EFL_PF
#define AF    EFL_AF
#define ZF    EFL_ZF
#define SF    EFL_SF
#define DF    EFL_DF
#define OF    EFL_OF
#define ARITH EFL_ARITH
#define RCX   RCX_ /* in the attribute column */
static const struct src src[] = {
#define X(enc, map, pp, opc, modrm, w, l, id, ops, how, fr, fw, cls, feat,     \
          attr)                                                                \
    {enc,         map,   pp,     opc, w,  l,    HOW_##how, CLS_##cls,          \
     FEAT_##feat, modrm, I_##id, fr,  fw, attr, ops},
#include "engine/insn.def"
#undef X
};
#undef RCX
#undef CF
#undef PF
#undef AF
#undef ZF
#undef SF
#undef DF
#undef OF
#undef ARITH

static const char *const names[] = {
    "invalid",
#define X(id) #id,
#include "engine/insn_ids.def"
#undef X
};

/* ---- index ---- */
/* Dimensions a cell can be spread over, in the order sub() walks them. */
#define DIM_PP  0x01u
#define DIM_MOD 0x02u
#define DIM_REG 0x04u
#define DIM_RM  0x08u
#define DIM_W   0x10u
#define DIM_L   0x20u
#define DIM_M64 0x40u
struct cell {
    u16 base; /* into pool */
    u8 dims;
    u8 modrm;  /* has ModRM */
    u8 modign; /* MODIGN    */
    u8 iw;     /* IW: pp mask */
};
static struct row rows[ARRAY_SIZE(src) + 1]; /* rows[0]: undefined */
static struct cell cells[10][256]; /* LEG maps 0-3, VEX 1-3, EVEX 1-3 */
static u16 pool[16384];
static _Atomic bool ready;
static u64 features;

static unsigned page_of(unsigned enc, unsigned map)
{
    return enc == LEG ? map : enc == VEX ? 3 + map : 6 + map;
}

static inline unsigned sub(unsigned dims, unsigned pp, unsigned modrm,
                           unsigned w, unsigned l, bool m64)
{
    unsigned i = 0;

    if (dims & DIM_PP)
        i = pp;
    if (dims & DIM_MOD)
        i = i << 1 | (modrm >= 0xc0);
    if (dims & DIM_REG)
        i = i << 3 | (modrm >> 3 & 7);
    if (dims & DIM_RM)
        i = i << 3 | (modrm & 7);
    if (dims & DIM_W)
        i = i << 1 | w;
    if (dims & DIM_L)
        i = i << 2 | l;
    if (dims & DIM_M64)
        i = i << 1 | m64;
    return i;
}

static unsigned width(unsigned dims)
{
    static const u8 bits[] = {2, 1, 3, 3, 1, 2, 1};
    unsigned n = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(bits); i++)
        if (dims & BIT(i))
            n += bits[i];
    return 1u << n;
}

/* ---- parsing the operand column ---- */
static unsigned parse_size(const char *s, size_t n)
{
    for (unsigned i = 0; i < ARRAY_SIZE(size_name); i++)
        if (strlen(size_name[i]) == n && memcmp(size_name[i], s, n) == 0)
            return i;
    bug("insn.def: operand size", s, (int)n);
}

/* A fixed GPR: AL AH AX EAX RAX rAX aCX R11. Returns false if `s` is none. */
static bool parse_fixed(struct row *r, const char *s, size_t n, unsigned acc)
{
    static const char reg2[][3] = {"AX", "CX", "DX", "BX",
                                   "SP", "BP", "SI", "DI"};
    unsigned reg = NR_GPR;
    bool v = false, part = false;

    if (n == 3 && memcmp(s, "R11", 3) == 0)
        reg = R11;
    for (unsigned i = 0; i < 8 && reg == NR_GPR; i++) {
        if (n == 3 && memcmp(s + 1, reg2[i], 2) == 0) {
            reg = i;
            v = s[0] == 'r';
            part = s[0] == 'a';
        } else if (n == 2 && memcmp(s, reg2[i], 2) == 0) {
            reg = i;
            part = true;
        } else if (n == 2 && s[0] == reg2[i][0] &&
                   (s[1] == 'L' || s[1] == 'H') && i < 4) {
            reg = i;
            part = true;
        }
    }
    if (reg == NR_GPR)
        return false;
    if ((acc & OPA_R) || part)
        r->fix_r |= BIT(reg);
    if (acc & OPA_W) {
        r->fix_w |= BIT(reg);
        if (v)
            r->fix_wv |= BIT(reg);
    }
    return true;
}

static void parse_rm(struct row *r, unsigned kind, const char *s, size_t n,
                     unsigned acc, unsigned forms)
{
    const char *slash = memchr(s, '/', n);
    size_t nreg = slash ? (size_t)(slash - s) : n;

    r->rm_sz = (u8)parse_size(s, nreg);
    r->mem_sz = slash ? (u8)parse_size(slash + 1, n - nreg - 1) : r->rm_sz;
    r->forms = (u8)forms;
    if (n) {
        r->rm_kind = (u8)kind;
        r->rm_acc = r->mem_acc = (u8)acc;
    }
    if (kind == RK_VEC)
        r->attr |= VECTOR;
}

static void parse_reg(struct row *r, unsigned kind, const char *s, size_t n,
                      unsigned acc)
{
    r->reg_kind = (u8)kind;
    r->reg_sz = (u8)parse_size(s, n);
    r->reg_acc = (u8)acc;
    if (kind == RK_VEC)
        r->attr |= VECTOR;
}

static void parse_vvvv(struct row *r, unsigned kind, const char *s, size_t n,
                       unsigned acc)
{
    r->vvvv_kind = (u8)kind;
    r->vvvv_sz = (u8)parse_size(s, n);
    r->vvvv_acc = (u8)acc;
    if (kind == RK_VEC)
        r->attr |= VECTOR;
}

static void parse_imm(struct row *r, const char *s, size_t n)
{
    static const struct {
        char n[4];
        u8 imm;
    } t[] = {
        {"Ib", IM_B}, {"Ibs", IM_BS}, {"Iw", IM_W},  {"Iz", IM_Z},
        {"Iv", IM_V}, {"Jb", IM_JB},  {"Jz", IM_JZ}, {"Ap", IM_AP},
    };
    u8 imm = IM_NONE;

    for (unsigned i = 0; i < ARRAY_SIZE(t); i++)
        if (strlen(t[i].n) == n && memcmp(t[i].n, s, n) == 0)
            imm = t[i].imm;
    if (imm == IM_NONE)
        bug("insn.def: immediate", s, (int)n);
    if (r->imm == IM_B && imm == IM_B)
        imm = IM_BB;
    else if (r->imm == IM_W && imm == IM_B)
        imm = IM_WB;
    r->imm = imm;
}

static void parse_operand(struct row *r, const char *s, size_t n, bool first)
{
    unsigned acc = OPA_R;

    if (*s == '=' || *s == '+') {
        acc = *s == '=' ? OPA_W : OPA_R | OPA_W;
        s++;
        n--;
    }
    if (first && ((n == 2 && s[1] == 'b' && strchr("EGZYXO", s[0])) ||
                  (n == 2 && memcmp(s, "AL", 2) == 0)))
        r->attr |= OP1;
    if (n == 2 && memcmp(s, "ST", 2) == 0) {
        r->rm_kind = RK_ST;
        r->forms = FORM_REG;
        return;
    }
    if (parse_fixed(r, s, n, acc))
        return;
    if (s[0] == 'K') {
        switch (s[1]) {
        case 'E':
            parse_rm(r, RK_MASK, s + 2, n - 2, acc, FORM_MEM | FORM_REG);
            break;
        case 'R':
            parse_rm(r, RK_MASK, s + 2, n - 2, acc, FORM_REG);
            r->rm_kind = RK_MASK;
            r->rm_acc = (u8)acc;
            break;
        case 'G':
            parse_reg(r, RK_MASK, s + 2, n - 2, acc);
            break;
        default:
            parse_vvvv(r, RK_MASK, s + 2, n - 2, acc);
            break;
        }
        return;
    }
    switch (s[0]) {
    case 'E':
        parse_rm(r, RK_GPR, s + 1, n - 1, acc, FORM_MEM | FORM_REG);
        break;
    case 'R':
        parse_rm(r, RK_GPR, s + 1, n - 1, acc, FORM_REG);
        break;
    case 'W':
        parse_rm(r, RK_VEC, s + 1, n - 1, acc, FORM_MEM | FORM_REG);
        break;
    case 'U':
        parse_rm(r, RK_VEC, s + 1, n - 1, acc, FORM_REG);
        break;
    case 'Q':
        parse_rm(r, RK_MMX, s + 1, n - 1, acc, FORM_MEM | FORM_REG);
        break;
    case 'N':
        parse_rm(r, RK_MMX, s + 1, n - 1, acc, FORM_REG);
        break;
    case 'M':
        parse_rm(r, RK_NONE, s + 1, n - 1, acc, FORM_MEM);
        break;
    case 'X':
        if (r->how == HOW_STRING)
            break;
        parse_rm(r, RK_NONE, s + 1, n - 1, acc, FORM_MEM);
        r->vsib = 1;
        break;
    case 'Y':
        break;
    case 'G':
        parse_reg(r, RK_GPR, s + 1, n - 1, acc);
        break;
    case 'V':
        parse_reg(r, RK_VEC, s + 1, n - 1, acc);
        break;
    case 'P':
        parse_reg(r, RK_MMX, s + 1, n - 1, acc);
        break;
    case 'S':
        parse_reg(r, RK_SEG, s + 1, n - 1, acc);
        break;
    case 'C':
        parse_reg(r, RK_CR, s + 1, n - 1, acc);
        break;
    case 'D':
        parse_reg(r, RK_DR, s + 1, n - 1, acc);
        break;
    case 'B':
        parse_vvvv(r, RK_GPR, s + 1, n - 1, acc);
        break;
    case 'H':
        parse_vvvv(r, RK_VEC, s + 1, n - 1, acc);
        break;
    case 'L':
        r->is4 = 1;
        break;
    case 'Z':
        r->opreg_sz = (u8)parse_size(s + 1, n - 1);
        r->opreg_acc = (u8)acc;
        break;
    case 'O':
        r->mem_sz = (u8)parse_size(s + 1, n - 1);
        r->mem_acc = (u8)acc;
        r->imm = IM_MOFFS;
        break;
    default:
        parse_imm(r, s, n);
        break;
    }
}

/* Undefined flags that AMD CPUs leave alone (SDM vol. 2; measured on Zen 4). */
static u16 undefined_flags(const struct src *s)
{
    switch (s->id) {
    case I_MUL:
    case I_IMUL:
        return EFL_SF | EFL_ZF | EFL_AF | EFL_PF;
    case I_DIV:
    case I_IDIV:
        return EFL_ARITH;
    case I_BT:
    case I_BTS:
    case I_BTR:
    case I_BTC:
    case I_BT_MEM:
    case I_BTS_MEM:
    case I_BTR_MEM:
    case I_BTC_MEM:
    case I_TZCNT:
    case I_LZCNT:
        return EFL_OF | EFL_SF | EFL_AF | EFL_PF;
    default:
        return 0;
    }
}

static void parse_row(struct row *r, const struct src *s)
{
    const char *p = s->ops;

    *r = (struct row){.attr = s->attr,
                      .id = s->id,
                      .how = s->how,
                      .cls = s->cls,
                      .feat = s->feat,
                      .fl_r = s->fl_r,
                      .fl_w = s->fl_w,
                      .fl_m = undefined_flags(s)};
    if (s->modrm != NR)
        r->forms =
            s->modrm >= 0xc0 && s->modrm < NR ? FORM_REG : FORM_MEM | FORM_REG;
    for (bool first = true; *p; first = false) {
        size_t n = strcspn(p, ",");

        parse_operand(r, p, n, first);
        p += n;
        if (*p == ',')
            p++;
    }
    if (strchr(s->ops, 'y') && !strchr(s->ops, 'v'))
        r->attr |= OPY;
    if (s->modrm >= 0xc0 && s->modrm < NR)
        r->forms = FORM_REG;
    if (r->attr & MODIGN)
        r->forms = FORM_MEM | FORM_REG;
    if (r->is4 && r->imm == IM_NONE)
        r->imm = IM_IS4;
}

static unsigned dims_of(const struct src *s, const struct row *r)
{
    unsigned d = 0;

    if (s->pp != ANY)
        d |= DIM_PP;
    if (s->modrm < 8)
        d |= DIM_REG;
    if (s->modrm >= 0xc0 && s->modrm < NR)
        d |= DIM_MOD | DIM_REG | DIM_RM;
    if (r->forms == FORM_MEM || r->forms == FORM_REG)
        d |= DIM_MOD;
    if (s->w != WIG)
        d |= DIM_W;
    if (s->enc != LEG && s->l != LIG)
        d |= DIM_L;
    if (s->attr & (I64 | O64))
        d |= DIM_M64;
    return d;
}

/* Does row `s` cover this combination of the dimensions? */
static bool covers(const struct src *s, const struct row *r, unsigned pp,
                   unsigned modrm, unsigned w, unsigned l, bool m64)
{
    if (!(s->pp & BIT(pp)) || !(s->w & BIT(w)) ||
        (s->enc != LEG && !(s->l & BIT(l))))
        return false;
    if ((s->attr & I64 && m64) || (s->attr & O64 && !m64))
        return false;
    if (s->modrm < 8 && (modrm >> 3 & 7) != s->modrm)
        return false;
    if (s->modrm >= 0xc0 && s->modrm < NR && modrm != s->modrm)
        return false;
    return !r->forms || (r->forms & (modrm >= 0xc0 ? FORM_REG : FORM_MEM));
}

static void spread(struct cell *c, const struct src *s, unsigned row)
{
    const unsigned d = c->dims;
    unsigned mods = d & DIM_MOD ? 2 : 1, regs = d & DIM_REG ? 8 : 1,
             rms = d & DIM_RM ? 8 : 1;

    for (unsigned pp = 0; pp < 4; pp++)
        for (unsigned m = 0; m < mods * regs * rms; m++)
            for (unsigned k = 0; k < 16; k++) {
                unsigned modrm = (m % mods ? 0xc0 : 0) |
                                 (m / mods % regs) << 3 | m / mods / regs;
                unsigned w = k & 1, l = k >> 1 & 3, m64 = k >> 3;
                u16 *e;

                if (!(d & DIM_MOD) && rows[row].forms == FORM_REG)
                    modrm |= 0xc0;
                if (!covers(s, &rows[row], pp, modrm, w, l, m64))
                    continue;
                e = &pool[c->base + sub(d, pp, modrm, w, l, m64)];
                /* a row with its own prefix wins over one that takes any */
                if (*e == 0 || src[*e - 1].pp == ANY || s->pp != ANY)
                    *e = (u16)row;
            }
}

static u64 host_features(void)
{
    u64 f = BITULL(FEAT_BASE);
    unsigned a, b, c, d, lo = 0, hi = 0, max;

#define HAS(reg, bit, feat)                                                    \
    do {                                                                       \
        if ((reg)&BIT(bit))                                                    \
            f |= BITULL(FEAT_##feat);                                          \
    } while (0)
    __cpuid(0, max, b, c, d);
    __cpuid(1, a, b, c, d);
    HAS(c, 0, SSE3);
    HAS(c, 1, PCLMULQDQ);
    HAS(c, 9, SSSE3);
    HAS(c, 12, FMA);
    HAS(c, 13, CX16);
    HAS(c, 19, SSE4);
    HAS(c, 20, SSE42);
    HAS(c, 22, MOVBE);
    HAS(c, 23, POPCNT);
    HAS(c, 25, AES);
    HAS(c, 26, XSAVE);
    HAS(c, 28, AVX);
    HAS(c, 29, F16C);
    HAS(c, 30, RDRAND);
    HAS(d, 19, CLFLUSH);
    HAS(d, 23, MMX);
    HAS(d, 25, SSE);
    HAS(d, 26, SSE2);
    if (c & BIT(27))
        __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    if (max >= 7) {
        __cpuid_count(7, 0, a, b, c, d);
        HAS(b, 3, BMI1);
        HAS(b, 5, AVX2);
        HAS(b, 8, BMI2);
        HAS(b, 16, AVX512F);
        HAS(b, 17, AVX512DQ);
        HAS(b, 18, RDSEED);
        HAS(b, 19, ADX);
        HAS(b, 21, AVX512IFMA);
        HAS(b, 23, CLFLUSHOPT);
        HAS(b, 24, CLWB);
        HAS(b, 28, AVX512CD);
        HAS(b, 29, SHA);
        HAS(b, 30, AVX512BW);
        HAS(b, 31, AVX512VL);
        HAS(c, 1, AVX512VBMI);
        HAS(c, 6, AVX512VBMI2);
        HAS(c, 8, GFNI);
        HAS(c, 9, VAES);
        HAS(c, 10, VPCLMULQDQ);
        HAS(c, 11, AVX512VNNI);
        HAS(c, 12, AVX512BITALG);
        HAS(c, 14, AVX512VPOPCNTDQ);
        HAS(d, 8, AVX512VP2INTERSECT);
        __cpuid_count(7, 1, a, b, c, d);
        HAS(a, 4, AVX_VNNI);
        HAS(a, 5, AVX512BF16);
    }
    if (max >= 13) {
        __cpuid_count(13, 1, a, b, c, d);
        HAS(a, 0, XSAVEOPT);
        HAS(a, 1, XSAVEC);
        HAS(a, 3, XSAVES);
    }
    __cpuid(0x80000001u, a, b, c, d);
    HAS(c, 0, LAHF);
    HAS(c, 5, LZCNT);
    HAS(c, 6, SSE4A);
    HAS(c, 8, PREFETCHW);
#undef HAS
    /* Ours, and offered whatever the host has (SET in cpuid.c). */
    f |= BITULL(FEAT_MONITOR) | BITULL(FEAT_SMAP) | BITULL(FEAT_INVPCID) | BITULL(FEAT_RDTSCP) | BITULL(FEAT_RDPID) |
         BITULL(FEAT_FSGSBASE);
    if ((lo & 6) != 6)
        f &= ~(FEAT_NEED_YMM | FEAT_NEED_ZMM);
    if ((lo & 0xe6) != 0xe6)
        f &= ~FEAT_NEED_ZMM;
    return f;
}

static void init(void)
{
    unsigned used = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(src); i++) {
        struct cell *c = &cells[page_of(src[i].enc, src[i].map)][src[i].opcode];

        parse_row(&rows[i + 1], &src[i]);
        c->dims |= (u8)dims_of(&src[i], &rows[i + 1]);
        c->modrm |= src[i].modrm != NR;
        c->modign |= (src[i].attr & MODIGN) != 0;
        c->iw |= src[i].attr & IW ? src[i].pp : 0;
    }
    used = 1; /* pool[0]: undefined */
    for (unsigned i = 0; i < ARRAY_SIZE(src); i++) {
        struct cell *c = &cells[page_of(src[i].enc, src[i].map)][src[i].opcode];

        if (!c->base) {
            c->base = (u16)used;
            used += width(c->dims);
            bug_on(used > ARRAY_SIZE(pool));
        }
        spread(c, &src[i], i + 1);
    }
    if (!features)
        features = host_features();
    atomic_store_explicit(&ready, true, memory_order_release);
}

void insn_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, init);
}

void insn_set_features(u64 mask)
{
    insn_init();
    features = host_features() & (mask | BITULL(FEAT_BASE));
}

const char *insn_name(unsigned id)
{
    return id == 0 ? names[0] : id < NR_INSN_IDS ? names[id] + 2 : "?";
}

/* ---- decoding ---- */
struct cur {
    const u8 *p;
    unsigned pos, max; /* max: MIN(avail, 15) */
    bool over;
};

static inline bool have(const struct cur *c, unsigned n)
{
    return c->pos + n <= c->max;
}

static enum decode_status out_of_bytes(const struct cur *c, unsigned n)
{
    return c->pos + n > INSN_MAX ? DECODE_LONG : DECODE_SHORT;
}

static inline s64 get(const u8 *p, unsigned n)
{
    switch (n) {
    case 1:
        return (s8)*p;
    case 2: {
        s16 v;
        memcpy(&v, p, 2);
        return v;
    }
    case 4: {
        s32 v;
        memcpy(&v, p, 4);
        return v;
    }
    default: {
        s64 v;
        memcpy(&v, p, 8);
        return v;
    }
    }
}

static inline unsigned size_of(unsigned sz, const struct insn *x,
                               enum dmode mode)
{
    if (likely(sz < NR_FIXED))
        return fixed_size[sz];
    switch (sz) {
    case SZ_V:
        return x->opsize;
    case SZ_Z:
        return x->opsize > 4 ? 4 : x->opsize;
    case SZ_Y:
        return x->opsize == 8 ? 8 : 4;
    case SZ_R:
        return mode == DMODE_64 ? 8 : 4;
    case SZ_X:
        return x->vl;
    case SZ_H:
        return x->vl / 2u;
    case SZ_F:
        return x->vl / 4u;
    case SZ_E:
        return x->vl / 8u;
    case SZ_P:
        return 2u + x->opsize;
    case SZ_S:
        return mode == DMODE_64 ? 10 : 6;
    case SZ_A:
        return 2u * x->opsize;
    case SZ_N:
        return x->opsize == 2 ? 14 : 28;
    default:
        return x->opsize == 2 ? 94 : 108;
    }
}

static inline unsigned gpr_of(unsigned reg, unsigned size, const struct insn *x)
{
    return size == 1 && reg >= 4 && reg < 8 && !(x->prefixes & PFX_REX) &&
                   x->enc == ENC_LEGACY
               ? reg - 4
               : reg;
}

static inline void use_gpr(struct insn *x, unsigned reg, unsigned size,
                           unsigned acc)
{
    unsigned bit = BIT(gpr_of(reg, size, x));

    if ((acc & OPA_R) || size < 4)
        x->gpr_read |= (u16)bit;
    if (acc & OPA_W)
        x->gpr_write |= (u16)bit;
}

/* Memory operand of a ModRM with mod != 3. Source: SDM vol. 2 tables 2-1, 2-2,
 * 2-3. */
static inline enum decode_status addressing(struct insn *x, struct cur *c,
                                            enum dmode mode, unsigned ext_v)
{
    static const u8 base16[8] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX};
    static const u8 index16[8] = {RSI,      RDI,      RSI,      RDI,
                                  REG_NONE, REG_NONE, REG_NONE, REG_NONE};
    unsigned rm = x->modrm & 7, n = x->mod == 1 ? 1 : 0;
    unsigned rex = x->rex;

    x->has_mem = true;
    x->scale = 1;
    if (x->addrsize == 2) {
        if (x->vsib)
            return DECODE_UD;
        if (x->mod == 2)
            n = 2;
        x->base = base16[rm];
        x->index = index16[rm];
        if (x->mod == 0 && rm == 6) {
            x->base = REG_NONE;
            n = 2;
        }
    } else {
        if (x->mod == 2)
            n = 4;
        if (rm == 4) {
            unsigned sib, idx;

            if (!have(c, 1))
                return out_of_bytes(c, 1);
            sib = c->p[c->pos++];
            idx = (sib >> 3 & 7) | (rex & 2) << 2;
            x->scale = (u8)(1u << (sib >> 6));
            if (x->vsib)
                x->index = (u8)(idx | ext_v);
            else if (idx != 4)
                x->index = (u8)idx;
            rm = sib & 7;
            if (rm == 5 && x->mod == 0)
                n = 4;
            else
                x->base = (u8)(rm | (rex & 1) << 3);
        } else {
            if (x->vsib)
                return DECODE_UD;
            if (rm == 5 && x->mod == 0) {
                n = 4;
                if (mode == DMODE_64)
                    x->base = BASE_RIP;
            } else {
                x->base = (u8)(rm | (rex & 1) << 3);
            }
        }
    }
    if (n) {
        if (!have(c, n))
            return out_of_bytes(c, n);
        x->disp = get(c->p + c->pos, n);
        c->pos += n;
    }
    if (!x->seg_override && (x->base == RSP || x->base == RBP))
        x->seg = SEG_SS;
    if (x->base < NR_GPR)
        x->gpr_read |= (u16)BIT(x->base);
    if (x->index < NR_GPR && !x->vsib)
        x->gpr_read |= (u16)BIT(x->index);
    return DECODE_OK;
}

static inline enum decode_status immediate(struct insn *x, struct cur *c,
                                           unsigned imm, enum dmode mode)
{
    const u8 *p = c->p + c->pos;
    unsigned n, z = x->opsize == 2 ? 2 : 4;

    switch (imm) {
    case IM_B:
    case IM_BS:
    case IM_JB:
    case IM_IS4:
        n = 1;
        break;
    case IM_W:
    case IM_BB:
        n = 2;
        break;
    case IM_Z:
    case IM_JZ:
        n = z;
        break;
    case IM_V:
        n = x->opsize;
        break;
    case IM_WB:
        n = 3;
        break;
    case IM_AP:
        n = 2 + x->opsize;
        break;
    default:
        n = x->addrsize;
        break; /* IM_MOFFS */
    }
    if (!have(c, n))
        return out_of_bytes(c, n);
    switch (imm) {
    case IM_B:
    case IM_IS4:
        x->imm = p[0];
        break;
    case IM_W:
    case IM_BB:
        x->imm = p[0] | p[1] << 8;
        break;
    case IM_WB:
        x->imm = p[0] | p[1] << 8 | p[2] << 16;
        break;
    case IM_AP: {
        u64 off = x->opsize == 2 ? (u64)(u16)get(p, 2) : (u64)(u32)get(p, 4);

        x->imm = (s64)(off | (u64)(u16)get(p + x->opsize, 2) << 32);
        break;
    }
    case IM_MOFFS:
        x->disp = get(p, n);
        if (n < 8)
            x->disp &= (s64)(BITULL(n * 8) - 1);
        x->moffs = x->has_mem = true;
        x->scale = 1;
        break;
    default:
        x->imm = get(p, n);
        break;
    }
    x->imm_size = (u8)n;
    x->imm_off = (u8)c->pos;
    c->pos += n;
    if (imm == IM_IS4 || x->is4 != REG_NONE)
        x->is4 = (u8)(p[0] >> 4 & (mode == DMODE_64 ? 15 : 7));
    return DECODE_OK;
}

/* By words: without vector registers the compiler would pick `rep stos`, which
 * costs half a decode. */
static inline void clear(struct insn *x)
{
    typedef u64 __attribute__((may_alias)) word;
    word *w = (word *)(void *)x;

    _Static_assert(sizeof(*x) % 8 == 0 && _Alignof(struct insn) == 8,
                   "struct insn is words");
#pragma GCC unroll 4
    for (unsigned i = 0; i < sizeof(*x) / 8; i++) {
        w[i] = 0;
        __asm__("" : "+r"(w)); /* keep it a loop, not memset */
    }
    x->seg = SEG_DS;
    x->opreg = x->is4 = x->base = x->index = REG_NONE;
}

/* EVEX conditions that depend on the row; sets vl and bcst. Source: SDM vol. 2
 * §2.7.10-11. */
static inline bool evex_ok(struct insn *x, const struct row *r)
{
    unsigned ll = x->evex_p2 >> 5 & 3;
    bool b = x->evex_p2 & 0x10, z = x->evex_p2 & 0x80;

    if (!(features & BITULL(FEAT_AVX512F)))
        return false;
    if (x->mask ? !(r->attr & MK) : (r->attr & KREQ) || z)
        return false;
    if (z && !(r->attr & MZ))
        return false;
    if (b && x->mod != 3) {
        if (!(r->attr & (B32 | B64)))
            return false;
        x->bcst = true;
    }
    if (b && x->mod == 3) {
        if (!(r->attr & (ER | SAE)))
            return false;
        ll = 2;
    }
    if (ll == 3)
        return false;
    if (!(r->attr & VLEN)) {
        x->vl = r->attr & VECTOR ? 16 : 0;
        return true;
    }
    x->vl = (u8)(16u << ll);
    return ll == 2 || (features & BITULL(FEAT_AVX512VL));
}

static inline enum decode_status decode(enum dmode mode, const u8 *p,
                                        size_t avail, struct insn *x)
{
    struct cur c = {.p = p,
                    .max = avail < INSN_MAX ? (unsigned)avail : INSN_MAX};
    const bool m64 = mode == DMODE_64;
    unsigned pp = 0, rep = 0, page = 0, op, w = 0, l = 0, modrm = 0, evex_r = 0,
             evex_x = 0, evex_v = 0;
    const struct cell *cell;
    const struct row *r;
    enum decode_status st;

    clear(x);
    /* prefixes; a REX counts only right before the opcode */
    for (;;) {
        if (unlikely(!have(&c, 1)))
            return out_of_bytes(&c, 1);
        op = p[c.pos++];
        switch (op) {
        case 0x66:
            x->prefixes |= PFX_66;
            break;
        case 0x67:
            x->prefixes |= PFX_67;
            break;
        case 0xf0:
            x->prefixes |= PFX_LOCK;
            break;
        case 0xf2:
            x->prefixes |= PFX_F2;
            rep = 3;
            break;
        case 0xf3:
            x->prefixes |= PFX_F3;
            rep = 2;
            break;
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
            if (!m64) {
                x->seg = (u8)(op >> 3 & 3);
                x->seg_override = true;
            }
            break;
        case 0x64:
        case 0x65:
            x->seg = (u8)(op & 7);
            x->seg_override = true;
            break;
        case 0x40 ... 0x4f:
            if (m64) {
                x->rex = (u8)op;
                continue;
            }
            goto opcode;
        default:
            goto opcode;
        }
        x->rex = 0;
    }
opcode:
    if (x->rex)
        x->prefixes |= PFX_REX;
    pp = rep ? rep : x->prefixes & PFX_66 ? 1 : 0;
    x->addrsize = m64 ? (x->prefixes & PFX_67 ? 4 : 8)
                  : (mode == DMODE_32) == !(x->prefixes & PFX_67) ? 4
                                                                  : 2;

    if (op == 0x0f) {
        if (!have(&c, 1))
            return out_of_bytes(&c, 1);
        op = p[c.pos++];
        x->map = MAP_0F;
        if (op == 0x38 || op == 0x3a) {
            x->map = op == 0x38 ? MAP_0F38 : MAP_0F3A;
            if (!have(&c, 1))
                return out_of_bytes(&c, 1);
            op = p[c.pos++];
        }
        page = x->map;
    } else if ((op & 0xfe) == 0xc4 || op == 0x62) {
        bool vex = m64;
        unsigned n = op == 0xc5 ? 1 : op == 0xc4 ? 2 : 3, b0, b1;

        if (!vex) {
            if (!have(&c, 1))
                return out_of_bytes(&c, 1);
            vex = p[c.pos] >= 0xc0;
        }
        if (vex) {
            if (x->prefixes & (PFX_66 | PFX_F2 | PFX_F3 | PFX_LOCK | PFX_REX))
                return DECODE_UD;
            if (!have(&c, n + 1))
                return out_of_bytes(&c, n + 1);
            b0 = p[c.pos];
            if (op == 0xc5) {
                x->enc = ENC_VEX;
                x->map = MAP_0F;
                x->rex = (u8)(0x40 | (~b0 >> 5 & 4));
                b1 = b0 & 0x7f;
            } else {
                b1 = p[c.pos + 1];
                x->map = b0 & (op == 0xc4 ? 31 : 15);
                if (x->map < 1 || x->map > 3)
                    return DECODE_UD;
                x->rex = (u8)(0x40 | (~b0 >> 5 & 7));
                w = b1 >> 7;
            }
            pp = b1 & 3;
            x->vvvv = ~b1 >> 3 & 15;
            l = b1 >> 2 & 1;
            if (op == 0x62) {
                if (!(b1 & 4))
                    return DECODE_UD;
                x->enc = ENC_EVEX;
                x->evex_p2 = p[c.pos + 2];
                x->mask = x->evex_p2 & 7;
                evex_r = ~b0 & 0x10;
                evex_x = x->rex & 2 ? 16 : 0;
                evex_v = (~(unsigned)x->evex_p2 & 8) << 1;
                l = x->evex_p2 >> 5 & 3;
                page = 6 + x->map;
            } else {
                x->enc = ENC_VEX;
                page = 3 + x->map;
            }
            if (!m64) {
                x->rex &= 0x40;
                evex_r = evex_x = 0;
                if (evex_v)
                    return DECODE_UD;
            }
            x->pp = (u8)pp;
            x->vex_w = w;
            x->rex |= (u8)(w << 3);
            c.pos += n;
            op = p[c.pos++];
        }
    }
    x->opcode = (u8)op;
    cell = &cells[page][op];
    if (unlikely(!cell->base))
        goto ud;
    if (x->enc == ENC_LEGACY)
        w = x->rex >> 3 & 1;
    else if (!m64 && (cell->iw >> pp & 1))
        w = 0;
    if (cell->modrm) {
        if (!have(&c, 1))
            return out_of_bytes(&c, 1);
        modrm = p[c.pos++];
        x->has_modrm = true;
        x->modrm = (u8)modrm;
        if (cell->modign)
            modrm |= 0xc0;
        x->mod = (u8)(modrm >> 6);
        if (x->enc == ENC_EVEX && modrm >= 0xc0 && (x->evex_p2 & 0x10))
            l = 2;
    }
    r = &rows[pool[cell->base +
                   (cell->dims ? sub(cell->dims, pp, modrm, w, l, m64) : 0)]];
    if (unlikely((r->attr & NOP90) && (x->rex & 1)) ||
        unlikely(r->id == I_PAUSE && (x->rex & 1)))
        r = &rows[pool[cells[0][0x91].base]];
    if (unlikely(r->how == HOW_UD) || unlikely(!(features >> r->feat & 1)))
        goto ud;
    x->id = r->id;
    x->how = r->how;
    x->cls = r->cls;

    /* operand size, vector length */
    if (x->enc == ENC_LEGACY) {
        if (m64)
            x->opsize = w || (r->attr & F64)   ? 8
                        : x->prefixes & PFX_66 ? 2
                        : r->attr & D64        ? 8
                                               : 4;
        else
            x->opsize = (mode == DMODE_32) == !(x->prefixes & PFX_66) ? 4 : 2;
        if (r->attr & (OP1 | OP4 | OPY | VECTOR)) {
            if (r->attr & OP1)
                x->opsize = 1;
            if ((r->attr & OP4) && x->opsize == 8)
                x->opsize = 4;
            if ((r->attr & OPY) && x->opsize == 2)
                x->opsize = 4;
            if (r->attr & VECTOR)
                x->vl = 16;
        }
    } else {
        x->opsize = w && m64 ? 8 : 4;
        if (x->enc == ENC_EVEX) {
            if (!evex_ok(x, r))
                goto ud;
        } else {
            x->vl = r->attr & VECTOR ? 16u << l : 0;
        }
        if (r->vvvv_kind == RK_NONE) {
            if (x->vvvv || (evex_v && !r->vsib))
                goto ud;
        } else {
            x->vvvv = (u8)((m64 ? x->vvvv : x->vvvv & 7) | evex_v);
            x->vvvv_kind = r->vvvv_kind;
            x->vvvv_acc = r->vvvv_acc;
            x->vvvv_size = (u8)size_of(r->vvvv_sz, x, mode);
            if (r->vvvv_kind == RK_GPR) {
                if (x->vvvv > 15)
                    goto ud;
                use_gpr(x, x->vvvv, x->vvvv_size, x->vvvv_acc);
            } else if (r->vvvv_kind == RK_MASK) {
                if (x->vvvv > 7)
                    goto ud;
            } else if (x->vvvv_size < 16) {
                x->vvvv_size = 16;
            }
        }
    }

    if (x->has_modrm) {
        if (x->mod != 3) {
            unsigned size = size_of(r->mem_sz, x, mode), scale;

            x->vsib = r->vsib;
            st = addressing(x, &c, mode, evex_v);
            if (unlikely(st != DECODE_OK))
                return st;
            if (x->bcst)
                size = r->attr & B32 ? 4 : 8;
            x->mem_size = (u16)size;
            x->mem_acc = r->mem_acc;
            if (x->enc == ENC_EVEX && x->mod == 1) {
                scale =
                    r->attr & (N1 | N2 | N4 | N8) ? (r->attr / N1) & 15 : size;
                x->disp *= (s64)scale;
            }
            if (x->vsib && x->enc == ENC_VEX) {
                unsigned dst = (modrm >> 3 & 7) | (x->rex & 4) << 1;

                if (x->index == dst || x->index == x->vvvv || dst == x->vvvv)
                    goto ud; /* destination, index and mask must differ */
            }
        } else {
            x->rm = modrm & 7;
            x->rm_kind = r->rm_kind;
            x->rm_acc = r->rm_acc;
            if (r->rm_kind == RK_GPR) {
                x->rm |= (u8)((x->rex & 1) << 3);
                x->rm_size = (u8)size_of(r->rm_sz, x, mode);
                use_gpr(x, x->rm, x->rm_size, x->rm_acc);
            } else if (r->rm_kind == RK_VEC) {
                unsigned size = size_of(r->rm_sz, x, mode);

                x->rm |= (u8)((x->rex & 1) << 3 | evex_x);
                x->rm_size = (u8)(size < 16 ? 16 : size);
            } else if (r->rm_kind == RK_MMX) {
                x->rm_size = 8;
            }
        }
        x->reg = modrm >> 3 & 7;
        x->reg_kind = r->reg_kind;
        x->reg_acc = r->reg_acc;
        switch (r->reg_kind) {
        case RK_NONE:
            break;
        case RK_GPR:
            if (evex_r)
                goto ud;
            x->reg |= (x->rex & 4) << 1;
            x->reg_size = (u8)size_of(r->reg_sz, x, mode);
            use_gpr(x, x->reg, x->reg_size, x->reg_acc);
            break;
        case RK_VEC: {
            unsigned size = size_of(r->reg_sz, x, mode);

            x->reg |= (u8)((x->rex & 4) << 1 | evex_r);
            x->reg_size = (u8)(size < 16 ? 16 : size);
            if (x->vsib && x->enc == ENC_EVEX && r->id == I_GATHER &&
                x->reg == x->index)
                goto ud;
            break;
        }
        case RK_MMX:
            x->reg_size = 8;
            break;
        case RK_MASK:
            if (evex_r || (x->rex & 4))
                goto ud;
            break;
        case RK_SEG:
            x->reg_size = 2;
            if (x->reg > 5 || (x->reg == SEG_CS && (x->reg_acc & OPA_W)))
                goto ud;
            break;
        default: /* RK_CR, RK_DR */
            x->reg |= (x->rex & 4) << 1;
            x->reg_size = m64 ? 8 : 4;
            if (r->reg_kind == RK_CR ? !(0x11du >> x->reg & 1) : x->reg > 7)
                goto ud;
            break;
        }
    } else if (r->opreg_acc) {
        x->opreg = (u8)((op & 7) | (x->rex & 1) << 3);
        x->opreg_size = (u8)size_of(r->opreg_sz, x, mode);
        x->opreg_acc = r->opreg_acc;
        use_gpr(x, x->opreg, x->opreg_size, x->opreg_acc);
    }
    if (r->imm) {
        if (r->is4)
            x->is4 = 0;
        st = immediate(x, &c, r->imm, mode);
        if (unlikely(st != DECODE_OK))
            return st;
        if (x->moffs) {
            x->mem_size = (u16)size_of(r->mem_sz, x, mode);
            x->mem_acc = r->mem_acc;
        }
    }

    /* effects */
    x->gpr_read |= r->fix_r;
    x->gpr_write |= r->fix_w;
    if (x->opsize < 4)
        x->gpr_read |= r->fix_wv;
    x->fl_read = r->fl_r;
    x->fl_write = r->fl_w;
    x->fl_maybe = r->fl_m;
    x->cpl0 = r->attr & CPL0;
    x->lockable = (r->attr & LOCK) && x->has_mem;
    if (r->attr & (SHIMM | SHCL | REP)) {
        if (r->attr & SHCL) {
            x->fl_maybe = x->fl_write;
        } else if (r->attr & SHIMM) {
            unsigned n = (unsigned)x->imm & (x->opsize == 8 ? 63 : 31);

            if (!n)
                x->fl_write = 0;
            else if ((r->attr & RCX_) && x->opsize < 4 &&
                     n % (x->opsize * 8u + 1) == 0)
                x->fl_maybe = x->fl_write;
        } else if (rep) {
            x->gpr_read |= BIT(RCX);
            x->gpr_write |= BIT(RCX);
            if (r->id == I_LODS)
                x->gpr_read |= BIT(RAX); /* stays when RCX is 0 */
            if (r->attr & REPFL)
                x->fl_maybe = x->fl_write;
        }
    }
    if (unlikely(x->prefixes & PFX_LOCK) &&
        !(x->lockable && (x->mem_acc & OPA_W)))
        goto ud;
    x->len = (u8)c.pos;
    return DECODE_OK;
ud:
    x->len = (u8)c.pos;
    x->how = HOW_UD;
    return DECODE_UD;
}

enum decode_status insn_decode(enum dmode mode, const u8 *p, size_t avail,
                               struct insn *out)
{
    if (unlikely(!atomic_load_explicit(&ready, memory_order_acquire)))
        insn_init();
    return decode(mode, p, avail, out);
}

/* SDM vol. 2 §2.4; the SHA and string instructions are exempt (measured on Zen 4). */
bool insn_aligned(const struct insn *in)
{
    if (in->mem_size < 16)
        return false;
    switch (in->id) {
    case I_VMOVAPS:
    case I_VMOVAPD:
    case I_VMOVDQA:
    case I_VMOVDQA32:
    case I_VMOVDQA64:
    case I_VMOVNTPS:
    case I_VMOVNTPD:
    case I_VMOVNTDQ:
    case I_VMOVNTDQA:
    case I_CMPXCHG16B:
        return true;
    case I_MOVUPS:
    case I_MOVUPD:
    case I_MOVDQU:
    case I_LDDQU:
    case I_PCMPESTRI:
    case I_PCMPESTRM:
    case I_PCMPISTRI:
    case I_PCMPISTRM:
    case I_SHA1MSG1:
    case I_SHA1MSG2:
    case I_SHA1NEXTE:
    case I_SHA1RNDS4:
    case I_SHA256MSG1:
    case I_SHA256MSG2:
    case I_SHA256RNDS2:
        return false;
    default:
        return in->enc == ENC_LEGACY && in->cls == CLS_SSE;
    }
}
