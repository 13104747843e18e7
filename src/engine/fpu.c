/*
 * fpu.c - the guest's x87, MMX, SSE, AVX and AVX-512 state: in the host's registers while the engine runs,
 * in v->fpu while anything else does. Sources: Intel SDM vol. 1 §13 (XSAVE), §11.6 (MXCSR).
 *
 * The compiler is told to leave vector registers alone, so the asm here names them without clobbers.
 */
#include "engine/fpu.h"

#include "engine/cpuid.h"
#include "engine/engine.h"

/* -- Whole state ------------------------------------------------------------------------------------ */

static const u32 mxcsr_init = MXCSR_INIT;
/* XSTATE_BV is 0: XRSTOR of it initializes. */
static const u8 initial[XSAVE_LEGACY + XSAVE_HEADER] __attribute__((aligned(64)));

void fpu_save(struct vcpu *v)
{
    bug_on(!v->fpu_loaded);
    v->fpu_loaded = 0;
    fpu_xsave(v->fpu, XFEATURE_GUEST, true);
    __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr_init));
}

void fpu_load(struct vcpu *v)
{
    bug_on(v->fpu_loaded || v->fpu_depth);
    v->fpu_loaded = 1;
    fpu_xrstor(v->fpu, XFEATURE_GUEST, true);
}

/* -- Around a call of ordinary C ----------------------------------------------------------------------- */

/* clang-format off */
#define LOW16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define HIGH16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
#define MASKS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
/* clang-format on */
#define PUT(insn, cls, n, size) insn " %%" cls #n ", " #size "*" #n "(%0)\n\t"
#define TAKE(insn, cls, n, size) insn " " #size "*" #n "(%0), %%" cls #n "\n\t"
#define PUT_X(n) PUT("movaps", "xmm", n, 64)
#define PUT_Y(n) PUT("vmovaps", "ymm", n, 64)
#define PUT_Z(n) PUT("vmovaps", "zmm", n, 64)
#define PUT_K(n) PUT("kmovq", "k", n, 8)
#define TAKE_X(n) TAKE("movaps", "xmm", n, 64)
#define TAKE_Y(n) TAKE("vmovaps", "ymm", n, 64)
#define TAKE_Z(n) TAKE("vmovaps", "zmm", n, 64)
#define TAKE_K(n) TAKE("kmovq", "k", n, 8)
#define TO(to, list) __asm__ volatile(list : : "r"(to) : "memory")

/*
 * XSAVE and XRSTOR of everything take some 180 ns (AMD, 2024); moving the registers that are in use takes 60. Components in
 * their initial state are not moved; those that C has put into use are initialized again.
 * Calls nest: a device reached from a helper that has put the state away already only counts.
 */
void fpu_leave(struct vcpu *v)
{
    struct fpu_aside *a = &v->eng->fpu_aside;
    if (!v->fpu_loaded) {
        v->fpu_depth++;
        return;
    }
    if (unlikely(!v->model->host_xinuse)) {
        fpu_save(v);
        return;
    }
    v->fpu_loaded = 0;
    u32 used = a->used = (u32)fpu_xinuse() & XFEATURE_GUEST;
    __asm__ volatile("stmxcsr %0" : "=m"(a->mxcsr));
    if (used & XFEATURE_ZMM_HI256)
        TO(a->vec, LOW16(PUT_Z));
    else if (used & XFEATURE_AVX)
        TO(a->vec, LOW16(PUT_Y));
    else
        TO(a->vec, LOW16(PUT_X));
    if (used & XFEATURE_HI16_ZMM)
        TO(a->vec, HIGH16(PUT_Z));
    if (used & XFEATURE_OPMASK)
        TO(a->mask, MASKS(PUT_K));
    if (used & XFEATURE_X87) {
        fpu_xsave(a->x87, XFEATURE_X87, true);
        __asm__ volatile("fninit");
    }
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr_init));
}

void fpu_enter(struct vcpu *v)
{
    struct fpu_aside *a = &v->eng->fpu_aside;
    if (v->fpu_depth) {
        v->fpu_depth--;
        return;
    }
    if (unlikely(!v->model->host_xinuse)) {
        fpu_load(v);
        return;
    }
    bug_on(v->fpu_loaded);
    v->fpu_loaded = 1;
    u32 used = a->used, dirty = (u32)fpu_xinuse() & XFEATURE_GUEST & ~(used | XFEATURE_SSE);
    if (unlikely(dirty))
        fpu_xrstor(initial, dirty, true);
    if (used & XFEATURE_ZMM_HI256)
        TO(a->vec, LOW16(TAKE_Z));
    else if (used & XFEATURE_AVX)
        TO(a->vec, LOW16(TAKE_Y));
    else
        TO(a->vec, LOW16(TAKE_X));
    if (used & XFEATURE_HI16_ZMM)
        TO(a->vec, HIGH16(TAKE_Z));
    if (used & XFEATURE_OPMASK)
        TO(a->mask, MASKS(TAKE_K));
    if (used & XFEATURE_X87)
        fpu_xrstor(a->x87, XFEATURE_X87, true);
    __asm__ volatile("ldmxcsr %0" : : "m"(a->mxcsr));
}

void fpu_init_image(u8 *area)
{
    u64 *p = (u64 *)area;
    for (unsigned i = 0; i < XSAVE_AREA_MAX / 8; i++) {
        p[i] = 0;
        __asm__("" : "+r"(p)); /* or it becomes memset, which uses vector registers */
    }
    p[0] = 0x37f;                  /* FCW; also what XSTATE_BV[0] = 0 means */
    p[3] = MXCSR_INIT;             /* offset 24: read whatever XSTATE_BV says */
}

/* -- Registers by number ---------------------------------------------------------------------------- */

#define GET(insn, cls, n) \
    case n: \
        __asm__ volatile(insn " %%" cls #n ", (%0)" : : "r"(out) : "memory"); \
        break;
#define SET(insn, cls, n) \
    case n: \
        __asm__ volatile(insn " (%0), %%" cls #n : : "r"(in) : "memory"); \
        break;

void fpu_get_xmm(unsigned reg, void *out)
{
#define X(n) GET("movups", "xmm", n)
    switch (reg) { LOW16(X) }
#undef X
}

void fpu_get_vec(unsigned reg, unsigned bytes, void *out)
{
#define Y(n) GET("vmovups", "ymm", n)
#define ZX(n) GET("vmovups", "xmm", n)
#define ZY(n) GET("vmovups", "ymm", n)
#define Z(n) GET("vmovups", "zmm", n)
    if (bytes == 16 && reg < 16) {
        fpu_get_xmm(reg, out);
    } else if (bytes == 32 && reg < 16) {
        switch (reg) { LOW16(Y) }
    } else if (bytes == 16) {
        switch (reg) { HIGH16(ZX) }
    } else if (bytes == 32) {
        switch (reg) { HIGH16(ZY) }
    } else {
        switch (reg) { LOW16(Z) HIGH16(Z) }
    }
#undef Y
#undef ZX
#undef ZY
#undef Z
}

void fpu_set_vec(unsigned reg, unsigned bytes, const void *in)
{
#define X(n) SET("vmovups", "xmm", n)
#define Y(n) SET("vmovups", "ymm", n)
#define Z(n) SET("vmovups", "zmm", n)
    if (bytes == 16) {
        if (reg < 16)
            switch (reg) { LOW16(X) }
        else
            switch (reg) { HIGH16(X) }
    } else if (bytes == 32) {
        if (reg < 16)
            switch (reg) { LOW16(Y) }
        else
            switch (reg) { HIGH16(Y) }
    } else {
        switch (reg) { LOW16(Z) HIGH16(Z) }
    }
#undef X
#undef Y
#undef Z
}

u64 fpu_get_mmx(unsigned reg)
{
    u64 val = 0, *out = &val;
#define M(n) GET("movq", "mm", n)
    switch (reg & 7) { M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) }
#undef M
    return val;
}

u64 fpu_get_mask(unsigned reg)
{
    u64 val = 0, *out = &val;
#define K(n) GET("kmovq", "k", n)
    switch (reg & 7) { K(0) K(1) K(2) K(3) K(4) K(5) K(6) K(7) }
#undef K
    return val;
}

void fpu_set_mask(unsigned reg, u64 val)
{
    const u64 *in = &val;
#define K(n) SET("kmovq", "k", n)
    switch (reg & 7) { K(0) K(1) K(2) K(3) K(4) K(5) K(6) K(7) }
#undef K
}
#undef GET
#undef SET

u64 fpu_xinuse(void)
{
    u32 lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(1));
    return (u64)hi << 32 | lo;
}

/* -- The real instructions ----------------------------------------------------------------------------- */

void fpu_fxsave(void *area, bool rex_w)
{
    if (rex_w)
        __asm__ volatile("fxsave64 (%0)" : : "r"(area) : "memory");
    else
        __asm__ volatile("fxsave (%0)" : : "r"(area) : "memory");
}

void fpu_fxrstor(const void *area, bool rex_w)
{
    if (rex_w)
        __asm__ volatile("fxrstor64 (%0)" : : "r"(area) : "memory");
    else
        __asm__ volatile("fxrstor (%0)" : : "r"(area) : "memory");
}

#define AREA_RFBM "r"(area), "a"((u32)rfbm), "d"((u32)(rfbm >> 32))

void fpu_xsave(void *area, u64 rfbm, bool rex_w)
{
    if (rex_w)
        __asm__ volatile("xsave64 (%0)" : : AREA_RFBM : "memory");
    else
        __asm__ volatile("xsave (%0)" : : AREA_RFBM : "memory");
}

void fpu_xsavec(void *area, u64 rfbm, bool rex_w)
{
    if (rex_w)
        __asm__ volatile("xsavec64 (%0)" : : AREA_RFBM : "memory");
    else
        __asm__ volatile("xsavec (%0)" : : AREA_RFBM : "memory");
}

void fpu_xrstor(const void *area, u64 rfbm, bool rex_w)
{
    if (rex_w)
        __asm__ volatile("xrstor64 (%0)" : : AREA_RFBM : "memory");
    else
        __asm__ volatile("xrstor (%0)" : : AREA_RFBM : "memory");
}
