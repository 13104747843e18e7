/*
 * machine.h - a PC board as the monitor sees it: create it, plug machine_*() into the engine's
 * host table, feed its console, take its requests. The functions with a void * first take the
 * machine and have the signatures of struct engine_host.
 *
 * Threads: everything may be called from any thread once created, except create, destroy, reset
 * and what adds devices: those while no vCPU runs. Callbacks come from vCPU threads and from the
 * machine's I/O thread, often with a device's lock held: they must not call back into the machine
 * and should not block. kick() in particular is called under the interrupt controllers' lock; it
 * may ask machine_pending(), which takes no lock and already shows what is new.
 */
#pragma once
#include "base/types.h"

struct disk;
struct ram;
struct machine;
struct io_thread;
struct vm_clock;
struct bus;
struct pci_host;
struct vga;

#define MACHINE_MAX_CPUS 255
#define MACHINE_SHADOW_READ 0x1u
#define MACHINE_SHADOW_WRITE 0x2u

enum machine_request {
    MACHINE_POWEROFF,   /* ACPI S5; status 0 */
    MACHINE_RESET,      /* 0xcf9, 0x64, 0x92 */
    MACHINE_DEBUG_EXIT, /* isa-debug-exit; status (v << 1) | 1 */
    MACHINE_PANICKED,   /* pvpanic: the guest has panicked, and may go on */
};

struct machine_config {
    unsigned nr_cpus;
    u64 ram_size;       /* bytes, as for machine_ram_ranges() */
    struct ram *ram;    /* where machine_build_acpi() writes; may be NULL otherwise */
    u64 tsc_khz;        /* rate of the guest's TSC */
    u64 wall_ns;        /* RTC: UTC ns since 1970 at creation; 0: the host's clock */

    void *opaque;       /* first argument of the callbacks */
    /* A vCPU has something new in machine_pending(). */
    void (*kick)(void *opaque, unsigned vcpu);
    void (*wake)(void *opaque, unsigned vcpu); /* machine_wake; may be NULL if that is not used */
    void (*request)(void *opaque, enum machine_request what, int status);
    u64 (*tsc_now)(void *opaque, unsigned vcpu); /* the guest's TSC now */
    void (*console_tx)(void *opaque, const u8 *bytes, size_t len);  /* COM1; may be NULL */
    /* Who takes the console's input before COM1 does: how many bytes fit now, or -1: it wants none; and takes them. Both on the
     * I/O thread; may be NULL. After saying 0 it calls machine_console_resume() when there is room. */
    long (*console_room)(void *opaque);
    void (*console_rx)(void *opaque, const u8 *bytes, size_t len);
    void (*debugcon_tx)(void *opaque, const u8 *bytes, size_t len); /* port 0xe9; may be NULL */

    /* Drives on IDE: primary master, primary slave, secondary master, secondary slave. */
    struct {
        bool present, cdrom;
        struct disk *disk; /* stays the caller's; NULL: a CD drive without a CD */
    } ide[4];

    bool testdev;       /* the test kernels' device (chips/testdev.h) */
    struct disk *floppy[2]; /* stay the caller's; NULL: no drive */

    void (*a20)(void *opaque, bool on); /* the gate of address line 20; may be NULL */
    bool vga;           /* a VGA card */
    bool keyboard;      /* a keyboard and a mouse on the i8042 */
    bool firmware;      /* firmware will run: leave to it what it does before a system starts */
    /* Who answers in [gpa, gpa + size), below 1 MiB: SHADOW_READ, SHADOW_WRITE; else ROM. May be NULL. */
    void (*shadow)(void *opaque, gpa_t gpa, u64 size, unsigned mode);
    /* Memory of a device's, at gpa from now on; ~0: nowhere. It stays MMIO where this does nothing. May be NULL. */
    void (*show)(void *opaque, void *host, u64 size, gpa_t gpa);
    void (*firmware_log)(void *opaque, const u8 *bytes, size_t len); /* port 0x402; may be NULL */
    const char *boot_order; /* letters of acdn; NULL or "": the firmware's own */
    bool boot_menu;
    struct {
        gpa_t gpa;
        u32 size;         /* 0: none */
        const u8 *image;  /* copied */
        struct disk *disk; /* stays the caller's; NULL: not kept */
    } flash;              /* of firmware's variables */

    /* Tests: a clock of their own, in ns. No I/O thread then: call machine_run_timers(). */
    u64 (*clock_source)(void *opaque);
    void *clock_opaque;
};

/* machine_create - 0 or -errno; *out is reset and ready. The config is copied. */
int machine_create(const struct machine_config *config, struct machine **out);
/* machine_still - ends its I/O thread: no timer or fd callback after this. For who has timers there and goes first. */
void machine_still(struct machine *m);
void machine_destroy(struct machine *m);
/* machine_reset - as by the reset line: every chip; RAM, CMOS RAM and time stay. */
void machine_reset(struct machine *m);

/*
 * machine_stop, machine_start - hold time and devices still while no vCPU runs: timers do not run, the I/O
 * thread is ended; and let them go on where they were. 0 or -errno. From one thread; not the I/O thread.
 */
int machine_stop(struct machine *m);
int machine_start(struct machine *m);

/* -- For struct engine_host ----------------------------------------------- */

u32 machine_port_in(void *machine, u16 port, unsigned size);
void machine_port_out(void *machine, u16 port, unsigned size, u32 value);
void machine_mmio_read(void *machine, unsigned vcpu, gpa_t gpa, void *buf, unsigned len);
void machine_mmio_write(void *machine, unsigned vcpu, gpa_t gpa, const void *buf, unsigned len);
/* APIC base, TSC deadline, x2APIC. 0, or -1: #GP(0). */
int machine_msr_read(void *machine, unsigned vcpu, u32 msr, u64 *value);
int machine_msr_write(void *machine, unsigned vcpu, u32 msr, u64 value);
/* KVM's paravirtual end of interrupt (lapic.c): MSR_KVM_PV_EOI_EN, and the host's address of the word it names (NULL:
 * off). INIT switches it off. On the vCPU's own thread. */
void machine_pv_eoi_set(void *machine, unsigned vcpu, u64 msr, u32 *word);
u64 machine_pv_eoi_get(void *machine, unsigned vcpu);
/* machine_ipi_mask - an IPI as by an ICR write (fixed or NMI; edge) to APIC IDs first + the bits of a mask of 128. How
 * many there are of them; -1: another kind of IPI. */
int machine_ipi_mask(void *machine, u32 first, const u64 mask[2], u32 icr);
/* machine_intr_ack - the vector of the interrupt to take now, or -1. */
int machine_intr_ack(void *machine, unsigned vcpu);
u64 machine_cr8_read(void *machine, unsigned vcpu);
void machine_cr8_write(void *machine, unsigned vcpu, u64 value);
void machine_wake(void *machine, unsigned vcpu);

/* -- What a vCPU's loop asks ---------------------------------------------- */

#define MACHINE_INTR 0x1u
#define MACHINE_NMI 0x2u
#define MACHINE_INIT 0x4u
#define MACHINE_SIPI 0x8u
/* machine_pending - MACHINE_* bits; one atomic load. */
u32 machine_pending(void *machine, unsigned vcpu);
/* machine_intr_pending - would machine_intr_ack() give a vector? One atomic load. */
bool machine_intr_pending(void *machine, unsigned vcpu);
/* The takes consume. INIT before SIPI: a vCPU that took INIT resets itself, and if it is not
 * vCPU 0 waits until machine_sipi_take() gives a start page (CS:IP = vector << 8 : 0), else -1: also while an
 * INIT is pending, which came first, for it would take the vCPU back to waiting. */
bool machine_nmi_take(void *machine, unsigned vcpu);
bool machine_init_take(void *machine, unsigned vcpu);
int machine_sipi_take(void *machine, unsigned vcpu);
/* machine_apic_base - for CPUID.1 (APIC flag). */
u64 machine_apic_base(void *machine, unsigned vcpu);

/* -- From outside --------------------------------------------------------- */

/* machine_console_feed - input for COM1. How many bytes were taken. */
size_t machine_console_feed(struct machine *m, const u8 *bytes, size_t len);
/* machine_console_attach - let the I/O thread read fd into COM1, as fast as the guest takes it.
 * The caller keeps owning fd, and keeps it open. 0 or -errno. */
int machine_console_attach(struct machine *m, int fd);
/* machine_console_listening - does the guest take input from COM1 yet (uart_listening)? Any thread. */
bool machine_console_listening(struct machine *m);
/* machine_console_resume - whoever takes the input has room, or is another one now. Any thread. */
void machine_console_resume(struct machine *m);
/* machine_console_flush - hand out output that waits to be batched (up to 2 ms). */
void machine_console_flush(struct machine *m);
void machine_power_button(struct machine *m);
/* machine_nmi - the NMI button: LINT1 of one vCPU. */
void machine_nmi(struct machine *m, unsigned vcpu);
/* machine_vga - what draws the screen; NULL: there is none. */
struct vga *machine_vga(struct machine *m);
/* machine_set_gsi - drive an interrupt input, 0..23; 0..15 also go to the 8259s. */
void machine_set_gsi(struct machine *m, unsigned gsi, bool level);
/* machine_msi - a message-signalled interrupt (SDM vol. 3 §11.11). */
void machine_msi(struct machine *m, u64 address, u32 data);

/* -- Memory map ----------------------------------------------------------- */

#define MACHINE_MAX_RANGES 12
enum { E820_RAM = 1, E820_RESERVED = 2, E820_ACPI = 3, E820_NVS = 4 };
struct machine_range {
    gpa_t gpa;
    u64 size;
    u64 offset; /* in the guest's memory of ram_size bytes; 0 where there is none */
    u32 type;   /* E820_* */
};
/* machine_ram_ranges - which pieces of ram_size bytes go where: the slots to add. Their number. */
unsigned machine_ram_ranges(u64 ram_size, struct machine_range out[MACHINE_MAX_RANGES]);
/* machine_e820 - what to tell the guest's kernel about them. */
unsigned machine_e820(u64 ram_size, struct machine_range out[MACHINE_MAX_RANGES]);
/* machine_build_acpi - write the tables to guest memory. Guest address of the RSDP; 0: no RAM
 * there. */
gpa_t machine_build_acpi(struct machine *m);
/* machine_add_file - a file for the firmware (fw_cfg). Copied. 0 or -errno of fw_cfg_add_file(). */
int machine_add_file(struct machine *m, const char *name, const void *data, size_t size);
/* machine_add_item - the same by number. */
int machine_add_item(struct machine *m, u16 key, const void *data, size_t size);
/* machine_fill_firmware - what firmware wants to know: memory map, ACPI and SMBIOS tables, boot
 * order. Once, after the last machine_add_file(), with firmware only. 0 or -errno. */
int machine_fill_firmware(struct machine *m);

/* -- For devices that are added (virtio) and for tests -------------------- */

struct io_thread *machine_io_thread(struct machine *m);
struct vm_clock *machine_clock(struct machine *m);
struct bus *machine_bus(struct machine *m);
struct pci_host *machine_pci(struct machine *m);
struct irq_line;
/* machine_virtio_mmio - a place for a device outside PCI, announced by ACPI: a page of registers and a shared, level-triggered
 * line. Before machine_build_acpi(). 0 or -ENOSPC. */
int machine_virtio_mmio(struct machine *m, gpa_t *gpa, struct irq_line *line);
/* machine_run_timers - with a clock of the caller's: run what is due. */
void machine_run_timers(struct machine *m);
