/*
 * kvm_clock.c - contract 1: kvmclock and the wall clock. Source: Linux Documentation/virt/kvm/x86/msr.rst,
 * MSR_KVM_SYSTEM_TIME_NEW and MSR_KVM_WALL_CLOCK_NEW.
 *
 * An address that is not RAM is remembered and nothing is written: a write of these MSRs never faults for it.
 */
#include "paravirt/inner.h"
#include <time.h>

/* struct pvclock_vcpu_time_info: 32 bytes the guest reads, with an even version when it is whole. */
struct kvm_time {
    u32 version, pad;
    u64 tsc_timestamp, system_time;
    u32 tsc_mul;
    s8 tsc_shift;
    u8 flags, pad2[2];
};
/* struct pvclock_wall_clock */
struct kvm_wall {
    u32 version, sec, nsec;
};
_Static_assert(sizeof(struct kvm_time) == 32 && sizeof(struct kvm_wall) == 12, "KVM ABI");
#define TIME_TSC_STABLE 1u /* flags bit 0: one set of constants for every vCPU, so no vCPU is ahead of another */
#define TIME_ENABLED 1ull  /* MSR bit 0 */

/*
 * Written when the guest asks, and again only when this vCPU's TSC is moved: the constants are for ever (clock.c). The
 * guest computes (TSC - tsc_timestamp) scaled. Readers of other vCPUs may look meanwhile: odd version first, even last.
 */
void kvm_tsc_moved(struct paravirt *pv, unsigned cpu)
{
    struct pv_vcpu *c = &pv->cpu[cpu];
    gpa_t gpa = c->kvm.system_time & ~TIME_ENABLED;
    struct kvm_time t = {
        .tsc_timestamp = pv->tsc_base + vitro_vcpu_tsc_offset(c->vcpu),
        .tsc_mul = pv->tsc_mul,
        .tsc_shift = pv->tsc_shift,
        .flags = TIME_TSC_STABLE,
    };
    struct kvm_time old;

    if (!(c->kvm.system_time & TIME_ENABLED) || pv_read(pv, gpa, &old, sizeof(old)))
        return;
    u32 done = (old.version | 1) + 1;
    t.version = done - 1;
    if (pv_write(pv, gpa, &t.version, sizeof(t.version)))
        return;
    __atomic_thread_fence(__ATOMIC_RELEASE);
    pv_write(pv, gpa, &t, sizeof(t));
    __atomic_thread_fence(__ATOMIC_RELEASE);
    pv_write(pv, gpa, &done, sizeof(done));
}

int kvm_clock_write(struct paravirt *pv, unsigned cpu, u64 value)
{
    pv->cpu[cpu].kvm.system_time = value;
    kvm_tsc_moved(pv, cpu);
    return 0;
}

/* Written at each request: the wall clock at system time 0. */
int kvm_wall_write(struct paravirt *pv, unsigned cpu, u64 value)
{
    struct pv_vcpu *c = &pv->cpu[cpu];
    struct timespec now;
    struct kvm_wall old;
    u64 tsc;

    c->kvm.wall_clock = value;
    if (pv_read(pv, value, &old, sizeof(old)))
        return 0;
    now = pv_wall_now(&tsc);
    u64 ns = (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec - pv_clock_ns(pv, tsc);
    struct kvm_wall w = {
        .version = old.version | 1, .sec = (u32)(ns / 1000000000u), .nsec = (u32)(ns % 1000000000u)
    };
    if (pv_write(pv, value, &w.version, sizeof(w.version)))
        return 0;
    __atomic_thread_fence(__ATOMIC_RELEASE);
    pv_write(pv, value, &w, sizeof(w));
    __atomic_thread_fence(__ATOMIC_RELEASE);
    w.version++;
    pv_write(pv, value, &w.version, sizeof(w.version));
    return 0;
}
