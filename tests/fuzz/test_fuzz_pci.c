/*
 * test_fuzz_pci.c - the AHCI adapter and the 82540EM driven by anything: registers, descriptors, command tables, frames from
 * outside. Their structures are set up so that most of it gets somewhere.
 */
#include "machine/chips/ahci.h"
#include "machine/chips/i82540em.h"
#include "machine/pci.h"
#include "mem/ram.h"
#include "net/net.h"
#include "storage/disk.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_SIZE 0x40000u

struct mirror { struct net_backend be; struct net_port port; };
static struct mirror *mirror;

static int mirror_start(struct net_backend *be, const struct net_port *port)
{
    ((struct mirror *)be)->port = *port;
    return 0;
}
static void mirror_nothing(struct net_backend *be) { (void)be; }
static void mirror_free(struct net_backend *be) { free(be); }
static void mirror_send(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *iov, unsigned nr)
{
    struct mirror *m = (struct mirror *)be;
    bug_on(nr != 1 || !iov->iov_len);
    m->port.receive(m->port.card, hdr, iov->iov_base, iov->iov_len);
}
static const struct net_ops mirror_ops = { "mirror", mirror_start, mirror_nothing, mirror_send, NULL, mirror_nothing,
                                           NULL, mirror_free };

static struct bus_region bar;

static void reg(u32 off, u32 value)
{
    bar.ops->write(bar.dev, off, 4, value);
}

static void start_ahci(void)
{
    for (unsigned p = 0; p < 2; p++) {
        u32 at = 0x100 + p * 0x80;
        reg(at + 0x00, 0x1000 + p * 0x1000); /* command list; tables are where the headers say */
        reg(at + 0x04, 0);
        reg(at + 0x08, 0x8000 + p * 0x100);
        reg(at + 0x0c, 0);
        reg(at + 0x14, ~0u);
        reg(at + 0x18, 0x11);
    }
    reg(4, 2);
}

static void start_net(void)
{
    reg(0x3800, 0x1000); /* 32 transmit descriptors */
    reg(0x3808, 512);
    reg(0x2800, 0x2000); /* 32 receive descriptors */
    reg(0x2808, 512);
    reg(0x2818, 31);
    reg(0x100, 0x0400800a);
    reg(0x400, 2);
    reg(0xd0, ~0u);
}

struct step { u8 op, a, b, c; u32 v; };

static void ahci_step(u8 *mem, const struct step *s)
{
    unsigned slot = s->a % 8, port = s->b & 1;
    u32 *h = (u32 *)(mem + 0x1000 + port * 0x1000 + slot * 32), table = 0x10000 + slot * 0x400;
    static const u8 commands[] = { 0xec, 0x20, 0x24, 0xc8, 0x25, 0x30, 0xca, 0x35, 0x60, 0x61, 0xe7, 0xea, 0x06, 0x40, 0xef,
                                   0xa1 };
    switch (s->op % 6) {
    case 0: case 1: /* a command with a table */
        h[0] = 5 | (s->v & 0xf) << 16 | (s->c & 0x40);
        h[2] = s->c & 0x80 ? s->v : table;
        h[3] = 0;
        memset(mem + table, 0, 0x80);
        memcpy(mem + table, (u8[16]){ 0x27, 0x80, commands[s->c % 16], s->b, s->v & 0xff, s->v >> 8 & 7, 0, 0x40, 0, 0, 0, 0,
                                      s->v >> 16 & 0x1f, 0 }, 16);
        for (unsigned i = 0; i < 16; i++)
            memcpy(mem + table + 0x80 + i * 16, &(u32[4]){ 0x20000 + (s->v * (i + 1) & 0x1fffe), 0, 0, (s->v >> (i & 15)) & 0x3fff }, 16);
        if (commands[s->c % 16] == 0x60 || commands[s->c % 16] == 0x61)
            reg(0x134 + port * 0x80, 1u << slot);
        reg(0x138 + port * 0x80, 1u << slot);
        break;
    case 2: memcpy(mem + ((u32)s->a << 10 | s->b << 2) % RAM_SIZE, &s->v, 4); break;
    case 3: reg((s->a % 0x80) * 4, s->v); break;
    case 4: bar.ops->read(bar.dev, (s->a % 0x100) * 4, 4); break;
    default:
        if (s->b & 4)
            start_ahci();
        else
            reg(0x100 + port * 0x80 + (s->a % 15) * 4, s->c & 1 ? 1u << (s->v & 31) : s->v);
    }
}

static void net_step(u8 *mem, const struct step *s)
{
    u8 *d = mem + 0x1000 + (s->a % 32) * 16;
    switch (s->op % 6) {
    case 0: case 1:
        memcpy(d, &(u64){ 0x20000 + (s->v & 0x1fff0) }, 8);
        memcpy(d + 8, &s->v, 4);
        d[9] &= 0x3f;
        d[10] = s->b & 0x10;
        d[11] = s->c;
        memcpy(d + 12, &s->v, 4);
        reg(0x3818, (s->a + 1) % 32);
        break;
    case 2: memcpy(mem + ((u32)s->a << 10 | s->b << 2) % RAM_SIZE, &s->v, 4); break;
    case 3: reg((u32)(s->a << 8 | s->b) * 4 % 0x6000, s->v); break;
    case 4: bar.ops->read(bar.dev, (u32)(s->a << 8 | s->b) * 4 % 0x6000, 4); break;
    default:
        if (s->b & 4)
            start_net();
        else
            mirror->port.receive(mirror->port.card, &(struct net_hdr){ 0 }, mem + 0x20000 + (s->a & 63), 1 + s->v % 20000);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct irq_line lines[8];
    struct disk *disk[2] = { NULL, NULL };
    struct i82540em *card = NULL;
    struct ahci *ahci = NULL;
    struct pci_host host;
    struct ram ram;

    if (size < 2)
        return 0;
    u8 *mem = aligned_alloc(4096, RAM_SIZE);
    memset(mem, 0, RAM_SIZE);
    ram_init(&ram);
    bug_on(ram_add_slot(&ram, 0, RAM_SIZE, mem, false) || pci_host_init(&host, lines));
    if (data[0] & 1) {
        for (unsigned i = 0; i < 2; i++) {
            int fd = memfd_create("disk", MFD_CLOEXEC);
            bug_on(fd < 0 || ftruncate(fd, 1 << 20) || raw_disk_open(fd, i & (data[1] & 1), 1 << 20, &disk[i]));
        }
        bug_on(ahci_create(&host, 3, &ram, disk, (const char *[]){ "A", "B" }, 2, &ahci));
    } else {
        mirror = calloc(1, sizeof(*mirror));
        mirror->be = (struct net_backend){ &mirror_ops, 0, 0, 1500 };
        bug_on(i82540em_create(&host, 3, &ram, &mirror->be, (const u8[6]){ 2 }, &card));
    }
    host.mmio64 = 1ull << 36;
    pci_assign_bars(&host);
    u64 at = 0xc0000000;
    while (!pci_decode(&host, true, at, &bar))
        at += 0x1000;
    if (ahci)
        start_ahci();
    else
        start_net();
    for (size_t i = 2; i + sizeof(struct step) <= size; i += sizeof(struct step)) {
        struct step s;
        memcpy(&s, data + i, sizeof(s));
        if (ahci)
            ahci_step(mem, &s);
        else
            net_step(mem, &s);
    }
    ahci_free(ahci);
    i82540em_free(card);
    disk_close(disk[0]);
    disk_close(disk[1]);
    pci_host_fini(&host);
    ram_fini(&ram);
    free(mem);
    return 0;
}

FUZZ_MAIN("fuzz/pci", 3000, 1600)
