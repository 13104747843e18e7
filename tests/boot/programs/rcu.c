/*
 * rcu.c - what Linux's rcutorture does, for programs: readers look at an element while writers replace it again and again, and
 * an element ages by one with each grace period after it was taken away. A reader that sees one older than that has
 * been overlooked. By two kinds of grace period: fences only on the writers' side, membarrier(2) making the readers' (so IPIs
 * do); and readers that say when they are quiet. Source: Desnoyers, McKenney and others, "User-Level Implementations of
 * Read-Copy Update" (2012), figures 4 to 6.
 *
 *     rcu READERS GRACE_PERIODS
 */
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_READERS 16
#define AGES 10
#define ELEMENTS 64
#define NESTS 0xffffu
#define PHASE 0x10000u

static struct element {
    atomic_uint age;
    unsigned made; /* not 0 while it is there */
    bool used;
} element[ELEMENTS];
static struct reader {
    _Alignas(64) atomic_uint ctr; /* by membarrier: the phase it began in, and how deep; else: the last period it was quiet in */
    atomic_ulong reads;
    unsigned long seen[AGES + 1], empty;
    unsigned seed;
} reader[MAX_READERS];

static _Atomic(struct element *) current;
static atomic_uint period = 1;
static atomic_bool stop;
static unsigned nr_readers;
static bool quiet; /* by quiescent states */

static void fence_all(void)
{
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0)) {
        perror("membarrier");
        exit(1);
    }
}

static void lock(struct reader *r)
{
    if (quiet)
        return;
    unsigned ctr = atomic_load_explicit(&r->ctr, memory_order_relaxed);
    atomic_store_explicit(&r->ctr, ctr & NESTS ? ctr + 1 : atomic_load_explicit(&period, memory_order_relaxed),
                          memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
}

static void unlock(struct reader *r)
{
    if (quiet) {
        unsigned now = atomic_load_explicit(&period, memory_order_relaxed);
        if (atomic_load_explicit(&r->ctr, memory_order_relaxed) == now)
            return;
        atomic_thread_fence(memory_order_seq_cst);
        atomic_store_explicit(&r->ctr, now, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
        return;
    }
    atomic_signal_fence(memory_order_seq_cst);
    atomic_store_explicit(&r->ctr, atomic_load_explicit(&r->ctr, memory_order_relaxed) - 1, memory_order_relaxed);
}

static void wait_for(struct reader *r, unsigned now)
{
    for (;;) {
        unsigned ctr = atomic_load_explicit(&r->ctr, memory_order_relaxed);
        if (quiet ? ctr == now : !(ctr & NESTS) || !((ctr ^ now) & PHASE))
            return;
        sched_yield();
    }
}

static void synchronize(void)
{
    if (quiet)
        atomic_thread_fence(memory_order_seq_cst);
    else
        fence_all();
    for (int phase = 0; phase < (quiet ? 1 : 2); phase++) {
        unsigned now = quiet ? atomic_load(&period) + 1 : atomic_load(&period) ^ PHASE;
        atomic_store(&period, now);
        for (unsigned i = 0; i < nr_readers; i++)
            wait_for(&reader[i], now);
        atomic_thread_fence(memory_order_seq_cst);
    }
    if (!quiet)
        fence_all();
}

static unsigned chance(struct reader *r)
{
    return r->seed = r->seed * 1664525 + 1013904223;
}

static void *read_on(void *arg)
{
    struct reader *r = arg;

    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        bool twice = !quiet && chance(r) >> 30 == 0;
        lock(r);
        struct element *e = atomic_load_explicit(&current, memory_order_acquire);
        if (twice)
            lock(r);
        for (unsigned n = chance(r) >> 24; n; n--)
            atomic_signal_fence(memory_order_seq_cst);
        if (chance(r) >> 20 == 0)
            sched_yield();
        unsigned age = atomic_load_explicit(&e->age, memory_order_relaxed);
        r->empty += !e->made;
        r->seen[age < AGES ? age : AGES]++;
        if (twice)
            unlock(r);
        unlock(r);
        atomic_fetch_add_explicit(&r->reads, 1, memory_order_relaxed);
    }
    return NULL;
}

static struct element *fresh(void)
{
    for (;;)
        for (unsigned i = 0; i < ELEMENTS; i++)
            if (!element[i].used) {
                element[i].used = true;
                atomic_store_explicit(&element[i].age, 0, memory_order_relaxed);
                element[i].made = 1;
                return &element[i];
            }
}

/* -> 1: a reader saw what it must not, or none saw anything */
static int torture(unsigned periods)
{
    pthread_t thread[MAX_READERS];
    unsigned long seen[AGES + 1] = { 0 }, empty = 0, bad = 0;

    atomic_store(&stop, false);
    for (unsigned i = 0; i < nr_readers; i++) {
        reader[i] = (struct reader){ .seed = i * 77 + 1, .ctr = quiet ? atomic_load(&period) : 0 };
        pthread_create(&thread[i], NULL, read_on, &reader[i]);
    }
    for (unsigned n = 0; n < periods; n++) {
        struct reader *r = &reader[n % nr_readers]; /* each takes part */
        for (unsigned long before = atomic_load(&r->reads); atomic_load(&r->reads) == before;)
            sched_yield();
        struct element *e = fresh();
        struct element *old = atomic_exchange_explicit(&current, e, memory_order_acq_rel);
        atomic_fetch_add_explicit(&old->age, 1, memory_order_relaxed);
        synchronize();
        for (unsigned i = 0; i < ELEMENTS; i++) {
            struct element *a = &element[i];
            if (!a->used || a == e)
                continue;
            if (atomic_fetch_add_explicit(&a->age, 1, memory_order_relaxed) + 1 >= AGES) {
                a->made = 0;
                a->used = false;
            }
        }
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < nr_readers; i++) {
        pthread_join(thread[i], NULL);
        empty += reader[i].empty;
        for (unsigned a = 0; a <= AGES; a++)
            seen[a] += reader[i].seen[a];
    }
    printf("%s, %u readers, %u grace periods; reads by age:", quiet ? "quiescent states" : "membarrier", nr_readers, periods);
    for (unsigned a = 0; a <= AGES; a++) {
        printf(" %lu", seen[a]);
        bad += a > 1 ? seen[a] : 0;
    }
    printf("; %lu of nothing\n", empty);
    return bad || empty || !seen[0];
}

int main(int argc, char **argv)
{
    unsigned periods = argc > 2 ? (unsigned)atoi(argv[2]) : 0;
    int failed = 0;

    nr_readers = argc > 1 ? (unsigned)atoi(argv[1]) : 0;
    if (!nr_readers || nr_readers > MAX_READERS || !periods) {
        fprintf(stderr, "usage: rcu READERS GRACE_PERIODS\n");
        return 2;
    }
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0)) {
        perror("membarrier");
        return 1;
    }
    atomic_store(&current, fresh());
    failed += torture(periods);
    quiet = true;
    failed += torture(periods);
    printf("rcu: %d passed, %d failed\n", 2 - failed, failed);
    return failed != 0;
}
