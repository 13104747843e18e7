/*
 * ata_disk.c - an ATA disk on an IDE channel. Source: ATA/ATAPI-6 (T13/1410D r3b) §8 (commands),
 * §6.2 (CHS and LBA), §6.20 (48-bit addresses).
 * Not modelled: SMART, security, host protected areas beyond READ NATIVE MAX.
 */
#include "machine/chips/ide.h"
#include <string.h>

#define DEVICE_LBA 0x40
#define HEADS 16u
#define TRACK 63u
#define LBA28_MAX 0x0fffffffull

static void signature(struct ide_drive *d)
{
    d->lba_mid = d->lba_high = 0;
    d->device = 0;
    d->heads = HEADS;
    d->sectors_per_track = TRACK;
}

static u16 cylinders(const struct ide_drive *d)
{
    return (u16)MIN(d->disk->sectors / (HEADS * TRACK), (u64)16383);
}

static void identify(const struct ide_drive *d, u16 id[256])
{
    u64 sectors = d->disk->sectors, lba28 = MIN(sectors, LBA28_MAX);
    u32 chs = (u32)cylinders(d) * HEADS * TRACK;

    id[0] = 0x0040; /* fixed disk */
    id[1] = cylinders(d);
    id[3] = HEADS;
    id[6] = TRACK;
    ide_string(id + 10, 10, d->serial);
    ide_string(id + 23, 4, "1.0");
    ide_string(id + 27, 20, "VITRO HARDDISK");
    id[47] = 0x8000 | ATA_MULTIPLE_MAX;
    id[48] = 1;      /* 32-bit PIO */
    id[49] = 0x0f00; /* IORDY, LBA, DMA */
    id[51] = id[52] = 0x0200;
    id[53] = 0x0007;
    id[54] = id[1];
    id[55] = d->heads;
    id[56] = d->sectors_per_track;
    id[57] = (u16)chs;
    id[58] = (u16)(chs >> 16);
    id[59] = d->multiple ? 0x0100 | d->multiple : 0;
    id[60] = (u16)lba28;
    id[61] = (u16)(lba28 >> 16);
    id[63] = 0x0007 | (d->dma_mode >> 3 == 4 ? BIT(d->dma_mode & 7) << 8 : 0);
    id[64] = 0x0003;
    id[65] = id[66] = id[67] = id[68] = 120;
    id[80] = 0x007e; /* ATA-1 to ATA-6 */
    id[81] = 0x0019;
    id[82] = 0x4020; /* NOP; write cache */
    id[83] = 0x7400; /* 48-bit addresses, FLUSH CACHE, FLUSH CACHE EXT */
    id[84] = 0x4000;
    id[85] = d->write_through ? 0x4000 : id[82];
    id[86] = 0x3400;
    id[87] = 0x4000;
    id[88] = 0x003f | (d->dma_mode >> 3 == 8 ? BIT(d->dma_mode & 7) << 8 : 0);
    id[93] = 0x6001 | (d->unit ? 0 : 0x0007);
    for (unsigned i = 0; i < 4; i++)
        id[100 + i] = (u16)(sectors >> i * 16);
}

/* -- Addresses ---------------------------------------------------------------------------------- */

/* Where the command starts and how much it wants; false: an address that is not on the disk. */
static bool take_address(struct ide_drive *d, bool ext)
{
    u32 low = d->lba_low | (u32)d->lba_mid << 8 | (u32)d->lba_high << 16;

    d->ext = ext;
    if (ext) {
        d->sector = low | (u64)(d->hob_low | (u32)d->hob_mid << 8 | (u32)d->hob_high << 16) << 24;
        d->left = d->nsector | (u32)d->hob_nsector << 8;
        d->left = d->left ? d->left : 65536;
    } else {
        d->left = d->nsector ? d->nsector : 256;
        if (d->device & DEVICE_LBA) {
            d->sector = low | (u32)(d->device & 15) << 24;
        } else {
            u32 cylinder = d->lba_mid | (u32)d->lba_high << 8, head = d->device & 15;
            if (!d->lba_low || d->lba_low > d->sectors_per_track || head >= d->heads)
                return false;
            d->sector = ((u64)cylinder * d->heads + head) * d->sectors_per_track + d->lba_low - 1;
        }
    }
    return disk_has(d->disk, d->sector, d->left);
}

/* The registers say where an error was, and where a transfer has come to. */
static void show_address(struct ide_drive *d)
{
    u64 s = d->sector;

    d->nsector = (u8)d->left;
    if (d->ext) {
        d->lba_low = (u8)s, d->lba_mid = (u8)(s >> 8), d->lba_high = (u8)(s >> 16);
        d->hob_low = (u8)(s >> 24), d->hob_mid = (u8)(s >> 32), d->hob_high = (u8)(s >> 40);
        d->hob_nsector = (u8)(d->left >> 8);
    } else if (d->device & DEVICE_LBA) {
        d->lba_low = (u8)s, d->lba_mid = (u8)(s >> 8), d->lba_high = (u8)(s >> 16);
        d->device = (d->device & 0xf0) | (s >> 24 & 15);
    } else {
        u64 track = s / d->sectors_per_track, cylinder = track / d->heads;
        d->lba_low = (u8)(s % d->sectors_per_track + 1);
        d->lba_mid = (u8)cylinder, d->lba_high = (u8)(cylinder >> 8);
        d->device = (d->device & 0xf0) | (u8)(track % d->heads);
    }
}

static void failed(struct ide_drive *d, u8 error)
{
    show_address(d);
    ide_fail(d, error);
}

static void written_out(struct ide_drive *d, int result)
{
    if (result)
        return failed(d, ATA_ERR_UNC);
    if (d->sector)
        d->sector--; /* the last one moved */
    show_address(d);
    ide_done(d);
}

static void finished(struct ide_drive *d)
{
    int r = d->to_drive && d->write_through ? ide_io(d, DISK_FLUSH, 0, 0, written_out) : 0;

    if (r != IDE_LATER)
        written_out(d, r);
}

/* What of a command's data was read or written; false: it has failed. */
static bool moved(struct ide_drive *d, int result)
{
    if (result) {
        failed(d, d->to_drive && d->disk->readonly ? ATA_ERR_ABRT : ATA_ERR_UNC);
        return false;
    }
    d->sector += d->req.count;
    d->left -= (u32)d->req.count;
    return true;
}

/* -- PIO ---------------------------------------------------------------------------------------- */

static u32 block(const struct ide_drive *d, bool multiple)
{
    return MIN(d->left, multiple ? d->multiple : 1u);
}

static void offer_block(struct ide_drive *d, int result)
{
    if (!moved(d, result))
        return;
    ide_pio(d, (u32)d->req.count * DISK_SECTOR, false);
    ide_interrupt(d);
}

/* Fill the buffer with the next block and offer it. */
static void read_block(struct ide_drive *d)
{
    int r = ide_io(d, DISK_READ, d->sector, block(d, d->reply), offer_block);

    if (r != IDE_LATER)
        offer_block(d, r);
}

static void next_block(struct ide_drive *d, int result)
{
    if (!moved(d, result))
        return;
    if (!d->left)
        return finished(d);
    ide_pio(d, block(d, d->reply) * DISK_SECTOR, true);
    ide_interrupt(d);
}

static void pio_done(struct ide_drive *d)
{
    if (!d->to_drive) {
        if (d->left)
            return read_block(d);
        d->status = ATA_DRDY | ATA_DSC; /* no interrupt after the last block was read */
        d->at = d->len = 0;
        return;
    }
    int r = ide_io(d, DISK_WRITE, d->sector, d->len / DISK_SECTOR, next_block);
    if (r != IDE_LATER)
        next_block(d, r);
}

static void start_pio(struct ide_drive *d, bool write, bool multiple)
{
    d->reply = multiple;
    if (!write)
        return read_block(d);
    ide_pio(d, block(d, multiple) * DISK_SECTOR, true); /* no interrupt before the first block */
}

/* -- DMA ---------------------------------------------------------------------------------------- */

/* A piece is on the disk, or in the buffer; false: it has failed. */
static bool dma_piece(struct ide_drive *d, int result)
{
    u32 len = (u32)d->req.count * DISK_SECTOR;

    if (!result && !d->to_drive && !ide_dma(d->channel, d->buffer, len, true)) {
        failed(d, ATA_ERR_ABRT);
        return false;
    }
    return moved(d, result);
}

static void dma(struct ide_drive *d);

static void dma_goes_on(struct ide_drive *d, int result)
{
    if (dma_piece(d, result))
        dma(d);
}

static void dma(struct ide_drive *d)
{
    while (d->left) {
        u32 n = MIN(d->left, IDE_BUFFER / DISK_SECTOR);
        if (d->to_drive && !ide_dma(d->channel, d->buffer, n * DISK_SECTOR, false))
            return failed(d, ATA_ERR_ABRT);
        int r = ide_io(d, d->to_drive ? DISK_WRITE : DISK_READ, d->sector, n, dma_goes_on);
        if (r == IDE_LATER || !dma_piece(d, r))
            return;
    }
    finished(d);
}

/* -- Commands ----------------------------------------------------------------------------------- */

enum { READ = 1, WRITE = 2, DMA = 4, MULTIPLE = 8, EXT = 16, VERIFY = 32 };

static const u8 transfers[256] = {
    [0x20] = READ, [0x21] = READ, [0x24] = READ | EXT,
    [0x25] = READ | DMA | EXT, [0x29] = READ | MULTIPLE | EXT,
    [0x30] = WRITE, [0x31] = WRITE, [0x34] = WRITE | EXT,
    [0x35] = WRITE | DMA | EXT, [0x39] = WRITE | MULTIPLE | EXT,
    [0x40] = VERIFY, [0x41] = VERIFY, [0x42] = VERIFY | EXT,
    [0xc4] = READ | MULTIPLE, [0xc5] = WRITE | MULTIPLE,
    [0xc8] = READ | DMA, [0xc9] = READ | DMA, [0xca] = WRITE | DMA, [0xcb] = WRITE | DMA,
};

static void transfer(struct ide_drive *d, u8 how)
{
    if ((how & MULTIPLE) && !d->multiple)
        return ide_fail(d, ATA_ERR_ABRT);
    if (!take_address(d, how & EXT))
        return ide_fail(d, ATA_ERR_IDNF);
    if ((how & WRITE) && d->disk->readonly)
        return ide_fail(d, ATA_ERR_ABRT);
    d->to_drive = how & WRITE;
    if (how & VERIFY) {
        d->sector += d->left;
        d->left = 0;
        return finished(d);
    }
    if (how & DMA)
        ide_wait_dma(d);
    else
        start_pio(d, how & WRITE, how & MULTIPLE);
}

static void native_max(struct ide_drive *d, bool ext)
{
    d->ext = ext;
    u64 last = d->disk->sectors ? d->disk->sectors - 1 : 0;
    d->sector = ext ? last : MIN(last, LBA28_MAX);
    d->left = 0;
    d->device |= DEVICE_LBA;
    show_address(d);
    ide_done(d);
}

static void flushed(struct ide_drive *d, int result)
{
    if (result)
        ide_fail(d, ATA_ERR_ABRT);
    else
        ide_done(d);
}

static void command(struct ide_drive *d, u8 cmd)
{
    int r;

    if (transfers[cmd])
        return transfer(d, transfers[cmd]);
    switch (cmd) {
    case 0x10 ... 0x1f: /* RECALIBRATE */
    case 0x70:          /* SEEK */
    case 0xf5:          /* SECURITY FREEZE LOCK */
        return ide_done(d);
    case 0x91: /* INITIALIZE DEVICE PARAMETERS */
        if (!d->nsector)
            return ide_fail(d, ATA_ERR_ABRT);
        d->heads = (d->device & 15) + 1;
        d->sectors_per_track = d->nsector;
        return ide_done(d);
    case 0xc6: /* SET MULTIPLE MODE */
        if (d->nsector > ATA_MULTIPLE_MAX || (d->nsector & (d->nsector - 1)))
            return ide_fail(d, ATA_ERR_ABRT);
        d->multiple = d->nsector;
        return ide_done(d);
    case 0xe7: case 0xea: /* FLUSH CACHE */
        r = ide_io(d, DISK_FLUSH, 0, 0, flushed);
        if (r != IDE_LATER)
            flushed(d, r);
        return;
    case 0x27: case 0xf8:
        return native_max(d, cmd == 0x27);
    default:
        return ide_fail(d, ATA_ERR_ABRT);
    }
}

const struct ide_kind ata_disk = {
    .signature = signature, .identify = identify, .command = command, .pio_done = pio_done, .dma = dma,
};
