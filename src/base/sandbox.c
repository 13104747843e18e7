/*
 * sandbox.c - see sandbox.h. Sources: seccomp(2), Linux Documentation/userspace-api/seccomp_filter.rst.
 *
 * To allow a system call: add a row to `rules`, or a kind to its row, with the check its arguments can be held to. The
 * floor (SANDBOX_PROCESS) must allow it too. A call that libraries try and can do without is better refused with an
 * errno (`quiet`) than allowed. Anything else ends the process with a line that names the call and the thread.
 *
 * Not seen by a filter: what io_uring does on behalf of the thread, what is behind a pointer (paths, clone3's flags).
 */
#include "base/sandbox.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* -- The policy -------------------------------------------------------------------------------------------------- */

enum check {
    ANY,
    NO_EXEC,     /* argument 2 is a protection without PROT_EXEC */
    THREAD_ONLY, /* argument 0 is clone flags: a thread, not a process */
    OURSELVES,   /* argument 0 is our process */
    THIS_PROC,   /* argument 0 is 0 or our process */
    READ_ONLY,   /* argument 2 is open flags: nothing is created or written */
    NO_INJECT,   /* argument 1 is not an ioctl that types into the terminal */
    TTY_ONLY,    /* argument 1 is an ioctl of terminals' settings */
    TUN_OFFLOAD, /* argument 1 is TUNSETOFFLOAD */
    SET_NAME,    /* argument 0 is PR_SET_NAME */
    UNIX_ONLY,   /* argument 0 is AF_UNIX */
};

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
#define VNC SANDBOX_VNC
#define ALL (PROC | VCPU | IO | CON | DISK | TAP | NET | GDB | UNIX | SHARE | VNC)

static const struct rule {
    u16 nr, kinds;
    u8 check;
} rules[] = {
    /* Descriptors that are open; waiting; time. */
    { SYS_read, ALL, ANY },
    { SYS_write, ALL, ANY },
    { SYS_readv, ALL, ANY },
    { SYS_writev, ALL, ANY },
    { SYS_close, ALL, ANY },
    { SYS_fstat, ALL, ANY },
    { SYS_lseek, ALL, ANY },
    { SYS_poll, ALL, ANY },
    { SYS_ppoll, ALL, ANY },
    { SYS_futex, ALL, ANY },
    { SYS_sched_yield, ALL, ANY },
    { SYS_nanosleep, ALL, ANY },
    { SYS_clock_nanosleep, ALL, ANY },
    { SYS_clock_gettime, ALL, ANY },
    { SYS_gettimeofday, ALL, ANY },
    { SYS_timerfd_settime, ALL, ANY },
    { SYS_timerfd_gettime, ALL, ANY },
    /* Memory, never code. */
    { SYS_mmap, ALL & ~PROC, NO_EXEC },
    { SYS_mprotect, ALL & ~PROC, NO_EXEC },
    { SYS_munmap, ALL, ANY },
    { SYS_mremap, ALL, ANY },
    { SYS_madvise, ALL, ANY },
    { SYS_brk, ALL, ANY },
    { SYS_membarrier, ALL, ANY },
    /* Threads and signals. */
    { SYS_rt_sigprocmask, ALL, ANY },
    { SYS_rt_sigaction, ALL, ANY },
    { SYS_rt_sigreturn, ALL, ANY },
    { SYS_sigaltstack, ALL, ANY },
    { SYS_restart_syscall, ALL, ANY },
    { SYS_tgkill, ALL, OURSELVES },
    { SYS_getpid, ALL, ANY },
    { SYS_gettid, ALL, ANY },
    { SYS_set_robust_list, ALL, ANY },
    { SYS_rseq, ALL, ANY },
    { SYS_sched_getaffinity, ALL, ANY },
    { SYS_getrandom, ALL, ANY },
    { SYS_exit, ALL, ANY },
    { SYS_exit_group, ALL, ANY },
    { SYS_clone, PROC | VCPU, THREAD_ONLY },
    { SYS_seccomp, PROC | VCPU, ANY }, /* another filter can only take away */
    { SYS_capset, PROC | VCPU, ANY },  /* so can this, after no_new_privs */
    { SYS_prctl, ALL & ~PROC, SET_NAME },
    { SYS_ioctl, ALL & ~PROC, TTY_ONLY }, /* a thread that dies restores the terminal */
    /* Images. */
    { SYS_pread64, DISK | SHARE | IO | VCPU | PROC, ANY }, /* vCPUs: their own scheduling statistics */
    { SYS_pwrite64, DISK | SHARE | IO | PROC, ANY },
    { SYS_preadv, DISK | SHARE | IO | PROC, ANY },
    { SYS_pwritev, DISK | SHARE | IO | PROC, ANY },
    { SYS_preadv2, DISK | IO | PROC, ANY },
    { SYS_pwritev2, DISK | IO | PROC, ANY },
    { SYS_fsync, DISK | SHARE | IO | PROC, ANY },
    { SYS_fdatasync, DISK | SHARE | IO | PROC, ANY },
    { SYS_fallocate, DISK | SHARE | IO | PROC, ANY },
    { SYS_ftruncate, DISK | SHARE | IO | PROC, ANY },
    { SYS_io_uring_enter, DISK | IO | PROC, ANY },
    /* Frames. */
    { SYS_ioctl, TAP, TUN_OFFLOAD },
    /* Connections that are open (output goes to consoles attached by the control socket). */
    { SYS_sendto, NET | GDB | UNIX | VCPU | IO | VNC | PROC, ANY },
    { SYS_recvfrom, NET | GDB | UNIX | VCPU | VNC | PROC, ANY },
    { SYS_sendmsg, NET | GDB | UNIX | VCPU | IO | VNC | PROC, ANY },
    { SYS_recvmsg, NET | GDB | UNIX | VCPU | VNC | PROC, ANY },
    { SYS_shutdown, NET | GDB | UNIX | VCPU | VNC | PROC, ANY },
    { SYS_setsockopt, NET | GDB | UNIX | VNC | PROC, ANY },
    { SYS_getsockopt, NET | GDB | UNIX | VNC | PROC, ANY },
    { SYS_accept4, NET | GDB | UNIX | VNC | PROC, ANY },
    { SYS_accept, NET | GDB | UNIX | VNC | PROC, ANY },
    { SYS_fcntl, NET | GDB | UNIX | VNC | PROC, ANY },
    { SYS_socket, UNIX, UNIX_ONLY },
    { SYS_socket, NET | PROC, ANY },
    { SYS_connect, NET | UNIX | PROC, ANY },
    { SYS_bind, NET | PROC, ANY },
    { SYS_listen, NET | PROC, ANY },
    { SYS_getsockname, VNC | NET | PROC, ANY },
    { SYS_getpeername, VNC | NET | PROC, ANY },
    { SYS_ioctl, NET, NO_INJECT },
    { SYS_openat, NET, READ_ONLY }, /* resolv.conf */
    { SYS_newfstatat, ALL, ANY },
    { SYS_select, NET | PROC, ANY },
    { SYS_uname, NET | PROC, ANY },
    /* A shared directory (p9_fs.c): by descriptors of what is in it. */
    { SYS_openat, SHARE, ANY },
    { SYS_getdents64, SHARE | PROC, ANY },
    { SYS_fstatfs, SHARE | PROC, ANY },
    { SYS_readlinkat, SHARE | PROC, ANY },
    { SYS_unlinkat, SHARE | PROC, ANY },
    { SYS_renameat, SHARE | PROC, ANY },
    { SYS_linkat, SHARE | PROC, ANY },
    { SYS_symlinkat, SHARE | PROC, ANY },
    { SYS_mkdirat, SHARE | PROC, ANY },
    { SYS_mknodat, SHARE | PROC, ANY },
    { SYS_fchownat, SHARE | PROC, ANY },
    { SYS_utimensat, SHARE | PROC, ANY },
    { SYS_chmod, SHARE | PROC, ANY },
    { SYS_truncate, SHARE | PROC, ANY },
    { SYS_fcntl, SHARE, ANY },
    /* The floor: what putting a VM together, taking it apart and controlling it takes besides. */
    { SYS_mmap, PROC, ANY },
    { SYS_mprotect, PROC, ANY },
    { SYS_prctl, PROC, ANY },
    { SYS_ioctl, PROC, NO_INJECT },
    { SYS_openat, PROC, ANY },
    { SYS_open, PROC, ANY },
    { SYS_stat, PROC, ANY },
    { SYS_lstat, PROC, ANY },
    { SYS_statx, PROC, ANY },
    { SYS_statfs, PROC, ANY },
    { SYS_access, PROC, ANY },
    { SYS_faccessat, PROC, ANY },
    { SYS_faccessat2, PROC, ANY },
    { SYS_readlink, PROC, ANY },
    { SYS_getcwd, PROC, ANY },
    { SYS_unlink, PROC, ANY },
    { SYS_rename, PROC, ANY },
    { SYS_renameat2, PROC, ANY },
    { SYS_link, PROC, ANY },
    { SYS_mkdir, PROC, ANY },
    { SYS_fchmod, PROC, ANY },
    { SYS_fchmodat, PROC, ANY },
    { SYS_umask, PROC, ANY },
    { SYS_flock, PROC, ANY },
    { SYS_dup, PROC, ANY },
    { SYS_dup2, PROC, ANY },
    { SYS_dup3, PROC, ANY },
    { SYS_pipe2, PROC, ANY },
    { SYS_sendfile, PROC, ANY },
    { SYS_copy_file_range, PROC, ANY },
    { SYS_sync_file_range, PROC, ANY },
    { SYS_socketpair, PROC, ANY },
    { SYS_eventfd2, ALL, ANY },
    { SYS_timerfd_create, PROC, ANY },
    { SYS_epoll_create, PROC, ANY },
    { SYS_epoll_create1, PROC, ANY },
    { SYS_epoll_ctl, VNC | PROC, ANY },
    { SYS_epoll_wait, VNC | PROC, ANY },
    { SYS_epoll_pwait, VNC | PROC, ANY },
    { SYS_pselect6, PROC, ANY },
    { SYS_memfd_create, PROC, ANY },
    { SYS_mlock, PROC, ANY },
    { SYS_mincore, PROC, ANY },
    { SYS_msync, PROC, ANY },
    { SYS_io_uring_setup, PROC, ANY },
    { SYS_io_uring_register, PROC, ANY },
    { SYS_clock_getres, PROC, ANY },
    { SYS_sched_setaffinity, PROC, ANY },
    { SYS_sched_getparam, PROC, ANY },
    { SYS_sched_getscheduler, PROC, ANY },
    { SYS_prlimit64, PROC, THIS_PROC },
    { SYS_getrlimit, PROC, ANY },
    { SYS_getrusage, PROC, ANY },
    { SYS_sysinfo, PROC, ANY },
    { SYS_getuid, PROC, ANY },
    { SYS_geteuid, PROC, ANY },
    { SYS_getgid, PROC, ANY },
    { SYS_getegid, PROC, ANY },
    { SYS_getppid, PROC, ANY },
    { SYS_capget, PROC, ANY },
    { SYS_kill, PROC, OURSELVES },
    { SYS_rt_sigtimedwait, PROC, ANY },
    { SYS_rt_sigsuspend, PROC, ANY },
    { SYS_rt_sigpending, PROC, ANY },
    { SYS_pause, PROC, ANY },
};

/* Refused without ado: what libraries try, and do without. */
static const struct quiet {
    u16 nr, err;
} quiet[] = {
    { SYS_clone3, ENOSYS },    /* its flags cannot be looked at: glibc falls back on clone */
    { SYS_openat, EACCES },    /* of other threads' names, of files about the host */
    { SYS_ioctl, ENOTTY },     /* is this descriptor a terminal? */
    { SYS_prctl, EPERM },
    { SYS_fcntl, EPERM },
    { SYS_sched_setscheduler, EPERM },
    { SYS_set_mempolicy, EPERM },
    { SYS_futex_waitv, ENOSYS },
};

static const char *thread_name(unsigned kinds)
{
    return kinds & VCPU ? "vCPU" : kinds & NET ? "network" : kinds & TAP ? "tap" : kinds & DISK ? "disk" : kinds & CON ?
           "console" : kinds & GDB ? "gdb" : kinds & IO ? "I/O" : kinds & UNIX ? "socket" : kinds & SHARE ? "share" :
           "main or control";
}

/* -- The filter --------------------------------------------------------------------------------------------------- */

#define PROGRAM_MAX 2048

struct program {
    struct sock_filter insn[PROGRAM_MAX];
    unsigned short len;
};

static void put(struct program *p, u16 code, u8 jt, u8 jf, u32 k)
{
    bug_on(p->len == PROGRAM_MAX);
    p->insn[p->len++] = (struct sock_filter){ code, jt, jf, k };
}
static void load(struct program *p, u32 offset)
{
    put(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, offset);
}
/* Low and high halves of an argument (little endian). */
#define ARG(n) ((u32)offsetof(struct seccomp_data, args[n]))
#define ARG_HIGH(n) (ARG(n) + 4)
#define JEQ (BPF_JMP | BPF_JEQ | BPF_K)
#define JSET (BPF_JMP | BPF_JSET | BPF_K)
#define RET (BPF_RET | BPF_K)

/* Allow if the low half of argument n, masked, is k; else go on behind. */
static void allow_if(struct program *p, unsigned n, u32 mask, u32 k)
{
    load(p, ARG(n));
    if (mask != ~0u)
        put(p, BPF_ALU | BPF_AND | BPF_K, 0, 0, mask);
    put(p, JEQ, 0, 1, k);
    put(p, RET, 0, 0, SECCOMP_RET_ALLOW);
}

static void allow(struct program *p, enum check check)
{
    switch (check) {
    case ANY:
        put(p, RET, 0, 0, SECCOMP_RET_ALLOW);
        break;
    case NO_EXEC:
        allow_if(p, 2, PROT_EXEC, 0);
        break;
    case THREAD_ONLY:
        allow_if(p, 0, CLONE_VM | CLONE_THREAD | CLONE_SIGHAND, CLONE_VM | CLONE_THREAD | CLONE_SIGHAND);
        break;
    case OURSELVES:
        allow_if(p, 0, ~0u, (u32)getpid());
        break;
    case THIS_PROC:
        allow_if(p, 0, ~0u, 0);
        allow_if(p, 0, ~0u, (u32)getpid());
        break;
    case READ_ONLY:
        allow_if(p, 2, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY);
        break;
    case TTY_ONLY: { /* TCGETS, TCSETS, TCSETSW, TCSETSF, TIOCGWINSZ */
        static const u32 ok[] = { 0x5401, 0x5402, 0x5403, 0x5404, 0x5413 };
        for (unsigned i = 0; i < ARRAY_SIZE(ok); i++)
            allow_if(p, 1, ~0u, ok[i]);
        break;
    }
    case NO_INJECT: /* TIOCSTI, TIOCLINUX */
        load(p, ARG(1));
        put(p, JEQ, 2, 0, 0x5412);
        put(p, JEQ, 1, 0, 0x541c);
        put(p, RET, 0, 0, SECCOMP_RET_ALLOW);
        break;
    case TUN_OFFLOAD:
        allow_if(p, 1, ~0u, 0x400454d0);
        break;
    case UNIX_ONLY:
        allow_if(p, 0, ~0u, AF_UNIX);
        break;
    case SET_NAME:
        allow_if(p, 0, ~0u, PR_SET_NAME);
        break;
    }
}

static void build(struct program *p, unsigned kinds)
{
    p->len = 0;
    load(p, offsetof(struct seccomp_data, arch));
    put(p, JEQ, 1, 0, AUDIT_ARCH_X86_64);
    put(p, RET, 0, 0, SECCOMP_RET_KILL_PROCESS);
    load(p, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < ARRAY_SIZE(rules); i++) {
        if (!(rules[i].kinds & kinds))
            continue;
        unsigned at = p->len;
        put(p, JEQ, 0, 0, rules[i].nr);
        allow(p, rules[i].check);
        if (rules[i].check != ANY)
            load(p, offsetof(struct seccomp_data, nr));
        p->insn[at].jf = (u8)(p->len - at - 1);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(quiet); i++) {
        put(p, JEQ, 0, 1, quiet[i].nr);
        put(p, RET, 0, 0, SECCOMP_RET_ERRNO | quiet[i].err);
    }
    put(p, RET, 0, 0, SECCOMP_RET_TRAP);
}

/* -- Installing ---------------------------------------------------------------------------------------------------- */

/* Process-wide, as filters and signal actions are. */
static _Atomic(sandbox_refused_fn *) refused_fn;
static __thread unsigned my_kinds = SANDBOX_PROCESS;

static void on_sigsys(int sig, siginfo_t *info, void *context)
{
    sandbox_refused_fn *fn = atomic_load(&refused_fn);
    (void)sig, (void)context;
    fn(info->si_syscall, thread_name(my_kinds));
    _exit(1);
}

/* SPEC_ALLOW: a filter is no reason for the host to slow the thread down; what speculation may leak is not this wall's
 * business (docs/threat-model.md). */
static int install(unsigned kinds)
{
    struct program program;
    build(&program, kinds);
    struct sock_fprog prog = { .len = program.len, .filter = program.insn };
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &prog) ? -errno : 0;
}

#ifdef __SANITIZE_ADDRESS__
#define SANITIZED true /* the sanitizer's own system calls are not in the table */
#else
#define SANITIZED false
#endif

int sandbox_start(sandbox_refused_fn *refused)
{
    struct sigaction sa = { .sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO | SA_ONSTACK };
    sigemptyset(&sa.sa_mask);
    if (SANITIZED)
        return 0;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -errno;
    atomic_store(&refused_fn, refused);
    sigaction(SIGSYS, &sa, NULL);
    int r = install(SANDBOX_PROCESS);
    if (r)
        atomic_store(&refused_fn, NULL);
    return r;
}

void sandbox_enter(unsigned kinds)
{
    if (!atomic_load(&refused_fn))
        return;
    /* Capabilities are a thread's own; giving them up cannot fail. */
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct none[2] = { 0 };
    if (!(kinds & SHARE)) /* a directory shared by root has files of everyone */
        syscall(SYS_capset, &header, none);
    sigset_t sys;
    sigemptyset(&sys);
    sigaddset(&sys, SIGSYS);
    pthread_sigmask(SIG_UNBLOCK, &sys, NULL);
    my_kinds = kinds;
    if (install(kinds))
        bug("a thread without its filter", __FILE__, __LINE__);
}
