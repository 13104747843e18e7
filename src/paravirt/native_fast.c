/*
 * native_fast.c - contract 2, Vitro's own ABI: calls so short that saving the vector registers would be most of them.
 */
#include "paravirt/inner.h"
#include "paravirt/native_inner.h"
#include "x86/x86.h"

/* -- One short range in the current tables ------------------------------------------------------------------------- */

#define FEW 16 /* pages: beyond, the vector registers are the smaller part of it */
#define PA_MASK 0x000ffffffffff000ull

/* As ram_dma_ptr(). *slot: the one used last, tried first. */
static inline u8 *at(const struct ram *ram, const struct ram_slot **slot, u64 pa, u64 len)
{
    const struct ram_slot *s = *slot;
    if (unlikely(pa - s->gpa >= s->size)) {
        unsigned i = 0;
        while (i < ram->nr_slots && pa - ram->slot[i].gpa >= ram->slot[i].size)
            i++;
        if (i == ram->nr_slots)
            return NULL;
        *slot = s = &ram->slot[i];
    }
    return !s->readonly && len <= s->size - (pa - s->gpa) ? s->host + (pa - s->gpa) : NULL;
}

/* The page table of va, if there is one of 4 KiB pages. */
static inline u64 *page_table(const struct ram *ram, const struct ram_slot **slot, u64 cr3, u64 va)
{
    u64 *table = (u64 *)at(ram, slot, cr3 & PA_MASK, PAGE_SIZE);
    for (unsigned shift = 39; shift > 12; shift -= 9) {
        u64 entry = table ? __atomic_load_n(&table[va >> shift & 511], __ATOMIC_RELAXED) : 0;
        if ((entry & (PTE_P | PTE_PS)) != PTE_P)
            return NULL;
        table = (u64 *)at(ram, slot, entry & PA_MASK, PAGE_SIZE);
    }
    return table;
}

/* Another vCPU's walker may be setting A and D. */
static void change(u64 *pte, u32 nr, u64 clear, u64 set, bool alone)
{
    for (u32 i = 0; i < nr; i++) {
        u64 old = __atomic_load_n(&pte[i], __ATOMIC_RELAXED);
        if (alone) {
            if (old & PTE_P)
                __atomic_store_n(&pte[i], (old & ~clear) | set, __ATOMIC_RELAXED);
            continue;
        }
        while (old & PTE_P && !__atomic_compare_exchange_n(&pte[i], &old, (old & ~clear) | set, true, __ATOMIC_SEQ_CST,
                                                           __ATOMIC_RELAXED))
            ;
    }
}

/*
 * MAP, UNMAP, PROTECT of one range of a few pages in the tables of CR3: what native_mem.c does, for the case that all is
 * in order and nothing is to be made. Anything else is left to it: false, and nothing was done. Takes no lock: processors
 * that edit the same entries at once get a mixture, as with stores of their own.
 */
static bool few_pages(struct paravirt *pv, const struct vitro_hypercall *call, u32 nr)
{
    struct native *n = pv->native;
    const struct ram *ram = n->c.ram;
    const struct ram_slot *slot = &ram->slot[0];
    struct vitro_vcpu *vcpu = pv->cpu[call->vcpu].vcpu;
    struct vt_range *item, r;
    struct vitro_paging p;

    if (call->gpr[7] || call->gpr[2] != 1 || call->gpr[6] & 7)
        return false;
    item = (struct vt_range *)at(ram, &slot, call->gpr[6], sizeof(*item));
    if (!item)
        return false;
    r.va = __atomic_load_n(&item->va, __ATOMIC_RELAXED);
    r.pa = __atomic_load_n(&item->pa, __ATOMIC_RELAXED);
    r.pages = __atomic_load_n(&item->pages, __ATOMIC_RELAXED);
    r.flags = __atomic_load_n(&item->flags, __ATOMIC_RELAXED);
    u64 first = r.va >> PAGE_SHIFT & 511;
    if (__atomic_load_n(&item->reserved, __ATOMIC_RELAXED) || r.va & ~PAGE_MASK || !r.pages || r.pages > FEW ||
        r.pages > 512 - first || (u64)((s64)(r.va << 16) >> 16) != r.va)
        return false;
    if (nr != VT_UNMAP && r.flags & ~(VT_W | VT_U | VT_X | VT_G))
        return false;
    if (nr == VT_MAP && (r.pa & ~PAGE_MASK || !at(ram, &slot, r.pa, (u64)r.pages << PAGE_SHIFT)))
        return false;
    vitro_vcpu_get_paging(vcpu, &p);
    if (!(p.cr0 & CR0_PG) || !(p.efer & EFER_LMA))
        return false;
    u64 bits = (r.flags & VT_W ? PTE_W : 0) | (r.flags & VT_U ? PTE_U : 0) | (r.flags & VT_G ? PTE_G : 0) |
               (r.flags & VT_X || !(p.efer & EFER_NXE) ? 0 : PTE_NX);
    u64 *pte = page_table(ram, &slot, p.cr3, r.va), any = 0;
    if (pte) {
        pte += first;
        for (u32 i = 0; i < r.pages; i++)
            any |= __atomic_load_n(&pte[i], __ATOMIC_RELAXED);
    }
    bool ok = pte && (nr != VT_MAP || !(any & PTE_P)) && !(any & PTE_G); /* global ones are flushed differently */
    if (ok && nr == VT_MAP)
        for (u32 i = 0; i < r.pages; i++)
            __atomic_store_n(&pte[i], (r.pa + ((u64)i << PAGE_SHIFT)) | bits | PTE_P, __ATOMIC_RELAXED);
    else if (ok)
        change(pte, r.pages, nr == VT_UNMAP ? ~0ull : PTE_W | PTE_U | PTE_G | PTE_NX, nr == VT_UNMAP ? 0 : bits,
               n->c.nr_cpus == 1);
    if (!ok)
        return false;
    if (nr != VT_MAP) {
        const struct vitro_flush f = { r.va, r.pages, p.cr4 & CR4_PCIDE ? (unsigned)(p.cr3 & ~PAGE_MASK) : 0, false };
        vitro_vcpu_flush_pages(vcpu, f.pcid, f.va, f.pages, f.global);
        if (n->c.nr_cpus > 1)
            vitro_vcpu_flush_others(vcpu, &f, 1);
    }
    __atomic_store_n(&item->result, 0, __ATOMIC_RELAXED);
    call->gpr[0] = 1;
    return true;
}

/* TIMER_SET of a timer that was set before, as native_event.c has it. machine/clock.c is compiled like this file. */
static bool set_timer(struct native *n, struct vitro_vcpu *vcpu, const u64 *gpr)
{
    u64 timer = gpr[7], deadline = gpr[6], period = gpr[2], port = gpr[1];

    if (!n->c.clock || timer >= VT_TIMERS || port >= VT_PORTS || deadline > INT64_MAX || period > INT64_MAX / 2 ||
        (period && period < VT_TIMER_MIN_NS) || pthread_mutex_trylock(&n->lock))
        return false;
    struct native_timer *t = &n->timer[timer];
    bool ok = t->ready;
    if (ok)
        native_timer_arm(n, t, deadline, period, port, vitro_vcpu_tsc(vcpu));
    pthread_mutex_unlock(&n->lock);
    return ok;
}

/* -- Events --------------------------------------------------------------------------------------------------------- */

/*
 * EVENT_SEND to a vCPU whose thread is awake: as native_event.c has it. A thread that falls asleep meanwhile says so, then looks for
 * what we set; we look for that last. Then it is to be woken, which is done the long way: as an upcall that was not yet.
 */
static bool send_event(struct paravirt *pv, u64 port)
{
    struct native *n = pv->native;
    struct vt_events *page = __atomic_load_n(&n->events, __ATOMIC_ACQUIRE);
    if (port >= VT_PORTS || !page)
        return false;
    unsigned to = __atomic_load_n(&n->bind[port], __ATOMIC_RELAXED);
    struct pv_vcpu *cpu = &pv->cpu[to];
    u64 bit = BITULL(port & 63);
    if (!cpu->vcpu || __atomic_load_n(&cpu->asleep, __ATOMIC_RELAXED))
        return false;
    /* The other has written all three since: they come from its core one after the other else, as long as all the rest takes. */
    prefetch_write(&page->pending[port >> 6]);
    prefetch_write(&page->vcpu[to].upcall);
    prefetch_write(&n->cpu[to].upcall);
    __atomic_fetch_or(&page->pending[port >> 6], bit, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&page->mask[port >> 6], __ATOMIC_SEQ_CST) & bit || !__atomic_load_n(&n->cpu[to].vector, __ATOMIC_SEQ_CST) ||
        __atomic_exchange_n(&page->vcpu[to].upcall, 1, __ATOMIC_SEQ_CST) == 1)
        return true;
    __atomic_store_n(&n->cpu[to].upcall, true, __ATOMIC_SEQ_CST);
    vitro_vcpu_kick(cpu->vcpu, VITRO_KICK_INTR);
    if (likely(!__atomic_load_n(&cpu->asleep, __ATOMIC_SEQ_CST)))
        return true;
    __atomic_store_n(&page->vcpu[to].upcall, 0, __ATOMIC_SEQ_CST);
    return false;
}

int native_upcall(struct native *n, unsigned vcpu)
{
    if (vcpu >= n->c.nr_cpus || !__atomic_load_n(&n->cpu[vcpu].upcall, __ATOMIC_RELAXED) ||
        !__atomic_exchange_n(&n->cpu[vcpu].upcall, false, __ATOMIC_SEQ_CST))
        return -1;
    const struct vt_events *page = __atomic_load_n(&n->events, __ATOMIC_ACQUIRE);
    if (page) { /* what its handler begins with */
        prefetch_write(&page->pending[0]);
        prefetch_write(&page->vcpu[vcpu].upcall);
    }
    unsigned vector = __atomic_load_n(&n->cpu[vcpu].vector, __ATOMIC_SEQ_CST);
    return vector ? (int)vector : -1;
}

enum vitro_hc native_hypercall_fast(struct paravirt *pv, const struct vitro_hypercall *call, u32 nr)
{
    struct native *n = pv->native;
    u64 space = call->gpr[7];

    if (call->cpl || !call->code64)
        return VITRO_HC_SLOW;
    switch (nr) {
    case VT_NOP:
        call->gpr[0] = 0;
        return VITRO_HC_DONE;
    case VT_BALLOON_SIZE:
        call->gpr[0] = __atomic_load_n(&n->nr_balloon, __ATOMIC_RELAXED);
        return VITRO_HC_DONE;
    case VT_SPACE_ROOT:
        if (!space || space > VT_SPACES_MAX || !n->space[space].used)
            return VITRO_HC_SLOW;
        call->gpr[0] = n->space[space].root;
        return VITRO_HC_DONE;
    case VT_SPACE_SWITCH: {
        struct vitro_vcpu *vcpu = pv->cpu[call->vcpu].vcpu;
        struct vitro_paging p;
        vitro_vcpu_get_paging(vcpu, &p);
        if (!space || space > VT_SPACES_MAX || !n->space[space].used || !(p.cr0 & CR0_PG) || !(p.efer & EFER_LMA))
            return VITRO_HC_SLOW;
        vitro_vcpu_load_cr3(vcpu, p.cr4 & CR4_PCIDE ? n->space[space].root | space | BITULL(63) : n->space[space].root);
        call->gpr[0] = 0;
        return VITRO_HC_DONE;
    }
    case VT_TIMER_SET:
        if (!set_timer(n, pv->cpu[call->vcpu].vcpu, call->gpr))
            return VITRO_HC_SLOW;
        call->gpr[0] = 0;
        return VITRO_HC_DONE;
    case VT_EVENT_SEND:
        if (!send_event(pv, call->gpr[7]))
            return VITRO_HC_SLOW;
        call->gpr[0] = 0;
        return VITRO_HC_DONE;
    case VT_MAP:
    case VT_UNMAP:
    case VT_PROTECT:
        return few_pages(pv, call, nr) ? VITRO_HC_DONE : VITRO_HC_SLOW;
    case VT_VCPU_COUNT:
        call->gpr[0] = n->c.nr_cpus;
        return VITRO_HC_DONE;
    default:
        return VITRO_HC_SLOW;
    }
}
