/*
 * kernel.c - crossings into the kernel: the price of a system call, a page
 * fault, a signal, a context switch, a process.
 *
 * Files live in /tmp, which is a tmpfs in the guest and should be natively.
 */
#define _GNU_SOURCE
#include "vb.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE        4096u
#define FAULT_PAGES 1024u

static const char tmp_path[] = "/tmp/vbench.tmp";

static u64 getppid_run(u64 n)
{
    long first = syscall(SYS_getppid);
    u64 same = 0;

    for (u64 i = 0; i < n; i++)
        same += syscall(SYS_getppid) == first;
    return same;
}

static u8 *map_pages(size_t pages)
{
    u8 *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        vb_die("mmap");
    return p;
}

/* One operation: the first touch of one page. */
static u64 page_fault_run(u64 n)
{
    u64 sum = 0;

    while (n) {
        u64 pages = n < FAULT_PAGES ? n : FAULT_PAGES;
        u8 *p = map_pages(FAULT_PAGES);

        madvise(p, FAULT_PAGES * PAGE, MADV_NOHUGEPAGE);
        for (u64 i = 0; i < pages; i++)
            sum += ++p[i * PAGE];
        munmap(p, FAULT_PAGES * PAGE);
        n -= pages;
    }
    return sum;
}

/* One operation: read-only, writable again, and a store that must work. */
static u64 mprotect_run(u64 n)
{
    u8 *p = map_pages(1);
    u64 sum = 0;

    for (u64 i = 0; i < n; i++) {
        if (mprotect(p, PAGE, PROT_READ) < 0)
            vb_die("mprotect");
        sum += p[0];
        if (mprotect(p, PAGE, PROT_READ | PROT_WRITE) < 0)
            vb_die("mprotect");
        p[0]++;
    }
    munmap(p, PAGE);
    return sum;
}

static volatile u64 nr_signals;

static void on_signal(int sig)
{
    (void)sig;
    nr_signals++;
}

static u64 signal_run(u64 n)
{
    struct sigaction sa = {.sa_handler = on_signal};
    pid_t pid = getpid(), tid = (pid_t)syscall(SYS_gettid);

    nr_signals = 0;
    sigaction(SIGUSR1, &sa, NULL);
    for (u64 i = 0; i < n; i++)
        syscall(SYS_tgkill, pid, tid, SIGUSR1);
    return nr_signals;
}

static u64 mmap_munmap_run(u64 n)
{
    u64 sum = 0;

    for (u64 i = 0; i < n; i++) {
        u8 *p = map_pages(4);

        sum += (uintptr_t)p % PAGE == 0;
        munmap(p, 4 * PAGE);
    }
    return sum;
}

/* One operation: a byte to another process and back. */
static u64 pipe_pingpong_run(u64 n)
{
    int there[2], back[2];
    u64 sum = 0;
    pid_t pid;
    u8 byte;

    if (pipe(there) < 0 || pipe(back) < 0)
        vb_die("pipe");
    pid = fork();
    if (pid < 0)
        vb_die("fork");
    if (pid == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte++;
            if (write(back[1], &byte, 1) != 1)
                break;
        }
        _exit(0);
    }
    close(there[0]);
    for (u64 i = 0; i < n; i++) {
        byte = (u8)i;
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            vb_die("pipe");
        sum += byte;
    }
    close(there[1]);
    close(back[0]);
    close(back[1]);
    waitpid(pid, NULL, 0);
    return sum;
}

static u32 turn; /* whose turn it is; written by both threads */

static void futex_wait_turn(u32 mine)
{
    u32 seen;

    while ((seen = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != mine)
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_pass_turn(u32 to)
{
    __atomic_store_n(&turn, to, __ATOMIC_RELEASE);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *futex_partner(void *arg)
{
    u64 n = *(u64 *)arg;

    for (u64 i = 0; i < n; i++) {
        futex_wait_turn(1);
        futex_pass_turn(0);
    }
    return NULL;
}

static u64 futex_pingpong_run(u64 n)
{
    pthread_t partner;
    u64 sum = 0;

    turn = 0;
    if (pthread_create(&partner, NULL, futex_partner, &n))
        vb_die("pthread_create");
    for (u64 i = 0; i < n; i++) {
        futex_pass_turn(1);
        futex_wait_turn(0);
        sum++;
    }
    pthread_join(partner, NULL);
    return sum;
}

static u64 fork_wait_run(u64 n)
{
    u64 sum = 0;

    for (u64 i = 0; i < n; i++) {
        int status;
        pid_t pid = fork();

        if (pid < 0)
            vb_die("fork");
        if (pid == 0)
            _exit((int)(i & 63));
        waitpid(pid, &status, 0);
        sum += (u64)WEXITSTATUS(status) + 1;
    }
    return sum;
}

/* One operation: this very program started again with --noop. */
static u64 fork_exec_run(u64 n)
{
    u64 sum = 0;

    for (u64 i = 0; i < n; i++) {
        int status;
        pid_t pid = fork();

        if (pid < 0)
            vb_die("fork");
        if (pid == 0) {
            execl("/proc/self/exe", "vbench", "--noop", (char *)NULL);
            _exit(127);
        }
        waitpid(pid, &status, 0);
        sum += status == 0;
    }
    return sum;
}

static int tmp_setup(void)
{
    static const u8 text[PAGE] = "vbench";
    int fd = open(tmp_path, O_CREAT | O_TRUNC | O_WRONLY, 0600);

    if (fd < 0 || write(fd, text, sizeof(text)) != sizeof(text))
        vb_die(tmp_path);
    close(fd);
    return 0;
}

static u64 open_read_close_run(u64 n)
{
    u64 sum = 0;
    u8 buf[512];

    for (u64 i = 0; i < n; i++) {
        int fd = open(tmp_path, O_RDONLY);

        if (fd < 0 || read(fd, buf, sizeof(buf)) != sizeof(buf))
            vb_die(tmp_path);
        sum += buf[0];
        close(fd);
    }
    return sum;
}

static u64 stat_run(u64 n)
{
    struct stat st;
    u64 sum = 0;

    for (u64 i = 0; i < n; i++) {
        if (stat(tmp_path, &st) < 0)
            vb_die(tmp_path);
        sum += (u64)st.st_size;
    }
    return sum;
}

const struct vb_bench vb_kernel[] = {
    {"getppid", "syscall", 2000000, getppid_run, NULL},
    {"page_fault", "kernel", 120000, page_fault_run, NULL},
    {"mprotect", "kernel", 100000, mprotect_run, NULL},
    {"signal", "kernel", 100000, signal_run, NULL},
    {"mmap_munmap", "kernel", 80000, mmap_munmap_run, NULL},
    {"pipe_pingpong", "kernel", 50000, pipe_pingpong_run, NULL},
    {"futex_pingpong", "kernel", 50000, futex_pingpong_run, NULL},
    {"fork_wait", "kernel", 2500, fork_wait_run, NULL},
    {"fork_exec", "kernel", 500, fork_exec_run, NULL},
    {"open_read_close", "kernel", 80000, open_read_close_run, tmp_setup},
    {"stat", "kernel", 250000, stat_run, tmp_setup},
    {0},
};
