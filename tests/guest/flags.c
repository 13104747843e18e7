/*
 * flags.c - arithmetic flags must survive whatever comes between their making and their use:
 * faults, interrupts, system calls, slow memory accesses, and every kind of control transfer.
 *
 * A fault frame may hold stale arithmetic flags where the program overwrites them before reading
 * them (docs: engine); so frames are compared only where the flags are used afterwards.
 */
#include "lib/guest.h"

#define RW (PTE_P | PTE_W | PTE_U)

static volatile u64 *absent = (volatile u64 *)(PAGE3 + 8 * PAGE);
static u64 frame_pa;
static volatile unsigned faults;
static volatile u64 frame_flags;

static void demand(struct regs *r)
{
    faults++;
    frame_flags = r->rflags;
    map((void *)(trap.cr2 & ~(PAGE - 1)), frame_pa, RW);
    /* the handler's own arithmetic spoils the host's flags */
    asm volatile("xor %%eax, %%eax; add $0x7f, %%al; add $0x7f, %%al" ::: "rax", "cc");
}

static void soft(struct regs *r)
{
    frame_flags = r->rflags;
    asm volatile("xor %%eax, %%eax" ::: "rax", "cc");
}

/* All 64 combinations of the six flags, by popf and by sahf. */
static u64 combo(unsigned i)
{
    return 2 | (i & 1 ? FL_CF : 0) | (i & 2 ? FL_PF : 0) | (i & 4 ? FL_AF : 0) |
           (i & 8 ? FL_ZF : 0) | (i & 16 ? FL_SF : 0) | (i & 32 ? FL_OF : 0);
}

/* Set flags, do `code`, read them: nothing may change. r8 = the address of an absent page. */
#define KEEPS(name, code, prepare, ...)                                                            \
    do {                                                                                           \
        bool ok_ = true;                                                                           \
        for (unsigned i_ = 0; i_ < 64; i_++) {                                                     \
            prepare;                                                                               \
            u64 out_;                                                                              \
            asm volatile("mov %2, %%r8; push %1; popf; " code "; pushf; pop %0; push $2; popf"     \
                         : "=&r"(out_)                                                             \
                         : "r"(combo(i_)), "r"(absent)                                             \
                         : "rax", "rbx", "rcx", "rdx", "r8", "r9", "rsi", "rdi", "memory", "cc",   \
                           ##__VA_ARGS__);                                                         \
            if ((out_ & FL_ARITH) != (combo(i_) & FL_ARITH)) {                                     \
                if (ok_)                                                                           \
                    print("# %s: flags %lx, want %lx\n", name, out_ &FL_ARITH,                     \
                          combo(i_) & FL_ARITH);                                                   \
                ok_ = false;                                                                       \
            }                                                                                      \
        }                                                                                          \
        report(name, ok_);                                                                         \
    } while (0)

KERNEL_ASM("fn_ret: ret");
KERNEL_ASM("fn_ret16: ret $16");
KERNEL_ASM(".balign 4096\nfar_page: jmp *%r9\n.balign 4096");

static void keeps(void)
{
    trap_handle(PF, demand);
    trap_handle(0x60, soft);
    lapic_init();
    KEEPS("nothing", "nop", );
    KEEPS("mov to memory, faulting", "mov %%r9, (%%r8)", unmap(absent));
    KEEPS("mov from memory, faulting", "mov (%%r8), %%r9", unmap(absent));
    KEEPS("push from memory, faulting", "push (%%r8); pop %%r9", unmap(absent));
    KEEPS("lea, movzx, bswap, xchg",
          "lea 5(%%r8), %%r9; movzbl %%r9b, %%eax; bswap %%eax; xchg %%eax, %%ebx", );
    KEEPS("a page-crossing load and store",
          "mov $ustack + 4093, %%r9; mov (%%r9), %%rax; mov %%rax, (%%r9)", );
    KEEPS("a device read", "mov $0xfee00020, %%r9d; mov (%%r9), %%eax", );
    KEEPS("a device write", "mov $0xfee00080, %%r9d; movl $0, (%%r9)", );
    KEEPS("int n and iretq", "int $0x60", );
    KEEPS("call and ret", "call fn_ret", );
    KEEPS("call through a register", "mov $fn_ret, %%r9; call *%%r9", );
    KEEPS("call through memory", "push $fn_ret; call *(%%rsp); pop %%r9", );
    KEEPS("ret n", "push %%r9; push %%r9; call fn_ret16", );
    KEEPS("indirect jump", "lea 1f(%%rip), %%r9; jmp *%%r9; 1:", );
    KEEPS("push and ret", "lea 1f(%%rip), %%r9; push %%r9; ret; 1:", );
    KEEPS("call to another page, jump and back", "lea 1f(%%rip), %%r9; jmp far_page; 1:", );
    KEEPS("rep movsb", "mov $ustack, %%esi; lea 100(%%rsi), %%rdi; mov $50, %%ecx; rep movsb", );
    KEEPS("rep stosq, faulting", "mov %%r8, %%rdi; mov $4, %%ecx; rep stosq", unmap(absent));
    KEEPS("lods, stos", "mov $ustack, %%esi; lodsq; mov $ustack, %%edi; stosb", );
    KEEPS("rdtsc, cpuid", "rdtsc; mov $0, %%eax; cpuid", );
    KEEPS("cli, sti", "cli", );
    KEEPS("in and out", "mov $0x61, %%dx; inb %%dx, %%al; out %%al, $0x80", );
    KEEPS("mov cr3", "mov %%cr3, %%rax; mov %%rax, %%cr3", );
    KEEPS("invlpg", "invlpg (%%r8)", );
    KEEPS("mov cr8", "mov $0, %%eax; mov %%rax, %%cr8; mov %%cr8, %%rax", );
    KEEPS("rdmsr, wrmsr", "mov $0xc0000102, %%ecx; rdmsr; wrmsr", );
    KEEPS("swapgs", "swapgs; swapgs", );
    KEEPS("segment load", "mov %%ds, %%eax; mov %%eax, %%ds", );
    KEEPS("fninit, fxch, movaps", "fninit; fldz; fld1; fxch; movaps %%xmm0, %%xmm1; emms", );
    KEEPS("not, mov, movsx, cmov, setcc",
          "mov $5, %%eax; not %%eax; cmovz %%eax, %%ebx; setc %%al; movsbl %%al, %%eax", );
    KEEPS("loop and jrcxz", "mov $5, %%ecx; 1: loop 1b; jrcxz 2f; 2:", );
    KEEPS("enter and leave", "enter $32, $0; leave", );
    KEEPS("lahf and sahf", "lahf; sahf", );
    KEEPS("a syscall from ring 0's point of view: xchg with memory", "xchg %%r9, ustack(%%rip)", );
    KEEPS("clflush, prefetch, fences",
          "clflush ustack(%%rip); prefetcht0 (%%r8); mfence; lfence; sfence; pause", );
    KEEPS("conditional jump not taken then taken",
          "jc 1f; nop; 1: jz 2f; nop; 2: js 3f; 3: jo 4f; 4: jp 5f; 5:", );
    trap_handle(PF, NULL);
}

/* -- Flags made by one instruction and used by another, with something slow between
 * --------------------- */

static void chains(void)
{
    trap_handle(PF, demand);
    /* 256-bit addition whose memory operands all fault: demand paging between adc and adc. */
    u64 base = PAGE3 + 16 * PAGE;
    u64 a[4] = {~0ull, ~0ull, ~0ull, 5}, r[4];
    for (unsigned i = 0; i < 8; i++)
        unmap((void *)(base + i * PAGE));
    *(u64 *)frame_pa = 1;
    *(u64 *)(frame_pa + 8) = 0;
    faults = 0;
    asm volatile("mov (%1), %%rax; add (%2), %%rax; mov %%rax, (%0)\n"
                 "mov 8(%1), %%rax; adc 0x1008(%2), %%rax; mov %%rax, 8(%0)\n"
                 "mov 16(%1), %%rax; adc 0x2008(%2), %%rax; mov %%rax, 16(%0)\n"
                 "mov 24(%1), %%rax; adc 0x3008(%2), %%rax; mov %%rax, 24(%0)" ::"r"(r),
                 "r"(a), "r"(base)
                 : "rax", "memory", "cc");
    report("add, adc, adc, adc with faulting operands",
           r[0] == 0 && r[1] == 0 && r[2] == 0 && r[3] == 6 && faults == 4);
    for (unsigned i = 0; i < 8; i++)
        unmap((void *)(base + i * PAGE));
    u64 z[4] = {0, 0, 0, 5};
    asm volatile("mov (%1), %%rax; sub (%2), %%rax; mov %%rax, (%0)\n"
                 "mov 8(%1), %%rax; sbb 0x1008(%2), %%rax; mov %%rax, 8(%0)\n"
                 "mov 16(%1), %%rax; sbb 0x2008(%2), %%rax; mov %%rax, 16(%0)\n"
                 "mov 24(%1), %%rax; sbb 0x3008(%2), %%rax; mov %%rax, 24(%0)" ::"r"(r),
                 "r"(z), "r"(base)
                 : "rax", "memory", "cc");
    report("sub, sbb, sbb, sbb with faulting operands",
           r[0] == ~0ull && r[1] == ~0ull && r[2] == ~0ull && r[3] == 4);

    /* Read-modify-write that needs the carry it was given, and faults first. */
    unmap(absent);
    bool cf;
    asm volatile("stc; adcq $0, %0" : "+m"(*absent), "=@ccc"(cf));
    report("adc to an absent page", *absent == 2 && !cf);
    unmap(absent);
    asm volatile("stc; rclq $1, %0" : "+m"(*absent), "=@ccc"(cf));
    report("rcl of an absent page", *absent == 5 && !cf);
    unmap(absent);
    asm volatile("stc; incq %0" : "+m"(*absent), "=@ccc"(cf));
    report("inc keeps CF across a fault", *absent == 6 && cf);
    unmap(absent);
    asm volatile("clc; decq %0" : "+m"(*absent), "=@ccc"(cf));
    report("dec keeps CF across a fault", *absent == 5 && !cf);
    unmap(absent);
    u64 v = 0;
    asm volatile("stc; cmovcq %1, %0" : "+r"(v) : "m"(*absent));
    report_eq("cmov from an absent page", v, 5);
    unmap(absent);
    asm volatile("stc; setc %0" : "=m"(*(volatile u8 *)absent));
    report_eq("setc to an absent page", *(volatile u8 *)absent, 1);
    trap_handle(PF, NULL);
}

static void frames(void)
{
    /* The frame's flags, used afterwards, so they must be exact. */
    trap_handle(PF, demand);
    bool ok = true;
    for (unsigned i = 0; i < 64; i++) {
        unmap(absent);
        u64 out;
        asm volatile("push %1; popf; mov (%2), %%rax; pushf; pop %0; push $2; popf"
                     : "=&r"(out)
                     : "r"(combo(i)), "r"(absent)
                     : "rax", "cc", "memory");
        ok &= (frame_flags & FL_ARITH) == (combo(i) & FL_ARITH) &&
              (out & FL_ARITH) == (combo(i) & FL_ARITH);
    }
    report("a #PF frame has the live flags", ok);
    trap_handle(PF, NULL);
    ok = true;
    for (unsigned i = 0; i < 64; i++) {
        u64 out;
        asm volatile("push %1; popf; int $0x60; pushf; pop %0; push $2; popf"
                     : "=&r"(out)
                     : "r"(combo(i))
                     : "cc", "memory");
        ok &= (frame_flags & FL_ARITH) == (combo(i) & FL_ARITH);
    }
    report("an int n frame has them", ok);
    /* A handler changes them: the program sees the change. */
    ok = true;
    for (unsigned i = 0; i < 64; i++) {
        extern char flip_entry[];
        idt_gate(0x61, flip_entry, KCS, 0, 14, 0);
        u64 out;
        asm volatile("push %1; popf; int $0x61; pushf; pop %0; push $2; popf"
                     : "=&r"(out)
                     : "r"(combo(i))
                     : "cc", "memory");
        ok &= (out & FL_ARITH) == ((combo(i) ^ (FL_CF | FL_ZF | FL_OF)) & FL_ARITH);
    }
    report("iretq loads what the handler put there", ok);
}
KERNEL_ASM("flip_entry: xorq $0x841, 16(%rsp)\n iretq");

/* -- pushf, popf, lahf, sahf
 * ------------------------------------------------------------------------------ */

static void forms(void)
{
    bool pop = true, lahf = true, w = true;
    for (unsigned i = 0; i < 64; i++) {
        u64 out, c = combo(i), ah;
        asm volatile("push %1; popf; pushf; pop %0" : "=r"(out) : "r"(c) : "cc", "memory");
        pop &=
            (out & FL_ARITH) == (c & FL_ARITH) && (out & 2) && !(out & (BIT(3) | BIT(5) | BIT(15)));
        asm volatile("push %1; popf; mov $0, %%eax; lahf; movzbl %%ah, %%eax; mov %%rax, %0"
                     : "=r"(ah)
                     : "r"(c)
                     : "rax", "cc", "memory");
        lahf &= ah == (c & 0xd7);
        asm volatile("xor %%eax, %%eax; mov %b1, %%ah; push $0x802; popf; sahf; pushf; pop %0"
                     : "=r"(out)
                     : "Q"(c)
                     : "rax", "cc", "memory");
        lahf &= (out & FL_ARITH) == ((c & 0xd5) | FL_OF);
        asm volatile("pushw %w1; popfw; pushfw; popw %w0" : "=r"(out) : "r"(c) : "cc", "memory");
        w &= (out & FL_ARITH) == (c & FL_ARITH);
    }
    report("popf, pushf", pop);
    report("lahf, sahf", lahf);
    report("popfw, pushfw", w);
    u64 out;
    asm volatile("push %1; popf; pushf; pop %0; push $2; popf"
                 : "=r"(out)
                 : "r"(BIT(21) | BIT(18) | BIT(14) | 2)
                 : "cc", "memory");
    report_eq("popf in ring 0: ID, AC, NT", out, BIT(21) | BIT(18) | BIT(14) | 2);
    asm volatile("push %1; popf; pushf; pop %0; push $2; popf"
                 : "=r"(out)
                 : "r"(0x3002ull)
                 : "cc", "memory");
    report_eq("popf in ring 0: IOPL", out, 0x3002);
    asm volatile("push %1; popf; pushf; pop %0; push $2; popf"
                 : "=r"(out)
                 : "r"(BIT(16) | BIT(17) | BIT(19) | BIT(20) | 2)
                 : "cc", "memory");
    report_eq("popf: not RF, VM, VIF, VIP", out, 2);
    asm volatile("std; pushf; pop %0; cld" : "=r"(out)::"memory");
    report_eq("std", out & FL_DF, FL_DF);
    asm volatile("stc; cmc; pushf; pop %0" : "=r"(out)::"memory", "cc");
    report_eq("stc, cmc", out & FL_CF, 0);
    asm volatile("push $0x8d7; popf; clc; pushf; pop %0; push $2; popf"
                 : "=r"(out)::"memory", "cc");
    report_eq("clc keeps the others", out & FL_ARITH, 0x8d4);
    asm volatile(
        "push $0x8d7; popf; mov $1, %%ecx; shl $0, %%ecx; mov $0, %%cl; shl %%cl, %%eax; pushf; pop %0; push $2; popf"
        : "=r"(out)::"rcx", "rax", "memory", "cc");
    report_eq("a shift by 0 keeps all", out & FL_ARITH, 0x8d5);
}

/* -- Syscalls, ring 3
 * --------------------------------------------------------------------------------------- */

USER_ASM("uf_syscall: push %rdi; popf; syscall; pushf; pop %rax; ret");
USER_ASM("uf_int: push %rdi; popf; int $0x82; pushf; pop %rax; ret");
USER_ASM("uf_fault: push %rdi; popf; mov (%rsi), %rcx; pushf; pop %rax; ret");
USER_ASM(
    "uf_branch: push %rdi; popf; mov (%rsi), %rcx; setc %al; seto %ah; jz 1f; or $0x10000, %eax; 1: ret");
extern char uf_syscall[], uf_int[], uf_fault[], uf_branch[];
KERNEL_ASM("fl_entry: xor %eax, %eax\n sysretq");
extern char fl_entry[];

static void user(void)
{
    bool sys = true, in = true, pf = true, br = true;
    wrmsr(MSR_STAR, (u64)UCS32 << 48 | (u64)KCS << 32);
    wrmsr(MSR_LSTAR, (u64)fl_entry);
    wrmsr(MSR_SFMASK, FL_IF | FL_DF | FL_TF | FL_ARITH);
    idt_gate(0x82, trap_stub(0x82), KCS, 3, 14, 0);
    trap_handle(0x82, soft);
    trap_handle(PF, demand);
    for (unsigned i = 0; i < 64; i++) {
        u64 c = combo(i);
        sys &= (user_call(uf_syscall, c, 0, 0) & FL_ARITH) == (c & FL_ARITH);
        in &= (user_call(uf_int, c, 0, 0) & FL_ARITH) == (c & FL_ARITH);
        unmap(absent);
        pf &= (user_call(uf_fault, c, (u64)absent, 0) & FL_ARITH) == (c & FL_ARITH);
        unmap(absent);
        u64 v = user_call(uf_branch, c, (u64)absent, 0);
        br &= (v & 1) == (c & FL_CF ? 1u : 0) && (v >> 8 & 1) == (c & FL_OF ? 1u : 0) &&
              (v >> 16 & 1) == (c & FL_ZF ? 0u : 1);
    }
    trap_handle(PF, NULL);
    report("ring 3: across syscall and sysret", sys);
    report("ring 3: across int n", in);
    report("ring 3: across a page fault", pf);
    report("ring 3: setcc and jcc after a page fault", br);
}

/* -- Under a timer: a long dependent chain must come out right
 * --------------------------------------------------- */

static void on_tick(struct regs *r)
{
    faults++;
    lapic_eoi();
    asm volatile("xor %%eax, %%eax; sub $1, %%eax" ::: "rax", "cc");
}

static void interrupted(void)
{
    trap_handle(0x62, on_tick);
    lapic_write(LAPIC_TDCR, 0xb);
    lapic_write(LAPIC_LVTT, 0x20062);
    lapic_write(LAPIC_TMICT, 50000);
    faults = 0;
    u64 lo = 0, hi = 0, n = 20000000, cnt = 0;
    sti();
    /* 128-bit counting: each lost carry shows; `loop` and lea leave the flags alone. */
    asm volatile("clc\n1: adc $-1, %0\n adc $0, %1\n jnc 2f\n 2: lea 1(%3), %3\n dec %2\n jnz 1b"
                 : "+r"(lo), "+r"(hi), "+r"(n), "+r"(cnt)::"cc");
    cli();
    lapic_write(LAPIC_LVTT, 0x10000);
    /* Model: first round 0 + -1 + 0 = -1, no carry; from then on -1 + -1 gives a carry each round.
     */
    print("# %u interrupts, lo %lx hi %lx\n", faults, lo, hi);
    report("adc chain under a timer", cnt == 20000000 && lo == -20000000ull && hi == 20000000 - 1);
}

u64 loops_mem[64];
/* Flags that go round loops unread, and ones that are read only the next time round or behind the loop. */
static void loops(void)
{
    u64 *mem = loops_mem;
    KEEPS("loop: with loads and stores in it",
          "mov $20, %%ecx; lea loops_mem(%%rip), %%rsi\n 1: mov (%%rsi), %%rax; mov %%rax, 8(%%rsi); lea 16(%%rsi), %%rsi; loop 1b", , "r10");
    KEEPS("two loops in each other",
          "mov $5, %%edx\n 2: mov $7, %%ecx; lea loops_mem(%%rip), %%rsi\n 1: mov (%%rsi), %%rax; lea 8(%%rsi), %%rsi; loop 1b;"
          "lea -1(%%rdx), %%rdx; mov %%rdx, %%rcx; jrcxz 3f; jmp 2b\n 3:", , "r10");
    bool ok = true;
    for (u64 cf = 0; cf < 2; cf++) { /* inc and dec keep CF */
        u64 got = cf, n = 20, count = 20;
        u8 *at = (u8 *)mem;
        asm volatile("bt $0, %0\n 1: mov (%2), %%rax; mov %%rax, 8(%2); inc %1; inc %2; dec %1; loop 1b\n setc %b0"
                     : "+r"(got), "+r"(n), "+r"(at), "+c"(count)::"rax", "memory", "cc");
        ok &= got == cf;
    }
    report("CF past inc and dec", ok);
    u64 sum = 0, n = 10, at = (u64)mem, count = 10;
    asm volatile("stc\n 1: jnc 2f; inc %0; 2: mov (%3), %%rax; bt $0, %2; loop 1b"
                 : "+&r"(sum), "+&c"(count) : "r"(n | 1), "r"(at) : "rax", "cc");
    report_eq("read the next time round: set", sum, 10);
    sum = 0;
    count = 10;
    asm volatile("stc\n 1: jnc 2f; inc %0; 2: mov (%3), %%rax; bt $0, %2; loop 1b"
                 : "+&r"(sum), "+&c"(count) : "r"(n & ~1ull), "r"(at) : "rax", "cc");
    report_eq("clear", sum, 1);
    u64 zf = 0, c = 50;
    asm volatile("xor %%eax, %%eax\n 1: mov (%2), %%rdx; loope 1b\n sete %b0" : "+&r"(zf), "+&c"(c) : "r"(at) : "rax", "rdx", "cc");
    report("loope reads ZF and keeps it", zf && !c);
}

int main(void)
{
    frame_pa = page_alloc();
    keeps();
    chains();
    frames();
    forms();
    loops();
    user();
    interrupted();
    return 0;
}
