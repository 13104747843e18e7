/*
 * windows.c - user memory where translated code does not check it (src/engine/window.h): the places where the arithmetic that
 * replaces the check is at its limits, and state at faults that the host's MMU finds. By `--debug windows` in Vitro; the CPU's
 * own rules, so elsewhere as well.
 */
#include "lib/guest.h"

#define RW (PTE_P | PTE_W | PTE_U)
#define CHUNK (1ull << 40)
#define VA(n) ((volatile u64 *)((u64)(n) * CHUNK + 7 * PAGE))

/* rdi, rsi, rdx: arguments; each returns what it loaded */
u64 win_load(volatile void *p, u64 index, u64 v), win_far(u64 index, u64 b, u64 c), win_sum(volatile void *p, u64 index, u64 c);
u64 win_below(volatile void *p, u64 b, u64 c), win_store(volatile void *p, u64 v, u64 c), win_two(volatile void *p, volatile void *q, u64 v);
u64 win_slots(volatile void *p, u64 b, u64 c), win_call(volatile void *p, u64 b, u64 c), win_moved(volatile void *p, u64 b, u64 c);
u64 win_top(volatile void *p, u64 b, u64 c), win_round(volatile void *p, u64 b, u64 c);
USER_ASM("win_load: mov (%rdi), %rax; ret\n"
         "win_far: mov 0x70000000(%rdi,%rsi,8), %rax; ret\n"
         "win_sum: mov (%rdi,%rsi,8), %rax; ret\n"
         "win_below: mov -0x40000000(%rdi), %rax; ret\n"
         "win_store: mov %rsi, (%rdi); mov %rsi, %rax; ret\n"
         /* two bases at once, one of them moved by a constant, a condition between */
         "win_two: mov (%rdi), %rax; add $8, %rdi; mov %rdx, (%rsi); cmp $0, %rdx; jl 1f; add (%rdi), %rax; mov %rdx, 8(%rsi)\n"
         "  push %rdx; add -8(%rdi), %rax; pop %rcx; add %rcx, %rax\n"
         "1: ret\n"
         /* registers that live in memory as bases, indexes and operands */
         "win_slots: push %r14; push %r15; mov %rdi, %r14; mov $2, %r15d; mov (%r14), %r10; mov (%r14,%r15,8), %r11\n"
         "  mov %r10, 32(%r14); mov %r11, 8(%r14,%r15,8); lea (%r10,%r11), %rax; pop %r15; pop %r14; ret\n"
         /* a call through memory, on a stack of its own */
         "win_call: mov %rsp, %rcx; mov %rdi, %rsp; lea 2f(%rip), %rax; mov %rax, 16(%rdi); call *16(%rdi); mov %rcx, %rsp; ret\n"
         "2: mov $77, %eax; ret\n"
         /* a base that goes far away by small steps */
         "win_moved: mov (%rdi), %rax; add $4000, %rdi; add (%rdi), %rax; add $4000, %rdi; add (%rdi), %rax; sub $4000, %rdi\n"
         "  sub $4000, %rdi; add (%rdi), %rax; ret\n"
         /* displacements that lead back to user addresses from what is none */
         "win_top: mov -8(%rdi), %rax; add -4096(%rdi), %rax; add $904, %rdi; add -5000(%rdi), %rax; mov %fs:0x40, %rcx; ret\n"
         "win_round: mov 16(%rdi), %rax; add $8, %rdi; add 24(%rdi), %rax; ret\n");
/* RSP in one chunk and then in another, by every way there is; each leaves on the stack it came with (rcx) */
u64 win_sp_far(volatile void *p, u64 n, u64 v), win_sp_near(volatile void *p, u64 b, u64 v), win_sp_ways(volatile void *p, volatile void *q, u64 v);
u64 win_sp_pop(volatile void *p, u64 b, u64 c), win_sp_lea(volatile void *p, u64 by, u64 v), win_sp_high(volatile void *p, u64 b, u64 v);
USER_ASM("win_sp_far: mov %rsp, %rcx; mov %rdi, %rsp; 1: sub $0x70000000, %rsp; dec %rsi; jnz 1b; push %rdx; pop %rax; mov %rcx, %rsp; ret\n"
         "win_sp_near: mov %rsp, %rcx; mov %rdi, %rsp; mov $100, %eax; 1: sub $1000, %rsp; jmp 2f; 2: dec %eax; jnz 1b; push %rdx\n"
         "  mov $100, %eax; 1: add $1000, %rsp; dec %eax; jnz 1b; push %rdx; pop %rax; mov %rcx, %rsp; ret\n"
         "win_sp_ways: mov %rsp, %rcx; mov %rdi, %rsp; push %rdx; xchg %rsi, %rsp; push %rdx; lea 8(%rsp), %rbp; xchg %rsi, %rsp; mov (%rsp), %rax; leave\n"
         "  pop %r8; mov %rdi, %rsp; and $-64, %rsp; push %rbp; push %r8; mov -16(%rdi), %r9; add %rbp, %rax; lea (%rax,%r9), %rax; mov %rcx, %rsp; ret\n"
         "win_sp_pop: mov %rsp, %rcx; mov %rdi, %rsp; pop %rsp; pop %rax; mov %rcx, %rsp; ret\n"
         "win_sp_lea: mov %rsp, %rcx; mov %rdi, %rsp; lea (%rsp,%rsi), %rsp; push %rdx; pop %rax; sub %rsi, %rsp; push %rax; mov %rcx, %rsp; ret\n"
         "win_sp_high: mov %rsp, %rcx; mov %rdi, %rsp; sub $1000, %rsp; push %rdx; pop %rax; mov %rcx, %rsp; ret\n");
/* What faults: registers and flags must be what they were before the instruction that does. */
extern char win_fault_load[], win_fault_push[], win_fault_call[], win_fault_rmw[], win_fault_leave[], win_row_push[], win_row_pop[], win_row_ret[];
USER_ASM("win_fault_load: stc; mov (%rdi), %r10; mov $1, %eax; mov 4096(%rdi), %rax; adc $0, %ecx; int $0x81\n"
         "win_fault_push: stc; push %rax; adc $0, %ecx; int $0x81\n"
         "win_fault_call: stc; call *(%rdi); adc $0, %ecx; int $0x81\n"
         "win_fault_rmw: cmp %rax, %rax; stc; adc %ecx, 4096(%rdi); setz %al; int $0x81\n"
         /* rows in which RSP's host register moves once; nobody wants the flags of SUB and ADD */
         "win_row_push: push %rax; push %rcx; push %r8; sub $40, %rsp; push %rbp; push %r14; stc; adc $0, %ecx; int $0x81\n"
         "win_row_pop: pop %rcx; pop %rbx; pop %r8; add $16, %rsp; pop %r15; pop %rdx; stc; adc $0, %ecx; int $0x81\n"
         "win_row_ret: pop %rcx; pop %r9; ret\n"
         "win_fault_leave: stc; mov %rdi, %rbp; leave; adc $0, %ecx; int $0x81\n");

static u64 call(const void *fn, const volatile void *a, u64 b, u64 c)
{
    return user_call(fn, (u64)a, b, c);
}

static void chunks(void)
{
    /* More chunks than an address space has slots for. */
    static const u16 at[] = { 1, 2, 3, 5, 20, 40, 64, 80, 90, 100, 110, 126, 127 };
    bool ok = true;
    for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        u64 pa = page_alloc();
        *(volatile u64 *)pa = 1000 + i;
        map(VA(at[i]), pa, RW);
    }
    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
            u64 got = call(win_load, VA(at[i]), 0, 0);
            ok &= trap.vec == VEC_RETURN && got == 1000 + i + round * 100;
            call(win_store, VA(at[i]), 1000 + i + (round + 1) * 100, 0);
            ok &= trap.vec == VEC_RETURN;
        }
    report("thirteen chunks", ok);

    /* From one chunk into the next. */
    u64 a = page_alloc(), b = page_alloc();
    u8 *edge = (u8 *)(21 * CHUNK);
    map(edge - PAGE, a, RW);
    map(edge, b, RW);
    call(win_store, edge - 3, 0x1122334455667788, 0);
    report_eq("an operand in two chunks", call(win_load, edge - 3, 0, 0), 0x1122334455667788);
    report("it is in both pages", *(volatile u8 *)(a + PAGE - 1) == 0x66 && *(volatile u32 *)b == 0x22334455);
    report_eq("by a displacement from the chunk above", call(win_below, edge + 0x40000000 - 8, 0, 0), 0x6677880000000000);
    *(volatile u64 *)(b + 16) = 0xfeed;
    report_eq("by an index from the chunk below", call(win_sum, edge - 800, 102, 0), 0xfeed);
    report_eq("by a negative index", call(win_sum, edge + 816, (u64)-100, 0), 0xfeed);

    /* The displacement is the array, the registers are not near it. */
    u64 pa = page_alloc();
    map((void *)0x70000000, pa, RW);
    map((void *)0x6ffff000, page_alloc(), RW);
    *(volatile u64 *)(pa + 80) = 0xcafe;
    report_eq("an index from 0", call(win_far, (void *)0, 10, 0), 0xcafe);
    report_eq("an index from beyond", call(win_far, (void *)160, (u64)-10, 0), 0xcafe);
    report_eq("a negative register", call(win_far, (void *)-80, 20, 0), 0xcafe);

    u64 top = page_alloc();
    map((void *)((1ull << 47) - PAGE), top, RW);
    *(volatile u64 *)top = 0x100;
    *(volatile u64 *)(top + PAGE - 8) = 0x20;
    wrmsr(MSR_FS_BASE, (1ull << 47) - PAGE);
    report_eq("down from 2^47", call(win_top, (void *)(1ull << 47), 0, 0), 0x220);
    wrmsr(MSR_FS_BASE, 0);
    unmap((void *)((1ull << 47) - PAGE));
    volatile u64 *low = (volatile u64 *)0; /* of the image, which user code reaches */
    asm volatile("" : "+r"(low));
    low[1] = 0x30;
    low[3] = 0x4;
    report_eq("up from the end of the address space to its start", call(win_round, (void *)-8, 0, 0), 0x34);
}

static void wild(void)
{
    static const struct { const char *name; u64 at; unsigned vec; } w[] = {
        { "just behind the low half", 1ull << 47, 13 }, { "the last byte of the low half", (1ull << 47) - 1, 13 },
        { "the middle of nowhere", 0x4000000000000000, 13 }, { "a bit too many", 0x0001000000007000, 13 },
        { "every high bit of a chunk", 0x7fff800000000000 + CHUNK, 13 }, { "below the high half", 0xffff7ffffffffff8, 13 },
        { "the high half", 0xffff800000001000, 14 },
        { "the vsyscall page", 0xffffffffff600000, 14 }, { "the last page", 0xfffffffffffff000, 14 },
        { "a chunk that nothing is in", 33 * CHUNK, 14 }, { "0", 0, 14 },
    };
    image_user(false);
    for (unsigned i = 0; i < sizeof(w) / sizeof(w[0]); i++) {
        call(win_load, (void *)w[i].at, 0, 0);
        reportf(trap.vec == w[i].vec, "load from %s", w[i].name);
        call(win_store, (void *)w[i].at, 5, 0);
        reportf(trap.vec == w[i].vec && (w[i].vec != 14 || trap.cr2 == w[i].at), "store to %s", w[i].name);
    }
    image_user(true);
}

static void groups(void)
{
    u64 a = page_alloc(), b = page_alloc(), c = page_alloc();
    volatile u64 *p = VA(40), *q = VA(41);
    map(p, a, RW);
    map((u8 *)p + PAGE, c, RW);
    map(q, b, RW);
    p[0] = 5;
    p[1] = 7;
    report_eq("two bases and the stack", call(win_two, p, (u64)q, 100), 5 + 7 + 5 + 100);
    report("and what they wrote", q[0] == 100 && q[1] == 100);
    report_eq("the branch between taken", call(win_two, p, (u64)q, (u64)-1), 5);
    report("nothing was written behind it", q[0] == (u64)-1 && q[1] == 100);
    p[2] = 9;
    report_eq("registers that live in memory", call(win_slots, p, 0, 0), 14);
    report("what they wrote", p[4] == 5 && p[3] == 9);
    report_eq("a call through memory", call(win_call, p + 64, 0, 0), 77);
    *(volatile u64 *)((u8 *)p + 4000) = 30;
    *(volatile u64 *)((u8 *)p + 8000) = 400;
    p[0] = 1;
    report_eq("a base that moves by thousands", call(win_moved, p, 0, 0), 1 + 30 + 400 + 1);
}

static unsigned run(const void *code, struct regs *r)
{
    struct regs keep = *r;
    user_regs(r, code, false);
    r->rdi = keep.rdi;
    r->rax = keep.rax;
    r->rcx = keep.rcx;
    r->rbp = keep.rbp;
    r->r10 = keep.r10;
    if (keep.rsp)
        r->rsp = keep.rsp;
    return user_run(r);
}

static void state(void)
{
    volatile u8 *p = (volatile u8 *)VA(50);
    map(p, page_alloc(), RW);
    map(p - PAGE, page_alloc(), PTE_P | PTE_U);
    unmap(p + PAGE);
    *(volatile u64 *)p = 0x1234;
    struct regs r = { .rdi = (u64)p, .rax = 3, .rcx = 4, .r10 = 9 };
    report("load: faults", run(win_fault_load, &r) == 14 && trap.cr2 == (u64)p + PAGE && trap.r.err == PF_U);
    report("load: what was before is done, what is behind is not", trap.r.r10 == 0x1234 && trap.r.rax == 1 && trap.r.rcx == 4 && (trap.r.rflags & FL_CF));
    r = (struct regs){ .rax = 3, .rcx = 4, .rsp = (u64)p };
    report("push to a read-only page: faults", run(win_fault_push, &r) == 14 && trap.cr2 == (u64)p - 8 && trap.r.err == (PF_U | PF_W | PF_P));
    report("push: rsp and CF are whole", trap.r.rsp == (u64)p && (trap.r.rflags & FL_CF) && trap.r.rip == (u64)win_fault_push + 1);
    r = (struct regs){ .rdi = (u64)p, .rcx = 4, .rsp = (u64)p };
    report("call through memory, stack read-only: faults", run(win_fault_call, &r) == 14 && trap.cr2 == (u64)p - 8 && trap.r.err == (PF_U | PF_W | PF_P));
    report("call: rsp and CF are whole", trap.r.rsp == (u64)p && (trap.r.rflags & FL_CF) && trap.r.rip == (u64)win_fault_call + 1);
    r = (struct regs){ .rdi = (u64)p - PAGE - PAGE, .rcx = 4 };
    report("read-modify-write of a read-only page: a write", run(win_fault_rmw, &r) == 14 && trap.cr2 == (u64)p - PAGE && trap.r.err == (PF_U | PF_W | PF_P));
    report("its flags are those before it", (trap.r.rflags & (FL_CF | FL_ZF)) == (FL_CF | FL_ZF));
    r = (struct regs){ .rdi = (u64)p + PAGE, .rcx = 4 };
    report("leave: faults", run(win_fault_leave, &r) == 14 && trap.cr2 == (u64)p + PAGE);
    report("leave: rbp is whole, and CF", trap.r.rbp == (u64)p + PAGE && (trap.r.rflags & FL_CF));
}

/* Each instruction of a row is the one whose access faults: it, and nothing behind it, has not happened. */
static void rows(void)
{
    static const struct { u8 at, moved; } push[] = { { 0, 0 }, { 1, 8 }, { 2, 16 }, { 8, 64 }, { 9, 72 } },
                                          pop[] = { { 0, 0 }, { 1, 8 }, { 2, 16 }, { 8, 40 }, { 10, 48 } };
    volatile u8 *p = (volatile u8 *)VA(51);
    volatile u64 *q = (volatile u64 *)p;
    map(p, page_alloc(), RW);
    unmap(p - PAGE);
    unmap(p + PAGE);
    for (unsigned i = 0; i < 5; i++) {
        struct regs r = { .rax = 3, .rcx = 4, .rbp = 5, .rsp = (u64)p + push[i].moved };
        u64 at = r.rsp;
        reportf(run(win_row_push, &r) == 14 && trap.cr2 == (u64)p - 8 && trap.r.rip == (u64)win_row_push + push[i].at &&
                trap.r.rsp == at - push[i].moved && trap.r.rcx == 4, "push %u of a row faults", i + 1);
        for (unsigned k = 0; k < 512; k++)
            q[k] = 100 + k;
        r = (struct regs){ .rcx = 4, .rsp = (u64)p + PAGE - pop[i].moved };
        at = r.rsp;
        bool ok = run(win_row_pop, &r) == 14 && trap.cr2 == (u64)p + PAGE && trap.r.rip == (u64)win_row_pop + pop[i].at &&
                  trap.r.rsp == at + pop[i].moved && trap.r.rcx == (i ? 100 + 512 - pop[i].moved / 8u : 4);
        reportf(ok && (i < 2 || trap.r.rbx == 100 + 513 - pop[i].moved / 8u), "pop %u of a row faults", i + 1);
    }
    struct regs r = { .rcx = 4, .rsp = (u64)p + PAGE - 16 };
    report("ret behind two pops faults", run(win_row_ret, &r) == 14 && trap.cr2 == (u64)p + PAGE && trap.r.rip == (u64)win_row_ret + 3 &&
           trap.r.rsp == (u64)p + PAGE && trap.r.rcx == 610 && trap.r.r9 == 611);
    r = (struct regs){ .rax = 3, .rcx = 4, .rbp = 5, .rsp = (u64)p + 200 };
    report("a whole row of pushes", run(win_row_push, &r) == VEC_RETURN && trap.r.rsp == (u64)p + 120 && q[24] == 3 && q[23] == 4 && q[16] == 5 &&
           q[20] == 120 && trap.r.rcx == 5);
    r = (struct regs){ .rcx = 4, .rsp = (u64)p + 320 };
    report("a whole row of pops", run(win_row_pop, &r) == VEC_RETURN && trap.r.rsp == (u64)p + 376 && trap.r.rcx == 141 && trap.r.rbx == 141 &&
           trap.r.r8 == 142 && trap.r.r15 == 145 && trap.r.rdx == 146);
}

static void stacks(void)
{
    volatile u64 *p = VA(30), *q = VA(96);
    u64 a = page_alloc(), b = page_alloc(), c = page_alloc();
    volatile u64 *pa = (volatile u64 *)a, *pb = (volatile u64 *)b, *pc = (volatile u64 *)c;
    map(p, a, RW);
    map(q, b, RW);
    report_eq("RSP comes two chunks down by large steps", call(win_sp_far, (u8 *)p + 0x800 + 1200 * 0x70000000ull, 1200, 0x111), 0x111);
    report("what was pushed is there", pa[0x7f8 / 8] == 0x111);
    u8 *edge = (u8 *)(31 * CHUNK);
    map(edge - 25 * PAGE, c, RW);
    map(edge, b, RW);
    call(win_sp_near, edge - 24 * PAGE + 100000 - 8, 0, 0x222);
    report("by small ones it crosses the border of a chunk downwards", pc[(PAGE - 16) / 8] == 0x222);
    pb[(100000 - 24 * PAGE - 24) / 8] = 0;
    call(win_sp_near, edge - 24 * PAGE + 100000 - 8, 0, 0x223);
    report("and comes back", trap.vec == VEC_RETURN && pc[(PAGE - 16) / 8] == 0x223 && pb[(100000 - 24 * PAGE - 24) / 8] == 0x223);
    for (unsigned i = 0; i < 64; i++)
        pa[i] = 0x1000 + i, pb[i] = 0x2000 + i;
    report_eq("XCHG, LEAVE and AND", call(win_sp_ways, p + 32, (u64)(q + 16), 5), 5 + 0x2010 + 0x2011);
    report("what they left", pa[31] == 0x2010 && pa[30] == 0x2011 && pb[15] == 5);
    pa[8] = (u64)(q + 20);
    report_eq("POP RSP", call(win_sp_pop, p + 8, 0, 0), 0x2014);
    report_eq("LEA by a register", call(win_sp_lea, p + 40, (u64)q - (u64)p, 0x333), 0x333);
    report("on both stacks", pa[39] == 0x333 && pb[39] == 0x333);
    call(win_sp_high, (void *)((1ull << 47) + 500), 0, 0x444);
    report("from beyond the low half to its last page, where nothing is", trap.vec == 14 && trap.cr2 == (1ull << 47) - 508);
    map((void *)((1ull << 47) - PAGE), a, RW);
    report_eq("where something is", call(win_sp_high, (void *)((1ull << 47) + 500), 0, 0x444), 0x444);
    report("it is there", pa[(PAGE - 508) / 8] == 0x444 || *(volatile u64 *)(a + PAGE - 508) == 0x444);
    unmap((void *)((1ull << 47) - PAGE));
    call(win_sp_high, (void *)((1ull << 47) + 5000), 0, 0x444);
    report("beyond it: #SS", trap.vec == 12);
    call(win_sp_high, (void *)0xffff800000001000, 0, 0x444);
    report("the kernel's half", trap.vec == 14 || trap.vec == 12);
    call(win_sp_high, (void *)900, 0, 0x444);
    report("below 0", trap.vec == 14 && trap.cr2 == (u64)900 - 1008);
}

static void changes(void)
{
    volatile u64 *p = VA(60);
    u64 a = page_alloc(), b = page_alloc();
    map(p, a, RW);
    call(win_store, p, 1, 0);
    map(p, b, RW);
    call(win_store, p, 2, 0);
    report("remapped: each store in its page", *(volatile u64 *)a == 1 && *(volatile u64 *)b == 2);
    *pt_entry(p, 1) &= ~PTE_W;
    flush_tlb();
    call(win_store, p, 3, 0);
    report("write-protected, by CR3", trap.vec == 14 && *(volatile u64 *)b == 2);
    report_eq("it can be read", call(win_load, p, 0, 0), 2);
    *pt_entry(p, 1) |= PTE_W;
    call(win_store, p, 3, 0);
    report("writable again without a flush, after one fault at most", trap.vec == VEC_RETURN || (call(win_store, p, 3, 0), trap.vec == VEC_RETURN));
    report_eq("it was written", *(volatile u64 *)b, 3);
    *pt_entry(p, 1) &= ~PTE_D;
    invlpg(p);
    call(win_load, p, 0, 0);
    report("a load sets no Dirty", !(*pt_entry(p, 1) & PTE_D));
    call(win_store, p, 4, 0);
    report("a store does", *pt_entry(p, 1) & PTE_D);

    /* Code that user code writes for itself. */
    u8 *code = (u8 *)VA(61);
    map(code, page_alloc(), RW);
    bool ok = true;
    for (unsigned i = 0; i < 100; i++) { /* mov eax, i; ret */
        call(win_store, code, 0xc300000000b8ull | (u64)i << 8, 0);
        ok &= user_call(code, 0, 0, 0) == i;
    }
    report("code written by the code that calls it", ok);

    u64 large = pages_alloc(512, PAGE2), other = pages_alloc(512, PAGE2);
    volatile u64 *l = (volatile u64 *)(62 * CHUNK);
    map_level(l, large, RW, 2);
    call(win_store, l + 1000, 11, 0);
    *pt_entry(l, 2) = other | RW | PTE_PS;
    invlpg((volatile u8 *)l + 17 * PAGE);
    call(win_store, l + 1000, 12, 0);
    report("a large page, and another in its place", ((volatile u64 *)large)[1000] == 11 && ((volatile u64 *)other)[1000] == 12);
}

/* Another page table, but neither another PCID nor a flush: both may be used, and the code goes on. */
static void switches(void)
{
    u64 was = RD(cr3), *pml4 = (u64 *)page_alloc();
    memcpy(pml4, (void *)(was & ~(PAGE - 1)), PAGE);
    volatile u64 *p = VA(70);
    map(p, page_alloc(), RW);
    pml4[(u64)p >> 39 & 511] = *pt_entry(p, 4);
    *p = 99;
    WR(cr4, RD(cr4) | CR4_PCIDE);
    bool ok = true;
    for (unsigned i = 0; i < 50; i++) {
        WR(cr3, ((i & 1 ? (u64)pml4 : was & ~(PAGE - 1)) | 5) | BIT(63));
        ok &= call(win_load, p, 0, 0) == 99 && trap.vec == VEC_RETURN;
    }
    report("page tables exchanged without a flush", ok);
    WR(cr3, was & ~(PAGE - 1));
    WR(cr4, RD(cr4) & ~CR4_PCIDE);
    WR(cr3, was);
}

int main(void)
{
    chunks();
    groups();
    state();
    rows();
    stacks();
    changes();
    switches();
    wild();
    return 0;
}
