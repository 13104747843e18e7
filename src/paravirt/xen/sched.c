/*
 * sched.c - time and sleeping.
 * Source: Xen's public sched.h, vcpu.h, xen.h (vcpu_time_info).
 *
 * The host's TSC counts at one rate on every core (docs/decisions/0009), so a vCPU's time information is written once.
 * Not done: periodic timers; time stolen by the host is not told.
 */
#include "paravirt/xen/inner.h"
#include "machine/machine.h"
#include <errno.h>
#include <string.h>
#include <time.h>

/* -- Time ------------------------------------------------------------------------------------------------ */

void time_init(struct xen *x)
{
    u64 num = 1000000, den = x->c.tsc_khz;

    x->tsc_shift = 0;
    while (num >= den) {
        den <<= 1;
        x->tsc_shift++;
    }
    while (num * 2 < den) {
        num <<= 1;
        x->tsc_shift--;
    }
    x->tsc_mul = (u32)((num << 32) / den);
    x->tsc_base = __builtin_ia32_rdtsc();
}

u64 xen_now(const struct xen *x)
{
    u64 d = __builtin_ia32_rdtsc() - x->tsc_base;

    d = x->tsc_shift < 0 ? d >> -x->tsc_shift : d << x->tsc_shift;
    return (u64)((unsigned __int128)d * x->tsc_mul >> 32);
}

void xen_clock_skip(struct xen *x, u64 ticks)
{
    x->tsc_base += ticks; /* the guest's copies are in terms of its own TSC, which did not count them either */
    time_wall(x);         /* the host's clock went on */
}

struct xen_time_info time_info(const struct xen_cpu *c)
{
    const struct xen *x = c->xen;
    u64 offset = c->vcpu ? vitro_vcpu_tsc_offset(c->vcpu) : 0;

    return (struct xen_time_info){ .version = 2, .tsc_timestamp = x->tsc_base + offset, .tsc_to_system_mul = x->tsc_mul,
                                   .tsc_shift = x->tsc_shift, .flags = 1 /* the same on every vCPU */ };
}

void time_publish(struct xen_cpu *c)
{
    c->info->time = time_info(c);
}

void time_wall(struct xen *x)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    u64 ns = (u64)now.tv_sec * NS_PER_SEC + (u64)now.tv_nsec - xen_now(x);
    x->shared->wc_sec = (u32)(ns / NS_PER_SEC);
    x->shared->wc_sec_hi = (u32)(ns / NS_PER_SEC >> 32);
    x->shared->wc_nsec = (u32)(ns % NS_PER_SEC);
    x->shared->wc_version += 2; /* who was reading it reads again */
}

/* -- Timers: callbacks on the machine's I/O thread ---------------------------------------------------------- */

static void arm(struct xen_cpu *c, struct vm_timer *t, u64 deadline)
{
    struct vm_clock *clock = machine_clock(c->xen->c.machine);
    u64 now = xen_now(c->xen);
    u64 in = deadline > now ? deadline - now : 0;

    timer_arm(clock, t, clock_now(clock) + MIN(in, 1000ull * 86400 * NS_PER_SEC));
}

static void on_timer(void *opaque)
{
    struct xen_cpu *c = opaque;
    u64 deadline = __atomic_load_n(&c->deadline, __ATOMIC_SEQ_CST);

    if (deadline == CLOCK_NEVER)
        return;
    if (xen_now(c->xen) < deadline) { /* set anew, or the two clocks differ a little */
        arm(c, &c->timer, deadline);
        return;
    }
    if (__atomic_compare_exchange_n(&c->deadline, &deadline, CLOCK_NEVER, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        virq_raise(c, XEN_VIRQ_TIMER);
}

static void on_poll_timer(void *opaque)
{
    struct xen_cpu *c = opaque;

    c->xen->c.kick(c->xen->c.opaque, c->index, VITRO_KICK_INTR | VITRO_KICK_WAKE); /* INTR: one that is down stays so */
}

int sched_init(struct xen_cpu *c)
{
    struct vm_clock *clock = machine_clock(c->xen->c.machine);

    c->deadline = CLOCK_NEVER;
    int r = timer_init(clock, &c->timer, on_timer, c);
    c->timer.anywhere = true;
    return r ? r : timer_init(clock, &c->poll_timer, on_poll_timer, c);
}

void set_deadline(struct xen_cpu *c, u64 deadline)
{
    __atomic_store_n(&c->deadline, deadline, __ATOMIC_SEQ_CST);
    if (deadline == CLOCK_NEVER)
        timer_cancel(machine_clock(c->xen->c.machine), &c->timer);
    else
        arm(c, &c->timer, deadline);
}

s64 xen_set_timer_op(struct xen *x, struct xen_call *call)
{
    (void)x;
    set_deadline(call->cpu, call->a[0] ? call->a[0] : CLOCK_NEVER);
    return 0;
}

/* -- Sleeping --------------------------------------------------------------------------------------------------- */

static s64 poll(struct xen *x, struct xen_call *call)
{
    struct xen_cpu *c = call->cpu;
    struct xen_sched_poll p;
    u32 port[128];

    if (vitro_vcpu_copy_in(c->vcpu, call->a[1], &p, sizeof(p)))
        return -XEN_EFAULT;
    if (p.nr_ports > ARRAY_SIZE(port))
        return -XEN_EINVAL;
    if (vitro_vcpu_copy_in(c->vcpu, p.ports, port, p.nr_ports * sizeof(port[0])))
        return -XEN_EFAULT;
    __atomic_store_n(&c->polling, true, __ATOMIC_SEQ_CST); /* before the look: port_raise() does it the other way round */
    for (unsigned i = 0; i < p.nr_ports; i++) {
        if (port[i] >= XEN_EVTCHNS) {
            c->polling = false;
            return -XEN_EINVAL;
        }
        if (__atomic_load_n(&x->shared->evtchn_pending[port[i] >> 6], __ATOMIC_SEQ_CST) >> (port[i] & 63) & 1) {
            c->polling = false;
            return 0;
        }
    }
    if (p.timeout)
        arm(c, &c->poll_timer, p.timeout);
    call->halt = true;
    return 0;
}

/* -- Suspending ------------------------------------------------------------------------------------------------ */

/*
 * The domain stands still until somebody wakes it, and then goes on where it is: the caller's 1 says that nothing was taken from
 * it meanwhile (what a kernel calls a cancelled suspend). Nobody asked: then nobody would wake it.
 */
static s64 suspend(struct xen *x, struct xen_call *call)
{
    if (x->suspend_asked) {
        x->suspend_asked = false;
        call->park = true;
        __atomic_store_n(&x->suspended, true, __ATOMIC_SEQ_CST);
        for (unsigned i = 0; i < x->c.nr_cpus; i++)
            if (&x->cpu[i] != call->cpu && x->cpu[i].up)
                x->c.kick(x->c.opaque, i, VITRO_KICK_INTR);
    }
    return 1;
}

bool xen_suspended(struct xen *x)
{
    return __atomic_load_n(&x->suspended, __ATOMIC_SEQ_CST);
}

void xen_wake(struct xen *x)
{
    pthread_mutex_lock(&x->lock);
    bool was = __atomic_exchange_n(&x->suspended, false, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; was && i < x->c.nr_cpus; i++)
        if (x->cpu[i].up)
            x->c.kick(x->c.opaque, i, VITRO_KICK_INTR | VITRO_KICK_WAKE);
    pthread_mutex_unlock(&x->lock);
}

/* -- What it is asked --------------------------------------------------------------------------------------------- */

s64 xen_sched_op(struct xen *x, struct xen_call *call)
{
    u32 reason;

    switch ((u32)call->a[0]) {
    case XEN_SCHEDOP_yield:
        return 0;
    case XEN_SCHEDOP_block:
        __atomic_store_n(&call->cpu->info->upcall_mask, 0, __ATOMIC_SEQ_CST);
        call->halt = true;
        return 0;
    case XEN_SCHEDOP_poll:
        return poll(x, call);
    case XEN_SCHEDOP_shutdown:
        if (vitro_vcpu_copy_in(call->cpu->vcpu, call->a[1], &reason, sizeof(reason)))
            return -XEN_EFAULT;
        if (reason > XEN_SHUTDOWN_watchdog)
            return -XEN_EINVAL;
        if (reason == XEN_SHUTDOWN_suspend)
            return suspend(x, call);
        x->c.shutdown(x->c.shutdown_opaque, reason);
        call->halt = true;
        return 0;
    }
    return -XEN_ENOSYS;
}
