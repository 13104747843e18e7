/*
 * kvm_steal.c - contract 1: steal time, and what hangs on its structure: whether a vCPU runs, and TLB flushes left to
 * one that does not. Source: Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_STEAL_TIME.
 *
 * "Steal" is how long the vCPU's thread was ready to run and the host ran something else, from /proc (sched_info's
 * run delay, which is also what KVM reports). Where the host's /proc does not have it, it stays 0.
 * "Preempted" is true while the thread sleeps in the guest's HLT, and while it gives the host's CPU away because the guest
 * waits in a loop (PAUSE, or the call). When the host takes the CPU from a running thread we cannot know.
 */
#include "paravirt/inner.h"
#include "paravirt/native.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct kvm_steal_time {
    u64 steal; /* ns */
    u32 version, flags;
    u8 preempted, pad[3];
    u32 pad2[11];
};
_Static_assert(sizeof(struct kvm_steal_time) == 64, "KVM ABI");
#define VCPU_PREEMPTED 1u
#define VCPU_FLUSH_TLB 2u
#define STEAL_ENABLED 1ull
#define STEAL_RESERVED 0x3eull

#define UPDATE_MS 10 /* reading /proc costs a microsecond: not more often than this */

/* The page may hold code too, if the guest is silly enough. */
static void written(struct paravirt *pv, const struct kvm_vcpu *k)
{
    ram_written(pv->config.ram, k->steal_time & PV_STEAL_ADDRESS, sizeof(struct kvm_steal_time));
}

/* /proc/thread-self/schedstat: ns on a CPU, ns waiting for one, time slices. */
static u64 run_delay(const struct kvm_vcpu *k)
{
    char text[96], *end;
    ssize_t n = k->schedstat_fd < 0 ? -1 : pread(k->schedstat_fd, text, sizeof(text) - 1, 0);

    if (n <= 0)
        return k->run_delay;
    text[n] = '\0';
    strtoull(text, &end, 10);
    return strtoull(end, NULL, 10);
}

static void update(struct paravirt *pv, struct kvm_vcpu *k)
{
    struct kvm_steal_time *st = k->steal;
    u64 now = pv_host_tsc();

    if (!st || now < k->steal_due)
        return;
    k->steal_due = now + (u64)pv->config.tsc_khz * UPDATE_MS;
    u64 delay = run_delay(k);
    if (delay <= k->run_delay)
        return;
    /* Odd while it changes. Only we write these two, and the guest's own code does not run now. */
    u32 version = __atomic_load_n(&st->version, __ATOMIC_RELAXED) | 1;
    __atomic_store_n(&st->version, version, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    __atomic_store_n(&st->steal, st->steal + (delay - k->run_delay), __ATOMIC_RELAXED);
    __atomic_store_n(&st->version, version + 1, __ATOMIC_RELEASE);
    k->run_delay = delay;
    written(pv, k);
}

/* False: somebody has it. */
static bool steal_lock(struct kvm_vcpu *k)
{
    return !__atomic_exchange_n(&k->lock, 1, __ATOMIC_ACQUIRE);
}
static void steal_unlock(struct kvm_vcpu *k)
{
    __atomic_store_n(&k->lock, 0, __ATOMIC_RELEASE);
}

int kvm_steal_write(struct paravirt *pv, unsigned cpu, u64 value)
{
    struct kvm_vcpu *k = &pv->cpu[cpu].kvm;

    if (value & STEAL_RESERVED)
        return -1;
    while (!steal_lock(k))
        ;
    k->steal_time = value;
    k->steal = value & STEAL_ENABLED ? ram_dma_ptr(pv->config.ram, value & PV_STEAL_ADDRESS, sizeof(*k->steal)) : NULL;
    steal_unlock(k);
    k->run_delay = run_delay(k); /* what was before does not count */
    if (k->steal)
        __atomic_store_n(&k->steal->preempted, 0, __ATOMIC_SEQ_CST);
    return 0;
}

void paravirt_vcpu_start(struct paravirt *pv, unsigned cpu)
{
    pv->cpu[cpu].kvm.schedstat_fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
}

void paravirt_vcpu_stop(struct paravirt *pv, unsigned cpu)
{
    if (pv->cpu[cpu].kvm.schedstat_fd >= 0)
        close(pv->cpu[cpu].kvm.schedstat_fd);
    pv->cpu[cpu].kvm.schedstat_fd = -1;
}

void kvm_tick(struct paravirt *pv, unsigned cpu)
{
    update(pv, &pv->cpu[cpu].kvm);
}

void kvm_away(struct paravirt *pv, unsigned cpu, bool yields)
{
    struct kvm_vcpu *k = &pv->cpu[cpu].kvm;

    if (!k->steal)
        return;
    __atomic_store_n(&k->yields, yields, __ATOMIC_RELAXED);
    __atomic_fetch_or(&k->steal->preempted, VCPU_PREEMPTED, __ATOMIC_SEQ_CST);
    written(pv, k);
}

/*
 * A waiting vCPU gives the CPU to one that has an interrupt to take, if they share it (smp.c). Linux would ask for that by a call
 * after sending it, if it still saw "preempted". A flush that was left stays. kvm_back() tells that the byte was written.
 */
void paravirt_vcpu_interrupted(struct paravirt *pv, unsigned cpu)
{
    struct kvm_vcpu *k = &pv->cpu[cpu].kvm;

    if (!__atomic_load_n(&k->yields, __ATOMIC_RELAXED) || !steal_lock(k))
        return;
    struct kvm_steal_time *st = k->steal;
    if (st && __atomic_load_n(&k->yields, __ATOMIC_RELAXED))
        __atomic_fetch_and(&st->preempted, (u8)~VCPU_PREEMPTED, __ATOMIC_SEQ_CST);
    steal_unlock(k);
}

/*
 * Another vCPU that saw "preempted" may have left a flush instead of sending an interrupt, by compare-and-exchange: so
 * it is either in what we take here, or the other saw that we run and sent the interrupt. This vCPU has not used its
 * TLB since it said that it is away.
 */
bool kvm_back(struct paravirt *pv, unsigned cpu)
{
    struct kvm_vcpu *k = &pv->cpu[cpu].kvm;

    if (!k->steal)
        return false;
    __atomic_store_n(&k->yields, false, __ATOMIC_RELAXED);
    bool flush = __atomic_exchange_n(&k->steal->preempted, 0, __ATOMIC_SEQ_CST) & VCPU_FLUSH_TLB;
    written(pv, k);
    update(pv, k);
    return flush;
}

void paravirt_vcpu_halt(struct paravirt *pv, unsigned cpu)
{
    if (pv->native)
        native_halt(pv->native, cpu);
}

void paravirt_vcpu_sleep(struct paravirt *pv, unsigned cpu)
{
    __atomic_store_n(&pv->cpu[cpu].asleep, true, __ATOMIC_SEQ_CST);
    kvm_away(pv, cpu, false);
}

void paravirt_vcpu_wake(struct paravirt *pv, unsigned cpu)
{
    __atomic_store_n(&pv->cpu[cpu].asleep, false, __ATOMIC_SEQ_CST);
    if (kvm_back(pv, cpu))
        vitro_vcpu_kick(pv->cpu[cpu].vcpu, VITRO_KICK_FLUSH);
}
