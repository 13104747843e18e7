/*
 * clock.h - the machine's time in ns, and its timers. Time starts near 0 at clock_init().
 * Timers may be armed and cancelled from any thread, also under a device or irqchip lock (the
 * queue's lock is a leaf). Callbacks run with no lock held, on the machine's I/O thread (those that may,
 * also on the thread of a vCPU that waits awake); between the queue letting go of a timer and its
 * callback another thread may re-arm or cancel it, so a callback takes its device's lock and looks
 * at the device's own deadline before it acts.
 *
 * Cost: arming writes the kernel timer only when the new deadline is earlier than what the kernel
 * already has; cancelling and arming later never enter the kernel (the I/O thread wakes once, finds
 * nothing due, and re-arms).
 */
#pragma once
#include "base/types.h"
#include <pthread.h>

#define CLOCK_NEVER (~0ull)
#define NS_PER_SEC 1000000000ull

struct vm_timer {
    u64 deadline_ns;
    u32 heap_pos; /* 1-based; 0: not queued */
    bool anywhere; /* the callback may run on any thread: see clock_poll() */
    void (*fn)(void *opaque);
    void *opaque;
};

struct vm_clock {
    u64 (*source)(void *opaque); /* NULL: CLOCK_MONOTONIC */
    void *source_opaque;
    u64 base_ns;                 /* source's value at machine time 0 */
    bool stopped;                /* time stands at stopped_ns */
    u64 stopped_ns;
    int timer_fd;                /* -1 with a source of the embedder's */
    pthread_mutex_t lock;        /* what follows */
    u64 armed_ns;                /* deadline in timer_fd; 0 while timers run; NEVER: disarmed */
    u64 first_ns;                /* heap[1]'s deadline, or NEVER; read without the lock */
    struct vm_timer **heap;      /* heap[1..n], earliest first */
    u32 nr, cap, nr_timers;
};

/* clock_init - source NULL for the host's clock; a test gives its own. 0 or -errno. */
int clock_init(struct vm_clock *clock, u64 (*source)(void *opaque), void *opaque);
void clock_fini(struct vm_clock *clock);
u64 clock_now(const struct vm_clock *clock);
/* clock_stop, clock_start - time stands still in between, and no timer runs. While nobody else uses the clock. */
void clock_stop(struct vm_clock *clock);
void clock_start(struct vm_clock *clock);
/* clock_set - what time it is, while stopped. */
void clock_set(struct vm_clock *clock, u64 now_ns);
/* clock_run - run all due timers on this thread, then set the kernel timer for the next one. */
void clock_run(struct vm_clock *clock);
/* clock_poll - if the first timer is due, and may run anywhere, it runs here. Cheap if it is not due: a look at the time. */
void clock_poll(struct vm_clock *clock);
/* clock_next - earliest deadline, or CLOCK_NEVER. */
u64 clock_next(struct vm_clock *clock);

/* timer_init - once per timer, before the I/O thread starts; reserves its place. 0 or -ENOMEM. */
int timer_init(struct vm_clock *clock, struct vm_timer *timer, void (*fn)(void *), void *opaque);
void timer_arm(struct vm_clock *clock, struct vm_timer *timer, u64 deadline_ns);
void timer_cancel(struct vm_clock *clock, struct vm_timer *timer);

/* clock_scale - a * mul / div without overflow on the way. */
static inline u64 clock_scale(u64 a, u64 mul, u64 div)
{
    return (u64)((unsigned __int128)a * mul / div);
}
/* clock_scale_up - the same, rounded up: the first ns at which a counter shows `a`. */
static inline u64 clock_scale_up(u64 a, u64 mul, u64 div)
{
    unsigned __int128 q = ((unsigned __int128)a * mul + div - 1) / div;
    return q > CLOCK_NEVER - 1 ? CLOCK_NEVER - 1 : (u64)q;
}
