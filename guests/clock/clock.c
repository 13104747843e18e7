/*
 * clock.c - time without asking: a page that Vitro fills once and the guest reads with RDTSC, and timers that end a hlt.
 */
#include "sdk/sdk.h"

#define MS 1000000ull

/* -- A date out of ns since 1970 (the Gregorian calendar, by counting) -------------------------------------------- */

static bool leap(unsigned y)
{
    return (y % 4 == 0 && y % 100) || y % 400 == 0;
}

static void print_date(uint64_t ns)
{
    static const uint8_t days[12] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
    uint64_t s = ns / 1000000000, day = s / 86400;
    unsigned year = 1970, month = 0;

    for (; day >= 365u + leap(year); year++)
        day -= 365u + leap(year);
    for (; day >= days[month] + (month == 1 && leap(year)) + 0u; month++)
        day -= days[month] + (month == 1 && leap(year));
    print("It is %04u-%02u-%02lu %02lu:%02lu:%02lu UTC.\n", year, month + 1, day + 1, s / 3600 % 24, s / 60 % 60, s % 60);
}

/* -- Timers: number, deadline, period, and the port that is told ------------------------------------------------------ */

enum { PORT_ONCE = 1, PORT_TICK = 2 };

static volatile uint64_t fired_at;
static volatile unsigned ticks;

static void on_once(void *arg)
{
    (void)arg;
    fired_at = mono_ns();
}

static void on_tick(void *arg)
{
    (void)arg;
    ticks++;
}

int main(void)
{
    uint64_t a, b, start;

    print_date(wall_ns());

    /* Reading the clock: a hundred thousand times, never backwards. */
    bool forward = true;
    start = a = mono_ns();
    for (unsigned i = 0; i < 100000; i++, a = b) {
        b = mono_ns();
        forward &= b >= a;
    }
    print("Reading the time takes %lu ns.\n", (a - start) / 100000);
    check(forward, "time does not run backwards");

    /* One-shot: not early, and not much later. */
    event_handle(PORT_ONCE, on_once, NULL);
    uint64_t deadline = mono_ns() + 20 * MS;
    vt_call4(VT_TIMER_SET, 0, deadline, 0, PORT_ONCE);
    wait_until(fired_at);
    print("A timer fired %lu us after its deadline.\n", (fired_at - deadline) / 1000);
    check(fired_at >= deadline, "it is not early");

    /* Cancelled: never. */
    fired_at = 0;
    vt_call4(VT_TIMER_SET, 0, mono_ns() + 5 * MS, 0, PORT_ONCE);
    vt_call4(VT_TIMER_SET, 0, 0, 0, PORT_ONCE);

    /* Periodic: ten ticks of 5 ms. Ticks that come together are one event. */
    event_handle(PORT_TICK, on_tick, NULL);
    start = mono_ns();
    vt_call4(VT_TIMER_SET, 1, start + 5 * MS, 5 * MS, PORT_TICK);
    wait_until(ticks >= 10);
    vt_call4(VT_TIMER_SET, 1, 0, 0, PORT_TICK);
    check(mono_ns() - start >= 50 * MS, "ten ticks of 5 ms are at least 50 ms");
    check(!fired_at, "a timer that was switched off does not fire");
    return check_failed();
}
