/*
 * test_diff.c - random instruction sequences, translated against bare: 1 to 20 instructions from the whole table,
 * with memory operands inside the data pages, forward branches, counted loops, calls, stack and string
 * instructions. A sequence that differs is cut down to what is needed and printed.
 *
 *   test_diff [--count INSTRUCTIONS] [--seed N] [--first N] [--one N] [--debug one-insn|slow-path|no-chain|windows]
 *             [--mode 32|64] [--max-fail N] [--strict] [--verbose]
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/lib/gen.h"
#include "x86/x86.h"

#define MAX_UNITS 40
#define RESERVED 0x200u /* start of the data pages: loop counters and scratch of the generator */

struct unit {
    u8 b[80];
    u8 len, insns;
    bool dead, keep;     /* keep: a loop would not end without it */
    struct { u8 at, end; u64 target; } rip[2]; /* RIP-relative displacements */
    u8 nr_rip;
    int target;          /* a unit, or -1 */
    u8 rel_at, rel_len;  /* of the branch to it; the instruction ends with it */
};

static struct unit unit[MAX_UNITS + 1];
static unsigned nr_units;
static u16 start_of[MAX_UNITS + 1];
static struct bare_case tc;
static struct rng R;
static u16 ptr_regs, idx_regs, fixed_regs;
static bool strict, verbose;
static u16 rows_by_group[8][2048];
static unsigned nr_by_group[8];
enum group { G_INT, G_INT0F, G_X87, G_SSE, G_VEX, G_EVEX, NR_GROUPS };

/* -- Units ------------------------------------------------------------------------------------------------ */

static struct unit *new_unit(void)
{
    struct unit *u = &unit[nr_units++];
    memset(u, 0, sizeof(*u));
    u->target = -1;
    return u;
}
static void put(struct unit *u, const void *p, unsigned n)
{
    memcpy(u->b + u->len, p, n);
    u->len += (u8)n;
}
static void put1(struct unit *u, unsigned b)
{
    u->b[u->len++] = (u8)b;
}
static void put4(struct unit *u, u32 v)
{
    put(u, &v, 4);
}
/* mov r32, imm32 */
static void put_mov(struct unit *u, unsigned reg, u32 v)
{
    if (reg >= 8)
        put1(u, 0x41);
    put1(u, 0xb8 | (reg & 7));
    put4(u, v);
    u->insns++;
}

static bool usable(const struct gen_row *row)
{
    if (gen_excluded(row))
        return false;
    switch (row->id) {
    case I_AAA: case I_AAS: case I_AAD: case I_DAA: case I_DAS: case I_SALC: return bare_m32;
    default: break;
    }
    if (row->how != HOW_COPY && row->id != I_MOV_FROM_SEG && row->id != I_RDFSBASE && row->id != I_RDGSBASE)
        return false;
    if (strchr(row->ops, 'X') && row->how != HOW_STRING)
        return false;
    switch (row->id) {
    case I_FLDENV: case I_FNSTENV: case I_FRSTOR: case I_FNSAVE: case I_LDMXCSR: case I_FLDCW:
    case I_GATHER: case I_SCATTER:
        return false;
    default:
        return true;
    }
}

static void sort_rows(void)
{
    memset(nr_by_group, 0, sizeof(nr_by_group));
    for (unsigned i = 0; i < gen_nr_rows; i++) {
        const struct gen_row *row = &gen_rows[i];
        if (!usable(row))
            continue;
        enum group g = row->enc == 1                                ? G_VEX
                       : row->enc == 2                              ? G_EVEX
                       : row->cls == CLS_X87 || row->cls == CLS_MMX ? G_X87
                       : row->cls == CLS_SSE                        ? G_SSE
                       : row->map                                   ? G_INT0F
                                                                    : G_INT;
        rows_by_group[g][nr_by_group[g]++] = (u16)i;
    }
}

static u64 pick_ea(unsigned size, unsigned align, bool must_align, bool may_fault)
{
    u64 lo = BARE_DATA + RESERVED, ea = lo + below(&R, BARE_DATA_RW - RESERVED - size);
    unsigned k = below(&R, 64);
    if (may_fault && k == 0)
        return BARE_DATA + BARE_DATA_RW - below(&R, size + 1) + (one_in(&R, 2) ? 0x1000 : 0);
    if (must_align || k < 48) {
        ea &= ~(u64)(align - 1);
        return ea < lo ? lo : ea;
    }
    if (k < 56 && size > 1)
        return BARE_DATA + 0x1000 * (1 + below(&R, 3)) - 1 - below(&R, size - 1);
    return ea;
}

static bool plain_unit(void)
{
    static const u8 share[NR_GROUPS] = { 34, 24, 10, 14, 9, 9 };
    unsigned k = below(&R, 100), g = 0;
    while (k >= share[g])
        k -= share[g++];
    if (!nr_by_group[g])
        return false;
    const struct gen_row *row = &gen_rows[rows_by_group[g][below(&R, nr_by_group[g])]];
    if ((row->id == I_DIV || row->id == I_IDIV) && !one_in(&R, 8))
        return false;
    struct gen_want want = { .mem = one_in(&R, 2), .pal = (enum palette)below(&R, NR_PAL), .prefixes = one_in(&R, 4),
                             .bases = ptr_regs | 1u << RSP, .indexes = idx_regs, .rip_only = one_in(&R, 4) };
    struct gen_insn gi;
    bool ok = false;
    for (unsigned try = 0; try < 12 && !ok; try++)
        ok = gen_insn(&R, row, &want, &gi) && !(gi.in.gpr_write & fixed_regs);
    if (!ok)
        return false;
    struct unit *u = new_unit();
    if (gi.in.has_mem && gi.in.mem_size) {
        unsigned size = gen_mem_size(&gi), align = gen_align(&gi);
        bool must = (gi.in.cls == CLS_SSE || gi.in.enc != ENC_LEGACY || gi.in.id == I_CMPXCHG16B) && size >= 16 &&
                    !one_in(&R, 64);
        bool on_stack = gi.in.base == RSP;
        u64 ea = on_stack ? tc.in.gpr[RSP] + (one_in(&R, 2) ? 64 + below(&R, 256) : 0ull - 512 + below(&R, 256))
                          : pick_ea(size, align, must, gi.in.cls == CLS_GPR && gi.in.enc == ENC_LEGACY && size < 16);
        if (on_stack && must)
            ea &= ~(u64)(align - 1);
        if (gi.in.base == BASE_RIP) {
            u->rip[0].at = gi.disp_off;
            u->rip[0].end = gi.len;
            u->rip[0].target = ea - (gi.in.seg == SEG_FS ? tc.in.fs : gi.in.seg == SEG_GS ? tc.in.gs : 0);
            u->nr_rip = 1;
            if (gi.in.addrsize == 4 && u->rip[0].target >> 32)
                ok = false;
        } else if (!gen_fit(&gi, &tc.in, 0, ea)) {
            ea = gen_ea(&gi, &tc.in, 0);
            u64 lo = on_stack ? BARE_STACK + 0x800 : BARE_DATA + RESERVED;
            u64 hi = on_stack ? BARE_STACK + BARE_STACK_SIZE - 0x200 : BARE_DATA + BARE_DATA_RW;
            if (on_stack && ea + size + 160 > tc.in.gpr[RSP] && ea < tc.in.gpr[RSP] + 64)
                ok = false; /* return addresses live there */
            if (ea < lo || ea + size > hi || (must && ea % align))
                ok = false;
        }
    }
    if (!ok) {
        nr_units--;
        return false;
    }
    put(u, gi.b, gi.len);
    u->insns = 1;
    if (!strict && gen_undefined_flags(&gi.in)) {
        put1(u, 0x85);
        put1(u, 0xc0);
        u->insns++;
    }
    return true;
}

static bool string_unit(void)
{
    static const u8 op[] = { 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf };
    if (fixed_regs & (1u << RSI | 1u << RDI | 1u << RCX | 1u << RAX))
        return false;
    struct unit *u = new_unit();
    bool down = one_in(&R, 3);
    put_mov(u, RSI, (u32)(BARE_DATA + 0x400 + below(&R, BARE_DATA_RW - 0x800)));
    put_mov(u, RDI, (u32)(BARE_DATA + 0x400 + below(&R, BARE_DATA_RW - 0x800)));
    put_mov(u, RCX, below(&R, one_in(&R, 4) ? 100 : 12));
    if (down)
        put1(u, 0xfd), u->insns++;
    if (!one_in(&R, 4))
        put1(u, one_in(&R, 2) ? 0xf2 : 0xf3);
    if (one_in(&R, 4))
        put1(u, 0x66);
    if (one_in(&R, 3) && !bare_m32)
        put1(u, 0x48);
    put1(u, op[below(&R, sizeof(op))]);
    u->insns++;
    if (down)
        put1(u, 0xfc), u->insns++;
    return true;
}

static void modrm_stack(struct unit *u, unsigned reg_push, bool pop)
{
    if (reg_push >= 8)
        put1(u, 0x41);
    put1(u, (pop ? 0x58 : 0x50) | (reg_push & 7));
    u->insns++;
}

static unsigned free_reg(void)
{
    for (;;) {
        unsigned g = below(&R, bare_m32 ? 8 : 16);
        if (!(fixed_regs >> g & 1))
            return g;
    }
}

/* push, then pop later: the caller makes units between. */
static void push_unit(void)
{
    struct unit *u = new_unit();
    switch (below(&R, 6)) {
    case 0: put1(u, 0x6a); put1(u, below(&R, 256)); u->insns++; break;
    case 1: put1(u, 0x68); put4(u, (u32)rnd(&R)); u->insns++; break;
    case 2: /* push [abs] */
        put1(u, 0xff); put1(u, 0x34); put1(u, 0x25); put4(u, (u32)pick_ea(8, 8, false, false)); u->insns++; break;
    case 3: put1(u, 0x9c); u->insns++; break;
    default: modrm_stack(u, below(&R, bare_m32 ? 8 : 16), false);
    }
}
static void pop_unit(void)
{
    struct unit *u = new_unit();
    if (one_in(&R, 5)) { /* pop [abs] */
        put1(u, 0x8f); put1(u, 0x04); put1(u, 0x25); put4(u, (u32)pick_ea(8, 8, false, false)); u->insns++;
        return;
    }
    modrm_stack(u, free_reg(), true);
}

static void branch(struct unit *u, const u8 *op, unsigned n, unsigned rel, int target)
{
    put(u, op, n);
    u->rel_at = u->len;
    u->rel_len = (u8)rel;
    u->len += (u8)rel;
    u->target = target;
    u->insns++;
}

static unsigned budget;

static void plain(void)
{
    for (unsigned i = 0; i < 30; i++)
        if (plain_unit())
            break;
    if (budget)
        budget--;
}

static void generate_some(bool nested)
{
    switch (nested ? below(&R, 24) : below(&R, 30)) {
    case 0: case 1: case 2: { /* jcc over something */
        unsigned k = 1 + below(&R, 3), at = nr_units;
        struct unit *u = new_unit();
        u8 cc = (u8)below(&R, 16), op[2] = { 0x0f, (u8)(0x80 | cc) }, op8 = (u8)(0x70 | cc), jmp = 0xe9;
        if (one_in(&R, 8))
            branch(u, &jmp, 1, 4, 0);
        else if (one_in(&R, 2))
            branch(u, op, 2, 4, 0);
        else
            branch(u, &op8, 1, 1, 0);
        while (k--)
            plain();
        unit[at].target = (int)nr_units;
        break;
    }
    case 3: { /* jrcxz, loop */
        if (fixed_regs & 1u << RCX)
            break;
        unsigned at = nr_units;
        struct unit *u = new_unit();
        u8 op[2] = { 0x67, (u8)(0xe0 + below(&R, 4)) };
        bool p67 = one_in(&R, 4);
        branch(u, p67 ? op : op + 1, p67 ? 2 : 1, 1, 0);
        plain();
        unit[at].target = (int)nr_units;
        break;
    }
    case 4:
        string_unit();
        break;
    case 5: case 6: { /* push ... pop */
        push_unit();
        unsigned k = below(&R, 3);
        while (k--)
            plain();
        pop_unit();
        break;
    }
    case 7: { /* pushf; popf */
        struct unit *u = new_unit();
        put1(u, 0x9c); put1(u, 0x9d); u->insns += 2;
        break;
    }
    case 8: { /* enter, leave */
        if (fixed_regs & 1u << RBP)
            break;
        struct unit *u = new_unit();
        put1(u, 0xc8);
        put1(u, below(&R, 64));
        put1(u, 0);
        put1(u, below(&R, 2)); /* deeper: reads through rbp */
        u->insns++;
        fixed_regs |= 1u << RBP;
        plain();
        fixed_regs &= (u16)~(1u << RBP);
        u = new_unit();
        put1(u, 0xc9);
        u->insns++;
        break;
    }
    case 24: case 25: case 26: { /* a counted loop */
        unsigned at = nr_units, k = 1 + below(&R, 4), slot = below(&R, 16);
        u32 count = 1 + below(&R, one_in(&R, 8) ? 40 : 4);
        bool mem = one_in(&R, 2);
        unsigned reg = 0;
        u16 was = fixed_regs;
        if (mem) {
            bare_write(BARE_DATA + slot * 8, &count, 4);
        } else {
            reg = free_reg();
            fixed_regs |= (u16)(1u << reg);
            struct unit *u = new_unit();
            put_mov(u, reg, count);
            u->keep = true;
            at++;
        }
        while (k--)
            generate_some(true);
        fixed_regs = was;
        struct unit *u = new_unit();
        if (mem) {
            put1(u, 0xff); put1(u, 0x0c); put1(u, 0x25); put4(u, (u32)(BARE_DATA + slot * 8));
        } else {
            if (!bare_m32)
                put1(u, 0x40 | reg >> 3);
            put1(u, 0xff); put1(u, 0xc8 | (reg & 7));
        }
        u->insns++;
        /* run down even if it was entered with zero: jg */
        static const u8 jg[2] = { 0x0f, 0x8f };
        branch(u, jg, 2, 4, (int)at);
        break;
    }
    case 27: case 28: { /* call f; jmp end; f: ...; ret; end: */
        unsigned at = nr_units, k = 1 + below(&R, 3);
        static const u8 call = 0xe8, jmp = 0xe9;
        struct unit *u = new_unit();
        if (one_in(&R, 3) && !bare_m32) { /* lea reg, [rip + f]; call reg */
            unsigned reg = free_reg();
            put1(u, 0x48 | (reg >> 3) << 2); put1(u, 0x8d); put1(u, 5 | (reg & 7) << 3);
            u->rel_at = u->len;
            u->rel_len = 4;
            u->len += 4;
            if (reg >= 8)
                put1(u, 0x41);
            put1(u, 0xff); put1(u, 0xd0 | (reg & 7));
            u->target = (int)at + 2;
            u->insns = 2;
        } else {
            branch(u, &call, 1, 4, (int)at + 2);
        }
        branch(new_unit(), &jmp, 1, 4, 0);
        while (k--)
            generate_some(true);
        u = new_unit();
        if (one_in(&R, 4)) {
            put1(u, 0xc2); put1(u, 8 * below(&R, 3)); put1(u, 0);
        } else {
            put1(u, 0xc3);
        }
        u->insns++;
        unit[at + 1].target = (int)nr_units;
        break;
    }
    case 29: { /* lea reg, [rip + there]; jmp reg */
        if (bare_m32)
            break;
        unsigned reg = free_reg(), at = nr_units;
        struct unit *u = new_unit();
        put1(u, 0x48 | (reg >> 3) << 2); put1(u, 0x8d); put1(u, 5 | (reg & 7) << 3);
        u->rel_at = u->len;
        u->rel_len = 4;
        u->len += 4;
        if (reg >= 8)
            put1(u, 0x41);
        put1(u, 0xff); put1(u, 0xe0 | (reg & 7));
        u->insns = 2;
        plain();
        unit[at].target = (int)nr_units;
        break;
    }
    default:
        plain();
    }
}

static void generate(u64 seed)
{
    R.s = seed;
    rnd(&R);
    struct bare_state *s = &tc.in;
    gen_state(&R, s);
    if (!one_in(&R, 8)) { /* fewer sequences that stop at a numeric exception */
        s->fpu[0] |= 0x3f;
        s->fpu[2] &= 0x7f;
        s->fpu[3] &= 0x7f;
        s->fpu[25] |= 0x1f;
        s->fpu[24] |= 0x80;
    }
    ptr_regs = idx_regs = 0;
    for (unsigned i = 0, n = 1 + below(&R, 3); i < n; i++) {
        unsigned g = below(&R, bare_m32 ? 8 : 16);
        if (g == RSP)
            continue;
        ptr_regs |= (u16)(1u << g);
        s->gpr[g] = BARE_DATA + RESERVED + 0x200 + below(&R, BARE_DATA_RW - RESERVED - 0x400);
        if (!one_in(&R, 4))
            s->gpr[g] &= ~63ull;
    }
    for (unsigned i = 0, n = below(&R, 3); i < n; i++) {
        unsigned g = below(&R, bare_m32 ? 8 : 16);
        if (g == RSP || (ptr_regs >> g & 1))
            continue;
        idx_regs |= (u16)(1u << g);
        s->gpr[g] = one_in(&R, 4) ? (u64)-(s64)below(&R, 16) * 8 : below(&R, 32) * (one_in(&R, 3) ? 1 : 8);
    }
    s->gpr[RSP] = BARE_STACK + 0x1000 - 64 + below(&R, 16) * 8;
    gen_narrow(s);
    fixed_regs = ptr_regs | idx_regs | 1u << RSP;
    s->rip = BARE_CODE + below(&R, BARE_CODE_SIZE - 0x500);
    if (one_in(&R, 2))
        s->rip = (s->rip & ~0xfffull) + below(&R, 0xb00);
    tc.nr_ignore = 0;
    tc.dead_flags = !strict;
    tc.undefined_flags = 0;
    nr_units = 0;
    unsigned n = 1 + below(&R, 20);
    while (nr_units < n && nr_units < MAX_UNITS - 18)
        generate_some(false);
}

/* Lay out what is not dead; the number of instructions, or 0 if it does not fit. */
static unsigned assemble(void)
{
    unsigned at = 0, insns = 0;
    for (unsigned i = 0; i < nr_units; i++) {
        start_of[i] = (u16)at;
        if (unit[i].dead)
            continue;
        at += unit[i].len;
        insns += unit[i].insns;
    }
    start_of[nr_units] = (u16)at;
    if (at > sizeof(tc.code) - 1)
        return 0;
    for (unsigned i = 0; i < nr_units; i++) {
        struct unit *u = &unit[i];
        if (u->dead)
            continue;
        u8 *b = tc.code + start_of[i];
        memcpy(b, u->b, u->len);
        for (unsigned k = 0; k < u->nr_rip; k++) {
            u64 d = u->rip[k].target - (tc.in.rip + start_of[i] + u->rip[k].end);
            memcpy(b + u->rip[k].at, &d, 4);
        }
        if (u->target >= 0) {
            s32 d = (s32)start_of[u->target] - (s32)(start_of[i] + u->rel_at + u->rel_len);
            if (u->rel_len == 1 && d != (s8)d)
                return 0;
            memcpy(b + u->rel_at, &d, u->rel_len);
        }
    }
    tc.len = at;
    return insns;
}

static bool still_fails(void)
{
    tc.undefined_flags = 0;
    return assemble() && tc.len && !bare_again(&tc);
}

static void shrink(void)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (unsigned i = nr_units; i-- > 0;) {
            if (unit[i].dead || unit[i].keep)
                continue;
            unit[i].dead = true;
            if (still_fails())
                changed = true;
            else
                unit[i].dead = false;
        }
    }
    (void)still_fails();
}

static void print_code(void)
{
    unsigned at = 0;
    while (at < tc.len) {
        struct insn in;
        char text[200];
        unsigned n = insn_decode(bare_m32 ? DMODE_32 : DMODE_64, tc.code + at, sizeof(tc.code) - at, &in) == DECODE_OK
                         ? in.len
                         : 1;
        gen_disasm(tc.code + at, n, tc.in.rip + at, text, sizeof(text));
        printf("    %s\n", text);
        at += n;
    }
}

static struct {
    unsigned long long seed, first, one, max_fail;
} opt = { .seed = 1, .one = ~0ull, .max_fail = 5 };
static unsigned long long passed, failed;

static void sequences(unsigned long long count)
{
    unsigned long long done = 0, before = passed + failed, ends[32] = { 0 };
    sort_rows();
    for (unsigned long long n = opt.one != ~0ull ? opt.one : opt.first; done < count && failed < opt.max_fail; n++) {
        generate(opt.seed * 0x9e3779b97f4a7c15ull + n);
        unsigned insns = assemble();
        if (insns) {
            if ((n & 31) == 5)
                bare_guest_flush();
            if (verbose) {
                printf("sequence %llu\n", n);
                print_code();
            }
            bool ok = bare_run(&tc);
            done += insns;
            if (tc.host.vector < 32)
                ends[tc.host.vector]++;
            if (ok) {
                passed++;
            } else {
                failed++;
                bool again = !bare_again(&tc);
                printf("FAIL %ssequence %llu (seed %llu), %u instructions%s\n", bare_m32 ? "--mode 32 " : "", n,
                       opt.seed, insns, again ? "" : ": did not fail the second time");
                if (again)
                    shrink();
                print_code();
                for (unsigned i = 0; i < nr_units; i++)
                    if (!unit[i].dead && unit[i].len > 7 && unit[i].b[0] == 0xff && unit[i].b[1] == 0x0c) {
                        u32 la, start;
                        memcpy(&la, unit[i].b + 3, 4);
                        memcpy(&start, tc.snap + (la - BARE_DATA), 4);
                        printf("    counter [%#x] = %u\n", la, start);
                    }
                bare_print_input(&tc, "    ");
                bare_print_diff(&tc, "    ");
            }
        }
        if (opt.one != ~0ull)
            break;
    }
    printf("%s: %llu instructions in %llu sequences; ended with", bare_m32 ? "32-bit" : "64-bit", done,
           passed + failed - before);
    for (unsigned i = 0; i < 32; i++)
        if (ends[i])
            printf(" %u: %llu", i, ends[i]);
    printf("\n");
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "count", required_argument, NULL, 'c' }, { "seed", required_argument, NULL, 's' },
        { "debug", required_argument, NULL, 'd' }, { "first", required_argument, NULL, 'f' },
        { "one", required_argument, NULL, 'o' },   { "max-fail", required_argument, NULL, 'm' },
        { "mode", required_argument, NULL, 'M' },
        { "strict", no_argument, NULL, 'S' },      { "verbose", no_argument, NULL, 'V' },
        { NULL, 0, NULL, 0 },
    };
    unsigned long long count = 1000000;
    unsigned debug = 0;
    int mode = 0; /* 32, 64, or both */
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'c': count = strtoull(optarg, NULL, 0); break;
        case 's': opt.seed = strtoull(optarg, NULL, 0); break;
        case 'd':
            debug |= strcmp(optarg, "one-insn") == 0 ? VITRO_DEBUG_ONE_INSN :
                     strcmp(optarg, "slow-path") == 0 ? VITRO_DEBUG_SLOW_PATH :
                     strcmp(optarg, "no-chain") == 0 ? VITRO_DEBUG_NO_CHAIN :
                     strcmp(optarg, "windows") == 0 ? VITRO_DEBUG_WINDOWS : 0;
            break;
        case 'f': opt.first = strtoull(optarg, NULL, 0); break;
        case 'o': opt.one = strtoull(optarg, NULL, 0); break;
        case 'm': opt.max_fail = strtoull(optarg, NULL, 0); break;
        case 'M': mode = atoi(optarg); break;
        case 'S': strict = true; break;
        case 'V': verbose = true; break;
        default: return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    insn_init();
    bare_init(debug);
#ifdef __SANITIZE_ADDRESS__
    if (!mode) { /* its shadow memory answers at 32-bit addresses that ought to fault */
        printf("32-bit code: not under AddressSanitizer unless asked for\n");
        mode = 64;
    }
#endif
    if (mode != 32)
        sequences(count);
    if (mode != 64 && bare_can_m32) {
        bare_m32 = true;
        sequences(mode ? count : count / 4);
    }
    printf("diff: %llu passed, %llu failed\n", passed, failed);
    bare_fini();
    return failed != 0 || passed == 0;
}
