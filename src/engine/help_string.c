/*
 * help_string.c - MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with and without a repeat prefix.
 * Source: Intel SDM vol. 2 (each, and "REP"); vol. 1 §7.3.9.
 *
 * A repeat runs in stretches that lie in one page of RAM on each side, by the host's own string instruction on host
 * pointers: element order, and so overlapping moves, come out as on hardware. What has no host pointer (MMIO,
 * an element across pages, the end of a segment) goes one element at a time, and pages with translations by pieces, through
 * mem_read and mem_write, which also raise the fault with the right address. RSI, RDI and RCX are up to date after
 * every stretch, so faults and interrupts find an exact restart point; X_RETRY leaves RIP for the rest.
 */
#include "engine/help.h"
#include "engine/mode.h"

#define SYS(id) enum xret sys_##id(struct vcpu *v, const struct insn *in)
#define FL_ZF (EFL_ZF << 8) /* in vcpu->fl */
#define SHORT_RUN 128       /* bytes below which the host's rep costs more than a loop */
#define PIECE 512           /* bytes that are written to a page with translations at once */

struct run {
    struct vcpu *v;
    unsigned size, shift, addrsize; /* bytes of an element, and their logarithm */
    bool rep, down, flat64;
    unsigned src_seg;
    u64 left;  /* elements */
    u64 burst; /* at most so many at a time: one when each iteration is stepped */
};

static u64 offset_get(const struct run *r, unsigned reg)
{
    u64 x = r->v->regs[reg];
    return r->addrsize == 8 ? x : r->addrsize == 4 ? (u32)x : (u16)x;
}

static void offset_set(const struct run *r, unsigned reg, u64 x)
{
    u64 *p = &r->v->regs[reg];
    *p = r->addrsize == 8 ? x : r->addrsize == 4 ? (u32)x : (*p & ~0xffffull) | (u16)x;
}

static inline struct run run_begin(struct vcpu *v, const struct insn *in)
{
    struct run r = {
        .v = v,
        .size = in->opcode & 1 ? in->opsize : 1,
        .addrsize = in->addrsize,
        .rep = in->prefixes & (PFX_F2 | PFX_F3),
        .down = v->eflags & EFL_DF,
        .flat64 = vcpu_code64(v),
        .src_seg = in->seg_override ? in->seg : SEG_DS,
    };
    r.shift = (unsigned)__builtin_ctz(r.size);
    r.left = r.rep ? offset_get(&r, RCX) : 1;
    r.burst = v->mode & MODE_STEP ? 1 : ~0ull;
    return r;
}

static enum xret linear(const struct run *r, unsigned seg, u64 off, unsigned size, unsigned acc, gla_t *la)
{
    if (r->flat64 && seg != SEG_FS && seg != SEG_GS && is_canonical(off)) {
        *la = off;
        return X_OK;
    }
    return seg_linear(r->v, seg, off, size, acc, la);
}

/*
 * window - how many of the next elements can be reached through one host pointer, and the pointer to the first of
 * them (with DF set the others lie below it). 0: take the slow path for one element.
 */
static u64 window(const struct run *r, unsigned seg, u64 off, unsigned acc, u8 **first)
{
    gla_t la;
    void *p;
    if (linear(r, seg, off, r->size, acc, &la) != X_OK)
        return 0;
    u64 in_page = la & (PAGE_SIZE - 1), n = MIN(r->left, r->burst);
    if (in_page + r->size > PAGE_SIZE)
        return 0;
    n = MIN(n, r->down ? (in_page >> r->shift) + 1 : (PAGE_SIZE - in_page) >> r->shift);
    if (r->addrsize != 8) { /* the offset wraps before the page ends */
        u64 top = 1ull << r->addrsize * 8;
        n = MIN(n, r->down ? (off >> r->shift) + 1 : (top - off) >> r->shift);
    }
    if (!n)
        return 0;
    u64 back = r->down ? (n - 1) * r->size : 0;
    if (!r->flat64 && n > 1 && seg_linear(r->v, seg, off - back, (unsigned)(n * r->size), acc, &la) != X_OK)
        return 0; /* the segment ends in this stretch */
    else if (r->flat64 || n == 1)
        la -= back;
    if (mem_host(r->v, la, (unsigned)(n * r->size), acc | vcpu_acc(r->v), &p) != X_OK || !p)
        return 0;
    *first = (u8 *)p + back;
    return n;
}

/* n elements are done: move the index registers in use and the count. */
static void advance(struct run *r, bool si, bool di, u64 n)
{
    u64 step = r->down ? 0 - n * r->size : n * r->size;
    if (si)
        offset_set(r, RSI, offset_get(r, RSI) + step);
    if (di)
        offset_set(r, RDI, offset_get(r, RDI) + step);
    r->left -= n;
    if (r->rep)
        offset_set(r, RCX, r->left);
}

/* Stop here and come back? The dispatcher has an event to handle, or a step trap to raise. */
static bool interrupted(const struct run *r)
{
    return r->left && unlikely(r->v->event || r->burst == 1);
}

static enum xret element_read(struct run *r, unsigned seg, u64 off, u64 *val)
{
    gla_t la;
    *val = 0;
    if (linear(r, seg, off, r->size, ACC_R, &la) != X_OK)
        return X_FAULT;
    return mem_read(r->v, la, val, r->size, ACC_R | vcpu_acc(r->v));
}

static enum xret element_write(struct run *r, u64 off, u64 val)
{
    gla_t la;
    if (linear(r, SEG_ES, off, r->size, ACC_W, &la) != X_OK)
        return X_FAULT;
    return mem_write(r->v, la, &val, r->size, ACC_W | vcpu_acc(r->v));
}

/* -- The host's string instructions ---------------------------------------------------------------------- */

#define BY_SIZE(size, DO) \
    switch (size) { \
    case 1: DO("b"); break; \
    case 2: DO("w"); break; \
    case 4: DO("l"); break; \
    default: DO("q"); break; \
    }

static void host_movs(u8 *d, const u8 *s, u64 n, unsigned size, bool down)
{
    u64 bytes = n * size;
    if (down) {
#define DO(w) __asm__ volatile("std\n\trep movs" w "\n\tcld" : "+D"(d), "+S"(s), "+c"(n) : : "memory", "cc")
        BY_SIZE(size, DO)
#undef DO
        return;
    }
    if (bytes <= SHORT_RUN && (u64)(d - s) >= bytes) {
        for (; bytes >= 8; bytes -= 8, s += 8, d += 8) {
            u64 x;
            __builtin_memcpy(&x, s, 8);
            __builtin_memcpy(d, &x, 8);
            __asm__ volatile("" : : : "memory");
        }
        for (; bytes; bytes--) {
            *d++ = *s++;
            __asm__ volatile("" : : : "memory");
        }
        return;
    }
#define DO(w) __asm__ volatile("rep movs" w : "+D"(d), "+S"(s), "+c"(n) : : "memory")
    BY_SIZE(size, DO)
#undef DO
}

static void host_stos(u8 *d, u64 val, u64 n, unsigned size, bool down)
{
    u64 bytes = n * size;
    if (down) {
#define DO(w) __asm__ volatile("std\n\trep stos" w "\n\tcld" : "+D"(d), "+c"(n) : "a"(val) : "memory", "cc")
        BY_SIZE(size, DO)
#undef DO
        return;
    }
    if (bytes <= SHORT_RUN) {
        if (size == 1)
            val = (u8)val * 0x0101010101010101ull;
        else if (size == 2)
            val = (u16)val * 0x0001000100010001ull;
        else if (size == 4)
            val = (u32)val * 0x0000000100000001ull;
        for (; bytes >= 8; bytes -= 8, d += 8) {
            __builtin_memcpy(d, &val, 8);
            __asm__ volatile("" : : : "memory");
        }
        for (; bytes; bytes--, val >>= 8) {
            *d++ = (u8)val;
            __asm__ volatile("" : : : "memory");
        }
        return;
    }
#define DO(w) __asm__ volatile("rep stos" w : "+D"(d), "+c"(n) : "a"(val) : "memory")
    BY_SIZE(size, DO)
#undef DO
}

/* Compare until the count or the condition ends it. Returns how many were left; *fl in vcpu->fl's form. */
static u64 host_scas(const u8 *d, u64 val, u64 n, unsigned size, bool down, bool repne, u16 *fl)
{
    u64 ax = val;
#define DO3(pre, rep, w) \
    __asm__ volatile(pre rep " scas" w "\n\tcld\n\tlahf\n\tseto %%al" : "+D"(d), "+c"(n), "+a"(ax) : : "memory", "cc")
#define DO_UE(w) DO3("", "repe", w)
#define DO_UNE(w) DO3("", "repne", w)
#define DO_DE(w) DO3("std\n\t", "repe", w)
#define DO_DNE(w) DO3("std\n\t", "repne", w)
    if (!down && !repne) {
        BY_SIZE(size, DO_UE)
    } else if (!down) {
        BY_SIZE(size, DO_UNE)
    } else if (!repne) {
        BY_SIZE(size, DO_DE)
    } else {
        BY_SIZE(size, DO_DNE)
    }
#undef DO3
    *fl = (u16)ax;
    return n;
}

static u64 host_cmps(const u8 *s, const u8 *d, u64 n, unsigned size, bool down, bool repne, u16 *fl)
{
    u64 ax = 0;
#define DO3(pre, rep, w) \
    __asm__ volatile(pre rep " cmps" w "\n\tcld\n\tlahf\n\tseto %%al" \
                     : "+S"(s), "+D"(d), "+c"(n), "+a"(ax) : : "memory", "cc")
    if (!down && !repne) {
        BY_SIZE(size, DO_UE)
    } else if (!down) {
        BY_SIZE(size, DO_UNE)
    } else if (!repne) {
        BY_SIZE(size, DO_DE)
    } else {
        BY_SIZE(size, DO_DNE)
    }
#undef DO3
#undef DO_UE
#undef DO_UNE
#undef DO_DE
#undef DO_DNE
    *fl = (u16)ax;
    return n;
}

/* -- Pages with translations: kernels clear and copy many that held programs --------------------------------------------- */

/*
 * piece - how many of the next elements lie in one page of RAM that holds translations, a PIECE at most, and where they would be written;
 * 0: there is none such, or not two.
 */
static u64 piece(const struct run *r, u64 off, gla_t *la, const u8 **host)
{
    u64 n = MIN(r->left, r->burst);
    if (n < 2 || r->down || (r->v->mode & MODE_AC) || linear(r, SEG_ES, off, r->size, ACC_W, la) != X_OK)
        return 0;
    n = MIN(n, MIN(PAGE_SIZE - (*la & (PAGE_SIZE - 1)), (u64)PIECE) >> r->shift);
    if (r->addrsize != 8) /* the offset wraps first */
        n = MIN(n, ((1ull << r->addrsize * 8) - off) >> r->shift);
    gla_t same;
    if (n < 2 || (!r->flat64 && seg_linear(r->v, SEG_ES, off, (unsigned)(n * r->size), ACC_W, &same) != X_OK))
        return 0;
    *host = mem_watched(r->v, *la, vcpu_acc(r->v));
    return *host ? n : 0;
}

static enum xret piece_write(const struct run *r, gla_t la, const u8 *buf, u64 n)
{
    return mem_write(r->v, la, buf, (unsigned)(n * r->size), ACC_W | ACC_LOOSE | vcpu_acc(r->v));
}

/* -- MOVS, STOS, LODS ------------------------------------------------------------------------------------------ */

SYS(movs)
{
    struct run r = run_begin(v, in);
    u64 ns = 0, nd = 0; /* how far s and d reach; the two sides' pages end at different places */
    u8 *s = NULL, *d = NULL;
    const u8 *to;
    gla_t la;
    while (r.left) {
        u64 si = offset_get(&r, RSI), di = offset_get(&r, RDI), n;
        if (!ns)
            ns = window(&r, r.src_seg, si, ACC_R, &s);
        if (ns && !nd)
            nd = window(&r, SEG_ES, di, ACC_W, &d);
        if (ns && nd) {
            n = MIN(ns, nd);
            host_movs(d, s, n, r.size, r.down);
            ns -= n;
            nd -= n;
            s = r.down ? s - n * r.size : s + n * r.size;
            d = r.down ? d - n * r.size : d + n * r.size;
        } else if (ns && (n = piece(&r, di, &la, &to)) && (n = MIN(n, ns)) && (u64)(to - s) >= n * r.size) {
            if (piece_write(&r, la, s, n) != X_OK)
                return X_FAULT;
            ns = nd = 0;
        } else {
            u64 val;
            if (element_read(&r, r.src_seg, si, &val) != X_OK || element_write(&r, di, val) != X_OK)
                return X_FAULT;
            n = 1;
            ns = nd = 0; /* the element may have dropped code, or waited for another vCPU */
        }
        advance(&r, true, true, n);
        if (interrupted(&r))
            return X_RETRY;
    }
    return X_OK;
}

SYS(stos)
{
    struct run r = run_begin(v, in);
    u8 buf[PIECE];
    const u8 *to;
    gla_t la;
    while (r.left) {
        u64 di = offset_get(&r, RDI), n;
        u8 *d;
        if ((n = window(&r, SEG_ES, di, ACC_W, &d))) {
            host_stos(d, v->regs[RAX], n, r.size, r.down);
        } else if ((n = piece(&r, di, &la, &to))) {
            host_stos(buf, v->regs[RAX], n, r.size, false);
            if (piece_write(&r, la, buf, n) != X_OK)
                return X_FAULT;
        } else {
            if (element_write(&r, di, v->regs[RAX]) != X_OK)
                return X_FAULT;
            n = 1;
        }
        advance(&r, false, true, n);
        if (interrupted(&r))
            return X_RETRY;
    }
    return X_OK;
}

SYS(lods)
{
    struct run r = run_begin(v, in);
    while (r.left) {
        u64 si = offset_get(&r, RSI), n, val = 0;
        u8 *s;
        if ((n = window(&r, r.src_seg, si, ACC_R, &s))) {
            u64 last = (n - 1) * r.size; /* only the last one stays */
            s = r.down ? s - last : s + last;
            switch (r.size) {
            case 1: val = *s; break;
            case 2: __builtin_memcpy(&val, s, 2); break;
            case 4: __builtin_memcpy(&val, s, 4); break;
            default: __builtin_memcpy(&val, s, 8); break;
            }
        } else {
            if (element_read(&r, r.src_seg, si, &val) != X_OK)
                return X_FAULT;
            n = 1;
        }
        gpr_write(v, RAX, r.size, true, val);
        advance(&r, true, false, n);
        if (interrupted(&r))
            return X_RETRY;
    }
    return X_OK;
}

/* -- SCAS, CMPS ---------------------------------------------------------------------------------------------------- */

/* Does the repeat condition hold no more? (REPE: ZF clear; REPNE: ZF set) */
static bool condition_ended(const struct run *r, const struct insn *in)
{
    return r->rep && !(r->v->fl & FL_ZF) == !(in->prefixes & PFX_F2);
}

SYS(scas)
{
    struct run r = run_begin(v, in);
    bool repne = in->prefixes & PFX_F2;
    while (r.left) {
        u64 di = offset_get(&r, RDI), n;
        u8 *d;
        if ((n = window(&r, SEG_ES, di, ACC_R, &d))) {
            n -= host_scas(d, v->regs[RAX], n, r.size, r.down, repne, &v->fl);
        } else {
            u64 val;
            if (element_read(&r, SEG_ES, di, &val) != X_OK)
                return X_FAULT;
            host_scas((u8 *)&val, v->regs[RAX], 1, r.size, false, repne, &v->fl);
            n = 1;
        }
        advance(&r, false, true, n);
        if (condition_ended(&r, in))
            return X_OK;
        if (interrupted(&r))
            return X_RETRY;
    }
    return X_OK;
}

SYS(cmps)
{
    struct run r = run_begin(v, in);
    bool repne = in->prefixes & PFX_F2;
    while (r.left) {
        u64 si = offset_get(&r, RSI), di = offset_get(&r, RDI), n, m;
        u8 *s, *d;
        if ((n = window(&r, r.src_seg, si, ACC_R, &s)) && (m = window(&r, SEG_ES, di, ACC_R, &d))) {
            n = MIN(n, m);
            n -= host_cmps(s, d, n, r.size, r.down, repne, &v->fl);
        } else {
            u64 a, b;
            if (element_read(&r, r.src_seg, si, &a) != X_OK || element_read(&r, SEG_ES, di, &b) != X_OK)
                return X_FAULT;
            host_cmps((u8 *)&a, (u8 *)&b, 1, r.size, false, repne, &v->fl);
            n = 1;
        }
        advance(&r, true, true, n);
        if (condition_ended(&r, in))
            return X_OK;
        if (interrupted(&r))
            return X_RETRY;
    }
    return X_OK;
}

/* -- INS, OUTS ------------------------------------------------------------------------------------------------------ */

static void host_store(u8 *p, u32 val, unsigned size)
{
    if (size == 1)
        *p = (u8)val;
    else if (size == 2)
        __builtin_memcpy(p, &val, 2);
    else
        __builtin_memcpy(p, &val, 4);
}

static u32 host_fetch(const u8 *p, unsigned size)
{
    u32 val = 0;
    if (size == 1)
        val = *p;
    else if (size == 2)
        __builtin_memcpy(&val, p, 2);
    else
        __builtin_memcpy(&val, p, 4);
    return val;
}

SYS(ins)
{
    struct run r = run_begin(v, in);
    u16 port = (u16)v->regs[RDX];
    r.size = MIN(r.size, 4u);
    if (help_io_allowed(v, port, r.size) != X_OK)
        return X_FAULT;
    while (r.left) {
        u64 di = offset_get(&r, RDI), n;
        u8 *d;
        if ((n = window(&r, SEG_ES, di, ACC_W, &d))) {
            s64 step = r.down ? -(s64)r.size : (s64)r.size;
            fpu_leave(v); /* once for the stretch: the calls inside only count */
            for (u64 i = 0; i < n; i++, d += step)
                host_store(d, help_port_in(v, port, r.size), r.size);
            fpu_enter(v);
        } else {
            gla_t la; /* a port read cannot be taken back: make sure of the store first */
            if (linear(&r, SEG_ES, di, r.size, ACC_W, &la) != X_OK ||
                mem_probe(v, la, r.size, ACC_W | vcpu_acc(v)) != X_OK)
                return X_FAULT;
            u32 val = help_port_in(v, port, r.size);
            if (mem_write(v, la, &val, r.size, ACC_W | vcpu_acc(v)) != X_OK)
                return X_FAULT;
            n = 1;
        }
        advance(&r, false, true, n);
        if (interrupted(&r))
            return X_RETRY;
    }
    return X_OK;
}

SYS(outs)
{
    struct run r = run_begin(v, in);
    u16 port = (u16)v->regs[RDX];
    r.size = MIN(r.size, 4u);
    if (help_io_allowed(v, port, r.size) != X_OK)
        return X_FAULT;
    while (r.left) {
        u64 si = offset_get(&r, RSI), n;
        u8 *s;
        if ((n = window(&r, r.src_seg, si, ACC_R, &s))) {
            s64 step = r.down ? -(s64)r.size : (s64)r.size;
            fpu_leave(v);
            for (u64 i = 0; i < n; i++, s += step)
                help_port_out(v, port, r.size, host_fetch(s, r.size));
            fpu_enter(v);
        } else {
            u64 val;
            if (element_read(&r, r.src_seg, si, &val) != X_OK)
                return X_FAULT;
            help_port_out(v, port, r.size, (u32)val);
            n = 1;
        }
        advance(&r, true, false, n);
        if (interrupted(&r))
            return X_RETRY;
    }
    return X_OK;
}
