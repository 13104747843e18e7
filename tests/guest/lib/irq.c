/* irq.c - the least of a driver for each interrupt chip: 8259 pair, 8254, local APIC (xAPIC). */
#include "lib/guest.h"

enum { PIC1 = 0x20, PIC2 = 0xa0, PIT = 0x40, PIT_HZ = 1193182 };

void pic_mask_all(void)
{
    outb(PIC1 + 1, 0xff);
    outb(PIC2 + 1, 0xff);
}

void pic_init(void)
{
    outb(PIC1, 0x11);
    outb(PIC2, 0x11);
    outb(PIC1 + 1, 0x20);
    outb(PIC2 + 1, 0x28);
    outb(PIC1 + 1, 4);
    outb(PIC2 + 1, 2);
    outb(PIC1 + 1, 1);
    outb(PIC2 + 1, 1);
    pic_mask_all();
}

void pic_unmask(unsigned irq)
{
    if (irq >= 8) {
        outb(PIC2 + 1, (u8)(inb(PIC2 + 1) & ~(1 << (irq - 8))));
        irq = 2;
    }
    outb(PIC1 + 1, (u8)(inb(PIC1 + 1) & ~(1 << irq)));
}

void pic_eoi(unsigned irq)
{
    if (irq >= 8)
        outb(PIC2, 0x20);
    outb(PIC1, 0x20);
}

void pit_start(unsigned mode, u16 count)
{
    outb(PIT + 3, (u8)(0x30 | mode << 1));
    outb(PIT, (u8)count);
    outb(PIT, (u8)(count >> 8));
}

u16 pit_read(void)
{
    outb(PIT + 3, 0);
    u8 lo = inb(PIT);
    return (u16)(lo | inb(PIT) << 8);
}

/* Channel 2, mode 0, gate on, speaker off: its output goes high after `count` ticks. */
u64 tsc_per_ms(void)
{
    static u64 cached;
    if (cached)
        return cached;
    u16 count = PIT_HZ / 100;
    u64 best = ~0ull;
    outb(0x61, (u8)((inb(0x61) & ~2) | 1));
    for (unsigned i = 0; i < 5; i++) { /* the host may take the CPU away meanwhile: the shortest is right */
        outb(PIT + 3, 0xb0);
        outb(PIT + 2, (u8)count);
        outb(PIT + 2, (u8)(count >> 8));
        u64 start = rdtsc();
        while (!(inb(0x61) & 0x20))
            if (rdtsc() - start > 20000000000ull)
                die("# the PIT's channel 2 does not count\n");
        u64 took = rdtsc() - start;
        best = took < best ? took : best;
    }
    cached = best / 10;
    return cached;
}

static void spurious(struct regs *r)
{
}

void lapic_init(void)
{
    trap_handle(0xff, spurious);
    wrmsr(MSR_APICBASE, LAPIC_PA | 0x900);
    lapic_write(LAPIC_SVR, 0x1ff);
    lapic_write(LAPIC_TPR, 0);
    lapic_write(LAPIC_LVT0, 0x700);
    lapic_write(LAPIC_LVT1, 0x400);
    lapic_write(LAPIC_LVTT, 0x10000);
}

void lapic_self_ipi(unsigned vec)
{
    lapic_write(LAPIC_ICR2, 0);
    lapic_write(LAPIC_ICR, 0x44000 | vec); /* shorthand self, assert, fixed */
}
