/*
 * vm.h - one virtual machine, put together: RAM, board, engine, console. What main.c sees.
 *
 * Threads: one per vCPU, the board's I/O thread, the console's thread; the caller's thread only waits.
 * Whoever ends the run (power-off, reset, triple fault, Ctrl-A X, a mistake) calls vm_end(); the first
 * one wins.
 */
#pragma once
#include "monitor/config.h"

enum vm_outcome {
    VM_RUNNING,
    VM_POWER_OFF,
    VM_RESET,
    VM_DEBUG_EXIT,   /* status is the guest's */
    VM_TRIPLE_FAULT,
    VM_LEAVE,        /* the user left */
    VM_QUIT,         /* by the control socket */
    VM_FAIL,         /* explained on stderr */
};

struct control;
struct vnc;

/*
 * vm_run - build the machine, run it to its end, take it down. *status: the exit status it means. ctl: who may
 * give it orders meanwhile; may be NULL. vnc: the server of the screen, made by the first machine that wants one and kept for the next; then the caller's to stop.
 */
enum vm_outcome vm_run(const struct config *c, struct control *ctl, struct vnc **vnc, int *status);
