/*
 * paravirt.h - what a guest that knows it is one may ask: KVM's guest ABI and Vitro's own, behind one table for the
 * engine (struct vitro_pv). docs/paravirt-abi.md describes both.
 *
 * Threads: the functions in paravirt_ops() and paravirt_vcpu_*() run on the thread of the vCPU they name; several may
 * run at once. create, attach and destroy: while no vCPU runs.
 */
#pragma once
#include "base/types.h"
#include "libvitro.h"

struct disk;
struct machine;
struct net_backend;
struct paravirt;
struct ram;

/* What can be switched off, one bit each. PV_VITRO is all of Vitro's own ABI. */
enum pv_feature {
    PV_CLOCK,     /* KVM's, up to PV_MAP_GPA: kvmclock, wall clock, clock pairing */
    PV_IO_DELAY,  /* ports need no delay */
    PV_STEAL,     /* steal time */
    PV_EOI,       /* end of interrupt without the APIC */
    PV_UNHALT,    /* kick a halted vCPU: spinlocks that sleep */
    PV_TLB,       /* flushes left to vCPUs that do not run */
    PV_IPI,       /* many IPIs in one call */
    PV_POLL,      /* the guest may forbid that we wait awake in its HLT */
    PV_YIELD,     /* give up the CPU for another vCPU */
    PV_MAP_GPA,   /* answers about encrypted memory and migration: there is none, and it may */
    PV_VITRO,
    PV_XEN,       /* Xen's PV interface instead of all others: the guest's kernel runs outside ring 0 (xen/xen.h) */
    NR_PV_FEATURES,
};
#define PV_BIT(feature) (1u << (feature))

struct paravirt_word {
    const char *name;
    u32 bits;         /* PV_BIT() */
};
/* paravirt_words - what --pv knows, ended by a NULL name. */
extern const struct paravirt_word paravirt_words[];
/*
 * paravirt_parse - a list such as "kvm,-eoi": each word adds, or with '-' takes away. A list that starts with a word to
 * take away starts from everything, another from nothing. -1, or the offset of a word that there is not, and its length.
 */
int paravirt_parse(const char *list, u32 *features, unsigned *bad_len);
u32 paravirt_default(void);

struct paravirt_net {
    struct net_backend *be;
    u8 mac[6];
};

struct paravirt_config {
    u32 features;            /* PV_BIT() */
    unsigned nr_cpus;
    u64 tsc_khz;             /* of the guest's TSC */
    struct ram *ram;         /* the guest's memory */
    struct machine *machine; /* for interrupts; NULL: none are sent */
    void *opaque;
    void (*kick)(void *opaque, unsigned vcpu, unsigned why); /* VITRO_KICK_*, and wake its thread; any thread */
    /* Of Vitro's own ABI; NULL: dropped. On vCPU threads. Bytes for the console; a line of the guest's for whoever runs it
     * (VT_LOG_*, printable); the end (VT_SHUTDOWN_*). */
    void (*console)(void *opaque, const u8 *bytes, size_t len);
    void (*trace)(void *opaque, unsigned vcpu, u64 mono_ns, u64 id, u64 a, u64 b);
    void (*log)(void *opaque, unsigned level, const char *text, size_t len);
    void (*shutdown)(void *opaque, unsigned reason, unsigned code);
    /* Processors, of Vitro's own ABI. start: let one that waits to be started run from there; false: it does not wait.
     * stop: the caller's vCPU waits again, before its next instruction. */
    bool (*start)(void *opaque, unsigned vcpu, const struct vitro_sregs *sregs, const struct vitro_regs *regs);
    void (*stop)(void *opaque, unsigned vcpu);
    /* Of a Xen PV guest, whose memory is one piece from guest-physical 0 on: where it is and how long. */
    u8 *host;
    u64 size;
    /* Disks that are reached by hypercalls; the list is copied. */
    struct disk *const *disk;
    unsigned nr_disks;
    /* Network cards, likewise; what is behind them stays the caller's. */
    const struct paravirt_net *nic;
    unsigned nr_nics;
};

/* paravirt_create - the config is copied. 0 or -errno. */
int paravirt_create(const struct paravirt_config *config, struct paravirt **out);
void paravirt_destroy(struct paravirt *pv);
/* paravirt_ops - for struct vitro_config; valid as long as pv. */
const struct vitro_pv *paravirt_ops(struct paravirt *pv);
/* paravirt_attach - tell it a vCPU that was made. */
void paravirt_attach(struct paravirt *pv, unsigned index, struct vitro_vcpu *vcpu);
/* paravirt_xen - the Xen PV guest (xen/xen.h), or NULL. */
struct xen;
struct xen *paravirt_xen(struct paravirt *pv);
/* paravirt_clock_skip - so many ticks of the host's TSC did not count: the guest stood still. While no vCPU runs. */
void paravirt_clock_skip(struct paravirt *pv, u64 ticks);

/* A vCPU's thread says: it begins and ends; the guest halted; it is about to sleep until that is over, and woke; it was reset or
 * took INIT, which switches off what the guest had switched on for this vCPU. */
void paravirt_vcpu_start(struct paravirt *pv, unsigned cpu);
void paravirt_vcpu_stop(struct paravirt *pv, unsigned cpu);
void paravirt_vcpu_halt(struct paravirt *pv, unsigned cpu);
void paravirt_vcpu_sleep(struct paravirt *pv, unsigned cpu);
void paravirt_vcpu_wake(struct paravirt *pv, unsigned cpu);
void paravirt_vcpu_reset(struct paravirt *pv, unsigned cpu);
/* paravirt_vcpu_interrupted - the vCPU was sent an interrupt. Any thread. */
void paravirt_vcpu_interrupted(struct paravirt *pv, unsigned cpu);
/* paravirt_console_room, _feed - input for the guest's console ring: how much fits (-1: it has none); takes it. Any thread. */
long paravirt_console_room(struct paravirt *pv);
void paravirt_console_feed(struct paravirt *pv, const u8 *bytes, size_t len);
/* paravirt_pause, _resume - while no vCPU runs: what works for the guest on threads of its own stands still in between. */
void paravirt_pause(struct paravirt *pv);
void paravirt_resume(struct paravirt *pv);
/* paravirt_may_poll - does the guest allow that its thread waits awake for a moment before it sleeps? */
bool paravirt_may_poll(const struct paravirt *pv, unsigned cpu);

/*
 * paravirt_save, paravirt_load - for snapshots, while nothing runs; the latter after the vCPUs were loaded. 0, or -EINVAL with a
 * sentence in err.
 */
struct state_set;
void paravirt_save(struct paravirt *pv, struct state_set *set);
int paravirt_load(struct paravirt *pv, struct state_set *set, char *err, size_t err_len);
