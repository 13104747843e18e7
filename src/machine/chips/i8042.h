/* i8042.h - keyboard controller with nothing plugged in. */
#pragma once
#include "base/types.h"
#include "machine/device.h"
#include "machine/irq.h"
#include <pthread.h>

struct kbd_wiring {
    struct irq_line irq;
    void (*reset)(void *opaque); /* the CPU reset line; called with the lock held */
    void *opaque;
};

struct i8042 {
    pthread_mutex_t lock;
    struct kbd_wiring wiring;
    u8 status, command_byte, command, data; /* command: waits for its data byte; 0: none */
    bool irq_level;
};

/* Offsets: 0 data (port 0x60), 4 status and command (0x64). */
extern const struct device_class i8042;
