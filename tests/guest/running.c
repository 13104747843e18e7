/*
 * running.c - not one of unittests.cfg: a guest for tests of what is done to a running VM from outside
 * (tests/boot/test_control.py, test_snapshot.py). It works on memory and vector registers without end, says how
 * far it is and a checksum of all it has done, watches that no clock goes backwards, and obeys the power button.
 */
#include "lib/guest.h"

#define PM1_STS 0x600 /* ACPI 6.5 §4.8.3; ports and S5 as in src/machine/layout.h */
#define PM1_CNT 0x604
#define PWRBTN_STS 0x100
#define SLP_S5 (5 << 10 | 0x2000)
#define WORDS (1u << 18)
#define STEPS 200000u

static u64 word[WORDS];

static u64 tsc(void)
{
    u32 lo, hi;
    asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (u64)hi << 32 | lo;
}

static void vector_start(u64 seed)
{
    asm volatile("fninit; mov %%cr4, %%rax; or $0x600, %%rax; mov %%rax, %%cr4\n\t"
                 "movq %0, %%xmm15; movq %0, %%mm0; emms; fld1" :: "r"(seed) : "rax");
}

/* xmm15 = xmm15 * 5 + 1 in 64-bit lanes, ST0 += 1; both come back, folded. */
static u64 vector_step(void)
{
    u64 x, st;
    asm volatile("movdqa %%xmm15, %%xmm14; psllq $2, %%xmm14; paddq %%xmm14, %%xmm15\n\t"
                 "pcmpeqd %%xmm14, %%xmm14; psubq %%xmm14, %%xmm15\n\t"
                 "fld1; faddp; fld %%st(0); fistpll %1; movq %%xmm15, %0" : "=r"(x), "=m"(st));
    return x ^ st;
}

int main(void)
{
    u64 x = 1, sum = 0, last = tsc();
    vector_start(12345);
    for (u64 step = 1;; step++) {
        for (unsigned i = 0; i < STEPS; i++) {
            x = x * 6364136223846793005ull + 1442695040888963407ull;
            u64 *w = &word[x >> 46];
            *w += x;
            sum = (sum << 5 | sum >> 59) ^ *w;
        }
        sum ^= vector_step();
        u64 now = tsc();
        if (now < last)
            print("the TSC went back by %llx\n", (unsigned long long)(last - now));
        last = now;
        print("step %llu sum %llx tsc %llu\n", (unsigned long long)step, (unsigned long long)sum,
              (unsigned long long)now);
        u32 status;
        asm volatile("inw %w1, %w0" : "=a"(status) : "d"(PM1_STS));
        if (status & PWRBTN_STS) {
            print("the button\n");
            asm volatile("outw %w0, %w1" :: "a"(SLP_S5), "d"(PM1_CNT));
        }
    }
}
