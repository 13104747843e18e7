/* i8259.h - two cascaded 8259A interrupt controllers. */
#pragma once
#include "base/types.h"
#include "machine/device.h"
#include "machine/irq.h"

struct i8259_chip {
    u8 irr, imr, isr, lines, elcr;
    u8 base;          /* ICW2 */
    u8 lowest;        /* the input with the lowest priority: rotation */
    u8 icw_next;      /* 0: initialised; else which ICW is expected */
    bool icw4_follows, read_isr, poll, special_mask, auto_eoi, rotate_auto_eoi, nested, level_all;
};

struct i8259 {
    pthread_mutex_t *lock; /* the interrupt controllers'; taken by the port handlers */
    struct irq_line intr;  /* to the CPU; driven under the lock */
    struct i8259_chip chip[2]; /* master, slave */
};

void i8259_init(struct i8259 *pic, struct irq_line intr, pthread_mutex_t *lock);
void i8259_reset(struct i8259 *pic);
/* Under the lock: */
void i8259_set_irq(struct i8259 *pic, unsigned irq, bool level); /* 0..15 */
int i8259_ack(struct i8259 *pic); /* INTA: the vector; IRQ 7's or 15's when spurious */
/* Offsets: 0-1 master, 2-3 slave, 4-5 ELCR. dev is the struct i8259. */
extern const struct io_ops i8259_io;
extern const struct state_field i8259_state[];
int i8259_loaded(void *pic); /* as device_class.loaded */
