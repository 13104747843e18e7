/*
 * native.c - contract 2, Vitro's own ABI: what needs ordinary C. See native_fast.c for the rest.
 */
#include "paravirt/inner.h"

#define NATIVE_VERSION 1u

void native_leaves(struct paravirt *pv, u32 base)
{
    pv_signature(pv, base, base + 1, "VitroVMM");
    pv_leaf(pv, base + 1)[0] = NATIVE_VERSION;
}

void native_reset(struct paravirt *pv, unsigned cpu)
{
    (void)pv, (void)cpu;
}

enum vitro_hc native_hypercall(struct paravirt *pv, const struct vitro_hypercall *call, u32 nr)
{
    (void)pv, (void)nr;
    call->gpr[0] = (u64)-38; /* no such call */
    return VITRO_HC_DONE;
}

int native_msr_read(struct paravirt *pv, unsigned cpu, u32 msr, u64 *value)
{
    (void)pv, (void)cpu, (void)msr, (void)value;
    return -1;
}

int native_msr_write(struct paravirt *pv, unsigned cpu, u32 msr, u64 value)
{
    (void)pv, (void)cpu, (void)msr, (void)value;
    return -1;
}
