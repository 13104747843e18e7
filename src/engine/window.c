/* window.c - user memory through the host's MMU. What windows are, and why they are safe: window.h. */
#include "engine/window.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include "engine/engine.h"
#include "engine/help.h"
#include "engine/mmu.h"
#include "engine/seg.h"

#define NEED_LEAST 2u      /* interrupts: 8 ms of user time at 250 Hz */
#define NEED_FIRST_MAX 16u  /* at most, however dear the host's mappings are */
#define NEED_CYCLES 5000   /* one more for so many cycles that the host takes to map pages */
#define NEED_MAX 2048u
#define TICK_CYCLES (1ull << 22) /* of the TSC: interrupts that come sooner than 1 to 2 ms after another say nothing */
#define AHEAD 16        /* pages mapped at once, at most */
#define LARGE_SHIFT 21
#define LARGE (1ull << LARGE_SHIFT)

/*
 * How many interrupts a process must have run for: what windows cost is their filling, and that differs by host. (Where it runs in a virtual
 * machine whose page tables are shadowed it takes four times as long as elsewhere.)
 */
static u32 need_first(const struct vm *vm)
{
    u32 need = __atomic_load_n(&vm->windows.fill_cycles, __ATOMIC_RELAXED) / NEED_CYCLES;
    return MIN(MAX(need, NEED_LEAST), NEED_FIRST_MAX);
}
/* An average of late. A vCPU may have lost its CPU meanwhile: no single one counts for much. */
static void note_fill(struct vm *vm, u64 cycles)
{
    u32 was = __atomic_load_n(&vm->windows.fill_cycles, __ATOMIC_RELAXED);
    u32 now = (u32)MIN(cycles, (u64)NEED_FIRST_MAX * NEED_CYCLES);
    __atomic_store_n(&vm->windows.fill_cycles, was - was / 16 + now / 16, __ATOMIC_RELAXED);
}

static inline u8 *slot_base(const struct vm *vm, unsigned slot)
{
    u64 first = ((u64)vm->windows.area + WINDOW_GAP + LARGE - 1) & ~(LARGE - 1);
    return (u8 *)(first + slot * (WINDOW_CHUNK + WINDOW_GAP));
}
static inline u64 distance(const struct vm *vm, unsigned chunk, unsigned slot)
{
    return (u64)slot_base(vm, slot) - ((u64)chunk << WINDOW_CHUNK_SHIFT);
}
/* What emitted code looks the distances up in. */
static inline u64 *table(const struct tlb_space *sp) { return (u64 *)(sp->base + OFF_UWINDOW); }
/* The slot of a chunk of the space; 0: nowhere. */
static inline unsigned slot_of(const struct window *w, unsigned chunk)
{
    for (unsigned i = 0; i < w->nr_chunks; i++)
        if (w->chunk[i].chunk == chunk)
            return w->chunk[i].slot;
    return 0;
}

/* The guest's vector registers may be loaded: a sanitizer's mmap() would use them. */
static s64 sys(u64 nr, const u8 *at, u64 a, u64 b, u64 c, u64 d)
{
    register u64 r10 __asm__("r10") = c, r8 __asm__("r8") = d, r9 __asm__("r9") = 0;
    s64 r = (s64)nr;
    __asm__ volatile("syscall" : "+a"(r) : "D"(at), "S"(a), "d"(b), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return r;
}
static bool unmap(const u8 *at, u64 len)
{
    return sys(SYS_mmap, at, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, ~0ull) == (s64)at;
}
static bool protect(const u8 *at, u64 len, int prot) { return !sys(SYS_mprotect, at, len, (u64)prot, 0, 0); }

/* The VM's host addresses, reserved when first wanted. */
static bool reserve(struct vm *vm)
{
    if (__atomic_load_n(&vm->windows.area, __ATOMIC_ACQUIRE))
        return true;
    u8 *p = mmap(NULL, WINDOW_AREA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), *none = NULL;
    if (p == MAP_FAILED || (u64)p < WINDOW_GAP || (u64)p + WINDOW_AREA > (1ull << 47) - WINDOW_GAP) {
        if (p != MAP_FAILED)
            munmap(p, WINDOW_AREA);
        vm->windows.off = true;
        return false;
    }
    if (!__atomic_compare_exchange_n(&vm->windows.area, &none, p, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        munmap(p, WINDOW_AREA);
    return true;
}

bool window_area(const struct vm *vm, const u8 *host)
{
    const u8 *area = __atomic_load_n(&vm->windows.area, __ATOMIC_ACQUIRE);
    return area && ((host >= area && host < area + WINDOW_AREA) || (u64)host >= WINDOW_TOP);
}

bool window_address(struct vcpu *v, const u8 *host, gla_t *la)
{
    const struct window *w = v->space->window;
    for (unsigned i = 0; w && i < w->nr_chunks; i++) {
        u64 off = (u64)(host - slot_base(v->vm, w->chunk[i].slot));
        if (off < WINDOW_CHUNK) {
            *la = ((u64)w->chunk[i].chunk << WINDOW_CHUNK_SHIFT) + off;
            return true;
        }
    }
    return false;
}

/* -- What is mapped ------------------------------------------------------------------------------------------ */

static inline unsigned place_of(gla_t key) { return (unsigned)((key >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 49) & (WINDOW_PAGES - 1); }

/* The place of a page: `la` at its start, `large` WINDOW_LARGE or 0. NULL: it is not mapped. */
static struct window_page *page_find(struct window *w, gla_t la, u64 large)
{
    for (unsigned i = place_of(la); w->page[i].la; i = (i + 1) & (WINDOW_PAGES - 1))
        if ((w->page[i].la & ~(u64)WINDOW_WRITABLE) == (la | large | WINDOW_USED))
            return &w->page[i];
    return NULL;
}
static struct window_page *page_new(struct window *w, gla_t la)
{
    unsigned i = place_of(la);
    while (w->page[i].la & WINDOW_USED)
        i = (i + 1) & (WINDOW_PAGES - 1);
    if (!w->page[i].la)
        w->nr_places++;
    return &w->page[i];
}
static inline u64 page_len(const struct window_page *p) { return p->la & WINDOW_LARGE ? LARGE : PAGE_SIZE; }

static u8 *host_of(const struct window *w, gla_t la)
{
    unsigned chunk = (unsigned)(la >> WINDOW_CHUNK_SHIFT);
    return (u8 *)(la + distance(w->v->vm, chunk, slot_of(w, chunk)));
}
static void page_drop(struct window *w, struct window_page *p)
{
    struct vm *vm = w->v->vm;
    u8 *at = host_of(w, p->la & PAGE_MASK);
    if (!unmap(at, page_len(p)) && !protect(at, page_len(p), PROT_NONE)) /* too many mappings: it must not stay */
        bug("a page of a window cannot be unmapped", __FILE__, __LINE__);
    p->la = WINDOW_GONE;
    w->drops++;
    __atomic_fetch_sub(&vm->windows.mappings, 1, __ATOMIC_RELAXED);
}

/* More was lost than windows can have gained since they were made (window_flush): by pages that came and went, and by steps. */
static bool has_lost(const struct window *w)
{
    u32 bound = 64 + 16 * w->on_ticks;
    return (w->steps > bound || w->drops > bound) && !(w->v->vm->debug & VITRO_DEBUG_WINDOWS);
}

void window_flush_page(struct tlb_space *sp, gla_t la)
{
    struct window *w = sp->window;
    if (likely(!w || !w->nr_places) || la >> 47)
        return;
    struct window_page *p = page_find(w, la & PAGE_MASK, 0);
    if (p)
        page_drop(w, p);
    p = page_find(w, la & ~(LARGE - 1), WINDOW_LARGE);
    if (p)
        page_drop(w, p);
}

void window_flush_pages(struct tlb_space *sp)
{
    struct window *w = sp->window;
    if (!w || !w->nr_chunks)
        return;
    struct vm *vm = w->v->vm;
    u32 mapped = 0;
    for (unsigned i = 0; w->nr_places && i < WINDOW_PAGES; i++)
        mapped += w->page[i].la & WINDOW_USED;
    for (unsigned i = 0; i < w->nr_chunks; i++) {
        u8 *at = slot_base(vm, w->chunk[i].slot);
        if (mapped && !unmap(at, WINDOW_CHUNK))
            bug("a window cannot be unmapped", __FILE__, __LINE__);
        table(sp)[w->chunk[i].chunk] = distance(vm, w->chunk[i].chunk, 0);
        __atomic_fetch_and(&vm->windows.slots, ~BITULL(w->chunk[i].slot), __ATOMIC_ACQ_REL);
    }
    __atomic_fetch_sub(&vm->windows.mappings, mapped, __ATOMIC_RELAXED);
    if (w->nr_places)
        engine_zero(w->page, sizeof(w->page));
    w->nr_chunks = 0;
    w->nr_places = 0;
    if (sp == w->v->space)
        window_stack(w->v);
}

void window_unwrite(struct tlb_space *sp, u64 host)
{
    struct window *w = sp->window;
    for (unsigned i = 0; w && w->nr_places && i < WINDOW_PAGES; i++) {
        struct window_page *p = &w->page[i];
        if ((p->la & (WINDOW_USED | WINDOW_WRITABLE)) == (WINDOW_USED | WINDOW_WRITABLE) && host - p->host < page_len(p))
            page_drop(w, p);
    }
}

/* -- Filling ------------------------------------------------------------------------------------------------- */

/* A free slot of the VM's; 0: there is none. */
static unsigned slot_take(struct vm *vm)
{
    u64 used = __atomic_load_n(&vm->windows.slots, __ATOMIC_RELAXED);
    unsigned slot;
    do {
        slot = ~(used | 1) ? (unsigned)__builtin_ctzll(~(used | 1)) : WINDOW_SLOTS;
        if (slot >= WINDOW_SLOTS)
            return 0;
    } while (!__atomic_compare_exchange_n(&vm->windows.slots, &used, used | BITULL(slot), false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    return slot;
}
static bool chunk_add(struct vcpu *v, struct window *w, unsigned chunk)
{
    if (w->nr_chunks == WINDOW_MAX_CHUNKS)
        return false;
    unsigned slot = slot_take(v->vm);
    while (!slot) { /* then from the space of this vCPU that was current the longest time ago */
        struct tlb_space *old = NULL;
        for (unsigned i = 0; i < NR_SPACES; i++) {
            struct tlb_space *sp = &v->eng->space[i];
            if (sp != v->space && sp->window && sp->window->nr_chunks && (!old || sp->last_use < old->last_use))
                old = sp;
        }
        if (!old)
            return false;
        window_flush_pages(old);
        slot = slot_take(v->vm);
    }
    w->chunk[w->nr_chunks].chunk = (u8)chunk;
    w->chunk[w->nr_chunks++].slot = (u8)slot;
    table(v->space)[chunk] = distance(v->vm, chunk, slot);
    window_stack(v);
    return true;
}

/*
 * How many pages from `at` on may be mapped at once: those behind it that lie behind it in RAM too, with the same rights, and were
 * used already. (The walk sets Accessed where it was not, as a CPU's that looks ahead does.)
 */
static u64 following(struct vcpu *v, struct window *w, struct ram_slot *rs, gla_t at, u64 idx, bool dirty, bool writable)
{
    u64 n = 1;
    for (; n < AHEAD && ((at >> PAGE_SHIFT) + n) % (LARGE / PAGE_SIZE) && idx + n < rs->size >> PAGE_SHIFT; n++) {
        gla_t la = at + n * PAGE_SIZE;
        struct mmu_span span;
        gpa_t gpa;
        if (page_find(w, la, 0) || !mmu_translate_debug(v, la, &gpa) || gpa != rs->gpa + ((idx + n) << PAGE_SHIFT) ||
            mmu_walk(v, la, ACC_USER | ACC_R, &span) != X_OK || span.page_size != PAGE_SIZE || span.writable != dirty ||
            (writable && !tlb_note_writes(v->vm, rs, idx + n, 1)))
            break;
    }
    return n;
}

/*
 * What the guest's kernel gives in one piece is put on one page of the host's, too: fewer TLB misses. (It has been cleared, so all of it is
 * there.) A host whose memory is in pieces may take long to find one; then that is all. Errors do not matter.
 */
#define COLLAPSE_CYCLES 3000000ull /* on average; about a millisecond, of which copying is a third */
static void make_huge(struct vm *vm, const u8 *at)
{
    if (__atomic_load_n(&vm->windows.no_huge, __ATOMIC_RELAXED))
        return;
    u64 start = host_rdtsc();
    sys(SYS_madvise, at, LARGE, MADV_COLLAPSE, 0, 0);
    u64 spent = __atomic_add_fetch(&vm->windows.huge_cycles, host_rdtsc() - start, __ATOMIC_RELAXED);
    if (spent > COLLAPSE_CYCLES * (4 + __atomic_add_fetch(&vm->windows.nr_huge, 1, __ATOMIC_RELAXED)))
        __atomic_store_n(&vm->windows.no_huge, true, __ATOMIC_RELAXED);
}

enum window_fill window_fill(struct vcpu *v, gla_t la, bool write)
{
    struct tlb_space *sp = v->space;
    struct window *w = sp->window;
    struct vm *vm = v->vm;
    struct mmu_span span;
    if (has_lost(w))
        return WINDOW_ODD;
    /* At the very end the operand may reach addresses that are not canonical, which is found out first. */
    if (la >= (1ull << 47) - PAGE_SIZE || !slot_of(w, (unsigned)(la >> WINDOW_CHUNK_SHIFT)))
        return WINDOW_ODD;
    if (mmu_walk(v, la, ACC_USER | (write ? ACC_W : ACC_R), &span) != X_OK)
        return WINDOW_FAULT;
    struct ram_slot *rs = ram_find(&vm->ram, span.gpa);
    if (!rs || (write && rs->readonly) || w->nr_places >= WINDOW_PAGES * 3 / 4 ||
        __atomic_load_n(&vm->windows.mappings, __ATOMIC_RELAXED) >= WINDOW_MAPPINGS)
        return WINDOW_ODD;
    bool writable = span.writable && !rs->readonly;
    u64 idx = (span.gpa - rs->gpa) >> PAGE_SHIFT;
    bool large = span.page_size >= LARGE && idx >= (span.gpa >> PAGE_SHIFT & (LARGE / PAGE_SIZE - 1)) &&
                 (span.gpa & ~(LARGE - 1)) + LARGE <= rs->gpa + rs->size;
    sp->clean = false;
    if (span.page_size > PAGE_SIZE)
        tlb_note_large(v, SLOT_U, la, span.page_size);
    gla_t at = la & PAGE_MASK;
    if (large) {
        at = la & ~(LARGE - 1);
        idx -= span.gpa >> PAGE_SHIFT & (LARGE / PAGE_SIZE - 1);
        if (writable && !tlb_note_writes(vm, rs, idx, LARGE / PAGE_SIZE)) { /* then by single pages */
            large = false;
            at = la & PAGE_MASK;
            idx = (span.gpa - rs->gpa) >> PAGE_SHIFT;
        }
    }
    if (!large && writable && !tlb_note_writes(vm, rs, idx, 1)) {
        if (write)
            return WINDOW_ODD;
        writable = false;
    }
    u8 *from = rs->host + (idx << PAGE_SHIFT), *to = host_of(w, at);
    if (large)
        make_huge(vm, from);
    u64 len = large ? LARGE : PAGE_SIZE * following(v, w, rs, at, idx, span.writable, writable);
    u64 start = host_rdtsc();
    /* An old size of 0 maps shared pages once more (mremap(2)); what is not shared cannot be. */
    while (sys(SYS_mremap, from, 0, len, MREMAP_MAYMOVE | MREMAP_FIXED, (u64)to) != (s64)to) {
        if (len == PAGE_SIZE || large) {
            vm->windows.off = true;
            return WINDOW_ODD;
        }
        len = PAGE_SIZE; /* the RAM may be mapped in pieces */
    }
    bool ok = writable || protect(to, len, PROT_READ);
    note_fill(vm, host_rdtsc() - start);
    for (u64 off = 0; off < len; off += large ? LARGE : PAGE_SIZE) {
        struct window_page *p = page_find(w, at + off, large ? WINDOW_LARGE : 0);
        if (!p) {
            p = page_new(w, at + off);
            __atomic_fetch_add(&vm->windows.mappings, 1, __ATOMIC_RELAXED);
        }
        *p = (struct window_page){ (at + off) | WINDOW_USED | (writable ? WINDOW_WRITABLE : 0) | (large ? WINDOW_LARGE : 0), (u64)from + off };
        if (!ok)
            page_drop(w, p);
    }
    if (!ok)
        return WINDOW_ODD;
    w->fills++;
    v->eng->nr_window_fills++;
    return WINDOW_FILLED;
}

/* -- Which spaces -------------------------------------------------------------------------------------------------- */

void window_sync(struct vcpu *v)
{
    if (unlikely(!!(v->mode_user & MODE_WINDOW) != window_on(v->space)))
        vcpu_mode_changed(v);
}

/* Code with and without windows is different code: what leads to it goes. */
static void changed(struct vcpu *v, struct tlb_space *sp)
{
    jc_flush_space(sp, SLOT_U);
    engine_drop_returns(v);
    window_sync(v);
}

static void begin(struct vcpu *v)
{
    struct tlb_space *sp = v->space;
    struct window *w = sp->window;
    w->on = true;
    w->on_ticks = w->fills = w->steps = w->drops = 0;
    v->eng->nr_windows++;
    for (unsigned c = 0; c < WINDOW_CHUNKS; c++)
        table(sp)[c] = distance(v->vm, c, 0);
    window_stack(v);
    changed(v, sp);
}

static bool possible(struct vcpu *v)
{
#ifdef __SANITIZE_THREAD__ /* it has a use for these addresses */
    return false;
#endif
    struct vm *vm = v->vm;
    struct tlb_space *sp = v->space;
    if (vm->windows.off || vcpu_has_outer(v) || (vm->debug & ~VITRO_DEBUG_WINDOWS) || !reserve(vm))
        return false;
    if (!sp->window) {
        void *p = mmap(NULL, sizeof(struct window), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return false;
        u64 *last = table(sp) + WINDOW_LAST;
        u8 *page = (u8 *)((u64)last & PAGE_MASK);
        if (mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE) < 0) {
            munmap(p, sizeof(struct window));
            return false;
        }
        *last = -(1ull << 46);
        if (!protect(page, PAGE_SIZE, PROT_READ))
            bug("the table of windows cannot be protected", __FILE__, __LINE__);
        sp->window = p;
        sp->window->v = v;
        sp->window->need = need_first(vm);
    }
    return true;
}

void window_want(struct vcpu *v)
{
    if ((v->mode & MODE_SLOT) == SLOT_U && !window_on(v->space) && possible(v))
        begin(v);
}

void window_tick(struct vcpu *v)
{
    if (!possible(v))
        return;
    struct window *w = v->space->window;
    u64 now = host_rdtsc();
    if (now - w->last_tick < TICK_CYCLES) /* processors that send each other interrupts: no time has gone by */
        return;
    w->last_tick = now;
    if (w->on)
        w->on_ticks++;
    else if (++w->ticks >= w->need)
        begin(v);
}

void window_flush(struct tlb_space *sp)
{
    struct window *w = sp->window;
    if (!w || !w->on)
        return;
    /* In microseconds: a page 10, a step 6; of an interrupt's 4000 perhaps a quarter was gained. */
    u64 cost = w->fills * 10ull + w->steps * 6ull, gain = w->on_ticks * 1000ull;
    window_flush_pages(sp);
    w->on_ticks = w->fills = w->steps = w->drops = 0;
    if (cost <= gain) {
        w->need = MAX(w->need / 2, need_first(w->v->vm));
        return;
    }
    w->need = MIN(w->need * 2, NEED_MAX);
    w->ticks = 0;
    w->on = false;
}

void window_forget(struct tlb_space *sp)
{
    struct window *w = sp->window;
    if (!w)
        return;
    if (w->on) /* its jump cache leads to code with windows */
        jc_flush_space(sp, SLOT_U);
    window_flush_pages(sp);
    w->on = false;
    w->ticks = 0;
    w->need = need_first(w->v->vm);
}

/* Where a stack instruction, or a memory operand, lies. */
static unsigned operands(struct vcpu *v, gla_t la[2])
{
    struct insn in;
    unsigned n = 0;
    la[n++] = v->regs[RSP] - 8;
    if (engine_insn_at(v, v->rip, &in) && in.has_mem)
        la[n++] = insn_offset(v, &in) + (in.seg == SEG_FS || in.seg == SEG_GS ? v->seg[in.seg].base : 0);
    return n;
}

bool window_step(struct vcpu *v)
{
    struct tlb_space *sp = v->space;
    struct window *w = sp->window;
    if (!w || !w->on) { /* they went while this code ran; nothing may lead back to it */
        jc_flush_space(sp, SLOT_U);
        engine_drop_returns(v);
        vcpu_mode_changed(v);
        return false;
    }
    gla_t la[2];
    struct mmu_span span;
    bool more = false;
    for (unsigned i = 0, n = operands(v, la); i < n; i++) {
        unsigned chunk = (unsigned)(la[i] >> WINDOW_CHUNK_SHIFT);
        if (!(la[i] >> 47) && !slot_of(w, chunk) && mmu_walk(v, la[i], ACC_USER | ACC_R, &span) == X_OK)
            more |= chunk_add(v, w, chunk);
    }
    if (more)
        return false;
    v->eng->nr_window_steps++;
    /* Stores beside code, page tables of another shape, MMIO: not for windows. A full table of mappings: neither. */
    w->steps++;
    if (has_lost(w)) {
        w->need = MIN(w->need * 4, NEED_MAX);
        window_flush_pages(sp);
        w->on = false;
        w->ticks = 0;
        changed(v, sp);
        return false;
    }
    return true;
}

void window_fini(struct vcpu *v)
{
    for (unsigned i = 0; i < NR_SPACES; i++)
        if (v->eng->space[i].window)
            munmap(v->eng->space[i].window, sizeof(struct window));
}
void window_vm_fini(struct vm *vm)
{
    if (vm->windows.area)
        munmap(vm->windows.area, WINDOW_AREA);
}
