/*
 * state.c - a vCPU as bytes and back, for snapshots. What is in here is all that the guest can find out about the
 * processor; what the engine derives from it (modes, TLBs, translations, predictions) is made again.
 *
 * The bytes may come from anybody's file: nothing that the engine relies on is believed before it was checked. A guest
 * that could not exist on a real CPU may come of it, not more.
 * Not carried: x87's last instruction and operand pointers (they read as 0 afterwards, as when the block that they
 * belong to was dropped).
 */
#include "libvitro.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/state.h"
#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/fpu.h"
#include "engine/help.h"

/* clang-format off */
#define F(member) STATE(struct vcpu, member)
#define SEGMENT(n) F(seg[n].base), F(seg[n].limit), F(seg[n].attr), F(seg[n].sel)
static const struct state_field vcpu_fields[] = {
    F(regs), F(rip), F(fl), F(eflags), F(intr_wait),
    SEGMENT(SEG_ES), SEGMENT(SEG_CS), SEGMENT(SEG_SS), SEGMENT(SEG_DS), SEGMENT(SEG_FS), SEGMENT(SEG_GS),
    SEGMENT(SEG_LDTR), SEGMENT(SEG_TR),
    F(gdtr.base), F(gdtr.limit), F(idtr.base), F(idtr.limit),
    F(cr0), F(cr2), F(cr3), F(cr4), F(cr8), F(efer), F(xcr0), F(dr),
    F(cpl), F(int_shadow), F(nmi_masked), F(halted), F(wake),
    F(star), F(lstar), F(cstar), F(sfmask), F(kernel_gs_base), F(tsc_aux), F(pat), F(xss),
    F(sysenter_cs), F(sysenter_esp), F(sysenter_eip), F(tsc_adjust),
    F(mtrr_def_type), F(mtrr_fixed), F(mtrr_var), F(misc_enable), F(spec_ctrl),
    F(hwcr), F(de_cfg), F(mcg_status), STATE_END
};
/* clang-format on */

/* What is kept elsewhere or in another form. */
struct rest {
    u64 tsc, db_hit;
    u32 events; /* EVENT_NMI, EVENT_WAKE not looked at yet */
    bool a20_off, step_armed, shadow_step;
    u8 fpu[XSAVE_AREA_MAX];
};
static const struct state_field rest_fields[] = {
    STATE(struct rest, tsc), STATE(struct rest, db_hit), STATE(struct rest, events), STATE(struct rest, a20_off),
    STATE(struct rest, step_armed), STATE(struct rest, shadow_step), STATE(struct rest, fpu), STATE_END
};

#define KEPT_EVENTS (EVENT_NMI | EVENT_WAKE)
#define EFL_SAVED (EFL_ARITH | EFL_TF | EFL_IF | EFL_DF | EFL_IOPL | EFL_NT | EFL_RF | EFL_VM | EFL_AC | EFL_VIF | \
                   EFL_VIP | EFL_ID)
#define SEG_SAVED 0x1f0ffu

/* XSAVE area, SDM vol. 1 §13.4.1, §13.4.2 */
#define AREA_X87_POINTERS 8, 16
#define AREA_MXCSR 24
#define AREA_XSTATE_BV XSAVE_LEGACY
#define AREA_HEADER_REST (XSAVE_LEGACY + 8), 56

void *vitro_vcpu_save(struct vitro_vcpu *c, size_t *len)
{
    struct vcpu *v = (struct vcpu *)c;
    struct state_buf buf = { 0 };
    struct rest *r = calloc(1, sizeof(*r));
    u32 first;

    if (!r)
        return NULL;
    r->tsc = vitro_vcpu_tsc(c);
    r->db_hit = v->eng->db_hit;
    r->events = v->event & KEPT_EVENTS;
    r->a20_off = v->vm->a20_off;
    r->step_armed = v->eng->step_armed;
    r->shadow_step = v->eng->shadow_step;
    memcpy(r->fpu, v->fpu, sizeof(r->fpu));
    const unsigned pointers[] = { AREA_X87_POINTERS };
    memset(r->fpu + pointers[0], 0, pointers[1]); /* host addresses: they are not the guest's */

    state_put(&buf, &first, 4);
    state_save(&buf, vcpu_fields, v);
    first = (u32)buf.len - 4;
    state_save(&buf, rest_fields, r);
    free(r);
    if (buf.failed) {
        state_buf_free(&buf);
        return NULL;
    }
    memcpy(buf.data, &first, 4);
    *len = buf.len;
    return buf.data;
}

/* -- Loading: first into a vCPU that does not run, which is put back if anything is wrong ------------------- */

/* What no kernel outside ring 0 (struct vitro_outer) can have changed: its level, and flags that take ring 0. Without paging it is one
 * that has not started. */
static bool outer_sound(const struct vcpu *v)
{
    if (!(v->cr0 & CR0_PG))
        return !v->cpl;
    return (v->efer & EFER_LMA) && (v->cpl == CPL_OUTER || v->cpl == 3) &&
           (v->eflags & (EFL_IF | EFL_IOPL | EFL_VM)) == EFL_IF;
}

static const char *judge_vcpu(const struct vcpu *v)
{
    const struct cpu_model *m = v->model;
    bool paging = v->cr0 & CR0_PG, lma = v->efer & EFER_LMA;

    if (v->cpl > 3 || v->int_shadow > SHADOW_SS || v->nmi_masked > 1 || v->halted > HALTED_MWAIT || v->wake > 1)
        return "its privilege or interrupt state";
    if ((v->cr4 & ~m->cr4_mask) || (v->efer & ~(m->efer_mask | EFER_LMA)) || (v->cr0 >> 32))
        return "a control register";
    if (v->outer && !outer_sound(v))
        return "its privilege outside ring 0";
    if ((v->xcr0 & ~m->xcr0_mask) || !(v->xcr0 & XFEATURE_X87) || v->xss)
        return "XCR0";
    if ((paging && !(v->cr0 & CR0_PE)) || lma != (paging && (v->efer & EFER_LME)) || (lma && !(v->cr4 & CR4_PAE)))
        return "its paging mode";
    if (!is_canonical(v->lstar) || !is_canonical(v->cstar) || !is_canonical(v->kernel_gs_base) ||
        !is_canonical(v->sysenter_esp) || !is_canonical(v->sysenter_eip))
        return "an address in an MSR";
    for (unsigned i = 0; i < NR_SEG; i++)
        if ((v->seg[i].attr & ~SEG_SAVED) || !is_canonical(v->seg[i].base))
            return "a segment";
    return NULL;
}

static const char *judge_rest(const struct vcpu *v, const struct rest *r)
{
    const unsigned zero[] = { AREA_HEADER_REST };
    u64 components;
    u32 mxcsr;

    memcpy(&components, r->fpu + AREA_XSTATE_BV, 8);
    memcpy(&mxcsr, r->fpu + AREA_MXCSR, 4);
    for (unsigned i = 0; i < zero[1]; i++)
        if (r->fpu[zero[0] + i])
            return "its vector state";
    if ((components & ~(v->model->xcr0_mask & XFEATURE_GUEST)) || (mxcsr & ~v->model->mxcsr_mask))
        return "its vector state";
    return r->events & ~KEPT_EVENTS ? "its events" : NULL;
}

int vitro_vcpu_load(struct vitro_vcpu *c, const void *bytes, size_t len, char *err, size_t err_len)
{
    struct vcpu *v = (struct vcpu *)c;
    struct rest *r = calloc(1, sizeof(*r));
    const char *wrong = NULL;
    u32 first = 0;
    int ret = -EINVAL;

    if (!r) {
        snprintf(err, err_len, "out of memory");
        return -ENOMEM;
    }
    bug_on(!v->vm->stopped_tsc);
    if (len >= 4)
        memcpy(&first, bytes, 4);
    if (len < 4 || first > len - 4) {
        snprintf(err, err_len, "ends too early");
        goto out;
    }
    const u8 *p = (const u8 *)bytes + 4;
    if (state_load(vcpu_fields, v, p, first, err, err_len) ||
        state_load(rest_fields, r, p + first, len - 4 - first, err, err_len))
        goto reset;
    wrong = judge_vcpu(v);
    if (!wrong)
        wrong = judge_rest(v, r);
    if (wrong) {
        snprintf(err, err_len, "no CPU of this kind can have %s", wrong);
        goto reset;
    }
    vcpu_set_eflags(v, vcpu_eflags(v) & EFL_SAVED);
    v->intr_wait &= EVENT_INTR | EVENT_NMI;
    if (v->halted == HALTED_MWAIT) /* may end at any time; nothing is monitored here */
        v->halted = 0;
    v->tsc_offset = r->tsc - v->vm->stopped_tsc;
    memcpy(v->fpu, r->fpu, sizeof(r->fpu));
    v->eng->db_hit = r->db_hit;
    v->eng->step_armed = r->step_armed;
    v->eng->shadow_step = r->shadow_step;
    vitro_vm_set_a20((struct vitro_vm *)v->vm, !r->a20_off);
    engine_a20(v);
    tlb_flush_all(v, true);
    tlb_switch(v, false);
    engine_drop_returns(v);
    vcpu_mode_changed(v);
    vitro_vcpu_kick(c, VITRO_KICK_INTR | r->events);
    ret = 0;
    goto out;
reset:
    vcpu_reset(v);
out:
    free(r);
    return ret;
}

/* -- The CPU model ----------------------------------------------------------------------------------------- */

struct saved_model {
    u64 tsc_khz;
    u32 nr_rows, zero;
    struct cpuid_row row[];
};
_Static_assert(sizeof(struct cpuid_row) == 24 && sizeof(struct saved_model) == 16, "docs/snapshot-format.md");

void *vitro_vm_save_model(struct vitro_vm *pub, size_t *len)
{
    const struct cpu_model *m = ((struct vm *)pub)->model;
    size_t size = sizeof(struct saved_model) + m->nr_rows * sizeof(m->row[0]);
    struct saved_model *s = calloc(1, size);

    if (!s)
        return NULL;
    s->tsc_khz = m->tsc_khz;
    s->nr_rows = m->nr_rows;
    memcpy(s->row, m->row, m->nr_rows * sizeof(m->row[0]));
    *len = size;
    return s;
}

static const struct cpuid_row *find_row(const struct cpuid_row *row, unsigned nr, u32 leaf, u32 subleaf)
{
    for (unsigned i = 0; i < nr; i++)
        if (row[i].leaf == leaf && row[i].subleaf == subleaf)
            return &row[i];
    return NULL;
}

/* Bits that say what the CPU can do; others say how many there are of something, and may differ. */
static const struct { u32 leaf, subleaf; u8 reg; } feature_words[] = {
    { 1, 0, 2 }, { 1, 0, 3 }, { 6, 0, 0 }, { 7, 0, 1 }, { 7, 0, 2 }, { 7, 0, 3 }, { 7, 1, 0 }, { 0xd, 1, 0 },
    { 0x80000001, 0, 2 }, { 0x80000001, 0, 3 }, { 0x80000008, 0, 1 },
};

int vitro_vm_check_model(struct vitro_vm *pub, const void *bytes, size_t len, char *err, size_t err_len)
{
    static const char *const regs[] = { "eax", "ebx", "ecx", "edx" };
    const struct cpu_model *m = ((struct vm *)pub)->model;
    struct saved_model head;
    const struct cpuid_row *was = (const struct cpuid_row *)((const u8 *)bytes + sizeof(head)), *a, *b;

    if (len < sizeof(head)) {
        snprintf(err, err_len, "the CPU's description ends too early");
        return -EINVAL;
    }
    memcpy(&head, bytes, sizeof(head));
    if (head.nr_rows > CPUID_MAX_ROWS || len != sizeof(head) + head.nr_rows * sizeof(*was)) {
        snprintf(err, err_len, "the CPU's description has another length");
        return -EINVAL;
    }
    a = find_row(was, head.nr_rows, 0, 0);
    b = find_row(m->row, m->nr_rows, 0, 0);
    if (!a || !b || memcmp(&a->r[1], &b->r[1], 12)) {
        snprintf(err, err_len, "it was saved on a CPU of another maker");
        return -EINVAL;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(feature_words); i++) {
        u32 leaf = feature_words[i].leaf, sub = feature_words[i].subleaf;
        unsigned reg = feature_words[i].reg;
        a = find_row(was, head.nr_rows, leaf, sub);
        b = find_row(m->row, m->nr_rows, leaf, sub);
        u32 lost = (a ? a->r[reg] : 0) & ~(b ? b->r[reg] : 0);
        if (lost) {
            snprintf(err, err_len, "the guest's CPU had features that this host lacks: CPUID %#x.%u, %s %#x", leaf,
                     sub, regs[reg], lost);
            return -EINVAL;
        }
    }
    for (u32 n = 2; n < 64; n++) { /* where components of the vector state lie */
        a = find_row(was, head.nr_rows, 0xd, n);
        b = find_row(m->row, m->nr_rows, 0xd, n);
        if (a && (!b || memcmp(a->r, b->r, sizeof(a->r)))) {
            snprintf(err, err_len, "the guest's CPU lays its vector state out in another way");
            return -EINVAL;
        }
    }
    u64 apart = head.tsc_khz > m->tsc_khz ? head.tsc_khz - m->tsc_khz : m->tsc_khz - head.tsc_khz;
    if (apart > m->tsc_khz / 2000) { /* 500 ppm: what a guest's timekeeping can steer */
        snprintf(err, err_len, "the guest's TSC ran at %llu kHz, this host's at %llu", (unsigned long long)head.tsc_khz,
                 (unsigned long long)m->tsc_khz);
        return -EINVAL;
    }
    return 0;
}
