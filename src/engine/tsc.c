/*
 * tsc.c - the rate of the host's TSC, by comparing it with CLOCK_MONOTONIC_RAW for 2 ms: good to some 5 ppm. (The kernel knows it
 * better, and says it in the page of a perf event; but perf_event_open(2) takes 10 ms, and many hosts keep it to themselves.)
 */
#include "libvitro.h"

#include <pthread.h>
#include <time.h>

#include "base/types.h"

#define MEASURE_NS 2000000u

/* TSC and clock at the same moment: the closest of a few tries. */
static void sample(u64 *tsc, u64 *ns)
{
    u64 best = ~0ull;
    for (unsigned i = 0; i < 16; i++) {
        struct timespec t;
        u64 before = __builtin_ia32_rdtsc();
        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        u64 after = __builtin_ia32_rdtsc();
        if (after - before < best) {
            best = after - before;
            *tsc = before + (after - before) / 2;
            *ns = (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
        }
    }
}

static u64 from_clock(void)
{
    u64 tsc0, ns0, tsc1, ns1;
    struct timespec nap = { 0, MEASURE_NS };
    sample(&tsc0, &ns0);
    nanosleep(&nap, NULL);
    sample(&tsc1, &ns1);
    return (u64)((unsigned __int128)(tsc1 - tsc0) * 1000000 / (ns1 - ns0));
}

static u64 tsc_khz;
static void tsc_khz_init(void)
{
    tsc_khz = from_clock();
}
uint64_t vitro_tsc_khz(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, tsc_khz_init);
    return tsc_khz;
}
