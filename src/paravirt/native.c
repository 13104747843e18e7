/*
 * native.c - contract 2, Vitro's own ABI, joined to the engine and the board: fills struct native_ops. The calls
 * themselves are in native_calls.c, native_mem.c, native_event.c, ...
 */
#include "paravirt/inner.h"
#include "libvitro.h"
#include "machine/machine.h"
#include "paravirt/xen/xen.h"
#include "paravirt/native.h"
#include "x86/x86.h"
#include <stdio.h>
#include <string.h>
#include <time.h>

static struct vitro_vcpu *cpu_of(void *opaque, unsigned vcpu)
{
    return ((struct paravirt *)opaque)->cpu[vcpu].vcpu;
}

/* -- What the calls ask of the engine ------------------------------------------------------------- */

static void on_paging(void *opaque, unsigned vcpu, struct native_paging *p)
{
    struct vitro_paging v;

    vitro_vcpu_get_paging(cpu_of(opaque, vcpu), &v);
    *p = (struct native_paging){
        .cr3 = v.cr3,
        .long_mode = (v.cr0 & CR0_PG) && (v.efer & EFER_LMA),
        .pcide = v.cr4 & CR4_PCIDE,
        .nxe = v.efer & EFER_NXE,
    };
}

static void on_load_root(void *opaque, unsigned vcpu, u64 cr3)
{
    vitro_vcpu_load_cr3(cpu_of(opaque, vcpu), cr3);
}

static void on_flush(void *opaque, unsigned vcpu, unsigned pcid, u64 va, u64 pages, bool global)
{
    vitro_vcpu_flush_pages(cpu_of(opaque, vcpu), pcid, va, pages, global);
}

static void on_flush_others(void *opaque, unsigned vcpu, const struct vitro_flush *list, unsigned nr)
{
    vitro_vcpu_flush_others(cpu_of(opaque, vcpu), list, nr);
}

static u64 on_populate(void *opaque, unsigned vcpu, u64 va, u64 pages, bool write, bool user)
{
    return vitro_vcpu_populate(cpu_of(opaque, vcpu), va, pages,
                               (write ? VITRO_POPULATE_WRITE : 0) | (user ? VITRO_POPULATE_USER : 0));
}

static int on_start(void *opaque, unsigned vcpu, unsigned which, const struct vt_start *start)
{
    struct paravirt *pv = opaque;
    struct vitro_vcpu *from = pv->cpu[vcpu].vcpu;
    struct vitro_regs regs = { .gpr = { [RSP] = start->rsp, [RDI] = start->arg }, .rip = start->rip, .rflags = 2 };
    struct vitro_sregs sregs;

    if (!pv->config.start)
        return -VT_ENOCALL;
    vitro_vcpu_get_sregs(from, &sregs);
    sregs.cr3 = start->cr3;
    sregs.cr2 = sregs.cr8 = 0;
    memset(sregs.dr, 0, sizeof(sregs.dr));
    return pv->config.start(pv->config.opaque, which, &sregs, &regs) ? 0 : -VT_EEXIST;
}

static int on_stop(void *opaque, unsigned vcpu)
{
    struct paravirt *pv = opaque;

    if (!pv->config.stop)
        return -VT_ENOCALL;
    pv->config.stop(pv->config.opaque, vcpu);
    return 0;
}

static u64 on_tsc(void *opaque, unsigned vcpu)
{
    return vitro_vcpu_tsc(cpu_of(opaque, vcpu));
}

/* -- ... and of the world --------------------------------------------------------------------------- */

static void on_kick(void *opaque, unsigned vcpu)
{
    struct paravirt *pv = opaque;

    if (pv->config.kick)
        pv->config.kick(pv->config.opaque, vcpu, VITRO_KICK_INTR);
}

static u64 on_wall(void *opaque)
{
    struct timespec ts;

    (void)opaque;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (u64)ts.tv_sec * NS_PER_SEC + (u64)ts.tv_nsec;
}

static void on_console(void *opaque, const u8 *bytes, size_t len)
{
    struct paravirt *pv = opaque;

    if (pv->config.console)
        pv->config.console(pv->config.opaque, bytes, len);
}

static void on_console_resume(void *opaque)
{
    struct paravirt *pv = opaque;

    if (pv->config.machine)
        machine_console_resume(pv->config.machine);
}

static void on_trace(void *opaque, unsigned vcpu, u64 id, u64 a, u64 b)
{
    struct paravirt *pv = opaque;

    if (pv->config.trace)
        pv->config.trace(pv->config.opaque, vcpu, pv->config.machine ? clock_now(machine_clock(pv->config.machine)) : 0, id, a, b);
}

static void on_log(void *opaque, unsigned level, const char *text, size_t len)
{
    struct paravirt *pv = opaque;

    if (pv->config.log)
        pv->config.log(pv->config.opaque, level, text, len);
}

static void on_shutdown(void *opaque, enum vt_shutdown reason, unsigned code)
{
    struct paravirt *pv = opaque;

    if (pv->config.shutdown)
        pv->config.shutdown(pv->config.opaque, (unsigned)reason, code);
}

/* -- For dispatch.c ------------------------------------------------------------------------------------ */

int native_init(struct paravirt *pv)
{
    struct native_config c = {
        .ram = pv->config.ram,
        .clock = pv->config.machine ? machine_clock(pv->config.machine) : NULL,
        .nr_cpus = pv->config.nr_cpus,
        .tsc_khz = pv->config.tsc_khz,
        .disk = pv->config.disk,
        .nr_disks = pv->config.nr_disks,
        .nic = pv->config.nic,
        .nr_nics = pv->config.nr_nics,
        .ops = {
            .opaque = pv,
            .paging = on_paging,
            .load_root = on_load_root,
            .flush = on_flush,
            .flush_others = on_flush_others,
            .populate = on_populate,
            .kick = on_kick,
            .start = on_start,
            .stop = on_stop,
            .tsc = on_tsc,
            .wall_ns = on_wall,
            .console = on_console,
            .console_resume = on_console_resume,
            .trace = on_trace,
            .log = on_log,
            .shutdown = on_shutdown,
        },
    };
    return native_create(&c, &pv->native);
}

void native_leaves(struct paravirt *pv, u32 base)
{
    u32 *r;

    pv_signature(pv, base, base + 2, "VitroVMM");
    r = pv_leaf(pv, base + 1);
    r[0] = VT_VERSION;
    r[1] = native_features(pv->native);
    r = pv_leaf(pv, base + 2);
    r[0] = (u32)pv->config.tsc_khz;
    r[1] = VITRO_APIC_KHZ;
}

void native_reset(struct paravirt *pv, unsigned cpu)
{
    if (pv->native)
        native_vcpu_reset(pv->native, cpu);
}

void paravirt_pause(struct paravirt *pv)
{
    if (pv->native)
        native_pause(pv->native);
    if (pv->xen)
        xen_io_pause(pv->xen, true);
}

void paravirt_resume(struct paravirt *pv)
{
    if (pv->native)
        native_resume(pv->native);
    if (pv->xen)
        xen_io_pause(pv->xen, false);
}

long paravirt_console_room(struct paravirt *pv)
{
    return pv->xen ? xen_console_room(pv->xen) : pv->native ? native_console_room(pv->native) : -1;
}

void paravirt_console_feed(struct paravirt *pv, const u8 *bytes, size_t len)
{
    if (pv->xen)
        xen_console_feed(pv->xen, bytes, len);
    else if (pv->native)
        native_console_feed(pv->native, bytes, len);
}

enum vitro_hc native_hypercall(struct paravirt *pv, const struct vitro_hypercall *call, u32 nr)
{
    const u64 *r = call->gpr;
    const u64 arg[5] = { r[7], r[6], r[2], r[1], r[8] }; /* RDI RSI RDX RCX R8 */

    call->gpr[0] = (u64)(call->cpl || !call->code64 ? -VT_EPERM : native_call(pv->native, call->vcpu, nr, arg));
    return VITRO_HC_DONE;
}

int native_msr_read(struct paravirt *pv, unsigned cpu, u32 msr, u64 *value)
{
    (void)pv, (void)cpu, (void)msr, (void)value;
    return -1; /* it has none */
}

int native_msr_write(struct paravirt *pv, unsigned cpu, u32 msr, u64 value)
{
    (void)pv, (void)cpu, (void)msr, (void)value;
    return -1;
}
