/*
 * mwait.c - MONITOR and MWAIT. How stores are noticed: mwait.h.
 * Source: Intel SDM vol. 2 "MONITOR", "MWAIT"; vol. 3 §8.10 (use in idle and wait loops).
 * Not modelled: hints in EAX; AMD's HWCR bits (MonMwaitDis, MonMwaitUserEn); MONITORX, UMONITOR. The processor's own setting of
 * Accessed and Dirty bits is no store here. MMIO cannot be monitored: MWAIT goes on at once then.
 */
#include "engine/mwait.h"

#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/help.h"

/* Stores to a watched page for one MONITOR, before watching costs more than it is worth. */
#define PATIENCE 1000

static inline struct mwait_vcpu *of(const struct vcpu *v) { return &v->eng->mwait; }
static inline bool is_armed(const struct vcpu *v) { return __atomic_load_n(&of(v)->armed, __ATOMIC_SEQ_CST); }
static inline bool in_line(const struct mwait_vcpu *m, gpa_t gpa, unsigned len)
{
    return gpa < m->line + MONITOR_LINE && gpa + len > m->line;
}
static bool is_online(const struct vcpu *v) { return __atomic_load_n(&v->eng->smp.online, __ATOMIC_SEQ_CST); }

bool mwait_over(const struct vcpu *v)
{
    return !is_armed(v) || (of(v)->any_interrupt && (v->event | v->intr_wait) & EVENT_INTR);
}

/* -- Waking ------------------------------------------------------------------------------------------------ */

/* @by: whose vector state is in the host's registers; NULL: nobody's */
static void wake(struct vm *vm, struct vcpu *w, struct vcpu *by)
{
    if (!__atomic_exchange_n(&of(w)->armed, false, __ATOMIC_SEQ_CST))
        return;
    if (by && by->index == w->index)
        return;
    if (by)
        fpu_leave(by);
    vm->host.wake(vm->host.opaque, w->index);
    if (by)
        fpu_enter(by);
}

static void suspect(struct vcpu *w, struct vcpu *b)
{
    of(w)->suspects |= BITULL(b->index);
    __atomic_store_n(&of(b)->suspected, true, __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&b->event, EVENT_RESCHED, __ATOMIC_SEQ_CST);
}

void mwait_safepoint_locked(struct vcpu *v)
{
    struct vm *vm = v->vm;
    if (likely(!__atomic_load_n(&of(v)->suspected, __ATOMIC_SEQ_CST)))
        return;
    __atomic_store_n(&of(v)->suspected, false, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        struct vcpu *w = vm->vcpu[i];
        if (!w || !(of(w)->suspects & BITULL(v->index)))
            continue;
        of(w)->suspects &= ~BITULL(v->index);
        struct ram_slot *rs = ram_find(&vm->ram, of(w)->page);
        if (rs)
            tlb_unwrite_all(v, (u64)rs->host + (of(w)->page - rs->gpa));
        wake(vm, w, v);
    }
}
void mwait_safepoint(struct vcpu *v)
{
    if (likely(!__atomic_load_n(&of(v)->suspected, __ATOMIC_SEQ_CST)))
        return;
    engine_lock(v->vm);
    mwait_safepoint_locked(v);
    engine_unlock(v->vm);
}

/* -- Watching a page ----------------------------------------------------------------------------------------- */

static u8 *page_state(struct vm *vm, gpa_t page)
{
    struct ram_slot *rs = ram_find(&vm->ram, page);
    return rs ? &rs->page_state[(page - rs->gpa) >> PAGE_SHIFT] : NULL;
}

static void unwatch(struct vm *vm, struct vcpu *v)
{
    gpa_t page = of(v)->page;
    u8 *state = page == MWAIT_NOWHERE ? NULL : page_state(vm, page);
    of(v)->page = MWAIT_NOWHERE;
    of(v)->suspects = 0;
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        if (vm->vcpu[i] && of(vm->vcpu[i])->page == page)
            return;
    if (state)
        *state &= (u8)~PAGE_MONITORED;
}

/* Write access there is to the page must go, and who has it may be using it. */
static void watch(struct vm *vm, struct vcpu *v, gpa_t page)
{
    struct ram_slot *rs = ram_find(&vm->ram, page);
    u8 *state = page_state(vm, page);
    bool fresh = !(*state & PAGE_MONITORED);
    of(v)->page = page;
    __atomic_store_n(state, *state | PAGE_MONITORED, __ATOMIC_SEQ_CST);
    /* Pairs with the one in tlb.c's has_code(): who gives write access says so, then looks here. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        struct vcpu *b = vm->vcpu[i];
        if (!b)
            continue;
        if (!fresh) {
            if (of(b)->page == page)
                for (unsigned k = 0; k < vm->nr_vcpus; k++)
                    if (of(b)->suspects >> k & 1 && vm->vcpu[k])
                        suspect(v, vm->vcpu[k]);
        } else if (i != v->index && is_online(b)) {
            suspect(v, b);
        } else {
            tlb_unwrite_all(b, (u64)rs->host + (page - rs->gpa));
        }
    }
}

static void arm(struct vcpu *v, gpa_t gpa)
{
    struct vm *vm = v->vm;
    struct mwait_vcpu *m = of(v);
    engine_lock(vm);
    __atomic_store_n(&m->line, gpa & ~(gpa_t)(MONITOR_LINE - 1), __ATOMIC_RELAXED);
    m->stores = 0;
    if (m->page != (gpa & PAGE_MASK)) {
        unwatch(vm, v);
        watch(vm, v, gpa & PAGE_MASK);
    }
    for (unsigned i = 0; vm->smp && i < vm->nr_vcpus; i++) { /* stores that passed mwait_store() before */
        struct vcpu *b = vm->vcpu[i];
        u32 len = b && i != v->index ? __atomic_load_n(&b->eng->smp.store_len, __ATOMIC_ACQUIRE) : 0;
        if (len && (len == STORE_ANYWHERE || in_line(m, b->eng->smp.store_gpa, len)))
            suspect(v, b);
    }
    __atomic_store_n(&m->armed, true, __ATOMIC_SEQ_CST);
    engine_unlock(vm);
}

void mwait_store(struct vcpu *v, gpa_t gpa, unsigned len)
{
    struct vm *vm = v->vm;
    u8 *state = page_state(vm, gpa & PAGE_MASK);
    if (likely(!state || !(*state & PAGE_MONITORED)))
        return;
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        struct vcpu *w = vm->vcpu[i];
        if (!w || of(w)->page != (gpa & PAGE_MASK))
            continue;
        bool gives_up = ++of(w)->stores > PATIENCE;
        if (is_armed(w) && (gives_up || in_line(of(w), gpa, len))) {
            if (i == v->index)
                wake(vm, w, v);
            else
                suspect(w, v);
        }
        if (gives_up) {
            wake(vm, w, v);
            unwatch(vm, w);
        }
    }
}

void mwait_written(struct vm *vm, gpa_t gpa, unsigned len)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the bytes, then who waits for them: MONITOR has it the other way round */
    for (unsigned i = 0; i < ARRAY_SIZE(vm->vcpu); i++) {
        struct vcpu *w = vm->vcpu[i];
        if (w && is_armed(w) && in_line(of(w), gpa, len))
            wake(vm, w, NULL);
    }
}

void mwait_reset(struct vcpu *v)
{
    __atomic_store_n(&of(v)->armed, false, __ATOMIC_SEQ_CST);
}

/* -- The instructions ------------------------------------------------------------------------------------------- */

static bool has_mwait(const struct vcpu *v)
{
    u32 r[4];
    cpu_model_cpuid(v->model, v, 1, 0, r);
    return r[2] & BIT(3);
}
static u64 rcx(const struct vcpu *v) { return vcpu_code64(v) ? v->regs[RCX] : (u32)v->regs[RCX]; }

enum xret sys_monitor(struct vcpu *v, const struct insn *in)
{
    gla_t la;
    struct tlb_ref ref;
    if (v->cpl != 0 || !has_mwait(v))
        return raise_ud(v);
    if (rcx(v))
        return raise_gp0(v);
    u64 off = v->regs[RAX] & (in->addrsize == 8 ? ~0ull : in->addrsize == 4 ? ~0u : 0xffffu);
    enum xret x = seg_linear(v, in->seg, off, 1, ACC_R, &la);
    if (x == X_OK) /* a load of a byte, as far as rights go */
        x = mem_probe(v, la, 1, ACC_R);
    if (x == X_OK)
        x = tlb_translate(v, la, ACC_R, &ref);
    if (x != X_OK)
        return x;
    mwait_reset(v);
    if (ref.host)
        arm(v, ref.gpa);
    return X_OK;
}

enum xret sys_mwait(struct vcpu *v, const struct insn *in)
{
    if (v->cpl != 0 || !has_mwait(v))
        return raise_ud(v);
    if (rcx(v) & ~1ull)
        return raise_gp0(v);
    v->rip = vcpu_code64(v) ? v->rip + in->len : (u32)(v->rip + in->len);
    v->int_shadow = 0;
    of(v)->any_interrupt = v->regs[RCX] & 1;
    if (mwait_over(v)) {
        mwait_reset(v);
        return X_JUMP;
    }
    v->halted = HALTED_MWAIT;
    v->exit = EXIT_HLT;
    return X_EXIT;
}
