/* 32-bit paging, PSE and PAE (SDM vol. 3 §4.3, §4.4): rights, A and D, 4 MiB and 2 MiB pages, NX, reserved bits, switching. */
#include "legacy/lib/legacy.h"

#define LA 0x40000000u /* where tests map */
#define P 1u
#define W 2u
#define U 4u
#define A 0x20u
#define D 0x40u
#define PS 0x80u
#define G 0x100u
static u32 *pd, *pt;
static u64 *pdpt, *pds[4], *ptl;
static u32 page_a, page_b;
SYM(c_read);
SYM(c_write);
SYM(c_exec);
SYM(c_user_exec);
SYM(u_read);
SYM(u_write);
SYM(c_cross);
SYM(c_cross_w);
CODE32("c_read: mov (%eax), %eax\n int $0x81");
CODE32("c_write: movl $0x77777777, (%eax)\n int $0x81");
CODE32("c_exec: call *%eax\n int $0x81");
CODE32("u_read: mov (%eax), %eax\n int $0x81");
CODE32("u_write: movl $0x77777777, (%eax)\n int $0x81");
CODE32("c_user_exec: jmp *%eax");
CODE32("c_cross: mov 0xffe(%eax), %eax\n int $0x81");
CODE32("c_cross_w: movl $0x99aabbcc, 0xffe(%eax)\n int $0x81");

static void flush(void) { WR(cr3, RD(cr3)); }
static void good(const char *name, const void *code, u32 la, bool user, u32 want)
{
    unsigned vec = user ? run_user(code, la, 0) : run(code, la);
    if (vec != VEC_RETURN)
        print("# vector %u error %x cr2 %x\n", vec, trap.err, trap_cr2);
    report_eq(name, vec == VEC_RETURN ? trap.eax : ~0ull, want);
}
static void bad(const char *name, const void *code, u32 la, bool user, u32 err)
{
    if (user)
        run_user(code, la, 0);
    else
        run(code, la);
    bool ok = trapped(PF, err) && trap_cr2 == la;
    if (!ok)
        print("# cr2 %x\n", trap_cr2);
    report(name, ok);
}

static void paging_32(void)
{
    pd = (u32 *)page_alloc();
    pt = (u32 *)page_alloc();
    for (u32 i = 0; i < 1024; i++)
        pd[i] = i << 22 | PS | P | W | U;
    pd[LA >> 22] = (u32)pt | P | W | U;
    WR(cr4, RD(cr4) | CR4_PSE);
    WR(cr3, pd);
    WR(cr0, RD(cr0) | CR0_PG);
    report("32-bit paging is on", RD(cr0) & CR0_PG);
    report_eq("the 4 MiB page of this code has A", pd[1] & (A | PS), A | PS);
    *(volatile u32 *)page_a = 0x11112222;
    *(volatile u32 *)page_b = 0x33334444;

    pt[0] = page_a | P | W | U;
    good("read", c_read, LA, false, 0x11112222);
    report_eq("... A set, D not", pt[0] & (A | D), A);
    good("write", c_write, LA, false, LA);
    report_eq("... D set", pt[0] & (A | D), A | D);
    report_eq("... it got there", *(volatile u32 *)page_a, 0x77777777);
    pt[0] = page_b | P | W | U;
    flush();
    good("another frame", c_read, LA, false, 0x33334444);
    pt[0] = page_a | P | W;
    asm volatile("invlpg (%0)" ::"r"(LA) : "memory");
    good("invlpg", c_read, LA, false, 0x77777777);
    bad("supervisor page from ring 3", u_read, LA, true, 5);
    bad("... a write", u_write, LA, true, 7);
    pt[0] = page_a | P | U;
    flush();
    bad("read-only from ring 3", u_write, LA, true, 7);
    good("... ring 0 writes with WP clear", c_write, LA, false, LA);
    WR(cr0, RD(cr0) | CR0_WP);
    flush();
    bad("... and not with WP", c_write, LA, false, 3);
    WR(cr0, RD(cr0) & ~CR0_WP);
    pt[0] = 0;
    flush();
    bad("not present", c_read, LA, false, 0);
    bad("not present, a write from ring 3", u_write, LA + 8, true, 6);
    pd[LA >> 22] = 0;
    flush();
    bad("no page table", c_read, LA, false, 0);
    pd[LA >> 22] = (u32)pt | P; /* no W, no U in the directory */
    pt[0] = page_a | P | W | U;
    flush();
    bad("U clear in the directory", u_read, LA, true, 5);
    pd[LA >> 22] = (u32)pt | P | W | U;
    pd[LA / 4096 / 1024 + 1] = 0x1000000 | PS | P | W | U | 1u << 21;
    flush();
    bad("a 4 MiB page with reserved bits", c_read, LA + 0x400000, false, 9);
    pd[LA / 4096 / 1024 + 1] = (page_a & 0xffc00000) | PS | P | W | U;
    flush();
    good("a 4 MiB page", c_read, LA + 0x400000 + (page_a & 0x3fffff), false, 0x77777777);

    /* two frames that are not neighbours, and an access across */
    pt[0] = page_a | P | W | U;
    pt[1] = page_b | P | W | U;
    flush();
    *(volatile u16 *)(page_a + 0xffe) = 0xbeef;
    *(volatile u16 *)page_b = 0xdead;
    good("across two pages", c_cross, LA, false, 0xdeadbeef);
    good("a write across", c_cross_w, LA, false, LA);
    report("... in both", *(volatile u16 *)(page_a + 0xffe) == 0xbbcc && *(volatile u16 *)page_b == 0x99aa);
    pt[1] = 0;
    flush();
    run(c_cross_w, LA);
    report("... the second page absent: #PF there", trapped(PF, 2) && trap_cr2 == LA + 0x1000);
    report_eq("... nothing written", *(volatile u16 *)(page_a + 0xffe), 0xbbcc);

    /* code: the same linear page, two frames */
    *(volatile u32 *)page_a = 0x0001b8;      /* mov $1, %eax; ret */
    *(volatile u16 *)(page_a + 4) = 0xc300;
    *(volatile u32 *)page_b = 0x0002b8;
    *(volatile u16 *)(page_b + 4) = 0xc300;
    pt[0] = page_a | P | W | U;
    flush();
    good("code in one frame", c_exec, LA, false, 1);
    pt[0] = page_b | P | W | U;
    flush();
    good("code in another", c_exec, LA, false, 2);
    pt[0] = 0;
    flush();
    bad("code that is gone", c_user_exec, LA, true, 4);
    WR(cr0, RD(cr0) & ~CR0_PG);
    report("paging off again", !(RD(cr0) & CR0_PG));
}

static void pae(void)
{
    if (!(cpuid_edx(1) & 1u << 6)) {
        skip("PAE", "not there");
        return;
    }
    bool nx = cpuid_edx(0x80000001) & 1u << 20;
    pdpt = (u64 *)page_alloc();
    ptl = (u64 *)page_alloc();
    for (u32 i = 0; i < 4; i++) {
        pds[i] = (u64 *)page_alloc();
        pdpt[i] = (u32)pds[i] | P;
        for (u32 k = 0; k < 512; k++)
            pds[i][k] = (u64)(i * 512 + k) << 21 | PS | P | W | U;
    }
    pds[LA >> 30][0] = (u32)ptl | P | W | U;
    WR(cr3, pdpt);
    WR(cr4, RD(cr4) | CR4_PAE);
    if (nx)
        wrmsr(0xc0000080, 0x800);
    WR(cr0, RD(cr0) | CR0_PG);
    report("PAE paging is on", RD(cr0) & CR0_PG);
    *(volatile u32 *)page_a = 0x11112222;
    ptl[0] = page_a | P | W | U;
    flush();
    good("PAE: read", c_read, LA, false, 0x11112222);
    report_eq("... A", (u32)ptl[0] & (A | D), A);
    good("PAE: write", c_write, LA, false, LA);
    report_eq("... D", (u32)ptl[0] & (A | D), A | D);
    ptl[0] = page_a | P;
    flush();
    bad("PAE: supervisor, read-only", u_write, LA, true, 7);
    ptl[0] = 1ull << 62 | page_a | P | W | U;
    flush();
    bad("PAE: a reserved bit", c_read, LA, false, 9);
    if (nx) {
        *(volatile u32 *)page_a = 0x0001b8;
        *(volatile u16 *)(page_a + 4) = 0xc300;
        ptl[0] = page_a | P | W | U;
        flush();
        good("PAE: code", c_exec, LA, false, 1);
        ptl[0] = 1ull << 63 | page_a | P | W | U;
        flush();
        bad("PAE: NX", c_user_exec, LA, true, 0x15);
        good("... it may be read", c_read, LA, false, 0x0001b8);
    } else {
        skip("NX", "not there");
    }
    pds[LA >> 30][1] = (page_a & ~0x1fffffu) | PS | P | W | U;
    flush();
    good("PAE: a 2 MiB page", c_read, LA + 0x200000 + (page_a & 0x1fffff), false, *(volatile u32 *)page_a);
    pdpt[2] = 0;
    WR(cr3, pdpt);
    bad("PAE: no PDPTE", c_read, 0x80000000, false, 0);
    pdpt[2] = (u32)pds[2] | P | W; /* bit 1 is reserved in a PDPTE */
    SYM(c_cr3);
    run(c_cr3, (u32)pdpt);
    report("PAE: loading CR3 with a bad PDPTE is #GP", trapped(GP, 0));
    pdpt[2] = (u32)pds[2] | P;
    WR(cr3, pdpt);
    good("PAE: 2 GiB and up", c_read, 0x80000000 | 0, false, *(volatile u32 *)0x80000000);
    WR(cr0, RD(cr0) & ~CR0_PG);
    WR(cr4, RD(cr4) & ~CR4_PAE);
    report("paging off again", !(RD(cr0) & CR0_PG));
}
CODE32("c_cr3: mov %eax, %cr3\n int $0x81");

int main(void)
{
    page_a = page_alloc();
    page_alloc();
    page_b = page_alloc();
    paging_32();
    pae();
    paging_32();
    return 0;
}
