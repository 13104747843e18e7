/*
 * mwait.h - MONITOR and MWAIT: a vCPU sleeps until somebody stores to a line of memory.
 *
 * A page in which a line is monitored has no write tags, as if it held translations (tlb.h): each store to it passes
 * mwait_store(). What a vCPU monitored last stays watched after MWAIT, since it is most likely monitored again; a page that is
 * stored to much more often than it is monitored is given up.
 *
 * No wake-up is lost, and nobody waits for anybody. A vCPU that may be storing to a line right now, be it that its store was
 * seen and comes after the check, or that it had write access when the page became watched, is a *suspect*: at its next
 * safepoint, when the store has happened if there was one, it takes the line's owner out of MWAIT. So MWAIT may end
 * without a store, which the architecture allows.
 */
#pragma once
#include "base/types.h"

struct vcpu;
struct vm;

#define MONITOR_LINE 64u
#define HALTED_MWAIT 2u   /* vcpu->halted: by MWAIT */

struct mwait_vcpu {
    gpa_t page;           /* the page watched for this vCPU; MWAIT_NOWHERE */
#define MWAIT_NOWHERE 1ull
    gpa_t line;           /* what MONITOR named last */
    bool armed;           /* ... and nobody has stored there yet. Set by its vCPU, cleared by anyone */
    bool any_interrupt;   /* MWAIT with ECX bit 0: interrupts end it though IF is clear */
    unsigned stores;      /* to the page, since MONITOR */
    u64 suspects;         /* a bit for each vCPU; with vm->lock held */
    bool suspected;       /* this vCPU is somebody's suspect */
};

/* mwait_over - is there a reason not to sleep in MWAIT (any longer)? Any thread. */
bool mwait_over(const struct vcpu *v);
/* mwait_store - v is about to store to a page that takes the slow path. vm->lock held. */
void mwait_store(struct vcpu *v, gpa_t gpa, unsigned len);
/* mwait_written - a device has written guest memory. Any thread. */
void mwait_written(struct vm *vm, gpa_t gpa, unsigned len);
/* mwait_safepoint - v's stores have happened: wake whom they may concern. mwait_safepoint_locked: vm->lock held. */
void mwait_safepoint(struct vcpu *v);
void mwait_safepoint_locked(struct vcpu *v);
/* mwait_reset - nothing is monitored. */
void mwait_reset(struct vcpu *v);
