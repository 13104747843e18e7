/*
 * native.h - Vitro's own guest ABI (include/vitro, docs/paravirt-abi.md): the calls behind `vmcall`, and what Vitro does
 * in guest memory because of them. Knows no engine and no device: it sees them through struct native_ops, so that
 * tests and fuzzers drive it without a VM.
 *
 * Threads: native_call() runs on vCPU threads; timers and back ends call native_event() from any. One lock (n->lock)
 * guards spaces, the pool, timers and devices; events take none. Order: n->lock, then the clock's; never back.
 * The guest is hostile: each structure is copied once and the copy checked; every guest address goes through struct ram.
 */
#pragma once
#include "libvitro.h"
#include "base/types.h"
#include "machine/clock.h"
#include "mem/ram.h"
#include "vitro/abi.h"
#include "vitro/shared.h"

#define NATIVE_CPUS 64

struct disk;
struct native;

struct native_paging {
    u64 cr3;
    bool long_mode; /* 4-level paging is on */
    bool pcide, nxe;
};
#define NATIVE_ALL (~0ull)

/* What the guest's calls need of the world. NULL members: the call that needs one answers -VT_ENOCALL. */
struct native_ops {
    void *opaque;
    /* How the calling vCPU's paging stands. */
    void (*paging)(void *opaque, unsigned vcpu, struct native_paging *p);
    /* CR3 = cr3. Bit 63, only with CR4.PCIDE: keep what is known of its PCID. */
    void (*load_root)(void *opaque, unsigned vcpu, u64 cr3);
    /* The caller's vCPU forgets [va, va + pages * 4096) of a PCID (0 without CR4.PCIDE) and of global pages. NATIVE_ALL
     * pages: all of the PCID; global too if `global`. */
    void (*flush)(void *opaque, unsigned vcpu, unsigned pcid, u64 va, u64 pages, bool global);
    /* The other vCPUs forget these ranges, or (nr 0) everything. Not under a lock: waits for them. */
    void (*flush_others)(void *opaque, unsigned vcpu, const struct vitro_flush *list, unsigned nr);
    /* The caller's next access misses nothing; how many pages were there. */
    u64 (*populate)(void *opaque, unsigned vcpu, u64 va, u64 pages, bool write, bool user);
    /* A vCPU has an upcall waiting: native_upcall() has its vector. Any thread. */
    void (*kick)(void *opaque, unsigned vcpu);
    /* Start a stopped vCPU as a copy of the caller but for *start; 0 or -VT_E*. Stop the caller for good. */
    int (*start)(void *opaque, unsigned vcpu, unsigned which, const struct vt_start *start);
    int (*stop)(void *opaque, unsigned vcpu);
    u64 (*tsc)(void *opaque, unsigned vcpu);
    u64 (*wall_ns)(void *opaque);
    void (*console)(void *opaque, const u8 *bytes, size_t len);
    void (*console_resume)(void *opaque); /* there may be room for input again, or a ring, or none any more */
    void (*log)(void *opaque, unsigned level, const char *text, size_t len);
    void (*trace)(void *opaque, unsigned vcpu, u64 id, u64 a, u64 b);
    void (*shutdown)(void *opaque, enum vt_shutdown reason, unsigned code);
};

struct paravirt_net; /* paravirt.h */

struct native_config {
    struct ram *ram;
    struct vm_clock *clock; /* NULL: no timers */
    unsigned nr_cpus;
    u64 tsc_khz;
    struct disk *const *disk; /* [nr_disks]; the list is copied */
    unsigned nr_disks;
    const struct paravirt_net *nic; /* [nr_nics]; copied */
    unsigned nr_nics;
    struct native_ops ops;
};

/* native_create - 0 or -errno. The config is copied; ram and clock must outlive it. */
int native_create(const struct native_config *config, struct native **out);
/* native_destroy - no vCPU and no I/O thread runs any more; the clock may be gone. */
void native_destroy(struct native *n);
/* native_vcpu_reset - the vCPU was reset or took INIT: no upcalls. */
void native_vcpu_reset(struct native *n, unsigned vcpu);
/* native_pause - while no vCPU runs: nothing of ours touches guest memory until it is taken back; native_resume. */
void native_pause(struct native *n);
void native_resume(struct native *n);
/* native_save, native_load - for snapshots, paused; loading into a fresh one, with the guest's memory already there. 0, or
 * -EINVAL, -ENOMEM with a sentence in err; it may then only be destroyed. */
struct state_set;
void native_save(struct native *n, struct state_set *set);
int native_load(struct native *n, struct state_set *set, char *err, size_t err_len);
/* native_features - VT_FEATURE_*: what will be answered. */
u32 native_features(const struct native *n);

/*
 * native_call - one hypercall. @number without VT_BASE; @arg: RDI, RSI, RDX, RCX, R8.
 * The result for RAX: 0 or more, or -VT_E*. Never fails in another way.
 */
s64 native_call(struct native *n, unsigned vcpu, u64 number, const u64 arg[5]);
/* native_event - a port has something new: pending bit, upcall. Any thread, any lock. Ports out of range: nothing. */
void native_event(struct native *n, unsigned port);
/* native_halt - the vCPU is about to sleep in HLT: timers that were set in the timer page are armed. Its thread. */
void native_halt(struct native *n, unsigned vcpu);
/* native_upcall - the vector of an upcall that waits, taken; or -1. The vCPU's thread. */
int native_upcall(struct native *n, unsigned vcpu);
/* native_console_room - how much input the console's ring has room for; -1: there is no ring. Any thread. */
long native_console_room(struct native *n);
/* native_console_feed - input for the console's ring; how many bytes were taken. Any thread. */
size_t native_console_feed(struct native *n, const u8 *bytes, size_t len);
