/*
 * callret.c - calls and returns that do not pair, deep ones, and odd uses of the stack pointer. An
 * engine that predicts returns (or keeps a host stack of them) must be right when it is wrong.
 */
#include "lib/guest.h"

static u8 *big_stack; /* 16 MiB */
enum { BIG = 16 << 20 };

KERNEL_ASM(
    "deep: test %rdi, %rdi\n jz 1f\n dec %rdi\n call deep\n inc %rax\n ret\n1: xor %eax, %eax\n ret");
KERNEL_ASM(
    "on_stack: push %rbp\n mov %rsp, %rbp\n mov %rdx, %rsp\n call *%rsi\n mov %rbp, %rsp\n pop %rbp\n ret");
u64 deep(u64 n), on_stack(u64 arg, void *fn, void *sp);

KERNEL_ASM(
    "mutual_a: test %rdi, %rdi\n jz 1f\n dec %rdi\n call mutual_b\n add $1, %rax\n ret\n1: xor %eax, %eax\n ret\n"
    "mutual_b: test %rdi, %rdi\n jz 1f\n dec %rdi\n call mutual_a\n add $2, %rax\n ret\n1: xor %eax, %eax\n ret");
u64 mutual_a(u64 n);

static NOINLINE u64 fib(u64 n)
{
    asm volatile("");
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static u64 depth_reached;
static NOINLINE u64 c_recurse(u64 n, struct context *out)
{
    volatile u64 local = n * 3;
    depth_reached = n;
    if (n == 0) {
        if (out)
            ctx_jump(out, 7);
        return 0;
    }
    u64 v = c_recurse(n - 1, out);
    return v + local / 3 - n + 1;
}

KERNEL_ASM("retpoline: call 2f\n1: pause\n lfence\n jmp 1b\n2: mov %rax, (%rsp)\n ret");
KERNEL_ASM("via_retpoline: mov %rsi, %rax\n call retpoline\n add $1, %rax\n ret");
KERNEL_ASM("target_a: lea 100(%rdi), %rax\n ret\ntarget_b: lea 200(%rdi), %rax\n ret");
u64 via_retpoline(u64 arg, void *fn);
extern char target_a[], target_b[];

/* Each leaves its result in RAX and returns normally by hook or by crook. */
KERNEL_ASM(
    "ret_modified: call 1f\n mov $1, %eax\n ret\n2: mov $2, %eax\n ret\n1: lea 2b(%rip), %rcx\n mov %rcx, (%rsp)\n ret");
KERNEL_ASM("ret_skip: call 1f\n .byte 0x0f, 0x0b\n mov $3, %eax\n ret\n1: addq $2, (%rsp)\n ret");
KERNEL_ASM(
    "ret_double: call 1f\n mov $1, %eax\n ret\n1: call 2f\n mov $2, %eax\n ret\n2: add $8, %rsp\n ret");
KERNEL_ASM(
    "call_next: call 1f\n1: pop %rax\n lea 1b(%rip), %rcx\n sub %rcx, %rax\n add $5, %rax\n ret");
KERNEL_ASM(
    "call_next_loop: mov $1000, %ecx\n xor %eax, %eax\n1: call 2f\n2: pop %rdx\n inc %eax\n dec %ecx\n jnz 1b\n ret");
KERNEL_ASM(
    "ret_imm: push $11\n push $22\n push $33\n call 1f\n ret\n1: mov 8(%rsp), %rax\n ret $24");
KERNEL_ASM(
    "ret_imm_odd: mov %rsp, %rcx\n sub $13, %rsp\n call 1f\n sub %rsp, %rcx\n mov %rcx, %rax\n add %rcx, %rsp\n ret\n1: ret $13");
KERNEL_ASM("push_ret: lea 1f(%rip), %rcx\n push %rcx\n ret\n1: mov $6, %eax\n ret");
KERNEL_ASM("jmp_out: call 1f\n mov $7, %eax\n ret\n1: pop %rcx\n jmp *%rcx");
KERNEL_ASM(
    "call_mem_rsp: lea target_a(%rip), %rcx\n push %rcx\n xor %edi, %edi\n call *(%rsp)\n pop %rcx\n ret");
KERNEL_ASM(
    "call_mem_rsp8: lea target_b(%rip), %rcx\n push %rcx\n push %rcx\n xor %edi, %edi\n call *8(%rsp)\n pop %rcx\n pop %rcx\n ret");
KERNEL_ASM(
    "jmp_mem_rsp: lea 1f(%rip), %rcx\n push %rcx\n jmp *(%rsp)\n1: pop %rcx\n mov $8, %eax\n ret");
KERNEL_ASM("push_rsp: mov %rsp, %rcx\n push %rsp\n pop %rax\n sub %rcx, %rax\n ret");
KERNEL_ASM(
    "pop_rsp: mov %rsp, %rcx\n lea -64(%rsp), %rdx\n push %rdx\n pop %rsp\n mov %rsp, %rax\n sub %rdx, %rax\n mov %rcx, %rsp\n ret");
KERNEL_ASM(
    "pop_mem_rsp: push $0x44\n push $0x55\n push $0x66\n popq 8(%rsp)\n pop %rcx\n pop %rax\n ret");
KERNEL_ASM(
    "push_mem_rsp: push $0x77\n push $0x88\n pushq 8(%rsp)\n pop %rax\n pop %rcx\n pop %rcx\n ret");
KERNEL_ASM("push_mem_below: movq $0x99, -8(%rsp)\n pushq -8(%rsp)\n pop %rax\n ret");
KERNEL_ASM(
    "xchg_rsp: mov %rdi, %rcx\n xchg %rcx, %rsp\n push $0x12\n pop %rax\n xchg %rcx, %rsp\n ret");
KERNEL_ASM(
    "leave_enter: push %rbp\n mov $0x1234, %ebp\n enter $32, $0\n mov %rbp, %rcx\n sub %rsp, %rcx\n leave\n mov %rbp, %rax\n shl $16, %rax\n or %rcx, %rax\n pop %rbp\n ret");
KERNEL_ASM(
    "enter_nested: push %rbp\n mov %rsp, %rbp\n enter $16, $2\n mov %rbp, %rax\n sub %rsp, %rax\n leave\n pop %rbp\n ret");
KERNEL_ASM(
    "pivot: push %rbp\n mov %rsp, %rbp\n mov %rdi, %rsp\n mov %rsi, %rdi\n call deep\n mov %rbp, %rsp\n pop %rbp\n ret");
KERNEL_ASM("add_rsp: push $1\n push $2\n push $3\n add $8, %rsp\n pop %rax\n add $8, %rsp\n ret");
KERNEL_ASM(
    "sub_and_rsp: push %rbp\n mov %rsp, %rbp\n sub $100, %rsp\n and $-64, %rsp\n mov %rsp, %rax\n and $63, %eax\n leave\n ret");
KERNEL_ASM(
    "mov_rsp_arith: mov %rsp, %rax\n inc %rsp\n dec %rsp\n neg %rsp\n neg %rsp\n not %rsp\n not %rsp\n shl $1, %rsp\n shr $1, %rsp\n sub %rsp, %rax\n ret");
KERNEL_ASM(
    "rsp_index_free: push $0x21\n mov $4, %ecx\n mov -16(%rsp,%rcx,4), %rax\n pop %rcx\n ret");
KERNEL_ASM("movsx_rsp: push $-5\n movslq (%rsp), %rax\n neg %rax\n add $8, %rsp\n ret");
KERNEL_ASM(
    "pushw: mov %rsp, %rcx\n pushw $0x1234\n mov %rsp, %rax\n sub %rax, %rcx\n popw %ax\n movzwl %ax, %eax\n shl $8, %rcx\n add %rcx, %rax\n ret");
KERNEL_ASM(
    "cmov_rsp: mov %rsp, %rcx\n lea -256(%rsp), %rdx\n xor %eax, %eax\n cmovz %rdx, %rsp\n mov %rcx, %rax\n sub %rsp, %rax\n mov %rcx, %rsp\n ret");
KERNEL_ASM(
    "mov_esp: mov %rsp, %rcx\n movl %esp, %esp\n mov %rcx, %rax\n sub %rsp, %rax\n mov %rcx, %rsp\n ret");

#define ROWS(X)                                                                                    \
    X(ret_modified, 2, "return address replaced on the stack")                                     \
    X(ret_skip, 3, "return address advanced by the callee")                                        \
    X(ret_double, 1, "a return that skips a frame")                                                \
    X(call_next, 5, "call to the next instruction, pop")                                           \
    X(call_next_loop, 1000, "a loop of them")                                                      \
    X(ret_imm, 33, "ret imm16")                                                                    \
    X(ret_imm_odd, 0, "ret with an odd imm16")                                                     \
    X(push_ret, 6, "push and ret as a jump")                                                       \
    X(jmp_out, 7, "pop and jmp as a return")                                                       \
    X(call_mem_rsp, 100, "call *(%rsp)")                                                           \
    X(call_mem_rsp8, 200, "call *8(%rsp)")                                                         \
    X(jmp_mem_rsp, 8, "jmp *(%rsp)")                                                               \
    X(push_rsp, 0, "push rsp pushes the old value")                                                \
    X(pop_rsp, 0, "pop rsp loads the value")                                                       \
    X(pop_mem_rsp, 0x66, "pop [rsp+8] addresses with the new rsp")                                 \
    X(push_mem_rsp, 0x77, "push [rsp+8] addresses with the old rsp")                               \
    X(push_mem_below, 0x99, "push [rsp-8] reads before it writes")                                 \
    X(enter_nested, 32, "enter with nesting level 2")                                              \
    X(add_rsp, 2, "add to rsp")                                                                    \
    X(sub_and_rsp, 0, "align rsp")                                                                 \
    X(mov_rsp_arith, 0, "arithmetic on rsp")                                                       \
    X(rsp_index_free, 0x21, "rsp as a base with an index")                                         \
    X(movsx_rsp, 5, "movsxd from the stack")                                                       \
    X(pushw, 0x1234 + 0x200, "pushw, popw")                                                        \
    X(cmov_rsp, 256, "cmov to rsp")                                                                \
    X(mov_esp, 0, "mov esp, esp truncates")

#define X(fn, want, name) u64 fn(void);
ROWS(X)
#undef X
u64 xchg_rsp(void *sp), leave_enter(void), pivot(void *sp, u64 n);

static void rows(void)
{
    static const struct {
        u64 (*fn)(void);
        u64 want;
        const char *name;
    } row[] = {
#define X(fn, want, name) {fn, want, name},
        ROWS(X)
#undef X
    };
    for (unsigned i = 0; i < ARRAY_LEN(row); i++) {
        u64 got = 0;
        bool ok = true;
        for (int k = 0; k < 300; k++) { /* long enough to be translated, chained and predicted */
            got = row[i].fn();
            ok &= got == row[i].want;
        }
        if (!ok)
            print("# got %lx, want %lx\n", got, row[i].want);
        report(row[i].name, ok);
    }
    report_eq("xchg with rsp", xchg_rsp(big_stack + 4096), 0x12);
    report_eq("enter, leave", leave_enter(), 0x1234ull << 16 | 32);
}

static void deeps(void)
{
    report_eq("recursion 100000 deep", on_stack(100000, deep, big_stack + BIG), 100000);
    report_eq("again", on_stack(100000, deep, big_stack + BIG), 100000);
    report_eq("mutual recursion 90000 deep", on_stack(90000, mutual_a, big_stack + BIG), 135000);
    u64 v = 0;
    for (int i = 0; i < 200; i++)
        v += on_stack((u64)i, deep, big_stack + BIG);
    report_eq("many small stacks", v, 19900);
    report_eq("fib(24)", fib(24), 46368);
    report_eq("pivot to another stack and back", pivot(big_stack + 65536, 500), 500);

    static struct context c;
    volatile unsigned jumps = 0;
    if (ctx_save(&c) == 7)
        jumps = jumps + 1;
    if (jumps < 500)
        c_recurse(30 + jumps % 50, &c);
    report_eq("500 longjmps out of deep calls", jumps, 500);
    report_eq("and calls still return", c_recurse(50, NULL), 50);
}

static void retpolines(void)
{
    bool ok = true;
    for (u64 i = 0; i < 20000; i++)
        ok &= via_retpoline(i, i & 1 ? target_a : target_b) == i + (i & 1 ? 101 : 201);
    report("20000 retpolines, alternating targets", ok);
}

/* -- Coroutines: two stacks that return into each other
 * -------------------------------------------------- */

KERNEL_ASM(
    "co_switch: push %rbx\n push %rbp\n push %r12\n mov %rsp, (%rdi)\n mov %rsi, %rsp\n pop %r12\n pop %rbp\n pop %rbx\n ret");
void co_switch(u64 *save, u64 to);
static u64 co_main, co_other, co_sum;

static void co_body(void)
{
    for (u64 i = 0;; i++) {
        co_sum += i;
        co_switch(&co_other, co_main);
    }
}

static void coroutines(void)
{
    u64 *sp = (u64 *)(big_stack + BIG / 2);
    *--sp = 0;
    *--sp = (u64)co_body;
    sp -= 3;
    co_other = (u64)sp;
    for (int i = 0; i < 10000; i++)
        co_switch(&co_main, co_other);
    report_eq("10000 switches between two stacks", co_sum, 9999ull * 10000 / 2);
}

/* -- Returns through traps
 * ----------------------------------------------------------------------------------- */

static u64 resume_to;
static void redirect(struct regs *r)
{
    r->rip = resume_to;
}
KERNEL_ASM("redirected: call 1f\n mov $9, %eax\n ret\n1: int $0x70\n mov $1, %eax\n2: ret");
u64 redirected(void);
KERNEL_ASM("redir_target: add $8, %rsp\n mov $10, %eax\n ret");
extern char redir_target[];

USER_ASM(
    "u_deep: test %rdi, %rdi; jz 1f; dec %rdi; call u_deep; inc %rax; ret; 1: xor %eax, %eax; ret");
USER_ASM(
    "u_mixed: push %rbx; mov %rdi, %rbx; xor %eax, %eax; 1: call 2f; dec %rbx; jnz 1b; pop %rbx; ret; 2: push %rax; int $0x71; pop %rax; inc %rax; ret");
extern char u_deep[], u_mixed[];
static void nothing(struct regs *r)
{
}

static void traps(void)
{
    trap_handle(0x70, redirect);
    resume_to = (u64)redir_target;
    bool ok = true;
    for (int i = 0; i < 300; i++)
        ok &= redirected() == 10;
    report("a handler that changes where its caller returns", ok);
    report_eq("ring 3: recursion", user_call(u_deep, 2000, 0, 0), 2000);
    trap_handle(0x71, nothing);
    idt_gate(0x71, trap_stub(0x71), KCS, 3, 14, 0);
    report_eq("ring 3: interrupts between call and ret", user_call(u_mixed, 5000, 0, 0), 5000);
    /* Same code, same stack addresses, other address space underneath: a return must not be
     * trusted. */
    u64 one = page_alloc(), two = page_alloc();
    u8 *code = (u8 *)PAGE3;
    /* at 0: call +8 (to 16); mov $1|2, %eax; ret; at 16: int 0x72; ret */
    static const u8 text[] = {0xe8, 11,   0,    0,    0,    0xb8, 1,    0,    0,   0,
                              0xc3, 0x90, 0x90, 0x90, 0x90, 0x90, 0xcd, 0x72, 0xc3};
    memcpy((void *)one, text, sizeof(text));
    memcpy((void *)two, text, sizeof(text));
    *(u8 *)(two + 6) = 2;
    extern void swap_page(struct regs * r);
    trap_handle(0x72, swap_page);
    extern u64 swap_pa;
    ok = true;
    for (int i = 0; i < 300; i++) {
        u64 v;
        map(code, i & 1 ? one : two, PTE_P | PTE_W | PTE_U);
        swap_pa = i & 1 ? two : one;
        asm volatile("call *%1" : "=a"(v) : "r"(code) : "rcx", "rdx", "memory", "cc");
        ok &= v == (i & 1 ? 2u : 1u);
    }
    report("the page returned to was remapped meanwhile", ok);
    unmap(code);
}
u64 swap_pa;
void swap_page(struct regs *r);
void swap_page(struct regs *r)
{
    map((void *)PAGE3, swap_pa, PTE_P | PTE_W | PTE_U);
}

int main(void)
{
    big_stack = (u8 *)pages_alloc(BIG / PAGE, PAGE);
    rows();
    deeps();
    retpolines();
    coroutines();
    traps();
    return 0;
}
