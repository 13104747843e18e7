/* Hardware tasks (SDM vol. 3 §7): far jmp and call, iret with NT, task gates for events, 16-bit TSSs, what faults where. */
#include "legacy/lib/legacy.h"

enum { GATE = GDT_FREE, TSS16 = GDT_FREE + 8, NPTSS = GDT_FREE + 16, SHORT = GDT_FREE + 24, TSS3 = GDT_FREE + 32, NPDATA = GDT_FREE + 48 };
static struct tss tss2, tss3;
static u16 tss16[64];
static u8 stack2[4096] __attribute__((aligned(16)));
volatile u32 seen[16];
static u32 esp_of(u8 *s) { return (u32)s + 4096 - 16; }
SYM(jmp_to);
SYM(call_to);
SYM(call_gate);
SYM(jmp_gate);
SYM(call_16);
SYM(task2_back);
SYM(task2_iret);
SYM(task2_loop);
SYM(task16_iret);
SYM(jmp_np);
SYM(jmp_short);
SYM(jmp_busy);
SYM(call_busy);
SYM(int_gate);
SYM(jmp_data);
SYM(task_end);
SYM(task_err);
SYM(task2_v86);
SYM(div_zero);
SYM(iret_nt);
SYM(jmp_other);

CODE32("jmp_to: mov $0x11111111, %ecx\n mov $0x22222222, %edx\n ljmp $0x48, $0\n after_jmp: mov %ecx, seen + 4\n ret");
CODE32("call_to: stc\n mov $0x33333333, %esi\n lcall $0x48, $0x12345678\n after_call: pushf\n popl seen + 8\n mov %esi, seen + 12\n ret");
CODE32("call_gate: lcall $0x58, $0\n ret");
CODE32("jmp_gate: ljmp $0x58, $0\n ret");
CODE32("call_16: mov $0xaaaabbbb, %ebx\n lcall $0x60, $0\n mov %ebx, seen + 20\n ret");
CODE32("task2_back: mov %eax, seen\n mov %cr0, %eax\n mov %eax, seen + 16\n clts\n ljmp $0x38, $0\n jmp task2_back");
CODE32("task2_iret: mov %eax, seen\n pushf\n popl seen + 16\n str seen + 28\n iret\n mov $0x77, %eax\n jmp task2_iret");
CODE32("task2_loop: incl seen + 24\n iret\n jmp task2_loop");
LOWDATA volatile u16 seen16;
LOW("task16_iret: mov %ax, %ss:seen16\n iret\n jmp task16_iret");
CODE32("jmp_np: ljmp $0x68, $0\n ret");
CODE32("jmp_short: ljmp $0x70, $0\n ret");
CODE32("jmp_busy: ljmp $0x38, $0\n ret");
CODE32("call_busy: lcall $0x38, $0\n ret");
CODE32("jmp_other: ljmp $0x78, $0\n ret");
CODE32("int_gate: int $0x40\n mov $0x5555, %eax\n mov %eax, seen + 32\n ret");
SYM(int_gate_user);
CODE32("int_gate_user: int $0x40\n mov $0x5555, %eax\n mov %eax, seen + 32\n int $0x81");
CODE32("jmp_data: ljmp $0x10, $0\n ret");
CODE32("task_end: int $0x81");
CODE32("task_err: popl seen + 36\n mov %esp, seen + 40\n int $0x81");
SYM(int_13);
CODE32("int_13: int $0x13"); /* DPL 0: #GP with an error code */
CODE32("div_zero: xor %ecx, %ecx\n xor %edx, %edx\n div %ecx\n mov $0x99, %eax\n mov %eax, seen + 44\n ret");
CODE32("iret_nt: pushf\n orl $0x4000, (%esp)\n popf\n iret\n ret");
LOW("task2_v86: mov $0x4242, %ax\n int $0x81");

static void task_init(struct tss *t, const void *eip, u8 *stack)
{
    memset(t, 0, 104);
    t->cs = KCS;
    t->ds = t->es = t->fs = t->gs = t->ss = KDS;
    t->esp = esp_of(stack);
    t->eip = (u32)eip;
    t->eflags = 2;
    t->ss0 = KDS;
    t->esp0 = (u32)istack + sizeof(istack);
    t->iomap = 104;
}
static unsigned type_of(unsigned sel) { return gdt[sel / 8] >> 40 & 15; }
static u16 str(void)
{
    u16 sel;
    asm volatile("str %0" : "=r"(sel));
    return sel;
}
/* Back to a clean state whatever the test did: TR = tss, no NT. */
static void clean(void)
{
    gdt_set(TSS_SEL, (u32)&tss, sizeof(tss) - 1, 0x89, 0);
    gdt_set(TSS2_SEL, (u32)&tss2, 103, 0x89, 0);
    gdt_set(TSS3, (u32)&tss3, 103, 0x89, 0);
    asm volatile("ltr %w0; pushf; andl $~0x4000, (%%esp); popf; clts" ::"r"(TSS_SEL));
    for (unsigned i = 0; i < ARRAY_LEN(seen); i++)
        seen[i] = 0;
}

static bool de_handler(struct regs *r)
{
    r->ecx = 1;
    return true;
}

int main(void)
{
    gdt_set(NPTSS, (u32)&tss3, 103, 0x09, 0);
    gdt_set(SHORT, (u32)&tss3, 102, 0x89, 0);
    gdt_set(NPDATA, 0, 0xfffff, 0x13, 12);

    clean();
    task_init(&tss2, task2_back, stack2);
    tss2.eax = 0xabcdef01;
    report_eq("jmp to a TSS and back", run(jmp_to, 0), VEC_NONE);
    report_eq("... the new task's EAX", seen[0], 0xabcdef01);
    report_eq("... CR0.TS is set", seen[4] & CR0_TS, CR0_TS);
    report_eq("... our ECX came back", seen[1], 0x11111111);
    report_eq("... TR", str(), TSS_SEL);
    report_eq("... ours is busy, the other is not", type_of(TSS_SEL) << 4 | type_of(TSS2_SEL), 0xb9);
    report_eq("... its state was saved", tss2.eip > (u32)task2_back, 1);
    report_eq("... no NT", tss2.eflags & FL_NT, 0);

    clean();
    task_init(&tss2, task2_iret, stack2);
    report_eq("call to a TSS, iret", run(call_to, 0), VEC_NONE);
    report_eq("... NT in the new task", seen[4] & FL_NT, FL_NT);
    report_eq("... the link", tss2.link, TSS_SEL);
    report_eq("... CF and no NT after the return", seen[2] & (FL_NT | FL_CF), FL_CF);
    report_eq("... ESI", seen[3], 0x33333333);
    report_eq("... the types after it", type_of(TSS_SEL) << 4 | type_of(TSS2_SEL), 0xb9);
    report_eq("... NT is clear in the saved image", tss2.eflags & FL_NT, 0);
    report_eq("... str inside", (u16)seen[7], TSS2_SEL);
    report_eq("... ds saved", tss2.ds, KDS);
    report_eq("call again: it goes on behind its iret", run(call_to, 0), VEC_NONE);
    report_eq("... there", seen[0], 0x77);

    clean();
    gate_set(gdt, GATE / 8, TSS2_SEL, 0, 0x85);
    task_init(&tss2, task2_iret, stack2);
    tss2.eax = 5;
    report_eq("call through a task gate", run(call_gate, 0), VEC_NONE);
    report_eq("... got there", seen[0], 5);
    task_init(&tss2, task2_back, stack2);
    tss2.eax = 6;
    report_eq("jmp through a task gate", run(jmp_gate, 0), VEC_NONE);
    report_eq("... got there", seen[0], 6);
    gate_set(gdt, GATE / 8, TSS2_SEL, 0, 0x05);
    run(call_gate, 0);
    report("a gate that is not present: #NP(gate)", trapped(NP, GATE));
    gate_set(gdt, GATE / 8, KDS, 0, 0x85);
    run(call_gate, 0);
    report("a gate to a data segment: #GP(data)", trapped(GP, KDS));

    clean();
    memset(tss16, 0, sizeof(tss16));
    gdt_set(TSS16, (u32)tss16, 43, 0x81, 0);
    tss16[7] = (u16)(u32)task16_iret;
    tss16[8] = 2;
    tss16[9] = 0x1616; /* AX */
    tss16[13] = 0x7000; /* SP */
    tss16[17] = KDS;    /* ES CS SS DS */
    tss16[18] = KCS16;
    tss16[19] = KDS16;
    tss16[20] = KDS;
    report_eq("call to a 16-bit TSS", run(call_16, 0), VEC_NONE);
    report_eq("... its AX", seen16, 0x1616);
    report_eq("... our EBX is whole", seen[5], 0xaaaabbbb);
    report_eq("... its IP was saved", tss16[7] > (u16)(u32)task16_iret, 1);
    report_eq("... its link", tss16[0], TSS_SEL);

    clean();
    run(jmp_np, 0);
    report("a TSS that is not present: #NP", trapped(NP, NPTSS));
    run(jmp_short, 0);
    report("a TSS too short: #TS", trapped(TS, SHORT));
    run(jmp_busy, 0);
    report("jmp to a busy TSS: #GP", trapped(GP, TSS_SEL));
    run(call_busy, 0);
    report("call to a busy TSS: #GP", trapped(GP, TSS_SEL));
    run(jmp_data, 0);
    report("jmp to a data segment: #GP", trapped(GP, KDS));
    run_user(jmp_other, 0, 0);
    report("a TSS with DPL 0 from ring 3: #GP", trapped(GP, TSS3));
    report_eq("TR is still ours", str(), TSS_SEL);

    /* faults in the new task */
    clean();
    task_init(&tss2, task_end, stack2);
    tss2.ds = NPDATA;
    run(jmp_to, 0);
    report("DS not present: #NP in the new task", trapped(NP, NPDATA) && trap.eip == (u32)task_end);
    report_eq("... TR is the new task's", str(), TSS2_SEL);
    clean();
    task_init(&tss2, task_end, stack2);
    tss2.es = 0x1f8;
    run(jmp_to, 0);
    report("a bad ES: #TS", trapped(TS, 0x1f8) && trap.eip == (u32)task_end);
    clean();
    task_init(&tss2, task_end, stack2);
    tss2.ldt = KDS;
    run(jmp_to, 0);
    report("a bad LDT: #TS", trapped(TS, KDS));
    clean();
    task_init(&tss2, task_end, stack2);
    tss2.trap = 1;
    run(jmp_to, 0);
    report("the T bit: #DB", trapped(DB, 0) && trap.eip == (u32)task_end);
    u32 dr6 = RD(dr6);
    report_eq("... BT in DR6", dr6 & 0x8000, 0x8000);
    WR(dr6, 0xffff0ff0);

    /* events through task gates */
    clean();
    task_init(&tss2, task2_loop, stack2);
    gate_set(idt, 0x40, TSS2_SEL, 0, 0xe5);
    report_eq("int through a task gate", run(int_gate, 0), VEC_NONE);
    report_eq("... it ran", seen[6], 1);
    report_eq("... and we went on", seen[8], 0x5555);
    seen[8] = 0;
    report_eq("again, from ring 3", run_user(int_gate_user, 0, 0), VEC_RETURN);
    report_eq("... it ran", seen[6], 2);
    report_eq("... and ring 3 went on", seen[8], 0x5555);
    idt_reset();

    clean();
    task_init(&tss2, task_err, stack2);
    gate_set(idt, GP, TSS2_SEL, 0, 0x85);
    run_user(int_13, 0, 0);
    report_eq("#GP through a task gate: the error code is on its stack", seen[9], 0x13 * 8 + 2);
    report_eq("... and nothing else", seen[10], esp_of(stack2));
    report_eq("... the faulting EIP in the old TSS", tss.eip, (u32)int_13);
    report_eq("... its CS", (u16)tss.cs, UCS);
    report_eq("... RF in its EFLAGS", tss.eflags & FL_RF, FL_RF);
    idt_reset();

    clean();
    task_init(&tss2, task2_v86, (u8 *)0x7000);
    tss2.eflags = FL_VM | 2 | FL_IOPL;
    tss2.cs = tss2.ds = tss2.es = tss2.ss = tss2.fs = tss2.gs = 0;
    tss2.esp = 0x7000;
    run(jmp_to, 0);
    report("a task in V86 mode", trap.vec == VEC_RETURN && (trap.eflags & FL_VM) && (u16)trap.eax == 0x4242);

    clean();
    tss.link = KDS;
    run(iret_nt, 0);
    report("iret with NT to what is no TSS: #TS", trapped(TS, KDS));
    clean();
    tss.link = TSS3;
    run(iret_nt, 0);
    report("iret with NT to a TSS that is not busy: #TS", trapped(TS, TSS3));

    /* the kernel's own faults still work */
    clean();
    handlers[DE] = de_handler;
    report_eq("after all that a fault is handled", run(div_zero, 8), VEC_NONE);
    report_eq("... and returned from", seen[11], 0x99);
    return 0;
}
