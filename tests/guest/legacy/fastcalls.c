/*
 * How programs call kernels in 32-bit protected mode: INT 0x80 by interrupt and trap gates (SDM vol. 3 §6.12), SYSENTER and
 * SYSEXIT (vol. 2; vol. 3 §5.8.7), each from the modes that may and those that may not.
 */
#include "legacy/lib/legacy.h"

enum { SYSENTER_CS = 0x174, SYSENTER_ESP, SYSENTER_EIP, K_CS = GDT_FREE, LOOPS = 5000, CALL = 0x80, OTHER = 0x83 };
u32 seen[8], stack[64];

/* int 0x80: EAX + EBX * ECX comes back in EAX. */
SYM(k_int80);
SYM(u_int80);
SYM(u_int83);
SYM(u_int80_next);
CODE32("k_int80: pushf\n pop %edi\n and $0x200, %edi\n"
       "mov %ss, seen\n mov %cs, seen + 4\n mov (%esp), %esi\n mov %esi, seen + 8\n mov 4(%esp), %esi\n mov %esi, seen + 12\n"
       "mov 12(%esp), %esi\n mov %esi, seen + 16\n mov 16(%esp), %esi\n mov %esi, seen + 20\n mov %edi, seen + 24\n"
       "imul %ecx, %ebx\n add %ebx, %eax\n iret\n"
       "u_int80: mov $3, %ebx\n mov $4, %ecx\n mov %esp, %ebp\n int $0x80\n u_int80_next: mov %esp, %edx\n pushf\n pop %ecx\n int $0x81\n"
       "u_int83: int $0x83\n int $0x81");
SYM(u_many80);
CODE32("u_many80: xor %eax, %eax\n mov $5000, %ebp\n"
       "1: mov %ebp, %ebx\n mov $1, %ecx\n int $0x80\n dec %ebp\n jnz 1b\n int $0x81");

/* SYSENTER with the way back in ECX and EDX, as Linux's vDSO has it. */
SYM(k_enter);
SYM(u_enter);
SYM(u_enter_back);
CODE32("k_enter: pushf\n pop seen + 24\n mov %ss, seen\n mov %cs, seen + 4\n mov %esp, seen + 8\n add %ebx, %eax\n sysexit\n"
       "u_enter: pushf\n orl $0x10001, (%esp)\n popf\n mov $7, %ebx\n mov %esp, %ecx\n mov $u_enter_back, %edx\n sysenter\n ud2\n"
       "u_enter_back: mov %cs, %ebx\n mov %ss, %ecx\n mov %esp, %edx\n int $0x81");
SYM(u_many);
CODE32("u_many: xor %eax, %eax\n mov $5000, %ebp\n"
       "1: mov %ebp, %ebx\n mov %esp, %ecx\n mov $2f, %edx\n sysenter\n 2: dec %ebp\n jnz 1b\n int $0x81");
/* From ring 0 and from virtual-8086 mode, where there is no way back by SYSEXIT. */
SYM(k_noted);
SYM(c_enter);
CODE32("k_noted: mov %cs, %ebx\n mov %ss, %ecx\n mov %esp, %edx\n pushf\n pop %esi\n int $0x81\n"
       "c_enter: sti\n sysenter\n ud2");
SYM(v_enter);
SYM(rm_enter);
LOW("v_enter: sysenter\n ud2\n rm_enter: sysenter\n ret");
SYM(u_sysexit);
SYM(c_sysexit);
CODE32("u_sysexit: sysexit\n c_sysexit: mov %eax, %ecx\n mov $u_enter_back, %edx\n sysexit");
SYM(rm_exit);
LOW("rm_exit: sysexit\n ret");
SYM(u_syscall);
CODE32("u_syscall: syscall\n int $0x81");

static void enter_with(u32 cs, const void *eip)
{
    wrmsr(SYSENTER_CS, cs);
    wrmsr(SYSENTER_ESP, (u32)(stack + ARRAY_LEN(stack)));
    wrmsr(SYSENTER_EIP, (u32)eip);
}

static void by_interrupt(void)
{
    gate_set(idt, CALL, KCS, (u32)k_int80, 0xef); /* a trap gate, DPL 3 */
    report("int 0x80 from ring 3", run_user(u_int80, 100, FL_IF | FL_CF) == VEC_RETURN && trap.eax == 112);
    report("... the kernel's SS and CS", seen[0] == KDS && seen[1] == KCS);
    report("... the pushed EIP and CS", seen[2] == (u32)u_int80_next && seen[3] == UCS);
    report("... ESP and SS", seen[4] == trap.ebp && seen[5] == UDS);
    report("... a trap gate leaves IF", seen[6] == FL_IF);
    report("... back on its stack, with its flags", trap.edx == trap.ebp && (trap.ecx & (FL_IF | FL_CF)) == (FL_IF | FL_CF));
    gate_set(idt, CALL, KCS, (u32)k_int80, 0xee);
    run_user(u_int80, 100, FL_IF);
    report("an interrupt gate clears it, and IRET sets it", !seen[6] && (trap.ecx & FL_IF) && trap.eax == 112);
    report("5000 of them", run_user(u_many80, 0, 0) == VEC_RETURN && trap.eax == LOOPS * (LOOPS + 1) / 2);
    run_user(u_int83, 0, 0);
    report("a gate for ring 0: #GP with its index", trapped(GP, OTHER * 8 + 2) && trap.eip == (u32)u_int83);
}

int main(void)
{
    by_interrupt();
    if (!(cpuid_edx(1) & 1 << 11)) {
        skip("sysenter", "the CPU has none");
        return 0;
    }
    /* K_CS, K_CS + 8, + 16, + 24: code and stack, ring 0 and 3. Made flat by the instructions, whatever is in the GDT. */
    gdt_set(K_CS, 0, 0xfffff, 0x9b, 12);
    gdt_set(K_CS + 8, 0, 0xfffff, 0x93, 12);
    gdt_set(K_CS + 16, 0, 0xfffff, 0xfb, 12);
    gdt_set(K_CS + 24, 0, 0xfffff, 0xf3, 12);
    enter_with(0, k_enter);
    run_user(u_enter, 1, 0);
    report("sysenter without a CS: #GP(0)", trapped(GP, 0));
    enter_with(K_CS, k_enter);
    report("sysenter from ring 3 and sysexit", run_user(u_enter, 35, FL_IF) == VEC_RETURN && trap.eax == 42);
    report("... the kernel's SS, CS and ESP", seen[0] == K_CS + 8 && seen[1] == K_CS && seen[2] == (u32)(stack + ARRAY_LEN(stack)));
    report("... IF and RF are clear, CF is not", (seen[6] & (FL_IF | FL_RF | FL_CF)) == FL_CF);
    report("... ring 3's CS, SS and ESP", trap.ebx == ((K_CS + 16) | 3) && trap.ecx == ((K_CS + 24) | 3) && trap.edx == (u32)ustack + sizeof(ustack) - 16);
    report("... sysexit does not set IF", !(trap.eflags & FL_IF));
    report("5000 of them", run_user(u_many, 0, 0) == VEC_RETURN && trap.eax == LOOPS * (LOOPS + 1) / 2);
    enter_with(K_CS | 3, k_enter);
    report("the RPL in the MSR does not count", run_user(u_enter, 35, 0) == VEC_RETURN && seen[1] == K_CS);
    enter_with(K_CS, k_noted);
    report("sysenter from ring 0", run(c_enter, 0) == VEC_RETURN && trap.ebx == K_CS && trap.ecx == K_CS + 8 &&
           trap.edx == (u32)(stack + ARRAY_LEN(stack)) && !(trap.esi & FL_IF));
    report("sysenter from virtual-8086 mode", run_v86(v_enter, 0, FL_IOPL | FL_IF) == VEC_RETURN && trap.ebx == K_CS &&
           !(trap.eflags & FL_VM) && !(trap.esi & FL_IF));
    report_eq("sysenter in real mode: #GP", (u32)run_real(rm_enter, 0), GP);
    report_eq("... at the instruction", real_ip, (u32)rm_enter);
    report_eq("sysexit in real mode: #GP", (u32)run_real(rm_exit, 0), GP);
    run_user(u_sysexit, 0, 0);
    report("sysexit in ring 3: #GP(0)", trapped(GP, 0));
    report("sysexit from ring 0 to a stack that it names", run(c_sysexit, (u32)ustack + 256) == VEC_RETURN &&
           trap.ebx == ((K_CS + 16) | 3) && trap.edx == (u32)ustack + 256);
    enter_with(0, k_enter);
    run(c_sysexit, 0);
    report("sysexit without a CS: #GP(0)", trapped(GP, 0));
    run_user(u_syscall, 0, 0);
    report("syscall without EFER.SCE: #UD", trapped(UD, 0));
    return 0;
}
