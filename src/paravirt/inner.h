/*
 * inner.h - struct paravirt, shared by this folder's files only.
 */
#pragma once
#include "paravirt/paravirt.h"
#include "mem/ram.h"
#include <stdatomic.h>
#include <time.h>

/* The two contracts share RAX as the number of a hypercall. KVM's are small; Vitro's have this in bits 31:16. */
#define PV_NATIVE_CALLS 0x56540000u
/* First MSR of each contract; a range of 256. */
#define PV_KVM_MSRS 0x4b564d00u
#define PV_NATIVE_MSRS 0x56495400u
/* First CPUID leaf of the second contract offered; the first is at VITRO_CPUID_PV. */
#define PV_LEAF_STEP 0x100u

struct kvm_vcpu {
    u64 system_time, wall_clock, steal_time, poll_control, migration; /* MSRs as written */
    struct kvm_steal_time *steal; /* in guest memory; NULL: off, or not RAM */
    u64 run_delay, steal_due;     /* ns as last read; host TSC from when it may be read again */
    int schedstat_fd;             /* -1: none */
    u32 lock;                     /* of `steal`, where another thread writes there; held for some instructions only */
    bool yields;                  /* under it: "preempted" because the guest waits in a loop */
};

struct pv_vcpu {
    struct vitro_vcpu *vcpu;
    bool asleep; /* its thread is, or is about to be: a kick has to wake it */
    struct kvm_vcpu kvm;
};

struct native;

struct paravirt {
    struct paravirt_config config;
    struct native *native; /* contract 2, if it is offered */
    struct xen *xen;       /* contract 3, which excludes the others */
    struct vitro_pv ops;
    struct vitro_cpuid_leaf leaf[VITRO_CPUID_PV_MAX];
    u64 tsc_base;  /* host TSC at creation: system time 0 of both contracts */
    u32 tsc_mul;   /* ns = (ticks shifted by tsc_shift) * tsc_mul >> 32 */
    s8 tsc_shift;
    unsigned nr_cpus;
    struct pv_vcpu cpu[]; /* [nr_cpus] */
};

static inline bool pv_has(const struct paravirt *pv, enum pv_feature feature)
{
    return pv->config.features & PV_BIT(feature);
}

/* -- dispatch.c ------------------------------------------------------------------------------------ */
/* pv_leaf - add a CPUID leaf while the contracts are made. Its registers, zeroed. */
u32 *pv_leaf(struct paravirt *pv, u32 leaf);
/* pv_signature - leaf `base`: a text of up to 12 bytes and the last leaf of that contract. */
void pv_signature(struct paravirt *pv, u32 base, u32 last, const char *text);

/* pv_read, pv_write - guest-physical RAM, as a device reaches it: translations of bytes that are written are dropped
 * before the guest sees another event. 0, or -EFAULT with nothing copied if any byte is not RAM (or is ROM). */
int pv_read(struct paravirt *pv, gpa_t gpa, void *buf, u64 len);
int pv_write(struct paravirt *pv, gpa_t gpa, const void *buf, u64 len);

/* -- clock.c ------------------------------------------------------------------------------------------ */
void pv_clock_init(struct paravirt *pv);
/* pv_wall_now - the host's real-time clock, and its TSC at that moment. */
struct timespec pv_wall_now(u64 *tsc);
/* pv_clock_ns - system time of a host TSC value: ns since creation, the same for every vCPU. */
u64 pv_clock_ns(const struct paravirt *pv, u64 host_tsc);
static inline u64 pv_host_tsc(void)
{
    return __builtin_ia32_rdtsc();
}

/* -- kvm.c: contract 1 ---------------------------------------------------------------------------------- */
#define PV_STEAL_ADDRESS (~0x3full)
bool kvm_offered(const struct paravirt *pv);
/* kvm_reset - nothing is switched on for this vCPU. */
void kvm_reset(struct paravirt *pv, unsigned cpu);
void kvm_leaves(struct paravirt *pv, u32 base);
/* kvm_eoi_write - the MSR; 0, or -1: #GP(0). */
int kvm_eoi_write(struct paravirt *pv, unsigned cpu, u64 value);
int kvm_msr_read(struct paravirt *pv, unsigned cpu, u32 msr, u64 *value);
int kvm_msr_write(struct paravirt *pv, unsigned cpu, u32 msr, u64 value);
/* kvm_clock.c */
int kvm_clock_write(struct paravirt *pv, unsigned cpu, u64 value);
int kvm_wall_write(struct paravirt *pv, unsigned cpu, u64 value);
void kvm_tsc_moved(struct paravirt *pv, unsigned cpu);
/* kvm_steal.c */
int kvm_steal_write(struct paravirt *pv, unsigned cpu, u64 value);
void kvm_tick(struct paravirt *pv, unsigned cpu);
/* kvm_away, kvm_back - around the times at which the vCPU does not run and we know it. The latter: is its TLB to be flushed? */
void kvm_away(struct paravirt *pv, unsigned cpu, bool yields);
bool kvm_back(struct paravirt *pv, unsigned cpu);
/* kvm_calls.c */
enum vitro_hc kvm_hypercall(struct paravirt *pv, const struct vitro_hypercall *call);

/* -- native.c: contract 2 --------------------------------------------------------------------------------- */
/* native_init - 0 or -errno; before native_leaves(). */
int native_init(struct paravirt *pv);
void native_leaves(struct paravirt *pv, u32 base);
/* Both are asked for numbers PV_NATIVE_CALLS + n only. The first: see hypercall_fast in libvitro.h. */
enum vitro_hc native_hypercall_fast(struct paravirt *pv, const struct vitro_hypercall *call, u32 nr);
enum vitro_hc native_hypercall(struct paravirt *pv, const struct vitro_hypercall *call, u32 nr);
/* native_reset - the same. */
void native_reset(struct paravirt *pv, unsigned cpu);
/* Asked for PV_NATIVE_MSRS + 0..0xff. 0, or -1: #GP(0). */
int native_msr_read(struct paravirt *pv, unsigned cpu, u32 msr, u64 *value);
int native_msr_write(struct paravirt *pv, unsigned cpu, u32 msr, u64 value);

/* -- dispatch_fast.c ------------------------------------------------------------------------------------- */
enum vitro_hc pv_hypercall_fast(void *opaque, const struct vitro_hypercall *call);
int pv_intr_ack(void *opaque, unsigned vcpu);
