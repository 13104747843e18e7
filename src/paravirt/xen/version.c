/*
 * version.c - what the guest is told of hypervisor and CPU.
 * Source: Xen's public version.h, features.h, arch-x86/cpuid.h.
 */
#include "paravirt/xen/inner.h"
#include <string.h>

#define VERSION_MAJOR 4
#define VERSION_MINOR 17

static s64 text(struct vitro_vcpu *v, u64 to, const char *s, size_t size)
{
    char buf[1024] = "";

    memcpy(buf, s, strlen(s));
    return vitro_vcpu_copy_out(v, to, buf, size) ? -XEN_EFAULT : 0;
}

s64 xen_xen_version(struct xen *x, struct xen_call *c)
{
    struct vitro_vcpu *v = c->cpu->vcpu;
    struct { u32 index, map; } features;
    const u64 virt_start = XEN_VIRT_START;

    (void)x;
    switch ((u32)c->a[0]) {
    case XENVER_version: return VERSION_MAJOR << 16 | VERSION_MINOR;
    case XENVER_extraversion: return text(v, c->a[1], "-vitro", 16);
    case XENVER_compile_info: return text(v, c->a[1], "", 64 + 16 + 32 + 32);
    case XENVER_capabilities: return text(v, c->a[1], "xen-3.0-x86_64 ", 1024);
    case XENVER_changeset: return text(v, c->a[1], "", 64);
    case XENVER_platform_parameters:
        return vitro_vcpu_copy_out(v, c->a[1], &virt_start, sizeof(virt_start)) ? -XEN_EFAULT : 0;
    case XENVER_get_features:
        if (vitro_vcpu_copy_in(v, c->a[1], &features, sizeof(features)))
            return -XEN_EFAULT;
        if (features.index > 1)
            return -XEN_EINVAL;
        features.map = features.index ? 0 : 1u << XEN_FEAT_mmu_pt_update_preserve_ad | 1u << XEN_FEAT_gnttab_map_avail_bits;
        return vitro_vcpu_copy_out(v, c->a[1], &features, sizeof(features)) ? -XEN_EFAULT : 0;
    case XENVER_pagesize: return PAGE_SIZE;
    case XENVER_guest_handle: return text(v, c->a[1], "", 16);
    }
    return -XEN_ENOSYS;
}

/* -- CPUID ----------------------------------------------------------------------------------------------- */

/* What a kernel outside ring 0 cannot have: it would need the real control register, or hardware of its own. */
static const struct { u32 leaf, subleaf; u8 reg; u32 bits; } hidden[] = {
    { 1, 0, 2, BIT(3) | BIT(5) | BIT(17) | BIT(21) | BIT(24) },             /* MONITOR VMX PCID X2APIC TSC_DEADLINE */
    { 1, 0, 3, BIT(1) | BIT(3) | BIT(7) | BIT(9) | BIT(12) | BIT(13) | BIT(14) | BIT(17) }, /* VME PSE MCE APIC MTRR PGE MCA PSE36 */
    { 7, 0, 1, BIT(7) | BIT(10) | BIT(20) },                                /* SMEP INVPCID SMAP */
    { 7, 0, 2, BIT(2) | BIT(3) | BIT(4) },                                  /* UMIP PKU OSPKE */
    { 0xd, 1, 0, BIT(3) },                                                  /* XSAVES */
    { 0x80000001, 0, 2, BIT(2) },                                           /* SVM */
    { 0x80000001, 0, 3, BIT(1) | BIT(3) | BIT(7) | BIT(9) | BIT(12) | BIT(13) | BIT(14) | BIT(17) | BIT(26) }, /* AMD's copies; 1 GiB pages */
};

void xen_cpuid(struct xen_cpu *c, u32 leaf, u32 subleaf, u32 r[4])
{
    struct xen *x = c->xen;

    if (leaf >> 16 == 0x4000) {
        memset(r, 0, 16);
        switch (leaf & 0xffff) {
        case 0:
            r[0] = 0x40000005;
            memcpy(&r[1], "XenVMMXenVMM", 12);
            break;
        case 1: r[0] = VERSION_MAJOR << 16 | VERSION_MINOR; break;
        case 2: r[0] = 1; r[1] = 0x40000000; break; /* hypercall pages, and their MSR: PV guests have no use for it */
        case 3:
            if (!subleaf) {
                r[0] = 1; /* the TSC counts at one rate */
                r[2] = (u32)x->c.tsc_khz;
            }
            break;
        case 5: r[1] = 46; break; /* width of machine addresses */
        }
        return;
    }
    vitro_vcpu_cpuid(c->vcpu, leaf, subleaf, r);
    for (unsigned i = 0; i < ARRAY_SIZE(hidden); i++)
        if (hidden[i].leaf == leaf && hidden[i].subleaf == subleaf)
            r[hidden[i].reg] &= ~hidden[i].bits;
    if (leaf == 1)
        r[2] |= BIT(31) | (r[2] & BIT(26)) << 1; /* a hypervisor is there, and it has XSAVE on: the kernel may have it then */
}
