/*
 * mmu.h - the guest's own page tables: walk, rights, Accessed and Dirty. No caching: that is tlb.h.
 * Source: Intel SDM vol. 3 §4.
 */
#pragma once
#include "engine/vcpu.h"

/*
 * MAXPHYADDR, which CPUID 0x80000008 tells; table entries with a bit above it fault. The most RAM and what lies above it
 * (src/machine/layout.h) need this much. More costs time: UEFI makes page tables for all of it, which took it 4 s for 46 bits.
 */
#define MMU_PHYS_BITS 41

/* What a walk found: enough to fill a TLB entry. */
struct mmu_span {
    gpa_t gpa;      /* of the byte asked for                                                    */
    u64 page_size;  /* 4 KiB, 2 MiB, 4 MiB or 1 GiB; without paging 4 KiB                       */
    bool writable;  /* the same privilege may write, and Dirty is set: a write mapping may be cached */
    bool user;      /* U/S is user in every level                                               */
    bool global;    /* leaf G, and CR4.PGE                                                      */
    bool exec;      /* the same privilege may fetch (NX, SMEP)                                  */
};

/*
 * mmu_walk - translate a guest linear address through the guest's page tables.
 * @la:     canonical in long mode; truncated to 32 bits otherwise
 * @access: ACC_R, ACC_W, ACC_X or a combination, plus ACC_USER for CPL 3 or ACC_SYS for an implicit
 *          supervisor access (wins over ACC_USER)
 * @out:    written on X_OK only
 *
 * Sets Accessed in each level used, and Dirty for ACC_W, by compare-and-exchange: another vCPU may be
 * editing the same table, and an entry it has just made not-present must not gain an A bit.
 * X_FAULT: #PF in vcpu->exc, nothing else changed (CR2 is written at delivery).
 * Source: Intel SDM vol. 3 §4.3-4.5 (walks), §4.6 (rights), §4.7 (error code), §4.8 (A/D).
 */
enum xret mmu_walk(struct vcpu *v, gla_t la, unsigned access, struct mmu_span *out);

/* mmu_translate_debug - for debuggers and traces: no rights, no A/D, no fault. False: not mapped. */
bool mmu_translate_debug(struct vcpu *v, gla_t la, gpa_t *gpa);

/*
 * mmu_pdptes_valid - may CR3 be loaded with this value under PAE paging outside long mode? False: a
 * present PDPTE has a reserved bit set, and the load must raise #GP(0). Source: SDM vol. 3 §4.4.1.
 */
bool mmu_pdptes_valid(struct vcpu *v, u64 cr3);
