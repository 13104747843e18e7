/*
 * smp.c - several processors: started by a call, told things by events, one memory. Start it with --cpus 4.
 */
#include "sdk/sdk.h"

#define LIMIT 200000u
#define SHARED ((volatile uint64_t *)0x8000000000ull)

static unsigned cpus;

/* Wait without sleeping: for what another processor is about to do. */
#define spin_until(condition) \
    do { \
        while (!(condition)) \
            __asm__ volatile("pause"); \
    } while (0)

/* -- Work in parts -------------------------------------------------------------------------------------------------------- */

static uint32_t next_number, primes, finished;

static bool prime(uint32_t n)
{
    for (uint32_t d = 2; d * d <= n; d++)
        if (n % d == 0)
            return false;
    return n >= 2;
}

/* Each takes a hundred numbers at a time, until there are none. */
static void count_primes(void *arg)
{
    uint32_t mine = 0, first;

    (void)arg;
    while ((first = __atomic_fetch_add(&next_number, 100, __ATOMIC_RELAXED)) < LIMIT)
        for (uint32_t n = first; n < first + 100; n++)
            mine += prime(n);
    __atomic_fetch_add(&primes, mine, __ATOMIC_RELAXED);
    __atomic_fetch_add(&finished, 1, __ATOMIC_RELEASE);
}

/* -- A lock ---------------------------------------------------------------------------------------------------------------- */

static uint32_t lock;
static volatile uint64_t guarded; /* not atomic: the lock is what makes it right */

static void add_under_lock(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < 10000; i++) {
        for (unsigned n = 0; __atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE); n++) {
            __asm__ volatile("pause");
            if (n > 100) /* its holder may not even be running: let the host choose */
                vt_call0(VT_VCPU_YIELD);
        }
        guarded = guarded + 1;
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    }
    __atomic_fetch_add(&finished, 1, __ATOMIC_RELEASE);
}

/* -- Ping and pong: events as messages ---------------------------------------------------------------------------------------- */

enum { PORT_PING = 10, PORT_PONG = 11 };
static volatile uint32_t pings, pongs, ready;

static void on_ping(void *arg)
{
    (void)arg;
    pings = pings + 1;
}
static void on_pong(void *arg)
{
    (void)arg;
    pongs = pongs + 1;
}
static void pong(void *arg)
{
    unsigned rounds = (unsigned)(uint64_t)arg;

    event_handle(PORT_PING, on_ping, NULL);
    ready = 1;
    for (uint32_t i = 1; i <= rounds; i++) {
        wait_until(pings >= i); /* asleep in hlt */
        vt_call1(VT_EVENT_SEND, PORT_PONG);
    }
    irq_off();
    __atomic_fetch_add(&finished, 1, __ATOMIC_RELEASE);
}

/* -- What one unmaps, the other must not see any more ---------------------------------------------------------------------------- */

static volatile uint64_t reads, faulted_at, gone;

static void on_page_fault(struct sdk_regs *r)
{
    uint64_t va;
    __asm__ volatile("mov %%cr2, %0" : "=r"(va));
    if (va != (uint64_t)SHARED)
        die("fault at %lx, rip %lx\n", va, r->rip);
    faulted_at = va;
    r->rip = r->rbx; /* where the reader said it would go on */
}

static void reader(void *arg)
{
    (void)arg;
    __asm__ volatile("lea 2f(%%rip), %%rbx\n"
                     "1: mov (%0), %%rax\n"
                     "   incq %1\n"
                     "   pause\n"
                     "   jmp 1b\n"
                     "2:"
                     :
                     : "r"(SHARED), "m"(reads)
                     : "rax", "rbx", "memory");
    __atomic_fetch_add(&finished, 1, __ATOMIC_RELEASE);
}

static void everywhere(void (*fn)(void *), unsigned nr)
{
    finished = 0;
    for (unsigned i = 1; i < nr; i++) {
        int r;
        while ((r = cpu_start(i, fn, NULL)) == -VT_EEXIST)
            __asm__ volatile("pause"); /* it has not quite stopped yet */
        if (r)
            die("processor %u: %d\n", i, r);
    }
    fn(NULL);
    spin_until(__atomic_load_n(&finished, __ATOMIC_ACQUIRE) == nr);
}

int main(void)
{
    cpus = cpu_count();
    print("%u processors.\n", cpus);
    check(cpu_start(0, count_primes, NULL) == -VT_EEXIST, "this one runs already");
    check(cpu_start(cpus, count_primes, NULL) == -VT_ENOENT, "there is no processor %u", cpus);

    uint64_t t = mono_ns();
    everywhere(count_primes, 1);
    uint64_t alone = mono_ns() - t;
    check(primes == 17984, "%u primes below %u", primes, LIMIT);
    next_number = primes = 0;
    t = mono_ns();
    everywhere(count_primes, cpus);
    uint64_t together = mono_ns() - t;
    check(primes == 17984, "the same number by all together");
    print("Alone %lu ms, together %lu ms.\n", alone / 1000000, together / 1000000);

    everywhere(add_under_lock, cpus);
    check(guarded == cpus * 10000, "%lu additions under a lock", guarded);

    const unsigned rounds = 1000;
    finished = 0;
    event_handle(PORT_PONG, on_pong, NULL);
    while (cpu_start(1, pong, (void *)(uint64_t)rounds) == -VT_EEXIST)
        ;
    spin_until(ready);
    t = mono_ns();
    for (uint32_t i = 1; i <= rounds; i++) {
        vt_call1(VT_EVENT_SEND, PORT_PING);
        wait_until(pongs >= i);
    }
    t = mono_ns() - t;
    irq_off();
    spin_until(finished == 1);
    check(pings == rounds && pongs == rounds, "%u pings, %u pongs", pings, pongs);
    print("There and back, both asleep: %lu ns.\n", t / rounds);

    /* Shootdown: when UNMAP returns, no processor reads there any more. */
    tables_give(8);
    trap_handle(14, on_page_fault);
    struct vt_range r = { .va = (uint64_t)SHARED, .pa = (uint64_t)pages_alloc(1), .pages = 1, .flags = VT_W };
    check(vt_call3(VT_MAP, 0, &r, 1) == 1, "a page for two");
    finished = 0;
    while (cpu_start(1, reader, NULL) == -VT_EEXIST)
        ;
    spin_until(reads > 1000);
    check(vt_call3(VT_UNMAP, 0, &r, 1) == 1, "unmapped while another processor reads it");
    gone = reads;
    spin_until(faulted_at);
    check(reads <= gone + 1, "it faults at its next access");
    spin_until(finished == 1);
    return check_failed();
}
