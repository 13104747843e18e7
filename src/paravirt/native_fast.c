/*
 * native_fast.c - contract 2, Vitro's own ABI: calls so short that saving the vector registers would be most of them.
 */
#include "paravirt/inner.h"

enum vitro_hc native_hypercall_fast(struct paravirt *pv, const struct vitro_hypercall *call, u32 nr)
{
    (void)pv;
    if (nr)
        return VITRO_HC_SLOW;
    call->gpr[0] = 0; /* call 0 does nothing */
    return VITRO_HC_DONE;
}
