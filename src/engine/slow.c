/*
 * slow.c - what happens when the inline TLB check says no, and memory access for C helpers.
 *
 * The check fails for a miss, a page crossing, MMIO, a write to a page with translations, a debugger's
 * watchpoint, or a fault. A miss is filled and the operation goes on where it was. For what cannot
 * be addressed directly the *same instruction* runs on a bounce buffer (engine_slow points s1/s2 at it), and
 * engine_commit copies the result out afterwards. No instruction is ever interpreted.
 */
#include "engine/emit.h"
#include "engine/fpu.h"

/* -- Physical pieces ------------------------------------------------------------------------------- */

static void mmio(struct vcpu *v, gpa_t gpa, u8 *buf, unsigned len, bool write)
{
    const struct engine_host *h = v->host;
    v->nr_mmio++;
    if (!v->outer) /* struct vitro_outer: its functions leave vector registers alone, and so do these */
        fpu_leave(v);
    while (len && v->eng->store == STORE_DONE) {
        unsigned n = MIN(len, 64u);
        if (write) {
            if (h->mmio_write)
                h->mmio_write(h->opaque, v->index, gpa, buf, n);
            if (v->eng->store_before)
                v->eng->store_before += n;
        } else if (h->mmio_read) {
            h->mmio_read(h->opaque, v->index, gpa, buf, n);
        } else {
            for (unsigned i = 0; i < n; i++)
                buf[i] = 0xff;
        }
        gpa += n;
        buf += n;
        len -= n;
    }
    if (!v->outer)
        fpu_enter(v);
}

/*
 * C writes guest memory by a pointer it has. With several vCPUs: either who claims the page for translation sees that we
 * are writing (smp_claim), or we see that there is code.
 */
static inline void c_write_begin(struct vcpu *v)
{
    if (v->vm->smp)
        __atomic_fetch_add(&v->eng->smp.c_writes, 1, __ATOMIC_SEQ_CST);
}
static inline void c_write_end(struct vcpu *v)
{
    if (v->vm->smp)
        __atomic_store_n(&v->eng->smp.c_writes, v->eng->smp.c_writes - 1, __ATOMIC_RELEASE);
}
/* The running instruction is about to store here, though the page holds translations: who makes one of these bytes
 * waits until it has (smp_conflict). vm->lock held, and what there was is dropped. */
static inline void store_begin(struct vcpu *v, gpa_t gpa, unsigned len)
{
    v->eng->smp.store_gpa = gpa;
    __atomic_store_n(&v->eng->smp.store_len, v->vm->smp ? len : 0, __ATOMIC_RELAXED);
}

/* Write to RAM at a host address, dropping translations of those bytes. Returns whether the block holding
 * `pc` was among them. */
static bool ram_store(struct vcpu *v, u8 *host, gpa_t gpa, const u8 *buf, unsigned len, const u8 *pc)
{
    struct ram_slot *rs = ram_find(&v->vm->ram, gpa);
    bool self = false;
    c_write_begin(v);
    if (__atomic_load_n(&rs->page_state[(gpa - rs->gpa) >> PAGE_SHIFT], __ATOMIC_RELAXED) & (PAGE_HAS_CODE | PAGE_MONITORED)) {
        bool left;
        engine_lock(v->vm);
        mwait_store(v, gpa, len);
        self = cache_kill_range(v, v->vm->cache, gpa, len, pc, &left);
        engine_copy(host, buf, len);
        engine_unlock(v->vm);
        v->eng->nr_watched++;
        v->eng->smc_hit |= !pc; /* perhaps the block that called a helper: leave it */
    } else {
        engine_copy(host, buf, len);
    }
    c_write_end(v);
    return self;
}

void mem_watch_check(struct vcpu *v, gla_t la, unsigned len, unsigned acc)
{
    struct engine_vcpu *ev = v->eng;
    for (unsigned i = 0; i < ev->nr_watch; i++) {
        struct watch *w = &ev->watch[i];
        if (la < w->la + w->len && w->la < la + len && ((acc & ACC_W) || w->kind == VITRO_WATCH_ACCESS))
            ev->watch_hit = w->la;
    }
    if (!(v->dr[7] & 0xff))
        return;
    for (unsigned i = 0; i < 4; i++) { /* SDM vol. 3 §17.2.4: R/W 01 writes, 11 reads and writes */
        if (!(v->dr[7] >> (i * 2) & 3))
            continue;
        unsigned rw = v->dr[7] >> (16 + i * 4) & 3, ln = v->dr[7] >> (18 + i * 4) & 3;
        unsigned size = ln == 0 ? 1 : ln == 1 ? 2 : ln == 3 ? 4 : 8;
        gla_t at = v->dr[i] & ~(u64)(size - 1);
        if ((rw == 3 || (rw == 1 && (acc & ACC_W))) && la < at + size && at < la + len)
            ev->db_hit |= 1u << i;
    }
}

/* -- For helpers ------------------------------------------------------------------------------------- */

static inline bool watching(struct vcpu *v)
{
    return v->eng->nr_watch || (v->dr[7] & 0xff);
}

/* Raise for an address no page table can map; X_OK if there is none such. */
static enum xret check_canonical(struct vcpu *v, gla_t la, unsigned len, bool stack)
{
    if (!vcpu_long_mode(v) || (is_canonical(la) && is_canonical(la + len - 1)))
        return X_OK;
    return raise_error(v, stack ? VEC_SS : VEC_GP, 0);
}

/* SDM vol. 3 table 6-7, by an operand's size; vectors and x87 environments and states as a Zen 4 CPU
 * does it (but for an EVEX opmask: there it goes by the element). */
static inline bool misaligned(gla_t la, unsigned len)
{
    switch (len) {
    case 2: case 14: case 94: return la & 1;
    case 4: case 28: case 108: return la & 3;
    case 8: case 10: return la & 7;
    case 16: case 32: case 64: return la & 15;
    default: return false;
    }
}

static enum xret one_page(struct vcpu *v, gla_t la, unsigned acc, struct tlb_ref *ref)
{
    struct tlb_entry *e = tlb_at(v, tlb_slot(v, acc), la);
    gla_t tag = acc & ACC_W ? e->tag_w : e->tag_r;
    if (likely(la - tag < PAGE_SIZE) && !(acc & ACC_X)) {
        ref->host = (u8 *)e->host + (la & ~PAGE_MASK);
        ref->watched = false;
        return X_OK;
    }
    return tlb_translate(v, la, acc, ref);
}

enum xret mem_host(struct vcpu *v, gla_t la, unsigned len, unsigned acc, void **host)
{
    *host = NULL;
    if (((la & ~PAGE_MASK) + len > PAGE_SIZE) || watching(v) || (v->mode & MODE_AC))
        return X_OK;
    struct tlb_ref ref;
    if ((acc & ACC_W) && v->vm->smp) {
        v->eng->smp.c_holds = true;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    enum xret x = check_canonical(v, la, len, false);
    if (x == X_OK)
        x = one_page(v, la, acc, &ref);
    if (x != X_OK)
        return x;
    if (!ref.watched)
        *host = ref.host;
    return X_OK;
}

/* The host's bytes, if the TLB has all of them and nothing is watched. No tag is that of an address which is not canonical. */
static inline u8 *known(struct vcpu *v, gla_t la, unsigned len, unsigned acc)
{
    const struct tlb_entry *e = tlb_at(v, tlb_slot(v, acc), la);

    if (len > PAGE_SIZE || la - (acc & ACC_W ? e->tag_w : e->tag_r) > PAGE_SIZE - len || watching(v) || (v->mode & MODE_AC))
        return NULL;
    return (u8 *)e->host + (la & ~PAGE_MASK);
}

bool mem_read_known(struct vcpu *v, gla_t la, void *buf, unsigned len, unsigned acc)
{
    const u8 *host = known(v, la, len, acc | ACC_R);

    if (likely(host))
        engine_copy(buf, host, len);
    return host;
}

bool mem_write_known(struct vcpu *v, gla_t la, const void *buf, unsigned len, unsigned acc)
{
    c_write_begin(v);
    u8 *host = known(v, la, len, acc | ACC_W);
    if (likely(host))
        engine_copy(host, buf, len);
    c_write_end(v);
    return host;
}

const void *vitro_vcpu_peek(struct vitro_vcpu *c, uint64_t la, size_t len)
{
    return known((struct vcpu *)c, la, (unsigned)MIN(len, PAGE_SIZE + 1), ACC_R | ACC_SYS);
}

void *vitro_vcpu_poke_begin(struct vitro_vcpu *c, uint64_t la, size_t len)
{
    struct vcpu *v = (struct vcpu *)c;

    c_write_begin(v);
    void *host = known(v, la, (unsigned)MIN(len, PAGE_SIZE + 1), ACC_W | ACC_SYS);
    if (unlikely(!host))
        c_write_end(v);
    return host;
}

void vitro_vcpu_poke_end(struct vitro_vcpu *c) { c_write_end((struct vcpu *)c); }

/* Both pages of an access are resolved before a byte moves. */
static enum xret resolve(struct vcpu *v, gla_t la, unsigned len, unsigned acc, struct tlb_ref ref[2], unsigned *n1)
{
    enum xret x = check_canonical(v, la, len, false);
    if (x != X_OK)
        return x;
    if (unlikely(v->mode & MODE_AC) && (acc & (ACC_USER | ACC_LOOSE)) == ACC_USER && misaligned(la, len))
        return raise_error(v, VEC_AC, 0);
    if (watching(v))
        mem_watch_check(v, la, len, acc);
    *n1 = MIN(len, (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK)));
    x = one_page(v, la, acc, &ref[0]);
    if (x != X_OK || *n1 == len)
        return x;
    gla_t second = la + *n1;
    if (!vcpu_long_mode(v))
        second = (u32)second;
    return one_page(v, second, acc, &ref[1]);
}

enum xret mem_probe(struct vcpu *v, gla_t la, unsigned len, unsigned acc)
{
    struct tlb_ref ref[2];
    unsigned n1;
    return resolve(v, la, len, acc, ref, &n1);
}

enum xret mem_read(struct vcpu *v, gla_t la, void *buf, unsigned len, unsigned acc)
{
    struct tlb_ref ref[2];
    unsigned n1;
    enum xret x = resolve(v, la, len, acc | ACC_R, ref, &n1);
    if (x != X_OK)
        return x;
    for (unsigned i = 0, at = 0; at < len; i++) {
        unsigned n = i ? len - n1 : n1;
        if (ref[i].host)
            engine_copy((u8 *)buf + at, ref[i].host, n);
        else
            mmio(v, ref[i].gpa, (u8 *)buf + at, n, false);
        at += n;
    }
    return X_OK;
}

/* The store was one of those that mmio_write may not do, and it was not done. Refused: v->exc is the page fault. */
static bool store_not_done(struct vcpu *v, gla_t la)
{
    if (likely(v->eng->store == STORE_DONE))
        return false;
    raise_error(v, VEC_PF, PF_P | PF_W);
    v->exc.cr2 = la;
    return true;
}

enum xret mem_write(struct vcpu *v, gla_t la, const void *buf, unsigned len, unsigned acc)
{
    struct tlb_ref ref[2];
    unsigned n1;
    c_write_begin(v);
    enum xret x = resolve(v, la, len, acc | ACC_W, ref, &n1);
    for (unsigned i = 0, at = 0; at < len && x == X_OK; i++) {
        unsigned n = i ? len - n1 : n1;
        const u8 *from = (const u8 *)buf + at;
        if (!ref[i].host) {
            mmio(v, ref[i].gpa, (u8 *)from, n, true);
            if (store_not_done(v, la + at)) { /* refused: only what looked first is asked to do it again */
                v->eng->store = STORE_DONE;
                x = X_FAULT;
            }
        } else if (ref[i].watched) {
            ram_store(v, ref[i].host, ref[i].gpa, from, n, NULL);
        } else {
            engine_copy(ref[i].host, from, n);
        }
        at += n;
    }
    c_write_end(v);
    return x;
}

const u8 *mem_watched(struct vcpu *v, gla_t la, unsigned acc)
{
    struct tlb_ref ref;
    return !watching(v) && one_page(v, la, acc | ACC_W, &ref) == X_OK && ref.watched ? ref.host : NULL;
}

/* A host pointer at which the running instruction is one access to both pages of an operand that crosses. */
static u8 *join(struct vcpu *v, const struct tlb_ref ref[2])
{
    u8 *p = smp_join(v, (u8 *)((u64)ref[0].host & PAGE_MASK), ref[1].host);
    return p ? p + ((u64)ref[0].host & ~PAGE_MASK) : NULL;
}

enum xret mem_locked(struct vcpu *v, gla_t la, unsigned len, unsigned acc, void **host)
{
    struct tlb_ref ref[2];
    unsigned n1;
    *host = NULL;
    if (v->vm->smp) {
        v->eng->smp.c_holds = true;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    enum xret x = resolve(v, la, len, acc | ACC_R | ACC_W, ref, &n1);
    if (x != X_OK)
        return x;
    unsigned n = n1 < len ? 2 : 1;
    if (!ref[0].host || (n == 2 && !ref[1].host))
        return X_OK;
    for (unsigned i = 0; i < n; i++)
        if (ref[i].watched) {
            bool left;
            engine_lock(v->vm);
            cache_kill_range(v, v->vm->cache, ref[i].gpa, i ? len - n1 : n1, NULL, &left);
            mwait_store(v, ref[i].gpa, i ? len - n1 : n1);
            store_begin(v, 0, STORE_ANYWHERE);
            engine_unlock(v->vm);
            v->eng->smc_hit = true;
        }
    *host = n == 2 ? join(v, ref) : ref[0].host;
    return X_OK;
}

/* -- From emitted code ---------------------------------------------------------------------------------- */

static void point_at(struct vcpu *v, const struct slow_site *site, gla_t ea, const u8 *to)
{
    if (site->form == FORM_SUM) {
        v->s1 = 0;
        v->s2 = (u64)to;
    } else {
        v->s2 = (u64)to - ea;
    }
}

/* An x87 exception that waits is raised before the operand is looked at (SDM vol. 3 table 6-2). */
static bool waits_for_x87(struct vcpu *v, unsigned len)
{
    struct exc keep = v->exc;
    struct insn in;
    u8 bytes[INSN_MAX];
    u16 status;
    __asm__ volatile("fnstsw %0" : "=a"(status));
    if (likely(!(status & 0x80)))
        return false;
    enum dmode dm = v->mode & MODE_64 ? DMODE_64 : v->mode & MODE_32 ? DMODE_32 : DMODE_16;
    bool ok = mem_read(v, v->rip, bytes, len, ACC_R | ACC_LOOSE | vcpu_acc(v)) == X_OK && insn_decode(dm, bytes, len, &in) == DECODE_OK;
    v->exc = keep;
    return ok && (in.cls == CLS_MMX || in.reg_kind == RK_MMX || (in.cls == CLS_X87 && in.id != I_FNSTCW && in.id != I_FNSTSW));
}

#define MXCSR_MM (1u << 17) /* AMD: SSE operands need no alignment */
static u64 deliver(struct vcpu *v, const struct slow_site *site, gla_t ea)
{
    u32 mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    if (unlikely(waits_for_x87(v, site->s.len)))
        raise_fault(v, VEC_MF);
    else if (site->aligned && (ea & (site->size - 1u)) && !(mxcsr & MXCSR_MM))
        raise_gp0(v);
    v->eng->step_armed = false;
    exc_deliver(v);
    return DISPATCH;
}

/* A miss threw another page out. Code to which that happens all the time is translated again, with the other index. */
static void conflict(struct vcpu *v, const struct slow_site *site)
{
    if (site->hashed || ++v->eng->nr_evicted % 8) /* a sample will do */
        return;
    struct code_cache *c = v->vm->cache;
    struct block *b = cache_block_at(c, (const u8 *)site);
    if (!b || b->dead)
        return;
    if (!b->conflicts)
        b->conflict_tsc = __builtin_ia32_rdtsc();
    if (++b->conflicts < 8)
        return;
    b->conflicts = 0;
    if (__builtin_ia32_rdtsc() - b->conflict_tsc > 64 * 2000) /* now and then is normal: once in 2000 cycles is not */
        return;
    engine_lock(v->vm);
    if (!b->dead) {
        cache_want(c, b->page + b->off, b->mode, WANT_HASHED);
        cache_kill_block(c, b);
    }
    engine_unlock(v->vm);
}

/* The instruction's accesses have neither copies nor extents from now on. */
static void no_copy(struct vcpu *v, const struct slow_site *site)
{
    struct code_cache *c = v->vm->cache;
    struct block *b = cache_block_at(c, (const u8 *)site);
    if (!b)
        return;
    engine_lock(v->vm);
    if (!b->dead) {
        cache_want(c, b->page + site->s.off, b->mode, WANT_NO_COPY);
        cache_kill_block(c, b);
    }
    engine_unlock(v->vm);
}
/* LOOP_MISSES since `when`. Once in 200 cycles pays: a miss costs some 30, a hit saves 3. */
static bool often(u32 *when)
{
    u32 now = (u32)(__builtin_ia32_rdtsc() >> 8), since = now - *when;
    *when = now;
    return since <= LOOP_MISSES * 200 / 256;
}

/*
 * An access's own copy of a TLB entry was wrong, or its extent. Where that happens often there is none from now on. Misses of
 * the table count too, but not while the other index may end them.
 */
static void loop_missed(struct vcpu *v, const struct slow_site *site, gla_t ea, bool evicted)
{
    if (!site->extent) {
        struct loop_entry *l = (struct loop_entry *)(v->space->base + VCPU_BIAS + site->loop);
        l->misses += site->hashed || !evicted;
        if (likely(l->misses < LOOP_MISSES))
            return;
        l->misses = 0;
        if (often(&l->when))
            no_copy(v, site);
        return;
    }
    struct extent *e = (struct extent *)(v->space->base + VCPU_BIAS + site->loop);
    e->misses++;
    if (e->misses < LOOP_MISSES) {
        if (!e->limit && e->misses >= EXTENT_FIRST)
            extent_make(v, e, ea, site->acc);
        return;
    }
    e->moves = often(&e->when) ? (u16)(e->moves + 1) : 0;
    if (e->moves < EXTENT_MOVES) {
        extent_make(v, e, ea, site->acc);
        return;
    }
    e->misses = e->moves = 0;
    if (!(v->cr0 & CR0_PG)) {
        no_copy(v, site);
        return;
    }
    v->eng->no_extents = true;
    vcpu_mode_changed(v);
}

/* Nothing was made from the bytes of a store beside code: it may go direct. False too once the page is watched no longer. */
static bool beside_code(struct vcpu *v, gpa_t gpa, unsigned len)
{
    struct ram_slot *rs = ram_find(&v->vm->ram, gpa);
    engine_lock(v->vm);
    bool beside = rs && (rs->page_state[(gpa - rs->gpa) >> PAGE_SHIFT] & (PAGE_HAS_CODE | PAGE_MONITORED)) &&
                  !cache_touches(v->vm->cache, gpa, len);
    if (beside) {
        mwait_store(v, gpa, len);
        store_begin(v, gpa, len);
    }
    engine_unlock(v->vm);
    return beside;
}

static void watched_note(struct vcpu *v, const struct slow_site *site, gla_t ea, const struct tlb_ref *ref)
{
    v->eng->watched.page = ea & PAGE_MASK;
    v->eng->watched.host = (u8 *)((u64)ref->host & PAGE_MASK);
    v->eng->watched.gpa = ref->gpa & PAGE_MASK;
    v->eng->watched.slot = site->slot;
    v->eng->watched.valid = true;
}

u64 engine_slow(struct vcpu *v, const struct slow_site *site)
{
    struct engine_vcpu *ev = v->eng;
    const struct tlb_geometry *g = &tlb_geo[site->slot];
    struct tlb_entry *e = (struct tlb_entry *)(v->space->base + g->tlb_off + v->s2);
    gla_t ea = v->s1 + (site->acc & ACC_W ? e->tag_w : e->tag_r);
    unsigned acc = site->acc | (site->slot >= SLOT_U ? ACC_USER : 0) | (site->hashed ? ACC_HASHED : 0);
    v->rip = vcpu_rip_at(v, site->s.off);
    v->nr_slow++;
    ev->smp.store_len = 0; /* the one before has happened */
    ev->smp.c_holds = false;

    if (unlikely(!site->size)) { /* check_span(): a group's span is not in its segment */
        void *alone = engine_unshared(v, (const struct group_site *)site);
        return alone ? (u64)alone : DISPATCH;
    }
    enum xret x = check_canonical(v, ea, site->size, site->s.kind);
    if (x == X_OK && unlikely(v->mode & MODE_AC) && !site->loose && misaligned(ea, site->size))
        x = raise_error(v, VEC_AC, 0);
    bool skip0 = false, skip1 = false;
    if (unlikely(x != X_OK) && !site->group) {
        if (!site->masked)
            return deliver(v, site, ea);
        skip0 = skip1 = true;
        ev->masked_exc[0] = ev->masked_exc[1] = v->exc;
    }
    if (unlikely(watching(v)) && !site->group)
        mem_watch_check(v, ea, site->size, acc);

    /* Writes beside code (mixed code and data, JIT arenas): no walk while the mapping is known. */
    if (ev->watched.valid && (site->acc & ACC_W) && (ea & PAGE_MASK) == ev->watched.page &&
        site->slot == ev->watched.slot && (ea & ~PAGE_MASK) + site->size <= PAGE_SIZE && !watching(v) &&
        beside_code(v, ev->watched.gpa + (ea & ~PAGE_MASK), site->size)) {
        point_at(v, site, ea, ev->watched.host + (ea & ~PAGE_MASK));
        if (site->extent) /* one may lie between pieces of code */
            loop_missed(v, site, ea, false);
        return RESUME;
    }
    if (site->group) {
        if ((ea & ~PAGE_MASK) + site->size <= PAGE_SIZE && x == X_OK && !watching(v)) {
            struct tlb_ref r;
            if (tlb_translate(v, ea, acc, &r) == X_OK && r.host &&
                (!r.watched || beside_code(v, r.gpa, site->size))) {
                if (r.watched)
                    watched_note(v, site, ea, &r);
                point_at(v, site, ea, r.host);
                if (site->loop)
                    loop_missed(v, site, ea, r.evicted);
                if (r.evicted)
                    conflict(v, site);
                return RESUME;
            }
        }
        void *alt = engine_unshared(v, (const struct group_site *)site);
        return alt ? (u64)alt : DISPATCH;
    }

    unsigned n1 = MIN((unsigned)site->size, (unsigned)(PAGE_SIZE - (ea & ~PAGE_MASK)));
    struct tlb_ref ref[2];
    if (likely(!skip0))
        x = tlb_translate(v, ea, acc, &ref[0]);
    if (unlikely(x != X_OK) && !skip0) {
        if (!site->masked)
            return deliver(v, site, ea);
        skip0 = true;
        ev->masked_exc[0] = v->exc;
    }
    if (likely(n1 == site->size && !skip0 && ref[0].host)) {
        if (likely(!ref[0].watched)) {
            point_at(v, site, ea, ref[0].host);
            if (site->loop)
                loop_missed(v, site, ea, ref[0].evicted);
            if (ref[0].evicted)
                conflict(v, site);
            return RESUME;
        }
        /* A write to a page that holds translations: drop those it hits, then store directly. */
        bool left;
        ev->nr_watched++;
        watched_note(v, site, ea, &ref[0]);
        engine_lock(v->vm);
        bool self = cache_kill_range(v, v->vm->cache, ref[0].gpa, site->size, (const u8 *)site, &left);
        mwait_store(v, ref[0].gpa, site->size);
        store_begin(v, ref[0].gpa, site->size);
        engine_unlock(v->vm);
        point_at(v, site, ea, ref[0].host);
        if (!self || !site->final)
            return RESUME;
        ev->commit = (struct commit){ .redispatch = true };
        return (u64)(site + 1);
    }

    if (n1 < site->size && !skip1) {
        gla_t second = ea + n1;
        if (!vcpu_long_mode(v))
            second = (u32)second;
        x = tlb_translate(v, second, acc, &ref[1]);
        if (x != X_OK) {
            if (!site->masked)
                return deliver(v, site, ea);
            skip1 = true;
            ev->masked_exc[1] = v->exc;
        }
    }
    if (unlikely(site->locked) && v->vm->smp && !skip0 && !skip1 && ref[0].host && (n1 == site->size || ref[1].host)) {
        /* A split lock: no bounce buffer, or it would not be one access (SDM vol. 3 §8.1.2.2). */
        bool self = false, left;
        u8 *p = join(v, ref);
        if (p) {
            ev->smp.c_holds = true; /* both pages; until the next entry to C */
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            engine_lock(v->vm);
            self |= cache_kill_range(v, v->vm->cache, ref[0].gpa, n1, (const u8 *)site, &left);
            self |= cache_kill_range(v, v->vm->cache, ref[1].gpa, site->size - n1, (const u8 *)site, &left);
            mwait_store(v, ref[0].gpa, n1);
            mwait_store(v, ref[1].gpa, site->size - n1);
            store_begin(v, 0, STORE_ANYWHERE);
            engine_unlock(v->vm);
            point_at(v, site, ea, p);
            if (!self || !site->final)
                return RESUME;
            ev->commit = (struct commit){ .redispatch = true };
            return (u64)(site + 1);
        }
    }
    if (unlikely(site->locked) && site->copy && !smp_bus_lock(v)) {
        ev->step_armed = ev->stepped = false; /* the instruction has not begun */
        ev->db_hit = ev->watch_hit = 0;
        return DISPATCH;
    }
    /* Bounce. The low six bits of the address are kept: alignment faults must stay what they are. */
    u8 *buf = ev->bounce + (ea & 63);
    if (skip0 || skip1) {
        /* Lanes that are off are not accessed (SDM vol. 2 §2.7.4, "VMASKMOV"). The CPU itself finds out, at a place
         * where the same bytes may not be touched; if it touches one, fault.c raises masked_exc. */
        u8 *p = ev->masked_pages;
        if (n1 == site->size)
            buf = p + (ea & ~PAGE_MASK);
        else
            buf = p + (skip0 ? skip1 ? 3 : 1 : 2) * PAGE_SIZE - n1;
        ev->masked_ea = ea;
        ev->masked_at = buf;
        ev->masked_first = n1;
    }
    struct commit *c = &ev->commit;
    *c = (struct commit){ .from = buf, .ea = ea };
    if (vcpu_has_outer(v)) {
        engine_copy(ev->before_store.regs, v->regs, sizeof(v->regs));
        ev->before_store.fl = v->fl;
    }
    for (unsigned i = 0, at = 0; at < site->size; i++) {
        unsigned n = i ? site->size - n1 : n1;
        bool skip = i ? skip1 : skip0;
        bug_on(site->size > sizeof(ev->before));
        if (skip) {
            c->part[i].len = 0;
            c->part[i].skip = (u16)n;
        } else {
            /* Stores too: lanes may be off, and an x87 store that raises an exception writes nothing. */
            if (ref[i].host)
                engine_copy(buf + at, ref[i].host, n);
            else if ((site->acc & ACC_R) || site->masked)
                mmio(v, ref[i].gpa, buf + at, n, false);
            c->part[i].host = ref[i].host;
            c->part[i].gpa = ref[i].gpa;
            c->part[i].len = (u16)n;
            c->part[i].skip = 0;
            if (v->vm->smp)
                engine_copy(ev->before + at, buf + at, n);
        }
        c->nr = (u8)(i + 1);
        at += n;
    }
    point_at(v, site, ea, buf);
    return site->copy ? (u64)(site + 1) : RESUME;
}

/*
 * What a bounced instruction made of the bytes. With several vCPUs only those it changed are written: lanes that are off
 * are not its to write, and another vCPU may have. A byte stored with the value it had counts as stored when it was read.
 */
static bool ram_commit(struct vcpu *v, u8 *host, gpa_t gpa, const u8 *from, const u8 *before, unsigned len, const u8 *pc)
{
    bool self = false;
    if (!v->vm->smp)
        return ram_store(v, host, gpa, from, len, pc);
    engine_lock(v->vm);
    mwait_store(v, gpa, len); /* who waits for a store does not ask whether it changes anything */
    engine_unlock(v->vm);
    for (unsigned i = 0, n; i < len; i += n) {
        bool changed = from[i] != before[i];
        n = 1;
        while (i + n < len && (from[i + n] != before[i + n]) == changed)
            n++;
        if (changed)
            self |= ram_store(v, host + i, gpa + i, from + i, n, pc);
    }
    return self;
}

/*
 * The instruction has run, but its store was not done: what it did to registers is undone, and it has its page fault or is run
 * again. Its x87 and vector registers are as it left them: what stores from those changes none, but for x87's own pops.
 */
static u64 undo(struct vcpu *v)
{
    struct engine_vcpu *ev = v->eng;
    bool refused = ev->store == STORE_REFUSED;
    ev->store = STORE_DONE;
    ev->commit.nr = 0;
    ev->commit.redispatch = false;
    smp_bus_unlock(v);
    engine_copy(v->regs, ev->before_store.regs, sizeof(v->regs));
    v->fl = ev->before_store.fl;
    ev->step_armed = false;
    if (refused)
        exc_deliver(v);
    return DISPATCH;
}

/* Who reads and writes in one instruction must not lose what came in between (store_before). */
static void mmio_commit(struct vcpu *v, const struct slow_site *site, gpa_t gpa, u8 *from, long at, unsigned len)
{
    struct engine_vcpu *ev = v->eng;
    ev->store_before = v->vm->smp && vcpu_has_outer(v) && (site->acc & ACC_R) ? ev->before + at : NULL;
    mmio(v, gpa, from, len, true);
    ev->store_before = NULL;
}

u64 engine_commit(struct vcpu *v, const struct slow_site *site)
{
    struct engine_vcpu *ev = v->eng;
    struct commit *c = &ev->commit;
    bool self = c->redispatch;
    u8 *from = c->from;
    v->rip = vcpu_rip_at(v, site->s.off);
    ev->nr_commit++;
    for (unsigned i = 0; i < c->nr; i++) {
        if (!c->part[i].len) {
            from += c->part[i].skip;
            continue;
        }
        if (c->part[i].host)
            self |= ram_commit(v, c->part[i].host, c->part[i].gpa, from, ev->before + (from - c->from), c->part[i].len, (const u8 *)site);
        else
            mmio_commit(v, site, c->part[i].gpa, from, from - c->from, c->part[i].len);
        if (unlikely(store_not_done(v, c->ea + (u64)(from - c->from))))
            return undo(v);
        from += c->part[i].len;
    }
    c->nr = 0;
    c->redispatch = false;
    smp_bus_unlock(v);
    self |= __atomic_load_n(&v->event, __ATOMIC_RELAXED) & EVENT_RESCHED; /* a doorbell's device may have written code (dma.c) */
    if (!self || !site->final)
        return RESUME;
    v->rip += site->s.len;
    return DISPATCH;
}
