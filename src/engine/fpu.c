/*
 * fpu.c - the guest's x87, MMX, SSE, AVX and AVX-512 state: in the host's registers while the engine runs,
 * in v->fpu while anything else does. Sources: Intel SDM vol. 1 §13 (XSAVE), §11.6 (MXCSR).
 *
 * The compiler is told to leave vector registers alone, so the asm here names them without clobbers.
 */
#include "engine/fpu.h"

#include "engine/cpuid.h"

/* -- Whole state ------------------------------------------------------------------------------------ */

/* Calls nest: a device reached from a helper that has put the state away already only counts. */
void fpu_leave(struct vcpu *v)
{
    static const u32 mxcsr = MXCSR_INIT;
    if (!v->fpu_loaded) {
        v->fpu_depth++;
        return;
    }
    v->fpu_loaded = 0;
    /* XSAVEOPT writes only what changed since the XRSTOR below, of the same place. */
    if (likely(v->model->host_xsaveopt))
        __asm__ volatile("xsaveopt64 (%0)" : : "r"(v->fpu), "a"(XFEATURE_GUEST), "d"(0) : "memory");
    else
        fpu_xsave(v->fpu, XFEATURE_GUEST, true);
    __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr));
}

void fpu_enter(struct vcpu *v)
{
    if (v->fpu_depth) {
        v->fpu_depth--;
        return;
    }
    bug_on(v->fpu_loaded);
    v->fpu_loaded = 1;
    fpu_xrstor(v->fpu, XFEATURE_GUEST, true);
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

/* clang-format off */
#define LOW16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define HIGH16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
/* clang-format on */
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
