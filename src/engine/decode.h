/*
 * decode.h - bytes to struct insn. Pure: knows no VM, allocates nothing, never reads past `avail`.
 * The facts live in insn.def, one row an instruction; this file only reads the encoding.
 * Source: Intel SDM vol. 2 §2 (formats), appendix A (opcode maps).
 */
#pragma once
#include "base/types.h"
#include "x86/x86.h"

#define INSN_MAX 15

/* How the translator treats a row: its whole policy in one word. */
enum how {
    HOW_UD,     /* undefined here: #UD                                                          */
    HOW_COPY,   /* harmless; re-emitted with mapped registers and a guarded memory operand      */
    HOW_BRANCH, /* changes RIP within the segment: jcc jmp call ret loop jcxz                   */
    HOW_STACK,  /* push pop enter leave pushf popf pusha popa: translated in line by id         */
    HOW_STRING, /* movs stos lods scas cmps ins outs, with or without rep: one helper           */
    HOW_SYSTEM, /* everything sensitive or privileged: sys_<id> handler (or in line, by id)     */
};

enum insn_enc { ENC_LEGACY, ENC_VEX, ENC_EVEX, ENC_XOP };
enum insn_map { MAP_ONE, MAP_0F, MAP_0F38, MAP_0F3A, MAP_EVEX5, MAP_EVEX6 };

/* What a register operand names. */
enum regkind {
    RK_NONE,  /* no operand here, or an opcode extension (/digit)        */
    RK_GPR,   /* size from insn.reg_size/rm_size/...: 1, 2, 4 or 8 bytes */
    RK_VEC,   /* xmm, ymm, zmm                                           */
    RK_MMX, RK_MASK /* k0-k7 */, RK_SEG, RK_CR, RK_DR, RK_ST, RK_BND,
};
#define OPA_R 1u /* operand read    */
#define OPA_W 2u /* operand written */

/* prefixes */
#define PFX_66 0x01u
#define PFX_F3 0x02u
#define PFX_F2 0x04u
#define PFX_LOCK 0x08u
#define PFX_67 0x10u
#define PFX_REX 0x20u /* a REX byte is there (spl..dil, not ah..bh) */

#define REG_NONE 0xffu
#define BASE_RIP 0xfeu

/* The CPU's mode as the decoder sees it. */
enum dmode { DMODE_16, DMODE_32, DMODE_64 };

#define X(id, ...) id,
enum insn_id {
    I_INVALID,
#define INSN_IDS
#include "engine/insn_ids.def" /* one X(I_NAME) a mnemonic */
#undef INSN_IDS
    NR_INSN_IDS
};
#undef X

struct insn {
    u8 len;               /* bytes, 1..15                                     */
    u8 enc, map, opcode;  /* enum insn_enc, enum insn_map, last opcode byte   */
    u8 how;               /* enum how                                         */
    u16 id;               /* enum insn_id                                     */
    u8 prefixes;          /* PFX_*                                            */
    u8 rex;               /* 0 or 0x40 | W R X B, also filled from VEX/EVEX (not inverted, low bits only) */
    u8 seg;               /* effective segment of the memory operand (enum segreg), default included */
    bool seg_override;
    u8 opsize;            /* effective operand size: 1, 2, 4, 8 bytes         */
    u8 addrsize;          /* 2, 4, 8 bytes                                    */
    /* ModRM */
    bool has_modrm, has_mem; /* has_mem: mod != 3 memory operand, or moffs     */
    bool moffs;           /* A0-A3: disp holds the full offset, no ModRM      */
    u8 modrm, mod;
    u8 reg, reg_kind, reg_size, reg_acc;   /* ModRM.reg, extended (0..31)     */
    u8 rm, rm_kind, rm_size, rm_acc;       /* ModRM.rm when mod == 3          */
    u8 vvvv, vvvv_kind, vvvv_size, vvvv_acc; /* VEX/EVEX.vvvv                 */
    u8 opreg, opreg_size, opreg_acc;       /* GPR in the opcode's low 3 bits (push, pop, bswap, xchg, mov imm);
                                              REG_NONE if none               */
    u8 is4;               /* register in imm[7:4] (VEX blendv), REG_NONE if none */
    /* memory operand */
    u8 base, index;       /* GPR number, REG_NONE, BASE_RIP (base only)        */
    u8 scale;             /* 1, 2, 4, 8                                       */
    bool vsib;            /* index is a vector register: gather/scatter       */
    s64 disp;             /* sign-extended; EVEX disp8*N already multiplied; moffs whole */
    u16 mem_size;         /* bytes accessed; 0: address only (lea, prefetch, nop) or of run-time size (xsave) */
    u8 mem_acc;           /* OPA_R | OPA_W                                    */
    /* immediates */
    u8 imm_size;          /* bytes of immediate in the encoding, 0..8         */
    u8 imm_off;           /* its offset in the instruction                    */
    s64 imm;              /* sign-extended where the instruction sign-extends; branches: displacement;
                             enter: imm16 | imm8 << 16; far ptr: offset | selector << 32 */
    /* EVEX */
    u8 evex_p2;           /* raw third payload byte (z, L'L, b, V', aaa)      */
    u8 mask;              /* aaa                                              */
    u8 vl;                /* vector length: 16, 32, 64 (0 if not vector)      */
    bool vex_w, bcst;
    u8 pp;                /* VEX/EVEX pp                                      */
    /* effects */
    u16 gpr_read, gpr_write; /* bit per GPR, explicit, implicit and addressing */
    u16 fl_read, fl_write;   /* EFL_ARITH|EFL_DF bits; fl_write: every flag changed or left undefined */
    u16 fl_maybe;            /* subset of fl_write that may also be left as it was (shift by CL) */
    u8 cls;               /* enum insn_cls: which CR0/CR4/XCR0 enable it needs */
    bool cpl0;            /* #GP(0) unless CPL is 0                           */
    bool lockable;        /* LOCK allowed (memory destination forms)          */
};

/* insn_vex_masked - VMASKMOV, VPMASKMOV: lanes that are off are not accessed. */
static inline bool insn_vex_masked(const struct insn *in)
{
    return in->id == I_VMASKMOVPS || in->id == I_VMASKMOVPD || in->id == I_VPMASKMOVD || in->id == I_VPMASKMOVQ;
}

/* insn_aligned - its memory operand must be aligned to its size: the CPU raises #GP. decode.c */
bool insn_aligned(const struct insn *in);

/* Which state an instruction needs enabled; the translator turns a disabled one into #NM or #UD. */
enum insn_cls { CLS_GPR, CLS_X87, CLS_MMX, CLS_SSE, CLS_AVX, CLS_AVX512, CLS_FWAIT };

enum decode_status {
    DECODE_OK,
    DECODE_SHORT, /* more than `avail` bytes are needed (the next page)       */
    DECODE_UD,    /* undefined: #UD; insn.len holds what was consumed         */
    DECODE_LONG,  /* longer than 15 bytes: #GP(0)                             */
};

/*
 * insn_decode - decode one instruction.
 * @mode:  operand and address defaults
 * @p:     the bytes, @avail of them readable
 * @out:   filled on DECODE_OK; how == HOW_UD never comes with DECODE_OK
 * LOCK on an instruction that does not allow it is DECODE_UD. What the host CPU lacks is DECODE_UD:
 * callers pass a feature mask through insn_set_features() once, before any decode.
 */
enum decode_status insn_decode(enum dmode mode, const u8 *p, size_t avail, struct insn *out);

/* The CPU features rows depend on; FEAT_BASE is what every x86-64 has. */
enum insn_feat {
    FEAT_BASE, FEAT_MMX, FEAT_SSE, FEAT_SSE2, FEAT_SSE3, FEAT_SSSE3, FEAT_SSE4, FEAT_SSE42, FEAT_SSE4A,
    FEAT_AES, FEAT_PCLMULQDQ, FEAT_SHA, FEAT_GFNI, FEAT_VAES, FEAT_VPCLMULQDQ, FEAT_AVX, FEAT_AVX2,
    FEAT_FMA, FEAT_F16C, FEAT_AVX_VNNI, FEAT_AVX512F, FEAT_AVX512DQ, FEAT_AVX512BW, FEAT_AVX512CD,
    FEAT_AVX512VL, FEAT_AVX512IFMA, FEAT_AVX512VBMI, FEAT_AVX512VBMI2, FEAT_AVX512VNNI, FEAT_AVX512BITALG,
    FEAT_AVX512VPOPCNTDQ, FEAT_AVX512BF16, FEAT_AVX512VP2INTERSECT, FEAT_BMI1, FEAT_BMI2, FEAT_ADX,
    FEAT_LZCNT, FEAT_POPCNT, FEAT_MOVBE, FEAT_CX16, FEAT_LAHF, FEAT_RDRAND, FEAT_RDSEED, FEAT_RDTSCP,
    FEAT_RDPID, FEAT_FSGSBASE, FEAT_INVPCID, FEAT_SMAP, FEAT_MONITOR, FEAT_PREFETCHW, FEAT_CLFLUSH,
    FEAT_CLFLUSHOPT, FEAT_CLWB, FEAT_XSAVE, FEAT_XSAVEC, FEAT_XSAVEOPT, FEAT_XSAVES,
    NR_FEAT
};
_Static_assert(NR_FEAT <= 64, "feature masks are 64 bits");
#define FEAT_NEED_YMM (1ull << FEAT_AVX | 1ull << FEAT_AVX2 | 1ull << FEAT_FMA | 1ull << FEAT_F16C | \
                       1ull << FEAT_AVX_VNNI | 1ull << FEAT_VAES | 1ull << FEAT_VPCLMULQDQ)
/* the AVX-512 features are neighbours */
#define FEAT_NEED_ZMM ((2ull << FEAT_AVX512VP2INTERSECT) - (1ull << FEAT_AVX512F))

/* insn_init - build the decoder's index; idempotent, thread-safe, and done by the first decode if need be. */
void insn_init(void);

/* insn_set_features - what guests may use: bits 1 << FEAT_*. What the host lacks stays off. Before any decode. */
void insn_set_features(u64 mask);

/* insn_name - mnemonic of an id, for traces. */
const char *insn_name(unsigned id);
