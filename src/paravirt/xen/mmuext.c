/*
 * mmuext.c - flushes, base pointers, pins: update_va_mapping and mmuext_op. Source: Xen's public xen.h (UVMF_*, MMUEXT_*).
 * These functions run with the guest's vector registers in place, as mmu.c's do.
 */
#include "paravirt/xen/inner.h"
#include <string.h>

/* -- Flushing ---------------------------------------------------------------------------------------------------- */

/* Everything that a flush by the interface ends, on c's own thread. */
static bool kernel_stale(struct xen_cpu *c)
{
    u64 now = __atomic_load_n(&c->xen->kernel_changes, __ATOMIC_SEQ_CST);
    bool stale = c->kernel_seen != now || __atomic_load_n(&c->xen->kernel_differs, __ATOMIC_SEQ_CST);

    c->kernel_seen = now;
    return stale;
}

static void flush_pages(struct xen_cpu *c, u64 va, u64 pages)
{
    vitro_vcpu_flush_pages(c->vcpu, 0, va, pages, true);
}

static void flush_self(struct xen_cpu *c)
{
    if (kernel_stale(c)) {
        vitro_vcpu_flush_all(c->vcpu);
        space_flushed(c);
    } else {
        space_refresh(c);
    }
}

/* Which vCPUs a mask in guest memory names; ~0 if it cannot be read. */
static int read_mask(struct xen *x, struct xen_cpu *c, u64 at, u64 *mask)
{
    *mask = 0;
    return vitro_vcpu_copy_in(c->vcpu, at, mask, (x->c.nr_cpus + 7) / 8) ? -XEN_EFAULT : 0;
}

/* Of the vCPUs in a mask: a page, or (va ~0) everything. */
static void flush_mask(struct xen *x, struct xen_cpu *c, u64 mask, u64 va)
{
    if (mask >> c->index & 1) {
        if (va == ~0ull)
            flush_self(c);
        else
            flush_pages(c, va, 1);
    }
    if (x->c.nr_cpus > 1 && (mask & ~(1ull << c->index))) {
        const struct vitro_flush page = { .va = va, .pages = 1, .global = true };
        vitro_vcpu_flush_mask(c->vcpu, mask, &page, va != ~0ull);
    }
}

void mmu_flush_asked(void *opaque, unsigned vcpu)
{
    flush_self(&((struct xen *)opaque)->cpu[vcpu]);
}

void mmu_flush_page(struct xen *x, struct xen_cpu *c, u64 va)
{
    flush_mask(x, c, ~0ull, va);
}

s64 xen_update_va_mapping(struct xen *x, struct xen_call *c)
{
    u64 va = c->a[0], val = c->a[1], flags = c->a[2], mfn, mask = 1ull << c->cpu->index;
    int r;

    if (!mmu_table_of(x, c->cpu->kernel_cr3, va, &mfn))
        return -XEN_EINVAL;
    r = mmu_entry_write(x, mfn, va >> PAGE_SHIFT & 511, val);
    if (r)
        return r;
    if (flags & ~7ull)
        r = read_mask(x, c->cpu, flags & ~7ull, &mask);
    else if (flags & XEN_UVMF_ALL)
        mask = ~0ull;
    if (r)
        return r;
    if ((flags & 3) == XEN_UVMF_TLB_FLUSH)
        flush_mask(x, c->cpu, mask, ~0ull);
    else if ((flags & 3) == XEN_UVMF_INVLPG)
        flush_mask(x, c->cpu, mask, va);
    return 0;
}

/* -- mmuext_op ------------------------------------------------------------------------------------------------------- */

int mmu_pin(struct xen *x, u64 mfn, enum frame_type type)
{
    int r = frame_get(x, mfn, type);

    if (r)
        return r;
    if (x->frame[mfn].pinned) {
        frame_put(x, mfn);
        return -XEN_EINVAL;
    }
    x->frame[mfn].pinned = 1;
    return 0;
}

static int unpin(struct xen *x, u64 mfn)
{
    if (mfn >= x->nr_frames || !x->frame[mfn].pinned)
        return -XEN_EINVAL;
    x->frame[mfn].pinned = 0;
    frame_put(x, mfn);
    return 0;
}

static int new_base(struct xen *x, struct xen_call *c, u64 *base, u64 mfn)
{
    u64 old = *base >> PAGE_SHIFT;

    if (mfn || base == &c->cpu->kernel_cr3) {
        int r = mfn ? frame_get(x, mfn, FRAME_L4) : -XEN_EINVAL; /* 0 is "none" */
        if (r)
            return r;
    }
    *base = mfn << PAGE_SHIFT;
    if (old)
        frame_put(x, old);
    return 0;
}

static int page_op(struct xen *x, u64 to, u64 from, bool copy)
{
    if (copy && from >= x->nr_frames)
        return -XEN_EINVAL;
    int r = frame_get(x, to, FRAME_WRITABLE);
    if (r)
        return r;
    vitro_vcpu_vectors_away(x->holder);
    if (copy)
        memmove(xen_table(x, to), xen_table(x, from), PAGE_SIZE);
    else
        memset(xen_table(x, to), 0, PAGE_SIZE);
    ram_written(x->c.ram, to << PAGE_SHIFT, PAGE_SIZE);
    vitro_vcpu_vectors_back(x->holder);
    frame_put(x, to);
    return 0;
}

static int one_op(struct xen *x, struct xen_call *c, const struct xen_mmuext_op *op)
{
    struct xen_cpu *cpu = c->cpu;
    u32 entries = (u32)op->arg2; /* nr_ents is an unsigned int: what is above it is not set */
    u64 mask;
    int r;

    switch (op->cmd) {
    case XEN_MMUEXT_PIN_L1: case XEN_MMUEXT_PIN_L2: case XEN_MMUEXT_PIN_L3: case XEN_MMUEXT_PIN_L4:
        return mmu_pin(x, op->arg1, (enum frame_type)(op->cmd - XEN_MMUEXT_PIN_L1 + FRAME_L1));
    case XEN_MMUEXT_UNPIN:
        return unpin(x, op->arg1);
    case XEN_MMUEXT_NEW_BASEPTR:
        r = new_base(x, c, &cpu->kernel_cr3, op->arg1);
        if (r)
            return r;
        c->frame->cr3 = cpu->kernel_cr3;
        mmu_kernel_half(x, cpu, op->arg1);
        vitro_vcpu_kernel_space(cpu->vcpu, cpu->kernel_cr3);
        flush_self(cpu);
        return 0;
    case XEN_MMUEXT_NEW_USER_BASEPTR:
        r = new_base(x, c, &cpu->user_cr3, op->arg1);
        if (!r)
            space_switch(cpu);
        return r;
    case XEN_MMUEXT_TLB_FLUSH_LOCAL:
        flush_self(cpu);
        return 0;
    case XEN_MMUEXT_INVLPG_LOCAL:
        flush_pages(cpu, op->arg1, 1);
        return 0;
    case XEN_MMUEXT_TLB_FLUSH_MULTI: case XEN_MMUEXT_INVLPG_MULTI:
        r = read_mask(x, cpu, op->arg2, &mask);
        if (!r)
            flush_mask(x, cpu, mask, op->cmd == XEN_MMUEXT_INVLPG_MULTI ? op->arg1 & PAGE_MASK : ~0ull);
        return r;
    case XEN_MMUEXT_TLB_FLUSH_ALL: case XEN_MMUEXT_INVLPG_ALL:
        flush_mask(x, cpu, ~0ull, op->cmd == XEN_MMUEXT_INVLPG_ALL ? op->arg1 & PAGE_MASK : ~0ull);
        return 0;
    case XEN_MMUEXT_FLUSH_CACHE: case XEN_MMUEXT_FLUSH_CACHE_GLOBAL:
        return 0; /* memory is coherent */
    case XEN_MMUEXT_SET_LDT:
        if (entries > 8192 || (entries && (op->arg1 & ~PAGE_MASK)))
            return -XEN_EINVAL;
        vitro_vcpu_set_ldt(cpu->vcpu, op->arg1, entries * 8);
        return 0;
    case XEN_MMUEXT_CLEAR_PAGE:
        return page_op(x, op->arg1, 0, false);
    case XEN_MMUEXT_COPY_PAGE:
        return page_op(x, op->arg1, op->arg2, true);
    }
    return -XEN_ENOSYS;
}

s64 xen_mmuext_op(struct xen *x, struct xen_call *c)
{
    u64 list = c->a[0], count = (u32)c->a[1], done = 0;
    s64 r = mmu_list(c);

    if (r)
        return r;
    for (; done < count && !r; done += !r) {
        struct xen_mmuext_op op;
        r = vitro_vcpu_copy_in(c->cpu->vcpu, list + done * sizeof(op), &op, sizeof(op)) ? -XEN_EFAULT
                                                                                         : one_op(x, c, &op);
    }
    return mmu_list_end(c, done, r);
}
