/*
 * What kernel code outside 64-bit mode may remember of large pieces of memory (a large page, or RAM while paging is off), and must
 * forget: when code is made of it, when its mapping or the A20 gate changes, when it is watched. Every access under test is made
 * by one of three instructions, warmed up beside what is tried; each test has its own, since those that miss often are no longer
 * served.
 */
#include "legacy/lib/legacy.h"

#define LA 0x40000000u
#define WARM 600
SYM(code);
SYM(code_put);
SYM(code_get);
SYM(code_push);
SYM(code_end);
CODE32("code: code_put: mov %ecx, (%eax)\n ret\n code_get: mov (%eax), %eax\n ret\n"
       "code_push: xchg %eax, %esp\n push %ecx\n xchg %eax, %esp\n ret\n code_end:");
static u32 c_put, c_get, c_push;
SYM(t_put);
SYM(t_get);
CODE32("t_put: mov $0x5a5a5a5a, %ecx\n call *c_put\n int $0x81"); /* for run(): they may trap */
CODE32("t_get: call *c_get\n int $0x81");

static void fresh(void)
{
    u32 page = page_alloc();
    memcpy((void *)page, code, code_end - code);
    c_put = page + (code_put - code);
    c_get = page + (code_get - code);
    c_push = page + (code_push - code);
    WR(cr3, RD(cr3));
}
static u32 call(u32 at, u32 eax, u32 ecx)
{
    asm volatile("call *%2" : "+a"(eax), "+c"(ecx) : "r"(at) : "edx", "memory", "cc");
    return eax;
}
static void put(u32 at, u32 val) { call(c_put, at, val); }
static u32 get(u32 at) { return call(c_get, at, 0); }
static void warm(u32 at)
{
    for (u32 i = 0; i < WARM; i++) {
        put(at, i);
        if (get(at) != i)
            report("what was stored is read", false);
        call(c_push, at + 4, ~i);
        if (get(at) != ~i)
            report("what was pushed is read", false);
    }
}
/* mov $val, %eax; ret */
static void make(u32 at, u32 val)
{
    put(at, 0xb8 | val << 8);
    put(at + 4, 0xc300 | val >> 24);
}

static void beside_code(const char *how)
{
    u32 page = page_alloc();
    char name[64];
    fresh();
    make(page, 1);
    make(page + 0x900, 2);
    bool ok = call(page, 0, 0) == 1 && call((page + 0x900), 0, 0) == 2;
    warm(page + 0x480); /* between two functions */
    make(page + 0x500, 3);
    ok &= call((page + 0x500), 0, 0) == 3;
    format(name, sizeof(name), "%s: a third function between two", how);
    report(name, ok);
    for (u32 i = 0; i < 60; i++) {
        warm(page + 0x480);
        put(page + 0x501, 0x1000 + i);
        ok &= call((page + 0x500), 0, 0) == 0x1000 + i;
        call(c_push, page + 0x905, 0x2000 + i);
        ok &= call((page + 0x900), 0, 0) == 0x2000 + i;
        put(page + 1, 0x3000 + i);
        ok &= call(page, 0, 0) == 0x3000 + i;
    }
    format(name, sizeof(name), "%s: functions written again", how);
    report(name, ok);
    /* code that comes and goes nearer and nearer */
    for (u32 off = 0x800; off > 0x510; off -= 16) {
        warm(page + 0x508);
        make(page + off, off);
        ok &= call((page + off), 0, 0) == off;
        call(c_push, page + off + 5, off + 1);
        ok &= call((page + off), 0, 0) == off + 1;
    }
    format(name, sizeof(name), "%s: functions in a gap that shrinks", how);
    report(name, ok);
}

static void next_pages(const char *how)
{
    u32 page[8];
    char name[64];
    bool ok = true;
    for (u32 i = 0; i < ARRAY_LEN(page); i++)
        page[i] = page_alloc();
    fresh();
    for (u32 i = 0; i < ARRAY_LEN(page); i++) {
        for (u32 k = 0; k < ARRAY_LEN(page); k++)
            warm(page[k] + 0x800);
        for (u32 k = 0; k < 20; k++) {
            make(page[i] + 0x10, 100 * i + k);
            ok &= call((page[i] + 0x10), 0, 0) == 100 * i + k;
        }
    }
    /* an operand across two pages, and a function */
    warm(page[3] - 2);
    make(page[3] - 3, 77);
    ok &= call((page[3] - 3), 0, 0) == 77;
    put(page[3] - 2, 78);
    ok &= call((page[3] - 3), 0, 0) == 78;
    format(name, sizeof(name), "%s: pages that get code one by one", how);
    report(name, ok);
}

static void ends(void)
{
    fresh();
    warm(0x90000);
    put(0x9fffc, 0x11223344);
    warm(0x9fff8);
    put(0x9fffc, 0x11223344);
    report_eq("the last bytes of conventional memory", get(0x9fffe) & 0xffff, 0x1122);
    put(0x9fffe, 0x55667788);
    report_eq("... written across its end", get(0x9fffc), 0x77883344);
    fresh();
    warm(0x107000);
    put(0x7000, 0x1111);
    put(0x107000, 0x2222);
    outb(0x92, inb(0x92) & ~2);
    u32 closed = get(0x107000);
    put(0x107000, 0x3333);
    u32 stored = get(0x7000);
    warm(0x107000);
    put(0x7000, 0x4444);
    u32 still = get(0x107000);
    outb(0x92, inb(0x92) | 2);
    report_eq("A20 closed", closed, 0x1111);
    report_eq("... a store", stored, 0x3333);
    report_eq("... for long", still, 0x4444);
    report_eq("A20 open", get(0x107000), 0x2222);
}

static void watched(const char *how)
{
    u32 page = page_alloc();
    char name[64];
    fresh();
    warm(page);
    asm volatile("mov %0, %%db0" ::"r"(page + 8));
    asm volatile("mov %0, %%db7" ::"r"(0xd0002)); /* writes of four bytes, exact */
    bool db = run(t_put, page + 8) == DB;
    bool other = run(t_put, page + 16) == VEC_RETURN;
    warm(page + 32);
    db &= run(t_put, page + 8) == DB;
    asm volatile("mov %0, %%db7" ::"r"(0x400));
    format(name, sizeof(name), "%s: a data breakpoint", how);
    report(name, db && other && run(t_put, page + 8) == VEC_RETURN);
}

static void mappings(void)
{
    u32 *pd = (u32 *)page_alloc();
    for (u32 i = 0; i < 1024; i++)
        pd[i] = i << 22 | 0x83;
    pd[LA >> 22] = 0x1000083; /* at 16 and 20 MiB */
    WR(cr4, RD(cr4) | CR4_PSE);
    WR(cr3, pd);
    WR(cr0, RD(cr0) | CR0_PG | CR0_WP);
    beside_code("4 MiB pages");
    next_pages("4 MiB pages");
    watched("4 MiB pages");
    fresh();
    warm(LA + 0x1000);
    put(LA + 0x1000, 0xaaaa);
    pd[LA >> 22] = 0x1400083;
    asm volatile("invlpg (%0)" ::"r"(LA + 0x200000) : "memory");
    put(LA + 0x1000, 0xbbbb);
    report_eq("another frame, INVLPG", get(0x1001000) << 16 | get(0x1401000), 0xaaaabbbb);
    warm(LA + 0x1000);
    pd[LA >> 22] = 0x1000083;
    WR(cr3, pd);
    report_eq("another frame, CR3", get(LA + 0x1000), 0xaaaa);
    fresh();
    warm(LA + 0x1000);
    pd[LA >> 22] = 0x1000081;
    WR(cr3, pd);
    report("read-only: #PF", run(t_put, LA + 0x1000) == PF && trapped(PF, 3) && trap_cr2 == LA + 0x1000);
    report("... it may be read", run(t_get, LA + 0x1000) == VEC_RETURN);
    for (u32 i = 0; i < WARM; i++)
        get(LA + 0x2000);
    report("... nor written now", run(t_put, LA + 0x2000) == PF);
    report_eq("... D stays clear", pd[LA >> 22] & 0x40, 0);
    pd[LA >> 22] = 0x1000083;
    fresh();
    warm(LA + 0x3000);
    report_eq("D is set", pd[LA >> 22] & 0x60, 0x60);
    pd[LA >> 22] = 0;
    WR(cr3, pd);
    report("not present: #PF", run(t_get, LA + 0x3000) == PF && trapped(PF, 0));
    warm(0x1003000);
    WR(cr0, RD(cr0) & ~CR0_PG);
    warm(0x1003000);
    report("paging off again", true);
}

int main(void)
{
    beside_code("paging off");
    next_pages("paging off");
    watched("paging off");
    ends();
    mappings();
    return 0;
}
