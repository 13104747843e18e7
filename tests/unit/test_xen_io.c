/*
 * Split drivers (docs/xen.md) from a guest's side: grants, and the back ends of its disks and network cards.
 */
#include "tests/lib/check.h"
#include "tests/lib/pvguest.h"
#include "net/net.h"
#include "paravirt/xen/nethash.h"
#include "storage/disk.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define DATA PV_AT(PV_DATA)
#define PAGE(n) ((PV_DATA >> PAGE_SHIFT) + 1 + (n)) /* frames of the test's own: six */

static struct pvguest g;

static void put(u64 la, const void *bytes, size_t len) { memcpy(pv_ptr(&g, la, false), bytes, len); }

/* -- Grants ------------------------------------------------------------------------------------------------- */

static struct xen_grant_entry *table(void) { return (struct xen_grant_entry *)(g.xen->own + PAGE_SIZE); }

static void grant(u32 ref, u16 dom, u16 flags, u64 frame)
{
    table()[ref] = (struct xen_grant_entry){ .flags = flags, .domid = dom, .frame = (u32)frame };
}

/* A list of one; what came back is at DATA. */
static s64 gnttab(unsigned op, const void *arg, size_t len)
{
    put(DATA, arg, len);
    return pv_call(&g, XEN_grant_table_op, op, DATA, 1, 0);
}

static s16 map(u32 ref, u16 dom, u32 flags, u64 at, u32 *handle)
{
    CHECK(!gnttab(XEN_GNTTABOP_map_grant_ref, &(struct xen_gnttab_map){ .host_addr = at, .flags = flags, .ref = ref, .dom = dom },
                  sizeof(struct xen_gnttab_map)));
    const struct xen_gnttab_map *m = pv_ptr(&g, DATA, false);
    *handle = m->handle;
    return m->status;
}

static s16 unmap(u32 handle, u64 at)
{
    CHECK(!gnttab(XEN_GNTTABOP_unmap_grant_ref, &(struct xen_gnttab_unmap){ .host_addr = at, .handle = handle },
                  sizeof(struct xen_gnttab_unmap)));
    return ((const struct xen_gnttab_unmap *)pv_ptr(&g, DATA, false))->status;
}

static s16 copied(struct xen_gnttab_copy c)
{
    CHECK(!gnttab(XEN_GNTTABOP_copy, &c, sizeof(c)));
    return ((const struct xen_gnttab_copy *)pv_ptr(&g, DATA, false))->status;
}

static void test_table(void)
{
    pvguest_make(&g, "");
    CHECK(!gnttab(XEN_GNTTABOP_set_version, &(u32){ 1 }, 4) && gnttab(XEN_GNTTABOP_set_version, &(u32){ 2 }, 4) == -XEN_ENOSYS &&
          gnttab(XEN_GNTTABOP_set_version, &(u32){ 3 }, 4) == -XEN_EINVAL);
    CHECK(!gnttab(XEN_GNTTABOP_query_size, &(struct xen_gnttab_query){ .dom = XEN_DOMID_SELF }, 16));
    const struct xen_gnttab_query *q = pv_ptr(&g, DATA, false);
    CHECK(!q->status && q->nr_frames == 1 && q->max_nr_frames == GRANT_FRAMES);
    CHECK(!gnttab(XEN_GNTTABOP_query_size, &(struct xen_gnttab_query){ .dom = 7 }, 16) && q->status == XEN_GNTST_bad_domain);
    struct xen_gnttab_setup s = { .dom = XEN_DOMID_SELF, .nr_frames = 4, .frame_list = DATA + 64 };
    const struct xen_gnttab_setup *done = pv_ptr(&g, DATA, false);
    CHECK(!gnttab(XEN_GNTTABOP_setup_table, &s, sizeof(s)) && !done->status);
    const u64 *list = pv_ptr(&g, DATA + 64, false);
    for (unsigned i = 0; i < 4; i++) /* the guest may map them */
        CHECK(!pv_call(&g, XEN_update_va_mapping, PV_AT(PAGE(0) << PAGE_SHIFT), list[i] << PAGE_SHIFT | PTE_P | PTE_W, XEN_UVMF_INVLPG, 0) &&
              pv_ptr(&g, PV_AT(PAGE(0) << PAGE_SHIFT), true) == (u8 *)table() + i * PAGE_SIZE);
    s.nr_frames = GRANT_FRAMES + 1;
    CHECK(!gnttab(XEN_GNTTABOP_setup_table, &s, sizeof(s)) && done->status == XEN_GNTST_general_error);
    s.nr_frames = 1, s.dom = 5;
    CHECK(!gnttab(XEN_GNTTABOP_setup_table, &s, sizeof(s)) && done->status == XEN_GNTST_bad_domain);
    s.dom = XEN_DOMID_SELF, s.frame_list = 0x1000;
    CHECK(gnttab(XEN_GNTTABOP_setup_table, &s, sizeof(s)) == -XEN_EFAULT);
    CHECK(gnttab(99, &s, 8) == -XEN_ENOSYS && pv_call(&g, XEN_grant_table_op, XEN_GNTTABOP_copy, DATA, 1u << 20, 0) == -XEN_E2BIG);
    CHECK(pv_call(&g, XEN_grant_table_op, XEN_GNTTABOP_setup_table, DATA, 2, 0) == -XEN_EINVAL);
    CHECK(pv_call(&g, XEN_grant_table_op, XEN_GNTTABOP_copy, 0x1000, 1, 0) == -XEN_EFAULT);
    CHECK(!gnttab(XEN_GNTTABOP_transfer, &(struct xen_gnttab_transfer){ .mfn = PAGE(1) }, 24) &&
          ((const struct xen_gnttab_transfer *)done)->status == XEN_GNTST_bad_domain);
    pvguest_free(&g);
}

/* As a back end of ours uses them. */
static void test_use(void)
{
    u64 frame = 0;

    pvguest_make(&g, "");
    struct xen *x = g.xen;
    const u32 writes = x->frame[PAGE(1)].count;
    grant(8, 0, XEN_GTF_permit_access, PAGE(1));
    CHECK(grant_get(x, 8, false, &frame) == XEN_GNTST_okay && frame == PAGE(1) && table()[8].flags == (XEN_GTF_permit_access | XEN_GTF_reading));
    CHECK(grant_get(x, 8, true, &frame) == XEN_GNTST_okay && table()[8].flags == (XEN_GTF_permit_access | XEN_GTF_reading | XEN_GTF_writing));
    CHECK(x->frame[PAGE(1)].count == writes + 1);
    /* What the guest writes meanwhile is its own business. */
    table()[8].frame = 0xffffffff;
    grant_put(x, 8, true, PAGE(1), true);
    CHECK(table()[8].flags == (XEN_GTF_permit_access | XEN_GTF_reading));
    grant_put(x, 8, false, PAGE(1), false);
    CHECK(table()[8].flags == XEN_GTF_permit_access && x->frame[PAGE(1)].count == writes);
    CHECK(grant_get(x, 8, false, &frame) == XEN_GNTST_bad_page && table()[8].flags == XEN_GTF_permit_access);
    grant(9, 0, XEN_GTF_permit_access | XEN_GTF_readonly, PAGE(1));
    CHECK(grant_get(x, 9, true, &frame) == XEN_GNTST_permission_denied && grant_get(x, 9, false, &frame) == XEN_GNTST_okay);
    grant_put(x, 9, false, frame, false);
    grant(10, 5, XEN_GTF_permit_access, PAGE(1));
    CHECK(grant_get(x, 10, false, &frame) == XEN_GNTST_permission_denied);
    grant(11, 0, XEN_GTF_accept_transfer, PAGE(1));
    CHECK(grant_get(x, 11, false, &frame) == XEN_GNTST_bad_gntref && grant_get(x, 12, false, &frame) == XEN_GNTST_bad_gntref);
    CHECK(grant_get(x, 512, false, &frame) == XEN_GNTST_bad_gntref && grant_get(x, ~0u, false, &frame) == XEN_GNTST_bad_gntref);
    /* A page table can be read, not written. */
    u64 l4 = g.sregs.cr3 >> PAGE_SHIFT;
    grant(13, 0, XEN_GTF_permit_access, l4);
    CHECK(grant_get(x, 13, true, &frame) == XEN_GNTST_bad_page && table()[13].flags == XEN_GTF_permit_access);
    CHECK(grant_get(x, 13, false, &frame) == XEN_GNTST_okay && frame == l4);
    grant_put(x, 13, false, l4, false);
    grant(14, 0, XEN_GTF_permit_access, g.xen->own_gpa >> PAGE_SHIFT);
    CHECK(grant_get(x, 14, false, &frame) == XEN_GNTST_bad_page);
    pvguest_free(&g);
}

/* As a guest uses its own. */
static void test_calls(void)
{
    const u64 va = PV_AT(PAGE(4) << PAGE_SHIFT);
    u32 h, h2;

    pvguest_make(&g, "");
    grant(8, DOM_GUEST, XEN_GTF_permit_access, PAGE(1));
    grant(9, DOM_GUEST, XEN_GTF_permit_access | XEN_GTF_readonly, PAGE(2));
    grant(10, 0, XEN_GTF_permit_access, PAGE(1));
    CHECK(map(8, DOM_GUEST, XEN_GNTMAP_host_map, va, &h) == XEN_GNTST_okay);
    CHECK(pv_ptr(&g, va, true) == grant_page(g.xen, PAGE(1)) && table()[8].flags & XEN_GTF_writing);
    CHECK(unmap(h, va + PAGE_SIZE) == XEN_GNTST_bad_virt_addr && unmap(h + 1, va) == XEN_GNTST_bad_handle && unmap(~0u, va) == XEN_GNTST_bad_handle);
    CHECK(unmap(h, va) == XEN_GNTST_okay && !pv_ptr(&g, va, false) && table()[8].flags == XEN_GTF_permit_access);
    CHECK(unmap(h, va) == XEN_GNTST_bad_handle);
    CHECK(map(9, XEN_DOMID_SELF, XEN_GNTMAP_host_map, va, &h) == XEN_GNTST_permission_denied);
    CHECK(map(9, XEN_DOMID_SELF, XEN_GNTMAP_host_map | XEN_GNTMAP_readonly, va, &h) == XEN_GNTST_okay && !pv_ptr(&g, va, true) && pv_ptr(&g, va, false));
    CHECK(map(9, XEN_DOMID_SELF, XEN_GNTMAP_device_map | XEN_GNTMAP_readonly, 0, &h2) == XEN_GNTST_okay && h2 != h);
    CHECK(unmap(h2, 0) == XEN_GNTST_okay && unmap(h, va) == XEN_GNTST_okay && !(table()[9].flags & XEN_GTF_reading));
    CHECK(map(10, DOM_GUEST, XEN_GNTMAP_host_map, va, &h) == XEN_GNTST_permission_denied);
    CHECK(map(8, 3, XEN_GNTMAP_host_map, va, &h) == XEN_GNTST_bad_domain && map(77777, DOM_GUEST, XEN_GNTMAP_host_map, va, &h) == XEN_GNTST_bad_gntref);
    CHECK(map(8, DOM_GUEST, XEN_GNTMAP_host_map, 0x1000, &h) == XEN_GNTST_bad_virt_addr);
    CHECK(map(8, DOM_GUEST, XEN_GNTMAP_host_map | XEN_GNTMAP_contains_pte, PAGE(1) << PAGE_SHIFT, &h) == XEN_GNTST_bad_virt_addr);
    CHECK(map(8, DOM_GUEST, XEN_GNTMAP_host_map | XEN_GNTMAP_contains_pte, 1ull << 50, &h) == XEN_GNTST_bad_virt_addr);
    CHECK(table()[8].flags == XEN_GTF_permit_access);
    /* Copies, by frame and by grant. */
    memset(grant_page(g.xen, PAGE(1)), 0x11, PAGE_SIZE);
    memset(grant_page(g.xen, PAGE(2)), 0x22, PAGE_SIZE);
    struct xen_gnttab_copy c = { .source = { 9, DOM_GUEST, 16, 0 }, .dest = { PAGE(1), XEN_DOMID_SELF, 4000, 0 }, .len = 96,
                                 .flags = XEN_GNTCOPY_source_gref };
    CHECK(copied(c) == XEN_GNTST_okay && grant_page(g.xen, PAGE(1))[4000] == 0x22 && grant_page(g.xen, PAGE(1))[3999] == 0x11);
    c.len = 97;
    CHECK(copied(c) == XEN_GNTST_bad_copy_arg);
    c = (struct xen_gnttab_copy){ .source = { PAGE(1), DOM_GUEST, 0, 0 }, .dest = { 9, DOM_GUEST, 0, 0 }, .len = 1, .flags = XEN_GNTCOPY_dest_gref };
    CHECK(copied(c) == XEN_GNTST_permission_denied && grant_page(g.xen, PAGE(2))[0] == 0x22);
    c.dest = (struct xen_gnttab_copy_side){ g.sregs.cr3 >> PAGE_SHIFT, DOM_GUEST, 0, 0 };
    c.flags = 0;
    CHECK(copied(c) == XEN_GNTST_bad_page);
    c.dest.domid = 0;
    CHECK(copied(c) == XEN_GNTST_bad_domain);
    c.source.frame = ~0ull;
    CHECK(copied(c) == XEN_GNTST_bad_page);
    /* Not without end. */
    unsigned n = 0;
    while (map(8, DOM_GUEST, XEN_GNTMAP_device_map, 0, &h) == XEN_GNTST_okay && n < 100000)
        n++;
    CHECK(n == 4096);
    pvguest_free(&g);
}

/* -- A front end: its nodes, its ring, its grants ------------------------------------------------------------ */

/* Frames that nothing maps: rings at first, then data. */
#define FRAME(n) (0x800u + (n))
#define DISK_MIB 4u
#define DIR "device/vbd/51712"
#define BACK "/local/domain/0/backend/vbd/1/51712"

static u8 *page(u64 frame) { return (u8 *)g.ram.host + (frame << PAGE_SHIFT); }

static const char *store(u32 type, const char *path, const char *fmt, ...)
{
    char text[300];
    va_list ap;
    int n = snprintf(text, sizeof(text), "%s", path) + 1;

    va_start(ap, fmt);
    n += vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
    va_end(ap);
    return pv_ask(&g, type, 0, text, (size_t)n);
}
static void say(const char *node, const char *value)
{
    char path[100];
    snprintf(path, sizeof(path), DIR "/%s", node);
    const char *r = store(XS_WRITE, path, "%s", value);
    CHECK_MSG(!strcmp(r, "OK"), "%s: %s", path, r);
}
static void say_number(const char *node, u64 value)
{
    char text[24];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    say(node, text);
}

/* Does a node become this? Within a time that no host is too slow for. */
static bool becomes(const char *path, const char *value)
{
    const char *r = "";
    for (unsigned i = 0; i < 30000; i++) {
        r = store(XS_READ, path, "%s", "");
        if (!strcmp(r, value))
            return true;
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
    fprintf(stderr, "%s: %s\n", path, r);
    return false;
}

static u32 offer_port(u16 remote)
{
    put(DATA, &(struct xen_evtchn_alloc_unbound){ XEN_DOMID_SELF, remote, 0 }, 8);
    CHECK(!pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_alloc_unbound, DATA, 0, 0));
    return ((const struct xen_evtchn_alloc_unbound *)pv_ptr(&g, DATA, false))->port;
}
static void ring_bell(u32 port)
{
    put(DATA, &port, 4);
    CHECK(!pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_send, DATA, 0, 0));
}

static int disk_fd;

static void disk_make(bool readonly, unsigned queues, bool persistent)
{
    struct disk *disk;
    char name[16] = "";

    pvguest_make(&g, "");
    put(DATA, &(struct xen_gnttab_setup){ .dom = XEN_DOMID_SELF, .nr_frames = 4, .frame_list = DATA + 64 }, sizeof(struct xen_gnttab_setup));
    CHECK(!pv_call(&g, XEN_grant_table_op, XEN_GNTTABOP_setup_table, DATA, 1, 0));
    disk_fd = memfd_create("disk", MFD_CLOEXEC);
    bug_on(disk_fd < 0 || ftruncate(disk_fd, DISK_MIB << 20));
    for (unsigned i = 0; i < DISK_MIB << 11; i++) {
        u32 sector[128];
        for (unsigned k = 0; k < 128; k++)
            sector[k] = i * 128 + k;
        bug_on(pwrite(disk_fd, sector, 512, i * 512) != 512);
    }
    bug_on(raw_disk_open(dup(disk_fd), readonly, DISK_MIB << 20, &disk));
    const struct xen_disk d = { .disk = disk, .queues = queues, .persistent = persistent };
    CHECK(!xen_disk_attach(g.xen, &d, name) && !strcmp(name, "xvda") && xen_attached(g.xen, name));
}

struct front {
    u32 port, order;
    struct xen_ring_header *ring; /* of one page */
};
static struct front f;

/* Its one ring, of 1 << order pages with grants 8, 9, ... */
static void connect_disk(unsigned order)
{
    char name[24];

    f = (struct front){ .port = offer_port(0), .order = order, .ring = (struct xen_ring_header *)page(FRAME(0)) };
    for (unsigned i = 0; i < 1u << order; i++) {
        memset(page(FRAME(i)), 0, PAGE_SIZE);
        grant(8 + i, 0, XEN_GTF_permit_access, FRAME(i));
        snprintf(name, sizeof(name), order ? "ring-ref%u" : "ring-ref", i);
        say_number(name, 8 + i);
    }
    f.ring->req_event = f.ring->rsp_event = 1;
    if (order)
        say_number("ring-page-order", order);
    say_number("event-channel", f.port);
    say("protocol", "x86_64-abi");
    say_number("state", XENBUS_INITIALISED);
    CHECK(becomes(BACK "/state", "4"));
    say_number("state", XENBUS_CONNECTED);
}

/* Entry i of the ring, which may lie across two pages. */
static void ring_copy(u32 i, void *buf, size_t len, bool write)
{
    size_t at = 64 + (i & ((32u << f.order) - 1)) * 112;

    for (size_t k = 0; k < len; k++, at++) {
        u8 *p = page(FRAME(at >> PAGE_SHIFT)) + (at & 4095);
        if (write)
            *p = ((u8 *)buf)[k];
        else
            ((u8 *)buf)[k] = *p;
    }
}

/* One request, and its answer's status. */
static int ask_disk(const struct xen_blkif_request *r)
{
    struct xen_blkif_response rsp;
    u32 was = f.ring->rsp_prod;

    ring_copy(f.ring->req_prod, (void *)r, sizeof(*r), true);
    f.ring->req_prod++;
    ring_bell(f.port);
    for (unsigned i = 0; i < 30000 && __atomic_load_n(&f.ring->rsp_prod, __ATOMIC_SEQ_CST) == was; i++)
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    CHECK(f.ring->rsp_prod == was + 1);
    f.ring->rsp_event = was + 2;
    ring_copy(was, &rsp, sizeof(rsp), false);
    CHECK(rsp.id == r->id && rsp.operation == (r->operation == XEN_BLKIF_INDIRECT ? r->indirect_op : r->operation));
    return rsp.status;
}

static struct xen_blkif_request asked(u8 op, u64 sector, u32 ref, u8 first, u8 last)
{
    return (struct xen_blkif_request){ .operation = op, .nr_segments = 1, .id = 0x1234567800000000 + sector, .sector = sector,
                                       .u.seg = { { ref, first, last, 0 } } };
}
static bool holds(const u8 *p, u32 sector)
{
    u32 v[128];
    memcpy(v, p, 512);
    return v[0] == sector * 128 && v[127] == sector * 128 + 127;
}

static void test_disk(void)
{
    struct xen_blkif_request r;

    disk_make(false, 1, false);
    CHECK(becomes(BACK "/state", "2") && becomes(BACK "/sectors", "8192") && becomes(BACK "/feature-persistent", "0"));
    CHECK(becomes(DIR "/backend", BACK) && becomes(DIR "/virtual-device", "51712"));
    CHECK(!strcmp(store(XS_WRITE, BACK "/state", "4"), "EACCES"));
    connect_disk(0);
    CHECK(table()[8].flags & XEN_GTF_writing);
    for (unsigned i = 0; i < 40; i++)
        grant(20 + i, 0, XEN_GTF_permit_access, FRAME(20 + i));
    grant(70, 0, XEN_GTF_permit_access | XEN_GTF_readonly, FRAME(70));
    memset(page(FRAME(20)), 0xee, PAGE_SIZE);
    r = asked(XEN_BLKIF_READ, 100, 20, 2, 4);
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY && holds(page(FRAME(20)) + 1024, 100) && holds(page(FRAME(20)) + 2048, 102));
    CHECK(page(FRAME(20))[1023] == 0xee && page(FRAME(20))[2560] == 0xee && table()[20].flags == XEN_GTF_permit_access);
    /* Several pages, across which the data goes on. */
    r.nr_segments = 3;
    r.u.seg[0] = (struct xen_blkif_segment){ 21, 7, 7, 0 };
    r.u.seg[1] = (struct xen_blkif_segment){ 22, 0, 7, 0 };
    r.u.seg[2] = (struct xen_blkif_segment){ 24, 0, 0, 0 };
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY && holds(page(FRAME(21)) + 3584, 100) && holds(page(FRAME(22)), 101) && holds(page(FRAME(24)), 109));
    r.operation = XEN_BLKIF_WRITE, r.sector = 200;
    r.u.seg[2].gref = 70; /* to read is enough, to write */
    memset(page(FRAME(70)), 0x77, PAGE_SIZE);
    u8 got[512];
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY && pread(disk_fd, got, 512, 209 * 512) == 512 && got[0] == 0x77);
    CHECK(pread(disk_fd, got, 512, 201 * 512) == 512 && holds(got, 101));
    /* What may not be: nothing is done. */
    struct { struct xen_blkif_request r; int status; } bad[] = {
        { asked(XEN_BLKIF_READ, 8191, 20, 0, 1), XEN_BLKIF_ERROR }, { asked(XEN_BLKIF_READ, ~0ull, 20, 0, 0), XEN_BLKIF_ERROR },
        { asked(XEN_BLKIF_READ, 0, 20, 3, 2), XEN_BLKIF_ERROR }, { asked(XEN_BLKIF_READ, 0, 20, 0, 8), XEN_BLKIF_ERROR },
        { asked(XEN_BLKIF_READ, 0, 19, 0, 0), XEN_BLKIF_ERROR }, { asked(XEN_BLKIF_READ, 0, 0xffffffff, 0, 0), XEN_BLKIF_ERROR },
        { asked(XEN_BLKIF_READ, 0, 70, 0, 0), XEN_BLKIF_ERROR }, { asked(XEN_BLKIF_WRITE_BARRIER, 0, 20, 0, 0), XEN_BLKIF_EOPNOTSUPP },
        { asked(99, 0, 20, 0, 0), XEN_BLKIF_EOPNOTSUPP },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        CHECK_MSG(ask_disk(&bad[i].r) == bad[i].status && table()[20].flags == XEN_GTF_permit_access, "bad %u", i);
    r = asked(XEN_BLKIF_READ, 0, 20, 0, 0);
    r.nr_segments = 12;
    CHECK(ask_disk(&r) == XEN_BLKIF_ERROR);
    r.nr_segments = 0;
    CHECK(ask_disk(&r) == XEN_BLKIF_ERROR);
    /* Flush alone, and before data; discard. */
    r.operation = XEN_BLKIF_FLUSH;
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY);
    r.sector = ~0ull; /* nothing is there to be written: Linux leaves it at -1 */
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY);
    r.nr_segments = 1, r.sector = 300;
    memset(page(FRAME(20)), 0x55, 512);
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY && pread(disk_fd, got, 512, 300 * 512) == 512 && got[511] == 0x55);
    r = (struct xen_blkif_request){ .operation = XEN_BLKIF_DISCARD, .sector = 4096, .u.nr_sectors = 1024 };
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY && pread(disk_fd, got, 512, 4096 * 512) == 512 && got[0] == 0 && got[511] == 0);
    r.u.nr_sectors = ~0ull;
    CHECK(ask_disk(&r) == XEN_BLKIF_ERROR);
    r.u.nr_sectors = 1, r.flag = 1;
    CHECK(ask_disk(&r) == XEN_BLKIF_EOPNOTSUPP);
    /* Indirect: 33 segments in a page of their own. */
    struct xen_blkif_segment *seg = (struct xen_blkif_segment *)page(FRAME(71));
    for (unsigned i = 0; i < 33; i++)
        seg[i] = (struct xen_blkif_segment){ 20 + i, (u8)(i & 1), 7, 0 };
    grant(71, 0, XEN_GTF_permit_access | XEN_GTF_readonly, FRAME(71));
    r = (struct xen_blkif_request){ .operation = XEN_BLKIF_INDIRECT, .indirect_op = XEN_BLKIF_READ, .nr_indirect = 33, .id = 9, .sector = 1000,
                                    .u.indirect = { .gref = { 71 } } };
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY && holds(page(FRAME(20)), 1000) && holds(page(FRAME(21)) + 512, 1008) && holds(page(FRAME(52)), 1240));
    CHECK(table()[71].flags == (XEN_GTF_permit_access | XEN_GTF_readonly));
    seg[32].gref = 3;
    CHECK(ask_disk(&r) == XEN_BLKIF_ERROR && table()[20].flags == XEN_GTF_permit_access);
    r.nr_indirect = 257;
    CHECK(ask_disk(&r) == XEN_BLKIF_ERROR);
    r.nr_indirect = 1, r.u.indirect.gref[0] = 5;
    CHECK(ask_disk(&r) == XEN_BLKIF_ERROR);
    r.u.indirect.gref[0] = 71, r.indirect_op = XEN_BLKIF_INDIRECT;
    CHECK(ask_disk(&r) == XEN_BLKIF_EOPNOTSUPP);
    /* Closed, and begun anew. */
    say_number("state", XENBUS_CLOSING);
    CHECK(becomes(BACK "/state", "5"));
    say_number("state", XENBUS_CLOSED);
    CHECK(becomes(BACK "/state", "6") && table()[8].flags == XEN_GTF_permit_access);
    say_number("state", XENBUS_INITIALISING);
    CHECK(becomes(BACK "/state", "2"));
    connect_disk(2);
    for (unsigned i = 0; i < 150; i++) { /* round the ring, across its pages */
        r = asked(XEN_BLKIF_READ, i, 20, 0, 0);
        CHECK(ask_disk(&r) == XEN_BLKIF_OKAY && holds(page(FRAME(20)), i));
    }
    /* More requests than there can be: none is taken any more. */
    f.ring->req_prod += 1000;
    u32 was = f.ring->rsp_prod;
    ring_bell(f.port);
    CHECK(f.ring->rsp_prod == was);
    /* Taken away. */
    CHECK(!xen_detach(g.xen, "xvda", false) && xen_detach(g.xen, "xvdb", false) == -ENOENT && becomes(BACK "/state", "5"));
    say_number("state", XENBUS_CLOSED);
    CHECK(becomes(DIR, "ENOENT") && becomes(BACK, "ENOENT") && !xen_attached(g.xen, "xvda") && table()[8].flags == XEN_GTF_permit_access);
    close(disk_fd);
    pvguest_free(&g);
    /* Taken away though the guest does not let go: what it granted is not in use any more. */
    disk_make(false, 1, false);
    connect_disk(0);
    CHECK(!xen_detach(g.xen, "xvda", false) && becomes(BACK "/state", "5") && xen_attached(g.xen, "xvda"));
    CHECK(!xen_detach(g.xen, "xvda", true) && becomes(BACK, "ENOENT") && becomes(DIR, "ENOENT") && !xen_attached(g.xen, "xvda"));
    CHECK(table()[8].flags == XEN_GTF_permit_access && xen_detach(g.xen, "xvda", true) == -ENOENT);
    ring_bell(f.port);
    close(disk_fd);
    pvguest_free(&g);
}

/* A read is put on the ring. Would a front end ring for it? */
static bool put_read(u64 sector)
{
    struct xen_blkif_request r = asked(XEN_BLKIF_READ, sector, 20, 0, 0);
    u32 was = f.ring->req_prod;

    ring_copy(was, &r, sizeof(r), true);
    f.ring->req_prod++;
    return f.ring->req_prod - f.ring->req_event < f.ring->req_prod - was;
}
static bool answered(u32 n)
{
    for (unsigned i = 0; i < 30000 && __atomic_load_n(&f.ring->rsp_prod, __ATOMIC_SEQ_CST) != n; i++)
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    return f.ring->rsp_prod == n;
}
static void leave_kernel(void) { CHECK(!pv_call(&g, XEN_sched_op, XEN_SCHEDOP_yield, 0, 0, 0)); }

/* Requests that follow each other are gathered until the kernel is left; single ones have their bell. */
static void test_disk_gathers(void)
{
    const struct vitro_outer *o;
    u32 n = 0;

    disk_make(false, 1, false);
    connect_disk(0);
    grant(20, 0, XEN_GTF_permit_access, FRAME(20));
    for (; n < 3; n++) { /* one at a time */
        CHECK(put_read(n));
        ring_bell(f.port);
        CHECK(answered(n + 1));
        leave_kernel();
    }
    for (unsigned i = 0; i < 2; i++, n++) { /* two in one stay */
        CHECK(put_read(n));
        ring_bell(f.port);
        CHECK(answered(n + 1));
    }
    CHECK(!put_read(n) && !put_read(n + 1)); /* no bell */
    leave_kernel();
    n += 2;
    CHECK(answered(n) && !g.xen->cpu[0].nr_gathering);
    /* A kernel that stays is looked at after a millisecond. */
    CHECK(put_read(n));
    ring_bell(f.port);
    CHECK(answered(n + 1) && !put_read(n + 1) && f.ring->rsp_prod == n + 1 && g.xen->cpu[0].nr_gathering == 1);
    g.now_ns += 1000001;
    machine_run_timers(g.machine);
    o = xen_outer(g.xen);
    o->event(o->opaque, 0, &g.frame);
    n += 2;
    CHECK(answered(n) && !g.xen->cpu[0].nr_gathering);
    /* Nothing gathers for a while: a bell for each again, at once. */
    for (unsigned i = 0; i < 8; i++, n++) {
        CHECK(put_read(n));
        ring_bell(f.port);
        CHECK(answered(n + 1));
        leave_kernel();
    }
    CHECK(put_read(n));
    ring_bell(f.port);
    CHECK(answered(n + 1) && !g.xen->cpu[0].nr_gathering && f.ring->req_event == n + 2);
    /* A port that is closed meanwhile is nobody's to look at. */
    CHECK(put_read(n + 1));
    ring_bell(f.port);
    CHECK(answered(n + 2) && g.xen->cpu[0].nr_gathering == 1);
    put(DATA, &f.port, 4);
    CHECK(!pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_close, DATA, 0, 0));
    leave_kernel();
    CHECK(!g.xen->cpu[0].nr_gathering);
    close(disk_fd);
    pvguest_free(&g);
}

static void test_disk_variants(void)
{
    struct xen_blkif_request r;

    disk_make(true, 1, true);
    CHECK(becomes(BACK "/mode", "r") && becomes(BACK "/feature-persistent", "1") && becomes(BACK "/feature-discard", "0"));
    say("feature-persistent", "1");
    connect_disk(0);
    grant(20, 0, XEN_GTF_permit_access, FRAME(20));
    grant(21, 0, XEN_GTF_permit_access | XEN_GTF_readonly, FRAME(21));
    r = asked(XEN_BLKIF_READ, 5, 20, 0, 0);
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY && holds(page(FRAME(20)), 5) && table()[20].flags & XEN_GTF_writing);
    r = asked(XEN_BLKIF_WRITE, 5, 20, 0, 0);
    CHECK(ask_disk(&r) == XEN_BLKIF_ERROR);
    r = asked(XEN_BLKIF_READ, 5, 21, 0, 0); /* cannot be kept, nor written */
    CHECK(ask_disk(&r) == XEN_BLKIF_ERROR && !(table()[21].flags & XEN_GTF_reading));
    table()[20] = (struct xen_grant_entry){ 0 }; /* it is kept, whatever the guest says now */
    r = asked(XEN_BLKIF_READ, 6, 20, 0, 0);
    CHECK(ask_disk(&r) == XEN_BLKIF_OKAY && holds(page(FRAME(20)), 6));
    r = (struct xen_blkif_request){ .operation = XEN_BLKIF_DISCARD, .sector = 1, .u.nr_sectors = 1 };
    CHECK(ask_disk(&r) == XEN_BLKIF_EOPNOTSUPP);
    close(disk_fd);
    pvguest_free(&g); /* connected */

    /* Two queues. */
    disk_make(false, 2, false);
    CHECK(becomes(BACK "/multi-queue-max-queues", "2"));
    say("multi-queue-num-queues", "2");
    u32 port[2];
    for (unsigned i = 0; i < 2; i++) {
        char name[40];
        port[i] = offer_port(0);
        memset(page(FRAME(i)), 0, PAGE_SIZE);
        grant(8 + i, 0, XEN_GTF_permit_access, FRAME(i));
        snprintf(name, sizeof(name), "queue-%u/ring-ref", i);
        say_number(name, 8 + i);
        snprintf(name, sizeof(name), "queue-%u/event-channel", i);
        say_number(name, port[i]);
    }
    say_number("state", XENBUS_INITIALISED);
    CHECK(becomes(BACK "/state", "4"));
    for (unsigned i = 0; i < 2; i++) {
        struct xen_ring_header *h = (struct xen_ring_header *)page(FRAME(i));
        grant(20 + i, 0, XEN_GTF_permit_access, FRAME(20 + i));
        r = asked(XEN_BLKIF_READ, 50 + i, 20 + i, 0, 0);
        memcpy(h + 1, &r, sizeof(r));
        h->rsp_event = 1;
        h->req_prod = 1;
        ring_bell(port[i]);
        for (unsigned k = 0; k < 30000 && !__atomic_load_n(&h->rsp_prod, __ATOMIC_SEQ_CST); k++)
            nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        CHECK(h->rsp_prod == 1 && holds(page(FRAME(20 + i)), 50 + i));
        CHECK(g.xen->shared->evtchn_pending[port[i] >> 6] >> (port[i] & 63) & 1);
    }
    close(disk_fd);
    pvguest_free(&g);
}

/* Nodes that make no sense: the back end says so and closes; nothing stays in use. */
static void test_disk_refusals(void)
{
    static const struct { const char *node, *value, *word; } bad[] = {
        { "ring-ref", "x", "ring-ref" }, { "ring-ref", "99999999999999999999", "ring-ref" }, { "ring-ref", "9", "ring-ref" },
        { "ring-ref", "", "ring-ref" }, { "event-channel", "4096", "event-channel" }, { "event-channel", "1", "event-channel" },
        { "event-channel", "-1", "event-channel" }, { "protocol", "x86_32-abi", "protocol" },
        { "multi-queue-num-queues", "2", "queues" }, { "multi-queue-num-queues", "0", "queues" },
        { "ring-page-order", "1", "ring-ref" }, /* then they would have numbers */
        { "ring-page-order", "5", "ring-page-order" }, { "ring-page-order", "77", "ring-page-order" },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        disk_make(false, 1, false);
        memset(page(FRAME(0)), 0, PAGE_SIZE);
        grant(8, 0, XEN_GTF_permit_access, FRAME(0));
        say_number("ring-ref", 8);
        say_number("event-channel", offer_port(0));
        say(bad[i].node, bad[i].value);
        say_number("state", XENBUS_INITIALISED);
        CHECK(becomes(BACK "/state", "5"));
        CHECK_MSG(strstr(store(XS_READ, BACK "/error", "%s", ""), bad[i].word), "bad %u: %s", i, pv_reply);
        CHECK(table()[8].flags == XEN_GTF_permit_access);
        /* Its directory gone. */
        store(XS_RM, DIR, "%s", "");
        CHECK(becomes(BACK "/state", "6"));
        close(disk_fd);
        pvguest_free(&g);
    }
    /* A port that is offered to somebody else. */
    disk_make(false, 1, false);
    grant(8, 0, XEN_GTF_permit_access, FRAME(0));
    say_number("ring-ref", 8);
    say_number("event-channel", offer_port(7));
    say_number("state", XENBUS_INITIALISED);
    CHECK(becomes(BACK "/state", "5") && table()[8].flags == XEN_GTF_permit_access);
    close(disk_fd);
    pvguest_free(&g);
}

/* -- A network card ------------------------------------------------------------------------------------------------ */

#define NET_DIR "device/vif/0"
#define NET_BACK "/local/domain/0/backend/vif/1/0"

/* What is behind it: keeps what was sent last. */
struct wire {
    struct net_backend be;
    struct net_port port;
    struct net_hdr hdr;
    u8 frame[NET_FRAME_MAX];
    size_t len;
    unsigned sent, rooms, offload;
};
static struct wire *wire;

static int wire_start(struct net_backend *be, const struct net_port *port)
{
    ((struct wire *)be)->port = *port;
    return 0;
}
static void wire_stop(struct net_backend *be) { (void)be; }
static void wire_free(struct net_backend *be) { free(be); wire = NULL; }
static void wire_room(struct net_backend *be) { ((struct wire *)be)->rooms++; }
static void wire_offload(struct net_backend *be, unsigned offload) { ((struct wire *)be)->offload = offload; }
static void wire_send(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *iov, unsigned nr)
{
    struct wire *w = (struct wire *)be;
    w->hdr = *hdr;
    w->len = 0;
    for (unsigned i = 0; i < nr; w->len += iov[i++].iov_len)
        memcpy(w->frame + w->len, iov[i].iov_base, iov[i].iov_len);
    w->sent++;
}
static const struct net_ops wire_ops = { "wire", wire_start, wire_stop, wire_send, NULL, wire_room, wire_offload, wire_free };

static void net_write(const char *node, u64 value)
{
    char path[60];
    snprintf(path, sizeof(path), NET_DIR "/%s", node);
    CHECK(!strcmp(store(XS_WRITE, path, "%llu", (unsigned long long)value), "OK"));
}

static struct xen_ring_header *tx, *rx;
static u32 net_port;

static void net_make_queues(unsigned queues)
{
    char name[16] = "";

    pvguest_make(&g, "");
    put(DATA, &(struct xen_gnttab_setup){ .dom = XEN_DOMID_SELF, .nr_frames = 2, .frame_list = DATA + 64 }, sizeof(struct xen_gnttab_setup));
    CHECK(!pv_call(&g, XEN_grant_table_op, XEN_GNTTABOP_setup_table, DATA, 1, 0));
    wire = calloc(1, sizeof(*wire));
    wire->be = (struct net_backend){ &wire_ops, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4, NET_OFFLOAD_TSO4, 1500 };
    CHECK(!xen_net_attach(g.xen, &wire->be, (const u8[6]){ 2, 0, 0, 0, 0xab, 1 }, queues, name) && !strcmp(name, "vif0"));
    tx = (struct xen_ring_header *)page(FRAME(0));
    rx = (struct xen_ring_header *)page(FRAME(1));
    memset(tx, 0, PAGE_SIZE);
    memset(rx, 0, PAGE_SIZE);
    tx->rsp_event = rx->rsp_event = 1;
    for (unsigned i = 0; i < 40; i++)
        grant(8 + i, 0, XEN_GTF_permit_access, FRAME(i));
    net_write("tx-ring-ref", 8);
    net_write("rx-ring-ref", 9);
    net_port = offer_port(0);
    net_write("event-channel", net_port);
}

static void net_make(void) { net_make_queues(1); }

static void send_slot(struct xen_netif_tx_request r)
{
    memcpy((u8 *)(tx + 1) + tx->req_prod++ % 256 * 12, &r, sizeof(r));
}
static struct xen_netif_tx_response sent(u32 i)
{
    struct xen_netif_tx_response r;
    memcpy(&r, (u8 *)(tx + 1) + i % 256 * 12, sizeof(r));
    return r;
}
static struct xen_netif_rx_response got(u32 i)
{
    struct xen_netif_rx_response r;
    memcpy(&r, (u8 *)(rx + 1) + i % 256 * 8, sizeof(r));
    return r;
}

/* Is an event there a millisecond later? It was not before, and is taken. */
static bool told_later(void)
{
    u64 *word = &g.xen->shared->evtchn_pending[net_port >> 6], bit = 1ull << (net_port & 63);
    bool early = *word & bit;

    g.now_ns += 1000001;
    machine_run_timers(g.machine);
    bool late = *word & bit;
    *word &= ~bit;
    return late && !early;
}

/* That packets were sent is told after a while, but not to a front end that has seen it by then. */
static void test_net_told(void)
{
    const struct xen_netif_tx_request packet = { .gref = 28, .offset = 100, .size = 60 };

    net_make();
    net_write("request-rx-copy", 1);
    net_write("state", XENBUS_CONNECTED);
    CHECK(becomes(NET_BACK "/state", "4") && !told_later());
    send_slot(packet);
    ring_bell(net_port);
    CHECK(tx->rsp_prod == 1 && told_later() && !told_later());
    tx->rsp_event = 2;
    send_slot(packet);
    ring_bell(net_port);
    send_slot(packet);
    ring_bell(net_port);
    CHECK(tx->rsp_prod == 3 && told_later() && !told_later()); /* once */
    tx->rsp_event = 4;
    send_slot(packet);
    ring_bell(net_port);
    tx->rsp_event = 5;
    CHECK(tx->rsp_prod == 4 && !told_later());
    send_slot(packet);
    ring_bell(net_port);
    CHECK(told_later());
    tx->rsp_event = 100;
    send_slot(packet);
    ring_bell(net_port);
    CHECK(tx->rsp_prod == 6 && !told_later());
    pvguest_free(&g);
}

static void test_net(void)
{
    u8 frame[9000];

    net_make();
    CHECK(becomes(NET_BACK "/state", "2") && becomes(NET_BACK "/feature-rx-copy", "1") && becomes(NET_DIR "/mac", "02:00:00:00:ab:01"));
    CHECK(becomes(NET_BACK "/feature-gso-tcpv4", "1") && becomes(NET_BACK "/feature-gso-tcpv6", "0") && becomes(NET_BACK "/feature-ctrl-ring", "1"));
    net_write("request-rx-copy", 1);
    net_write("feature-sg", 1);
    net_write("feature-gso-tcpv4", 1);
    net_write("feature-ipv6-csum-offload", 1);
    /* Sent before there was anybody: it goes out when there is. */
    memset(page(FRAME(20)), 0x21, PAGE_SIZE);
    send_slot((struct xen_netif_tx_request){ .gref = 28, .offset = 100, .id = 7, .size = 60 });
    net_write("state", XENBUS_CONNECTED);
    CHECK(becomes(NET_BACK "/state", "4") && wire->sent == 1 && wire->len == 60 && wire->frame[59] == 0x21 && !wire->hdr.flags);
    CHECK(tx->rsp_prod == 1 && sent(0).id == 7 && sent(0).status == XEN_NETIF_OKAY && table()[28].flags == XEN_GTF_permit_access);
    CHECK(wire->offload == (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4));
    /* A TCP packet of two pages, whose checksums and segments are left to us. */
    u8 *p = page(FRAME(20));
    memset(p, 0, PAGE_SIZE);
    p[12] = 8, p[14] = 0x45, p[23] = 6, p[34 + 12] = 0x50;
    send_slot((struct xen_netif_tx_request){ .gref = 28, .size = 3100, .id = 1, .flags = XEN_NETTXF_csum_blank | XEN_NETTXF_data_validated |
                                                                           XEN_NETIF_extra_info | XEN_NETIF_more_data });
    const struct xen_netif_extra e = { .type = XEN_NETIF_EXTRA_GSO, .size = 1448, .gso_type = XEN_NETIF_GSO_TCPV4 };
    struct xen_netif_tx_request r = { 0 };
    memcpy(&r, &e, sizeof(e));
    send_slot(r);
    send_slot((struct xen_netif_tx_request){ .gref = 29, .offset = 96, .size = 3000, .id = 2 });
    ring_bell(net_port);
    CHECK(wire->sent == 2 && wire->len == 3100 && wire->hdr.flags == NET_NEEDS_CSUM && wire->hdr.csum_start == 34 && wire->hdr.csum_offset == 16 &&
          wire->hdr.gso_type == NET_GSO_TCPV4 && wire->hdr.gso_size == 1448 && wire->hdr.hdr_len == 54);
    CHECK(tx->rsp_prod == 4 && sent(1).id == 1 && !sent(1).status && sent(2).status == XEN_NETIF_NULL && sent(3).id == 2 && !sent(3).status);
    /* What makes no sense: an error, and nothing is sent. */
    const struct xen_netif_tx_request bad[] = {
        { .gref = 28, .size = 0 }, { .gref = 28, .size = 13 }, { .gref = 28, .offset = 4000, .size = 97 }, { .gref = 7, .size = 60 },
        { .gref = ~0u, .size = 60 }, { .gref = 29, .size = 60, .flags = XEN_NETTXF_csum_blank },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        send_slot(bad[i]);
        ring_bell(net_port);
        CHECK_MSG(wire->sent == 2 && tx->rsp_prod == 5 + i && sent(4 + i).status == XEN_NETIF_ERROR, "bad %u", i);
    }
    u32 at = tx->rsp_prod;
    send_slot((struct xen_netif_tx_request){ .gref = 28, .size = 100, .flags = XEN_NETIF_more_data }); /* the rest is longer than the whole */
    send_slot((struct xen_netif_tx_request){ .gref = 29, .size = 100 });
    ring_bell(net_port);
    CHECK(wire->sent == 2 && tx->rsp_prod == at + 2 && sent(at).status == XEN_NETIF_ERROR && sent(at + 1).status == XEN_NETIF_ERROR);
    /* To the guest: no room; then room for one in three pages, with an extra. */
    for (unsigned i = 0; i < sizeof(frame); i++)
        frame[i] = (u8)(i * 7);
    const struct net_hdr gso = { .flags = NET_NEEDS_CSUM, .gso_type = NET_GSO_TCPV4, .gso_size = 1448 };
    CHECK(!wire->port.receive(wire->port.card, &gso, frame, sizeof(frame)) && rx->req_event == 4);
    for (unsigned i = 0; i < 5; i++) {
        const struct xen_netif_rx_request q = { .id = (u16)(100 + i), .gref = i == 4 ? 3 : 30 + i };
        memcpy((u8 *)(rx + 1) + i * 8, &q, 8);
    }
    rx->req_prod = 4;
    ring_bell(net_port);
    CHECK(wire->rooms == 1 && wire->port.receive(wire->port.card, &gso, frame, sizeof(frame)) && rx->rsp_prod == 4);
    CHECK(got(0).id == 100 && got(0).status == 4096 && got(0).flags == (XEN_NETRXF_csum_blank | XEN_NETRXF_data_validated | XEN_NETIF_extra_info | XEN_NETIF_more_data));
    struct xen_netif_extra x;
    memcpy(&x, (u8 *)(rx + 1) + 8, sizeof(x));
    CHECK(x.type == XEN_NETIF_EXTRA_GSO && x.size == 1448 && x.gso_type == XEN_NETIF_GSO_TCPV4 && !x.flags);
    CHECK(got(2).id == 102 && got(2).status == 4096 && got(2).flags == XEN_NETIF_more_data && got(3).id == 103 && got(3).status == 808 && !got(3).flags);
    CHECK(!memcmp(page(FRAME(22)), frame, 4096) && !memcmp(page(FRAME(24)), frame + 4096, 4096) && !memcmp(page(FRAME(25)), frame + 8192, 808));
    CHECK(table()[30].flags == XEN_GTF_permit_access);
    CHECK(g.xen->shared->evtchn_pending[net_port >> 6] >> (net_port & 63) & 1);
    /* Nowhere to put it: the slot says so. */
    const struct net_hdr plain = { .flags = NET_DATA_VALID };
    rx->req_prod = 5;
    CHECK(wire->port.receive(wire->port.card, &plain, frame, 60) && rx->rsp_prod == 5 && got(4).status == XEN_NETIF_ERROR && got(4).id == 104);
    /* A packet without an end: nothing more is taken. */
    at = tx->rsp_prod;
    send_slot((struct xen_netif_tx_request){ .gref = 28, .size = 100, .flags = XEN_NETIF_more_data });
    ring_bell(net_port);
    send_slot((struct xen_netif_tx_request){ .gref = 28, .size = 60 });
    ring_bell(net_port);
    CHECK(wire->sent == 2 && tx->rsp_prod == at);
    CHECK(!xen_detach(g.xen, "vif0", false));
    CHECK(becomes(NET_BACK "/state", "5"));
    net_write("state", XENBUS_CLOSED);
    CHECK(becomes(NET_BACK, "ENOENT") && !wire && table()[8].flags == XEN_GTF_permit_access);
    pvguest_free(&g);
}

static void test_net_refusals(void)
{
    static const struct { const char *node; u64 value; const char *word; } bad[] = {
        { "request-rx-copy", 0, "copy" }, { "tx-ring-ref", 3, "tx-ring-ref" }, { "rx-ring-ref", 1u << 31, "rx-ring-ref" },
        { "event-channel", 9999, "event-channel" }, { "event-channel", 3000, "event-channel" }, { "multi-queue-num-queues", 2, "queues" },
        { "ctrl-ring-ref", 1ull << 32, "ctrl-ring-ref" }, { "ctrl-ring-ref", 10, "event-channel-ctrl" },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        net_make();
        net_write("request-rx-copy", 1);
        net_write(bad[i].node, bad[i].value);
        net_write("state", XENBUS_CONNECTED);
        CHECK(becomes(NET_BACK "/state", "5") && strstr(store(XS_READ, NET_BACK "/error", "%s", ""), bad[i].word));
        CHECK(table()[8].flags == XEN_GTF_permit_access && table()[9].flags == XEN_GTF_permit_access);
        CHECK(wire->port.receive(wire->port.card, &(struct net_hdr){ 0 }, (const u8 *)"nobody there", 12)); /* lost */
        pvguest_free(&g);
    }
    for (unsigned i = 0; i < 2; i++) { /* a control ring that was not granted, or has a port that is not offered */
        net_make();
        net_write("request-rx-copy", 1);
        net_write("ctrl-ring-ref", i ? 10 : 3);
        net_write("event-channel-ctrl", i ? 3000 : offer_port(0));
        net_write("state", XENBUS_CONNECTED);
        CHECK(becomes(NET_BACK "/state", "5") && strstr(store(XS_READ, NET_BACK "/error", "%s", ""), i ? "event-channel-ctrl" : "ctrl-ring-ref"));
        for (unsigned k = 8; k < 11; k++)
            CHECK(table()[k].flags == XEN_GTF_permit_access);
        pvguest_free(&g);
    }
}

/* -- Its control ring ---------------------------------------------------------------------------------------------------- */

static struct xen_ring_header *ctrl;
static u32 ctrl_port;

/* One request; the status, and in *data what the answer says. */
static u32 ask_card(u16 type, u32 a, u32 b, u32 c, u32 *data)
{
    const struct xen_netif_ctrl_request q = { .id = (u16)(1000 + ctrl->req_prod), .type = type, .data = { a, b, c } };
    struct xen_netif_ctrl_response r;
    u32 was = ctrl->rsp_prod;

    memcpy((u8 *)(ctrl + 1) + ctrl->req_prod++ % 128 * 16, &q, sizeof(q));
    ctrl->rsp_event = was + 1;
    g.xen->shared->evtchn_pending[ctrl_port >> 6] &= ~(1ull << (ctrl_port & 63));
    ring_bell(ctrl_port);
    memcpy(&r, (u8 *)(ctrl + 1) + was % 128 * 16, sizeof(r));
    CHECK(ctrl->rsp_prod == was + 1 && r.id == q.id && r.type == type);
    CHECK(g.xen->shared->evtchn_pending[ctrl_port >> 6] >> (ctrl_port & 63) & 1);
    if (data)
        *data = r.data;
    return r.status;
}

/* Of the examples in Microsoft's "Verifying the RSS hash calculation". */
static const u8 rss_key[40] = {
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
    0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
};
static const u8 rss_v4[12] = { 66, 9, 149, 187, 161, 142, 100, 80, 2794 >> 8, 2794 & 255, 1766 >> 8, 1766 & 255 };
static const u8 rss_v6[36] = {
    0x3f, 0xfe, 0x25, 0x01, 0x02, 0x00, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 7, 0x3f, 0xfe, 0x25, 0x01, 0x02, 0x00, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1,
    2794 >> 8, 2794 & 255, 1766 >> 8, 1766 & 255,
};

/* A frame for the guest is taken by this queue, with this hash in an extra (type's number; -1: without one). */
static void arrives(const struct net_hdr *hdr, const u8 *frame, unsigned queue, int type, u32 value)
{
    struct xen_ring_header *h = (struct xen_ring_header *)page(FRAME(1 + 2 * queue));
    struct xen_netif_rx_response r;
    struct xen_netif_extra e = { 0 };
    u32 at = h->rsp_prod, extras = (type >= 0) + !!hdr->gso_type;

    for (unsigned i = 0; i < 1 + extras; i++) {
        const struct xen_netif_rx_request q = { .id = 5, .gref = 8 + 20 };
        memcpy((u8 *)(h + 1) + h->req_prod++ % 256 * 8, &q, 8);
    }
    CHECK(wire->port.receive(wire->port.card, hdr, frame, 80));
    memcpy(&r, (u8 *)(h + 1) + at % 256 * 8, 8);
    CHECK_MSG(h->rsp_prod == at + 1 + extras && r.status == 80, "queue %u: %u answers", queue, h->rsp_prod - at);
    CHECK(!(r.flags & XEN_NETIF_extra_info) == !extras);
    for (unsigned i = 0; i < extras; i++) {
        memcpy(&e, (u8 *)(h + 1) + (at + 1 + i) % 256 * 8, 8);
        CHECK(!(e.flags & XEN_NETIF_EXTRA_MORE) == (i + 1 == extras));
    }
    if (type >= 0)
        CHECK(e.type == XEN_NETIF_EXTRA_HASH && e.hash.type == type && e.hash.algorithm == XEN_NETIF_HASH_TOEPLITZ && !memcmp(e.hash.value, &value, 4));
}

static void test_net_control(void)
{
    const struct net_hdr plain = { 0 }, gso = { .gso_type = NET_GSO_TCPV4, .gso_size = 1448 };
    u8 v4[80] = { 0 }, v6[80] = { 0 }, arp[80] = { [12] = 8, [13] = 6 };
    u32 n = 0;

    v4[12] = 8, v4[14] = 0x45, v4[23] = 6;
    memcpy(v4 + 26, rss_v4, 12);
    v6[12] = 0x86, v6[13] = 0xdd, v6[14] = 0x60, v6[20] = 6;
    memcpy(v6 + 22, rss_v6, 36);
    CHECK(hash_toeplitz(rss_key, rss_v4, 8) == 0x323e8fc2 && hash_toeplitz(rss_key, rss_v4, 12) == 0x51ccc178);
    CHECK(hash_toeplitz(rss_key, rss_v6, 32) == 0x2cc18cd5 && hash_toeplitz(rss_key, rss_v6, 36) == 0x40207d3d);

    net_make_queues(2);
    u32 *map = (u32 *)page(FRAME(30));
    CHECK(becomes(NET_BACK "/feature-ctrl-ring", "1"));
    ctrl = (struct xen_ring_header *)page(FRAME(4));
    for (unsigned i = 0; i < 5; i++)
        memset(page(FRAME(i)), 0, PAGE_SIZE);
    for (unsigned i = 0; i < 2; i++) {
        char name[40];
        snprintf(name, sizeof(name), "queue-%u/tx-ring-ref", i);
        net_write(name, 8 + 2 * i);
        snprintf(name, sizeof(name), "queue-%u/rx-ring-ref", i);
        net_write(name, 9 + 2 * i);
        snprintf(name, sizeof(name), "queue-%u/event-channel", i);
        net_write(name, offer_port(0));
    }
    net_write("multi-queue-num-queues", 2);
    net_write("request-rx-copy", 1);
    net_write("feature-sg", 1);
    net_write("feature-gso-tcpv4", 1);
    ctrl_port = offer_port(0);
    net_write("ctrl-ring-ref", 12);
    net_write("event-channel-ctrl", ctrl_port);
    net_write("state", XENBUS_CONNECTED);
    CHECK(becomes(NET_BACK "/state", "4") && table()[12].flags & XEN_GTF_writing);
    arrives(&plain, v4, 0, -1, 0); /* no algorithm yet */

    /* What may not be. */
    CHECK(ask_card(0, 0, 0, 0, NULL) == XEN_NETIF_CTRL_NOT_SUPPORTED && ask_card(99, 0, 0, 0, NULL) == XEN_NETIF_CTRL_NOT_SUPPORTED);
    CHECK(ask_card(XEN_NETIF_CTRL_set_hash_flags, XEN_NETIF_HASH_IPV4, 0, 0, NULL) == XEN_NETIF_CTRL_INVALID); /* of no algorithm */
    CHECK(ask_card(XEN_NETIF_CTRL_set_hash_algorithm, 2, 0, 0, NULL) == XEN_NETIF_CTRL_INVALID);
    CHECK(ask_card(XEN_NETIF_CTRL_set_hash_key, 3, 40, 0, NULL) == XEN_NETIF_CTRL_INVALID);
    CHECK(ask_card(XEN_NETIF_CTRL_set_hash_key, 38, 41, 0, NULL) == XEN_NETIF_CTRL_OVERFLOW);
    CHECK(ask_card(XEN_NETIF_CTRL_set_hash_mapping_size, 129, 0, 0, NULL) == XEN_NETIF_CTRL_INVALID);
    CHECK(ask_card(XEN_NETIF_CTRL_set_hash_mapping, 38, 1, 0, NULL) == XEN_NETIF_CTRL_INVALID); /* there is no entry */
    CHECK(ask_card(XEN_NETIF_CTRL_get_hash_flags, 0, 0, 0, &n) == XEN_NETIF_CTRL_SUCCESS && n == 15);
    CHECK(ask_card(XEN_NETIF_CTRL_get_hash_mapping_size, 0, 0, 0, &n) == XEN_NETIF_CTRL_SUCCESS && n == 128);

    /* Without a map: modulo two queues. */
    CHECK(!ask_card(XEN_NETIF_CTRL_set_hash_algorithm, XEN_NETIF_HASH_TOEPLITZ, 0, 0, NULL));
    CHECK(ask_card(XEN_NETIF_CTRL_set_hash_flags, 16, 0, 0, NULL) == XEN_NETIF_CTRL_INVALID);
    CHECK(!ask_card(XEN_NETIF_CTRL_set_hash_flags, XEN_NETIF_HASH_IPV4 | XEN_NETIF_HASH_IPV6_TCP, 0, 0, NULL));
    memcpy(map, rss_key, 40);
    CHECK(!ask_card(XEN_NETIF_CTRL_set_hash_key, 38, 40, 0, NULL) && table()[38].flags == XEN_GTF_permit_access);
    arrives(&plain, v4, 0, 0, 0x323e8fc2);
    arrives(&plain, v6, 1, 3, 0x40207d3d);
    arrives(&plain, arp, 0, -1, 0);
    arrives(&gso, v4, 0, 0, 0x323e8fc2);
    arrives(&gso, arp, 0, -1, 0);
    CHECK(!ask_card(XEN_NETIF_CTRL_set_hash_flags, XEN_NETIF_HASH_IPV4_TCP | XEN_NETIF_HASH_IPV6, 0, 0, NULL));
    arrives(&plain, v4, 0, 1, 0x51ccc178);
    arrives(&plain, v6, 1, 2, 0x2cc18cd5);
    v4[20] = 0x20; /* the first piece of a packet: its ports are not all that it has */
    arrives(&plain, v4, 0, -1, 0);
    v4[20] = 0;

    /* By a map, of which nothing is taken if one entry is wrong. */
    CHECK(!ask_card(XEN_NETIF_CTRL_set_hash_mapping_size, 4, 0, 0, NULL));
    memcpy(map, (const u32[4]){ 1, 0, 1, 2 }, 16);
    CHECK(ask_card(XEN_NETIF_CTRL_set_hash_mapping, 38, 4, 0, NULL) == XEN_NETIF_CTRL_INVALID);
    arrives(&plain, v4, 0, 1, 0x51ccc178);
    CHECK(ask_card(XEN_NETIF_CTRL_set_hash_mapping, 38, 3, 2, NULL) == XEN_NETIF_CTRL_INVALID &&
          ask_card(XEN_NETIF_CTRL_set_hash_mapping, 38, 2, ~0u, NULL) == XEN_NETIF_CTRL_INVALID &&
          ask_card(XEN_NETIF_CTRL_set_hash_mapping, 38, ~0u, 1, NULL) == XEN_NETIF_CTRL_OVERFLOW &&
          ask_card(XEN_NETIF_CTRL_set_hash_mapping, 4000000, 1, 0, NULL) == XEN_NETIF_CTRL_INVALID);
    CHECK(!ask_card(XEN_NETIF_CTRL_set_hash_mapping, 38, 2, 0, NULL)); /* 1, 0, then 0, 0 */
    arrives(&plain, v4, 1, 1, 0x51ccc178);
    arrives(&plain, v6, 0, 2, 0x2cc18cd5);
    arrives(&plain, arp, 1, -1, 0);
    CHECK(!ask_card(XEN_NETIF_CTRL_set_hash_key, 0, 0, 0, NULL)); /* of zeroes */
    arrives(&plain, v6, 1, 2, 0);
    CHECK(!ask_card(XEN_NETIF_CTRL_set_hash_algorithm, XEN_NETIF_HASH_NONE, 0, 0, NULL));
    arrives(&plain, v4, 0, -1, 0);

    /* More requests than there can be: none is taken any more. Closed: its page is the guest's again. */
    ctrl->req_prod += 1000;
    u32 was = ctrl->rsp_prod;
    ring_bell(ctrl_port);
    CHECK(ctrl->rsp_prod == was);
    net_write("state", XENBUS_CLOSING);
    CHECK(becomes(NET_BACK "/state", "5"));
    net_write("state", XENBUS_CLOSED);
    CHECK(becomes(NET_BACK "/state", "6") && table()[12].flags == XEN_GTF_permit_access);
    ring_bell(ctrl_port);
    pvguest_free(&g);
}

/* -- control/shutdown ------------------------------------------------------------------------------------------------------ */

int main(void)
{
    test_table();
    test_use();
    test_calls();
    test_disk();
    test_disk_gathers();
    test_disk_variants();
    test_disk_refusals();
    test_net();
    test_net_told();
    test_net_control();
    test_net_refusals();
    return check_done("xen_io");
}
