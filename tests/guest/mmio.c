/*
 * mmio.c - device memory read and written by every kind of instruction an odd driver might use.
 * The registers of the local APIC (no side effects: TPR, the timer's initial count, LDR, divide,
 * LVT) and of the I/O APIC serve as memory that is no memory.
 */
#include "lib/guest.h"

#define REG(r) ((volatile u32 *)(LAPIC_PA + (r)))

static void put(u32 v)
{
    lapic_write(LAPIC_TMICT, v);
}
static u32 get(void)
{
    return lapic_read(LAPIC_TMICT);
}

int main(void)
{
    volatile u32 *reg = REG(LAPIC_TMICT), *tpr = REG(LAPIC_TPR), *ldr = REG(LAPIC_LDR);
    u64 v;
    wrmsr(MSR_APICBASE, LAPIC_PA | 0x900);
    lapic_write(LAPIC_SVR, 0x1ff);
    lapic_write(LAPIC_LVTT, 0x10000 | 0x40);

    put(0x12345678);
    report_eq("mov to and from", get(), 0x12345678);
    asm volatile("movl $0x1000, %0" : "=m"(*reg));
    report_eq("mov immediate", get(), 0x1000);
    asm volatile("movl %1, %k0" : "=r"(v) : "m"(*reg));
    report_eq("mov to a register", v, 0x1000);
    for (int i = 8; i < 16; i++) { /* the registers the engine may keep elsewhere */
        put((u32)i);
        u64 got = 0;
        switch (i) {
        case 10:
            asm volatile("movl (%1), %%r10d; mov %%r10, %0" : "=m"(got) : "r"(reg) : "r10");
            break;
        case 11:
            asm volatile("movl (%1), %%r11d; mov %%r11, %0" : "=m"(got) : "r"(reg) : "r11");
            break;
        case 14:
            asm volatile("movl (%1), %%r14d; mov %%r14, %0" : "=m"(got) : "r"(reg) : "r14");
            break;
        case 15:
            asm volatile("mov %1, %%r15; movl (%%r15), %%r15d; mov %%r15, %0"
                         : "=m"(got)
                         : "r"(reg)
                         : "r15");
            break;
        default:
            got = get();
        }
        reportf(got == (u64)i, "mov to r%d", i);
    }
    asm volatile(
        "mov %%rsp, %%rbx; mov %1, %%rsp; movl (%%rsp), %%eax; mov %%rbx, %%rsp; mov %%eax, %k0"
        : "=r"(v)
        : "r"(reg)
        : "rax", "rbx");
    report_eq("by rsp", v, 15);
    asm volatile("push %%rbp; mov %1, %%rbp; movl (%%rbp), %%eax; pop %%rbp; mov %%eax, %k0"
                 : "=&r"(v)
                 : "r"(reg)
                 : "rax");
    report_eq("by rbp", v, 15);
    asm volatile("movl (%1,%2,4), %k0" : "=r"(v) : "r"(LAPIC_PA), "r"((u64)LAPIC_TMICT / 4));
    report_eq("by base and index", v, 15);
    asm volatile("movabs 0xfee00380, %%eax" : "=a"(v));
    report_eq("moffs", (u32)v, 15);

    put(0xf0);
    asm volatile("orl $0x0f, %0" : "+m"(*reg));
    report_eq("or", get(), 0xff);
    asm volatile("andl %1, %0" : "+m"(*reg) : "r"(0x3c));
    report_eq("and", get(), 0x3c);
    asm volatile("xorl %1, %0" : "+m"(*reg) : "r"(0xff));
    report_eq("xor", get(), 0xc3);
    asm volatile("addl $1, %0" : "+m"(*reg));
    report_eq("add", get(), 0xc4);
    asm volatile("stc; adcl $0, %0" : "+m"(*reg));
    report_eq("adc takes the carry", get(), 0xc5);
    asm volatile("stc; sbbl $0, %0" : "+m"(*reg));
    report_eq("sbb", get(), 0xc4);
    bool cf, zf;
    put(0xffffffff);
    asm volatile("addl $1, %0" : "+m"(*reg), "=@ccc"(cf), "=@ccz"(zf));
    report("add sets the flags", cf && zf && get() == 0);
    put(7);
    asm volatile("cmpl $7, %1" : "=@ccz"(zf) : "m"(*reg));
    report("cmp", zf && get() == 7);
    asm volatile("testl $8, %1" : "=@ccz"(zf) : "m"(*reg));
    report("test", zf && get() == 7);
    asm volatile("incl %0; incl %0; decl %0; negl %0; notl %0" : "+m"(*reg));
    report_eq("inc, dec, neg, not", get(), 7);
    asm volatile("shll $4, %0; rorl $2, %0" : "+m"(*reg));
    report_eq("shl, ror", get(), 0x1c);
    asm volatile("btsl $7, %0; btrl $2, %0; btcl $0, %0" : "+m"(*reg));
    report_eq("bts, btr, btc", get(), 0x99);
    asm volatile("btl $3, %1" : "=@ccc"(cf) : "m"(*reg));
    report("bt", cf);

    put(0x11);
    v = 0x22;
    asm volatile("xchgl %k0, %1" : "+r"(v), "+m"(*reg));
    report("xchg", v == 0x11 && get() == 0x22);
    v = 3;
    asm volatile("lock xaddl %k0, %1" : "+r"(v), "+m"(*reg));
    report("lock xadd", v == 0x22 && get() == 0x25);
    asm volatile("lock incl %0" : "+m"(*reg));
    report_eq("lock inc", get(), 0x26);
    u64 a = 0x26;
    asm volatile("lock cmpxchgl %3, %1" : "+a"(a), "+m"(*reg), "=@ccz"(zf) : "r"(0x77) : "memory");
    report("lock cmpxchg, equal", get() == 0x77);
    a = 0x26;
    asm volatile("lock cmpxchgl %3, %1" : "+a"(a), "+m"(*reg), "=@ccz"(zf) : "r"(0x99) : "memory");
    report("lock cmpxchg, not equal", get() == 0x77 && a == 0x77 && !zf);

    put(0x8081f2f3);
    asm volatile("movzbl %1, %k0" : "=r"(v) : "m"(*reg));
    report_eq("movzx byte", v, 0xf3);
    asm volatile("movsbq %1, %0" : "=r"(v) : "m"(*reg));
    report_eq("movsx byte", v, 0xfffffffffffffff3);
    asm volatile("movzwl %1, %k0" : "=r"(v) : "m"(*reg));
    report_eq("movzx word", v, 0xf2f3);
    asm volatile("movslq %1, %0" : "=r"(v) : "m"(*reg));
    report_eq("movsxd", v, 0xffffffff8081f2f3);
    asm volatile("imull $2, %1, %k0" : "=r"(v) : "m"(*reg));
    report_eq("imul", v, 0x0103e5e6);
    put(100);
    u64 q = 1000, r = 0;
    asm volatile("divl %2" : "+a"(q), "+d"(r) : "m"(*reg));
    report("div", q == 10 && r == 0);
    asm volatile("mull %1" : "+a"(q) : "m"(*reg) : "rdx");
    report_eq("mul", q, 1000);
    v = 1;
    asm volatile("cmp $0, %k0; cmovnel %1, %k0" : "+r"(v) : "m"(*reg));
    report_eq("cmov, taken", v, 100);
    asm volatile("bsfl %1, %k0" : "=r"(v) : "m"(*reg));
    report_eq("bsf", v, 2);
    asm volatile("movl $1, %%ecx; jmp 1f; 1: addl %1, %%ecx; mov %%ecx, %k0"
                 : "=r"(v)
                 : "m"(*reg)
                 : "rcx");
    report_eq("at the start of a block", v, 101);

    /* String instructions, register by register. */
    u32 buf[8] = {0};
    u64 s = (u64)reg, d = (u64)buf, c = 1;
    put(0xabcd);
    asm volatile("rep movsl" : "+S"(s), "+D"(d), "+c"(c)::"memory");
    report("rep movsd from", buf[0] == 0xabcd && s == (u64)reg + 4 && d == (u64)buf + 4 && c == 0);
    buf[0] = 0x4321;
    s = (u64)buf;
    d = (u64)reg;
    asm volatile("movsl" : "+S"(s), "+D"(d)::"memory");
    report_eq("movsd to", get(), 0x4321);
    d = (u64)reg;
    c = 1;
    asm volatile("rep stosl" : "+D"(d), "+c"(c) : "a"(0x777) : "memory");
    report_eq("rep stosd", get(), 0x777);
    s = (u64)reg;
    asm volatile("lodsl" : "+S"(s), "=a"(v)::"memory");
    report_eq("lodsd", (u32)v, 0x777);
    d = (u64)reg;
    asm volatile("scasl" : "+D"(d), "=@ccz"(zf) : "a"(0x777) : "memory");
    report("scasd", zf && d == (u64)reg + 4);
    buf[0] = 0x777;
    s = (u64)buf;
    d = (u64)reg;
    asm volatile("cmpsl" : "+S"(s), "+D"(d), "=@ccz"(zf)::"memory");
    report("cmpsd", zf);
    lapic_write(LAPIC_TPR, 0x20);
    s = (u64)tpr;
    d = (u64)ldr;
    *ldr = 0;
    *tpr = 0;
    asm volatile("movsl" : "+S"(s), "+D"(d)::"memory");
    report_eq("movsd from device to device", *ldr, 0);

    /* push and pop. */
    put(0x5566);
    asm volatile("pushq (%1); pop %0" : "=r"(v) : "r"(reg) : "memory");
    report_eq("push from", (u32)v, 0x5566);
    asm volatile("pushq $0x3344; popq (%0)" ::"r"(reg) : "memory");
    report_eq("pop to", get(), 0x3344);

    /* Vector loads and stores: the low four bytes are the register. */
    put(0x11223344);
    asm volatile("movd %1, %%xmm0; movd %%xmm0, %k0" : "=r"(v) : "m"(*reg));
    report_eq("movd from", v, 0x11223344);
    asm volatile("movd %1, %%xmm0; movd %%xmm0, %0" : "=m"(*reg) : "r"(0x99aa));
    report_eq("movd to", get(), 0x99aa);
    asm volatile("movaps (%1), %%xmm0; movd %%xmm0, %k0" : "=r"(v) : "r"(reg));
    report_eq("movaps from: the first four bytes", v, 0x99aa);
    asm volatile("movss %1, %%xmm0; movd %%xmm0, %k0" : "=r"(v) : "m"(*reg));
    report_eq("movss", v, 0x99aa);
    put(1000);
    asm volatile("cvtsi2sdl %1, %%xmm0; cvttsd2si %%xmm0, %k0" : "=r"(v) : "m"(*reg));
    report_eq("cvtsi2sd", v, 1000);
    asm volatile("fildl %1; fistpl %0" : "=m"(buf[1]) : "m"(*reg));
    report_eq("fild", buf[1], 1000);

    /* Jumps and calls through a device register. */
    extern char mmio_target[];
    put((u32)(u64)mmio_target);
    asm volatile("movl (%1), %%eax; call *%%rax" : "=a"(v) : "r"(reg));
    report_eq("an address from a register", v, 0x600d);

    /* The I/O APIC's index and data window. */
    volatile u32 *sel = (volatile u32 *)IOAPIC_PA, *win = (volatile u32 *)(IOAPIC_PA + 0x10);
    *sel = 1;
    u32 ver = *win;
    report("I/O APIC: version and size", (ver & 0xff) >= 0x11 && (ver >> 16 & 0xff) >= 15);
    *sel = 0x10 + 2 * 5;
    *win = 0x10035;
    asm volatile("orl $0x200, %0" : "+m"(*win));
    report_eq("I/O APIC: or on a redirection entry", *win & 0x1ffff & ~0x1000u, 0x10235);
    *sel = 0x10 + 2 * 5;
    asm volatile("xchgl %k0, %1" : "=r"(v), "+m"(*win) : "0"(0x10000));
    report_eq("I/O APIC: xchg", v & 0x10fff, 0x10235 & 0x10fff);

    /* In ring 3, when mapped for it; and not when not. */
    report("a device page is a page: no U, no access", ({
               extern char mmio_user[];
               user_call(mmio_user, (u64)reg, 0, 0);
               faulted(PF_P | PF_U, reg);
           }));
    map((void *)PAGE3, LAPIC_PA, PTE_P | PTE_W | PTE_U | PTE_PCD);
    put(0x31);
    report("mapped for ring 3", ({
               extern char mmio_user[];
               user_call(mmio_user, PAGE3 + LAPIC_TMICT, 0, 0) == 0x31;
           }));
    map((void *)PAGE3, LAPIC_PA, PTE_P | PTE_PCD);
    report("a read-only mapping of a device refuses stores",
           TRY("movl $1, (%0)", ::"r"(PAGE3 + LAPIC_TMICT)
               : "memory") == PF &&
               faulted(PF_P | PF_W, (void *)(PAGE3 + LAPIC_TMICT)) && get() == 0x31);
    unmap((void *)PAGE3);

    /* Where nothing is: reads are all ones, writes go nowhere. */
    volatile u32 *hole = (volatile u32 *)0xd0000000ull;
    report_eq("a hole reads as ones", *hole, 0xffffffff);
    *hole = 1;
    report_eq("and forgets writes", *hole, 0xffffffff);
    volatile u64 *hole8 = (volatile u64 *)0xd0000000ull;
    report_eq("8 bytes of it", *hole8, ~0ull);
    put(0);
    return 0;
}
KERNEL_ASM(".globl mmio_target\nmmio_target: mov $0x600d, %eax\n ret");
USER_ASM(".globl mmio_user\nmmio_user: mov (%rdi), %eax\n ret");
