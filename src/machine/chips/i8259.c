/*
 * i8259.c - Intel 8259A pair. Source: Intel 8259A data sheet (1988); ELCR: Intel 82371AB (PIIX4)
 * §4.
 * Not modelled: MCS-80/85 mode, buffered mode.
 * Threads: any, under the interrupt controllers' lock.
 */
#include "machine/chips/i8259.h"
#include <errno.h>

#define CASCADE 2

/* Highest-priority bit of `set`, by the chip's rotation; 8 if none. Smaller is more important. */
static unsigned priority(const struct i8259_chip *c, u8 set)
{
    for (unsigned p = 0; set && p < 8; p++)
        if (set & BIT((c->lowest + 1 + p) & 7))
            return p;
    return 8;
}

/* The input that may interrupt now, or -1. */
static int pending(const struct i8259_chip *c, bool master)
{
    unsigned want = priority(c, c->irr & ~c->imr);
    u8 busy = c->isr;
    if (c->special_mask)
        busy &= ~c->imr;
    if (master && c->nested) /* special fully nested: the slave may interrupt itself */
        busy &= ~BIT(CASCADE);
    return want < priority(c, busy) ? (int)((c->lowest + 1 + want) & 7) : -1;
}

static void set_line(struct i8259_chip *c, unsigned n, bool level)
{
    u8 bit = (u8)BIT(n);
    if (c->level_all || (c->elcr & bit)) {
        c->irr = level ? c->irr | bit : c->irr & ~bit;
    } else if (!level) {
        c->irr &= ~bit; /* gone before INTA: spurious */
    } else if (!(c->lines & bit)) {
        c->irr |= bit;
    }
    c->lines = level ? c->lines | bit : c->lines & ~bit;
}

/* Slave output into the master, master output to the CPU. */
static void update(struct i8259 *pic)
{
    set_line(&pic->chip[0], CASCADE, pending(&pic->chip[1], false) >= 0);
    irq_set(&pic->intr, pending(&pic->chip[0], true) >= 0);
}

void i8259_set_irq(struct i8259 *pic, unsigned irq, bool level)
{
    set_line(&pic->chip[irq >> 3], irq & 7, level);
    update(pic);
}

/* INTA for one chip: moves the request in service. */
static void acknowledge(struct i8259_chip *c, unsigned n)
{
    u8 bit = (u8)BIT(n);
    if (c->auto_eoi) {
        if (c->rotate_auto_eoi)
            c->lowest = (u8)n;
    } else {
        c->isr |= bit;
    }
    if (!c->level_all && !(c->elcr & bit))
        c->irr &= ~bit;
}

int i8259_ack(struct i8259 *pic)
{
    struct i8259_chip *m = &pic->chip[0], *s = &pic->chip[1];
    int n = pending(m, true), vector;
    if (n < 0) {
        vector = m->base + 7; /* spurious: no bit in service */
    } else {
        acknowledge(m, (unsigned)n);
        vector = m->base + n;
        if (n == CASCADE) {
            int k = pending(s, false);
            if (k >= 0)
                acknowledge(s, (unsigned)k);
            vector = s->base + (k < 0 ? 7 : k);
            m->lines &= (u8)~BIT(CASCADE); /* a next request of the slave is a new edge */
        }
    }
    update(pic);
    return vector;
}

/* -- Registers ------------------------------------------------------------ */

static void write_icw1(struct i8259_chip *c, u8 value)
{
    c->imr = c->isr = c->irr = 0;
    c->lowest = 7;
    c->read_isr = c->poll = c->special_mask = false;
    c->auto_eoi = c->rotate_auto_eoi = c->nested = false;
    c->level_all = value & 0x08;
    c->icw4_follows = value & 0x01;
    c->icw_next = 2;
    if (c->level_all)
        c->irr = c->lines;
}

static void write_ocw2(struct i8259_chip *c, u8 value)
{
    unsigned p = priority(c, c->isr);
    unsigned top = (c->lowest + 1 + p) & 7; /* in service, if p < 8 */
    switch (value >> 5) {
    case 0: case 4: /* rotate in automatic EOI mode: clear, set */
        c->rotate_auto_eoi = value >> 7;
        break;
    case 1: case 5: /* non-specific EOI, and rotate */
        if (p < 8) {
            c->isr &= (u8)~BIT(top);
            if (value & 0x80)
                c->lowest = (u8)top;
        }
        break;
    case 3: case 7: /* specific EOI, and rotate */
        c->isr &= (u8)~BIT(value & 7);
        if (value & 0x80)
            c->lowest = value & 7;
        break;
    case 6: /* set priority */
        c->lowest = value & 7;
        break;
    default: /* 2: no operation */
        break;
    }
}

static void write_ocw3(struct i8259_chip *c, u8 value)
{
    if (value & 0x04)
        c->poll = true;
    if (value & 0x02)
        c->read_isr = value & 0x01;
    if (value & 0x40)
        c->special_mask = value & 0x20;
}

static void write_data(struct i8259_chip *c, u8 value)
{
    switch (c->icw_next) {
    case 0:
        c->imr = value;
        break;
    case 2:
        c->base = value & 0xf8;
        c->icw_next = 3; /* both chips are always cascaded */
        break;
    case 3:
        c->icw_next = c->icw4_follows ? 4 : 0;
        break;
    default:
        c->auto_eoi = value & 0x02;
        c->nested = value & 0x10;
        c->icw_next = 0;
    }
}

static u8 read_poll(struct i8259 *pic, unsigned chip)
{
    struct i8259_chip *c = &pic->chip[chip];
    int n = pending(c, chip == 0);
    c->poll = false;
    if (n < 0)
        return 0;
    acknowledge(c, (unsigned)n);
    return (u8)(0x80 | n);
}

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct i8259 *pic = dev;
    u8 value;
    (void)size;
    pthread_mutex_lock(pic->lock);
    struct i8259_chip *c = &pic->chip[off >> 1 & 1];
    if (off >= 4)
        value = pic->chip[off & 1].elcr;
    else if (c->poll)
        value = read_poll(pic, off >> 1 & 1);
    else if (off & 1)
        value = c->imr;
    else
        value = c->read_isr ? c->isr : c->irr;
    update(pic);
    pthread_mutex_unlock(pic->lock);
    return value;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct i8259 *pic = dev;
    (void)size;
    pthread_mutex_lock(pic->lock);
    struct i8259_chip *c = &pic->chip[off >> 1 & 1];
    if (off >= 4) /* IRQ 0, 1, 2 and 8, 13 are always edge */
        pic->chip[off & 1].elcr = (u8)value & (off & 1 ? 0xde : 0xf8);
    else if (off & 1)
        write_data(c, (u8)value);
    else if (value & 0x10)
        write_icw1(c, (u8)value);
    else if (value & 0x08)
        write_ocw3(c, (u8)value);
    else
        write_ocw2(c, (u8)value);
    update(pic);
    pthread_mutex_unlock(pic->lock);
}

void i8259_reset(struct i8259 *pic)
{
    for (unsigned i = 0; i < 2; i++) /* everything masked until somebody programs it */
        pic->chip[i] = (struct i8259_chip){ .imr = 0xff, .lowest = 7, .base = i ? 0x70 : 0x08 };
    update(pic);
}

void i8259_init(struct i8259 *pic, struct irq_line intr, pthread_mutex_t *lock)
{
    *pic = (struct i8259){ .lock = lock, .intr = intr };
    i8259_reset(pic);
}

const struct io_ops i8259_io = { "i8259", 1, 1, io_read, io_write };
/* clang-format off */
#define CHIP(n) \
    STATE(struct i8259, chip[n].irr), STATE(struct i8259, chip[n].imr), STATE(struct i8259, chip[n].isr), \
    STATE(struct i8259, chip[n].lines), STATE(struct i8259, chip[n].elcr), STATE(struct i8259, chip[n].base), \
    STATE(struct i8259, chip[n].lowest), STATE(struct i8259, chip[n].icw_next), \
    STATE(struct i8259, chip[n].icw4_follows), STATE(struct i8259, chip[n].read_isr), \
    STATE(struct i8259, chip[n].poll), STATE(struct i8259, chip[n].special_mask), \
    STATE(struct i8259, chip[n].auto_eoi), STATE(struct i8259, chip[n].rotate_auto_eoi), \
    STATE(struct i8259, chip[n].nested), STATE(struct i8259, chip[n].level_all)
const struct state_field i8259_state[] = { CHIP(0), CHIP(1), STATE_END };
#undef CHIP
/* clang-format on */

int i8259_loaded(void *dev)
{
    const struct i8259 *pic = dev;
    for (unsigned i = 0; i < 2; i++)
        if (pic->chip[i].lowest > 7 || pic->chip[i].icw_next > 4)
            return -EINVAL;
    return 0;
}
