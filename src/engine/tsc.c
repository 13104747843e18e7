/*
 * tsc.c - the rate of the host's TSC. The kernel knows it, and says it where it lets processes time themselves:
 * perf_event_open(2), struct perf_event_mmap_page, cap_user_time: ns = ticks * time_mult >> time_shift. Where that is
 * not allowed, the TSC is compared with CLOCK_MONOTONIC_RAW for 2 ms, good to some 5 ppm.
 */
#include "libvitro.h"

#include <linux/perf_event.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/types.h"

#define MEASURE_NS 2000000u

static u64 from_kernel(void)
{
    struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(attr), .config = PERF_COUNT_SW_DUMMY,
                                    .exclude_kernel = 1, .exclude_hv = 1 };
    int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    u64 khz = 0;
    if (fd < 0)
        return 0;
    const struct perf_event_mmap_page *p = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED) {
        if (p->cap_user_time && p->time_mult && p->time_shift < 64)
            khz = (u64)(((unsigned __int128)1000000 << p->time_shift) / p->time_mult);
        munmap((void *)p, PAGE_SIZE);
    }
    close(fd);
    return khz;
}

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
    tsc_khz = from_kernel();
    if (!tsc_khz)
        tsc_khz = from_clock();
}
uint64_t vitro_tsc_khz(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, tsc_khz_init);
    return tsc_khz;
}
