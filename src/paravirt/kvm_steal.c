/*
 * kvm_steal.c - contract 1: steal time, and what hangs on its structure: whether a vCPU runs, and TLB flushes left to
 * one that does not. Source: Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_STEAL_TIME.
 *
 * "Steal" is how long the vCPU's thread was ready to run and the host ran something else, from /proc (sched_info's
 * run delay, which is also what KVM reports). Where the host's /proc does not have it, it stays 0.
 * "Preempted" is true while the thread sleeps in the guest's HLT. When the host takes the CPU from a running thread we
 * cannot know.
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

int kvm_steal_write(struct paravirt *pv, unsigned cpu, u64 value)
{
    struct kvm_vcpu *k = &pv->cpu[cpu].kvm;

    if (value & STEAL_RESERVED)
        return -1;
    k->steal_time = value;
    k->steal = value & STEAL_ENABLED ? ram_dma_ptr(pv->config.ram, value & PV_STEAL_ADDRESS, sizeof(*k->steal)) : NULL;
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

void paravirt_vcpu_sleep(struct paravirt *pv, unsigned cpu)
{
    struct kvm_vcpu *k = &pv->cpu[cpu].kvm;

    if (pv->native)
        native_halt(pv->native, cpu);
    if (!k->steal)
        return;
    __atomic_fetch_or(&k->steal->preempted, VCPU_PREEMPTED, __ATOMIC_SEQ_CST);
    written(pv, k);
}

/*
 * Another vCPU that saw "preempted" may have left a flush instead of sending an interrupt, by compare-and-exchange: so
 * it is either in what we take here, or the other saw that we run and sent the interrupt. This vCPU has not used its
 * TLB since it said that it sleeps.
 */
void paravirt_vcpu_wake(struct paravirt *pv, unsigned cpu)
{
    struct kvm_vcpu *k = &pv->cpu[cpu].kvm;

    if (!k->steal)
        return;
    if (__atomic_exchange_n(&k->steal->preempted, 0, __ATOMIC_SEQ_CST) & VCPU_FLUSH_TLB)
        vitro_vcpu_kick(pv->cpu[cpu].vcpu, VITRO_KICK_FLUSH);
    written(pv, k);
    update(pv, k);
}
