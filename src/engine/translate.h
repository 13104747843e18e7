/*
 * translate.h - what the translator's files share: the block being made.
 *
 * A block is a run of guest instructions in one page, entered at its start, with side exits at taken
 * conditional branches. Hot code is kept together, cold code (slow paths, exits not linked yet, records for
 * C) elsewhere. Layout at its start, when the body expects flags in host flags ("host primary"):
 *
 *   IND:   lea s1, [s1 - off]; mov [vbase], s1      s1 = RIP
 *   POLL:  cmp dword [event], 0; jne cold
 *   FLAG:  host flags <- fl                          only if flags are live in
 *   HOST:  body
 *
 * or, when flags pass through and the first thing the body would do is save them:
 *
 *   IND, POLL: as above;  FLAG: body                 HOST (cold): fl <- host flags; jmp FLAG
 */
#pragma once
#include "engine/emit.h"

#define XL_MAX_INSNS 48
#define XL_HOT (24u << 10)
#define XL_COLD (64u << 10)
#define XL_MAX_RELOCS 1024

/* Where the guest's arithmetic flags are at this point of the emitted code. */
enum fstate { FLAGS_HOST, FLAGS_SAVED, FLAGS_BOTH };

enum section { SEC_HOT, SEC_COLD, SEC_STUB };
struct reloc {
    u8 sec, tsec;  /* section of the rel32, and of its target */
    u32 at, target;/* offsets; target of SEC_STUB: enum stub  */
};
/* A position still to be bound to a target. */
struct fixup { u8 sec; u32 at; };

/* A guest memory operand made reachable: [base + index + disp] in host registers. */
struct hostmem {
    u8 base, index; /* index REG_NONE: none */
    s32 disp;
};
/* A guard's slow path, to be completed once the operation behind it is emitted. */
struct guard {
    struct fixup jcc;    /* the `ja` to the cold path   */
    u32 resume;          /* hot offset behind the check */
    u16 size;
    u8 acc, form;
    bool stack;          /* through SS: #SS, not #GP */
    s32 loop;            /* its own copy of a TLB entry, from r14 on; 0: none */
    bool extent;         /* `loop` is an extent */
    bool shared;         /* the group's first access has checked this one, or there is no check: windows */
    struct hostmem mem;
};

/* Accesses that share one check (tr_group.c). */
struct group {
    bool active;         /* s2 = host - guest of the group's page; sum: s1 + s2 = host address of `lo` */
    bool sum;
    bool moves;          /* 32-bit code: a sum, though the base may move by constants as it may in the other form */
    u8 base, index, scale; /* guest registers; base may be BASE_RIP */
    u8 seg;              /* 16-bit addresses: the segment of all */
    u8 nr;               /* instructions */
    u8 acc;
    u16 size;
    unsigned first, last; /* instructions of the first and the last access */
    s32 lo;              /* span: [EA0 + lo, EA0 + lo + size), EA0 without displacement, at the group's start */
};

/* What a scratch register holds from one instruction to the next, in code that goes through windows (tr_window.c). */
enum held_kind {
    HELD_NONE,
    HELD_DISTANCE, /* of the guest register `base` to its window              */
    HELD_ADDRESS,  /* the host address of `base`: a guest register that lives in memory, BASE_RIP (the page), HELD_SEG + segment */
    HELD_PAIR,     /* s1 and s2 together: base + index * scale, and its distance */
    HELD_VALUE,    /* what the guest register `base`, which lives in memory, has there */
};
#define HELD_SEG 0x40u
struct held {
    u8 kind, base, index, scale;
    s32 moved; /* how far the base has moved since */
};

struct xl {
    struct vcpu *v;
    struct vm *vm;
    struct code_cache *cache;
    u32 mode;
    unsigned slot;
    bool m64, single, nochain, noshare, hashed;
    gla_t fixed_key;     /* what the block's key has of it (struct block) */
    bool fixed;          /* the linear page is a constant: kernel half, global mapping */
    bool seg;            /* CS is not flat: RIPs in s1 and vbase carry v->cs_tag, EIPs are constants: */
    bool narrow;         /* a branch with a 16-bit operand in a flat segment: tr_edge cuts its target */
    u32 page_eip;        /* EIP of the page's first byte (modulo 2^32) */
    u32 cs_limit;
    struct group grp;
    struct held held[2]; /* s1's and s2's */
    bool keeping;        /* the current instruction leaves them alone, but where it is given them */
    bool fresh[2];       /* what is held is of after the current instruction */
    gla_t page_la;
    gpa_t page_pa;
    const u8 *page;      /* host view of the code page */
    const u8 *raw;       /* the instructions' bytes, by page offset: page, or a copy of one that crosses */
    u16 start;
    struct buf hot, cold;
    struct reloc reloc[XL_MAX_RELOCS];
    unsigned nr_relocs;
    enum fstate fstate;
    bool fhost_real;     /* ... and host flags hold them even where they are dead: for faults */
    unsigned nr;         /* instructions */
    unsigned cur;
    struct insn in[XL_MAX_INSNS];
    u16 off[XL_MAX_INSNS + 1];
    s32 sp_moved;        /* guest RSP, since sp_distance was made or its window was used (tr_window.c) */
    s32 lag;             /* what has still to be added to guest RSP's host register (tr_stack.c) */
    s8 lags[XL_MAX_INSNS]; /* at each instruction, in eights */
    u8 loop;             /* the first so many instructions are a loop: its accesses have copies of TLB entries */
    u16 live[XL_MAX_INSNS + 1]; /* flags needed on entry to instruction i */
    u32 map[XL_MAX_INSNS], cold_map[XL_MAX_INSNS]; /* where each instruction's code starts */
    bool poll_next;      /* a poll is due after the next instruction (sti) */
    bool x87_noted;      /* x87_vbase was set */
    bool ended;          /* the last instruction emitted leaves the block  */
    u16 look[2][2];
    bool recipe;         /* one is to be made; while it is set, of the RECIPE_SPAN bytes from recipe_lo on: */
    u16 recipe_lo;
    u64 looked[RECIPE_SPAN / 64]; /* those looked at for flags, but immediates */
    struct recipe_imm imm[RECIPE_IMMS]; /* immediates of the block's own instructions that were copied as they are */
    unsigned nr_imms;
    gpa_t unclaimed;     /* X_RETRY: this page must be claimed, */
    struct vcpu *in_the_way; /* or this vCPU must be past its store (smp.c) */
    u8 hot_buf[XL_HOT], cold_buf[XL_COLD];
};

/* xl_target - page offset of a direct branch's target. EIP wraps at the operand size: 16-bit branches stay in 64 KiB. */
static inline s32 xl_target(const struct xl *x, const struct insn *in, s32 off)
{
    u32 t = (u32)(off + in->len + (s32)in->imm);
    if (x->seg && in->opsize == 2)
        t = ((x->page_eip + t) & 0xffff) - x->page_eip;
    return (s32)t;
}
/* xl_narrow - a 16-bit branch where EIP is not a constant: the target is known only when it runs. */
static inline bool xl_narrow(const struct xl *x, const struct insn *in) { return !x->m64 && !x->seg && in->opsize == 2; }

/* Guest register to host register, REG_NONE for those that live in vcpu->regs. */
extern const u8 host_gpr[NR_GPR];
static inline bool gpr_in_slot(unsigned g) { return host_gpr[g] == REG_NONE; }
#define REG_OFF(g) ((s32)(g) * 8 - VCPU_BIAS)

/* -- translate.c ---------------------------------------------------------------------------------- */
static inline u32 hot_at(const struct xl *x) { return (u32)(x->hot.p - x->hot_buf); }
static inline u32 cold_at(const struct xl *x) { return (u32)(x->cold.p - x->cold_buf); }
/* xl_rel32 - emit a rel32 to a known place (or reserve it: xl_bind later). */
struct fixup xl_rel32(struct xl *x, enum section sec);
void xl_bind(struct xl *x, struct fixup f, enum section tsec, u32 target);
/* jmp/call/jcc rel32 */
struct fixup xl_jmp(struct xl *x, enum section sec);
struct fixup xl_jcc(struct xl *x, enum section sec, unsigned cc);
void xl_jmp_stub(struct xl *x, enum section sec, enum stub s);
void xl_call_stub(struct xl *x, enum section sec, enum stub s);
/* lea s1, [rip + record in cold] */
struct fixup xl_lea_s1(struct xl *x, enum section sec);
void xl_align_cold(struct xl *x, unsigned align, unsigned ahead);
/* xl_flags_at - which flags the code at a page offset reads before writing them. */
u16 xl_flags_at(struct xl *x, s32 off, u16 look[2]);
/* Flags: make sure they are in fl (before the guard or call that destroys host flags), or in host flags. */
void xl_flags_save(struct xl *x, enum section sec);     /* code only: no state change, clobbers s2 */
void xl_flags_save_by(struct xl *x, enum section sec, unsigned scratch);
void e_flags_save(struct buf *b, unsigned scratch);
void xl_need_saved(struct xl *x);
void xl_need_host(struct xl *x, bool s1_free);
void xl_restore_code(struct xl *x, struct buf *b, bool s1_free);
/* xl_clobber - host flags are gone now; if they are live they must be in fl already. */
static inline void xl_clobber(struct xl *x)
{
    x->fstate = FLAGS_SAVED;
    x->fhost_real = false;
}

/* -- tr_mem.c --------------------------------------------------------------------------------------- */
/* tr_guard - check an access; on return g->mem addresses it with s1/s2. Clobbers host flags, s1, s2.
 * @disp_extra: added to the displacement (pop [rsp + x]) @plain: never the form that uses guest registers */
void tr_guard(struct xl *x, const struct insn *in, unsigned size, unsigned acc, s32 disp_extra, bool plain,
              struct guard *g);
/* insn_bit_string - BT, BTS, BTR or BTC with memory and a register, which says how far from the operand the word is, too. */
static inline bool insn_bit_string(const struct insn *in)
{
    return in->id == I_BT_MEM || in->id == I_BTS_MEM || in->id == I_BTR_MEM || in->id == I_BTC_MEM;
}
/* tr_bits_in_line - does tr_copy() make this one? tr_guard_bits - then tr_guard() for its word. With the delta of that word's page
 * the instruction itself finds it; where g->mem has s1, the operand's address has still to be brought there (tr_ea). */
bool tr_bits_in_line(const struct xl *x, const struct insn *in);
void tr_guard_bits(struct xl *x, const struct insn *in, struct guard *g);
/* tr_guard_stack - the same for [rsp + disp]. */
void tr_guard_stack(struct xl *x, s32 disp, unsigned size, unsigned acc, struct guard *g);
/* tr_guard_linear - a read at the linear address in s1, by the system. */
void tr_guard_linear(struct xl *x, unsigned size, struct guard *g);
/* tr_guard_end - the operation stands in hot code from `op` to here: emit the slow path.
 * @final: the guest instruction is complete after the operation. */
void tr_guard_end(struct xl *x, struct guard *g, u32 op, bool final);

/* tr_ea - the operand's effective address, without the segment's base, into s1; a base or index in memory clobbers s2. */
void tr_ea(struct xl *x, const struct insn *in, s32 disp_extra);

/* lea dst, [base + index * scale + disp], host registers, REG_NONE for absent ones */
void e_lea_full(struct buf *b, bool w, unsigned dst, unsigned base, unsigned index, unsigned scale, s32 disp);

/* -- tr_window.c -------------------------------------------------------------------------------------- */
/* tr_window - make the operand reachable through a window; false: not this one, or there are none. tr_window_stack - [rsp + disp]. */
bool tr_window(struct xl *x, const struct insn *in, s32 disp_extra, bool plain, struct guard *g);
void tr_window_stack(struct xl *x, s32 disp, struct guard *g);
/* tr_held_begin, tr_held_end - around each instruction. tr_held_drop - a scratch register is about to be used for something else. */
void tr_held_begin(struct xl *x);
void tr_held_end(struct xl *x);
void tr_held_drop(struct xl *x, unsigned r);
void tr_held_none(struct xl *x);
/* tr_held_value - the scratch register with the value of a guest register that lives in memory; REG_NONE.
 * tr_held_keep - now `r` has it. tr_held_pick - s1 or s2, of those that may be used, what it holds dropped. */
unsigned tr_held_value(const struct xl *x, unsigned g);
void tr_held_keep(struct xl *x, unsigned r, unsigned g);
unsigned tr_held_pick(struct xl *x, bool s1, bool s2);

/* tr_group.c */
bool tr_simple_base(const struct xl *x, const struct insn *in);
/* Whether s1 may be used now, and nothing is lost that it holds. */
static inline bool xl_s1_free(const struct xl *x) { return !(x->grp.active && x->grp.sum) && x->held[0].kind == HELD_NONE; }
/* How many register operands live in vcpu->regs, addresses not counted. */
unsigned tr_slot_operands(const struct insn *in);
bool tr_plan_group(struct xl *x, unsigned base, unsigned index, unsigned scale);
/* Offset of a memory operand from its registers, or from the page for RIP-relative ones. */
s32 tr_mem_off(const struct xl *x, unsigned i);
/* tr_flat32 - 32-bit code on flat data and stack segments: an offset is a linear address. */
static inline bool tr_flat32(const struct xl *x)
{
    return !x->m64 && (x->mode & (MODE_FLAT | MODE_SS32)) == (MODE_FLAT | MODE_SS32);
}
/* tr_share_width - the size of addresses that share checks, as of the stack's slots; 0: none do. Of 16-bit ones, in segments of 64 KiB. */
static inline unsigned tr_share_width(const struct xl *x)
{
    if (x->m64)
        return 8;
    return tr_flat32(x) ? 4 : (x->mode & (MODE_FLAT | MODE_SS32 | MODE_64K)) == MODE_64K ? 2 : 0;
}
/* tr_group_moved - how far the group's base has moved since the group's start. */
s32 tr_group_moved(const struct xl *x);
/* op reg, mem of 2, 4 or 8 bytes */
void e_mem(struct buf *b, u8 op, unsigned size, unsigned reg, const struct hostmem *m);
/* rsp += n and the lag, at the stack's width, flags untouched */
void tr_add_sp(struct xl *x, s32 n);
/* tr_lag - the current instruction only moves RSP, or does so in the next instruction's name: nothing more, or less, to emit. */
bool tr_lag(struct xl *x, s32 n);
/* tr_flags_image - s1 = what PUSHF pushes, not in V86 mode. Flags are in fl, host flags and s2 are lost.
 * tr_take_flags - the reverse, of the bits `take` and the arithmetic ones; where others than `may` differ, to cold code at `slow`.
 * tr_unmask - if IF is set now and an interrupt was held back: the next poll is to see it. */
void tr_flags_image(struct xl *x);
void tr_take_flags(struct xl *x, u32 may, u32 take, u32 slow);
void tr_unmask(struct xl *x);

/* -- tr_copy.c, tr_stack.c, tr_string.c, tr_branch.c, tr_sys.c: one policy each ------------------------------------- */
void tr_copy(struct xl *x, const struct insn *in);
void tr_stack(struct xl *x, const struct insn *in);
void tr_branch(struct xl *x, const struct insn *in);
void tr_system(struct xl *x, const struct insn *in);
/* tr_string - in line; false: it needs the helper, nothing was emitted. */
bool tr_string(struct xl *x, const struct insn *in);
/* tr_pause - PAUSE with several vCPUs: who is waited for may need this host CPU. tr_sys.c */
void tr_pause(struct xl *x, const struct insn *in);
/* tr_call_helper - the handler does the instruction; flags end up in fl. @end: leave the block after it. */
void tr_call_helper(struct xl *x, const struct insn *in,
                    enum xret (*handler)(struct vcpu *, const struct insn *), bool end);
/* tr_check_cold - in cold code: a check by a helper that raises or allows; then hot code [again, end), whose result
 * in the scratch registers is lost, is run again, and on at hot offset `resume`. */
void tr_check_cold(struct xl *x, const struct insn *in, enum xret (*handler)(struct vcpu *, const struct insn *),
                   u32 again, u32 end, u32 resume);
/* tr_helper_cold - the helper, in cold code, ending the block: what a short way in line does not cover. */
void tr_helper_cold(struct xl *x, const struct insn *in);
/* tr_edge - go to page offset t (any s32): linked jump, probe or dispatcher. @jcc_cc: condition, or -1. */
void tr_edge(struct xl *x, s32 t, int jcc_cc, bool backward);
/* tr_mode_edge - the same, after a switch to another slot; flags in fl. */
void tr_mode_edge(struct xl *x, s32 t, unsigned slot);
/* tr_poll - leave if an event is pending; `off` is where to resume. Flags must be dead or saved. */
void tr_poll(struct xl *x, unsigned off);
/* tr_real.c: tr_real - emit it, if it is something that real and V86 mode do in line. tr_loads_segment - is this a segment load that real and V86 mode do in line, without ending the block? */
bool tr_real(struct xl *x, const struct insn *in);
bool tr_loads_segment(const struct xl *x, const struct insn *in);
/* tr_outer_call - a hypercall of a kernel outside ring 0 (outer.c): mostly it goes on behind it. */
static inline bool tr_outer_call(const struct xl *x, const struct insn *in)
{
    return in->id == I_SYSCALL && x->vm->pv.outer && x->slot <= SLOT_KAC;
}
/* tr_probe - on to the RIP in s1 (with its tag) by the jump cache; flags in fl. */
void tr_probe(struct xl *x);
/* tr_leave - unconditionally to the dispatcher with RIP = page + off. */
void tr_leave(struct xl *x, s32 off);
/* mov s1, guest linear address page + off */
void tr_load_rip(struct xl *x, struct buf *b, unsigned reg, s32 off);

/* handlers this file set needs besides insn.def's */
enum xret sys_raise_ud(struct vcpu *v, const struct insn *in);
enum xret sys_raise_nm(struct vcpu *v, const struct insn *in);
enum xret sys_raise_gp(struct vcpu *v, const struct insn *in);
enum xret sys_pause(struct vcpu *v, const struct insn *in);
enum xret sys_check_segment(struct vcpu *v, const struct insn *in); /* the memory operand lies in its segment */
/* insn_handler - insn.def's handler for a HOW_SYSTEM, HOW_STRING or HOW_STACK id, or NULL. sys_table.c */
typedef enum xret (*sys_fn)(struct vcpu *, const struct insn *);
/* tr_raise_cold - a handler that raises, in cold code, ending the block. */
void tr_raise_cold(struct xl *x, const struct insn *in, sys_fn handler);
sys_fn insn_handler(unsigned id);

/* -- recipe.c --------------------------------------------------------------------------------------- */

/* recipe_begin - will the block need one? Fills in x->recipe and what belongs to it. */
void recipe_begin(struct xl *x);
/* recipe_looked - flags_scan() has looked at the instruction at page offset off. */
void recipe_looked(struct xl *x, s32 off, const struct insn *in);
/* recipe_copies - does the code made from this instruction hold its immediate as it is, and depend on it in no other way? */
bool recipe_copies(const struct xl *x, const struct insn *in);
/* recipe_padding - how much later this instruction, just emitted, should start for its immediate to be corrected in one piece.
 * recipe_pad - no operation, in that many bytes. */
unsigned recipe_padding(const struct xl *x, const struct insn *in);
void recipe_pad(struct buf *b, unsigned len);
/* recipe_imm - the hot code just emitted for instruction x->cur ends with its immediate. */
void recipe_imm(struct xl *x, const struct insn *in);
/* recipe_make - of the block that was just placed; NULL if it depends on too much. */
struct recipe *recipe_make(struct xl *x, const struct block *b);
/* recipe_fits - is there code of x->page that only differs from the block's in immediates? recipe_apply - then correct these. */
bool recipe_fits(struct xl *x, const struct block *b);
void recipe_apply(struct xl *x, struct block *b);
