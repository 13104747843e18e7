/*
 * paging_rights.c - who may do what to which page, with exact #PF codes, and the A and D bits.
 * Intel SDM vol. 3 §4.6 (rights), §4.7 (error code), §4.8 (A/D).
 *
 * Every combination is tried of: present, W, U, NX at the leaf; the same taken away one level
 * above; CR0.WP, CR4.SMEP, CR4.SMAP, EFLAGS.AC; read, write, execute, read-modify-write; kernel and
 * user; 4 KiB, 2 MiB and 1 GiB pages. One report per page size and control-register setting.
 */
#include "lib/guest.h"

enum access { READ, WRITE, EXEC, RMW, NR_ACCESS };
static const char *const access_name[] = {"read", "write", "exec", "rmw"};

static UTEXT void user_read(volatile u8 *p)
{
    (void)*p;
}
static UTEXT void user_write(volatile u8 *p)
{
    *p = 0xc3;
}
static UTEXT void user_rmw(volatile u8 *p)
{
    asm volatile("lock orb $0, %0" : "+m"(*p));
}
USER_ASM("user_exec: jmp *%rdi");
extern char user_exec[];
static void *const user_fn[] = {user_read, user_write, user_exec, user_rmw};

/* What is mapped: `va` in a page of the given level, whose bytes are `ret` instructions. */
struct place {
    int level;
    u8 *va;
    u64 pa;
};

/* -> the error code, or -1 without a fault; -2: some other trap or a wrong CR2 */
static int try_access(struct place *p, enum access a, bool user, bool ac)
{
    if (user) {
        user_call(user_fn[a], (u64)p->va, 0, 0);
        if (trap.vec == VEC_RETURN)
            return -1;
    } else {
        unsigned v;
        if (ac)
            asm volatile("stac");
        if (a == READ)
            v = TRY("movb (%0), %%al", ::"r"(p->va) : "rax", "memory");
        else if (a == WRITE)
            v = TRY("movb $0xc3, (%0)", ::"r"(p->va) : "memory");
        else if (a == RMW)
            v = TRY("lock orb $0, (%0)", ::"r"(p->va) : "memory");
        else
            v = TRY("call *%0", ::"r"(p->va) : "memory");
        if (ac)
            asm volatile("clac");
        if (v == VEC_NONE)
            return -1;
    }
    if (trap.vec != PF || trap.cr2 != (u64)p->va)
        return -2;
    return (int)trap.r.err;
}

struct controls {
    bool wp, smep, smap, ac, nxe;
};

static int expected(u64 leaf, u64 above, enum access a, bool user, struct controls c)
{
    bool write = a == WRITE || a == RMW, fetch = a == EXEC;
    u64 both = leaf & above;
    int err = (write ? PF_W : 0) | (user ? PF_U : 0) | (fetch && (c.nxe || c.smep) ? PF_I : 0);
    if (!(both & PTE_P))
        return err;
    err |= PF_P;
    if (fetch && ((leaf | above) & PTE_NX))
        return err;
    if (user) {
        if (!(both & PTE_U) || (write && !(both & PTE_W)))
            return err;
    } else {
        if (both & PTE_U) {
            if (fetch ? c.smep : c.smap && !c.ac)
                return err;
        }
        if (write && c.wp && !(both & PTE_W))
            return err;
    }
    return -1;
}

static void set_controls(struct controls c)
{
    u64 cr0 = RD(cr0) & ~CR0_WP, cr4 = RD(cr4) & ~(CR4_SMEP | CR4_SMAP);
    WR(cr0, cr0 | (c.wp ? CR0_WP : 0));
    WR(cr4, cr4 | (c.smep ? CR4_SMEP : 0) | (c.smap ? CR4_SMAP : 0));
    wrmsr(MSR_EFER, (rdmsr(MSR_EFER) & ~EFER_NXE) | (c.nxe ? EFER_NXE : 0));
}

static const struct controls normal = {.wp = true, .nxe = true};

static void matrix(struct place *p, struct controls c)
{
    unsigned bad[2] = {0, 0}; /* [1]: read-modify-write */
    volatile u64 *leaf = pt_entry(p->va, p->level), *above = pt_entry(p->va, p->level + 1);
    u64 was = *above;
    set_controls(c);
    for (unsigned bits = 0; bits < 64; bits++) {
        u64 l = (bits & 1 ? PTE_P : 0) | (bits & 2 ? PTE_W : 0) | (bits & 4 ? PTE_U : 0) |
                (bits & 8 && c.nxe ? PTE_NX : 0);
        static const u64 less[4] = {0, PTE_W, PTE_U, PTE_NX};
        u64 take = less[bits >> 4];
        if (take == PTE_NX && !c.nxe)
            continue;
        *above = take == PTE_NX ? was | PTE_NX : was & ~take;
        *leaf = p->pa | l | (p->level > 1 ? PTE_PS : 0);
        flush_tlb();
        for (unsigned a = 0; a < NR_ACCESS; a++)
            for (unsigned user = 0; user < 2; user++) {
                int want = expected(*leaf, *above, a, user, c);
                int got = try_access(p, a, user, c.ac);
                if (got != want && bad[a == RMW]++ < 4)
                    print("# level %d leaf %lx above %lx %s %s: got %d want %d\n", p->level, *leaf,
                          *above, user ? "user" : "kernel", access_name[a], got, want);
            }
    }
    *above = was;
    *leaf = 0;
    flush_tlb();
    set_controls(normal);
    for (int i = 0; i < 2; i++)
        reportf(!bad[i], "%s, level %d%s%s%s%s%s", i ? "rmw rights" : "rights", p->level,
                c.wp ? " WP" : "", c.smep ? " SMEP" : "", c.smap ? " SMAP" : "", c.ac ? " AC" : "",
                c.nxe ? "" : " no-NXE");
}

static void all_controls(struct place *p)
{
    for (unsigned i = 0; i < 32; i++) {
        struct controls c = {i & 1, i & 2, i & 4, i & 8, !(i & 16)};
        if ((c.smep && !has(HAS_SMEP)) || (c.smap && !has(HAS_SMAP)) || (c.ac && !c.smap))
            continue;
        matrix(p, c);
    }
}

/* -- Reserved bits ------------------------------------------------------------------------- */

static bool rsvd_without_p;

/* The P bit of the code is judged apart: it cannot be clear when RSVD is set. */
static bool rsvd_fault(u64 err, const volatile void *va)
{
    if (!(trap.r.err & PF_P))
        rsvd_without_p = true;
    trap.r.err |= PF_P;
    return faulted(err | PF_P | PF_RSVD, va);
}

static bool rsvd_faults(struct place *p, volatile u64 *entry, u64 value, const char *what)
{
    u64 was = *entry;
    *entry = value;
    flush_tlb();
    bool ok = TRY("movb (%0), %%al", ::"r"(p->va) : "rax") == PF && rsvd_fault(0, p->va);
    user_call(user_write, (u64)p->va, 0, 0);
    ok = ok && rsvd_fault(PF_W | PF_U, p->va);
    *entry = value & ~PTE_P;
    flush_tlb();
    ok = ok && TRY("movb (%0), %%al", ::"r"(p->va) : "rax") == PF && faulted(0, p->va);
    *entry = was;
    flush_tlb();
    if (!ok)
        print("# reserved: %s\n", what);
    return ok;
}

static void reserved(struct place *p)
{
    u64 maxphy = cpuid(0x80000008, 0).eax & 0xff;
    volatile u64 *leaf = pt_entry(p->va, p->level);
    *leaf = p->pa | PTE_P | PTE_W | PTE_U | (p->level > 1 ? PTE_PS : 0);
    if (maxphy < 52) {
        bool ok = true;
        for (int l = p->level; l <= 4; l++) {
            volatile u64 *e = pt_entry(p->va, l);
            ok &= rsvd_faults(p, e, *e | BIT(51), "bit 51");
            ok &= rsvd_faults(p, e, *e | BIT(maxphy), "the first bit above MAXPHYADDR");
        }
        reportf(ok, "address bits above MAXPHYADDR are reserved, level %d", p->level);
    }
    volatile u64 *top = pt_entry(p->va, 4);
    reportf(rsvd_faults(p, top, *top | PTE_PS, "PML4E.PS"), "PML4E.PS is reserved, level %d",
            p->level);
    if (p->level > 1) {
        bool ok = rsvd_faults(p, leaf, *leaf | BIT(13), "bit 13");
        ok &= rsvd_faults(p, leaf, *leaf | BIT(p->level == 3 ? 29 : 20), "the last one");
        reportf(ok, "frame bits below the page size are reserved, level %d", p->level);
    }
    if (p->level == 1) {
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_NXE);
        report("bit 63 is reserved without NXE", rsvd_faults(p, leaf, *leaf | PTE_NX, "NX"));
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    }
    *leaf = 0;
    flush_tlb();
}

/* -- Accessed and dirty -------------------------------------------------------------------- */

static void clear_ad(struct place *p)
{
    for (int l = p->level; l <= 4; l++)
        *(volatile u64 *)pt_entry(p->va, l) &= ~(PTE_A | PTE_D);
    flush_tlb();
}

/* Bits 0..3: A at the leaf and above; bit 4: D at the leaf; bit 5: D anywhere else. */
static unsigned ad_bits(struct place *p)
{
    unsigned v = 0;
    for (int l = p->level; l <= 4; l++) {
        u64 e = *(volatile u64 *)pt_entry(p->va, l);
        v |= e & PTE_A ? 1u << (l - p->level) : 0;
        v |= e & PTE_D ? (l == p->level ? 16 : 32) : 0;
    }
    return v;
}

static void accessed_dirty(struct place *p)
{
    unsigned all_a = (1u << (5 - p->level)) - 1;
    volatile u64 *leaf = pt_entry(p->va, p->level);
    u64 full = p->pa | PTE_P | PTE_W | PTE_U | (p->level > 1 ? PTE_PS : 0);
    *leaf = full;
    char name[64];
#define NAME(s) (format(name, sizeof(name), "A/D level %d: %s", p->level, s), name)

    clear_ad(p);
    try_access(p, READ, false, false);
    report_eq(NAME("a read sets A"), ad_bits(p), all_a);
    try_access(p, WRITE, false, false);
    report_eq(NAME("then a write sets D"), ad_bits(p), all_a | 16);
    clear_ad(p);
    try_access(p, WRITE, true, false);
    report_eq(NAME("a user write sets both"), ad_bits(p), all_a | 16);
    clear_ad(p);
    try_access(p, EXEC, false, false);
    report_eq(NAME("a fetch sets A"), ad_bits(p), all_a);
    clear_ad(p);
    try_access(p, RMW, false, false);
    report_eq(NAME("read-modify-write sets both"), ad_bits(p), all_a | 16);
    clear_ad(p);
    TRY("movl $1, %%eax; lock cmpxchgl %%ecx, (%0)", ::"r"(p->va) : "rax", "rcx", "memory");
    report_eq(NAME("a failing cmpxchg writes too"), ad_bits(p), all_a | 16);
    clear_ad(p);
    TRY("invlpg (%0); prefetcht0 (%0); lea (%0), %%rax; nopl (%0)", ::"r"(p->va) : "rax");
    report_eq(NAME("no access, no D"), ad_bits(p) & 48, 0);

    *leaf = full & ~PTE_W;
    clear_ad(p);
    try_access(p, WRITE, false, false);
    report_eq(NAME("a refused write sets no D"), ad_bits(p) & 48, 0);
    *leaf = full & ~PTE_U;
    clear_ad(p);
    try_access(p, WRITE, true, false);
    report_eq(NAME("a refused user write sets no D"), ad_bits(p) & 48, 0);
    *leaf = full & ~PTE_P;
    clear_ad(p);
    try_access(p, WRITE, false, false);
    report_eq(NAME("no A or D in a leaf that is not present"), ad_bits(p) & 49, 0);
    *leaf = full;
    clear_ad(p);
    asm volatile("rep stosb" ::"D"(p->va), "c"(64), "a"(0xc3) : "memory");
    report_eq(NAME("rep stos sets both"), ad_bits(p), all_a | 16);
    *leaf = 0;
    flush_tlb();
}

/* -- Accesses the program did not write down -------------------------------------------------- */

USER_ASM("user_load_fs: mov %edi, %fs\n ret");
extern char user_load_fs[];

/*
 * A GDT of two pages at an alias, so that the rights of its second page can be changed while the
 * first still serves the delivery of the very faults that are looked for.
 */
static void implicit(void)
{
    enum { SEL = 0x1000 }; /* the first descriptor of the second page */
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) own = {sizeof(gdt) - 1, (u64)gdt}, alias = {0x1fff, 2 * PAGE3};
    u8 *va = (u8 *)(2 * PAGE3), *second = va + PAGE;
    u64 pa = pages_alloc(2, PAGE);
    memcpy((void *)pa, gdt, sizeof(gdt));
    volatile u64 *desc = (volatile u64 *)(pa + SEL);
    *desc = seg_desc(0, 0xfffff, 0xf3, 0xc);
    map(va, pa, PTE_P | PTE_W);
    map(second, pa + PAGE, PTE_P | PTE_W);
    asm volatile("lgdt %0" ::"m"(alias));
    unsigned v = TRY("mov %0, %%fs", ::"r"(SEL));
    report_eq("a segment load from a supervisor GDT", v, VEC_NONE);
    user_call(user_load_fs, SEL | 3, 0, 0);
    report_eq("the same from ring 3", trap.vec, VEC_RETURN);
    if (has(HAS_SMAP)) {
        WR(cr4, RD(cr4) | CR4_SMAP);
        map(second, pa + PAGE, PTE_P | PTE_W | PTE_U);
        v = TRY("mov %0, %%fs", ::"r"(SEL));
        report("SMAP: an implicit access to a user page is refused",
               v == PF && faulted(PF_P, second));
        asm volatile("stac");
        v = TRY("mov %0, %%fs", ::"r"(SEL));
        asm volatile("clac");
        report("SMAP: even with AC", v == PF && faulted(PF_P, second));
        user_call(user_load_fs, SEL | 3, 0, 0);
        report("SMAP: and for a load in ring 3, without the U bit in the code",
               faulted(PF_P, second));
        WR(cr4, RD(cr4) & ~CR4_SMAP);
    }
    unmap(second);
    user_call(user_load_fs, SEL | 3, 0, 0);
    report("a load in ring 3 from an absent GDT page is a supervisor's fault", faulted(0, second));

    map(second, pa + PAGE, PTE_P);
    *desc = seg_desc(0, 0xfffff, 0xf2, 0xc); /* not yet accessed */
    v = TRY("mov %0, %%fs", ::"r"(SEL));
    report("setting a descriptor's accessed bit in a read-only GDT is a write fault",
           v == PF && trap.r.err == (PF_P | PF_W) && trap.cr2 - (u64)second < 8);
    WR(cr0, RD(cr0) & ~CR0_WP);
    v = TRY("mov %0, %%fs", ::"r"(SEL));
    report("without WP it is set", v == VEC_NONE && (*desc >> 40 & 0xff) == 0xf3);
    WR(cr0, RD(cr0) | CR0_WP);
    asm volatile("lgdt %0" ::"m"(own));
    asm volatile("mov %0, %%fs" ::"r"(0));
    unmap(va);
    unmap(second);
}

int main(void)
{
    image_user(false);
    /* Each in a PML4 slot of its own: even the top entry is tampered with. */
    struct place p4k = {1, (u8 *)0x10000000000ull, page_alloc()};
    struct place p2m = {2, (u8 *)0x18000000000ull, pages_alloc(512, PAGE2)};
    struct place p1g = {3, NULL, 0};
    memset((void *)p4k.pa, 0xc3, PAGE);
    memset((void *)p2m.pa, 0xc3, PAGE2);
    p1g.va = (u8 *)(0x8000000000ull + PAGE3 + p4k.pa); /* maps 0..1 GiB of RAM */
    struct place *places[] = {&p4k, &p2m, &p1g};
    for (unsigned i = 0; i < 3; i++) {
        if (i == 2 && !has(HAS_PDPE1GB)) {
            skip("1 GiB pages", "no pdpe1gb");
            break;
        }
        all_controls(places[i]);
        reserved(places[i]);
        accessed_dirty(places[i]);
    }
    report("a reserved bit's error code has P as well", !rsvd_without_p);
    implicit();
    return 0;
}
