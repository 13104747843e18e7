/*
 * sysctl.h - the one-register ports of a PC and of its emulators: reset control, port A, POST code,
 * debug console, debug exit, panic notification. They share one struct because each is a byte.
 */
#pragma once
#include "base/types.h"
#include "machine/device.h"

struct sysctl_wiring {
    void (*reset)(void *opaque);
    void (*debug_exit)(void *opaque, int status);
    void (*panicked)(void *opaque);
    void (*a20)(void *opaque, bool on); /* the gate of address line 20 */
    void (*debugcon)(void *opaque, const u8 *bytes, size_t len);
    void (*firmware_log)(void *opaque, const u8 *bytes, size_t len); /* NULL: nobody is there */
    void *opaque;
};

struct sysctl {
    struct sysctl_wiring wiring;
    u8 reset_control, port_a, post; /* single bytes: no lock */
    bool a20; /* the gate, whoever moved it */
};

/* Offsets of the registers, whatever their ports. */
enum { SYSCTL_RESET, SYSCTL_PORT_A, SYSCTL_POST, SYSCTL_DEBUGCON, SYSCTL_PVPANIC, SYSCTL_EXIT,
       SYSCTL_FIRMWARE_LOG };
extern const struct device_class sysctl;
extern const struct io_ops sysctl_exit; /* isa-debug-exit takes 4 bytes */
