/*
 * help_vec.c - instructions that move vector state through memory in ways a guard cannot wrap: FXSAVE and XSAVE
 * families, MASKMOV, gathers and scatters. The state itself is live in the host's registers (fpu.h).
 * Source: Intel SDM vol. 1 §10.5, §13.7-13.13; vol. 2 "VPGATHERDD", "VPSCATTERDD", "MASKMOVDQU".
 *
 * Restores work on a private copy: another vCPU could change the area between our checks and the host's
 * instruction, which must not fault. Saves run on guest memory when it is one page of RAM.
 *
 * Deviations: XSAVEOPT and XSAVES save what XSAVE and XSAVEC do: the host would judge "unmodified" by host
 * addresses, which are not the guest's.
 */
#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/fpu.h"
#include "engine/help.h"
#include "engine/mode.h"

#define SYS(id) enum xret sys_##id(struct vcpu *v, const struct insn *in)
#define MXCSR_OFFSET 24
#define XCOMP_COMPACTED (1ull << 63)

struct xsave_header {
    u64 xstate_bv, xcomp_bv, reserved[6];
};

static bool rex_w(const struct insn *in)
{
    return in->rex & 8;
}

static u32 area_mxcsr(const u8 *area)
{
    u32 m;
    __builtin_memcpy(&m, area + MXCSR_OFFSET, 4);
    return m;
}

/* #AC where alignment is checked and la is not a multiple of n. */
static enum xret aligned_to(struct vcpu *v, gla_t la, unsigned n)
{
    return (v->mode & MODE_AC) && (la & (n - 1)) ? raise_error(v, VEC_AC, 0) : X_OK;
}

/* -- Registers that only 64-bit mode has --------------------------------------------------------------------- */

/*
 * Outside 64-bit mode a save leaves the bytes of registers 8 and up as they are in memory, and a restore leaves those
 * registers as they are (SDM vol. 2, FXSAVE; vol. 1 §13.5.2, §13.5.3, §13.5.6). The host runs in 64-bit mode: these
 * bytes are put back after a save, and filled from the registers before a restore.
 */
#define FX_UPPER 288u /* XMM8-15 */
#define FX_UPPER_LEN 128u

/* Where component i, 2 and up, is in an area: @layout is XCOMP_BV of a compacted one, 0 of a standard one. */
static u32 component_at(const struct vcpu *v, u64 layout, unsigned i)
{
    if (!layout)
        return v->model->xstate[i].offset;
    return cpu_model_xsave_size(v->model, layout & (BITULL(i + 1) - 1), true) - v->model->xstate[i].size;
}

/* The upper registers' part of component i. 0: it has none */
static u32 upper_part(const struct vcpu *v, unsigned i, u32 *len)
{
    u32 size = v->model->xstate[i].size;
    *len = 0;
    if (i == 2 || i == 6) /* YMM_Hi128, ZMM_Hi256: half of the registers */
        *len = size / 2;
    else if (i == 7) /* Hi16_ZMM */
        *len = size;
    return size - *len;
}

/* In an area of this form (see component_at): the bytes of upper registers, from another one of the same form. */
static void copy_upper(const struct vcpu *v, u8 *to, const u8 *from, u64 components, u64 layout)
{
    engine_copy(to + FX_UPPER, from + FX_UPPER, FX_UPPER_LEN);
    for (unsigned i = 2; i < ARRAY_SIZE(v->model->xstate); i++) {
        u32 len, at;
        if (!(components >> i & 1))
            continue;
        at = component_at(v, layout, i) + upper_part(v, i, &len);
        engine_copy(to + at, from + at, len);
    }
}

/* -- FXSAVE ----------------------------------------------------------------------------------------------- */

static enum xret fx_address(struct vcpu *v, const struct insn *in, unsigned acc, gla_t *la)
{
    if (v->cr0 & (CR0_TS | CR0_EM))
        return raise_fault(v, VEC_NM);
    if (insn_linear(v, in, XSAVE_LEGACY, acc, la) != X_OK)
        return X_FAULT;
    if (aligned_to(v, *la, 4) != X_OK)
        return X_FAULT;
    return *la & 15 ? raise_gp0(v) : X_OK;
}

SYS(fxsave)
{
    u8 buf[XSAVE_LEGACY] __attribute__((aligned(64)));
    gla_t la;
    void *p;
    if (fx_address(v, in, ACC_W, &la) != X_OK ||
        mem_host(v, la, XSAVE_LEGACY, ACC_R | ACC_W | vcpu_acc(v), &p) != X_OK)
        return X_FAULT;
    if (p && vcpu_code64(v)) {
        fpu_fxsave(p, true);
        x87_guest_pointers(v, p, rex_w(in));
        return X_OK;
    }
    /* The last 48 bytes are the program's own. */
    if (mem_read(v, la, buf, XSAVE_LEGACY, ACC_R | vcpu_acc(v)) != X_OK)
        return X_FAULT;
    u8 upper[FX_UPPER_LEN];
    engine_copy(upper, buf + FX_UPPER, FX_UPPER_LEN);
    fpu_fxsave(buf, true);
    x87_guest_pointers(v, buf, rex_w(in));
    if (!vcpu_code64(v))
        engine_copy(buf + FX_UPPER, upper, FX_UPPER_LEN);
    return mem_write(v, la, buf, XSAVE_LEGACY, ACC_W | vcpu_acc(v));
}

SYS(fxrstor)
{
    u8 buf[XSAVE_LEGACY] __attribute__((aligned(64)));
    gla_t la;
    if (fx_address(v, in, ACC_R, &la) != X_OK || mem_read(v, la, buf, XSAVE_LEGACY, ACC_R | vcpu_acc(v)) != X_OK)
        return X_FAULT;
    if (area_mxcsr(buf) & ~v->model->mxcsr_mask)
        return raise_gp0(v);
    if (!vcpu_code64(v)) {
        u8 now[XSAVE_LEGACY] __attribute__((aligned(64)));
        fpu_fxsave(now, true);
        engine_copy(buf + FX_UPPER, now + FX_UPPER, FX_UPPER_LEN);
    }
    fpu_fxrstor(buf, rex_w(in));
    return X_OK;
}

/* -- XSAVE -------------------------------------------------------------------------------------------------- */

static enum xret x_address(struct vcpu *v, const struct insn *in, u32 size, unsigned acc, bool cpl0, gla_t *la)
{
    if (!(v->cr4 & CR4_OSXSAVE))
        return raise_ud(v);
    if (v->cr0 & CR0_TS)
        return raise_fault(v, VEC_NM);
    if (cpl0 && v->cpl != 0)
        return raise_gp0(v);
    if (insn_linear(v, in, size, acc, la) != X_OK)
        return X_FAULT;
    return *la & 63 ? raise_gp0(v) : X_OK;
}

/* The requested-feature bitmap: EDX:EAX as far as XCR0 allows. XSS is always zero. */
static u64 requested(const struct vcpu *v)
{
    return ((v->regs[RDX] << 32) | (u32)v->regs[RAX]) & v->xcr0;
}

static void store(struct vcpu *v, u8 *area, u64 rfbm, bool compacted, bool wide)
{
    u64 bv;
    if (compacted)
        fpu_xsavec(area, rfbm, true);
    else
        fpu_xsave(area, rfbm, true);
    __builtin_memcpy(&bv, area + XSAVE_LEGACY, 8);
    if (rfbm & bv & XFEATURE_X87)
        x87_guest_pointers(v, area, wide);
}

static enum xret save(struct vcpu *v, const struct insn *in, bool compacted, bool cpl0)
{
    u8 buf[XSAVE_AREA_MAX] __attribute__((aligned(64)));
    u64 rfbm = requested(v);
    u32 size = cpu_model_xsave_size(v->model, rfbm, compacted);
    gla_t la;
    void *p;

    if (x_address(v, in, size, ACC_W, cpl0, &la) != X_OK ||
        mem_host(v, la, size, ACC_R | ACC_W | vcpu_acc(v), &p) != X_OK)
        return X_FAULT;
    if (p && vcpu_code64(v)) {
        store(v, p, rfbm, compacted, rex_w(in));
        return X_OK;
    }
    if (mem_read(v, la, buf, size, ACC_R | vcpu_acc(v)) != X_OK)
        return X_FAULT;
    if (vcpu_code64(v)) {
        store(v, buf, rfbm, compacted, rex_w(in));
    } else {
        u8 old[XSAVE_AREA_MAX];
        engine_copy(old, buf, size);
        store(v, buf, rfbm, compacted, rex_w(in));
        copy_upper(v, buf, old, rfbm, compacted ? rfbm | XCOMP_COMPACTED : 0);
    }
    return mem_write(v, la, buf, size, ACC_W | vcpu_acc(v));
}
SYS(xsave) { return save(v, in, false, false); }
SYS(xsaveopt) { return save(v, in, false, false); }
SYS(xsavec) { return save(v, in, true, false); }
SYS(xsaves) { return save(v, in, true, true); }

/* SDM vol. 1 §13.8.1 (standard), §13.8.2 and §13.12 (compacted). */
static bool header_ok(const struct vcpu *v, const struct xsave_header *h, bool must_compact)
{
    u64 layout = h->xcomp_bv & ~XCOMP_COMPACTED;
    if (!(h->xcomp_bv & XCOMP_COMPACTED))
        return !must_compact && !h->xcomp_bv && !h->reserved[0] && !(h->xstate_bv & ~v->xcr0);
    if (!cpu_model_has(v->model, 0xd, 1, 0, 1) || (layout & ~v->xcr0) || (h->xstate_bv & ~layout))
        return false;
    return !(h->reserved[0] | h->reserved[1] | h->reserved[2] | h->reserved[3] | h->reserved[4] | h->reserved[5]);
}

/*
 * XRSTOR outside 64-bit mode, of a checked area: what it loads, and what it initialises, together with the upper
 * registers as they are, in a standard area. MXCSR: SDM vol. 1 §13.8.1 and §13.8.2.
 */
static void restore_lower(struct vcpu *v, const u8 *area, u64 rfbm, const struct xsave_header *h)
{
    u8 full[XSAVE_AREA_MAX] __attribute__((aligned(64))), now[XSAVE_AREA_MAX] __attribute__((aligned(64)));
    u64 load = rfbm & h->xstate_bv, upper = rfbm & (XFEATURE_SSE | XFEATURE_AVX | XFEATURE_ZMM_HI256 | XFEATURE_HI16_ZMM);
    u64 bv = load | upper;
    u32 mxcsr = area_mxcsr(area);
    fpu_init_image(full);
    fpu_init_image(now);
    fpu_xsave(now, upper | XFEATURE_SSE, true);
    if (load & XFEATURE_X87) {
        engine_copy(full, area, MXCSR_OFFSET);
        engine_copy(full + 32, area + 32, 128);
    }
    if (load & XFEATURE_SSE)
        engine_copy(full + 160, area + 160, FX_UPPER - 160);
    for (unsigned i = 2; i < ARRAY_SIZE(v->model->xstate); i++)
        if (load >> i & 1)
            engine_copy(full + v->model->xstate[i].offset, area + component_at(v, h->xcomp_bv, i), v->model->xstate[i].size);
    copy_upper(v, full, now, upper, 0);
    if (h->xcomp_bv & XCOMP_COMPACTED)
        mxcsr = !(rfbm & XFEATURE_SSE) ? area_mxcsr(now) : load & XFEATURE_SSE ? mxcsr : MXCSR_INIT;
    __builtin_memcpy(full + MXCSR_OFFSET, &mxcsr, 4);
    __builtin_memcpy(full + XSAVE_LEGACY, &bv, 8);
    fpu_xrstor(full, rfbm, false);
}

static enum xret restore(struct vcpu *v, const struct insn *in, bool supervisor)
{
    u8 buf[XSAVE_AREA_MAX] __attribute__((aligned(64)));
    const u32 fixed = XSAVE_LEGACY + XSAVE_HEADER;
    unsigned acc = ACC_R | vcpu_acc(v);
    u64 rfbm = requested(v);
    struct xsave_header h;
    gla_t la;

    if (x_address(v, in, fixed, ACC_R, supervisor, &la) != X_OK || mem_read(v, la, buf, fixed, acc) != X_OK)
        return X_FAULT;
    __builtin_memcpy(&h, buf + XSAVE_LEGACY, sizeof h);
    if (!header_ok(v, &h, supervisor))
        return raise_gp0(v);

    /* Read only as far as the last component that will be loaded. */
    bool compacted = h.xcomp_bv & XCOMP_COMPACTED;
    u64 load = rfbm & h.xstate_bv, below = load ? ~0ull >> __builtin_clzll(load) : 0;
    u32 end = compacted ? cpu_model_xsave_size(v->model, h.xcomp_bv & below, true)
                        : cpu_model_xsave_size(v->model, load, false);
    if (end > fixed && mem_read(v, la + fixed, buf + fixed, end - fixed, acc) != X_OK)
        return X_FAULT;

    if (area_mxcsr(buf) & ~v->model->mxcsr_mask) {
        const u32 init = MXCSR_INIT;
        if (compacted ? load & XFEATURE_SSE : rfbm & (XFEATURE_SSE | XFEATURE_AVX))
            return raise_gp0(v);
        __builtin_memcpy(buf + MXCSR_OFFSET, &init, 4); /* not loaded; some CPUs look all the same */
    }
    if (vcpu_code64(v))
        fpu_xrstor(buf, rfbm, rex_w(in));
    else
        restore_lower(v, buf, rfbm, &h);
    return X_OK;
}
SYS(xrstor) { return restore(v, in, false); }
SYS(xrstors) { return restore(v, in, true); }

/* -- MASKMOV ------------------------------------------------------------------------------------------------- */

static enum xret mask_move(struct vcpu *v, const struct insn *in, const u8 *data, const u8 *mask, unsigned len)
{
    unsigned first = len, last = 0, i, j;
    gva_t off = v->regs[RDI];
    gla_t la;
    if (in->addrsize != 8)
        off = in->addrsize == 4 ? (u32)off : (u16)off;
    for (i = 0; i < len; i++)
        if (mask[i] & 0x80) {
            first = MIN(first, i);
            last = i;
        }
    unsigned seg = in->seg_override ? in->seg : SEG_DS, acc = ACC_W | ACC_LOOSE | vcpu_acc(v);
    if (seg_linear(v, seg, off, 1, ACC_W, &la) == X_OK && aligned_to(v, la, 8) != X_OK)
        return X_FAULT; /* whatever the mask */
    if (first == len)
        return X_OK;
    if (seg_linear(v, seg, off + first, last - first + 1, ACC_W, &la) != X_OK ||
        mem_probe(v, la, last - first + 1, acc) != X_OK)
        return X_FAULT;
    for (i = first; i <= last; i = j) {
        for (j = i; j <= last && (mask[j] & 0x80); j++)
            ;
        if (j > i && mem_write(v, la + (i - first), data + i, j - i, acc) != X_OK)
            return X_FAULT;
        while (j <= last && !(mask[j] & 0x80))
            j++;
    }
    return X_OK;
}

SYS(maskmovdqu)
{
    u8 data[16], mask[16];
    fpu_get_xmm(in->reg, data);
    fpu_get_xmm(in->rm, mask);
    return mask_move(v, in, data, mask, 16);
}

SYS(maskmovq)
{
    u16 status;
    __asm__ volatile("fnstsw %0" : "=a"(status));
    if (status & 0x80) /* an x87 exception is pending; reading an MMX register would raise it in here */
        return raise_fault(v, VEC_MF);
    u64 data = fpu_get_mmx(in->reg), mask = fpu_get_mmx(in->rm);
    return mask_move(v, in, (const u8 *)&data, (const u8 *)&mask, 8);
}

/* -- Gather and scatter ------------------------------------------------------------------------------------------ */

/*
 * Element by element from the lowest, so that a fault finds every element below it done and its mask bit
 * clear: the instruction can be restarted. `todo` is the mask, a bit an element, updated.
 */
static enum xret vsib_elements(struct vcpu *v, const struct insn *in, const u8 *index, u8 *data, unsigned nr,
                               unsigned elem, u64 *todo, bool store)
{
    unsigned index_size = in->opcode & 1 ? 8 : 4;
    u64 base = (in->base == REG_NONE ? 0 : v->regs[in->base]) + (u64)in->disp;
    unsigned acc = (store ? ACC_W : ACC_R) | ACC_LOOSE | vcpu_acc(v);
    for (unsigned i = 0; i < nr; i++) {
        s64 x;
        gla_t la;
        if (!(*todo >> i & 1))
            continue;
        if (index_size == 8) {
            __builtin_memcpy(&x, index + i * 8, 8);
        } else {
            s32 x32;
            __builtin_memcpy(&x32, index + i * 4, 4);
            x = x32;
        }
        gva_t off = base + (u64)x * in->scale;
        if (in->addrsize == 4)
            off = (u32)off;
        if (seg_linear(v, in->seg, off, elem, store ? ACC_W : ACC_R, &la) != X_OK)
            return X_FAULT;
        enum xret r = store ? mem_write(v, la, data + i * elem, elem, acc) : mem_read(v, la, data + i * elem, elem, acc);
        if (r != X_OK)
            return X_FAULT;
        *todo &= ~BITULL(i);
    }
    return X_OK;
}

static void zero64(u8 *p)
{
    for (unsigned i = 0; i < 64; i += 8)
        *(volatile u64 *)(p + i) = 0;
}

static enum xret gather_vex(struct vcpu *v, const struct insn *in, unsigned elem, unsigned nr)
{
    u8 index[64] __attribute__((aligned(64))), data[64] __attribute__((aligned(64)));
    u8 mask[64] __attribute__((aligned(64)));
    u64 todo = 0;
    if (in->reg == in->index || in->reg == in->vvvv || in->index == in->vvvv)
        return raise_ud(v);
    zero64(data);
    zero64(mask);
    fpu_get_vec(in->index, in->vl, index);
    fpu_get_vec(in->vvvv, in->vl, mask);
    fpu_get_vec(in->reg, in->vl, data);
    for (unsigned i = 0; i < nr; i++)
        todo |= (u64)(mask[i * elem + elem - 1] >> 7) << i;

    enum xret r = vsib_elements(v, in, index, data, nr, elem, &todo, false);
    zero64(mask);
    if (r == X_OK) { /* above the data: zero */
        for (unsigned i = nr * elem; i < 64; i += 8)
            *(volatile u64 *)(data + i) = 0;
    } else {
        for (unsigned i = 0; i < nr * elem; i++)
            *(volatile u8 *)(mask + i) = todo >> (i / elem) & 1 ? 0xff : 0;
    }
    fpu_set_vec(in->reg, in->vl, data);
    fpu_set_vec(in->vvvv, in->vl, mask);
    return r;
}

static enum xret evex_vsib(struct vcpu *v, const struct insn *in, unsigned elem, unsigned nr, bool store)
{
    u8 index[64] __attribute__((aligned(64))), data[64] __attribute__((aligned(64)));
    if (in->mask == 0 || (in->evex_p2 & 0x80) || (!store && in->reg == in->index))
        return raise_ud(v);
    u64 k = fpu_get_mask(in->mask), todo = k & (BITULL(nr) - 1);
    fpu_get_vec(in->index, in->vl, index);
    fpu_get_vec(in->reg, in->vl, data);
    enum xret r = vsib_elements(v, in, index, data, nr, elem, &todo, store);
    fpu_set_mask(in->mask, r == X_OK ? 0 : (k & ~(BITULL(nr) - 1)) | todo);
    if (!store) {
        unsigned bytes = MAX(nr * elem, 16u);
        if (nr * elem == 8)
            *(volatile u64 *)(data + 8) = 0;
        fpu_set_vec(in->reg, r == X_OK ? bytes : in->vl, data);
    }
    return r;
}

static enum xret vsib(struct vcpu *v, const struct insn *in, bool store)
{
    unsigned elem = in->vex_w ? 8 : 4, index_size = in->opcode & 1 ? 8 : 4;
    unsigned nr = in->vl / MAX(elem, index_size);
    if (in->addrsize == 2)
        return raise_ud(v);
    return in->enc == ENC_EVEX ? evex_vsib(v, in, elem, nr, store) : gather_vex(v, in, elem, nr);
}
SYS(gather) { return vsib(v, in, false); }
SYS(scatter) { return vsib(v, in, true); }
