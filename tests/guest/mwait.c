/*
 * mwait.c - MONITOR and MWAIT: what they refuse, what ends the wait, and that no store is missed.
 * Source: Intel SDM vol. 2 "MONITOR", "MWAIT", CPUID leaf 5; vol. 3 §8.10.4. Run with --cpus 2.
 */
#include "lib/cpus.h"

enum { VEC_TICK = 0x40 };
#define MSR_MISC_ENABLE 0x1a0
#define NOT_CANONICAL   0x8000000000000000ull

static u8 line[3 * 4096] __attribute__((aligned(4096)));
static volatile u32 ticks;

static inline void monitor(const volatile void *p)
{
    asm volatile("monitor" ::"a"(p), "c"(0), "d"(0) : "memory");
}
static inline void mwait(u64 ecx)
{
    asm volatile("mwait" ::"a"(0), "c"(ecx) : "memory");
}

UTEXT static void user_monitor(void *p) { asm volatile("monitor" ::"a"(p), "c"(0), "d"(0) : "memory"); }
UTEXT static void user_mwait(void) { asm volatile("mwait" ::"a"(0), "c"(0) : "memory"); }
USER_ASM_32("mwait32: xor %eax, %eax\n xor %ecx, %ecx\n mwait\n ret");
extern char mwait32[];

static void test_cpuid(void)
{
    struct cpuid c = cpuid(5, 0);
    report_eq("leaf 5: the smallest line", c.eax & 0xffff, 64);
    report_eq("... the largest", c.ebx & 0xffff, 64);
    report("... extensions are said, interrupts as break events", (c.ecx & 3) == 3);
    report("... and there is a C1", c.edx & 0xf0);
}

static void test_refusals(void)
{
    u64 in_page = (u64)line;
    report("monitor", TRY("monitor", ::"a"(in_page), "c"(0), "d"(0)) == VEC_NONE);
    report("monitor, ECX not 0: #GP(0)", TRY("monitor", ::"a"(in_page), "c"(1), "d"(0)) == GP && trapped(GP, 0));
    report("monitor, RCX not 0 above bit 31: #GP(0)", TRY("monitor", ::"a"(in_page), "c"(BIT(32)), "d"(0)) == GP);
    report("monitor, EDX is a hint", TRY("monitor", ::"a"(in_page), "c"(0), "d"(~0u)) == VEC_NONE);
    report("monitor, not canonical: #GP(0)", TRY("monitor", ::"a"(NOT_CANONICAL), "c"(0), "d"(0)) == GP && trapped(GP, 0));
    report("monitor, no page: #PF", TRY("monitor", ::"a"(PAGE3 + 5), "c"(0), "d"(0)) == PF && faulted(0, (void *)(PAGE3 + 5)));
    report("monitor with a 32-bit address", TRY("addr32 monitor", ::"a"(in_page | BIT(40)), "c"(0), "d"(0)) == VEC_NONE);
    map((void *)PAGE3, page_alloc(), PTE_P);
    report("monitor needs no right to write", TRY("monitor", ::"a"(PAGE3), "c"(0), "d"(0)) == VEC_NONE);
    u64 pte = *pt_entry((void *)PAGE3, 1);
    report("... and is a load: Accessed, not Dirty", (pte & (PTE_A | PTE_D)) == PTE_A);
    unmap((void *)PAGE3);
    wrmsr(MSR_FS_BASE, in_page - 16);
    report("monitor with fs", TRY("fs monitor", ::"a"(16), "c"(0), "d"(0)) == VEC_NONE);
    wrmsr(MSR_FS_BASE, 0);
    report("mwait, ECX bit 1: #GP(0)", TRY("mwait", ::"a"(0), "c"(2)) == GP && trapped(GP, 0));
    report("mwait, RCX bit 32: #GP(0)", TRY("mwait", ::"a"(0), "c"(BIT(32))) == GP);
    report("lock mwait: #UD", TRY(".byte 0xf0, 0x0f, 0x01, 0xc9", ::"a"(0), "c"(0)) == UD);
    user_call(user_monitor, (u64)ustack, 0, 0);
    report("monitor in ring 3: #UD", trap.vec == UD);
    user_call(user_mwait, 0, 0, 0);
    report("mwait in ring 3: #UD", trap.vec == UD);
    report("... from 32-bit code", user_call32(mwait32, 0) == UD);
    /* IA32_MISC_ENABLE bit 18 (SDM vol. 4): off, they are not there. */
    u64 was = rdmsr(MSR_MISC_ENABLE);
    report("MISC_ENABLE says they are on", was & BIT(18));
    wrmsr(MSR_MISC_ENABLE, was & ~BIT(18));
    report("switched off: not in leaf 1", !(cpuid(1, 0).ecx & BIT(3)));
    report("... monitor: #UD", TRY("monitor", ::"a"(in_page), "c"(0), "d"(0)) == UD);
    report("... mwait: #UD", TRY("mwait", ::"a"(0), "c"(0)) == UD);
    wrmsr(MSR_MISC_ENABLE, was);
    report("and on again", cpuid(1, 0).ecx & BIT(3));
}

static void tick(struct regs *r)
{
    (void)r;
    ticks++;
    lapic_eoi();
}
static void tick_in(unsigned ms)
{
    lapic_write(LAPIC_TDCR, 0xb);
    lapic_write(LAPIC_LVTT, VEC_TICK);
    lapic_write(LAPIC_TMICT, 1000000 * ms / 2 + 1);
}

/* Each of these hangs if it fails. */
static void test_alone(void)
{
    monitor(line);
    *(volatile u32 *)(line + 60) = 1;
    mwait(0);
    report("a store between monitor and mwait ends it", true);
    mwait(0);
    report("mwait without another monitor goes on", true);
    monitor(line + 32);
    asm volatile("lock incl %0" : "+m"(*(u32 *)line)::"memory", "cc");
    mwait(0);
    report("... a locked one to the line's first byte", true);
    monitor(line);
    u8 *to = line + 63;
    u64 n = 1;
    asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(7) : "memory");
    mwait(0);
    report("... a string instruction's, to its last byte", true);
    monitor(line + 4096);
    *(volatile u64 *)(line + 4096 - 4) = 0;
    mwait(0);
    report("... one that comes over the page's border", true);
    monitor((void *)(LAPIC_PA + LAPIC_ID));
    mwait(0);
    report("MMIO is not monitored: mwait goes on", true);

    /* Interrupts. */
    ticks = 0;
    sti();
    tick_in(2);
    monitor(line);
    while (!ticks) {
        mwait(0);
        monitor(line);
    }
    report_eq("an interrupt ends it, and is taken", ticks, 1);
    cli();
    ticks = 0;
    tick_in(2);
    bool early = false;
    for (;;) { /* it may end for any reason, but not before there is one for ever */
        monitor(line);
        if (lapic_read(LAPIC_IRR + 0x10 * (VEC_TICK / 32)) & BIT(VEC_TICK % 32))
            break;
        mwait(1);
    }
    report("with IF clear and ECX bit 0 an interrupt ends it", !early);
    report_eq("... and waits", ticks, 0);
    asm volatile("sti; nop; nop; cli" ::: "memory");
    report_eq("... until it may come", ticks, 1);
    /* sti; mwait with one that waits: no window. */
    lapic_self_ipi(VEC_TICK);
    monitor(line);
    asm volatile("sti; mwait; cli" ::"a"(0), "c"(0) : "memory");
    report_eq("sti, mwait with one that waits", ticks, 2);
}

/* Two processors take turns at a word; each waits by mwait, with interrupts off: nothing but a store ends it. */
#define TURNS 400
static volatile u32 *turn, *other;
static void take_turns(unsigned cpu)
{
    cli();
    for (u32 i = 0; i < TURNS; i++) {
        while (*turn != 2 * i + cpu) {
            monitor(turn);
            if (*turn == 2 * i + cpu)
                break;
            mwait(0);
        }
        switch (i % 4) { /* the ways to store */
        case 0: *turn = 2 * i + cpu + 1; break;
        case 1: asm volatile("lock incl %0" : "+m"(*turn)::"memory", "cc"); break;
        case 2: {
            u32 v = 2 * i + cpu + 1;
            asm volatile("xchgl %1, %0" : "+m"(*turn), "+r"(v)::"memory");
            break;
        }
        case 3: {
            volatile u32 *to = turn;
            u32 v = 2 * i + cpu + 1;
            u64 n = 1;
            asm volatile("rep stosl" : "+D"(to), "+c"(n) : "a"(v) : "memory");
            break;
        }
        }
    }
    sti();
}
static void both(const char *name, u8 *at)
{
    turn = (volatile u32 *)at;
    *turn = 0;
    on_all(take_turns);
    reportf(*turn == 2 * TURNS, "%s", name);
}

/* A word in one page is waited for while its owner fills that page again and again. */
static volatile u32 stop;
static void fill(unsigned cpu)
{
    (void)cpu;
    for (u32 i = 0; i < 20000; i++)
        other[i % 64] = i;
    *turn = 1;
}
static void wait_turn(void)
{
    while (*turn != 1) {
        monitor(turn);
        if (*turn != 1)
            mwait(0);
    }
}

int main(void)
{
    nr_cpus = cpus_there();
    if (!(cpuid(1, 0).ecx & BIT(3))) {
        skip("MONITOR, MWAIT", "the CPU has none");
        return 0;
    }
    if (nr_cpus < 2)
        die("# one processor: run it with two\n");
    nr_cpus = 2;
    pic_init();
    lapic_init();
    trap_handle(VEC_TICK, tick);
    tsc_per_ms();
    test_cpuid();
    if (on_tcg())
        skip("the rest", "TCG's MWAIT does not wait, and MONITOR refuses nothing");
    else {
        test_refusals();
        test_alone();
    }
    cpus_prepare(START_PAGE);
    ipi(0, 0xc4500);
    ipi(0, 0xc4600 | START_PAGE);
    report("the other is up", until(&up[1], 1));
    sti();
    both("taking turns by mwait", line);
    both("... in a line's middle", line + 2 * 4096 + 64 + 32);
    map((void *)PAGE3, (u64)line + 4096, PTE_P | PTE_W);
    both("... by another address", (u8 *)PAGE3 + 128);
    /* The waiting code in the very page: watched for both reasons. */
    u8 *mixed = (u8 *)page_alloc();
    mixed[0] = 0xc3;
    asm volatile("call *%0" ::"r"(mixed) : "memory");
    both("... in a page with code", mixed + 256);
    asm volatile("call *%0" ::"r"(mixed) : "memory");
    turn = (volatile u32 *)line;
    other = (volatile u32 *)(line + 1024);
    *turn = 0;
    start_all(fill);
    wait_turn();
    wait_all();
    report("beside a line that is waited for somebody writes much", *turn == 1);
    return 0;
}
