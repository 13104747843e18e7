/*
 * devices.c - the same disk and network work by a chip, by virtio and by calls. The disks are all alike, each sector filled with
 * a number that follows from its place: what was read is looked at, so that no way is quick by not doing the work.
 */
#include "gain/pc.h"

/* -- Disks --------------------------------------------------------------------------------------------------------------- */

#define DISK_SECTORS (16u << 11) /* 16 MiB */
#define LARGE (1u << 20)

static const struct disk *disk;
static unsigned depth;
static uint32_t size;
static bool writing;
static uint8_t *buf;

/* bench/pv/run fills the images: the first eight bytes of a sector are its number. */
static void put(unsigned slot, uint64_t sector)
{
    uint64_t *data = (uint64_t *)(buf + (uint64_t)slot * size);
    for (uint32_t i = 0; i < size / SECTOR; i += writing ? 1 : size / SECTOR)
        data[i * (SECTOR / 8)] = writing ? sector + i : ~0ull;
    disk->put(slot, writing, sector, data, size);
}
static void disk_work(uint32_t n)
{
    unsigned most = depth < disk->depth ? depth : disk->depth, free_slot[DEPTH_MAX], nr_free = most;
    uint64_t sector[DEPTH_MAX];
    uint32_t seed = 1, started = 0, finished = 0;

    for (unsigned i = 0; i < most; i++)
        free_slot[i] = i;
    while (finished < n) {
        bool any = false;
        for (; nr_free && started < n; started++) {
            unsigned s = free_slot[--nr_free];
            seed = seed * 1103515245 + 12345;
            sector[s] = (seed >> 8) % (DISK_SECTORS / (size / SECTOR)) * (size / SECTOR);
            put(s, sector[s]);
            any = true;
        }
        if (any)
            disk->kick();
        int s;
        wait_until((s = disk->reap()) >= 0);
        for (; s >= 0; s = disk->reap()) {
            const uint64_t *data = (const uint64_t *)(buf + (uint64_t)s * size);
            if (data[0] != sector[s])
                die("%s: sector %lu has %lx\n", disk->way, sector[s], data[0]);
            free_slot[nr_free++] = (unsigned)s;
            finished++;
        }
    }
}

static const struct {
    const char *name;
    uint32_t operations, size;
    unsigned depth;
    bool writing;
} disk_lines[] = {
    { "disk-read",     400, 4096,  1,  false },
    { "disk-read-16",  800, 4096,  16, false },
    { "disk-write-16", 800, 4096,  16, true },
    { "disk-read-1m",  32,  LARGE, 4,  false },
};

static bool disk_run(const struct disk *d)
{
    if (!d->start())
        return false;
    disk = d;
    for (unsigned i = 0; i < sizeof(disk_lines) / sizeof(disk_lines[0]); i++) {
        depth = disk_lines[i].depth;
        size = disk_lines[i].size;
        writing = disk_lines[i].writing;
        measure(disk_lines[i].name, d->way, disk_lines[i].operations, disk_work);
    }
    return true;
}

/* -- Network: frames to a gateway that answers echo requests and drops the rest, or (--append nowhere) to nobody -------------- */

#define FRAMES 64u
static const uint8_t our_ip[4] = { 10, 0, 2, 15 }, gateway_ip[4] = { 10, 0, 2, 2 };
static const struct net *net;
static uint8_t (*frame)[64]; /* [FRAMES], each a whole one */
static uint32_t nr_sent, batch;

static uint16_t checksum(const uint8_t *p, unsigned len)
{
    uint32_t sum = 0;
    for (unsigned i = 0; i < len; i += 2)
        sum += (uint32_t)p[i] << 8 | p[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~(sum + (sum >> 16));
}
static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

/* Ask who the gateway is, which tells it who we are (RFC 826). */
static void arp(const uint8_t mac[6], uint8_t gateway[6])
{
    static const uint8_t kind[] = { 8, 6, 0, 1, 8, 0, 6, 4, 0, 1 };
    const uint8_t *in;
    uint8_t *p = frame[0];
    uint32_t len;

    memset(p, 0xff, 6);
    memcpy(p + 6, mac, 6);
    memcpy(p + 12, kind, sizeof(kind));
    memcpy(p + 22, mac, 6);
    memcpy(p + 28, our_ip, 4);
    memcpy(p + 38, gateway_ip, 4);
    net->send(p, 60);
    net->kick();
    for (;;) {
        wait_until((in = net->receive(&len)) != NULL);
        if (len >= 42 && in[12] == 8 && in[13] == 6 && in[21] == 2)
            break;
    }
    memcpy(gateway, in + 22, 6);
}

/* Headers for 64 bytes in all: UDP to a port where nobody is (RFC 768), or an echo request (RFC 792). */
static void make_frames(const uint8_t mac[6], const uint8_t gateway[6], bool echo)
{
    for (unsigned i = 0; i < FRAMES; i++) {
        uint8_t *p = memset(frame[i], 0, 64), *data = p + 34;
        memcpy(p, gateway, 6);
        memcpy(p + 6, mac, 6);
        put16(p + 12, 0x800);
        p[14] = 0x45;
        put16(p + 16, 50); /* of IP */
        put16(p + 18, i);
        p[22] = 64;
        p[23] = echo ? 1 : 17;
        memcpy(p + 26, our_ip, 4);
        memcpy(p + 30, gateway_ip, 4);
        put16(p + 24, checksum(p + 14, 20));
        if (echo) {
            data[0] = 8;
            put16(data + 6, i); /* its number */
            put16(data + 2, checksum(data, 30));
        } else {
            put16(data, 1000);
            put16(data + 2, 9);
            put16(data + 4, 30);
        }
    }
}

static void packets_out(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        net->send(frame[nr_sent++ % FRAMES], 64);
        if (i % batch == batch - 1 || i == n - 1)
            net->kick();
    }
}
static void ping(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *out = frame[nr_sent++ % FRAMES], *in;
        uint32_t len;
        net->send(out, 64);
        net->kick();
        do
            wait_until((in = net->receive(&len)) != NULL);
        while (len < 42 || in[23] != 1 || in[34] != 0 || memcmp(in + 40, out + 40, 2));
    }
}

/* Is it a word of --append? */
static bool said(const char *word)
{
    for (const char *s = command_line(); *s; s++)
        if (!memcmp(s, word, strlen(word)))
            return true;
    return false;
}

static bool net_run(const struct net *card)
{
    uint8_t mac[6], gateway[6] = { 0x52, 0x55 };

    if (!card->start(mac))
        return false;
    net = card;
    frame = pages_alloc(1);
    bool nowhere = said("nowhere");
    if (!nowhere)
        arp(mac, gateway);
    make_frames(mac, gateway, false);
    batch = 1;
    measure("net-out", card->way, 20000, packets_out);
    batch = 16;
    measure("net-out-16", card->way, 20000, packets_out);
    if (nowhere)
        return true;
    make_frames(mac, gateway, true);
    measure("net-ping", card->way, 5000, ping);
    return true;
}

bool devices(void)
{
    static const struct disk *const disks[] = { &disk_ide, &disk_virtio, &disk_calls };
    static const struct net *const nets[] = { &net_e1000, &net_virtio, &net_calls };
    bool any = false;

    buf = pages_alloc(4 * LARGE / PAGE);
    for (unsigned i = 0; i < 3; i++) {
        any |= disk_run(disks[i]);
        any |= net_run(nets[i]);
    }
    return any;
}
