/*
 * test_fuzz_board.c - a whole board whose guest does anything at ports, in MMIO and with MSRs: each of the board's chips by itself
 * (the first byte says which), and all together. Time is the input's, too.
 */
#include "machine/chips/vga.h"
#include "machine/input.h"
#include "machine/layout.h"
#include "machine/machine.h"
#include "machine/pci.h"
#include "mem/ram.h"
#include "storage/disk.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_SIZE (4ull << 20)
#define FLASH 0xffc00000u
#define FLASH_SIZE 0x10000u

/* Where a chip answers: ports below 64 Ki, else memory. */
struct area { u32 at, size; };
static const struct chip { const char *name; struct area area[4]; } chips[] = {
    { "uart", { { PORT_COM1, 8 } } },
    { "pit", { { PORT_PIT, 4 }, { PORT_SYSTEM_B, 1 } } },
    { "pic", { { PORT_PIC_MASTER, 2 }, { PORT_PIC_SLAVE, 2 }, { PORT_ELCR, 2 } } },
    { "rtc", { { PORT_RTC, 2 } } },
    { "i8042", { { PORT_KBD_DATA, 1 }, { PORT_KBD_STATUS, 1 }, { PORT_SYSTEM_A, 1 } } },
    { "floppy", { { PORT_FDC, 8 }, { PORT_DMA1, 16 }, { PORT_DMA_PAGES, 15 }, { PORT_DMA2, 32 } } },
    { "ide", { { PORT_IDE1, 8 }, { PORT_IDE1_CONTROL, 1 }, { PORT_PCI_BARS, 16 } } },
    { "atapi", { { PORT_IDE2, 8 }, { PORT_IDE2_CONTROL, 1 }, { PORT_PCI_BARS, 16 } } },
    { "vga", { { PORT_VGA, 0x30 }, { PORT_DISPI, 4 }, { 0xa0000, 0x20000 }, { (u32)LAYOUT_PCI_MMIO, 0x1000000 } } },
    { "hpet", { { (u32)LAYOUT_HPET, 0x180 } } },
    { "lapic", { { (u32)LAYOUT_LAPIC, 0x400 } } },
    { "ioapic", { { (u32)LAYOUT_IOAPIC, 0x44 } } },
    { "acpi", { { PORT_PM1_EVT, 0x30 }, { PORT_PM_OVMF, 16 } } },
    { "fw_cfg", { { PORT_FW_CFG, 2 }, { PORT_FW_CFG_DMA, 8 } } },
    { "pflash", { { FLASH, FLASH_SIZE } } },
    { "pci", { { PORT_PCI_ADDR, 8 }, { (u32)LAYOUT_ECAM, 0x100000 } } },
    { "others", { { PORT_SYSTEM_A, 1 }, { PORT_POST, 1 }, { PORT_DEBUGCON, 0x1f }, { PORT_DEBUG_EXIT, 5 } } },
};

static u64 now;
static u64 fake_now(void *opaque) { return now; }
static u64 fake_tsc(void *opaque, unsigned vcpu) { return now * 2; }
static void kick(void *opaque, unsigned vcpu) { bug_on(vcpu > 1); }
static void request(void *opaque, enum machine_request what, int status) { }
static void output(void *opaque, const u8 *bytes, size_t len) { bug_on(!len); }
static void a20(void *opaque, bool on) { }
static void shadow(void *opaque, gpa_t gpa, u64 size, unsigned mode) { bug_on(gpa < 0xc0000 || gpa + size > 0x100000); }

static struct disk *disk(u64 bytes)
{
    struct disk *d;
    int fd = memfd_create("disk", MFD_CLOEXEC);
    bug_on(fd < 0 || ftruncate(fd, (off_t)bytes) || raw_disk_open(fd, false, bytes, &d));
    return d;
}

struct step { u8 op, size; u16 at; u32 v; };

static void touch(struct machine *m, const struct chip *c, const struct step *s, bool write, u32 v)
{
    unsigned n = 0, size = 1u << s->size % 3;
    while (n < ARRAY_SIZE(c->area) && c->area[n].size)
        n++;
    const struct area *a = &c->area[s->at % n];
    u32 at = a->at + (a->size > 0x4000 ? s->at * 61u : s->at / n) % a->size;
    u64 bytes = v;
    if (at < 0x10000 && write)
        machine_port_out(m, (u16)at, size, v);
    else if (at < 0x10000)
        machine_port_in(m, (u16)at, size);
    else if (write)
        machine_mmio_write(m, s->size >> 2 & 1, at, &bytes, s->size & 8 ? 8 : size);
    else
        machine_mmio_read(m, s->size >> 2 & 1, at, &bytes, s->size & 8 ? 8 : size);
}

static void others(struct machine *m, const struct step *s, u8 *mem, unsigned *pictures)
{
    struct vga_text text;
    unsigned width, height;
    u64 v = s->v;
    u8 *rgb;

    switch (s->size % 12) {
    case 0: machine_key(m, (u8)s->v & 0x7f, s->v & 0x100, s->v & 0x200); break;
    case 1: machine_move(m, (s32)s->v >> 16, (s16)s->v, (s8)s->at); break;
    case 2: machine_button(m, s->v % 5, s->v & 0x100); break;
    case 3: machine_console_feed(m, (const u8 *)&s->v, 1 + s->at % 4); break;
    case 4: machine_intr_ack(m, s->at & 1); break;
    case 5: /* a picture takes longer than anything else */
        if (++*pictures < 4 && s->at & 1) {
            if (!vga_image(machine_vga(m), &width, &height, &rgb))
                free(rgb);
        } else if (*pictures < 8 && !vga_text_get(machine_vga(m), &text)) {
            vga_text_free(&text);
        }
        break;
    case 6: machine_msr_write(m, s->at & 1, s->at & 2 ? 0x800 + (s->at >> 2 & 0x3f) : s->at & 4 ? 0x1b : 0x6e0, v); break;
    case 7: machine_msr_read(m, s->at & 1, 0x800 + (s->at >> 2 & 0x3f), &v); break;
    case 8: machine_set_gsi(m, s->v % NR_GSI, s->at & 1); break;
    case 9: machine_msi(m, LAYOUT_LAPIC + s->at, s->v); break;
    case 10:
        machine_nmi_take(m, s->at & 1);
        machine_init_take(m, s->at & 1);
        machine_sipi_take(m, s->at & 1);
        machine_cr8_write(m, s->at & 1, s->v & 15);
        break;
    default: memcpy(mem + s->at * 4u, &s->v, 4); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct machine *m;
    struct ram ram;
    struct machine_range r[MACHINE_MAX_RANGES];
    unsigned pictures = 0;
    static const u8 flash[FLASH_SIZE];

    if (size < 2)
        return 0;
    /* Nothing on either side of memory. */
    u8 *all = mmap(NULL, RAM_SIZE + 2 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bug_on(all == MAP_FAILED || mprotect(all + PAGE_SIZE, RAM_SIZE, PROT_READ | PROT_WRITE));
    u8 *mem = all + PAGE_SIZE;
    ram_init(&ram);
    unsigned nr = machine_ram_ranges(RAM_SIZE, r);
    for (unsigned i = 0; i < nr; i++)
        bug_on(ram_add_slot(&ram, r[i].gpa, r[i].size, mem + r[i].offset, false));
    now = 1000;
    struct disk *const d[] = { disk(1 << 20), disk(1 << 20), disk(1440 << 10), disk(720 << 10) };
    const struct machine_config config = {
        .nr_cpus = 2, .ram_size = RAM_SIZE, .ram = &ram, .tsc_khz = 2000000, .wall_ns = 1700000000ull * 1000000000ull,
        .kick = kick, .request = request, .tsc_now = fake_tsc, .console_tx = output, .debugcon_tx = output, .firmware_log = output,
        .ide = { { true, false, d[0] }, { false }, { true, true, d[1] } }, .floppy = { d[2], d[3] }, .testdev = data[1] & 1,
        .a20 = a20, .vga = true, .keyboard = true, .firmware = true, .shadow = shadow,
        .flash = { FLASH, FLASH_SIZE, flash, NULL }, .clock_source = fake_now,
    };
    bug_on(machine_create(&config, &m));
    bug_on(machine_add_file(m, "fuzz", "some text", 9) || machine_fill_firmware(m));
    pci_assign_bars(machine_pci(m));
    unsigned only = data[0] % (ARRAY_SIZE(chips) + 1); /* the last: any */
    for (size_t i = 2; i + sizeof(struct step) <= size; i += sizeof(struct step)) {
        struct step s;
        memcpy(&s, data + i, sizeof(s));
        const struct chip *c = &chips[only < ARRAY_SIZE(chips) ? only : (s.op >> 3) % ARRAY_SIZE(chips)];
        switch (s.op & 7) {
        case 0: case 1: case 2: touch(m, c, &s, true, s.v); break;
        case 3: case 4: touch(m, c, &s, false, 0); break;
        case 5: /* a FIFO's or buffer's worth */
            for (unsigned n = 0; n < (s.v >> 16 & 0x3ff); n++)
                touch(m, c, &s, s.v & 0x4000000, s.v);
            break;
        case 6:
            now += (u64)s.v << (s.at & 7);
            machine_run_timers(m);
            break;
        default: others(m, &s, mem, &pictures);
        }
        if (s.op == 0xff && s.at == 0xffff)
            machine_reset(m);
    }
    machine_destroy(m);
    for (unsigned i = 0; i < ARRAY_SIZE(d); i++)
        disk_close(d[i]);
    ram_fini(&ram);
    munmap(all, RAM_SIZE + 2 * PAGE_SIZE);
    return 0;
}

FUZZ_MAIN("fuzz/board", 1500, 1600)
