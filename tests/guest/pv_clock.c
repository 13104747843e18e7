/* pv_clock.c - kvmclock, the wall clock and clock pairing. Linux Documentation/virt/kvm/x86/msr.rst, hypercalls.rst. */
#include "lib/pv.h"

/* Between two looks at a clock, however busy the host is; what is looked for is 400 s and more. */
#define SOON 60000000000ull
#define NOWHERE 0xfff0000000ull /* no RAM there */

static void system_time(u32 msr)
{
    volatile struct kvm_time *t = (void *)page_alloc();
    report("off before it is asked for", t->version == 0);
    wrmsr(msr, (u64)t | 1);
    report_eq("the MSR reads as written", rdmsr(msr), (u64)t | 1);
    report("the version is even and not 0", t->version && !(t->version & 1));
    report("stable: every vCPU has the same time", t->flags & 1);

    u64 last = 0, back = 0;
    for (unsigned i = 0; i < 200000; i++) {
        u64 now = kvm_time_read(t);
        back += now < last;
        last = now;
    }
    report_eq("it never runs backwards", back, 0);

    /* Between two pairs of looks at the TSC: it counts ns, by the frequency that leaf 0x40000010 gives. */
    u64 khz = cpuid(0x40000010, 0).eax, outer0 = rdtsc(), a = kvm_time_read(t), inner0 = rdtsc();
    while (rdtsc() - inner0 < 20 * khz)
        ;
    u64 inner1 = rdtsc(), took = kvm_time_read(t) - a, outer1 = rdtsc();
    reportf(took + 100 >= (inner1 - inner0) * 1000000 / khz && took <= (outer1 - outer0) * 1000000 / khz + 100,
            "20 ms of TSC are %lu ns", took);

    /* A write to the TSC moves it, not the time; and the page is written anew. */
    u32 version = t->version;
    a = kvm_time_read(t);
    wrmsr(MSR_TSC, rdtsc() + 1000000000000);
    u64 b = kvm_time_read(t);
    reportf(b >= a && b - a < SOON, "the TSC moved: time goes on (%ld ns)", (long)(b - a));
    report("the version is even and another", t->version != version && !(t->version & 1));
    wrmsr(0x3b, 0); /* TSC_ADJUST: back to where it was */
    u64 c = kvm_time_read(t);
    reportf(c >= b && c - b < SOON, "and back by TSC_ADJUST (%ld ns)", (long)(c - b));

    version = t->version;
    wrmsr(msr, (u64)t);
    wrmsr(MSR_TSC, rdtsc() + 1000);
    report_eq("switched off: written no more", t->version, version);

    /* Two pages, one time. */
    volatile struct kvm_time *u = (void *)(page_alloc() + 64);
    wrmsr(msr, (u64)t | 1);
    a = kvm_time_read(t);
    wrmsr(msr, (u64)u | 1);
    b = kvm_time_read(u);
    reportf(b >= a && b - a < SOON, "another place, the same time (%ld ns)", (long)(b - a));
    wrmsr(msr, 0);
}

static void hostile(void)
{
    static const u64 bad[] = { NOWHERE | 1, ~0ull, 0xfffffffffffff001, LAPIC_PA | 1, 0x7ffffffffffffff1 };
    unsigned faults = 0;
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        faults += !wrmsr_ok(MSR_KVM_SYSTEM_TIME, bad[i]) + !wrmsr_ok(MSR_KVM_WALL_CLOCK, bad[i]);
    report_eq("addresses that are not RAM are taken and not used", faults, 0);
    wrmsr(MSR_TSC, rdtsc() + 1);
    report("nor when the TSC moves", true);

    u8 *p = (u8 *)pages_alloc(2, PAGE);
    wrmsr(MSR_KVM_SYSTEM_TIME, (u64)(p + PAGE - 8) | 1); /* across two pages */
    report("across a page: whole", kvm_time_read((void *)(p + PAGE - 8)) > 0);
    wrmsr(MSR_KVM_SYSTEM_TIME, 0);
}

/* A page with code that is also the clock's page: what runs is what is there. */
KERNEL_ASM(".balign 64\npv_code: mov $1, %eax\n ret\n .balign 64");
extern u8 pv_code[];
static void over_code(void)
{
    u8 *p = (u8 *)page_alloc();
    memcpy(p, pv_code, 8);
    u64 (*fn)(void) = (u64(*)(void))(u64)p;
    report_eq("code in a page", fn(), 1);
    wrmsr(MSR_KVM_SYSTEM_TIME, (u64)p | 1);
    report("written over by the clock: not run any more", p[0] != pv_code[0] || p[1] != pv_code[1]);
    wrmsr(MSR_KVM_SYSTEM_TIME, 0);
    memcpy(p, pv_code, 8);
    p[1] = 7;
    report_eq("and new code in its place is", fn(), 7);
}

static void wall(u32 msr)
{
    volatile struct kvm_wall *w = (void *)page_alloc();
    wrmsr(msr, (u64)w);
    report("wall clock: an even version", w->version && !(w->version & 1));
    report("a time of this century", w->sec > 1700000000 && w->nsec < 1000000000);
    u32 version = w->version;
    u64 was = (u64)w->sec * 1000000000 + w->nsec;
    wrmsr(msr, (u64)w);
    u64 is = (u64)w->sec * 1000000000 + w->nsec;
    report("again: another version", w->version > version && !(w->version & 1));
    reportf(is - was + 50000000 < 100000000, "the same moment of boot (%ld us)", (long)(is - was) / 1000);
}

static void pairing(void)
{
    struct {
        s64 sec, nsec;
        u64 tsc;
        u32 flags, pad[9];
    } *p = (void *)page_alloc();
    volatile struct kvm_time *t = (void *)page_alloc();
    volatile struct kvm_wall *w = (void *)page_alloc();

    memset(p, 0xff, sizeof(*p));
    u64 before = rdtsc();
    report_eq("clock pairing", vmcall(HC_CLOCK_PAIRING, (u64)p, 0, 0, 0), 0);
    u64 after = rdtsc();
    report("its TSC is of this moment", p->tsc >= before && p->tsc <= after);
    report("flags and the rest are 0", p->flags == 0 && p->pad[8] == 0);
    wrmsr(MSR_KVM_SYSTEM_TIME, (u64)t | 1);
    wrmsr(MSR_KVM_WALL_CLOCK, (u64)w);
    u64 now = (u64)w->sec * 1000000000 + w->nsec + kvm_time_read(t), paired = (u64)p->sec * 1000000000 + (u64)p->nsec;
    reportf(now - paired < SOON, "it agrees with the wall clock (%ld us later)", (long)(now - paired) / 1000);
    report_eq("another clock: -EOPNOTSUPP", vmcall(HC_CLOCK_PAIRING, (u64)p, 1, 0, 0), -(u64)EOPNOTSUPP);
    report_eq("to nowhere: -EFAULT", vmcall(HC_CLOCK_PAIRING, NOWHERE, 0, 0, 0), -(u64)EFAULT);
    report_eq("to the end of the address space: -EFAULT", vmcall(HC_CLOCK_PAIRING, ~0ull - 8, 0, 0, 0), -(u64)EFAULT);
    wrmsr(MSR_KVM_SYSTEM_TIME, 0);
}

int main(void)
{
    report("offered: clock, new MSRs, stable", kvm_has(KVM_CLOCK) && kvm_has(KVM_CLOCK2) && kvm_has(KVM_CLOCK_STABLE));
    system_time(MSR_KVM_SYSTEM_TIME);
    system_time(MSR_KVM_SYSTEM_TIME_OLD);
    wall(MSR_KVM_WALL_CLOCK);
    wall(MSR_KVM_WALL_CLOCK_OLD);
    pairing();
    over_code();
    hostile();
    return 0;
}
