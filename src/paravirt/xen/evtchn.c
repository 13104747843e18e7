/*
 * evtchn.c - event channels, the two-level kind: a bit for each port, a word of bits for which words have any.
 * Source: Xen's public event_channel.h.
 * Domain 0 is us: ports to it are opened for the guest (console, xenstore), or bound to what the guest allocates.
 */
#include "paravirt/xen/io.h"
#include "machine/machine.h"

static bool port_ok(const struct xen *x, u64 port)
{
    return port && port < XEN_EVTCHNS && x->port[port].state != XEN_EVTCHN_closed;
}

static void cpu_wake(struct xen_cpu *c)
{
    c->xen->c.kick(c->xen->c.opaque, c->index, VITRO_KICK_INTR | VITRO_KICK_WAKE);
}

/* The bit is the guest's to clear. Order: pending, then mask, then which word, then the flag of the vCPU. */
void port_raise(struct xen *x, u32 port)
{
    u64 bit = 1ull << (port & 63);
    unsigned word = port >> 6;

    if (!port || port >= XEN_EVTCHNS)
        return;
    struct xen_cpu *c = &x->cpu[x->port[port].vcpu < x->c.nr_cpus ? x->port[port].vcpu : 0];
    if (__atomic_fetch_or(&x->shared->evtchn_pending[word], bit, __ATOMIC_SEQ_CST) & bit)
        goto poll;
    if (!(__atomic_load_n(&x->shared->evtchn_mask[word], __ATOMIC_SEQ_CST) & bit) &&
        !(__atomic_fetch_or(&c->info->pending_sel, 1ull << word, __ATOMIC_SEQ_CST) >> word & 1)) {
        __atomic_store_n(&c->info->upcall_pending, 1, __ATOMIC_SEQ_CST);
        cpu_wake(c);
        return;
    }
poll: /* masked or pending already: only who polls for it is to know */
    for (unsigned i = 0; i < x->c.nr_cpus; i++)
        if (__atomic_load_n(&x->cpu[i].polling, __ATOMIC_SEQ_CST))
            cpu_wake(&x->cpu[i]);
}

void virq_raise(struct xen_cpu *c, unsigned virq)
{
    port_raise(c->xen, __atomic_load_n(&c->virq_port[virq], __ATOMIC_ACQUIRE));
}

static u32 port_find(const struct xen *x)
{
    for (u32 p = 1; p < XEN_EVTCHNS; p++)
        if (x->port[p].state == XEN_EVTCHN_closed)
            return p;
    return 0;
}

static u32 port_take(struct xen *x, enum xen_evtchn_state state, unsigned vcpu)
{
    u32 p = port_find(x);

    if (p)
        x->port[p] = (struct port){ .state = (u8)state, .vcpu = (u8)vcpu };
    return p;
}

u32 port_open(struct xen *x)
{
    return port_take(x, XEN_EVTCHN_interdomain, 0);
}

static void port_close(struct xen *x, u32 p)
{
    if (x->port[p].state == XEN_EVTCHN_virq) {
        struct xen_cpu *c = &x->cpu[x->port[p].vcpu];
        u32 *bound = x->port[p].global ? &x->cpu[0].virq_port[x->port[p].virq] : &c->virq_port[x->port[p].virq];
        __atomic_store_n(bound, 0, __ATOMIC_RELEASE);
    }
    x->port[p] = (struct port){ 0 };
    __atomic_fetch_and(&x->shared->evtchn_pending[p >> 6], ~(1ull << (p & 63)), __ATOMIC_SEQ_CST);
}

bool port_bind(struct xen *x, u64 port, bool (*notify)(void *opaque, bool rest), void *opaque)
{
    if (port >= XEN_EVTCHNS || x->port[port].state != XEN_EVTCHN_unbound || x->port[port].remote)
        return false;
    x->port[port].state = XEN_EVTCHN_interdomain;
    x->port[port].notify = notify;
    x->port[port].opaque = opaque;
    return true;
}

void port_unbind(struct xen *x, u32 port, const void *opaque)
{
    struct port *p = &x->port[port];

    if (p->state == XEN_EVTCHN_interdomain && p->opaque == opaque)
        *p = (struct port){ .state = XEN_EVTCHN_unbound, .vcpu = p->vcpu };
}

bool virq_is_global(u32 virq)
{
    return virq != XEN_VIRQ_TIMER && virq != XEN_VIRQ_DEBUG && virq != XEN_VIRQ_XENOPROF && virq != XEN_VIRQ_XENPMU;
}

static s64 bind_virq(struct xen *x, struct vitro_vcpu *v, u64 arg)
{
    struct xen_evtchn_bind_virq b;

    if (vitro_vcpu_copy_in(v, arg, &b, sizeof(b)))
        return -XEN_EFAULT;
    if (b.virq >= XEN_NR_VIRQS)
        return -XEN_EINVAL;
    if (b.vcpu >= x->c.nr_cpus)
        return -XEN_ENOENT;
    bool global = virq_is_global(b.virq);
    if (global && b.vcpu)
        return -XEN_EINVAL;
    if (x->cpu[b.vcpu].virq_port[b.virq])
        return -XEN_EEXIST;
    b.port = port_take(x, XEN_EVTCHN_virq, b.vcpu);
    if (!b.port)
        return -XEN_ENOSPC;
    x->port[b.port].virq = (u8)b.virq;
    x->port[b.port].global = global;
    if (vitro_vcpu_copy_out(v, arg, &b, sizeof(b))) {
        x->port[b.port] = (struct port){ 0 };
        return -XEN_EFAULT;
    }
    __atomic_store_n(&x->cpu[b.vcpu].virq_port[b.virq], b.port, __ATOMIC_RELEASE);
    return 0;
}

static s64 bind_ipi(struct xen *x, struct vitro_vcpu *v, u64 arg)
{
    struct xen_evtchn_bind_ipi b;

    if (vitro_vcpu_copy_in(v, arg, &b, sizeof(b)))
        return -XEN_EFAULT;
    if (b.vcpu >= x->c.nr_cpus)
        return -XEN_ENOENT;
    b.port = port_take(x, XEN_EVTCHN_ipi, b.vcpu);
    if (!b.port)
        return -XEN_ENOSPC;
    if (vitro_vcpu_copy_out(v, arg, &b, sizeof(b))) {
        x->port[b.port] = (struct port){ 0 };
        return -XEN_EFAULT;
    }
    return 0;
}

static s64 alloc_unbound(struct xen *x, struct vitro_vcpu *v, u64 arg)
{
    struct xen_evtchn_alloc_unbound a;

    if (vitro_vcpu_copy_in(v, arg, &a, sizeof(a)))
        return -XEN_EFAULT;
    if (a.dom != XEN_DOMID_SELF)
        return -XEN_EPERM;
    a.port = port_take(x, XEN_EVTCHN_unbound, 0);
    if (!a.port)
        return -XEN_ENOSPC;
    x->port[a.port].remote = a.remote_dom;
    if (vitro_vcpu_copy_out(v, arg, &a, sizeof(a))) {
        x->port[a.port] = (struct port){ 0 };
        return -XEN_EFAULT;
    }
    return 0;
}

static s64 bind_vcpu(struct xen *x, struct vitro_vcpu *v, u64 arg)
{
    struct xen_evtchn_bind_vcpu b;

    if (vitro_vcpu_copy_in(v, arg, &b, sizeof(b)))
        return -XEN_EFAULT;
    if (b.vcpu >= x->c.nr_cpus)
        return -XEN_ENOENT;
    if (!port_ok(x, b.port))
        return -XEN_EINVAL;
    struct port *p = &x->port[b.port];
    if (p->state == XEN_EVTCHN_ipi || (p->state == XEN_EVTCHN_virq && !p->global))
        return -XEN_EINVAL;
    p->vcpu = (u8)b.vcpu;
    return 0;
}

static s64 status(struct xen *x, struct vitro_vcpu *v, u64 arg)
{
    struct xen_evtchn_status s;

    if (vitro_vcpu_copy_in(v, arg, &s, sizeof(s)))
        return -XEN_EFAULT;
    if (s.dom != XEN_DOMID_SELF)
        return -XEN_EPERM;
    if (s.port >= XEN_EVTCHNS)
        return -XEN_EINVAL;
    const struct port *p = &x->port[s.port];
    s.status = p->state;
    s.vcpu = p->vcpu;
    if (p->state == XEN_EVTCHN_virq)
        s.u.virq = p->virq;
    else if (p->state == XEN_EVTCHN_unbound)
        s.u.peer.dom = p->remote;
    else if (p->state == XEN_EVTCHN_interdomain)
        s.u.peer.dom = 0, s.u.peer.port = s.port;
    return vitro_vcpu_copy_out(v, arg, &s, sizeof(s)) ? -XEN_EFAULT : 0;
}

static s64 unmask(struct xen *x, u32 port)
{
    u64 bit = 1ull << (port & 63);
    unsigned word = port >> 6;

    if (port >= XEN_EVTCHNS || !port_ok(x, port))
        return -XEN_EINVAL;
    struct xen_cpu *c = &x->cpu[x->port[port].vcpu];
    if ((__atomic_fetch_and(&x->shared->evtchn_mask[word], ~bit, __ATOMIC_SEQ_CST) & bit) &&
        (__atomic_load_n(&x->shared->evtchn_pending[word], __ATOMIC_SEQ_CST) & bit) &&
        !(__atomic_fetch_or(&c->info->pending_sel, 1ull << word, __ATOMIC_SEQ_CST) >> word & 1)) {
        __atomic_store_n(&c->info->upcall_pending, 1, __ATOMIC_SEQ_CST);
        cpu_wake(c);
    }
    return 0;
}

/* It may take its time, and asks for the lock itself. A device is not freed before the guest is. */
static bool notify_backend(struct xen *x, struct xen_cpu *c, u32 port, bool rest)
{
    bool (*notify)(void *, bool) = x->port[port].notify;
    void *opaque = x->port[port].opaque;

    if (!notify)
        return false;
    xen_unlock(x);
    vitro_vcpu_wait_begin(c->vcpu); /* it may have to wait for that lock */
    bool any = notify(opaque, rest);
    vitro_vcpu_wait_end(c->vcpu);
    xen_lock(x, c);
    return any;
}

/*
 * Gathering. Linux rings for each request that it puts on a ring, if the back end has taken those before: 16 requests of one
 * system call are 16 bells. So when a ring's bell is heard a second time before the kernel was left, from then on the first
 * one's back end asks for no other; it is called again when the kernel is left (to user code, or to sleep), and takes
 * what has gathered. If nothing has, GATHER times in a row, each request has its bell again. A kernel that is not
 * left for long is looked at every GATHER_NS.
 */
#define GATHER 8
#define GATHER_NS 1000000

void ports_look_later(struct xen *x)
{
    struct vm_clock *clock = machine_clock(x->c.machine);

    if (!__atomic_exchange_n(&x->gather_armed, true, __ATOMIC_SEQ_CST))
        timer_arm(clock, &x->gather_timer, clock_now(clock) + GATHER_NS);
}

static bool gather(struct xen *x, struct xen_cpu *c, u32 port)
{
    struct port *p = &x->port[port];

    if (p->stay == c->stays)
        p->gather = GATHER;
    p->stay = c->stays;
    if (!p->gather)
        return false;
    for (unsigned i = 0; i < c->nr_gathering; i++)
        if (c->gathering[i] == port)
            return true;
    if (c->nr_gathering == ARRAY_SIZE(c->gathering))
        return false;
    c->gathering[c->nr_gathering] = port;
    __atomic_store_n(&c->nr_gathering, c->nr_gathering + 1, __ATOMIC_RELEASE);
    ports_look_later(x);
    return true;
}

void ports_left(struct xen_cpu *c)
{
    struct xen *x = c->xen;

    xen_lock(x, c);
    while (c->nr_gathering) {
        u32 port = c->gathering[c->nr_gathering - 1];
        __atomic_store_n(&c->nr_gathering, c->nr_gathering - 1, __ATOMIC_RELEASE);
        bool any = notify_backend(x, c, port, true);
        struct port *p = &x->port[port];
        p->gather = any ? GATHER : p->gather ? p->gather - 1 : 0;
    }
    xen_unlock(x);
}

static void on_gather_timer(void *opaque)
{
    struct xen *x = opaque;

    __atomic_store_n(&x->gather_armed, false, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < x->c.nr_cpus; i++)
        if (__atomic_load_n(&x->cpu[i].nr_gathering, __ATOMIC_ACQUIRE)) {
            __atomic_store_n(&x->cpu[i].gathered_late, true, __ATOMIC_SEQ_CST);
            x->c.kick(x->c.opaque, i, VITRO_KICK_INTR);
        }
}

int ports_init(struct xen *x)
{
    return timer_init(machine_clock(x->c.machine), &x->gather_timer, on_gather_timer, x);
}

static s64 send(struct xen *x, struct xen_cpu *c, u32 port)
{
    if (!port_ok(x, port))
        return -XEN_EINVAL;
    switch (x->port[port].state) {
    case XEN_EVTCHN_interdomain:
        if (port == x->console_port)
            console_notified(x);
        else if (port == x->store_port)
            store_notified(x->store);
        else
            notify_backend(x, c, port, !gather(x, c, port));
        return 0;
    case XEN_EVTCHN_ipi:
        port_raise(x, port);
        return 0;
    case XEN_EVTCHN_unbound:
        return 0;
    }
    return -XEN_EINVAL;
}

s64 xen_event_channel_op(struct xen *x, struct xen_call *c)
{
    struct vitro_vcpu *v = c->cpu->vcpu;
    u32 port;

    switch ((u32)c->a[0]) {
    case XEN_EVTCHNOP_bind_virq: return bind_virq(x, v, c->a[1]);
    case XEN_EVTCHNOP_bind_ipi: return bind_ipi(x, v, c->a[1]);
    case XEN_EVTCHNOP_alloc_unbound: return alloc_unbound(x, v, c->a[1]);
    case XEN_EVTCHNOP_bind_vcpu: return bind_vcpu(x, v, c->a[1]);
    case XEN_EVTCHNOP_status: return status(x, v, c->a[1]);
    case XEN_EVTCHNOP_close: case XEN_EVTCHNOP_send: case XEN_EVTCHNOP_unmask:
        if (vitro_vcpu_copy_in(v, c->a[1], &port, sizeof(port)))
            return -XEN_EFAULT;
        if (c->a[0] == XEN_EVTCHNOP_send)
            return send(x, c->cpu, port);
        if (c->a[0] == XEN_EVTCHNOP_unmask)
            return unmask(x, port);
        if (!port_ok(x, port) || port == x->console_port || port == x->store_port)
            return -XEN_EINVAL;
        port_close(x, port);
        return 0;
    }
    return -XEN_ENOSYS;
}
