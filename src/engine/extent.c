/*
 * extent.c - extents: what kernel code outside 64-bit mode asks before the TLB. What they are, and when they go: tlb.h.
 *
 * Not modelled: neighbouring large pages that lie together in RAM are not one extent.
 */
#include "engine/engine.h"
#include "engine/mmu.h"
#include "engine/tlb.h"

#define WRITE_MAX (4ull << 20) /* of what may be written: each page is noted */
#define EXTENT_MIN 1024u

static struct loop_entries *entries(const struct vcpu *v) { return (struct loop_entries *)(v->eng->space[0].base + OFF_KLOOP); }

static void extent_forget(struct extent *e)
{
    e->start = TLB_NOWHERE;
    e->limit = 0;
}
void extent_clear(struct loop_entries *l)
{
    for (unsigned i = 0; i < NR_EXTENT; i++)
        l->extent[i] = (struct extent){ .start = TLB_NOWHERE };
    l->low[0] = l->low[1] = 0;
}

void extent_unwrite(struct vcpu *v, u64 host, u64 len)
{
    struct extent *e = entries(v)->extent;
    for (unsigned i = EXTENT_WRITE; i < NR_EXTENT; i += EXTENT_STACK)
        if (e[i].limit && host < e[i].host + e[i].limit + EXTENT_ACCESS && e[i].host < host + len)
            extent_forget(&e[i]);
}

/*
 * What may be written around `at`, where no code is: [*lo, *hi) at first what may be at most. With one vCPU data beside code may be
 * written too: who makes a translation of it takes the extent away (page_add() in cache.c).
 */
static void without_code(struct vm *vm, const struct ram_slot *rs, gpa_t at, gpa_t *lo, gpa_t *hi)
{
    gpa_t first = at & PAGE_MASK, behind = first + PAGE_SIZE;
    unsigned from, to;
    const u8 *state = rs->page_state - (rs->gpa >> PAGE_SHIFT);
    bool within = !vm->smp;
    if (!within && state[first >> PAGE_SHIFT]) {
        *hi = *lo;
        return;
    }
    engine_lock(vm);
    cache_gap(vm->cache, at, &from, &to);
    while (!from && first > *lo && !state[(first >> PAGE_SHIFT) - 1])
        first -= PAGE_SIZE;
    while (to == PAGE_SIZE && behind < *hi && !state[behind >> PAGE_SHIFT])
        behind += PAGE_SIZE;
    gpa_t begin = first + from, end = behind - PAGE_SIZE + to;
    if (within && !from && first > *lo && state[(first >> PAGE_SHIFT) - 1] == PAGE_HAS_CODE) {
        unsigned none;
        cache_gap(vm->cache, first - 1, &from, &none);
        begin = first - PAGE_SIZE + from;
    }
    if (within && to == PAGE_SIZE && behind < *hi && state[behind >> PAGE_SHIFT] == PAGE_HAS_CODE) {
        unsigned none;
        cache_gap(vm->cache, behind, &none, &to);
        end = behind + to;
    }
    engine_unlock(vm);
    *lo = begin;
    *hi = end;
}

void extent_make(struct vcpu *v, struct extent *e, gla_t la, unsigned acc)
{
    struct vm *vm = v->vm;
    struct mmu_span span;
    struct loop_entries *l = entries(v);
    u64 *low = acc & ACC_W ? NULL : &l->low[(e - l->extent) / EXTENT_STACK];
    e->misses = 0;
    extent_forget(e);
    if (low)
        *low = 0;
    if (vcpu_has_outer(v) || v->a20_off || (vm->debug & VITRO_DEBUG_SLOW_PATH) || v->eng->nr_watch || (v->dr[7] & 0xff) || la >> 32)
        return;
    if (mmu_walk(v, la, acc, &span) != X_OK)
        return;
    bool paging = v->cr0 & CR0_PG;
    struct ram_slot *rs = ram_find(&vm->ram, span.gpa);
    if (!rs || ((acc & ACC_W) && (rs->readonly || !span.writable)) || (paging && span.page_size == PAGE_SIZE))
        return;
    /* What one mapping covers, and what of that lies in the slot. */
    u64 piece = paging ? span.page_size : acc & ACC_W ? WRITE_MAX : 1ull << 32;
    gpa_t lo = span.gpa & ~(piece - 1), hi = lo + piece;
    lo = MAX(lo, rs->gpa);
    hi = MIN(hi, rs->gpa + rs->size);
    if (acc & ACC_W) {
        without_code(vm, rs, span.gpa, &lo, &hi);
        if (hi < lo + EXTENT_MIN)
            return;
        u64 first = (lo - rs->gpa) >> PAGE_SHIFT, behind = (hi - 1 - rs->gpa) >> PAGE_SHIFT;
        if (!tlb_note_writes(vm, rs, first, behind + 1 - first) && vm->smp)
            return;
    }
    l->used = 1;
    e->start = la - span.gpa + lo;
    e->host = (u64)rs->host + (lo - rs->gpa);
    if (!(acc & ACC_W))
        e->delta = e->host - e->start;
    e->limit = hi - lo - EXTENT_ACCESS;
    if (low && !e->start)
        *low = e->limit + 1;
}
