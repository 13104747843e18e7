/* ps2_kbd.h - a PS/2 keyboard, as it hangs on an i8042. All functions under that chip's lock. */
#pragma once
#include "base/types.h"

#define PS2_QUEUE 64

struct ps2_kbd {
    u8 queue[PS2_QUEUE]; /* bytes to send, scan code set 2 */
    u32 head, len;
    u8 command;          /* waits for its parameter; 0: none */
    u8 last;             /* for "resend" */
    bool scanning;
};

void ps2_kbd_reset(struct ps2_kbd *k);
/* ps2_kbd_write - a byte from the host. */
void ps2_kbd_write(struct ps2_kbd *k, u8 value);
/* ps2_kbd_read - the next byte for the host. False: there is none. */
bool ps2_kbd_read(struct ps2_kbd *k, u8 *value);
/* ps2_kbd_key - a key by its code in set 1 (0x01..0x7f), with the e0 prefix or not. False: the queue is full, or
 * the host does not listen. */
bool ps2_kbd_key(struct ps2_kbd *k, u8 set1, bool e0, bool down);
/* ps2_to_set1 - a byte of set 2, other than f0, in set 1; what is no scan code stays. */
u8 ps2_to_set1(u8 set2);
