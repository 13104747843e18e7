/*
 * kvm.c - contract 1: KVM's guest ABI, which stock kernels speak. Sources: Linux
 * Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst.
 */
#include "paravirt/inner.h"

/* Leaf 0x40000001: which of our features answers for which of KVM's bits. */
static const struct {
    enum pv_feature feature;
    u32 bits;
} feature_bits[] = {
    { PV_CLOCK, BIT(0) | BIT(3) | BIT(24) }, /* CLOCKSOURCE, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT */
    { PV_IO_DELAY, BIT(1) },                 /* NOP_IO_DELAY */
};

/* Leaf 0x40000010 is VMware's, and KVM users' too: kHz of the TSC and of the APIC timer. */
#define LEAF_FREQUENCIES 0x10u

enum {
    MSR_WALL_CLOCK_OLD = 0x11,
    MSR_SYSTEM_TIME_OLD = 0x12,
    MSR_WALL_CLOCK = PV_KVM_MSRS,
    MSR_SYSTEM_TIME,
};

enum { KVM_EPERM = 1, KVM_ENOSYS = 1000 };

bool kvm_offered(const struct paravirt *pv)
{
    for (unsigned i = 0; i < ARRAY_SIZE(feature_bits); i++)
        if (pv_has(pv, feature_bits[i].feature))
            return true;
    return false;
}

void kvm_leaves(struct paravirt *pv, u32 base)
{
    pv_signature(pv, base, base + LEAF_FREQUENCIES, "KVMKVMKVM");
    u32 *r = pv_leaf(pv, base + 1);
    for (unsigned i = 0; i < ARRAY_SIZE(feature_bits); i++)
        if (pv_has(pv, feature_bits[i].feature))
            r[0] |= feature_bits[i].bits;
    r = pv_leaf(pv, base + LEAF_FREQUENCIES);
    r[0] = (u32)pv->config.tsc_khz;
    r[1] = VITRO_APIC_KHZ;
}

/* -- Hypercalls: number in RAX, arguments in RBX, RCX, RDX, RSI; the result in RAX ------------------------ */

enum vitro_hc kvm_hypercall(struct paravirt *pv, const struct vitro_hypercall *call)
{
    s64 result = -KVM_ENOSYS;
    (void)pv;
    if (call->cpl != 0)
        result = -KVM_EPERM;
    call->gpr[0] = call->code64 ? (u64)result : (u32)result;
    return VITRO_HC_DONE;
}

/* -- MSRs --------------------------------------------------------------------------------------------------- */

struct msr_row {
    u32 msr;
    enum pv_feature feature;
    size_t at; /* in struct kvm_vcpu: what a read gives */
    int (*write)(struct paravirt *pv, unsigned cpu, u64 value);
};
#define AT(member) offsetof(struct kvm_vcpu, member)
static const struct msr_row msr_rows[] = {
    { MSR_WALL_CLOCK_OLD, PV_CLOCK, AT(wall_clock), kvm_wall_write },
    { MSR_SYSTEM_TIME_OLD, PV_CLOCK, AT(system_time), kvm_clock_write },
    { MSR_WALL_CLOCK, PV_CLOCK, AT(wall_clock), kvm_wall_write },
    { MSR_SYSTEM_TIME, PV_CLOCK, AT(system_time), kvm_clock_write },
};

/* A number whose feature is off does not exist. */
static const struct msr_row *find_msr(const struct paravirt *pv, u32 msr)
{
    for (unsigned i = 0; i < ARRAY_SIZE(msr_rows); i++)
        if (msr_rows[i].msr == msr)
            return pv_has(pv, msr_rows[i].feature) ? &msr_rows[i] : NULL;
    return NULL;
}

int kvm_msr_read(struct paravirt *pv, unsigned cpu, u32 msr, u64 *value)
{
    const struct msr_row *row = find_msr(pv, msr);
    if (!row)
        return -1;
    *value = *(const u64 *)((const u8 *)&pv->cpu[cpu].kvm + row->at);
    return 0;
}

int kvm_msr_write(struct paravirt *pv, unsigned cpu, u32 msr, u64 value)
{
    const struct msr_row *row = find_msr(pv, msr);
    return row ? row->write(pv, cpu, value) : -1;
}
