/*
 * loops.c - tight loops whose pages change between and during their runs. A translator may keep what it knows of a page
 * for as long as a loop runs over it: whatever ends a translation must end that too (Intel SDM vol. 3 §4.10.4),
 * and faults in the middle of a loop must be exact.
 */
#include "lib/guest.h"

#define VA  ((volatile u64 *)0x8000000000ull) /* its own PML4 slot */
#define RW  (PTE_P | PTE_W | PTE_U)
#define PER (PAGE / 8)

static u64 phys[4];

static void set_pte(const volatile void *va, u64 v)
{
    *(volatile u64 *)pt_entry(va, 1) = v;
}

/* Each is one loop of one block; all callers run the same code. */
static NOINLINE u64 sum(const volatile u64 *p, u64 n)
{
    u64 s = 0;
    asm volatile("1: add (%1), %0; add $8, %1; dec %2; jnz 1b" : "+r"(s), "+r"(p), "+r"(n)::"memory");
    return s;
}
static NOINLINE u64 sum_indexed(const volatile u64 *p, u64 n)
{
    u64 s = 0;
    asm volatile("1: add -8(%1, %2, 8), %0; dec %2; jnz 1b" : "+r"(s), "+r"(p), "+r"(n)::"memory");
    return s;
}
static NOINLINE void fill(volatile u64 *p, u64 n, u64 with)
{
    asm volatile("1: mov %2, (%0); add $8, %0; dec %1; jnz 1b" : "+r"(p), "+r"(n) : "r"(with) : "memory");
}
static NOINLINE void add_to(volatile u64 *to, const volatile u64 *from, u64 n)
{
    asm volatile("1: mov (%1), %%rax; add %%rax, (%0); add $8, %0; add $8, %1; dec %2; jnz 1b"
                 : "+r"(to), "+r"(from), "+r"(n)::"rax", "memory");
}
static UTEXT u64 user_sum(const volatile u64 *p, u64 n)
{
    u64 s = 0;
    asm volatile("1: add (%1), %0; add $8, %1; dec %2; jnz 1b" : "+r"(s), "+r"(p), "+r"(n)::"memory");
    return s;
}
static UTEXT void user_fill(volatile u64 *p, u64 n, u64 with)
{
    asm volatile("1: mov %2, (%0); add $8, %0; dec %1; jnz 1b" : "+r"(p), "+r"(n) : "r"(with) : "memory");
}

static void remapping(void)
{
    for (unsigned i = 0; i < 4; i++) {
        phys[i] = page_alloc();
        for (unsigned k = 0; k < PER; k++)
            ((u64 *)phys[i])[k] = BIT(16 * i);
        map(VA + i * PER, phys[i], RW);
    }
    u64 all = PER * (1 + BIT(16) + BIT(32) + BIT(48));
    report_eq("four pages", sum(VA, 4 * PER), all);
    report_eq("four pages, indexed", sum_indexed(VA, 4 * PER), all);
    report_eq("again", sum(VA, 4 * PER), all);
    report_eq("user", user_call(user_sum, (u64)VA, 4 * PER, 0), all);
    report_eq("one page", sum(VA, PER), PER);
    set_pte(VA, phys[1] | RW);
    invlpg(VA);
    report_eq("remapped, INVLPG", sum(VA, PER), PER << 16);
    report_eq("remapped, indexed", sum_indexed(VA, PER), PER << 16);
    report_eq("remapped, user", user_call(user_sum, (u64)VA, PER, 0), PER << 16);
    set_pte(VA, phys[2] | RW);
    flush_tlb();
    report_eq("remapped, CR3", sum(VA, PER), PER << 32);
    report_eq("remapped, CR3, user", user_call(user_sum, (u64)VA, PER, 0), PER << 32);
    set_pte(VA, phys[3] | RW);
    WR(cr4, RD(cr4) ^ CR4_PGE);
    WR(cr4, RD(cr4) ^ CR4_PGE);
    report_eq("remapped, CR4", sum(VA, PER), PER << 48);
    set_pte(VA, phys[0] | RW);
    invlpg(VA);
}

static void rights(void)
{
    fill(VA, PER, 7);
    report_eq("stores", sum(VA, PER), 7 * PER);
    set_pte(VA, phys[0] | PTE_P | PTE_U);
    invlpg(VA);
    volatile u64 *p = VA + 5;
    u64 n = 9;
    unsigned v = TRY("1: movq $1, (%0); add $8, %0; dec %1; jnz 1b", : "+r"(p), "+r"(n)::"memory");
    report("write-protected", v == PF && faulted(PF_P | PF_W, VA + 5));
    user_call(user_fill, (u64)VA, PER, 1);
    report("write-protected, user", faulted(PF_P | PF_W | PF_U, VA));
    report_eq("nothing stored", sum(VA, PER), 7 * PER);
    set_pte(VA, phys[0] | RW);
    /* A loop that runs into a page that is not there stops at the right place. */
    set_pte(VA + PER, 0);
    invlpg(VA + PER);
    p = VA + PER - 3;
    n = 6;
    v = TRY("mov %0, %%r8; mov %1, %%r9; 1: movq $5, (%%r8); add $8, %%r8; dec %%r9; jnz 1b", ::"r"(p), "r"(n) : "r8", "r9", "memory");
    report("runs into a hole", v == PF && faulted(PF_W, VA + PER) && trap.r.r9 == 3 && trap.r.r8 == (u64)(VA + PER));
    report("... having stored so far", VA[PER - 1] == 5 && VA[PER - 3] == 5 && VA[PER - 4] == 7);
    set_pte(VA + PER, phys[1] | RW);
    fill(VA, PER, 1);
    /* Dirty is set by the first store after it was cleared. */
    set_pte(VA, phys[0] | RW);
    invlpg(VA);
    (void)sum(VA, PER);
    u64 before = *(u64 *)pt_entry(VA, 1);
    fill(VA, 1, 1);
    report("Dirty by a loop", !(before & PTE_D) && (*(u64 *)pt_entry(VA, 1) & PTE_D));
}

/* Code in the page that the loop writes: mov eax, imm32; ret in every 8 bytes. */
static void code(void)
{
    typedef u32 function(void);
    function *f = (function *)(u64)(VA + 8);
    set_pte(VA, phys[0] | RW); /* executable: no NX */
    invlpg(VA);
    for (u32 i = 1; i <= 40; i++) {
        u64 insns = 0xb8ull | (u64)i << 8 | 0xc3ull << 40;
        fill(VA, PER, insns);
        if (f() != i) {
            report_eq("code stored by a loop", f(), i);
            return;
        }
    }
    report("code stored by a loop", true);
}

/* Pages that share a place in any table of a power of two up to 64 K entries, in turns. */
static void conflicts(void)
{
    volatile u64 *q[3];
    for (unsigned i = 0; i < 3; i++) {
        q[i] = VA + BIT(28) / 8 * (i + 1);
        map(q[i], phys[i + 1], RW);
        fill(q[i], PER, i);
    }
    u64 s = 0;
    for (unsigned i = 0; i < 50; i++) {
        add_to(q[0], q[1], PER);
        add_to(q[2], q[0], PER / 2);
        s += sum(q[2], 1);
    }
    report_eq("conflicts: first", sum(q[0], PER), 50 * PER);
    report_eq("conflicts: second", sum(q[1], PER), PER);
    report_eq("conflicts: third", sum(q[2], PER), 2 * PER + PER / 2 * (50 * 51 / 2));
    report_eq("conflicts: on the way", s, 2 * 50 + 50 * 51 * 52 / 6);
    for (unsigned i = 0; i < 3; i++)
        unmap(q[i]);
}

/* In a function of its own: the trap leaves RBP spoilt, and RSP where it was at the start. */
KERNEL_ASM("loop_by_rbp: push %rbp; mov %rdi, %rbp; movq $2f, try_rip; mov %rsp, try_rsp; mov $3, %ecx\n"
           "1: mov (%rbp), %rax; dec %ecx; jnz 1b\n2: mov try_rsp, %rsp; movq $0, try_rip; pop %rbp; ret");
void loop_by_rbp(u64 p);

/* Addresses an implementation might use for "nothing". */
static void not_canonical(void)
{
    unsigned bad = 0, bad_sum = 0, bad_store = 0, bad_stack = 0;
    for (unsigned bit = 47; bit < 64; bit++)
        for (unsigned page = 0; page < 9; page++) {
            u64 p = (BIT(bit) | page * PAGE) + 16;
            if ((u64)((s64)(p << 16) >> 16) == p)
                continue;
            invlpg(VA);
            bad += TRY("mov $3, %%ecx; 1: mov (%0), %%rax; add $8, %0; dec %%ecx; jnz 1b", : "+r"(p)::"rax", "rcx") != GP;
            bad_sum += TRY("mov $3, %%ecx; 1: mov (%0, %%rcx, 8), %%rax; dec %%ecx; jnz 1b", ::"r"(p) : "rax", "rcx") != GP;
            bad_store += TRY("mov $3, %%ecx; 1: mov %%rax, (%0, %%rcx, 8); dec %%ecx; jnz 1b", ::"r"(p) : "rcx", "memory") != GP;
            trap_clear();
            loop_by_rbp(p);
            bad_stack += trap.vec != SS;
        }
    report_eq("#GP: loads", bad, 0);
    report_eq("#GP: loads, indexed", bad_sum, 0);
    report_eq("#GP: stores", bad_store, 0);
    report_eq("#SS: by rbp", bad_stack, 0);
}

int main(void)
{
    remapping();
    rights();
    code();
    conflicts();
    not_canonical();
    return 0;
}
