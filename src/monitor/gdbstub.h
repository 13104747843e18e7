/*
 * gdbstub.h - gdb's remote protocol on a loopback TCP port. When a vCPU stops the others do too, and its thread answers
 * gdb for all of them; while they run, one thread of the stub listens for gdb's interrupt.
 */
#pragma once
#include "base/types.h"

struct gdbstub;
struct guest;
struct vm_vcpu;

/* gdbstub_create - listen; NULL after explaining why not. */
struct gdbstub *gdbstub_create(struct guest *vm, unsigned port);
/* gdbstub_stopped - the vCPU has stopped, with this signal: talk to gdb until it may go on. vCPU's thread. */
void gdbstub_stopped(struct gdbstub *stub, struct vm_vcpu *cpu, int sig);
/* gdbstub_wants_stop - gdb's interrupt has come, and nobody has taken it; then call gdbstub_stopped. vCPU's thread. */
bool gdbstub_wants_stop(struct gdbstub *stub);
/* gdbstub_enter, gdbstub_leave - around everything that changes a vCPU's state: enter waits while gdb looks at it. */
void gdbstub_enter(struct gdbstub *stub, struct vm_vcpu *cpu);
void gdbstub_leave(struct gdbstub *stub);
/* gdbstub_wake - the VM has ended: whoever waits for gdb returns. Any thread. */
void gdbstub_wake(struct gdbstub *stub);
/* gdbstub_destroy - after all vCPU threads have ended; tells gdb the exit status. */
void gdbstub_destroy(struct gdbstub *stub, int status);
