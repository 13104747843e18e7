/*
 * user32.c - what 32-bit programs rely on, checked from inside one: gcc -m32 -O2 -msse2 user32.c
 * Prints a line for every check that fails and `user32: N passed, M failed`. Needs no privileges.
 * Passes on bare hardware under a 64-bit Linux.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <cpuid.h>
#include <errno.h>
#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

static int passed, failed;

static void check(int ok, const char *name)
{
    if (ok) {
        passed++;
    } else {
        failed++;
        printf("FAILED: %s\n", name);
    }
}
static void same(u64 got, u64 want, const char *name)
{
    if (got != want)
        printf("%s: %llx, not %llx\n", name, (unsigned long long)got, (unsigned long long)want);
    check(got == want, name);
}

/* -- Signals ---------------------------------------------------------------------------------------- */

static volatile int sig_seen;
static volatile u32 sig_addr, sig_code, sig_eip, sig_trapno, sig_err;
static volatile u32 sig_skip; /* bytes to step over, or 0: to sig_to */
static void *volatile sig_to;

static void on_signal(int sig, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    sig_seen = sig;
    sig_addr = (u32)info->si_addr;
    sig_code = info->si_code;
    sig_eip = u->uc_mcontext.gregs[REG_EIP];
    sig_trapno = u->uc_mcontext.gregs[REG_TRAPNO];
    sig_err = u->uc_mcontext.gregs[REG_ERR];
    if (sig_to)
        u->uc_mcontext.gregs[REG_EIP] = (greg_t)(u32)sig_to;
    else
        u->uc_mcontext.gregs[REG_EIP] += sig_skip;
}
static void catch_signals(void)
{
    static const int signals[] = { SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGBUS };
    for (unsigned i = 0; i < sizeof(signals) / sizeof(*signals); i++) {
        struct sigaction a = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER };
        sigaction(signals[i], &a, NULL);
    }
}
/* Run code that must give this signal at its first byte; `skip` steps over it. */
#define FAULTS(name, signal, skip, ...)                                              \
    do {                                                                             \
        u32 at_;                                                                     \
        sig_seen = 0;                                                                \
        sig_skip = (skip);                                                           \
        __asm__ volatile("movl $9f, %0\n9: " __VA_ARGS__);                           \
        check(sig_seen == (signal) && sig_eip == at_, name);                         \
    } while (0)

static void test_faults(void)
{
    u32 eax;
    FAULTS("write to 0", SIGSEGV, 7, "movb $1, 0x123" : "=&r"(at_) : : "memory");
    same(sig_addr, 0x123, "fault address");
    same(sig_err, 6, "fault error code");
    FAULTS("ud2", SIGILL, 2, "ud2" : "=&r"(at_));
    FAULTS("hlt", SIGSEGV, 1, "hlt" : "=&r"(at_));
    FAULTS("cli", SIGSEGV, 1, "cli" : "=&r"(at_));
    FAULTS("in", SIGSEGV, 1, "inb %%dx, %%al" : "=&r"(at_) : "d"(0x64) : "eax");
    FAULTS("rep insb", SIGSEGV, 2, "rep insb" : "=&r"(at_) : "d"(0x64), "D"(&eax), "c"(1) : "memory");
    FAULTS("mov cr0", SIGSEGV, 3, "mov %%eax, %%cr0" : "=&r"(at_));
    FAULTS("divide by 0", SIGFPE, 2, "div %%ecx" : "=&r"(at_) : "c"(0), "a"(1), "d"(0));
    same(sig_trapno, 0, "#DE");
    FAULTS("divide overflow", SIGFPE, 2, "idiv %%ecx" : "=&r"(at_) : "c"(-1), "a"(0x80000000), "d"(-1));
    FAULTS("aam 0", SIGFPE, 2, ".byte 0xd4, 0" : "=&r"(at_) : : "eax");
    FAULTS("lock reg", SIGILL, 3, ".byte 0xf0, 0x01, 0xc0" : "=&r"(at_));
    sig_skip = 0;
    sig_seen = 0;
    __asm__ volatile("int3");
    check(sig_seen == SIGTRAP, "int3");
    sig_seen = 0;
    __asm__ volatile("int $3");
    check(sig_seen == SIGTRAP, "int $3");
    sig_seen = 0;
    __asm__ volatile("movb $0x7f, %%al; addb $1, %%al; into" : : : "eax", "cc");
    check(sig_seen == SIGSEGV && sig_trapno == 4, "into, taken");
    sig_seen = 0;
    __asm__ volatile("xorl %%eax, %%eax; into" : : : "eax", "cc");
    check(!sig_seen, "into, not taken");
    int bounds[2] = { -5, 10 };
    sig_seen = 0;
    __asm__ volatile("bound %0, %1" : : "r"(10), "m"(bounds));
    __asm__ volatile("bound %0, %1" : : "r"(-5), "m"(bounds));
    check(!sig_seen, "bound, inside");
    FAULTS("bound, outside", SIGSEGV, 2, "bound %%ecx, (%%edx)" : "=&r"(at_) : "c"(11), "d"(bounds), "m"(bounds));
    same(sig_trapno, 5, "#BR");
    FAULTS("int of a kernel gate", SIGSEGV, 2, "int $0x20" : "=&r"(at_));
    same(sig_err, 0x20 * 8 + 2, "its error code");
    FAULTS("iret to the kernel", SIGSEGV, 1, "iret" : "=&r"(at_));

    /* Single step: TF set by popf gives a trap after each instruction until cleared. */
    sig_seen = 0;
    sig_skip = 0;
    __asm__ volatile("pushfl; orl $0x100, (%%esp); popfl; nop; pushfl; andl $~0x100, (%%esp); popfl" : : : "memory", "cc");
    check(sig_seen == SIGTRAP && sig_trapno == 1, "single step");
}

static volatile int plain_seen;
static void plain(int sig) { plain_seen += sig; }

static volatile int alt_ok;
static char *alt_stack;
static void on_alt(int sig)
{
    (void)sig;
    char here;
    alt_ok = &here >= alt_stack && &here < alt_stack + 65536;
}
static sigjmp_buf jump;
static void jump_out(int sig) { siglongjmp(jump, sig); }

struct computed {
    u32 sum, carry;
    double d, e;
    long double x;
};
static void __attribute__((noinline)) compute(struct computed *c)
{
    u32 sum = 0;
    double d = 0, e = 1;
    long double x = 1;
    for (u32 k = 0; k < 60000; k++) {
        sum = sum * 1664525 + k;
        d += k * 0.3;
        x += k / (x + 7.3L);
        e *= 1.0000001;
    }
    c->sum = sum;
    c->d = d;
    c->e = e;
    c->x = x;
    __asm__ volatile("stc; movl $3000, %%ecx; 1: leal -1(%%ecx), %%ecx; jecxz 2f; jmp 1b; 2: sbbl %0, %0"
                     : "=r"(c->carry) : : "ecx", "cc");
}

static void test_signals(void)
{
    /* sigreturn (not rt): a handler installed without SA_SIGINFO. */
    struct sigaction a = { .sa_handler = plain };
    sigaction(SIGUSR1, &a, NULL);
    for (int i = 0; i < 1000; i++)
        raise(SIGUSR1);
    same(plain_seen, 1000 * SIGUSR1, "plain handler");

    alt_stack = malloc(65536);
    stack_t ss = { .ss_sp = alt_stack, .ss_size = 65536 };
    sigaltstack(&ss, NULL);
    a = (struct sigaction){ .sa_handler = on_alt, .sa_flags = SA_ONSTACK };
    sigaction(SIGUSR2, &a, NULL);
    raise(SIGUSR2);
    check(alt_ok, "sigaltstack");

    /* An asynchronous signal in a computation: registers, flags, x87 and SSE must survive. */
    a = (struct sigaction){ .sa_handler = plain };
    plain_seen = 0;
    sigaction(SIGALRM, &a, NULL);
    struct itimerval t = { { 0, 1000 }, { 0, 1000 } };
    u32 bad = 0;
    struct computed first = { 0 };
    for (int i = 0; i < 50; i++) {
        struct computed c;
        memset(&c, 0, sizeof(c));
        compute(&c);
        if (i == 0) {
            first = c;
            setitimer(ITIMER_REAL, &t, NULL);
        }
        bad += memcmp(&c, &first, sizeof(c)) != 0;
    }
    t = (struct itimerval){ { 0, 0 }, { 0, 0 } };
    setitimer(ITIMER_REAL, &t, NULL);
    same(bad, 0, "state across asynchronous signals");
    check(plain_seen > 0, "timer signals");

    a = (struct sigaction){ .sa_handler = jump_out, .sa_flags = SA_NODEFER };
    struct sigaction old;
    sigaction(SIGSEGV, &a, &old);
    volatile int jumps = 0;
    while (jumps < 100)
        if (sigsetjmp(jump, 1) == 0)
            *(volatile int *)(jumps * 4) = 1;
        else
            jumps++;
    sigaction(SIGSEGV, &old, NULL);
    same(jumps, 100, "siglongjmp out of SIGSEGV");
}

/* -- Kernel entry ------------------------------------------------------------------------------------ */

static u32 int80(u32 nr, u32 a, u32 b, u32 c, u32 d, u32 e, u32 f)
{
    u32 ret, p[] = { f };
    __asm__ volatile("pushl %%ebp; movl (%[p]), %%ebp; int $0x80; popl %%ebp"
                     : "=a"(ret) : "0"(nr), "b"(a), "c"(b), "d"(c), "S"(d), [p] "D"(p), "m"(p) : "memory");
    (void)e;
    return ret;
}
static u32 gate(u32 nr, u32 a, u32 b, u32 c)
{
    u32 ret; /* __kernel_vsyscall: sysenter, syscall or int 0x80, whichever the processor has */
    __asm__ volatile("call *%%gs:0x10" : "=a"(ret) : "0"(nr), "b"(a), "c"(b), "d"(c) : "memory");
    return ret;
}

static void test_calls(void)
{
    u32 pid = getpid();
    same(int80(SYS_getpid, 0, 0, 0, 0, 0, 0), pid, "int 0x80");
    same(gate(SYS_getpid, 0, 0, 0), pid, "vdso call");
    u32 bad = 0;
    for (int i = 0; i < 20000; i++) {
        u32 b = 0x11111111, c = 0x22222222, d = 0x33333333, S = 0x44444444, D = 0x55555555, a = SYS_getpid;
        __asm__ volatile("call *%%gs:0x10" : "+a"(a), "+b"(b), "+c"(c), "+d"(d), "+S"(S), "+D"(D) : : "memory");
        bad += a != pid || b != 0x11111111 || c != 0x22222222 || d != 0x33333333 || S != 0x44444444 || D != 0x55555555;
        a = SYS_getpid;
        __asm__ volatile("int $0x80" : "+a"(a), "+b"(b), "+c"(c), "+d"(d), "+S"(S), "+D"(D) : : "memory");
        bad += a != pid || b != 0x11111111 || c != 0x22222222 || d != 0x33333333 || S != 0x44444444 || D != 0x55555555;
    }
    same(bad, 0, "registers across calls");
    same(int80(9999, 0, 0, 0, 0, 0, 0), (u32)-ENOSYS, "no such call");

    /* Six arguments, the last in ebp: mmap2 of a file at an offset. */
    int fd = memfd_create("m", 0);
    u32 data[2048];
    for (int i = 0; i < 2048; i++)
        data[i] = i;
    if (write(fd, data, sizeof(data)) != sizeof(data))
        check(0, "write");
    u32 map, sixth = 1, args[] = { 0, 4096, PROT_READ, MAP_PRIVATE, fd, sixth };
    __asm__ volatile("pushl %%ebp; pushl %%ebx; movl %[p], %%eax; movl (%%eax), %%ebx; movl 4(%%eax), %%ecx;"
                     "movl 8(%%eax), %%edx; movl 12(%%eax), %%esi; movl 16(%%eax), %%edi; movl 20(%%eax), %%ebp;"
                     "movl $192, %%eax; int $0x80; popl %%ebx; popl %%ebp"
                     : "=&a"(map) : [p] "r"(args), "m"(args) : "ecx", "edx", "esi", "edi", "memory");
    same(*(u32 *)(map + 40), 1024 + 10, "mmap2");
    void *second = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 4096);
    same(((u32 *)second)[10], 1034, "mmap");

    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    int back = 0;
    for (int i = 0; i < 10000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &b);
        back += b.tv_sec < a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec < a.tv_nsec);
        a = b;
    }
    same(back, 0, "vdso clock is monotonic");

    int status = -1;
    pid_t child = fork();
    if (child == 0)
        _exit(int80(SYS_getppid, 0, 0, 0, 0, 0, 0) == pid ? 17 : 18);
    waitpid(child, &status, 0);
    same(WEXITSTATUS(status), 17, "fork");
    child = fork();
    if (child == 0) /* a 64-bit program */
        execl("/bin/sh", "sh", "-c", "exit $((6 * 7))", (char *)0), _exit(1);
    waitpid(child, &status, 0);
    same(WEXITSTATUS(status), 42, "exec of a 64-bit program");

    FILE *f = fopen("/proc/self/maps", "r");
    char line[200];
    int vdso = 0;
    while (f && fgets(line, sizeof(line), f))
        vdso |= strstr(line, "[vdso]") != NULL;
    check(vdso, "vdso is mapped");
}

/* -- Segments ----------------------------------------------------------------------------------------- */

static __thread u32 tls = 0x1234;
static u32 per_thread[4];
static void *thread(void *arg)
{
    for (int i = 0; i < 1000; i++) {
        tls += (u32)arg;
        if (i % 100 == 0)
            sched_yield();
    }
    per_thread[(u32)arg] = tls;
    return NULL;
}

static u32 segment_data[1024];

static void test_segments(void)
{
    pthread_t t[4];
    for (u32 i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, thread, (void *)i);
    for (u32 i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    for (u32 i = 0; i < 4; i++)
        same(per_thread[i], 0x1234 + 1000 * i, "thread-local storage");

    /* A TLS slot of our own, through %fs; %gs stays the C library's. */
    for (u32 i = 0; i < 1024; i++)
        segment_data[i] = i * 3;
    struct user_desc d = { .entry_number = -1, .base_addr = (u32)segment_data, .limit = 4095, .seg_32bit = 1, .useable = 1 };
    same(syscall(SYS_set_thread_area, &d), 0, "set_thread_area");
    u32 selector = d.entry_number * 8 + 3, value, flag;
    __asm__ volatile("movw %w1, %%fs; movl %%fs:400, %0" : "=r"(value) : "r"(selector));
    same(value, 300, "fs load");
    __asm__ volatile("movl $77, %%fs:(%0)" : : "r"(8) : "memory");
    same(segment_data[2], 77, "fs store");
    __asm__ volatile("pushl %%fs; popl %0" : "=r"(value));
    same(value & 0xffff, selector, "push fs");
    FAULTS("past the limit", SIGSEGV, 3, "movl %%fs:(%%ecx), %%eax" : "=&r"(at_) : "c"(4093) : "eax");
    sig_skip = 3;
    __asm__ volatile("movl %%fs:(%1), %0" : "=r"(value) : "r"(4092));
    same(value, 1023 * 3, "at the limit");
    sched_yield();
    usleep(1000);
    __asm__ volatile("movl %%fs:40, %0" : "=r"(value));
    same(value, 30, "fs across a context switch");
    __asm__ volatile("lsll %2, %0; setz %b1" : "=r"(value), "=q"(flag) : "r"(selector));
    same(value, 4095, "lsl");
    __asm__ volatile("larl %2, %0; setz %b1" : "=r"(value), "=q"(flag) : "r"(selector));
    same(value & 0xff00, 0xf300, "lar");
    __asm__ volatile("verr %w1; setz %b0" : "=q"(flag) : "r"(selector));
    same(flag & 1, 1, "verr");
    __asm__ volatile("verw %w1; setz %b0" : "=q"(flag) : "r"(0x23));
    same(flag & 1, 0, "verw of code");
    FAULTS("bad selector", SIGSEGV, 2, "movw %%cx, %%fs" : "=&r"(at_) : "c"(0x7f3));
    same(sig_err, 0x7f0, "its error code");
    __asm__ volatile("movw %w0, %%fs" : : "r"(0));
    FAULTS("null segment", SIGSEGV, 3, "movl %%fs:(%%ecx), %%eax" : "=&r"(at_) : "c"(0) : "eax");

    /* les, lds-like far pointer loads, with the flat data segment. */
    struct __attribute__((packed)) { u32 off; u16 sel; } far = { 0xabcdef01, 0x2b };
    __asm__ volatile("pushl %%es; lesl %1, %0; popl %%es" : "=r"(value) : "m"(far));
    same(value, 0xabcdef01, "les");
    __asm__ volatile("lfsl %1, %0; xorl %%eax, %%eax; movw %%ax, %%fs" : "=r"(value) : "m"(far) : "eax");
    same(value, 0xabcdef01, "lfs");

    /* The LDT: expand-down and based data segments, through %es and %ss-free code. */
    struct user_desc l = { .entry_number = 1, .base_addr = (u32)segment_data, .limit = 0xff, .seg_32bit = 1,
                           .contents = 1 /* expand down */, .useable = 1 };
    if (syscall(SYS_modify_ldt, 0x11, &l, sizeof(l)) == 0) {
        __asm__ volatile("pushl %%es; movw %w1, %%es; movl %%es:0x100, %0; popl %%es" : "=&r"(value) : "r"(8 + 7));
        same(value, 64 * 3, "expand down, inside");
        __asm__ volatile("movw %w0, %%fs" : : "r"(8 + 7));
        FAULTS("expand down, outside", SIGSEGV, 3, "movl %%fs:(%%ecx), %%eax" : "=&r"(at_) : "c"(0xfd) : "eax");
        __asm__ volatile("movw %w0, %%fs" : : "r"(0));
    }

    /* Far calls within 32-bit code, and through 64-bit code and back. */
    __asm__ volatile("call 1f; jmp 2f; 1: pushl $1f; movl (%%esp), %%eax; addl $4, %%esp; ljmp $0x23, $3f; 3: movl $5, %0; ret; 1: 2:"
                     : "=r"(value) : : "eax");
    same(value, 5, "far jump");
    __asm__ volatile("lcall $0x23, $1f; jmp 2f; 1: movl $6, %0; lret; 2:" : "=r"(value));
    same(value, 6, "far call");
    u64 wide = 0;
    __asm__ volatile("lcall $0x33, $1f; jmp 2f\n"
                     ".code64\n"
                     "1: movabs $0x123456789abcdef0, %%rax; imulq $3, %%rax, %%rax; movq %%rax, (%%rcx); xorl %%r8d, %%r8d\n"
                     "lretl\n"
                     ".code32\n"
                     "2:" : : "c"(&wide) : "eax", "memory");
    same(wide, 0x123456789abcdef0ull * 3, "64-bit code in a 32-bit program");
}

/* -- Instructions that 64-bit mode lacks, and 32-bit addressing --------------------------------------- */

static u32 low_word(u32 eax) { return eax & 0xffff; }

static void test_legacy(void)
{
    u32 r, f;
#define BCD(insn, in, out, cf_in, want_cf)                                                              \
    __asm__ volatile(cf_in "; " insn "; setc %b1" : "=a"(r), "=&c"(f) : "0"(in), "1"(0) : "cc");        \
    same(low_word(r), out, insn);                                                                       \
    same(f & 1, want_cf, insn " carry")
    BCD("addb $0x27, %%al; daa", 0x35, 0x62, "clc", 0);
    BCD("addb $0x99, %%al; daa", 0x99, 0x98, "clc", 1);
    BCD("subb $0x47, %%al; das", 0x35, 0x88, "clc", 1);
    BCD("addb $8, %%al; aaa", 0x0009, 0x0107, "clc", 1);
    BCD("subb $9, %%al; aas", 0x0203, 0x0104, "clc", 1);
    BCD("aam", 79, 0x0709, "clc", 0);
    BCD("aad", 0x0709, 79, "clc", 0);
    BCD(".byte 0xd4, 7", 79, (11 << 8 | 2), "clc", 0);
    BCD(".byte 0xd6", 0x1200, 0x12ff, "stc", 1); /* salc */
    BCD(".byte 0x82, 0xc0, 0x05", 0x10, 0x15, "clc", 0); /* the alias of 0x80 */

    /* pusha, popa, push and pop of segments */
    __asm__ volatile("pushal; movl $0, %%eax; movl 28(%%esp), %0; popal" : "=c"(r) : "a"(0x5a5a1234));
    (void)r;
    u32 eax = 1, ecx = 2, edx = 3, esi = 4, edi = 5;
    __asm__ volatile("pushal; movl $9, %%eax; movl $9, %%ecx; movl $9, %%edx; movl $9, %%esi; movl $9, %%edi; popal"
                     : "+a"(eax), "+c"(ecx), "+d"(edx), "+S"(esi), "+D"(edi));
    same(eax | ecx << 4 | edx << 8 | esi << 12 | edi << 16, 0x54321, "pusha and popa");
    __asm__ volatile("pushaw; popaw" : "+a"(eax), "+c"(ecx), "+d"(edx), "+S"(esi), "+D"(edi));
    same(eax | ecx << 4 | edx << 8 | esi << 12 | edi << 16, 0x54321, "pushaw and popaw");
    __asm__ volatile("pushl %%ds; pushl %%es; popl %%ds; popl %%es; pushl %%cs; popl %0" : "=r"(r));
    same(r & 0xffff, 0x23, "push cs");
    __asm__ volatile("pushw %%ss; popw %%ss; pushl %%ss; popl %0" : "=r"(r));
    same(r & 0xffff, 0x2b, "pop ss");

    /* arpl */
    u32 dst = 0x10, src = 3;
    __asm__ volatile("arpl %w2, %w0; setz %b1" : "+r"(dst), "=q"(f) : "r"(src));
    same(dst << 1 | (f & 1), 0x13 << 1 | 1, "arpl");

    /* 16-bit addressing wraps at 64 KiB; the low pages are not mapped: only lea. */
    __asm__ volatile("movl $0xfffff, %%ebx; movl $0x20005, %%esi; .byte 0x67; leal 0x10(%%bx,%%si), %0" : "=r"(r) : : "ebx", "esi");
    same(r, 0x14, "16-bit lea");
    __asm__ volatile("movl $0x10000, %%ecx; movl $1, %0; .byte 0x67; jecxz 1f; movl $2, %0; 1:" : "=&r"(r) : : "ecx");
    same(r, 1, "jcxz");
    __asm__ volatile("movl $0x10003, %%ecx; xorl %0, %0; 1: incl %0; .byte 0x67; loop 1b; movl %%ecx, %1" : "=&r"(r), "=&r"(f) : : "ecx");
    same(r, 3, "loop with cx");
    same(f, 0x10000, "ecx above cx");

    /* Addresses wrap at 4 GiB. */
    static u32 word = 0x600df00d;
    __asm__ volatile("movl (%1,%2), %0" : "=r"(r) : "r"((u32)&word + 0x70000000), "r"(0x90000000), "m"(word));
    same(r, word, "base + index wraps");
    __asm__ volatile("movl -0x7fffffff(%1,%2,8), %0" : "=r"(r) : "r"((u32)&word - 1), "r"(0x10000000), "m"(word));
    same(r, word, "scaled index wraps");
    __asm__ volatile("movl %%gs:0, %0" : "=r"(r));
    __asm__ volatile("movl %%gs:(%1), %0" : "=r"(f) : "r"(0xfffff000 + 0x1000));
    same(f, r, "gs and a wrapped offset");
    u32 self;
    __asm__ volatile("movl %%gs:0, %0" : "=r"(self));
    __asm__ volatile("movl %%gs:(%1), %0" : "=r"(f) : "r"((u32)&word - self), "m"(word));
    same(f, word, "gs base + offset wraps");
    r = (u32)&word;
    __asm__ volatile("leal 0x7fffffff(%0,%0,4), %0" : "+r"(r));
    same(r, (u32)&word * 5 + 0x7fffffff, "lea wraps");

    /* inc and dec by the one-byte forms keep the carry. */
    __asm__ volatile("stc; movl $0xffffffff, %%eax; .byte 0x40; sbbl %%ecx, %%ecx; movl %%eax, %0; movl %%ecx, %1"
                     : "=r"(r), "=r"(f) : : "eax", "ecx");
    same(r | ~f, 0, "inc keeps carry");
    __asm__ volatile("movl $0x12345678, %%edx; .byte 0x66, 0x4a; movl %%edx, %0" : "=r"(r) : : "edx");
    same(r, 0x12345677, "decw");

    /* String instructions, both ways, with a prefix; xlat; enter and leave. */
    char a[64] = "the quick brown fox", b[64];
    memset(b, 0, sizeof(b));
    u32 n = sizeof(a), di = (u32)b, si = (u32)a;
    __asm__ volatile("cld; rep movsb" : "+c"(n), "+D"(di), "+S"(si) : : "memory");
    check(!memcmp(a, b, 64) && n == 0 && di == (u32)b + 64, "rep movsb");
    n = 16, di = (u32)(b + 60), si = (u32)(a + 60);
    __asm__ volatile("std; rep movsl; cld" : "+c"(n), "+D"(di), "+S"(si) : : "memory");
    check(!memcmp(a, b, 64) && di == (u32)b - 4, "backward rep movsl");
    n = 64, di = (u32)a;
    __asm__ volatile("repne scasb" : "+c"(n), "+D"(di) : "a"('q') : "cc");
    same(di - (u32)a, 5, "repne scasb");
    static const u8 table[256] = { [7] = 99 };
    __asm__ volatile("xlatb" : "=a"(r) : "0"(7), "b"(table), "m"(table));
    same(r & 255, 99, "xlat");
    __asm__ volatile("enter $16, $0; movl $3, -4(%%ebp); movl -4(%%ebp), %0; leave" : "=c"(r) : : "memory");
    same(r, 3, "enter");
    __asm__ volatile("enter $8, $2; leave" : : : "memory");

    /* 64-bit arithmetic in halves. */
    u64 x = 0x9e3779b97f4a7c15ull, acc = 1;
    for (int i = 1; i < 1000; i++) {
        acc = acc * x + i;
        acc ^= acc >> 29;
        acc += acc / (u64)(i * 77777777777ull) + acc % (u64)(i + 12345);
        acc = acc << (i & 63) | acc >> (-i & 63);
    }
    same(acc, 0x49d704d4cac80b8aull, "64-bit arithmetic");
    __asm__ volatile("cmpxchg8b %0; setz %b1" : "+m"(x), "=q"(f) : "a"(0x7f4a7c15), "d"(0x9e3779b9), "b"(1), "c"(2) : "cc");
    same(x, 0x200000001ull, "cmpxchg8b");

    /* 16-bit operands of call, ret, push, iret-like forms. */
    __asm__ volatile("movl %%esp, %%ecx; pushw $0x1234; popw %%ax; subl %%esp, %%ecx; movl %%ecx, %0" : "=r"(r) : : "eax", "ecx");
    same(r, 0, "pushw");
    __asm__ volatile("pushfl; pushl %%cs; pushl $1f; iret; 1: movl $8, %0" : "=r"(r));
    same(r, 8, "iret to itself");
}

/* -- x87 and SSE ---------------------------------------------------------------------------------------- */

static u64 bits(double d)
{
    u64 u;
    memcpy(&u, &d, 8);
    return u;
}

static void test_float(void)
{
    long double s = 0;
    for (int i = 1; i < 5000; i++)
        s += sqrtl(i) / (i + 0.1L) - s * s / 3e6L;
    u64 man;
    memcpy(&man, &s, 8);
    same(man >> 12, 0xfaea9569021fdull, "x87 sum");

    /* Precision and rounding control. */
    u16 cw_old, cw, sw;
    __asm__ volatile("fnstcw %0" : "=m"(cw_old));
    static const u64 third[4] = { 0x3fd5555555555555, 0x3fd5555555555555, 0x3fd5555555555556, 0x3fd5555555555555 };
    for (int rc = 0; rc < 4; rc++) {
        double r;
        cw = (cw_old & ~0xf00) | 0x200 | rc << 10;
        __asm__ volatile("fldcw %1; fld1; fldl %2; fdivrp; fstpl %0; fldcw %3" : "=m"(r) : "m"(cw), "m"((double){ 3 }), "m"(cw_old));
        same(bits(1.0 * r), third[rc], "rounding of 1/3");
    }
    /* An unmasked exception comes at the next waiting instruction. */
    cw = cw_old & ~4;
    sig_seen = 0;
    sig_skip = 1;
    __asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp %%st, %%st(1); fwait; fninit" : : "m"(cw));
    check(sig_seen == SIGFPE && sig_trapno == 16, "unmasked x87 exception");
    __asm__ volatile("fninit; fldcw %0" : : "m"(cw_old));

    /* Stack overflow sets SF and C1; fsave and frstor keep everything. */
    __asm__ volatile("fninit; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fnstsw %0; fninit" : "=a"(sw));
    same(sw & 0x241, 0x241, "x87 stack overflow");
    u8 area[108], area2[108];
    __asm__ volatile("fninit; fldpi; fldl2e; fnsave %0; frstor %0; fnsave %1; fninit" : "=m"(area), "=m"(area2));
    check(!memcmp(area, area2, 108), "fnsave and frstor");
    __asm__ volatile("fldcw %0" : : "m"(cw_old));
    u8 bcd[10];
    __asm__ volatile("fldl %1; fbstp %0" : "=m"(bcd) : "m"((double){ -1234567890123. }));
    check(!memcmp(bcd, "\x23\x01\x89\x67\x45\x23\x01\x00\x00\x80", 10), "fbstp");
    double rem;
    __asm__ volatile("fldl %2; fldl %1; 1: fprem; fnstsw %%ax; testb $4, %%ah; jnz 1b; fstpl %0; fstp %%st(0)"
                     : "=m"(rem) : "m"((double){ 1e300 }), "m"((double){ 7.25 }) : "eax", "cc");
    check(rem == fmod(1e300, 7.25), "fprem");
    u32 less, equal;
    __asm__ volatile("fld1; fldz; fcomip %%st(1), %%st; setb %b0; fld %%st(0); fucomip %%st(1), %%st; sete %b1; fstp %%st(0)"
                     : "=q"(less), "=q"(equal));
    same((less & 1) << 1 | (equal & 1), 3, "fcomi");

    /* SSE2: conversion, compare, shuffle, and MXCSR exceptions. */
    double d[2] = { 1.5, -2.25 }, out[2];
    __asm__ volatile("movupd %1, %%xmm0; shufpd $1, %%xmm0, %%xmm0; addpd %%xmm0, %%xmm0; movupd %%xmm0, %0" : "=m"(out) : "m"(d) : "xmm0");
    check(out[0] == -4.5 && out[1] == 3, "addpd");
    u32 mxcsr_old, mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr_old));
    mxcsr = mxcsr_old & ~0xbfu;
    __asm__ volatile("ldmxcsr %0; xorps %%xmm0, %%xmm0; movaps %%xmm0, %%xmm1" : : "m"(mxcsr) : "xmm0", "xmm1");
    FAULTS("unmasked SSE exception", SIGFPE, 4, "divpd %%xmm0, %%xmm1" : "=&r"(at_) : : "xmm1");
    same(sig_trapno, 19, "#XM");
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr_old));
    FAULTS("unaligned movaps", SIGSEGV, 3, "movaps (%%ecx), %%xmm0" : "=&r"(at_) : "c"((u32)d | 4) : "xmm0");

    /* MMX and x87 share registers. */
    u64 mm = 0x0102030405060708ull, sum;
    __asm__ volatile("movq %1, %%mm0; paddb %%mm0, %%mm0; movq %%mm0, %0; emms" : "=m"(sum) : "m"(mm));
    same(sum, 0x020406080a0c0e10ull, "paddb");

    unsigned a, b, c, e;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &e) && (b & bit_AVX2) && __builtin_cpu_supports("avx2")) {
        u32 v[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, w[8], index[8] = { 7, 6, 5, 4, 3, 2, 1, 0 };
        __asm__ volatile("vmovdqu %1, %%ymm1; vmovdqu %2, %%ymm2; vpermd %%ymm1, %%ymm2, %%ymm0; vpaddd %%ymm0, %%ymm0, %%ymm0;"
                         "vmovdqu %%ymm0, %0; vpcmpeqd %%ymm3, %%ymm3, %%ymm3; vpgatherdd %%ymm3, (%3,%%ymm2,4), %%ymm1;"
                         "vpaddd %0, %%ymm1, %%ymm1; vmovdqu %%ymm1, %0; vzeroupper"
                         : "=m"(w) : "m"(v), "m"(index), "r"(v) : "xmm0", "xmm1", "xmm2", "xmm3", "memory");
        same(w[0] | w[3] << 8 | w[7] << 16, 24 | 15 << 8 | 3 << 16, "AVX2");
        u32 bextr;
        __asm__ volatile("bextr %2, %1, %0" : "=r"(bextr) : "r"(0x12345678), "r"(0x0808));
        same(bextr, 0x56, "bextr");
    }
}

/* -- Code written at run time --------------------------------------------------------------------------- */

static void test_code(void)
{
    u8 *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u32 sum = 0;
    for (u32 i = 0; i < 3000; i++) {
        u8 *at = p + 4090 + i % 5; /* across the page's end */
        at[0] = 0xb8; /* mov eax, imm */
        memcpy(at + 1, &i, 4);
        at[5] = 0xc3;
        sum += ((u32 (*)(void))at)();
    }
    same(sum, 2999 * 3000 / 2, "re-emitted function");

    /* An instruction that changes the one after it. */
    u8 *q = p + 100;
    static const u8 code[] = { 0xc6, 0x05, 0, 0, 0, 0, 42, 0xb0, 7, 0x0f, 0xb6, 0xc0, 0xc3 }; /* movb 42, [imm]; mov al, 7 */
    memcpy(q, code, sizeof(code));
    u32 target = (u32)(q + 8);
    memcpy(q + 2, &target, 4);
    same(((u32 (*)(void))q)(), 42, "the next instruction changed");
    q[6] = 43;
    same(((u32 (*)(void))q)(), 43, "and again");

    /* One page mapped twice in a row, and an instruction across its end. */
    int fd = memfd_create("c", 0);
    if (ftruncate(fd, 4096))
        check(0, "ftruncate");
    u8 *twice = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
    for (int i = 0; i < 2; i++)
        mmap(twice + 4096 * i, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0);
    u32 bad = 0;
    for (u32 i = 0; i < 300; i++) {
        u8 c[6] = { 0xb8, i, i >> 8, 3, 4, 0xc3 };
        memcpy(twice + 4093, c, 6);
        bad |= ((u32 (*)(void))(twice + 4093))() ^ (0x04030000 | i);
        twice[1] ^= 8; /* the imm's third byte, by its other address */
        bad |= ((u32 (*)(void))(twice + 4093))() ^ (0x0c030000 | i);
    }
    same(bad, 0, "code in a page mapped twice");

    /* mprotect takes the right to run away and gives it back. */
    mprotect(p, 4096, PROT_READ | PROT_WRITE);
    sig_seen = 0;
    __asm__ volatile("movl $1f, %0; jmp *%1; 1:" : "=m"(sig_to) : "r"(q) : "memory");
    sig_to = NULL;
    check(sig_seen == SIGSEGV && sig_addr == (u32)q && sig_err == 0x15, "no execute");
    static const u8 six[] = { 0xb8, 6, 0, 0, 0, 0xc3 };
    mprotect(p, 4096, PROT_READ | PROT_WRITE);
    memcpy(p, six, sizeof(six));
    mprotect(p, 4096, PROT_READ | PROT_EXEC);
    same(((u32 (*)(void))p)(), 6, "execute again");
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    same(sizeof(void *), 4, "pointer size");
    catch_signals();
    test_faults();
    test_signals();
    test_calls();
    test_segments();
    test_legacy();
    test_float();
    test_code();
    printf("user32: %d passed, %d failed\n", passed, failed);
    return failed != 0;
}
