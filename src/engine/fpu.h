/*
 * fpu.h - the guest's vector registers while they sit in the host's, by register number. For helpers that
 * run with the guest state loaded (v->fpu_loaded). Implemented in fpu.c; nothing here touches MXCSR.
 */
#pragma once
#include "engine/vcpu.h"

/* XSAVE state components (SDM vol. 1 §13.1). */
#define XFEATURE_X87 0x1u
#define XFEATURE_SSE 0x2u
#define XFEATURE_AVX 0x4u
#define XFEATURE_OPMASK 0x20u
#define XFEATURE_ZMM_HI256 0x40u
#define XFEATURE_HI16_ZMM 0x80u
#define XFEATURE_AVX512 (XFEATURE_OPMASK | XFEATURE_ZMM_HI256 | XFEATURE_HI16_ZMM)
/* Every component a guest may own. */
#define XFEATURE_GUEST (XFEATURE_X87 | XFEATURE_SSE | XFEATURE_AVX | XFEATURE_AVX512)

/* Legacy region, header, then components to at most this much (Hi16_ZMM ends at 0xa80 in standard form). */
#define XSAVE_LEGACY 512u
#define XSAVE_HEADER 64u
#define XSAVE_AREA_MAX 4096u
#define MXCSR_INIT 0x1f80u

/* Where fpu_leave puts the guest's registers. */
struct fpu_aside {
    u8 vec[32][64] __attribute__((aligned(64)));
    u8 x87[XSAVE_LEGACY + XSAVE_HEADER] __attribute__((aligned(64)));
    u64 mask[8];
    u32 mxcsr, used; /* XFEATURE_*: what of it is meant */
};

/* fpu_init_image - reset state in an XSAVE area of XSAVE_AREA_MAX bytes, 64-byte aligned. */
void fpu_init_image(u8 *area);

/* Register 0-15, or 0-31 when the host has AVX-512. `bytes` is 16, 32 or 64; setting 16 or 32 zeroes the rest
 * up to the host's vector length, as VEX and EVEX forms do. */
void fpu_get_vec(unsigned reg, unsigned bytes, void *out);
void fpu_set_vec(unsigned reg, unsigned bytes, const void *in);
void fpu_get_xmm(unsigned reg, void *out16);
u64 fpu_get_mmx(unsigned reg);
/* Opmask registers; AVX-512 hosts only. The 64-bit forms need AVX512BW, which every model with AVX-512 has. */
u64 fpu_get_mask(unsigned reg);
void fpu_set_mask(unsigned reg, u64 val);
/* fpu_xinuse - the components not in their initial state (XGETBV with ECX = 1). */
u64 fpu_xinuse(void);

/* The real instructions, on the guest's live state; host pointers. The caller has made sure that none faults. */
void fpu_fxsave(void *area, bool rex_w);
void fpu_fxrstor(const void *area, bool rex_w);
void fpu_xsave(void *area, u64 rfbm, bool rex_w);
void fpu_xsavec(void *area, u64 rfbm, bool rex_w);
void fpu_xrstor(const void *area, u64 rfbm, bool rex_w);
