/*
 * tlb.h - the soft TLB: from linear pages to host pages, checked by emitted code with one compare.
 *
 * An access of `size` bytes at EA picks entry EA[..:12] of its mode's table and is in order when
 * EA - tag <= 4096 - size (unsigned): right page and no page crossing in one test. Reads and writes have
 * tags of their own; a write tag is set only when the page is dirty in the guest's tables, writable, RAM,
 * and holds no translated code.
 *
 * An unused entry i carries the tag of page i ^ TLB_UNUSED_BIT: no address that picks entry i can match it, canonical or not, by
 * the plain index or the hashed one (which flips only lower bits of so small a page number), so emitted
 * code needs no valid bit.
 *
 * Memory: one shared part (struct vcpu, the kernel's tables) and NR_SPACES private parts, one for each
 * remembered address space (PCID). Each space is mapped as [shared][private] contiguously, so that
 * emitted code reaches everything at constant displacements from one register, and switching address
 * spaces is loading that register:
 *
 *   0x00000  struct vcpu                     shared
 *   KTLB     struct tlb_entry[TLB_K_SIZE]    shared: supervisor pages
 *   KJC      struct jc_entry[JC_K_SIZE]      shared
 *   KACJC    struct jc_entry[JC_KAC_SIZE]    shared
 *   KLOOP    struct loop_entries             shared
 *   KACTLB   struct tlb_entry[TLB_KAC_SIZE]  private
 *   UTLB     struct tlb_entry[TLB_U_SIZE]    private
 *   UJC      struct jc_entry[JC_U_SIZE]      private
 *   U32JC    struct jc_entry[JC_U32_SIZE]    private
 *   ULOOP    struct loop_entries             private
 *   UCODE    gla_t[CODE_NRS]                 private
 */
#pragma once
#include "engine/mode.h"
#include "engine/vcpu.h"

/*
 * In a loop that is one block, each access has a copy of the entry it used last at a place of its own: no index to compute, and
 * the operation does not wait for one. A copy goes (loops_clear in tlb.c) whenever any entry of its table changes or goes, so
 * whoever looks for a right in the tables finds it there. An unused copy matches nothing but addresses that are not
 * canonical, and then what it yields is not canonical either: the host's #GP is the guest's.
 */
#define NR_LOOP 31
struct loop_entry {
    u64 tag;          /* tag_r or tag_w, or TLB_NOWHERE */
    u64 host, delta;  /* host: TLB_NOWHERE while unused */
    u32 misses;       /* since `when` */
    u32 when;         /* TSC, in units of 256 */
};
/*
 * A stretch of linear addresses that lies in one piece in RAM, and that kernel code may read or write all of: a large page, or memory
 * while paging is off. Code outside 64-bit mode asks here first (own_extent() in tr_mem.c): no index, and no end of a page. An
 * extent goes when a copy would, but not when a TLB entry is thrown out: who looks for the right to write a page finds WTAG_MANY.
 */
struct extent {
    u64 start;        /* or TLB_NOWHERE */
    union {
        u64 host;     /* of `start`: extents for writing */
        u64 delta;    /* host address - linear address: for reading */
    };
    u64 limit;        /* an access of EXTENT_ACCESS bytes may begin this far behind `start`; 0 while unused */
    u16 misses;       /* since `when` */
    u16 moves;        /* how often it moved at once */
    u32 when;
};
enum { EXTENT_READ, EXTENT_WRITE, EXTENT_STACK, NR_EXTENT = 4 }; /* of the stack segment: EXTENT_STACK + EXTENT_READ or EXTENT_WRITE */
#define EXTENT_ACCESS 64u
#define EXTENT_FIRST 16u  /* misses before one is made */
#define EXTENT_MOVES 8u   /* then it is better off without the access that missed */
struct loop_entries {
    u32 used;         /* any copy or extent was made since the last clear */
    u32 pad[3];
    u64 low[2];       /* KLOOP: an extent for reading that starts at 0 (EXTENT_STACK: the second) ends here, an access begins below; else 0 */
    struct loop_entry entry[NR_LOOP];
    struct extent extent[NR_EXTENT]; /* KLOOP only */
};
#define TLB_NOWHERE (1ull << 62)
#define LOOP_MISSES 256u /* then C has a look whether this pays */

struct tlb_entry {
    u64 tag_r, tag_w; /* linear page, or the unused value */
    u64 host;         /* host address of the page         */
    u64 delta;        /* host - linear page               */
};
/* Jump cache: linear RIP to host code (a block's indirect entry). Unused: rip = JC_NONE. */
struct jc_entry {
    u64 rip;
    u64 host;
};
#define JC_NONE (1ull << 62 | 0xfff) /* not canonical: never a RIP */

/*
 * Where code pages are: pages of user code have numbers (cache.c), and a space knows of a number the linear page at which a
 * walk found that page executable. Links between pages ask here (edge.c). CODE_NOWHERE: not known.
 */
#ifdef TORTURE
#define CODE_NRS 32
#else
#define CODE_NRS 16384
#endif
#define CODE_NOWHERE 1ull /* is no page */

#ifdef TORTURE
#define TLB_K_BITS 3
#define TLB_KAC_BITS 3
#define TLB_U_BITS 3
#define TLB_UNUSED_BIT 4
#define JC_K_BITS 5
#define JC_KAC_BITS 4
#define JC_U_BITS 5
#define JC_U32_BITS 4
#else
#define TLB_K_BITS 13
#define TLB_KAC_BITS 7
#define TLB_U_BITS 14
#define TLB_UNUSED_BIT 32
#define JC_K_BITS 12
#define JC_KAC_BITS 8
#define JC_U_BITS 15
#define JC_U32_BITS 9
#endif
#define TLB_UNUSED(i) ((u64)((i) ^ TLB_UNUSED_BIT) << PAGE_SHIFT)
_Static_assert(1 << TLB_K_BITS > TLB_UNUSED_BIT && 1 << TLB_KAC_BITS > TLB_UNUSED_BIT && 1 << TLB_U_BITS > TLB_UNUSED_BIT, "TLB_UNUSED");
_Static_assert(TLB_K_BITS <= TLB_U_BITS && 1 << (TLB_U_BITS > 10 ? TLB_U_BITS - 10 : 0) <= TLB_UNUSED_BIT, "TLB_UNUSED, hashed");
#define TLB_ENTRY_SHIFT 5

#define VCPU_AREA 0x4000
#define OFF_KTLB VCPU_AREA
#define OFF_KJC (OFF_KTLB + 0x40000)
#define OFF_KACJC (OFF_KJC + 0x10000)
#define OFF_KLOOP (OFF_KACJC + 0x1000)
#define PART_SIZE (2ul << 20) /* the shared part, and each private one: a huge page, of which the shared one uses the start */
#define OFF_KACTLB (2 * PART_SIZE - 0x125000)
#define OFF_UTLB (OFF_KACTLB + 0x1000)
#define OFF_UJC (OFF_UTLB + 0x80000)
#define OFF_U32JC (OFF_UJC + 0x80000)
#define OFF_ULOOP (OFF_U32JC + 0x2000)
#define OFF_UCODE (OFF_ULOOP + 0x1000)
#define OFF_UWINDOW (OFF_UCODE + 0x20000)
#define WINDOW_ZEROS (8ul << 24) /* behind the table: its entries for what is no user address (window.h) */
#define SPACE_SIZE (2 * PART_SIZE + WINDOW_ZEROS)
#define NR_SPACES 8

/*
 * Which large pages a set holds pieces of: INVLPG ends the whole translation of one (SDM vol. 3 §4.10.4.1), and
 * its size cannot be asked for afterwards. Filters with false positives, emptied with their tables; 2 MiB pages
 * count as 4 MiB ones.
 */
#define BIG_SHIFT 22
#define HUGE_SHIFT 30
struct tlb_large {
    u64 big[128], huge[16];
};

/* Which entries of a table were filled since its last flush, so that flushing costs what was used. */
#define FILL_LOG_MAX 4096
struct fill_log {
    u32 n;                     /* beyond FILL_LOG_MAX: too many, flush the whole table */
    u16 index[FILL_LOG_MAX];
};
static inline void fill_note(struct fill_log *l, unsigned i)
{
    if (l->n < FILL_LOG_MAX)
        l->index[l->n] = (u16)i;
    l->n += l->n <= FILL_LOG_MAX;
}

struct window;
struct tlb_space {
    struct fill_log tlb_log[NR_SLOTS], jc_log[NR_SLOTS]; /* the kernel's: in space 0 */
    u16 code_log[CODE_NRS];      /* the numbers it may know a page for, each once: */
    u64 code_logged[(CODE_NRS + 63) / 64];
    u32 nr_code_log;
    u8 *base;     /* where [shared][private] is mapped; also a struct vcpu alias */
    u16 pcid;
    bool used;
    bool huge;    /* of space 0: the parts that are used are huge pages, where possible */
    bool made;    /* its tables hold what they must while unused: done when it is needed first */
    bool clean;   /* nothing was filled since the last flush */
    u64 last_use;
    struct tlb_large large;
    gpa_t cr3;             /* its page tables when it became current last */
    struct window *window; /* or NULL: it never had any */
};

struct tlb_geometry {
    u32 tlb_off, tlb_mask; /* mask in bytes: (entries - 1) << TLB_ENTRY_SHIFT */
    u32 jc_off, jc_mask;   /* mask in entries, times 2 */
};
extern const struct tlb_geometry tlb_geo[NR_SLOTS];

/* tlb_create - map the areas of one vCPU; returns its canonical struct vcpu (zeroed), or NULL. */
struct vcpu *tlb_create(void);
void tlb_destroy(struct vcpu *v);
/* tlb_slot - table index for an access: by ACC_USER/ACC_SYS, or the current AC. */
static inline unsigned tlb_slot(const struct vcpu *v, unsigned acc)
{
    if (acc & ACC_USER)
        return SLOT_U;
    return (acc & ACC_SYS) || !(v->eflags & EFL_AC) || !(v->cr4 & CR4_SMAP) ? SLOT_K : SLOT_KAC;
}
static inline struct tlb_entry *tlb_at(struct vcpu *v, unsigned slot, gla_t la)
{
    const struct tlb_geometry *g = &tlb_geo[slot];
    return (struct tlb_entry *)(v->space->base + g->tlb_off + ((la >> (12 - TLB_ENTRY_SHIFT)) & g->tlb_mask));
}

/*
 * Code that kept missing on conflicts (arrays a power of two apart) is translated again with another index:
 * page ^ page >> 10 instead of page. Same table, same tags: an entry is right for whoever finds it.
 */
#define HASH_SHIFT 10
static inline struct tlb_entry *tlb_at_hashed(struct vcpu *v, unsigned slot, gla_t la)
{
    return tlb_at(v, slot, la ^ (la >> HASH_SHIFT | la << (64 - HASH_SHIFT)));
}

struct tlb_ref {
    u8 *host;   /* host address of the byte; NULL: not RAM (MMIO or ROM write) */
    gpa_t gpa;  /* of the byte */
    bool watched; /* a write to a page that holds translations */
    bool evicted; /* another page's entry had to go */
};
/*
 * tlb_translate - walk for one access within a page, fill the TLB when the page allows it. ACC_HASHED: where
 * hashed code looks.
 * X_OK with *ref filled, or X_FAULT.
 */
enum xret tlb_translate(struct vcpu *v, gla_t la, unsigned acc, struct tlb_ref *ref);
/* tlb_note_writes - pages of RAM will be written by ways other than TLB entries: whoever claims one for translation finds that, or we
 * find the claim (wtag_note() in tlb.c says how). False: one has code. */
bool tlb_note_writes(struct vm *vm, struct ram_slot *rs, u64 idx, u64 nr);
/* extent_make - the extent that has `la` in it, if there is one worth while; kernel code may read it, or write it (acc). extent.c
 * extent_unwrite - forget those that let write host addresses; extent_clear - all. */
void extent_make(struct vcpu *v, struct extent *e, gla_t la, unsigned acc);
void extent_unwrite(struct vcpu *v, u64 host, u64 len);
void extent_clear(struct loop_entries *l);
/* tlb_note_large - code or data of a large page is remembered in a slot's tables. */
void tlb_note_large(struct vcpu *v, unsigned slot, gla_t la, u64 page_size);
/* tlb_unwrite_page - drop every write mapping of a page of RAM: it is about to hold translations. */
void tlb_unwrite_page(struct vcpu *v, struct ram_slot *slot, gpa_t page);
/* tlb_revoke_page - the same with several vCPUs: at once for the caller's and for those offline; the others are asked
 * (smp.h). vm->lock held.
 * tlb_unwrite_entry, tlb_unwrite_all - what they then do: one entry, or every one, that lets write a host page. */
void tlb_revoke_page(struct vcpu *v, struct ram_slot *slot, gpa_t page);
void tlb_unwrite_entry(struct vcpu *v, struct tlb_entry *e, u64 host);
void tlb_unwrite_all(struct vcpu *v, u64 host);
/* jc_at - jump-cache entry of a RIP in a mode. */
static inline struct jc_entry *jc_at(struct vcpu *v, unsigned slot, gla_t rip)
{
    const struct tlb_geometry *g = &tlb_geo[slot];
    return (struct jc_entry *)(v->space->base + g->jc_off + (((rip >> 12) ^ rip) & g->jc_mask) * 8);
}
/* jc_second - where the entry goes that another takes the place of: its neighbour. The stubs look there, code in line not. */
static inline struct jc_entry *jc_second(struct jc_entry *e) { return (struct jc_entry *)((u64)e ^ sizeof(*e)); }
/* jc_set - remember where a RIP's code is. */
void jc_set(struct vcpu *v, unsigned slot, gla_t rip, void *host);
/* tlb_note_code - user code page number nr was found at a linear page of the current space. With vm->lock held.
 * tlb_forget_code - the number is about to be another page's: nobody knows it. With vm->lock held. */
void tlb_note_code(struct vcpu *v, unsigned nr, gla_t page);
void tlb_forget_code(struct vm *vm, unsigned nr);
/* jc_flush - forget a slot's jump cache in the current space; jc_flush_all - everywhere. */
void jc_flush(struct vcpu *v, unsigned slot);
void jc_flush_all(struct vcpu *v);
void jc_flush_space(struct tlb_space *sp, unsigned slot);
