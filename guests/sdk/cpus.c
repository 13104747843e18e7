/* cpus.c - other processors: started with a stack and an argument, stopped when their function returns. */
#include "sdk/sdk.h"

#define STACK_PAGES 8

void events_forget(unsigned cpu);

static uint8_t *stack[CPUS_MAX];

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
    struct vt_start start __attribute__((aligned(8))) = { .rip = (uint64_t)fn, .arg = (uint64_t)arg };

    if (cpu >= CPUS_MAX)
        return -VT_ENOENT;
    if (!stack[cpu])
        stack[cpu] = pages_alloc(STACK_PAGES);
    /* As if cpu_end() had called fn: its address is where fn returns to. */
    uint64_t *top = (uint64_t *)(stack[cpu] + STACK_PAGES * PAGE) - 1;
    *top = (uint64_t)cpu_end;
    start.rsp = (uint64_t)top;
    __asm__ volatile("mov %%cr3, %0" : "=r"(start.cr3));
    start.cr3 &= ~0xfffull;
    int64_t r = vt_call2(VT_VCPU_START, cpu, &start);
    return (int)r;
}
