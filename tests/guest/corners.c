/*
 * corners.c - what a translator with a TLB of its own and shared checks is likely to get wrong: code behind
 * remapped pages, alignment checks, pending x87 exceptions, masked lanes. Intel SDM vol. 3 §4.10, §6.13 (#AC),
 * §6.8.3 (mov ss); vol. 1 §8.1.8 (FIP, FDP), §8.7 (x87 exceptions).
 */
#include "lib/guest.h"

#define RW (PTE_P | PTE_W | PTE_U)
#define VA ((volatile u8 *)PAGE3)

/* -- Code behind remapped pages ---------------------------------------------------------------------- */

/* mov $value, %eax; ret */
static void put_code(u64 pa, u32 value)
{
    u8 *p = (u8 *)pa;
    p[0] = 0xb8;
    memcpy(p + 1, &value, 4);
    p[5] = 0xc3;
}
static u32 call(const volatile void *fn)
{
    u64 rax;
    asm volatile("call *%1" : "=a"(rax) : "r"(fn) : "memory", "cc");
    return (u32)rax;
}

static void large_page_code(void)
{
    u64 a = pages_alloc(512, PAGE2), b = pages_alloc(512, PAGE2);
    static const u64 off[] = {0, 0x1000, 0x12340, 0x1ff000};
    bool first = true, second = true, back = true;
    for (unsigned i = 0; i < ARRAY_LEN(off); i++) {
        put_code(a + off[i], 1);
        put_code(b + off[i], 2);
    }
    volatile u8 *va = (volatile u8 *)(PAGE3 + 8 * PAGE2);
    map_level(va, a, RW, 2);
    for (unsigned n = 0; n < 3; n++)
        for (unsigned i = 0; i < ARRAY_LEN(off); i++)
            first &= call(va + off[i]) == 1;
    *(volatile u64 *)pt_entry(va, 2) = b | RW | PTE_PS;
    invlpg(va + 0x5000);
    for (unsigned i = 0; i < ARRAY_LEN(off); i++)
        second &= call(va + off[i]) == 2;
    *(volatile u64 *)pt_entry(va, 2) = a | RW | PTE_PS;
    invlpg(va + PAGE2 - 1);
    for (unsigned i = ARRAY_LEN(off); i--;)
        back &= call(va + off[i]) == 1;
    report("code in a 2 MiB page", first);
    report("the page replaced: invlpg anywhere in it", second);
    report("and back", back);
}

static void small_page_code(void)
{
    u64 a = page_alloc(), b = page_alloc();
    put_code(a + 0x40, 3);
    put_code(b + 0x40, 4);
    map(VA, a, RW);
    bool ok = call(VA + 0x40) == 3 && call(VA + 0x40) == 3;
    *(volatile u64 *)pt_entry(VA, 1) = b | RW;
    WR(cr3, RD(cr3));
    report("a CR3 load ends code of a page that is not global", ok && call(VA + 0x40) == 4);
    if (has(HAS_INVPCID)) {
        struct {
            u64 pcid, address;
        } d = {0, (u64)VA + 0x40};
        *(volatile u64 *)pt_entry(VA, 1) = a | RW;
        asm volatile("invpcid %0, %1" ::"m"(d), "r"(0ull) : "memory");
        report("so does invpcid of its address", call(VA + 0x40) == 3);
    }
    /* An instruction that runs on into the next page; only that page changes. */
    u64 c = page_alloc(), d = page_alloc();
    u8 *p = (u8 *)a + PAGE - 3;
    u32 value = 5;
    map(VA, a, RW);
    map(VA + PAGE, c, RW);
    p[0] = 0xb8;
    memcpy(p + 1, &value, 2);
    *(u32 *)c = 0xc30000;
    *(u32 *)d = 0xc30001;
    ok = call(VA + PAGE - 3) == 5 && call(VA + PAGE - 3) == 5;
    map(VA + PAGE, d, RW);
    report("half of an instruction is remapped", ok && call(VA + PAGE - 3) == 0x10005);
    unmap(VA);
    unmap(VA + PAGE);
}

/* -- Alignment check: every kind of access ----------------------------------------------------------- */

#define AC_ON "pushf; orl $0x40000, (%rsp); popf\n"
USER_ASM("ac_rmw: " AC_ON "lock incl (%rdi); jmp user_return");
USER_ASM("ac_push: " AC_ON "lea 8(%rdi), %rsp; push %rax; jmp user_return");
USER_ASM("ac_rep: " AC_ON "mov $2, %ecx; xor %eax, %eax; cld; rep stosl; jmp user_return");
USER_ASM("ac_word: " AC_ON "mov (%rdi), %ax; jmp user_return");
USER_ASM("ac_byte: " AC_ON "mov (%rdi), %al; jmp user_return");
USER_ASM("ac_quad: " AC_ON "mov %rax, (%rdi); jmp user_return");
USER_ASM("ac_bts: " AC_ON "mov $33, %eax; bts %eax, (%rdi); jmp user_return");
USER_ASM("ac_many: " AC_ON "mov (%rdi), %eax; mov 8(%rdi), %rcx; mov %rax, 16(%rdi); mov 25(%rdi), %edx; jmp user_return");
extern char ac_rmw[], ac_push[], ac_rep[], ac_word[], ac_byte[], ac_quad[], ac_bts[], ac_many[];

static unsigned run_ac(const void *fn, u64 rdi)
{
    struct regs r;
    user_regs(&r, fn, false);
    r.rdi = rdi;
    return user_run(&r);
}

static void alignment(void)
{
    u64 p = (u64)ustack + 64;
    WR(cr0, RD(cr0) | CR0_AM);
    report("#AC: locked", run_ac(ac_rmw, p + 2) == AC && trapped(AC, 0));
    report_eq("aligned", run_ac(ac_rmw, p + 4), VEC_RETURN);
    report("#AC: push", run_ac(ac_push, p + 4) == AC && trap.r.rsp == p + 12);
    report_eq("aligned", run_ac(ac_push, p), VEC_RETURN);
    report("#AC: rep stos", run_ac(ac_rep, p + 1) == AC && trap.r.rcx == 2 && trap.r.rdi == p + 1);
    report_eq("aligned", run_ac(ac_rep, p + 4), VEC_RETURN);
    report("#AC: a word", run_ac(ac_word, p + 1) == AC);
    report_eq("bytes are always", run_ac(ac_byte, p + 1), VEC_RETURN);
    report("#AC: a quadword at 4", run_ac(ac_quad, p + 4) == AC);
    report("#AC: bit string", run_ac(ac_bts, p + 1) == AC);
    report_eq("aligned", run_ac(ac_bts, p), VEC_RETURN);
    report("#AC: the last of four", run_ac(ac_many, p) == AC && trap.r.rip > (u64)ac_many);
    WR(cr0, RD(cr0) & ~CR0_AM);
    report_eq("without AM", run_ac(ac_quad, p + 4), VEC_RETURN);
}

/* -- Single step ---------------------------------------------------------------------------------------- */

static volatile unsigned steps;
static volatile u64 step_rip[16], step_dr6[16];
static void on_step(struct regs *r)
{
    if (steps < 16) {
        step_rip[steps] = r->rip;
        step_dr6[steps] = trap.dr6;
    }
    if (++steps > 100)
        r->rflags &= ~(u64)FL_TF;
    WR(dr6, 0xffff0ff0);
}

static volatile u64 watched_ss __attribute__((aligned(8)));
KERNEL_ASM("step_rep0: pushf; orl $0x100, (%rsp); popf\n s0_1: xor %ecx, %ecx\n s0_2: rep movsb\n s0_3: nop\n"
           "pushf; andl $~0x100, (%rsp); popf; ret");
KERNEL_ASM("ss_watch: mov (%rdi), %ss\n w_1: nop\n w_2: nop\n ret");
extern char step_rep0[], s0_2[], s0_3[], ss_watch[], w_1[], w_2[];

static void stepping(void)
{
    trap_handle(DB, on_step);
    steps = 0;
    asm volatile("call step_rep0" ::"S"(ustack), "D"(ustack) : "rcx", "memory", "cc");
    report("single-step: rep with a count of 0 is one step", step_rip[0] == (u64)s0_2 && step_rip[1] == (u64)s0_3);

    watched_ss = KDS;
    steps = 0;
    WR(dr0, &watched_ss);
    WR(dr7, 0x400 | 1 | (u64)(3 | 3 << 2) << 16); /* 4 bytes, read or write */
    asm volatile("call ss_watch" ::"D"(&watched_ss) : "memory");
    WR(dr7, 0x400);
    report("a data breakpoint of mov ss comes one instruction later",
           steps == 1 && step_rip[0] == (u64)w_2 && (step_dr6[0] & 1));
    trap_handle(DB, NULL);
}

/* -- x87 and vectors -------------------------------------------------------------------------------------- */

static u8 fx[512] __attribute__((aligned(64)));
KERNEL_ASM("fip_run: fninit\n flds (%rdi)\nfip_add: fadds (%rdi)\n ret");
extern char fip_run[], fip_add[];

static void x87(void)
{
    static float operand = 1.5f;
    u16 cw = 0x37f & ~1;
    asm volatile("call fip_run; fxsave64 (%0)" ::"r"(fx), "D"(&operand) : "memory");
    u64 fip = *(u64 *)(fx + 8), fdp = *(u64 *)(fx + 16);
    report("fxsave: FIP is the guest's or 0", fip == (u64)fip_add || !fip);
    report("fxsave: FDP is the guest's or 0", fdp == (u64)&operand || !fdp);

    /* A store that raises an unmasked exception writes nothing, wherever it lies. */
    map(VA, page_alloc(), RW);
    map(VA + PAGE, page_alloc(), RW);
    volatile u32 *across = (volatile u32 *)(VA + PAGE - 2);
    *across = 0x12345678;
    TRY("fninit; fldcw (%0); fldl2e; fscale; fld1; fldl2e; fscale; fmul %%st(0); fmul %%st(0); fmul %%st(0); fmul %%st(0);"
        "fmul %%st(0); fistpl (%1); fnclex; fninit", ::"r"(&cw), "r"(across) : "memory");
    report_eq("fistp with #IA unmasked writes nothing", *across, 0x12345678);
    asm volatile("fninit");

    u64 minus = 0xbff0000000000000;
#define PENDING "fninit; fldl (%1); fldcw (%0); fsqrt;"
    report("#MF comes before the operand's #PF",
           TRY(PENDING "flds (%2)", ::"r"(&cw), "r"(&minus), "r"(PAGE3 + 64 * PAGE)) == MF);
    asm volatile("fninit");
    report("#MF: maskmovq", TRY(PENDING "maskmovq %%mm0, %%mm1", ::"r"(&cw), "r"(&minus), "D"(fx) : "memory") == MF);
    report("#MF: MMX load before its #PF",
           TRY(PENDING "movq (%2), %%mm0", ::"r"(&cw), "r"(&minus), "r"(PAGE3 + 64 * PAGE)) == MF);
    asm volatile("fninit");
}

static void vectors(void)
{
    u32 unmasked = 0x1f80 & ~0x80; /* invalid */
    float minus = -1;
    /* Read behind the fault: flags nobody reads may be stale in its frame (docs). */
    unsigned v = TRY("ldmxcsr %0; stc; sqrtss %1, %%xmm0; setc %%al", ::"m"(unmasked), "m"(minus) : "rax", "cc");
    report("#XM: CF as it was", v == XM && (trap.r.rflags & FL_CF));
    v = TRY("ldmxcsr %0; xor %%eax, %%eax; movss %1, %%xmm1; sqrtss %%xmm1, %%xmm0; setc %%al", ::"m"(unmasked), "m"(minus)
            : "rax", "cc");
    report("#XM: ZF and CF as they were", v == XM && (trap.r.rflags & (FL_CF | FL_ZF)) == FL_ZF);
    unmasked = 0x1f80;
    asm volatile("ldmxcsr %0" ::"m"(unmasked));
    if (!has(HAS_XSAVE) || !has(HAS_AVX))
        return;
    u32 lo, hi;
    WR(cr4, RD(cr4) | CR4_OSXSAVE);
    asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    asm volatile("xsetbv" ::"a"(lo | 7), "d"(hi), "c"(0));
    if (has(HAS_AVX512F)) {
        asm volatile("xsetbv" ::"a"(lo | 0xe7), "d"(hi), "c"(0));
        u64 hole = 0x800000000000, far = PAGE3 + 64 * PAGE;
        report_eq("AVX-512: no lane on: no #GP", TRY("kmovw %0, %%k1; vmovups (%1), %%zmm1%{%%k1%}", ::"r"(0), "r"(hole)), VEC_NONE);
        report_eq("nor #PF", TRY("kmovw %0, %%k1; vmovups %%zmm1, (%1)%{%%k1%}", ::"r"(0), "r"(far)), VEC_NONE);
        report_eq("nor for a broadcast", TRY("kmovw %0, %%k1; vaddps (%1)%{1to16%}, %%zmm0, %%zmm1%{%%k1%}", ::"r"(0), "r"(far)), VEC_NONE);
        v = TRY("kmovw %0, %%k1; vaddps (%1)%{1to16%}, %%zmm0, %%zmm1%{%%k1%}", ::"r"(0x8000), "r"(far));
        report("a broadcast to the last lane does fault", v == PF && faulted(0, (void *)far));
        v = TRY("kmovw %0, %%k1; vmovups (%1), %%zmm1%{%%k1%}", ::"r"(1), "r"(hole));
        report("#GP with a lane on", v == GP && trapped(GP, 0));
        static const u32 want[2] = {0x11111111, 0x22222222};
        volatile u8 *edge = VA + PAGE - 8;
        unmap(VA + PAGE);
        v = TRY("kmovw %0, %%k1; vmovups (%2), %%xmm1; vcompressps %%zmm1, (%1)%{%%k1%}", ::"r"(3), "r"(edge), "r"(want) : "memory");
        report("vcompressps writes what is on and no more", v == VEC_NONE && !memcmp((void *)edge, want, 8));
        v = TRY("kmovw %0, %%k1; vcompressps %%zmm1, (%1)%{%%k1%}", ::"r"(7), "r"(edge) : "memory");
        report("and faults at its third", v == PF && faulted(PF_W, VA + PAGE));
    }
    unmap(VA);
}

/* -- Ports ---------------------------------------------------------------------------------------------------- */

USER_ASM("ins0: xor %ecx, %ecx; mov $0x60, %edx; rep insb; ins0_end: int $0x81");
extern char ins0[];

static void ports(void)
{
    struct regs r;
    user_regs(&r, ins0, false);
    r.rdi = (u64)ustack;
    report("rep ins of nothing needs the port all the same", user_run(&r) == GP && trapped(GP, 0));
}

int main(void)
{
    large_page_code();
    small_page_code();
    if (!on_tcg()) {
        alignment();
        stepping();
        x87();
        vectors();
        ports();
    }
    return 0;
}
