/*
 * vcpu.h - the guest CPU's state, and how C helpers see it.
 *
 * Emitted code addresses this structure through a host register (see stubs.S), biased so that the
 * first 256 bytes are disp8: the members in the "hot" part are an ABI with the emitter and asserted
 * there. Only the vCPU's own thread touches it, except `event` (atomic) and what vcpu_kick() uses.
 *
 * The structure is mapped several times, once for each address space the TLB remembers (tlb.h), so a
 * struct vcpu pointer has aliases: compare vCPUs by ->index, never by address.
 */
#pragma once
#include <unistd.h> /* before the next line: access(2) has an X_OK too */
#undef X_OK

#include "base/types.h"
#include "engine/decode.h"
#include "engine/host.h"
#include "mem/ram.h"
#include "x86/x86.h"

/* What doing one guest instruction returned; the effect on state is part of its definition. */
enum xret {
    X_OK,    /* retired; the caller advances RIP by the length            */
    X_FAULT, /* vcpu->exc is set; no other guest-visible change           */
    X_RETRY, /* nothing changed, or exact partial progress (rep): run the same instruction again */
    X_JUMP,  /* retired; the handler set RIP (and perhaps the mode)       */
    X_EXIT,  /* vcpu->exit says what the embedder must do before resuming; RIP is already right */
};

struct seg {
    u64 base;
    u32 limit; /* bytes, granularity applied */
    u32 attr;  /* SEG_* (x86.h) */
    u16 sel;
};

struct dtable {
    u64 base;
    u16 limit;
};

struct exc {
    u8 vector;
    bool has_error;
    u32 error;
    u64 cr2;  /* #PF  */
    u64 dr6;  /* #DB: bits to set in DR6 */
};

/* vcpu->event bits: anyone may set one with vcpu_kick(); emitted code polls the word. */
#define EVENT_INTR 0x1u     /* the interrupt line may have changed: ask host->intr_ack when IF allows */
#define EVENT_NMI 0x2u
#define EVENT_STOP 0x4u     /* leave vcpu_run with EXIT_INTR */
#define EVENT_DEBUG 0x8u    /* gdb stub or trace wants the vCPU */
#define EVENT_RESCHED 0x10u /* engine internal: code cache or TLB work for this vCPU */
#define EVENT_WAKE 0x20u    /* end this HLT, or the next one */
#define EVENT_FLUSH 0x40u   /* drop the whole TLB */
#define EVENT_FLUSH_PAGES 0x80u /* drop what smp.flush lists */
#define EVENT_FLUSH_SPACES 0x100u /* drop the TLB but for global mappings */

/* vcpu->int_shadow: both hold interrupts back, the second also the traps of its own instruction (SDM vol. 3 §6.8.3) */
#define SHADOW_STI 1
#define SHADOW_SS 2

enum vcpu_exit {
    EXIT_NONE,
    EXIT_HLT,      /* halted; run again after an event (vcpu_run checks) */
    EXIT_INTR,     /* EVENT_STOP */
    EXIT_SHUTDOWN, /* triple fault */
    EXIT_DEBUG,    /* breakpoint, watchpoint or step for the debugger */
    EXIT_FAIL,     /* vcpu->fail_msg says why: something no definition covers */
};

struct vm;

struct vcpu {
    /* -- hot: disp8 from the biased base; offsets asserted in stubs.S and emit.h ------------- */
    u64 regs[NR_GPR]; /* guest GPRs; while translated code runs only r8 to r11 live here */
    u64 tmp[3];       /* emitted code's spill slots                                          */
    u64 s1, s2;       /* scratch registers at entry to a slow path, and what to resume with  */
    u64 vbase;        /* linear address of the page being executed (RIP & ~0xfff); at VCPU_BIAS */
    u16 fl;           /* arithmetic flags when not in host flags: low byte OF, high byte LAHF */
    u16 pad0;
    volatile u32 event; /* EVENT_*; 0 while nothing is wanted                                 */
    u32 eflags;       /* every EFLAGS bit but the arithmetic ones (those are in fl)          */
    u32 intr_wait;    /* EVENT_INTR or EVENT_NMI was seen while it could not be taken: sti/popf/iret look here */
    u64 host_rsp;     /* return-prediction stack while C runs                                */
    u64 c_rsp;        /* C stack while translated code runs                                  */
    u64 hsp_base;     /* bottom of the return-prediction stack in use                        */
    u64 region;       /* space->base + bias: what the host register holds in emitted code    */
    u64 rip;          /* linear address; valid whenever C runs: the instruction being done    */
    u64 sp_distance;  /* of the window RSP is in, while code with windows runs (tr_window.c)   */
    /* -- cold -------------------------------------------------------------------------------- */
    u64 cs_tag;       /* what a jump cache's key has above a linear RIP: which CS base and limit (run.c); 0: flat */
    /* What stub_syscall and stub_sysret need, kept by vcpu_mode_changed (run.c); offsets in stub_offsets.h. */
    u32 syscall_ok, sysret_ok;  /* the short way may be taken now                             */
    u32 mode_kernel, mode_user; /* v->mode on the other side                                  */
    u64 hsp_saved[2];           /* pointer of the prediction stack not in use: kernel's, user's */
    u64 hsp_bottom[2];
    u32 hstack_user;            /* which one is in use                                         */
    u32 mode;                   /* MODE_* key of translations valid now (mode.h)               */
    struct seg syscall_cs, syscall_ss, sysret_cs, sysret_ss; /* kernel's, user's; outside ring 0 by outer.c */
    struct seg seg[NR_SEG];
    struct dtable gdtr, idtr;
    u64 cr0, cr2, cr3, cr4, cr8, efer, xcr0;
    u64 dr[8];        /* dr4/dr5 alias handled by the handlers; dr[6], dr[7] */
    u8 cpl;           /* == SS.DPL; 0 in real mode */
    u8 int_shadow;    /* SHADOW_*, between sti / mov ss / pop ss and the end of the next instruction */
    u8 nmi_masked;    /* between NMI delivery and iret                                       */
    u8 halted;        /* 1: HLT; HALTED_MWAIT (mwait.h) */
    u8 outer;         /* the guest's kernel runs outside ring 0 (outer.c) */
    u8 a20_off;       /* bit 20 of physical addresses is masked (mmu.c)                      */
    u8 wake;          /* EVENT_WAKE came while not halted: the next HLT goes on at once */
    struct exc exc;   /* valid when a helper returns X_FAULT */
    enum vcpu_exit exit;
    char fail_msg[160];

    /* MSRs the engine keeps */
    u64 star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux, pat, xss;
    u64 sysenter_cs, sysenter_esp, sysenter_eip;
    u64 tsc_offset;   /* guest TSC = host TSC + tsc_offset */
    u64 tsc_adjust;
    u64 mtrr_def_type, mtrr_fixed[11], mtrr_var[16], misc_enable, spec_ctrl;

    /* owners and look-ups */
    struct vm *vm;
    struct vcpu *self;       /* canonical alias */
    unsigned index;
    const struct engine_host *host;
    struct tlb_space *space; /* current address space's TLB set (tlb.h) */
    struct engine_vcpu *eng; /* translator- and dispatcher-private per-vCPU state */
    struct cpu_model *model; /* CPUID and MSR policy (cpuid.h) */

    /* FPU: while translated code runs the guest's vector state is in the host's registers */
    u8 fpu_loaded;
    u8 *fpu;                 /* XSAVE area (64-byte aligned) when not loaded */

    /* counters (stats) */
    u64 nr_exc[32], nr_intr, nr_sys[NR_INSN_IDS];
    u64 nr_outer_calls, nr_outer_carried; /* SYSCALL of a kernel outside ring 0; of its user code, brought to that kernel */
    u64 nr_tlb_fill, nr_slow, nr_mmio, nr_walk;

    /* MSRs without an effect on the engine (msr.c) */
    u64 hwcr, de_cfg, mcg_status;
    u64 nr_msr_unknown;      /* accesses that raised #GP for want of a row */
    u8 fpu_depth;            /* fpu_leave calls beyond the first (fpu.c) */
    u64 x87_vbase;           /* vbase of the last block that had an x87 instruction (help_x87.c) */
    s32 pauses;              /* PAUSEs until the host's CPU is given away (smp.c) */
    s64 seg_max[6][2];       /* outside 64-bit mode: last offset that may be read, written; -1: ask seg_linear */
};

/* -- flags -------------------------------------------------------------------------------- */
/* vcpu_eflags - the whole architectural EFLAGS image (helpers run with arithmetic flags in ->fl). */
static inline u32 vcpu_eflags(const struct vcpu *v)
{
    return v->eflags | EFL_R1 | ((v->fl >> 8) & 0xd5u) | ((v->fl & 1u) << 11);
}
/* vcpu_set_eflags - set all of it; the caller has decided which bits may change. Refresh the mode
 * afterwards (vcpu_mode_changed) if TF, VM or AC may differ, and intr state if IF was raised. */
static inline void vcpu_set_eflags(struct vcpu *v, u32 f)
{
    v->fl = (u16)(((f & 0xd5u) | 2u) << 8 | ((f >> 11) & 1u));
    v->eflags = f & ~(EFL_ARITH | EFL_R1);
}

/* -- raising ------------------------------------------------------------------------------ */
static inline enum xret raise_fault(struct vcpu *v, unsigned vector)
{
    v->exc = (struct exc){ .vector = (u8)vector };
    return X_FAULT;
}
static inline enum xret raise_error(struct vcpu *v, unsigned vector, u32 error)
{
    v->exc = (struct exc){ .vector = (u8)vector, .has_error = true, .error = error };
    return X_FAULT;
}
#define raise_gp0(v) raise_error((v), VEC_GP, 0)
#define raise_ud(v) raise_fault((v), VEC_UD)

/* -- predicates --------------------------------------------------------------------------- */
static inline bool vcpu_long_mode(const struct vcpu *v) { return v->efer & EFER_LMA; }
static inline bool vcpu_code64(const struct vcpu *v) { return (v->efer & EFER_LMA) && (v->seg[SEG_CS].attr & SEG_L); }
static inline bool vcpu_protected(const struct vcpu *v) { return v->cr0 & CR0_PE; }
static inline bool vcpu_v86(const struct vcpu *v) { return v->eflags & EFL_VM; }
static inline unsigned vcpu_iopl(const struct vcpu *v) { return (v->eflags >> 12) & 3; }
static inline bool is_canonical(u64 a) { return (u64)((s64)(a << 16) >> 16) == a; }

/*
 * v->rip is a linear address; what the guest sees is the offset in CS. vcpu_set_ip: CS is loaded already.
 */
static inline u64 vcpu_ip(const struct vcpu *v) { return vcpu_code64(v) ? v->rip : (u32)(v->rip - v->seg[SEG_CS].base); }
static inline void vcpu_set_ip(struct vcpu *v, u64 ip) { v->rip = vcpu_code64(v) ? ip : (u32)(v->seg[SEG_CS].base + ip); }
/* vcpu_rip_at - the linear RIP of page offset `off` of the page that translated code is in. */
static inline u64 vcpu_rip_at(const struct vcpu *v, u64 off) { return vcpu_code64(v) ? v->vbase + off : (u32)(v->vbase + off); }

/* -- memory as an instruction sees it (slow.c) ---------------------------------------- */
#define ACC_R 1u
#define ACC_W 2u
#define ACC_X 4u
#define ACC_USER 8u   /* CPL 3 access                                            */
#define ACC_SYS 16u   /* implicit supervisor access (descriptor tables, TSS, IDT stacks): ignores
                         CPL; SMAP applies as to EFLAGS.AC = 0 (SDM vol. 3 §4.6)          */
#define ACC_LOOSE 64u  /* never alignment-checked                                */
#define ACC_HASHED 32u /* the TLB entry of code translated with the hashed index (tlb.h) */
/* vcpu_acc - ACC_USER when CPL is 3, to be ORed with ACC_R/ACC_W. */
static inline unsigned vcpu_acc(const struct vcpu *v) { return v->cpl == 3 ? ACC_USER : 0; }
/*
 * mem_read, mem_write - copy len (1..4096) bytes at a linear address through guest paging and the TLB;
 * MMIO and page crossings included. X_OK, or X_FAULT with #PF in vcpu->exc and no byte written.
 * Not canonical in long mode: #GP(0). In legacy modes addresses wrap at 4 GiB.
 */
enum xret mem_read(struct vcpu *v, gla_t la, void *buf, unsigned len, unsigned acc);
enum xret mem_write(struct vcpu *v, gla_t la, const void *buf, unsigned len, unsigned acc);
/* mem_read_known, mem_write_known - the same, if the TLB has all of it and nothing is watched. False: nothing was done. */
bool mem_read_known(struct vcpu *v, gla_t la, void *buf, unsigned len, unsigned acc);
bool mem_write_known(struct vcpu *v, gla_t la, const void *buf, unsigned len, unsigned acc);
/* mem_probe - would the access succeed? Walks (A/D set for ACC_W) and raises, copies nothing. */
enum xret mem_probe(struct vcpu *v, gla_t la, unsigned len, unsigned acc);
/* mem_host - host pointer to [la, la+len) if it lies in one page of plain RAM (no code watch on writes),
 * else NULL with X_OK, or X_FAULT. */
enum xret mem_host(struct vcpu *v, gla_t la, unsigned len, unsigned acc, void **host);
/* mem_watched - the host address of a byte of RAM whose page holds translations: to write it, mem_write(). NULL: it does not, or is
 * not to be written, or somebody watches. */
const u8 *mem_watched(struct vcpu *v, gla_t la, unsigned acc);
/* mem_locked - a host pointer at which a locked operation on [la, la+len) is atomic, wherever in RAM that is; translations
 * of those bytes are dropped. NULL with X_OK: MMIO, or memory that cannot be mapped twice; or X_FAULT. */
enum xret mem_locked(struct vcpu *v, gla_t la, unsigned len, unsigned acc, void **host);

/* -- what engine files offer each other ------------------------------------------------------- */
/*
 * insn_linear - effective linear address of a decoded memory operand, with segmentation checks
 * (limit, type, null selector, canonical) for `size` bytes. seg.c.
 * X_OK or X_FAULT (#GP(0), or #SS(0) for the stack segment).
 */
enum xret insn_linear(struct vcpu *v, const struct insn *in, unsigned size, unsigned acc, gla_t *la);
/* insn_offset - the effective address alone (offset in the segment, truncated to the address size). seg.c */
gva_t insn_offset(const struct vcpu *v, const struct insn *in);
/* seg_linear - linear address of seg:off with the same checks. seg.c */
enum xret seg_linear(struct vcpu *v, unsigned segreg, gva_t off, unsigned size, unsigned acc, gla_t *la);

/* A GPR by number and size as the encoding names it (1-byte without REX: 4-7 are ah..bh). */
u64 gpr_read(const struct vcpu *v, unsigned reg, unsigned size, bool rex);
void gpr_write(struct vcpu *v, unsigned reg, unsigned size, bool rex, u64 val);
/* rm_read, rm_write - the ModRM.rm operand, register or memory, of `size` bytes. seg.c */
enum xret rm_read(struct vcpu *v, const struct insn *in, unsigned size, u64 *val);
enum xret rm_write(struct vcpu *v, const struct insn *in, unsigned size, u64 val);

/* vcpu_mode_changed - recompute v->mode after CS, SS, CR0, CR4, EFER, EFLAGS.{AC,VM,TF}, CPL, XCR0, DR7
 * or a segment base may have changed (run.c). Cheap. */
void vcpu_mode_changed(struct vcpu *v);
/* vcpu_cs_changed - the same after a far transfer within real or V86 mode that changed nothing but CS's base, and EFLAGS
 * without VM; TF, AC are as they were. */
void vcpu_cs_changed(struct vcpu *v);
/* tlb_flush_* (tlb.c): what INVLPG, INVPCID and CR writes need. */
void tlb_flush_page(struct vcpu *v, gla_t la);                 /* current PCID, and global */
void tlb_flush_page_pcid(struct vcpu *v, gla_t la, u16 pcid);  /* INVPCID type 0: not global */
void tlb_flush_pcid(struct vcpu *v, u16 pcid);                 /* not global */
void tlb_flush_all(struct vcpu *v, bool global_too);           /* every PCID */
/* tlb_switch - CR3 or CR4.PCIDE changed: make the set of this PCID current; flush it unless noflush. */
void tlb_switch(struct vcpu *v, bool noflush);
/* tlb_switch_to - the set of any number. tlb_flush_user - for struct vitro_outer: vitro_vcpu_flush_user(). */
void tlb_switch_to(struct vcpu *v, u16 pcid, bool noflush);
void tlb_flush_user(struct vcpu *v, bool keep);

/* engine_a20 - follow the board's A20 line: flush what was translated under the other setting. run.c */
void engine_a20(struct vcpu *v);

/* exc.c */
/*
 * exc_deliver - take v->exc (fault, trap; pushes v->rip as it stands) through the IDT, with #DF and
 * triple-fault escalation. X_JUMP, or X_EXIT (EXIT_SHUTDOWN).
 */
enum xret exc_deliver(struct vcpu *v);
/* intr_deliver - external interrupt or NMI with the given vector. Same results. */
enum xret intr_deliver(struct vcpu *v, unsigned vector);
/* exc_software - INT n, INT3, INTO, INT1: @next_rip is pushed; gate DPL checked unless INT1. */
enum xret exc_software(struct vcpu *v, unsigned vector, u64 next_rip, bool is_int1);

/* outer.c: guests whose kernel runs outside ring 0 (struct vitro_outer in libvitro.h). That kernel runs at CPL_OUTER. */
#define CPL_OUTER 1
static inline bool vcpu_has_outer(const struct vcpu *v) { return v->outer; }
/* vcpu_shown_cpl - the level that selectors and descriptors are compared with. */
static inline unsigned vcpu_shown_cpl(const struct vcpu *v)
{
    return unlikely(v->cpl == CPL_OUTER) && vcpu_has_outer(v) ? 3 : v->cpl;
}
/* vcpu_tsc_forbidden - RDTSC is #GP (SDM vol. 3 §2.5, TSD): never for a kernel, whose user code it is about. */
static inline bool vcpu_tsc_forbidden(const struct vcpu *v)
{
    return (v->cr4 & CR4_TSD) && v->cpl && !(v->cpl == CPL_OUTER && vcpu_has_outer(v));
}
/* outer_trap - v->exc; outer_syscall - SYSCALL; outer_event - something may be due. X_JUMP or X_EXIT.
 * outer_soft_interrupt, outer_privileged (the instruction raised #GP(0)) - X_FAULT too: v->exc is for outer_trap. */
enum xret outer_trap(struct vcpu *v);
enum xret outer_soft_interrupt(struct vcpu *v, unsigned vector, u64 next_rip);
enum xret outer_syscall(struct vcpu *v, u64 next_rip);
enum xret outer_privileged(struct vcpu *v, const struct insn *in);
enum xret outer_event(struct vcpu *v);
/* outer_write_fault - a write met #PF: is it to be done as memory-mapped I/O? Then *gpa is where. */
bool outer_write_fault(struct vcpu *v, gla_t la, unsigned acc, gpa_t *gpa);

/* Reset and INIT values (SDM vol. 3 table 9-1). run.c. INIT leaves MSRs, TSC, XCR0, vector state and pending events. */
void vcpu_reset(struct vcpu *v);
void vcpu_init(struct vcpu *v);

/* fpu_save, fpu_load - move guest vector state out of the host's registers to v->fpu, and back (fpu.c). fpu_leave, fpu_enter
 * wrap any call out of the engine into code that may use vector registers; v->fpu stays as it was. */
void fpu_save(struct vcpu *v);
void fpu_load(struct vcpu *v);
void fpu_enter(struct vcpu *v);
void fpu_leave(struct vcpu *v);
