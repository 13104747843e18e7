/*
 * threads.c - how much slower N threads run than one: each does the same work. For bench/smp.
 *
 *   threads WORK ROUNDS N...      WORK: integer, memory, calls, syscall, malloc
 *
 * Prints `threads WORK N: best of ROUNDS in us`: wall time until all are done.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t sink;

static void integer(void)
{
    uint64_t x = 88172645463325252ull;
    for (unsigned i = 0; i < 60000000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    sink = x;
}

static void memory(void)
{
    enum { N = 1 << 15 };
    uint32_t *a = malloc(N * sizeof *a);
    for (unsigned i = 0; i < N; i++)
        a[i] = i * 2654435761u;
    for (unsigned round = 0; round < 4000; round++)
        for (unsigned i = 0; i + 1 < N; i++) {
            unsigned j = a[i] % N;
            uint32_t t = a[i];
            a[i] = a[j] + 1;
            a[j] = t;
        }
    sink = a[7];
    free(a);
}

static __attribute__((noinline)) unsigned fib(unsigned n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
static void calls(void) { sink = fib(38); }

static void syscalls(void)
{
    for (unsigned i = 0; i < 400000; i++)
        syscall(SYS_getppid);
}

static void mallocs(void)
{
    void *p[64] = { 0 };
    for (unsigned i = 0; i < 3000000; i++) {
        free(p[i % 64]);
        p[i % 64] = malloc(16 + i % 400);
        memset(p[i % 64], 1, 16);
    }
    for (unsigned i = 0; i < 64; i++)
        free(p[i]);
}

static const struct { const char *name; void (*run)(void); } works[] = {
    { "integer", integer }, { "memory", memory }, { "calls", calls }, { "syscall", syscalls }, { "malloc", mallocs },
};

static void *thread(void *arg)
{
    ((void (**)(void))arg)[0]();
    return NULL;
}
static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
    void (*run)(void) = NULL;
    for (unsigned i = 0; argc > 3 && i < sizeof works / sizeof works[0]; i++)
        if (!strcmp(works[i].name, argv[1]))
            run = works[i].run;
    if (!run) {
        fprintf(stderr, "usage: threads WORK ROUNDS N...\n");
        return 2;
    }
    unsigned rounds = (unsigned)atoi(argv[2]);
    uint64_t best[64];
    memset(best, 0xff, sizeof best);
    for (unsigned r = 0; r < rounds; r++) /* in turn, so that a busy host hits all alike */
        for (int k = 3; k < argc; k++) {
            pthread_t t[64];
            unsigned n = (unsigned)atoi(argv[k]);
            uint64_t start = now_us();
            for (unsigned i = 0; i < n && i < 64; i++)
                pthread_create(&t[i], NULL, thread, &run);
            for (unsigned i = 0; i < n && i < 64; i++)
                pthread_join(t[i], NULL);
            uint64_t took = now_us() - start;
            if (took < best[k])
                best[k] = took;
        }
    for (int k = 3; k < argc; k++)
        printf("threads %s %s: %llu\n", argv[1], argv[k], (unsigned long long)best[k]);
    return 0;
}
