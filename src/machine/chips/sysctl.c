/*
 * sysctl.c - one-register ports. Source: reset control 0xcf9, port A 0x92: Intel 82371AB (PIIX4)
 * §4.2, §4.3; debugcon, isa-debug-exit and pvpanic: QEMU's docs/specs/pvpanic and its devices of
 * those names.
 * Threads: vCPU threads; no lock, every register is one byte.
 */
#include "machine/chips/sysctl.h"

#define RCR_SYS_RST 0x02 /* hard reset, rather than INIT */
#define RCR_RST_CPU 0x04 /* 0 -> 1 resets */
#define PORT_A_FAST_RESET 0x01
#define PORT_A_A20 0x02
#define PVPANIC_PANICKED 0x01
#define PVPANIC_CRASH_LOADED 0x02

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct sysctl *s = dev;
    (void)size;
    switch (off) {
    case SYSCTL_RESET: return s->reset_control;
    case SYSCTL_PORT_A: return (s->port_a & (u8)~PORT_A_A20) | (s->a20 ? PORT_A_A20 : 0);
    case SYSCTL_POST: return s->post;
    case SYSCTL_DEBUGCON: return 0xe9; /* "I am here" */
    case SYSCTL_FIRMWARE_LOG: return s->wiring.firmware_log ? 0xe9 : 0xff;
    case SYSCTL_PVPANIC: return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
    default: return 0;
    }
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct sysctl *s = dev;
    u8 byte = (u8)value, old;
    (void)size;
    switch (off) {
    case SYSCTL_RESET:
        old = s->reset_control;
        s->reset_control = byte & (RCR_SYS_RST | 0x08);
        if ((byte & RCR_RST_CPU) && !(old & RCR_RST_CPU))
            s->wiring.reset(s->wiring.opaque);
        break;
    case SYSCTL_PORT_A:
        old = s->port_a;
        s->port_a = byte & (PORT_A_A20 | PORT_A_FAST_RESET);
        s->wiring.a20(s->wiring.opaque, byte & PORT_A_A20);
        if ((byte & PORT_A_FAST_RESET) && !(old & PORT_A_FAST_RESET))
            s->wiring.reset(s->wiring.opaque);
        break;
    case SYSCTL_POST:
        s->post = byte;
        break;
    case SYSCTL_DEBUGCON:
        if (s->wiring.debugcon)
            s->wiring.debugcon(s->wiring.opaque, &byte, 1);
        break;
    case SYSCTL_FIRMWARE_LOG:
        if (s->wiring.firmware_log)
            s->wiring.firmware_log(s->wiring.opaque, &byte, 1);
        break;
    case SYSCTL_PVPANIC:
        if (byte & PVPANIC_PANICKED)
            s->wiring.panicked(s->wiring.opaque);
        break;
    default: break;
    }
}

static u64 exit_read(void *dev, u64 off, unsigned size)
{
    (void)dev, (void)off, (void)size;
    return 0;
}

static void exit_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct sysctl *s = dev;
    (void)off, (void)size;
    s->wiring.debug_exit(s->wiring.opaque, (int)((u32)value << 1 | 1));
}

static void sysctl_reset(void *dev)
{
    struct sysctl *s = dev;
    s->reset_control = s->port_a = s->post = 0;
    s->wiring.a20(s->wiring.opaque, true);
}

static int sysctl_init(void *dev, const void *wiring)
{
    struct sysctl *s = dev;
    *s = (struct sysctl){ .wiring = *(const struct sysctl_wiring *)wiring, .a20 = true };
    return 0;
}

static void sysctl_fini(void *dev)
{
    (void)dev;
}

static const struct state_field sysctl_state[] = {
    STATE(struct sysctl, reset_control), STATE(struct sysctl, port_a), STATE(struct sysctl, post),
    STATE_END
};

static const struct io_ops sysctl_io = { "sysctl", 1, 1, io_read, io_write };
const struct io_ops sysctl_exit = { "debug-exit", 1, 4, exit_read, exit_write };

const struct device_class sysctl = {
    .name = "sysctl", .size = sizeof(struct sysctl),
    .init = sysctl_init, .reset = sysctl_reset, .fini = sysctl_fini,
    .state = sysctl_state, .io = &sysctl_io,
};
