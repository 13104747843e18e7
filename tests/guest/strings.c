/*
 * strings.c - movs, stos, lods, scas, cmps with every prefix and width: results, registers, flags,
 * and exact state when a fault stops them in the middle. Intel SDM vol. 2 REP.
 */
#include "lib/guest.h"

#define RW (PTE_P | PTE_W | PTE_U)

static u8 *a, *b;
enum { N = 8192 };

static void fill(void)
{
    for (unsigned i = 0; i < N; i++) {
        a[i] = (u8)(i * 31 + (i >> 8));
        b[i] = 0xee;
    }
}

struct str {
    u64 si, di, cx, ax;
    bool zf, cf;
};

#define OP(name, insn)                                                                             \
    static unsigned name(struct str *r)                                                            \
    {                                                                                              \
        unsigned v = TRY(insn,                                                                     \
                         : "+S"(r->si), "+D"(r->di), "+c"(r->cx), "+a"(r->ax), "=@ccz"(r->zf),     \
                           "=@ccc"(r->cf)::"memory");                                              \
        return v;                                                                                  \
    }
OP(movsb_, "movsb")
OP(rep_movsb, "rep movsb")
OP(rep_movsw, "rep movsw")
OP(rep_movsl, "rep movsl")
OP(rep_movsq, "rep movsq")
OP(rep_stosb, "rep stosb")
OP(rep_stosw, "rep stosw")
OP(rep_stosl, "rep stosl")
OP(rep_stosq, "rep stosq")
OP(rep_lodsb, "rep lodsb")
OP(rep_lodsq, "rep lodsq")
OP(repe_cmpsb, "repe cmpsb")
OP(repe_cmpsw, "repe cmpsw")
OP(repe_cmpsq, "repe cmpsq")
OP(repne_cmpsb, "repne cmpsb")
OP(repne_scasb, "repne scasb")
OP(repne_scasw, "repne scasw")
OP(repne_scasl, "repne scasl")
OP(repne_scasq, "repne scasq")
OP(repe_scasb, "repe scasb")
OP(repe_scasq, "repe scasq")
OP(std_movsb, "std; rep movsb; cld")
OP(std_movsq, "std; rep movsq; cld")
OP(std_stosw, "std; rep stosw; cld")
OP(std_scasb, "std; repne scasb; cld")
OP(std_cmpsb, "std; repe cmpsb; cld")
OP(repne_movsb, "repne movsb")
OP(a32_movsb, "addr32 rep movsb")
OP(a32_stosq, "addr32 rep stosq")
OP(a32_lodsb, "addr32 lodsb")
OP(fs_movsb, ".byte 0x64; rep movsb")
OP(fs_lodsq, ".byte 0x64, 0x48, 0xad")
OP(cs_cmpsb, ".byte 0x2e; repe cmpsb")

static struct str st(u64 si, u64 di, u64 cx, u64 ax)
{
    return (struct str){si, di, cx, ax, false, false};
}

static bool is(const char *what, struct str *r, u64 si, u64 di, u64 cx)
{
    bool ok = r->si == si && r->di == di && r->cx == cx;
    if (!ok)
        print("# %s: rsi %lx rdi %lx rcx %lx, want %lx %lx %lx\n", what, r->si, r->di, r->cx, si,
              di, cx);
    return ok;
}

static void plain(void)
{
    struct str r;
    u64 A = (u64)a, B = (u64)b;
    static const struct {
        const char *name;
        unsigned (*movs)(struct str *), (*stos)(struct str *);
        unsigned size;
    } w[] = {{"b", rep_movsb, rep_stosb, 1},
             {"w", rep_movsw, rep_stosw, 2},
             {"d", rep_movsl, rep_stosl, 4},
             {"q", rep_movsq, rep_stosq, 8}};
    for (unsigned i = 0; i < 4; i++) {
        unsigned size = w[i].size;
        bool ok = true;
        static const unsigned counts[] = {0, 1, 2, 3, 7, 8, 15, 16, 17, 63, 64, 65, 100, 255};
        for (unsigned k = 0; k < ARRAY_LEN(counts); k++)
            for (unsigned off = 0; off < 8; off += 3) {
                u64 n = counts[k], bytes = n * size;
                fill();
                r = st(A + off, B + 5, n, 0);
                w[i].movs(&r);
                ok &= is("movs", &r, A + off + bytes, B + 5 + bytes, 0) &&
                      !memcmp(a + off, b + 5, bytes) && b[4] == 0xee && b[5 + bytes] == 0xee;
            }
        reportf(ok, "rep movs%s", w[i].name);
        ok = true;
        for (unsigned k = 0; k < ARRAY_LEN(counts); k++) {
            u64 n = counts[k], bytes = n * size;
            fill();
            r = st(1, B + 3, n, 0x1122334455667788);
            w[i].stos(&r);
            ok &= is("stos", &r, 1, B + 3 + bytes, 0) && b[2] == 0xee && b[3 + bytes] == 0xee;
            for (u64 j = 0; j < bytes; j++)
                ok &= b[3 + j] == (u8)(0x1122334455667788ull >> (j % size * 8));
        }
        reportf(ok, "rep stos%s", w[i].name);
    }
    fill();
    r = st(A, B, 100, 0);
    movsb_(&r);
    report("movsb alone leaves RCX",
           is("movsb", &r, A + 1, B + 1, 100) && b[0] == a[0] && b[1] == 0xee);
    r = st(A, B, 5, 0);
    repne_movsb(&r);
    report("repne movs is rep movs", is("repne", &r, A + 5, B + 5, 0));
    r = st(A, B, 10, 0xff00);
    rep_lodsb(&r);
    report("rep lodsb ends with the last",
           is("lodsb", &r, A + 10, B, 0) && r.ax == (0xff00u | a[9]));
    r = st(A, B, 3, 0);
    rep_lodsq(&r);
    report("rep lodsq", is("lodsq", &r, A + 24, B, 0) && r.ax == *(u64 *)(a + 16));

    /* Zero count: nothing moves, not even a fault. */
    r = st(PAGE3, PAGE3, 0, 0x55);
    bool ok = rep_movsb(&r) == VEC_NONE && is("zero", &r, PAGE3, PAGE3, 0);
    ok &= rep_stosq(&r) == VEC_NONE && rep_lodsb(&r) == VEC_NONE &&
          is("zero", &r, PAGE3, PAGE3, 0) && r.ax == 0x55;
    report("zero count touches nothing", ok);
    bool zf, cf;
    u64 c = 0, s = PAGE3, d = PAGE3;
    asm volatile("xor %%eax, %%eax; stc; repe cmpsb"
                 : "+S"(s), "+D"(d), "+c"(c), "=@ccz"(zf), "=@ccc"(cf)::"rax");
    report("zero count keeps the flags", zf && cf);

    /* Overlap: byte order matters. */
    fill();
    memcpy(b, a, 256);
    r = st(B, B + 1, 200, 0);
    rep_movsb(&r);
    ok = true;
    for (int i = 0; i <= 200; i++)
        ok &= b[i] == a[0];
    report("overlapping rep movsb, one byte apart, repeats", ok);
    memcpy(b, a, 256);
    r = st(B, B + 3, 20, 0);
    rep_movsq(&r);
    ok = true;
    u8 model[256];
    memcpy(model, a, 256);
    for (int i = 0; i < 20; i++) {
        u8 t[8];
        for (int k = 0; k < 8; k++)
            t[k] = model[i * 8 + k];
        for (int k = 0; k < 8; k++)
            model[i * 8 + 3 + k] = t[k];
    }
    for (int i = 0; i < 200; i++)
        ok &= b[i] == model[i];
    report("overlapping rep movsq, three bytes apart", ok);
    memcpy(b, a, 256);
    r = st(B + 1, B, 200, 0);
    rep_movsb(&r);
    report("overlapping the other way moves", !memcmp(b, a + 1, 200));

    /* DF. */
    fill();
    r = st(A + 99, B + 99, 100, 0);
    std_movsb(&r);
    report("DF: rep movsb", is("std", &r, A - 1, B - 1, 0) && !memcmp(a, b, 100) && b[100] == 0xee);
    fill();
    r = st(A + 800, B + 800, 100, 0);
    std_movsq(&r);
    report("DF: rep movsq", is("std", &r, A, B, 0) && !memcmp(a + 8, b + 8, 800) && b[7] == 0xee);
    fill();
    r = st(0, B + 20, 5, 0x1234);
    std_stosw(&r);
    report("DF: rep stosw", r.di == B + 10 && *(u16 *)(b + 12) == 0x1234 &&
                                *(u16 *)(b + 20) == 0x1234 && b[11] == 0xee && b[22] == 0xee);
    memcpy(b, a, 256);
    r = st(B, B + 100, 101, b[50]);
    std_scasb(&r);
    u64 at = B + 100 - (101 - r.cx) + 1;
    report("DF: repne scasb", r.zf && *(u8 *)at == b[50] && r.di == at - 1);
    r = st(A + 50, B + 50, 51, 0);
    std_cmpsb(&r);
    report("DF: repe cmpsb", r.zf && is("std", &r, A - 1, B - 1, 0));
}

static void searching(void)
{
    struct str r;
    u64 A = (u64)a, B = (u64)b;
    fill();
    memcpy(b, a, N);
    for (unsigned n = 0; n < 3; n++) {
        static const unsigned where[] = {0, 77, 4100};
        unsigned p = where[n];
        b[p] ^= 0x80;
        r = st(A, B, N, 0);
        repe_cmpsb(&r);
        reportf(is("cmpsb", &r, A + p + 1, B + p + 1, N - p - 1) && !r.zf && r.cf == (a[p] < b[p]),
                "repe cmpsb: difference at %u", p);
        r = st(A, B, N / 8, 0);
        repe_cmpsq(&r);
        u64 q = p / 8;
        reportf(is("cmpsq", &r, A + 8 * q + 8, B + 8 * q + 8, N / 8 - q - 1) && !r.zf &&
                    r.cf == (((u64 *)a)[q] < ((u64 *)b)[q]),
                "repe cmpsq: difference at %u", p);
        b[p] ^= 0x80;
    }
    r = st(A, B, N / 2, 0);
    repe_cmpsw(&r);
    report("repe cmpsw: equal to the end", is("cmpsw", &r, A + N, B + N, 0) && r.zf && !r.cf);
    for (unsigned i = 0; i < N; i++)
        b[i] = (u8)~a[i];
    b[1000] = a[1000];
    r = st(A, B, N, 0);
    repne_cmpsb(&r);
    report("repne cmpsb: first equal", is("repne cmpsb", &r, A + 1001, B + 1001, N - 1001) && r.zf);

    memset(b, 0, N);
    b[5000] = 0x42;
    r = st(1, B, N, 0x42);
    repne_scasb(&r);
    report("repne scasb finds", is("scasb", &r, 1, B + 5001, N - 5001) && r.zf);
    r = st(1, B, N, 0x43);
    repne_scasb(&r);
    report("repne scasb finds nothing", is("scasb", &r, 1, B + N, 0) && !r.zf);
    r = st(1, B, N, 0);
    repe_scasb(&r);
    report("repe scasb skips", is("repe scasb", &r, 1, B + 5001, N - 5001) && !r.zf && r.cf);
    r = st(1, B, N / 2, 0x42);
    repne_scasw(&r);
    report("repne scasw", is("scasw", &r, 1, B + 5002, N / 2 - 2501) && r.zf);
    r = st(1, B, N / 4, 0x42);
    repne_scasl(&r);
    report("repne scasd", is("scasd", &r, 1, B + 5004, N / 4 - 1251) && r.zf);
    r = st(1, B, N / 8, 0x42);
    repne_scasq(&r);
    report("repne scasq", is("scasq", &r, 1, B + 5008, N / 8 - 626) && r.zf);
    r = st(1, B, N / 8, 0);
    repe_scasq(&r);
    report("repe scasq", is("repe scasq", &r, 1, B + 5008, N / 8 - 626) && !r.zf);
    /* strlen, as libraries write it */
    memset(b, 'x', N);
    b[3000] = 0;
    r = st(0, B, ~0ull, 0);
    repne_scasb(&r);
    report_eq("repne scasb as strlen", ~r.cx - 1, 3000);
    r = st(A, A, 10, 0);
    cs_cmpsb(&r);
    report("an ignored segment prefix", r.zf && r.cx == 0);
}

/*
 * rep movs and rep stos against a loop over elements: each size, lengths around what moves at once, sources and destinations
 * that overlap or do not, runs across the ends of pages that may have left the TLB, and flags that must pass through.
 */
#define REP_CARRY(name, insn)                                                                      \
    static bool name(struct str *r)                                                                \
    {                                                                                              \
        bool cf;                                                                                   \
        asm volatile("stc; " insn : "+S"(r->si), "+D"(r->di), "+c"(r->cx), "=@ccc"(cf) : "a"(r->ax) : "memory"); \
        return cf;                                                                                 \
    }
REP_CARRY(cf_movsb, "rep movsb")
REP_CARRY(cf_movsw, "rep movsw")
REP_CARRY(cf_movsl, "rep movsl")
REP_CARRY(cf_movsq, "rep movsq")
REP_CARRY(cf_stosb, "rep stosb")
REP_CARRY(cf_stosw, "rep stosw")
REP_CARRY(cf_stosl, "rep stosl")
REP_CARRY(cf_stosq, "rep stosq")

static void model_movs(u8 *m, u64 di, u64 si, u64 n, u64 size)
{
    for (u64 i = 0; i < n; i++) {
        u64 x = 0;
        memcpy(&x, m + si + i * size, size);
        memcpy(m + di + i * size, &x, size);
    }
}

static void model(void)
{
    enum { SPACE = 4 * PAGE };
    static const struct {
        const char *name;
        bool (*movs)(struct str *), (*stos)(struct str *);
        u64 size;
    } w[] = {{"b", cf_movsb, cf_stosb, 1}, {"w", cf_movsw, cf_stosw, 2},
             {"d", cf_movsl, cf_stosl, 4}, {"q", cf_movsq, cf_stosq, 8}};
    static const u64 lens[] = {0, 8, 56, 63, 64, 65, 72, 127, 128, 136, 520, 4096, 5000};
    static const s64 dists[] = {-5000, -128, -100, -64, -63, -9, -1, 1, 3, 8, 31, 63, 64, 65, 100, 128, 5000};
    u8 *mem = (u8 *)pages_alloc(SPACE / PAGE, PAGE), *m = (u8 *)pages_alloc(SPACE / PAGE, PAGE);
    for (unsigned i = 0; i < SPACE; i++)
        mem[i] = m[i] = (u8)(i * 29 + (i >> 7));
    unsigned turn = 0;
    for (unsigned k = 0; k < ARRAY_LEN(w); k++) {
        u64 size = w[k].size;
        bool movs = true, stos = true;
        for (unsigned l = 0; l < ARRAY_LEN(lens); l++) {
            u64 n = lens[l] / size, bytes = n * size;
            for (unsigned d = 0; d < ARRAY_LEN(dists); d++) {
                u64 si = 2 * PAGE - 100 - turn % 67 - (dists[d] > 1000 ? 5000 : 0), di = si + (u64)dists[d];
                if (turn++ % 3 == 0)
                    invlpg(mem + (turn & 1 ? di : si) + bytes / 2);
                struct str r = st((u64)mem + si, (u64)mem + di, n, 0);
                bool cf = w[k].movs(&r);
                model_movs(m, di, si, n, size);
                movs &= cf && is("movs", &r, (u64)mem + si + bytes, (u64)mem + di + bytes, 0) && !memcmp(mem, m, SPACE);
            }
            for (unsigned at = 0; at < 16; at += 5) {
                u64 di = PAGE - 64 - at, val = 0x8877665544332211 + turn++;
                invlpg(mem + (turn & 1 ? 0 : PAGE));
                struct str r = st(1, (u64)mem + di, n, val);
                bool cf = w[k].stos(&r);
                for (u64 i = 0; i < n; i++)
                    memcpy(m + di + i * size, &val, size);
                stos &= cf && is("stos", &r, 1, (u64)mem + di + bytes, 0) && !memcmp(mem, m, SPACE);
            }
        }
        reportf(movs, "rep movs%s as by elements", w[k].name);
        reportf(stos, "rep stos%s as by elements", w[k].name);
    }
}

/* -- Faults in the middle
 * ------------------------------------------------------------------------------ */

static u64 pa[4];
#define VA (PAGE3)

static void map_pages(u64 base, unsigned n, int missing, int readonly)
{
    for (unsigned i = 0; i < n; i++)
        map((void *)(base + i * PAGE), pa[i],
            (int)i == missing    ? 0
            : (int)i == readonly ? PTE_P | PTE_U
                                 : RW);
}

static unsigned fixed;
static void fix_page(struct regs *r)
{
    fixed++;
    u64 page = trap.cr2 & ~(PAGE - 1);
    map((void *)page, pa[(page - VA) / PAGE % 4], RW);
}

static void faults(void)
{
    struct str r;
    for (unsigned i = 0; i < 4; i++)
        pa[i] = page_alloc();
    fill();
    u64 A = (u64)a;

    map_pages(VA, 3, 1, -1);
    r = st(A, VA + PAGE - 100, 300, 0);
    unsigned v = rep_movsb(&r);
    report("rep movsb, destination absent after 100",
           v == PF && faulted(PF_W, (void *)(VA + PAGE)) &&
               is("movsb", &r, A + 100, VA + PAGE, 200) &&
               !memcmp((u8 *)pa[0] + PAGE - 100, a, 100));
    r = st(VA + PAGE - 100, (u64)b, 300, 0);
    v = rep_movsb(&r);
    report("rep movsb, source absent after 100", v == PF && faulted(0, (void *)(VA + PAGE)) &&
                                                     is("movsb", &r, VA + PAGE, (u64)b + 100, 200));
    map_pages(VA, 3, -1, 1);
    r = st(A, VA + PAGE - 100, 300, 0);
    v = rep_movsb(&r);
    report("rep movsb, destination read-only after 100",
           v == PF && faulted(PF_W | PF_P, (void *)(VA + PAGE)) &&
               is("movsb", &r, A + 100, VA + PAGE, 200));
    map_pages(VA, 3, 1, -1);
    /* Elements that straddle the boundary: 12 whole ones before it, the 13th crosses and faults
     * whole. */
    memset((u8 *)pa[0] + PAGE - 100, 0xdd, 100);
    r = st(A, VA + PAGE - 100, 50, 0);
    v = rep_movsq(&r);
    report("rep movsq, an element across the boundary",
           v == PF && faulted(PF_W, (void *)(VA + PAGE)) &&
               is("movsq", &r, A + 96, VA + PAGE - 4, 38) &&
               !memcmp((u8 *)pa[0] + PAGE - 100, a, 96) &&
               *(u32 *)(pa[0] + PAGE - 4) == 0xdddddddd);
    r = st(0, VA + PAGE - 10, 20, 0x1111);
    v = rep_stosw(&r);
    report("rep stosw, absent after 5",
           v == PF && faulted(PF_W, (void *)(VA + PAGE)) && is("stosw", &r, 0, VA + PAGE, 15));
    r = st(0, VA + PAGE - 30, 20, 0x2222);
    v = rep_stosq(&r);
    report("rep stosq, an element across", v == PF && is("stosq", &r, 0, VA + PAGE - 6, 17));
    r = st(VA + PAGE - 3, 0, 20, 0);
    v = rep_lodsb(&r);
    report("rep lodsb",
           v == PF && faulted(0, (void *)(VA + PAGE)) && is("lodsb", &r, VA + PAGE, 0, 17));
    memset((u8 *)pa[0], 7, PAGE);
    r = st(0, VA + PAGE - 50, 100, 9);
    v = repne_scasb(&r);
    report("repne scasb",
           v == PF && faulted(0, (void *)(VA + PAGE)) && is("scasb", &r, 0, VA + PAGE, 50));
    memset(b, 7, PAGE);
    r = st((u64)b, VA + PAGE - 50, 100, 0);
    v = repe_cmpsb(&r);
    report("repe cmpsb, second operand", v == PF && faulted(0, (void *)(VA + PAGE)) &&
                                             is("cmpsb", &r, (u64)b + 50, VA + PAGE, 50));
    r = st(VA + PAGE - 60, (u64)b, 100, 0);
    v = repe_cmpsb(&r);
    report("repe cmpsb, first operand", v == PF && is("cmpsb", &r, VA + PAGE, (u64)b + 60, 40));
    /* Downwards. */
    map_pages(VA, 3, 0, -1);
    r = st(A + 1000, VA + PAGE + 49, 100, 0);
    v = std_movsb(&r);
    asm volatile("cld");
    report("DF: rep movsb, absent below", v == PF && faulted(PF_W, (void *)(VA + PAGE - 1)) &&
                                              is("movsb", &r, A + 950, VA + PAGE - 1, 50));
    report("DF is still set in the frame", trap.r.rflags & FL_DF);
    r = st(A + 1000, VA + PAGE + 40, 100, 0);
    v = std_movsq(&r);
    asm volatile("cld");
    report("DF: rep movsq, absent below", v == PF && faulted(PF_W, (void *)(VA + PAGE - 8)) &&
                                              is("movsq", &r, A + 1000 - 48, VA + PAGE - 8, 94));

    /* Both absent: the source's fault comes first. */
    r = st(VA + 2 * PAGE3 + 4 * PAGE, VA, 10, 0);
    (void)r;
    /* The handler maps the page and the instruction goes on, three pages in a row. */
    trap_handle(PF, fix_page);
    for (unsigned i = 0; i < 4; i++)
        unmap((void *)(VA + i * PAGE));
    fixed = 0;
    fill();
    r = st(A, VA + 11, 8000, 0);
    v = rep_movsb(&r);
    bool ok = is("fixed", &r, A + 8000, VA + 8011, 0) && fixed == 2;
    for (unsigned i = 0; i < 8000 && ok; i++)
        ok &= *(volatile u8 *)(VA + 11 + i) == a[i];
    report("rep movsb goes on after two faults", ok);
    unmap((void *)(VA + PAGE));
    fixed = 0;
    r = st(A, VA + PAGE - 13, 40, 0);
    rep_movsq(&r);
    ok = fixed == 1 && is("fixed", &r, A + 320, VA + PAGE - 13 + 320, 0);
    for (unsigned i = 0; i < 320 && ok; i++)
        ok &= *(volatile u8 *)(VA + PAGE - 13 + i) == a[i];
    report("rep movsq goes on after an element across", ok);
    unmap((void *)(VA + PAGE));
    r = st(VA + PAGE - 100, VA + PAGE - 100, 300, 0);
    fixed = 0;
    v = repe_cmpsb(&r);
    report("repe cmpsb goes on, flags right", r.zf && fixed == 1 && r.cx == 0);
    trap_handle(PF, NULL);
    for (unsigned i = 0; i < 4; i++)
        unmap((void *)(VA + i * PAGE));
    r = st(0x0000800000000000ull, (u64)b, 10, 0);
    report("non-canonical source: #GP(0), nothing moved",
           rep_movsb(&r) == GP && trapped(GP, 0) && r.cx == 10);
    map((void *)0x00007ffffffff000ull, pa[0], RW);
    r = st(A, 0x00007ffffffffff0ull, 100, 0);
    v = rep_movsb(&r);
    report("running into the hole: #GP(0) after 16",
           v == GP && is("hole", &r, A + 16, 0x0000800000000000ull, 84));
    unmap((void *)0x00007ffffffff000ull);
}

OP(one_movsw, "movsw")
OP(one_movsl, "movsl")
OP(one_movsq, "movsq")
OP(one_stosb, "stosb")
OP(one_stosw, "stosw")
OP(one_stosl, "stosl")
OP(one_stosq, "stosq")
OP(one_lodsw, "lodsw")
OP(one_lodsl, "lodsl")
OP(one_lodsq, "lodsq")
OP(one_lodsb, "lodsb")
OP(std_one_movsw, "std; movsw")
OP(std_one_stosq, "std; stosq")
OP(std_one_lodsl, "std; lodsl")
OP(fs_one_movsb, ".byte 0x64; movsb")
OP(a32_one_movsl, "addr32 movsl")
OP(cmp_movsb_, "cmp %%ecx, %%ecx; movsb; movsb; movsb")

/* One element, no prefix: the translator does these in line. */
static void single(void)
{
    static const struct {
        unsigned (*movs)(struct str *), (*stos)(struct str *), (*lods)(struct str *);
        unsigned size;
    } w[] = {{movsb_, one_stosb, one_lodsb, 1},
             {one_movsw, one_stosw, one_lodsw, 2},
             {one_movsl, one_stosl, one_lodsl, 4},
             {one_movsq, one_stosq, one_lodsq, 8}};
    struct str r;
    u64 A = (u64)a, B = (u64)b;
    bool ok = true;
    for (unsigned i = 0; i < 4; i++) {
        unsigned n = w[i].size;
        for (unsigned off = 0; off < 2 * PAGE; off += 61) { /* across pages, too */
            fill();
            r = st(A + off, B + off + 3, 9, 0);
            w[i].movs(&r);
            ok &= is("movs", &r, A + off + n, B + off + 3 + n, 9) && !memcmp(a + off, b + off + 3, n) &&
                  b[off + 2] == 0xee && b[off + 3 + n] == 0xee;
            r = st(1, B + off, 9, 0x8877665544332211);
            w[i].stos(&r);
            ok &= is("stos", &r, 1, B + off + n, 9);
            for (unsigned j = 0; j < n; j++)
                ok &= b[off + j] == 0x11 * (j + 1);
            r = st(A + off, 2, 9, 0x5555555555555555);
            w[i].lods(&r);
            u64 want = 0x5555555555555555;
            if (n == 4)
                want = 0;
            memcpy(&want, a + off, n);
            ok &= is("lods", &r, A + off + n, 2, 9) && r.ax == want;
        }
    }
    report("movs, stos, lods of each size", ok);
    fill();
    r = st(A + 10, B + 10, 9, 0);
    std_one_movsw(&r);
    asm volatile("cld");
    ok = is("std", &r, A + 8, B + 8, 9) && !memcmp(a + 10, b + 10, 2);
    r = st(1, B + 20, 9, 7);
    std_one_stosq(&r);
    asm volatile("cld");
    ok &= is("std", &r, 1, B + 12, 9) && *(u64 *)(b + 20) == 7;
    r = st(A + 16, 1, 9, 0);
    std_one_lodsl(&r);
    asm volatile("cld");
    ok &= is("std", &r, A + 12, 1, 9) && r.ax == *(u32 *)(a + 16);
    report("with DF", ok);
    wrmsr(MSR_FS_BASE, A);
    r = st(100, B, 9, 0);
    fs_one_movsb(&r);
    wrmsr(MSR_FS_BASE, 0);
    report("FS applies to the source", is("fs", &r, 101, B + 1, 9) && b[0] == a[100]);
    r = st(A | BIT(40), B | BIT(41), 9, 0);
    a32_one_movsl(&r);
    report("32-bit addresses", is("a32", &r, A + 4, B + 4, 9) && !memcmp(a, b, 4));
    r = st(A, B, 9, 0);
    cmp_movsb_(&r);
    report("flags pass through", r.zf && !r.cf && is("cmp", &r, A + 3, B + 3, 9));
    for (unsigned i = 0; i < 4; i++)
        unmap((void *)(VA + i * PAGE));
    r = st(A, VA + 5, 9, 0);
    ok = one_movsq(&r) == PF && faulted(PF_W, (void *)(VA + 5)) && is("to", &r, A, VA + 5, 9);
    r = st(VA + 5, B, 9, 0);
    ok &= one_movsq(&r) == PF && faulted(0, (void *)(VA + 5)) && is("from", &r, VA + 5, B, 9);
    r = st(VA + 5, VA + 70, 9, 0);
    ok &= one_movsq(&r) == PF && faulted(0, (void *)(VA + 5)); /* the source's comes first */
    r = st(VA + 5, 1, 9, 0x1234);
    ok &= one_lodsb(&r) == PF && is("lods", &r, VA + 5, 1, 9) && r.ax == 0x1234;
    report("a fault changes nothing", ok);
}

USER_ASM("user_movs: mov %rdx, %rcx; cld; rep movsb; ret");
extern char user_movs[];

static void sizes(void)
{
    struct str r;
    u64 A = (u64)a, B = (u64)b;
    fill();
    /* 32-bit addresses: the upper halves are ignored, then cleared. */
    r = st(A | BIT(40), B | BIT(41), 10 | BIT(32), 0);
    unsigned v = a32_movsb(&r);
    report("addr32 rep movsb: ESI, EDI, ECX", v == VEC_NONE &&
                                                  is("addr32", &r, A + 10, B + 10, 0) &&
                                                  !memcmp(a, b, 10) && b[10] == 0xee);
    r = st(0, B, 4, 0x3333333333333333);
    a32_stosq(&r);
    report("addr32 rep stosq",
           r.di == B + 32 && *(u64 *)(b + 24) == 0x3333333333333333 && b[32] == 0xee);
    r = st(A | BIT(50), 0, 77, 0);
    a32_lodsb(&r);
    report("addr32 lodsb", r.si == A + 1 && (u8)r.ax == a[0] && r.cx == 77);
    wrmsr(MSR_FS_BASE, A);
    r = st(100, B, 50, 0);
    fs_movsb(&r);
    report("FS applies to the source only",
           is("fs", &r, 150, B + 50, 0) && !memcmp(b, a + 100, 50));
    r = st(8, 0, 0, 0);
    fs_lodsq(&r);
    report_eq("FS with lods", r.ax, *(u64 *)(a + 8));
    wrmsr(MSR_FS_BASE, 0);

    /* Large, and across many pages that are not neighbours. */
    enum { PAGES = 64 };
    for (u64 i = 0; i < PAGES; i++)
        map((void *)(2 * PAGE3 + i * PAGE), page_alloc(), RW);
    u64 big = pages_alloc(PAGES, PAGE);
    for (u64 i = 0; i < PAGES * PAGE; i += 8)
        *(u64 *)(big + i) = i * 0x9e3779b97f4a7c15;
    r = st(big + 1, 2 * PAGE3 + 5, PAGES * PAGE - 8, 0);
    rep_movsb(&r);
    bool ok = r.cx == 0 && !memcmp((void *)(big + 1), (void *)(2 * PAGE3 + 5), PAGES * PAGE - 8);
    report("64 scattered pages at once", ok);
    r = st(2 * PAGE3 + 5, big + 1, PAGES * PAGE - 8, 0);
    repe_cmpsb(&r);
    report("and compared", r.zf && r.cx == 0);
    u8 *u = ustack;
    memcpy(u, a, 1000);
    user_call(user_movs, (u64)u + 2000, (u64)u, 1000);
    report("in ring 3", trap.vec == VEC_RETURN && !memcmp(u + 2000, a, 1000));
    user_call(user_movs, (u64)u + 2000, PAGE3 - 10 + 3 * PAGE3, 1000);
    report("in ring 3, the kernel's memory: #PF with U", trap.vec == PF && (trap.r.err & PF_U));
    u64 n = 100000, d = (u64)b;
    ok = true;
    for (u64 i = 0; i < n; i++) {
        u64 dd = d, c = i & 15;
        asm volatile("rep stosb" : "+D"(dd), "+c"(c) : "a"(i) : "memory");
        ok &= dd == d + (i & 15);
    }
    report("100000 short ones", ok);
}

int main(void)
{
    a = (u8 *)pages_alloc(N / PAGE + 1, PAGE);
    b = (u8 *)pages_alloc(N / PAGE + 1, PAGE);
    b += 16;
    plain();
    model();
    searching();
    faults();
    single();
    sizes();
    return 0;
}
