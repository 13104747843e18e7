/* board.h - the chips of one machine and what they hang on. Only board.c, machine.c and tests
 * look in. */
#pragma once
#include "machine/bus.h"
#include "machine/chips/acpi_pm.h"
#include "machine/chips/fdc.h"
#include "machine/chips/fw_cfg.h"
#include "machine/chips/hpet.h"
#include "machine/chips/i8042.h"
#include "machine/chips/i8237.h"
#include "machine/chips/i8254.h"
#include "machine/chips/i8259.h"
#include "machine/chips/ide.h"
#include "machine/chips/ioapic.h"
#include "machine/chips/lapic.h"
#include "machine/chips/mc146818.h"
#include "machine/chips/pflash.h"
#include "machine/chips/piix.h"
#include "machine/chips/sysctl.h"
#include "machine/chips/testdev.h"
#include "machine/chips/uart16550.h"
#include "machine/chips/vga.h"
#include "machine/clock.h"
#include "machine/io_thread.h"
#include "machine/irq.h"
#include "machine/machine.h"
#include "machine/pci.h"
#include "machine/state.h"

struct machine {
    struct machine_config config;
    struct vm_clock clock;
    struct io_thread io;
    struct bus bus;

    pthread_mutex_t irq_lock; /* the interrupt controllers: lapics, ioapic, pic */
    struct lapic_bus apics;
    struct ioapic ioapic;
    struct i8259 pic;
    u8 pci_lines;             /* asserted PCI interrupts, by GSI - 16; under irq_lock */
    u8 hpet_lines[HPET_TIMERS]; /* by GSI - 16: each comparator's; under irq_lock */
    atomic_bool hpet_legacy;  /* IRQ 0 and 8 are the HPET's */
    u8 pirq[4];               /* 8259 inputs of PIRQA..D, 0: none; under irq_lock */

    struct pci_host pci;
    struct irq_or virtio_irq; /* of devices at LAYOUT_VIRTIO_MMIO */
    unsigned nr_virtio_mmio;
    struct piix piix;
    struct fw_cfg fw_cfg;
    struct pflash flash;      /* only with config.flash.size */
    struct ide ide;           /* only with has_ide */
    bool has_ide;
    struct i8237 dma;
    struct fdc fdc;           /* only with has_fdc */
    bool has_fdc;
    struct testdev testdev;   /* only with config.testdev */
    struct vga vga;           /* only with config.vga */
    struct uart uart;
    struct i8254 pit;
    struct mc146818 rtc;
    struct acpi_pm pm;
    struct i8042 kbd;
    struct sysctl sysctl;
    struct hpet hpet;
    struct device_part *part; /* plugged in: machine_add_part() */
    unsigned nr_parts;
    u64 stopped_wall_ns;      /* the host's clock at machine_stop() */
    atomic_int console_slot;  /* of the I/O thread; -1: not attached, or at its end */
};

/* board_device - a row of the board's table of chips; NULL after the last. */
struct board_device {
    const struct device_class *class;
    size_t at; /* in struct machine */
};
const struct board_device *board_device(unsigned i);

/* machine_quiesce, machine_unquiesce - state.c: every plugged-in part. */
void machine_quiesce(struct machine *m);
void machine_unquiesce(struct machine *m);

/* board_init - chips and wiring, on a machine whose config, clock, io and bus are ready. */
int board_init(struct machine *m);
void board_reset(struct machine *m);
void board_fini(struct machine *m);
