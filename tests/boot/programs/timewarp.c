/*
 * timewarp.c - does the clock ever run backwards, on one CPU or from one CPU to the next? One thread on each CPU reads
 * CLOCK_MONOTONIC and compares with the latest that any of them has seen. Usage: timewarp SECONDS
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static _Atomic long long latest, reads, warps, worst;
static atomic_bool stop;

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void *look(void *arg)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((long)arg, &set);
    sched_setaffinity(0, sizeof(set), &set);
    long long n = 0, mine = 0;
    while (!stop) {
        long long before = latest, t = now();
        long long late = before > mine ? before : mine;
        if (t < late) {
            warps++;
            if (late - t > worst)
                worst = late - t;
        }
        mine = t;
        while (before < t && !atomic_compare_exchange_weak(&latest, &before, t))
            ;
        n++;
    }
    reads += n;
    return NULL;
}

int main(int argc, char **argv)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    pthread_t thread[64];
    for (long i = 0; i < cpus && i < 64; i++)
        pthread_create(&thread[i], NULL, look, (void *)i);
    sleep(argc > 1 ? (unsigned)atoi(argv[1]) : 2);
    stop = 1;
    for (long i = 0; i < cpus && i < 64; i++)
        pthread_join(thread[i], NULL);
    printf("timewarp: %ld cpus, %lld reads, %lld backwards, worst %lld ns\n", cpus, reads, warps, worst);
    return warps != 0 || reads < 1000;
}
