/*
 * atapi.c - a CD-ROM drive on an IDE channel. Source: ATA/ATAPI-6 §9.8 (packet protocol), SFF-8020i
 * (INF-8020 r2.6) and MMC-3 (T10/1363D) for the packet commands.
 * Not modelled: audio, sub-channels, more than one session or track, ejecting by the guest (it is
 * refused: the medium is the user's).
 */
#include "machine/chips/ide.h"
#include <string.h>

#define BLOCK 2048u
#define PER_BLOCK (BLOCK / DISK_SECTOR)

/* nsector is the interrupt reason. */
#define REASON_COMMAND 0x01
#define REASON_TO_HOST 0x02

#define SENSE_NONE 0x0
#define SENSE_NOT_READY 0x2
#define SENSE_MEDIUM 0x3
#define SENSE_ILLEGAL 0x5
#define SENSE_ATTENTION 0x6

#define ASC_BAD_COMMAND 0x20
#define ASC_BAD_ADDRESS 0x21
#define ASC_BAD_FIELD 0x24
#define ASC_CHANGED 0x28
#define ASC_SAVING 0x39
#define ASC_NO_MEDIUM 0x3a
#define ASC_UNREADABLE 0x11
#define ASC_LOCKED 0x53

static u32 be16(const u8 *p) { return (u32)p[0] << 8 | p[1]; }
static u32 be32(const u8 *p) { return be16(p) << 16 | be16(p + 2); }
static void put16(u8 *p, u32 v) { p[0] = (u8)(v >> 8), p[1] = (u8)v; }
static void put32(u8 *p, u32 v) { put16(p, v >> 16), put16(p + 2, v); }

static u32 blocks(const struct ide_drive *d)
{
    u64 n = d->disk ? (d->disk->sectors + PER_BLOCK - 1) / PER_BLOCK : 0;

    return (u32)MIN(n, (u64)0xfffffffe);
}

static void signature(struct ide_drive *d)
{
    d->nsector = d->lba_low = 1;
    d->lba_mid = 0x14;
    d->lba_high = 0xeb;
    d->device = 0;
}

static void identify(const struct ide_drive *d, u16 id[256])
{
    id[0] = 0x85c0; /* packet device, CD, removable, DRQ within 50 us, 12 bytes */
    ide_string(id + 10, 10, d->serial);
    ide_string(id + 23, 4, "1.0");
    ide_string(id + 27, 20, "VITRO DVD-ROM");
    id[48] = 1;
    id[49] = 0x0f00; /* IORDY, LBA, DMA */
    id[53] = 0x0007;
    id[63] = 0x0007 | (d->dma_mode >> 3 == 4 ? BIT(d->dma_mode & 7) << 8 : 0);
    id[64] = 0x0003;
    id[65] = id[66] = id[67] = id[68] = 120;
    id[80] = 0x001e;
    id[82] = id[85] = 0x4010; /* NOP; PACKET */
    id[83] = id[84] = id[87] = 0x4000;
    id[88] = 0x003f | (d->dma_mode >> 3 == 8 ? BIT(d->dma_mode & 7) << 8 : 0);
    id[93] = 0x6001 | (d->unit ? 0 : 0x0007);
}

/* -- Ends ---------------------------------------------------------------------------------------- */

static void good(struct ide_drive *d)
{
    d->sense_key = d->asc = 0;
    d->nsector = REASON_COMMAND | REASON_TO_HOST;
    d->left = d->reply = d->reply_at = 0;
    ide_done(d);
}

static void bad(struct ide_drive *d, u8 key, u8 asc)
{
    d->sense_key = key;
    d->asc = asc;
    d->nsector = REASON_COMMAND | REASON_TO_HOST;
    d->left = d->reply = d->reply_at = 0;
    ide_fail(d, (u8)(key << 4) | (key == SENSE_ILLEGAL ? ATA_ERR_ABRT : 0));
}

/* -- Data ---------------------------------------------------------------------------------------- */

/* Read the next blocks into the buffer; what ide_io() says, and fetched() comes next. */
static int fetch(struct ide_drive *d, ide_then *then)
{
    u32 n = MIN(d->left, IDE_BUFFER / BLOCK);
    u64 first = d->sector * PER_BLOCK, have = d->disk->sectors - first;

    return ide_io(d, DISK_READ, first, (u32)MIN((u64)n * PER_BLOCK, have), then);
}

/* They are there: reply bytes. False: they could not be read. */
static bool fetched(struct ide_drive *d, int result)
{
    u32 sectors = (u32)d->req.count, n = (sectors + PER_BLOCK - 1) / PER_BLOCK;

    if (result || !n) {
        bad(d, SENSE_MEDIUM, ASC_UNREADABLE);
        return false;
    }
    memset(d->buffer + sectors * DISK_SECTOR, 0, (n * PER_BLOCK - sectors) * DISK_SECTOR);
    d->sector += n;
    d->left -= n;
    d->reply = n * BLOCK;
    d->reply_at = 0;
    return true;
}

/* PIO: offer as much of the reply as the byte count in the cylinder registers allows. */
static void offer(struct ide_drive *d)
{
    u32 limit = d->lba_mid | (u32)d->lba_high << 8, n = d->reply - d->reply_at;

    if (!limit || limit == 0xffff)
        limit = 0xfffe;
    if (n > limit)
        n = limit & ~1u;
    d->lba_mid = (u8)n;
    d->lba_high = (u8)(n >> 8);
    d->nsector = REASON_TO_HOST;
    d->to_drive = false;
    d->at = d->reply_at;
    d->len = d->reply_at + n;
    d->status = ATA_DRDY | ATA_DSC | ATA_DRQ;
    ide_interrupt(d);
}

static void offer_blocks(struct ide_drive *d, int result)
{
    if (fetched(d, result))
        offer(d);
}

static void fetch_and_offer(struct ide_drive *d)
{
    int r = fetch(d, offer_blocks);

    if (r != IDE_LATER)
        offer_blocks(d, r);
}

/* The host's limit is in the registers once; what is offered overwrites it, so it is kept here. */
static void start(struct ide_drive *d)
{
    if (!d->reply && !d->left)
        return good(d);
    if (d->feature & 1)
        return ide_wait_dma(d);
    d->hob_mid = d->lba_mid;
    d->hob_high = d->lba_high;
    if (d->left)
        fetch_and_offer(d);
    else
        offer(d);
}

static void dma(struct ide_drive *d);

static void dma_goes_on(struct ide_drive *d, int result)
{
    if (!fetched(d, result))
        return;
    if (!ide_dma(d->channel, d->buffer, d->reply, true) || !d->left)
        return good(d); /* if the host wanted less that is not an error of the drive */
    dma(d);
}

static void dma(struct ide_drive *d)
{
    bool more = ide_dma(d->channel, d->buffer, d->left ? 0 : d->reply, true); /* a reply that is there already */

    while (more && d->left) {
        int r = fetch(d, dma_goes_on);
        if (r == IDE_LATER || !fetched(d, r))
            return;
        more = ide_dma(d->channel, d->buffer, d->reply, true);
    }
    good(d);
}

/* A reply of len bytes is in the buffer; the packet allowed so many. */
static void reply(struct ide_drive *d, u32 len, u32 allowed)
{
    d->left = 0;
    d->reply = MIN(len, allowed);
    d->reply_at = 0;
    start(d);
}

static void read_blocks(struct ide_drive *d, u32 first, u32 count)
{
    if (first >= blocks(d) || count > blocks(d) - first)
        return bad(d, SENSE_ILLEGAL, ASC_BAD_ADDRESS);
    d->sector = first;
    d->left = count;
    d->reply = 0;
    start(d);
}

/* -- Packets ------------------------------------------------------------------------------------- */

static void inquiry(struct ide_drive *d)
{
    u8 *b = d->buffer;

    memset(b, 0, 36);
    b[0] = 5; /* CD-ROM */
    b[1] = 0x80;
    b[3] = 0x21;
    b[4] = 31;
    memcpy(b + 8, "VITRO   ", 8);
    memcpy(b + 16, "VITRO DVD-ROM   ", 16);
    memcpy(b + 32, "1.0 ", 4);
    reply(d, 36, d->packet[4]);
}

static void request_sense(struct ide_drive *d)
{
    u8 *b = d->buffer;

    memset(b, 0, 18);
    b[0] = 0x70;
    b[2] = d->sense_key;
    b[7] = 10;
    b[12] = d->asc;
    if (d->changed && !d->sense_key) {
        b[2] = SENSE_ATTENTION;
        b[12] = ASC_CHANGED;
        d->changed = false;
    }
    reply(d, 18, d->packet[4]);
}

/* Minutes, seconds, frames of a block, with the two seconds before the first. */
static void put_address(u8 *p, u32 block, bool msf)
{
    if (!msf) {
        put32(p, block);
        return;
    }
    block += 150;
    p[0] = 0;
    p[1] = (u8)(block / 75 / 60);
    p[2] = (u8)(block / 75 % 60);
    p[3] = (u8)(block % 75);
}

static void read_toc(struct ide_drive *d)
{
    const u8 *p = d->packet;
    bool msf = p[1] & 2;
    unsigned format = p[2] & 15 ? p[2] & 15 : p[9] >> 6;
    u8 *b = d->buffer;
    u32 len = 4;

    memset(b, 0, 64);
    b[2] = b[3] = 1; /* first, last track or session */
    if (format == 0) {
        if (p[6] > 1 && p[6] != 0xaa)
            return bad(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
        if (p[6] <= 1) {
            b[len + 1] = 0x14; /* a data track */
            b[len + 2] = 1;
            put_address(b + len + 4, 0, msf);
            len += 8;
        }
        b[len + 1] = 0x16;
        b[len + 2] = 0xaa; /* lead-out */
        put_address(b + len + 4, blocks(d), msf);
        len += 8;
    } else if (format == 1) {
        b[5] = 0x14;
        b[6] = 1;
        put_address(b + 8, 0, msf);
        len = 12;
    } else {
        return bad(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
    }
    put16(b, len - 2);
    reply(d, len, be16(p + 7));
}

static void mode_sense(struct ide_drive *d, u32 allowed)
{
    u8 *b = d->buffer, page = d->packet[2] & 0x3f;
    u32 len = 8;

    memset(b, 0, 64);
    if (d->packet[2] >> 6 == 3)
        return bad(d, SENSE_ILLEGAL, ASC_SAVING);
    if (page == 0x01 || page == 0x3f) { /* error recovery */
        b[len] = 0x01;
        b[len + 1] = 6;
        b[len + 3] = 5;
        len += 8;
    }
    if (page == 0x2a || page == 0x3f) { /* capabilities */
        b[len] = 0x2a;
        b[len + 1] = 18;
        b[len + 2] = 0x3b; /* reads CD-R, CD-RW, DVD */
        b[len + 6] = 0x21; /* a tray; locks */
        put16(b + len + 8, 706);
        put16(b + len + 10, 2);
        put16(b + len + 12, 512);
        put16(b + len + 14, 706);
        len += 20;
    }
    if (len == 8)
        return bad(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
    put16(b, len - 2);
    b[2] = d->disk ? 0x01 : 0x70;
    reply(d, len, allowed);
}

static void get_configuration(struct ide_drive *d)
{
    u8 *b = d->buffer;

    memset(b, 0, 40);
    put16(b + 6, d->disk ? 0x0008 : 0); /* current profile: CD-ROM */
    put16(b + 8, 0);                    /* feature 0: profile list */
    b[10] = 0x03;
    b[11] = 4;
    put16(b + 12, 0x0008);
    b[14] = d->disk != NULL;
    put16(b + 16, 1);                   /* feature 1: core, on ATAPI */
    b[18] = 0x03;
    b[19] = 4;
    put32(b + 20, 2);
    put16(b + 24, 3);                   /* feature 3: removable medium */
    b[26] = 0x03;
    b[27] = 4;
    b[28] = 0x21;
    put32(b, 28);
    reply(d, 32, be16(d->packet + 7));
}

static void event_status(struct ide_drive *d)
{
    u8 *b = d->buffer;

    if (!(d->packet[1] & 1)) /* asynchronous: not supported */
        return bad(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
    memset(b, 0, 8);
    b[3] = 0x10; /* class that is supported: media */
    if (!(d->packet[4] & 0x10)) {
        b[2] = 0x80; /* none of what was asked */
        put16(b, 2);
        return reply(d, 4, be16(d->packet + 7));
    }
    put16(b, 6);
    b[2] = 4;
    b[4] = d->changed ? 2 : 0; /* a new medium */
    b[5] = d->disk ? 2 : 0;
    d->changed = false;
    reply(d, 8, be16(d->packet + 7));
}

static void packet(struct ide_drive *d)
{
    static const u8 needs_medium[] = { 0x00, 0x25, 0x28, 0x2b, 0x43, 0x51, 0xa8, 0xbe };
    const u8 *p = d->packet;

    d->sector = 0;
    for (unsigned i = 0; i < sizeof(needs_medium); i++) {
        if (p[0] != needs_medium[i])
            continue;
        if (!d->disk)
            return bad(d, SENSE_NOT_READY, ASC_NO_MEDIUM);
        if (d->changed) {
            d->changed = false;
            return bad(d, SENSE_ATTENTION, ASC_CHANGED);
        }
    }
    switch (p[0]) {
    case 0x00: return good(d); /* TEST UNIT READY */
    case 0x03: return request_sense(d);
    case 0x12: return inquiry(d);
    case 0x1a: return mode_sense(d, p[4]);
    case 0x1b: /* START STOP UNIT */
        if ((p[4] & 3) == 2)
            return bad(d, SENSE_ILLEGAL, ASC_LOCKED);
        return good(d);
    case 0x1e: return good(d); /* PREVENT REMOVAL */
    case 0x25: /* READ CAPACITY */
        put32(d->buffer, blocks(d) - 1);
        put32(d->buffer + 4, BLOCK);
        return reply(d, 8, 8);
    case 0x28: return read_blocks(d, be32(p + 2), be16(p + 7));
    case 0x2b: /* SEEK */
        if (be32(p + 2) >= blocks(d))
            return bad(d, SENSE_ILLEGAL, ASC_BAD_ADDRESS);
        return good(d);
    case 0x43: return read_toc(d);
    case 0x46: return get_configuration(d);
    case 0x4a: return event_status(d);
    case 0x51: /* READ DISC INFORMATION */
        memset(d->buffer, 0, 34);
        put16(d->buffer, 32);
        d->buffer[2] = 0x0e; /* complete; finalized */
        d->buffer[3] = d->buffer[4] = d->buffer[5] = d->buffer[6] = 1;
        return reply(d, 34, be16(p + 7));
    case 0x5a: return mode_sense(d, be16(p + 7));
    case 0xa8: return read_blocks(d, be32(p + 2), be32(p + 6));
    case 0xbe: /* READ CD: user data of mode 1 only */
        if ((p[9] & 0xf8) == 0)
            return good(d);
        if ((p[9] & 0xf8) != 0x10)
            return bad(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
        return read_blocks(d, be32(p + 2), (u32)p[6] << 16 | be16(p + 7));
    default: return bad(d, SENSE_ILLEGAL, ASC_BAD_COMMAND);
    }
}

static void pio_done(struct ide_drive *d)
{
    if (d->wants_packet) {
        d->wants_packet = false;
        memcpy(d->packet, d->buffer, sizeof(d->packet));
        return packet(d);
    }
    if (!d->reply) { /* IDENTIFY PACKET DEVICE */
        d->status = ATA_DRDY | ATA_DSC;
        d->at = d->len = 0;
        return;
    }
    d->reply_at = d->len;
    d->lba_mid = d->hob_mid;
    d->lba_high = d->hob_high;
    if (d->reply_at < d->reply)
        return offer(d);
    if (!d->left)
        return good(d);
    fetch_and_offer(d);
}

static void command(struct ide_drive *d, u8 cmd)
{
    d->left = d->reply = d->reply_at = 0;
    if (cmd == 0xa0) { /* PACKET: asks for its 12 bytes, without an interrupt */
        d->wants_packet = true;
        d->nsector = REASON_COMMAND;
        ide_pio(d, sizeof(d->packet), true);
        return;
    }
    ide_fail(d, ATA_ERR_ABRT);
}

const struct ide_kind atapi_cdrom = {
    .atapi = true, .signature = signature, .identify = identify, .command = command,
    .pio_done = pio_done, .dma = dma,
};
