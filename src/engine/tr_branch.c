/*
 * tr_branch.c - HOW_BRANCH: how control leaves a block.
 *
 * Inside a page a direct branch is a host jump, linked when first taken; so are edges to other pages of fixed kernel code, and
 * of 64-bit user code by way of edge.c. Anything else has a RIP in s1 and
 * goes through the jump cache (linear RIP to host code, flushed with the TLB), so a remapped page can never
 * be entered by a stale link. At such exits the flags are in fl.
 *
 * call pushes the guest's return address, then [vbase] and the host return address on the host's stack; ret
 * loads the guest's return address into s1 and executes a host ret. Behind the call, s1 is compared with
 * what the caller expected: a wrong prediction costs a probe, never a wrong target.
 */
#include "engine/translate.h"

static const enum stub probe_stub[NR_SLOTS] = { STUB_PROBE_K, STUB_PROBE_KAC, STUB_PROBE_U, STUB_PROBE_U32 };

static bool predicts_returns(const struct xl *x)
{
    return !x->nochain && x->slot != SLOT_KAC;
}

/* Record for C: link this rel32 to the block at page offset t. */
static void link_stub(struct xl *x, struct fixup patch, s32 t, unsigned entry, bool host_flags)
{
    u32 stub = cold_at(x);
    xl_bind(x, patch, SEC_COLD, stub);
    struct fixup f = xl_lea_s1(x, SEC_COLD);
    xl_jmp_stub(x, SEC_COLD, host_flags ? STUB_LINK_HOST : STUB_LINK_SAVED);
    u32 at = cold_at(x);
    bug_on(at - stub != LINK_STUB_LEN);
    xl_bind(x, f, SEC_COLD, at);
    struct link_site site = { .s = { .off = (u16)t, .kind = (u8)entry } };
    e_bytes(&x->cold, &site, sizeof(site));
    /* patch - at, known once hot and cold have their places: a relocation of its own kind */
    xl_bind(x, (struct fixup){ SEC_COLD, at + (u32)offsetof(struct link_site, patch) }, (enum section)patch.sec,
            patch.at);
}

/* A direct branch of 64-bit user code to another page: linked where that page is mapped (edge.c). */
static bool page_linkable(const struct xl *x, s32 t)
{
    return x->slot == SLOT_U && x->m64 && !x->nochain && (t < 0 || t >= 4096);
}

/* A look-up of s1 comes next, and s1 may be anything: where the branch stands, for engine_lookup. */
static void note_branch(struct xl *x, enum section sec)
{
    struct buf *b = sec == SEC_HOT ? &x->hot : &x->cold;
    if (!x->m64)
        return;
    e_store_vcpu(b, H_S1, VOFF(s1));
    /* mov qword [vcpu.s2], page offset */
    e8(b, 0x49); e8(b, 0xc7); e_modrm_disp(b, 0, H_VCPU, VOFF(s2)); e32(b, x->off[x->cur]);
}

/* s1 = RIP: probe in line (hot) or by stub (cold). @note: a jmp or ret, whose target may be no address */
static void probe(struct xl *x, enum section sec, bool call, bool note)
{
    struct buf *b = sec == SEC_HOT ? &x->hot : &x->cold;
    if (x->nochain) {
        if (note)
            note_branch(x, sec);
        xl_jmp_stub(x, sec, STUB_LOOKUP);
        return;
    }
    if (sec == SEC_COLD) {
        xl_jmp_stub(x, sec, probe_stub[x->slot]);
        return;
    }
    const struct tlb_geometry *g = &tlb_geo[x->slot];
    s32 jc = (s32)g->jc_off - VCPU_BIAS;
    /* rorx s2, s1, 12; xor s2d, s1d; and s2d, mask */
    e_rorx(b, H_S2, H_S1, 12);
    e_rr32(b, 0x33, H_S2, H_S1);
    e8(b, 0x41); e8(b, 0x81); e8(b, 0xe0 | (H_S2 & 7)); e32(b, g->jc_mask);
    /* cmp [vcpu + s2*8 + jc.rip], s1; jne miss */
    e8(b, rex(1, H_S1, H_S2, H_VCPU)); e8(b, 0x39); e_modrm_sib(b, H_S1, H_VCPU, H_S2, 8, jc);
    struct fixup miss = xl_jcc(x, SEC_HOT, 5);
    /* jmp or call [vcpu + s2*8 + jc.host] */
    e8(b, rex(0, 0, H_S2, H_VCPU)); e8(b, 0xff); e_modrm_sib(b, call ? 2 : 4, H_VCPU, H_S2, 8, jc + 8);
    xl_bind(x, miss, SEC_COLD, cold_at(x));
    if (note)
        note_branch(x, SEC_COLD);
    if (call) {
        xl_call_stub(x, SEC_COLD, probe_stub[x->slot]); /* which looks at the second entry too */
        xl_bind(x, xl_jmp(x, SEC_COLD), SEC_HOT, hot_at(x));
    } else {
        xl_jmp_stub(x, SEC_COLD, probe_stub[x->slot]);
    }
}

void tr_probe(struct xl *x)
{
    probe(x, SEC_HOT, false, false);
}

/* mov s1, page + t; wrapped to 32 bits in flat 32-bit code by the 32-bit lea */
static void rip_to_s1(struct xl *x, enum section sec, s32 t)
{
    struct buf *b = sec == SEC_HOT ? &x->hot : &x->cold;
    tr_load_rip(x, b, H_S1, t);
    if (x->narrow) { /* movzx s1d, s1w */
        e8(b, rex(0, H_S1, 0, H_S1)); e8(b, 0x0f); e8(b, 0xb7); e8(b, (u8)(0xc0 | (H_S1 & 7) << 3 | (H_S1 & 7)));
    }
}

/* -- Code segments that are not flat ------------------------------------------------------------------ */

/* A target beyond the limit: the branch itself is what faults (SDM vol. 2, JMP, CALL, RET, Jcc, LOOP). */
static bool beyond_limit(const struct xl *x, s32 t) { return x->seg && x->page_eip + (u32)t > x->cs_limit; }

/* s1 = offset in CS to RIP: the limit, CS's base, its tag. Flags must be in fl. */
static void segment_target(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    if (!x->seg)
        return;
    if (x->cs_limit < (in->opsize == 2 ? 0xffffu : ~0u)) { /* cmp s1d, limit; ja #GP */
        e8(b, 0x41); e8(b, 0x81); e8(b, 0xf8 | (H_S1 & 7)); e32(b, x->cs_limit);
        xl_bind(x, xl_jcc(x, SEC_HOT, 7), SEC_COLD, cold_at(x));
        tr_raise_cold(x, in, sys_raise_gp);
    }
    /* add s1d, [cs.base]; add s1, [cs_tag] */
    e8(b, rex(0, H_S1, 0, H_VCPU)); e8(b, 0x03);
    e_modrm_disp(b, H_S1, H_VCPU, (s32)(offsetof(struct vcpu, seg) + SEG_CS * sizeof(struct seg) +
                                        offsetof(struct seg, base)) - VCPU_BIAS);
    e_rm64(b, 0x03, H_S1, H_VCPU, VOFF(cs_tag));
}

/* What a call pushes: the offset in CS of page + next, in s1. */
static void return_address(struct xl *x, s32 next)
{
    if (!x->seg) {
        tr_load_rip(x, &x->hot, H_S1, next);
        return;
    }
    e8(&x->hot, 0x41); e8(&x->hot, 0xb8 | (H_S1 & 7)); e32(&x->hot, x->page_eip + (u32)next); /* mov s1d, imm32 */
}

void tr_leave(struct xl *x, s32 off)
{
    xl_need_saved(x);
    rip_to_s1(x, SEC_HOT, off);
    xl_jmp_stub(x, SEC_HOT, STUB_LOOKUP);
    x->ended = true;
}

/* In this page, and not an instruction that runs on into the next one (such blocks depend on both mappings and are
 * entered by look-up only). */
static bool linkable(struct xl *x, s32 t)
{
    struct insn in;
    if (t < 0 || t >= 4096 || x->nochain || x->narrow)
        return false;
    enum dmode dm = x->m64 ? DMODE_64 : x->mode & MODE_32 ? DMODE_32 : DMODE_16;
    return t <= 4096 - INSN_MAX || insn_decode(dm, x->page + t, (size_t)(4096 - t), &in) != DECODE_SHORT;
}

/* To another page, at a linear address that is a constant: linked like an edge inside the page, with vbase set. */
static bool far_linkable(const struct xl *x, s32 t)
{
    gla_t page = (x->page_la + (u64)(s64)t) & PAGE_MASK;
    return x->fixed && (t < 0 || t >= 4096) && page >> 63 && (s64)page == (s32)page;
}
/* mov qword [vbase], imm32 */
static void set_vbase(struct xl *x, enum section sec, s32 t)
{
    struct buf *b = sec == SEC_HOT ? &x->hot : &x->cold;
    e8(b, 0x49); e8(b, 0xc7); e_modrm_disp(b, 0, H_VCPU, VOFF(vbase));
    e32(b, (u32)((x->page_la + (u64)(s64)t) & PAGE_MASK));
}
/*
 * The rel32 about to be emitted behind `n` opcode bytes is patched atomically: not across 8 bytes. What is missing before a Jcc
 * is made up by prefixes, which cost nothing, and leave it beside its compare: CS was a branch hint once.
 */
static void align_rel32(struct xl *x, enum section sec, unsigned n)
{
    struct buf *b = sec == SEC_HOT ? &x->hot : &x->cold;
    unsigned at = ((u32)(b->p - b->start) + n) % 8, pad = at > 4 ? 8 - at : 0;
    if (n == 1 && pad)
        recipe_pad(b, pad);
    for (unsigned i = 0; n == 2 && i < pad; i++)
        e8(b, 0x2e);
}
/* Record for C: link this rel32 to the block at page offset t, in another page; and the way by the jump cache. */
static void page_link_stub(struct xl *x, struct fixup patch, s32 t, unsigned entry, bool host_flags)
{
    link_stub(x, patch, t & 4095, entry | LINK_PAGE, host_flags);
    e32(&x->cold, (u32)(t >> PAGE_SHIFT)); /* struct page_site */
    e8(&x->cold, 0);
    if (host_flags)
        xl_flags_save(x, SEC_COLD);
    rip_to_s1(x, SEC_COLD, t);
    probe(x, SEC_COLD, false, false);
}
static enum block_entry edge_entry(bool host, bool backward)
{
#ifdef TORTURE
    backward = true; /* an interrupt is offered at every edge */
#endif
    return backward ? (host ? ENTRY_HOST_POLL : ENTRY_POLL) : host ? ENTRY_HOST : ENTRY_FLAG;
}

void tr_edge(struct xl *x, s32 t, int cc, bool backward)
{
    bool near = linkable(x, t), far = !x->nochain && far_linkable(x, t), page = page_linkable(x, t);
    if (cc >= 0) {
        xl_need_host(x, xl_s1_free(x));
        bool saved = x->fstate == FLAGS_BOTH;
        enum block_entry e = edge_entry(true, backward);
        if (near) {
            align_rel32(x, SEC_HOT, 2);
            link_stub(x, xl_jcc(x, SEC_HOT, (unsigned)cc), t, e, true);
            return;
        }
        if (page) {
            align_rel32(x, SEC_HOT, 2);
            page_link_stub(x, xl_jcc(x, SEC_HOT, (unsigned)cc), t, edge_entry(!saved, backward), !saved);
            return;
        }
        xl_bind(x, xl_jcc(x, SEC_HOT, (unsigned)cc), SEC_COLD, cold_at(x));
        if (far) {
            set_vbase(x, SEC_COLD, t);
            align_rel32(x, SEC_COLD, 1);
            link_stub(x, xl_jmp(x, SEC_COLD), t & 4095, e | LINK_FAR, true);
            return;
        }
        if (!saved)
            xl_flags_save(x, SEC_COLD);
        rip_to_s1(x, SEC_COLD, t);
        probe(x, SEC_COLD, false, false);
        return;
    }
    x->ended = true;
    if (page) {
        bool unsaved = x->fstate == FLAGS_HOST;
        align_rel32(x, SEC_HOT, 1);
        page_link_stub(x, xl_jmp(x, SEC_HOT), t, edge_entry(unsaved, backward), unsaved);
        return;
    }
    if (!near && !far) {
        xl_need_saved(x);
        rip_to_s1(x, SEC_HOT, t);
        probe(x, SEC_HOT, false, false);
        return;
    }
    bool host = x->fstate != FLAGS_SAVED;
    if (far)
        set_vbase(x, SEC_HOT, t);
    align_rel32(x, SEC_HOT, 1);
    link_stub(x, xl_jmp(x, SEC_HOT), t & 4095, edge_entry(host, backward) | (far ? LINK_FAR : 0), host);
}

void tr_mode_edge(struct xl *x, s32 t, unsigned slot)
{
    x->ended = true;
    if (!linkable(x, t)) {
        rip_to_s1(x, SEC_HOT, t);
        xl_jmp_stub(x, SEC_HOT, probe_stub[slot]);
        return;
    }
    align_rel32(x, SEC_HOT, 1);
    link_stub(x, xl_jmp(x, SEC_HOT), t, ENTRY_FLAG | LINK_MODE, false);
}

/* Push the return address (page + next) on the guest's stack. */
static void push_return(struct xl *x, const struct insn *in, s32 next)
{
    struct guard g;
    unsigned size = in->opsize;
    tr_guard_stack(x, -(s32)size, size, ACC_W, &g);
    u32 op = hot_at(x);
    if (g.mem.base == H_S1) {
        e_lea_full(&x->hot, true, H_S2, H_S1, H_S2, 1, g.mem.disp);
        g.mem = (struct hostmem){ H_S2, REG_NONE, 0 };
    }
    return_address(x, next);
    e_mem(&x->hot, 0x89, size, H_S1, &g.mem);
    tr_add_sp(x, -(s32)size);
    tr_guard_end(x, &g, op, false);
}

/* The code behind a host call: s1 = where the guest returned to. */
static void return_point(struct xl *x, s32 next)
{
    struct buf *b = &x->hot;
    /* pop s2; mov [vbase], s2; lea s2, [s2 + next]; cmp s1, s2; jne */
    e8(b, 0x41); e8(b, 0x58 | (H_S2 & 7));
    e_store_vcpu(b, H_S2, VOFF(vbase));
    e_lea(b, x->m64 || x->seg, H_S2, H_S2, next);
    e_rr64(b, 0x3b, H_S1, H_S2);
    struct fixup miss = xl_jcc(x, SEC_HOT, 5);
    xl_bind(x, miss, SEC_COLD, cold_at(x));
    xl_jmp_stub(x, SEC_COLD, probe_stub[x->slot]);
    x->fstate = FLAGS_SAVED;
    tr_edge(x, next, -1, false);
}

/* push [vbase]: the caller's half of a return prediction */
static void push_prediction(struct xl *x)
{
    struct buf *b = &x->hot;
    e8(b, 0x41); e8(b, 0xff); e_modrm_disp(b, 6, H_VCPU, VOFF(vbase));
}

static void call_direct(struct xl *x, const struct insn *in, s32 next)
{
    s32 t = xl_target(x, in, x->off[x->cur]);
    x->narrow = false;
    push_return(x, in, next);
    x->narrow = xl_narrow(x, in);
    bool near = linkable(x, t), far = !x->nochain && far_linkable(x, t), backward = t <= x->off[x->cur];
    if (!predicts_returns(x)) {
        tr_edge(x, t, -1, backward);
        return;
    }
    push_prediction(x);
    if (near || far) {
        bool host = x->fstate != FLAGS_SAVED;
        if (far)
            set_vbase(x, SEC_HOT, t);
        align_rel32(x, SEC_HOT, 1);
        e8(&x->hot, 0xe8);
        link_stub(x, xl_rel32(x, SEC_HOT), t & 4095, edge_entry(host, backward) | (far ? LINK_FAR : 0), host);
    } else if (page_linkable(x, t)) {
        bool unsaved = x->fstate == FLAGS_HOST;
        align_rel32(x, SEC_HOT, 1);
        e8(&x->hot, 0xe8);
        page_link_stub(x, xl_rel32(x, SEC_HOT), t, edge_entry(unsaved, backward), unsaved);
    } else {
        xl_need_saved(x);
        rip_to_s1(x, SEC_HOT, t);
        probe(x, SEC_HOT, true, false);
    }
    x->narrow = false;
    return_point(x, next);
}

/* Target of an indirect branch into s1 (zero-extended from its operand size). */
static void load_target(struct xl *x, const struct insn *in)
{
    unsigned size = in->opsize;
    if (!in->has_mem) {
        unsigned src = host_gpr[in->rm];
        if (gpr_in_slot(in->rm)) {
            e_load_vcpu(&x->hot, H_S1, REG_OFF(in->rm));
            src = H_S1;
        }
        if (size == 8)
            e_mov(&x->hot, H_S1, src);
        else if (size == 4)
            e_rr32(&x->hot, 0x8b, H_S1, src);
        else { /* movzx s1d, src16 */
            e8(&x->hot, rex(0, H_S1, 0, src)); e8(&x->hot, 0x0f); e8(&x->hot, 0xb7);
            e8(&x->hot, (u8)(0xc0 | (H_S1 & 7) << 3 | (src & 7)));
        }
        return;
    }
    struct guard g;
    tr_guard(x, in, size, ACC_R, 0, false, &g);
    u32 op = hot_at(x);
    if (size == 2) {
        e8(&x->hot, rex(0, H_S1, g.mem.index == REG_NONE ? 0 : g.mem.index, g.mem.base)); e8(&x->hot, 0x0f);
        e8(&x->hot, 0xb7);
        e_modrm_sib(&x->hot, H_S1, g.mem.base, g.mem.index, 1, g.mem.disp);
    } else {
        e_mem(&x->hot, 0x8b, size, H_S1, &g.mem);
    }
    tr_guard_end(x, &g, op, false);
}

/* A call to what is not an address faults before it pushes: sar s1, 47; add s1, 1; cmp s1, 1; ja #GP. The target is in
 * tmp[0]; s2 may hold a group's page. */
static void check_canonical(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    if (x->fstate == FLAGS_HOST) {
        xl_flags_save_by(x, SEC_HOT, H_S1);
        e_load_vcpu(b, H_S1, VOFF(tmp[0]));
    }
    x->fstate = FLAGS_SAVED;
    e8(b, 0x49); e8(b, 0xc1); e8(b, 0xf8 | (H_S1 & 7)); e8(b, 47);
    e8(b, 0x49); e8(b, 0x83); e8(b, 0xc0 | (H_S1 & 7)); e8(b, 1);
    e8(b, 0x49); e8(b, 0x83); e8(b, 0xf8 | (H_S1 & 7)); e8(b, 1);
    xl_bind(x, xl_jcc(x, SEC_HOT, 7), SEC_COLD, cold_at(x));
    tr_raise_cold(x, in, sys_raise_gp);
}

static void call_indirect(struct xl *x, const struct insn *in, s32 next)
{
    if (x->seg)
        xl_need_saved(x);
    if (x->mode & MODE_WINDOW) { /* the push may fault, behind what loses host flags; s2 may be a group's */
        if (x->fstate == FLAGS_HOST)
            xl_flags_save_by(x, SEC_HOT, H_S1);
        xl_clobber(x);
    }
    load_target(x, in);
    segment_target(x, in);
    e_store_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
    if (x->m64)
        check_canonical(x, in);
    push_return(x, in, next);
    xl_need_saved(x);
    if (predicts_returns(x))
        push_prediction(x);
    e_load_vcpu(&x->hot, H_S1, VOFF(tmp[0]));
    probe(x, SEC_HOT, predicts_returns(x), false);
    x->ended = true;
    if (predicts_returns(x)) {
        x->ended = false;
        return_point(x, next);
    }
}

static void ret(struct xl *x, const struct insn *in)
{
    struct guard g;
    unsigned size = in->opsize;
    tr_guard_stack(x, 0, size, ACC_R, &g);
    u32 op = hot_at(x);
    if (size == 2) {
        e8(&x->hot, rex(0, H_S1, g.mem.index, g.mem.base)); e8(&x->hot, 0x0f); e8(&x->hot, 0xb7);
        e_modrm_sib(&x->hot, H_S1, g.mem.base, g.mem.index, 1, g.mem.disp);
    } else {
        e_mem(&x->hot, 0x8b, size, H_S1, &g.mem);
    }
    tr_guard_end(x, &g, op, false);
    if (x->seg)
        xl_need_saved(x);
    segment_target(x, in);
    tr_add_sp(x, (s32)(size + (in->imm_size ? (u16)in->imm : 0)));
    xl_need_saved(x);
    x->ended = true;
    if (predicts_returns(x))
        e8(&x->hot, 0xc3);
    else
        probe(x, SEC_HOT, false, true);
}

/* loop, loope, loopne, jrcxz: rcx counted without touching flags; the branch by jrcxz. */
/* The same where it costs nothing to lose host flags: loop is sub rcx, 1; jne, jrcxz is test rcx, rcx; je. */
static bool counted(struct xl *x, const struct insn *in, s32 next)
{
    struct buf *b = &x->hot;
    s32 t = xl_target(x, in, x->off[x->cur]);
    bool backward = t <= x->off[x->cur];
    if ((in->id != I_LOOP && in->id != I_JRCXZ) || !linkable(x, t) || beyond_limit(x, t) || xl_narrow(x, in))
        return false;
    if (x->live[x->cur])
        xl_need_saved(x);
    if (in->addrsize != 4)
        e8(b, in->addrsize == 2 ? 0x66 : 0x48);
    if (in->id == I_LOOP) {
        e8(b, 0x83); e8(b, 0xe9); e8(b, 1);
    } else {
        e8(b, 0x85); e8(b, 0xc9);
    }
    xl_clobber(x);
    align_rel32(x, SEC_HOT, 2);
    link_stub(x, xl_jcc(x, SEC_HOT, in->id == I_LOOP ? 5 : 4), t, edge_entry(false, backward), false);
    tr_edge(x, next, -1, false);
    return true;
}

static void loop(struct xl *x, const struct insn *in, s32 next)
{
    struct buf *b = &x->hot;
    s32 t = xl_target(x, in, x->off[x->cur]);
    bool backward = t <= x->off[x->cur];
    if (in->id != I_JRCXZ) {
        if (in->addrsize == 2) { /* lea s1, [rcx - 1]; mov cx, s1w */
            e_lea(b, true, H_S1, RCX, -1);
            e8(b, 0x66);
            e_rr32(b, 0x8b, RCX, H_S1);
        } else {
            e_lea(b, in->addrsize == 8, RCX, RCX, -1);
        }
    }
    if (in->id == I_LOOPE || in->id == I_LOOPNE)
        xl_need_host(x, true);
    /* jrcxz can test ecx (67) but not cx: then on a zero-extended copy in rcx, kept in s1 meanwhile */
    bool word = in->addrsize == 2;
    if (word) {
        e_mov(b, H_S1, RCX);
        e8(b, 0x0f); e8(b, 0xb7); e8(b, 0xc9); /* movzx ecx, cx */
    }
    enum fstate st = x->fstate;
    if (in->addrsize == 4)
        e8(b, 0x67);
    e8(b, 0xe3); /* jrcxz zero */
    u8 *zero = b->p;
    e8(b, 0);
    /* rcx != 0 */
    u8 *skip = NULL;
    if (word)
        e_mov(b, RCX, H_S1);
    struct fixup not_taken = { 0 };
    bool has_nt = false;
    if (in->id == I_LOOPE || in->id == I_LOOPNE) {
        e8(b, in->id == I_LOOPE ? 0x75 : 0x74); /* jne/je past the edge */
        skip = b->p;
        e8(b, 0);
    }
    if (in->id == I_JRCXZ) {
        not_taken = xl_jmp(x, SEC_HOT);
        has_nt = true;
        *zero = (u8)(b->p - zero - 1);
        if (word)
            e_mov(b, RCX, H_S1);
    }
    struct fixup edge = xl_jmp(x, SEC_HOT); /* the edge itself is cold code: it may need several instructions */
    if (in->id != I_JRCXZ) {
        *zero = (u8)(b->p - zero - 1);
        if (word) {
            /* rcx was copied back only on the other path */
            e_mov(b, RCX, H_S1);
        }
        if (skip)
            *skip = (u8)(b->p - skip - 1);
    }
    if (has_nt)
        xl_bind(x, not_taken, SEC_HOT, hot_at(x));
    xl_bind(x, edge, SEC_COLD, cold_at(x));
    x->narrow = xl_narrow(x, in);
    bool in_page = linkable(x, t);
    if (st == FLAGS_HOST)
        xl_flags_save(x, SEC_COLD);
    if (beyond_limit(x, t)) {
        if (in->id != I_JRCXZ) { /* the fault leaves the count as it was: inc rcx, at its width */
            if (in->addrsize != 4)
                e8(&x->cold, in->addrsize == 2 ? 0x66 : 0x48);
            e8(&x->cold, 0xff); e8(&x->cold, 0xc1);
        }
        tr_raise_cold(x, in, sys_raise_gp);
    } else if (in_page) {
        align_rel32(x, SEC_COLD, 1);
        link_stub(x, xl_jmp(x, SEC_COLD), t, edge_entry(false, backward), false);
    } else {
        rip_to_s1(x, SEC_COLD, t);
        probe(x, SEC_COLD, false, false);
    }
    x->narrow = false;
    x->fstate = st;
    tr_edge(x, next, -1, false);
}

void tr_branch(struct xl *x, const struct insn *in)
{
    s32 next = x->off[x->cur] + in->len, t = xl_target(x, in, x->off[x->cur]);
    bool backward = t <= x->off[x->cur];
    switch (in->id) {
    case I_JCC:
        if (beyond_limit(x, t)) {
            xl_need_host(x, xl_s1_free(x));
            xl_bind(x, xl_jcc(x, SEC_HOT, in->opcode & 15), SEC_COLD, cold_at(x));
            xl_flags_save(x, SEC_COLD);
            tr_raise_cold(x, in, sys_raise_gp);
            return;
        }
        x->narrow = xl_narrow(x, in);
        tr_edge(x, t, in->opcode & 15, backward);
        x->narrow = false;
        return;
    case I_JMP: case I_CALL:
        if (beyond_limit(x, t)) {
            tr_call_helper(x, in, sys_raise_gp, true);
            return;
        }
        break;
    default:
        break;
    }
    switch (in->id) {
    case I_JMP:
        x->narrow = xl_narrow(x, in);
        tr_edge(x, t, -1, backward);
        return;
    case I_CALL:
        call_direct(x, in, next);
        return;
    case I_CALL_IND:
        call_indirect(x, in, next);
        return;
    case I_JMP_IND:
        if (x->seg)
            xl_need_saved(x);
        load_target(x, in);
        segment_target(x, in);
        xl_need_saved(x);
        probe(x, SEC_HOT, false, true);
        x->ended = true;
        return;
    case I_RET:
        ret(x, in);
        return;
    default:
        if (!counted(x, in, next))
            loop(x, in, next);
    }
}
