/*
 * windows_lost.c - user code runs long enough to get windows (src/engine/window.h), then one page of it is unmapped again and
 * again, as when processors shoot down each other's TLBs. tests/boot/test_windows.py looks at what the host was asked for.
 */
#include "lib/guest.h"

#define VA ((volatile u64 *)0x40000000ul)
#define ROUNDS 20000
#define TICKS 12

u64 lost_spin(volatile void *p, u64 n, u64 c), lost_look(volatile void *p, u64 b, u64 c);
USER_ASM("lost_spin: add (%rdi), %rax; dec %rsi; jnz lost_spin; ret\n"
         "lost_look: mov (%rdi), %rax; ret\n");

static volatile unsigned ticks;
static void tick(struct regs *r)
{
    ticks += r->cs & 3 ? 1 : 0;
    lapic_eoi();
}

int main(void)
{
    u64 frame[2] = { page_alloc(), page_alloc() };
    struct regs r;

    pic_init();
    lapic_init();
    trap_handle(0x40, tick);
    map((void *)VA, frame[0], PTE_P | PTE_W | PTE_U);
    lapic_write(LAPIC_TDCR, 0xb);
    lapic_write(LAPIC_LVTT, 0x20040);
    lapic_write(LAPIC_TMICT, 4000000); /* 4 ms */
    for (u64 end = rdtsc() + tsc_per_ms() * 10000; ticks < TICKS && rdtsc() < end;) {
        user_regs(&r, lost_spin, false);
        r.rdi = (u64)VA;
        r.rsi = 3000000;
        r.rsp -= 8;
        *(u64 *)r.rsp = (u64)user_return;
        r.rflags |= FL_IF;
        user_run(&r);
    }
    lapic_write(LAPIC_LVTT, 0x10000);
    report("user code was interrupted by its timer", ticks >= TICKS);

    unsigned wrong = 0;
    for (u64 n = 0; n < ROUNDS; n++) {
        *(volatile u64 *)frame[n & 1] = n;
        map((void *)VA, frame[n & 1], PTE_P | PTE_W | PTE_U);
        invlpg((void *)VA);
        wrong += user_call(lost_look, (u64)VA, 0, 0) != n;
    }
    report_eq("it saw the other page each time", wrong, 0);
    return 0;
}
