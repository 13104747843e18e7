/*
 * vbench.c - runs the benchmarks and prints one line for each:
 *
 *     name group checksum ns_per_op iterations
 *
 * A benchmark this CPU cannot run prints "name group - - 0". With --time it
 * runs another program instead, and prints
 *
 *     name real checksum seconds s
 *
 * where the checksum is over the program's standard output.
 */
#define _GNU_SOURCE
#include "vb.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const struct vb_bench *const tables[] = {
    vb_kernel, vb_integer, vb_control, vb_memory, vb_fp, vb_jit,
};
#define NR_TABLES (sizeof(tables) / sizeof(tables[0]))

void vb_die(const char *what)
{
    fprintf(stderr, "vbench: %s: %s\n", what, strerror(errno));
    exit(1);
}

void *vb_alloc(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (p == MAP_FAILED)
        vb_die("mmap");
    return p;
}

static u64 now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (u64)ts.tv_sec * 1000000000u + (u64)ts.tv_nsec;
}

/* A guest has one vCPU; natively, stay on one CPU too, for a fair baseline. */
static void pin_to_one_cpu(void)
{
    cpu_set_t set;
    int cpu = sched_getcpu();

    if (cpu < 0)
        return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
}

/* Is name or group one of the comma-separated words of list? */
static int is_selected(const char *list, const struct vb_bench *b)
{
    while (list && *list) {
        size_t len = strcspn(list, ",");

        if ((strlen(b->name) == len && !strncmp(list, b->name, len)) ||
            (strlen(b->group) == len && !strncmp(list, b->group, len)) ||
            (len == 5 && !strncmp(list, "micro", len)))
            return 1;
        list += len + (list[len] == ',');
    }
    return 0;
}

/* Serial consoles are slow: let the line leave before the next measurement. */
static void flush(void)
{
    fflush(stdout);
    tcdrain(1);
}

static void run_one(const struct vb_bench *b, double scale)
{
    u64 n = (u64)((double)b->count * scale), sum, start, took;

    if (b->setup && b->setup()) {
        printf("%s %s - - 0\n", b->name, b->group);
        flush();
        return;
    }
    if (n == 0)
        n = 1;
    b->run(n / 16 + 1); /* warm caches, page tables and translations */
    start = now_ns();
    sum = b->run(n);
    took = now_ns() - start;
    printf("%s %s %016llx %.2f %llu\n", b->name, b->group,
           (unsigned long long)sum, (double)took / (double)n,
           (unsigned long long)n);
    flush();
}

/* Run argv, hash what it prints (FNV-1a), report how long it took. */
static int time_program(const char *name, char **argv)
{
    u64 sum = 0xcbf29ce484222325u, start = now_ns();
    int fds[2], status;
    double seconds;
    u8 buf[4096];
    ssize_t got;
    pid_t pid;

    if (pipe(fds) < 0)
        vb_die("pipe");
    pid = fork();
    if (pid < 0)
        vb_die("fork");
    if (pid == 0) {
        dup2(fds[1], 1);
        close(fds[0]);
        close(fds[1]);
        execvp(argv[0], argv);
        vb_die(argv[0]);
    }
    close(fds[1]);
    while ((got = read(fds[0], buf, sizeof(buf))) > 0)
        for (ssize_t i = 0; i < got; i++)
            sum = (sum ^ buf[i]) * 0x100000001b3u;
    if (waitpid(pid, &status, 0) != pid)
        vb_die("waitpid");
    seconds = (double)(now_ns() - start) / 1e9;
    if (status)
        printf("%s real failed %.4f s\n", name, seconds);
    else
        printf("%s real %016llx %.4f s\n", name, (unsigned long long)sum,
               seconds);
    flush();
    return status != 0;
}

static const char usage[] =
    "usage: vbench [--scale F] [--only NAME|GROUP,...] [--no-pin]\n"
    "       vbench --time NAME COMMAND [ARG...]\n"
    "       vbench --list | --help\n"
    "\n"
    "  --scale F   do F times the usual work (default 1); checksums only\n"
    "              compare between runs of the same scale\n"
    "  --only L    run only these benchmarks or groups; 'micro' is all\n"
    "  --no-pin    do not stay on one CPU\n"
    "  --time      run COMMAND; print its wall time and a checksum of its\n"
    "              standard output\n";

int main(int argc, char **argv)
{
    const char *only = "micro";
    int i, pin = 1, list = 0;
    double scale = 1;

    for (i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--noop")) {
            return 0; /* what fork_exec executes */
        } else if (!strcmp(argv[i], "--scale") && i + 1 < argc) {
            scale = atof(argv[++i]);
        } else if (!strcmp(argv[i], "--only") && i + 1 < argc) {
            only = argv[++i];
        } else if (!strcmp(argv[i], "--no-pin")) {
            pin = 0;
        } else if (!strcmp(argv[i], "--list")) {
            list = 1;
        } else if (!strcmp(argv[i], "--time") && i + 2 < argc) {
            if (pin)
                pin_to_one_cpu();
            return time_program(argv[i + 1], argv + i + 2);
        } else {
            int help = !strcmp(argv[i], "--help");

            fputs(usage, help ? stdout : stderr);
            return help ? 0 : 2;
        }
    }
    if (!(scale > 0)) {
        fprintf(stderr, "vbench: --scale wants a number above 0\n");
        return 2;
    }
    if (pin)
        pin_to_one_cpu();
    for (size_t t = 0; t < NR_TABLES; t++) {
        for (const struct vb_bench *b = tables[t]; b->name; b++) {
            if (!is_selected(only, b))
                continue;
            if (list)
                printf("%s %s\n", b->name, b->group);
            else
                run_one(b, scale);
        }
    }
    return 0;
}
