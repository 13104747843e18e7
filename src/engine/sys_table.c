/* sys_table.c - insn.def ids to their C handlers. One row an id; what has none is #UD. */
#include "engine/help.h"
#include "engine/seg.h"
#include "engine/translate.h"

enum xret sys_raise_ud(struct vcpu *v, const struct insn *in)
{
    (void)in;
    return raise_ud(v);
}
enum xret sys_raise_nm(struct vcpu *v, const struct insn *in)
{
    (void)in;
    return raise_fault(v, VEC_NM);
}
enum xret sys_raise_gp(struct vcpu *v, const struct insn *in)
{
    (void)in;
    return raise_gp0(v);
}

enum xret sys_check_segment(struct vcpu *v, const struct insn *in)
{
    gla_t la;
    unsigned acc = (in->mem_acc & OPA_R ? ACC_R : 0) | (in->mem_acc & OPA_W ? ACC_W : 0);
    enum xret x = insn_linear(v, in, in->mem_size, acc, &la);
    u16 status;
    /* An x87 exception that waits comes before the operand (SDM vol. 3 table 6-2). */
    __asm__ volatile("fnstsw %0" : "=a"(status));
    if (unlikely(x == X_FAULT && (status & 0x80)) &&
        (in->cls == CLS_MMX || in->reg_kind == RK_MMX || (in->cls == CLS_X87 && in->id != I_FNSTCW && in->id != I_FNSTSW)))
        return raise_fault(v, VEC_MF);
    return x;
}

/* PUSHF (SDM vol. 2): VM86 with IOPL < 3 is #GP, or with VME the 16-bit form shows VIF as IF, and IOPL 3. */
static enum xret sys_pushf(struct vcpu *v, const struct insn *in)
{
    bool virtual = vcpu_v86(v) && vcpu_iopl(v) < 3;
    if (virtual && (!(v->cr4 & CR4_VME) || in->opsize != 2))
        return raise_gp0(v);
    u64 image = help_pushf(v), sp = v->regs[RSP], mask = stack_mask(v);
    if (virtual)
        image = (image & ~(u64)EFL_IF) | EFL_IOPL | (image & EFL_VIF ? EFL_IF : 0);
    enum xret x = stack_push(v, &v->seg[SEG_SS], vcpu_code64(v) ? 0 : mask, v->cpl, 0, &image, 1, in->opsize, &sp);
    if (x == X_OK)
        v->regs[RSP] = stack_merge(v->regs[RSP], sp, mask);
    return x;
}
static enum xret sys_popf(struct vcpu *v, const struct insn *in)
{
    u64 val;
    enum xret x = stack_pop(v, 0, 1, in->opsize, &val);
    if (x == X_OK)
        x = help_popf(v, val, in->opsize);
    if (x == X_OK)
        v->regs[RSP] = stack_merge(v->regs[RSP], v->regs[RSP] + in->opsize, stack_mask(v));
    return x;
}

/* LEAVE on a 16-bit stack; the others are translated (tr_stack.c). */
static enum xret sys_leave(struct vcpu *v, const struct insn *in)
{
    u64 mask = stack_mask(v), bp = v->regs[RBP] & mask, val = 0;
    gla_t la;
    enum xret x = seg_linear(v, SEG_SS, bp, in->opsize, ACC_R, &la);
    if (x == X_OK)
        x = mem_read(v, la, &val, in->opsize, ACC_R | vcpu_acc(v));
    if (x != X_OK)
        return x;
    v->regs[RSP] = stack_merge(v->regs[RSP], bp + in->opsize, mask);
    gpr_write(v, RBP, in->opsize, true, val);
    return X_OK;
}

sys_fn insn_handler(unsigned id)
{
    static const sys_fn table[NR_INSN_IDS] = {
        [I_HLT] = sys_hlt, [I_CLI] = sys_cli, [I_STI] = sys_sti, [I_CLD] = sys_cld, [I_STD] = sys_std,
        [I_IN] = sys_in, [I_OUT] = sys_out, [I_LGDT] = sys_lgdt, [I_LIDT] = sys_lidt, [I_SGDT] = sys_sgdt,
        [I_SIDT] = sys_sidt, [I_SMSW] = sys_smsw, [I_LMSW] = sys_lmsw, [I_CLTS] = sys_clts,
        [I_INVLPG] = sys_invlpg, [I_INVPCID] = sys_invpcid, [I_INVD] = sys_invd, [I_WBINVD] = sys_wbinvd,
        [I_RDMSR] = sys_rdmsr, [I_WRMSR] = sys_wrmsr, [I_RDTSC] = sys_rdtsc, [I_RDTSCP] = sys_rdtscp,
        [I_RDPMC] = sys_rdpmc, [I_RDPID] = sys_rdpid, [I_CPUID] = sys_cpuid, [I_SWAPGS] = sys_swapgs,
        [I_RDFSBASE] = sys_rdfsbase, [I_RDGSBASE] = sys_rdgsbase, [I_WRFSBASE] = sys_wrfsbase,
        [I_WRGSBASE] = sys_wrgsbase, [I_XGETBV] = sys_xgetbv, [I_XSETBV] = sys_xsetbv, [I_MONITOR] = sys_monitor,
        [I_MWAIT] = sys_mwait, [I_CLAC] = sys_clac, [I_STAC] = sys_stac, [I_MOV_CR_R] = sys_mov_cr_r,
        [I_MOV_R_CR] = sys_mov_r_cr, [I_MOV_DR_R] = sys_mov_dr_r, [I_MOV_R_DR] = sys_mov_r_dr,
        [I_VMCALL] = sys_vmcall, [I_VMMCALL] = sys_vmmcall, [I_BT_MEM] = sys_bt_mem, [I_BTS_MEM] = sys_bts_mem,
        [I_BTR_MEM] = sys_btr_mem, [I_BTC_MEM] = sys_btc_mem, [I_FXSAVE] = sys_fxsave, [I_FXRSTOR] = sys_fxrstor,
        [I_XSAVE] = sys_xsave, [I_XSAVEOPT] = sys_xsaveopt, [I_XSAVEC] = sys_xsavec, [I_XSAVES] = sys_xsaves,
        [I_XRSTOR] = sys_xrstor, [I_XRSTORS] = sys_xrstors, [I_MASKMOVQ] = sys_maskmovq,
        [I_MASKMOVDQU] = sys_maskmovdqu, [I_GATHER] = sys_gather, [I_SCATTER] = sys_scatter,
        [I_MOVS] = sys_movs, [I_STOS] = sys_stos, [I_LODS] = sys_lods, [I_SCAS] = sys_scas, [I_CMPS] = sys_cmps,
        [I_INS] = sys_ins, [I_OUTS] = sys_outs, [I_DAA] = sys_daa, [I_DAS] = sys_das, [I_AAA] = sys_aaa,
        [I_AAS] = sys_aas, [I_AAM] = sys_aam, [I_AAD] = sys_aad, [I_SALC] = sys_salc, [I_XLAT] = sys_xlat,
        [I_BOUND] = sys_bound, [I_PUSHA] = sys_pusha, [I_POPA] = sys_popa, [I_ENTER] = sys_enter,
        [I_MOV_SEG] = sys_mov_seg, [I_MOV_FROM_SEG] = sys_mov_from_seg, [I_POP_SEG] = sys_pop_seg,
        [I_LFP] = sys_lfp, [I_LLDT] = sys_lldt, [I_LTR] = sys_ltr, [I_SLDT] = sys_sldt, [I_STR] = sys_str,
        [I_LAR] = sys_lar, [I_LSL] = sys_lsl, [I_VERR] = sys_verr, [I_VERW] = sys_verw, [I_ARPL] = sys_arpl,
        [I_IRET] = sys_iret, [I_SYSCALL] = sys_syscall, [I_SYSRET] = sys_sysret, [I_SYSENTER] = sys_sysenter,
        [I_SYSEXIT] = sys_sysexit, [I_CALL_FAR] = sys_call_far, [I_JMP_FAR] = sys_jmp_far,
        [I_RET_FAR] = sys_ret_far, [I_INT] = sys_int, [I_INT3] = sys_int3, [I_INT1] = sys_int1, [I_INTO] = sys_into,
        [I_LEAVE] = sys_leave, [I_PUSHF] = sys_pushf, [I_POPF] = sys_popf, [I_FNSTENV] = sys_fnstenv, [I_FNSAVE] = sys_fnsave,
    };
    return id < NR_INSN_IDS ? table[id] : NULL;
}
