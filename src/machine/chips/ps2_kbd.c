/*
 * ps2_kbd.c - PS/2 keyboard. Source: IBM PS/2 hardware interface reference (1988), keyboard: commands,
 * scan code sets 1 and 2. Not modelled: set 3, typematic repeat (whoever types repeats), the LEDs.
 */
#include "machine/chips/ps2_kbd.h"
#include <string.h>

#define ACK 0xfa
#define RESEND 0xfe
#define SELF_TEST_OK 0xaa
#define BREAK 0xf0
#define EXTENDED 0xe0

static const u8 set2_of[128] = {
    [0x01] = 0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d,
    [0x10] = 0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x14, 0x1c, 0x1b,
    [0x20] = 0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5d, 0x1a, 0x22, 0x21, 0x2a,
    [0x30] = 0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59, 0x7c, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0c, 0x03,
    [0x40] = 0x0b, 0x83, 0x0a, 0x01, 0x09, 0x77, 0x7e, 0x6c, 0x75, 0x7d, 0x7b, 0x6b, 0x73, 0x74, 0x79, 0x69,
    [0x50] = 0x72, 0x7a, 0x70, 0x71, [0x56] = 0x61, 0x78, 0x07, [0x5b] = 0x1f, 0x27, 0x2f,
};

u8 ps2_to_set1(u8 set2)
{
    for (unsigned i = 1; i < sizeof(set2_of); i++)
        if (set2_of[i] == set2)
            return (u8)i;
    return set2;
}

static void send(struct ps2_kbd *k, u8 value)
{
    if (k->len < PS2_QUEUE)
        k->queue[(k->head + k->len++) % PS2_QUEUE] = value;
}

void ps2_kbd_reset(struct ps2_kbd *k)
{
    memset(k, 0, sizeof(*k));
    k->scanning = true;
}

static void parameter(struct ps2_kbd *k, u8 command, u8 value)
{
    send(k, ACK);
    if (command == BREAK && value == 0) /* which set is in use */
        send(k, 2);
}

void ps2_kbd_write(struct ps2_kbd *k, u8 value)
{
    u8 command = k->command;

    k->command = 0;
    if (command && value < 0x80)
        return parameter(k, command, value);
    switch (value) {
    case 0xed: case 0xf0: case 0xf3: case 0xfb: case 0xfc: case 0xfd: /* LEDs, set, rate, key types */
        k->command = value;
        send(k, ACK);
        break;
    case 0xee:
        send(k, 0xee);
        break;
    case 0xf2: /* what are you: an MF2 keyboard */
        send(k, ACK);
        send(k, 0xab);
        send(k, 0x83);
        break;
    case 0xf4: case 0xf5: case 0xf6: case 0xf7: case 0xf8: case 0xf9: case 0xfa:
        k->len = 0;
        k->scanning = value != 0xf5;
        send(k, ACK);
        break;
    case RESEND:
        send(k, k->last);
        break;
    case 0xff:
        k->len = 0;
        k->scanning = true;
        send(k, ACK);
        send(k, SELF_TEST_OK);
        break;
    default:
        send(k, RESEND);
        break;
    }
}

bool ps2_kbd_read(struct ps2_kbd *k, u8 *value)
{
    if (!k->len)
        return false;
    *value = k->last = k->queue[k->head];
    k->head = (k->head + 1) % PS2_QUEUE;
    k->len--;
    return true;
}

bool ps2_kbd_key(struct ps2_kbd *k, u8 set1, bool e0, bool down)
{
    u8 code = set2_of[set1 & 127];

    if (!code || !k->scanning || k->len + 3 > PS2_QUEUE)
        return false;
    if (e0)
        send(k, EXTENDED);
    if (!down)
        send(k, BREAK);
    send(k, code);
    return true;
}
