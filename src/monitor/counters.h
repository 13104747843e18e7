/*
 * counters.h - ports by which a benchmark in the guest reads what the engine counted (--counters). Any guest can use
 * them, whether it knows of hypervisors or not.
 *
 *   0x520  4 bytes  write 1: count from now; write 2: stop, and have the differences ready
 *                   write 0x100 + n: select counter n; read: how many there are
 *   0x524  4 bytes  read: the selected difference, low half
 *   0x528  4 bytes  read: high half
 *
 * Counters, in this order (struct vitro_counters): port accesses, MMIO accesses, privileged instructions, hypercalls,
 * interrupts, page faults, TLB misses, system calls carried to a kernel that runs outside ring 0. The write that stops is
 * itself counted as one port access.
 */
#pragma once

struct counters;
struct guest;

/* counters_create - puts the ports on the board's bus. 0 or -errno. */
int counters_create(struct guest *vm);
void counters_destroy(struct guest *vm);
