/* The test kernels' device: what it holds, and interrupt inputs it drives. */
#include "machine/board.h"
#include "machine/layout.h"
#include "tests/lib/check.h"

static u64 no_time(void *opaque) { (void)opaque; return 0; }
static u64 no_tsc(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; return 0; }
static void no_kick(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; }

int main(void)
{
    struct machine *m = NULL;
    struct machine_config c = { .nr_cpus = 1, .ram_size = 16 << 20, .tsc_khz = 1000000, .wall_ns = 1, .kick = no_kick,
                                .tsc_now = no_tsc, .clock_source = no_time, .testdev = true };
    u64 v = 0x1122334455667788, got = 0;

    CHECK(!machine_create(&c, &m));
    machine_port_out(m, PORT_TESTDEV, 4, 0x12345678);
    CHECK(machine_port_in(m, PORT_TESTDEV, 4) == 0x12345678 && machine_port_in(m, PORT_TESTDEV + 1, 1) == 0x56);
    machine_port_out(m, PORT_TESTDEV + 3, 1, 0xab);
    CHECK(machine_port_in(m, PORT_TESTDEV + 2, 2) == 0xab34);
    machine_mmio_write(m, 0, LAYOUT_TESTDEV + 0xfffd, &v, 8); /* past its end: the rest goes nowhere */
    machine_mmio_read(m, 0, LAYOUT_TESTDEV + 0xfffd, &got, 3);
    CHECK(got == 0x667788);
    machine_port_out(m, PORT_TESTDEV_IRQ + 10, 1, 1);
    machine_port_out(m, PORT_PIC_SLAVE, 1, 0x0a);
    CHECK(machine_port_in(m, PORT_PIC_SLAVE, 1) == 1 << 2);
    machine_port_out(m, PORT_TESTDEV_IRQ + 23, 1, 1);
    CHECK(m->ioapic.lines & 1 << 23);
    machine_port_out(m, PORT_TESTDEV_IRQ + 23, 4, 0);
    CHECK(!(m->ioapic.lines & 1 << 23));
    machine_destroy(m);
    c.testdev = false; /* nobody is there */
    CHECK(!machine_create(&c, &m));
    machine_port_out(m, PORT_TESTDEV, 4, 0x12345678);
    CHECK(machine_port_in(m, PORT_TESTDEV, 4) == 0xffffffff);
    machine_destroy(m);
    return check_done("unit/testdev");
}
