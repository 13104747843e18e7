/*
 * gen.h - instructions made from the rows of insn.def: random registers, prefixes and operand forms, and machine
 * states in which their memory operands lie where the test wants them.
 */
#pragma once
#include "engine/decode.h"
#include "tests/lib/bare.h"

struct gen_row {
    u8 enc, map, pp, opcode, w, l, how, cls, feat;
    u16 modrm, id;
    u32 attr;
    const char *ops, *id_name;
};
extern const struct gen_row gen_rows[];
extern const unsigned gen_nr_rows;

/* gen_excluded - why a row is not compared with the host, or NULL. */
const char *gen_excluded(const struct gen_row *r);
/* The row's encoding as a word or two. */
const char *gen_row_name(const struct gen_row *r, char *buf, size_t len);

/* -- Random numbers ------------------------------------------------------------------------------------ */
struct rng { u64 s; };
static inline u64 rnd(struct rng *r)
{
    u64 z = (r->s += 0x9e3779b97f4a7c15ull);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
static inline unsigned below(struct rng *r, unsigned n) { return (unsigned)(rnd(r) >> 33) % n; }
static inline bool one_in(struct rng *r, unsigned n) { return below(r, n) == 0; }
u64 gen_value(struct rng *r);                       /* an integer: corner cases often */
void gen_bytes(struct rng *r, u8 *p, unsigned len); /* vector contents: floating-point corner cases often */
void gen_state(struct rng *r, struct bare_state *s);

/* -- Encodings ------------------------------------------------------------------------------------------- */
enum palette { PAL_LOW, PAL_SLOT, PAL_ODD, PAL_ANY, NR_PAL };

struct gen_insn {
    u8 b[24];
    u8 len;
    u8 disp_off, disp_len;   /* of a ModRM displacement; disp_len 0: none */
    u8 imm_off;
    struct insn in;
    const struct gen_row *row;
};

struct gen_want {
    int mem;            /* 1: memory form, 0: registers, -1: either */
    enum palette pal;
    u16 bases, indexes; /* registers allowed in addresses: bit per GPR; bases 0: any */
    bool rip_only;      /* only RIP-relative or absolute */
    bool prefixes;      /* 67h, fs, gs, ignored segment prefixes, lock */
};
/* gen_insn - one encoding of the row, or false (try again): what the decoder says about it is in out->in. */
bool gen_insn(struct rng *r, const struct gen_row *row, const struct gen_want *want, struct gen_insn *out);
/* gen_mutate - the encoding with a bit or two changed, perhaps undefined. Returns the bytes to look at. */
unsigned gen_mutate(struct rng *r, const struct gen_insn *from, u8 *out);

/* Bytes of memory the operand touches, and its usual alignment. */
unsigned gen_mem_size(const struct gen_insn *g);
unsigned gen_align(const struct gen_insn *g);
/* gen_solve - make the operand's linear address `ea`, by registers in s (and the displacement); `rip`: where the
 * instruction will stand. False: not possible with this encoding. */
bool gen_solve(struct rng *r, struct gen_insn *g, struct bare_state *s, u64 rip, u64 ea);
/* gen_narrow - a state for 32-bit code. */
void gen_narrow(struct bare_state *s);
/* gen_ea - the operand's linear address with these registers. */
u64 gen_ea(const struct gen_insn *g, const struct bare_state *s, u64 rip);
/* gen_fit - the same without changing registers: true if there was a displacement to do it with. */
bool gen_fit(struct gen_insn *g, const struct bare_state *s, u64 rip, u64 ea);
/* gen_undefined_flags - flags the manuals leave undefined and the engine does not reproduce. */
u64 gen_undefined_flags(const struct insn *in);
/* gen_disasm - text of the bytes. */
void gen_disasm(const u8 *b, unsigned len, u64 rip, char *buf, size_t size);
