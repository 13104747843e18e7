/*
 * call.h - a guest's side: find Vitro, call it, read the time. Inline functions, nothing else needed.
 *
 * SPDX-License-Identifier: 0BSD
 */
#ifndef VITRO_CALL_H
#define VITRO_CALL_H
#include "vitro/abi.h"
#include "vitro/shared.h"

static inline void vt_cpuid(uint32_t leaf, uint32_t r[4])
{
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
}

/* vt_find - the first leaf of Vitro's group, or 0: this is not Vitro, or it was told to keep quiet. */
static inline uint32_t vt_find(void)
{
    uint32_t r[4], leaf;

    vt_cpuid(1, r);
    if (!(r[2] >> 31)) /* no hypervisor at all */
        return 0;
    for (leaf = VT_CPUID_FIRST; leaf <= VT_CPUID_LAST; leaf += VT_CPUID_STEP) {
        vt_cpuid(leaf, r);
        if (r[1] == VT_SIGNATURE_EBX && r[2] == VT_SIGNATURE_ECX && r[3] == VT_SIGNATURE_EDX)
            return leaf;
    }
    return 0;
}
/* vt_features - VT_FEATURE_* of the group at `base`; vt_version - of the interface. */
static inline uint32_t vt_features(uint32_t base)
{
    uint32_t r[4];

    vt_cpuid(base + 1, r);
    return r[1];
}
static inline uint32_t vt_version(uint32_t base)
{
    uint32_t r[4];

    vt_cpuid(base + 1, r);
    return r[0];
}

/* vt_call - any call; see hypercalls.def. Result, or a negative VT_E*. Memory may have changed. */
static inline int64_t vt_call(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    int64_t result;

    __asm__ volatile("vmcall"
                     : "=a"(result)
                     : "a"(VT_BASE + number), "D"(a), "S"(b), "d"(c), "c"(d)
                     : "memory");
    return result;
}
#define vt_call0(number) vt_call(number, 0, 0, 0, 0)
#define vt_call1(number, a) vt_call(number, (uint64_t)(a), 0, 0, 0)
#define vt_call2(number, a, b) vt_call(number, (uint64_t)(a), (uint64_t)(b), 0, 0)
#define vt_call3(number, a, b, c) vt_call(number, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), 0)
#define vt_call4(number, a, b, c, d) vt_call(number, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), (uint64_t)(d))

/*
 * vt_page_set - put `entry` into *pte, the entry of 4 KiB for va in the current page tables. For one page this is cheaper than
 * VT_MAP, VT_PROTECT or VT_UNMAP: a store, and INVLPG only if something was mapped there (what is not present is not
 * remembered, Intel SDM vol. 3 section 4.10.2.3). Other processors, if any use these tables, forget va only by VT_FLUSH.
 */
static inline void vt_page_set(uint64_t *pte, uint64_t va, uint64_t entry)
{
    uint64_t was = __atomic_exchange_n(pte, entry, __ATOMIC_RELAXED); /* a walker may be setting Accessed and Dirty */

    if (was & 1)
        __asm__ volatile("invlpg (%0)" ::"r"(va) : "memory");
}

static inline uint64_t vt_rdtsc(void)
{
    uint32_t lo, hi;

    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

/* vt_mono_ns - ns since the machine was switched on; vt_wall_ns - UTC, ns since 1970. No call. */
static inline uint64_t vt_mono_ns(const volatile struct vt_time *t)
{
    uint32_t seq;
    uint64_t d, ns;

    do {
        while ((seq = __atomic_load_n(&t->seq, __ATOMIC_ACQUIRE)) & 1)
            __asm__ volatile("pause");
        d = vt_rdtsc() - t->tsc;
        d = t->shift < 0 ? d >> -t->shift : d << t->shift;
        ns = t->mono_ns + (uint64_t)((unsigned __int128)d * t->mul >> 32);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (__atomic_load_n(&t->seq, __ATOMIC_RELAXED) != seq);
    return ns;
}
static inline uint64_t vt_wall_ns(const volatile struct vt_time *t)
{
    uint64_t wall;
    uint32_t seq;

    do {
        while ((seq = __atomic_load_n(&t->seq, __ATOMIC_ACQUIRE)) & 1)
            __asm__ volatile("pause");
        wall = t->wall_ns;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (__atomic_load_n(&t->seq, __ATOMIC_RELAXED) != seq);
    return wall + vt_mono_ns(t);
}

/* vt_timer_write - set or (deadline_ns 0) stop a one-shot timer by the page. False: TIMER_SET it, unless the vCPU halts next. */
static inline int vt_timer_write(struct vt_timers *page, unsigned timer, uint64_t deadline_ns)
{
    uint64_t armed;

    __atomic_store_n(&page->timer[timer].deadline_ns, deadline_ns, __ATOMIC_SEQ_CST);
    armed = __atomic_load_n(&page->timer[timer].armed_ns, __ATOMIC_SEQ_CST);
    return !deadline_ns || (armed && armed <= deadline_ns);
}

#endif
