/*
 * guest.h - what a bare test kernel stands on: report lines, traps with recovery, page tables,
 * ring 3, and the interrupt chips. One vCPU, no allocator beyond bump pages, no floating point.
 *
 * Lines on COM1: `PASS: name`, `FAIL: name ...`, `SKIP: name (why)`, then the last,
 * `SUMMARY: N passed, M failed`. Exit status by isa-debug-exit: 1 = all passed, 3 = not.
 *
 * Address space: 0..1 GiB identity (2 MiB pages, the image in 4 KiB pages, all of it open to ring 3
 * until image_user(false)), 3..4 GiB identity for devices, 1..3 GiB and everything else free.
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
typedef int64_t s64;

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define BIT(n)       (1ull << (n))
#define UTEXT        __attribute__((section(".utext"), noinline, used))
#define UDATA        __attribute__((section(".udata")))
#define NOINLINE     __attribute__((noinline))

/* -- Results --------------------------------------------------------------------------------- */
void report(const char *name, bool cond);
void report_eq(const char *name, u64 got, u64 want); /* prints both when they differ */
void reportf(bool cond, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void skip(const char *name, const char *why);
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int format(char *buf, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void guest_exit(void) __attribute__((noreturn)); /* summary and exit */
void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
int main(void);

void *memset(void *d, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);

/* -- Selectors: what Vitro's loader gives (CS 0x10, DS 0x18), and the STAR layouts --------------
 */
enum {
    KCS = 0x10,
    KDS = 0x18,
    UCS32 = 0x23,
    UDS = 0x2b,
    UCS64 = 0x33,
    UDS2 = 0x3b, /* sysexit to 64-bit wants SS at SYSENTER_CS + 40 */
    TSS_SEL = 0x40,
    LDT_SEL = 0x50,
    KCS32 = 0x60,
    GDT_FREE = 0x68, /* from here to GDT_END: for tests */
    GDT_END = 0x200,
};
extern u64 gdt[GDT_END / 8];
void gdt_set(unsigned sel, u64 desc);
u64 seg_desc(u32 base, u32 limit, unsigned access, unsigned flags); /* flags: G=8 D=4 L=2 */
void system_desc(unsigned sel, u64 base, u32 limit, unsigned access);
void ldt_load(void *base, u32 limit);
void reload_cs(u16 sel);

struct tss {
    u32 reserved0;
    u64 rsp[3];
    u64 ist[8]; /* ist[0] is reserved: IST numbers start at 1 */
    u16 reserved1[5];
    u16 iomap;
    u8 bitmap[8193];
} __attribute__((packed));
extern struct tss tss;
_Static_assert(offsetof(struct tss, iomap) == 102, "TSS layout");

/* -- Traps ------------------------------------------------------------------------------------ */
enum {
    DE = 0,
    DB = 1,
    NMI = 2,
    BP = 3,
    OF = 4,
    UD = 6,
    NM = 7,
    DF = 8,
    TS = 10,
    NP = 11,
    SS = 12,
    GP = 13,
    PF = 14,
    MF = 16,
    AC = 17,
    XM = 19,
    VEC_RETURN = 0x81,   /* user_call() came back */
    VEC_SYSCALL = 0x100, /* syscall_leave */
    VEC_NONE = 0x200,
};
struct regs { /* crt.S knows the order */
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vec, err, rip, cs, rflags, rsp, ss;
};
struct trap {
    struct regs r; /* first: crt.S */
    u64 cr2, dr6;
    u64 frame; /* where the CPU pushed SS..RIP (address of regs.rip) */
    unsigned vec;
    u64 count;
};
extern volatile struct trap trap; /* the last one */
extern volatile u64 try_rip, try_rsp;
typedef void trap_handler(struct regs *r);
void trap_handle(unsigned vec, trap_handler *h); /* NULL: the default */
void trap_clear(void);
void idt_gate(unsigned vec, void *entry, unsigned sel, unsigned dpl, unsigned type, unsigned ist);
void idt_reset(void);
extern u64 idt[512];
extern char trap_stubs[];
static inline void *trap_stub(unsigned vec)
{
    return trap_stubs + 16 * vec;
}

/*
 * Run `code` and give the vector it raised, or VEC_NONE. On a trap the registers stay as the trap
 * left them, RSP goes back to what it was, and trap holds the frame. Operands follow as in asm().
 */
#define TRY(code, ...)                                                                             \
    ({                                                                                             \
        trap_clear();                                                                              \
        asm volatile("movq $771f, try_rip\n\tmovq %%rsp, try_rsp\n\t" code                         \
                     "\n771:\n\tmovq try_rsp, %%rsp\n\tmovq $0, try_rip\n\t" __VA_ARGS__);         \
        asm volatile("" ::: "memory");                                                             \
        trap.vec;                                                                                  \
    })
bool trapped(unsigned vec, u64 err);            /* the last trap is this one */
bool faulted(u64 err, const volatile void *va); /* ... a #PF with this code and CR2 */

/* -- Ring 3 ----------------------------------------------------------------------------------- */
#define USTACK_SIZE 65536
extern u8 ustack[USTACK_SIZE]; /* below 4 GiB, always user */
void user_enter(struct regs *r);
void user_leave(void) __attribute__((noreturn));
extern char syscall_leave[];
void user_regs(struct regs *r, const void *rip, bool compat); /* fill with defaults */
unsigned user_run(struct regs *r);                            /* -> vector; trap.r has the state */
u64 user_call(const void *fn, u64 a, u64 b, u64 c);           /* -> RAX; trap.vec = VEC_RETURN */
unsigned user_call32(const void *fn, u32 arg);                /* EAX = arg; 32-bit code */
extern char user_return[], user_return32[];
#define EFLAGS_FIXED 2u

/* Assembly at file level, for ring 3 (64-bit or, with _32, compatibility mode) or the kernel. */
#define USER_ASM(code)    asm(".pushsection .utext,\"ax\",@progbits\n" code "\n.popsection\n")
#define USER_ASM_32(code) USER_ASM(".code32\n" code "\n.code64")
#define KERNEL_ASM(code)  asm(".pushsection .text,\"ax\",@progbits\n" code "\n.popsection\n")

/* -- Registers -------------------------------------------------------------------------------- */
#define RD(reg)                                                                                    \
    ({                                                                                             \
        u64 v_;                                                                                    \
        asm volatile("mov %%" #reg ", %0" : "=r"(v_)::"memory");                                   \
        v_;                                                                                        \
    })
#define WR(reg, v) asm volatile("mov %0, %%" #reg ::"r"((u64)(v)) : "memory")
#define RDSEG(reg)                                                                                 \
    ({                                                                                             \
        u16 v_;                                                                                    \
        asm volatile("mov %%" #reg ", %0" : "=r"(v_));                                             \
        v_;                                                                                        \
    })
enum {
    FL_CF = 1 << 0,
    FL_PF = 1 << 2,
    FL_AF = 1 << 4,
    FL_ZF = 1 << 6,
    FL_SF = 1 << 7,
    FL_TF = 1 << 8,
    FL_IF = 1 << 9,
    FL_DF = 1 << 10,
    FL_OF = 1 << 11,
    FL_IOPL = 3 << 12,
    FL_NT = 1 << 14,
    FL_RF = 1 << 16,
    FL_AC = 1 << 18,
    FL_ID = 1 << 21,
    FL_ARITH = FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF,
};
#define CR0_PE         BIT(0)
#define CR0_MP         BIT(1)
#define CR0_EM         BIT(2)
#define CR0_TS         BIT(3)
#define CR0_NE         BIT(5)
#define CR0_WP         BIT(16)
#define CR0_AM         BIT(18)
#define CR0_NW         BIT(29)
#define CR0_CD         BIT(30)
#define CR0_PG         BIT(31)
#define CR4_TSD        BIT(2)
#define CR4_DE         BIT(3)
#define CR4_PAE        BIT(5)
#define CR4_PGE        BIT(7)
#define CR4_OSFXSR     BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP       BIT(11)
#define CR4_LA57       BIT(12)
#define CR4_VMXE       BIT(13)
#define CR4_FSGSBASE   BIT(16)
#define CR4_PCIDE      BIT(17)
#define CR4_OSXSAVE    BIT(18)
#define CR4_SMEP       BIT(20)
#define CR4_SMAP       BIT(21)
enum {
    MSR_APICBASE = 0x1b,
    MSR_TSC = 0x10,
    MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176,
    MSR_PAT = 0x277,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_EFER = 0xc0000080u,
    MSR_STAR = 0xc0000081u,
    MSR_LSTAR = 0xc0000082u,
    MSR_CSTAR = 0xc0000083u,
    MSR_SFMASK = 0xc0000084u,
    MSR_FS_BASE = 0xc0000100u,
    MSR_GS_BASE = 0xc0000101u,
    MSR_KERNEL_GS_BASE = 0xc0000102u,
    MSR_TSC_AUX = 0xc0000103u,
};
#define EFER_SCE BIT(0)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)
#define EFER_NXE BIT(11)
static inline u64 rdmsr(u32 msr)
{
    u32 lo, hi;
    asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr) : "memory");
    return (u64)hi << 32 | lo;
}
static inline void wrmsr(u32 msr, u64 v)
{
    asm volatile("wrmsr" ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
unsigned try_wrmsr(u32 msr, u64 v);
unsigned try_rdmsr(u32 msr);
static inline u64 rdtsc(void)
{
    u32 lo, hi;
    asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (u64)hi << 32 | lo;
}
struct cpuid {
    u32 eax, ebx, ecx, edx;
};
static inline struct cpuid cpuid(u32 leaf, u32 sub)
{
    struct cpuid c;
    asm volatile("cpuid"
                 : "=a"(c.eax), "=b"(c.ebx), "=c"(c.ecx), "=d"(c.edx)
                 : "a"(leaf), "c"(sub));
    return c;
}
enum feature { /* leaf index * 128 + register * 32 + bit, see has() */
#define F_(leaf, reg, bit) ((leaf)*128 + (reg)*32 + (bit))
               HAS_PCID = F_(0, 2, 17),
               HAS_X2APIC = F_(0, 2, 21),
               HAS_TSC_DEADLINE = F_(0, 2, 24),
               HAS_XSAVE = F_(0, 2, 26),
               HAS_AVX = F_(0, 2, 28),
               HAS_SEP = F_(0, 3, 11),
               HAS_PAT = F_(0, 3, 16),
               HAS_CX16 = F_(0, 2, 13),
               HAS_FSGSBASE = F_(1, 1, 0),
               HAS_SMEP = F_(1, 1, 7),
               HAS_ERMS = F_(1, 1, 9),
               HAS_INVPCID = F_(1, 1, 10),
               HAS_AVX512F = F_(1, 1, 16),
               HAS_SMAP = F_(1, 1, 20),
               HAS_UMIP = F_(1, 2, 2),
               HAS_PKU = F_(1, 2, 3),
               HAS_LA57 = F_(1, 2, 16),
               HAS_SYSCALL = F_(2, 3, 11),
               HAS_NX = F_(2, 3, 20),
               HAS_PDPE1GB = F_(2, 3, 26),
               HAS_RDTSCP = F_(2, 3, 27),
               HAS_XSAVEOPT = F_(3, 0, 0),
               HAS_XSAVEC = F_(3, 0, 1),
               HAS_XGETBV1 = F_(3, 0, 2),
               HAS_XSAVES = F_(3, 0, 3),
#undef F_
};
bool has(enum feature f);
bool on_tcg(
    void); /* for what QEMU's TCG would not survive; its mere errors are listed in unittests.cfg */
bool cpu_is_intel(void); /* else AMD's rules where the two differ */

static inline void outb(u16 p, u8 v)
{
    asm volatile("outb %0, %1" ::"a"(v), "Nd"(p) : "memory");
}
static inline void outl(u16 p, u32 v)
{
    asm volatile("outl %0, %1" ::"a"(v), "Nd"(p) : "memory");
}
static inline u8 inb(u16 p)
{
    u8 v;
    asm volatile("inb %1, %0" : "=a"(v) : "Nd"(p) : "memory");
    return v;
}
static inline void barrier(void)
{
    asm volatile("" ::: "memory");
}

/* -- Paging ------------------------------------------------------------------------------------ */
#define PTE_P     BIT(0)
#define PTE_W     BIT(1)
#define PTE_U     BIT(2)
#define PTE_PWT   BIT(3)
#define PTE_PCD   BIT(4)
#define PTE_A     BIT(5)
#define PTE_D     BIT(6)
#define PTE_PS    BIT(7)
#define PTE_G     BIT(8)
#define PTE_NX    BIT(63)
#define PTE_ADDR  0x000ffffffffff000ull
#define PTE_TABLE (PTE_P | PTE_W | PTE_U)
enum { /* #PF error code */
       PF_P = 1,
       PF_W = 2,
       PF_U = 4,
       PF_RSVD = 8,
       PF_I = 16,
};
#define PAGE  4096ull
#define PAGE2 0x200000ull
#define PAGE3 0x40000000ull
u64 page_alloc(void);                 /* a zeroed page below 1 GiB; its address is its frame */
u64 pages_alloc(size_t n, u64 align); /* contiguous, zeroed */
u64 *pt_entry(const volatile void *va, int level); /* level 1 = PTE .. 4 = PML4E; makes the path */
void map(const volatile void *va, u64 pa, u64 flags); /* 4 KiB, invalidates */
void map_level(const volatile void *va, u64 pa, u64 flags, int level);
void unmap(const volatile void *va);
void image_user(bool on); /* U on the identity map; .utext and .udata always have it */
static inline void invlpg(const volatile void *va)
{
    asm volatile("invlpg (%0)" ::"r"(va) : "memory");
}
static inline void flush_tlb(void)
{
    WR(cr3, RD(cr3));
}

/* -- Interrupt chips --------------------------------------------------------------------------- */
#define LAPIC_PA  0xfee00000ull
#define IOAPIC_PA 0xfec00000ull
enum {
    LAPIC_ID = 0x20,
    LAPIC_VER = 0x30,
    LAPIC_TPR = 0x80,
    LAPIC_PPR = 0xa0,
    LAPIC_EOI = 0xb0,
    LAPIC_LDR = 0xd0,
    LAPIC_DFR = 0xe0,
    LAPIC_SVR = 0xf0,
    LAPIC_ISR = 0x100,
    LAPIC_IRR = 0x200,
    LAPIC_ESR = 0x280,
    LAPIC_ICR = 0x300,
    LAPIC_ICR2 = 0x310,
    LAPIC_LVTT = 0x320,
    LAPIC_LVT0 = 0x350,
    LAPIC_LVT1 = 0x360,
    LAPIC_TMICT = 0x380,
    LAPIC_TMCCT = 0x390,
    LAPIC_TDCR = 0x3e0,
};
static inline u32 lapic_read(unsigned reg)
{
    return *(volatile u32 *)(LAPIC_PA + reg);
}
static inline void lapic_write(unsigned reg, u32 v)
{
    *(volatile u32 *)(LAPIC_PA + reg) = v;
}
void lapic_init(void); /* software-enable, LINT0 = ExtINT, LINT1 = NMI, spurious 0xff */
static inline void lapic_eoi(void)
{
    lapic_write(LAPIC_EOI, 0);
}
void lapic_self_ipi(unsigned vec);
void pic_init(void); /* vectors 0x20..0x2f, all masked */
void pic_unmask(unsigned irq);
void pic_mask_all(void);
void pic_eoi(unsigned irq);
void pit_start(unsigned mode, u16 count); /* channel 0 */
u16 pit_read(void);
u64 tsc_per_ms(void); /* measured against the PIT's channel 2 */
static inline void cli(void)
{
    asm volatile("cli" ::: "memory");
}
static inline void sti(void)
{
    asm volatile("sti" ::: "memory");
}

struct context {
    u64 r[8];
};
int ctx_save(struct context *c) __attribute__((returns_twice));
void ctx_jump(struct context *c, int value) __attribute__((noreturn));
