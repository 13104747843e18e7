/*
 * Split drivers (docs/xen.md) from a guest's side: grants, and the back ends of its disks and network cards.
 */
#include "tests/lib/check.h"
#include "tests/lib/pvguest.h"
#include "paravirt/xen/io.h"
#include <stdlib.h>
#include <string.h>

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

int main(void)
{
    test_table();
    test_use();
    test_calls();
    return check_done("xen_io");
}
