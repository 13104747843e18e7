/*
 * board.c - which chips there are, where they answer, and who is wired to whom.
 * Source: the PC/AT's interrupt and port assignments; Intel 82371AB (PIIX4) for what came later.
 */
#include "machine/board.h"
#include "machine/layout.h"
#include "mem/ram.h"
#include <poll.h>
#include <string.h>
#include <time.h>

/* -- The devices, in the order they are made and reset -------------------- */

enum { DEV_UART, DEV_PIT, DEV_RTC, DEV_PM, DEV_KBD, DEV_SYSCTL, DEV_HPET, NR_DEV };

static const struct board_device devices[NR_DEV] = {
    [DEV_UART] = { &uart16550, offsetof(struct machine, uart) },
    [DEV_PIT] = { &i8254, offsetof(struct machine, pit) },
    [DEV_RTC] = { &mc146818, offsetof(struct machine, rtc) },
    [DEV_PM] = { &acpi_pm, offsetof(struct machine, pm) },
    [DEV_KBD] = { &i8042, offsetof(struct machine, kbd) },
    [DEV_SYSCTL] = { &sysctl, offsetof(struct machine, sysctl) },
    [DEV_HPET] = { &hpet, offsetof(struct machine, hpet) },
};

const struct board_device *board_device(unsigned i)
{
    return i < NR_DEV ? &devices[i] : NULL;
}

/* Ports: first, how many, what the chip calls the first, whose. ops NULL: the class's own. */
static const struct {
    u16 first, size;
    u8 off;
    const struct device_class *class;
    const struct io_ops *ops;
    size_t at;
} ports[] = {
#define CHIP(member) offsetof(struct machine, member)
    { PORT_PIC_MASTER, 2, 0, NULL, &i8259_io, CHIP(pic) },
    { PORT_PIT, 4, 0, &i8254, NULL, CHIP(pit) },
    { PORT_KBD_DATA, 1, 0, &i8042, NULL, CHIP(kbd) },
    { PORT_SYSTEM_B, 1, 4, &i8254, NULL, CHIP(pit) },
    { PORT_KBD_STATUS, 1, 4, &i8042, NULL, CHIP(kbd) },
    { PORT_RTC, 2, 0, &mc146818, NULL, CHIP(rtc) },
    { PORT_POST, 1, SYSCTL_POST, &sysctl, NULL, CHIP(sysctl) },
    { PORT_SYSTEM_A, 1, SYSCTL_PORT_A, &sysctl, NULL, CHIP(sysctl) },
    { PORT_PIC_SLAVE, 2, 2, NULL, &i8259_io, CHIP(pic) },
    { PORT_DEBUGCON, 1, SYSCTL_DEBUGCON, &sysctl, NULL, CHIP(sysctl) },
    { PORT_COM1, 8, 0, &uart16550, NULL, CHIP(uart) },
    { PORT_ELCR, 2, 4, NULL, &i8259_io, CHIP(pic) },
    { PORT_FIRMWARE_LOG, 1, SYSCTL_FIRMWARE_LOG, &sysctl, NULL, CHIP(sysctl) },
    { PORT_FW_CFG, 2, 0, NULL, &fw_cfg_io, CHIP(fw_cfg) },
    { PORT_FW_CFG_DMA, 8, 0, NULL, &fw_cfg_dma, CHIP(fw_cfg) },
    { PORT_DEBUG_EXIT, 4, 0, NULL, &sysctl_exit, CHIP(sysctl) },
    { PORT_PVPANIC, 1, SYSCTL_PVPANIC, &sysctl, NULL, CHIP(sysctl) },
    { PORT_PM1_EVT, PORT_PM_TMR - PORT_PM1_EVT, 0, &acpi_pm, NULL, CHIP(pm) },
    { PORT_PM_TMR, 4, 0, NULL, &acpi_pm_timer, CHIP(pm) },
    { PORT_GPE0, 4, PORT_GPE0 - PORT_PM1_EVT, &acpi_pm, NULL, CHIP(pm) },
    { PORT_PM_OVMF, PORT_PM_TMR - PORT_PM1_EVT, 0, &acpi_pm, NULL, CHIP(pm) },
    { PORT_PM_OVMF + PORT_PM_TMR - PORT_PM1_EVT, 4, 0, NULL, &acpi_pm_timer, CHIP(pm) },
    { PORT_PCI_ADDR, 4, 0, NULL, &pci_address_io, CHIP(pci) }, /* and 0xcf9 */
    { PORT_PCI_DATA, 4, 0, NULL, &pci_data_io, CHIP(pci) },
#undef CHIP
};

/* -- Interrupts ----------------------------------------------------------- */

/* PCI's lines, and the HPET's that share them. Under irq_lock. */
static bool pci_level(const struct machine *m, unsigned gsi)
{
    u8 lines = m->pci_lines;
    for (unsigned i = 0; i < HPET_TIMERS; i++)
        lines |= m->hpet_lines[i];
    return lines & BIT(gsi - GSI_PCI);
}

/* An 8259 input that PCI interrupts are routed to: the OR of them. Under irq_lock. */
static void drive_pic(struct machine *m, u8 irq)
{
    bool level = false;
    for (unsigned gsi = GSI_PCI; gsi < NR_GSI; gsi++)
        level |= m->pirq[PCI_PIRQ(gsi)] == irq && pci_level(m, gsi);
    if (irq)
        i8259_set_irq(&m->pic, irq, level);
}

static void on_route(void *opaque)
{
    struct machine *m = opaque;
    pthread_mutex_lock(&m->irq_lock);
    for (unsigned i = 0; i < 4; i++) {
        u8 old = m->pirq[i];
        m->pirq[i] = m->piix.pirq[i];
        if (old != m->pirq[i])
            drive_pic(m, old);
        drive_pic(m, m->pirq[i]);
    }
    pthread_mutex_unlock(&m->irq_lock);
}

/* An irq_line.set: the owner is the machine, n the GSI. PCI's also reach the 8259, shared. */
static void set_gsi(void *owner, unsigned gsi, bool level)
{
    struct machine *m = owner;
    if (gsi >= NR_GSI)
        return;
    pthread_mutex_lock(&m->irq_lock);
    if (gsi < GSI_PCI) {
        ioapic_set_pin(&m->ioapic, gsi == GSI_PIT ? GSI_PIT_IOAPIC_PIN : gsi, level);
        i8259_set_irq(&m->pic, gsi, level);
    } else {
        u8 bit = (u8)BIT(gsi - GSI_PCI);
        m->pci_lines = level ? m->pci_lines | bit : m->pci_lines & (u8)~bit;
        ioapic_set_pin(&m->ioapic, gsi, pci_level(m, gsi));
        drive_pic(m, m->pirq[PCI_PIRQ(gsi)]);
    }
    pthread_mutex_unlock(&m->irq_lock);
}

void machine_set_gsi(struct machine *m, unsigned gsi, bool level)
{
    if (gsi != 2) /* the 8259s' cascade */
        set_gsi(m, gsi, level);
}

static struct irq_line gsi_line(struct machine *m, unsigned gsi)
{
    return (struct irq_line){ set_gsi, m, gsi };
}

/* 8254 and RTC, while the HPET does not have their inputs. */
static void set_legacy_gsi(void *owner, unsigned gsi, bool level)
{
    struct machine *m = owner;
    if (!atomic_load(&m->hpet_legacy))
        set_gsi(m, gsi, level);
}

static void set_hpet(void *opaque, unsigned timer, unsigned gsi, bool level)
{
    struct machine *m = opaque;
    if (gsi < GSI_PCI) {
        set_gsi(m, gsi, level);
        return;
    }
    u8 bit = (u8)BIT(gsi - GSI_PCI);
    pthread_mutex_lock(&m->irq_lock);
    m->hpet_lines[timer] = level ? m->hpet_lines[timer] | bit : m->hpet_lines[timer] & (u8)~bit;
    ioapic_set_pin(&m->ioapic, gsi, pci_level(m, gsi));
    drive_pic(m, m->pirq[PCI_PIRQ(gsi)]);
    pthread_mutex_unlock(&m->irq_lock);
}

static void on_hpet_legacy(void *opaque, bool on)
{
    struct machine *m = opaque;
    atomic_store(&m->hpet_legacy, on);
    set_gsi(m, GSI_PIT, false);
    set_gsi(m, GSI_RTC, false);
}

/* From controller to controller: all under irq_lock already. */
static void pic_to_lint0(void *owner, unsigned n, bool level)
{
    struct machine *m = owner;
    (void)n;
    lapic_bus_lint0(&m->apics, level);
}

static void eoi_to_ioapic(void *owner, u8 vector)
{
    struct machine *m = owner;
    ioapic_eoi(&m->ioapic, vector);
}

static int ack_pic(void *owner)
{
    struct machine *m = owner;
    return i8259_ack(&m->pic);
}

/* Address 0xfeeXXxxx: 19:12 destination, 2 logical. Data: 7:0 vector, 10:8 mode, 15 level.
 * With x2APIC, bits 11:5 carry destination bits 14:8 (the "extended destination ID"). */
void machine_msi(struct machine *m, u64 address, u32 data)
{
    if (address >> 20 != LAYOUT_LAPIC >> 20)
        return;
    u32 dest = (u32)(address >> 12 & 0xff), high = (u32)(address >> 5 & 0x7f);
    struct apic_msg msg = {
        .dest = dest | high << 8, .logical = address & 4, .level = data & 0x8000,
        .mode = data >> 8 & 7, .vector = (u8)data,
    };
    if (msg.dest == 0xff && !msg.logical)
        msg.dest = APIC_BROADCAST;
    pthread_mutex_lock(&m->irq_lock);
    lapic_bus_send(&m->apics, &msg);
    pthread_mutex_unlock(&m->irq_lock);
}

static void msi_from_pci(void *opaque, u64 address, u32 data)
{
    machine_msi(opaque, address, data);
}

/* -- Requests to the embedder --------------------------------------------- */

static void request(struct machine *m, enum machine_request what, int status)
{
    uart_flush(&m->uart); /* the last words of the guest */
    if (m->config.request)
        m->config.request(m->config.opaque, what, status);
}

static void on_power_off(void *opaque)
{
    request(opaque, MACHINE_POWEROFF, 0);
}

static void on_reset(void *opaque)
{
    request(opaque, MACHINE_RESET, 0);
}

static void on_a20(void *opaque, bool on)
{
    struct machine *m = opaque;
    m->kbd.a20 = m->sysctl.a20 = on; /* two switches for one gate: the last one used counts */
    if (m->config.a20)
        m->config.a20(m->config.opaque, on);
}

static void on_debug_exit(void *opaque, int status)
{
    request(opaque, MACHINE_DEBUG_EXIT, status);
}

static void on_panicked(void *opaque)
{
    request(opaque, MACHINE_PANICKED, 0);
}

static void on_debugcon(void *opaque, const u8 *bytes, size_t len)
{
    struct machine *m = opaque;
    if (m->config.debugcon_tx)
        m->config.debugcon_tx(m->config.opaque, bytes, len);
}

static void on_firmware_log(void *opaque, const u8 *bytes, size_t len)
{
    struct machine *m = opaque;
    m->config.firmware_log(m->config.opaque, bytes, len);
}

static void on_shadow(void *opaque, gpa_t gpa, u64 size, unsigned mode)
{
    struct machine *m = opaque;
    if (m->config.shadow)
        m->config.shadow(m->config.opaque, gpa, size, mode);
}

static void on_frame_buffer(void *opaque, void *host, u64 size, gpa_t gpa)
{
    struct machine *m = opaque;
    bool in_window = gpa < LAYOUT_ECAM ? gpa + size <= LAYOUT_ECAM : gpa >= LAYOUT_PCI_MMIO && gpa + size <= LAYOUT_PCI_MMIO_END;
    if (!in_window) /* over the interrupt controllers, the firmware: these come first */
        gpa = ~0ull;
    if (m->config.show)
        m->config.show(m->config.opaque, host, size, gpa);
}

static void on_console_tx(void *opaque, const u8 *bytes, size_t len)
{
    struct machine *m = opaque;
    if (m->config.console_tx)
        m->config.console_tx(m->config.opaque, bytes, len);
}

static void on_console_room(void *opaque)
{
    machine_console_resume(opaque);
}

/* -- Building ------------------------------------------------------------- */

static u64 wall_clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (u64)ts.tv_sec * NS_PER_SEC + (u64)ts.tv_nsec;
}

static int init_devices(struct machine *m)
{
    struct machine_range range[MACHINE_MAX_RANGES];
    u64 low = 0, high = 0;
    unsigned nr = machine_ram_ranges(m->config.ram_size, range);
    for (unsigned i = 0; i < nr; i++) {
        if (range[i].gpa >= LAYOUT_4G)
            high = range[i].size;
        else
            low = range[i].gpa + range[i].size;
    }
    const struct uart_wiring uart = {
        .irq = gsi_line(m, GSI_COM1), .clock = &m->clock, .tx = on_console_tx,
        .rx_room = on_console_room, .opaque = m,
    };
    const struct pit_wiring pit = { .irq = { set_legacy_gsi, m, GSI_PIT }, .clock = &m->clock };
    const struct rtc_wiring rtc = {
        .irq = { set_legacy_gsi, m, GSI_RTC }, .clock = &m->clock, .low_ram = low, .high_ram = high,
        .wall_ns = m->config.wall_ns ? m->config.wall_ns : wall_clock_ns() - clock_now(&m->clock),
        .nr_cpus = m->config.nr_cpus, .boot_order = m->config.boot_order,
        .floppies = (u8)(fdc_cmos_type(m->config.floppy[0]) << 4 | fdc_cmos_type(m->config.floppy[1])),
    };
    const struct pm_wiring pm = {
        .sci = gsi_line(m, GSI_SCI), .clock = &m->clock, .power_off = on_power_off, .opaque = m,
    };
    const struct kbd_wiring kbd = { .irq = gsi_line(m, GSI_KBD), .mouse_irq = gsi_line(m, GSI_MOUSE),
                                    .reset = on_reset, .opaque = m, .a20 = on_a20,
                                    .attached = m->config.keyboard };
    const struct sysctl_wiring sys = {
        .reset = on_reset, .debug_exit = on_debug_exit, .panicked = on_panicked,
        .debugcon = on_debugcon, .firmware_log = m->config.firmware_log ? on_firmware_log : NULL,
        .a20 = on_a20, .opaque = m,
    };
    const struct hpet_wiring timers = {
        .clock = &m->clock, .set = set_hpet, .legacy = on_hpet_legacy, .opaque = m,
    };
    const void *wiring[NR_DEV] = {
        [DEV_UART] = &uart, [DEV_PIT] = &pit, [DEV_RTC] = &rtc,
        [DEV_PM] = &pm, [DEV_KBD] = &kbd, [DEV_SYSCTL] = &sys,
        [DEV_HPET] = &timers,
    };
    for (unsigned i = 0; i < NR_DEV; i++) {
        int err = devices[i].class->init((char *)m + devices[i].at, wiring[i]);
        if (!err)
            continue;
        while (i--)
            devices[i].class->fini((char *)m + devices[i].at);
        return err;
    }
    return 0;
}

/* A kernel that is started directly looks for what hangs on IDE only if something does. */
static int init_ide(struct machine *m)
{
    struct ide_wiring w = {
        .host = &m->pci, .ram = m->config.ram,
        .irq = { gsi_line(m, GSI_IDE1), gsi_line(m, GSI_IDE2) },
    };
    m->has_ide = m->config.firmware;
    for (unsigned i = 0; i < 4; i++) {
        w.drive[i].present = m->config.ide[i].present;
        w.drive[i].cdrom = m->config.ide[i].cdrom;
        w.drive[i].disk = m->config.ide[i].disk;
        m->has_ide |= w.drive[i].present;
    }
    int r = m->has_ide ? ide_init(&m->ide, &w) : 0;
    if (!r && m->has_ide) {
        r = ide_keep(&m->ide, m);
        if (r)
            ide_fini(&m->ide);
    }
    return r;
}

static int init_flash(struct machine *m)
{
    const struct device_part part = { .name = "pflash", .state = pflash_state, .obj = &m->flash,
                                      .loaded = pflash_loaded, .quiesce = pflash_quiesce };

    if (!m->config.flash.size)
        return 0;
    int r = pflash_init(&m->flash, m->config.flash.image, m->config.flash.size, m->config.flash.disk);
    if (r)
        return r;
    r = machine_add_part(m, &part);
    if (r)
        pflash_fini(&m->flash);
    return r;
}

static int init_irqchips(struct machine *m)
{
    pthread_mutex_init(&m->irq_lock, NULL);
    m->apics = (struct lapic_bus){
        .lock = &m->irq_lock, .clock = &m->clock, .tsc_now = m->config.tsc_now,
        .kick = m->config.kick, .opaque = m->config.opaque, .tsc_khz = m->config.tsc_khz,
        .eoi_broadcast = eoi_to_ioapic, .extint_ack = ack_pic, .owner = m,
        .nr = m->config.nr_cpus,
    };
    int err = lapic_bus_init(&m->apics);
    if (err) {
        lapic_bus_fini(&m->apics);
        return err;
    }
    ioapic_init(&m->ioapic, &m->apics, &m->irq_lock);
    i8259_init(&m->pic, (struct irq_line){ pic_to_lint0, m, 0 }, &m->irq_lock);
    return 0;
}

static int init_pci(struct machine *m)
{
    struct irq_line gsi[NR_GSI_PCI];
    for (unsigned i = 0; i < NR_GSI_PCI; i++)
        gsi[i] = gsi_line(m, GSI_PCI + i);
    int err = pci_host_init(&m->pci, gsi);
    if (err)
        return err;
    irq_or_init(&m->virtio_irq, gsi_line(m, GSI_VIRTIO_MMIO));
    struct machine_range range[MACHINE_MAX_RANGES];
    unsigned nr = machine_ram_ranges(m->config.ram_size, range);
    u64 top = MAX(range[nr - 1].gpa + range[nr - 1].size, LAYOUT_4G);
    m->pci.mmio64 = (top + LAYOUT_PCI_MMIO64_ALIGN - 1) & ~(LAYOUT_PCI_MMIO64_ALIGN - 1);
    m->pci.reset_io = sysctl.io;
    m->pci.reset_dev = &m->sysctl;
    m->pci.reset_off = SYSCTL_RESET;
    m->pci.msi = msi_from_pci;
    m->pci.msi_opaque = m;
    m->bus.fallback = pci_decode;
    m->bus.fallback_opaque = &m->pci;
    const struct piix_wiring piix = {
        .host = &m->pci, .shadow = on_shadow, .route = on_route, .opaque = m,
    };
    err = piix_init(&m->piix, &piix);
    if (!err)
        err = fw_cfg_init(&m->fw_cfg, m->config.ram);
    if (err)
        pci_host_fini(&m->pci);
    return err;
}

/* Writes to RAM that reads do not reach: the bus gets them, because reads go to the ROM. */
static u64 shadow_read(void *dev, u64 off, unsigned size)
{
    (void)dev, (void)off, (void)size;
    return ~0ull; /* nothing is behind 0xc0000..0xdffff */
}

static void shadow_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct machine *m = dev;
    gpa_t gpa = LAYOUT_OPTION_ROM + off, area;
    for (unsigned n = 0; n < PAM_AREAS; n++) {
        u64 len = piix_pam_area(n, &area);
        if (gpa - area >= len || !(m->piix.shadow[n] & SHADOW_WRITE))
            continue;
        void *to = m->config.ram ? ram_dma_ptr(m->config.ram, gpa, size) : NULL;
        if (to)
            memcpy(to, &value, size);
    }
}
static const struct io_ops shadow_io = { "shadow", 1, 8, shadow_read, shadow_write };

static void fill_bus(struct machine *m)
{
    for (unsigned i = 0; i < ARRAY_SIZE(ports); i++)
        bus_add_ports(&m->bus, ports[i].first, ports[i].size, ports[i].off,
                      ports[i].ops ? ports[i].ops : ports[i].class->io, (char *)m + ports[i].at);
    if (m->config.vga) {
        bus_add_ports(&m->bus, PORT_VGA, 0x30, 0, &vga_io, &m->vga);
        bus_add_ports(&m->bus, PORT_DISPI, 4, 0, &vga_dispi, &m->vga);
        bus_add_mmio(&m->bus, LAYOUT_VGA_HOLE, LAYOUT_OPTION_ROM - LAYOUT_VGA_HOLE, 0, &vga_window, &m->vga);
    }
    bus_add_ports(&m->bus, PORT_DMA1, 16, 0, &i8237_io, &m->dma);
    bus_add_ports(&m->bus, PORT_DMA_PAGES, 15, 0x41, &i8237_io, &m->dma);
    bus_add_ports(&m->bus, PORT_DMA2, 32, 0x10, &i8237_io, &m->dma);
    if (m->config.testdev) {
        bus_add_ports(&m->bus, PORT_TESTDEV, 4, 0, &testdev_ports, &m->testdev);
        bus_add_ports(&m->bus, PORT_TESTDEV_IRQ, TESTDEV_IRQS, 0, &testdev_irqs, &m->testdev);
        bus_add_mmio(&m->bus, LAYOUT_TESTDEV, TESTDEV_MEMORY, 0, &testdev_mmio, &m->testdev);
    }
    if (m->has_fdc) {
        bus_add_ports(&m->bus, PORT_FDC, 6, 0, &fdc_io, &m->fdc);
        bus_add_ports(&m->bus, PORT_FDC + 7, 1, 7, &fdc_io, &m->fdc);
    }
    for (unsigned i = 0; i < 2 && m->has_ide; i++) {
        struct ide_channel *c = &m->ide.channel[i];
        bus_add_ports(&m->bus, i ? PORT_IDE2 : PORT_IDE1, 8, 0, &ide_command_io, c);
        bus_add_ports(&m->bus, i ? PORT_IDE2_CONTROL : PORT_IDE1_CONTROL, 1, 0, &ide_control_io, c);
    }
    bus_add_mmio(&m->bus, LAYOUT_OPTION_ROM, LAYOUT_HIGH_RAM - LAYOUT_OPTION_ROM, 0, &shadow_io, m);
    if (m->config.flash.size)
        bus_add_mmio(&m->bus, m->config.flash.gpa, m->config.flash.size, 0, &pflash_io, &m->flash);
    bus_add_mmio(&m->bus, LAYOUT_IOAPIC, PAGE_SIZE, 0, &ioapic_mmio, &m->ioapic);
    bus_add_mmio(&m->bus, LAYOUT_HPET, HPET_SIZE, 0, hpet.io, &m->hpet);
    bus_add_mmio(&m->bus, LAYOUT_ECAM, LAYOUT_ECAM_SIZE, 0, &pci_ecam, &m->pci);
    /* The local APICs are per vCPU: machine_mmio_*() goes to them before it asks the bus. */
}

static void config_write8(struct machine *m, unsigned devfn, unsigned reg, u8 value)
{
    bus_port_out(&m->bus, PORT_PCI_ADDR, 4, 0x80000000u | devfn << 8 | (reg & ~3u));
    bus_port_out(&m->bus, (u16)(PORT_PCI_DATA + (reg & 3)), 1, value);
}

/* What firmware would have done before it started an operating system. */
static void firmware(struct machine *m)
{
    for (unsigned i = 0; i < 7; i++)
        config_write8(m, 0, PIIX_PAM0 + i, 0x33);
    for (unsigned i = 0; i < 4; i++)
        config_write8(m, PCI_DEVFN(PCI_SLOT_PIIX, 0), PIIX_PIRQRC + i, (u8)(PIC_IRQ_PCI + i / 2));
    bus_port_out(&m->bus, PORT_PCI_ADDR, 4, 0);
    for (unsigned i = 0; i < 2; i++) /* PCI interrupts are level-triggered on the 8259 too */
        bus_port_out(&m->bus, (u16)(PORT_ELCR + i), 1,
                     (BIT(PIC_IRQ_PCI) | BIT(PIC_IRQ_PCI + 1) | BIT(GSI_SCI)) >> i * 8 & 0xff);
    pci_assign_bars(&m->pci);
}

int board_init(struct machine *m)
{
    atomic_init(&m->console_slot, -1);
    int err = init_irqchips(m);
    if (err)
        goto no_irqchips;
    err = init_pci(m);
    if (err)
        goto no_pci;
    err = init_ide(m);
    if (err)
        goto no_ide;
    const struct vga_wiring vga = { .host = &m->pci, .clock = &m->clock, .show = on_frame_buffer, .opaque = m };
    err = m->config.vga ? vga_init(&m->vga, &vga) : 0;
    if (!err && m->config.vga && (err = vga_keep(&m->vga, m)))
        vga_fini(&m->vga);
    if (err)
        goto no_vga;
    err = init_devices(m);
    if (err)
        goto no_devices;
    const struct fdc_wiring fdc = {
        .irq = gsi_line(m, GSI_FDC), .dma = &m->dma, .disk = { m->config.floppy[0], m->config.floppy[1] },
    };
    i8237_init(&m->dma, m->config.ram);
    m->has_fdc = m->config.floppy[0] || m->config.floppy[1];
    if (m->has_fdc) {
        err = fdc_init(&m->fdc, &fdc);
        m->has_fdc = !err;
        err = err ? err : fdc_keep(&m->fdc, m);
    }
    testdev_init(&m->testdev);
    for (unsigned i = 0; i < TESTDEV_IRQS; i++)
        if (i != 2) /* the 8259s' cascade */
            m->testdev.irq[i] = gsi_line(m, i);
    if (!err)
        err = init_flash(m);
    if (err)
        goto no_flash;
    fill_bus(m);
    piix_reset(&m->piix);
    if (!m->config.firmware)
        firmware(m);
    return 0;

no_flash:
    for (unsigned i = NR_DEV; i--;)
        devices[i].class->fini((char *)m + devices[i].at);
    testdev_fini(&m->testdev);
    if (m->has_fdc)
        fdc_fini(&m->fdc);
    i8237_fini(&m->dma);
no_devices:
    if (m->config.vga)
        vga_fini(&m->vga);
no_vga:
    if (m->has_ide)
        ide_fini(&m->ide);
no_ide:
    fw_cfg_fini(&m->fw_cfg);
    pci_host_fini(&m->pci);
no_pci:
    lapic_bus_fini(&m->apics);
no_irqchips:
    pthread_mutex_destroy(&m->irq_lock);
    return err;
}

void board_reset(struct machine *m)
{
    /* The listeners first, so that the lines their drivers set afterwards are kept. */
    pthread_mutex_lock(&m->irq_lock);
    i8259_reset(&m->pic);
    ioapic_reset(&m->ioapic);
    lapic_bus_reset(&m->apics);
    pthread_mutex_unlock(&m->irq_lock);
    pci_host_reset(&m->pci);
    for (unsigned i = 0; i < NR_DEV; i++)
        devices[i].class->reset((char *)m + devices[i].at);
    if (m->has_ide)
        ide_reset(&m->ide);
    if (m->config.vga)
        vga_reset(&m->vga);
    i8237_reset(&m->dma);
    if (m->has_fdc)
        fdc_reset(&m->fdc);
    fw_cfg_reset(&m->fw_cfg);
    if (m->config.flash.size)
        pflash_reset(&m->flash);
    piix_reset(&m->piix);
    if (!m->config.firmware)
        firmware(m);
}

void board_fini(struct machine *m)
{
    for (unsigned i = NR_DEV; i--;)
        devices[i].class->fini((char *)m + devices[i].at);
    if (m->config.flash.size)
        pflash_fini(&m->flash);
    testdev_fini(&m->testdev);
    if (m->has_fdc)
        fdc_fini(&m->fdc);
    i8237_fini(&m->dma);
    if (m->config.vga)
        vga_fini(&m->vga);
    if (m->has_ide)
        ide_fini(&m->ide);
    fw_cfg_fini(&m->fw_cfg);
    irq_or_fini(&m->virtio_irq);
    pci_host_fini(&m->pci);
    lapic_bus_fini(&m->apics);
    pthread_mutex_destroy(&m->irq_lock);
}
