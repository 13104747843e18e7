/*
 * Events, returns and segment loads against a GDT, IDT and TSS in memory, with and without paging. Memory is
 * reached by the real page walk and a plain copy, so that faults on stacks and tables are real ones.
 */
#include "engine/engine.h"
#include "engine/mmu.h"
#include "engine/seg.h"
#include "tests/lib/check.h"
#include <stdlib.h>
#include <string.h>

#define MEM 0x100000ull
#define GDT 0x10000u
#define IDT 0x11000u
#define TSS 0x12000u
#define LDT 0x13000u
#define STACK 0x20000u  /* tops */
#define KSTACK 0x22000u
#define ISTACK 0x24000u
#define HOLE 0x28000u   /* not-present pages 0x27000 and 0x28000 */
#define PML4 0x1000u
#define PDPT 0x2000u
#define PD 0x3000u
#define PT 0x4000u

/* selectors */
enum { K64 = 0x08, KDATA = 0x10, U32 = 0x18, UDATA = 0x20, U64 = 0x28, K32 = 0x30, TSSEL = 0x38, LDTSEL = 0x48,
       CONF = 0x58, KRO = 0x60, NPDATA = 0x68, GATE = 0x70, K16 = 0x80, TSS32 = 0x88, GATE32 = 0x90, NPCODE = 0x98,
       XONLY = 0xa0 };

static struct vm vm;
static struct vcpu vcpu, *v = &vcpu;
static u8 *mem;

/* -- What the engine would provide ------------------------------------------------------------------ */

static enum xret copy(gla_t la, u8 *buf, unsigned len, unsigned acc)
{
    struct mmu_span s;
    for (unsigned pass = 0; pass < 2; pass++) { /* all of it is checked before any of it is copied */
        for (unsigned i = 0; i < len; i++) {
            gla_t a = vcpu_long_mode(v) ? la + i : (u32)(la + i);
            if (vcpu_long_mode(v) && !is_canonical(a))
                return raise_gp0(v);
            enum xret r = mmu_walk(v, a, acc, &s);
            if (r != X_OK)
                return r;
            if (s.gpa >= MEM)
                abort();
            if (pass && (acc & ACC_W))
                mem[s.gpa] = buf[i];
            else if (pass)
                buf[i] = mem[s.gpa];
        }
    }
    return X_OK;
}
enum xret mem_read(struct vcpu *c, gla_t la, void *buf, unsigned len, unsigned acc) { return copy(la, buf, len, acc); }
enum xret mem_write(struct vcpu *c, gla_t la, const void *buf, unsigned len, unsigned acc)
{
    return copy(la, (u8 *)(uintptr_t)buf, len, acc);
}
enum xret mem_probe(struct vcpu *c, gla_t la, unsigned len, unsigned acc)
{
    u8 buf[8];
    enum xret r = copy(la, buf, len, acc & ~ACC_W);
    return r == X_OK && (acc & ACC_W) ? copy(la, buf, len, acc) : r;
}
void tlb_switch(struct vcpu *c, bool noflush) { }
void vcpu_mode_changed(struct vcpu *c) { }
void vcpu_cs_changed(struct vcpu *c) { }
enum xret outer_trap(struct vcpu *c) { abort(); }
enum xret outer_soft_interrupt(struct vcpu *c, unsigned vector, u64 next_rip) { abort(); }
enum xret outer_syscall(struct vcpu *c, u64 next_rip) { abort(); }

/* -- The world ---------------------------------------------------------------------------------------- */

static void w64(u32 a, u64 x) { memcpy(mem + a, &x, 8); }
static u64 r64(u32 a) { u64 x; memcpy(&x, mem + a, 8); return x; }
static u32 r32(u32 a) { return (u32)r64(a); }
static u16 r16(u32 a) { return (u16)r64(a); }

static void gdt(unsigned sel, u32 base, u32 limit, u32 attr)
{
    w64(GDT + (sel & ~7u), (u64)(limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)(attr & 0xf0ff) << 40 |
                               (u64)(limit >> 16 & 0xf) << 48 | (u64)(base >> 24) << 56);
}
static void idt_long(unsigned vec, unsigned sel, u64 rip, unsigned type, unsigned dpl, unsigned ist)
{
    w64(IDT + vec * 16, (rip & 0xffff) | (u64)sel << 16 | (u64)ist << 32 | (u64)(0x80 | dpl << 5 | type) << 40 |
                            (rip >> 16 & 0xffff) << 48);
    w64(IDT + vec * 16 + 8, rip >> 32);
}
static void idt_legacy(unsigned vec, unsigned sel, u32 rip, unsigned type, unsigned dpl)
{
    w64(IDT + vec * 8, (rip & 0xffff) | (u64)sel << 16 | (u64)(0x80 | dpl << 5 | type) << 40 | (u64)(rip >> 16) << 48);
}
static void set_seg(unsigned s, unsigned sel)
{
    u64 d = r64(GDT + (sel & ~7u)) | 1ull << 40;
    seg_fill(v, &v->seg[s], (u16)sel, d);
}

static void world(bool lma)
{
    memset(mem, 0, 0x30000);
    memset(v, 0, sizeof(*v));
    v->vm = &vm;
    gdt(K64, 0, 0xfffff, 0xa09b);
    gdt(KDATA, 0, 0xfffff, 0xc093);
    gdt(U32, 0, 0xfffff, 0xc0fb);
    gdt(UDATA, 0, 0xfffff, 0xc0f3);
    gdt(U64, 0, 0xfffff, 0xa0fb);
    gdt(K32, 0, 0xfffff, 0xc09a); /* not accessed yet */
    gdt(TSSEL, TSS, 0x67, 0x0089);
    gdt(LDTSEL, LDT, 0x1f, 0x0082);
    gdt(CONF, 0, 0xfffff, lma ? 0xa09f : 0xc09f);
    gdt(KRO, 0, 0xfffff, 0xc091);
    gdt(NPDATA, 0, 0xfffff, 0xc073);
    gdt(K16, 0x500, 0xffff, 0x009b);
    gdt(NPCODE, 0, 0xfffff, lma ? 0xa01b : 0xc01b);
    gdt(XONLY, 0, 0xfffff, 0xc0f9);
    v->gdtr = (struct dtable){ GDT, 0xa7 };
    v->idtr = (struct dtable){ IDT, 0xfff };
    v->seg[SEG_TR] = (struct seg){ .base = TSS, .limit = 0x67, .attr = 0x8b, .sel = TSSEL };
    v->seg[SEG_LDTR] = (struct seg){ .attr = SEG_UNUSABLE };
    v->cr0 = CR0_PE | CR0_WP;
    if (lma) {
        v->cr0 |= CR0_PG;
        v->cr4 = CR4_PAE;
        v->efer = EFER_LMA | EFER_LME | EFER_NXE | EFER_SCE;
        v->cr3 = PML4;
        w64(PML4, PDPT | 7);
        w64(PDPT, PD | 7);
        w64(PD, PT | 7);
        for (u32 i = 0; i < 256; i++)
            w64(PT + i * 8, i << 12 | 7);
        w64(PT + 0x27 * 8, 0);
        w64(PT + 0x28 * 8, 0);
        w64(TSS + 4, KSTACK + 8); /* RSP0, not aligned */
        w64(TSS + 36, ISTACK);    /* IST1 */
        w64(TSS + 44, HOLE);      /* IST2 */
        for (unsigned i = 0; i < 256; i++)
            idt_long(i, K64, 0xffffffff80000000 + i * 16, 14, i == 3 ? 3 : 0, 0);
    } else {
        u32 esp0 = KSTACK;
        memcpy(mem + TSS + 4, &esp0, 4);
        mem[TSS + 8] = KDATA;
        for (unsigned i = 0; i < 256; i++)
            idt_legacy(i, K32, 0x40000 + i * 16, 14, i == 3 ? 3 : 0);
    }
    vcpu_set_eflags(v, EFL_IF | EFL_CF | EFL_OF);
    v->rip = 0x5000;
    v->regs[RSP] = STACK;
}
static void as_kernel(bool lma)
{
    set_seg(SEG_CS, lma ? K64 : K32);
    for (unsigned s = SEG_ES; s <= SEG_GS; s++)
        if (s != SEG_CS)
            set_seg(s, KDATA);
    v->cpl = 0;
}
static void as_user(bool lma)
{
    set_seg(SEG_CS, (lma ? U64 : U32) | 3);
    for (unsigned s = SEG_ES; s <= SEG_GS; s++)
        if (s != SEG_CS)
            set_seg(s, UDATA | 3);
    v->cpl = 3;
}
static struct insn insn(u8 opsize) { return (struct insn){ .len = 2, .opsize = opsize, .base = REG_NONE, .index = REG_NONE, .addrsize = 8, .seg = SEG_DS }; }

#define CHECK_FAULT(r, vec, err) \
    CHECK_MSG((r) == X_FAULT && v->exc.vector == (vec) && v->exc.has_error && v->exc.error == (u32)(err), \
              "vector %u error %x", v->exc.vector, v->exc.error)

static enum xret deliver_pf(void)
{
    v->exc = (struct exc){ .vector = VEC_PF, .has_error = true, .error = 6, .cr2 = 0xabc };
    return exc_deliver(v);
}

/* -- Long mode events ------------------------------------------------------------------------------------ */

static void test_long_user(void)
{
    world(true);
    as_user(true);
    v->halted = v->int_shadow = 1;
    v->eflags |= EFL_TF | EFL_NT | EFL_AC;
    CHECK(deliver_pf() == X_JUMP);
    CHECK(v->rip == 0xffffffff800000e0 && v->cpl == 0 && v->cr2 == 0xabc && v->nr_exc[VEC_PF] == 1);
    CHECK(v->seg[SEG_CS].sel == K64 && (v->seg[SEG_CS].attr & SEG_L));
    CHECK(v->seg[SEG_SS].sel == 0 && (v->seg[SEG_SS].attr & SEG_UNUSABLE));
    CHECK(v->regs[RSP] == KSTACK - 48);
    CHECK(r64(KSTACK - 48) == 6 && r64(KSTACK - 40) == 0x5000 && r64(KSTACK - 32) == (U64 | 3));
    CHECK(r64(KSTACK - 24) == (EFL_IF | EFL_CF | EFL_OF | EFL_R1 | EFL_RF | EFL_TF | EFL_NT | EFL_AC));
    CHECK(r64(KSTACK - 16) == STACK && r64(KSTACK - 8) == (UDATA | 3));
    CHECK(!(v->eflags & (EFL_IF | EFL_TF | EFL_NT | EFL_RF)) && (v->eflags & EFL_AC));
    CHECK(!v->halted && !v->int_shadow);
    CHECK(v->seg[SEG_DS].sel == (UDATA | 3));

    /* and back */
    struct insn in = insn(8);
    v->regs[RSP] += 8;
    v->nmi_masked = 1;
    v->eflags &= ~EFL_NT;
    w64(KSTACK - 24, EFL_IF | EFL_CF | EFL_OF | EFL_RF | EFL_AC | EFL_IOPL | EFL_VM | EFL_ID);
    CHECK(sys_iret(v, &in) == X_JUMP);
    CHECK(v->rip == 0x5000 && v->cpl == 3 && v->regs[RSP] == STACK && !v->nmi_masked);
    CHECK(v->seg[SEG_CS].sel == (U64 | 3) && v->seg[SEG_SS].sel == (UDATA | 3));
    CHECK(vcpu_eflags(v) == (EFL_IF | EFL_CF | EFL_OF | EFL_R1 | EFL_AC | EFL_IOPL | EFL_ID));
}

static void test_long_kernel(void)
{
    world(true);
    as_kernel(true);
    v->regs[RSP] = STACK - 4; /* aligned down */
    CHECK(intr_deliver(v, 0x40) == X_JUMP);
    CHECK(v->regs[RSP] == STACK - 16 - 40 && r64(STACK - 16 - 16) == STACK - 4 && r64(STACK - 16 - 8) == KDATA);
    CHECK(v->seg[SEG_SS].sel == KDATA && v->nr_intr == 1 && !(r64(STACK - 16 - 24) & EFL_RF));
    /* IST without a level change keeps SS; NMI masks */
    world(true);
    as_kernel(true);
    idt_long(2, K64, 0x1000, 15, 0, 1);
    CHECK(intr_deliver(v, 2) == X_JUMP);
    CHECK(v->regs[RSP] == ISTACK - 40 && v->nmi_masked && v->seg[SEG_SS].sel == KDATA && (v->eflags & EFL_IF));
    struct insn in = insn(8);
    CHECK(sys_iret(v, &in) == X_JUMP && v->regs[RSP] == STACK && !v->nmi_masked && v->cpl == 0);
    /* conforming handler: same level */
    world(true);
    as_user(true);
    idt_long(3, CONF, 0x1000, 15, 3, 0);
    CHECK(exc_software(v, 3, 0x5001, false) == X_JUMP);
    CHECK(v->cpl == 3 && v->seg[SEG_CS].sel == (CONF | 3) && r64(STACK - 40) == 0x5001);
    /* #DB: DR6, GD, no RF */
    world(true);
    as_kernel(true);
    v->dr[6] = 0xffff0ff0;
    v->dr[7] = 0x2400;
    v->exc = (struct exc){ .vector = VEC_DB, .dr6 = 0x4000 };
    CHECK(exc_deliver(v) == X_JUMP && v->dr[6] == 0xffff4ff0 && v->dr[7] == 0x400);
    CHECK(!(r64(STACK - 24) & EFL_RF));
}

static void test_long_gates(void)
{
    enum { N = 0x50 };
#define SOFT(v_) exc_software(v, (v_), 0x5002, false)
    world(true);
    as_user(true);
    CHECK_FAULT(SOFT(N), VEC_GP, N * 8 + 2);   /* gate DPL 0 */
    CHECK(exc_software(v, 1, 0x5001, true) == X_JUMP); /* INT1 does not care */
    world(true);
    as_kernel(true);
    v->idtr.limit = N * 16 + 14;
    CHECK_FAULT(SOFT(N), VEC_GP, N * 8 + 2);
    v->idtr.limit++;
    idt_long(N, K64, 0, 12, 0, 0);
    CHECK_FAULT(SOFT(N), VEC_GP, N * 8 + 2);   /* call gate */
    idt_long(N, K64, 0, 5, 0, 0);
    CHECK_FAULT(SOFT(N), VEC_GP, N * 8 + 2);   /* task gate */
    idt_long(N, K64, 0, 14, 0, 0);
    mem[IDT + N * 16 + 5] &= 0x7f;
    CHECK_FAULT(SOFT(N), VEC_NP, N * 8 + 2);
    idt_long(N, 3, 0, 14, 0, 0);
    CHECK_FAULT(SOFT(N), VEC_GP, 0);           /* null CS */
    idt_long(N, 0xf8 | 3, 0, 14, 0, 0);
    CHECK_FAULT(SOFT(N), VEC_GP, 0xf8);        /* beyond the GDT */
    idt_long(N, KDATA, 0, 14, 0, 0);
    CHECK_FAULT(SOFT(N), VEC_GP, KDATA);
    idt_long(N, K32, 0, 14, 0, 0);
    CHECK_FAULT(SOFT(N), VEC_GP, K32);         /* L = 0 */
    idt_long(N, U64, 0, 14, 0, 0);
    CHECK_FAULT(SOFT(N), VEC_GP, U64);         /* outer */
    idt_long(N, NPCODE, 0, 14, 0, 0);
    CHECK_FAULT(SOFT(N), VEC_NP, NPCODE);
    idt_long(N, K64, 1ull << 47, 14, 0, 0);
    CHECK_FAULT(SOFT(N), VEC_GP, 0);           /* not canonical */
    idt_long(N, K64, 0, 14, 0, 1);
    w64(TSS + 36, 1ull << 60);
    CHECK_FAULT(SOFT(N), VEC_SS, 0);
    v->seg[SEG_TR].limit = 42;
    CHECK_FAULT(SOFT(N), VEC_TS, TSSEL);
    CHECK(v->rip == 0x5000 && v->regs[RSP] == STACK && v->cpl == 0);
    /* the same from hardware has EXT */
    idt_long(VEC_NP, K64, 0x1000, 14, 0, 0);
    mem[IDT + N * 16 + 5] &= 0x7f;
    CHECK(intr_deliver(v, N) == X_JUMP && v->rip == 0x1000 && r64(v->regs[RSP]) == (N * 8 + 3));
#undef SOFT
}

static void test_escalation(void)
{
    /* #PF whose frame cannot be pushed: #DF on an IST */
    world(true);
    as_kernel(true);
    v->regs[RSP] = HOLE + 0x800;
    idt_long(VEC_DF, K64, 0x7000, 14, 0, 1);
    CHECK(deliver_pf() == X_JUMP);
    CHECK(v->rip == 0x7000 && v->regs[RSP] == ISTACK - 48 && r64(ISTACK - 48) == 0 && r64(ISTACK - 16) == HOLE + 0x800);
    CHECK(v->cr2 >= HOLE + 0x7c0 && v->cr2 < HOLE + 0x800 && v->nr_exc[VEC_DF] == 1);
    /* #DF on the same bad stack: shutdown, and nothing moved */
    world(true);
    as_kernel(true);
    v->regs[RSP] = HOLE + 0x800;
    CHECK(deliver_pf() == X_EXIT && v->exit == EXIT_SHUTDOWN);
    CHECK(v->rip == 0x5000 && v->regs[RSP] == HOLE + 0x800 && v->cpl == 0 && (v->eflags & EFL_IF));
    /* benign then #PF: just the #PF */
    world(true);
    as_kernel(true);
    idt_long(VEC_UD, K64, 0x6000, 14, 0, 2);
    raise_ud(v);
    CHECK(exc_deliver(v) == X_JUMP && v->rip == 0xffffffff800000e0 && v->cr2 >= HOLE - 40 && v->cr2 < HOLE);
    /* #GP then #NP: double fault; #GP then #PF: the #PF (contributory then page fault is serial) */
    world(true);
    as_kernel(true);
    mem[IDT + VEC_GP * 16 + 5] &= 0x7f;
    idt_long(VEC_DF, K64, 0x7000, 14, 0, 0);
    raise_gp0(v);
    CHECK(exc_deliver(v) == X_JUMP && v->rip == 0x7000);
    world(true);
    as_kernel(true);
    idt_long(VEC_GP, K64, 0x6000, 14, 0, 2);
    raise_gp0(v);
    CHECK(exc_deliver(v) == X_JUMP && v->rip == 0xffffffff800000e0);
    /* no IDT at all: #UD, #GP, #DF, shutdown */
    world(true);
    as_kernel(true);
    v->idtr.limit = 0;
    raise_ud(v);
    CHECK(exc_deliver(v) == X_EXIT && v->exit == EXIT_SHUTDOWN);
}

/* -- IRET and the fast system calls ----------------------------------------------------------------------- */

static void frame64(u64 rip, u64 cs, u64 fl, u64 rsp, u64 ss)
{
    u64 f[5] = { rip, cs, fl, rsp, ss };
    memcpy(mem + STACK, f, sizeof(f));
}

static void test_iret_long(void)
{
    struct insn in = insn(8);

    world(true);
    as_kernel(true);
    frame64(0x1234, U32 | 3, EFL_IF, 0x7fff0000, UDATA | 3); /* to compatibility mode */
    set_seg(SEG_DS, KDATA);
    set_seg(SEG_ES, UDATA | 3);
    v->seg[SEG_FS] = (struct seg){ .base = 0x123456789, .attr = SEG_UNUSABLE };
    CHECK(sys_iret(v, &in) == X_JUMP && v->cpl == 3 && v->rip == 0x1234 && v->regs[RSP] == 0x7fff0000);
    CHECK(!vcpu_code64(v) && v->seg[SEG_DS].sel == 0 && (v->seg[SEG_DS].attr & SEG_UNUSABLE));
    CHECK(v->seg[SEG_ES].sel == (UDATA | 3) && v->seg[SEG_FS].base == 0x123456789);
    /* NULL SS to 64-bit ring 0 */
    world(true);
    as_kernel(true);
    frame64(0x1234, K64, EFL_IF, 0x18000, 0);
    CHECK(sys_iret(v, &in) == X_JUMP && v->regs[RSP] == 0x18000 && v->seg[SEG_SS].sel == 0);
    static const struct { u64 rip, cs, ss; unsigned vec, err; } bad[] = {
        { 0x1000, 0, KDATA, VEC_GP, 0 },
        { 0x1000, U64 | 3, 3, VEC_GP, 0 },              /* NULL SS to ring 3 */
        { 0x1000, U64, UDATA | 3, VEC_GP, U64 },        /* DPL is not RPL */
        { 0x1000, KDATA, KDATA, VEC_GP, KDATA },
        { 0x1000, K64, KRO, VEC_GP, KRO },
        { 0x1000, K64, UDATA | 3, VEC_GP, UDATA },
        { 0x1000, U64 | 3, NPDATA | 3, VEC_SS, NPDATA },
        { 0x1000, NPCODE, KDATA, VEC_NP, NPCODE },
        { 0x1000, 0x4 | K64, KDATA, VEC_GP, 0x4 | K64 }, /* no LDT */
        { 0x1000, 0xf8, KDATA, VEC_GP, 0xf8 },
        { 1ull << 47, K64, KDATA, VEC_GP, 0 },
        { 1ull << 32, U32 | 3, UDATA | 3, VEC_GP, 0 },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        world(true);
        as_kernel(true);
        v->nmi_masked = 1;
        frame64(bad[i].rip, bad[i].cs, 0, 0x18000, bad[i].ss);
        CHECK_FAULT(sys_iret(v, &in), bad[i].vec, bad[i].err);
        CHECK(v->rip == 0x5000 && v->regs[RSP] == STACK && (v->eflags & EFL_IF) && v->seg[SEG_CS].sel == K64);
        CHECK(!v->nmi_masked); /* unmasked even so */
    }
    world(true);
    as_kernel(true);
    v->eflags |= EFL_NT;
    CHECK_FAULT(sys_iret(v, &in), VEC_GP, 0);
    /* ring 3 to ring 3: IF and IOPL stay; to ring 0: refused */
    world(true);
    as_user(true);
    frame64(0x1234, U64 | 3, EFL_IOPL | EFL_TF, 0x18000, UDATA | 3);
    CHECK(sys_iret(v, &in) == X_JUMP && v->eflags == (EFL_IF | EFL_TF));
    as_user(true);
    v->regs[RSP] = STACK;
    frame64(0x1234, K64, 0, 0x18000, KDATA);
    CHECK_FAULT(sys_iret(v, &in), VEC_GP, K64);
    /* 32-bit operands in 64-bit code still pop five */
    world(true);
    as_kernel(true);
    in = insn(4);
    u32 f[5] = { 0x1234, U64 | 3, EFL_IF, 0x18000, UDATA | 3 };
    memcpy(mem + STACK, f, sizeof(f));
    CHECK(sys_iret(v, &in) == X_JUMP && v->cpl == 3 && v->regs[RSP] == 0x18000);
    /* a frame that is not there */
    world(true);
    as_kernel(true);
    v->regs[RSP] = HOLE;
    CHECK(sys_iret(v, &in) == X_FAULT && v->exc.vector == VEC_PF);
    v->regs[RSP] = 1ull << 50;
    CHECK_FAULT(sys_iret(v, &in), VEC_SS, 0);
}

static void test_syscall(void)
{
    struct insn in = insn(8);

    world(true);
    as_user(true);
    v->star = 0x0018000800000000; /* syscall 08/10, sysret 18 (28 = 64-bit, 20 = SS) */
    v->lstar = 0xffffffff81000000;
    v->sfmask = EFL_IF | EFL_TF | EFL_CF;
    CHECK(sys_syscall(v, &in) == X_JUMP);
    CHECK(v->rip == 0xffffffff81000000 && v->regs[RCX] == 0x5002 && v->cpl == 0 && v->regs[RSP] == STACK);
    CHECK(v->regs[R11] == (EFL_IF | EFL_CF | EFL_OF | EFL_R1) && vcpu_eflags(v) == (EFL_OF | EFL_R1));
    CHECK(v->seg[SEG_CS].sel == K64 && v->seg[SEG_CS].attr == 0xa09b && v->seg[SEG_CS].limit == 0xffffffff);
    CHECK(v->seg[SEG_SS].sel == KDATA && v->seg[SEG_SS].attr == 0xc093);
    v->regs[R11] |= EFL_RF | EFL_VM;
    CHECK(sys_sysret(v, &in) == X_JUMP);
    CHECK(v->rip == 0x5002 && v->cpl == 3 && v->seg[SEG_CS].sel == (U64 | 3) && v->seg[SEG_CS].attr == 0xa0fb);
    CHECK(v->seg[SEG_SS].sel == (UDATA | 3) && v->seg[SEG_SS].attr == 0xc0f3);
    CHECK(vcpu_eflags(v) == (EFL_IF | EFL_CF | EFL_OF | EFL_R1));
    CHECK_FAULT(sys_sysret(v, &in), VEC_GP, 0); /* CPL 3 */
    as_kernel(true);
    v->regs[RCX] = 1ull << 47;
    CHECK_FAULT(sys_sysret(v, &in), VEC_GP, 0);
    CHECK(v->cpl == 0);
    in = insn(4);
    v->regs[RCX] = 0xf00005000;
    CHECK(sys_sysret(v, &in) == X_JUMP && v->rip == 0x5000 && v->seg[SEG_CS].sel == (U32 | 3) && !vcpu_code64(v));
    v->cstar = 0xffffffff81001000;
    CHECK(sys_syscall(v, &in) == X_JUMP && v->rip == 0xffffffff81001000 && vcpu_code64(v) && v->cpl == 0);
    v->efer &= ~(u64)EFER_SCE;
    CHECK(sys_syscall(v, &in) == X_FAULT && v->exc.vector == VEC_UD);
    CHECK(sys_sysret(v, &in) == X_FAULT && v->exc.vector == VEC_UD);

    world(true);
    as_user(true);
    CHECK_FAULT(sys_sysenter(v, &in), VEC_GP, 0);
    v->sysenter_cs = K64 | 3;
    v->sysenter_esp = 0xffffffff00001000;
    v->sysenter_eip = 0xffffffff82000000;
    CHECK(sys_sysenter(v, &in) == X_JUMP && v->cpl == 0 && v->rip == 0xffffffff82000000 && !(v->eflags & EFL_IF));
    CHECK(v->regs[RSP] == 0xffffffff00001000 && v->seg[SEG_CS].sel == K64 && v->seg[SEG_SS].sel == KDATA);
    v->regs[RDX] = 0x1111;
    v->regs[RCX] = 0x2222;
    CHECK(sys_sysexit(v, &in) == X_JUMP && v->rip == 0x1111 && v->regs[RSP] == 0x2222 && v->cpl == 3);
    CHECK(v->seg[SEG_CS].sel == (U32 | 3) && v->seg[SEG_SS].sel == (UDATA | 3));
}

/* -- Legacy modes ------------------------------------------------------------------------------------------- */

static void test_legacy(void)
{
    struct insn in = insn(4);

    world(false);
    as_user(false);
    CHECK(deliver_pf() == X_JUMP && v->rip == 0x400e0 && v->cpl == 0);
    CHECK(v->regs[RSP] == KSTACK - 24 && r32(KSTACK - 24) == 6 && r32(KSTACK - 20) == 0x5000);
    CHECK(r32(KSTACK - 16) == (U32 | 3) && r32(KSTACK - 8) == STACK && r32(KSTACK - 4) == (UDATA | 3));
    CHECK(v->seg[SEG_SS].sel == KDATA && (mem[GDT + K32 + 5] & 1)); /* accessed was set */
    v->regs[RSP] += 4;
    CHECK(sys_iret(v, &in) == X_JUMP && v->cpl == 3 && v->regs[RSP] == STACK && v->rip == 0x5000);
    /* same level: three words, 16-bit gate */
    world(false);
    as_kernel(false);
    idt_legacy(0x40, K32, 0x1234, 7, 0);
    CHECK(intr_deliver(v, 0x40) == X_JUMP && v->regs[RSP] == STACK - 6 && v->rip == 0x1234 && (v->eflags & EFL_IF));
    CHECK(r16(STACK - 6) == 0x5000 && r16(STACK - 4) == K32);
    in = insn(2);
    CHECK(sys_iret(v, &in) == X_JUMP && v->regs[RSP] == STACK && v->cpl == 0);
    /* bad SS0 */
    world(false);
    as_user(false);
    mem[TSS + 8] = 0;
    CHECK_FAULT(exc_software(v, 3, 0x5001, false), VEC_TS, 0);
    mem[TSS + 8] = KRO;
    CHECK_FAULT(exc_software(v, 3, 0x5001, false), VEC_TS, KRO);
    mem[TSS + 8] = UDATA;
    CHECK_FAULT(exc_software(v, 3, 0x5001, false), VEC_TS, UDATA);
    idt_legacy(3, 0, 0, 5, 3);
    CHECK_FAULT(exc_software(v, 3, 0x5001, false), VEC_GP, 0); /* a task gate to nothing */
    /* stack limit */
    world(false);
    as_kernel(false);
    v->seg[SEG_SS].limit = STACK - 8;
    CHECK_FAULT(exc_software(v, 3, 0x5001, false), VEC_SS, 0);
    /* to V86 and out again */
    world(false);
    as_kernel(false);
    in = insn(4);
    u32 f[9] = { 0x100, 0x1000, EFL_VM | EFL_IF | EFL_IOPL, 0x800, 0x1900, 0x1111, 0x2222, 0x3333, 0x4444 };
    memcpy(mem + STACK, f, sizeof(f));
    CHECK(sys_iret(v, &in) == X_JUMP && v->cpl == 3 && vcpu_v86(v) && v->seg[SEG_CS].base == 0x10000);
    CHECK(v->seg[SEG_SS].base == 0x19000 && v->seg[SEG_GS].sel == 0x4444 && v->regs[RSP] == 0x800 && vcpu_ip(v) == 0x100);
    CHECK(intr_deliver(v, 0x20) == X_JUMP && !vcpu_v86(v) && v->cpl == 0 && v->regs[RSP] == KSTACK - 36);
    CHECK(r32(KSTACK - 4) == 0x4444 && r32(KSTACK - 16) == 0x1111 && r32(KSTACK - 20) == 0x1900);
    CHECK((r32(KSTACK - 28) & EFL_VM) && v->seg[SEG_DS].sel == 0 && (v->seg[SEG_DS].attr & SEG_UNUSABLE));
}

static void test_real(void)
{
    struct insn in = insn(2);

    world(false);
    v->cr0 = 0;
    v->idtr = (struct dtable){ 0, 0x3ff };
    for (unsigned s = SEG_ES; s <= SEG_GS; s++)
        v->seg[s] = (struct seg){ .limit = 0xffff, .attr = 0x93 };
    seg_load_real(v, SEG_SS, 0x2000);
    seg_load_real(v, SEG_CS, 0x1000);
    v->regs[RSP] = 0xabcd0000; /* SP 0: the push wraps to the top */
    vcpu_set_ip(v, 0x55);
    mem[0x21 * 4 + 1] = 0x12;
    mem[0x21 * 4 + 3] = 0x05;
    CHECK(sys_int(v, &(struct insn){ .len = 2, .imm = 0x21 }) == X_JUMP);
    CHECK(vcpu_ip(v) == 0x1200 && v->seg[SEG_CS].base == 0x5000 && v->regs[RSP] == 0xabcdfffa && !(v->eflags & EFL_IF));
    CHECK(r16(0x2fffa) == 0x57 && r16(0x2fffc) == 0x1000);
    CHECK(sys_iret(v, &in) == X_JUMP && vcpu_ip(v) == 0x57 && v->seg[SEG_CS].sel == 0x1000 && v->regs[RSP] == 0xabcd0000);
    CHECK(v->eflags & EFL_IF);
    in = (struct insn){ .len = 5, .opsize = 2, .imm = 0x10 | (s64)0x2000 << 32 };
    CHECK(sys_call_far(v, &in) == X_JUMP && vcpu_ip(v) == 0x10 && v->seg[SEG_CS].base == 0x20000);
    CHECK(r16(0x2fffc) == 0x57 + 5 && r16(0x2fffe) == 0x1000);
    CHECK(sys_ret_far(v, &(struct insn){ .len = 1, .opsize = 2 }) == X_JUMP && vcpu_ip(v) == 0x5c);
    /* an interrupt table too short, with no way out */
    v->idtr.limit = 3;
    v->exc = (struct exc){ .vector = VEC_UD };
    CHECK(exc_deliver(v) == X_EXIT && v->exit == EXIT_SHUTDOWN);
}

/* -- Far transfers ---------------------------------------------------------------------------------------------- */

static struct insn far_mem(u8 opsize, u32 where, u64 off, u16 sel)
{
    struct insn in = insn(opsize);
    memcpy(mem + where, &off, opsize);
    memcpy(mem + where + opsize, &sel, 2);
    in.has_mem = true;
    in.disp = where;
    return in;
}

static void test_far(void)
{
    struct insn in;

    world(true);
    as_kernel(true);
    in = far_mem(8, 0x8000, 0x7777, K64);
    CHECK(sys_call_far(v, &in) == X_JUMP && v->rip == 0x7777 && v->regs[RSP] == STACK - 16);
    CHECK(r64(STACK - 16) == 0x5002 && r64(STACK - 8) == K64);
    in = insn(8);
    CHECK(sys_ret_far(v, &in) == X_JUMP && v->rip == 0x5002 && v->regs[RSP] == STACK);
    in = far_mem(4, 0x8000, 0x7777, K32);
    CHECK(sys_jmp_far(v, &in) == X_JUMP && !vcpu_code64(v) && v->rip == 0x7777);
    /* 64-bit call gate from ring 3, and back with ret */
    world(true);
    as_user(true);
    w64(GDT + GATE, 0x4444 | (u64)K64 << 16 | 0xecull << 40);
    w64(GDT + GATE + 8, 0xffffffff);
    in = far_mem(8, 0x8000, 0, GATE | 3);
    CHECK(sys_call_far(v, &in) == X_JUMP && v->cpl == 0 && v->rip == 0xffffffff00004444);
    CHECK(v->regs[RSP] == KSTACK + 8 - 32 && r64(KSTACK) == (UDATA | 3) && r64(KSTACK - 8) == STACK);
    CHECK(r64(KSTACK - 24) == 0x5002 && v->seg[SEG_SS].sel == 0);
    CHECK(sys_ret_far(v, &(struct insn){ .opsize = 8, .imm_size = 2, .imm = 0 }) == X_JUMP);
    CHECK(v->cpl == 3 && v->rip == 0x5002 && v->regs[RSP] == STACK && v->seg[SEG_SS].sel == (UDATA | 3));
    mem[GDT + GATE + 5] = 0x8c; /* DPL 0 */
    CHECK_FAULT(sys_call_far(v, &in), VEC_GP, GATE);
    mem[GDT + GATE + 5] = 0x6c; /* not present */
    CHECK_FAULT(sys_call_far(v, &in), VEC_NP, GATE);
    in = far_mem(8, 0x8000, 0, K64);
    CHECK_FAULT(sys_jmp_far(v, &in), VEC_GP, K64);
    in = far_mem(8, 0x8000, 0, 0);
    CHECK_FAULT(sys_jmp_far(v, &in), VEC_GP, 0);
    in = far_mem(8, 0x8000, 0, TSSEL);
    CHECK_FAULT(sys_jmp_far(v, &in), VEC_GP, TSSEL);
    /* 32-bit call gate with two parameters */
    world(false);
    as_user(false);
    w64(GDT + GATE, 0x4444 | (u64)K32 << 16 | 2ull << 32 | 0xecull << 40);
    w64(STACK, 0x2222222211111111);
    in = insn(4);
    in.imm = (s64)(GATE | 3) << 32;
    in.len = 7;
    CHECK(sys_call_far(v, &in) == X_JUMP && v->cpl == 0 && v->rip == 0x4444 && v->regs[RSP] == KSTACK - 24);
    CHECK(r32(KSTACK - 24) == 0x5007 && r64(KSTACK - 16) == 0x2222222211111111 && r32(KSTACK - 8) == STACK);
    CHECK(sys_ret_far(v, &(struct insn){ .opsize = 4, .imm_size = 2, .imm = 8 }) == X_JUMP);
    CHECK(v->cpl == 3 && v->rip == 0x5007 && v->regs[RSP] == STACK + 8);
}

/* -- Segment loads ------------------------------------------------------------------------------------------------- */

static enum xret mov_seg(unsigned seg, u16 sel)
{
    struct insn in = insn(2);
    in.reg = (u8)seg;
    in.rm = RAX;
    v->regs[RAX] = sel;
    return sys_mov_seg(v, &in);
}

static void test_segs(void)
{
    struct insn in;
    gla_t la;

    world(true);
    as_kernel(true);
    CHECK(mov_seg(SEG_DS, UDATA | 3) == X_OK && v->seg[SEG_DS].sel == (UDATA | 3));
    CHECK(mov_seg(SEG_GS, 3) == X_OK && v->seg[SEG_GS].sel == 3 && v->seg[SEG_GS].base == 0);
    CHECK(mov_seg(SEG_CS, KDATA) == X_FAULT && v->exc.vector == VEC_UD);
    CHECK(mov_seg(6, KDATA) == X_FAULT && v->exc.vector == VEC_UD);
    CHECK_FAULT(mov_seg(SEG_DS, KDATA | 3), VEC_GP, KDATA);
    CHECK_FAULT(mov_seg(SEG_DS, XONLY), VEC_GP, XONLY);
    CHECK_FAULT(mov_seg(SEG_DS, TSSEL), VEC_GP, TSSEL);
    CHECK_FAULT(mov_seg(SEG_DS, NPDATA), VEC_NP, NPDATA);
    CHECK_FAULT(mov_seg(SEG_DS, 0xa8), VEC_GP, 0xa8);
    CHECK_FAULT(mov_seg(SEG_ES, KDATA | 4), VEC_GP, KDATA | 4);
    CHECK(mov_seg(SEG_ES, CONF | 3) == X_OK); /* conforming: any privilege */
    CHECK(!v->int_shadow && mov_seg(SEG_SS, KDATA) == X_OK && v->int_shadow);
    CHECK(mov_seg(SEG_SS, 0) == X_OK && (v->seg[SEG_SS].attr & SEG_UNUSABLE));
    CHECK_FAULT(mov_seg(SEG_SS, 3), VEC_GP, 0);
    CHECK_FAULT(mov_seg(SEG_SS, UDATA | 3), VEC_GP, UDATA);
    CHECK_FAULT(mov_seg(SEG_SS, KRO), VEC_GP, KRO);
    gdt(NPDATA, 0, 0xfffff, 0xc013);
    CHECK_FAULT(mov_seg(SEG_SS, NPDATA), VEC_SS, NPDATA);
    gdt(UDATA, 0x12345678, 0x10, 0x40f2);
    CHECK(mov_seg(SEG_FS, UDATA) == X_OK && v->seg[SEG_FS].base == 0x12345678 && v->seg[SEG_FS].limit == 0x10);
    CHECK((mem[GDT + UDATA + 5] & 1) && v->seg[SEG_FS].attr == 0x40f3);
    as_user(true);
    CHECK_FAULT(mov_seg(SEG_SS, 0), VEC_GP, 0);
    CHECK_FAULT(mov_seg(SEG_DS, KDATA), VEC_GP, KDATA);
    /* linear addresses in 64-bit mode */
    v->seg[SEG_DS].base = 0x1000;
    v->seg[SEG_GS].base = 0x1000;
    CHECK(seg_linear(v, SEG_DS, 0x10, 8, ACC_R, &la) == X_OK && la == 0x10);
    CHECK(seg_linear(v, SEG_GS, 0x10, 8, ACC_R, &la) == X_OK && la == 0x1010);
    CHECK_FAULT(seg_linear(v, SEG_DS, 0x7ffffffffff9, 8, ACC_R, &la), VEC_GP, 0);
    CHECK(seg_linear(v, SEG_DS, 0x7ffffffffff8, 8, ACC_R, &la) == X_OK);
    CHECK_FAULT(seg_linear(v, SEG_SS, 1ull << 47, 8, ACC_R, &la), VEC_SS, 0);
    /* and in legacy mode */
    world(false);
    as_kernel(false);
    v->seg[SEG_DS].limit = 0xfff;
    v->seg[SEG_DS].base = 0xfffff000;
    CHECK(seg_linear(v, SEG_DS, 0xff8, 8, ACC_W, &la) == X_OK && la == 0xfffffff8);
    CHECK_FAULT(seg_linear(v, SEG_DS, 0xff9, 8, ACC_W, &la), VEC_GP, 0);
    v->seg[SEG_DS].attr = 0xc097; /* expand down */
    CHECK(seg_linear(v, SEG_DS, 0x1000, 8, ACC_W, &la) == X_OK && la == 0);
    CHECK_FAULT(seg_linear(v, SEG_DS, 0xfff, 8, ACC_W, &la), VEC_GP, 0);
    CHECK_FAULT(seg_linear(v, SEG_DS, 0xfffffffc, 8, ACC_W, &la), VEC_GP, 0);
    CHECK_FAULT(seg_linear(v, SEG_CS, 0, 1, ACC_W, &la), VEC_GP, 0);
    CHECK(seg_linear(v, SEG_CS, 0, 1, ACC_R, &la) == X_OK);
    v->seg[SEG_ES].attr = SEG_UNUSABLE;
    CHECK_FAULT(seg_linear(v, SEG_ES, 0, 1, ACC_R, &la), VEC_GP, 0);
    /* pop ss, les */
    w64(STACK, KDATA);
    in = insn(4);
    in.opcode = 0x17;
    CHECK(sys_pop_seg(v, &in) == X_OK && v->regs[RSP] == STACK + 4 && v->seg[SEG_SS].sel == KDATA && v->int_shadow);
    as_kernel(false);
    in = far_mem(4, 0x8000, 0x89abcdef, KDATA);
    in.opcode = 0xc4;
    in.addrsize = 4;
    in.reg = RBX;
    v->seg[SEG_ES].sel = 0;
    CHECK(sys_lfp(v, &in) == X_OK && v->regs[RBX] == 0x89abcdef && v->seg[SEG_ES].sel == KDATA);
}

static void test_system_segs(void)
{
    struct insn in = insn(4);

    for (unsigned lma = 0; lma < 2; lma++) {
        world(lma);
        as_kernel(lma);
        in.rm = RAX;
        in.reg = RDX;
        v->regs[RAX] = LDTSEL;
        CHECK(sys_lldt(v, &in) == X_OK && v->seg[SEG_LDTR].base == LDT && v->seg[SEG_LDTR].limit == 0x1f);
        w64(LDT + 8, r64(GDT + KDATA));
        CHECK(mov_seg(SEG_DS, 8 | 4) == X_OK && v->seg[SEG_DS].sel == 12);
        CHECK_FAULT(mov_seg(SEG_DS, 0x20 | 4), VEC_GP, 0x24);
        v->regs[RAX] = TSSEL;
        CHECK(sys_ltr(v, &in) == X_OK && v->seg[SEG_TR].attr == 0x8b && mem[GDT + TSSEL + 5] == 0x8b);
        CHECK_FAULT(sys_ltr(v, &in), VEC_GP, TSSEL); /* busy */
        CHECK_FAULT(sys_lldt(v, &in), VEC_GP, TSSEL);
        v->regs[RAX] = 0;
        CHECK_FAULT(sys_ltr(v, &in), VEC_GP, 0);
        CHECK(sys_lldt(v, &in) == X_OK && (v->seg[SEG_LDTR].attr & SEG_UNUSABLE));
        CHECK(sys_str(v, &in) == X_OK && v->regs[RAX] == TSSEL);
        /* lar, lsl, verr, verw */
        v->regs[RAX] = KDATA;
        CHECK(sys_lar(v, &in) == X_OK && v->regs[RDX] == 0xcf9300 && (vcpu_eflags(v) & EFL_ZF));
        CHECK(sys_lsl(v, &in) == X_OK && v->regs[RDX] == 0xffffffff);
        CHECK(sys_verw(v, &in) == X_OK && (vcpu_eflags(v) & EFL_ZF));
        CHECK(vcpu_eflags(v) == (EFL_IF | EFL_CF | EFL_OF | EFL_R1 | EFL_ZF)); /* the rest is untouched */
        v->regs[RAX] = XONLY;
        CHECK(sys_verr(v, &in) == X_OK && !(vcpu_eflags(v) & EFL_ZF));
        v->regs[RAX] = KRO;
        CHECK(sys_verw(v, &in) == X_OK && !(vcpu_eflags(v) & EFL_ZF));
        CHECK(sys_verr(v, &in) == X_OK && (vcpu_eflags(v) & EFL_ZF));
        v->regs[RDX] = 77;
        v->regs[RAX] = 0;
        CHECK(sys_lar(v, &in) == X_OK && v->regs[RDX] == 77 && !(vcpu_eflags(v) & EFL_ZF));
        v->cpl = 3;
        v->regs[RAX] = KDATA;
        CHECK(sys_lsl(v, &in) == X_OK && !(vcpu_eflags(v) & EFL_ZF));
        CHECK_FAULT(sys_lldt(v, &in), VEC_GP, 0);
    }
    world(false);
    as_kernel(false);
    in = insn(2);
    in.rm = RAX;
    in.reg = RDX;
    v->regs[RAX] = 0x10;
    v->regs[RDX] = 0x0b;
    CHECK(sys_arpl(v, &in) == X_OK && v->regs[RAX] == 0x13 && (vcpu_eflags(v) & EFL_ZF));
    CHECK(sys_arpl(v, &in) == X_OK && v->regs[RAX] == 0x13 && !(vcpu_eflags(v) & EFL_ZF));
    v->cr0 = 0;
    CHECK(sys_arpl(v, &in) == X_FAULT && v->exc.vector == VEC_UD);
}

static void test_operands(void)
{
    struct insn in = insn(8);
    u64 val;

    world(true);
    as_kernel(true);
    v->regs[RBX] = 0x1122334455667788;
    CHECK(gpr_read(v, 7, 1, false) == 0x77 && gpr_read(v, 7, 1, true) == (v->regs[RDI] & 0xff));
    gpr_write(v, 7, 1, false, 0xaa);
    CHECK(v->regs[RBX] == 0x112233445566aa88);
    gpr_write(v, RBX, 2, false, 0xbbcc);
    CHECK(v->regs[RBX] == 0x112233445566bbcc);
    gpr_write(v, RBX, 4, false, 0xffffffffdddddddd);
    CHECK(v->regs[RBX] == 0xdddddddd);
    in.base = BASE_RIP;
    in.disp = 0x10;
    CHECK(insn_offset(v, &in) == 0x5012);
    in.base = RBX;
    in.index = R9;
    in.scale = 8;
    in.addrsize = 4;
    v->regs[R9] = 0x10000000;
    CHECK(insn_offset(v, &in) == (u32)(0xdddddddd + 0x80000000 + 0x10));
    in = insn(8);
    in.has_mem = true;
    in.disp = 0x8000;
    CHECK(rm_write(v, &in, 8, 0x123456789) == X_OK && rm_read(v, &in, 4, &val) == X_OK && val == 0x23456789);
    in.disp = HOLE;
    CHECK(rm_read(v, &in, 4, &val) == X_FAULT && v->exc.vector == VEC_PF && v->exc.cr2 == HOLE);
}

int main(void)
{
    mem = aligned_alloc(PAGE_SIZE, MEM);
    if (!mem)
        return 2;
    ram_init(&vm.ram);
    if (ram_add_slot(&vm.ram, 0, MEM, mem, false))
        return 2;
    test_long_user();
    test_long_kernel();
    test_long_gates();
    test_escalation();
    test_iret_long();
    test_syscall();
    test_legacy();
    test_real();
    test_far();
    test_segs();
    test_system_segs();
    test_operands();
    ram_fini(&vm.ram);
    free(mem);
    return check_done("exc");
}
