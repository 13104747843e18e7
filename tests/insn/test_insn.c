/*
 * test_insn.c - every row of the instruction table that user mode can run, with the host CPU as oracle: generated
 * encodings, registers, flags and memory operands; the translated result must be the bare one.
 *
 *   test_insn [--count N] [--seed N] [--debug one-insn|slow-path|no-chain] [--id NAME] [--row N] [--case N]
 *             [--mode 32|64] [--ac] [--strict] [--list] [--all] [--verbose]
 *   --ac: also with EFLAGS.AC set; --strict: flags the manuals leave undefined must match too
 */
#include <cpuid.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/gen.h"
#include "x86/x86.h"

static struct bare_case tc;
static unsigned long long passed, failed;
static bool verbose, alignment_check, strict;

/* Where a memory operand may lie. */
static u64 pick_ea(struct rng *r, unsigned size, unsigned align, bool has_base)
{
    const u64 mid = BARE_DATA + 0x1000 + below(r, 0x1800);
    switch (below(r, 24)) {
    case 0: case 1: case 2: return mid; /* misaligned */
    case 3: case 4: /* across pages */
        if (size < 2)
            break;
        return BARE_DATA + 0x1000 * (1 + below(r, 3)) - 1 - below(r, size - 1);
    case 5: /* ends with the writable pages, or reaches past them */
        return BARE_DATA + BARE_DATA_RW - below(r, size + 2);
    case 6: /* ends with the pages there are, or past them */
        return BARE_DATA + BARE_DATA_SIZE - below(r, size + 2);
    case 7:
        if (one_in(r, 2))
            return BARE_DATA - below(r, size + 2);
        if (has_base && one_in(r, 4)) /* not canonical */
            return one_in(r, 2) ? 0x0000900000000000ull + below(r, 4096) : 0x8000000000000000ull;
        break;
    default: break;
    }
    return mid & ~(u64)(align - 1);
}

static void poke(u64 la, const void *p, unsigned len)
{
    if (la >= BARE_DATA && la + len <= BARE_DATA + BARE_DATA_SIZE)
        bare_write(la, p, len);
    else if (la >= BARE_STACK && la + len <= BARE_STACK + BARE_STACK_SIZE)
        bare_write(la, p, len);
}

static void ignore(u64 la, unsigned len)
{
    tc.ignore[tc.nr_ignore].la = la;
    tc.ignore[tc.nr_ignore++].len = len;
}

/* What an instruction needs beyond its ModRM operand to do something worth seeing. */
static bool prepare(struct rng *r, struct gen_insn *g, u64 ea)
{
    struct insn *in = &g->in;
    struct bare_state *s = &tc.in;
    u64 rip = s->rip;
    u8 *imm = g->b + in->imm_off;

    switch (in->id) {
    case I_JMP: case I_JCC: case I_CALL: case I_LOOP: case I_LOOPE: case I_LOOPNE: case I_JRCXZ: {
        s64 d;
        do {
            d = in->imm_size == 1 ? (s8)rnd(r)
                                  : (s64)below(r, BARE_CODE_SIZE - 64) + (s64)BARE_CODE - (s64)rip - g->len;
        } while (d < 0 && d >= -(s64)g->len);
        memcpy(imm, &d, in->imm_size);
        if (one_in(r, 2))
            s->gpr[RCX] = below(r, 3) | (one_in(r, 3) ? rnd(r) << 32 : 0);
        break;
    }
    case I_CALL_IND: case I_JMP_IND: {
        u64 target = BARE_CODE + below(r, BARE_CODE_SIZE);
        if (target - rip < g->len)
            target = rip + g->len;
        if (one_in(r, 16))
            target = BARE_CODE + BARE_CODE_SIZE + below(r, 16);
        if (in->has_mem) {
            poke(ea, &target, 8);
        } else {
            s->gpr[in->rm] = target;
            if (in->rm == RSP && in->id == I_CALL_IND)
                return false; /* it would write to code */
        }
        break;
    }
    case I_RET: {
        u64 target = BARE_CODE + below(r, BARE_CODE_SIZE);
        if (target - rip < g->len)
            target = rip + g->len;
        poke(s->gpr[RSP], &target, 8);
        break;
    }
    case I_ENTER:
        s->gpr[RBP] = BARE_STACK + 0x800 + below(r, 0x400) * 4;
        if (!one_in(r, 8)) {
            imm[1] = (u8)below(r, 3);
            imm[2] = (u8)(below(r, 4) | (rnd(r) & 0xe0));
        }
        break;
    case I_LEAVE:
        s->gpr[RBP] = BARE_STACK + below(r, BARE_STACK_SIZE);
        break;
    case I_POPF: {
        u64 f = rnd(r) & ~(u64)(alignment_check ? EFL_TF : EFL_TF | EFL_AC);
        poke(s->gpr[RSP], &f, 8);
        break;
    }
    case I_XLAT:
        s->gpr[RBX] = ea - (u8)s->gpr[RAX];
        break;
    case I_MASKMOVDQU: case I_MASKMOVQ:
        s->gpr[RDI] = ea;
        if (in->seg == SEG_FS)
            s->gpr[RDI] -= s->fs;
        if (in->seg == SEG_GS)
            s->gpr[RDI] -= s->gs;
        break;
    case I_BT_MEM: case I_BTS_MEM: case I_BTR_MEM: case I_BTC_MEM: {
        if (in->reg == in->base || in->reg == in->index)
            return false;
        s64 bit = (s64)below(r, 8192) - 4096;
        s->gpr[in->reg] = (u64)bit;
        if (in->opsize == 2)
            s->gpr[in->reg] = (u16)bit | rnd(r) << 16;
        else if (in->opsize == 4)
            s->gpr[in->reg] = (u32)bit | rnd(r) << 32;
        break;
    }
    case I_CMPXCHG:
        if (in->has_mem && one_in(r, 2) && in->base != RAX && in->index != RAX && ea >= BARE_DATA &&
            ea + 8 <= BARE_DATA + BARE_DATA_SIZE)
            memcpy(&s->gpr[RAX], (void *)(uintptr_t)ea, in->mem_size);
        break;
    case I_CMPXCHG8B: case I_CMPXCHG16B:
        if (one_in(r, 2) && ea >= BARE_DATA && ea + 16 <= BARE_DATA + BARE_DATA_SIZE && in->base != RAX &&
            in->base != RDX && in->index != RAX && in->index != RDX) {
            unsigned n = in->mem_size / 2u;
            memcpy(&s->gpr[RAX], (void *)(uintptr_t)ea, n);
            memcpy(&s->gpr[RDX], (void *)(uintptr_t)(ea + n), n);
        }
        break;
    case I_DIV: case I_IDIV:
        if (in->base == RDX || in->index == RDX || in->base == RAX || in->index == RAX)
            break;
        if (one_in(r, 2))
            s->gpr[RDX] = 0;
        else if (one_in(r, 2))
            s->gpr[RDX] = (u64)((s64)s->gpr[RAX] >> 63);
        if (one_in(r, 2))
            s->gpr[RAX] &= 0xff;
        break;
    case I_LAR: case I_LSL: case I_VERR: case I_VERW: {
        static const u16 sel[] = { 0, 3, 0x23, 0x2b, 0x33, 0x20, 0x13, 0x1b, 0xfffb, 0xfff8, 0x08 };
        u16 v = sel[below(r, ARRAY_SIZE(sel))];
        if (in->has_mem)
            poke(ea, &v, 2);
        else
            s->gpr[in->rm] = v | (rnd(r) & ~0xffffull);
        break;
    }
    case I_WRFSBASE: case I_WRGSBASE:
        if (one_in(r, 2))
            s->gpr[in->rm] &= 0x7fffffffffffull;
        break;
    case I_LDMXCSR: {
        u32 v = (u32)rnd(r) & (one_in(r, 4) ? ~0u : 0xffbf);
        if (!one_in(r, 4))
            v |= 0x1f80;
        poke(ea, &v, 4);
        break;
    }
    case I_FXSAVE: case I_XSAVE: case I_XSAVEOPT: case I_XSAVEC:
        s->gpr[RAX] = in->base == RAX || in->index == RAX ? s->gpr[RAX] : rnd(r);
        ignore(ea + 6, 18);
        if (in->id == I_XSAVEOPT) { /* what is in its initial state may be written or not */
            static const u8 zero[BARE_FPU_SIZE];
            poke(ea, zero, bare_xsize);
        }
        break;
    case I_FXRSTOR: case I_XRSTOR: {
        static struct bare_state other;
        gen_state(r, &other);
        if (one_in(r, 8))
            gen_bytes(r, other.fpu + 512, 64);
        poke(ea, other.fpu, gen_mem_size(g));
        break;
    }
    case I_FNSTENV: case I_FNSAVE:
        if (in->opsize == 2)
            ignore(ea + 6, 8);
        else
            ignore(ea + 12, 16);
        break;
    case I_GATHER: case I_SCATTER: {
        u8 v[64];
        bool qword = in->opcode & 1;
        for (unsigned i = 0; i < 64; i += qword ? 8 : 4) {
            s64 x = (s64)below(r, 256) - 128;
            if (one_in(r, 200))
                x = 0x8000 / in->scale;
            memcpy(v + i, &x, qword ? 8 : 4);
        }
        bare_set_vec(s->fpu, in->index, v, 64);
        break;
    }
    default: break;
    }
    if (in->how == HOW_STRING) {
        s->gpr[RCX] = below(r, 3) ? below(r, 20) : below(r, 300);
        s->gpr[RSI] = pick_ea(r, 64, 8, false);
        s->gpr[RDI] = pick_ea(r, 64, 8, false);
        if (in->seg_override && in->seg == SEG_FS)
            s->gpr[RSI] -= s->fs;
        if (in->seg_override && in->seg == SEG_GS)
            s->gpr[RSI] -= s->gs;
        if (in->addrsize == 4) {
            s->gpr[RSI] = (u32)s->gpr[RSI] | rnd(r) << 32;
            s->gpr[RDI] = (u32)s->gpr[RDI] | rnd(r) << 32;
            s->gpr[RCX] = (u32)s->gpr[RCX] | rnd(r) << 32;
        }
        if (one_in(r, 3))
            s->rflags |= EFL_DF;
        if (one_in(r, 4)) /* runs of equal bytes, so that repe goes on */
            for (unsigned i = 0; i < 2; i++) {
                static const u8 run[64];
                poke(i ? s->gpr[RSI] & ~7ull : s->gpr[RDI] & ~7ull, run, sizeof(run));
            }
        if (in->prefixes & (PFX_F2 | PFX_F3) && (in->id == I_SCAS) && one_in(r, 2))
            s->gpr[RAX] = 0;
    }
    if ((in->gpr_read & 1u << RCX) && in->fl_maybe && in->how == HOW_COPY && in->base != RCX && in->index != RCX &&
        one_in(r, 2))
        s->gpr[RCX] = (s->gpr[RCX] & ~0xffull) | below(r, 70);
    return true;
}

/* One case; false if this seed gives none. */
static bool make(const struct gen_row *row, u64 seed, struct gen_insn *g)
{
    struct rng r = { seed };
    rnd(&r);
    struct gen_want want = {
        .mem = one_in(&r, 3) ? 0 : 1, .pal = (enum palette)below(&r, NR_PAL), .prefixes = one_in(&r, 2)};
    bool ok = false;
    for (unsigned try = 0; try < 40 && !ok; try++)
        ok = gen_insn(&r, row, &want, g);
    if (!ok)
        return false;
    struct bare_state *s = &tc.in;
    gen_state(&r, s);
    tc.nr_ignore = 0;
    tc.loose_vec = false;
    tc.loose_gpr = g->in.id == I_POPA; /* some are loaded already */
    tc.dead_flags = !strict;
    tc.loose_fault = g->in.id == I_MASKMOVQ || g->in.id == I_MASKMOVDQU;
    tc.loose_cr2 = g->in.enc == ENC_EVEX && g->in.mask ? 1 : 0;
    switch (g->in.id) {
    case I_FLDENV: case I_FNSTENV: case I_FRSTOR: case I_FNSAVE: case I_FXSAVE: case I_FXRSTOR: case I_XSAVE:
    case I_XSAVEOPT: case I_XSAVEC: case I_XRSTOR: case I_MASKMOVQ: case I_MASKMOVDQU: /* done in pieces */
        tc.loose_cr2 = 2;
        break;
    case I_VMASKMOVPS: case I_VMASKMOVPD: case I_VPMASKMOVD: case I_VPMASKMOVQ:
        tc.loose_cr2 = 1;
        break;
    case I_GATHER: case I_SCATTER:
        tc.loose_vec = true;
        break;
    default:
        break;
    }
    tc.misaligned = false;
    unsigned at = 128 + below(&r, BARE_CODE_SIZE - 256);
    if (one_in(&r, 8)) /* the instruction or its successor in the next page */
        at = 0x1000 * (1 + below(&r, 3)) - below(&r, (unsigned)g->len + 1);
    s->rip = BARE_CODE + at;
    if (row->how == HOW_STACK || row->how == HOW_BRANCH) {
        if (one_in(&r, 6))
            s->gpr[RSP] = BARE_STACK + below(&r, 24);
        else if (one_in(&r, 6))
            s->gpr[RSP] = BARE_STACK + BARE_STACK_SIZE - below(&r, 24);
        else if (one_in(&r, 6))
            s->gpr[RSP] = BARE_STACK + 0x1000 - 8 + below(&r, 16);
        else if (one_in(&r, 4))
            s->gpr[RSP] += below(&r, 8);
    }
    u64 ea = 0;
    unsigned size = gen_mem_size(g);
    if (g->in.has_mem || g->in.id == I_XLAT || g->in.id == I_MASKMOVDQU || g->in.id == I_MASKMOVQ) {
        bool base = g->in.base < NR_GPR && g->in.addrsize == 8 && g->in.index == REG_NONE;
        ea = pick_ea(&r, size ? size : 16, gen_align(g), base);
        tc.misaligned = !strict && size >= 16 && ea % size;
        u8 fresh[64];
        gen_bytes(&r, fresh, sizeof(fresh));
        if (!one_in(&r, 4))
            poke(ea, fresh, MIN(64u, size ? size : 16));
        if (g->in.vsib) {
            gen_bytes(&r, fresh, sizeof(fresh));
            poke(ea + below(&r, 64), fresh, 64);
        }
        if (g->in.has_mem && !gen_solve(&r, g, s, s->rip, ea))
            return false;
    }
    if (!prepare(&r, g, ea))
        return false;
    gen_narrow(s);
    if (alignment_check && one_in(&r, 8))
        s->rflags |= EFL_AC;
    tc.undefined_flags = strict ? 0 : gen_undefined_flags(&g->in);
    memcpy(tc.code, g->b, g->len);
    tc.len = g->len;
    return true;
}

/*
 * Bytes the decoder calls undefined: the host must raise #UD too. They are valid encodings with one or two bits
 * changed. Registers point to data, in case the host does know them.
 */
/* Reserved bits that the manuals want as they are and some CPUs ignore: VEX.R and the high bits of vvvv for mask
 * registers, EVEX.b and z where they mean nothing, R' of what is no vector register. */
static bool lenient(const u8 *b)
{
    unsigned n = 0;
    struct insn in;
    while (b[n] == 0x67 || (b[n] & 0xfe) == 0x64)
        n++;
    u8 c[16];
    for (unsigned fix = 1; fix < 64; fix++) {
        memcpy(c, b, 16);
        if (b[n] == 0x62) {
            c[n + 1] |= (u8)((fix & 1) << 7 | (fix >> 1 & 1) << 4);
            c[n + 2] |= (u8)((fix >> 2 & 1) << 6);
            c[n + 3] &= (u8)~((fix >> 3 & 1) << 7 | (fix >> 4 & 1) << 4);
            c[n + 3] |= (u8)((fix >> 5 & 1) << 3);
        } else if (b[n] == 0xc4) {
            c[n + 1] |= (u8)((fix & 1) << 7);
            c[n + 2] |= (u8)((fix >> 2 & 1) << 6);
            if ((b[n + 1] & 0x1f) == 3 && b[n + 3] <= 1) /* VPERMQ, VPERMPD: some CPUs do not look at W */
                c[n + 2] |= (u8)((fix >> 3 & 1) << 7);
        } else if (b[n] == 0xc5) {
            c[n + 1] |= (u8)((fix & 1) << 7 | (fix >> 2 & 1) << 6);
        } else {
            return false;
        }
        if (insn_decode(DMODE_64, c, 16, &in) == DECODE_OK)
            return true;
    }
    return false;
}

/* A hypervisor may have taken it from CPUID. */
static bool host_has_rdseed(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    return b >> 18 & 1;
}

static bool make_invalid(u64 seed)
{
    struct rng r = { seed };
    rnd(&r);
    struct gen_want want = { .mem = -1, .pal = PAL_ANY, .prefixes = one_in(&r, 2) };
    struct gen_insn g;
    const struct gen_row *row = &gen_rows[below(&r, gen_nr_rows)];
    if (!gen_insn(&r, row, &want, &g))
        return false;
    struct insn in;
    u8 b[16];
    gen_mutate(&r, &g, b);
    memset(b + g.len, 0xcc, sizeof(b) - g.len); /* never random bytes: the host might get that far */
    tc.len = g.len;
    enum decode_status st = insn_decode(DMODE_64, b, 16, &in);
    if (st == DECODE_OK && in.enc == ENC_LEGACY && in.how == HOW_COPY && in.len == g.len &&
        one_in(&r, 4)) { /* too long */
        u8 p[16];
        unsigned n = 16 - g.len;
        memset(p, 0x3e, n);
        memcpy(p + n, b, g.len);
        memcpy(b, p, 16);
        tc.len = 16;
        st = insn_decode(DMODE_64, b, 16, &in);
    }
    if (st != DECODE_UD && st != DECODE_LONG)
        return false;
    if (in.map == MAP_0F && in.opcode == 0x01) /* a hypervisor's */
        return false;
    if (in.map == MAP_0F && in.opcode == 0xc7 && in.modrm >= 0xf8 && !host_has_rdseed()) /* in CPUID, that is: the CPU may have it */
        return false;
    if (st == DECODE_UD && lenient(b))
        return false;
    memset(&tc.ignore, 0, sizeof(tc.ignore));
    tc.nr_ignore = 0;
    tc.loose_vec = tc.loose_gpr = tc.loose_fault = tc.misaligned = false;
    tc.loose_cr2 = 0;
    tc.undefined_flags = 0;
    gen_state(&r, &tc.in);
    for (unsigned i = 0; i < 16; i++)
        if (i != RSP)
            tc.in.gpr[i] = BARE_DATA + 0x1000 + below(&r, 64) * 64;
    tc.in.rip = BARE_CODE + 128 + below(&r, BARE_CODE_SIZE - 256);
    memcpy(tc.code, b, tc.len);
    return true;
}

static void invalid(u64 seed, unsigned long long count, unsigned max_shown)
{
    unsigned long long good = 0, bad = 0;
    for (unsigned long long i = 0; i < count; i++) {
        if (!make_invalid(seed + i))
            continue;
        if (bare_run(&tc)) {
            good++;
            continue;
        }
        bad++;
        if (bad <= max_shown) {
            char text[200];
            gen_disasm(tc.code, tc.len, tc.in.rip, text, sizeof(text));
            printf("FAIL undefined encoding, case %llu: %s\n", i, text);
            bare_print_diff(&tc, "    ");
        }
    }
    printf("undefined encodings: %llu agree, %llu do not\n", good, bad);
    passed += good;
    failed += bad;
}

static void report(const struct gen_row *row, unsigned nr, unsigned long long variant)
{
    char text[200], name[100];
    gen_disasm(tc.code, tc.len, tc.in.rip, text, sizeof(text));
    printf("FAIL %srow %u case %llu: %s\n  %s\n", bare_m32 ? "--mode 32 " : "", nr, variant,
           gen_row_name(row, name, sizeof(name)), text);
    bare_print_input(&tc, "    ");
    bare_print_diff(&tc, "    ");
}

static struct {
    unsigned long long count, seed, one_case;
    unsigned one_row, max_shown, shown;
    const char *id;
    bool list;
} opt = { .count = 150, .seed = 1, .one_case = ~0ull, .one_row = ~0u, .max_shown = 30 };

/*
 * What the CPU holds to be in use may change between its run and ours, where the host has switched to another thread and back (SDM
 * vol. 1 §13.6: how XINUSE is tracked is the CPU's own affair). So these are asked again.
 */
static bool asked_again(const struct gen_row *row)
{
    return (row->id == I_XSAVE || row->id == I_XSAVEOPT || row->id == I_XSAVEC) && bare_again(&tc);
}

static void all_rows(void)
{
    unsigned covered = 0, rows_failed = 0, nr_reasons = 0;
    struct { const char *why; unsigned rows; } reason[24];
    unsigned long long faults = 0;
    for (unsigned i = 0; i < gen_nr_rows; i++) {
        const struct gen_row *row = &gen_rows[i];
        char name[100];
        if (opt.one_row != ~0u && opt.one_row != i)
            continue;
        if (opt.id && strcmp(opt.id, row->id_name) != 0)
            continue;
        const char *why = gen_excluded(row);
        if (why) {
            unsigned k = 0;
            while (k < nr_reasons && strcmp(reason[k].why, why) != 0)
                k++;
            if (k == nr_reasons && k < ARRAY_SIZE(reason)) {
                reason[nr_reasons].why = why;
                reason[nr_reasons++].rows = 0;
            }
            if (k < nr_reasons)
                reason[k].rows++;
            if (opt.list)
                printf("not covered: row %u %s: %s\n", i, gen_row_name(row, name, sizeof(name)), why);
            continue;
        }
        unsigned long long bad = 0, good = 0;
        for (unsigned long long v = 0; v < opt.count; v++) {
            struct gen_insn g;
            if (opt.one_case != ~0ull && opt.one_case != v)
                continue;
            if (!make(row, opt.seed * 0x9e3779b97f4a7c15ull + ((u64)i << 32 | v), &g))
                continue;
            if ((v & 15) == 7)
                bare_guest_flush();
            if (verbose) {
                char text[200];
                gen_disasm(tc.code, tc.len, tc.in.rip, text, sizeof(text));
                printf("row %u case %llu: %s\n", i, v, text);
            }
            if (bare_run(&tc) || asked_again(row)) {
                good++;
                faults += tc.host.vector != 3;
                continue;
            }
            bad++;
            if (bad == 1 && opt.shown < opt.max_shown) {
                opt.shown++;
                report(row, i, v);
                if (bare_again(&tc))
                    printf("    ... but not when repeated\n");
            }
        }
        passed += good;
        failed += bad;
        covered += good + bad != 0;
        rows_failed += bad != 0;
        if (bad)
            printf("row %u %s: %llu of %llu failed\n", i, gen_row_name(row, name, sizeof(name)), bad, bad + good);
        if (good + bad == 0)
            printf("not covered: row %u %s: this CPU lacks it\n", i, gen_row_name(row, name, sizeof(name)));
    }
    for (unsigned k = 0; k < nr_reasons; k++)
        printf("not covered: %u rows: %s\n", reason[k].rows, reason[k].why);
    printf("%s: %u of %u rows covered, %u with failures; %llu cases ended in a fault\n", bare_m32 ? "32-bit" : "64-bit",
           covered, gen_nr_rows, rows_failed, faults);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "count", required_argument, NULL, 'c' }, { "seed", required_argument, NULL, 's' },
        { "debug", required_argument, NULL, 'd' }, { "id", required_argument, NULL, 'i' },
        { "row", required_argument, NULL, 'r' },   { "case", required_argument, NULL, 'v' },
        { "list", no_argument, NULL, 'l' },        { "all", no_argument, NULL, 'a' },
        { "mode", required_argument, NULL, 'm' },
        { "ac", no_argument, NULL, 'A' },          { "strict", no_argument, NULL, 'S' },
        { "verbose", no_argument, NULL, 'V' },     { NULL, 0, NULL, 0 },
    };
    unsigned debug = 0;
    int mode = 0; /* 32, 64, or both */
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'c': opt.count = strtoull(optarg, NULL, 0); break;
        case 's': opt.seed = strtoull(optarg, NULL, 0); break;
        case 'd':
            debug |= strcmp(optarg, "one-insn") == 0 ? VITRO_DEBUG_ONE_INSN :
                     strcmp(optarg, "slow-path") == 0 ? VITRO_DEBUG_SLOW_PATH :
                     strcmp(optarg, "no-chain") == 0 ? VITRO_DEBUG_NO_CHAIN :
                     strcmp(optarg, "windows") == 0 ? VITRO_DEBUG_WINDOWS : 0;
            break;
        case 'i': opt.id = optarg; break;
        case 'r': opt.one_row = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'v': opt.one_case = strtoull(optarg, NULL, 0); break;
        case 'l': opt.list = true; break;
        case 'a': opt.max_shown = ~0u; break;
        case 'm': mode = atoi(optarg); break;
        case 'A': alignment_check = true; break;
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
    if (mode != 32) {
        all_rows();
        if (!opt.id && opt.one_row == ~0u)
            invalid(opt.seed * 0xd1342543de82ef95ull, opt.count * 400, opt.max_shown);
    }
    if (mode != 64 && bare_can_m32) {
        bare_m32 = true;
        all_rows();
    }
    if (bare_wavered)
        printf("the host gave another result when asked again: %u cases\n", bare_wavered);
    printf("insn: %llu passed, %llu failed\n", passed, failed);
    bare_fini();
    return failed != 0 || passed == 0;
}
