/* pv.h - KVM's guest ABI as the tests see it. Source: Linux Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst. */
#pragma once
#include "lib/guest.h"

enum {
    MSR_KVM_WALL_CLOCK_OLD = 0x11,
    MSR_KVM_SYSTEM_TIME_OLD = 0x12,
    MSR_KVM_WALL_CLOCK = 0x4b564d00,
    MSR_KVM_SYSTEM_TIME,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_STEAL_TIME,
    MSR_KVM_PV_EOI_EN,
    MSR_KVM_POLL_CONTROL,
    MSR_KVM_MIGRATION_CONTROL = 0x4b564d08,
};
enum { /* feature bits of leaf 0x40000001 */
    KVM_CLOCK = 0, KVM_NOP_IO_DELAY = 1, KVM_CLOCK2 = 3, KVM_ASYNC_PF = 4, KVM_STEAL = 5, KVM_EOI = 6,
    KVM_UNHALT = 7, KVM_TLB_FLUSH = 9, KVM_SEND_IPI = 11, KVM_POLL = 12, KVM_YIELD = 13,
    KVM_MAP_GPA = 16, KVM_MIGRATION = 17, KVM_CLOCK_STABLE = 24,
};
enum { HC_POLL_IRQ = 1, HC_KICK_CPU = 5, HC_CLOCK_PAIRING = 9, HC_SEND_IPI = 10, HC_SCHED_YIELD = 11, HC_MAP_GPA = 12 };
enum { EPERM = 1, EFAULT = 14, EINVAL = 22, EOPNOTSUPP = 95, ENOSYS = 1000 };
#define NATIVE 0x56540000ul

struct kvm_time {
    u32 version, pad;
    u64 tsc_timestamp, system_time;
    u32 tsc_to_system_mul;
    int8_t tsc_shift;
    u8 flags, pad2[2];
};
struct kvm_wall {
    u32 version, sec, nsec;
};
struct kvm_steal {
    u64 steal;
    u32 version, flags;
    u8 preempted, pad[3];
    u32 pad2[11];
};

static inline u64 vmcall(u64 nr, u64 b, u64 c, u64 d, u64 s)
{
    u64 r;
    asm volatile("vmcall" : "=a"(r) : "a"(nr), "b"(b), "c"(c), "d"(d), "S"(s) : "memory");
    return r;
}

/* As the documentation says to read it. */
static inline u64 kvm_time_read(const volatile struct kvm_time *t)
{
    for (;;) {
        u32 version = t->version;
        barrier();
        u64 delta = rdtsc() - t->tsc_timestamp;
        delta = t->tsc_shift < 0 ? delta >> -t->tsc_shift : delta << t->tsc_shift;
        u64 ns = t->system_time + (u64)((unsigned __int128)delta * t->tsc_to_system_mul >> 32);
        barrier();
        if (!(version & 1) && version == t->version)
            return ns;
    }
}
static inline bool kvm_has(unsigned bit)
{
    return cpuid(0x40000001, 0).eax >> bit & 1;
}
/* wrmsr_ok - does it go through? */
static inline bool wrmsr_ok(u32 msr, u64 v)
{
    return try_wrmsr(msr, v) == VEC_NONE;
}
