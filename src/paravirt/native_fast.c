/*
 * native_fast.c - contract 2, Vitro's own ABI: calls so short that saving the vector registers would be most of them.
 */
#include "paravirt/inner.h"
#include "paravirt/native_inner.h"
#include "x86/x86.h"

enum vitro_hc native_hypercall_fast(struct paravirt *pv, const struct vitro_hypercall *call, u32 nr)
{
    struct native *n = pv->native;
    u64 space = call->gpr[7];

    if (call->cpl || !call->code64)
        return VITRO_HC_SLOW;
    switch (nr) {
    case VT_NOP:
        call->gpr[0] = 0;
        return VITRO_HC_DONE;
    case VT_BALLOON_SIZE:
        call->gpr[0] = __atomic_load_n(&n->nr_balloon, __ATOMIC_RELAXED);
        return VITRO_HC_DONE;
    case VT_SPACE_ROOT:
        if (!space || space > VT_SPACES_MAX || !n->space[space].used)
            return VITRO_HC_SLOW;
        call->gpr[0] = n->space[space].root;
        return VITRO_HC_DONE;
    case VT_SPACE_SWITCH: {
        struct vitro_vcpu *vcpu = pv->cpu[call->vcpu].vcpu;
        struct vitro_paging p;
        vitro_vcpu_get_paging(vcpu, &p);
        if (!space || space > VT_SPACES_MAX || !n->space[space].used || !(p.cr0 & CR0_PG) || !(p.efer & EFER_LMA))
            return VITRO_HC_SLOW;
        vitro_vcpu_load_cr3(vcpu, p.cr4 & CR4_PCIDE ? n->space[space].root | space | BITULL(63) : n->space[space].root);
        call->gpr[0] = 0;
        return VITRO_HC_DONE;
    }
    case VT_VCPU_COUNT:
        call->gpr[0] = n->c.nr_cpus;
        return VITRO_HC_DONE;
    default:
        return VITRO_HC_SLOW;
    }
}
