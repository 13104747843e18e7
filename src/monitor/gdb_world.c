/* gdb_world.c - stopping all vCPUs for gdb. Threads: the vCPUs', and who ends the VM. */
#include "monitor/gdb_world.h"
#include "monitor/vm_inner.h"

void gdb_world_init(struct gdb_world *w)
{
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
}

void gdb_world_fini(struct gdb_world *w)
{
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
}

void gdb_world_enter(struct gdb_world *w, struct vm_vcpu *cpu)
{
    pthread_mutex_lock(&w->lock);
    while ((w->speaker || (w->frozen >> cpu->index & 1)) && !vm_has_ended(cpu->vm))
        pthread_cond_wait(&w->changed, &w->lock);
    w->running++;
    pthread_mutex_unlock(&w->lock);
}

void gdb_world_leave(struct gdb_world *w)
{
    pthread_mutex_lock(&w->lock);
    w->running--;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void gdb_world_stop(struct gdb_world *w, struct vm_vcpu *cpu)
{
    struct guest *vm = cpu->vm;

    pthread_mutex_lock(&w->lock);
    while (w->speaker && !vm_has_ended(vm))
        pthread_cond_wait(&w->changed, &w->lock);
    w->speaker = cpu;
    w->frozen = 0;
    if (w->running)
        for (unsigned i = 0; i < vm->nr_vcpus; i++)
            if (i != cpu->index)
                vitro_vcpu_kick(vm->vcpu[i].vcpu, VITRO_KICK_STOP); /* one that sleeps does not run */
    while (w->running && !vm_has_ended(vm))
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

void gdb_world_go(struct gdb_world *w, u64 frozen)
{
    pthread_mutex_lock(&w->lock);
    w->speaker = NULL;
    w->frozen = frozen;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void gdb_world_wake(struct gdb_world *w)
{
    pthread_mutex_lock(&w->lock);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}
