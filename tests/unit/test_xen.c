/*
 * Xen's PV interface (docs/xen.md) from a guest's side: what it finds when it starts, each hypercall, and each documented
 * error with nothing changed behind it.
 */
#include "machine/bus.h"
#include "tests/lib/check.h"
#include "tests/lib/pvguest.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PFN(la) (((la) - PV_BASE) >> PAGE_SHIFT)
/* Pages of the test kernel, mapped writable. */
#define DATA PV_AT(PV_DATA)
#define FREE(n) (PFN(DATA) + 1 + (n)) /* frames to make tables of: six */

static struct pvguest g;

static void put(u64 la, const void *bytes, size_t len) { memcpy(pv_ptr(&g, la, false), bytes, len); }

static s64 update(u64 ptr, u64 val)
{
    const struct xen_mmu_update u = { ptr, val };
    put(DATA, &u, sizeof(u));
    return pv_call(&g, XEN_mmu_update, DATA, 1, 0, XEN_DOMID_SELF);
}

static s64 mmuext(u32 cmd, u64 arg1, u64 arg2)
{
    const struct xen_mmuext_op op = { cmd, 0, arg1, arg2 };
    put(DATA, &op, sizeof(op));
    return pv_call(&g, XEN_mmuext_op, DATA, 1, 0, XEN_DOMID_SELF);
}

/* The mapping of a page of the kernel's: with or without the right to write. */
static s64 map(u64 mfn, bool writable)
{
    return pv_call(&g, XEN_update_va_mapping, PV_AT(mfn << PAGE_SHIFT), mfn << PAGE_SHIFT | PTE_P | (writable ? PTE_W : 0),
                   XEN_UVMF_INVLPG, 0);
}

static u64 *entry_of(u64 la)
{
    u64 t = g.xen->cpu[0].kernel_cr3;
    for (unsigned level = 4; level > 1; level--)
        t = PTE_MFN(((u64 *)((u8 *)g.ram.host + t))[la >> (12 + 9 * (level - 1)) & 511]) << PAGE_SHIFT;
    return (u64 *)((u8 *)g.ram.host + t) + (la >> 12 & 511);
}

static u64 machine_of(const void *host) { return (u64)((const u8 *)host - (const u8 *)g.ram.host); }

static void test_start(void)
{
    pvguest_make(&g, "hello=1");
    const struct xen_start_info *s = pv_ptr(&g, g.regs.gpr[RSI], false);

    CHECK(s && !strcmp(s->magic, "xen-3.0-x86_64") && s->nr_pages == PV_SIZE >> PAGE_SHIFT && !strcmp(s->cmd_line, "hello=1"));
    CHECK(g.regs.rip == PV_AT(PV_KERNEL) && g.sregs.cs.selector == XEN_FLAT_CS64 && g.sregs.ss.selector == XEN_FLAT_DS);
    CHECK(pv_ptr(&g, g.regs.gpr[RSP] - 8, true) != NULL);
    CHECK(s->mfn_list == PV_P2M && s->nr_p2m_frames == 8);
    for (u64 i = 0; i < s->nr_pages; i += 97) {
        const u64 *p2m = pv_ptr(&g, s->mfn_list + i * 8, false), *m2p = pv_ptr(&g, XEN_M2P_START + i * 8, false);
        CHECK_MSG(p2m && m2p && *p2m == i && *m2p == i, "frame %llu", (unsigned long long)i);
    }
    CHECK(!pv_call(&g, XEN_memory_op, XENMEM_machphys_mapping, DATA, 0, 0));
    const struct xen_machphys_mapping *told = pv_ptr(&g, DATA, false);
    CHECK(pv_ptr(&g, told->v_start + 8 * told->max_mfn, false) == pv_ptr(&g, XEN_M2P_START + 8 * told->max_mfn, false));
    CHECK(told->max_mfn == s->nr_pages - 1 && told->v_start + 8 * s->nr_pages <= told->v_end && !pv_ptr(&g, told->v_start, true));
    /* Page tables are mapped, but cannot be written; the frame numbers are within memory. */
    for (u64 i = 0; i < s->nr_pt_frames; i++)
        CHECK(pv_ptr(&g, s->pt_base + i * PAGE_SIZE, false) && !pv_ptr(&g, s->pt_base + i * PAGE_SIZE, true));
    CHECK(machine_of(pv_ptr(&g, s->pt_base, false)) == g.sregs.cr3);
    CHECK(!pv_ptr(&g, XEN_M2P_START, true) && !pv_ptr(&g, GDT_AREA + XEN_GDT_RESERVED_PAGE * PAGE_SIZE, true));
    CHECK(s->shared_info == g.xen->own_gpa && s->console_mfn < s->nr_pages && s->store_mfn < s->nr_pages);
    CHECK(g.xen->cpu[0].info->upcall_mask == 1);
    /* The hypercall page: mov eax, n; syscall. */
    const u8 *page = pv_ptr(&g, PV_AT(PV_KERNEL + 0x1000), false);
    CHECK(page[32 * 29 + 3] == 0xb8 && page[32 * 29 + 4] == 29 && page[32 * 29 + 8] == 0x0f && page[32 * 29 + 9] == 0x05);
    pvguest_free(&g);
}

static void test_mappings(void)
{
    const u64 va = PV_AT(FREE(0) << PAGE_SHIFT);
    u64 was;

    pvguest_make(&g, "");
    was = *entry_of(va);
    CHECK(!map(FREE(0), false) && !pv_ptr(&g, va, true) && pv_ptr(&g, va, false));
    CHECK(!map(FREE(0), true) && pv_ptr(&g, va, true));
    was = *entry_of(va);
    /* Not the guest's: beyond memory, our own tables. Shared pages are. */
    CHECK(pv_call(&g, XEN_update_va_mapping, va, (g.xen->own_gpa + FRAMES_SHARED * PAGE_SIZE) | PTE_P, 0, 0) == -XEN_EINVAL);
    CHECK(pv_call(&g, XEN_update_va_mapping, va, 1ull << 45 | PTE_P, 0, 0) == -XEN_EINVAL);
    CHECK(*entry_of(va) == was);
    CHECK(!pv_call(&g, XEN_update_va_mapping, va, g.xen->own_gpa | PTE_P | PTE_W, 0, 0));
    CHECK(pv_ptr(&g, va, true) == (void *)g.xen->shared);
    CHECK(!map(FREE(0), true));
    /* A page table cannot be mapped writable. */
    u64 l4 = g.sregs.cr3 >> PAGE_SHIFT;
    CHECK(pv_call(&g, XEN_update_va_mapping, va, l4 << PAGE_SHIFT | PTE_P | PTE_W, 0, 0) == -XEN_EINVAL && *entry_of(va) == was);
    CHECK(!pv_call(&g, XEN_update_va_mapping, va, l4 << PAGE_SHIFT | PTE_P, 0, 0));
    CHECK(!map(FREE(0), true));
    CHECK(pv_call(&g, XEN_update_va_mapping, XEN_M2P_START, 0, 0, 0) == -XEN_EINVAL);
    CHECK(pv_call(&g, XEN_update_va_mapping, 0x1000, 0, 0, 0) == -XEN_EINVAL); /* no table there */
    /* The same by machine address; A and D kept. */
    u64 at = machine_of(entry_of(va));
    *entry_of(va) |= PTE_A | PTE_D;
    CHECK(!update(at | XEN_MMU_PT_UPDATE_PRESERVE_AD, FREE(0) << PAGE_SHIFT | PTE_P) && (*entry_of(va) & (PTE_A | PTE_D | PTE_W)) == (PTE_A | PTE_D));
    CHECK(!update(at, 0) && !*entry_of(va));
    CHECK(update(PV_SIZE, 0) == -XEN_EINVAL && update(at | 3, 0) == -XEN_ENOSYS);
    CHECK(pv_call(&g, XEN_mmu_update, DATA, 1, 0, 0) == -XEN_EPERM);
    CHECK(pv_call(&g, XEN_mmu_update, 0x1000, 1, 0, XEN_DOMID_SELF) == -XEN_EFAULT);
    CHECK(!update(FREE(1) << PAGE_SHIFT | XEN_MMU_MACHPHYS_UPDATE, 77) && g.xen->m2p[FREE(1)] == 77);
    pvguest_free(&g);
}

static void test_tables(void)
{
    pvguest_make(&g, "");
    const u64 l4 = g.sregs.cr3 >> PAGE_SHIFT;
    u64 *t[4];

    for (unsigned i = 0; i < 4; i++) {
        t[i] = pv_ptr(&g, PV_AT(FREE(i) << PAGE_SHIFT), true);
        memset(t[i], 0, PAGE_SIZE);
    }
    /* In use as writable pages: no. Read-only: yes, and then not writable. */
    CHECK(mmuext(XEN_MMUEXT_PIN_L1, FREE(0), 0) == -XEN_EINVAL);
    for (unsigned i = 0; i < 4; i++)
        CHECK(!map(FREE(i), false));
    t[0][3] = FREE(5) << PAGE_SHIFT | PTE_P | PTE_W;
    t[1][5] = FREE(0) << PAGE_SHIFT | PTE_P | PTE_W | PTE_U;
    t[2][7] = FREE(1) << PAGE_SHIFT | PTE_P | PTE_W | PTE_U;
    t[3][9] = FREE(2) << PAGE_SHIFT | PTE_P | PTE_W | PTE_U;
    t[3][XEN_HOLE_FIRST + 3] = 0x123 << PAGE_SHIFT | PTE_P; /* dropped */
    CHECK(!mmuext(XEN_MMUEXT_PIN_L4, FREE(3), 0));
    CHECK(g.xen->frame[FREE(0)].type == FRAME_L1 && g.xen->frame[FREE(1)].type == FRAME_L2 && g.xen->frame[FREE(2)].type == FRAME_L3);
    CHECK(t[3][XEN_HOLE_FIRST] == g.xen->hole[0] && t[3][XEN_HOLE_FIRST + 3] == 0);
    CHECK(map(FREE(0), true) == -XEN_EINVAL && map(FREE(3), true) == -XEN_EINVAL);
    CHECK(mmuext(XEN_MMUEXT_PIN_L4, FREE(3), 0) == -XEN_EINVAL); /* twice */
    CHECK(mmuext(XEN_MMUEXT_PIN_L2, FREE(0), 0) == -XEN_EINVAL); /* another level */
    /* Entries of upper levels name tables one level below, and no large pages. */
    CHECK(update(FREE(1) << PAGE_SHIFT | 8, FREE(3) << PAGE_SHIFT | PTE_P) == -XEN_EINVAL);
    CHECK(update(FREE(1) << PAGE_SHIFT | 8, PTE_PS | PTE_P) == -XEN_EINVAL && !t[1][1]);
    CHECK(update(FREE(3) << PAGE_SHIFT | XEN_HOLE_FIRST * 8, 0) == -XEN_EINVAL);
    CHECK(!update(FREE(0) << PAGE_SHIFT, FREE(5) << PAGE_SHIFT | PTE_P | PTE_W));
    CHECK(g.xen->frame[FREE(5)].count == 3 && g.xen->frame[FREE(5)].type == FRAME_WRITABLE);
    /* A store into it, that the engine brings here. */
    CHECK(xen_outer(g.xen)->write_fault(g.xen, 0, FREE(0) << PAGE_SHIFT) && !xen_outer(g.xen)->write_fault(g.xen, 0, FREE(1) << PAGE_SHIFT));
    u64 e = 0;
    xen_mmio_write(g.xen, 0, FREE(0) << PAGE_SHIFT, &e, 8);
    CHECK(!t[0][0] && g.xen->frame[FREE(5)].count == 2 && !g.refused);
    e = 1ull << 45 | PTE_P;
    xen_mmio_write(g.xen, 0, FREE(0) << PAGE_SHIFT, &e, 8);
    CHECK(!t[0][0] && g.refused == 1 && !g.failed[0]);
    /* An instruction that read the entry first: only if it is still that. Dirty was set meanwhile: nothing is done, and it is run again. */
    const u64 page = FREE(5) << PAGE_SHIFT | PTE_P | PTE_W;
    u64 before = 0;
    g.before = &before;
    e = page;
    xen_mmio_write(g.xen, 0, FREE(0) << PAGE_SHIFT, &e, 8);
    CHECK(t[0][0] == page && g.xen->frame[FREE(5)].count == 3 && !g.again);
    t[0][0] |= PTE_D;
    before = page;
    e = 0;
    xen_mmio_write(g.xen, 0, FREE(0) << PAGE_SHIFT, &e, 8);
    CHECK(t[0][0] == (page | PTE_D) && g.xen->frame[FREE(5)].count == 3 && g.again == 1 && g.refused == 1);
    before |= PTE_D;
    xen_mmio_write(g.xen, 0, FREE(0) << PAGE_SHIFT, &e, 8);
    CHECK(!t[0][0] && g.xen->frame[FREE(5)].count == 2 && g.again == 1);
    g.before = NULL;
    /* Half an entry leaves the other half as it is. */
    t[0][0] = 0x00000001ull << 32;
    xen_mmio_write(g.xen, 0, FREE(0) << PAGE_SHIFT, &e, 4);
    CHECK(t[0][0] == 0x00000001ull << 32 && g.refused == 1);
    t[0][0] = 0;
    /* To it, and back. */
    CHECK(mmuext(XEN_MMUEXT_NEW_USER_BASEPTR, FREE(3), 0) == 0 && g.xen->cpu[0].user_cr3 == FREE(3) << PAGE_SHIFT);
    CHECK(mmuext(XEN_MMUEXT_NEW_USER_BASEPTR, FREE(0), 0) == -XEN_EINVAL);
    CHECK(mmuext(XEN_MMUEXT_NEW_USER_BASEPTR, 0, 0) == 0 && !g.xen->cpu[0].user_cr3);
    CHECK(!map(0, false)); /* all zeros: a table like any other, but its number is "none" */
    CHECK(mmuext(XEN_MMUEXT_NEW_BASEPTR, 0, 0) == -XEN_EINVAL && !g.xen->frame[0].count && mmuext(XEN_MMUEXT_NEW_BASEPTR, ~0ull, 0) == -XEN_EINVAL);
    CHECK(!mmuext(XEN_MMUEXT_NEW_BASEPTR, l4, 0) && g.frame.cr3 == l4 << PAGE_SHIFT);
    CHECK(!mmuext(XEN_MMUEXT_UNPIN, FREE(3), 0) && mmuext(XEN_MMUEXT_UNPIN, FREE(3), 0) == -XEN_EINVAL);
    for (unsigned i = 0; i < 4; i++)
        CHECK(!g.xen->frame[FREE(i)].count && !map(FREE(i), true));
    CHECK(g.xen->frame[FREE(5)].count == 1);
    CHECK(!mmuext(XEN_MMUEXT_CLEAR_PAGE, FREE(0), 0) && mmuext(XEN_MMUEXT_CLEAR_PAGE, l4, 0) == -XEN_EINVAL);
    CHECK(mmuext(99, 0, 0) == -XEN_ENOSYS && mmuext(XEN_MMUEXT_SET_LDT, 8, 1) == -XEN_EINVAL);
    /* A table with something wrong in it leaves no uses behind. */
    CHECK(!map(FREE(0), false));
    t[0][3] = FREE(5) << PAGE_SHIFT | PTE_P | PTE_W;
    t[0][400] = 1ull << 45 | PTE_P;
    CHECK(mmuext(XEN_MMUEXT_PIN_L1, FREE(0), 0) == -XEN_EINVAL && g.xen->frame[FREE(5)].count == 1 && !g.xen->frame[FREE(0)].count);
    pvguest_free(&g);
}

/* Which changes of the kernel's half make a flush one of everything. */
static void test_kernel_half(void)
{
    const u64 va = PV_AT(FREE(0) << PAGE_SHIFT);
    unsigned before;

    pvguest_make(&g, "");
    const u64 l4 = g.sregs.cr3 >> PAGE_SHIFT;
    CHECK(!mmuext(XEN_MMUEXT_TLB_FLUSH_LOCAL, 0, 0));
#define FLUSHES_ALL(change, all) \
    do { \
        before = g.kernel_flushes; \
        CHECK(!(change)); \
        CHECK(!mmuext(XEN_MMUEXT_TLB_FLUSH_LOCAL, 0, 0)); \
        CHECK_MSG(g.kernel_flushes - before == (all), #change); \
    } while (0)
#define ENTRY(e) pv_call(&g, XEN_update_va_mapping, va, e, 0, 0)
    const u64 at = FREE(0) << PAGE_SHIFT;
    FLUSHES_ALL(ENTRY(at | PTE_P | PTE_W | PTE_A | PTE_D), 0);       /* as it was, or nearly */
    g.unwritten = 0;
    FLUSHES_ALL(ENTRY(at | PTE_P | PTE_A), 0);                       /* writes: revoked at once */
    CHECK(g.unwritten == at);
    FLUSHES_ALL(ENTRY(at | PTE_P | PTE_W | PTE_A), 0);               /* a right more */
    FLUSHES_ALL(ENTRY(at | PTE_P | PTE_W | PTE_A | PTE_NX), 1);
    FLUSHES_ALL(ENTRY(at | PTE_P | PTE_W | PTE_NX), 1);              /* Accessed is to be seen again */
    FLUSHES_ALL(ENTRY((at + PAGE_SIZE) | PTE_P | PTE_W | PTE_NX), 1);
    FLUSHES_ALL(ENTRY(0), 1);
    FLUSHES_ALL(ENTRY(at | PTE_P | PTE_W | PTE_A | PTE_U), 0);       /* there was nothing */
    FLUSHES_ALL(ENTRY(at | PTE_P | PTE_W | PTE_A), 0);               /* not global while it had U */
    before = g.kernel_flushes;
    g.xen->outer.flush(g.xen, 0); /* another vCPU asks */
    CHECK(g.kernel_flushes == before && !ENTRY(0));
    g.xen->outer.flush(g.xen, 0);
    CHECK(g.kernel_flushes == ++before && !ENTRY(at | PTE_P | PTE_W | PTE_A));
    CHECK(!ENTRY(0) && !mmuext(XEN_MMUEXT_NEW_BASEPTR, l4, 0) && g.kernel_flushes == before + 1);
    CHECK(!mmuext(XEN_MMUEXT_NEW_BASEPTR, l4, 0) && g.kernel_flushes == before + 1);
    CHECK(!ENTRY(at | PTE_P | PTE_W));
    /* A base table with another upper half. */
    u64 *t = pv_ptr(&g, PV_AT(FREE(1) << PAGE_SHIFT), true);
    memset(t, 0, PAGE_SIZE);
    CHECK(!map(FREE(1), false) && !mmuext(XEN_MMUEXT_PIN_L4, FREE(1), 0));
    before = g.kernel_flushes;
    CHECK(!mmuext(XEN_MMUEXT_NEW_BASEPTR, FREE(1), 0) && g.kernel_flushes == before + 1 && !g.differs);
    pvguest_free(&g);
}

/* -- What is kept of user code's translations ------------------------------------------------------------------------------ */

/* Two processes of tables that are mapped nowhere: base tables of the kernel's and the user's, level 3, 2 and 1, a page. */
enum { K, U, L3, L2, L1, DATA_PAGE, NR_TABLES };
#define TABLE_OF(process, which) (3000 + (process) * NR_TABLES + (which))
static u64 *table_of(u64 mfn) { return (u64 *)((u8 *)g.ram.host + (mfn << PAGE_SHIFT)); }
static s64 entry(u64 mfn, unsigned i, u64 e) { return update((mfn << PAGE_SHIFT | i * 8) | XEN_MMU_NORMAL_PT_UPDATE, e); }

static void process_make(unsigned p)
{
    const u64 flags = PTE_P | PTE_W | PTE_U | PTE_A;

    memcpy(table_of(TABLE_OF(p, K)), table_of(g.sregs.cr3 >> PAGE_SHIFT), PAGE_SIZE);
    memset(table_of(TABLE_OF(p, K)), 0, 256 * 8);
    table_of(TABLE_OF(p, K))[0] = (u64)TABLE_OF(p, L3) << PAGE_SHIFT | flags;
    table_of(TABLE_OF(p, U))[0] = (u64)TABLE_OF(p, L3) << PAGE_SHIFT | flags;
    for (unsigned t = L3; t < DATA_PAGE; t++)
        table_of(TABLE_OF(p, t))[0] = (u64)TABLE_OF(p, t + 1) << PAGE_SHIFT | flags;
    CHECK(!mmuext(XEN_MMUEXT_PIN_L1, TABLE_OF(p, L1), 0)); /* as Linux does it */
    CHECK(!mmuext(XEN_MMUEXT_PIN_L4, TABLE_OF(p, K), 0));
    CHECK(!mmuext(XEN_MMUEXT_PIN_L4, TABLE_OF(p, U), 0));
}

/* Go to a process, as Linux does; is what it knew still true? */
static bool kept(unsigned p)
{
    CHECK(!mmuext(XEN_MMUEXT_NEW_BASEPTR, TABLE_OF(p, K), 0) && !mmuext(XEN_MMUEXT_NEW_USER_BASEPTR, TABLE_OF(p, U), 0));
    return g.kept;
}

static void test_spaces(void)
{
    const u64 flags = PTE_P | PTE_W | PTE_U | PTE_A, page = (u64)TABLE_OF(0, DATA_PAGE) << PAGE_SHIFT;

    pvguest_make(&g, "");
    process_make(0);
    process_make(1);
    CHECK(!kept(0) && !kept(1));
    unsigned space = g.space;
    CHECK(kept(0) && g.space != space && kept(1) && g.space == space);
#define KEEPS(change, keeps) \
    do { \
        kept(1); \
        CHECK(!(change)); \
        CHECK_MSG(kept(1), #change ": the other process"); \
        CHECK_MSG(kept(0) == (keeps), #change); \
        CHECK_MSG(kept(1) && kept(0), #change ": again"); \
    } while (0)
    KEEPS(entry(TABLE_OF(0, L1), 1, page | PTE_P | PTE_U), true);             /* there was nothing */
    KEEPS(entry(TABLE_OF(0, L1), 1, page | PTE_P | PTE_U | PTE_W), true);     /* more rights */
    KEEPS(entry(TABLE_OF(0, L1), 1, page | PTE_P | PTE_U), false);
    KEEPS(entry(TABLE_OF(0, L1), 1, page | PTE_P | PTE_U | PTE_A), true);
    KEEPS(entry(TABLE_OF(0, L1), 1, page | PTE_P | PTE_U), false);
    KEEPS(entry(TABLE_OF(0, L1), 1, page | PTE_P | PTE_U | PTE_NX), false);
    KEEPS(entry(TABLE_OF(0, L1), 1, (page + PAGE_SIZE) | PTE_P | PTE_U | PTE_NX), false);
    KEEPS(entry(TABLE_OF(0, L1), 1, 0), false);
    KEEPS(entry(TABLE_OF(0, L1), 1, 0), true);
    /* A store that was taken for an update. */
    CHECK(!entry(TABLE_OF(0, L1), 1, page | flags) && kept(1));
    u64 zero = 0;
    xen_mmio_write(g.xen, 0, ((u64)TABLE_OF(0, L1) << PAGE_SHIFT) + 8, &zero, 8);
    CHECK(!kept(0) && kept(1) && kept(0));
    /* Tables taken away, changed while they are none, and put back. */
    KEEPS(entry(TABLE_OF(0, L2), 0, 0), false);
    KEEPS(mmuext(XEN_MMUEXT_UNPIN, TABLE_OF(0, L1), 0), true);
    table_of(TABLE_OF(0, L1))[0] = 0;
    KEEPS(entry(TABLE_OF(0, L2), 0, (u64)TABLE_OF(0, L1) << PAGE_SHIFT | flags), true);
    KEEPS(entry(TABLE_OF(0, L1), 0, page | flags), true);
    KEEPS(entry(TABLE_OF(0, L1), 0, 0), false);
    KEEPS(entry(TABLE_OF(0, K), 0, 0), false);
    KEEPS(entry(TABLE_OF(0, U), 0, 0), false);
    KEEPS(entry(TABLE_OF(0, U), 0, (u64)TABLE_OF(0, L3) << PAGE_SHIFT | flags), true);
    KEEPS(entry(TABLE_OF(0, L2), 0, 0), false);
    /* A base table that is given up and used again. */
    CHECK(!mmuext(XEN_MMUEXT_NEW_USER_BASEPTR, TABLE_OF(1, U), 0) && !mmuext(XEN_MMUEXT_UNPIN, TABLE_OF(0, U), 0));
    CHECK(!mmuext(XEN_MMUEXT_PIN_L4, TABLE_OF(0, U), 0) && !kept(0) && kept(0));
    /* Flushes: of the current one. */
    CHECK(!mmuext(XEN_MMUEXT_TLB_FLUSH_LOCAL, 0, 0) && g.kept && !entry(TABLE_OF(0, L3), 0, 0));
    CHECK(!mmuext(XEN_MMUEXT_TLB_FLUSH_LOCAL, 0, 0) && !g.kept && kept(0));
    /* ... and when another vCPU asks. */
    g.xen->outer.flush(g.xen, 0);
    CHECK(g.kept && !entry(TABLE_OF(0, L3), 0, (u64)TABLE_OF(0, L2) << PAGE_SHIFT | flags) && !entry(TABLE_OF(0, L3), 0, 0));
    g.xen->outer.flush(g.xen, 0);
    CHECK(!g.kept && kept(0));
    /* A page of the upper half that user code may use is in every process. */
    const u64 va = PV_AT(FREE(0) << PAGE_SHIFT);
    CHECK(!pv_call(&g, XEN_update_va_mapping, va, FREE(0) << PAGE_SHIFT | PTE_P | PTE_U, 0, 0) && kept(0) && kept(1));
    CHECK(!pv_call(&g, XEN_update_va_mapping, va, 0, 0, 0) && !kept(0) && kept(1) && kept(0));
    /* What two processes have in common is kept of neither. */
    CHECK(!entry(TABLE_OF(0, U), 1, (u64)TABLE_OF(1, L3) << PAGE_SHIFT | flags));
    CHECK(!kept(0) && !kept(1) && !kept(0) && !kept(1));
    pvguest_free(&g);
}

static s64 reserve(unsigned op, u64 list, u64 count, unsigned order, u16 domid)
{
    const struct xen_memory_reservation r = { list, count, order, 0, domid, { 0 } };
    put(DATA, &r, sizeof(r));
    return pv_call(&g, XEN_memory_op, op, DATA, 0, 0);
}

static void test_reservation(void)
{
    const u64 list = DATA + 256, self = XEN_DOMID_SELF, va = PV_AT(FREE(0) << PAGE_SHIFT);
    u64 frames[3] = { FREE(0), FREE(1), FREE(2) }, *now;

    pvguest_make(&g, "");
    const s64 all = (s64)g.xen->nr_frames;
    now = pv_ptr(&g, list, false);
    put(list, frames, sizeof(frames));
    put(DATA, &self, 2);
    CHECK(pv_call(&g, XEN_memory_op, XENMEM_current_reservation, DATA, 0, 0) == all);
    CHECK(pv_call(&g, XEN_memory_op, XENMEM_decrease_reservation, 0x1000, 0, 0) == -XEN_EFAULT);
    CHECK(reserve(XENMEM_decrease_reservation, list, 1, 0, 0) == -XEN_EPERM);
    CHECK(reserve(XENMEM_decrease_reservation, list, 1, 9, XEN_DOMID_SELF) == 0); /* single frames only */
    CHECK(reserve(XENMEM_decrease_reservation, list, 3, 0, XEN_DOMID_SELF) == 0); /* mapped */
    CHECK(reserve(XENMEM_populate_physmap, list, 1, 0, XEN_DOMID_SELF) == 0);     /* it has all there is */
    for (unsigned i = 0; i < 2; i++)
        CHECK(!pv_call(&g, XEN_update_va_mapping, PV_AT(FREE(i) << PAGE_SHIFT), 0, XEN_UVMF_INVLPG, 0));
    CHECK(reserve(XENMEM_decrease_reservation, list, 3, 0, XEN_DOMID_SELF) == 2); /* the third is mapped */
    CHECK(reserve(XENMEM_decrease_reservation, list, 1, 0, XEN_DOMID_SELF) == 0); /* twice */
    CHECK(g.xen->m2p[FREE(0)] == ~0ull && g.unwritten == FREE(1) << PAGE_SHIFT);
    put(DATA, &self, 2);
    CHECK(pv_call(&g, XEN_memory_op, XENMEM_current_reservation, DATA, 0, 0) == all - 2);
    CHECK(pv_call(&g, XEN_memory_op, XENMEM_maximum_reservation, DATA, 0, 0) == all);
    /* What is not the guest's cannot be mapped, written or made a table. */
    CHECK(map(FREE(0), true) == -XEN_EINVAL && map(FREE(0), false) == -XEN_EINVAL);
    CHECK(update(FREE(0) << PAGE_SHIFT, 1) == -XEN_EINVAL && mmuext(XEN_MMUEXT_PIN_L1, FREE(0), 0) == -XEN_EINVAL);
    CHECK(mmuext(XEN_MMUEXT_CLEAR_PAGE, FREE(0), 0) == -XEN_EINVAL);
    /* Back again: the frame of that number, or another one. */
    frames[0] = FREE(1);
    frames[1] = 1 << 30;
    put(list, frames, sizeof(frames));
    CHECK(reserve(XENMEM_populate_physmap, list, 3, 0, XEN_DOMID_SELF) == 2);
    CHECK(now[0] == FREE(1) && now[1] == FREE(0) && g.xen->m2p[FREE(1)] == FREE(1) && g.xen->m2p[FREE(0)] == 1 << 30);
    CHECK(!map(FREE(0), true) && *(u64 *)pv_ptr(&g, va, true) == 0);
    /* The same without a wish; and nobody can be told: the frame stays away. */
    CHECK(!map(FREE(1), true) && !pv_call(&g, XEN_update_va_mapping, PV_AT(FREE(1) << PAGE_SHIFT), 0, XEN_UVMF_INVLPG, 0));
    CHECK(reserve(XENMEM_decrease_reservation, list, 1, 0, XEN_DOMID_SELF) == 1);
    CHECK(reserve(XENMEM_increase_reservation, 0x1000, 1, 0, XEN_DOMID_SELF) == 0);
    CHECK(reserve(XENMEM_increase_reservation, list, 2, 0, XEN_DOMID_SELF) == 1 && now[0] == FREE(1) && !g.xen->nr_gone);
    pvguest_free(&g);
}

static void test_traps(void)
{
    const struct xen_trap_info traps[] = { { VEC_PF, XEN_TI_MASK, 0xe033, 0, 0x1111000 }, { 0x80, 3, 0xe033, 0, 0x2222000 }, { 0 } };
    const struct vitro_outer *o;
    const struct vitro_trap pf = { .vector = VEC_PF, .has_error = true, .error = 6, .cr2 = 0x5000 };
    struct vitro_frame f;
    u64 gpr[16] = { 0 }, *sp;

    pvguest_make(&g, "");
    o = xen_outer(g.xen);
    put(DATA, traps, sizeof(traps));
    CHECK(!pv_call(&g, XEN_set_trap_table, DATA, 0, 0, 0));
    CHECK(pv_call(&g, XEN_set_trap_table, 0x1000, 0, 0, 0) == -XEN_EFAULT);
    CHECK(!pv_call(&g, XEN_set_callbacks, 0x3333000, 0x4444000, 0x5555000, 0));
    CHECK(pv_call(&g, XEN_set_callbacks, 1ull << 50, 0, 0, 0) == -XEN_EINVAL);
    CHECK(!pv_call(&g, XEN_stack_switch, XEN_FLAT_DS, PV_AT(PV_KERNEL + 0xf008), 0, 0));
    CHECK(pv_call(&g, XEN_stack_switch, XEN_FLAT_DS, 1ull << 50, 0, 0) == -XEN_EINVAL);

    /* From user code: the kernel's stack, aligned; the error code between r11 and rip. */
    g.xen->cpu[0].info->upcall_mask = 0;
    gpr[RSP] = 0x7000;
    gpr[RCX] = 1;
    gpr[R11] = 2;
    f = (struct vitro_frame){ .gpr = gpr, .rip = 0x401000, .rflags = EFL_IF | EFL_TF | EFL_AC, .cs = 0x33, .ss = 0x2b };
    CHECK(o->trap(o->opaque, 0, &f, &pf) == VITRO_GO);
    CHECK(f.kernel && f.rip == 0x1111000 && f.cs == XEN_FLAT_CS64 && f.ss == XEN_FLAT_DS && f.cr3 == g.sregs.cr3);
    CHECK(!(f.rflags & (EFL_TF | EFL_AC)) && g.xen->cpu[0].info->upcall_mask == 1 && g.xen->cpu[0].info->cr2 == 0x5000);
    CHECK(gpr[RSP] == PV_AT(PV_KERNEL + 0xf000) - 64);
    sp = pv_ptr(&g, gpr[RSP], false);
    CHECK(sp[0] == 1 && sp[1] == 2 && sp[2] == 6 && sp[3] == 0x401000 && sp[4] == 0x33 && sp[6] == 0x7000 && sp[7] == 0x2b);
    CHECK((sp[5] & (EFL_IF | EFL_TF)) == (EFL_IF | EFL_TF));
    /* From the kernel: its stack as it is, level 0 shown, the mask kept. */
    f.rip = 0x9000;
    gpr[RSP] = PV_AT(PV_KERNEL + 0xe008);
    CHECK(o->trap(o->opaque, 0, &f, &pf) == VITRO_GO);
    sp = pv_ptr(&g, gpr[RSP], false);
    CHECK(gpr[RSP] == PV_AT(PV_KERNEL + 0xe000) - 64 && sp[4] == (0xe030 | 1ull << 32) && !(sp[5] & EFL_IF));

    CHECK(o->soft_interrupt(o->opaque, 0, &f, 0x81) == VITRO_REFUSE && o->soft_interrupt(o->opaque, 0, &f, VEC_PF) == VITRO_REFUSE);
    CHECK(o->soft_interrupt(o->opaque, 0, &f, 0x80) == VITRO_GO && f.rip == 0x2222000);
    /* SYSCALL of user code. */
    f.kernel = false;
    CHECK(o->syscall(o->opaque, 0, &f, true) == VITRO_GO && f.rip == 0x5555000 && f.kernel);
    f.kernel = false;
    CHECK(o->syscall(o->opaque, 0, &f, false) == VITRO_REFUSE);
    /* An event. */
    g.xen->cpu[0].info->upcall_mask = 0;
    CHECK(o->event(o->opaque, 0, &f) == VITRO_STAY);
    g.xen->cpu[0].info->upcall_pending = 1;
    CHECK(o->event(o->opaque, 0, &f) == VITRO_GO && f.rip == 0x3333000 && g.xen->cpu[0].info->upcall_mask == 1);
    CHECK(o->event(o->opaque, 0, &f) == VITRO_STAY);
    /* A frame that cannot be loaded: selectors between r11 and rip. */
    gpr[RSP] = PV_AT(PV_KERNEL + 0xe000);
    f.kernel = true;
    CHECK(o->bad_frame(o->opaque, 0, &f) == VITRO_GO && f.rip == 0x4444000);
    sp = pv_ptr(&g, gpr[RSP], false);
    CHECK(sp[2] == 0x100 && sp[5] == 0x103);
    /* No handler, no stack: the guest dies with a sentence. */
    CHECK(o->trap(o->opaque, 0, &f, &(struct vitro_trap){ .vector = VEC_DE }) == VITRO_DEAD && strstr(g.failed, "no handler"));
    gpr[RSP] = 0x10;
    CHECK(o->trap(o->opaque, 0, &f, &pf) == VITRO_DEAD && strstr(g.failed, "stack"));
    pvguest_free(&g);
}

static void test_iret(void)
{
    struct xen_iret_frame i = { .rax = 7, .r11 = 8, .rcx = 9, .rip = 0x401000, .cs = 0x33, .rflags = EFL_IF, .rsp = 0x7000, .ss = 0x2b };
    const u64 sp = PV_AT(PV_KERNEL + 0x10000);

    pvguest_make(&g, "");
    memcpy(pv_ptr(&g, sp - sizeof(i), true), &i, sizeof(i));
    struct xen_cpu *c = &g.xen->cpu[0];
    const struct vitro_outer *o = xen_outer(g.xen);
    u64 gpr[16] = { [RAX] = XEN_iret, [RSP] = sp - sizeof(i), [R11] = 1, [RCX] = 2 };
    struct vitro_frame f = { .gpr = gpr, .cs = XEN_FLAT_CS64, .ss = XEN_FLAT_DS, .kernel = true, .cr3 = g.cr3 };
    CHECK(o->syscall(o->opaque, 0, &f, true) == VITRO_DEAD && strstr(g.failed, "no page tables"));
    c->user_cr3 = c->kernel_cr3;
    gpr[RAX] = XEN_iret;
    CHECK(o->syscall(o->opaque, 0, &f, true) == VITRO_GO && !f.kernel && f.rip == 0x401000 && f.cs == 0x33 && f.ss == 0x2b);
    CHECK(gpr[RAX] == 7 && gpr[R11] == 8 && gpr[RCX] == 9 && gpr[RSP] == 0x7000 && !c->info->upcall_mask);
    /* To the kernel itself, as within a system call, events masked. */
    i.flags = XEN_VGCF_IN_SYSCALL;
    i.cs = 0xe030;
    i.rflags = 0;
    memcpy(pv_ptr(&g, sp - sizeof(i), true), &i, sizeof(i));
    f.kernel = true;
    gpr[RAX] = XEN_iret;
    gpr[RSP] = sp - sizeof(i);
    gpr[R11] = 1;
    CHECK(o->syscall(o->opaque, 0, &f, true) == VITRO_GO && f.kernel && f.cs == 0xe033 && gpr[R11] == 1 && c->info->upcall_mask);
    f.kernel = true;
    gpr[RAX] = XEN_iret;
    gpr[RSP] = 0x10;
    CHECK(o->syscall(o->opaque, 0, &f, true) == VITRO_DEAD);
    pvguest_free(&g);
}

static s64 evtchn(unsigned op, const void *arg, size_t len)
{
    put(DATA, arg, len);
    return pv_call(&g, XEN_event_channel_op, op, DATA, 0, 0);
}

static void test_events(void)
{
    pvguest_make(&g, "");
    struct xen_vcpu_info *info = g.xen->cpu[0].info;
    const struct xen_evtchn_bind_virq *virq = pv_ptr(&g, DATA, false);
    const struct xen_evtchn_bind_ipi *ipi = pv_ptr(&g, DATA, false);
    u32 port;

    CHECK(!evtchn(XEN_EVTCHNOP_bind_virq, &(struct xen_evtchn_bind_virq){ XEN_VIRQ_TIMER, 0, 0 }, 12));
    u32 timer = virq->port;
    CHECK(timer && evtchn(XEN_EVTCHNOP_bind_virq, &(struct xen_evtchn_bind_virq){ XEN_VIRQ_TIMER, 0, 0 }, 12) == -XEN_EEXIST);
    CHECK(evtchn(XEN_EVTCHNOP_bind_virq, &(struct xen_evtchn_bind_virq){ 24, 0, 0 }, 12) == -XEN_EINVAL);
    CHECK(evtchn(XEN_EVTCHNOP_bind_virq, &(struct xen_evtchn_bind_virq){ XEN_VIRQ_DEBUG, 1, 0 }, 12) == -XEN_ENOENT);
    CHECK(!evtchn(XEN_EVTCHNOP_bind_ipi, &(struct xen_evtchn_bind_ipi){ 0, 0 }, 8));
    port = ipi->port;
    CHECK(evtchn(XEN_EVTCHNOP_bind_ipi, &(struct xen_evtchn_bind_ipi){ 1, 0 }, 8) == -XEN_ENOENT);
    /* Sent while masked: pending, no more. Unmasked: the vCPU is told. */
    g.xen->shared->evtchn_mask[0] = ~0ull;
    CHECK(!evtchn(XEN_EVTCHNOP_send, &port, 4) && (g.xen->shared->evtchn_pending[0] >> port & 1) && !info->upcall_pending);
    g.kicks = 0;
    CHECK(!evtchn(XEN_EVTCHNOP_unmask, &port, 4) && info->upcall_pending == 1 && info->pending_sel == 1 && g.kicks == 1);
    u32 bad[] = { 0, 4095, 4096, ~0u };
    for (unsigned i = 0; i < 4; i++)
        CHECK(evtchn(XEN_EVTCHNOP_send, &bad[i], 4) == -XEN_EINVAL && evtchn(XEN_EVTCHNOP_unmask, &bad[i], 4) == -XEN_EINVAL &&
              evtchn(XEN_EVTCHNOP_close, &bad[i], 4) == -XEN_EINVAL);
    CHECK(evtchn(XEN_EVTCHNOP_send, &timer, 4) == -XEN_EINVAL); /* not the guest's to send */
    CHECK(evtchn(XEN_EVTCHNOP_close, &g.xen->console_port, 4) == -XEN_EINVAL);
    CHECK(evtchn(XEN_EVTCHNOP_bind_vcpu, &(struct xen_evtchn_bind_vcpu){ port, 0 }, 8) == -XEN_EINVAL);
    CHECK(evtchn(XEN_EVTCHNOP_bind_vcpu, &(struct xen_evtchn_bind_vcpu){ g.xen->console_port, 1 }, 8) == -XEN_ENOENT);
    CHECK(!evtchn(XEN_EVTCHNOP_bind_vcpu, &(struct xen_evtchn_bind_vcpu){ g.xen->console_port, 0 }, 8));
    CHECK(!evtchn(XEN_EVTCHNOP_status, &(struct xen_evtchn_status){ .dom = XEN_DOMID_SELF, .port = timer }, 24));
    CHECK(((const struct xen_evtchn_status *)virq)->status == XEN_EVTCHN_virq);
    CHECK(!evtchn(XEN_EVTCHNOP_close, &port, 4) && evtchn(XEN_EVTCHNOP_send, &port, 4) == -XEN_EINVAL);
    CHECK(evtchn(77, &port, 4) == -XEN_ENOSYS);
    /* Every port there is, and no more. */
    s64 r;
    unsigned n = 0;
    while (!(r = evtchn(XEN_EVTCHNOP_alloc_unbound, &(struct xen_evtchn_alloc_unbound){ XEN_DOMID_SELF, 0, 0 }, 8)))
        n++;
    CHECK(r == -XEN_ENOSPC && n == XEN_EVTCHNS - 4);
    pvguest_free(&g);
}

static void test_time(void)
{
    pvguest_make(&g, "");
    const struct xen_time_info *t = &g.xen->cpu[0].info->time;
    const struct xen_evtchn_bind_virq *virq = pv_ptr(&g, DATA, false);
    struct xen_set_singleshot s = { .timeout_abs_ns = 1, .flags = XEN_SSHOT_FUTURE };

    CHECK(!(t->version & 1) && t->tsc_to_system_mul && g.xen->shared->wc_sec > 1600000000);
    CHECK(!evtchn(XEN_EVTCHNOP_bind_virq, &(struct xen_evtchn_bind_virq){ XEN_VIRQ_TIMER, 0, 0 }, 12));
    u32 port = virq->port;
    put(DATA, &s, sizeof(s));
    CHECK(pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_set_singleshot_timer, 0, DATA, 0) == -XEN_ETIME);
    s.flags = 0;
    put(DATA, &s, sizeof(s));
    CHECK(!pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_set_singleshot_timer, 0, DATA, 0));
    g.now_ns++;
    machine_run_timers(g.machine);
    CHECK(g.xen->shared->evtchn_pending[port >> 6] >> (port & 63) & 1);
    g.xen->shared->evtchn_pending[0] = 0;
    CHECK(!pv_call(&g, XEN_set_timer_op, 1, 0, 0, 0) && !pv_call(&g, XEN_set_timer_op, 0, 0, 0, 0)); /* taken back */
    g.now_ns++;
    machine_run_timers(g.machine);
    CHECK(!g.xen->shared->evtchn_pending[0]);
    CHECK(pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_is_up, 0, 0, 0) == 1 && pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_is_up, 1, 0, 0) == -XEN_ENOENT);
    CHECK(pv_call(&g, XEN_vcpu_op, 99, 0, 0, 0) == -XEN_ENOSYS);
    /* Sleep: at once if something is pending. */
    g.xen->cpu[0].info->upcall_pending = 0;
    CHECK(!pv_call(&g, XEN_sched_op, XEN_SCHEDOP_block, 0, 0, 0) && g.crossing == VITRO_HALT && !g.xen->cpu[0].info->upcall_mask);
    struct xen_sched_poll p = { .ports = DATA + 64, .nr_ports = 1 };
    put(DATA, &p, sizeof(p));
    put(DATA + 64, &port, 4);
    CHECK(!pv_call(&g, XEN_sched_op, XEN_SCHEDOP_poll, DATA, 0, 0) && g.crossing == VITRO_HALT);
    g.xen->shared->evtchn_pending[0] = 1ull << port;
    CHECK(!pv_call(&g, XEN_sched_op, XEN_SCHEDOP_poll, DATA, 0, 0) && g.crossing == VITRO_STAY);
    p.nr_ports = 1000;
    put(DATA, &p, sizeof(p));
    CHECK(pv_call(&g, XEN_sched_op, XEN_SCHEDOP_poll, DATA, 0, 0) == -XEN_EINVAL);
    u32 reason = 99;
    put(DATA, &reason, 4);
    CHECK(pv_call(&g, XEN_sched_op, XEN_SCHEDOP_shutdown, DATA, 0, 0) == -XEN_EINVAL && g.shutdown == -1);
    reason = XEN_SHUTDOWN_reboot;
    put(DATA, &reason, 4);
    CHECK(!pv_call(&g, XEN_sched_op, XEN_SCHEDOP_shutdown, DATA, 0, 0) && g.shutdown == XEN_SHUTDOWN_reboot);
    /* vcpu_info elsewhere: once, in the guest's own memory. */
    struct xen_register_vcpu_info v = { 1 << 30, 0, 0 };
    put(DATA, &v, sizeof(v));
    CHECK(pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 0, DATA, 0) == -XEN_EINVAL);
    v = (struct xen_register_vcpu_info){ FREE(0), 4096 - 32, 0 };
    put(DATA, &v, sizeof(v));
    CHECK(pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 0, DATA, 0) == -XEN_EINVAL);
    v.offset = 128;
    put(DATA, &v, sizeof(v));
    CHECK(!pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 0, DATA, 0));
    CHECK((void *)g.xen->cpu[0].info == (u8 *)pv_ptr(&g, PV_AT(FREE(0) << PAGE_SHIFT), false) + 128);
    CHECK(pv_call(&g, XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 0, DATA, 0) == -XEN_EINVAL);
    pvguest_free(&g);
}

static void test_descriptors(void)
{
    pvguest_make(&g, "");
    u64 mfn = FREE(0), *d = pv_ptr(&g, PV_AT(mfn << PAGE_SHIFT), true);

    memset(d, 0, PAGE_SIZE);
    d[1] = 0x00af9a000000ffffull; /* 64-bit code, level 0: becomes 3 */
    put(DATA, &mfn, 8);
    CHECK(pv_call(&g, XEN_set_gdt, DATA, 512, 0, 0) == -XEN_EINVAL); /* writable */
    CHECK(!map(mfn, false) && !pv_call(&g, XEN_set_gdt, DATA, 512, 0, 0));
    CHECK(g.descriptors == 1); /* the engine is told: it remembers what it found */
    CHECK(d[1] == 0x00affb000000ffffull && map(mfn, true) == -XEN_EINVAL);
    CHECK(pv_ptr(&g, GDT_AREA, false) == (void *)d && !pv_ptr(&g, GDT_AREA, true));
    CHECK(pv_call(&g, XEN_set_gdt, DATA, XEN_GDT_ENTRIES + 1, 0, 0) == -XEN_EINVAL);
    CHECK(!pv_call(&g, XEN_update_descriptor, (mfn << PAGE_SHIFT) + 16, 0x00cf92000000ffffull, 0, 0) && d[2] == 0x00cff3000000ffffull);
    CHECK(g.descriptors == 2);
    CHECK(pv_call(&g, XEN_update_descriptor, (mfn << PAGE_SHIFT) + 16, 0x0000890000000067ull, 0, 0) == -XEN_EINVAL); /* a TSS */
    CHECK(pv_call(&g, XEN_update_descriptor, PV_SIZE, 0, 0, 0) == -XEN_EINVAL);
    CHECK(!pv_call(&g, XEN_set_gdt, DATA, 0, 0, 0) && !map(mfn, true));
    CHECK(pv_ptr(&g, GDT_AREA, false) != (void *)d && !*(u64 *)pv_ptr(&g, GDT_AREA + 8, false));
    pvguest_free(&g);
}

static bool hasty_ends;

static void *hasty(void *opaque)
{
    struct xen_console_ring *r = opaque;

    while (!__atomic_load_n(&hasty_ends, __ATOMIC_RELAXED)) {
        u32 prod = __atomic_load_n(&r->in_prod, __ATOMIC_RELAXED);
        __atomic_store_n(&r->in_cons, prod - sizeof(r->in) + 4, __ATOMIC_RELAXED);
        __atomic_store_n(&r->in_cons, prod, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* Room grows while it is looked at: no more is handed over than there is. */
static void test_hasty_reader(struct xen *x)
{
    struct xen_console_ring *r = x->console;
    pthread_t reader;
    u32 most = 0;

    CHECK(!pthread_create(&reader, NULL, hasty, r));
    for (unsigned i = 0; i < 400000; i++) {
        u32 before = r->in_prod;
        xen_console_feed(x, (const u8 *)"eight...", 8);
        most = MAX(most, r->in_prod - before);
    }
    __atomic_store_n(&hasty_ends, true, __ATOMIC_RELAXED);
    pthread_join(reader, NULL);
    CHECK(most == 8);
}

static void test_misc(void)
{
    pvguest_make(&g, "");
    u32 feature[2] = { 0, 0 };
    struct xen_memory_map m = { .nr_entries = 1, .buffer = DATA + 64 };
    struct xen_multicall_entry list[3] = { { .op = XEN_xen_version }, { .op = XEN_iret }, { .op = XEN_multicall } };
    u32 r[4];

    CHECK(pv_call(&g, XEN_xen_version, XENVER_version, 0, 0, 0) > 4 << 16 && pv_call(&g, 63, 0, 0, 0, 0) == -XEN_ENOSYS);
    CHECK(pv_call(&g, 1000, 0, 0, 0, 0) == -XEN_ENOSYS && pv_call(&g, XEN_xen_version, 99, 0, 0, 0) == -XEN_ENOSYS);
    put(DATA, feature, 8);
    CHECK(!pv_call(&g, XEN_xen_version, XENVER_get_features, DATA, 0, 0));
    CHECK(pv_call(&g, XEN_xen_version, XENVER_get_features, 0x1000, 0, 0) == -XEN_EFAULT);
    put(DATA, &m, sizeof(m));
    CHECK(!pv_call(&g, XEN_memory_op, XENMEM_memory_map, DATA, 0, 0));
    CHECK(((struct xen_e820_entry *)pv_ptr(&g, DATA + 64, false))->size == PV_SIZE);
    put(DATA, list, sizeof(list));
    CHECK(!pv_call(&g, XEN_multicall, DATA, 3, 0, 0));
    memcpy(list, pv_ptr(&g, DATA, false), sizeof(list));
    CHECK((s64)list[0].result > 0 && (s64)list[1].result == -XEN_ENOSYS && (s64)list[2].result == -XEN_ENOSYS);
    put(DATA, "hello", 5);
    CHECK(!pv_call(&g, XEN_console_io, XEN_CONSOLEIO_write, 5, DATA, 0) && !strcmp(g.said, "hello"));
    /* The ring; an index that is no index. */
    g.nr_said = 0;
    struct xen_console_ring *ring = g.xen->console;
    memcpy(ring->out, "world", 6);
    ring->out_prod = 6;
    CHECK(!evtchn(XEN_EVTCHNOP_send, &g.xen->console_port, 4) && !strcmp(g.said, "world") && ring->out_cons == 6);
    ring->out_prod = 1u << 30;
    CHECK(!evtchn(XEN_EVTCHNOP_send, &g.xen->console_port, 4) && g.nr_said == 6);
    CHECK(xen_console_room(g.xen) == 1024);
    xen_console_feed(g.xen, (const u8 *)"in", 2);
    CHECK(ring->in_prod == 2 && !memcmp(ring->in, "in", 2));
    test_hasty_reader(g.xen);
    ring->in_cons = ring->in_prod + 75;
    CHECK(xen_console_room(g.xen) == 0);
    xen_cpuid(&g.xen->cpu[0], 0x40000000, 0, r);
    CHECK(!memcmp(&r[1], "XenVMMXenVMM", 12));
    xen_cpuid(&g.xen->cpu[0], 7, 0, r);
    CHECK(!(r[1] & (BIT(7) | BIT(20))));
    pvguest_free(&g);
}

/* -- Xenstore ---------------------------------------------------------------------------------------------- */

#define ASK(type, tx, text) pv_ask(&g, type, tx, text, sizeof(text) - 1)
#define reply pv_reply
#define head pv_head
#define take() pv_take(&g)

/* -- Ports -------------------------------------------------------------------------------------------------------------- */

#define OURS 0x520
static u64 port_read(void *dev, u64 off, unsigned size) { (void)size; return *(u64 *)dev + off; }
static void port_write(void *dev, u64 off, unsigned size, u64 value) { (void)off, (void)size; *(u64 *)dev = value; }
static const struct io_ops ports_ops = { .name = "test", .min_width = 4, .max_width = 4, .read = port_read, .write = port_write };

/* What IN gives; -1: #GP. */
static s64 port_in_sized(u32 port, bool kernel, u8 size)
{
    const struct vitro_outer *o = xen_outer(g.xen);
    struct vitro_privileged p = { .op = VITRO_IN, .reg = port, .size = size };
    struct vitro_frame f = { .gpr = g.gpr, .cr3 = kernel ? g.xen->cpu[0].kernel_cr3 : 0x1000, .kernel = kernel };

    g.cr3 = f.cr3;
    enum vitro_crossing c = o->privileged(o->opaque, 0, &f, &p);
    CHECK(g.cr3 == f.cr3);
    g.cr3 = g.xen->cpu[0].kernel_cr3;
    return c == VITRO_REFUSE ? -1 : (s64)p.value;
}

static s64 port_in(u32 port, bool kernel) { return port_in_sized(port, kernel, 4); }

static s64 physdev(unsigned op, const void *arg, size_t len)
{
    put(DATA, arg, len);
    return pv_call(&g, XEN_physdev_op, op, DATA, 0, 0);
}

static void test_ports(void)
{
    const u64 bitmap = DATA + 0x100;
    u64 device = 7;

    pvguest_make(&g, "");
    bus_add_ports(machine_bus(g.machine), OURS, 8, 0, &ports_ops, &device);
    CHECK(port_in(OURS, true) == 0xffffffff && port_in(OURS, false) == -1); /* not given */
    xen_give_ports(g.xen, OURS, 8);
    CHECK(port_in(OURS, true) == 7 && port_in(OURS + 4, true) == 11 && port_in(OURS + 6, true) == 0xffffffff);
    CHECK(port_in(OURS - 4, true) == 0xffffffff && port_in(0xffff, true) == 0xffffffff);
    CHECK(port_in(OURS, false) == -1);
    /* The 8254's third counter and its gate, of the kernel's. */
    CHECK((port_in_sized(0x61, true, 1) & ~0x3f) == 0 && port_in_sized(0x42, true, 1) != 0xffffffff);
    CHECK(port_in_sized(0x61, false, 1) == -1 && port_in_sized(0x40, true, 1) == 0xffffffff && port_in_sized(0x42, true, 2) == 0xffffffff);
    const u32 level = 3, too_much = 4, none = 0;
    CHECK(!physdev(XEN_PHYSDEVOP_set_iopl, &level, 4) && port_in(OURS, false) == 7 && port_in(0x80, false) == -1);
    CHECK(physdev(XEN_PHYSDEVOP_set_iopl, &too_much, 4) == -XEN_EINVAL && port_in(OURS, false) == 7);
    CHECK(!physdev(XEN_PHYSDEVOP_set_iopl, &none, 4) && port_in(OURS, false) == -1);

    u8 *bits = pv_ptr(&g, bitmap, true);
    struct xen_physdev_iobitmap b = { .bitmap = bitmap, .nr_ports = OURS + 8 };
    memset(bits, 0xff, OURS / 8 + 1);
    CHECK(!physdev(XEN_PHYSDEVOP_set_iobitmap, &b, sizeof(b)) && port_in(OURS, false) == -1);
    bits[OURS / 8] = 0xf0;
    CHECK(port_in(OURS, false) == 7 && port_in(OURS + 4, false) == -1 && port_in(OURS + 2, false) == -1);
    bits[OURS / 8] = 0;
    CHECK(port_in(OURS + 4, false) == 11 && port_in(OURS + 6, false) == -1 && port_in(0xfffe, false) == -1);
    b.nr_ports = OURS + 7;
    CHECK(!physdev(XEN_PHYSDEVOP_set_iobitmap, &b, sizeof(b)) && port_in(OURS + 4, false) == -1);
    b.nr_ports = 65537;
    CHECK(physdev(XEN_PHYSDEVOP_set_iobitmap, &b, sizeof(b)) == -XEN_EINVAL && port_in(OURS, false) == 7);
    b = (struct xen_physdev_iobitmap){ .bitmap = 0x1000, .nr_ports = 65536 }; /* nothing is there */
    CHECK(!physdev(XEN_PHYSDEVOP_set_iobitmap, &b, sizeof(b)) && port_in(OURS, false) == -1);
    CHECK(pv_call(&g, XEN_physdev_op, XEN_PHYSDEVOP_set_iobitmap, 0x1000, 0, 0) == -XEN_EFAULT);
    CHECK(pv_call(&g, XEN_physdev_op, 99, DATA, 0, 0) == -XEN_ENOSYS);
    pvguest_free(&g);
}

static void test_store(void)
{
    pvguest_make(&g, "");
    CHECK(!strcmp(ASK(XS_READ, 0, "domid\0"), "1") && head.type == XS_READ);
    CHECK(!strcmp(ASK(XS_READ, 0, "nothing\0"), "ENOENT") && head.type == XS_ERROR);
    CHECK(!strcmp(ASK(XS_READ, 0, "domid"), "EINVAL")); /* no NUL */
    CHECK(!strcmp(ASK(XS_READ, 0, "a//b\0"), "EINVAL") && !strcmp(ASK(XS_READ, 0, "a b\0"), "EINVAL") && !strcmp(ASK(XS_READ, 0, "\0"), "EINVAL"));
    CHECK(!strcmp(ASK(XS_WRITE, 0, "domid\0" "2"), "EACCES") && !strcmp(ASK(XS_WRITE, 0, "/tool/x\0" "2"), "EACCES"));
    CHECK(!strcmp(ASK(XS_WRITE, 0, "data/a/b\0value"), "OK") && !strcmp(ASK(XS_READ, 0, "/local/domain/1/data/a/b\0"), "value"));
    CHECK(!memcmp(ASK(XS_DIRECTORY, 0, "data\0"), "a", 2) && head.len == 2);
    CHECK(!strcmp(ASK(XS_GET_PERMS, 0, "data/a\0"), "n1"));
    CHECK(!strcmp(ASK(XS_SET_PERMS, 0, "data/a\0n0\0"), "EPERM") && !strcmp(ASK(XS_SET_PERMS, 0, "data/a\0x1\0"), "EINVAL"));
    CHECK(!strcmp(ASK(XS_SET_PERMS, 0, "data/a\0n1\0r0\0"), "OK"));
    /* A watch fires once by itself, then for what is below it. */
    CHECK(!strcmp(ASK(XS_WATCH, 0, "data\0tok\0"), "OK"));
    CHECK(take() && head.type == XS_WATCH_EVENT && !strcmp(reply, "data") && !strcmp(reply + 5, "tok"));
    CHECK(!strcmp(ASK(XS_WATCH, 0, "data\0tok\0"), "EEXIST"));
    CHECK(pv_ask(&g, XS_WRITE, 0, "data/c\0x", 8) && head.type == XS_WATCH_EVENT && !strcmp(reply, "data/c") && take() && !strcmp(reply, "OK"));
    CHECK(!strcmp(ASK(XS_WRITE, 0, "attr/c\0x"), "OK") && !take());
    /* A transaction: seen inside, then everywhere; one that comes too late. */
    char id[16];
    snprintf(id, sizeof(id), "%s", ASK(XS_TRANSACTION_START, 0, "\0"));
    u32 tx = (u32)atoi(id);
    CHECK(tx && !strcmp(ASK(XS_WRITE, tx, "attr/t\0x"), "OK") && !strcmp(ASK(XS_READ, 0, "attr/t\0"), "ENOENT"));
    CHECK(!strcmp(ASK(XS_READ, tx, "attr/t\0"), "x") && !strcmp(ASK(XS_TRANSACTION_END, tx, "T\0"), "OK"));
    CHECK(!strcmp(ASK(XS_READ, 0, "attr/t\0"), "x") && !strcmp(ASK(XS_READ, tx, "attr/t\0"), "ENOENT"));
    snprintf(id, sizeof(id), "%s", ASK(XS_TRANSACTION_START, 0, "\0"));
    tx = (u32)atoi(id);
    CHECK(!strcmp(ASK(XS_RM, tx, "attr/t\0"), "OK") && !strcmp(ASK(XS_WRITE, 0, "attr/u\0x"), "OK"));
    CHECK(!strcmp(ASK(XS_TRANSACTION_END, tx, "T\0"), "EAGAIN") && !strcmp(ASK(XS_READ, 0, "attr/t\0"), "x"));
    CHECK(!strcmp(ASK(XS_RM, 0, "attr/t\0"), "OK") && !strcmp(ASK(XS_READ, 0, "attr/t\0"), "ENOENT"));
    CHECK(!strcmp(ASK(XS_UNWATCH, 0, "data\0tok\0"), "OK") && !strcmp(ASK(XS_UNWATCH, 0, "data\0tok\0"), "ENOENT"));
    CHECK(!strcmp(ASK(XS_GET_DOMAIN_PATH, 0, "1\0"), "/local/domain/1"));
    CHECK(!strcmp(ASK(XS_INTRODUCE, 0, "1\0"), "ENOSYS"));
    /* Not without end. */
    char path[64];
    unsigned n = 0;
    do {
        int len = snprintf(path, sizeof(path), "data/n%u%c", n++, 0);
        pv_ask(&g, XS_WRITE, 0, path, (size_t)len);
    } while (!strcmp(reply, "OK") && n < 5000);
    CHECK(!strcmp(reply, "ENOSPC") && n < 1001);
    /* A message that is too long loses its place: refused, and what follows is read again from the start. */
    struct xen_store_ring *r = (struct xen_store_ring *)((u8 *)g.xen->console - PAGE_SIZE);
    const struct xen_store_msg m = { XS_READ, 1, 0, 5000 };
    memcpy(r->req, &m, sizeof(m));
    r->req_cons = 0, r->req_prod = sizeof(m);
    evtchn(XEN_EVTCHNOP_send, &g.xen->store_port, 4);
    CHECK(take() && head.type == XS_ERROR && r->req_cons == r->req_prod);
    CHECK(!strcmp(ASK(XS_READ, 0, "domid\0"), "1"));
    pvguest_free(&g);
}

/* -- The loader -------------------------------------------------------------------------------------------------- */

static void test_loader(void)
{
    static const struct boot_e820 e820 = { 0, 4 << 20, BOOT_E820_RAM };
    struct backing b;
    struct ram ram;
    u8 image[4096];
    char err[BOOT_ERR_LEN];
    struct boot_xen k;

    if (backing_init(&b, 4 << 20))
        abort();
    ram_init(&ram);
    CHECK(!ram_add_slot(&ram, 0, 4 << 20, b.host, false));
    struct boot_input in = { .kernel_name = "kernel", .kernel = image, .e820 = &e820, .nr_e820 = 1 };
    size_t size = in.kernel_size = pv_image(image);
    CHECK(!xenimage_load(&ram, &in, &k, err) && k.entry == PV_AT(PV_KERNEL) && k.lo == PV_KERNEL && k.hi == PV_KERNEL + 0x10000);
    CHECK(k.has_p2m_base && k.p2m_base == PV_P2M && !memcmp((u8 *)b.host + PV_KERNEL, image, 2048));
    for (size_t n = 0; n < size; n += 13) {
        in.kernel_size = n;
        CHECK_MSG(xenimage_load(&ram, &in, &k, err) < 0 && strstr(err, "kernel"), "%zu bytes", n);
    }
    in.kernel_size = size;
    /* Any byte of headers and notes wrong: an error, or an entry that is inside. */
    for (unsigned i = 0; i < 700; i++)
        for (unsigned v = 0; v < 3; v++) {
            pv_image(image);
            image[i] ^= (u8)(v == 0 ? 0xff : v == 1 ? 0x80 : 1);
            if (!xenimage_load(&ram, &in, &k, err))
                CHECK(k.entry - k.virt_base >= k.lo && k.entry - k.virt_base < k.hi && k.hi <= 4 << 20);
        }
    ram_fini(&ram);
    backing_fini(&b);
}

int main(void)
{
    test_loader();
    test_start();
    test_mappings();
    test_tables();
    test_kernel_half();
    test_spaces();
    test_reservation();
    test_traps();
    test_iret();
    test_events();
    test_time();
    test_descriptors();
    test_misc();
    test_ports();
    test_store();
    return check_done("xen");
}
