/*
 * pv_smp.c - KVM's guest ABI between processors: "preempted" and the flush that is left there, a kick, IPIs in one call.
 * Linux Documentation/virt/kvm/x86/{msr,hypercalls}.rst. Run with --cpus 2.
 */
#include "lib/cpus.h"
#include "lib/pv.h"

enum { VEC_WAKE = 0x40 };
enum { PREEMPTED = 1, FLUSH_TLB = 2 };
#define VA 0x40000000ul
#define ROUNDS 100

volatile u32 woken __attribute__((used));
KERNEL_ASM(".globl on_wake\non_wake:\n  pushq %rax\n  lock incl woken\n"
           "  movl $0xfee000b0, %eax\n  movl $0, (%rax)\n  popq %rax\n  iretq\n");
extern char on_wake[];

static volatile struct kvm_steal *st[2];
static u64 frame[2];
static volatile u32 stop, rounds, own;
static volatile u64 seen;

/* Processor 1 looks at the page again and again; how it waits in between is what differs. */
static void look(void)
{
    own |= st[1]->preempted & PREEMPTED;
    u64 value = *(volatile u64 *)VA;
    seen = value;
    add(&rounds, 1);
}
static void look_and_pause(unsigned cpu)
{
    while (!stop) {
        look();
        for (unsigned i = 0; i < 50; i++)
            pause();
    }
}
static void look_and_yield(unsigned cpu)
{
    while (!stop) {
        look();
        vmcall(HC_SCHED_YIELD, 0, 0, 0, 0);
    }
}
static void look_and_halt(unsigned cpu)
{
    while (!stop) {
        look();
        asm volatile("sti; hlt; cli" ::: "memory");
    }
}

/* Leaves a flush for processor 1, as Linux does: only if it does not run. */
static bool leave_flush(u64 limit)
{
    do {
        u8 old = st[1]->preempted;
        if ((old & PREEMPTED) &&
            __atomic_compare_exchange_n(&st[1]->preempted, &old, old | FLUSH_TLB, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return true;
        pause();
    } while (rdtsc() < limit);
    return false;
}

static void flushes(const char *how, void (*run)(unsigned cpu), bool halts)
{
    u64 limit = rdtsc() + tsc_per_ms() * 20000;
    unsigned left = 0, stale = 0;

    stop = rounds = own = 0;
    start_all(run);
    for (u32 n = 1; n <= ROUNDS && rdtsc() < limit; n++) {
        *(volatile u64 *)frame[n & 1] = n;
        map((void *)VA, frame[n & 1], PTE_P | PTE_W);
        if (!leave_flush(limit))
            break;
        left++;
        u32 from = rounds;
        while (rounds - from < 2 && rdtsc() < limit) { /* the first may have begun before */
            if (halts)
                vmcall(HC_SEND_IPI, 2, 0, 0, VEC_WAKE);
            pause();
        }
        stale += seen != n;
    }
    stop = 1;
    while (job[1] && rdtsc() < limit)
        vmcall(HC_SEND_IPI, 2, 0, 0, VEC_WAKE);
    wait_all();
    print("# %s\n", how);
    report_eq("it is seen not to run, again and again", left, ROUNDS);
    report_eq("it never sees itself so", own, 0);
    report_eq("the flush that was left there is done before it runs on", stale, 0);
}

/* Interrupts off: nothing but a kick ends this. */
static void halt_deaf(unsigned cpu)
{
    asm volatile("cli; hlt" ::: "memory");
    add(&rounds, 1);
}

static void enable_steal(unsigned cpu)
{
    wrmsr(MSR_KVM_STEAL_TIME, (u64)st[cpu] | 1);
}

int main(void)
{
    nr_cpus = cpus_there();
    if (nr_cpus != 2)
        die("# %u processors: run it with two\n", nr_cpus);
    pic_init();
    lapic_init();
    idt_gate(VEC_WAKE, on_wake, KCS, 0, 14, 0);
    tsc_per_ms();
    cpus_prepare(START_PAGE);
    ipi(1, 0x4500);
    ipi(1, 0x4600 | START_PAGE);
    report("the other processor is up", until(&up[1], 1));
    for (unsigned i = 0; i < 2; i++) {
        st[i] = (void *)page_alloc();
        frame[i] = page_alloc();
    }
    map((void *)VA, frame[0], PTE_P | PTE_W);
    on_all(enable_steal);
    report("steal time, flushes, yield, kicks and IPIs are offered",
           kvm_has(KVM_STEAL) && kvm_has(KVM_TLB_FLUSH) && kvm_has(KVM_YIELD) && kvm_has(KVM_UNHALT) && kvm_has(KVM_SEND_IPI));
    flushes("waiting in a loop", look_and_pause, false);
    flushes("yielding", look_and_yield, false);
    flushes("halted", look_and_halt, true);

    rounds = 0;
    start_all(halt_deaf);
    u64 limit = rdtsc() + tsc_per_ms() * 20000;
    while (!(st[1]->preempted & PREEMPTED) && rdtsc() < limit)
        pause();
    vmcall(HC_SEND_IPI, 2, 0, 0, VEC_WAKE);
    for (unsigned i = 0; i < 100000; i++)
        pause();
    report_eq("HLT with interrupts off: an IPI does not end it", rounds, 0);
    report_eq("a kick", vmcall(HC_KICK_CPU, 0, 1, 0, 0), 0);
    report("does", until(&rounds, 1));
    wait_all();
    return 0;
}
