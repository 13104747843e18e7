/*
 * pause.c - hold the whole machine still and let it go on: vCPUs between two instructions, devices' thread
 * ended, clocks stopped. The guest cannot tell: its TSC, timers and clocks count no time meanwhile.
 *
 * Threads: vm_pause() and vm_resume() one at a time, on the control thread; vm_pause_point() on vCPU threads.
 */
#include "machine/machine.h"
#include "monitor/vm_inner.h"
#include "paravirt/paravirt.h"
#include <errno.h>
#include <string.h>
#include <time.h>

#define PAUSE_MS 10000 /* how long vCPUs may take: they may be in a device's handler, on a busy host */

void vm_pause_init(struct guest *vm)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&vm->pause.lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&vm->pause.changed, &attr);
    pthread_condattr_destroy(&attr);
}

void vm_pause_fini(struct guest *vm)
{
    pthread_cond_destroy(&vm->pause.changed);
    pthread_mutex_destroy(&vm->pause.lock);
}

void vm_pause_wake(struct guest *vm)
{
    pthread_mutex_lock(&vm->pause.lock);
    pthread_cond_broadcast(&vm->pause.changed);
    pthread_mutex_unlock(&vm->pause.lock);
}

void vm_pause_point(struct vm_vcpu *cpu)
{
    struct guest *vm = cpu->vm;

    if (!atomic_load(&vm->pause.wanted))
        return;
    pthread_mutex_lock(&vm->pause.lock);
    vm->pause.at_rest++;
    pthread_cond_broadcast(&vm->pause.changed);
    while (atomic_load(&vm->pause.wanted) && !vm_has_ended(vm))
        pthread_cond_wait(&vm->pause.changed, &vm->pause.lock);
    vm->pause.at_rest--;
    pthread_mutex_unlock(&vm->pause.lock);
}

static bool all_at_rest(struct guest *vm)
{
    struct timespec until;
    int r = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += PAUSE_MS / 1000;
    pthread_mutex_lock(&vm->pause.lock);
    while (vm->pause.at_rest < vm->nr_vcpus && !vm_has_ended(vm) && !r)
        r = pthread_cond_timedwait(&vm->pause.changed, &vm->pause.lock, &until);
    bool all = vm->pause.at_rest == vm->nr_vcpus && !vm_has_ended(vm);
    pthread_mutex_unlock(&vm->pause.lock);
    return all;
}

static void let_go(struct guest *vm)
{
    pthread_mutex_lock(&vm->pause.lock);
    atomic_store(&vm->pause.wanted, false);
    pthread_cond_broadcast(&vm->pause.changed);
    pthread_mutex_unlock(&vm->pause.lock);
}

int vm_pause(struct guest *vm, const char **why)
{
    if (vm->pause.paused)
        return 0;
    if (vm->gdb) {
        *why = "gdb holds this VM; pause it there";
        return -EBUSY;
    }
    atomic_store(&vm->pause.wanted, true);
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        vm_vcpu_kick(&vm->vcpu[i], VITRO_KICK_STOP);
    if (!all_at_rest(vm)) {
        let_go(vm);
        *why = vm_has_ended(vm) ? "the VM is ending" :
                                  "a CPU does not stop: is somebody reading the console's output?";
        return -ETIMEDOUT;
    }
    vitro_vm_clock_stop(vm->vm);
    int r = machine_stop(vm->machine);
    if (r) {
        paravirt_clock_skip(vm->pv, vitro_vm_clock_start(vm->vm));
        let_go(vm);
        *why = "the devices do not stop";
        return r;
    }
    paravirt_pause(vm->pv);
    vm->pause.paused = true;
    return 0;
}

int vm_resume(struct guest *vm)
{
    if (!vm->pause.paused)
        return 0;
    paravirt_clock_skip(vm->pv, vitro_vm_clock_start(vm->vm));
    int r = machine_start(vm->machine);
    if (r) {
        vm_end(vm, VM_FAIL, STATUS_FAIL, "cannot start the devices again: %s", strerror(-r));
        return r;
    }
    paravirt_resume(vm->pv);
    vm->pause.paused = false;
    let_go(vm);
    return 0;
}
