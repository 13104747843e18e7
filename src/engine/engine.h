/*
 * engine.h - the engine's inside, shared by its own files: the VM, blocks, the code cache, and what
 * emitted code calls. Embedders use include/libvitro.h.
 */
#pragma once
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include "engine/fpu.h"
#include "engine/mwait.h"
#include "engine/smp.h"
#include "engine/tlb.h"
#include "engine/turns.h"
#include "engine/vcpu.h"
#include "libvitro.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

struct cpu_model;
struct vm {
    struct ram ram;
    u64 *wtag[RAM_MAX_SLOTS]; /* per page, WTAG_WAYS: the TLB entries that may write it, 0, or WTAG_MANY in the first */
    struct engine_host host;
    struct vitro_pv pv;
    struct cpu_model *model;
    struct code_cache *cache;
    struct vcpu *vcpu[64];
    unsigned nr_vcpus;
    bool a20_off;             /* what the board wants; each vCPU follows (engine_a20) */
    unsigned debug;           /* VITRO_DEBUG_*, VITRO_TRACE_* */
    FILE *trace;
    u32 map_gen;              /* counts changes of what is behind an address */
    u32 outer_descriptors;    /* changes of GDTs: frame_segment() in outer.c */
    bool outer_differs;       /* vCPUs have different kernel halves: outer_span() in mmu.c */
    bool smp;                 /* more than one vCPU: the locks are taken, and smp.c's rules hold */
    pthread_mutex_t lock;     /* the code cache: its index, links, pages; held for short times, never while waiting */
    struct turns xl_lock;     /* who translates; taken where a vCPU may wait (smp.h) */
    struct xl *xl;            /* the translator's work area, under both */
    struct {
        u8 *area;             /* WINDOW_AREA bytes, once there are windows (window.h) */
        u64 slots;            /* in use, a bit each */
        u32 mappings;
        bool off;             /* this RAM, or this host, cannot have them */
        bool no_huge;         /* the host takes too long to make huge pages, */
        u64 huge_cycles, nr_huge; /* that is, so much for so many */
        u32 fill_cycles;      /* what mapping pages takes the host, of late */
    } windows;
    unsigned next_loop;       /* numbers copies of TLB entries (tr_mem.c) */
    gpa_t claim[2];           /* pages being translated from, under both */
    unsigned nr_claims;
    u32 revoked;              /* counts smp_revoke() */
    struct smp_store { struct vcpu *by; gpa_t gpa; u32 len; } store[64]; /* smp_note_stores, under both */
    unsigned nr_stores;
    u32 bus;                  /* a locked instruction that is not one access of the host's is under way (smp_bus_lock) */
    /* What devices wrote over translated code; vCPUs drop those translations at their next event poll. */
    struct {
        pthread_mutex_t lock;
        struct { gpa_t gpa; u32 len; } range[256]; /* each within a page */
        unsigned nr;          /* above ARRAY_SIZE: too many to remember, everything goes */
    } written;
    u64 stopped_tsc;          /* host TSC when the guest's clocks were stopped; 0: they run */
};
#define WTAG_MANY 1ull
void engine_lock_contended(struct vm *vm);
static inline void engine_lock(struct vm *vm)
{
    if (vm->smp && pthread_mutex_trylock(&vm->lock))
        engine_lock_contended(vm);
}
static inline void engine_unlock(struct vm *vm)
{
    if (vm->smp)
        pthread_mutex_unlock(&vm->lock);
}

/* -- Blocks --------------------------------------------------------------------------------------- */

/* Where control enters a block; see translate.c for the layout. Offsets from block->code. */
enum block_entry {
    ENTRY_IND,  /* s1 = RIP; flags in vcpu->fl; sets vbase, polls events */
    ENTRY_POLL, /* backward edges: flags in vcpu->fl or dead             */
    ENTRY_FLAG, /* flags in vcpu->fl                                     */
    ENTRY_HOST, /* flags in host flags                                   */
    ENTRY_HOST_POLL, /* backward edges: flags in host flags              */
    NR_ENTRIES
};

struct block {
    /* what a look-up reads: one cache line */
    struct block *hash_next;  /* chain of cache->hash               */
    gpa_t page;               /* guest-physical page of its first byte */
    gpa_t page2;              /* of its last byte, when it crosses; else ~0 */
    gla_t fixed;              /* its linear page, when the code holds linear addresses (kernel half); or its place in a code
                                 segment that is not flat (segment_key in run.c, bit 63 clear); else 0 */
    u32 mode;
    u16 off, end;             /* guest bytes [off, end) in the page; end may exceed 4096 */
    u8 *code;                 /* executable alias: hot code */
    u64 runs;                 /* dispatcher entries, for stats */
    u32 entry[NR_ENTRIES];    /* ENTRY_IND is still in that line */
    /* the rest */
    struct block *page_next;  /* chain of the code page             */
    struct block *page2_next; /* chain of the second page, if any   */
    u16 look[2][2];           /* bytes looked at for flag liveness: [lo, hi) twice */
    u32 hot_len, cold_len;    /* at code, and at cold */
    u8 *cold;                 /* slow paths, exits, records: far from what runs */
#define POLL_IMM 4            /* the byte behind ENTRY_POLL that kills a block: `cmp dword [event], imm8` */
    bool host_primary;        /* the body starts with flags in host flags (else in fl) */
    bool dead;
    bool hashed;              /* guards use the hashed TLB index */
    u8 conflicts;             /* misses that evicted another page, since conflict_tsc */
    u64 conflict_tsc;
    u16 nr_insns;
    u16 code_nr;              /* its page's number, for links from other pages; 0: none */
    bool is_edge;             /* no guest code: such a link (edge.c). `dead`: nothing may be linked to it */
    struct edge *edges;       /* links from other pages that lead here */
    u32 *map;                 /* [nr_insns] MAP_FLAGS_HOST | host offset << 12 | guest offset - off, ascending; then
                                 [nr_insns] where each instruction's cold code starts (from b->cold, plus hot_len) */
    struct inbound *inbound;  /* direct jumps linked to it (cache.c) */
    struct recipe *recipe;    /* what it was made from, where code is written again and again; else NULL (recipe.c) */
};

/*
 * The bytes a block was made from, and where its code holds their immediate operands: if it is dropped and the place holds the
 * same instructions again, perhaps with other immediates, then its code is corrected instead of being made again.
 */
#define RECIPE_SPAN 256       /* bytes of a page that it may depend on */
#define RECIPE_IMMS 12
struct recipe {
    u16 lo, len;              /* bytes [lo, lo + len) of the page, */
    u8 exact[RECIPE_SPAN / 8]; /* of which these (bit i: byte lo + i) must be the same; the others are immediates, or not looked at */
    u8 nr_imms;
    struct recipe_imm {
        u16 off;              /* page offset of the immediate */
        u8 size;              /* 1, 2, 4 or 8 bytes */
        u32 at;               /* where the hot code has it */
    } imm[RECIPE_IMMS];       /* ascending */
    u8 bytes[];
};

#define MAP_FLAGS_HOST 0x80000000u /* the instruction finds the arithmetic flags in host flags */
#define MAP_HOST(m) ((m) >> 12 & 0x7ffffu)
/* ... of the second half: host offset of cold code, and how far RSP is from its host register then, in eights (xl.lag) */
#define MAP_COLD(m) ((m) & 0xffffffu)
#define MAP_LAG(m) (((s32)(m) >> 24) * 8)

/* -- What cold code hands to C: one record behind each call into a stub ----------------------------- */

struct site {              /* every record starts like this; records are not aligned */
    u16 off;               /* page offset of the guest instruction */
    u8 len;                /* its length */
    u8 kind;
} __attribute__((packed));
struct slow_site {         /* behind `call stub_slow; jmp resume` */
    struct site s;         /* kind: through the stack segment */
    u16 size;              /* bytes of the access */
    u8 acc : 2;            /* ACC_R | ACC_W */
    u8 form : 1;           /* FORM_*: how the operation uses s1 and s2 */
    u8 final : 1;          /* after the operation the instruction is complete */
    u8 copy : 1;           /* the operation follows this record, for a bounced write */
    u8 slot : 2;           /* enum mode_slot */
    u8 hashed : 1;         /* looked at the hashed index */
    u8 masked : 1;         /* lanes may be off: EVEX with an opmask, VMASKMOV */
    u8 aligned : 1;        /* the operation raises #GP if misaligned */
    u8 loose : 1;          /* no #AC: aligned, or a VMASKMOV */
    u8 locked : 1;         /* LOCK, or XCHG with memory */
    u8 group;              /* shared check: how many instructions it covers (0: not shared) */
    s32 loop;              /* its copy of a TLB entry, or its extent, from r14 on; 0: it has none (tlb.h) */
    bool extent;
} __attribute__((packed));
struct group_site {        /* the record of a shared check */
    struct slow_site s;
    u32 alt_gen;           /* its unshared translation, once one was needed; under vm->lock */
    struct block *alt;
    s32 alt_off;           /* its code, from this record on */
} __attribute__((packed));
enum { FORM_SUM /* [s1 + s2]: page offset + host page */, FORM_DELTA /* [EA + s2] */ };
struct sys_site {
    struct site s;
    struct insn in;
    enum xret (*handler)(struct vcpu *v, const struct insn *in);
};
struct link_site {
    struct site s;         /* off: target's page offset; kind: the enum block_entry the edge wants */
#define LINK_MODE 0x80u    /* in kind: the edge goes to another mode */
#define LINK_FAR 0x40u     /* in kind: to another page, at a fixed linear address */
#define LINK_PAGE 0x20u    /* in kind: to another page, wherever it is mapped (edge.c): struct page_site */
    s32 patch;             /* from behind this member to the rel32 to patch */
} __attribute__((packed));
#define LINK_STUB_LEN 12   /* lea s1, site; jmp stub_link_*: right before the record; where a branch that is not linked leads */
struct page_site {         /* the way by the jump cache is behind it */
    struct link_site link;
    s32 page;              /* how many pages on */
    u8 links;              /* how often it was linked; under vm->lock */
#define PAGE_LINKS_MAX 4   /* then its target changes all the time, and the jump cache is cheaper */
} __attribute__((packed));
/* -- Per-vCPU engine state ------------------------------------------------------------------------- */

struct commit {            /* a bounced write waiting for its operation */
    gla_t ea;
    bool redispatch;       /* the running block was overwritten: leave it afterwards */
    u8 nr;                 /* pieces */
    u8 *from;              /* in the bounce buffer */
    struct {
        u8 *host;          /* NULL: MMIO */
        gpa_t gpa;
        u16 len;           /* 0: masked off, `skip` bytes of the buffer are not written */
        u16 skip;
    } part[2];
};

#define MAX_BREAK 32
struct watch {
    gla_t la;
    u32 len;
    u32 kind;
};

struct engine_vcpu {
    struct tlb_space space[NR_SPACES];
    u64 space_clock;
    u32 map_seen;          /* vm->map_gen at the last look */
    bool k_nonglobal;      /* the shared kernel table, or its jump caches, holds a page that is not global, and not in k_local */
    struct outer_segment { struct seg s; u32 descriptors; bool code; } outer_segment[8]; /* outer.c: found in the GDT */
    u32 outer_known[2];    /* outer.c: by what outer_descriptors (plus 1) the segments of the kernel, of user code are known */
    struct fill_log k_local; /* entries of the shared kernel table that are of pages of one address space */
    struct tlb_large k_large; /* of the shared kernel table and its jump caches */
    u64 code_seen[2][1024]; /* filters: pages entered as code, by the kernel and by user code */
    u8 user_slot;          /* SLOT_U or SLOT_U32: whose returns the user's prediction stack holds */
    struct cs_id { u32 base, limit, tag; } cs_id[256]; /* v->cs_tag's numbers */
    u32 cs_tags;
    u32 jc_mode[NR_SLOTS]; /* full mode the jump caches were filled for */
    struct commit commit;
    bool outer_copies;     /* C writes guest memory for struct vitro_outer (outer.c) */
    enum { STORE_DONE, STORE_REFUSED, STORE_AGAIN } store; /* what its mmio_write said of one (vitro_vcpu_refuse_store, ..._again) */
    const u8 *store_before; /* what the instruction found where mmio_write is to write; NULL: it did not look */
    struct { u64 regs[NR_GPR]; u16 fl; } before_store; /* the registers it found, of a bounced one that may not be done */
    u8 *alt_stack;         /* for signals */
    stack_t old_alt;
    u8 *hstack;            /* return-prediction stacks: [guard][user][guard][kernel] */
    /* The page with translations that was written last: writes beside its code need no walk. Any flush forgets it. */
    struct { gla_t page; u8 *host; gpa_t gpa; u8 slot; bool valid; } watched;
    struct smp_vcpu smp;   /* what other vCPUs may know and ask (smp.h) */
    struct mwait_vcpu mwait;
    u8 bounce[192] __attribute__((aligned(64)));
    struct fpu_aside fpu_aside;
    u8 before[128];        /* what the operation found there */
    u8 *masked_pages;      /* bounce pages for masked accesses that fault: [none][read, write][none][none] */
    u8 *masked_at;         /* where in them, */
    gla_t masked_ea;       /* for which address, */
    unsigned masked_first; /* how much of it in its first page, */
    struct exc masked_exc[2]; /* and what to raise if a lane that is on touches the absent bytes of either page */
    /* debugger */
    gla_t brk[MAX_BREAK];
    unsigned nr_brk;
    struct watch watch[MAX_BREAK];
    unsigned nr_watch;
    u64 watch_hit;
    bool single_step;
    bool stepped;          /* an instruction ran since the debugger asked for one */
    bool step_armed;       /* TF was set when the running instruction began: #DB after it */
    bool shadow_step;      /* one instruction is run alone under an interrupt shadow */
    bool smc_hit;          /* a helper wrote over translated code */
    u64 db_hit;            /* DR6 bits of data breakpoints hit by the running instruction */
    bool brk_skip;         /* resume past the breakpoint under RIP */
    u64 brk_skip_rip;
    /* stats */
    /* Unshared translations found lately, by site. No lock: only this vCPU has them, and what a generation still vouches for
     * cannot be reclaimed before this vCPU's next safepoint. */
    struct unshared { const struct group_site *site; struct block *block; u8 *code; u32 site_gen, gen; } unshared[64];
    unsigned noshare_insns; /* how many the unshared translation being made is to cover */
    bool soft_step;        /* the next instruction is done alone, with checks of its own instead of windows */
    u64 soft_rip;
    bool window_fault;     /* v->exc is what a window's page was refused with */
    struct { bool valid, write; gla_t la; u64 rip; struct tlb_space *space; } refused; /* where: tried again before its instruction is */
    bool no_extents;       /* this paged kernel's memory is not in few large pieces */
    u64 nr_windows, nr_window_fills, nr_window_steps;
    u64 nr_noshare, nr_evicted;
    u64 nr_dispatch, nr_lookup, nr_link, nr_poll, nr_ret_miss, nr_commit, nr_watched, nr_fault_signal;
};

/* vcpu->cs_tag of a code segment as real mode has them: base 16 times the selector, 64 KiB, 16-bit. Others have numbers below. */
#define PARAGRAPH_TAG(sel) ((u64)((sel) | 1u << 24) << 32)

static inline unsigned code_seen_hash(gla_t page)
{
    return (unsigned)((page >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 48);
}

#define HSTACK_GUARD (64u << 10)
#define HSTACK_HALF (HSTACK_GUARD + (256u << 10))
#define MASKED_SIZE (4 * PAGE_SIZE)
struct engine_vcpu *engine_vcpu_alloc(void);
void engine_vcpu_free(struct engine_vcpu *ev);
/* engine_drop_returns - forget all return predictions: mappings of code may have changed. */
void engine_drop_returns(struct vcpu *v);
/* engine_drop_user_returns - of user code only: the kernel's mappings are as they were. */
void engine_drop_user_returns(struct vcpu *v);
/* engine_select_returns - those of user code, or of the kernel. */
void engine_select_returns(struct vcpu *v, unsigned user);

/* -- Code cache (cache.c) --------------------------------------------------------------------------- */

struct code_cache *cache_create(struct vm *vm, size_t bytes);
void cache_destroy(struct code_cache *c);
/* cache_find - translation of a guest-physical address in a mode (at a linear page, if fixed), or NULL. */
struct block *cache_find(struct code_cache *c, gpa_t gpa, u32 mode, gla_t fixed);
/* cache_starts - where in a page blocks begin, perhaps: a bit for each byte, or NULL. */
const u64 *cache_starts(struct code_cache *c, gpa_t page);
/* cache_reserve - room for a block: where its hot code will run, *cold for the rest. NULL: it is absurdly long, or
 * (cache_wants_room) with several vCPUs the oldest segment must be reclaimed first, by smp_make_room.
 * Written through cache_rw, up to the next multiple of 8. With one vCPU this may reclaim old blocks. */
u8 *cache_reserve(struct vcpu *v, struct code_cache *c, size_t hot_len, size_t cold_len, u8 **cold);
/* block_holds - is pc in the block's code? block_offset - where: hot code from 0, cold code from hot_len. */
static inline bool block_holds(const struct block *b, const u8 *pc)
{
    return (pc >= b->code && pc < b->code + b->hot_len) || (pc >= b->cold && pc < b->cold + b->cold_len);
}
static inline u32 block_offset(const struct block *b, const u8 *pc)
{
    return pc >= b->cold && pc < b->cold + b->cold_len ? (u32)(pc - b->cold) + b->hot_len : (u32)(pc - b->code);
}
bool cache_wants_room(const struct code_cache *c);
/* cache_retire - take every block of the next segment out of use; whoever runs one may go on until it is reclaimed.
 * cache_reuse - no vCPU runs its code or remembers it: begin to fill it. Both with vm->lock held. */
void cache_retire(struct code_cache *c);
void cache_reuse(struct code_cache *c);
u64 cache_reclaims(const struct code_cache *c);
/*
 * cache_claim - before the bytes of a page are read for translation: from now on writes to it are seen. True: they were
 * not before, so the caller sees to write access there is. cache_claimed - is it?
 * cache_unclaim - the translation was made, or not.
 */
bool cache_claim(struct code_cache *c, gpa_t page);
bool cache_claimed(struct code_cache *c, gpa_t page);
void cache_unclaim(struct code_cache *c, gpa_t page);
/* block_overlaps - was the block made from, or looked it at, any byte of [gpa, gpa+len)? */
bool block_overlaps(const struct block *b, gpa_t gpa, unsigned len);
/* cache_insert - publish a finished block. */
void cache_insert(struct vcpu *v, struct code_cache *c, struct block *b);
/* cache_meta - zeroed bookkeeping memory that lives as long as the code reserved last. */
void *cache_meta(struct code_cache *c, size_t len);
/* cache_generation - changes when the segment that holds pc is reclaimed. */
u32 cache_generation(struct code_cache *c, const u8 *pc);
/* cache_link - make the rel32 at `patch` jump to an entry of `to`. False: no room to remember it. */
bool cache_link(struct code_cache *c, u8 *patch, struct block *to, unsigned entry, bool far);
/* cache_reserve_edge - room for up to `len` bytes of code that is no guest's, in the segment being filled; NULL: not now.
 * *block: what stands for it, with empty bookkeeping. cache_meta_at - zeroed memory that lives as long as the code at pc;
 * NULL: there is no more. cache_link_edge - cache_link to an edge's code that leads to `to`: undone with either. */
u8 *cache_reserve_edge(struct code_cache *c, unsigned len, struct block **block);
void *cache_meta_at(struct code_cache *c, const u8 *pc, size_t len);
bool cache_link_edge(struct code_cache *c, u8 *patch, struct block *edge, struct block *to);
/* edge_link - make the rel32 at `patch`, in user code `page` pages before, lead to an entry of `to` where that is mapped
 * `page` pages on, and by the jump cache elsewhere. @host: flags come in host flags. False: not possible. edge.c */
bool edge_link(struct code_cache *c, u8 *patch, struct block *to, s32 page, enum block_entry entry, bool host);
/* cache_cut_far - undo all links between pages: a global mapping of code may have changed. Takes vm->lock.
 * cache_far_near - may a link lead into the same 4 MiB as a linear address, or to a page of 1 GiB? */
void cache_cut_far(struct code_cache *c);
bool cache_far_near(const struct code_cache *c, gla_t la);
/* cache_far_huge - a link may lead to a page of 1 GiB. With vm->lock held. */
void cache_far_huge(struct code_cache *c);
/* cache_patch32 - overwrite 4 bytes of code that may be running (aligned within 8). */
void cache_patch32(struct code_cache *c, u8 *at, u32 value);
/* cache_gap - the bytes of a page around gpa that no translation has to do with: [*lo, *hi), empty if one has with this byte. */
void cache_gap(struct code_cache *c, gpa_t gpa, unsigned *lo, unsigned *hi);
/* cache_touches - is any translation made from bytes in [gpa, gpa+len)? Within a page. */
bool cache_touches(struct code_cache *c, gpa_t gpa, unsigned len);
/* cache_kill_range - a write to guest-physical [gpa, gpa+len): drop the blocks made from those bytes.
 * Returns whether the block holding host code `pc` (may be NULL) is among them. */
bool cache_kill_range(struct vcpu *v, struct code_cache *c, gpa_t gpa, unsigned len, const u8 *pc, bool *any_left);
/* cache_want, cache_wants - how accesses are checked from the next translation on. A filter: now and then more
 * code than was asked for. */
enum code_want { WANT_HASHED /* the hashed TLB index */, WANT_NO_COPY /* no copy of a TLB entry; by instruction */, WANT_RECIPE /* it was overwritten */,
                 NR_WANTS };
void cache_want(struct code_cache *c, gpa_t gpa, u32 mode, enum code_want what);
bool cache_wants(const struct code_cache *c, gpa_t gpa, u32 mode, enum code_want what);
/* cache_kill_block - drop one block. */
void cache_kill_block(struct code_cache *c, struct block *b);
/* cache_asleep - a dropped block that has a recipe, and the same key; or NULL. cache_wake - its code is right again: publish it. */
struct block *cache_asleep(struct code_cache *c, gpa_t gpa, u32 mode, gla_t fixed);
void cache_wake(struct vcpu *v, struct code_cache *c, struct block *b);
/* cache_block_at - block that holds an executable address, or NULL. */
struct block *cache_block_at(struct code_cache *c, const u8 *pc);
bool cache_contains(const struct code_cache *c, const u8 *pc);
u8 *cache_stub(struct code_cache *c, unsigned nr);
/* cache_rw - writable alias of an executable address. */
u8 *cache_rw(struct code_cache *c, u8 *rx);
void cache_stats(struct code_cache *c, FILE *out, const char *(*symbol)(void *, u64), void *opaque);
/* cache_flush - drop everything. With vm->lock held. */
void cache_flush(struct vcpu *v, struct code_cache *c);

/* -- Translator (translate.c) -------------------------------------------------------------------------- */

/* translate_block - make a block for v->rip (fetching through the guest's page tables); caller holds vm->lock.
 * X_OK with *out, or X_FAULT (#PF on the fetch, ...). X_RETRY, with several vCPUs only: something must be done
 * first that needs waiting for others (smp_prepare). */
enum xret translate_block(struct vcpu *v, gla_t fixed, struct block **out);

/* -- Entered from emitted code (run.c, slow.c); the return value says where to go on ------------------- */
enum { RESUME = 0, DISPATCH = 1, PROBE = 2 /* engine_sys: what is at v->rip, by the jump cache */ };
u64 engine_slow(struct vcpu *v, const struct slow_site *site);
u64 engine_commit(struct vcpu *v, const struct slow_site *site);
u64 engine_sys(struct vcpu *v, const struct sys_site *site);
/* engine_unshared - code that does the `site->group` instructions at v->rip with a check each, flags in fl; NULL: a
 * fault was delivered. run.c */
void *engine_unshared(struct vcpu *v, const struct group_site *site);
u64 engine_poll(struct vcpu *v, const struct site *site);
void *engine_lookup(struct vcpu *v, u64 rip);
void *engine_link(struct vcpu *v, const struct link_site *site);
/* engine_dispatch - the loop's heart: events, then the code for v->rip; NULL to leave vcpu_run. */
void *engine_dispatch(struct vcpu *v);

/* -- stubs.S ------------------------------------------------------------------------------------------- */
enum stub {
    STUB_SLOW, STUB_COMMIT_HOST, STUB_COMMIT_SAVED, STUB_SYS, STUB_POLL, STUB_LINK_HOST, STUB_LINK_SAVED,
    STUB_LOOKUP, STUB_DISPATCH_AT, STUB_PROBE_K, STUB_PROBE_KAC, STUB_PROBE_U, STUB_PROBE_U32,
    STUB_LOOP_KR, STUB_LOOP_KW, STUB_LOOP_UR, STUB_LOOP_UW, STUB_EXTENT_R, STUB_EXTENT_W,
    STUB_RET_EMPTY, STUB_SYSCALL, STUB_SYSRET, STUB_MOVS, STUB_MOVS_32, STUB_STOS, STUB_STOS_32,
    STUB_MOVS_VECTOR, STUB_MOVS_32_VECTOR, STUB_STOS_VECTOR, STUB_STOS_32_VECTOR, NR_STUBS
};
extern const void *const stub_table[NR_STUBS];
/* engine_run - until v->exit; the guest's vector state is loaded. */
void engine_run(struct vcpu *v);
/* enter_code - run emitted code until engine_dispatch says NULL. */
void enter_code(struct vcpu *alias, void *code);
extern const char stub_fault[], stub_window[];
/* engine_window - emitted code could not reach memory through a window. Called by stub_window. */
void engine_window(struct vcpu *v);
/* engine_insn_at - the 64-bit instruction at a linear address. False: its bytes cannot be read, or are none. */
bool engine_insn_at(struct vcpu *v, u64 at, struct insn *in);
/* engine_fault - a host exception hit emitted code: v->exc is set. Called by stub_fault. */
void engine_fault(struct vcpu *v);

/* engine_guest_pc - if `host` lies in the code cache: true, and the RIP of the x87 instruction it came from, or 0 if that
 * is gone. fault.c */
bool engine_guest_pc(struct vcpu *v, u64 host, u64 *rip);
/* tlb_guest_address - if `host` is an address emitted code may reach: true, and the linear address the current TLB
 * has for it, or 0. tlb.c */
bool tlb_guest_address(struct vcpu *v, u64 host, gla_t *la);

/* engine_drop_written - drop what translations there are of the bytes devices wrote. dma.c */
void engine_drop_written(struct vcpu *v);
/* engine_kill_code - of a slot that goes, or becomes other memory; vm->lock held. engine_remapped - every vCPU is to see it; gives that
 * lock up. remap.c */
void engine_kill_code(struct vm *vm, const struct ram_slot *rs);
void engine_remapped(struct vm *vm);
/* engine_see_remap - flush this vCPU's TLB if memory was exchanged since the last time. remap.c */
/* engine_kill_code - of a slot that goes, or becomes other memory; vm->lock held. engine_remapped - every vCPU is to see it; gives the lock up. */
void engine_kill_code(struct vm *vm, const struct ram_slot *rs);
void engine_remapped(struct vm *vm);
void engine_see_remap(struct vcpu *v);

/* -- Signals (fault.c) ----------------------------------------------------------------------------------- */
int fault_thread_init(struct vcpu *v);
void fault_thread_fini(struct vcpu *v);

/* vcpu_fail - something no definition covers: stop the VM with a reason. First message wins. */
void vcpu_fail(struct vcpu *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* engine_copy - memcpy that stays out of the vector registers. 1, 2, 4 and 8 bytes are one access; no byte is stored twice,
 * as another vCPU may look. */
static inline void engine_copy(void *dst, const void *src, size_t n)
{
    if (n <= 64) { /* rep takes some 30 cycles to start */
        u8 *d = dst;
        const u8 *s = src;
        for (; n >= 8; n -= 8, d += 8, s += 8)
            __builtin_memcpy(d, s, 8);
        if (n & 4) {
            __builtin_memcpy(d, s, 4);
            d += 4, s += 4;
        }
        if (n & 2) {
            __builtin_memcpy(d, s, 2);
            d += 2, s += 2;
        }
        if (n & 1)
            *d = *s;
        return;
    }
    u64 t;
    switch (n) { /* one access, so that an aligned one is atomic */
    case 1: __asm__ volatile("movb (%1), %b0\n\tmovb %b0, (%2)" : "=&r"(t) : "r"(src), "r"(dst) : "memory"); return;
    case 2: __asm__ volatile("movw (%1), %w0\n\tmovw %w0, (%2)" : "=&r"(t) : "r"(src), "r"(dst) : "memory"); return;
    case 4: __asm__ volatile("movl (%1), %k0\n\tmovl %k0, (%2)" : "=&r"(t) : "r"(src), "r"(dst) : "memory"); return;
    case 8: __asm__ volatile("movq (%1), %q0\n\tmovq %q0, (%2)" : "=&r"(t) : "r"(src), "r"(dst) : "memory"); return;
    }
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n)::"memory");
}
static inline void engine_zero(void *dst, size_t n)
{
    __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(0) : "memory");
}
/* mem_watch_check - note data breakpoints and watchpoints an access touches. slow.c */
void mem_watch_check(struct vcpu *v, gla_t la, unsigned len, unsigned acc);

/* -- Trace ------------------------------------------------------------------------------------------------ */
void engine_trace_print(struct vcpu *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* engine_trace - the arguments are evaluated only when traced. */
#define engine_trace(v, what, ...) \
    do { \
        if (unlikely((v)->vm->debug & (what))) \
            engine_trace_print((v), __VA_ARGS__); \
    } while (0)
