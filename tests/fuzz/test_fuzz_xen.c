/*
 * test_fuzz_xen.c - a Xen PV guest that calls anything with anything, and writes anything into its rings and its memory: nothing
 * outside of its memory is touched, and counts of uses stay with their frames.
 *
 * Input: how many vCPUs (1 to 4), then records of { kind and who calls, number, four bytes of arguments }, each argument one
 * byte that picks a value of interest. A vCPU calls if it is up. Calls come one after another: pvguest.h says who holds which
 * lock when the engine is asked to wait for others, and what the others did meanwhile is a record of its own.
 */
#include "tests/fuzz/fuzz.h"
#include "tests/lib/pvguest.h"
#include <string.h>

#define DATA PV_AT(PV_DATA)
#define CONTEXT PV_AT(PV_DATA + 0x1000) /* two pages: a new vCPU's */
#define GDT ((PV_DATA >> PAGE_SHIFT) + 3)

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

/* What VCPUOP_initialise takes, but for one word of it. */
static void context(struct pvguest *g, u8 where, u64 what)
{
    struct xen_guest_context c = { .flags = XEN_VGCF_IN_KERNEL, .gdt_frames = { GDT }, .gdt_ents = 16, .kernel_sp = DATA,
                                   .event_callback = PV_AT(0x1000), .ctrlreg = { [3] = g->sregs.cr3 } };

    c.user_regs.rip = PV_AT(PV_KERNEL);
    c.user_regs.cs = 0x10;
    c.user_regs.ss = 0x18;
    ((u64 *)&c)[64 + where * 3 % (sizeof(c) / 8 - 64)] ^= where & 1 ? what : 0;
    for (u64 at = 0; at < sizeof(c); at += PAGE_SIZE) {
        void *to = pv_ptr(g, CONTEXT + at, true);
        if (to)
            memcpy(to, (u8 *)&c + at, MIN(sizeof(c) - at, PAGE_SIZE));
    }
}

/* Every use of a frame that we know of is counted: base tables, descriptor tables, vcpu_info. */
static void counts_hold(const struct pvguest *g)
{
    const struct xen *x = g->xen;

    for (unsigned i = 0; i < x->c.nr_cpus; i++) {
        const struct xen_cpu *c = &x->cpu[i];
        const u64 base[2] = { c->kernel_cr3 >> PAGE_SHIFT, c->user_cr3 >> PAGE_SHIFT };
        bug_on(c->up && !base[0]);
        for (unsigned k = 0; k < 2; k++)
            bug_on(base[k] && (base[k] >= x->nr_frames || !x->frame[base[k]].count || x->frame[base[k]].type != FRAME_L4));
        for (unsigned k = 0; k < c->nr_gdt; k++)
            bug_on(!x->frame[c->gdt_frame[k]].count || x->frame[c->gdt_frame[k]].type != FRAME_DESC);
        if (c->info_frame)
            bug_on(!x->frame[c->info_frame - 1].count || x->frame[c->info_frame - 1].type != FRAME_WRITABLE);
    }
    for (u64 i = 0; i < x->nr_frames; i++)
        bug_on(x->frame[i].pinned && (x->frame[i].type < FRAME_L1 || x->frame[i].type > FRAME_L4 || !x->frame[i].count));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct pvguest g;
    const struct vitro_outer *o;

    if (!size)
        return 0;
    const unsigned cpus = data[0] % 4 + 1;
    pvguest_make_cpus(&g, "", cpus);
    o = xen_outer(g.xen);
    u64 *gdt = pv_ptr(&g, PV_AT((u64)GDT << PAGE_SHIFT), true);
    memset(gdt, 0, PAGE_SIZE);
    gdt[2] = 0x00af9b000000ffffull;
    gdt[3] = 0x00cf93000000ffffull;
    pv_call(&g, XEN_update_va_mapping, PV_AT((u64)GDT << PAGE_SHIFT), (u64)GDT << PAGE_SHIFT | PTE_P, 0, 0);
    for (size_t at = 1; at + 8 <= size; at += 8) {
        const u8 *r = data + at;
        u64 a[4];
        for (unsigned i = 0; i < 4; i++)
            a[i] = value(&g, r[2 + i], r + 6);
        unsigned who = (r[0] >> 4) % cpus;
        g.caller = g.xen->cpu[who].up ? who : 0;
        if (!g.xen->cpu[g.caller].up) /* the last one went down: the guest has ended */
            break;
        if ((r[0] & 15) == 8 || (r[0] & 15) == 9) { /* vCPUs come and go */
            context(&g, r[5], a[3]);
            pv_call(&g, XEN_vcpu_op, r[1] % 5 == 4 ? r[1] & 15 : r[1] % 5, r[2] & 3, r[3] & 7 ? CONTEXT : a[2], 0);
            continue;
        }
        if ((r[0] & 15) == 10) { /* an event, perhaps for one that is down */
            struct vitro_frame f = g.frame;
            u64 gpr[16] = { [RSP] = PV_AT(PV_KERNEL + 0x10000) };
            f.gpr = gpr;
            f.kernel = true;
            f.cr3 = g.cr3 = g.xen->cpu[g.caller].kernel_cr3;
            o->event(o->opaque, g.caller, &f);
            continue;
        }
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
            if (o->write_fault(o->opaque, g.caller, a[0]))
                xen_mmio_write(g.xen, g.caller, a[0] & ~7ull, &a[1], 8);
            break;
        default:
            pv_call(&g, r[1] & 63, a[0], a[1], a[2], a[3]);
        }
        g.nr_said = 0;
    }
    counts_hold(&g);
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
