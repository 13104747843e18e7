/* xen.c - one PV guest: made, taken apart, and what it finds when its kernel is entered. Layout of our own piece: inner.h. */
#include "paravirt/xen/io.h"
#include "machine/machine.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LARGE (2ull << 20)
#define FIRST_TABLE FRAMES_SHARED /* of our own frames: L3 of the M2P, its L2s; L3, L2, L1 of the GDT area; GDT pages */

static int fail(char *err, int r, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(err, XEN_ERR_LEN, fmt, ap);
    va_end(ap);
    return r;
}

/* -- Our own piece of memory --------------------------------------------------------------------------------- */

/* Tables of ours are read-only to the walker too: A and D are set once and for all. */
#define LINK (PTE_P | PTE_A)
#define LEAF (PTE_P | PTE_A | PTE_D)

static u64 own_pa(const struct xen *x, unsigned frame) { return x->own_gpa + ((u64)frame << PAGE_SHIFT); }
static u64 *own_page(const struct xen *x, unsigned frame) { return (u64 *)(x->own + ((u64)frame << PAGE_SHIFT)); }

static u64 descriptor(u32 attr)
{
    return 0x000f00000000ffffull | (u64)(attr & 0xff) << 40 | (u64)(attr & 0xf000) << 40;
}

static void own_tables(struct xen *x, u64 m2p_off, u64 m2p_size)
{
    const u32 dpl3 = 3u << SEG_DPL_SHIFT, common = SEG_P | SEG_S | SEG_A | SEG_G | dpl3;
    unsigned f = FIRST_TABLE, l3 = f++;

    x->hole[0] = own_pa(x, l3) | LINK;
    /*
     * Twice: where the interface has it, and where the guest is told that it is. Linux looks from an entry of this table to the
     * same one of its p2m list, which it puts at a multiple of 512 GiB: both would always want the same entry of the TLB.
     */
    x->m2p_at = XEN_M2P_START + ((m2p_size + (1ull << 30) - 1) & ~((1ull << 30) - 1)) + (16ull << 20);
    for (u64 at = 0; at < 2 * m2p_size; at += LARGE) {
        u64 off = at % m2p_size, va = at < m2p_size ? at : x->m2p_at - XEN_M2P_START + off;
        unsigned slot = (unsigned)(va >> 30);
        if (!own_page(x, l3)[slot])
            own_page(x, l3)[slot] = own_pa(x, f++) | LINK;
        own_page(x, (unsigned)((own_page(x, l3)[slot] & PAGE_MASK) - x->own_gpa) >> PAGE_SHIFT)[va >> 21 & 511] =
            (x->own_gpa + m2p_off + off) | LEAF | PTE_PS | PTE_NX;
    }
    unsigned g3 = f++, g2 = f++, g1 = f++, gdt = f++, none = f++;
    x->hole[1] = own_pa(x, g3) | LINK;
    own_page(x, g3)[0] = own_pa(x, g2) | LINK;
    own_page(x, g2)[0] = x->gdt_l1 = own_pa(x, g1) | LINK;
    x->gdt_own = own_pa(x, gdt) >> PAGE_SHIFT;
    x->gdt_none = own_pa(x, none) | LEAF | PTE_NX;
    for (unsigned i = 0; i < x->c.nr_cpus; i++) {
        u64 *l1 = own_page(x, g1) + i * (GDT_AREA_STRIDE >> PAGE_SHIFT);
        for (unsigned k = 0; k < XEN_GDT_RESERVED_PAGE; k++)
            l1[k] = x->gdt_none;
        l1[XEN_GDT_RESERVED_PAGE] = own_pa(x, gdt) | LEAF | PTE_NX;
    }
    own_page(x, gdt)[(XEN_FLAT_CS64 & 0xfff) >> 3] = descriptor(common | SEG_CODE | SEG_R | SEG_L);
    own_page(x, gdt)[(XEN_FLAT_CS32 & 0xfff) >> 3] = descriptor(common | SEG_CODE | SEG_R | SEG_DB);
    own_page(x, gdt)[(XEN_FLAT_DS & 0xfff) >> 3] = descriptor(common | SEG_W | SEG_DB);
    bug_on(((u64)f << PAGE_SHIFT) > m2p_off);
}

static u64 frames_size(const struct xen *x) { return (x->nr_frames * sizeof(x->frame[0]) + LARGE - 1) & ~(LARGE - 1); }

/* Zeroed memory that is looked up at random: of large pages of the host's, where it has any. NULL: no memory. */
static void *tables_alloc(u64 size)
{
    u64 room = size + LARGE;
    u8 *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    u64 before = -(u64)p & (LARGE - 1); /* less than LARGE */
    if (before)
        munmap(p, before);
    munmap(p + before + size, LARGE - before);
    madvise(p + before, size, MADV_HUGEPAGE);
    return p + before;
}

static int own_make(struct xen *x)
{
    u64 m2p_size = (x->nr_frames * 8 + LARGE - 1) & ~(LARGE - 1), m2p_off = LARGE;

    x->own_gpa = (x->c.size + LARGE - 1) & ~(LARGE - 1);
    x->own_size = m2p_off + m2p_size;
    x->own = tables_alloc(x->own_size);
    if (!x->own)
        return -ENOMEM;
    x->shared = (struct xen_shared_info *)x->own;
    x->m2p = (u64 *)(x->own + m2p_off);
    for (u64 i = 0; i < m2p_size / 8; i++)
        x->m2p[i] = i < x->nr_frames ? i : ~0ull;
    own_tables(x, m2p_off, m2p_size);
    return 0;
}

void xen_own_memory(struct xen *x, struct xen_memory m[2])
{
    const u64 shared = FRAMES_SHARED * PAGE_SIZE;

    m[0] = (struct xen_memory){ x->own_gpa, shared, x->own, false };
    m[1] = (struct xen_memory){ x->own_gpa + shared, x->own_size - shared, x->own + shared, true };
}

/* -- Life -------------------------------------------------------------------------------------------------------- */

int xen_create(const struct xen_config *config, struct xen **out)
{
    struct xen *x = calloc(1, sizeof(*x) + config->nr_cpus * sizeof(x->cpu[0]));
    int r = -ENOMEM;

    if (!x)
        return r;
    x->c = *config;
    x->nr_frames = x->gone_from = config->size >> PAGE_SHIFT;
    pthread_mutex_init(&x->lock, NULL);
    pthread_mutex_init(&x->mmu, NULL);
    x->frame = tables_alloc(frames_size(x));
    if (!x->frame)
        goto fail;
    r = own_make(x);
    if (r)
        goto fail;
    r = -ENOMEM;
    x->store = store_create(x);
    if (!x->store || grants_create(x) || bus_create(x))
        goto fail;
    time_init(x);
    time_wall(x);
    for (unsigned i = 0; i < config->nr_cpus; i++) {
        struct xen_cpu *c = &x->cpu[i];
        c->xen = x;
        c->index = i;
        c->info = &x->shared->vcpu_info[i];
        c->info->upcall_mask = 1;
        c->stays = 1; /* no port has had a bell in this one */
        r = sched_init(c);
        if (r)
            goto fail;
    }
    r = ports_init(x);
    if (r)
        goto fail;
    x->outer.opaque = x;
    cpu_table(&x->outer);
    *out = x;
    return 0;
fail:
    xen_destroy(x);
    return r;
}

void xen_destroy(struct xen *x)
{
    if (!x)
        return;
    bus_destroy(x);
    store_destroy(x->store);
    grants_destroy(x);
    if (x->own)
        munmap(x->own, x->own_size);
    if (x->frame)
        munmap(x->frame, frames_size(x));
    pthread_mutex_destroy(&x->lock);
    pthread_mutex_destroy(&x->mmu);
    free(x);
}

const struct vitro_outer *xen_outer(struct xen *x)
{
    return &x->outer;
}

void xen_attach(struct xen *x, unsigned index, struct vitro_vcpu *vcpu)
{
    x->cpu[index].vcpu = vcpu;
    time_publish(&x->cpu[index]);
}

/* -- A new guest ------------------------------------------------------------------------------------------------------- */

/*
 * Frames behind the kernel, in this order. The first group is mapped behind the kernel at virt_base, up to a multiple of
 * 4 MiB with at least 512 KiB to spare; the list (if it has an address of its own) and the initrd (if the kernel takes
 * frame numbers) are not.
 */
struct plan {
    u64 start, store, console, tables, nr_tables, stack, mapped; /* mapped: frames from 0 on */
    u64 p2m, nr_p2m, initrd, nr_initrd, end;
};

static u64 up(u64 a, u64 by) { return (a + by - 1) / by; }

static void plan_make(const struct xen *x, const struct xen_guest *g, struct plan *p)
{
    u64 at = up(g->hi, PAGE_SIZE);

    *p = (struct plan){ .nr_p2m = up(x->nr_frames * 8, PAGE_SIZE), .nr_initrd = up(g->initrd_size, PAGE_SIZE) };
    if (!g->mod_start_pfn) {
        p->initrd = at;
        at += p->nr_initrd;
    }
    if (!g->has_p2m_base) {
        p->p2m = at;
        at += p->nr_p2m;
    }
    p->start = at++;
    p->store = at++;
    p->console = at++;
    p->tables = at;
    u64 own = g->has_p2m_base ? up(p->nr_p2m, 512) + up(p->nr_p2m, 512 * 512) + 1 : 0;
    for (p->nr_tables = 0, p->mapped = at;;) {
        u64 l1 = up(p->mapped, 512), need = own + l1 + up(l1, 512) + 2;
        u64 mapped = up(at + need + 1 + 128, 1024) * 1024;
        if (need <= p->nr_tables && mapped <= p->mapped)
            break;
        p->nr_tables = MAX(need, p->nr_tables);
        p->mapped = MAX(mapped, p->mapped);
    }
    p->stack = at + p->nr_tables;
    at = p->mapped;
    if (g->has_p2m_base) {
        p->p2m = at;
        at += p->nr_p2m;
    }
    if (g->mod_start_pfn) {
        p->initrd = at;
        at += p->nr_initrd;
    }
    p->end = at;
}

#define TABLE (PTE_P | PTE_W | PTE_U | PTE_A)

/* Map one page in tables that are taken from [*next, ...) as they are needed. */
static void map_page(struct xen *x, u64 root, u64 *next, u64 va, u64 mfn, u64 flags)
{
    u64 t = root;

    for (unsigned level = 4; level > 1; level--) {
        u64 *e = xen_table(x, t) + (va >> (12 + 9 * (level - 1)) & 511);
        if (!*e)
            *e = (*next)++ << PAGE_SHIFT | TABLE;
        t = PTE_MFN(*e);
    }
    xen_table(x, t)[va >> PAGE_SHIFT & 511] = mfn << PAGE_SHIFT | flags;
}

static int tables_make(struct xen *x, const struct xen_guest *g, const struct plan *p, char *err)
{
    u64 next = p->tables + 1;

    memset(xen_table(x, p->tables), 0, p->nr_tables << PAGE_SHIFT);
    for (u64 i = 0; i < p->mapped; i++) {
        bool table = i - p->tables < p->nr_tables;
        map_page(x, p->tables, &next, g->virt_base + (i << PAGE_SHIFT), i,
                 PTE_P | PTE_A | (table ? 0 : PTE_W | PTE_D));
    }
    for (u64 i = 0; g->has_p2m_base && i < p->nr_p2m; i++)
        map_page(x, p->tables, &next, g->p2m_base + (i << PAGE_SHIFT), p->p2m + i, PTE_P | PTE_A | PTE_W | PTE_D);
    bug_on(next > p->tables + p->nr_tables);
    if (frame_get(x, p->tables, FRAME_L4) || frame_get(x, p->tables, FRAME_L4))
        return fail(err, -EINVAL, "the kernel's address space cannot be made");
    x->frame[p->tables].pinned = 1; /* one use is the pin, the other the base pointer */
    x->cpu[0].kernel_cr3 = p->tables << PAGE_SHIFT;
    mmu_kernel_half(x, NULL, p->tables);
    return 0;
}

/* push rcx; push r11; mov eax, n; syscall; pop r11; pop rcx; ret. For iret: rax is pushed too, and nothing comes back. */
static void hypercall_page(u8 *page)
{
    for (u32 n = 0; n < PAGE_SIZE / 32; n++) {
        u8 *at = page + n * 32;
        memset(at, 0xcc, 32);
        if (n == XEN_iret) {
            memcpy(at, "\x51\x41\x53\x50\xb8\0\0\0\0\x0f\x05", 11);
            memcpy(at + 5, &n, 4);
        } else {
            memcpy(at, "\x51\x41\x53\xb8\0\0\0\0\x0f\x05\x41\x5b\x59\xc3", 14);
            memcpy(at + 4, &n, 4);
        }
    }
}

static void enter(struct xen *x, const struct xen_guest *g, const struct plan *p)
{
    struct xen_cpu *c = &x->cpu[0];
    const u32 common = SEG_P | SEG_S | SEG_A | SEG_G;
    struct vitro_sregs s;
    struct vitro_regs r = { .rip = g->entry, .rflags = EFL_IF | EFL_R1 };

    c->initialised = c->started = c->up = true;
    vcpu_sregs(c, &s);
    s.cs = (struct vitro_segment){ .limit = ~0u, .attr = common | SEG_CODE | SEG_R | SEG_L | 3u << SEG_DPL_SHIFT,
                                   .selector = XEN_FLAT_CS64 };
    /* The level the engine is to run at is that of SS (struct vitro_outer). */
    s.ss = (struct vitro_segment){ .limit = ~0u, .attr = common | SEG_W | SEG_DB | 1u << SEG_DPL_SHIFT,
                                   .selector = XEN_FLAT_DS };
    s.ds = s.es = s.ss;
    s.ds.attr = s.es.attr = s.ss.attr | 3u << SEG_DPL_SHIFT;
    s.cr3 = c->kernel_cr3;
    vitro_vcpu_set_sregs(c->vcpu, &s);
    r.gpr[RSI] = g->virt_base + (p->start << PAGE_SHIFT);
    r.gpr[RSP] = g->virt_base + ((p->stack + 1) << PAGE_SHIFT);
    vitro_vcpu_set_regs(c->vcpu, &r);
}

int xen_build(struct xen *x, const struct xen_guest *g, char *err)
{
    struct plan p;

    plan_make(x, g, &p);
    if (p.end > x->nr_frames)
        return fail(err, -ENOMEM, "too little memory: kernel, initrd and tables need %llu MiB; give the guest more with --mem",
                    (unsigned long long)up(p.end, 256));
    u64 last = g->virt_base + (p.mapped << PAGE_SHIFT) - 1, first_slot = g->virt_base >> 39 & 511, last_slot = last >> 39 & 511;
    u64 p2m_slot = g->p2m_base >> 39 & 511;
    if (last < g->virt_base || (first_slot <= XEN_HOLE_LAST && last_slot >= XEN_HOLE_FIRST) || first_slot != last_slot ||
        (g->has_p2m_base && (p2m_slot - XEN_HOLE_FIRST <= XEN_HOLE_LAST - XEN_HOLE_FIRST || p2m_slot == first_slot ||
                             (g->p2m_base >> 30 & 511) + up(p.nr_p2m, 1 << 18) > 512)))
        return fail(err, -EINVAL, "the kernel asks for addresses that are the hypervisor's, or run into each other");
    if (strlen(g->cmdline ? g->cmdline : "") >= sizeof(((struct xen_start_info *)0)->cmd_line))
        return fail(err, -E2BIG, "the kernel's command line is too long for a Xen PV guest: at most 1023 bytes");

    for (u64 i = 0; i < x->nr_frames; i++)
        xen_table(x, p.p2m)[i] = i; /* the list is contiguous */
    if (g->initrd_size)
        memcpy(xen_table(x, p.initrd), g->initrd, g->initrd_size);
    memset(xen_table(x, p.store), 0, 2 * PAGE_SIZE);
    x->console = (struct xen_console_ring *)xen_table(x, p.console);
    x->store_port = port_open(x);
    x->console_port = port_open(x);
    store_attach(x->store, (struct xen_store_ring *)xen_table(x, p.store));
    if (g->hypercall_page)
        hypercall_page(x->c.host + (g->hypercall_page - g->virt_base));

    struct xen_start_info *s = (struct xen_start_info *)xen_table(x, p.start);
    memset(s, 0, PAGE_SIZE);
    strcpy(s->magic, "xen-3.0-x86_64");
    s->nr_pages = x->nr_frames;
    s->shared_info = x->own_gpa;
    s->flags = g->mod_start_pfn && g->initrd_size ? XEN_SIF_MOD_START_PFN : 0;
    s->store_mfn = p.store;
    s->store_evtchn = x->store_port;
    s->console_mfn = p.console;
    s->console_evtchn = x->console_port;
    s->pt_base = g->virt_base + (p.tables << PAGE_SHIFT);
    s->nr_pt_frames = p.nr_tables;
    s->mfn_list = g->has_p2m_base ? g->p2m_base : g->virt_base + (p.p2m << PAGE_SHIFT);
    s->first_p2m_pfn = g->has_p2m_base ? p.p2m : 0;
    s->nr_p2m_frames = g->has_p2m_base ? p.nr_p2m : 0;
    if (g->initrd_size) {
        s->mod_start = g->mod_start_pfn ? p.initrd : g->virt_base + (p.initrd << PAGE_SHIFT);
        s->mod_len = g->initrd_size;
    }
    strcpy(s->cmd_line, g->cmdline ? g->cmdline : "");

    int r = tables_make(x, g, &p, err);
    if (!r)
        enter(x, g, &p);
    return r;
}
