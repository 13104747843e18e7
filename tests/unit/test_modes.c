/*
 * From power-on through the modes of a PC's first milliseconds, by a ROM of our own over libvitro alone: real mode at
 * F000:FFF0, far calls and the interrupt vector table, 16- and 32-bit protected mode and back, "unreal" limits.
 * Source: Intel SDM vol. 3 §9.1 (reset), §9.9 (switching modes), §20.1 (real-address mode).
 */
#include "libvitro.h"
#include "tests/lib/check.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LOW 0x200000u
#define ROM 0x10000u

/* The last 64 KiB below 4 GiB and below 1 MiB. Results go to 0000:0500. */
asm(".pushsection .rodata\n"
    "rom_start: .code16\n"
    "start:\n"
    "   cli\n"
    "   mov %cs, %ax\n"
    "   mov $0x3000, %bx\n"
    "   mov %bx, %ss\n"
    "   mov $0x0100, %sp\n"
    "   xor %bx, %bx\n"
    "   mov %bx, %ds\n"
    "   mov %bx, %es\n"
    "   mov %ax, 0x500\n"                 /* CS: f000 */
    /* a call pushes IP, not a linear address */
    "   call 1f\n"
    "1: pop %ax\n"
    "   sub $(1b - rom_start), %ax\n"
    "   mov %ax, 0x502\n"                 /* 0 */
    /* far call to the same code through another segment: fff0 below, 0x100 above */
    "   lcall $0xeff0, $(far1 - rom_start + 0x100)\n"
    "   mov %ax, 0x504\n"                 /* eff0 */
    /* INT through the IVT: vector 0x21 */
    "   movw $(isr - rom_start), 0x84\n"
    "   movw $0xf000, 0x86\n"
    "   stc\n"
    "   sti\n"
    "   int $0x21\n"
    "   pushf\n"
    "   pop %ax\n"
    "   cli\n"
    "   mov %ax, 0x506\n"                 /* IF and CF as before the INT */
    "   mov %dx, 0x508\n"                 /* flags in the handler: IF clear */
    "   mov %sp, 0x50a\n"                 /* 100 */
    /* indirect branches: near and far, in registers and memory */
    "   mov $(ind1 - rom_start), %ax\n"
    "   call *%ax\n"
    "   mov %cx, 0x50c\n"                 /* 1234 */
    "   movw $(ind1 - rom_start), 0x600\n"
    "   movw $0xf000, 0x602\n"
    "   xor %cx, %cx\n"
    "   call *0x600\n"
    "   mov %cx, 0x50e\n"                 /* 1234 */
    "   movw $(ind2 - rom_start), 0x600\n"
    "   lcall *0x600\n"
    "   mov %cx, 0x510\n"                 /* 4321 */
    /* a loop with memory operands: sum of 1..1000 into a dword */
    "   movl $0, 0x514\n"
    "   mov $1000, %cx\n"
    "2: movzwl %cx, %eax\n"
    "   add %eax, 0x514\n"
    "   loop 2b\n"
    /* strings: 64 words */
    "   mov $0x1000, %ax\n"
    "   mov %ax, %es\n"
    "   xor %di, %di\n"
    "   mov $0xa55a, %ax\n"
    "   mov $64, %cx\n"
    "   cld\n"
    "   rep stosw\n"
    "   mov %di, 0x518\n"                 /* 80 */
    /* addresses wrap at 64 KiB: word at es:ffff is #GP; byte at es:[bx + 0x8000 + 0x8001] is es:1 */
    "   mov $0x8001, %bx\n"
    "   movb %es:0x8000(%bx), %al\n"
    "   mov %al, 0x51a\n"                 /* a5 */
    "   movw $(gp - rom_start), 13 * 4\n"
    "   movw $0xf000, 13 * 4 + 2\n"
    "   xor %dx, %dx\n"
    "   mov $0xffff, %bx\n"
    "gp1: mov %es:(%bx), %ax\n"
    "gp1_end: mov %dx, 0x51c\n"           /* offset of gp1 */
    /* protected mode, 32 bits */
    "   lgdtl %cs:gdtr - rom_start\n"
    "   mov %cr0, %eax\n"
    "   or $1, %al\n"
    "   mov %eax, %cr0\n"
    "   ljmpl $0x08, $(pm32 - rom_start + 0xf0000)\n"
    ".code32\n"
    "pm32:\n"
    "   mov $0x10, %ax\n"
    "   mov %ax, %ds\n"
    "   mov %ax, %es\n"
    "   mov %ax, %ss\n"
    "   mov $0x30100, %esp\n"
    "   movl $0xcafebabe, 0x100000\n"
    "   call 3f\n"
    "3: pop %eax\n"
    "   mov %eax, 0x520\n"                /* linear address of 3b */
    "   movl $(3b - rom_start + 0xf0000), 0x524\n"
    "   push %ebp\n"
    "   mov %esp, %ebp\n"
    "   leave\n"
    "   mov %esp, 0x528\n"                /* 30100 */
    /* 16-bit protected mode, data limit 4 GiB left in DS: unreal */
    "   ljmp $0x18, $(pm16 - rom_start)\n"
    ".code16\n"
    "pm16:\n"
    "   mov %sp, 0x52c\n"
    "   mov $0x20, %ax\n"                 /* 64 KiB data for the others */
    "   mov %ax, %ss\n"
    "   mov %ax, %es\n"
    "   mov %cr0, %eax\n"
    "   and $0xfe, %al\n"
    "   mov %eax, %cr0\n"
    "   ljmp $0xf000, $(real - rom_start)\n"
    "real:\n"
    "   xor %ax, %ax\n"
    "   mov %ax, %ds\n"                   /* limit stays 4 GiB */
    "   mov $0x3000, %ax\n"
    "   mov %ax, %ss\n"
    "   mov $0x100, %sp\n"
    "   mov $0x100000, %ebx\n"
    "   mov (%ebx), %eax\n"
    "   mov %eax, 0x530\n"                /* cafebabe */
    "   mov %cs, %ax\n"
    "   mov %ax, 0x534\n"
    /* IP wraps: a jump from the end of the segment to its start. At 0x2000:fffe, jmp +2 = 0000 */
    "   mov $0x2000, %ax\n"
    "   mov %ax, %es\n"
    "   movw $0x02eb, %es:0xfffc\n"       /* jmp fffe + 2 = 0 */
    "   movb $0xcb, %es:0\n"              /* lret */
    "   lcall $0x2000, $0xfffc\n"
    "   movw $1, 0x536\n"
    /* A20: 0xffff:0x0610 is 0x100600, or 0x600 while the line is off */
    "   mov $0xffff, %ax\n"
    "   mov %ax, %es\n"
    "   movw $0x1111, 0x600\n"
    "   movw $0x2222, %es:0x610\n"
    "   mov 0x600, %ax\n"
    "   mov %ax, 0x538\n"                /* 1111 */
    "   xor %al, %al\n"
    "   out %al, $0x92\n"
    "   mov %es:0x610, %ax\n"
    "   mov %ax, 0x53a\n"                /* 1111 */
    "   movw $0x3333, %es:0x610\n"
    "   mov 0x600, %ax\n"
    "   mov %ax, 0x53c\n"                /* 3333 */
    "   mov $2, %al\n"
    "   out %al, $0x92\n"
    "   mov %es:0x610, %ax\n"
    "   mov %ax, 0x53e\n"                /* 2222 */
    "   hlt\n"
    "far1: mov %cs, %ax\n"
    "   lret\n"
    "isr:\n"
    "   pushf\n"
    "   pop %dx\n"
    "   iret\n"
    "ind1: mov $0x1234, %cx\n"
    "   ret\n"
    "ind2: mov $0x4321, %cx\n"
    "   lret\n"
    "gp: pop %dx\n"                       /* no error code in real mode */
    "   push $(gp1_end - rom_start)\n"
    "   iret\n"
    ".balign 8\n"
    "gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00009a0f0000ffff, 0x000092000000ffff\n"
    "gdtr: .word 39; .long gdt - rom_start + 0xf0000\n"
    "rom_gp1: .word gp1 - rom_start\n"
    "rom_end:\n"
    ".code64\n"
    ".popsection\n");
extern const unsigned char rom_start[], rom_end[], rom_gp1[2];

static unsigned char *low, *rom;
static unsigned rd16(unsigned at) { return low[at] | low[at + 1] << 8; }
static unsigned rd32(unsigned at) { return rd16(at) | rd16(at + 2) << 16; }

static struct vitro_vm *board;
static void port_out(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    (void)opaque, (void)size;
    if (port == 0x92)
        vitro_vm_set_a20(board, value & 2);
}

static void power_on(unsigned debug)
{
    char err[256];
    struct vitro_config config = { .debug = debug };
    const struct vitro_ops ops = { .port_out = port_out };
    struct vitro_vm *vm = board = vitro_vm_create(&config, &ops, err, sizeof(err));
    if (!vm) {
        printf("%s\n", err);
        exit(1);
    }
    memset(low, 0, LOW);
    memset(rom, 0xcc, ROM);
    memcpy(rom, rom_start, (size_t)(rom_end - rom_start));
    static const unsigned char reset[] = { 0xea, 0, 0, 0, 0xf0 }; /* ljmp f000:0000 */
    memcpy(rom + 0xfff0, reset, sizeof(reset));
    memcpy(low + 0xf0000, rom, ROM);
    CHECK(!vitro_vm_add_memory(vm, 0, LOW, low, 0));
    CHECK(!vitro_vm_add_memory(vm, 0x100000000ull - ROM, ROM, rom, VITRO_MEM_READONLY));
    struct vitro_vcpu *cpu = vitro_vcpu_create(vm, 0, err, sizeof(err));
    struct vitro_regs regs;
    struct vitro_sregs sregs;
    vitro_vcpu_get_regs(cpu, &regs);
    vitro_vcpu_get_sregs(cpu, &sregs);
    CHECK(regs.rip == 0xfff0 && sregs.cs.base == 0xffff0000 && sregs.cs.selector == 0xf000);
    enum vitro_exit why = vitro_vcpu_run(cpu);
    CHECK_MSG(why == VITRO_EXIT_HLT, "debug %x: exit %d: %s", debug, why, vitro_vcpu_fail_message(cpu));
    static const struct { unsigned at, want; const char *what; } word[] = {
        { 0x500, 0xf000, "CS after the far jump" },      { 0x502, 0, "call pushes IP" },
        { 0x504, 0xeff0, "CS in a far call" },           { 0x506, 0x247, "flags after iret" },
        { 0x50a, 0x100, "SP after iret" },               { 0x50c, 0x1234, "call *reg" },
        { 0x50e, 0x1234, "call *mem" },                  { 0x510, 0x4321, "lcall *mem" },
        { 0x514, 500500 & 0xffff, "loop, low" },         { 0x516, 500500 >> 16, "loop, high" },
        { 0x518, 0x80, "rep stosw" },                    { 0x51a, 0xa5, "the effective address wraps" },
        { 0x528, 0x100, "leave" },                       { 0x530, 0xbabe, "unreal read" },
        { 0x534, 0xf000, "CS in real mode again" },      { 0x536, 1, "IP wraps" },
        { 0x538, 0x1111, "A20 on" },                     { 0x53a, 0x1111, "A20 off: read" },
        { 0x53c, 0x3333, "A20 off: write" },             { 0x53e, 0x2222, "A20 on again" },
    };
    for (unsigned i = 0; i < sizeof(word) / sizeof(word[0]); i++)
        CHECK_MSG(rd16(word[i].at) == word[i].want, "debug %x: %s: %#x, not %#x", debug, word[i].what, rd16(word[i].at),
                  word[i].want);
    CHECK_MSG((rd16(0x508) & 0x201) == 1, "flags in the handler: %#x", rd16(0x508));
    CHECK_MSG(rd16(0x51c) == (unsigned)(rom_gp1[0] | rom_gp1[1] << 8), "word at ffff: #GP at %#x", rd16(0x51c));
    CHECK_MSG(rd32(0x520) == rd32(0x524), "call in protected mode: %#x, not %#x", rd32(0x520), rd32(0x524));
    vitro_vcpu_get_regs(cpu, &regs);
    CHECK_MSG((regs.gpr[4] & 0xffff) == 0x100, "sp %#llx ip %#llx", (unsigned long long)regs.gpr[4], (unsigned long long)regs.rip);
    vitro_vcpu_destroy(cpu);
    vitro_vm_destroy(vm);
}

int main(void)
{
    low = mmap(NULL, LOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    rom = mmap(NULL, ROM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (low == MAP_FAILED || rom == MAP_FAILED)
        return 1;
    power_on(0);
    power_on(VITRO_DEBUG_ONE_INSN);
    power_on(VITRO_DEBUG_SLOW_PATH);
    power_on(VITRO_DEBUG_NO_CHAIN);
    return check_done("modes");
}
