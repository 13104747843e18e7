/*
 * clock.c - CLOCK_MONOTONIC, a binary heap of timers, and one timerfd behind it
 * (timerfd_create(2)).
 * Threads: see clock.h. Lock order: clock->lock is last.
 */
#include "machine/clock.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static u64 host_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (u64)ts.tv_sec * NS_PER_SEC + (u64)ts.tv_nsec;
}

int clock_init(struct vm_clock *clock, u64 (*source)(void *opaque), void *opaque)
{
    *clock = (struct vm_clock){
        .source = source, .source_opaque = opaque, .timer_fd = -1, .armed_ns = CLOCK_NEVER, .first_ns = CLOCK_NEVER
    };
    if (!source) {
        clock->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (clock->timer_fd < 0)
            return -errno;
        clock->base_ns = host_now();
    }
    pthread_mutex_init(&clock->lock, NULL);
    return 0;
}

void clock_fini(struct vm_clock *clock)
{
    if (clock->timer_fd >= 0)
        close(clock->timer_fd);
    free(clock->heap);
    pthread_mutex_destroy(&clock->lock);
}

static u64 source_now(const struct vm_clock *clock)
{
    return clock->source ? clock->source(clock->source_opaque) : host_now();
}

u64 clock_now(const struct vm_clock *clock)
{
    return clock->stopped ? clock->stopped_ns : source_now(clock) - clock->base_ns;
}

/* -- The heap, under clock->lock ------------------------------------------ */

static void heap_put(struct vm_clock *clock, u32 pos, struct vm_timer *timer)
{
    clock->heap[pos] = timer;
    timer->heap_pos = pos;
}

static void sift(struct vm_clock *clock, u32 pos, struct vm_timer *timer)
{
    struct vm_timer **heap = clock->heap;
    while (pos > 1 && heap[pos / 2]->deadline_ns > timer->deadline_ns) {
        heap_put(clock, pos, heap[pos / 2]);
        pos /= 2;
    }
    for (;;) {
        u32 child = pos * 2;
        if (child > clock->nr)
            break;
        if (child < clock->nr && heap[child + 1]->deadline_ns < heap[child]->deadline_ns)
            child++;
        if (heap[child]->deadline_ns >= timer->deadline_ns)
            break;
        heap_put(clock, pos, heap[child]);
        pos = child;
    }
    heap_put(clock, pos, timer);
}

static void heap_remove(struct vm_clock *clock, struct vm_timer *timer)
{
    u32 pos = timer->heap_pos;
    if (!pos)
        return;
    timer->heap_pos = 0;
    struct vm_timer *last = clock->heap[clock->nr--];
    if (last != timer)
        sift(clock, pos, last);
}

static u64 heap_first(const struct vm_clock *clock)
{
    return clock->nr ? clock->heap[1]->deadline_ns : CLOCK_NEVER;
}

/* The heap has changed: what clock_poll() looks at, and the end of the lock. */
static void heap_unlock(struct vm_clock *clock)
{
    __atomic_store_n(&clock->first_ns, heap_first(clock), __ATOMIC_RELAXED);
    pthread_mutex_unlock(&clock->lock);
}

static void set_kernel_timer(struct vm_clock *clock, u64 deadline_ns)
{
    clock->armed_ns = deadline_ns;
    if (clock->timer_fd < 0 || deadline_ns == CLOCK_NEVER || clock->stopped)
        return;
    /* base_ns is negative in a machine that is older than the host: restored from a snapshot. */
    __int128 at = (__int128)deadline_ns + (s64)clock->base_ns;
    u64 host_ns = at < 1 ? 1 : at > INT64_MAX ? INT64_MAX : (u64)at; /* the latter: centuries away */
    struct itimerspec when = { .it_value = { .tv_sec = (time_t)(host_ns / NS_PER_SEC),
                                             .tv_nsec = (long)(host_ns % NS_PER_SEC) } };
    timerfd_settime(clock->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* -- Standing still --------------------------------------------------------- */

void clock_stop(struct vm_clock *clock)
{
    const struct itimerspec never = { 0 };
    if (clock->stopped)
        return;
    clock->stopped_ns = clock_now(clock);
    clock->stopped = true;
    if (clock->timer_fd >= 0)
        timerfd_settime(clock->timer_fd, 0, &never, NULL);
}

void clock_start(struct vm_clock *clock)
{
    if (!clock->stopped)
        return;
    clock->base_ns = source_now(clock) - clock->stopped_ns; /* modulo 2^64 */
    clock->stopped = false;
    set_kernel_timer(clock, heap_first(clock));
}

void clock_set(struct vm_clock *clock, u64 now_ns)
{
    bug_on(!clock->stopped);
    clock->stopped_ns = now_ns;
}

/* -- Timers --------------------------------------------------------------- */

int timer_init(struct vm_clock *clock, struct vm_timer *timer, void (*fn)(void *), void *opaque)
{
    *timer = (struct vm_timer){ .fn = fn, .opaque = opaque };
    pthread_mutex_lock(&clock->lock);
    int err = 0;
    if (clock->nr_timers + 1 >= clock->cap) { /* room for every timer, so arming never allocates */
        u32 cap = clock->cap ? clock->cap * 2 : 32;
        struct vm_timer **heap = realloc(clock->heap, cap * sizeof(*heap));
        if (heap) {
            clock->heap = heap;
            clock->cap = cap;
        } else {
            err = -ENOMEM;
        }
    }
    if (!err)
        clock->nr_timers++;
    pthread_mutex_unlock(&clock->lock);
    return err;
}

void timer_arm(struct vm_clock *clock, struct vm_timer *timer, u64 deadline_ns)
{
    pthread_mutex_lock(&clock->lock);
    timer->deadline_ns = deadline_ns;
    sift(clock, timer->heap_pos ? timer->heap_pos : ++clock->nr, timer);
    if (deadline_ns < clock->armed_ns)
        set_kernel_timer(clock, deadline_ns);
    heap_unlock(clock);
}

void timer_cancel(struct vm_clock *clock, struct vm_timer *timer)
{
    pthread_mutex_lock(&clock->lock);
    heap_remove(clock, timer);
    heap_unlock(clock);
}

void clock_run(struct vm_clock *clock)
{
    pthread_mutex_lock(&clock->lock);
    clock->armed_ns = 0; /* whoever arms a timer meanwhile leaves the kernel timer to us */
    while (clock->nr) {
        struct vm_timer *timer = clock->heap[1];
        if (timer->deadline_ns > clock_now(clock))
            break;
        heap_remove(clock, timer);
        heap_unlock(clock);
        timer->fn(timer->opaque);
        pthread_mutex_lock(&clock->lock);
    }
    set_kernel_timer(clock, heap_first(clock));
    pthread_mutex_unlock(&clock->lock);
}

void clock_poll(struct vm_clock *clock)
{
    u64 now = clock_now(clock);
    struct vm_timer *due = NULL;

    if (__atomic_load_n(&clock->first_ns, __ATOMIC_RELAXED) > now)
        return;
    pthread_mutex_lock(&clock->lock);
    if (heap_first(clock) <= now && clock->heap[1]->anywhere) {
        due = clock->heap[1];
        heap_remove(clock, due); /* the I/O thread will wake for it in vain */
    }
    heap_unlock(clock);
    if (due)
        due->fn(due->opaque);
}

u64 clock_next(struct vm_clock *clock)
{
    pthread_mutex_lock(&clock->lock);
    u64 next = heap_first(clock);
    pthread_mutex_unlock(&clock->lock);
    return next;
}
