/*
 * memory.c - what the guest is told of its memory, and its descriptor tables.
 * Source: Xen's public memory.h, arch-x86/xen-x86_64.h.
 * Reservations change frame by frame: one that is given back stays out of use (FRAME_GONE) until it is wanted again.
 */
#include "paravirt/xen/inner.h"
#include <string.h>
#include <sys/mman.h>

/* -- Reservations that change (ballooning) ---------------------------------------------------------------------- */

bool frame_gone(struct xen *x, u64 mfn)
{
    if (frame_get(x, mfn, FRAME_GONE)) /* it is used */
        return false;
    if (x->frame[mfn].count > 1) { /* it was gone already */
        frame_put(x, mfn);
        return false;
    }
    x->m2p[mfn] = ~0ull;
    x->nr_gone++;
    x->gone_from = MIN(x->gone_from, mfn);
    return true;
}

static bool give_back(struct xen *x, u64 mfn)
{
    if (!frame_gone(x, mfn))
        return false;
    /* What the host does not take back stays as it is. Memory mapped from a snapshot is private: of that only our copy goes. */
    if (madvise(xen_table(x, mfn), PAGE_SIZE, MADV_REMOVE))
        madvise(xen_table(x, mfn), PAGE_SIZE, MADV_DONTNEED);
    ram_written(x->c.ram, mfn << PAGE_SHIFT, PAGE_SIZE);
    return true;
}

/* The frame of that number if it is to be had, else any. False: none. */
static bool take(struct xen *x, u64 wish, u64 *mfn)
{
    if (!x->nr_gone)
        return false;
    if (wish < x->nr_frames && x->frame[wish].type == FRAME_GONE) {
        *mfn = wish;
    } else {
        while (x->frame[x->gone_from].type != FRAME_GONE)
            x->gone_from++;
        *mfn = x->gone_from;
    }
    frame_put(x, *mfn);
    if (!--x->nr_gone)
        x->gone_from = x->nr_frames;
    return true;
}

u64 xen_balloon_actual(struct xen *x)
{
    pthread_mutex_lock(&x->lock);
    u64 frames = x->nr_frames - x->nr_gone;
    pthread_mutex_unlock(&x->lock);
    return frames << PAGE_SHIFT;
}

/* How many extents were done: the list ends at the first that cannot be. */
static s64 change_reservation(struct xen *x, struct xen_call *c, unsigned op)
{
    struct vitro_vcpu *v = c->cpu->vcpu;
    struct xen_memory_reservation r;
    u64 done = 0;

    if (vitro_vcpu_copy_in(v, c->a[1], &r, sizeof(r)))
        return -XEN_EFAULT;
    if (r.domid != XEN_DOMID_SELF)
        return -XEN_EPERM;
    if (r.extent_order)
        return 0;
    for (; done < MIN(r.nr_extents, x->nr_frames); done++) {
        u64 at = r.extent_start + done * 8, number = ~0ull, mfn;
        if (op != XENMEM_increase_reservation && vitro_vcpu_copy_in(v, at, &number, sizeof(number)))
            break;
        if (op == XENMEM_decrease_reservation) {
            if (!give_back(x, number))
                break;
            continue;
        }
        if (!take(x, number, &mfn))
            break;
        if (op == XENMEM_populate_physmap)
            x->m2p[mfn] = number;
        if (vitro_vcpu_copy_out(v, at, &mfn, sizeof(mfn))) {
            give_back(x, mfn);
            break;
        }
    }
    return (s64)done;
}

s64 xen_memory_op(struct xen *x, struct xen_call *c)
{
    struct vitro_vcpu *v = c->cpu->vcpu;

    switch ((u32)c->a[0] & 63) {
    case XENMEM_maximum_ram_page:
        return (s64)(x->nr_frames + FRAMES_SHARED);
    case XENMEM_current_reservation:
    case XENMEM_maximum_reservation: {
        u16 domid;
        if (vitro_vcpu_copy_in(v, c->a[1], &domid, sizeof(domid)))
            return -XEN_EFAULT;
        u64 gone = ((u32)c->a[0] & 63) == XENMEM_current_reservation ? x->nr_gone : 0;
        return domid == XEN_DOMID_SELF ? (s64)(x->nr_frames - gone) : -XEN_EPERM;
    }
    case XENMEM_memory_map: {
        struct xen_memory_map m;
        const struct xen_e820_entry e = { 0, x->nr_frames << PAGE_SHIFT, 1 };
        if (vitro_vcpu_copy_in(v, c->a[1], &m, sizeof(m)))
            return -XEN_EFAULT;
        if (m.nr_entries < 1)
            return -XEN_EINVAL;
        m.nr_entries = 1;
        return vitro_vcpu_copy_out(v, m.buffer, &e, sizeof(e)) || vitro_vcpu_copy_out(v, c->a[1], &m, sizeof(m))
               ? -XEN_EFAULT : 0;
    }
    case XENMEM_machphys_mapping: {
        const struct xen_machphys_mapping m = { x->m2p_at, XEN_M2P_END, x->nr_frames - 1 };
        return vitro_vcpu_copy_out(v, c->a[1], &m, sizeof(m)) ? -XEN_EFAULT : 0;
    }
    case XENMEM_increase_reservation:
    case XENMEM_decrease_reservation:
    case XENMEM_populate_physmap:
        return change_reservation(x, c, (u32)c->a[0] & 63);
    }
    return -XEN_ENOSYS;
}

s64 xen_vm_assist(struct xen *x, struct xen_call *c)
{
    (void)x;
    if (c->a[0] > 1)
        return -XEN_ENOSYS;
    switch ((u32)c->a[1]) {
    case XEN_VMASST_4gb_segments:
    case XEN_VMASST_4gb_segments_notify:
    case XEN_VMASST_writable_pagetables:
    case XEN_VMASST_pae_extended_cr3:
    case XEN_VMASST_m2p_strict:
        return 0; /* as it always is */
    }
    return -XEN_EINVAL;
}

/* -- Descriptors (SDM vol. 3 §3.4.5) ------------------------------------------------------------------------ */

bool descriptor_fix(u64 *d)
{
    u64 e = *d;
    u32 attr = (u32)(e >> 40) & 0xf0ff;

    if (!(attr & SEG_P))
        return true;
    if (!(attr & SEG_S))
        return e == 0; /* gates, TSS, LDT: none */
    if ((attr & SEG_CODE) && (attr & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB))
        return false;
    /* Level 3, and accessed: the CPU never has to write here. */
    e |= 3ull << 45 | (u64)SEG_A << 40;
    if (e != *d)
        *d = e;
    return true;
}

/* The GDT as the CPU sees it: the guest's pages, then ours. */
int gdt_load(struct xen_cpu *c, const u64 *mfn, unsigned nr)
{
    struct xen *x = c->xen;
    unsigned i;

    for (i = 0; i < nr; i++) {
        int r = frame_get(x, mfn[i], FRAME_DESC);
        if (r) {
            while (i--)
                frame_put(x, mfn[i]);
            return r;
        }
    }
    u64 *l1 = (u64 *)(x->own + (PTE_MFN(x->gdt_l1) << PAGE_SHIFT) - x->own_gpa) + c->index * (GDT_AREA_STRIDE >> PAGE_SHIFT);
    for (i = 0; i < XEN_GDT_RESERVED_PAGE; i++)
        l1[i] = i < nr ? mfn[i] << PAGE_SHIFT | PTE_P | PTE_A : x->gdt_none;
    for (i = 0; i < c->nr_gdt; i++)
        frame_put(x, c->gdt_frame[i]);
    for (i = 0; i < nr; i++)
        c->gdt_frame[i] = (u32)mfn[i];
    c->nr_gdt = nr;
    vitro_vcpu_descriptors_changed(c->vcpu);
    if (c->started) /* on its own thread; else it knows nothing yet */
        vitro_vcpu_flush_pages(c->vcpu, 0, GDT_AREA + c->index * GDT_AREA_STRIDE, XEN_GDT_RESERVED_PAGE, true);
    return 0;
}

u64 gdt_descriptor(const struct xen_cpu *c, u16 sel)
{
    const struct xen *x = c->xen;
    unsigned page = sel >> PAGE_SHIFT;
    const u64 *t = NULL;

    if (sel & 4) /* LDT */
        return 0;
    if (page == XEN_GDT_RESERVED_PAGE)
        t = (const u64 *)(x->own + (x->gdt_own << PAGE_SHIFT) - x->own_gpa);
    else if (page < c->nr_gdt)
        t = (const u64 *)(x->c.host + ((u64)c->gdt_frame[page] << PAGE_SHIFT));
    return t ? t[(sel & 0xfff) >> 3] : 0;
}

s64 xen_set_gdt(struct xen *x, struct xen_call *c)
{
    u64 mfn[XEN_GDT_RESERVED_PAGE], nr = (c->a[1] + 511) / 512;

    (void)x;
    if (c->a[1] > XEN_GDT_ENTRIES)
        return -XEN_EINVAL;
    if (vitro_vcpu_copy_in(c->cpu->vcpu, c->a[0], mfn, nr * sizeof(mfn[0])))
        return -XEN_EFAULT;
    return gdt_load(c->cpu, mfn, (unsigned)nr);
}

s64 xen_update_descriptor(struct xen *x, struct xen_call *c)
{
    u64 mfn = c->a[0] >> PAGE_SHIFT, d = c->a[1];
    bool table;

    if (mfn >= x->nr_frames || (c->a[0] & 7) || !descriptor_fix(&d))
        return -XEN_EINVAL;
    table = x->frame[mfn].count && x->frame[mfn].type == FRAME_DESC;
    if (!table) {
        int r = frame_get(x, mfn, FRAME_WRITABLE);
        if (r)
            return r;
    }
    __atomic_store_n((u64 *)(x->c.host + c->a[0]), d, __ATOMIC_SEQ_CST);
    ram_written(x->c.ram, c->a[0], 8);
    vitro_vcpu_descriptors_changed(c->cpu->vcpu);
    if (!table)
        frame_put(x, mfn);
    return 0;
}
