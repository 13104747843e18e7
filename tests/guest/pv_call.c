/* pv_call.c - vmcall and vmmcall: both reach a contract, from any privilege, and touch nothing but RAX. */
#include "lib/pv.h"

static inline u64 vmmcall(u64 nr)
{
    u64 r;
    asm volatile("vmmcall" : "=a"(r) : "a"(nr) : "memory");
    return r;
}

static UTEXT u64 user_vmcall(u64 nr, u64 b, u64 c)
{
    u64 r;
    asm volatile("vmcall" : "=a"(r) : "a"(nr), "b"(b), "c"(c) : "memory");
    return r;
}

static u64 tsc(void)
{
    u32 lo, hi;
    asm volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi));
    return (u64)hi << 32 | lo;
}

/* Every register with a value of its own around the call; what came back differently, as a bit mask. */
static u64 registers_changed(u64 nr)
{
    static u64 after[16];
    asm volatile("push %%rbp; push %%rbx\n"
                 "mov $0x101, %%rbx; mov $0x102, %%rcx; mov $0x103, %%rdx; mov $0x105, %%rbp\n"
                 "mov $0x106, %%rsi; mov $0x107, %%rdi; mov $0x108, %%r8; mov $0x109, %%r9\n"
                 "mov $0x10a, %%r10; mov $0x10b, %%r11; mov $0x10c, %%r12; mov $0x10d, %%r13\n"
                 "mov $0x10e, %%r14; mov $0x10f, %%r15\n"
                 "vmcall\n"
                 "mov %%rbx, %1; mov %%rcx, 8+%1; mov %%rdx, 16+%1; mov %%rbp, 24+%1\n"
                 "mov %%rsi, 32+%1; mov %%rdi, 40+%1; mov %%r8, 48+%1; mov %%r9, 56+%1\n"
                 "mov %%r10, 64+%1; mov %%r11, 72+%1; mov %%r12, 80+%1; mov %%r13, 88+%1\n"
                 "mov %%r14, 96+%1; mov %%r15, 104+%1\n"
                 "pop %%rbx; pop %%rbp\n"
                 : "+a"(nr), "=m"(after)
                 :
                 : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
    static const u64 want[] = { 0x101, 0x102, 0x103, 0x105, 0x106, 0x107, 0x108, 0x109, 0x10a, 0x10b, 0x10c, 0x10d,
                                0x10e, 0x10f };
    u64 changed = 0;
    for (unsigned i = 0; i < sizeof(want) / sizeof(want[0]); i++)
        if (after[i] != want[i])
            changed |= 1ul << i;
    return changed;
}

int main(void)
{
    report_eq("call 0 of Vitro's ABI", vmcall(NATIVE, 0, 0, 0, 0), 0);
    report_eq("by vmmcall too", vmmcall(NATIVE), 0);
    report_eq("a call without a number of KVM's: -ENOSYS", vmcall(999, 0, 0, 0, 0), (u64)-1000);
    report_eq("one without a number of Vitro's: -VT_ENOCALL", vmcall(NATIVE + 0xffff, 0, 0, 0, 0), (u64)-1);
    report_eq("registers after a fast call", registers_changed(NATIVE), 0);
    report_eq("registers after a slow call", registers_changed(999), 0);
    report_eq("KVM's calls from ring 3: -EPERM", user_call(user_vmcall, 5, 0, 0), (u64)-1);

    u64 best = ~0ul;
    for (unsigned round = 0; round < 20; round++) {
        u64 t = tsc();
        for (unsigned i = 0; i < 10000; i++)
            vmcall(NATIVE, 0, 0, 0, 0);
        t = tsc() - t;
        best = t < best ? t : best;
    }
    u32 khz, b, c, d;
    asm("cpuid" : "=a"(khz), "=b"(b), "=c"(c), "=d"(d) : "a"(0x40000010), "c"(0));
    print("# an empty hypercall: %lu.%lu ns\n", best * 100 / khz, best * 1000 / khz % 10);
    return 0;
}
