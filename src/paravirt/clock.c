/*
 * clock.c - the system time that contracts share: ns since creation, computed from the TSC by one multiplication that
 * the guest can do itself. The host's TSC is constant and the same on every core (docs/decisions/0009), so one set of
 * constants serves every vCPU for ever.
 */
#include "paravirt/inner.h"
#include "paravirt/xen/xen.h"
#include <time.h>

/* mul in [2^31, 2^32) keeps 32 bits of precision: an error below 1 ns in 4 s, one constant for everyone. */
void pv_clock_init(struct paravirt *pv)
{
    u64 num = 1000000, den = pv->config.tsc_khz;

    pv->tsc_shift = 0;
    while (num >= den) {
        den <<= 1;
        pv->tsc_shift++;
    }
    while (num * 2 < den) {
        num <<= 1;
        pv->tsc_shift--;
    }
    pv->tsc_mul = (u32)((num << 32) / den);
    pv->tsc_base = pv_host_tsc();
}

u64 pv_clock_ns(const struct paravirt *pv, u64 host_tsc)
{
    u64 d = host_tsc - pv->tsc_base;
    d = pv->tsc_shift < 0 ? d >> -pv->tsc_shift : d << pv->tsc_shift;
    return (u64)((unsigned __int128)d * pv->tsc_mul >> 32);
}

/* The tightest of a few looks: the host may take the CPU away between the two clocks. */
struct timespec pv_wall_now(u64 *tsc)
{
    struct timespec best = { 0 };
    u64 least = ~0ull;

    for (unsigned i = 0; i < 5; i++) {
        struct timespec now;
        u64 before = pv_host_tsc();
        clock_gettime(CLOCK_REALTIME, &now);
        u64 took = pv_host_tsc() - before;
        if (took >= least)
            continue;
        least = took;
        best = now;
        *tsc = before + took / 2;
    }
    return best;
}

/* A guest's copy of the base is in terms of its own TSC, which did not count these ticks either. */
void paravirt_clock_skip(struct paravirt *pv, u64 ticks)
{
    pv->tsc_base += ticks;
    if (pv->xen)
        xen_clock_skip(pv->xen, ticks);
}
