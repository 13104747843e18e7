/*
 * fdc.c - floppy disk controller. Source: Intel 82077AA data sheet (290166): §2.1 registers, §5 commands, §4 phases.
 * Disks are formatted as their size says: 360 KB to 2.88 MB, 512-byte sectors.
 * Not modelled: transfers without DMA, scans, deleted data, FORMAT (it succeeds and writes zeros), data rates (any
 * rate reads any disk), motors' spin-up.
 * Threads: vCPU threads and the disks', under f->lock.
 */
#include "machine/chips/fdc.h"
#include "machine/state.h"
#include <errno.h>
#include <string.h>

#define DOR_RUN 0x04 /* clear: in reset */
#define DOR_DMA 0x08
#define MSR_RQM 0x80
#define MSR_TO_HOST 0x40
#define MSR_BUSY 0x10
#define ST0_SEEK 0x20
#define ST0_ABNORMAL 0x40
#define ST0_INVALID 0x80
#define ST1_NO_DATA 0x04
#define ST1_NOT_WRITABLE 0x02
#define ST1_BAD_DATA 0x20
#define ST1_OVERRUN 0x10
#define ST1_END 0x80
#define ST3_READY 0x20
#define ST3_TRACK0 0x10
#define ST3_TWO_SIDES 0x08
#define ST3_PROTECTED 0x40
#define DMA_CHANNEL 2
#define COMMAND_MAX 9 /* bytes; READ and WRITE DATA */

static const struct { u16 kib; u8 cylinders, sectors, cmos; } formats[] = {
    { 360, 40, 9, 1 }, { 720, 80, 9, 3 }, { 1200, 80, 15, 2 }, { 1440, 80, 18, 4 }, { 2880, 80, 36, 5 },
};

/* The smallest format that holds the disk. */
static unsigned format_of(const struct disk *disk)
{
    unsigned i = 0;

    while (i + 1 < ARRAY_SIZE(formats) && disk->sectors > formats[i].kib * 2u)
        i++;
    return i;
}

u8 fdc_cmos_type(const struct disk *disk)
{
    return disk ? formats[format_of(disk)].cmos : 0;
}

static struct fdc_drive *selected(struct fdc *f, u8 unit)
{
    return &f->drive[unit & 1];
}

static bool ready(const struct fdc *f, u8 unit)
{
    return (unit & 3) < 2 && f->drive[unit & 1].disk;
}

static void set_irq(struct fdc *f, bool level)
{
    level = level && f->dor & DOR_DMA; /* the same bit lets interrupts out */
    if (level == f->irq_level)
        return;
    f->irq_level = level;
    irq_set(&f->irq, level);
}

/* -- Ends of commands ------------------------------------------------------------------------------ */

static void idle(struct fdc *f)
{
    f->nr_command = f->nr_result = f->at_result = 0;
}

static void answer(struct fdc *f, const u8 *bytes, u8 n)
{
    memcpy(f->result, bytes, n);
    f->nr_result = n;
    f->at_result = 0;
    f->nr_command = 0;
}

static void seek_done(struct fdc *f, u8 st0)
{
    f->st0 = st0;
    f->interrupt = true;
    idle(f);
    set_irq(f, true);
}

/* -- READ and WRITE DATA --------------------------------------------------------------------------- */

static void end_transfer(struct fdc *f, u8 st0, u8 st1, u8 c, u8 h, u8 r)
{
    const u8 result[7] = { (u8)(st0 | (f->command[1] & 7)), st1, 0, c, h, r, f->command[5] };

    answer(f, result, 7);
    set_irq(f, true);
}

static void io_done(struct disk_req *req, int result);

#define LATER 1
/* One sector between buffer and disk; past the disk's end there are zeros. 0 or -errno, or LATER: io_done() goes on. */
static int sector_io(struct fdc *f, bool write)
{
    const struct fdc_drive *d = selected(f, f->command[1]);
    u64 sector = ((u64)f->c * d->heads + f->h) * d->sectors + f->r - 1;
    int result;

    if (!disk_has(d->disk, sector, 1)) {
        memset(f->buffer, 0, sizeof(f->buffer));
        return write ? -ENOSPC : 0;
    }
    f->iov = (struct iovec){ f->buffer, sizeof(f->buffer) };
    f->req = (struct disk_req){ .op = write ? DISK_WRITE : DISK_READ, .sector = sector, .count = 1, .iov = &f->iov, .nr_iov = 1,
                                .done = io_done };
    if (disk_aio_try(d->aio, &f->req, &result))
        return result;
    f->io = true;
    disk_aio_submit(d->aio, &f->req);
    return LATER;
}

static void fail(struct fdc *f, u8 st1)
{
    end_transfer(f, ST0_ABNORMAL, st1, f->c, f->h, f->r);
}

/* Before a sector's I/O. False: the command has ended. */
static bool sector_begin(struct fdc *f, bool write)
{
    const struct fdc_drive *d = selected(f, f->command[1]);

    if (f->c >= d->cylinders || f->h >= d->heads || !f->r || f->r > d->sectors)
        fail(f, ST1_NO_DATA);
    else if (write && d->disk->readonly)
        fail(f, ST1_NOT_WRITABLE);
    else if (write && !i8237_transfer(f->dma, DMA_CHANNEL, f->buffer, sizeof(f->buffer), false, &f->tc))
        fail(f, ST1_OVERRUN);
    else
        return true;
    return false;
}

/* After it. False: the command has ended. */
static bool sector_end(struct fdc *f, bool write, int result)
{
    u8 eot = f->command[6];
    bool multi_track = f->command[0] & 0x80, end = false;

    if (result) {
        fail(f, ST1_BAD_DATA);
        return false;
    }
    if (!write && !i8237_transfer(f->dma, DMA_CHANNEL, f->buffer, sizeof(f->buffer), true, &f->tc)) {
        fail(f, ST1_OVERRUN);
        return false;
    }
    if (f->r++ == eot) { /* the end of the track: the other side, or of the cylinder */
        f->r = 1;
        end = !multi_track || (f->h & 1);
        f->h ^= multi_track;
        f->c += end;
    }
    if (f->tc)
        end_transfer(f, 0, 0, f->c, f->h, f->r);
    else if (end)
        fail(f, ST1_END);
    return !f->tc && !end;
}

static void transfer_on(struct fdc *f, bool write)
{
    int result;

    do {
        if (!sector_begin(f, write))
            return;
        result = sector_io(f, write);
    } while (result != LATER && sector_end(f, write, result));
}

static void transfer(struct fdc *f, bool write)
{
    u8 unit = f->command[1] & 3;

    f->c = f->command[2], f->h = f->command[3], f->r = f->command[4], f->tc = false;
    if (!ready(f, unit) || f->c != selected(f, unit)->cylinder || f->command[5] != 2 || f->h != (f->command[1] >> 2 & 1))
        return fail(f, ST1_NO_DATA);
    transfer_on(f, write);
}

/* -- FORMAT ----------------------------------------------------------------------------------------- */

static void format_end(struct fdc *f, bool ok, u8 st1)
{
    f->command[5] = f->command[2];
    end_transfer(f, ok ? 0 : ST0_ABNORMAL, st1, 0, f->h, 0);
}

static void format_on(struct fdc *f)
{
    const struct fdc_drive *d = selected(f, f->command[1]);
    int result = 0;

    for (; !result && f->r <= d->sectors; f->r++)
        if (disk_has(d->disk, ((u64)f->c * d->heads + f->h) * d->sectors + f->r - 1, 1))
            result = sector_io(f, true);
    if (result != LATER)
        format_end(f, !result, result ? ST1_NOT_WRITABLE : 0);
}

static void format_track(struct fdc *f)
{
    u8 unit = f->command[1] & 3;

    f->h = f->command[1] >> 2 & 1, f->c = selected(f, unit)->cylinder, f->r = 1;
    if (!ready(f, unit))
        return format_end(f, false, ST1_NO_DATA);
    memset(f->buffer, 0, sizeof(f->buffer));
    format_on(f);
}

/* On a thread of the disk's. */
static void io_done(struct disk_req *req, int result)
{
    struct fdc *f = container_of(req, struct fdc, req);

    pthread_mutex_lock(&f->lock);
    u8 command = f->command[0] & 0x1f;
    bool write = command == 0x05;
    f->io = false;
    if (f->dropped)
        f->dropped = false;
    else if (command == 0x0d && result)
        format_end(f, false, ST1_NOT_WRITABLE);
    else if (command == 0x0d)
        format_on(f);
    else if (sector_end(f, write, result))
        transfer_on(f, write);
    pthread_mutex_unlock(&f->lock);
}

/* -- Other commands -------------------------------------------------------------------------------- */

static void seek(struct fdc *f, u8 to)
{
    u8 unit = f->command[1] & 3;
    struct fdc_drive *d = selected(f, unit);

    if (!ready(f, unit)) /* no track 0 signal ever comes: equipment check */
        return seek_done(f, (u8)(ST0_SEEK | ST0_ABNORMAL | 0x10 | (f->command[1] & 7)));
    d->cylinder = to;
    d->changed = false;
    seek_done(f, (u8)(ST0_SEEK | (f->command[1] & 7)));
}

static void sense_interrupt(struct fdc *f)
{
    if (f->pending) { /* after a reset: each drive in turn */
        u8 unit = (u8)(4 - f->pending--);
        answer(f, (const u8[2]){ (u8)(0xc0 | unit), unit < 2 ? f->drive[unit].cylinder : 0 }, 2);
    } else if (f->interrupt) {
        answer(f, (const u8[2]){ f->st0, selected(f, f->st0)->cylinder }, 2);
    } else {
        answer(f, (const u8[1]){ ST0_INVALID }, 1);
    }
    f->interrupt = false;
    set_irq(f, false);
}

static void sense_drive(struct fdc *f)
{
    u8 unit = f->command[1] & 3;
    const struct fdc_drive *d = selected(f, unit);
    u8 st3 = (u8)(ST3_READY | ST3_TWO_SIDES | (f->command[1] & 7));

    if (ready(f, unit))
        st3 |= (u8)((d->cylinder ? 0 : ST3_TRACK0) | (d->disk->readonly ? ST3_PROTECTED : 0));
    answer(f, &st3, 1);
}

static void read_id(struct fdc *f)
{
    u8 unit = f->command[1] & 3;

    f->command[5] = 2;
    if (ready(f, unit))
        end_transfer(f, 0, 0, selected(f, unit)->cylinder, f->command[1] >> 2 & 1, 1);
    else
        end_transfer(f, ST0_ABNORMAL, 0x01, 0, 0, 0);
}

/* How many bytes a command has, and what it is; 0: there is no such command. */
static u8 length(u8 command)
{
    switch (command & 0x1f) {
    case 0x03: return 3;           /* SPECIFY */
    case 0x04: case 0x07: case 0x0a: case 0x12: return 2; /* SENSE DRIVE, RECALIBRATE, READ ID, PERPENDICULAR */
    case 0x05: case 0x06: return 9; /* WRITE, READ */
    case 0x0d: return 6;           /* FORMAT */
    case 0x0f: return 3;           /* SEEK */
    case 0x13: return 4;           /* CONFIGURE */
    case 0x08: case 0x0e: case 0x10: case 0x14: case 0x18: return 1;
    default: return 0;
    }
}

static void execute(struct fdc *f)
{
    u8 command = f->command[0];

    switch (command & 0x1f) {
    case 0x03: case 0x12: return idle(f);
    case 0x04: return sense_drive(f);
    case 0x05: return transfer(f, true);
    case 0x06: return transfer(f, false);
    case 0x07: return seek(f, 0);
    case 0x08: return sense_interrupt(f);
    case 0x0a: return read_id(f);
    case 0x0d: return format_track(f);
    case 0x0f: return seek(f, f->command[2]);
    case 0x0e: /* DUMPREG */
        return answer(f, (const u8[10]){ f->drive[0].cylinder, f->drive[1].cylinder, 0, 0, 0, 0, 0, f->lock_bit,
                                         f->config[1], f->config[2] }, 10);
    case 0x10: return answer(f, (const u8[1]){ 0x90 }, 1);
    case 0x13:
        memcpy(f->config, f->command + 1, 3);
        return idle(f);
    case 0x14:
        f->lock_bit = command & 0x80;
        return answer(f, (const u8[1]){ f->lock_bit >> 3 }, 1);
    case 0x18: return answer(f, (const u8[1]){ 0x41 }, 1); /* PART ID: an 82078 has one; it says 82077AA-1 */
    default: return answer(f, (const u8[1]){ ST0_INVALID }, 1);
    }
}

/* -- Registers ------------------------------------------------------------------------------------- */

static void controller_reset(struct fdc *f)
{
    idle(f);
    f->dropped = f->io;
    f->interrupt = false;
    f->pending = 4;
    if (!f->lock_bit)
        memset(f->config, 0, sizeof(f->config));
}

static void fifo_write(struct fdc *f, u8 value)
{
    if (f->nr_result || f->io || !(f->dor & DOR_RUN))
        return;
    if (!f->nr_command)
        f->wanted = length(value);
    f->command[f->nr_command++] = value;
    if (!f->wanted)
        answer(f, (const u8[1]){ ST0_INVALID }, 1);
    else if (f->nr_command == f->wanted)
        execute(f);
}

static u8 fifo_read(struct fdc *f)
{
    if (f->at_result >= f->nr_result)
        return 0;
    u8 value = f->result[f->at_result++];
    if (f->at_result == f->nr_result)
        idle(f);
    set_irq(f, false);
    return value;
}

static u8 main_status(const struct fdc *f)
{
    if (!(f->dor & DOR_RUN))
        return 0;
    if (f->io) /* the execution phase, by DMA; or what a reset has yet to wait for */
        return MSR_BUSY;
    return (u8)(MSR_RQM | (f->nr_result ? MSR_TO_HOST | MSR_BUSY : f->nr_command ? MSR_BUSY : 0));
}

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct fdc *f = dev;
    u8 value = 0xff;

    (void)size;
    pthread_mutex_lock(&f->lock);
    switch (off) {
    case 2: value = f->dor; break;
    case 3: value = 0; break;
    case 4: value = main_status(f); break;
    case 5: value = fifo_read(f); break;
    case 7: value = f->drive[f->dor & 1].changed || !ready(f, f->dor & 3) ? 0x80 : 0; break;
    default: break;
    }
    pthread_mutex_unlock(&f->lock);
    return value;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct fdc *f = dev;
    u8 old = f->dor;

    (void)size;
    pthread_mutex_lock(&f->lock);
    switch (off) {
    case 2:
        f->dor = (u8)value;
        if (!(value & DOR_RUN)) {
            controller_reset(f);
            set_irq(f, false);
        } else if (!(old & DOR_RUN)) {
            set_irq(f, true); /* out of reset */
        }
        break;
    case 4: /* data rate; bit 7 resets, by itself */
        f->dsr = (u8)value & 0x7f;
        if (value & 0x80) {
            controller_reset(f);
            set_irq(f, true);
        }
        break;
    case 5: fifo_write(f, (u8)value); break;
    default: break;
    }
    pthread_mutex_unlock(&f->lock);
}

const struct io_ops fdc_io = { "fdc", 1, 1, io_read, io_write };

/* After this nothing is under way. */
static void drain(void *obj)
{
    const struct fdc *f = obj;

    for (unsigned i = 0; i < 2; i++)
        if (f->drive[i].aio)
            disk_aio_drain(f->drive[i].aio);
}

void fdc_reset(struct fdc *f)
{
    drain(f);
    pthread_mutex_lock(&f->lock);
    f->lock_bit = 0;
    f->dor = f->dsr = 0;
    controller_reset(f);
    set_irq(f, false);
    for (unsigned i = 0; i < 2; i++) {
        f->drive[i].cylinder = 0;
        f->drive[i].changed = true;
    }
    pthread_mutex_unlock(&f->lock);
}

int fdc_init(struct fdc *f, const struct fdc_wiring *w)
{
    memset(f, 0, sizeof(*f));
    pthread_mutex_init(&f->lock, NULL);
    f->irq = w->irq;
    f->dma = w->dma;
    for (unsigned i = 0; i < 2; i++) {
        struct fdc_drive *d = &f->drive[i];
        d->disk = w->disk[i];
        if (!d->disk)
            continue;
        d->cylinders = formats[format_of(d->disk)].cylinders;
        d->sectors = formats[format_of(d->disk)].sectors;
        d->heads = 2;
        int r = disk_aio_create(d->disk, true, &d->aio);
        if (r) {
            fdc_fini(f);
            return r;
        }
    }
    fdc_reset(f);
    return 0;
}

void fdc_fini(struct fdc *f)
{
    for (unsigned i = 0; i < 2; i++)
        disk_aio_destroy(f->drive[i].aio);
    pthread_mutex_destroy(&f->lock);
}

/* -- Snapshots ------------------------------------------------------------------------------------- */

#define F(member) STATE(struct fdc, member)
static const struct state_field state[] = {
    F(drive[0].cylinder), F(drive[0].changed), F(drive[1].cylinder), F(drive[1].changed), F(dor), F(dsr), F(st0), F(config),
    F(lock_bit), F(pending), F(irq_level), F(interrupt), F(command), F(result), F(nr_command), F(wanted), F(nr_result),
    F(at_result), STATE_END
};
#undef F

static int loaded(void *obj)
{
    const struct fdc *f = obj;
    bool command = !f->nr_command || (f->nr_command < f->wanted && f->wanted <= COMMAND_MAX);

    return command && f->pending <= 4 && f->nr_result <= sizeof(f->result) && f->at_result <= f->nr_result ? 0 : -EINVAL;
}

int fdc_keep(struct fdc *f, struct machine *m)
{
    const struct device_part part = { .name = "fdc", .state = state, .obj = f, .loaded = loaded, .quiesce = drain };

    return machine_add_part(m, &part);
}
