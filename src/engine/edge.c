/*
 * edge.c - links between pages of position-independent user code.
 *
 * A direct branch to another page may lead to other code in each address space, and from each place where its own page is
 * mapped. So it is linked to an edge: a piece of code that goes on only where the target's page is mapped at the distance
 * the branch wants.
 *
 *   [fl <- host flags]
 *   mov  s1, [vbase]
 *   lea  s1, [s1 + distance]
 *   cmp  s1, [vcpu + code table + 8 * number]     where the target's page is in this space, if that is known
 *   jne  miss
 *   mov  [vbase], s1
 *   jmp  the target's FLAG or POLL entry
 *  miss:
 *   lea  s1, [s1 + offset in page]
 *   jmp  stub_probe_u
 *
 * Why the target's page is the right one, and when an edge goes: docs/engine.md, "Edges".
 */
#include "engine/translate.h"

/* An edge that leads to a block; kept with that block's bookkeeping, while the edge itself may be in another segment. */
struct edge {
    struct edge *next;
    struct block *block;
    u8 *code;
    u32 gen;              /* of the edge's segment */
    s32 page;
    u8 entry;
    bool host;
};

#define EDGE_LOOK 8   /* so many edges of a target are looked at for one to share: from popular ones more are made twice */
#define EDGE_MAX 64   /* bytes, */
#define EDGE_SAVED 48 /* with flags in fl */

static void rel32(struct buf *b, const u8 *at, const u8 *target)
{
    e32(b, (u32)(target - (at + (b->p - b->start) + 4)));
}

static void emit(struct code_cache *c, u8 *at, const struct block *to, s32 page, enum block_entry entry, bool host)
{
    u8 *rw = cache_rw(c, at);
    struct buf b = { rw, rw, rw + (host ? EDGE_MAX : EDGE_SAVED), false };
    s32 table = OFF_UCODE + (s32)(to->code_nr * sizeof(gla_t)) - VCPU_BIAS;
    if (host)
        e_flags_save(&b, H_S2);
    e_load_vcpu(&b, H_S1, VOFF(vbase));
    e_lea(&b, true, H_S1, H_S1, page * (s32)PAGE_SIZE);
    e_rm64(&b, 0x3b, H_S1, H_VCPU, table);
    e8(&b, 0x75); /* jne miss */
    u8 *miss = b.p;
    e8(&b, 0);
    e_store_vcpu(&b, H_S1, VOFF(vbase));
    e8(&b, 0xe9);
    rel32(&b, at, to->code + to->entry[entry]);
    if (!b.overflow)
        *miss = (u8)(b.p - miss - 1);
    e_lea(&b, true, H_S1, H_S1, to->off);
    e8(&b, 0xe9);
    rel32(&b, at, cache_stub(c, STUB_PROBE_U));
    bug_on(b.overflow);
}

static struct edge *find(struct code_cache *c, struct block *to, s32 page, enum block_entry entry, bool host)
{
    unsigned n = 0;
    for (struct edge *e = to->edges; e && n < EDGE_LOOK; e = e->next, n++)
        if (e->page == page && e->entry == entry && e->host == host && cache_generation(c, e->code) == e->gen &&
            !e->block->dead)
            return e;
    struct edge *e = cache_meta_at(c, to->code, sizeof(*e));
    struct block *block;
    u8 *at = e ? cache_reserve_edge(c, host ? EDGE_MAX : EDGE_SAVED, &block) : NULL;
    if (!at)
        return NULL;
    emit(c, at, to, page, entry, host);
    *e = (struct edge){ to->edges, block, at, cache_generation(c, at), page, (u8)entry, host };
    to->edges = e;
    return e;
}

bool edge_link(struct code_cache *c, u8 *patch, struct block *to, s32 page, enum block_entry entry, bool host)
{
    struct edge *e = to->code_nr ? find(c, to, page, entry, host) : NULL;
    return e && cache_link_edge(c, patch, e->block, to);
}
