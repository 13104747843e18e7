/* setup.c - tables, traps and small helpers; see legacy.h. */
#include "legacy/lib/legacy.h"

u64 gdt[GDT_END / 8] __attribute__((aligned(16)));
u64 idt[256] __attribute__((aligned(16)));
struct tss tss __attribute__((aligned(16)));
static struct tss df_tss;
u8 ustack[8192] __attribute__((aligned(16))), istack[4096] __attribute__((aligned(16)));
static u8 df_stack[4096] __attribute__((aligned(16)));
struct regs trap;
u32 trap_cr2, trap_count;
trap_handler *handlers[256];
extern char trap_stubs[], real_stubs[], gdtr[], idtr[];
extern u32 run_esp;
void run_end(unsigned vec) __attribute__((noreturn));
void setup(void);
void trap_c(struct regs *r);

void gdt_set(unsigned sel, u32 base, u32 limit, unsigned access, unsigned flags)
{
    gdt[sel / 8] = (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 |
                   (u64)((limit >> 16 & 15) | flags << 4) << 48 | (u64)(base >> 24) << 56;
}

void gate_set(u64 *table, unsigned index, u16 sel, u32 off, unsigned type_dpl)
{
    table[index] = (off & 0xffff) | (u64)sel << 16 | (u64)type_dpl << 40 | (u64)(off >> 16) << 48;
}

void idt_reset(void)
{
    for (unsigned i = 0; i < 256; i++)
        gate_set(idt, i, KCS, (u32)trap_stubs + 16 * i, i == VEC_RETURN || i == BP || i == OF ? 0xee : 0x8e);
    gate_set(idt, DF, DF_TSS_SEL, 0, 0x85);
    asm volatile("lidt idtr");
}

/* A double fault means that no stack can be trusted: a task of its own says so. */
static void double_fault(void)
{
    struct tss *t = (void *)((u32)(gdt[df_tss.link / 8] >> 16 & 0xffffff) | (u32)(gdt[df_tss.link / 8] >> 56) << 24);
    print("# double fault at %x:%x, esp %x:%x\n", t->cs, t->eip, t->ss, t->esp);
    report("no double fault", false);
    guest_exit();
}

void setup(void)
{
    outb(0x21, 0xff); /* a boot loader leaves the interrupt controllers on, at the vectors of exceptions */
    outb(0xa1, 0xff);
    gdt_set(KCS, 0, 0xfffff, 0x9b, 12);
    gdt_set(KDS, 0, 0xfffff, 0x93, 12);
    gdt_set(KCS16, 0, 0xffff, 0x9b, 0);
    gdt_set(KDS16, 0, 0xffff, 0x93, 0);
    gdt_set(UCS, 0, 0xfffff, 0xfb, 12);
    gdt_set(UDS, 0, 0xfffff, 0xf3, 12);
    gdt_set(TSS_SEL, (u32)&tss, sizeof(tss) - 1, 0x89, 0);
    gdt_set(DF_TSS_SEL, (u32)&df_tss, 103, 0x89, 0);
    tss.ss0 = KDS;
    tss.esp0 = (u32)istack + sizeof(istack);
    tss.iomap = offsetof(struct tss, bitmap);
    memset(tss.redirect, 0xff, sizeof(tss.redirect));
    memset(tss.bitmap, 0xff, sizeof(tss.bitmap));
    df_tss.cs = KCS;
    df_tss.ds = df_tss.es = df_tss.ss = KDS;
    df_tss.esp = (u32)df_stack + sizeof(df_stack) - 16;
    df_tss.eip = (u32)double_fault;
    df_tss.eflags = 2;
    idt_reset();
    asm volatile("lgdt gdtr");
    asm volatile("ltr %w0" ::"r"(TSS_SEL));
    for (unsigned i = 0; i < 32; i++)
        ((volatile u32 *)0)[i] = (u32)(real_stubs + 8 * i);
}

void trap_c(struct regs *r)
{
    bool v86 = r->eflags & FL_VM, outer = v86 || (r->cs & 3);
    memcpy(&trap, r, v86 ? sizeof(trap) : outer ? offsetof(struct regs, v_es) : offsetof(struct regs, esp));
    if (!outer) {
        trap.esp = (u32)&r->esp;
        trap.ss = KDS;
    }
    trap_cr2 = RD(cr2);
    trap_count++;
    if (handlers[r->vec & 255] && handlers[r->vec & 255](r))
        return;
    if (!run_esp) {
        print("# trap %u err %x at %x:%x\n", r->vec, r->err, r->cs, r->eip);
        report("no trap outside run()", false);
        guest_exit();
    }
    run_end(r->vec & 255);
}

bool trapped(unsigned vec, u32 err)
{
    bool ok = trap.vec == vec && trap.err == err;
    if (!ok)
        print("# got vector %u error %x at %x:%x, want %u %x\n", trap.vec, trap.err, trap.cs, trap.eip, vec, err);
    return ok;
}

/* -- Ring 3 and V86: an iret frame on the run's stack -------------------------------------------------------- */
static u32 enter_arg, enter_frame[9], enter_words;
static void enter(u32 unused)
{
    asm volatile("mov %1, %%ecx\n"
                 "1: pushl -4(%2, %%ecx, 4)\n"
                 "loop 1b\n"
                 "mov %0, %%eax\n"
                 "cmpl $9, %1\n"
                 "je 2f\n"
                 "mov %3, %%edx\n"
                 "mov %%edx, %%ds\n"
                 "mov %%edx, %%es\n"
                 "mov %%edx, %%fs\n"
                 "mov %%edx, %%gs\n"
                 "2: iret" ::"m"(enter_arg), "S"(enter_words), "D"(enter_frame), "i"(UDS) : "eax", "ecx", "edx", "memory");
}
static unsigned enter_with(const void *code, u32 arg, u32 eflags, u32 cs, u32 ss, u32 esp, unsigned words)
{
    const u32 frame[9] = { (u32)code, cs, eflags, esp, ss };
    memcpy(enter_frame, frame, sizeof(frame));
    enter_arg = arg;
    enter_words = words;
    return run((const void *)enter, 0);
}
unsigned run_user(const void *code, u32 arg, u32 eflags)
{
    return enter_with(code, arg, eflags | 2, UCS, UDS, (u32)ustack + sizeof(ustack) - 16, 5);
}
unsigned run_v86(const void *code, u32 arg, u32 eflags)
{
    return enter_with(code, arg, eflags | FL_VM | 2, 0, 0, 0x7c00, 9);
}

bool on_tcg(void)
{
    u32 a = 0x40000000, b, c = 0, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return b == 0x54474354; /* TCGT */
}

void low_copy(u32 base)
{
    extern char low_start[], low_end[];
    memcpy((void *)(base + (u32)low_start), low_start, (u32)low_end - (u32)low_start);
}

u32 page_alloc(void)
{
    static u32 next = 0x1000000;
    memset((void *)next, 0, 4096);
    next += 4096;
    return next - 4096;
}

/* What gcc wants for 64-bit division. */
u64 __udivmoddi4(u64 n, u64 d, u64 *rem);
u64 __udivmoddi4(u64 n, u64 d, u64 *rem)
{
    u64 q = 0, r = 0;
    for (int i = 63; i >= 0; i--) {
        r = r << 1 | (n >> i & 1);
        if (r >= d) {
            r -= d;
            q |= 1ull << i;
        }
    }
    if (rem)
        *rem = r;
    return q;
}
