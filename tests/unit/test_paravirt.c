/*
 * test_paravirt.c - src/paravirt without a running guest: options, leaves, MSRs, calls with good and bad arguments.
 * PV_FUZZ=N in the environment makes the number of random calls and MSR writes N.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "machine/machine.h"
#include "mem/ram.h"
#include "paravirt/inner.h"
#include "tests/lib/check.h"

#define RAM_SIZE (1u << 20)
#define KHZ 2500000u
#define NR_CPUS 2

static u8 *mem;
static struct ram view;
static struct vitro_vm *vm;
static struct vitro_vcpu *vcpu[NR_CPUS];
static struct paravirt *pv;
static const struct vitro_pv *ops;
static struct machine *board;

static void on_kick(void *opaque, unsigned cpu)
{
    (void)opaque, (void)cpu;
}
static u64 on_tsc(void *opaque, unsigned cpu)
{
    (void)opaque, (void)cpu;
    return pv_host_tsc();
}
static void on_pv_kick(void *opaque, unsigned cpu, unsigned why)
{
    (void)opaque;
    vitro_vcpu_kick(vcpu[cpu], why);
}

static void make(u32 features)
{
    struct paravirt_config pc = { .features = features, .nr_cpus = NR_CPUS, .tsc_khz = KHZ, .ram = &view, .machine = board,
                                  .kick = on_pv_kick };
    char err[200] = "";

    bug_on(paravirt_create(&pc, &pv));
    ops = paravirt_ops(pv);
    struct vitro_config vc = { .nr_cpus = NR_CPUS, .pv = ops };
    vm = vitro_vm_create(&vc, NULL, err, sizeof(err));
    bug_on(!vm || vitro_vm_add_memory(vm, 0, RAM_SIZE, mem, 0));
    for (unsigned i = 0; i < NR_CPUS; i++) {
        vcpu[i] = vitro_vcpu_create(vm, i, err, sizeof(err));
        bug_on(!vcpu[i]);
        paravirt_attach(pv, i, vcpu[i]);
    }
    memset(mem, 0, RAM_SIZE);
}
static void unmake(void)
{
    for (unsigned i = 0; i < NR_CPUS; i++)
        vitro_vcpu_destroy(vcpu[i]);
    vitro_vm_destroy(vm);
    paravirt_destroy(pv);
}

static const u32 *leaf(u32 nr)
{
    static const u32 zero[4];
    for (unsigned i = 0; i < ops->nr_leaves; i++)
        if (ops->leaves[i].leaf == nr)
            return ops->leaves[i].r;
    return zero;
}
static bool is_text(const u32 *r, const char *text)
{
    char got[13] = "";
    memcpy(got, &r[1], 12);
    return !strcmp(got, text);
}
static int wr(unsigned cpu, u32 msr, u64 value)
{
    return ops->msr_write(ops->opaque, cpu, msr, value);
}
static u64 rd(unsigned cpu, u32 msr)
{
    u64 value = ~0ull;
    return ops->msr_read(ops->opaque, cpu, msr, &value) ? ~0ull : value;
}

static bool parses(const char *list, u32 want)
{
    u32 got;
    unsigned len;
    return paravirt_parse(list, &got, &len) < 0 && got == want;
}
static void test_options(void)
{
    u32 all = paravirt_default(), got;
    unsigned len;
    CHECK(parses("none", 0) && parses("", 0));
    CHECK(parses("kvm,vitro", all));
    CHECK(parses("-clock", all & ~PV_BIT(PV_CLOCK)));
    CHECK(parses("kvm,-clock", all & ~(PV_BIT(PV_CLOCK) | PV_BIT(PV_VITRO))));
    CHECK(parses("vitro,clock", PV_BIT(PV_VITRO) | PV_BIT(PV_CLOCK)));
    CHECK(paravirt_parse("kvm,-xyz", &got, &len) == 5 && len == 3);
}

static void test_leaves(void)
{
    make(paravirt_default());
    CHECK(is_text(leaf(0x40000000), "KVMKVMKVM") && leaf(0x40000000)[0] == 0x40000010);
    CHECK((leaf(0x40000001)[0] & 0x0100000b) == 0x0100000b);
    CHECK(leaf(0x40000010)[0] == KHZ);
    CHECK(is_text(leaf(0x40000100), "VitroVMM"));
    unmake();
    make(PV_BIT(PV_VITRO));
    CHECK(is_text(leaf(0x40000000), "VitroVMM"));
    CHECK(wr(0, 0x4b564d01, 0) < 0); /* KVM's MSRs are not there */
    unmake();
    make(0);
    CHECK(ops->nr_leaves == 0);
    unmake();
}

/* What a guest computes from the page: ns at its TSC. */
static u64 guest_ns(const u8 *page, u64 tsc)
{
    u64 stamp, base;
    u32 mul;
    memcpy(&stamp, page + 8, 8);
    memcpy(&base, page + 16, 8);
    memcpy(&mul, page + 24, 4);
    s8 shift = (s8)page[28];
    u64 d = tsc - stamp;
    d = shift < 0 ? d >> -shift : d << shift;
    return base + (u64)((unsigned __int128)d * mul >> 32);
}

static void test_clock(void)
{
    u32 w[3], version;
    make(paravirt_default());
    CHECK(!wr(0, 0x4b564d01, 0x1000 | 1) && rd(0, 0x4b564d01) == 0x1001);
    memcpy(&version, mem + 0x1000, 4);
    CHECK(version && !(version & 1) && (mem[0x1000 + 29] & 1));
    /* The same moment on two vCPUs is the same time, whatever their TSCs say. */
    CHECK(!wr(1, 0x12, 0x2000 | 1));
    u64 now = pv_host_tsc();
    u64 a = guest_ns(mem + 0x1000, now + vitro_vcpu_tsc_offset(vcpu[0]));
    u64 b = guest_ns(mem + 0x2000, now + vitro_vcpu_tsc_offset(vcpu[1]));
    CHECK(a == b && a == pv_clock_ns(pv, now));
    /* Off: written no more. Disabled before it is enabled, misaligned, across pages: as asked. */
    CHECK(!wr(0, 0x4b564d01, 0x3000) && !mem[0x3000]);
    CHECK(!wr(0, 0x4b564d01, 0x3ff1) && guest_ns(mem + 0x3ff0, now + vitro_vcpu_tsc_offset(vcpu[0])) == a);
    /* No RAM, or only partly: nothing is written, nothing faults. */
    memset(mem + RAM_SIZE - 16, 0, 16);
    CHECK(!wr(0, 0x4b564d01, 0xfffffffffffff001) && !wr(0, 0x4b564d01, ~0ull) && !wr(0, 0x4b564d01, (RAM_SIZE - 16) | 1));
    CHECK(!mem[RAM_SIZE - 1] && !mem[RAM_SIZE - 8] && !mem[RAM_SIZE - 16]);
    CHECK(!wr(0, 0x4b564d00, 0x5000));
    memcpy(w, mem + 0x5000, sizeof(w));
    CHECK(w[0] == 2 && w[1] > 1600000000 && w[2] < 1000000000);
    CHECK(!wr(0, 0x11, 0x5000) && !wr(0, 0x4b564d00, ~0ull) && mem[0x5000] == 4);
    unmake();
    make(paravirt_default() & ~PV_BIT(PV_CLOCK));
    CHECK(wr(0, 0x4b564d01, 0x1001) < 0 && rd(0, 0x4b564d00) == ~0ull && wr(0, 0x12, 0x1001) < 0);
    unmake();

    /* The scale: 1000 s of ticks come out within a microsecond, from 500 MHz to 6 GHz. */
    struct paravirt p = { 0 };
    for (u32 khz = 500000; khz < 6000000; khz += 123457) {
        p.config.tsc_khz = khz;
        pv_clock_init(&p);
        u64 ns = pv_clock_ns(&p, p.tsc_base + khz * 1000000ull);
        CHECK(ns + 1000 > 1000000000000 && ns < 1000000000000 + 1000);
    }
}

static enum vitro_hc call_at(u8 cpl, bool code64, u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 *result)
{
    u64 gpr[16] = { [0] = nr, [3] = a0, [1] = a1, [2] = a2, [6] = a3 };
    struct vitro_hypercall call = { .gpr = gpr, .cpl = cpl, .code64 = code64 };
    enum vitro_hc r = ops->hypercall_fast(ops->opaque, &call);
    if (r == VITRO_HC_SLOW)
        r = ops->hypercall(ops->opaque, &call);
    *result = gpr[0];
    return r;
}

static void test_calls(void)
{
    u64 r;
    make(paravirt_default());
    CHECK(call_at(0, true, 999, 0, 0, 0, 0, &r) == VITRO_HC_DONE && r == (u64)-1000);
    CHECK(call_at(0, false, 999, 0, 0, 0, 0, &r) == VITRO_HC_DONE && r == (u32)-1000);
    CHECK(call_at(3, true, 5, 0, 0, 0, 0, &r) == VITRO_HC_DONE && r == (u64)-1);
    CHECK(call_at(0, true, PV_NATIVE_CALLS, 0, 0, 0, 0, &r) == VITRO_HC_DONE && r == 0);
    unmake();
    make(0);
    CHECK(call_at(0, true, 999, 0, 0, 0, 0, &r) == VITRO_HC_NONE);
    CHECK(call_at(0, true, PV_NATIVE_CALLS, 0, 0, 0, 0, &r) == VITRO_HC_NONE);
    unmake();
}

/* What each word of --pv stands for (Linux Documentation/virt/kvm/x86): with "kvm,-WORD" that is not there, and all the rest is. */
static void test_each_off(void)
{
    static const struct { const char *word; u32 bits, msr[4]; unsigned call; } part[] = {
        { "clock", BIT(0) | BIT(3) | BIT(24), { 0x11, 0x12, 0x4b564d00, 0x4b564d01 }, 9 },
        { "io-delay", BIT(1), { 0 }, 0 },
        { "steal", BIT(5), { 0x4b564d03 }, 0 },
        { "eoi", BIT(6), { 0x4b564d04 }, 0 },
        { "unhalt", BIT(7), { 0 }, 5 },
        { "tlb", BIT(9), { 0 }, 0 },
        { "ipi", BIT(11), { 0 }, 10 },
        { "poll", BIT(12), { 0x4b564d05 }, 0 },
        { "yield", BIT(13), { 0 }, 11 },
        { "map-gpa", BIT(16) | BIT(17), { 0x4b564d08 }, 12 },
    };
    for (unsigned off = 0; off < ARRAY_SIZE(part); off++) {
        char list[32];
        u32 features, bits = 0;
        unsigned len;
        snprintf(list, sizeof(list), "kvm,-%s", part[off].word);
        CHECK(paravirt_parse(list, &features, &len) < 0);
        make(features);
        for (unsigned i = 0; i < ARRAY_SIZE(part); i++) {
            bits |= i == off ? 0 : part[i].bits;
            for (unsigned k = 0; k < 4 && part[i].msr[k]; k++)
                CHECK_MSG((wr(0, part[i].msr[k], 0) < 0) == (i == off), "%s: MSR %#x", list, part[i].msr[k]);
            u64 r = 0;
            if (part[i].call)
                CHECK_MSG(call_at(0, true, part[i].call, 0, part[i].call == 12, 0, 0, &r) == VITRO_HC_DONE &&
                          (i == off ? r == (u64)-1000 : !r), "%s: call %u: %lld", list, part[i].call, (long long)r);
        }
        CHECK_MSG(leaf(0x40000001)[0] == bits, "%s: features %#x, not %#x", list, leaf(0x40000001)[0], bits);
        unmake();
    }
}

/* -- Random arguments ------------------------------------------------------------------------------------ */

static u64 seed = 88172645463325252ull;
static u64 any(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}
/* Addresses and numbers where mistakes live: in RAM, at its ends, nowhere, small, at the ends of 64 bits. */
static u64 argument(void)
{
    u64 r = any();
    switch (r >> 60) {
    case 0 ... 4: return r % RAM_SIZE;
    case 5: return RAM_SIZE - 72 + r % 80;
    case 6: return 0 - r % 80;
    case 7: return r & 1;
    case 8: return r % 256;
    case 9: return 1ull << (r & 63);
    case 10: return (r & 63) | 0xfff0000000;
    default: return r;
    }
}

/* Whatever a guest asks: a documented answer, registers as they were, no byte touched outside its RAM. The pages around RAM are not there, so a stray access ends the test. */
static void test_fuzz(void)
{
    static const s64 errors[] = { -1, -14, -22, -95, -1000 };
    const char *want = getenv("PV_FUZZ");
    u64 n = want ? strtoull(want, NULL, 0) : 1000000, bad = 0;

    make(paravirt_default() & ~PV_BIT(PV_VITRO));
    for (unsigned i = 0; i < NR_CPUS; i++)
        ops->msr_write(ops->opaque, i, 0x4b564d03, 0); /* no stale steal areas */
    for (u64 i = 0; i < n; i++) {
        u64 r = any();
        unsigned cpu = r & 1;
        if (r & 2) {
            u32 msr = r & 4 ? 0x4b564d00 + (r >> 8 & 15) : r & 8 ? 0x11 + (r >> 8 & 1) : (u32)any();
            u64 value = argument() | (r >> 16 & 1), read;
            int w = ops->msr_write(ops->opaque, cpu, msr, value);
            if (!w && (ops->msr_read(ops->opaque, cpu, msr, &read) || read != value))
                bad++;
            if (r & 0x100) {
                paravirt_vcpu_sleep(pv, cpu);
                paravirt_vcpu_wake(pv, cpu);
                ops->tsc_moved(ops->opaque, cpu);
            }
        } else {
            u64 gpr[16];
            for (unsigned k = 0; k < 16; k++)
                gpr[k] = argument();
            gpr[0] = r & 4 ? r >> 8 & 15 : argument();
            if ((u32)gpr[0] - PV_NATIVE_CALLS < 0x10000)
                continue;
            u64 before[16];
            memcpy(before, gpr, sizeof(gpr));
            struct vitro_hypercall call = { .gpr = gpr, .vcpu = cpu, .cpl = r >> 20 & 3 ? 0 : 3, .code64 = r >> 22 & 1 };
            enum vitro_hc done = ops->hypercall_fast(ops->opaque, &call);
            if (done == VITRO_HC_SLOW)
                done = ops->hypercall(ops->opaque, &call);
            bool known = (s64)gpr[0] >= 0 && gpr[0] <= NR_CPUS;
            for (unsigned k = 0; k < ARRAY_SIZE(errors); k++)
                known |= gpr[0] == (call.code64 ? (u64)errors[k] : (u32)errors[k]);
            bad += done != VITRO_HC_DONE || !known || memcmp(&before[1], &gpr[1], 15 * sizeof(u64));
            while (machine_intr_ack(board, cpu) >= 0 || machine_nmi_take(board, cpu))
                ;
        }
    }
    CHECK_MSG(!bad, "%llu of %llu", (unsigned long long)bad, (unsigned long long)n);
    printf("paravirt: %llu random calls and MSR writes\n", (unsigned long long)n);
    unmake();
}

int main(void)
{
    const struct machine_config mc = {
        .nr_cpus = NR_CPUS, .ram_size = RAM_SIZE, .tsc_khz = KHZ, .kick = on_kick, .tsc_now = on_tsc,
    };

    u8 *room = mmap(NULL, RAM_SIZE + 2 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bug_on(room == MAP_FAILED);
    mem = room + PAGE_SIZE;
    bug_on(mprotect(mem, RAM_SIZE, PROT_READ | PROT_WRITE) || machine_create(&mc, &board));
    ram_init(&view);
    bug_on(ram_add_slot(&view, 0, RAM_SIZE, mem, false));
    test_options();
    test_leaves();
    test_clock();
    test_calls();
    test_each_off();
    test_fuzz();
    machine_destroy(board);
    ram_fini(&view);
    return check_done("test_paravirt");
}
