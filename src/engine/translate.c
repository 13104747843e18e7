/*
 * translate.c - guest code to a block: fetch, flag liveness, one policy a row, close the block.
 * Emission of each policy: tr_copy.c, tr_mem.c, tr_stack.c, tr_branch.c, tr_sys.c. Layout: translate.h.
 */
#include "engine/translate.h"

#include "engine/mmu.h"

const u8 host_gpr[NR_GPR] = {
    [RAX] = 0, [RCX] = 1, [RDX] = 2, [RBX] = 3, [RSP] = H_SP, [RBP] = 5, [RSI] = 6, [RDI] = 7,
    [R8] = REG_NONE, [R9] = REG_NONE, [R10] = REG_NONE, [R11] = REG_NONE, [R12] = 12, [R13] = 13,
    [R14] = 8, [R15] = 9,
};

/* -- Relocations ------------------------------------------------------------------------------------ */

struct fixup xl_rel32(struct xl *x, enum section sec)
{
    struct buf *b = sec == SEC_HOT ? &x->hot : &x->cold;
    struct fixup f = { (u8)sec, (u32)(b->p - b->start) };
    e32(b, 0);
    return f;
}
void xl_bind(struct xl *x, struct fixup f, enum section tsec, u32 target)
{
    if (x->nr_relocs == XL_MAX_RELOCS) {
        x->hot.overflow = true;
        return;
    }
    x->reloc[x->nr_relocs++] = (struct reloc){ f.sec, (u8)tsec, f.at, target };
}
struct fixup xl_jmp(struct xl *x, enum section sec)
{
    e8(sec == SEC_HOT ? &x->hot : &x->cold, 0xe9);
    return xl_rel32(x, sec);
}
struct fixup xl_jcc(struct xl *x, enum section sec, unsigned cc)
{
    struct buf *b = sec == SEC_HOT ? &x->hot : &x->cold;
    e8(b, 0x0f);
    e8(b, (u8)(0x80 | cc));
    return xl_rel32(x, sec);
}
void xl_jmp_stub(struct xl *x, enum section sec, enum stub s)
{
    xl_bind(x, xl_jmp(x, sec), SEC_STUB, s);
}
void xl_call_stub(struct xl *x, enum section sec, enum stub s)
{
    e8(sec == SEC_HOT ? &x->hot : &x->cold, 0xe8);
    xl_bind(x, xl_rel32(x, sec), SEC_STUB, s);
}
struct fixup xl_lea_s1(struct xl *x, enum section sec)
{
    struct buf *b = sec == SEC_HOT ? &x->hot : &x->cold;
    e8(b, 0x4c); e8(b, 0x8d); e8(b, (H_S1 & 7) << 3 | 5);
    return xl_rel32(x, sec);
}
/* Pad cold code so that what comes `ahead` bytes later is aligned. */
void xl_align_cold(struct xl *x, unsigned align, unsigned ahead)
{
    while ((cold_at(x) + ahead) % align && !x->cold.overflow)
        e8(&x->cold, 0xcc);
}

/* -- Flags ------------------------------------------------------------------------------------------- */

/* mov scratch, rax; lahf; seto al; mov [fl], ax; mov rax, scratch */
void e_flags_save(struct buf *b, unsigned scratch)
{
    e_mov(b, scratch, RAX);
    e8(b, 0x9f);
    e8(b, 0x0f); e8(b, 0x90); e8(b, 0xc0);
    e8(b, 0x66); e8(b, 0x41); e8(b, 0x89); e_modrm_disp(b, RAX, H_VCPU, VOFF(fl));
    e_mov(b, RAX, scratch);
}
void xl_flags_save(struct xl *x, enum section sec)
{
    xl_flags_save_by(x, sec, H_S2);
}
void xl_flags_save_by(struct xl *x, enum section sec, unsigned scratch)
{
    e_flags_save(sec == SEC_HOT ? &x->hot : &x->cold, scratch);
}
/* mov s1 or [tmp0], rax; movzx eax, word [fl]; add al, 0x7f; sahf; mov rax, s1 or [tmp0] */
void xl_restore_code(struct xl *x, struct buf *b, bool s1_free)
{
    (void)x;
    if (s1_free)
        e_mov(b, H_S1, RAX);
    else
        e_store_vcpu(b, RAX, VOFF(tmp[0]));
    e8(b, 0x41); e8(b, 0x0f); e8(b, 0xb7); e_modrm_disp(b, RAX, H_VCPU, VOFF(fl));
    e8(b, 0x04); e8(b, 0x7f);
    e8(b, 0x9e);
    if (s1_free)
        e_mov(b, RAX, H_S1);
    else
        e_load_vcpu(b, RAX, VOFF(tmp[0]));
}
void xl_need_saved(struct xl *x)
{
    if (x->fstate != FLAGS_HOST)
        return;
    xl_flags_save(x, SEC_HOT);
    x->fstate = FLAGS_BOTH;
}
void xl_need_host(struct xl *x, bool s1_free)
{
    if (x->fstate != FLAGS_SAVED)
        return;
    xl_restore_code(x, &x->hot, s1_free);
    x->fhost_real = true;
    x->fstate = FLAGS_BOTH;
}

/* Flags an instruction certainly overwrites. */
static u16 flags_killed(const struct insn *in)
{
    u16 k = in->fl_write & (u16)~in->fl_maybe;
    if (in->how == HOW_STRING) /* rep with a count of zero leaves them */
        k = 0;
    return k & EFL_ARITH;
}

static bool conditional(const struct insn *in)
{
    return in->id == I_JCC || in->id == I_LOOP || in->id == I_LOOPE || in->id == I_LOOPNE || in->id == I_JRCXZ;
}

/* A scan of flags_scan, and the ones that led to it. */
struct scan {
    s32 off;
    u16 pending;
    const struct scan *from;
};
/* Is this a loop? What is still pending at its start was so the last time round: nothing new is read. */
static bool scanned(const struct scan *s, s32 off, u16 pending)
{
    while (s && (s->off != off || (pending & ~s->pending)))
        s = s->from;
    return s;
}

/* Straight-line and through direct branches, a few steps; what is still undecided counts as live. */
static u16 flags_scan(struct xl *x, s32 off, u16 pending, unsigned depth, const struct scan *from, u16 look[2])
{
    u16 live = 0;
    const struct scan here = { off, pending, from };
    enum dmode dm = x->m64 ? DMODE_64 : x->mode & MODE_32 ? DMODE_32 : DMODE_16;
    for (unsigned n = 0; n < 12 && pending; n++) {
        if (off < 0 || off >= 4096)
            return live | pending;
        struct insn in;
        if (insn_decode(dm, x->page + off, (size_t)(4096 - off), &in) != DECODE_OK)
            return live | pending;
        if (off < look[0])
            look[0] = (u16)off;
        if (off + in.len > look[1])
            look[1] = (u16)(off + in.len);
        if (unlikely(x->recipe))
            recipe_looked(x, off, &in);
        live |= in.fl_read & pending;
        pending &= (u16)~flags_killed(&in) & (u16)~live;
        if (!pending)
            break;
        if (in.how == HOW_BRANCH) {
            s32 t = xl_target(x, &in, off);
            if (xl_narrow(x, &in))
                return live | pending;
            bool again = scanned(&here, t, pending);
            if (in.id == I_JMP && again)
                return live;
            if ((in.id != I_JMP && !conditional(&in)) || (!again && ++depth > 3))
                return live | pending;
            if (in.id == I_JMP) {
                off = t;
                continue;
            }
            if (!again) {
                live |= flags_scan(x, t, pending, depth, &here, look);
                pending &= (u16)~live;
            }
            off += in.len;
            continue;
        }
        if (in.how == HOW_SYSTEM && !insn_bit_string(&in))
            return live | pending;
        off += in.len;
    }
    return live | pending;
}
u16 xl_flags_at(struct xl *x, s32 off, u16 look[2])
{
    return flags_scan(x, off, EFL_ARITH, 0, NULL, look);
}

/* Backwards over the block: x->live[i]. */
static void flags_liveness(struct xl *x)
{
    u16 live = EFL_ARITH;
    const struct insn *last = &x->in[x->nr - 1];
    bool goes_on = conditional(last) || (last->how != HOW_BRANCH && last->how != HOW_SYSTEM);
    if (x->single)
        goes_on = false;
    if (goes_on)
        live = xl_flags_at(x, x->off[x->nr], x->look[0]);
    x->live[x->nr] = live;
    for (unsigned i = x->nr; i-- > 0;) {
        const struct insn *in = &x->in[i];
        if (in->how == HOW_BRANCH) {
            s32 t = xl_target(x, in, x->off[i]);
            u16 taken = x->single || xl_narrow(x, in) ? EFL_ARITH : 0;
            switch (in->id) {
            case I_JMP:
                live = taken | xl_flags_at(x, t, x->look[0]);
                break;
            case I_JCC: case I_LOOP: case I_LOOPE: case I_LOOPNE: case I_JRCXZ:
                live |= taken | xl_flags_at(x, t, x->look[1]);
                break;
            case I_CALL:
                live = taken | xl_flags_at(x, t, x->look[0]);
                break;
            default: /* ret, indirect: anyone may read them */
                live = EFL_ARITH;
            }
        }
        live = (live & (u16)~flags_killed(in)) | (in->fl_read & EFL_ARITH);
        x->live[i] = live;
    }
}

/* -- Classes: what CR0, CR4 and XCR0 allow (SDM vol. 3 table 2-2, §13.1) -------------------------------- */

static sys_fn class_fault(const struct xl *x, const struct insn *in)
{
    u32 m = x->mode;
    switch (in->cls) {
    case CLS_X87:
        return m & (MODE_EM | MODE_TS) ? sys_raise_nm : NULL;
    case CLS_FWAIT:
        return (m & MODE_TS) && (m & MODE_MP) ? sys_raise_nm : NULL;
    case CLS_MMX:
        return m & MODE_EM ? sys_raise_ud : m & MODE_TS ? sys_raise_nm : NULL;
    case CLS_SSE:
        return m & MODE_EM || !(m & MODE_SSE) ? sys_raise_ud : m & MODE_TS ? sys_raise_nm : NULL;
    case CLS_AVX:
        return !(m & MODE_AVX) || m & MODE_REAL ? sys_raise_ud : m & MODE_TS ? sys_raise_nm : NULL;
    case CLS_AVX512:
        return !(m & MODE_AVX512) || m & MODE_REAL ? sys_raise_ud : m & MODE_TS ? sys_raise_nm : NULL;
    default:
        return NULL;
    }
}

/* -- Fetch -------------------------------------------------------------------------------------------- */

static bool ends_block(const struct xl *x, const struct insn *in)
{
    if (in->how == HOW_BRANCH)
        return in->id != I_JCC;
    if (in->how != HOW_SYSTEM || tr_loads_segment(x, in))
        return false;
    if ((in->id == I_CLAC && x->slot == SLOT_K) || (in->id == I_STAC && x->slot == SLOT_KAC))
        return !(x->mode & MODE_SMAP); /* nothing to do (tr_sys.c) */
    switch (in->id) {
    case I_SYSCALL: /* a call of a kernel outside ring 0 comes back */
        return !tr_outer_call(x, in);
    case I_INT: case I_INT3: case I_INT1: case I_INTO: case I_IRET: case I_SYSRET:
    case I_SYSENTER: case I_SYSEXIT: case I_CALL_FAR: case I_JMP_FAR: case I_RET_FAR: case I_HLT: case I_MWAIT:
    case I_MOV_CR_R: case I_LMSW: case I_CLTS: case I_STAC: case I_CLAC: case I_XSETBV: case I_MOV_SEG:
    case I_POP_SEG: case I_LFP: case I_MOV_DR_R: case I_WRMSR: case I_INVPCID: case I_INVLPG:
    case I_CPUID: /* serializing: what follows is fetched again (SDM vol. 3 §8.3) */
        return true;
    default:
        return false;
    }
}

struct fetched {
    u8 bytes[INSN_MAX]; /* for an instruction that crosses into the next page */
    gpa_t page2;        /* ~0 if it does not */
    enum decode_status bad; /* what ended the fetch at its first instruction */
    u8 bad_len;
};

/* With several vCPUs the bytes may be read only while writes to them are seen: smp.c. */
static bool claimed(struct xl *x, gpa_t page)
{
    if (!x->vm->smp || cache_claimed(x->cache, page))
        return true;
    x->unclaimed = page;
    return false;
}

static enum xret fetch(struct xl *x, struct fetched *f)
{
    struct vcpu *v = x->v;
    enum dmode dm = x->m64 ? DMODE_64 : x->mode & MODE_32 ? DMODE_32 : DMODE_16;
    unsigned off = x->start;
    unsigned max = x->single || (x->vm->debug & VITRO_DEBUG_ONE_INSN) ? 1 : XL_MAX_INSNS;
#ifdef TORTURE /* every length, short ones most of all */
    unsigned mix = (unsigned)((x->page_pa + off) * 0x9e3779b1u >> 20) & 63;
    max = MIN(max, mix < 40 ? 1 + mix % 5 : mix);
#endif
    if (x->mode & MODE_NOSHARE)
        max = MIN(max, v->eng->noshare_insns);
    f->page2 = ~0ull;
    f->bad = DECODE_OK;
    while (x->nr < max && off < 4096) {
        struct insn *in = &x->in[x->nr];
        /* What the code segment has from here on; beyond it the fetch is #GP. */
        u32 room = x->seg ? x->cs_limit - (x->page_eip + off) : ~0u;
        if (x->seg && x->page_eip + off > x->cs_limit)
            break;
        room = MIN(room, (u32)INSN_MAX) + (room < INSN_MAX);
        enum decode_status st = insn_decode(dm, x->page + off, MIN(4096u - off, room), in);
        if (st == DECODE_SHORT && room <= 4096 - off && room < INSN_MAX) {
            st = DECODE_LONG;
        } else if (st == DECODE_SHORT && x->nr == 0) {
            /* Crosses the page: a block of its own, checked against both pages when entered. */
            unsigned n1 = 4096 - off;
            for (unsigned i = 0; i < n1; i++)
                f->bytes[i] = x->page[off + i];
            struct mmu_span span;
            enum xret xr = mmu_walk(v, x->page_la + 4096, ACC_X | vcpu_acc(v), &span);
            if (xr != X_OK)
                return xr;
            const u8 *p2 = ram_ptr(&x->vm->ram, span.gpa & PAGE_MASK, 4096);
            if (!p2)
                return raise_gp0(v);
            if (!claimed(x, span.gpa & PAGE_MASK))
                return X_RETRY;
            for (unsigned i = n1; i < INSN_MAX; i++)
                f->bytes[i] = p2[i - n1];
            st = insn_decode(dm, f->bytes, MIN((u32)INSN_MAX, room), in);
            if (st == DECODE_SHORT)
                st = DECODE_LONG;
            f->page2 = span.gpa & PAGE_MASK;
        }
        if (st != DECODE_OK) {
            if (x->nr == 0) {
                f->bad = st;
                f->bad_len = 1;
            }
            break;
        }
        x->off[x->nr++] = (u16)off;
        off += in->len;
        if (ends_block(x, in))
            break;
    }
    x->off[x->nr] = (u16)off;
    return X_OK;
}

/* How many of the block's first instructions are a loop: up to the last jump to its start. */
static u8 loop_length(const struct xl *x)
{
    if (x->single || x->nochain)
        return 0;
    for (unsigned i = x->nr; i-- > 0;) {
        const struct insn *in = &x->in[i];
        if ((in->id == I_JMP || conditional(in)) && x->off[i] + in->len + (s32)in->imm == x->start)
            return (u8)(i + 1);
    }
    return 0;
}

/*
 * Another block begins amid this one: end there and go on to it, rather than make the same code twice. Not if a loop would no
 * longer be one block, nor to save next to nothing.
 */
#define JOIN_MIN 4
static void join(struct xl *x)
{
    const u64 *starts = x->single || x->nochain || x->mode & MODE_NOSHARE ? NULL : cache_starts(x->cache, x->page_pa);
    for (unsigned i = MAX(x->loop, 1u); starts && i + JOIN_MIN <= x->nr; i++)
        if ((starts[x->off[i] >> 6] >> (x->off[i] & 63) & 1) && x->in[i - 1].id != I_STI &&
            cache_find(x->cache, x->page_pa + x->off[i], x->mode, x->fixed_key)) {
            x->nr = i;
            return;
        }
}

/* -- Closing -------------------------------------------------------------------------------------------- */

/* A record and an exit for a resume point: flags must be in fl or dead. */
static void cold_poll_exit(struct xl *x, unsigned off)
{
    struct fixup f = xl_lea_s1(x, SEC_COLD);
    xl_jmp_stub(x, SEC_COLD, STUB_POLL);
    struct site site = { .off = (u16)off };
    xl_bind(x, f, SEC_COLD, cold_at(x));
    e_bytes(&x->cold, &site, sizeof(site));
}

void tr_poll(struct xl *x, unsigned off)
{
    /* cmp dword [vcpu.event], 0; jne cold */
    e8(&x->hot, 0x41); e8(&x->hot, 0x83); e_modrm_disp(&x->hot, 7, H_VCPU, VOFF(event)); e8(&x->hot, 0);
    struct fixup f = xl_jcc(x, SEC_HOT, 5);
    xl_clobber(x);
    xl_bind(x, f, SEC_COLD, cold_at(x));
    cold_poll_exit(x, off);
}

/* FIP stays as it was (SDM vol. 1 §8.1.8). */
static bool x87_control(const struct insn *in)
{
    return in->id == I_FNINIT || in->id == I_FNCLEX || in->id == I_FLDCW || in->id == I_FNSTCW || in->id == I_FNSTSW ||
           in->id == I_FLDENV || in->id == I_FNSTENV || in->id == I_FRSTOR || in->id == I_FNSAVE;
}

static void translate_insn(struct xl *x)
{
    const struct insn *in = &x->in[x->cur];
    bool poll_after = x->poll_next;
    x->poll_next = false;
    sys_fn bad = class_fault(x, in);
    if (bad) {
        tr_call_helper(x, in, bad, true);
        return;
    }
    if (in->cls == CLS_X87 && !x->x87_noted && !x87_control(in)) { /* push [vbase]; pop [x87_vbase] */
        e8(&x->hot, 0x41); e8(&x->hot, 0xff); e_modrm_disp(&x->hot, 6, H_VCPU, VOFF(vbase));
        e8(&x->hot, 0x41); e8(&x->hot, 0x8f); e_modrm_disp(&x->hot, 0, H_VCPU, VOFF(x87_vbase));
        x->x87_noted = true;
    }
    switch (in->how) {
    case HOW_COPY:
        if (in->id == I_PAUSE && x->vm->smp)
            tr_pause(x, in);
        else
            tr_copy(x, in);
        break;
    case HOW_BRANCH:
        tr_branch(x, in);
        break;
    case HOW_STACK:
        tr_stack(x, in);
        break;
    case HOW_STRING:
        if (!tr_string(x, in))
            tr_system(x, in);
        break;
    default:
        tr_system(x, in);
    }
    if (poll_after && !x->ended) {
        if (x->live[x->cur + 1])
            xl_need_saved(x);
        tr_poll(x, x->off[x->cur + 1]);
    }
}

static void prologue(struct xl *x, struct block *b)
{
    b->entry[ENTRY_IND] = hot_at(x);
    if (x->start)
        e_lea(&x->hot, true, H_S1, H_S1, -(s32)x->start);
    e_store_vcpu(&x->hot, H_S1, VOFF(vbase));
    b->entry[ENTRY_POLL] = hot_at(x);
    tr_poll(x, x->start);
    bug_on(x->hot_buf[b->entry[ENTRY_POLL] + POLL_IMM - 4] != 0x41 || x->hot_buf[b->entry[ENTRY_POLL] + POLL_IMM] != 0);
    /* Who wants the flags first? A consumer: start in host flags. A guard or exit: leave them in fl. */
    b->host_primary = true;
    if (x->live[0]) {
        for (unsigned i = 0; i < x->nr; i++) {
            const struct insn *in = &x->in[i];
            if (in->fl_read & EFL_ARITH) {
                b->host_primary = in->how == HOW_COPY || in->how == HOW_BRANCH;
                if (in->has_mem && in->mem_size)
                    b->host_primary = false;
                break;
            }
            if ((in->has_mem && in->mem_size) || in->how != HOW_COPY) {
                b->host_primary = in->how == HOW_BRANCH && in->id == I_JCC;
                break;
            }
            if (in->fl_write & EFL_ARITH)
                break;
        }
    }
    b->entry[ENTRY_FLAG] = hot_at(x);
    if (x->live[0] && b->host_primary)
        xl_restore_code(x, &x->hot, true);
    if (b->host_primary) {
        b->entry[ENTRY_HOST] = hot_at(x);
        x->fstate = FLAGS_HOST;
        x->fhost_real = x->live[0];
    } else {
        x->fstate = FLAGS_SAVED;
        x->fhost_real = false;
    }
#ifdef TORTURE /* the scratch registers carry nothing from block to block: mov s1, poison; mov s2, s1 */
    e8(&x->hot, 0x49); e8(&x->hot, 0xb8 | (H_S1 & 7)); e64(&x->hot, 0xdead0002dead0002ull);
    e_mov(&x->hot, H_S2, H_S1);
#endif
}

/* Cold pieces every block has: HOST_POLL, and HOST of an fl-primary block. */
static void epilogue(struct xl *x, struct block *b)
{
    u32 host = 0, host_poll = 0;
    if (x->live[0]) {
        host_poll = cold_at(x);
        xl_flags_save(x, SEC_COLD);
        xl_bind(x, xl_jmp(x, SEC_COLD), SEC_HOT, b->entry[ENTRY_POLL]);
    }
    if (!b->host_primary) {
        host = cold_at(x);
        xl_flags_save(x, SEC_COLD);
        xl_bind(x, xl_jmp(x, SEC_COLD), SEC_HOT, b->entry[ENTRY_FLAG]);
    }
    while (hot_at(x) % 16)
        e8(&x->hot, 0xcc);
    b->entry[ENTRY_HOST_POLL] = x->live[0] ? hot_at(x) + host_poll : b->entry[ENTRY_POLL];
    if (!b->host_primary)
        b->entry[ENTRY_HOST] = hot_at(x) + host;
}

/* By eight bytes, up to the next multiple of eight (cache_reserve leaves the room). `rep movsb` takes longer to start. */
static void copy_words(u8 *to, const u8 *from, u32 len)
{
    for (u32 i = 0; i < len; i += 8)
        __builtin_memcpy(to + i, from + i, 8);
}

static bool place(struct xl *x, struct block *b)
{
    u32 hot_len = hot_at(x), cold_len = cold_at(x);
    if (x->hot.overflow || x->cold.overflow)
        return false;
    u8 *cold, *hot = cache_reserve(x->v, x->cache, hot_len, cold_len, &cold);
    if (!hot)
        return false;
    copy_words(cache_rw(x->cache, hot), x->hot_buf, hot_len);
    copy_words(cache_rw(x->cache, cold), x->cold_buf, cold_len);
    for (unsigned i = 0; i < x->nr_relocs; i++) {
        const struct reloc *r = &x->reloc[i];
        u8 *at = (r->sec == SEC_HOT ? hot : cold) + r->at;
        u8 *target = r->tsec == SEC_STUB ? cache_stub(x->cache, r->target)
                     : (r->tsec == SEC_HOT ? hot : cold) + r->target;
        s32 rel = (s32)(target - (at + 4));
        __builtin_memcpy(cache_rw(x->cache, at), &rel, 4);
    }
    b->code = hot;
    b->cold = cold;
    b->hot_len = hot_len;
    b->cold_len = cold_len;
    /* Entries in cold code were given as if it followed the hot. */
    u32 gap = (u32)(cold - (hot + hot_len));
    for (unsigned i = 0; i < NR_ENTRIES; i++)
        if (b->entry[i] >= hot_len)
            b->entry[i] += gap;
    return true;
}

enum xret translate_block(struct vcpu *v, gla_t fixed, struct block **out)
{
    struct xl *x = v->vm->xl;
    bool retry_short = false;
again:
    x->v = v;
    x->vm = v->vm;
    x->cache = v->vm->cache;
    x->mode = v->mode;
    x->slot = v->mode & MODE_SLOT;
    x->m64 = v->mode & MODE_64;
    x->single = v->mode & (MODE_STEP | MODE_BRK);
    x->nochain = x->single || (v->vm->debug & (VITRO_DEBUG_NO_CHAIN | VITRO_TRACE_BLOCK));
    x->hot = (struct buf){ x->hot_buf, x->hot_buf, x->hot_buf + XL_HOT - 64, false };
    x->cold = (struct buf){ x->cold_buf, x->cold_buf, x->cold_buf + XL_COLD - 64, false };
    x->noshare = x->mode & MODE_NOSHARE || x->single || (v->vm->debug & (VITRO_DEBUG_SLOW_PATH | VITRO_DEBUG_ONE_INSN));
    x->grp.active = false;
    tr_held_none(x);
    x->in_the_way = NULL;
    x->hashed = false;
    x->fixed_key = fixed;
    x->fixed = fixed >> 63 && !x->nochain;
    x->seg = !(x->mode & (MODE_64 | MODE_CSFLAT));
    x->narrow = false;
    x->page_eip = (u32)((v->rip & PAGE_MASK) - v->seg[SEG_CS].base);
    x->cs_limit = v->seg[SEG_CS].limit;
    x->nr_relocs = x->nr = 0;
    x->poll_next = x->ended = x->x87_noted = false;
    x->lag = x->sp_moved = 0;
    gla_t la = v->rip;
    x->page_la = la & PAGE_MASK;
    x->start = la & 4095;
    for (unsigned i = 0; i < 2; i++) {
        x->look[i][0] = 4096;
        x->look[i][1] = 0;
    }

    struct mmu_span span;
    enum xret xr = mmu_walk(v, la, ACC_X | vcpu_acc(v), &span);
    if (xr != X_OK)
        return xr;
    x->page_pa = span.gpa & PAGE_MASK;
    x->hashed = cache_wants(x->cache, x->page_pa + x->start, x->mode, WANT_HASHED);
    x->page = ram_ptr(&v->vm->ram, x->page_pa, 4096);
    if (!x->page) {
        vcpu_fail(v, "guest executes at physical address %#llx, which is not memory", (unsigned long long)span.gpa);
        return X_EXIT;
    }
    if (!claimed(x, x->page_pa))
        return X_RETRY;
    smp_note_stores(v); /* before a byte is read: a store that happens from here on may be in what is read, or not */
    recipe_begin(x);
    struct block *old = x->recipe ? cache_asleep(x->cache, x->page_pa + x->start, x->mode, fixed) : NULL;
    if (old && recipe_fits(x, old)) {
        if ((x->in_the_way = smp_conflict(x->vm, old)))
            return X_RETRY;
        recipe_apply(x, old);
        cache_wake(v, x->cache, old);
        *out = old;
        return X_OK;
    }
    struct fetched f;
    xr = fetch(x, &f);
    if (xr != X_OK)
        return xr;
    if (f.bad == DECODE_LONG)
        return raise_gp0(v);
    if (f.bad != DECODE_OK)
        return raise_ud(v);
    if (retry_short)
        x->nr = 1;

    x->loop = loop_length(x);
    join(x);

    struct block proto = { .page = x->page_pa, .page2 = f.page2, .mode = x->mode, .off = x->start, .fixed = fixed };
    proto.end = x->off[x->nr];
    proto.hashed = x->hashed;
    if (x->off[x->nr - 1] + x->in[x->nr - 1].len > 4096 && f.page2 == ~0ull)
        bug("instruction crosses its page", __FILE__, __LINE__);
    flags_liveness(x);
    prologue(x, &proto);
    /* The bytes of a crossing instruction are not contiguous in x->page. */
    x->raw = f.page2 != ~0ull ? f.bytes - x->start : x->page;
    for (x->cur = 0; x->cur < x->nr && !x->ended; x->cur++) {
        x->map[x->cur] = hot_at(x) << 12 | (u32)(x->off[x->cur] - x->start);
        x->cold_map[x->cur] = cold_at(x);
        x->lags[x->cur] = (s8)(x->lag / 8);
        tr_held_begin(x);
        translate_insn(x);
        tr_held_end(x);
        if (x->grp.active && x->cur >= x->grp.last)
            x->grp.active = false;
    }
    bug_on(x->lag);
    x->cur = x->nr - 1;
    if (!x->ended)
        tr_edge(x, x->off[x->nr], -1, false);
    proto.nr_insns = (u16)x->nr;
    for (unsigned i = 0; i < 2; i++) {
        proto.look[i][0] = x->look[i][0] > x->look[i][1] ? 0 : x->look[i][0];
        proto.look[i][1] = x->look[i][0] > x->look[i][1] ? 0 : x->look[i][1];
    }
    epilogue(x, &proto);
    if ((x->in_the_way = smp_conflict(x->vm, &proto)))
        return X_RETRY;
    if (!place(x, &proto)) {
        if (cache_wants_room(x->cache))
            return X_RETRY;
        bug_on(x->nr == 1);
        retry_short = true;
        goto again;
    }
    struct block *b = cache_meta(x->cache, sizeof(*b));
    *b = proto;
    b->map = cache_meta(x->cache, 2 * x->nr * sizeof(u32));
    for (unsigned i = 0; i < x->nr; i++) {
        b->map[i] = x->map[i];
        b->map[x->nr + i] = (b->hot_len + x->cold_map[i]) | (u32)x->lags[i] << 24;
    }
    b->recipe = recipe_make(x, b);
    cache_insert(v, x->cache, b);
    engine_trace(v, VITRO_TRACE_XLAT, "xlat %#llx at %#llx mode %#x: %u instructions, %u bytes to %u and %u cold\n", (unsigned long long)v->rip,
                 (unsigned long long)(b->page + b->off), b->mode, b->nr_insns, (unsigned)(b->end - b->off), b->hot_len, b->cold_len);
    *out = b;
    return X_OK;
}
