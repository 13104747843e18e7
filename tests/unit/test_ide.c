/*
 * IDE disks and CD drives through their ports: identification, PIO and DMA in every direction, errors,
 * packets, and registers written at random by a guest that means harm. What takes long holds up nobody.
 */
#include "machine/board.h"
#include "machine/layout.h"
#include "mem/ram.h"
#include "tests/lib/check.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define RAM_SIZE (16ull << 20)
#define SECTORS 4096u

/* -- A disk in memory ------------------------------------------------------------------------------ */

struct mem_disk {
    struct disk disk;
    u8 *bytes;
    u64 bad; /* a sector that cannot be read or written; ~0: none */
    unsigned flushes;
    pthread_mutex_t gate; /* who has it holds up all requests */
};

static void pass(struct mem_disk *m)
{
    pthread_mutex_lock(&m->gate);
    pthread_mutex_unlock(&m->gate);
}

static int mem_rw(struct mem_disk *m, u64 sector, u32 count)
{
    return m->bad >= sector && m->bad < sector + count ? -EIO : 0;
}
static int mem_read(struct disk *d, u64 sector, void *buf, u32 count)
{
    struct mem_disk *m = (struct mem_disk *)d;
    pass(m);
    memcpy(buf, m->bytes + sector * DISK_SECTOR, (size_t)count * DISK_SECTOR);
    return mem_rw(m, sector, count);
}
static int mem_write(struct disk *d, u64 sector, const void *buf, u32 count)
{
    struct mem_disk *m = (struct mem_disk *)d;
    pass(m);
    int r = mem_rw(m, sector, count);
    if (!r)
        memcpy(m->bytes + sector * DISK_SECTOR, buf, (size_t)count * DISK_SECTOR);
    return r;
}
static int mem_flush(struct disk *d)
{
    pass((struct mem_disk *)d);
    ((struct mem_disk *)d)->flushes++;
    return 0;
}
static const struct disk_ops mem_ops = { .format = "mem", .read = mem_read, .write = mem_write, .flush = mem_flush };

struct fixture {
    struct machine *m;
    struct ram ram;
    u8 *mem;
    struct mem_disk hd, cd;
    u16 bm; /* bus master ports of the primary channel */
    bool at_once; /* do not wait for the disk after each access */
};

static u64 no_time(void *opaque) { (void)opaque; return 0; }
static u64 no_tsc(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; return 0; }
static void no_kick(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; }

static bool busy(struct fixture *f)
{
    return (machine_port_in(f->m, PORT_IDE1_CONTROL, 1) | machine_port_in(f->m, PORT_IDE2_CONTROL, 1)) & 0x80;
}

/* A driver's patience: what it has begun has ended. */
static void settle(struct fixture *f)
{
    while (!f->at_once && busy(f))
        sched_yield();
}

static void out(struct fixture *f, u16 port, unsigned size, u32 v)
{
    machine_port_out(f->m, port, size, v);
    settle(f);
}

static u32 in(struct fixture *f, u16 port, unsigned size)
{
    u32 v = machine_port_in(f->m, port, size);
    settle(f);
    return v;
}

static void out8(struct fixture *f, u16 port, u32 v) { out(f, port, 1, v & 0xff); }
static u8 in8(struct fixture *f, u16 port) { return (u8)in(f, port, 1); }

static void make_disk(struct mem_disk *d, u64 sectors)
{
    *d = (struct mem_disk){ .disk = { .ops = &mem_ops, .sectors = sectors }, .bad = ~0ull };
    d->bytes = malloc(sectors * DISK_SECTOR);
    pthread_mutex_init(&d->gate, NULL);
    for (u64 i = 0; i < sectors * DISK_SECTOR; i++)
        d->bytes[i] = (u8)(i / DISK_SECTOR * 7 + i);
}

static void setup(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    f->mem = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ram_init(&f->ram);
    CHECK(!ram_add_slot(&f->ram, 0, RAM_SIZE, f->mem, false));
    make_disk(&f->hd, SECTORS);
    make_disk(&f->cd, 401); /* not a whole number of CD blocks */
    f->cd.disk.readonly = true;
    const struct machine_config config = {
        .nr_cpus = 1, .ram_size = RAM_SIZE, .ram = &f->ram, .tsc_khz = 1000000, .wall_ns = 1,
        .kick = no_kick, .tsc_now = no_tsc, .clock_source = no_time,
        .ide = { [0] = { .present = true, .disk = &f->hd.disk },
                 [2] = { .present = true, .cdrom = true, .disk = &f->cd.disk } },
    };
    CHECK(!machine_create(&config, &f->m));
    out(f, PORT_PCI_ADDR, 4, 0x80000000u | PCI_DEVFN(PCI_SLOT_PIIX, 1) << 8 | 0x20);
    f->bm = in(f, PORT_PCI_DATA, 2) & 0xfffc;
    CHECK(f->bm >= PORT_PCI_BARS);
}

static void teardown(struct fixture *f)
{
    machine_destroy(f->m);
    ram_fini(&f->ram);
    munmap(f->mem, RAM_SIZE);
    free(f->hd.bytes);
    free(f->cd.bytes);
}

/* -- Helpers ------------------------------------------------------------------------------------------ */

/* An LBA28 command to the primary master. */
static void command(struct fixture *f, u8 cmd, u32 lba, u8 count)
{
    out8(f, PORT_IDE1 + 6, 0xe0 | lba >> 24);
    out8(f, PORT_IDE1 + 2, count);
    out8(f, PORT_IDE1 + 3, lba);
    out8(f, PORT_IDE1 + 4, lba >> 8);
    out8(f, PORT_IDE1 + 5, lba >> 16);
    out8(f, PORT_IDE1 + 7, cmd);
}

static bool irq(struct fixture *f, unsigned n) /* 14 or 15, as the slave 8259 sees it */
{
    out8(f, PORT_PIC_SLAVE, 0x0a);
    return f->m->ide.channel[n - 14].irq_level;
}

static void read_pio(struct fixture *f, u8 *buf, unsigned bytes, unsigned width)
{
    for (unsigned i = 0; i < bytes; i += width) {
        u32 v = in(f, PORT_IDE1, width);
        memcpy(buf + i, &v, width);
    }
}

static void test_identify(struct fixture *f)
{
    u16 id[256];

    out8(f, PORT_IDE1 + 6, 0xa0);
    CHECK(in8(f, PORT_IDE1 + 7) == 0x50);
    out8(f, PORT_IDE1 + 7, 0xec);
    CHECK(irq(f, 14) && in8(f, PORT_IDE1_CONTROL) == 0x58 && irq(f, 14));
    CHECK(in8(f, PORT_IDE1 + 7) == 0x58 && !irq(f, 14)); /* reading status ends the interrupt */
    read_pio(f, (u8 *)id, 512, 2);
    CHECK(in8(f, PORT_IDE1 + 7) == 0x50);
    CHECK(id[60] == SECTORS && id[61] == 0 && id[100] == SECTORS && (id[49] & 0x300) == 0x300);
    CHECK(id[27] == ('V' << 8 | 'I'));
    out8(f, PORT_IDE1 + 6, 0xb0); /* no slave: 0, or drivers wait for it */
    CHECK(in8(f, PORT_IDE1 + 7) == 0);
    out8(f, PORT_IDE2 + 6, 0xa0); /* the CD: ABRT, and its signature */
    out8(f, PORT_IDE2 + 7, 0xec);
    CHECK((in8(f, PORT_IDE2 + 7) & 1) && in8(f, PORT_IDE2 + 1) == 4);
    CHECK(in8(f, PORT_IDE2 + 4) == 0x14 && in8(f, PORT_IDE2 + 5) == 0xeb);
    out8(f, PORT_IDE1 + 6, 0xa0);
    f->at_once = true;
    out8(f, PORT_IDE1_CONTROL, 4); /* soft reset */
    CHECK(in8(f, PORT_IDE1_CONTROL) == 0x80);
    out8(f, PORT_IDE1_CONTROL, 0);
    f->at_once = false;
    CHECK(in8(f, PORT_IDE1 + 7) == 0x50 && in8(f, PORT_IDE1 + 1) == 1 && in8(f, PORT_IDE1 + 4) == 0);
}

static void test_pio(struct fixture *f)
{
    u8 buf[16 * 512];

    command(f, 0x20, 5, 3); /* READ SECTORS: an interrupt for each */
    for (unsigned s = 0; s < 3; s++) {
        CHECK(irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x58);
        read_pio(f, buf + s * 512, 512, s == 1 ? 4 : 2);
    }
    CHECK(!irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x50 && in(f, PORT_IDE1, 2) == 0xffff);
    CHECK(!memcmp(buf, f->hd.bytes + 5 * 512, 3 * 512));

    command(f, 0xc4, 0, 2); /* READ MULTIPLE before SET MULTIPLE */
    CHECK((in8(f, PORT_IDE1 + 7) & 1) && in8(f, PORT_IDE1 + 1) == 4);
    command(f, 0xc6, 0, 3);
    CHECK(in8(f, PORT_IDE1 + 7) & 1);
    command(f, 0xc6, 0, 8);
    CHECK(in8(f, PORT_IDE1 + 7) == 0x50);
    command(f, 0xc4, 100, 10); /* 8 and 2 */
    CHECK(irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x58);
    read_pio(f, buf, 8 * 512, 2);
    CHECK(irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x58);
    read_pio(f, buf + 8 * 512, 2 * 512, 2);
    CHECK(in8(f, PORT_IDE1 + 7) == 0x50 && !memcmp(buf, f->hd.bytes + 100 * 512, 10 * 512));

    command(f, 0x30, 7, 2); /* WRITE SECTORS */
    CHECK(!irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x58);
    for (unsigned i = 0; i < 256; i++)
        out(f, PORT_IDE1, 2, 0x1100 + i);
    CHECK(irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x58);
    for (unsigned i = 0; i < 128; i++)
        out(f, PORT_IDE1, 4, 0x22220000 + i);
    CHECK(irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x50);
    CHECK(f->hd.bytes[7 * 512 + 2] == 1 && f->hd.bytes[7 * 512 + 3] == 0x11);
    CHECK(f->hd.bytes[8 * 512 + 4] == 1 && f->hd.bytes[8 * 512 + 7] == 0x22);
    out8(f, PORT_IDE1 + 7, 0xe7);
    CHECK(f->hd.flushes == 1);

    /* CHS: cylinder 1, head 2, sector 3 of 16 heads and 63 sectors. */
    out8(f, PORT_IDE1 + 6, 0xa2);
    out8(f, PORT_IDE1 + 2, 1), out8(f, PORT_IDE1 + 3, 3), out8(f, PORT_IDE1 + 4, 1), out8(f, PORT_IDE1 + 5, 0);
    out8(f, PORT_IDE1 + 7, 0x20);
    read_pio(f, buf, 512, 2);
    CHECK(!memcmp(buf, f->hd.bytes + ((1 * 16 + 2) * 63 + 2) * 512, 512));
    out8(f, PORT_IDE1 + 3, 0); /* there is no sector 0 */
    out8(f, PORT_IDE1 + 7, 0x20);
    CHECK(in8(f, PORT_IDE1 + 1) == 0x10);

    command(f, 0x20, SECTORS - 1, 2); /* across the end */
    CHECK((in8(f, PORT_IDE1 + 7) & 1) && in8(f, PORT_IDE1 + 1) == 0x10);
    f->hd.bad = 50;
    command(f, 0x20, 49, 4);
    read_pio(f, buf, 512, 2);
    CHECK((in8(f, PORT_IDE1 + 7) & 1) && in8(f, PORT_IDE1 + 1) == 0x40 && in8(f, PORT_IDE1 + 3) == 50);
    f->hd.bad = ~0ull;
    f->hd.disk.readonly = true;
    command(f, 0x30, 7, 1);
    CHECK((in8(f, PORT_IDE1 + 7) & 1) && in8(f, PORT_IDE1 + 1) == 4);
    f->hd.disk.readonly = false;
    out8(f, PORT_IDE1_CONTROL, 2); /* nIEN */
    command(f, 0x20, 0, 1);
    CHECK(!irq(f, 14));
    out8(f, PORT_IDE1_CONTROL, 0);
}

static void prd(struct fixture *f, unsigned n, u32 address, u16 len, bool last)
{
    u32 e[2] = { address, len | (last ? 0x80000000u : 0) };
    memcpy(f->mem + 0x1000 + n * 8, e, 8);
}

static u8 dma(struct fixture *f, u8 cmd, u32 lba, u8 count, bool to_memory)
{
    out8(f, f->bm, 0);
    out8(f, f->bm + 2, 6);
    out(f, f->bm + 4, 4, 0x1000);
    command(f, cmd, lba, count);
    out8(f, f->bm, to_memory ? 9 : 1);
    u8 status = in8(f, f->bm + 2);
    out8(f, f->bm, 0);
    in8(f, PORT_IDE1 + 7);
    return status & 7;
}

static void test_dma(struct fixture *f)
{
    prd(f, 0, 0x20002, 1022, false); /* odd places, across pages */
    prd(f, 1, 0x30ff0, 514, true);
    CHECK(dma(f, 0xc8, 10, 3, true) == 4);
    CHECK(!memcmp(f->mem + 0x20002, f->hd.bytes + 10 * 512, 1022));
    CHECK(!memcmp(f->mem + 0x30ff0, f->hd.bytes + 10 * 512 + 1022, 514));
    CHECK(dma(f, 0xca, 20, 3, false) == 4);
    CHECK(!memcmp(f->hd.bytes + 20 * 512, f->hd.bytes + 10 * 512, 3 * 512));

    prd(f, 0, 0x40000, 0, false); /* 64 KiB twice: LBA48, 256 sectors, started before the command */
    prd(f, 1, 0x60000, 0, true);
    out8(f, f->bm + 2, 6);
    out(f, f->bm + 4, 4, 0x1000);
    out8(f, f->bm, 9);
    CHECK((in8(f, f->bm + 2) & 1) == 1);
    out8(f, PORT_IDE1 + 6, 0xe0);
    static const u8 regs[][2] = { { 2, 1 }, { 2, 0 }, { 3, 0 }, { 3, 30 }, { 4, 0 }, { 4, 0 }, { 5, 0 }, { 5, 0 } };
    for (unsigned i = 0; i < ARRAY_SIZE(regs); i++)
        out8(f, (u16)(PORT_IDE1 + regs[i][0]), regs[i][1]);
    out8(f, PORT_IDE1 + 7, 0x25);
    CHECK((in8(f, f->bm + 2) & 7) == 4);
    out8(f, f->bm, 0);
    CHECK(in8(f, PORT_IDE1 + 7) == 0x50);
    CHECK(!memcmp(f->mem + 0x40000, f->hd.bytes + 30 * 512, 65536));
    CHECK(!memcmp(f->mem + 0x60000, f->hd.bytes + 158 * 512, 65536));

    prd(f, 0, 0x20000, 512, true); /* a table that is too short */
    CHECK((dma(f, 0xc8, 0, 2, true) & 2) && (in8(f, PORT_IDE1 + 7) & 1));
    prd(f, 0, 0x20000, 4096, true); /* too long: stays active */
    CHECK(dma(f, 0xc8, 0, 2, true) == 5);
    prd(f, 0, 0xfff00000, 512, true); /* where nothing is */
    CHECK(dma(f, 0xc8, 0, 1, true) & 2);
    out(f, f->bm + 4, 4, 0xfffffff0); /* a table where nothing is */
    command(f, 0xc8, 0, 1);
    out8(f, f->bm, 9);
    CHECK(in8(f, f->bm + 2) & 2);
    out8(f, f->bm, 0);
}

/* -- The CD ----------------------------------------------------------------------------------------- */

static u8 packet(struct fixture *f, const u8 p[12], u16 limit, bool by_dma)
{
    out8(f, PORT_IDE2 + 6, 0xa0);
    out8(f, PORT_IDE2 + 1, by_dma);
    out8(f, PORT_IDE2 + 4, limit);
    out8(f, PORT_IDE2 + 5, limit >> 8);
    out8(f, PORT_IDE2 + 7, 0xa0);
    CHECK(in8(f, PORT_IDE2 + 7) == 0x58 && in8(f, PORT_IDE2 + 2) == 1);
    for (unsigned i = 0; i < 12; i += 2)
        out(f, PORT_IDE2, 2, p[i] | (u32)p[i + 1] << 8);
    return in8(f, PORT_IDE2 + 7);
}

/* All the data phases; the bytes got. */
static unsigned take(struct fixture *f, u8 *buf, unsigned cap, unsigned limit)
{
    unsigned got = 0;
    while (in8(f, PORT_IDE2 + 7) & 8) {
        unsigned n = in8(f, PORT_IDE2 + 4) | in8(f, PORT_IDE2 + 5) << 8;
        CHECK(n && n <= limit && in8(f, PORT_IDE2 + 2) == 2);
        for (unsigned i = 0; i < n && got + 2 <= cap; i += 2, got += 2) {
            u32 v = in(f, PORT_IDE2, 2);
            memcpy(buf + got, &v, 2);
        }
    }
    CHECK(in8(f, PORT_IDE2 + 2) == 3);
    return got;
}

static void test_cd(struct fixture *f)
{
    u8 buf[64 * 2048];

    CHECK(packet(f, (u8[12]){ 0x12, 0, 0, 0, 36 }, 0xfffe, false) == 0x58);
    CHECK(take(f, buf, sizeof(buf), 36) == 36 && buf[0] == 5 && !memcmp(buf + 8, "VITRO", 5));
    CHECK(packet(f, (u8[12]){ 0x25 }, 8, false) == 0x58);
    CHECK(take(f, buf, sizeof(buf), 8) == 8 && buf[3] == 100 && buf[6] == 8); /* last block */
    CHECK(packet(f, (u8[12]){ 0x28, 0, 0, 0, 0, 2, 0, 0, 3 }, 2048, false) == 0x58);
    CHECK(take(f, buf, sizeof(buf), 2048) == 3 * 2048);
    CHECK(!memcmp(buf, f->cd.bytes + 2 * 2048, 3 * 2048));
    CHECK(packet(f, (u8[12]){ 0x28, 0, 0, 0, 0, 3, 0, 0, 2 }, 600, false) == 0x58); /* small pieces */
    CHECK(take(f, buf, sizeof(buf), 600) == 2 * 2048);
    CHECK(!memcmp(buf, f->cd.bytes + 3 * 2048, 2 * 2048));
    CHECK(packet(f, (u8[12]){ 0x28, 0, 0, 0, 0, 100, 0, 0, 1 }, 2048, false) == 0x58); /* the last, in part */
    CHECK(take(f, buf, sizeof(buf), 2048) == 2048);
    CHECK(!memcmp(buf, f->cd.bytes + 100 * 2048, 512) && buf[512] == 0 && buf[2047] == 0);
    CHECK(packet(f, (u8[12]){ 0x28, 0, 0, 0, 0, 60, 0, 0, 41 }, 0xf000, false) == 0x58); /* more than a buffer */
    CHECK(take(f, buf, sizeof(buf), 0xf000) == 41 * 2048);
    CHECK(!memcmp(buf, f->cd.bytes + 60 * 2048, 40 * 2048));
    CHECK(packet(f, (u8[12]){ 0x28, 0, 0, 0, 0, 100, 0, 0, 2 }, 2048, false) & 1);
    CHECK(packet(f, (u8[12]){ 0x03, 0, 0, 0, 18 }, 18, false) == 0x58);
    CHECK(take(f, buf, sizeof(buf), 18) == 18 && buf[2] == 5 && buf[12] == 0x21);
    CHECK(packet(f, (u8[12]){ 0xff }, 18, false) & 1);
    CHECK(packet(f, (u8[12]){ 0x43, 0, 0, 0, 0, 0, 0, 0, 20 }, 20, false) == 0x58);
    CHECK(take(f, buf, sizeof(buf), 20) == 20 && buf[1] == 18 && buf[14] == 0xaa);
    CHECK(packet(f, (u8[12]){ 0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 255 }, 255, false) == 0x58);
    CHECK(take(f, buf, sizeof(buf), 255) == 36);

    prd(f, 0, 0x50000, 4096, true);
    out8(f, f->bm + 8, 0);
    out8(f, f->bm + 10, 6);
    out(f, f->bm + 12, 4, 0x1000);
    packet(f, (u8[12]){ 0x28, 0, 0, 0, 0, 9, 0, 0, 2 }, 0, true);
    out8(f, f->bm + 8, 9);
    CHECK((in8(f, f->bm + 10) & 7) == 4 && in8(f, PORT_IDE2 + 7) == 0x50);
    CHECK(!memcmp(f->mem + 0x50000, f->cd.bytes + 9 * 2048, 4096));
    out8(f, f->bm + 8, 0);
}

/* The disk takes its time: the drive says that it is busy, and hears nothing but a reset. */
static void test_slow(struct fixture *f)
{
    u8 buf[512], before[512];

    f->at_once = true;
    pthread_mutex_lock(&f->hd.gate);
    command(f, 0x20, 9, 2); /* READ SECTORS */
    CHECK(in8(f, PORT_IDE1 + 7) == 0x80 && !irq(f, 14) && in(f, PORT_IDE1, 2) == 0xffff);
    out8(f, PORT_IDE1 + 7, 0xec); /* not heard */
    CHECK(in8(f, PORT_IDE1 + 7) == 0x80);
    pthread_mutex_unlock(&f->hd.gate);
    while (busy(f))
        sched_yield();
    CHECK(irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x58);
    f->at_once = false;
    read_pio(f, buf, 512, 2);
    CHECK(!memcmp(buf, f->hd.bytes + 9 * 512, 512));
    CHECK(irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x58);
    read_pio(f, buf, 512, 2);
    CHECK(!memcmp(buf, f->hd.bytes + 10 * 512, 512));

    memcpy(before, f->mem + 0x20000, 512); /* a DMA command, and its flush that another waits for */
    prd(f, 0, 0x20000, 512, true);
    out8(f, f->bm, 0);
    out8(f, f->bm + 2, 6);
    out(f, f->bm + 4, 4, 0x1000);
    f->at_once = true;
    pthread_mutex_lock(&f->hd.gate);
    command(f, 0xc8, 77, 1);
    out8(f, f->bm, 9);
    CHECK(in8(f, PORT_IDE1 + 7) == 0x80 && (in8(f, f->bm + 2) & 7) == 1 && !memcmp(f->mem + 0x20000, before, 512));
    pthread_mutex_unlock(&f->hd.gate);
    while (busy(f))
        sched_yield();
    CHECK(irq(f, 14) && (in8(f, f->bm + 2) & 7) == 4 && !memcmp(f->mem + 0x20000, f->hd.bytes + 77 * 512, 512));
    out8(f, f->bm, 0);
    in8(f, PORT_IDE1 + 7);

    unsigned flushes = f->hd.flushes;
    pthread_mutex_lock(&f->hd.gate);
    out8(f, PORT_IDE1 + 7, 0xe7);
    CHECK(in8(f, PORT_IDE1 + 7) == 0x80 && !irq(f, 14));
    pthread_mutex_unlock(&f->hd.gate);
    while (busy(f))
        sched_yield();
    CHECK(irq(f, 14) && in8(f, PORT_IDE1 + 7) == 0x50 && f->hd.flushes == flushes + 1);

    /* A reset meanwhile: busy until the disk has let go of the buffer, then as after any reset; the command is forgotten. */
    for (unsigned stop = 0; stop < 2; stop++) {
        memset(f->mem + 0x20000, 0x5a, 512);
        out8(f, f->bm, 0);
        out8(f, f->bm + 2, 6);
        pthread_mutex_lock(&f->hd.gate);
        command(f, 0xc8, 77, 1);
        out8(f, f->bm, 9);
        if (stop) { /* the bus master stops instead: nothing more is written to memory */
            out8(f, f->bm, 0);
        } else {
            out8(f, PORT_IDE1_CONTROL, 4);
            out8(f, PORT_IDE1_CONTROL, 0);
        }
        CHECK(in8(f, PORT_IDE1 + 7) == 0x80);
        pthread_mutex_unlock(&f->hd.gate);
        while (busy(f))
            sched_yield();
        CHECK(irq(f, 14) == (stop == 1) && in8(f, PORT_IDE1 + 7) == (stop ? 0x51 : 0x50) && in8(f, PORT_IDE1 + 1) == (stop ? 4 : 1));
        CHECK(f->mem[0x20000] == 0x5a && f->mem[0x201ff] == 0x5a);
    }
    f->at_once = false;
    out8(f, f->bm, 0);
}

/* Anything written anywhere: nothing may crash, and the disk outside never grows. */
static void test_hostile(struct fixture *f)
{
    u64 x = 88172645463325252ull;

    f->at_once = true;

    for (unsigned i = 0; i < 300000; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        static const u16 base[] = { PORT_IDE1, PORT_IDE2 };
        u16 port = (u16)(base[x & 1] + (x >> 1 & 7));
        unsigned size = 1u << (x >> 8) % 3;
        switch (x >> 16 & 15) {
        case 0: port = (u16)(f->bm + (x >> 20 & 15)); break;
        case 1: port = x & 1 ? PORT_IDE1_CONTROL : PORT_IDE2_CONTROL; break;
        case 2 ... 5: port = base[x & 1]; break; /* data */
        case 6: port = (u16)(base[x & 1] + 7); break;
        default: break;
        }
        if (x >> 24 & 1)
            in(f, port, size);
        else
            out(f, port, size, (u32)(x >> 32));
    }
    out8(f, PORT_IDE1_CONTROL, 4);
    out8(f, PORT_IDE1_CONTROL, 0);
    f->at_once = false;
    out8(f, PORT_IDE1 + 6, 0xa0);
    CHECK(in8(f, PORT_IDE1 + 7) == 0x50);
}

int main(void)
{
    struct fixture f;

    setup(&f);
    test_identify(&f);
    test_pio(&f);
    test_dma(&f);
    test_cd(&f);
    test_slow(&f);
    test_hostile(&f);
    teardown(&f);
    return check_done("test_ide");
}
