/*
 * native_balloon.c - memory that the guest does not need: given to the host and taken back, or only said to be free. What is
 * in the balloon stays guest memory, and reads as zeroes; native->use knows which pages those are.
 */
#include "paravirt/native_inner.h"
#include <string.h>
#include <sys/mman.h>

enum give { GIVE, TAKE, HINT };

/* The host takes the memory back; it reads as zeroes from then on. Guest RAM is a memfd, shared. Other memory (of a
 * restored snapshot, say) cannot be given back this way, and is only cleared. */
static void drop_memory(void *host, u64 len)
{
    if (madvise(host, len, MADV_REMOVE))
        memset(host, 0, len);
}

struct balloon {
    enum give what;
    u64 pages_left;
};

static s64 balloon_one(struct native *n, unsigned vcpu, void *item, void *opaque)
{
    const struct vt_extent *x = item;
    struct balloon *b = opaque;
    u64 len = (u64)x->pages << PAGE_SHIFT, first = x->pa >> PAGE_SHIFT;
    u16 want = b->what == TAKE ? USE_BALLOON : USE_GUEST;
    s64 r = 0;

    (void)vcpu;
    if (x->pages > b->pages_left)
        return -VT_E2BIG;
    if (!x->pages || x->reserved || x->pa & ~PAGE_MASK || x->flags & ~(b->what == TAKE ? VT_FILL : 0u))
        return -VT_EINVAL;
    void *host = ram_dma_ptr(n->c.ram, x->pa, len);
    if (!host)
        return -VT_EFAULT;
    for (u64 i = 0; i < x->pages; i++)
        if (n->use[first + i] != want)
            return b->what == TAKE ? -VT_ENOENT : -VT_EEXIST;
    if (b->what != TAKE)
        drop_memory(host, len);
    else if (x->flags & VT_FILL)
        r = madvise(host, len, MADV_POPULATE_WRITE) ? -VT_ENOMEM : 0;
    if (r)
        return r;
    b->pages_left -= x->pages;
    if (b->what == HINT)
        return 0;
    for (u64 i = 0; i < x->pages; i++)
        n->use[first + i] = b->what == GIVE ? USE_BALLOON : USE_GUEST;
    __atomic_fetch_add(&n->nr_balloon, b->what == GIVE ? (u64)x->pages : -(u64)x->pages, __ATOMIC_RELAXED);
    return 0;
}

static s64 balloon(struct native *n, unsigned vcpu, enum give what, const u64 *a)
{
    struct balloon b = { .what = what, .pages_left = VT_PAGES_MAX };
    s64 done = native_batch(n, vcpu, a[0], a[1], sizeof(struct vt_extent), offsetof(struct vt_extent, result), balloon_one,
                            &b, &n->lock);

    /* What was code is zeroes now. The list is read again, within the same bounds: a guest that changes it meanwhile keeps
     * stale translations of its own code. */
    u64 left = VT_PAGES_MAX;
    for (s64 i = 0; i < done && what != TAKE; i++) {
        struct vt_extent x;
        ram_read(n->c.ram, a[0] + (u64)i * sizeof(x), &x, sizeof(x));
        if (x.pages > left || !x.pages || !ram_dma_ptr(n->c.ram, x.pa, (u64)x.pages << PAGE_SHIFT))
            break;
        left -= x.pages;
        ram_written(n->c.ram, x.pa, (u64)x.pages << PAGE_SHIFT);
    }
    return done;
}

s64 native_BALLOON_GIVE(struct native *n, unsigned vcpu, const u64 *a) { return balloon(n, vcpu, GIVE, a); }
s64 native_BALLOON_TAKE(struct native *n, unsigned vcpu, const u64 *a) { return balloon(n, vcpu, TAKE, a); }
s64 native_FREE_HINT(struct native *n, unsigned vcpu, const u64 *a) { return balloon(n, vcpu, HINT, a); }

s64 native_BALLOON_SIZE(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)vcpu, (void)a;
    return (s64)__atomic_load_n(&n->nr_balloon, __ATOMIC_RELAXED);
}
