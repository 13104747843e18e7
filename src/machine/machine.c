/*
 * machine.c - the machine's outer face: calls from the engine and the monitor go to the right chip.
 * The local APIC is dispatched here, because which one answers depends on who asks.
 */
#include "machine/machine.h"
#include "machine/acpi.h"
#include "machine/board.h"
#include "machine/input.h"
#include "machine/layout.h"
#include "mem/ram.h"
#include "x86/x86.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

_Static_assert(MACHINE_INTR == LAPIC_INTR && MACHINE_NMI == LAPIC_NMI &&
                   MACHINE_INIT == LAPIC_INIT && MACHINE_SIPI == LAPIC_SIPI, "same bits");

/* -- Life ----------------------------------------------------------------- */

int machine_create(const struct machine_config *config, struct machine **out)
{
    if (!config->nr_cpus || config->nr_cpus > MACHINE_MAX_CPUS || !config->tsc_khz ||
        !config->kick || !config->tsc_now || config->ram_size < 1 << 20)
        return -EINVAL;
    struct machine *m = calloc(1, sizeof(*m));
    if (!m)
        return -ENOMEM;
    m->config = *config;
    int err = clock_init(&m->clock, config->clock_source, config->clock_opaque);
    if (err)
        goto no_clock;
    err = io_thread_init(&m->io, &m->clock);
    if (err)
        goto no_io;
    err = bus_init(&m->bus);
    if (err)
        goto no_bus;
    err = board_init(m);
    if (err)
        goto no_board;
    if (!config->clock_source) {
        err = io_thread_start(&m->io);
        if (err)
            goto no_thread;
    }
    *out = m;
    return 0;

no_thread:
    board_fini(m);
no_board:
    bus_fini(&m->bus);
no_bus:
    io_thread_fini(&m->io);
no_io:
    clock_fini(&m->clock);
no_clock:
    free(m->part);
    free(m);
    return err;
}

void machine_still(struct machine *m)
{
    io_thread_stop(&m->io);
}

void machine_destroy(struct machine *m)
{
    if (!m)
        return;
    machine_still(m);
    board_fini(m);
    bus_fini(&m->bus);
    io_thread_fini(&m->io);
    clock_fini(&m->clock);
    free(m->part);
    free(m);
}

void machine_reset(struct machine *m)
{
    board_reset(m);
}

static u64 wall_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (u64)ts.tv_sec * NS_PER_SEC + (u64)ts.tv_nsec;
}

int machine_stop(struct machine *m)
{
    machine_quiesce(m);
    io_thread_stop(&m->io);
    clock_stop(&m->clock);
    m->stopped_wall_ns = wall_now();
    return 0;
}

/* The real-time clock has a battery: it shows the time that went by. */
int machine_start(struct machine *m)
{
    if (m->config.clock_source) {
        clock_start(&m->clock);
        return 0;
    }
    mc146818_skip(&m->rtc, (s64)(wall_now() - m->stopped_wall_ns));
    clock_start(&m->clock);
    machine_unquiesce(m);
    return io_thread_start(&m->io);
}

/* -- Ports, MMIO ---------------------------------------------------------- */

u32 machine_port_in(void *machine, u16 port, unsigned size)
{
    struct machine *m = machine;
    return bus_port_in(&m->bus, port, size);
}

void machine_port_out(void *machine, u16 port, unsigned size, u32 value)
{
    struct machine *m = machine;
    bus_port_out(&m->bus, port, size, value);
}

/* The asking vCPU's local APIC, if the address is in its page. Its mode changes on its own
 * thread. */
static struct lapic *lapic_at(struct machine *m, unsigned vcpu, gpa_t gpa)
{
    struct lapic *l = &m->apics.cpu[vcpu];
    return ((gpa ^ l->base) & PAGE_MASK) == 0 && lapic_in_xapic(l) ? l : NULL;
}

void machine_mmio_read(void *machine, unsigned vcpu, gpa_t gpa, void *buf, unsigned len)
{
    struct machine *m = machine;
    struct lapic *l = lapic_at(m, vcpu, gpa);
    if (!l) {
        bus_mmio_read(&m->bus, gpa, buf, len);
        return;
    }
    /* Registers are 32 bits at multiples of 16; the bytes between read as 0 (SDM vol. 3
     * §11.4.1). */
    u64 value[2] = { 0, 0 };
    unsigned off = gpa & 0xfff, skip = off & 15;
    pthread_mutex_lock(&m->irq_lock);
    if (skip < 4)
        value[0] = lapic_mmio_read(l, off >> 4);
    pthread_mutex_unlock(&m->irq_lock);
    memset(buf, 0, len);
    memcpy(buf, (u8 *)value + skip, MIN(len, 16 - skip));
}

void machine_mmio_write(void *machine, unsigned vcpu, gpa_t gpa, const void *buf, unsigned len)
{
    struct machine *m = machine;
    struct lapic *l = lapic_at(m, vcpu, gpa);
    if (!l) {
        bus_mmio_write(&m->bus, gpa, buf, len);
        return;
    }
    u32 value;
    if ((gpa & 15) || len < 4)
        return; /* undefined by the manual: dropped */
    memcpy(&value, buf, 4);
    pthread_mutex_lock(&m->irq_lock);
    lapic_mmio_write(l, (gpa & 0xfff) >> 4, value);
    pthread_mutex_unlock(&m->irq_lock);
}

/* -- Local APIC ----------------------------------------------------------- */

int machine_msr_read(void *machine, unsigned vcpu, u32 msr, u64 *value)
{
    struct machine *m = machine;
    pthread_mutex_lock(&m->irq_lock);
    int err = lapic_msr_read(&m->apics.cpu[vcpu], msr, value);
    pthread_mutex_unlock(&m->irq_lock);
    return err;
}

int machine_msr_write(void *machine, unsigned vcpu, u32 msr, u64 value)
{
    struct machine *m = machine;
    if (msr == MSR_X2APIC_FIRST + APIC_ICR && lapic_icr_post(&m->apics.cpu[vcpu], value))
        return 0;
    pthread_mutex_lock(&m->irq_lock);
    int err = lapic_msr_write(&m->apics.cpu[vcpu], msr, value);
    pthread_mutex_unlock(&m->irq_lock);
    return err;
}

int machine_intr_ack(void *machine, unsigned vcpu)
{
    struct machine *m = machine;
    pthread_mutex_lock(&m->irq_lock);
    int vector = lapic_ack(&m->apics.cpu[vcpu]);
    pthread_mutex_unlock(&m->irq_lock);
    return vector;
}

void machine_pv_eoi_set(void *machine, unsigned vcpu, u64 msr, u32 *word)
{
    struct machine *m = machine;
    pthread_mutex_lock(&m->irq_lock);
    lapic_pv_eoi(&m->apics.cpu[vcpu], msr, word);
    pthread_mutex_unlock(&m->irq_lock);
}

u64 machine_pv_eoi_get(void *machine, unsigned vcpu)
{
    struct machine *m = machine;
    pthread_mutex_lock(&m->irq_lock); /* another vCPU may send INIT */
    u64 msr = m->apics.cpu[vcpu].pv_eoi;
    pthread_mutex_unlock(&m->irq_lock);
    return msr;
}

int machine_ipi_mask(void *machine, u32 first, const u64 mask[2], u32 icr)
{
    struct machine *m = machine;
    struct apic_msg msg = { .mode = icr >> 8 & 7, .vector = (u8)icr };
    int taken = 0;

    if (msg.mode == APIC_LOWEST) /* each is named by itself */
        msg.mode = APIC_FIXED;
    if ((icr & 0x800) || (msg.mode != APIC_FIXED && msg.mode != APIC_NMI))
        return -1;
    for (unsigned half = 0; half < 2; half++)
        for (u64 left = mask[half]; left; left &= left - 1) {
            u64 id = (u64)first + half * 64 + (unsigned)__builtin_ctzll(left);
            if (id >= m->apics.nr)
                break;
            if (msg.mode == APIC_FIXED && lapic_post(&m->apics, (u32)id, msg.vector)) {
                taken++;
                continue;
            }
            msg.dest = (u32)id;
            pthread_mutex_lock(&m->irq_lock);
            taken += (int)lapic_bus_send(&m->apics, &msg);
            pthread_mutex_unlock(&m->irq_lock);
        }
    return taken;
}

u64 machine_cr8_read(void *machine, unsigned vcpu)
{
    struct machine *m = machine;
    return m->apics.cpu[vcpu].tpr >> 4; /* only its own vCPU writes it */
}

void machine_cr8_write(void *machine, unsigned vcpu, u64 value)
{
    struct machine *m = machine;
    pthread_mutex_lock(&m->irq_lock);
    lapic_set_tpr(&m->apics.cpu[vcpu], (u32)(value & 15) << 4);
    pthread_mutex_unlock(&m->irq_lock);
}

void machine_wake(void *machine, unsigned vcpu)
{
    struct machine *m = machine;
    m->config.wake(m->config.opaque, vcpu);
}

u32 machine_pending(void *machine, unsigned vcpu)
{
    struct machine *m = machine;
    return lapic_pending(&m->apics.cpu[vcpu]);
}

bool machine_intr_pending(void *machine, unsigned vcpu)
{
    return machine_pending(machine, vcpu) & MACHINE_INTR;
}

static bool take(struct machine *m, unsigned vcpu, u32 bit)
{
    struct lapic *l = &m->apics.cpu[vcpu];
    if (!(lapic_pending(l) & bit))
        return false;
    pthread_mutex_lock(&m->irq_lock);
    bool taken = lapic_take(l, bit);
    pthread_mutex_unlock(&m->irq_lock);
    return taken;
}

bool machine_nmi_take(void *machine, unsigned vcpu)
{
    return take(machine, vcpu, MACHINE_NMI);
}

bool machine_init_take(void *machine, unsigned vcpu)
{
    return take(machine, vcpu, MACHINE_INIT);
}

int machine_sipi_take(void *machine, unsigned vcpu)
{
    struct machine *m = machine;
    struct lapic *l = &m->apics.cpu[vcpu];
    int vector = -1;
    pthread_mutex_lock(&m->irq_lock);
    if (!(lapic_pending(l) & LAPIC_INIT) && lapic_take(l, LAPIC_SIPI))
        vector = l->sipi_vector;
    pthread_mutex_unlock(&m->irq_lock);
    return vector;
}

u64 machine_apic_base(void *machine, unsigned vcpu)
{
    struct machine *m = machine;
    return m->apics.cpu[vcpu].base;
}

void machine_nmi(struct machine *m, unsigned vcpu)
{
    pthread_mutex_lock(&m->irq_lock);
    lapic_lint1(&m->apics.cpu[vcpu]);
    pthread_mutex_unlock(&m->irq_lock);
}

/* -- Console and buttons -------------------------------------------------- */

size_t machine_console_feed(struct machine *m, const u8 *bytes, size_t len)
{
    return uart_feed(&m->uart, bytes, len);
}

bool machine_console_listening(struct machine *m)
{
    return uart_listening(&m->uart);
}

void machine_console_flush(struct machine *m)
{
    uart_flush(&m->uart);
}

void machine_console_resume(struct machine *m)
{
    int slot = atomic_load(&m->console_slot);
    if (slot >= 0)
        io_fd_set_events(&m->io, slot, POLLIN);
}

static size_t console_room(struct machine *m, bool *ours)
{
    long room = m->config.console_room ? m->config.console_room(m->config.opaque) : -1;
    *ours = room < 0;
    return *ours ? uart_room(&m->uart) : (size_t)room;
}

/* On the I/O thread. While the queue is full the fd is not watched; machine_console_resume() ends that. */
static void console_ready(void *opaque, int fd, unsigned revents)
{
    struct machine *m = opaque;
    int slot = atomic_load(&m->console_slot);
    u8 buf[512];
    bool ours;
    size_t room = console_room(m, &ours);
    (void)revents;
    if (slot < 0)
        return;
    if (!room) {
        io_fd_set_events(&m->io, slot, 0);
        if (console_room(m, &ours)) /* the guest emptied it in between */
            io_fd_set_events(&m->io, slot, POLLIN);
        return;
    }
    ssize_t n = read(fd, buf, MIN(room, sizeof(buf)));
    if (n > 0 && ours) {
        uart_feed(&m->uart, buf, (size_t)n);
    } else if (n > 0) {
        m->config.console_rx(m->config.opaque, buf, (size_t)n);
    } else if (n == 0 || (errno != EINTR && errno != EAGAIN)) {
        atomic_store(&m->console_slot, -1); /* end of input */
        io_fd_remove(&m->io, slot);
    }
}

int machine_console_attach(struct machine *m, int fd)
{
    int slot = io_fd_add(&m->io, fd, 0, console_ready, m);
    if (slot < 0)
        return slot;
    atomic_store(&m->console_slot, slot);
    io_fd_set_events(&m->io, slot, POLLIN);
    return 0;
}

void machine_power_button(struct machine *m)
{
    pm_power_button(&m->pm);
}

bool machine_key(struct machine *m, u8 set1, bool e0, bool down)
{
    return i8042_key(&m->kbd, set1, e0, down);
}

bool machine_keys_taken(struct machine *m)
{
    return i8042_keys_taken(&m->kbd);
}

bool machine_button(struct machine *m, enum input_button button, bool down)
{
    return i8042_button(&m->kbd, button, down);
}

bool machine_move(struct machine *m, int dx, int dy, int wheel)
{
    return i8042_move(&m->kbd, dx, dy, wheel);
}

struct vga *machine_vga(struct machine *m)
{
    return m->config.vga ? &m->vga : NULL;
}

/* -- Memory map ----------------------------------------------------------- */

static unsigned add(struct machine_range *out, unsigned n, gpa_t from, gpa_t to, u64 offset,
                    u32 type)
{
    if (to <= from)
        return n;
    out[n] = (struct machine_range){
        .gpa = from, .size = to - from, .offset = offset, .type = type
    };
    return n + 1;
}

unsigned machine_ram_ranges(u64 ram_size, struct machine_range out[MACHINE_MAX_RANGES])
{
    u64 low = MIN(ram_size, LAYOUT_LOW_RAM_MAX);
    unsigned n = add(out, 0, 0, MIN(low, (u64)LAYOUT_VGA_HOLE), 0, E820_RAM);
    n = add(out, n, LAYOUT_OPTION_ROM, low, LAYOUT_OPTION_ROM, E820_RAM);
    return add(out, n, LAYOUT_4G, LAYOUT_4G + ram_size - low, low, E820_RAM);
}

unsigned machine_e820(u64 ram_size, struct machine_range out[MACHINE_MAX_RANGES])
{
    u64 low = MIN(ram_size, LAYOUT_LOW_RAM_MAX);
    unsigned n = add(out, 0, 0, LAYOUT_EBDA, 0, E820_RAM);
    n = add(out, n, LAYOUT_EBDA, LAYOUT_VGA_HOLE, LAYOUT_EBDA, E820_RESERVED);
    n = add(out, n, LAYOUT_ACPI, LAYOUT_HIGH_RAM, LAYOUT_ACPI, E820_RESERVED);
    n = add(out, n, LAYOUT_HIGH_RAM, low, LAYOUT_HIGH_RAM, E820_RAM);
    n = add(out, n, LAYOUT_ECAM, LAYOUT_ECAM + LAYOUT_ECAM_SIZE, 0, E820_RESERVED);
    n = add(out, n, LAYOUT_IOAPIC, LAYOUT_IOAPIC + PAGE_SIZE, 0, E820_RESERVED);
    n = add(out, n, LAYOUT_LAPIC, LAYOUT_LAPIC + PAGE_SIZE, 0, E820_RESERVED);
    return add(out, n, LAYOUT_4G, LAYOUT_4G + ram_size - low, low, E820_RAM);
}

gpa_t machine_build_acpi(struct machine *m)
{
    const struct acpi_config config = {
        .nr_cpus = m->config.nr_cpus, .base = LAYOUT_ACPI, .mmio64 = m->pci.mmio64,
        .vga = m->config.vga, .keyboard = m->config.keyboard,
        .nr_virtio_mmio = m->nr_virtio_mmio,
    };
    u8 *buf = calloc(1, LAYOUT_ACPI_SIZE);
    if (!buf)
        return 0;
    size_t len = acpi_build(&config, buf, LAYOUT_ACPI_SIZE, NULL);
    bug_on(!len);
    int err = ram_write(m->config.ram, LAYOUT_ACPI, buf, len);
    free(buf);
    return err ? 0 : LAYOUT_ACPI;
}

/* -- Parts ---------------------------------------------------------------- */

struct io_thread *machine_io_thread(struct machine *m)
{
    return &m->io;
}

struct vm_clock *machine_clock(struct machine *m)
{
    return &m->clock;
}

struct bus *machine_bus(struct machine *m)
{
    return &m->bus;
}

struct pci_host *machine_pci(struct machine *m)
{
    return &m->pci;
}

void machine_run_timers(struct machine *m)
{
    clock_run(&m->clock);
}

int machine_virtio_mmio(struct machine *m, gpa_t *gpa, struct irq_line *line)
{
    if (m->nr_virtio_mmio == VIRTIO_MMIO_MAX)
        return -ENOSPC;
    *line = (struct irq_line){ irq_or_set, &m->virtio_irq, m->nr_virtio_mmio };
    *gpa = LAYOUT_VIRTIO_MMIO + m->nr_virtio_mmio++ * PAGE_SIZE;
    return 0;
}
