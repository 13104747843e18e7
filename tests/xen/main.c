/* main.c - entry, console, traps and events of the guest that tests Xen's interface. */
#include "guest.h"

struct xen_start_info *start;
const uint64_t *xen_p2m;
uint8_t shared_page[PAGE] __attribute__((aligned(4096)));
uint64_t arg[512] __attribute__((aligned(4096))), page_a[512] __attribute__((aligned(4096))), page_b[512] __attribute__((aligned(4096)));
volatile struct seen seen;
volatile uint64_t resume_at;
uint64_t tried_rax, tried_rcx;
volatile unsigned fired[64];

long map(const volatile void *va, uint64_t entry)
{
    return xen_call3(XEN_update_va_mapping, va, entry, XEN_UVMF_INVLPG);
}

uint64_t *entry_of(uint64_t va, unsigned level)
{
    uint64_t *table = (uint64_t *)start->pt_base;

    for (unsigned l = 4; l > level; l--)
        table = frame_at((table[va >> (3 + 9 * l) & 511] & PTE_FRAME) / PAGE);
    return &table[va >> (3 + 9 * level) & 511];
}

void console_write(const char *bytes, size_t n)
{
    xen_call3(XEN_console_io, XEN_CONSOLEIO_write, n, bytes);
}

void leave(int status)
{
    uint32_t reason = status ? XEN_SHUTDOWN_crash : XEN_SHUTDOWN_poweroff;

    for (;;)
        xen_call2(XEN_sched_op, XEN_SCHEDOP_shutdown, &reason);
}

void events_on(void)
{
    shared.vcpu_info[0].upcall_mask = 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (shared.vcpu_info[0].upcall_pending)
        xen_call1(XEN_xen_version, XENVER_version);
}

static void on_event(void)
{
    shared.vcpu_info[0].upcall_pending = 0;
    uint64_t words = __atomic_exchange_n(&shared.vcpu_info[0].pending_sel, 0, __ATOMIC_SEQ_CST);

    for (; words; words &= words - 1) {
        unsigned word = (unsigned)__builtin_ctzll(words);
        uint64_t bits = shared.evtchn_pending[word] & ~shared.evtchn_mask[word];
        __atomic_fetch_and(&shared.evtchn_pending[word], ~bits, __ATOMIC_SEQ_CST);
        for (; bits && !word; bits &= bits - 1)
            fired[__builtin_ctzll(bits)]++;
    }
}

void user_left(struct sdk_regs *r); /* crossings.c */

void xen_trap(struct sdk_regs *r)
{
    if (r->vector == 256) {
        on_event();
        return;
    }
    seen = (struct seen){ r->vector, r->error, r->rip, r->cs, r->rflags, r->rsp, seen.count + 1 };
    if ((r->cs & 3) == 3)
        user_left(r);
    else if (r->vector == 14 && r->rip == (uint64_t)try_store)
        r->rip = (uint64_t)try_store_failed;
    else if (resume_at)
        r->rip = resume_at;
    else if (r->vector != 1 && r->vector != 3)
        die("trap %lu, error %lx, at %lx, cr2 %lx\n", r->vector, r->error, r->rip, shared.vcpu_info[0].cr2);
    r->rflags &= ~0x100ull;
}

void xen_main(struct xen_start_info *info)
{
    static struct xen_trap_info table[34];

    start = info;
    xen_p2m = (const uint64_t *)start->mfn_list;
    if (map(shared_page, start->shared_info | PTE_P | PTE_W))
        die("no shared_info\n");
    for (unsigned i = 0; i < 32; i++)
        table[i] = (struct xen_trap_info){ .vector = (uint8_t)i, .flags = i == 3 ? 3 : 0, .cs = XEN_FLAT_CS64,
                                           .address = (uint64_t)trap_stubs + 16 * i };
    table[32] = (struct xen_trap_info){ .vector = 0x80, .flags = 3, .cs = XEN_FLAT_CS64, .address = (uint64_t)trap_stubs + 16 * 31 };
    if (xen_call1(XEN_set_trap_table, table) || xen_call3(XEN_set_callbacks, event_entry, failsafe_entry, 0))
        die("no traps\n");
    events_on();
    test_calls();
    test_memory();
    test_crossings();
    test_processors();
    leave(check_failed());
}
