/*
 * test_machine.c - the board without a CPU: chips driven through ports, MMIO and MSRs, on a clock
 * that stands still until the test moves it. Usage: test_machine [dir]: leaves the ACPI tables
 * there as NAME.dat.
 */
#define _GNU_SOURCE
#include "machine/acpi.h"
#include "machine/board.h"
#include "machine/layout.h"
#include "mem/ram.h"
#include "x86/x86.h"
#include <stdio.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static unsigned passed, failed;

static void check_at(int line, const char *what, bool ok)
{
    if (ok) {
        passed++;
        return;
    }
    failed++;
    printf("test_machine.c:%d: %s\n", line, what);
}

static void equal_at(int line, const char *what, u64 got, u64 want)
{
    if (got == want) {
        passed++;
        return;
    }
    failed++;
    printf("test_machine.c:%d: %s is %#llx, not %#llx\n", line, what, (unsigned long long)got,
           (unsigned long long)want);
}

#define CHECK(c) check_at(__LINE__, #c, c)
#define EQUAL(got, want) equal_at(__LINE__, #got, (u64)(got), (u64)(want))

/* -- A machine with a clock of ours --------------------------------------- */

#define TSC_KHZ 2000000ull /* two ticks a ns */
#define WALL (1700000000ull * NS_PER_SEC) /* 2023-11-14 22:13:20 UTC, a Tuesday */

struct fixture {
    struct machine *m;
    u64 now;
    unsigned kicks[8];
    int request, status;
    char tx[1024];
    size_t tx_len;
    unsigned tx_calls;
    struct ram ram;
    u8 *mem;
};

static u64 fake_now(void *opaque)
{
    return ((struct fixture *)opaque)->now;
}
static u64 fake_tsc(void *opaque, unsigned vcpu)
{
    (void)vcpu;
    return ((struct fixture *)opaque)->now * 2;
}
static void on_kick(void *opaque, unsigned vcpu)
{
    ((struct fixture *)opaque)->kicks[vcpu & 7]++;
}
static void on_request(void *opaque, enum machine_request what, int status)
{
    struct fixture *f = opaque;
    f->request = (int)what;
    f->status = status;
}
static void on_tx(void *opaque, const u8 *bytes, size_t len)
{
    struct fixture *f = opaque;
    len = MIN(len, sizeof(f->tx) - f->tx_len);
    memcpy(f->tx + f->tx_len, bytes, len);
    f->tx_len += len;
    f->tx_calls++;
}

#define RAM_SIZE (64ull << 20)

static void setup(struct fixture *f, unsigned cpus)
{
    memset(f, 0, sizeof(*f));
    f->request = -1;
    f->mem = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ram_init(&f->ram);
    struct machine_range r[MACHINE_MAX_RANGES];
    unsigned n = machine_ram_ranges(RAM_SIZE, r);
    for (unsigned i = 0; i < n; i++)
        EQUAL(ram_add_slot(&f->ram, r[i].gpa, r[i].size, f->mem + r[i].offset, false), 0);
    struct machine_config config = {
        .nr_cpus = cpus, .ram_size = RAM_SIZE, .ram = &f->ram, .tsc_khz = TSC_KHZ, .wall_ns = WALL,
        .opaque = f, .kick = on_kick, .request = on_request, .tsc_now = fake_tsc,
        .console_tx = on_tx, .debugcon_tx = on_tx, .clock_source = fake_now, .clock_opaque = f,
    };
    EQUAL(machine_create(&config, &f->m), 0);
}

static void teardown(struct fixture *f)
{
    machine_destroy(f->m);
    ram_fini(&f->ram);
    munmap(f->mem, RAM_SIZE);
}

static void pass(struct fixture *f, u64 ns)
{
    f->now += ns;
    machine_run_timers(f->m);
}

static void out8(struct fixture *f, u16 port, u8 v) { machine_port_out(f->m, port, 1, v); }
static u8 in8(struct fixture *f, u16 port) { return (u8)machine_port_in(f->m, port, 1); }

static void apic_w(struct fixture *f, unsigned cpu, unsigned reg, u32 v)
{
    machine_mmio_write(f->m, cpu, LAYOUT_LAPIC + reg * 16, &v, 4);
}
static u32 apic_r(struct fixture *f, unsigned cpu, unsigned reg)
{
    u32 v;
    machine_mmio_read(f->m, cpu, LAYOUT_LAPIC + reg * 16, &v, 4);
    return v;
}
static void ioapic_w(struct fixture *f, u32 reg, u32 v)
{
    machine_mmio_write(f->m, 0, LAYOUT_IOAPIC, &reg, 4);
    machine_mmio_write(f->m, 0, LAYOUT_IOAPIC + 0x10, &v, 4);
}
static u32 ioapic_r(struct fixture *f, u32 reg)
{
    u32 v;
    machine_mmio_write(f->m, 0, LAYOUT_IOAPIC, &reg, 4);
    machine_mmio_read(f->m, 0, LAYOUT_IOAPIC + 0x10, &v, 4);
    return v;
}
static void apic_on(struct fixture *f, unsigned cpu)
{
    apic_w(f, cpu, APIC_SVR, 0x1ff);
}
static void x2apic_on(struct fixture *f, unsigned cpu)
{
    u64 base = 0;
    machine_msr_read(f->m, cpu, MSR_APIC_BASE, &base);
    EQUAL(machine_msr_write(f->m, cpu, MSR_APIC_BASE, base | APIC_BASE_EXTD), 0);
    machine_msr_write(f->m, cpu, 0x800 + APIC_SVR, 0x1ff);
}

/* -- Bus ------------------------------------------------------------------ */

static void test_bus(void)
{
    struct fixture f;
    setup(&f, 1);
    EQUAL(machine_port_in(f.m, 0x300, 1), 0xff);
    EQUAL(machine_port_in(f.m, 0x300, 2), 0xffff);
    EQUAL(machine_port_in(f.m, 0x300, 4), 0xffffffff);
    EQUAL(machine_port_in(f.m, 0xffff, 4) & 0xff, 0xff); /* and goes on at port 0 */
    /* A word at a byte device is two bytes: scratch register and what follows COM1. */
    out8(&f, PORT_COM1 + 7, 0x5a);
    EQUAL(machine_port_in(f.m, PORT_COM1 + 7, 2), 0xff5a);
    u64 v = 0;
    machine_mmio_read(f.m, 0, 0xd0000000, &v, 8);
    EQUAL(v, ~0ull);
    /* A byte of a 32-bit register. */
    u32 sel = 1;
    machine_mmio_write(f.m, 0, LAYOUT_IOAPIC, &sel, 4);
    u8 b;
    machine_mmio_read(f.m, 0, LAYOUT_IOAPIC + 0x12, &b, 1);
    EQUAL(b, 23);
    u8 wide[64];
    machine_mmio_read(f.m, 0, 0xd0000003, wide, 61);
    EQUAL(wide[60], 0xff);
    teardown(&f);
}

/* -- 8259 ----------------------------------------------------------------- */

static void pic_setup(struct fixture *f)
{
    out8(f, 0x20, 0x11), out8(f, 0x21, 0x20), out8(f, 0x21, 4), out8(f, 0x21, 1);
    out8(f, 0xa0, 0x11), out8(f, 0xa1, 0x28), out8(f, 0xa1, 2), out8(f, 0xa1, 1);
    out8(f, 0x21, 0), out8(f, 0xa1, 0);
}

static void test_pic(void)
{
    struct fixture f;
    setup(&f, 1);
    CHECK(!machine_intr_pending(f.m, 0));
    pic_setup(&f);
    EQUAL(in8(&f, 0x21), 0);
    /* Priority, and nothing of lower priority while in service. */
    machine_set_gsi(f.m, 5, true);
    machine_set_gsi(f.m, 3, true);
    EQUAL(in8(&f, 0x20), 0x28);
    CHECK(machine_intr_pending(f.m, 0));
    CHECK(f.kicks[0] > 0);
    EQUAL(machine_intr_ack(f.m, 0), 0x23);
    CHECK(!machine_intr_pending(f.m, 0));
    out8(&f, 0x20, 0x0b); /* read ISR */
    EQUAL(in8(&f, 0x20), 0x08);
    out8(&f, 0x20, 0x0a);
    EQUAL(in8(&f, 0x20), 0x20);
    out8(&f, 0x20, 0x20); /* EOI */
    EQUAL(machine_intr_ack(f.m, 0), 0x25);
    out8(&f, 0x20, 0x65); /* specific EOI 5 */
    CHECK(!machine_intr_pending(f.m, 0));
    /* Edge: still high does not interrupt again; a new edge does. */
    machine_set_gsi(f.m, 5, true);
    CHECK(!machine_intr_pending(f.m, 0));
    machine_set_gsi(f.m, 5, false);
    machine_set_gsi(f.m, 5, true);
    CHECK(machine_intr_pending(f.m, 0));
    /* Gone before INTA: spurious 7, no ISR bit. */
    machine_set_gsi(f.m, 5, false);
    CHECK(!machine_intr_pending(f.m, 0));
    pthread_mutex_lock(&f.m->irq_lock);
    EQUAL(i8259_ack(&f.m->pic), 0x27);
    pthread_mutex_unlock(&f.m->irq_lock);
    EQUAL(f.m->pic.chip[0].isr, 0);
    /* Slave through the cascade; EOI to both. */
    machine_set_gsi(f.m, 12, true);
    EQUAL(machine_intr_ack(f.m, 0), 0x2c);
    EQUAL(f.m->pic.chip[0].isr, 4);
    EQUAL(f.m->pic.chip[1].isr, 0x10);
    machine_set_gsi(f.m, 14, true);
    out8(&f, 0xa0, 0x20);
    CHECK(!machine_intr_pending(f.m, 0)); /* master still has 2 in service */
    out8(&f, 0x20, 0x20);
    EQUAL(machine_intr_ack(f.m, 0), 0x2e);
    out8(&f, 0xa0, 0x20), out8(&f, 0x20, 0x20);
    machine_set_gsi(f.m, 12, false), machine_set_gsi(f.m, 14, false);
    machine_set_gsi(f.m, 3, false);
    /* Masked. */
    out8(&f, 0x21, 0x10);
    machine_set_gsi(f.m, 4, true);
    CHECK(!machine_intr_pending(f.m, 0));
    out8(&f, 0x21, 0);
    CHECK(machine_intr_pending(f.m, 0));
    /* Special mask mode: 4 in service but masked lets 6 through. */
    EQUAL(machine_intr_ack(f.m, 0), 0x24);
    machine_set_gsi(f.m, 6, true);
    CHECK(!machine_intr_pending(f.m, 0));
    out8(&f, 0x21, 0x10), out8(&f, 0x20, 0x68);
    EQUAL(machine_intr_ack(f.m, 0), 0x26);
    out8(&f, 0x20, 0x48), out8(&f, 0x21, 0);
    out8(&f, 0x20, 0x66), out8(&f, 0x20, 0x64);
    machine_set_gsi(f.m, 4, false), machine_set_gsi(f.m, 6, false);
    /* Rotation: EOI of 3 with rotate makes 3 the lowest. */
    machine_set_gsi(f.m, 3, true);
    EQUAL(machine_intr_ack(f.m, 0), 0x23);
    out8(&f, 0x20, 0xa0);
    machine_set_gsi(f.m, 3, false), machine_set_gsi(f.m, 3, true), machine_set_gsi(f.m, 4, true);
    EQUAL(machine_intr_ack(f.m, 0), 0x24);
    out8(&f, 0x20, 0x20);
    EQUAL(machine_intr_ack(f.m, 0), 0x23);
    out8(&f, 0x20, 0x20), out8(&f, 0x20, 0xc7); /* lowest = 7 again */
    machine_set_gsi(f.m, 3, false), machine_set_gsi(f.m, 4, false);
    /* Level by ELCR: PCI GSIs share 10 and 11. */
    EQUAL(in8(&f, PORT_ELCR + 1), 0x0e);
    machine_set_gsi(f.m, 16, true), machine_set_gsi(f.m, 18, true);
    EQUAL(machine_intr_ack(f.m, 0), 0x2a);
    machine_set_gsi(f.m, 16, false);
    out8(&f, 0xa0, 0x20), out8(&f, 0x20, 0x20);
    EQUAL(machine_intr_ack(f.m, 0), 0x2a); /* 18 holds it */
    machine_set_gsi(f.m, 18, false);
    out8(&f, 0xa0, 0x20), out8(&f, 0x20, 0x20);
    CHECK(!machine_intr_pending(f.m, 0));
    /* Poll. */
    machine_set_gsi(f.m, 1, true);
    out8(&f, 0x20, 0x0c);
    EQUAL(in8(&f, 0x20), 0x81);
    out8(&f, 0x20, 0x20);
    out8(&f, 0x20, 0x0c);
    EQUAL(in8(&f, 0x20), 0);
    machine_set_gsi(f.m, 1, false);
    /* Auto EOI. */
    out8(&f, 0x20, 0x11), out8(&f, 0x21, 0x40), out8(&f, 0x21, 4), out8(&f, 0x21, 3);
    EQUAL(in8(&f, 0x21), 0);
    machine_set_gsi(f.m, 7, true);
    EQUAL(machine_intr_ack(f.m, 0), 0x47);
    EQUAL(f.m->pic.chip[0].isr, 0);
    machine_set_gsi(f.m, 7, false);
    teardown(&f);
}

/* -- 8254 ----------------------------------------------------------------- */

#define TICKS(n) clock_scale_up(n, NS_PER_SEC, PIT_HZ)

static u16 pit_read16(struct fixture *f, unsigned ch)
{
    u8 lo = in8(f, (u16)(0x40 + ch));
    return (u16)(lo | in8(f, (u16)(0x40 + ch)) << 8);
}

static void test_pit(void)
{
    struct fixture f;
    setup(&f, 1);
    pic_setup(&f);
    /* Channel 2, mode 0, gate by port 0x61, OUT in bit 5. */
    out8(&f, 0x61, 1);
    out8(&f, 0x43, 0xb0);
    CHECK(!(in8(&f, 0x61) & 0x20));
    out8(&f, 0x42, 0xe8), out8(&f, 0x42, 0x03); /* 1000 */
    pass(&f, TICKS(400));
    EQUAL(pit_read16(&f, 2), 600);
    out8(&f, 0x43, 0x80); /* latch */
    pass(&f, TICKS(100));
    EQUAL(pit_read16(&f, 2), 600);
    u16 left = pit_read16(&f, 2);
    CHECK(left >= 498 && left <= 500);
    out8(&f, 0x61, 0); /* gate off: stops */
    pass(&f, TICKS(5000));
    EQUAL(pit_read16(&f, 2), left);
    CHECK(!(in8(&f, 0x61) & 0x20));
    out8(&f, 0x61, 1);
    pass(&f, TICKS(501));
    CHECK(in8(&f, 0x61) & 0x20);
    out8(&f, 0x43, 0xe8); /* read-back: status of channel 2 */
    EQUAL(in8(&f, 0x42), 0x80 | 0x30);
    /* Status before loading: null count. */
    out8(&f, 0x43, 0xb6);
    out8(&f, 0x43, 0xe8);
    EQUAL(in8(&f, 0x42) & 0x7f, 0x40 | 0x36);
    /* Mode 3: half and half; count and status together by read-back. */
    out8(&f, 0x42, 100), out8(&f, 0x42, 0);
    pass(&f, TICKS(10));
    CHECK(in8(&f, 0x61) & 0x20);
    out8(&f, 0x43, 0xc8);
    EQUAL(in8(&f, 0x42), 0x80 | 0x36);
    EQUAL(pit_read16(&f, 2), 80);
    pass(&f, TICKS(50));
    CHECK(!(in8(&f, 0x61) & 0x20));
    /* BCD, LSB only, mode 2. */
    out8(&f, 0x43, 0x95);
    out8(&f, 0x42, 0x50);
    pass(&f, TICKS(11));
    EQUAL(in8(&f, 0x42), 0x39);
    /* Mode 1 waits for the gate's rising edge. */
    out8(&f, 0x61, 0);
    out8(&f, 0x43, 0xb2);
    out8(&f, 0x42, 100), out8(&f, 0x42, 0);
    CHECK(in8(&f, 0x61) & 0x20);
    out8(&f, 0x61, 1);
    CHECK(!(in8(&f, 0x61) & 0x20));
    pass(&f, TICKS(101));
    CHECK(in8(&f, 0x61) & 0x20);
    /* Refresh toggles. */
    u8 was = in8(&f, 0x61) & 0x10;
    pass(&f, 15085);
    CHECK((in8(&f, 0x61) & 0x10) != was);

    /* Channel 0: mode 0 once. */
    out8(&f, 0x43, 0x30);
    CHECK(!machine_intr_pending(f.m, 0));
    out8(&f, 0x40, 0xe8), out8(&f, 0x40, 3);
    pass(&f, TICKS(999));
    CHECK(!machine_intr_pending(f.m, 0));
    pass(&f, TICKS(2));
    EQUAL(machine_intr_ack(f.m, 0), 0x20);
    out8(&f, 0x20, 0x20);
    pass(&f, TICKS(100000));
    CHECK(!machine_intr_pending(f.m, 0));
    /* Mode 2: periodic; late periods merge. */
    out8(&f, 0x43, 0x34);
    if (machine_intr_pending(f.m, 0))
        machine_intr_ack(f.m, 0), out8(&f, 0x20, 0x20);
    out8(&f, 0x40, 0xa9), out8(&f, 0x40, 4); /* 1193: about 1 ms */
    unsigned n = 0;
    for (unsigned i = 0; i < 100; i++) {
        pass(&f, 1000000);
        if (machine_intr_pending(f.m, 0)) {
            n++;
            EQUAL(machine_intr_ack(f.m, 0), 0x20);
            out8(&f, 0x20, 0x20);
        }
    }
    CHECK(n >= 99 && n <= 100);
    pass(&f, 50000000);
    EQUAL(machine_intr_ack(f.m, 0), 0x20);
    out8(&f, 0x20, 0x20);
    CHECK(!machine_intr_pending(f.m, 0));
    /* Switched off: no timer is left. */
    out8(&f, 0x43, 0x30);
    EQUAL(clock_next(&f.m->clock), CLOCK_NEVER);
    /* Mode 4: one strobe. */
    out8(&f, 0x43, 0x38);
    if (machine_intr_pending(f.m, 0))
        machine_intr_ack(f.m, 0), out8(&f, 0x20, 0x20);
    out8(&f, 0x40, 100), out8(&f, 0x40, 0);
    pass(&f, TICKS(102));
    EQUAL(machine_intr_ack(f.m, 0), 0x20);
    out8(&f, 0x20, 0x20);
    EQUAL(clock_next(&f.m->clock), CLOCK_NEVER);
    teardown(&f);
}

/* -- Local APIC ----------------------------------------------------------- */

static void self_ipi(struct fixture *f, u8 vector)
{
    apic_w(f, 0, APIC_ICR, 0x44000 | vector);
}

static void test_lapic(void)
{
    struct fixture f;
    setup(&f, 1);
    EQUAL(apic_r(&f, 0, APIC_ID), 0);
    EQUAL(apic_r(&f, 0, APIC_VERSION) & 0xff00ff, 0x50015);
    EQUAL(apic_r(&f, 0, APIC_SVR), 0xff);
    EQUAL(apic_r(&f, 0, APIC_LVT + LVT_LINT0), 0x700);
    self_ipi(&f, 0x40); /* software-disabled: dropped */
    CHECK(!machine_intr_pending(f.m, 0));
    apic_on(&f, 0);
    self_ipi(&f, 0x40), self_ipi(&f, 0x55), self_ipi(&f, 0x51);
    EQUAL(apic_r(&f, 0, APIC_IRR + 2), 0x220001);
    EQUAL(machine_intr_ack(f.m, 0), 0x55);
    EQUAL(apic_r(&f, 0, APIC_ISR + 2), 0x200000);
    EQUAL(apic_r(&f, 0, APIC_PPR), 0x50);
    CHECK(!machine_intr_pending(f.m, 0)); /* 0x51 is of the same class */
    EQUAL(machine_intr_ack(f.m, 0), -1);
    self_ipi(&f, 0x61);
    EQUAL(machine_intr_ack(f.m, 0), 0x61);
    apic_w(&f, 0, APIC_EOI, 0);
    CHECK(!machine_intr_pending(f.m, 0));
    unsigned kicks = f.kicks[0];
    apic_w(&f, 0, APIC_EOI, 0);
    CHECK(machine_intr_pending(f.m, 0));
    EQUAL(f.kicks[0], kicks + 1);
    /* TPR holds back, and CR8 is TPR 7:4. */
    apic_w(&f, 0, APIC_TPR, 0x50);
    CHECK(!machine_intr_pending(f.m, 0));
    EQUAL(apic_r(&f, 0, APIC_PPR), 0x50);
    EQUAL(machine_cr8_read(f.m, 0), 5);
    machine_cr8_write(f.m, 0, 4);
    EQUAL(apic_r(&f, 0, APIC_TPR), 0x40);
    EQUAL(machine_intr_ack(f.m, 0), 0x51);
    apic_w(&f, 0, APIC_EOI, 0);
    CHECK(!machine_intr_pending(f.m, 0)); /* 0x40 is held back by TPR 0x40 */
    machine_cr8_write(f.m, 0, 0);
    EQUAL(machine_intr_ack(f.m, 0), 0x40);
    apic_w(&f, 0, APIC_EOI, 0);
    apic_w(&f, 0, APIC_EOI, 0); /* one too many: nothing */
    CHECK(!machine_intr_pending(f.m, 0));
    /* Errors: illegal vector sent; the error interrupt. */
    apic_w(&f, 0, APIC_LVT + LVT_ERROR, 0xfe);
    self_ipi(&f, 3);
    EQUAL(machine_intr_ack(f.m, 0), 0xfe);
    apic_w(&f, 0, APIC_EOI, 0);
    EQUAL(apic_r(&f, 0, APIC_ESR), 0);
    apic_w(&f, 0, APIC_ESR, 0);
    EQUAL(apic_r(&f, 0, APIC_ESR), 0x20);
    apic_w(&f, 0, APIC_ESR, 0);
    EQUAL(apic_r(&f, 0, APIC_ESR), 0);
    /* NMI by ICR and by the button (LINT1). */
    apic_w(&f, 0, APIC_ICR, 0x40400);
    CHECK(machine_pending(f.m, 0) & MACHINE_NMI);
    CHECK(machine_nmi_take(f.m, 0));
    CHECK(!machine_nmi_take(f.m, 0));
    machine_nmi(f.m, 0);
    CHECK(machine_nmi_take(f.m, 0));
    apic_w(&f, 0, APIC_LVT + LVT_LINT1, 0x10400);
    machine_nmi(f.m, 0);
    CHECK(!machine_nmi_take(f.m, 0));
    /* Software disable masks the LVT, and it stays masked. */
    apic_w(&f, 0, APIC_SVR, 0xff);
    EQUAL(apic_r(&f, 0, APIC_LVT + LVT_ERROR), 0x100fe);
    apic_w(&f, 0, APIC_LVT + LVT_ERROR, 0xfe);
    EQUAL(apic_r(&f, 0, APIC_LVT + LVT_ERROR), 0x100fe);
    /* LINT0 fixed: the PIC's INTR edge becomes a vector. */
    apic_on(&f, 0);
    apic_w(&f, 0, APIC_LVT + LVT_LINT0, 0x77);
    pic_setup(&f);
    machine_set_gsi(f.m, 5, true);
    EQUAL(machine_intr_ack(f.m, 0), 0x77);
    apic_w(&f, 0, APIC_EOI, 0);
    apic_w(&f, 0, APIC_LVT + LVT_LINT0, 0x10700);
    CHECK(!machine_intr_pending(f.m, 0));
    apic_w(&f, 0, APIC_LVT + LVT_LINT0, 0x700);
    CHECK(machine_intr_pending(f.m, 0)); /* ExtINT is a level */
    EQUAL(machine_intr_ack(f.m, 0), 0x25);
    out8(&f, 0x20, 0x20);
    teardown(&f);
}

static void test_lapic_timer(void)
{
    struct fixture f;
    u64 v;
    setup(&f, 1);
    apic_on(&f, 0);
    /* One-shot, divide by 16. */
    apic_w(&f, 0, APIC_TDCR, 3);
    apic_w(&f, 0, APIC_LVT + LVT_TIMER, 0xec);
    apic_w(&f, 0, APIC_TMICT, 1000);
    pass(&f, 8000);
    EQUAL(apic_r(&f, 0, APIC_TMCCT), 500);
    CHECK(!machine_intr_pending(f.m, 0));
    pass(&f, 7999);
    EQUAL(apic_r(&f, 0, APIC_TMCCT), 1);
    CHECK(!machine_intr_pending(f.m, 0));
    pass(&f, 1);
    EQUAL(apic_r(&f, 0, APIC_TMCCT), 0);
    EQUAL(machine_intr_ack(f.m, 0), 0xec);
    apic_w(&f, 0, APIC_EOI, 0);
    pass(&f, 100000);
    CHECK(!machine_intr_pending(f.m, 0));
    EQUAL(clock_next(&f.m->clock), CLOCK_NEVER);
    /* Divide by 1, changed to 2 half way. */
    apic_w(&f, 0, APIC_TDCR, 0xb);
    apic_w(&f, 0, APIC_TMICT, 100000);
    pass(&f, 50000);
    apic_w(&f, 0, APIC_TDCR, 0);
    EQUAL(apic_r(&f, 0, APIC_TMCCT), 50000);
    pass(&f, 99999);
    CHECK(!machine_intr_pending(f.m, 0));
    pass(&f, 1);
    EQUAL(machine_intr_ack(f.m, 0), 0xec);
    apic_w(&f, 0, APIC_EOI, 0);
    /* Masked: counts, does not interrupt. */
    apic_w(&f, 0, APIC_LVT + LVT_TIMER, 0x100ec);
    apic_w(&f, 0, APIC_TMICT, 100);
    pass(&f, 1000);
    CHECK(!machine_intr_pending(f.m, 0));
    /* Periodic. */
    apic_w(&f, 0, APIC_TDCR, 0xb);
    apic_w(&f, 0, APIC_LVT + LVT_TIMER, 0x200ec);
    apic_w(&f, 0, APIC_TMICT, 1000000);
    for (unsigned i = 0; i < 10; i++) {
        pass(&f, 1000000);
        EQUAL(machine_intr_ack(f.m, 0), 0xec);
        apic_w(&f, 0, APIC_EOI, 0);
    }
    pass(&f, 5500000);
    EQUAL(machine_intr_ack(f.m, 0), 0xec);
    apic_w(&f, 0, APIC_EOI, 0);
    CHECK(!machine_intr_pending(f.m, 0));
    EQUAL(apic_r(&f, 0, APIC_TMCCT), 500000);
    apic_w(&f, 0, APIC_TMICT, 0);
    EQUAL(clock_next(&f.m->clock), CLOCK_NEVER);
    /* A silly period is slowed down, not obeyed. */
    apic_w(&f, 0, APIC_TMICT, 1);
    CHECK(clock_next(&f.m->clock) >= f.now + 50000);
    apic_w(&f, 0, APIC_TMICT, 0);
    /* TSC deadline: at 2 GHz, 10000 ticks are 5000 ns. */
    EQUAL(machine_msr_write(f.m, 0, MSR_TSC_DEADLINE, 5), 0); /* not in that mode: ignored */
    EQUAL(machine_msr_read(f.m, 0, MSR_TSC_DEADLINE, &v), 0);
    EQUAL(v, 0);
    apic_w(&f, 0, APIC_LVT + LVT_TIMER, 0x400ec);
    u64 deadline = f.now * 2 + 10001;
    machine_msr_write(f.m, 0, MSR_TSC_DEADLINE, deadline);
    machine_msr_read(f.m, 0, MSR_TSC_DEADLINE, &v);
    EQUAL(v, deadline);
    EQUAL(clock_next(&f.m->clock), f.now + 5001);
    pass(&f, 5000);
    CHECK(!machine_intr_pending(f.m, 0));
    pass(&f, 1);
    EQUAL(machine_intr_ack(f.m, 0), 0xec);
    apic_w(&f, 0, APIC_EOI, 0);
    machine_msr_read(f.m, 0, MSR_TSC_DEADLINE, &v);
    EQUAL(v, 0);
    machine_msr_write(f.m, 0, MSR_TSC_DEADLINE, f.now); /* in the past: at once */
    EQUAL(machine_intr_ack(f.m, 0), 0xec);
    apic_w(&f, 0, APIC_EOI, 0);
    machine_msr_write(f.m, 0, MSR_TSC_DEADLINE, ~0ull); /* "never" */
    pass(&f, 1000000);
    CHECK(!machine_intr_pending(f.m, 0));
    machine_msr_write(f.m, 0, MSR_TSC_DEADLINE, 0);
    EQUAL(clock_next(&f.m->clock), CLOCK_NEVER);
    /* A vCPU that waits awake looks itself: not early, once, and it leaves other chips' timers to their thread. */
    machine_msr_write(f.m, 0, MSR_TSC_DEADLINE, f.now * 2 + 2000);
    f.now += 999;
    clock_poll(&f.m->clock);
    CHECK(!machine_intr_pending(f.m, 0));
    f.now += 1;
    clock_poll(&f.m->clock);
    EQUAL(machine_intr_ack(f.m, 0), 0xec);
    apic_w(&f, 0, APIC_EOI, 0);
    EQUAL(clock_next(&f.m->clock), CLOCK_NEVER);
    pass(&f, 1000000);
    CHECK(!machine_intr_pending(f.m, 0));
    out8(&f, 0x43, 0x30); /* the PIT, in a millisecond or so */
    out8(&f, 0x40, 0xa9);
    out8(&f, 0x40, 4);
    u64 pit = clock_next(&f.m->clock);
    CHECK(pit != CLOCK_NEVER);
    f.now = pit;
    clock_poll(&f.m->clock);
    EQUAL(clock_next(&f.m->clock), pit);
    pass(&f, 0);
    EQUAL(clock_next(&f.m->clock), CLOCK_NEVER);
    teardown(&f);
}

static void test_ipi(void)
{
    struct fixture f;
    setup(&f, 4);
    apic_on(&f, 0);
    /* INIT, SIPI, SIPI. */
    apic_w(&f, 0, APIC_ICR2, 2u << 24);
    apic_w(&f, 0, APIC_ICR, 0x4500);
    EQUAL(machine_pending(f.m, 2), MACHINE_INIT);
    EQUAL(f.kicks[2], 1);
    EQUAL(f.kicks[1] + f.kicks[3], 0);
    apic_w(&f, 0, APIC_ICR, 0x8500); /* de-assert: nothing */
    apic_w(&f, 0, APIC_ICR, 0x4698);
    apic_w(&f, 0, APIC_ICR, 0x4697);
    EQUAL(machine_sipi_take(f.m, 2), -1); /* both came after its thread had looked for INIT: that is first */
    CHECK(machine_init_take(f.m, 2));
    EQUAL(machine_sipi_take(f.m, 2), 0x98); /* the second is ignored */
    EQUAL(machine_sipi_take(f.m, 2), -1);
    EQUAL(apic_r(&f, 2, APIC_ID), 2u << 24);
    for (unsigned i = 1; i < 4; i++)
        apic_on(&f, i);
    /* Physical, all but self, all. */
    apic_w(&f, 0, APIC_ICR, 0x40fd);
    EQUAL(machine_intr_ack(f.m, 2), 0xfd);
    EQUAL(machine_intr_ack(f.m, 1), -1);
    apic_w(&f, 1, APIC_ICR, 0xc40fc);
    EQUAL(machine_intr_ack(f.m, 1), -1);
    EQUAL(machine_intr_ack(f.m, 0), 0xfc);
    EQUAL(machine_intr_ack(f.m, 3), 0xfc);
    apic_w(&f, 3, APIC_ICR, 0x84400); /* NMI to all */
    for (unsigned i = 0; i < 4; i++)
        CHECK(machine_nmi_take(f.m, i));
    apic_w(&f, 0, APIC_EOI, 0), apic_w(&f, 2, APIC_EOI, 0), apic_w(&f, 3, APIC_EOI, 0);
    while (machine_intr_ack(f.m, 2) >= 0)
        apic_w(&f, 2, APIC_EOI, 0);
    /* Physical broadcast. */
    apic_w(&f, 0, APIC_ICR2, 0xffu << 24);
    apic_w(&f, 0, APIC_ICR, 0x4044);
    for (unsigned i = 0; i < 4; i++) {
        EQUAL(machine_intr_ack(f.m, i), 0x44);
        apic_w(&f, i, APIC_EOI, 0);
    }
    /* Logical flat. */
    for (unsigned i = 0; i < 4; i++) {
        apic_w(&f, i, APIC_DFR, 0xffffffff);
        apic_w(&f, i, APIC_LDR, 1u << (24 + i));
    }
    apic_w(&f, 0, APIC_ICR2, 0x0au << 24);
    apic_w(&f, 0, APIC_ICR, 0x4845);
    EQUAL(machine_intr_ack(f.m, 0), -1);
    EQUAL(machine_intr_ack(f.m, 1), 0x45);
    EQUAL(machine_intr_ack(f.m, 2), -1);
    EQUAL(machine_intr_ack(f.m, 3), 0x45);
    apic_w(&f, 1, APIC_EOI, 0), apic_w(&f, 3, APIC_EOI, 0);
    /* Lowest priority: the one with the lowest PPR, then in turn. */
    apic_w(&f, 1, APIC_TPR, 0x20);
    apic_w(&f, 0, APIC_ICR, 0x4946);
    EQUAL(machine_intr_ack(f.m, 3), 0x46);
    apic_w(&f, 3, APIC_EOI, 0);
    apic_w(&f, 1, APIC_TPR, 0);
    /* Logical cluster. */
    for (unsigned i = 0; i < 4; i++) {
        apic_w(&f, i, APIC_DFR, 0x0fffffff);
        apic_w(&f, i, APIC_LDR, ((i / 2) << 4 | 1u << (i & 1)) << 24);
    }
    apic_w(&f, 0, APIC_ICR2, 0x12u << 24);
    apic_w(&f, 0, APIC_ICR, 0x4847);
    EQUAL(machine_intr_ack(f.m, 3), 0x47);
    EQUAL(machine_intr_ack(f.m, 2), -1);
    EQUAL(machine_intr_ack(f.m, 1), -1);
    apic_w(&f, 3, APIC_EOI, 0);
    /* MSI. */
    machine_msi(f.m, 0xfee01000, 0x4051);
    EQUAL(machine_intr_ack(f.m, 1), 0x51);
    apic_w(&f, 1, APIC_EOI, 0);
    /* INIT clears the registers. */
    apic_w(&f, 0, APIC_ICR2, 3u << 24);
    apic_w(&f, 0, APIC_ICR, 0x4500);
    EQUAL(apic_r(&f, 3, APIC_SVR), 0xff);
    EQUAL(apic_r(&f, 3, APIC_LVT + LVT_LINT0), 0x10000);
    teardown(&f);
}

static void test_x2apic(void)
{
    struct fixture f;
    u64 v;
    setup(&f, 20);
    struct machine *m = f.m;
    CHECK(machine_msr_read(m, 0, 0x802, &v) < 0); /* not in that mode */
    EQUAL(machine_msr_read(m, 0, MSR_APIC_BASE, &v), 0);
    EQUAL(v, 0xfee00900);
    EQUAL(machine_msr_read(m, 1, MSR_APIC_BASE, &v), 0);
    EQUAL(v, 0xfee00800);
    CHECK(machine_msr_write(m, 0, MSR_APIC_BASE, 0xfee00500) < 0); /* EXTD without EN */
    CHECK(machine_msr_write(m, 0, MSR_APIC_BASE, 0xfee00901) < 0); /* reserved bit */
    for (unsigned i = 0; i < 20; i++)
        x2apic_on(&f, i);
    CHECK(machine_msr_write(m, 0, MSR_APIC_BASE, 0xfee00900) < 0); /* back to xAPIC */
    EQUAL(machine_msr_read(m, 17, 0x802, &v), 0);
    EQUAL(v, 17);
    EQUAL(machine_msr_read(m, 17, 0x80d, &v), 0);
    EQUAL(v, 0x10002);
    EQUAL(apic_r(&f, 0, APIC_ID), 0xffffffff); /* no MMIO any more */
    CHECK(machine_msr_write(m, 0, 0x802, 1) < 0); /* read-only */
    CHECK(machine_msr_write(m, 0, 0x80d, 1) < 0);
    CHECK(machine_msr_read(m, 0, 0x80b, &v) < 0); /* write-only */
    CHECK(machine_msr_write(m, 0, 0x80b, 1) < 0);
    CHECK(machine_msr_write(m, 0, 0x828, 1) < 0);
    CHECK(machine_msr_write(m, 0, 0x808, 0x100) < 0);
    CHECK(machine_msr_read(m, 0, 0x80e, &v) < 0); /* no DFR */
    CHECK(machine_msr_read(m, 0, 0x831, &v) < 0);
    CHECK(machine_msr_read(m, 0, 0x8ff, &v) < 0);
    CHECK(machine_msr_write(m, 0, 0x830, 1u << 13) < 0);
    CHECK(machine_msr_write(m, 0, 0x83f, 0x100) < 0);
    EQUAL(machine_msr_write(m, 0, 0x83f, 0x41), 0);
    EQUAL(machine_intr_ack(m, 0), 0x41);
    EQUAL(machine_msr_read(m, 0, 0x812, &v), 0);
    EQUAL(v, 2);
    EQUAL(machine_msr_write(m, 0, 0x80b, 0), 0);
    EQUAL(machine_msr_read(m, 0, 0x812, &v), 0);
    EQUAL(v, 0);
    /* Physical and logical IPIs in one 64-bit write. */
    EQUAL(machine_msr_write(m, 0, 0x830, 18ull << 32 | 0x4051), 0);
    EQUAL(machine_intr_ack(m, 18), 0x51);
    EQUAL(machine_msr_read(m, 0, 0x830, &v), 0);
    EQUAL(v, 18ull << 32 | 0x4051);
    EQUAL(machine_msr_write(m, 0, 0x830, 0x1000aull << 32 | 0x4862), 0);
    EQUAL(machine_intr_ack(m, 17), 0x62);
    EQUAL(machine_intr_ack(m, 19), 0x62);
    EQUAL(machine_intr_ack(m, 16), -1);
    EQUAL(machine_intr_ack(m, 1), -1);
    EQUAL(machine_msr_write(m, 0, 0x830, 0xffffffffull << 32 | 0x4063), 0);
    EQUAL(machine_intr_ack(m, 5), 0x63);
    EQUAL(machine_intr_ack(m, 0), 0x63);
    /* INIT keeps the mode and the ID. */
    EQUAL(machine_msr_write(m, 0, 0x830, 17ull << 32 | 0x4500), 0);
    EQUAL(machine_msr_read(m, 17, 0x80d, &v), 0);
    EQUAL(v, 0x10002);
    /* Off, and on again through xAPIC only. */
    EQUAL(machine_msr_write(m, 5, MSR_APIC_BASE, 0xfee00000), 0);
    CHECK(machine_msr_write(m, 5, MSR_APIC_BASE, 0xfee00c00) < 0);
    EQUAL(machine_msr_write(m, 5, MSR_APIC_BASE, 0xfee00800), 0);
    EQUAL(apic_r(&f, 5, APIC_SVR), 0xff);
    /* Reset goes back to xAPIC. */
    machine_reset(m);
    EQUAL(machine_apic_base(m, 0), 0xfee00900);
    teardown(&f);
}

static void send(struct machine *m, u32 to, u32 icr)
{
    EQUAL(machine_msr_write(m, 0, 0x830, (u64)to << 32 | 0x4000 | icr), 0);
}

static void test_pv_eoi(void)
{
    struct fixture f;
    u64 v;
    u32 word = 0xfffffff0; /* only bit 0 is ours */
    setup(&f, 4);
    struct machine *m = f.m;
    for (unsigned i = 0; i < 4; i++)
        x2apic_on(&f, i);
    machine_pv_eoi_set(m, 1, 0x1001, &word);
    EQUAL(machine_pv_eoi_get(m, 1), 0x1001);
    EQUAL(machine_pv_eoi_get(m, 0), 0);

    /* Told, ended by the word; the APIC learns of it when it matters. */
    send(m, 1, 0x41);
    EQUAL(machine_intr_ack(m, 1), 0x41);
    EQUAL(word, 0xfffffff1);
    word &= ~1u;
    EQUAL(machine_pending(m, 1), 0);
    unsigned kicks = f.kicks[1];
    send(m, 1, 0x41); /* the same again: what is in service is stale, so it must be asked */
    EQUAL(machine_pending(m, 1), MACHINE_INTR);
    CHECK(f.kicks[1] > kicks);
    EQUAL(machine_intr_ack(m, 1), 0x41);
    EQUAL(word, 0xfffffff1);

    /* Not ended when another comes: then it is to be ended by the APIC. */
    send(m, 1, 0x42);
    EQUAL(machine_pending(m, 1), MACHINE_INTR); /* only its own thread can tell */
    EQUAL(machine_intr_ack(m, 1), -1);          /* the same class: waits */
    EQUAL(word, 0xfffffff0);
    EQUAL(machine_pending(m, 1), 0);
    EQUAL(machine_msr_write(m, 1, 0x80b, 0), 0);
    EQUAL(machine_pending(m, 1), MACHINE_INTR);
    EQUAL(machine_intr_ack(m, 1), 0x42);

    /* Nested: the inner by the word, the outer by the APIC. */
    send(m, 1, 0x81);
    EQUAL(machine_intr_ack(m, 1), 0x81);
    EQUAL(word, 0xfffffff1);
    word &= ~1u;
    EQUAL(machine_msr_write(m, 1, 0x80b, 0), 0); /* ends 0x42, not 0x81 a second time */
    EQUAL(machine_msr_read(m, 1, 0x812, &v), 0);
    EQUAL(v, 0);
    EQUAL(machine_msr_read(m, 1, 0x814, &v), 0);
    EQUAL(v, 0);

    /* More waiting: not told. */
    send(m, 1, 0x51);
    send(m, 1, 0x61);
    EQUAL(machine_intr_ack(m, 1), 0x61);
    EQUAL(word, 0xfffffff0);
    EQUAL(machine_msr_write(m, 1, 0x80b, 0), 0);
    EQUAL(machine_intr_ack(m, 1), 0x51);
    EQUAL(word, 0xfffffff1);
    /* Off while one is told: it is ended by the APIC. */
    machine_pv_eoi_set(m, 1, 0, NULL);
    EQUAL(word, 0xfffffff0);
    EQUAL(machine_msr_read(m, 1, 0x812, &v), 0);
    EQUAL(v, 1u << 17);
    EQUAL(machine_msr_write(m, 1, 0x80b, 0), 0);

    /* INIT switches it off, from another thread, without touching the word. */
    machine_pv_eoi_set(m, 1, 0x1001, &word);
    send(m, 1, 0x51);
    EQUAL(machine_intr_ack(m, 1), 0x51);
    send(m, 1, 0x500);
    EQUAL(machine_pv_eoi_get(m, 1), 0);
    EQUAL(word, 0xfffffff1);
    teardown(&f);
}

static void test_ipi_mask(void)
{
    struct fixture f;
    setup(&f, 100);
    for (unsigned i = 0; i < 100; i++)
        x2apic_on(&f, i);
    EQUAL(machine_ipi_mask(f.m, 0, (u64[]){ 6, 0 }, 0x41), 2);
    EQUAL(machine_intr_ack(f.m, 1), 0x41);
    EQUAL(machine_intr_ack(f.m, 2), 0x41);
    EQUAL(machine_intr_ack(f.m, 3), -1);
    EQUAL(machine_ipi_mask(f.m, 30, (u64[]){ 1, 1 }, 0x42), 2);
    EQUAL(machine_intr_ack(f.m, 30), 0x42);
    EQUAL(machine_intr_ack(f.m, 94), 0x42);
    EQUAL(machine_ipi_mask(f.m, 90, (u64[]){ ~0ull, ~0ull }, 0x43), 10);
    EQUAL(machine_ipi_mask(f.m, 99, (u64[]){ 2, 0 }, 0x43), 0);
    EQUAL(machine_ipi_mask(f.m, ~0u, (u64[]){ ~0ull, ~0ull }, 0x43), 0);
    EQUAL(machine_ipi_mask(f.m, 0, (u64[]){ 1, 0 }, 0x400), 1);
    CHECK(machine_nmi_take(f.m, 0));
    EQUAL(machine_ipi_mask(f.m, 0, (u64[]){ 1, 0 }, 0x500), -1);
    EQUAL(machine_ipi_mask(f.m, 0, (u64[]){ 1, 0 }, 0x841), -1);
    teardown(&f);
}

/* IPIs to one APIC by its ID are posted without the lock: nothing of what the manual says of them may differ. */
static void test_posted(void)
{
    struct fixture f;
    u64 v;
    setup(&f, 4);
    struct machine *m = f.m;
    for (unsigned i = 0; i < 3; i++)
        x2apic_on(&f, i);
    EQUAL(machine_ipi_mask(m, 0, (u64[]){ 0xe, 0 }, 0x41), 2); /* the fourth is switched off */
    EQUAL(f.kicks[1], 1);
    EQUAL(machine_ipi_mask(m, 0, (u64[]){ 0xe, 0 }, 0x0f), 2); /* an illegal vector: received, and an error */
    EQUAL(machine_pending(m, 1), MACHINE_INTR);
    EQUAL(machine_msr_read(m, 1, 0x822, &v), 0); /* in IRR */
    EQUAL(v, 2);
    EQUAL(machine_intr_ack(m, 1), 0x41);
    EQUAL(machine_msr_read(m, 1, 0x822, &v), 0);
    EQUAL(v, 0);
    EQUAL(machine_msr_write(m, 1, 0x80b, 0), 0);

    /* Held back by the priority, until that falls. */
    EQUAL(machine_msr_write(m, 2, 0x808, 0x50), 0);
    EQUAL(machine_intr_ack(m, 2), -1);
    EQUAL(machine_pending(m, 2), 0);
    EQUAL(machine_msr_write(m, 2, 0x808, 0), 0);
    EQUAL(machine_pending(m, 2), MACHINE_INTR);
    EQUAL(machine_intr_ack(m, 2), 0x41);

    /* What came before the APIC was switched off stays, what comes then is lost. */
    send(m, 1, 0x61);
    EQUAL(machine_msr_write(m, 1, 0x80f, 0xff), 0);
    send(m, 1, 0x71);
    EQUAL(machine_intr_ack(m, 1), -1);
    EQUAL(machine_msr_write(m, 1, 0x80f, 0x1ff), 0);
    EQUAL(machine_intr_ack(m, 1), 0x61);
    EQUAL(machine_msr_write(m, 1, 0x80b, 0), 0);
    EQUAL(machine_pending(m, 1), 0);

    /* INIT forgets it. */
    send(m, 1, 0x62);
    send(m, 1, 0x500);
    EQUAL(machine_pending(m, 1), MACHINE_INIT);
    CHECK(machine_init_take(m, 1));
    send(m, 1, 0x63);
    EQUAL(machine_msr_write(m, 1, 0x80f, 0x1ff), 0);
    EQUAL(machine_pending(m, 1), 0);
    EQUAL(machine_intr_ack(m, 1), -1);

    /* And a reset. */
    send(m, 2, 0x64);
    machine_reset(m);
    EQUAL(machine_pending(m, 2), 0);
    teardown(&f);
}

/* -- I/O APIC ------------------------------------------------------------- */

static void test_ioapic(void)
{
    struct fixture f;
    setup(&f, 2);
    apic_on(&f, 0), apic_on(&f, 1);
    EQUAL(ioapic_r(&f, 1), 0x170020);
    EQUAL(ioapic_r(&f, 0x10), 0x10000);
    /* Edge to CPU 1. */
    ioapic_w(&f, 0x10 + 8, 0x31), ioapic_w(&f, 0x11 + 8, 1u << 24);
    machine_set_gsi(f.m, 4, true);
    EQUAL(machine_intr_ack(f.m, 1), 0x31);
    EQUAL(ioapic_r(&f, 0x18), 0x31);
    machine_set_gsi(f.m, 4, true);
    EQUAL(machine_intr_ack(f.m, 1), -1);
    apic_w(&f, 1, APIC_EOI, 0);
    machine_set_gsi(f.m, 4, false);
    /* Masked edge is lost. */
    ioapic_w(&f, 0x18, 0x10031);
    machine_set_gsi(f.m, 4, true);
    ioapic_w(&f, 0x18, 0x31);
    EQUAL(machine_intr_ack(f.m, 1), -1);
    machine_set_gsi(f.m, 4, false);
    /* Level: remote IRR until EOI, again while asserted. */
    ioapic_w(&f, 0x10 + 32, 0x8032);
    machine_set_gsi(f.m, 16, true);
    EQUAL(ioapic_r(&f, 0x30), 0xc032);
    EQUAL(machine_intr_ack(f.m, 0), 0x32);
    EQUAL(apic_r(&f, 0, APIC_TMR + 1), 1u << (0x32 - 32));
    apic_w(&f, 0, APIC_EOI, 0);
    EQUAL(machine_intr_ack(f.m, 0), 0x32);
    machine_set_gsi(f.m, 16, false);
    EQUAL(ioapic_r(&f, 0x30), 0xc032);
    apic_w(&f, 0, APIC_EOI, 0);
    EQUAL(ioapic_r(&f, 0x30), 0x8032);
    EQUAL(machine_intr_ack(f.m, 0), -1);
    /* Unmasking an asserted level delivers. */
    ioapic_w(&f, 0x30, 0x18032);
    machine_set_gsi(f.m, 16, true);
    EQUAL(machine_intr_ack(f.m, 0), -1);
    ioapic_w(&f, 0x30, 0x8032);
    EQUAL(machine_intr_ack(f.m, 0), 0x32);
    /* Broadcast suppressed: the EOI register does it. */
    apic_w(&f, 0, APIC_SVR, 0x11ff);
    machine_set_gsi(f.m, 16, false);
    apic_w(&f, 0, APIC_EOI, 0);
    EQUAL(ioapic_r(&f, 0x30), 0xc032);
    u32 vector = 0x32;
    machine_mmio_write(f.m, 0, LAYOUT_IOAPIC + 0x40, &vector, 4);
    EQUAL(ioapic_r(&f, 0x30), 0x8032);
    /* IRQ 0 comes in on pin 2. */
    ioapic_w(&f, 0x14, 0x30);
    machine_set_gsi(f.m, 0, false), machine_set_gsi(f.m, 0, true);
    EQUAL(machine_intr_ack(f.m, 0), 0x30);
    apic_w(&f, 0, APIC_EOI, 0);
    /* ExtINT through a pin. */
    pic_setup(&f);
    apic_w(&f, 0, APIC_LVT + LVT_LINT0, 0x10700);
    ioapic_w(&f, 0x10 + 14, 0x700);
    machine_set_gsi(f.m, 7, true);
    EQUAL(machine_intr_ack(f.m, 0), 0x27);
    /* Nobody home: the level is not stuck in service. */
    ioapic_w(&f, 0x11 + 34, 7u << 24), ioapic_w(&f, 0x10 + 34, 0x8033);
    machine_set_gsi(f.m, 17, true);
    EQUAL(ioapic_r(&f, 0x32), 0x8033);
    teardown(&f);
}

/* -- UART ----------------------------------------------------------------- */

#define COM(r) ((u16)(PORT_COM1 + (r)))

static void test_uart(void)
{
    struct fixture f;
    setup(&f, 1);
    pic_setup(&f);
    /* Linux's autoconf: scratch, loopback, FIFO. */
    out8(&f, COM(1), 0xff);
    EQUAL(in8(&f, COM(1)), 0x0f);
    out8(&f, COM(1), 0);
    out8(&f, COM(7), 0xa5);
    EQUAL(in8(&f, COM(7)), 0xa5);
    out8(&f, COM(4), 0x1a);
    EQUAL(in8(&f, COM(6)) & 0xf0, 0x90);
    out8(&f, COM(4), 0);
    EQUAL(in8(&f, COM(2)), 0x01);
    out8(&f, COM(2), 0x01);
    EQUAL(in8(&f, COM(2)), 0xc1);
    out8(&f, COM(3), 0x80);
    out8(&f, COM(0), 0x0c), out8(&f, COM(1), 0);
    EQUAL(in8(&f, COM(0)), 0x0c);
    out8(&f, COM(3), 0x03);
    EQUAL(in8(&f, COM(5)), 0x60);
    in8(&f, COM(6));
    /* Output is batched by line, or by time. */
    const char *hello = "hello\n";
    for (const char *p = hello; *p; p++)
        out8(&f, COM(0), (u8)*p);
    EQUAL(f.tx_calls, 1);
    CHECK(f.tx_len == 6 && !memcmp(f.tx, hello, 6));
    out8(&f, COM(0), '>');
    EQUAL(f.tx_calls, 1);
    pass(&f, 3000000);
    EQUAL(f.tx_calls, 2);
    CHECK(f.tx[6] == '>');
    /* THRE interrupt: by enabling, by reading IIR, by writing again. */
    out8(&f, COM(4), 0x0b);
    in8(&f, COM(6));
    out8(&f, COM(1), 0x02);
    EQUAL(machine_intr_ack(f.m, 0), 0x24);
    out8(&f, 0x20, 0x20);
    EQUAL(in8(&f, COM(2)), 0xc2);
    EQUAL(in8(&f, COM(2)), 0xc1);
    CHECK(!machine_intr_pending(f.m, 0));
    out8(&f, COM(0), 'x');
    EQUAL(machine_intr_ack(f.m, 0), 0x24);
    out8(&f, 0x20, 0x20);
    out8(&f, COM(1), 0);
    in8(&f, COM(2));
    /* Without OUT2 no interrupt leaves the card. */
    out8(&f, COM(4), 0x03);
    out8(&f, COM(1), 0x02);
    CHECK(!machine_intr_pending(f.m, 0));
    out8(&f, COM(1), 0);
    out8(&f, COM(4), 0x0b);
    /* Receive: below the trigger a time-out, at it data. */
    out8(&f, COM(2), 0x41); /* trigger 4 */
    out8(&f, COM(1), 0x01);
    EQUAL(machine_console_feed(f.m, (const u8 *)"ab", 2), 2);
    EQUAL(in8(&f, COM(2)), 0xcc);
    EQUAL(machine_intr_ack(f.m, 0), 0x24);
    out8(&f, 0x20, 0x20);
    machine_console_feed(f.m, (const u8 *)"cd", 2);
    EQUAL(in8(&f, COM(2)), 0xc4);
    EQUAL(in8(&f, COM(5)), 0x61);
    EQUAL(in8(&f, COM(0)), 'a');
    EQUAL(in8(&f, COM(2)), 0xcc);
    EQUAL(in8(&f, COM(0)), 'b');
    EQUAL(in8(&f, COM(0)), 'c');
    EQUAL(in8(&f, COM(0)), 'd');
    EQUAL(in8(&f, COM(2)), 0xc1);
    EQUAL(in8(&f, COM(5)), 0x60);
    CHECK(!machine_intr_pending(f.m, 0));
    /* A full queue takes no more, and loses nothing. */
    u8 big[UART_RX_QUEUE + 10];
    memset(big, 'z', sizeof(big));
    EQUAL(machine_console_feed(f.m, big, sizeof(big)), UART_RX_QUEUE);
    EQUAL(machine_console_feed(f.m, big, 1), 0);
    in8(&f, COM(0));
    EQUAL(machine_console_feed(f.m, big, 2), 1);
    unsigned n = 0;
    while (in8(&f, COM(5)) & 1)
        in8(&f, COM(0)), n++;
    EQUAL(n, UART_RX_QUEUE);
    /* Loopback: data, 16 deep, overrun, line status interrupt. */
    out8(&f, COM(2), 0x07);
    out8(&f, COM(1), 0x05);
    out8(&f, COM(4), 0x1b);
    for (unsigned i = 0; i < 17; i++)
        out8(&f, COM(0), (u8)i);
    EQUAL(in8(&f, COM(2)), 0xc6);
    EQUAL(in8(&f, COM(5)), 0x63);
    EQUAL(in8(&f, COM(5)), 0x61);
    for (unsigned i = 0; i < 16; i++)
        EQUAL(in8(&f, COM(0)), i);
    EQUAL(in8(&f, COM(5)), 0x60);
    EQUAL(f.tx_calls, 2); /* nothing of it left the chip */
    machine_reset(f.m);
    EQUAL(in8(&f, COM(1)), 0);
    teardown(&f);
}

/* When may input come without being lost? */
static void test_uart_listening(void)
{
    struct fixture f;
    setup(&f, 1);
    CHECK(!machine_console_listening(f.m));
    /* Output by polling, as early consoles do it, is not listening. */
    for (unsigned i = 0; i < 200; i++) {
        in8(&f, COM(5));
        out8(&f, COM(0), 'x');
        in8(&f, COM(5));
    }
    CHECK(!machine_console_listening(f.m));
    /* Linux's start: probing reads, interrupts on, then the divisor and the FIFO, which is cleared by it. */
    for (unsigned i = 0; i < 4; i++)
        in8(&f, COM(5)), in8(&f, COM(0)), in8(&f, COM(2)), in8(&f, COM(6));
    out8(&f, COM(4), 0x0b);
    out8(&f, COM(1), 0x05);
    CHECK(!machine_console_listening(f.m));
    out8(&f, COM(3), 0x80), out8(&f, COM(0), 1), out8(&f, COM(1), 0), out8(&f, COM(3), 0x03);
    CHECK(!machine_console_listening(f.m));
    out8(&f, COM(2), 0x81);
    CHECK(machine_console_listening(f.m));
    out8(&f, COM(4), 0x1b); /* loopback */
    CHECK(!machine_console_listening(f.m));
    out8(&f, COM(4), 0x0b);
    /* Interrupts without a FIFO: once the driver has looked. */
    out8(&f, COM(2), 0);
    CHECK(!machine_console_listening(f.m));
    in8(&f, COM(2));
    CHECK(machine_console_listening(f.m));
    /* Input by polling. */
    out8(&f, COM(1), 0);
    CHECK(!machine_console_listening(f.m));
    for (unsigned i = 0; i < 100; i++)
        in8(&f, COM(5));
    CHECK(machine_console_listening(f.m));
    machine_reset(f.m);
    CHECK(!machine_console_listening(f.m));
    teardown(&f);
}

/* -- RTC ------------------------------------------------------------------ */

static u8 cmos(struct fixture *f, u8 reg)
{
    out8(f, 0x70, reg);
    return in8(f, 0x71);
}
static void cmos_w(struct fixture *f, u8 reg, u8 v)
{
    out8(f, 0x70, reg);
    out8(f, 0x71, v);
}

static void test_rtc(void)
{
    struct fixture f;
    setup(&f, 3);
    pic_setup(&f);
    EQUAL(cmos(&f, 13), 0x80);
    EQUAL(cmos(&f, 10), 0x26);
    EQUAL(cmos(&f, 0), 0x20), EQUAL(cmos(&f, 2), 0x13), EQUAL(cmos(&f, 4), 0x22);
    EQUAL(cmos(&f, 6), 3), EQUAL(cmos(&f, 7), 0x14), EQUAL(cmos(&f, 8), 0x11);
    EQUAL(cmos(&f, 9), 0x23), EQUAL(cmos(&f, CMOS_CENTURY), 0x20);
    EQUAL(cmos(&f, CMOS_BASE_MEM) | cmos(&f, CMOS_BASE_MEM + 1) << 8, 640);
    EQUAL(cmos(&f, CMOS_EXT_MEM) | cmos(&f, CMOS_EXT_MEM + 1) << 8, 63 * 1024);
    EQUAL(cmos(&f, CMOS_MEM_16M) | cmos(&f, CMOS_MEM_16M + 1) << 8, 48 * 16);
    EQUAL(cmos(&f, CMOS_NR_CPUS), 2);
    cmos_w(&f, CMOS_SHUTDOWN, 0x0a);
    machine_reset(f.m);
    EQUAL(cmos(&f, CMOS_SHUTDOWN), 0x0a);
    pic_setup(&f);
    /* UIP in the last 244 us. */
    pass(&f, 999800000);
    EQUAL(cmos(&f, 10), 0xa6);
    pass(&f, 300000);
    EQUAL(cmos(&f, 10), 0x26);
    EQUAL(cmos(&f, 0), 0x21);
    /* 12 hours, binary. */
    cmos_w(&f, 11, 0x04);
    EQUAL(cmos(&f, 4), 0x80 | 10);
    EQUAL(cmos(&f, 9), 23);
    /* Setting: 2031-02-28 23:59:59, then the next second. */
    cmos_w(&f, 11, 0x82);
    cmos_w(&f, 0, 0x59), cmos_w(&f, 2, 0x59), cmos_w(&f, 4, 0x23);
    cmos_w(&f, 7, 0x28), cmos_w(&f, 8, 0x02), cmos_w(&f, 9, 0x31);
    cmos_w(&f, CMOS_CENTURY, 0x20); /* the format has changed: all of them */
    pass(&f, 5 * NS_PER_SEC);
    EQUAL(cmos(&f, 0), 0x59); /* held */
    cmos_w(&f, 11, 0x02);
    pass(&f, NS_PER_SEC);
    EQUAL(cmos(&f, 0), 0), EQUAL(cmos(&f, 4), 0);
    EQUAL(cmos(&f, 7), 1), EQUAL(cmos(&f, 8), 3), EQUAL(cmos(&f, 9), 0x31);
    EQUAL(cmos(&f, 6), 7); /* a Saturday */
    /* Update-ended interrupt. */
    cmos(&f, 12);
    cmos_w(&f, 11, 0x12);
    CHECK(!machine_intr_pending(f.m, 0));
    pass(&f, NS_PER_SEC);
    EQUAL(machine_intr_ack(f.m, 0), 0x28);
    EQUAL(cmos(&f, 12) & 0x90, 0x90);
    EQUAL(cmos(&f, 12) & 0x80, 0);
    out8(&f, 0xa0, 0x20), out8(&f, 0x20, 0x20);
    /* Alarm at xx:xx:05. */
    cmos_w(&f, 11, 0x02);
    cmos_w(&f, 1, 0x05), cmos_w(&f, 3, 0xff), cmos_w(&f, 5, 0xff);
    cmos(&f, 12);
    cmos_w(&f, 11, 0x22);
    unsigned s = 0;
    while (!machine_intr_pending(f.m, 0) && s++ < 100)
        pass(&f, NS_PER_SEC);
    EQUAL(cmos(&f, 0), 0x05);
    EQUAL(machine_intr_ack(f.m, 0), 0x28);
    EQUAL(cmos(&f, 12) & 0xa0, 0xa0);
    out8(&f, 0xa0, 0x20), out8(&f, 0x20, 0x20);
    /* Periodic: rate 6 is 1024 Hz. */
    cmos_w(&f, 11, 0x42);
    pass(&f, 976563);
    EQUAL(machine_intr_ack(f.m, 0), 0x28);
    EQUAL(cmos(&f, 12) & 0xc0, 0xc0);
    out8(&f, 0xa0, 0x20), out8(&f, 0x20, 0x20);
    pass(&f, 976563);
    EQUAL(machine_intr_ack(f.m, 0), 0x28);
    cmos_w(&f, 11, 0x02);
    EQUAL(clock_next(&f.m->clock), CLOCK_NEVER); /* idle costs nothing */
    teardown(&f);
}

/* -- ACPI hardware, resets ------------------------------------------------ */

static void test_pm(void)
{
    struct fixture f;
    setup(&f, 1);
    pic_setup(&f);
    u32 last = machine_port_in(f.m, PORT_PM_TMR, 4);
    for (unsigned i = 0; i < 1000; i++) {
        f.now += 123457;
        u32 t = machine_port_in(f.m, PORT_PM_TMR, 4);
        CHECK(t - last >= 440 && t - last <= 443);
        last = t;
    }
    EQUAL(machine_port_in(f.m, PORT_PM_TMR, 2), last & 0xffff);
    EQUAL(machine_port_in(f.m, PORT_PM_TMR + 2, 2), last >> 16);
    EQUAL(machine_port_in(f.m, PORT_PM1_CNT, 2), 1);
    /* Power button: SCI on 9, level by ELCR; status is write-one-to-clear. */
    machine_port_out(f.m, PORT_PM1_EVT + 2, 2, 0x120);
    machine_power_button(f.m);
    EQUAL(machine_intr_ack(f.m, 0), 0x29);
    EQUAL(machine_port_in(f.m, PORT_PM1_EVT, 4), 0x1200100);
    out8(&f, PORT_PM1_EVT + 1, 0x01);
    EQUAL(machine_port_in(f.m, PORT_PM1_EVT, 2), 0);
    out8(&f, 0xa0, 0x20), out8(&f, 0x20, 0x20);
    CHECK(!machine_intr_pending(f.m, 0));
    /* GPE by bytes: clearing one status byte leaves the other. */
    pm_gpe(&f.m->pm, 3), pm_gpe(&f.m->pm, 9);
    out8(&f, PORT_GPE0, 0xff);
    EQUAL(machine_port_in(f.m, PORT_GPE0, 2), 0x200);
    /* Timer status by its top bit. */
    machine_port_out(f.m, PORT_PM1_EVT + 2, 2, 1);
    pass(&f, 601 * NS_PER_SEC);
    EQUAL(machine_intr_ack(f.m, 0), 0x29);
    machine_port_out(f.m, PORT_PM1_EVT, 2, 1);
    out8(&f, 0xa0, 0x20), out8(&f, 0x20, 0x20);
    CHECK(!machine_intr_pending(f.m, 0));
    /* S5; anything else just wakes. */
    machine_port_out(f.m, PORT_PM1_CNT, 2, 0x2000 | 1 << 10);
    EQUAL(f.request, -1);
    CHECK(machine_port_in(f.m, PORT_PM1_EVT, 2) & 0x8000);
    out8(&f, COM(0), 'p');
    machine_port_out(f.m, PORT_PM1_CNT, 2, 0x2000 | ACPI_SLP_TYP_S5 << 10);
    EQUAL(f.request, MACHINE_POWEROFF);
    EQUAL(f.status, 0);
    EQUAL(f.tx_len, 1); /* pending output went first */

    static const struct { u16 port; u8 v; int want; } resets[] = {
        { PORT_RESET, 0x06, MACHINE_RESET }, { PORT_RESET, 0x02, -1 },
        { PORT_RESET, 0x0e, MACHINE_RESET },
        { PORT_KBD_STATUS, 0xfe, MACHINE_RESET }, { PORT_SYSTEM_A, 0x02, -1 },
        { PORT_SYSTEM_A, 0x03, MACHINE_RESET }, { PORT_PVPANIC, 1, MACHINE_PANICKED },
        { PORT_PVPANIC, 2, -1 }, { PORT_POST, 0x55, -1 },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(resets); i++) {
        f.request = -1;
        out8(&f, resets[i].port, resets[i].v);
        EQUAL(f.request, resets[i].want);
    }
    EQUAL(in8(&f, PORT_POST), 0x55);
    EQUAL(in8(&f, PORT_PVPANIC), 3);
    EQUAL(in8(&f, PORT_SYSTEM_A) & 2, 2);
    machine_port_out(f.m, PORT_DEBUG_EXIT, 4, 42);
    EQUAL(f.request, MACHINE_DEBUG_EXIT);
    EQUAL(f.status, 85);
    EQUAL(in8(&f, PORT_DEBUGCON), 0xe9);
    out8(&f, PORT_DEBUGCON, '!');
    EQUAL(f.tx[f.tx_len - 1], '!');
    /* Keyboard controller. */
    out8(&f, 0x64, 0xaa);
    EQUAL(in8(&f, 0x64) & 5, 5);
    EQUAL(in8(&f, 0x60), 0x55);
    EQUAL(in8(&f, 0x64) & 1, 0);
    out8(&f, 0x64, 0x60), out8(&f, 0x60, 0x65);
    out8(&f, 0x64, 0x20);
    EQUAL(machine_intr_ack(f.m, 0), 0x21);
    EQUAL(in8(&f, 0x60), 0x65);
    out8(&f, 0x64, 0xd3), out8(&f, 0x60, 0x5a);
    EQUAL(in8(&f, 0x64) & 0x21, 0x21);
    EQUAL(in8(&f, 0x60), 0x5a);
    teardown(&f);
}

/* -- PCI ------------------------------------------------------------------ */

static u64 bar_read(void *dev, u64 off, unsigned size)
{
    (void)size;
    return *(u64 *)dev + off;
}
static void bar_write(void *dev, u64 off, unsigned size, u64 value)
{
    (void)off, (void)size;
    *(u64 *)dev = value;
}

static u32 pci_r(struct fixture *f, u32 devfn, u32 off, unsigned size)
{
    machine_port_out(f->m, 0xcf8, 4, 0x80000000 | devfn << 8 | (off & 0xfc));
    return machine_port_in(f->m, (u16)(0xcfc + (off & 3)), size);
}
static void pci_w(struct fixture *f, u32 devfn, u32 off, unsigned size, u32 v)
{
    machine_port_out(f->m, 0xcf8, 4, 0x80000000 | devfn << 8 | (off & 0xfc));
    machine_port_out(f->m, (u16)(0xcfc + (off & 3)), size, v);
}

static void test_pci(void)
{
    static const struct io_ops ops = { "bar", 1, 8, bar_read, bar_write };
    static const struct pci_ids ids = { 0x1af4, 0x1042, 0x1af4, 2, 0x018000, 1, 1 };
    struct fixture f;
    struct pci_dev dev;
    u64 reg = 0x1000;
    u32 v = 0;
    setup(&f, 1);
    EQUAL(pci_r(&f, 0, 0, 4), 0x12378086);
    EQUAL(pci_r(&f, 0, 2, 2), 0x1237);
    EQUAL(pci_r(&f, 0, 0x0b, 1), 6);
    EQUAL(pci_r(&f, 8, 0, 4), 0x70008086);
    EQUAL(pci_r(&f, 0xf8, 0, 4), 0xffffffff);
    EQUAL(machine_port_in(f.m, 0xcf8, 4), 0x8000f800);
    machine_port_out(f.m, 0xcf8, 4, 0); /* disabled */
    EQUAL(machine_port_in(f.m, 0xcfc, 4), 0xffffffff);
    machine_mmio_read(f.m, 0, LAYOUT_ECAM, &v, 4);
    EQUAL(v, 0x12378086);
    machine_mmio_read(f.m, 0, LAYOUT_ECAM + 0x100, &v, 4);
    EQUAL(v, 0xffffffff);
    machine_mmio_read(f.m, 0, LAYOUT_ECAM + (1 << 20), &v, 4);
    EQUAL(v, 0xffffffff);

    pci_dev_init(&dev, "test", &ids);
    pci_add_bar(&dev, 0, PCI_BAR_MEM64, 0x4000, &ops, &reg);
    pci_add_bar(&dev, 2, PCI_BAR_IO, 32, &ops, &reg);
    EQUAL(pci_add_cap(&dev, 9, 16), 0x40);
    EQUAL(pci_add_cap(&dev, 0x11, 12), 0x50);
    EQUAL(pci_add(machine_pci(f.m), PCI_DEVFN(3, 0), &dev), 0);
    CHECK(pci_add(machine_pci(f.m), PCI_DEVFN(3, 0), &dev) < 0);
    EQUAL(pci_r(&f, 24, 0x34, 1), 0x50);
    EQUAL(pci_r(&f, 24, 0x51, 1), 0x40);
    /* Sizing. */
    pci_w(&f, 24, 0x10, 4, 0xffffffff), pci_w(&f, 24, 0x14, 4, 0xffffffff);
    EQUAL(pci_r(&f, 24, 0x10, 4), 0xffffc004);
    EQUAL(pci_r(&f, 24, 0x14, 4), 0xffffffff);
    pci_w(&f, 24, 0x18, 4, 0xffffffff);
    EQUAL(pci_r(&f, 24, 0x18, 4), 0xffffffe1);
    /* Mapping, above 4 GiB; off without the command bit. */
    pci_w(&f, 24, 0x10, 4, 0xc0004000), pci_w(&f, 24, 0x14, 4, 1);
    pci_w(&f, 24, 0x18, 4, 0xc100);
    EQUAL(machine_port_in(f.m, 0xc104, 4), 0xffffffff);
    pci_w(&f, 24, PCI_COMMAND, 2, 7);
    EQUAL(machine_port_in(f.m, 0xc104, 4), 0x1004);
    machine_mmio_read(f.m, 0, 0x1c0004010, &v, 4);
    EQUAL(v, 0x1010);
    v = 0x2000;
    machine_mmio_write(f.m, 0, 0x1c0004010, &v, 4);
    EQUAL(reg, 0x2000);
    machine_mmio_read(f.m, 0, 0x1c0008000, &v, 4);
    EQUAL(v, 0xffffffff);
    /* Assigning as firmware does, and after a reset. */
    machine_reset(f.m);
    EQUAL(pci_r(&f, 24, 0x10, 4), LAYOUT_PCI_MMIO | 4);
    EQUAL(pci_r(&f, 24, PCI_COMMAND, 2), 3);
    machine_mmio_read(f.m, 0, LAYOUT_PCI_MMIO, &v, 4);
    EQUAL(v, 0x2000);
    /* INTx: slot 3 INTA is GSI 19; the disable bit silences it. */
    EQUAL(pci_gsi(3, 0), 19);
    apic_on(&f, 0);
    ioapic_w(&f, 0x10 + 38, 0x8061);
    pci_set_intx(&dev, true);
    EQUAL(pci_r(&f, 24, PCI_STATUS, 2) & 8, 8);
    EQUAL(machine_intr_ack(f.m, 0), 0x61);
    pci_w(&f, 24, PCI_COMMAND, 2, 0x407);
    apic_w(&f, 0, APIC_EOI, 0);
    EQUAL(machine_intr_ack(f.m, 0), -1);
    pci_w(&f, 24, PCI_COMMAND, 2, 7);
    EQUAL(machine_intr_ack(f.m, 0), 0x61);
    pci_set_intx(&dev, false);
    teardown(&f);
}

/* -- ACPI tables ---------------------------------------------------------- */

static u8 sum(const u8 *p, size_t n)
{
    u8 s = 0;
    while (n--)
        s = (u8)(s + *p++);
    return s;
}

static u32 get32(const u8 *p)
{
    u32 v;
    memcpy(&v, p, 4);
    return v;
}

static u64 get64(const u8 *p)
{
    u64 v;
    memcpy(&v, p, 8);
    return v;
}

static void dump(const char *dir, const char *name, const u8 *p, size_t n)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%.4s.dat", dir, name);
    FILE *out = fopen(path, "wb");
    CHECK(out != NULL);
    if (!out)
        return;
    EQUAL(fwrite(p, 1, n, out), n);
    fclose(out);
}

static void test_acpi(const char *dir)
{
    struct fixture f;
    setup(&f, 4);
    gpa_t rsdp_pa = machine_build_acpi(f.m);
    CHECK(rsdp_pa >= 0xe0000 && rsdp_pa < 0x100000 && !(rsdp_pa & 15));
    const u8 *rsdp = ram_ptr(&f.ram, rsdp_pa, 36);
    CHECK(rsdp && !memcmp(rsdp, "RSD PTR ", 8));
    EQUAL(sum(rsdp, 20), 0);
    EQUAL(sum(rsdp, 36), 0);
    const u8 *xsdt = ram_ptr(&f.ram, get64(rsdp + 24), 36 + 4 * 8);
    CHECK(xsdt && !memcmp(xsdt, "XSDT", 4));
    EQUAL(get32(xsdt + 4), 36 + 4 * 8);
    EQUAL(sum(xsdt, 36 + 4 * 8), 0);
    static const char *names[] = { "FACP", "APIC", "MCFG", "HPET" };
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        u64 pa = get64(xsdt + 36 + i * 8);
        const u8 *t = ram_ptr(&f.ram, pa, 36);
        CHECK(t && !memcmp(t, names[i], 4));
        EQUAL(sum(t, get32(t + 4)), 0);
        if (dir)
            dump(dir, names[i], t, get32(t + 4));
        if (i)
            continue;
        EQUAL(get64(t + 140), get32(t + 40)); /* DSDT */
        const u8 *dsdt = ram_ptr(&f.ram, get64(t + 140), 36);
        CHECK(!memcmp(dsdt, "DSDT", 4));
        EQUAL(sum(dsdt, get32(dsdt + 4)), 0);
        if (dir)
            dump(dir, "DSDT", dsdt, get32(dsdt + 4));
        EQUAL(get32(t + 36) & 63, 0);
        CHECK(!memcmp(ram_ptr(&f.ram, get32(t + 36), 64), "FACS", 4));
    }
    /* Too small a buffer is refused, at every size. */
    static u8 buf[LAYOUT_ACPI_SIZE];
    struct acpi_config config = { .nr_cpus = 4, .base = LAYOUT_ACPI, .mmio64 = 1ull << 40 };
    size_t need = acpi_build(&config, buf, sizeof(buf), NULL);
    CHECK(need > 0);
    for (size_t cap = 0; cap < need; cap += 7)
        CHECK(acpi_build(&config, buf, cap, NULL) == 0);
    config.nr_cpus = MACHINE_MAX_CPUS;
    CHECK(acpi_build(&config, buf, sizeof(buf), NULL) > 0);
    teardown(&f);
}

/* Disassemble and recompile the tables with ACPICA's iasl, where it is installed. */
static void test_iasl(void)
{
    char dir[] = "/tmp/vitro-acpi-XXXXXX", cmd[512];
    if (system("command -v iasl >/dev/null 2>&1") != 0) {
        printf("machine: iasl is not installed, tables not disassembled\n");
        return;
    }
    CHECK(mkdtemp(dir) != NULL);
    test_acpi(dir);
    static const char *names[] = { "DSDT", "FACP", "APIC", "MCFG" };
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(cmd, sizeof(cmd), "cd %s && iasl -d %s.dat >log 2>&1"
                 " && ! grep -iE 'error|warning' log"
                 " && ! grep -iE 'invalid|unknown|error' %s.dsl", dir, names[i], names[i]);
        EQUAL(system(cmd), 0);
    }
    snprintf(cmd, sizeof(cmd), "cd %s && iasl DSDT.dsl 2>&1 | grep -q ' 0 Errors, 0 Warnings'",
             dir);
    EQUAL(system(cmd), 0);
    snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
    EQUAL(system(cmd), 0);
}

static void test_memory_map(void)
{
    struct machine_range r[MACHINE_MAX_RANGES];
    static const u64 sizes[] = { 1 << 20, 64 << 20, 0xb0000000, 0xb0001000, 0x200000000 };
    for (unsigned s = 0; s < ARRAY_SIZE(sizes); s++) {
        unsigned n = machine_ram_ranges(sizes[s], r);
        for (unsigned i = 0; i < n; i++) {
            EQUAL((r[i].gpa | r[i].size | r[i].offset) & 0xfff, 0);
            CHECK(r[i].offset + r[i].size <= sizes[s]);
            CHECK(i == 0 || r[i].gpa >= r[i - 1].gpa + r[i - 1].size);
        }
        EQUAL(r[n - 1].offset + r[n - 1].size, sizes[s]);
        n = machine_e820(sizes[s], r);
        CHECK(n <= MACHINE_MAX_RANGES);
        for (unsigned i = 1; i < n; i++)
            CHECK(r[i].gpa >= r[i - 1].gpa + r[i - 1].size);
    }
    EQUAL(machine_ram_ranges(0x200000000, r), 3);
    EQUAL(r[2].gpa, 0x100000000);
    EQUAL(r[2].size, 0x200000000 - 0xb0000000);
}

/* -- The real clock and the I/O thread ------------------------------------ */

static u64 real_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (u64)ts.tv_sec * NS_PER_SEC + (u64)ts.tv_nsec;
}
static u64 real_tsc(void *opaque, unsigned vcpu)
{
    (void)opaque, (void)vcpu;
    return real_ns() * 2;
}
static void no_kick(void *opaque, unsigned vcpu)
{
    (void)opaque, (void)vcpu;
}

static void test_io_thread(void)
{
    struct machine_config config = {
        .nr_cpus = 2, .ram_size = RAM_SIZE, .tsc_khz = TSC_KHZ, .kick = no_kick,
        .tsc_now = real_tsc,
    };
    struct machine *m = NULL;
    EQUAL(machine_create(&config, &m), 0);
    struct fixture f = { .m = m };
    x2apic_on(&f, 0);
    machine_msr_write(m, 0, 0x832, 0x400ec);
    u64 worst = 0, best = ~0ull;
    for (unsigned i = 0; i < 20; i++) {
        u64 deadline = real_tsc(NULL, 0) + 2000 * 1000; /* 1 ms */
        machine_msr_write(m, 0, MSR_TSC_DEADLINE, deadline);
        while (!machine_intr_pending(m, 0))
            usleep(10);
        u64 late = real_tsc(NULL, 0) - deadline;
        CHECK((s64)late >= 0);
        worst = MAX(worst, late);
        best = MIN(best, late);
        EQUAL(machine_intr_ack(m, 0), 0xec);
        machine_msr_write(m, 0, 0x80b, 0);
    }
    CHECK(best < 2ull * 100000000); /* 100 ms. Others may be at work on this host: once is enough */
    /* Console by fd: more than the queue holds, then the end. */
    int fd[2];
    EQUAL(pipe(fd), 0);
    EQUAL(machine_console_attach(m, fd[0]), 0);
    static u8 data[10000];
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (u8)(i * 7);
    EQUAL(write(fd[1], data, sizeof(data)), sizeof(data));
    close(fd[1]);
    size_t got = 0;
    bool same = true;
    for (unsigned spins = 0; got < sizeof(data) && spins < 200000; spins++) {
        if (in8(&f, COM(5)) & 1)
            same &= in8(&f, COM(0)) == data[got++];
        else
            usleep(10);
    }
    EQUAL(got, sizeof(data));
    CHECK(same);
    /* The cost of the hot calls, for the record. */
    machine_msr_write(m, 0, MSR_TSC_DEADLINE, 0);
    enum { ROUNDS = 200000 };
    u64 t0 = real_ns();
    for (unsigned i = 0; i < ROUNDS; i++)
        machine_msr_write(m, 0, 0x80b, 0);
    u64 t1 = real_ns();
    u64 far = real_tsc(NULL, 0) + 20 * NS_PER_SEC;
    for (unsigned i = 0; i < ROUNDS; i++)
        machine_msr_write(m, 0, MSR_TSC_DEADLINE, far + i);
    u64 t2 = real_ns();
    for (unsigned i = 0; i < ROUNDS; i++) {
        machine_msr_write(m, 0, 0x83f, 0x41);
        machine_intr_ack(m, 0);
        machine_msr_write(m, 0, 0x80b, 0);
    }
    u64 t3 = real_ns();
    printf("machine: EOI %llu ns, later deadline %llu ns, self-IPI+ack+EOI %llu ns, "
           "worst timer %llu us\n",
           (unsigned long long)((t1 - t0) / ROUNDS), (unsigned long long)((t2 - t1) / ROUNDS),
           (unsigned long long)((t3 - t2) / ROUNDS), (unsigned long long)(worst / 2000));
    machine_destroy(m);
    close(fd[0]);
}

/* -- Several vCPUs at once (run it under TSan too) ------------------------ */

enum { PING = 0x51, TICK = 0xec, ROUNDS_SMP = 3000 };

struct vcpu_thread {
    struct machine *m;
    unsigned cpu;
    unsigned pings, ticks;
};

/* Take what is pending; an interrupt is counted and ended. */
static void serve(struct vcpu_thread *t)
{
    while (machine_intr_pending(t->m, t->cpu)) {
        int v = machine_intr_ack(t->m, t->cpu);
        if (v < 0)
            return;
        t->pings += v == PING;
        t->ticks += v == TICK;
        machine_msr_write(t->m, t->cpu, 0x80b, 0);
    }
}

/* Two CPUs hand a ping back and forth; each also has a timer and uses the devices. */
static void *vcpu_main(void *arg)
{
    struct vcpu_thread *t = arg;
    unsigned peer = !t->cpu;
    u64 end = real_ns() + 60 * NS_PER_SEC;
    machine_msr_write(t->m, t->cpu, 0x832, 0x40000 | TICK);
    for (unsigned i = 1; i <= ROUNDS_SMP; i++) {
        if (!t->cpu)
            machine_msr_write(t->m, 0, 0x830, (u64)peer << 32 | 0x4000 | PING);
        if (i % 16 == 1)
            machine_msr_write(t->m, t->cpu, MSR_TSC_DEADLINE, real_tsc(NULL, 0) + 100000);
        while (t->pings < i && real_ns() < end) {
            serve(t);
            sched_yield(); /* on a busy machine the peer may have to wait for this very CPU */
        }
        if (t->cpu)
            machine_msr_write(t->m, 1, 0x830, (u64)peer << 32 | 0x4000 | PING);
        machine_port_in(t->m, PORT_PM_TMR, 4);
        machine_port_out(t->m, COM(0), 1, 'a');
        machine_port_in(t->m, 0x40, 1);
        machine_port_out(t->m, 0x70, 1, 0), machine_port_in(t->m, 0x71, 1);
        machine_set_gsi(t->m, 20 + t->cpu, i & 1);
    }
    while (!t->ticks && real_ns() < end)
        serve(t);
    return NULL;
}

static void test_smp(void)
{
    struct machine_config config = {
        .nr_cpus = 2, .ram_size = RAM_SIZE, .tsc_khz = TSC_KHZ, .kick = no_kick,
        .tsc_now = real_tsc,
    };
    struct machine *m = NULL;
    EQUAL(machine_create(&config, &m), 0);
    struct fixture f = { .m = m };
    x2apic_on(&f, 0), x2apic_on(&f, 1);
    struct vcpu_thread t[2] = { { .m = m, .cpu = 0 }, { .m = m, .cpu = 1 } };
    pthread_t thread[2];
    for (unsigned i = 0; i < 2; i++)
        EQUAL(pthread_create(&thread[i], NULL, vcpu_main, &t[i]), 0);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    for (unsigned i = 0; i < 2; i++) {
        EQUAL(t[i].pings, ROUNDS_SMP);
        CHECK(t[i].ticks > 0);
    }
    machine_destroy(m);
}

int main(int argc, char **argv)
{
    test_bus();
    test_pic();
    test_pit();
    test_lapic();
    test_lapic_timer();
    test_ipi();
    test_x2apic();
    test_pv_eoi();
    test_ipi_mask();
    test_posted();
    test_ioapic();
    test_uart();
    test_uart_listening();
    test_rtc();
    test_pm();
    test_pci();
    test_acpi(argc > 1 ? argv[1] : NULL);
    test_memory_map();
    test_iasl();
    test_io_thread();
    test_smp();
    printf("machine: %u passed, %u failed\n", passed, failed);
    return failed != 0;
}
