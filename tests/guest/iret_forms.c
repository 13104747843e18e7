/*
 * iret_forms.c - iret in its three widths, to every kind of segment, and each reason to refuse.
 * Intel SDM vol. 2 IRET; AMD APM vol. 3 IRET where they differ.
 */
#include "lib/guest.h"

#define HOLE 0x0000800000000000ull

static UDATA struct {
    u64 rip, cs, rflags, rsp, ss;
} uframe = {0, 0, 0, 0, 0};

/* A frame that "returns" to the recovery label, with one thing wrong. */
static unsigned iret_to(u64 rip, u64 cs, u64 rflags, u64 rsp, u64 ss)
{
    return TRY("pushq %4; pushq %3; pushq %2; pushq %1; pushq %0; iretq\n", ::"r"(rip), "r"(cs),
               "r"(rflags), "r"(rsp), "r"(ss)
               : "memory", "cc");
}

static unsigned user_to(u64 cs, u64 ss, u64 rip)
{
    struct regs r;
    user_regs(&r, (void *)rip, false);
    r.cs = cs;
    r.ss = ss;
    return user_run(&r);
}

/* In ring 3: iretq over the frame that RDI points to. */
USER_ASM(
    "user_iret: push 32(%rdi); push 24(%rdi); push 16(%rdi); push 8(%rdi); push (%rdi); iretq");
USER_ASM("user_target: mov %rsp, %rbx; mov %cs, %ecx; mov %ss, %edx; pushf; pop %rax; int $0x81");
USER_ASM("user_seg: mov %ds, %eax; mov %es, %ebx; mov %fs, %ecx; mov %gs, %edx; int $0x81");
USER_ASM_32(
    "user32: mov %esp, %ebx; mov %cs, %ecx; .byte 0x40; int $0x81"); /* inc %eax, a REX in 64-bit */
extern char user_iret[], user_target[], user_seg[], user32[];

KERNEL_ASM("iret_same: mov %rsp, %rax; lea -256(%rsp), %rdx\n"
           "push %rdi; push %rdx; pushf; mov %cs, %ecx; push %rcx; push $1f; iretq\n"
           "1: mov %rsp, %rdx; mov %rax, %rsp; sub %rdx, %rax; ret");
KERNEL_ASM(
    "iret_32: mov %rsp, %rax; sub $20, %rsp; movl %ss, %ecx; mov %ecx, 16(%rsp); mov %eax, 12(%rsp)\n"
    "pushf; pop %rcx; mov %ecx, 8(%rsp); mov %cs, %ecx; mov %ecx, 4(%rsp); movl $1f, (%rsp); iretl\n"
    "1: ret");
KERNEL_ASM(
    "iret_16: mov %rsp, %rax; sub $10, %rsp; movl %ss, %ecx; mov %cx, 8(%rsp); mov %ax, 6(%rsp)\n"
    "pushf; pop %rcx; mov %cx, 4(%rsp); mov %cs, %ecx; mov %cx, 2(%rsp); movw %di, (%rsp); iretw\n");
KERNEL_ASM(
    "iret_flags: mov %rsp, %rax; mov %ss, %ecx; push %rcx; push %rax; push %rdi; mov %cs, %ecx\n"
    "push %rcx; push $1f; iretq\n1: pushf; pop %rax; push $2; popf; ret");
KERNEL_ASM("wrong_target: ud2"); /* an iret that should have been refused shows as #UD */
extern char wrong_target[];
u64 iret_same(u64 ss), iret_32(void), iret_flags(u64 flags);
void iret_16(u64 ip);

static void same_ring(void)
{
    report_eq("same ring pops RSP", iret_same(KDS), 256);
    report_eq("same ring with a null SS", iret_same(0), 256);
    report_eq("and SS reads null", RDSEG(ss), 0);
    asm volatile("push %%rax; pop %%rax; mov %0, %%ss" ::"r"((u32)KDS) : "memory");
    report_eq("iretl in 64-bit mode", (iret_32(), 1), 1);
    memcpy((void *)0x8000, "\x48\x89\xc4\xc3", 4); /* mov %rax, %rsp; ret */
    iret_16(0x8000);
    report_eq("iretw to a 16-bit RIP", 1, 1);
    report_eq("flags: arithmetic, DF, AC, ID, NT",
              iret_flags(FL_ARITH | FL_DF | FL_AC | FL_ID | FL_NT | 2),
              FL_ARITH | FL_DF | FL_AC | FL_ID | FL_NT | 2);
    report_eq("flags: fixed bits stay",
              iret_flags(~(u64)(FL_TF | FL_IF | FL_RF | BIT(17) | BIT(19) | BIT(20)) & 0xffffffff),
              (0x7fd7 & ~(FL_TF | FL_IF)) | FL_AC | FL_ID);
    report_eq("flags: IOPL", iret_flags(FL_IOPL | 2), FL_IOPL | 2);
    report_eq("flags: all clear", iret_flags(0), 2);

    report("NT set: #GP(0)", TRY("pushf; orl $0x4000, (%%rsp); popf; iretq", ::
                                     : "cc") == GP &&
                                 trapped(GP, 0));
}

static void refused(void)
{
    u64 here = (u64)wrong_target, rsp = RD(rsp) - 2048; /* below all frames in use */
    report("null CS: #GP(0)", iret_to(here, 0, 2, rsp, KDS) == GP && trapped(GP, 0));
    report("null CS with RPL 3: #GP(0)", iret_to(here, 3, 2, rsp, KDS) == GP && trapped(GP, 0));
    report("CS beyond the GDT: #GP(sel)",
           iret_to(here, GDT_END, 2, rsp, KDS) == GP && trapped(GP, GDT_END));
    report("CS in an empty LDT: #GP(sel)",
           iret_to(here, 0x0c, 2, rsp, KDS) == GP && trapped(GP, 0x0c));
    report("CS a data segment: #GP(sel)",
           iret_to(here, KDS, 2, rsp, KDS) == GP && trapped(GP, KDS));
    report("CS a TSS: #GP(sel)", iret_to(here, TSS_SEL, 2, rsp, KDS) == GP && trapped(GP, TSS_SEL));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x1b, 0xa));
    report("CS absent: #NP(sel)",
           iret_to(here, GDT_FREE, 2, rsp, KDS) == NP && trapped(NP, GDT_FREE));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x9b, 0xe));
    report("CS with L and D: #GP(sel)",
           iret_to(here, GDT_FREE, 2, rsp, KDS) == GP && trapped(GP, GDT_FREE));
    report("CS with DPL != RPL: #GP(sel)",
           iret_to(here, KCS | 3, 2, rsp, UDS) == GP && trapped(GP, KCS));
    report("CS with DPL 3 and RPL 0: #GP(sel)",
           iret_to(here, UCS64 & ~3, 2, rsp, KDS) == GP && trapped(GP, UCS64 & ~3));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0xff, 0xa)); /* conforming, DPL 3 */
    report("CS conforming with DPL > RPL: #GP(sel)",
           iret_to(here, GDT_FREE, 2, rsp, KDS) == GP && trapped(GP, GDT_FREE));
    report("RIP not canonical: #GP(0)", iret_to(HOLE, KCS, 2, rsp, KDS) == GP && trapped(GP, 0));
    report("SS null to ring 3: #GP(0)", user_to(UCS64, 0, here) == GP && trapped(GP, 0));
    report("SS null with RPL 3 to ring 3: #GP(0)", user_to(UCS64, 3, here) == GP && trapped(GP, 0));
    report("SS with the wrong RPL: #GP(sel)",
           user_to(UCS64, UDS & ~3, here) == GP && trapped(GP, UDS & ~3));
    report("SS with the wrong DPL: #GP(sel)",
           user_to(UCS64, KDS | 3, here) == GP && trapped(GP, KDS));
    report("SS a code segment: #GP(sel)",
           user_to(UCS64, UCS32, here) == GP && trapped(GP, UCS32 & ~3));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0xf1, 0xc));
    report("SS read-only: #GP(sel)",
           user_to(UCS64, GDT_FREE | 3, here) == GP && trapped(GP, GDT_FREE));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x73, 0xc));
    /* The SDM has it #SS, Bochs and QEMU #NP after the older manuals. */
    unsigned v = user_to(UCS64, GDT_FREE | 3, here);
    report("SS absent: #SS(sel) or #NP(sel)", (v == SS || v == NP) && trap.r.err == GDT_FREE);
    report("SS beyond the GDT: #GP(sel)",
           user_to(UCS64, GDT_END | 3, here) == GP && trapped(GP, GDT_END));
    report("to ring 3, RIP not canonical: #GP(0)",
           user_to(UCS64, UDS, HOLE) == GP && trapped(GP, 0));
    report("the refused iret is still in ring 0", trap.r.cs == KCS);
    report("absent stack under iretq: #PF, so #DF",
           TRY("mov %0, %%rsp; iretq", ::"r"(PAGE3 + 256)) == DF);
}

static void outward(void)
{
    struct regs r;
    user_regs(&r, user_target, false);
    r.rflags = 2 | FL_ARITH | FL_AC | FL_ID;
    r.rsp = 0x12345678;
    map((void *)0x50000000, page_alloc(), PTE_P | PTE_W | PTE_U);
    r.rsp = 0x50000f00;
    report_eq("to ring 3", user_run(&r), VEC_RETURN);
    report("RSP, CS, SS, RFLAGS arrive", trap.r.rbx == 0x50000f00 && trap.r.rcx == UCS64 &&
                                             trap.r.rdx == UDS &&
                                             trap.r.rax == (2 | FL_ARITH | FL_AC | FL_ID));
    map((void *)0xffff900000000000ull, page_alloc(), PTE_P | PTE_W | PTE_U);
    r.rsp = 0xffff900000000800ull;
    report("RSP in the upper half",
           user_run(&r) == VEC_RETURN && trap.r.rbx == 0xffff900000000800ull);

    user_regs(&r, user32, true);
    r.rax = 41;
    report_eq("to compatibility mode", user_run(&r), VEC_RETURN);
    report("32-bit decoding there", trap.r.rax == 42 && trap.r.rcx == UCS32);
    r.rip |= BIT(32);
    r.rsp |= BIT(40);
    unsigned v = user_run(&r);
    report("to compatibility mode: the upper half of RIP and RSP is dropped or refused",
           (v == VEC_RETURN && trap.r.rbx == (u32)r.rsp) || v == GP);

    /* Data segments that ring 3 may not have are gone after the return. */
    asm volatile("mov %0, %%ds; mov %0, %%es; mov %1, %%fs; mov %0, %%gs" ::"r"((u32)KDS),
                 "r"((u32)UDS));
    user_regs(&r, user_seg, false);
    v = user_run(&r);
    report("DS, ES, GS with DPL 0 become null",
           v == VEC_RETURN && (u16)trap.r.rax == 0 && (u16)trap.r.rbx == 0 && (u16)trap.r.rdx == 0);
    report_eq("FS with DPL 3 stays", (u16)trap.r.rcx, UDS);
    asm volatile("mov %0, %%fs; mov %0, %%gs" ::"r"(0));
}

static void inside_ring3(void)
{
    uframe.rip = (u64)user_target;
    uframe.cs = UCS64;
    uframe.ss = UDS;
    uframe.rsp = (u64)ustack + 4096;
    uframe.rflags = FL_ARITH | FL_AC | FL_IF | FL_IOPL | FL_ID | FL_NT | 2;
    user_call(user_iret, (u64)&uframe, 0, 0);
    report("ring 3 to ring 3", trap.vec == VEC_RETURN && trap.r.rbx == uframe.rsp);
    report_eq("IF and IOPL are kept", trap.r.rax, FL_ARITH | FL_AC | FL_ID | FL_NT | 2);
    uframe.rflags = 2;
    uframe.cs = KCS;
    user_call(user_iret, (u64)&uframe, 0, 0);
    report("ring 3 to ring 0: #GP(sel)", trapped(GP, KCS));
    uframe.cs = KCS | 3;
    user_call(user_iret, (u64)&uframe, 0, 0);
    report("ring 3 to a ring 0 segment with RPL 3: #GP(sel)", trapped(GP, KCS));
    uframe.cs = UCS64;
    uframe.ss = KDS;
    user_call(user_iret, (u64)&uframe, 0, 0);
    report("ring 3 with a ring 0 SS: #GP(sel)", trapped(GP, KDS));
    uframe.ss = 3;
    user_call(user_iret, (u64)&uframe, 0, 0);
    report("ring 3 with a null SS: #GP(0)", trapped(GP, 0));
    uframe.ss = UDS;
    uframe.rip = HOLE;
    user_call(user_iret, (u64)&uframe, 0, 0);
    report("ring 3 to a non-canonical RIP: #GP(0)", trapped(GP, 0));
    uframe.rip = (u64)user32;
    uframe.cs = UCS32;
    user_call(user_iret, (u64)&uframe, 0, 0);
    report("ring 3 from 64-bit to 32-bit", trap.vec == VEC_RETURN && trap.r.rcx == UCS32);
}

int main(void)
{
    same_ring();
    refused();
    outward();
    inside_ring3();
    return 0;
}
