/*
 * outer.c - guests whose kernel runs outside ring 0: between the CPU and struct vitro_outer (libvitro.h).
 *
 * Such a kernel runs at CPL 1: for paging that is supervisor mode, so its pages need no U bit, user code cannot reach
 * them, and the kernel half of the TLB serves it as it serves any kernel. Selectors show level 3, as the interface has it
 * (vcpu_shown_cpl). Instructions that need ring 0 raise #GP at CPL 1 by themselves; engine_sys() brings those here.
 *
 * Kernel and user code may have page tables of their own. They share one TLB space all the same: entries that user code
 * uses were walked from the user's tables, entries of the kernel from the kernel's, and the two are never mixed. So
 * going from one to the other only changes CR3. Which space it is, and whether what is in it is still true, says who calls
 * vitro_vcpu_user_space(): the number stands where other guests have a PCID.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/fpu.h"
#include "engine/help.h"
#include "engine/mmu.h"
#include "engine/seg.h"
#include "engine/smp.h"

static struct vcpu *V(const struct vitro_vcpu *c)
{
    return (struct vcpu *)c;
}

/* -- Frames ---------------------------------------------------------------------------------------------- */

static void frame_take(struct vcpu *v, struct vitro_frame *f)
{
    *f = (struct vitro_frame){
        .gpr = v->regs, .rip = vcpu_ip(v), .rflags = vcpu_eflags(v), .cr3 = v->cr3, .cs = v->seg[SEG_CS].sel,
        .ss = v->seg[SEG_SS].sel, .kernel = v->cpl != 3,
    };
}

/* frame_segment - the descriptor behind a selector of level 3. False: it will not do. */
static bool frame_segment(struct vcpu *v, u16 sel, bool code, struct seg *s)
{
    struct outer_segment *known = &v->eng->outer_segment[(sel >> 3 ^ sel >> 12) % ARRAY_SIZE(v->eng->outer_segment)];
    u32 descriptors = __atomic_load_n(&v->vm->outer_descriptors, __ATOMIC_SEQ_CST) + 1;
    gla_t addr;
    u64 d;

    if (known->descriptors == descriptors && known->s.sel == sel && known->code == code) {
        *s = known->s;
        return true;
    }

    if (sel_is_null(sel) || (sel & 3) != 3 || desc_read(v, sel, VEC_GP, 0, &d, &addr) != X_OK)
        return false;

    u32 attr = desc_attr(d);

    if ((code ? !attr_is_code(attr) : !attr_is_writable(attr)) || attr_dpl(attr) != 3 || !(attr & SEG_P) ||
        (code && (attr & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB)))
        return false;
    seg_fill(v, s, sel, d);
    if (!(sel & 4))
        *known = (struct outer_segment){ .descriptors = descriptors, .code = code, .s = *s };
    return true;
}

static void change_level(struct vcpu *v, bool kernel)
{
    u64 base = v->seg[SEG_GS].base;

    v->seg[SEG_GS].base = v->kernel_gs_base;
    v->kernel_gs_base = base;
    v->cpl = kernel ? CPL_OUTER : 3;
}

/*
 * frame_cross - from 64-bit kernel code to 64-bit user code, or back, where both have the segments that they had the last
 * time: nothing needs to be looked up, and the mode is known (vcpu_mode_changed). False: it is not so.
 */
static bool frame_cross(struct vcpu *v, const struct vitro_frame *f)
{
    const struct seg *cs = f->kernel ? &v->syscall_cs : &v->sysret_cs, *ss = f->kernel ? &v->syscall_ss : &v->sysret_ss;

    if (f->kernel != (v->cpl == 3) || !(f->kernel ? v->syscall_ok : v->sysret_ok) ||
        v->eng->outer_known[!f->kernel] != __atomic_load_n(&v->vm->outer_descriptors, __ATOMIC_SEQ_CST) + 1 ||
        f->cs != cs->sel || f->ss != ss->sel || (f->rflags & (EFL_TF | EFL_AC)) || !is_canonical(f->rip))
        return false;
    v->seg[SEG_CS] = *cs;
    v->seg[SEG_SS] = *ss;
    change_level(v, f->kernel);
    vcpu_set_eflags(v, ((u32)f->rflags & (EFL_ARITH | EFL_DF | EFL_NT | EFL_ID)) | EFL_IF);
    v->rip = f->rip;
    v->int_shadow = 0;
    v->mode = f->kernel ? v->mode_kernel : v->mode_user;
    *(f->kernel ? &v->sysret_ok : &v->syscall_ok) = 1;
    engine_select_returns(v, !f->kernel);
    return true;
}

/* frame_enter - make the frame the vCPU's state. False: a selector will not do, and nothing has changed but CR3. */
static bool frame_enter(struct vcpu *v, const struct vitro_frame *f)
{
    struct seg cs = v->seg[SEG_CS], ss = v->seg[SEG_SS];

    if (v->cr3 != f->cr3) {
        v->cr3 = f->cr3;
        v->eng->watched.valid = false;
    }
    if (likely(frame_cross(v, f)))
        return true;
    u32 descriptors = __atomic_load_n(&v->vm->outer_descriptors, __ATOMIC_SEQ_CST) + 1;
    if (f->cs != cs.sel && !frame_segment(v, f->cs, true, &cs))
        return false;
    if (f->ss != ss.sel && !frame_segment(v, f->ss, false, &ss))
        return false;
    if (cs.attr & SEG_L ? !is_canonical(f->rip) : f->rip > cs.limit)
        return false;
    v->seg[SEG_CS] = cs;
    v->seg[SEG_SS] = ss;
    if (f->kernel != (v->cpl != 3)) {
        change_level(v, f->kernel);
        if (cs.attr & SEG_L && !(cs.sel & 4) && !(ss.sel & 4)) {
            *(f->kernel ? &v->syscall_cs : &v->sysret_cs) = cs;
            *(f->kernel ? &v->syscall_ss : &v->sysret_ss) = ss;
            v->eng->outer_known[!f->kernel] = descriptors;
        }
    }
    u32 flags = (u32)f->rflags;
    if (!(v->dr[7] & 0xff))
        flags &= ~EFL_RF;
    vcpu_set_eflags(v, (flags & (EFL_ARITH | EFL_TF | EFL_DF | EFL_NT | EFL_RF | EFL_AC | EFL_ID)) | EFL_IF);
    vcpu_set_ip(v, f->rip);
    v->int_shadow = 0;
    vcpu_mode_changed(v);
    return true;
}

/* outer_result - what a function of the table wants. X_OK: go on behind the instruction. */
static enum xret outer_result(struct vcpu *v, struct vitro_frame *f, enum vitro_crossing c)
{
    const struct vitro_outer *o = v->vm->pv.outer;

    switch (c) {
    case VITRO_STAY:
        return X_OK;
    case VITRO_GO:
    case VITRO_HALT:
    case VITRO_PARK:
        if (!frame_enter(v, f)) {
            enum vitro_crossing again = o->bad_frame(o->opaque, v->index, f);
            if (again == VITRO_DEAD)
                return X_EXIT;
            if (!frame_enter(v, f)) {
                vitro_vcpu_fail((struct vitro_vcpu *)v, "the guest goes to %#x:%#llx, which is no code segment", f->cs,
                                (unsigned long long)f->rip);
                return X_EXIT;
            }
        } else if (c != VITRO_GO) {
            if (v->wake && c == VITRO_HALT) {
                v->wake = 0;
                return X_JUMP;
            }
            v->wake = 0;
            v->halted = 1;
            v->exit = EXIT_HLT;
            return X_EXIT;
        }
        return X_JUMP;
    case VITRO_REFUSE:
        return X_FAULT;
    case VITRO_DEAD:
        break;
    }
    return X_EXIT;
}

/* -- Crossings ---------------------------------------------------------------------------------------------- */

enum xret outer_trap(struct vcpu *v)
{
    const struct vitro_outer *o = v->vm->pv.outer;
    const struct vitro_trap t = {
        .vector = v->exc.vector, .has_error = v->exc.has_error, .error = v->exc.error, .cr2 = v->exc.cr2, .dr6 = v->exc.dr6,
    };
    struct vitro_frame f;

    if (t.vector < 32)
        v->nr_exc[t.vector]++;
    if (t.vector == VEC_PF)
        v->cr2 = t.cr2;
    else if (t.vector == VEC_DB)
        v->dr[6] |= t.dr6;
    v->halted = 0;
    frame_take(v, &f);
    enum vitro_crossing c = o->trap(o->opaque, v->index, &f, &t);
    return outer_result(v, &f, c);
}

enum xret outer_soft_interrupt(struct vcpu *v, unsigned vector, u64 next_rip)
{
    const struct vitro_outer *o = v->vm->pv.outer;
    struct vitro_frame f;

    frame_take(v, &f);
    f.rip = next_rip;
    enum vitro_crossing c = o->soft_interrupt(o->opaque, v->index, &f, vector);
    if (c == VITRO_REFUSE)
        return raise_error(v, VEC_GP, vector * 8u + 2u);
    return outer_result(v, &f, c);
}

enum xret outer_syscall(struct vcpu *v, u64 next_rip)
{
    const struct vitro_outer *o = v->vm->pv.outer;
    bool code64 = vcpu_code64(v);
    struct vitro_frame f;

    frame_take(v, &f);
    *(f.kernel ? &v->nr_outer_calls : &v->nr_outer_carried) += 1;
    f.rip = next_rip;
    v->regs[RCX] = next_rip;
    v->regs[R11] = f.rflags & ~(u64)EFL_RF;
    enum vitro_crossing c = o->syscall(o->opaque, v->index, &f, code64);
    if (c == VITRO_REFUSE)
        return raise_ud(v);
    if (c == VITRO_STAY)
        v->cr3 = f.cr3;
    return outer_result(v, &f, c);
}

enum xret outer_event(struct vcpu *v)
{
    const struct vitro_outer *o = v->vm->pv.outer;
    struct vitro_frame f;

    frame_take(v, &f);
    enum vitro_crossing c = o->event(o->opaque, v->index, &f);
    if (c == VITRO_STAY)
        return X_JUMP;
    v->eng->step_armed = false;
    v->halted = 0;
    v->nr_intr += c == VITRO_GO;
    return outer_result(v, &f, c);
}

/* -- What needs ring 0 ------------------------------------------------------------------------------------------ */

static u64 edx_eax(const struct vcpu *v) { return (u64)(u32)v->regs[RDX] << 32 | (u32)v->regs[RAX]; }

/* What the instruction wants, of those that have an op. E4-E7 have an immediate port, EC-EF take it from DX. */
static bool privileged_op(const struct vcpu *v, const struct insn *in, struct vitro_privileged *p)
{
    *p = (struct vitro_privileged){ 0 };
    switch (in->id) {
    case I_RDMSR: p->op = VITRO_RDMSR; p->reg = (u32)v->regs[RCX]; break;
    case I_WRMSR: p->op = VITRO_WRMSR; p->reg = (u32)v->regs[RCX]; p->value = edx_eax(v); break;
    case I_XSETBV: p->op = VITRO_XSETBV; p->reg = (u32)v->regs[RCX]; p->value = edx_eax(v); break;
    case I_MOV_R_CR: p->op = VITRO_RDCR; p->reg = in->reg; break;
    case I_MOV_CR_R: p->op = VITRO_WRCR; p->reg = in->reg; p->value = v->regs[in->rm]; break;
    case I_MOV_R_DR: p->op = VITRO_RDDR; p->reg = in->reg; break;
    case I_MOV_DR_R: p->op = VITRO_WRDR; p->reg = in->reg; p->value = v->regs[in->rm]; break;
    case I_CLTS: p->op = VITRO_CLTS; break;
    case I_HLT: p->op = VITRO_HLT; break;
    case I_CLI: p->op = VITRO_CLI; break;
    case I_STI: p->op = VITRO_STI; break;
    case I_WBINVD: case I_INVD: p->op = VITRO_WBINVD; break;
    case I_INVLPG: p->op = VITRO_INVLPG; p->value = insn_offset(v, in); break;
    case I_IN: case I_OUT:
        p->op = in->id == I_IN ? VITRO_IN : VITRO_OUT;
        p->size = !(in->opcode & 1) ? 1 : in->opsize == 2 ? 2 : 4;
        p->reg = in->opcode < 0xe8 ? (u8)in->imm : (u16)v->regs[RDX];
        p->value = (u32)v->regs[RAX];
        break;
    default:
        return false;
    }
    return true;
}

enum xret outer_privileged(struct vcpu *v, const struct insn *in)
{
    const struct vitro_outer *o = v->vm->pv.outer;
    unsigned id = in->id, rm = in->rm, reg = in->reg;
    struct exc was = v->exc;
    struct vitro_privileged p;
    struct vitro_frame f;

    if (was.error || !privileged_op(v, in, &p))
        return X_FAULT;
    if ((id == I_MOV_R_CR || id == I_MOV_CR_R) && (reg == 1 || reg > 4))
        return raise_ud(v);
    if ((id == I_MOV_R_DR || id == I_MOV_DR_R) && reg > 7)
        return raise_ud(v);
    frame_take(v, &f);
    f.rip += in->len;
    enum vitro_crossing c = o->privileged(o->opaque, v->index, &f, &p);
    v->exc = was;
    if (c == VITRO_STAY) {
        if (p.op == VITRO_RDMSR) {
            v->regs[RAX] = (u32)p.value;
            v->regs[RDX] = p.value >> 32;
        } else if (p.op == VITRO_RDCR || p.op == VITRO_RDDR) {
            v->regs[rm] = p.value;
        } else if (p.op == VITRO_IN) {
            gpr_write(v, RAX, p.size, true, p.value);
        }
        if (p.op == VITRO_WRCR || p.op == VITRO_WRDR || p.op == VITRO_CLTS || p.op == VITRO_XSETBV || p.op == VITRO_WRMSR)
            c = VITRO_GO; /* what the code behind was translated for may have changed */
    }
    return outer_result(v, &f, c);
}

/* -- Page tables that are not writable -------------------------------------------------------------------------------- */

bool outer_write_fault(struct vcpu *v, gla_t la, unsigned acc, gpa_t *gpa)
{
    const struct vitro_outer *o = v->vm->pv.outer;

    if (v->eng->outer_copies || v->cpl != CPL_OUTER || !(acc & ACC_W) || v->exc.vector != VEC_PF || (v->exc.error & (PF_P | PF_RSVD)) != PF_P ||
        !mmu_translate_debug(v, la, gpa))
        return false;
    return o->write_fault(o->opaque, v->index, *gpa);
}

/* -- What the table's functions may ask ---------------------------------------------------------------------------------- */

int vitro_vcpu_copy_in(struct vitro_vcpu *c, uint64_t la, void *buf, size_t len)
{
    struct vcpu *v = V(c);

    if (likely(mem_read_known(v, la, buf, (unsigned)MIN(len, PAGE_SIZE + 1), ACC_R)))
        return 0;

    struct exc was = v->exc;
    enum xret x = X_OK;

    for (size_t at = 0; at < len && x == X_OK; at += PAGE_SIZE)
        x = mem_read(v, la + at, (u8 *)buf + at, (unsigned)MIN(len - at, PAGE_SIZE), ACC_R);
    v->exc = was;
    return x == X_OK ? 0 : -EFAULT;
}

int vitro_vcpu_copy_out(struct vitro_vcpu *c, uint64_t la, const void *buf, size_t len)
{
    struct vcpu *v = V(c);

    if (likely(mem_write_known(v, la, buf, (unsigned)MIN(len, PAGE_SIZE + 1), ACC_W)))
        return 0;

    struct exc was = v->exc;
    enum xret x = X_OK;

    v->eng->outer_copies = true; /* a table's bytes are no place for results */
    for (size_t at = 0; at < len && x == X_OK; at += PAGE_SIZE)
        x = mem_write(v, la + at, (const u8 *)buf + at, (unsigned)MIN(len - at, PAGE_SIZE), ACC_W);
    v->eng->outer_copies = false;
    v->exc = was;
    return x == X_OK ? 0 : -EFAULT;
}

void vitro_vcpu_fail(struct vitro_vcpu *c, const char *fmt, ...)
{
    struct vcpu *v = V(c);
    va_list ap;

    if (v->exit == EXIT_FAIL)
        return;
    fpu_leave(v);
    va_start(ap, fmt);
    vsnprintf(v->fail_msg, sizeof(v->fail_msg), fmt, ap);
    va_end(ap);
    fpu_enter(v);
    v->exit = EXIT_FAIL;
}

void vitro_vcpu_cpuid(struct vitro_vcpu *c, uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
    cpu_model_cpuid(V(c)->model, V(c), leaf, subleaf, r);
}

static int as_errno(struct vcpu *v, struct exc was, enum xret x)
{
    v->exc = was;
    return x == X_OK ? 0 : -EINVAL;
}

int vitro_vcpu_rdmsr(struct vitro_vcpu *c, uint32_t msr, uint64_t *value)
{
    struct vcpu *v = V(c);
    struct exc was = v->exc;
    return as_errno(v, was, msr_read(v, msr, value));
}

int vitro_vcpu_wrmsr(struct vitro_vcpu *c, uint32_t msr, uint64_t value)
{
    struct vcpu *v = V(c);
    struct exc was = v->exc;
    int r = as_errno(v, was, msr_write(v, msr, value));
    vcpu_mode_changed(v);
    return r;
}

int vitro_vcpu_write_cr(struct vitro_vcpu *c, unsigned cr, uint64_t value)
{
    struct vcpu *v = V(c);
    struct exc was = v->exc;

    if (cr != 9)
        return as_errno(v, was, help_cr_write(v, cr, value));
    /* SDM vol. 1 §13.3 */
    if ((value & ~v->model->xcr0_mask) || !(value & 1) || (value & 6) == 4 || ((value & 0xe0) && (value & 0xe6) != 0xe6))
        return -EINVAL;
    v->xcr0 = value;
    vcpu_mode_changed(v);
    return 0;
}

int vitro_vcpu_write_dr(struct vitro_vcpu *c, unsigned dr, uint64_t value)
{
    struct vcpu *v = V(c);

    if (dr > 7 || (dr >= 4 && value >> 32))
        return -EINVAL;
    dr = dr == 4 || dr == 5 ? dr + 2 : dr;
    v->dr[dr] = dr == 6 ? (value & 0xe00f) | 0xffff0ff0 : dr == 7 ? (value & 0xffff03ff) | 0x400 : value;
    if (dr != 6) {
        tlb_flush_all(v, true); /* watched pages lose their entries, others may have them again */
        vcpu_mode_changed(v);
    }
    return 0;
}

uint64_t vitro_vcpu_read_dr(struct vitro_vcpu *c, unsigned dr)
{
    return V(c)->dr[dr == 4 || dr == 5 ? dr + 2 : dr & 7];
}

int vitro_vcpu_load_gs(struct vitro_vcpu *c, uint16_t sel)
{
    struct vcpu *v = V(c);
    struct seg gs = v->seg[SEG_GS];
    u64 base = gs.base;
    struct exc was = v->exc;
    enum xret x = seg_load(v, SEG_GS, sel);

    if (x == X_OK) {
        v->kernel_gs_base = v->seg[SEG_GS].base;
        v->seg[SEG_GS].base = base;
    }
    vcpu_mode_changed(v);
    return as_errno(v, was, x);
}

void vitro_vcpu_descriptors_changed(struct vitro_vcpu *c)
{
    __atomic_fetch_add(&V(c)->vm->outer_descriptors, 1, __ATOMIC_SEQ_CST);
}

void vitro_vcpu_set_ldt(struct vitro_vcpu *c, uint64_t base, uint32_t bytes)
{
    V(c)->seg[SEG_LDTR] = (struct seg){ .base = base, .limit = bytes ? bytes - 1 : 0, .attr = bytes ? SEG_P | SYS_LDT : SEG_UNUSABLE };
}

void vitro_vcpu_kernel_space(struct vitro_vcpu *c, uint64_t cr3)
{
    V(c)->cr3 = cr3;
    vitro_vcpu_flush_user(c, true);
}

void vitro_vcpu_user_space(struct vitro_vcpu *c, uint16_t number, bool keep)
{
    tlb_switch_to(V(c), number, keep);
    V(c)->eng->smc_hit = true; /* the next instruction may be on another page */
}

void vitro_vcpu_flush_all(struct vitro_vcpu *c)
{
    tlb_flush_all(V(c), true);
    V(c)->eng->smc_hit = true;
}

void vitro_vcpu_flush_user(struct vitro_vcpu *c, bool keep)
{
    tlb_flush_user(V(c), keep);
    V(c)->eng->smc_hit = true;
}

void vitro_vcpu_kernel_differs(struct vitro_vcpu *c)
{
    __atomic_store_n(&V(c)->vm->outer_differs, true, __ATOMIC_SEQ_CST);
    vitro_vcpu_flush_all(c);
    vitro_vcpu_flush_others(c, NULL, 0);
}

void vitro_vcpu_vectors_away(struct vitro_vcpu *c)
{
    fpu_leave(V(c));
}

void vitro_vcpu_vectors_back(struct vitro_vcpu *c)
{
    fpu_enter(V(c));
}

void vitro_vcpu_refuse_store(struct vitro_vcpu *c)
{
    V(c)->eng->store = STORE_REFUSED;
}

const void *vitro_vcpu_store_before(const struct vitro_vcpu *c)
{
    return V(c)->eng->store_before;
}

void vitro_vcpu_store_again(struct vitro_vcpu *c)
{
    V(c)->eng->store = STORE_AGAIN;
}

void vitro_vcpu_use_cr3(struct vitro_vcpu *c, uint64_t cr3)
{
    V(c)->cr3 = cr3;
    V(c)->eng->watched.valid = false;
}

void vitro_vcpu_data_selectors(const struct vitro_vcpu *c, uint64_t sel[4])
{
    const struct vcpu *v = V(c);

    sel[0] = v->seg[SEG_DS].sel;
    sel[1] = v->seg[SEG_ES].sel;
    sel[2] = v->seg[SEG_FS].sel;
    sel[3] = v->seg[SEG_GS].sel;
}

void vitro_vcpu_unwrite_page(struct vitro_vcpu *c, uint64_t gpa)
{
    struct vcpu *v = V(c);
    struct ram_slot *rs = ram_find(&v->vm->ram, gpa);

    if (!rs)
        return;
    v->eng->watched.valid = false;
    smp_revoke(v, rs, gpa & PAGE_MASK);
    v->eng->smc_hit = true;
}
