/*
 * hyper.c - what hypercalls ask of the engine on the guest's behalf: another address space, forgotten translations,
 * translations ahead of their use. Threads: that of the vCPU, from a callback of struct vitro_pv.
 */
#include "libvitro.h"

#include <errno.h>

#include "engine/engine.h"
#include "engine/help.h"
#include "engine/mmu.h"
#include "engine/smp.h"

static struct vcpu *V(const struct vitro_vcpu *c)
{
    return (struct vcpu *)c;
}

void vitro_vcpu_get_paging(const struct vitro_vcpu *c, struct vitro_paging *p)
{
    const struct vcpu *v = V(c);
    *p = (struct vitro_paging){ .cr0 = v->cr0, .cr3 = v->cr3, .cr4 = v->cr4, .efer = v->efer };
}

int vitro_vcpu_load_cr3(struct vitro_vcpu *c, uint64_t cr3)
{
    struct vcpu *v = V(c);
    struct exc was = v->exc;
    if (help_cr_write(v, 3, cr3) != X_OK) {
        v->exc = was;
        return -EINVAL;
    }
    v->eng->smc_hit = true; /* the next instruction may be on another page: leave the block that called */
    return 0;
}

/* Flushing page by page costs a few lookups each; from this many on, all of the address space is cheaper. */
#define FLUSH_EACH 64

void vitro_vcpu_flush_pages(struct vitro_vcpu *c, unsigned pcid, uint64_t va, uint64_t pages, bool global)
{
    struct vcpu *v = V(c);
    u16 now = v->cr4 & CR4_PCIDE ? v->cr3 & 0xfff : 0;
    if (pages > FLUSH_EACH) {
        if (global)
            tlb_flush_all(v, true);
        else
            tlb_flush_pcid(v, (u16)pcid);
        return;
    }
    for (u64 i = 0; i < pages; i++)
        if (global || pcid == now)
            tlb_flush_page(v, va + (i << PAGE_SHIFT));
    for (u64 i = 0; i < pages && pcid != now; i++)
        tlb_flush_page_pcid(v, va + (i << PAGE_SHIFT), (u16)pcid);
}

void vitro_vcpu_flush_others(struct vitro_vcpu *c, const struct vitro_flush *list, unsigned nr)
{
    struct vcpu *v = V(c);
    if (smp_flush_others(v, ~0ull, list, nr))
        v->eng->smc_hit = true;
}

void vitro_vcpu_flush_mask(struct vitro_vcpu *c, uint64_t which, const struct vitro_flush *list, unsigned nr)
{
    if (smp_flush_others(V(c), which, list, nr))
        V(c)->eng->smc_hit = true;
}

void vitro_vcpu_wait_begin(struct vitro_vcpu *c)
{
    smp_offline(V(c));
    V(c)->eng->smc_hit = true;
}

void vitro_vcpu_wait_end(struct vitro_vcpu *c)
{
    if (V(c)->vm->smp)
        smp_back(V(c));
}

bool vitro_vcpu_shares_cpu(struct vitro_vcpu *c)
{
    return smp_shares_cpu(V(c));
}

void vitro_vcpu_yield(struct vitro_vcpu *c)
{
    smp_yield(V(c));
}

uint64_t vitro_vcpu_populate(struct vitro_vcpu *c, uint64_t va, uint64_t pages, unsigned flags)
{
    struct vcpu *v = V(c);
    unsigned acc = (flags & VITRO_POPULATE_WRITE ? ACC_W : ACC_R) | (flags & VITRO_POPULATE_USER ? ACC_USER : 0);
    u64 done = 0, max = flags & VITRO_POPULATE_USER ? 1u << TLB_U_BITS : 1u << TLB_K_BITS;
    struct exc was = v->exc;
    for (u64 i = 0; i < MIN(pages, max); i++) {
        struct tlb_ref ref;
        if (tlb_translate(v, va + (i << PAGE_SHIFT), acc, &ref) == X_OK)
            done++;
    }
    v->exc = was;
    return done;
}
