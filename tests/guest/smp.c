/*
 * smp.c - several processors: INIT and start-up IPIs, inter-processor interrupts by every destination, code that one
 * writes and others run, page tables changed under others, locked operations across pages, halting and waiting.
 * Source: SDM vol. 3 §8.1 (locked operations, cross-modifying code), §8.4 (start), ch. 11 (APIC). Run with --cpus 4.
 */
#include "lib/cpus.h"

enum { VEC_COUNT = 0x40, VEC_FLUSH = 0x41, VEC_WAKE = 0x42 };

/* -- Interrupt handlers: they must not use what a trap of processor 0 uses ---------------------------------------- */

volatile u32 counted[MAX_CPUS] __attribute__((used)), flushes __attribute__((used)), nmis[MAX_CPUS] __attribute__((used));
volatile u64 flush_va __attribute__((used));
/* rax = the APIC's ID; then body; EOI unless it is an NMI */
#define HANDLER(name, body, eoi) \
    KERNEL_ASM(".globl " #name "\n" #name ":\n  pushq %rax\n  movl $0xfee00020, %eax\n  movl (%rax), %eax\n  shrl $24, %eax\n" \
               body "\n" eoi "\n  popq %rax\n  iretq\n")
#define EOI "  movl $0xfee000b0, %eax\n  movl $0, (%rax)"
HANDLER(on_count, "  lock incl counted(,%rax,4)", EOI);
HANDLER(on_flush, "  movq flush_va, %rax\n  invlpg (%rax)\n  lock incl flushes", EOI);
HANDLER(on_nmi, "  lock incl nmis(,%rax,4)", "");
extern char on_count[], on_flush[], on_nmi[];

/* -- Tests ------------------------------------------------------------------------------------------------------ */

static void test_start(void)
{
    cpus_prepare(START_PAGE);
    *(volatile u32 *)((u64)START_PAGE * 4096 + (ap_seen_cs - ap_start)) = ~0u;
    ipi(0, 0xc4500);              /* INIT, all but self */
    ipi(0, 0xc4600 | START_PAGE); /* start-up */
    for (unsigned i = 1; i < nr_cpus; i++) {
        reportf(until(&up[i], 1), "CPU %u is up", i);
        report_eq("its APIC ID in leaf 1", ids[i], i);
        report_eq("and in leaf 0xb", ids_b[i], i);
    }
    u8 *page = (u8 *)((u64)START_PAGE << 12);
    report_eq("CS is the vector << 8", *(u16 *)(page + (ap_seen_cs - ap_start)), START_PAGE << 8);
    report_eq("CR0 after INIT: real mode", *(u32 *)(page + (ap_seen_cr0 - ap_start)) & ~0x60000000u, 0x10);
    /* One that runs takes no notice of a start-up IPI. */
    ipi(1, 0x4600 | START_PAGE);
    for (unsigned i = 0; i < 100000; i++)
        pause();
    report_eq("start-up of a running CPU does nothing", starts[1], 1);
    /* INIT stops it at once; a start-up IPI begins at another page. */
    cpus_prepare(START_PAGE2);
    up[1] = 0;
    ipi(1, 0x4500);
    job[1] = NULL;
    for (unsigned i = 0; i < 100000; i++)
        pause();
    report_eq("after INIT it waits", up[1], 0);
    ipi(1, 0x4600 | START_PAGE2);
    report("started again", until(&up[1], 1));
    report_eq("from the new page", *(u16 *)(((u64)START_PAGE2 << 12) + (u64)(ap_seen_cs - ap_start)), START_PAGE2 << 8);
    report_eq("twice in all", starts[1], 2);
}

static bool counts(u32 c0, u32 c1, u32 c2, u32 c3)
{
    u32 want[4] = { c0, c1, c2, c3 };
    bool ok = true;
    for (unsigned i = 0; i < 4; i++)
        ok &= until(&counted[i], want[i]);
    if (!ok)
        print("# %u %u %u %u, want %u %u %u %u\n", counted[0], counted[1], counted[2], counted[3], c0, c1, c2, c3);
    return ok;
}

static void test_ipi(void)
{
    sti();
    ipi(2, 0x4000 | VEC_COUNT);
    report("IPI to one by physical ID", counts(0, 0, 1, 0));
    ipi(0xff, 0x4000 | VEC_COUNT);
    report("to all by physical broadcast", counts(1, 1, 2, 1));
    ipi(0, 0xc4000 | VEC_COUNT);
    report("all but self by shorthand", counts(1, 2, 3, 2));
    ipi(0, 0x84000 | VEC_COUNT);
    report("all by shorthand", counts(2, 3, 4, 3));
    ipi(0, 0x44000 | VEC_COUNT);
    report("self by shorthand", counts(3, 3, 4, 3));
    ipi(0x0a, 0x4800 | VEC_COUNT);
    report("two by flat logical ID", counts(3, 4, 4, 4));
    ipi(0x0e, 0x4900 | VEC_COUNT);
    u64 limit = rdtsc() + tsc_per_ms() * 5000;
    while (counted[1] + counted[2] + counted[3] != 13 && rdtsc() < limit)
        pause();
    report_eq("one of three by lowest priority", counted[1] + counted[2] + counted[3], 13);
    ipi(3, 0x4400);
    report("NMI to one", until(&nmis[3], 1));
    report_eq("and no other", nmis[1] + nmis[2], 0);
}

static volatile u32 hits, go;
static void storm(unsigned cpu)
{
    for (unsigned i = 0; i < 100; i++) {
        ipi((cpu + 1) % nr_cpus, 0x4000 | VEC_COUNT);
        u64 limit = rdtsc() + tsc_per_ms() * 3000;
        while (counted[(cpu + 1) % nr_cpus] <= i) { /* one that waits takes the next of its kind with it */
            if (rdtsc() > limit)
                return;
            pause();
        }
    }
}
static void test_storm(void)
{
    for (unsigned i = 0; i < nr_cpus; i++)
        counted[i] = 0;
    on_all(storm);
    bool ok = true;
    for (unsigned i = 0; i < nr_cpus; i++)
        ok &= counted[i] == 100;
    report("a ring of IPIs: none is lost, none comes twice", ok);
}

static void halting(unsigned cpu)
{
    for (unsigned i = 0; i < 100; i++) {
        cli();
        while (counted[cpu] == i) {
            asm volatile("sti; hlt; cli" ::: "memory");
        }
        sti();
        add(&hits, 1);
    }
}
static void test_halt(void)
{
    for (unsigned i = 0; i < nr_cpus; i++)
        counted[i] = 0;
    hits = 0;
    start_all(halting);
    bool ok = true;
    for (unsigned i = 0; i < 100 && ok; i++) {
        ipi(0, 0xc4000 | VEC_COUNT);
        ok = until(&hits, (i + 1) * (nr_cpus - 1));
    }
    report("an IPI ends HLT, each time", ok);
    wait_all();
}

/* Two tokens go round; who has none halts. An sti that ends its page or its translation has the same shadow as any other:
 * an interrupt between sti and hlt would be the last one for long. */
#define PASSES 300u
static u8 *halts;
static volatile u32 tokens[MAX_CPUS];
static void pass(unsigned cpu)
{
    unsigned next = cpu + 1 < nr_cpus ? cpu + 1 : 1;
    cli();
    for (u32 i = 0; i < PASSES; i++) {
        u8 *code = halts + cpu * 2 * 4096 + (i % 2 ? i * 4 : 4095);
        while (tokens[cpu] <= i)
            asm volatile("call *%0" ::"r"(code) : "memory", "cc");
        add(&tokens[next], 1);
        ipi(next, 0x4000 | VEC_COUNT);
    }
    sti();
}
static void test_pass(void)
{
    static const u8 halt[] = { 0xfb, 0xf4, 0xfa, 0xc3 }; /* sti; hlt; cli; ret */
    halts = (u8 *)pages_alloc(2 * MAX_CPUS, PAGE);
    for (unsigned cpu = 1; cpu < nr_cpus; cpu++) {
        u8 *mine = halts + cpu * 2 * 4096;
        for (u32 i = 1; i < PASSES; i += 2)
            memcpy(mine + i * 4, halt, sizeof halt);
        memcpy(mine + 4095, halt, sizeof halt);
    }
    tokens[1] = tokens[2] = 1;
    start_all(pass);
    for (unsigned i = 1; i < nr_cpus; i++)
        reportf(until(&tokens[i], PASSES + (i <= 2)), "CPU %u: each token ends its HLT", i);
    wait_all();
}

/* -- Locked operations ------------------------------------------------------------------------------------------------ */

#define FREE_VA ((u8 *)0x50000000ull)
static u8 *target;
static void count_locked(unsigned cpu)
{
    for (unsigned i = 0; i < 400; i++) {
        asm volatile("lock incq %0" : "+m"(*(u64 *)target)::"memory", "cc");
        asm volatile("lock addl $1, %0" : "+m"(*(u32 *)(target + 4096 + 2))::"memory", "cc");
        u64 one = 1;
        asm volatile("lock xaddq %1, %0" : "+m"(*(u64 *)(target + 2 * 4096)), "+r"(one)::"memory", "cc");
        u64 bit = cpu * 7;
        asm volatile("lock btcq %1, %0" : "+m"(*(u64 *)(target + 3 * 4096)) : "r"(bit) : "memory", "cc");
    }
}
static void test_split(void)
{
    /* Neighbours in address, not in memory. */
    for (int i = 0; i < 6; i++) {
        page_alloc();
        map(FREE_VA + (5 - i) * 4096, page_alloc(), PTE_P | PTE_W);
    }
    target = FREE_VA + 4096 - 4;
    on_all(count_locked);
    report_eq("lock inc across a page", *(u64 *)target, 400 * nr_cpus);
    report_eq("lock add across a page", *(u32 *)(target + 4096 + 2), 400 * nr_cpus);
    report_eq("lock xadd across a page", *(u64 *)(target + 2 * 4096), 400 * nr_cpus);
    report_eq("lock btc across a page", *(u64 *)(target + 3 * 4096), 0);
}

/* The test device's memory: bytes that are no RAM. Locked among each other; its lock is each access's alone. */
#define DEVICE ((u8 *)0xff000000ull)
enum { DEVICE_TIMES = 20000 };
static void count_device(unsigned cpu)
{
    for (unsigned i = 0; i < DEVICE_TIMES; i++) {
        asm volatile("lock incq %0" : "+m"(*(u64 *)DEVICE)::"memory", "cc");
        asm volatile("lock addl $1, %0" : "+m"(*(u32 *)(DEVICE + 8))::"memory", "cc");
        u64 one = 1;
        asm volatile("lock xaddq %1, %0" : "+m"(*(u64 *)(DEVICE + 16)), "+r"(one)::"memory", "cc");
        u64 bit = cpu * 7;
        if (i & 1) /* in line, and by the helper */
            asm volatile("lock btcq %0, 24(%1)" ::"a"(bit), "d"(DEVICE) : "memory", "cc");
        else
            asm volatile("mov %0, %%r8; mov %1, %%r9; lock btcq %%r8, 24(,%%r9)" ::"a"(bit), "d"(DEVICE) : "r8", "r9", "memory", "cc");
        u32 old = *(volatile u32 *)(DEVICE + 32);
        asm volatile("1: lea 1(%%rax), %%edx; lock cmpxchgl %%edx, %0; jne 1b" : "+m"(*(u32 *)(DEVICE + 32)), "+a"(old)::"rdx", "memory", "cc");
    }
}
static void test_device(void)
{
    *(volatile u64 *)DEVICE = 0x1122334455667788ull;
    if (*(volatile u64 *)DEVICE != 0x1122334455667788ull) {
        skip("locked operations on a device", "there is none");
        return;
    }
    for (unsigned i = 0; i < 40; i += 8)
        *(volatile u64 *)(DEVICE + i) = 0;
    on_all(count_device);
    report_eq("lock inc of a device", *(volatile u64 *)DEVICE, DEVICE_TIMES * nr_cpus);
    report_eq("lock add of a device", *(volatile u32 *)(DEVICE + 8), DEVICE_TIMES * nr_cpus);
    report_eq("lock xadd of a device", *(volatile u64 *)(DEVICE + 16), DEVICE_TIMES * nr_cpus);
    report_eq("lock btc of a device", *(volatile u64 *)(DEVICE + 24), 0);
    report_eq("lock cmpxchg of a device", *(volatile u32 *)(DEVICE + 32), DEVICE_TIMES * nr_cpus);
}

/* -- Code ------------------------------------------------------------------------------------------------------------------ */

static void emit(u8 *at, u32 value) /* nop; nop; nop; mov eax, imm32 (aligned); ret */
{
    at[0] = at[1] = at[2] = 0x90;
    at[3] = 0xb8;
    *(volatile u32 *)(at + 4) = value;
    at[8] = 0xc3;
}
static u32 run(const u8 *at)
{
    u32 v;
    asm volatile("call *%1" : "=a"(v) : "r"(at) : "memory", "cc");
    return v;
}
static void serialize(void) { cpuid(0, 0); }

static u8 *code;
static volatile u32 version, wrong;
#define PATCHES 1500u

static void run_patched(unsigned cpu)
{
    u32 last = 0;
    while (last != PATCHES) {
        u32 said = version;
        serialize();
        u32 got = run(code);
        if (got < said || got < last) {
            add(&wrong, 1);
            return;
        }
        last = got;
    }
}
static void test_patch(void)
{
    version = wrong = 0;
    emit(code, 0);
    start_all(run_patched);
    for (u32 i = 1; i <= PATCHES; i++) {
        *(volatile u32 *)(code + 4) = i;
        version = i;
        for (unsigned k = 0; k < i % 64; k++)
            pause();
    }
    wait_all();
    report_eq("a patched immediate is seen by who serializes", wrong, 0);
}

/* Each in turn writes a page that it can write already; the next one runs it. */
static u8 *turns_page;
static u32 turns_limit;
static void take_turns(unsigned cpu)
{
    for (;;) {
        u32 v = version;
        if (v >= turns_limit)
            return;
        if (v % nr_cpus != cpu) {
            pause();
            continue;
        }
        serialize();
        u8 *mine = turns_page + v % 7 * 4096 + v * 48 % 1024;
        if (v >= 7) { /* what was written seven turns ago, and the one before this */
            u32 w = v - 1;
            if (run(turns_page + w % 7 * 4096 + w * 48 % 1024) != w) {
                add(&wrong, 1);
                print("# turn %u\n", v);
            }
        }
        emit(mine, v);
        if (run(mine) != v)
            add(&wrong, 1);
        version = v + 1;
    }
}
static void test_turns(void)
{
    turns_page = (u8 *)pages_alloc(8, PAGE);
    version = wrong = 0;
    turns_limit = 600;
    on_all(take_turns);
    report_eq("pages that are code and data by turns", wrong, 0);
}

/* Code is run while its page is written to: the first translation of a page under another's stores. */
#define STREAM 600u
static volatile u32 there;
static void follow(unsigned cpu)
{
    u32 done = 0;
    while (done != STREAM) {
        u32 n = there;
        serialize();
        for (; done < n; done++)
            if (run(turns_page + done * 40) != done + 1)
                add(&wrong, 1);
        pause();
    }
}
static void test_stream(void)
{
    for (unsigned round = 0; round < 3; round++) {
        turns_page = (u8 *)pages_alloc((STREAM * 40 + 4095) / 4096, PAGE);
        there = wrong = 0;
        start_all(follow);
        for (u32 i = 0; i < STREAM; i++) {
            /* xor eax, eax; jz over two int3 that are not there yet: who looks ahead sees bytes that change */
            u8 *at = turns_page + i * 40;
            emit(at + 8, i + 1);
            static const u8 head[] = { 0x31, 0xc0, 0x74, 0x04, 0xcc, 0xcc, 0xcc, 0xcc };
            memcpy(at, head, sizeof head);
            barrier();
            there = i + 1;
        }
        wait_all();
    }
    report_eq("code is run while its page is written", wrong, 0);
}

/* Much code on each processor, so that the code cache (a small one in torture builds) is reclaimed under the others. */
static u8 *bulk;
static void much_code(unsigned cpu)
{
    u8 *mine = bulk + cpu * 16 * 4096;
    for (unsigned round = 0; round < 6; round++) {
        for (unsigned i = 0; i < 16 * 4096 / 32; i++)
            emit(mine + i * 32, cpu << 24 | round << 16 | i);
        serialize();
        for (unsigned i = 0; i < 16 * 4096 / 32; i++)
            if (run(mine + i * 32) != (cpu << 24 | round << 16 | i))
                add(&wrong, 1);
    }
}
static void test_bulk(void)
{
    bulk = (u8 *)pages_alloc(16 * nr_cpus, PAGE);
    wrong = 0;
    on_all(much_code);
    report_eq("much code on each processor", wrong, 0);
}

static void beside(unsigned cpu)
{
    for (unsigned i = 0; i < 2000; i++) {
        asm volatile("lock incq %0" : "+m"(*(u64 *)(code + 24))::"memory", "cc");
        asm volatile("lock incq %0" : "+m"(*(u64 *)(code + 2048))::"memory", "cc");
        if (run(code) != 77)
            add(&wrong, 1);
    }
}
static void test_beside(void)
{
    emit(code, 77);
    *(u64 *)(code + 24) = *(u64 *)(code + 2048) = 0;
    wrong = 0;
    on_all(beside);
    report_eq("code with counters beside it", wrong, 0);
    report_eq("counter near the code", *(u64 *)(code + 24), 2000 * nr_cpus);
    report_eq("counter in its page", *(u64 *)(code + 2048), 2000 * nr_cpus);
}

/* -- Page tables --------------------------------------------------------------------------------------------------------- */

#define SHOT_VA ((volatile u64 *)0x60000000ull)
static volatile u32 stop_reading, generation;
static u64 frames[2];
static void read_mapped(unsigned cpu)
{
    while (!stop_reading) {
        u32 g = generation;
        barrier();
        u64 v = *SHOT_VA;
        barrier();
        /* The page says which it is; one older than the generation before the read is stale. */
        if (generation == g && !(g >> 31) && v != (g & 1))
            add(&wrong, 1);
        ((volatile u64 *)SHOT_VA)[cpu + 1]++;
        if (!(v & 3))
            pause();
    }
}
static void test_shootdown(void)
{
    frames[0] = page_alloc();
    frames[1] = page_alloc();
    *(u64 *)frames[1] = 1;
    map((void *)SHOT_VA, frames[0], PTE_P | PTE_W);
    flush_va = (u64)SHOT_VA;
    wrong = stop_reading = generation = 0;
    start_all(read_mapped);
    bool ok = true;
    u32 late = 0;
    for (u32 g = 1; g <= 60 && ok; g++) {
        u64 *other = (u64 *)frames[(g & 1) ^ 1], before[MAX_CPUS];
        generation = 0x80000000u | g; /* no reading counts meanwhile */
        map((void *)SHOT_VA, frames[g & 1], PTE_P | PTE_W);
        flushes = 0;
        ipi(0, 0xc4000 | VEC_FLUSH);
        ok = until(&flushes, nr_cpus - 1);
        generation = g;
        /* Nobody writes to the old page any more. */
        for (unsigned i = 0; i < nr_cpus; i++)
            before[i] = ((volatile u64 *)other)[i + 1];
        for (unsigned k = 0; k < 200; k++)
            pause();
        for (unsigned i = 0; i < nr_cpus; i++)
            if (((volatile u64 *)other)[i + 1] != before[i])
                late++;
    }
    stop_reading = 1;
    wait_all();
    report("shootdown IPIs are all answered", ok);
    report_eq("no stale read", wrong, 0);
    report_eq("no write to the old page", late, 0);
}

/* The same page of code at an address, then another: far links and jump caches of the others must go. */
#define CODE_VA ((u8 *)0xffffffff90000000ull)
static u64 code_frames[2];
static void run_mapped(unsigned cpu)
{
    while (!stop_reading) {
        u32 g = generation;
        barrier();
        u32 v = run(CODE_VA);
        barrier();
        if (generation == g && !(g >> 31) && v != (g & 1) + 100)
            add(&wrong, 1);
        pause();
    }
}
static void test_code_shootdown(void)
{
    u64 cr4 = RD(cr4);
    WR(cr4, cr4 | CR4_PGE);
    for (unsigned i = 0; i < 2; i++) {
        code_frames[i] = page_alloc();
        emit((u8 *)code_frames[i], 100 + i);
    }
    map(CODE_VA, code_frames[0], PTE_P | PTE_G);
    flush_va = (u64)CODE_VA;
    wrong = stop_reading = generation = 0;
    start_all(run_mapped);
    bool ok = true;
    for (u32 g = 1; g <= 60 && ok; g++) {
        generation = 0x80000000u | g;
        map(CODE_VA, code_frames[g & 1], PTE_P | PTE_G);
        flushes = 0;
        ipi(0, 0xc4000 | VEC_FLUSH);
        ok = until(&flushes, nr_cpus - 1);
        generation = g;
        if (run(CODE_VA) != (g & 1) + 100)
            add(&wrong, 1);
        for (unsigned k = 0; k < 100; k++)
            pause();
    }
    stop_reading = 1;
    wait_all();
    report("code remapped: IPIs are all answered", ok);
    report_eq("no stale code", wrong, 0);
}

/*
 * The same in ring 3, behind a direct jump from another page. Each processor but the first has a TSS of its own. user_loop:
 * calls the page until told to stop; a call that began and ended in one generation must give that generation's value.
 */
#define UCODE_VA ((u8 *)0x40000000ull)
#define VEC_LEAVE 0x43
static struct tss ap_tss[MAX_CPUS] __attribute__((aligned(16)));
static u8 ap_istack[MAX_CPUS][4096] __attribute__((aligned(16)));
static u8 ap_ustack[MAX_CPUS][4096] __attribute__((aligned(16)));
u64 ap_krsp[MAX_CPUS] __attribute__((used));
volatile u32 user_calls[MAX_CPUS] __attribute__((used));
USER_ASM(".globl user_loop\n"
         "user_loop:\n" /* rdi: generation, rsi: stop_reading, r8: wrong, r9: this processor's user_calls */
         "1: cmpl $0, (%rsi)\n"
         "  jne 2f\n"
         "  movl (%rdi), %ebx\n"
         "  movl $0x40000000, %eax\n"
         "  call *%rax\n"
         "  lock incl (%r9)\n"
         "  movl (%rdi), %ecx\n"
         "  cmpl %ebx, %ecx\n"
         "  jne 1b\n"
         "  testl %ebx, %ebx\n"
         "  js 1b\n"
         "  andl $1, %ebx\n"
         "  addl $100, %ebx\n"
         "  cmpl %eax, %ebx\n"
         "  je 1b\n"
         "  lock incl (%r8)\n"
         "  jmp 1b\n"
         "2: int $0x43\n");
KERNEL_ASM(".globl user_go, on_leave\n"
           "user_go:\n" /* (generation, stop_reading, CPU, user stack, wrong, user_calls) */
           "  pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
           "  movl %edx, %edx\n"
           "  movq %rsp, ap_krsp(,%rdx,8)\n"
           "  pushq $0x2b; pushq %rcx; pushq $0x202; pushq $0x33; pushq $user_loop\n"
           "  iretq\n"
           "on_leave:\n"
           "  movl $0xfee00020, %eax\n"
           "  movl (%rax), %eax\n"
           "  shrl $24, %eax\n"
           "  movq ap_krsp(,%rax,8), %rsp\n"
           "  movl $0x18, %eax\n"
           "  movl %eax, %ss\n"
           "  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx\n"
           "  sti\n"
           "  ret\n");
void user_go(volatile u32 *gen, volatile u32 *stop, u64 cpu, void *stack, volatile u32 *bad, volatile u32 *calls);
extern char on_leave[];
static void run_user(unsigned cpu)
{
    unsigned sel = GDT_FREE + 8 + 16 * cpu; /* (LTR wants it available) */
    ap_tss[cpu].rsp[0] = (u64)ap_istack[cpu + 1];
    ap_tss[cpu].iomap = sizeof(struct tss);
    system_desc(sel, (u64)&ap_tss[cpu], offsetof(struct tss, bitmap), 0x89);
    asm volatile("ltr %w0" ::"r"(sel) : "memory");
    user_go(&generation, &stop_reading, cpu, ap_ustack[cpu + 1] - 64, &wrong, &user_calls[cpu]);
}
static void test_user_code_shootdown(void)
{
    u64 jump = page_alloc();
    memcpy((u8 *)jump, (u8[]){ 0xe9, 0xfb, 0x0f, 0, 0 }, 5); /* jmp to the next page */
    map(UCODE_VA, jump, PTE_P | PTE_U);
    map(UCODE_VA + PAGE, code_frames[0], PTE_P | PTE_U);
    idt_gate(VEC_LEAVE, on_leave, KCS, 3, 14, 0);
    flush_va = (u64)UCODE_VA + PAGE;
    wrong = stop_reading = generation = 0;
    start_all(run_user);
    bool ok = true, all = true;
    for (u32 g = 1; g <= 60 && ok; g++) {
        generation = 0x80000000u | g;
        map(UCODE_VA + PAGE, code_frames[g & 1], PTE_P | PTE_U);
        flushes = 0;
        ipi(0, 0xc4000 | VEC_FLUSH);
        ok = until(&flushes, nr_cpus - 1);
        generation = g;
        u32 before[MAX_CPUS];
        for (unsigned i = 1; i < nr_cpus; i++)
            before[i] = user_calls[i];
        u64 limit = rdtsc() + tsc_per_ms() * 20000;
        for (unsigned i = 1; i < nr_cpus; i++)
            while (user_calls[i] - before[i] < 3 && all) {
                all = rdtsc() < limit;
                pause();
            }
    }
    stop_reading = 1;
    wait_all();
    report("user code remapped: IPIs are all answered", ok);
    report("and everybody has run the new code", all);
    report_eq("no stale code in ring 3", wrong, 0);
}

/* Two processors set Accessed and Dirty while the third clears them with locked operations: no bit is lost. */
static void touch(unsigned cpu)
{
    while (!stop_reading) {
        ((volatile u8 *)SHOT_VA)[cpu]++;
        flush_tlb();
    }
}
static void test_dirty(void)
{
    u64 *pte = pt_entry((void *)SHOT_VA, 1);
    u32 set = 0;
    wrong = stop_reading = 0;
    map((void *)SHOT_VA, frames[0], PTE_P | PTE_W);
    start_all(touch);
    u64 limit = rdtsc() + tsc_per_ms() * 20000;
    for (unsigned i = 0; (i < 300 || set < 10) && rdtsc() < limit; i++) { /* the others may not run yet */
        u64 old = __atomic_fetch_and(pte, ~(PTE_A | PTE_D), __ATOMIC_SEQ_CST);
        set += (old & PTE_D) != 0;
        if ((old & ~(PTE_A | PTE_D)) != (frames[0] | PTE_P | PTE_W))
            wrong++;
        pause();
    }
    stop_reading = 1;
    wait_all();
    report("Dirty is set again and again", set >= 10);
    report_eq("and nothing else is changed", wrong, 0);
}

/* -- x2APIC, time ------------------------------------------------------------------------------------------------------ */

static volatile u64 last_tsc;
static void watch_tsc(unsigned cpu)
{
    for (unsigned i = 0; i < 3000; i++) {
        u64 before = last_tsc;
        asm volatile("lfence");
        u64 now = rdtsc();
        if (now < before)
            add(&wrong, 1);
        if (now > before)
            __atomic_compare_exchange_n(&last_tsc, &before, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
}

static void to_x2apic(unsigned cpu)
{
    wrmsr(MSR_APICBASE, rdmsr(MSR_APICBASE) | 0xc00);
    ids[cpu] = (u32)rdmsr(0x802);
    ids_b[cpu] = (u32)rdmsr(0x80d);
}
static void test_x2apic(void)
{
    if (!has(HAS_X2APIC)) {
        skip("x2APIC", "the CPU has none");
        return;
    }
    on_all(to_x2apic); /* the last test: the handlers know the xAPIC only */
    bool ok = true, logical = true;
    for (unsigned i = 0; i < nr_cpus; i++) {
        ok &= ids[i] == i;
        logical &= ids_b[i] == 1u << i;
    }
    report("x2APIC IDs", ok);
    report("x2APIC logical IDs: cluster 0, a bit each", logical);
}

int main(void)
{
    nr_cpus = cpus_there();
    if (nr_cpus < 4)
        die("# %u processors: run it with four\n", nr_cpus);
    nr_cpus = 4;
    pic_init();
    lapic_init();
    lapic_write(LAPIC_LDR, 1u << 24);
    lapic_write(LAPIC_DFR, ~0u);
    idt_gate(VEC_COUNT, on_count, KCS, 0, 14, 0);
    idt_gate(VEC_FLUSH, on_flush, KCS, 0, 14, 0);
    idt_gate(NMI, on_nmi, KCS, 0, 14, 0);
    tsc_per_ms();
    code = (u8 *)page_alloc();

    test_start();
    test_ipi();
    test_storm();
    test_halt();
    test_pass();
    test_split();
    test_device();
    test_patch();
    test_turns();
    test_stream();
    test_bulk();
    test_beside();
    test_shootdown();
    test_code_shootdown();
    test_user_code_shootdown();
    test_dirty();
    wrong = 0;
    on_all(watch_tsc);
    report_eq("one time: no processor sees another's past", wrong, 0);
    test_x2apic();
    return 0;
}
