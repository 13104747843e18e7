/*
 * ahci.c - AHCI host bus adapter and its disks. Source: Serial ATA AHCI 1.3.1 (registers §3, memory structures §4), SATA
 * 3.0 §10 (FISes), ATA8-ACS (commands). With native command queueing, TRIM, MSI. Not modelled: ATAPI, port multipliers,
 * power management, command completion coalescing, FIS-based switching, hot plug.
 *
 * Threads: registers on vCPU threads, completions on the disk's; all state under a->lock. What the guest's structures say is
 * copied once and checked.
 */
#include "machine/chips/ahci.h"
#include "machine/chips/ide.h"
#include "machine/msi.h"
#include "machine/state.h"
#include "mem/ram.h"
#include "storage/aio.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BAR_SIZE 0x1000u
#define SLOTS 32u
#define PRDS_MAX 512u
#define TRIM_BLOCKS_MAX 8u

enum { CAP = 0x00, GHC = 0x04, IS = 0x08, PI = 0x0c, VS = 0x10, CAP2 = 0x24, PORTS = 0x100 };
enum { CLB = 0x00, CLBU = 0x04, FB = 0x08, FBU = 0x0c, PIS = 0x10, PIE = 0x14, CMD = 0x18, TFD = 0x20, SIG = 0x24,
       SSTS = 0x28, SCTL = 0x2c, SERR = 0x30, SACT = 0x34, CI = 0x38 };
#define GHC_HR BIT(0)
#define GHC_IE BIT(1)
#define GHC_AE BIT(31)
#define CMD_ST BIT(0)
#define CMD_CLO BIT(3)
#define CMD_FRE BIT(4)
#define CMD_FR BIT(14)
#define CMD_CR BIT(15)
#define PIS_DHRS BIT(0)
#define PIS_PSS BIT(1)
#define PIS_SDBS BIT(3)
#define PIS_PCS BIT(6)
#define PIS_HBFS BIT(29) /* the guest's structures are not memory */
#define PIS_TFES BIT(30)
#define SERR_X BIT(26)
#define SSTS_UP 0x123u   /* device present, 3 Gb/s, active */
#define SIG_DISK 0x00000101u

struct ahci_port;
struct command {
    struct disk_req req;
    struct ahci_port *port;
    unsigned slot, generation;
    bool queued, pio;      /* NCQ; data by PIO Setup */
    struct iovec iov[PRDS_MAX];
    gpa_t gpa[PRDS_MAX];
    unsigned nr;           /* pieces of guest memory */
    u64 bytes;             /* they hold */
    u64 range[TRIM_BLOCKS_MAX * 64]; /* DATA SET MANAGEMENT: 47:0 sector, 63:48 count */
    unsigned nr_ranges, at_range;
};

struct ahci_port {
    struct ahci *a;
    unsigned n;
    struct disk *disk;
    struct disk_aio *aio;
    char serial[21];
    u32 reg[32];
    u32 busy;              /* slots under way */
    unsigned generation;   /* of the commands: those of a stopped port report nothing */
    bool srst;
    bool write_through;    /* SET FEATURES has switched the write cache off: a write ends on the medium */
    struct command *cmd[SLOTS];
};

struct ahci {
    struct pci_dev pci;
    struct ram *ram;
    unsigned msi, nr;
    pthread_mutex_t lock;
    u32 ghc, is;
    bool level;
    struct ahci_port port[AHCI_PORTS_MAX];
};

/* -- Interrupts; with a->lock held ------------------------------------------------------------- */

static void update_irq(struct ahci *a)
{
    for (unsigned i = 0; i < a->nr; i++)
        if (a->port[i].reg[PIS / 4] & a->port[i].reg[PIE / 4])
            a->is |= BIT(i);
    bool level = (a->ghc & GHC_IE) && a->is, rise = level && !a->level;
    a->level = level;
    if (rise && msi_raise(&a->pci, a->msi))
        return;
    pci_set_intx(&a->pci, level && !(a->pci.config[a->msi + 2] & 1));
}

static void raise(struct ahci_port *p, u32 cause)
{
    bool was = p->a->level;
    p->reg[PIS / 4] |= cause;
    update_irq(p->a);
    if (was && p->a->level && (p->reg[PIS / 4] & p->reg[PIE / 4] & cause)) /* each event is a message, §10.6.2.1 */
        msi_raise(&p->a->pci, p->a->msi);
}

/* -- FISes to the guest -------------------------------------------------------------------------- */

static void post(struct ahci_port *p, u32 at, const void *fis, u32 len)
{
    u64 to = ((u64)p->reg[FBU / 4] << 32 | (p->reg[FB / 4] & ~255u)) + at;
    if (!(p->reg[CMD / 4] & CMD_FRE) || ram_write(p->a->ram, to, fis, len))
        return;
    ram_written(p->a->ram, to, len);
}

static void post_d2h(struct ahci_port *p, bool interrupt) /* SATA 3.0 §10.3.5 */
{
    const u8 *tfd = (const u8 *)&p->reg[TFD / 4], *sig = (const u8 *)&p->reg[SIG / 4];
    u8 fis[20] = { 0x34, interrupt ? 0x40 : 0, tfd[0], tfd[1], sig[1], sig[2], sig[3], 0, 0, 0, 0, 0, sig[0] };
    post(p, 0x40, fis, sizeof(fis));
}

static void post_signature(struct ahci_port *p)
{
    p->reg[SIG / 4] = SIG_DISK;
    p->reg[TFD / 4] = 0x0100 | ATA_DRDY | ATA_DSC;
    post_d2h(p, false);
}

/* -- Ends of commands; with a->lock held -------------------------------------------------------- */

static void set_prdbc(struct ahci_port *p, unsigned slot, u32 bytes)
{
    u64 at = ((u64)p->reg[CLBU / 4] << 32 | (p->reg[CLB / 4] & ~1023u)) + slot * 32 + 4;
    if (!ram_write(p->a->ram, at, &bytes, 4))
        ram_written(p->a->ram, at, 4);
}

static void end_command(struct command *c, u8 error)
{
    struct ahci_port *p = c->port;
    u32 bit = BIT(c->slot);

    p->busy &= ~bit;
    if (c->generation != p->generation)
        return; /* stopped meanwhile */
    p->reg[TFD / 4] = error ? ATA_DRDY | ATA_ERR | (u32)error << 8 : ATA_DRDY | ATA_DSC;
    if (c->queued) {
        u8 fis[8] = { 0xa1, 0x40, (u8)p->reg[TFD / 4] & 0x77, error };
        u32 done = error ? 0 : bit;
        memcpy(fis + 4, &done, 4);
        p->reg[SACT / 4] &= ~done;
        post(p, 0x58, fis, sizeof(fis));
        raise(p, error ? PIS_TFES | PIS_SDBS : PIS_SDBS);
        return;
    }
    if (!error) {
        set_prdbc(p, c->slot, (u32)c->bytes);
        p->reg[CI / 4] &= ~bit;
    }
    if (c->pio && !error) {
        u8 fis[20] = { 0x5f, 0x60, ATA_DRDY | ATA_DRQ, 0, [15] = ATA_DRDY | ATA_DSC, [16] = (u8)c->bytes,
                       [17] = (u8)(c->bytes >> 8) };
        post(p, 0x20, fis, sizeof(fis));
        raise(p, PIS_PSS);
        return;
    }
    post_d2h(p, true);
    raise(p, error ? PIS_TFES | PIS_DHRS : PIS_DHRS);
}

static void next_range(struct command *c)
{
    u64 r = c->range[c->at_range++];
    c->req.sector = r & 0xffffffffffffull;
    c->req.count = r >> 48;
}

/* On a thread of the disk's. */
static void command_done(struct disk_req *req, int result)
{
    struct command *c = container_of(req, struct command, req);
    struct ahci *a = c->port->a;

    if (!result && c->at_range < c->nr_ranges) {
        next_range(c);
        disk_aio_submit(c->port->aio, req);
        return;
    }
    if (!result && req->op == DISK_READ)
        for (unsigned i = 0; i < c->nr; i++)
            ram_written(a->ram, c->gpa[i], c->iov[i].iov_len);
    pthread_mutex_lock(&a->lock);
    end_command(c, result ? ATA_ERR_UNC | ATA_ERR_ABRT : 0);
    pthread_mutex_unlock(&a->lock);
}

/* -- Starting commands; with a->lock held. An error to end with now, 0 to end well now, -1: under way ----------- */

/* The guest's memory for a command's data: from the table at ctba, at least `want` bytes of it. */
static bool gather(struct command *c, u64 ctba, u32 entries, u64 want, bool to_memory)
{
    struct ram *ram = c->port->a->ram;
    c->nr = 0;
    c->bytes = 0;
    for (u32 i = 0; i < entries && c->bytes < want; i++) {
        struct { u64 addr; u32 reserved, count; } prd;
        if (ram_read(ram, ctba + 0x80 + i * 16ull, &prd, sizeof(prd)))
            return false;
        u64 left = MIN((u64)(prd.count & 0x3fffff) + 1, want - c->bytes);
        while (left) {
            struct ram_slot *slot = ram_find(ram, prd.addr);
            if (!slot || (to_memory && slot->readonly) || c->nr == PRDS_MAX)
                return false;
            u64 part = MIN(left, slot->size - (prd.addr - slot->gpa));
            c->iov[c->nr] = (struct iovec){ slot->host + (prd.addr - slot->gpa), part };
            c->gpa[c->nr++] = prd.addr;
            c->bytes += part;
            prd.addr += part;
            left -= part;
        }
    }
    return c->bytes == want;
}

static void copy_data(struct command *c, bool to_memory, u8 *buf)
{
    for (unsigned i = 0; i < c->nr; buf += c->iov[i++].iov_len) {
        if (to_memory) {
            memcpy(c->iov[i].iov_base, buf, c->iov[i].iov_len);
            ram_written(c->port->a->ram, c->gpa[i], c->iov[i].iov_len);
        } else {
            memcpy(buf, c->iov[i].iov_base, c->iov[i].iov_len);
        }
    }
}

static int identify(struct command *c, u64 ctba, u32 entries)
{
    struct ahci_port *p = c->port;
    u64 sectors = p->disk->sectors, lba28 = MIN(sectors, 0x0fffffffull);
    u16 id[256] = { 0 };

    id[0] = 0x0040;
    id[1] = 16383;
    id[3] = 16;
    id[6] = 63;
    ide_string(id + 10, 10, p->serial);
    ide_string(id + 23, 4, "1.0");
    ide_string(id + 27, 20, "VITRO SATA DISK");
    id[47] = 0x8010;
    id[49] = 0x0f00;
    id[50] = 0x4000;
    id[53] = 0x0006;
    id[59] = 0x0110;
    id[60] = (u16)lba28;
    id[61] = (u16)(lba28 >> 16);
    id[63] = 0x0007;
    id[64] = 0x0003;
    id[65] = id[66] = id[67] = id[68] = 120;
    id[69] = 0x4020;  /* deterministic read after TRIM, zeros */
    id[75] = SLOTS - 1;
    id[76] = 0x0106;  /* NCQ; 1.5 and 3 Gb/s */
    id[80] = 0x01f0;  /* ATA-4 to ATA8 */
    id[82] = 0x4020;  /* write cache */
    id[83] = 0x7400;  /* 48-bit addresses, FLUSH CACHE (EXT) */
    id[84] = 0x4000;
    id[85] = p->write_through ? 0x4000 : 0x4020;
    id[86] = 0x3400;
    id[87] = 0x4000;
    id[88] = 0x407f;
    id[105] = TRIM_BLOCKS_MAX;
    id[106] = 0x6003; /* 8 logical sectors in a physical one */
    for (unsigned i = 0; i < 4; i++)
        id[100 + i] = (u16)(sectors >> i * 16);
    id[169] = p->disk->readonly ? 0 : 1; /* TRIM */
    id[217] = 1;      /* does not rotate */
    if (!gather(c, ctba, entries, sizeof(id), true))
        return ATA_ERR_ABRT;
    copy_data(c, true, (u8 *)id);
    c->pio = true;
    return 0;
}

static int start_rw(struct command *c, u64 ctba, u32 entries, u64 sector, u32 count, bool write, bool fua)
{
    struct ahci_port *p = c->port;
    int result;

    if (!disk_has(p->disk, sector, count))
        return ATA_ERR_IDNF;
    if (write && p->disk->readonly)
        return ATA_ERR_ABRT;
    if (!gather(c, ctba, entries, (u64)count * DISK_SECTOR, !write))
        return ATA_ERR_ABRT;
    c->req.op = write ? DISK_WRITE : DISK_READ;
    c->req.sync = write && (fua || p->write_through);
    c->req.sector = sector;
    c->req.count = count;
    c->req.iov = c->iov;
    c->req.nr_iov = c->nr;
    if (disk_aio_try(p->aio, &c->req, &result)) {
        for (unsigned i = 0; !write && i < c->nr; i++)
            ram_written(p->a->ram, c->gpa[i], c->iov[i].iov_len);
        return result ? ATA_ERR_UNC : 0;
    }
    disk_aio_submit(p->aio, &c->req);
    return -1;
}

static int start_trim(struct command *c, u64 ctba, u32 entries, u32 blocks)
{
    struct ahci_port *p = c->port;
    unsigned nr = 0;

    if (p->disk->readonly || !blocks || blocks > TRIM_BLOCKS_MAX || !gather(c, ctba, entries, blocks * 512ull, false))
        return ATA_ERR_ABRT;
    copy_data(c, false, (u8 *)c->range);
    for (unsigned i = 0; i < blocks * 64; i++) {
        u64 r = c->range[i];
        if (!(r >> 48))
            continue;
        if (!disk_has(p->disk, r & 0xffffffffffffull, r >> 48))
            return ATA_ERR_IDNF;
        c->range[nr++] = r;
    }
    if (!nr)
        return 0;
    c->nr_ranges = nr;
    c->req.op = DISK_ZERO; /* they read as zeros afterwards, as IDENTIFY promises */
    c->req.unmap = true;
    next_range(c);
    disk_aio_submit(p->aio, &c->req);
    return -1;
}

static u64 lba48(const u8 *f)
{
    return f[4] | (u64)f[5] << 8 | (u64)f[6] << 16 | (u64)f[8] << 24 | (u64)f[9] << 32 | (u64)f[10] << 40;
}

static int set_features(struct ahci_port *p, u8 what)
{
    if (what == 0x02 || what == 0x82) { /* write cache on, off: off, what was written before is written out too */
        p->write_through = what == 0x82;
        return p->write_through && disk_flush(p->disk) ? (int)ATA_ERR_ABRT : 0;
    }
    return 0; /* transfer modes, look-ahead, power: nothing depends on them here */
}

static int start_ata(struct command *c, const u8 *f, u64 ctba, u32 entries)
{
    u32 count = f[12] | (u32)f[13] << 8, feature = f[3] | (u32)f[11] << 8;
    u64 lba28 = f[4] | (u64)f[5] << 8 | (u64)f[6] << 16 | (u64)(f[7] & 15) << 24;
    u32 count28 = f[12] ? f[12] : 256, count48 = count ? count : 65536;

    switch (f[2]) {
    case 0xec: return identify(c, ctba, entries);
    case 0x20: case 0x21: case 0xc4: c->pio = true; /* fall through */
    case 0xc8: case 0xc9: return start_rw(c, ctba, entries, lba28, count28, false, false);
    case 0x30: case 0x31: case 0xc5: case 0xca: case 0xcb: 
        return start_rw(c, ctba, entries, lba28, count28, true, false);
    case 0x24: case 0x29: c->pio = true; /* fall through */
    case 0x25: return start_rw(c, ctba, entries, lba48(f), count48, false, false);
    case 0x34: case 0x39: case 0x35: return start_rw(c, ctba, entries, lba48(f), count48, true, false);
    case 0x60: case 0x61: /* READ, WRITE FPDMA QUEUED: the count is where the features are; FUA in the device register */
        return start_rw(c, ctba, entries, lba48(f), feature ? feature : 65536, f[2] == 0x61, f[7] & 0x80);
    case 0xe7: case 0xea:
        c->req.op = DISK_FLUSH;
        disk_aio_submit(c->port->aio, &c->req);
        return -1;
    case 0x06: return (feature & 0xff) == 1 ? start_trim(c, ctba, entries, count) : (int)ATA_ERR_ABRT;
    case 0x40: case 0x42: /* VERIFY */
        if (!disk_has(c->port->disk, f[2] == 0x40 ? lba28 : lba48(f), f[2] == 0x40 ? count28 : count48))
            return ATA_ERR_IDNF;
        return 0;
    case 0xef: return set_features(c->port, f[3]);
    case 0xc6: case 0x91: case 0xe0: case 0xe1: case 0xe2: case 0xe3: case 0xe5: case 0x10: return 0;
    default: return ATA_ERR_ABRT;
    }
}

static void start_command(struct ahci_port *p, unsigned slot)
{
    struct { u32 flags, prdbc; u64 ctba; u32 reserved[4]; } h;
    struct command *c = p->cmd[slot];
    u64 list = (u64)p->reg[CLBU / 4] << 32 | (p->reg[CLB / 4] & ~1023u);
    u8 f[20];

    if (p->busy & BIT(slot))
        return; /* its memory is in use: a driver that does not wait */
    if (!c && !(c = p->cmd[slot] = calloc(1, sizeof(*c))))
        return;
    if (ram_read(p->a->ram, list + slot * 32, &h, sizeof(h)) ||
        ram_read(p->a->ram, h.ctba & ~127ull, f, sizeof(f)) || f[0] != 0x27) {
        raise(p, PIS_HBFS);
        return;
    }
    c->port = p;
    c->slot = slot;
    c->generation = p->generation;
    c->req.done = command_done;
    c->pio = false;
    c->nr = c->nr_ranges = c->at_range = 0;
    c->bytes = 0;
    c->queued = f[2] == 0x60 || f[2] == 0x61;
    if (!(f[1] & 0x80)) { /* the device control register: soft reset when SRST falls */
        bool reset = p->srst && !(f[15] & 4);
        p->srst = f[15] & 4;
        p->reg[CI / 4] &= ~BIT(slot);
        if (reset)
            post_signature(p);
        return;
    }
    p->busy |= BIT(slot);
    if (c->queued) { /* accepted */
        p->reg[CI / 4] &= ~BIT(slot);
        p->reg[TFD / 4] = ATA_DRDY | ATA_DSC;
        post_d2h(p, false);
    }
    int r = start_ata(c, f, h.ctba & ~127ull, h.flags >> 16);
    if (r >= 0)
        end_command(c, (u8)r);
}

static void run_commands(struct ahci_port *p, u32 slots)
{
    for (unsigned i = 0; i < SLOTS && (p->reg[CMD / 4] & CMD_ST); i++)
        if (slots >> i & 1)
            start_command(p, i);
}

/* -- Ports --------------------------------------------------------------------------------------- */

/* No command is under way when this returns. Lets go of a->lock meanwhile. */
static void stop_port(struct ahci_port *p)
{
    p->generation++;
    p->reg[CI / 4] = p->reg[SACT / 4] = 0;
    pthread_mutex_unlock(&p->a->lock);
    disk_aio_drain(p->aio);
    pthread_mutex_lock(&p->a->lock);
}

static void reset_port(struct ahci_port *p)
{
    stop_port(p);
    memset(p->reg, 0, sizeof(p->reg));
    p->reg[CMD / 4] = 0x6; /* spun up, powered */
    p->reg[SSTS / 4] = SSTS_UP;
    p->reg[SIG / 4] = SIG_DISK;
    p->reg[TFD / 4] = 0x0100 | ATA_DRDY | ATA_DSC;
    p->reg[SERR / 4] = SERR_X;
    p->reg[PIS / 4] = PIS_PCS;
    p->srst = false;
}

static void write_cmd(struct ahci_port *p, u32 v)
{
    u32 old = p->reg[CMD / 4], now = v & (CMD_ST | CMD_FRE | 0xf6000006);
    if (v & CMD_FRE)
        now |= CMD_FR;
    if (v & CMD_ST)
        now |= CMD_CR;
    if (v & CMD_CLO)
        p->reg[TFD / 4] &= ~(ATA_BSY | ATA_DRQ);
    p->reg[CMD / 4] = now & ~0xf0000000u;
    if ((old & CMD_ST) && !(v & CMD_ST))
        stop_port(p);
    if (!(old & CMD_FRE) && (v & CMD_FRE))
        post_d2h(p, false); /* the signature was waiting for its place */
}

static void write_sctl(struct ahci_port *p, u32 v)
{
    u32 old = p->reg[SCTL / 4];
    p->reg[SCTL / 4] = v & 0xfff;
    if ((v & 15) == 1) { /* COMRESET */
        stop_port(p);
        p->reg[SSTS / 4] = 0;
        p->reg[TFD / 4] = ATA_BSY;
    } else if ((old & 15) == 1) {
        p->reg[SSTS / 4] = SSTS_UP;
        p->reg[SERR / 4] |= SERR_X;
        post_signature(p);
        raise(p, PIS_PCS | PIS_DHRS);
    }
}

static void port_write(struct ahci_port *p, u64 off, u32 v)
{
    u32 new_slots;
    switch (off) {
    case CLB: case CLBU: case FB: case FBU: p->reg[off / 4] = v; break;
    case PIS:
        p->reg[PIS / 4] &= ~v;
        update_irq(p->a);
        break;
    case PIE:
        p->reg[PIE / 4] = v & 0xfdc000ff;
        update_irq(p->a);
        break;
    case CMD: write_cmd(p, v); break;
    case SCTL: write_sctl(p, v); break;
    case SERR: p->reg[SERR / 4] &= ~v; break;
    case SACT:
        if (p->reg[CMD / 4] & CMD_ST)
            p->reg[SACT / 4] |= v;
        break;
    case CI:
        if (!(p->reg[CMD / 4] & CMD_ST))
            break;
        new_slots = v & ~p->reg[CI / 4];
        p->reg[CI / 4] |= v;
        run_commands(p, new_slots);
        break;
    default: break;
    }
}

static void reset_all(struct ahci *a)
{
    a->ghc = GHC_AE;
    for (unsigned i = 0; i < a->nr; i++)
        reset_port(&a->port[i]);
    a->is = 0;
    update_irq(a);
}

static u64 bar_read(void *opaque, u64 off, unsigned size)
{
    struct ahci *a = opaque;
    u32 v = 0;
    (void)size;
    pthread_mutex_lock(&a->lock);
    switch (off) {
    case CAP: v = 0xc1240000u | (SLOTS - 1) << 8 | (a->nr - 1); break; /* 64 bit, NCQ, CLO, 3 Gb/s, AHCI only */
    case GHC: v = a->ghc; break;
    case IS: v = a->is; break;
    case PI: v = (1u << a->nr) - 1; break;
    case VS: v = 0x00010300; break;
    default:
        if (off >= PORTS && (off - PORTS) / 0x80 < a->nr)
            v = a->port[(off - PORTS) / 0x80].reg[(off & 0x7f) / 4];
    }
    pthread_mutex_unlock(&a->lock);
    return v;
}

static void bar_write(void *opaque, u64 off, unsigned size, u64 value)
{
    struct ahci *a = opaque;
    u32 v = (u32)value;
    (void)size;
    pthread_mutex_lock(&a->lock);
    if (off == GHC && (v & GHC_HR)) {
        reset_all(a);
    } else if (off == GHC) {
        a->ghc = GHC_AE | (v & GHC_IE);
        update_irq(a);
    } else if (off == IS) {
        a->is &= ~v;
        a->level = false; /* what is still there is a new message */
        update_irq(a);
    } else if (off >= PORTS && (off - PORTS) / 0x80 < a->nr) {
        port_write(&a->port[(off - PORTS) / 0x80], off & 0x7f, v);
    }
    pthread_mutex_unlock(&a->lock);
}

static const struct io_ops ahci_io = { "ahci", 4, 4, bar_read, bar_write };

static void pci_reset(struct pci_dev *pci)
{
    struct ahci *a = container_of(pci, struct ahci, pci);
    pthread_mutex_lock(&a->lock);
    reset_all(a);
    for (unsigned i = 0; i < a->nr; i++)
        a->port[i].write_through = false;
    pthread_mutex_unlock(&a->lock);
}

/* -- Snapshots ------------------------------------------------------------------------------------ */

static const struct state_field ahci_fields[] = {
    STATE(struct ahci, ghc), STATE(struct ahci, is), STATE(struct ahci, level), STATE_END
};
/* Commands under way: none, after quiesce(). */
static const struct state_field port_fields[] = {
    STATE(struct ahci_port, reg), STATE(struct ahci_port, srst), STATE(struct ahci_port, write_through), STATE_END
};

static void quiesce(void *obj)
{
    struct ahci *a = obj;

    for (unsigned i = 0; i < a->nr; i++)
        disk_aio_drain(a->port[i].aio);
}

int ahci_keep(struct ahci *a, struct machine *m)
{
    unsigned slot = a->pci.devfn >> 3;
    struct device_part part = { .state = ahci_fields, .obj = a, .quiesce = quiesce };

    a->pci.kept = true;
    snprintf(part.name, sizeof(part.name), "ahci.%02x", slot);
    int r = machine_add_part(m, &part);
    for (unsigned i = 0; i < a->nr && !r; i++) {
        part = (struct device_part){ .state = port_fields, .obj = &a->port[i] };
        snprintf(part.name, sizeof(part.name), "ahci.%02x.port%u", slot, i);
        r = machine_add_part(m, &part);
    }
    return r;
}

/* -- Life ----------------------------------------------------------------------------------------- */

void ahci_free(struct ahci *a)
{
    if (!a)
        return;
    for (unsigned i = 0; i < a->nr; i++) {
        disk_aio_destroy(a->port[i].aio);
        for (unsigned s = 0; s < SLOTS; s++)
            free(a->port[i].cmd[s]);
    }
    pthread_mutex_destroy(&a->lock);
    free(a);
}

int ahci_create(struct pci_host *host, unsigned slot, struct ram *ram, struct disk *const disk[],
                const char *const serial[], unsigned nr, struct ahci **out)
{
    static const struct pci_ids ids = { /* ICH9 */
        .vendor = 0x8086, .device = 0x2922, .subsystem_vendor = 0x1af4, .subsystem = 0x1100, .class_code = 0x010601,
        .revision = 2, .int_pin = 1,
    };
    struct ahci *a = calloc(1, sizeof(*a));
    int err = 0;

    bug_on(!nr || nr > AHCI_PORTS_MAX);
    if (!a)
        return -ENOMEM;
    a->ram = ram;
    pthread_mutex_init(&a->lock, NULL);
    for (; a->nr < nr && !err; a->nr++) {
        struct ahci_port *p = &a->port[a->nr];
        p->a = a;
        p->n = a->nr;
        p->disk = disk[a->nr];
        strncpy(p->serial, serial[a->nr], sizeof(p->serial) - 1);
        err = disk_aio_create(p->disk, true, &p->aio);
    }
    pci_dev_init(&a->pci, "ahci", &ids);
    pci_add_bar(&a->pci, 5, PCI_BAR_MEM32, BAR_SIZE, &ahci_io, a);
    a->msi = msi_init(&a->pci);
    a->pci.reset = pci_reset;
    if (!err)
        err = pci_add(host, PCI_DEVFN(slot, 0), &a->pci);
    if (err) {
        ahci_free(a);
        return err;
    }
    pci_reset(&a->pci);
    *out = a;
    return 0;
}
