/*
 * ports.c - I/O ports. A PV guest has none but those of the machine that it was given (xen_give_ports()), and its kernel, as
 * with Xen, the counter of the 8254 that ticks for the speaker: Linux measures its clock by it, and where the port reads as
 * ones it looks 50 000 times before it gives up.
 *
 * Its kernel may reach these, and so may user code that the kernel lets: by level (set_iopl), or by a bitmap in its memory,
 * a clear bit for each port allowed (set_iobitmap), which is looked at when user code tries. All others read as ones for the
 * kernel, and are #GP for user code. Source: Xen's public physdev.h.
 */
#include "paravirt/xen/io.h"
#include "machine/machine.h"

/* The PC's, as everywhere: the 8254's third counter and its command, and what starts it and reads it. */
#define PORT_COUNTER2 0x42
#define PORT_COUNTER_COMMAND 0x43
#define PORT_SYSTEM_B 0x61

s64 xen_physdev_op(struct xen *x, struct xen_call *call)
{
    struct xen_cpu *c = call->cpu;
    struct xen_physdev_iobitmap b;
    u32 level;

    (void)x;
    switch ((u32)call->a[0]) {
    case XEN_PHYSDEVOP_set_iopl:
        if (vitro_vcpu_copy_in(c->vcpu, call->a[1], &level, sizeof(level)))
            return -XEN_EFAULT;
        if (level > 3)
            return -XEN_EINVAL;
        c->iopl = (u8)level;
        return 0;
    case XEN_PHYSDEVOP_set_iobitmap:
        if (vitro_vcpu_copy_in(c->vcpu, call->a[1], &b, sizeof(b)))
            return -XEN_EFAULT;
        if (b.nr_ports > 65536)
            return -XEN_EINVAL;
        c->iobitmap_la = b.bitmap;
        c->iobitmap_ports = b.nr_ports;
        return 0;
    }
    return -XEN_ENOSYS;
}

void xen_give_ports(struct xen *x, u16 first, u16 nr)
{
    x->first_port = first;
    x->nr_ports = nr;
}

/* User code's, by what its kernel said. The bitmap is in the kernel's address space. */
static bool user_may(struct xen_cpu *c, const struct vitro_frame *f, u32 port, u32 size)
{
    u8 bits[2] = { 0xff, 0xff };

    if (c->iopl == 3)
        return true;
    if (port + size > c->iobitmap_ports)
        return false;
    vitro_vcpu_use_cr3(c->vcpu, c->kernel_cr3);
    bool read = !vitro_vcpu_copy_in(c->vcpu, c->iobitmap_la + port / 8, bits, port % 8 + size > 8 ? 2 : 1);
    vitro_vcpu_use_cr3(c->vcpu, f->cr3);
    return read && !((bits[0] | bits[1] << 8) >> port % 8 & ((1u << size) - 1));
}

static bool is_ours(const struct xen *x, const struct vitro_frame *f, u32 port, u32 size)
{
    if (f->kernel && size == 1 && (port == PORT_COUNTER2 || port == PORT_COUNTER_COMMAND || port == PORT_SYSTEM_B))
        return true;
    return port >= x->first_port && port + size <= (u32)x->first_port + x->nr_ports;
}

bool ports_access(struct xen_cpu *c, const struct vitro_frame *f, struct vitro_privileged *p)
{
    struct xen *x = c->xen;

    if (!f->kernel && !user_may(c, f, p->reg, p->size))
        return false;
    if (!is_ours(x, f, p->reg, p->size)) {
        if (p->op == VITRO_IN)
            p->value = ~0u;
        return f->kernel;
    }
    vitro_vcpu_vectors_away(c->vcpu);
    if (p->op == VITRO_IN)
        p->value = machine_port_in(x->c.machine, (u16)p->reg, p->size);
    else
        machine_port_out(x->c.machine, (u16)p->reg, p->size, (u32)p->value);
    vitro_vcpu_vectors_back(c->vcpu);
    return true;
}
