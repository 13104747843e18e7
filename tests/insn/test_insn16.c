/*
 * Instruction tests of 16-bit code: each row of insn.def that 16-bit code has, with random registers, prefixes and 16-bit
 * memory operands (67h: 32-bit ones), one instruction at a time, against the host CPU. Both run it in 16-bit
 * segments of an LDT with bases and limits, so segmentation, the wrap of addresses, of SP and of IP are compared as well.
 *
 * Then sequences of such instructions, so that blocks, flags that pass through them and links are compared too.
 *
 *   test_insn16 [--count N] [--seed N] [--id NAME] [--debug MODE] [--row N --case N] [--sequences N [--from N]] [--verbose]
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/gen.h"
#include "x86/x86.h"

static struct bare_case tc;
static unsigned long long passed, failed;

/* Rows whose 16-bit form differs from the 32-bit one only in what it stores of FIP and FDP, or in nothing: test_insn has them. */
static bool left_out(const struct gen_row *row)
{
    if (gen_excluded(row) || row->enc != 0)
        return true;
    switch (row->id) {
    case I_FNSTENV: case I_FNSAVE: case I_FLDENV: case I_FRSTOR: case I_FXSAVE: case I_FXRSTOR: case I_XSAVE: case I_XSAVEOPT:
    case I_XSAVEC: case I_XSAVES: case I_XRSTOR: case I_XRSTORS: case I_HLT:
        return true;
    default:
        return false;
    }
}

static unsigned size_of(const struct insn *in)
{
    return in->mem_size ? in->mem_size : 1;
}

/* An encoding of the row: prefixes, opcode, a random ModRM and what follows. */
static bool encode(struct rng *r, const struct gen_row *row, u8 *b, struct insn *in)
{
    unsigned n = 0, modrm = (unsigned)rnd(r) & 0xff;
    memset(b, 0, 24);
    if (row->pp == 2)
        b[n++] = 0x66;
    else if (row->pp == 4)
        b[n++] = 0xf3;
    else if (row->pp == 8)
        b[n++] = 0xf2;
    else if (row->pp == 15 && row->how == HOW_STRING && !one_in(r, 3))
        b[n++] = one_in(r, 2) ? 0xf2 : 0xf3;
    if (row->pp != 2 && row->pp != 1 && one_in(r, 3))
        b[n++] = 0x66;
    if (one_in(r, 6))
        b[n++] = 0x67;
    if (one_in(r, 6) && row->how != HOW_BRANCH)
        b[n++] = (u8)(0x26 + 8 * below(r, 4)); /* es cs ss ds */
    else if (one_in(r, 40) && row->how != HOW_BRANCH)
        b[n++] = (u8)(0x64 + below(r, 2));     /* null on both sides */
    if (row->map) {
        b[n++] = 0x0f;
        if (row->map > 1)
            b[n++] = row->map == 2 ? 0x38 : 0x3a;
    }
    bool no_modrm = row->modrm == 0x100;
    b[n++] = (u8)(row->opcode + (no_modrm && strchr(row->ops, 'Z') ? below(r, 8) : 0));
    if (row->modrm < 8)
        modrm = (modrm & 0xc7) | row->modrm << 3;
    else if (row->modrm < 0x100)
        modrm = row->modrm;
    if (!no_modrm)
        b[n++] = (u8)modrm;
    for (unsigned i = n; i < 24; i++)
        b[i] = (u8)rnd(r);
    if (row->how == HOW_BRANCH && !one_in(r, 3)) /* a displacement that mostly stays in the segment */
        b[n + 1] = (u8)(one_in(r, 2) ? below(r, 16) : 0xf0 + below(r, 16));
    return insn_decode(DMODE_16, b, 24, in) == DECODE_OK && in->id == row->id && in->how == row->how;
}

/* Registers so that the operand lies at offset `ea` of its segment; a displacement alone is patched. */
static void place(struct rng *r, struct insn *in, u8 *b, struct bare_state *s, u32 ea)
{
    u32 mask = in->addrsize == 2 ? 0xffff : 0xffffffff;
    if (in->moffs || (in->base == REG_NONE && in->index == REG_NONE)) {
        for (unsigned i = 0; i + in->addrsize <= in->len; i++) { /* find it by value: it is the only one of its size */
            u32 d = 0;
            memcpy(&d, b + i, in->addrsize);
            if (d == ((u32)in->disp & mask)) {
                memcpy(b + i, &ea, in->addrsize);
                return;
            }
        }
        return;
    }
    if (in->base == REG_NONE || in->base == in->index || in->base == RSP)
        return;
    u32 index = 0;
    if (in->index != REG_NONE && !in->vsib) {
        if (one_in(r, 2))
            s->gpr[in->index] = below(r, 256);
        index = (u32)s->gpr[in->index] * in->scale;
    }
    u32 base = ea - (u32)in->disp - index;
    s->gpr[in->base] = in->addrsize == 2 ? (s->gpr[in->base] & 0xffff0000) | (base & 0xffff) : base;
}

static u64 base_of(const struct insn *in)
{
    return in->seg == SEG_SS ? BARE_STACK : in->seg == SEG_CS ? BARE_CODE : BARE_DATA;
}

/* An offset: anywhere, near page ends, near the limit, near 64 KiB. */
static u32 pick(struct rng *r, u32 size)
{
    switch (below(r, 8)) {
    case 0: return 0x1000 * (1 + below(r, 4)) - below(r, size + 2);
    case 1: return BARE_DATA_SIZE - below(r, 2 * size + 2);
    case 2: return (0x10000 - below(r, 2 * size + 2)) & 0xffff;
    case 3: return below(r, 0x10000);
    default: return below(r, 0x1e00);
    }
}

static bool make(const struct gen_row *row, u64 seed)
{
    struct rng r = { seed };
    struct bare_state *s = &tc.in;
    struct insn in;
    rnd(&r);
    bool ok = false;
    for (unsigned i = 0; i < 40 && !ok; i++)
        ok = encode(&r, row, tc.code, &in);
    if (!ok)
        return false;
    gen_state(&r, s);
    gen_narrow(s);
    s->gpr[RSP] = BARE_ESP16 | (0x1000 + below(&r, 32) * 2);
    if ((row->how == HOW_STACK && in.id != I_POPA) || row->how == HOW_BRANCH) { /* a popa that faults may have loaded some */
        static const u32 edge[] = { 0, 0x1000, BARE_STACK_SIZE, 0x10000 };
        if (one_in(&r, 3))
            s->gpr[RSP] = BARE_ESP16 | ((edge[below(&r, 4)] + below(&r, 24) - 12) & 0xffff);
    }
    unsigned at = 64 + below(&r, BARE_CODE_SIZE - 128);
    if (one_in(&r, 8))
        at = 0x1000 * (1 + below(&r, 3)) - below(&r, in.len + 1u);
    if (one_in(&r, 16))
        at = BARE_CODE_SIZE - 1 - below(&r, in.len + 1u) % 16; /* up to the limit */
    if (at + in.len + 1 > BARE_CODE_SIZE)
        at = BARE_CODE_SIZE - in.len - 1;
    s->rip = at;
    tc.nr_ignore = 0;
    tc.loose_vec = false;
    tc.loose_gpr = false;
    tc.dead_flags = true;
    tc.loose_fault = in.id == I_MASKMOVQ || in.id == I_MASKMOVDQU;
    tc.loose_cr2 = tc.loose_fault ? 2 : 0;
    tc.misaligned = in.mem_size >= 16;
    if (in.has_mem) {
        u32 ea = pick(&r, size_of(&in));
        place(&r, &in, tc.code, s, ea);
        if (insn_decode(DMODE_16, tc.code, 24, &in) != DECODE_OK)
            return false;
        u8 fresh[64];
        gen_bytes(&r, fresh, sizeof(fresh));
        if (one_in(&r, 2) && ea < 0x1e00 && in.seg != SEG_CS)
            bare_write(base_of(&in) + ea, fresh, 64);
    }
    if (in.how == HOW_STRING) {
        static const u64 keep = 0xffff0000;
        s->gpr[RCX] = (s->gpr[RCX] & keep) | below(&r, 40);
        s->gpr[RSI] = (s->gpr[RSI] & keep) | pick(&r, 4);
        s->gpr[RDI] = (s->gpr[RDI] & keep) | pick(&r, 4);
        if (in.addrsize == 4) {
            s->gpr[RSI] &= 0xffff;
            s->gpr[RDI] &= 0xffff;
            s->gpr[RCX] &= 0xffff;
        }
        if (one_in(&r, 3))
            s->rflags |= EFL_DF;
    }
    if (in.id == I_XLAT || tc.loose_fault)
        s->gpr[in.id == I_XLAT ? RBX : RDI] = below(&r, 0x3000);
    if ((in.id == I_JMP_IND || in.id == I_CALL_IND) && !in.has_mem && in.rm != RSP && !one_in(&r, 3))
        s->gpr[in.rm] = below(&r, BARE_CODE_SIZE) | (in.opsize == 2 ? s->gpr[in.rm] & 0xffff0000 : 0);
    if (in.id == I_RET || in.id == I_JMP_IND || in.id == I_CALL_IND) { /* where it goes */
        u32 to = below(&r, BARE_CODE_SIZE + BARE_CODE_SIZE / 4);
        u64 from = in.id == I_RET ? BARE_STACK + (s->gpr[RSP] & 0x1fff) : 0;
        if (in.id == I_RET && from + 8 < BARE_STACK + BARE_STACK_SIZE)
            bare_write(from, &to, 4);
    }
    if (in.id == I_ENTER)
        tc.code[in.imm_off + 1] &= 7;
    if ((in.gpr_read & 1u << RCX) && in.fl_maybe && in.how == HOW_COPY && one_in(&r, 2))
        s->gpr[RCX] = (s->gpr[RCX] & ~0xffull) | below(&r, 40);
    tc.undefined_flags = gen_undefined_flags(&in);
    tc.len = in.len;
    return true;
}

/* A sequence of instructions; offsets are small at first, so that it gets somewhere. */
static bool make_sequence(u64 seed)
{
    struct rng r = { seed };
    struct bare_state *s = &tc.in;
    rnd(&r);
    gen_state(&r, s);
    gen_narrow(s);
    for (unsigned i = 0; i < 8; i++)
        if (i != RSP && !one_in(&r, 4))
            s->gpr[i] = (s->gpr[i] & 0xffff0000) | below(&r, 0x1000);
    s->gpr[RSP] = BARE_ESP16 | (0x1000 + below(&r, 32) * 2);
    s->rip = 64 + below(&r, BARE_CODE_SIZE - 512);
    tc.nr_ignore = 0;
    tc.loose_vec = tc.loose_gpr = tc.loose_fault = false;
    tc.loose_cr2 = 0;
    tc.dead_flags = true;
    tc.misaligned = true;
    tc.undefined_flags = 0;
    tc.len = 0;
    unsigned jcc = 0;
    for (unsigned n = 2 + below(&r, 14), k = 0; k < n;) {
        const struct gen_row *row = &gen_rows[below(&r, gen_nr_rows)];
        struct insn in;
        u8 b[24];
        if (left_out(row) || (row->how != HOW_COPY && row->how != HOW_STACK && row->how != HOW_STRING && row->id != I_JCC) ||
            row->id == I_POPA || row->id == I_MASKMOVQ || row->id == I_MASKMOVDQU || row->id == I_CMPS || !encode(&r, row, b, &in))
            continue;
        /* One wild write to SP or one undefined flag and nothing more can be compared. */
        if (((in.gpr_write & 1u << RSP) && in.how != HOW_STACK) || gen_undefined_flags(&in) || in.mem_size == 10)
            continue;
        if (in.how == HOW_STRING && (in.prefixes & (PFX_F2 | PFX_F3)) && !one_in(&r, 4))
            continue;
        if (in.has_mem && one_in(&r, 2))
            continue;
        if (in.id == I_JCC && in.imm_size != 1)
            continue;
        memcpy(tc.code + tc.len, b, in.len);
        tc.len += in.len;
        k++;
        if (jcc) /* over this instruction */
            tc.code[jcc] = in.len;
        jcc = in.id == I_JCC ? tc.len - 1 : 0;
        if (jcc)
            tc.code[jcc] = 0;
    }
    return tc.len < 300;
}

/*
 * Two faults at once: which comes first is the CPU's business where the manuals disagree. A call that fits neither the
 * stack nor the code segment: Intel's manual has #GP first, AMD's CPUs #SS. FSTP m80 is done in two pieces.
 * CMPS has two operands. MASKMOVQ with no byte selected still has its segment checked by the CPU at hand.
 */
static bool another_order(void)
{
    struct insn in;
    u64 at = tc.host.rip - tc.in.rip;
    if (at >= tc.len)
        return false;
    if (insn_decode(DMODE_16, tc.code + at, 24, &in) != DECODE_OK)
        return false;
    if (in.id == I_CALL || in.id == I_CALL_IND)
        return (tc.host.vector == VEC_SS || tc.host.vector == VEC_PF) && tc.guest.vector == VEC_GP;
    if (in.id == I_CMPS)
        return (tc.host.vector == VEC_GP || tc.host.vector == VEC_PF) && tc.guest.vector == VEC_SS;
    if (in.id == I_MASKMOVQ || in.id == I_MASKMOVDQU)
        return (tc.host.vector == VEC_GP || tc.host.vector == VEC_SS) && tc.guest.vector == 3;
    return in.mem_size == 10 && tc.host.vector == VEC_PF && (tc.guest.vector == VEC_GP || tc.guest.vector == VEC_SS);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "count", required_argument, NULL, 'c' }, { "seed", required_argument, NULL, 's' },
        { "debug", required_argument, NULL, 'd' }, { "id", required_argument, NULL, 'i' },
        { "row", required_argument, NULL, 'r' },   { "case", required_argument, NULL, 'v' },
        { "sequences", required_argument, NULL, 'S' }, { "from", required_argument, NULL, 'f' },
        { "verbose", no_argument, NULL, 'V' },     { NULL, 0, NULL, 0 },
    };
    unsigned long long count = 150, seed = 1, one_case = ~0ull, sequences = 20000, from = 0;
    unsigned debug = 0, one_row = ~0u, shown = 0, covered = 0, bad_rows = 0;
    unsigned long long faults = 0;
    const char *id = NULL;
    bool verbose = false;
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'c': count = strtoull(optarg, NULL, 0); break;
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'd':
            debug |= strcmp(optarg, "one-insn") == 0 ? VITRO_DEBUG_ONE_INSN :
                     strcmp(optarg, "slow-path") == 0 ? VITRO_DEBUG_SLOW_PATH :
                     strcmp(optarg, "no-chain") == 0 ? VITRO_DEBUG_NO_CHAIN :
                     strcmp(optarg, "windows") == 0 ? VITRO_DEBUG_WINDOWS : 0;
            break;
        case 'i': id = optarg; break;
        case 'r': one_row = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'v': one_case = strtoull(optarg, NULL, 0); break;
        case 'S': sequences = strtoull(optarg, NULL, 0); break;
        case 'f': from = strtoull(optarg, NULL, 0); break;
        case 'V': verbose = true; break;
        default: return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    insn_init();
    bare_init(debug);
#ifdef __SANITIZE_ADDRESS__
    bare_can_m16 = false; /* as test_insn's 32-bit code: shadow memory answers where a fault is due */
#endif
    if (!bare_can_m16) {
        printf("insn16: this host does not run 16-bit code here; nothing compared\ninsn16: 1 passed, 0 failed\n");
        bare_fini();
        return 0;
    }
    bare_m32 = bare_m16 = true;
    for (unsigned i = 0; i < gen_nr_rows; i++) {
        const struct gen_row *row = &gen_rows[i];
        unsigned long long good = 0, bad = 0;
        if (left_out(row) || (one_row != ~0u && one_row != i) || (id && strcmp(id, row->id_name)))
            continue;
        for (unsigned long long v = 0; v < count; v++) {
            if ((one_case != ~0ull && one_case != v) || !make(row, seed * 0x9e3779b97f4a7c15ull + ((u64)i << 32 | v)))
                continue;
            if ((v & 15) == 7)
                bare_guest_flush();
            if (verbose) {
                printf("row %u case %llu %s:", i, v, row->id_name);
                for (unsigned k = 0; k < tc.len; k++)
                    printf(" %02x", tc.code[k]);
                printf("\n");
            }
            if (bare_run(&tc)) {
                good++;
                faults += tc.host.vector != 3;
                continue;
            }
            if (another_order()) {
                good++;
                continue;
            }
            bad++;
            if (bad > 1 || shown++ > 20)
                continue;
            char name[100];
            printf("FAIL row %u case %llu: %s\n ", i, v, gen_row_name(row, name, sizeof(name)));
            bare_again(&tc);
            make(row, seed * 0x9e3779b97f4a7c15ull + ((u64)i << 32 | v));
            for (unsigned k = 0; k < tc.len; k++)
                printf(" %02x", tc.code[k]);
            printf(" at %#llx\n", (unsigned long long)tc.in.rip);
            bare_again(&tc);
            bare_print_input(&tc, "    ");
            bare_print_diff(&tc, "    ");
        }
        passed += good;
        failed += bad;
        covered += good + bad != 0;
        bad_rows += bad != 0;
        if (bad)
            printf("row %u %s: %llu of %llu failed\n", i, row->id_name, bad, bad + good);
    }
    unsigned long long sequences_failed = 0;
    for (unsigned long long n = from; n < from + sequences && one_row == ~0u && !id; n++) {
        if (!make_sequence(seed * 0xd1342543de82ef95ull + n))
            continue;
        if ((n & 31) == 7)
            bare_guest_flush();
        if (bare_run(&tc) || another_order()) {
            passed++;
            continue;
        }
        failed++;
        if (sequences_failed++ > 5)
            continue;
        printf("FAIL sequence %llu (--sequences 1 --from %llu --count 0):", n, n);
        bare_again(&tc);
        make_sequence(seed * 0xd1342543de82ef95ull + n);
        for (unsigned k = 0; k < tc.len; k++)
            printf(" %02x", tc.code[k]);
        printf(" at %#llx\n", (unsigned long long)tc.in.rip);
        bare_again(&tc);
        bare_print_input(&tc, "    ");
        bare_print_diff(&tc, "    ");
    }
    printf("16-bit: %llu sequences, %llu with failures\n", sequences, sequences_failed);
    printf("16-bit: %u rows covered, %u with failures; %llu cases ended in a fault\n", covered, bad_rows, faults);
    printf("insn16: %llu passed, %llu failed\n", passed, failed);
    bare_fini();
    return failed != 0 || passed == 0;
}
