/*
 * uart16550.c - PC16550D serial port. Source: National PC16550D data sheet, §8.
 * Not modelled: parity, framing and break; the divisor is stored but does not pace; the modem lines
 * CTS, DSR and DCD are always on. The receive timeout is immediate: data below the trigger
 * level interrupts at once as a character timeout. Received bytes wait in a longer queue behind the
 * FIFO, so the line never overruns (loopback does). Output is handed out in batches: at a newline,
 * when full, or TX_DELAY_NS after the first byte.
 * Threads: ports on a vCPU thread, uart_feed() and the timer on the I/O thread; under u->lock.
 */
#include "machine/chips/uart16550.h"
#include <errno.h>
#include <string.h>

#define TX_DELAY_NS 2000000ull
#define POLLING 64 /* status reads in a row, nothing written: more than any output or probing makes */

enum { UART_DATA, UART_IER, UART_IIR, UART_LCR, UART_MCR, UART_LSR, UART_MSR, UART_SCR };

#define IER_RDI 0x01
#define IER_THRI 0x02
#define IER_RLSI 0x04
#define IER_MSI 0x08
#define IIR_NONE 0x01
#define IIR_MSI 0x00
#define IIR_THRI 0x02
#define IIR_RDI 0x04
#define IIR_RLSI 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFO 0xc0
#define FCR_ENABLE 0x01
#define FCR_CLEAR_RX 0x02
#define FCR_CLEAR_TX 0x04
#define LCR_DLAB 0x80
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define LSR_DR 0x01
#define LSR_OE 0x02
#define LSR_THRE 0x20
#define LSR_TEMT 0x40
#define MSR_DELTAS 0x0f
#define MSR_LINES 0xb0 /* DCD, DSR, CTS */

static u32 rx_trigger(const struct uart *u)
{
    static const u8 level[4] = { 1, 4, 8, 14 };
    return u->fcr & FCR_ENABLE ? level[u->fcr >> 6] : 1;
}

/* The interrupt to show: priorities of the data sheet's table III. */
static u8 iir(const struct uart *u)
{
    if ((u->ier & IER_RLSI) && u->lsr_errors)
        return IIR_RLSI;
    if ((u->ier & IER_RDI) && u->rx_len)
        return u->rx_len >= rx_trigger(u) ? IIR_RDI : IIR_TIMEOUT;
    if ((u->ier & IER_THRI) && u->thri)
        return IIR_THRI;
    if ((u->ier & IER_MSI) && (u->msr & MSR_DELTAS))
        return IIR_MSI;
    return IIR_NONE;
}

/* OUT2 gates the interrupt on PCs; in loopback it does not reach the pin. */
static void update_irq(struct uart *u)
{
    bool level = iir(u) != IIR_NONE && (u->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;
    if (level == u->irq_level)
        return;
    u->irq_level = level;
    irq_set(&u->wiring.irq, level);
}

/* -- Data ----------------------------------------------------------------- */

static void tx_flush(struct uart *u)
{
    if (!u->tx_len)
        return;
    u32 len = u->tx_len;
    u->tx_len = 0;
    if (u->wiring.tx)
        u->wiring.tx(u->wiring.opaque, u->tx, len);
}

static bool rx_push(struct uart *u, u8 byte, u32 limit)
{
    if (u->rx_len >= limit)
        return false;
    u->rx[(u->rx_head + u->rx_len++) % UART_RX_QUEUE] = byte;
    return true;
}

static u8 rx_pop(struct uart *u)
{
    if (!u->rx_len)
        return 0;
    u8 byte = u->rx[u->rx_head];
    u->rx_head = (u->rx_head + 1) % UART_RX_QUEUE;
    if (--u->rx_len == 0 && u->wiring.rx_room)
        u->wiring.rx_room(u->wiring.opaque);
    return byte;
}

static void tx_push(struct uart *u, u8 byte)
{
    u->thri = true; /* sent at once: empty again */
    if (u->mcr & MCR_LOOP) {
        if (!rx_push(u, byte, u->fcr & FCR_ENABLE ? UART_FIFO : 1))
            u->lsr_errors |= LSR_OE;
        return;
    }
    u->tx[u->tx_len++] = byte;
    if (byte == '\n' || u->tx_len == UART_TX_BATCH) {
        tx_flush(u);
    } else if (!u->tx_timer_armed) {
        u->tx_timer_armed = true;
        timer_arm(u->wiring.clock, &u->tx_timer, clock_now(u->wiring.clock) + TX_DELAY_NS);
    }
}

static void tx_timer_due(void *opaque)
{
    struct uart *u = opaque;
    pthread_mutex_lock(&u->lock);
    u->tx_timer_armed = false;
    tx_flush(u);
    pthread_mutex_unlock(&u->lock);
}

/* -- Registers ------------------------------------------------------------ */

/* In loopback the modem outputs appear as inputs: DTR-DSR, RTS-CTS, OUT1-RI, OUT2-DCD. */
static void update_msr(struct uart *u)
{
    u8 m = u->mcr, lines = MSR_LINES;
    if (m & MCR_LOOP)
        lines = (u8)((m & 1) << 5 | (m & 2) << 3 | (m & 4) << 4 | (m & 8) << 4);
    u8 was = u->msr & 0xf0, changed = was ^ lines;
    u8 deltas = changed >> 4 & 0x0b;
    if ((was & 0x40) && !(lines & 0x40))
        deltas |= 0x04; /* trailing edge of RI */
    u->msr = lines | (u->msr & MSR_DELTAS) | deltas;
}

static void fcr_write(struct uart *u, u8 value)
{
    if ((value ^ u->fcr) & FCR_ENABLE)
        value |= FCR_CLEAR_RX | FCR_CLEAR_TX;
    if ((value & FCR_CLEAR_RX) && u->rx_len) {
        u32 drop = MIN(u->rx_len, (u32)UART_FIFO); /* the queue behind the FIFO is not the chip's */
        u->rx_head = (u->rx_head + drop) % UART_RX_QUEUE;
        u->rx_len -= drop;
        if (!u->rx_len && u->wiring.rx_room)
            u->wiring.rx_room(u->wiring.opaque);
    }
    if (value & FCR_CLEAR_TX)
        u->thri = true;
    u->fcr = value & 0xc9;
}

static void ier_write(struct uart *u, u8 value)
{
    value &= 0x0f;
    if ((value & IER_THRI) && !(u->ier & IER_THRI))
        u->thri = true; /* enabling it with an empty THR interrupts */
    u->ier = value;
}

static u8 read_reg(struct uart *u, unsigned reg)
{
    bool dlab = u->lcr & LCR_DLAB;
    u8 value;
    switch (reg) {
    case UART_DATA: return dlab ? u->dll : rx_pop(u);
    case UART_IER: return dlab ? u->dlm : u->ier;
    case UART_IIR:
        value = iir(u);
        if (value == IIR_THRI)
            u->thri = false; /* reading it is the acknowledgement */
        return value | (u->fcr & FCR_ENABLE ? IIR_FIFO : 0);
    case UART_LCR: return u->lcr;
    case UART_MCR: return u->mcr;
    case UART_LSR:
        value = LSR_THRE | LSR_TEMT | u->lsr_errors | (u->rx_len ? LSR_DR : 0);
        u->lsr_errors = 0;
        return value;
    case UART_MSR:
        value = u->msr;
        u->msr &= 0xf0;
        return value;
    default: return u->scr;
    }
}

static void write_reg(struct uart *u, unsigned reg, u8 value)
{
    bool dlab = u->lcr & LCR_DLAB;
    switch (reg) {
    case UART_DATA:
        if (dlab)
            u->dll = value;
        else
            tx_push(u, value);
        break;
    case UART_IER:
        if (dlab)
            u->dlm = value;
        else
            ier_write(u, value);
        break;
    case UART_IIR: fcr_write(u, value); break;
    case UART_LCR: u->lcr = value; break;
    case UART_MCR:
        u->mcr = value & 0x1f;
        update_msr(u);
        break;
    case UART_SCR: u->scr = value; break;
    default: break; /* LSR and MSR are read-only */
    }
}

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct uart *u = dev;
    (void)size;
    pthread_mutex_lock(&u->lock);
    u8 value = read_reg(u, (unsigned)off);
    if ((off == UART_LSR || off == UART_IIR) && u->status_reads < POLLING)
        u->status_reads++;
    update_irq(u);
    pthread_mutex_unlock(&u->lock);
    return value;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct uart *u = dev;
    (void)size;
    pthread_mutex_lock(&u->lock);
    write_reg(u, (unsigned)off, (u8)value);
    u->status_reads = 0;
    update_irq(u);
    pthread_mutex_unlock(&u->lock);
}

/* -- From outside --------------------------------------------------------- */

size_t uart_feed(struct uart *u, const u8 *bytes, size_t len)
{
    size_t n = 0;
    pthread_mutex_lock(&u->lock);
    if (!(u->mcr & MCR_LOOP)) { /* in loopback the input pin is disconnected; keep it for later */
        while (n < len && rx_push(u, bytes[n], UART_RX_QUEUE))
            n++;
        update_irq(u);
    }
    pthread_mutex_unlock(&u->lock);
    return n;
}

/* Drivers switch the interrupt on before the FIFO, and that clears it: the FIFO, or reading on, is the sign. */
bool uart_listening(struct uart *u)
{
    pthread_mutex_lock(&u->lock);
    bool interrupts = (u->ier & IER_RDI) && (u->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2 &&
                      ((u->fcr & FCR_ENABLE) || u->status_reads);
    bool polls = u->status_reads >= POLLING;
    pthread_mutex_unlock(&u->lock);
    return interrupts || polls;
}

size_t uart_room(struct uart *u)
{
    pthread_mutex_lock(&u->lock);
    size_t room = UART_RX_QUEUE - u->rx_len;
    pthread_mutex_unlock(&u->lock);
    return room;
}

void uart_flush(struct uart *u)
{
    pthread_mutex_lock(&u->lock);
    tx_flush(u);
    pthread_mutex_unlock(&u->lock);
}

/* -- Class ---------------------------------------------------------------- */

static void uart_reset(void *dev)
{
    struct uart *u = dev;
    pthread_mutex_lock(&u->lock);
    tx_flush(u);
    u->ier = u->fcr = u->lcr = u->mcr = u->scr = u->dlm = u->lsr_errors = u->status_reads = 0;
    u->dll = 1; /* 115200 */
    u->msr = MSR_LINES;
    u->thri = false;
    update_irq(u);
    pthread_mutex_unlock(&u->lock);
}

static int uart_init(void *dev, const void *wiring)
{
    struct uart *u = dev;
    memset(u, 0, sizeof(*u));
    u->wiring = *(const struct uart_wiring *)wiring;
    int err = timer_init(u->wiring.clock, &u->tx_timer, tx_timer_due, u);
    if (err)
        return err;
    pthread_mutex_init(&u->lock, NULL);
    uart_reset(u);
    return 0;
}

static void uart_fini(void *dev)
{
    struct uart *u = dev;
    uart_flush(u);
    pthread_mutex_destroy(&u->lock);
}

static int uart_loaded(void *dev)
{
    const struct uart *u = dev;
    return u->rx_head < UART_RX_QUEUE && u->rx_len <= UART_RX_QUEUE ? 0 : -EINVAL;
}

/* tx is not among them: uart_flush() hands it out before. */
static const struct state_field uart_state[] = {
    STATE(struct uart, irq_level),
    STATE(struct uart, ier), STATE(struct uart, fcr), STATE(struct uart, lcr),
    STATE(struct uart, mcr), STATE(struct uart, msr), STATE(struct uart, scr),
    STATE(struct uart, dll), STATE(struct uart, dlm), STATE(struct uart, lsr_errors),
    STATE(struct uart, thri), STATE(struct uart, rx_head), STATE(struct uart, rx_len),
    STATE(struct uart, rx), STATE_END
};

static const struct io_ops uart_io = { "uart16550", 1, 1, io_read, io_write };

const struct device_class uart16550 = {
    .name = "uart16550", .size = sizeof(struct uart),
    .init = uart_init, .reset = uart_reset, .fini = uart_fini,
    .state = uart_state, .io = &uart_io, .loaded = uart_loaded,
};
