/* calls.c - a disk and a network card by Vitro's own calls: requests as one list, rings and a bell for packets. */
#include "gain/pc.h"

/* -- Disk: the list is done when the call returns ---------------------------------------------------------------------- */

static struct vt_block_req req[DEPTH_MAX];
static unsigned slot_of[DEPTH_MAX], nr_put, nr_done, nr_taken;

static bool disk_start(void)
{
    struct vt_block_info info;
    return vt_call2(VT_BLOCK_INFO, 0, &info) == 0;
}
static void disk_put(unsigned slot, bool write, uint64_t sector, void *data, uint32_t len)
{
    slot_of[nr_put] = slot;
    req[nr_put++] = (struct vt_block_req){ .sector = sector, .pa = (uint64_t)data, .len = len,
                                           .op = write ? VT_BLOCK_WRITE : VT_BLOCK_READ };
}
static void disk_kick(void)
{
    if (vt_call3(VT_BLOCK_SUBMIT, 0, req, nr_put) != nr_put)
        die("calls: disk: %d\n", req[0].result);
    nr_done = nr_put;
    nr_put = nr_taken = 0;
}
static int disk_reap(void)
{
    return nr_taken < nr_done ? (int)slot_of[nr_taken++] : -1;
}

const struct disk disk_calls = { "calls", DEPTH_MAX, disk_start, disk_put, disk_kick, disk_reap };

/* -- Network card --------------------------------------------------------------------------------------------------------- */

#define RING 64u
#define ROOM 2048u
enum { PORT_NET = 22 };
static struct vt_net_ring *ring;
static struct vt_net_desc *tx, *rx;
static uint8_t *rx_buf;
static uint32_t seen;
static bool held, masked;

static void on_event(void *arg) { (void)arg; }

static void rx_add(uint32_t i)
{
    rx[i % RING] = (struct vt_net_desc){ .pa = (uint64_t)(rx_buf + i % RING * ROOM), .len = ROOM };
    __atomic_store_n(&ring->rx_head, i + 1, __ATOMIC_RELEASE);
}

static bool net_start(uint8_t mac[6])
{
    struct vt_net_info info;

    if (vt_call2(VT_NET_INFO, 0, &info))
        return false;
    memcpy(mac, info.mac, 6);
    ring = pages_alloc(1);
    tx = (struct vt_net_desc *)(ring + 1);
    rx = tx + RING;
    rx_buf = pages_alloc(RING * ROOM / PAGE);
    ring->size = RING;
    event_handle(PORT_NET, on_event, NULL);
    if (vt_call3(VT_NET_RING, 0, ring, PORT_NET))
        die("calls: no rings\n");
    for (uint32_t i = 0; i < RING; i++)
        rx_add(i);
    return true;
}

static void net_send(const void *frame, uint32_t len)
{
    tx[ring->tx_head % RING] = (struct vt_net_desc){ .pa = (uint64_t)frame, .len = len };
    __atomic_store_n(&ring->tx_head, ring->tx_head + 1, __ATOMIC_RELEASE);
}
static void net_kick(void)
{
    vt_call1(VT_NET_BELL, 0);
}

static const void *net_receive(uint32_t *len)
{
    if (held)
        rx_add(RING + seen++);
    held = seen != __atomic_load_n(&ring->rx_tail, __ATOMIC_ACQUIRE);
    if (held != masked) { /* while packets come, nobody need tell us */
        event_mask(PORT_NET, held);
        masked = held;
        held = seen != __atomic_load_n(&ring->rx_tail, __ATOMIC_ACQUIRE);
    }
    if (!held)
        return NULL;
    if (rx[seen % RING].result < 0)
        die("calls: network: %d\n", rx[seen % RING].result);
    *len = (uint32_t)rx[seen % RING].result;
    return rx_buf + seen % RING * ROOM;
}

const struct net net_calls = { "calls", net_start, net_send, net_kick, net_receive };
