/*
 * dispatch.c - which contracts a guest is offered, and which one a call belongs to.
 *
 * CPUID: contracts stack as with other hypervisors: the first that is offered is at 0x40000000, the next 0x100
 * further. KVM's comes first, since Linux takes the first it knows. Hypercalls: by the number in RAX. MSRs: by range.
 */
#include "paravirt/inner.h"
#include "paravirt/native.h"
#include "paravirt/xen/xen.h"
#include "vitro/abi.h"
#include "vitro/xen.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ALL_KVM (PV_BIT(PV_MAP_GPA + 1) - 1)
#define ALL (ALL_KVM | PV_BIT(PV_VITRO))

const struct paravirt_word paravirt_words[] = {
    { "none", 0 },
    { "kvm", ALL_KVM },
    { "vitro", PV_BIT(PV_VITRO) },
    { "clock", PV_BIT(PV_CLOCK) },
    { "io-delay", PV_BIT(PV_IO_DELAY) },
    { "steal", PV_BIT(PV_STEAL) },
    { "eoi", PV_BIT(PV_EOI) },
    { "unhalt", PV_BIT(PV_UNHALT) },
    { "tlb", PV_BIT(PV_TLB) },
    { "ipi", PV_BIT(PV_IPI) },
    { "poll", PV_BIT(PV_POLL) },
    { "yield", PV_BIT(PV_YIELD) },
    { "map-gpa", PV_BIT(PV_MAP_GPA) },
    { "xen", PV_BIT(PV_XEN) },
    { NULL, 0 },
};

u32 paravirt_default(void)
{
    return ALL;
}

int paravirt_parse(const char *list, u32 *features, unsigned *bad_len)
{
    const char *s = list;

    *features = *s == '-' ? ALL : 0;
    while (*s) {
        bool minus = *s == '-';
        s += minus;
        size_t len = strcspn(s, ",");
        const struct paravirt_word *w = paravirt_words;
        while (w->name && (strlen(w->name) != len || strncmp(w->name, s, len)))
            w++;
        if (!w->name) {
            *bad_len = (unsigned)len;
            return (int)(s - list);
        }
        *features = minus ? *features & ~w->bits : *features | w->bits;
        s += len + (s[len] == ',');
    }
    return -1;
}

/* -- CPUID ------------------------------------------------------------------------------------------- */

u32 *pv_leaf(struct paravirt *pv, u32 leaf)
{
    bug_on(pv->ops.nr_leaves == VITRO_CPUID_PV_MAX);
    struct vitro_cpuid_leaf *l = &pv->leaf[pv->ops.nr_leaves++];
    *l = (struct vitro_cpuid_leaf){ .leaf = leaf };
    return l->r;
}

void pv_signature(struct paravirt *pv, u32 base, u32 last, const char *text)
{
    u32 *r = pv_leaf(pv, base);
    r[0] = last;
    memcpy(&r[1], text, strnlen(text, 12));
}

/* -- Guest memory ------------------------------------------------------------------------------------- */

int pv_read(struct paravirt *pv, gpa_t gpa, void *buf, u64 len)
{
    return ram_read(pv->config.ram, gpa, buf, len);
}

int pv_write(struct paravirt *pv, gpa_t gpa, const void *buf, u64 len)
{
    struct ram *ram = pv->config.ram;
    for (u64 at = 0; at < len; at = ((gpa + at) & PAGE_MASK) + PAGE_SIZE - gpa)
        if (!ram_dma_ptr(ram, gpa + at, 1))
            return -EFAULT;
    int r = ram_write(ram, gpa, buf, len);
    if (!r)
        ram_written(ram, gpa, len);
    return r;
}

/* -- What the engine calls --------------------------------------------------------------------------- */

static enum vitro_hc hypercall(void *opaque, const struct vitro_hypercall *call)
{
    struct paravirt *pv = opaque;
    u32 nr = (u32)call->gpr[0] - PV_NATIVE_CALLS;
    if (nr < 0x10000)
        return pv_has(pv, PV_VITRO) ? native_hypercall(pv, call, nr) : VITRO_HC_NONE;
    return kvm_offered(pv) ? kvm_hypercall(pv, call) : VITRO_HC_NONE;
}

static int msr_read(void *opaque, unsigned vcpu, u32 msr, u64 *value)
{
    struct paravirt *pv = opaque;
    if (vcpu >= pv->nr_cpus)
        return -1;
    if (msr - PV_NATIVE_MSRS < 0x100)
        return pv_has(pv, PV_VITRO) ? native_msr_read(pv, vcpu, msr, value) : -1;
    return kvm_msr_read(pv, vcpu, msr, value);
}

static int msr_write(void *opaque, unsigned vcpu, u32 msr, u64 value)
{
    struct paravirt *pv = opaque;
    if (vcpu >= pv->nr_cpus)
        return -1;
    if (msr - PV_NATIVE_MSRS < 0x100)
        return pv_has(pv, PV_VITRO) ? native_msr_write(pv, vcpu, msr, value) : -1;
    return kvm_msr_write(pv, vcpu, msr, value);
}

static void tsc_moved(void *opaque, unsigned vcpu)
{
    struct paravirt *pv = opaque;
    if (vcpu < pv->nr_cpus)
        kvm_tsc_moved(pv, vcpu);
}

static void tick(void *opaque, unsigned vcpu)
{
    struct paravirt *pv = opaque;
    if (vcpu < pv->nr_cpus)
        kvm_tick(pv, vcpu);
}

static void yield_begin(void *opaque, unsigned vcpu)
{
    kvm_away(opaque, vcpu, true);
}

static bool yield_end(void *opaque, unsigned vcpu)
{
    return kvm_back(opaque, vcpu);
}

void paravirt_vcpu_reset(struct paravirt *pv, unsigned cpu)
{
    kvm_reset(pv, cpu);
    native_reset(pv, cpu);
}

/* -- Life --------------------------------------------------------------------------------------------- */

static void on_xen_shutdown(void *opaque, unsigned reason)
{
    struct paravirt *pv = opaque;
    static const u8 meaning[] = { [XEN_SHUTDOWN_poweroff] = VT_SHUTDOWN_POWEROFF, [XEN_SHUTDOWN_reboot] = VT_SHUTDOWN_REBOOT,
                                  [XEN_SHUTDOWN_suspend] = VT_SHUTDOWN_CRASH, [XEN_SHUTDOWN_crash] = VT_SHUTDOWN_CRASH,
                                  [XEN_SHUTDOWN_watchdog] = VT_SHUTDOWN_CRASH };

    pv->config.shutdown(pv->config.opaque, meaning[reason], 0);
}

static int make_xen(struct paravirt *pv)
{
    const struct paravirt_config *c = &pv->config;
    const struct xen_config xc = {
        .ram = c->ram, .host = c->host, .size = c->size, .nr_cpus = c->nr_cpus, .tsc_khz = c->tsc_khz, .machine = c->machine,
        .opaque = c->opaque, .kick = c->kick, .console = c->console, .shutdown_opaque = pv, .shutdown = on_xen_shutdown,
        .start = c->start,
    };
    int r = xen_create(&xc, &pv->xen);

    if (!r)
        pv->ops.outer = xen_outer(pv->xen);
    return r;
}

struct xen *paravirt_xen(struct paravirt *pv)
{
    return pv->xen;
}

int paravirt_create(const struct paravirt_config *config, struct paravirt **out)
{
    struct paravirt *pv = calloc(1, sizeof(*pv) + config->nr_cpus * sizeof(pv->cpu[0]));
    u32 base = VITRO_CPUID_PV;

    if (!pv)
        return -ENOMEM;
    pv->config = *config;
    pv->nr_cpus = config->nr_cpus;
    pv_clock_init(pv);
    for (unsigned i = 0; i < pv->nr_cpus; i++) {
        pv->cpu[i].kvm.schedstat_fd = -1;
        paravirt_vcpu_reset(pv, i);
    }
    if (pv_has(pv, PV_XEN)) {
        int r = make_xen(pv);
        if (r) {
            free(pv);
            return r;
        }
    }
    if (kvm_offered(pv)) {
        kvm_leaves(pv, base);
        base += PV_LEAF_STEP;
    }
    if (pv_has(pv, PV_VITRO)) {
        int r = native_init(pv);
        if (r) {
            free(pv);
            return r;
        }
        native_leaves(pv, base);
    }
    pv->ops.intr_ack = pv_intr_ack;
    pv->ops.opaque = pv;
    pv->ops.leaves = pv->leaf;
    pv->ops.hypercall_fast = pv_hypercall_fast;
    pv->ops.hypercall = hypercall;
    pv->ops.msr_read = msr_read;
    pv->ops.msr_write = msr_write;
    pv->ops.tsc_moved = tsc_moved;
    pv->ops.tick = tick;
    if (pv_has(pv, PV_STEAL)) {
        pv->ops.yield_begin = yield_begin;
        pv->ops.yield_end = yield_end;
    }
    *out = pv;
    return 0;
}

void paravirt_destroy(struct paravirt *pv)
{
    if (pv && pv->native)
        native_destroy(pv->native);
    if (pv)
        xen_destroy(pv->xen);
    free(pv);
}

const struct vitro_pv *paravirt_ops(struct paravirt *pv)
{
    return &pv->ops;
}

void paravirt_attach(struct paravirt *pv, unsigned index, struct vitro_vcpu *vcpu)
{
    bug_on(index >= pv->nr_cpus);
    pv->cpu[index].vcpu = vcpu;
    if (pv->xen)
        xen_attach(pv->xen, index, vcpu);
}
