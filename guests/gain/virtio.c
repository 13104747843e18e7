/*
 * virtio.c - a disk and a network card by virtio 1.2 over PCI: split queues (§2.7) with event indices (§2.7.7, §2.7.8), MSI-X.
 */
#include "gain/pc.h"

#define QUEUE 64u
#define EVENT_IDX (1ull << 29)
#define VERSION_1 (1ull << 32)
#define BLK_FLUSH (1ull << 9) /* writes may stay in a cache, as in IDE's */
#define NET_MAC (1ull << 5)
#define NONE 0xffffu

enum { DESC_NEXT = 1, DESC_WRITE = 2 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

struct queue { /* desc: 16 * QUEUE; avail: 6 + 2 * QUEUE; used: 6 + 8 * QUEUE */
    struct { uint64_t address; uint32_t len; uint16_t flags, next; } desc[QUEUE];
    struct { uint16_t flags, idx, ring[QUEUE], used_event; } avail;
    struct { uint16_t flags, idx; struct { uint32_t id, len; } ring[QUEUE]; uint16_t avail_event; } used __attribute__((aligned(4)));
} __attribute__((aligned(4096)));

struct vq {
    struct queue *q;
    volatile uint32_t *bell;
    uint16_t number, added, told, seen; /* added to avail, when the device was last told, taken from used */
};

/* -- Functions ---------------------------------------------------------------------------------------------------------- */

static volatile uint8_t *common, *config, *notify;
static uint32_t notify_step;

static uint8_t get8(unsigned at) { return common[at]; }
static void set8(unsigned at, uint8_t v) { common[at] = v; }
static uint16_t get16(unsigned at) { return *(volatile uint16_t *)(common + at); }
static void set16(unsigned at, uint16_t v) { *(volatile uint16_t *)(common + at) = v; }
static void set32(unsigned at, uint32_t v) { *(volatile uint32_t *)(common + at) = v; }
static void set64(unsigned at, const void *p)
{
    set32(at, (uint32_t)(uint64_t)p);
    set32(at + 4, (uint32_t)((uint64_t)p >> 32));
}

/* Find the structures (§4.1.4), turn MSI-X on with one vector, agree on features (§3.1.1). */
static bool function_start(uint16_t device, uint64_t features, unsigned vector)
{
    int devfn = pci_find(0x1af4, device);

    if (devfn < 0)
        return false;
    pci_start(devfn);
    for (unsigned at = pci_read(devfn, 0x34) & 0xfc; at;) {
        uint32_t head = pci_read(devfn, at), bar = pci_read(devfn, at + 4) & 0xff, offset = pci_read(devfn, at + 8);
        if ((head & 0xff) == 0x11) { /* MSI-X (PCI 3.0 §6.8.2) */
            volatile uint32_t *entry = (volatile uint32_t *)(pci_bar(devfn, bar & 7) + (pci_read(devfn, at + 4) & ~7u));
            entry[0] = 0xfee00000;
            entry[1] = 0;
            entry[2] = vector;
            entry[3] = 0;
            pci_write(devfn, at, head | 0x80000000u);
        } else if ((head & 0xff) == 9) {
            volatile uint8_t *p = (volatile uint8_t *)(pci_bar(devfn, bar) + offset);
            switch (head >> 24) {
            case 1: common = p; break;
            case 2: notify = p; notify_step = pci_read(devfn, at + 16); break;
            case 4: config = p; break;
            default: break;
            }
        }
        at = head >> 8 & 0xfc;
    }
    set8(0x14, 0);
    set8(0x14, ACKNOWLEDGE | DRIVER);
    for (unsigned half = 0; half < 2; half++) {
        set32(0, half);
        uint32_t offered = *(volatile uint32_t *)(common + 4), wanted = (uint32_t)(features >> 32 * half);
        if (wanted & ~offered)
            die("virtio: features %x of %x\n", wanted, offered);
        set32(8, half);
        set32(12, wanted);
    }
    set8(0x14, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if (!(get8(0x14) & FEATURES_OK))
        die("virtio: features\n");
    return true;
}

static void queue_start(struct vq *vq, uint16_t number, bool interrupts)
{
    *vq = (struct vq){ .q = pages_alloc((sizeof(struct queue) + PAGE - 1) / PAGE), .number = number };
    set16(0x16, number);
    set16(0x18, QUEUE);
    set16(0x1a, interrupts ? 0 : NONE);
    set64(0x20, vq->q->desc);
    set64(0x28, &vq->q->avail);
    set64(0x30, &vq->q->used);
    vq->bell = (volatile uint32_t *)(notify + get16(0x1e) * notify_step);
    set16(0x1c, 1);
}

static void add(struct vq *vq, uint16_t head)
{
    vq->q->avail.ring[vq->added++ % QUEUE] = head;
    __atomic_store_n(&vq->q->avail.idx, vq->added, __ATOMIC_RELEASE);
}

static void ring_bell(struct vq *vq)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint16_t event = __atomic_load_n(&vq->q->used.avail_event, __ATOMIC_RELAXED);
    if ((uint16_t)(vq->added - event - 1) < (uint16_t)(vq->added - vq->told))
        *vq->bell = vq->number;
    vq->told = vq->added;
}

/* The head of one that was used, or -1: then the next one interrupts. */
static int take(struct vq *vq, uint32_t *len)
{
    if (__atomic_load_n(&vq->q->used.idx, __ATOMIC_ACQUIRE) == vq->seen) {
        if (vq->q->avail.used_event == vq->seen)
            return -1;
        __atomic_store_n(&vq->q->avail.used_event, vq->seen, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&vq->q->used.idx, __ATOMIC_ACQUIRE) == vq->seen)
            return -1;
    }
    uint16_t i = vq->seen++ % QUEUE;
    *len = vq->q->used.ring[i].len;
    return (int)(vq->q->used.ring[i].id % QUEUE);
}

static void on_interrupt(struct sdk_regs *r)
{
    (void)r;
    APIC(APIC_EOI) = 0;
}

/* -- Disk (§5.2): three descriptors a request ------------------------------------------------------------------------------ */

static struct vq disk;
static struct { uint32_t type, reserved; uint64_t sector; } header[DEPTH_MAX];
static volatile uint8_t result[DEPTH_MAX];

static bool blk_start(void)
{
    if (!function_start(0x1042, VERSION_1 | EVENT_IDX | BLK_FLUSH, VECTOR_BLK))
        return false;
    trap_handle(VECTOR_BLK, on_interrupt);
    queue_start(&disk, 0, true);
    set8(0x14, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    return true;
}

static void blk_put(unsigned slot, bool write, uint64_t sector, void *data, uint32_t len)
{
    uint16_t d = (uint16_t)(slot * 3), next = (uint16_t)(d + 1), last = (uint16_t)(d + 2);

    header[slot].type = write;
    header[slot].sector = sector;
    disk.q->desc[d].address = (uint64_t)&header[slot];
    disk.q->desc[d].len = 16;
    disk.q->desc[d].flags = DESC_NEXT;
    disk.q->desc[d].next = next;
    disk.q->desc[next].address = (uint64_t)data;
    disk.q->desc[next].len = len;
    disk.q->desc[next].flags = (uint16_t)(DESC_NEXT | (write ? 0 : DESC_WRITE));
    disk.q->desc[next].next = last;
    disk.q->desc[last].address = (uint64_t)&result[slot];
    disk.q->desc[last].len = 1;
    disk.q->desc[last].flags = DESC_WRITE;
    add(&disk, d);
}
static void blk_kick(void) { ring_bell(&disk); }
static int blk_reap(void)
{
    uint32_t len;
    int head = take(&disk, &len);

    if (head >= 0 && result[head / 3])
        die("virtio: disk: status %u\n", result[head / 3]);
    return head < 0 ? -1 : head / 3;
}

const struct disk disk_virtio = { "virtio", DEPTH_MAX, blk_start, blk_put, blk_kick, blk_reap };

/* -- Network card (§5.1): a header of zeros and the frame, no offloads ------------------------------------------------------ */

#define ROOM 2048u
#define HEADER 12u
static struct vq rx, tx;
static uint8_t *rx_buf, zeros[HEADER];
static uint16_t tx_next;
static int held = -1; /* the buffer that is with the caller */

static void rx_add(uint16_t i)
{
    rx.q->desc[i].address = (uint64_t)(rx_buf + i * ROOM);
    rx.q->desc[i].len = ROOM;
    rx.q->desc[i].flags = DESC_WRITE;
    add(&rx, i);
}

static bool net_start(uint8_t mac[6])
{
    if (!function_start(0x1041, VERSION_1 | EVENT_IDX | NET_MAC, VECTOR_NET))
        return false;
    for (unsigned i = 0; i < 6; i++)
        mac[i] = config[i];
    trap_handle(VECTOR_NET, on_interrupt);
    queue_start(&rx, 0, true);
    queue_start(&tx, 1, false);
    rx_buf = pages_alloc(QUEUE * ROOM / PAGE);
    for (uint16_t i = 0; i < QUEUE; i++)
        rx_add(i);
    set8(0x14, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    ring_bell(&rx);
    return true;
}

static void net_send(const void *frame, uint32_t len)
{
    uint16_t d = (uint16_t)(tx_next++ * 2 % QUEUE);
    uint32_t used;

    while (take(&tx, &used) >= 0) /* nothing to be done with what is gone */
        ;
    if ((uint16_t)(tx.added - tx.seen) >= QUEUE / 2)
        die("virtio: the ring is full\n");
    tx.q->desc[d].address = (uint64_t)zeros;
    tx.q->desc[d].len = HEADER;
    tx.q->desc[d].flags = DESC_NEXT;
    tx.q->desc[d].next = (uint16_t)(d + 1);
    tx.q->desc[d + 1].address = (uint64_t)frame;
    tx.q->desc[d + 1].len = len;
    tx.q->desc[d + 1].flags = 0;
    add(&tx, d);
}
static void net_kick(void) { ring_bell(&tx); }

static const void *net_receive(uint32_t *len)
{
    if (held >= 0) {
        rx_add((uint16_t)held);
        ring_bell(&rx);
    }
    held = take(&rx, len);
    if (held < 0)
        return NULL;
    *len -= HEADER;
    return rx_buf + (unsigned)held * ROOM + HEADER;
}

const struct net net_virtio = { "virtio", net_start, net_send, net_kick, net_receive };
