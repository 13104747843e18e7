/*
 * pvguest.h - a Xen PV guest without an engine, for tests of its interface: memory, a kernel that is nothing but its ELF notes,
 * and hypercalls made from C. What the interface asks of the engine is answered here: guest addresses are looked up in
 * the guest's own page tables. One at a time. This defines functions: for one file of a test, which is then
 * linked without the engine.
 */
#pragma once
#include "boot/boot.h"
#include "machine/machine.h"
#include "mem/backing.h"
#include "paravirt/xen/inner.h"
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PV_SIZE (16ull << 20)
#define PV_BASE 0xffffffff80000000ull
#define PV_KERNEL 0x100000ull   /* pseudo-physical; 16 pages that the test may use */
#define PV_P2M 0x8000000000ull
#define PV_AT(pa) (PV_BASE + (pa))
#define PV_DATA (PV_KERNEL + 0x2000)

struct pvguest {
    struct backing ram;
    struct ram view;
    struct machine *machine;
    struct xen *xen;
    char vcpu[64];              /* their addresses: the engine's vCPUs */
    struct vitro_sregs sregs;   /* of the first; others have none */
    struct vitro_regs regs;
    u64 gpr[16];
    struct vitro_frame frame;   /* as the last call left it */
    enum vitro_crossing crossing;
    u64 cr3, now_ns;
    unsigned kicks, flushes, kernel_flushes, refused, again;
    const u64 *before;          /* what a store into a page table replaces, if its instruction looked */
    bool differs, kept;         /* kept: the last flush or switch found that what user code knew is still true */
    unsigned descriptors;       /* how often they changed */
    unsigned space;             /* the number of user code's space */
    unsigned caller;            /* which vCPU calls */
    u64 flushed, unwritten;     /* other vCPUs; the last page that became a table */
    u64 pages_flushed;          /* of theirs, where it was not all */
    u64 msr_gs_base;            /* KERNEL_GS_BASE */
    unsigned started;           /* vCPUs that were: bits */
    struct vitro_sregs start_sregs;
    struct vitro_regs start_regs;
    int shutdown;               /* -1: none */
    char said[4096], failed[200];
    size_t nr_said;
};

static struct pvguest *guest; /* who the engine's functions below are for */

/* What waits for other vCPUs must let stores into page tables end. */
static void must_not_hold(struct pvguest *g)
{
    if (pthread_mutex_trylock(&g->xen->mmu)) {
        fprintf(stderr, "pvguest: waits with the lock of page tables held\n");
        abort();
    }
    pthread_mutex_unlock(&g->xen->mmu);
}

/* -- The engine -------------------------------------------------------------------------------------------- */

/* pv_ptr - the host's pointer to a linear address; NULL: not mapped, or (write) not writable. */
static void *pv_ptr(struct pvguest *g, u64 la, bool write)
{
    u64 t = g->cr3;

    for (unsigned level = 4; level; level--) {
        u64 *table = t + PAGE_SIZE <= g->ram.size ? (u64 *)((u8 *)g->ram.host + t) : NULL;
        if (!table && t - g->xen->own_gpa < g->xen->own_size)
            table = (u64 *)(g->xen->own + (t - g->xen->own_gpa));
        u64 e = table ? table[la >> (12 + 9 * (level - 1)) & 511] : 0;
        if (!(e & PTE_P) || (write && !(e & PTE_W)))
            return NULL;
        t = PTE_MFN(e) << PAGE_SHIFT;
        if (level == 2 && (e & PTE_PS)) {
            t += la & 0x1ff000;
            break;
        }
    }
    if (t < g->ram.size)
        return (u8 *)g->ram.host + t + (la & 4095);
    return t - g->xen->own_gpa < g->xen->own_size ? g->xen->own + (t - g->xen->own_gpa) + (la & 4095) : NULL;
}

static int copy(u64 la, u8 *buf, size_t len, bool out)
{
    for (size_t at = 0; at < len;) {
        size_t n = MIN(len - at, PAGE_SIZE - ((la + at) & 4095));
        u8 *p = pv_ptr(guest, la + at, out);
        if (!p)
            return -EFAULT;
        memcpy(out ? p : buf + at, out ? buf + at : p, n);
        at += n;
    }
    return 0;
}
int vitro_vcpu_copy_in(struct vitro_vcpu *v, uint64_t la, void *buf, size_t len)
{
    (void)v;
    return copy(la, buf, len, false);
}
int vitro_vcpu_copy_out(struct vitro_vcpu *v, uint64_t la, const void *buf, size_t len)
{
    (void)v;
    return copy(la, (u8 *)buf, len, true);
}
const void *vitro_vcpu_peek(struct vitro_vcpu *v, uint64_t la, size_t len)
{
    (void)v;
    return (la & 4095) + len > PAGE_SIZE ? NULL : pv_ptr(guest, la, false);
}
void *vitro_vcpu_poke_begin(struct vitro_vcpu *v, uint64_t la, size_t len)
{
    (void)v;
    return (la & 4095) + len > PAGE_SIZE ? NULL : pv_ptr(guest, la, true);
}
void vitro_vcpu_poke_end(struct vitro_vcpu *v) { (void)v; }
void vitro_vcpu_fail(struct vitro_vcpu *v, const char *fmt, ...)
{
    va_list ap;

    (void)v;
    va_start(ap, fmt);
    vsnprintf(guest->failed, sizeof(guest->failed), fmt, ap);
    va_end(ap);
}
void vitro_vcpu_cpuid(struct vitro_vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
    (void)v, (void)leaf, (void)subleaf;
    memset(r, 0xff, 16);
}
int vitro_vcpu_rdmsr(struct vitro_vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)v;
    *value = msr;
    return 0;
}
int vitro_vcpu_wrmsr(struct vitro_vcpu *v, uint32_t msr, uint64_t value)
{
    (void)v;
    if (msr == MSR_KERNEL_GS_BASE)
        guest->msr_gs_base = value;
    return 0;
}
int vitro_vcpu_write_cr(struct vitro_vcpu *v, unsigned cr, uint64_t value) { (void)v, (void)cr, (void)value; return 0; }
int vitro_vcpu_write_dr(struct vitro_vcpu *v, unsigned dr, uint64_t value) { (void)v, (void)dr, (void)value; return 0; }
uint64_t vitro_vcpu_read_dr(struct vitro_vcpu *v, unsigned dr) { (void)v; return dr; }
int vitro_vcpu_load_gs(struct vitro_vcpu *v, uint16_t sel) { (void)v; return sel == XEN_FLAT_DS ? 0 : -EINVAL; }
void vitro_vcpu_descriptors_changed(struct vitro_vcpu *v) { (void)v; guest->descriptors++; }
void vitro_vcpu_set_ldt(struct vitro_vcpu *v, uint64_t base, uint32_t bytes) { (void)v, (void)base, (void)bytes; }
void vitro_vcpu_kernel_space(struct vitro_vcpu *v, uint64_t cr3) { (void)v; guest->cr3 = cr3; }
void vitro_vcpu_user_space(struct vitro_vcpu *v, uint16_t number, bool keep)
{
    (void)v;
    guest->space = number;
    guest->kept = keep;
}
void vitro_vcpu_use_cr3(struct vitro_vcpu *v, uint64_t cr3) { (void)v; guest->cr3 = cr3; }
void vitro_vcpu_flush_all(struct vitro_vcpu *v)
{
    (void)v;
    guest->flushes++;
    guest->kernel_flushes++;
}
void vitro_vcpu_flush_user(struct vitro_vcpu *v, bool keep)
{
    (void)v;
    guest->flushes++;
    guest->kept = keep;
}
void vitro_vcpu_kernel_differs(struct vitro_vcpu *v) { (void)v; guest->differs = true; }
void vitro_vcpu_vectors_away(struct vitro_vcpu *v) { (void)v; }
void vitro_vcpu_vectors_back(struct vitro_vcpu *v) { (void)v; }
void vitro_vcpu_flush_pages(struct vitro_vcpu *v, unsigned pcid, uint64_t va, uint64_t pages, bool global)
{
    (void)v, (void)pcid, (void)va, (void)pages, (void)global;
    guest->flushes++;
}
void vitro_vcpu_flush_mask(struct vitro_vcpu *v, uint64_t which, const struct vitro_flush *list, unsigned nr)
{
    (void)v;
    guest->pages_flushed += nr ? list->pages : 0;
    must_not_hold(guest);
    guest->flushed |= which;
}
void vitro_vcpu_wait_begin(struct vitro_vcpu *v) { (void)v; }
void vitro_vcpu_wait_end(struct vitro_vcpu *v) { (void)v; }
void vitro_vcpu_flush_others(struct vitro_vcpu *v, const struct vitro_flush *list, unsigned nr) { (void)v, (void)list, (void)nr; }
void vitro_vcpu_data_selectors(const struct vitro_vcpu *v, uint64_t sel[4])
{
    (void)v;
    for (unsigned i = 0; i < 4; i++)
        sel[i] = 0x100 + i;
}
void vitro_vcpu_unwrite_page(struct vitro_vcpu *v, uint64_t gpa)
{
    (void)v;
    must_not_hold(guest);
    guest->unwritten = gpa;
}
void vitro_vcpu_refuse_store(struct vitro_vcpu *v) { (void)v; guest->refused++; }
void vitro_vcpu_store_again(struct vitro_vcpu *v) { (void)v; guest->again++; }
const void *vitro_vcpu_store_before(const struct vitro_vcpu *v) { (void)v; return guest->before; }
uint64_t vitro_vcpu_tsc_offset(const struct vitro_vcpu *v) { (void)v; return 0; }
void vitro_vcpu_get_sregs(struct vitro_vcpu *v, struct vitro_sregs *s)
{
    *s = v == (struct vitro_vcpu *)guest->vcpu ? guest->sregs : (struct vitro_sregs){ 0 };
}
void vitro_vcpu_set_sregs(struct vitro_vcpu *v, const struct vitro_sregs *s) { (void)v; guest->sregs = *s; }
void vitro_vcpu_set_regs(struct vitro_vcpu *v, const struct vitro_regs *r) { (void)v; guest->regs = *r; }

/* -- The world ------------------------------------------------------------------------------------------------ */

static u64 clock_source(void *opaque) { return ((struct pvguest *)opaque)->now_ns; }
static void board_kick(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; }
static void request(void *opaque, enum machine_request what, int status) { (void)opaque, (void)what, (void)status; }
static u64 tsc_now(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; return 0; }
static void kick(void *opaque, unsigned vcpu, unsigned why)
{
    (void)vcpu, (void)why;
    ((struct pvguest *)opaque)->kicks++;
}
static void console(void *opaque, const u8 *bytes, size_t len)
{
    struct pvguest *g = opaque;
    size_t n = MIN(len, sizeof(g->said) - 1 - g->nr_said);

    memcpy(g->said + g->nr_said, bytes, n);
    g->nr_said += n;
}
static bool start(void *opaque, unsigned vcpu, const struct vitro_sregs *sregs, const struct vitro_regs *regs)
{
    struct pvguest *g = opaque;

    g->started |= 1u << vcpu;
    g->start_sregs = *sregs;
    g->start_regs = *regs;
    return true;
}
static void shut_down(void *opaque, unsigned reason) { ((struct pvguest *)opaque)->shutdown = (int)reason; }

static u8 *note(u8 *at, u32 type, const void *desc, u32 len)
{
    const Elf64_Nhdr n = { 4, len, type };

    memcpy(at, &n, sizeof(n));
    memcpy(at + sizeof(n), "Xen", 4);
    memcpy(at + sizeof(n) + 4, desc, len);
    return at + sizeof(n) + 4 + ((len + 3) & ~3u);
}

/* pv_image - the kernel, at most 4096 bytes; its size. */
static inline size_t pv_image(u8 *to)
{
    const u64 base = PV_BASE, entry = PV_AT(PV_KERNEL), page = PV_AT(PV_KERNEL + 0x1000), p2m = PV_P2M;
    u8 *at = to + 512;

    memset(to, 0, 4096);
    at = note(at, XEN_NOTE_XEN_VERSION, "xen-3.0", 8);
    at = note(at, XEN_NOTE_VIRT_BASE, &base, 8);
    at = note(at, XEN_NOTE_ENTRY, &entry, 8);
    at = note(at, XEN_NOTE_HYPERCALL_PAGE, &page, 8);
    at = note(at, XEN_NOTE_INIT_P2M, &p2m, 8);
    const Elf64_Phdr ph[2] = {
        { .p_type = PT_LOAD, .p_offset = 0, .p_paddr = PV_KERNEL, .p_filesz = 2048, .p_memsz = 0x10000, .p_align = 4096 },
        { .p_type = PT_NOTE, .p_offset = 512, .p_filesz = (u64)(at - to - 512), .p_memsz = 0, .p_align = 4 },
    };
    const Elf64_Ehdr h = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT }, .e_type = ET_EXEC,
                           .e_machine = EM_X86_64, .e_version = EV_CURRENT, .e_phoff = sizeof(h), .e_ehsize = sizeof(h),
                           .e_phentsize = sizeof(ph[0]), .e_phnum = 2 };
    memcpy(to, &h, sizeof(h));
    memcpy(to + sizeof(h), ph, sizeof(ph));
    return 2048;
}

static void must(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "pvguest: %s\n", what);
    abort();
}

/* pvguest_bare - without a kernel. */
static inline void pvguest_bare(struct pvguest *g, unsigned cpus)
{
    memset(g, 0, sizeof(*g));
    guest = g;
    g->shutdown = -1;
    must(!backing_init(&g->ram, PV_SIZE), "no memory");
    ram_init(&g->view);
    must(!ram_add_slot(&g->view, 0, PV_SIZE, g->ram.host, false), "no slot");
    const struct machine_config mc = { .nr_cpus = cpus, .ram_size = PV_SIZE, .tsc_khz = 1000000, .opaque = g, .kick = board_kick,
                                       .request = request, .tsc_now = tsc_now, .clock_source = clock_source,
                                       .clock_opaque = g };
    must(!machine_create(&mc, &g->machine), "no machine");
    const struct xen_config xc = { .ram = &g->view, .host = g->ram.host, .size = PV_SIZE, .nr_cpus = cpus, .tsc_khz = 1000000,
                                   .machine = g->machine, .opaque = g, .kick = kick, .console = console,
                                   .shutdown_opaque = g, .shutdown = shut_down, .start = start };
    must(!xen_create(&xc, &g->xen), "no guest");
    for (unsigned i = 0; i < cpus; i++)
        xen_attach(g->xen, i, (struct vitro_vcpu *)&g->vcpu[i]);
}

static inline void pvguest_make_cpus(struct pvguest *g, const char *cmdline, unsigned cpus)
{
    static const struct boot_e820 e820 = { 0, PV_SIZE, BOOT_E820_RAM };
    u8 image[4096];
    struct boot_xen k;
    char err[BOOT_ERR_LEN] = "";

    pvguest_bare(g, cpus);
    const struct boot_input in = { .kernel_name = "kernel", .kernel = image, .kernel_size = pv_image(image), .e820 = &e820,
                                   .nr_e820 = 1 };
    must(!xenimage_load(&g->view, &in, &k, err), err);
    const struct xen_guest xg = { .entry = k.entry, .virt_base = k.virt_base, .hypercall_page = k.hypercall_page,
                                  .p2m_base = k.p2m_base, .lo = k.lo, .hi = k.hi, .has_p2m_base = k.has_p2m_base,
                                  .cmdline = cmdline };
    must(!xen_build(g->xen, &xg, err), err);
    g->cr3 = g->sregs.cr3;
}

static inline void pvguest_make(struct pvguest *g, const char *cmdline)
{
    pvguest_make_cpus(g, cmdline, 1);
}

static inline void pvguest_free(struct pvguest *g)
{
    xen_destroy(g->xen); /* its threads ask the board's clock */
    machine_destroy(g->machine);
    ram_fini(&g->view);
    backing_fini(&g->ram);
}

/* pv_call - a hypercall of the kernel's; RAX. */
static inline s64 pv_call(struct pvguest *g, unsigned nr, u64 a0, u64 a1, u64 a2, u64 a3)
{
    const struct vitro_outer *o = xen_outer(g->xen);

    g->gpr[RAX] = nr;
    g->gpr[RDI] = a0;
    g->gpr[RSI] = a1;
    g->gpr[RDX] = a2;
    g->gpr[R10] = a3;
    g->gpr[RSP] = PV_AT(PV_KERNEL + 0x10000);
    g->frame = (struct vitro_frame){ .gpr = g->gpr, .rip = PV_AT(PV_KERNEL), .rflags = EFL_IF | EFL_R1,
                                     .cr3 = g->xen->cpu[g->caller].kernel_cr3, .cs = XEN_FLAT_CS64, .ss = XEN_FLAT_DS, .kernel = true };
    g->cr3 = g->frame.cr3;
    g->crossing = o->syscall(o->opaque, g->caller, &g->frame, true);
    return (s64)g->gpr[RAX];
}

/* -- Xenstore -------------------------------------------------------------------------------------------------- */

static char pv_reply[XEN_STORE_PAYLOAD + 1] __attribute__((unused));
static struct xen_store_msg pv_head __attribute__((unused));

static inline struct xen_store_ring *pv_store_ring(struct pvguest *g)
{
    return (struct xen_store_ring *)((u8 *)g->xen->console - PAGE_SIZE);
}

/* pv_take - the next message from xenstore: pv_head and pv_reply. False: there is none. */
static inline bool pv_take(struct pvguest *g)
{
    struct xen_store_ring *r = pv_store_ring(g);
    u8 raw[sizeof(pv_head) + 1024];
    size_t n = 0;

    while (n < sizeof(raw) && r->rsp_cons != r->rsp_prod && (n < sizeof(pv_head) || n < sizeof(pv_head) + pv_head.len)) {
        raw[n++] = (u8)r->rsp[r->rsp_cons++ % 1024];
        if (n == sizeof(pv_head))
            memcpy(&pv_head, raw, sizeof(pv_head));
    }
    if (n < sizeof(pv_head))
        return false;
    memcpy(pv_reply, raw + sizeof(pv_head), n - sizeof(pv_head));
    pv_reply[n - sizeof(pv_head)] = 0;
    return true;
}

/* pv_ask - a message to xenstore, and what comes next from it. */
static inline const char *pv_ask(struct pvguest *g, u32 type, u32 tx, const void *payload, size_t len)
{
    struct xen_store_ring *r = pv_store_ring(g);
    const struct xen_store_msg m = { type, 42, tx, (u32)len };
    u32 *port = pv_ptr(g, PV_AT(PV_DATA), true);

    for (size_t i = 0; i < sizeof(m) + len; i++)
        r->req[r->req_prod++ % 1024] = (char)(i < sizeof(m) ? ((const u8 *)&m)[i] : ((const u8 *)payload)[i - sizeof(m)]);
    *port = g->xen->store_port;
    pv_call(g, XEN_event_channel_op, XEN_EVTCHNOP_send, PV_AT(PV_DATA), 0, 0);
    return pv_take(g) && pv_head.req_id == 42 ? pv_reply : "no answer";
}
