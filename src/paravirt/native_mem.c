/*
 * native_mem.c - page tables on the guest's behalf: spaces, and batches of map, unmap, protect, flush, populate.
 *
 * Mappings live in ordinary page tables in guest RAM (SDM vol. 3 §4.5), in pages that the guest gave for it. The walker
 * stays the only authority: whatever a guest writes into its tables, here or by itself, it reaches its own RAM only.
 * So nothing below trusts a table. Each one is looked up through struct ram, walks have four levels, and pages go back
 * to the pool only if n->use says that they are tables of that space, once.
 *
 * Each range is looked at as a whole before it is changed. A guest that edits the same tables on another vCPU meanwhile
 * gets some mixture of both.
 */
#include "paravirt/native_inner.h"
#include "x86/x86.h"
#include <stdlib.h>
#include <string.h>

#define PA_MASK 0x000ffffffffff000ull
#define LARGE_SHIFT 21
#define LARGE_PAGES 512u
#define TABLE_FLAGS (PTE_P | PTE_W | PTE_U)
#define RIGHTS (VT_W | VT_U | VT_X | VT_G)
#define FLUSH_MAX VITRO_FLUSH_MAX /* ranges remembered, and */
#define FLUSH_PAGES_MAX 64 /* pages in them, before all is flushed */

/* -- The pool ----------------------------------------------------------------------------------------- */

static gpa_t pool_take(struct native *n, unsigned use)
{
    u32 page = n->pool[--n->nr_pool];
    gpa_t pa = (gpa_t)page << PAGE_SHIFT;

    n->use[page] = (u16)use;
    memset(ram_dma_ptr(n->c.ram, pa, PAGE_SIZE), 0, PAGE_SIZE);
    return pa;
}

static void pool_put(struct native *n, u64 page)
{
    bug_on(n->nr_pool == n->cap_pool);
    n->use[page] = USE_POOL;
    n->pool[n->nr_pool++] = (u32)page;
}

s64 native_TABLES_GIVE(struct native *n, unsigned vcpu, const u64 *a)
{
    u64 pa = a[0], pages = a[1];
    s64 r = 0;

    (void)vcpu;
    if (!pages || !pa || (pa & ~PAGE_MASK)) /* page 0 is what "none" looks like elsewhere */
        return -VT_EINVAL;
    if (pages > VT_PAGES_MAX)
        return -VT_E2BIG;
    if (!ram_dma_ptr(n->c.ram, pa, pages << PAGE_SHIFT))
        return -VT_EFAULT;
    pthread_mutex_lock(&n->lock);
    u64 first = pa >> PAGE_SHIFT;
    for (u64 i = 0; i < pages && !r; i++)
        if (n->use[first + i] != USE_GUEST)
            r = -VT_EEXIST;
    /* Room for every page that is a table or may be one, so that giving back never allocates. */
    if (!r) {
        u64 cap = n->cap_pool + pages;
        u32 *pool = realloc(n->pool, cap * sizeof(*pool));
        if (pool) {
            n->pool = pool;
            n->cap_pool = cap;
            for (u64 i = 0; i < pages; i++)
                pool_put(n, first + pages - 1 - i);
        } else {
            r = -VT_ENOMEM;
        }
    }
    pthread_mutex_unlock(&n->lock);
    if (!r)
        ram_written(n->c.ram, pa, pages << PAGE_SHIFT); /* they are about to be written as tables */
    return r;
}

s64 native_TABLES_TAKE(struct native *n, unsigned vcpu, const u64 *a)
{
    u64 pa = a[0], max = a[1], nr = 0;

    (void)vcpu;
    if (pa & 7)
        return -VT_EINVAL;
    if (max > VT_BATCH_MAX)
        return -VT_E2BIG;
    u64 *list = ram_dma_ptr(n->c.ram, pa, max ? max * sizeof(u64) : 1);
    if (!list)
        return -VT_EFAULT;
    pthread_mutex_lock(&n->lock);
    while (nr < max && n->nr_pool) {
        u32 page = n->pool[--n->nr_pool];
        n->cap_pool--;
        n->use[page] = USE_GUEST;
        list[nr++] = (u64)page << PAGE_SHIFT;
    }
    pthread_mutex_unlock(&n->lock);
    ram_written(n->c.ram, pa, max * sizeof(u64));
    return (s64)nr;
}

/* -- Spaces ------------------------------------------------------------------------------------------- */

static struct native_space *space_find(struct native *n, u64 space)
{
    return space && space <= VT_SPACES_MAX && n->space[space].used ? &n->space[space] : NULL;
}

/* The PCID a space's translations carry: its number, so that switching flushes nothing. */
static unsigned pcid_of(u64 space, const struct native_paging *p)
{
    if (!p->pcide)
        return 0;
    return space ? (unsigned)space : (unsigned)(p->cr3 & ~PAGE_MASK);
}

s64 native_SPACE_CREATE(struct native *n, unsigned vcpu, const u64 *a)
{
    u64 first = a[0], count = a[1], space = 1;
    struct native_paging p;
    u64 *from, *to;

    if (first > 512 || count > 512 - first)
        return -VT_EINVAL;
    n->ops.paging(n->ops.opaque, vcpu, &p);
    from = ram_dma_ptr(n->c.ram, p.cr3 & PA_MASK, PAGE_SIZE);
    if (!p.long_mode || !from)
        return -VT_EINVAL;
    pthread_mutex_lock(&n->lock);
    while (space <= VT_SPACES_MAX && n->space[space].used)
        space++;
    if (space > VT_SPACES_MAX || !n->nr_pool) {
        pthread_mutex_unlock(&n->lock);
        return -VT_ENOMEM;
    }
    gpa_t root = pool_take(n, (unsigned)space);
    to = ram_dma_ptr(n->c.ram, root, PAGE_SIZE);
    memcpy(to + first, from + first, count * sizeof(u64));
    n->space[space] = (struct native_space){ .root = root, .used = true };
    pthread_mutex_unlock(&n->lock);
    return (s64)space;
}

s64 native_SPACE_ROOT(struct native *n, unsigned vcpu, const u64 *a)
{
    struct native_space *s = space_find(n, a[0]);

    (void)vcpu;
    return s ? (s64)s->root : -VT_ENOENT;
}

s64 native_SPACE_SWITCH(struct native *n, unsigned vcpu, const u64 *a)
{
    struct native_space *s = space_find(n, a[0]);
    struct native_paging p;

    if (!s)
        return -VT_ENOENT;
    n->ops.paging(n->ops.opaque, vcpu, &p);
    if (!p.long_mode)
        return -VT_EINVAL;
    n->ops.load_root(n->ops.opaque, vcpu, p.pcide ? s->root | a[0] | BITULL(63) : s->root);
    return 0;
}

/* Tables below `table` that are of this space go to the pool, once each: a page that was met before is no longer of it,
 * so the guest cannot make this walk longer than its own memory. */
static void free_tables(struct native *n, unsigned space, gpa_t pa, unsigned level)
{
    u64 page = (pa & PA_MASK) >> PAGE_SHIFT;
    u64 *table = ram_dma_ptr(n->c.ram, page << PAGE_SHIFT, PAGE_SIZE);

    if (!table || n->use[page] != space)
        return;
    pool_put(n, page);
    for (unsigned i = 0; i < 512 && level > 1; i++) {
        u64 e = __atomic_load_n(&table[i], __ATOMIC_RELAXED);
        if ((e & (PTE_P | PTE_PS)) == PTE_P)
            free_tables(n, space, e, level - 1);
    }
}

s64 native_SPACE_DESTROY(struct native *n, unsigned vcpu, const u64 *a)
{
    struct native_paging p;
    s64 r = 0;

    n->ops.paging(n->ops.opaque, vcpu, &p);
    pthread_mutex_lock(&n->lock);
    struct native_space *s = space_find(n, a[0]);
    if (!s)
        r = -VT_ENOENT;
    else if ((p.cr3 & PA_MASK) == s->root)
        r = -VT_EBUSY;
    if (!r) {
        s->used = false;
        free_tables(n, (unsigned)a[0], s->root, 4);
    }
    pthread_mutex_unlock(&n->lock);
    if (!r) {
        n->ops.flush(n->ops.opaque, vcpu, pcid_of(a[0], &p), 0, NATIVE_ALL, false);
        n->ops.flush_others(n->ops.opaque, vcpu, NULL, 0);
    }
    return r;
}

/* -- Editing ---------------------------------------------------------------------------------------------- */

enum edit_op { EDIT_MAP, EDIT_UNMAP, EDIT_PROTECT, EDIT_FLUSH, EDIT_POPULATE };

struct edit {
    enum edit_op op;
    unsigned use;        /* what new tables are marked as */
    gpa_t root;
    bool nxe, current;
    u64 pages_left;      /* of VT_PAGES_MAX */
    u64 *frames;         /* [VT_BATCH_MAX], ours: the frames of a VT_LIST range */
    /* What the last range used, since the next is most often its neighbour: a slot of RAM, and the page table of a 2 MiB
     * region. Both stay what they are for the length of a batch, whatever the guest does to its tables. */
    const struct ram_slot *slot;
    u64 *pt, pt_region;
    /* What is to be flushed and filled after the edits, with no lock held. */
    struct {
        u64 va, pages;
        bool write, user;
    } flush[FLUSH_MAX], fill[FLUSH_MAX];
    unsigned nr_flush, nr_fill;
    u64 flush_pages;
    bool flush_all, global;
};

/* Next pieces of a range: at most up to the end of a 2 MiB page. */
static u64 piece(u64 va, u64 pages)
{
    return MIN(pages, LARGE_PAGES - (va >> PAGE_SHIFT & (LARGE_PAGES - 1)));
}

static u64 *table_of(struct native *n, u64 entry)
{
    return ram_dma_ptr(n->c.ram, entry & PA_MASK, PAGE_SIZE);
}

/* Is all of it in one slot of writable RAM? */
static bool in_ram(struct native *n, struct edit *e, u64 pa, u64 len)
{
    if (!e->slot || pa - e->slot->gpa >= e->slot->size)
        e->slot = ram_find(n->c.ram, pa);
    return e->slot && !e->slot->readonly && len <= e->slot->size - (pa - e->slot->gpa);
}

/* page_table - the page table of va, if it is remembered. */
static u64 *page_table(const struct edit *e, u64 va)
{
    return e->pt && e->pt_region == va >> LARGE_SHIFT ? e->pt : NULL;
}
static void remember(struct edit *e, u64 va, u64 *pt)
{
    e->pt = pt;
    e->pt_region = va >> LARGE_SHIFT;
}

/*
 * pd_entry - the level-2 entry of va. *missing: how many tables, PDPT and PD, it lacks (then NULL). NULL and *err: what
 * stands there is not a table of this guest's.
 */
static u64 *pd_entry(struct native *n, const struct edit *e, u64 va, unsigned *missing, s64 *err)
{
    u64 *table = table_of(n, e->root);

    *missing = 0;
    *err = 0;
    for (unsigned level = 4; level > 2; level--) {
        if (!table) {
            *err = -VT_EFAULT;
            return NULL;
        }
        u64 entry = __atomic_load_n(&table[va >> (12 + 9 * (level - 1)) & 511], __ATOMIC_RELAXED);
        if (!(entry & PTE_P)) {
            *missing = level - 2;
            return NULL;
        }
        if (entry & PTE_PS) { /* 1 GiB */
            *err = -VT_EINVAL;
            return NULL;
        }
        table = table_of(n, entry);
    }
    if (!table) {
        *err = -VT_EFAULT;
        return NULL;
    }
    return &table[va >> LARGE_SHIFT & 511];
}

/* pd_entry_make - the same, tables made as needed; the pool has them, or NULL. */
static u64 *pd_entry_make(struct native *n, const struct edit *e, u64 va)
{
    u64 *table = table_of(n, e->root);

    for (unsigned level = 4; level > 2 && table; level--) {
        u64 *at = &table[va >> (12 + 9 * (level - 1)) & 511];
        u64 entry = __atomic_load_n(at, __ATOMIC_RELAXED);
        if (!(entry & PTE_P)) {
            if (!n->nr_pool)
                return NULL;
            entry = pool_take(n, e->use) | TABLE_FLAGS;
            __atomic_store_n(at, entry, __ATOMIC_RELEASE);
        } else if (entry & PTE_PS) {
            return NULL;
        }
        table = table_of(n, entry);
    }
    return table ? &table[va >> LARGE_SHIFT & 511] : NULL;
}

static u64 rights(const struct edit *e, u32 flags)
{
    return (flags & VT_W ? PTE_W : 0) | (flags & VT_U ? PTE_U : 0) | (flags & VT_G ? PTE_G : 0) |
           (flags & VT_X || !e->nxe ? 0 : PTE_NX);
}

/* A list of frames: copied, and each looked at. */
static s64 list_check(struct native *n, struct edit *e, const struct vt_range *r)
{
    if (r->pages > VT_BATCH_MAX)
        return -VT_E2BIG;
    if (r->flags & VT_LARGE || r->pa & 7)
        return -VT_EINVAL;
    if (ram_read(n->c.ram, r->pa, e->frames, r->pages * sizeof(u64)))
        return -VT_EFAULT;
    for (u64 i = 0; i < r->pages; i++) {
        if (e->frames[i] & ~PAGE_MASK)
            return -VT_EINVAL;
        if (!in_ram(n, e, e->frames[i], PAGE_SIZE))
            return -VT_EFAULT;
    }
    return 0;
}

static s64 range_check(struct native *n, struct edit *e, const struct vt_range *r)
{
    static const u32 allowed[] = {
        [EDIT_MAP] = RIGHTS | VT_LARGE | VT_REPLACE | VT_FILL | VT_LIST,
        [EDIT_UNMAP] = ~0u,
        [EDIT_PROTECT] = RIGHTS,
        [EDIT_FLUSH] = ~0u,
        [EDIT_POPULATE] = ~0u,
    };
    u64 align = e->op == EDIT_MAP && r->flags & VT_LARGE ? BITULL(LARGE_SHIFT) : PAGE_SIZE;
    u64 last = r->va + ((u64)r->pages << PAGE_SHIFT) - 1;

    if (r->pages > e->pages_left)
        return -VT_E2BIG;
    if (!r->pages || r->reserved || r->flags & ~allowed[e->op] || r->va & (align - 1))
        return -VT_EINVAL;
    /* Both ends canonical and in the same half. */
    if (((s64)(r->va << 16) >> 16) != (s64)r->va || last < r->va || (last ^ r->va) >> 47)
        return -VT_EINVAL;
    if ((e->op == EDIT_POPULATE || (e->op == EDIT_MAP && r->flags & VT_FILL)) && !e->current)
        return -VT_EINVAL;
    if (e->op != EDIT_MAP)
        return 0;
    if (r->flags & VT_LIST)
        return list_check(n, e, r);
    if (r->pa & (align - 1) || ((u64)r->pages << PAGE_SHIFT) & (align - 1))
        return -VT_EINVAL;
    return in_ram(n, e, r->pa, (u64)r->pages << PAGE_SHIFT) ? 0 : -VT_EFAULT;
}

/* Can all of the range be mapped, and with how many new tables? */
static s64 map_check(struct native *n, struct edit *e, const struct vt_range *r)
{
    u64 va = r->va, left = r->pages, need = 0, pdpt_seen = ~0ull, pd_seen = ~0ull;
    bool large = r->flags & VT_LARGE, replace = r->flags & VT_REPLACE;

    for (u64 nr; left; left -= nr, va += nr << PAGE_SHIFT) {
        u64 *pt = large ? NULL : page_table(e, va);
        nr = piece(va, left);
        if (!pt) {
            unsigned missing;
            s64 err;
            u64 *pde = pd_entry(n, e, va, &missing, &err);
            if (err)
                return err;
            if (missing == 2 && va >> 39 != pdpt_seen) {
                pdpt_seen = va >> 39;
                need++;
            }
            if (missing && va >> 30 != pd_seen) {
                pd_seen = va >> 30;
                need++;
            }
            u64 entry = pde ? __atomic_load_n(pde, __ATOMIC_RELAXED) : 0;
            if (!(entry & PTE_P)) {
                need += !large;
                continue;
            }
            if (!replace && (large || entry & PTE_PS))
                return -VT_EEXIST;
            if (large != !!(entry & PTE_PS))
                return -VT_EINVAL;
            if (large)
                continue;
            pt = table_of(n, entry);
            if (!pt)
                return -VT_EFAULT;
            remember(e, va, pt);
        }
        if (replace)
            continue;
        pt += va >> PAGE_SHIFT & 511;
        u64 any = 0;
        for (u64 i = 0; i < nr; i++)
            any |= __atomic_load_n(&pt[i], __ATOMIC_RELAXED);
        if (any & PTE_P)
            return -VT_EEXIST;
    }
    return need <= n->nr_pool ? 0 : -VT_ENOMEM;
}

/* The page table of va, made if need be; NULL: the guest pulled a table away from under us. */
static u64 *page_table_make(struct native *n, struct edit *e, u64 va)
{
    u64 *pt = page_table(e, va), *pde = pt ? NULL : pd_entry_make(n, e, va);

    if (pt || !pde)
        return pt;
    u64 entry = __atomic_load_n(pde, __ATOMIC_RELAXED);
    if (!(entry & PTE_P)) {
        if (!n->nr_pool)
            return NULL;
        entry = pool_take(n, e->use) | TABLE_FLAGS;
        __atomic_store_n(pde, entry, __ATOMIC_RELEASE);
    }
    pt = entry & PTE_PS ? NULL : table_of(n, entry);
    if (pt)
        remember(e, va, pt);
    return pt;
}

static void map_apply(struct native *n, struct edit *e, const struct vt_range *r)
{
    u64 va = r->va, pa = r->pa, left = r->pages, bits = PTE_P | rights(e, r->flags);
    const u64 *frame = r->flags & VT_LIST ? e->frames : NULL;

    for (u64 nr; left; left -= nr, va += nr << PAGE_SHIFT, pa += nr << PAGE_SHIFT) {
        nr = piece(va, left);
        if (r->flags & VT_LARGE) {
            u64 *pde = pd_entry_make(n, e, va);
            if (!pde)
                return;
            u64 old = __atomic_exchange_n(pde, pa | bits | PTE_PS, __ATOMIC_SEQ_CST);
            e->global |= !!(old & PTE_G);
            continue;
        }
        u64 *pt = page_table_make(n, e, va);
        if (!pt)
            return;
        pt += va >> PAGE_SHIFT & 511;
        if (r->flags & VT_REPLACE)
            for (u64 i = 0; i < nr; i++)
                e->global |= !!(pt[i] & PTE_G);
        for (u64 i = 0; i < nr; i++)
            __atomic_store_n(&pt[i], (frame ? *frame++ : pa + (i << PAGE_SHIFT)) | bits, __ATOMIC_RELAXED);
    }
}

/* Unmapping and protecting: no piece of a larger page may be left. */
static s64 change_check(struct native *n, struct edit *e, const struct vt_range *r)
{
    u64 va = r->va, left = r->pages;

    for (u64 nr; left; left -= nr, va += nr << PAGE_SHIFT) {
        unsigned missing;
        s64 err;
        nr = piece(va, left);
        if (page_table(e, va))
            continue;
        u64 *pde = pd_entry(n, e, va, &missing, &err);
        if (err)
            return err;
        u64 entry = pde ? __atomic_load_n(pde, __ATOMIC_RELAXED) : 0;
        if (!(entry & PTE_P))
            continue;
        if (entry & PTE_PS) {
            if (nr != LARGE_PAGES)
                return -VT_EINVAL;
            continue;
        }
        u64 *pt = table_of(n, entry);
        if (!pt)
            return -VT_EFAULT;
        remember(e, va, pt);
    }
    return 0;
}

/* One entry that another vCPU's walker may be setting A or D in. */
static void change_entry(struct edit *e, u64 *at, u64 bits)
{
    u64 old = __atomic_load_n(at, __ATOMIC_RELAXED), now;

    do {
        if (!(old & PTE_P))
            return;
        now = e->op == EDIT_UNMAP ? 0 : (old & ~(PTE_W | PTE_U | PTE_G | PTE_NX)) | bits;
    } while (!__atomic_compare_exchange_n(at, &old, now, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    e->global |= !!(old & PTE_G);
}

static void change_apply(struct native *n, struct edit *e, const struct vt_range *r)
{
    u64 va = r->va, left = r->pages, bits = rights(e, r->flags);

    for (u64 nr; left; left -= nr, va += nr << PAGE_SHIFT) {
        u64 *pt = page_table(e, va);
        nr = piece(va, left);
        if (!pt) {
            unsigned missing;
            s64 err;
            u64 *pde = pd_entry(n, e, va, &missing, &err);
            u64 entry = pde ? __atomic_load_n(pde, __ATOMIC_RELAXED) : 0;
            if (!(entry & PTE_P))
                continue;
            if (entry & PTE_PS) {
                if (nr == LARGE_PAGES)
                    change_entry(e, pde, bits);
                continue;
            }
            pt = table_of(n, entry);
            if (!pt)
                continue;
        }
        pt += va >> PAGE_SHIFT & 511;
        for (u64 i = 0; i < nr; i++)
            change_entry(e, &pt[i], bits);
    }
}

static void flush_later(struct edit *e, const struct vt_range *r)
{
    e->flush_pages += r->pages;
    if (e->flush_pages > FLUSH_PAGES_MAX || e->nr_flush == FLUSH_MAX) {
        e->flush_all = true;
        return;
    }
    e->flush[e->nr_flush].va = r->va;
    e->flush[e->nr_flush++].pages = r->pages;
}

static void fill_later(struct edit *e, const struct vt_range *r)
{
    unsigned last = e->nr_fill - 1;
    bool write = r->flags & VT_W, user = r->flags & VT_U;

    if (e->nr_fill && e->fill[last].va + (e->fill[last].pages << PAGE_SHIFT) == r->va && e->fill[last].write == write &&
        e->fill[last].user == user) {
        e->fill[last].pages += r->pages;
        return;
    }
    if (e->nr_fill == FLUSH_MAX)
        return; /* scattered: the first touch fills */
    e->fill[e->nr_fill].va = r->va;
    e->fill[e->nr_fill].write = write;
    e->fill[e->nr_fill].user = user;
    e->fill[e->nr_fill++].pages = r->pages;
}

static s64 edit_one(struct native *n, unsigned vcpu, void *item, void *opaque)
{
    const struct vt_range *r = item;
    struct edit *e = opaque;
    s64 err = range_check(n, e, r);

    (void)vcpu;
    if (err)
        return err;
    switch (e->op) {
    case EDIT_MAP:
        err = map_check(n, e, r);
        if (err)
            return err;
        map_apply(n, e, r);
        if (r->flags & VT_REPLACE) /* else nothing was present, and that is not remembered (SDM vol. 3 §4.10.2.3) */
            flush_later(e, r);
        if (r->flags & VT_FILL)
            fill_later(e, r);
        break;
    case EDIT_UNMAP:
    case EDIT_PROTECT:
        err = change_check(n, e, r);
        if (err)
            return err;
        change_apply(n, e, r);
        flush_later(e, r);
        break;
    case EDIT_FLUSH:
        e->global = true;
        flush_later(e, r);
        break;
    case EDIT_POPULATE:
        fill_later(e, r);
        break;
    }
    e->pages_left -= r->pages;
    return 0;
}

static s64 edit(struct native *n, unsigned vcpu, enum edit_op op, const u64 *a)
{
    struct native_paging p;
    u64 frames[VT_BATCH_MAX];
    struct edit e = { .op = op, .pages_left = VT_PAGES_MAX, .frames = frames };

    n->ops.paging(n->ops.opaque, vcpu, &p);
    if (!p.long_mode)
        return -VT_EINVAL;
    e.nxe = p.nxe;
    if (a[0]) {
        struct native_space *s = space_find(n, a[0]);
        if (!s)
            return -VT_ENOENT;
        e.root = s->root;
        e.use = (unsigned)a[0];
        e.current = (p.cr3 & PA_MASK) == s->root;
    } else {
        e.root = p.cr3 & PA_MASK;
        e.use = USE_OTHER;
        e.current = true;
    }
    s64 done = native_batch(n, vcpu, a[1], a[2], sizeof(struct vt_range), offsetof(struct vt_range, result), edit_one, &e,
                            &n->lock);

    unsigned pcid = pcid_of(a[0], &p);
    if (e.flush_all)
        n->ops.flush(n->ops.opaque, vcpu, pcid, 0, NATIVE_ALL, e.global);
    struct vitro_flush list[FLUSH_MAX];
    unsigned nr = e.flush_all ? 0 : e.nr_flush;
    for (unsigned i = 0; i < nr; i++) {
        list[i] = (struct vitro_flush){ e.flush[i].va, e.flush[i].pages, pcid, e.global };
        n->ops.flush(n->ops.opaque, vcpu, pcid, e.flush[i].va, e.flush[i].pages, e.global);
    }
    if (e.flush_all || nr)
        n->ops.flush_others(n->ops.opaque, vcpu, list, nr);
    for (unsigned i = 0; i < e.nr_fill; i++)
        n->ops.populate(n->ops.opaque, vcpu, e.fill[i].va, e.fill[i].pages, e.fill[i].write,
                        e.fill[i].user);
    return done;
}

s64 native_MAP(struct native *n, unsigned vcpu, const u64 *a) { return edit(n, vcpu, EDIT_MAP, a); }
s64 native_UNMAP(struct native *n, unsigned vcpu, const u64 *a) { return edit(n, vcpu, EDIT_UNMAP, a); }
s64 native_PROTECT(struct native *n, unsigned vcpu, const u64 *a) { return edit(n, vcpu, EDIT_PROTECT, a); }
s64 native_FLUSH(struct native *n, unsigned vcpu, const u64 *a) { return edit(n, vcpu, EDIT_FLUSH, a); }
s64 native_POPULATE(struct native *n, unsigned vcpu, const u64 *a) { return edit(n, vcpu, EDIT_POPULATE, a); }
