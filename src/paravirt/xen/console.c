/*
 * console.c - the console ring, and the console before there is a ring. Source: Xen's public io/console.h.
 *
 * The indices are the guest's to write: each is read once, and what it says is bounded by the ring's size.
 */
#include "paravirt/xen/inner.h"
#include "machine/machine.h"

s64 xen_console_io(struct xen *x, struct xen_call *c)
{
    u8 buf[256];
    u64 count = (u32)c->a[1];

    if (c->a[0] == XEN_CONSOLEIO_read)
        return 0; /* nothing typed */
    if (c->a[0] != XEN_CONSOLEIO_write)
        return -XEN_ENOSYS;
    for (u64 at = 0; at < MIN(count, 1u << 16); at += sizeof(buf)) {
        size_t n = MIN(count - at, sizeof(buf));
        if (vitro_vcpu_copy_in(c->cpu->vcpu, c->a[2] + at, buf, n))
            return -XEN_EFAULT;
        x->c.console(x->c.opaque, buf, n);
    }
    return 0;
}

/* With the lock held: the guest wrote something, or took input. */
void console_notified(struct xen *x)
{
    struct xen_console_ring *r = x->console;
    u32 cons = r->out_cons, prod = __atomic_load_n(&r->out_prod, __ATOMIC_ACQUIRE), n = prod - cons;
    u8 buf[sizeof(r->out)];

    if (n > sizeof(r->out)) { /* no ring looks like that: begin anew */
        cons = prod;
        n = 0;
    }
    for (u32 i = 0; i < n; i++)
        buf[i] = (u8)r->out[(cons + i) % sizeof(r->out)];
    if (n)
        x->c.console(x->c.opaque, buf, n);
    __atomic_store_n(&r->out_cons, cons + n, __ATOMIC_RELEASE);
    if (n)
        port_raise(x, x->console_port);
    machine_console_resume(x->c.machine);
}

long xen_console_room(struct xen *x)
{
    struct xen_console_ring *r = x->console;

    if (!r)
        return 0;
    u32 n = r->in_prod - __atomic_load_n(&r->in_cons, __ATOMIC_ACQUIRE);
    return n > sizeof(r->in) ? 0 : (long)(sizeof(r->in) - n);
}

void xen_console_feed(struct xen *x, const u8 *bytes, size_t len)
{
    struct xen_console_ring *r = x->console;
    u32 prod = r->in_prod;

    len = MIN(len, (size_t)xen_console_room(x));
    for (size_t i = 0; i < len; i++)
        r->in[(prod + i) % sizeof(r->in)] = (char)bytes[i];
    __atomic_store_n(&r->in_prod, prod + (u32)len, __ATOMIC_RELEASE);
    if (len)
        port_raise(x, x->console_port);
}
