/*
 * cpuid.c - CPU models: the host's CPUID, filtered and completed by one table.
 * Sources: Intel SDM vol. 2 "CPUID"; AMD APM vol. 3 appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst.
 *
 * Policy. The guest keeps the host's vendor, family and model: compilers, libraries and kernels pick code by them,
 * and that code runs on this very core. A bit is advertised only when the guest can use what it names; `SET` rows
 * are done by the engine itself and need nothing from the host.
 *
 * Left out on purpose: VMX, SVM, PKU, CET, LA57, RTM/HLE, every performance counter (leaf 0xA is
 * zero, no perfctr_*), machine-check banks (MCG_CAP says none), FFXSR,
 * AMX, AVX512_FP16, MOVDIRI/MOVDIR64B, CLZERO, SPEC_CTRL and the MSRs it brings.
 *
 * Side channels. Guest-level code sequences against speculation do not survive translation: a retpoline's or
 * SRSO safe-ret's `ret` becomes a verified return with its own prediction, VERW is a helper, and IBRS/IBPB would
 * have to act on the translator's jumps. They would cost much and protect nothing. So the model reports the state
 * in which kernels leave them out (AMD: Automatic IBRS, BTC_NO, SRSO_NO, TSA_*_NO; Intel: ARCH_CAPABILITIES).
 * Two of these hold by construction: guest user code never has a host mapping of guest kernel memory in its TLB
 * (Meltdown, L1TF), and the engine reads no data of another guest into the vCPU thread's address space. What is NOT
 * claimed: that one guest process cannot train branch predictors against another or its own kernel. SSB_NO is
 * not reported (no SSBD either): kernels then say "Vulnerable", which is true.
 *
 * Leaves 0x40000000 and up belong to the embedder (struct vitro_pv): signatures and features of paravirtual contracts.
 */
#include "engine/cpuid.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fpu.h"
#include "engine/mwait.h"

enum { EAX, EBX, ECX, EDX };

/* kinds: REQ  the host must have it (models at or above the level fail without)
 *        OPT  shown when the host has it
 *        SET  provided by the engine whatever the host has
 *        AMD  shown as set on AMD and Hygon hosts; INT on Intel ones (see "Side channels") */
enum kind { REQ, OPT, SET, AMD, INT };
/* What a feature's state needs in XCR0. */
#define X_AVX (XFEATURE_SSE | XFEATURE_AVX)
#define X_512 (X_AVX | XFEATURE_AVX512)

struct feature {
    u32 leaf, subleaf;
    u8 reg, bit;
    u8 level; /* 1: every model; 2-4: x86-64-v2..v4 and up; 5: "host" only */
    u8 kind;
    u8 xcr0;
};

#define LEVEL_HOST 5
/* clang-format off */
static const struct feature features[] = {
    /* leaf     sub reg  bit lvl kind state            name */
    { 1,          0, ECX,  0, 2, REQ, 0 },          /* SSE3 */
    { 1,          0, ECX,  1, 5, OPT, 0 },          /* PCLMULQDQ */
    { 1,          0, ECX,  3, 1, SET, 0 },          /* MONITOR and MWAIT; follows MISC_ENABLE */
    { 1,          0, ECX,  9, 2, REQ, 0 },          /* SSSE3 */
    { 1,          0, ECX, 12, 3, REQ, X_AVX },      /* FMA */
    { 1,          0, ECX, 13, 2, REQ, 0 },          /* CMPXCHG16B */
    { 1,          0, ECX, 17, 1, SET, 0 },          /* PCID */
    { 1,          0, ECX, 19, 2, REQ, 0 },          /* SSE4.1 */
    { 1,          0, ECX, 20, 2, REQ, 0 },          /* SSE4.2 */
    { 1,          0, ECX, 21, 1, SET, 0 },          /* x2APIC */
    { 1,          0, ECX, 22, 3, REQ, 0 },          /* MOVBE */
    { 1,          0, ECX, 23, 2, REQ, 0 },          /* POPCNT */
    { 1,          0, ECX, 24, 1, SET, 0 },          /* TSC-deadline timer */
    { 1,          0, ECX, 25, 5, OPT, 0 },          /* AES */
    { 1,          0, ECX, 26, 3, REQ, X_AVX },      /* XSAVE; OSXSAVE follows CR4 */
    { 1,          0, ECX, 28, 3, REQ, X_AVX },      /* AVX */
    { 1,          0, ECX, 29, 3, REQ, X_AVX },      /* F16C */
    { 1,          0, ECX, 30, 5, OPT, 0 },          /* RDRAND */
    { 1,          0, ECX, 31, 1, SET, 0 },          /* hypervisor present */
    { 1,          0, EDX,  0, 1, REQ, 0 },          /* FPU */
    { 1,          0, EDX,  1, 1, SET, 0 },          /* VME: CR4.VME and PVI */
    { 1,          0, EDX,  2, 1, SET, 0 },          /* DE */
    { 1,          0, EDX,  3, 1, SET, 0 },          /* PSE */
    { 1,          0, EDX,  4, 1, REQ, 0 },          /* TSC */
    { 1,          0, EDX,  5, 1, SET, 0 },          /* MSR */
    { 1,          0, EDX,  6, 1, SET, 0 },          /* PAE */
    { 1,          0, EDX,  7, 1, SET, 0 },          /* MCE */
    { 1,          0, EDX,  8, 1, REQ, 0 },          /* CMPXCHG8B */
    { 1,          0, EDX,  9, 1, SET, 0 },          /* APIC */
    { 1,          0, EDX, 11, 1, SET, 0 },          /* SEP */
    { 1,          0, EDX, 12, 1, SET, 0 },          /* MTRR */
    { 1,          0, EDX, 13, 1, SET, 0 },          /* PGE */
    { 1,          0, EDX, 14, 1, SET, 0 },          /* MCA (no banks) */
    { 1,          0, EDX, 15, 1, REQ, 0 },          /* CMOV */
    { 1,          0, EDX, 16, 1, SET, 0 },          /* PAT */
    { 1,          0, EDX, 17, 1, SET, 0 },          /* PSE-36 */
    { 1,          0, EDX, 19, 1, REQ, 0 },          /* CLFLUSH */
    { 1,          0, EDX, 23, 1, REQ, 0 },          /* MMX */
    { 1,          0, EDX, 24, 1, REQ, 0 },          /* FXSR */
    { 1,          0, EDX, 25, 1, REQ, 0 },          /* SSE */
    { 1,          0, EDX, 26, 1, REQ, 0 },          /* SSE2 */
    { 1,          0, EDX, 27, 5, OPT, 0 },          /* self snoop */
    { 6,          0, EAX,  2, 1, SET, 0 },          /* ARAT: the APIC timer never stops */
    { 7,          0, EBX,  0, 1, SET, 0 },          /* FSGSBASE */
    { 7,          0, EBX,  1, 1, SET, 0 },          /* TSC_ADJUST */
    { 7,          0, EBX,  3, 3, REQ, 0 },          /* BMI1 */
    { 7,          0, EBX,  5, 3, REQ, X_AVX },      /* AVX2 */
    { 7,          0, EBX,  6, 1, OPT, 0 },          /* fact: FDP only written on exceptions */
    { 7,          0, EBX,  7, 1, SET, 0 },          /* SMEP */
    { 7,          0, EBX,  8, 3, REQ, 0 },          /* BMI2 */
    { 7,          0, EBX,  9, 1, SET, 0 },          /* ERMS */
    { 7,          0, EBX, 10, 1, SET, 0 },          /* INVPCID */
    { 7,          0, EBX, 13, 1, OPT, 0 },          /* fact: FCS and FDS are zero */
    { 7,          0, EBX, 16, 4, REQ, X_512 },      /* AVX512F */
    { 7,          0, EBX, 17, 4, REQ, X_512 },      /* AVX512DQ */
    { 7,          0, EBX, 18, 5, OPT, 0 },          /* RDSEED */
    { 7,          0, EBX, 19, 5, OPT, 0 },          /* ADX */
    { 7,          0, EBX, 20, 1, SET, 0 },          /* SMAP */
    { 7,          0, EBX, 21, 5, OPT, X_512 },      /* AVX512_IFMA */
    { 7,          0, EBX, 23, 5, OPT, 0 },          /* CLFLUSHOPT */
    { 7,          0, EBX, 24, 5, OPT, 0 },          /* CLWB */
    { 7,          0, EBX, 28, 4, REQ, X_512 },      /* AVX512CD */
    { 7,          0, EBX, 29, 5, OPT, 0 },          /* SHA */
    { 7,          0, EBX, 30, 4, REQ, X_512 },      /* AVX512BW */
    { 7,          0, EBX, 31, 4, REQ, X_512 },      /* AVX512VL */
    { 7,          0, ECX,  1, 5, OPT, X_512 },      /* AVX512_VBMI */
    { 7,          0, ECX,  2, 1, SET, 0 },          /* UMIP */
    { 7,          0, ECX,  6, 5, OPT, X_512 },      /* AVX512_VBMI2 */
    { 7,          0, ECX,  8, 5, OPT, 0 },          /* GFNI */
    { 7,          0, ECX,  9, 5, OPT, X_AVX },      /* VAES */
    { 7,          0, ECX, 10, 5, OPT, X_AVX },      /* VPCLMULQDQ */
    { 7,          0, ECX, 11, 5, OPT, X_512 },      /* AVX512_VNNI */
    { 7,          0, ECX, 12, 5, OPT, X_512 },      /* AVX512_BITALG */
    { 7,          0, ECX, 14, 5, OPT, X_512 },      /* AVX512_VPOPCNTDQ */
    { 7,          0, ECX, 22, 1, SET, 0 },          /* RDPID */
    { 7,          0, EDX,  4, 1, SET, 0 },          /* FSRM */
    { 7,          0, EDX, 29, 1, INT, 0 },          /* ARCH_CAPABILITIES (msr.c) */
    { 7,          1, EAX,  4, 5, OPT, X_AVX },      /* AVX_VNNI */
    { 7,          1, EAX,  5, 5, OPT, X_512 },      /* AVX512_BF16 */
    { 0xd,        1, EAX,  0, 3, OPT, X_AVX },      /* XSAVEOPT */
    { 0xd,        1, EAX,  1, 3, OPT, X_AVX },      /* XSAVEC */
    { 0xd,        1, EAX,  2, 3, OPT, X_AVX },      /* XGETBV with ECX = 1 */
    { 0xd,        1, EAX,  3, 3, OPT, X_AVX },      /* XSAVES */
    { 0x80000001, 0, ECX,  0, 2, REQ, 0 },          /* LAHF in 64-bit mode */
    { 0x80000001, 0, ECX,  5, 3, REQ, 0 },          /* LZCNT */
    { 0x80000001, 0, ECX,  6, 5, OPT, 0 },          /* SSE4a */
    { 0x80000001, 0, ECX,  7, 5, OPT, 0 },          /* misaligned SSE (MXCSR.MM) */
    { 0x80000001, 0, ECX,  8, 5, OPT, 0 },          /* PREFETCHW */
    { 0x80000001, 0, ECX, 22, 1, AMD, 0 },          /* TOPOEXT: leaves 0x8000001D, 0x8000001E */
    { 0x80000001, 0, EDX, 11, 1, SET, 0 },          /* SYSCALL */
    { 0x80000001, 0, EDX, 20, 1, SET, 0 },          /* NX */
    { 0x80000001, 0, EDX, 22, 5, OPT, 0 },          /* MMXEXT */
    { 0x80000001, 0, EDX, 26, 1, SET, 0 },          /* 1 GiB pages */
    { 0x80000001, 0, EDX, 27, 1, SET, 0 },          /* RDTSCP */
    { 0x80000001, 0, EDX, 29, 1, REQ, 0 },          /* long mode */
    { 0x80000007, 0, EDX,  8, 1, SET, 0 },          /* invariant TSC */
    { 0x80000008, 0, EBX,  2, 1, OPT, 0 },          /* fact: x87 error pointers always saved */
    { 0x80000008, 0, EBX, 29, 1, AMD, 0 },          /* BTC_NO */
    { 0x80000021, 0, EAX,  2, 1, AMD, 0 },          /* LFENCE serializes (DE_CFG says so too) */
    { 0x80000021, 0, EAX,  6, 1, AMD, 0 },          /* null selector loads clear the base */
    { 0x80000021, 0, EAX,  8, 1, AMD, 0 },          /* Automatic IBRS */
    { 0x80000021, 0, EAX, 29, 1, AMD, 0 },          /* SRSO_NO */
    { 0x80000021, 0, ECX,  1, 1, AMD, 0 },          /* TSA_SQ_NO */
    { 0x80000021, 0, ECX,  2, 1, AMD, 0 },          /* TSA_L1_NO */
};

static const struct { const char *name; u8 level; } models[] = {
    { "host", LEVEL_HOST }, { "x86-64-v2", 2 }, { "x86-64-v3", 3 }, { "x86-64-v4", 4 },
};

/* clang-format on */
#define EFER_AUTOIBRS (1u << 21)

struct builder {
    struct cpu_model *m;
    cpuid_source_fn *source;
    void *opaque;
    unsigned level;
    u64 xcr0;
};

/* -- Rows ----------------------------------------------------------------------------------------- */

static bool leaf_index(u32 leaf, unsigned *range, unsigned *slot)
{
    static const u32 base[NR_CPUID_RANGES] = { 0, 0x80000000 };
    for (unsigned i = 0; i < NR_CPUID_RANGES; i++)
        if (leaf - base[i] < CPUID_LEAVES) {
            *range = i;
            *slot = leaf - base[i];
            return true;
        }
    return false;
}

static struct cpuid_row *row_find(const struct cpu_model *m, u32 leaf, u32 subleaf)
{
    unsigned range, slot;
    if (!leaf_index(leaf, &range, &slot))
        return NULL;
    const struct cpuid_row *row = m->row + m->index[range][slot].first;
    for (unsigned n = m->index[range][slot].nr; n; n--, row++)
        if (row->subleaf == subleaf)
            return (struct cpuid_row *)row;
    return NULL;
}

/* Rows of one leaf are added one after the other; the index counts on it. */
static u32 *row_add(struct builder *b, u32 leaf, u32 subleaf)
{
    struct cpu_model *m = b->m;
    unsigned range, slot;
    bool ok = leaf_index(leaf, &range, &slot);
    bug_on(!ok || m->nr_rows == CPUID_MAX_ROWS);
    if (!m->index[range][slot].nr++)
        m->index[range][slot].first = (u8)m->nr_rows;
    struct cpuid_row *row = &m->row[m->nr_rows++];
    *row = (struct cpuid_row){ .leaf = leaf, .subleaf = subleaf };
    return row->r;
}

static void host(struct builder *b, u32 leaf, u32 subleaf, u32 r[4])
{
    u32 max[4];
    b->source(b->opaque, leaf & 0x80000000, 0, max);
    r[0] = r[1] = r[2] = r[3] = 0;
    if (leaf <= max[EAX])
        b->source(b->opaque, leaf, subleaf, r);
}

/* Rows that the host fills whole: cache and brand descriptions. */
static void row_copy(struct builder *b, u32 leaf, u32 subleaf)
{
    u32 r[4];
    host(b, leaf, subleaf, r);
    memcpy(row_add(b, leaf, subleaf), r, sizeof r);
}

static unsigned ceil_log2(unsigned n)
{
    unsigned s = 0;
    while ((1u << s) < n)
        s++;
    return s;
}

/* -- Features ---------------------------------------------------------------------------------------- */

/* Applies the table to one row just added; false: a required bit is missing on the host. */
static bool row_features(struct builder *b, u32 leaf, u32 subleaf, u32 *r)
{
    u32 h[4];
    bool ok = true;
    host(b, leaf, subleaf, h);
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        const struct feature *f = &features[i];
        if (f->leaf != leaf || f->subleaf != subleaf || f->level > b->level)
            continue;
        bool have = (h[f->reg] >> f->bit & 1) && (f->xcr0 & ~b->xcr0) == 0;
        bool show = f->kind == SET || (f->kind == AMD && b->m->vendor == CPU_VENDOR_AMD) ||
                    (f->kind == INT && b->m->vendor == CPU_VENDOR_INTEL) || (f->kind <= OPT && have);
        if (f->kind == REQ && !have && b->level != LEVEL_HOST)
            ok = false;
        if (show)
            r[f->reg] |= BIT(f->bit);
    }
    return ok;
}

static u32 *row_filtered(struct builder *b, u32 leaf, u32 subleaf, bool *ok)
{
    u32 *r = row_add(b, leaf, subleaf);
    *ok &= row_features(b, leaf, subleaf, r);
    return r;
}

/* -- Topology and caches: one package, nr_cpus cores without threads -------------------------------- */

static void add_caches(struct builder *b, u32 leaf)
{
    for (u32 i = 0; i < 8; i++) {
        u32 h[4];
        host(b, leaf, i, h);
        if (!(h[EAX] & 0x1f))
            break;
        unsigned level = h[EAX] >> 5 & 7;
        unsigned sharing = level < 3 ? 1 : b->m->nr_cpus;
        h[EAX] &= 0x3fff;
        h[EAX] |= ((1u << ceil_log2(sharing)) - 1) << 14;
        if (leaf == 4) /* addressable cores in the package */
            h[EAX] |= (MIN(1u << ceil_log2(b->m->nr_cpus), 64u) - 1) << 26;
        memcpy(row_add(b, leaf, i), h, sizeof h);
    }
}

static void add_topology(struct builder *b, u32 leaf)
{
    u32 *r = row_add(b, leaf, 0);
    r[EBX] = 1;
    r[ECX] = 0x100; /* thread level, 0 bits wide */
    r = row_add(b, leaf, 1);
    r[EAX] = ceil_log2(b->m->nr_cpus);
    r[EBX] = b->m->nr_cpus;
    r[ECX] = 0x201; /* core level */
    r = row_add(b, leaf, 2);
    r[ECX] = 2;
}

/* -- XSAVE ----------------------------------------------------------------------------------------------- */

u32 cpu_model_xsave_size(const struct cpu_model *m, u64 components, bool compacted)
{
    u32 size = XSAVE_LEGACY + XSAVE_HEADER;
    for (unsigned i = 2; i < ARRAY_SIZE(m->xstate); i++) {
        if (!(components >> i & 1))
            continue;
        if (compacted)
            size = (m->xstate[i].aligned ? (size + 63) & ~63u : size) + m->xstate[i].size;
        else
            size = MAX(size, m->xstate[i].offset + m->xstate[i].size);
    }
    return size;
}

static void add_xsave(struct builder *b, bool *ok)
{
    struct cpu_model *m = b->m;
    for (u32 i = 2; i < ARRAY_SIZE(m->xstate); i++) {
        u32 h[4];
        if (!(m->xcr0_mask >> i & 1))
            continue;
        host(b, 0xd, i, h);
        m->xstate[i].size = h[EAX];
        m->xstate[i].offset = h[EBX];
        m->xstate[i].aligned = h[ECX] & 2;
    }
    u32 *r = row_add(b, 0xd, 0);
    r[EAX] = (u32)m->xcr0_mask;
    r[ECX] = cpu_model_xsave_size(m, m->xcr0_mask, false);
    row_filtered(b, 0xd, 1, ok);
    for (u32 i = 2; i < ARRAY_SIZE(m->xstate); i++) {
        if (!(m->xcr0_mask >> i & 1))
            continue;
        r = row_add(b, 0xd, i);
        r[EAX] = m->xstate[i].size;
        r[EBX] = m->xstate[i].offset;
        r[ECX] = m->xstate[i].aligned ? 2 : 0;
    }
}

/* -- Leaves ------------------------------------------------------------------------------------------- */

static bool add_basic(struct builder *b)
{
    struct cpu_model *m = b->m;
    bool ok = true;
    u32 h[4], *r;

    host(b, 0, 0, h);
    r = row_add(b, 0, 0);
    memcpy(r, h, sizeof h);
    r[EAX] = 0x1f;

    host(b, 1, 0, h);
    r = row_filtered(b, 1, 0, &ok);
    r[EAX] = h[EAX];
    r[EBX] = 8 << 8 | MIN(m->nr_cpus, 255u) << 16; /* CLFLUSH line; APIC id comes on reading */
    if (m->nr_cpus > 1)
        r[EDX] |= BIT(28);                         /* more than one logical processor */

    if (m->vendor == CPU_VENDOR_INTEL) {
        row_copy(b, 2, 0);
        add_caches(b, 4);
    }
    r = row_add(b, 5, 0);
    r[EAX] = r[EBX] = MONITOR_LINE;
    r[ECX] = 3;    /* this leaf says all; interrupts may end MWAIT though IF is clear */
    r[EDX] = 0x10; /* C1, one kind of it */
    row_filtered(b, 6, 0, &ok);
    r = row_filtered(b, 7, 0, &ok);
    r[EAX] = 1;
    row_filtered(b, 7, 1, &ok);
    add_topology(b, 0xb);
    if (m->xcr0_mask & XFEATURE_AVX)
        add_xsave(b, &ok);

    /* TSC = crystal * EBX / EAX, exactly; the crystal is the APIC timer's clock. */
    r = row_add(b, 0x15, 0);
    r[EAX] = CPU_APIC_BUS_KHZ;
    r[EBX] = (u32)m->tsc_khz;
    r[ECX] = CPU_APIC_BUS_KHZ * 1000u;
    r = row_add(b, 0x16, 0);
    r[EAX] = r[EBX] = (u32)(m->tsc_khz / 1000);
    r[ECX] = 100;
    add_topology(b, 0x1f);
    return ok;
}

static bool add_extended(struct builder *b)
{
    struct cpu_model *m = b->m;
    bool amd = m->vendor == CPU_VENDOR_AMD, ok = true;
    u32 h[4], *r;

    host(b, 0x80000000, 0, h);
    r = row_add(b, 0x80000000, 0);
    r[EAX] = amd ? 0x80000021 : 0x80000008;
    if (amd)
        memcpy(&r[EBX], &h[EBX], 12);

    host(b, 0x80000001, 0, h);
    r = row_filtered(b, 0x80000001, 0, &ok);
    if (amd) {
        r[EAX] = h[EAX];
        r[EBX] = h[EBX];
        /* AMD repeats these bits of leaf 1 EDX. */
        r[EDX] |= row_find(m, 1, 0)->r[EDX] & 0x0183f3ffu;
        if (m->nr_cpus > 1)
            r[ECX] |= BIT(1); /* CmpLegacy: cores, not threads */
    }
    for (u32 leaf = 0x80000002; leaf <= 0x80000006; leaf++)
        row_copy(b, leaf, 0);
    row_filtered(b, 0x80000007, 0, &ok);
    r = row_filtered(b, 0x80000008, 0, &ok);
    r[EAX] = CPU_LINEAR_BITS << 8 | CPU_PHYS_BITS;
    if (amd)
        r[ECX] = (m->nr_cpus - 1) | MAX(ceil_log2(m->nr_cpus), 1u) << 12;
    if (amd) {
        row_copy(b, 0x80000019, 0);
        row_copy(b, 0x8000001a, 0);
        add_caches(b, 0x8000001d);
        row_add(b, 0x8000001e, 0); /* one thread a core, one node */
        row_filtered(b, 0x80000021, 0, &ok);
    }
    return ok;
}

/* -- Creation -------------------------------------------------------------------------------------------- */

static enum cpu_vendor vendor_of(const u32 leaf0[4])
{
    char text[13] = "";
    memcpy(text, &leaf0[EBX], 4);
    memcpy(text + 4, &leaf0[EDX], 4);
    memcpy(text + 8, &leaf0[ECX], 4);
    if (!strcmp(text, "GenuineIntel"))
        return CPU_VENDOR_INTEL;
    if (!strcmp(text, "AuthenticAMD") || !strcmp(text, "HygonGenuine"))
        return CPU_VENDOR_AMD;
    return CPU_VENDOR_OTHER;
}

static void set_register_masks(struct cpu_model *m)
{
    m->cr4_mask = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT |
                  CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
    if (cpu_model_has(m, 1, 0, ECX, 26))
        m->cr4_mask |= CR4_OSXSAVE;
    m->efer_mask = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    if (cpu_model_has(m, 0x80000021, 0, EAX, 8))
        m->efer_mask |= EFER_AUTOIBRS;
    m->arch_caps = cpu_model_has(m, 7, 0, EDX, 29);

    u8 area[512] __attribute__((aligned(16)));
    u32 mask;
    __asm__ volatile("fxsave %0" : "=m"(area));
    memcpy(&mask, area + 28, sizeof mask);
    m->mxcsr_mask = mask ? mask : 0xffbf;
    if (!cpu_model_has(m, 0x80000001, 0, ECX, 7))
        m->mxcsr_mask &= ~BIT(17);
}

void cpu_model_hide_mwait(struct cpu_model *m)
{
    row_find(m, 1, 0)->r[ECX] &= ~BIT(3);
    memset(row_find(m, 5, 0)->r, 0, sizeof(row_find(m, 5, 0)->r));
}

struct cpu_model *cpu_model_create_from(const char *name, unsigned nr_cpus, u64 tsc_khz, cpuid_source_fn *source,
                                        void *opaque, const char **error)
{
    struct builder b = { .source = source, .opaque = opaque };
    u32 h[4];

    *error = NULL;
    if (!name)
        name = models[0].name;
    size_t len = strcspn(name, ",");
    bool without = !strcmp(name + len, ",-mwait");
    if (name[len] && !without && strcmp(name + len, ",+mwait")) /* no such model */
        len = strlen(name);
    if (nr_cpus < 1 || nr_cpus > 255) {
        *error = "the number of CPUs must be 1 to 255";
        return NULL;
    }
    if (tsc_khz < 1000 || tsc_khz > 0xffffffff) {
        *error = "the TSC frequency is not known";
        return NULL;
    }
    struct cpu_model *m = calloc(1, sizeof *m);
    if (!m) {
        *error = "out of memory";
        return NULL;
    }
    for (size_t i = 0; i < ARRAY_SIZE(models); i++)
        if (len == strlen(models[i].name) && !strncmp(name, models[i].name, len)) {
            m->name = models[i].name;
            b.level = models[i].level;
        }
    if (!m->name) {
        *error = "unknown CPU model; there are host, x86-64-v2, x86-64-v3 and x86-64-v4, each also with ,-mwait or ,+mwait behind";
        free(m);
        return NULL;
    }
    b.m = m;
    m->nr_cpus = nr_cpus;
    m->tsc_khz = tsc_khz;

    host(&b, 0, 0, h);
    m->vendor = vendor_of(h);
    host(&b, 0xd, 0, h);
    b.xcr0 = h[EAX] & XFEATURE_GUEST;
    host(&b, 0xd, 1, h);
    m->host_xinuse = h[EAX] >> 2 & 1;
    if ((b.xcr0 & XFEATURE_AVX512) != XFEATURE_AVX512)
        b.xcr0 &= ~(u64)XFEATURE_AVX512;
    b.xcr0 |= XFEATURE_X87;
    m->xcr0_mask = b.level >= 4 ? b.xcr0 : b.level == 3 ? b.xcr0 & (XFEATURE_X87 | X_AVX) : XFEATURE_X87;

    bool ok = add_basic(&b);
    ok &= add_extended(&b);
    if (!ok) {
        *error = "the host CPU lacks an instruction set that this CPU model requires";
        free(m);
        return NULL;
    }
    set_register_masks(m);
    if (without)
        cpu_model_hide_mwait(m);
    u32 lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    m->tsc_base = (u64)hi << 32 | lo;
    return m;
}

/* The host itself; XSAVE components only as far as its kernel has enabled them. */
static void host_cpuid(void *opaque, u32 leaf, u32 subleaf, u32 r[4])
{
    (void)opaque;
    __asm__ volatile("cpuid"
                     : "=a"(r[EAX]), "=b"(r[EBX]), "=c"(r[ECX]), "=d"(r[EDX])
                     : "a"(leaf), "c"(subleaf));
    if (leaf == 0xd && subleaf == 0) {
        u32 a, b, c, d, lo, hi;
        __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(1), "c"(0));
        if (!(c & BIT(27))) {
            r[EAX] = 0;
            return;
        }
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        r[EAX] &= lo;
    }
}

struct cpu_model *cpu_model_create(const char *name, unsigned nr_cpus, u64 tsc_khz, const char **error)
{
    return cpu_model_create_from(name, nr_cpus, tsc_khz, host_cpuid, NULL, error);
}

void cpu_model_destroy(struct cpu_model *m)
{
    free(m);
}

int cpu_model_set_pv(struct cpu_model *m, const struct vitro_cpuid_leaf *leaves, unsigned nr)
{
    if (nr > ARRAY_SIZE(m->pv))
        return -EINVAL;
    for (unsigned i = 0; i < nr; i++)
        if (leaves[i].leaf - VITRO_CPUID_PV > VITRO_CPUID_PV_LAST - VITRO_CPUID_PV)
            return -EINVAL;
    for (unsigned i = 0; i < nr; i++)
        m->pv[i] = leaves[i];
    m->nr_pv = nr;
    return 0;
}

/* -- Reading: on the guest's path, no libc from here on ---------------------------------------------- */

bool cpu_model_has(const struct cpu_model *m, u32 leaf, u32 subleaf, unsigned reg, unsigned bit)
{
    const struct cpuid_row *row = row_find(m, leaf, subleaf);
    return row && (row->r[reg] >> bit & 1);
}

void cpu_model_cpuid(const struct cpu_model *m, const struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4])
{
    if (leaf - VITRO_CPUID_PV <= VITRO_CPUID_PV_LAST - VITRO_CPUID_PV) {
        out[EAX] = out[EBX] = out[ECX] = out[EDX] = 0;
        for (unsigned i = 0; i < m->nr_pv; i++)
            if (m->pv[i].leaf == leaf)
                for (unsigned k = 0; k < 4; k++)
                    out[k] = m->pv[i].r[k];
        return;
    }
    /* Only these leaves look at ECX. Leaves past the maximum read as zero, as AMD has it. */
    if (leaf != 4 && leaf != 7 && leaf != 0xb && leaf != 0xd && leaf != 0x1f && leaf != 0x8000001d)
        subleaf = 0;
    const struct cpuid_row *row = row_find(m, leaf, subleaf);
    out[EAX] = row ? row->r[EAX] : 0;
    out[EBX] = row ? row->r[EBX] : 0;
    out[ECX] = row ? row->r[ECX] : 0;
    out[EDX] = row ? row->r[EDX] : 0;

    switch (leaf) {
    case 1:
        out[EBX] |= v->index << 24;
        if (v->cr4 & CR4_OSXSAVE)
            out[ECX] |= BIT(27);
        if (!(v->misc_enable & MISC_ENABLE_MWAIT))
            out[ECX] &= ~BIT(3);
        break;
    case 0xb:
    case 0x1f:
        out[EDX] = v->index;
        if (!row)
            out[ECX] = subleaf & 0xff;
        break;
    case 0xd:
        if (row && subleaf == 0)
            out[EBX] = cpu_model_xsave_size(m, v->xcr0, false);
        if (row && subleaf == 1 && (out[EAX] & 0xa))
            out[EBX] = cpu_model_xsave_size(m, v->xcr0 | v->xss, true);
        break;
    case 0x8000001e:
        out[EAX] = row ? v->index : 0;
        out[EBX] = row ? v->index & 0xff : 0;
        break;
    }
}
