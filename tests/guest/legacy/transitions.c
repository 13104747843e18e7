/*
 * Each way from one mode to another (SDM vol. 3 §9.8.5, §9.9; vol. 2 "MOV to CR"): real, virtual-8086, 16- and 32-bit protected,
 * compatibility and 64-bit mode, round and round, with the same bytes of code run in all of them; and the ways that are refused.
 */
#include "legacy/lib/legacy.h"

/* 16 bits: AX = 1234 + 1, BX = 1. 32 bits: EAX = 90401234, EBX = 1. 64 bits: 43 is a prefix, and EBX = 0. */
LOW("poly: .byte 0xb8, 0x34, 0x12, 0x40, 0x90\n"
    "xor %bx, %bx\n"
    ".byte 0x43\n clc\n"
    "ret\n"
    "poly_v86: call poly\n int $0x81\n"
    "poly_far: call poly\n lretl\n"
    "rm_pg: mov %cr0, %eax\n or $0x80000000, %eax\n mov %eax, %cr0\n ret\n"
    "low_pg: mov %cr0, %eax\n or $0x80000000, %eax\n mov %eax, %cr0\n int $0x81");
extern u8 poly[];
SYM(poly_v86);
SYM(poly_far);
SYM(rm_pg);
SYM(low_pg);

enum { CS64 = GDT_FREE, EFER = 0xc0000080, EFER_LME = 1 << 8, EFER_LMA = 1 << 10 };
enum { COMPAT32, COMPAT16, LONG, COMPAT_AGAIN, PROT32, PROT16, NR_SEEN };
u32 lm_cr3, lm_esp, lm_efer[2], lm_wide[2], lm_seen[2 * NR_SEEN], lm_trap[4], lm_imm, lm_resume, lm_resumed;
static u64 idt64[2 * 32] __attribute__((aligned(16)));
struct { u16 limit; u32 base, high; } __attribute__((packed)) lm_idtr = { sizeof(idt64) - 1, 0, 0 };

/* A lap: EAX and EBX of poly in each mode; EFER in compatibility mode and when it was left; what was refused in 64-bit mode. */
SYM(lap);
CODE32("see: mov %eax, (%edi)\n mov %ebx, 4(%edi)\n add $8, %edi\n ret\n"
       "lap: push %ebx\n push %esi\n push %edi\n push %ebp\n mov $lm_seen, %edi\n"
       "mov %cr4, %eax\n or $0x20, %eax\n mov %eax, %cr4\n"
       "mov lm_cr3, %eax\n mov %eax, %cr3\n"
       "mov $0xc0000080, %ecx\n rdmsr\n or $0x100, %eax\n wrmsr\n"
       "mov %cr0, %eax\n or $0x80000000, %eax\n mov %eax, %cr0\n"
       "rdmsr\n mov %eax, lm_efer\n"
       "call poly\n call see\n"
       "lcall $0x18, $poly_far\n call see\n" /* KCS16 */
       "lidt lm_idtr\n"
       "lcall $0x58, $in64\n"                 /* CS64 */
       "call poly\n call see\n"
       "mov %cr0, %eax\n and $0x7fffffff, %eax\n mov %eax, %cr0\n"
       "mov $0xc0000080, %ecx\n rdmsr\n mov %eax, lm_efer + 4\n and $~0x100, %eax\n wrmsr\n"
       "mov %cr4, %eax\n and $~0x20, %eax\n mov %eax, %cr4\n"
       "lidt idtr\n"
       "call poly\n call see\n"
       "lcall $0x18, $poly_far\n call see\n"
       "pop %ebp\n pop %edi\n pop %esi\n pop %ebx\n ret\n"
       ".code64\n"
       "in64: mov $0x1122334455667788, %rax\n mov %rax, %r9\n mov $lm_wide, %esi\n mov %r9, (%rsi)\n"
       "mov $lm_imm, %esi\n mov (%rsi), %eax\n mov $poly, %esi\n mov %al, 1(%rsi)\n" /* seen by every mode that comes */
       "call poly\n mov %eax, (%rdi)\n mov %ebx, 4(%rdi)\n add $8, %edi\n"
       "mov $lm_resume, %esi\n"
       "movl $1f, (%rsi)\n mov %cr0, %rcx\n btr $31, %ecx\n mov %rcx, %cr0\n"        /* PG */
       "1: movl $1f, (%rsi)\n mov %cr4, %rcx\n btr $5, %ecx\n mov %rcx, %cr4\n"      /* PAE */
       "1: lretl\n"
       /* #GP: the error code, and on at lm_resume */
       "gp64: pop %rax\n mov $lm_resumed, %ebx\n mov (%rbx), %ecx\n incl (%rbx)\n and $3, %ecx\n"
       "mov $lm_trap, %ebx\n mov %eax, (%rbx, %rcx, 4)\n mov $lm_resume, %ebx\n mov (%rbx), %eax\n mov %rax, (%rsp)\n iretq\n"
       ".code32");
SYM(gp64);

/* With L in CS, PG may not be set while LME is. It is a 16-bit code segment until then. */
SYM(pg_with_l);
CODE32("pg_with_l: lcall $0x58, $low_pg");
SYM(pg_without_pe);
CODE32("pg_without_pe: mov %cr0, %eax\n or $0x80000000, %eax\n and $~1, %eax\n mov %eax, %cr0\n int $0x81");
SYM(set_pg);
CODE32("set_pg: mov %cr0, %eax\n or $0x80000000, %eax\n mov %eax, %cr0\n int $0x81");

static void tables(void)
{
    u32 pml4 = page_alloc(), pdpt = page_alloc(), pd = page_alloc();
    *(u64 *)pml4 = pdpt | 3;
    *(u64 *)pdpt = pd | 3;
    for (u32 i = 0; i < 32; i++)
        ((u64 *)pd)[i] = i << 21 | 0x83;
    lm_cr3 = pml4;
    gdt_set(CS64, 0, 0xfffff, 0x9b, 10);
    lm_idtr.base = (u32)idt64;
    idt64[2 * GP] = ((u32)gp64 & 0xffff) | (u64)CS64 << 16 | 0x8eull << 40 | (u64)((u32)gp64 >> 16) << 48;
}

static bool seen(unsigned where, u32 eax, u32 ebx, u32 mask)
{
    bool ok = (lm_seen[2 * where] & mask) == eax && (lm_seen[2 * where + 1] & mask) == ebx;
    if (!ok)
        print("# %u: eax %x ebx %x\n", where, lm_seen[2 * where], lm_seen[2 * where + 1]);
    return ok;
}

static void laps(unsigned n)
{
    bool compat32 = true, compat16 = true, in64 = true, again = true, prot32 = true, prot16 = true, real = true, v86 = true,
         active = true, left = true, wide = true, refused = true;
    for (u32 i = 0; i < n; i++) {
        u32 before = poly[1], after = i & 0xff;
        lm_imm = after;
        lm_resumed = 0;
        memset(lm_trap, 0xff, sizeof(lm_trap));
        ((void (*)(void))lap)();
        compat32 &= seen(COMPAT32, 0x90401200 | before, 1, -1u);
        compat16 &= seen(COMPAT16, (u16)(0x1201 + before), 1, 0xffff);
        in64 &= seen(LONG, 0x90401200 | after, 0, -1u);
        again &= seen(COMPAT_AGAIN, 0x90401200 | after, 1, -1u);
        prot32 &= seen(PROT32, 0x90401200 | after, 1, -1u);
        prot16 &= seen(PROT16, (u16)(0x1201 + after), 1, 0xffff);
        active &= (lm_efer[0] & (EFER_LME | EFER_LMA)) == (EFER_LME | EFER_LMA);
        left &= (lm_efer[1] & (EFER_LME | EFER_LMA)) == EFER_LME;
        wide &= lm_wide[0] == 0x55667788 && lm_wide[1] == 0x11223344;
        refused &= lm_resumed == 2 && !lm_trap[0] && !lm_trap[1];
        real &= run_real(poly, 0x77770000) == -1 && real_eax == (0x77770000 | (u16)(0x1201 + after));
        v86 &= run_v86(poly_v86, 0x66660000, FL_IOPL) == VEC_RETURN && trap.eax == (0x66660000 | (u16)(0x1201 + after));
    }
    report("protected to compatibility mode", compat32);
    report("... EFER.LMA is set", active);
    report("... to a 16-bit segment and back", compat16);
    report("... to 64-bit mode", in64);
    report("... 64 bits of a register", wide);
    report("... where clearing PG or PAE is #GP(0)", refused);
    report("... to compatibility mode, which sees what 64-bit code wrote", again);
    report("... to protected mode", prot32);
    report("... LMA is clear, LME stays", left);
    report("... to a 16-bit segment", prot16);
    report("... to real mode", real);
    report("... to virtual-8086 mode", v86);
}

int main(void)
{
    u32 edx = cpuid_edx(0x80000000) | cpuid_edx(0x80000001);
    if (!(edx & 1 << 29)) {
        skip("transitions", "no long mode");
        return 0;
    }
    tables();
    laps(300);
    if (on_tcg()) {
        skip("what is refused", "TCG takes it");
        return 0;
    }
    report_eq("PG without PE, from real mode: #GP", (u32)run_real(rm_pg, 0), GP);
    run(pg_without_pe, 0);
    report("... from protected mode: #GP(0)", trapped(GP, 0));
    wrmsr(EFER, EFER_LME);
    run(set_pg, 0);
    report("PG with LME and without PAE: #GP(0)", trapped(GP, 0));
    WR(cr4, RD(cr4) | CR4_PAE);
    WR(cr3, lm_cr3);
    run(pg_with_l, 0);
    report("PG with LME and CS.L: #GP(0)", trapped(GP, 0));
    WR(cr4, RD(cr4) & ~CR4_PAE);
    wrmsr(EFER, 0);
    laps(3);
    return 0;
}
