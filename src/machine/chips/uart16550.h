/*
 * uart16550.h - PC16550D serial port. The ports are called on vCPU threads, uart_feed() on any
 * thread; all take u->lock. tx is called with the lock held: it must not call back into the UART.
 */
#pragma once
#include "base/types.h"
#include "machine/clock.h"
#include "machine/device.h"
#include "machine/irq.h"

#define UART_FIFO 16
#define UART_RX_QUEUE 4096
#define UART_TX_BATCH 512

struct uart_wiring {
    struct irq_line irq;
    struct vm_clock *clock;
    void (*tx)(void *opaque, const u8 *bytes, size_t len);
    void (*rx_room)(void *opaque); /* the guest has read what was fed; may be NULL */
    void *opaque;
};

struct uart {
    pthread_mutex_t lock;
    struct uart_wiring wiring;
    u8 ier, fcr, lcr, mcr, msr, scr, dll, dlm;
    u8 lsr_errors;        /* OE, cleared by reading LSR */
    u8 status_reads;      /* of LSR and IIR since anything was written; saturates */
    bool thri;            /* THRE interrupt waiting */
    bool irq_level;
    u32 rx_head, rx_len;  /* what arrived and was not read; the first UART_FIFO are "in the FIFO" */
    u8 rx[UART_RX_QUEUE];
    u32 tx_len;
    u8 tx[UART_TX_BATCH]; /* written, not yet handed out: batches a line of output in one call */
    bool tx_timer_armed;
    struct vm_timer tx_timer;
};

/* uart_feed - bytes from outside. How many were taken; the rest must be fed after rx_room(). */
size_t uart_feed(struct uart *u, const u8 *bytes, size_t len);
size_t uart_room(struct uart *u);
/* uart_listening - does a driver take input: by interrupts, or by polling? What is fed before, its start-up clears. */
bool uart_listening(struct uart *u);
/* uart_flush - hand out what waits in the batch. */
void uart_flush(struct uart *u);
extern const struct device_class uart16550;
