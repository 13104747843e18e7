/*
 * help_sys.c - system instructions: interrupt flag, ports, control and debug registers, descriptor-table
 * registers, MSRs, CPUID, time, and BT with a register offset into memory.
 * Source: Intel SDM vol. 2 (each instruction), vol. 3 §2.5 (control registers), §17.2 (debug registers), vol. 1
 * §18.5 (I/O permission).
 *
 * Not modelled: virtualization (#UD, not advertised); RDPMC (#GP, no counters).
 */
#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/help.h"
#include "engine/mmu.h"

#define CR0_DEFINED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define DR6_ONES 0xffff0ff0u
#define DR6_WRITABLE 0xe00fu
#define DR6_BD 0x2000u
#define DR7_ONE 0x400u
#define DR7_GD 0x2000u
#define DR7_WRITABLE 0xffff23ffu

#define SYS(id) enum xret sys_##id(struct vcpu *v, const struct insn *in)

/* RIP of the next instruction, in the code size that was current when this one was fetched. */
static u64 next_rip(const struct vcpu *v, const struct insn *in)
{
    u64 next = v->rip + in->len;
    return vcpu_code64(v) ? next : (u32)next;
}

/* The translation behind this instruction was made for `old`; if that changed, leave it. */
static enum xret done_in_mode(struct vcpu *v, u64 next, u32 old)
{
    if (v->mode == old)
        return X_OK;
    v->rip = next;
    return X_JUMP;
}

/* An event was seen while IF held it back. */
static void intr_unmask(struct vcpu *v)
{
    if (v->intr_wait) {
        __atomic_or_fetch(&v->event, v->intr_wait, __ATOMIC_SEQ_CST);
        v->intr_wait = 0;
    }
}

static void set_edx_eax(struct vcpu *v, u64 val)
{
    v->regs[RAX] = (u32)val;
    v->regs[RDX] = val >> 32;
}

static u64 edx_eax(const struct vcpu *v)
{
    return (u64)(u32)v->regs[RDX] << 32 | (u32)v->regs[RAX];
}

/* -- Flags ---------------------------------------------------------------------------------------------- */

/* RIP is behind the instruction. */
static enum xret halt(struct vcpu *v)
{
    v->int_shadow = 0;
    if (v->wake) {
        v->wake = 0;
        return X_JUMP;
    }
    v->halted = 1;
    v->exit = EXIT_HLT;
    return X_EXIT;
}

SYS(hlt)
{
    if (v->cpl != 0)
        return raise_gp0(v);
    v->rip = next_rip(v, in);
    return halt(v);
}

/* IOPL 3 in virtual-8086 mode, CPL <= IOPL in protected mode. */
static bool may_change_if(const struct vcpu *v)
{
    return !vcpu_protected(v) || (vcpu_v86(v) ? vcpu_iopl(v) == 3 : v->cpl <= vcpu_iopl(v));
}

/* CLI and STI act on VIF instead (SDM vol. 3 §20.3 for virtual-8086 mode, §20.4 for PVI). */
static bool virtual_if(const struct vcpu *v)
{
    return vcpu_v86(v) ? v->cr4 & CR4_VME : v->cpl == 3 && (v->cr4 & CR4_PVI);
}

SYS(cli)
{
    if (!may_change_if(v)) {
        if (!virtual_if(v))
            return raise_gp0(v);
        v->eflags &= ~EFL_VIF;
        return X_OK;
    }
    v->eflags &= ~EFL_IF;
    return X_OK;
}

SYS(sti)
{
    if (!may_change_if(v)) {
        if (!virtual_if(v) || (v->eflags & EFL_VIP))
            return raise_gp0(v);
        v->eflags |= EFL_VIF;
        return X_OK;
    }
    if (!(v->eflags & EFL_IF)) {
        v->eflags |= EFL_IF;
        v->int_shadow = SHADOW_STI;
        intr_unmask(v);
    }
    return X_OK;
}

SYS(cld)
{
    v->eflags &= ~EFL_DF;
    return X_OK;
}

SYS(std)
{
    v->eflags |= EFL_DF;
    return X_OK;
}

static enum xret set_ac(struct vcpu *v, const struct insn *in, u32 ac)
{
    if (v->cpl != 0)
        return raise_ud(v);
    u32 mode = v->mode;
    v->eflags = (v->eflags & ~EFL_AC) | ac;
    vcpu_mode_changed(v);
    return done_in_mode(v, next_rip(v, in), mode);
}
SYS(clac) { return set_ac(v, in, 0); }
SYS(stac) { return set_ac(v, in, EFL_AC); }

u64 help_pushf(const struct vcpu *v)
{
    return vcpu_eflags(v) & ~(EFL_VM | EFL_RF);
}

/* SDM vol. 2 "POPF", table 4-17. */
enum xret help_popf(struct vcpu *v, u64 value, unsigned opsize)
{
    u32 old = vcpu_eflags(v);
    u32 may = EFL_ARITH | EFL_TF | EFL_DF | EFL_NT;
    if (opsize != 2)
        may |= EFL_AC | EFL_ID;
    if (vcpu_protected(v) && vcpu_v86(v)) {
        if (vcpu_iopl(v) != 3) { /* VME: IF of the image is VIF */
            if (!(v->cr4 & CR4_VME) || opsize != 2 || (value & EFL_TF) || ((value & EFL_IF) && (old & EFL_VIP)))
                return raise_gp0(v);
            may |= EFL_VIF;
            value |= value & EFL_IF ? EFL_VIF : 0;
        } else {
            may |= EFL_IF;
        }
    } else {
        if (!vcpu_protected(v) || v->cpl == 0)
            may |= EFL_IOPL | EFL_IF;
        else if (v->cpl <= vcpu_iopl(v))
            may |= EFL_IF;
    }
    u32 now = (old & ~(may | EFL_RF)) | ((u32)value & may);
    vcpu_set_eflags(v, now);
    if ((old ^ now) & (EFL_TF | EFL_AC))
        vcpu_mode_changed(v);
    if (now & ~old & EFL_IF)
        intr_unmask(v);
    return X_OK;
}

/* -- Ports ------------------------------------------------------------------------------------------ */

enum xret help_io_allowed(struct vcpu *v, u16 port, unsigned size)
{
    if (!vcpu_protected(v) || (!vcpu_v86(v) && v->cpl <= vcpu_iopl(v)))
        return X_OK;
    const struct seg *tr = &v->seg[SEG_TR];
    unsigned type = tr->attr & SEG_TYPE;
    u16 map, bits;
    if ((type != 9 && type != 11) || tr->limit < 0x67)
        return raise_gp0(v);
    if (mem_read(v, tr->base + 0x66, &map, 2, ACC_R | ACC_SYS) != X_OK)
        return X_FAULT;
    u32 at = map + port / 8u;
    if (at + 1 > tr->limit)
        return raise_gp0(v);
    if (mem_read(v, tr->base + at, &bits, 2, ACC_R | ACC_SYS) != X_OK)
        return X_FAULT;
    return bits >> (port & 7) & ((1u << size) - 1) ? raise_gp0(v) : X_OK;
}

u32 help_port_in(struct vcpu *v, u16 port, unsigned size)
{
    if (!v->host->port_in)
        return ~0u;
    fpu_leave(v);
    u32 val = v->host->port_in(v->host->opaque, port, size);
    fpu_enter(v);
    return val;
}

void help_port_out(struct vcpu *v, u16 port, unsigned size, u32 value)
{
    if (!v->host->port_out)
        return;
    fpu_leave(v);
    v->host->port_out(v->host->opaque, port, size, value);
    fpu_enter(v);
    engine_a20(v); /* the board may have switched it, or what is behind an address: */
    engine_see_remap(v); /* the next instruction sees it */
}

/* E4-E7 have an immediate port, EC-EF take it from DX; even opcodes are bytes; REX.W does not widen. */
static u16 io_operand(const struct vcpu *v, const struct insn *in, unsigned *size)
{
    *size = !(in->opcode & 1) ? 1 : in->opsize == 2 ? 2 : 4;
    return in->opcode < 0xe8 ? (u8)in->imm : (u16)v->regs[RDX];
}

SYS(in)
{
    unsigned size;
    u16 port = io_operand(v, in, &size);
    if (help_io_allowed(v, port, size) != X_OK)
        return X_FAULT;
    gpr_write(v, RAX, size, true, help_port_in(v, port, size));
    return X_OK;
}

SYS(out)
{
    unsigned size;
    u16 port = io_operand(v, in, &size);
    if (help_io_allowed(v, port, size) != X_OK)
        return X_FAULT;
    u32 val = (u32)v->regs[RAX];
    help_port_out(v, port, size, size == 4 ? val : val & ((1u << size * 8) - 1));
    return X_OK;
}

/* -- Descriptor-table registers ---------------------------------------------------------------------- */

static enum xret load_table(struct vcpu *v, const struct insn *in, struct dtable *t)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) m = { 0 };
    unsigned size = vcpu_code64(v) ? 10 : 6;
    gla_t la;
    if (v->cpl != 0)
        return raise_gp0(v);
    if (insn_linear(v, in, size, ACC_R, &la) != X_OK || mem_read(v, la, &m, size, ACC_R | vcpu_acc(v)) != X_OK)
        return X_FAULT;
    if (size == 10 && !is_canonical(m.base))
        return raise_gp0(v);
    if (size == 6 && in->opsize == 2)
        m.base &= 0xffffff;
    t->base = m.base;
    t->limit = m.limit;
    return X_OK;
}
SYS(lgdt) { return load_table(v, in, &v->gdtr); }
SYS(lidt) { return load_table(v, in, &v->idtr); }

static bool umip_forbids(const struct vcpu *v)
{
    return v->cpl != 0 && (v->cr4 & CR4_UMIP);
}

static enum xret store_table(struct vcpu *v, const struct insn *in, const struct dtable *t)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) m = { t->limit, t->base };
    unsigned size = vcpu_code64(v) ? 10 : 6;
    gla_t la;
    if (umip_forbids(v))
        return raise_gp0(v);
    if (insn_linear(v, in, size, ACC_W, &la) != X_OK)
        return X_FAULT;
    return mem_write(v, la, &m, size, ACC_W | vcpu_acc(v));
}
SYS(sgdt) { return store_table(v, in, &v->gdtr); }
SYS(sidt) { return store_table(v, in, &v->idtr); }

/* -- CR0 to CR8 ------------------------------------------------------------------------------------- */

static enum xret write_cr0(struct vcpu *v, u64 val)
{
    u64 old = v->cr0;
    if (val >> 32)
        return raise_gp0(v);
    val = (val & CR0_DEFINED) | CR0_ET;
    if (((val & CR0_PG) && !(val & CR0_PE)) || ((val & CR0_NW) && !(val & CR0_CD)))
        return raise_gp0(v);
    u64 change = old ^ val, efer = v->efer;
    if (change & CR0_PG) {
        if (val & CR0_PG) {
            if (efer & EFER_LME) { /* SDM vol. 3 §9.8.5 */
                if (!(v->cr4 & CR4_PAE) || (v->seg[SEG_CS].attr & SEG_L))
                    return raise_gp0(v);
                efer |= EFER_LMA;
            } else if ((v->cr4 & CR4_PAE) && !mmu_pdptes_valid(v, v->cr3)) {
                return raise_gp0(v);
            }
        } else {
            if (vcpu_code64(v) || (v->cr4 & CR4_PCIDE))
                return raise_gp0(v);
            efer &= ~(u64)EFER_LMA;
        }
    }
    v->cr0 = val;
    v->efer = efer;
    if (change & (CR0_PG | CR0_WP | CR0_PE)) {
        if (change & CR0_PG)
            tlb_switch(v, false);
        tlb_flush_all(v, true);
    }
    vcpu_mode_changed(v);
    return X_OK;
}

static enum xret write_cr3(struct vcpu *v, u64 val)
{
    bool noflush = false;
    if (vcpu_long_mode(v)) {
        if (v->cr4 & CR4_PCIDE) {
            noflush = val & CR3_NOFLUSH;
            val &= ~CR3_NOFLUSH;
        }
        if (val >> CPU_PHYS_BITS)
            return raise_gp0(v);
    } else {
        val = (u32)val;
        if ((v->cr0 & CR0_PG) && (v->cr4 & CR4_PAE) && !mmu_pdptes_valid(v, val))
            return raise_gp0(v);
    }
    v->cr3 = val;
    tlb_switch(v, noflush);
    return X_OK;
}

static enum xret write_cr4(struct vcpu *v, u64 val)
{
    u64 change = v->cr4 ^ val;
    if (val & ~v->model->cr4_mask)
        return raise_gp0(v);
    if (vcpu_long_mode(v) && !(val & CR4_PAE))
        return raise_gp0(v);
    if ((change & val & CR4_PCIDE) && (!vcpu_long_mode(v) || (v->cr3 & 0xfff)))
        return raise_gp0(v);
    if ((change & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) && (v->cr0 & CR0_PG) && (val & CR4_PAE) &&
        !vcpu_long_mode(v) && !mmu_pdptes_valid(v, v->cr3))
        return raise_gp0(v);
    v->cr4 = val;
    if (change & CR4_PCIDE)
        tlb_switch(v, false);
    if (change & (CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP | CR4_SMAP | CR4_PCIDE))
        tlb_flush_all(v, true);
    vcpu_mode_changed(v);
    return X_OK;
}

static enum xret write_cr8(struct vcpu *v, u64 val)
{
    if (val & ~0xfull)
        return raise_gp0(v);
    v->cr8 = val;
    if (v->host->cr8_write) {
        fpu_leave(v);
        v->host->cr8_write(v->host->opaque, v->index, val);
        fpu_enter(v);
    }
    return X_OK;
}

enum xret help_cr_write(struct vcpu *v, unsigned cr, u64 val)
{
    switch (cr) {
    case 0: return write_cr0(v, val);
    case 2: v->cr2 = val; return X_OK;
    case 3: return write_cr3(v, val);
    case 4: return write_cr4(v, val);
    case 8: return write_cr8(v, val);
    }
    return raise_ud(v);
}

SYS(mov_cr_r)
{
    u64 next = next_rip(v, in), val = v->regs[in->rm], was = (v->cr0 & CR0_PG) | (v->cr4 & CR4_PAE);
    u32 mode = v->mode;
    if (v->cpl != 0)
        return raise_gp0(v);
    if (help_cr_write(v, in->reg, vcpu_code64(v) ? val : (u32)val) != X_OK)
        return X_FAULT;
    if (was != ((v->cr0 & CR0_PG) | (v->cr4 & CR4_PAE))) {
        v->rip = next; /* the linear address of the next instruction may mean another page */
        return X_JUMP;
    }
    return done_in_mode(v, next, mode);
}

SYS(mov_r_cr)
{
    u64 val;
    if (v->cpl != 0)
        return raise_gp0(v);
    switch (in->reg) {
    case 0: val = v->cr0; break;
    case 2: val = v->cr2; break;
    case 3: val = v->cr3; break;
    case 4: val = v->cr4; break;
    case 8:
        val = v->cr8;
        if (v->host->cr8_read) {
            fpu_leave(v);
            val = v->host->cr8_read(v->host->opaque, v->index);
            fpu_enter(v);
        }
        break;
    default: return raise_ud(v);
    }
    v->regs[in->rm] = vcpu_code64(v) ? val : (u32)val;
    return X_OK;
}

SYS(smsw)
{
    if (umip_forbids(v))
        return raise_gp0(v);
    return rm_write(v, in, in->has_mem ? 2 : in->opsize, v->cr0);
}

/* Loads PE, MP, EM, TS; cannot clear PE. */
SYS(lmsw)
{
    u64 val, next = next_rip(v, in);
    u32 mode = v->mode;
    if (v->cpl != 0)
        return raise_gp0(v);
    if (rm_read(v, in, 2, &val) != X_OK)
        return X_FAULT;
    if (write_cr0(v, (v->cr0 & ~0xeull) | (val & 0xf)) != X_OK)
        return X_FAULT;
    return done_in_mode(v, next, mode);
}

SYS(clts)
{
    u32 mode = v->mode;
    if (v->cpl != 0)
        return raise_gp0(v);
    v->cr0 &= ~(u64)CR0_TS;
    vcpu_mode_changed(v);
    return done_in_mode(v, next_rip(v, in), mode);
}

SYS(xgetbv)
{
    if (!(v->cr4 & CR4_OSXSAVE))
        return raise_ud(v);
    u32 ecx = (u32)v->regs[RCX];
    if (ecx == 0)
        set_edx_eax(v, v->xcr0);
    else if (ecx == 1 && cpu_model_has(v->model, 0xd, 1, 0, 2)) {
        u32 lo, hi;
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(1));
        set_edx_eax(v, ((u64)hi << 32 | lo) & v->xcr0);
    } else
        return raise_gp0(v);
    return X_OK;
}

/* SDM vol. 1 §13.3: x87 always; AVX needs SSE; the three AVX-512 bits together, and with AVX. */
SYS(xsetbv)
{
    u64 val = edx_eax(v);
    u32 mode = v->mode;
    if (!(v->cr4 & CR4_OSXSAVE))
        return raise_ud(v);
    if (v->cpl != 0 || (u32)v->regs[RCX] != 0 || (val & ~v->model->xcr0_mask) || !(val & 1))
        return raise_gp0(v);
    if ((val & 6) == 4 || ((val & 0xe0) && (val & 0xe6) != 0xe6))
        return raise_gp0(v);
    v->xcr0 = val;
    vcpu_mode_changed(v);
    return done_in_mode(v, next_rip(v, in), mode);
}

/* -- Debug registers --------------------------------------------------------------------------------- */

static enum xret dr_number(struct vcpu *v, const struct insn *in, unsigned *dr)
{
    *dr = in->reg;
    if (*dr > 7)
        return raise_ud(v);
    if (*dr == 4 || *dr == 5) {
        if (v->cr4 & CR4_DE)
            return raise_ud(v);
        *dr += 2;
    }
    if (v->cpl != 0)
        return raise_gp0(v);
    if (v->dr[7] & DR7_GD) {
        v->dr[7] &= ~(u64)DR7_GD; /* as entering the handler does (§17.2.4) */
        raise_fault(v, VEC_DB);
        v->exc.dr6 = DR6_BD;
        return X_FAULT;
    }
    return X_OK;
}

SYS(mov_r_dr)
{
    unsigned dr;
    if (dr_number(v, in, &dr) != X_OK)
        return X_FAULT;
    u64 val = dr == 6 ? v->dr[6] | DR6_ONES : dr == 7 ? v->dr[7] | DR7_ONE : v->dr[dr];
    v->regs[in->rm] = vcpu_code64(v) ? val : (u32)val;
    return X_OK;
}

SYS(mov_dr_r)
{
    unsigned dr;
    u32 mode = v->mode;
    u64 val = v->regs[in->rm];
    if (!vcpu_code64(v))
        val = (u32)val;
    if (dr_number(v, in, &dr) != X_OK)
        return X_FAULT;
    if (dr >= 6 && val >> 32)
        return raise_gp0(v);
    v->dr[dr] = dr == 6 ? (val & DR6_WRITABLE) | DR6_ONES : dr == 7 ? (val & DR7_WRITABLE) | DR7_ONE : val;
    if (dr != 6) {
        /* Watched pages lose their TLB entries, others may have them again. */
        if (dr == 7 || (v->dr[7] & 0xff))
            tlb_flush_all(v, true);
        vcpu_mode_changed(v);
    }
    return done_in_mode(v, next_rip(v, in), mode);
}

/* -- TLB and caches ---------------------------------------------------------------------------------- */

SYS(invlpg)
{
    if (v->cpl != 0)
        return raise_gp0(v);
    gla_t la = insn_offset(v, in);
    if (!vcpu_code64(v))
        la = (u32)(la + v->seg[in->seg].base);
    else if (in->seg == SEG_FS || in->seg == SEG_GS)
        la += v->seg[in->seg].base;
    if (is_canonical(la))
        tlb_flush_page(v, la);
    return X_OK;
}

SYS(invpcid)
{
    u64 d[2], type = v->regs[in->reg];
    gla_t la;
    if (v->cpl != 0)
        return raise_gp0(v);
    if (!vcpu_code64(v))
        type = (u32)type;
    if (insn_linear(v, in, 16, ACC_R, &la) != X_OK || mem_read(v, la, d, 16, ACC_R | vcpu_acc(v)) != X_OK)
        return X_FAULT;
    if (type > 3 || d[0] >> 12)
        return raise_gp0(v);
    if (type < 2 && d[0] && !(v->cr4 & CR4_PCIDE))
        return raise_gp0(v);
    switch (type) {
    case 0:
        if (!is_canonical(d[1]))
            return raise_gp0(v);
        tlb_flush_page_pcid(v, d[1], (u16)d[0]);
        break;
    case 1: tlb_flush_pcid(v, (u16)d[0]); break;
    case 2: tlb_flush_all(v, true); break;
    case 3: tlb_flush_all(v, false); break;
    }
    return X_OK;
}

/* Memory is coherent; there is nothing to write back. */
SYS(invd) { (void)in; return v->cpl != 0 ? raise_gp0(v) : X_OK; }
SYS(wbinvd) { (void)in; return v->cpl != 0 ? raise_gp0(v) : X_OK; }

/* -- MSRs, CPUID, time --------------------------------------------------------------------------------- */

SYS(rdmsr)
{
    u64 val;
    (void)in;
    if (v->cpl != 0)
        return raise_gp0(v);
    if (msr_read(v, (u32)v->regs[RCX], &val) != X_OK)
        return X_FAULT;
    set_edx_eax(v, val);
    return X_OK;
}

SYS(wrmsr)
{
    u32 mode = v->mode;
    if (v->cpl != 0)
        return raise_gp0(v);
    if (msr_write(v, (u32)v->regs[RCX], edx_eax(v)) != X_OK)
        return X_FAULT;
    return done_in_mode(v, next_rip(v, in), mode);
}

SYS(cpuid)
{
    u32 r[4];
    (void)in;
    cpu_model_cpuid(v->model, v, (u32)v->regs[RAX], (u32)v->regs[RCX], r);
    v->regs[RAX] = r[0];
    v->regs[RBX] = r[1];
    v->regs[RCX] = r[2];
    v->regs[RDX] = r[3];
    return X_OK;
}

SYS(rdtsc)
{
    (void)in;
    if (vcpu_tsc_forbidden(v))
        return raise_gp0(v);
    set_edx_eax(v, vcpu_tsc(v));
    return X_OK;
}

SYS(rdtscp)
{
    (void)in;
    if (vcpu_tsc_forbidden(v))
        return raise_gp0(v);
    set_edx_eax(v, vcpu_tsc(v));
    v->regs[RCX] = (u32)v->tsc_aux;
    return X_OK;
}

SYS(rdpid)
{
    v->regs[in->rm] = (u32)v->tsc_aux;
    return X_OK;
}

SYS(rdpmc) { (void)in; return raise_gp0(v); }

/* Both instructions mean the same: kernels choose by the vendor, and no guest has hardware virtualization here. */
static enum xret hypercall(struct vcpu *v, const struct insn *in)
{
    const struct vitro_pv *pv = &v->vm->pv;
    struct vitro_hypercall call = { .gpr = v->regs, .vcpu = v->index, .cpl = v->cpl, .code64 = vcpu_code64(v) };
    enum vitro_hc done = VITRO_HC_SLOW;
    u64 next = next_rip(v, in); /* `in` is in the code cache, which may be reused while the call waits for other vCPUs */

    if (pv->hypercall_fast)
        done = pv->hypercall_fast(pv->opaque, &call);
    if (done == VITRO_HC_SLOW && pv->hypercall) {
        fpu_leave(v);
        done = pv->hypercall(pv->opaque, &call);
        fpu_enter(v);
    }
    if (done == VITRO_HC_SLOW || done == VITRO_HC_NONE)
        return raise_ud(v);
    if (done == VITRO_HC_HALT) {
        v->rip = next;
        return halt(v);
    }
    if (likely(!v->event))
        return X_OK;
    v->rip = next; /* what the call asked for comes before the next instruction */
    return X_JUMP;
}
SYS(vmcall) { return hypercall(v, in); }
SYS(vmmcall) { return hypercall(v, in); }

/* -- FS and GS base -------------------------------------------------------------------------------------- */

SYS(swapgs)
{
    u32 mode = v->mode;
    if (!vcpu_code64(v))
        return raise_ud(v);
    if (v->cpl != 0)
        return raise_gp0(v);
    u64 base = v->seg[SEG_GS].base;
    v->seg[SEG_GS].base = v->kernel_gs_base;
    v->kernel_gs_base = base;
    vcpu_mode_changed(v);
    return done_in_mode(v, next_rip(v, in), mode);
}

static enum xret read_base(struct vcpu *v, const struct insn *in, unsigned seg)
{
    if (!vcpu_code64(v) || !(v->cr4 & CR4_FSGSBASE))
        return raise_ud(v);
    u64 base = v->seg[seg].base;
    v->regs[in->rm] = in->opsize == 8 ? base : (u32)base;
    return X_OK;
}

static enum xret write_base(struct vcpu *v, const struct insn *in, unsigned seg)
{
    u32 mode = v->mode;
    if (!vcpu_code64(v) || !(v->cr4 & CR4_FSGSBASE))
        return raise_ud(v);
    u64 base = v->regs[in->rm];
    if (in->opsize != 8)
        base = (u32)base;
    if (!is_canonical(base))
        return raise_gp0(v);
    v->seg[seg].base = base;
    vcpu_mode_changed(v);
    return done_in_mode(v, next_rip(v, in), mode);
}
SYS(rdfsbase) { return read_base(v, in, SEG_FS); }
SYS(rdgsbase) { return read_base(v, in, SEG_GS); }
SYS(wrfsbase) { return write_base(v, in, SEG_FS); }
SYS(wrgsbase) { return write_base(v, in, SEG_GS); }

/* -- Bit strings in memory ------------------------------------------------------------------------------ */

enum bit_op { BIT_TEST, BIT_SET, BIT_RESET, BIT_COMPLEMENT };

/* `bit` is below the operand's width. The host's instruction does it, so LOCK is the host's LOCK. */
#define BIT_ASM(op, sz) \
    __asm__ volatile("lock " op sz " %2, %1" : "=@ccc"(carry), "+m"(*(u64 *)p) : "r"(bit) : "memory")
#define BIT_SIZES(op) \
    do { \
        if (size == 8) { \
            BIT_ASM(op, "q"); \
        } else if (size == 4) { \
            u32 bit32 = (u32)bit; \
            __asm__ volatile("lock " op "l %2, %1" : "=@ccc"(carry), "+m"(*(u32 *)p) : "r"(bit32) : "memory"); \
        } else { \
            u16 bit16 = (u16)bit; \
            __asm__ volatile("lock " op "w %2, %1" : "=@ccc"(carry), "+m"(*(u16 *)p) : "r"(bit16) : "memory"); \
        } \
    } while (0)

static bool host_bit_op(void *p, unsigned size, u64 bit, enum bit_op op)
{
    bool carry = false;
    switch (op) {
    case BIT_TEST: break;
    case BIT_SET: BIT_SIZES("bts"); break;
    case BIT_RESET: BIT_SIZES("btr"); break;
    case BIT_COMPLEMENT: BIT_SIZES("btc"); break;
    }
    return carry;
}

static enum xret bit_string(struct vcpu *v, const struct insn *in, enum bit_op op)
{
    unsigned size = in->opsize, shift = size == 8 ? 6 : size == 4 ? 5 : 4;
    unsigned acc = op == BIT_TEST ? ACC_R : ACC_R | ACC_W;
    u64 raw = v->regs[in->reg];
    s64 index = size == 8 ? (s64)raw : size == 4 ? (s32)raw : (s16)raw;
    gva_t off = insn_offset(v, in) + (u64)((index >> shift) * (s64)size);
    u64 bit = (u64)index & (size * 8 - 1), val = 0;
    bool carry;
    gla_t la;
    void *p;

    if (in->addrsize != 8)
        off = in->addrsize == 4 ? (u32)off : (u16)off;
    if (seg_linear(v, in->seg, off, size, acc, &la) != X_OK)
        return X_FAULT;
    if (op == BIT_TEST) {
        if (mem_read(v, la, &val, size, ACC_R | vcpu_acc(v)) != X_OK)
            return X_FAULT;
        carry = val >> bit & 1;
    } else {
        if (mem_locked(v, la, size, vcpu_acc(v), &p) != X_OK)
            return X_FAULT;
        if (p) {
            carry = host_bit_op(p, size, bit, op);
        } else {
            if ((in->prefixes & PFX_LOCK) && !smp_bus_lock(v))
                return X_RETRY;
            bool ok = mem_probe(v, la, size, ACC_W | vcpu_acc(v)) == X_OK &&
                      mem_read(v, la, &val, size, ACC_R | vcpu_acc(v)) == X_OK;
            carry = ok && host_bit_op(&val, size, bit, op);
            ok = ok && mem_write(v, la, &val, size, ACC_W | vcpu_acc(v)) == X_OK;
            smp_bus_unlock(v);
            if (!ok)
                return X_FAULT;
        }
    }
    v->fl = (u16)((v->fl & ~(EFL_CF << 8)) | (u16)carry << 8);
    return X_OK;
}
SYS(bt_mem) { return bit_string(v, in, BIT_TEST); }
SYS(bts_mem) { return bit_string(v, in, BIT_SET); }
SYS(btr_mem) { return bit_string(v, in, BIT_RESET); }
SYS(btc_mem) { return bit_string(v, in, BIT_COMPLEMENT); }
