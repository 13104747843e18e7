/*
 * test_sandbox.c - the system-call policy: in a process of its own for each case, start the floor, enter a thread's
 * kinds, make one call. Refused calls must end in the handler, quiet ones give their errno, the rest works.
 */
#include "base/sandbox.h"
#include "tests/lib/check.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROC SANDBOX_PROCESS
#define VCPU SANDBOX_VCPU
#define IO SANDBOX_IO
#define CON SANDBOX_CONSOLE
#define DISK SANDBOX_DISK
#define TAP SANDBOX_TAP
#define NET SANDBOX_USERNET
#define GDB SANDBOX_GDB
#define UNIX SANDBOX_UNIX
#define SHARE SANDBOX_SHARE
#define NARROW (VCPU | IO | CON | DISK | TAP | NET | GDB | UNIX | SHARE)

/* -- One call each: 0 or an errno ----------------------------------------------------------------------------------- */

static int file = -1; /* open before the filter */
static pid_t parent;

static int result(long r) { return r < 0 ? errno : 0; }
static int call_execve(void)
{
    char *argv[] = { (char *)"true", NULL };
    return result(execve("/bin/true", argv, NULL));
}
static int call_fork(void)
{
    pid_t p = fork();
    if (!p)
        _exit(0);
    return result(p);
}
static int call_ptrace(void) { return result(ptrace(PTRACE_TRACEME, 0, 0, 0)); }
static int call_kill_parent(void) { return result(kill(parent, 0)); }
static int call_tgkill_parent(void) { return result(syscall(SYS_tgkill, parent, parent, 0)); }
static int call_raise(void) { return result(syscall(SYS_tgkill, getpid(), gettid(), 0)); }
static int call_mmap_code(void)
{
    return result((long)mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}
static int call_mmap_data(void)
{
    return result((long)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}
static int call_mprotect_code(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return result(mprotect(p, 4096, PROT_READ | PROT_EXEC));
}
static int call_open(void) { return result(open("/etc/hostname", O_RDONLY)); }
static int call_open_write(void) { return result(open("/dev/null", O_WRONLY)); }
static int call_socket(void) { return result(socket(AF_INET, SOCK_DGRAM, 0)); }
static int call_socketpair(void)
{
    int fd[2];
    return result(socketpair(AF_UNIX, SOCK_STREAM, 0, fd));
}
static int call_pwrite(void) { return result(pwrite(file, "x", 1, 0)); }
static int call_write(void) { return result(write(file, "x", 1)); }
static int call_type(void) { return result(ioctl(-1, TIOCSTI, "x")); }
static int call_tty(void) { return result(ioctl(-1, TIOCGWINSZ, NULL)); }
static int call_vm_readv(void)
{
    struct iovec iov = { &file, sizeof(file) };
    return result(process_vm_readv(parent, &iov, 1, &iov, 1, 0));
}
static int call_mount(void) { return result(mount("x", "/tmp", "tmpfs", 0, NULL)); }
static int call_unshare(void) { return result(syscall(SYS_unshare, 0)); }
static int call_setuid(void) { return result(syscall(SYS_setuid, getuid())); }
static int call_bpf(void) { return result(syscall(SYS_bpf, 0, NULL, 0)); }
static int call_userfaultfd(void) { return result(syscall(SYS_userfaultfd, 0)); }
static int call_perf(void)
{
    syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0);
    return 0;
}
static int call_ring(void)
{
    syscall(SYS_io_uring_setup, 0, NULL);
    return 0;
}
static int call_unlink(void) { return result(unlink("/nonexistent")) == ENOENT ? 0 : errno; }
static int call_unlinkat(void) { return result(unlinkat(AT_FDCWD, "/nonexistent", 0)) == ENOENT ? 0 : errno; }
static int call_unix(void) { return result(socket(AF_UNIX, SOCK_STREAM, 0)); }
static int call_x32(void) { return result(syscall(0x40000000 | SYS_getpid)); }
static int call_int80(void) /* the other table of system calls: 20 is getpid there */
{
    long r = 20;
    __asm__ volatile("int $0x80" : "+a"(r) : : "memory", "r8", "r9", "r10", "r11");
    return result(r);
}
static void *nothing(void *arg) { return arg; }
static int call_thread(void)
{
    pthread_t t;
    int r = pthread_create(&t, NULL, nothing, NULL);
    return r ? r : pthread_join(t, NULL);
}
/* What every thread does without thinking of it. */
static int call_usual(void)
{
    static const struct timespec moment = { 0, 1000 };
    struct timespec now;
    u64 one = 1;
    void *big = malloc(64 << 20);
    memset(big, 1, 64 << 20);
    free(big);
    int fd = eventfd(0, EFD_NONBLOCK);
    if (fd < 0 || write(fd, &one, 8) != 8 || read(fd, &one, 8) != 8 || close(fd))
        return errno;
    nanosleep(&moment, NULL);
    clock_gettime(CLOCK_MONOTONIC, &now);
    madvise(&now, 0, MADV_NORMAL);
    return sched_yield();
}

/* -- Running one --------------------------------------------------------------------------------------------------------- */

enum { REFUSED = 200, KILLED = 201, THREAD_MS = 10000 };

static void on_refused(int nr, const char *thread)
{
    (void)nr;
    _exit(thread && *thread ? REFUSED : 1);
}

struct one {
    unsigned kinds;
    int (*call)(void);
    int result;
};
static void *run_one(void *arg)
{
    struct one *o = arg;
    if (o->kinds != PROC)
        sandbox_enter(o->kinds);
    o->result = o->call();
    _exit(o->result); /* the thread that made it ends the process: nothing else can fail */
}

static int outcome(bool start, unsigned kinds, int (*call)(void))
{
    fflush(stdout);
    parent = getpid();
    pid_t child = fork();
    if (!child) {
        struct one o = { .kinds = kinds, .call = call };
        pthread_t t;
        file = open("/tmp", O_TMPFILE | O_RDWR, 0600);
        alarm(20);
        if (start && sandbox_start(on_refused))
            _exit(99);
        if (pthread_create(&t, NULL, run_one, &o))
            _exit(98);
        pthread_join(t, NULL);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS ? KILLED : WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static const struct {
    const char *name;
    int (*call)(void);
    unsigned ok;  /* kinds in which it works */
    int otherwise; /* in all others */
} calls[] = {
    { "usual", call_usual, PROC | NARROW, 0 },
    { "raise", call_raise, PROC | NARROW, 0 },
    { "mmap data", call_mmap_data, PROC | NARROW, 0 },
    { "execve", call_execve, 0, REFUSED },
    { "fork", call_fork, 0, REFUSED },
    { "ptrace", call_ptrace, 0, REFUSED },
    { "kill the parent", call_kill_parent, 0, REFUSED },
    { "tgkill the parent", call_tgkill_parent, 0, REFUSED },
    { "process_vm_readv", call_vm_readv, 0, REFUSED },
    { "mount", call_mount, 0, REFUSED },
    { "unshare", call_unshare, 0, REFUSED },
    { "setuid", call_setuid, 0, REFUSED },
    { "bpf", call_bpf, 0, REFUSED },
    { "userfaultfd", call_userfaultfd, 0, REFUSED },
    { "x32", call_x32, 0, REFUSED },
    { "int 0x80", call_int80, 0, KILLED },
    { "TIOCSTI", call_type, 0, ENOTTY },
    { "mmap code", call_mmap_code, PROC, REFUSED },
    { "mprotect to code", call_mprotect_code, PROC, REFUSED },
    { "io_uring_setup", call_ring, PROC, REFUSED },
    { "perf_event_open", call_perf, 0, REFUSED },
    { "unlink", call_unlink, PROC, REFUSED },
    { "socketpair", call_socketpair, PROC, REFUSED },
    { "open", call_open, PROC | NET | SHARE, EACCES },
    { "open to write", call_open_write, PROC | SHARE, EACCES },
    { "unlinkat", call_unlinkat, PROC | SHARE, REFUSED },
    { "a Unix socket", call_unix, PROC | NET | UNIX, REFUSED },
    { "socket", call_socket, PROC | NET, REFUSED },
    { "a thread", call_thread, PROC | VCPU, KILLED }, /* glibc blocks all signals around it, SIGSYS too */
    { "pwrite", call_pwrite, PROC | DISK | IO | SHARE, REFUSED },
    { "write", call_write, PROC | NARROW, 0 },
};

int main(void)
{
#ifdef __SANITIZE_ADDRESS__
    printf("sandbox: not in this build\n");
    CHECK(sandbox_start(on_refused) == 0);
    return check_done("sandbox");
#endif
    static const unsigned kinds[] = { PROC, VCPU, IO, CON, DISK, TAP, NET, GDB, UNIX, SHARE };
    const bool has_int80 = outcome(false, VCPU, call_int80) == 0; /* not every host lets programs make them */
    for (unsigned i = 0; i < ARRAY_SIZE(calls); i++)
        for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
            int want = calls[i].ok & kinds[k] ? 0 : calls[i].otherwise;
            if (calls[i].call == call_int80 && !has_int80)
                continue;
            int got = outcome(true, kinds[k], calls[i].call);
            CHECK_MSG(got == want, "%s, kind %#x: %d, not %d", calls[i].name, kinds[k], got, want);
        }
    /* Several kinds: what any of them may. */
    CHECK(outcome(true, VCPU | DISK, call_pwrite) == 0);
    CHECK(outcome(true, VCPU | NET, call_socket) == 0);
    CHECK(outcome(true, VCPU | DISK, call_socket) == REFUSED);
    /* Terminals' settings are known: the kernel answers, not the filter. */
    CHECK(outcome(true, VCPU, call_tty) == EBADF);
    /* Without the floor, nothing. */
    CHECK(outcome(false, VCPU, call_socket) == 0);
    CHECK(outcome(false, VCPU, call_execve) == 0);
    return check_done("sandbox");
}
