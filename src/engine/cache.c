/*
 * cache.c - the code cache: memory for emitted code, the index of blocks, dropping and reclaiming.
 *
 * One memfd, mapped twice: where code runs (read, execute) and where it is written (read, write). It is
 * split into NR_SEGMENTS segments filled in turn; when the last is full the oldest is reclaimed alone: links
 * into it from other segments are cut, jump caches that point into it are cleaned, and its blocks
 * leave the index. Nothing else is flushed.
 *
 * A block dropped because its bytes were written (cache_kill_range) stays in memory until its segment
 * is reclaimed: links to it are undone, and its event poll is made to leave always, so that jump caches need not be
 * searched. Both are stores of one naturally aligned piece: another vCPU that runs the code sees the old
 * instruction or the new one.
 *
 * Threads: everything under vm->lock, but what says otherwise and cache_block_at for code that the caller runs.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "engine/emit.h"

#ifdef TORTURE
#define NR_SEGMENTS 2
#define SEGMENT_SIZE (64u << 10)
#else
#define NR_SEGMENTS 8
#define SEGMENT_SIZE (24u << 20)
#endif
#define HUGE_PAGE (2u << 20)
#define STUB_AREA HUGE_PAGE /* little of it is used, but segments start at a huge page's boundary */
#define HUGE_AFTER (256u << 10) /* bytes used of a huge page before it is made one: small guests need none, and it takes 2 ms */
#define MANY_BLOCKS 16384 /* then the tables of blocks are worth huge pages, too */
#define HASH_BITS 18
#define HASH_SIZE (sizeof(struct block *) << HASH_BITS) /* a huge page */
#define PAGE_HASH_BITS 14
#define ASLEEP_BITS 13
#define RECIPE_PLACES 4096 /* then the filter begins anew: a place is asked about right after it was noted */
#define MAX_CODE_PAGES (1u << 20)
#define MAX_FAR (1u << 18)

/* A direct jump linked to a block; kept with the block's bookkeeping. */
struct inbound {
    struct inbound *next;
    u8 *patch;     /* the rel32                                       */
    u32 back;      /* what it was before: the way to the link stub    */
    u32 src_gen;   /* generation of the source's segment when linked  */
};
struct segment {
    u8 *start, *end;       /* executable alias */
    u8 *cur, *cold;        /* hot code fills it upwards, cold code downwards */
    u8 *huge;              /* huge pages were asked for below this */
    u32 gen;
    u8 *meta, *meta_cur;   /* blocks and their maps */
    struct block **blocks; /* ascending by code address */
    struct { u32 hot, cold; } *at; /* where the code of each is, from `start`: what a search reads */
    struct { u32 hot, cold; } *first; /* by PAGE_SIZE of it: the first block whose code begins there, plus one */
    u32 nr_blocks;
};
struct code_page {
    struct code_page *next;
    gpa_t page;
    struct block *blocks;  /* through page_next, or page2_next for those that end here; oldest first */
    struct block **tail;
    u64 bytes[PAGE_SIZE / 64];  /* what blocks were made from, or looked at (superset: block_overlaps() is right) */
    u64 starts[PAGE_SIZE / 64]; /* where blocks began, of any mode (superset) */
    u32 claims;            /* a translation of it is being made (smp.c) */
    u16 nr;                /* its number, while user code of it is translated; 0: none (edge.c) */
};
struct code_cache {
    struct vm *vm;
    size_t size;
    size_t seg_size;
    u8 *rx;                /* stubs, then the segments */
    s64 to_rw;             /* add to an executable address */
    struct segment seg[NR_SEGMENTS];
    unsigned cur;
    bool wants_room;       /* the next segment must be reclaimed, and vCPUs waited for */
    u64 reclaims;          /* segments taken out of use */
    struct block **hash;
    struct block *asleep[1u << ASLEEP_BITS]; /* dropped, with a recipe: chains by block hash; one of each key */
    struct code_page *page_hash[1u << PAGE_HASH_BITS];
    struct code_page *page_pool;
    u32 nr_pages;
    struct code_page *page_free;
    gpa_t nr_page[CODE_NRS]; /* which page has a number, or had it last */
    u16 free_nr[CODE_NRS]; /* numbers no page has */
    u32 nr_free_nr;
    struct inbound *far;   /* links between pages, by address only */
    u32 nr_far;
    u64 far_region[8];     /* where they lead: 4 MiB pieces of the top 2 GiB */
    bool far_huge;         /* ... to a page of 1 GiB, perhaps */
    u64 wants[NR_WANTS][256]; /* filters by block hash */
    u32 nr_recipe_places;
    u64 nr_made, nr_killed, nr_woken, nr_reclaimed, nr_links, bytes_guest;
};

#define META_SIZE(c) (2 * (c)->seg_size)
#define META_SLACK 8192 /* a block's own bookkeeping always fits */

static void *reserve(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

u8 *cache_rw(struct code_cache *c, u8 *rx)
{
    return rx + c->to_rw;
}
u8 *cache_stub(struct code_cache *c, unsigned nr)
{
    return c->rx + nr * 16;
}
bool cache_contains(const struct code_cache *c, const u8 *pc)
{
    return pc >= c->rx && pc < c->rx + c->size;
}

/* All of a file (-1: memory), at a multiple of HUGE_PAGE; NULL if there is no room. */
static u8 *map_aligned(int fd, size_t size, int prot)
{
    int kind = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
    u8 *area = mmap(NULL, size + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return NULL;
    u8 *at = (u8 *)(((u64)area + HUGE_PAGE - 1) & ~(u64)(HUGE_PAGE - 1));
    if (at > area)
        munmap(area, (size_t)(at - area));
    if (at < area + HUGE_PAGE)
        munmap(at + size, (size_t)(area + HUGE_PAGE - at));
    return mmap(at, size, prot, kind | MAP_FIXED, fd, 0) == MAP_FAILED ? NULL : at;
}

/*
 * Hot code on huge pages: translated code is large, and instruction TLB misses are a good part of what that costs.
 * Both mappings show the same file, so W^X stays. A host that cannot (before Linux 6.1, or no memory in one piece) leaves
 * small pages, which are as right.
 */
static void want_huge(struct code_cache *c, struct segment *s)
{
    u8 *end = MIN(s->huge + HUGE_PAGE, s->end);
    if (end - s->huge == HUGE_PAGE && madvise(cache_rw(c, s->huge), PAGE_SIZE, MADV_POPULATE_WRITE) == 0 &&
        madvise(cache_rw(c, s->huge), HUGE_PAGE, MADV_COLLAPSE) == 0)
        madvise(s->huge, HUGE_PAGE, MADV_COLLAPSE);
    s->huge = end;
}

/* So is what is known of blocks, once there are many. */
static void want_huge_tables(struct code_cache *c)
{
    madvise(c->hash, HASH_SIZE, MADV_COLLAPSE);
    madvise(c->page_pool, MAX_CODE_PAGES * sizeof(*c->page_pool), MADV_HUGEPAGE);
    madvise(c->far, MAX_FAR * sizeof(*c->far), MADV_HUGEPAGE);
}

struct code_cache *cache_create(struct vm *vm, size_t bytes)
{
    struct code_cache *c = reserve(sizeof(*c));
    if (!c)
        return NULL;
    c->vm = vm;
    c->seg_size = SEGMENT_SIZE;
    if (bytes && bytes / NR_SEGMENTS >= (64u << 10))
        c->seg_size = (bytes / NR_SEGMENTS) & ~4095ull;
    c->size = STUB_AREA + NR_SEGMENTS * c->seg_size;
    int fd = memfd_create("vitro-code", MFD_CLOEXEC);
    if (fd < 0)
        goto fail;
    if (ftruncate(fd, (off_t)c->size) < 0)
        goto fail_fd;
    u8 *rw = map_aligned(fd, c->size, PROT_READ | PROT_WRITE);
    c->rx = map_aligned(fd, c->size, PROT_READ | PROT_EXEC);
    if (!rw || !c->rx)
        goto fail_fd;
    c->to_rw = rw - c->rx;
    close(fd);
    /* Stubs: jmp [rip + 2]; .quad target: emitted code reaches them by rel32 wherever the program is. */
    for (unsigned i = 0; i < NR_STUBS; i++) {
        struct buf b = { .p = rw + i * 16, .start = rw, .end = rw + STUB_AREA };
        e8(&b, 0xff); e8(&b, 0x25); e32(&b, 2); e8(&b, 0xcc); e8(&b, 0xcc);
        e64(&b, (u64)stub_table[i]);
    }
    for (unsigned i = 0; i < NR_SEGMENTS; i++) {
        struct segment *s = &c->seg[i];
        s->start = s->cur = s->huge = c->rx + STUB_AREA + i * c->seg_size;
        s->end = s->cold = s->start + c->seg_size;
        s->meta = s->meta_cur = reserve(META_SIZE(c));
        s->blocks = reserve(c->seg_size / 32 * sizeof(*s->blocks));
        s->at = reserve(c->seg_size / 32 * sizeof(*s->at));
        s->first = reserve((c->seg_size / PAGE_SIZE + 1) * sizeof(*s->first));
        if (!s->meta || !s->blocks || !s->at || !s->first)
            goto fail_fd;
        madvise(s->meta, META_SIZE(c), MADV_HUGEPAGE);
    }
    for (unsigned nr = CODE_NRS - 1; nr; nr--)
        c->free_nr[c->nr_free_nr++] = (u16)nr;
    c->page_pool = reserve(MAX_CODE_PAGES * sizeof(*c->page_pool));
    c->far = reserve(MAX_FAR * sizeof(*c->far));
    c->hash = (struct block **)map_aligned(-1, HASH_SIZE, PROT_READ | PROT_WRITE);
    if (!c->page_pool || !c->far || !c->hash)
        goto fail_fd;
    return c;
fail_fd:
    close(fd);
fail:
    munmap(c, sizeof(*c));
    return NULL;
}

void cache_destroy(struct code_cache *c)
{
    if (!c)
        return;
    munmap(c->rx, c->size);
    munmap(c->rx + c->to_rw, c->size);
    for (unsigned i = 0; i < NR_SEGMENTS; i++) {
        munmap(c->seg[i].meta, META_SIZE(c));
        munmap(c->seg[i].blocks, c->seg_size / 32 * sizeof(*c->seg[i].blocks));
        munmap(c->seg[i].at, c->seg_size / 32 * sizeof(*c->seg[i].at));
        munmap(c->seg[i].first, (c->seg_size / PAGE_SIZE + 1) * sizeof(*c->seg[i].first));
    }
    munmap(c->hash, HASH_SIZE);
    munmap(c->far, MAX_FAR * sizeof(*c->far));
    munmap(c->page_pool, MAX_CODE_PAGES * sizeof(struct code_page));
    munmap(c, sizeof(*c));
}

/* -- Index ---------------------------------------------------------------------------------------- */

static unsigned block_hash(gpa_t gpa, u32 mode)
{
    return (unsigned)((gpa * 0x9e3779b97f4a7c15ull + mode * 0x85ebca6bull) >> 40) & ((1u << HASH_BITS) - 1);
}
struct block *cache_find(struct code_cache *c, gpa_t gpa, u32 mode, gla_t fixed)
{
    for (struct block *b = c->hash[block_hash(gpa, mode)]; b; b = b->hash_next)
        if (b->page + b->off == gpa && b->mode == mode && b->fixed == fixed)
            return b;
    return NULL;
}
static unsigned page_hash(gpa_t page)
{
    return (unsigned)((page >> PAGE_SHIFT) * 0x9e3779b1u >> 8) & ((1u << PAGE_HASH_BITS) - 1);
}
static struct code_page *page_find(struct code_cache *c, gpa_t page)
{
    for (struct code_page *p = c->page_hash[page_hash(page)]; p; p = p->next)
        if (p->page == page)
            return p;
    return NULL;
}
static struct code_page *page_get(struct code_cache *c, gpa_t page)
{
    struct code_page *p = page_find(c, page);
    if (p)
        return p;
    p = c->page_free;
    if (p)
        c->page_free = p->next;
    else if (c->nr_pages < MAX_CODE_PAGES)
        p = &c->page_pool[c->nr_pages++];
    else
        return NULL;
    p->page = page;
    p->blocks = NULL;
    p->tail = &p->blocks;
    engine_zero(p->bytes, sizeof(p->bytes));
    engine_zero(p->starts, sizeof(p->starts));
    p->claims = 0;
    p->nr = 0;
    p->next = c->page_hash[page_hash(page)];
    c->page_hash[page_hash(page)] = p;
    return p;
}
const u64 *cache_starts(struct code_cache *c, gpa_t page)
{
    struct code_page *p = page_find(c, page);
    return p ? p->starts : NULL;
}
static struct block **page_link(struct block *b, gpa_t page)
{
    return b->page == page ? &b->page_next : &b->page2_next;
}
static u8 *page_state(struct code_cache *c, gpa_t page)
{
    struct ram_slot *rs = ram_find(&c->vm->ram, page);
    return &rs->page_state[(page - rs->gpa) >> PAGE_SHIFT];
}
/* The last translation of a page is gone: writes may go direct again. */
static void page_drop(struct code_cache *c, struct code_page *p)
{
    if (p->blocks || p->claims)
        return;
    *page_state(c, p->page) &= (u8)~PAGE_HAS_CODE;
    struct code_page **pp = &c->page_hash[page_hash(p->page)];
    while (*pp != p)
        pp = &(*pp)->next;
    *pp = p->next;
    if (p->nr)
        c->free_nr[c->nr_free_nr++] = p->nr;
    p->next = c->page_free;
    c->page_free = p;
}
static void page_remove(struct code_cache *c, gpa_t page, struct block *b)
{
    struct code_page *p = page_find(c, page);
    struct block **at = &p->blocks; /* segments are reclaimed oldest first: then it is at the head */
    while (*at != b)
        at = page_link(*at, page);
    *at = *page_link(b, page);
    if (p->tail == page_link(b, page))
        p->tail = at;
    page_drop(c, p);
}
static void index_remove(struct code_cache *c, struct block *b)
{
    struct block **at = &c->hash[block_hash(b->page + b->off, b->mode)];
    while (*at != b)
        at = &(*at)->hash_next;
    *at = b->hash_next;
    page_remove(c, b->page, b);
    if (b->page2 != ~0ull && b->page2 != b->page)
        page_remove(c, b->page2, b);
}

bool cache_claim(struct code_cache *c, gpa_t page)
{
    struct code_page *p = page_get(c, page);
    bug_on(!p);
    p->claims++;
    u8 *state = page_state(c, page);
    if (*state & PAGE_HAS_CODE)
        return false;
    *state |= PAGE_HAS_CODE;
    return true;
}
bool cache_claimed(struct code_cache *c, gpa_t page)
{
    struct code_page *p = page_find(c, page);
    return p && p->claims;
}
void cache_unclaim(struct code_cache *c, gpa_t page)
{
    struct code_page *p = page_find(c, page);
    p->claims--;
    page_drop(c, p);
}

/* Of word w of a page's bytes: those in [lo, hi). */
static inline u64 word_mask(unsigned w, unsigned lo, unsigned hi)
{
    u64 mask = ~0ull;
    if (lo > w * 64)
        mask &= ~0ull << (lo - w * 64);
    if (hi < w * 64 + 64)
        mask &= ~0ull >> (w * 64 + 64 - hi);
    return mask;
}
static void bytes_add(struct code_page *p, unsigned lo, unsigned hi)
{
    hi = MIN(hi, (unsigned)PAGE_SIZE);
    for (unsigned w = lo / 64; lo < hi && w <= (hi - 1) / 64; w++)
        p->bytes[w] |= word_mask(w, lo, hi);
}
static void bytes_add_block(struct code_page *p, const struct block *b)
{
    if (b->page == p->page) {
        bytes_add(p, b->off, b->end);
        for (unsigned i = 0; i < 2; i++)
            bytes_add(p, b->look[i][0], b->look[i][1]);
    }
    if (b->page2 == p->page)
        bytes_add(p, 0, b->end - 4096u);
}
/* May a block have to do with [gpa, gpa + len), which lies in the page? */
static bool bytes_touched(const struct code_page *p, gpa_t gpa, unsigned len)
{
    unsigned lo = gpa & ~PAGE_MASK, hi = MIN(lo + len, (unsigned)PAGE_SIZE);
    for (unsigned w = lo / 64; lo < hi && w <= (hi - 1) / 64; w++)
        if (p->bytes[w] & word_mask(w, lo, hi))
            return true;
    return false;
}
/* No block has: what dropped blocks left behind there would lead to the same search each time. */
static void bytes_renew(struct code_page *p)
{
    engine_zero(p->bytes, sizeof(p->bytes));
    for (struct block *b = p->blocks; b; b = *page_link(b, p->page))
        bytes_add_block(p, b);
}

/* Bits are numbered from the page's start; -1 and PAGE_SIZE if there is none. */
static int set_below(const u64 *bits, int at)
{
    for (int w = at >> 6; at >= 0 && w >= 0; w--) {
        u64 m = bits[w] & (w == at >> 6 ? ~0ull >> (63 - (at & 63)) : ~0ull);
        if (m)
            return w * 64 + 63 - __builtin_clzll(m);
    }
    return -1;
}
static int set_above(const u64 *bits, int at)
{
    for (int w = at >> 6; w < (int)(PAGE_SIZE / 64); w++) {
        u64 m = bits[w] & (w == at >> 6 ? ~0ull << (at & 63) : ~0ull);
        if (m)
            return w * 64 + __builtin_ctzll(m);
    }
    return PAGE_SIZE;
}
void cache_gap(struct code_cache *c, gpa_t gpa, unsigned *lo, unsigned *hi)
{
    const struct code_page *p = page_find(c, gpa & PAGE_MASK);
    int at = (int)(gpa & ~PAGE_MASK);
    *lo = p ? (unsigned)(set_below(p->bytes, at) + 1) : 0;
    *hi = p ? (unsigned)set_above(p->bytes, at) : PAGE_SIZE;
}

static void page_add(struct vcpu *v, struct code_cache *c, gpa_t page, struct block *b)
{
    struct code_page *p = page_get(c, page);
    bug_on(!p);
    bytes_add_block(p, b);
    if (!c->vm->smp) /* else no extent has a page with code */
        extent_unwrite(v, (u64)ram_ptr(&c->vm->ram, page, PAGE_SIZE), PAGE_SIZE);
    if (b->page == page)
        p->starts[b->off >> 6] |= BITULL(b->off & 63);
    if (b->page == page && b->page2 == page && p->tail == &b->page_next)
        return; /* mapped twice in a row, and crossed: once is enough */
    *page_link(b, page) = NULL;
    *p->tail = b;
    p->tail = page_link(b, page);
    u8 *state = page_state(c, page);
    if (*state & PAGE_HAS_CODE)
        return;
    *state |= PAGE_HAS_CODE;
    tlb_unwrite_page(v, ram_find(&c->vm->ram, page), page);
}

/* cache_block_at takes no lock. */
static void segment_add(struct segment *s, struct block *b)
{
    u32 hot = (u32)(b->code - s->start), cold = (u32)(b->cold - s->start);
    s->blocks[s->nr_blocks] = b;
    s->at[s->nr_blocks].hot = hot;
    s->at[s->nr_blocks].cold = cold;
    if (!s->first[hot / PAGE_SIZE].hot)
        s->first[hot / PAGE_SIZE].hot = s->nr_blocks + 1;
    if (!s->first[cold / PAGE_SIZE].cold)
        s->first[cold / PAGE_SIZE].cold = s->nr_blocks + 1;
    __atomic_store_n(&s->nr_blocks, s->nr_blocks + 1, __ATOMIC_RELEASE);
}

/* The number of a page that has blocks; 0: they are all in use. */
static u16 page_number(struct code_cache *c, gpa_t page)
{
    struct code_page *p = page_find(c, page);
    if (!p->nr && c->nr_free_nr) {
        p->nr = c->free_nr[--c->nr_free_nr];
        if (c->nr_page[p->nr] != page)
            tlb_forget_code(c->vm, p->nr);
        c->nr_page[p->nr] = page;
    }
    return p->nr;
}

static void index_add(struct vcpu *v, struct code_cache *c, struct block *b)
{
    unsigned h = block_hash(b->page + b->off, b->mode);
    b->hash_next = c->hash[h];
    c->hash[h] = b;
    page_add(v, c, b->page, b);
    if (b->page2 != ~0ull)
        page_add(v, c, b->page2, b);
    u16 nr = b->page2 == ~0ull && (b->mode & MODE_SLOT) == SLOT_U ? page_number(c, b->page) : 0;
    if (nr != b->code_nr) /* edges made for a block that is back have the number in their code */
        b->edges = NULL;
    b->code_nr = nr;
}

void cache_insert(struct vcpu *v, struct code_cache *c, struct block *b)
{
    segment_add(&c->seg[c->cur], b);
    index_add(v, c, b);
    if (++c->nr_made == MANY_BLOCKS)
        want_huge_tables(c);
    c->bytes_guest += b->end - b->off;
}

/* -- Patching --------------------------------------------------------------------------------------- */

void cache_patch32(struct code_cache *c, u8 *at, u32 value)
{
    __atomic_store_n((u32 *)cache_rw(c, at), value, __ATOMIC_RELEASE);
}

/* The event poll at the block's start leaves whatever the event word is: it never is 0xffffff80. */
static void patch_poll(struct code_cache *c, struct block *b, bool leave)
{
    __atomic_store_n(cache_rw(c, b->code + b->entry[ENTRY_POLL] + POLL_IMM), leave ? 0x80 : 0, __ATOMIC_RELEASE);
}

static struct segment *segment_of(struct code_cache *c, const u8 *pc)
{
    return &c->seg[(size_t)(pc - c->rx - STUB_AREA) / c->seg_size];
}

static void cut_far(struct code_cache *c)
{
    for (u32 i = 0; i < c->nr_far; i++)
        if (segment_of(c, c->far[i].patch)->gen == c->far[i].src_gen)
            cache_patch32(c, c->far[i].patch, c->far[i].back);
    c->nr_far = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(c->far_region); i++)
        __atomic_store_n(&c->far_region[i], 0, __ATOMIC_RELAXED);
    c->far_huge = false;
}
void cache_cut_far(struct code_cache *c)
{
    engine_lock(c->vm);
    cut_far(c);
    engine_unlock(c->vm);
}
static void far_note(struct code_cache *c, gla_t la)
{
    u64 *w = &c->far_region[la >> 28 & 7], bit = BITULL(la >> 22 & 63);
    __atomic_store_n(w, *w | bit, __ATOMIC_RELAXED);
}
bool cache_far_near(const struct code_cache *c, gla_t la)
{
    return c->far_huge || (__atomic_load_n(&c->far_region[la >> 28 & 7], __ATOMIC_RELAXED) >> (la >> 22 & 63) & 1);
}
void cache_far_huge(struct code_cache *c)
{
    c->far_huge = true;
}

bool cache_link(struct code_cache *c, u8 *patch, struct block *to, unsigned entry, bool far)
{
    if (far && c->nr_far == MAX_FAR)
        cut_far(c);
    struct segment *src = segment_of(c, patch), *dst = segment_of(c, to->code);
    if (dst->meta_cur + sizeof(struct inbound) + META_SLACK > dst->meta + META_SIZE(c))
        return false; /* stays unlinked: correct, only slower */
    struct inbound *in = (struct inbound *)dst->meta_cur;
    dst->meta_cur += sizeof(*in);
    *in = (struct inbound){ .next = to->inbound, .patch = patch, .src_gen = src->gen };
    __builtin_memcpy(&in->back, cache_rw(c, patch), 4);
    to->inbound = in;
    if (far) {
        c->far[c->nr_far++] = *in;
        far_note(c, to->fixed);
        far_note(c, to->fixed + (to->page2 == ~0ull ? 0 : PAGE_SIZE));
    }
    cache_patch32(c, patch, (u32)(to->code + to->entry[entry] - (patch + 4)));
    c->nr_links++;
    return true;
}

void *cache_meta_at(struct code_cache *c, const u8 *pc, size_t len)
{
    struct segment *s = segment_of(c, pc);
    if (s->meta_cur + len + META_SLACK > s->meta + META_SIZE(c))
        return NULL;
    u8 *p = s->meta_cur;
    s->meta_cur += len;
    engine_zero(p, len);
    return p;
}

bool cache_link_edge(struct code_cache *c, u8 *patch, struct block *edge, struct block *to)
{
    struct inbound *in = cache_meta_at(c, to->code, sizeof(*in));
    if (!in)
        return false;
    *in = (struct inbound){ .next = to->inbound, .patch = patch, .src_gen = segment_of(c, patch)->gen };
    __builtin_memcpy(&in->back, cache_rw(c, patch), 4);
    to->inbound = in;
    return cache_link(c, patch, edge, ENTRY_IND, false);
}

/* Undo every link into a block whose source still is there. */
static void unlink_inbound(struct code_cache *c, struct block *b)
{
    for (struct inbound *in = b->inbound; in; in = in->next)
        if (segment_of(c, in->patch)->gen == in->src_gen)
            cache_patch32(c, in->patch, in->back);
    b->inbound = NULL;
}

/* -- Dropping blocks whose bytes were written -------------------------------------------------------- */

static void block_kill(struct code_cache *c, struct block *b)
{
    unlink_inbound(c, b);
    b->dead = true;
    if (b->is_edge)
        return;
    patch_poll(c, b, true);
    index_remove(c, b);
    c->nr_killed++;
}

/* -- Dropped blocks that may come back (recipe.c) ----------------------------------------------------- */

static struct block **asleep_at(struct code_cache *c, gpa_t gpa, u32 mode)
{
    return &c->asleep[block_hash(gpa, mode) & ((1u << ASLEEP_BITS) - 1)];
}
struct block *cache_asleep(struct code_cache *c, gpa_t gpa, u32 mode, gla_t fixed)
{
    for (struct block *b = *asleep_at(c, gpa, mode); b; b = b->hash_next)
        if (b->page + b->off == gpa && b->mode == mode && b->fixed == fixed)
            return b;
    return NULL;
}
static void asleep_remove(struct code_cache *c, struct block *b)
{
    struct block **at = asleep_at(c, b->page + b->off, b->mode);
    while (*at && *at != b)
        at = &(*at)->hash_next;
    if (*at)
        *at = b->hash_next;
}
/* The last one of a key is kept: code at a place mostly stays of one shape. */
static void asleep_add(struct code_cache *c, struct block *b)
{
    struct block *old = cache_asleep(c, b->page + b->off, b->mode, b->fixed);
    if (old)
        asleep_remove(c, old);
    struct block **at = asleep_at(c, b->page + b->off, b->mode);
    b->hash_next = *at;
    *at = b;
}
static void asleep_forget(struct code_cache *c)
{
    for (unsigned i = 0; i < ARRAY_SIZE(c->asleep); i++)
        c->asleep[i] = NULL;
}
void cache_wake(struct vcpu *v, struct code_cache *c, struct block *b)
{
    asleep_remove(c, b);
    b->dead = false;
    b->conflicts = 0;
    patch_poll(c, b, false);
    index_add(v, c, b);
    c->nr_woken++;
}

static void want_recipe(struct code_cache *c, const struct block *b)
{
    if (cache_wants(c, b->page + b->off, b->mode, WANT_RECIPE))
        return;
    if (c->nr_recipe_places++ == RECIPE_PLACES) {
        for (unsigned i = 0; i < ARRAY_SIZE(c->wants[0]); i++)
            c->wants[WANT_RECIPE][i] = 0;
        c->nr_recipe_places = 1;
    }
    cache_want(c, b->page + b->off, b->mode, WANT_RECIPE);
}

void cache_want(struct code_cache *c, gpa_t gpa, u32 mode, enum code_want what)
{
    unsigned h = block_hash(gpa, mode) & 16383;
    c->wants[what][h >> 6] |= BITULL(h & 63);
}
bool cache_wants(const struct code_cache *c, gpa_t gpa, u32 mode, enum code_want what)
{
    unsigned h = block_hash(gpa, mode) & 16383;
    return c->wants[what][h >> 6] >> (h & 63) & 1;
}
void cache_kill_block(struct code_cache *c, struct block *b)
{
    block_kill(c, b);
}

bool block_overlaps(const struct block *b, gpa_t gpa, unsigned len)
{
    gpa_t lo = b->page + b->off, hi = b->page + MIN(b->end, 4096u);
    if (gpa < hi && gpa + len > lo)
        return true;
    if (b->page2 != ~0ull && gpa < b->page2 + (b->end - 4096u) && gpa + len > b->page2)
        return true;
    for (unsigned i = 0; i < 2; i++)
        if (gpa < b->page + b->look[i][1] && gpa + len > b->page + b->look[i][0])
            return true;
    return false;
}

bool cache_touches(struct code_cache *c, gpa_t gpa, unsigned len)
{
    struct code_page *p = page_find(c, gpa & PAGE_MASK);
    if (!p || !bytes_touched(p, gpa, len))
        return false;
    for (struct block *b = p->blocks; b; b = *page_link(b, gpa & PAGE_MASK))
        if (block_overlaps(b, gpa, len))
            return true;
    bytes_renew(p);
    return false;
}

bool cache_kill_range(struct vcpu *v, struct code_cache *c, gpa_t gpa, unsigned len, const u8 *pc, bool *any_left)
{
    (void)v;
    bool self = false;
    gpa_t page = gpa & PAGE_MASK;
    struct code_page *p = page_find(c, page);
    if (!p) {
        *any_left = false;
        return false;
    }
    *any_left = true;
    if (!bytes_touched(p, gpa, len))
        return false;
    bool any = false;
    for (struct block *b = p->blocks, *next; b; b = next) {
        next = *page_link(b, page);
        if (!block_overlaps(b, gpa, len))
            continue;
        any = true;
        if (pc && block_holds(b, pc))
            self = true;
        bool last = !next && p->blocks == b;
        block_kill(c, b);
        want_recipe(c, b);
        if (b->recipe)
            asleep_add(c, b);
        if (last) { /* the page's record is free now */
            *any_left = false;
            return self;
        }
    }
    if (!any)
        bytes_renew(p);
    return self;
}

/* -- Room -------------------------------------------------------------------------------------------- */

static void jc_purge_range(struct vcpu *v, const u8 *lo, const u8 *hi)
{
    for (unsigned i = 0; i < NR_SPACES; i++)
        for (unsigned s = i ? SLOT_U : SLOT_K; s < NR_SLOTS && v->eng->space[i].made; s++) {
            struct jc_entry *e = (struct jc_entry *)(v->eng->space[i].base + tlb_geo[s].jc_off);
            unsigned n = (tlb_geo[s].jc_mask >> 1) + 1;
            for (unsigned k = 0; k < n; k++)
                if (e[k].host >= (u64)lo && e[k].host < (u64)hi)
                    e[k].rip = JC_NONE;
        }
}

static void segment_empty(struct code_cache *c, struct segment *s)
{
    for (u32 i = 0; i < s->nr_blocks; i++)
        c->nr_reclaimed += !s->blocks[i]->is_edge;
    engine_zero(s->first, (c->seg_size / PAGE_SIZE + 1) * sizeof(*s->first));
    s->nr_blocks = 0;
    s->cur = s->start;
    s->cold = s->end;
    s->meta_cur = s->meta;
    s->gen++;
}

static void segment_reclaim(struct code_cache *c, struct segment *s)
{
    for (u32 i = 0; i < s->nr_blocks; i++) {
        unlink_inbound(c, s->blocks[i]);
        if (!s->blocks[i]->dead && !s->blocks[i]->is_edge)
            index_remove(c, s->blocks[i]);
        else if (s->blocks[i]->recipe)
            asleep_remove(c, s->blocks[i]);
    }
    for (unsigned i = 0; i < c->vm->nr_vcpus; i++) {
        jc_purge_range(c->vm->vcpu[i], s->start, s->end);
        engine_drop_returns(c->vm->vcpu[i]);
    }
    segment_empty(c, s);
}

void cache_retire(struct code_cache *c)
{
    struct segment *s = &c->seg[(c->cur + 1) % NR_SEGMENTS];
    for (u32 i = 0; i < s->nr_blocks; i++) {
        if (!s->blocks[i]->dead)
            block_kill(c, s->blocks[i]);
        else if (s->blocks[i]->recipe)
            asleep_remove(c, s->blocks[i]);
    }
    __atomic_store_n(&c->reclaims, c->reclaims + 1, __ATOMIC_RELEASE);
}
void cache_reuse(struct code_cache *c)
{
    c->cur = (c->cur + 1) % NR_SEGMENTS;
    segment_empty(c, &c->seg[c->cur]);
    c->wants_room = false;
}
bool cache_wants_room(const struct code_cache *c)
{
    return c->wants_room;
}
u64 cache_reclaims(const struct code_cache *c)
{
    return __atomic_load_n(&c->reclaims, __ATOMIC_ACQUIRE);
}

/* Is there no room left in a segment for so much code? */
static bool is_full(const struct code_cache *c, const struct segment *s, size_t len)
{
    return s->cur + len > s->cold || s->meta_cur + META_SLACK > s->meta + META_SIZE(c) || s->nr_blocks >= c->seg_size / 32 - 1;
}
static void advance(struct code_cache *c, struct segment *s, size_t hot_len)
{
    s->cur += hot_len;
    while (s->cur > s->huge + HUGE_AFTER)
        want_huge(c, s);
}

u8 *cache_reserve_edge(struct code_cache *c, unsigned len, struct block **block)
{
    struct segment *s = &c->seg[c->cur];
    len = (len + 15) & ~15u;
    if (is_full(c, s, len))
        return NULL;
    struct block *b = *block = cache_meta(c, sizeof(*b));
    *b = (struct block){ .is_edge = true, .page = ~0ull, .page2 = ~0ull, .code = s->cur, .hot_len = len, .cold = s->cold };
    segment_add(s, b);
    advance(c, s, len);
    return b->code;
}

u8 *cache_reserve(struct vcpu *v, struct code_cache *c, size_t hot_len, size_t cold_len, u8 **cold)
{
    (void)v;
    struct segment *s = &c->seg[c->cur];
    hot_len = (hot_len + 15) & ~15ull;
    cold_len = (cold_len + 15) & ~15ull;
    if (hot_len + cold_len > c->seg_size)
        return NULL;
    if (is_full(c, s, hot_len + cold_len)) {
        if (c->vm->smp && c->seg[(c->cur + 1) % NR_SEGMENTS].cur != c->seg[(c->cur + 1) % NR_SEGMENTS].start) {
            c->wants_room = true;
            return NULL;
        }
        c->cur = (c->cur + 1) % NR_SEGMENTS;
        s = &c->seg[c->cur];
        if (s->cur != s->start)
            segment_reclaim(c, s);
    }
    u8 *p = s->cur;
    advance(c, s, hot_len);
    s->cold -= cold_len;
    *cold = s->cold;
    return p;
}

/* cache_meta - zeroed bookkeeping memory that lives as long as the code reserved last. */
void *cache_meta(struct code_cache *c, size_t len)
{
    struct segment *s = &c->seg[c->cur];
    len = (len + 63) & ~63ull; /* what a look-up reads of a block lies in one cache line */
    u8 *p = (u8 *)(((u64)s->meta_cur + 63) & ~63ull);
    bug_on(p + len > s->meta + META_SIZE(c));
    s->meta_cur = p + len;
    for (size_t i = 0; i < len; i += 8)
        *(u64 *)(p + i) = 0;
    return p;
}

u32 cache_generation(struct code_cache *c, const u8 *pc)
{
    return segment_of(c, pc)->gen;
}

void cache_flush(struct vcpu *v, struct code_cache *c)
{
    (void)v;
    asleep_forget(c);
    if (c->vm->smp) { /* their memory stays until every vCPU has left it */
        for (unsigned i = 0; i < NR_SEGMENTS; i++)
            for (u32 k = 0; k < c->seg[i].nr_blocks; k++)
                if (!c->seg[i].blocks[k]->dead)
                    block_kill(c, c->seg[i].blocks[k]);
        return;
    }
    for (unsigned i = 0; i < NR_SEGMENTS; i++)
        segment_reclaim(c, &c->seg[i]);
    c->cur = 0;
}

struct block *cache_block_at(struct code_cache *c, const u8 *pc)
{
    if (!cache_contains(c, pc) || pc < c->rx + STUB_AREA)
        return NULL;
    struct segment *s = segment_of(c, pc);
    /* Hot code ascends with the block's number, cold code descends: the first block that is too far. */
    bool in_cold = pc >= s->cold;
    u32 at = (u32)(pc - s->start), page = at / PAGE_SIZE, hi = __atomic_load_n(&s->nr_blocks, __ATOMIC_ACQUIRE);
    while (page && !(in_cold ? s->first[page].cold : s->first[page].hot))
        page--;
    u32 lo = in_cold ? s->first[page].cold : s->first[page].hot;
    lo -= lo > 0;
    while (lo < hi) {
        u32 mid = lo + MIN((hi - lo) / 2, 64u); /* it is near */
        if (in_cold ? s->at[mid].cold > at : s->at[mid].hot <= at)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (!in_cold && lo)
        lo--;
    return lo < s->nr_blocks && block_holds(s->blocks[lo], pc) ? s->blocks[lo] : NULL;
}

/* -- Stats --------------------------------------------------------------------------------------------- */

#include <stdlib.h>

static int by_runs(const void *a, const void *b)
{
    const struct block *x = *(struct block *const *)a, *y = *(struct block *const *)b;
    return x->runs < y->runs ? 1 : x->runs > y->runs ? -1 : 0;
}

static bool is_live(const struct block *b) { return !b->dead && !b->is_edge; }

void cache_stats(struct code_cache *c, FILE *out, const char *(*symbol)(void *, u64), void *opaque)
{
    u64 used = 0, live = 0, pages = 0;
    for (unsigned i = 0; i < NR_SEGMENTS; i++) {
        used += (u64)(c->seg[i].cur - c->seg[i].start) + (u64)(c->seg[i].end - c->seg[i].cold);
        for (u32 k = 0; k < c->seg[i].nr_blocks; k++)
            live += is_live(c->seg[i].blocks[k]);
    }
    for (unsigned h = 0; h < 1u << PAGE_HASH_BITS; h++)
        for (struct code_page *p = c->page_hash[h]; p; p = p->next)
            pages++;
    fprintf(out, "code cache\n  %llu blocks made from %llu guest bytes, %llu live in %llu pages, %llu dropped by writes, %llu of these used again, %llu reclaimed\n",
            (unsigned long long)c->nr_made, (unsigned long long)c->bytes_guest, (unsigned long long)live,
            (unsigned long long)pages, (unsigned long long)c->nr_killed, (unsigned long long)c->nr_woken, (unsigned long long)c->nr_reclaimed);
    fprintf(out, "  %llu KiB used of %llu KiB, %llu links\n", (unsigned long long)used >> 10,
            (unsigned long long)c->size >> 10, (unsigned long long)c->nr_links);
    if (!live)
        return;
    struct block **all = malloc(live * sizeof(*all));
    if (!all)
        return;
    u64 n = 0;
    for (unsigned i = 0; i < NR_SEGMENTS; i++)
        for (u32 k = 0; k < c->seg[i].nr_blocks; k++)
            if (is_live(c->seg[i].blocks[k]))
                all[n++] = c->seg[i].blocks[k];
    qsort(all, n, sizeof(*all), by_runs);
    fprintf(out, "  blocks the dispatcher entered most\n");
    for (u64 i = 0; i < n && i < 10 && all[i]->runs > 1; i++) {
        /* Symbols are linear addresses: known of fixed kernel code, and taken for the physical ones else. */
        u64 la = (all[i]->fixed ? all[i]->fixed : all[i]->page) + all[i]->off;
        const char *name = symbol ? symbol(opaque, la) : NULL;
        fprintf(out, "    %10llu  physical %#llx mode %#x %s\n", (unsigned long long)all[i]->runs,
                (unsigned long long)(all[i]->page + all[i]->off), all[i]->mode, name ? name : "");
    }
    free(all);
}
