/*
 * e1000.c - a network card that exists as a chip: Intel 82540EM. Source: Intel 317453, chapters 3 and 13. As Linux does it:
 * sent frames are reclaimed when the next ones are sent, received ones are told of by an interrupt.
 */
#include "gain/pc.h"

enum {
    CTRL = 0, ICR = 0xc0, IMS = 0xd0, IMC = 0xd8, RCTL = 0x100, TCTL = 0x400, RDBAL = 0x2800, RDLEN = 0x2808, RDH = 0x2810,
    RDT = 0x2818, TDBAL = 0x3800, TDLEN = 0x3808, TDH = 0x3810, TDT = 0x3818, RAL = 0x5400, RAH = 0x5404,
};
#define RING 128u
#define ROOM 2048u

static struct desc {
    uint64_t address;
    uint16_t len;
    uint8_t cso, command, status, errors;
    uint16_t special;
} tx[RING] __attribute__((aligned(4096)));
static struct {
    uint64_t address;
    uint16_t len, checksum;
    uint8_t status, errors;
    uint16_t special;
} rx[RING] __attribute__((aligned(4096)));
static volatile uint8_t *regs;
static uint8_t *rx_buf;
static uint32_t tx_tail, rx_head;
static bool held; /* rx_head's frame is with the caller */

static uint32_t get(unsigned reg) { return *(volatile uint32_t *)(regs + reg); }
static void set(unsigned reg, uint32_t v) { *(volatile uint32_t *)(regs + reg) = v; }

static void on_interrupt(struct sdk_regs *r)
{
    (void)r;
    get(ICR); /* reading clears */
    APIC(APIC_EOI) = 0;
}

static bool start(uint8_t mac[6])
{
    int devfn = pci_find(0x8086, 0x100e);

    if (devfn < 0)
        return false;
    pci_start(devfn);
    regs = (volatile uint8_t *)pci_bar(devfn, 0);
    uint32_t low = get(RAL), high = get(RAH);
    memcpy(mac, &low, 4);
    memcpy(mac + 4, &high, 2);
    trap_handle(VECTOR_E1000, on_interrupt);
    irq_route(pci_pin(devfn), VECTOR_E1000, true);
    rx_buf = pages_alloc(RING * ROOM / PAGE);
    for (unsigned i = 0; i < RING; i++)
        rx[i].address = (uint64_t)(rx_buf + i * ROOM);
    set(RDBAL, (uint32_t)(uint64_t)rx);
    set(RDLEN, sizeof(rx));
    set(RDT, RING - 1);
    set(TDBAL, (uint32_t)(uint64_t)tx);
    set(TDLEN, sizeof(tx));
    set(RCTL, 0x8002 | 1u << 26); /* on, broadcasts too, no checksum at the end */
    set(TCTL, 0x10a);             /* on, short frames filled up */
    set(IMS, 0x80);               /* a frame was received */
    return true;
}

static void send(const void *frame, uint32_t len)
{
    volatile struct desc *d = &tx[tx_tail % RING];
    if (tx_tail >= RING && !(d->status & 1))
        die("e1000: the ring is full\n");
    *d = (struct desc){ .address = (uint64_t)frame, .len = (uint16_t)len, .command = 0x0b }; /* all of it, FCS, report */
    tx_tail++;
}
static void kick(void)
{
    set(TDT, tx_tail % RING);
}

static const void *receive(uint32_t *len)
{
    if (held) {
        rx[rx_head % RING].status = 0;
        set(RDT, rx_head++ % RING);
        held = false;
    }
    uint32_t i = rx_head % RING;
    if (!(*(volatile uint8_t *)&rx[i].status & 1))
        return NULL;
    held = true;
    *len = rx[i].len;
    return rx_buf + i * ROOM;
}

const struct net net_e1000 = { "e1000", start, send, kick, receive };
