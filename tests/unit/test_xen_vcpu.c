/* vcpu_op and all that is for several vCPUs (docs/xen.md): each call and each documented error. */
#include "tests/lib/check.h"
#include "tests/lib/pvguest.h"

#define PFN(la) (((la) - PV_BASE) >> PAGE_SHIFT)
#define DATA PV_AT(PV_DATA)
#define CONTEXT PV_AT(PV_DATA + 0x1000) /* two pages */
#define GDT (PFN(DATA) + 4)

static struct pvguest g;

static void put(u64 la, const void *bytes, size_t len)
{
    for (size_t at = 0; at < len; at += PAGE_SIZE)
        memcpy(pv_ptr(&g, la + at, false), (const u8 *)bytes + at, MIN(len - at, PAGE_SIZE));
}

static s64 vcpu_op(unsigned op, unsigned cpu, u64 arg) { return pv_call(&g, XEN_vcpu_op, op, cpu, arg, 0); }

static s64 initialise(unsigned cpu, const struct xen_guest_context *c)
{
    put(CONTEXT, c, sizeof(*c));
    return vcpu_op(XEN_VCPUOP_initialise, cpu, CONTEXT);
}

/* A GDT page with code at 0x10 and data at 0x18, not writable. */
static void make_gdt(void)
{
    u64 *d = pv_ptr(&g, PV_AT((u64)GDT << PAGE_SHIFT), true);

    memset(d, 0, PAGE_SIZE);
    d[2] = 0x00af9b000000ffffull;
    d[3] = 0x00cf93000000ffffull;
    CHECK(!pv_call(&g, XEN_update_va_mapping, PV_AT((u64)GDT << PAGE_SHIFT), (u64)GDT << PAGE_SHIFT | PTE_P, XEN_UVMF_INVLPG, 0));
}

static struct xen_guest_context context(void)
{
    struct xen_guest_context c = {
        .flags = XEN_VGCF_IN_KERNEL | XEN_VGCF_SYSCALL_MASKS, .gdt_frames = { GDT }, .gdt_ents = 16, .kernel_sp = DATA,
        .event_callback = PV_AT(0x1000), .failsafe_callback = PV_AT(0x2000), .syscall_callback = PV_AT(0x3000),
        .gs_base_kernel = PV_AT(0x4000), .gs_base_user = 0x5000, .fs_base = 0x6000,
    };

    c.user_regs.rip = PV_AT(PV_KERNEL);
    c.user_regs.rsp = DATA;
    c.user_regs.rdi = 77;
    c.user_regs.cs = 0x10;
    c.user_regs.ss = 0x18;
    c.trap[0] = (struct xen_trap_info){ .vector = 0, .address = PV_AT(0x6000) };
    c.trap[14] = (struct xen_trap_info){ .vector = 14, .address = PV_AT(0x7000) };
    c.ctrlreg[3] = g.sregs.cr3;
    return c;
}

static void test_start(void)
{
    pvguest_make_cpus(&g, "", 3);
    make_gdt();
    const struct xen_guest_context good = context();
    const u32 tables = g.xen->frame[g.sregs.cr3 >> PAGE_SHIFT].count;
    struct xen_guest_context c;

    CHECK(vcpu_op(XEN_VCPUOP_is_up, 1, 0) == 0 && vcpu_op(XEN_VCPUOP_is_up, 3, 0) == -XEN_ENOENT);
    CHECK(vcpu_op(XEN_VCPUOP_up, 1, 0) == -XEN_EINVAL && vcpu_op(XEN_VCPUOP_down, 1, 0) == -XEN_EINVAL);
    CHECK(vcpu_op(XEN_VCPUOP_initialise, 0, CONTEXT) == -XEN_EEXIST);
    CHECK(vcpu_op(XEN_VCPUOP_initialise, 1, 0x1000) == -XEN_EFAULT);
#define BAD(field, value) \
    do { \
        c = good; \
        c.field = value; \
        CHECK_MSG(initialise(1, &c) == -XEN_EINVAL, #field); \
    } while (0)
    BAD(flags, 0);
    BAD(gdt_ents, XEN_GDT_ENTRIES + 1);
    BAD(gdt_frames[0], 1ull << 40);
    BAD(gdt_frames[0], g.sregs.cr3 >> PAGE_SHIFT);
    BAD(user_regs.rip, 1ull << 60);
    BAD(kernel_sp, 1ull << 60);
    BAD(event_callback, 1ull << 60);
    BAD(failsafe_callback, 1ull << 60);
    BAD(syscall_callback, 1ull << 60);
    BAD(fs_base, 1ull << 60);
    BAD(gs_base_kernel, 1ull << 60);
    BAD(gs_base_user, 1ull << 60);
    BAD(trap[255].address, 1ull << 60);
    BAD(ldt_ents, 8193);
    BAD(user_regs.cs, 0x18);   /* data */
    BAD(user_regs.cs, 0);
    BAD(user_regs.ss, 0x10);   /* code */
    BAD(user_regs.ds, 0x1000); /* no such page of the GDT */
    BAD(user_regs.cs, 0x14);   /* in an LDT */
    BAD(ctrlreg[3], (u64)GDT << PAGE_SHIFT);
    BAD(ctrlreg[3], 1ull << 45);
    CHECK(!pv_call(&g, XEN_update_va_mapping, PV_AT(0), PTE_P, XEN_UVMF_INVLPG, 0));
    BAD(ctrlreg[3], 0); /* "none" */
    BAD(ctrlreg[1], DATA - PV_BASE);
#undef BAD
    CHECK(!g.differs);
    CHECK(g.xen->frame[g.sregs.cr3 >> PAGE_SHIFT].count == tables && !g.xen->frame[GDT].count);

    CHECK(!initialise(1, &good) && initialise(1, &good) == -XEN_EEXIST);
    CHECK(g.xen->frame[g.sregs.cr3 >> PAGE_SHIFT].count == tables + 1 && g.xen->frame[GDT].type == FRAME_DESC);
    CHECK(!g.started && vcpu_op(XEN_VCPUOP_is_up, 1, 0) == 0);
    CHECK(!vcpu_op(XEN_VCPUOP_up, 1, 0) && g.started == 2 && vcpu_op(XEN_VCPUOP_is_up, 1, 0) == 1);
    CHECK(!vcpu_op(XEN_VCPUOP_up, 1, 0)); /* is already */
    const struct vitro_sregs *s = &g.start_sregs;
    CHECK(g.start_regs.rip == PV_AT(PV_KERNEL) && g.start_regs.gpr[RSP] == DATA && g.start_regs.gpr[RDI] == 77);
    CHECK(s->cs.selector == 0x13 && (s->cs.attr & SEG_L) && s->ss.selector == 0x1b && s->cr3 == g.sregs.cr3);
    CHECK((s->ss.attr >> SEG_DPL_SHIFT & 3) == 1 && (s->cs.attr >> SEG_DPL_SHIFT & 3) == 3);
    CHECK(s->gs.base == PV_AT(0x4000) && s->fs.base == 0x6000 && g.msr_gs_base == 0x5000);
    CHECK(s->gdt_base == GDT_AREA + GDT_AREA_STRIDE);
    const struct xen_cpu *cpu = &g.xen->cpu[1];
    CHECK(cpu->trap[0].address == PV_AT(0x6000) && cpu->trap[14].address == PV_AT(0x7000) && cpu->kernel_sp == DATA && cpu->info->upcall_mask == 1);
    CHECK(cpu->callback[XEN_CALLBACK_SYSCALL].mask && !cpu->callback[XEN_CALLBACK_FAILSAFE].mask);
    pvguest_free(&g);
}

static void test_down(void)
{
    pvguest_make_cpus(&g, "", 2);
    make_gdt();
    const struct xen_guest_context good = context();
    const struct vitro_outer *o = xen_outer(g.xen);
    struct vitro_frame f;

    CHECK(!initialise(1, &good) && !vcpu_op(XEN_VCPUOP_up, 1, 0));
    /* By itself: it sleeps, no event wakes it, and its time counts as offline. */
    g.caller = 1;
    CHECK(!vcpu_op(XEN_VCPUOP_down, 1, 0) && g.crossing == VITRO_PARK);
    f = g.frame;
    g.xen->cpu[1].info->upcall_pending = 1;
    g.xen->cpu[1].info->upcall_mask = 0;
    CHECK(o->event(o->opaque, 1, &f) == VITRO_PARK && f.rip == g.frame.rip);
    g.caller = 0;
    CHECK(vcpu_op(XEN_VCPUOP_is_up, 1, 0) == 0);
    CHECK(!vcpu_op(XEN_VCPUOP_get_runstate_info, 1, DATA));
    CHECK(((struct xen_runstate_info *)pv_ptr(&g, DATA, false))->state == XEN_RUNSTATE_offline);
    unsigned kicks = g.kicks;
    CHECK(!vcpu_op(XEN_VCPUOP_up, 1, 0) && g.kicks == kicks + 1 && vcpu_op(XEN_VCPUOP_is_up, 1, 0) == 1);
    CHECK(o->event(o->opaque, 1, &f) == VITRO_GO && f.rip == PV_AT(0x1000)); /* what came meanwhile */
    CHECK(g.xen->cpu[1].runstate.state == XEN_RUNSTATE_running);
    /* By another one. */
    kicks = g.kicks;
    CHECK(!vcpu_op(XEN_VCPUOP_down, 1, 0) && g.crossing == VITRO_STAY && g.kicks == kicks + 1);
    f = g.frame;
    CHECK(o->event(o->opaque, 1, &f) == VITRO_PARK);
    /* Not in a list; the last one ends the guest. */
    const struct xen_multicall_entry e = { .op = XEN_vcpu_op, .args = { XEN_VCPUOP_down, 0 } };
    put(DATA, &e, sizeof(e));
    CHECK(!pv_call(&g, XEN_multicall, DATA, 1, 0, 0));
    CHECK((s64)((struct xen_multicall_entry *)pv_ptr(&g, DATA, false))->result == -XEN_ENOSYS && g.shutdown == -1);
    CHECK(!vcpu_op(XEN_VCPUOP_down, 0, 0) && g.shutdown == XEN_SHUTDOWN_poweroff);
    pvguest_free(&g);
}

static void test_runstate(void)
{
    const u64 la = DATA + 256;

    pvguest_make_cpus(&g, "", 2);
    const struct xen_runstate_info *r = pv_ptr(&g, la, false);
    CHECK(vcpu_op(XEN_VCPUOP_register_runstate, 0, 0x1000) == -XEN_EFAULT);
    put(DATA, &(u64){ 0x1000 }, 8);
    CHECK(vcpu_op(XEN_VCPUOP_register_runstate, 0, DATA) == -XEN_EFAULT);
    put(DATA, &la, 8);
    CHECK(!vcpu_op(XEN_VCPUOP_register_runstate, 0, DATA) && r->state == XEN_RUNSTATE_running);
    CHECK(!pv_call(&g, XEN_sched_op, XEN_SCHEDOP_block, 0, 0, 0) && g.crossing == VITRO_HALT);
    CHECK(r->state == XEN_RUNSTATE_blocked);
    u64 entered = r->state_entry_time;
    CHECK(vcpu_op(XEN_VCPUOP_is_up, 0, 0) == 1 && r->state == XEN_RUNSTATE_running && r->time[XEN_RUNSTATE_blocked] > 0);
    CHECK(r->state_entry_time > entered && r->time[XEN_RUNSTATE_running] > 0 && !r->time[XEN_RUNSTATE_offline]);
    pvguest_free(&g);
}

/* Ports of a vCPU, and who is told. */
static void test_events(void)
{
    pvguest_make_cpus(&g, "", 2);
    struct xen_evtchn_bind_ipi b = { .vcpu = 1 };
    put(DATA, &b, sizeof(b));
    CHECK(!pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_bind_ipi, DATA, 0, 0));
    u32 port = ((struct xen_evtchn_bind_ipi *)pv_ptr(&g, DATA, false))->port;
    struct xen_evtchn_bind_virq v = { .virq = XEN_VIRQ_TIMER, .vcpu = 1 };
    put(DATA, &v, sizeof(v));
    CHECK(!pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_bind_virq, DATA, 0, 0));
    CHECK(pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_bind_virq, DATA, 0, 0) == -XEN_EEXIST);
    v.virq = XEN_VIRQ_CONSOLE; /* one for all */
    put(DATA, &v, sizeof(v));
    CHECK(pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_bind_virq, DATA, 0, 0) == -XEN_EINVAL);
    v.vcpu = b.vcpu = 2;
    put(DATA, &v, sizeof(v));
    CHECK(pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_bind_virq, DATA, 0, 0) == -XEN_ENOENT);
    put(DATA, &b, sizeof(b));
    CHECK(pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_bind_ipi, DATA, 0, 0) == -XEN_ENOENT);
    const struct xen_evtchn_bind_vcpu to = { port, 0 };
    put(DATA, &to, sizeof(to));
    CHECK(pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_bind_vcpu, DATA, 0, 0) == -XEN_EINVAL); /* an IPI stays */
    /* The other is told, by its own words. */
    put(DATA, &port, 4);
    CHECK(!pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_send, DATA, 0, 0));
    CHECK(g.xen->shared->vcpu_info[1].upcall_pending && !g.xen->shared->vcpu_info[0].upcall_pending && g.kicks == 1);
    /* A timer is its own vCPU's to set. */
    const struct xen_set_singleshot s = { .timeout_abs_ns = 1 };
    put(DATA, &s, sizeof(s));
    CHECK(vcpu_op(XEN_VCPUOP_set_singleshot_timer, 1, DATA) == -XEN_EINVAL);
    CHECK(vcpu_op(XEN_VCPUOP_stop_singleshot_timer, 1, 0) == -XEN_EINVAL);
    /* Who polls for a masked port is woken by it; who calls again no longer polls. */
    g.caller = 1;
    const struct xen_sched_poll p = { .ports = DATA + 64, .nr_ports = 1 };
    put(DATA, &p, sizeof(p));
    put(DATA + 64, &port, 4);
    __atomic_store_n(&g.xen->shared->evtchn_pending[0], 0, __ATOMIC_SEQ_CST);
    g.xen->shared->evtchn_mask[0] = ~0ull;
    g.xen->cpu[1].info->upcall_pending = 0;
    g.xen->cpu[1].kernel_cr3 = g.xen->cpu[0].kernel_cr3;
    CHECK(!pv_call(&g, XEN_sched_op, XEN_SCHEDOP_poll, DATA, 0, 0) && g.crossing == VITRO_HALT);
    g.caller = 0;
    unsigned kicks = g.kicks;
    put(DATA, &port, 4);
    CHECK(!pv_call(&g, XEN_event_channel_op, XEN_EVTCHNOP_send, DATA, 0, 0) && g.kicks == kicks + 1);
    g.caller = 1;
    CHECK(vcpu_op(XEN_VCPUOP_is_up, 0, 0) == 1 && !g.xen->cpu[1].polling);
    pvguest_free(&g);
}

static s64 mmuext(u32 cmd, u64 arg1, u64 arg2)
{
    const struct xen_mmuext_op op = { cmd, 0, arg1, arg2 };
    put(DATA, &op, sizeof(op));
    return pv_call(&g, XEN_mmuext_op, DATA, 1, 0, XEN_DOMID_SELF);
}

/* Flushes reach those who are meant, and nobody waits with page tables locked (pvguest.h looks). */
static void test_flushes(void)
{
    pvguest_make_cpus(&g, "", 4);
    const u64 mask = 0xa;
    put(DATA + 128, &mask, 8);
    CHECK(!mmuext(XEN_MMUEXT_TLB_FLUSH_MULTI, 0, DATA + 128) && (g.flushed & 0xf) == 0xa && !g.flushes);
    g.flushed = 0;
    CHECK(!g.pages_flushed && !mmuext(XEN_MMUEXT_INVLPG_MULTI, DATA, DATA + 128) && (g.flushed & 0xf) == 0xa && !g.flushes);
    CHECK(g.pages_flushed == 1); /* and nothing else */
    g.flushed = 0;
    CHECK(mmuext(XEN_MMUEXT_TLB_FLUSH_MULTI, 0, 0x1000) == -XEN_EFAULT && !g.flushed);
    CHECK(!mmuext(XEN_MMUEXT_TLB_FLUSH_ALL, 0, 0) && (g.flushed & 0xf) == 0xf && g.flushes == 1);
    CHECK(!mmuext(XEN_MMUEXT_INVLPG_ALL, DATA, 0) && g.flushes == 2);
    g.flushed = 0;
    CHECK(!mmuext(XEN_MMUEXT_TLB_FLUSH_LOCAL, 0, 0) && !mmuext(XEN_MMUEXT_INVLPG_LOCAL, DATA, 0) && !g.flushed && g.flushes == 4);
    /* A page that becomes a table: nobody writes it from then on. */
    const u64 table = PFN(DATA) + 5;
    memset(pv_ptr(&g, PV_AT(table << PAGE_SHIFT), true), 0, PAGE_SIZE);
    CHECK(!pv_call(&g, XEN_update_va_mapping, PV_AT(table << PAGE_SHIFT), table << PAGE_SHIFT | PTE_P, 0, 0));
    CHECK(!mmuext(XEN_MMUEXT_PIN_L1, table, 0) && g.unwritten == table << PAGE_SHIFT);
    /* Results are never written into a table, though a store there would be looked at. */
    CHECK(pv_call(&g, XEN_memory_op, XENMEM_machphys_mapping, PV_AT(table << PAGE_SHIFT), 0, 0) == -XEN_EFAULT);
    pvguest_free(&g);
}

int main(void)
{
    test_start();
    test_down();
    test_runstate();
    test_events();
    test_flushes();
    return check_done("xen_vcpu");
}
