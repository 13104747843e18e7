/*
 * window.h - user memory through the host's own MMU, where a process has run for a while.
 *
 * The soft TLB is checked at each access. A *window* is host address space laid out like a guest's: pages of guest RAM are mapped
 * in it where the guest's page tables have them, and an access of 64-bit user code needs no check, only a distance to add:
 *
 *   rorx  s2, base, 39
 *   movzx s2d, s2b
 *   mov   s2, [vcpu + window + 8 * s2]
 *   op    [base + disp + s2]
 *
 * Nothing is compared and no flag changes. What is not mapped raises SIGSEGV, and the handler walks the guest's tables and maps the page.
 * That costs some ten microseconds a page, against 20 ns for a TLB entry: so only address spaces that were found in user code by
 * several interrupts get windows (window_tick), and lose them when they are flushed, or when they cost more than they gain.
 *
 * Guest user space is cut into chunks of 512 GiB. A chunk in use has a *slot*: 512 GiB of host addresses, with at least 4 GiB of
 * nothing on both sides. All others have the distance to a place where nothing is ever mapped ("nowhere").
 *
 * Why no access can reach anything else, whatever the guest has in its registers. The table has 256 entries, and 8 bits pick one:
 * bits 39-46 of `base`. So base + distance = (a place in a slot, or nowhere) + 2^47 * (bits 47-63 of base). Code adds a displacement of
 * 32 bits (and the operand has less than 4 KiB), for which the room beside slots is made. If bits 47-63 are 0 that is a place in a slot, or beside it: a guest's
 * page mapped there by window_fill() with the rights of user code, or nothing. Else it is not canonical, or in the host kernel's
 * half: the host CPU faults. So the handler sees only what is in the area, not canonical, or the kernel's.
 */
#pragma once
#include "engine/tlb.h"

#define WINDOW_CHUNK_SHIFT 39
#define WINDOW_CHUNKS 256u
#define WINDOW_CHUNK (1ull << WINDOW_CHUNK_SHIFT)
#define WINDOW_GAP (4ull << 30)
#define WINDOW_SLOTS 63u       /* of a VM, a bit each; the first is nowhere */
#define WINDOW_AREA (WINDOW_GAP + WINDOW_SLOTS * (WINDOW_CHUNK + WINDOW_GAP))
#define WINDOW_MAX_CHUNKS 8u   /* of an address space */
#define WINDOW_PAGES 32768u    /* places in the table of what is mapped; three quarters may be used */
#define WINDOW_MAPPINGS 40000u /* of a VM: the host allows a process 65530 (vm.max_map_count) */

struct window_page {
    gla_t la;                  /* linear page, and: */
#define WINDOW_USED 1u
#define WINDOW_WRITABLE 2u
#define WINDOW_LARGE 4u        /* 2 MiB */
#define WINDOW_GONE 8u         /* was unmapped; the place may be used again */
    u64 host;                  /* where the RAM is mapped otherwise */
};
struct window {
    struct vcpu *v;            /* whose space it is */
    bool on;
    u8 nr_chunks;
    struct { u8 chunk, slot; } chunk[WINDOW_MAX_CHUNKS]; /* of the current space: what v->window says */
    u32 nr_places;             /* of page[], used or gone */
    u32 ticks, need;           /* interrupts of user code since the last flush; how many before there are windows */
    u32 on_ticks;              /* ... since then */
    u32 fills, steps;          /* pages mapped, instructions done otherwise, since then */
    struct window_page page[WINDOW_PAGES];
};

static inline bool window_on(const struct tlb_space *sp) { return sp->window && sp->window->on; }

/* window_address - is a host address in a slot of the current space? Then of which linear address. */
bool window_address(struct vcpu *v, const u8 *host, gla_t *la);
/* window_area - is it anywhere in the VM's windows? */
bool window_area(const struct vm *vm, const u8 *host);
/*
 * window_fill - emitted code found nothing at a linear address, or may not write: map the page. Called by the signal handler.
 * WINDOW_FAULT: the guest's tables say no, v->exc is the #PF. WINDOW_ODD: RAM cannot be mapped (MMIO, code on the page, no room).
 */
enum window_fill { WINDOW_FILLED, WINDOW_FAULT, WINDOW_ODD };
enum window_fill window_fill(struct vcpu *v, gla_t la, bool write);
/* window_tick - an interrupt found the vCPU in 64-bit user code. window_want - windows at once if possible (VITRO_DEBUG_WINDOWS). */
void window_tick(struct vcpu *v);
void window_want(struct vcpu *v);
/* window_step - the instruction at v->rip is about to be done with checks of its own. False: no need, run it again. */
bool window_step(struct vcpu *v);
/* window_flush_page - INVLPG. window_flush_pages - all of them. window_flush - the same, and a time to look whether windows pay: the
 * caller calls window_sync(). window_forget - the space becomes another process's. */
void window_flush_page(struct tlb_space *sp, gla_t la);
void window_flush_pages(struct tlb_space *sp);
void window_flush(struct tlb_space *sp);
void window_forget(struct tlb_space *sp);
/* window_unwrite - a page of RAM, by its host address, is about to hold translations: no window may write it. */
void window_unwrite(struct tlb_space *sp, u64 host);
/* window_switch - `sp` is about to be the current space: v->window follows. */
void window_switch(struct vcpu *v, struct tlb_space *sp);
/* window_sync - the current space may have got or lost windows: v->mode and what syscall and sysret use follow. */
void window_sync(struct vcpu *v);
/* window_fini - of a vCPU; window_vm_fini - the VM's, after its vCPUs'. */
void window_fini(struct vcpu *v);
void window_vm_fini(struct vm *vm);
