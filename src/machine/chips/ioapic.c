/*
 * ioapic.c - I/O APIC with 24 pins. Source: Intel 82093AA data sheet §3; version 0x20 with the EOI
 * register at 0x40, as in Intel's ICH data sheets (so that EOI broadcasts may be suppressed).
 * Not modelled: pin polarity (a line that is set is asserted, whatever its polarity says). An edge
 * on a masked pin is lost, as on the real part.
 * Threads: any, under the interrupt controllers' lock.
 */
#include "machine/chips/ioapic.h"

#define IOREGSEL 0x00
#define IOWIN 0x10
#define IOEOI 0x40

#define REDIR_VECTOR(r) ((u8)(r))
#define REDIR_MODE(r) ((r) >> 8 & 7)
#define REDIR_LOGICAL BITULL(11)
#define REDIR_STATUS BITULL(12)
#define REDIR_REMOTE_IRR BITULL(14)
#define REDIR_LEVEL BITULL(15)
#define REDIR_MASKED BITULL(16)
#define REDIR_RO (REDIR_STATUS | REDIR_REMOTE_IRR)
#define REDIR_BITS 0xff0000000001ffffull

static void send(struct ioapic *io, unsigned pin)
{
    u64 r = io->redir[pin];
    u32 dest = (u32)(r >> 56);
    struct apic_msg msg = {
        .dest = dest, .logical = r & REDIR_LOGICAL, .level = r & REDIR_LEVEL,
        .mode = REDIR_MODE(r), .vector = REDIR_VECTOR(r),
    };
    if (dest == 0xff && !msg.logical)
        msg.dest = APIC_BROADCAST;
    if (lapic_bus_send(io->apics, &msg) && msg.level)
        io->redir[pin] |= REDIR_REMOTE_IRR;
}

/* A level-triggered pin that is asserted, unmasked and not in service goes out. */
static void update_level(struct ioapic *io, unsigned pin)
{
    u64 r = io->redir[pin];
    if ((r & REDIR_LEVEL) && !(r & (REDIR_MASKED | REDIR_REMOTE_IRR)) && (io->lines & BIT(pin)))
        send(io, pin);
}

void ioapic_set_pin(struct ioapic *io, unsigned pin, bool level)
{
    bool was = io->lines & BIT(pin);
    if (was == level)
        return;
    io->lines ^= BIT(pin);
    if (!level)
        return;
    u64 r = io->redir[pin];
    if (r & REDIR_LEVEL)
        update_level(io, pin);
    else if (!(r & REDIR_MASKED))
        send(io, pin);
}

void ioapic_eoi(struct ioapic *io, u8 vector)
{
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        u64 r = io->redir[pin];
        if (REDIR_VECTOR(r) != vector || !(r & REDIR_REMOTE_IRR))
            continue;
        io->redir[pin] &= ~REDIR_REMOTE_IRR;
        update_level(io, pin);
    }
}

static void redir_write(struct ioapic *io, unsigned pin, bool high, u32 value)
{
    u64 old = io->redir[pin];
    u64 r = high ? (old & 0xffffffff) | (u64)value << 32 : (old & ~0xffffffffull) | value;
    r = (r & REDIR_BITS & ~REDIR_RO) | (old & REDIR_RO);
    if (!(r & REDIR_LEVEL))
        r &= ~REDIR_REMOTE_IRR; /* kernels without the EOI register clear it this way */
    io->redir[pin] = r;
    update_level(io, pin);
}

static u32 reg_read(struct ioapic *io, unsigned reg)
{
    switch (reg) {
    case 0: return io->id << 24;
    case 1: return (IOAPIC_PINS - 1) << 16 | 0x20;
    case 2: return io->id << 24; /* arbitration */
    case 0x10 ... 0x10 + IOAPIC_PINS * 2 - 1:
        return (u32)(io->redir[(reg - 0x10) / 2] >> (reg & 1) * 32);
    default: return 0;
    }
}

static void reg_write(struct ioapic *io, unsigned reg, u32 value)
{
    if (reg == 0)
        io->id = value >> 24 & 0xf;
    else if (reg >= 0x10 && reg < 0x10 + IOAPIC_PINS * 2)
        redir_write(io, (reg - 0x10) / 2, reg & 1, value);
}

static u64 mmio_read(void *dev, u64 off, unsigned size)
{
    struct ioapic *io = dev;
    u64 value = 0;
    (void)size;
    pthread_mutex_lock(io->lock);
    if (off == IOREGSEL)
        value = io->select;
    else if (off == IOWIN)
        value = reg_read(io, io->select);
    pthread_mutex_unlock(io->lock);
    return value;
}

static void mmio_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct ioapic *io = dev;
    (void)size;
    pthread_mutex_lock(io->lock);
    if (off == IOREGSEL)
        io->select = (u8)value;
    else if (off == IOWIN)
        reg_write(io, io->select, (u32)value);
    else if (off == IOEOI)
        ioapic_eoi(io, (u8)value);
    pthread_mutex_unlock(io->lock);
}

void ioapic_init(struct ioapic *io, struct lapic_bus *apics, pthread_mutex_t *lock)
{
    *io = (struct ioapic){ .apics = apics, .lock = lock };
    ioapic_reset(io);
}

void ioapic_reset(struct ioapic *io)
{
    io->select = 0;
    io->id = 0;
    io->lines = 0; /* their owners are reset too, and drive them again */
    for (unsigned i = 0; i < IOAPIC_PINS; i++)
        io->redir[i] = REDIR_MASKED;
}

const struct io_ops ioapic_mmio = { "ioapic", 4, 4, mmio_read, mmio_write };

const struct state_field ioapic_state[] = {
    STATE(struct ioapic, redir), STATE(struct ioapic, lines), STATE(struct ioapic, id),
    STATE(struct ioapic, select), STATE_END
};
