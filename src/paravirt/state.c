/*
 * state.c - the paravirtual interface's part of a snapshot. What the guest set up by MSRs of contract 1 is set up again
 * by the same writes. Contract 2's is native_state.c, contract 3's xen/state.c.
 */
#include "paravirt/inner.h"
#include "paravirt/native.h"
#include "paravirt/xen/xen.h"
#include "base/state.h"
#include "machine/machine.h"
#include <errno.h>
#include <stdio.h>

struct saved_clock {
    u64 zero; /* vCPU 0's TSC at system time 0 */
};
static const struct state_field clock_fields[] = { STATE(struct saved_clock, zero), STATE_END };

struct saved_cpu {
    u64 system_time, wall_clock, steal_time, poll_control, migration, eoi;
};
static const struct state_field cpu_fields[] = {
    STATE(struct saved_cpu, system_time), STATE(struct saved_cpu, wall_clock), STATE(struct saved_cpu, steal_time),
    STATE(struct saved_cpu, poll_control), STATE(struct saved_cpu, migration), STATE(struct saved_cpu, eoi), STATE_END
};

void paravirt_save(struct paravirt *pv, struct state_set *set)
{
    struct saved_clock clock = { pv->tsc_base + vitro_vcpu_tsc_offset(pv->cpu[0].vcpu) };
    char name[32];

    if (pv->xen)
        xen_save(pv->xen, set);
    if (pv->native)
        native_save(pv->native, set);
    state_set_save(set, "paravirt", clock_fields, &clock);
    for (unsigned i = 0; i < pv->nr_cpus; i++) {
        const struct kvm_vcpu *k = &pv->cpu[i].kvm;
        const struct saved_cpu s = {
            k->system_time, k->wall_clock, k->steal_time, k->poll_control, k->migration,
            pv->config.machine ? machine_pv_eoi_get(pv->config.machine, i) : 0,
        };
        snprintf(name, sizeof(name), "paravirt.%u", i);
        state_set_save(set, name, cpu_fields, &s);
    }
}

int paravirt_load(struct paravirt *pv, struct state_set *set, char *err, size_t err_len)
{
    struct saved_clock clock;
    struct saved_cpu s;
    char name[32];
    int r = state_set_load(set, "paravirt", clock_fields, &clock, err, err_len);

    for (unsigned i = 0; i < pv->nr_cpus && !r; i++) {
        struct kvm_vcpu *k = &pv->cpu[i].kvm;
        snprintf(name, sizeof(name), "paravirt.%u", i);
        r = state_set_load(set, name, cpu_fields, &s, err, err_len);
        if (r)
            break;
        /* These say where something is in guest memory, which is there already. */
        k->system_time = s.system_time;
        k->wall_clock = s.wall_clock;
        k->poll_control = s.poll_control & 1;
        k->migration = s.migration & 1;
        if (kvm_steal_write(pv, i, s.steal_time) || ((s.eoi & 1) && kvm_eoi_write(pv, i, s.eoi))) {
            snprintf(err, err_len, "%s: no such state is possible", name);
            r = -EINVAL;
        }
    }
    if (!r && pv->native)
        r = native_load(pv->native, set, err, err_len);
    if (!r && pv->xen)
        r = xen_load(pv->xen, set, err, err_len);
    if (!r)
        pv->tsc_base = clock.zero - vitro_vcpu_tsc_offset(pv->cpu[0].vcpu);
    return r;
}
