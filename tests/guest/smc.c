/*
 * smc.c - self-modifying and cross-modifying code, in every shape a JIT, a kernel patching itself
 * or an old program may use. Intel SDM vol. 3 §8.1.3 asks for a branch or a serializing
 * instruction; x86 processors in fact show a store to the very next instruction (when the linear
 * address is the same), and old software relies on it.
 */
#include "lib/guest.h"

typedef u32 fn_t(void);

#define RWX (PTE_P | PTE_W | PTE_U)

static u8 *page; /* scratch code page, identity mapped */

static void emit_mov_ret(u8 *p, u32 v)
{
    p[0] = 0xb8; /* mov $v, %eax */
    memcpy(p + 1, &v, 4);
    p[5] = 0xc3;
}

static u32 call(const volatile void *p)
{
    u32 v;
    asm volatile("call *%1" : "=a"(v) : "r"(p) : "rcx", "rdx", "rsi", "rdi", "memory", "cc");
    return v;
}

KERNEL_ASM("next_insn: movb $2, 1f+1(%rip)\n1: mov $1, %eax\n ret");
KERNEL_ASM("later_insn: movb $2, 1f+1(%rip)\n nop\n nop\n nop\n1: mov $1, %eax\n ret");
KERNEL_ASM(
    "self_rep: mov $0x90, %al\n lea 1f(%rip), %rdi\n mov $7, %ecx\n cld\n rep stosb\n1: mov $9, %eax\n inc %eax\n movzbl %al, %eax\n ret");
KERNEL_ASM(
    "patch_loop: xor %eax, %eax\n mov $100, %ecx\n1: incb 2f+2(%rip)\n2: add $0, %eax\n dec %ecx\n jnz 1b\n ret");
KERNEL_ASM(
    "push_code: mov %rsp, %rcx\n xor %eax, %eax\n lea 1f+8(%rip), %rsp\n mov $0x5b8909090, %rdx\n push %rdx\n"
    "1: .quad 0x9090909090909090\n mov %rcx, %rsp\n ret");
KERNEL_ASM("xadd_code: mov $1, %eax\n lock xadd %al, 1f+1(%rip)\n1: mov $4, %eax\n ret");
KERNEL_ASM(
    "cmpxchg_code: mov $4, %eax\n mov $9, %ecx\n lock cmpxchg %cl, 1f+1(%rip)\n1: mov $4, %eax\n ret");
KERNEL_ASM("sse_code: movups 2f(%rip), %xmm0\n movups %xmm0, 1f(%rip)\n1: .fill 16, 1, 0xcc\n"
           "2: mov $0x77, %eax\n ret\n .fill 10, 1, 0x90");
KERNEL_ASM(
    "jmp_patch: movb $(3f - 2f), 1f+1(%rip)\n1: jmp 2f\n2: mov $1, %eax\n ret\n3: mov $2, %eax\n ret");
fn_t next_insn, later_insn, self_rep, patch_loop, push_code, xadd_code, cmpxchg_code, sse_code,
    jmp_patch;

static void nearby(void)
{
    report_eq("a store to the next instruction", call(next_insn), 2);
    report_eq("a store to a later instruction of the block", call(later_insn), 2);
    report_eq("rep stos over the following instructions", call(self_rep), 0x90);
    report_eq("a loop that patches its own operand", call(patch_loop), 5050);
    report_eq("a push that writes code", call(push_code) & 0xff, 5);
    report_eq("lock xadd on the next instruction", call(xadd_code), 5);
    report_eq("lock cmpxchg on the next instruction", call(cmpxchg_code), 9);
    report_eq("a 16-byte store over the next instruction", call(sse_code), 0x77);
    report_eq("a patched jump", call(jmp_patch), 2);
}

/* The code of `mid` is translated first, so that what is made from the start ends there and goes on to it. */
static void joined(void)
{
    static const u8 code[] = { 0xb9, 1, 0, 0, 0,                           /* start: mov $1, %ecx */
                               0xb8, 10, 0, 0, 0, 0x01, 0xc8, 0xff, 0xc0, 0x90, 0x90, 0xc3 }; /* mid: mov $10, %eax; add %ecx, %eax; inc %eax; ... */
    u8 *start = page + 256, *mid = start + 5;
    memcpy(start, code, sizeof(code));
    call(mid);
    report_eq("code that runs on into code with an entry of its own", call(start), 12);
    bool ok = true;
    for (u32 i = 0; i < 300; i++) {
        *(volatile u32 *)(i % 3 ? mid + 1 : start + 1) = i;
        u32 want = *(volatile u32 *)(start + 1) + *(volatile u32 *)(mid + 1) + 1;
        ok &= call(start) == want;
        if (i % 5 == 0)
            call(mid);
        ok &= call(start) == want;
    }
    report("either half rewritten, 300 times", ok);
    mid[5] = 0x29; /* sub %ecx, %eax: another shape */
    report_eq("an instruction behind the entry replaced", call(start),
              *(volatile u32 *)(mid + 1) - *(volatile u32 *)(start + 1) + 1);
}

static void functions(void)
{
    bool ok = true;
    for (u32 i = 0; i < 100000; i++) {
        emit_mov_ret(page, i);
        ok &= call(page) == i;
    }
    report("re-emit a function and call it, 100000 times", ok);
    ok = true;
    for (u32 i = 0; i < 20000; i++) {
        emit_mov_ret(page + 16, i);
        emit_mov_ret(page + 64, ~i);
        ok &= call(page + 16) == i && call(page + 64) == ~i;
    }
    report("two functions in one page, 20000 times", ok);
    ok = true;
    for (u32 i = 0; i < 20000; i++) {
        *(volatile u32 *)(page + 17) = i; /* the operand only */
        ok &= call(page + 16) == i;
    }
    report("patch an operand, 20000 times", ok);
    for (u32 i = 0; i < 20000; i++) {
        *(volatile u8 *)(page + 18) = (u8)i;
        ok &= (call(page + 16) >> 8 & 0xff) == (i & 0xff);
    }
    report("patch one byte of an operand, 20000 times", ok);

    /* Bump allocation, as JITs do: each function follows the last in the same pages. */
    u8 *pages = (u8 *)pages_alloc(64, PAGE);
    ok = true;
    for (u32 i = 0; i < 64 * PAGE / 16; i++) {
        emit_mov_ret(pages + i * 16, i);
        ok &= call(pages + i * 16) == i && call(pages + (i / 2) * 16) == i / 2;
    }
    report("16384 functions emitted one after the other", ok);
    ok = true;
    for (u32 round = 0; round < 4; round++) {
        for (u32 i = 0; i < 64 * PAGE / 16; i++)
            emit_mov_ret(pages + i * 16, i + round);
        for (u32 i = 0; i < 64 * PAGE / 16; i++)
            ok &= call(pages + i * 16) == i + round;
    }
    report("all overwritten four times", ok);

    /* Code and data in one page: stores beside the code, reads of it, never change it. */
    emit_mov_ret(page, 77);
    ok = true;
    volatile u32 *data = (volatile u32 *)(page + 2048);
    for (u32 i = 0; i < 100000; i++) {
        data[i & 15] = i;
        ok &= (i & 7) || (call(page) == 77 && data[i & 15] == i);
    }
    report("code and data in one page, 100000 stores", ok);
    volatile u32 *near = (volatile u32 *)(page + 8); /* the very next bytes */
    for (u32 i = 0; i < 20000; i++) {
        *near = i;
        ok &= call(page) == 77 && *near == i;
    }
    report("data right behind the code, 20000 stores", ok);
    /* Loads see what was stored, whole and in part. */
    *(volatile u64 *)page = 0x1122334455667788;
    report("reading back a code page",
           *(volatile u32 *)(page + 4) == 0x11223344 && *(volatile u8 *)page == 0x88);
    /* A function that changes what follows the call of it. */
    static const u8 caller[] = {
        0xe8, 0x0b, 0,    0,    0, /* call patch */
        0xb8, 1,    0,    0,    0, /* mov $1, %eax (patched) */
        0xc3, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc6,
        0x05, 0xef, 0xff, 0xff, 0xff, 0x05, /* patch: movb $5, -17(%rip) -> the operand of mov */
        0xc3,
    };
    memcpy(page, caller, sizeof(caller));
    report_eq("the callee patches what it returns to", call(page), 5);
}

static void crossing(void)
{
    /* mov $imm32, %eax with its last two bytes in the next page. */
    u8 *two = (u8 *)pages_alloc(2, PAGE), *p = two + PAGE - 3;
    bool ok = true;
    for (u32 i = 0; i < 2000; i++) {
        emit_mov_ret(p, i * 0x10001);
        ok &= call(p) == i * 0x10001;
    }
    report("an instruction across two pages, re-emitted", ok);
    for (u32 i = 0; i < 2000; i++) {
        *(volatile u8 *)(two + PAGE + 1) = (u8)i; /* its most significant byte */
        ok &= call(p) >> 24 == (i & 0xff);
    }
    report("only its second page written", ok);
    for (u32 i = 0; i < 2000; i++) {
        *(volatile u8 *)(two + PAGE - 2) = (u8)i;
        ok &= (call(p) & 0xff) == (i & 0xff);
    }
    report("only its first page written", ok);
    for (u32 i = 0; i < 2000; i++) {
        *(volatile u32 *)(p + 1) = i;
        ok &= call(p) == i;
    }
    report("one store across both", ok);
    /* Same linear page pair, another second page behind it. */
    u8 *va = (u8 *)PAGE3;
    u64 a = pages_alloc(3, PAGE);
    map(va, a, RWX);
    map(va + PAGE, a + PAGE, RWX);
    emit_mov_ret(va + PAGE - 3, 0x11223344);
    *(volatile u8 *)(a + 2 * PAGE) = 0x99;
    *(volatile u8 *)(a + 2 * PAGE + 1) = 0x88;
    *(volatile u8 *)(a + 2 * PAGE + 2) = 0xc3;
    report_eq("across two mapped pages", call(va + PAGE - 3), 0x11223344);
    map(va + PAGE, a + 2 * PAGE, RWX);
    report_eq("the second remapped", call(va + PAGE - 3), 0x88993344);
    map(va + PAGE, a + PAGE, RWX);
    report_eq("and back", call(va + PAGE - 3), 0x11223344);
    unmap(va);
    unmap(va + PAGE);
}

static void aliases(void)
{
    u64 pa = page_alloc();
    u8 *x = (u8 *)PAGE3, *w = (u8 *)(PAGE3 + 8 * PAGE);
    map(x, pa, PTE_P | PTE_U);
    map(w, pa, PTE_P | PTE_W | PTE_U | PTE_NX);
    bool ok = true;
    for (u32 i = 0; i < 5000; i++) {
        emit_mov_ret(w, i);
        ok &= call(x) == i;
    }
    report("written through a writable alias, 5000 times", ok);
    for (u32 i = 0; i < 5000; i++) {
        emit_mov_ret((u8 *)pa, i);
        ok &= call(x) == i;
    }
    report("written through the identity map, 5000 times", ok);
    /* Two code mappings of one page; position-independent code, and code that depends on RIP. */
    u8 *y = (u8 *)0xffff900000000000ull;
    map(y, pa, PTE_P | PTE_U);
    static const u8 lea_ret[] = {0x48, 0x8d, 0x05, 0,    0,   0, 0,
                                 0x48, 0xc1, 0xe8, 0x10, 0xc3}; /* lea (%rip), %rax; shr $16 */
    memcpy(w, lea_ret, sizeof(lea_ret));
    ok = true;
    for (int i = 0; i < 100; i++)
        ok &= call(x) == (u32)((u64)x >> 16) && call(y) == (u32)((u64)y >> 16);
    report("RIP-relative code at two addresses", ok);
    for (u32 i = 0; i < 1000; i++) {
        emit_mov_ret(w, i);
        ok &= call(x) == i && call(y) == i;
    }
    report("both mappings see the change", ok);
    unmap(w);
    unmap(y);

    /* The same address, another page: remap, and a jump that was chained to it. */
    u64 pb = page_alloc();
    emit_mov_ret((u8 *)pa, 0xa);
    emit_mov_ret((u8 *)pb, 0xb);
    u8 *jumper = page;
    jumper[0] = 0xe9; /* jmp x */
    ok = true;
    *(volatile u32 *)(jumper + 1) = (u32)((u64)x - ((u64)jumper + 5));
    for (int i = 0; i < 1000; i++) {
        map(x, i & 1 ? pb : pa, PTE_P | PTE_U);
        u32 want = i & 1 ? 0xb : 0xa;
        ok &= call(jumper) == want && call(x) == want && call(jumper) == want;
    }
    report("code page remapped with invlpg, reached by a direct jump", ok);
    jumper[0] = 0xe8; /* call x; ret */
    jumper[5] = 0xc3;
    for (int i = 0; i < 1000; i++) {
        *(volatile u64 *)pt_entry(x, 1) = (i & 1 ? pb : pa) | PTE_P | PTE_U;
        flush_tlb();
        ok &= call(jumper) == (i & 1 ? 0xbu : 0xau);
    }
    report("remapped with a CR3 load, reached by a direct call", ok);
    unmap(x);
    report("unmapped: the jump faults at its target", TRY("call *%0", ::"r"(jumper)
                                                          : "rax", "memory") == PF &&
                                                          faulted(PF_I, x) && trap.r.rip == (u64)x);
    map(x, pa, PTE_P | PTE_U | PTE_NX);
    report("no-execute: the same with P", TRY("call *%0", ::"r"(jumper)
                                              : "rax", "memory") == PF &&
                                              faulted(PF_I | PF_P, x));
    unmap(x);
}

/* The page that holds code is rewritten as a whole: a loader reusing memory. */
static void reuse(void)
{
    u8 *p = (u8 *)page_alloc();
    bool ok = true;
    for (u32 i = 0; i < 500; i++) {
        memset(p, 0x90, PAGE);
        emit_mov_ret(p + 256 + i % 1024, i);
        ok &= call(p + i % 256) == i;
    }
    report("a page filled anew with rep stos, 500 times", ok);
    u8 *q = (u8 *)page_alloc();
    for (u32 i = 0; i < 500; i++) {
        emit_mov_ret(q, i);
        u64 s = (u64)q, d = (u64)p, c = PAGE / 8;
        asm volatile("rep movsq" : "+S"(s), "+D"(d), "+c"(c)::"memory");
        ok &= call(p) == i;
    }
    report("a page copied over with rep movs, 500 times", ok);
    /* User code written by the kernel, run in ring 3. */
    map((void *)PAGE3, (u64)p, RWX);
    for (u32 i = 0; i < 500; i++) {
        emit_mov_ret(p, i);
        ok &= user_call((void *)PAGE3, 0, 0, 0) == i;
    }
    report("ring 3 code written by the kernel, 500 times", ok);
    /* Ring 3 patches its own code: the function at +64 stores into the one at 0. */
    static const u8 patch[] = {0x89, 0x3d, 0xbb, 0xff,
                               0xff, 0xff, 0xeb, 0xb8}; /* mov %edi, -69(%rip); jmp -72 */
    memcpy(p + 64, patch, sizeof(patch));
    emit_mov_ret(p, 0);
    for (u32 i = 0; i < 500; i++)
        ok &= user_call((void *)(PAGE3 + 64), i, 0, 0) == i;
    report("ring 3 patches itself, 500 times", ok);
    unmap((void *)PAGE3);
}

/* Single bytes swapped under a running loop by an interrupt-free "other party": int3 patching. */
static void text_poke(void)
{
    emit_mov_ret(page, 5);
    bool ok = true;
    for (int i = 0; i < 1000; i++) {
        page[0] = 0xcc;
        unsigned v = TRY("call *%0", ::"r"(page) : "rax", "memory");
        ok &= v == BP && trap.r.rip == (u64)page + 1;
        *(volatile u32 *)(page + 1) = (u32)i;
        page[0] = 0xb8;
        ok &= call(page) == (u32)i;
    }
    report("int3, patch, restore, 1000 times", ok);
}

/* REP STOS and REP MOVS over pages that hold code, as a kernel clears and copies pages that held programs. */
static u8 model[2 * PAGE];
static void code_in(u8 *p)
{
    for (unsigned at = 0; at < PAGE; at += 500) {
        emit_mov_ret(p + at, at);
        report_eq("code in the page", call(p + at), at);
    }
    memcpy(model, p, PAGE);
}
/* rep movs of n elements of a size, as the manual has it: one after the other. */
static void model_movs(unsigned to, unsigned from, unsigned n, unsigned size)
{
    for (unsigned i = 0; i < n * size; i += size) {
        u64 x = 0;
        memcpy(&x, model + from + i, size);
        memcpy(model + to + i, &x, size);
    }
}
static void strings_over_code(void)
{
    u8 *p = page, *va = (u8 *)PAGE3;
    map(va, (u64)p, PTE_P | PTE_W);
    unmap(va + PAGE);

    code_in(p);
    asm volatile("rep stosb" ::"D"(p + 3), "c"(PAGE - 7), "a"(0x90) : "memory");
    memset(model + 3, 0x90, PAGE - 7);
    report("rep stosb over code", !memcmp(p, model, PAGE));
    emit_mov_ret(p + 500, 17);
    report_eq("what is there now runs", call(p + 500), 17);
    code_in(p);
    asm volatile("rep stosq" ::"D"(p + 1), "c"(PAGE / 8 - 1), "a"(0x1122334455667788) : "memory");
    for (unsigned i = 1; i + 8 <= PAGE - 7; i += 8)
        memcpy(model + i, (u64[]){ 0x1122334455667788 }, 8);
    report("rep stosq, misaligned", !memcmp(p, model, PAGE));

    /* Overlapping: forwards by less than an element, by some, by more than goes at once; backwards. */
    static const struct { u16 to, from; u8 size; } moves[] = {
        { 103, 100, 1 }, { 103, 100, 8 }, { 101, 100, 4 }, { 700, 100, 8 }, { 100, 103, 8 }, { 100, 900, 2 }, { 164, 100, 1 },
    };
    for (unsigned i = 0; i < sizeof(moves) / sizeof(*moves); i++) {
        unsigned n = 3000 / moves[i].size;
        u8 *to = p + moves[i].to, *from = p + moves[i].from;
        code_in(p);
        if (moves[i].size == 1)
            asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
        else if (moves[i].size == 2)
            asm volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(n)::"memory");
        else if (moves[i].size == 4)
            asm volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(n)::"memory");
        else
            asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n)::"memory");
        model_movs(moves[i].to, moves[i].from, 3000 / moves[i].size, moves[i].size);
        reportf(!memcmp(p, model, PAGE), "rep movs of %u bytes from %u to %u over code", moves[i].size, moves[i].from, moves[i].to);
    }

    /* Into a page that is not there: all before it is done, and no more. */
    code_in(p);
    u64 di = (u64)va + 100, cx = PAGE;
    unsigned v = TRY("mov %0, %%rdi; mov %1, %%rcx; mov $0xcc, %%al; rep stosb", ::"r"(di), "r"(cx) : "rdi", "rcx", "rax", "memory");
    memset(model + 100, 0xcc, PAGE - 100);
    report("rep stosb from code into an absent page", v == PF && trap.cr2 == (u64)va + PAGE && trap.r.rcx == 100 &&
                                                          trap.r.rdi == (u64)va + PAGE && !memcmp(p, model, PAGE));
    /* From the end of a page: a word that crosses goes by itself. */
    code_in(p);
    v = TRY("mov %0, %%rdi; mov %1, %%rcx; mov $0xcccc, %%eax; rep stosw", ::"r"(di + 1), "r"(cx) : "rdi", "rcx", "rax", "memory");
    memset(model + 101, 0xcc, PAGE - 102);
    report("rep stosw likewise", v == PF && trap.cr2 == (u64)va + PAGE && trap.r.rdi == (u64)va + PAGE - 1 &&
                                     !memcmp(p, model, PAGE));
    unmap(va);
}

int main(void)
{
    page = (u8 *)page_alloc();
    nearby();
    joined();
    functions();
    crossing();
    aliases();
    reuse();
    text_poke();
    strings_over_code();
    return 0;
}
