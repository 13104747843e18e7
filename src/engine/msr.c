/*
 * msr.c - model-specific registers: one table of what there is, how it reads and what a write may hold.
 * Sources: Intel SDM vol. 4; AMD APM vol. 2 appendix A and the family's PPR. A number without a row raises #GP(0) and
 * is counted (nr_msr_unknown): kernels probe with a fault handler in place.
 *
 * Not modelled: MTRRs and PAT are stored, and the memory type they ask for has no effect; machine-check banks
 * (MCG_CAP says zero); every performance counter; last-branch records and DEBUGCTL.BTF (accepted, without effect).
 */
#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/help.h"

#define DE_CFG_LFENCE_SERIALIZE BIT(1)
#define HWCR_TSC_FREQ_SEL BIT(24) /* the TSC counts at P0 frequency; Linux warns without it */
#define ARCH_CAPS /* see "Side channels" in cpuid.c */ \
    (BITULL(0) /* RDCL_NO */ | BITULL(1) /* IBRS_ALL */ | BITULL(3) /* SKIP_L1DFL */ | BITULL(5) /* MDS_NO */ | \
     BITULL(6) /* PSCHANGE_MC_NO */ | BITULL(8) /* TAA_NO */ | BITULL(13) /* SBDR_SSDP_NO */ | \
     BITULL(14) /* FBSDP_NO */ | BITULL(15) /* PSDP_NO */ | BITULL(20) /* BHI_NO */ | BITULL(24) /* PBRSB_NO */ | \
     BITULL(26) /* GDS_NO */ | BITULL(27) /* RFDS_NO */ | BITULL(62) /* ITS_NO */)

struct msr_row {
    u32 first, last;
    const char *name;
    enum xret (*read)(struct vcpu *v, const struct msr_row *row, u32 msr, u64 *val);
    enum xret (*write)(struct vcpu *v, const struct msr_row *row, u32 msr, u64 val);
    u64 arg; /* offset in struct vcpu, or the constant */
};
#define RD(name) static enum xret name(struct vcpu *v, const struct msr_row *row, u32 msr, u64 *val)
#define WR(name) static enum xret name(struct vcpu *v, const struct msr_row *row, u32 msr, u64 val)

static u64 *field(struct vcpu *v, const struct msr_row *row, u32 msr)
{
    return (u64 *)((u8 *)v + row->arg) + (msr - row->first);
}

static enum xret unknown(struct vcpu *v)
{
    v->nr_msr_unknown++;
    return raise_gp0(v);
}

/* -- Plain ones ------------------------------------------------------------------------------------- */

RD(rd_field)
{
    *val = *field(v, row, msr);
    return X_OK;
}
RD(rd_const)
{
    (void)v, (void)msr;
    *val = row->arg;
    return X_OK;
}
WR(wr_field)
{
    *field(v, row, msr) = val;
    return X_OK;
}
WR(wr_field32)
{
    *field(v, row, msr) = (u32)val;
    return X_OK;
}
WR(wr_canonical)
{
    if (!is_canonical(val))
        return raise_gp0(v);
    *field(v, row, msr) = val;
    return X_OK;
}
WR(wr_ignore)
{
    (void)v, (void)row, (void)msr, (void)val;
    return X_OK;
}
WR(wr_gp)
{
    (void)row, (void)msr, (void)val;
    return raise_gp0(v);
}
WR(wr_zero)
{
    (void)row, (void)msr;
    return val ? raise_gp0(v) : X_OK;
}

/* -- Owned by the embedder: local APIC -------------------------------------------------------------- */

RD(rd_host)
{
    (void)row;
    if (!v->host->msr_read)
        return unknown(v);
    fpu_leave(v);
    int err = v->host->msr_read(v->host->opaque, v->index, msr, val);
    fpu_enter(v);
    return err < 0 ? raise_gp0(v) : X_OK;
}
WR(wr_host)
{
    (void)row;
    if (!v->host->msr_write)
        return unknown(v);
    fpu_leave(v);
    int err = v->host->msr_write(v->host->opaque, v->index, msr, val);
    fpu_enter(v);
    return err < 0 ? raise_gp0(v) : X_OK;
}

/* -- Paravirtual ones, the embedder's too ------------------------------------------------------------ */

RD(rd_pv)
{
    (void)row;
    if (!v->vm || !v->vm->pv.msr_read)
        return unknown(v);
    fpu_leave(v);
    int err = v->vm->pv.msr_read(v->vm->pv.opaque, v->index, msr, val);
    fpu_enter(v);
    return err < 0 ? unknown(v) : X_OK;
}
WR(wr_pv)
{
    (void)row;
    if (!v->vm || !v->vm->pv.msr_write)
        return unknown(v);
    fpu_leave(v);
    int err = v->vm->pv.msr_write(v->vm->pv.opaque, v->index, msr, val);
    fpu_enter(v);
    return err < 0 ? unknown(v) : X_OK;
}

/* -- Segment bases and EFER ------------------------------------------------------------------------- */

RD(rd_seg_base)
{
    (void)row;
    *val = v->seg[msr == MSR_FS_BASE ? SEG_FS : SEG_GS].base;
    return X_OK;
}
WR(wr_seg_base)
{
    (void)row;
    if (!is_canonical(val))
        return raise_gp0(v);
    v->seg[msr == MSR_FS_BASE ? SEG_FS : SEG_GS].base = val;
    vcpu_mode_changed(v);
    return X_OK;
}

/* SDM vol. 3 §4.1, §9.8.5: LMA is read-only, LME fixed while paging is on. */
WR(wr_efer)
{
    (void)row, (void)msr;
    if (val & ~v->model->efer_mask)
        return raise_gp0(v);
    u64 old = v->efer;
    if (((old ^ val) & EFER_LME) && (v->cr0 & CR0_PG))
        return raise_gp0(v);
    v->efer = (val & ~(u64)EFER_LMA) | (old & EFER_LMA);
    if ((old ^ v->efer) & EFER_NXE)
        tlb_flush_all(v, true);
    vcpu_mode_changed(v);
    return X_OK;
}

/* -- Time ---------------------------------------------------------------------------------------------- */

static void tsc_moved(struct vcpu *v)
{
    if (!v->vm || !v->vm->pv.tsc_moved)
        return;
    fpu_leave(v);
    v->vm->pv.tsc_moved(v->vm->pv.opaque, v->index);
    fpu_enter(v);
}

RD(rd_tsc)
{
    (void)row, (void)msr;
    *val = vcpu_tsc(v);
    return X_OK;
}
/* SDM vol. 3 §17.17.3: a write to either register moves the other by the same amount. */
WR(wr_tsc)
{
    (void)row, (void)msr;
    u64 delta = val - vcpu_tsc(v);
    v->tsc_offset += delta;
    v->tsc_adjust += delta;
    tsc_moved(v);
    return X_OK;
}
WR(wr_tsc_adjust)
{
    (void)row, (void)msr;
    v->tsc_offset += val - v->tsc_adjust;
    v->tsc_adjust = val;
    tsc_moved(v);
    return X_OK;
}

/* -- Memory types ---------------------------------------------------------------------------------- */

static bool memory_type_ok(u64 type, bool pat)
{
    return type == 0 || type == 1 || type == 4 || type == 5 || type == 6 || (pat && type == 7);
}
WR(wr_pat)
{
    for (unsigned i = 0; i < 64; i += 8)
        if (!memory_type_ok(val >> i & 0xff, true))
            return raise_gp0(v);
    return wr_field(v, row, msr, val);
}
WR(wr_mtrr_def)
{
    if ((val & ~0xcffull) || !memory_type_ok(val & 0xff, false))
        return raise_gp0(v);
    return wr_field(v, row, msr, val);
}
WR(wr_mtrr_var)
{
    u64 high = ~0ull << CPU_PHYS_BITS;
    if (msr & 1 ? val & (high | 0x7ff) : (val & (high | 0xf00)) || !memory_type_ok(val & 0xff, false))
        return raise_gp0(v);
    return wr_field(v, row, msr, val);
}
/* Fixed ranges: 0x250, 0x258, 0x259, 0x268-0x26f are entries 0, 1, 2, 3-10. */
static unsigned mtrr_fixed_index(u32 msr)
{
    return msr == 0x250 ? 0 : msr < 0x268 ? msr - 0x257 : msr - 0x265;
}
RD(rd_mtrr_fixed)
{
    (void)row;
    *val = v->mtrr_fixed[mtrr_fixed_index(msr)];
    return X_OK;
}
WR(wr_mtrr_fixed)
{
    (void)row;
    for (unsigned i = 0; i < 64; i += 8)
        if (!memory_type_ok(val >> i & 0xff, false))
            return raise_gp0(v);
    v->mtrr_fixed[mtrr_fixed_index(msr)] = val;
    return X_OK;
}

/* -- The rest ------------------------------------------------------------------------------------------ */

RD(rd_arch_caps)
{
    return v->model->arch_caps ? rd_const(v, row, msr, val) : unknown(v);
}
/* With IBRS_ALL reported, kernels set IBRS once and leave it. */
RD(rd_spec_ctrl)
{
    return v->model->arch_caps ? rd_field(v, row, msr, val) : unknown(v);
}
WR(wr_spec_ctrl)
{
    if (!v->model->arch_caps)
        return unknown(v);
    return val & ~1ull ? raise_gp0(v) : wr_field(v, row, msr, val);
}
RD(rd_xss)
{
    return cpu_model_has(v->model, 0xd, 1, 0, 3) ? rd_field(v, row, msr, val) : unknown(v);
}
WR(wr_xss)
{
    (void)row, (void)msr;
    if (!cpu_model_has(v->model, 0xd, 1, 0, 3))
        return unknown(v);
    return val ? raise_gp0(v) : X_OK;
}
RD(rd_de_cfg)
{
    (void)row, (void)msr;
    *val = v->de_cfg | DE_CFG_LFENCE_SERIALIZE;
    return X_OK;
}
RD(rd_hwcr)
{
    (void)row, (void)msr;
    *val = v->hwcr | HWCR_TSC_FREQ_SEL;
    return X_OK;
}
RD(rd_patch_level)
{
    (void)row, (void)msr;
    *val = v->model->vendor == CPU_VENDOR_INTEL ? 0x100000000ull : 0x01000065;
    return X_OK;
}

#define F(member) offsetof(struct vcpu, member)
#define ONE(n) (n), (n)
/* Sorted by number. clang-format off */
static const struct msr_row table[] = {
    { ONE(0x00000010),              "TSC",            rd_tsc,         wr_tsc,        0 },
    {   0x00000011, 0x00000012,     "KVM_OLD",        rd_pv,          wr_pv,         0 },
    { ONE(0x00000017),              "PLATFORM_ID",    rd_const,       wr_gp,         0 },
    { ONE(0x0000001b),              "APIC_BASE",      rd_host,        wr_host,       0 },
    { ONE(0x0000003a),              "FEATURE_CONTROL", rd_const,      wr_gp,         1 /* locked, nothing on */ },
    { ONE(0x0000003b),              "TSC_ADJUST",     rd_field,       wr_tsc_adjust, F(tsc_adjust) },
    { ONE(0x00000048),              "SPEC_CTRL",      rd_spec_ctrl,   wr_spec_ctrl,  F(spec_ctrl) },
    { ONE(0x00000079),              "UCODE_TRIGGER",  NULL,           wr_ignore,     0 },
    { ONE(0x0000008b),              "PATCH_LEVEL",    rd_patch_level, wr_ignore,     0 },
    { ONE(0x000000ce),              "PLATFORM_INFO",  rd_const,       wr_gp,         0 },
    { ONE(0x000000fe),              "MTRRCAP",        rd_const,       wr_gp,         0x508 /* WC, fixed, 8 variable */ },
    { ONE(0x0000010a),              "ARCH_CAPABILITIES", rd_arch_caps, wr_gp,        ARCH_CAPS },
    { ONE(0x00000140),              "MISC_FEATURES",  rd_const,       wr_zero,       0 },
    { ONE(0x00000174),              "SYSENTER_CS",    rd_field,       wr_field32,    F(sysenter_cs) },
    { ONE(0x00000175),              "SYSENTER_ESP",   rd_field,       wr_canonical,  F(sysenter_esp) },
    { ONE(0x00000176),              "SYSENTER_EIP",   rd_field,       wr_canonical,  F(sysenter_eip) },
    { ONE(0x00000179),              "MCG_CAP",        rd_const,       wr_gp,         0 },
    { ONE(0x0000017a),              "MCG_STATUS",     rd_field,       wr_field,      F(mcg_status) },
    { ONE(0x000001a0),              "MISC_ENABLE",    rd_field,       wr_field,      F(misc_enable) },
    { ONE(0x000001d9),              "DEBUGCTL",       rd_const,       wr_ignore,     0 },
    {   0x000001db, 0x000001de,     "LAST_BRANCH",    rd_const,       wr_gp,         0 },
    {   0x00000200, 0x0000020f,     "MTRR_VAR",       rd_field,       wr_mtrr_var,   F(mtrr_var) },
    { ONE(0x00000250),              "MTRR_FIX64K",    rd_mtrr_fixed,  wr_mtrr_fixed, 0 },
    {   0x00000258, 0x00000259,     "MTRR_FIX16K",    rd_mtrr_fixed,  wr_mtrr_fixed, 0 },
    {   0x00000268, 0x0000026f,     "MTRR_FIX4K",     rd_mtrr_fixed,  wr_mtrr_fixed, 0 },
    { ONE(0x00000277),              "PAT",            rd_field,       wr_pat,        F(pat) },
    { ONE(0x000002ff),              "MTRR_DEF_TYPE",  rd_field,       wr_mtrr_def,   F(mtrr_def_type) },
    { ONE(0x000006e0),              "TSC_DEADLINE",   rd_host,        wr_host,       0 },
    {   0x00000800, 0x000008ff,     "X2APIC",         rd_host,        wr_host,       0 },
    { ONE(0x00000da0),              "XSS",            rd_xss,         wr_xss,        F(xss) },
    {   0x4b564d00, 0x4b564dff,     "KVM",            rd_pv,          wr_pv,         0 },
    {   0x56495400, 0x564954ff,     "VITRO",          rd_pv,          wr_pv,         0 },
    { ONE(0xc0000080),              "EFER",           rd_field,       wr_efer,       F(efer) },
    { ONE(0xc0000081),              "STAR",           rd_field,       wr_field,      F(star) },
    { ONE(0xc0000082),              "LSTAR",          rd_field,       wr_canonical,  F(lstar) },
    { ONE(0xc0000083),              "CSTAR",          rd_field,       wr_canonical,  F(cstar) },
    { ONE(0xc0000084),              "SFMASK",         rd_field,       wr_field32,    F(sfmask) },
    {   0xc0000100, 0xc0000101,     "FS_GS_BASE",     rd_seg_base,    wr_seg_base,   0 },
    { ONE(0xc0000102),              "KERNEL_GS_BASE", rd_field,       wr_canonical,  F(kernel_gs_base) },
    { ONE(0xc0000103),              "TSC_AUX",        rd_field,       wr_field32,    F(tsc_aux) },
    { ONE(0xc0010010),              "SYSCFG",         rd_const,       wr_ignore,     0 },
    { ONE(0xc0010015),              "HWCR",           rd_hwcr,        wr_field,      F(hwcr) },
    {   0xc0010016, 0xc0010019,     "IORR",           rd_const,       wr_ignore,     0 },
    { ONE(0xc001001a),              "TOP_MEM",        rd_const,       wr_ignore,     0 },
    { ONE(0xc001001d),              "TOP_MEM2",       rd_const,       wr_ignore,     0 },
    { ONE(0xc001001f),              "NB_CFG",         rd_const,       wr_ignore,     0 },
    { ONE(0xc0010020),              "PATCH_LOADER",   NULL,           wr_ignore,     0 },
    { ONE(0xc0010055),              "INT_PENDING",    rd_const,       wr_ignore,     0 },
    { ONE(0xc0010058),              "MMIO_CONF_BASE", rd_const,       wr_ignore,     0 },
    {   0xc0010061, 0xc0010068,     "PSTATE",         rd_const,       wr_ignore,     0 },
    {   0xc0010111, 0xc0010113,     "SMM",            rd_const,       wr_ignore,     0 },
    { ONE(0xc0010114),              "VM_CR",          rd_const,       wr_ignore,     0x10 /* SVMDIS */ },
    { ONE(0xc0010117),              "VM_HSAVE_PA",    rd_const,       wr_gp,         0 },
    { ONE(0xc0010131),              "SEV_STATUS",     rd_const,       wr_gp,         0 },
    {   0xc0010140, 0xc0010141,     "OSVW",           rd_const,       wr_ignore,     0 },
    {   0xc0011020, 0xc0011023,     "LS_IC_DC_CFG",   rd_const,       wr_ignore,     0 },
    { ONE(0xc0011029),              "DE_CFG",         rd_de_cfg,      wr_field,      F(de_cfg) },
    {   0xc001102a, 0xc001102d,     "CU_CFG",         rd_const,       wr_ignore,     0 },
};
/* clang-format on */

static const struct msr_row *find(u32 msr)
{
    unsigned lo = 0, hi = ARRAY_SIZE(table);
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (msr > table[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < ARRAY_SIZE(table) && msr >= table[lo].first ? &table[lo] : NULL;
}

enum xret msr_read(struct vcpu *v, u32 msr, u64 *val)
{
    const struct msr_row *row = find(msr);
    if (!row || !row->read)
        return unknown(v);
    return row->read(v, row, msr, val);
}

enum xret msr_write(struct vcpu *v, u32 msr, u64 val)
{
    const struct msr_row *row = find(msr);
    if (!row)
        return unknown(v);
    return row->write(v, row, msr, val);
}

const char *msr_name(u32 msr)
{
    const struct msr_row *row = find(msr);
    return row ? row->name : NULL;
}

void msr_reset(struct vcpu *v)
{
    v->pat = 0x0007040600070406ull;
    v->misc_enable = 0x1801; /* fast strings; no branch trace, no PEBS */
    if (cpu_model_has(v->model, 1, 0, 2, 3))
        v->misc_enable |= MISC_ENABLE_MWAIT;
    v->mtrr_def_type = 0;
    v->spec_ctrl = v->hwcr = v->de_cfg = v->mcg_status = v->xss = 0;
    v->star = v->lstar = v->cstar = v->sfmask = v->kernel_gs_base = v->tsc_aux = 0;
    v->sysenter_cs = v->sysenter_esp = v->sysenter_eip = 0;
    v->tsc_adjust = 0;
    v->tsc_offset = 0 - v->model->tsc_base;
    for (unsigned i = 0; i < ARRAY_SIZE(v->mtrr_fixed); i++)
        *(volatile u64 *)&v->mtrr_fixed[i] = 0; /* volatile: no call to memset */
    for (unsigned i = 0; i < ARRAY_SIZE(v->mtrr_var); i++)
        *(volatile u64 *)&v->mtrr_var[i] = 0;
}
