/* vcpu.c - a vCPU's thread: run, wait or sleep while halted, report how it ended. */
#include "monitor/vm_inner.h"
#include "base/sandbox.h"
#include "machine/clock.h"
#include "machine/machine.h"
#include "monitor/gdbstub.h"
#include "paravirt/paravirt.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

static u64 now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000000 + (u64)t.tv_nsec;
}

/*
 * To sleep and be woken takes the host tens of microseconds. So a thread looks for an event for a while before it sleeps, if
 * that would have been enough lately: for longer after a short sleep, and no more after a long one. (The same idea
 * as KVM's halt polling, Linux Documentation/virt/kvm/halt-polling.rst.)
 */
#define POLL_FIRST_NS 10000u
#define POLL_MAX_NS 200000u
#define POLL_PAUSES 20 /* between two looks at the time */

static bool has_event(struct vm_vcpu *cpu)
{
    return vitro_vcpu_event_pending(cpu->vcpu) || vm_has_ended(cpu->vm);
}

/* True: there is an event. */
static bool vcpu_poll(struct vm_vcpu *cpu, u64 since)
{
    struct vm_clock *clock = machine_clock(cpu->vm->machine);

    if (!cpu->poll_ns || !paravirt_may_poll(cpu->vm->pv, cpu->index) || vitro_vcpu_shares_cpu(cpu->vcpu))
        return has_event(cpu);
    while (!has_event(cpu)) {
        if (now_ns() - since >= cpu->poll_ns)
            return false;
        clock_poll(clock); /* it would take the I/O thread as long to wake */
        for (unsigned i = 0; i < POLL_PAUSES && !vitro_vcpu_event_pending(cpu->vcpu); i++)
            __builtin_ia32_pause();
    }
    return true;
}

static void vcpu_learn(struct vm_vcpu *cpu, u64 slept_ns)
{
    if (slept_ns > POLL_MAX_NS)
        cpu->poll_ns = 0;
    else if (slept_ns > cpu->poll_ns)
        cpu->poll_ns = MIN(MAX(cpu->poll_ns * 2, POLL_FIRST_NS), POLL_MAX_NS);
}

static void vcpu_sleep(struct vm_vcpu *cpu)
{
    paravirt_vcpu_sleep(cpu->vm->pv, cpu->index);
    pthread_mutex_lock(&cpu->lock);
    atomic_store(&cpu->asleep, true);
    while (!vitro_vcpu_event_pending(cpu->vcpu) && !vm_has_ended(cpu->vm))
        pthread_cond_wait(&cpu->wake, &cpu->lock);
    atomic_store(&cpu->asleep, false);
    pthread_mutex_unlock(&cpu->lock);
    paravirt_vcpu_wake(cpu->vm->pv, cpu->index);
}

static void vcpu_halt(struct vm_vcpu *cpu)
{
    u64 since = now_ns();

    paravirt_vcpu_halt(cpu->vm->pv, cpu->index);
    if (!vcpu_poll(cpu, since))
        vcpu_sleep(cpu);
    vcpu_learn(cpu, now_ns() - since);
}

void vm_vcpu_kick(struct vm_vcpu *cpu, unsigned why)
{
    vitro_vcpu_kick(cpu->vcpu, why);
    atomic_thread_fence(memory_order_seq_cst);
    if (!atomic_load(&cpu->asleep))
        return;
    pthread_mutex_lock(&cpu->lock); /* it has looked, and waits; or it will look */
    pthread_mutex_unlock(&cpu->lock);
    pthread_cond_signal(&cpu->wake); /* with the lock held it would wake only to wait for that */
}

/* Around what changes the vCPU: gdb may be looking at it. */
static void enter(struct vm_vcpu *cpu)
{
    if (cpu->vm->gdb)
        gdbstub_enter(cpu->vm->gdb, cpu);
}
static void leave(struct vm_vcpu *cpu)
{
    if (cpu->vm->gdb)
        gdbstub_leave(cpu->vm->gdb);
}

static void init_vcpu(struct vm_vcpu *cpu)
{
    enter(cpu);
    vitro_vcpu_init(cpu->vcpu);
    leave(cpu);
    paravirt_vcpu_reset(cpu->vm->pv, cpu->index);
}

bool vm_vcpu_give(struct vm_vcpu *cpu, const struct vitro_sregs *sregs, const struct vitro_regs *regs)
{
    pthread_mutex_lock(&cpu->lock);
    bool ok = cpu->waits && !cpu->given;
    if (ok) {
        cpu->start_sregs = *sregs;
        cpu->start_regs = *regs;
        cpu->given = true;
        pthread_cond_signal(&cpu->wake);
    }
    pthread_mutex_unlock(&cpu->lock);
    return ok;
}

void vm_vcpu_wait(struct vm_vcpu *cpu)
{
    atomic_store(&cpu->stop, true);
    vitro_vcpu_kick(cpu->vcpu, VITRO_KICK_STOP);
}

static bool take_given(struct vm_vcpu *cpu)
{
    pthread_mutex_lock(&cpu->lock);
    bool given = cpu->given;
    cpu->given = false;
    cpu->waits = !given;
    pthread_mutex_unlock(&cpu->lock);
    return given;
}

static void no_longer_waits(struct vm_vcpu *cpu)
{
    pthread_mutex_lock(&cpu->lock);
    cpu->waits = cpu->given = false;
    pthread_mutex_unlock(&cpu->lock);
}

/* An application processor runs nothing between INIT and a start-up IPI (SDM vol. 3 §8.4.3), or the hypercall. */
static void wait_for_sipi(struct vm_vcpu *cpu)
{
    struct machine *m = cpu->vm->machine;

    cpu->waiting = true;
    while (!vm_has_ended(cpu->vm)) {
        vm_pause_point(cpu);
        if (machine_init_take(m, cpu->index))
            init_vcpu(cpu);
        if (take_given(cpu)) {
            enter(cpu);
            vitro_vcpu_set_sregs(cpu->vcpu, &cpu->start_sregs);
            vitro_vcpu_set_regs(cpu->vcpu, &cpu->start_regs);
            leave(cpu);
            cpu->waiting = false;
            return;
        }
        int vector = machine_sipi_take(m, cpu->index);
        if (vector >= 0) {
            no_longer_waits(cpu);
            enter(cpu);
            vitro_vcpu_start(cpu->vcpu, (unsigned)vector);
            leave(cpu);
            cpu->waiting = false;
            return;
        }
        pthread_mutex_lock(&cpu->lock);
        atomic_store(&cpu->asleep, true);
        while (!(machine_pending(m, cpu->index) & (MACHINE_INIT | MACHINE_SIPI)) && !cpu->given &&
               !vm_has_ended(cpu->vm) && !atomic_load(&cpu->vm->pause.wanted))
            pthread_cond_wait(&cpu->wake, &cpu->lock);
        atomic_store(&cpu->asleep, false);
        pthread_mutex_unlock(&cpu->lock);
    }
}

/* What the board has for the vCPU's thread between two runs. False: nothing. */
static bool take_signals(struct vm_vcpu *cpu)
{
    struct machine *m = cpu->vm->machine;

    if (atomic_exchange(&cpu->stop, false)) {
        init_vcpu(cpu);
        wait_for_sipi(cpu);
        return true;
    }
    if (machine_init_take(m, cpu->index)) {
        init_vcpu(cpu);
        if (cpu->index)
            wait_for_sipi(cpu);
        return true;
    }
    if (machine_nmi_take(m, cpu->index)) {
        vitro_vcpu_kick(cpu->vcpu, VITRO_KICK_NMI);
        return true;
    }
    return false;
}

/* Registers of devices are reached from here, and some of what they ask for is done at once. */
static unsigned thread_kinds(const struct config *c)
{
    unsigned kinds = SANDBOX_VCPU | (c->nr_drives || c->nvram || xen_wanted(c) /* may be given some later */ ? SANDBOX_DISK : 0) | (c->gdb_port ? SANDBOX_GDB : 0);

    for (unsigned i = 0; i < c->nr_nics; i++)
        kinds |= c->nic[i].kind == NIC_TAP ? SANDBOX_TAP : c->nic[i].kind == NIC_USER ? SANDBOX_USERNET : 0;
    return kinds;
}

static void *vcpu_thread(void *arg)
{
    struct vm_vcpu *cpu = arg;
    struct guest *vm = cpu->vm;
    struct vitro_regs regs;

    paravirt_vcpu_start(vm->pv, cpu->index); /* opens files */
    sandbox_enter(thread_kinds(vm->config));
    if (cpu->waiting)
        wait_for_sipi(cpu);
    else if (vm->gdb)
        gdbstub_stopped(vm->gdb, cpu, 0);
    while (!vm_has_ended(vm)) {
        vm_pause_point(cpu);
        enter(cpu);
        enum vitro_exit why = vitro_vcpu_run(cpu->vcpu);
        leave(cpu);
        switch (why) {
        case VITRO_EXIT_HLT:
            vcpu_halt(cpu);
            break;
        case VITRO_EXIT_INTR:
            if (!take_signals(cpu) && vm->gdb && gdbstub_wants_stop(vm->gdb))
                gdbstub_stopped(vm->gdb, cpu, SIGINT);
            break;
        case VITRO_EXIT_DEBUG:
            if (vm->gdb)
                gdbstub_stopped(vm->gdb, cpu, SIGTRAP);
            break;
        case VITRO_EXIT_SHUTDOWN:
            vitro_vcpu_get_regs(cpu->vcpu, &regs);
            vm_end(vm, VM_TRIPLE_FAULT, STATUS_TRIPLE_FAULT,
                   "the guest died of a triple fault at rip %#llx; --trace exc "
                   "shows what led to it",
                   (unsigned long long)regs.rip);
            break;
        case VITRO_EXIT_FAIL:
            vm_end(vm, VM_FAIL, STATUS_FAIL, "%s",
                   vitro_vcpu_fail_message(cpu->vcpu));
            break;
        }
    }
    paravirt_vcpu_stop(vm->pv, cpu->index);
    return NULL;
}

int vm_vcpu_init(struct guest *vm, unsigned index)
{
    struct vm_vcpu *cpu = &vm->vcpu[index];
    char err[256] = "";

    cpu->vm = vm;
    cpu->index = index;
    cpu->waiting = cpu->waits = index != 0; /* it may be given a start before its thread runs */
    pthread_mutex_init(&cpu->lock, NULL);
    pthread_cond_init(&cpu->wake, NULL);
    cpu->vcpu = vitro_vcpu_create(vm->vm, index, err, sizeof(err));
    if (!cpu->vcpu) {
        say("cannot create CPU %u: %s", index, err);
        return -ENOMEM;
    }
    return 0;
}

int vm_vcpu_start(struct vm_vcpu *cpu)
{
    sigset_t all, old;

    /* Signals from outside are the main thread's; what the code itself causes cannot be blocked. */
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    sigdelset(&all, SIGTRAP);
    sigdelset(&all, SIGABRT);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&cpu->thread, NULL, vcpu_thread, cpu);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    cpu->started = !r;
    return -r;
}

bool vm_vcpu_join(struct vm_vcpu *cpu, unsigned timeout_ms)
{
    struct timespec until;

    if (!cpu->started)
        return true;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    if (pthread_timedjoin_np(cpu->thread, NULL, &until))
        return false;
    cpu->started = false;
    return true;
}

void vm_vcpu_fini(struct vm_vcpu *cpu)
{
    if (cpu->vcpu)
        vitro_vcpu_destroy(cpu->vcpu);
    cpu->vcpu = NULL;
    if (cpu->vm) {
        pthread_cond_destroy(&cpu->wake);
        pthread_mutex_destroy(&cpu->lock);
    }
}

static struct vitro_segment segment(const struct boot_seg *s)
{
    return (struct vitro_segment){
        .base = s->base, .limit = s->limit, .attr = s->attr, .selector = s->sel
    };
}

void vm_vcpu_enter(struct vm_vcpu *cpu, const struct boot_entry *e)
{
    struct vitro_sregs s;
    struct vitro_regs r = { .rip = e->rip, .rflags = e->rflags };

    vitro_vcpu_get_sregs(cpu->vcpu, &s);
    s.cs = segment(&e->cs);
    s.ds = s.es = s.fs = s.gs = s.ss = segment(&e->ds);
    s.tr = segment(&e->tr);
    s.ldt = (struct vitro_segment){ .attr = SEG_UNUSABLE };
    s.gdt_base = e->gdt_base;
    s.gdt_limit = e->gdt_limit;
    s.idt_base = 0;
    s.idt_limit = 0;
    s.cr0 = e->cr0;
    s.cr3 = e->cr3;
    s.cr4 = e->cr4;
    s.efer = e->efer;
    vitro_vcpu_set_sregs(cpu->vcpu, &s);
    r.gpr[RSP] = e->rsp;
    r.gpr[RSI] = e->rsi;
    r.gpr[RAX] = e->rax;
    r.gpr[RBX] = e->rbx;
    vitro_vcpu_set_regs(cpu->vcpu, &r);
}
