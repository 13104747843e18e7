/*
 * native_event.c - ports and upcalls, the time page, timers. Structures: include/vitro/shared.h.
 *
 * Order in an event: the pending bit first, then `upcall`, both sequentially consistent. The guest's handler clears
 * `upcall` first and reads pending after. So an event either is seen by the handler that runs, or starts another.
 */
#include "paravirt/native_inner.h"
#include <string.h>

/* -- Events ---------------------------------------------------------------------------------------------- */

static void upcall(struct native *n, struct vt_events *page, unsigned vcpu)
{
    if (!__atomic_load_n(&n->cpu[vcpu].vector, __ATOMIC_SEQ_CST))
        return;
    if (page && __atomic_exchange_n(&page->vcpu[vcpu].upcall, 1, __ATOMIC_SEQ_CST) == 1)
        return; /* its handler has not begun to look */
    __atomic_store_n(&n->cpu[vcpu].upcall, true, __ATOMIC_SEQ_CST);
    if (n->ops.kick)
        n->ops.kick(n->ops.opaque, vcpu);
}

void native_event(struct native *n, unsigned port)
{
    struct vt_events *page = __atomic_load_n(&n->events, __ATOMIC_ACQUIRE);

    if (port >= VT_PORTS || !page)
        return;
    u64 bit = BITULL(port & 63);
    __atomic_fetch_or(&page->pending[port >> 6], bit, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&page->mask[port >> 6], __ATOMIC_SEQ_CST) & bit)
        return;
    upcall(n, page, __atomic_load_n(&n->bind[port], __ATOMIC_RELAXED));
}

s64 native_EVENT_PAGE(struct native *n, unsigned vcpu, const u64 *a)
{
    struct vt_events *page = NULL;

    (void)vcpu;
    if (a[0] & ~PAGE_MASK)
        return -VT_EINVAL;
    if (a[0]) {
        page = ram_dma_ptr(n->c.ram, a[0], PAGE_SIZE);
        if (!page)
            return -VT_EFAULT;
        ram_written(n->c.ram, a[0], PAGE_SIZE);
    }
    __atomic_store_n(&n->events, page, __ATOMIC_RELEASE);
    return 0;
}

s64 native_EVENT_VECTOR(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)vcpu;
    if (a[0] >= n->c.nr_cpus)
        return -VT_ENOENT;
    if (a[1] > 255 || (a[1] && a[1] < 32))
        return -VT_EINVAL;
    __atomic_store_n(&n->cpu[a[0]].vector, (unsigned)a[1], __ATOMIC_SEQ_CST);
    return 0;
}

s64 native_EVENT_BIND(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)vcpu;
    if (a[0] >= VT_PORTS)
        return -VT_EINVAL;
    if (a[1] >= n->c.nr_cpus)
        return -VT_ENOENT;
    __atomic_store_n(&n->bind[a[0]], (u8)a[1], __ATOMIC_RELAXED);
    return 0;
}

s64 native_EVENT_SEND(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)vcpu;
    if (a[0] >= VT_PORTS)
        return -VT_EINVAL;
    if (!__atomic_load_n(&n->events, __ATOMIC_ACQUIRE))
        return -VT_ENOENT;
    native_event(n, (unsigned)a[0]);
    return 0;
}

s64 native_VCPU_KICK(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)vcpu;
    if (a[0] >= n->c.nr_cpus)
        return -VT_ENOENT;
    upcall(n, __atomic_load_n(&n->events, __ATOMIC_ACQUIRE), (unsigned)a[0]);
    return 0;
}

/* -- What time it is ------------------------------------------------------------------------------------- */

/* ns = (ticks shifted by `shift`) * mul >> 32, with mul in [2^31, 2^32): an error below 1 ns in 4 s. */
static void time_scale(u64 tsc_khz, u32 *mul, s32 *shift)
{
    u64 num = 1000000, den = tsc_khz;

    *shift = 0;
    while (num >= den) {
        den <<= 1;
        ++*shift;
    }
    while (num * 2 < den) {
        num <<= 1;
        --*shift;
    }
    *mul = (u32)((num << 32) / den);
}

s64 native_TIME_PAGE(struct native *n, unsigned vcpu, const u64 *a)
{
    struct vt_time t = { .flags = VT_TIME_STABLE, .tsc_khz = (u32)n->c.tsc_khz }, *page;

    if (!a[0]) {
        pthread_mutex_lock(&n->lock);
        n->time.mul = 0;
        pthread_mutex_unlock(&n->lock);
        return 0;
    }
    if (a[0] & 7 || (a[0] & ~PAGE_MASK) > PAGE_SIZE - sizeof(t))
        return -VT_EINVAL;
    page = ram_dma_ptr(n->c.ram, a[0], sizeof(t));
    if (!page)
        return -VT_EFAULT;
    time_scale(n->c.tsc_khz, &t.mul, &t.shift);
    t.tsc = n->ops.tsc ? n->ops.tsc(n->ops.opaque, vcpu) : 0;
    t.mono_ns = clock_now(n->c.clock);
    t.wall_ns = n->ops.wall_ns ? n->ops.wall_ns(n->ops.opaque) - t.mono_ns : 0;
    pthread_mutex_lock(&n->lock);
    n->time = t;
    pthread_mutex_unlock(&n->lock);
    /* Odd while it is being written. What the number was is the guest's affair. */
    u32 seq = __atomic_load_n(&page->seq, __ATOMIC_RELAXED) | 1;
    __atomic_store_n(&page->seq, seq, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    t.seq = seq;
    memcpy(page, &t, sizeof(t));
    __atomic_store_n(&page->seq, seq + 1, __ATOMIC_RELEASE);
    ram_written(n->c.ram, a[0], sizeof(t));
    return 0;
}

/* -- Timers ------------------------------------------------------------------------------------------------ */

/*
 * A one-shot timer by what the page says now (struct vt_timers). True: it is due, and was taken. With the lock held. A
 * guest that writes a deadline after ours was read finds armed_ns 0, or one that is not after its own, or calls.
 */
static bool look(struct native *n, struct native_timer *t, struct vt_timers *page, unsigned vcpu)
{
    u64 *deadline = &page->timer[t - n->timer].deadline_ns, *armed = &page->timer[t - n->timer].armed_ns;
    u64 tsc = n->ops.tsc ? n->ops.tsc(n->ops.opaque, vcpu) : 0;

    __atomic_store_n(armed, 0, __ATOMIC_SEQ_CST);
    u64 d = __atomic_load_n(deadline, __ATOMIC_SEQ_CST), at = d && d <= INT64_MAX ? native_deadline(n, d, tsc) : 0;
    t->deadline_ns = at;
    t->guest_ns = at ? d : 0;
    if (!at) {
        timer_cancel(n->c.clock, &t->timer);
    } else if (at > clock_now(n->c.clock)) {
        timer_arm(n->c.clock, &t->timer, at);
        __atomic_store_n(armed, d, __ATOMIC_SEQ_CST);
    } else {
        t->deadline_ns = t->guest_ns = 0;
        timer_cancel(n->c.clock, &t->timer);
        __atomic_compare_exchange_n(deadline, &d, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        return true; /* a new deadline in its place: its writer has found armed_ns 0 */
    }
    return false;
}

/* Any thread, no lock held; the timer may have been set anew meanwhile (clock.h). */
static void on_timer(void *opaque)
{
    struct native_timer *t = opaque;
    struct native *n = t->n;
    unsigned port = VT_PORTS;

    pthread_mutex_lock(&n->lock);
    u64 now = clock_now(n->c.clock);
    struct vt_timers *page = __atomic_load_n(&n->timers, __ATOMIC_ACQUIRE);
    if (page && !t->period_ns) {
        if (t->deadline_ns && t->deadline_ns <= now && look(n, t, page, 0))
            port = t->port;
    } else if (t->deadline_ns && t->deadline_ns <= now) {
        port = t->port;
        if (t->period_ns) { /* periods that were missed are one event */
            t->deadline_ns += ((now - t->deadline_ns) / t->period_ns + 1) * t->period_ns;
            timer_arm(n->c.clock, &t->timer, t->deadline_ns);
        } else {
            t->deadline_ns = 0;
        }
    }
    pthread_mutex_unlock(&n->lock);
    native_event(n, port);
}

s64 native_TIMER_SET(struct native *n, unsigned vcpu, const u64 *a)
{
    u64 tsc = n->ops.tsc ? n->ops.tsc(n->ops.opaque, vcpu) : 0;
    s64 r = 0;

    if (a[0] >= VT_TIMERS)
        return -VT_ENOENT;
    /* Periods are added to deadlines: neither may wrap. */
    if (a[3] >= VT_PORTS || a[1] > INT64_MAX || a[2] > INT64_MAX / 2 || (a[2] && a[2] < VT_TIMER_MIN_NS))
        return -VT_EINVAL;
    struct native_timer *t = &n->timer[a[0]];
    pthread_mutex_lock(&n->lock);
    if (!t->ready && timer_init(n->c.clock, &t->timer, on_timer, t))
        r = -VT_ENOMEM;
    if (!r) {
        t->ready = t->timer.anywhere = true;
        native_timer_arm(n, t, a[1], a[2], a[3], tsc);
    }
    pthread_mutex_unlock(&n->lock);
    return r;
}

s64 native_TIMER_PAGE(struct native *n, unsigned vcpu, const u64 *a)
{
    struct vt_timers *page = NULL;

    (void)vcpu;
    if (a[0] & 63 || (a[0] & ~PAGE_MASK) > PAGE_SIZE - sizeof(*page))
        return -VT_EINVAL;
    if (a[0]) {
        page = ram_dma_ptr(n->c.ram, a[0], sizeof(*page));
        if (!page)
            return -VT_EFAULT;
        ram_written(n->c.ram, a[0], sizeof(*page));
    }
    pthread_mutex_lock(&n->lock);
    for (unsigned i = 0; page && i < VT_TIMERS; i++) {
        struct native_timer *t = &n->timer[i];
        u64 deadline = t->deadline_ns && !t->period_ns ? t->guest_ns : 0;
        __atomic_store_n(&page->timer[i].deadline_ns, deadline, __ATOMIC_RELAXED);
        __atomic_store_n(&page->timer[i].armed_ns, deadline, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&n->timers, page, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&n->lock);
    return 0;
}

void native_halt(struct native *n, unsigned vcpu)
{
    struct vt_timers *page = __atomic_load_n(&n->timers, __ATOMIC_ACQUIRE);

    for (unsigned i = 0; page && i < VT_TIMERS; i++) {
        struct native_timer *t = &n->timer[i];
        u64 d = __atomic_load_n(&page->timer[i].deadline_ns, __ATOMIC_SEQ_CST);
        u64 armed = __atomic_load_n(&page->timer[i].armed_ns, __ATOMIC_SEQ_CST);
        if (!d || (armed && armed <= d))
            continue;
        pthread_mutex_lock(&n->lock);
        bool due = t->ready && !t->period_ns && look(n, t, page, vcpu);
        unsigned port = t->port;
        pthread_mutex_unlock(&n->lock);
        if (due)
            native_event(n, port);
    }
}
