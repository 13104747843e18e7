/*
 * gdb_world.h - all vCPUs stop when one does, and one vCPU's thread speaks for all until gdb lets them go ("all-stop",
 * GDB manual §5.5.1).
 */
#pragma once
#include "base/types.h"
#include <pthread.h>

struct guest;
struct vm_vcpu;

struct gdb_world {
    pthread_mutex_t lock; /* what follows */
    pthread_cond_t changed;
    unsigned running;        /* vCPUs between enter and leave */
    struct vm_vcpu *speaker; /* stopped, and so is everybody else */
    u64 frozen;              /* by index: stays where it is until the next stop, though others run */
};

void gdb_world_init(struct gdb_world *w);
void gdb_world_fini(struct gdb_world *w);
/* gdb_world_enter, gdb_world_leave - around everything that changes a vCPU's state, on its thread. Enter waits. */
void gdb_world_enter(struct gdb_world *w, struct vm_vcpu *cpu);
void gdb_world_leave(struct gdb_world *w);
/* gdb_world_stop - until no vCPU runs; the caller has left. Then only the caller acts, for all, until gdb_world_go. If
 * another speaks, that one first. */
void gdb_world_stop(struct gdb_world *w, struct vm_vcpu *cpu);
void gdb_world_go(struct gdb_world *w, u64 frozen);
/* gdb_world_wake - the VM has ended: nobody waits any more. */
void gdb_world_wake(struct gdb_world *w);
