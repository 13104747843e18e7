/* tlb.c - the soft TLB and its address-space sets. Layout and invariants: tlb.h. */
#include "engine/tlb.h"

#include <sys/mman.h>
#include <unistd.h>

#include "engine/engine.h"
#include "engine/mmu.h"
#include "engine/window.h"

const struct tlb_geometry tlb_geo[NR_SLOTS] = {
    [SLOT_K] = { OFF_KTLB, ((1u << TLB_K_BITS) - 1) << TLB_ENTRY_SHIFT, OFF_KJC, ((1u << JC_K_BITS) - 1) << 1 },
    [SLOT_KAC] = { OFF_KACTLB, ((1u << TLB_KAC_BITS) - 1) << TLB_ENTRY_SHIFT, OFF_KACJC, ((1u << JC_KAC_BITS) - 1) << 1 },
    [SLOT_U] = { OFF_UTLB, ((1u << TLB_U_BITS) - 1) << TLB_ENTRY_SHIFT, OFF_UJC, ((1u << JC_U_BITS) - 1) << 1 },
    [SLOT_U32] = { OFF_UTLB, ((1u << TLB_U_BITS) - 1) << TLB_ENTRY_SHIFT, OFF_U32JC, ((1u << JC_U32_BITS) - 1) << 1 },
};
_Static_assert(sizeof(struct tlb_entry) == 1 << TLB_ENTRY_SHIFT, "emitted code scales by it");
_Static_assert(sizeof(struct jc_entry) == 16, "emitted code scales by it");
_Static_assert(sizeof(struct vcpu) <= VCPU_AREA, "struct vcpu outgrew its pages");

static struct tlb_entry *table(struct tlb_space *sp, unsigned slot)
{
    return (struct tlb_entry *)(sp->base + tlb_geo[slot].tlb_off);
}
static unsigned table_size(unsigned slot)
{
    return (tlb_geo[slot].tlb_mask >> TLB_ENTRY_SHIFT) + 1;
}

/* An entry no address can match; see tlb.h. */
static inline void entry_clear(struct tlb_entry *e, unsigned i)
{
    e->tag_r = e->tag_w = TLB_UNUSED(i);
}
static inline struct loop_entries *loops(struct tlb_space *sp, unsigned slot)
{
    return (struct loop_entries *)(sp->base + (slot == SLOT_K ? OFF_KLOOP : OFF_ULOOP));
}
static inline void copies_clear(struct loop_entries *l)
{
    for (unsigned i = 0; i < NR_LOOP; i++)
        l->entry[i].tag = l->entry[i].host = TLB_NOWHERE;
}
/* Forget the copies made from a table (tlb.h), and its extents: one of its entries changes. */
static inline void loops_clear(struct tlb_space *sp, unsigned slot)
{
    struct loop_entries *l = loops(sp, slot);
    if (slot == SLOT_KAC || likely(!l->used))
        return;
    l->used = 0;
    copies_clear(l);
    if (slot == SLOT_K)
        extent_clear(l);
}
/* The entries that may be in use: those filled since the last flush, or all if they were too many to remember. */
static inline unsigned nr_filled(const struct tlb_space *sp, unsigned slot)
{
    return sp->tlb_log[slot].n <= FILL_LOG_MAX ? sp->tlb_log[slot].n : table_size(slot);
}
static inline unsigned filled(const struct tlb_space *sp, unsigned slot, unsigned k)
{
    return sp->tlb_log[slot].n <= FILL_LOG_MAX ? sp->tlb_log[slot].index[k] : k;
}
static void table_flush(struct tlb_space *sp, unsigned slot)
{
    loops_clear(sp, slot);
    struct tlb_entry *e = table(sp, slot);
    for (unsigned k = 0, n = nr_filled(sp, slot); k < n; k++)
        entry_clear(&e[filled(sp, slot, k)], filled(sp, slot, k));
    sp->tlb_log[slot].n = 0;
}

static void jc_clear(struct tlb_space *sp, unsigned slot)
{
    struct jc_entry *e = (struct jc_entry *)(sp->base + tlb_geo[slot].jc_off);
    if (!sp->made)
        return;
    struct fill_log *log = &sp->jc_log[slot];
    unsigned n = (tlb_geo[slot].jc_mask >> 1) + 1, logged = log->n;
    log->n = 0;
    if (logged <= FILL_LOG_MAX) {
        for (unsigned k = 0; k < logged; k++)
            e[log->index[k]].rip = JC_NONE;
        return;
    }
    for (unsigned i = 0; i < n; i++)
        e[i].rip = JC_NONE;
}

/* -- Where code pages are ---------------------------------------------------------------------------- */

_Static_assert(OFF_KLOOP + 0x1000 <= PART_SIZE && OFF_KACTLB >= PART_SIZE && OFF_UWINDOW + 0x1000 == 2 * PART_SIZE, "tlb.h");
_Static_assert(OFF_UCODE + CODE_NRS * sizeof(gla_t) <= SPACE_SIZE, "tlb.h");
static gla_t *code_table(const struct tlb_space *sp) { return (gla_t *)(sp->base + OFF_UCODE); }
/* Another vCPU may forget an entry at the same time, and nothing else. */
static inline void code_forget(gla_t *at) { __atomic_store_n(at, CODE_NOWHERE, __ATOMIC_RELAXED); }
static void code_clear(struct tlb_space *sp)
{
    for (unsigned k = 0; k < sp->nr_code_log; k++) {
        code_forget(&code_table(sp)[sp->code_log[k]]);
        sp->code_logged[sp->code_log[k] >> 6] = 0;
    }
    sp->nr_code_log = 0;
}
/* What lies in the piece of 1 << shift bytes around an address. */
static void code_drop(struct tlb_space *sp, gla_t la, unsigned shift)
{
    gla_t *t = code_table(sp);
    for (unsigned k = 0; k < sp->nr_code_log; k++)
        if (!((__atomic_load_n(&t[sp->code_log[k]], __ATOMIC_RELAXED) ^ la) >> shift))
            code_forget(&t[sp->code_log[k]]);
}
void tlb_note_code(struct vcpu *v, unsigned nr, gla_t page)
{
    struct tlb_space *sp = v->space;
    gla_t *t = code_table(sp);
    if (__atomic_load_n(&t[nr], __ATOMIC_RELAXED) == page)
        return;
    __atomic_store_n(&t[nr], page, __ATOMIC_RELAXED);
    if (sp->code_logged[nr >> 6] & BITULL(nr & 63))
        return;
    sp->code_logged[nr >> 6] |= BITULL(nr & 63);
    sp->code_log[sp->nr_code_log++] = (u16)nr;
}
void tlb_forget_code(struct vm *vm, unsigned nr)
{
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        for (unsigned k = 0; vm->vcpu[i] && k < NR_SPACES; k++)
            if (vm->vcpu[i]->eng->space[k].made)
                code_forget(&code_table(&vm->vcpu[i]->eng->space[k])[nr]);
}

void jc_set(struct vcpu *v, unsigned slot, gla_t rip, void *host)
{
    struct jc_entry *e = jc_at(v, slot, rip);
    struct tlb_space *sp = slot < SLOT_U ? &v->eng->space[0] : v->space;
    struct jc_entry *table = (struct jc_entry *)(v->space->base + tlb_geo[slot].jc_off), *second = jc_second(e);
    if (e->rip == JC_NONE) { /* else it was noted */
        fill_note(&sp->jc_log[slot], (unsigned)(e - table));
    } else if (e->rip != rip) {
        if (second->rip == JC_NONE)
            fill_note(&sp->jc_log[slot], (unsigned)(second - table));
        *second = *e;
    }
    e->rip = rip;
    e->host = (u64)host;
}
void jc_flush(struct vcpu *v, unsigned slot)
{
    jc_clear(slot < SLOT_U ? &v->eng->space[0] : v->space, slot);
}
void jc_flush_space(struct tlb_space *sp, unsigned slot)
{
    jc_clear(sp, slot);
}
void jc_flush_all(struct vcpu *v)
{
    struct engine_vcpu *ev = v->eng;
    jc_clear(&ev->space[0], SLOT_K);
    jc_clear(&ev->space[0], SLOT_KAC);
    for (unsigned i = 0; i < NR_SPACES; i++) {
        jc_clear(&ev->space[i], SLOT_U);
        jc_clear(&ev->space[i], SLOT_U32);
        code_clear(&ev->space[i]);
    }
}

/*
 * A private part on a huge page, if the host has one: emitted code looks into its tables at every turn. (The shared one would be
 * resident eight times over, for a sixth of it in use.)
 */
static void want_huge(u8 *part)
{
    if (madvise(part, PAGE_SIZE, MADV_POPULATE_WRITE) == 0)
        madvise(part, PART_SIZE, MADV_COLLAPSE);
}

static void space_make(struct tlb_space *sp, bool kernel)
{
    sp->made = true;
    for (unsigned s = 0; s < NR_SLOTS; s++)
        sp->tlb_log[s].n = sp->jc_log[s].n = FILL_LOG_MAX + 1; /* all of each table */
    ((struct loop_entries *)(sp->base + OFF_ULOOP))->used = 1;
    table_flush(sp, SLOT_KAC);
    table_flush(sp, SLOT_U);
    jc_clear(sp, SLOT_U);
    jc_clear(sp, SLOT_U32);
    for (unsigned nr = 0; nr < CODE_NRS; nr++)
        code_forget(&code_table(sp)[nr]);
    if (!kernel)
        return;
    ((struct loop_entries *)(sp->base + OFF_KLOOP))->used = 1;
    table_flush(sp, SLOT_K);
    jc_clear(sp, SLOT_K);
    jc_clear(sp, SLOT_KAC);
}

struct vcpu *tlb_create(void)
{
    int fd = memfd_create("vitro-vcpu", MFD_CLOEXEC);
    if (fd < 0)
        return NULL;
    struct engine_vcpu *ev = NULL;
    if (ftruncate(fd, (1 + NR_SPACES) * (off_t)PART_SIZE) < 0)
        goto fail;
    u8 *area = mmap(NULL, NR_SPACES * SPACE_SIZE + PART_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        goto fail;
    u64 skip = -(u64)area & (PART_SIZE - 1);
    munmap(area + skip + NR_SPACES * SPACE_SIZE, PART_SIZE - skip);
    if (skip)
        munmap(area, skip);
    area += skip;
    for (unsigned i = 0; i < NR_SPACES; i++) {
        u8 *base = area + (size_t)i * SPACE_SIZE;
        if (mmap(base, PART_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
            mmap(base + PART_SIZE, PART_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (1 + i) * (off_t)PART_SIZE) == MAP_FAILED ||
            mprotect(base + SPACE_SIZE - WINDOW_ZEROS, WINDOW_ZEROS, PROT_READ) < 0)
            goto fail_map;
    }
    ev = engine_vcpu_alloc();
    if (!ev)
        goto fail_map;
    close(fd);
    struct vcpu *v = (struct vcpu *)area;
    v->self = v;
    v->eng = ev;
    for (unsigned i = 0; i < NR_SPACES; i++) {
        ev->space[i].base = area + (size_t)i * SPACE_SIZE;
        ev->space[i].clean = true;
    }
    space_make(&ev->space[0], true);
    v->space = &ev->space[0];
    v->space->used = true;
    return v;
fail_map:
    munmap(area, (size_t)NR_SPACES * SPACE_SIZE);
fail:
    close(fd);
    return NULL;
}

void tlb_destroy(struct vcpu *v)
{
    munmap(v->self, (size_t)NR_SPACES * SPACE_SIZE);
}

/* -- Large pages ---------------------------------------------------------------------------------- */

/* Bloom filters, two bits a page: kernels map all memory by large pages, and an address that is wrongly found drops a lot. */
static inline unsigned large_hash(gla_t la, unsigned shift) { return (unsigned)((la >> shift) * 0x9e3779b97f4a7c15ull >> 32); }
static inline void filter_add(u64 *bits, unsigned words, unsigned hash)
{
    unsigned a = hash & (words * 64 - 1), b = hash >> 16 & (words * 64 - 1);
    bits[a >> 6] |= BITULL(a & 63);
    bits[b >> 6] |= BITULL(b & 63);
}
static inline bool filter_has(const u64 *bits, unsigned words, unsigned hash)
{
    unsigned a = hash & (words * 64 - 1), b = hash >> 16 & (words * 64 - 1);
    return bits[a >> 6] >> (a & 63) & bits[b >> 6] >> (b & 63) & 1;
}

void tlb_note_large(struct vcpu *v, unsigned slot, gla_t la, u64 page_size)
{
    struct tlb_large *l = slot == SLOT_K ? &v->eng->k_large : &v->space->large;
    if (page_size > BITULL(BIG_SHIFT))
        filter_add(l->huge, ARRAY_SIZE(l->huge), large_hash(la, HUGE_SHIFT));
    else
        filter_add(l->big, ARRAY_SIZE(l->big), large_hash(la, BIG_SHIFT));
}
/* How much around an address a set may hold of one page: a shift, 0 for 4 KiB only. */
static inline unsigned large_shift(const struct tlb_large *l, gla_t la)
{
    if (unlikely(filter_has(l->huge, ARRAY_SIZE(l->huge), large_hash(la, HUGE_SHIFT))))
        return HUGE_SHIFT;
    return unlikely(filter_has(l->big, ARRAY_SIZE(l->big), large_hash(la, BIG_SHIFT))) ? BIG_SHIFT : 0;
}

static void table_drop_range(struct tlb_space *sp, unsigned slot, gla_t la, unsigned shift)
{
    struct tlb_entry *e = table(sp, slot);
    loops_clear(sp, slot);
    if (slot == SLOT_U)
        window_flush_pages(sp);
    for (unsigned k = 0, n = nr_filled(sp, slot); k < n; k++) {
        unsigned i = filled(sp, slot, k);
        if (!((e[i].tag_r ^ la) >> shift))
            entry_clear(&e[i], i);
    }
}
/* The linear RIP of an entry, for comparing it with `la`: code in segments that are not flat has v->cs_tag above it. */
static inline gla_t jc_linear(const struct jc_entry *e, gla_t la) { return la >> 32 ? e->rip : (u32)e->rip; }
static void jc_drop_range(struct tlb_space *sp, unsigned slot, gla_t la, unsigned shift)
{
    struct jc_entry *e = (struct jc_entry *)(sp->base + tlb_geo[slot].jc_off);
    unsigned n = (tlb_geo[slot].jc_mask >> 1) + 1;
    for (unsigned i = 0; i < n; i++) /* ... and an instruction that runs on into it */
        if (!((jc_linear(&e[i], la) ^ la) >> shift) || !(((jc_linear(&e[i], la) + INSN_MAX - 1) ^ la) >> shift))
            e[i].rip = JC_NONE;
}
/* A mapping that far links may trust is gone: they lead into the top 2 GiB, and so does a large page that they lead into. */
static void cut_far_at(struct vcpu *v, gla_t la)
{
    if ((s64)la < 0 && (s64)la == (s32)la)
        cache_cut_far(v->vm->cache);
}
static __attribute__((noinline)) void kernel_drop_range(struct vcpu *v, gla_t la, unsigned shift)
{
    struct tlb_space *sp = &v->eng->space[0];
    table_drop_range(sp, SLOT_K, la, shift);
    jc_drop_range(sp, SLOT_K, la, shift);
    jc_drop_range(sp, SLOT_KAC, la, shift);
    cut_far_at(v, la);
    engine_drop_returns(v);
}
static __attribute__((noinline)) void space_drop_range(struct vcpu *v, struct tlb_space *sp, gla_t la, unsigned shift)
{
    table_drop_range(sp, SLOT_KAC, la, shift);
    table_drop_range(sp, SLOT_U, la, shift);
    jc_drop_range(sp, SLOT_U, la, shift);
    jc_drop_range(sp, SLOT_U32, la, shift);
    code_drop(sp, la, shift);
    engine_drop_returns(v);
}

/* -- Filling -------------------------------------------------------------------------------------- */

/* Remember that an entry may write a page. With several vCPUs it is set by now, and has_code() comes next: so either
 * who claims the page finds the note, or we find the claim. */
static void wtag_note(struct vcpu *v, u64 *wtag, u64 where)
{
    unsigned w = 0;
    if (!v->vm->smp) {
        while (w < WTAG_WAYS && wtag[w] && wtag[w] != where && wtag[w] != WTAG_MANY)
            w++;
        if (w == WTAG_WAYS)
            wtag[0] = WTAG_MANY;
        else if (wtag[w] != WTAG_MANY)
            wtag[w] = where;
        return;
    }
    while (w < WTAG_WAYS) {
        u64 old = __atomic_load_n(&wtag[w], __ATOMIC_RELAXED);
        if (old == where || old == WTAG_MANY)
            return;
        if (old) {
            w++;
        } else if (__atomic_compare_exchange_n(&wtag[w], &old, where, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            return;
        }
    }
    __atomic_store_n(&wtag[0], WTAG_MANY, __ATOMIC_SEQ_CST);
}
bool tlb_note_writes(struct vm *vm, struct ram_slot *rs, u64 idx, u64 nr)
{
    u64 *wtag = &vm->wtag[rs - vm->ram.slot][idx * WTAG_WAYS];
    for (u64 i = 0; i < nr; i++)
        __atomic_store_n(&wtag[i * WTAG_WAYS], WTAG_MANY, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (u64 i = 0; i < nr; i++)
        if (__atomic_load_n(&rs->page_state[idx + i], __ATOMIC_RELAXED) & (PAGE_HAS_CODE | PAGE_MONITORED))
            return false;
    return true;
}
static inline bool has_code(struct vcpu *v, const struct ram_slot *rs, u64 idx)
{
    if (!v->vm->smp)
        return false;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&rs->page_state[idx], __ATOMIC_RELAXED) & (PAGE_HAS_CODE | PAGE_MONITORED);
}

/*
 * Of a page of data that is not global a log tells a switch what to forget: there are always some. Linux writes its own code through
 * the lower half of a space of its own (text_poke(), some thousand times in a boot), and direct-map pages that were taken away for a
 * while come back without G. Not outside 64-bit mode: extents do not ask the log.
 */
static inline bool is_local(const struct vcpu *v, const struct mmu_span *span) { return !span->global && (v->outer || vcpu_code64(v)); }

enum xret tlb_translate(struct vcpu *v, gla_t la, unsigned acc, struct tlb_ref *ref)
{
    struct mmu_span span;
    u32 revoked;
again:
    revoked = __atomic_load_n(&v->vm->revoked, __ATOMIC_ACQUIRE);
    enum xret x = mmu_walk(v, la, acc, &span);
    if (unlikely(x != X_OK)) {
        if (!vcpu_has_outer(v) || !outer_write_fault(v, la, acc, &ref->gpa))
            return x;
        ref->host = NULL;
        ref->watched = ref->evicted = false;
        return X_OK;
    }
    v->nr_walk++;
    ref->gpa = span.gpa;
    ref->watched = ref->evicted = false;
    struct ram_slot *rs = ram_find(&v->vm->ram, span.gpa);
    if (!rs || (rs->readonly && (acc & ACC_W))) {
        ref->host = NULL;
        return X_OK;
    }
    u64 idx = (span.gpa - rs->gpa) >> PAGE_SHIFT;
    ram_touch(rs, idx << PAGE_SHIFT);
    u8 *page = rs->host + (idx << PAGE_SHIFT);
    ref->host = page + (la & ~PAGE_MASK);
    bool code = __atomic_load_n(&rs->page_state[idx], __ATOMIC_RELAXED) & (PAGE_HAS_CODE | PAGE_MONITORED);
    ref->watched = code && (acc & ACC_W);
    /* Code may be remembered for this mapping even where data is not. */
    unsigned slot = tlb_slot(v, acc);
    if (slot != SLOT_K)
        v->space->clean = false;
    else if (!span.global && !is_local(v, &span))
        v->eng->k_nonglobal = true;
    if (span.page_size > PAGE_SIZE)
        tlb_note_large(v, slot, la, span.page_size);
    if (v->vm->debug & VITRO_DEBUG_SLOW_PATH || v->eng->nr_watch || (v->dr[7] & 0xff)) {
        /* Every access is to be seen: nothing may go by the fast path. Without a tag others cannot revoke the write. */
        ref->watched |= v->vm->smp && (acc & ACC_W);
        return X_OK;
    }

    struct tlb_entry *e = acc & ACC_HASHED ? tlb_at_hashed(v, slot, la) : tlb_at(v, slot, la);
    gla_t tag = la & PAGE_MASK;
    unsigned i = (unsigned)(e - table(v->space, slot));
    ref->evicted = e->tag_r != tag && e->tag_r != TLB_UNUSED(i);
    if (e->tag_r != tag || e->host != (u64)page) {
        if (e->tag_r == tag)
            loops_clear(v->space, slot);
        else if (ref->evicted && slot != SLOT_KAC && loops(v->space, slot)->used)
            copies_clear(loops(v->space, slot));
        entry_clear(e, i);
    }
    e->host = (u64)page;
    e->delta = (u64)page - tag;
    e->tag_r = tag; /* what may be written may be read */
    fill_note(&(slot == SLOT_K ? &v->eng->space[0] : v->space)->tlb_log[slot >= SLOT_U ? SLOT_U : slot], i);
    v->nr_tlb_fill++;
    if (slot == SLOT_K && is_local(v, &span))
        fill_note(&v->eng->k_local, i);
    if (span.writable && !code && !rs->readonly) {
        e->tag_w = tag;
        /* The kernel's table is one, whatever alias it was reached by. */
        u64 where = (u64)e - (slot == SLOT_K ? (u64)(v->space->base - v->eng->space[0].base) : 0);
        wtag_note(v, &v->vm->wtag[rs - v->vm->ram.slot][idx * WTAG_WAYS], where);
        if (unlikely(has_code(v, rs, idx))) { /* another vCPU claims the page right now (smp_claim) */
            e->tag_w = TLB_UNUSED(i);
            loops_clear(v->space, slot);
            ref->watched = acc & ACC_W;
        }
        if (unlikely(__atomic_load_n(&v->vm->revoked, __ATOMIC_RELAXED) != revoked)) { /* smp_revoke: perhaps this page */
            e->tag_w = TLB_UNUSED(i);
            loops_clear(v->space, slot);
            goto again;
        }
    }
    return X_OK;
}

bool tlb_guest_address(struct vcpu *v, u64 host, gla_t *la)
{
    const struct ram *ram = &v->vm->ram;
    bool ours = host - (u64)v->eng < sizeof(*v->eng);
    for (unsigned i = 0; i < ram->nr_slots; i++)
        ours |= host - (u64)ram->slot[i].host < ram->slot[i].size;
    if (window_area(v->vm, (const u8 *)host)) {
        if (!window_address(v, (const u8 *)host, la))
            *la = 0;
        return true;
    }
    if (!ours)
        return false;
    *la = 0;
    for (unsigned slot = SLOT_K; slot <= SLOT_U; slot++) {
        const struct tlb_entry *e = table(v->space, slot);
        unsigned n = table_size(slot);
        for (unsigned i = 0; i < n; i++)
            if (e[i].host == (host & PAGE_MASK) && e[i].tag_r == e[i].host - e[i].delta)
                *la = host - e[i].delta;
    }
    const struct extent *x = loops(v->space, SLOT_K)->extent;
    for (unsigned i = 0; i < NR_EXTENT; i++) {
        u64 first = i & EXTENT_WRITE ? x[i].host : x[i].start + x[i].delta;
        if (x[i].limit && host - first < x[i].limit + EXTENT_ACCESS)
            *la = host - first + x[i].start;
    }
    return true;
}

static void unwrite_table(struct vcpu *v, struct tlb_space *sp, unsigned slot, u64 host)
{
    struct tlb_entry *e = table(sp, slot);
    if (slot != SLOT_KAC && loops(sp, slot)->used)
        copies_clear(loops(sp, slot));
    if (slot == SLOT_K)
        extent_unwrite(v, host, PAGE_SIZE);
    if (slot == SLOT_U)
        window_unwrite(sp, host);
    for (unsigned k = 0, n = nr_filled(sp, slot); k < n; k++) {
        unsigned i = filled(sp, slot, k);
        if (e[i].host == host)
            e[i].tag_w = TLB_UNUSED(i);
    }
}

/* The write tag of one entry, found by address alone: which table it is in tells its index. */
static void unwrite_entry(struct vcpu *v, struct tlb_entry *e)
{
    u64 off = (u64)((u8 *)e - (u8 *)v->eng->space[0].base) % SPACE_SIZE;
    u64 tab = off >= OFF_UTLB ? OFF_UTLB : off >= OFF_KACTLB ? OFF_KACTLB : OFF_KTLB;
    e->tag_w = TLB_UNUSED((off - tab) / sizeof(*e));
    loops_clear(&v->eng->space[(u64)((u8 *)e - (u8 *)v->eng->space[0].base) / SPACE_SIZE],
                tab == OFF_UTLB ? SLOT_U : tab == OFF_KACTLB ? SLOT_KAC : SLOT_K);
}

void tlb_unwrite_page(struct vcpu *v, struct ram_slot *rs, gpa_t page)
{
    u64 idx = (page - rs->gpa) >> PAGE_SHIFT;
    u64 host = (u64)rs->host + (idx << PAGE_SHIFT);
    u64 *wtag = &v->vm->wtag[rs - v->vm->ram.slot][idx * WTAG_WAYS];
    if (wtag[0] != WTAG_MANY) {
        for (unsigned w = 0; w < WTAG_WAYS && wtag[w]; w++) {
            struct tlb_entry *e = (struct tlb_entry *)wtag[w];
            if (e->host == host && e->tag_w == host - e->delta)
                unwrite_entry(v, e);
            wtag[w] = 0;
        }
    } else {
        struct engine_vcpu *ev = v->eng;
        unwrite_table(v, &ev->space[0], SLOT_K, host);
        for (unsigned i = 0; i < NR_SPACES; i++) {
            if (ev->space[i].clean)
                continue;
            unwrite_table(v, &ev->space[i], SLOT_KAC, host);
            unwrite_table(v, &ev->space[i], SLOT_U, host);
        }
    }
    for (unsigned w = 0; w < WTAG_WAYS; w++)
        wtag[w] = 0;
}

static inline bool may_write(const struct tlb_entry *e, u64 host)
{
    return __atomic_load_n(&e->host, __ATOMIC_RELAXED) == host &&
           __atomic_load_n(&e->tag_w, __ATOMIC_RELAXED) == host - __atomic_load_n(&e->delta, __ATOMIC_RELAXED);
}
void tlb_unwrite_entry(struct vcpu *v, struct tlb_entry *e, u64 host)
{
    if (may_write(e, host))
        unwrite_entry(v, e);
}
void tlb_unwrite_all(struct vcpu *v, u64 host)
{
    struct engine_vcpu *ev = v->eng;
    unwrite_table(v, &ev->space[0], SLOT_K, host);
    for (unsigned i = 0; i < NR_SPACES; i++) {
        if (ev->space[i].clean)
            continue;
        unwrite_table(v, &ev->space[i], SLOT_KAC, host);
        unwrite_table(v, &ev->space[i], SLOT_U, host);
    }
}

void tlb_revoke_page(struct vcpu *v, struct ram_slot *rs, gpa_t page)
{
    struct vm *vm = v->vm;
    u64 idx = (page - rs->gpa) >> PAGE_SHIFT;
    u64 host = (u64)rs->host + (idx << PAGE_SHIFT);
    u64 *wtag = &vm->wtag[rs - vm->ram.slot][idx * WTAG_WAYS], where[WTAG_WAYS];
    bool many = false;
    for (unsigned w = 0; w < WTAG_WAYS; w++) {
        where[w] = __atomic_exchange_n(&wtag[w], 0, __ATOMIC_SEQ_CST);
        many |= where[w] == WTAG_MANY;
    }
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        struct vcpu *b = vm->vcpu[i];
        if (!b)
            continue;
        struct smp_vcpu *s = &b->eng->smp;
        bool direct = i == v->index || !__atomic_load_n(&s->online, __ATOMIC_SEQ_CST);
        if (many) {
            if (direct) {
                tlb_unwrite_all(b, host);
            } else {
                s->revoke_host = host;
                s->revoke_all = true;
                smp_ask(b);
            }
            continue;
        }
        u64 base = (u64)b->eng->space[0].base;
        bool ask = false;
        for (unsigned w = 0; w < WTAG_WAYS; w++) {
            struct tlb_entry *e = (struct tlb_entry *)where[w];
            /* It may be about to serve another page: then its vCPU is in C, and nothing is lost by asking. */
            if (where[w] - base >= (u64)NR_SPACES * SPACE_SIZE || !may_write(e, host))
                continue;
            if (direct) {
                unwrite_entry(b, e);
            } else {
                s->revoke_host = host;
                s->revoke[s->nr_revoke++] = e;
                ask = true;
            }
        }
        if (ask)
            smp_ask(b);
    }
}

/* -- Flushing ------------------------------------------------------------------------------------- */

static void space_flush(struct tlb_space *sp)
{
    window_flush(sp);
    if (sp->clean)
        return;
    table_flush(sp, SLOT_KAC);
    table_flush(sp, SLOT_U);
    jc_clear(sp, SLOT_U);
    jc_clear(sp, SLOT_U32);
    code_clear(sp);
    sp->large = (struct tlb_large){ 0 };
    sp->clean = true;
}
static void kernel_flush(struct vcpu *v)
{
    struct engine_vcpu *ev = v->eng;
    table_flush(&ev->space[0], SLOT_K);
    jc_clear(&ev->space[0], SLOT_K);
    jc_clear(&ev->space[0], SLOT_KAC);
    ev->k_nonglobal = false;
    ev->k_local.n = 0;
    ev->k_large = (struct tlb_large){ 0 };
    engine_drop_returns(v);
}

/* Another address space is next: what the kernel's table has of this one. */
static void kernel_flush_local(struct vcpu *v)
{
    struct engine_vcpu *ev = v->eng;
    struct fill_log *log = &ev->k_local;
    struct tlb_entry *e = table(&ev->space[0], SLOT_K);
    if (ev->k_nonglobal) {
        kernel_flush(v);
    } else if (log->n > FILL_LOG_MAX) {
        table_flush(&ev->space[0], SLOT_K);
    } else if (log->n) {
        loops_clear(&ev->space[0], SLOT_K);
        for (unsigned k = 0; k < log->n; k++)
            entry_clear(&e[log->index[k]], log->index[k]);
    }
    log->n = 0;
}

static void flush_page_in(struct tlb_space *sp, unsigned slot, gla_t la)
{
    loops_clear(sp, slot);
    if (slot == SLOT_U)
        window_flush_page(sp, la);
    const struct tlb_geometry *g = &tlb_geo[slot];
    u32 off = (la >> (12 - TLB_ENTRY_SHIFT)) & g->tlb_mask;
    struct tlb_entry *e = (struct tlb_entry *)(sp->base + g->tlb_off + off);
    entry_clear(e, off >> TLB_ENTRY_SHIFT);
    /* ... and where hashed code keeps it */
    la ^= la >> HASH_SHIFT | la << (64 - HASH_SHIFT);
    off = (la >> (12 - TLB_ENTRY_SHIFT)) & g->tlb_mask;
    e = (struct tlb_entry *)(sp->base + g->tlb_off + off);
    entry_clear(e, off >> TLB_ENTRY_SHIFT);
}
/* Entries of the page in a jump cache. The index mixes page and offset (jc_at): one page's lie in 2048 entries in a row. */
static void jc_drop_one(struct tlb_space *sp, unsigned slot, gla_t page, unsigned from)
{
    struct jc_entry *e = (struct jc_entry *)(sp->base + tlb_geo[slot].jc_off);
    struct fill_log *log = &sp->jc_log[slot]; /* the kernel's is space 0's: another has none */
    if (slot >= SLOT_U && log->n <= FILL_LOG_MAX) {
        for (unsigned k = 0; k < log->n;) {
            struct jc_entry *at = &e[log->index[k]];
            if (jc_linear(at, page) - page - from < PAGE_SIZE - from)
                at->rip = JC_NONE;
            if (at->rip == JC_NONE) /* noted again when it is used again: or pages that come and go would fill the log */
                log->index[k] = log->index[--log->n];
            else
                k++;
        }
        return;
    }
    unsigned n = (tlb_geo[slot].jc_mask >> 1) + 1, first = (unsigned)((page >> PAGE_SHIFT ^ page) >> 1) & (n - 1) & ~2047u;
    e += first;
    for (unsigned i = 0; i < MIN(n, 2048u); i++)
        if (jc_linear(&e[i], page) - page - from < PAGE_SIZE - from)
            e[i].rip = JC_NONE;
}
/* ... and those of instructions that run on into it. */
static void jc_drop_page(struct tlb_space *sp, unsigned slot, gla_t page)
{
    jc_drop_one(sp, slot, page, 0);
    jc_drop_one(sp, slot, page - PAGE_SIZE, PAGE_SIZE - INSN_MAX + 1);
}
/* code_seen - was the page ever entered as code since its last flush? A small filter with false positives. */
static bool code_seen(struct vcpu *v, gla_t page, bool user)
{
    return v->eng->code_seen[user][code_seen_hash(page) >> 6] & BITULL(code_seen_hash(page) & 63);
}

void tlb_flush_page(struct vcpu *v, gla_t la)
{
    v->eng->watched.valid = false;
    gla_t page = la & PAGE_MASK;
    unsigned shift;
    if ((shift = large_shift(&v->eng->k_large, la)))
        kernel_drop_range(v, la, shift);
    if ((shift = large_shift(&v->space->large, la)))
        space_drop_range(v, v->space, la, shift);
    flush_page_in(v->space, SLOT_K, la);
    flush_page_in(v->space, SLOT_KAC, la);
    flush_page_in(v->space, SLOT_U, la);
    bool kernel = code_seen(v, page, false), user = code_seen(v, page, true);
    if (kernel || user) {
        for (unsigned s = 0; s < NR_SLOTS; s++)
            if (s < SLOT_U ? kernel : user)
                jc_drop_page(v->space, s, page);
        if (user)
            code_drop(v->space, page, PAGE_SHIFT);
        engine_drop_returns(v);
        cut_far_at(v, page);
    } else if (unlikely(v->vm->smp) && page >> 63 && (s64)page == (s32)page) { /* by a link another vCPU made */
        engine_drop_returns(v);
        if (cache_far_near(v->vm->cache, page))
            cache_cut_far(v->vm->cache);
    }
    if (page >> 63) /* a kernel-half page may be global and user-accessible in other spaces */
        for (unsigned i = 0; i < NR_SPACES; i++) {
            struct tlb_space *sp = &v->eng->space[i];
            if (sp != v->space && !sp->clean) {
                if ((shift = large_shift(&sp->large, la)))
                    space_drop_range(v, sp, la, shift);
                flush_page_in(sp, SLOT_KAC, la);
                flush_page_in(sp, SLOT_U, la);
                if (user) {
                    jc_drop_page(sp, SLOT_U, page);
                    jc_drop_page(sp, SLOT_U32, page);
                    code_drop(sp, page, PAGE_SHIFT);
                }
            }
        }
}

static struct tlb_space *space_find(struct vcpu *v, u16 pcid)
{
    for (unsigned i = 0; i < NR_SPACES; i++)
        if (v->eng->space[i].used && v->eng->space[i].pcid == pcid)
            return &v->eng->space[i];
    return NULL;
}

void tlb_flush_page_pcid(struct vcpu *v, gla_t la, u16 pcid)
{
    v->eng->watched.valid = false;
    struct tlb_space *sp = space_find(v, pcid);
    unsigned shift;
    if (v->eng->k_nonglobal || v->eng->k_local.n) {
        if ((shift = large_shift(&v->eng->k_large, la)))
            kernel_drop_range(v, la, shift);
        flush_page_in(v->space, SLOT_K, la);
        if (code_seen(v, la & PAGE_MASK, false)) {
            jc_drop_page(v->space, SLOT_K, la & PAGE_MASK);
            jc_drop_page(v->space, SLOT_KAC, la & PAGE_MASK);
            engine_drop_returns(v);
        }
    }
    if (!sp)
        return;
    if ((shift = large_shift(&sp->large, la)))
        space_drop_range(v, sp, la, shift);
    flush_page_in(sp, SLOT_KAC, la);
    flush_page_in(sp, SLOT_U, la);
    if (code_seen(v, la & PAGE_MASK, true)) {
        jc_drop_page(sp, SLOT_U, la & PAGE_MASK);
        jc_drop_page(sp, SLOT_U32, la & PAGE_MASK);
        code_drop(sp, la, PAGE_SHIFT);
        engine_drop_returns(v);
    }
}

void tlb_flush_pcid(struct vcpu *v, u16 pcid)
{
    v->eng->watched.valid = false;
    struct tlb_space *sp = space_find(v, pcid);
    kernel_flush_local(v);
    if (!sp)
        return;
    space_flush(sp);
    engine_drop_returns(v);
    window_sync(v);
}

void tlb_flush_all(struct vcpu *v, bool global_too)
{
    v->eng->watched.valid = false;
    if (global_too)
        kernel_flush(v);
    else
        kernel_flush_local(v);
    if (global_too && v->vm && v->vm->cache)
        cache_cut_far(v->vm->cache);
    for (unsigned i = 0; i < NR_SPACES; i++)
        space_flush(&v->eng->space[i]);
    if (global_too)
        engine_zero(v->eng->code_seen, sizeof(v->eng->code_seen));
    engine_drop_returns(v);
    window_sync(v);
}

void tlb_flush_user(struct vcpu *v, bool keep)
{
    v->eng->watched.valid = false;
    kernel_flush_local(v);
    if (!keep) {
        space_flush(v->space);
        engine_drop_user_returns(v);
    }
    window_sync(v);
}

void tlb_switch(struct vcpu *v, bool noflush)
{
    tlb_switch_to(v, v->cr4 & CR4_PCIDE ? v->cr3 & 0xfff : 0, noflush);
}

void tlb_switch_to(struct vcpu *v, u16 pcid, bool noflush)
{
    v->eng->watched.valid = false;
    struct engine_vcpu *ev = v->eng;
    kernel_flush_local(v);
    struct tlb_space *sp = space_find(v, pcid);
    if (!sp) {
        sp = &ev->space[0];
        for (unsigned i = 0; i < NR_SPACES; i++) {
            struct tlb_space *c = &ev->space[i];
            if (c == v->space)
                continue;
            if (!c->used) {
                sp = c;
                break;
            }
            if (c->last_use < sp->last_use || sp == v->space)
                sp = c;
        }
        if (!sp->made) {
            if (!ev->space[0].huge) { /* the guest has processes: it is no small one */
                want_huge(ev->space[0].base + PART_SIZE);
                ev->space[0].huge = true;
            }
            want_huge(sp->base + PART_SIZE);
            space_make(sp, false);
        }
        space_flush(sp);
        sp->pcid = pcid;
        sp->used = true;
    } else if (!noflush) {
        space_flush(sp);
    }
    if (sp->cr3 != (v->cr3 & ~0xfffull)) {
        sp->cr3 = v->cr3 & ~0xfffull;
        window_forget(sp);
    }
    sp->last_use = ++ev->space_clock;
    v->space = sp;
    engine_drop_user_returns(v); /* the kernel's are as good as its jump cache: kernel_flush() dropped them if it had to */
    window_sync(v);
}
