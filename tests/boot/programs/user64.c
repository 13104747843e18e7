/*
 * user64.c - what 64-bit programs rely on beyond arithmetic, checked from inside one:
 * faults and their frames, single step, debug registers, vector state across everything that switches
 * it, faults in the middle of wide and repeated instructions, code written, remapped and shared.
 *   gcc -O2 -pthread user64.c
 * Prints a line for every check that fails and `user64: N passed, M failed`. Needs no privileges.
 * Passes on bare hardware.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

static int passed, failed;

static int check(int ok, const char *name)
{
    if (ok) {
        passed++;
    } else {
        failed++;
        printf("FAILED: %s\n", name);
    }
    return ok;
}
static void same(u64 got, u64 want, const char *name)
{
    if (got != want)
        printf("%s: %llx, not %llx\n", name, (unsigned long long)got, (unsigned long long)want);
    check(got == want, name);
}

/* -- Faults ----------------------------------------------------------------------------------------- */

static volatile int sig_seen, sig_count;
static volatile u64 sig_addr, sig_rip, sig_trapno, sig_err, sig_skip, sig_flags;
static volatile int sig_code;
static u64 sig_regs[NGREG];
static void (*volatile sig_fix)(ucontext_t *);

static void on_signal(int sig, siginfo_t *info, void *context)
{
    __asm__ volatile("push %%rax; pushf; andl $~0x40000, (%%rsp); popf; pop %%rax" : : : "memory", "cc"); /* AC is inherited */
    ucontext_t *u = context;
    sig_seen = sig;
    sig_count++;
    sig_addr = (u64)info->si_addr;
    sig_code = info->si_code;
    sig_rip = (u64)u->uc_mcontext.gregs[REG_RIP];
    sig_trapno = (u64)u->uc_mcontext.gregs[REG_TRAPNO];
    sig_err = (u64)u->uc_mcontext.gregs[REG_ERR];
    sig_flags = (u64)u->uc_mcontext.gregs[REG_EFL];
    memcpy(sig_regs, u->uc_mcontext.gregs, sizeof(sig_regs));
    u->uc_mcontext.gregs[REG_EFL] &= ~0x40100ll; /* TF, AC */
    if (sig_fix)
        sig_fix(u);
    else
        u->uc_mcontext.gregs[REG_RIP] += (greg_t)sig_skip;
}
static char alt_stack[65536];
static void catch_signals(void)
{
    static const int signals[] = { SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGBUS };
    stack_t ss = { .ss_sp = alt_stack, .ss_size = sizeof(alt_stack) };
    sigaltstack(&ss, NULL);
    for (unsigned i = 0; i < sizeof(signals) / sizeof(*signals); i++) {
        struct sigaction a = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK };
        sigaction(signals[i], &a, NULL);
    }
}
/* Run code whose first byte must give this signal and trap number; `skip` steps over it. */
#define FAULTS(name, signal, trap, skip, ...)                                                   \
    do {                                                                                        \
        u64 at_;                                                                                \
        sig_seen = 0;                                                                           \
        sig_skip = (skip);                                                                      \
        __asm__ volatile("lea 9f(%%rip), %0\n9: " __VA_ARGS__);                                 \
        if (!check(sig_seen == (signal) && sig_rip == at_ && sig_trapno == (trap), name))       \
            printf("  signal %d trap %d, %d bytes away\n", sig_seen, (int)sig_trapno, (int)(sig_rip - at_)); \
    } while (0)

static void make_present(ucontext_t *u)
{
    (void)u;
    mprotect((void *)(sig_addr & ~4095ull), 4096, PROT_READ | PROT_WRITE);
}

static void test_faults(void)
{
    u64 bad = 0x800000000000ull, top = 0xffff900000000000ull;
    FAULTS("write to 0", SIGSEGV, 14, 8, "movb $1, 0x123" : "=&r"(at_) : : "memory");
    same(sig_addr, 0x123, "fault address");
    same(sig_err, 6, "fault error code");
    FAULTS("read of the kernel", SIGSEGV, 14, 2, "movb (%1), %%al" : "=&r"(at_) : "d"(top) : "rax");
    same(sig_err & 6, 4, "its error code");
    FAULTS("not canonical", SIGSEGV, 13, 2, "movb (%1), %%al" : "=&r"(at_) : "d"(bad) : "rax");
    same(sig_addr, 0, "its address");
    sig_skip = 3;
    __asm__ volatile("sub $128, %%rsp; push %%rbp; mov %0, %%rbp; movb (%%rbp), %%al; pop %%rbp; add $128, %%rsp" : : "r"(bad) : "rax", "memory");
    check(sig_seen == SIGBUS && sig_trapno == 12, "not canonical, by rbp");
    FAULTS("end of the low half", SIGSEGV, 13, 2, "movl (%1), %%eax" : "=&r"(at_) : "d"(bad - 2) : "rax");
    FAULTS("ud2", SIGILL, 6, 2, "ud2" : "=&r"(at_));
    FAULTS("push es", SIGILL, 6, 1, ".byte 0x06" : "=&r"(at_));
    FAULTS("hlt", SIGSEGV, 13, 1, "hlt" : "=&r"(at_));
    FAULTS("rdmsr", SIGSEGV, 13, 2, "rdmsr" : "=&r"(at_) : "c"(0x10) : "rax", "rdx");
    FAULTS("wbinvd", SIGSEGV, 13, 2, "wbinvd" : "=&r"(at_));
    FAULTS("swapgs", SIGSEGV, 13, 3, "swapgs" : "=&r"(at_));
    FAULTS("sysretq", SIGSEGV, 13, 3, "sysretq" : "=&r"(at_));
    FAULTS("mov to cr4", SIGSEGV, 13, 3, "mov %%rax, %%cr4" : "=&r"(at_));
    FAULTS("mov to dr7", SIGSEGV, 13, 3, "mov %%rax, %%dr7" : "=&r"(at_));
    FAULTS("clts", SIGSEGV, 13, 2, "clts" : "=&r"(at_));
    FAULTS("lgdt", SIGSEGV, 13, 4, "lgdt (%%rsp)" : "=&r"(at_));
    FAULTS("ltr", SIGSEGV, 13, 3, "ltr %%ax" : "=&r"(at_));
    FAULTS("invlpg", SIGSEGV, 13, 3, "invlpg (%%rax)" : "=&r"(at_));
    FAULTS("sti", SIGSEGV, 13, 1, "sti" : "=&r"(at_));
    FAULTS("outl", SIGSEGV, 13, 1, "outl %%eax, %%dx" : "=&r"(at_) : "d"(0xcf8));
    FAULTS("rep outsb", SIGSEGV, 13, 2, "rep outsb" : "=&r"(at_) : "d"(0x3f8), "S"(alt_stack), "c"(3));
    FAULTS("xsetbv", SIGSEGV, 13, 3, "xsetbv" : "=&r"(at_) : "c"(0), "a"(3), "d"(0));
    FAULTS("int 0x30", SIGSEGV, 13, 2, "int $0x30" : "=&r"(at_));
    same(sig_err, 0x30 * 8 + 2, "its error code");
    FAULTS("jump out of canonical space", SIGSEGV, 13, 2, "jmp *%%rdx" : "=&r"(at_) : "d"(bad));
    FAULTS("div by 0", SIGFPE, 0, 3, "div %%rcx" : "=&r"(at_) : "c"(0ll), "a"(1ll), "d"(0ll));
    FAULTS("div overflow", SIGFPE, 0, 3, "div %%rcx" : "=&r"(at_) : "c"(5ll), "a"(1ll), "d"(5ll));
    FAULTS("idiv of the least by -1", SIGFPE, 0, 3, "idiv %%rcx" : "=&r"(at_) : "c"(-1ll), "a"(1ull << 63), "d"(-1ll));
    FAULTS("idivb", SIGFPE, 0, 2, "idivb %%cl" : "=&r"(at_) : "c"(1), "a"(0x7fff));
    FAULTS("movaps unaligned", SIGSEGV, 13, 3, "movaps (%%rcx), %%xmm0" : "=&r"(at_) : "c"(alt_stack + 1) : "xmm0");
    FAULTS("cmpxchg16b unaligned", SIGSEGV, 13, 4, "cmpxchg16b (%%rcx)" : "=&r"(at_) : "c"((u64)alt_stack | 8) : "rax", "rdx", "rbx", "memory", "cc");
    FAULTS("fs of a bad selector", SIGSEGV, 13, 2, "mov %%ecx, %%fs" : "=&r"(at_) : "c"(0x1ff3));
    same(sig_err, 0x1ff0, "its error code");
    FAULTS("lock of a register", SIGILL, 6, 4, ".byte 0xf0, 0x48, 0x01, 0xc0" : "=&r"(at_));
    FAULTS("16 bytes long", SIGSEGV, 13, 16, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90" : "=&r"(at_));
    sig_skip = 0;
    sig_seen = 0;
    __asm__ volatile("int3");
    check(sig_seen == SIGTRAP && sig_trapno == 3, "int3");

    /* Registers in the frame, and those that the handler does not touch. */
    sig_skip = 3;
    u64 ok;
    __asm__ volatile("push %%rbp; mov $0x1111, %%r8; mov $0x2222, %%r9; mov $0x3333, %%r15; mov $0x4444, %%rbp; xor %%eax, %%eax;"
                     "stc; mov %%al, (%%rax,%%rax); mov $1, %%eax; jc 1f; xor %%eax, %%eax; 1:"
                     "cmp $0x1111, %%r8; jne 2f; cmp $0x2222, %%r9; jne 2f; cmp $0x3333, %%r15; jne 2f; cmp $0x4444, %%rbp; je 3f; 2: xor %%eax, %%eax; 3: pop %%rbp"
                     : "=&a"(ok) : : "r8", "r9", "r15", "memory", "cc");
    same(ok, 1, "registers after a fault");
    check(sig_regs[REG_R8] == 0x1111 && sig_regs[REG_R15] == 0x3333 && sig_regs[REG_RBP] == 0x4444, "registers in the frame");
    same(sig_flags & 1, 1, "carry in the frame");

    /* A loop that never faults for good: each time a page is made present. */
    u8 *p = mmap(NULL, 4096 * 64, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sig_fix = make_present;
    sig_count = 0;
    for (int i = 0; i < 64; i++)
        p[i * 4096 + i] = (u8)i;
    sig_fix = NULL;
    same((u64)sig_count, 64, "pages made present by the handler");
    u32 sum = 0;
    for (int i = 0; i < 64 * 4096; i++)
        sum += p[i];
    same(sum, 63 * 64 / 2, "what was written to them");
    munmap(p, 4096 * 64);
}
/* -- Alignment checking, UMIP, single step ------------------------------------------------------------- */

static int steps;
static u64 step_rip[64];
static void on_step(ucontext_t *u)
{
    if (steps < 64)
        step_rip[steps] = (u64)u->uc_mcontext.gregs[REG_RIP];
    if (++steps < 60)
        u->uc_mcontext.gregs[REG_EFL] |= 0x100;
}

static void test_flags(void)
{
    static u64 words[4] __attribute__((aligned(64)));
    words[0] = 0x1122334455667788;
    sig_seen = 0;
    sig_skip = 3;
    u64 v = 0;
    __asm__ volatile("sub $128, %%rsp; pushf; orl $0x40000, (%%rsp); popf; mov (%1), %0; mov 1(%1), %%eax;"
                     "pushf; andl $~0x40000, (%%rsp); popf; add $128, %%rsp"
                     : "=&r"(v) : "d"(words) : "rax", "memory", "cc");
    check(sig_seen == SIGBUS && sig_trapno == 17, "alignment check");
    same(v, words[0], "aligned access under AC");

    u8 table[16] = { 0 };
    sig_seen = 0;
    sig_skip = 3;
    __asm__ volatile("sidt (%0)" : : "r"(table) : "memory"); /* emulated by the kernel under UMIP, or done */
    check(sig_seen == 0 || sig_seen == SIGSEGV, "sidt");
    sig_skip = 0;

    /* Every instruction of a stretch traps once, pushf and a system call among them. */
    sig_fix = on_step;
    steps = 0;
    u64 first, flags;
    __asm__ volatile("sub $128, %%rsp; pushf; orl $0x100, (%%rsp); popf; lea 1f(%%rip), %0; 1: nop; xor %%eax, %%eax; mov $39, %%al;"
                     "syscall; mov $3, %%ecx; 2: dec %%ecx; jnz 2b; pushf; pop %1; push %1; andl $~0x100, (%%rsp); popf; nop; add $128, %%rsp"
                     : "=&r"(first), "=&r"(flags) : : "rax", "rcx", "r11", "memory", "cc");
    sig_fix = NULL;
    check(sig_trapno == 1 && sig_seen == SIGTRAP, "single step");
    u64 *at = step_rip;
    int i = 0;
    while (i < steps && at[i] != first)
        i++;
    same(at[i + 1] - first, 1, "step after nop");
    same(at[i + 2] - first, 3, "step after xor");
    same(at[i + 3] - first, 5, "step after mov");
    same(at[i + 4] - first, 12, "step after syscall and mov"); /* sysret sets TF: the trap is one later */
    same(at[i + 5] - first, 14, "step after dec");
    same(at[i + 6] - first, 12, "step after jnz taken");
    same(at[i + 10] - first, 16, "step after jnz not taken");
    same(flags & 0x100, 0x100, "TF in pushf");
}

/* -- ptrace: single step and debug registers ----------------------------------------------------------- */

static volatile u64 watched[8] __attribute__((aligned(64)));
static volatile int go;
static void __attribute__((noinline)) target(int i)
{
    watched[1] = (u64)i;
    __asm__ volatile("" ::: "memory");
}

static void test_debugger(void)
{
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (int i = 0; i < 10; i++) {
            watched[0] = watched[2]; /* not watched, then a read of the watched ones */
            target(i);
            watched[3] = watched[1];
        }
        __asm__ volatile("lea 1f(%%rip), %%rax; mov $1000, %%ecx; 1: dec %%ecx; jnz 1b; mov $60, %%eax; mov $9, %%edi; syscall" : : : "rax", "rcx", "rdi");
    }
    int status;
    waitpid(child, &status, 0);
#define DR(n) (offsetof(struct user, u_debugreg) + (n) * 8)
    long ok = ptrace(PTRACE_POKEUSER, child, DR(0), &watched[1]);
    ok |= ptrace(PTRACE_POKEUSER, child, DR(1), target);
    ok |= ptrace(PTRACE_POKEUSER, child, DR(2), &watched[3]);
    /* DR0: 8-byte write; DR1: execute; DR2: 8-byte read or write */
    ok |= ptrace(PTRACE_POKEUSER, child, DR(7), (0x9ul << 16) | (0xbul << 24) | 0x15);
    if (!check(ok == 0, "debug registers can be set")) {
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        return;
    }
    int hits[4] = { 0 }, other = 0;
    for (;;) {
        ptrace(PTRACE_CONT, child, 0, 0);
        if (waitpid(child, &status, 0) < 0 || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
            break;
        u64 dr6 = (u64)ptrace(PTRACE_PEEKUSER, child, DR(6), 0);
        struct user_regs_struct r;
        ptrace(PTRACE_GETREGS, child, 0, &r);
        if ((dr6 & 2) && r.rip != (u64)target)
            other++;
        for (int i = 0; i < 3; i++)
            hits[i] += (dr6 >> i) & 1;
        if (!(dr6 & 7))
            other++;
        ptrace(PTRACE_POKEUSER, child, DR(6), 0);
    }
    same((u64)hits[0], 10, "write watchpoint");
    same((u64)hits[1], 10, "execution breakpoint");
    same((u64)hits[2], 10, "access watchpoint");
    same((u64)other, 0, "other traps");
    same(WIFEXITED(status) ? (u64)WEXITSTATUS(status) : 255, 9, "traced child");

    /* Counting instructions. */
    child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        __asm__ volatile("mov $39, %%eax; syscall; mov $1000, %%ecx; 1: dec %%ecx; jnz 1b;"
                         "lea %0, %%rsi; lea 64+%0, %%rdi; mov $16, %%ecx; rep movsb; mov $60, %%eax; mov $7, %%edi; syscall"
                         : : "m"(alt_stack[0]) : "rax", "rcx", "rdi", "rsi", "r11", "memory");
    }
    waitpid(child, &status, 0);
    ptrace(PTRACE_SYSCALL, child, 0, 0); /* the exit of raise's call, and getpid's entry and exit */
    do {
        waitpid(child, &status, 0);
        struct user_regs_struct r;
        ptrace(PTRACE_GETREGS, child, 0, &r);
        if (r.orig_rax == SYS_getpid && r.rax != (u64)-ENOSYS)
            break;
        ptrace(PTRACE_SYSCALL, child, 0, 0);
    } while (WIFSTOPPED(status));
    u64 count = 0;
    for (;;) {
        if (ptrace(PTRACE_SINGLESTEP, child, 0, 0) < 0 || waitpid(child, &status, 0) < 0 || !WIFSTOPPED(status))
            break;
        count++;
    }
    same(count, 1 + 2000 + 3 + 16 + 2, "instructions stepped"); /* one trap for each byte moved */
    same(WIFEXITED(status) ? (u64)WEXITSTATUS(status) : 255, 7, "stepped child");
}

/* -- Vector state ---------------------------------------------------------------------------------------- */

static int have_avx, have_avx512;
static u64 vectors[4][32 * 8 + 8]; /* what each thread keeps */

#define ZMM(n) "vmovdqu64 " #n "*64(%0), %%zmm" #n ";"
#define ZST(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%0);"
#define ALL32(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15) \
    M(16) M(17) M(18) M(19) M(20) M(21) M(22) M(23) M(24) M(25) M(26) M(27) M(28) M(29) M(30) M(31)
#define YMM(n) "vmovdqu " #n "*32(%0), %%ymm" #n ";"
#define YST(n) "vmovdqu %%ymm" #n ", " #n "*32(%0);"
#define ALL16(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define KLD(n) "kmovq 2048+" #n "*8(%0), %%k" #n ";"
#define KST(n) "kmovq %%k" #n ", 2048+" #n "*8(%0);"
#define ALL8(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define XMM(n) "movdqu " #n "*16(%0), %%xmm" #n ";"
#define XST(n) "movdqu %%xmm" #n ", " #n "*16(%0);"

/* Load everything, make a system call (or take a signal, a fault, a step), store everything. */
#define KEEP(load, store) \
    __asm__ volatile(load "mov %2, %%rax; mov %3, %%rdi; mov %4, %%rsi; syscall;" "mov %1, %0;" store \
                     : "+&b"(from) : "r"(to), "r"(nr), "r"(a), "r"(b) \
                     : "rax", "rcx", "rdx", "rdi", "rsi", "r11", "memory")
static void keep(const u64 *from, u64 *to, u64 nr, u64 a, u64 b)
{
    if (have_avx512)
        KEEP(ALL32(ZMM) ALL8(KLD), ALL32(ZST) ALL8(KST));
    else if (have_avx)
        KEEP(ALL16(YMM), ALL16(YST));
    else
        KEEP(ALL16(XMM), ALL16(XST));
}
static size_t vector_bytes(void) { return have_avx512 ? 2048 + 64 : have_avx ? 512 : 256; }

static void on_usr(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)info, (void)context;
    u64 other[32 * 8 + 8], out[32 * 8 + 8];
    memset(other, 0xee, sizeof(other));
    keep(other, out, SYS_getpid, 0, 0);
}

static volatile u32 lost;
static void *keeper(void *arg)
{
    u64 *mine = vectors[(u64)arg], out[32 * 8 + 8];
    for (int i = 0; i < 300; i++) {
        keep(mine, out, SYS_sched_yield, 0, 0);
        if (memcmp(mine, out, vector_bytes()))
            lost++;
    }
    return NULL;
}

static void test_vectors(void)
{
    __builtin_cpu_init();
    have_avx = __builtin_cpu_supports("avx2");
    have_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    for (int t = 0; t < 4; t++)
        for (int i = 0; i < 32 * 8 + 8; i++)
            vectors[t][i] = (u64)(t * 1000 + i + 1) * 0x9e3779b97f4a7c15ull;
    pthread_t thread[4];
    for (u64 t = 0; t < 4; t++)
        pthread_create(&thread[t], NULL, keeper, (void *)t);
    for (int t = 0; t < 4; t++)
        pthread_join(thread[t], NULL);
    same(lost, 0, "vector registers across threads");

    struct sigaction a = { .sa_sigaction = on_usr, .sa_flags = SA_SIGINFO };
    sigaction(SIGUSR1, &a, NULL);
    u64 out[32 * 8 + 8];
    for (int i = 0; i < 100; i++) {
        keep(vectors[i & 3], out, SYS_kill, (u64)getpid(), SIGUSR1);
        if (memcmp(vectors[i & 3], out, vector_bytes()))
            lost++;
    }
    same(lost, 0, "vector registers across signals");

    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 50; i++) {
            keep(vectors[1], out, SYS_sched_yield, 0, 0);
            lost += memcmp(vectors[1], out, vector_bytes()) != 0;
        }
        _exit(lost != 0);
    }
    for (int i = 0; i < 50; i++) {
        keep(vectors[2], out, SYS_sched_yield, 0, 0);
        lost += memcmp(vectors[2], out, vector_bytes()) != 0;
    }
    int status;
    waitpid(child, &status, 0);
    same(lost + (u64)status, 0, "vector registers across processes");

    u32 mxcsr = 0x1f80 | 0x6000, got;
    u16 cw = 0x27f, cw_got;
    __asm__ volatile("ldmxcsr %0; fldcw %1" : : "m"(mxcsr), "m"(cw));
    kill(getpid(), SIGUSR1);
    sched_yield();
    __asm__ volatile("stmxcsr %0; fnstcw %1" : "=m"(got), "=m"(cw_got));
    same(got, mxcsr, "mxcsr");
    same(cw_got, cw, "x87 control word");
    mxcsr = 0x1f80;
    cw = 0x37f;
    __asm__ volatile("ldmxcsr %0; fldcw %1" : : "m"(mxcsr), "m"(cw));
}

/* -- Accesses that end in the middle -------------------------------------------------------------------- */

static u8 *two; /* a page, and one that is not there */

static void test_partial(void)
{
    two = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u8 *end = two + 4096, src[256];
    mprotect(end, 4096, PROT_NONE);
    for (int i = 0; i < 256; i++)
        src[i] = (u8)(i + 1);
    u64 cx, si, di;

    FAULTS("rep movsb into nothing", SIGSEGV, 14, 2, "rep movsb" : "=&r"(at_), "=c"(cx), "=S"(si), "=D"(di) : "1"(100ll), "2"(src), "3"(end - 40) : "memory");
    check(cx == 60 && si == (u64)src + 40 && di == (u64)end && !memcmp(end - 40, src, 40), "where it stopped");
    check(sig_addr == (u64)end && sig_regs[REG_RCX] == 60, "its frame");
    FAULTS("rep stosq into nothing", SIGSEGV, 14, 3, "rep stosq" : "=&r"(at_), "=c"(cx), "=D"(di) : "1"(10ll), "2"(end - 36), "a"(0x0101010101010101ull) : "memory");
    check(cx == 6 && di == (u64)end - 4, "where it stopped");
    check(end[-5] == 1 && sig_addr == (u64)end, "what it stored");
    FAULTS("repe cmpsb into nothing", SIGSEGV, 14, 2, "repe cmpsb" : "=&r"(at_), "=c"(cx), "=S"(si), "=D"(di) : "1"(100ll), "2"(end - 5), "3"(end - 5) : "cc");
    same(cx, 95, "where it stopped");
    memset(two, 0x55, 4096);
    FAULTS("store across the end", SIGSEGV, 14, 3, "mov %%rax, (%%rdx)" : "=&r"(at_) : "d"(end - 3), "a"(0ll) : "memory");
    check(end[-1] == 0x55 && end[-3] == 0x55, "nothing of it was stored");
    same(sig_addr, (u64)end, "its address");
    FAULTS("add across the end", SIGSEGV, 14, 3, "add %%rax, (%%rdx)" : "=&r"(at_) : "d"(end - 7), "a"(-1ll) : "memory", "cc");
    check(end[-7] == 0x55, "nothing of it was stored");
    FAULTS("xchg across the end", SIGSEGV, 14, 3, "xchg %%rax, (%%rdx)" : "=&r"(at_) : "d"(end - 4), "a"(0ll) : "memory");
    u64 rsp, after;
    sig_seen = 0;
    sig_skip = 1;
    __asm__ volatile("mov %%rsp, %0; mov %2, %%rsp; push %%rax; mov %%rsp, %1; mov %0, %%rsp" : "=&r"(rsp), "=&r"(after) : "r"(end + 4) : "memory");
    check(sig_seen == SIGSEGV && sig_addr == (u64)end && after == (u64)end + 4, "push across the end");
    FAULTS("movups across the end", SIGSEGV, 14, 3, "movups %%xmm0, (%%rdx)" : "=&r"(at_) : "d"(end - 8) : "memory");
    check(end[-8] == 0x55, "nothing of it was stored");
    FAULTS("fstpt across the end", SIGSEGV, 14, 2, "fstpt (%%rdx)" : "=&r"(at_) : "d"(end - 8) : "memory");
    __asm__ volatile("fninit");
    FAULTS("fxsave across the end", SIGSEGV, 14, 3, "fxsave (%%rdx)" : "=&r"(at_) : "d"(end - 256) : "memory");

    if (have_avx) {
        /* A gather stops at the element that faults: those before it are done, its mask says so. */
        u32 data[8] = { 10, 11, 12, 13, 14, 15, 16, 17 }, mask[8], out[8];
        u64 base = (u64)end - 16;
        memcpy(end - 16, data, 16);
        int near[8] = { 0, 1, 2, 3, 4, 0, 1, 2 };
        sig_skip = 6;
        sig_seen = 0;
        __asm__ volatile("vmovdqu %2, %%ymm1; vpcmpeqd %%ymm2, %%ymm2, %%ymm2; vpxor %%ymm0, %%ymm0, %%ymm0;"
                         "vpgatherdd %%ymm2, (%3,%%ymm1,4), %%ymm0; vmovdqu %%ymm2, %0; vmovdqu %%ymm0, %1; vzeroupper"
                         : "=m"(mask), "=m"(out) : "m"(near), "d"(base) : "xmm0", "xmm1", "xmm2", "memory");
        check(sig_seen == SIGSEGV && sig_trapno == 14, "gather from nothing");
        same(sig_addr, (u64)end, "its address");
        int done = 1;
        for (int i = 0; i < 8; i++) /* elements below the one that faults are done or not, consistently */
            if ((mask[i] == 0) != (i < 4 && out[i] == data[i]) && !(mask[i] && !out[i]))
                done = 0;
        check(done && mask[4], "what a gather left");
        /* Masked moves do not touch what they leave out. */
        u32 lanes[8] = { ~0u, ~0u, ~0u, ~0u, 0, 0, 0, 0 };
        sig_seen = 0;
        __asm__ volatile("vmovdqu %1, %%ymm1; vpmaskmovd (%2), %%ymm1, %%ymm0; vpaddd %%ymm0, %%ymm0, %%ymm0; vpmaskmovd %%ymm0, %%ymm1, (%2); vmovdqu %%ymm0, %0; vzeroupper"
                         : "=m"(out) : "m"(lanes), "r"(end - 16) : "xmm0", "xmm1", "memory");
        check(sig_seen == 0 && out[3] == 26 && out[4] == 0 && ((u32 *)end)[-1] == 26, "vpmaskmovd at the end");
    }
    if (have_avx512) {
        u32 out[16];
        sig_seen = 0;
        __asm__ volatile("mov $0xf, %%eax; kmovw %%eax, %%k1; vmovdqu32 (%1), %%zmm0%{%%k1%}%{z%}; vpaddd %%zmm0, %%zmm0, %%zmm0%{%%k1%};"
                         "vmovdqu32 %%zmm0, (%1)%{%%k1%}; vmovdqu32 %%zmm0, %0; vpcompressd %%zmm0, (%1)%{%%k1%}; vpexpandd (%1), %%zmm1%{%%k1%}; vzeroupper"
                         : "=m"(out) : "r"(end - 16) : "rax", "xmm0", "xmm1", "memory");
        check(sig_seen == 0 && out[3] == 52 && ((u32 *)end)[-1] == 52, "masked vmovdqu32 at the end");
        sig_skip = 6;
        __asm__ volatile("mov $0x1f, %%eax; kmovw %%eax, %%k1; vmovdqu32 %%zmm0, (%0)%{%%k1%}" : : "d"(end - 16) : "rax", "memory");
        check(sig_seen == SIGSEGV, "masked store past the end");
        same(sig_addr, (u64)end, "its address");
        __asm__ volatile("vzeroupper");
    }
    munmap(two, 8192);
}

/* -- Code ------------------------------------------------------------------------------------------------- */

static const u8 returns[] = { 0xb8, 0, 0, 0, 0, 0xc3 };
static void emit(u8 *p, u32 value)
{
    memcpy(p, returns, 6);
    memcpy(p + 1, &value, 4);
}
static u32 call(const u8 *p) { return ((u32 (*)(void))p)(); }
#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)

static u8 *resume;
static void to_resume(ucontext_t *u)
{
    u->uc_mcontext.gregs[REG_RIP] = (greg_t)resume;
}

static void test_code(void)
{
    u8 *p = mmap(NULL, 65536, RWX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u32 bad = 0;
    for (u32 i = 0; i < 20000; i++) {
        emit(p + 4090 + i % 7, i);
        bad += call(p + 4090 + i % 7) != i;
    }
    same(bad, 0, "re-emitted code");

    /* Through another mapping, from another process, and by a system call. */
    int fd = memfd_create("code", 0);
    if (ftruncate(fd, 8192))
        return;
    u8 *x = mmap(NULL, 8192, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0), *w = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (u32 i = 0; i < 3000; i++) {
        emit(w + 4093, i);
        bad += call(x + 4093) != i;
    }
    same(bad, 0, "code written through another mapping");
    for (u32 i = 0; i < 300; i++) {
        u8 b[6];
        emit(b, i);
        bad += pwrite(fd, b, 6, 100) != 6;
        bad += call(x + 100) != i;
    }
    same(bad, 0, "code written by pwrite");
    int to[2], from[2];
    if (pipe(to) || pipe(from))
        return;
    pid_t child = fork();
    if (child == 0) {
        u32 v;
        close(to[1]);
        while (read(to[0], &v, 4) == 4) {
            emit(w + 200, v);
            v = call(x + 200) == v;
            if (write(from[1], &v, 4) != 4)
                break;
        }
        _exit(0);
    }
    close(to[0]);
    for (u32 i = 0; i < 300; i++) {
        u32 v = i * 7;
        bad += write(to[1], &v, 4) != 4 || read(from[0], &v, 4) != 4;
        bad += v != 1 || call(x + 200) != i * 7;
    }
    close(to[1]);
    waitpid(child, NULL, 0);
    same(bad, 0, "code written by another process");
    for (u32 i = 0; i < 300; i++) {
        u8 b[6];
        emit(b, i + 5);
        struct iovec l = { b, 6 }, r = { p + 300, 6 };
        if (process_vm_writev(getpid(), &l, 1, &r, 1, 0) != 6)
            break; /* may be forbidden */
        bad += call(p + 300) != i + 5;
    }
    same(bad, 0, "code written by process_vm_writev");

    /* Copy on write: a child changes its own copy only. */
    emit(p, 1);
    bad += call(p) != 1;
    child = fork();
    if (child == 0) {
        emit(p, 2);
        _exit(call(p) == 2 ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    same((u64)status, 0, "code changed in the child");
    same(call(p), 1, "code kept in the parent");
    child = fork();
    if (child == 0) {
        usleep(2000);
        _exit(call(p) == 1 ? 0 : 1);
    }
    emit(p, 3);
    same(call(p), 3, "code changed in the parent");
    waitpid(child, &status, 0);
    same((u64)status, 0, "code kept in the child");

    /* The same address, other pages. */
    for (u32 i = 0; i < 300; i++) {
        u8 *at = mmap(p + 8192, 4096, RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        emit(at + 8, i);
        bad += call(at + 8) != i;
        if (i % 3 == 0)
            munmap(at, 4096);
        else if (i % 3 == 1)
            madvise(at, 4096, MADV_DONTNEED);
    }
    same(bad, 0, "code in fresh pages");
    u8 *page[2];
    for (u32 i = 0; i < 2; i++) {
        page[i] = mmap(NULL, 4096, RWX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        emit(page[i] + 16, 100 + i);
        bad += call(page[i] + 16) != 100 + i;
    }
    u8 *hole = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (u32 i = 0; i < 100; i++) { /* exchange the two pages */
        mremap(page[0], 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, hole);
        mremap(page[1], 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, page[0]);
        mremap(hole, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, page[1]);
        bad += call(page[0] + 16) != 100 + ((i + 1) & 1);
        bad += call(page[1] + 16) != 100 + (i & 1);
        hole = mmap(hole, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
    same(bad, 0, "code in exchanged pages");

    /* Crossing into a page that is replaced. */
    u8 *cross = mmap(NULL, 8192, RWX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (u32 i = 0; i < 200; i++) {
        cross[4095] = 0xb8;
        u8 *second = mmap(cross + 4096, 4096, RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        memcpy(second, &i, 4);
        second[4] = 0xc3;
        bad += call(cross + 4095) != i;
    }
    same(bad, 0, "code across into a replaced page");
    sig_seen = 0;
    u64 sp;
    mprotect(cross + 4096, 4096, PROT_READ | PROT_WRITE);
    sig_fix = to_resume;
    __asm__ volatile("lea 1f(%%rip), %%rax; mov %%rax, %1; mov %%rsp, %0; jmp *%2; 1: mov %0, %%rsp" : "=&r"(sp), "=m"(resume) : "r"(cross + 4095) : "rax", "memory");
    (void)sp;
    sig_fix = NULL;
    check(sig_seen == SIGSEGV && sig_rip == (u64)cross + 4095 && sig_addr == (u64)cross + 4096, "code across into a page without the right");
    same(sig_err, 0x15, "its error code");

    /* Code that changes what follows it, in a loop: mov al, n; each pass raises the next pass's n. */
    static const u8 self[] = { 0x31, 0xc0, 0xb9, 100, 0, 0, 0, /* xor eax,eax; mov ecx,100 */
                               0x05, 1, 0, 0, 0,               /* 7: add eax, imm32 */
                               0xfe, 0x05, 0xf6, 0xff, 0xff, 0xff, /* 12: inc byte [rip-10] (its imm, at 8) */
                               0xff, 0xc9, 0x75, 0xf1, 0xc3 }; /* dec ecx; jnz 7; ret */
    for (int i = 0; i < 20; i++) {
        memcpy(p + 512, self, sizeof(self));
        u32 want = 0;
        for (u32 k = 0, n = 1; k < 100; k++, n = (u8)(n + 1))
            want += n;
        bad += call(p + 512) != want;
    }
    same(bad, 0, "code that changes itself in a loop");
    /* ... and the next instruction, straight on. */
    static const u8 next[] = { 0xc6, 0x05, 1, 0, 0, 0, 42, 0xb8, 7, 0, 0, 0, 0xc3 }; /* movb 42, [rip+1]; mov eax, 7 */
    for (int i = 0; i < 50; i++) {
        memcpy(p + 600, next, sizeof(next));
        bad += call(p + 600) != 42;
    }
    same(bad, 0, "the next instruction changed");
    /* rep movsb over the code that runs it. */
    static const u8 over[] = { 0xf3, 0xa4, 0xb8, 1, 0, 0, 0, 0xc3 };
    for (u32 i = 0; i < 50; i++) {
        u8 with[8];
        memcpy(with, over, 8);
        with[3] = (u8)(i + 2);
        memcpy(p + 700, over, 8);
        u32 r;
        u8 *d = p + 700, *s = with;
        u64 c = 8;
        __asm__ volatile("call *%4" : "=a"(r), "+D"(d), "+S"(s), "+c"(c) : "r"(p + 700) : "memory");
        bad += r != i + 2;
    }
    same(bad, 0, "rep movsb over itself");

    /* Data beside code in one page, written all the time. */
    volatile u32 *data = (u32 *)(p + 1024);
    emit(p + 1032, 9);
    u32 sum = 0;
    for (u32 i = 0; i < 100000; i++) {
        *data = i;
        sum += call(p + 1032) + *data;
    }
    same(sum, 9 * 100000u + (u32)(99999ull * 100000 / 2), "data beside code");
    munmap(p, 65536);
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    catch_signals();
    test_faults();
    test_flags();
    test_debugger();
    test_vectors();
    test_partial();
    test_code();
    printf("user64: %d passed, %d failed\n", passed, failed);
    return failed != 0;
}
