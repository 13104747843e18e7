/*
 * Integer loops of 32- and 16-bit code, timed: `# time NAME CYCLES` lines for bench/modes, and a check of each result.
 * 32-bit flat protected mode without and with paging; real mode with 16-bit code as DOS programs had it.
 */
#include "legacy/lib/legacy.h"

#define N 3
static u32 table[256];
static u8 sieve_map[65536];
static u32 words[4096];

static NOINLINE u32 w_sieve(void)
{
    u32 count = 0;
    memset(sieve_map, 1, sizeof(sieve_map));
    for (u32 i = 2; i < sizeof(sieve_map); i++) {
        if (!sieve_map[i])
            continue;
        count++;
        for (u32 j = i * 2; j < sizeof(sieve_map); j += i)
            sieve_map[j] = 0;
    }
    return count;
}
static NOINLINE u32 w_crc(void)
{
    for (u32 i = 0; i < 256; i++) {
        u32 c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
        table[i] = c;
    }
    u32 crc = ~0u;
    for (u32 i = 0; i < 200000; i++)
        crc = table[(crc ^ (i * 7)) & 255] ^ crc >> 8;
    return ~crc;
}
static NOINLINE u32 w_sort(void)
{
    u32 seed = 12345;
    for (u32 i = 0; i < ARRAY_LEN(words); i++)
        words[i] = seed = seed * 1664525 + 1013904223;
    for (u32 gap = ARRAY_LEN(words) / 2; gap; gap /= 2) /* shell sort */
        for (u32 i = gap; i < ARRAY_LEN(words); i++) {
            u32 t = words[i], j = i;
            for (; j >= gap && words[j - gap] > t; j -= gap)
                words[j] = words[j - gap];
            words[j] = t;
        }
    u32 sum = 0;
    for (u32 i = 0; i < ARRAY_LEN(words); i++)
        sum = sum * 31 + words[i];
    return sum;
}
static NOINLINE u32 fib(u32 n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}
static NOINLINE u32 w_fib(void) { return fib(23); }
static NOINLINE u32 w_regs(void)
{
    u32 a = 1, b = 2, c = 3;
    for (u32 i = 0; i < 1000000; i++) {
        a = a * 5 + b;
        b ^= a >> 3;
        c += b & 0xff;
    }
    return a ^ b ^ c;
}
static NOINLINE u32 w_bytes(void) /* a checksum, byte by byte, and a copy */
{
    u32 sum = 0;
    for (u32 r = 0; r < 4; r++) {
        for (u32 i = 0; i < sizeof(sieve_map); i++)
            sieve_map[i] = (u8)(i * 3 + r);
        for (u32 i = 0; i < sizeof(sieve_map); i++)
            sum = (sum << 1 | sum >> 31) + sieve_map[i];
    }
    return sum;
}
typedef u32 op_fn(u32);
static NOINLINE u32 op_a(u32 x) { return x + 3; }
static NOINLINE u32 op_b(u32 x) { return x ^ 0x55; }
static NOINLINE u32 op_c(u32 x) { return x << 1 | x >> 31; }
static NOINLINE u32 w_indirect(void)
{
    static op_fn *volatile ops[4] = { op_a, op_b, op_c, op_a };
    u32 x = 1;
    for (u32 i = 0; i < 200000; i++)
        x = ops[x >> 2 & 3](x) + i;
    return x;
}

/* 16-bit code as of old: segments, near calls, string loops, all through memory. */
SYM(s_regs);
SYM(s_sum);
SYM(s_sort);
SYM(s_sum_apart);
SYM(s_sort_apart);
SYM(s_calls);
SYM(s_far);
SYM(s_copy);
SYM(s_seg);
LOWDATA u16 s_words[1024];
LOW("s_regs: push %si\n mov $20, %si\n xor %ax, %ax\n mov $1, %bx\n 2: mov $50000, %cx\n 1: add %bx, %ax\n rol $1, %ax\n xor %cx, %bx\n dec %cx\n"
    "jnz 1b\n dec %si\n jnz 2b\n pop %si\n movzwl %ax, %eax\n ret");
/* Their data beside the code, as small programs have it, or in pages of its own */
#define SUM(name, words) LOW(name ": mov $200, %dx\n xor %ax, %ax\n 2: mov $" words ", %si\n mov $1024, %cx\n 1: add (%si), %ax\n" \
    "adc $0, %ax\n incw (%si)\n add $2, %si\n loop 1b\n dec %dx\n jnz 2b\n movzwl %ax, %eax\n ret")
/* bubble sort of 256 words */
#define SORT(name, words) LOW(name ": mov $" words ", %di\n mov $256, %cx\n mov $0x1234, %ax\n 1: imul $25173, %ax, %ax\n add $13849, %ax\n" \
    "mov %ax, (%di)\n add $2, %di\n loop 1b\n mov $255, %dx\n 2: mov %dx, %cx\n mov $" words ", %si\n 3: mov (%si), %ax\n" \
    "cmp 2(%si), %ax\n jbe 4f\n xchg 2(%si), %ax\n mov %ax, (%si)\n 4: add $2, %si\n loop 3b\n dec %dx\n jnz 2b\n" \
    "mov " words ", %ax\n shl $16, %eax\n mov " words " + 510, %ax\n ret")
SUM("s_sum", "s_words");
SUM("s_sum_apart", "0xa000");
SORT("s_sort", "s_words");
SORT("s_sort_apart", "0xa000");
LOW("s_fn: push %bp\n mov %sp, %bp\n mov 4(%bp), %ax\n add 6(%bp), %ax\n pop %bp\n ret\n"
    "s_calls: mov $60000, %cx\n xor %bx, %bx\n 1: push %bx\n push %cx\n call s_fn\n add $4, %sp\n mov %ax, %bx\n loop 1b\n movzwl %bx, %eax\n ret");
LOW("s_ffn: add %cx, %ax\n lret\n s_ffn2: add %cx, %ax\n lret\n s_far: mov $20000, %cx\n xor %ax, %ax\n 1: lcall $0, $s_ffn\n"
    "lcall $0x100, $s_ffn2 - 0x1000\n loop 1b\n"
    "movzwl %ax, %eax\n ret");
LOW("s_copy: mov $0x3000, %ax\n mov %ax, %es\n mov $100, %dx\n 2: mov $0x8000, %si\n xor %di, %di\n mov $512, %cx\n 1: mov (%si), %al\n"
    "mov %al, %es:(%di)\n inc %si\n inc %di\n loop 1b\n dec %dx\n jnz 2b\n xor %ax, %ax\n mov %ax, %es\n movzwl %di, %eax\n ret");
/* a segment load for every word, as far pointers need */
LOW("s_seg: mov $30000, %cx\n xor %ax, %ax\n mov $0x2000, %bx\n movw $0x2000, 0x7102\n movw $0x10, 0x7100\n mov %bx, %es\n movw $7, %es:0x10\n"
    "1: les 0x7100, %bx\n add %es:(%bx), %ax\n mov %cs, %dx\n mov %dx, %es\n loop 1b\n movzwl %ax, %eax\n ret");

static void timed(const char *name, u32 (*fn)(void), u32 want)
{
    u64 best = ~0ull;
    u32 got = 0;
    for (int i = 0; i < N; i++) {
        u64 t = rdtsc();
        got = fn();
        t = rdtsc() - t;
        best = t < best ? t : best;
    }
    print("# time %s %lu\n", name, best);
    report_eq(name, got, want);
}
static void timed_real(const char *name, const void *fn, u32 want)
{
    u64 best = ~0ull;
    for (int i = 0; i < N; i++) {
        memset(s_words, 0, sizeof(s_words));
        memset((void *)0xa000, 0, sizeof(s_words));
        u64 t = rdtsc();
        run_real(fn, 0);
        t = rdtsc() - t;
        best = t < best ? t : best;
    }
    print("# time %s %lu\n", name, best);
    report_eq(name, real_eax, want);
}

static void flat(const char *how)
{
    static const struct { const char *name; u32 (*fn)(void); u32 want; } work[] = {
        { "regs", w_regs, 0x2f7d92e6 }, { "sieve", w_sieve, 6542 }, { "crc", w_crc, 0x670d7a70 }, { "sort", w_sort, 0x344b4274 },
        { "fib", w_fib, 28657 }, { "bytes", w_bytes, 0xddfaff3f }, { "indirect", w_indirect, 0x175e9ed4 },
    };
    for (unsigned i = 0; i < ARRAY_LEN(work); i++) {
        char name[32];
        format(name, sizeof(name), "%s %s", how, work[i].name);
        timed(name, work[i].fn, work[i].want);
    }
}

int main(void)
{
    flat("flat32");
    /* the same with 4 MiB pages */
    u32 *pd = (u32 *)page_alloc();
    for (u32 i = 0; i < 1024; i++)
        pd[i] = i << 22 | 0x83;
    WR(cr4, RD(cr4) | CR4_PSE);
    WR(cr3, pd);
    WR(cr0, RD(cr0) | CR0_PG);
    flat("paged32");
    WR(cr0, RD(cr0) & ~CR0_PG);
    timed_real("real regs", s_regs, 0xa32);
    timed_real("real sum", s_sum, 0xf136);
    timed_real("real sort", s_sort, 0x4bfed3);
    timed_real("real sum apart", s_sum_apart, 0xf136);
    timed_real("real sort apart", s_sort_apart, 0x4bfed3);
    timed_real("real calls", s_calls, 0x4730);
    timed_real("real copy", s_copy, 0x200);
    timed_real("real far calls", s_far, 0xd220);
    timed_real("real segment loads", s_seg, 0x3450);
    return 0;
}
