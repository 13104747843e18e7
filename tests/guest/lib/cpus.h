/*
 * cpus.h - other processors: starting them, and giving them work. At most MAX_CPUS; main() sets nr_cpus.
 */
#pragma once
#include "lib/guest.h"

#define MAX_CPUS 8
enum { START_PAGE = 0x8, START_PAGE2 = 0x9 };

extern unsigned nr_cpus;
extern volatile u32 up[MAX_CPUS], starts[MAX_CPUS]; /* running; how often started */
extern volatile u32 ids[MAX_CPUS], ids_b[MAX_CPUS]; /* its APIC ID by CPUID leaves 1 and 0xb */
extern void (*volatile job[MAX_CPUS])(unsigned cpu); /* what it is to do; it sets NULL when it has */
/* The start-up code and what it notes, as offsets from ap_start in the page it was put. */
extern char ap_start[], ap_seen_cs[], ap_seen_cr0[];

unsigned cpus_there(void); /* how many the machine has */
/* cpus_prepare - put the start-up code at a page below 1 MiB. It takes the GDT, IDT and CR3 of now. */
void cpus_prepare(unsigned page);
void ipi(unsigned dest, u32 low);
/* until - waits with a limit, so that a lost wake-up fails one test and not all. */
bool until(volatile u32 *p, u32 value);
void start_all(void (*run)(unsigned cpu)); /* all but this one */
void wait_all(void);
void on_all(void (*run)(unsigned cpu)); /* this one too */

static inline void pause(void) { asm volatile("pause" ::: "memory"); }
static inline u32 add(volatile u32 *p, u32 n) { return __atomic_add_fetch(p, n, __ATOMIC_SEQ_CST); }
