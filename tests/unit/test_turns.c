/*
 * test_turns.c - the lock of those who translate: one at a time; and once somebody has waited for long, he is next, whoever else
 * wants it, who gave it up just now most of all.
 */
#include "engine/turns.h"
#include "tests/lib/check.h"

#include <sched.h>

#define NR 4
#define EACH 500

static struct turns turns;
static unsigned together, worst, order[2], nr_order, go_on;

static void *want(void *arg)
{
    (void)arg;
    for (unsigned n = 0; n < EACH; n++) {
        if (!turns_try(&turns))
            turns_take(&turns);
        worst += __atomic_add_fetch(&together, 1, __ATOMIC_SEQ_CST) != 1;
        for (unsigned i = 0; i < 300; i++)
            __builtin_ia32_pause();
        __atomic_fetch_sub(&together, 1, __ATOMIC_SEQ_CST);
        turns_give(&turns);
    }
    return NULL;
}

/* Takes it, says so, and keeps it until told otherwise. */
static void *wait_for_it(void *arg)
{
    turns_take(&turns);
    order[__atomic_load_n(&nr_order, __ATOMIC_SEQ_CST)] = *(unsigned *)arg;
    __atomic_fetch_add(&nr_order, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&go_on, __ATOMIC_SEQ_CST))
        sched_yield();
    turns_give(&turns);
    return NULL;
}

static void waits_are_kept(void)
{
    static unsigned first = 1, second = 2;
    pthread_t a, b;
    turns_take(&turns);
    CHECK(!turns_try(&turns));
    CHECK(!pthread_create(&a, NULL, wait_for_it, &first));
    while (!__atomic_load_n(&turns.shut, __ATOMIC_SEQ_CST)) /* until it has waited for long */
        sched_yield();
    CHECK(!pthread_create(&b, NULL, wait_for_it, &second));
    turns_give(&turns);
    unsigned ahead = 0;
    while (!__atomic_load_n(&nr_order, __ATOMIC_SEQ_CST))
        if (turns_try(&turns)) {
            ahead++;
            turns_give(&turns);
        }
    CHECK(!ahead);
    __atomic_store_n(&go_on, 1, __ATOMIC_SEQ_CST);
    pthread_join(a, NULL);
    pthread_join(b, NULL);
    CHECK(order[0] == 1 && order[1] == 2);
    CHECK(!turns.shut);
}

int main(void)
{
    pthread_t thread[NR];
    turns_init(&turns);
    CHECK(turns_try(&turns));
    CHECK(!turns_try(&turns));
    turns_give(&turns);
    waits_are_kept();
    for (unsigned i = 0; i < NR; i++)
        CHECK(!pthread_create(&thread[i], NULL, want, NULL));
    for (unsigned i = 0; i < NR; i++)
        pthread_join(thread[i], NULL);
    CHECK(!worst);
    CHECK(turns_try(&turns));
    turns_give(&turns);
    turns_fini(&turns);
    return check_done("turns");
}
