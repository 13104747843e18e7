/*
 * tr_window.c - memory accesses of code that goes through windows (MODE_WINDOW, window.h): no check, but a distance to add.
 *
 *   shrx  s, base, vcpu          ; by 40: VCPU_BIAS
 *   mov   s, [vcpu + table + 8 * s]
 *   op    [base + disp + s]
 *
 * Where the base lives in memory (guest r8 to r11, the page's address for RIP-relative operands, FS's and GS's bases), and
 * host flags may be lost, the scratch register gets the host's address:
 *
 *   shrx  s, [base], vcpu
 *   mov   s, [vcpu + table + 8 * s]; add s, [base]
 *   op    [s + disp]
 *
 * Any other address is computed first: lea s1, EA; its distance in s2; op [s1 + s2 + disp].
 *
 * A distance holds for many displacements, and while the base moves by constants. So what a scratch register holds is remembered
 * (x->held) for the instructions behind it, until one needs the register for something else, or changes the base. The value of a
 * guest register that lives in memory is remembered in the same way: what is written goes to memory, too, but nobody waits for it.
 */
#include "engine/translate.h"
#include "engine/window.h"

#define HELD(x, r) (&(x)->held[(r) == H_S2])

/* -- What scratch registers hold ------------------------------------------------------------------------------ */

void tr_held_drop(struct xl *x, unsigned r)
{
    if (HELD(x, r)->kind == HELD_PAIR)
        x->held[0].kind = x->held[1].kind = HELD_NONE;
    HELD(x, r)->kind = HELD_NONE;
}
void tr_held_none(struct xl *x) { x->held[0].kind = x->held[1].kind = HELD_NONE; }

/* Does it change the register by a constant only? Which? (Not one that is corrected later: recipe_copies.) */
static bool moves(const struct insn *in, unsigned g, s32 *by)
{
    *by = 0;
    if (in->how == HOW_STACK) {
        *by = in->id == I_PUSH ? -8 : 8;
        return g == RSP && !(in->opreg == RSP || (in->opreg == REG_NONE && in->rm_kind == RK_GPR && in->rm == RSP));
    }
    if (in->opsize != 8)
        return false;
    if (in->id == I_LEA) {
        *by = (s32)in->disp;
        return in->base == g && in->index == REG_NONE && in->addrsize == 8 && in->disp >= -(1 << 20) && in->disp <= 1 << 20;
    }
    *by = (s32)(in->id == I_ADD ? in->imm : -in->imm);
    return (in->id == I_ADD || in->id == I_SUB) && in->map == MAP_ONE && (in->opcode == 0x81 || in->opcode == 0x83) &&
           in->imm >= -(1 << 20) && in->imm <= 1 << 20;
}

/* Does an instruction leave alone what tr_window() and tr_window_stack() have not given it? */
static bool keeps(const struct insn *in)
{
    switch (in->how) {
    case HOW_COPY: return in->id != I_PAUSE;
    case HOW_STACK:
        if (in->has_mem || in->opsize != 8 || (in->id != I_PUSH && in->id != I_POP))
            return false;
        if (in->opreg != REG_NONE || in->rm_kind == RK_GPR) {
            unsigned g = in->opreg != REG_NONE ? in->opreg : in->rm;
            return g != RSP && !gpr_in_slot(g);
        }
        return true;
    default: return in->id == I_JCC;
    }
}

void tr_held_begin(struct xl *x)
{
    const struct insn *in = &x->in[x->cur];
    x->fresh[0] = x->fresh[1] = false;
    x->keeping = (x->mode & MODE_WINDOW) && keeps(in);
    if (x->keeping || in->id == I_CALL || in->id == I_RET || in->id == I_JMP_IND)
        return; /* these look for the access's distance first of all */
    tr_held_drop(x, H_S1);
    if (in->id != I_CALL_IND)
        tr_held_drop(x, H_S2);
}

/* May the displacement be added to a base that has moved so far since its distance was looked up? */
static bool near(s64 moved, s64 disp) { return moved + disp >= -WINDOW_BELOW && moved + disp <= WINDOW_ABOVE && moved >= -WINDOW_BELOW; }

/* The distance from what is near the address in a host register (mem NULL), or in memory, to where it is in a window. */
static void distance(struct xl *x, unsigned to, unsigned reg, const s32 *mem);

/*
 * vcpu->sp_distance. RSP's chunk seldom changes, so its distance is not looked up but kept, as good as looked up where
 *
 * - it was: whenever C or SYSRET enters user code, and here, behind what gives RSP another value; or
 * - the stack has been used since through it: then RSP is near a page in that slot.
 *
 * From there RSP may move by SP_NEAR, until one or the other happens again; all exits of a block are behind it.
 */
#define SP_NEAR 2000
static bool uses_stack_next(const struct xl *x)
{
    for (unsigned i = x->cur + 1; i < x->nr; i++) {
        const struct insn *in = &x->in[i];
        if (in->id == I_RET || in->id == I_CALL || ((in->id == I_PUSH || in->id == I_POP) && in->how == HOW_STACK && !in->has_mem))
            return in->opsize == 8;
        if (in->how != HOW_COPY || in->gpr_write >> RSP & 1)
            return false;
        /* MOV, but of bytes: nothing that may go another way than through the window */
        if (in->has_mem && in->enc == ENC_LEGACY && in->map == MAP_ONE && (in->opcode == 0x89 || in->opcode == 0x8b || in->opcode == 0xc7) &&
            in->base == RSP && in->index == REG_NONE && in->addrsize == 8 && in->seg != SEG_FS && in->seg != SEG_GS &&
            in->disp >= -SP_NEAR && in->disp <= SP_NEAR)
            return true;
    }
    return false;
}
static void sp_end(struct xl *x)
{
    const struct insn *in = &x->in[x->cur];
    if (!(x->mode & MODE_WINDOW) || x->ended || !(in->gpr_write >> RSP & 1))
        return;
    s32 by;
    bool constant = moves(in, RSP, &by);
    if (in->how == HOW_STACK && constant && in->opsize == 8 && !in->has_mem && (in->id == I_PUSH || in->id == I_POP)) {
        x->sp_moved = in->id == I_PUSH ? 0 : 8;
        return;
    }
    if (in->how == HOW_COPY && constant) {
        x->sp_moved += by;
        if (x->sp_moved >= -SP_NEAR && x->sp_moved <= SP_NEAR && uses_stack_next(x))
            return;
    }
    if (x->lag)
        tr_add_sp(x, 0);
    tr_held_drop(x, H_S2);
    distance(x, H_S2, H_SP, NULL);
    e_store_vcpu(&x->hot, H_S2, VOFF(sp_distance));
    x->sp_moved = 0;
}

void tr_held_end(struct xl *x)
{
    const struct insn *in = &x->in[x->cur];
    sp_end(x);
    if (!x->keeping) {
        tr_held_none(x);
        return;
    }
    for (unsigned r = H_S1; r <= H_S2; r++) {
        struct held *h = HELD(x, r);
        s32 by = 0;
        if (x->fresh[r == H_S2])
            continue;
        bool base = h->base < NR_GPR && in->gpr_write >> h->base & 1, index = h->index < NR_GPR && in->gpr_write >> h->index & 1;
        if (h->kind != HELD_NONE && (index || (base && !(h->kind == HELD_DISTANCE && moves(in, h->base, &by)))))
            tr_held_drop(x, r);
        else if (base)
            h->moved += by;
    }
}

/* How many instructions on the register's value may be wanted again. */
static unsigned next_use(const struct xl *x, const struct held *h)
{
    unsigned i = x->cur + 1;
    for (; i < x->nr; i++) {
        const struct insn *in = &x->in[i];
        if (h->kind == HELD_VALUE && in->gpr_read >> h->base & 1)
            return i;
        if (h->base == RSP ? in->how == HOW_STACK || in->id == I_CALL || in->id == I_RET : false)
            return i;
        if (in->has_mem && (in->base == h->base || (h->base >= HELD_SEG && in->seg == h->base - HELD_SEG)) && in->index == h->index)
            return i;
        s32 by;
        if (!keeps(in) || (h->base < NR_GPR && (in->gpr_write >> h->base & 1) && !moves(in, h->base, &by)))
            break;
    }
    return ~0u;
}

unsigned tr_held_value(const struct xl *x, unsigned g)
{
    for (unsigned r = H_S1; r <= H_S2 && x->keeping; r++)
        if (HELD(x, r)->kind == HELD_VALUE && HELD(x, r)->base == g)
            return r;
    return REG_NONE;
}

void tr_held_keep(struct xl *x, unsigned r, unsigned g)
{
    if (!x->keeping)
        return;
    unsigned other = tr_held_value(x, g);
    if (other != REG_NONE)
        tr_held_drop(x, other);
    *HELD(x, r) = (struct held){ .kind = HELD_VALUE, .base = (u8)g, .index = REG_NONE };
    x->fresh[r == H_S2] = true;
}

unsigned tr_held_pick(struct xl *x, bool s1, bool s2)
{
    bool second = s2 && (!s1 || (x->held[0].kind != HELD_NONE && (x->held[1].kind == HELD_NONE ||
                                                                  next_use(x, &x->held[1]) > next_use(x, &x->held[0]))));
    unsigned r = second ? H_S2 : H_S1;
    tr_held_drop(x, r);
    return r;
}

/* A scratch register for what will be held as (kind, base). */
static unsigned pick(struct xl *x, enum held_kind kind, unsigned base)
{
    unsigned r = H_S2;
    if (x->keeping && x->held[1].kind != HELD_NONE &&
        (x->held[0].kind == HELD_NONE || (x->held[1].kind != HELD_PAIR && next_use(x, &x->held[0]) > next_use(x, &x->held[1]))))
        r = H_S1;
    tr_held_drop(x, r);
    if (!x->keeping)
        tr_held_none(x);
    else
        *HELD(x, r) = (struct held){ .kind = (u8)kind, .base = (u8)base, .index = REG_NONE };
    return r;
}

/* The register that holds it; REG_NONE: none does. */
static unsigned find(struct xl *x, enum held_kind kind, unsigned base)
{
    for (unsigned r = H_S1; r <= H_S2; r++)
        if (HELD(x, r)->kind == kind && HELD(x, r)->base == base) {
            if (!x->keeping) {
                tr_held_none(x);
                if (r == H_S1)
                    e_mov(&x->hot, H_S2, H_S1);
                return H_S2;
            }
            return r;
        }
    return REG_NONE;
}

/* -- Emission -------------------------------------------------------------------------------------------------- */

static void distance(struct xl *x, unsigned to, unsigned reg, const s32 *mem)
{
    struct buf *b = &x->hot;
    /* shrx to, r/m, vcpu (VEX.LZ.F2.0F38.W1 F7 /r) */
    e8(b, 0xc4); e8(b, (u8)(0x42 | (mem || reg >= 8 ? 0 : 0x20))); e8(b, 0x83 | (~H_VCPU & 15) << 3); e8(b, 0xf7);
    if (mem)
        e_modrm_disp(b, to, H_VCPU, *mem);
    else
        e8(b, (u8)(0xc0 | (to & 7) << 3 | (reg & 7)));
    /* mov to, [vcpu + table + to * 8] */
    e8(b, rex(1, to, to, H_VCPU)); e8(b, 0x8b); e_modrm_sib(b, to, H_VCPU, to, 8, OFF_UWINDOW - VCPU_BIAS);
}

/* The register with the distance of guest register g, for a displacement. */
static unsigned distance_of(struct xl *x, unsigned g, s32 disp)
{
    for (unsigned i = 0; i < 2; i++)
        if (x->held[i].kind == HELD_DISTANCE && x->held[i].base == g && !near(x->held[i].moved, disp))
            x->held[i].kind = HELD_NONE;
    unsigned r = find(x, HELD_DISTANCE, g);
    if (r == REG_NONE) {
        r = pick(x, HELD_DISTANCE, g);
        if (g != RSP)
            distance(x, r, host_gpr[g], NULL);
        else if (near(x->sp_moved, disp))
            e_load_vcpu(&x->hot, r, VOFF(sp_distance));
        else
            distance(x, r, H_SP, NULL);
        if (g == RSP && x->keeping)
            HELD(x, r)->moved = near(x->sp_moved, disp) ? x->sp_moved : x->lag;
    }
    return r;
}

/* The register with the host address of what `off` in struct vcpu holds the linear address of. */
static unsigned address_of(struct xl *x, unsigned base, s32 off)
{
    unsigned r = find(x, HELD_ADDRESS, base);
    if (r != REG_NONE)
        return r;
    unsigned value = base < NR_GPR ? tr_held_value(x, base) : REG_NONE;
    r = pick(x, HELD_ADDRESS, base);
    if (value != REG_NONE && value != r) {
        distance(x, r, value, NULL);
        e_lea_full(&x->hot, true, r, r, value, 1, 0);
        return r;
    }
    distance(x, r, 0, &off);
    e_rm64(&x->hot, 0x03, r, H_VCPU, off);
    xl_clobber(x);
    return r;
}

/* The operation may fault, and then the instruction must not have happened. */
static void may_fault(struct xl *x)
{
    if (x->fstate != FLAGS_SAVED && (x->fhost_real || x->live[x->cur]))
        x->map[x->cur] |= MAP_FLAGS_HOST;
}

static s32 seg_base(unsigned seg)
{
    return (s32)(offsetof(struct vcpu, seg) + seg * sizeof(struct seg) + offsetof(struct seg, base)) - VCPU_BIAS;
}

/* The displacement is what is near the operand (an array at a fixed place), the registers need not be. */
static bool is_far(const struct insn *in)
{
    return in->base != BASE_RIP && (in->base == REG_NONE || !near(0, in->disp));
}

/* s1 = the operand's address but for the displacement, which is returned. */
static s32 address(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    s32 disp = (s32)in->disp;
    if (in->seg == SEG_FS || in->seg == SEG_GS) {
        if (in->base == REG_NONE && in->index == REG_NONE && near(0, disp)) {
            e_load_vcpu(b, H_S1, seg_base(in->seg));
            return disp;
        }
        tr_ea(x, in, 0);
        e_load_vcpu(b, H_S2, seg_base(in->seg));
        e_lea_full(b, true, H_S1, H_S1, H_S2, 1, 0);
        return 0;
    }
    if (in->base == BASE_RIP) {
        e_load_vcpu(b, H_S1, VOFF(vbase));
        return disp + x->off[x->cur] + in->len;
    }
    if (is_far(in)) {
        tr_ea(x, in, 0);
        return 0;
    }
    tr_ea(x, in, -disp);
    return disp;
}

bool tr_window(struct xl *x, const struct insn *in, s32 disp_extra, bool plain, struct guard *g)
{
    if (!(x->mode & MODE_WINDOW) || plain || disp_extra || in->addrsize != 8 || in->moffs || in->vsib || tr_slot_operands(in) > 1)
        return false;
    bool seg = in->seg == SEG_FS || in->seg == SEG_GS;
    *g = (struct guard){ .shared = true };
    if (tr_simple_base(x, in) && !is_far(in)) {
        unsigned r = distance_of(x, in->base, (s32)in->disp);
        g->mem = (struct hostmem){ in->base == RSP ? H_SP : host_gpr[in->base], (u8)r, (s32)in->disp };
        may_fault(x);
        return true;
    }
    bool one = seg ? in->base == REG_NONE && in->index == REG_NONE && near(0, in->disp)
                   : in->base != REG_NONE && in->index == REG_NONE && !is_far(in);
    if (one && !x->live[x->cur] && (x->keeping || in->opsize == 8)) {
        unsigned r;
        s32 disp = (s32)in->disp;
        if (seg) {
            r = address_of(x, HELD_SEG + in->seg, seg_base(in->seg));
        } else if (in->base == BASE_RIP) {
            r = address_of(x, BASE_RIP, VOFF(vbase));
            disp += x->off[x->cur] + in->len;
        } else {
            r = address_of(x, in->base, REG_OFF(in->base));
        }
        g->mem = (struct hostmem){ (u8)r, REG_NONE, disp };
        may_fault(x);
        return true;
    }
    s32 disp = (s32)in->disp + (in->base == BASE_RIP ? x->off[x->cur] + in->len : 0);
    const struct held *h = &x->held[0];
    bool same = x->keeping && h->kind == HELD_PAIR && !seg && !is_far(in) && h->base == in->base && h->index == in->index &&
                (h->index == REG_NONE || h->scale == in->scale);
    if (!same) {
        tr_held_none(x);
        disp = address(x, in);
        distance(x, H_S2, H_S1, NULL);
        if (x->keeping && !seg && !is_far(in))
            x->held[0] = x->held[1] = (struct held){ .kind = HELD_PAIR, .base = in->base, .index = in->index, .scale = in->scale };
    }
    g->mem = (struct hostmem){ H_S1, H_S2, disp };
    may_fault(x);
    return true;
}

void tr_window_stack(struct xl *x, s32 disp, struct guard *g)
{
    *g = (struct guard){ .shared = true, .stack = true, .mem = { H_SP, (u8)distance_of(x, RSP, disp), disp + x->lag } };
    may_fault(x);
}
