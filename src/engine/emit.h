/*
 * emit.h - host instruction encoder for what the translator itself adds. Every function is headed by
 * the assembly it makes. Buffers latch overflow: later calls do nothing, one check at the end suffices.
 */
#pragma once
#include "engine/engine.h"
#include "engine/stub_offsets.h"

/* Host registers. Guest rax..rdi (but rsp), r12, r13 live in their own names; guest rsp in r15, r14 and r15 in r8 and r9;
 * guest r8 to r11 in vcpu->regs. Why these: stubs.S. */
#define H_S1 10u
#define H_S2 11u
#define H_VCPU 14u
#define H_SP 15u

struct buf {
    u8 *p, *start, *end;
    bool overflow;
};
static inline void e8(struct buf *b, u8 v)
{
    if (unlikely(b->p + 1 > b->end)) { b->overflow = true; return; }
    *b->p++ = v;
}
static inline void e_bytes(struct buf *b, const void *src, unsigned n)
{
    if (unlikely(b->p + n > b->end)) { b->overflow = true; return; }
    for (unsigned i = 0; i < n; i++)
        b->p[i] = ((const u8 *)src)[i];
    b->p += n;
}
static inline void e16(struct buf *b, u16 v) { e_bytes(b, &v, 2); }
static inline void e32(struct buf *b, u32 v) { e_bytes(b, &v, 4); }
static inline void e64(struct buf *b, u64 v) { e_bytes(b, &v, 8); }

/* ModRM + SIB + displacement for [base + disp]; reg and base are full numbers (REX is the caller's). */
static inline void e_modrm_disp(struct buf *b, unsigned reg, unsigned base, s32 disp)
{
    unsigned r = (reg & 7) << 3, m = base & 7;
    unsigned mod = disp == 0 && m != 5 ? 0 : disp >= -128 && disp <= 127 ? 1 : 2;
    e8(b, (u8)(mod << 6 | r | m));
    if (m == 4)
        e8(b, 0x24);
    if (mod == 1)
        e8(b, (u8)disp);
    else if (mod == 2)
        e32(b, (u32)disp);
}
/* ModRM + SIB for [base + index*scale + disp]; index != rsp. */
static inline void e_modrm_sib(struct buf *b, unsigned reg, unsigned base, unsigned index, unsigned scale, s32 disp)
{
    unsigned ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp >= -128 && disp <= 127 ? 1 : 2;
    e8(b, (u8)(mod << 6 | (reg & 7) << 3 | 4));
    e8(b, (u8)(ss << 6 | (index & 7) << 3 | (base & 7)));
    if (mod == 1)
        e8(b, (u8)disp);
    else if (mod == 2)
        e32(b, (u32)disp);
}
static inline u8 rex(bool w, unsigned reg, unsigned index, unsigned base)
{
    return (u8)(0x40 | w << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (base >> 3 & 1));
}
/* op reg64, [base + disp] */
static inline void e_rm64(struct buf *b, u8 op, unsigned reg, unsigned base, s32 disp)
{
    e8(b, rex(1, reg, 0, base)); e8(b, op); e_modrm_disp(b, reg, base, disp);
}
/* op reg64, rm64 */
static inline void e_rr64(struct buf *b, u8 op, unsigned reg, unsigned rm)
{
    e8(b, rex(1, reg, 0, rm)); e8(b, op); e8(b, (u8)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}
/* op reg32, rm32 */
static inline void e_rr32(struct buf *b, u8 op, unsigned reg, unsigned rm)
{
    if ((reg | rm) & 8)
        e8(b, rex(0, reg, 0, rm));
    e8(b, op); e8(b, (u8)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}
#define VOFF(member) ((s32)offsetof(struct vcpu, member) - VCPU_BIAS)
/* mov reg64, [vcpu + member] */
static inline void e_load_vcpu(struct buf *b, unsigned reg, s32 disp) { e_rm64(b, 0x8b, reg, H_VCPU, disp); }
/* mov [vcpu + member], reg64 */
static inline void e_store_vcpu(struct buf *b, unsigned reg, s32 disp) { e_rm64(b, 0x89, reg, H_VCPU, disp); }
/* mov reg64, reg64 */
static inline void e_mov(struct buf *b, unsigned dst, unsigned src) { e_rr64(b, 0x8b, dst, src); }
/* lea dst, [base + disp]; w: 64 or 32 bits */
static inline void e_lea(struct buf *b, bool w, unsigned dst, unsigned base, s32 disp)
{
    e8(b, rex(w, dst, 0, base)); e8(b, 0x8d); e_modrm_disp(b, dst, base, disp);
}
/* rorx dst, src, n: dst one of s1 and s2 (VEX.LZ.F2.0F3A.W1 F0 /r ib) */
static inline void e_rorx(struct buf *b, unsigned dst, unsigned src, unsigned n)
{
    e8(b, 0xc4); e8(b, src >= 8 ? 0x43 : 0x63); e8(b, 0xfb); e8(b, 0xf0); e8(b, (u8)(0xc0 | (dst & 7) << 3 | (src & 7))); e8(b, (u8)n);
}
