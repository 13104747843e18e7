/* native_console.c - the terminal: a call that writes, and a page of two rings (struct vt_console). */
#include "paravirt/native_inner.h"
#include <string.h>

s64 native_CONSOLE_WRITE(struct native *n, unsigned vcpu, const u64 *a)
{
    u8 text[VT_CONSOLE_MAX];

    (void)vcpu;
    if (!n->ops.console)
        return -VT_ENOCALL;
    if (!a[1])
        return -VT_EINVAL;
    if (a[1] > VT_CONSOLE_MAX)
        return -VT_E2BIG;
    if (ram_read(n->c.ram, a[0], text, a[1]))
        return -VT_EFAULT;
    n->ops.console(n->ops.opaque, text, a[1]);
    return (s64)a[1];
}

s64 native_CONSOLE_RING(struct native *n, unsigned vcpu, const u64 *a)
{
    struct vt_console *page = NULL;

    (void)vcpu;
    if (a[0] & ~PAGE_MASK || (a[0] && a[1] >= VT_PORTS))
        return -VT_EINVAL;
    if (a[0]) {
        page = ram_dma_ptr(n->c.ram, a[0], PAGE_SIZE);
        if (!page)
            return -VT_EFAULT;
    }
    pthread_mutex_lock(&n->lock);
    if (page && n->console) {
        pthread_mutex_unlock(&n->lock);
        return -VT_EEXIST;
    }
    if (page) { /* empty, from where the guest has its numbers */
        n->console_out_tail = __atomic_load_n(&page->out_head, __ATOMIC_ACQUIRE);
        n->console_in_head = __atomic_load_n(&page->in_tail, __ATOMIC_ACQUIRE);
        __atomic_store_n(&page->out_tail, n->console_out_tail, __ATOMIC_RELEASE);
        __atomic_store_n(&page->in_head, n->console_in_head, __ATOMIC_RELEASE);
        n->console_port = (unsigned)a[1];
    }
    n->console = page;
    pthread_mutex_unlock(&n->lock);
    if (page)
        ram_written(n->c.ram, a[0], PAGE_SIZE);
    if (n->ops.console_resume)
        n->ops.console_resume(n->ops.opaque);
    return 0;
}

s64 native_CONSOLE_BELL(struct native *n, unsigned vcpu, const u64 *a)
{
    u8 text[VT_CONSOLE_OUT];
    u32 nr = 0;

    (void)vcpu, (void)a;
    if (!n->ops.console)
        return -VT_ENOCALL;
    pthread_mutex_lock(&n->lock);
    struct vt_console *c = n->console;
    if (c) {
        nr = __atomic_load_n(&c->out_head, __ATOMIC_ACQUIRE) - n->console_out_tail;
        if (nr > VT_CONSOLE_OUT)
            nr = 0; /* not a ring any more */
        for (u32 i = 0; i < nr; i++)
            text[i] = c->out[(n->console_out_tail + i) % VT_CONSOLE_OUT];
        n->console_out_tail += nr;
        __atomic_store_n(&c->out_tail, n->console_out_tail, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&n->lock);
    if (!c)
        return -VT_ENOENT;
    if (nr)
        n->ops.console(n->ops.opaque, text, nr);
    if (n->ops.console_resume)
        n->ops.console_resume(n->ops.opaque);
    return nr;
}

/* Under n->lock. A tail that makes no sense: full. */
static u32 in_room(struct native *n)
{
    u32 used = n->console_in_head - __atomic_load_n(&n->console->in_tail, __ATOMIC_ACQUIRE);
    return used > VT_CONSOLE_IN ? 0 : VT_CONSOLE_IN - used;
}

long native_console_room(struct native *n)
{
    pthread_mutex_lock(&n->lock);
    long room = n->console ? (long)in_room(n) : -1;
    pthread_mutex_unlock(&n->lock);
    return room;
}

size_t native_console_feed(struct native *n, const u8 *bytes, size_t len)
{
    unsigned port = VT_PORTS;
    size_t nr = 0;

    pthread_mutex_lock(&n->lock);
    struct vt_console *c = n->console;
    if (c) {
        nr = MIN(len, (size_t)in_room(n));
        for (size_t i = 0; i < nr; i++)
            c->in[(n->console_in_head + i) % VT_CONSOLE_IN] = bytes[i];
        n->console_in_head += (u32)nr;
        __atomic_store_n(&c->in_head, n->console_in_head, __ATOMIC_RELEASE);
        port = n->console_port;
    }
    pthread_mutex_unlock(&n->lock);
    if (nr)
        native_event(n, port);
    return nr;
}
