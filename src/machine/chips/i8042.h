/* i8042.h - keyboard controller, with a keyboard and a mouse or with nothing plugged in. */
#pragma once
#include "base/types.h"
#include "machine/chips/ps2_kbd.h"
#include "machine/chips/ps2_mouse.h"
#include "machine/device.h"
#include "machine/irq.h"
#include <pthread.h>

struct kbd_wiring {
    struct irq_line irq, mouse_irq;
    void (*reset)(void *opaque); /* the CPU reset line; called with the lock held */
    void (*a20)(void *opaque, bool on); /* the gate of address line 20; the same */
    void *opaque;
    bool attached;               /* keyboard and mouse are there */
};

struct i8042 {
    pthread_mutex_t lock;
    struct kbd_wiring wiring;
    u8 status, command_byte, command, data; /* command: waits for its data byte; 0: none */
    bool irq_level, mouse_irq_level;
    bool a20;
    bool break_code; /* translation: f0 was swallowed */
    struct ps2_kbd keyboard;
    struct ps2_mouse mouse;
};

/* i8042_key, i8042_keys_taken, i8042_button, i8042_move - as the machine_ functions in input.h. Any thread. */
bool i8042_key(struct i8042 *k, u8 set1, bool e0, bool down);
bool i8042_keys_taken(struct i8042 *k);
bool i8042_button(struct i8042 *k, enum input_button button, bool down);
bool i8042_move(struct i8042 *k, int dx, int dy, int wheel);

/* Offsets: 0 data (port 0x60), 4 status and command (0x64). */
extern const struct device_class i8042;
