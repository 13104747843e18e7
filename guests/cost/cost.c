/*
 * cost.c - what things cost, in this guest, now: the same work by instructions and by calls.
 * Each figure is the best of several rounds: the host has other work to do.
 */
#include "sdk/sdk.h"

#define PAGES 4096
#define ROUNDS 15
#define AT 0x8000000000ull

static uint64_t t0;
static void begin(void) { t0 = mono_ns(); }
static uint64_t end(void) { return mono_ns() - t0; }
#define BEST(best, code) \
    do { \
        begin(); \
        code; \
        uint64_t t_ = end(); \
        if (t_ < (best)) \
            (best) = t_; \
    } while (0)

static uint64_t frames;
static struct vt_range list[PAGES] __attribute__((aligned(8)));
static uint64_t *leaf; /* the page-table entries of AT, in a row: tables that lie in a row */

static void invlpg(uint64_t va)
{
    __asm__ volatile("invlpg (%0)" ::"r"(va) : "memory");
}

/* -- The guest's own way: it knows where its tables are ------------------------------------------------------------- */

static void own_map(unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        leaf[i] = (frames + i * PAGE) | 0x8000000000000003ull;
        invlpg(AT + i * PAGE);
    }
}
static void own_protect(unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        leaf[i] &= ~2ull;
        invlpg(AT + i * PAGE);
    }
}
static void own_unmap(unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        leaf[i] = 0;
        invlpg(AT + i * PAGE);
    }
}

/* -- By calls: one range, or one range a page (frames that are scattered) ------------------------------------------- */

static uint64_t frame_list[PAGES] __attribute__((aligned(8)));

static void ask_list(unsigned nr) /* frames that are scattered, pages that are not */
{
    for (unsigned i = 0; i < nr; i++)
        frame_list[i] = frames + (i ^ 1) * PAGE;
    list[0] = (struct vt_range){ .va = AT, .pa = (uint64_t)frame_list, .pages = nr, .flags = VT_W | VT_LIST };
    if (vt_call3(VT_MAP, 0, list, 1) != 1)
        die("map: %d\n", list[0].result);
}

static void ask(unsigned number, unsigned nr, bool scattered, uint32_t flags)
{
    unsigned ranges = scattered ? nr : 1;

    for (unsigned i = 0; i < ranges; i++)
        list[i] = (struct vt_range){ .va = AT + i * PAGE, .pa = frames + i * PAGE, .pages = scattered ? 1 : nr, .flags = flags };
    int64_t done = vt_call3(number, 0, list, ranges);
    if (done != ranges)
        die("call %u: %ld, %d\n", number, done, list[done < 0 ? 0 : done].result);
}

static uint64_t touch(unsigned nr)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < nr; i++)
        sum += *(volatile uint8_t *)(AT + i * PAGE);
    return sum;
}

static void row(const char *what, unsigned nr, uint64_t own, uint64_t call)
{
    uint64_t x = call ? own * 100 / call : 0;

    print("%s %4u pages: %7lu ns by instructions, %7lu ns by calls, %lu.%02lux\n", what, nr, own, call, x / 100, x % 100);
}

int main(void)
{
    static const unsigned sizes[] = { 1, 64, PAGES };
    uint64_t best = ~0ull, t;

    for (unsigned r = 0; r < ROUNDS; r++)
        BEST(best, for (unsigned i = 0; i < 10000; i++) vt_call0(VT_NOP));
    print("a call that does nothing: %lu.%lu ns\n", best / 10000, best / 1000 % 10);
    best = ~0ull;
    for (unsigned r = 0; r < ROUNDS; r++)
        BEST(best, for (unsigned i = 0; i < 1000; i++) vt_call2(VT_EVENT_BIND, 1, 0));
    print("a call with the vector registers put away: %lu ns\n", best / 1000);
    best = ~0ull;
    for (unsigned r = 0; r < ROUNDS; r++)
        BEST(best, for (unsigned i = 0; i < 10000; i++) mono_ns());
    print("reading the time: %lu.%lu ns\n", best / 10000, best / 1000 % 10);

    /* Tables of our own for AT, so that both ways find them made: PDPT, PD, then the leaves in a row. */
    uint64_t *pml4, *table = pages_alloc(2);
    leaf = pages_alloc(PAGES / 512);
    for (unsigned i = 0; i < PAGES / 512; i++)
        table[512 + i] = (uint64_t)(leaf + i * 512) | 3;
    table[0] = (uint64_t)(table + 512) | 3;
    __asm__ volatile("mov %%cr3, %0" : "=r"(pml4));
    pml4[AT >> 39] = (uint64_t)table | 3;
    frames = (uint64_t)pages_alloc(PAGES + 1);

    for (unsigned s = 0; s < 3; s++) {
        unsigned nr = sizes[s];
        uint64_t listed = ~0ull, own[3] = { ~0ull, ~0ull, ~0ull }, one[3] = { ~0ull, ~0ull, ~0ull }, many[3] = { ~0ull, ~0ull, ~0ull };
        for (unsigned r = 0; r < ROUNDS; r++) {
            BEST(own[0], own_map(nr));
            touch(nr);
            BEST(own[1], own_protect(nr));
            touch(nr);
            BEST(own[2], own_unmap(nr));
            BEST(one[0], ask(VT_MAP, nr, false, VT_W));
            touch(nr);
            BEST(one[1], ask(VT_PROTECT, nr, false, 0));
            touch(nr);
            BEST(one[2], ask(VT_UNMAP, nr, false, 0));
            BEST(many[0], ask(VT_MAP, nr, true, VT_W));
            touch(nr);
            BEST(many[1], ask(VT_PROTECT, nr, true, 0));
            touch(nr);
            BEST(many[2], ask(VT_UNMAP, nr, true, 0));
            BEST(listed, ask_list(nr));
            ask(VT_UNMAP, nr, false, 0);
        }
        row("map               ", nr, own[0], one[0]);
        row("map, a list       ", nr, own[0], listed);
        row("map, scattered    ", nr, own[0], many[0]);
        row("protect           ", nr, own[1], one[1]);
        row("protect, scattered", nr, own[1], many[1]);
        row("unmap             ", nr, own[2], one[2]);
        row("unmap, scattered  ", nr, own[2], many[2]);
    }

    /* The first touch, with and without filling ahead: as many as fit the soft TLB. */
    uint64_t cold = ~0ull, warm = ~0ull;
    for (unsigned r = 0; r < ROUNDS; r++) {
        ask(VT_MAP, 1024, false, VT_W);
        BEST(cold, touch(1024));
        ask(VT_UNMAP, 1024, false, 0);
        ask(VT_MAP, 1024, false, VT_W | VT_FILL);
        BEST(warm, touch(1024));
        ask(VT_UNMAP, 1024, false, 0);
    }
    print("first touch of a page: %lu.%lu ns; populated ahead: %lu.%lu ns\n", cold / 1024, cold * 10 / 1024 % 10, warm / 1024,
          warm * 10 / 1024 % 10);

    /* Switching between two spaces and back. */
    tables_give(8);
    uint64_t a = vt_call2(VT_SPACE_CREATE, 0, 1), b = vt_call2(VT_SPACE_CREATE, 0, 1);
    t = ~0ull;
    for (unsigned r = 0; r < ROUNDS; r++)
        BEST(t, for (unsigned i = 0; i < 1000; i++) { vt_call1(VT_SPACE_SWITCH, a); vt_call1(VT_SPACE_SWITCH, b); });
    print("switching spaces: %lu ns\n", t / 2000);
    return 0;
}
