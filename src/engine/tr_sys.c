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

void tr_check_cold(struct xl *x, const struct insn *in, sys_fn handler, u32 again, u32 end, u32 resume)
{
    struct fixup f = xl_lea_s1(x, SEC_COLD);
    xl_call_stub(x, SEC_COLD, STUB_SYS);
    e_bytes(&x->cold, x->hot_buf + again, end - again);
    xl_bind(x, xl_jmp(x, SEC_COLD), SEC_HOT, resume);
    record(x, f, in, handler, false);
}

void tr_call_helper(struct xl *x, const struct insn *in, sys_fn handler, bool end)
{
    if (x->lag)
        tr_add_sp(x, 0);
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

#define SEG_OFF(s, member) ((s32)(offsetof(struct vcpu, seg) + (s) * sizeof(struct seg) + \
                                  offsetof(struct seg, member)) - VCPU_BIAS)

/* cmp dword [vcpu + off], 0 */
static void cmp_zero(struct buf *b, s32 off)
{
    e8(b, 0x41); e8(b, 0x83); e_modrm_disp(b, 7, H_VCPU, off); e8(b, 0);
}
/* The helper out of line, for what the short way does not cover; it ends the block. */
void tr_raise_cold(struct xl *x, const struct insn *in, sys_fn handler)
{
    struct fixup f = xl_lea_s1(x, SEC_COLD);
    xl_call_stub(x, SEC_COLD, STUB_SYS);
    record(x, f, in, handler, true);
}
void tr_helper_cold(struct xl *x, const struct insn *in)
{
    struct fixup f = xl_lea_s1(x, SEC_COLD);
    xl_call_stub(x, SEC_COLD, STUB_SYS);
    record(x, f, in, insn_handler(in->id), true);
}

static void syscall_inline(struct xl *x, const struct insn *in)
{
    xl_need_saved(x);
    cmp_zero(&x->hot, VOFF(syscall_ok));
    xl_bind(x, xl_jcc(x, SEC_HOT, 4), SEC_COLD, cold_at(x));
    tr_helper_cold(x, in);
    tr_load_rip(x, &x->hot, H_S1, x->off[x->cur] + in->len);
    xl_jmp_stub(x, SEC_HOT, STUB_SYSCALL);
    x->ended = true;
}
static void sysret_inline(struct xl *x, const struct insn *in)
{
    xl_need_saved(x);
    cmp_zero(&x->hot, VOFF(sysret_ok));
    xl_bind(x, xl_jcc(x, SEC_HOT, 4), SEC_COLD, cold_at(x));
    u32 slow = cold_at(x);
    tr_helper_cold(x, in);
    xl_call_stub(x, SEC_HOT, STUB_SYSRET); /* comes back only if it cannot */
    xl_bind(x, xl_jmp(x, SEC_HOT), SEC_COLD, slow);
    x->ended = true;
}

/* rdtsc; rdx:rax += tsc_offset; rdtscp also ecx = TSC_AUX */
static void rdtsc_inline(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    if (x->live[x->cur])
        xl_need_saved(x);
    static const u8 merge[] = { 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0 }; /* shl rdx, 32; or rax, rdx */
    static const u8 split[] = { 0x48, 0x89, 0xc2, 0x48, 0xc1, 0xea, 0x20, 0x89, 0xc0 }; /* mov rdx, rax; shr rdx, 32;
                                                                                        mov eax, eax */
    if (in->id == I_RDTSCP) {
        e8(b, 0x0f); e8(b, 0x01); e8(b, 0xf9);
    } else {
        e8(b, 0x0f); e8(b, 0x31);
    }
    e_bytes(b, merge, sizeof(merge));
    e_rm64(b, 0x03, RAX, H_VCPU, VOFF(tsc_offset));
    e_bytes(b, split, sizeof(split));
    if (in->id == I_RDTSCP) { /* mov ecx, [tsc_aux] */
        e8(b, 0x41); e8(b, 0x8b); e_modrm_disp(b, RCX, H_VCPU, VOFF(tsc_aux));
    }
    xl_clobber(x);
}

/* mov reg, s1 (64 bits) for a guest register */
static void s1_to_gpr(struct xl *x, unsigned guest)
{
    if (gpr_in_slot(guest))
        e_store_vcpu(&x->hot, H_S1, REG_OFF(guest));
    else
        e_mov(&x->hot, host_gpr[guest], H_S1);
}
static void mov_from_seg_inline(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    struct guard g;
    u32 op = 0;
    if (in->has_mem) { /* 16 bits; s1 is needed: lea s2, [operand] */
        tr_guard(x, in, 2, ACC_W, 0, true, &g);
        op = hot_at(x);
        e_lea_full(b, true, H_S2, g.mem.base, g.mem.index, 1, g.mem.disp);
    }
    e8(b, rex(0, H_S1, 0, H_VCPU)); e8(b, 0x0f); e8(b, 0xb7);
    e_modrm_disp(b, H_S1, H_VCPU, SEG_OFF(in->reg, sel));
    if (in->has_mem) {
        g.mem = (struct hostmem){ H_S2, REG_NONE, 0 };
        e_mem(b, 0x89, 2, H_S1, &g.mem);
        tr_guard_end(x, &g, op, true);
    } else if (in->opsize == 2) {
        struct hostmem slot = { H_VCPU, REG_NONE, REG_OFF(in->rm) };
        if (gpr_in_slot(in->rm)) {
            e_mem(b, 0x89, 2, H_S1, &slot);
        } else { /* mov r16, s1w */
            e8(b, 0x66); e_rr32(b, 0x8b, host_gpr[in->rm], H_S1);
        }
    } else {
        s1_to_gpr(x, in->rm);
    }
}
/* SGDT, SIDT: limit, then base. UEFI's first half finds its services by SIDT, millions of times. */
static void table_inline(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    struct guard g;
    bool gdt = in->id == I_SGDT;
    tr_guard(x, in, x->m64 ? 10 : 6, ACC_W, 0, true, &g);
    u32 op = hot_at(x);
    e_lea_full(b, true, H_S2, g.mem.base, g.mem.index, 1, g.mem.disp);
    struct hostmem limit = { H_S2, REG_NONE, 0 }, base = { H_S2, REG_NONE, 2 };
    e8(b, rex(0, H_S1, 0, H_VCPU)); e8(b, 0x0f); e8(b, 0xb7); /* movzx s1d, word */
    e_modrm_disp(b, H_S1, H_VCPU, gdt ? VOFF(gdtr.limit) : VOFF(idtr.limit));
    e_mem(b, 0x89, 2, H_S1, &limit);
    e_load_vcpu(b, H_S1, gdt ? VOFF(gdtr.base) : VOFF(idtr.base));
    e_mem(b, 0x89, x->m64 ? 8 : 4, H_S1, &base);
    tr_guard_end(x, &g, op, true);
}
static void rdbase_inline(struct xl *x, const struct insn *in)
{
    s32 off = SEG_OFF(in->id == I_RDFSBASE ? SEG_FS : SEG_GS, base);
    if (in->opsize == 8) {
        e_load_vcpu(&x->hot, H_S1, off);
    } else {
        e8(&x->hot, rex(0, H_S1, 0, H_VCPU)); e8(&x->hot, 0x8b); e_modrm_disp(&x->hot, H_S1, H_VCPU, off);
    }
    s1_to_gpr(x, in->rm);
}

/* mov reg, CR0 to CR4: kernels read CR2 at every page fault. CR8 is the local APIC's. */
static bool cr_read_inline(struct xl *x, const struct insn *in)
{
    static const s32 at[] = { [0] = VOFF(cr0), [2] = VOFF(cr2), [3] = VOFF(cr3), [4] = VOFF(cr4) };

    if (in->reg == 1 || in->reg >= ARRAY_SIZE(at))
        return false;
    e_load_vcpu(&x->hot, H_S1, at[in->reg]);
    s1_to_gpr(x, in->rm);
    return true;
}

/* STAC and CLAC change the mode: on to the same code, translated for the other one. */
static void ac_inline(struct xl *x, const struct insn *in, bool set)
{
    if (set == (x->slot == SLOT_KAC))
        return; /* it is as it should be */
    struct buf *b = &x->hot;
    xl_need_saved(x);
    e8(b, 0x41); e8(b, 0x81); e_modrm_disp(b, set ? 1 : 4, H_VCPU, VOFF(eflags)); e32(b, set ? EFL_AC : ~EFL_AC);
    /* mov dword [mode], imm32 */
    u32 mode = (x->mode & ~(MODE_SLOT | MODE_NOSHARE)) | (set ? SLOT_KAC : SLOT_K);
    e8(b, 0x41); e8(b, 0xc7); e_modrm_disp(b, 0, H_VCPU, VOFF(mode)); e32(b, mode);
    x->fstate = FLAGS_SAVED;
    tr_mode_edge(x, x->off[x->cur] + in->len, mode & MODE_SLOT);
}

void tr_pause(struct xl *x, const struct insn *in)
{
    struct buf *b = &x->hot;
    if (x->live[x->cur])
        xl_need_saved(x);
    e8(b, 0xf3); e8(b, 0x90);
    /* sub dword [pauses], 1; js: the helper, and on */
    e8(b, 0x41); e8(b, 0x83); e_modrm_disp(b, 5, H_VCPU, VOFF(pauses)); e8(b, 1);
    xl_bind(x, xl_jcc(x, SEC_HOT, 8), SEC_COLD, cold_at(x));
    xl_clobber(x);
    tr_check_cold(x, in, sys_pause, 0, 0, hot_at(x));
}

void tr_system(struct xl *x, const struct insn *in)
{
    if (tr_real(x, in))
        return;
    bool cpl0 = x->mode & MODE_CPL0; /* real mode too */
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
        if (!cpl0 || x->cur + 1 == x->nr) /* no interrupt comes before the next one: the dispatcher knows how */
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
    case I_SYSCALL:
        if (x->slot == SLOT_U && !x->nochain && (x->mode & MODE_64) && !x->vm->pv.outer)
            syscall_inline(x, in);
        else
            break;
        return;
    case I_SYSRET:
        if (x->slot == SLOT_K && cpl0 && !x->nochain && (x->mode & MODE_64) && in->opsize == 8)
            sysret_inline(x, in);
        else
            break;
        return;
    case I_RDTSC: case I_RDTSCP:
        if (!cpl0 && (x->mode & MODE_TSD))
            break;
        rdtsc_inline(x, in);
        return;
    case I_BT_MEM: case I_BTS_MEM: case I_BTR_MEM: case I_BTC_MEM:
        if (!tr_bits_in_line(x, in))
            break;
        tr_copy(x, in);
        return;
    case I_MOV_FROM_SEG:
        if (in->reg > SEG_GS)
            break;
        mov_from_seg_inline(x, in);
        return;
    case I_SGDT: case I_SIDT:
        if (!cpl0) /* CR4.UMIP */
            break;
        table_inline(x, in);
        return;
    case I_RDFSBASE: case I_RDGSBASE:
        if (!(x->mode & MODE_FSGS) || !x->m64 || in->has_mem)
            break;
        rdbase_inline(x, in);
        return;
    case I_CLAC: case I_STAC:
        if (!cpl0 || !(x->mode & MODE_SMAP) || x->nochain || !x->m64)
            break;
        ac_inline(x, in, in->id == I_STAC);
        return;
    case I_MOV_R_CR:
        if (!cpl0 || !x->m64 || !cr_read_inline(x, in))
            break;
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
    case I_SYSCALL:
        end = !tr_outer_call(x, in);
        break;
    case I_INT: case I_INT3: case I_INT1: case I_INTO: case I_IRET: case I_SYSRET:
    case I_SYSENTER: case I_SYSEXIT: case I_CALL_FAR: case I_JMP_FAR: case I_RET_FAR: case I_HLT: case I_MWAIT:
    case I_MOV_CR_R: case I_LMSW: case I_CLTS: case I_STAC: case I_CLAC: case I_XSETBV: case I_MOV_SEG:
    case I_POP_SEG: case I_LFP: case I_MOV_DR_R: case I_WRMSR: case I_INVPCID: case I_INVLPG: case I_STI:
    case I_CPUID:
        end = true;
        break;
    default:
        break;
    }
    tr_call_helper(x, in, insn_handler(in->id), end);
}
