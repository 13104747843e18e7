/* Real mode and the ways into it and out of it (SDM vol. 3 §20.1, §9.9): flat 32-bit code calls it, again and again. */
#include "legacy/lib/legacy.h"

LOWDATA volatile u32 out32[8];
LOWDATA volatile u16 out16[16];
SYM(rm_ret);
SYM(rm_regs);
SYM(rm_ud);
SYM(rm_de);
SYM(rm_int);
SYM(rm_int_next);
SYM(rm_into);
SYM(rm_iret_ac);
SYM(rm_limit_r);
SYM(rm_limit_w);
SYM(rm_limit_ss);
SYM(rm_limit_code);
SYM(rm_unreal);
SYM(rm_big_off);
SYM(rm_lgdt24);
SYM(rm_pushsizes);
SYM(rm_prefix);
SYM(rm_bp);
SYM(rm_far_indirect);
SYM(rm_wrap_call);
SYM(rm_loop16);
SYM(rm_string_wrap);
SYM(rm_smsw);
SYM(rm_sldt);
SYM(rm_enter);
SYM(rm_ivt_limit);
SYM(rm_pusha_wrap);
SYM(rm_smc);
SYM(rm_a32);
SYM(rm_moffs);
SYM(rm_jmp32);

LOW("rm_ret: ret");
LOW("rm_regs: mov $0x12345678, %eax\n mov %ax, %bx\n shl $16, %ebx\n mov %bx, %ax\n push %cs\n pop %cx\n mov %cx, out16\n"
    "mov %sp, out16 + 2\n ret");
LOW("rm_ud: ud2");
LOW("rm_de: xor %cl, %cl\n div %cl");
/* INT pushes 16-bit IP, CS, FLAGS; clears IF and TF */
LOW("rm_int: movw $1f, 0x80 * 4\n movw $0, 0x80 * 4 + 2\n sti\n stc\n int $0x80\n .globl rm_int_next\n rm_int_next: pushf\n cli\n pop %ax\n mov %ax, out16 + 4\n ret\n"
    "1: mov %sp, %bp\n mov (%bp), %ax\n mov %ax, out16 + 6\n mov 2(%bp), %ax\n mov %ax, out16 + 8\n mov 4(%bp), %ax\n"
    "mov %ax, out16 + 10\n pushf\n pop %ax\n mov %ax, out16 + 12\n andw $~1, 4(%bp)\n iret");
LOW("rm_into: movw $1f, 16\n movw $0, 18\n mov $0x7f, %al\n inc %al\n into\n ret\n 1: mov $0xabcd, %dx\n mov %dx, out16\n"
    "mov $real_stubs + 32, %ax\n mov %ax, 16\n iret");
/* 32-bit iret in real mode takes AC; INT clears it */
LOW("rm_iret_ac: cli\n movw $1f, 0x80 * 4\n movw $0, 0x80 * 4 + 2\n pushfl\n orl $0x40000, (%esp)\n popfl\n int $0x80\n"
    "pushfl\n pop %eax\n mov %eax, out32 + 4\n pushl $2\n popfl\n ret\n"
    "1: pushfl\n pop %eax\n mov %eax, out32\n iret");
LOW("rm_limit_r: mov $0xfffd, %bx\n mov (%bx), %eax\n ret");
LOW("rm_limit_w: mov $0xffff, %bx\n mov %ax, (%bx)\n ret");
LOW("rm_limit_ss: mov $0xffff, %bp\n mov (%bp), %ax\n ret");
LOW("rm_limit_code: movw $0x9090, 0xfffe\n mov $0xfffe, %ax\n jmp *%ax");
/* "unreal": protected mode leaves a 4 GiB limit behind in FS */
LOW("rm_unreal: cli\n push %cs\n lgdtl gdtr_low\n mov %cr0, %eax\n or $1, %al\n mov %eax, %cr0\n jmp 1f\n 1: mov $0x10, %bx\n"
    "mov %bx, %fs\n and $0xfe, %al\n mov %eax, %cr0\n jmp 1f\n 1: pop %ax\n xor %bx, %bx\n mov %bx, %fs\n mov $0x500000, %edi\n"
    "mov %fs:(%edi), %eax\n movl $0x600df00d, %fs:4(%edi)\n"
    "mov $0x1000, %bx\n mov %bx, %fs\n mov %fs:-0x10000(%edi), %ecx\n mov %ecx, out32\n ret");
LOW("rm_big_off: mov $0x10000, %edi\n mov (%edi), %eax\n ret");
LOW("rm_lgdt24: sgdtl out32\n movl $0xffffffff, out32 + 8 + 2\n movw $0x1ff, out32 + 8\n lgdtw out32 + 8\n sgdtl out32 + 16\n"
    "lgdtl out32\n ret");
LOW("rm_pushsizes: mov %sp, %bx\n pushw $-2\n pushl $-2\n push %ds\n pushl %ds\n pushal\n sub %sp, %bx\n mov %bx, out16\n"
    "add %bx, %sp\n ret");
LOW("rm_prefix: mov $0x11112222, %eax\n movl $0x33334444, %ebx\n .byte 0x66, 0x01, 0xd8\n add %bx, %ax\n mov %eax, out32\n"
    "mov $4, %ecx\n .byte 0x67, 0x8d, 0x44, 0x88, 0x10\n mov %eax, out32 + 4\n imul $3, %ax, %ax\n movsx %al, %edx\n mov %edx, out32 + 8\n"
    "lea 0x7fff(%bx,%si), %eax\n mov %eax, out32 + 12\n cwde\n mov %eax, out32 + 16\n mov $0x8000, %ax\n cwtd\n mov %dx, out32 + 20\n ret");
LOW("rm_bp: movw $0x1234, 0x7000\n mov $0x6ff0, %bp\n mov 0x10(%bp), %ax\n mov %ss:0x10(%bp), %cx\n mov $0x100, %si\n mov $0x6e00, %bp\n"
    "xor %ax, 0x100(%bp,%si)\n mov 0x7000, %dx\n mov %ax, out16\n mov %cx, out16 + 2\n mov %dx, out16 + 4\n ret");
LOW("rm_far_indirect: movw $1f, out16\n movw $0x10, out16 + 2\n subw $0x100, out16\n lcall *out16\n mov %ax, out16 + 4\n ret\n"
    "1: mov %cs, %ax\n lret");
/* a call whose target wraps: from 2000:fff0 forwards to 2000:0010 */
LOW("rm_wrap_call: mov $0x2000, %ax\n mov %ax, %es\n movb $0xe8, %es:0xfff0\n movw $0x1d, %es:0xfff1\n movb $0xcb, %es:0xfff3\n"
    "movb $0xb8, %es:0x10\n movw $0x5151, %es:0x11\n movb $0xc3, %es:0x13\n lcall $0x2000, $0xfff0\n mov %ax, out16\n"
    "xor %ax, %ax\n mov %ax, %es\n ret");
LOW("rm_loop16: mov $0x10003, %ecx\n xor %ax, %ax\n 1: inc %ax\n loop 1b\n mov %ecx, out32\n mov $0x10000, %ecx\n jcxz 1f\n mov $0xdead, %ax\n"
    "1: mov %ax, out16\n mov $3, %ecx\n xor %ax, %ax\n 1: inc %ax\n addr32 loop 1b\n mov %ax, out16 + 2\n ret");
/* rep movsb across the end of a 64 KiB segment: offsets wrap */
LOW("rm_string_wrap: mov $0x3000, %ax\n mov %ax, %es\n mov %ax, %ds\n movw $0x2211, 0xfffe\n movw $0x4433, 0\n mov $0xfffe, %si\n"
    "mov $0x100, %di\n mov $4, %cx\n cld\n rep movsb\n mov 0x100, %eax\n mov %eax, %cs:out32\n mov %si, %cs:out32 + 4\n mov %di, %cs:out32 + 6\n"
    "std\n mov $1, %si\n mov $0x203, %di\n mov $4, %cx\n rep movsb\n mov 0x200, %eax\n mov %eax, %cs:out32 + 8\n cld\n"
    "xor %ax, %ax\n mov %ax, %ds\n mov %ax, %es\n ret");
LOW("rm_smsw: smsw %ax\n mov %ax, out16\n ret");
LOW("rm_sldt: sldt %ax\n ret");
LOW("rm_enter: mov $0x1234, %bp\n mov %sp, %cx\n enter $8, $0\n mov %sp, %dx\n sub %dx, %cx\n mov %cx, out16\n leave\n mov %bp, out16 + 2\n"
    "movl $0xffff7000, %ebp\n mov %ebp, %eax\n enter $0, $0\n leave\n mov %ebp, out32 + 4\n ret");
/* an IVT limit too short: #GP, then #DF, then shutdown; with room for #GP but not for the vector, #GP */
/* INT and IRET in loops: the frame's flags, flags and IOPL that the handler changes, a handler in another segment, frames down to offset 0 */
SYM(rm_int_flags);
SYM(rm_int_change);
SYM(rm_int_far);
SYM(rm_int_wrap);
LOW("rm_int_h: push %bp\n mov %sp, %bp\n mov 6(%bp), %ax\n xor %cx, %cx\n pop %bp\n iret\n"
    "rm_int_flags: cli\n movw $rm_int_h, 0x180\n movw $0, 0x182\n mov $100, %si\n"
    "1: mov $0x7fff, %dx\n add $1, %dx\n stc\n std\n int $0x60\n pushf\n pop %bx\n cld\n mov %ax, out16\n mov %bx, out16 + 2\n"
    "dec %si\n jnz 1b\n ret");
LOW("rm_int_x: push %bp\n mov %sp, %bp\n xor %ax, 6(%bp)\n incw 2(%bp)\n pop %bp\n iret\n"
    "rm_int_change: cli\n movw $rm_int_x, 0x180\n movw $0, 0x182\n mov $0, %si\n xor %di, %di\n"
    "1: mov %si, %ax\n and $0x3cd5, %ax\n push $2\n popf\n int $0x60\n .byte 0x90, 0x90\n pushf\n pop %bx\n xor $2, %bx\n xor %ax, %bx\n or %bx, %di\n" /* one nop is skipped */
    "add $0x0111, %si\n jnc 1b\n push $2\n popf\n mov %di, out16\n ret");
LOW("rm_int_f: add %cx, %ax\n push %cs\n pop %dx\n iret\n"
    "rm_int_far: cli\n movw $rm_int_f - 0x1000, 0x180\n movw $0x100, 0x182\n movw $rm_int_f, 0x184\n movw $0, 0x186\n xor %ax, %ax\n xor %bx, %bx\n"
    "mov $200, %cx\n 1: int $0x60\n add %dx, %bx\n int $0x61\n add %dx, %bx\n loop 1b\n mov %ax, out16\n mov %bx, out16 + 2\n ret");
LOW("rm_int_w: incw %cs:out16\n iret\n"
    "rm_int_wrap: cli\n movw $rm_int_w, 0x180\n movw $0, 0x182\n movw $0, out16\n mov %sp, %bx\n mov $0x3000, %ax\n mov %ax, %ss\n mov $6, %di\n"
    "1: mov %di, %sp\n int $0x60\n cmp %di, %sp\n jne 2f\n add $2, %di\n cmp $16, %di\n jne 1b\n"
    "2: xor %ax, %ax\n mov %ax, %ss\n mov %bx, %sp\n mov %di, out16 + 2\n ret");
LOW("rm_ivt_limit: lidtl 1f\n int $0x40\n ret\n 1: .word 0xff\n .long 0");
LOW("rm_pusha_wrap: mov %sp, %dx\n mov $8, %sp\n pusha\n mov %sp, %ax\n mov %dx, %sp\n mov %ax, out16\n ret");
LOW("rm_smc: movb $0xb0, 1f\n movb $7, 1f + 1\n jmp 1f\n 1: mov $1, %al\n xor %ah, %ah\n mov %ax, out16\n incb 1b + 1\n cmpb $9, 1b + 1\n jne 1b\n ret");
LOW("rm_a32: mov $0x8000, %ebx\n mov $0x1000, %esi\n movw $0x4321, -0x8000 + 0x6000 + 0x1000(%ebx)\n"
    "mov -0x8000 + 0x6000(%ebx,%esi), %ax\n mov %ax, out16\n movl $0x7000, %esp\n mov $0x7bfe, %esp\n movzwl 0x1000(%esi,%esi,2), %eax\n ret");
LOW("rm_moffs: mov $0x77, %al\n mov %al, 0x7100\n mov 0x7100, %ah\n mov %ax, out16\n addr32 mov 0x7100, %al\n ret");
LOW("rm_jmp32: .byte 0x66, 0xe9\n .long 0x10000\n ret");

static void limits(void)
{
    report_eq("dword at fffd is #GP", (u32)run_real(rm_limit_r, 0), GP);
    report_eq("... at the instruction", real_ip, (u32)rm_limit_r + 3);
    report_eq("word to ffff is #GP", (u32)run_real(rm_limit_w, 0), GP);
    report_eq("word at ss:ffff is #SS", (u32)run_real(rm_limit_ss, 0), SS);
    report_eq("running off the segment is #GP", (u32)run_real(rm_limit_code, 0), GP);
    report_eq("... IP is 0 in the frame", real_ip, 0);
    report_eq("DS is not big: #GP", (u32)run_real(rm_big_off, 0), GP);
    report_eq("a 32-bit jump beyond the limit is #GP", (u32)run_real(rm_jmp32, 0), GP);
    report_eq("... at the jump", real_ip, (u32)rm_jmp32);
    report_eq("int beyond the IVT's limit is #GP", (u32)run_real(rm_ivt_limit, 0), GP);
}

/* The A20 gate (port 0x92; the keyboard controller's output port by command 0xd1): ffff:0010 is 0:0 or 1 MiB. */
SYM(rm_a20);
SYM(rm_a20_kbd);
LOW("rm_a20: mov $0xffff, %cx\n mov %cx, %es\n mov %al, %bl\n in $0x92, %al\n and $0xfc, %al\n or %bl, %al\n out %al, $0x92\n"
    "1: mov %es:0x1010, %eax\n mov 0x1000, %ecx\n mov %ecx, out32\n incl %es:0x1020\n ret\n"
    "rm_a20_kbd: mov $0xffff, %cx\n mov %cx, %es\n mov %al, %bl\n call 2f\n mov $0xd1, %al\n out %al, $0x64\n call 2f\n"
    "mov %bl, %al\n out %al, $0x60\n call 2f\n jmp 1b\n"
    "2: in $0x64, %al\n test $2, %al\n jnz 2b\n ret");
static void a20(const char *how, const void *code, u8 closed, u8 open)
{
    volatile u32 *low = (u32 *)0x1000, *high = (u32 *)0x101000;
    low[0] = 0x11111111;
    low[4] = 1;
    high[0] = 0x22222222;
    high[4] = 100;
    for (unsigned i = 0; i < 3; i++) {
        run_real(code, closed);
        u32 read = real_eax, other = out32[0];
        run_real(code, open);
        reportf(read == 0x11111111 && other == 0x11111111, "A20 closed by %s: 1 MiB is 0", how);
        reportf(real_eax == 0x22222222, "A20 open by %s", how);
    }
    reportf(low[4] == 4 && high[4] == 103, "... and for writes");
}

int main(void)
{
    a20("port 92h", rm_a20, 0, 2);
    a20("the keyboard controller", rm_a20_kbd, 0xdd, 0xdf);
    report_eq("a call to real mode and back", (u32)run_real(rm_ret, 0x55aa55aa), -1u);
    report_eq("EAX comes through", real_eax, 0x55aa55aa);
    run_real(rm_regs, 0);
    report_eq("16-bit moves leave the upper halves", real_eax, 0x12340000);
    report_eq("CS is 0", out16[0], 0);
    report_eq("SP", out16[1], 0x7bfe);
    report_eq("#UD through the IVT", (u32)run_real(rm_ud, 0), UD);
    report_eq("... at the instruction", real_ip, (u32)rm_ud);
    report_eq("#DE", (u32)run_real(rm_de, 0), DE);
    report_eq("... at the instruction, not behind", real_ip, (u32)rm_de + 2);
    run_real(rm_int, 0);
    report_eq("int 0x80: the pushed IP", out16[3], (u32)rm_int_next);
    report_eq("... CS", out16[4], 0);
    report_eq("... FLAGS with IF and CF", out16[5] & 0x301, 0x201);
    report_eq("... IF and TF clear in the handler, CF kept", out16[6] & 0x301, 1);
    report_eq("iret restores", out16[2] & 0x301, 0x200);
    out16[0] = 0;
    report_eq("into", (u32)run_real(rm_into, 0), -1u);
    report_eq("... its handler ran", out16[0], 0xabcd);
    run_real(rm_iret_ac, 0);
    report_eq("int clears AC", out32[0] & FL_AC, 0);
    run_real(rm_int_flags, 0);
    report_eq("int pushes flags", out16[0], 0xc97);
    report_eq("... iret takes them", out16[1], 0xc97);
    report_eq("flags that the handler changes", (u32)run_real(rm_int_change, 0), -1u);
    report_eq("... all came back", out16[0], 0);
    run_real(rm_int_far, 0);
    report_eq("handlers in two segments", out16[0], (u16)(200 * 201));
    report_eq("... their CS", out16[1], (u16)(200 * 0x100));
    report_eq("frames at the bottom of the segment", (u32)run_real(rm_int_wrap, 0), -1u);
    report_eq("... five", out16[0] << 16 | out16[1], 5 << 16 | 16);
    report_eq("16-bit iret keeps it clear", out32[1] & FL_AC, 0);
    if (on_tcg())
        skip("segment limits", "TCG checks none");
    else
        limits();
    *(volatile u32 *)0x500000 = 0xfeedface;
    report_eq("unreal", (u32)run_real(rm_unreal, 0), -1u);
    report_eq("... read beyond 64 KiB", real_eax, 0xfeedface);
    report_eq("... write", *(volatile u32 *)0x500004, 0x600df00d);
    report_eq("... the base changes, the limit stays", out32[0], 0xfeedface);
    run_real(rm_lgdt24, 0);
    report_eq("lgdt with a 16-bit operand takes 24 bits of base", out32[4] >> 16 | out32[5] << 16, 0xffffff);
    run_real(rm_pushsizes, 0);
    report_eq("push sizes", out16[0], 2 + 4 + 2 + 4 + 32);
    run_real(rm_prefix, 0);
    report_eq("66h add, then 16-bit add", out32[0], 0x4444aaaa);
    report_eq("67h lea with a 16-bit operand", out32[1], 0x44440000 | (u16)(0xaaaa + 16 + 0x10));
    report_eq("movsx", out32[2], (u32)(signed char)((u16)(0xaaca * 3) & 0xff));
    report_eq("lea, 16-bit address in a 32-bit register", out32[3] >> 16, 0);
    report_eq("cwd", (u16)out32[5], 0xffff);
    run_real(rm_bp, 0);
    report_eq("[bp] is SS", out16[0], 0x1234);
    report_eq("ss: prefix", out16[1], 0x1234);
    report_eq("[bp + si + disp]", out16[2], 0);
    run_real(rm_far_indirect, 0);
    report_eq("lcall *mem", out16[2], 0x10);
    report_eq("a call that wraps at 64 KiB", (u32)run_real(rm_wrap_call, 0), -1u);
    report_eq("... got there", out16[0], 0x5151);
    run_real(rm_loop16, 0);
    report_eq("loop counts CX and leaves the rest of ECX", out32[0], 0x10000);
    report_eq("jcxz looks at CX", out16[0], 3);
    report_eq("addr32 loop counts ECX", out16[1], 3);
    run_real(rm_string_wrap, 0);
    report_eq("rep movsb wraps", out32[0], 0x44332211);
    report_eq("... SI and DI", out32[1], 0x01040002);
    report_eq("... downwards", out32[2], 0x44332211);
    run_real(rm_smsw, 0);
    report_eq("smsw: PE is clear", out16[0] & 1, 0);
    report_eq("sldt is #UD", (u32)run_real(rm_sldt, 0), UD);
    run_real(rm_enter, 0);
    report_eq("enter", out16[0], 10);
    report_eq("leave", out16[1], 0x1234);
    report_eq("leave keeps the upper half of EBP", out32[1], 0xffff7000);
    run_real(rm_pusha_wrap, 0);
    report_eq("pusha over the bottom of the segment", out16[0], 0xfff8);
    run_real(rm_smc, 0);
    report_eq("code that rewrites itself", out16[0], 8);
    report_eq("32-bit addresses", (u32)run_real(rm_a32, 0), -1u);
    report_eq("... with an index", out16[0], 0x4321);
    run_real(rm_moffs, 0);
    report_eq("moffs", out16[0], 0x7777);
    for (unsigned i = 0; i < 200; i++)
        run_real(rm_ret, i);
    report_eq("200 round trips", real_eax, 199);
    return 0;
}
