/*
 * fpu.c - x87, SSE, AVX and AVX-512 state: who may use it, exceptions, the save and restore family.
 * Intel SDM vol. 1 §8 (x87), §11.5 (SIMD exceptions), §13 (XSAVE); vol. 3 §2.5, §13.
 */
#include "lib/guest.h"

static u8 area[2][4096 * 3] __attribute__((aligned(4096)));
static u8 fx[2][512] __attribute__((aligned(64)));

static u64 xcr0_all;

static u64 xgetbv(u32 reg)
{
    u32 lo, hi;
    asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(reg));
    return (u64)hi << 32 | lo;
}
static void xsetbv(u64 v)
{
    asm volatile("xsetbv" ::"a"((u32)v), "d"((u32)(v >> 32)), "c"(0));
}
static u32 stmxcsr(void)
{
    u32 v;
    asm volatile("stmxcsr %0" : "=m"(v));
    return v;
}
static void ldmxcsr(u32 v)
{
    asm volatile("ldmxcsr %0" ::"m"(v));
}
static u16 fnstsw(void)
{
    u16 v;
    asm volatile("fnstsw %0" : "=a"(v));
    return v;
}
static void fldcw(u16 v)
{
    asm volatile("fldcw %0" ::"m"(v));
}

/* -- Availability
 * ---------------------------------------------------------------------------------- */

static void available(void)
{
    u64 cr0 = RD(cr0), cr4 = RD(cr4);
    u32 m = 0x1f80;
    WR(cr0, cr0 | CR0_TS);
    report("TS: x87 is #NM", TRY("fld1", ::) == NM && TRY("fnstcw (%0)", ::"r"(fx)
                                                          : "memory") == NM);
    report("TS: fninit is #NM", TRY("fninit", ::) == NM);
    report("TS: MMX is #NM", TRY("movq %%mm0, %%mm1", ::) == NM && TRY("emms", ::) == NM);
    report("TS: SSE is #NM", TRY("movaps %%xmm0, %%xmm1", ::) == NM);
    report("TS: ldmxcsr is #NM", TRY("ldmxcsr %0", ::"m"(m)) == NM);
    report("TS: fxsave, fxrstor are #NM", TRY("fxsave64 (%0)", ::"r"(fx)
                                              : "memory") == NM &&
                                              TRY("fxrstor64 (%0)", ::"r"(fx)) == NM);
    report("TS and MP: fwait is #NM", TRY("fwait", ::) == NM);
    report("TS: movnti, popcnt, prefetch, fences are not",
           TRY("movnti %%rax, (%0); prefetcht0 (%0); sfence; clflush (%0)", ::"r"(fx)
               : "memory") == VEC_NONE);
    WR(cr0, (cr0 | CR0_TS) & ~CR0_MP);
    report_eq("TS without MP: fwait is not", TRY("fwait", ::), VEC_NONE);
    WR(cr0, (cr0 | CR0_EM) & ~CR0_MP);
    report("EM: x87 is #NM", TRY("fld1", ::) == NM);
    report("EM: SSE is #UD", TRY("movaps %%xmm0, %%xmm1", ::) == UD);
    report("EM: MMX is #UD", TRY("movq %%mm0, %%mm1", ::) == UD);
    WR(cr0, cr0);
    WR(cr4, cr4 & ~CR4_OSFXSR);
    report("no OSFXSR: SSE is #UD",
           TRY("movaps %%xmm0, %%xmm1", ::) == UD && TRY("ldmxcsr %0", ::"m"(m)) == UD);
    report_eq("no OSFXSR: x87 and MMX work", TRY("fninit; movq %%mm0, %%mm1; emms", ::), VEC_NONE);
    WR(cr4, cr4);
    if (has(HAS_XSAVE)) {
        report("no OSXSAVE: xsave, xrstor are #UD",
               TRY("xsave (%0)", ::"r"(area), "a"(3), "d"(0)) == UD &&
                   TRY("xrstor (%0)", ::"r"(area), "a"(3), "d"(0)) == UD);
        WR(cr4, RD(cr4) | CR4_OSXSAVE);
        WR(cr0, cr0 | CR0_TS);
        report("TS: xsave is #NM", TRY("xsave (%0)", ::"r"(area), "a"(3), "d"(0) : "memory") == NM);
        xsetbv(xcr0_all);
        if (xcr0_all & 4)
            report("TS: AVX is #NM",
                   TRY("vmovaps %%ymm0, %%ymm1", ::) == NM && TRY("vzeroupper", ::) == NM);
        if (xcr0_all & 0x20)
            report("TS: AVX-512 is #NM", TRY("vmovdqu64 %%zmm0, %%zmm1", ::) == NM &&
                                             TRY("kxorw %%k1, %%k1, %%k1", ::) == NM);
        WR(cr0, cr0);
        if (xcr0_all & 0x20) {
            xsetbv(7);
            report("AVX-512 without its XCR0 bits is #UD",
                   TRY("vmovdqu64 %%zmm0, %%zmm1", ::) == UD);
            xsetbv(xcr0_all);
            report_eq("with them it runs", TRY("vmovdqu64 %%zmm0, %%zmm1", ::), VEC_NONE);
        }
    }
}

/* -- x87 exceptions
 * ----------------------------------------------------------------------------------- */

KERNEL_ASM(
    "mf_run: fninit\n fldcw (%rdi)\n fldz\n fld1\nmf_div: fdiv %st(1), %st\n nop\nmf_wait: fwait\nmf_end: ret");
extern char mf_run[], mf_div[], mf_wait[], mf_end[];

static void x87(void)
{
    u16 cw = 0x037f & ~4; /* zero divide unmasked */
    unsigned v = TRY("call mf_run", ::"D"(&cw) : "memory");
    report("#MF comes at the next waiting instruction",
           v == MF && trap.r.err == 0 && trap.r.rip == (u64)mf_wait);
    u16 sw = fnstsw();
    report("FSW: ZE, ES, B", (sw & 0x80ff) == 0x8084);
    report("#MF again while it is pending", TRY("fld1", ::) == MF && TRY("fwait", ::) == MF);
    report("MMX sees it as well", TRY("movq %%mm0, %%mm1", ::) == MF);
    report_eq("fnstsw, fnstcw, fnstenv do not wait",
              TRY("fnstsw %%ax; fnstcw (%0); fnclex; fnop", ::"r"(fx)
                  : "rax", "memory"),
              VEC_NONE);
    report_eq("fnclex cleared it", fnstsw() & 0x80ff, 0);
    TRY("call mf_run", ::"D"(&cw) : "memory");
    struct {
        u32 cw, sw, tw, fip, fcs, fdp, fds;
    } env;
    asm volatile("fnstenv %0" : "=m"(env)::"memory");
    report_eq("FIP is the guest's instruction", env.fip, (u32)(u64)mf_div);
    report("fnstenv masks everything", TRY("fwait", ::) == VEC_NONE);
    asm volatile("fninit");
    /* The other ones. */
    u64 denormal = 1, big = 0x7fefffffffffffff;
    cw = 0x037f & ~1;
    v = TRY("fninit; fldcw (%0); fld1; fchs; fsqrt; fwait", ::"r"(&cw));
    report("#MF: invalid operation", v == MF && (fnstsw() & 1));
    cw = 0x037f & ~2;
    v = TRY("fninit; fldcw (%0); fldl (%1); fwait", ::"r"(&cw), "r"(&denormal));
    report("#MF: denormal", v == MF && (fnstsw() & 2));
    cw = 0x037f & ~8;
    v = TRY("fninit; fldcw (%0); fldl (%1); fmul %%st(0); fstps (%2); fwait", ::"r"(&cw), "r"(&big),
            "r"(fx)
            : "memory");
    report("#MF: overflow", v == MF && (fnstsw() & 8));
    cw = 0x037f & ~0x20;
    v = TRY("fninit; fldcw (%0); fld1; fldpi; fdivrp; fwait", ::"r"(&cw));
    report("#MF: precision", v == MF && (fnstsw() & 0x20));
    cw = 0x037f & ~1;
    v = TRY("fninit; fldcw (%0); fstp %%st(0); fwait", ::"r"(&cw));
    report("#MF: stack underflow", v == MF && (fnstsw() & 0x241) == 0x41);
    v = TRY("fninit; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fldcw (%0); fld1; fwait",
            ::"r"(&cw));
    report("#MF: stack overflow", v == MF && (fnstsw() & 0x241) == 0x241);
    asm volatile("fninit");
    /* With NE clear the exception would be an interrupt 13; at least it is no #MF. */
    u64 bits;
    fldcw(0x027f);
    asm volatile("fld1; fldpi; fdivrp; fstpt %0" : "=m"(fx));
    bits = *(u64 *)fx;
    report("precision control: 53 bits", (bits & 0x7ff) == 0);
    fldcw(0x037f);
    asm volatile("fld1; fldpi; fdivrp; fstpt %0" : "=m"(fx));
    report("precision control: 64 bits", (*(u64 *)fx & 0x7ff) != 0);
    static const u16 rc[] = {0x037f, 0x077f, 0x0b7f, 0x0f7f};
    static const s64 want[] = {2, 2, 3, 2};
    bool ok = true;
    u64 two_and_half = 0x4004000000000000;
    for (int i = 0; i < 4; i++) {
        s64 out;
        fldcw(rc[i]);
        asm volatile("fldl %1; fistpll %0" : "=m"(out) : "m"(two_and_half));
        ok &= out == want[i];
    }
    report("rounding control", ok);
    fldcw(0x037f);
}

/* -- SIMD exceptions
 * ------------------------------------------------------------------------------------- */

KERNEL_ASM("xm_run: movss (%rdi), %xmm0\n movss 4(%rdi), %xmm1\nxm_op: divss %xmm1, %xmm0\n ret");
extern char xm_run[], xm_op[];

static void simd(void)
{
    static u32 in[2] = {0x3f800000, 0}; /* 1 / 0 */
    ldmxcsr(0x1f80 & ~0x200);
    unsigned v = TRY("call xm_run", ::"D"(in));
    report("#XM: division by zero, RIP at it",
           v == XM && trap.r.err == 0 && trap.r.rip == (u64)xm_op);
    u32 x;
    asm volatile("movd %%xmm0, %0" : "=r"(x));
    report_eq("the destination is unchanged", x, in[0]);
    report_eq("MXCSR has the flag", stmxcsr(), (0x1f80 & ~0x200) | 4);
    ldmxcsr(0x1f80);
    asm volatile("call xm_run" ::"D"(in));
    asm volatile("movd %%xmm0, %0" : "=r"(x));
    report("masked: infinity and the flag", x == 0x7f800000 && stmxcsr() == 0x1f84);
    static const struct {
        const char *name;
        u32 a, b, flag;
    } row[] = {
        {"invalid", 0, 0, 1},
        {"denormal", 1, 0x3f800000, 2},
        {"zero divide", 0x3f800000, 0, 4},
        {"overflow", 0x7f7fffff, 0x00800000, 8},
        {"underflow", 0x00800000, 0x7f7fffff, 16},
        {"precision", 0x3f800000, 0x40400000, 32},
    };
    for (unsigned i = 0; i < ARRAY_LEN(row); i++) {
        in[0] = row[i].a;
        in[1] = row[i].b;
        ldmxcsr(0x1f80 & ~(row[i].flag << 7));
        v = TRY("call xm_run", ::"D"(in));
        reportf(v == XM && (stmxcsr() & row[i].flag), "#XM: %s", row[i].name);
    }
    ldmxcsr(0x1f80 & ~0x80);
    u32 nan[4] __attribute__((aligned(16))) = {0x7fa00000, 0, 0, 0};
    report("#XM: ucomiss with a signalling NaN",
           TRY("movss (%0), %%xmm0; ucomiss %%xmm0, %%xmm0", ::"r"(nan)
               : "cc") == XM);
    report("#XM: cvttss2si", TRY("movss (%0), %%xmm0; cvttss2si %%xmm0, %%eax", ::"r"(nan)
                                 : "rax") == XM);
    report("#XM: packed, memory operand",
           TRY("movups (%0), %%xmm0; addps (%0), %%xmm0", ::"r"(nan)) == XM);
    if (xcr0_all & 4)
        report("#XM: VEX form",
               TRY("vmovups (%0), %%xmm0; vaddps %%xmm0, %%xmm0, %%xmm1", ::"r"(nan)) == XM);
    report("#PF before #XM",
           TRY("movups (%0), %%xmm0; addss (%1), %%xmm0", ::"r"(nan), "r"(PAGE3)) == PF);
    WR(cr4, RD(cr4) & ~CR4_OSXMMEXCPT);
    report("without OSXMMEXCPT it is #UD",
           TRY("movss (%0), %%xmm0; ucomiss %%xmm0, %%xmm0", ::"r"(nan)
               : "cc") == UD);
    WR(cr4, RD(cr4) | CR4_OSXMMEXCPT);
    ldmxcsr(0x1f80);
    u32 bad = 0x1f80 | BIT(16);
    report("ldmxcsr with reserved bits is #GP(0)",
           TRY("ldmxcsr %0", ::"m"(bad)) == GP && trapped(GP, 0));
    /* Rounding and flushing live in MXCSR. */
    static const u32 rc[] = {0x1f80, 0x3f80, 0x5f80, 0x7f80};
    static const s64 want[] = {2, 2, 3, 2};
    bool ok = true;
    u64 two_and_half = 0x4004000000000000;
    for (int i = 0; i < 4; i++) {
        s64 out;
        ldmxcsr(rc[i]);
        asm volatile("cvtsd2si %1, %0" : "=r"(out) : "m"(two_and_half));
        ok &= out == want[i];
    }
    report("MXCSR rounding control", ok);
    in[0] = 0x00800000;
    in[1] = 0x40000000; /* a denormal result */
    ldmxcsr(0x9f80);
    asm volatile("call xm_run" ::"D"(in));
    asm volatile("movd %%xmm0, %0" : "=r"(x));
    report_eq("flush to zero", x, 0);
    ldmxcsr(0x1fc0);
    in[0] = 5;
    in[1] = 0x3f800000;
    asm volatile("call xm_run" ::"D"(in));
    asm volatile("movd %%xmm0, %0" : "=r"(x));
    report_eq("denormals are zero", x, 0);
    ldmxcsr(0x1f80);
}

/* -- fxsave
 * -------------------------------------------------------------------------------------------------
 */

static void fxsave(void)
{
    u8 *f = fx[0], *g = fx[1];
    memset(fx, 0xa5, sizeof(fx));
    u64 xmm[2] = {0x1122334455667788, 0x99aabbccddeeff00};
    ldmxcsr(0x3f80);
    asm volatile(
        "fninit; fldpi; fld1; movups %1, %%xmm0; movups %1, %%xmm15; fxsave64 (%0)" ::"r"(f),
        "m"(xmm)
        : "memory");
    report("fxsave: FCW, FSW, FTW",
           *(u16 *)f == 0x37f && (*(u16 *)(f + 2) & 0x3800) == 0x3000 && f[4] == 0xc0 && f[5] == 0);
    report_eq("fxsave: MXCSR", *(u32 *)(f + 24), 0x3f80);
    report("fxsave: MXCSR_MASK", (*(u32 *)(f + 28) & 0xffbf) == 0xffbf);
    report("fxsave: ST0 is 1.0, ST1 is pi", *(u64 *)(f + 32) == BIT(63) &&
                                                *(u16 *)(f + 40) == 0x3fff &&
                                                *(u64 *)(f + 48) == 0xc90fdaa22168c235);
    report("fxsave: XMM0 and XMM15", !memcmp(f + 160, xmm, 16) && !memcmp(f + 400, xmm, 16));
    report("fxsave: the last 48 bytes are not touched", f[464] == 0xa5 && f[511] == 0xa5);
    ldmxcsr(0x1f80);
    asm volatile(
        "fninit; xorps %%xmm0, %%xmm0; xorps %%xmm15, %%xmm15; fxrstor64 (%0); fxsave64 (%1)" ::"r"(
            f),
        "r"(g)
        : "memory");
    report("fxrstor brings all back", !memcmp(f, g, 8) && !memcmp(f + 24, g + 24, 4) &&
                                          !memcmp(f + 32, g + 32, 8 * 16) &&
                                          !memcmp(f + 160, g + 160, 256));
    report_eq("fxrstor: MXCSR takes effect", stmxcsr(), 0x3f80);
    ldmxcsr(0x1f80);
    report("fxsave unaligned is #GP(0)", TRY("fxsave64 (%0)", ::"r"(f + 8)
                                             : "memory") == GP &&
                                             trapped(GP, 0));
    *(u32 *)(g + 24) = 0x10000;
    report("fxrstor with reserved MXCSR bits is #GP(0)",
           TRY("fxrstor64 (%0)", ::"r"(g)) == GP && trapped(GP, 0));
    memset(g, 0, 512);
    asm volatile("fxsave (%0)" ::"r"(g) : "memory");
    report("32-bit fxsave", *(u16 *)g == 0x37f && !memcmp(g + 160, xmm, 16));
    asm volatile("fnsave (%0)" ::"r"(g) : "memory");
    report("fnsave saves and resets",
           fnstsw() == 0 && *(u16 *)g == 0x37f && *(u64 *)(g + 28) == BIT(63));
    asm volatile("frstor (%0); fnstsw %%ax" ::"r"(g) : "rax");
    report_eq("frstor", fnstsw() & 0x3800, 0x3000);
    asm volatile("fninit");
}

/* -- xsave
 * ----------------------------------------------------------------------------------------------------
 */

#define XS(op, p, mask)                                                                            \
    asm volatile(op " (%0)" ::"r"(p), "a"((u32)(mask)), "d"((u32)((u64)(mask) >> 32)) : "memory")
#define TRY_XS(op, p, mask)                                                                        \
    TRY(op " (%0)", ::"r"(p), "a"((u32)(mask)), "d"((u32)((u64)(mask) >> 32)) : "memory")

static void set_vectors(u64 seed)
{
    static u64 v[8] __attribute__((aligned(64)));
#define SEED(n)                                                                                    \
    for (int i_ = 0; i_ < 8; i_++)                                                                 \
    v[i_] = (seed + (n)) * 0x9e3779b97f4a7c15ull + (u64)i_
#define X1(n)                                                                                      \
    SEED(n);                                                                                       \
    asm volatile("movups %0, %%xmm" #n ::"m"(v))
#define Y1(n)                                                                                      \
    SEED(n);                                                                                       \
    asm volatile("vmovups %0, %%ymm" #n ::"m"(v))
#define Z1(n)                                                                                      \
    SEED(n);                                                                                       \
    asm volatile("vmovups %0, %%zmm" #n ::"m"(v))
#define ALL16(m)                                                                                   \
    m(0);                                                                                          \
    m(1);                                                                                          \
    m(2);                                                                                          \
    m(3);                                                                                          \
    m(4);                                                                                          \
    m(5);                                                                                          \
    m(6);                                                                                          \
    m(7);                                                                                          \
    m(8);                                                                                          \
    m(9);                                                                                          \
    m(10);                                                                                         \
    m(11);                                                                                         \
    m(12);                                                                                         \
    m(13);                                                                                         \
    m(14);                                                                                         \
    m(15)
    u64 x = has(HAS_XSAVE) && (RD(cr4) & CR4_OSXSAVE) ? xgetbv(0) : 3;
    if (x & 0x20) {
        ALL16(Z1);
        Z1(16);
        Z1(23);
        Z1(31);
        u32 k = (u32)seed;
        asm volatile("kmovw %0, %%k1; kmovw %0, %%k7" ::"r"(k));
    } else if (x & 4) {
        ALL16(Y1);
    } else {
        ALL16(X1);
    }
}

static bool check_vectors(u64 seed)
{
    static u64 v[8] __attribute__((aligned(64)));
    bool ok = true;
    u64 x = has(HAS_XSAVE) && (RD(cr4) & CR4_OSXSAVE) ? xgetbv(0) : 3;
#define CHECK(n, words)                                                                            \
    for (int i_ = 0; i_ < (words); i_++)                                                           \
    ok &= v[i_] == (seed + (n)) * 0x9e3779b97f4a7c15ull + (u64)i_
#define CX1(n)                                                                                     \
    asm volatile("movups %%xmm" #n ", %0" : "=m"(v));                                              \
    CHECK(n, 2)
#define CY1(n)                                                                                     \
    asm volatile("vmovups %%ymm" #n ", %0" : "=m"(v));                                             \
    CHECK(n, 4)
#define CZ1(n)                                                                                     \
    asm volatile("vmovups %%zmm" #n ", %0" : "=m"(v));                                             \
    CHECK(n, 8)
    if (x & 0x20) {
        ALL16(CZ1);
        CZ1(16);
        CZ1(23);
        CZ1(31);
        u32 k1, k7;
        asm volatile("kmovw %%k1, %0; kmovw %%k7, %1" : "=r"(k1), "=r"(k7));
        ok &= k1 == (u16)seed && k7 == (u16)seed;
    } else if (x & 4) {
        ALL16(CY1);
    } else {
        ALL16(CX1);
    }
    return ok;
}

static void xsave(void)
{
    if (!has(HAS_XSAVE)) {
        skip("xsave", "not in CPUID");
        return;
    }
    u64 all = xcr0_all;
    u8 *p = area[0], *q = area[1];
    memset(area, 0, sizeof(area));
    asm volatile("fninit; fldpi");
    set_vectors(7);
    XS("xsave", p, all);
    report_eq("xsave: XSTATE_BV", *(u64 *)(p + 512) & 7, 7 & all);
    report("xsave: header beyond it is zero", *(u64 *)(p + 520) == 0);
    set_vectors(8);
    asm volatile("fninit");
    XS("xrstor", p, all);
    report("xrstor brings the vectors back", check_vectors(7));
    u64 pi;
    asm volatile("fstpt %0" : "=m"(fx[0]));
    pi = *(u64 *)fx[0];
    report_eq("and the x87 stack", pi, 0xc90fdaa22168c235);
    /* Parts. */
    set_vectors(9);
    XS("xsave", q, 1);
    report_eq("xsave of x87 only leaves the rest of the area", *(u64 *)(q + 160), 0);
    XS("xrstor", p, all & ~3ull);
    u64 v[4] = {0};
    if (all & 4) {
        asm volatile("vmovups %%ymm3, %0" : "=m"(v));
        report("xrstor of the upper halves only", v[0] == (9 + 3) * 0x9e3779b97f4a7c15ull &&
                                                      v[2] == (7 + 3) * 0x9e3779b97f4a7c15ull + 2);
    }
    /* Initial state. */
    memset(q, 0, 4096);
    *(u32 *)(q + 24) = 0x1f80;
    set_vectors(10);
    asm volatile("fldpi");
    XS("xrstor", q, all);
    asm volatile("movups %%xmm5, %0" : "=m"(v));
    report("xrstor with XSTATE_BV 0: vectors are zero", v[0] == 0 && v[1] == 0);
    report("and the x87 is as after fninit", fnstsw() == 0 && ({
                                                 asm volatile("fnstcw %0" : "=m"(fx[0]));
                                                 *(u16 *)fx[0] == 0x37f;
                                             }));
    if (all & 4) {
        asm volatile("vmovups %%ymm5, %0" : "=m"(v));
        report("the upper halves as well", v[2] == 0 && v[3] == 0);
    }
    ldmxcsr(0x3f80);
    XS("xrstor", q, 2);
    report_eq("MXCSR comes from memory even then", stmxcsr(), 0x1f80);

    /* Refusals. */
    report("xsave not aligned to 64 is #GP(0)",
           TRY_XS("xsave", p + 16, all) == GP && trapped(GP, 0));
    XS("xsave", q, all);
    *(u64 *)(q + 512) |= BIT(62);
    report("xrstor: XSTATE_BV bits outside XCR0 are #GP(0)",
           TRY_XS("xrstor", q, all) == GP && trapped(GP, 0));
    XS("xsave", q, all);
    *(u64 *)(q + 512) &= ~BIT(62);
    *(u64 *)(q + 528) = 1;
    report("xrstor: header bytes 23:16 are #GP(0)",
           TRY_XS("xrstor", q, all) == GP && trapped(GP, 0));
    *(u64 *)(q + 528) = 0;
    *(u64 *)(q + 520) = 1;
    report("xrstor: XCOMP_BV without bit 63 is #GP(0)",
           TRY_XS("xrstor", q, all) == GP && trapped(GP, 0));
    *(u64 *)(q + 520) = 0;
    *(u32 *)(q + 24) = 0x10000;
    report("xrstor: bad MXCSR is #GP(0)", TRY_XS("xrstor", q, all) == GP && trapped(GP, 0));
    *(u32 *)(q + 24) = 0x1f80;

    if (has(HAS_XSAVEOPT)) {
        memset(q, 0, 4096);
        set_vectors(11);
        XS("xsaveopt", q, all);
        set_vectors(12);
        XS("xrstor", q, all);
        report("xsaveopt", check_vectors(11));
        /* The init optimization may skip what is in its initial state, the header must say so. */
        memset(q, 0xff, 512);
        memset(q + 512, 0, 3000);
        asm volatile("fninit");
        XS("xsaveopt", q, 1);
        report("xsaveopt of an initial x87: in the header or in memory",
               !(*(u64 *)(q + 512) & 1) || *(u16 *)q == 0x37f);
    } else {
        skip("xsaveopt", "not in CPUID");
    }
    if (has(HAS_XSAVEC)) {
        memset(q, 0, 4096);
        set_vectors(13);
        XS("xsavec", q, all);
        report_eq("xsavec: XCOMP_BV", *(u64 *)(q + 520), BIT(63) | all);
        set_vectors(14);
        XS("xrstor", q, all);
        report("xsavec, xrstor", check_vectors(13));
        if (all & 4) {
            memset(q, 0, 4096);
            XS("xsavec", q, 4);
            report("xsavec of AVX alone puts it at 576",
                   *(u64 *)(q + 520) == (BIT(63) | 4) &&
                       *(u64 *)(q + 576) == 13 * 0x9e3779b97f4a7c15ull + 2);
        }
        *(u64 *)(q + 520) |= BIT(62);
        report("xrstor: XCOMP_BV outside XCR0 is #GP(0)",
               TRY_XS("xrstor", q, all) == GP && trapped(GP, 0));
    } else {
        skip("xsavec", "not in CPUID");
    }
    if (has(HAS_XSAVES)) {
        memset(q, 0, 4096);
        set_vectors(15);
        XS("xsaves", q, all);
        report_eq("xsaves: compacted", *(u64 *)(q + 520) >> 63, 1);
        set_vectors(16);
        XS("xrstors", q, all);
        report("xsaves, xrstors", check_vectors(15));
        memset(q, 0, 4096);
        report("xrstors of a standard area is #GP(0)",
               TRY_XS("xrstors", q, all) == GP && trapped(GP, 0));
        report("IA32_XSS: bits CPUID does not list are #GP(0)", try_wrmsr(0xda0, BIT(60)) == GP);
    } else {
        skip("xsaves", "not in CPUID");
    }
    if (has(HAS_XGETBV1)) {
        memset(q, 0, 4096);
        XS("xrstor", q, all);
        u64 in_use = xgetbv(1);
        set_vectors(17);
        u64 then = xgetbv(1);
        report("xgetbv 1 tells what is in use", !(in_use & 4) && (!(all & 4) || (then & 4)));
    }
    asm volatile("fninit");
    ldmxcsr(0x1f80);
}

static void crossing(void)
{
    if (!has(HAS_XSAVE))
        return;
    u8 *va = (u8 *)PAGE3, *p = va + PAGE - 320; /* the header is beyond the boundary */
    u64 a = pages_alloc(3, PAGE);
    map(va, a, PTE_P | PTE_W);
    map(va + PAGE, a + 2 * PAGE, PTE_P | PTE_W);
    set_vectors(20);
    XS("xsave", p, xcr0_all);
    set_vectors(21);
    XS("xrstor", p, xcr0_all);
    report("xsave across pages", check_vectors(20));
    unmap(va + PAGE);
    unsigned v = TRY_XS("xsave", p, xcr0_all); /* it reads and writes the header */
    bool ok = v == PF && trap.cr2 >= (u64)va + PAGE && trap.cr2 < (u64)va + 2 * PAGE;
    if (!ok)
        print("# trap %x error %lx cr2 %lx\n", v, trap.r.err, trap.cr2);
    report("xsave, second page absent", ok);
    report("xrstor, second page absent",
           TRY_XS("xrstor", p, xcr0_all) == PF && trap.r.err == 0 && trap.cr2 >= (u64)va + PAGE);
    report("fxsave, second page absent", TRY("fxsave64 (%0)", ::"r"(p)
                                             : "memory") == PF &&
                                             trap.cr2 >= (u64)va + PAGE);
    map(va + PAGE, a + 2 * PAGE, PTE_P);
    report("xsave, second page read-only",
           TRY_XS("xsave", p, xcr0_all) == PF && trap.r.err == (PF_W | PF_P));
    report_eq("xrstor may read it", TRY_XS("xrstor", p, xcr0_all), VEC_NONE);
    report("and has the old state", check_vectors(20));
    unmap(va);
    unmap(va + PAGE);
}

/* -- The state survives what the guest does not see
 * ---------------------------------------------------------- */

USER_ASM("u_fault: mov (%rdi), %rax; ret");
USER_ASM("u_nop: ret");
extern char u_fault[], u_nop[];
static u64 demand_pa;
static void demand(struct regs *r)
{
    map((void *)(trap.cr2 & ~(PAGE - 1)), demand_pa, PTE_P | PTE_W | PTE_U);
}

static void survives(void)
{
    demand_pa = page_alloc();
    trap_handle(PF, demand);
    bool fault = true, mmio = true, cross = true, ring = true, smc = true;
    u8 *code = (u8 *)page_alloc();
    ldmxcsr(0x5f80);
    fldcw(0x0b7f);
    asm volatile("fldpi");
    for (u64 i = 0; i < 50; i++) {
        set_vectors(100 + i);
        unmap((void *)PAGE3);
        *(volatile u64 *)PAGE3 = 1;
        fault &= check_vectors(100 + i);
        (void)lapic_read(LAPIC_ID);
        lapic_write(LAPIC_TPR, 0);
        mmio &= check_vectors(100 + i);
        *(volatile u64 *)(ustack + 4093) = i;
        cross &= check_vectors(100 + i);
        unmap((void *)PAGE3);
        user_call(u_fault, PAGE3, 0, 0);
        user_call(u_nop, 0, 0, 0);
        ring &= check_vectors(100 + i);
        code[0] = 0xb8; /* mov $i, %eax; ret: translated anew each time */
        *(volatile u32 *)(code + 1) = (u32)i;
        code[5] = 0xc3;
        u32 v;
        asm volatile("call *%1" : "=a"(v) : "r"(code) : "memory", "cc");
        smc &= v == i && check_vectors(100 + i);
    }
    report("vectors survive page faults", fault);
    report("vectors survive device accesses", mmio);
    report("vectors survive page-crossing accesses", cross);
    report("vectors survive ring 3 and back", ring);
    report("vectors survive translation", smc);
    u16 cw;
    asm volatile("fnstcw %0; fstpt %1" : "=m"(cw), "=m"(fx[0]));
    report("so do FCW, MXCSR and the x87 stack",
           cw == 0x0b7f && stmxcsr() == 0x5f80 && *(u64 *)fx[0] == 0xc90fdaa22168c235);
    trap_handle(PF, NULL);
    ldmxcsr(0x1f80);
    asm volatile("fninit");
    /* MMX lies over the x87 registers. */
    u64 m;
    asm volatile("movq %1, %%mm3; movq %%mm3, %0" : "=m"(m) : "m"(demand_pa));
    u16 tw;
    struct {
        u32 cw, sw, tw, fip, fcs, fdp, fds;
    } env;
    asm volatile("fnstenv %0" : "=m"(env)::"memory");
    tw = (u16)env.tw;
    asm volatile("emms; fnstenv %0" : "=m"(env)::"memory");
    report("MMX leaves no tag empty, emms empties them",
           m == demand_pa && !(tw & tw >> 1 & 0x5555) && (u16)env.tw == 0xffff);
    asm volatile("fninit");
    /* Switching between states, as a kernel does between tasks. */
    if (!has(HAS_XSAVE))
        return;
    bool ok = true;
    set_vectors(1);
    XS("xsave", area[0], xcr0_all);
    set_vectors(2);
    XS("xsave", area[1], xcr0_all);
    for (u64 i = 0; i < 2000; i++) {
        u8 *p = area[i & 1];
        XS("xrstor", p, xcr0_all);
        ok &= check_vectors(1 + (i & 1));
        XS("xsave", p, xcr0_all);
    }
    report("2000 switches by xsave and xrstor", ok);
    if (xcr0_all & 4) {
        set_vectors(3);
        u64 v[4];
        asm volatile("vzeroupper; vmovups %%ymm9, %0" : "=m"(v));
        report("vzeroupper", v[0] == 12 * 0x9e3779b97f4a7c15ull && v[2] == 0);
        set_vectors(3);
        asm volatile("movaps %%xmm1, %%xmm9; vmovups %%ymm9, %0" : "=m"(v));
        report("an SSE write keeps the upper half",
               v[0] == 4 * 0x9e3779b97f4a7c15ull && v[2] == 12 * 0x9e3779b97f4a7c15ull + 2);
        asm volatile("vmovaps %%xmm1, %%xmm9; vmovups %%ymm9, %0" : "=m"(v));
        report("a VEX write clears it", v[2] == 0 && v[3] == 0);
    }
}

/* The engine copies through a vector register of its own choice. */
static void strings(void)
{
    static u8 from[2 * PAGE], to[2 * PAGE];
    bool ok = true;
    for (unsigned n = 0; n < 8000; n = n * 3 + 1) {
        set_vectors(n);
        void *s = from + n % 61, *d = to + n % 13;
        u64 c = n;
        asm volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(c) : : "memory");
        ok &= check_vectors(n);
        d = to + n % 13;
        c = n;
        asm volatile("rep stosb" : "+D"(d), "+c"(c) : "a"(n) : "memory");
        ok &= check_vectors(n);
    }
    report("rep movs and rep stos keep the vector registers", ok);
}

int main(void)
{
    asm volatile("fninit");
    if (has(HAS_XSAVE))
        xcr0_all = cpuid(13, 0).eax & 0xe7;
    available();
    if (has(HAS_XSAVE)) {
        WR(cr4, RD(cr4) | CR4_OSXSAVE);
        xsetbv(xcr0_all);
    }
    x87();
    simd();
    fxsave();
    xsave();
    crossing();
    survives();
    strings();
    return 0;
}
