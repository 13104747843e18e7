/*
 * cpus.c - other processors: started with a stack and an argument, stopped when their function returns.
 *
 * SPDX-License-Identifier: 0BSD
 */
#include "sdk/sdk.h"

#define STACK_PAGES 8

void events_forget(unsigned cpu);

static uint8_t *stack[CPUS_MAX];

static struct {
    void (*fn)(void *arg);
    void *arg;
} work[CPUS_MAX];

/* A processor's first steps: its number goes where cpu_index() finds it without asking anybody (MSR TSC_AUX). */
static void cpu_begin(void *arg)
{
    unsigned cpu = (unsigned)(uint64_t)arg;

    __asm__ volatile("wrmsr" ::"c"(0xc0000103), "a"(cpu), "d"(0));
    work[cpu].fn(work[cpu].arg);
}

static void cpu_end(void)
{
    irq_off();
    events_forget(cpu_index());
    vt_call0(VT_VCPU_STOP);
    die("a processor did not stop\n");
}

unsigned cpu_count(void)
{
    int64_t n = vt_call0(VT_VCPU_COUNT);
    return n > 0 ? (unsigned)n : 1;
}

int cpu_start(unsigned cpu, void (*fn)(void *arg), void *arg)
{
    struct vt_start start __attribute__((aligned(8))) = { .rip = (uint64_t)cpu_begin, .arg = cpu };

    if (cpu >= CPUS_MAX)
        return -VT_ENOENT;
    work[cpu].fn = fn;
    work[cpu].arg = arg;
    if (!stack[cpu])
        stack[cpu] = pages_alloc(STACK_PAGES);
    /* As if cpu_end() had called cpu_begin(): its address is where that returns to. */
    uint64_t *top = (uint64_t *)(stack[cpu] + STACK_PAGES * PAGE) - 1;
    *top = (uint64_t)cpu_end;
    start.rsp = (uint64_t)top;
    __asm__ volatile("mov %%cr3, %0" : "=r"(start.cr3));
    start.cr3 &= ~0xfffull;
    int64_t r = vt_call2(VT_VCPU_START, cpu, &start);
    return (int)r;
}
