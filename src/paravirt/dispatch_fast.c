/*
 * dispatch_fast.c - the first look at a hypercall, while the guest's vector registers are live. The Makefile compiles
 * *_fast.c of this folder without vector instructions; they call nothing that is compiled otherwise.
 */
#include "paravirt/inner.h"

enum vitro_hc pv_hypercall_fast(void *opaque, const struct vitro_hypercall *call)
{
    struct paravirt *pv = opaque;
    u32 nr = (u32)call->gpr[0] - PV_NATIVE_CALLS;
    if (nr < 0x10000 && pv_has(pv, PV_VITRO))
        return native_hypercall_fast(pv, call, nr);
    return VITRO_HC_SLOW;
}
