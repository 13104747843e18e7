/*
 * cpuid.h - what CPU the guest sees: CPUID leaves, and from them which bits CR4, XCR0, EFER and MXCSR have.
 * Made once for a VM, read-only afterwards: any thread may look. The policy is the table in cpuid.c.
 */
#pragma once
#include "engine/mmu.h"
#include "engine/vcpu.h"
#include "libvitro.h"

/* Frequency of the local APIC's timer before its divider; CPUID 0x15 tells the guest. */
#define CPU_APIC_BUS_KHZ VITRO_APIC_KHZ
#define CPU_PHYS_BITS MMU_PHYS_BITS
#define CPU_LINEAR_BITS 48

/* Where CPUID bits come from: the host, or a test's table. */
typedef void cpuid_source_fn(void *opaque, u32 leaf, u32 subleaf, u32 out[4]);

enum cpu_vendor { CPU_VENDOR_OTHER, CPU_VENDOR_INTEL, CPU_VENDOR_AMD /* and Hygon */ };

struct cpuid_row {
    u32 leaf, subleaf;
    u32 r[4]; /* EAX EBX ECX EDX */
};
#define CPUID_MAX_ROWS 96
#define CPUID_LEAVES 0x30 /* leaves indexed in each of the ranges below */
enum cpuid_range { CPUID_BASIC, CPUID_EXT, NR_CPUID_RANGES };

struct cpu_model {
    const char *name;
    enum cpu_vendor vendor;
    unsigned nr_cpus;
    bool arch_caps;    /* MSR 0x10a and SPEC_CTRL.IBRS exist (Intel) */
    bool host_xinuse;  /* XGETBV(1) */
    u64 tsc_khz;
    u64 tsc_base;      /* host TSC at creation: guest TSCs count from there */
    u64 cr4_mask, xcr0_mask, efer_mask;
    u32 mxcsr_mask;
    struct { u32 offset, size; bool aligned; } xstate[8]; /* standard offsets; by component number */
    struct cpuid_row row[CPUID_MAX_ROWS];
    unsigned nr_rows;
    struct { u8 first, nr; } index[NR_CPUID_RANGES][CPUID_LEAVES];
    struct vitro_cpuid_leaf pv[VITRO_CPUID_PV_MAX];
    unsigned nr_pv;
};

/*
 * cpu_model_create - build the model `name`: "host" (or NULL), "x86-64-v2", "x86-64-v3", "x86-64-v4"; ",-mwait" behind it: without; ",+mwait": with.
 * @nr_cpus: 1..255; APIC ids are 0..nr_cpus-1
 * @error:   on NULL, a sentence that says why (static text)
 */
struct cpu_model *cpu_model_create(const char *name, unsigned nr_cpus, u64 tsc_khz, const char **error);
struct cpu_model *cpu_model_create_from(const char *name, unsigned nr_cpus, u64 tsc_khz, cpuid_source_fn *source,
                                        void *opaque, const char **error);
void cpu_model_destroy(struct cpu_model *m);
/* cpu_model_hide_mwait - no MONITOR and MWAIT. */
void cpu_model_hide_mwait(struct cpu_model *m);
/* cpu_model_set_pv - the leaves the embedder answers for. 0; -EINVAL: too many, or one out of range. */
int cpu_model_set_pv(struct cpu_model *m, const struct vitro_cpuid_leaf *leaves, unsigned nr);

/* cpu_model_cpuid - CPUID as vCPU v sees it now (OSXSAVE, APIC id and XSAVE sizes follow its state). */
void cpu_model_cpuid(const struct cpu_model *m, const struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4]);
/* cpu_model_has - is a feature bit advertised? reg 0-3 is EAX, EBX, ECX, EDX. */
bool cpu_model_has(const struct cpu_model *m, u32 leaf, u32 subleaf, unsigned reg, unsigned bit);
/* cpu_model_xsave_size - bytes of an XSAVE area with these components. */
u32 cpu_model_xsave_size(const struct cpu_model *m, u64 components, bool compacted);

/* -- MSRs (msr.c) ------------------------------------------------------------------------------- */
/* msr_read, msr_write - RDMSR and WRMSR without the CPL check. X_OK, or X_FAULT with #GP(0). After a write v->mode
 * may differ (EFER). */
enum xret msr_read(struct vcpu *v, u32 msr, u64 *val);
enum xret msr_write(struct vcpu *v, u32 msr, u64 val);
/* msr_name - for traces; NULL if there is no such MSR. */
const char *msr_name(u32 msr);
/* msr_reset - power-on values of the MSRs that msr.c keeps; the guest TSC restarts from 0 at model creation. */
void msr_reset(struct vcpu *v);
