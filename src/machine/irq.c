/* irq.c - lines shared by several sources. Threads: any; the output is driven under or->lock. */
#include "machine/irq.h"

void irq_or_init(struct irq_or *or, struct irq_line out)
{
    pthread_mutex_init(&or->lock, NULL);
    or->asserted[0] = or->asserted[1] = 0;
    or->out = out;
}

void irq_or_fini(struct irq_or *or)
{
    pthread_mutex_destroy(&or->lock);
}

void irq_or_reset(struct irq_or *or)
{
    pthread_mutex_lock(&or->lock);
    or->asserted[0] = or->asserted[1] = 0;
    irq_set(&or->out, false);
    pthread_mutex_unlock(&or->lock);
}

void irq_or_set(void *owner, unsigned source, bool level)
{
    struct irq_or *or = owner;
    pthread_mutex_lock(&or->lock);
    u64 *word = &or->asserted[source >> 6 & 1], bit = BITULL(source & 63);
    bool was = or->asserted[0] | or->asserted[1];
    *word = level ? *word | bit : *word & ~bit;
    bool is = or->asserted[0] | or->asserted[1];
    /* Under the lock, so that two sources cannot drive the output in the wrong order. */
    if (was != is)
        irq_set(&or->out, is);
    pthread_mutex_unlock(&or->lock);
}
