/*
 * dispatch_fast.c - the first look at a hypercall, and at interrupts, while the guest's vector registers are live. The Makefile compiles
 * *_fast.c of this folder without vector instructions; they call nothing that is compiled otherwise.
 */
#include "paravirt/inner.h"
#include "paravirt/native.h"

enum vitro_hc pv_hypercall_fast(void *opaque, const struct vitro_hypercall *call)
{
    struct paravirt *pv = opaque;
    u32 nr = (u32)call->gpr[0] - PV_NATIVE_CALLS;
    if (nr < 0x10000 && pv_has(pv, PV_VITRO))
        return native_hypercall_fast(pv, call, nr);
    return VITRO_HC_SLOW;
}

int pv_intr_ack(void *opaque, unsigned vcpu)
{
    struct paravirt *pv = opaque;
    return pv->native ? native_upcall(pv->native, vcpu) : -1;
}
