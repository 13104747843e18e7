/* native_inner.h - shared by the native_*.c files only. */
#pragma once
#include "paravirt/native.h"
#include <pthread.h>
#include <stdatomic.h>

/* native->use[page]: what a page of RAM is used for, if Vitro knows. */
#define USE_GUEST 0u
#define USE_BALLOON 0xffffu
#define USE_POOL 0xfffeu  /* given for tables, not a table now */
#define USE_OTHER 0xfffdu /* a table Vitro put into page tables that are not a space of ours */
/* anything else: a table of that space */
_Static_assert(VT_SPACES_MAX < USE_OTHER, "space numbers are uses");

struct native_space {
    gpa_t root;
    bool used;
};

struct native_timer {
    struct native *n;
    struct vm_timer timer;
    u64 deadline_ns, period_ns; /* deadline 0: off */
    u64 guest_ns;               /* the deadline as the guest said it */
    unsigned port;
    bool ready; /* timer_init() was done */
};

struct native_cpu {
    unsigned vector;  /* atomic; 0: no upcalls   */
    bool upcall;      /* atomic                  */
};

struct native {
    struct native_config c;
    struct native_ops ops;
    pthread_mutex_t lock;

    /* memory */
    u16 *use;     /* one a page up to the end of RAM; mapped, filled as used */
    u64 nr_use;
    u32 *pool;    /* page numbers of USE_POOL pages, a stack of nr_pool */
    u64 nr_pool, cap_pool;
    struct native_space space[VT_SPACES_MAX + 1];
    u64 nr_balloon; /* atomic */

    /* time */
    struct vt_time time; /* what the time page says, ours; mul 0: there is none */
    struct native_timer timer[VT_TIMERS];
    struct vt_timers *timers; /* atomic; in guest RAM, or NULL */

    /* events: no lock */
    struct vt_events *events; /* atomic; in guest RAM */
    u8 bind[VT_PORTS];        /* atomic each: port -> vCPU */
    struct native_cpu cpu[NATIVE_CPUS];

    struct native_disk *disk; /* [c.nr_disks] */
    struct native_nic *nic;   /* [c.nr_nics] */

    /* console */
    struct vt_console *console; /* in guest RAM */
    u32 console_out_tail, console_in_head; /* ours; the ring's are for the guest to read */
    unsigned console_port;
};

/*
 * native_deadline - on the machine's clock, of a deadline on the guest's, which is the TSC by the time page. The two have
 * rates that differ by what the TSC was measured wrong, some 5 ppm: never early means a little late.
 */
static inline u64 native_deadline(const struct native *n, u64 deadline_ns, u64 tsc)
{
    const struct vt_time *t = &n->time;
    u64 d = tsc - t->tsc;

    if (!t->mul || !deadline_ns)
        return deadline_ns;
    d = t->shift < 0 ? d >> -t->shift : d << t->shift;
    u64 guest_ns = t->mono_ns + (u64)((unsigned __int128)d * t->mul >> 32);
    u64 rest = deadline_ns > guest_ns ? deadline_ns - guest_ns : 0;
    return clock_now(n->c.clock) + rest + (rest >> 17);
}

/* native_timer_arm - as TIMER_SET has it; the lock is held and the timer ready. Compiled both ways (dispatch_fast.c). */
static inline void native_timer_arm(struct native *n, struct native_timer *t, u64 deadline, u64 period, u64 port, u64 tsc)
{
    struct vt_timers *page = __atomic_load_n(&n->timers, __ATOMIC_ACQUIRE);

    t->deadline_ns = native_deadline(n, deadline, tsc);
    t->guest_ns = deadline;
    t->period_ns = period;
    t->port = (unsigned)port;
    if (t->deadline_ns)
        timer_arm(n->c.clock, &t->timer, t->deadline_ns);
    else
        timer_cancel(n->c.clock, &t->timer);
    if (page) {
        __atomic_store_n(&page->timer[t - n->timer].deadline_ns, period ? 0 : deadline, __ATOMIC_SEQ_CST);
        __atomic_store_n(&page->timer[t - n->timer].armed_ns, period ? 0 : deadline, __ATOMIC_SEQ_CST);
    }
}

/* The rows of hypercalls.def: native_X() does VT_X. */
#define VT_CALL(number, name, nr_args, since, args, result, errors, cost) \
    s64 native_##name(struct native *n, unsigned vcpu, const u64 *a);
#include "vitro/hypercalls.def"
#undef VT_CALL

/* native_copy_in, native_copy_out - `count` items of `size` at pa, checked as a whole: 0 or -VT_EFAULT, -VT_EINVAL (not
 * 8-byte aligned). Out: translations of those bytes are dropped. */
s64 native_copy_in(struct native *n, u64 pa, void *buf, u64 len);
s64 native_copy_out(struct native *n, u64 pa, const void *buf, u64 len);

/*
 * native_batch - `count` items of `size` bytes at pa, `result_at` the offset of their s32 result (4-byte aligned): calls
 * one() for each, with `lock` held if there is one, until one fails; writes results. As the calls return: how many were done, or an
 * error of the whole. An item is copied before it is looked at.
 */
typedef s64 native_one(struct native *n, unsigned vcpu, void *item, void *opaque);
s64 native_batch(struct native *n, unsigned vcpu, u64 pa, u64 count, unsigned size, unsigned result_at, native_one *one,
                 void *opaque, pthread_mutex_t *lock);

int native_block_init(struct native *n);
void native_block_fini(struct native *n);
int native_net_init(struct native *n);
void native_net_fini(struct native *n);
struct state_set;
/* native_ring_size - may a ring of block or network requests have so many entries? A power of two from 2 on. */
static inline bool native_ring_size(u32 size, u32 max) { return size >= 2 && size <= max && !(size & (size - 1)); }
/* native_pa - of a host address in guest RAM; 0 for NULL. */
u64 native_pa(const struct native *n, const void *ptr);
void native_block_save(struct native *n, struct state_set *set);
int native_block_load(struct native *n, struct state_set *set, char *err, size_t err_len);
void native_net_save(struct native *n, struct state_set *set);
int native_net_load(struct native *n, struct state_set *set, char *err, size_t err_len);
void native_block_pause(struct native *n, bool on);
void native_net_pause(struct native *n, bool on);
