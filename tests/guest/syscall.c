/*
 * syscall.c - syscall and sysret, sysenter and sysexit, in 64-bit and compatibility mode.
 * Intel SDM vol. 2; AMD APM vol. 3. The vendors differ: AMD has syscall in compatibility mode and
 * no sysenter in long mode, Intel the other way round. The CPUID vendor says whose rules hold.
 */
#include "lib/guest.h"

#define HOLE 0x0000800000000000ull

USER_ASM("user_syscall: syscall\nuser_after: int $0x81");
USER_ASM_32("user_syscall32: syscall\nuser_after32: int $0x81");
USER_ASM_32("user_sysenter32: mov $user_after32, %edx; mov %esp, %ecx; sysenter; int $0x81");
USER_ASM("user_sysenter: sysenter; int $0x81");
USER_ASM("user_sysexit: sysexitl");
USER_ASM("user_state: mov %cs, %ebx; mov %ss, %edx; mov %rsp, %rdi; pushf; pop %rax; int $0x81");
USER_ASM_32(
    "user_state32: mov %cs, %ebx; mov %ss, %edx; mov %esp, %edi; pushf; pop %eax; int $0x81");
/* syscall in a loop until RCX's copy in RBX is 0; the kernel side returns at once with sysret. */
USER_ASM("user_loop: syscall; add %rax, %r12; dec %rbx; jnz user_loop; int $0x81");
extern char user_syscall[], user_after[], user_syscall32[], user_after32[], user_sysenter32[],
    user_sysenter[], user_sysexit[], user_state[], user_state32[], user_loop[];

KERNEL_ASM("fast_entry: mov $1, %eax; sysretq");
extern char fast_entry[];

/* sysret as the way out of the kernel: like user_enter(), comes back through user_leave(). */
KERNEL_ASM(
    "sysret_enter: pushfq; push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; sub $8, %rsp\n"
    "cli; mov %rsp, user_krsp; mov %rsp, tss + 4\n"
    "mov %rdi, %rcx; mov %rsi, %r11; test %r8, %r8; mov %rdx, %rsp; jnz 2f; sysretq\n2: sysretl\n");
KERNEL_ASM(
    "sysexit_enter: pushfq; push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; sub $8, %rsp\n"
    "cli; mov %rsp, user_krsp; mov %rsp, tss + 4\n"
    "test %rdx, %rdx; mov %rdi, %rdx; mov %rsi, %rcx; jnz 2f; sysexitq\n2: sysexitl\n");
void sysret_enter(u64 rip, u64 rflags, u64 rsp, u64 unused, u64 compat);
void sysexit_enter(u64 rip, u64 rsp, u64 compat);

static u64 usp(void)
{
    return (u64)ustack + sizeof(ustack) - 64;
}

static void reload_segments(void)
{
    asm volatile("mov %0, %%ss; mov %0, %%ds; mov %0, %%es" ::"r"((u32)KDS) : "memory");
}

static unsigned sysret(u64 rip, u64 rflags, u64 rsp, bool compat)
{
    trap_clear();
    sysret_enter(rip, rflags, rsp, 0, compat);
    reload_segments();
    return trap.vec;
}

static void leave(struct regs *r)
{
    user_leave();
}

static void in_long_mode(void)
{
    struct regs r;
    user_regs(&r, user_syscall, false);
    r.rax = 0x1111;
    r.rcx = 0x2222;
    r.r11 = 0x3333;
    r.r15 = 0x4444;
    r.rflags = 2 | FL_ARITH | FL_DF | FL_AC | FL_ID;
    unsigned v = user_run(&r);
    report_eq("syscall arrives", v, VEC_SYSCALL);
    report_eq("RCX is the return address", trap.r.rcx, (u64)user_after);
    report_eq("R11 is RFLAGS", trap.r.r11, 2 | FL_ARITH | FL_DF | FL_AC | FL_ID);
    report_eq("SFMASK cleared what it names", trap.r.rflags & ~(u64)(FL_ARITH & ~FL_CF), 2 | FL_ID);
    report_eq("RSP is still the user's", trap.r.rsp, r.rsp);
    report_eq("CS from STAR", trap.r.cs, KCS);
    report_eq("SS from STAR", trap.r.ss, KDS);
    report("other registers are untouched", trap.r.rax == 0x1111 && trap.r.r15 == 0x4444);
    wrmsr(MSR_SFMASK, 0);
    user_run(&r);
    report_eq("SFMASK 0 clears nothing", trap.r.rflags, 2 | FL_ARITH | FL_DF | FL_AC | FL_ID);
    wrmsr(MSR_SFMASK, 0xffffffff);
    user_run(&r);
    report_eq("SFMASK all ones clears all", trap.r.rflags, 2);
    wrmsr(MSR_SFMASK, FL_TF | FL_IF | FL_DF | FL_AC | FL_CF);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_SCE);
    report("without SCE syscall is #UD", user_run(&r) == UD && trap.r.rip == (u64)user_syscall);
    report("without SCE sysret is #UD", TRY("sysretq", ::) == UD);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
    report_eq("sysretq arrives",
              sysret((u64)user_state, 2 | FL_ARITH | FL_AC | FL_ID, usp(), false), VEC_RETURN);
    report("sysretq: CS and SS with RPL 3", trap.r.rbx == UCS64 && (u16)trap.r.rdx == UDS);
    report_eq("sysretq: RFLAGS from R11", trap.r.rax, 2 | FL_ARITH | FL_AC | FL_ID);
    report_eq("sysretq: RSP is not touched", trap.r.rdi, usp());
    sysret((u64)user_state, FL_RF | BIT(17) | 2, usp(), false);
    report_eq("sysretq: RF and VM do not come through", trap.r.rax, 2);
    sysret((u64)user_state, FL_IOPL | FL_NT | 2, usp(), false);
    report_eq("sysretq: IOPL and NT do", trap.r.rax, FL_IOPL | FL_NT | 2);
    report_eq("sysretl arrives in compatibility mode",
              sysret((u64)user_state32, 2 | FL_CF, usp(), true), VEC_RETURN);
    report("sysretl: CS, SS, flags",
           trap.r.rbx == UCS32 && (u16)trap.r.rdx == UDS && (u32)trap.r.rax == (2 | FL_CF));
    sysret(BIT(32) | (u64)user_state32, 2, usp(), true);
    report_eq("sysretl: RIP is ECX", trap.vec, VEC_RETURN);

    /* Non-canonical RCX: Intel faults in ring 0 on the user's stack, AMD in ring 3 on the fetch. */
    idt_gate(GP, trap_stub(GP), KCS, 0, 14, 1);
    trap_handle(GP, leave);
    u64 cs = cpu_is_intel() ? KCS : UCS64;
    report("sysretq to a non-canonical address is #GP(0)",
           sysret(HOLE, 2, usp(), false) == GP && trap.r.err == 0);
    report_eq("in the ring the vendor does it in", trap.r.cs, cs);
    trap_handle(GP, NULL);
    idt_reset();

    user_regs(&r, user_loop, false);
    wrmsr(MSR_LSTAR, (u64)fast_entry);
    r.rbx = 100000;
    v = user_run(&r);
    report("100000 system calls", v == VEC_RETURN && trap.r.r12 == 100000);
    wrmsr(MSR_LSTAR, (u64)syscall_leave);

    report("LSTAR not canonical is #GP(0)", try_wrmsr(MSR_LSTAR, HOLE) == GP && trapped(GP, 0));
    report("CSTAR not canonical is #GP(0)", try_wrmsr(MSR_CSTAR, HOLE) == GP && trapped(GP, 0));
    wrmsr(MSR_LSTAR, (u64)syscall_leave);
    report_eq("STAR reads back", rdmsr(MSR_STAR), (u64)UCS32 << 48 | (u64)KCS << 32);
    report_eq("LSTAR reads back", rdmsr(MSR_LSTAR), (u64)syscall_leave);
}

static void in_compat_mode(void)
{
    struct regs r;
    wrmsr(MSR_CSTAR, (u64)syscall_leave);
    user_regs(&r, user_syscall32, true);
    r.rflags = 2 | FL_DF | FL_ZF;
    unsigned v = user_run(&r);
    if (cpu_is_intel()) {
        report("Intel: syscall in compatibility mode is #UD", v == UD);
    } else {
        report_eq("AMD: syscall in compatibility mode arrives at CSTAR", v, VEC_SYSCALL);
        report_eq("RCX is the 32-bit return address", trap.r.rcx, (u64)user_after32);
        report_eq("R11 is RFLAGS", trap.r.r11, 2 | FL_DF | FL_ZF);
        report("in ring 0, 64-bit", trap.r.cs == KCS && trap.r.ss == KDS);
    }

    static u8 stack[1024] __attribute__((aligned(16)));
    wrmsr(MSR_SYSENTER_CS, KCS);
    wrmsr(MSR_SYSENTER_ESP, (u64)stack + sizeof(stack));
    wrmsr(MSR_SYSENTER_EIP, (u64)syscall_leave);
    report("sysenter MSRs read back", rdmsr(MSR_SYSENTER_CS) == KCS &&
                                          rdmsr(MSR_SYSENTER_EIP) == (u64)syscall_leave &&
                                          rdmsr(MSR_SYSENTER_ESP) == (u64)stack + sizeof(stack));
    user_regs(&r, user_sysenter32, true);
    r.rflags = 2 | FL_CF | FL_DF;
    v = user_run(&r);
    if (!cpu_is_intel()) {
        report_eq("AMD: sysenter in compatibility mode is #UD", v, UD);
        user_regs(&r, user_sysenter, false);
        report("AMD: sysenter in 64-bit mode is #UD", user_run(&r) == UD);
        report("AMD: sysexit in 64-bit mode is #UD", TRY("sysexitl", ::) == UD);
        user_call(user_sysexit, 0, 0, 0);
        report("AMD: sysexit in ring 3 is #UD, too", trapped(UD, 0));
        return;
    }
    report_eq("sysenter from compatibility mode arrives", v, VEC_SYSCALL);
    report_eq("RSP is SYSENTER_ESP", trap.r.rsp, (u64)stack + sizeof(stack));
    report_eq("IF and VM cleared, the rest kept", trap.r.rflags & (FL_CF | FL_DF | FL_IF),
              FL_CF | FL_DF);
    user_regs(&r, user_sysenter, false);
    report_eq("sysenter from 64-bit mode arrives", user_run(&r), VEC_SYSCALL);
    trap_clear();
    sysexit_enter((u64)user_state, usp(), 0);
    reload_segments();
    report("sysexit to 64-bit", trap.vec == VEC_RETURN && trap.r.rbx == UCS64 &&
                                    trap.r.rdx == UDS2 && trap.r.rdi == usp());
    trap_clear();
    sysexit_enter((u64)user_state32, usp(), 1);
    reload_segments();
    report("sysexit to 32-bit", trap.vec == VEC_RETURN && trap.r.rbx == UCS32 && trap.r.rdx == UDS);
    wrmsr(MSR_SYSENTER_CS, 0);
    user_regs(&r, user_sysenter32, true);
    report("SYSENTER_CS 0: #GP(0)", user_run(&r) == GP && trap.r.err == 0);
    user_call(user_sysexit, 0, 0, 0);
    report("sysexit in ring 3 is #GP(0)", trapped(GP, 0));
}

int main(void)
{
    wrmsr(MSR_STAR, (u64)UCS32 << 48 | (u64)KCS << 32);
    wrmsr(MSR_LSTAR, (u64)syscall_leave);
    wrmsr(MSR_SFMASK, FL_TF | FL_IF | FL_DF | FL_AC | FL_CF);
    in_long_mode();
    in_compat_mode();
    return 0;
}
