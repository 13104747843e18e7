/*
 * tlb.c - translations must not outlive what ends them (Intel SDM vol. 3 §4.10.4), and changes that
 * need no invalidation must be seen at once. A write-tag, a read-tag, each privilege and each page
 * size count as separate places where something stale could hide.
 */
#include "lib/guest.h"

#define VA ((volatile u64 *)PAGE3)
#define RW (PTE_P | PTE_W | PTE_U)

static UTEXT u64 user_load(volatile u64 *p)
{
    return *p;
}
static UTEXT void user_store(volatile u64 *p, u64 v)
{
    *p = v;
}

static void set_pte(const volatile void *va, int level, u64 v)
{
    *(volatile u64 *)pt_entry(va, level) = v;
}

static unsigned try_load(const volatile void *p)
{
    return TRY("mov (%0), %%rax", ::"r"(p) : "rax");
}
static unsigned try_store(volatile void *p)
{
    return TRY("movq $1, (%0)", ::"r"(p) : "memory");
}

static void remap(void)
{
    u64 a = page_alloc(), b = page_alloc();
    *(u64 *)a = 0xaaaa;
    *(u64 *)b = 0xbbbb;
    map(VA, a, RW);
    report_eq("first mapping", *VA, 0xaaaa);
    set_pte(VA, 1, b | RW);
    invlpg(VA);
    report_eq("remap and invlpg: load", *VA, 0xbbbb);
    *VA = 0xb1b1;
    report_eq("remap: the store goes to the new page", *(volatile u64 *)b, 0xb1b1);
    set_pte(VA, 1, a | RW);
    invlpg((u8 *)VA + 4095);
    *VA = 0xa1a1;
    report_eq("invlpg by the last byte: store", *(volatile u64 *)a, 0xa1a1);
    report_eq("and the other page keeps its value", *(volatile u64 *)b, 0xb1b1);
    set_pte(VA, 1, b | RW);
    flush_tlb();
    report_eq("remap and CR3 reload", *VA, 0xb1b1);
    user_call(user_store, (u64)VA, 5, 0);
    report_eq("user store", *(volatile u64 *)b, 5);
    set_pte(VA, 1, a | RW);
    invlpg(VA);
    report_eq("the user's view changes as well", user_call(user_load, (u64)VA, 0, 0), 0xa1a1);
    user_call(user_store, (u64)VA, 6, 0);
    report_eq("and its stores", *(volatile u64 *)a, 6);
    set_pte(VA, 1, 0);
    invlpg(VA);
    report("unmap: load", try_load(VA) == PF && faulted(0, VA));
    report("unmap: store", try_store(VA) == PF && faulted(PF_W, VA));
    set_pte(VA, 1, a | RW);
    report("not present to present needs no invlpg", try_load(VA) == VEC_NONE);
    unmap(VA);
}

static void rights(void)
{
    u64 a = page_alloc();
    map(VA, a, RW);
    *VA = 1;
    set_pte(VA, 1, a | PTE_P | PTE_U);
    invlpg(VA);
    report("write-protect, then write: kernel", try_store(VA) == PF && faulted(PF_P | PF_W, VA));
    report("reads go on", try_load(VA) == VEC_NONE);
    user_call(user_store, (u64)VA, 1, 0);
    report("write-protect, then write: user", faulted(PF_P | PF_W | PF_U, VA));
    set_pte(VA, 1, a | RW);
    unsigned v = try_store(VA); /* one spurious fault is allowed, a second is not */
    report("read-only to writable", v == VEC_NONE || try_store(VA) == VEC_NONE);

    set_pte(VA, 1, a | PTE_P | PTE_W);
    invlpg(VA);
    report("user right taken: kernel still may", try_load(VA) == VEC_NONE);
    user_call(user_load, (u64)VA, 0, 0);
    report("user right taken: user may not, after the kernel's access", faulted(PF_P | PF_U, VA));
    user_call(user_store, (u64)VA, 0, 0);
    report("nor write", faulted(PF_P | PF_U | PF_W, VA));

    set_pte(VA, 1, a | PTE_P);
    invlpg(VA);
    WR(cr0, RD(cr0) & ~CR0_WP);
    report("WP=0: the kernel writes to a read-only page", try_store(VA) == VEC_NONE);
    WR(cr0, RD(cr0) | CR0_WP);
    report("WP=1 again: not any more, without invlpg",
           try_store(VA) == PF && faulted(PF_P | PF_W, VA));

    if (has(HAS_SMAP)) {
        image_user(false);
        set_pte(VA, 1, a | RW);
        invlpg(VA);
        report("SMAP off: load", try_load(VA) == VEC_NONE);
        report("SMAP off: store", try_store(VA) == VEC_NONE);
        WR(cr4, RD(cr4) | CR4_SMAP);
        report("SMAP on: load refused", try_load(VA) == PF && faulted(PF_P, VA));
        report("SMAP on: store refused", try_store(VA) == PF && faulted(PF_P | PF_W, VA));
        asm volatile("stac");
        report("stac: load", try_load(VA) == VEC_NONE);
        asm volatile("stac");
        report("stac: store", try_store(VA) == VEC_NONE);
        asm volatile("clac");
        report("clac: load refused", try_load(VA) == PF && faulted(PF_P, VA));
        report("clac: store refused", try_store(VA) == PF && faulted(PF_P | PF_W, VA));
        user_call(user_store, (u64)VA, 9, 0);
        report_eq("the user's own access is not SMAP's business", trap.vec, VEC_RETURN);
        asm volatile("pushf; orl $0x40000, (%%rsp); popf" ::: "memory", "cc");
        v = try_load(VA);
        asm volatile("pushf; andl $~0x40000, (%%rsp); popf" ::: "memory", "cc");
        report_eq("AC by popf", v, VEC_NONE);
        report("AC cleared by popf", try_load(VA) == PF);
        WR(cr4, RD(cr4) & ~CR4_SMAP);
        image_user(true);
    }
    unmap(VA);
}

static void large(void)
{
    u64 a = pages_alloc(512, PAGE2), b = pages_alloc(512, PAGE2);
    volatile u64 *va = (volatile u64 *)(PAGE3 + 16 * PAGE2), *mid = va + 300 * 512 + 7;
    u64 off = (u64)mid - (u64)va;
    *(u64 *)(a + off) = 0xaa;
    *(u64 *)(b + off) = 0xbb;
    map_level(va, a, RW, 2);
    report_eq("2 MiB page", *mid, 0xaa);
    (void)*va;
    set_pte(va, 2, b | RW | PTE_PS);
    invlpg(va); /* any address in the page ends the whole translation */
    report_eq("2 MiB page, invlpg by its first byte", *mid, 0xbb);
    *mid = 0xb2;
    set_pte(va, 2, a | RW | PTE_PS);
    invlpg((u8 *)va + PAGE2 - 1);
    report_eq("2 MiB page, invlpg by its last byte", *mid, 0xaa);
    report_eq("the store reached the right page", *(volatile u64 *)(b + off), 0xb2);
    /* Split into small pages, one of them elsewhere. */
    u64 *pt = (u64 *)page_alloc();
    for (unsigned i = 0; i < 512; i++)
        pt[i] = (i == 300 ? b : a) + i * PAGE + RW;
    set_pte(va, 2, (u64)pt | PTE_TABLE);
    flush_tlb();
    report_eq("split into 4 KiB pages", *mid, 0xb2);
    /* Another table under the same PDE. */
    u64 *pt2 = (u64 *)page_alloc();
    memcpy(pt2, pt, PAGE);
    pt2[300] = a + 300 * PAGE + RW;
    set_pte(va, 2, (u64)pt2 | PTE_TABLE);
    invlpg(mid); /* ends the cached PDE too (§4.10.4.1) */
    report_eq("another page table, invlpg", *mid, 0xaa);
    set_pte(va, 2, 0);
    flush_tlb();
    report("PDE gone", try_load(mid) == PF && faulted(0, mid));
}

static void many(void)
{
    enum { N = 2048 };
    u8 *base = (u8 *)(PAGE3 + 128 * PAGE2);
    u64 pool = pages_alloc(256, PAGE);
    for (u64 i = 0; i < N; i++)
        map(base + i * PAGE, pool + i % 256 * PAGE, RW);
    for (u64 i = 0; i < 256; i++)
        *(volatile u64 *)(base + i * PAGE) = i;
    bool ok = true;
    for (int round = 0; round < 3; round++)
        for (u64 i = 0; i < N; i++)
            ok &= *(volatile u64 *)(base + i * PAGE) == i % 256;
    report("2048 pages", ok);
    for (u64 i = 0; i < N; i += 2) {
        *(volatile u64 *)pt_entry(base + i * PAGE, 1) = pool + (i + 1) % 256 * PAGE + RW;
        invlpg(base + i * PAGE);
    }
    ok = true;
    for (u64 i = 0; i < N; i++)
        ok &= *(volatile u64 *)(base + i * PAGE) == (i & 1 ? i : i + 1) % 256;
    report("half of them remapped", ok);
    for (u64 i = 0; i < N; i++)
        *(volatile u64 *)pt_entry(base + i * PAGE, 1) = 0;
    flush_tlb();
    ok = true;
    for (u64 i = 0; i < N; i += 37)
        ok &= try_load(base + i * PAGE) == PF && trap.cr2 == (u64)base + i * PAGE;
    report("all unmapped by one CR3 reload", ok);

    /* Addresses that meet in any direct-mapped table: same low bits, far apart. */
    ok = true;
    for (int bit = 20; bit < 47; bit++) {
        u64 va = BIT(bit);
        if (va < PAGE3)
            continue;
        if (va >= 3 * PAGE3 && va < 4 * PAGE3)
            continue;
        map((void *)(va + 3 * PAGE), pool + (u64)(bit % 256) * PAGE, RW);
    }
    for (int round = 0; round < 2; round++)
        for (int bit = 30; bit < 47; bit++)
            ok &= *(volatile u64 *)(BIT(bit) + 3 * PAGE) == (u64)bit;
    report("addresses a power of two apart", ok);
    map((void *)0xffff800000003000ull, pool + 7 * PAGE, RW);
    map((void *)0xfffffffffffff000ull, pool + 8 * PAGE, RW);
    report_eq("lowest address of the upper half", *(volatile u64 *)0xffff800000003000ull, 7);
    report_eq("highest page", *(volatile u64 *)0xfffffffffffff000ull, 8);
    *(volatile u8 *)0xffffffffffffffffull = 0x5a;
    report_eq("highest byte", *(volatile u8 *)(pool + 9 * PAGE - 1), 0x5a);
    map((void *)0x00007ffffffff000ull, pool + 9 * PAGE, RW);
    report_eq("highest page of the lower half", *(volatile u64 *)0x00007ffffffff000ull, 9);
    u64 x = 0;
    report("crossing the hole is #GP", TRY("mov (%1), %0",
                                           : "+r"(x)
                                           : "r"(0x00007ffffffffffcull)) == GP);
    unmap((void *)PAGE3);
}

static void tables_by_alias(void)
{
    /* The page table itself mapped and edited through another address, as kernels do. */
    u64 a = page_alloc(), b = page_alloc();
    *(u64 *)a = 1;
    *(u64 *)b = 2;
    map(VA, a, RW);
    u64 pt = (u64)pt_entry(VA, 1) & ~(PAGE - 1);
    volatile u64 *window = (volatile u64 *)(2 * PAGE3);
    map(window, pt, RW);
    bool ok = true;
    for (int i = 0; i < 1000; i++) {
        window[(u64)VA >> 12 & 511] = (i & 1 ? b : a) | RW;
        invlpg(VA);
        ok &= *VA == (i & 1 ? 2u : 1u);
    }
    report("1000 remaps through an alias of the page table", ok);
    unmap(window);
    unmap(VA);
}

int main(void)
{
    remap();
    rights();
    large();
    many();
    tables_by_alias();
    return 0;
}
