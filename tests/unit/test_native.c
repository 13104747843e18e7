/*
 * test_native.c - Vitro's own guest ABI without a guest: each call with good, bad and hostile arguments, two VMs side by
 * side, and a fuzzer. `test_native --fuzz N [SEED]` makes N random calls (10^7 take a few minutes); without it, a few.
 *
 * Guest memory is small and lies between pages that may not be touched: a wrong bound dies at once.
 */
#define _GNU_SOURCE
#include "base/state.h"
#include "libvitro.h"
#include "net/net.h"
#include "paravirt/native.h"
#include "paravirt/native_inner.h"
#include "paravirt/paravirt.h"
#include "storage/disk.h"
#include "tests/lib/check.h"
#include "vitro/call.h"
#include "x86/x86.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LOW (512u << 10)  /* guest-physical 0 .. LOW is RAM */
#define HIGH_PA (16ull << 20)
#define HIGH (3ull << 20) /* and so is HIGH_PA .. HIGH_PA + HIGH: room for a 2 MiB page */
#define ROM_PA (8ull << 20)
#define ROM 0x4000u
#define ROOT 0x1000u      /* the guest's PML4 */
#define NOWHERE (4ull << 20)
#define CPUS 3

struct vm {
    struct ram ram;
    struct native *n;
    struct vm_clock clock;
    u8 *low, *high, *rom;
    u64 now, cr3, tsc;
    bool long_mode, pcide;
    unsigned kicks[CPUS], nr_flush, nr_others, others_ranges, nr_written, started, stopped;
    u64 flush_va, flush_pages, filled;
    unsigned flush_pcid;
    bool flush_global;
    char out[8192];
    size_t out_len;
    int shutdown, code;
    struct vt_start start;
    struct disk *disk;
    /* a network */
    struct net_backend be;
    const struct net_port *port;
    unsigned nr_sent, nr_rooms;
    size_t sent_len;
    u8 sent_first;
};

static int net_start(struct net_backend *be, const struct net_port *port)
{
    container_of(be, struct vm, be)->port = port;
    return 0;
}
static void net_stop(struct net_backend *be)
{
    container_of(be, struct vm, be)->port = NULL;
}
static void net_send(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *v, unsigned nr)
{
    struct vm *vm = container_of(be, struct vm, be);
    bug_on(hdr->gso_type || nr != 1 || v[0].iov_len > 1518);
    vm->nr_sent++;
    vm->sent_len = v[0].iov_len;
    vm->sent_first = *(u8 *)v[0].iov_base;
    vm->port->receive(vm->port->card, hdr, v[0].iov_base, v[0].iov_len); /* it may, from within */
}
static void net_room(struct net_backend *be)
{
    container_of(be, struct vm, be)->nr_rooms++;
}
static const struct net_ops net_ops = { .name = "test", .start = net_start, .stop = net_stop, .send = net_send, .room = net_room };

/* -- The world ----------------------------------------------------------------------------------------- */

static void on_paging(void *o, unsigned cpu, struct native_paging *p)
{
    struct vm *vm = o;
    (void)cpu;
    *p = (struct native_paging){ .cr3 = vm->cr3, .long_mode = vm->long_mode, .pcide = vm->pcide, .nxe = true };
}
static void on_load(void *o, unsigned cpu, u64 cr3)
{
    (void)cpu;
    ((struct vm *)o)->cr3 = cr3 & ~BITULL(63);
}
static void on_flush(void *o, unsigned cpu, unsigned pcid, u64 va, u64 pages, bool global)
{
    struct vm *vm = o;
    (void)cpu;
    vm->nr_flush++;
    vm->flush_va = va;
    vm->flush_pages = pages;
    vm->flush_pcid = pcid;
    vm->flush_global = global;
}
static void on_flush_others(void *o, unsigned cpu, const struct vitro_flush *list, unsigned nr)
{
    struct vm *vm = o;
    (void)cpu;
    vm->nr_others++;
    vm->others_ranges = nr;
    if (nr) /* the last of them is what this vCPU forgot last */
        CHECK(list[nr - 1].va == vm->flush_va && list[nr - 1].pages == vm->flush_pages && list[nr - 1].pcid == vm->flush_pcid &&
              list[nr - 1].global == vm->flush_global);
}
static u64 on_populate(void *o, unsigned cpu, u64 va, u64 pages, bool write, bool user)
{
    (void)cpu, (void)va, (void)write, (void)user;
    ((struct vm *)o)->filled += pages;
    return pages;
}
static void on_kick(void *o, unsigned cpu)
{
    __atomic_fetch_add(&((struct vm *)o)->kicks[cpu], 1, __ATOMIC_RELAXED);
}
static int on_start(void *o, unsigned cpu, unsigned which, const struct vt_start *s)
{
    struct vm *vm = o;
    (void)cpu;
    vm->started = which;
    vm->start = *s;
    return 0;
}
static int on_stop(void *o, unsigned cpu)
{
    ((struct vm *)o)->stopped = cpu;
    return 0;
}
static u64 on_tsc(void *o, unsigned cpu)
{
    (void)cpu;
    return ((struct vm *)o)->tsc + ((struct vm *)o)->now * 2; /* 2 GHz */
}
static u64 on_wall(void *o)
{
    (void)o;
    return 1700000000ull * NS_PER_SEC;
}
static void on_console(void *o, const u8 *bytes, size_t len)
{
    struct vm *vm = o;
    len = MIN(len, sizeof(vm->out) - vm->out_len);
    memcpy(vm->out + vm->out_len, bytes, len);
    vm->out_len += len;
}
static void on_log(void *o, unsigned level, const char *text, size_t len)
{
    bug_on(level > VT_LOG_DEBUG);
    on_console(o, (const u8 *)text, len);
}
static void on_shutdown(void *o, enum vt_shutdown reason, unsigned code)
{
    ((struct vm *)o)->shutdown = (int)reason;
    ((struct vm *)o)->code = (int)code;
}
static void on_written(void *o, gpa_t pa, u64 len)
{
    struct vm *vm = o;
    __atomic_fetch_add(&vm->nr_written, 1, __ATOMIC_RELAXED);
    for (u64 at = pa; at < pa + len; at = (at & PAGE_MASK) + PAGE_SIZE)
        bug_on(!ram_find(&vm->ram, at));
}
static u64 on_now(void *o)
{
    return ((struct vm *)o)->now;
}

static u8 *guarded(size_t size)
{
    u8 *p = mmap(NULL, size + 2 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + PAGE_SIZE, size, PROT_READ | PROT_WRITE))
        abort();
    return p + PAGE_SIZE;
}

static void vm_make(struct vm *vm, bool disk)
{
    memset(vm, 0, sizeof(*vm));
    ram_init(&vm->ram);
    vm->low = guarded(LOW);
    vm->high = guarded(HIGH);
    vm->rom = guarded(ROM);
    if (ram_add_slot(&vm->ram, 0, LOW, vm->low, false) || ram_add_slot(&vm->ram, HIGH_PA, HIGH, vm->high, false) ||
        ram_add_slot(&vm->ram, ROM_PA, ROM, vm->rom, true))
        abort();
    vm->ram.written = on_written;
    vm->ram.written_opaque = vm;
    vm->cr3 = ROOT;
    vm->long_mode = vm->pcide = true;
    vm->shutdown = -1;
    clock_init(&vm->clock, on_now, vm);
    if (disk) {
        char name[] = "/tmp/test_native.XXXXXX", err[DISK_ERR_LEN];
        int fd = mkstemp(name);
        const struct disk_options o = { .format = "raw" };
        if (fd < 0 || ftruncate(fd, 64 << 10) || disk_open(name, &o, &vm->disk, err))
            abort();
        unlink(name);
        close(fd);
    }
    vm->be = (struct net_backend){ .ops = &net_ops, .mtu = 1500 };
    const struct paravirt_net nic = { .be = &vm->be, .mac = { 2, 0, 0, 0, 0, 1 } };
    const struct native_config c = {
        .nic = &nic, .nr_nics = disk,
        .ram = &vm->ram, .clock = &vm->clock, .nr_cpus = CPUS, .tsc_khz = 2000000, .disk = &vm->disk, .nr_disks = disk,
        .ops = { .opaque = vm, .paging = on_paging, .load_root = on_load, .flush = on_flush, .flush_others = on_flush_others,
                 .populate = on_populate,
                 .kick = on_kick, .start = on_start, .stop = on_stop, .tsc = on_tsc, .wall_ns = on_wall,
                 .console = on_console, .log = on_log, .shutdown = on_shutdown },
    };
    if (native_create(&c, &vm->n))
        abort();
}

static void vm_free(struct vm *vm)
{
    native_destroy(vm->n);
    clock_fini(&vm->clock);
    disk_close(vm->disk);
    ram_fini(&vm->ram);
    munmap(vm->low - PAGE_SIZE, LOW + 2 * PAGE_SIZE);
    munmap(vm->high - PAGE_SIZE, HIGH + 2 * PAGE_SIZE);
    munmap(vm->rom - PAGE_SIZE, ROM + 2 * PAGE_SIZE);
}

static s64 call(struct vm *vm, unsigned number, u64 a, u64 b, u64 c, u64 d)
{
    const u64 arg[5] = { a, b, c, d, 0 };
    return native_call(vm->n, 0, number, arg);
}
#define C(...) C_(__VA_ARGS__, 0, 0, 0, 0)
#define C_(n, a, b, c, d, ...) call(&vm, n, a, b, c, d)
#define EQUAL(got, want) \
    do { \
        s64 g_ = (s64)(got), w_ = (s64)(want); \
        CHECK_MSG(g_ == w_, "%s is %lld, not %lld", #got, (long long)g_, (long long)w_); \
    } while (0)

/* The entry that maps va, by a walk of our own; 0: none. */
static u64 walk(struct vm *vm, u64 root, u64 va)
{
    u64 table = root & PAGE_MASK;
    for (int level = 4; level; level--) {
        u64 *t = ram_ptr(&vm->ram, table, PAGE_SIZE);
        u64 e = t ? t[va >> (12 + 9 * (level - 1)) & 511] : 0;
        if (!(e & PTE_P))
            return 0;
        if (level == 1 || e & PTE_PS)
            return e;
        table = e & 0xffffffffff000ull;
    }
    return 0;
}

/* -- System ------------------------------------------------------------------------------------------------- */

#define BUF 0x8000u /* where arguments are put */

static void test_system(void)
{
    struct vm vm;
    vm_make(&vm, false);
    EQUAL(C(VT_NOP), 0);
    EQUAL(C(VT_NR_CALLS), -VT_ENOCALL);
    EQUAL(C(0x08), -VT_ENOCALL);
    EQUAL(C(~0u), -VT_ENOCALL);
    EQUAL(C(VT_BLOCK_INFO, 0, BUF), -VT_ENOCALL); /* no disks: the group is not offered */
    EQUAL(native_features(vm.n) & VT_FEATURE_BLOCK, 0);

    strcpy((char *)vm.low + BUF, "hello\n\x1b[2J");
    EQUAL(C(VT_CONSOLE_WRITE, BUF, 6), 6);
    EQUAL(vm.out_len, 6);
    CHECK(!memcmp(vm.out, "hello\n", 6));
    EQUAL(C(VT_CONSOLE_WRITE, BUF, 0), -VT_EINVAL);
    EQUAL(C(VT_CONSOLE_WRITE, BUF, VT_CONSOLE_MAX + 1), -VT_E2BIG);
    EQUAL(C(VT_CONSOLE_WRITE, LOW - 2, 4), -VT_EFAULT);
    EQUAL(C(VT_CONSOLE_WRITE, ~0ull, 4), -VT_EFAULT);
    EQUAL(C(VT_CONSOLE_WRITE, ROM_PA, 4), 4); /* reading ROM is fine */
    vm.out_len = 0;
    EQUAL(C(VT_LOG, VT_LOG_INFO, BUF, 10), 0);
    CHECK(!memcmp(vm.out, "hello  [2J", 10)); /* no control characters */
    EQUAL(C(VT_LOG, VT_LOG_DEBUG + 1, BUF, 1), -VT_EINVAL);
    EQUAL(C(VT_LOG, 0, BUF, VT_LOG_MAX + 1), -VT_E2BIG);
    EQUAL(C(VT_LOG, 0, NOWHERE, 1), -VT_EFAULT);

    EQUAL(C(VT_SHUTDOWN, VT_SHUTDOWN_EXIT + 1, 0), -VT_EINVAL);
    EQUAL(C(VT_SHUTDOWN, VT_SHUTDOWN_EXIT, 128), -VT_EINVAL);
    EQUAL(vm.shutdown, -1);
    EQUAL(C(VT_SHUTDOWN, VT_SHUTDOWN_EXIT, 5), 0);
    EQUAL(vm.shutdown, VT_SHUTDOWN_EXIT);
    EQUAL(vm.code, 5);
    vm_free(&vm);
}

static void test_multi(void)
{
    struct vm vm;
    vm_make(&vm, false);
    struct vt_call *m = (struct vt_call *)(vm.low + BUF);
    m[0] = (struct vt_call){ .number = VT_VCPU_COUNT, .result = 77 };
    m[1] = (struct vt_call){ .number = VT_TIMER_SET, .arg = { VT_TIMERS }, .result = 77 };
    m[2] = (struct vt_call){ .number = VT_VCPU_COUNT, .result = 77 };
    EQUAL(C(VT_MULTI, BUF, 3, 0), 1); /* says which failed */
    EQUAL(m[0].result, CPUS);
    EQUAL(m[1].result, -VT_ENOENT);
    EQUAL(m[2].result, 77); /* not done */
    EQUAL(C(VT_MULTI, BUF, 3, VT_MULTI_ALL), 1);
    EQUAL(m[2].result, CPUS);
    m[1].number = VT_NOP;
    EQUAL(C(VT_MULTI, BUF, 3, 0), 3);
    m[1].number = VT_MULTI;
    EQUAL(C(VT_MULTI, BUF, 3, 0), 1);
    EQUAL(m[1].result, -VT_EINVAL);
    m[1] = (struct vt_call){ .number = VT_SHUTDOWN };
    EQUAL(C(VT_MULTI, BUF, 3, 0), 1);
    EQUAL(vm.shutdown, -1);
    m[1] = (struct vt_call){ .number = VT_NOP, .reserved2 = 1 };
    EQUAL(C(VT_MULTI, BUF, 3, 0), 1);
    EQUAL(C(VT_MULTI, BUF, 0, 0), 0);
    EQUAL(C(VT_MULTI, BUF + 4, 1, 0), -VT_EINVAL);
    EQUAL(C(VT_MULTI, BUF, 1, 2), -VT_EINVAL);
    EQUAL(C(VT_MULTI, BUF, VT_MULTI_MAX + 1, 0), -VT_E2BIG);
    EQUAL(C(VT_MULTI, LOW - 64, 2, 0), -VT_EFAULT);
    EQUAL(C(VT_MULTI, ROM_PA, 1, 0), -VT_EFAULT); /* results cannot be written there */
    EQUAL(C(VT_MULTI, ~7ull, 1, 0), -VT_EFAULT);
    vm_free(&vm);
}

/* -- Memory -------------------------------------------------------------------------------------------------- */

#define POOL 0x20000u
#define POOL_PAGES 32

static s64 one(struct vm *vm, unsigned number, u64 space, u64 va, u64 pa, u32 pages, u32 flags)
{
    struct vt_range *r = (struct vt_range *)(vm->low + BUF);
    *r = (struct vt_range){ .va = va, .pa = pa, .pages = pages, .flags = flags, .result = 99 };
    s64 done = call(vm, number, space, BUF, 1, 0);
    CHECK(done < 0 || done == !r->result);
    return done < 0 ? done : r->result;
}

static void test_tables(void)
{
    struct vm vm;
    vm_make(&vm, false);
    u64 *list = (u64 *)(vm.low + BUF);
    EQUAL(C(VT_TABLES_GIVE, POOL + 1, 1), -VT_EINVAL);
    EQUAL(C(VT_TABLES_GIVE, POOL, 0), -VT_EINVAL);
    EQUAL(C(VT_TABLES_GIVE, POOL, VT_PAGES_MAX + 1), -VT_E2BIG);
    EQUAL(C(VT_TABLES_GIVE, POOL, LOW >> PAGE_SHIFT), -VT_EFAULT);
    EQUAL(C(VT_TABLES_GIVE, LOW, 1), -VT_EFAULT);
    EQUAL(C(VT_TABLES_GIVE, ROM_PA, 1), -VT_EFAULT);
    EQUAL(C(VT_TABLES_GIVE, POOL, 2), 0);
    EQUAL(C(VT_TABLES_GIVE, POOL, 1), -VT_EEXIST);
    EQUAL(C(VT_TABLES_GIVE, POOL - 0x1000, 3), -VT_EEXIST); /* all or nothing */
    EQUAL(C(VT_TABLES_GIVE, POOL - 0x1000, 1), 0);
    EQUAL(C(VT_TABLES_TAKE, BUF, 2), 2);
    EQUAL(list[0], POOL - 0x1000);
    EQUAL(C(VT_TABLES_TAKE, BUF, 2), 1);
    EQUAL(C(VT_TABLES_TAKE, BUF, 2), 0);
    EQUAL(C(VT_TABLES_TAKE, BUF + 1, 2), -VT_EINVAL);
    EQUAL(C(VT_TABLES_TAKE, LOW - 8, 2), -VT_EFAULT);
    EQUAL(C(VT_TABLES_TAKE, BUF, VT_BATCH_MAX + 1), -VT_E2BIG);
    vm_free(&vm);
}

static void test_map(void)
{
    struct vm vm;
    const u64 va = 0x7f0000000000, kva = 0xffff800000000000;
    vm_make(&vm, false);
    EQUAL(one(&vm, VT_MAP, 0, va, HIGH_PA, 1, VT_W), -VT_ENOMEM); /* no tables yet */
    EQUAL(C(VT_TABLES_GIVE, POOL, POOL_PAGES), 0);
    EQUAL(one(&vm, VT_MAP, 0, va, HIGH_PA, 3, VT_W), 0);
    EQUAL(walk(&vm, vm.cr3, va), HIGH_PA | PTE_P | PTE_W | PTE_NX);
    EQUAL(walk(&vm, vm.cr3, va + 0x2000), (HIGH_PA + 0x2000) | PTE_P | PTE_W | PTE_NX);
    EQUAL(walk(&vm, vm.cr3, va + 0x3000), 0);
    EQUAL(vm.n->nr_pool, POOL_PAGES - 3);
    EQUAL(vm.nr_flush, 0); /* nothing was there */
    EQUAL(one(&vm, VT_MAP, 0, va - 0x1000, HIGH_PA, 2, VT_W), -VT_EEXIST); /* across a 512 GiB edge: as a whole or not at all */
    EQUAL(walk(&vm, vm.cr3, va - 0x1000), 0);
    EQUAL(one(&vm, VT_MAP, 0, va + 0x1000, HIGH_PA, 1, VT_X | VT_U | VT_REPLACE), 0);
    EQUAL(walk(&vm, vm.cr3, va + 0x1000), HIGH_PA | PTE_P | PTE_U);
    EQUAL(vm.nr_flush, 1);
    EQUAL(vm.nr_others, 1);
    EQUAL(one(&vm, VT_MAP, 0, kva, 0x3000, 1, VT_G | VT_FILL), 0);
    EQUAL(vm.filled, 1);

    /* 2 MiB pages: HIGH_PA is 2 MiB aligned */
    EQUAL(one(&vm, VT_MAP, 0, 0x40000000, HIGH_PA, 512, VT_W | VT_LARGE), 0);
    EQUAL(walk(&vm, vm.cr3, 0x40000000), HIGH_PA | PTE_P | PTE_W | PTE_PS | PTE_NX);
    EQUAL(one(&vm, VT_MAP, 0, 0x40001000, HIGH_PA, 1, 0), -VT_EEXIST);
    EQUAL(one(&vm, VT_MAP, 0, 0x40001000, HIGH_PA, 1, VT_REPLACE), -VT_EINVAL); /* no splitting */
    EQUAL(one(&vm, VT_UNMAP, 0, 0x40000000, 0, 511, 0), -VT_EINVAL);
    EQUAL(one(&vm, VT_PROTECT, 0, 0x40000000, 0, 1, 0), -VT_EINVAL);
    EQUAL(one(&vm, VT_MAP, 0, 0x40200000, HIGH_PA + 0x1000, 512, VT_LARGE), -VT_EINVAL);
    EQUAL(one(&vm, VT_MAP, 0, 0x40200000, HIGH_PA, 511, VT_LARGE), -VT_EINVAL);
    EQUAL(one(&vm, VT_MAP, 0, 0x40200000, HIGH_PA, 1024, VT_LARGE), -VT_EFAULT);
    EQUAL(one(&vm, VT_PROTECT, 0, 0x40000000, 0, 512, VT_X), 0);
    EQUAL(walk(&vm, vm.cr3, 0x40000000), HIGH_PA | PTE_P | PTE_PS);
    EQUAL(one(&vm, VT_UNMAP, 0, 0x3ffff000, 0, 514, 0), 0);
    EQUAL(walk(&vm, vm.cr3, 0x40000000), 0);

    /* Bad ranges */
    static const struct {
        u64 va, pa;
        u32 pages, flags;
        int error;
    } bad[] = {
        { 0x1001, HIGH_PA, 1, 0, VT_EINVAL },
        { 0x1000, HIGH_PA + 1, 1, 0, VT_EINVAL },
        { 0x1000, HIGH_PA, 0, 0, VT_EINVAL },
        { 0x1000, HIGH_PA, 1, 0x100, VT_EINVAL },
        { 0x800000000000, HIGH_PA, 1, 0, VT_EINVAL },
        { 0x7ffffffff000, HIGH_PA, 2, 0, VT_EINVAL },
        { 0xfffffffffffff000, HIGH_PA, 2, 0, VT_EINVAL },
        { 0xffff7ffffffff000, HIGH_PA, 2, 0, VT_EINVAL },
        { 0x1000, NOWHERE, 1, 0, VT_EFAULT },
        { 0x1000, LOW - 0x1000, 2, 0, VT_EFAULT },
        { 0x1000, ROM_PA, 1, 0, VT_EFAULT },
        { 0x1000, 0xfffffffffffff000, 2, 0, VT_EFAULT },
        { 0x1000, HIGH_PA, VT_PAGES_MAX + 1, 0, VT_E2BIG },
        { 0x1000, HIGH_PA, ~0u, 0, VT_E2BIG },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        CHECK_MSG(one(&vm, VT_MAP, 0, bad[i].va, bad[i].pa, bad[i].pages, bad[i].flags) == -bad[i].error, "bad range %u", i);
    CHECK(!walk(&vm, vm.cr3, 0x1000));

    /* Lists of frames */
    u64 *list = (u64 *)(vm.low + 0x9000);
    list[0] = HIGH_PA + 0x5000;
    list[1] = 0x3000;
    EQUAL(one(&vm, VT_MAP, 0, 0x50000000, 0x9000, 2, VT_W | VT_LIST), 0);
    EQUAL(walk(&vm, vm.cr3, 0x50000000), (HIGH_PA + 0x5000) | PTE_P | PTE_W | PTE_NX);
    EQUAL(walk(&vm, vm.cr3, 0x50001000), 0x3000 | PTE_P | PTE_W | PTE_NX);
    list[1] = NOWHERE;
    EQUAL(one(&vm, VT_MAP, 0, 0x60000000, 0x9000, 2, VT_LIST), -VT_EFAULT);
    list[1] = 0x3001;
    EQUAL(one(&vm, VT_MAP, 0, 0x60000000, 0x9000, 2, VT_LIST), -VT_EINVAL);
    EQUAL(walk(&vm, vm.cr3, 0x60000000), 0);
    EQUAL(one(&vm, VT_MAP, 0, 0x60000000, LOW - 8, 2, VT_LIST), -VT_EFAULT);
    EQUAL(one(&vm, VT_MAP, 0, 0x60000000, 0x9004, 1, VT_LIST), -VT_EINVAL);
    EQUAL(one(&vm, VT_MAP, 0, 0x60000000, 0x9000, VT_BATCH_MAX + 1, VT_LIST), -VT_E2BIG);
    EQUAL(one(&vm, VT_MAP, 0, 0x60000000, 0x9000, 512, VT_LIST | VT_LARGE), -VT_EINVAL);

    /* Unmapping passes over what is not there */
    vm.nr_flush = 0;
    EQUAL(one(&vm, VT_UNMAP, 0, va, 0, 512, 0), 0);
    EQUAL(walk(&vm, vm.cr3, va + 0x1000), 0);
    EQUAL(vm.nr_flush, 1);
    EQUAL(vm.flush_pages, NATIVE_ALL); /* many pages: everything */
    EQUAL(vm.others_ranges, 0);
    EQUAL(one(&vm, VT_UNMAP, 0, 0x123000, 0, 1, 0), 0);
    EQUAL(vm.flush_pages, 1);
    EQUAL(vm.others_ranges, 1); /* and nothing else, of the other vCPUs */
    EQUAL(one(&vm, VT_UNMAP, 0, kva, 0, 1, 0), 0);
    CHECK(vm.flush_global);

    /* The batch itself */
    struct vt_range *r = (struct vt_range *)(vm.low + BUF);
    for (unsigned i = 0; i < 200; i++)
        r[i] = (struct vt_range){ .va = va + i * 0x1000, .pa = HIGH_PA + i * 0x1000, .pages = 1, .flags = VT_W, .result = 7 };
    r[150].va = va; /* there by then */
    EQUAL(C(VT_MAP, 0, BUF, 200), 150);
    EQUAL(r[149].result, 0);
    EQUAL(r[150].result, -VT_EEXIST);
    EQUAL(r[151].result, 7);
    EQUAL(C(VT_MAP, 0, BUF + 4, 1), -VT_EINVAL);
    EQUAL(C(VT_MAP, 0, BUF, VT_BATCH_MAX + 1), -VT_E2BIG);
    EQUAL(C(VT_MAP, 0, LOW - 32, 2), -VT_EFAULT);
    EQUAL(C(VT_MAP, 1, BUF, 1), -VT_ENOENT);
    EQUAL(C(VT_MAP, ~0ull, BUF, 1), -VT_ENOENT);
    r[0].reserved = 1;
    EQUAL(C(VT_UNMAP, 0, BUF, 1), 0);
    EQUAL(r[0].result, -VT_EINVAL);
    vm.long_mode = false;
    EQUAL(C(VT_MAP, 0, BUF, 1), -VT_EINVAL);
    vm_free(&vm);
}

static void test_spaces(void)
{
    struct vm vm;
    vm_make(&vm, false);
    EQUAL(C(VT_SPACE_CREATE, 0, 512), -VT_ENOMEM);
    EQUAL(C(VT_TABLES_GIVE, POOL, POOL_PAGES), 0);
    EQUAL(one(&vm, VT_MAP, 0, 0x5000, 0x5000, 1, VT_W), 0);
    s64 left = (s64)vm.n->nr_pool;
    EQUAL(C(VT_SPACE_CREATE, 0, 513), -VT_EINVAL);
    EQUAL(C(VT_SPACE_CREATE, 512, 1), -VT_EINVAL);
    EQUAL(C(VT_SPACE_CREATE, ~0ull, 2), -VT_EINVAL);
    EQUAL(C(VT_SPACE_CREATE, 0, 1), 1);
    EQUAL(C(VT_SPACE_CREATE, 0, 0), 2);
    u64 root1 = (u64)C(VT_SPACE_ROOT, 1), root2 = (u64)C(VT_SPACE_ROOT, 2);
    CHECK(walk(&vm, root1, 0x5000) && !walk(&vm, root2, 0x5000));
    EQUAL(one(&vm, VT_MAP, 2, 0x8000000000, 0x6000, 1, VT_W | VT_U), 0);
    CHECK(walk(&vm, root2, 0x8000000000) && !walk(&vm, vm.cr3, 0x8000000000));
    EQUAL(one(&vm, VT_POPULATE, 2, 0x8000000000, 0, 1, 0), -VT_EINVAL); /* not the current one */
    EQUAL(C(VT_SPACE_SWITCH, 2), 0);
    EQUAL(vm.cr3, root2 | 2);
    EQUAL(one(&vm, VT_POPULATE, 2, 0x8000000000, 0, 1, 0), 0);
    EQUAL(C(VT_SPACE_DESTROY, 2), -VT_EBUSY);
    EQUAL(C(VT_SPACE_SWITCH, 1), 0);
    EQUAL(C(VT_SPACE_DESTROY, 2), 0);
    EQUAL(vm.flush_pcid, 2);
    EQUAL(C(VT_SPACE_DESTROY, 2), -VT_ENOENT);
    EQUAL(C(VT_SPACE_SWITCH, 2), -VT_ENOENT);
    EQUAL(C(VT_SPACE_SWITCH, 0), -VT_ENOENT);
    EQUAL(C(VT_SPACE_ROOT, VT_SPACES_MAX + 1), -VT_ENOENT);
    EQUAL(vm.n->nr_pool, left - 1); /* only space 1's root is out; what it shares was not freed */
    CHECK(walk(&vm, vm.cr3, 0x5000));

    /* Tables that the guest has knotted: loops, aliases, other people's pages */
    EQUAL(C(VT_SPACE_CREATE, 0, 0), 2);
    u64 *t = ram_ptr(&vm.ram, (u64)C(VT_SPACE_ROOT, 2), PAGE_SIZE);
    for (unsigned i = 0; i < 512; i++)
        t[i] = (i & 1 ? (u64)C(VT_SPACE_ROOT, 2) : i & 2 ? ROOT : NOWHERE) | 7;
    EQUAL(one(&vm, VT_MAP, 2, 0x8000000000, 0x6000, 1, VT_REPLACE) >= -VT_E2BIG, 1);
    EQUAL(C(VT_SPACE_DESTROY, 2), 0);
    CHECK(vm.n->nr_pool <= vm.n->cap_pool);
    vm_free(&vm);
}

static void test_balloon(void)
{
    struct vm vm;
    vm_make(&vm, false);
    struct vt_extent *x = (struct vt_extent *)(vm.low + BUF);
    memset(vm.high, 0xaa, HIGH);
    x[0] = (struct vt_extent){ .pa = HIGH_PA, .pages = 4 };
    x[1] = (struct vt_extent){ .pa = HIGH_PA + 0x2000, .pages = 1 };
    EQUAL(C(VT_BALLOON_GIVE, BUF, 2), 1);
    EQUAL(x[1].result, -VT_EEXIST);
    EQUAL(C(VT_BALLOON_SIZE), 4);
    CHECK(!vm.high[0] && !vm.high[0x3fff] && vm.high[0x4000] == 0xaa);
    x[1].flags = 0;
    EQUAL(C(VT_FREE_HINT, BUF + 24, 1), 0); /* given pages are not the guest's */
    EQUAL(C(VT_BALLOON_TAKE, BUF + 24, 1), 1);
    EQUAL(C(VT_BALLOON_TAKE, BUF + 24, 1), 0);
    EQUAL(x[1].result, -VT_ENOENT);
    EQUAL(C(VT_BALLOON_SIZE), 3);
    x[0] = (struct vt_extent){ .pa = HIGH_PA + 0x4000, .pages = 1 };
    EQUAL(C(VT_FREE_HINT, BUF, 1), 1);
    CHECK(!vm.high[0x4000]);
    x[0] = (struct vt_extent){ .pa = HIGH_PA + HIGH - 0x1000, .pages = 2 };
    EQUAL(C(VT_BALLOON_GIVE, BUF, 1), 0);
    EQUAL(x[0].result, -VT_EFAULT);
    x[0] = (struct vt_extent){ .pa = HIGH_PA + 0x10000, .pages = 1, .flags = VT_FILL };
    EQUAL(C(VT_BALLOON_GIVE, BUF, 1), 0);
    EQUAL(x[0].result, -VT_EINVAL);
    EQUAL(C(VT_BALLOON_GIVE, BUF + 2, 1), -VT_EINVAL);
    /* A page cannot be a table and in the balloon */
    EQUAL(C(VT_TABLES_GIVE, HIGH_PA, 1), -VT_EEXIST);
    EQUAL(C(VT_TABLES_GIVE, POOL, 1), 0);
    x[0] = (struct vt_extent){ .pa = POOL, .pages = 1 };
    EQUAL(C(VT_BALLOON_GIVE, BUF, 1), 0);
    EQUAL(x[0].result, -VT_EEXIST);
    vm_free(&vm);
}

/* -- Events and time ----------------------------------------------------------------------------------------- */

#define EVENTS 0xa000u

static void test_events(void)
{
    struct vm vm;
    vm_make(&vm, false);
    struct vt_events *e = (struct vt_events *)(vm.low + EVENTS);
    EQUAL(C(VT_EVENT_SEND, 3), -VT_ENOENT);
    EQUAL(C(VT_EVENT_PAGE, EVENTS + 8), -VT_EINVAL);
    EQUAL(C(VT_EVENT_PAGE, ROM_PA), -VT_EFAULT);
    EQUAL(C(VT_EVENT_PAGE, NOWHERE), -VT_EFAULT);
    EQUAL(C(VT_EVENT_PAGE, EVENTS), 0);
    EQUAL(C(VT_EVENT_VECTOR, CPUS, 64), -VT_ENOENT);
    EQUAL(C(VT_EVENT_VECTOR, 1, 31), -VT_EINVAL);
    EQUAL(C(VT_EVENT_VECTOR, 1, 256), -VT_EINVAL);
    EQUAL(C(VT_EVENT_VECTOR, 1, 64), 0);
    EQUAL(C(VT_EVENT_BIND, VT_PORTS, 1), -VT_EINVAL);
    EQUAL(C(VT_EVENT_BIND, 70, CPUS), -VT_ENOENT);
    EQUAL(C(VT_EVENT_BIND, 70, 1), 0);
    EQUAL(C(VT_EVENT_SEND, VT_PORTS), -VT_EINVAL);
    EQUAL(C(VT_EVENT_SEND, 70), 0);
    EQUAL(e->pending[1], BITULL(6));
    EQUAL(vm.kicks[1], 1);
    EQUAL(e->vcpu[1].upcall, 1);
    EQUAL(native_upcall(vm.n, 0), -1);
    EQUAL(native_upcall(vm.n, 1), 64);
    EQUAL(native_upcall(vm.n, 1), -1);
    EQUAL(C(VT_EVENT_SEND, 71), 0); /* bound to vCPU 0, which has no vector */
    EQUAL(vm.kicks[0], 0);
    EQUAL(C(VT_EVENT_SEND, 70), 0); /* the handler has not begun */
    EQUAL(vm.kicks[1], 1);
    e->vcpu[1].upcall = 0;
    e->mask[1] = BITULL(6);
    EQUAL(C(VT_EVENT_SEND, 70), 0);
    EQUAL(vm.kicks[1], 1); /* masked */
    e->mask[1] = 0;
    EQUAL(C(VT_VCPU_KICK, 1), 0);
    EQUAL(vm.kicks[1], 2);
    EQUAL(C(VT_VCPU_KICK, CPUS), -VT_ENOENT);
    /* A guest that writes nonsense into `upcall` */
    e->vcpu[1].upcall = 0xdead;
    EQUAL(C(VT_EVENT_SEND, 70), 0);
    EQUAL(vm.kicks[1], 3);
    EQUAL(C(VT_EVENT_PAGE, 0), 0);
    native_event(vm.n, 70);
    native_event(vm.n, ~0u);
    EQUAL(vm.kicks[1], 3);
    vm_free(&vm);
}

/* Timers that are set by writing to the page: when there is a call, when there is none, and what is looked at when. */
static void test_timer_page(struct vm *p, struct vt_events *e)
{
    struct vm vm = *p;
    struct vt_timers *t = (struct vt_timers *)(vm.low + BUF);
    const u64 us = 1000;
    u64 start = vm.now + 1000 * us;
#define RUN(at) (p->now = start + (at), clock_run(&p->clock))
#define DUE() (e->pending[0] >> 11 & 1)
#define NEAR(a, b) ((a) - (b) <= 10 * us) /* a deadline of the guest's clock is not early, and hardly late */

    EQUAL(C(VT_TIMER_PAGE, BUF + 32), -VT_EINVAL);
    EQUAL(C(VT_TIMER_PAGE, BUF + 0xc40), -VT_EINVAL); /* would cross a page */
    EQUAL(C(VT_TIMER_PAGE, NOWHERE), -VT_EFAULT);
    e->pending[0] = 0;
    RUN(0);
    memset(t, 0x77, sizeof(*t));
    EQUAL(C(VT_TIMER_SET, 2, start + 100 * us, 0, 11), 0);
    EQUAL(C(VT_TIMER_PAGE, BUF), 0);
    EQUAL(t->timer[2].deadline_ns, start + 100 * us); /* one that was set before shows there */
    EQUAL(t->timer[2].armed_ns, start + 100 * us);
    EQUAL(t->timer[3].deadline_ns | t->timer[3].armed_ns, 0);

    CHECK(vt_timer_write(t, 2, start + 300 * us)); /* later: no call */
    RUN(110 * us);
    CHECK(!DUE());
    EQUAL(t->timer[2].armed_ns, start + 300 * us);
    CHECK(!vt_timer_write(t, 2, start + 200 * us)); /* sooner: a call, */
    EQUAL(C(VT_TIMER_SET, 2, start + 200 * us, 0, 11), 0);
    EQUAL(t->timer[2].armed_ns, start + 200 * us);
    RUN(210 * us);
    CHECK(DUE());
    EQUAL(t->timer[2].deadline_ns | t->timer[2].armed_ns, 0);
    e->pending[0] = 0;
    RUN(310 * us);
    CHECK(!DUE());

    CHECK(!vt_timer_write(t, 2, start + 400 * us)); /* nothing is armed: a call, or HLT */
    RUN(390 * us);
    native_halt(vm.n, 0);
    EQUAL(t->timer[2].armed_ns, start + 400 * us);
    CHECK(NEAR(vm.n->timer[2].deadline_ns, start + 400 * us));
    RUN(410 * us);
    CHECK(DUE());
    e->pending[0] = 0;
    vt_timer_write(t, 2, start + 405 * us); /* due already when the vCPU halts */
    native_halt(vm.n, 0);
    CHECK(DUE() && !t->timer[2].deadline_ns);
    e->pending[0] = 0;

    EQUAL(C(VT_TIMER_SET, 2, start + 500 * us, 0, 11), 0);
    CHECK(vt_timer_write(t, 2, 0)); /* off: no call */
    RUN(600 * us);
    CHECK(!DUE());
    EQUAL(t->timer[2].armed_ns, 0);

    /* Periodic ones are not on the page; numbers that are none stop the timer; a timer that no TIMER_SET made is none. */
    EQUAL(C(VT_TIMER_SET, 2, start + 700 * us, 100 * us, 11), 0);
    EQUAL(t->timer[2].deadline_ns | t->timer[2].armed_ns, 0);
    t->timer[2].deadline_ns = start + 650 * us;
    native_halt(vm.n, 0);
    RUN(690 * us);
    CHECK(!DUE());
    RUN(710 * us);
    CHECK(DUE());
    e->pending[0] = 0;
    EQUAL(C(VT_TIMER_SET, 2, start + 900 * us, 0, 11), 0);
    t->timer[2].deadline_ns = ~0ull;
    RUN(910 * us);
    CHECK(!DUE() && !vm.n->timer[2].deadline_ns);
    t->timer[2].deadline_ns = 0;
    t->timer[40].deadline_ns = 1;
    native_halt(vm.n, 0);
    EQUAL(vm.n->timer[40].deadline_ns, 0);
    EQUAL(e->pending[0], 0);
    EQUAL(C(VT_TIMER_PAGE, 0), 0);
    memset(t, 0, sizeof(*t));
#undef RUN
#undef DUE
#undef NEAR
}

static void test_time(void)
{
    struct vm vm;
    vm_make(&vm, false);
    struct vt_time *t = (struct vt_time *)(vm.low + 0x6fd0);
    vm.now = 5000;
    vm.tsc = 123456;
    EQUAL(C(VT_TIME_PAGE, 0x6fd0), 0);
    EQUAL(C(VT_TIME_PAGE, 0x6fd8), -VT_EINVAL); /* would cross a page */
    EQUAL(C(VT_TIME_PAGE, 0x6004), -VT_EINVAL);
    EQUAL(C(VT_TIME_PAGE, NOWHERE), -VT_EFAULT);
    CHECK(!(t->seq & 1) && t->seq);
    EQUAL(t->tsc, 123456 + 2 * 5000);
    EQUAL(t->mono_ns, 5000);
    EQUAL(t->wall_ns, 1700000000ull * NS_PER_SEC - 5000);
    u64 d = 2000000000ull; /* a second at 2 GHz */
    d = t->shift < 0 ? d >> -t->shift : d << t->shift;
    u64 ns = (u64)((unsigned __int128)d * t->mul >> 32);
    CHECK(ns >= NS_PER_SEC - 1 && ns <= NS_PER_SEC);

    struct vt_events *e = (struct vt_events *)(vm.low + EVENTS);
    EQUAL(C(VT_EVENT_PAGE, EVENTS), 0);
    EQUAL(C(VT_TIMER_SET, VT_TIMERS, 1, 0, 0), -VT_ENOENT);
    EQUAL(C(VT_TIMER_SET, 0, 1, 0, VT_PORTS), -VT_EINVAL);
    EQUAL(C(VT_TIMER_SET, 0, 1, VT_TIMER_MIN_NS - 1, 0), -VT_EINVAL);
    EQUAL(C(VT_TIMER_SET, 0, 1ull << 63, 0, 0), -VT_EINVAL);
    EQUAL(C(VT_TIMER_SET, 0, 1, ~0ull, 0), -VT_EINVAL);
    EQUAL(C(VT_TIMER_SET, 0, 8000, 0, 5), 0);
    clock_run(&vm.clock);
    EQUAL(e->pending[0], 0);
    vm.now = 8000;
    clock_run(&vm.clock);
    EQUAL(e->pending[0], BIT(5));
    e->pending[0] = 0;
    vm.now = 1000000;
    clock_run(&vm.clock);
    EQUAL(e->pending[0], 0); /* once */
    EQUAL(C(VT_TIMER_SET, 0, 1010000, 20000, 6), 0);
    for (unsigned i = 0, n = 0; i < 5; i++) {
        vm.now = 1010000 + i * 20000;
        e->pending[0] = 0;
        clock_run(&vm.clock);
        EQUAL(e->pending[0], BIT(6));
        EQUAL(++n, i + 1);
    }
    vm.now += 1000000; /* late: one event, and on with the old phase */
    clock_run(&vm.clock);
    EQUAL(vm.n->timer[0].deadline_ns % 20000, 10000);
    /* The guest's clock and the machine's go apart: a deadline is meant on the guest's */
    vm.tsc += 2 * 3000; /* the guest's is 3 us ahead */
    u64 guest = vm.now + 3000;
    EQUAL(C(VT_TIMER_SET, 1, guest + 10000, 0, 7), 0);
    CHECK(vm.n->timer[1].deadline_ns >= vm.now + 9999 && vm.n->timer[1].deadline_ns <= vm.now + 10002);
    EQUAL(C(VT_TIMER_SET, 1, guest - 1000, 0, 7), 0); /* gone by: at once */
    EQUAL(vm.n->timer[1].deadline_ns, vm.now);
    EQUAL(C(VT_TIMER_SET, 1, 0, 0, 7), 0);
    EQUAL(C(VT_TIMER_SET, 0, 0, 0, 6), 0);
    vm.tsc -= 2 * 3000;
    test_timer_page(&vm, e);
    vm.tsc += 2 * 3000;
    e->pending[0] = 0;
    vm.now += 1000000;
    clock_run(&vm.clock);
    EQUAL(e->pending[0], 0);
    vm_free(&vm);
}

static void test_vcpus(void)
{
    struct vm vm;
    vm_make(&vm, false);
    struct vt_start *s = (struct vt_start *)(vm.low + BUF);
    *s = (struct vt_start){ .rip = 0x1000, .rsp = 0x2000, .cr3 = ROOT, .arg = 9 };
    EQUAL(C(VT_VCPU_COUNT), CPUS);
    EQUAL(C(VT_VCPU_START, CPUS, BUF), -VT_ENOENT);
    EQUAL(C(VT_VCPU_START, 1, NOWHERE), -VT_EFAULT);
    EQUAL(C(VT_VCPU_START, 1, BUF + 1), -VT_EINVAL);
    EQUAL(C(VT_VCPU_START, 1, BUF), 0);
    EQUAL(vm.started, 1);
    EQUAL(vm.start.arg, 9);
    s->cr3 = NOWHERE;
    EQUAL(C(VT_VCPU_START, 1, BUF), -VT_EINVAL);
    s->cr3 = ROOT;
    s->rip = 1ull << 47;
    EQUAL(C(VT_VCPU_START, 1, BUF), -VT_EINVAL);
    vm_free(&vm);
}

/* -- Devices -------------------------------------------------------------------------------------------------- */

#define RING 0x10000u
#define DATA 0x30000u

static void wait_done(struct vt_block_ring *ring, u32 head)
{
    for (unsigned i = 0; i < 5000 && __atomic_load_n(&ring->done_head, __ATOMIC_ACQUIRE) != head; i++)
        usleep(1000);
}

static void test_block(void)
{
    struct vm vm;
    vm_make(&vm, true);
    struct vt_block_info *info = (struct vt_block_info *)(vm.low + BUF);
    EQUAL(C(VT_BLOCK_INFO, 0, BUF), 0);
    EQUAL(info->sectors, 128);
    EQUAL(C(VT_BLOCK_INFO, 1, BUF), -VT_ENOENT);
    EQUAL(C(VT_BLOCK_INFO, 0, LOW - 8), -VT_EFAULT);

    struct vt_block_req *r = (struct vt_block_req *)(vm.low + BUF);
    memset(vm.low + DATA, 0x5a, 4096);
    r[0] = (struct vt_block_req){ .sector = 8, .pa = DATA, .len = 4096, .op = VT_BLOCK_WRITE };
    r[1] = (struct vt_block_req){ .op = VT_BLOCK_FLUSH };
    r[2] = (struct vt_block_req){ .sector = 8, .pa = DATA + 4096, .len = 4096, .op = VT_BLOCK_READ };
    EQUAL(C(VT_BLOCK_SUBMIT, 0, BUF, 3), 3);
    CHECK(!memcmp(vm.low + DATA, vm.low + DATA + 4096, 4096));
    static const struct {
        struct vt_block_req r;
        int error;
    } bad[] = {
        { { .sector = 121, .pa = DATA, .len = 4096 }, VT_EINVAL },
        { { .sector = ~0ull, .pa = DATA, .len = 512 }, VT_EINVAL },
        { { .sector = 0, .pa = DATA, .len = 100 }, VT_EINVAL },
        { { .sector = 0, .pa = DATA, .len = 0 }, VT_EINVAL },
        { { .sector = 0, .pa = DATA, .len = (1 << 20) + 512 }, VT_EINVAL },
        { { .sector = 0, .pa = DATA, .len = 512, .op = 3 }, VT_EINVAL },
        { { .sector = 0, .pa = DATA, .len = 512, .reserved = 1 }, VT_EINVAL },
        { { .sector = 0, .pa = LOW - 256, .len = 512 }, VT_EFAULT },
        { { .sector = 0, .pa = ROM_PA, .len = 512 }, VT_EFAULT },
        { { .sector = 0, .pa = ~0ull - 100, .len = 512, .op = VT_BLOCK_WRITE }, VT_EFAULT },
        { { .sector = 0, .pa = DATA, .len = (32 << 20) }, VT_E2BIG },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        r[0] = bad[i].r;
        EQUAL(C(VT_BLOCK_SUBMIT, 0, BUF, 1), 0);
        CHECK_MSG(r[0].result == -bad[i].error, "bad request %u: %d", i, r[0].result);
    }
    EQUAL(C(VT_BLOCK_SUBMIT, 1, BUF, 1), -VT_ENOENT);

    /* The ring */
    struct vt_block_ring *ring = (struct vt_block_ring *)(vm.low + RING);
    struct vt_events *e = (struct vt_events *)(vm.low + EVENTS);
    EQUAL(C(VT_EVENT_PAGE, EVENTS), 0);
    ring->size = 3;
    EQUAL(C(VT_BLOCK_RING, 0, RING, 9), -VT_EINVAL);
    ring->size = 512;
    EQUAL(C(VT_BLOCK_RING, 0, RING, 9), -VT_EINVAL);
    ring->size = 4;
    ring->req_head = 0xfffffffe; /* numbers wrap */
    ring->done_tail = 0xffffffff;
    EQUAL(C(VT_BLOCK_RING, 0, RING, VT_PORTS), -VT_EINVAL);
    EQUAL(C(VT_BLOCK_RING, 0, RING + 64, 9), -VT_EINVAL);
    EQUAL(C(VT_BLOCK_RING, 0, ROM_PA, 9), -VT_EINVAL); /* size 0 there */
    EQUAL(C(VT_BLOCK_RING, 0, RING, 9), 0);
    EQUAL(C(VT_BLOCK_RING, 0, RING, 9), -VT_EEXIST);
    struct vt_block_req *q = (struct vt_block_req *)(ring + 1);
    struct vt_block_done *done = (struct vt_block_done *)(q + 4);
    for (u32 i = 0; i < 4; i++)
        q[(0xfffffffe + i) % 4] = (struct vt_block_req){ .id = 100 + i, .sector = 8 + i, .pa = DATA + i * 512, .len = 512 };
    q[0].op = 9;
    memset(vm.low + DATA, 0, 4096);
    __atomic_store_n(&ring->req_head, 2, __ATOMIC_RELEASE);
    EQUAL(C(VT_BLOCK_BELL, 0), 0);
    wait_done(ring, 3);
    EQUAL(ring->done_head, 3);
    EQUAL(ring->req_tail, 2);
    EQUAL(done[0xffffffff % 4].id, 100);
    EQUAL(done[1].result, -VT_EINVAL);
    CHECK(vm.low[DATA] == 0x5a && vm.low[DATA + 1024] == 0);
    for (unsigned i = 0; i < 1000 && !__atomic_load_n(&e->pending[0], __ATOMIC_ACQUIRE); i++)
        usleep(1000);
    EQUAL(e->pending[0], BIT(9));
    /* All of done[] is full: nothing is taken until the guest has looked */
    __atomic_store_n(&ring->req_head, 3, __ATOMIC_RELEASE);
    EQUAL(C(VT_BLOCK_BELL, 0), 0);
    usleep(20000);
    EQUAL(ring->done_head, 3);
    __atomic_store_n(&ring->done_tail, 3, __ATOMIC_RELEASE);
    EQUAL(C(VT_BLOCK_BELL, 0), 0);
    wait_done(ring, 4);
    EQUAL(ring->done_head, 4);
    /* While the machine is paused, nothing happens in its memory */
    native_pause(vm.n);
    q[3] = (struct vt_block_req){ .sector = 8, .pa = DATA, .len = 512 };
    vm.low[DATA] = 0;
    __atomic_store_n(&ring->done_tail, 4, __ATOMIC_RELEASE);
    __atomic_store_n(&ring->req_head, 4, __ATOMIC_RELEASE);
    EQUAL(C(VT_BLOCK_BELL, 0), 0);
    usleep(20000);
    CHECK(ring->done_head == 4 && vm.low[DATA] == 0);
    native_resume(vm.n);
    wait_done(ring, 5);
    CHECK(ring->done_head == 5 && vm.low[DATA] == 0x5a);
    /* A head that makes no sense */
    __atomic_store_n(&ring->req_head, 0x1000, __ATOMIC_RELEASE);
    EQUAL(C(VT_BLOCK_BELL, 0), 0);
    usleep(20000);
    EQUAL(ring->done_head, 5);
    EQUAL(C(VT_BLOCK_RING, 0, 0, 0), 0);
    vm_free(&vm);
}

static void test_net(void)
{
    struct vm vm;
    vm_make(&vm, true);
    struct vt_net_info *info = (struct vt_net_info *)(vm.low + BUF);
    EQUAL(C(VT_NET_INFO, 0, BUF), 0);
    CHECK(info->mtu == 1500 && info->mac[0] == 2 && info->mac[5] == 1);
    EQUAL(C(VT_NET_INFO, 1, BUF), -VT_ENOENT);
    EQUAL(C(VT_NET_INFO, 0, NOWHERE), -VT_EFAULT);
    EQUAL(C(VT_NET_BELL, 0), 0); /* no ring */
    struct vt_net_ring *ring = (struct vt_net_ring *)(vm.low + RING);
    struct vt_net_desc *tx = (struct vt_net_desc *)(ring + 1), *rx = tx + 4;
    struct vt_events *e = (struct vt_events *)(vm.low + EVENTS);
    EQUAL(C(VT_EVENT_PAGE, EVENTS), 0);
    EQUAL(C(VT_NET_RING, 0, RING, 5), -VT_EINVAL); /* size 0 */
    ring->size = 512;
    EQUAL(C(VT_NET_RING, 0, RING, 5), -VT_EINVAL);
    ring->size = 4;
    EQUAL(C(VT_NET_RING, 0, RING + 16, 5), -VT_EINVAL);
    EQUAL(C(VT_NET_RING, 0, RING, VT_PORTS), -VT_EINVAL);
    EQUAL(C(VT_NET_RING, 1, RING, 5), -VT_ENOENT);
    EQUAL(C(VT_NET_RING, 0, NOWHERE, 5), -VT_EFAULT);
    ring->tx_head = 0xffffffff;
    ring->rx_head = 0xfffffffe;
    EQUAL(C(VT_NET_RING, 0, RING, 5), 0);
    EQUAL(C(VT_NET_RING, 0, RING, 5), -VT_EEXIST);
    CHECK(vm.port != NULL);

    vm.low[DATA] = 0x42;
    tx[3] = (struct vt_net_desc){ .pa = DATA, .len = 60 };
    tx[0] = (struct vt_net_desc){ .pa = NOWHERE, .len = 60 };
    tx[1] = (struct vt_net_desc){ .pa = DATA, .len = 13 };
    tx[2] = (struct vt_net_desc){ .pa = DATA, .len = 1519 };
    ring->tx_head = 3;
    EQUAL(C(VT_NET_BELL, 0), 4);
    EQUAL(vm.nr_sent, 1);
    CHECK(vm.sent_len == 60 && vm.sent_first == 0x42);
    EQUAL(tx[3].result, 0);
    EQUAL(tx[0].result, -VT_EFAULT);
    EQUAL(tx[1].result, -VT_EINVAL);
    EQUAL(tx[2].result, -VT_EINVAL);
    EQUAL(ring->tx_tail, 3);
    EQUAL(vm.nr_rooms, 1); /* it came back, and there was no room */

    static const struct net_hdr hdr;
    u8 frame[100];
    memset(frame, 0x99, sizeof(frame));
    rx[2] = (struct vt_net_desc){ .pa = DATA + 0x1000, .len = 1536 };
    rx[3] = (struct vt_net_desc){ .pa = DATA + 0x2000, .len = 64 };
    rx[0] = (struct vt_net_desc){ .pa = ROM_PA, .len = 1536 };
    ring->rx_head = 1;
    native_pause(vm.n);
    CHECK(!vm.port->receive(vm.port->card, &hdr, frame, 100)); /* paused: it waits */
    native_resume(vm.n);
    EQUAL(vm.nr_rooms, 2);
    CHECK(vm.port->receive(vm.port->card, &hdr, frame, 100));
    CHECK(vm.port->receive(vm.port->card, &hdr, frame, 100)); /* too small: lost */
    CHECK(vm.port->receive(vm.port->card, &hdr, frame, 100)); /* not writable: lost */
    CHECK(!vm.port->receive(vm.port->card, &hdr, frame, 100)); /* no room: it waits */
    EQUAL(rx[2].result, 100);
    EQUAL(rx[3].result, -VT_E2BIG);
    EQUAL(rx[0].result, -VT_EFAULT);
    CHECK(vm.low[DATA + 0x1000 + 99] == 0x99 && vm.low[DATA + 0x2000] != 0x99);
    EQUAL(e->pending[0], BIT(5));
    EQUAL(ring->rx_tail, 1);
    /* Heads that make no sense */
    ring->rx_head = 0x1000;
    CHECK(vm.port->receive(vm.port->card, &hdr, frame, 100));
    EQUAL(ring->rx_tail, 1);
    ring->tx_head = 0x1000;
    EQUAL(C(VT_NET_BELL, 0), 0);
    EQUAL(C(VT_NET_RING, 0, 0, 0), 0);
    CHECK(vm.port->receive(vm.port->card, &hdr, frame, 100)); /* nobody listens: lost */
    vm_free(&vm);
}

static void test_console(void)
{
    struct vm vm;
    vm_make(&vm, false);
    struct vt_console *c = (struct vt_console *)(vm.low + RING);
    EQUAL(C(VT_CONSOLE_BELL), -VT_ENOENT);
    EQUAL(native_console_feed(vm.n, (const u8 *)"x", 1), 0);
    EQUAL(C(VT_CONSOLE_RING, RING + 8, 1), -VT_EINVAL);
    EQUAL(C(VT_CONSOLE_RING, NOWHERE, 1), -VT_EFAULT);
    EQUAL(C(VT_CONSOLE_RING, RING, VT_PORTS), -VT_EINVAL);
    c->out_head = 0xfffffffe;
    EQUAL(C(VT_CONSOLE_RING, RING, 1), 0);
    EQUAL(C(VT_CONSOLE_RING, RING, 1), -VT_EEXIST);
    for (u32 i = 0; i < 5; i++)
        c->out[(0xfffffffe + i) % VT_CONSOLE_OUT] = (u8)('a' + i);
    c->out_head += 5;
    EQUAL(C(VT_CONSOLE_BELL), 5);
    CHECK(vm.out_len == 5 && !memcmp(vm.out, "abcde", 5));
    EQUAL(c->out_tail, 3);
    c->out_head += VT_CONSOLE_OUT + 1; /* hostile */
    EQUAL(C(VT_CONSOLE_BELL), 0);
    u8 big[2000];
    memset(big, 'z', sizeof(big));
    EQUAL(native_console_feed(vm.n, big, sizeof(big)), VT_CONSOLE_IN);
    EQUAL(c->in_head, VT_CONSOLE_IN);
    c->in_tail = 0x80000000; /* hostile */
    EQUAL(native_console_feed(vm.n, big, sizeof(big)), 0);
    EQUAL(C(VT_CONSOLE_RING, 0, 0), 0);
    vm_free(&vm);
}

/* -- Two guests of one process ----------------------------------------------------------------------------------- */

static void test_two(void)
{
    struct vm vm, other;
    vm_make(&vm, true);
    vm_make(&other, true);
    memset(other.low, 0x77, LOW);
    memset(other.high, 0x77, HIGH);
    u8 *was = malloc(LOW);
    memcpy(was, other.low, LOW);
    EQUAL(C(VT_EVENT_PAGE, EVENTS), 0);
    EQUAL(call(&other, VT_EVENT_SEND, 70, 0, 0, 0), -VT_ENOENT); /* its own page, and it has none */
    EQUAL(C(VT_TABLES_GIVE, POOL, POOL_PAGES), 0);
    EQUAL(call(&other, VT_SPACE_CREATE, 0, 0, 0, 0), -VT_ENOMEM); /* its own pool */
    EQUAL(C(VT_SPACE_CREATE, 0, 0), 1);
    EQUAL(call(&other, VT_SPACE_ROOT, 1, 0, 0, 0), -VT_ENOENT);
    EQUAL(C(VT_TIMER_SET, 3, 1000, 0, 8), 0);
    vm.now = other.now = 5000;
    clock_run(&vm.clock);
    clock_run(&other.clock);
    EQUAL(C(VT_EVENT_VECTOR, 0, 50), 0);
    EQUAL(C(VT_EVENT_SEND, 8), 0);
    EQUAL(native_upcall(other.n, 0), -1);
    EQUAL(other.kicks[0], 0);
    struct vt_block_ring *ring = (struct vt_block_ring *)(vm.low + RING);
    ring->size = 4;
    EQUAL(C(VT_BLOCK_RING, 0, RING, 9), 0);
    struct vt_block_req *q = (struct vt_block_req *)(ring + 1);
    q[0] = (struct vt_block_req){ .pa = DATA, .len = 512 };
    ring->req_head = 1;
    EQUAL(C(VT_BLOCK_BELL, 0), 0);
    wait_done(ring, 1);
    EQUAL(ring->done_head, 1);
    CHECK(!memcmp(was, other.low, LOW)); /* not a byte of the other's */
    CHECK(other.high[0] == 0x77 && other.high[HIGH - 1] == 0x77);
    free(was);
    vm_free(&vm);
    vm_free(&other);
}

/* -- The fuzzer ------------------------------------------------------------------------------------------------------ */

static u64 seed;
static u64 rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}
#define PICK(a) ((a)[rnd() % ARRAY_SIZE(a)])

/* An address that is often right, often almost right, sometimes anything. */
static u64 any_pa(void)
{
    static const u64 edge[] = { 0, LOW - 8, LOW - 0x1000, LOW, HIGH_PA, HIGH_PA + HIGH - 0x1000, HIGH_PA + HIGH, ROM_PA,
                                NOWHERE, ~0ull, ~0xfffull, 1ull << 52, HIGH_PA + 0x200000 };
    switch (rnd() % 8) {
    case 0: return rnd();
    case 1: return PICK(edge);
    case 2: return rnd() % LOW;
    case 3: return HIGH_PA + (rnd() % HIGH & PAGE_MASK);
    case 4: return rnd() % LOW & ~7ull;
    default: return rnd() % LOW & PAGE_MASK;
    }
}
static u64 any_va(void)
{
    static const u64 base[] = { 0, 0x40000000, 0x7ffffffff000, 0x8000000000, 0xffff800000000000, 0xfffffffffffff000, 0x200000 };
    return rnd() % 16 ? PICK(base) + (rnd() % 1024 << 12) : rnd();
}
static u64 any_number(void)
{
    static const u64 edge[] = { 0, 1, 2, 8, 63, 64, 256, 511, 512, 513, 1024, 4096, 4097, 262144, 262145, ~0ull, 1ull << 63, ~0u };
    return rnd() % 4 ? rnd() % 8 : PICK(edge);
}

/* Fill where a call will look, with items that are often nearly right. */
static void any_items(struct vm *vm, unsigned number, u64 pa)
{
    u8 *p = ram_ptr(&vm->ram, pa, 16 * 64);
    if (!p || pa & 7 || pa < 0x2000)
        return;
    for (unsigned i = 0; i < 16; i++) {
        switch (number) {
        case VT_MULTI: {
            struct vt_call c = { .number = (u32)(rnd() % VT_NR_CALLS), .arg = { any_number(), any_pa(), any_number(), any_pa() } };
            memcpy(p + i * sizeof(c), &c, sizeof(c));
            break;
        }
        case VT_BALLOON_GIVE: case VT_BALLOON_TAKE: case VT_FREE_HINT: {
            struct vt_extent x = { .pa = any_pa(), .pages = (u32)any_number(), .flags = rnd() % 4 ? 0 : (u32)rnd() };
            memcpy(p + i * sizeof(x), &x, sizeof(x));
            break;
        }
        case VT_NET_RING: {
            struct vt_net_desc d = { .pa = any_pa(), .len = (u32)(rnd() % 2000) };
            memcpy(p + 64 + i * sizeof(d), &d, sizeof(d));
            ((struct vt_net_ring *)p)->size = 1u << rnd() % 10;
            break;
        }
        case VT_BLOCK_SUBMIT: case VT_BLOCK_RING: {
            struct vt_block_req r = { .sector = any_number(), .pa = any_pa(), .len = (u32)(rnd() % 4 * 512), .op = (u32)rnd() % 4 };
            memcpy(p + (number == VT_BLOCK_RING ? 64 : 0) + i * sizeof(r), &r, sizeof(r));
            if (number == VT_BLOCK_RING)
                ((struct vt_block_ring *)p)->size = 1u << rnd() % 10;
            break;
        }
        default: {
            struct vt_range r = { .va = any_va(), .pa = any_pa(), .pages = (u32)any_number(),
                                  .flags = (u32)rnd() & (rnd() % 4 ? 0xef : 0x1ff) };
            memcpy(p + i * sizeof(r), &r, sizeof(r));
        }
        }
    }
}

static void check_books(struct vm *vm)
{
    u64 pool = 0, balloon = 0, tables = 0;
    for (u64 i = 0; i < vm->n->nr_use; i++) {
        pool += vm->n->use[i] == USE_POOL;
        balloon += vm->n->use[i] == USE_BALLOON;
        tables += vm->n->use[i] != USE_GUEST && vm->n->use[i] != USE_BALLOON;
    }
    CHECK(pool == vm->n->nr_pool && balloon == vm->n->nr_balloon && tables == vm->n->cap_pool);
}

/* The guest's other vCPU, which writes where a call is looking. */
static volatile bool scribble;
static void *scribbler(void *arg)
{
    struct vm *vm = arg;
    u64 s = 88172645463325252ull;
    while (scribble) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        u64 *p = (u64 *)(vm->low + (s >> 8) % (LOW / 8) * 8);
        __atomic_fetch_xor(p, s & 1 ? 1ull << (s >> 40 & 63) : 0x1000, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void fuzz(u64 calls, bool hostile)
{
    struct vm vm, other;
    pthread_t thread;
    u8 *was = malloc(LOW);
    u64 nr_ok = 0;

    vm_make(&vm, hostile);
    vm_make(&other, false);
    if (hostile) {
        scribble = true;
        pthread_create(&thread, NULL, scribbler, &vm);
    }
    for (u64 i = 0; i < calls; i++) {
        unsigned number = rnd() % 32 ? (unsigned)(rnd() % VT_NR_CALLS) : (unsigned)rnd();
        u64 arg[5] = { rnd() % 2 ? any_number() : any_pa(), rnd() % 2 ? any_pa() : any_number(), any_number(), any_number() };
        any_items(&vm, number, rnd() & 1 ? arg[0] : arg[1]);
        if (!(rnd() % 64)) { /* the guest's tables, as it pleases */
            u64 *e = (u64 *)(vm.low + (rnd() % LOW & ~7ull));
            *e = any_pa() | (rnd() & 0x1e7);
        }
        if (!(rnd() % 256)) {
            vm.cr3 = rnd() % 4 ? ROOT : any_pa();
            vm.pcide = rnd() & 1;
            vm.now += rnd() % 1000000;
            clock_run(&vm.clock);
            native_upcall(vm.n, (unsigned)rnd() % (CPUS + 1));
            if (vm.port)
                vm.port->receive(vm.port->card, &(const struct net_hdr){ 0 }, vm.rom, rnd() % 2000);
        }
        bool compare = !hostile && !(rnd() & 7);
        if (compare)
            memcpy(was, vm.low, LOW);
        vm.out_len = 0;
        s64 r = native_call(vm.n, (unsigned)(rnd() % CPUS), number, arg);
        nr_ok += r >= 0;
        if (r < -VT_EROFS)
            CHECK_MSG(0, "call %#x: result %lld", number, (long long)r);
        if (compare && r < 0 && memcmp(was, vm.low, LOW))
            CHECK_MSG(0, "call %#x failed with %lld, and changed memory", number, (long long)r);
        if (!(i & 0xffff))
            check_books(&vm);
    }
    if (hostile) {
        scribble = false;
        pthread_join(thread, NULL);
    }
    check_books(&vm);
    memset(was, 0, LOW);
    CHECK(!memcmp(was, other.low, LOW));
    CHECK(other.n->nr_pool == 0 && !other.n->events && !other.kicks[0]);
    printf("fuzz: %llu calls%s, %llu succeeded\n", (unsigned long long)calls, hostile ? " beside a thread that scribbles" : "",
           (unsigned long long)nr_ok);
    CHECK(calls < 1000 || nr_ok > calls / 50);
    free(was);
    vm_free(&vm);
    vm_free(&other);
}

/* -- Snapshots ---------------------------------------------------------------------------------------------------------- */

/* A VM with something of everything. */
static void furnish(struct vm *p)
{
    struct vm vm = *p;
    call(p, VT_TABLES_GIVE, POOL, POOL_PAGES, 0, 0);
    call(p, VT_SPACE_CREATE, 0, 1, 0, 0);
    one(p, VT_MAP, 1, 0x8000000000, 0x6000, 3, VT_W);
    one(p, VT_MAP, 0, 0x9000000000, 0x7000, 1, VT_W);
    struct vt_extent *x = (struct vt_extent *)(vm.low + BUF);
    *x = (struct vt_extent){ .pa = HIGH_PA, .pages = 5 };
    call(p, VT_BALLOON_GIVE, BUF, 1, 0, 0);
    call(p, VT_TIME_PAGE, 0x6000, 0, 0, 0);
    call(p, VT_EVENT_PAGE, EVENTS, 0, 0, 0);
    call(p, VT_EVENT_VECTOR, 1, 77, 0, 0);
    call(p, VT_EVENT_BIND, 9, 1, 0, 0);
    call(p, VT_TIMER_SET, 4, 50000, 20000, 12);
    call(p, VT_TIMER_SET, 5, 0, 0, 13);
    call(p, VT_TIMER_PAGE, RING + 0x2000, 0, 0, 0);
    call(p, VT_CONSOLE_RING, 0xc000, 30, 0, 0);
    struct vt_block_ring *ring = (struct vt_block_ring *)(vm.low + RING);
    ring->size = 4;
    call(p, VT_BLOCK_RING, 0, RING, 9, 0);
    struct vt_net_ring *net = (struct vt_net_ring *)(vm.low + RING + 0x1000);
    net->size = 8;
    call(p, VT_NET_RING, 0, RING + 0x1000, 5, 0);
}

static void test_state(u64 hostile)
{
    struct vm vm, to;
    struct state_set set = { 0 };
    char err[200];
    vm_make(&vm, true);
    vm_make(&to, true);
    furnish(&vm);
    native_pause(vm.n);
    native_save(vm.n, &set);
    CHECK(!set.failed);
    memcpy(to.low, vm.low, LOW);
    memcpy(to.high, vm.high, HIGH);
    EQUAL(native_load(to.n, &set, err, sizeof(err)), 0);
    native_pause(to.n);
    native_resume(to.n);
    check_books(&to);
    EQUAL(call(&to, VT_SPACE_ROOT, 1, 0, 0, 0), C(VT_SPACE_ROOT, 1));
    EQUAL(call(&to, VT_BALLOON_SIZE, 0, 0, 0, 0), 5);
    EQUAL(to.n->nr_pool, vm.n->nr_pool);
    EQUAL(one(&to, VT_MAP, 1, 0xa000000000, 0x6000, 1, VT_W), one(&vm, VT_MAP, 1, 0xa000000000, 0x6000, 1, VT_W));
    CHECK(!memcmp(to.low + POOL, vm.low + POOL, POOL_PAGES << 12)); /* the same pages in the same order */
    struct vt_events *e = (struct vt_events *)(to.low + EVENTS);
    to.now = 50000;
    clock_run(&to.clock);
    EQUAL(e->pending[0] & BIT(12), BIT(12));
    EQUAL(to.n->timer[4].deadline_ns, 70000);
    ((struct vt_timers *)(to.low + RING + 0x2000))->timer[5].deadline_ns = 55000; /* the page is still one, the timer its port's */
    native_halt(to.n, 0);
    to.now = 56000;
    clock_run(&to.clock);
    EQUAL(e->pending[0] & BIT(13), BIT(13));
    EQUAL(call(&to, VT_EVENT_SEND, 9, 0, 0, 0), 0);
    EQUAL(native_upcall(to.n, 1), 77);
    EQUAL(native_console_feed(to.n, (const u8 *)"abc", 3), 3);
    struct vt_block_ring *ring = (struct vt_block_ring *)(to.low + RING);
    ((struct vt_block_req *)(ring + 1))[0] = (struct vt_block_req){ .pa = DATA, .len = 512 };
    __atomic_store_n(&ring->req_head, 1, __ATOMIC_RELEASE);
    EQUAL(call(&to, VT_BLOCK_BELL, 0, 0, 0, 0), 0);
    wait_done(ring, 1);
    EQUAL(ring->done_head, 1);
    CHECK(to.port != NULL);
    state_set_free(&set);
    vm_free(&to);

    /* A file that someone has changed */
    unsigned nr_taken = 0;
    for (u64 i = 0; i < hostile; i++) {
        set = (struct state_set){ 0 };
        native_save(vm.n, &set);
        struct state_section *s = &set.section[rnd() % set.nr];
        for (unsigned k = 0; k < 1 + i % 3 && s->len; k++)
            ((u8 *)s->data)[rnd() % s->len] ^= (u8)(1u << rnd() % 8);
        vm_make(&to, true);
        err[0] = 0;
        int r = native_load(to.n, &set, err, sizeof(err));
        nr_taken += !r;
        if (r && !err[0])
            CHECK_MSG(0, "refused with %d, and no reason", r);
        if (!r)
            check_books(&to);
        native_resume(to.n);
        to.now = 1ull << 40;
        for (unsigned k = 0; k < 3; k++)
            clock_run(&to.clock);
        vm_free(&to);
        state_set_free(&set);
    }
    printf("state: %u of %llu changed files were possible\n", nr_taken, (unsigned long long)hostile);
    native_resume(vm.n);
    vm_free(&vm);
}

/* -- The short way: native_fast.c does what native_mem.c does, or leaves it alone --------------------------------------- */

static void fast_paging(const struct vitro_vcpu *v, struct vitro_paging *p)
{
    const struct vm *vm = (const struct vm *)v;
    *p = (struct vitro_paging){ .cr0 = CR0_PG, .cr3 = vm->cr3, .cr4 = vm->pcide ? CR4_PCIDE : 0,
                                .efer = (vm->long_mode ? EFER_LMA : 0) | EFER_NXE };
}
static int fast_load(struct vitro_vcpu *v, u64 cr3)
{
    on_load(v, 0, cr3);
    return 0;
}
static void fast_flush(struct vitro_vcpu *v, unsigned pcid, u64 va, u64 pages, bool global)
{
    on_flush(v, 0, pcid, va, pages, global);
}
static void fast_others(struct vitro_vcpu *v, const struct vitro_flush *list, unsigned nr)
{
    on_flush_others(v, 0, list, nr);
}
static u64 fast_tsc(const struct vitro_vcpu *v)
{
    return on_tsc((void *)v, 0);
}
/* Now and then the thread falls asleep just then: the long way has to wake it. */
static u64 fast_kicks;
static bool *fast_sleeper;
static void fast_kick(struct vitro_vcpu *v, unsigned why)
{
    (void)v;
    if (rnd() % 4)
        fast_kicks += why == VITRO_KICK_INTR;
    else
        *fast_sleeper = true;
}
#define vitro_vcpu_kick fast_kick
#define vitro_vcpu_tsc fast_tsc
#define vitro_vcpu_get_paging fast_paging
#define vitro_vcpu_load_cr3 fast_load
#define vitro_vcpu_flush_pages fast_flush
#define vitro_vcpu_flush_others fast_others
#include "paravirt/native_fast.c"

static void fuzz_fast(u64 calls)
{
    struct vm a, b;
    struct paravirt *pv = calloc(1, sizeof(*pv) + CPUS * sizeof(pv->cpu[0]));
    u64 nr_fast = 0, nr_sent = 0;

    vm_make(&a, false);
    vm_make(&b, false);
    call(&a, VT_TABLES_GIVE, POOL, POOL_PAGES, 0, 0);
    call(&b, VT_TABLES_GIVE, POOL, POOL_PAGES, 0, 0);
    pv->native = a.n;
    for (unsigned i = 0; i < CPUS; i++) {
        pv->cpu[i].vcpu = (struct vitro_vcpu *)&a;
        for (struct vm *vm = &a; vm; vm = vm == &a ? &b : NULL) {
            call(vm, VT_EVENT_PAGE, EVENTS, 0, 0, 0);
            call(vm, VT_EVENT_BIND, 70 + i, i, 0, 0);
            call(vm, VT_EVENT_VECTOR, i, i ? 64 : 0, 0, 0);
        }
    }
    fast_kicks = 0;
    memset(a.kicks, 0, sizeof(a.kicks));
    memset(b.kicks, 0, sizeof(b.kicks));
    for (u64 i = 0; i < calls; i++) {
        static const unsigned numbers[] = { VT_MAP, VT_MAP, VT_UNMAP, VT_PROTECT, VT_SPACE_SWITCH, VT_SPACE_ROOT, VT_SPACE_CREATE,
                                            VT_EVENT_SEND };
        unsigned number = PICK(numbers);
        u64 arg[5] = { rnd() % 16 ? 0 : rnd() % 4, rnd() % 16 ? BUF : any_pa(), rnd() % 16 ? 1 : any_number(), 0 };
        if (number == VT_EVENT_SEND) {
            struct vt_events *ea = (struct vt_events *)(a.low + EVENTS), *eb = (struct vt_events *)(b.low + EVENTS);
            arg[0] = rnd() % 16 ? 68 + rnd() % 6 : any_number();
            u64 to = 70 <= arg[0] && arg[0] < 70 + CPUS ? arg[0] - 70 : 0;
            fast_sleeper = &pv->cpu[to].asleep;
            *fast_sleeper = !(rnd() % 4);
            ea->vcpu[to].upcall = eb->vcpu[to].upcall = (u32)(rnd() % 3);
            ea->mask[1] = eb->mask[1] = rnd() % 4 ? 0 : rnd();
            ea->pending[1] = eb->pending[1] = rnd();
        }
        struct vt_range r = { .va = rnd() % 4 ? 0x8000000000 + (rnd() % 64 << 12) : any_va(), .pa = any_pa(),
                              .pages = (u32)(rnd() % 20), .flags = (u32)rnd() & (rnd() % 4 ? 7 : 0xff), .result = 99 };
        memcpy(a.low + BUF, &r, sizeof(r));
        memcpy(b.low + BUF, &r, sizeof(r));
        if (number == VT_SPACE_CREATE)
            arg[1] = 1;
        if (!(rnd() % 200)) { /* the guest's own hand in its tables */
            u64 at = rnd() % 2 ? POOL + (rnd() % (POOL_PAGES << 12) & ~7ull) : ROOT + (rnd() & 0xff8);
            u64 entry = any_pa() | (rnd() & 0x1e7);
            *(u64 *)(a.low + at) = *(u64 *)(b.low + at) = entry;
        }
        u64 gpr[16] = { [0] = VT_BASE + number, [7] = arg[0], [6] = arg[1], [2] = arg[2] };
        const struct vitro_hypercall c = { .gpr = gpr, .vcpu = 0, .code64 = true };
        bool done = native_hypercall_fast(pv, &c, number) == VITRO_HC_DONE;
        nr_fast += done;
        nr_sent += done && number == VT_EVENT_SEND;
        s64 ra = done ? (s64)gpr[0] : native_call(a.n, 0, number, arg), rb = native_call(b.n, 0, number, arg);
        if (ra != rb || a.cr3 != b.cr3 || memcmp(a.low, b.low, LOW)) {
            CHECK_MSG(0, "call %llu: %#x: the short way says %lld, the long one %lld", (unsigned long long)i, number,
                      (long long)ra, (long long)rb);
            break;
        }
        if (!(i & 255))
            a.cr3 = b.cr3 = ROOT;
    }
    printf("fuzz: %llu calls both ways, %llu by the short one\n", (unsigned long long)calls, (unsigned long long)nr_fast);
    CHECK(calls < 5000 || nr_fast > 1000); /* in time the tables are beyond repair */
    CHECK(calls < 5000 || nr_sent > 100);
    CHECK(fast_kicks + a.kicks[0] + a.kicks[1] + a.kicks[2] == b.kicks[0] + b.kicks[1] + b.kicks[2] && (calls < 5000 || fast_kicks));
    CHECK(a.nr_others == b.nr_others && !memcmp(a.high, b.high, HIGH));
    vm_free(&a);
    vm_free(&b);
    free(pv);
}

/* -- The table ---------------------------------------------------------------------------------------------------------- */

static void test_def(void)
{
    static const struct {
        unsigned number, nr_args, since;
        const char *name;
    } row[] = {
#define VT_CALL(number, name, nr_args, since, args, result, errors, cost) { number, nr_args, since, #name },
#include "vitro/hypercalls.def"
#undef VT_CALL
    };
    for (unsigned i = 0; i < ARRAY_SIZE(row); i++) {
        CHECK_MSG(!i || row[i].number > row[i - 1].number, "%s is out of order", row[i].name);
        CHECK(row[i].number < VT_NR_CALLS && row[i].nr_args <= 5 && row[i].since <= VT_VERSION);
    }
    CHECK(VT_BASE == 0x56540000); /* what guests have compiled in */
}

int main(int argc, char **argv)
{
    u64 calls = argc > 2 && !strcmp(argv[1], "--fuzz") ? strtoull(argv[2], NULL, 0) : 60000;

    seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 0x2545f4914f6cdd1dull;
    test_def();
    test_system();
    test_multi();
    test_tables();
    test_map();
    test_spaces();
    test_balloon();
    test_events();
    test_time();
    test_vcpus();
    test_block();
    test_net();
    test_console();
    test_two();
    test_state(MIN(calls / 200, 3000ull));
    fuzz_fast(MIN(calls / 4, 200000ull));
    fuzz(calls / 2, false);
    fuzz(calls - calls / 2, true);
    return check_done("native");
}
