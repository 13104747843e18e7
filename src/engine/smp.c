/*
 * smp.c - several vCPUs: safepoints, waiting for them, and what is asked there. Rules: smp.h.
 * Not modelled: nothing stops the world; a vCPU that the host does not run is waited for.
 */
#define _GNU_SOURCE
#include "engine/smp.h"

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include "engine/engine.h"
#include "engine/help.h"
#include "engine/translate.h"

static void note_cpu(struct vcpu *v)
{
    int cpu = sched_getcpu();
    if (v->eng->smp.cpu != cpu)
        __atomic_store_n(&v->eng->smp.cpu, cpu, __ATOMIC_RELAXED);
}

/*
 * It is held for a look-up or a translation, less than going to sleep and being woken takes. So who waits looks again for as long
 * as that, but no longer: the host may have taken the holder's CPU away.
 */
#define LOCK_SPIN_CYCLES 50000
void engine_lock_contended(struct vm *vm)
{
    for (u64 start = host_rdtsc(); host_rdtsc() - start < LOCK_SPIN_CYCLES;) {
        __builtin_ia32_pause();
        if (!pthread_mutex_trylock(&vm->lock))
            return;
    }
    pthread_mutex_lock(&vm->lock);
}

/* -- Answering ---------------------------------------------------------------------------------------- */

/* v is the caller's own, or offline with vm->lock held. */
static void answer(struct vcpu *v)
{
    struct smp_vcpu *s = &v->eng->smp;
    v->eng->watched.valid = false;
    if (s->revoke_host) {
        if (s->revoke_all)
            tlb_unwrite_all(v, s->revoke_host);
        for (unsigned i = 0; i < s->nr_revoke; i++)
            tlb_unwrite_entry(v, s->revoke[i], s->revoke_host);
    }
    s->revoke_host = s->nr_revoke = 0;
    s->revoke_all = false;
}

/* Code that was reclaimed since must not be reached by what this vCPU remembers. */
static void follow_reclaims(struct vcpu *v)
{
    u64 now = cache_reclaims(v->vm->cache);
    if (likely(v->eng->smp.reclaims == now))
        return;
    v->eng->smp.reclaims = now;
    jc_flush_all(v);
    engine_drop_returns(v);
}

static bool settle(struct vcpu *v)
{
    struct smp_vcpu *s = &v->eng->smp;
    bool stand = false;
    s->store_len = 0;
    s->c_holds = false;
    u32 asked = __atomic_load_n(&s->asked, __ATOMIC_ACQUIRE);
    follow_reclaims(v);
    if (asked) {
        answer(v);
        stand = s->stand;
        s->stand = false;
        __atomic_store_n(&s->asked, 0, __ATOMIC_RELEASE);
    }
    return stand;
}

void smp_safepoint(struct vcpu *v)
{
    if (!v->vm->smp)
        return;
    note_cpu(v);
    mwait_safepoint(v);
    if (unlikely(settle(v))) { /* until who asked has made its translation: else this one might come first each time */
        smp_offline(v);
        turns_take(&v->vm->xl_lock);
        turns_give(&v->vm->xl_lock);
        smp_online(v);
    }
}

void smp_online(struct vcpu *v)
{
    if (!v->vm->smp)
        return;
    pthread_mutex_lock(&v->vm->lock);
    settle(v);
    mwait_safepoint_locked(v);
    note_cpu(v);
    __atomic_store_n(&v->eng->smp.online, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&v->vm->lock);
}

void smp_offline(struct vcpu *v)
{
    if (!v->vm->smp)
        return;
    settle(v);
    __atomic_store_n(&v->eng->smp.online, 0, __ATOMIC_SEQ_CST);
    mwait_safepoint(v); /* who suspected us before looks no more, who does it from now on sees us offline */
}

/* -- Asking ------------------------------------------------------------------------------------------- */

static bool is_online(const struct vcpu *v)
{
    return __atomic_load_n(&v->eng->smp.online, __ATOMIC_SEQ_CST);
}

void smp_ask(struct vcpu *b)
{
    struct smp_vcpu *s = &b->eng->smp;
    s->nr_asked++;
    __atomic_store_n(&s->asked, 1, __ATOMIC_RELEASE);
    __atomic_fetch_or(&b->event, EVENT_RESCHED, __ATOMIC_SEQ_CST);
}

static bool answered(const struct vcpu *b)
{
    return !__atomic_load_n(&b->eng->smp.asked, __ATOMIC_ACQUIRE) || !is_online(b);
}

/* Longer and longer: whom we wait for may not even have a CPU of the host's. */
static void wait_a_moment(unsigned n)
{
    static const struct timespec nap = { 0, 50000 };
    if (n < 500)
        __builtin_ia32_pause();
    else if (n < 520)
        sched_yield();
    else
        nanosleep(&nap, NULL);
}

void smp_back(struct vcpu *v)
{
    smp_online(v);
    if (__atomic_load_n(&v->event, __ATOMIC_SEQ_CST) & (EVENT_FLUSH | EVENT_FLUSH_SPACES)) { /* who asked did not wait for us */
        u32 was = __atomic_fetch_and(&v->event, ~(EVENT_FLUSH | EVENT_FLUSH_SPACES), __ATOMIC_SEQ_CST);
        smp_flush_whole(v, was & EVENT_FLUSH);
    }
    if (__atomic_load_n(&v->event, __ATOMIC_SEQ_CST) & EVENT_FLUSH_PAGES) {
        __atomic_fetch_and(&v->event, ~EVENT_FLUSH_PAGES, __ATOMIC_SEQ_CST);
        smp_flush_listed(v);
    }
}

void smp_flush_whole(struct vcpu *v, bool global_too)
{
    const struct vitro_outer *o = v->vm->pv.outer;
    if (vcpu_has_outer(v))
        o->flush(o->opaque, v->index);
    else
        tlb_flush_all(v, global_too);
}

static bool is_meant(const struct vcpu *v, unsigned i, u64 which)
{
    return v->vm->vcpu[i] && i != v->index && which >> i & 1;
}

static void flush_lock(struct smp_vcpu *s)
{
    while (__atomic_exchange_n(&s->flush_lock, 1, __ATOMIC_ACQUIRE))
        __builtin_ia32_pause();
}
static void flush_unlock(struct smp_vcpu *s)
{
    __atomic_store_n(&s->flush_lock, 0, __ATOMIC_RELEASE);
}

/* The event for b to be told; ranges are added to its list if they fit. */
static u32 list_flush(struct vcpu *b, const struct vitro_flush *list, unsigned nr)
{
    struct smp_vcpu *s = &b->eng->smp;
    u32 event = EVENT_FLUSH;
    flush_lock(s);
    if (nr && nr <= VITRO_FLUSH_MAX - s->nr_flush) {
        for (unsigned i = 0; i < nr; i++)
            s->flush[s->nr_flush++] = list[i];
        event = EVENT_FLUSH_PAGES;
    }
    flush_unlock(s);
    return event;
}

void smp_flush_listed(struct vcpu *v)
{
    struct smp_vcpu *s = &v->eng->smp;
    struct vitro_flush list[VITRO_FLUSH_MAX];
    flush_lock(s);
    unsigned nr = s->nr_flush;
    for (unsigned i = 0; i < nr; i++)
        list[i] = s->flush[i];
    s->nr_flush = 0;
    flush_unlock(s);
    for (unsigned i = 0; i < nr; i++)
        vitro_vcpu_flush_pages((struct vitro_vcpu *)v, list[i].pcid, list[i].va, list[i].pages, list[i].global);
}

bool smp_flush_others(struct vcpu *v, u64 which, const struct vitro_flush *list, unsigned nr)
{
    struct vm *vm = v->vm;
    if (!vm->smp)
        return false;
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        if (is_meant(v, i, which))
            __atomic_fetch_or(&vm->vcpu[i]->event, list_flush(vm->vcpu[i], list, nr), __ATOMIC_SEQ_CST);
    /* One that is offline looks at its events before it runs the guest. Two that wait for each other are both offline. */
    bool any = false;
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        any |= is_meant(v, i, which) && is_online(vm->vcpu[i]);
    if (!any)
        return false;
    smp_offline(v);
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        struct vcpu *b = vm->vcpu[i];
        for (unsigned n = 0; is_meant(v, i, which) && is_online(b) &&
                             __atomic_load_n(&b->event, __ATOMIC_SEQ_CST) & (EVENT_FLUSH | EVENT_FLUSH_PAGES); n++)
            wait_a_moment(n);
    }
    smp_back(v);
    return true;
}

/* All answers to what was asked. vm->lock held; given up while waiting. */
static void wait_for_answers(struct vcpu *v)
{
    struct vm *vm = v->vm;
    bool any = false;
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        any |= vm->vcpu[i] && vm->vcpu[i]->eng->smp.asked;
    if (!any)
        return;
    v->eng->smp.nr_waits++;
    pthread_mutex_unlock(&vm->lock);
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        struct vcpu *b = vm->vcpu[i];
        for (unsigned n = 0; b && b->index != v->index && !answered(b); n++)
            wait_a_moment(n);
    }
    pthread_mutex_lock(&vm->lock);
    for (unsigned i = 0; i < vm->nr_vcpus; i++) { /* those that went offline may have left it to us */
        struct vcpu *b = vm->vcpu[i];
        if (b && b->eng->smp.asked && !is_online(b)) {
            answer(b);
            b->eng->smp.stand = false;
            b->eng->smp.asked = 0;
        }
    }
}

/* -- Translating -------------------------------------------------------------------------------------- */

void smp_xl_lock(struct vcpu *v)
{
    struct vm *vm = v->vm;
    if (!vm->smp || turns_try(&vm->xl_lock))
        return;
    smp_offline(v);
    turns_take(&vm->xl_lock);
    smp_online(v);
}

void smp_xl_unlock(struct vcpu *v)
{
    struct vm *vm = v->vm;
    if (!vm->smp)
        return;
    while (vm->nr_claims)
        cache_unclaim(vm->cache, vm->claim[--vm->nr_claims]);
    turns_give(&vm->xl_lock);
}

/* Those whose C may be writing by a pointer. */
static void ask_writers(struct vcpu *v)
{
    struct vm *vm = v->vm;
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        struct vcpu *b = vm->vcpu[i];
        if (b && b->index != v->index && is_online(b) &&
            (__atomic_load_n(&b->eng->smp.c_writes, __ATOMIC_RELAXED) || __atomic_load_n(&b->eng->smp.c_holds, __ATOMIC_RELAXED)))
            smp_ask(b);
    }
}

void smp_claim(struct vcpu *v, gpa_t page)
{
    struct vm *vm = v->vm;
    struct ram_slot *rs = ram_find(&vm->ram, page);
    if (!rs || cache_claimed(vm->cache, page))
        return;
    if (vm->nr_claims == ARRAY_SIZE(vm->claim)) { /* the guest's tables change under us */
        cache_unclaim(vm->cache, vm->claim[0]);
        vm->claim[0] = vm->claim[--vm->nr_claims];
    }
    vm->claim[vm->nr_claims++] = page;
    if (!cache_claim(vm->cache, page))
        return;
    /* Dekker: we have said that there is code, and look for writers; they say that they write, and look for code. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    tlb_revoke_page(v, rs, page);
    ask_writers(v);
    wait_for_answers(v);
}

void smp_revoke(struct vcpu *v, struct ram_slot *rs, gpa_t page)
{
    struct vm *vm = v->vm;
    if (!vm->smp) {
        tlb_unwrite_page(v, rs, page);
        return;
    }
    smp_xl_lock(v);
    engine_lock(vm);
    /* Dekker again: who fills an entry notes it, then looks at the number (tlb_translate). */
    __atomic_fetch_add(&vm->revoked, 1, __ATOMIC_SEQ_CST);
    tlb_revoke_page(v, rs, page);
    ask_writers(v);
    if (rs->page_state[(page - rs->gpa) >> PAGE_SHIFT] & PAGE_HAS_CODE) /* somebody may remember it as watched */
        for (unsigned i = 0; i < vm->nr_vcpus; i++) {
            struct vcpu *b = vm->vcpu[i];
            if (b && i != v->index && is_online(b))
                smp_ask(b);
            else if (b)
                b->eng->watched.valid = false;
        }
    wait_for_answers(v);
    smp_xl_unlock(v);
    engine_unlock(vm);
}

void smp_prepare(struct vcpu *v)
{
    struct vm *vm = v->vm;
    struct xl *x = vm->xl;
    if (cache_wants_room(vm->cache)) {
        cache_retire(vm->cache);
        for (unsigned i = 0; i < vm->nr_vcpus; i++)
            if (vm->vcpu[i] && i != v->index && is_online(vm->vcpu[i]))
                smp_ask(vm->vcpu[i]);
        wait_for_answers(v);
        follow_reclaims(v);
        cache_reuse(vm->cache);
    } else if (x->in_the_way) {
        if (is_online(x->in_the_way)) {
            x->in_the_way->eng->smp.stand = true;
            smp_ask(x->in_the_way);
        }
        wait_for_answers(v);
    } else {
        smp_claim(v, x->unclaimed);
    }
}

void smp_note_stores(struct vcpu *v)
{
    struct vm *vm = v->vm;
    vm->nr_stores = 0;
    for (unsigned i = 0; vm->smp && i < vm->nr_vcpus; i++) {
        struct vcpu *o = vm->vcpu[i];
        u32 len = o && i != v->index ? __atomic_load_n(&o->eng->smp.store_len, __ATOMIC_ACQUIRE) : 0;
        if (len)
            vm->store[vm->nr_stores++] = (struct smp_store){ o, o->eng->smp.store_gpa, len };
    }
}

struct vcpu *smp_conflict(struct vm *vm, const struct block *b)
{
    for (unsigned i = 0; i < vm->nr_stores; i++) {
        const struct smp_store *s = &vm->store[i];
        if (s->len == STORE_ANYWHERE || block_overlaps(b, s->gpa, s->len))
            return s->by;
    }
    return NULL;
}

/* -- Waiting in a loop ----------------------------------------------------------------------------------- */

/* PAUSEs until the host's CPU is given away: guests wait this way for very short times, some microseconds, or for vCPUs that
 * do not run. */
#define PAUSE_BURST 100
/* Another vCPU wants the same CPU, and has an interrupt to take, which may be what is waited for, or waits in a loop too, so that
 * it will soon give the CPU back. (One that computes may keep it for milliseconds.) */
#define PAUSE_FEW 8

static bool shares_cpu(struct vcpu *v, bool with_one_that_waits)
{
    const struct vm *vm = v->vm;
    note_cpu(v);
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        struct vcpu *b = vm->vcpu[i];
        if (!b || i == v->index || !is_online(b) || __atomic_load_n(&b->eng->smp.cpu, __ATOMIC_RELAXED) != v->eng->smp.cpu)
            continue;
        if (!with_one_that_waits || __atomic_load_n(&b->eng->smp.yields, __ATOMIC_RELAXED) ||
            __atomic_load_n(&b->event, __ATOMIC_RELAXED))
            return true;
    }
    return false;
}

bool smp_shares_cpu(struct vcpu *v)
{
    return shares_cpu(v, false);
}

/* told: others may know that this vCPU does not run. */
static void give_away(struct vcpu *v, bool told)
{
    const struct vitro_pv *pv = &v->vm->pv;
    bool flush = false;
    told = told && pv->yield_begin;
    v->eng->smp.nr_yields++;
    if (told) {
        fpu_leave(v);
        pv->yield_begin(pv->opaque, v->index);
    }
    __atomic_store_n(&v->eng->smp.yields, true, __ATOMIC_RELAXED);
    sched_yield();
    __atomic_store_n(&v->eng->smp.yields, false, __ATOMIC_RELAXED);
    if (told) {
        flush = pv->yield_end(pv->opaque, v->index);
        fpu_enter(v);
    }
    if (flush) {
        tlb_flush_all(v, false);
        v->eng->smc_hit = true;
    }
}

void smp_yield(struct vcpu *v)
{
    give_away(v, true);
}

/* A yield this short was for nobody: the next one is most likely, too. Who waits for this vCPU does better to interrupt it
 * than to leave it a flush of its TLB. */
#define SHORT_TICKS (1u << 13) /* of the TSC: some microseconds */
/* One this long was for somebody who computes, another process perhaps: the host counts each as a whole time slice, so
 * that few of them are made for a while. */
#define LONG_TICKS (1u << 20) /* a fraction of a millisecond */
#define LONG_LASTS 16

enum xret sys_pause(struct vcpu *v, const struct insn *in)
{
    struct smp_vcpu *s = &v->eng->smp;
    u64 began = host_rdtsc();
    (void)in;
    give_away(v, s->gave);
    u64 took = host_rdtsc() - began;
    s->gave = took > SHORT_TICKS;
    if (took > LONG_TICKS)
        s->long_yields = LONG_LASTS;
    else if (s->long_yields)
        s->long_yields--;
    v->pauses = !s->long_yields && shares_cpu(v, true) ? PAUSE_FEW : PAUSE_BURST;
    return X_OK;
}

/* -- Split locks -------------------------------------------------------------------------------------- */

u8 *smp_join(struct vcpu *v, u8 *first, u8 *second)
{
    struct smp_vcpu *s = &v->eng->smp;
    if (second == first + PAGE_SIZE)
        return first;
    if (!s->split) {
        void *p = mmap(NULL, 2 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            return NULL;
        s->split = p;
    }
    u8 *page[2] = { first, second };
    for (unsigned i = 0; i < 2; i++) {
        if (s->split_of[i] == page[i])
            continue;
        s->split_of[i] = NULL;
        /* An old size of 0 maps shared pages once more (mremap(2)). */
        if (mremap(page[i], 0, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, s->split + i * PAGE_SIZE) == MAP_FAILED)
            return NULL;
        s->split_of[i] = page[i];
    }
    return s->split;
}

bool smp_bus_lock(struct vcpu *v)
{
    if (!v->vm->smp)
        return true;
    if (__atomic_exchange_n(&v->vm->bus, 1, __ATOMIC_ACQUIRE)) {
        sched_yield();
        return false;
    }
    v->eng->smp.bus = true;
    return true;
}

void smp_bus_unlock(struct vcpu *v)
{
    if (likely(!v->eng->smp.bus))
        return;
    v->eng->smp.bus = false;
    __atomic_store_n(&v->vm->bus, 0, __ATOMIC_RELEASE);
}

void smp_vcpu_fini(struct vcpu *v)
{
    if (v->eng->smp.split)
        munmap(v->eng->smp.split, 2 * PAGE_SIZE);
}
