/*
 * smp.h - several vCPUs in one VM: what each may do to the others, and when. The argument is in docs/engine.md,
 * "Several vCPUs"; the decision in docs/decisions/0013-safepoints-instead-of-stopping.md.
 *
 * A vCPU is at a safepoint when it runs no translated code, and C on its behalf holds neither a host pointer that it
 * may write guest memory by nor an address in the code cache that it will go to. The dispatcher passes one each time
 * around. A vCPU that is outside vitro_vcpu_run(), or blocked on xl_lock, is offline: at a safepoint all the time.
 *
 * Locks: vm->xl_lock, then vm->lock. Only the holder of xl_lock waits for other vCPUs, and never with vm->lock held.
 */
#pragma once
#include "base/types.h"
#include "libvitro.h"

struct block;
struct ram_slot;
struct tlb_entry;
struct vcpu;
struct vm;

#define WTAG_WAYS 4
struct smp_vcpu {
    u32 online;
    int cpu;            /* of the host's: where the vCPU's thread was when it last looked */
    bool yields;        /* ... and it gives it away just now, because the guest waits */
    bool gave;          /* the last time somebody took it */
    u8 long_yields;     /* not 0: one of the last took long */
    u32 c_writes;       /* C is writing guest memory right now, through a pointer got earlier */
    bool bus;           /* this vCPU has vm->bus */
    bool c_holds;       /* C may hold such a pointer until the helper ends */
    u32 store_len;      /* not 0: the running instruction may store here although the page holds translations, */
#define STORE_ANYWHERE ~0u
    gpa_t store_gpa;    /* set with vm->lock held */
    u64 reclaims;       /* the code cache's count of reclaimed segments this vCPU has followed */
    /* A question by the holder of xl_lock, answered at the next safepoint. */
    u32 asked;
    bool stand;         /* then wait until the translation is made */
    bool revoke_all;    /* search every table */
    unsigned nr_revoke;
    u64 revoke_host;    /* end write access to this host page */
    struct tlb_entry *revoke[WTAG_WAYS];
    u64 nr_asked, nr_waits, nr_yields; /* stats */
    /* What others want dropped, with EVENT_FLUSH_PAGES; under flush_lock, which is held for some instructions only. */
    u32 flush_lock;
    unsigned nr_flush;
    struct vitro_flush flush[VITRO_FLUSH_MAX];
    u8 *split;          /* two pages of address space where pages are joined for split locks */
    u8 *split_of[2];    /* which host pages are there */
};

/* smp_online, smp_offline - around everything that runs guest code. */
void smp_online(struct vcpu *v);
void smp_offline(struct vcpu *v);
/* smp_safepoint - answer what others ask. The caller is at a safepoint and goes on from v->rip. */
void smp_safepoint(struct vcpu *v);
/* smp_xl_lock - become the one who translates; may wait at a safepoint. vm->lock not held. */
void smp_xl_lock(struct vcpu *v);
/* smp_claim - the page's bytes are about to be read for translation: end all write access that would not be seen.
 * Holder of xl_lock, vm->lock held; it is given up and taken again when others must be waited for. */
void smp_claim(struct vcpu *v, gpa_t page);
/* smp_prepare - translate_block said X_RETRY: do what it needs. As smp_claim. */
void smp_prepare(struct vcpu *v);
/* smp_xl_unlock - the translation is made, or not. vm->lock held, and stays so. */
void smp_xl_unlock(struct vcpu *v);
/* smp_note_stores - what other vCPUs may be about to store over translated pages; before guest bytes are read for a
 * translation. vm->lock held, and not given up before smp_conflict: no such store can begin. */
void smp_note_stores(struct vcpu *v);
/* smp_conflict - a vCPU that, when smp_note_stores looked, was about to store over bytes the block was made from, or NULL.
 * That it has stored since is no excuse: the bytes may have been read before. */
struct vcpu *smp_conflict(struct vm *vm, const struct block *b);
/* smp_ask - put a question to an online vCPU; vm->lock held. */
void smp_ask(struct vcpu *b);
/* smp_flush_others - each other vCPU of the mask drops these ranges before it runs on (nr 0, or more than it has room for: its TLB, global
 * translations too); returns when none runs with what it had. True: it has waited, at a safepoint, and the caller
 * must leave its block. */
bool smp_flush_others(struct vcpu *v, u64 which, const struct vitro_flush *list, unsigned nr);
/* smp_flush_whole - do what EVENT_FLUSH and EVENT_FLUSH_SPACES ask for. */
void smp_flush_whole(struct vcpu *v, bool global_too);
/* smp_flush_listed - do what EVENT_FLUSH_PAGES asks for. */
void smp_flush_listed(struct vcpu *v);
/* smp_back - after smp_offline() in the middle of something: online again, with what was to be flushed meanwhile flushed. */
void smp_back(struct vcpu *v);
/* smp_revoke - page tables no longer allow writing the page: when this returns no vCPU writes it by what it knew. The caller
 * is at a safepoint, and must leave its block. */
void smp_revoke(struct vcpu *v, struct ram_slot *rs, gpa_t page);
/* smp_join - two host pages of guest memory, side by side: the same memory, so that what crosses is one access.
 * NULL: this memory cannot be mapped twice. */
u8 *smp_join(struct vcpu *v, u8 *first, u8 *second);
/* smp_shares_cpu - does another vCPU want the host's CPU that this one's thread, the caller, is on? By where they were seen last. */
bool smp_shares_cpu(struct vcpu *v);
/* smp_yield - give the host's CPU away, and let others know. The caller must leave its block if smc_hit is set then: the TLB was flushed. */
void smp_yield(struct vcpu *v);
/*
 * smp_bus_lock - a locked instruction is about to read, change and write what is no RAM, or no one piece of it: among these it is
 * alone until smp_bus_unlock. False: another is under way; run the instruction again from a safepoint (who has the lock may
 * wait there for us). smp_bus_unlock of who has no lock does nothing.
 */
bool smp_bus_lock(struct vcpu *v);
void smp_bus_unlock(struct vcpu *v);
void smp_vcpu_fini(struct vcpu *v);
