/*
 * test_decode.c - the decoder against libZydis: every
 * opcode of every map under the prefixes that matter, random bytes, random VEX
 * and EVEX, and real programs' code. Compared: validity, length, memory
 * operand, immediates, general registers and flags read and written.
 *
 *   test_decode [-v] [-n million] [elf...]
 *
 * Where the two differ on purpose, accepted() says so and why.
 */
#include "engine/decode.h"

#include <Zydis/Zydis.h>
#include <elf.h>
#include <fcntl.h>
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

_Noreturn void bug(const char *what, const char *file, int line)
{
    fprintf(stderr, "%s:%d: %s\n", file, line, what);
    abort();
}

static ZydisDecoder zdec[3];
static ZydisDecodedInstruction zi;
static ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
static u64 passed, failed, skipped;
static bool verbose;

static u64 rng_state = 0x9e3779b97f4a7c15ull;
static u64 rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

/* ---- failures, summed by (what, mnemonic) ---- */
struct fail {
    char what[24], mnem[24];
    u64 count;
    char sample[160];
};
static struct fail fails[4096];
static unsigned nr_fails;

static void fail(const char *what, const char *mnem, enum dmode mode,
                 const u8 *p, unsigned len, u64 mine, u64 theirs)
{
    struct fail *f = NULL;

    failed++;
    for (unsigned i = 0; i < nr_fails; i++)
        if (!strcmp(fails[i].what, what) && !strcmp(fails[i].mnem, mnem))
            f = &fails[i];
    if (!f) {
        char *s;

        if (nr_fails == ARRAY_SIZE(fails))
            return;
        f = &fails[nr_fails++];
        snprintf(f->what, sizeof(f->what), "%s", what);
        snprintf(f->mnem, sizeof(f->mnem), "%s", mnem);
        s = f->sample;
        s += sprintf(s, "%d:", 16 << mode);
        for (unsigned i = 0; i < len; i++)
            s += sprintf(s, " %02x", p[i]);
        sprintf(s, "  mine %llx theirs %llx", (unsigned long long)mine,
                (unsigned long long)theirs);
    }
    f->count++;
}

/* ---- what the other decoder says, in our terms ---- */
static int gpr_number(ZydisRegister r)
{
    switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_GPR8: {
        int id = ZydisRegisterGetId(
            r); /* al cl dl bl ah ch dh bh spl bpl sil dil r8b.. */

        return id < 4 ? id : id < 8 ? id - 4 : id - 4;
    }
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
        return ZydisRegisterGetId(r);
    default:
        return -1;
    }
}

#define Z_READ  (ZYDIS_OPERAND_ACTION_READ | ZYDIS_OPERAND_ACTION_CONDREAD)
#define Z_WRITE (ZYDIS_OPERAND_ACTION_WRITE | ZYDIS_OPERAND_ACTION_CONDWRITE)

/* ---- divergences accepted, each with its reason ---- */
static bool is(const char *prefix)
{
    return strncmp(ZydisMnemonicGetString(zi.mnemonic), prefix,
                   strlen(prefix)) == 0;
}

/* Both accept the instruction and differ in `what`: mine a, theirs b. */
static bool accepted(const char *what, enum dmode mode, const struct insn *x,
                     u64 a, u64 b)
{
    bool fl = strncmp(what, "fl_", 3) == 0, gpr = strncmp(what, "gpr_", 4) == 0;

    /* Hint and reserved NOPs (0F 0D, 0F 18-1F, among them MPX and CET on a CPU
     * without): operands not looked at. */
    if (x->map == MAP_0F && x->enc == ENC_LEGACY &&
        ((x->opcode >= 0x18 && x->opcode <= 0x1f) || x->opcode == 0x0d))
        return true;
    /* The address only: mem_size 0 by convention, or of run-time size. */
    if ((!strcmp(what, "mem_size") || !strcmp(what, "mem_acc")) && a == 0 &&
        (is("xsave") || is("xrstor") || is("invlpg")))
        return true;
    /* Cache line operations count as a read of one byte. */
    if ((!strcmp(what, "mem_size")) && (is("clflush") || is("clwb")))
        return a == 1;
    /* Writes that may leave the destination as it was count as read too (cmov,
     * bsf, bsr, lar, lsl, cmpxchg). */
    if (!strcmp(what, "reg_acc") &&
        (is("cmov") || is("bsf") || is("bsr") || is("lar") || is("lsl")))
        return a == (OPA_R | OPA_W) && b == OPA_W;
    if (!strcmp(what, "gpr_read") &&
        (is("bsf") || is("bsr") || is("syscall") || is("lods")))
        return (a & ~b) == 0 || (b & ~a) == 0;
    /* Zydis gives lar, lsl a 32-bit source register; 16 bits are used. */
    if (!strcmp(what, "rm_size") && (is("lar") || is("lsl")))
        return true;
    /* Strings: Zydis does not count the moved RSI, RDI as written, and has
     * repe, repne read ZF. */
    if (x->how == HOW_STRING &&
        (!strcmp(what, "gpr_write") || !strcmp(what, "fl_read")))
        return true;
    /* Entering a handler saves the flags; monitors may change them; mov cr
     * leaves them on every known CPU. */
    if (fl && (is("int") || is("syscall") || is("sysenter") || is("vmcall") ||
               is("vmmcall") || is("mov")))
        return true;
    /* A shift by 0 changes no flag. */
    if (!strcmp(what, "fl_write") && a == 0 && x->imm_size == 1 &&
        (x->imm & (x->opsize == 8 ? 63 : 31)) == 0 && (x->opcode & 0xf6) != 0)
        return true;
    /* sysenter, sysexit: RSP by its handler. */
    if (gpr && (is("sysenter") || is("sysexit")))
        return true;
    /* F3 90 with REX.B is xchg r8, rax (seen on the CPU). */
    if (gpr && is("pause") && (x->rex & 1))
        return true;
    /* Immediates as wide as the operand are not sign-extended; a moffs is
     * unsigned. */
    if (!strcmp(what, "imm"))
        return x->imm_size < 8 &&
               ((a ^ b) & (BITULL(x->imm_size * 8) - 1)) == 0 &&
               x->opsize == x->imm_size;
    if (!strcmp(what, "disp") && x->moffs)
        return ((a ^ b) & (BITULL(x->addrsize * 8 - 1) * 2 - 1)) == 0;
    /* Operand size of what has none, or takes it from elsewhere. */
    if (!strcmp(what, "opsize")) {
        static const char *const none[] = {"xlat", "daa",     "das",
                                           "salc", "syscall", "invlpg",
                                           "clwb", "clflush", "cmpxchg8b"};

        for (unsigned i = 0; i < ARRAY_SIZE(none); i++)
            if (is(none[i]))
                return true;
        if (x->id == I_INVPCID ||
            (x->opcode & 0xfc) ==
                0x20) /* mov cr, dr; invpcid: as wide as the mode */
            return mode != DMODE_64;
        if (b == 16 && a == 32) /* a 66 that changes nothing */
            return is("movnti") || is("crc32") || is("rdfs") || is("rdgs") ||
                   is("wrfs") || is("wrgs");
        return x->how == HOW_STRING && a == 32 && b == 64; /* ins, outs */
    }
    /* 3E is DS here; Zydis takes it for notrack (CET). */
    if (!strcmp(what, "seg") && (is("call") || is("jmp")))
        return true;
    /* SIB base 5 with mod 0 is no base, whatever REX.B (seen on the CPU);
     * Zydis 4.0 says r13d under 67. */
    if (x->has_mem && x->base == REG_NONE && (x->prefixes & PFX_67) &&
        (x->rex & 1) && mode == DMODE_64 &&
        (!strcmp(what, "gpr_read") || !strcmp(what, "base") ||
         !strcmp(what, "disp")))
        return true;
    /* lea has no segment. */
    if (!strcmp(what, "seg") && is("lea"))
        return true;
    return false;
}

/* We accept what Zydis does not. */
static bool accepted_extra(const struct insn *x, ZyanStatus s)
{
    /* Reserved NOPs that Zydis takes for MPX with its register limits; the CPU
     * runs them as NOPs. */
    if (x->id == I_NOP && x->map == MAP_0F)
        return true;
    /* EVEX.b rounding on cvtsi2sd with a 32-bit source: ignored by the CPU. */
    if (x->id == I_VCVTSI2SD || x->id == I_VCVTUSI2SD)
        return true;
    (void)s;
    return false;
}

/* Zydis accepts what we do not: features never offered, and instructions this
 * machine does not have. */
static bool accepted_missing(void)
{
    static const char *const set[] = {
        "AMX",         "FMA4",       "KEYLOCKER", "KNC",         "VTX",
        "XOP",         "AVX512ER",   "AVX512PF",  "AVX512_FP16", "AVX512_4",
        "AVX_VNNI",    "AVX512_VP2", "CET",       "AMD3DNOW",    "TBM",
        "LWP",         "SVM",        "PADLOCK",   "RTM",         "SGX",
        "TDX",         "PTWRITE",    "UINTR",     "MOVDIR",      "ENQCMD",
        "WAITPKG",     "SERIALIZE",  "TSX",       "PKU",         "PCONFIG",
        "HRESET",      "CLZERO",     "SNP",       "MCOMMIT",     "RDPRU",
        "INVLPGB",     "KNCJ",       "MONITORX",  "SMX",         "PT",
        "AMD_INVLPGB",
    };
    static const char *const mnem[] = {"ud0",    "ud1",     "ud2",    "rsm",
                                       "vmfunc", "invlpgb", "tlbsync"};
    const char *s = ZydisISASetGetString(zi.meta.isa_set),
               *e = ZydisISAExtGetString(zi.meta.isa_ext);

    /* What a hypervisor may have taken from this one's CPUID. */
    static const struct { u32 leaf, sub; unsigned reg, bit; const char *set; } hidden[] = {
        { 7, 0, 1, 18, "RDSEED" }, { 13, 1, 0, 3, "XSAVES" }, { 13, 1, 0, 1, "XSAVEC" }, { 13, 1, 0, 0, "XSAVEOPT" },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(hidden); i++) {
        unsigned r[4] = { 0 };
        __get_cpuid_count(hidden[i].leaf, hidden[i].sub, &r[0], &r[1], &r[2], &r[3]);
        if (!(r[hidden[i].reg] >> hidden[i].bit & 1) && strcmp(s, hidden[i].set) == 0)
            return true;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(set); i++)
        if (!strncmp(s, set[i], strlen(set[i])) ||
            !strncmp(e, set[i], strlen(set[i])))
            return true;
    for (unsigned i = 0; i < ARRAY_SIZE(mnem); i++)
        if (is(mnem[i]))
            return true;
    /* 0F 0D with a register: #UD on AMD (seen on the CPU), a NOP on Intel. */
    return zi.mnemonic == ZYDIS_MNEMONIC_NOP && zi.opcode == 0x0d;
}

static void compare(enum dmode mode, const u8 *p, unsigned avail)
{
    struct insn x;
    enum decode_status st = insn_decode(mode, p, avail, &x);
    ZyanStatus zs = ZydisDecoderDecodeFull(&zdec[mode], p, avail, &zi, zo);
    bool zok = ZYAN_SUCCESS(zs);
    const char *mn = zok ? ZydisMnemonicGetString(zi.mnemonic) : "";
    unsigned r = 0, w = 0, n_bad = 0;
    const ZydisDecodedOperand *mem = NULL;

#define CHECK(what, a, b)                                                      \
    do {                                                                       \
        if ((u64)(a) != (u64)(b) &&                                            \
            !accepted(what, mode, &x, (u64)(a), (u64)(b))) {                   \
            fail(what, mn, mode, p, x.len, (u64)(a), (u64)(b));                \
            n_bad++;                                                           \
        }                                                                      \
    } while (0)

    if (zs == ZYDIS_STATUS_NO_MORE_DATA) {
        if (st != DECODE_SHORT && st != DECODE_UD)
            fail("short", st == DECODE_OK ? insn_name(x.id) : "-", mode, p,
                 avail, st, 0);
        else
            passed++;
        return;
    }
    if (!zok) {
        if (st == DECODE_OK && !accepted_extra(&x, zs))
            fail("extra", insn_name(x.id), mode, p, x.len, x.how, zs & 0xff);
        else
            passed++;
        return;
    }
    if (st != DECODE_OK) {
        if (accepted_missing())
            skipped++;
        else
            fail("missing", mn, mode, p, zi.length, st, 0);
        return;
    }
    CHECK("length", x.len, zi.length);
    if (n_bad)
        return;
    for (unsigned i = 0; i < zi.operand_count; i++) {
        const ZydisDecodedOperand *o = &zo[i];

        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            int g = gpr_number(o->reg.value);

            if (g < 0)
                continue;
            if (o->actions & Z_READ ||
                ((o->actions & Z_WRITE) && o->size < 32) ||
                (o->actions & ZYDIS_OPERAND_ACTION_CONDWRITE))
                r |= BIT(g);
            if (o->actions & Z_WRITE)
                w |= BIT(g);
        } else if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            int b = gpr_number(o->mem.base), k = gpr_number(o->mem.index);

            if (o->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN && !mem)
                mem = o;
            if (b >= 0)
                r |= BIT(b);
            if (k >= 0)
                r |= BIT(k);
        }
    }
    CHECK("gpr_read", x.gpr_read, r);
    CHECK("gpr_write", x.gpr_write, w);
    CHECK("fl_read", x.fl_read, zi.cpu_flags->tested & (EFL_ARITH | EFL_DF));
    CHECK("fl_write", x.fl_write,
          (zi.cpu_flags->modified | zi.cpu_flags->set_0 | zi.cpu_flags->set_1 |
           zi.cpu_flags->undefined) &
              (EFL_ARITH | EFL_DF));
    if (x.how != HOW_STRING && zi.mnemonic != ZYDIS_MNEMONIC_XLAT)
        CHECK("has_mem", x.has_mem, mem != NULL);
    if (x.has_mem && mem) {
        int base = gpr_number(mem->mem.base),
            index = gpr_number(mem->mem.index);

        if (mem->mem.base == ZYDIS_REGISTER_RIP ||
            mem->mem.base == ZYDIS_REGISTER_EIP)
            base = BASE_RIP;
        else if (base < 0)
            base = REG_NONE;
        if (x.vsib)
            index = ZydisRegisterGetId(mem->mem.index);
        else if (index < 0)
            index = REG_NONE;
        CHECK("base", x.base, base);
        CHECK("index", x.index, index);
        if (index != REG_NONE)
            CHECK("scale", x.scale, mem->mem.scale);
        CHECK("disp", x.disp,
              mem->mem.disp.has_displacement ? mem->mem.disp.value : 0);
        CHECK("seg", x.seg, ZydisRegisterGetId(mem->mem.segment));
        CHECK("addrsize", x.addrsize * 8, zi.address_width);
        if (mem->mem.type == ZYDIS_MEMOP_TYPE_AGEN) {
            CHECK("mem_size", x.mem_size, 0);
        } else {
            CHECK("mem_size", x.mem_size,
                  x.vsib ? mem->element_size / 8 : mem->size / 8);
            CHECK("mem_acc", x.mem_acc,
                  ((mem->actions & Z_READ) ? OPA_R : 0) |
                      ((mem->actions & Z_WRITE) ? OPA_W : 0));
        }
    }
    CHECK("imm_size", x.moffs ? 0 : x.imm_size,
          (zi.raw.imm[0].size + zi.raw.imm[1].size) / 8);
    if (zi.raw.imm[0].size && !zi.raw.imm[1].size) {
        CHECK("imm_off", x.imm_off, zi.raw.imm[0].offset);
        if (zi.raw.imm[0].is_signed)
            CHECK("imm", x.imm, zi.raw.imm[0].value.s);
        else if (x.is4 == REG_NONE)
            CHECK("imm",
                  x.imm &
                      (x.imm_size == 8 ? ~0ull : BITULL(x.imm_size * 8) - 1),
                  zi.raw.imm[0].value.u &
                      (x.imm_size == 8 ? ~0ull : BITULL(x.imm_size * 8) - 1));
    }
    if (x.cls == CLS_GPR && x.enc == ENC_LEGACY)
        CHECK("opsize", x.opsize * 8, zi.operand_width);
    if (x.vl && x.enc != ENC_LEGACY)
        CHECK("vl", x.vl * 8, zi.avx.vector_length);
    if (x.enc == ENC_EVEX && x.has_mem)
        CHECK("bcst", x.bcst,
              zi.avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID &&
                  !zi.avx.broadcast.is_static);
    /* register numbers, by place */
    for (unsigned i = 0; i < zi.operand_count; i++) {
        const ZydisDecodedOperand *o = &zo[i];
        unsigned n, k;

        if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        n = ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_GPR8 &&
                    o->reg.value < ZYDIS_REGISTER_SPL
                ? (unsigned)(o->reg.value - ZYDIS_REGISTER_AL)
            : gpr_number(o->reg.value) >= 0
                ? (unsigned)gpr_number(o->reg.value)
                : (unsigned)ZydisRegisterGetId(o->reg.value);
        switch (ZydisRegisterGetClass(o->reg.value)) {
        case ZYDIS_REGCLASS_GPR8:
        case ZYDIS_REGCLASS_GPR16:
        case ZYDIS_REGCLASS_GPR32:
        case ZYDIS_REGCLASS_GPR64:
            k = RK_GPR;
            break;
        case ZYDIS_REGCLASS_XMM:
        case ZYDIS_REGCLASS_YMM:
        case ZYDIS_REGCLASS_ZMM:
            k = RK_VEC;
            break;
        case ZYDIS_REGCLASS_MMX:
            k = RK_MMX;
            break;
        case ZYDIS_REGCLASS_MASK:
            k = RK_MASK;
            break;
        case ZYDIS_REGCLASS_SEGMENT:
            k = RK_SEG;
            break;
        case ZYDIS_REGCLASS_CONTROL:
            k = RK_CR;
            break;
        case ZYDIS_REGCLASS_DEBUG:
            k = RK_DR;
            break;
        default:
            continue;
        }
        switch (o->encoding) {
        case ZYDIS_OPERAND_ENCODING_MODRM_REG:
            CHECK("reg", x.reg | x.reg_kind << 8, n | k << 8);
            break;
        case ZYDIS_OPERAND_ENCODING_MODRM_RM:
            CHECK("rm", x.rm | x.rm_kind << 8, n | k << 8);
            break;
        case ZYDIS_OPERAND_ENCODING_NDSNDD:
            CHECK("vvvv", x.vvvv | x.vvvv_kind << 8, n | k << 8);
            break;
        case ZYDIS_OPERAND_ENCODING_IS4:
            CHECK("is4", x.is4, n);
            break;
        case ZYDIS_OPERAND_ENCODING_OPCODE:
            if (x.opcode != 0x90)
                CHECK("opreg", x.opreg, n);
            break;
        case ZYDIS_OPERAND_ENCODING_MASK:
            CHECK("mask", x.mask, n);
            break;
        default:
            break;
        }
    }
    /* the visible GPR operands, by place */
    for (unsigned i = 0; i < zi.operand_count_visible; i++) {
        const ZydisDecodedOperand *o = &zo[i];
        int g = o->type == ZYDIS_OPERAND_TYPE_REGISTER
                    ? gpr_number(o->reg.value)
                    : -1;
        unsigned acc = ((o->actions & Z_READ) ? OPA_R : 0) |
                       ((o->actions & Z_WRITE) ? OPA_W : 0);

        if (g < 0)
            continue;
        switch (o->encoding) {
        case ZYDIS_OPERAND_ENCODING_MODRM_REG:
            CHECK("reg_kind", x.reg_kind, RK_GPR);
            CHECK("reg_size", x.reg_size, o->size / 8);
            CHECK("reg_acc", x.reg_acc, acc);
            break;
        case ZYDIS_OPERAND_ENCODING_MODRM_RM:
            CHECK("rm_kind", x.rm_kind, RK_GPR);
            CHECK("rm_size", x.rm_size, o->size / 8);
            CHECK("rm_acc", x.rm_acc, acc);
            break;
        case ZYDIS_OPERAND_ENCODING_NDSNDD:
            CHECK("vvvv_kind", x.vvvv_kind, RK_GPR);
            CHECK("vvvv_size", x.vvvv_size, o->size / 8);
            CHECK("vvvv_acc", x.vvvv_acc, acc);
            break;
        case ZYDIS_OPERAND_ENCODING_OPCODE:
            if (x.opcode == 0x90)
                break;
            CHECK("opreg_size", x.opreg_size, o->size / 8);
            CHECK("opreg_acc", x.opreg_acc, acc);
            break;
        default:
            break;
        }
    }
    if (!n_bad)
        passed++;
}

static void tail(u8 *p, unsigned n)
{
    for (unsigned i = n; i < 24; i += 8) {
        u64 v = rng();

        memcpy(p + i, &v, 8);
    }
}

/* Every opcode and ModRM of the legacy maps under each prefix set. */
static void enumerate(enum dmode mode)
{
    static const char *const pfx[] = {
        "",         "\x66",     "\xf3",     "\xf2",     "\x67",     "\xf0",
        "\x66\xf3", "\x66\xf2", "\x48",     "\x66\x48", "\xf3\x48", "\xf2\x48",
        "\x4f",     "\x66\x4f", "\xf0\x4a", "\x41",     "\xf3\x41", "\x64",
        "\x2e",     "\x48\x66", "\x44",     "\x67\x66",
    };
    static const char *const map[] = {"", "\x0f", "\x0f\x38", "\x0f\x3a"};
    u8 b[40];

    for (unsigned i = 0; i < ARRAY_SIZE(pfx); i++)
        for (unsigned m = 0; m < ARRAY_SIZE(map); m++)
            for (unsigned k = 0; k < 65536; k++) {
                unsigned n = (unsigned)strlen(pfx[i]),
                         nm = (unsigned)strlen(map[m]);

                memcpy(b, pfx[i], n);
                memcpy(b + n, map[m], nm);
                b[n + nm] = (u8)(k >> 8);
                b[n + nm + 1] = (u8)k;
                tail(b, n + nm + 2);
                compare(mode, b, 15);
            }
}

static void random_bytes(enum dmode mode, u64 count)
{
    u8 b[40];

    while (count--) {
        tail(b, 0);
        compare(mode, b, (rng() & 7) == 0 ? (unsigned)(rng() % 15) + 1 : 15);
    }
}

static void random_vex(enum dmode mode, u64 count)
{
    u8 b[40];

    while (count--) {
        u64 v = rng();
        unsigned n = 0;

        tail(b, 0);
        if ((v & 0xff) == 0)
            b[n++] = 0x67;
        if ((v & 0xff00) == 0)
            b[n++] = (u8)(0x64 + (v >> 16 & 3));
        if (v >> 63) {
            b[n] = 0xc4;
            b[n + 1] = (u8)((b[n + 1] & 0xe0) | (1 + (v >> 20) % 3));
            if (v >> 62 & 1)
                b[n + 2] |= 0x78;
        } else {
            b[n] = 0xc5;
            if (v >> 62 & 1)
                b[n + 1] |= 0x78;
        }
        compare(mode, b, 15);
    }
}

static void random_evex(enum dmode mode, u64 count)
{
    u8 b[40];

    while (count--) {
        u64 v = rng();

        tail(b, 0);
        b[0] = 0x62;
        b[1] = (u8)((b[1] & 0xf0) | (1 + (v >> 20) % 3));
        b[2] |= 4;
        if (v & 1) {
            b[2] |= 0x78;
            b[3] |= 8;
        }
        if (v & 2)
            b[3] &= 0x7f;
        if (v & 4)
            b[3] &= 0xef;
        if (v & 8)
            b[3] &= 0xf8;
        if ((v & 0xf0) == 0)
            b[2] &= 0xfb;
        compare(mode, b, 15);
    }
}

/* Linear sweep over the executable sections of an ELF file; then its speed. */
static const u8 *text;
static size_t text_len;
static void sweep(const char *path, bool check)
{
    int fd = open(path, O_RDONLY);
    struct stat sb;
    const u8 *m;
    const Elf64_Ehdr *eh;
    const Elf64_Shdr *sh;

    if (fd < 0)
        return;
    if (fstat(fd, &sb) || sb.st_size < 64) {
        close(fd);
        return;
    }
    m = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (m == MAP_FAILED)
        return;
    eh = (const void *)m;
    sh = (const void *)(m + eh->e_shoff);
    for (unsigned i = 0; i < eh->e_shnum; i++) {
        size_t off = 0;

        if (!(sh[i].sh_flags & SHF_EXECINSTR) ||
            sh[i].sh_type != SHT_PROGBITS || sh[i].sh_size < 64)
            continue;
        if (sh[i].sh_size > text_len) {
            text = m + sh[i].sh_offset;
            text_len = sh[i].sh_size;
        }
        while (check && off + 15 < sh[i].sh_size) {
            const u8 *p = m + sh[i].sh_offset + off;
            struct insn x;

            compare(DMODE_64, p, 15);
            off += insn_decode(DMODE_64, p, 15, &x) == DECODE_OK ? x.len : 1;
        }
    }
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void speed(void)
{
    double best = 1e9, zbest = 1e9;

    for (int rep = 0; rep < 5; rep++) {
        double t0 = now();
        size_t n = 0;

        for (size_t off = 0; off + 15 < text_len && n < 1000000; n++) {
            struct insn x;

            off += insn_decode(DMODE_64, text + off, 15, &x) == DECODE_OK
                       ? x.len
                       : 1;
        }
        t0 = (now() - t0) / (double)n;
        best = t0 < best ? t0 : best;
    }
    for (int rep = 0; rep < 2; rep++) {
        double t0 = now();
        size_t n = 0;

        for (size_t off = 0; off + 15 < text_len && n < 300000; n++)
            off += ZYAN_SUCCESS(ZydisDecoderDecodeFull(&zdec[2], text + off, 15,
                                                       &zi, zo))
                       ? zi.length
                       : 1;
        t0 = (now() - t0) / (double)n;
        zbest = t0 < zbest ? t0 : zbest;
    }
    printf("decode: %.1f ns an instruction (zydis %.1f)\n", best, zbest);
}

static int by_count(const void *a, const void *b)
{
    const struct fail *x = a, *y = b;

    return x->count < y->count ? 1 : x->count > y->count ? -1 : 0;
}

int main(int argc, char **argv)
{
    static const char *const files[] = {"/usr/lib/x86_64-linux-gnu/libc.so.6",
                                        "/usr/bin/python3"};
    u64 million = 1;
    int c;

    while ((c = getopt(argc, argv, "vn:")) != -1) {
        if (c == 'v')
            verbose = true;
        else if (c == 'n')
            million = strtoull(optarg, NULL, 0);
    }
    ZydisDecoderInit(&zdec[DMODE_16], ZYDIS_MACHINE_MODE_LEGACY_16,
                     ZYDIS_STACK_WIDTH_16);
    ZydisDecoderInit(&zdec[DMODE_32], ZYDIS_MACHINE_MODE_LEGACY_32,
                     ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&zdec[DMODE_64], ZYDIS_MACHINE_MODE_LONG_64,
                     ZYDIS_STACK_WIDTH_64);
    insn_init();

    for (unsigned i = 0; i < ARRAY_SIZE(files); i++)
        sweep(files[i], true);
    for (int i = optind; i < argc; i++)
        sweep(argv[i], true);
    speed();
    for (unsigned mode = DMODE_16; mode <= DMODE_64; mode++) {
        enumerate(mode);
        random_bytes(mode, million * 1000000);
        random_vex(mode, million * 1000000);
        random_evex(mode, million * 2000000);
    }
    qsort(fails, nr_fails, sizeof(fails[0]), by_count);
    for (unsigned i = 0; i < nr_fails && (verbose || i < 40); i++)
        printf("%-10s %-16s %8llu  %s\n", fails[i].what, fails[i].mnem,
               (unsigned long long)fails[i].count, fails[i].sample);
    printf("decode: %llu passed, %llu failed (%llu skipped: features not "
           "offered)\n",
           (unsigned long long)passed, (unsigned long long)failed,
           (unsigned long long)skipped);
    return failed != 0;
}
