/*
 * ide.c - IDE controller and what all drives have in common. Source: ATA/ATAPI-6 (T13/1410D r3b) §7
 * (registers), §9 (protocols); Intel 82371SB (290550) §2.3 and §2.6 (PCI function, bus master);
 * "Programming Interface for Bus Master IDE Controller" 1.0.
 * Not modelled: timing registers (they hold what was written), native mode, overlapped and queued
 * commands. What the host has in memory is read and written at once, on the thread of the vCPU that gave the command;
 * for the rest the drive is busy until the disk's threads have done it.
 * Threads: vCPU threads and the disk's, under the channel's lock.
 */
#include "machine/chips/ide.h"
#include "machine/layout.h"
#include "mem/ram.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CONTROL_NIEN 0x02
#define CONTROL_SRST 0x04
#define CONTROL_HOB 0x80
#define DEVICE_SLAVE 0x10

#define BM_START 0x01
#define BM_TO_MEMORY 0x08
#define BM_ACTIVE 0x01
#define BM_ERROR 0x02
#define BM_INTERRUPT 0x04
#define BM_DRIVES 0x60 /* DMA capable, for software only */
#define PRD_LAST 0x80000000u

static struct ide_drive *selected(struct ide_channel *c)
{
    return &c->drive[c->select];
}

/* -- Interrupts --------------------------------------------------------------------------------- */

static void set_irq(struct ide_channel *c, bool level)
{
    if (level == c->irq_level)
        return;
    c->irq_level = level;
    irq_set(&c->irq, level);
}

void ide_interrupt(struct ide_drive *d)
{
    struct ide_channel *c = d->channel;

    if (c->control & CONTROL_NIEN || d != selected(c))
        return;
    c->bm_status |= BM_INTERRUPT;
    set_irq(c, true);
}

void ide_done(struct ide_drive *d)
{
    d->status = ATA_DRDY | ATA_DSC;
    d->error = 0;
    d->at = d->len = 0;
    d->dma_wanted = false;
    ide_interrupt(d);
}

void ide_fail(struct ide_drive *d, u8 error)
{
    d->status = ATA_DRDY | ATA_DSC | ATA_ERR;
    d->error = error;
    d->at = d->len = 0;
    d->dma_wanted = false;
    ide_interrupt(d);
}

/* -- Transfers ---------------------------------------------------------------------------------- */

void ide_pio(struct ide_drive *d, u32 len, bool to_drive)
{
    bug_on(len > IDE_BUFFER);
    d->at = 0;
    d->len = len;
    d->to_drive = to_drive;
    d->status = ATA_DRDY | ATA_DSC | ATA_DRQ;
}

/* The next region of the table: address and length, both even; length 0 is 64 KiB. */
static bool next_region(struct ide_channel *c)
{
    u32 e[2];

    if (c->bm_last || ram_read(c->ram, c->bm_next, e, sizeof(e)))
        return false;
    c->bm_next += sizeof(e);
    c->bm_element = e[0] & ~1u;
    c->bm_left = e[1] & 0xfffe ? e[1] & 0xfffe : 0x10000;
    c->bm_last = e[1] & PRD_LAST;
    return true;
}

bool ide_dma(struct ide_channel *c, u8 *buf, u32 len, bool to_memory)
{
    if (!(c->bm_command & BM_START)) /* stopped while the disk was at work */
        return false;
    while (len) {
        if (!c->bm_left && !next_region(c))
            return false;
        u32 n = MIN(MIN(len, c->bm_left), (u32)(PAGE_SIZE - (c->bm_element & (PAGE_SIZE - 1))));
        void *page = to_memory ? ram_dma_ptr(c->ram, c->bm_element, n)
                               : ram_ptr(c->ram, c->bm_element, n);
        if (!page)
            return false;
        if (to_memory) {
            memcpy(page, buf, n);
            ram_written(c->ram, c->bm_element, n);
        } else {
            memcpy(buf, page, n);
        }
        buf += n;
        len -= n;
        c->bm_element += n;
        c->bm_left -= n;
    }
    return true;
}

/* The drive may have come to the end of a DMA command. */
static void dma_went_on(struct ide_drive *d)
{
    struct ide_channel *c = d->channel;

    if (!d->dma_running || d->io)
        return;
    d->dma_running = false;
    if (d->status & ATA_ERR)
        c->bm_status |= BM_ERROR;
    /* Active stays set if the table describes more than was moved. */
    if (c->bm_last && !c->bm_left)
        c->bm_status &= (u8)~BM_ACTIVE;
}

static void run_dma(struct ide_drive *d)
{
    struct ide_channel *c = d->channel;

    c->bm_next = c->bm_prd;
    c->bm_left = 0;
    c->bm_last = false;
    d->dma_wanted = false;
    d->dma_running = true;
    d->kind->dma(d);
    dma_went_on(d);
}

void ide_wait_dma(struct ide_drive *d)
{
    d->status = ATA_DRDY | ATA_DSC | ATA_DRQ;
    d->dma_wanted = true;
    if (d->channel->bm_command & BM_START)
        run_dma(d);
}

static u32 data_read(struct ide_drive *d, unsigned size)
{
    u32 value = 0;

    if (d->to_drive || d->at >= d->len)
        return ~0u;
    u32 n = MIN(size, d->len - d->at);
    memcpy(&value, d->buffer + d->at, n);
    d->at += n;
    if (d->at == d->len)
        d->kind->pio_done(d);
    return value;
}

static void data_write(struct ide_drive *d, unsigned size, u32 value)
{
    if (!d->to_drive || d->at >= d->len)
        return;
    u32 n = MIN(size, d->len - d->at);
    memcpy(d->buffer + d->at, &value, n);
    d->at += n;
    if (d->at == d->len)
        d->kind->pio_done(d);
}

/* -- Work of the disk's ------------------------------------------------------------------------- */

static void drive_reset(struct ide_drive *d);

/* On a thread of the disk's. */
static void io_done(struct disk_req *req, int result)
{
    struct ide_drive *d = container_of(req, struct ide_drive, req);

    pthread_mutex_lock(&d->channel->lock);
    d->io = false;
    if (d->reset_wanted) {
        d->reset_wanted = false;
        if (!(d->channel->control & CONTROL_SRST)) /* else when that ends */
            drive_reset(d);
    } else {
        d->then(d, result);
        dma_went_on(d);
    }
    pthread_mutex_unlock(&d->channel->lock);
}

int ide_io(struct ide_drive *d, enum disk_op op, u64 sector, u32 count, ide_then *then)
{
    int result;

    bug_on(d->io || count * DISK_SECTOR > IDE_BUFFER);
    d->iov = (struct iovec){ d->buffer, count * DISK_SECTOR };
    d->req = (struct disk_req){ .op = op, .sector = sector, .count = count, .iov = &d->iov, .nr_iov = 1, .done = io_done };
    if (disk_aio_try(d->aio, &d->req, &result))
        return result;
    d->io = true;
    d->then = then;
    d->at = d->len = 0; /* the data register does not reach the buffer meanwhile */
    d->status = ATA_BSY;
    disk_aio_submit(d->aio, &d->req);
    return IDE_LATER;
}

/* -- Commands ----------------------------------------------------------------------------------- */

static void drive_reset(struct ide_drive *d)
{
    if (!d->kind)
        return;
    if (d->io) { /* the buffer is in use: busy until it is not */
        d->reset_wanted = true;
        d->status = ATA_BSY;
        return;
    }
    d->at = d->len = d->left = 0;
    d->dma_wanted = d->dma_running = d->wants_packet = false;
    d->error = 1; /* diagnostics passed */
    d->nsector = d->lba_low = 1;
    d->status = d->kind->atapi ? 0 : ATA_DRDY | ATA_DSC;
    d->kind->signature(d);
}

void ide_string(u16 *id, unsigned words, const char *s)
{
    for (unsigned i = 0; i < words; i++) {
        u8 a = *s ? (u8)*s++ : ' ', b = *s ? (u8)*s++ : ' ';
        id[i] = (u16)(a << 8 | b);
    }
}

static void identify(struct ide_drive *d)
{
    u16 id[256] = { 0 };

    d->kind->identify(d, id);
    memcpy(d->buffer, id, sizeof(id));
    d->left = 0;
    ide_pio(d, sizeof(id), false);
    ide_interrupt(d);
}

static void write_cache_is_off(struct ide_drive *d, int result)
{
    if (result)
        ide_fail(d, ATA_ERR_ABRT);
    else
        ide_done(d);
}

static void set_features(struct ide_drive *d)
{
    int r;

    switch (d->feature) {
    case 0x03: /* transfer mode: PIO 0-4, multiword DMA 0-2, ultra DMA 0-5 */
        if ((d->nsector & 0xf8) == 0x20 || (d->nsector & 0xf8) == 0x40)
            d->dma_mode = d->nsector;
        else if (d->nsector & 0xf0)
            return ide_fail(d, ATA_ERR_ABRT);
        break;
    case 0x02: case 0x82: /* write cache, the host's, on and off */
        d->write_through = d->feature == 0x82 && !d->kind->atapi;
        if (!d->write_through)
            break;
        r = ide_io(d, DISK_FLUSH, 0, 0, write_cache_is_off); /* what was written before is written out too */
        if (r != IDE_LATER)
            write_cache_is_off(d, r);
        return;
    case 0x55: case 0xaa: /* read look-ahead */
    case 0x05: case 0x85: /* power management */
    case 0x66: case 0xcc: /* defaults after a soft reset */
        break;
    default:
        return ide_fail(d, ATA_ERR_ABRT);
    }
    ide_done(d);
}

static void diagnostic(struct ide_channel *c)
{
    for (unsigned i = 0; i < 2; i++)
        drive_reset(&c->drive[i]);
    c->select = 0;
    if (c->drive[0].kind)
        ide_interrupt(&c->drive[0]);
}

static void command(struct ide_drive *d, u8 cmd)
{
    if (d->io) { /* busy: hears nothing but DEVICE RESET */
        if (cmd == 0x08 && d->kind->atapi)
            drive_reset(d);
        return;
    }
    set_irq(d->channel, false);
    if (cmd == 0x90)
        return diagnostic(d->channel);
    if (!d->kind)
        return;
    d->error = 0;
    d->at = d->len = 0;
    d->dma_wanted = d->wants_packet = false;
    switch (cmd) {
    case 0x08: /* DEVICE RESET: for packet devices; no interrupt */
        if (!d->kind->atapi)
            return ide_fail(d, ATA_ERR_ABRT);
        drive_reset(d);
        return;
    case 0xec: /* IDENTIFY DEVICE; a packet device shows what it is */
        if (d->kind->atapi) {
            d->kind->signature(d);
            return ide_fail(d, ATA_ERR_ABRT);
        }
        return identify(d);
    case 0xa1:
        return d->kind->atapi ? identify(d) : ide_fail(d, ATA_ERR_ABRT);
    case 0xef:
        return set_features(d);
    case 0xe5: case 0x98: /* CHECK POWER MODE: active */
        d->nsector = 0xff;
        return ide_done(d);
    case 0xe0: case 0xe1: case 0xe2: case 0xe3: case 0xe6: /* STANDBY, IDLE, SLEEP */
    case 0x94: case 0x95: case 0x96: case 0x97: case 0x99:
        return ide_done(d);
    default:
        d->kind->command(d, cmd);
    }
}

/* -- Task file ---------------------------------------------------------------------------------- */

static u8 reg_read(struct ide_channel *c, u64 off)
{
    struct ide_drive *d = selected(c);
    bool hob = c->control & CONTROL_HOB;

    if (!d->kind) /* pulled down where a master answers for its absent slave, else floating */
        return c->drive[0].kind || c->drive[1].kind ? 0 : off == 7 ? 0x7f : 0xff;
    switch (off) {
    case 1: return d->error;
    case 2: return hob ? d->hob_nsector : d->nsector;
    case 3: return hob ? d->hob_low : d->lba_low;
    case 4: return hob ? d->hob_mid : d->lba_mid;
    case 5: return hob ? d->hob_high : d->lba_high;
    case 6: return d->device | 0xa0;
    default: return d->status;
    }
}

static void reg_write(struct ide_channel *c, u64 off, u8 value)
{
    c->control &= (u8)~CONTROL_HOB;
    for (unsigned i = 0; i < 2; i++) { /* both drives listen */
        struct ide_drive *d = &c->drive[i];
        switch (off) {
        case 1: d->feature = value; break;
        case 2: d->hob_nsector = d->nsector, d->nsector = value; break;
        case 3: d->hob_low = d->lba_low, d->lba_low = value; break;
        case 4: d->hob_mid = d->lba_mid, d->lba_mid = value; break;
        case 5: d->hob_high = d->lba_high, d->lba_high = value; break;
        case 6: d->device = value; break;
        default: break;
        }
    }
    if (off == 6)
        c->select = value & DEVICE_SLAVE ? 1 : 0;
    else if (off == 7)
        command(selected(c), value);
}

static u64 command_read(void *dev, u64 off, unsigned size)
{
    struct ide_channel *c = dev;
    u64 value;

    pthread_mutex_lock(&c->lock);
    if (!off)
        value = selected(c)->kind ? data_read(selected(c), size) : ~0ull;
    else
        value = reg_read(c, off);
    if (off == 7)
        set_irq(c, false);
    pthread_mutex_unlock(&c->lock);
    return value;
}

static void command_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct ide_channel *c = dev;

    pthread_mutex_lock(&c->lock);
    if (off)
        reg_write(c, off, (u8)value);
    else if (selected(c)->kind)
        data_write(selected(c), size, (u32)value);
    pthread_mutex_unlock(&c->lock);
}

static u64 control_read(void *dev, u64 off, unsigned size)
{
    struct ide_channel *c = dev;

    (void)off, (void)size;
    pthread_mutex_lock(&c->lock);
    u8 value = reg_read(c, 7); /* alternate status: the interrupt stays */
    pthread_mutex_unlock(&c->lock);
    return value;
}

static void control_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct ide_channel *c = dev;

    (void)off, (void)size;
    pthread_mutex_lock(&c->lock);
    bool was = c->control & CONTROL_SRST;
    c->control = (u8)value & (CONTROL_NIEN | CONTROL_SRST | CONTROL_HOB);
    if (c->control & CONTROL_NIEN)
        set_irq(c, false);
    if (c->control & CONTROL_SRST) {
        for (unsigned i = 0; i < 2; i++) {
            c->drive[i].status = c->drive[i].kind ? ATA_BSY : 0;
            c->drive[i].reset_wanted = c->drive[i].io;
        }
    } else if (was) {
        for (unsigned i = 0; i < 2; i++)
            drive_reset(&c->drive[i]);
        c->select = 0;
        set_irq(c, false);
    }
    pthread_mutex_unlock(&c->lock);
}

/* The data register is 16 or 32 bits wide; the others are bytes, also when accessed together. */
const struct io_ops ide_command_io = { "ide", 1, 4, command_read, command_write };
const struct io_ops ide_control_io = { "ide control", 1, 1, control_read, control_write };

/* -- Bus master --------------------------------------------------------------------------------- */

static u64 bm_read(void *dev, u64 off, unsigned size)
{
    struct ide *ide = dev;
    struct ide_channel *c = &ide->channel[off >> 3 & 1];
    u64 value = 0;

    (void)size;
    pthread_mutex_lock(&c->lock);
    switch (off & 7) {
    case 0: value = c->bm_command; break;
    case 2: value = c->bm_status; break;
    case 4 ... 7: value = c->bm_prd >> (off & 3) * 8; break;
    default: break;
    }
    pthread_mutex_unlock(&c->lock);
    return value;
}

static void bm_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct ide *ide = dev;
    struct ide_channel *c = &ide->channel[off >> 3 & 1];

    pthread_mutex_lock(&c->lock);
    if ((off & 7) == 0) {
        bool start = (value & BM_START) && !(c->bm_command & BM_START);
        c->bm_command = value & (BM_START | BM_TO_MEMORY);
        if (start) {
            c->bm_status |= BM_ACTIVE;
            for (unsigned i = 0; i < 2; i++)
                if (c->drive[i].dma_wanted)
                    run_dma(&c->drive[i]);
        } else if (!(value & BM_START)) {
            c->bm_status &= (u8)~BM_ACTIVE;
        }
    } else if ((off & 7) == 2) {
        c->bm_status &= (u8)~(value & (BM_ERROR | BM_INTERRUPT));
        c->bm_status = (c->bm_status & (u8)~BM_DRIVES) | (value & BM_DRIVES);
    } else if ((off & 7) >= 4) {
        u32 shift = (off & 3) * 8, mask = (size == 4 ? ~0u : size == 2 ? 0xffffu : 0xffu) << shift;
        c->bm_prd = ((c->bm_prd & ~mask) | ((u32)value << shift & mask)) & ~3u;
    }
    pthread_mutex_unlock(&c->lock);
}

static const struct io_ops bm_io = { "ide bus master", 1, 4, bm_read, bm_write };

/* -- Making it ---------------------------------------------------------------------------------- */

void ide_drain(struct ide_channel *c)
{
    for (unsigned i = 0; i < 2; i++)
        if (c->drive[i].aio)
            disk_aio_drain(c->drive[i].aio);
}

void ide_reset(struct ide *ide)
{
    for (unsigned i = 0; i < 2; i++) {
        struct ide_channel *c = &ide->channel[i];
        ide_drain(c);
        pthread_mutex_lock(&c->lock);
        c->select = c->control = 0;
        c->bm_command = c->bm_status = 0;
        c->bm_prd = 0;
        for (unsigned j = 0; j < 2; j++) {
            c->drive[j].multiple = 0;
            c->drive[j].write_through = false;
            c->drive[j].device = 0;
            drive_reset(&c->drive[j]);
        }
        set_irq(c, false);
        pthread_mutex_unlock(&c->lock);
    }
}

int ide_init(struct ide *ide, const struct ide_wiring *w)
{
    static const struct pci_ids ids = { .vendor = 0x8086, .device = 0x7010,
                                        .subsystem_vendor = 0x1af4, .subsystem = 0x1100,
                                        .class_code = 0x010180 };

    memset(ide, 0, sizeof(*ide));
    for (unsigned i = 0; i < 2; i++) {
        struct ide_channel *c = &ide->channel[i];
        pthread_mutex_init(&c->lock, NULL);
        c->ram = w->ram;
        c->irq = w->irq[i];
        for (unsigned j = 0; j < 2; j++) {
            struct ide_drive *d = &c->drive[j];
            unsigned n = i * 2 + j;
            d->channel = c;
            d->unit = (u8)j;
            if (!w->drive[n].present)
                continue;
            d->buffer = malloc(IDE_BUFFER);
            if (!d->buffer) {
                ide_fini(ide);
                return -ENOMEM;
            }
            d->kind = w->drive[n].cdrom ? &atapi_cdrom : &ata_disk;
            d->disk = w->drive[n].disk;
            int err = d->disk ? disk_aio_create(d->disk, true, &d->aio) : 0;
            if (err) {
                ide_fini(ide);
                return err;
            }
            memcpy(d->serial, "VT0000000", 10);
            d->serial[8] = (char)('1' + n);
        }
    }
    pci_dev_init(&ide->pci, "piix3-ide", &ids);
    for (unsigned i = 0; i < 2; i++) { /* IDETIM: decode the channel's ports */
        ide->pci.config[0x41 + i * 2] = 0x80;
        memset(ide->pci.writable + 0x40 + i * 2, 0xff, 2);
    }
    pci_add_bar(&ide->pci, 4, PCI_BAR_IO, 16, &bm_io, ide);
    int r = pci_add(w->host, PCI_DEVFN(PCI_SLOT_PIIX, 1), &ide->pci);
    if (r) {
        ide_fini(ide);
        return r;
    }
    ide_reset(ide);
    return 0;
}

void ide_fini(struct ide *ide)
{
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned j = 0; j < 2; j++) {
            disk_aio_destroy(ide->channel[i].drive[j].aio);
            free(ide->channel[i].drive[j].buffer);
        }
        pthread_mutex_destroy(&ide->channel[i].lock);
    }
}
