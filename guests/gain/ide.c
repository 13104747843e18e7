/*
 * ide.c - a disk by the PC's own controller: one request at a time, by bus-master DMA and an interrupt, LBA48. Sources:
 * ATA/ATAPI-6 §7, §9.9; "Programming Interface for Bus Master IDE Controller" 1.0.
 */
#include "gain/pc.h"

enum { DATA = 0x1f0, COUNT = 0x1f2, LBA_LOW, LBA_MID, LBA_HIGH, DRIVE, COMMAND };
enum { READ_DMA_EXT = 0x25, WRITE_DMA_EXT = 0x35 };
enum { BM_COMMAND, BM_STATUS = 2, BM_TABLE = 4 };

static struct {
    uint32_t address, bytes; /* of at most 64 KiB, which is written 0; bit 31: the last */
} table[32] __attribute__((aligned(4096)));
static uint16_t bm;
static unsigned slot;
static volatile bool done;
static volatile uint8_t status;

static void on_interrupt(struct sdk_regs *r)
{
    (void)r;
    uint8_t s = inb((uint16_t)(bm + BM_STATUS));
    if (s & 4) {
        status = inb(COMMAND);                      /* this takes the interrupt away */
        outb((uint16_t)(bm + BM_COMMAND), 0);
        outb((uint16_t)(bm + BM_STATUS), 4 | (s & 2));
        status |= s & 2;
        done = true;
    }
    APIC(APIC_EOI) = 0;
}

static bool start(void)
{
    int devfn = pci_find(0x8086, 0x7010);

    if (devfn < 0 || !(inb(COMMAND) & 0x40)) /* no drive that is ready */
        return false;
    pci_start(devfn);
    bm = (uint16_t)pci_bar(devfn, 4);
    trap_handle(VECTOR_IDE, on_interrupt);
    irq_route(14, VECTOR_IDE, false);
    outl((uint16_t)(bm + BM_TABLE), (uint32_t)(uint64_t)table);
    return true;
}

static void put(unsigned s, bool write, uint64_t sector, void *data, uint32_t len)
{
    uint32_t at = (uint32_t)(uint64_t)data, n = 0, count = len / SECTOR;

    slot = s;
    for (; len; n++) {
        uint32_t part = len < 0x10000 ? len : 0x10000;
        table[n].address = at;
        table[n].bytes = (part & 0xffff) | (part == len ? 0x80000000u : 0);
        at += part;
        len -= part;
    }
    outb((uint16_t)(bm + BM_COMMAND), write ? 0 : 8);
    outb(DRIVE, 0x40); /* LBA */
    outb(COUNT, (uint8_t)(count >> 8)); /* each register twice: the high bytes first */
    outb(LBA_LOW, (uint8_t)(sector >> 24));
    outb(LBA_MID, 0);
    outb(LBA_HIGH, 0);
    outb(COUNT, (uint8_t)count);
    outb(LBA_LOW, (uint8_t)sector);
    outb(LBA_MID, (uint8_t)(sector >> 8));
    outb(LBA_HIGH, (uint8_t)(sector >> 16));
    outb(COMMAND, write ? WRITE_DMA_EXT : READ_DMA_EXT);
    outb((uint16_t)(bm + BM_COMMAND), write ? 1 : 9);
}

static void kick(void) {}

static int reap(void)
{
    if (!done)
        return -1;
    done = false;
    if (status & 0x23) /* error, device fault, bus-master error */
        die("ide: status %x\n", status);
    return (int)slot;
}

const struct disk disk_ide = { "ide", 1, start, put, kick, reap };
