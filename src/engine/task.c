/*
 * task.c - hardware task switches: far jmp, far call, iret with NT, and task gates. Outside long mode only.
 * Source: Intel SDM vol. 3 §7 (task management): §7.2 (TSS), §7.3 (switching, table 7-1), §7.4 (linking).
 *
 * Everything that can fault in the old task is done or probed first: both descriptors, the new TSS, room for the state
 * in the old one. Then the switch is made. What fails after that (LDT, segments, a trap for the T bit, the error
 * code's push) is a fault of the new task, at its first instruction.
 *
 * Deviations: DR7's local enables and LE are cleared; CR3 is loaded only while paging is on, and bad PDPTEs are found
 * at the first walk. EIP beyond the new CS's limit is found by the fetch.
 */
#include "engine/seg.h"

#define TSS32_SIZE 104u
#define TSS16_SIZE 44u

/* Where each type of TSS keeps what a switch stores, and how wide. */
struct layout {
    u8 size, eip, eflags, gpr, seg, ldt, nr_seg, width;
};
static const struct layout layouts[2] = {
    { TSS16_SIZE, 14, 16, 18, 34, 42, 4, 2 },
    { TSS32_SIZE, 32, 36, 40, 72, 96, 6, 4 },
};
static inline const struct layout *layout_of(u32 attr) { return &layouts[attr >> 3 & 1]; }

/* In the order in which a TSS has them. */
static const u8 gpr_order[] = { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };
static const u8 seg_order[] = { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS };

static void put(u8 *p, unsigned width, u32 val)
{
    copy_bytes(p, &val, width);
}
static u32 get(const u8 *p, unsigned width)
{
    u32 val = 0;
    copy_bytes(&val, p, width);
    return val;
}

/* The state from EIP to the last segment register, as the old TSS gets it. Returns its length. */
static unsigned state_image(const struct vcpu *v, const struct layout *l, u32 eip, u32 eflags, u8 *out)
{
    put(out, l->width, eip);
    put(out + l->width, l->width, eflags);
    for (unsigned i = 0; i < ARRAY_SIZE(gpr_order); i++)
        put(out + l->gpr - l->eip + i * l->width, l->width, (u32)v->regs[gpr_order[i]]);
    for (unsigned i = 0; i < l->nr_seg; i++)
        put(out + l->seg - l->eip + i * l->width, l->width, v->seg[seg_order[i]].sel);
    return (unsigned)l->seg - l->eip + l->nr_seg * l->width;
}

/* -- In the new task -------------------------------------------------------------------------------------------- */

static enum xret load_ldt(struct vcpu *v, u16 sel, u32 ext)
{
    gla_t addr;
    u64 d;

    v->seg[SEG_LDTR] = (struct seg){ .sel = sel, .attr = SEG_UNUSABLE };
    if (sel_is_null(sel))
        return X_OK;
    if (sel & 4)
        return raise_error(v, VEC_TS, sel_error(sel, ext));
    if (desc_read(v, sel, VEC_TS, ext, &d, &addr) != X_OK)
        return X_FAULT;
    if ((desc_attr(d) & (SEG_S | SEG_TYPE)) != SYS_LDT || !(desc_attr(d) & SEG_P))
        return raise_error(v, VEC_TS, sel_error(sel, ext));
    seg_fill(v, &v->seg[SEG_LDTR], sel, d);
    return X_OK;
}

/* §7.3, table 7-1: what does not fit is #TS, not #GP. */
static enum xret load_segment(struct vcpu *v, unsigned segreg, u16 sel, u32 ext)
{
    unsigned rpl = sel & 3, cpl = v->cpl;
    gla_t addr;
    u64 d;

    if (sel_is_null(sel))
        return segreg == SEG_CS || segreg == SEG_SS ? raise_error(v, VEC_TS, sel_error(sel, ext)) : X_OK;
    if (desc_read(v, sel, VEC_TS, ext, &d, &addr) != X_OK)
        return X_FAULT;

    u32 attr = desc_attr(d);
    unsigned dpl = attr_dpl(attr), absent = segreg == SEG_SS ? VEC_SS : VEC_NP;
    bool ok;

    if (segreg == SEG_CS)
        ok = attr_is_code(attr) && (attr_is_conforming(attr) ? dpl <= rpl : dpl == rpl);
    else if (segreg == SEG_SS)
        ok = attr_is_writable(attr) && dpl == cpl && rpl == cpl;
    else
        ok = (attr & SEG_S) && (attr & (SEG_CODE | SEG_R)) != SEG_CODE &&
             (attr_is_conforming(attr) || MAX(rpl, cpl) <= dpl);
    if (!ok)
        return raise_error(v, VEC_TS, sel_error(sel, ext));
    if (!(attr & SEG_P))
        return raise_error(v, absent, sel_error(sel, ext));
    if (desc_set_bits(v, addr, &d, SEG_A) != X_OK)
        return X_FAULT;
    seg_fill(v, &v->seg[segreg], sel, d);
    return X_OK;
}

/* The first fault counts. What can be loaded is loaded in spite of it: its handler needs a CS and SS (§7.3, behind step 13). */
static enum xret load_segments(struct vcpu *v, u16 ldt, const u16 sel[6], u32 ext)
{
    static const u8 order[] = { 1, 2, 0, 3, 4, 5 }; /* CS and SS decide what the others may be */
    enum xret r = load_ldt(v, ldt, ext);
    struct exc first = v->exc;

    for (unsigned i = 0; i < 6; i++)
        if (load_segment(v, seg_order[order[i]], sel[order[i]], ext) != X_OK && r == X_OK) {
            r = X_FAULT;
            first = v->exc;
        }
    v->exc = first;
    return r;
}

/* -- The switch -------------------------------------------------------------------------------------------------- */

enum xret task_switch(struct vcpu *v, const struct task_switch *t, bool *made)
{
    struct seg *tr = &v->seg[SEG_TR];
    u32 ext = t->ext;
    u64 d, old_d = 0;
    gla_t addr, old_addr = 0;
    u8 image[TSS32_SIZE], save[TSS32_SIZE];
    bool iret = t->how == TASK_IRET, nested = t->how == TASK_CALL || t->how == TASK_EVENT;
    enum xret r;

    *made = false;
    /* The descriptor: of the GDT, a TSS, busy for IRET and available otherwise. */
    unsigned bad = iret ? VEC_TS : VEC_GP;
    if ((t->sel & 4) || sel_is_null(t->sel))
        return raise_error(v, bad, sel_error(t->sel, ext));
    r = desc_read(v, t->sel, bad, ext, &d, &addr);
    if (r != X_OK)
        return r;

    u32 attr = desc_attr(d);
    unsigned type = attr & (SEG_S | SEG_TYPE);

    if ((type & ~8u) != (iret ? SYS_TSS16_BUSY : SYS_TSS16))
        return raise_error(v, bad, sel_error(t->sel, ext));
    if (!(attr & SEG_P))
        return raise_error(v, VEC_NP, sel_error(t->sel, ext));

    const struct layout *l = layout_of(attr), *old = layout_of(tr->attr);

    if (desc_limit(d) < l->size - 1u)
        return raise_error(v, VEC_TS, sel_error(t->sel, ext));
    if ((tr->attr & SEG_UNUSABLE) || tr->limit < old->size - 1u)
        return raise_error(v, VEC_TS, sel_error(tr->sel, ext));
    r = mem_read(v, (u32)desc_base(d), image, l->size, ACC_R | ACC_SYS);
    if (r == X_OK && nested)
        r = mem_probe(v, (u32)desc_base(d), 2, ACC_W | ACC_SYS);
    if (r == X_OK && !iret)
        r = mem_probe(v, addr + 5, 1, ACC_W | ACC_SYS);
    if (r == X_OK && !nested) {
        r = desc_read(v, tr->sel, VEC_TS, ext, &old_d, &old_addr);
        if (r == X_OK)
            r = mem_probe(v, old_addr + 5, 1, ACC_W | ACC_SYS);
    }
    if (r != X_OK)
        return r;

    u32 flags = vcpu_eflags(v) | (t->set_rf ? EFL_RF : 0);
    unsigned len = state_image(v, old, t->eip, iret ? flags & ~EFL_NT : flags, save);
    u16 back = tr->sel;

    r = mem_write(v, (u32)(tr->base + old->eip), save, len, ACC_W | ACC_SYS);
    if (r != X_OK)
        return r;

    /* From here on nothing of the old task's can fail. */
    *made = true;
    if (!nested) {
        u8 byte = (u8)(old_d >> 40) & ~2u;
        mem_write(v, old_addr + 5, &byte, 1, ACC_W | ACC_SYS);
    } else {
        mem_write(v, (u32)desc_base(d), &back, 2, ACC_W | ACC_SYS);
    }
    if (!iret) {
        /* Again: the task may switch to itself, or its descriptor lie in a TSS. */
        u8 byte;
        mem_read(v, addr + 5, &byte, 1, ACC_R | ACC_SYS);
        byte |= 2;
        mem_write(v, addr + 5, &byte, 1, ACC_W | ACC_SYS);
        d |= 2ull << 40;
    }
    seg_fill(v, tr, t->sel, d);
    v->cr0 |= CR0_TS;
    v->dr[7] &= ~0x155ull;
    v->int_shadow = 0;
    v->halted = 0;
    if (l->width == 4 && (v->cr0 & CR0_PG)) {
        v->cr3 = get(image + 28, 4);
        tlb_switch(v, false);
    }
    flags = get(image + l->eflags, l->width);
    if (l->width == 2)
        flags &= ~EFL_VM; /* 16 bits: there is none */
    flags &= EFL_ARITH | EFL_TF | EFL_IF | EFL_DF | EFL_IOPL | EFL_NT | EFL_RF | EFL_VM | EFL_AC | EFL_VIF | EFL_VIP | EFL_ID;
    if (nested)
        flags |= EFL_NT;
    vcpu_set_eflags(v, flags);
    for (unsigned i = 0; i < ARRAY_SIZE(gpr_order); i++) {
        u32 val = get(image + l->gpr + i * l->width, l->width);
        v->regs[gpr_order[i]] = l->width == 2 ? val | 0xffff0000 : val; /* as the CPUs that had them did */
    }

    u16 sel[6] = { 0 };

    for (unsigned i = 0; i < l->nr_seg; i++)
        sel[i] = (u16)get(image + l->seg + i * l->width, 2);
    for (unsigned i = 0; i < 6; i++)
        v->seg[seg_order[i]] = (struct seg){ .sel = sel[i], .attr = SEG_UNUSABLE };

    u32 eip = get(image + l->eip, l->width);
    bool v86 = flags & EFL_VM;

    v->cpl = v86 ? 3 : sel[1] & 3;
    u16 ldt = (u16)get(image + l->ldt, 2);
    if (v86) {
        r = load_ldt(v, ldt, ext);
        for (unsigned i = 0; i < 6; i++)
            seg_load_real(v, seg_order[i], sel[i]);
    } else {
        r = load_segments(v, ldt, sel, ext);
    }
    vcpu_set_ip(v, eip);
    vcpu_mode_changed(v);
    if (r == X_OK && t->has_error) {
        u64 error = t->error, sp = v->regs[RSP];
        r = stack_push(v, &v->seg[SEG_SS], stack_mask(v), v->cpl, 0, &error, 1, l->width, &sp);
        if (r == X_OK)
            v->regs[RSP] = sp;
    }
    if (r == X_OK && l->width == 4 && (image[100] & 1)) { /* T: a trap before the task's first instruction */
        v->exc = (struct exc){ .vector = VEC_DB, .dr6 = 1u << 15 };
        r = X_FAULT;
    }
    return r == X_OK ? X_JUMP : r;
}

enum xret task_gate(struct vcpu *v, u16 gate_sel, u64 gate, unsigned how, u32 eip)
{
    bool made;

    if (MAX((unsigned)v->cpl, gate_sel & 3u) > attr_dpl(desc_attr(gate)))
        return raise_error(v, VEC_GP, sel_error(gate_sel, 0));
    if (!(desc_attr(gate) & SEG_P))
        return raise_error(v, VEC_NP, sel_error(gate_sel, 0));
    return task_switch(v, &(struct task_switch){ .how = how, .sel = (u16)(gate >> 16), .eip = eip }, &made);
}

enum xret task_return(struct vcpu *v, u32 eip)
{
    u16 link;
    bool made;
    enum xret r = mem_read(v, (u32)v->seg[SEG_TR].base, &link, 2, ACC_R | ACC_SYS);

    if (r != X_OK)
        return r;
    return task_switch(v, &(struct task_switch){ .how = TASK_IRET, .sel = link, .eip = eip }, &made);
}
