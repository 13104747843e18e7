/*
 * pcid.c - address spaces that share the TLB. Intel SDM vol. 3 §4.10.1 (PCIDs), §4.10.4 (what ends
 * what); vol. 2 INVPCID. Only what must be gone is tested: keeping an entry is never required.
 */
#include "lib/guest.h"

#define VA      ((volatile u64 *)0x8000000000ull) /* its own PML4 slot */
#define NOFLUSH BIT(63)
#define RW      (PTE_P | PTE_W | PTE_U)

struct space {
    u64 cr3;
    volatile u64 *pte;
    u64 page[2];
};
static struct space sp[2];

static void make_space(struct space *s, unsigned pcid, u64 mark)
{
    u64 *root = (u64 *)page_alloc(), *pdpt = (u64 *)page_alloc(), *pd = (u64 *)page_alloc(),
        *pt = (u64 *)page_alloc();
    memcpy(root, (void *)(RD(cr3) & PTE_ADDR), PAGE);
    root[1] = (u64)pdpt | PTE_TABLE;
    pdpt[0] = (u64)pd | PTE_TABLE;
    pd[0] = (u64)pt | PTE_TABLE;
    for (int i = 0; i < 2; i++) {
        s->page[i] = page_alloc();
        *(u64 *)s->page[i] = mark + (u64)i;
    }
    pt[0] = s->page[0] | RW;
    s->pte = pt;
    s->cr3 = (u64)root | pcid;
}

struct invpcid_desc {
    u64 pcid, address;
};

static unsigned invpcid(u64 type, u64 pcid, u64 address)
{
    struct invpcid_desc d = {pcid, address};
    return TRY("invpcid %1, %0", ::"r"(type), "m"(d));
}

UTEXT static void user_invpcid(struct invpcid_desc *d)
{
    asm volatile("invpcid %0, %1" ::"m"(*d), "r"(2ull));
}

static UTEXT u64 user_load(volatile u64 *p)
{
    return *p;
}

/* In space 1, change a PTE of space 0 that has been used, do `how`, return: is the change seen? */
static bool seen_after(void (*how)(void), u64 pte_flags)
{
    *sp[0].pte = sp[0].page[0] | RW | pte_flags;
    WR(cr3, sp[0].cr3);
    invlpg(VA);
    (void)*VA;
    u64 was = *VA;
    WR(cr3, sp[1].cr3 | NOFLUSH);
    (void)*(volatile u64 *)sp[1].page[0];
    *sp[0].pte = sp[0].page[1] | RW | pte_flags;
    how();
    WR(cr3, sp[0].cr3 | NOFLUSH);
    bool ok = was == 0x100 && *VA == 0x101;
    *sp[0].pte = sp[0].page[0] | RW;
    invlpg(VA);
    WR(cr3, sp[0].cr3);
    return ok;
}

static void by_address(void)
{
    invpcid(0, 1, (u64)VA);
}
static void by_context(void)
{
    invpcid(1, 1, 0);
}
static void by_all_global(void)
{
    invpcid(2, 0, 0);
}
static void by_all(void)
{
    invpcid(3, 0, 0);
}
static void by_cr3(void)
{
    WR(cr3, sp[0].cr3);
}
static void by_pge(void)
{
    u64 cr4 = RD(cr4);
    WR(cr4, cr4 ^ CR4_PGE);
    WR(cr4, cr4);
}
static void by_invlpg_after(void)
{
    WR(cr3, sp[0].cr3 | NOFLUSH);
    invlpg(VA);
}
static void by_invlpg_other_space(void)
{
    invlpg(VA); /* ends global entries of every PCID */
}

/* The identity map, with code and data of this program, is global or not. */
static void identity_global(bool on)
{
    for (u64 va = 0; va < PAGE3; va += PAGE2) {
        u64 *pde = pt_entry((void *)va, 2);
        for (u64 p = va; !(*pde & PTE_PS) && p < va + PAGE2; p += PAGE)
            *pt_entry((void *)p, 1) ^= on == !(*pt_entry((void *)p, 1) & PTE_G) ? PTE_G : 0;
        if (*pde & PTE_PS)
            *pde ^= on == !(*pde & PTE_G) ? PTE_G : 0;
    }
}

/* What is not global, in either half, goes at a switch, though all else stays. */
static void among_globals(void)
{
    volatile u64 *high = (volatile u64 *)0xffff800000000000ull;
    for (int i = 0; i < 2; i++)
        ((u64 *)(sp[i].cr3 & PTE_ADDR))[256] = ((u64 *)(sp[i].cr3 & PTE_ADDR))[1];
    identity_global(true);
    WR(cr4, RD(cr4) | CR4_PGE);
    bool ok = true;
    for (int i = 0; i < 1000; i++) {
        WR(cr3, sp[i & 1].cr3 | (i > 1 ? NOFLUSH : 0));
        ok &= *VA == (i & 1 ? 0x200 : 0x100) && *high == *VA;
    }
    report("two spaces never mix among global pages", ok);
    ok = true;
    for (u64 i = 0; i < 100; i++) {
        WR(cr3, sp[i & 1].cr3 | NOFLUSH);
        *high = i;
        ok &= *VA == i && *(volatile u64 *)sp[i & 1].page[0] == i;
    }
    report("nor do their stores", ok);
    *(u64 *)sp[0].page[0] = 0x100;
    *(u64 *)sp[1].page[0] = 0x200;
    for (int i = 0; i < 10000; i++) { /* more than any log of them may hold */
        invlpg(VA);
        (void)*VA;
    }
    WR(cr3, sp[0].cr3 | NOFLUSH);
    report_eq("nor after ten thousand fills", *VA, 0x100);
    report("a flushing CR3 load shows the change", seen_after(by_cr3, 0));
    report("invlpg after the switch shows the change", seen_after(by_invlpg_after, 0));
    if (has(HAS_INVPCID)) {
        report("invpcid 0, individual address", seen_after(by_address, 0));
        report("invpcid 1, single context", seen_after(by_context, 0));
        report("invpcid 3, all but globals", seen_after(by_all, 0));
    }
    identity_global(false);
    WR(cr4, RD(cr4) & ~CR4_PGE);
    WR(cr3, sp[0].cr3);
}

static void pcids(void)
{
    u64 cr3 = RD(cr3);
    WR(cr3, cr3 | 8);
    report("PCIDE with CR3[11:0] != 0 is #GP",
           TRY("mov %0, %%cr4", ::"r"(RD(cr4) | CR4_PCIDE)) == GP && trapped(GP, 0));
    WR(cr3, cr3);
    report("CR3 bit 63 without PCIDE is #GP",
           TRY("mov %0, %%cr3", ::"r"(cr3 | NOFLUSH)) == GP && trapped(GP, 0));
    report_eq("PCIDE can be set", TRY("mov %0, %%cr4", ::"r"(RD(cr4) | CR4_PCIDE)), VEC_NONE);
    WR(cr3, sp[0].cr3 | NOFLUSH);
    report_eq("CR3 reads without bit 63 and with the PCID", RD(cr3), sp[0].cr3);
    report("CR3 bits above MAXPHYADDR are #GP",
           TRY("mov %0, %%cr3", ::"r"(sp[0].cr3 | BIT(62))) == GP);
    report("clearing PG under PCIDE is #GP", TRY("mov %0, %%cr0", ::"r"(RD(cr0) & ~CR0_PG)) == GP);

    bool ok = true;
    for (int i = 0; i < 1000; i++) {
        WR(cr3, sp[i & 1].cr3 | (i > 1 ? NOFLUSH : 0));
        ok &= *VA == (i & 1 ? 0x200 : 0x100);
    }
    report("two spaces never mix, 1000 no-flush switches", ok);
    ok = true;
    for (int i = 0; i < 1000; i++) {
        WR(cr3, sp[i & 1].cr3 | (i > 1 ? NOFLUSH : 0));
        *VA = (u64)i;
        ok &= *(volatile u64 *)sp[i & 1].page[0] == (u64)i;
    }
    report("nor do their stores", ok);
    *(u64 *)sp[0].page[0] = 0x100;
    *(u64 *)sp[1].page[0] = 0x200;
    ok = true;
    for (int i = 0; i < 100; i++) {
        WR(cr3, sp[i & 1].cr3 | NOFLUSH);
        ok &= user_call(user_load, (u64)VA, 0, 0) == (i & 1 ? 0x200 : 0x100);
    }
    report("nor user loads", ok);
    /* Sixteen PCIDs over two sets of tables: more than any cache of sets may hold. */
    ok = true;
    for (u64 i = 0; i < 200; i++) {
        u64 pcid = 16 + i % 16 * 253;
        WR(cr3, (sp[i & 1].cr3 & ~0xfffull) | (pcid & 0xfff)); /* flushing */
        ok &= *VA == (i & 1 ? 0x200 : 0x100);
    }
    report("a flushing load ends what the PCID had with other tables", ok);
    WR(cr3, sp[0].cr3);

    report("a flushing CR3 load shows the change", seen_after(by_cr3, 0));
    report("toggling PGE shows the change", seen_after(by_pge, 0));
    report("invlpg after the switch shows the change", seen_after(by_invlpg_after, 0));
    WR(cr4, RD(cr4) | CR4_PGE);
    report("global: toggling PGE shows the change", seen_after(by_pge, PTE_G));
    report("global: invlpg in another PCID shows the change",
           seen_after(by_invlpg_other_space, PTE_G));
    if (has(HAS_INVPCID)) {
        report("invpcid 0, individual address", seen_after(by_address, 0));
        report("invpcid 1, single context", seen_after(by_context, 0));
        report("invpcid 2, all with globals", seen_after(by_all_global, 0));
        report("invpcid 2, all with globals: a global page", seen_after(by_all_global, PTE_G));
        report("invpcid 3, all but globals", seen_after(by_all, 0));
    }
    WR(cr4, RD(cr4) & ~CR4_PGE);
    among_globals();

    /* Clearing PCIDE flushes everything. */
    WR(cr3, sp[0].cr3);
    (void)*VA;
    WR(cr3, sp[1].cr3 | NOFLUSH);
    *sp[0].pte = sp[0].page[1] | RW;
    WR(cr3, cr3);
    WR(cr4, RD(cr4) & ~CR4_PCIDE);
    WR(cr4, RD(cr4) | CR4_PCIDE);
    WR(cr3, sp[0].cr3 | NOFLUSH);
    report_eq("clearing PCIDE flushes all", *VA, 0x101);
    WR(cr3, cr3);
    WR(cr4, RD(cr4) & ~CR4_PCIDE);
}

static void invpcid_rules(void)
{
    report("invpcid type 4 is #GP", invpcid(4, 0, 0) == GP && trapped(GP, 0));
    report("invpcid type 1 << 32 is #GP", invpcid(BIT(32), 0, 0) == GP);
    report("invpcid with reserved descriptor bits is #GP", invpcid(1, BIT(12), 0) == GP);
    report("invpcid 0 of a non-canonical address is #GP", invpcid(0, 0, BIT(47)) == GP);
    report("invpcid 0/1 of a PCID without PCIDE is #GP",
           invpcid(1, 1, 0) == GP && invpcid(0, 1, 0) == GP);
    report_eq("invpcid 1 of PCID 0", invpcid(1, 0, 0), VEC_NONE);
    static struct invpcid_desc d UDATA = {0, 0};
    user_call(user_invpcid, (u64)&d, 0, 0);
    report("invpcid in ring 3 is #GP", trapped(GP, 0));
    report("invpcid reads its descriptor",
           TRY("invpcid (%1), %0", ::"r"(2ull), "r"(PAGE3)) == PF && faulted(0, (void *)PAGE3));
}

static void global_pages(void)
{
    u64 cr3 = RD(cr3);
    u64 a = page_alloc(), b = page_alloc();
    volatile u64 *va = (volatile u64 *)PAGE3;
    *(u64 *)a = 1;
    *(u64 *)b = 2;
    WR(cr4, RD(cr4) | CR4_PGE);
    map(va, a, RW | PTE_G);
    report_eq("global page", *va, 1);
    *(volatile u64 *)pt_entry(va, 1) = b | RW | PTE_G;
    invlpg(va);
    report_eq("invlpg ends a global page", *va, 2);
    *(volatile u64 *)pt_entry(va, 1) = a | RW | PTE_G;
    WR(cr4, RD(cr4) & ~CR4_PGE);
    report_eq("clearing PGE ends global pages", *va, 1);
    *(volatile u64 *)pt_entry(va, 1) = b | RW | PTE_G;
    WR(cr3, cr3);
    report_eq("without PGE, G means nothing", *va, 2);
    WR(cr4, RD(cr4) | CR4_PGE);
    (void)*va;
    *(volatile u64 *)pt_entry(va, 1) = 0;
    WR(cr3, cr3);
    u64 v = 0;
    TRY("mov (%1), %0", : "+r"(v) : "r"(va));
    print("# a global page %s a CR3 reload here (either is allowed)\n",
          trap.vec == PF ? "does not outlive" : "outlives");
    invlpg(va);
    report("gone after invlpg", TRY("mov (%1), %0", : "+r"(v) : "r"(va)) == PF);
    WR(cr4, RD(cr4) & ~CR4_PGE);
}

int main(void)
{
    global_pages();
    make_space(&sp[0], 1, 0x100);
    make_space(&sp[1], 2, 0x200);
    /* Without PCIDs the same tables still make two spaces. */
    u64 cr3 = RD(cr3);
    bool ok = true;
    for (int i = 0; i < 200; i++) {
        WR(cr3, sp[i & 1].cr3 & ~0xfffull);
        ok &= *VA == (i & 1 ? 0x200 : 0x100);
    }
    WR(cr3, cr3);
    report("two spaces without PCIDs", ok);
    if (has(HAS_PCID))
        pcids();
    else
        skip("PCID", "not in CPUID");
    if (has(HAS_INVPCID))
        invpcid_rules();
    else
        skip("INVPCID", "not in CPUID");
    return 0;
}
