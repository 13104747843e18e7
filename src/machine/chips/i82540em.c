/*
 * i82540em.c - Intel 82540EM. Source: Intel, "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's
 * Manual" (317453), chapters 3 (descriptors), 5 (EEPROM), 13 (registers). Not modelled: multicast filtering (all is let
 * in), VLAN tags, wake-up, management, statistics, interrupt moderation, receive checksums, flow control.
 *
 * Threads: registers and transmission on vCPU threads, reception on the back end's or from within its send(). Locks: tx
 * (transmit registers) may be held when rx is taken, never the reverse; irq is a leaf but for the bridge's.
 */
#include "machine/chips/i82540em.h"
#include "machine/pci.h"
#include "machine/state.h"
#include "mem/ram.h"
#include "net/net.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BAR_SIZE 0x20000u
#define REGS_END 0x6000u
#define FRAME_MAX 16384u /* §13.4.22: with long packets */
#define SEGMENT_MAX (1u << 18)

enum {
    CTRL = 0x0000, STATUS = 0x0008, EECD = 0x0010, EERD = 0x0014, MDIC = 0x0020, ICR = 0x00c0, ICS = 0x00c8, IMS = 0x00d0,
    IMC = 0x00d8, RCTL = 0x0100, TCTL = 0x0400, PBA = 0x1000, RDBAL = 0x2800, RDBAH = 0x2804, RDLEN = 0x2808,
    RDH = 0x2810, RDT = 0x2818, TDBAL = 0x3800, TDBAH = 0x3804, TDLEN = 0x3808, TDH = 0x3810, TDT = 0x3818,
    RAL0 = 0x5400,
};
#define CTRL_RST BIT(26)
#define STATUS_UP 0x83u /* full duplex, link up, 1000 Mb/s */
#define EECD_SK BIT(0)
#define EECD_CS BIT(1)
#define EECD_DI BIT(2)
#define EECD_DO BIT(3)
#define EECD_GNT BIT(7)
#define EECD_PRES BIT(8)
#define ICR_TXDW BIT(0)
#define ICR_TXQE BIT(1)
#define ICR_LSC BIT(2)
#define ICR_RXO BIT(6)
#define ICR_RXT0 BIT(7)
#define RCTL_EN BIT(1)
#define RCTL_UPE BIT(3)
#define RCTL_BAM BIT(15)
#define RCTL_BSEX BIT(25)
#define RCTL_SECRC BIT(26)
#define TCTL_EN BIT(1)

/* Bytes of a transmit descriptor, §3.3.3, §3.3.6, §3.3.7: 11 is the command, 12 the status. */
#define CMD_EOP 0x01u
#define CMD_IC 0x04u     /* legacy: insert checksum */
#define CMD_TSE 0x04u    /* data: segment */
#define CMD_RS 0x08u
#define CMD_DEXT 0x20u
#define TX_DD 0x01u
#define POPTS_IXSM 0x01u
#define POPTS_TXSM 0x02u
#define RX_DD 0x01u
#define RX_EOP 0x02u

struct context { /* §3.3.6 */
    u8 ipcss, ipcso;
    u16 ipcse;
    u8 tucss, tucso;
    u16 tucse;
    u32 paylen_cmd;
    u8 status, hdrlen;
    u16 mss;
} __attribute__((packed));

struct i82540em {
    struct pci_dev pci;
    struct ram *ram;
    struct net_backend *be;
    u16 eeprom[64], phy[32];
    pthread_mutex_t tx, rx, irq;
    u32 reg[REGS_END / 4];    /* transmit registers under tx, the others under rx, ICR and IMS under irq */
    u32 io_address;
    struct { bool reading; u32 in; unsigned bits, out; } ee; /* the EEPROM's serial interface; under rx */
    struct context context;   /* tx */
    u8 *frame, *segment;      /* tx: SEGMENT_MAX, FRAME_MAX bytes */
    u32 len;                  /* tx: bytes collected in frame */
    u8 popts, first_cmd;
    bool held;                /* rx: paused, nothing may be received */
};

/* -- Interrupts --------------------------------------------------------------------------------- */

static void update_irq(struct i82540em *e, u32 set, u32 clear)
{
    pthread_mutex_lock(&e->irq);
    e->reg[ICR / 4] = (e->reg[ICR / 4] | set) & ~clear;
    pci_set_intx(&e->pci, e->reg[ICR / 4] & e->reg[IMS / 4]);
    pthread_mutex_unlock(&e->irq);
}

static u32 take_icr(struct i82540em *e) /* §13.4.17: reading clears */
{
    pthread_mutex_lock(&e->irq);
    u32 v = e->reg[ICR / 4];
    e->reg[ICR / 4] = 0;
    pci_set_intx(&e->pci, false);
    pthread_mutex_unlock(&e->irq);
    return v;
}

/* -- Transmission ------------------------------------------------------------------------------- */

static void put16(u8 *p, unsigned v)
{
    p[0] = (u8)(v >> 8);
    p[1] = (u8)v;
}

static u32 get32(const u8 *p)
{
    return (u32)p[0] << 24 | (u32)p[1] << 16 | (u32)p[2] << 8 | p[3];
}

/* A checksum over [start, end] (0: to the end) into `at`; what stands there counts, so drivers put the pseudo header's. */
static void insert_sum(u8 *f, u32 len, u32 start, u32 at, u32 end)
{
    u32 stop = end && end + 1 < len ? end + 1 : len;
    if (start < stop && at + 2 <= len)
        put16(f + at, net_checksum(f + start, stop - start, 0));
}

static void send_frame(struct i82540em *e, u8 *f, u32 len)
{
    static const struct net_hdr plain;
    struct iovec iov = { f, len };
    if (len >= 14)
        e->be->ops->send(e->be, &plain, &iov, 1);
}

/* §3.5: cut one large TCP packet. Header lengths are the context's, checked against the frame. */
static void send_segments(struct i82540em *e)
{
    const struct context *c = &e->context;
    u8 *f = e->frame, *s = e->segment;
    u32 hdr = c->hdrlen, mss = c->mss, seq, n = 0;

    if (!mss || hdr < 34 || hdr >= e->len || hdr + mss > FRAME_MAX || c->tucss + 20u > hdr || c->ipcss + 20u > c->tucss ||
        c->ipcss < 14)
        return;
    bool ip4 = f[c->ipcss] >> 4 == 4;
    seq = get32(f + c->tucss + 4);
    for (u32 at = hdr; at < e->len; at += mss, n++) {
        u32 part = MIN(mss, e->len - at), len = hdr + part;
        memcpy(s, f, hdr);
        memcpy(s + hdr, f + at, part);
        if (ip4) {
            put16(s + c->ipcss + 2, len - c->ipcss);
            put16(s + c->ipcss + 4, ((u32)s[c->ipcss + 4] << 8 | s[c->ipcss + 5]) + n);
        } else {
            put16(s + c->ipcss + 4, len - c->ipcss - 40);
        }
        u32 now = seq + (at - hdr);
        put16(s + c->tucss + 4, now >> 16);
        put16(s + c->tucss + 6, now);
        if (at + part < e->len)
            s[c->tucss + 13] &= (u8)~0x09; /* FIN and PSH: the last one's */
        if (e->popts & POPTS_IXSM)
            insert_sum(s, len, c->ipcss, c->ipcso, c->ipcse);
        if ((e->popts & POPTS_TXSM) && c->tucso + 2u <= len) {
            /* The pseudo header came without the length. */
            u64 sum = ((u32)s[c->tucso] << 8 | s[c->tucso + 1]) + (len - c->tucss);
            while (sum >> 16)
                sum = (sum & 0xffff) + (sum >> 16);
            put16(s + c->tucso, (unsigned)sum);
            insert_sum(s, len, c->tucss, c->tucso, 0);
        }
        send_frame(e, s, len);
    }
}

static void end_of_packet(struct i82540em *e, const u8 *d, u8 cmd)
{
    const struct context *c = &e->context;
    if (!(cmd & CMD_DEXT)) {
        if (cmd & CMD_IC)
            insert_sum(e->frame, e->len, d[13], d[10], 0);
        send_frame(e, e->frame, e->len);
    } else if (e->first_cmd & CMD_TSE) {
        send_segments(e);
    } else {
        if (e->popts & POPTS_IXSM)
            insert_sum(e->frame, e->len, c->ipcss, c->ipcso, c->ipcse);
        if (e->popts & POPTS_TXSM)
            insert_sum(e->frame, e->len, c->tucss, c->tucso, c->tucse);
        send_frame(e, e->frame, e->len);
    }
    e->len = 0;
}

static void one_descriptor(struct i82540em *e, const u8 d[16])
{
    u64 addr;
    u32 word;
    u8 cmd = d[11];

    memcpy(&addr, d, 8);
    memcpy(&word, d + 8, 4);
    if ((cmd & CMD_DEXT) && !(d[10] >> 4)) {
        memcpy(&e->context, d, 16);
        return;
    }
    u32 len = cmd & CMD_DEXT ? word & 0xfffff : word & 0xffff;
    if (!e->len) {
        e->popts = cmd & CMD_DEXT ? d[13] : 0;
        e->first_cmd = cmd;
    }
    /* What cannot be read, or is longer than any packet, is left out. */
    if (len <= SEGMENT_MAX - e->len && len && !ram_read(e->ram, addr, e->frame + e->len, len))
        e->len += len;
    if (cmd & CMD_EOP)
        end_of_packet(e, d, cmd);
}

/* With tx held. */
static void transmit(struct i82540em *e)
{
    u32 count = e->reg[TDLEN / 4] / 16, cause = 0;
    u64 base = (u64)e->reg[TDBAH / 4] << 32 | (e->reg[TDBAL / 4] & ~15u);

    for (u32 n = 0; n < count && (e->reg[TCTL / 4] & TCTL_EN) && e->reg[TDH / 4] != e->reg[TDT / 4]; n++) {
        u32 i = e->reg[TDH / 4] < count ? e->reg[TDH / 4] : 0;
        u8 d[16];
        if (ram_read(e->ram, base + i * 16ull, d, 16))
            break;
        one_descriptor(e, d);
        if (d[11] & CMD_RS) {
            d[12] |= TX_DD;
            ram_write(e->ram, base + i * 16ull + 12, d + 12, 1);
            ram_written(e->ram, base + i * 16ull + 12, 1);
            cause |= ICR_TXDW;
        }
        e->reg[TDH / 4] = i + 1 == count ? 0 : i + 1;
    }
    if (e->reg[TDH / 4] == e->reg[TDT / 4])
        cause |= ICR_TXQE;
    update_irq(e, cause, 0);
}

/* -- Reception ---------------------------------------------------------------------------------- */

static bool wanted(const struct i82540em *e, const u8 *f)
{
    static const u8 all[6] = { 255, 255, 255, 255, 255, 255 };
    if (!memcmp(f, all, 6))
        return e->reg[RCTL / 4] & RCTL_BAM;
    if ((f[0] & 1) || (e->reg[RCTL / 4] & RCTL_UPE))
        return true;
    for (unsigned i = 0; i < 16; i++) /* RAL, RAH; bit 31 of RAH: valid */
        if ((e->reg[RAL0 / 4 + 2 * i + 1] >> 31) && !memcmp(&e->reg[RAL0 / 4 + 2 * i], f, 6))
            return true;
    return false;
}

static u32 buffer_size(u32 rctl) /* §13.4.22 */
{
    u32 size = 2048u >> (rctl >> 16 & 3);
    return (rctl & RCTL_BSEX) && (rctl >> 16 & 3) ? size * 16 : size;
}

/* The frame over as many descriptors as it needs; with rx held. False: there are not enough. */
static bool put_frame(struct i82540em *e, const u8 *f, u32 len)
{
    u32 count = e->reg[RDLEN / 4] / 16, head = e->reg[RDH / 4], size = buffer_size(e->reg[RCTL / 4]);
    u64 base = (u64)e->reg[RDBAH / 4] << 32 | (e->reg[RDBAL / 4] & ~15u);
    u32 total = len + (e->reg[RCTL / 4] & RCTL_SECRC ? 0 : 4), tail = e->reg[RDT / 4];

    if (!count || head >= count || tail >= count)
        return false;
    u32 have = tail >= head ? tail - head : count - head + tail;
    if (have < (total + size - 1) / size)
        return false;
    for (u32 done = 0; done < total;) {
        u64 addr;
        u32 n = MIN(size, total - done), bytes = done < len ? MIN(n, len - done) : 0;
        static const u8 crc[4];
        u8 d[16] = { 0 };
        if (ram_read(e->ram, base + head * 16ull, &addr, 8))
            return false;
        if (bytes && !ram_write(e->ram, addr, f + done, bytes))
            ram_written(e->ram, addr, bytes);
        if (n > bytes)
            ram_write(e->ram, addr + bytes, crc, n - bytes); /* nobody checks it */
        done += n;
        memcpy(d, &addr, 8);
        memcpy(d + 8, &(u16){ (u16)n }, 2);
        d[12] = RX_DD | (done == total ? RX_EOP : 0);
        ram_write(e->ram, base + head * 16ull, d, 16);
        ram_written(e->ram, base + head * 16ull, 16);
        head = head + 1 == count ? 0 : head + 1;
    }
    e->reg[RDH / 4] = head;
    return true;
}

static bool receive(void *card, const struct net_hdr *hdr, const u8 *frame, size_t len)
{
    struct i82540em *e = card;
    static const u8 padding[60];
    u8 small[60];
    bool taken = true;

    (void)hdr; /* nothing is left to this card: it offers the back end nothing */
    if (len > FRAME_MAX)
        return true;
    if (len < sizeof(small)) {
        memcpy(small, padding, sizeof(small));
        memcpy(small, frame, len);
        frame = small;
        len = sizeof(small);
    }
    pthread_mutex_lock(&e->rx);
    if (e->held) {
        taken = false;
    } else if ((e->reg[RCTL / 4] & RCTL_EN) && wanted(e, frame)) {
        taken = put_frame(e, frame, (u32)len);
        update_irq(e, taken ? ICR_RXT0 : ICR_RXO, 0);
    }
    pthread_mutex_unlock(&e->rx);
    return taken;
}

/* -- EEPROM, PHY -------------------------------------------------------------------------------- */

/* Microwire, §5.3: start bit and opcode 110, six bits of address, then 16 bits out, the highest first. */
static void eecd_write(struct i82540em *e, u32 v)
{
    u32 old = e->reg[EECD / 4];
    e->reg[EECD / 4] = v & (EECD_SK | EECD_CS | EECD_DI | BIT(6));
    if (!(v & EECD_CS)) {
        e->ee.reading = false;
        e->ee.bits = e->ee.in = 0;
        return;
    }
    if (!(old & EECD_SK) && (v & EECD_SK)) {
        if (e->ee.reading) {
            e->ee.out++;
        } else {
            e->ee.in = e->ee.in << 1 | ((v & EECD_DI) != 0);
            if (++e->ee.bits == 9) {
                e->ee.reading = (e->ee.in >> 6 & 7) == 6;
                e->ee.out = (e->ee.in & 63) * 16u - 1u; /* the next clock brings the first bit */
            }
        }
    }
}

static u32 eecd_read(const struct i82540em *e)
{
    u32 v = e->reg[EECD / 4] | EECD_PRES | (e->reg[EECD / 4] & BIT(6) ? EECD_GNT : 0);
    u32 out = e->ee.out;
    if (!e->ee.reading || (out < 1024 && e->eeprom[out / 16] >> (15 - out % 16) & 1))
        v |= EECD_DO;
    return v;
}

static u32 eerd_write(const struct i82540em *e, u32 v) /* §13.4.4: 0 start, 4 done, 15:8 address, 31:16 data */
{
    return v & 1 ? (v & 0xff00) | 0x10 | (u32)e->eeprom[v >> 8 & 63] << 16 : v;
}

static u32 mdic_write(struct i82540em *e, u32 v) /* §13.4.7 */
{
    u32 n = v >> 16 & 31, op = v >> 26 & 3;
    if ((v >> 21 & 31) != 1)
        return v | BIT(28) | BIT(30);
    if (op == 2)
        return (v & 0xffff0000) | e->phy[n] | BIT(28);
    if (op == 1 && n != 1 && n != 2 && n != 3)
        e->phy[n] = n == 0 ? (u16)v & 0x5dff : (u16)v; /* reset and restart are done at once */
    return v | BIT(28);
}

static void fill_eeprom(struct i82540em *e, const u8 mac[6])
{
    u16 sum = 0;
    memcpy(e->eeprom, mac, 6);
    e->eeprom[0x0a] = 0x40cb; /* initialization control 1 */
    e->eeprom[0x0b] = 0x001e; /* subsystem */
    e->eeprom[0x0c] = 0x8086;
    e->eeprom[0x0d] = 0x100e;
    e->eeprom[0x0e] = 0x8086;
    for (unsigned i = 0; i < 63; i++)
        sum = (u16)(sum + e->eeprom[i]);
    e->eeprom[63] = (u16)(0xbaba - sum);
}

/* -- Registers ---------------------------------------------------------------------------------- */

static void reset(struct i82540em *e)
{
    static const u16 phy[32] = { /* a Marvell 88E1011 with its link up: registers 0 to 5, 9, 10, 16, 17, 20 */
        [0] = 0x1140, [1] = 0x796d, [2] = 0x0141, [3] = 0x0c20, [4] = 0x0de1, [5] = 0x45e1, [9] = 0x0e00, [10] = 0x3c00,
        [16] = 0x0360, [17] = 0xac00, [20] = 0x0d60,
    };
    memset(e->reg, 0, sizeof(e->reg));
    memcpy(e->phy, phy, sizeof(phy));
    e->reg[STATUS / 4] = STATUS_UP;
    e->reg[PBA / 4] = 0x00100030;
    memcpy(&e->reg[RAL0 / 4], e->eeprom, 6);
    e->reg[RAL0 / 4 + 1] |= BIT(31);
    e->len = 0;
}

static void full_reset(struct i82540em *e)
{
    pthread_mutex_lock(&e->tx);
    pthread_mutex_lock(&e->rx);
    pthread_mutex_lock(&e->irq);
    reset(e);
    pci_set_intx(&e->pci, false);
    pthread_mutex_unlock(&e->irq);
    pthread_mutex_unlock(&e->rx);
    pthread_mutex_unlock(&e->tx);
}

static pthread_mutex_t *lock_of(struct i82540em *e, u64 off)
{
    return (off >= TDBAL && off <= TDT) || off == TCTL ? &e->tx : &e->rx;
}

static u64 mmio_read(void *opaque, u64 off, unsigned size)
{
    struct i82540em *e = opaque;
    u32 v;
    (void)size;
    if (off >= REGS_END)
        return 0;
    if (off == ICR)
        return take_icr(e);
    pthread_mutex_t *lock = lock_of(e, off);
    pthread_mutex_lock(lock);
    v = off == EECD ? eecd_read(e) : off == ICS || off == IMC ? 0 : e->reg[off / 4];
    pthread_mutex_unlock(lock);
    return v;
}

static void mmio_write(void *opaque, u64 off, unsigned size, u64 value)
{
    struct i82540em *e = opaque;
    u32 v = (u32)value;
    (void)size;
    switch (off) {
    case CTRL:
        if (v & CTRL_RST) {
            full_reset(e);
            return;
        }
        break;
    case STATUS: return;
    case ICR: update_irq(e, 0, v); return;
    case ICS: update_irq(e, v, 0); return;
    case IMS: case IMC:
        pthread_mutex_lock(&e->irq);
        e->reg[IMS / 4] = off == IMS ? e->reg[IMS / 4] | v : e->reg[IMS / 4] & ~v;
        pthread_mutex_unlock(&e->irq);
        update_irq(e, 0, 0);
        return;
    default: break;
    }
    if (off >= REGS_END)
        return;
    pthread_mutex_t *lock = lock_of(e, off);
    pthread_mutex_lock(lock);
    switch (off) {
    case EECD: eecd_write(e, v); break;
    case EERD: e->reg[off / 4] = eerd_write(e, v); break;
    case MDIC: e->reg[off / 4] = mdic_write(e, v); break;
    case TDLEN: case RDLEN: e->reg[off / 4] = v & 0xfff80; break; /* 128 bytes to 1 MiB */
    case TDH: case TDT: case RDH: case RDT: e->reg[off / 4] = v & 0xffff; break;
    default: e->reg[off / 4] = v;
    }
    if (off == TDT || off == TCTL)
        transmit(e);
    pthread_mutex_unlock(lock);
    if ((off == TDT || off == TCTL) && e->be->ops->sent)
        e->be->ops->sent(e->be);
    if (off == RDT || off == RCTL)
        e->be->ops->room(e->be);
}

/* §13.3: IOADDR and IODATA, another way to the same registers. */
static u64 io_read(void *opaque, u64 off, unsigned size)
{
    struct i82540em *e = opaque;
    if (off == 0)
        return e->io_address;
    return off == 4 && !(e->io_address & 3) ? mmio_read(e, e->io_address, size) : 0;
}

static void io_write(void *opaque, u64 off, unsigned size, u64 value)
{
    struct i82540em *e = opaque;
    if (off == 0)
        e->io_address = (u32)value;
    else if (off == 4 && !(e->io_address & 3))
        mmio_write(e, e->io_address, size, value);
}

static const struct io_ops mmio_ops = { "e1000", 4, 4, mmio_read, mmio_write };
static const struct io_ops io_ops = { "e1000-io", 4, 4, io_read, io_write };

/* -- Snapshots ---------------------------------------------------------------------------------- */

#define E(member) STATE(struct i82540em, member)
static const struct state_field state_fields[] = {
    E(eeprom), E(phy), E(reg), E(io_address), E(ee.reading), E(ee.in), E(ee.bits), E(ee.out), E(context), E(len), E(popts),
    E(first_cmd), STATE_END
};
#undef E

static int loaded(void *obj)
{
    struct i82540em *e = obj;

    if (e->len > SEGMENT_MAX)
        return -EINVAL;
    e->reg[TDLEN / 4] &= 0xfff80;
    e->reg[RDLEN / 4] &= 0xfff80;
    const u32 positions[] = { TDH, TDT, RDH, RDT };
    for (unsigned i = 0; i < ARRAY_SIZE(positions); i++)
        e->reg[positions[i] / 4] &= 0xffff;
    return 0;
}

/* What has been collected of a packet. */
static int save_frame(void *obj, struct state_buf *buf, const char **why)
{
    struct i82540em *e = obj;

    (void)why;
    state_put(buf, e->frame, e->len);
    return 0;
}

static int load_frame(void *obj, const void *bytes, size_t len)
{
    struct i82540em *e = obj;

    if (len > SEGMENT_MAX || len != e->len)
        return -EINVAL;
    memcpy(e->frame, bytes, len);
    return 0;
}

static void quiesce(void *obj)
{
    struct i82540em *e = obj;

    pthread_mutex_lock(&e->rx);
    e->held = true; /* frames may come at any time */
    pthread_mutex_unlock(&e->rx);
}

static void resume(void *obj)
{
    struct i82540em *e = obj;

    pthread_mutex_lock(&e->rx);
    e->held = false;
    pthread_mutex_unlock(&e->rx);
    e->be->ops->room(e->be);
}

int i82540em_keep(struct i82540em *e, struct machine *m)
{
    unsigned slot = e->pci.devfn >> 3;
    struct device_part part = { .state = state_fields, .obj = e, .loaded = loaded, .quiesce = quiesce, .resume = resume };

    e->pci.kept = true;
    snprintf(part.name, sizeof(part.name), "e1000.%02x", slot);
    int r = machine_add_part(m, &part);
    part = (struct device_part){ .obj = e, .save = save_frame, .load = load_frame };
    snprintf(part.name, sizeof(part.name), "e1000.%02x.frame", slot);
    return r ? r : machine_add_part(m, &part);
}

static void pci_reset(struct pci_dev *pci)
{
    full_reset(container_of(pci, struct i82540em, pci));
}

/* -- Life --------------------------------------------------------------------------------------- */

void i82540em_free(struct i82540em *e)
{
    if (!e)
        return;
    e->be->ops->free(e->be);
    pthread_mutex_destroy(&e->tx);
    pthread_mutex_destroy(&e->rx);
    pthread_mutex_destroy(&e->irq);
    free(e->frame);
    free(e->segment);
    free(e);
}

int i82540em_create(struct pci_host *host, unsigned slot, struct ram *ram, struct net_backend *be, const u8 mac[6],
                    struct i82540em **out)
{
    static const struct pci_ids ids = {
        .vendor = 0x8086, .device = 0x100e, .subsystem_vendor = 0x8086, .subsystem = 0x001e, .class_code = 0x020000,
        .revision = 2, .int_pin = 1,
    };
    struct i82540em *e = calloc(1, sizeof(*e));
    if (!e) {
        be->ops->free(be);
        return -ENOMEM;
    }
    e->ram = ram;
    e->be = be;
    pthread_mutex_init(&e->tx, NULL);
    pthread_mutex_init(&e->rx, NULL);
    pthread_mutex_init(&e->irq, NULL);
    e->frame = malloc(SEGMENT_MAX);
    e->segment = malloc(FRAME_MAX);
    fill_eeprom(e, mac);
    reset(e);
    pci_dev_init(&e->pci, "e1000", &ids);
    pci_add_bar(&e->pci, 0, PCI_BAR_MEM32, BAR_SIZE, &mmio_ops, e);
    pci_add_bar(&e->pci, 1, PCI_BAR_IO, 64, &io_ops, e);
    e->pci.reset = pci_reset;
    const struct net_port port = { receive, e };
    int err = e->frame && e->segment ? pci_add(host, PCI_DEVFN(slot, 0), &e->pci) : -ENOMEM;
    if (!err && be->ops->set_offload)
        be->ops->set_offload(be, 0);
    if (!err)
        err = be->ops->start(be, &port);
    if (err) {
        i82540em_free(e);
        return err;
    }
    *out = e;
    return 0;
}
