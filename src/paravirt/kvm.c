/*
 * kvm.c - contract 1: KVM's guest ABI, which stock kernels speak. Sources: Linux
 * Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst.
 *
 * Not offered, and why: asynchronous page faults (4, 10, 14: what the host does with the guest's memory happens to the
 * thread that touches it, and nobody tells us before); the MMU calls (2: withdrawn by KVM); wider MSI destinations (15:
 * there are no APIC IDs above 254). Hints (EDX): none, vCPUs are threads among others.
 */
#include "machine/machine.h"
#include "paravirt/inner.h"

/* Leaf 0x40000001: which of our features answers for which of KVM's bits. */
static const struct {
    enum pv_feature feature;
    u32 bits;
} feature_bits[] = {
    { PV_CLOCK, BIT(0) | BIT(3) | BIT(24) }, /* CLOCKSOURCE, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT */
    { PV_IO_DELAY, BIT(1) },                 /* NOP_IO_DELAY */
    { PV_STEAL, BIT(5) },                    /* STEAL_TIME */
    { PV_EOI, BIT(6) },                      /* PV_EOI */
    { PV_UNHALT, BIT(7) },                   /* PV_UNHALT */
    { PV_TLB, BIT(9) },                      /* PV_TLB_FLUSH */
    { PV_IPI, BIT(11) },                     /* PV_SEND_IPI */
    { PV_POLL, BIT(12) },                    /* POLL_CONTROL */
    { PV_YIELD, BIT(13) },                   /* PV_SCHED_YIELD */
    { PV_MAP_GPA, BIT(16) | BIT(17) },       /* HC_MAP_GPA_RANGE, MIGRATION_CONTROL */
};

/* Leaf 0x40000010 is VMware's, and KVM users' too: kHz of the TSC and of the APIC timer. */
#define LEAF_FREQUENCIES 0x10u

enum {
    MSR_WALL_CLOCK_OLD = 0x11,
    MSR_SYSTEM_TIME_OLD = 0x12,
    MSR_WALL_CLOCK = PV_KVM_MSRS,
    MSR_SYSTEM_TIME,
    MSR_STEAL_TIME = PV_KVM_MSRS + 3,
    MSR_PV_EOI,
    MSR_POLL_CONTROL,
    MSR_MIGRATION_CONTROL = PV_KVM_MSRS + 8,
};

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

/* -- MSRs --------------------------------------------------------------------------------------------------- */

/* Bit 0 on, bit 1 reserved; the rest is the address of 4 bytes of RAM. */
int kvm_eoi_write(struct paravirt *pv, unsigned cpu, u64 value)
{
    u32 *word = NULL;

    if ((value & 2) || !pv->config.machine)
        return -1;
    if (value & 1) {
        word = ram_dma_ptr(pv->config.ram, value & ~3ull, sizeof(*word));
        if (!word)
            return -1;
    }
    machine_pv_eoi_set(pv->config.machine, cpu, value, word);
    return 0;
}

static int poll_write(struct paravirt *pv, unsigned cpu, u64 value)
{
    if (value & ~1ull)
        return -1;
    pv->cpu[cpu].kvm.poll_control = value;
    return 0;
}

bool paravirt_may_poll(const struct paravirt *pv, unsigned cpu)
{
    return pv->cpu[cpu].kvm.poll_control & 1;
}

static int migration_write(struct paravirt *pv, unsigned cpu, u64 value)
{
    if (value & ~1ull)
        return -1;
    pv->cpu[cpu].kvm.migration = value;
    return 0;
}

/* Values at reset: waiting awake is allowed, and so is moving the guest (nothing of it is encrypted). */
void kvm_reset(struct paravirt *pv, unsigned cpu)
{
    struct kvm_vcpu *k = &pv->cpu[cpu].kvm;
    kvm_steal_write(pv, cpu, 0); /* another thread may be about to write there: `lock` and `yields` are never simply overwritten */
    __atomic_store_n(&k->yields, false, __ATOMIC_RELAXED);
    k->system_time = k->wall_clock = k->run_delay = k->steal_due = 0;
    k->poll_control = k->migration = 1;
}

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
    { MSR_STEAL_TIME, PV_STEAL, AT(steal_time), kvm_steal_write },
    { MSR_PV_EOI, PV_EOI, 0, kvm_eoi_write }, /* kept by the local APIC */
    { MSR_POLL_CONTROL, PV_POLL, AT(poll_control), poll_write },
    { MSR_MIGRATION_CONTROL, PV_MAP_GPA, AT(migration), migration_write },
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
    if (msr == MSR_PV_EOI)
        *value = pv->config.machine ? machine_pv_eoi_get(pv->config.machine, cpu) : 0;
    else
        *value = *(const u64 *)((const u8 *)&pv->cpu[cpu].kvm + row->at);
    return 0;
}

int kvm_msr_write(struct paravirt *pv, unsigned cpu, u32 msr, u64 value)
{
    const struct msr_row *row = find_msr(pv, msr);
    return row ? row->write(pv, cpu, value) : -1;
}
