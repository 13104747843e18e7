/* A Xen PV guest's part of a snapshot, without devices: what comes back, and what of a file is not believed. With devices:
 * tests/fuzz/test_fuzz_xen_io.c. */
#include "base/state.h"
#include "paravirt/xen/store.h"
#include "storage/disk.h"
#include "tests/lib/check.h"
#include "tests/lib/pvguest.h"
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define DATA PV_AT(PV_DATA)
#define PFN(la) (((la) - PV_BASE) >> PAGE_SHIFT)
#define PAGE(n) (PFN(DATA) + 2 + (n))
#define FRAME(n) (0x800u + (n)) /* that nothing maps */

static struct pvguest g;
static u8 memory[PV_SIZE];
static struct frame frames[PV_SIZE >> PAGE_SHIFT];
static struct vitro_sregs sregs;
static char refusal[300];

static void put(u64 la, const void *bytes, size_t len) { memcpy(pv_ptr(&g, la, false), bytes, len); }

static s64 call(unsigned nr, u64 op, const void *arg, size_t len, u64 a2)
{
    put(DATA, arg, len);
    return pv_call(&g, nr, op, DATA, a2, 0);
}

static const char *store(u32 type, u32 tx, const char *path, const char *value, size_t len)
{
    char text[300];
    int n = snprintf(text, sizeof(text), "%s%c%s", path, 0, value);
    (void)n;
    return pv_ask(&g, type, tx, text, strlen(path) + 1 + len);
}

/* A guest with something of everything. */
static void furnish(void)
{
    u64 *gdt, at;

    pvguest_make_cpus(&g, "", 3);
    /* Memory: given back, some taken again under another number; a grant mapped; a pin more. */
    u64 gone[] = { FRAME(9), FRAME(10), FRAME(12), FRAME(13) };
    struct xen_memory_reservation r = { .extent_start = DATA + 256, .nr_extents = 4, .domid = XEN_DOMID_SELF };
    put(DATA + 256, gone, sizeof(gone));
    CHECK(call(XEN_memory_op, XENMEM_decrease_reservation, &r, sizeof(r), 0) == 4);
    gone[0] = 77; /* no such frame is gone: it gets another */
    put(DATA + 256, gone, 8);
    r.nr_extents = 1;
    CHECK(call(XEN_memory_op, XENMEM_populate_physmap, &r, sizeof(r), 0) == 1);
    struct xen_grant_entry *table = (struct xen_grant_entry *)(g.xen->own + PAGE_SIZE);
    table[8] = (struct xen_grant_entry){ .flags = XEN_GTF_permit_access, .domid = 1, .frame = PAGE(1) };
    struct xen_gnttab_map m = { .host_addr = PV_AT(PAGE(4) << PAGE_SHIFT), .flags = XEN_GNTMAP_host_map, .ref = 8, .dom = XEN_DOMID_SELF };
    CHECK(!call(XEN_grant_table_op, XEN_GNTTABOP_map_grant_ref, &m, sizeof(m), 1));
    CHECK(!((struct xen_gnttab_map *)pv_ptr(&g, DATA, false))->status);
    /* Events: a VIRQ, an IPI, one offered; the last two pending. */
    CHECK(!call(XEN_event_channel_op, XEN_EVTCHNOP_bind_virq, &(struct xen_evtchn_bind_virq){ .virq = XEN_VIRQ_TIMER }, 12, 0));
    CHECK(!call(XEN_event_channel_op, XEN_EVTCHNOP_bind_ipi, &(struct xen_evtchn_bind_ipi){ .vcpu = 1 }, 8, 0));
    u32 ipi = ((struct xen_evtchn_bind_ipi *)pv_ptr(&g, DATA, false))->port;
    CHECK(!call(XEN_event_channel_op, XEN_EVTCHNOP_alloc_unbound, &(struct xen_evtchn_alloc_unbound){ XEN_DOMID_SELF, 5, 0 }, 8, 0));
    CHECK(!call(XEN_event_channel_op, XEN_EVTCHNOP_send, &ipi, 4, 0));
    /* Processors: traps, a place for vcpu_info, runstate, a timer, I/O ports; the second is about to start. */
    struct xen_trap_info traps[] = { { .vector = 14, .flags = 4, .address = PV_AT(0x7000) }, { .address = 0 } };
    put(DATA, traps, sizeof(traps));
    CHECK(!pv_call(&g, XEN_set_trap_table, DATA, 0, 0, 0));
    CHECK(!pv_call(&g, XEN_set_callbacks, PV_AT(0x1000), PV_AT(0x2000), PV_AT(0x3000), 0));
    CHECK(!pv_call(&g, XEN_stack_switch, XEN_FLAT_DS, DATA, 0, 0));
    put(DATA, &(struct xen_register_vcpu_info){ .mfn = PAGE(2), .offset = 64 }, 16);
    CHECK(!pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 0, DATA, 0));
    at = PV_AT(PAGE(3) << PAGE_SHIFT);
    put(DATA, &at, 8);
    CHECK(!pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_register_runstate, 0, DATA, 0));
    CHECK(!pv_call(&g, XEN_set_timer_op, 1ull << 40, 0, 0, 0));
    CHECK(!call(XEN_physdev_op, XEN_PHYSDEVOP_set_iopl, &(u32){ 1 }, 4, 0));
    gdt = pv_ptr(&g, PV_AT(PAGE(5) << PAGE_SHIFT), true);
    memset(gdt, 0, PAGE_SIZE);
    gdt[2] = 0x00af9b000000ffffull;
    gdt[3] = 0x00cf93000000ffffull;
    CHECK(!pv_call(&g, XEN_update_va_mapping, PV_AT(PAGE(5) << PAGE_SHIFT), PAGE(5) << PAGE_SHIFT | PTE_P, XEN_UVMF_INVLPG, 0));
    struct xen_guest_context c = { .flags = XEN_VGCF_IN_KERNEL, .gdt_frames = { PAGE(5) }, .gdt_ents = 16, .kernel_sp = DATA,
                                   .gs_base_user = 0x5000 };
    c.user_regs.rip = PV_AT(PV_KERNEL);
    c.user_regs.rdi = 78;
    c.user_regs.cs = 0x10;
    c.ctrlreg[3] = g.sregs.cr3;
    memcpy(pv_ptr(&g, PV_AT(PV_DATA + 0x1000), true), &c, PAGE_SIZE);
    memcpy(pv_ptr(&g, PV_AT(PV_DATA + 0x2000), true), (const u8 *)&c + PAGE_SIZE, sizeof(c) - PAGE_SIZE);
    CHECK(!pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_initialise, 1, PV_AT(PV_DATA + 0x1000), 0));
    /* Xenstore: a node, a watch, a transaction that has changed something, half a message. */
    CHECK(!strcmp(store(XS_WRITE, 0, "data/a", "one", 3), "OK"));
    CHECK(!strcmp(store(XS_WATCH, 0, "data", "token", 6), "OK"));
    while (pv_take(&g))
        ;
    u32 tx = (u32)atoi(pv_ask(&g, XS_TRANSACTION_START, 0, "", 1));
    CHECK(tx && !strcmp(store(XS_WRITE, tx, "data/b", "two", 3), "OK"));
    struct xen_store_ring *ring = pv_store_ring(&g);
    const struct xen_store_msg half = { XS_READ, 42, 0, 7 };
    for (unsigned i = 0; i < sizeof(half); i++)
        ring->req[ring->req_prod++ % 1024] = (char)((const u8 *)&half)[i];
    CHECK(!call(XEN_event_channel_op, XEN_EVTCHNOP_send, &g.xen->store_port, 4, 0));
}

static void save(struct state_set *set)
{
    *set = (struct state_set){ 0 };
    xen_io_pause(g.xen, true);
    xen_save(g.xen, set);
    xen_io_pause(g.xen, false);
    CHECK(!set->failed);
}

/* Another guest, from what this one was. */
static int load(struct state_set *set)
{
    pvguest_bare(&g, 3);
    memcpy(g.ram.host, memory, PV_SIZE);
    g.sregs = sregs;
    g.cr3 = sregs.cr3;
    refusal[0] = 0;
    int r = xen_load(g.xen, set, refusal, sizeof(refusal));
    CHECK(!r || refusal[0]);
    return r;
}

static void keep(void)
{
    memcpy(memory, g.ram.host, PV_SIZE);
    memcpy(frames, g.xen->frame, sizeof(frames));
    sregs = g.sregs;
}

static void test_all_of_it(void)
{
    struct state_set was, is;
    u64 now;

    furnish();
    const struct xen_cpu old = g.xen->cpu[0];
    const u64 info = (u64)((u8 *)g.xen->cpu[0].info - (u8 *)g.ram.host);
    save(&was);
    now = xen_now(g.xen);
    keep();
    pvguest_free(&g);
    CHECK(!load(&was));
    xen_io_pause(g.xen, false);
    /* Saved again, it is the same. */
    save(&is);
    CHECK(is.nr == was.nr);
    for (unsigned i = 0; i < is.nr; i++)
        CHECK_MSG(!strcmp(is.section[i].name, was.section[i].name) && is.section[i].len == was.section[i].len &&
                  !memcmp(is.section[i].data, was.section[i].data, was.section[i].len), "%s", was.section[i].name);
    for (u64 i = 0; i < g.xen->nr_frames; i++)
        CHECK_MSG(frames[i].count == g.xen->frame[i].count && frames[i].pinned == g.xen->frame[i].pinned &&
                  (!frames[i].count || frames[i].type == g.xen->frame[i].type), "frame %#llx", (unsigned long long)i);
    /* The wall clock is the host's again, however old the file. */
    struct timespec host;
    const u32 version = g.xen->shared->wc_version;
    g.xen->shared->wc_sec = 0;
    xen_clock_skip(g.xen, 0);
    clock_gettime(CLOCK_REALTIME, &host);
    u64 wall = g.xen->shared->wc_sec + (g.xen->shared->wc_nsec + xen_now(g.xen)) / NS_PER_SEC;
    CHECK(g.xen->shared->wc_version == version + 2 && wall + 60 > (u64)host.tv_sec && wall < (u64)host.tv_sec + 60);
    /* And it works. */
    CHECK((u64)((u8 *)g.xen->cpu[0].info - (u8 *)g.ram.host) == info);
    CHECK(g.xen->cpu[0].trap[14].address == old.trap[14].address && g.xen->cpu[0].kernel_sp == old.kernel_sp);
    CHECK(xen_now(g.xen) >= now && xen_now(g.xen) - now < 60 * NS_PER_SEC);
    CHECK(xen_balloon_actual(g.xen) == PV_SIZE - 3 * PAGE_SIZE);
    CHECK(!pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_up, 1, 0, 0));
    CHECK(g.started == 2 && g.start_regs.gpr[RDI] == 78 && g.start_sregs.cs.selector == 0x13 && g.msr_gs_base == 0x5000);
    struct xen_store_ring *ring = pv_store_ring(&g);
    for (unsigned i = 0; i < 7; i++)
        ring->req[ring->req_prod++ % 1024] = "data/a"[i];
    CHECK(!call(XEN_event_channel_op, XEN_EVTCHNOP_send, &g.xen->store_port, 4, 0));
    CHECK(pv_take(&g) && !strcmp(pv_reply, "one"));
    char tx[24] = "T";
    u32 id = 0;
    for (unsigned i = 0; i < TX_MAX; i++)
        id = MAX(id, g.xen->store->tx[i].id);
    CHECK(!strcmp(pv_ask(&g, XS_TRANSACTION_END, id, tx, 2), "no answer") && pv_head.type == XS_WATCH_EVENT); /* it comes first */
    CHECK(pv_take(&g) && !strcmp(pv_reply, "OK") && !strcmp(pv_ask(&g, XS_READ, 0, "data/b", 7), "two"));
    const struct xen_gnttab_unmap u = { .host_addr = PV_AT(PAGE(4) << PAGE_SHIFT), .handle = 0 };
    CHECK(!call(XEN_grant_table_op, XEN_GNTTABOP_unmap_grant_ref, &u, sizeof(u), 1));
    CHECK(!((struct xen_gnttab_unmap *)pv_ptr(&g, DATA, false))->status);
    state_set_free(&was);
    state_set_free(&is);
    pvguest_free(&g);
}

/* Where the bytes of a field are in a section; NULL: there is none. */
static u8 *field(struct state_set *set, const char *section, const char *name)
{
    for (unsigned i = 0; i < set->nr; i++) {
        u8 *at = set->section[i].data, *end = at + set->section[i].len;
        if (strcmp(set->section[i].name, section))
            continue;
        while (at < end) {
            u32 size;
            memcpy(&size, at + 1 + at[0], 4);
            if (strlen(name) == at[0] && !memcmp(at + 1, name, at[0]))
                return at + 5 + at[0];
            at += 5 + at[0] + size;
        }
    }
    return NULL;
}

static void test_not_believed(void)
{
    static const struct { const char *section, *field; u64 value; unsigned size; } bad[] = {
        { "xen", "console", PV_SIZE >> PAGE_SHIFT, 8 }, { "xen", "store", ~0ull, 8 }, { "xen", "tsc_shift", 32, 4 },
        { "xen", "console_port", 0, 4 }, { "xen", "store_port", XEN_EVTCHNS, 4 },
        { "xen.cpu.0", "kernel_sp", 1ull << 60, 8 }, { "xen.cpu.0", "kernel_cr3", 0, 8 }, { "xen.cpu.0", "kernel_cr3", 1ull << 50, 8 },
        { "xen.cpu.0", "kernel_cr3", PV_KERNEL, 8 }, { "xen.cpu.0", "user_cr3", 8, 8 }, { "xen.cpu.0", "cr0", 0, 8 },
        { "xen.cpu.0", "cr4", 1ull << 21, 8 }, { "xen.cpu.0", "trap_address", 1ull << 60, 8 },
        { "xen.cpu.0", "callback_address", 1ull << 60, 8 }, { "xen.cpu.0", "runstate", 4, 4 }, { "xen.cpu.0", "info_offset", 4096 - 56, 4 },
        { "xen.cpu.0", "info_offset", 4, 4 }, { "xen.cpu.0", "info_frame", ~0ull, 8 }, { "xen.cpu.0", "nr_gdt", 15, 4 },
        { "xen.cpu.0", "nr_gathering", 9, 4 }, { "xen.cpu.0", "iopl", 4, 1 }, { "xen.cpu.0", "iobitmap_ports", 65537, 4 },
        { "xen.cpu.1", "up", 1, 1 }, { "xen.cpu.1", "started", 1, 1 }, { "xen.cpu.2", "started", 1, 1 }, { "xen.cpu.0", "started", 0, 1 },
        { "xen.cpu.1.start", "attr", 0, 4 }, { "xen.cpu.1.start", "gs_user", 1ull << 60, 8 },
        { "xen.grants", "nr_frames", 0, 4 }, { "xen.grants", "nr_frames", 33, 4 }, { "xen.store", "in_at", 4200, 4 },
        { "xen.store", "in.len", 5000, 4 },
    };
    struct state_set set;

    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        furnish();
        save(&set);
        keep();
        pvguest_free(&g);
        u8 *at = field(&set, bad[i].section, bad[i].field);
        CHECK_MSG(at, "%s has no %s", bad[i].section, bad[i].field);
        if (at)
            memcpy(at, &bad[i].value, bad[i].size);
        CHECK_MSG(load(&set) && strstr(refusal, "xen"), "%s: %s = %#llx: %s", bad[i].section, bad[i].field,
                  (unsigned long long)bad[i].value, refusal);
        pvguest_free(&g);
        state_set_free(&set);
    }
    /* Registers of another world. */
    furnish();
    save(&set);
    keep();
    sregs.gdt_base = PV_AT(PV_DATA);
    pvguest_free(&g);
    CHECK(load(&set) && strstr(refusal, "mode"));
    pvguest_free(&g);
    state_set_free(&set);
}

static void attach_disk(char name[16])
{
    int fd = memfd_create("disk", MFD_CLOEXEC);
    struct disk *disk;

    bug_on(fd < 0 || ftruncate(fd, 1 << 20) || raw_disk_open(fd, false, 1 << 20, &disk));
    CHECK(!xen_disk_attach(g.xen, &(struct xen_disk){ .disk = disk, .queues = 1, .threads = true }, name));
}

/* Devices under the names that are wanted; and one that only one of the two guests has. */
static void test_other_devices(void)
{
    struct state_set set;
    char name[16] = "xvdc", vif[16] = "vifx";

    furnish();
    attach_disk(name);
    CHECK(!strcmp(name, "xvdc"));
    struct disk *none = NULL;
    static const char *const bad[] = { "xvdc", "xvdq", "xvd", "vif0", "xvda " };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        snprintf(vif, sizeof(vif), "%s", bad[i]);
        CHECK_MSG(xen_disk_attach(g.xen, &(struct xen_disk){ .disk = none }, vif) == -EINVAL, "%s", bad[i]);
    }
    save(&set);
    keep();
    pvguest_free(&g);
    CHECK(!load(&set) && state_set_has(&set, "xen.vbd.51744")); /* nobody took it: who restores refuses that */
    state_set_free(&set);
    save(&set);
    keep();
    pvguest_free(&g);
    pvguest_bare(&g, 3);
    memcpy(g.ram.host, memory, PV_SIZE);
    g.sregs = sregs;
    name[0] = 0;
    attach_disk(name);
    CHECK(xen_load(g.xen, &set, refusal, sizeof(refusal)) && !strcmp(refusal, "xen.vbd.51712: is missing"));
    pvguest_free(&g);
    state_set_free(&set);
}

/* Lists, with anything in them. */
static void test_lists(u64 n)
{
    static const char *const lists[] = { "xen.ports", "xen.pins", "xen.gone", "xen.m2p", "xen.mappings", "xen.store.tree",
                                         "xen.store.watches", "xen.store.tx0.tree", "xen.store.tx0.changes", "xen.cpu.0" };
    u64 random = 88172645463325252ull, taken = 0;
    struct state_set set;

    furnish();
    save(&set);
    keep();
    pvguest_free(&g);
    for (u64 i = 0; i < n; i++) {
        struct state_set one = { 0 };
        for (unsigned k = 0; k < set.nr; k++)
            state_set_add(&one, set.section[k].name, set.section[k].data, set.section[k].len);
        for (unsigned k = 0; k < one.nr; k++) {
            struct state_section *s = &one.section[k];
            if (strcmp(s->name, lists[i % ARRAY_SIZE(lists)]) || !s->len)
                continue;
            for (unsigned c = 0; c < 1 + i % 3; c++) {
                random ^= random << 13, random ^= random >> 7, random ^= random << 17;
                ((u8 *)s->data)[random % s->len] = (u8)(random >> 40);
            }
        }
        if (!load(&one)) {
            taken++;
            xen_io_pause(g.xen, false);
            store(XS_READ, 0, "data/a", "", 0);
            pv_call(&g, XEN_sched_op, XEN_SCHEDOP_yield, 0, 0, 0);
        }
        pvguest_free(&g);
        state_set_free(&one);
    }
    CHECK(taken && taken < n);
    printf("xen_state: %llu of %llu changed files were possible\n", (unsigned long long)taken, (unsigned long long)n);
    state_set_free(&set);
}

int main(void)
{
    test_all_of_it();
    test_not_believed();
    test_other_devices();
    test_lists(300);
    return check_done("unit/xen_state");
}
