/*
 * run.c - the main loop: deliver what is due, find the code, run it, see why it came back.
 *
 * Emitted code calls the engine_* functions below through stubs.S; engine_dispatch is where every path that
 * does not know where to go next ends.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "engine/cpuid.h"
#include "engine/emit.h"
#include "engine/fpu.h"
#include "engine/mmu.h"
#include "engine/seg.h"
#include "engine/stub_offsets.h"
#include "engine/window.h"

/* What stubs.S and emitted code take for granted. */
#define SLOT_AT(member, off) _Static_assert(offsetof(struct vcpu, member) == VCPU_BIAS + (off), "stubs.S: " #member)
_Static_assert(offsetof(struct vcpu, regs) == 0, "stubs.S: regs");
SLOT_AT(vbase, 0);
SLOT_AT(fl, 8);
SLOT_AT(event, 12);
SLOT_AT(s1, -16);
SLOT_AT(s2, -8);
SLOT_AT(host_rsp, 24);
SLOT_AT(c_rsp, 32);
SLOT_AT(hsp_base, 40);
SLOT_AT(region, 48);
SLOT_AT(rip, 56);
SLOT_AT(sp_distance, 64);
#define FAR_AT(member, off) _Static_assert(offsetof(struct vcpu, member) == (off), "stub_offsets.h: " #member)
FAR_AT(eflags, VCPU_BIAS + 16);
FAR_AT(intr_wait, VCPU_BIAS + 20);
FAR_AT(cs_tag, V_CS_TAG);
FAR_AT(syscall_ok, V_SYSCALL_OK);
FAR_AT(sysret_ok, V_SYSRET_OK);
FAR_AT(mode_kernel, V_MODE_KERNEL);
FAR_AT(mode_user, V_MODE_USER);
FAR_AT(hsp_saved, V_HSP_SAVED);
FAR_AT(hsp_bottom, V_HSP_BOTTOM);
FAR_AT(hstack_user, V_HSTACK_USER);
FAR_AT(mode, V_MODE);
FAR_AT(syscall_cs, V_SYSCALL_CS);
FAR_AT(sysret_cs, V_SYSRET_CS);
FAR_AT(seg, V_SEG);
FAR_AT(cpl, V_CPL);
FAR_AT(lstar, V_LSTAR);
FAR_AT(sfmask, V_SFMASK);
_Static_assert(VCPU_BIAS % 64 == WINDOW_CHUNK_SHIFT, "tr_window.c: the shift count");
_Static_assert(VECTOR_SPILL == VCPU_AREA - 64 && sizeof(struct vcpu) <= VECTOR_SPILL, "stub_offsets.h");
_Static_assert(sizeof(struct seg) == 24 && SEG_SS == SEG_CS + 1, "stubs.S copies CS and SS together");
_Static_assert(offsetof(struct vcpu, syscall_ss) == V_SYSCALL_CS + 24 && offsetof(struct vcpu, sysret_ss) == V_SYSRET_CS + 24, "");
_Static_assert(OFF_KTLB == TLB_OFF_K && OFF_UTLB == TLB_OFF_U && OFF_KLOOP == LOOP_OFF_K && OFF_ULOOP == LOOP_OFF_U &&
               OFF_UWINDOW == OFF_WINDOWS, "stubs.S");
_Static_assert(((1 << TLB_K_BITS) - 1) << TLB_ENTRY_SHIFT == TLB_MASK_K &&
               ((1 << TLB_U_BITS) - 1) << TLB_ENTRY_SHIFT == TLB_MASK_U && HASH_SHIFT == 10 && LOOP_MISSES == 256, "");
_Static_assert(offsetof(struct tlb_entry, tag_r) == TLB_TAG_R && offsetof(struct tlb_entry, tag_w) == TLB_TAG_W &&
               offsetof(struct tlb_entry, host) == TLB_HOST && offsetof(struct tlb_entry, delta) == TLB_DELTA, "");
_Static_assert(offsetof(struct loop_entry, host) == 8 && offsetof(struct loop_entry, delta) == 16 &&
               offsetof(struct loop_entry, misses) == 24 && offsetof(struct loop_entries, extent) == 32 * (NR_LOOP + 1), "");
_Static_assert(offsetof(struct extent, misses) == 24 && EXTENT_FIRST == 16 && sizeof(struct loop_entries) <= PAGE_SIZE, "stubs.S");
_Static_assert(offsetof(struct slow_site, size) + 5 == SITE_SIZE && offsetof(struct slow_site, loop) + 5 == SITE_LOOP, "");
_Static_assert(OFF_KJC == JC_OFF_K && OFF_KACJC == JC_OFF_KAC && OFF_UJC == JC_OFF_U && OFF_U32JC == JC_OFF_U32, "");
_Static_assert(((1 << JC_K_BITS) - 1) << 1 == JC_MASK_K && ((1 << JC_KAC_BITS) - 1) << 1 == JC_MASK_KAC &&
               ((1 << JC_U_BITS) - 1) << 1 == JC_MASK_U && ((1 << JC_U32_BITS) - 1) << 1 == JC_MASK_U32, "");

void vcpu_fail(struct vcpu *v, const char *fmt, ...)
{
    if (v->exit == EXIT_FAIL)
        return;
    fpu_leave(v);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(v->fail_msg, sizeof(v->fail_msg), fmt, ap);
    va_end(ap);
    fpu_enter(v);
    v->exit = EXIT_FAIL;
}

void engine_trace_print(struct vcpu *v, const char *fmt, ...)
{
    if (!v->vm->trace)
        return;
    fpu_leave(v);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(v->vm->trace, fmt, ap);
    va_end(ap);
    fpu_enter(v);
}

/* -- Return-prediction stacks ------------------------------------------------------------------------ */

struct engine_vcpu *engine_vcpu_alloc(void)
{
    struct engine_vcpu *ev = aligned_alloc(64, (sizeof(*ev) + 63) & ~63ull);
    if (!ev)
        return NULL;
    __builtin_memset(ev, 0, sizeof(*ev));
    ev->hstack = mmap(NULL, 2 * HSTACK_HALF, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ev->hstack == MAP_FAILED) {
        free(ev);
        return NULL;
    }
    mprotect(ev->hstack, HSTACK_GUARD, PROT_NONE);
    mprotect(ev->hstack + HSTACK_HALF, HSTACK_GUARD, PROT_NONE);
    ev->masked_pages = mmap(NULL, MASKED_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ev->masked_pages == MAP_FAILED) {
        munmap(ev->hstack, 2 * HSTACK_HALF);
        free(ev);
        return NULL;
    }
    mprotect(ev->masked_pages + PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE);
    return ev;
}
void engine_vcpu_free(struct engine_vcpu *ev)
{
    munmap(ev->hstack, 2 * HSTACK_HALF);
    munmap(ev->masked_pages, MASKED_SIZE);
    free(ev);
}

/* The bottom of a stack: a sentinel return address, and above it a page address that matches nothing. */
static u64 hstack_bottom(struct vcpu *v, unsigned user)
{
    u8 *top = v->eng->hstack + (user + 1) * HSTACK_HALF;
    u64 *bottom = (u64 *)(top - 64);
    bottom[0] = (u64)cache_stub(v->vm->cache, STUB_RET_EMPTY);
    bottom[1] = ~0ull << 62 ^ 1;
    return (u64)bottom;
}
void engine_drop_returns(struct vcpu *v)
{
    if (!v->vm || !v->vm->cache)
        return;
    for (unsigned i = 0; i < 2; i++)
        v->hsp_saved[i] = v->hsp_bottom[i] = hstack_bottom(v, i);
    v->hsp_base = v->host_rsp = v->hsp_bottom[v->hstack_user];
}
void engine_drop_user_returns(struct vcpu *v)
{
    if (!v->vm || !v->vm->cache)
        return;
    v->hsp_saved[1] = v->hsp_bottom[1] = hstack_bottom(v, 1);
    if (v->hstack_user)
        v->hsp_base = v->host_rsp = v->hsp_bottom[1];
}
void engine_select_returns(struct vcpu *v, unsigned user)
{
    if (v->hstack_user == user)
        return;
    v->hsp_saved[v->hstack_user] = v->host_rsp;
    v->host_rsp = v->hsp_saved[user];
    v->hstack_user = user;
    v->hsp_base = v->hsp_bottom[user];
}

/* -- Mode ------------------------------------------------------------------------------------------------ */

static bool flat(const struct vcpu *v, unsigned seg)
{
    const struct seg *s = &v->seg[seg];
    return !s->base && s->limit == 0xffffffffu && v->seg_max[seg][0] == 0xffffffff && v->seg_max[seg][1] == 0xffffffff;
}

/*
 * Code in a segment that is not flat is translated for where it lies in the segment, and for the limit: EIPs are
 * constants there (segment_key). A jump cache must tell apart what one linear RIP is in different segments. So
 * its keys, and vbase, carry a number for (base, limit) above bit 32. Numbers are not used again.
 */
static u64 segment_tag(struct vcpu *v)
{
    struct engine_vcpu *ev = v->eng;
    const struct seg *cs = &v->seg[SEG_CS];
    if (cs->limit == 0xffff && !(cs->attr & SEG_DB) && cs->base == (u64)cs->sel << 4)
        return PARAGRAPH_TAG(cs->sel);
    u32 hash = ((u32)cs->base * 0x9e3779b1u ^ cs->limit * 0x85ebca6bu) >> 24;
    struct cs_id *id = &ev->cs_id[hash % ARRAY_SIZE(ev->cs_id)];
    if (!id->tag || id->base != (u32)cs->base || id->limit != cs->limit) {
        if (++ev->cs_tags == 1u << 24) {
            for (unsigned i = 0; i < ARRAY_SIZE(ev->cs_id); i++)
                ev->cs_id[i].tag = 0;
            ev->cs_tags = 1;
            jc_flush_all(v);
            engine_drop_returns(v);
        }
        *id = (struct cs_id){ (u32)cs->base, cs->limit, ev->cs_tags };
    }
    return (u64)id->tag << 32;
}

static bool holds_64k(const struct vcpu *v, unsigned seg) { return v->seg_max[seg][0] >= 0xffff && v->seg_max[seg][1] >= 0xffff; }

/* What emitted code compares offsets with (SDM vol. 3 §5.3, §5.5). */
static void segment_limits(struct vcpu *v)
{
    bool real = !vcpu_protected(v) || vcpu_v86(v);
    for (unsigned i = 0; i < ARRAY_SIZE(v->seg_max); i++) {
        struct seg *s = &v->seg[i];
        if (real && (s->attr & SEG_UNUSABLE)) { /* null has no limit that real mode could keep */
            s->limit = 0xffff;
            s->attr = SEG_P | SEG_S | SEG_W | SEG_A;
        }
        bool code = s->attr & SEG_CODE;
        bool expand_down = (s->attr & (SEG_S | SEG_CODE | SEG_E)) == (SEG_S | SEG_E);
        bool usable = !(s->attr & SEG_UNUSABLE);
        v->seg_max[i][0] = usable && !expand_down && (real || !code || (s->attr & SEG_R)) ? (s64)s->limit : -1;
        v->seg_max[i][1] = usable && !expand_down && (real || (!code && (s->attr & SEG_W))) ? (s64)s->limit : -1;
    }
}

void vcpu_cs_changed(struct vcpu *v)
{
    if ((v->mode & MODE_CSFLAT) || (v->seg[SEG_CS].attr & (SEG_DB | SEG_L)) || (v->eflags & EFL_TF))
        vcpu_mode_changed(v);
    else
        v->cs_tag = segment_tag(v);
}

void vcpu_mode_changed(struct vcpu *v)
{
    struct engine_vcpu *ev = v->eng;
    bool code64 = vcpu_code64(v);
    u32 m = 0;
    unsigned slot;
    if (v->cpl == 3)
        slot = code64 ? SLOT_U : SLOT_U32;
    else
        slot = (v->eflags & EFL_AC) && (v->cr4 & CR4_SMAP) ? SLOT_KAC : SLOT_K;
    m |= slot;
    if (code64) {
        m |= MODE_64;
    } else {
        if (v->seg[SEG_CS].attr & SEG_DB)
            m |= MODE_32;
        if (v->seg[SEG_SS].attr & SEG_DB)
            m |= MODE_SS32;
        segment_limits(v);
        if (flat(v, SEG_DS) && flat(v, SEG_ES) && flat(v, SEG_SS))
            m |= MODE_FLAT;
        if (holds_64k(v, SEG_DS) && holds_64k(v, SEG_ES) && holds_64k(v, SEG_SS))
            m |= MODE_64K;
        if ((m & MODE_32) && !v->seg[SEG_CS].base && v->seg[SEG_CS].limit == 0xffffffffu)
            m |= MODE_CSFLAT;
        ev->no_extents &= (v->cr0 & CR0_PG) != 0;
        if (v->cpl != 3 && !ev->no_extents)
            m |= MODE_EXTENT;
    }
    v->cs_tag = m & (MODE_64 | MODE_CSFLAT) ? 0 : segment_tag(v);
    if (v->cr0 & CR0_TS)
        m |= MODE_TS;
    if (v->cr0 & CR0_EM)
        m |= MODE_EM;
    if (v->cr0 & CR0_MP)
        m |= MODE_MP;
    if (v->cr4 & CR4_OSFXSR)
        m |= MODE_SSE;
    if (v->cr4 & CR4_OSXSAVE) {
        if ((v->xcr0 & 6) == 6)
            m |= MODE_AVX;
        if ((v->xcr0 & 0xe6) == 0xe6)
            m |= MODE_AVX512;
    }
    if ((v->eflags & EFL_TF) || ev->single_step)
        m |= MODE_STEP;
    if (!(v->cr0 & CR0_PE) || (v->eflags & EFL_VM))
        m |= MODE_REAL;
    if ((v->dr[7] & 0xff) || ev->nr_brk || ev->nr_watch)
        m |= MODE_BRK;
    if (v->cpl == 0)
        m |= MODE_CPL0;
    if (v->cpl == 3 && (v->eflags & EFL_AC) && (v->cr0 & CR0_AM))
        m |= MODE_AC;
    if (v->cr4 & CR4_SMAP)
        m |= MODE_SMAP;
    if (vcpu_tsc_forbidden(v) || (v->cpl == 0 && (v->cr4 & CR4_TSD)))
        m |= MODE_TSD;
    if (v->cr4 & CR4_FSGSBASE)
        m |= MODE_FSGS;
    bool windows = window_on(v->space);
    v->mode = m;
    if (windows && slot == SLOT_U && !(m & (MODE_STEP | MODE_BRK | MODE_AC)))
        v->mode |= MODE_WINDOW;
    engine_select_returns(v, v->cpl == 3);
    if (ev->jc_mode[slot] != m) { /* what the jump cache and the predictions hold is of another mode */
        ev->jc_mode[slot] = m;
        if (slot >= SLOT_U) {
            for (unsigned i = 0; i < NR_SPACES; i++)
                jc_flush_space(&ev->space[i], slot);
        } else { /* stac and clac go from one to the other without asking */
            jc_flush(v, SLOT_K);
            jc_flush(v, SLOT_KAC);
            ev->jc_mode[SLOT_K] = (m & ~MODE_SLOT) | SLOT_K;
            ev->jc_mode[SLOT_KAC] = (m & ~MODE_SLOT) | SLOT_KAC;
        }
        engine_drop_returns(v);
    }
    /* The short way of SYSCALL and SYSRET: 64-bit on both sides, nothing being debugged or traced. */
    u32 common = m & (MODE_TS | MODE_EM | MODE_MP | MODE_SSE | MODE_AVX | MODE_AVX512 | MODE_SMAP | MODE_TSD | MODE_FSGS);
    bool plain = code64 && !(m & (MODE_STEP | MODE_BRK | MODE_REAL)) && (v->efer & EFER_SCE) &&
                 !(v->vm->debug & ~VITRO_DEBUG_WINDOWS) && !(v->outer && (v->cr4 & CR4_TSD));
    v->mode_kernel = common | MODE_64 | (v->outer ? 0 : MODE_CPL0) | SLOT_K;
    v->mode_user = common | MODE_64 | SLOT_U;
    v->syscall_ok = plain && slot == SLOT_U && !(v->eflags & EFL_AC) && ev->jc_mode[SLOT_K] == v->mode_kernel;
    v->sysret_ok = plain && slot == SLOT_K && ev->jc_mode[SLOT_U] == v->mode_user;
    if (windows)
        v->mode_user |= MODE_WINDOW;
    if (!v->outer) {
        u16 kcs = (u16)(v->star >> 32), ucs = (u16)(v->star >> 48);
        v->syscall_cs = (struct seg){ .limit = ~0u, .attr = ATTR_CODE64, .sel = kcs & 0xfffc };
        v->syscall_ss = (struct seg){ .limit = ~0u, .attr = ATTR_STACK, .sel = (u16)(kcs + 8) };
        v->sysret_cs = (struct seg){ .limit = ~0u, .attr = ATTR_CODE64 | ATTR_DPL3, .sel = (u16)(ucs + 16) | 3 };
        v->sysret_ss = (struct seg){ .limit = ~0u, .attr = ATTR_STACK | ATTR_DPL3, .sel = (u16)(ucs + 8) | 3 };
    }
    /* 64- and 32-bit user code share a prediction stack: neither may return into the other's code. */
    if (slot >= SLOT_U && ev->user_slot != slot) {
        ev->user_slot = (u8)slot;
        engine_drop_returns(v);
    }
    v->sysret_ok = v->sysret_ok && ev->user_slot == SLOT_U;
    v->region = (u64)v->space->base + VCPU_BIAS;
}

/* -- Finding code ------------------------------------------------------------------------------------------ */

static void deliver(struct vcpu *v)
{
    v->eng->step_armed = false;
    engine_trace(v, VITRO_TRACE_EXC, "exc %u err %#x cr2 %#llx rip %#llx cpl %u rsp %#llx\n", v->exc.vector, v->exc.error,
                 (unsigned long long)v->exc.cr2, (unsigned long long)v->rip, v->cpl, (unsigned long long)v->regs[RSP]);
    exc_deliver(v);
}

/* Kernel code of a global mapping is translated for its linear page: addresses are constants there, and pages are
 * linked to each other until a global mapping changes. Everything else is position-independent: 0. */
static gla_t fixed_page(const struct vcpu *v, const struct mmu_span *span)
{
    gla_t page = v->rip & PAGE_MASK;
    return (v->mode & MODE_SLOT) <= SLOT_KAC && (v->mode & MODE_64) && span->global && page >> 63 && (s64)page == (s32)page
               ? page : 0;
}

/* Where a code segment that is not flat puts this page, and its limit: what its code depends on. Bit 63 is clear. */
static gla_t segment_key(const struct vcpu *v)
{
    const struct seg *cs = &v->seg[SEG_CS];
    u64 limit = cs->limit <= 0xfffff ? cs->limit : cs->limit >> 12 | BIT(20);
    return BITULL(62) | limit << 32 | (u32)((v->rip & PAGE_MASK) - cs->base);
}

/*
 * The block for v->rip in v->mode, made if need be, with the engine's lock held. NULL, and no lock: a fault was
 * delivered or v->exit is set. The caller is at a safepoint (smp.h): what it knows of translated code may be reclaimed.
 */
static struct block *find_block(struct vcpu *v)
{
    struct vm *vm = v->vm;
    struct code_cache *c = vm->cache;
    enum xret x;
    struct block *b;
    struct mmu_span span;
    bool translating = false; /* we hold xl_lock */
    engine_lock(vm);
again:
    b = NULL;
    if (vcpu_long_mode(v) && !is_canonical(v->rip)) {
        x = raise_gp0(v);
    } else if (!vcpu_code64(v) && (u32)(v->rip - v->seg[SEG_CS].base) > v->seg[SEG_CS].limit) {
        x = raise_gp0(v);
    } else {
        x = mmu_walk(v, v->rip, ACC_X | vcpu_acc(v), &span);
    }
    if (x == X_OK) {
        gla_t fixed = v->mode & (MODE_64 | MODE_CSFLAT) ? fixed_page(v, &span) : segment_key(v);
        b = cache_find(c, span.gpa, v->mode, fixed);
        if (b && b->page2 != ~0ull) {
            struct mmu_span second;
            x = mmu_walk(v, (v->rip & PAGE_MASK) + PAGE_SIZE, ACC_X | vcpu_acc(v), &second);
            if (x == X_OK && (second.gpa & PAGE_MASK) != b->page2) {
                cache_kill_block(c, b);
                b = NULL;
            }
        }
        if (x == X_OK && !b) {
            if (vm->smp && !translating) {
                translating = true;
                engine_unlock(vm);
                smp_xl_lock(v);
                engine_lock(vm);
                goto again; /* somebody may have made it */
            }
            if (vm->smp)
                smp_claim(v, span.gpa & PAGE_MASK);
            x = translate_block(v, fixed, &b);
            if (unlikely(x == X_RETRY)) {
                smp_prepare(v);
                goto again;
            }
        }
        if (x == X_OK && b->fixed >> 63 && span.page_size > BITULL(BIG_SHIFT))
            cache_far_huge(c);
    }
    if (translating)
        smp_xl_unlock(v);
    if (x != X_OK)
        engine_unlock(vm);
    if (x == X_FAULT) {
        deliver(v);
        return NULL;
    }
    if (x != X_OK)
        return NULL;
    unsigned h = code_seen_hash(v->rip & PAGE_MASK);
    v->eng->code_seen[v->cpl == 3][h >> 6] |= BITULL(h & 63);
    unsigned slot = v->cpl == 3 ? SLOT_U : SLOT_K;
    if (slot == SLOT_U) /* its jump cache is about to be filled */
        v->space->clean = false;
    else if (!span.global)
        v->eng->k_nonglobal = true;
    if (span.page_size > PAGE_SIZE)
        tlb_note_large(v, slot, v->rip, span.page_size);
    if (b->code_nr)
        tlb_note_code(v, b->code_nr, v->rip & PAGE_MASK);
    if (b->page2 != ~0ull) {
        gla_t next = (v->rip & PAGE_MASK) + PAGE_SIZE;
        h = code_seen_hash(next);
        v->eng->code_seen[v->cpl == 3][h >> 6] |= BITULL(h & 63);
        if (mmu_walk(v, next, ACC_X | vcpu_acc(v), &span) == X_OK) {
            if (span.page_size > PAGE_SIZE)
                tlb_note_large(v, slot, next, span.page_size);
            if (slot == SLOT_K && !span.global)
                v->eng->k_nonglobal = true;
        }
    }
    return b;
}

void *engine_unshared(struct vcpu *v, const struct group_site *site)
{
    struct code_cache *c = v->vm->cache;
    v->eng->nr_noshare++;
    struct unshared *u = &v->eng->unshared[((u64)site >> 2 ^ (u64)site >> 8) % ARRAY_SIZE(v->eng->unshared)];
    if (u->site == site && cache_generation(c, (const u8 *)site) == u->site_gen && cache_generation(c, u->code) == u->gen &&
        !__atomic_load_n(&u->block->dead, __ATOMIC_RELAXED))
        return u->code;
    u->site = NULL;
    engine_lock(v->vm);
    u32 gen = cache_generation(c, (const u8 *)site);
    struct block *b = site->alt;
    void *code = b && cache_generation(c, (const u8 *)site + site->alt_off) == site->alt_gen && !b->dead
                 ? b->code + b->entry[ENTRY_FLAG] : NULL;
    if (code)
        *u = (struct unshared){ site, b, code, gen, site->alt_gen };
    engine_unlock(v->vm);
    if (code)
        return code;
    v->eng->noshare_insns = site->s.group;
    v->mode |= MODE_NOSHARE;
    b = find_block(v);
    v->mode &= ~MODE_NOSHARE;
    if (!b)
        return NULL;
    code = b->code + b->entry[ENTRY_FLAG];
    if (cache_generation(c, (const u8 *)site) == gen) {
        struct group_site *rw = (struct group_site *)cache_rw(c, (u8 *)site);
        rw->alt = b;
        rw->alt_off = (s32)(b->code - (const u8 *)site);
        rw->alt_gen = cache_generation(c, b->code);
    }
    engine_unlock(v->vm);
    return code;
}

static bool chains(const struct vcpu *v)
{
    return !(v->mode & (MODE_STEP | MODE_BRK)) && !(v->vm->debug & (VITRO_DEBUG_NO_CHAIN | VITRO_TRACE_BLOCK));
}

static void *enter_at(struct vcpu *v, bool after_poll)
{
    unsigned slot = v->mode & MODE_SLOT;
    u64 key = v->rip | v->cs_tag;
    struct jc_entry *e = jc_at(v, slot, key);
    if (e->rip != key)
        e = jc_second(e);
    if (e->rip == key && chains(v) && !after_poll)
        return (void *)e->host;
    v->eng->nr_lookup++;
    struct block *b = find_block(v);
    if (!b)
        return NULL;
    b->runs++;
    u8 *code = b->code + b->entry[after_poll ? ENTRY_FLAG : ENTRY_IND];
    engine_unlock(v->vm);
    engine_trace(v, VITRO_TRACE_BLOCK, "%#llx mode %#x rsp %#llx rax %#llx\n", (unsigned long long)v->rip, v->mode,
                 (unsigned long long)v->regs[RSP], (unsigned long long)v->regs[RAX]);
    if (after_poll)
        v->vbase = (v->rip & PAGE_MASK) | v->cs_tag;
    else if (chains(v))
        jc_set(v, slot, key, code);
    return code;
}

/* -- Torture builds: what may happen at any time happens all the time ------------------------------------------- */

#ifdef TORTURE
/* At `new_code` the block that called is left for good, so that translations may go as well. */
static void torture(struct vcpu *v, bool new_code)
{
    static __thread u64 seed = 88172645463325252ull;
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    switch (seed >> 20 & 1023) {
    case 0 ... 99: __atomic_fetch_or(&v->event, EVENT_RESCHED, __ATOMIC_SEQ_CST); break;
    case 100 ... 119: engine_drop_returns(v); break;
    case 120 ... 123: jc_flush_all(v); break;
    case 124: tlb_flush_all(v, seed >> 40 & 1); break;
    case 126 ... 135: window_want(v); break;
    case 125:
        if (new_code && !(seed >> 40 & 15)) {
            engine_lock(v->vm);
            cache_flush(v, v->vm->cache);
            engine_unlock(v->vm);
        }
        break;
    }
}
#else
static inline void torture(struct vcpu *v, bool new_code) { (void)v, (void)new_code; }
#endif

/* -- Called from emitted code ---------------------------------------------------------------------------------- */

bool engine_insn_at(struct vcpu *v, u64 at, struct insn *in)
{
    u8 bytes[INSN_MAX];
    unsigned n = MIN((unsigned)INSN_MAX, (unsigned)(PAGE_SIZE - (at & ~PAGE_MASK)));
    if (mem_read(v, at, bytes, n, ACC_R | ACC_LOOSE | vcpu_acc(v)) != X_OK)
        return false;
    enum decode_status st = insn_decode(DMODE_64, bytes, n, in);
    if (st == DECODE_SHORT && mem_read(v, at, bytes, INSN_MAX, ACC_R | ACC_LOOSE | vcpu_acc(v)) == X_OK)
        st = insn_decode(DMODE_64, bytes, INSN_MAX, in);
    return st == DECODE_OK;
}

/*
 * A near branch to an address that is not canonical is itself what faults (SDM vol. 2, JMP, RET; calls check by
 * themselves). It never hits a jump cache, and branches note where they stand before a look-up (tr_branch.c). True: #GP
 * was delivered. Not as the SDM has it: a ret by prediction, which cannot note anything for nothing, is complete and
 * faults at its target, and so are direct branches that leave the canonical addresses.
 */
static bool bad_target(struct vcpu *v, u64 rip)
{
    struct insn in;
    u64 at = v->vbase + v->s2;
    if (!(v->mode & MODE_64) || v->s1 != rip || v->s2 >= PAGE_SIZE || !engine_insn_at(v, at, &in))
        return false;
    if (in.id == I_RET)
        v->regs[RSP] -= in.opsize + (in.imm_size ? (u16)in.imm : 0u);
    else if (in.id != I_JMP_IND)
        return false;
    v->rip = at;
    raise_gp0(v);
    deliver(v);
    return true;
}

void *engine_lookup(struct vcpu *v, u64 rip)
{
    v->rip = vcpu_code64(v) ? rip : (u32)rip;
    torture(v, true);
    if (unlikely(!is_canonical(rip)) && bad_target(v, rip))
        return NULL;
    if (v->event || v->eng->step_armed || v->eng->db_hit || v->eng->shadow_step || v->eng->watch_hit ||
        (v->mode & (MODE_BRK | MODE_STEP)))
        return NULL; /* engine_dispatch sorts it out */
    return enter_at(v, false);
}

/* Another vCPU may have come here at the same time, and been first: what undoes its link must not be lost. With vm->lock held. */
static bool is_linked(const u8 *patch, const struct link_site *site)
{
    s32 rel;
    __builtin_memcpy(&rel, patch, sizeof(rel));
    return patch + sizeof(rel) + rel != (const u8 *)site - LINK_STUB_LEN;
}

void *engine_link(struct vcpu *v, const struct link_site *site)
{
    struct code_cache *c = v->vm->cache;
    u8 *patch = (u8 *)&site->patch + 4 + site->patch;
    unsigned entry = site->s.kind & (u8)~(LINK_MODE | LINK_FAR | LINK_PAGE);
    bool far = site->s.kind & LINK_FAR;
    bool other_mode = site->s.kind & LINK_MODE;
    if (other_mode)
        vcpu_mode_changed(v);
    v->rip = vcpu_rip_at(v, site->s.off);
    bool other_page = site->s.kind & LINK_PAGE;
    struct page_site *ps = (struct page_site *)site;
    s32 page = 0;
    if (other_page) {
        page = ps->page;
        v->rip += (u64)(s64)page << PAGE_SHIFT;
    }
    torture(v, false);
    v->eng->nr_link++;
    if (v->event)
        return NULL;
    struct block *from = cache_block_at(c, patch);
    u32 gen = cache_generation(c, patch);
    struct block *b = find_block(v);
    if (!b)
        return NULL;
    u8 *code = b->code + b->entry[ENTRY_IND];
    /* The link is for ever: both ends must be of one page and mode, and still be there. */
    bool there = from && cache_generation(c, patch) == gen && !from->dead && !b->dead &&
                 (other_mode || (from->mode & ~MODE_NOSHARE) == b->mode) && !(v->vm->debug & VITRO_DEBUG_NO_CHAIN) &&
                 !is_linked(patch, site);
    if (there && other_page) {
        bool host = entry == ENTRY_HOST || entry == ENTRY_HOST_POLL;
        bool polls = entry == ENTRY_POLL || entry == ENTRY_HOST_POLL;
        if (ps->links == PAGE_LINKS_MAX ||
            !edge_link(c, patch, b, page, polls ? ENTRY_POLL : ENTRY_FLAG, host))
            cache_patch32(c, patch, (u32)((u8 *)(ps + 1) - (patch + 4)));
        else
            ((struct page_site *)cache_rw(c, (u8 *)ps))->links++;
    } else if (there && (b->page2 == ~0ull || b->fixed >> 63) &&
               (far ? from->fixed && b->fixed : from->page == b->page && from->fixed == b->fixed)) {
        cache_link(c, patch, b, entry, far || b->page2 != ~0ull);
    }
    engine_unlock(v->vm);
    return code;
}

u64 engine_poll(struct vcpu *v, const struct site *site)
{
    v->rip = vcpu_rip_at(v, site->off);
    v->eng->nr_poll++;
    /* A dropped block leaves this way too: the jump cache must not lead back to it. */
    struct jc_entry *e = jc_at(v, v->mode & MODE_SLOT, v->rip);
    for (unsigned i = 0; i < 2; i++, e = jc_second(e))
        if (e->rip == (v->rip | v->cs_tag))
            e->rip = JC_NONE;
    return DISPATCH;
}

/* The way into a handler is not stepped: INT n has cleared TF, and SYSCALL's TF is what SFMASK leaves of it. */
static void step_over_entry(struct vcpu *v, unsigned id)
{
    if (id == I_INT || id == I_INT3 || id == I_INT1 || id == I_INTO)
        v->eng->step_armed = false;
    else if (id == I_SYSCALL)
        v->eng->step_armed = v->eflags & EFL_TF;
}

/* On to v->rip. Where engine_dispatch() would do nothing but look it up, the jump cache may. */
static u64 go_on(struct vcpu *v)
{
    const struct engine_vcpu *ev = v->eng;
    if (v->event || v->intr_wait || v->int_shadow || v->exit != EXIT_NONE || v->vm->debug || (v->mode & (MODE_STEP | MODE_BRK)) ||
        ev->step_armed || ev->db_hit || ev->watch_hit || ev->shadow_step || ev->soft_step || ev->refused.valid)
        return DISPATCH;
    window_stack(v);
    return PROBE;
}

u64 engine_sys(struct vcpu *v, const struct sys_site *site)
{
    struct engine_vcpu *ev = v->eng;
    u32 mode = v->mode;
    unsigned len = site->s.len;
    bool end = site->s.kind;
    ev->smp.store_len = 0;
    v->rip = vcpu_rip_at(v, site->s.off);
    torture(v, false);
    v->nr_sys[site->in.id]++;
    engine_trace(v, VITRO_TRACE_SYS, "sys %s rip %#llx rax %#llx rcx %#llx rdx %#llx\n", insn_name(site->in.id),
                 (unsigned long long)v->rip, (unsigned long long)v->regs[RAX], (unsigned long long)v->regs[RCX],
                 (unsigned long long)v->regs[RDX]);
    enum xret x = site->handler(v, &site->in);
    if (unlikely(x == X_FAULT) && vcpu_has_outer(v) && v->exc.vector == VEC_GP &&
        (v->cpl == CPL_OUTER || site->in.id == I_IN || site->in.id == I_OUT))
        x = outer_privileged(v, &site->in);
    ev->smp.c_holds = false;
    ev->smp.store_len = 0;
    if (site->in.id == I_WRMSR)
        vcpu_mode_changed(v); /* STAR and EFER are part of the short system-call path */
    v->region = (u64)v->space->base + VCPU_BIAS;
    if (unlikely(ev->step_armed) && x == X_JUMP)
        step_over_entry(v, site->in.id);
    switch (x) {
    case X_OK:
        /* EVENT_RESCHED: a device may have written over translated code, perhaps because of this instruction (dma.c). */
        if (!end && !ev->smc_hit && v->mode == mode && !(__atomic_load_n(&v->event, __ATOMIC_RELAXED) & EVENT_RESCHED))
            return RESUME;
        ev->smc_hit = false;
        v->rip += len;
        if (!(v->mode & MODE_64))
            v->rip = (u32)v->rip;
        return go_on(v);
    case X_FAULT:
        deliver(v);
        return DISPATCH;
    case X_JUMP:
        ev->smc_hit = false;
        return go_on(v);
    default:
        ev->smc_hit = false;
        return DISPATCH;
    }
}

void engine_fault(struct vcpu *v)
{
    v->eng->nr_fault_signal++;
    smp_bus_unlock(v);
    struct insn in;
    struct exc exc = v->exc;
    /* An address that is not canonical may get past a check (struct loop_entry): the host's #GP, through the stack #SS. */
    bool stack = exc.vector == VEC_GP && (v->mode & MODE_64) && engine_insn_at(v, v->rip, &in) &&
                 (in.has_mem ? in.seg == SEG_SS && !is_canonical(insn_offset(v, &in)) : !is_canonical(v->regs[RSP]));
    v->exc = exc;
    if (stack)
        raise_error(v, VEC_SS, 0);
    if (v->exc.vector == VEC_XM && !(v->cr4 & CR4_OSXMMEXCPT)) /* SDM vol. 3 §13.1.3 */
        raise_ud(v);
    deliver(v);
}

void engine_a20(struct vcpu *v)
{
    bool off = __atomic_load_n(&v->vm->a20_off, __ATOMIC_SEQ_CST);
    if (likely(v->a20_off == off))
        return;
    v->a20_off = off;
    tlb_flush_all(v, true);
    v->eng->smc_hit = true; /* links of the running block lead to what was there before */
}

void engine_window(struct vcpu *v)
{
    smp_bus_unlock(v);
    if (v->eng->window_fault) {
        v->eng->window_fault = false;
        v->eng->refused.rip = v->rip;
        v->eng->refused.space = v->space;
        v->eng->refused.valid = true;
        deliver(v);
    } else if (window_step(v)) {
        v->eng->soft_step = true;
        v->eng->soft_rip = v->rip;
    }
}

/* -- Events ------------------------------------------------------------------------------------------------- */

static void handle_events(struct vcpu *v)
{
    u32 e = __atomic_exchange_n(&v->event, 0, __ATOMIC_ACQ_REL) | v->intr_wait;
    engine_a20(v);
    v->intr_wait = 0;
    if ((e & EVENT_RESCHED) && __atomic_load_n(&v->vm->written.nr, __ATOMIC_ACQUIRE))
        engine_drop_written(v);
    if (e & EVENT_RESCHED)
        engine_see_remap(v);
    if (e & (EVENT_FLUSH | EVENT_FLUSH_SPACES))
        smp_flush_whole(v, e & EVENT_FLUSH);
    if (e & EVENT_FLUSH_PAGES)
        smp_flush_listed(v);
    if (e & EVENT_WAKE) {
        v->wake = !v->halted;
        v->halted = 0;
    }
    if (e & EVENT_STOP)
        v->exit = EXIT_INTR;
    if (e & EVENT_DEBUG)
        v->exit = EXIT_DEBUG;
    if (e & EVENT_NMI) {
        if (!v->nmi_masked && !v->int_shadow && v->exit == EXIT_NONE) {
            v->eng->step_armed = false;
            v->halted = 0;
            intr_deliver(v, VEC_NMI);
        } else {
            v->intr_wait |= EVENT_NMI;
        }
    }
    if (e & EVENT_INTR) {
        if ((v->mode & MODE_SLOT) == SLOT_U)
            window_tick(v);
        if (!(v->eflags & EFL_IF) || v->int_shadow || v->exit != EXIT_NONE) {
            v->intr_wait |= EVENT_INTR;
            return;
        }
        if (unlikely(vcpu_has_outer(v))) {
            outer_event(v);
            return;
        }
        int vec = v->vm->pv.intr_ack ? v->vm->pv.intr_ack(v->vm->pv.opaque, v->index) : -1;
        bool more = vec >= 0; /* the other has not been asked; when it is, it kicks if it has another (libvitro.h) */
        if (!more) {
            fpu_leave(v);
            if (v->vm->pv.tick)
                v->vm->pv.tick(v->vm->pv.opaque, v->index);
            if (v->host->intr_ack)
                vec = v->host->intr_ack(v->host->opaque, v->index);
            fpu_enter(v);
        }
        if (vec >= 0) {
            v->eng->step_armed = false;
            v->halted = 0;
            engine_trace(v, VITRO_TRACE_EXC, "intr %d rip %#llx\n", vec, (unsigned long long)v->rip);
            intr_deliver(v, (unsigned)vec);
            if (more)
                v->intr_wait |= EVENT_INTR;
        }
    }
}

static bool event_due(const struct vcpu *v)
{
    if (v->event)
        return true;
    return ((v->intr_wait & EVENT_INTR) && (v->eflags & EFL_IF)) || ((v->intr_wait & EVENT_NMI) && !v->nmi_masked);
}

/* Traps of the instruction that has just ended: single step, data breakpoints (SDM vol. 3 §6.9 priority 4). */
static void debug_traps(struct vcpu *v)
{
    struct engine_vcpu *ev = v->eng;
    u64 dr6 = ev->db_hit;
    if (ev->step_armed)
        dr6 |= 1u << 14;
    ev->step_armed = false;
    if (v->int_shadow == SHADOW_SS) /* a step trap is lost, a data breakpoint waits (§6.8.3) */
        dr6 = 0;
    else
        ev->db_hit = 0;
    if (ev->watch_hit) {
        v->exit = EXIT_DEBUG;
        return;
    }
    if (ev->single_step && ev->stepped) {
        v->exit = EXIT_DEBUG;
        ev->stepped = false;
        if (!dr6)
            return;
    }
    if (dr6) {
        v->exc = (struct exc){ .vector = VEC_DB, .dr6 = dr6 };
        deliver(v);
    }
}

/* Breakpoints at the instruction about to run. True: something was raised. */
static bool debug_faults(struct vcpu *v)
{
    struct engine_vcpu *ev = v->eng;
    for (unsigned i = 0; i < ev->nr_brk; i++)
        if (ev->brk[i] == v->rip && !(ev->brk_skip && ev->brk_skip_rip == v->rip)) {
            v->exit = EXIT_DEBUG;
            return true;
        }
    ev->brk_skip = false;
    if (!(v->dr[7] & 0xff) || (v->eflags & EFL_RF))
        return false;
    u64 dr6 = 0;
    for (unsigned i = 0; i < 4; i++)
        if ((v->dr[7] >> (i * 2) & 3) && !(v->dr[7] >> (16 + i * 4) & 3) && v->dr[i] == v->rip)
            dr6 |= 1u << i;
    if (!dr6)
        return false;
    v->exc = (struct exc){ .vector = VEC_DB, .dr6 = dr6 };
    deliver(v);
    return true;
}

void *engine_dispatch(struct vcpu *v)
{
    struct engine_vcpu *ev = v->eng;
    ev->nr_dispatch++;
    for (;;) {
        ev->smc_hit = false;
        if (unlikely(ev->shadow_step)) {
            ev->shadow_step = false;
            vcpu_mode_changed(v);
        }
        if (unlikely(ev->step_armed || ev->db_hit || ev->watch_hit || (ev->single_step && ev->stepped)) &&
            v->exit == EXIT_NONE)
            debug_traps(v);
        if (event_due(v) && !v->int_shadow && v->exit == EXIT_NONE)
            handle_events(v);
        if (unlikely(v->vm->smp)) /* behind the events: what is asked comes with one */
            smp_safepoint(v);
        if (unlikely(v->exit != EXIT_NONE))
            return NULL;
        bool shadow = v->int_shadow;
        v->int_shadow = 0;
        if (unlikely(v->mode & (MODE_STEP | MODE_BRK))) {
            if (debug_faults(v))
                continue;
            /* RF covers one instruction (SDM vol. 3 §17.3.1.1). */
            v->eflags &= ~EFL_RF;
            ev->step_armed = v->eflags & EFL_TF;
            ev->stepped = true;
        }
        if (unlikely(v->vm->debug & VITRO_DEBUG_WINDOWS))
            window_want(v);
        if (unlikely(ev->refused.valid) && ev->refused.rip == v->rip && ev->refused.space == v->space && (v->mode & MODE_WINDOW)) {
            ev->refused.valid = false; /* the guest's kernel has made the page, most likely: that saves a signal */
            window_fill(v, ev->refused.la, ev->refused.write);
        }
        bool soft = ev->soft_step && ev->soft_rip == v->rip && (v->mode & MODE_WINDOW);
        ev->soft_step = false;
        if (unlikely((shadow && v->event) || soft)) { /* what waits must come right after this one instruction */
            v->mode = (v->mode & ~MODE_WINDOW) | MODE_STEP;
            ev->shadow_step = true;
        }
        torture(v, true);
        /* Events were just looked at. A step that the block's poll undid would be a trap without an instruction. */
        void *code = enter_at(v, shadow || (v->mode & (MODE_STEP | MODE_BRK)));
        if (code) {
            v->region = (u64)v->space->base + VCPU_BIAS;
            window_stack(v);
            return code;
        }
    }
}

void engine_run(struct vcpu *v)
{
    if (v->halted) { /* HLT ends with an interrupt, not before; MWAIT also with a store */
        bool mwait = v->halted == HALTED_MWAIT;
        if (event_due(v))
            handle_events(v);
        if (mwait && mwait_over(v))
            v->halted = 0;
        if (mwait && !v->halted)
            mwait_reset(v);
        if (v->halted && v->exit == EXIT_NONE)
            v->exit = EXIT_HLT;
    }
    while (v->exit == EXIT_NONE) {
        void *code = engine_dispatch(v);
        if (code)
            enter_code((struct vcpu *)v->space->base, code);
    }
}

/* -- Reset (SDM vol. 3 table 9-1) -------------------------------------------------------------------------- */

void vcpu_reset(struct vcpu *v)
{
    v->cr0 = CR0_NW | CR0_CD;
    v->xcr0 = 1;
    v->event = 0;
    v->star = v->lstar = v->cstar = v->sfmask = v->kernel_gs_base = v->tsc_aux = v->xss = 0;
    v->sysenter_cs = v->sysenter_esp = v->sysenter_eip = 0;
    msr_reset(v);
    vcpu_init(v);
}

/* The INIT column. EFER is cleared too, as its LMA cannot outlive CR0.PG. */
void vcpu_init(struct vcpu *v)
{
    for (unsigned i = 0; i < NR_GPR; i++)
        v->regs[i] = 0;
    v->regs[RDX] = 0x600;
    v->rip = 0xfffffff0;
    vcpu_set_eflags(v, EFL_R1);
    for (unsigned i = 0; i < NR_SEG; i++)
        v->seg[i] = (struct seg){ .limit = 0xffff, .attr = SEG_P | SEG_S | SEG_W | SEG_A };
    v->seg[SEG_CS] = (struct seg){ .base = 0xffff0000, .limit = 0xffff, .attr = SEG_P | SEG_S | SEG_CODE | SEG_R | SEG_A, .sel = 0xf000 };
    v->seg[SEG_LDTR].attr = SEG_P | 2;
    v->seg[SEG_TR].attr = SEG_P | 11;
    v->gdtr = v->idtr = (struct dtable){ 0, 0xffff };
    v->cr0 = CR0_ET | (v->cr0 & (CR0_NW | CR0_CD));
    v->cr2 = v->cr3 = v->cr4 = v->cr8 = v->efer = 0;
    for (unsigned i = 0; i < 8; i++)
        v->dr[i] = 0;
    v->dr[6] = 0xffff0ff0;
    v->dr[7] = 0x400;
    v->cpl = v->int_shadow = v->nmi_masked = v->halted = v->wake = 0;
    v->exit = EXIT_NONE;
    v->intr_wait = 0;
    struct engine_vcpu *ev = v->eng;
    ev->step_armed = ev->shadow_step = ev->stepped = ev->smc_hit = false;
    ev->db_hit = ev->watch_hit = 0;
    ev->commit = (struct commit){ 0 };
    mwait_reset(v);
    tlb_flush_all(v, true);
    for (unsigned i = 0; i < NR_SPACES; i++)
        ev->space[i].used = false;
    ev->space[0].used = true;
    ev->space[0].pcid = 0;
    v->space = &ev->space[0];
    vcpu_mode_changed(v);
}
