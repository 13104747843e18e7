/*
 * testdev.c - the device for test kernels (--testdev; QEMU's pc-testdev): four ports, 64 KiB of memory, and interrupt inputs,
 * each driven as a driver would. Intel 82093AA data sheet §3.2 (redirection entries); SDM vol. 3 §11.8.
 */
#include "lib/guest.h"

enum { PORT = 0xe0, IRQ_PORT = 0x2000, VECTOR = 0x60, PATIENCE = 1000 };
#define DEVICE ((volatile u8 *)0xff000000ull)
enum { LENGTH = 0x10000 };

/* -- Ports -------------------------------------------------------------------------------------- */
static inline void outw(u16 p, u16 v) { asm volatile("outw %0, %1" ::"a"(v), "Nd"(p) : "memory"); }
static inline u16 inw(u16 p)
{
    u16 v;
    asm volatile("inw %1, %0" : "=a"(v) : "Nd"(p) : "memory");
    return v;
}
static inline u32 inl(u16 p)
{
    u32 v;
    asm volatile("inl %1, %0" : "=a"(v) : "Nd"(p) : "memory");
    return v;
}

static void test_ports(void)
{
    outl(PORT, 0x12345678);
    report_eq("four bytes come back", inl(PORT), 0x12345678);
    report_eq("... each", inb(PORT) | inb(PORT + 1) << 8 | inb(PORT + 2) << 16 | (u32)inb(PORT + 3) << 24, 0x12345678);
    report_eq("... and pairs, also in the middle", inw(PORT + 2) << 16 | inw(PORT + 1), 0x12343456);
    outb(PORT + 1, 0xab);
    outw(PORT + 2, 0xcdef);
    report_eq("parts of it are written", inl(PORT), 0xcdefab78);
    u64 rax = 0xffffffff00000000ull;
    asm volatile("inb $0xe0, %%al" : "+a"(rax));
    report_eq("inb leaves the rest of RAX", rax, 0xffffffff00000078ull);
    asm volatile("inl %%dx, %%eax" : "+a"(rax) : "d"(PORT));
    report_eq("inl clears its upper half", rax, 0xcdefab78);
    static const u32 from[4] = { 0x11111111, 0x22222222, 0x33333333, 0x44444444 };
    static u32 to[4];
    const void *s = from;
    void *d = to;
    u64 n = 4;
    asm volatile("rep outsl" : "+S"(s), "+c"(n) : "d"(PORT) : "memory");
    report("rep outsl: the last one stays", inl(PORT) == from[3] && !n && s == from + 4);
    n = 4;
    asm volatile("rep insl" : "+D"(d), "+c"(n) : "d"(PORT) : "memory");
    report("rep insl: four times the same", to[0] == from[3] && to[3] == from[3] && !n && d == to + 4);
}

/* -- Memory -------------------------------------------------------------------------------------- */
static void test_widths(void)
{
    bool ok[4] = { true, true, true, true };
    for (unsigned at = 0; at < 24; at++) { /* also across 8 bytes, which is what a device takes at once */
        volatile u8 *p = DEVICE + PAGE - 8 + at;
        for (unsigned i = 0; i < 24; i++)
            p[i] = 0xee;
        *(volatile u64 *)p = 0x1122334455667788ull;
        ok[3] &= *(volatile u64 *)p == 0x1122334455667788ull && p[8] == 0xee;
        *(volatile u32 *)p = 0xa1b2c3d4;
        ok[2] &= *(volatile u32 *)p == 0xa1b2c3d4 && *(volatile u64 *)p == 0x11223344a1b2c3d4ull;
        *(volatile u16 *)(p + 1) = 0x5a5b;
        ok[1] &= *(volatile u16 *)(p + 1) == 0x5a5b && *(volatile u64 *)p == 0x11223344a15a5bd4ull;
        p[2] = 0x77;
        ok[0] &= p[2] == 0x77 && *(volatile u64 *)p == 0x11223344a1775bd4ull;
    }
    for (unsigned i = 0; i < 4; i++)
        reportf(ok[i], "%u bytes at each of 24 places", 1u << i);
}

static void test_memory(void)
{
    static u8 ram[4 * PAGE], back[4 * PAGE];
    test_widths();
    for (unsigned i = 0; i < sizeof(ram); i++)
        ram[i] = (u8)(i * 7 + (i >> 8));
    const void *s = ram;
    volatile void *d = DEVICE + 3;
    u64 n = sizeof(ram);
    asm volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(n)::"memory");
    const volatile void *from = DEVICE + 3;
    void *to = back;
    n = sizeof(back) / 8;
    asm volatile("rep movsq" : "+S"(from), "+D"(to), "+c"(n)::"memory");
    report("16 KiB there and back by rep movs", !memcmp(ram, back, sizeof(ram)));
    from = DEVICE + 3;
    d = DEVICE + 0x8000;
    n = sizeof(ram) / 4;
    asm volatile("rep movsl" : "+S"(from), "+D"(d), "+c"(n)::"memory");
    s = ram;
    from = DEVICE + 0x8000;
    n = sizeof(ram);
    asm volatile("repe cmpsb" : "+S"(s), "+D"(from), "+c"(n)::"memory", "cc");
    report("... from the device to itself, compared by repe cmpsb", !n && s == ram + sizeof(ram));
    d = DEVICE + 0x100;
    n = 100;
    asm volatile("rep stosw" : "+D"(d), "+c"(n) : "a"(0xbeef) : "memory");
    report("rep stosw", *(volatile u16 *)(DEVICE + 0x100 + 198) == 0xbeef && *(volatile u16 *)(DEVICE + 0x100 + 200) != 0xbeef);
    volatile u32 *word = (volatile u32 *)(DEVICE + 0x40);
    *word = 40;
    asm volatile("addl $2, %0; rorl $8, %0; btsl $3, %0" : "+m"(*word)::"cc");
    report_eq("read, changed, written", *word, (42u << 24) | 8);
    u32 was = 5;
    asm volatile("xchgl %0, %1" : "+r"(was), "+m"(*word));
    report("xchg", was == ((42u << 24) | 8) && *word == 5);
    *(volatile u64 *)(DEVICE + LENGTH - 8) = 0x0123456789abcdefull;
    report_eq("its last bytes", DEVICE[LENGTH - 1] << 8 | DEVICE[LENGTH - 8], 0x01ef);
}

/* -- Interrupt inputs ------------------------------------------------------------------------------ */
static volatile u32 hits, lower_at;
static unsigned line;

static void irq_line(unsigned gsi, bool level)
{
    outb((u16)(IRQ_PORT + gsi), level);
}

static void ioapic_write(unsigned reg, u32 v)
{
    *(volatile u32 *)IOAPIC_PA = reg;
    *(volatile u32 *)(IOAPIC_PA + 16) = v;
}

static u32 ioapic_read(unsigned reg)
{
    *(volatile u32 *)IOAPIC_PA = reg;
    return *(volatile u32 *)(IOAPIC_PA + 16);
}

static void on_ioapic(struct regs *r)
{
    if (++hits == lower_at)
        irq_line(line, false);
    lapic_eoi();
}

static void on_pic(struct regs *r)
{
    hits++;
    irq_line(line, false);
    pic_eoi(line);
}

static bool come(u32 count)
{
    u64 end = rdtsc() + PATIENCE * tsc_per_ms();
    sti();
    while (hits < count && rdtsc() < end)
        ;
    asm volatile("nop; nop; nop; nop");
    cli();
    return hits == count;
}

static void test_ioapic(void)
{
    static const u8 inputs[] = { 3, 5, 9, 10, 11, 14, 15, 16, 19, 21, 23 };
    bool edge = true, once = true, level = true, remote = true, masked = true;
    trap_handle(VECTOR, on_ioapic);
    for (unsigned i = 0; i < sizeof(inputs) && !(on_tcg() && inputs[i] >= 16); i++) { /* QEMU's has no more */
        line = inputs[i];
        irq_line(line, false);
        lower_at = hits = 0;
        ioapic_write(0x11 + 2 * line, (lapic_read(LAPIC_ID) >> 24) << 24);
        ioapic_write(0x10 + 2 * line, VECTOR); /* edge, fixed, physical */
        irq_line(line, true);
        edge &= come(1);
        irq_line(line, true); /* no edge */
        once &= come(1);
        irq_line(line, false);
        irq_line(line, true);
        edge &= come(2);
        irq_line(line, false);
        hits = 0;
        ioapic_write(0x10 + 2 * line, VECTOR | 1 << 15 | 1 << 16);
        irq_line(line, true);
        masked &= come(0);
        lower_at = 3; /* each EOI finds it still high, twice */
        ioapic_write(0x10 + 2 * line, VECTOR | 1 << 15);
        remote &= ioapic_read(0x10 + 2 * line) >> 14 & 1;
        level &= come(3);
        remote &= !(ioapic_read(0x10 + 2 * line) >> 14 & 1);
        ioapic_write(0x10 + 2 * line, 1 << 16);
    }
    report("edges on inputs of the I/O APIC", edge);
    report("... a level is none", once);
    report("masked: nothing comes", masked);
    report("a level comes again until it is gone", level);
    report("... remote IRR from acceptance to the last EOI", remote);
}

static void test_pic(void)
{
    static const u8 inputs[] = { 3, 5, 9, 10, 11, 14, 15 };
    bool ok = true;
    pic_init();
    for (unsigned i = 0; i < sizeof(inputs); i++) {
        line = inputs[i];
        hits = 0;
        trap_handle(0x20 + line, on_pic);
        pic_unmask(line);
        irq_line(line, true);
        ok &= come(1);
        irq_line(line, true);
        ok &= come(2);
        pic_mask_all();
    }
    report("inputs of the 8259s", ok);
}

int main(void)
{
    outl(PORT, 0x12345678);
    if (inl(PORT) != 0x12345678) {
        report("the test device is there", false);
        return 0;
    }
    test_ports();
    test_memory();
    lapic_init();
    pic_init();
    test_ioapic();
    test_pic();
    return 0;
}
