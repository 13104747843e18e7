/* ps2_mouse.h - a PS/2 mouse with a wheel, as it hangs on an i8042. All functions under that chip's lock. */
#pragma once
#include "base/types.h"
#include "machine/input.h"

#define MOUSE_QUEUE 32

struct ps2_mouse {
    u8 queue[MOUSE_QUEUE]; /* bytes to send */
    u32 head, len;
    u8 command;            /* waits for its parameter; 0: none */
    u8 last;               /* for "resend" */
    u8 id;                 /* 0; after the knocks 3 (a wheel) or 4 (and five buttons) */
    u8 rate, resolution;   /* what was set: only told back */
    u8 knock[2];           /* the last two rates */
    bool reporting, remote, wrap, double_scale;
    u8 buttons;            /* BIT(enum input_button) */
    u8 sent_buttons;       /* in the last packet */
    s32 dx, dy, wheel;     /* not sent yet */
};

void ps2_mouse_reset(struct ps2_mouse *m);
/* ps2_mouse_write - a byte from the host. */
void ps2_mouse_write(struct ps2_mouse *m, u8 value);
/* ps2_mouse_read - the next byte for the host. False: there is none. */
bool ps2_mouse_read(struct ps2_mouse *m, u8 *value);
/* ps2_mouse_button, ps2_mouse_move - as in input.h. */
bool ps2_mouse_button(struct ps2_mouse *m, enum input_button button, bool down);
bool ps2_mouse_move(struct ps2_mouse *m, int dx, int dy, int wheel);
/* ps2_mouse_possible - could a mouse be in this state (it may come from anybody's file)? */
bool ps2_mouse_possible(const struct ps2_mouse *m);
