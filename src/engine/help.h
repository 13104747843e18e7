/*
 * help.h - C handlers of the instructions that are not re-emitted: sys_<id> for every SYSTEM, STACK and STRING
 * row of insn.def that help_*.c implement. One contract for all: v->rip is the instruction's address; X_OK means
 * that the caller advances RIP by in->len; X_FAULT that v->exc is set and nothing else changed (strings, gathers
 * and scatters: exact progress). The guest's vector registers are live in the host's.
 */
#pragma once
#include "engine/vcpu.h"

#define SYS(id) enum xret sys_##id(struct vcpu *v, const struct insn *in)

/* help_sys.c */
SYS(hlt); SYS(cli); SYS(sti); SYS(cld); SYS(std); SYS(in); SYS(out);
SYS(lgdt); SYS(lidt); SYS(sgdt); SYS(sidt); SYS(smsw); SYS(lmsw); SYS(clts);
SYS(invlpg); SYS(invpcid); SYS(invd); SYS(wbinvd);
SYS(rdmsr); SYS(wrmsr); SYS(rdtsc); SYS(rdtscp); SYS(rdpmc); SYS(rdpid); SYS(cpuid);
SYS(swapgs); SYS(rdfsbase); SYS(rdgsbase); SYS(wrfsbase); SYS(wrgsbase);
SYS(xgetbv); SYS(xsetbv); SYS(monitor); SYS(mwait); SYS(clac); SYS(stac);
SYS(mov_cr_r); SYS(mov_r_cr); SYS(mov_dr_r); SYS(mov_r_dr); SYS(vmcall); SYS(vmmcall);
SYS(bt_mem); SYS(bts_mem); SYS(btr_mem); SYS(btc_mem);
/* help_vec.c */
SYS(fxsave); SYS(fxrstor); SYS(xsave); SYS(xsaveopt); SYS(xsavec); SYS(xsaves); SYS(xrstor); SYS(xrstors);
SYS(maskmovq); SYS(maskmovdqu); SYS(gather); SYS(scatter);
/* help_x87.c */
SYS(fnstenv); SYS(fnsave);
/* help_string.c */
SYS(movs); SYS(stos); SYS(lods); SYS(scas); SYS(cmps); SYS(ins); SYS(outs);
/* help_legacy.c */
SYS(daa); SYS(das); SYS(aaa); SYS(aas); SYS(aam); SYS(aad); SYS(salc); SYS(xlat); SYS(bound);
SYS(pusha); SYS(popa); SYS(enter);
#undef SYS

/* help_cr_write - MOV to CR0, CR2, CR3, CR4 or CR8 with every check; X_OK, or X_FAULT. RIP is not touched; the
 * caller compares v->mode. Also for whoever sets control registers from outside. */
enum xret help_cr_write(struct vcpu *v, unsigned cr, u64 val);
/* help_io_allowed - IOPL and the TSS's I/O permission bitmap: X_OK, or X_FAULT (#GP(0)). */
enum xret help_io_allowed(struct vcpu *v, u16 port, unsigned size);
/* help_pushf - the RFLAGS image PUSHF stores: VM and RF clear. */
u64 help_pushf(const struct vcpu *v);
/*
 * help_popf - load flags as POPF of `opsize` 2, 4 or 8 does at this CPL and IOPL. X_OK (v->mode is fresh; a held
 * interrupt is re-armed if IF rose), or X_FAULT (#GP(0): virtual-8086 mode with IOPL < 3).
 */
enum xret help_popf(struct vcpu *v, u64 value, unsigned opsize);
/* Port accesses with the vector state put away around the call; NULL members of the table allowed. */
u32 help_port_in(struct vcpu *v, u16 port, unsigned size);
void help_port_out(struct vcpu *v, u16 port, unsigned size, u32 value);

/* x87_guest_pointers - the host's FIP and FDP in an FXSAVE or XSAVE image, as the host's REX.W form stored it, become the
 * guest's; @wide: in that form, else in the one without REX.W. */
void x87_guest_pointers(struct vcpu *v, u8 *area, bool wide);

static inline u64 host_rdtsc(void)
{
    u32 lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (u64)hi << 32 | lo;
}
static inline u64 vcpu_tsc(const struct vcpu *v) { return host_rdtsc() + v->tsc_offset; }
