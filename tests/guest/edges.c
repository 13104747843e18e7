/*
 * edges.c - direct branches of user code to other pages, while what is mapped there changes: remapped pages, two address
 * spaces, one page of code at two places, rights, pages that are written, loops. SDM vol. 3 §4.10.4 (what ends a
 * translation).
 */
#include "lib/guest.h"

#define VA      ((u8 *)0x8000000000ull) /* its own PML4 slot */
#define AT(n)   (VA + (n) * PAGE)
#define NOFLUSH BIT(63)
#define RX      (PTE_P | PTE_U)
#define STEPS   100

/* -- Code ------------------------------------------------------------------------------------------------------ */

static u8 *emit(u8 *p, const void *bytes, size_t n)
{
    memcpy(p, bytes, n);
    return p + n;
}
#define EMIT(p, ...) emit(p, (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__}))
static u8 *emit32(u8 *p, u32 v) { return emit(p, &v, 4); }
/* A branch at p, in the page `page`, to the first byte of the page `pages` on. */
static u8 *branch(u8 *p, u8 *page, int pages) { return emit32(p, (u32)(pages * (int)PAGE - (int)(p + 4 - page))); }

/* eax = eax * 31 + id, and on to another page; 0: ret */
static u64 step_page(u32 id, int pages)
{
    u64 pa = page_alloc();
    u8 *p = EMIT((u8 *)pa, 0x69, 0xc0, 31, 0, 0, 0, 0x05);
    p = emit32(p, id);
    if (pages)
        branch(EMIT(p, 0xe9), (u8 *)pa, pages);
    else
        EMIT(p, 0xc3);
    return pa;
}
static u32 run_at(const u8 *at) { return (u32)user_call(at, 0, 0, 0); }
static u32 step(u32 x, u32 id) { return x * 31 + id; }

/* -- Ways to end a translation ----------------------------------------------------------------------------------- */

static void by_invlpg(void)
{
    for (unsigned i = 0; i < STEPS + 2; i++)
        invlpg(AT(i));
}
static void by_cr3(void) { flush_tlb(); }
static void by_pge(void)
{
    WR(cr4, RD(cr4) ^ CR4_PGE);
    WR(cr4, RD(cr4) ^ CR4_PGE);
}
static void (*const flushes[])(void) = { by_invlpg, by_cr3, by_pge };
static const char *const flush_names[] = { "INVLPG", "CR3", "CR4.PGE" };

static void set(unsigned n, u64 pa, u64 flags)
{
    *(volatile u64 *)pt_entry(AT(n), 1) = pa | flags;
}

/* -- Tests ------------------------------------------------------------------------------------------------------- */

static void remapped(void)
{
    u64 first = step_page(1, 1), b[2] = { step_page(2, 0), step_page(3, 0) };
    for (unsigned f = 0; f < ARRAY_LEN(flushes); f++) {
        bool ok = true;
        set(0, first, RX);
        for (u32 i = 0; i < 60; i++) {
            set(1, b[i & 1], RX);
            flushes[f]();
            for (unsigned k = 0; k < 3; k++)
                ok &= run_at(AT(0)) == step(1, 2 + (i & 1));
        }
        reportf(ok, "the page behind a jump is another: %s", flush_names[f]);
    }
    /* The page with the branch changes, what it leads to stays. */
    u64 a[2] = { first, step_page(7, 1) };
    bool ok = true;
    for (u32 i = 0; i < 60; i++) {
        set(0, a[i & 1], RX);
        invlpg(AT(0));
        for (unsigned k = 0; k < 3; k++)
            ok &= run_at(AT(0)) == step(i & 1 ? 7 : 1, 3);
    }
    report("the page with the jump is another", ok);
}

static void two_places(void)
{
    u64 first = step_page(1, 1);
    set(0, first, RX);
    set(1, step_page(2, 0), RX);
    set(10, first, RX);
    set(11, step_page(3, 0), RX);
    flush_tlb();
    bool ok = true;
    for (u32 i = 0; i < 200; i++) {
        ok &= run_at(AT(i & 1 ? 10 : 0)) == step(1, i & 1 ? 3 : 2);
        if (i % 50 == 49)
            by_invlpg();
    }
    report("one page of code at two places goes on where each leads", ok);
    u64 same = step_page(4, 0);
    set(1, same, RX);
    set(11, same, RX);
    flush_tlb();
    ok = true;
    for (u32 i = 0; i < 200; i++)
        ok &= run_at(AT(i & 1 ? 10 : 0)) == step(1, 4);
    report("and so does what both lead to", ok);
}

/* Many pages in changing order: more than have numbers in a TORTURE build. */
static void shuffled(void)
{
    static u64 page[STEPS];
    static u32 id[STEPS];
    u32 seed = 1;
    for (u32 i = 0; i < STEPS; i++) {
        id[i] = i + 1;
        page[i] = step_page(id[i], 1);
        set(i, page[i], RX);
    }
    set(STEPS, step_page(1000, 0), RX);
    for (unsigned f = 0; f < ARRAY_LEN(flushes); f++) {
        bool ok = true;
        for (unsigned round = 0; round < 20; round++) {
            u32 want = 0;
            for (u32 i = STEPS - 1; i; i--) {
                seed = seed * 1664525 + 1013904223;
                u32 k = (seed >> 8) % (i + 1), t = id[i];
                u64 pa = page[i];
                id[i] = id[k], page[i] = page[k];
                id[k] = t, page[k] = pa;
            }
            for (u32 i = 0; i < STEPS; i++) {
                set(i, page[i], RX);
                want = step(want, id[i]);
            }
            flushes[f]();
            for (unsigned k = 0; k < 3; k++)
                ok &= run_at(AT(0)) == step(want, 1000);
        }
        reportf(ok, "%u pages in changing order: %s", STEPS, flush_names[f]);
    }
}

static void rights(void)
{
    bool nx = has(HAS_NX);
    u64 target = step_page(2, 0);
    set(0, step_page(1, 1), RX);
    set(1, target, RX);
    if (nx)
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    flush_tlb();
    bool ok = true, gone = true, exec = true, super = true;
    for (unsigned i = 0; i < 20; i++) {
        ok &= run_at(AT(0)) == step(1, 2) && run_at(AT(0)) == step(1, 2);
        set(1, 0, 0);
        invlpg(AT(1));
        run_at(AT(0));
        gone &= trap.r.rip == (u64)AT(1) && (u32)trap.r.rax == 1 && faulted(PF_U | (nx ? PF_I : 0), AT(1));
        set(1, target, RX);
        ok &= run_at(AT(0)) == step(1, 2);
        if (nx) {
            set(1, target, RX | PTE_NX);
            invlpg(AT(1));
            run_at(AT(0));
            exec &= trap.r.rip == (u64)AT(1) && faulted(PF_U | PF_P | PF_I, AT(1));
        }
        set(1, target, PTE_P);
        invlpg(AT(1));
        run_at(AT(0));
        super &= faulted(PF_U | PF_P | (nx ? PF_I : 0), AT(1));
        set(1, target, RX);
        invlpg(AT(1));
    }
    report("the page behind a jump comes and goes", ok);
    report("not present: #PF at the target", gone);
    if (nx)
        report("not executable: #PF at the target", exec);
    report("the supervisor's: #PF at the target", super);
}

static void written(void)
{
    u64 target = step_page(2, 0);
    set(0, step_page(1, 1), RX);
    set(1, target, RX);
    flush_tlb();
    bool ok = true;
    for (u32 i = 0; i < 60; i++) {
        emit32((u8 *)target + 7, 100 + i); /* by its identity mapping */
        asm volatile("cpuid" : : "a"(0), "c"(0) : "rbx", "rdx", "memory");
        for (unsigned k = 0; k <= i % 3; k++)
            ok &= run_at(AT(0)) == step(1, 100 + i);
    }
    report("the page behind a jump is written", ok);
}

static u64 flags_of(u32 a, u32 b)
{
    u64 f;
    asm volatile("cmpl %2, %1; pushfq; popq %0" : "=r"(f) : "r"(a), "r"(b) : "cc");
    return f & FL_ARITH;
}
static void flags(void)
{
    static const u32 v[] = { 0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff, 0x10, 0xf };
    u64 by_jmp = page_alloc(), by_jcc = page_alloc(), image = page_alloc();
    branch(EMIT((u8 *)by_jmp, 0x39, 0xf7, 0xe9), (u8 *)by_jmp, 1);               /* cmp edi, esi; jmp */
    EMIT(branch(EMIT((u8 *)by_jcc, 0x39, 0xf7, 0x0f, 0x82), (u8 *)by_jcc, -1), 0x9c, 0x58, 0xc3); /* jb; pushf; pop; ret */
    EMIT((u8 *)image, 0x9c, 0x58, 0xc3);
    set(0, by_jmp, RX);
    set(1, image, RX);
    set(2, by_jcc, RX);
    flush_tlb();
    for (unsigned flush = 0; flush < 2; flush++) {
        bool jmp = true, jcc = true;
        for (unsigned i = 0; i < ARRAY_LEN(v); i++)
            for (unsigned k = 0; k < ARRAY_LEN(v); k++) {
                u64 want = flags_of(v[i], v[k]);
                jmp &= (user_call(AT(0), v[i], v[k], 0) & FL_ARITH) == want;
                if (flush)
                    flush_tlb();
                jcc &= (user_call(AT(2), v[i], v[k], 0) & FL_ARITH) == want;
                if (flush)
                    invlpg(AT(1));
            }
        reportf(jmp, "flags come along by jmp%s", flush ? ", just flushed" : "");
        reportf(jcc, "and by jcc%s", flush ? ", just flushed" : "");
    }
}

static void loops(void)
{
    /* dec edi; jz two pages on; jmp one on: inc eax; jmp back */
    u64 head = page_alloc(), body = page_alloc(), end = page_alloc(), call = page_alloc();
    u8 *p = branch(EMIT((u8 *)head, 0xff, 0xcf, 0x0f, 0x84), (u8 *)head, 2);
    branch(EMIT(p, 0xe9), (u8 *)head, 1);
    branch(EMIT((u8 *)body, 0xff, 0xc0, 0xe9), (u8 *)body, -1);
    EMIT((u8 *)end, 0xc3);
    /* call back three pages; add eax, eax; ret */
    EMIT(branch(EMIT((u8 *)call, 0xe8), (u8 *)call, -3), 0x01, 0xc0, 0xc3);
    set(0, head, RX);
    set(1, body, RX);
    set(2, end, RX);
    set(3, call, RX);
    flush_tlb();
    report_eq("a loop over three pages", user_call(AT(0), 10000, 0, 0), 9999);
    bool ok = true;
    for (u64 i = 1; i < 50; i++)
        ok &= user_call(AT(3), i, 0, 0) == 2 * (i - 1);
    report("called, and returned from, across pages", ok);
    /* jmp one on; jmp back: only an interrupt ends it */
    branch(EMIT((u8 *)head, 0xe9), (u8 *)head, 1);
    branch(EMIT((u8 *)body, 0xe9), (u8 *)body, -1);
    struct regs r;
    lapic_init();
    ok = true;
    for (unsigned i = 0; i < 5; i++) {
        lapic_write(LAPIC_LVTT, 0x40);
        lapic_write(LAPIC_TDCR, 0xb);
        lapic_write(LAPIC_TMICT, 1000000);
        user_regs(&r, AT(0), false);
        r.rflags |= FL_IF;
        ok &= user_run(&r) == 0x40 && (trap.r.rip == (u64)AT(0) || trap.r.rip == (u64)AT(1));
        lapic_eoi();
    }
    report("an endless loop over two pages is interrupted", ok);
}

static u64 make_space(u64 pcid, u64 second)
{
    u64 *root = (u64 *)page_alloc(), *pdpt = (u64 *)page_alloc(), *pd = (u64 *)page_alloc(), *pt = (u64 *)page_alloc();
    memcpy(root, (void *)(RD(cr3) & PTE_ADDR), PAGE);
    root[1] = (u64)pdpt | PTE_TABLE;
    pdpt[0] = (u64)pd | PTE_TABLE;
    pd[0] = (u64)pt | PTE_TABLE;
    pt[0] = *pt_entry(AT(0), 1);
    pt[1] = second | RX;
    return (u64)root | pcid;
}
static void spaces(void)
{
    u64 cr3 = RD(cr3);
    set(0, step_page(1, 1), RX);
    u64 s[2] = { make_space(1, step_page(2, 0)), make_space(2, step_page(3, 0)) };
    bool ok = true;
    for (u32 i = 0; i < 100; i++) {
        WR(cr3, s[i & 1] & ~0xfffull);
        ok &= run_at(AT(0)) == step(1, i & 1 ? 3 : 2) && run_at(AT(0)) == step(1, i & 1 ? 3 : 2);
    }
    WR(cr3, cr3);
    report("two spaces with one page before different ones", ok);
    if (!has(HAS_PCID)) {
        skip("with PCIDs", "not in CPUID");
        return;
    }
    WR(cr4, RD(cr4) | CR4_PCIDE);
    ok = true;
    for (u32 i = 0; i < 400; i++) {
        WR(cr3, s[i & 1] | NOFLUSH);
        ok &= run_at(AT(0)) == step(1, i & 1 ? 3 : 2) && run_at(AT(0)) == step(1, i & 1 ? 3 : 2);
    }
    report("with PCIDs, nothing flushed between", ok);
    ok = true;
    for (u64 i = 0; i < 200; i++) { /* more PCIDs than sets may be kept for */
        WR(cr3, (s[i & 1] & ~0xfffull) | (3 + i % 32 * 7));
        ok &= run_at(AT(0)) == step(1, i & 1 ? 3 : 2);
    }
    report("with many PCIDs", ok);
    /* All code of one page is written; what was remembered of it must not be taken for another space's page. */
    ok = true;
    for (u32 i = 0; i < 20; i++) {
        u64 page[2] = { step_page(4, 0), step_page(5, 0) };
        set(0, step_page(1, 1), RX);
        s[0] = make_space(1, page[0]), s[1] = make_space(2, page[1]);
        WR(cr3, s[1]);
        WR(cr3, s[0]);
        ok &= run_at(AT(0)) == step(1, 4);
        emit32((u8 *)page[0] + 7, 6);
        WR(cr3, s[1] | NOFLUSH);
        ok &= run_at(AT(0)) == step(1, 5) && run_at(AT(0)) == step(1, 5);
        WR(cr3, s[0] | NOFLUSH);
        ok &= run_at(AT(0)) == step(1, 6);
    }
    report("code dropped in one, new code in the other", ok);
    WR(cr3, cr3);
    WR(cr4, RD(cr4) & ~CR4_PCIDE);
}

int main(void)
{
    map(AT(0), page_alloc(), RX); /* makes the path */
    remapped();
    two_places();
    shuffled();
    rights();
    written();
    flags();
    spaces();
    loops();
    return 0;
}
