/*
 * spaces.c - what is remembered of user code's translations when its page tables are not in use, and for how long.
 *
 * By the interface a new base pointer ends all translations. But every change of a page table comes by mmu.c, so it is known
 * whether there is anything to end. Tables of user code's half that hang together form a group, the base tables above them
 * (the kernel's and the user's) too, and a group counts the changes that a TLB must not outlive: entries taken away, exchanged,
 * or with fewer rights. A vCPU keeps the translations of a few base pointers, with the count at the time it last had none of
 * them stale, and takes them up again if the group has not changed.
 *
 * A table that is linked from two groups makes both of them mixed: of these nothing is kept. So does a count that is about to
 * wrap. All of this runs with the guest's vector registers in place; what takes a frame has x->mmu held.
 */
#include "paravirt/xen/inner.h"

#define USER_SLOTS XEN_HOLE_FIRST /* level 4 slots of user code's half */

static void changed(struct xen *x, u8 group)
{
    __atomic_fetch_add(&x->group[group].changes, 1, __ATOMIC_SEQ_CST);
}

static void mix(struct xen *x, u8 group)
{
    __atomic_store_n(&x->group[group].mixed, true, __ATOMIC_SEQ_CST);
}

u8 group_new(struct xen *x)
{
    x->last_group = (u8)(x->last_group % (NR_GROUPS - 1) + 1);
    changed(x, x->last_group);
    return x->last_group;
}

u8 group_for(struct xen *x, u64 mfn, unsigned level, unsigned i, u64 e)
{
    struct frame *p = &x->frame[mfn];
    u64 child = PTE_MFN(e);

    if (level < 4)
        return p->group;
    if (i >= USER_SLOTS || !(e & PTE_P) || !p->group)
        return 0;
    /* The second base table of a process is linked to what the first one has. */
    if (!p->grouped && child < x->nr_frames && x->frame[child].type == FRAME_L3 && x->frame[child].group)
        group_set(p, x->frame[child].group);
    p->grouped = true;
    return p->group;
}

void group_join(struct xen *x, u64 mfn, u8 group)
{
    struct frame *p = &x->frame[mfn];

    if (p->group == group || !group)
        return;
    if (p->group) {
        mix(x, p->group);
        mix(x, group);
        return;
    }
    group_set(p, group);
    for (unsigned i = 0; p->type > FRAME_L1 && i < 512; i++) {
        u64 e = xen_table(x, mfn)[i], child = PTE_MFN(e);
        if ((e & PTE_P) && child < x->nr_frames && x->frame[child].type == p->type - 1)
            group_join(x, child, group);
    }
}

void group_entry(struct xen *x, u64 mfn, unsigned level, unsigned i, u64 old, u64 new)
{
    const u64 software = PTE_G | 0x07f0000000000e00ull, more = level == 1 ? PTE_A | PTE_D | PTE_W : PTE_A;
    const struct frame *p = &x->frame[mfn];

    if (!(old & PTE_P) || (!((old ^ new) & ~(software | more)) && !(old & ~new & more)))
        return;
    if (level == 4 ? i >= USER_SLOTS : p->kernel) {
        if (level > 1 || (old & PTE_U)) /* pages of the upper half that user code may use are in all of them */
            changed(x, GROUP_ALL);
        return;
    }
    if (p->group)
        changed(x, p->group);
}

void group_put(struct xen *x, u64 mfn)
{
    struct frame *p = &x->frame[mfn];

    if (p->count && !(p->count == 1 && p->pinned && p->type == FRAME_L1))
        return;
    if (p->group)
        changed(x, p->group);
    group_set(p, 0);
    p->grouped = false;
}

/* -- Of a vCPU -------------------------------------------------------------------------------------------------------- */

/* Neither ever goes back. */
static u64 count_of(const struct xen *x, u8 group)
{
    return __atomic_load_n(&x->group[group].changes, __ATOMIC_SEQ_CST) +
           __atomic_load_n(&x->group[GROUP_ALL].changes, __ATOMIC_SEQ_CST);
}

/* Nothing of `s` needs to be forgotten. What changes from here on is the next one's to find. */
static bool fresh(const struct xen *x, struct user_space *s)
{
    u8 group = s->root ? __atomic_load_n(&x->frame[s->root].group, __ATOMIC_RELAXED) : 0;
    u64 now = count_of(x, group);
    bool same = group && s->group == group && s->seen == now && !__atomic_load_n(&x->group[group].mixed, __ATOMIC_SEQ_CST);

    s->group = group;
    s->seen = now;
    return same;
}

void space_refresh(struct xen_cpu *c)
{
    vitro_vcpu_flush_user(c->vcpu, fresh(c->xen, &c->space[c->space_now]));
}

void space_flushed(struct xen_cpu *c)
{
    fresh(c->xen, &c->space[c->space_now]);
}

/* The one of this root, or else the last one whose root is gone (its tables are still in the host's caches), or the oldest. */
static unsigned space_for(const struct xen_cpu *c, u64 root)
{
    unsigned oldest = 0, gone = NR_USER_SPACES;

    for (unsigned i = 0; i < NR_USER_SPACES; i++) {
        const struct user_space *s = &c->space[i];
        if (s->root == root)
            return i;
        if (s->used < c->space[oldest].used)
            oldest = i;
        if (s->used && c->xen->frame[s->root].group != s->group && (gone == NR_USER_SPACES || s->used > c->space[gone].used))
            gone = i;
    }
    return gone < NR_USER_SPACES ? gone : oldest;
}

void space_switch(struct xen_cpu *c)
{
    u64 root = c->user_cr3 >> PAGE_SHIFT;

    if (!root) /* nothing runs there until it has tables again */
        return;
    unsigned at = space_for(c, root);
    bool known = c->space[at].root == root;
    c->space[at].root = root;
    c->space[at].used = ++c->space_clock;
    c->space_now = at;
    bool keep = fresh(c->xen, &c->space[at]) && known;
    vitro_vcpu_user_space(c->vcpu, (u16)(at + 1), keep);
}
