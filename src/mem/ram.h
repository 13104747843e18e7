/*
 * ram.h - guest-physical memory: slots of host memory, and the only door from a guest-physical
 * address to a host pointer. Look-ups need no lock: while vCPUs run a slot may be added behind the others, and be absent or not,
 * but nothing else of it changes (vitro_vm_show_memory).
 */
#pragma once
#include "base/types.h"

#define RAM_MAX_SLOTS 32

/* Per-page state beside the bytes; read by the TLB when it decides whether a write may go direct. */
#define PAGE_HAS_CODE 0x1u /* translations exist of bytes in this page: writes take the slow path */
#define PAGE_MONITORED 0x2u /* a vCPU may be waiting for a store to it (MWAIT): the same */

/* What the first use of a byte of it asks the host for: a page fault costs it five times what clearing one page more does. */
#define RAM_PIECE_SHIFT 16
#define RAM_PIECE (1ull << RAM_PIECE_SHIFT)

struct ram_slot {
    gpa_t gpa;
    u64 size;      /* bytes, a multiple of PAGE_SIZE */
    u8 *host;      /* page aligned; owned by whoever added the slot */
    bool readonly; /* ROM: guest writes go to MMIO (dropped there) */
    bool absent;   /* not there just now: nothing is found in it */
    u8 *page_state; /* PAGE_*, one byte a page; owned by struct ram */
    u8 *touched;   /* one byte a RAM_PIECE: it was asked for (ram_touch); NULL: not to be. Owned by struct ram */
};

struct ram {
    struct ram_slot slot[RAM_MAX_SLOTS];
    unsigned nr_slots;
    /* Told of what a device wrote, so that nobody keeps using the old bytes; NULL: nobody cares. Any thread. */
    void (*written)(void *opaque, gpa_t gpa, u64 len);
    void *written_opaque;
};

void ram_init(struct ram *ram);
void ram_fini(struct ram *ram);
/* ram_add_slot - 0, or -EINVAL (misaligned, overlap, wraps), -ENOSPC, -ENOMEM. */
int ram_add_slot(struct ram *ram, gpa_t gpa, u64 size, void *host, bool readonly);
/* ram_ask_ahead - the memory of the slot at gpa is to come in pieces; only for memory that is nothing yet, as a memfd's. 0 or -ENOMEM. */
int ram_ask_ahead(struct ram *ram, gpa_t gpa);
void ram_ask(struct ram_slot *slot, u64 piece);
/* ram_touch - offset `off` of the slot is about to be used. Any thread. */
static inline void ram_touch(struct ram_slot *slot, u64 off)
{
    if (slot->touched && unlikely(!__atomic_load_n(&slot->touched[off >> RAM_PIECE_SHIFT], __ATOMIC_RELAXED)))
        ram_ask(slot, off >> RAM_PIECE_SHIFT);
}
static inline bool ram_slot_has(const struct ram_slot *slot, gpa_t gpa)
{
    return gpa - slot->gpa < slot->size && !__atomic_load_n(&slot->absent, __ATOMIC_RELAXED);
}
static inline unsigned ram_nr_slots(const struct ram *ram) { return __atomic_load_n(&ram->nr_slots, __ATOMIC_ACQUIRE); }
/* ram_find - the slot that holds gpa, or NULL. */
struct ram_slot *ram_find(struct ram *ram, gpa_t gpa);
/* ram_ptr - host pointer to [gpa, gpa+len) when all of it is in one slot, else NULL. len >= 1. */
void *ram_ptr(struct ram *ram, gpa_t gpa, u64 len);
/* ram_written - a device has written [gpa, gpa+len) through ram_ptr(); call it before telling the guest. */
static inline void ram_written(const struct ram *ram, gpa_t gpa, u64 len)
{
    if (ram->written)
        ram->written(ram->written_opaque, gpa, len);
}
/* ram_dma_ptr - ram_ptr() for a device that will write: NULL also where memory is read-only. */
void *ram_dma_ptr(struct ram *ram, gpa_t gpa, u64 len);
/* ram_read, ram_write - copy; 0, or -EFAULT with nothing copied if any byte is not RAM. */
int ram_read(struct ram *ram, gpa_t gpa, void *buf, u64 len);
int ram_write(struct ram *ram, gpa_t gpa, const void *buf, u64 len);
