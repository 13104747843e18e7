/*
 * templates.c - code that is written again and again in one shape, with other constants, and then in another shape: what JITs,
 * patchers and loaders do. An engine may keep what it made of the first; it must never run that for the second.
 */
#include "lib/guest.h"

static u8 *page;
static u64 seed = 0x9e3779b97f4a7c15ull;

static u32 random32(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (u32)(seed >> 16);
}

struct result { u64 a, d; };
static struct result call(const void *code, u64 di, u64 si)
{
    struct result r = { 0, 0 };
    asm volatile("call *%[f]"
                 : "+a"(r.a), "+d"(r.d), "+D"(di), "+S"(si)
                 : [f] "b"(code)
                 : "rcx", "r8", "r9", "r10", "r11", "r14", "r15", "memory", "cc");
    return r;
}

/* One store of each width a writer may use. */
static void put(u8 *at, u64 value, unsigned size)
{
    switch (size) {
    case 1: *(volatile u8 *)at = (u8)value; break;
    case 2: *(volatile u16 *)at = (u16)value; break;
    case 4: *(volatile u32 *)at = (u32)value; break;
    default: *(volatile u64 *)at = value;
    }
}

/* Every operation whose immediate is copied, on registers of each kind. Markers are replaced. */
#define M(n) (0x5a5a5a00u + (n))
KERNEL_ASM("alu: mov $0x5a5a5a00, %eax\n mov $0x5a5a5a01, %r11d\n add $0x5a5a5a02, %eax\n or $0x5a5a5a03, %r11d\n"
           "xor $0x5a5a5a04, %r14d\n sub $0x5a5a5a05, %eax\n adc $0x5a5a5a06, %r11d\n and $0x5a5a5a07, %r11d\n"
           "imul $0x5a5a5a08, %eax, %r15d\n sbb $0x5a5a5a09, %eax\n xor %r15d, %eax\n add %r11d, %eax\n ret\n alu_end:");
extern u8 alu[], alu_end[];

static void operations(void)
{
    u32 imm[10];
    u8 *at[10] = { 0 };
    u8 *code = page + 64;
    memcpy(code, alu, (size_t)(alu_end - alu));
    for (u8 *p = code; p < code + (alu_end - alu) - 4; p++)
        for (unsigned i = 0; i < 10; i++)
            if (*(u32 *)p == M(i))
                at[i] = p;
    for (unsigned i = 0; i < 10; i++)
        put(at[i], imm[i] = random32(), 4);
    bool ok = true;
    for (unsigned round = 0; round < 5000; round++) {
        for (unsigned n = random32() % 4; n--;) {
            unsigned i = random32() % 10;
            u32 v = round & 1 ? random32() : (imm[i] & 0xffffff00) | (random32() & 0xff);
            imm[i] = v;
            put(at[i], v, round & 1 ? 4 : 1);
        }
        u32 a = imm[0] + imm[2], r11 = imm[1] | imm[3], borrow = a < imm[5];
        a -= imm[5];
        u64 sum = (u64)r11 + imm[6] + borrow;
        r11 = (u32)sum & imm[7];
        s64 product = (s64)(int)a * (int)imm[8];
        u32 over = product != (int)product;
        u32 want = ((a - imm[9] - over) ^ (u32)product) + r11;
        ok &= (u32)call(code, 0, 0).a == want;
    }
    report("ten operations, some of their immediates patched, 5000 times", ok);
    for (unsigned round = 0; round < 2000; round++) { /* all written, nothing changed */
        u32 before = (u32)call(code, 0, 0).a;
        for (u8 *p = code; p < code + (alu_end - alu); p++)
            *(volatile u8 *)p = *p;
        ok &= (u32)call(code, 0, 0).a == before;
    }
    report("the same bytes written over it, 2000 times", ok);
}

static void widths(void)
{
    static const u8 text[] = {
        0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, /* +2: mov $imm64, %rax */
        0xb0, 0,                            /* +11: mov $imm8, %al */
        0xb4, 0,                            /* +13: mov $imm8, %ah */
        0x41, 0xb3, 0,                      /* +16: mov $imm8, %r11b */
        0x66, 0xba, 0, 0,                   /* +19: mov $imm16, %dx */
        0x66, 0x41, 0x81, 0xf2, 0, 0,       /* +25: xor $imm16, %r10w */
        0x83, 0xf0, 0,                      /* +29: xor $simm8, %eax */
        0x48, 0x05, 0, 0, 0, 0,             /* +32: add $simm32, %rax */
        0xc3,
    };
    static const struct { u8 off, size; } imm[] = { { 2, 8 }, { 11, 1 }, { 13, 1 }, { 16, 1 }, { 19, 2 }, { 25, 2 }, { 29, 1 }, { 32, 4 } };
    u8 *code = page + 512;
    memcpy(code, text, sizeof(text));
    bool ok = true;
    for (unsigned round = 0; round < 4000; round++) {
        unsigned i = random32() % ARRAY_LEN(imm);
        put(code + imm[i].off, (u64)random32() << 32 | random32(), imm[i].size);
        u64 a = *(u64 *)(code + 2);
        a = (a & ~0xffffull) | code[11] | (u64)code[13] << 8;
        a = (u32)a ^ (u32)(signed char)code[29];
        a += (u64)(s64)*(int *)(code + 32);
        struct result r = call(code, 0, 0);
        ok &= r.a == a && (u16)r.d == *(u16 *)(code + 19);
    }
    report("immediates of 1, 2, 4 and 8 bytes", ok);
}

/* Four shapes in turn at one place, of other lengths and meanings. */
static void shapes(void)
{
    u8 *code = page + 1024;
    bool ok = true;
    for (unsigned round = 0; round < 4000; round++) {
        u32 v = random32(), want = 0;
        switch (random32() % 5) {
        case 0:
            memcpy(code, (u8[]){ 0xb8, 0, 0, 0, 0, 0xc3 }, 6); /* mov $v, %eax */
            put(code + 1, want = v, 4);
            break;
        case 1:
            memcpy(code, (u8[]){ 0x89, 0xf8, 0x05, 0, 0, 0, 0, 0xc3 }, 8); /* mov %edi, %eax; add $v, %eax */
            put(code + 3, v, 4);
            want = 77 + v;
            break;
        case 2:
            memcpy(code, (u8[]){ 0x89, 0xf8, 0x2d, 0, 0, 0, 0, 0xc3 }, 8); /* sub: one byte is different */
            put(code + 3, v, 4);
            want = 77 - v;
            break;
        case 3:
            memcpy(code, (u8[]){ 0x89, 0xf0, 0x05, 0, 0, 0, 0, 0xc3 }, 8); /* mov %esi: its register is */
            put(code + 3, v, 4);
            want = 99 + v;
            break;
        default:
            memcpy(code, (u8[]){ 0x89, 0xf8, 0x05, 0, 0, 0, 0, 0x90, 0x90, 0xff, 0xc0, 0xc3 }, 12); /* longer */
            put(code + 3, v, 4);
            want = 78 + v;
        }
        ok &= (u32)call(code, 77, 99).a == want;
    }
    report("five shapes in turn at one place", ok);
}

/* Immediates on which more depends than a copy of them: what addresses are, and which flags survive. */
static void meanings(void)
{
    bool ok = true;
    u8 *code = page + 1536;
    static const u8 frame[] = {
        0x48, 0x83, 0xec, 16,   /* sub $n, %rsp        */
        0x48, 0x89, 0x3c, 0x24, /* mov %rdi, (%rsp)    */
        0x48, 0x89, 0x74, 0x24, 8, /* mov %rsi, 8(%rsp) */
        0x48, 0x8b, 0x04, 0x24, /* mov (%rsp), %rax    */
        0x48, 0x2b, 0x44, 0x24, 8, /* sub 8(%rsp), %rax */
        0x48, 0x83, 0xc4, 16,   /* add $n, %rsp        */
        0xc3,
    };
    memcpy(code, frame, sizeof(frame));
    for (unsigned round = 0; round < 2000; round++) {
        u8 n = (u8)(16 + random32() % 12 * 8);
        put(code + 3, n, 1);
        put(code + 25, n, 1);
        u64 a = random32(), b = random32();
        ok &= call(code, a, b).a == a - b;
    }
    report("a stack frame of another size each time", ok);

    static const u8 walk[] = {
        0x8b, 0x07,             /* mov (%rdi), %eax    */
        0x48, 0x83, 0xc7, 4,    /* add $n, %rdi        */
        0x03, 0x07,             /* add (%rdi), %eax    */
        0x48, 0x83, 0xef, 4,    /* sub $m, %rdi        */
        0x03, 0x47, 8,          /* add 8(%rdi), %eax   */
        0xc3,
    };
    /* Beside each other in address, not in memory. */
    u64 pa = pages_alloc(4, PAGE);
    map((u8 *)PAGE3, pa + 2 * PAGE, PTE_P | PTE_W);
    map((u8 *)PAGE3 + PAGE, pa, PTE_P | PTE_W);
    u32 *table = (u32 *)(PAGE3 + PAGE) - 32;
    for (unsigned i = 0; i < 64; i++)
        table[i] = random32();
    code = page + 1664;
    memcpy(code, walk, sizeof(walk));
    ok = true;
    for (unsigned round = 0; round < 2000; round++) {
        unsigned n = random32() % 8, m = random32() % 8, at = 16 + random32() % 24;
        put(code + 5, n * 4, 1);
        put(code + 11, m * 4, 1);
        ok &= (u32)call(code, (u64)(table + at), 0).a == table[at] + table[at + n] + table[at + n - m + 2];
    }
    unmap((u8 *)PAGE3);
    unmap((u8 *)PAGE3 + PAGE);
    report("a pointer moved by another distance each time", ok);

    static const u8 shift[] = {
        0x89, 0xf8,             /* mov %edi, %eax      */
        0x01, 0xc0,             /* add %eax, %eax: CF  */
        0x8b, 0x0c, 0x24,       /* mov (%rsp), %ecx: a check, for which flags are put away if they matter */
        0xc1, 0xe6, 0,          /* shl $n, %esi: CF, or as it was */
        0x19, 0xc0,             /* sbb %eax, %eax      */
        0xc3,
    };
    code = page + 1792;
    memcpy(code, shift, sizeof(shift));
    ok = true;
    for (unsigned round = 0; round < 2000; round++) {
        unsigned n = random32() % 3;
        u32 a = random32(), b = random32();
        put(code + 9, n, 1);
        u32 cf = n ? b >> (32 - n) & 1 : a >> 31;
        ok &= (u32)call(code, a, b).a == 0 - cf;
    }
    report("a shift by another count each time, 0 among them", ok);

    static const u8 branch[] = {
        0xb8, 1, 0, 0, 0,       /* mov $1, %eax        */
        0x81, 0xff, 0, 0, 0, 0, /* cmp $imm, %edi      */
        0x72, 0,                /* jb +n               */
        0xb8, 2, 0, 0, 0,       /* mov $2, %eax        */
        0x05, 0, 0, 0, 0,       /* add $imm, %eax      */
        0xc3,
    };
    code = page + 1920;
    memcpy(code, branch, sizeof(branch));
    ok = true;
    for (unsigned round = 0; round < 3000; round++) {
        u32 limit = random32(), plus = random32(), arg = random32();
        bool skip5 = random32() & 1;
        put(code + 7, limit, 4);
        put(code + 12, skip5 ? 5 : 0, 1);
        put(code + 19, plus, 4);
        ok &= (u32)call(code, arg, 0).a == (skip5 && arg < limit ? 1 : 2) + plus;
    }
    report("a branch, what it compares with and where it leads", ok);
}

/* What a block does with the flags depends on the code it leads to. */
static void flags(void)
{
    u8 *first = page + 2048, *next = page + 2048 + 96;
    static const u8 head[] = { /* xor %edx, %edx; mov %edi, %eax; add %esi, %eax; mov (%rsp), %ecx: a check; jmp next */
        0x31, 0xd2, 0x89, 0xf8, 0x01, 0xf0, 0x8b, 0x0c, 0x24, 0xeb, 96 - 11
    };
    static const u8 tail[] = { 0xba, 0, 0, 0, 0, 0x81, 0xf2, 0x55, 0, 0, 0, 0xc3 }; /* mov $v, %edx; xor $0x55, %edx; ret */
    memcpy(first, head, sizeof(head));
    memcpy(next, tail, sizeof(tail));
    bool ok = true;
    for (unsigned round = 0; round < 4000; round++) {
        u32 v = random32(), a = random32(), b = random32(), want_d;
        unsigned carry = (u64)a + b > 0xffffffff;
        switch (random32() % 3) {
        case 0: /* overwrites them */
            memcpy(next, tail, sizeof(tail));
            put(next + 1, v, 4);
            want_d = v ^ 0x55;
            break;
        case 1: /* reads them, behind an instruction with an immediate */
            memcpy(next, tail, sizeof(tail));
            next[6] = 0xd2; /* adc $0x55, %edx */
            put(next + 1, v, 4);
            want_d = v + 0x55 + carry;
            break;
        default: /* only the immediate of what is there */
            put(next + 1, v, 4);
            want_d = next[6] == 0xf2 ? v ^ 0x55 : v + 0x55 + carry;
        }
        if (random32() % 8 == 0)
            first[0] ^= 0x31 ^ 0x29; /* sub for xor: made anew, for what next is now */
        struct result r = call(first, a, b);
        ok &= (u32)r.a == a + b && (u32)r.d == want_d;
    }
    report("flags over a jump to code that changes", ok);
}

/* Blocks with more immediates, or more bytes, than anyone would keep; and blocks at a page's ends. */
static void sizes(void)
{
    u8 *two = (u8 *)pages_alloc(2, PAGE), *p = two;
    bool ok = true;
    for (unsigned i = 0; i < 30; i++) {
        memcpy(p, (u8[]){ 0x81, 0xc0 | (i % 2 ? 0 : 6) << 3, 0, 0, 0, 0 }, 6); /* xor, add $imm, %eax */
        p += 6;
    }
    *p = 0xc3;
    for (unsigned round = 0; round < 2000; round++) {
        put(two + random32() % 30 * 6 + 2, random32(), 4);
        u32 want = 0;
        for (unsigned i = 0; i < 30; i++) {
            u32 v = *(u32 *)(two + i * 6 + 2);
            want = i % 2 ? want + v : want ^ v;
        }
        ok &= (u32)call(two, 0, 0).a == want;
    }
    report("thirty immediates", ok);
    p = two + 1000;
    for (unsigned i = 0; i < 40; i++, p += 10)
        memcpy(p, (u8[]){ 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0 }, 10); /* mov $imm64, %rax */
    *p = 0xc3;
    ok = true;
    for (unsigned round = 0; round < 1000; round++) {
        put(two + 1000 + random32() % 40 * 10 + 2, random32(), 8);
        ok &= call(two + 1000, 0, 0).a == *(u64 *)(p - 8);
    }
    report("four hundred bytes", ok);
    ok = true;
    for (unsigned back = 3; back < 10; back++) /* ends before, at, and behind the page's end */
        for (unsigned round = 0; round < 300; round++) {
            u32 v = random32();
            memcpy(two + PAGE - back, (u8[]){ 0xb8, 0, 0, 0, 0, 0xc3 }, 6);
            put(two + PAGE - back + 1, v, 4);
            ok &= (u32)call(two + PAGE - back, 0, 0).a == v;
        }
    report("at and across a page's end", ok);
    ok = true;
    for (unsigned round = 0; round < 2000; round++) {
        u32 v = random32();
        memcpy(two, (u8[]){ 0xff, 0xc8, 0x75, 0xfc, 0x05, 0, 0, 0, 0, 0xc3 }, 10); /* 1: dec %eax; jnz 1b; add $v, %eax */
        put(two + 5, v, 4);
        u64 a = 3;
        asm volatile("call *%1" : "+a"(a) : "b"(two) : "memory", "cc");
        ok &= (u32)a == v;
    }
    report("a loop at a page's start", ok);
}

/* One page, run by both rings and by 32-bit code; reached by links as well. */
static void modes(void)
{
    u8 *p = (u8 *)page_alloc(), *user = (u8 *)PAGE3;
    map(user, (u64)p, PTE_P | PTE_W | PTE_U);
    bool ok = true;
    memcpy(p, (u8[]){ 0xb8, 0, 0, 0, 0, 0xc3 }, 6);
    for (unsigned round = 0; round < 2000; round++) {
        u32 v = random32();
        put(p + 1, v, 4);
        if (round % 3 != 1)
            ok &= (u32)call(p, 0, 0).a == v;
        if (round % 3 != 2)
            ok &= (u32)user_call(user, 0, 0, 0) == v;
    }
    report("run in ring 0 and ring 3", ok);
    memcpy(p + 64, (u8[]){ 0xeb, 0xbe, 0xe8, 0xb9, 0xff, 0xff, 0xff, 0x01, 0xc0, 0xc3 }, 10); /* jmp p; call p; add %eax, %eax; ret */
    ok = true;
    for (unsigned round = 0; round < 2000; round++) {
        u32 v = random32();
        if (round % 5)
            put(p + 1, v, 4);
        else
            memcpy(p, (u8[]){ 0xb8, (u8)v, (u8)(v >> 8), (u8)(v >> 16), (u8)(v >> 24), 0xc3 }, 6);
        ok &= (u32)call(p + 64, 0, 0).a == v && (u32)call(p + 66, 0, 0).a == 2 * v;
    }
    report("reached by a jump and a call in its page", ok);
    unmap(user);
}

/* Ring 3 code that jumps to functions in other pages, from many places: they are dropped, come back, and change places. */
static void pages(void)
{
    enum { N = 4 };
    u8 *user = (u8 *)PAGE3, *to[N];
    u64 pa = pages_alloc(N + 1, PAGE);
    u32 value[N] = { 0 };
    unsigned there[N]; /* which function is at the n-th linear page */
    map(user, pa, PTE_P | PTE_W | PTE_U);
    for (unsigned i = 0; i < N; i++) {
        to[i] = (u8 *)pa + (i + 1) * PAGE;
        memcpy(to[i], (u8[]){ 0xb8, 0, 0, 0, 0, 0xc3 }, 6);
        there[i] = i;
        map(user + (i + 1) * PAGE, (u64)to[i], PTE_P | PTE_U);
    }
    for (unsigned at = 0; at < PAGE; at += 16) { /* jmp to one of them */
        unsigned distance = (at / 16 % N + 1) * PAGE - (at + 5);
        memcpy((u8 *)pa + at, (u8[]){ 0xe9, (u8)distance, (u8)(distance >> 8), (u8)(distance >> 16), (u8)(distance >> 24) }, 5);
    }
    bool ok = true;
    for (unsigned round = 0; round < 20000; round++) {
        for (unsigned n = random32() % (N + 1); n--;) {
            unsigned i = random32() % N;
            put(to[i] + 1, value[i] = random32(), 4);
        }
        if (random32() % 4 == 0) {
            unsigned i = random32() % N, k = random32() % N, was = there[i];
            there[i] = there[k];
            there[k] = was;
            map(user + (i + 1) * PAGE, (u64)to[there[i]], PTE_P | PTE_U);
            map(user + (k + 1) * PAGE, (u64)to[there[k]], PTE_P | PTE_U);
        }
        for (unsigned n = 0; n < 2; n++) {
            unsigned i = random32() % N;
            ok &= (u32)user_call(user + (round / 64 % 64 * N + i) * 16, 0, 0, 0) == value[there[i]];
        }
    }
    report("jumps to functions in four other pages, which change places", ok);
    for (unsigned i = 0; i <= N; i++)
        unmap(user + i * PAGE);
}

int main(void)
{
    page = (u8 *)page_alloc();
    operations();
    widths();
    shapes();
    meanings();
    flags();
    sizes();
    modes();
    pages();
    return 0;
}
