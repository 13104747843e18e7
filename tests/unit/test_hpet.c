/* The HPET: registers, one-shot and periodic matches in 32 and 64 bits, levels, legacy routes, state, writes at random. */
#include "machine/chips/hpet.h"
#include "machine/layout.h"
#include "tests/lib/check.h"
#include <string.h>

static u64 now; /* ns */
static unsigned edges[24];
static bool level[24], legacy;

static u64 source(void *opaque) { (void)opaque; return now; }
static void on_legacy(void *opaque, bool on) { (void)opaque; legacy = on; }
static void on_set(void *opaque, unsigned timer, unsigned gsi, bool high)
{
    (void)opaque;
    CHECK_MSG(timer < HPET_TIMERS && gsi < 24, "timer %u, GSI %u", timer, gsi);
    edges[gsi] += high && !level[gsi];
    level[gsi] = high;
}

static struct vm_clock clk;
static struct hpet h;
static u64 rd(u64 at, unsigned n) { return hpet.io->read(&h, at, n) & (n == 4 ? 0xffffffffull : ~0ull); }
static void wr(u64 at, unsigned n, u64 v) { hpet.io->write(&h, at, n, v); }
static void pass(u64 ns) { now += ns; clock_run(&clk); }

#define T(n) (0x100 + 0x20 * (n))

static void test_registers(void)
{
    CHECK(rd(0, 4) == HPET_ID && rd(4, 4) == 10000000 && rd(0, 8) == (10000000ull << 32 | HPET_ID));
    CHECK(rd(T(0), 4) == 0x30 && rd(T(0) + 4, 4) == HPET_ROUTES && rd(T(3), 8) == 0 && rd(0x3f8, 8) == 0);
    pass(1000);
    CHECK(rd(0xf0, 8) == 0); /* halted */
    wr(0xf4, 4, 5), wr(0xf0, 4, 0xfffffffe);
    CHECK(rd(0xf0, 8) == 0x5fffffffeull);
    wr(0x10, 4, 1);
    pass(30);
    CHECK(rd(0xf0, 8) == 0x600000001ull && rd(0xf4, 4) == 6);
    wr(0xf0, 8, 0); /* not while it runs */
    CHECK(rd(0xf0, 8) == 0x600000001ull);
    wr(0x10, 4, 0);
    pass(1000);
    CHECK(rd(0xf0, 8) == 0x600000001ull); /* it keeps its value */
    wr(0xf0, 8, 0);
    wr(T(1), 4, 21 << 9), wr(T(2), 4, 3 << 9);
    CHECK((rd(T(1), 4) >> 9 & 31) == 21 && (rd(T(2), 4) >> 9 & 31) == 0); /* where it cannot go */
    wr(T(2), 4, 0xc000); /* no messages */
    CHECK(rd(T(2), 4) == 0x30);
    wr(T(1), 4, 0);
}

static void test_one_shot(void)
{
    wr(T(2), 4, 22 << 9 | 4), wr(T(2) + 8, 8, 1000);
    pass(20000);
    CHECK(!edges[22]); /* halted */
    wr(0x10, 4, 1);
    pass(9990);
    CHECK(!edges[22]);
    pass(10);
    CHECK(edges[22] == 1 && !level[22] && !rd(0x20, 4));
    pass(1000000000);
    CHECK(edges[22] == 1);
    /* 32 bits: again whenever they come round. */
    wr(T(2), 4, 22 << 9 | 0x104), wr(T(2) + 8, 4, (u32)(rd(0xf0, 8) + 10));
    pass(100);
    CHECK(edges[22] == 2);
    pass((10ull << 32) - 10);
    CHECK(edges[22] == 2);
    pass(10);
    CHECK(edges[22] == 3);
    wr(T(2), 4, 0);
}

static void test_periodic(void)
{
    u64 at = rd(0xf0, 8), ran = 0;

    edges[20] = 0;
    wr(T(0), 4, 20 << 9 | 0x4c); /* periodic, set */
    wr(T(0) + 8, 8, at + 50000), wr(T(0) + 8, 8, 10000); /* first at 500 us, then every 100 */
    CHECK(!(rd(T(0), 4) & 0x40) && rd(T(0) + 8, 8) == at + 50000);
    pass(499990);
    CHECK(!edges[20]);
    pass(10);
    CHECK(edges[20] == 1 && rd(T(0) + 8, 8) == at + 60000);
    pass(100000), pass(100000);
    CHECK(edges[20] == 3);
    pass(1050000); /* late: together, in phase */
    CHECK(edges[20] == 4 && rd(T(0) + 8, 8) == at + 180000);
    pass(50000);
    CHECK(edges[20] == 5);
    /* A period of one tick does not keep the host busy. */
    wr(T(0) + 8, 8, 1);
    edges[20] = 0;
    for (; ran < 10000; ran++)
        pass(100);
    CHECK_MSG(edges[20] >= 5 && edges[20] <= 22, "%u", edges[20]);
    wr(T(0), 4, 0);
}

static void test_level(void)
{
    wr(T(1), 4, 23 << 9 | 6), wr(T(1) + 8, 8, rd(0xf0, 8) + 10);
    pass(100);
    CHECK(level[23] && rd(0x20, 4) == 2);
    wr(0x20, 4, 5);
    CHECK(level[23]);
    wr(T(1), 4, 21 << 9 | 6); /* the line moves */
    CHECK(!level[23] && level[21]);
    wr(0x20, 4, 2);
    CHECK(!level[21] && !rd(0x20, 4));
    wr(T(1), 4, 0);
}

static void test_legacy(void)
{
    edges[GSI_PIT] = edges[GSI_RTC] = 0;
    wr(T(0), 4, 20 << 9 | 4), wr(T(1), 4, 4);
    wr(0x10, 4, 3);
    CHECK(legacy);
    wr(T(0) + 8, 8, rd(0xf0, 8) + 10), wr(T(1) + 8, 8, rd(0xf0, 8) + 20);
    edges[20] = 0;
    pass(100);
    CHECK(edges[GSI_PIT] == 1 && !edges[GSI_RTC] && !edges[20]);
    pass(100);
    CHECK(edges[GSI_RTC] == 1);
    CHECK(level[GSI_PIT] && level[GSI_RTC]); /* until the next match: the 8259 forgets an edge that is gone before INTA */
    wr(0x10, 4, 1);
    CHECK(!legacy && !level[GSI_PIT] && !level[GSI_RTC]);
}

static void test_state(void)
{
    struct state_buf buf = { 0 };
    char err[200];
    unsigned was;

    wr(T(0), 4, 20 << 9 | 4), wr(T(0) + 8, 8, rd(0xf0, 8) + 1000);
    state_save(&buf, hpet.state, &h);
    u64 count = rd(0xf0, 8);
    hpet.reset(&h);
    CHECK(!state_load(hpet.state, &h, buf.data, buf.len, err, sizeof(err)) && !hpet.loaded(&h));
    CHECK(rd(0xf0, 8) == count);
    was = edges[20];
    pass(9990);
    CHECK(edges[20] == was);
    pass(10);
    CHECK(edges[20] == was + 1);
    h.t[1].config = 0x10000;
    CHECK(hpet.loaded(&h));
    hpet.reset(&h);
    h.status = 8;
    CHECK(hpet.loaded(&h));
    hpet.reset(&h);
    state_buf_free(&buf);
}

static void test_hostile(void)
{
    u64 r = 88172645463325252ull;

    for (unsigned i = 0; i < 300000; i++) {
        r ^= r << 13, r ^= r >> 7, r ^= r << 17;
        unsigned n = r & 1 ? 4 : 8;
        u64 at = (r >> 1 & 1 ? r >> 8 & 0x1f8 : T(r >> 8 & 3) + (r >> 10 & 8)) | (n == 4 ? r >> 20 & 4 : 0);
        wr(at, n, r >> 2 & 1 ? r : r >> 50);
        rd(at, n);
        pass(r >> 24 & 0xffff);
    }
    CHECK(h.status < 8);
    hpet.reset(&h);
    for (unsigned i = 0; i < 24; i++)
        CHECK(!level[i]);
    CHECK(!legacy);
}

int main(void)
{
    const struct hpet_wiring w = { .clock = &clk, .set = on_set, .legacy = on_legacy };

    CHECK(!clock_init(&clk, source, NULL) && !hpet.init(&h, &w));
    test_registers();
    test_one_shot();
    test_periodic();
    test_level();
    test_legacy();
    test_state();
    test_hostile();
    hpet.fini(&h);
    clock_fini(&clk);
    return check_done("test_hpet");
}
