/*
 * legacy.h - what a bare 32-bit test kernel stands on: report lines, traps, and code of every other mode.
 * The kernel runs at ring 0 in flat 32-bit protected mode, paging off, at 4 MiB. It is an ELF64 file all the same, since
 * that is what both machines load: lib/crt.S leaves long mode (Vitro) or comes by PVH (QEMU).
 *
 * Code under test is assembly at file level: CODE32 anywhere, and LOW, 16-bit code below 64 KiB (real and virtual-8086
 * mode, 16-bit segments). run() calls it and says which trap ended it.
 */
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
#define NOINLINE __attribute__((noinline))
int format(char *buf, size_t size, const char *fmt, ...);
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* -- Results (../lib/report.c) ------------------------------------------------------------------ */
void report(const char *name, bool cond);
void report_eq(const char *name, u64 got, u64 want);
void reportf(bool cond, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void skip(const char *name, const char *why);
void print(const char *fmt, ...);
void guest_exit(void) __attribute__((noreturn));
int main(void);
void *memset(void *d, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);

/* -- Selectors ------------------------------------------------------------------------------------ */
enum {
    KCS = 0x08,
    KDS = 0x10,
    KCS16 = 0x18,  /* base 0, 64 KiB: for LOW code */
    KDS16 = 0x20,
    UCS = 0x28 | 3,
    UDS = 0x30 | 3,
    TSS_SEL = 0x38,
    LDT_SEL = 0x40,
    TSS2_SEL = 0x48, /* for task switches */
    DF_TSS_SEL = 0x50, /* the kernel's own, behind vector 8 */
    GDT_FREE = 0x58, /* from here to GDT_END: for tests */
    GDT_END = 0x200,
};
extern u64 gdt[GDT_END / 8];
void gdt_set(unsigned sel, u32 base, u32 limit, unsigned access, unsigned flags); /* flags: G=8 D=4 */
void gate_set(u64 *table, unsigned index, u16 sel, u32 off, unsigned type_dpl); /* type | DPL << 5 | 0x80 */
extern u64 idt[256];
void idt_reset(void);

struct tss {
    u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
    u32 es, cs, ss, ds, fs, gs, ldt;
    u16 trap, iomap;
    u8 redirect[32]; /* iomap points behind it */
    u8 bitmap[8193];
} __attribute__((packed));
extern struct tss tss;

/* -- Traps ----------------------------------------------------------------------------------------- */
enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, XM = 19, VEC_RETURN = 0x81, VEC_NONE = 0x200 };
struct regs {
    u32 gs, fs, es, ds, edi, esi, ebp, unused, ebx, edx, ecx, eax, vec, err, eip, cs, eflags;
    u32 esp, ss;                   /* from an outer level or V86 only */
    u32 v_es, v_ds, v_fs, v_gs;    /* from V86 only */
};
extern struct regs trap;  /* the last one; esp is right for ring 0 too */
extern u32 trap_cr2, trap_count;
/* What a test wants done with a vector instead of ending run(): true, and the handler's changes are returned to. */
typedef bool trap_handler(struct regs *r);
extern trap_handler *handlers[256];
/*
 * run - call ring-0 code with EAX = arg. Returns the vector that ended it (int $VEC_RETURN from anywhere is a good end),
 * or VEC_NONE if it returned. Traps find their way back from any mode with this IDT.
 */
unsigned run(const void *code, u32 arg);
/* run_user - the same at ring 3 with the flat selectors and flags; run_v86 - LOW code with CS:IP = 0:code. */
unsigned run_user(const void *code, u32 arg, u32 eflags);
unsigned run_v86(const void *code, u32 arg, u32 eflags);
bool trapped(unsigned vec, u32 err);
/* run_real - LOW code in real mode, segments 0, SP 0x7c00, near return. -1, or the vector of the IVT's default handlers,
 * with real_ip where it stood. EAX goes in and comes out in real_eax. */
int run_real(const void *code, u32 arg);
extern volatile u32 real_eax, real_ip;
extern u8 ustack[8192], istack[4096];

#define ASM(section, code) asm(".pushsection " section "\n" code "\n.popsection\n")
#define CODE32(code) ASM(".text", ".code32\n" code)
#define LOW(code) ASM(".low,\"awx\",@progbits", ".code16\n" code "\n.code32")
#define LOWDATA __attribute__((section(".low.data")))
/* low_copy - all LOW code and data again, `base` higher: for segments with that base. */
void low_copy(u32 base);
#define SYM(name) extern const char name[]

#define RD(reg) ({ u32 v_; asm volatile("mov %%" #reg ", %0" : "=r"(v_)::"memory"); v_; })
#define WR(reg, v) asm volatile("mov %0, %%" #reg ::"r"((u32)(v)) : "memory")
#define CR0_PE 1u
#define CR0_TS 8u
#define CR0_WP 0x10000u
#define CR0_PG 0x80000000u
#define CR4_VME 1u
#define CR4_PVI 2u
#define CR4_PSE 0x10u
#define CR4_PAE 0x20u
enum {
    FL_CF = 1, FL_ZF = 0x40, FL_TF = 0x100, FL_IF = 0x200, FL_DF = 0x400, FL_OF = 0x800, FL_IOPL = 0x3000, FL_NT = 0x4000,
    FL_RF = 0x10000, FL_VM = 0x20000, FL_AC = 0x40000, FL_VIF = 0x80000, FL_VIP = 0x100000,
};
static inline void outb(u16 p, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "Nd"(p) : "memory"); }
static inline u8 inb(u16 p)
{
    u8 v;
    asm volatile("inb %1, %0" : "=a"(v) : "Nd"(p) : "memory");
    return v;
}
static inline u64 rdtsc(void)
{
    u32 lo, hi;
    asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (u64)hi << 32 | lo;
}
static inline u32 cpuid_edx(u32 leaf)
{
    u32 a = leaf, b, c = 0, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return d;
}
static inline void wrmsr(u32 msr, u64 v) { asm volatile("wrmsr" ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
bool on_tcg(void);
u32 page_alloc(void); /* zeroed, below 64 MiB */
