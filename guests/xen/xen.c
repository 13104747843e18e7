/*
 * xen.c - a kernel that never had a machine: it is told what it has (start_info), and asks for everything else. To be read
 * from the end: xen_main() is the table of contents.
 *
 * SPDX-License-Identifier: 0BSD
 */
#include "xen/pv.h"

static struct xen_start_info *start;
const uint64_t *xen_p2m;

/* shared_info is a page of Xen's, for us to map. Anything of ours in its place will do. */
static union {
    struct xen_shared_info info;
    uint8_t page[PAGE];
} shared_page __attribute__((aligned(4096)));
#define shared (*(volatile struct xen_shared_info *)&shared_page.info)
#define vcpu shared.vcpu_info[0]

#define barrier() __asm__ volatile("" ::: "memory")

/* -- Page tables: ours to read, Xen's to write -------------------------------------------------------------------------- */

static long map(const volatile void *va, uint64_t entry)
{
    return xen_call3(XEN_update_va_mapping, va, entry, XEN_UVMF_INVLPG);
}

/* The entry of level 1..4 for an address: Xen's tables are in our memory, mapped read-only. */
static uint64_t *entry_of(uint64_t va, unsigned level)
{
    uint64_t *table = (uint64_t *)start->pt_base;

    for (unsigned l = 4; l > level; l--)
        table = frame_at((table[va >> (3 + 9 * l) & 511] & PTE_FRAME) / PAGE);
    return &table[va >> (3 + 9 * level) & 511];
}

/* -- The console: a ring in one page, and a port to ring with ------------------------------------------------------------ */

static void notify(uint32_t port)
{
    xen_call2(XEN_event_channel_op, XEN_EVTCHNOP_send, &port);
}

void console_write(const char *bytes, size_t n)
{
    volatile struct xen_console_ring *ring = frame_at(start->console_mfn);

    for (size_t i = 0; i < n;) {
        if (ring->out_prod - ring->out_cons == sizeof(ring->out)) { /* full: until somebody has taken some */
            notify(start->console_evtchn);
            xen_call2(XEN_sched_op, XEN_SCHEDOP_yield, 0);
            continue;
        }
        ring->out[ring->out_prod % sizeof(ring->out)] = bytes[i++];
        barrier(); /* first what is said, then that it is; x86 keeps stores in order, the compiler must too */
        ring->out_prod++;
    }
    notify(start->console_evtchn);
}

void leave(int status)
{
    volatile struct xen_console_ring *ring = frame_at(start->console_mfn);
    uint32_t reason = status ? XEN_SHUTDOWN_crash : XEN_SHUTDOWN_poweroff;

    while (ring->out_cons != ring->out_prod)
        xen_call2(XEN_sched_op, XEN_SCHEDOP_yield, 0);
    for (;;)
        xen_call2(XEN_sched_op, XEN_SCHEDOP_shutdown, &reason);
}

/* -- Events: bits that somebody sets, and one callback that looks which ---------------------------------------------------- */

static volatile unsigned fired[64]; /* how often each of the first ports was */

static void on_event(void)
{
    vcpu.upcall_pending = 0; /* before looking: what comes from now on calls again */
    uint64_t words = __atomic_exchange_n(&vcpu.pending_sel, 0, __ATOMIC_SEQ_CST);

    for (; words; words &= words - 1) {
        unsigned word = (unsigned)__builtin_ctzll(words);
        uint64_t bits = shared.evtchn_pending[word] & ~shared.evtchn_mask[word];

        __atomic_fetch_and(&shared.evtchn_pending[word], ~bits, __ATOMIC_SEQ_CST);
        for (; bits && !word; bits &= bits - 1)
            fired[__builtin_ctzll(bits)]++;
    }
}

/* Masking is a store; so is unmasking, but what came meanwhile has to be asked for. Any hypercall looks. */
static void events_on(void)
{
    vcpu.upcall_mask = 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (vcpu.upcall_pending)
        xen_call1(XEN_xen_version, XENVER_version);
}

/* Look with events masked: `block` unmasks and sleeps at once, so that none can slip in between. */
#define sleep_until(condition) \
    do { \
        for (vcpu.upcall_mask = 1; !(condition); vcpu.upcall_mask = 1) \
            xen_call2(XEN_sched_op, XEN_SCHEDOP_block, 0); \
        events_on(); \
    } while (0)

/* -- Traps -------------------------------------------------------------------------------------------------------------- */

#define WINDOW 0x20000000ull /* 2 MiB that one level 1 table of ours will map (show_page_tables), */
#define DEMAND (WINDOW + 511 * PAGE) /* but for this page, which comes when it is touched */
static volatile uint64_t demand_page[512] __attribute__((aligned(4096)));
static unsigned refused;

void xen_trap(struct sdk_regs *r)
{
    if (r->vector == 256) {
        on_event();
    } else if (r->vector == 14 && r->rip == (uint64_t)try_store) {
        refused++;
        r->rip = (uint64_t)try_store_failed;
    } else if (r->vector == 14 && vcpu.cr2 - DEMAND < PAGE) { /* CR2 is Xen's; we are told */
        if (map((void *)DEMAND, machine_of(demand_page) | PTE_P | PTE_W))
            die("no page for %lx\n", vcpu.cr2);
    } else {
        die("trap %lu, error %lx, at %lx, cr2 %lx\n", r->vector, r->error, r->rip, vcpu.cr2);
    }
}

static void traps_setup(void)
{
    static struct xen_trap_info table[33]; /* the last one, all zero, ends the list */

    for (unsigned i = 0; i < 32; i++)
        table[i] = (struct xen_trap_info){ .vector = (uint8_t)i, .cs = XEN_FLAT_CS64, .address = (uint64_t)trap_stubs + 16 * i };
    if (xen_call1(XEN_set_trap_table, table) || xen_call3(XEN_set_callbacks, event_entry, failsafe_entry, 0))
        die("no traps\n");
}

/* -- Time ----------------------------------------------------------------------------------------------------------------- */

static uint64_t now(void) /* ns since the guest was made */
{
    struct xen_time_info t;

    do { /* the version is odd while Xen writes */
        t.version = vcpu.time.version;
        barrier();
        t.tsc_timestamp = vcpu.time.tsc_timestamp;
        t.system_time = vcpu.time.system_time;
        t.tsc_to_system_mul = vcpu.time.tsc_to_system_mul;
        t.tsc_shift = vcpu.time.tsc_shift;
        barrier();
    } while ((t.version & 1) || t.version != vcpu.time.version);

    uint64_t ticks = __builtin_ia32_rdtsc() - t.tsc_timestamp;
    ticks = t.tsc_shift < 0 ? ticks >> -t.tsc_shift : ticks << t.tsc_shift;
    return t.system_time + (uint64_t)((unsigned __int128)ticks * t.tsc_to_system_mul >> 32);
}

static void show_timer(void)
{
    struct xen_evtchn_bind_virq timer = { .virq = XEN_VIRQ_TIMER };

    if (xen_call2(XEN_event_channel_op, XEN_EVTCHNOP_bind_virq, &timer))
        die("no timer\n");
    uint64_t deadline = now() + 20000000;
    xen_call1(XEN_set_timer_op, deadline);
    sleep_until(fired[timer.port]);
    print("The timer's port is %u; it rang %lu us after its time.\n", timer.port, (now() - deadline) / 1000);
    check(now() >= deadline && fired[timer.port] == 1, "once, and not early");
}

/* -- Page tables of our own --------------------------------------------------------------------------------------------------- */

static void show_page_tables(void)
{
    static volatile uint64_t table[512] __attribute__((aligned(4096))), page[512] __attribute__((aligned(4096)));
    static struct xen_mmu_update batch[511];
    volatile uint64_t *window = (uint64_t *)WINDOW;
    uint64_t frame = machine_of(page);
    uint32_t done = 0;

    /* A page that can be written cannot be a table, and the other way round. */
    struct xen_mmu_update link = { machine_of(entry_of(WINDOW, 2)), machine_of(table) | PTE_P | PTE_W | PTE_A };
    long while_writable = xen_call4(XEN_mmu_update, &link, 1, 0, XEN_DOMID_SELF);
    map(table, machine_of(table) | PTE_P | PTE_A);
    long read_only = xen_call4(XEN_mmu_update, &link, 1, 0, XEN_DOMID_SELF);
    check(while_writable == -XEN_EINVAL && read_only == 0, "a table must be read-only before it is one");

    for (unsigned i = 0; i < 511; i++)
        batch[i] = (struct xen_mmu_update){ machine_of(&table[i]), frame | PTE_P | PTE_A };
    xen_call4(XEN_mmu_update, batch, 511, &done, XEN_DOMID_SELF);
    page[0] = 42;
    unsigned same = 0;
    for (unsigned i = 0; i < 511; i++)
        same += window[i * 512] == 42;
    check(done == 511 && same == 511, "511 pages mapped by one call");
    volatile uint64_t *demand = (uint64_t *)DEMAND;
    demand[3] = 44; /* xen_trap() */
    check(demand_page[3] == 44, "and one that came when it was touched");

    /* What may not be: said by an error, */
    struct xen_mmu_update wrong = { machine_of(&table[7]), machine_of(table) | PTE_P | PTE_W };
    check(xen_call4(XEN_mmu_update, &wrong, 1, 0, XEN_DOMID_SELF) == -XEN_EINVAL, "no table that we could write");
    wrong.val = 1ull << 45 | PTE_P;
    check(xen_call4(XEN_mmu_update, &wrong, 1, 0, XEN_DOMID_SELF) == -XEN_EINVAL, "no frame that is not ours");
    /* A store into a level 1 table does what the call does: where the call has an error, it is a page fault. */
    check(try_store(&table[7], frame | PTE_P | PTE_W | PTE_A), "a store into the table is an update too");
    map((void *)(WINDOW + 7 * PAGE), frame | PTE_P | PTE_W | PTE_A); /* the same again, and INVLPG */
    window[7 * 512] = 43;
    check(page[0] == 43 && window[0] == 43, "through that entry it can be written");
    check(!try_store(&table[7], wrong.val) && !try_store((uint64_t *)start->pt_base, 0) && refused == 2, "two stores refused");

    link.val = 0;
    xen_call4(XEN_mmu_update, &link, 1, 0, XEN_DOMID_SELF);
    struct xen_mmuext_op flush = { .cmd = XEN_MMUEXT_TLB_FLUSH_LOCAL };
    xen_call4(XEN_mmuext_op, &flush, 1, 0, XEN_DOMID_SELF);
    check(!map(table, machine_of(table) | PTE_P | PTE_W), "unlinked, the table is a page again");
}

/* -- Xenstore: names and values, asked for over a ring ------------------------------------------------------------------------- */

static void store_put(const void *bytes, size_t n)
{
    volatile struct xen_store_ring *ring = frame_at(start->store_mfn);

    for (size_t i = 0; i < n; i++) { /* what we ask is short: there is always room */
        ring->req[ring->req_prod % sizeof(ring->req)] = ((const char *)bytes)[i];
        barrier();
        ring->req_prod++;
    }
}

static void store_get(void *to, size_t n)
{
    volatile struct xen_store_ring *ring = frame_at(start->store_mfn);

    for (size_t i = 0; i < n; i++) {
        sleep_until(ring->rsp_prod != ring->rsp_cons); /* an event comes with each answer */
        ((char *)to)[i] = ring->rsp[ring->rsp_cons % sizeof(ring->rsp)];
        barrier();
        ring->rsp_cons++;
    }
}

/* The value of a node, as text. False: an error, and that is the text. */
static bool store_read(const char *path, char *value, size_t size)
{
    struct xen_store_msg m = { .type = XS_READ, .req_id = 1, .len = (uint32_t)strlen(path) + 1 };

    store_put(&m, sizeof(m));
    store_put(path, m.len);
    notify(start->store_evtchn);
    store_get(&m, sizeof(m));
    for (uint32_t i = 0; i < m.len; i++) {
        char c;
        store_get(&c, 1);
        if (i + 1 < size)
            value[i] = c;
    }
    value[m.len < size ? m.len : size - 1] = 0;
    return m.type == XS_READ;
}

static void show_store(void)
{
    char value[64];

    check(store_read("domid", value, sizeof(value)), "xenstore answers");
    print("This is domain %s.\n", value);
    check(!store_read("no/such/node", value, sizeof(value)), "a node that is not there: %s", value);
}

/* -- All of it ------------------------------------------------------------------------------------------------------------------ */

void xen_main(struct xen_start_info *info)
{
    start = info;
    xen_p2m = (const uint64_t *)start->mfn_list;

    long version = xen_call1(XEN_xen_version, XENVER_version);
    print("Hello from a kernel outside ring 0, of %s.\n", start->magic);
    print("It speaks to version %ld.%ld, has %lu pages, and was told: %s\n", version >> 16, version & 0xffff, start->nr_pages,
          start->cmd_line);

    if (map(&shared_page, start->shared_info | PTE_P | PTE_W))
        die("no shared_info\n");
    traps_setup();
    events_on();

    show_timer();
    show_page_tables();
    show_store();
    leave(check_failed());
}
