/*
 * exceptions.c - vectors, error codes and return addresses; breakpoints and single-step.
 * Intel SDM vol. 3 ch. 6 (exceptions), ch. 17 (debug).
 */
#include "lib/guest.h"

#define HOLE 0x0000800000000000ull /* not canonical */

/* TRY with a name on the instruction, to check RIP. */
#define TRY_AT(label, code, ...) TRY(".globl " #label "\n" #label ": " code, __VA_ARGS__)
#define RIP_IS(label)            (trap.r.rip == (u64)label)

extern char at_div[], at_ud2[], at_gp[], at_int3[], at_int80[], at_long[];

/* -- Plain faults in the kernel ------------------------------------------------------------- */

static void divide(void)
{
    unsigned v = TRY_AT(at_div, "divl %%ecx", ::"a"(1), "d"(0), "c"(0));
    report("#DE: divl by zero", v == DE && RIP_IS(at_div) && trap.r.err == 0);
    report("#DE keeps the registers", trap.r.rax == 1 && trap.r.rdx == 0 && trap.r.rcx == 0);
    report("#DE: divb overflow", TRY("divb %%cl", ::"a"(0x1000), "c"(1)) == DE);
    report("#DE: divw overflow", TRY("divw %%cx", ::"a"(0), "d"(1), "c"(1)) == DE);
    report("#DE: divq overflow", TRY("divq %%rcx", ::"a"(0), "d"(5ull), "c"(5ull)) == DE);
    report("#DE: idivl INT_MIN / -1",
           TRY("idivl %%ecx", ::"a"(0x80000000), "d"(-1), "c"(-1)) == DE);
    report("#DE: idivq INT_MIN / -1",
           TRY("idivq %%rcx", ::"a"(BIT(63)), "d"(-1ull), "c"(-1ull)) == DE);
    u64 q = 100, r = 0;
    report("div that fits", TRY("divq %2",
                                : "+a"(q), "+d"(r)
                                : "c"(7ull)) == VEC_NONE &&
                                q == 14 && r == 2);
    static volatile u64 zero;
    report("#DE: from memory", TRY("divq %2", : "+a"(q), "+d"(r) : "m"(zero)) == DE);
    report("#PF before #DE", TRY("divq (%2)", : "+a"(q), "+d"(r) : "r"(PAGE3)) == PF);
}

#define UD_CASE(name, bytes) report("#UD: " name, TRY(".byte " bytes, ::) == UD && trap.r.err == 0)

static void undefined(void)
{
    report("#UD: ud2", TRY_AT(at_ud2, "ud2", ::) == UD && RIP_IS(at_ud2));
    UD_CASE("ud1", "0x0f, 0xb9, 0xc0");
    UD_CASE("ud0", "0x0f, 0xff, 0xc0");
    UD_CASE("push es", "0x06");
    UD_CASE("pop es", "0x07");
    UD_CASE("push cs", "0x0e");
    UD_CASE("push ss", "0x16");
    UD_CASE("push ds", "0x1e");
    UD_CASE("daa", "0x27");
    UD_CASE("aaa", "0x37");
    UD_CASE("pusha", "0x60");
    UD_CASE("popa", "0x61");
    UD_CASE("opcode 82", "0x82, 0xc0, 0x00");
    UD_CASE("far call ptr", "0x9a, 0, 0, 0, 0, 0, 0");
    UD_CASE("far jmp ptr", "0xea, 0, 0, 0, 0, 0, 0");
    UD_CASE("into", "0xce");
    UD_CASE("aam", "0xd4, 0x0a");
    UD_CASE("aad", "0xd5, 0x0a");
    UD_CASE("salc", "0xd6");
    UD_CASE("lock nop", "0xf0, 0x90");
    UD_CASE("lock mov", "0xf0, 0x89, 0x00");
    UD_CASE("lock add to a register", "0xf0, 0x01, 0xc0");
    UD_CASE("lock cmp with memory", "0xf0, 0x39, 0x00");
    UD_CASE("mov to cs", "0x8e, 0xc8");
    UD_CASE("mov to segment register 6", "0x8e, 0xf0");
    UD_CASE("mov from segment register 7", "0x8c, 0xf8");
    UD_CASE("mov to cr1", "0x0f, 0x22, 0xc8");
    UD_CASE("mov from cr5", "0x0f, 0x20, 0xe8");
    UD_CASE("mov from cr15", "0x44, 0x0f, 0x20, 0xf8");
    UD_CASE("mov from dr8", "0x44, 0x0f, 0x21, 0xc0");
    UD_CASE("lgdt with a register", "0x0f, 0x01, 0xd7");
    UD_CASE("invlpg with a register other than swapgs/rdtscp", "0x0f, 0x01, 0xfe");
    UD_CASE("lea with a register", "0x8d, 0xc0");
    UD_CASE("les (a VEX prefix without its map)", "0xc4, 0x00, 0x00, 0x00");
    UD_CASE("group 3a with a register", "0x0f, 0xba, 0xc0, 0x00");
    UD_CASE("fe /7", "0xfe, 0xf8");
    UD_CASE("ff /7", "0xff, 0xf8");
    UD_CASE("far call with a register", "0xff, 0xd8");
    UD_CASE("cmpxchg8b with a register", "0x0f, 0xc7, 0xc8");
    UD_CASE("xop space without xop (8f /1)", "0x8f, 0xc8");
    UD_CASE("movbe form of a hole in 0F38", "0x0f, 0x38, 0x7f, 0xc0");
    UD_CASE("hole in 0F3A", "0x0f, 0x3a, 0x77, 0xc0, 0");
    UD_CASE("rex before vex", "0x48, 0xc5, 0xf8, 0x77");
    UD_CASE("lock before vex", "0xf0, 0xc5, 0xf8, 0x77");
    UD_CASE("0f 04", "0x0f, 0x04");
    UD_CASE("0f 24 (mov tr)", "0x0f, 0x24, 0xc0");
    UD_CASE("rsm outside SMM", "0x0f, 0xaa");
    report("15 bytes is an instruction",
           TRY(".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90",
               ::) == VEC_NONE);
    report(
        "16 bytes is #GP(0)",
        TRY_AT(
            at_long,
            ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90",
            ::) == GP &&
            trapped(GP, 0) && RIP_IS(at_long));
}

/* In a function of its own: the trap leaves RBP spoilt, and RSP where it was at the start. */
KERNEL_ASM("load_by_rbp: push %rbp; mov %rdi, %rbp; movq $1f, try_rip; mov %rsp, try_rsp\n"
           "mov (%rbp), %rax\n1: movq $0, try_rip; pop %rbp; ret");
void load_by_rbp(u64 p);

static void protection(void)
{
    report("#GP: non-canonical load", TRY_AT(at_gp, "mov (%0), %%rax", ::"r"(HOLE)
                                             : "rax") == GP &&
                                          trapped(GP, 0) && RIP_IS(at_gp));
    report("#GP: non-canonical store", TRY("mov %%rax, (%0)", ::"r"(HOLE)) == GP && trapped(GP, 0));
    trap_clear();
    load_by_rbp(HOLE);
    unsigned v = trap.vec;
    report("#SS: non-canonical by rbp", v == SS && trapped(SS, 0));
    static u8 pf_stack[4096] __attribute__((aligned(16)));
    tss.ist[4] = (u64)pf_stack + sizeof(pf_stack);
    idt_gate(SS, trap_stub(SS), KCS, 0, 14, 4);
    report("#SS: non-canonical by rsp, on IST",
           TRY("mov %0, %%rsp; mov 8(%%rsp), %%rax", ::"r"(HOLE)
               : "rax") == SS &&
               trapped(SS, 0));
    report("#SS: push", TRY("mov %0, %%rsp; push %%rax", ::"r"(HOLE + 8)) == SS && trapped(SS, 0));
    report("#SS: pop", TRY("mov %0, %%rsp; pop %%rax", ::"r"(HOLE)
                           : "rax") == SS &&
                           trapped(SS, 0));
    report("#SS: call", TRY("mov %0, %%rsp; call at_ud2", ::"r"(HOLE + 8)) == SS && trapped(SS, 0));
    report("#SS: ret", TRY("mov %0, %%rsp; ret", ::"r"(HOLE)) == SS && trapped(SS, 0));
    idt_reset();
    report("#GP: non-canonical jump", TRY("jmp *%0", ::"r"(HOLE)) == GP && trapped(GP, 0));
    report("#GP: non-canonical call", TRY("call *%0", ::"r"(HOLE)) == GP && trapped(GP, 0));
    report("#GP: non-canonical ret", TRY("push %0; ret", ::"r"(HOLE)) == GP && trapped(GP, 0));
    report("#GP: non-canonical through FS", TRY("mov %%fs:(%0), %%rax", ::"r"(HOLE) : "rax") == GP);
    report("#PF: a jump to nowhere", TRY("jmp *%0", ::"r"(PAGE3)) == PF &&
                                         faulted(PF_I, (void *)PAGE3) && trap.r.rip == PAGE3);
    report("#PF: a call to nowhere has pushed its return address",
           TRY("call *%0", ::"r"(PAGE3)) == PF && trap.r.rsp == try_rsp - 8);
    report("#PF: a ret to nowhere has popped",
           TRY("push %0; ret", ::"r"(PAGE3)) == PF && trap.r.rsp == try_rsp);
    report("#GP: movaps unaligned",
           TRY("movaps (%0), %%xmm0", ::"r"((u64)gdt + 8)) == GP && trapped(GP, 0));
    u64 cx[4] __attribute__((aligned(16))) = {0};
    if (has(HAS_CX16))
        report("#GP: cmpxchg16b unaligned", TRY("cmpxchg16b (%0)", ::"r"((u64)cx + 8)
                                                : "rax", "rdx", "memory") == GP &&
                                                trapped(GP, 0));
}

/* -- Gates ------------------------------------------------------------------------------------ */

UTEXT static void user_int50(void)
{
    asm volatile("int $0x50");
}
UTEXT static void user_int51(void)
{
    asm volatile("int $0x51");
}
USER_ASM("user_int3: int3\nuser_int3_end: ret");
USER_ASM("user_int80: int $0x80\nuser_int80_end: ret");
USER_ASM("user_int1: .byte 0xf1\nuser_int1_end: ret");
extern char user_int3[], user_int3_end[], user_int80[], user_int80_end[], user_int1[],
    user_int1_end[], user_ud2[];
USER_ASM("user_ud2: ud2");

static void gates(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) short_idt = {0x50 * 16 - 1, (u64)idt}, full_idt = {4095, (u64)idt};

    unsigned v = TRY_AT(at_int3, "int3", ::);
    report("int3 is a trap: RIP after it", v == BP && trap.r.rip == (u64)at_int3 + 1);
    v = TRY_AT(at_int80, "int $0x80", ::);
    report("int n is a trap: RIP after it", v == 0x80 && trap.r.rip == (u64)at_int80 + 2);
    user_call(user_int3, 0, 0, 0);
    report("#BP from ring 3", trapped(BP, 0) && trap.r.rip == (u64)user_int3_end);
    user_call(user_int80, 0, 0, 0);
    report("int 0x80 from ring 3", trapped(0x80, 0) && trap.r.rip == (u64)user_int80_end);
    user_call(user_int1, 0, 0, 0);
    report("int1 needs no DPL: #DB", trap.vec == DB && trap.r.rip == (u64)user_int1_end);
    user_call(user_int50, 0, 0, 0);
    report("int n, DPL 0, from ring 3 is #GP(n*8+2)", trapped(GP, 0x50 * 8 + 2));

    asm volatile("lidt %0" ::"m"(short_idt));
    report("int n beyond the limit is #GP(n*8+2)",
           TRY("int $0x51", ::) == GP && trapped(GP, 0x51 * 8 + 2));
    user_call(user_int51, 0, 0, 0);
    report("the same from ring 3", trapped(GP, 0x51 * 8 + 2));
    asm volatile("lidt %0" ::"m"(full_idt));

    idt[0x50 * 2] &= ~BIT(47);
    report("gate not present is #NP(n*8+2)",
           TRY("int $0x50", ::) == NP && trapped(NP, 0x50 * 8 + 2));
    idt_gate(0x50, trap_stub(0x50), KCS, 0, 5, 0);
    report("task gate in long mode is #GP(n*8+2)",
           TRY("int $0x50", ::) == GP && trapped(GP, 0x50 * 8 + 2));
    idt_gate(0x50, trap_stub(0x50), 0, 0, 14, 0);
    report("gate with a null selector is #GP(0)", TRY("int $0x50", ::) == GP && trapped(GP, 0));
    idt_gate(0x50, trap_stub(0x50), KDS, 0, 14, 0);
    report("gate to a data segment is #GP(sel)", TRY("int $0x50", ::) == GP && trapped(GP, KDS));
    idt_gate(0x50, trap_stub(0x50), GDT_END, 0, 14, 0);
    report("gate beyond the GDT is #GP(sel)", TRY("int $0x50", ::) == GP && trapped(GP, GDT_END));
    idt_gate(0x50, trap_stub(0x50), KCS32, 0, 14, 0);
    report("gate to a 32-bit segment is #GP(sel)",
           TRY("int $0x50", ::) == GP && trapped(GP, KCS32));
    idt_gate(0x50, trap_stub(0x50), UCS64, 0, 14, 0);
    report("gate to a lower privilege is #GP(sel)",
           TRY("int $0x50", ::) == GP && trapped(GP, UCS64 & ~3));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x1b, 0xa)); /* code, not present */
    idt_gate(0x50, trap_stub(0x50), GDT_FREE, 0, 14, 0);
    report("gate to an absent segment is #NP(sel)",
           TRY("int $0x50", ::) == NP && trapped(NP, GDT_FREE));
    idt_gate(0x50, (void *)HOLE, KCS, 0, 14, 0);
    report("gate to a non-canonical address is #GP(0)",
           TRY("int $0x50", ::) == GP && trapped(GP, 0));
    idt_reset();

    /* Faults while delivering an exception carry EXT. */
    idt[UD * 2] &= ~BIT(47);
    report("#UD through an absent gate is #NP(6*8+3)",
           TRY("ud2", ::) == NP && trapped(NP, UD * 8 + 3));
    user_call(user_ud2, 0, 0, 0);
    report("the same from ring 3", trapped(NP, UD * 8 + 3));
    idt_gate(UD, trap_stub(UD), KDS, 0, 14, 0);
    report("#UD through a data selector is #GP(sel+1)",
           TRY("ud2", ::) == GP && trapped(GP, KDS | 1));
    idt_reset();
    asm volatile("lidt %0" ::"m"(full_idt));
}

/* -- Double fault ----------------------------------------------------------------------------- */

static void double_fault(void)
{
    report("#PF on a bad stack is #DF(0) on its IST stack",
           TRY("mov %0, %%rsp; push %%rax", ::"r"(PAGE3 + 64)) == DF && trapped(DF, 0));
    report_eq("with the bad RSP in the frame", trap.r.rsp, PAGE3 + 64);
    report("#UD with no stack is #PF then... #DF or #PF on IST",
           TRY("mov %0, %%rsp; ud2", ::"r"(PAGE3 + 64)) == DF && trapped(DF, 0));
    report("#SS with no stack is #DF",
           TRY("mov %0, %%rsp; push %%rax", ::"r"(HOLE)) == DF && trapped(DF, 0));
    idt[PF * 2] &= ~BIT(47);
    report("#PF through an absent gate is #DF", TRY("mov (%0), %%rax", ::"r"(PAGE3)
                                                    : "rax") == DF &&
                                                    trapped(DF, 0));
    idt[GP * 2] &= ~BIT(47);
    report("#GP through an absent gate is #DF", TRY("mov (%0), %%rax", ::"r"(HOLE)
                                                    : "rax") == DF &&
                                                    trapped(DF, 0));
    idt_reset();
    /* Contributory after benign is delivered one after the other: #UD, absent gate, #NP. */
    idt[DE * 2] &= ~BIT(47);
    report("#DE through an absent gate is #DF", TRY("divl %%ecx", ::"a"(1), "d"(0), "c"(0)) == DF);
    idt_reset();

    /* A TSS too short for the wanted IST entry. */
    u64 tss_was = gdt[TSS_SEL / 8] & ~BIT(41);
    gdt_set(TSS_SEL, (tss_was & ~0xffffull) | 43); /* ends after IST1 */
    asm volatile("ltr %w0" ::"r"(TSS_SEL));
    idt_gate(0x50, trap_stub(0x50), KCS, 0, 14, 2);
    report("int n through an IST beyond the TSS limit is #TS(tss)",
           TRY("int $0x50", ::) == TS && trapped(TS, TSS_SEL));
    gdt_set(TSS_SEL, tss_was);
    asm volatile("ltr %w0" ::"r"(TSS_SEL));
    idt_reset();
}

/* -- What ring 3 may not do -------------------------------------------------------------------- */

#define USER_GP(name, code) USER_ASM("ugp_" #name ": " code "\n ret");
#define USER_GP_LIST(X)                                                                            \
    X(hlt, "hlt")                                                                                  \
    X(cli, "cli")                                                                                  \
    X(sti, "sti")                                                                                  \
    X(in, "in $0x80, %al")                                                                         \
    X(out, "out %al, $0x80")                                                                       \
    X(indx, "mov $0x3f8, %dx; in %dx, %eax")                                                       \
    X(insb, "mov $0x3f8, %dx; lea -64(%rsp), %rdi; insb")                                          \
    X(outsb, "mov $0x3f8, %dx; lea -64(%rsp), %rsi; outsb")                                        \
    X(rd_cr0, "mov %cr0, %rax")                                                                    \
    X(wr_cr0, "mov %rax, %cr0")                                                                    \
    X(rd_cr3, "mov %cr3, %rax")                                                                    \
    X(rd_cr8, "mov %cr8, %rax")                                                                    \
    X(wr_cr8, "mov %rax, %cr8")                                                                    \
    X(rd_dr7, "mov %dr7, %rax")                                                                    \
    X(wr_dr0, "mov %rax, %dr0")                                                                    \
    X(rdmsr, "mov $0xc0000080, %ecx; rdmsr")                                                       \
    X(wrmsr, "mov $0xc0000080, %ecx; wrmsr")                                                       \
    X(lgdt, "lgdt -64(%rsp)")                                                                      \
    X(lidt, "lidt -64(%rsp)")                                                                      \
    X(lldt, "xor %eax, %eax; lldt %ax")                                                            \
    X(ltr, "mov $0x40, %eax; ltr %ax")                                                             \
    X(lmsw, "lmsw %ax")                                                                            \
    X(clts, "clts")                                                                                \
    X(invlpg, "invlpg (%rsp)")                                                                     \
    X(invd, "invd")                                                                                \
    X(wbinvd, "wbinvd")                                                                            \
    X(swapgs, "swapgs")                                                                            \
    X(sysret, "sysretq")                                                                           \
    X(noncanonical, "mov $1, %rax; shl $47, %rax; mov (%rax), %rax")
#define X(n, c) USER_GP(n, c)
USER_GP_LIST(X)
#undef X
#define X(n, c) extern char ugp_##n[];
USER_GP_LIST(X)
#undef X
static const struct {
    const char *name;
    char *code;
} user_gp[] = {
#define X(n, c) {#n, ugp_##n},
    USER_GP_LIST(X)
#undef X
};
USER_ASM("user_in80: in $0x80, %al\n ret");
USER_ASM("user_inl: mov $0x7e, %dx; in %dx, %eax\n ret");
USER_ASM("user_stac: stac\n ret");
USER_ASM("user_rdtsc: rdtsc\n ret");
USER_ASM("user_cli: cli; pushf; pop %rax; sti\n ret");
USER_ASM("user_popf: push %rdi; popf; pushf; pop %rax\n ret");
extern char user_in80[], user_inl[], user_stac[], user_rdtsc[], user_cli[], user_popf[];

static void user_rights(void)
{
    for (unsigned i = 0; i < ARRAY_LEN(user_gp); i++) {
        user_call(user_gp[i].code, 0, 0, 0);
        bool ok = trapped(GP, 0);
        reportf(ok, "ring 3: %s is #GP(0)", user_gp[i].name);
    }
    if (has(HAS_SMAP)) {
        user_call(user_stac, 0, 0, 0);
        report("ring 3: stac is #UD", trapped(UD, 0));
    }
    tss.bitmap[0x80 / 8] &= (u8)~1;
    user_call(user_in80, 0, 0, 0);
    report_eq("an open port in the I/O bitmap", trap.vec, VEC_RETURN);
    tss.bitmap[0x7e / 8] &= (u8)~0xc0;
    user_call(user_inl, 0, 0, 0);
    report("in of 4 bytes needs all four bits", trapped(GP, 0));
    tss.bitmap[0x81 / 8] &= (u8)~2;
    user_call(user_inl, 0, 0, 0);
    report_eq("which it may have, across a byte of the map", trap.vec, VEC_RETURN);
    tss.bitmap[0x7e / 8] = tss.bitmap[0x80 / 8] = 0xff;

    struct regs r;
    user_regs(&r, user_cli, false);
    r.rflags |= FL_IOPL | FL_IF;
    *(u64 *)(r.rsp -= 8) = (u64)user_return;
    report_eq("IOPL 3: cli and sti in ring 3", user_run(&r), VEC_RETURN);
    report_eq("IOPL 3: cli cleared IF", trap.r.rax & FL_IF, 0);
    report_eq("IOPL 3: sti set it", trap.r.rflags & FL_IF, FL_IF);
    u64 fl = user_call(user_popf, FL_IF | FL_IOPL | FL_AC | FL_ID | FL_NT | FL_DF | FL_ARITH, 0, 0);
    report_eq("popf in ring 3 changes neither IF nor IOPL", fl,
              EFLAGS_FIXED | FL_AC | FL_ID | FL_NT | FL_DF | FL_ARITH);
    WR(cr4, RD(cr4) | CR4_TSD);
    user_call(user_rdtsc, 0, 0, 0);
    report("TSD: rdtsc in ring 3 is #GP(0)", trapped(GP, 0));
    report_eq("TSD: rdtsc in ring 0 is fine", TRY("rdtsc", ::: "rax", "rdx"), VEC_NONE);
    WR(cr4, RD(cr4) & ~CR4_TSD);
    user_call(user_rdtsc, 0, 0, 0);
    report_eq("rdtsc in ring 3", trap.vec, VEC_RETURN);
}

/* -- Alignment check ------------------------------------------------------------------------- */

USER_ASM("user_ac: pushf; orl $0x40000, (%rsp); popf; mov (%rdi), %eax; ret");
extern char user_ac[];

static void alignment(void)
{
    WR(cr0, RD(cr0) | CR0_AM);
    user_call(user_ac, (u64)ustack + 1, 0, 0);
    report("#AC(0) in ring 3 with AM and AC", trapped(AC, 0));
    user_call(user_ac, (u64)ustack + 4, 0, 0);
    report_eq("aligned: none", trap.vec, VEC_RETURN);
    WR(cr0, RD(cr0) & ~CR0_AM);
    user_call(user_ac, (u64)ustack + 1, 0, 0);
    report_eq("without AM: none", trap.vec, VEC_RETURN);
    report_eq(
        "never in ring 0",
        TRY("pushf; orl $0x40000, (%%rsp); popf; mov 1(%0), %%eax; pushf; andl $~0x40000, (%%rsp); popf",
            ::"r"(ustack)
            : "rax"),
        VEC_NONE);
}

/* -- Single step ------------------------------------------------------------------------------- */

enum { MAX_STEPS = 64 };
static volatile u64 steps[MAX_STEPS], step_dr6[MAX_STEPS], step_rflags[MAX_STEPS];
static volatile unsigned nr_steps;

static void on_step(struct regs *r)
{
    if (nr_steps < MAX_STEPS) {
        steps[nr_steps] = r->rip;
        step_dr6[nr_steps] = trap.dr6;
        step_rflags[nr_steps] = r->rflags;
    }
    if (nr_steps++ > 200)
        r->rflags &= ~(u64)FL_TF;
    WR(dr6, 0xffff0ff0);
}

static bool stepped(unsigned n, const char *const *where)
{
    bool ok = nr_steps == n;
    for (unsigned i = 0; i < n && i < nr_steps; i++)
        ok &= steps[i] == (u64)where[i] && (step_dr6[i] & 0xe00f) == 0x4000;
    if (!ok) {
        print("# %u steps, want %u:", nr_steps, n);
        for (unsigned i = 0; i < nr_steps && i < 12; i++)
            print(" %lx(dr6 %lx)", steps[i], step_dr6[i]);
        print("; want:");
        for (unsigned i = 0; i < n && i < 12; i++)
            print(" %lx", (u64)where[i]);
        print("\n");
    }
    return ok;
}

#define TF_ON  "pushf; orl $0x100, (%rsp); popf\n"
#define TF_OFF "pushf\n andl $~0x100, (%rsp)\n"
KERNEL_ASM("step_plain: " TF_ON "sp_1: nop\nsp_2: add $1, %rax\nsp_3: jmp sp_5\nsp_4: nop\n"
           "sp_5: call sp_sub\nsp_6: " TF_OFF "sp_7: popf\nsp_8: nop\n ret\n"
           "sp_sub: ret\n");
extern char step_plain[], sp_2[], sp_3[], sp_5[], sp_sub[], sp_6[], sp_7[], sp_8[];
KERNEL_ASM("step_shadow: mov %ss, %ecx\n" TF_ON
           "ss_1: nop\nss_2: mov %ecx, %ss\nss_3: nop\nss_4: nop\nss_5: " TF_OFF
           "popf\nss_6: ret\n");
extern char step_shadow[], ss_2[], ss_4[], ss_5[], ss_6[];
KERNEL_ASM("step_rep: lea 64(%rdi), %rsi; mov $3, %ecx; cld\n" TF_ON
           "sr_1: rep movsb\nsr_2: nop\nsr_3: " TF_OFF "popf\nsr_4: ret\n");
extern char step_rep[], sr_1[], sr_2[], sr_3[], sr_4[];
/* iretq that sets TF: the first instruction after it runs, then the trap. */
KERNEL_ASM(
    "step_iret: mov %ss, %ecx; mov %rsp, %rax; push %rcx; push %rax; pushf; orl $0x100, (%rsp)\n"
    "mov %cs, %ecx; push %rcx; push $si_1; iretq\nsi_1: nop\nsi_2: nop\nsi_3: " TF_OFF
    "popf\nsi_4: ret\n");
extern char step_iret[], si_2[], si_3[], si_4[];
USER_ASM("step_user: nop\nsu_1: nop\nsu_2: int $0x81");
extern char step_user[], su_1[], su_2[];
USER_ASM("step_syscall: nop\nsc_1: syscall\nsc_2: nop");
extern char step_syscall[], sc_1[], sc_2[];
KERNEL_ASM("step_fault: " TF_ON "sf_1: mov (%rdi), %rax\nsf_2: nop\n" TF_OFF "popf\n ret");
extern char step_fault[], sf_1[], sf_2[];
KERNEL_ASM("step_int: " TF_ON "st_1: nop\nst_2: int $0x52\nst_3: nop\nst_4: " TF_OFF
           "popf\nst_5: ret");
extern char step_int[], st_2[], st_3[], st_4[], st_5[];

static volatile unsigned ints_seen;
static volatile u64 int_rflags;
static void on_int52(struct regs *r)
{
    ints_seen++;
    asm volatile("pushf; pop %0" : "=r"(int_rflags));
}

#define STEP(fn)                                                                                   \
    (nr_steps = 0, ({                                                                              \
         asm volatile("call " #fn ::"D"(ustack) : "rax", "rcx", "rsi", "memory", "cc");            \
     }))
#define PUSHF_END(label) (label) + 1, (label) + 8 /* pushf; andl $imm32, (%rsp) */

static void single_step(void)
{
    trap_handle(DB, on_step);
    STEP(step_plain);
    const char *const plain[] = {sp_2, sp_3, sp_5, sp_sub, sp_6, sp_6 + 1, sp_7, sp_8};
    report("single-step: popf, jmp, call, ret, popf off", stepped(8, plain));
    report_eq("the frame has TF", step_rflags[0] & FL_TF, FL_TF);

    STEP(step_shadow);
    const char *const shadow[] = {ss_2, ss_4, ss_5, ss_5 + 1, ss_6 - 1, ss_6};
    report("single-step: none between mov ss and the next", stepped(6, shadow));

    STEP(step_rep);
    const char *const rep[] = {sr_1, sr_1, sr_2, sr_3, sr_3 + 1, sr_4 - 1, sr_4};
    report("single-step: every iteration of rep movsb", stepped(7, rep));

    STEP(step_iret);
    const char *const iret[] = {si_2, si_3, si_3 + 1, si_4 - 1, si_4};
    report("single-step: set by iretq", stepped(5, iret));

    trap_handle(0x52, on_int52);
    STEP(step_int);
    /* int n clears TF on its way in; iretq sets it again, and the instruction after is stepped. */
    const char *const ints[] = {st_2, st_4, st_4 + 1, st_5 - 1, st_5};
    report("single-step: int n is stepped over", stepped(5, ints));
    report("TF is clear in the handler", ints_seen == 1 && !(int_rflags & FL_TF));

    /* A fault under TF: the frame of the fault has TF, no #DB for the instruction that faulted. */
    trap_handle(DB, on_step);
    nr_steps = 0;
    unsigned v = TRY("call step_fault", ::"D"(PAGE3) : "rax", "memory");
    report("single-step: a fault comes alone", v == PF && nr_steps == 0 && (trap.r.rflags & FL_TF));

    struct regs r;
    user_regs(&r, step_user, false);
    r.rflags |= FL_TF;
    nr_steps = 0;
    v = user_run(&r);
    const char *const user[] = {su_1, su_2};
    report("single-step: ring 3", v == VEC_RETURN && stepped(2, user));

    wrmsr(MSR_STAR, (u64)(UCS32) << 48 | (u64)KCS << 32);
    wrmsr(MSR_LSTAR, (u64)syscall_leave);
    wrmsr(MSR_SFMASK, FL_TF | FL_IF | FL_DF | FL_AC);
    user_regs(&r, step_syscall, false);
    r.rflags |= FL_TF;
    nr_steps = 0;
    v = user_run(&r);
    report("single-step: syscall with TF masked ends the stepping",
           v == VEC_SYSCALL && nr_steps == 1 && steps[0] == (u64)sc_1);
    report("r11 has TF after it", trap.r.r11 & FL_TF);
    trap_handle(DB, NULL);
}

/* -- Debug registers --------------------------------------------------------------------------- */

#define DR7_L(n)              (1ull << (2 * (n)))
#define DR7_RWLEN(n, rw, len) ((u64)((rw) | ((len)-1) << 2) << (16 + 4 * (n)))
enum { DR_X = 0, DR_W = 1, DR_IO = 2, DR_RW = 3 };

static volatile u64 watched[4] __attribute__((aligned(64)));

KERNEL_ASM("bp_code: nop\nbp_1: nop\nbp_2: nop\n ret");
extern char bp_code[], bp_1[], bp_2[];
extern char at_w1[], at_w2[];

static void on_bp(struct regs *r)
{
    on_step(r);
    r->rflags |= FL_RF;
}

static void breakpoints(void)
{
    WR(dr7, 0);
    report_eq("DR7 reads its fixed bit", RD(dr7), 0x400);
    WR(dr6, 0);
    report_eq("DR6 reads its fixed bits", RD(dr6) & ~BIT(11) & ~BIT(16),
              0xffff0ff0 & ~BIT(11) & ~BIT(16));
    report("DR7 with high bits is #GP(0)",
           TRY("mov %0, %%dr7", ::"r"(BIT(32))) == GP && trapped(GP, 0));
    report("DR6 with high bits is #GP(0)",
           TRY("mov %0, %%dr6", ::"r"(BIT(32))) == GP && trapped(GP, 0));
    WR(dr0, 0x123456789abc);
    WR(dr3, 0xffff800000000000ull);
    report("DR0 and DR3 keep their values",
           RD(dr0) == 0x123456789abc && RD(dr3) == 0xffff800000000000ull);
    report_eq("DR4 is DR6 without DE", TRY("mov %%dr4, %%rax", ::: "rax"), VEC_NONE);
    WR(cr4, RD(cr4) | CR4_DE);
    report("DR4 is #UD with DE", TRY("mov %%dr4, %%rax", ::: "rax") == UD);
    report("DR5 is #UD with DE", TRY("mov %%rax, %%dr5", ::) == UD);
    WR(cr4, RD(cr4) & ~CR4_DE);

    WR(dr7, BIT(13) | 0x400);
    unsigned v = TRY("mov %%dr0, %%rax", ::: "rax");
    report("general detect: #DB with BD", v == DB && (trap.dr6 & 0xe00f) == 0x2000);
    report_eq("general detect clears GD", RD(dr7) & BIT(13), 0);
    WR(dr6, 0xffff0ff0);

    trap_handle(DB, on_bp);
    WR(dr1, bp_1);
    WR(dr7, DR7_L(1) | DR7_RWLEN(1, DR_X, 1));
    nr_steps = 0;
    asm volatile("call bp_code" ::: "memory");
    report("instruction breakpoint: before it, once",
           nr_steps == 1 && steps[0] == (u64)bp_1 && (step_dr6[0] & 0xe00f) == 2);
    nr_steps = 0;
    for (int i = 0; i < 100; i++)
        asm volatile("call bp_code" ::: "memory");
    report_eq("instruction breakpoint: each time", nr_steps, 100);
    WR(dr7, DR7_L(1) << 1);
    nr_steps = 0;
    asm volatile("call bp_code" ::: "memory");
    report_eq("G1 works as L1 does", nr_steps, 1);
    WR(dr7, 0);
    asm volatile("call bp_code" ::: "memory");
    report_eq("switched off", nr_steps, 1);

    WR(dr0, &watched[1]);
    WR(dr7, DR7_L(0) | DR7_RWLEN(0, DR_W, 4));
    nr_steps = 0;
    asm volatile(".globl at_w1\n.globl at_w2\nat_w1: movl $7, %0\nat_w2: nop" : "=m"(watched[1]));
    report("write watch: after the write", nr_steps == 1 && steps[0] == (u64)at_w2 &&
                                               watched[1] == 7 && (step_dr6[0] & 0xe00f) == 1);
    nr_steps = 0;
    asm volatile("movl %0, %%eax" ::"m"(watched[1]) : "rax");
    report_eq("write watch: not on reads", nr_steps, 0);
    asm volatile("movl $1, 4+%0; movl $1, -4+%0" : "+m"(watched[1])::"memory");
    report_eq("write watch: not on neighbours", nr_steps, 0);
    asm volatile("movq $1, -5+%0" : "+m"(watched[1])::"memory");
    report_eq("write watch: a misaligned write that overlaps", nr_steps, 1);
    nr_steps = 0;
    asm volatile("lock incl %0" : "+m"(watched[1]));
    report_eq("write watch: locked", nr_steps, 1);
    WR(dr7, DR7_L(0) | DR7_RWLEN(0, DR_RW, 4));
    nr_steps = 0;
    asm volatile("movl %0, %%eax" ::"m"(watched[1]) : "rax");
    report_eq("read/write watch: read", nr_steps, 1);
    asm volatile("push %0; pop %%rax" ::"m"(watched[1]) : "rax");
    report_eq("read/write watch: push from memory", nr_steps, 2);
    nr_steps = 0;
    asm volatile("movups %%xmm0, %0" : "=m"(watched[0])::"memory");
    report_eq("read/write watch: 16-byte store", nr_steps, 1);
    nr_steps = 0;
    asm volatile("rep stosb" ::"D"(watched), "c"(32), "a"(0) : "memory");
    report("read/write watch: rep stosb stops there", nr_steps >= 1 && nr_steps <= 4);
    WR(dr0, watched);
    WR(dr7, DR7_L(0) | (u64)(DR_W | 2 << 2) << 16); /* length 10b: 8 bytes */
    nr_steps = 0;
    asm volatile("movb $1, 7+%0" : "+m"(watched[0])::"memory");
    report_eq("write watch of 8 bytes: the last", nr_steps, 1);
    WR(dr7, 0);
    trap_handle(DB, NULL);

    WR(dr2, bp_1);
    WR(dr7, DR7_L(2));
    v = TRY("call bp_code", ::: "memory");
    report_eq("the frame of an instruction breakpoint has RF clear", trap.r.rflags & FL_RF, 0);
    WR(dr7, 0);
    TRY("mov (%0), %%rax", ::"r"(PAGE3) : "rax");
    report_eq("the frame of a fault has RF set", trap.r.rflags & FL_RF, FL_RF);
    TRY("int3", ::);
    report_eq("the frame of a trap has RF clear", trap.r.rflags & FL_RF, 0);
    WR(dr6, 0xffff0ff0);
}

int main(void)
{
    divide();
    undefined();
    protection();
    gates();
    double_fault();
    user_rights();
    alignment();
    single_step();
    breakpoints();
    return 0;
}
