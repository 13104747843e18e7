/*
 * pv_misc.c - steal time, kicks, IPIs in one call, polling and migration. Linux
 * Documentation/virt/kvm/x86/{msr,hypercalls}.rst.
 */
#include "lib/pv.h"

#define NOWHERE 0xfff0000000ull

static volatile unsigned hits[256];
static void handler(struct regs *r)
{
    hits[r->vec]++;
    if (r->vec != NMI)
        lapic_eoi();
}

static void steal(void)
{
    volatile struct kvm_steal *st = (void *)page_alloc();
    report("steal time is offered", kvm_has(KVM_STEAL));
    for (unsigned bit = 1; bit < 6; bit++)
        if (wrmsr_ok(MSR_KVM_STEAL_TIME, (u64)st | 1 | BIT(bit)))
            report("bits 5:1 are reserved: #GP", false);
    report("bits 5:1 are reserved: #GP", true);
    st->preempted = 1;
    u64 khz = cpuid(0x40000010, 0).eax, start = rdtsc(); /* before it counts: the host may be busy right now */
    wrmsr(MSR_KVM_STEAL_TIME, (u64)st | 1);
    report_eq("the MSR reads as written", rdmsr(MSR_KVM_STEAL_TIME), (u64)st | 1);
    report("who runs is not preempted", st->preempted == 0);

    /* It may grow or not, as the host is busy or not; it is consistent and never falls. */
    u64 end = rdtsc() + 100 * khz, limit = end + 60000 * khz;
    u64 last = 0, falls = 0, odd = 0;
    lapic_write(LAPIC_TDCR, 0xb);
    lapic_write(LAPIC_LVTT, 0x20000 | 0x50);
    lapic_write(LAPIC_TMICT, 1000000); /* 1 ms */
    sti();
    while (rdtsc() < end || (hits[0x50] <= 10 && rdtsc() < limit)) {
        u32 version = st->version;
        barrier();
        u64 now = st->steal;
        barrier();
        if (version & 1)
            odd++;
        else if (version == st->version) {
            falls += now < last;
            last = now;
        }
    }
    cli();
    report("timer interrupts, for 100 ms or more", hits[0x50] > 10);
    report_eq("steal time never falls", falls, 0);
    report_eq("this vCPU never sees it half written", odd, 0);
    reportf(last <= (rdtsc() - start) * 1000000 / khz, "it is less than the time that went by (%lu us)", last / 1000);

    /* While this vCPU sleeps, "preempted"; a flush left there is taken on waking. Only this vCPU can look: afterwards. */
    sti();
    asm volatile("hlt" ::: "memory");
    cli();
    report_eq("awake: not preempted", st->preempted, 0);
    lapic_write(LAPIC_LVTT, 0x10000);
    wrmsr(MSR_KVM_STEAL_TIME, 0);

    static const u64 bad[] = { NOWHERE | 1, 0xffffffffffffffc1, (LAPIC_PA & ~63ull) | 1 };
    unsigned faults = 0;
    for (unsigned i = 0; i < 3; i++) {
        faults += !wrmsr_ok(MSR_KVM_STEAL_TIME, bad[i]);
        lapic_self_ipi(0x50);
        asm volatile("sti; nop; cli" ::: "memory");
    }
    report_eq("no RAM there: taken, not used", faults, 0);
    wrmsr(MSR_KVM_STEAL_TIME, 0);
}

static void kick(void)
{
    report("unhalt is offered", kvm_has(KVM_UNHALT));
    /* Kicked before it halts: HLT falls through, with interrupts off or on. A hang is the failure. */
    report_eq("kick", vmcall(HC_KICK_CPU, 0, 0, 0, 0), 0);
    asm volatile("hlt" ::: "memory");
    report("HLT after a kick goes on, IF clear", true);
    vmcall(HC_KICK_CPU, 0, 0, 0, 0);
    asm volatile("sti; hlt; cli" ::: "memory");
    report("and with IF set", true);
    vmcall(HC_KICK_CPU, 0, 0, 0, 0);
    vmcall(HC_KICK_CPU, 0, 0, 0, 0);
    asm volatile("hlt" ::: "memory");
    /* Two kicks are one: the next HLT waits for its interrupt. */
    unsigned before = hits[0x50];
    lapic_write(LAPIC_TDCR, 0xb);
    lapic_write(LAPIC_LVTT, 0x50);
    lapic_write(LAPIC_TMICT, 5000000);
    asm volatile("sti; hlt; cli" ::: "memory");
    report_eq("two kicks are one", hits[0x50], before + 1);
    report_eq("a vCPU that is not: 0", vmcall(HC_KICK_CPU, 0, 200, 0, 0), 0);
    report_eq("nor this one", vmcall(HC_KICK_CPU, 0, ~0ull, 0, 0), 0);
    report("yield is offered", kvm_has(KVM_YIELD));
    report_eq("yield to oneself", vmcall(HC_SCHED_YIELD, 0, 0, 0, 0), 0);
    report_eq("to nobody", vmcall(HC_SCHED_YIELD, ~0ull, 0, 0, 0), 0);
    report_eq("poll for an interrupt", vmcall(HC_POLL_IRQ, 0, 0, 0, 0), 0);
}

static void ipi(void)
{
    report("send-IPI is offered", kvm_has(KVM_SEND_IPI));
    trap_handle(NMI, handler);
    hits[0x51] = 0;
    sti();
    report_eq("one bit, one IPI", vmcall(HC_SEND_IPI, 1, 0, 0, 0x51), 1);
    report_eq("it is there before the next instruction", hits[0x51], 1);
    report_eq("a full mask: those that there are", vmcall(HC_SEND_IPI, ~0ull, ~0ull, 0, 0x51), 1);
    report_eq("delivered once", hits[0x51], 2);
    report_eq("an empty mask", vmcall(HC_SEND_IPI, 0, 0, 0, 0x51), 0);
    report_eq("from beyond the last", vmcall(HC_SEND_IPI, ~0ull, 0, 1, 0x51), 0);
    report_eq("from far beyond", vmcall(HC_SEND_IPI, ~0ull, ~0ull, 0xffffffff, 0x51), 0);
    report_eq("and farther", vmcall(HC_SEND_IPI, ~0ull, ~0ull, ~0ull - 3, 0x51), 0);
    report_eq("NMI", vmcall(HC_SEND_IPI, 1, 0, 0, 0x400), 1);
    report_eq("it is taken", hits[NMI], 1);
    report_eq("a logical destination: -EINVAL", vmcall(HC_SEND_IPI, 1, 0, 0, 0x851), -(u64)EINVAL);
    report_eq("INIT: -EINVAL", vmcall(HC_SEND_IPI, 1, 0, 0, 0x500), -(u64)EINVAL);
    report_eq("SIPI: -EINVAL", vmcall(HC_SEND_IPI, 1, 0, 0, 0x608), -(u64)EINVAL);
    vmcall(HC_SEND_IPI, 1, 0, 0, 3); /* an illegal vector: an APIC error, nothing else */
    cli();
    report_eq("none of these came as an interrupt", hits[0x51], 2);
}

static void rest(void)
{
    u64 page = page_alloc();
    report("poll control is offered", kvm_has(KVM_POLL));
    report_eq("polling is allowed at first", rdmsr(MSR_KVM_POLL_CONTROL), 1);
    wrmsr(MSR_KVM_POLL_CONTROL, 0);
    report_eq("forbidden", rdmsr(MSR_KVM_POLL_CONTROL), 0);
    report("other bits: #GP", !wrmsr_ok(MSR_KVM_POLL_CONTROL, 2) && !wrmsr_ok(MSR_KVM_POLL_CONTROL, 1ull << 63));
    wrmsr(MSR_KVM_POLL_CONTROL, 1);
    report("migration control is offered", kvm_has(KVM_MIGRATION) && kvm_has(KVM_MAP_GPA));
    report_eq("nothing is encrypted: migration is allowed", rdmsr(MSR_KVM_MIGRATION_CONTROL), 1);
    wrmsr(MSR_KVM_MIGRATION_CONTROL, 0);
    report_eq("the guest may forbid it", rdmsr(MSR_KVM_MIGRATION_CONTROL), 0);
    report("other bits: #GP", !wrmsr_ok(MSR_KVM_MIGRATION_CONTROL, 4));
    report_eq("plain pages are plain", vmcall(HC_MAP_GPA, page, 1, 0, 0), 0);
    report_eq("in 2 MiB pages too", vmcall(HC_MAP_GPA, page, 512, 1, 0), 0);
    report_eq("encrypted: -EINVAL", vmcall(HC_MAP_GPA, page, 1, 0x10, 0), -(u64)EINVAL);
    report_eq("no page: -EINVAL", vmcall(HC_MAP_GPA, page, 0, 0, 0), -(u64)EINVAL);
    report_eq("misaligned: -EINVAL", vmcall(HC_MAP_GPA, page + 8, 1, 0, 0), -(u64)EINVAL);
    report_eq("more than there can be: -EINVAL", vmcall(HC_MAP_GPA, page, ~0ull, 0, 0), -(u64)EINVAL);
    report_eq("reserved attributes: -EINVAL", vmcall(HC_MAP_GPA, page, 1, 1ull << 40, 0), -(u64)EINVAL);
    report("asynchronous page faults are not offered", !kvm_has(KVM_ASYNC_PF) && !wrmsr_ok(MSR_KVM_ASYNC_PF_EN, 0));
    report_eq("every other call: -ENOSYS", vmcall(2, 0, 0, 0, 0), -(u64)ENOSYS);
    report("every other MSR: #GP", !wrmsr_ok(0x4b564d06, 0) && !wrmsr_ok(0x4b564dff, 0) && try_rdmsr(0x4b564d07) == GP);
}

int main(void)
{
    lapic_init();
    trap_handle(0x50, handler);
    trap_handle(0x51, handler);
    steal();
    kick();
    ipi();
    rest();
    return 0;
}
