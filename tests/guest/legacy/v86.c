/* Virtual-8086 mode (SDM vol. 3 §20): a monitor at ring 0, what traps to it, VME's virtual interrupts and redirection; PVI. */
#include "legacy/lib/legacy.h"

LOWDATA volatile u16 v_out[16];
SYM(v_ret);
SYM(v_segs);
SYM(v_cli);
SYM(v_sti);
SYM(v_pushf);
SYM(v_pushfl);
SYM(v_popf);
SYM(v_popfl);
SYM(v_iret);
SYM(v_int20);
SYM(v_int3);
SYM(v_hlt);
SYM(v_in);
SYM(v_in_free);
SYM(v_lgdt);
SYM(v_mov_cr);
SYM(v_sldt);
SYM(v_limit);
SYM(v_ud);
SYM(v_far);
SYM(v_addr32);
SYM(v_vme);
SYM(v_vme_popf);
SYM(v_vme_tf);
SYM(v_vme_vip);
SYM(v_vme_int);
SYM(v_vme_iret);
SYM(v_loop);
SYM(u_pvi);
SYM(u_cli);
SYM(u_sti);
SYM(v_smsw);
SYM(v_push32);
SYM(v_bound);

LOW("v_ret: int $0x81");
LOW("v_segs: mov $0x800, %cx\n mov %cx, %ds\n mov %cx, %es\n mov v_out - 0x8000, %ax\n movw $0x7a7a, %es:v_out + 2 - 0x8000\n int $0x81");
LOW("v_cli: cli\n int $0x81");
LOW("v_sti: sti\n int $0x81");
LOW("v_pushf: pushf\n pop %ax\n int $0x81");
LOW("v_pushfl: pushfl\n int $0x81");
LOW("v_popf: pushw $0x3202\n popf\n pushf\n pop %ax\n int $0x81");
LOW("v_popfl: pushl $0x3202\n popfl\n int $0x81");
LOW("v_iret: pushf\n push %cs\n pushw $1f\n iret\n 1: mov $0x77, %ax\n int $0x81");
LOW("v_int20: int $0x20\n v_int20_next: nop\n int $0x81");
LOW("v_int3: int3\n int $0x81");
LOW("v_hlt: hlt");
LOW("v_in: in $0x61, %al\n int $0x81");
LOW("v_in_free: in $0x60, %al\n mov $0x11, %ax\n int3");
LOW("v_lgdt: lgdtl v_out");
LOW("v_mov_cr: mov %cr0, %eax");
LOW("v_sldt: sldt %ax");
LOW("v_limit: mov $0xffff, %bx\n mov (%bx), %ax\n int $0x81");
LOW("v_ud: ud2");
LOW("v_far: lcall $0x0800, $1f - 0x8000\n int $0x81\n 1: mov %cs, %ax\n lret");
LOW("v_addr32: mov $0x10000, %ebx\n mov (%ebx), %al\n int $0x81");
LOW("v_vme: sti\n pushf\n pop %ax\n cli\n pushf\n pop %bx\n int3");
LOW("v_vme_popf: pushw $0x0202\n popf\n pushf\n pop %ax\n int3");
LOW("v_vme_tf: pushw $0x0302\n popf\n int3");
LOW("v_vme_vip: sti\n int3");
LOW("v_vme_int: sti\n mov %sp, %dx\n int $0x22\n v_vme_next: pushf\n pop %cx\n int3\n"
    "v_handler: mov %sp, %bp\n mov (%bp), %ax\n mov 4(%bp), %bx\n pushf\n pop %si\n iret");
LOW("v_vme_iret: pushw $0x0202\n push %cs\n pushw $1f\n iret\n 1: pushf\n pop %ax\n int3");
LOW("v_loop: xor %eax, %eax\n mov $50000, %cx\n 1: add %cx, v_out + 8\n adc $0, %ax\n loop 1b\n int $0x81");
LOW("v_smsw: smsw %ax\n int $0x81");
LOW("v_push32: mov %sp, %ax\n pushl $0x12345678\n sub %sp, %ax\n pop %ebx\n int $0x81");
LOW("v_bound: movw $1, 0x7100\n movw $5, 0x7102\n mov $9, %ax\n bound %ax, 0x7100\n int $0x81");
SYM(v_int20_next);
SYM(v_handler);
SYM(v_vme_next);
CODE32("u_pvi: sti\n pushf\n pop %eax\n cli\n pushf\n pop %ebx\n int $0x81");
CODE32("u_cli: cli\n int $0x81");
CODE32("u_sti: sti\n int $0x81");

/* A little monitor: CLI, STI, PUSHF, POPF, INT and IRET of a program that must not own IF. */
static u16 virtual_if;
static unsigned emulated;
static bool monitor(struct regs *r)
{
    if (!(r->eflags & FL_VM))
        return false;
    u8 *ip = (u8 *)((u16)r->cs * 16 + (u16)r->eip);
    u16 *sp = (u16 *)((u16)r->ss * 16 + (u16)r->esp);
    emulated++;
    switch (*ip) {
    case 0xfa: virtual_if = 0; break;
    case 0xfb: virtual_if = FL_IF; break;
    case 0x9c: sp[-1] = (u16)((r->eflags & ~FL_IF) | virtual_if); r->esp -= 2; break;
    case 0x9d: virtual_if = sp[0] & FL_IF; r->eflags = (r->eflags & ~0xcd5u) | (sp[0] & 0xcd5); r->esp += 2; break;
    default: return false;
    }
    r->eip++;
    return true;
}
SYM(v_monitored);
LOW("v_monitored: cli\n pushf\n pop %ax\n sti\n pushf\n pop %bx\n stc\n pushf\n clc\n popf\n sbb %cx, %cx\n int3");

static void ends(const char *name, unsigned vec, const char *at, u32 err, const void *code, u32 flags)
{
    run_v86(code, 0, flags);
    reportf(trapped(vec, err) && (trap.eflags & FL_VM) && trap.eip == (u32)at, "%s", name);
}

int main(void)
{
    const u32 free_running = FL_IOPL;
    report_eq("in and out", run_v86(v_ret, 0x12348765, free_running), VEC_RETURN);
    report_eq("... VM in the pushed EFLAGS", trap.eflags & (FL_VM | FL_IOPL), FL_VM | FL_IOPL);
    report_eq("... EAX", trap.eax, 0x12348765);
    report_eq("... CS, SS, DS", trap.cs << 16 | trap.ss | trap.v_ds, 0);
    report_eq("... SP", trap.esp, 0x7c00);
    report_eq("... the monitor's DS was null before it loaded it", trap.ds & 0xffff, 0);
    v_out[0] = 0x9191;
    run_v86(v_segs, 0, free_running);
    report_eq("segments are paragraphs", (u16)trap.eax, 0x9191);
    report_eq("... for writes too", v_out[1], 0x7a7a);
    report_eq("... DS in the frame", trap.v_ds, 0x800);
    report_eq("cli and sti with IOPL 3", run_v86(v_cli, 0, free_running | FL_IF), VEC_RETURN);
    report_eq("... IF", trap.eflags & FL_IF, 0);
    ends("cli with IOPL 0: #GP", GP, v_cli, 0, v_cli, 0);
    ends("sti with IOPL 0: #GP", GP, v_sti, 0, v_sti, 0);
    ends("pushf with IOPL 0: #GP", GP, v_pushf, 0, v_pushf, 0);
    ends("popf with IOPL 2: #GP", GP, v_popf + 3, 0, v_popf, 0x2000);
    run_v86(v_iret, 0, 0);
    report("iret with IOPL 0: #GP", trapped(GP, 0));
    ends("int n with IOPL 0: #GP(0)", GP, v_int20, 0, v_int20, 0);
    ends("hlt: #GP", GP, v_hlt, 0, v_hlt, free_running);
    ends("in a port the bitmap closes: #GP", GP, v_in, 0, v_in, free_running);
    tss.bitmap[0x60 / 8] &= (u8)~1u;
    report_eq("in a port it opens", run_v86(v_in_free, 0, 0), BP);
    ends("... not its neighbour", GP, v_in, 0, v_in, free_running);
    ends("lgdt: #GP", GP, v_lgdt, 0, v_lgdt, free_running);
    ends("mov from cr0: #GP", GP, v_mov_cr, 0, v_mov_cr, free_running);
    ends("sldt: #UD", UD, v_sldt, 0, v_sldt, free_running);
    ends("ud2: #UD", UD, v_ud, 0, v_ud, 0);
    if (on_tcg()) {
        skip("segment limits", "TCG checks none");
    } else {
        ends("word at ffff: #GP", GP, v_limit + 3, 0, v_limit, free_running);
        ends("beyond 64 KiB by a 32-bit address: #GP", GP, v_addr32 + 6, 0, v_addr32, free_running);
    }
    run_v86(v_popf, 0, free_running);
    report_eq("popf with IOPL 3 takes IF, not IOPL", trap.eflags & (FL_IF | FL_IOPL), FL_IF | FL_IOPL);
    run_v86(v_iret, 0, free_running);
    report_eq("iret with IOPL 3 stays in V86 mode", trap.eax, 0x77);
    idt[0x20] = idt[VEC_RETURN];
    run_v86(v_int20, 0, free_running);
    report("int n with IOPL 3 goes to the monitor", trap.vec == VEC_RETURN && trap.eip == (u32)v_int20_next);
    gate_set(idt, 0x20, KCS, (u32)idt, 0x8e);
    ends("... #GP if its gate's DPL is 0", GP, v_int20, 0x20 * 8 + 2, v_int20, free_running);
    idt_reset();
    run_v86(v_int3, 0, 0);
    report("int3 goes to the monitor whatever IOPL", trap.vec == BP && trap.eip == (u32)v_int3 + 1);
    run_v86(v_far, 0, free_running);
    report_eq("far call and return", trap.eax, 0x800);
    v_out[4] = 0;
    run_v86(v_loop, 0, free_running);
    report_eq("a loop with memory", trap.eax << 16 | v_out[4], 50000u * 50001 / 2);
    run_v86(v_smsw, 0, free_running);
    report_eq("smsw shows PE", trap.eax & 1, 1);
    run_v86(v_push32, 0, free_running);
    report("push of 32 bits", (u16)trap.eax == 4 && trap.ebx == 0x12345678);
    ends("bound: #BR", BR, v_bound + 15, 0, v_bound, free_running);

    handlers[GP] = monitor;
    report_eq("under a monitor", run_v86(v_monitored, 0, 0), BP);
    report_eq("... which did six instructions", emulated, 6);
    report_eq("... IF as the program sees it", (trap.eax & FL_IF) << 16 | (trap.ebx & FL_IF), FL_IF);
    report_eq("... CF through popf", (u16)trap.ecx, 0xffff);
    handlers[GP] = NULL;

    if (!(cpuid_edx(1) & 2) || on_tcg()) {
        skip("VME and PVI", "not there");
        return 0;
    }
    WR(cr4, RD(cr4) | CR4_VME | CR4_PVI);
    report_eq("VME: sti, cli, pushf with IOPL 0", run_v86(v_vme, 0, 0), BP);
    report_eq("... pushf shows VIF as IF, and IOPL 3", (trap.eax & (FL_IF | FL_IOPL)) << 16 | (trap.ebx & (FL_IF | FL_IOPL)),
              (u32)(FL_IF | FL_IOPL) << 16 | FL_IOPL);
    report_eq("... the real IF and IOPL stay", trap.eflags & (FL_IF | FL_IOPL), 0);
    run_v86(v_vme_popf, 0, FL_IF);
    report_eq("VME: popf sets VIF", trap.eflags & (FL_VIF | FL_IF), FL_VIF | FL_IF);
    ends("VME: popf with TF: #GP", GP, v_vme_tf + 3, 0, v_vme_tf, 0);
    ends("VME: popfl is #GP still", GP, v_popfl + 6, 0, v_popfl, 0);
    ends("VME: pushfl too", GP, v_pushfl, 0, v_pushfl, 0);
    ends("VME: sti with VIP: #GP", GP, v_vme_vip, 0, v_vme_vip, FL_VIP);
    run_v86(v_vme_iret, 0, 0);
    report_eq("VME: iret sets VIF", trap.eflags & FL_VIF, FL_VIF);
    ends("VME: int n that is not redirected, IOPL 0: #GP", GP, v_int20, 0, v_int20, 0);
    tss.redirect[0x22 / 8] &= (u8)~(1 << (0x22 & 7));
    ((volatile u32 *)0)[0x22] = (u32)v_handler;
    run_v86(v_vme_int, 0, 0);
    report("VME: int n redirected, IOPL 0", trap.vec == BP && (u16)trap.eax == (u16)(u32)v_vme_next);
    report_eq("... the image has VIF as IF, and IOPL 3", (u16)trap.ebx & (FL_IF | FL_IOPL), FL_IF | FL_IOPL);
    report_eq("... VIF is clear in the handler", (u16)trap.esi & FL_IF, 0);
    report_eq("... and set after its iret", (u16)trap.ecx & FL_IF, FL_IF);
    run_v86(v_vme_int, 0, FL_IOPL);
    report("VME: int n redirected, IOPL 3", trap.vec == BP && ((u16)trap.ebx & FL_IF) && !((u16)trap.esi & FL_IF));
    report_eq("PVI: sti and cli at ring 3", run_user(u_pvi, 0, 0), VEC_RETURN);
    report_eq("... VIF came and went", (trap.eax & FL_VIF) | (trap.ebx & FL_VIF) >> 1, FL_VIF);
    report_eq("... IF never", (trap.eax | trap.ebx) & FL_IF, 0);
    run_user(u_sti, 0, FL_VIP);
    report("PVI: sti with VIP: #GP", trapped(GP, 0));
    WR(cr4, RD(cr4) & ~(CR4_VME | CR4_PVI));
    run_user(u_cli, 0, 0);
    report("without PVI cli at ring 3 is #GP", trapped(GP, 0));
    return 0;
}
