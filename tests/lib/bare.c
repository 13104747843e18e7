/* bare.c - see bare.h. */
#include "tests/lib/bare.h"

#include <cpuid.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <asm/ldt.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#undef PF_W /* elf.h has one */
#undef PF_R
#undef PF_X
#include "engine/decode.h"
#include "x86/x86.h"

u64 bare_xmask;
unsigned bare_xsize, bare_xoff[8];
bool bare_linux_gdt, bare_fsgs;
unsigned bare_wavered;
u32 bare_mxcsr_mask;
bool bare_m32, bare_can_m32, bare_m16, bare_can_m16;

/* -- The guest's physical memory ---------------------------------------------------------------------- */

#define BARE_TIMEOUT 255u
#define RAM_SIZE (2u << 20)
#define PML4 0x1000u
#define PDPT 0x2000u
#define PD 0x3000u
#define KPDPT 0x10000u
#define KPD 0x11000u
#define K 0xffffffff80000000ull /* the system pages, at 0 of physical memory */
#define PT(n) (0x4000u + (n) * 0x1000u) /* 0: system pages, 1: code, 2: data, 3: stack */
#define GDT 0x8000u
#define IDT 0x9000u
#define TSS 0xa000u
#define HANDLERS 0xb000u /* 16 bytes a vector: hlt */
#define ENTRY 0xc000u    /* the way into user mode; its arguments at + 0x800 */
#define FRAME (ENTRY + 0x900u)
#define KSTACK 0xf000u
#define LDT 0x12000u
#define CS16 0x07u /* LDT entries 0 to 2, RPL 3 */
#define DS16 0x0fu
#define SS16 0x17u
#define CODE_GPA 0x100000u
#define DATA_GPA 0x110000u
#define STACK_GPA 0x120000u

static u8 *ram;
static struct vitro_vm *vm;
static struct vitro_vcpu *vcpu;
static unsigned debug_flags;

static const unsigned order[] = { 2, 0, 3, 1, 4 };
static u8 *guest_page(u64 la)
{
    unsigned n = (unsigned)(la >> 12 & 0xf);
    switch (la >> 28) {
    case 1: return ram + CODE_GPA + order[n] * 4096;
    case 2: return ram + DATA_GPA + order[n] * 4096;
    default: return ram + STACK_GPA + (1 - n) * 4096;
    }
}

static void put64(u32 gpa, u64 v)
{
    memcpy(ram + gpa, &v, 8);
}

static void map(u64 la, u64 gpa, u64 bits)
{
    put64(PT(la >> 28) + (u32)(la >> 12 & 511) * 8, gpa | bits);
}

static void build_ram(void)
{
    const u64 U = 4, W = 2, P = 1, NX = 1ull << 63;
    put64(PML4, PDPT | U | W | P);
    put64(PDPT, PD | U | W | P);
    put64(PML4 + 511 * 8, KPDPT | W | P);
    put64(KPDPT + 510 * 8, KPD | W | P);
    put64(KPD, PT(0) | W | P);
    for (unsigned i = 1; i < 4; i++)
        put64(PD + (u32)((u64)i << 28 >> 21) % 512 * 8, PT(i) | U | W | P);
    for (u32 a = 0; a < RAM_SIZE; a += 4096)
        put64(PT(0) + a / 4096 * 8, a | W | P);
    for (u64 a = BARE_CODE; a < BARE_CODE + BARE_CODE_SIZE; a += 4096)
        map(a, (u64)(guest_page(a) - ram), U | P);
    for (u64 a = BARE_DATA; a < BARE_DATA + BARE_DATA_SIZE; a += 4096)
        map(a, (u64)(guest_page(a) - ram), a < BARE_DATA + BARE_DATA_RW ? U | W | P | NX : U | P | NX);
    for (u64 a = BARE_STACK; a < BARE_STACK + BARE_STACK_SIZE; a += 4096)
        map(a, (u64)(guest_page(a) - ram), U | W | P | NX);

    /* Selectors as Linux has them. */
    put64(GDT + 0x08, 0x00cf9b000000ffffull);
    put64(GDT + 0x10, 0x00af9b000000ffffull);
    put64(GDT + 0x18, 0x00cf93000000ffffull);
    put64(GDT + 0x20, 0x00cffb000000ffffull);
    put64(GDT + 0x28, 0x00cff3000000ffffull);
    put64(GDT + 0x30, 0x00affb000000ffffull);
    put64(GDT + 0x40, 0x80008b0000000067ull | (u64)(TSS & 0xffffff) << 16);
    put64(GDT + 0x48, 0xffffffff);
    put64(LDT + 0, 0x0000fb0000000000ull | (u64)(BARE_CODE & 0xffffff) << 16 | (BARE_CODE >> 24) << 56 | (BARE_CODE_SIZE - 1));
    put64(LDT + 8, 0x0000f30000000000ull | (u64)(BARE_DATA & 0xffffff) << 16 | (BARE_DATA >> 24) << 56 | (BARE_DATA_SIZE - 1));
    put64(LDT + 16, 0x0000f30000000000ull | (u64)(BARE_STACK & 0xffffff) << 16 | (BARE_STACK >> 24) << 56 | (BARE_STACK_SIZE - 1));
    put64(TSS + 4, K + KSTACK);
    put64(TSS + 0x60, 0xffffull << 48); /* no I/O bitmap */
    for (u32 i = 0; i < 256; i++) {
        u64 h = K + HANDLERS + i * 16;
        u64 dpl = i == 3 || i == 4 ? 3 : 0;
        put64(IDT + i * 16, (h & 0xffff) | 0x10ull << 16 | (0x8eull | dpl << 5) << 40 | (h >> 16 & 0xffff) << 48);
        put64(IDT + i * 16 + 8, h >> 32);
        memcpy(ram + HANDLERS + i * 16, "\xf4\xeb\xfd", 3); /* hlt */
    }
    /* wrfsbase rax; wrgsbase rcx; mov rax, [args]; mov rcx, [args + 8]; iretq */
    static const u8 entry[] = {
        0xf3, 0x48, 0x0f, 0xae, 0xd0, 0xf3, 0x48, 0x0f, 0xae, 0xd9,
        0x48, 0x8b, 0x04, 0x25, 0x00, 0xc8, 0x00, 0x80,
        0x48, 0x8b, 0x0c, 0x25, 0x08, 0xc8, 0x00, 0x80,
        0x48, 0xcf,
    };
    memcpy(ram + ENTRY, entry, sizeof(entry));
}

/* -- Watchdog, crashes ----------------------------------------------------------------------------------- */

static pthread_t main_thread;
static volatile unsigned progress;
static struct bare_case *volatile current;
static volatile int where; /* 0: here, 1: host side, 2: guest side */
static sigjmp_buf crash_jmp;
static volatile int crash_sig;
static char crash_text[128];

static void *watchdog(void *arg)
{
    (void)arg;
    unsigned last = ~0u, same = 0;
    for (;;) {
        usleep(500 * 1000);
        same = progress == last ? same + 1 : 0;
        last = progress;
        if (same < 4 || where == 0)
            continue;
        if (where == 1 && same < 12) { /* a return address was overwritten, or the like: leave it */
            pthread_kill(main_thread, SIGALRM);
            continue;
        }
        if (where == 2 && same < 16) {
            vitro_vcpu_kick(vcpu, VITRO_KICK_STOP);
        } else {
            printf("bare: a sequence does not end on the %s:", where == 2 ? "guest" : "host");
            for (unsigned i = 0; current && i < current->len; i++)
                printf(" %02x", current->code[i]);
            printf("\n");
            if (current)
                bare_print_input(current, "    ");
            fflush(stdout);
            _exit(3);
        }
    }
    return NULL;
}

static void crashed(int sig, siginfo_t *info, void *ctx)
{
    ucontext_t *uc = ctx;
    if (where != 2) {
        signal(sig, SIG_DFL);
        return;
    }
    crash_sig = sig;
    snprintf(crash_text, sizeof(crash_text), "the engine crashed: signal %d (trap %d), pc %#llx, address %#llx", sig,
             (int)uc->uc_mcontext.gregs[REG_TRAPNO], (unsigned long long)uc->uc_mcontext.gregs[REG_RIP],
             (unsigned long long)(uintptr_t)info->si_addr);
    siglongjmp(crash_jmp, 1);
}

/* -- Host side -------------------------------------------------------------------------------------------- */

__attribute__((used)) u64 bare_in[20]; /* gpr, rip, rflags, fs, gs */
__attribute__((used)) const void *bare_in_fpu;
__attribute__((used)) u64 bare_save_rsp, bare_save_fs;
__attribute__((used)) u32 bare_active, bare_use_fsgs, bare_mask_lo;
void bare_go64(void);
void bare_go32(void);
void bare_go16(void);
__attribute__((used)) void (*bare_go)(void);
__attribute__((used)) struct { u32 offset; u16 selector; } bare_far = { 0, 0x23 };
__attribute__((used)) u16 bare_ds = 0x2b, bare_ds16 = DS16, bare_ss16 = SS16;
static struct bare_state *host_out;
static struct sigaction engine_action[65];

void bare_enter(void);
void bare_resume(void);
void bare_handler(int, siginfo_t *, void *);
void bare_handler_c(int, siginfo_t *, void *);

__asm__(
    ".text\n"
    ".globl bare_enter, bare_resume, bare_handler, bare_go64, bare_go32, bare_go16\n"
    "bare_enter:\n"
    "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp, bare_save_rsp(%rip)\n"
    "mov bare_in_fpu(%rip), %rcx\n"
    "mov bare_mask_lo(%rip), %eax\n"
    "xor %edx, %edx\n"
    "xrstor64 (%rcx)\n"
    "cmpl $0, bare_use_fsgs(%rip)\n"
    "je 1f\n"
    "rdfsbase %rax\n"
    "mov %rax, bare_save_fs(%rip)\n"
    "mov bare_in+18*8(%rip), %rax\n"
    "wrfsbase %rax\n"
    "mov bare_in+19*8(%rip), %rax\n"
    "wrgsbase %rax\n"
    "1: movl $1, bare_active(%rip)\n"
    "pushq bare_in+17*8(%rip)\n"
    "popfq\n"
    "mov bare_in+0*8(%rip), %rax\n"
    "mov bare_in+1*8(%rip), %rcx\n"
    "mov bare_in+2*8(%rip), %rdx\n"
    "mov bare_in+3*8(%rip), %rbx\n"
    "mov bare_in+5*8(%rip), %rbp\n"
    "mov bare_in+6*8(%rip), %rsi\n"
    "mov bare_in+7*8(%rip), %rdi\n"
    "mov bare_in+8*8(%rip), %r8\n"
    "mov bare_in+9*8(%rip), %r9\n"
    "mov bare_in+10*8(%rip), %r10\n"
    "mov bare_in+11*8(%rip), %r11\n"
    "mov bare_in+12*8(%rip), %r12\n"
    "mov bare_in+13*8(%rip), %r13\n"
    "mov bare_in+14*8(%rip), %r14\n"
    "mov bare_in+15*8(%rip), %r15\n"
    "mov bare_in+4*8(%rip), %rsp\n"
    "jmp *bare_go(%rip)\n"
    "bare_go64: jmp *bare_in+16*8(%rip)\n"
    "bare_go32: ljmpl *bare_far(%rip)\n"
    "bare_go16: mov bare_ds16(%rip), %ds\n mov bare_ds16(%rip), %es\n mov bare_ss16(%rip), %ss\n ljmpl *bare_far(%rip)\n"
    "bare_resume:\n"
    "mov bare_ds(%rip), %ds\n mov bare_ds(%rip), %es\n"
    "fninit\n"
    "pushq $0x1f80\n ldmxcsr (%rsp)\n lea 8(%rsp), %rsp\n"
    "vzeroupper\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
    "ret\n"
    "bare_handler:\n"
    "pushfq\n andl $~0x40400, (%rsp)\n popfq\n"
    "cmpl $0, bare_active(%rip)\n"
    "je 2f\n"
    "cmpl $0, bare_use_fsgs(%rip)\n"
    "je 2f\n"
    "rdfsbase %rcx\n"
    "rdgsbase %r8\n"
    "mov bare_save_fs(%rip), %rax\n"
    "wrfsbase %rax\n"
    "mov %rcx, bare_in+18*8(%rip)\n"
    "mov %r8, bare_in+19*8(%rip)\n"
    "2: jmp bare_handler_c\n");

static const int reg_of[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

void bare_handler_c(int sig, siginfo_t *info, void *ctx)
{
    ucontext_t *uc = ctx;
    greg_t *g = uc->uc_mcontext.gregs;
    if (!bare_active) {
        if (sig == SIGALRM)
            return;
        struct sigaction *e = &engine_action[sig];
        if (e->sa_flags & SA_SIGINFO)
            e->sa_sigaction(sig, info, ctx);
        else
            crashed(sig, info, ctx);
        return;
    }
    bare_active = 0;
    struct bare_state *o = host_out;
    for (unsigned i = 0; i < 16; i++)
        o->gpr[i] = (u64)g[reg_of[i]];
    o->rip = (u64)g[REG_RIP];
    o->rflags = (u64)g[REG_EFL];
    o->fs = bare_in[18];
    o->gs = bare_in[19];
    o->vector = sig == SIGALRM ? BARE_TIMEOUT : (u32)g[REG_TRAPNO];
    o->error = (u32)g[REG_ERR];
    o->cr2 = (u64)g[REG_CR2];
    memcpy(o->fpu, uc->uc_mcontext.fpregs, bare_xsize);
    g[REG_RSP] = (greg_t)bare_save_rsp;
    g[REG_RIP] = (greg_t)(uintptr_t)bare_resume;
    g[REG_EFL] = 0x202;
    g[REG_CSGSFS] = (g[REG_CSGSFS] & 0xffffffff0000) | 0x33 | (greg_t)0x2b << 48;
}

void bare_host(const struct bare_state *in, struct bare_state *out)
{
    memcpy(bare_in, in->gpr, sizeof(in->gpr));
    bare_in[16] = in->rip;
    bare_in[17] = in->rflags;
    bare_in[18] = in->fs;
    bare_in[19] = in->gs;
    bare_in_fpu = in->fpu;
    bare_far.offset = (u32)in->rip;
    bare_far.selector = bare_m16 ? CS16 : 0x23;
    bare_go = bare_m16 ? bare_go16 : bare_m32 ? bare_go32 : bare_go64;
    host_out = out;
    out->broken = NULL;
    progress++;
    where = 1;
    bare_enter();
    where = 0;
    bare_fpu_normal(out->fpu);
}

/* -- Guest side ------------------------------------------------------------------------------------------- */

static bool has_error(unsigned vector)
{
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

static void die(const char *what)
{
    fprintf(stderr, "bare: %s\n", what);
    exit(2);
}

void bare_fini(void)
{
    if (vcpu)
        vitro_vcpu_destroy(vcpu);
    if (vm)
        vitro_vm_destroy(vm);
    vcpu = NULL;
    vm = NULL;
}

void bare_guest_reset(void)
{
    bare_fini();
    char err[200] = "";
    struct vitro_config config = { .nr_cpus = 1, .debug = debug_flags };
    vm = vitro_vm_create(&config, NULL, err, sizeof(err));
    if (!vm)
        die(err);
    if (vitro_vm_add_memory(vm, 0, RAM_SIZE, ram, 0))
        die("no memory slot");
    vcpu = vitro_vcpu_create(vm, 0, err, sizeof(err));
    if (!vcpu)
        die(err);
    struct vitro_sregs s;
    vitro_vcpu_get_sregs(vcpu, &s);
    struct vitro_segment none = { .attr = SEG_UNUSABLE };
    s.cs = (struct vitro_segment){ .limit = 0xffffffff, .attr = 0x9b | SEG_L | SEG_G, .selector = 0x10 };
    s.ss = (struct vitro_segment){ .limit = 0xffffffff, .attr = 0x93 | SEG_DB | SEG_G, .selector = 0x18 };
    s.fs = s.gs = none;
    s.ldt = (struct vitro_segment){ .base = K + LDT, .limit = 0x17, .attr = 0x82, .selector = 0x50 };
    s.ds = s.es = (struct vitro_segment){ .limit = 0xffffffff, .attr = 0xf3 | SEG_DB | SEG_G, .selector = 0x2b };
    s.tr = (struct vitro_segment){ .base = K + TSS, .limit = 0x67, .attr = 0x8b, .selector = 0x40 };
    s.gdt_base = K + GDT;
    s.gdt_limit = 0x4f;
    s.idt_base = K + IDT;
    s.idt_limit = 0xfff;
    s.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    s.cr3 = PML4;
    s.cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE | 0x40000u;
    s.efer = 0x1 | 0x100 | 0x400 | 0x800;
    s.xcr0 = bare_xmask;
    vitro_vcpu_set_sregs(vcpu, &s);
}

void bare_guest_flush(void)
{
    struct vitro_sregs s;
    vitro_vcpu_get_sregs(vcpu, &s);
    vitro_vcpu_set_sregs(vcpu, &s);
}

static char broken_text[256];

/* DS and ES as this mode has them: they stay through iretq and exceptions. */
static void select_data(void)
{
    struct vitro_sregs s;
    static const struct vitro_segment flat = { .limit = 0xffffffff, .attr = 0xf3 | SEG_DB | SEG_G, .selector = 0x2b };
    static const struct vitro_segment small = { .base = BARE_DATA, .limit = BARE_DATA_SIZE - 1, .attr = 0xf3, .selector = DS16 };
    vitro_vcpu_get_sregs(vcpu, &s);
    if ((s.ds.selector == DS16) == bare_m16)
        return;
    s.ds = s.es = bare_m16 ? small : flat;
    vitro_vcpu_set_sregs(vcpu, &s);
}

void bare_guest(const struct bare_state *in, struct bare_state *out)
{
    struct vitro_regs r;
    memcpy(r.gpr, in->gpr, sizeof(r.gpr));
    put64(ENTRY + 0x800, in->gpr[RAX]);
    put64(ENTRY + 0x808, in->gpr[RCX]);
    put64(FRAME, in->rip);
    put64(FRAME + 8, bare_m16 ? CS16 : bare_m32 ? 0x23 : 0x33);
    put64(FRAME + 16, in->rflags);
    put64(FRAME + 24, in->gpr[RSP]);
    put64(FRAME + 32, bare_m16 ? SS16 : 0x2b);
    select_data();
    r.gpr[RAX] = in->fs;
    r.gpr[RCX] = in->gs;
    r.gpr[RSP] = K + FRAME;
    r.rip = K + ENTRY;
    r.rflags = 2;
    /* From the second run on the vCPU is in its handler, at CPL 0. */
    vitro_vcpu_set_regs(vcpu, &r);
    memcpy(vitro_vcpu_xsave(vcpu), in->fpu, bare_xsize);
    out->broken = NULL;
    progress++;
    int exit_reason = -1;
    if (sigsetjmp(crash_jmp, 0) == 0) {
        where = 2;
        exit_reason = (int)vitro_vcpu_run(vcpu);
    } else {
        static const u32 mxcsr = 0x1f80;
        __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr));
    }
    where = 0;
    if (exit_reason == -1) {
        out->broken = crash_text;
        vm = NULL; /* it may hold its locks: leave it */
        vcpu = NULL;
        bare_guest_reset();
        return;
    }
    vitro_vcpu_get_regs(vcpu, &r);
    if (exit_reason != VITRO_EXIT_HLT) {
        snprintf(broken_text, sizeof(broken_text), "the guest did not halt: exit %d%s%s, rip %#llx", exit_reason,
                 exit_reason == VITRO_EXIT_FAIL ? ": " : exit_reason == VITRO_EXIT_INTR ? " (does not end)" : "",
                 exit_reason == VITRO_EXIT_FAIL ? vitro_vcpu_fail_message(vcpu) : "", (unsigned long long)r.rip);
        out->broken = broken_text;
        bare_guest_reset();
        return;
    }
    u64 at = r.rip - 1 - K - HANDLERS;
    if (at >= 4096 || at % 16) {
        snprintf(broken_text, sizeof(broken_text), "the guest halted at %#llx", (unsigned long long)r.rip);
        out->broken = broken_text;
        bare_guest_reset();
        return;
    }
    u64 f[6];
    out->vector = (u32)(at / 16);
    bool error = has_error(out->vector);
    if (r.gpr[RSP] != K + KSTACK - (error ? 48 : 40)) {
        snprintf(broken_text, sizeof(broken_text), "exception %u pushed to %#llx", out->vector,
                 (unsigned long long)r.gpr[RSP]);
        out->broken = broken_text;
        bare_guest_reset();
        return;
    }
    memcpy(f + !error, ram + (r.gpr[RSP] - K), error ? 48 : 40);
    memcpy(out->gpr, r.gpr, sizeof(out->gpr));
    out->error = error ? (u32)f[0] : 0;
    out->rip = f[1];
    out->rflags = f[3];
    out->gpr[RSP] = f[4];
    if (f[2] != (bare_m16 ? CS16 : bare_m32 ? 0x23 : 0x33) || f[5] != (bare_m16 ? SS16 : 0x2b)) {
        snprintf(broken_text, sizeof(broken_text), "exception %u pushed cs %#llx, ss %#llx", out->vector,
                 (unsigned long long)f[2], (unsigned long long)f[5]);
        out->broken = broken_text;
    }
    struct vitro_sregs s;
    vitro_vcpu_get_sregs(vcpu, &s);
    out->cr2 = s.cr2;
    out->fs = s.fs.base;
    out->gs = s.gs.base;
    memcpy(out->fpu, vitro_vcpu_xsave(vcpu), bare_xsize);
    bare_fpu_normal(out->fpu);
}

/* -- Vector state ------------------------------------------------------------------------------------------- */

static unsigned xlen[8] = { 0, 0, 256, 0, 0, 64, 512, 1024 };

void bare_fpu_normal(u8 *p)
{
    u64 bv;
    memcpy(&bv, p + 512, 8);
    if (!(bv & 1)) {
        memset(p, 0, 24);
        p[0] = 0x7f;
        p[1] = 3;
        memset(p + 32, 0, 128);
    }
    if (!(bv & 2))
        memset(p + 160, 0, 256);
    for (unsigned i = 2; i < 8; i++)
        if (bare_xoff[i] && !(bv >> i & 1))
            memset(p + bare_xoff[i], 0, xlen[i]);
    /* FOP, FIP and FDP: where the host ran it; the mask, the reserved parts, what the kernel keeps there, XSTATE_BV */
    memset(p + 5, 0, 19);
    memset(p + 28, 0, 4);
    for (unsigned i = 0; i < 8; i++)
        memset(p + 32 + i * 16 + 10, 0, 6);
    memset(p + 416, 0, 160);
}

static void probe(void)
{
    unsigned a, b, c, d, lo, hi, selector = 0x23;
    __cpuid(1, a, b, c, d);
    if (!(c & (1u << 27)))
        die("no XSAVE here");
    __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    bare_xmask = lo & 7;
    if ((lo & 0xe0) == 0xe0)
        bare_xmask |= 0xe0;
    bare_mask_lo = (u32)bare_xmask;
    bare_xsize = 576;
    for (unsigned i = 2; i < 8; i++) {
        if (!(bare_xmask >> i & 1))
            continue;
        __cpuid_count(13, i, a, b, c, d);
        bare_xoff[i] = b;
        xlen[i] = a;
        if (a + b > bare_xsize)
            bare_xsize = a + b;
    }
    bare_fsgs = getauxval(AT_HWCAP2) & 2;
    /* Some hypervisors run the host's kernel outside ring 0, with a GDT of their own: no kernel segments, none for 32-bit code. */
    __asm__("lar %1, %1; setz %0" : "=q"(bare_linux_gdt), "+r"(selector) : : "cc");
    bare_use_fsgs = bare_fsgs;
    static u8 area[512] __attribute__((aligned(16)));
    __asm__ volatile("fxsave64 %0" : "=m"(area));
    memcpy(&bare_mxcsr_mask, area + 28, 4);
    if (!bare_mxcsr_mask)
        bare_mxcsr_mask = 0xffbf;
}

/* -- Memory -------------------------------------------------------------------------------------------------- */

void bare_write(u64 la, const void *buf, unsigned len)
{
    const u8 *p = buf;
    bool ro = la + len > BARE_DATA + BARE_DATA_RW && la < BARE_DATA + BARE_DATA_SIZE;
    if (ro)
        len = la >= BARE_DATA + BARE_DATA_RW ? 0 : (unsigned)(BARE_DATA + BARE_DATA_RW - la);
    while (len) {
        unsigned n = 4096 - (unsigned)(la & 4095);
        if (n > len)
            n = len;
        memcpy((void *)(uintptr_t)la, p, n);
        memcpy(guest_page(la) + (la & 4095), p, n);
        la += n;
        p += n;
        len -= n;
    }
}

void bare_code(u64 la, const void *buf, unsigned len)
{
    memcpy((void *)(uintptr_t)la, buf, len);
    if (vitro_vcpu_write_la(vcpu, la, buf, len))
        die("cannot write guest code");
}

u8 bare_peek(u64 la, bool guest)
{
    return guest ? guest_page(la)[la & 4095] : *(u8 *)(uintptr_t)la;
}

u64 bare_memory_differs(u64 from)
{
    for (unsigned part = 0; part < 2; part++) {
        u64 a = part ? BARE_STACK : BARE_DATA, end = part ? BARE_STACK + BARE_STACK_SIZE : BARE_DATA + BARE_DATA_SIZE;
        if (end <= from)
            continue;
        if (a < from)
            a = from;
        while (a < end) {
            unsigned n = 4096 - (unsigned)(a & 4095);
            if (memcmp((void *)(uintptr_t)a, guest_page(a) + (a & 4095), n) != 0)
                while (n--) {
                    if (*(u8 *)(uintptr_t)a != guest_page(a)[a & 4095])
                        return a;
                    a++;
                }
            else
                a += n;
        }
    }
    return 0;
}

void bare_save(u8 *snap)
{
    memcpy(snap, (void *)(uintptr_t)BARE_DATA, BARE_DATA_SIZE);
    memcpy(snap + BARE_DATA_SIZE, (void *)(uintptr_t)BARE_STACK, BARE_STACK_SIZE);
}

void bare_sync(void)
{
    for (u64 a = BARE_DATA; a < BARE_DATA + BARE_DATA_SIZE; a += 4096)
        memcpy(guest_page(a), (void *)(uintptr_t)a, 4096);
    for (u64 a = BARE_STACK; a < BARE_STACK + BARE_STACK_SIZE; a += 4096)
        memcpy(guest_page(a), (void *)(uintptr_t)a, 4096);
}

void bare_restore(const u8 *snap)
{
    memcpy((void *)(uintptr_t)BARE_DATA, snap, BARE_DATA_RW);
    memcpy((void *)(uintptr_t)BARE_STACK, snap + BARE_DATA_SIZE, BARE_STACK_SIZE);
    bare_sync();
}

static void map_host(u64 la, unsigned size, int prot)
{
    /* nothing may be mapped next to it: one reservation with a guard on both sides */
    void *p = mmap((void *)(uintptr_t)(la - 0x10000), size + 0x20000, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
    if (p != (void *)(uintptr_t)(la - 0x10000))
        die("the low addresses this test needs are taken");
    if (mprotect((void *)(uintptr_t)la, size, prot))
        die("cannot map memory for the host's side");
}

void bare_init(unsigned debug)
{
    static const int sigs[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT };
    probe();
    debug_flags = debug;
    map_host(BARE_CODE, BARE_CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC);
    map_host(BARE_DATA, BARE_DATA_SIZE, PROT_READ | PROT_WRITE);
    map_host(BARE_STACK, BARE_STACK_SIZE, PROT_READ | PROT_WRITE);
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ram == MAP_FAILED)
        die("no memory");
    memset((void *)(uintptr_t)BARE_CODE, 0xcc, BARE_CODE_SIZE);
    u64 x = 88172645463325252ull;
    for (u64 a = 0; a < BARE_DATA_SIZE + BARE_STACK_SIZE; a += 8) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        u64 la = a < BARE_DATA_SIZE ? BARE_DATA + a : BARE_STACK + a - BARE_DATA_SIZE;
        memcpy((void *)(uintptr_t)la, &x, 8);
    }
    if (mprotect((void *)(uintptr_t)(BARE_DATA + BARE_DATA_RW), BARE_DATA_SIZE - BARE_DATA_RW, PROT_READ))
        die("mprotect");
    for (u64 a = BARE_CODE; a < BARE_CODE + BARE_CODE_SIZE; a += 4096)
        memset(guest_page(a), 0xcc, 4096);
    bare_sync();
    build_ram();

    /* Flat data segments, which 64-bit processes need not have. */
    __asm__ volatile("mov %0, %%ds\n\tmov %0, %%es" : : "r"(0x2b));
    stack_t ss = { .ss_size = 256u << 10 };
    ss.ss_sp = mmap(NULL, ss.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ss.ss_sp == MAP_FAILED || sigaltstack(&ss, NULL))
        die("no signal stack");
    /* Innermost: what nobody wanted. Then the engine's, installed by its first run. Outermost: ours. */
    struct sigaction sa = { .sa_sigaction = crashed, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
    sigemptyset(&sa.sa_mask);
    for (unsigned i = 0; i < ARRAY_SIZE(sigs); i++)
        sigaction(sigs[i], &sa, NULL);
    bare_guest_reset();
    pthread_t t;
    main_thread = pthread_self();
    if (pthread_create(&t, NULL, watchdog, NULL))
        die("no thread");
    static struct bare_state s, o;
    s.rip = BARE_CODE;
    s.rflags = 0x202;
    s.gpr[RSP] = BARE_STACK + 0x1000;
    u32 mxcsr = 0x1f80;
    memcpy(s.fpu + 24, &mxcsr, 4);
    bare_guest(&s, &o);
    if (o.broken || o.vector != 3) {
        printf("bare: the guest does not even take int3: %s, vector %u\n", o.broken ? o.broken : "", o.vector);
        exit(1);
    }
    sa.sa_sigaction = bare_handler;
    sigaction(SIGALRM, &sa, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(sigs); i++)
        sigaction(sigs[i], &sa, &engine_action[sigs[i]]);
    bare_host(&s, &o);
    if (o.vector != 3 || o.rip != BARE_CODE + 1)
        die("the host's side does not work");
    bare_m32 = true;
    bare_host(&s, &o);
    bare_can_m32 = o.vector == 3 && o.rip == BARE_CODE + 1;
    bare_m32 = false;

    static const struct { u32 base, size; unsigned code; } ldt[3] = {
        { BARE_CODE, BARE_CODE_SIZE, 1 }, { BARE_DATA, BARE_DATA_SIZE, 0 }, { BARE_STACK, BARE_STACK_SIZE, 0 },
    };
    for (unsigned i = 0; i < 3; i++) {
        struct user_desc d = { .entry_number = i, .base_addr = ldt[i].base, .limit = ldt[i].size - 1,
                               .contents = ldt[i].code ? MODIFY_LDT_CONTENTS_CODE : MODIFY_LDT_CONTENTS_DATA, .useable = 1 };
        if (syscall(SYS_modify_ldt, 1, &d, sizeof(d)))
            return;
    }
    if (!bare_can_m32)
        return;
    s.rip = 0;
    s.gpr[RSP] = BARE_ESP16 + 0x1000;
    bare_m32 = bare_m16 = true;
    bare_host(&s, &o);
    bare_can_m16 = o.vector == 3 && o.rip == 1;
    bare_m32 = bare_m16 = false;
}

/* -- Cases ------------------------------------------------------------------------------------------------------ */


/* Where byte i of saved memory belongs. */
static u64 address(unsigned i)
{
    return i < BARE_DATA_SIZE ? BARE_DATA + i : BARE_STACK + i - BARE_DATA_SIZE;
}

static u64 next_difference(const struct bare_case *c, u64 from)
{
    for (;;) {
        u64 a = bare_memory_differs(from);
        if (!a)
            return 0;
        bool skip = false;
        for (unsigned i = 0; i < c->nr_ignore; i++)
            if (a - c->ignore[i].la < c->ignore[i].len) {
                from = c->ignore[i].la + c->ignore[i].len;
                skip = true;
            }
        if (!skip)
            return a;
    }
}

/* Flags nothing reads any more from `rip` on; behind a branch all may be. */
static u64 dead_flags(const struct bare_case *c, u64 rip)
{
    u64 at = rip - c->in.rip, dead = 0, pending = EFL_ARITH;
    while (at < c->len && pending) {
        struct insn in;
        if (insn_decode(bare_m16 ? DMODE_16 : bare_m32 ? DMODE_32 : DMODE_64, c->code + at, sizeof(c->code) - at, &in) != DECODE_OK)
            break;
        pending &= ~(u64)in.fl_read;
        if (in.how == HOW_BRANCH)
            return dead | pending;
        dead |= pending & in.fl_write;
        pending &= ~dead;
        at += in.len;
    }
    return dead;
}

/* A predicted ret to what is not an address is complete and faults at its target (bad_target() in run.c): the one
 * difference that is known and left, since the CPU's way would cost every ret. */
static void allow_bad_return(const struct bare_case *c, const struct bare_state *h, struct bare_state *g)
{
    struct insn in;
    u64 at = h->rip - c->in.rip;
    if (h->vector != VEC_GP || g->vector != VEC_GP || (g->rip + (1ull << 47)) >> 48 == 0 || at >= c->len ||
        insn_decode(DMODE_64, c->code + at, c->len - at, &in) != DECODE_OK || in.id != I_RET)
        return;
    if (g->gpr[RSP] == h->gpr[RSP] + in.opsize + (in.imm_size ? (u16)in.imm : 0)) {
        g->gpr[RSP] = h->gpr[RSP];
        g->rip = h->rip;
    }
}

static bool same_state(struct bare_case *c)
{
    struct bare_state *h = &c->host, *g = &c->guest;
    if (g->broken)
        return false;
    allow_bad_return(c, h, g);
    if (c->misaligned && h->vector == VEC_GP && (g->vector == VEC_PF || g->vector == VEC_SS)) {
        h->vector = g->vector;
        h->error = g->error;
        h->cr2 = g->cr2;
    }
    if (h->vector == VEC_PF && g->vector == VEC_PF) {
        if (h->cr2 >= 0x7ffffffff000) /* Linux sets P outside the user's part, so as not to tell */
            h->error = (h->error & ~1u) | (g->error & 1);
        u64 distance = h->cr2 > g->cr2 ? h->cr2 - g->cr2 : g->cr2 - h->cr2;
        if (c->loose_cr2 && (h->cr2 ^ g->cr2) >> 12 == 0)
            g->cr2 = h->cr2;
        if (c->loose_cr2 == 2 && distance < 0x1000) {
            g->cr2 = h->cr2;
            g->error = h->error;
        }
        if (c->loose_vec)
            memcpy(g->fpu, h->fpu, bare_xsize);
        if (c->loose_gpr)
            memcpy(g->gpr, h->gpr, sizeof(g->gpr));
    }
    if (bare_m32) /* the rest is not the program's */
        for (unsigned i = 0; i < 16; i++) {
            h->gpr[i] = i < 8 ? (u32)h->gpr[i] : 0;
            g->gpr[i] = i < 8 ? (u32)g->gpr[i] : 0;
        }
    if (memcmp(h->gpr, g->gpr, sizeof(h->gpr)) || h->rip != g->rip || (h->rflags ^ g->rflags) & ~c->undefined_flags ||
        h->vector != g->vector || h->error != g->error || (h->vector == VEC_PF && h->cr2 != g->cr2))
        return false;
    if (bare_fsgs && (h->fs != g->fs || h->gs != g->gs))
        return false;
    return memcmp(h->fpu, g->fpu, bare_xsize) == 0;
}

static u8 memory_guest[BARE_SNAP_SIZE];

static bool run_once(struct bare_case *c, bool *memory)
{
    current = c;
    bare_save(c->snap);
    u64 la = c->in.rip + (bare_m16 ? BARE_CODE : 0);
    c->code[c->len] = 0xcc;
    bare_code(la, c->code, c->len + 1);
    bare_host(&c->in, &c->host);
    if (c->host.vector == BARE_TIMEOUT) { /* says nothing */
        bare_restore(c->snap);
        bare_code(la, memset(c->code, 0xcc, c->len), c->len);
        return true;
    }
    bare_guest(&c->in, &c->guest);
    u64 undefined = c->undefined_flags;
    if (c->dead_flags && c->host.vector != 3)
        c->undefined_flags |= dead_flags(c, c->host.rip);
    *memory = !next_difference(c, 0);
    bool ok = (c->loose_fault && c->host.vector == VEC_PF && c->guest.vector == 3) || (same_state(c) && *memory);
    if (!ok) {
        for (unsigned i = 0; i < BARE_SNAP_SIZE; i++)
            memory_guest[i] = bare_peek(address(i), true);
    }
    if (!ok || c->nr_ignore || c->loose_fault)
        bare_sync();
    u8 fill[sizeof(c->code)];
    memset(fill, 0xcc, c->len);
    bare_code(la, fill, c->len);
    if (ok)
        c->undefined_flags = undefined;
    return ok;
}

/*
 * Where registers alone differ, was it the host? A hypervisor that runs its kernel outside ring 0 loses NT, or what is in use of
 * XSAVE's state, when it interrupts us. So the case is run once more: the guest must have been right the first time, too.
 */
bool bare_run(struct bare_case *c)
{
    static struct bare_state host, guest;
    bool memory, ok = run_once(c, &memory);
    if (ok || !memory)
        return ok;
    host = c->host;
    guest = c->guest;
    bare_restore(c->snap);
    if (run_once(c, &memory) && memcmp(&guest, &c->guest, sizeof(guest)) == 0) {
        bare_wavered++;
        return true;
    }
    c->host = host;
    c->guest = guest;
    return false;
}

bool bare_again(struct bare_case *c)
{
    bare_restore(c->snap);
    return bare_run(c);
}

static void line_u64(const char *indent, const char *name, u64 h, u64 g)
{
    if (h != g)
        printf("%s%-8s host %016llx  guest %016llx\n", indent, name, (unsigned long long)h, (unsigned long long)g);
}

static const char *const gpr_name[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };

static void get_vec(const u8 *fpu, unsigned reg, u8 *out)
{
    memset(out, 0, 64);
    if (reg < 16) {
        memcpy(out, fpu + 160 + reg * 16, 16);
        if (bare_xoff[2])
            memcpy(out + 16, fpu + bare_xoff[2] + reg * 16, 16);
        if (bare_xoff[6])
            memcpy(out + 32, fpu + bare_xoff[6] + reg * 32, 32);
    } else if (bare_xoff[7]) {
        memcpy(out, fpu + bare_xoff[7] + (reg - 16) * 64, 64);
    }
}

void bare_set_vec(u8 *fpu, unsigned reg, const u8 *bytes, unsigned len)
{
    u8 v[64];
    get_vec(fpu, reg, v);
    memcpy(v, bytes, len);
    u64 bv = bare_xmask;
    if (reg < 16) {
        memcpy(fpu + 160 + reg * 16, v, 16);
        if (bare_xoff[2])
            memcpy(fpu + bare_xoff[2] + reg * 16, v + 16, 16);
        if (bare_xoff[6])
            memcpy(fpu + bare_xoff[6] + reg * 32, v + 32, 32);
    } else if (bare_xoff[7]) {
        memcpy(fpu + bare_xoff[7] + (reg - 16) * 64, v, 64);
    }
    memcpy(fpu + 512, &bv, 8);
}

static void print_bytes(const u8 *p, unsigned n)
{
    while (n--)
        printf("%02x", p[n]);
}

static void diff_bytes(const char *indent, const char *name, unsigned nr, const u8 *h, const u8 *g, unsigned len)
{
    if (memcmp(h, g, len) == 0)
        return;
    printf("%s%s%-3u host  ", indent, name, nr);
    print_bytes(h, len);
    printf("\n%s%*s guest ", indent, (int)strlen(name) + 3, "");
    print_bytes(g, len);
    printf("\n");
}

static void print_registers(const struct bare_case *c, const char *indent)
{
    const struct bare_state *h = &c->host, *g = &c->guest;
    for (unsigned i = 0; i < 16; i++)
        line_u64(indent, gpr_name[i], h->gpr[i], g->gpr[i]);
    line_u64(indent, "rflags", h->rflags & ~c->undefined_flags, g->rflags & ~c->undefined_flags);
    if (bare_fsgs) {
        line_u64(indent, "fsbase", h->fs, g->fs);
        line_u64(indent, "gsbase", h->gs, g->gs);
    }
    u32 a, b;
    memcpy(&a, h->fpu + 24, 4);
    memcpy(&b, g->fpu + 24, 4);
    line_u64(indent, "mxcsr", a, b);
    diff_bytes(indent, "x87", 0, h->fpu, g->fpu, 24);
    for (unsigned i = 0; i < 8; i++)
        diff_bytes(indent, "st", i, h->fpu + 32 + i * 16, g->fpu + 32 + i * 16, 10);
    for (unsigned i = 0; i < 32; i++) {
        u8 vh[64], vg[64];
        get_vec(h->fpu, i, vh);
        get_vec(g->fpu, i, vg);
        diff_bytes(indent, "zmm", i, vh, vg, 64);
    }
    for (unsigned i = 0; bare_xoff[5] && i < 8; i++)
        diff_bytes(indent, "k", i, h->fpu + bare_xoff[5] + i * 8, g->fpu + bare_xoff[5] + i * 8, 8);
}

void bare_print_diff(const struct bare_case *c, const char *indent)
{
    const struct bare_state *h = &c->host, *g = &c->guest;
    printf("%shost: vector %u error %#x rip %#llx", indent, h->vector, h->error, (unsigned long long)h->rip);
    if (h->vector == VEC_PF)
        printf(" cr2 %#llx", (unsigned long long)h->cr2);
    printf("\n");
    if (g->broken) {
        printf("%sguest: %s\n", indent, g->broken);
    } else if (h->vector != g->vector || h->error != g->error || h->rip != g->rip ||
               (h->vector == VEC_PF && h->cr2 != g->cr2)) {
        printf("%sguest: vector %u error %#x rip %#llx", indent, g->vector, g->error, (unsigned long long)g->rip);
        if (g->vector == VEC_PF)
            printf(" cr2 %#llx", (unsigned long long)g->cr2);
        printf("\n");
    }
    if (!g->broken)
        print_registers(c, indent);
    unsigned shown = 0;
    for (unsigned i = 0; i < BARE_SNAP_SIZE && shown < 4; i++) {
        u64 la = address(i);
        if (bare_peek(la, false) == memory_guest[i])
            continue;
        bool skip = false;
        for (unsigned k = 0; k < c->nr_ignore; k++)
            skip |= la - c->ignore[k].la < c->ignore[k].len;
        if (skip)
            continue;
        i &= ~7u;
        la &= ~7ull;
        u64 was, hv, gv;
        memcpy(&was, c->snap + i, 8);
        memcpy(&hv, (void *)(uintptr_t)la, 8);
        memcpy(&gv, memory_guest + i, 8);
        printf("%s[%#llx] was %016llx host %016llx guest %016llx\n", indent, (unsigned long long)la,
               (unsigned long long)was, (unsigned long long)hv, (unsigned long long)gv);
        i += 7;
        shown++;
    }
}

void bare_print_input(const struct bare_case *c, const char *indent)
{
    for (unsigned i = 0; i < 16; i++)
        printf("%s%s=%016llx%s", i % 4 ? " " : indent, gpr_name[i], (unsigned long long)c->in.gpr[i],
               i % 4 == 3 ? "\n" : "");
    u32 mxcsr;
    memcpy(&mxcsr, c->in.fpu + 24, 4);
    printf("%srflags=%llx fs=%llx gs=%llx mxcsr=%x fcw=%02x%02x fsw=%02x%02x\n", indent,
           (unsigned long long)c->in.rflags, (unsigned long long)c->in.fs, (unsigned long long)c->in.gs, mxcsr,
           c->in.fpu[1], c->in.fpu[0], c->in.fpu[3], c->in.fpu[2]);
    for (unsigned i = 1; bare_xoff[5] && i < 8; i++) {
        u64 k;
        memcpy(&k, c->in.fpu + bare_xoff[5] + i * 8, 8);
        printf("%sk%u=%llx%s", i == 1 ? indent : " ", i, (unsigned long long)k, i == 7 ? "\n" : "");
    }
}
