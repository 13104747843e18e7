/*
 * test_fuzz_virtio.c - each virtio device behind its PCI registers, driven by a driver that was set up properly and then does
 * anything: descriptors, ring indexes, memory, registers, notifications, resets. Built with AddressSanitizer it finds what
 * reaches outside guest memory or the device's own.
 */
#include "net/net.h"
#include "storage/disk.h"
#include "tests/fuzz/fuzz.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/console.h"
#include "virtio/net.h"
#include "virtio/p9.h"
#include "virtio/pmem.h"
#include "virtio/rng.h"
#include "virtio/transport_pci.h"
#include "virtio/vsock.h"
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RAM_SIZE 0x40000u
#define RING(q) (0x1000u + (q) * 0x1000u) /* 16 descriptors at 0, available at 0x400, used at 0x800 */
#define DATA 0x10000u
#define QUEUES 4u
#define QSIZE 16u

/* -- A network that sends back what it is sent -------------------------------------------------- */

struct mirror { struct net_backend be; struct net_port port; };

static int mirror_start(struct net_backend *be, const struct net_port *port)
{
    ((struct mirror *)be)->port = *port;
    return 0;
}
static void mirror_nothing(struct net_backend *be) { (void)be; }
static void mirror_free(struct net_backend *be) { free(be); }
static void mirror_send(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *iov, unsigned nr)
{
    static u8 frame[NET_FRAME_MAX];
    struct mirror *m = (struct mirror *)be;
    size_t len = 0;
    for (unsigned i = 0; i < nr; len += iov[i++].iov_len)
        memcpy(frame + len, iov[i].iov_base, iov[i].iov_len);
    if (net_finish(hdr, frame, len))
        m->port.receive(m->port.card, hdr, frame, len);
}
static const struct net_ops mirror_ops = { "mirror", mirror_start, mirror_nothing, mirror_send, NULL, mirror_nothing,
                                           NULL, mirror_free };

struct step { u8 op, a, b, c; u32 v; };

/* -- Devices ------------------------------------------------------------------------------------ */

static char dir[] = "/tmp/vitro-fuzz-XXXXXX";

static void remove_dir(void)
{
    char command[64];
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    if (system(command))
        return;
}

static struct virtio_dev *make(struct ram *ram, unsigned kind, unsigned options, struct disk **disk)
{
    struct virtio_dev *dev = NULL;
    static bool made;
    int r = 0;
    if (!made && (made = true)) {
        bug_on(!mkdtemp(dir));
        atexit(remove_dir);
    }
    char path[64];
    snprintf(path, sizeof(path), "%s/socket", dir);
    switch (kind % 7) {
    case 0: {
        int fd = memfd_create("disk", MFD_CLOEXEC);
        bug_on(fd < 0 || ftruncate(fd, 1 << 20) || raw_disk_open(fd, options & 4, 1 << 20, disk));
        const struct blk_options o = { .queues = 2, .packed = options & 1, .threads = options & 2, .serial = "fuzz" };
        r = options & 8 ? virtio_pmem_create(ram, *disk, 1ull << 32, 1 << 20, &dev) : virtio_blk_create(ram, *disk, &o, &dev);
        break;
    }
    case 1: {
        struct mirror *m = calloc(1, sizeof(*m));
        m->be = (struct net_backend){ &mirror_ops, 7, 7, 1500 };
        const struct virtio_net_options o = { .mac = { 2 }, .queues = 1 + (options >> 1 & 1), .packed = options & 1 };
        r = virtio_net_create(ram, &m->be, &o, &dev);
        break;
    }
    case 2: r = virtio_rng_create(ram, &dev); break;
    case 3: r = virtio_balloon_create(ram, &dev); break;
    case 4: r = virtio_console_create(ram, path, &dev); break;
    case 5: r = virtio_vsock_create(ram, path, 3, &dev); break;
    default: r = virtio_p9_create(ram, dir, "fuzz", options & 4, &dev); break;
    }
    bug_on(r);
    return dev;
}

/* The other end of the console's or the sockets' device; -1: it has none. */
static int connect_to(unsigned kind)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    if (kind % 7 != 4 && kind % 7 != 5)
        return -1;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    snprintf(a.sun_path, sizeof(a.sun_path), "%s/socket", dir);
    bug_on(fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)));
    return fd;
}

static void talk(int fd, const struct step *s)
{
    char text[300];
    ssize_t n = recv(fd, text, sizeof(text), MSG_DONTWAIT);
    int len = s->a & 1 ? snprintf(text, sizeof(text), "CONNECT %u\n", s->v) : s->b;
    n = send(fd, text, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)n;
}

static struct bus_region bar;

static void reg(unsigned off, unsigned size, u64 value)
{
    bar.ops->write(bar.dev, off, size, value);
}

static void start(unsigned features, bool packed)
{
    reg(0x14, 1, 0);
    reg(0x14, 1, 3);
    for (unsigned word = 0; word < 2; word++) {
        reg(0x00, 4, word);
        u32 offered = (u32)bar.ops->read(bar.dev, 0x04, 4);
        reg(0x08, 4, word);
        if (!word)
            offered &= ~(features << 28 & 0x30000000u); /* with and without indirect, event index */
        reg(0x0c, 4, word ? 1 | (packed ? offered & 4 : 0) : offered);
    }
    reg(0x14, 1, 11);
    for (unsigned q = 0; q < QUEUES; q++) {
        reg(0x16, 2, q);
        reg(0x18, 2, QSIZE);
        for (unsigned i = 0; i < 3; i++) {
            reg(0x20 + 8 * i, 4, RING(q) + 0x400 * i);
            reg(0x24 + 8 * i, 4, 0);
        }
        reg(0x1c, 2, 1);
    }
    reg(0x14, 1, 15);
}

static void one_step(u8 *mem, const struct step *s, bool packed)
{
    unsigned q = s->a % QUEUES;
    u8 *desc = mem + RING(q) + 16u * (s->b % QSIZE);
    u16 *avail = (u16 *)(mem + RING(q) + 0x400);
    u64 addr;
    u32 len;
    u16 flags, next;
    switch (s->op % 10) {
    case 0: case 1: case 2: /* a descriptor, mostly a good one */
        addr = s->c & 0x80 ? s->v : DATA + (s->v & 0x1ffff);
        len = s->c & 0x40 ? s->v >> 8 : s->v >> 16 & 0xfff;
        flags = (u16)(s->c & 7);
        next = (u16)((s->b + 1) % (s->c & 0x20 ? 256 : QSIZE));
        if (packed) {
            flags |= s->c & 8 ? 0x80 : 0x8000;
            next = flags;
            flags = (u16)(s->b % QSIZE);
        }
        memcpy(desc, &addr, 8);
        memcpy(desc + 8, &len, 4);
        memcpy(desc + 12, &flags, 2);
        memcpy(desc + 14, &next, 2);
        break;
    case 3: case 4: /* make it available */
        avail[2 + avail[1] % QSIZE] = s->b % QSIZE;
        avail[1]++;
        reg(0x3000 + 4 * q, 2, q);
        break;
    case 5: /* a request's header, more or less: of a disk, or of a socket */
        if (s->a & 16) {
            u64 h[6] = { 3, 2, s->v | 99ull << 32, (u64)s->c << 48 | 1ull << 32 | s->b, 4096, s->v };
            memcpy(mem + DATA + (s->v & 0x1ff0), h, 44);
            break;
        }
        memcpy(mem + DATA + (s->v & 0x1fff0), &(u32[4]){ s->a & 15, 0, s->b, s->c & 1 }, 16);
        break;
    case 6: memcpy(mem + ((u32)s->b << 10 | s->c << 2) % RAM_SIZE, &s->v, 4); break;
    case 7: reg(0x3000 + 4u * s->a, 2, s->a); break;
    case 8:
        if (s->a & 1)
            reg(0x2000 + s->b % 64, 4, s->v);
        else
            bar.ops->read(bar.dev, 0x2000 + s->b % 64, 4);
        break;
    default:
        if (s->a % 8 == 0)
            reg(0x14, 1, s->b & 1 ? 0 : s->c);
        else if (s->a % 8 == 1)
            start(s->b, packed);
        else
            reg(s->b % 0x3c, 4, s->v);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pci_host host;
    struct virtio_pci *pci;
    struct disk *disk = NULL;
    struct ram ram;
    static const struct irq_line lines[8];

    if (size < 2)
        return 0;
    /* A mapping of its own each time: a shared one, which the balloon gives back in parts. */
    u8 *mem = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bug_on(mem == MAP_FAILED);
    ram_init(&ram);
    bug_on(ram_add_slot(&ram, 0, RAM_SIZE, mem, false) || pci_host_init(&host, lines));
    struct virtio_dev *dev = make(&ram, data[0], data[1], &disk);
    bug_on(virtio_pci_add(&host, 3, dev, &pci));
    host.mmio64 = 1ull << 36;
    pci_assign_bars(&host);
    u64 at = 0xc0000000;
    while (!pci_decode(&host, true, at, &bar) || bar.size < 0x4000)
        at += 0x1000;
    bool packed = data[1] & 1;
    int fd = connect_to(data[0]);
    start(data[1] >> 4, packed);
    for (size_t i = 2; i + sizeof(struct step) <= size; i += sizeof(struct step)) {
        struct step s;
        memcpy(&s, data + i, sizeof(s));
        if (fd >= 0 && s.op >= 0xe0)
            talk(fd, &s);
        else
            one_step(mem, &s, packed);
    }
    if (fd >= 0)
        close(fd);
    virtio_destroy(dev);
    virtio_pci_free(pci);
    disk_close(disk);
    pci_host_fini(&host);
    ram_fini(&ram);
    munmap(mem, RAM_SIZE);
    return 0;
}

FUZZ_MAIN("fuzz/virtio", 3000, 1600)
