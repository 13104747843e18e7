/*
 * gdbstub.h - gdb's remote protocol on a loopback TCP port. A stopped vCPU's own thread answers gdb, so it
 * touches the vCPU freely; while it runs, one thread of the stub listens for gdb's interrupt.
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
/* gdbstub_wake - the VM has ended: whoever waits for gdb returns. Any thread. */
void gdbstub_wake(struct gdbstub *stub);
/* gdbstub_destroy - after all vCPU threads have ended; tells gdb the exit status. */
void gdbstub_destroy(struct gdbstub *stub, int status);
