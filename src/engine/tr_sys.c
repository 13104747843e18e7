/*
 * tr_sys.c - HOW_SYSTEM and HOW_STRING: sensitive instructions, in line where they are hot and simple, by
 * helper otherwise.
 */
#include "engine/translate.h"

static void record(struct xl *x, struct fixup f, const struct insn *in, sys_fn handler, bool end)
{
    xl_align_cold(x, 8, 0);
    xl_bind(x, f, SEC_COLD, cold_at(x));
    struct sys_site site = {
        .s = { .off = x->off[x->cur], .len = in->len, .kind = end },
        .in = *in,
        .handler = handler,
    };
    e_bytes(&x->cold, &site, sizeof(site));
}

void tr_call_helper(struct xl *x, const struct insn *in, sys_fn handler, bool end)
{
    if (x->live[x->cur])
        xl_need_saved(x);
    struct fixup f = xl_lea_s1(x, SEC_HOT);
    xl_call_stub(x, SEC_HOT, STUB_SYS);
    record(x, f, in, handler ? handler : sys_raise_ud, end || !handler);
    xl_clobber(x);
    if (end || !handler)
        x->ended = true;
}

/* and/or dword [vcpu.eflags], imm32 */
static void eflags_op(struct xl *x, unsigned digit, u32 imm)
{
    if (x->live[x->cur])
        xl_need_saved(x);
    e8(&x->hot, 0x41); e8(&x->hot, 0x81); e_modrm_disp(&x->hot, digit, H_VCPU, VOFF(eflags)); e32(&x->hot, imm);
    xl_clobber(x);
}

void tr_system(struct xl *x, const struct insn *in)
{
    bool cpl0 = x->mode & MODE_CPL0 && !(x->mode & MODE_REAL);
    switch (in->id) {
    case I_CLD:
        eflags_op(x, 4, ~EFL_DF);
        return;
    case I_STD:
        eflags_op(x, 1, EFL_DF);
        return;
    case I_CLI:
        if (!cpl0)
            break;
        eflags_op(x, 4, ~EFL_IF);
        return;
    case I_STI:
        if (!cpl0 || x->single)
            break;
        eflags_op(x, 1, EFL_IF);
        /* An interrupt that waited comes after the next instruction: cmp dword [intr_wait], 0; jne */
        e8(&x->hot, 0x41); e8(&x->hot, 0x83); e_modrm_disp(&x->hot, 7, H_VCPU, VOFF(intr_wait)); e8(&x->hot, 0);
        xl_bind(x, xl_jcc(x, SEC_HOT, 5), SEC_COLD, cold_at(x));
        /* lock or dword [event], EVENT_INTR; jmp back */
        e8(&x->cold, 0xf0); e8(&x->cold, 0x41); e8(&x->cold, 0x83);
        e_modrm_disp(&x->cold, 1, H_VCPU, VOFF(event)); e8(&x->cold, EVENT_INTR);
        xl_bind(x, xl_jmp(x, SEC_COLD), SEC_HOT, hot_at(x));
        x->poll_next = true;
        return;
    case I_SWAPGS:
        if (!cpl0 || !x->m64)
            break;
        {
            s32 gs = (s32)(offsetof(struct vcpu, seg) + SEG_GS * sizeof(struct seg) + offsetof(struct seg, base)) - VCPU_BIAS;
            e_load_vcpu(&x->hot, H_S1, gs);
            e_load_vcpu(&x->hot, H_S2, VOFF(kernel_gs_base));
            e_store_vcpu(&x->hot, H_S1, VOFF(kernel_gs_base));
            e_store_vcpu(&x->hot, H_S2, gs);
        }
        return;
    default:
        break;
    }
    bool end = false;
    switch (in->id) { /* the same list as ends_block(): the mode or the code may have changed */
    case I_INT: case I_INT3: case I_INT1: case I_INTO: case I_IRET: case I_SYSCALL: case I_SYSRET:
    case I_SYSENTER: case I_SYSEXIT: case I_CALL_FAR: case I_JMP_FAR: case I_RET_FAR: case I_HLT:
    case I_MOV_CR_R: case I_LMSW: case I_CLTS: case I_STAC: case I_CLAC: case I_XSETBV: case I_MOV_SEG:
    case I_POP_SEG: case I_LFP: case I_MOV_DR_R: case I_WRMSR: case I_INVPCID: case I_INVLPG: case I_STI:
        end = true;
        break;
    default:
        break;
    }
    tr_call_helper(x, in, insn_handler(in->id), end);
}
