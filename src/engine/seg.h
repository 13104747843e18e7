/*
 * seg.h - descriptors and stacks, shared by seg.c, far.c and exc.c. Nothing else needs it.
 * Source: Intel SDM vol. 3 §3.4-3.5 (segments, descriptors), §5.8 (gates), §8.7 (64-bit TSS).
 *
 *    63     56 55 52 51  48 47           40 39            16 15             0
 *   +---------+-----+------+---------------+----------------+----------------+
 *   | base    |GDLA |limit |P DPL S   type | base 23:0      | limit 15:0     |
 *   +---------+-----+------+---------------+----------------+----------------+
 * A long-mode system descriptor (LDT, TSS, call gate) has a second quadword: address bits 63:32.
 */
#pragma once
#include "engine/vcpu.h"

/* Types of system descriptors (S = 0), SDM vol. 3 table 3-2 */
enum sys_type {
    SYS_TSS16 = 1, SYS_LDT = 2, SYS_TSS16_BUSY = 3, SYS_CALL16 = 4, SYS_TASK_GATE = 5, SYS_INTR16 = 6,
    SYS_TRAP16 = 7, SYS_TSS = 9, SYS_TSS_BUSY = 11, SYS_CALL = 12, SYS_INTR = 14, SYS_TRAP = 15,
};

/* Attributes of the flat segments that SYSCALL, SYSENTER and friends load without a descriptor. */
#define ATTR_CODE64 (SEG_P | SEG_S | SEG_CODE | SEG_R | SEG_A | SEG_L | SEG_G)
#define ATTR_CODE32 (SEG_P | SEG_S | SEG_CODE | SEG_R | SEG_A | SEG_DB | SEG_G)
#define ATTR_STACK (SEG_P | SEG_S | SEG_W | SEG_A | SEG_DB | SEG_G)
#define ATTR_DPL3 (3u << SEG_DPL_SHIFT)

static inline u64 desc_base(u64 d) { return ((d >> 16) & 0xffffff) | ((d >> 56) << 24); }
static inline u32 desc_attr(u64 d) { return (u32)(d >> 40) & 0xf0ff; }
static inline u32 desc_limit(u64 d)
{
    u32 limit = (u32)(d & 0xffff) | ((u32)(d >> 32) & 0xf0000);

    return desc_attr(d) & SEG_G ? limit << 12 | 0xfff : limit;
}
static inline unsigned attr_dpl(u32 attr) { return (attr >> SEG_DPL_SHIFT) & 3; }
static inline bool attr_is_code(u32 attr) { return (attr & (SEG_S | SEG_CODE)) == (SEG_S | SEG_CODE); }
static inline bool attr_is_conforming(u32 attr)
{
    return (attr & (SEG_S | SEG_CODE | SEG_C)) == (SEG_S | SEG_CODE | SEG_C);
}
static inline bool attr_is_writable(u32 attr) { return (attr & (SEG_S | SEG_CODE | SEG_W)) == (SEG_S | SEG_W); }
/* sel_error - error code naming a selector; ext is the EXT bit, 0 or 1 */
static inline u32 sel_error(u16 sel, u32 ext) { return (sel & 0xfffcu) | ext; }
static inline bool sel_is_null(u16 sel) { return !(sel & 0xfffc); }

/* seg_fill - load the cache from a descriptor. A 64-bit code segment has no base. */
static inline void seg_fill(const struct vcpu *v, struct seg *s, u16 sel, u64 desc)
{
    s->attr = desc_attr(desc);
    s->base = (s->attr & SEG_L) && attr_is_code(s->attr) && vcpu_long_mode(v) ? 0 : desc_base(desc);
    s->limit = desc_limit(desc);
    s->sel = sel;
}
/* seg_null_stack - the null SS of 64-bit mode; DPL is kept, as VMX does, since it is the CPL. */
static inline struct seg seg_null_stack(unsigned cpl)
{
    return (struct seg){ .sel = (u16)cpl, .attr = SEG_UNUSABLE | cpl << SEG_DPL_SHIFT };
}
/* seg_holds - is [off, off+size) inside the limit? Expand-down segments are valid above it. */
static inline bool seg_holds(const struct seg *s, u64 off, unsigned size)
{
    u64 last = off + size - 1;

    if ((s->attr & (SEG_S | SEG_CODE | SEG_E)) != (SEG_S | SEG_E))
        return last <= s->limit;
    return off > s->limit && last <= (s->attr & SEG_DB ? 0xffffffffu : 0xffffu);
}

/*
 * desc_read - fetch the 8-byte descriptor a selector names (not null).
 * @vector, @ext: what to raise beyond the table's limit: #vector(sel | ext). @addr may be NULL.
 */
enum xret desc_read(struct vcpu *v, u16 sel, unsigned vector, u32 ext, u64 *desc, gla_t *addr);
/* desc_set_bits - set bits in descriptor byte 5 (accessed, busy), in memory and in *desc, if not set. */
enum xret desc_set_bits(struct vcpu *v, gla_t addr, u64 *desc, u32 bits);
/* seg_load - MOV/POP/LxS into ES, SS, DS, FS, GS with every check of the current mode. X_OK or X_FAULT. */
enum xret seg_load(struct vcpu *v, unsigned segreg, u16 sel);
/* seg_load_real - real and V86 mode: base is the selector times 16. */
void seg_load_real(struct vcpu *v, unsigned segreg, u16 sel);
/* seg_drop_inner - after a return to an outer level: null data segments the new CPL may not use. */
void seg_drop_inner(struct vcpu *v, unsigned cpl);

/* Where a stack pointer wraps: all of RSP, 32 or 16 bits. */
static inline u64 stack_mask(const struct vcpu *v)
{
    return vcpu_code64(v) ? ~0ull : v->seg[SEG_SS].attr & SEG_DB ? 0xffffffffull : 0xffffull;
}
/* stack_merge - RSP with the part under the mask replaced; 32-bit writes zero-extend. */
static inline u64 stack_merge(u64 old, u64 sp, u64 mask)
{
    return mask == 0xffff ? (old & ~0xffffull) | (sp & 0xffff) : sp & mask;
}
/*
 * stack_pop - read n values of `size` bytes from `delta` bytes above the stack's top; SP is not moved.
 */
enum xret stack_pop(struct vcpu *v, unsigned delta, unsigned n, unsigned size, u64 *val);
/*
 * stack_push - write n values (val[0] at the lowest address) below *sp on a stack that need not be the
 * current one. @mask 0 means 64-bit: the segment is ignored. @err: error code of the #SS when
 * it does not fit. On X_OK *sp is the new pointer.
 */
enum xret stack_push(struct vcpu *v, const struct seg *ss, u64 mask, unsigned cpl, u32 err, const u64 *val,
                     unsigned n, unsigned size, u64 *sp);
/* tss_stack64 - RSP0-2 (index 0-2) or IST1-7 (index 4-10) of the 64-bit TSS. */
enum xret tss_stack64(struct vcpu *v, unsigned index, u32 ext, u64 *rsp);
/* tss_stack32 - SS:ESP for a level from a 16- or 32-bit TSS, SS checked (SDM vol. 3 §6.12.1). */
enum xret tss_stack32(struct vcpu *v, unsigned cpl, u32 ext, struct seg *ss, u64 *sp);

/* exc.c: INT n in virtual-8086 mode with CR4.VME. exc_redirected - the TSS's redirection bitmap: X_OK or X_FAULT.
 * exc_redirect - to the 8086 program's own handler: X_JUMP or X_FAULT. */
enum xret exc_redirected(struct vcpu *v, unsigned vector, bool *redirect);
enum xret exc_redirect(struct vcpu *v, unsigned vector, u64 next_ip);

/* -- Hardware tasks (task.c) ---- */
enum task_how { TASK_JMP, TASK_CALL, TASK_IRET, TASK_EVENT };
struct task_switch {
    unsigned how;      /* enum task_how                                            */
    u16 sel;           /* the new TSS                                              */
    u32 eip;           /* the old task's: where it goes on                         */
    bool set_rf;       /* its EFLAGS image has RF: a fault, to be restarted        */
    bool has_error;    /* push `error` on the new task's stack                     */
    u32 error, ext;
};
/*
 * task_switch - SDM vol. 3 §7.3. X_JUMP; X_FAULT with *made false: nothing has changed; X_FAULT with *made true: the new
 * task is there and the fault is its own, at v->rip.
 */
enum xret task_switch(struct vcpu *v, const struct task_switch *t, bool *made);
/* task_gate - far jmp or call (TASK_JMP, TASK_CALL) through a task gate; task_return - iret with NT set. */
enum xret task_gate(struct vcpu *v, u16 gate_sel, u64 gate, unsigned how, u32 eip);
enum xret task_return(struct vcpu *v, u32 eip);

/* copy_bytes - memcpy that certainly stays out of the vector registers. */
static inline void copy_bytes(void *dst, const void *src, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
}

/* Handlers: seg.c and far.c. See struct insn; v->rip is the instruction's address. */
typedef enum xret sys_handler(struct vcpu *v, const struct insn *in);
sys_handler sys_mov_seg, sys_mov_from_seg, sys_pop_seg, sys_lfp, sys_lldt, sys_ltr, sys_sldt, sys_str, sys_lar, sys_lsl,
    sys_verr, sys_verw, sys_arpl;
sys_handler sys_iret, sys_syscall, sys_sysret, sys_sysenter, sys_sysexit, sys_call_far, sys_jmp_far, sys_ret_far,
    sys_int, sys_int3, sys_int1, sys_into;
