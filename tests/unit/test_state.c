/*
 * test_state.c - what snapshots are made of: fields as records, each chip there and back, the vCPU there and back, and
 * bytes that nobody saved: they are refused or do no harm.
 */
#include "base/state.h"
#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/fpu.h"
#include "libvitro.h"
#include "machine/board.h"
#include "machine/layout.h"
#include "mem/ram.h"
#include "tests/lib/check.h"
#include "x86/x86.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* -- Records --------------------------------------------------------------------------------------- */

struct thing {
    u32 a;
    bool yes;
    u8 bytes[5];
    u64 left_out;
};
static const struct state_field thing_fields[] = {
    STATE(struct thing, a), STATE(struct thing, yes), STATE(struct thing, bytes), STATE_END
};
static const struct state_field other_fields[] = { STATE(struct thing, a), STATE_END };

static void test_records(void)
{
    struct thing one = { 0x12345678, true, "four", 7 }, two = { .left_out = 9 };
    struct state_buf buf = { 0 };
    char err[200];

    state_save(&buf, thing_fields, &one);
    CHECK(!buf.failed && !state_load(thing_fields, &two, buf.data, buf.len, err, sizeof(err)));
    CHECK(two.a == one.a && two.yes && !memcmp(two.bytes, "four", 5) && two.left_out == 9);
    for (size_t len = 0; len < buf.len; len++)
        CHECK(state_load(thing_fields, &two, buf.data, len, err, sizeof(err)) == -EINVAL && err[0]);
    CHECK(state_load(other_fields, &two, buf.data, buf.len, err, sizeof(err)) == -EINVAL && strstr(err, "'yes'"));
    CHECK(state_load(thing_fields, &two, buf.data, buf.len - 1, err, sizeof(err)) == -EINVAL);
    struct state_buf twice = { 0 };
    state_save(&twice, thing_fields, &one);
    state_save(&twice, other_fields, &one);
    CHECK(state_load(thing_fields, &two, twice.data, twice.len, err, sizeof(err)) == -EINVAL && strstr(err, "twice"));
    for (size_t i = 0; i + 4 < buf.len; i++) /* the byte of the bool */
        if (!memcmp(buf.data + i, "yes", 3))
            buf.data[i + 7] = 2;
    CHECK(state_load(thing_fields, &two, buf.data, buf.len, err, sizeof(err)) == -EINVAL && strstr(err, "true"));
    state_buf_free(&buf);
    state_buf_free(&twice);
}

static void test_sets(void)
{
    struct state_set set = { 0 };
    char err[200];
    size_t len;
    struct thing t;

    state_set_add(&set, "a", "xyz", 3);
    state_set_add(&set, "b", "", 0);
    CHECK(!set.failed && state_set_take(&set, "b", &len) && len == 0);
    CHECK(!memcmp(state_set_take(&set, "a", &len), "xyz", 3) && len == 3);
    CHECK(!state_set_take(&set, "a", &len) && !state_set_take(&set, "c", &len));
    CHECK(state_set_load(&set, "c", thing_fields, &t, err, sizeof(err)) == -EINVAL && strstr(err, "c: is missing"));
    state_set_free(&set);
}

/* -- A machine on a clock of ours --------------------------------------------------------------------- */

struct fixture {
    struct machine *m;
    u64 now;
    unsigned kicks;
    char tx[256];
    size_t tx_len;
};

static u64 fake_now(void *opaque)
{
    return ((struct fixture *)opaque)->now;
}
static u64 fake_tsc(void *opaque, unsigned vcpu)
{
    struct fixture *f = opaque;
    return (vcpu < 2 && f->m ? clock_now(machine_clock(f->m)) : f->now) * 2;
}
static void on_kick(void *opaque, unsigned vcpu)
{
    ((struct fixture *)opaque)->kicks += vcpu < 2;
}
static void on_request(void *opaque, enum machine_request what, int status)
{
    (void)opaque, (void)what, (void)status;
}
static void on_tx(void *opaque, const u8 *bytes, size_t len)
{
    struct fixture *f = opaque;
    len = MIN(len, sizeof(f->tx) - f->tx_len);
    memcpy(f->tx + f->tx_len, bytes, len);
    f->tx_len += len;
}

static void setup(struct fixture *f, u64 now)
{
    *f = (struct fixture){ .now = now };
    struct machine_config config = {
        .nr_cpus = 2, .ram_size = 64 << 20, .tsc_khz = 2000000, .wall_ns = 1700000000ull * NS_PER_SEC, .opaque = f,
        .kick = on_kick, .request = on_request, .tsc_now = fake_tsc, .console_tx = on_tx, .debugcon_tx = on_tx,
        .clock_source = fake_now, .clock_opaque = f,
    };
    CHECK(!machine_create(&config, &f->m));
}

static void pass(struct fixture *f, u64 ns)
{
    f->now += ns;
    machine_run_timers(f->m);
}

static u32 in(struct fixture *f, u16 port)
{
    return machine_port_in(f->m, port, 1);
}
static void out(struct fixture *f, u16 port, u8 value)
{
    machine_port_out(f->m, port, 1, value);
}
static void apic(struct fixture *f, unsigned reg, u32 value)
{
    machine_mmio_write(f->m, 0, 0xfee00000 + reg * 16, &value, 4);
}

/* Something in every chip, and timers on their way. */
static void busy(struct fixture *f)
{
    static const u8 icw[] = { 0x11, 0x20, 0x04, 0x01 };
    for (unsigned i = 0; i < 4; i++) {
        out(f, i ? 0x21 : 0x20, icw[i]);
        out(f, i ? 0xa1 : 0xa0, i == 1 ? 0x28 : i == 2 ? 2 : icw[i]);
    }
    out(f, 0x21, 0xee); /* IRQ 0 and 4 */
    out(f, 0x43, 0x34);
    out(f, 0x40, 0x9c);
    out(f, 0x40, 0x2e); /* mode 2, 100 Hz */
    out(f, 0x43, 0xb0);
    out(f, 0x42, 0x34);
    out(f, 0x61, 0x01);
    out(f, 0x42, 0x12); /* channel 2 runs down */
    out(f, PORT_COM1 + 3, 0x03);
    out(f, PORT_COM1 + 4, 0x0b);
    out(f, PORT_COM1 + 1, 0x01);
    out(f, PORT_COM1 + 7, 0x5a);
    machine_console_feed(f->m, (const u8 *)"typed", 5);
    out(f, PORT_COM1, 'x'); /* waits in the batch */
    out(f, 0x70, 0x40);
    out(f, 0x71, 0xa5);
    out(f, 0x70, 0x0b);
    out(f, 0x71, 0x52); /* periodic interrupt, 24 h */
    out(f, 0x64, 0x60);
    out(f, 0x60, 0x45);
    machine_port_out(f->m, PORT_PM1_EVT + 2, 2, 0x100);
    machine_power_button(f->m);
    machine_port_out(f->m, PORT_PCI_ADDR, 4, 0x80000000 | PCI_DEVFN(1, 0) << 8 | 0x60);
    machine_port_out(f->m, PORT_PCI_DATA, 4, 0x80808005);
    out(f, PORT_POST, 0x77);
    apic(f, APIC_SVR, 0x1ff);
    apic(f, APIC_TDCR, 0xb);
    apic(f, APIC_LVT, 0x20044); /* periodic, vector 0x44 */
    apic(f, APIC_TMICT, 3000000);
    u32 redir[2] = { 0x10, 0x31 }; /* I/O APIC entry 0: vector 0x31 */
    machine_mmio_write(f->m, 0, 0xfec00000, &redir[0], 4);
    machine_mmio_write(f->m, 0, 0xfec00010, &redir[1], 4);
    pass(f, 1234567);
}

static bool same_sets(const struct state_set *a, const struct state_set *b)
{
    bool same = a->nr == b->nr;
    for (unsigned i = 0; i < a->nr && same; i++) {
        const struct state_section *x = &a->section[i], *y = &b->section[i];
        if (strcmp(x->name, y->name) || x->len != y->len || memcmp(x->data, y->data, x->len)) {
            printf("section %s differs\n", x->name);
            same = false;
        }
    }
    return same;
}

/* What a guest can see from here on, folded. */
static u64 watch(struct fixture *f)
{
    u64 sum = 0;
    for (unsigned step = 0; step < 40; step++) {
        pass(f, 777777);
        static const u16 ports[] = { 0x40, 0x42, 0x61, PORT_COM1 + 5, PORT_COM1 + 2, PORT_COM1, PORT_COM1 + 7, 0x71,
                                     0x20, 0x21, 0xa1, 0x64, 0x60, PORT_PM1_EVT, PORT_PM1_EVT + 1, PORT_PM_TMR,
                                     PORT_PCI_DATA };
        out(f, 0x70, (u8)(step % 2 ? 0x40 : 0x0c));
        for (unsigned i = 0; i < ARRAY_SIZE(ports); i++)
            sum = (sum << 7 | sum >> 57) ^ in(f, ports[i]);
        u32 count;
        machine_mmio_read(f->m, 0, 0xfee00390, &count, 4);
        int vector = machine_intr_ack(f->m, 0);
        sum = (sum << 7 | sum >> 57) ^ count ^ (u32)vector << 8;
        if (vector >= 0)
            apic(f, APIC_EOI, 0);
    }
    return sum;
}

static void test_machine(void)
{
    struct fixture a, b;
    struct state_set set = { 0 }, again = { 0 };
    char err[300] = "";

    for (unsigned i = 0; board_device(i); i++)
        CHECK_MSG(board_device(i)->class->state, "%s has no state", board_device(i)->class->name);
    setup(&a, 5000);
    busy(&a);
    CHECK(!machine_stop(a.m) && !machine_save(a.m, &set, err, sizeof(err)) && !set.failed);
    CHECK_MSG(a.tx_len == 1 && a.tx[0] == 'x', "output of before must be out");
    CHECK(set.nr > 12);

    setup(&b, 99 * NS_PER_SEC); /* another time on the host's clock */
    b.m->config.wall_ns = 0;
    pass(&b, 5 * NS_PER_SEC);
    machine_stop(b.m);
    CHECK_MSG(!machine_load(b.m, &set, err, sizeof(err)), "%s", err);
    CHECK(!machine_save(b.m, &again, err, sizeof(err)));
    CHECK(same_sets(&set, &again));
    for (unsigned i = 0; i < set.nr; i++)
        CHECK_MSG(set.section[i].taken, "%s was left", set.section[i].name);
    b.now += 3 * NS_PER_SEC; /* while it stands */
    machine_start(b.m);
    machine_start(a.m);
    CHECK(clock_now(machine_clock(a.m)) == clock_now(machine_clock(b.m)));
    u64 wanted = watch(&a);
    CHECK(watch(&b) == wanted);
    CHECK(b.kicks > 0);
    state_set_free(&set);
    state_set_free(&again);
    machine_destroy(a.m);
    machine_destroy(b.m);
}

static u64 seed = 88172645463325252ull;
static u64 rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

/* Anybody's bytes: refused, or a machine that a guest can do with as it likes. */
static void test_hostile_machine(void)
{
    struct fixture a, b;
    struct state_set set = { 0 };
    char err[300];
    unsigned refused = 0, taken = 0;

    setup(&a, 5000);
    busy(&a);
    machine_stop(a.m);
    machine_save(a.m, &set, err, sizeof(err));
    for (unsigned n = 0; n < 400; n++) {
        struct state_set bad = { 0 };
        for (unsigned i = 0; i < set.nr; i++)
            state_set_add(&bad, set.section[i].name, set.section[i].data, set.section[i].len);
        for (unsigned i = 0, many = 1 + (unsigned)(rnd() % 3); i < many; i++) {
            struct state_section *s = &bad.section[rnd() % bad.nr];
            if (rnd() % 16 == 0)
                s->len = rnd() % (s->len + 1);
            else if (s->len)
                ((u8 *)s->data)[rnd() % s->len] = (u8)(rnd() % 4 ? rnd() : 0xff);
        }
        setup(&b, 5000);
        machine_stop(b.m);
        if (machine_load(b.m, &bad, err, sizeof(err))) {
            refused++;
        } else {
            taken++;
            machine_start(b.m);
            watch(&b);
        }
        machine_destroy(b.m);
        state_set_free(&bad);
    }
    CHECK(refused > 20 && taken > 20);
    for (unsigned i = 0; i < set.nr; i++) { /* nothing may be missing */
        struct state_set bad = { 0 };
        for (unsigned k = 0; k < set.nr; k++)
            if (k != i)
                state_set_add(&bad, set.section[k].name, set.section[k].data, set.section[k].len);
        setup(&b, 5000);
        machine_stop(b.m);
        CHECK_MSG(machine_load(b.m, &bad, err, sizeof(err)) == -EINVAL && strstr(err, set.section[i].name), "%s",
                  set.section[i].name);
        machine_destroy(b.m);
        state_set_free(&bad);
    }
    state_set_free(&set);
    machine_destroy(a.m);
}

/* -- The vCPU ---------------------------------------------------------------------------------------------- */

struct cpu {
    struct vitro_vm *vm;
    struct vitro_vcpu *c;
    struct vcpu *v;
};

static void make_cpu(struct cpu *p)
{
    char err[200];
    p->vm = vitro_vm_create(NULL, NULL, err, sizeof(err));
    p->c = vitro_vcpu_create(p->vm, 0, err, sizeof(err));
    p->v = (struct vcpu *)p->c;
    vitro_vm_clock_stop(p->vm);
}

static void drop_cpu(struct cpu *p)
{
    vitro_vcpu_destroy(p->c);
    vitro_vm_destroy(p->vm);
}

/* Every MSR that takes something, holds it. A new one that is not in the table of state.c fails here. */
static void each_msr(struct cpu *a, struct cpu *b, bool compare)
{
    static const u32 range[][2] = { { 0, 0x2000 }, { 0xc0000000, 0xc0002000 }, { 0xc0010000, 0xc0012000 } };
    static const u64 value[] = { 0x0606060606060606, 0x1234567890, 0x12345, 0x806, 6, 1 };
    for (unsigned r = 0; r < ARRAY_SIZE(range); r++) {
        for (u32 msr = range[r][0]; msr < range[r][1]; msr++) {
            u64 was, is;
            if (msr == 0x10 || msr == 0x3b || msr_read(a->v, msr, &was) != X_OK)
                continue;
            if (compare) {
                CHECK_MSG(msr_read(b->v, msr, &is) == X_OK && is == was, "MSR %#x is %#llx, not %#llx", msr,
                          (unsigned long long)is, (unsigned long long)was);
                continue;
            }
            for (unsigned i = 0; i < ARRAY_SIZE(value); i++)
                if (msr_write(a->v, msr, value[i] + (i == 1 ? msr : 0)) == X_OK)
                    break;
        }
    }
}

static void test_vcpu(void)
{
    struct cpu a, b;
    char err[300] = "";
    size_t len, len2;
    struct vitro_sregs s;

    make_cpu(&a);
    make_cpu(&b);
    each_msr(&a, NULL, false);
    for (unsigned i = 0; i < NR_GPR; i++)
        a.v->regs[i] = 0x1111111111111111ull * i + 3;
    vitro_vcpu_get_sregs(a.c, &s);
    s.cr0 |= CR0_PE;
    s.cr3 = 0x1000;
    s.cs = (struct vitro_segment){ .base = 0x1000, .limit = 0xfffff, .attr = 0x409b, .selector = 8 };
    s.dr[3] = 0x1234;
    vitro_vcpu_set_sregs(a.c, &s);
    a.v->cr2 = 0x5678;
    vcpu_set_eflags(a.v, EFL_R1 | EFL_CF | EFL_OF | EFL_DF | EFL_IOPL);
    a.v->int_shadow = SHADOW_STI;
    a.v->nmi_masked = 1;
    a.v->halted = 1;
    a.v->intr_wait = EVENT_NMI;
    a.v->vm->a20_off = true;
    for (unsigned i = 160; i < 160 + 256; i++) /* XMM0-15 */
        a.v->fpu[i] = (u8)i;
    a.v->fpu[XSAVE_LEGACY] = XFEATURE_X87 | XFEATURE_SSE;
    a.v->fpu[8] = 0x77; /* x87's instruction pointer: a host address */
    u64 tsc = vitro_vcpu_tsc(a.c);

    u8 *bytes = vitro_vcpu_save(a.c, &len);
    CHECK(bytes && !vitro_vcpu_load(b.c, bytes, len, err, sizeof(err)));
    CHECK_MSG(vitro_vcpu_tsc(b.c) == tsc, "the TSC goes on where it was");
    each_msr(&a, &b, true);
    CHECK(!memcmp(a.v->regs, b.v->regs, sizeof(a.v->regs)) && b.v->rip == a.v->rip);
    CHECK(vcpu_eflags(b.v) == vcpu_eflags(a.v) && b.v->cr2 == 0x5678 && b.v->dr[3] == 0x1234);
    CHECK(!memcmp(a.v->seg, b.v->seg, sizeof(a.v->seg)) && b.v->halted && b.v->nmi_masked && b.v->int_shadow == SHADOW_STI);
    CHECK(b.v->vm->a20_off && b.v->a20_off && (b.v->intr_wait & EVENT_NMI));
    CHECK(b.v->fpu[170] == 170 && b.v->fpu[8] == 0);
    u8 *again = vitro_vcpu_save(b.c, &len2);
    CHECK(len2 == len && !memcmp(bytes, again, len));

    for (size_t cut = 0; cut < len; cut += 97)
        CHECK(vitro_vcpu_load(b.c, bytes, cut, err, sizeof(err)) == -EINVAL);
    unsigned refused = 0;
    for (unsigned n = 0; n < 4000; n++) {
        memcpy(again, bytes, len);
        for (unsigned i = 0, many = 1 + (unsigned)(rnd() % 3); i < many; i++)
            again[rnd() % len] = (u8)rnd();
        if (vitro_vcpu_load(b.c, again, len, err, sizeof(err))) {
            refused++;
            continue;
        }
        /* What the host would fault on when it takes the vector state. */
        fpu_load(b.v);
        fpu_save(b.v);
        CHECK(b.v->cpl <= 3);
    }
    CHECK(refused > 400);
    free(bytes);
    free(again);
    drop_cpu(&a);
    drop_cpu(&b);
}

/* A vCPU of a guest whose kernel runs outside ring 0 (struct vitro_outer). */
static void test_vcpu_outside_ring_0(void)
{
    static const struct { u8 cpl; u32 flags; bool good; } c[] = {
        { CPL_OUTER, EFL_IF, true }, { 3, EFL_IF, true }, { 0, EFL_IF, false }, { 2, EFL_IF, false }, { CPL_OUTER, 0, false },
        { 3, EFL_IF | EFL_IOPL, false }, { 3, EFL_IF | EFL_VM, false },
    };
    struct cpu a, b;
    char err[300];
    size_t len;

    make_cpu(&a);
    make_cpu(&b);
    b.v->outer = true;
    for (unsigned i = 0; i < ARRAY_SIZE(c); i++) {
        a.v->cr0 |= CR0_PE | CR0_PG;
        a.v->cr4 |= CR4_PAE;
        a.v->efer |= EFER_LME | EFER_LMA;
        a.v->cpl = c[i].cpl;
        vcpu_set_eflags(a.v, EFL_R1 | c[i].flags);
        u8 *bytes = vitro_vcpu_save(a.c, &len);
        int r = vitro_vcpu_load(b.c, bytes, len, err, sizeof(err));
        CHECK_MSG(c[i].good ? !r : r == -EINVAL && strstr(err, "ring 0"), "CPL %u, flags %#x: %d", c[i].cpl, c[i].flags, r);
        free(bytes);
    }
    drop_cpu(&a);
    drop_cpu(&b);
}

static void test_clock(void)
{
    struct cpu a;
    char err[200];
    make_cpu(&a);
    u64 then = vitro_vcpu_tsc(a.c);
    for (volatile unsigned i = 0; i < 100000; i++)
        ;
    CHECK(vitro_vcpu_tsc(a.c) == then);
    u64 gone = vitro_vm_clock_start(a.vm);
    CHECK(gone > 0 && vitro_vcpu_tsc(a.c) >= then && vitro_vm_clock_start(a.vm) == 0);
    vitro_vm_clock_stop(a.vm);
    CHECK(vitro_vcpu_tsc(a.c) - then < gone + (1ull << 32));
    (void)err;
    drop_cpu(&a);
}

static void test_model(void)
{
    struct cpu a;
    char err[300];
    size_t len;
    make_cpu(&a);
    u8 *bytes = vitro_vm_save_model(a.vm, &len);
    CHECK(!vitro_vm_check_model(a.vm, bytes, len, err, sizeof(err)));
    for (size_t cut = 0; cut < len; cut++)
        CHECK(vitro_vm_check_model(a.vm, bytes, cut, err, sizeof(err)) == -EINVAL);
    u32 nr;
    memcpy(&nr, bytes + 8, 4);
    for (u32 i = 0; i < nr; i++) {
        struct cpuid_row row;
        memcpy(&row, bytes + 16 + i * sizeof(row), sizeof(row));
        if (row.leaf != 7 || row.subleaf)
            continue;
        row.r[1] |= ~0u; /* a CPU that can everything */
        memcpy(bytes + 16 + i * sizeof(row), &row, sizeof(row));
        CHECK(vitro_vm_check_model(a.vm, bytes, len, err, sizeof(err)) == -EINVAL && strstr(err, "CPUID 0x7.0, ebx"));
    }
    u64 khz;
    memcpy(&khz, bytes, 8);
    free(bytes);
    bytes = vitro_vm_save_model(a.vm, &len);
    khz += khz / 100;
    memcpy(bytes, &khz, 8);
    CHECK(vitro_vm_check_model(a.vm, bytes, len, err, sizeof(err)) == -EINVAL && strstr(err, "TSC"));
    free(bytes);
    drop_cpu(&a);
}

int main(void)
{
    test_records();
    test_sets();
    test_machine();
    test_hostile_machine();
    test_vcpu();
    test_vcpu_outside_ring_0();
    test_clock();
    test_model();
    return check_done("test_state");
}
