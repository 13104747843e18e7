/*
 * test_fuzz_xen.c - a Xen PV guest that calls anything with anything, and writes anything into its rings and its memory: nothing
 * outside of its memory is touched, and counts of uses stay with their frames.
 *
 * Input: records of { number, kind, four bytes of arguments }, each argument one byte that picks a value of interest.
 */
#include "tests/fuzz/fuzz.h"
#include "tests/lib/pvguest.h"
#include <string.h>

#define DATA PV_AT(PV_DATA)

static u64 value(const struct pvguest *g, u8 b, const u8 *more)
{
    u64 pfn = (PV_DATA >> PAGE_SHIFT) + (b & 7);

    switch (b >> 3 & 15) {
    case 0: return b & 7;
    case 1: return DATA + (b & 7) * 8;
    case 2: return pfn;
    case 3: return pfn << PAGE_SHIFT | PTE_P;
    case 4: return pfn << PAGE_SHIFT | PTE_P | PTE_W;
    case 5: return (pfn << PAGE_SHIFT) + more[0] * 8ull;
    case 6: return PV_AT(pfn << PAGE_SHIFT);
    case 7: return g->sregs.cr3 + (b & 7) * PAGE_SIZE;
    case 8: return (g->sregs.cr3 >> PAGE_SHIFT) + (b & 7);
    case 9: return g->xen->own_gpa + (u64)(b & 7) * 32 * PAGE_SIZE;
    case 10: return ~0ull >> (b & 7) * 8;
    case 11: return XEN_DOMID_SELF;
    case 12: return 1ull << (more[0] & 63);
    case 13: return g->sregs.cr3 + (b & 7) * PAGE_SIZE + more[0] * 8ull;
    case 14: return more[0];
    default: return (u64)more[0] << (b & 7) * 8;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct pvguest g;
    const struct vitro_outer *o;

    pvguest_make(&g, "");
    o = xen_outer(g.xen);
    for (size_t at = 0; at + 8 <= size; at += 8) {
        const u8 *r = data + at;
        u64 a[4];
        for (unsigned i = 0; i < 4; i++)
            a[i] = value(&g, r[2 + i], r + 6);
        switch (r[0] & 7) {
        case 0: case 1: { /* something in memory for what follows */
            u64 *p = pv_ptr(&g, DATA + (r[1] & 31) * 8, true);
            if (p)
                *p = a[0];
            break;
        }
        case 2: { /* one entry, one operation: the most interesting structures */
            const struct xen_mmu_update u = { a[0], a[1] };
            if (pv_ptr(&g, DATA, true)) {
                memcpy(pv_ptr(&g, DATA, true), &u, sizeof(u));
                pv_call(&g, XEN_mmu_update, DATA, 1, 0, XEN_DOMID_SELF);
            }
            break;
        }
        case 3: {
            const struct xen_mmuext_op op = { r[1] % 20, 0, a[0], a[1] };
            if (pv_ptr(&g, DATA, true)) {
                memcpy(pv_ptr(&g, DATA, true), &op, sizeof(op));
                pv_call(&g, XEN_mmuext_op, DATA, 1, 0, XEN_DOMID_SELF);
            }
            break;
        }
        case 4: { /* rings */
            u8 *ring = (u8 *)(r[1] & 1 ? (void *)g.xen->console : (u8 *)g.xen->console - PAGE_SIZE);
            unsigned n = r[2] % 32;
            for (unsigned i = 0; i < n && at + 8 + i < size; i++)
                ring[(r[3] * 16u + i) % PAGE_SIZE] = data[at + 8 + i];
            if (r[1] & 2)
                *(u32 *)(ring + (r[1] & 1 ? 3072 : 2048) + (r[1] >> 2 & 3) * 4) += r[4] & 1 ? r[5] : (u32)a[3];
            u32 port = r[1] & 1 ? g.xen->console_port : g.xen->store_port;
            if (pv_ptr(&g, DATA, true)) {
                memcpy(pv_ptr(&g, DATA, true), &port, sizeof(port));
                pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_send, DATA, 0, 0);
            }
            break;
        }
        case 5:
            if (o->write_fault(o->opaque, 0, a[0]))
                xen_mmio_write(g.xen, 0, a[0] & ~7ull, &a[1], 8);
            break;
        default:
            pv_call(&g, r[1] & 63, a[0], a[1], a[2], a[3]);
        }
        g.nr_said = 0;
    }
    /* A page table has no writable mapping: what is typed as one is mapped read-only wherever the kernel's tables map it. */
    for (u64 i = 0; i < 16; i++) {
        u64 pfn = (PV_KERNEL >> PAGE_SHIFT) + i;
        g.cr3 = g.xen->cpu[0].kernel_cr3;
        u8 *p = pv_ptr(&g, PV_AT(pfn << PAGE_SHIFT), true);
        u64 mfn = p ? (u64)(p - (u8 *)g.ram.host) >> PAGE_SHIFT : ~0ull;
        if (mfn < g.xen->nr_frames)
            bug_on(!g.xen->frame[mfn].count || g.xen->frame[mfn].type != FRAME_WRITABLE);
    }
    pvguest_free(&g);
    return 0;
}

FUZZ_MAIN("fuzz/xen", 1500, 1600)
