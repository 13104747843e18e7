/*
 * calls.c - hypercalls that are not about memory: each one right once, and wrong in every way that docs/xen.md has an error
 * for. The address of an argument that is nowhere is -EFAULT for all.
 */
#include "guest.h"

/* Every call that takes the address of something: number, sub-operation (in the first argument, or none), which argument. */
static void test_addresses(void)
{
    static const struct { uint8_t number; int16_t op; uint8_t which; } list[] = {
        { XEN_set_trap_table, -1, 0 }, { XEN_multicall, -1, 0 },
        { XEN_callback_op, XEN_CALLBACKOP_register, 1 }, { XEN_callback_op, XEN_CALLBACKOP_unregister, 1 },
        { XEN_memory_op, XENMEM_increase_reservation, 1 }, { XEN_memory_op, XENMEM_decrease_reservation, 1 },
        { XEN_memory_op, XENMEM_populate_physmap, 1 }, { XEN_memory_op, XENMEM_current_reservation, 1 },
        { XEN_memory_op, XENMEM_maximum_reservation, 1 }, { XEN_memory_op, XENMEM_memory_map, 1 },
        { XEN_memory_op, XENMEM_machphys_mapping, 1 }, { XEN_xen_version, XENVER_extraversion, 1 },
        { XEN_xen_version, XENVER_compile_info, 1 }, { XEN_xen_version, XENVER_capabilities, 1 },
        { XEN_xen_version, XENVER_changeset, 1 }, { XEN_xen_version, XENVER_platform_parameters, 1 },
        { XEN_xen_version, XENVER_get_features, 1 }, { XEN_xen_version, XENVER_guest_handle, 1 },
        { XEN_vcpu_op, XEN_VCPUOP_get_runstate_info, 2 }, { XEN_vcpu_op, XEN_VCPUOP_register_runstate, 2 },
        { XEN_vcpu_op, XEN_VCPUOP_register_vcpu_info, 2 }, { XEN_vcpu_op, XEN_VCPUOP_register_time_info, 2 },
        { XEN_vcpu_op, XEN_VCPUOP_set_singleshot_timer, 2 }, { XEN_sched_op, XEN_SCHEDOP_poll, 1 },
        { XEN_sched_op, XEN_SCHEDOP_shutdown, 1 },
        { XEN_event_channel_op, XEN_EVTCHNOP_bind_virq, 1 }, { XEN_event_channel_op, XEN_EVTCHNOP_bind_ipi, 1 },
        { XEN_event_channel_op, XEN_EVTCHNOP_bind_vcpu, 1 }, { XEN_event_channel_op, XEN_EVTCHNOP_alloc_unbound, 1 },
        { XEN_event_channel_op, XEN_EVTCHNOP_status, 1 }, { XEN_event_channel_op, XEN_EVTCHNOP_close, 1 },
        { XEN_event_channel_op, XEN_EVTCHNOP_send, 1 }, { XEN_event_channel_op, XEN_EVTCHNOP_unmask, 1 },
        { XEN_grant_table_op, XEN_GNTTABOP_map_grant_ref, 1 }, { XEN_grant_table_op, XEN_GNTTABOP_unmap_grant_ref, 1 },
        { XEN_grant_table_op, XEN_GNTTABOP_setup_table, 1 }, { XEN_grant_table_op, XEN_GNTTABOP_transfer, 1 },
        { XEN_grant_table_op, XEN_GNTTABOP_copy, 1 }, { XEN_grant_table_op, XEN_GNTTABOP_query_size, 1 },
        { XEN_grant_table_op, XEN_GNTTABOP_set_version, 1 }, { XEN_grant_table_op, XEN_GNTTABOP_get_version, 1 },
        { XEN_physdev_op, XEN_PHYSDEVOP_set_iopl, 1 }, { XEN_physdev_op, XEN_PHYSDEVOP_set_iobitmap, 1 },
    };

    for (unsigned i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        uint64_t a[3] = { 0, list[i].number == XEN_multicall, list[i].number == XEN_grant_table_op };
        if (list[i].op >= 0)
            a[0] = (uint64_t)list[i].op;
        if (list[i].number == XEN_vcpu_op)
            a[1] = 0;
        for (unsigned k = 0; k < 2; k++) {
            a[list[i].which] = k ? NO_ADDRESS : NOWHERE;
            long r = xen_call3(list[i].number, a[0], a[1], a[2]);
            check(r == -XEN_EFAULT, "call %u, %d of an address that is none: %ld", list[i].number, list[i].op, r);
        }
    }
    want(-XEN_EFAULT, XEN_console_io, XEN_CONSOLEIO_write, 5, NOWHERE);
    want(-XEN_EFAULT, XEN_set_gdt, NOWHERE, 1);
    want(-XEN_EFAULT, XEN_mmu_update, NOWHERE, 1, 0, XEN_DOMID_SELF);
    want(-XEN_EFAULT, XEN_mmu_update, arg, 0, NOWHERE, XEN_DOMID_SELF); /* where it says how many */
    want(-XEN_EFAULT, XEN_mmuext_op, NOWHERE, 1, 0, XEN_DOMID_SELF);
    want(-XEN_EFAULT, XEN_mmuext_op, arg, 0, NOWHERE, XEN_DOMID_SELF);
    /* Readable, but not for results. */
    *(struct xen_evtchn_alloc_unbound *)page_a = (struct xen_evtchn_alloc_unbound){ XEN_DOMID_SELF, 0, 0 };
    want(0, XEN_update_va_mapping, page_a, RO(page_a), XEN_UVMF_INVLPG);
    want(-XEN_EFAULT, XEN_memory_op, XENMEM_machphys_mapping, page_a);
    want(-XEN_EFAULT, XEN_xen_version, XENVER_capabilities, page_a);
    want(-XEN_EFAULT, XEN_event_channel_op, XEN_EVTCHNOP_alloc_unbound, page_a);
    want(0, XEN_update_va_mapping, page_a, RW(page_a), XEN_UVMF_INVLPG);
}

static void test_version(void)
{
    struct { uint32_t index, map; } features = { 0, 0 };

    that(xen_call1(XEN_xen_version, XENVER_version) >= 4 << 16);
    want(0, XEN_xen_version, XENVER_extraversion, arg);
    want(0, XEN_xen_version, XENVER_compile_info, arg);
    want(0, XEN_xen_version, XENVER_changeset, arg);
    want(0, XEN_xen_version, XENVER_guest_handle, arg);
    want(0, XEN_xen_version, XENVER_capabilities, arg);
    that(!memcmp(arg, "xen-3.0-x86_64", 14));
    want(0, XEN_xen_version, XENVER_platform_parameters, arg);
    that(arg[0] == XEN_VIRT_START);
    want(PAGE, XEN_xen_version, XENVER_pagesize);
    want(0, XEN_xen_version, XENVER_get_features, put(features));
    that(GOT(uint32_t)[1] >> XEN_FEAT_mmu_pt_update_preserve_ad & 1);
    features.index = 2;
    want(-XEN_EINVAL, XEN_xen_version, XENVER_get_features, put(features));
    want(-XEN_ENOSYS, XEN_xen_version, 99);
    for (unsigned n = 33; n < 70; n++) /* no such calls */
        if (n != XEN_physdev_op)
            that(xen_call1(n, 0) == -XEN_ENOSYS);
    that(xen_call1(~0u, 0) == -XEN_ENOSYS);
}

static void test_small_ones(void)
{
    static struct xen_trap_info endless[258];
    struct xen_callback_register cb = { .type = XEN_CALLBACK_NMI, .address = (uint64_t)event_entry };
    struct xen_multicall_entry list[4] = { { .op = XEN_xen_version }, { .op = XEN_multicall }, { .op = XEN_iret },
                                           { .op = XEN_sched_op } };
    uint16_t type;

    for (unsigned i = 0; i < 258; i++)
        endless[i] = (struct xen_trap_info){ .vector = 200, .cs = XEN_FLAT_CS64, .address = 0x1000 };
    want(-XEN_EINVAL, XEN_set_trap_table, endless);
    endless[0].address = NO_ADDRESS;
    want(-XEN_EINVAL, XEN_set_trap_table, endless);
    want(-XEN_EINVAL, XEN_stack_switch, XEN_FLAT_DS, NO_ADDRESS);
    for (unsigned i = 0; i < 3; i++)
        that(xen_call3(XEN_set_callbacks, i == 0 ? NO_ADDRESS : (uint64_t)event_entry, i == 1 ? NO_ADDRESS : (uint64_t)failsafe_entry,
                       i == 2 ? NO_ADDRESS : 0) == -XEN_EINVAL);

    want(0, XEN_callback_op, XEN_CALLBACKOP_register, put(cb));
    type = cb.type;
    want(0, XEN_callback_op, XEN_CALLBACKOP_unregister, put(type));
    cb.address = NO_ADDRESS;
    want(-XEN_EINVAL, XEN_callback_op, XEN_CALLBACKOP_register, put(cb));
    cb.address = 0x1000;
    cb.type = 3;
    want(-XEN_ENOSYS, XEN_callback_op, XEN_CALLBACKOP_register, put(cb));
    type = cb.type = XEN_NR_CALLBACKS;
    want(-XEN_ENOSYS, XEN_callback_op, XEN_CALLBACKOP_register, put(cb));
    want(-XEN_ENOSYS, XEN_callback_op, XEN_CALLBACKOP_unregister, put(type));
    type = XEN_CALLBACK_EVENT; /* cannot be done without */
    want(-XEN_EINVAL, XEN_callback_op, XEN_CALLBACKOP_unregister, put(type));
    want(-XEN_ENOSYS, XEN_callback_op, 2, arg);

    want(0, XEN_multicall, put(list), 4);
    that((long)GOT(struct xen_multicall_entry)[0].result >= 4 << 16);
    for (unsigned i = 1; i < 4; i++)
        that((long)GOT(struct xen_multicall_entry)[i].result == -XEN_ENOSYS);
    want(-XEN_E2BIG, XEN_multicall, arg, (1u << 16) + 1);

    want(0, XEN_console_io, XEN_CONSOLEIO_read, 5, arg);
    want(-XEN_ENOSYS, XEN_console_io, 2, 5, arg);
    want(0, XEN_vm_assist, 0, XEN_VMASST_writable_pagetables);
    want(0, XEN_vm_assist, 1, XEN_VMASST_writable_pagetables);
    want(-XEN_EINVAL, XEN_vm_assist, 0, 63);
    want(-XEN_ENOSYS, XEN_vm_assist, 2, XEN_VMASST_writable_pagetables);
    uint32_t level = 4;
    struct xen_physdev_iobitmap ports = { .bitmap = (uint64_t)page_a, .nr_ports = 65537 };
    want(-XEN_EINVAL, XEN_physdev_op, XEN_PHYSDEVOP_set_iopl, put(level));
    want(-XEN_EINVAL, XEN_physdev_op, XEN_PHYSDEVOP_set_iobitmap, put(ports));
    level = 0;
    ports.nr_ports = 0;
    want(0, XEN_physdev_op, XEN_PHYSDEVOP_set_iopl, put(level));
    want(0, XEN_physdev_op, XEN_PHYSDEVOP_set_iobitmap, put(ports));
    want(-XEN_ENOSYS, XEN_physdev_op, 99, arg);
}

static void test_ports(void)
{
    struct xen_evtchn_alloc_unbound a = { XEN_DOMID_SELF, 0, 0 };
    struct xen_evtchn_bind_virq v = { XEN_VIRQ_DEBUG, 0, 0 };
    struct xen_evtchn_bind_ipi ipi = { 0, 0 };
    struct xen_evtchn_status s = { .dom = XEN_DOMID_SELF };
    struct xen_evtchn_bind_vcpu to = { 0, 0 };
    uint32_t unbound, virq, self;

#define EVENT(result, op, what) want(result, XEN_event_channel_op, XEN_EVTCHNOP_##op, put(what))
    EVENT(0, alloc_unbound, a);
    unbound = GOT(struct xen_evtchn_alloc_unbound)->port;
    a.dom = 5;
    EVENT(-XEN_EPERM, alloc_unbound, a);
    EVENT(0, bind_virq, v);
    virq = GOT(struct xen_evtchn_bind_virq)->port;
    EVENT(-XEN_EEXIST, bind_virq, v);
    v.virq = XEN_NR_VIRQS;
    EVENT(-XEN_EINVAL, bind_virq, v);
    v = (struct xen_evtchn_bind_virq){ XEN_VIRQ_DEBUG, 64, 0 };
    EVENT(-XEN_ENOENT, bind_virq, v);
    EVENT(0, bind_ipi, ipi);
    self = GOT(struct xen_evtchn_bind_ipi)->port;
    ipi.vcpu = 64;
    EVENT(-XEN_ENOENT, bind_ipi, ipi);

    s.port = virq;
    EVENT(0, status, s);
    that(GOT(struct xen_evtchn_status)->status == XEN_EVTCHN_virq && GOT(struct xen_evtchn_status)->u.virq == XEN_VIRQ_DEBUG);
    s.port = unbound;
    EVENT(0, status, s);
    that(GOT(struct xen_evtchn_status)->status == XEN_EVTCHN_unbound);
    s.port = self;
    EVENT(0, status, s);
    that(GOT(struct xen_evtchn_status)->status == XEN_EVTCHN_ipi);
    s.port = start->console_evtchn;
    EVENT(0, status, s);
    that(GOT(struct xen_evtchn_status)->status == XEN_EVTCHN_interdomain);
    s.port = 4000;
    EVENT(0, status, s);
    that(GOT(struct xen_evtchn_status)->status == XEN_EVTCHN_closed);
    s.port = XEN_EVTCHNS;
    EVENT(-XEN_EINVAL, status, s);
    s.dom = 5;
    EVENT(-XEN_EPERM, status, s);

    to.port = self;
    EVENT(-XEN_EINVAL, bind_vcpu, to); /* an IPI's place is what it is for */
    to.port = virq;
    EVENT(-XEN_EINVAL, bind_vcpu, to);
    to.port = 4000;
    EVENT(-XEN_EINVAL, bind_vcpu, to);
    to = (struct xen_evtchn_bind_vcpu){ start->store_evtchn, 64 };
    EVENT(-XEN_ENOENT, bind_vcpu, to);
    to.vcpu = 0;
    EVENT(0, bind_vcpu, to);

    EVENT(0, send, self);
    that(fired[self] == 1);
    shared.evtchn_mask[0] |= 1ull << self;
    EVENT(0, send, self);
    that(fired[self] == 1 && (shared.evtchn_pending[0] >> self & 1));
    EVENT(0, unmask, self);
    that(fired[self] == 2);
    shared.vcpu_info[0].upcall_mask = 1;
    EVENT(0, send, self);
    that(fired[self] == 2 && shared.vcpu_info[0].upcall_pending);
    events_on();
    that(fired[self] == 3);
    EVENT(0, send, unbound);
    EVENT(-XEN_EINVAL, send, virq);
    const uint32_t none[] = { 0, 4000, XEN_EVTCHNS, ~0u };
    for (unsigned i = 0; i < 4; i++) {
        EVENT(-XEN_EINVAL, send, none[i]);
        EVENT(-XEN_EINVAL, unmask, none[i]);
        EVENT(-XEN_EINVAL, close, none[i]);
    }
    EVENT(-XEN_EINVAL, close, start->console_evtchn);
    EVENT(-XEN_EINVAL, close, start->store_evtchn);
    EVENT(0, close, self);
    EVENT(-XEN_EINVAL, send, self);
    EVENT(0, close, virq);
    a.dom = XEN_DOMID_SELF;
    unsigned n = 0;
    while (!xen_call2(XEN_event_channel_op, XEN_EVTCHNOP_alloc_unbound, put(a)) && n < 5000)
        n++;
    that(n > 4000 && n < XEN_EVTCHNS);
    EVENT(-XEN_ENOSPC, alloc_unbound, a);
    ipi.vcpu = 0;
    EVENT(-XEN_ENOSPC, bind_ipi, ipi);
    v = (struct xen_evtchn_bind_virq){ XEN_VIRQ_DEBUG, 0, 0 };
    EVENT(-XEN_ENOSPC, bind_virq, v);
    for (uint32_t p = unbound; p < XEN_EVTCHNS; p++)
        if (p != start->console_evtchn && p != start->store_evtchn)
            xen_call2(XEN_event_channel_op, XEN_EVTCHNOP_close, put(p));
    want(-XEN_ENOSYS, XEN_event_channel_op, XEN_EVTCHNOP_bind_pirq, arg);
    want(-XEN_ENOSYS, XEN_event_channel_op, XEN_EVTCHNOP_bind_interdomain, arg);
    want(-XEN_ENOSYS, XEN_event_channel_op, 77, arg);
}

static void test_time(void)
{
    struct xen_evtchn_bind_virq v = { XEN_VIRQ_TIMER, 0, 0 };
    struct xen_set_singleshot past = { .timeout_abs_ns = 1, .flags = XEN_SSHOT_FUTURE }, far = { .timeout_abs_ns = 1ull << 60 };
    struct xen_sched_poll p = { .ports = (uint64_t)(arg + 64), .nr_ports = 1, .timeout = 1 };

    EVENT(0, bind_virq, v);
    uint32_t port = GOT(struct xen_evtchn_bind_virq)->port;
    fired[port] = 0;
    want(0, XEN_set_timer_op, 1);
    sleep_until(fired[port]);
    want(-XEN_ETIME, XEN_vcpu_op, XEN_VCPUOP_set_singleshot_timer, 0, put(past));
    past.flags = 0;
    want(0, XEN_vcpu_op, XEN_VCPUOP_set_singleshot_timer, 0, put(past));
    sleep_until(fired[port] == 2);
    want(0, XEN_vcpu_op, XEN_VCPUOP_set_singleshot_timer, 0, put(far));
    want(0, XEN_vcpu_op, XEN_VCPUOP_stop_singleshot_timer, 0);
    want(0, XEN_vcpu_op, XEN_VCPUOP_stop_periodic_timer, 0);
    want(-XEN_ENOSYS, XEN_vcpu_op, XEN_VCPUOP_set_periodic_timer, 0, arg);

    /* Poll: at once, after a time, by an event that is masked. */
    shared.vcpu_info[0].upcall_mask = 1;
    *(uint32_t *)(arg + 64) = port;
    want(0, XEN_sched_op, XEN_SCHEDOP_poll, put(p));
    p.timeout = 0;
    shared.evtchn_mask[0] |= 1ull << port;
    xen_call1(XEN_set_timer_op, 1);
    do /* the time limit of the poll before may wake this one */
        want(0, XEN_sched_op, XEN_SCHEDOP_poll, put(p));
    while (!(shared.evtchn_pending[0] >> port & 1));
    want(0, XEN_sched_op, XEN_SCHEDOP_poll, put(p));
    *(uint32_t *)(arg + 64) = XEN_EVTCHNS;
    want(-XEN_EINVAL, XEN_sched_op, XEN_SCHEDOP_poll, put(p));
    p.nr_ports = 129;
    want(-XEN_EINVAL, XEN_sched_op, XEN_SCHEDOP_poll, put(p));
    p = (struct xen_sched_poll){ .ports = NOWHERE, .nr_ports = 1 };
    want(-XEN_EFAULT, XEN_sched_op, XEN_SCHEDOP_poll, put(p));
    EVENT(0, close, port);
    shared.evtchn_mask[0] &= ~(1ull << port);
    events_on();
    want(0, XEN_sched_op, XEN_SCHEDOP_yield);
    want(-XEN_ENOSYS, XEN_sched_op, 99);
    const uint32_t reason = 99;
    want(-XEN_EINVAL, XEN_sched_op, XEN_SCHEDOP_shutdown, put(reason));
}

/* Grants: tests/unit/test_xen_io.c has every status of every element; here is what the call itself says. */
static void test_grants(void)
{
    struct xen_gnttab_query q = { .dom = XEN_DOMID_SELF };
    struct xen_gnttab_get_version v = { .dom = XEN_DOMID_SELF };
    uint32_t version = 1;

    want(0, XEN_grant_table_op, XEN_GNTTABOP_query_size, put(q), 1);
    that(GOT(struct xen_gnttab_query)->max_nr_frames == 32 && !GOT(struct xen_gnttab_query)->status);
    want(-XEN_EINVAL, XEN_grant_table_op, XEN_GNTTABOP_query_size, put(q), 2);
    want(-XEN_EINVAL, XEN_grant_table_op, XEN_GNTTABOP_setup_table, arg, 0);
    want(0, XEN_grant_table_op, XEN_GNTTABOP_get_version, put(v), 1);
    that(GOT(struct xen_gnttab_get_version)->version == 1);
    want(-XEN_EINVAL, XEN_grant_table_op, XEN_GNTTABOP_get_version, put(v), 2);
    v.dom = 5;
    want(-XEN_EPERM, XEN_grant_table_op, XEN_GNTTABOP_get_version, put(v), 1);
    want(0, XEN_grant_table_op, XEN_GNTTABOP_set_version, put(version), 1);
    want(-XEN_EINVAL, XEN_grant_table_op, XEN_GNTTABOP_set_version, put(version), 0);
    version = 2;
    want(-XEN_ENOSYS, XEN_grant_table_op, XEN_GNTTABOP_set_version, put(version), 1);
    version = 3;
    want(-XEN_EINVAL, XEN_grant_table_op, XEN_GNTTABOP_set_version, put(version), 1);
    want(-XEN_E2BIG, XEN_grant_table_op, XEN_GNTTABOP_copy, arg, (1u << 16) + 1);
    want(-XEN_ENOSYS, XEN_grant_table_op, XEN_GNTTABOP_dump_table, arg, 1);
    want(-XEN_ENOSYS, XEN_grant_table_op, 99, arg, 1);
}

void test_calls(void)
{
    test_addresses();
    test_version();
    test_small_ones();
    test_ports();
    test_time();
    test_grants();
}
