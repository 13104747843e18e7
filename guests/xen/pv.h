/*
 * pv.h - hypercalls, and the two kinds of frame numbers.
 *
 * SPDX-License-Identifier: 0BSD
 */
#ifndef GUESTS_XEN_PV_H
#define GUESTS_XEN_PV_H
#include "sdk/sdk.h"
#include "vitro/xen.h"

/* -- Calling: SYSCALL from the kernel itself. It takes RCX and R11; the result is in RAX, errors are negative. --------- */

static inline long xen_call5(unsigned number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e)
{
    register uint64_t r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    long result;

    __asm__ volatile("syscall" : "=a"(result), "+D"(a), "+S"(b), "+d"(c), "+r"(r10), "+r"(r8) : "a"((uint64_t)number)
                     : "rcx", "r11", "memory");
    return result;
}
#define xen_call4(n, a, b, c, d) xen_call5(n, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), (uint64_t)(d), 0)
#define xen_call3(n, a, b, c) xen_call4(n, a, b, c, 0)
#define xen_call2(n, a, b) xen_call4(n, a, b, 0, 0)
#define xen_call1(n, a) xen_call4(n, a, 0, 0, 0)

/* -- Frames. A guest counts its memory from 0 without holes (pseudo-physical); what is in page tables are machine frames, and may
 * lie anywhere. One list leads from the first to the second, another back. With VIRT_BASE 0 an address is its
 * pseudo-physical address. ------------------------------------------------------------------------------------------ */

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_FRAME 0x000ffffffffff000ull

extern const uint64_t *xen_p2m; /* start_info.mfn_list */

/* frame_of - the machine frame of something in memory; machine_of - its machine address. */
static inline uint64_t frame_of(const volatile void *p) { return xen_p2m[(uint64_t)p / PAGE]; }
static inline uint64_t machine_of(const volatile void *p) { return frame_of(p) * PAGE + (uint64_t)p % PAGE; }
/* frame_at - where a machine frame is in memory. */
static inline void *frame_at(uint64_t mfn) { return (void *)(((const uint64_t *)XEN_M2P_START)[mfn] * PAGE); }

/* -- start.S ----------------------------------------------------------------------------------------------------------- */

extern char trap_stubs[], event_entry[], failsafe_entry[], try_store_failed[];
bool try_store(volatile uint64_t *to, uint64_t value);
/* What it calls: at the entry, and for each trap (vector 0-31) and event (256). */
void xen_main(struct xen_start_info *info) __attribute__((noreturn));
void xen_trap(struct sdk_regs *regs);

#endif
