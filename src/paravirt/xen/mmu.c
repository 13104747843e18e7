/*
 * mmu.c - the guest's page tables: what it may write there, and in which frames.
 *
 * A frame is a page table of one level, a descriptor table, or writable, and only one of these while it has uses. Uses are
 * the guest's pins, base pointers, and entries of tables. So no page table can be written but through here, where
 * each entry is checked: it names a frame of the guest's own (or one that is shared with it), of the right type.
 * The walker confines every access to guest memory anyway; these rules are the interface's, not the wall.
 *
 * These functions run with the guest's vector registers in place, as all that struct vitro_outer calls.
 * A/D bits are set by the walker while we look: entries are exchanged, not stored.
 * Source: Xen's public xen.h (MMU_*). Not done: superpages, linear page tables, pinning below
 * a level that is in use as another one, foreign domains.
 */
#include "paravirt/xen/inner.h"

#define AD (PTE_A | PTE_D)

static bool is_table(unsigned type) { return type >= FRAME_L1 && type <= FRAME_L4; }

static bool frame_is_shared(const struct xen *x, u64 mfn)
{
    return mfn - (x->own_gpa >> PAGE_SHIFT) < FRAMES_SHARED;
}

/* frame_get, frame_put with x->mmu held, as all of this file's static functions have it that do not say otherwise. */
static int get(struct xen *x, u64 mfn, enum frame_type type, u8 group);
static void put(struct xen *x, u64 mfn);

/* -- Entries ------------------------------------------------------------------------------------------------ */

/* entry_get - one more use, by an entry of a table of this level; what it links is to be of that group (spaces.c). */
static int entry_get(struct xen *x, unsigned level, u64 e, u8 group)
{
    u64 mfn = PTE_MFN(e);

    if (!(e & PTE_P))
        return 0;
    if (level > 1)
        return e & PTE_PS ? -XEN_EINVAL : get(x, mfn, (enum frame_type)(level - 1), group);
    if (mfn >= x->nr_frames)
        return frame_is_shared(x, mfn) ? 0 : -XEN_EINVAL;
    if (x->frame[mfn].type == FRAME_GONE)
        return -XEN_EINVAL;
    return e & PTE_W ? get(x, mfn, FRAME_WRITABLE, 0) : 0;
}

static void entry_put(struct xen *x, unsigned level, u64 e)
{
    u64 mfn = PTE_MFN(e);

    if ((e & PTE_P) && mfn < x->nr_frames && (level > 1 || (e & PTE_W)))
        put(x, mfn);
}

/* -- The kernel's half ---------------------------------------------------------------------------------------------
 * Its supervisor pages count as global (libvitro.h). The interface says that a new base pointer, and a flush, end what was
 * remembered of them too; so changes that such a flush must show are counted, and a vCPU that has not seen the last one
 * forgets everything. Not counted: what a TLB need not forget (rights that are added, D), and writes that are no longer
 * allowed: these are revoked at once.
 */
#define FIRST_KERNEL (XEN_HOLE_LAST + 1) /* level 4 slot */

static bool links_kernel(const struct xen *x, u64 mfn, unsigned level, unsigned i)
{
    return level == 4 ? i >= FIRST_KERNEL : x->frame[mfn].kernel;
}

static void kernel_mark(struct xen *x, u64 mfn, unsigned level)
{
    if (mfn >= x->nr_frames || x->frame[mfn].kernel)
        return;
    x->frame[mfn].kernel = true;
    for (unsigned i = 0; level > 1 && i < 512; i++)
        if (xen_table(x, mfn)[i] & PTE_P)
            kernel_mark(x, PTE_MFN(xen_table(x, mfn)[i]), level - 1);
}

static void kernel_changed(struct xen *x) { __atomic_fetch_add(&x->kernel_changes, 1, __ATOMIC_SEQ_CST); }

/* An entry went from old to new. True: its page must not be written any more by what is remembered. */
static bool kernel_entry(struct xen *x, u64 mfn, unsigned level, unsigned i, u64 old, u64 new)
{
    const u64 software = PTE_G | 0x07f0000000000e00ull;

    if (!(old & PTE_P) || !links_kernel(x, mfn, level, i) || (level == 1 && (old & PTE_U)))
        return false;
    if (!(new & PTE_P) || ((old ^ new) & ~(software | PTE_A | PTE_D | PTE_W)) || (old & ~new & PTE_A)) {
        kernel_changed(x);
        return false;
    }
    if (!(old & ~new & (PTE_W | PTE_D)) || (level > 1 && !(old & ~new & PTE_W)))
        return false;
    if (level > 1 || PTE_MFN(old) >= x->nr_frames)
        kernel_changed(x);
    return level == 1;
}

static u64 *half_known(struct xen *x, u64 mfn) { return &x->half_known[mfn % ARRAY_SIZE(x->half_known)]; }

/* Nothing is known of this base table's upper half. */
static void half_forget(struct xen *x, u64 mfn)
{
    if (*half_known(x, mfn) == mfn + 1)
        *half_known(x, mfn) = 0;
}

void mmu_kernel_half(struct xen *x, struct xen_cpu *c, u64 mfn)
{
    const u64 *t = xen_table(x, mfn) + FIRST_KERNEL;
    u64 *known = half_known(x, mfn);
    unsigned up = 0;
    bool same = true, differs = false;

    if (x->kernel_differs || *known == mfn + 1)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(x->kernel_half); i++) {
        u64 e = t[i] & ~(u64)(PTE_A | PTE_D);
        if (e == x->kernel_half[i])
            continue;
        same &= !x->kernel_half[i];
        x->kernel_half[i] = e;
        differs = true;
    }
    for (unsigned i = 0; differs && i < ARRAY_SIZE(x->half_known); i++)
        x->half_known[i] = 0;
    *known = mfn + 1;
    if (same || !c)
        return;
    for (unsigned i = 0; i < x->c.nr_cpus; i++)
        up += x->cpu[i].up || &x->cpu[i] == c;
    kernel_changed(x);
    if (up > 1) {
        __atomic_store_n(&x->kernel_differs, true, __ATOMIC_SEQ_CST);
        vitro_vcpu_kernel_differs(x->holder);
    }
}

static bool in_hole(unsigned level, unsigned i)
{
    return level == 4 && i >= XEN_HOLE_FIRST && i <= XEN_HOLE_LAST;
}

/* The first entry from i on that is present and the guest's own; 512: there is none. Most tables come and go nearly empty. */
static unsigned next_entry(const u64 *t, unsigned level, unsigned i)
{
    for (;; i++) {
        while (!(i & 7) && i < 512 && !((t[i] | t[i + 1] | t[i + 2] | t[i + 3] | t[i + 4] | t[i + 5] | t[i + 6] | t[i + 7]) & PTE_P))
            i += 8;
        if (i >= 512 || ((t[i] & PTE_P) && !in_hole(level, i)))
            return i;
    }
}

static int table_check(struct xen *x, u64 mfn, unsigned level)
{
    u64 *t = xen_table(x, mfn);
    unsigned i;
    int r = 0;

    for (i = next_entry(t, level, 0); i < 512; i = next_entry(t, level, i + 1)) {
        r = entry_get(x, level, t[i], group_for(x, mfn, level, i, t[i]));
        if (r)
            break;
        if (level > 1 && links_kernel(x, mfn, level, i))
            kernel_mark(x, PTE_MFN(t[i]), level - 1);
    }
    if (!r) {
        for (unsigned h = XEN_HOLE_FIRST; level == 4 && h <= XEN_HOLE_LAST; h++)
            t[h] = h - XEN_HOLE_FIRST < ARRAY_SIZE(x->hole) ? x->hole[h - XEN_HOLE_FIRST] : 0;
        return 0;
    }
    while (i--)
        if (!in_hole(level, i))
            entry_put(x, level, t[i]);
    return r;
}

static void table_drop(struct xen *x, u64 mfn, unsigned level)
{
    u64 *t = xen_table(x, mfn);

    for (unsigned i = next_entry(t, level, 0); i < 512; i = next_entry(t, level, i + 1))
        entry_put(x, level, t[i]);
}

static int descriptors_check(struct xen *x, u64 mfn)
{
    u64 *d = xen_table(x, mfn);

    for (unsigned i = 0; i < 512; i++)
        if (!descriptor_fix(&d[i]))
            return -XEN_EINVAL;
    return 0;
}

/* -- Frames --------------------------------------------------------------------------------------------------- */

static int get(struct xen *x, u64 mfn, enum frame_type type, u8 group)
{
    if (mfn >= x->nr_frames)
        return -XEN_EINVAL;

    struct frame *p = &x->frame[mfn];
    int r = 0;

    if (p->count) {
        if (p->type != type || p->count == ~0u)
            return -XEN_EINVAL;
        p->count++;
        if (is_table(type))
            group_join(x, mfn, group);
        return 0;
    }
    p->type = (u8)type;
    p->count = 1;
    if (type == FRAME_WRITABLE)
        return 0;
    group_set(p, type == FRAME_L4 ? group_new(x) : is_table(type) ? group : 0);
    /* Whoever could write it a moment ago may still have a mapping that was not flushed. */
    p->busy = true;
    if (x->holder) { /* it may wait for other vCPUs */
        pthread_mutex_unlock(&x->mmu);
        vitro_vcpu_unwrite_page(x->holder, mfn << PAGE_SHIFT);
        pthread_mutex_lock(&x->mmu);
    }
    p->busy = false;
    r = type == FRAME_GONE ? 0 : type == FRAME_DESC ? descriptors_check(x, mfn) : table_check(x, mfn, type);
    if (r) {
        p->count = 0;
        group_put(x, mfn);
        p->type = FRAME_NONE;
    }
    return r;
}

static void put(struct xen *x, u64 mfn)
{
    struct frame *p = mfn < x->nr_frames ? &x->frame[mfn] : NULL;

    if (!p || !p->count)
        return; /* a table was written behind our back, by a device: the guest's own harm */
    p->count--;
    group_put(x, mfn);
    if (p->count)
        return;

    unsigned type = p->type;
    p->kernel = false;
    if (type == FRAME_L4)
        half_forget(x, mfn);
    p->type = FRAME_NONE;
    if (is_table(type))
        table_drop(x, mfn, type);
}

int frame_get(struct xen *x, u64 mfn, enum frame_type type)
{
    pthread_mutex_lock(&x->mmu);
    int r = get(x, mfn, type, 0);
    pthread_mutex_unlock(&x->mmu);
    return r;
}

void frame_put(struct xen *x, u64 mfn)
{
    pthread_mutex_lock(&x->mmu);
    put(x, mfn);
    pthread_mutex_unlock(&x->mmu);
}

/* -- Changing one entry ------------------------------------------------------------------------------------------ */

/*
 * entry_write - entry `i` of the table `mfn` becomes `e`. keep_ad: but for A and D. soft: a page that may not be writable is
 * mapped without that right. only_from: if it is that now, else STALE and nothing is changed; NULL: whatever it is.
 */
#define STALE 1
static int entry_write(struct xen *x, u64 mfn, unsigned i, u64 e, bool keep_ad, bool soft, const u64 *only_from)
{
    unsigned level = x->frame[mfn].type;
    u64 *at = xen_table(x, mfn) + i, old = __atomic_load_n(at, __ATOMIC_RELAXED), new;

    if (in_hole(level, i))
        return -XEN_EINVAL;
    if (only_from && old != *only_from)
        return STALE;

    bool same = (e & PTE_P) && (old & PTE_P) && PTE_MFN(e) == PTE_MFN(old) && !((e ^ old) & PTE_W) &&
                (level == 1 || !(e & PTE_PS));

    if (!same) {
        u8 group = group_for(x, mfn, level, i, e);
        int r = entry_get(x, level, e, group);
        if (r && soft && level == 1 && (e & PTE_W)) {
            e &= ~PTE_W;
            r = entry_get(x, level, e, group);
        }
        if (r)
            return r;
    }
    for (;;) {
        new = keep_ad ? (e & ~AD) | (old & AD) : e;
        if (__atomic_compare_exchange_n(at, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            break;
        if (only_from) { /* the walker set A or D */
            if (!same)
                entry_put(x, level, e);
            return STALE;
        }
    }
    group_entry(x, mfn, level, i, old, new);
    if (level == 4 && i >= FIRST_KERNEL)
        half_forget(x, mfn);
    if (level > 1 && (new & PTE_P) && links_kernel(x, mfn, level, i))
        kernel_mark(x, PTE_MFN(new), level - 1);
    if (kernel_entry(x, mfn, level, i, old, new)) {
        if (soft || !x->holder) {
            kernel_changed(x);
        } else { /* it may wait for other vCPUs; the page is still counted as the old entry's */
            pthread_mutex_unlock(&x->mmu);
            vitro_vcpu_unwrite_page(x->holder, PTE_MFN(old) << PAGE_SHIFT);
            pthread_mutex_lock(&x->mmu);
        }
    }
    if (!same)
        entry_put(x, level, old);
    return 0;
}

/* Without x->mmu. -XEN_ENOENT: it is no table. */
static int table_write(struct xen *x, u64 mfn, unsigned i, u64 e, bool keep_ad)
{
    int r = -XEN_ENOENT;

    pthread_mutex_lock(&x->mmu);
    if (mfn < x->nr_frames && x->frame[mfn].count && is_table(x->frame[mfn].type))
        r = entry_write(x, mfn, i, e, keep_ad, false, NULL);
    pthread_mutex_unlock(&x->mmu);
    return r;
}

int mmu_entry_write(struct xen *x, u64 mfn, unsigned i, u64 e)
{
    return table_write(x, mfn, i, e, false) ? -XEN_EINVAL : 0;
}

s64 mmu_list(const struct xen_call *c)
{
    if ((u16)c->a[3] != XEN_DOMID_SELF)
        return -XEN_EPERM;
    return (u32)c->a[1] > 1u << 20 ? -XEN_E2BIG : 0;
}

s64 mmu_list_end(struct xen_call *c, u64 done, s64 r)
{
    u32 out = (u32)done;
    return c->a[2] && vitro_vcpu_copy_out(c->cpu->vcpu, c->a[2], &out, sizeof(out)) ? -XEN_EFAULT : r;
}

s64 xen_mmu_update(struct xen *x, struct xen_call *c)
{
    u64 list = c->a[0], count = (u32)c->a[1], done = 0;
    s64 r = mmu_list(c);

    if (r)
        return r;
    for (; done < count; done++) {
        struct xen_mmu_update u;
        if (vitro_vcpu_copy_in(c->cpu->vcpu, list + done * sizeof(u), &u, sizeof(u))) {
            r = -XEN_EFAULT;
            break;
        }
        unsigned cmd = u.ptr & 3;
        u64 mfn = u.ptr >> PAGE_SHIFT;
        if (mfn >= x->nr_frames || (cmd != XEN_MMU_MACHPHYS_UPDATE && (u.ptr & 4))) {
            r = -XEN_EINVAL;
            break;
        }
        if (cmd == XEN_MMU_MACHPHYS_UPDATE) {
            x->m2p[mfn] = u.val;
        } else if (cmd == XEN_MMU_NORMAL_PT_UPDATE || cmd == XEN_MMU_PT_UPDATE_PRESERVE_AD) {
            r = table_write(x, mfn, u.ptr >> 3 & 511, u.val, cmd == XEN_MMU_PT_UPDATE_PRESERVE_AD);
            if (r == -XEN_ENOENT) {
                r = frame_get(x, mfn, FRAME_WRITABLE);
                if (!r) {
                    __atomic_store_n(xen_table(x, mfn) + (u.ptr >> 3 & 511), u.val, __ATOMIC_SEQ_CST);
                    vitro_vcpu_vectors_away(x->holder);
                    ram_written(x->c.ram, u.ptr & ~7ull, 8);
                    vitro_vcpu_vectors_back(x->holder);
                    frame_put(x, mfn);
                }
            }
        } else {
            r = -XEN_ENOSYS;
        }
        if (r)
            break;
    }
    return mmu_list_end(c, done, r);
}

/* The level 1 table that maps va in the current address space, as far as there is one. */
bool mmu_table_of(struct xen *x, u64 cr3, u64 va, u64 *mfn)
{
    u64 t = cr3 >> PAGE_SHIFT;

    for (unsigned level = 4; level > 1; level--) {
        if (t >= x->nr_frames || x->frame[t].type != level)
            return false;
        u64 e = xen_table(x, t)[va >> (12 + 9 * (level - 1)) & 511];
        if (!(e & PTE_P) || in_hole(level, va >> (12 + 9 * (level - 1)) & 511))
            return false;
        t = PTE_MFN(e);
    }
    *mfn = t;
    return t < x->nr_frames && x->frame[t].type == FRAME_L1;
}

/* -- Stores into page tables that are mapped without the right to ------------------------------------------------------- */

/* A guess, without a lock: xen_mmio_write() looks again. */
bool xen_write_fault(void *opaque, unsigned vcpu, u64 gpa)
{
    struct xen *x = opaque;
    u64 mfn = gpa >> PAGE_SHIFT;

    (void)vcpu;
    return mfn < x->nr_frames && __atomic_load_n(&x->frame[mfn].count, __ATOMIC_RELAXED) &&
           __atomic_load_n(&x->frame[mfn].type, __ATOMIC_RELAXED) == FRAME_L1;
}

/* memcpy() takes vector registers. */
static void bytes_copy(void *to, const void *from, unsigned len)
{
    for (unsigned i = 0; i < len; i++)
        ((volatile u8 *)to)[i] = ((const u8 *)from)[i];
}

void xen_mmio_read(void *opaque, unsigned vcpu, gpa_t gpa, void *buf, unsigned len)
{
    struct xen *x = opaque;
    const u64 ones = ~0ull;

    (void)vcpu;
    if (gpa < x->c.size && len <= x->c.size - gpa)
        bytes_copy(buf, x->c.host + gpa, len);
    else
        for (unsigned i = 0; i < len; i += 8)
            bytes_copy((u8 *)buf + i, &ones, MIN(len - i, 8u));
}

/*
 * An entry that may not be there is not written, and the guest's kernel gets the page fault. The walker may set A and D of
 * the entry at any time: what the instruction did not write, or read before it did, must still be so.
 */
void xen_mmio_write(void *opaque, unsigned vcpu, gpa_t gpa, const void *buf, unsigned len)
{
    struct xen *x = opaque;
    struct vitro_vcpu *v = x->cpu[vcpu].vcpu;
    const u8 *before = vitro_vcpu_store_before(v);
    u64 mfn = gpa >> PAGE_SHIFT, at = gpa & ~7ull;
    int r = 0;

    pthread_mutex_lock(&x->mmu);
    if (mfn >= x->nr_frames || x->frame[mfn].type != FRAME_L1)
        r = -XEN_EINVAL;
    while (at < gpa + len && !r) {
        u64 *entry = (u64 *)(x->c.host + at), was = __atomic_load_n(entry, __ATOMIC_RELAXED), e = was;
        u64 from = MAX(at, gpa), to = MIN(at + 8, gpa + len);
        bytes_copy((u8 *)&e + (from - at), (const u8 *)buf + (from - gpa), (unsigned)(to - from));
        if (before)
            bytes_copy((u8 *)&was + (from - at), before + (from - gpa), (unsigned)(to - from));
        if (x->frame[mfn].busy) /* what is there will be looked at */
            __atomic_store_n(entry, e, __ATOMIC_SEQ_CST);
        else
            r = entry_write(x, mfn, at >> 3 & 511, e, false, true, before || to - from < 8 ? &was : NULL);
        if (r == STALE && !before)
            r = 0; /* once more */
        else
            at += 8;
    }
    pthread_mutex_unlock(&x->mmu);
    if (r == STALE)
        vitro_vcpu_store_again(v);
    else if (r)
        vitro_vcpu_refuse_store(v);
}
