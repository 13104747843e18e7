/*
 * window.h - user memory through the host's own MMU, where a process has run for a while.
 *
 * The soft TLB is checked at each access. A *window* is host address space laid out like a guest's: pages of guest RAM are mapped
 * in it where the guest's page tables have them, and an access of 64-bit user code needs no check, only a distance to add (tr_window.c):
 *
 *   shrx  s, base, vcpu          ; by 40: the low bits of that register
 *   mov   s, [vcpu + table + 8 * s]
 *   op    [base + disp + s]
 *
 * Nothing is compared and no flag changes. What is not mapped raises SIGSEGV, and the handler walks the guest's tables and maps the page.
 * That costs some ten microseconds a page, against 20 ns for a TLB entry: so only address spaces that were found in user code by
 * several interrupts get windows (window_tick), and lose them when they are flushed, or when they cost more than they gain.
 *
 * Guest user space is cut into chunks of 1 TiB. A chunk in use has a *slot*: 1 TiB of host addresses, with at least 4 GiB of
 * nothing on both sides. All others have the distance to a place where nothing is ever mapped ("nowhere").
 *
 * Why no access can reach anything else, whatever the guest has in its registers. Code adds to `base` a displacement and what the
 * base has moved by constants since it was looked up, together between -WINDOW_BELOW and WINDOW_ABOVE (tr_window.c sees to that), and the
 * operand has less than 4 KiB. (Only RIP-relative displacements have all of 32 bits: their base is the page that is being executed.)
 *
 * - Bits 47-63 of base are 0: its chunk is one of 128, and base + distance a place in the chunk's slot, or nowhere. What is added leads at
 *   most beside it: to a guest's page mapped there by window_fill() with the rights of user code, or to nothing.
 * - Bits 40-63 are 1: the table's last entry takes 2^46, and that is an address of the host kernel's half, far from either end.
 * - Else it finds zero: those of the table's 2^24 entries that are for no user address can be read and are never written (WINDOW_ZEROS).
 *   The host's address is the guest's, which is not canonical, or the kernel's: the host CPU faults. Below 2^47 what is added leads at most to
 *   the last page of user addresses, where Linux maps nothing (TASK_SIZE_MAX).
 *
 * RSP's distance is kept from block to block (tr_window.c). Either it was looked up for RSP, which then moved by less than WINDOW_BELOW in all
 * with what is added: the cases above. Or the stack was used through it since: RSP and at most WINDOW_ABOVE was in a page of the slot, so that
 * RSP is less than 2 GiB from the slot, and the next operand less than 4.
 *
 * So the handler sees only what is in the area, in one of these places, not canonical, or the kernel's.
 */
#pragma once
#include "engine/tlb.h"

#define WINDOW_CHUNK_SHIFT 40
#define WINDOW_CHUNKS 128u
#define WINDOW_CHUNK (1ull << WINDOW_CHUNK_SHIFT)
#define WINDOW_GAP (4ull << 30)
#define WINDOW_BELOW 4032
#define WINDOW_ABOVE (1 << 30)
#define WINDOW_LAST ((1u << 24) - 1)
#define WINDOW_TOP ((1ull << 47) - PAGE_SIZE)
#define WINDOW_SLOTS 40u       /* of a VM, a bit each; the first is nowhere */
#define WINDOW_AREA (WINDOW_GAP + WINDOW_SLOTS * (WINDOW_CHUNK + WINDOW_GAP) + (2ull << 20)) /* slots begin at multiples of 2 MiB */
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
    struct { u8 chunk, slot; } chunk[WINDOW_MAX_CHUNKS]; /* of this space: what its table says */
    u32 nr_places;             /* of page[], used or gone */
    u32 ticks, need;           /* interrupts of user code since the last flush; how many before there are windows */
    u32 on_ticks;              /* ... since then */
    u64 last_tick;             /* the host's TSC at the last one that counted */
    u32 fills, steps, drops;   /* pages mapped, instructions done otherwise, pages unmapped one by one, since then */
    struct window_page page[WINDOW_PAGES];
};

static inline bool window_on(const struct tlb_space *sp) { return sp->window && sp->window->on; }

/*
 * window_stack - vcpu->sp_distance again, which code that goes through windows relies on (tr_window.c): RSP, the space or the distances
 * have changed, or may have. The table has an entry for all that RSP can be.
 */
static inline void window_stack(struct vcpu *v)
{
    v->sp_distance = ((u64 *)(v->space->base + OFF_UWINDOW))[v->regs[RSP] >> WINDOW_CHUNK_SHIFT];
}
/* window_address - is a host address in a slot of the current space? Then of which linear address. */
bool window_address(struct vcpu *v, const u8 *host, gla_t *la);
/* window_area - is it anywhere in the VM's windows, or where else an access through one may lead? */
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
/* window_sync - the current space may have got or lost windows: v->mode and what syscall and sysret use follow. */
void window_sync(struct vcpu *v);
/* window_fini - of a vCPU; window_vm_fini - the VM's, after its vCPUs'. */
void window_fini(struct vcpu *v);
void window_vm_fini(struct vm *vm);
