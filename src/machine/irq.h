/*
 * irq.h - an interrupt line is a value: who listens, and which of his inputs. The owner of the
 * line sets its level; what level means (edge, polarity) is the listener's business: 1 is asserted.
 */
#pragma once
#include "base/types.h"
#include <pthread.h>

struct irq_line {
    void (*set)(void *owner, unsigned n, bool level);
    void *owner;
    unsigned n;
};

/* irq_set - drive a line. A line nobody listens to is allowed. */
static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set)
        line->set(line->owner, line->n, level);
}

/* A wired-OR of up to 128 sources onto one line: shared PCI interrupts. */
struct irq_or {
    pthread_mutex_t lock;
    u64 asserted[2]; /* by source */
    struct irq_line out;
};
void irq_or_init(struct irq_or *or, struct irq_line out);
void irq_or_fini(struct irq_or *or);
void irq_or_reset(struct irq_or *or);
/* irq_or_set - an irq_line.set: owner is the struct irq_or. */
void irq_or_set(void *owner, unsigned source, bool level);
