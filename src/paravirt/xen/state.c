/*
 * state.c - a Xen PV guest's part of a snapshot: what only its hypervisor knows of it. What is in its memory comes with that.
 * Beside it: grant.c, bus.c and the classes of devices, store_state.c.
 *
 * Uses of frames are not in the file. Who has them is: pins, base pointers, descriptor tables, grants; each of them is
 * taken again as the guest took it (mmu.c), so that the tables in a file are looked through as those of a guest.
 * What is remembered of translations (spaces.c) begins anew.
 * Everything is paused. A file is believed no more than a guest.
 */
#include "paravirt/xen/io.h"
#include "machine/machine.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int xen_impossible(char *err, size_t err_len, const char *name, const char *what)
{
    snprintf(err, err_len, "%s: no such %s is possible", name, what);
    return -EINVAL;
}

void xen_save_list(struct state_set *set, const char *name, struct state_buf *buf)
{
    set->failed |= buf->failed;
    state_set_add(set, name, buf->data ? buf->data : (u8 *)"", buf->len);
    state_buf_free(buf);
}

const u8 *xen_load_list(struct state_set *set, const char *name, size_t each, size_t *nr, char *err, size_t err_len)
{
    size_t len;
    const u8 *bytes = state_set_take(set, name, &len);

    if (!bytes)
        snprintf(err, err_len, "%s: is missing", name);
    else if (len % each)
        xen_impossible(err, err_len, name, "list");
    *nr = bytes ? len / each : 0;
    return bytes && !(len % each) ? bytes : NULL;
}

/* -- The domain --------------------------------------------------------------------------------------------------- */

struct saved_domain {
    u64 tsc_zero;              /* vCPU 0's TSC at system time 0 */
    u32 tsc_mul;
    s32 tsc_shift;
    u64 console, store;        /* frames of the rings */
    u32 console_port, store_port;
    bool suspend_asked, suspended;
};
/* clang-format off */
#define F(field) STATE(struct saved_domain, field)
static const struct state_field domain_fields[] = {
    F(tsc_zero), F(tsc_mul), F(tsc_shift), F(console), F(store), F(console_port), F(store_port), F(suspend_asked), F(suspended),
    STATE_END
};
#undef F
/* clang-format on */

static u64 frame_of(const struct xen *x, const void *at) { return (u64)((const u8 *)at - x->c.host) >> PAGE_SHIFT; }

static void domain_save(struct xen *x, struct state_set *set)
{
    const struct saved_domain s = {
        .tsc_zero = x->tsc_base + vitro_vcpu_tsc_offset(x->cpu[0].vcpu), .tsc_mul = x->tsc_mul, .tsc_shift = x->tsc_shift,
        .console = frame_of(x, x->console), .store = frame_of(x, store_ring(x->store)), .console_port = x->console_port,
        .store_port = x->store_port, .suspend_asked = x->suspend_asked, .suspended = x->suspended,
    };

    state_set_save(set, "xen", domain_fields, &s);
    state_set_add(set, "xen.shared", x->own, FRAMES_SHARED * PAGE_SIZE);
}

static int domain_load(struct xen *x, struct state_set *set, char *err, size_t err_len)
{
    struct saved_domain s;
    size_t nr;
    int r = state_set_load(set, "xen", domain_fields, &s, err, err_len);

    if (r)
        return r;
    if (s.tsc_shift < -31 || s.tsc_shift > 31)
        return xen_impossible(err, err_len, "xen", "time");
    if (s.console >= x->nr_frames || s.store >= x->nr_frames)
        return xen_impossible(err, err_len, "xen", "frame");
    const u8 *shared = xen_load_list(set, "xen.shared", FRAMES_SHARED * PAGE_SIZE, &nr, err, err_len);
    if (!shared)
        return -EINVAL;
    if (nr != 1)
        return xen_impossible(err, err_len, "xen.shared", "size");
    memcpy(x->own, shared, FRAMES_SHARED * PAGE_SIZE);
    x->tsc_base = s.tsc_zero - vitro_vcpu_tsc_offset(x->cpu[0].vcpu);
    x->tsc_mul = s.tsc_mul; /* what the guest was told, also if this host measured another rate */
    x->tsc_shift = (s8)s.tsc_shift;
    x->console = (struct xen_console_ring *)xen_table(x, s.console);
    store_attach(x->store, (struct xen_store_ring *)xen_table(x, s.store));
    x->console_port = s.console_port;
    x->store_port = s.store_port;
    x->suspend_asked = s.suspend_asked;
    x->suspended = s.suspended;
    return 0;
}

/* -- Ports; pending and masked are bits of the shared page ------------------------------------------------------------ */

struct saved_port {
    u16 port, remote;
    u8 state, vcpu, virq, gather;
    u32 stay;
};
_Static_assert(sizeof(struct saved_port) == 12, "no padding");

static void ports_save(const struct xen *x, struct state_set *set)
{
    struct state_buf buf = { 0 };

    for (u32 i = 1; i < XEN_EVTCHNS; i++) {
        const struct port *p = &x->port[i];
        if (p->state == XEN_EVTCHN_closed)
            continue;
        const struct saved_port s = {
            .port = (u16)i, .remote = p->remote, .vcpu = p->vcpu, .virq = p->virq, .gather = p->gather, .stay = p->stay,
            .state = p->notify ? XEN_EVTCHN_unbound : p->state, /* a back end's: it binds it again */
        };
        state_put(&buf, &s, sizeof(s));
    }
    xen_save_list(set, "xen.ports", &buf);
}

static bool port_load(struct xen *x, const struct saved_port *s)
{
    if (!s->port || s->port >= XEN_EVTCHNS || x->port[s->port].state != XEN_EVTCHN_closed || s->vcpu >= x->c.nr_cpus)
        return false;
    bool ours = s->port == x->console_port || s->port == x->store_port;
    if (s->state != XEN_EVTCHN_unbound && s->state != XEN_EVTCHN_ipi && s->state != XEN_EVTCHN_virq &&
        !(s->state == XEN_EVTCHN_interdomain && ours))
        return false;
    if (ours != (s->state == XEN_EVTCHN_interdomain) || s->virq >= XEN_NR_VIRQS)
        return false;
    bool global = s->state == XEN_EVTCHN_virq && virq_is_global(s->virq);
    if (s->state == XEN_EVTCHN_virq) {
        u32 *bound = &x->cpu[global ? 0 : s->vcpu].virq_port[s->virq];
        if (*bound)
            return false;
        *bound = s->port;
    }
    x->port[s->port] = (struct port){ .state = s->state, .vcpu = s->vcpu, .virq = s->virq, .global = global, .remote = s->remote,
                                      .stay = s->stay, .gather = s->gather };
    return true;
}

static int ports_load(struct xen *x, struct state_set *set, char *err, size_t err_len)
{
    size_t nr;
    const u8 *bytes = xen_load_list(set, "xen.ports", sizeof(struct saved_port), &nr, err, err_len);

    if (!bytes)
        return -EINVAL;
    for (size_t i = 0; i < nr; i++) {
        struct saved_port s;
        memcpy(&s, bytes + i * sizeof(s), sizeof(s));
        if (!port_load(x, &s))
            return xen_impossible(err, err_len, "xen.ports", "port");
    }
    const u32 ours[] = { x->console_port, x->store_port };
    for (unsigned i = 0; i < ARRAY_SIZE(ours); i++)
        if (ours[i] >= XEN_EVTCHNS || x->port[ours[i]].state != XEN_EVTCHN_interdomain)
            return xen_impossible(err, err_len, "xen", "port");
    return ours[0] == ours[1] ? xen_impossible(err, err_len, "xen", "port") : 0;
}

/* -- Processors ------------------------------------------------------------------------------------------------------- */

struct saved_cpu {
    u64 kernel_sp, kernel_cr3, user_cr3, cr0, cr4;
    u64 trap_address[256], callback_address[XEN_NR_CALLBACKS];
    u8 trap_flags[256];
    bool callback_mask[XEN_NR_CALLBACKS];
    bool initialised, started, up, polling, gathered_late;
    u8 iopl;
    u32 runstate, info_offset, iobitmap_ports, nr_gdt, gdt_frame[XEN_GDT_RESERVED_PAGE], stays, nr_gathering, gathering[8];
    u64 runstate_since, runstate_time[4], runstate_la, iobitmap_la, info_frame;
    u64 deadline, poll_deadline; /* system time; machine time, CLOCK_NEVER: none */
};
/* clang-format off */
#define F(field) STATE(struct saved_cpu, field)
static const struct state_field cpu_fields[] = {
    F(kernel_sp), F(kernel_cr3), F(user_cr3), F(cr0), F(cr4), F(trap_address), F(callback_address), F(trap_flags), F(callback_mask),
    F(initialised), F(started), F(up), F(polling), F(gathered_late), F(iopl), F(runstate), F(info_offset), F(iobitmap_ports),
    F(nr_gdt), F(gdt_frame), F(stays), F(nr_gathering), F(gathering), F(runstate_since), F(runstate_time), F(runstate_la),
    F(iobitmap_la), F(info_frame), F(deadline), F(poll_deadline), STATE_END
};
#undef F
/* clang-format on */

/* Of a vCPU that was given a state to start from, and has not started: the rest is the same for all (vcpu_sregs). */
struct saved_start {
    struct vitro_regs regs;
    u64 base[7], gs_user;
    u32 limit[7], attr[7];
    u16 selector[7];
};
/* clang-format off */
#define F(field) STATE(struct saved_start, field)
static const struct state_field start_fields[] = {
    F(regs), F(base), F(gs_user), F(limit), F(attr), F(selector), STATE_END
};
#undef F
/* clang-format on */

static struct vitro_segment *start_segment(struct xen_cpu *c, unsigned i)
{
    struct vitro_sregs *s = &c->start_sregs;
    struct vitro_segment *const seg[7] = { &s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs, &s->ldt };
    return seg[i];
}

static void start_save(struct xen_cpu *c, struct state_set *set)
{
    struct saved_start s = { .regs = c->start_regs, .gs_user = c->start_gs_user };
    char name[32];

    for (unsigned i = 0; i < ARRAY_SIZE(s.base); i++) {
        const struct vitro_segment *g = start_segment(c, i);
        s.base[i] = g->base;
        s.limit[i] = g->limit;
        s.attr[i] = g->attr;
        s.selector[i] = g->selector;
    }
    snprintf(name, sizeof(name), "xen.cpu.%u.start", c->index);
    state_set_save(set, name, start_fields, &s);
}

static void cpu_save(struct xen_cpu *c, struct state_set *set)
{
    struct saved_cpu *s = calloc(1, sizeof(*s));
    char name[32];

    if (!s) {
        set->failed = true;
        return;
    }
    *s = (struct saved_cpu){
        .kernel_sp = c->kernel_sp, .kernel_cr3 = c->kernel_cr3, .user_cr3 = c->user_cr3, .cr0 = c->cr0, .cr4 = c->cr4,
        .initialised = c->initialised, .started = c->started, .up = c->up, .polling = c->polling,
        .gathered_late = c->gathered_late, .iopl = c->iopl, .runstate = c->runstate.state, .iobitmap_ports = c->iobitmap_ports,
        .nr_gdt = c->nr_gdt, .stays = c->stays, .nr_gathering = c->nr_gathering, .runstate_since = c->runstate.state_entry_time,
        .runstate_la = c->runstate_la, .iobitmap_la = c->iobitmap_la, .info_frame = c->info_frame,
        .info_offset = c->info_frame ? (u32)((u8 *)c->info - (u8 *)xen_table(c->xen, c->info_frame - 1)) : 0,
        .deadline = c->deadline, .poll_deadline = c->poll_timer.heap_pos ? c->poll_timer.deadline_ns : CLOCK_NEVER,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(c->trap); i++) {
        s->trap_address[i] = c->trap[i].address;
        s->trap_flags[i] = c->trap[i].flags;
    }
    for (unsigned i = 0; i < XEN_NR_CALLBACKS; i++) {
        s->callback_address[i] = c->callback[i].address;
        s->callback_mask[i] = c->callback[i].mask;
    }
    memcpy(s->runstate_time, c->runstate.time, sizeof(s->runstate_time));
    memcpy(s->gdt_frame, c->gdt_frame, c->nr_gdt * sizeof(s->gdt_frame[0]));
    memcpy(s->gathering, c->gathering, c->nr_gathering * sizeof(s->gathering[0]));
    snprintf(name, sizeof(name), "xen.cpu.%u", c->index);
    state_set_save(set, name, cpu_fields, s);
    free(s);
    if (c->initialised && !c->started)
        start_save(c, set);
}

#define SEG_ATTR 0xf0ffu /* the bits of a descriptor that struct vitro_segment has */

/* A segment of the guest's own making: none, or code or data that is there. */
static bool segment_good(const struct vitro_segment *s)
{
    return !(s->attr & ~(SEG_ATTR | SEG_UNUSABLE)) && cpu_canonical(s->base) &&
           (s->attr & SEG_UNUSABLE || (s->attr & (SEG_S | SEG_P)) == (SEG_S | SEG_P));
}

static bool ldt_good(const struct vitro_segment *s)
{
    return s->attr & SEG_UNUSABLE || (s->attr == LDT_ATTR && cpu_canonical(s->base) && s->limit < 1u << 16);
}

/* What is the same for all vCPUs of such guests; whose pages it works with was looked at before. */
static bool mode_good(const struct xen_cpu *c)
{
    struct vitro_sregs s;

    vitro_vcpu_get_sregs(c->vcpu, &s);
    if (!c->started) /* it has waited since it was made */
        return !(s.cr0 & CR0_PG);
    const struct vitro_segment *const seg[] = { &s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs };
    for (unsigned i = 0; i < ARRAY_SIZE(seg); i++)
        if (!segment_good(seg[i]))
            return false;
    return ldt_good(&s.ldt) && s.tr.attr & SEG_UNUSABLE && s.gdt_base == GDT_AREA + c->index * GDT_AREA_STRIDE &&
           s.gdt_limit == GDT_LIMIT && !s.idt_base && !s.idt_limit && (s.cr0 & ~(u64)CR0_TS) == CR0_ALWAYS && s.efer == EFER_ALWAYS &&
           (s.cr4 | CR4_GUESTS) == (CR4_ALWAYS | CR4_GUESTS) && (s.cr4 & CR4_ALWAYS) == CR4_ALWAYS &&
           (s.cr3 == c->kernel_cr3 || s.cr3 == c->user_cr3);
}

static int start_load(struct xen_cpu *c, struct state_set *set, char *err, size_t err_len)
{
    const struct vitro_segment *cs = start_segment(c, 1), *ss = start_segment(c, 2);
    struct saved_start s;
    char name[32];
    bool good = true;

    snprintf(name, sizeof(name), "xen.cpu.%u.start", c->index);
    int r = state_set_load(set, name, start_fields, &s, err, err_len);
    if (r)
        return r;
    u64 cr4 = c->cr4;
    vcpu_sregs(c, &c->start_sregs);
    c->cr4 = c->start_sregs.cr4 = cr4;
    c->start_sregs.cr3 = c->kernel_cr3;
    for (unsigned i = 0; i < ARRAY_SIZE(s.base); i++) {
        struct vitro_segment *g = start_segment(c, i);
        *g = (struct vitro_segment){ .base = s.base[i], .limit = s.limit[i], .attr = s.attr[i], .selector = s.selector[i] };
        good &= i < 6 ? segment_good(g) : ldt_good(g);
    }
    good &= (cs->attr & (SEG_UNUSABLE | SEG_CODE | SEG_L | SEG_DB)) == (SEG_CODE | SEG_L) && !(ss->attr & SEG_UNUSABLE) &&
            (ss->attr >> SEG_DPL_SHIFT & 3) == 1 && cpu_canonical(s.gs_user) && cpu_canonical(s.regs.rip) &&
            !((s.regs.rflags ^ (EFL_IF | EFL_R1)) & ~(u64)(EFL_ARITH | EFL_DF));
    c->start_regs = s.regs;
    c->start_gs_user = s.gs_user;
    return good ? 0 : xen_impossible(err, err_len, name, "state");
}

/* Frames that the vCPU has: base pointers, descriptors, vcpu_info. */
static bool cpu_frames_load(struct xen_cpu *c, const struct saved_cpu *s)
{
    struct xen *x = c->xen;
    u64 mfn[XEN_GDT_RESERVED_PAGE], info = s->info_frame - 1;

    if (s->nr_gdt > XEN_GDT_RESERVED_PAGE || (s->kernel_cr3 & ~PAGE_MASK) || (s->user_cr3 & ~PAGE_MASK) ||
        (s->started && !s->kernel_cr3))
        return false;
    for (unsigned i = 0; i < s->nr_gdt; i++)
        mfn[i] = s->gdt_frame[i];
    if ((s->kernel_cr3 && frame_get(x, s->kernel_cr3 >> PAGE_SHIFT, FRAME_L4)) ||
        (s->user_cr3 && frame_get(x, s->user_cr3 >> PAGE_SHIFT, FRAME_L4)) || gdt_load(c, mfn, s->nr_gdt))
        return false;
    c->kernel_cr3 = s->kernel_cr3;
    c->user_cr3 = s->user_cr3;
    if (!s->info_frame)
        return true;
    if (s->info_offset > PAGE_SIZE - sizeof(*c->info) || (s->info_offset & 7) || frame_get(x, info, FRAME_WRITABLE))
        return false;
    c->info_frame = s->info_frame;
    c->info = (struct xen_vcpu_info *)((u8 *)xen_table(x, info) + s->info_offset);
    return true;
}

static bool cpu_believe(struct xen_cpu *c, const struct saved_cpu *s)
{
    bool cr0_good = (s->cr0 & ~(u64)CR0_TS) == CR0_ALWAYS || (!s->initialised && !s->cr0);

    if (!cpu_canonical(s->kernel_sp) || !cr0_good ||
        (s->cr4 & ~(u64)(CR4_GUESTS | CR4_ALWAYS)) || s->iopl > 3 || s->iobitmap_ports > 65536 || s->runstate > XEN_RUNSTATE_offline ||
        s->nr_gathering > ARRAY_SIZE(c->gathering) || (s->started && !s->initialised) || (s->up && !s->started))
        return false;
    for (unsigned i = 0; i < ARRAY_SIZE(c->trap); i++) {
        if (!cpu_canonical(s->trap_address[i]))
            return false;
        c->trap[i] = (struct trap_gate){ s->trap_address[i], s->trap_flags[i] };
    }
    for (unsigned i = 0; i < XEN_NR_CALLBACKS; i++) {
        if (!cpu_canonical(s->callback_address[i]))
            return false;
        c->callback[i].address = s->callback_address[i];
        c->callback[i].mask = s->callback_mask[i];
    }
    for (unsigned i = 0; i < s->nr_gathering; i++) {
        if (s->gathering[i] >= XEN_EVTCHNS)
            return false;
        c->gathering[i] = s->gathering[i];
    }
    c->nr_gathering = s->nr_gathering;
    c->gathered_late = s->gathered_late;
    c->kernel_sp = s->kernel_sp;
    c->cr0 = s->cr0;
    c->cr4 = s->cr4;
    c->iopl = s->iopl;
    c->iobitmap_la = s->iobitmap_la;
    c->iobitmap_ports = s->iobitmap_ports;
    c->stays = s->stays;
    c->polling = s->polling;
    c->runstate = (struct xen_runstate_info){ .state = s->runstate, .state_entry_time = s->runstate_since };
    memcpy(c->runstate.time, s->runstate_time, sizeof(c->runstate.time));
    c->runstate_la = s->runstate_la;
    return cpu_frames_load(c, s);
}

static int cpu_load(struct xen_cpu *c, struct state_set *set, char *err, size_t err_len)
{
    struct vm_clock *clock = machine_clock(c->xen->c.machine);
    struct saved_cpu *s = calloc(1, sizeof(*s));
    char name[32];

    snprintf(name, sizeof(name), "xen.cpu.%u", c->index);
    int r = s ? state_set_load(set, name, cpu_fields, s, err, err_len) : -ENOMEM;
    if (!r && !cpu_believe(c, s))
        r = xen_impossible(err, err_len, name, "state");
    if (!r && s->initialised && !s->started)
        r = start_load(c, set, err, err_len);
    if (!r) {
        c->initialised = s->initialised;
        c->started = s->started; /* behind gdt_load(), which would flush for one that runs */
        c->up = s->up;
        if (!mode_good(c))
            r = xen_impossible(err, err_len, name, "mode");
    }
    if (!r) {
        set_deadline(c, s->deadline);
        if (s->poll_deadline != CLOCK_NEVER)
            timer_arm(clock, &c->poll_timer, MIN(s->poll_deadline, (u64)INT64_MAX));
        if (c->nr_gathering)
            ports_look_later(c->xen);
    }
    free(s);
    return r;
}

/* -- Frames: pins, what the guest gave back, and what it says of them in the machine-to-physical table ------------------- */

struct saved_pin {
    u32 frame, type;
};
struct saved_gone {
    u64 first, nr;
};
struct saved_m2p {
    u64 frame, number;
};

static u64 m2p_usual(const struct xen *x, u64 mfn) { return x->frame[mfn].type == FRAME_GONE ? ~0ull : mfn; }

static void frames_save(const struct xen *x, struct state_set *set)
{
    struct state_buf pins = { 0 }, gone = { 0 }, m2p = { 0 };
    struct saved_gone run = { 0 };

    for (u64 i = 0; i < x->nr_frames; i++) {
        if (x->frame[i].pinned)
            state_put(&pins, &(struct saved_pin){ (u32)i, x->frame[i].type }, sizeof(struct saved_pin));
        if (x->m2p[i] != m2p_usual(x, i))
            state_put(&m2p, &(struct saved_m2p){ i, x->m2p[i] }, sizeof(struct saved_m2p));
        if (x->frame[i].type != FRAME_GONE)
            continue;
        if (run.nr && run.first + run.nr != i) {
            state_put(&gone, &run, sizeof(run));
            run.nr = 0;
        }
        run = (struct saved_gone){ run.nr ? run.first : i, run.nr + 1 };
    }
    if (run.nr)
        state_put(&gone, &run, sizeof(run));
    xen_save_list(set, "xen.pins", &pins);
    xen_save_list(set, "xen.gone", &gone);
    xen_save_list(set, "xen.m2p", &m2p);
}

static int pins_load(struct xen *x, struct state_set *set, char *err, size_t err_len)
{
    size_t nr;
    const u8 *bytes = xen_load_list(set, "xen.pins", sizeof(struct saved_pin), &nr, err, err_len);

    for (size_t i = 0; bytes && i < nr; i++) {
        struct saved_pin s;
        memcpy(&s, bytes + i * sizeof(s), sizeof(s));
        if (s.type < FRAME_L1 || s.type > FRAME_L4 || mmu_pin(x, s.frame, (enum frame_type)s.type))
            return xen_impossible(err, err_len, "xen.pins", "page table");
    }
    return bytes ? 0 : -EINVAL;
}

/* Behind everything that uses frames: one that is gone may still be mapped read-only, but not newly so. */
static int gone_load(struct xen *x, struct state_set *set, char *err, size_t err_len)
{
    size_t nr, nr_m2p;
    const u8 *gone = xen_load_list(set, "xen.gone", sizeof(struct saved_gone), &nr, err, err_len), *m2p;

    for (size_t i = 0; gone && i < nr; i++) {
        struct saved_gone s;
        memcpy(&s, gone + i * sizeof(s), sizeof(s));
        if (s.first >= x->nr_frames || s.nr > x->nr_frames - s.first)
            return xen_impossible(err, err_len, "xen.gone", "frame");
        for (u64 mfn = s.first; mfn < s.first + s.nr; mfn++)
            if (!frame_gone(x, mfn))
                return xen_impossible(err, err_len, "xen.gone", "frame");
    }
    m2p = gone ? xen_load_list(set, "xen.m2p", sizeof(struct saved_m2p), &nr_m2p, err, err_len) : NULL;
    for (size_t i = 0; m2p && i < nr_m2p; i++) {
        struct saved_m2p s;
        memcpy(&s, m2p + i * sizeof(s), sizeof(s));
        if (s.frame >= x->nr_frames)
            return xen_impossible(err, err_len, "xen.m2p", "frame");
        x->m2p[s.frame] = s.number;
    }
    return m2p ? 0 : -EINVAL;
}

/* Address spaces: what the vCPUs' upper halves have in common, and where user code's translations go. */
static void spaces_load(struct xen *x)
{
    x->holder = x->cpu[0].vcpu;
    for (unsigned i = 0, n = 0; i < x->c.nr_cpus; i++) {
        struct xen_cpu *c = &x->cpu[i];
        if (!c->started)
            continue;
        mmu_kernel_half(x, n++ ? c : NULL, c->kernel_cr3 >> PAGE_SHIFT);
        space_switch(c);
    }
    x->holder = NULL;
    for (unsigned i = 0; i < x->c.nr_cpus; i++)
        x->cpu[i].kernel_seen = x->kernel_changes; /* nothing is remembered yet */
}

/* -- All of it -------------------------------------------------------------------------------------------------------------- */

void xen_save(struct xen *x, struct state_set *set)
{
    pthread_mutex_lock(&x->lock);
    domain_save(x, set);
    ports_save(x, set);
    for (unsigned i = 0; i < x->c.nr_cpus; i++)
        cpu_save(&x->cpu[i], set);
    frames_save(x, set);
    grants_save(x, set);
    store_save(x->store, set);
    pthread_mutex_unlock(&x->lock);
    bus_save(x, set);
}

int xen_load(struct xen *x, struct state_set *set, char *err, size_t err_len)
{
    xen_io_pause(x, true);
    pthread_mutex_lock(&x->lock);
    int r = domain_load(x, set, err, err_len);
    if (!r)
        r = ports_load(x, set, err, err_len);
    if (!r)
        r = pins_load(x, set, err, err_len);
    for (unsigned i = 0; i < x->c.nr_cpus && !r; i++)
        r = cpu_load(&x->cpu[i], set, err, err_len);
    if (!r)
        r = grants_load(x, set, err, err_len);
    if (!r)
        r = store_load(x->store, set, err, err_len);
    pthread_mutex_unlock(&x->lock);
    if (!r)
        r = bus_load(x, set, err, err_len);
    if (!r)
        r = gone_load(x, set, err, err_len);
    if (!r)
        spaces_load(x);
    return r;
}
