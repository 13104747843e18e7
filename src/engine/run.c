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
#include "engine/stub_offsets.h"

/* What stubs.S and emitted code take for granted. */
#define SLOT_AT(member, off) _Static_assert(offsetof(struct vcpu, member) == VCPU_BIAS + (off), "stubs.S: " #member)
_Static_assert(offsetof(struct vcpu, regs) == 0, "stubs.S: regs");
SLOT_AT(vbase, 0);
SLOT_AT(fl, 8);
SLOT_AT(event, 12);
SLOT_AT(s1, 48);
SLOT_AT(s2, 56);
SLOT_AT(host_rsp, 64);
SLOT_AT(c_rsp, 72);
SLOT_AT(hsp_base, 80);
SLOT_AT(region, 88);
SLOT_AT(rip, 96);
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

void engine_trace(struct vcpu *v, unsigned what, const char *fmt, ...)
{
    if (!(v->vm->debug & what) || !v->vm->trace)
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
    return ev;
}
void engine_vcpu_free(struct engine_vcpu *ev)
{
    munmap(ev->hstack, 2 * HSTACK_HALF);
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
    struct engine_vcpu *ev = v->eng;
    if (!v->vm || !v->vm->cache)
        return;
    v->hsp_base = v->host_rsp = hstack_bottom(v, ev->hstack_user);
    ev->hsp_saved[!ev->hstack_user] = hstack_bottom(v, !ev->hstack_user);
}
static void hstack_select(struct vcpu *v, unsigned user)
{
    struct engine_vcpu *ev = v->eng;
    if (ev->hstack_user == user)
        return;
    ev->hsp_saved[ev->hstack_user] = v->host_rsp;
    v->host_rsp = ev->hsp_saved[user];
    ev->hstack_user = user;
    v->hsp_base = hstack_bottom(v, user);
}

/* -- Mode ------------------------------------------------------------------------------------------------ */

static bool flat(const struct seg *s)
{
    return s->base == 0 && s->limit == 0xffffffffu;
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
        if (flat(&v->seg[SEG_CS]) && flat(&v->seg[SEG_DS]) && flat(&v->seg[SEG_ES]) && flat(&v->seg[SEG_SS]))
            m |= MODE_FLAT;
    }
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
    v->mode = m;
    hstack_select(v, v->cpl == 3);
    if (ev->jc_mode[slot] != m) { /* what the jump cache and the predictions hold is of another mode */
        ev->jc_mode[slot] = m;
        if (slot >= SLOT_U) {
            for (unsigned i = 0; i < NR_SPACES; i++)
                jc_flush_space(&ev->space[i], slot);
        } else {
            jc_flush(v, slot);
        }
        engine_drop_returns(v);
    }
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

/* The block for v->rip in v->mode, made if need be. NULL: a fault was delivered or v->exit is set. */
static struct block *find_block(struct vcpu *v)
{
    struct code_cache *c = v->vm->cache;
    enum xret x = X_OK;
    struct block *b = NULL;
    struct mmu_span span;
    if (vcpu_long_mode(v) && !is_canonical(v->rip)) {
        x = raise_gp0(v);
    } else if (!vcpu_code64(v) && v->rip - v->seg[SEG_CS].base > v->seg[SEG_CS].limit) {
        x = raise_gp0(v);
    } else {
        x = mmu_walk(v, v->rip, ACC_X | vcpu_acc(v), &span);
    }
    if (x == X_OK) {
        pthread_mutex_lock(&v->vm->lock);
        b = cache_find(c, span.gpa, v->mode);
        if (b && b->page2 != ~0ull) {
            struct mmu_span second;
            x = mmu_walk(v, (v->rip & PAGE_MASK) + PAGE_SIZE, ACC_X | vcpu_acc(v), &second);
            if (x == X_OK && (second.gpa & PAGE_MASK) != b->page2) {
                cache_kill_block(c, b);
                b = NULL;
            }
        }
        if (x == X_OK && !b)
            x = translate_block(v, &b);
        pthread_mutex_unlock(&v->vm->lock);
    }
    if (x == X_FAULT) {
        deliver(v);
        return NULL;
    }
    if (x != X_OK)
        return NULL;
    unsigned h = code_seen_hash(v->rip & PAGE_MASK);
    v->eng->code_seen[h >> 6] |= BITULL(h & 63);
    if (b->page2 != ~0ull) {
        h = code_seen_hash((v->rip & PAGE_MASK) + PAGE_SIZE);
        v->eng->code_seen[h >> 6] |= BITULL(h & 63);
    }
    return b;
}

void *engine_unshared(struct vcpu *v, const struct slow_site *site)
{
    struct code_cache *c = v->vm->cache;
    v->eng->nr_noshare++;
    if (site->alt && cache_generation(c, site->alt) == site->alt_gen)
        return site->alt;
    u32 gen = cache_generation(c, (const u8 *)site);
    v->eng->noshare_insns = site->group;
    v->mode |= MODE_NOSHARE;
    struct block *b = find_block(v);
    v->mode &= ~MODE_NOSHARE;
    if (!b)
        return NULL;
    void *code = b->code + b->entry[ENTRY_FLAG];
    if (cache_generation(c, (const u8 *)site) == gen) {
        struct slow_site *rw = (struct slow_site *)cache_rw(c, (u8 *)site);
        rw->alt = code;
        rw->alt_gen = cache_generation(c, code);
    }
    return code;
}

static bool chains(const struct vcpu *v)
{
    return !(v->mode & (MODE_STEP | MODE_BRK)) && !(v->vm->debug & (VITRO_DEBUG_NO_CHAIN | VITRO_TRACE_BLOCK));
}

static void *enter_at(struct vcpu *v, bool after_poll)
{
    unsigned slot = v->mode & MODE_SLOT;
    struct jc_entry *e = jc_at(v, slot, v->rip);
    if (e->rip == v->rip && chains(v) && !after_poll)
        return (void *)e->host;
    v->eng->nr_lookup++;
    struct block *b = find_block(v);
    if (!b)
        return NULL;
    b->runs++;
    engine_trace(v, VITRO_TRACE_BLOCK, "%#llx mode %#x rsp %#llx rax %#llx\n", (unsigned long long)v->rip, v->mode,
                 (unsigned long long)v->regs[RSP], (unsigned long long)v->regs[RAX]);
    if (after_poll) {
        v->vbase = v->rip & PAGE_MASK;
        return b->code + b->entry[ENTRY_FLAG];
    }
    if (chains(v)) {
        e->rip = v->rip;
        e->host = (u64)(b->code + b->entry[ENTRY_IND]);
    }
    return b->code + b->entry[ENTRY_IND];
}

/* -- Called from emitted code ---------------------------------------------------------------------------------- */

void *engine_lookup(struct vcpu *v, u64 rip)
{
    v->rip = rip;
    if (v->event || v->eng->step_armed || v->eng->db_hit || v->eng->shadow_step || v->eng->watch_hit ||
        (v->mode & (MODE_BRK | MODE_STEP)))
        return NULL; /* engine_dispatch sorts it out */
    return enter_at(v, false);
}

void *engine_link(struct vcpu *v, const struct link_site *site)
{
    struct code_cache *c = v->vm->cache;
    u8 *patch = (u8 *)&site->patch + 4 + site->patch;
    unsigned entry = site->entry;
    v->rip = v->vbase + site->s.off;
    v->eng->nr_link++;
    if (v->event)
        return NULL;
    struct block *from = cache_block_at(c, patch);
    u32 gen = cache_generation(c, patch);
    struct block *b = find_block(v);
    if (!b)
        return NULL;
    /* The link is for ever: both ends must be of one page and mode, and still be there. */
    pthread_mutex_lock(&v->vm->lock);
    if (from && cache_generation(c, patch) == gen && !from->dead && !b->dead && b->page2 == ~0ull &&
        from->page == b->page && (from->mode & ~MODE_NOSHARE) == b->mode && !(v->vm->debug & VITRO_DEBUG_NO_CHAIN))
        cache_link(c, patch, b, entry);
    pthread_mutex_unlock(&v->vm->lock);
    return b->code + b->entry[ENTRY_IND];
}

u64 engine_poll(struct vcpu *v, const struct site *site)
{
    v->rip = v->vbase + site->off;
    v->eng->nr_poll++;
    /* A dropped block leaves this way too: the jump cache must not lead back to it. */
    struct jc_entry *e = jc_at(v, v->mode & MODE_SLOT, v->rip);
    if (e->rip == v->rip)
        e->rip = JC_NONE;
    return DISPATCH;
}

u64 engine_sys(struct vcpu *v, const struct sys_site *site)
{
    struct engine_vcpu *ev = v->eng;
    u32 mode = v->mode;
    unsigned len = site->s.len;
    bool end = site->s.kind;
    v->rip = v->vbase + site->s.off;
    v->nr_sys[site->in.id]++;
    engine_trace(v, VITRO_TRACE_SYS, "sys %s rip %#llx rax %#llx rcx %#llx rdx %#llx\n", insn_name(site->in.id),
                 (unsigned long long)v->rip, (unsigned long long)v->regs[RAX], (unsigned long long)v->regs[RCX],
                 (unsigned long long)v->regs[RDX]);
    enum xret x = site->handler(v, &site->in);
    v->region = (u64)v->space->base + VCPU_BIAS;
    switch (x) {
    case X_OK:
        if (!end && !ev->smc_hit && v->mode == mode)
            return RESUME;
        ev->smc_hit = false;
        v->rip += len;
        if (!(v->mode & MODE_64))
            v->rip = (u32)v->rip;
        return DISPATCH;
    case X_FAULT:
        deliver(v);
        return DISPATCH;
    default:
        ev->smc_hit = false;
        return DISPATCH;
    }
}

void engine_fault(struct vcpu *v)
{
    v->eng->nr_fault_signal++;
    deliver(v);
}

/* -- Events ------------------------------------------------------------------------------------------------- */

static void handle_events(struct vcpu *v)
{
    u32 e = __atomic_exchange_n(&v->event, 0, __ATOMIC_ACQ_REL) | v->intr_wait;
    v->intr_wait = 0;
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
        if (!(v->eflags & EFL_IF) || v->int_shadow || v->exit != EXIT_NONE) {
            v->intr_wait |= EVENT_INTR;
            return;
        }
        int vec = -1;
        if (v->host->intr_ack) {
            fpu_leave(v);
            vec = v->host->intr_ack(v->host->opaque, v->index);
            fpu_enter(v);
        }
        if (vec >= 0) {
            v->eng->step_armed = false;
            v->halted = 0;
            engine_trace(v, VITRO_TRACE_EXC, "intr %d rip %#llx\n", vec, (unsigned long long)v->rip);
            intr_deliver(v, (unsigned)vec);
            v->intr_wait |= EVENT_INTR; /* there may be another: asked when IF is set again */
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
    ev->db_hit = 0;
    ev->step_armed = false;
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
        if (unlikely(shadow && v->event)) { /* what waits must come right after this one instruction */
            v->mode |= MODE_STEP;
            ev->shadow_step = true;
        }
        void *code = enter_at(v, shadow);
        if (code) {
            v->region = (u64)v->space->base + VCPU_BIAS;
            return code;
        }
    }
}

void engine_run(struct vcpu *v)
{
    if (v->halted) { /* HLT ends with an interrupt, not before */
        if (event_due(v))
            handle_events(v);
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
    v->cr0 = CR0_ET | CR0_NW | CR0_CD;
    v->cr2 = v->cr3 = v->cr4 = v->cr8 = v->efer = 0;
    v->xcr0 = 1;
    for (unsigned i = 0; i < 8; i++)
        v->dr[i] = 0;
    v->dr[6] = 0xffff0ff0;
    v->dr[7] = 0x400;
    v->cpl = v->int_shadow = v->nmi_masked = v->halted = 0;
    v->exit = EXIT_NONE;
    v->intr_wait = 0;
    v->event = 0;
    v->star = v->lstar = v->cstar = v->sfmask = v->kernel_gs_base = v->tsc_aux = v->xss = 0;
    v->sysenter_cs = v->sysenter_esp = v->sysenter_eip = 0;
    msr_reset(v);
    struct engine_vcpu *ev = v->eng;
    ev->step_armed = ev->shadow_step = ev->stepped = ev->smc_hit = false;
    ev->db_hit = ev->watch_hit = 0;
    ev->commit = (struct commit){ 0 };
    tlb_flush_all(v, true);
    for (unsigned i = 0; i < NR_SPACES; i++)
        ev->space[i].used = false;
    ev->space[0].used = true;
    ev->space[0].pcid = 0;
    v->space = &ev->space[0];
    vcpu_mode_changed(v);
}
