/*
 * recipe.c - code that is written again and again: a block that a store dropped is used again when the place holds the same
 * instructions, perhaps with other immediate operands. Programs that make code do that: their templates stay, constants differ.
 *
 * The first time that code somewhere is overwritten the place is noted (WANT_RECIPE), and the next block made there gets
 * a recipe: a copy of the bytes it was made from or looked at for flags, and where its code has their immediates. Each
 * byte must be the same again, but for those immediates on which nothing but their copy in the code depends. Everything else a
 * translation depends on is in the block's key.
 *
 * Code is corrected where it stands. With several vCPUs one may be running it, still dropped: then each immediate
 * must lie within eight aligned bytes, as links do, and it sees the one or the other. That the bytes in memory are
 * stable is the same question as for a translation, and translate_block() asks it before.
 */
#include "engine/translate.h"

static inline bool bit(const u64 *set, unsigned i) { return set[i >> 6] >> (i & 63) & 1; }

static void mark(struct xl *x, u64 *set, s32 off, unsigned len)
{
    s32 at = off - x->recipe_lo;
    if (at < 0 || at + (s32)len > RECIPE_SPAN) {
        x->recipe = false;
        return;
    }
    for (unsigned i = (unsigned)at; i < (unsigned)at + len; i++)
        set[i >> 6] |= BITULL(i & 63);
}

void recipe_begin(struct xl *x)
{
    x->recipe = cache_wants(x->cache, x->page_pa + x->start, x->mode, WANT_RECIPE) && !x->single && !(x->mode & MODE_NOSHARE);
    if (!x->recipe)
        return;
    x->recipe_lo = (u16)MAX(0, x->start - RECIPE_SPAN / 4); /* loops look back */
    x->nr_imms = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(x->looked); i++)
        x->looked[i] = 0;
}

/* Shared checks and windows follow what ADD and SUB move a base register by (tr_group.c, tr_window.c); shift counts decide about flags. */
bool recipe_copies(const struct xl *x, const struct insn *in)
{
    if (in->how != HOW_COPY || in->enc != ENC_LEGACY || in->has_mem || !in->imm_size)
        return false;
    switch (in->id) {
    case I_ADD: case I_SUB:
        return in->opsize < (x->m64 ? 8 : 4);
    case I_MOV: case I_OR: case I_ADC: case I_SBB: case I_AND: case I_XOR: case I_CMP: case I_TEST: case I_IMUL:
        return true;
    default:
        return false;
    }
}

void recipe_looked(struct xl *x, s32 off, const struct insn *in)
{
    mark(x, x->looked, off, in->len - (recipe_copies(x, in) ? in->imm_size : 0u));
}

unsigned recipe_padding(const struct xl *x, const struct insn *in)
{
    unsigned at = (hot_at(x) - in->imm_size) % 8;
    return x->vm->smp && recipe_copies(x, in) && at + in->imm_size > 8 ? 8 - at : 0;
}

void recipe_pad(struct buf *b, unsigned len)
{
    static const u8 nops[7][7] = { /* SDM vol. 2, table 4-12 */
        { 0x90 }, { 0x66, 0x90 }, { 0x0f, 0x1f, 0x00 }, { 0x0f, 0x1f, 0x40, 0 }, { 0x0f, 0x1f, 0x44, 0, 0 },
        { 0x66, 0x0f, 0x1f, 0x44, 0, 0 }, { 0x0f, 0x1f, 0x80, 0, 0, 0, 0 }
    };
    e_bytes(b, nops[len - 1], len);
}

void recipe_imm(struct xl *x, const struct insn *in)
{
    if (!recipe_copies(x, in) || x->nr_imms == RECIPE_IMMS)
        return;
    x->imm[x->nr_imms++] = (struct recipe_imm){ .off = (u16)(x->off[x->cur] + in->len - in->imm_size), .size = in->imm_size,
                                                .at = hot_at(x) - in->imm_size };
}

struct recipe *recipe_make(struct xl *x, const struct block *b)
{
    u64 exact[RECIPE_SPAN / 64] = { 0 };
    if (!x->recipe || b->page2 != ~0ull)
        return NULL;
    mark(x, exact, b->off, (unsigned)(b->end - b->off));
    if (!x->recipe)
        return NULL;
    for (unsigned i = 0; i < x->nr_imms; i++)
        for (unsigned k = x->imm[i].off - x->recipe_lo; k < x->imm[i].off + x->imm[i].size - (unsigned)x->recipe_lo; k++)
            exact[k >> 6] &= ~BITULL(k & 63);
    unsigned lo = (unsigned)(b->off - x->recipe_lo), hi = (unsigned)(b->end - x->recipe_lo);
    for (unsigned i = 0; i < RECIPE_SPAN; i++)
        if (bit(x->looked, i)) {
            lo = MIN(lo, i);
            hi = MAX(hi, i + 1);
        }
    struct recipe *r = cache_meta(x->cache, sizeof(*r) + hi - lo);
    r->lo = (u16)(x->recipe_lo + lo);
    r->len = (u16)(hi - lo);
    for (unsigned i = lo; i < hi; i++) {
        r->bytes[i - lo] = x->page[x->recipe_lo + i];
        if (bit(exact, i) || bit(x->looked, i))
            r->exact[(i - lo) >> 3] |= (u8)BIT((i - lo) & 7);
    }
    r->nr_imms = (u8)x->nr_imms;
    for (unsigned i = 0; i < x->nr_imms; i++)
        r->imm[i] = x->imm[i];
    return r;
}

static u64 load_imm(const u8 *p, unsigned size)
{
    u64 value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (u64)p[i] << i * 8;
    return value;
}

bool recipe_fits(struct xl *x, const struct block *b)
{
    const struct recipe *r = b->recipe;
    for (unsigned i = 0; i < r->len; i++)
        if (r->bytes[i] != x->page[r->lo + i] && (r->exact[i >> 3] >> (i & 7) & 1))
            return false;
    for (unsigned i = 0; x->vm->smp && i < r->nr_imms; i++) {
        const struct recipe_imm *m = &r->imm[i];
        if (((u64)b->code + m->at) % 8 + m->size > 8 &&
            load_imm(r->bytes + m->off - r->lo, m->size) != load_imm(x->page + m->off, m->size))
            return false;
    }
    return true;
}

void recipe_apply(struct xl *x, struct block *b)
{
    struct recipe *r = b->recipe;
    for (unsigned i = 0; i < r->nr_imms; i++) {
        const struct recipe_imm *m = &r->imm[i];
        u8 *was = r->bytes + m->off - r->lo;
        u64 value = load_imm(x->page + m->off, m->size);
        if (value == load_imm(was, m->size))
            continue;
        for (unsigned k = 0; k < m->size; k++)
            was[k] = (u8)(value >> k * 8);
        u8 *at = cache_rw(x->cache, b->code + m->at);
        switch (m->size) { /* one store each */
        case 1: __atomic_store_n(at, (u8)value, __ATOMIC_RELEASE); break;
        case 2: __builtin_memcpy(at, &value, 2); break;
        case 4: __builtin_memcpy(at, &value, 4); break;
        default: __builtin_memcpy(at, &value, 8);
        }
    }
}
