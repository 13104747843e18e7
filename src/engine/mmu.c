/*
 * mmu.c - guest page walk for every paging mode. Source: Intel SDM vol. 3 §4.
 *
 * walk_long is the TLB miss path: straight-line, tables looked up in the usual RAM slots without a call.
 * The others share its tail. Nothing is written until the whole walk and all rights have passed, so a
 * faulting access leaves no A bits behind (hardware may set some; software cannot tell when).
 *
 * Table entries outside RAM read as all ones: present with reserved bits set, so #PF with RSVD.
 * A and D of tables in ROM slots are dropped, as any write there is.
 *
 * Not modelled: LA57, protection keys, shadow stacks. PAE PDPTEs are read from memory at each walk, not
 * held since the last CR3 load: a guest that edits one sees it without reloading CR3. The A20 gate masks what a
 * walk comes to, not where it passes.
 */
#include "engine/mmu.h"

#include "engine/engine.h"

#define PA_MASK ((BITULL(MMU_PHYS_BITS) - 1) & PAGE_MASK)
#define RSVD_LONG (((BITULL(52) - 1) & ~(BITULL(MMU_PHYS_BITS) - 1)))  /* 51:MAXPHYADDR  */
#define RSVD_PAE ((~(BITULL(MMU_PHYS_BITS) - 1)) & ~PTE_NX)            /* 62:MAXPHYADDR  */
#define RSVD_PDPTE (~(BITULL(MMU_PHYS_BITS) - 1) | 0x1e6)              /* PAE, SDM table 4-8 */
#define A20 BITULL(20)
#define SIZE_2M (2ull << 20)
#define SIZE_4M (4ull << 20)
#define SIZE_1G (1ull << 30)
#define RSVD_2M ((SIZE_2M - 1) & ~0x1fffull) /* 20:13; bit 12 is PAT */
#define RSVD_1G ((SIZE_1G - 1) & ~0x1fffull) /* 29:13 */

static const u64 open_bus = ~0ull;

/* Not ram_ptr(): that is compiled like any other code and might use the guest's vector registers. */
static __attribute__((noinline)) const void *entry_ptr_any(const struct ram *ram, gpa_t gpa)
{
    for (unsigned i = 0, n = ram_nr_slots(ram); i < n; i++)
        if (ram_slot_has(&ram->slot[i], gpa))
            return ram->slot[i].host + (gpa - ram->slot[i].gpa);
    return &open_bus;
}

/*
 * entry_ptr - host address of a table entry, naturally aligned and in the table's page, so
 * never across a slot's end. `table` need not be page aligned (PAE's root). On a PC slot 0
 * is the low 640 KiB, 1 the RAM below 4 GiB and 2 the rest; an unused slot has size 0.
 */
static inline const void *entry_ptr(struct vcpu *v, gpa_t table, u64 off)
{
    struct ram *ram = &v->vm->ram;
    const struct ram_slot *s = &ram->slot[1];

    /* The sum is so arranged that only `table`, which the last load gave, is on the critical path. */
    if (unlikely(table - s->gpa >= s->size)) {
        s = &ram->slot[2];
        if (table - s->gpa >= s->size)
            return entry_ptr_any(ram, table + off);
    }
    return (const void *)(((u64)s->host - s->gpa + off) + table);
}

static inline u64 load64(const void *p) { return __atomic_load_n((const u64 *)p, __ATOMIC_RELAXED); }
static inline u64 load32(const void *p) { return __atomic_load_n((const u32 *)p, __ATOMIC_RELAXED); }

static inline bool is_user(unsigned access) { return (access & (ACC_USER | ACC_SYS)) == ACC_USER; }

/* -- Faults ----------------------------------------------------------------------------------- */

static __attribute__((noinline, cold)) enum xret page_fault(struct vcpu *v, gla_t la, unsigned access, u32 code)
{
    if (access & ACC_W)
        code |= PF_W;
    if (is_user(access))
        code |= PF_U;
    if ((access & ACC_X) && ((v->cr4 & CR4_SMEP) || ((v->cr4 & CR4_PAE) && (v->efer & EFER_NXE))))
        code |= PF_I;
    v->exc = (struct exc){ .vector = VEC_PF, .has_error = true, .error = code, .cr2 = la };
    return X_FAULT;
}

/* entry_fault - an entry that cannot be used: not present, or present with reserved bits set. */
static enum xret entry_fault(struct vcpu *v, gla_t la, unsigned access, u64 entry)
{
    return page_fault(v, la, access, entry & PTE_P ? PF_P | PF_RSVD : 0);
}

/* -- Accessed and Dirty ------------------------------------------------------------------------- */

static bool in_rom(const struct ram *ram, const void *p)
{
    if (p == &open_bus)
        return true;
    for (unsigned i = 0; i < ram->nr_slots; i++) {
        const struct ram_slot *s = &ram->slot[i];

        if (s->readonly && (u64)((const u8 *)p - s->host) < s->size)
            return true;
    }
    return false;
}

/* set_bits - true if the entry still held `old` and now has the bits; false: walk again. */
static bool set_bits(struct vcpu *v, const void *p, u64 old, u64 bits, bool wide)
{
    if ((old & bits) == bits || in_rom(&v->vm->ram, p))
        return true;
    if (wide)
        return __atomic_compare_exchange_n((u64 *)p, &old, old | bits, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);

    u32 old32 = (u32)old;

    return __atomic_compare_exchange_n((u32 *)p, &old32, (u32)(old | bits), false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}

/* What a walk passed through, root first; the last is the leaf. */
struct trail {
    const void *ptr[4];
    u64 entry[4];
    unsigned nr;
    bool wide; /* 8-byte entries */
};

static __attribute__((noinline)) bool set_accessed_dirty(struct vcpu *v, const struct trail *t, bool dirty)
{
    for (unsigned i = 0; i < t->nr; i++) {
        u64 bits = PTE_A | (dirty && i + 1 == t->nr ? PTE_D : 0);

        if (!set_bits(v, t->ptr[i], t->entry[i], bits, t->wide))
            return false;
    }
    return true;
}

/* -- Rights --------------------------------------------------------------------------------------- */

/*
 * forbidden - the set of ACC_R, ACC_W, ACC_X this privilege may not do to a page. SDM vol. 3 §4.6.1.
 * @access: says who (ACC_USER, ACC_SYS); @all: AND of the entries used (U/S and R/W must be set in each);
 * @any: OR of them (NX in any forbids; without EFER.NXE it is a reserved bit and never gets here)
 */
static inline unsigned forbidden(const struct vcpu *v, u64 all, u64 any, unsigned access)
{
    bool data, fetch, write = !(all & PTE_W);

    if (is_user(access)) {
        data = fetch = !(all & PTE_U);
    } else {
        bool user_page = all & PTE_U;

        data = user_page && (v->cr4 & CR4_SMAP) && ((access & ACC_SYS) || !(v->eflags & EFL_AC));
        fetch = user_page && (v->cr4 & CR4_SMEP);
        write = write && (v->cr0 & CR0_WP);
    }
    return (data ? ACC_R : 0) | ((data | write) ? ACC_W : 0) | ((fetch | (any >> 63)) ? ACC_X : 0);
}

/* fill_span - the tail of every successful walk. `no`: from forbidden(); `dirty`: the leaf's D is set by now. */
static inline void fill_span(const struct vcpu *v, struct mmu_span *out, gpa_t gpa, u64 page_size, u64 all,
                             u64 leaf, bool dirty, unsigned no)
{
    out->gpa = gpa;
    out->page_size = page_size;
    out->writable = dirty && !(no & ACC_W);
    out->user = !!(all & PTE_U);
    out->global = (leaf & PTE_G) && (v->cr4 & CR4_PGE);
    out->exec = !(no & ACC_X);
}

/*
 * A kernel outside ring 0 cannot say which of its pages are the same everywhere. Whoever speaks its interface sees each change
 * of its page tables, and calls for a flush then (vitro_vcpu_flush_all()); so its half's supervisor pages count as global.
 */
static inline void outer_span(const struct vcpu *v, gla_t la, u64 leaf, struct mmu_span *out)
{
    if (unlikely(v->outer))
        out->global = la >> 63 && !(leaf & PTE_U) && !v->vm->outer_differs;
}

/* -- 4-level paging (§4.5) -------------------------------------------------------------------------- */

/* walk_long_full - with A/D updates and exact faults. */
static __attribute__((noinline)) enum xret walk_long_full(struct vcpu *v, gla_t la, unsigned access,
                                                          struct mmu_span *out)
{
    const u64 rsvd = v->efer & EFER_NXE ? RSVD_LONG : RSVD_LONG | PTE_NX;
    u64 e4, e3, e2, e1, all, any, leaf, size;
    const void *p4, *p3, *p2, *p1;
    unsigned nr, no;

    do {
        p1 = p2 = &open_bus;
        e1 = e2 = 0;
        p4 = entry_ptr(v, v->cr3 & PA_MASK, ((la >> 39) & 511) * 8);
        e4 = load64(p4);
        if (unlikely((e4 ^ PTE_P) & (PTE_P | PTE_PS | rsvd)))
            return entry_fault(v, la, access, e4);
        p3 = entry_ptr(v, e4 & PA_MASK, ((la >> 30) & 511) * 8);
        e3 = load64(p3);
        if (unlikely((e3 ^ PTE_P) & (PTE_P | rsvd)))
            return entry_fault(v, la, access, e3);
        all = e4 & e3;
        any = e4 | e3;
        if (unlikely(e3 & PTE_PS)) {
            if (e3 & RSVD_1G)
                return entry_fault(v, la, access, e3);
            leaf = e3;
            size = SIZE_1G;
            nr = 2;
        } else {
            p2 = entry_ptr(v, e3 & PA_MASK, ((la >> 21) & 511) * 8);
            e2 = load64(p2);
            if (unlikely((e2 ^ PTE_P) & (PTE_P | rsvd)))
                return entry_fault(v, la, access, e2);
            all &= e2;
            any |= e2;
            if (e2 & PTE_PS) {
                if (e2 & RSVD_2M)
                    return entry_fault(v, la, access, e2);
                leaf = e2;
                size = SIZE_2M;
                nr = 3;
            } else {
                p1 = entry_ptr(v, e2 & PA_MASK, ((la >> 12) & 511) * 8);
                e1 = load64(p1);
                if (unlikely((e1 ^ PTE_P) & (PTE_P | rsvd)))
                    return entry_fault(v, la, access, e1);
                all &= e1;
                any |= e1;
                leaf = e1;
                size = PAGE_SIZE;
                nr = 4;
            }
        }
        no = forbidden(v, all, any, access);
        if (no & access)
            return page_fault(v, la, access, PF_P);
        if (likely((all & PTE_A) && (!(access & ACC_W) || (leaf & PTE_D))))
            break;

        struct trail t = { .ptr = { p4, p3, p2, p1 }, .entry = { e4, e3, e2, e1 }, .nr = nr, .wide = true };

        if (likely(set_accessed_dirty(v, &t, access & ACC_W)))
            break;
    } while (true);

    fill_span(v, out, (leaf & PA_MASK & ~(size - 1)) | (la & (size - 1)), size, all, leaf,
              (leaf & PTE_D) || (access & ACC_W), no);
    outer_span(v, la, leaf, out);
    return X_OK;
}

/*
 * walk_long - the common case: everything present, allowed, and A and D set. Entries are judged all at once at
 * the end: an address taken from a bad one reads harmlessly, and walk_long_full then finds what is wrong.
 */
static enum xret walk_long(struct vcpu *v, gla_t la, unsigned access, struct mmu_span *out)
{
    const u64 rsvd = v->efer & EFER_NXE ? RSVD_LONG : RSVD_LONG | PTE_NX;
    u64 e, all, any, leaf, size, low = 0;
    unsigned no;

    e = load64(entry_ptr(v, v->cr3 & PA_MASK, ((la >> 39) & 511) * 8));
    all = e;
    any = e | (e & PTE_PS ? RSVD_LONG : 0);
    e = load64(entry_ptr(v, e & PA_MASK, ((la >> 30) & 511) * 8));
    all &= e;
    any |= e;
    size = SIZE_1G;
    if (unlikely(e & PTE_PS)) {
        low = RSVD_1G;
    } else {
        e = load64(entry_ptr(v, e & PA_MASK, ((la >> 21) & 511) * 8));
        all &= e;
        any |= e;
        size = SIZE_2M;
        if (e & PTE_PS) {
            low = RSVD_2M;
        } else {
            e = load64(entry_ptr(v, e & PA_MASK, ((la >> 12) & 511) * 8));
            all &= e;
            any |= e;
            size = PAGE_SIZE;
        }
    }
    leaf = e;
    no = forbidden(v, all, any, access);
    if (unlikely((~all & (PTE_P | PTE_A)) | (any & rsvd) | (leaf & low) | (no & access) |
                 (access & ACC_W && !(leaf & PTE_D))))
        return walk_long_full(v, la, access, out);
    fill_span(v, out, (leaf & PA_MASK & ~(size - 1)) | (la & (size - 1)), size, all, leaf, leaf & PTE_D, no);
    outer_span(v, la, leaf, out);
    return X_OK;
}

/* -- PAE paging (§4.4) ------------------------------------------------------------------------------- */

static enum xret walk_pae(struct vcpu *v, gla_t la, unsigned access, struct mmu_span *out)
{
    const u64 rsvd = v->efer & EFER_NXE ? RSVD_PAE : RSVD_PAE | PTE_NX;
    u64 size, all, any, leaf;
    struct trail t;
    unsigned no;

    do {
        /* A PDPTE grants everything and has no A bit. */
        u64 pdpte = load64(entry_ptr(v, v->cr3 & 0xffffffe0, ((la >> 30) & 3) * 8));

        if ((pdpte ^ PTE_P) & (PTE_P | RSVD_PDPTE))
            return entry_fault(v, la, access, pdpte);
        t = (struct trail){ .nr = 1, .wide = true };
        t.ptr[0] = entry_ptr(v, pdpte & PA_MASK, ((la >> 21) & 511) * 8);
        leaf = all = any = t.entry[0] = load64(t.ptr[0]);
        if (((leaf ^ PTE_P) & (PTE_P | rsvd)) || ((leaf & PTE_PS) && (leaf & RSVD_2M)))
            return entry_fault(v, la, access, leaf);
        if (!(leaf & PTE_PS)) {
            size = PAGE_SIZE;
            t.nr = 2;
            t.ptr[1] = entry_ptr(v, leaf & PA_MASK, ((la >> 12) & 511) * 8);
            leaf = t.entry[1] = load64(t.ptr[1]);
            if ((leaf ^ PTE_P) & (PTE_P | rsvd))
                return entry_fault(v, la, access, leaf);
            all &= leaf;
            any |= leaf;
        } else {
            size = SIZE_2M;
        }
        no = forbidden(v, all, any, access);
        if (no & access)
            return page_fault(v, la, access, PF_P);
    } while (!set_accessed_dirty(v, &t, access & ACC_W));

    fill_span(v, out, (leaf & PA_MASK & ~(size - 1)) | (la & (size - 1)), size, all, leaf,
              (leaf & PTE_D) || (access & ACC_W), no);
    return X_OK;
}

/* -- 32-bit paging (§4.3), with PSE-36: bits 20:13 of a 4 MiB entry are address bits 39:32 -------------- */

static enum xret walk_32(struct vcpu *v, gla_t la, unsigned access, struct mmu_span *out)
{
    u64 size, all, leaf;
    gpa_t page;
    struct trail t;
    unsigned no;

    do {
        t = (struct trail){ .nr = 1 };
        t.ptr[0] = entry_ptr(v, v->cr3 & 0xfffff000, ((la >> 22) & 1023) * 4);
        leaf = all = t.entry[0] = load32(t.ptr[0]);
        if (!(leaf & PTE_P))
            return entry_fault(v, la, access, leaf);
        if ((leaf & PTE_PS) && (v->cr4 & CR4_PSE)) {
            if (leaf & BITULL(21))
                return entry_fault(v, la, access, leaf);
            size = SIZE_4M;
            page = (leaf & 0xffc00000) | ((leaf >> 13) & 0xff) << 32;
        } else {
            t.nr = 2;
            t.ptr[1] = entry_ptr(v, leaf & 0xfffff000, ((la >> 12) & 1023) * 4);
            leaf = t.entry[1] = load32(t.ptr[1]);
            if (!(leaf & PTE_P))
                return entry_fault(v, la, access, leaf);
            all &= leaf;
            size = PAGE_SIZE;
            page = leaf & 0xfffff000;
        }
        no = forbidden(v, all, 0, access); /* no NX in 4-byte entries */
        if (no & access)
            return page_fault(v, la, access, PF_P);
    } while (!set_accessed_dirty(v, &t, access & ACC_W));

    fill_span(v, out, page | (la & (size - 1)), size, all, leaf, (leaf & PTE_D) || (access & ACC_W), no);
    return X_OK;
}

/* -- Entry points ------------------------------------------------------------------------------------- */

enum xret mmu_walk(struct vcpu *v, gla_t la, unsigned access, struct mmu_span *out)
{
    enum xret x = X_OK;
    if (likely((v->efer & EFER_LMA) && (v->cr0 & CR0_PG))) {
        x = walk_long(v, la, access, out);
    } else if (!(v->cr0 & CR0_PG)) {
        *out = (struct mmu_span){ .gpa = (u32)la, .page_size = PAGE_SIZE, .writable = true, .user = true, .exec = true };
    } else {
        x = v->cr4 & CR4_PAE ? walk_pae(v, (u32)la, access, out) : walk_32(v, (u32)la, access, out);
    }
    if (unlikely(v->a20_off))
        out->gpa &= ~A20;
    return x;
}

static bool translate_debug(struct vcpu *v, gla_t la, gpa_t *gpa)
{
    bool lma = v->efer & EFER_LMA, wide = lma || (v->cr4 & CR4_PAE);
    unsigned levels = lma ? 4 : wide ? 3 : 2, bits = wide ? 9 : 10;
    gpa_t table = lma ? v->cr3 & PA_MASK : wide ? v->cr3 & 0xffffffe0 : v->cr3 & 0xfffff000;

    if (lma && !is_canonical(la))
        return false;
    if (!lma)
        la = (u32)la;
    if (!(v->cr0 & CR0_PG)) {
        *gpa = la;
        return true;
    }
    while (levels--) {
        unsigned shift = PAGE_SHIFT + levels * bits;
        u64 index = (la >> shift) & (BITULL(bits) - 1), mask = BITULL(shift) - 1;
        const void *p = entry_ptr(v, table, index * (wide ? 8 : 4));
        u64 e = wide ? load64(p) : load32(p);

        if (p == &open_bus || !(e & PTE_P))
            return false;
        /* PS means "leaf" in levels 1 and 2 (1 and 2 MiB/4 MiB/1 GiB), and only where the mode has it. */
        if (levels && (e & PTE_PS) && (wide ? levels == 1 || (lma && levels == 2) : !!(v->cr4 & CR4_PSE))) {
            gpa_t high = wide ? 0 : ((e >> 13) & 0xff) << 32;

            *gpa = high | (e & (wide ? PA_MASK : 0xfffff000) & ~mask) | (la & mask);
            return true;
        }
        table = e & (wide ? PA_MASK : 0xfffff000);
    }
    *gpa = table | (la & (PAGE_SIZE - 1));
    return true;
}

bool mmu_translate_debug(struct vcpu *v, gla_t la, gpa_t *gpa)
{
    bool ok = translate_debug(v, la, gpa);
    if (v->a20_off)
        *gpa &= ~A20;
    return ok;
}

bool mmu_pdptes_valid(struct vcpu *v, u64 cr3)
{
    for (unsigned i = 0; i < 4; i++) {
        u64 e = load64(entry_ptr(v, cr3 & 0xffffffe0, i * 8));

        if ((e & PTE_P) && (e & RSVD_PDPTE))
            return false;
    }
    return true;
}
