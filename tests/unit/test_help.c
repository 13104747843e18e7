/*
 * test_help.c - the instruction helpers, on a stub memory with faults: strings against an element-by-element model,
 * decimal arithmetic against decimal numbers, control-register and MSR rules, and vector state through memory.
 */
#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/fpu.h"
#include "engine/help.h"
#include "engine/mmu.h"
#include "tests/lib/check.h"

#include <stdlib.h>
#include <string.h>

/* The guest's vector registers are the host's: this file must not use them either. */
#pragma GCC target("general-regs-only")

/* -- Stub memory: PAGES pages at BASE; a page may be absent, slow (no host pointer) or an alias of another ----- */

#define BASE 0x10000ull
#define PAGES 8u
static u8 ram[PAGES * 4096] __attribute__((aligned(4096)));
static bool absent[PAGES], slow[PAGES];
static unsigned alias[PAGES];
static struct vm vm;
static struct engine_vcpu eng;
static struct vcpu vcpu, *v = &vcpu;
static struct cpu_model *model;
static unsigned nr_flush, nr_switch, nr_mode;
static bool last_noflush;

static u8 *byte_at(gla_t la, unsigned acc)
{
    u64 page = (la - BASE) >> 12;
    if (page >= PAGES || absent[page]) {
        raise_error(v, VEC_PF, acc & ACC_W ? PF_W : 0);
        v->exc.cr2 = la;
        return NULL;
    }
    return ram + alias[page] * 4096 + (la & 4095);
}

static void copy(void *to, const void *from, u64 n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

enum xret mem_probe(struct vcpu *c, gla_t la, unsigned len, unsigned acc)
{
    (void)c;
    return byte_at(la, acc) && byte_at(la + len - 1, acc) ? X_OK : X_FAULT;
}
enum xret mem_read(struct vcpu *c, gla_t la, void *buf, unsigned len, unsigned acc)
{
    if (mem_probe(c, la, len, acc) != X_OK)
        return X_FAULT;
    for (unsigned i = 0; i < len; i++)
        copy((u8 *)buf + i, byte_at(la + i, acc), 1);
    return X_OK;
}
enum xret mem_write(struct vcpu *c, gla_t la, const void *buf, unsigned len, unsigned acc)
{
    if (mem_probe(c, la, len, acc) != X_OK)
        return X_FAULT;
    for (unsigned i = 0; i < len; i++)
        copy(byte_at(la + i, acc), (const u8 *)buf + i, 1);
    return X_OK;
}
enum xret mem_host(struct vcpu *c, gla_t la, unsigned len, unsigned acc, void **host)
{
    (void)c;
    u8 *p = byte_at(la, acc);
    *host = NULL;
    if (!p)
        return X_FAULT;
    if (((la & 4095) + len) <= 4096 && !slow[(la - BASE) >> 12])
        *host = p;
    return X_OK;
}
const u8 *mem_watched(struct vcpu *c, gla_t la, unsigned acc) { (void)c, (void)la, (void)acc; return NULL; }
enum xret mem_locked(struct vcpu *c, gla_t la, unsigned len, unsigned acc, void **host)
{
    return mem_host(c, la, len, acc | ACC_R | ACC_W, host);
}
bool smp_bus_lock(struct vcpu *c) { (void)c; return true; }
void smp_bus_unlock(struct vcpu *c) { (void)c; }
/* Flat segments, but FS has a base and SS a limit. */
enum xret seg_linear(struct vcpu *c, unsigned seg, gva_t off, unsigned size, unsigned acc, gla_t *la)
{
    (void)acc;
    if (!vcpu_code64(c) && off + size - 1 > c->seg[seg].limit)
        return raise_gp0(c);
    if (vcpu_code64(c) && !is_canonical(off))
        return raise_gp0(c);
    *la = c->seg[seg].base + off;
    return X_OK;
}
gva_t insn_offset(const struct vcpu *c, const struct insn *in)
{
    return (in->base == REG_NONE ? 0 : c->regs[in->base]) + (u64)in->disp;
}
enum xret insn_linear(struct vcpu *c, const struct insn *in, unsigned size, unsigned acc, gla_t *la)
{
    return seg_linear(c, in->seg, insn_offset(c, in), size, acc, la);
}
u64 gpr_read(const struct vcpu *c, unsigned reg, unsigned size, bool rex)
{
    (void)rex;
    return size == 8 ? c->regs[reg] : c->regs[reg] & ((1ull << size * 8) - 1);
}
void gpr_write(struct vcpu *c, unsigned reg, unsigned size, bool rex, u64 val)
{
    (void)rex;
    u64 m = size >= 4 ? ~0ull : (1ull << size * 8) - 1;
    c->regs[reg] = (c->regs[reg] & ~m) | (size == 4 ? (u32)val : val & m);
}
enum xret rm_read(struct vcpu *c, const struct insn *in, unsigned size, u64 *val)
{
    *val = gpr_read(c, in->rm, size, true);
    return X_OK;
}
enum xret rm_write(struct vcpu *c, const struct insn *in, unsigned size, u64 val)
{
    gpr_write(c, in->rm, size, true, val);
    return X_OK;
}
bool cache_kill_range(struct vcpu *cpu, struct code_cache *c, gpa_t gpa, unsigned len, const u8 *pc, bool *any_left)
{
    (void)cpu, (void)c, (void)gpa, (void)len, (void)pc;
    return *any_left = false;
}
void engine_a20(struct vcpu *c) { (void)c; }
void vcpu_mode_changed(struct vcpu *c)
{
    nr_mode++;
    c->mode = (u32)(c->cr0 & (CR0_PE | CR0_TS)) | (u32)(c->efer & EFER_LMA) | (c->eflags & EFL_AC) | (u32)c->xcr0 << 24;
}
void tlb_flush_page(struct vcpu *c, gla_t la) { (void)c, (void)la, nr_flush++; }
void tlb_flush_page_pcid(struct vcpu *c, gla_t la, u16 pcid) { (void)c, (void)la, (void)pcid, nr_flush++; }
void tlb_flush_pcid(struct vcpu *c, u16 pcid) { (void)c, (void)pcid, nr_flush++; }
void tlb_flush_all(struct vcpu *c, bool global_too) { (void)c, (void)global_too, nr_flush++; }
void tlb_switch(struct vcpu *c, bool noflush)
{
    (void)c, nr_switch++;
    last_noflush = noflush;
}
bool engine_guest_pc(struct vcpu *c, u64 host, u64 *rip) { return (void)c, (void)host, (void)rip, false; }
bool tlb_guest_address(struct vcpu *c, u64 host, gla_t *la) { return (void)c, (void)host, (void)la, false; }
bool mmu_pdptes_valid(struct vcpu *c, u64 cr3)
{
    (void)c;
    return cr3 != 0xbad000;
}

/* -- Set-up ------------------------------------------------------------------------------------------------- */

static u64 seed = 88172645463325252ull;
static u64 rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static u32 port_value;
static u32 port_in(void *o, u16 port, unsigned size)
{
    (void)o, (void)port, (void)size;
    return port_value++ * 0x01010101u;
}
static u32 out_sum;
static void port_out(void *o, u16 port, unsigned size, u32 value)
{
    (void)o;
    out_sum += value * size + port;
}
static struct engine_host host = { .port_in = port_in, .port_out = port_out };

static void reset(bool long_mode)
{
    u8 *fpu = v->fpu;
    u64 n = sizeof *v;
    void *p = v;
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(0) : "memory");
    v->fpu = fpu;
    v->vm = &vm;
    v->eng = &eng;
    v->self = v;
    v->host = &host;
    v->model = model;
    v->xcr0 = 1;
    v->fpu_loaded = 1;
    v->fl = 2 << 8;
    v->cr0 = CR0_PE | CR0_ET | CR0_NE;
    for (unsigned i = 0; i < NR_SEG; i++) {
        v->seg[i].limit = 0xffffffff;
        v->seg[i].attr = SEG_S | SEG_P | SEG_W | SEG_DB;
    }
    if (long_mode) {
        v->seg[SEG_CS].attr |= SEG_L;
        v->efer = EFER_LME | EFER_LMA;
        v->cr0 |= CR0_PG;
        v->cr4 = CR4_PAE;
    }
    for (unsigned i = 0; i < PAGES; i++) {
        absent[i] = slow[i] = false;
        alias[i] = i;
    }
    vcpu_mode_changed(v);
}

/* -- Strings ----------------------------------------------------------------------------------------------------- */

typedef enum xret handler(struct vcpu *v, const struct insn *in);
enum { MOVS, STOS, LODS, SCAS, CMPS, NR_STR };
static handler *const str_fn[] = { sys_movs, sys_stos, sys_lods, sys_scas, sys_cmps };
static const u8 str_op[] = { 0xa4, 0xaa, 0xac, 0xae, 0xa6 };

static u16 sub_flags(u64 a, u64 b, unsigned size)
{
    unsigned bits = size * 8;
    u64 m = bits == 64 ? ~0ull : (1ull << bits) - 1, r;
    a &= m, b &= m, r = (a - b) & m;
    u32 f = 2;
    f |= a < b ? EFL_CF : 0;
    f |= __builtin_parity((u8)r) ? 0 : EFL_PF;
    f |= (a ^ b ^ r) & EFL_AF;
    f |= r ? 0 : EFL_ZF;
    f |= r >> (bits - 1) ? EFL_SF : 0;
    bool of = ((a ^ b) & (a ^ r)) >> (bits - 1) & 1;
    return (u16)(f << 8 | of);
}

static u64 wrap(u64 x, unsigned as) { return as == 8 ? x : as == 4 ? (u32)x : (u16)x; }
static void wrap_set(u64 *p, u64 x, unsigned as) { *p = as == 2 ? (*p & ~0xffffull) | (u16)x : wrap(x, as); }

/* The manual's pseudo-code, on the state of `c`. */
static enum xret model_string(struct vcpu *c, const struct insn *in, int op)
{
    unsigned size = in->opcode & 1 ? in->opsize : 1, as = in->addrsize;
    bool rep = in->prefixes & (PFX_F2 | PFX_F3);
    u64 step = c->eflags & EFL_DF ? 0 - (u64)size : size;
    while (!rep || wrap(c->regs[RCX], as)) {
        u64 a = 0, b = 0;
        gla_t s = 0, d = 0;
        if ((op != STOS && op != SCAS && (seg_linear(c, SEG_DS, wrap(c->regs[RSI], as), size, ACC_R, &s) != X_OK ||
                                          mem_read(c, s, &a, size, ACC_R) != X_OK)))
            return X_FAULT;
        if (op != LODS && seg_linear(c, SEG_ES, wrap(c->regs[RDI], as), size, op < LODS ? ACC_W : ACC_R, &d) != X_OK)
            return X_FAULT;
        if (op == MOVS || op == STOS) {
            if (op == STOS)
                a = c->regs[RAX];
            if (mem_write(c, d, &a, size, ACC_W) != X_OK)
                return X_FAULT;
        } else if (op == LODS) {
            gpr_write(c, RAX, size, true, a);
        } else {
            if (mem_read(c, d, &b, size, ACC_R) != X_OK)
                return X_FAULT;
            c->fl = op == SCAS ? sub_flags(c->regs[RAX], b, size) : sub_flags(a, b, size);
        }
        if (op != STOS && op != SCAS)
            wrap_set(&c->regs[RSI], wrap(c->regs[RSI], as) + step, as);
        if (op != LODS)
            wrap_set(&c->regs[RDI], wrap(c->regs[RDI], as) + step, as);
        if (!rep)
            break;
        wrap_set(&c->regs[RCX], wrap(c->regs[RCX], as) - 1, as);
        if (op >= SCAS && !(c->fl & EFL_ZF << 8) != !!(in->prefixes & PFX_F2))
            break;
    }
    return X_OK;
}

static u8 before[sizeof ram], want[sizeof ram];
static struct vcpu start, expect;

static void one_string(void)
{
    static const u8 sizes[] = { 1, 2, 4, 8 };
    int op = (int)(rnd() % NR_STR);
    bool lm = rnd() & 1;
    unsigned size = sizes[rnd() % (lm ? 4 : 3)];
    reset(lm);
    struct insn in = {
        .len = 2,
        .opcode = (u8)(str_op[op] + (size > 1)),
        .opsize = (u8)size,
        .addrsize = lm ? (rnd() & 1 ? 8 : 4) : rnd() % 3 ? 4 : 2,
        .prefixes = rnd() % 4 == 0 ? 0 : rnd() & 1 ? PFX_F2 : PFX_F3,
        .seg = SEG_DS,
    };
    bool small = rnd() & 1;
    u64 span = in.addrsize == 2 ? 0x10000 : PAGES * 4096, lin = in.addrsize == 2 ? 0 : BASE;
    if (in.addrsize == 2)
        for (unsigned i = 0; i < NR_SEG; i++)
            v->seg[i].base = BASE;
    v->regs[RSI] = lin + rnd() % span;
    v->regs[RDI] = rnd() & 3 ? lin + rnd() % span : v->regs[RSI] + rnd() % 64 - 32;
    v->regs[RCX] = small ? rnd() % 32 : rnd() % 9000;
    v->regs[RAX] = rnd() & 1 ? 0 : 0x0101010101010101ull * (rnd() & 1);
    if (in.addrsize == 2 && (rnd() & 1)) /* high halves must stay */
        v->regs[RSI] |= 0x12340000, v->regs[RDI] |= 0x43210000, v->regs[RCX] |= 0x10000;
    if (rnd() & 1)
        v->eflags |= EFL_DF;
    for (unsigned i = 0; i < PAGES; i++) {
        absent[i] = rnd() % 12 == 0;
        slow[i] = rnd() % 6 == 0;
        alias[i] = rnd() % 5 ? i : (unsigned)(rnd() % PAGES);
    }
    bool sparse = rnd() & 1;
    for (unsigned i = 0; i < sizeof ram; i++)
        ram[i] = sparse ? rnd() % 512 == 0 : (u8)(rnd() >> 32) & 1;
    copy(before, ram, sizeof ram);
    copy(&start, v, sizeof start);

    enum xret want_r = model_string(v, &in, op);
    copy(want, ram, sizeof ram);
    copy(&expect, v, sizeof expect);
    copy(ram, before, sizeof ram);
    copy(v, &start, sizeof start);
    bool events = rnd() & 1;
    v->event = events;
    enum xret r;
    do
        r = str_fn[op](v, &in);
    while (r == X_RETRY && events);
    bool ok = r == want_r && !__builtin_memcmp(v->regs, expect.regs, sizeof v->regs) && v->fl == expect.fl &&
              !memcmp(ram, want, sizeof ram);
    if (want_r == X_FAULT)
        ok = ok && v->exc.vector == expect.exc.vector && v->exc.cr2 == expect.exc.cr2;
    CHECK_MSG(ok, "op %d size %u as %u pfx %x df %d rcx %#lx: got %d want %d, rcx %#lx/%#lx fl %x/%x cr2 %#lx/%#lx", op, size,
              in.addrsize, in.prefixes, !!(start.eflags & EFL_DF), start.regs[RCX], r, want_r, v->regs[RCX],
              expect.regs[RCX], v->fl, expect.fl, v->exc.cr2, expect.exc.cr2);
}

static void test_ports(void)
{
    struct insn in = { .len = 2, .opcode = 0x6d, .opsize = 4, .addrsize = 8, .prefixes = PFX_F3 };
    reset(true);
    slow[1] = true;
    v->regs[RDI] = BASE + 4090;
    v->regs[RCX] = 4;
    port_value = 1;
    CHECK(sys_ins(v, &in) == X_OK && v->regs[RDI] == BASE + 4106 && v->regs[RCX] == 0);
    CHECK(ram[4090] == 1 && ram[4094] == 2 && ram[4098] == 3 && ram[4105] == 4 && v->fpu_loaded == 1 && !v->fpu_depth);
    in.opcode = 0x6e;
    v->regs[RSI] = BASE + 4090;
    v->regs[RCX] = 12;
    v->regs[RDX] = 0;
    out_sum = 0;
    CHECK(sys_outs(v, &in) == X_OK && out_sum == 4 * (1 + 2 + 3) && v->regs[RSI] == BASE + 4102);
    /* The permission bitmap: TSS at BASE, map at 0x68, port 0x70 and 0x77 allowed. */
    v->cpl = 3;
    CHECK(help_io_allowed(v, 0x70, 1) == X_FAULT && v->exc.vector == VEC_GP);
    v->seg[SEG_TR] = (struct seg){ .base = BASE, .limit = 0x68 + 0x10, .attr = 0x8b };
    for (unsigned i = 0; i < 0x80; i++)
        ram[i] = 0xff;
    ram[0x66] = 0x68, ram[0x67] = 0;
    ram[0x68 + 0xe] = 0x7e;
    CHECK(help_io_allowed(v, 0x70, 1) == X_OK && help_io_allowed(v, 0x70, 2) == X_FAULT);
    CHECK(help_io_allowed(v, 0x77, 1) == X_OK && help_io_allowed(v, 0x76, 2) == X_FAULT);
    ram[0x68 + 0xf] = 0xfe;
    CHECK(help_io_allowed(v, 0x77, 2) == X_OK && help_io_allowed(v, 0x80, 1) == X_FAULT);
    v->eflags |= 0x3000;
    CHECK(help_io_allowed(v, 0x80, 4) == X_OK);
}

/* -- Decimal arithmetic ------------------------------------------------------------------------------------------- */

static unsigned bcd(unsigned x) { return x / 10 % 10 << 4 | x % 10; }

static void test_legacy(void)
{
    struct insn in = { .len = 1, .opsize = 2, .addrsize = 4, .imm = 10 };
    reset(false);
    for (unsigned a = 0; a < 100; a++)
        for (unsigned b = 0; b < 100; b++) {
            unsigned x = bcd(a), y = bcd(b);
            u32 cf = x + y > 0xff, af = (x & 15) + (y & 15) > 15;
            v->regs[RAX] = 0xabcd00u | (u8)(x + y);
            v->fl = (u16)((cf * EFL_CF | af * EFL_AF | 2) << 8);
            sys_daa(v, &in);
            CHECK((u8)v->regs[RAX] == bcd((a + b) % 100) && (v->fl >> 8 & 1) == (a + b > 99));
            v->regs[RAX] = (u8)(x - y);
            v->fl = (u16)(((x < y) * EFL_CF | ((x & 15) < (y & 15)) * EFL_AF | 2) << 8);
            sys_das(v, &in);
            CHECK((u8)v->regs[RAX] == bcd((a + 100 - b) % 100) && (v->fl >> 8 & 1) == (a < b));
            CHECK(!(v->fl >> 8 & EFL_ZF) == !!(u8)v->regs[RAX]);
        }
    for (unsigned a = 0; a < 10; a++)
        for (unsigned b = 0; b < 10; b++) {
            v->regs[RAX] = 0x500 + a + b;
            v->fl = (u16)(((a + b > 15) * EFL_AF | 2) << 8);
            sys_aaa(v, &in);
            CHECK((u16)v->regs[RAX] == ((5 + (a + b) / 10) << 8 | (a + b) % 10));
            CHECK((v->fl >> 8 & 1) == (a + b > 9));
            v->regs[RAX] = 0x500 | (u8)(a - b);
            v->fl = (u16)(((a < b) * EFL_AF | 2) << 8);
            if (a < b) /* SUB AL has not touched AH */
                v->regs[RAX] = 0x500 | ((a - b) & 0xff);
            sys_aas(v, &in);
            CHECK((u8)v->regs[RAX] == (a + 10 - b) % 10 && (v->fl >> 8 & 1) == (a < b));
            v->regs[RAX] = a * b;
            sys_aam(v, &in);
            CHECK((u16)v->regs[RAX] == (a * b / 10 << 8 | a * b % 10));
            v->regs[RAX] = a << 8 | b;
            sys_aad(v, &in);
            CHECK((u16)v->regs[RAX] == a * 10 + b);
        }
    in.imm = 0;
    CHECK(sys_aam(v, &in) == X_FAULT && v->exc.vector == VEC_DE);
    v->fl = EFL_CF << 8;
    sys_salc(v, &in);
    CHECK((u8)v->regs[RAX] == 0xff);
    /* BOUND, XLAT */
    in = (struct insn){ .len = 2, .opsize = 2, .addrsize = 4, .base = RBX, .index = REG_NONE, .seg = SEG_DS, .reg = RCX };
    v->regs[RBX] = BASE;
    ram[0] = 0xfe, ram[1] = 0xff, ram[2] = 5, ram[3] = 0; /* -2..5 */
    v->regs[RCX] = 0xfffe;
    CHECK(sys_bound(v, &in) == X_OK);
    v->regs[RCX] = 6;
    CHECK(sys_bound(v, &in) == X_FAULT && v->exc.vector == VEC_BR);
    v->regs[RAX] = 2;
    CHECK(sys_xlat(v, &in) == X_OK && (u8)v->regs[RAX] == 5);
    /* PUSHA, POPA: a round trip; a fault leaves SP. */
    for (unsigned size = 2; size <= 4; size += 2) {
        in.opsize = (u8)size;
        for (unsigned i = 0; i < 8; i++)
            v->regs[i] = 0x11110000 + i;
        v->regs[RSP] = BASE + 4096 + 8;
        CHECK(sys_pusha(v, &in) == X_OK && v->regs[RSP] == BASE + 4096 + 8 - 8 * size);
        for (unsigned i = 0; i < 8; i++)
            if (i != RSP)
                v->regs[i] = 0x11110000;
        CHECK(sys_popa(v, &in) == X_OK && v->regs[RSP] == BASE + 4096 + 8);
        for (unsigned i = 0; i < 8; i++)
            CHECK(i == RSP || v->regs[i] == 0x11110000 + i);
        absent[0] = true;
        CHECK(sys_pusha(v, &in) == X_FAULT && v->regs[RSP] == BASE + 4096 + 8);
        absent[0] = false;
    }
    /* ENTER 16, 2 in 64-bit code. */
    reset(true);
    u64 display = 0x1122334455667788, got[3];
    in = (struct insn){ .len = 4, .opsize = 8, .imm = 16 | 2 << 16 };
    v->regs[RBP] = BASE + 2048;
    v->regs[RSP] = BASE + 1024;
    copy(ram + 2040, &display, 8);
    CHECK(sys_enter(v, &in) == X_OK && v->regs[RBP] == BASE + 1016 && v->regs[RSP] == BASE + 1024 - 24 - 16);
    copy(got, ram + 1000, 24);
    CHECK(got[2] == BASE + 2048 && got[1] == display && got[0] == BASE + 1016);
}

/* -- Flags, control registers, MSRs -------------------------------------------------------------------------------- */

static bool gp(enum xret r) { return r == X_FAULT && v->exc.vector == VEC_GP && v->exc.has_error && !v->exc.error; }

static void test_flags(void)
{
    struct insn in = { .len = 1 };
    reset(true);
    v->intr_wait = EVENT_INTR;
    CHECK(sys_sti(v, &in) == X_OK && v->int_shadow && (v->eflags & EFL_IF) && v->event == EVENT_INTR && !v->intr_wait);
    v->int_shadow = 0;
    CHECK(sys_sti(v, &in) == X_OK && !v->int_shadow);
    CHECK(help_popf(v, 0x3ed7fd7, 8) == X_OK && vcpu_eflags(v) == 0x247fd7);
    CHECK(help_pushf(v) == 0x247fd7);
    v->cpl = 3;
    CHECK(help_popf(v, 2, 8) == X_OK && vcpu_eflags(v) == 0x3002); /* IOPL 3: IF may go, IOPL stays */
    v->eflags = EFL_IF;
    CHECK(help_popf(v, 2, 8) == X_OK && vcpu_eflags(v) == 0x202);
    CHECK(gp(sys_cli(v, &in)) && gp(sys_sti(v, &in)) && gp(sys_hlt(v, &in)));
    CHECK(sys_stac(v, &in) == X_FAULT && v->exc.vector == VEC_UD);
    v->cpl = 0;
    CHECK(sys_stac(v, &in) == X_JUMP && (v->eflags & EFL_AC) && v->rip == 1);
    v->rip = 0x1000;
    CHECK(sys_hlt(v, &in) == X_EXIT && v->halted && v->exit == EXIT_HLT && v->rip == 0x1001);
}

static enum xret mov_cr(unsigned cr, u64 val)
{
    struct insn in = { .len = 3, .reg = (u8)cr, .rm = RAX };
    v->regs[RAX] = val;
    return sys_mov_cr_r(v, &in);
}

static void test_control(void)
{
    reset(true);
    CHECK(gp(mov_cr(0, CR0_PG)) && gp(mov_cr(0, CR0_PE | CR0_PG | CR0_NW)) && gp(mov_cr(0, 1ull << 32 | v->cr0)));
    CHECK(gp(mov_cr(0, CR0_PE))); /* PG cannot go in 64-bit code */
    CHECK(mov_cr(0, v->cr0 | CR0_TS) == X_JUMP && mov_cr(0, v->cr0) == X_OK);
    CHECK(mov_cr(1, 0) == X_FAULT && v->exc.vector == VEC_UD);
    CHECK(gp(mov_cr(4, CR4_PGE)) && gp(mov_cr(4, CR4_PAE | CR4_PKE)) && gp(mov_cr(4, CR4_PAE | CR4_LA57)));
    CHECK(gp(mov_cr(4, CR4_PAE | CR4_PKE)) && gp(mov_cr(4, CR4_PAE | 1ull << 40)));
    v->cr3 = 0x1018;
    CHECK(gp(mov_cr(4, CR4_PAE | CR4_PCIDE)));
    CHECK(gp(mov_cr(3, CR3_NOFLUSH | 0x1000)) && gp(mov_cr(3, 1ull << MMU_PHYS_BITS)));
    CHECK(mov_cr(3, 0x1000) == X_OK && !last_noflush);
    CHECK(mov_cr(4, CR4_PAE | CR4_PCIDE) == X_OK && v->cr4 == (CR4_PAE | CR4_PCIDE));
    CHECK(mov_cr(3, CR3_NOFLUSH | 0x2005) == X_OK && last_noflush && v->cr3 == 0x2005);
    nr_flush = 0;
    CHECK(mov_cr(4, CR4_PAE | CR4_PCIDE | CR4_PGE) == X_OK && nr_flush == 1);
    CHECK(gp(mov_cr(8, 16)) && mov_cr(8, 15) == X_OK && v->cr8 == 15);
    v->cpl = 3;
    CHECK(gp(mov_cr(3, 0)));
    /* Into and out of long mode. */
    reset(false);
    CHECK(msr_write(v, MSR_EFER, EFER_LME) == X_OK && !(v->efer & EFER_LMA));
    CHECK(gp(mov_cr(0, CR0_PE | CR0_PG))); /* without PAE */
    CHECK(mov_cr(4, CR4_PAE) == X_JUMP);
    CHECK(mov_cr(0, CR0_PE | CR0_PG) == X_JUMP && (v->efer & EFER_LMA));
    CHECK(gp(mov_cr(4, 0)) && gp(msr_write(v, MSR_EFER, 0)));
    CHECK(msr_write(v, MSR_EFER, EFER_LME | EFER_NXE) == X_OK && v->efer == (EFER_LME | EFER_LMA | EFER_NXE));
    CHECK(mov_cr(4, CR4_PAE | CR4_PCIDE) == X_OK && gp(mov_cr(0, CR0_PE)));
    CHECK(mov_cr(4, CR4_PAE) == X_OK && mov_cr(0, CR0_PE) == X_JUMP && !(v->efer & EFER_LMA));
    CHECK(msr_write(v, MSR_EFER, 0) == X_OK);
    CHECK(gp(msr_write(v, MSR_EFER, EFER_SVME)) && gp(msr_write(v, MSR_EFER, EFER_FFXSR)));
    v->cr3 = 0xbad000; /* PAE paging looks at the four entries */
    CHECK(gp(mov_cr(0, CR0_PE | CR0_PG)) && !(v->cr0 & CR0_PG));
    /* XCR0 */
    reset(true);
    struct insn in = { .len = 3 };
    v->regs[RAX] = 3;
    CHECK(sys_xsetbv(v, &in) == X_FAULT && v->exc.vector == VEC_UD);
    v->cr4 |= CR4_OSXSAVE;
    static const u64 bad[] = { 0, 2, 5, 0x27, 0x61, 0xe3, 0x107, 0x207 };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        v->regs[RAX] = bad[i];
        CHECK(gp(sys_xsetbv(v, &in)));
    }
    v->regs[RAX] = model->xcr0_mask;
    CHECK(sys_xsetbv(v, &in) == X_JUMP && v->xcr0 == model->xcr0_mask);
    CHECK(sys_xgetbv(v, &in) == X_OK && v->regs[RAX] == model->xcr0_mask);
    /* Debug registers */
    in.reg = 4;
    v->cr4 |= CR4_DE;
    CHECK(sys_mov_r_dr(v, &in) == X_FAULT && v->exc.vector == VEC_UD);
    v->cr4 &= ~(u64)CR4_DE;
    v->regs[RAX] = 0xffffffff;
    CHECK(sys_mov_dr_r(v, &in) == X_OK && v->dr[6] == 0xffffefff);
    in.reg = 7;
    v->regs[RAX] = 1ull << 32;
    CHECK(gp(sys_mov_dr_r(v, &in)));
    v->regs[RAX] = 0x2000;
    CHECK(sys_mov_dr_r(v, &in) == X_OK && v->dr[7] == 0x2400);
    CHECK(sys_mov_r_dr(v, &in) == X_FAULT && v->exc.vector == VEC_DB && v->exc.dr6 == 0x2000 && !(v->dr[7] & 0x2000));
}

static void test_msrs(void)
{
    u64 x;
    reset(true);
    msr_reset(v);
    static const u32 canonical[] = { MSR_LSTAR, MSR_CSTAR, MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_SYSENTER_ESP };
    for (unsigned i = 0; i < ARRAY_SIZE(canonical); i++) {
        CHECK(gp(msr_write(v, canonical[i], 1ull << 47)));
        CHECK(msr_write(v, canonical[i], 0xffff800000000000) == X_OK);
        CHECK(msr_read(v, canonical[i], &x) == X_OK && x == 0xffff800000000000);
    }
    CHECK(msr_read(v, MSR_PAT, &x) == X_OK && x == 0x0007040600070406);
    CHECK(gp(msr_write(v, MSR_PAT, 2)) && gp(msr_write(v, MSR_PAT, 8)) && msr_write(v, MSR_PAT, 0x0407050600070106) == X_OK);
    CHECK(gp(msr_write(v, MSR_MTRR_DEF_TYPE, 0x1006)) && msr_write(v, MSR_MTRR_DEF_TYPE, 0xc06) == X_OK);
    CHECK(gp(msr_write(v, 0x200, 2)) && gp(msr_write(v, 0x201, 1ull << MMU_PHYS_BITS)) && msr_write(v, 0x20f, (1ull << MMU_PHYS_BITS) - 0x800) == X_OK);
    CHECK(msr_write(v, 0x26f, 0x0606060606060606) == X_OK && v->mtrr_fixed[10] == 0x0606060606060606);
    CHECK(msr_write(v, 0x259, 6) == X_OK && v->mtrr_fixed[2] == 6 && gp(msr_write(v, 0x250, 7)));
    CHECK(msr_read(v, MSR_MCG_CAP, &x) == X_OK && !(x & 0xff));
    CHECK(gp(msr_write(v, MSR_MCG_CAP, 0)));
    v->nr_msr_unknown = 0;
    CHECK(gp(msr_read(v, 0x12345678, &x)) && gp(msr_write(v, 0xc0010200, 0)) && v->nr_msr_unknown == 2);
    CHECK(gp(msr_read(v, MSR_APIC_BASE, &x))); /* nobody to ask */
    /* TSC and TSC_ADJUST move together. */
    CHECK(msr_write(v, MSR_TSC, 1000) == X_OK && msr_read(v, MSR_TSC, &x) == X_OK && x >= 1000 && x < 1000000000);
    u64 adjust = v->tsc_adjust, offset = v->tsc_offset;
    CHECK(msr_write(v, MSR_TSC_ADJUST, adjust + 5000000000) == X_OK && v->tsc_offset == offset + 5000000000);
}

static void test_tables(void)
{
    struct insn in = { .len = 3, .opsize = 4, .addrsize = 8, .base = RBX, .index = REG_NONE, .seg = SEG_DS };
    u64 base = 0xffff888000001000;
    u16 limit = 0x7f;
    reset(true);
    v->regs[RBX] = BASE + 4092; /* across pages */
    copy(ram + 4092, &limit, 2);
    copy(ram + 4094, &base, 8);
    CHECK(sys_lgdt(v, &in) == X_OK && v->gdtr.base == base && v->gdtr.limit == 0x7f);
    v->idtr = v->gdtr;
    v->regs[RBX] = BASE + 8192;
    CHECK(sys_sidt(v, &in) == X_OK && !memcmp(ram + 8192, ram + 4092, 10));
    base = 1ull << 50;
    copy(ram + 8194, &base, 8);
    CHECK(gp(sys_lidt(v, &in)) && v->idtr.base == v->gdtr.base);
    v->cpl = 3;
    v->cr4 |= CR4_UMIP;
    CHECK(gp(sys_sgdt(v, &in)) && gp(sys_smsw(v, &in)) && gp(sys_lgdt(v, &in)));
    /* Bit strings: bits far below and above the operand. */
    v->cpl = 0;
    v->regs[RBX] = BASE + 4096;
    for (unsigned i = 0; i < 300; i++) {
        s64 n = (s64)(rnd() % 60000) - 30000;
        in.opsize = (u8)(2 << rnd() % 3);
        in.reg = RCX;
        v->regs[RCX] = (u64)n;
        slow[0] = rnd() & 1;
        u8 *p = ram + 4096 + (n >> 3), bit = (u8)(1u << (n & 7)), old = *p;
        handler *fn = i % 4 == 0 ? sys_bt_mem : i % 4 == 1 ? sys_bts_mem : i % 4 == 2 ? sys_btr_mem : sys_btc_mem;
        if (p < ram || p > ram + sizeof ram - 16)
            continue;
        CHECK(fn(v, &in) == X_OK && (v->fl >> 8 & 1) == !!(old & bit));
        CHECK(*p == (i % 4 == 0 ? old : i % 4 == 1 ? old | bit : i % 4 == 2 ? old & ~bit : old ^ bit));
    }
}

/* -- Vector state -------------------------------------------------------------------------------------------------- */

static u8 vec[32][64] __attribute__((aligned(64))), out[64] __attribute__((aligned(64)));

static bool same(const void *a, const void *b, u64 n)
{
    bool eq;
    __asm__ volatile("cmp %%rcx, %%rcx\n\trepe cmpsb" : "=@ccz"(eq), "+S"(a), "+D"(b), "+c"(n) : : "memory");
    return eq;
}

static void fill(unsigned nr, unsigned bytes)
{
    for (unsigned i = 0; i < nr; i++) {
        for (unsigned j = 0; j < 64; j += 8) {
            u64 x = rnd();
            copy(vec[i] + j, &x, 8);
        }
        fpu_set_vec(i, bytes, vec[i]);
    }
}

/* Components in their initial state are not put away: whatever C does to them, they are initial again after it. */
static void test_initial(void)
{
    static u8 image[XSAVE_AREA_MAX] __attribute__((aligned(64)));
    static const u8 ones[64] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    static const u32 parts[] = { XFEATURE_X87, XFEATURE_AVX, XFEATURE_ZMM_HI256, XFEATURE_HI16_ZMM, XFEATURE_OPMASK };
    u32 mask = (u32)model->xcr0_mask, mxcsr = 0x1f80 | 0x6000, now;
    bool avx512 = mask & 0xe0;
    unsigned nr = avx512 ? 32 : 16, bytes = avx512 ? 64 : mask & 4 ? 32 : 16;

    for (unsigned subset = 0; subset < 1u << ARRAY_SIZE(parts); subset++) {
        u32 parts_used = XFEATURE_SSE;
        bool ok = true;
        for (unsigned i = 0; i < ARRAY_SIZE(parts); i++)
            parts_used |= subset >> i & 1 ? parts[i] & mask : 0;
        reset(true);
        /* One register of each component that is to be in use. */
        fpu_init_image(image);
        fpu_xrstor(image, mask, true);
        __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
        if (parts_used & XFEATURE_HI16_ZMM)
            fpu_set_vec(17, 64, ones);
        if (parts_used & XFEATURE_OPMASK)
            fpu_set_mask(3, 0x1234);
        fpu_set_vec(1, parts_used & XFEATURE_ZMM_HI256 ? 64 : parts_used & XFEATURE_AVX ? 32 : 16, ones);
        if (parts_used & XFEATURE_X87)
            __asm__ volatile("fld1");
        u64 used = fpu_xinuse() & mask & ~XFEATURE_SSE;
        fpu_xsave(image, mask, true);
        fpu_leave(v);
        __asm__ volatile("stmxcsr %0" : "=m"(now));
        ok &= now == MXCSR_INIT;
        for (unsigned i = 0; i < nr; i++)
            fpu_set_vec(i, bytes, vec[i]);
        for (unsigned i = 0; i < 8 && avx512; i++)
            fpu_set_mask(i, ~0ull);
        __asm__ volatile("fldpi");
        fpu_enter(v);
        ok &= (fpu_xinuse() & mask & ~XFEATURE_SSE) == used;
        static u8 after[XSAVE_AREA_MAX] __attribute__((aligned(64)));
        fpu_xsave(after, mask, true);
        ok &= same(after, image, XSAVE_LEGACY) && same(after + XSAVE_LEGACY + XSAVE_HEADER, image + XSAVE_LEGACY + XSAVE_HEADER,
                                                       XSAVE_AREA_MAX - XSAVE_LEGACY - XSAVE_HEADER);
        CHECK(ok);
    }
    fpu_init_image(image);
    fpu_xrstor(image, mask, true);
}

static void test_vector(void)
{
    bool avx512 = model->xcr0_mask & 0xe0, avx = model->xcr0_mask & 4;
    unsigned nr = avx512 ? 32 : 16, bytes = avx512 ? 64 : avx ? 32 : 16;
    struct insn in = { .len = 4, .opsize = 4, .addrsize = 8, .base = RBX, .index = REG_NONE, .seg = SEG_DS, .rex = 0x48 };
    bool ok = true;
    if (!avx)
        return;
    reset(true);
    v->cr4 |= CR4_OSXSAVE | CR4_OSFXSR;
    v->xcr0 = model->xcr0_mask;
    v->regs[RAX] = ~0u;
    v->regs[RDX] = ~0u;

    /* Away and back. */
    fill(nr, bytes);
    fpu_leave(v);
    fpu_leave(v);
    for (unsigned i = 0; i < nr; i++)
        fpu_set_vec(i, bytes, vec[0]);
    fpu_enter(v);
    fpu_enter(v);
    for (unsigned i = 0; i < nr; i++) {
        fpu_get_vec(i, bytes, out);
        ok &= same(out, vec[i], bytes);
    }
    CHECK(ok && v->fpu_loaded == 1 && !v->fpu_depth);

    /* Saved in each form, in one page, across two, and to pages without a host pointer; restored. */
    static handler *const saves[] = { sys_fxsave, sys_xsave, sys_xsaveopt, sys_xsavec, sys_xsaves };
    static handler *const restores[] = { sys_fxrstor, sys_xrstor, sys_xrstor, sys_xrstor, sys_xrstors };
    for (unsigned form = 0; form < 5; form++)
        for (unsigned where = 0; where < 3; where++) {
            unsigned n = form ? nr : 16, len = form ? bytes : 16;
            for (unsigned i = 0; i < sizeof ram; i++)
                __asm__ volatile("movb $0, %0" : "=m"(ram[i]));
            v->regs[RBX] = BASE + (where == 1 ? 4096 - 64 : 4096);
            slow[1] = where == 2;
            fill(nr, bytes);
            enum xret r = saves[form](v, &in);
            CHECK(r == X_OK);
            for (unsigned i = 0; i < nr; i++)
                fpu_set_vec(i, bytes, vec[0]);
            r = restores[form](v, &in);
            CHECK(r == X_OK);
            ok = true;
            for (unsigned i = 0; i < n; i++) {
                fpu_get_vec(i, len, out);
                ok &= same(out, vec[i], len);
            }
            CHECK_MSG(ok, "form %u where %u", form, where);
            slow[1] = false;
        }

    /* What must not reach the host's instruction. */
    v->regs[RBX] = BASE + 4096;
    u64 *header = (u64 *)(ram + 4096 + 512);
    u32 *mxcsr = (u32 *)(ram + 4096 + 24);
    header[1] = 0; /* XSAVE leaves what XSAVES put there */
    CHECK(sys_xsave(v, &in) == X_OK && sys_xrstor(v, &in) == X_OK && gp(sys_xrstors(v, &in)));
    header[0] |= 1ull << 9;
    CHECK(gp(sys_xrstor(v, &in)));
    header[0] = 3, header[1] = 1;
    CHECK(gp(sys_xrstor(v, &in)));
    header[1] = 0, header[2] = 1;
    CHECK(gp(sys_xrstor(v, &in)));
    header[2] = 0, *mxcsr |= 0x10000;
    CHECK(gp(sys_xrstor(v, &in)) && gp(sys_fxrstor(v, &in)));
    *mxcsr = 0x1f80, header[1] = 1ull << 63 | 1;
    CHECK(gp(sys_xrstor(v, &in))); /* XSTATE_BV beyond XCOMP_BV */
    header[1] = 1ull << 63 | 3, header[7] = 1;
    CHECK(gp(sys_xrstor(v, &in)));
    header[7] = 0;
    CHECK(sys_xrstor(v, &in) == X_OK);
    v->regs[RBX] += 16;
    CHECK(gp(sys_xsave(v, &in)) && gp(sys_xrstor(v, &in)) && sys_fxsave(v, &in) == X_OK);
    v->regs[RBX] += 8;
    CHECK(gp(sys_fxsave(v, &in)));
    v->cr0 |= CR0_TS;
    CHECK(sys_xsave(v, &in) == X_FAULT && v->exc.vector == VEC_NM);
    v->cr0 &= ~(u64)CR0_TS;
    __asm__ volatile("ldmxcsr %0" : : "m"((u32){ MXCSR_INIT }));

    /* MASKMOVDQU */
    in = (struct insn){ .reg = 1, .rm = 2, .addrsize = 8, .seg = SEG_DS };
    fill(16, 16);
    for (unsigned i = 0; i < 32; i++)
        ram[4096 - 8 + i] = 0x55;
    v->regs[RDI] = BASE + 4096 - 8;
    CHECK(sys_maskmovdqu(v, &in) == X_OK);
    for (unsigned i = 0; i < 16; i++)
        CHECK(ram[4096 - 8 + i] == (vec[2][i] & 0x80 ? vec[1][i] : 0x55));

    /* Gathers: every shape, with a hole in memory; VEX and EVEX, and scatters. */
    for (unsigned i = 0; i < sizeof ram; i++)
        ram[i] = (u8)(rnd() >> 24);
    for (unsigned t = 0; t < 2000; t++) {
        bool evex = avx512 && (t & 1), store = evex && (t & 2), broken = t % 5 == 0;
        in = (struct insn){ .opcode = (u8)(0x90 + (rnd() & 3) + store * 0x10), .vex_w = rnd() & 1, .addrsize = 8, .seg = SEG_DS,
                            .enc = evex ? ENC_EVEX : ENC_VEX, .vl = (u8)(16u << rnd() % (evex ? 3 : 2)), .base = RBX, .scale = 4,
                            .vsib = true, .reg = evex ? 17 : 1, .index = evex ? 18 : 2, .vvvv = 3, .mask = evex ? 3 : 0 };
        unsigned es = in.vex_w ? 8 : 4, is = in.opcode & 1 ? 8 : 4, n = in.vl / MAX(es, is), fault_at = n;
        u8 dst[64], mask[64], idx[64], expect_dst[64], mem[64];
        u64 k = rnd() & 0xffffffff, todo = 0;
        reset(true);
        absent[5] = broken;
        v->regs[RBX] = BASE + 8192;
        for (unsigned i = 0; i < 64; i++)
            __asm__ volatile("movb %1, %0" : "=m"(mask[i]) : "r"((u8)(rnd() >> 20)));
        s64 off[16];
        for (unsigned i = 0; i < n; i++) {
            s64 x = (s64)(rnd() % 5000) - 2000;
            x = x * 2 + (s64)i * 0; /* -4000..6000, times 4: pages 0 to 7 */
            x = store ? (s64)(i * 64) : x / 2;
            off[i] = 8192 + x * 4;
            s32 x32 = (s32)x;
            copy(idx + i * is, is == 8 ? (void *)&x : (void *)&x32, is);
            if (off[i] < 0 || off[i] + es > PAGES * 4096)
                off[i] = -1;
        }
        for (unsigned i = 0; i < 64; i += 8) {
            u64 x = rnd();
            copy(dst + i, &x, 8);
        }
        for (unsigned i = 0; i < n; i++) {
            bool want_it = evex ? k >> i & 1 : mask[i * es + es - 1] >> 7;
            todo |= (u64)want_it << i;
            bool hole = off[i] < 0 || (broken && off[i] + es > 5 * 4096 && off[i] < 6 * 4096);
            if (want_it && hole && fault_at == n)
                fault_at = i;
        }
        u64 done = fault_at == n ? todo : todo & ((1ull << fault_at) - 1);
        copy(expect_dst, dst, 64);
        for (unsigned i = 0; i < n && !store; i++)
            if (done >> i & 1)
                copy(expect_dst + i * es, ram + off[i], es);
        if (fault_at == n)
            for (unsigned i = n * es; i < 64; i++)
                __asm__ volatile("movb $0, %0" : "=m"(expect_dst[i]));
        fpu_set_vec(in.index, in.vl, idx);
        fpu_set_vec(in.reg, in.vl, dst);
        if (evex)
            fpu_set_mask(3, k);
        else
            fpu_set_vec(3, in.vl, mask);
        enum xret r = store ? sys_scatter(v, &in) : sys_gather(v, &in);
        fpu_get_vec(in.reg, in.vl, out);
        CHECK(r == (fault_at == n ? X_OK : X_FAULT));
        if (store) {
            for (unsigned i = 0; i < n; i++)
                if (done >> i & 1) {
                    copy(mem, ram + off[i], es);
                    CHECK(same(mem, dst + i * es, es));
                }
        } else {
            CHECK(same(out, expect_dst, in.vl));
        }
        if (evex) {
            CHECK(fpu_get_mask(3) == (fault_at == n ? 0 : k & ~done));
        } else {
            fpu_get_vec(3, in.vl, out);
            ok = true;
            for (unsigned i = 0; i < n * es; i++)
                ok &= out[i] == ((todo & ~done) >> (i / es) & 1 ? 0xff : 0);
            CHECK(ok);
        }
    }
}

/* A number to watch, not a test: a short rep movsq through the whole helper. */
static void time_movs(void)
{
    struct insn in = { .len = 3, .opcode = 0xa5, .opsize = 8, .addrsize = 8, .prefixes = PFX_F3 };
    reset(true);
    u64 t = host_rdtsc();
    for (unsigned i = 0; i < 1000000; i++) {
        v->regs[RSI] = BASE;
        v->regs[RDI] = BASE + 4096;
        v->regs[RCX] = 8;
        sys_movs(v, &in);
    }
    t = host_rdtsc() - t;
    printf("rep movsq of 64 bytes: %lu cycles of TSC\n", (unsigned long)(t / 1000000));
}

int main(void)
{
    const char *error;
    model = cpu_model_create("host", 2, 2000000, &error);
    v->fpu = aligned_alloc(64, XSAVE_AREA_MAX);
    fpu_init_image(v->fpu);
    vm.model = model;
    ram_init(&vm.ram);
    if (!model || ram_add_slot(&vm.ram, BASE, sizeof ram, ram, false)) {
        printf("test_help: %s\n", error ? error : "no memory");
        return 1;
    }
    for (unsigned i = 0; i < 60000; i++)
        one_string();
    test_ports();
    test_legacy();
    test_flags();
    test_control();
    test_msrs();
    test_tables();
    test_vector();
    test_initial();
    time_movs();
    ram_fini(&vm.ram);
    cpu_model_destroy(model);
    return check_done("test_help");
}
