/*
 * ist.c - which stack a trap lands on, how it is aligned, and what the CPU writes there.
 * Intel SDM vol. 3 §6.14.2 (frame), §6.14.4 (stack switch), §6.14.5 (IST).
 */
#include "lib/guest.h"

static u8 stacks[3][4096] __attribute__((aligned(4096)));
static volatile struct regs seen;
static volatile u64 seen_frame, seen_ss, seen_rflags, seen_cs;

static void look(struct regs *r)
{
    seen = *r;
    seen_frame = trap.frame;
    seen_ss = RDSEG(ss);
    seen_cs = RDSEG(cs);
    asm volatile("pushf; pop %0" : "=r"(seen_rflags));
}

static u64 top(int i)
{
    return (u64)stacks[i] + sizeof(stacks[i]);
}

USER_ASM("user_int50: int $0x50\n ret");
USER_ASM("user_int51: int $0x51\n ret");
USER_ASM("user_ud2: ud2");
USER_ASM_32("user32_int50: int $0x50\n ret");
extern char user_int50[], user_int51[], user_ud2[], user32_int50[];

extern char at_int[];

int main(void)
{
    for (unsigned v = 0x50; v < 0x54; v++) {
        trap_handle(v, look);
        idt_gate(v, trap_stub(v), KCS, 3, 14, 0);
    }
    u64 rsp, fl;

    /* No IST, same ring: the frame is below RSP, aligned down. */
    for (unsigned off = 0; off < 16; off++) {
        asm volatile(
            "mov %%rsp, %%rbx; sub $64, %%rsp; and $-16, %%rsp; sub %1, %%rsp; mov %%rsp, %0;"
            "pushf; pop %2; int $0x50; mov %%rbx, %%rsp"
            : "=&r"(rsp)
            : "r"((u64)off), "r"(0ull)
            : "rbx", "memory", "cc");
        if (off == 0)
            report_eq("same ring, aligned: frame right below RSP", seen_frame, rsp - 40);
        else if (off == 8 || off == 1 || off == 15)
            reportf(seen_frame == (rsp & ~15ull) - 40, "same ring, RSP off by %u: aligned down",
                    off);
        if (seen.rsp != rsp)
            reportf(false, "the frame has RSP as it was, off by %u", off);
    }
    report_eq("same ring: RSP in the frame is exact", seen.rsp, rsp);
    report_eq("same ring: SS in the frame", seen.ss, KDS);
    report_eq("same ring: CS in the frame", seen.cs, KCS);
    report_eq("same ring: SS unchanged in the handler", seen_ss, KDS);

    asm volatile("pushf; pop %0; .globl at_int; int $0x50; at_int:" : "=r"(fl)::"memory");
    report_eq("RIP after int n", seen.rip, (u64)at_int);
    report_eq("RFLAGS in the frame", seen.rflags, fl);

    /* Interrupt gate clears IF, trap gate keeps it; both clear TF, NT, RF. */
    pic_mask_all();
    asm volatile(
        "pushf; orl $0x4200, (%%rsp); popf; int $0x50; pushf; andl $~0x4200, (%%rsp); popf" ::
            : "memory", "cc");
    report_eq("interrupt gate: IF and NT clear in the handler",
              seen_rflags & (FL_IF | FL_NT | FL_TF), 0);
    report_eq("interrupt gate: IF and NT in the frame", seen.rflags & (FL_IF | FL_NT),
              FL_IF | FL_NT);
    idt_gate(0x51, trap_stub(0x51), KCS, 3, 15, 0);
    asm volatile("sti; int $0x51; cli" ::: "memory");
    report_eq("trap gate: IF stays", seen_rflags & FL_IF, FL_IF);
    asm volatile(
        "pushf; orl $0x40000, (%%rsp); popf; int $0x50; pushf; andl $~0x40000, (%%rsp); popf" ::
            : "memory", "cc");
    report_eq("AC stays in the handler", seen_rflags & FL_AC, FL_AC);
    asm volatile("std; int $0x50; cld" ::: "memory");
    report_eq("DF is in the frame", seen.rflags & FL_DF, FL_DF);

    /* IST from the kernel. */
    tss.ist[2] = top(0);
    tss.ist[3] = top(1) - 8; /* misaligned */
    tss.ist[7] = top(2);
    idt_gate(0x50, trap_stub(0x50), KCS, 3, 14, 2);
    asm volatile("mov %%rsp, %0; int $0x50" : "=&r"(rsp)::"memory");
    report_eq("IST 2, same ring: the frame is at its top", seen_frame, top(0) - 40);
    report_eq("IST 2: RSP in the frame", seen.rsp, rsp);
    report_eq("IST, same ring: SS unchanged in the handler", seen_ss, KDS);
    idt_gate(0x50, trap_stub(0x50), KCS, 3, 14, 3);
    asm volatile("int $0x50" ::: "memory");
    report_eq("a misaligned IST pointer is aligned down", seen_frame, ((top(1) - 8) & ~15ull) - 40);
    idt_gate(0x50, trap_stub(0x50), KCS, 3, 14, 7);
    asm volatile("int $0x50" ::: "memory");
    report_eq("IST 7", seen_frame, top(2) - 40);
    tss.ist[7] = top(2) - 512;
    asm volatile("int $0x50" ::: "memory");
    report_eq("the TSS is read each time", seen_frame, top(2) - 552);

    /* A fault with an error code on IST. */
    idt_gate(PF, trap_stub(PF), KCS, 0, 14, 2);
    unsigned v = TRY("mov (%0), %%rax", ::"r"(PAGE3) : "rax");
    report("#PF on IST", v == PF && trap.frame == top(0) - 40);
    report_eq("with its error code below RIP", *(u64 *)(trap.frame - 8), 0);
    v = TRY("xor %%esp, %%esp; mov (%0), %%rax", ::"r"(PAGE3) : "rax");
    report("#PF on IST needs no stack", v == PF && trap.r.rsp == 0);
    idt_reset();

    /* From ring 3. */
    for (unsigned n = 0x50; n < 0x54; n++)
        idt_gate(n, trap_stub(n), KCS, 3, 14, 0);
    trap_handle(0x50, NULL);
    user_call(user_int50, 0, 0, 0);
    report_eq("from ring 3: the frame is at RSP0", trap.frame, (tss.rsp[0] & ~15ull) - 40);
    report_eq("CS in the frame", trap.r.cs, UCS64);
    report_eq("SS in the frame", trap.r.ss, UDS);
    report_eq("RSP in the frame", trap.r.rsp, (u64)ustack + sizeof(ustack) - 72);
    report_eq("RIP in the frame", trap.r.rip, (u64)user_int50 + 2);
    trap_handle(0x51, look);
    user_call(user_int51, 0, 0, 0);
    report_eq("from ring 3: SS is null in the handler", seen_ss, 0);
    report_eq("and CS the gate's", seen_cs, KCS);
    report_eq("then ring 3 goes on", trap.vec, VEC_RETURN);
    user_call32(user32_int50, 0);
    report_eq("from 32-bit ring 3: RSP is 32 bits wide", trap.r.rsp,
              (u64)ustack + sizeof(ustack) - 68);
    report_eq("and CS is its own", trap.r.cs, UCS32);
    idt_gate(0x50, trap_stub(0x50), KCS, 3, 14, 2);
    user_call(user_int50, 0, 0, 0);
    report_eq("from ring 3 with IST: not RSP0", trap.frame, top(0) - 40);
    idt_gate(UD, trap_stub(UD), KCS, 0, 14, 2);
    user_call(user_ud2, 0, 0, 0);
    report("#UD from ring 3 with IST", trap.vec == UD && trap.frame == top(0) - 40);
    trap_handle(0x51, look);
    idt_gate(0x51, trap_stub(0x51), KCS, 3, 14, 2);
    user_call(user_int51, 0, 0, 0);
    report_eq("from ring 3 with IST: SS is null in the handler", seen_ss, 0);

    /* An IST stack that is not there: #PF while delivering. */
    tss.ist[2] = PAGE3 + PAGE;
    v = TRY("int $0x50", ::);
    report("int n onto an absent IST stack is #PF", v == PF && trap.r.err == PF_W &&
                                                        trap.cr2 >= PAGE3 + PAGE - 48 &&
                                                        trap.cr2 < PAGE3 + PAGE);
    report_eq("with RIP at the int", *(u16 *)trap.r.rip, 0x50cd);
    tss.ist[2] = 0x0000900000000000ull;
    v = TRY("int $0x50", ::);
    report("int n onto a non-canonical IST stack is #SS(0)", v == SS && (trap.r.err & ~1ull) == 0);
    idt_reset();
    return 0;
}
