/* memory.c - page tables, descriptor tables, reservations: each call, each error, and that an error changes nothing. */
#include "guest.h"

#define WINDOW 0x20000000ull

static uint64_t table1[512] __attribute__((aligned(4096))), table2[512] __attribute__((aligned(4096))), gdt[512] __attribute__((aligned(4096)));

static long update(uint64_t ptr, uint64_t val)
{
    struct xen_mmu_update u = { ptr, val };
    return xen_call4(XEN_mmu_update, put(u), 1, 0, XEN_DOMID_SELF);
}
static long ext(uint32_t cmd, uint64_t a, uint64_t b)
{
    struct xen_mmuext_op op = { cmd, 0, a, b };
    return xen_call4(XEN_mmuext_op, put(op), 1, 0, XEN_DOMID_SELF);
}

static void test_updates(void)
{
    const uint64_t entry = machine_of(entry_of((uint64_t)page_a, 1)), was = *entry_of((uint64_t)page_a, 1);

    that(!update(entry, RO(page_a)) && !try_store(page_a, 1));
    that(!update(entry | XEN_MMU_PT_UPDATE_PRESERVE_AD, RO(page_a) & ~PTE_A) && (*entry_of((uint64_t)page_a, 1) & PTE_A));
    that(!map(page_a, RW(page_a)) && try_store(page_a, 1));
    that(update(entry | 3, 0) == -XEN_ENOSYS);
    that(update(entry | 4, 0) == -XEN_EINVAL);
    that(update(NO_FRAME * PAGE, 0) == -XEN_EINVAL);
    that(update(entry, NO_FRAME * PAGE | PTE_P) == -XEN_EINVAL);
    that(update(entry, (start->shared_info + 64 * PAGE) | PTE_P) == -XEN_EINVAL); /* the hypervisor's own tables */
    that(update(entry, machine_of((void *)start->pt_base) | PTE_P | PTE_W) == -XEN_EINVAL);
    that(((*entry_of((uint64_t)page_a, 1) ^ was) & ~(PTE_A | PTE_D)) == 0);
    that(!update(machine_of(page_b), 77) && page_b[0] == 77); /* a page that is no table */
    that(!update(machine_of(page_b) | XEN_MMU_MACHPHYS_UPDATE, 99) && ((uint64_t *)XEN_M2P_START)[frame_of(page_b)] == 99);
    that(!update(machine_of(page_b) | XEN_MMU_MACHPHYS_UPDATE, (uint64_t)page_b / PAGE));
    want(-XEN_EPERM, XEN_mmu_update, arg, 1, 0, 0);
    want(-XEN_E2BIG, XEN_mmu_update, arg, (1u << 20) + 1, 0, XEN_DOMID_SELF);
    /* A list stops at the first that is wrong, and says where. */
    struct xen_mmu_update list[3] = { { entry, RO(page_a) }, { NO_FRAME * PAGE, 0 }, { entry, RW(page_a) } };
    uint32_t done = 9;
    want(-XEN_EINVAL, XEN_mmu_update, list, 3, &done, XEN_DOMID_SELF);
    that(done == 1 && !(*entry_of((uint64_t)page_a, 1) & PTE_W));

    want(0, XEN_update_va_mapping, page_a, RW(page_a), XEN_UVMF_INVLPG | XEN_UVMF_ALL);
    want(0, XEN_update_va_mapping, page_a, RW(page_a), XEN_UVMF_TLB_FLUSH);
    arg[0] = 1;
    want(0, XEN_update_va_mapping, page_a, RW(page_a), XEN_UVMF_INVLPG | (uint64_t)arg);
    want(-XEN_EFAULT, XEN_update_va_mapping, page_a, RW(page_a), XEN_UVMF_INVLPG | NOWHERE);
    want(-XEN_EINVAL, XEN_update_va_mapping, NOWHERE, 0, 0);
    want(-XEN_EINVAL, XEN_update_va_mapping, XEN_M2P_START, 0, 0);
    want(-XEN_EINVAL, XEN_update_va_mapping, page_a, NO_FRAME * PAGE | PTE_P, 0);
    that(try_store(page_a, 2));
}

/* The store that the assist takes, in the forms it can have, and the page fault of one that may not be. */
static void test_stores(void)
{
    const uint64_t good = RW(page_a), bad = NO_FRAME * PAGE | PTE_P;
    volatile uint64_t *e = &table1[7];
    uint64_t count = seen.count;

    that(!map(table1, RO(table1)) && !update(machine_of(entry_of(WINDOW, 2)), RO(table1) | PTE_W));
    that(try_store(e, good) && *e == good);
    that(!try_store(e, bad) && *e == good && seen.vector == 14 && seen.error == 3);
    that(shared.vcpu_info[0].cr2 == (uint64_t)e);
    /* Registers and flags are as they were before the instruction. */
    that(trying("cmp %%eax, %%eax; xchg %%rax, (%%rdi); 77: pushfq; popq %%rcx", e, bad, 0) == 14);
    that(tried_rax == bad && (tried_rcx & 0x40) && *e == good);
    that(trying("lock cmpxchg %%rcx, (%%rdi)", e, 1, bad) == -1 && tried_rax == good && *e == good); /* what is there is stored again */
    that(trying("lock cmpxchg %%rcx, (%%rdi)", e, good, bad) == 14 && tried_rax == good && *e == good);
    that(trying("lock cmpxchg %%rcx, (%%rdi)", e, good, RO(page_a)) == -1 && *e == RO(page_a));
    that(trying("lock orq $2, (%%rdi)", e, 0, 0) == -1 && *e == (RO(page_a) | PTE_W));
    that(trying("movl %%eax, 4(%%rdi)", e, 0xffff, 0) == 14 && *e == (RO(page_a) | PTE_W));
    that(trying("rep stosq", e - 2, bad, 3) == 14 && tried_rcx == 3 && !table1[5]);
    that(trying("rep stosq", e - 2, 0, 3) == -1 && tried_rcx == 0 && !*e);
    that(!try_store((uint64_t *)start->pt_base, 0)); /* a level 4 table is not stored into */
    that(!try_store(entry_of(WINDOW, 2), 0) && seen.error == 3);
    that(seen.count > count);
    that(!update(machine_of(entry_of(WINDOW, 2)), 0) && !ext(XEN_MMUEXT_TLB_FLUSH_LOCAL, 0, 0));
    that(!map(table1, RW(table1)));
}

static void test_ext(void)
{
    const uint64_t base = frame_of((void *)start->pt_base), f1 = frame_of(table1), f2 = frame_of(table2);

    memset(table1, 0, PAGE);
    memset(table2, 0, PAGE);
    that(ext(XEN_MMUEXT_PIN_L1, f1, 0) == -XEN_EINVAL); /* it can be written */
    that(!map(table1, RO(table1)) && !map(table2, RO(table2)));
    that(!ext(XEN_MMUEXT_PIN_L1, f1, 0) && ext(XEN_MMUEXT_PIN_L1, f1, 0) == -XEN_EINVAL && ext(XEN_MMUEXT_PIN_L2, f1, 0) == -XEN_EINVAL);
    that(map(table1, RW(table1)) == -XEN_EINVAL && !try_store(table1 + 1, ~0ull));
    that(!ext(XEN_MMUEXT_UNPIN, f1, 0) && ext(XEN_MMUEXT_UNPIN, f1, 0) == -XEN_EINVAL && ext(XEN_MMUEXT_UNPIN, NO_FRAME, 0) == -XEN_EINVAL);
    for (uint32_t level = XEN_MMUEXT_PIN_L1; level <= XEN_MMUEXT_PIN_L4; level++)
        that(!ext(level, f2, 0) && !ext(XEN_MMUEXT_UNPIN, f2, 0) && ext(level, NO_FRAME, 0) == -XEN_EINVAL);
    that(ext(XEN_MMUEXT_NEW_BASEPTR, 0, 0) == -XEN_EINVAL && ext(XEN_MMUEXT_NEW_BASEPTR, NO_FRAME, 0) == -XEN_EINVAL);
    that(ext(XEN_MMUEXT_NEW_BASEPTR, frame_of(page_a), 0) == -XEN_EINVAL && !ext(XEN_MMUEXT_NEW_BASEPTR, base, 0));
    that(ext(XEN_MMUEXT_NEW_USER_BASEPTR, frame_of(page_a), 0) == -XEN_EINVAL && !ext(XEN_MMUEXT_NEW_USER_BASEPTR, base, 0) &&
         !ext(XEN_MMUEXT_NEW_USER_BASEPTR, 0, 0));
    arg[8] = 1;
    that(!ext(XEN_MMUEXT_TLB_FLUSH_LOCAL, 0, 0) && !ext(XEN_MMUEXT_INVLPG_LOCAL, (uint64_t)page_a, 0) && !ext(XEN_MMUEXT_TLB_FLUSH_ALL, 0, 0) &&
         !ext(XEN_MMUEXT_INVLPG_ALL, (uint64_t)page_a, 0) && !ext(XEN_MMUEXT_FLUSH_CACHE, 0, 0) && !ext(XEN_MMUEXT_FLUSH_CACHE_GLOBAL, 0, 0));
    that(!ext(XEN_MMUEXT_TLB_FLUSH_MULTI, 0, (uint64_t)(arg + 8)) && !ext(XEN_MMUEXT_INVLPG_MULTI, (uint64_t)page_a, (uint64_t)(arg + 8)));
    that(ext(XEN_MMUEXT_TLB_FLUSH_MULTI, 0, NOWHERE) == -XEN_EFAULT && ext(XEN_MMUEXT_INVLPG_MULTI, 0, NOWHERE) == -XEN_EFAULT);
    that(ext(XEN_MMUEXT_SET_LDT, (uint64_t)page_a, 8193) == -XEN_EINVAL && ext(XEN_MMUEXT_SET_LDT, (uint64_t)page_a + 8, 1) == -XEN_EINVAL &&
         !ext(XEN_MMUEXT_SET_LDT, (uint64_t)page_a, 1) && !ext(XEN_MMUEXT_SET_LDT, 0, 0));
    /* The number of entries is an unsigned int: Linux leaves above it what was there. */
    that(!ext(XEN_MMUEXT_SET_LDT, (uint64_t)page_a, 0xffff888000000001ull) && !ext(XEN_MMUEXT_SET_LDT, 8, 1ull << 32));
    page_a[5] = 55;
    that(!ext(XEN_MMUEXT_COPY_PAGE, frame_of(page_b), frame_of(page_a)) && page_b[5] == 55);
    that(!ext(XEN_MMUEXT_CLEAR_PAGE, frame_of(page_b), 0) && page_b[5] == 0);
    that(ext(XEN_MMUEXT_COPY_PAGE, frame_of(page_b), NO_FRAME) == -XEN_EINVAL && ext(XEN_MMUEXT_COPY_PAGE, base, frame_of(page_a)) == -XEN_EINVAL &&
         ext(XEN_MMUEXT_CLEAR_PAGE, base, 0) == -XEN_EINVAL && ext(XEN_MMUEXT_CLEAR_PAGE, NO_FRAME, 0) == -XEN_EINVAL);
    that(ext(99, 0, 0) == -XEN_ENOSYS);
    want(-XEN_EPERM, XEN_mmuext_op, arg, 1, 0, 0);
    want(-XEN_E2BIG, XEN_mmuext_op, arg, (1u << 20) + 1, 0, XEN_DOMID_SELF);
    that(!map(table1, RW(table1)) && !map(table2, RW(table2)));
}

static void test_descriptors(void)
{
    const uint64_t at = machine_of(gdt), code = 0x00af9b000000ffffull;
    uint64_t frame = frame_of(gdt);

    memset(gdt, 0, PAGE);
    that(!xen_call2(XEN_update_descriptor, at + 16, code) && gdt[2] == (code | 3ull << 45)); /* a page like any other; level 3 */
    want(-XEN_EINVAL, XEN_set_gdt, put(frame), 512);                                            /* it can be written */
    that(!map(gdt, RO(gdt)) && !xen_call2(XEN_set_gdt, put(frame), 512) && map(gdt, RW(gdt)) == -XEN_EINVAL);
    want(-XEN_EINVAL, XEN_set_gdt, arg, XEN_GDT_ENTRIES + 1);
    want(0, XEN_update_descriptor, at + 24, 0x00cf93000000ffffull);
    want(-XEN_EINVAL, XEN_update_descriptor, at + 32, 0x0000890000000067ull); /* a TSS */
    want(-XEN_EINVAL, XEN_update_descriptor, at + 32, 0x0000820000000067ull); /* an LDT */
    want(-XEN_EINVAL, XEN_update_descriptor, at + 32, 0x00008e0000080000ull); /* a gate */
    want(-XEN_EINVAL, XEN_update_descriptor, at + 32, 0x00ef9b000000ffffull); /* L and D */
    want(-XEN_EINVAL, XEN_update_descriptor, at + 4, code);
    want(-XEN_EINVAL, XEN_update_descriptor, NO_FRAME * PAGE, code);
    that(gdt[4] == 0);
    /* It is the GDT: selectors of it load, others do not. */
    that(trying("movw %%ax, %%ds", 0, 0x1b, 0) == -1);
    that(trying("movw %%ax, %%ds", 0, 0x23, 0) == 13);
    that(trying("movw %%ax, %%ds", 0, XEN_FLAT_DS, 0) == -1);
    want(0, XEN_set_gdt, arg, 0);
    that(!map(gdt, RW(gdt)));
}

static void test_reservations(void)
{
    struct xen_memory_reservation r = { (uint64_t)(arg + 64), 1, 0, 0, XEN_DOMID_SELF, { 0 } };
    struct xen_memory_map m = { 0, 0, (uint64_t)(arg + 64) };
    const uint64_t frame = frame_of(page_b);
    uint16_t self = XEN_DOMID_SELF, other = 5;
    long all = (long)start->nr_pages;

    that(xen_call2(XEN_memory_op, XENMEM_maximum_ram_page, 0) >= all);
    want(all, XEN_memory_op, XENMEM_current_reservation, put(self));
    want(all, XEN_memory_op, XENMEM_maximum_reservation, put(self));
    want(-XEN_EPERM, XEN_memory_op, XENMEM_current_reservation, put(other));
    want(-XEN_EINVAL, XEN_memory_op, XENMEM_memory_map, put(m));
    m.nr_entries = 5;
    want(0, XEN_memory_op, XENMEM_memory_map, put(m));
    that(GOT(struct xen_memory_map)->nr_entries == 1 && ((struct xen_e820_entry *)(arg + 64))->size == (uint64_t)all * PAGE);
    m.buffer = NOWHERE;
    want(-XEN_EFAULT, XEN_memory_op, XENMEM_memory_map, put(m));
    want(0, XEN_memory_op, XENMEM_machphys_mapping, arg);
    that(((uint64_t *)arg[0])[frame] == (uint64_t)page_b / PAGE);

    arg[64] = frame;
    want(0, XEN_memory_op, XENMEM_decrease_reservation, put(r)); /* it is mapped: 0 frames */
    that(!map(page_b, 0));
    want(1, XEN_memory_op, XENMEM_decrease_reservation, put(r));
    want(0, XEN_memory_op, XENMEM_decrease_reservation, put(r));
    want(all - 1, XEN_memory_op, XENMEM_current_reservation, put(self));
    that(map(page_b, RW(page_b)) == -XEN_EINVAL && map(page_b, RO(page_b)) == -XEN_EINVAL);
    that(trying("movq (%%rdi), %%rax", page_b, 0, 0) == 14);
    arg[64] = frame;
    want(1, XEN_memory_op, XENMEM_populate_physmap, put(r));
    that(arg[64] == frame);
    want(0, XEN_memory_op, XENMEM_populate_physmap, put(r));
    want(0, XEN_memory_op, XENMEM_increase_reservation, put(r));
    that(!map(page_b, RW(page_b)) && page_b[0] == 0);
    that(!update(frame * PAGE | XEN_MMU_MACHPHYS_UPDATE, (uint64_t)page_b / PAGE));
    r.extent_order = 9;
    want(0, XEN_memory_op, XENMEM_decrease_reservation, put(r));
    r.extent_order = 0;
    r.domid = 5;
    for (unsigned op = XENMEM_increase_reservation; op <= XENMEM_populate_physmap; op++)
        if (op < XENMEM_maximum_ram_page || op == XENMEM_populate_physmap)
            want(-XEN_EPERM, XEN_memory_op, op, put(r));
    want(-XEN_ENOSYS, XEN_memory_op, 50, arg);
}

void test_memory(void)
{
    test_updates();
    test_stores();
    test_ext();
    test_descriptors();
    test_reservations();
}
