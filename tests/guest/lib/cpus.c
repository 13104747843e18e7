/* cpus.c - other processors: starting them (SDM vol. 3 §8.4), and giving them work. */
#include "lib/cpus.h"

/* -- Starting: real mode to a C function ------------------------------------------------------------------ */

KERNEL_ASM(".code16\n"
           ".globl ap_start, ap_end, ap_seen_cs, ap_seen_cr0, ap_gdtr, ap_cr3, ap_first\n"
           "ap_start:\n"
           "  cli\n"
           "  movw %cs, %ax\n"
           "  movw %ax, %ds\n"
           "  movw %ax, ap_seen_cs - ap_start\n"
           "  movl %cr0, %eax\n"
           "  movl %eax, ap_seen_cr0 - ap_start\n"
           "  lgdtl ap_gdtr - ap_start\n"
           "  movl $0x620, %eax\n" /* OSXMMEXCPT, OSFXSR, PAE */
           "  movl %eax, %cr4\n"
           "  movl ap_cr3 - ap_start, %eax\n"
           "  movl %eax, %cr3\n"
           "  movl $0xc0000080, %ecx\n"
           "  rdmsr\n"
           "  orl $0x900, %eax\n" /* NXE, LME */
           "  wrmsr\n"
           "  movl $0x80010023, %eax\n" /* PG, WP, NE, MP, PE */
           "  movl %eax, %cr0\n"
           "  ljmpl $0x10, $ap_long\n"
           "  .align 8\n"
           "ap_seen_cs: .long 0\n"
           "ap_seen_cr0: .long 0\n"
           "ap_cr3: .long 0\n"
           "ap_gdtr: .word 0\n"
           "  .long 0\n"
           "ap_end:\n"
           ".code64\n"
           "ap_long:\n"
           "  movw $0x18, %ax\n"
           "  movw %ax, %ds\n"
           "  movw %ax, %es\n"
           "  movw %ax, %ss\n"
           "  movl $0xfee00020, %eax\n" /* the APIC's ID picks the stack */
           "  movl (%rax), %eax\n"
           "  shrl $24, %eax\n"
           "  movl %eax, %edi\n"
           "  shlq $14, %rax\n"
           "  leaq ap_stacks + 16384(%rax), %rsp\n"
           "  call ap_main\n"
           "1: hlt\n"
           "  jmp 1b\n");
extern char ap_end[], ap_gdtr[], ap_cr3[];
u8 ap_stacks[MAX_CPUS][16384] __attribute__((aligned(16), used));

struct dtr {
    u16 limit;
    u64 base;
} __attribute__((packed));
static struct dtr idtr;

void cpus_prepare(unsigned page)
{
    u8 *to = (u8 *)((u64)page << 12);
    memcpy(to, ap_start, (size_t)(ap_end - ap_start));
    struct dtr g;
    asm volatile("sgdt %0" : "=m"(g));
    *(u16 *)(to + (ap_gdtr - ap_start)) = g.limit;
    *(u32 *)(to + (ap_gdtr - ap_start) + 2) = (u32)g.base;
    *(u32 *)(to + (ap_cr3 - ap_start)) = (u32)RD(cr3);
    asm volatile("sidt %0" : "=m"(idtr));
}

/* -- Work for the others ------------------------------------------------------------------------------------ */

volatile u32 up[MAX_CPUS], starts[MAX_CPUS], ids[MAX_CPUS], ids_b[MAX_CPUS];
void (*volatile job[MAX_CPUS])(unsigned cpu);
unsigned nr_cpus;

void ap_main(unsigned cpu) __attribute__((used));
void ap_main(unsigned cpu)
{
    asm volatile("lidt %0" ::"m"(idtr));
    lapic_write(LAPIC_SVR, 0x1ff);
    lapic_write(LAPIC_TPR, 0);
    lapic_write(LAPIC_LDR, 1u << (24 + cpu));
    lapic_write(LAPIC_DFR, ~0u);
    ids[cpu] = cpuid(1, 0).ebx >> 24;
    ids_b[cpu] = cpuid(0xb, 0).edx;
    add(&starts[cpu], 1);
    up[cpu] = 1;
    sti();
    for (;;) {
        void (*run)(unsigned) = job[cpu];
        if (!run) {
            pause();
            continue;
        }
        run(cpu);
        job[cpu] = NULL;
    }
}

bool until(volatile u32 *p, u32 value)
{
    u64 limit = rdtsc() + tsc_per_ms() * 20000;
    while (*p != value) {
        if (rdtsc() > limit)
            return false;
        pause();
    }
    return true;
}
void start_all(void (*run)(unsigned cpu))
{
    for (unsigned i = 1; i < nr_cpus; i++)
        job[i] = run;
}
void wait_all(void)
{
    u64 limit = rdtsc() + tsc_per_ms() * 30000;
    for (unsigned i = 1; i < nr_cpus; i++)
        while (job[i]) {
            if (rdtsc() > limit)
                die("# CPU %u does not come back\n", i);
            pause();
        }
}
void on_all(void (*run)(unsigned cpu))
{
    start_all(run);
    run(0);
    wait_all();
}

void ipi(unsigned dest, u32 low)
{
    lapic_write(LAPIC_ICR2, dest << 24);
    lapic_write(LAPIC_ICR, low);
}

unsigned cpus_there(void)
{
    u32 b = cpuid(0xb, 1).ebx & 0xffff;
    return b ? b : cpuid(1, 0).ebx >> 16 & 0xff;
}
