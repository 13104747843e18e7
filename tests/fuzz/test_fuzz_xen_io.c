/*
 * test_fuzz_xen_io.c - a Xen PV guest that does anything to its disk's and its network card's back ends: grants, rings, indices, events,
 * nodes of xenstore, calls of the grant table; and snapshots of it, as they were made or changed on the way. Built with AddressSanitizer it finds what reaches outside of guest memory.
 *
 * Input: records of 8 bytes { what, five bytes of arguments, two more }. Each input starts with both devices connected.
 */
#include "net/net.h"
#include "paravirt/xen/io.h"
#include "storage/disk.h"
#include "tests/fuzz/fuzz.h"
#include "tests/lib/pvguest.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define DATA PV_AT(PV_DATA)
#define FRAME(n) (0x800u + (n)) /* 0: the disk's ring; 1, 2, 3: the card's; others hold data */

static struct pvguest g;

/* -- A network that sends back what it is sent ---------------------------------------------------------------- */

struct mirror { struct net_backend be; struct net_port port; };

static struct mirror *card; /* NULL: freed */

static int mirror_start(struct net_backend *be, const struct net_port *port)
{
    ((struct mirror *)be)->port = *port;
    return 0;
}
static void mirror_nothing(struct net_backend *be) { (void)be; }
static void mirror_free(struct net_backend *be)
{
    if (card == (struct mirror *)be)
        card = NULL;
    free(be);
}
static void mirror_send(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *iov, unsigned nr)
{
    static u8 frame[NET_FRAME_MAX + 18 * 4096];
    struct mirror *m = (struct mirror *)be;
    size_t len = 0;
    for (unsigned i = 0; i < nr; len += iov[i++].iov_len)
        memcpy(frame + len, iov[i].iov_base, iov[i].iov_len);
    if (net_finish(hdr, frame, len))
        m->port.receive(m->port.card, hdr, frame, len);
}
static const struct net_ops mirror_ops = { "mirror", mirror_start, mirror_nothing, mirror_send, NULL, mirror_nothing,
                                           NULL, mirror_free };

/* -- The front ends -------------------------------------------------------------------------------------------- */

static u8 *page(u64 frame) { return (u8 *)g.ram.host + (frame << PAGE_SHIFT); }

static void grant(u32 ref, u16 dom, u16 flags, u32 frame)
{
    ((struct xen_grant_entry *)(g.xen->own + PAGE_SIZE))[ref] = (struct xen_grant_entry){ flags, dom, frame };
}

static void store(const char *path, const char *value)
{
    char text[200];
    int n = snprintf(text, sizeof(text), "%s%c%s", path, 0, value);

    if (pv_ptr(&g, DATA, true))
        pv_ask(&g, XS_WRITE, 0, text, (size_t)n);
    while (pv_take(&g))
        ;
}

static void call(unsigned nr, u64 op, const void *arg, size_t len)
{
    void *to = pv_ptr(&g, DATA, true);
    if (!to)
        return;
    memcpy(to, arg, len);
    pv_call(&g, nr, op, DATA, 1, 0);
}

static u32 port(void)
{
    call(XEN_event_channel_op, XEN_EVTCHNOP_alloc_unbound, &(struct xen_evtchn_alloc_unbound){ XEN_DOMID_SELF, 0, 0 }, 8);
    return ((const struct xen_evtchn_alloc_unbound *)pv_ptr(&g, DATA, false))->port;
}

static u32 bell[3]; /* the disk, the card, its control ring */

static void connect(void)
{
    char text[16];

    for (unsigned i = 0; i < 56; i++)
        grant(8 + i, 0, XEN_GTF_permit_access, FRAME(i));
    for (unsigned i = 0; i < 4; i++)
        memset(page(FRAME(i)), 0, PAGE_SIZE);
    for (unsigned i = 0; i < 2; i++) {
        bell[i] = port();
        snprintf(text, sizeof(text), "%u", bell[i]);
        store(i ? "device/vif/0/event-channel" : "device/vbd/51712/event-channel", text);
    }
    store("device/vbd/51712/ring-ref", "8");
    store("device/vbd/51712/feature-persistent", "1");
    store("device/vbd/51712/state", "3");
    store("device/vif/0/tx-ring-ref", "9");
    store("device/vif/0/rx-ring-ref", "10");
    store("device/vif/0/request-rx-copy", "1");
    store("device/vif/0/feature-sg", "1");
    store("device/vif/0/feature-gso-tcpv4", "1");
    store("device/vif/0/feature-ipv6-csum-offload", "1");
    bell[2] = port();
    snprintf(text, sizeof(text), "%u", bell[2]);
    store("device/vif/0/event-channel-ctrl", text);
    store("device/vif/0/ctrl-ring-ref", "11");
    store("device/vif/0/state", "4");
}

static void attach_disk(bool persistent)
{
    struct disk *disk;
    int fd = memfd_create("disk", MFD_CLOEXEC);
    char name[16] = "";

    bug_on(fd < 0 || ftruncate(fd, 1 << 20) || raw_disk_open(fd, false, 1 << 20, &disk));
    const struct xen_disk d = { .disk = disk, .queues = 2, .threads = true, .persistent = persistent };
    bug_on(xen_disk_attach(g.xen, &d, name));
}

static void attach_card(void)
{
    char name[16] = "";

    card = calloc(1, sizeof(*card));
    bug_on(!card);
    card->be = (struct net_backend){ &mirror_ops, 7, 7, 1500 };
    bug_on(xen_net_attach(g.xen, &card->be, (const u8[6]){ 2, 0, 0, 0, 0, 1 }, 2, name));
}

static void make(bool persistent)
{
    pvguest_make(&g, "");
    attach_disk(persistent);
    attach_card();
    connect();
}

/* -- Snapshots: another guest goes on with what this one was; or it was changed on the way, and is refused or not ---------------- */

static void same_again(const struct state_set *was, const struct frame *frame)
{
    struct state_set is = { 0 };

    xen_save(g.xen, &is);
    bug_on(is.failed || is.nr != was->nr);
    for (unsigned i = 0; i < is.nr; i++) {
        const struct state_section *a = &was->section[i], *b = &is.section[i];
        bug_on(strcmp(a->name, b->name) || a->len != b->len || (strcmp(a->name, "xen.shared") && memcmp(a->data, b->data, a->len)));
    }
    for (u64 i = 0; i < g.xen->nr_frames; i++)
        bug_on(frame[i].count != g.xen->frame[i].count || (frame[i].count && frame[i].type != g.xen->frame[i].type) ||
               frame[i].pinned != g.xen->frame[i].pinned);
    state_set_free(&is);
}

static void snapshot(const u8 *r, bool persistent)
{
    static u8 memory[PV_SIZE];
    static struct frame frame[PV_SIZE >> PAGE_SHIFT];
    const struct vitro_sregs sregs = g.sregs;
    struct state_set set = { 0 };
    char err[300] = "";
    bool changed = r[2] & 1;

    xen_io_pause(g.xen, true);
    bool has_disk = xen_attached(g.xen, "xvda"), has_card = xen_attached(g.xen, "vif0");
    xen_save(g.xen, &set);
    bug_on(set.failed);
    memcpy(memory, g.ram.host, PV_SIZE);
    memcpy(frame, g.xen->frame, sizeof(frame));
    xen_io_pause(g.xen, false);
    pvguest_free(&g);

    pvguest_bare(&g, 1);
    if (has_disk)
        attach_disk(persistent);
    if (has_card)
        attach_card();
    memcpy(g.ram.host, memory, PV_SIZE);
    g.sregs = sregs;
    g.cr3 = sregs.cr3;
    struct state_section *s = &set.section[r[3] % set.nr];
    if (changed && s->len)
        ((u8 *)s->data)[(r[4] | r[5] << 8) % s->len] ^= r[6] | 1;
    if (changed && r[7] & 1 && s->len)
        s->len--;
    int bad = xen_load(g.xen, &set, err, sizeof(err));
    bug_on(bad && (!changed || !err[0]));
    if (!bad && !changed)
        same_again(&set, frame);
    state_set_free(&set);
    if (!bad) {
        xen_io_pause(g.xen, false);
        return;
    }
    pvguest_free(&g);
    make(persistent);
}

/* A request of one of the four rings, in place. */
static void ask_ring(const u8 *r)
{
    struct xen_ring_header *h = (struct xen_ring_header *)page(FRAME(r[1] % 4));
    const unsigned size[4] = { 112, 12, 8, 16 }, slots[4] = { 32, 256, 256, 128 };
    u8 *at = (u8 *)(h + 1) + (h->req_prod % slots[r[1] % 4]) * size[r[1] % 4];
    u32 ref = 8 + r[2] % 64;

    switch (r[1] % 4) {
    case 0: {
        struct xen_blkif_request q = { .operation = r[3] % 8, .nr_segments = r[4] % 14, .sector = r[5] * 16u, .id = r[6] };
        if (q.operation == XEN_BLKIF_INDIRECT) {
            q.indirect_op = r[4] % 4;
            q.nr_indirect = r[6] * 2;
            for (unsigned i = 0; i < 8; i++)
                q.u.indirect.gref[i] = ref + i;
        } else if (q.operation != XEN_BLKIF_DISCARD) {
            for (unsigned i = 0; i < XEN_BLKIF_SEGMENTS; i++)
                q.u.seg[i] = (struct xen_blkif_segment){ ref + (r[7] & 1 ? i : 0), r[7] >> 1 & 3, r[7] >> 3 & 15, 0 };
        } else {
            q.u.nr_sectors = (u64)r[6] << (r[7] & 63);
        }
        memcpy(at, &q, sizeof(q));
        break;
    }
    case 1: {
        const struct xen_netif_tx_request q = { ref, (u16)(r[3] * 16), r[4], r[5], (u16)(r[6] << (r[7] & 15)) };
        memcpy(at, &q, sizeof(q));
        if (r[4] & 32) {
            const struct xen_netif_extra e = { .type = r[5] & 3, .flags = r[6] & 1, .size = r[7], .gso_type = r[6] & 3 };
            memcpy(at, &e, sizeof(e));
        }
        break;
    }
    case 3: {
        const struct xen_netif_ctrl_request q = { r[2], r[3] & 15, { r[4] & 8 ? ref : r[4] & 1u, r[5] & 127, r[6] & 15 } };
        memcpy(at, &q, sizeof(q));
        break;
    }
    default:
        memcpy(at, &(struct xen_netif_rx_request){ r[3], 0, ref }, 8);
    }
    h->req_prod++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const node[] = {
        "device/vbd/51712/state", "device/vif/0/state", "device/vbd/51712/ring-ref", "device/vif/0/rx-ring-ref",
        "device/vbd/51712/event-channel", "device/vif/0/event-channel-rx", "device/vbd/51712/multi-queue-num-queues",
        "device/vif/0/multi-queue-num-queues", "device/vbd/51712/ring-page-order", "device/vif/0/feature-sg",
        "device/vbd/51712/protocol", "device/vif/0/queue-1/tx-ring-ref", "device/vbd/51712/queue-0/ring-ref",
        "control/shutdown", "device/vif/0/event-channel-tx", "device/vbd/51712",
    };

    make(size & 1);
    for (size_t at = 0; at + 8 <= size; at += 8) {
        const u8 *r = data + at;
        char text[16];
        switch (r[0] & 15) {
        case 0: case 1: case 2: case 3: ask_ring(r); break;
        case 4: grant(8 + r[1] % 64, r[2] & 3 ? 0 : r[2], (u16)(1u << (r[3] & 7) | (r[3] >> 3)), r[4] & 7 ? FRAME(r[5] % 64) : (u32)(g.sregs.cr3 >> 12) + r[5]); break;
        case 5:
            snprintf(text, sizeof(text), r[2] & 1 ? "%u" : "x%u", r[3]);
            store(node[r[1] % ARRAY_SIZE(node)], r[2] & 2 ? text + (r[2] & 1 ? 0 : 1) : text);
            break;
        case 6: ((u32 *)page(FRAME(r[1] % 4)))[r[2] & 3] += r[3] & 7 ? r[4] & 7 : r[4] * 0x1000193u; break;
        case 7: memcpy(page(FRAME(r[1] % 64)) + r[2] * 8, r, 8); break;
        case 8: call(XEN_grant_table_op, r[1] % 12, data + at, MIN(size - at, 40u)); break;
        case 9: {
            struct xen_gnttab_copy c = { { 8 + r[1] % 64, DOM_GUEST, (u16)(r[2] * 16), 0 }, { FRAME(r[3] % 64), DOM_GUEST, r[4], 0 },
                                         (u16)(r[5] * 17), r[6] & 3, 0, 0 };
            call(XEN_grant_table_op, XEN_GNTTABOP_copy, &c, sizeof(c));
            break;
        }
        case 10:
            if (card) {
                static u8 frame[70000];
                const struct net_hdr h = { .flags = r[1] & 3, .gso_type = r[2] & 7, .gso_size = 1448 };
                card->port.receive(card->port.card, &h, frame, r[3] * 257u % sizeof(frame));
            }
            break;
        case 11:
            if (!(r[1] & 63)) /* seldom: it does not come back */
                xen_detach(g.xen, r[2] & 1 ? "xvda" : "vif0", r[2] & 2);
            else if (!(r[1] & 60))
                connect();
            break;
        case 13:
            if (!(r[1] & 15))
                snapshot(r, size & 1);
            break;
        case 12: call(XEN_event_channel_op, XEN_EVTCHNOP_close, &bell[r[1] % 3], 4); break;
        default: call(XEN_event_channel_op, XEN_EVTCHNOP_send, &bell[r[0] % 3], 4);
        }
    }
    pvguest_free(&g);
    return 0;
}

FUZZ_MAIN("fuzz/xen_io", 600, 1200)
