/*
 * lib.c - libvitro's public functions over the engine. Compiled like ordinary code (no guest vector state is
 * live here, except inside vitro_vcpu_run).
 */
#include "libvitro.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/fpu.h"
#include "engine/help.h"
#include "engine/mmu.h"
#include "engine/translate.h"
#include "engine/window.h"

struct vitro_vm { struct vm vm; };

static struct vcpu *V(const struct vitro_vcpu *c)
{
    return (struct vcpu *)c;
}

struct vitro_vm *vitro_vm_create(const struct vitro_config *config, const struct vitro_ops *ops, char *err, size_t err_len)
{
    static const struct vitro_config defaults;
    if (!config)
        config = &defaults;
    if (!__builtin_cpu_supports("bmi2")) {
        snprintf(err, err_len, "this host's CPU lacks BMI2 (any x86-64-v3 CPU has it)");
        return NULL;
    }
    struct vm *vm = aligned_alloc(64, (sizeof(struct vm) + 63) & ~63ull);
    if (!vm) {
        snprintf(err, err_len, "out of memory");
        return NULL;
    }
    memset(vm, 0, sizeof(*vm));
    insn_init();
    ram_init(&vm->ram);
    if (ops)
        vm->host = *ops;
    vm->debug = config->debug;
    vm->trace = config->trace_file;
    pthread_mutex_init(&vm->lock, NULL);
    turns_init(&vm->xl_lock);
    pthread_mutex_init(&vm->written.lock, NULL);
    const char *why = NULL;
    vm->model = cpu_model_create(config->cpu_model, config->nr_cpus ? config->nr_cpus : 1, vitro_tsc_khz(), &why);
    if (!vm->model) {
        snprintf(err, err_len, "%s", why ? why : "cannot make the CPU model");
        goto fail;
    }
    if (!vm->host.wake)
        cpu_model_hide_mwait(vm->model);
    if (config->pv)
        vm->pv = *config->pv;
    if (cpu_model_set_pv(vm->model, vm->pv.leaves, vm->pv.nr_leaves)) {
        snprintf(err, err_len, "bad paravirtual CPUID leaves");
        goto fail;
    }
    vm->xl = mmap(NULL, sizeof(struct xl), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    vm->cache = cache_create(vm, config->cache_bytes);
    if (vm->xl == MAP_FAILED || !vm->cache) {
        snprintf(err, err_len, "cannot map the code cache: %s", strerror(errno));
        goto fail;
    }
    return (struct vitro_vm *)vm;
fail:
    cpu_model_destroy(vm->model);
    free(vm);
    return NULL;
}

void vitro_vm_destroy(struct vitro_vm *pub)
{
    struct vm *vm = &pub->vm;
    cache_destroy(vm->cache);
    window_vm_fini(vm);
    munmap(vm->xl, sizeof(struct xl));
    for (unsigned i = 0; i < vm->ram.nr_slots; i++)
        if (vm->wtag[i])
            munmap(vm->wtag[i], (vm->ram.slot[i].size >> PAGE_SHIFT) * sizeof(u64) * WTAG_WAYS);
    ram_fini(&vm->ram);
    cpu_model_destroy(vm->model);
    pthread_mutex_destroy(&vm->written.lock);
    turns_fini(&vm->xl_lock);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

int vitro_vm_add_memory(struct vitro_vm *pub, uint64_t gpa, uint64_t size, void *host, unsigned flags)
{
    struct vm *vm = &pub->vm;
    unsigned at = vm->ram.nr_slots; /* where it will be, and may be found at once */
    if (at == RAM_MAX_SLOTS)
        return -ENOSPC;
    u64 wtag_len = (size >> PAGE_SHIFT) * sizeof(u64) * WTAG_WAYS;
    u64 *fresh = mmap(NULL, MAX(wtag_len, PAGE_SIZE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fresh == MAP_FAILED)
        return -ENOMEM;
    vm->wtag[at] = fresh;
    int r = ram_add_slot(&vm->ram, gpa, size, host, flags & VITRO_MEM_READONLY);
    if (r) {
        vm->wtag[at] = NULL;
        munmap(fresh, MAX(wtag_len, PAGE_SIZE));
        return r;
    }
    return flags & VITRO_MEM_AHEAD ? ram_ask_ahead(&vm->ram, gpa) : 0;
}

int vitro_vm_show_memory(struct vitro_vm *pub, void *host, uint64_t size, uint64_t gpa)
{
    struct vm *vm = &pub->vm;
    struct ram_slot *back = NULL;
    int r = 0;
    pthread_mutex_lock(&vm->lock);
    for (unsigned i = 0; i < vm->ram.nr_slots; i++) {
        struct ram_slot *rs = &vm->ram.slot[i];
        if (rs->host != host || rs->size != size)
            continue;
        if (!rs->absent)
            engine_kill_code(vm, rs);
        __atomic_store_n(&rs->absent, true, __ATOMIC_RELAXED);
        if (rs->gpa == gpa)
            back = rs;
    }
    if (back)
        __atomic_store_n(&back->absent, false, __ATOMIC_RELAXED);
    else if (gpa != VITRO_NOWHERE)
        r = vitro_vm_add_memory(pub, gpa, size, host, 0);
    engine_remapped(vm);
    return r;
}

void vitro_vm_set_a20(struct vitro_vm *pub, bool on)
{
    struct vm *vm = &pub->vm;
    __atomic_store_n(&vm->a20_off, !on, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        if (vm->vcpu[i])
            __atomic_fetch_or(&vm->vcpu[i]->event, EVENT_RESCHED, __ATOMIC_SEQ_CST);
}

static int fpu_init(struct vcpu *v);
static void fpu_fini(struct vcpu *v);

struct vitro_vcpu *vitro_vcpu_create(struct vitro_vm *pub, unsigned index, char *err, size_t err_len)
{
    struct vm *vm = &pub->vm;
    if (index >= ARRAY_SIZE(vm->vcpu) || vm->vcpu[index]) {
        snprintf(err, err_len, "vCPU %u: bad or used index", index);
        return NULL;
    }
    struct vcpu *v = tlb_create();
    if (!v) {
        snprintf(err, err_len, "cannot map a vCPU: %s", strerror(errno));
        return NULL;
    }
    v->vm = vm;
    v->index = index;
    v->host = &vm->host;
    v->model = vm->model;
    v->eng->mwait.page = MWAIT_NOWHERE;
    v->outer = vm->pv.outer != NULL;
    if (fpu_init(v)) {
        snprintf(err, err_len, "out of memory");
        tlb_destroy(v);
        return NULL;
    }
    vm->vcpu[index] = v;
    if (index >= vm->nr_vcpus)
        vm->nr_vcpus = index + 1;
    vm->smp = vm->nr_vcpus > 1;
    for (unsigned i = 0; i < vm->nr_vcpus; i++) /* what one vCPU may have beside code */
        if (vm->vcpu[i])
            extent_unwrite(vm->vcpu[i], 0, ~0ull);
    engine_drop_returns(v);
    vcpu_reset(v);
    return (struct vitro_vcpu *)v;
}

void vitro_vcpu_destroy(struct vitro_vcpu *c)
{
    struct vcpu *v = V(c);
    v->vm->vcpu[v->index] = NULL;
    while (v->vm->nr_vcpus && !v->vm->vcpu[v->vm->nr_vcpus - 1])
        v->vm->nr_vcpus--;
    fpu_fini(v);
    smp_vcpu_fini(v);
    struct engine_vcpu *ev = v->eng;
    window_fini(v);
    tlb_destroy(v);
    engine_vcpu_free(ev);
}

void vitro_vcpu_reset(struct vitro_vcpu *c)
{
    vcpu_reset(V(c));
    fpu_init_image(V(c)->fpu);
}

void vitro_vcpu_init(struct vitro_vcpu *c)
{
    vcpu_init(V(c));
}
void vitro_vcpu_start(struct vitro_vcpu *c, unsigned vector)
{
    struct vcpu *v = V(c);
    v->seg[SEG_CS].sel = (u16)((vector & 0xff) << 8);
    v->seg[SEG_CS].base = v->rip = (u64)(vector & 0xff) << 12;
    vcpu_mode_changed(v);
}

/* -- Vector state -------------------------------------------------------------------------------------- */

static int fpu_init(struct vcpu *v)
{
    v->fpu = aligned_alloc(64, XSAVE_AREA_MAX);
    if (!v->fpu)
        return -ENOMEM;
    fpu_init_image(v->fpu);
    return 0;
}
static void fpu_fini(struct vcpu *v)
{
    free(v->fpu);
}

/* -- Registers ----------------------------------------------------------------------------------------- */

void vitro_vcpu_get_regs(struct vitro_vcpu *c, struct vitro_regs *r)
{
    struct vcpu *v = V(c);
    memcpy(r->gpr, v->regs, sizeof(r->gpr));
    r->rip = vcpu_ip(v);
    r->rflags = vcpu_eflags(v);
}
void vitro_vcpu_set_regs(struct vitro_vcpu *c, const struct vitro_regs *r)
{
    struct vcpu *v = V(c);
    memcpy(v->regs, r->gpr, sizeof(r->gpr));
    vcpu_set_ip(v, r->rip);
    vcpu_set_eflags(v, (u32)r->rflags);
    v->halted = 0;
    vcpu_mode_changed(v);
}

static void seg_out(struct vitro_segment *d, const struct seg *s)
{
    *d = (struct vitro_segment){ .base = s->base, .limit = s->limit, .attr = s->attr, .selector = s->sel };
}
static void seg_in(struct seg *d, const struct vitro_segment *s)
{
    *d = (struct seg){ .base = s->base, .limit = s->limit, .attr = s->attr, .sel = s->selector };
}
void vitro_vcpu_get_sregs(struct vitro_vcpu *c, struct vitro_sregs *s)
{
    struct vcpu *v = V(c);
    struct vitro_segment *out[NR_SEG] = { &s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs, &s->ldt, &s->tr };
    for (unsigned i = 0; i < NR_SEG; i++)
        seg_out(out[i], &v->seg[i]);
    s->gdt_base = v->gdtr.base;
    s->gdt_limit = v->gdtr.limit;
    s->idt_base = v->idtr.base;
    s->idt_limit = v->idtr.limit;
    s->cr0 = v->cr0;
    s->cr2 = v->cr2;
    s->cr3 = v->cr3;
    s->cr4 = v->cr4;
    s->cr8 = v->host->cr8_read ? v->host->cr8_read(v->host->opaque, v->index) : v->cr8;
    s->efer = v->efer;
    s->xcr0 = v->xcr0;
    memcpy(s->dr, v->dr, sizeof(s->dr));
}
void vitro_vcpu_set_sregs(struct vitro_vcpu *c, const struct vitro_sregs *s)
{
    struct vcpu *v = V(c);
    u64 rip = vcpu_ip(v);
    const struct vitro_segment *in[NR_SEG] = { &s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs, &s->ldt, &s->tr };
    for (unsigned i = 0; i < NR_SEG; i++)
        seg_in(&v->seg[i], in[i]);
    v->gdtr = (struct dtable){ s->gdt_base, s->gdt_limit };
    v->idtr = (struct dtable){ s->idt_base, s->idt_limit };
    v->cr0 = s->cr0;
    v->cr2 = s->cr2;
    v->cr3 = s->cr3;
    v->cr4 = s->cr4;
    v->efer = s->efer;
    if (v->host->cr8_write)
        v->host->cr8_write(v->host->opaque, v->index, s->cr8);
    if (s->xcr0)
        v->xcr0 = s->xcr0;
    memcpy(v->dr, s->dr, sizeof(s->dr));
    v->cpl = v->cr0 & CR0_PE ? (v->seg[SEG_SS].attr >> SEG_DPL_SHIFT) & 3 : 0;
    vcpu_set_ip(v, rip);
    tlb_flush_all(v, true);
    tlb_switch(v, false);
    vcpu_mode_changed(v);
}

/* -- Running --------------------------------------------------------------------------------------------- */

enum vitro_exit vitro_vcpu_run(struct vitro_vcpu *c)
{
    struct vcpu *v = V(c);
    if (v->exit == EXIT_FAIL)
        return VITRO_EXIT_FAIL;
    if (fault_thread_init(v)) {
        snprintf(v->fail_msg, sizeof(v->fail_msg), "cannot set up a signal stack: %s", strerror(errno));
        v->exit = EXIT_FAIL;
        return VITRO_EXIT_FAIL;
    }
    v->exit = EXIT_NONE;
    v->eng->watch_hit = 0;
    v->eng->stepped = false;
    v->eng->brk_skip = true;
    v->eng->brk_skip_rip = v->rip;
    smp_online(v);
    fpu_load(v);
    engine_run(v);
    fpu_save(v);
    smp_offline(v);
    fault_thread_fini(v);
    switch (v->exit) {
    case EXIT_HLT: return VITRO_EXIT_HLT;
    case EXIT_INTR: return VITRO_EXIT_INTR;
    case EXIT_SHUTDOWN: return VITRO_EXIT_SHUTDOWN;
    case EXIT_DEBUG: return VITRO_EXIT_DEBUG;
    default: return VITRO_EXIT_FAIL;
    }
}
const char *vitro_vcpu_fail_message(const struct vitro_vcpu *c)
{
    return V(c)->fail_msg;
}
void vitro_vcpu_kick(struct vitro_vcpu *c, unsigned why)
{
    _Static_assert(VITRO_KICK_INTR == EVENT_INTR && VITRO_KICK_NMI == EVENT_NMI && VITRO_KICK_STOP == EVENT_STOP &&
                   VITRO_KICK_WAKE == EVENT_WAKE && VITRO_KICK_FLUSH == EVENT_FLUSH_SPACES, "");
    __atomic_fetch_or(&V(c)->event, why & (EVENT_INTR | EVENT_NMI | EVENT_STOP | EVENT_WAKE | EVENT_FLUSH_SPACES), __ATOMIC_SEQ_CST);
}
bool vitro_vcpu_event_pending(const struct vitro_vcpu *c)
{
    const struct vcpu *v = V(c);
    return v->event || ((v->intr_wait & EVENT_INTR) && (v->eflags & EFL_IF)) ||
           ((v->intr_wait & EVENT_NMI) && !v->nmi_masked) || (v->halted == HALTED_MWAIT && mwait_over(v));
}

uint64_t vitro_vcpu_tsc(const struct vitro_vcpu *c)
{
    const struct vcpu *v = V(c);
    return (v->vm->stopped_tsc ? v->vm->stopped_tsc : host_rdtsc()) + v->tsc_offset;
}
void vitro_vm_clock_stop(struct vitro_vm *vm)
{
    if (!vm->vm.stopped_tsc)
        vm->vm.stopped_tsc = host_rdtsc();
}
uint64_t vitro_vm_clock_start(struct vitro_vm *vm)
{
    struct vm *m = &vm->vm;
    if (!m->stopped_tsc)
        return 0;
    u64 gone = host_rdtsc() - m->stopped_tsc;
    m->model->tsc_base += gone;
    for (unsigned i = 0; i < m->nr_vcpus; i++)
        if (m->vcpu[i])
            m->vcpu[i]->tsc_offset -= gone;
    m->stopped_tsc = 0;
    return gone;
}

uint64_t vitro_vcpu_tsc_offset(const struct vitro_vcpu *c)
{
    return V(c)->tsc_offset;
}

/* -- Debugger ---------------------------------------------------------------------------------------------- */

static int debug_access(struct vcpu *v, u64 la, u8 *buf, size_t len, bool write)
{
    while (len) {
        gpa_t gpa;
        if (!mmu_translate_debug(v, la, &gpa))
            return -EFAULT;
        size_t n = MIN(len, PAGE_SIZE - (la & ~PAGE_MASK));
        int r = write ? ram_write(&v->vm->ram, gpa, buf, n) : ram_read(&v->vm->ram, gpa, buf, n);
        if (r)
            return r;
        if (write) {
            bool left;
            pthread_mutex_lock(&v->vm->lock);
            cache_kill_range(v, v->vm->cache, gpa, (unsigned)n, NULL, &left);
            pthread_mutex_unlock(&v->vm->lock);
            mwait_written(v->vm, gpa, (unsigned)n);
        }
        la += n;
        buf += n;
        len -= n;
    }
    return 0;
}
int vitro_vcpu_read_la(struct vitro_vcpu *c, uint64_t la, void *buf, size_t len)
{
    return debug_access(V(c), la, buf, len, false);
}
int vitro_vcpu_write_la(struct vitro_vcpu *c, uint64_t la, const void *buf, size_t len)
{
    return debug_access(V(c), la, (u8 *)buf, len, true);
}
int vitro_vcpu_add_breakpoint(struct vitro_vcpu *c, uint64_t la)
{
    struct engine_vcpu *ev = V(c)->eng;
    if (ev->nr_brk == MAX_BREAK)
        return -ENOSPC;
    ev->brk[ev->nr_brk++] = la;
    vcpu_mode_changed(V(c));
    return 0;
}
int vitro_vcpu_del_breakpoint(struct vitro_vcpu *c, uint64_t la)
{
    struct engine_vcpu *ev = V(c)->eng;
    for (unsigned i = 0; i < ev->nr_brk; i++)
        if (ev->brk[i] == la) {
            ev->brk[i] = ev->brk[--ev->nr_brk];
            vcpu_mode_changed(V(c));
            return 0;
        }
    return -ENOENT;
}
int vitro_vcpu_add_watchpoint(struct vitro_vcpu *c, uint64_t la, unsigned len, unsigned kind)
{
    struct engine_vcpu *ev = V(c)->eng;
    if (ev->nr_watch == MAX_BREAK)
        return -ENOSPC;
    ev->watch[ev->nr_watch++] = (struct watch){ la, len, kind };
    tlb_flush_all(V(c), true);
    vcpu_mode_changed(V(c));
    return 0;
}
int vitro_vcpu_del_watchpoint(struct vitro_vcpu *c, uint64_t la, unsigned len, unsigned kind)
{
    struct engine_vcpu *ev = V(c)->eng;
    for (unsigned i = 0; i < ev->nr_watch; i++)
        if (ev->watch[i].la == la && ev->watch[i].len == len && ev->watch[i].kind == kind) {
            ev->watch[i] = ev->watch[--ev->nr_watch];
            vcpu_mode_changed(V(c));
            return 0;
        }
    return -ENOENT;
}
uint64_t vitro_vcpu_watch_hit(const struct vitro_vcpu *c)
{
    return V(c)->eng->watch_hit;
}
void vitro_vcpu_single_step(struct vitro_vcpu *c, bool on)
{
    V(c)->eng->single_step = on;
    vcpu_mode_changed(V(c));
}
size_t vitro_vcpu_xsave_size(const struct vitro_vcpu *c)
{
    (void)c;
    return XSAVE_AREA_MAX;
}
void *vitro_vcpu_xsave(struct vitro_vcpu *c)
{
    return V(c)->fpu;
}
