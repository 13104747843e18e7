/*
 * block.c - a disk in two ways: a call that does a list of requests before it returns, and a ring that is worked off while
 * the guest does something else. Start it with a disk of at least 64 KiB: --disk FILE,if=vitro
 */
#include "sdk/sdk.h"

#define SECTOR 512
#define PORT 7
#define RING 16

/* -- A list of requests, done when the call returns ------------------------------------------------------------------- */

static int submit(uint32_t op, uint64_t sector, void *data, uint32_t len)
{
    struct vt_block_req r = { .sector = sector, .pa = (uint64_t)data, .len = len, .op = op };
    int64_t done = vt_call3(VT_BLOCK_SUBMIT, 0, &r, 1);
    return done < 0 ? (int)done : r.result;
}

/* -- The ring ---------------------------------------------------------------------------------------------------------- */

static struct vt_block_ring *ring;
static struct vt_block_req *req;   /* [RING] */
static struct vt_block_done *done; /* [RING] */
static volatile unsigned events;

static void on_done(void *arg)
{
    (void)arg;
    events++;
}

static void ring_setup(void)
{
    ring = pages_alloc((VT_BLOCK_RING_BYTES(RING) + PAGE - 1) / PAGE);
    req = (struct vt_block_req *)(ring + 1);
    done = (struct vt_block_done *)(req + RING);
    ring->size = RING;
    event_handle(PORT, on_done, NULL);
    if (vt_call3(VT_BLOCK_RING, 0, ring, PORT))
        die("no ring\n");
}

/* Put a request in; it is not looked at before the bell. */
static void ring_put(uint64_t id, uint32_t op, uint64_t sector, void *data, uint32_t len)
{
    req[ring->req_head % RING] = (struct vt_block_req){ .id = id, .sector = sector, .pa = (uint64_t)data, .len = len, .op = op };
    __atomic_store_n(&ring->req_head, ring->req_head + 1, __ATOMIC_RELEASE);
}

/* Take a completion out; false: there is none. */
static bool ring_get(struct vt_block_done *d)
{
    if (__atomic_load_n(&ring->done_head, __ATOMIC_ACQUIRE) == ring->done_tail)
        return false;
    *d = done[ring->done_tail % RING];
    __atomic_store_n(&ring->done_tail, ring->done_tail + 1, __ATOMIC_RELEASE);
    return true;
}

int main(void)
{
    struct vt_block_info info;

    if (vt_call2(VT_BLOCK_INFO, 0, &info))
        die("no disk: start me with --disk FILE,if=vitro\n");
    print("A disk of %lu KiB.\n", info.sectors / 2);

    /* One by one, and what is refused */
    uint8_t *a = pages_alloc(16), *b = pages_alloc(16);
    check(submit(VT_BLOCK_READ, 3, a, SECTOR) == 0 && a[0] == 3 && a[511] == 3, "sector 3 is read");
    check(submit(VT_BLOCK_READ, info.sectors, a, SECTOR) == -VT_EINVAL, "there is nothing behind the end");
    check(submit(VT_BLOCK_READ, 0, (void *)0x7f0000000, SECTOR) == -VT_EFAULT, "data goes to RAM only");
    memset(a, 0xe5, 8 * SECTOR);
    check(submit(VT_BLOCK_WRITE, 8, a, 8 * SECTOR) == 0 && submit(VT_BLOCK_FLUSH, 0, NULL, 0) == 0, "4 KiB written, flushed");
    check(submit(VT_BLOCK_READ, 8, b, 8 * SECTOR) == 0 && !memcmp(a, b, 8 * SECTOR), "and read back");

    /* Sixteen at once, and the guest counts meanwhile */
    ring_setup();
    for (unsigned i = 0; i < RING; i++)
        ring_put(100 + i, VT_BLOCK_READ, 32 + i, a + i * SECTOR, SECTOR);
    vt_call1(VT_BLOCK_BELL, 0);
    uint64_t counted = 0, got = 0, sum = 0;
    struct vt_block_done d;
    while (got < RING) {
        counted++;
        while (ring_get(&d)) {
            got++;
            sum += d.id;
            if (d.result)
                die("request %lu: %d\n", d.id, d.result);
        }
        if (counted == 1000)
            wait_until(ring->done_head != ring->done_tail || got == RING); /* nothing else to do: sleep */
    }
    check(sum == RING * 100 + RING * (RING - 1) / 2, "sixteen requests, sixteen answers");
    bool right = true;
    for (unsigned i = 0; i < RING; i++)
        right &= a[i * SECTOR] == 32 + i;
    check(right, "each with its data");

    /* Many, to see what one costs */
    uint64_t t = mono_ns();
    for (unsigned i = 0; i < 1000; i++)
        submit(VT_BLOCK_READ, i % 8 * 8, a, 8 * SECTOR);
    print("4 KiB by a call: %lu ns.\n", (mono_ns() - t) / 1000);
    t = mono_ns();
    for (unsigned n = 0, out = 0; n < 4000;) {
        for (; out < RING && n + out < 4000; out++)
            ring_put(0, VT_BLOCK_READ, out % 8 * 8, a + out % 8 * 8 * SECTOR, 8 * SECTOR);
        vt_call1(VT_BLOCK_BELL, 0);
        wait_until(ring->done_head != ring->done_tail);
        for (; ring_get(&d); n++)
            out--;
    }
    print("4 KiB by the ring, %u at once: %lu ns.\n", RING, (mono_ns() - t) / 4000);
    check(vt_call3(VT_BLOCK_RING, 0, 0, 0) == 0, "the ring is taken down");
    return check_failed();
}
