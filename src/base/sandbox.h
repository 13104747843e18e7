/*
 * sandbox.h - the second wall: which system calls the process, and each kind of its threads, may still make.
 * A seccomp filter for the whole process (the floor), a narrower one for each thread that handles what the guest
 * made, no_new_privs, and no capabilities in those threads. The policy is the table in sandbox.c; docs/threat-model.md
 * says what it is worth.
 *
 * A new kind of thread: a bit here, a name and rows in sandbox.c, and sandbox_enter() first thing in the thread.
 */
#pragma once
#include "base/types.h"

/* What a thread does; a thread that does several things has several bits, and may do what any of them may. */
enum sandbox_kind {
    SANDBOX_PROCESS = BIT(0), /* every thread, for as long as it lives: the floor under the others */
    SANDBOX_VCPU = BIT(1),    /* runs guest code, and devices' registers; may start threads of the kinds below */
    SANDBOX_IO = BIT(2),      /* timers, console input, interrupts of devices */
    SANDBOX_CONSOLE = BIT(3), /* stdin, stdout and the terminal */
    SANDBOX_DISK = BIT(4),    /* reads and writes images that are open */
    SANDBOX_TAP = BIT(5),     /* frames to and from a tap device that is open */
    SANDBOX_USERNET = BIT(6), /* user-mode networking: the guest's connections are sockets of ours */
    SANDBOX_GDB = BIT(7),     /* gdb's connections */
    SANDBOX_UNIX = BIT(8),    /* sockets in the host's file system that stand for the guest's (vsock, virtio consoles) */
    SANDBOX_VNC = BIT(10),    /* the screen for connections that are accepted here; neither opens nor connects anything */
    SANDBOX_SHARE = BIT(9),   /* files of a directory that the guest was given; keeps its capabilities */
};

/* Called in the thread whose system call was refused, in a signal handler: says so and ends the process. */
typedef void sandbox_refused_fn(int nr, const char *thread);

/*
 * sandbox_start - install the floor for the calling thread and all that it will start. Once, before any other thread.
 * 0; -errno when the host has no seccomp filters (nothing is changed then).
 */
int sandbox_start(sandbox_refused_fn *refused);
/* sandbox_enter - in a thread just started: from here on only what its kinds may. Nothing without sandbox_start(). */
void sandbox_enter(unsigned kinds);
