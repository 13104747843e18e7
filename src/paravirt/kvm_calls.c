/*
 * kvm_calls.c - contract 1: hypercalls. Source: Linux Documentation/virt/kvm/x86/hypercalls.rst.
 * Number in RAX, arguments in RBX, RCX, RDX, RSI, result in RAX; nothing else changes.
 */
#include "machine/machine.h"
#include "paravirt/inner.h"
#include <time.h>

enum { KVM_EPERM = 1, KVM_EFAULT = 14, KVM_EINVAL = 22, KVM_EOPNOTSUPP = 95, KVM_ENOSYS = 1000 };

struct call {
    const struct vitro_hypercall *hc;
    u64 arg[4];
};

/* a1: APIC ID. Its HLT ends, or the next one it comes to. */
static s64 kick_cpu(struct paravirt *pv, const struct call *c)
{
    if (c->arg[1] < pv->nr_cpus && pv->config.kick)
        pv->config.kick(pv->config.opaque, (unsigned)c->arg[1], VITRO_KICK_WAKE);
    return 0;
}

/* a0: APIC ID of one that should run. Threads cannot be given the CPU by name: it is given up. */
static s64 sched_yield_to(struct paravirt *pv, const struct call *c)
{
    if (c->arg[0] < pv->nr_cpus && c->arg[0] != c->hc->vcpu)
        vitro_vcpu_yield(pv->cpu[c->hc->vcpu].vcpu);
    return 0;
}

/* a0, a1: bits for the APIC IDs from a2 on; a3: ICR. Two longs of the caller's size. */
static s64 send_ipi(struct paravirt *pv, const struct call *c)
{
    u64 mask[2] = { c->arg[0], c->arg[1] };

    if (!pv->config.machine)
        return -KVM_ENOSYS;
    if (!c->hc->code64) {
        mask[0] |= mask[1] << 32;
        mask[1] = 0;
    }
    if (c->arg[2] >= pv->nr_cpus)
        return 0;
    int sent = machine_ipi_mask(pv->config.machine, (u32)c->arg[2], mask, (u32)c->arg[3]);
    return sent < 0 ? -KVM_EINVAL : sent;
}

struct clock_pairing {
    s64 sec, nsec;
    u64 tsc;
    u32 flags, pad[9];
};
_Static_assert(sizeof(struct clock_pairing) == 64, "KVM ABI");

/* a0: where to; a1: 0, the host's real-time clock. That and the guest's TSC at one moment. */
static s64 clock_pairing(struct paravirt *pv, const struct call *c)
{
    struct clock_pairing out = { 0 };
    u64 tsc;

    if (c->arg[1] != 0)
        return -KVM_EOPNOTSUPP;
    struct timespec now = pv_wall_now(&tsc);
    out.sec = now.tv_sec;
    out.nsec = now.tv_nsec;
    out.tsc = tsc + vitro_vcpu_tsc_offset(pv->cpu[c->hc->vcpu].vcpu);
    return pv_write(pv, c->arg[0], &out, sizeof(out)) ? -KVM_EFAULT : 0;
}

/* a0: first guest-physical page; a1: number of 4 KiB pages; a2: attributes. There is no encrypted memory here: saying
 * that pages are plain is true and changes nothing, saying that they are encrypted is refused. */
static s64 map_gpa_range(struct paravirt *pv, const struct call *c)
{
    (void)pv;
    u64 first = c->arg[0] >> PAGE_SHIFT, size = c->arg[2] & 15;
    if ((c->arg[0] & ~PAGE_MASK) || !c->arg[1] || first + c->arg[1] <= first || first + c->arg[1] > 1ull << 52 ||
        (c->arg[2] & ~15ull) || size > 2)
        return -KVM_EINVAL;
    return 0;
}

/* clang-format off */
static const struct {
    u32 nr;
    enum pv_feature feature;
    s64 (*fn)(struct paravirt *pv, const struct call *c);
} calls[] = {
    {  5, PV_UNHALT,  kick_cpu },       /* KVM_HC_KICK_CPU */
    {  9, PV_CLOCK,   clock_pairing },  /* KVM_HC_CLOCK_PAIRING */
    { 10, PV_IPI,     send_ipi },       /* KVM_HC_SEND_IPI */
    { 11, PV_YIELD,   sched_yield_to }, /* KVM_HC_SCHED_YIELD */
    { 12, PV_MAP_GPA, map_gpa_range },  /* KVM_HC_MAP_GPA_RANGE */
};
/* clang-format on */

static s64 answer(struct paravirt *pv, const struct call *c, u64 nr)
{
    if (c->hc->cpl != 0)
        return -KVM_EPERM;
    if (nr == 1) /* KVM_HC_VAPIC_POLL_IRQ: this call is an exit like any other; events come behind it */
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(calls); i++)
        if (calls[i].nr == nr)
            return pv_has(pv, calls[i].feature) ? calls[i].fn(pv, c) : -KVM_ENOSYS;
    return -KVM_ENOSYS;
}

enum vitro_hc kvm_hypercall(struct paravirt *pv, const struct vitro_hypercall *hc)
{
    u64 *gpr = hc->gpr, keep = hc->code64 ? ~0ull : 0xffffffff;
    struct call c = { .hc = hc, .arg = { gpr[3] & keep, gpr[1] & keep, gpr[2] & keep, gpr[6] & keep } };

    gpr[0] = (u64)answer(pv, &c, gpr[0] & keep) & keep;
    return VITRO_HC_DONE;
}
