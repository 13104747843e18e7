/*
 * ps2_mouse.c - PS/2 mouse. Source: IBM PS/2 hardware interface reference (1988), mouse: commands and packets;
 * Microsoft's IntelliMouse and IntelliMouse Explorer for the fourth byte and for the knocks that ask for it. Not
 * modelled: the report rate (a packet goes when the host has read the one before), resolution, 2:1 scaling.
 */
#include "machine/chips/ps2_mouse.h"
#include <string.h>

#define ACK 0xfa
#define RESEND 0xfe
#define SELF_TEST_OK 0xaa
#define FAR 0x8000 /* more movement than this is not remembered */

#define ID_PLAIN 0
#define ID_WHEEL 3
#define ID_EXPLORER 4

static void send(struct ps2_mouse *m, u8 value)
{
    if (m->len < MOUSE_QUEUE)
        m->queue[(m->head + m->len++) % MOUSE_QUEUE] = value;
}

static void defaults(struct ps2_mouse *m)
{
    m->rate = 100;
    m->resolution = 2;
    m->reporting = m->remote = m->wrap = m->double_scale = false;
    m->dx = m->dy = m->wheel = 0;
}

void ps2_mouse_reset(struct ps2_mouse *m)
{
    memset(m, 0, sizeof(*m));
    defaults(m);
}

/* -- Packets ------------------------------------------------------------------------------------ */

static s32 take(s32 *value, s32 low, s32 high)
{
    s32 part = MAX(MIN(*value, high), low);
    *value -= part;
    return part;
}

/*
 *        7   6   5   4   3   2   1   0
 *   0   YO  XO  YS  XS   1  mid rgt lft     YS, XS: ninth bits; the overflow bits are not needed
 *   1   X, to the right
 *   2   Y, away from the user
 *   3   Z, towards the user: 8 bits; Explorer: 0 0 B5 B4 and 4 bits
 */
static void packet(struct ps2_mouse *m)
{
    s32 x = take(&m->dx, -255, 255), y = -take(&m->dy, -255, 255);

    m->sent_buttons = m->buttons;
    send(m, (u8)(0x08 | (m->buttons & 7) | (x < 0 ? 0x10 : 0) | (y < 0 ? 0x20 : 0)));
    send(m, (u8)x);
    send(m, (u8)y);
    if (m->id == ID_WHEEL)
        send(m, (u8)-take(&m->wheel, -127, 127));
    else if (m->id == ID_EXPLORER)
        send(m, (u8)((-take(&m->wheel, -7, 7) & 0x0f) | (m->buttons >> INPUT_SIDE & 3) << 4));
    else
        m->wheel = 0;
}

static bool moved(const struct ps2_mouse *m)
{
    return m->dx || m->dy || m->wheel || m->buttons != m->sent_buttons;
}

static void report(struct ps2_mouse *m)
{
    if (m->reporting && !m->remote && !m->wrap && !m->command)
        while (moved(m) && m->len + 4 <= MOUSE_QUEUE)
            packet(m);
}

static s32 add(s32 sum, int delta)
{
    return MAX(MIN(sum + MAX(MIN(delta, FAR), -FAR), FAR), -FAR);
}

bool ps2_mouse_move(struct ps2_mouse *m, int dx, int dy, int wheel)
{
    if (!m->reporting && !m->remote)
        return false;
    m->dx = add(m->dx, dx);
    m->dy = add(m->dy, dy);
    m->wheel = m->id == ID_PLAIN ? 0 : add(m->wheel, wheel);
    report(m);
    return true;
}

bool ps2_mouse_button(struct ps2_mouse *m, enum input_button button, bool down)
{
    bool room = m->len + 4 <= MOUSE_QUEUE;

    if (button > INPUT_EXTRA)
        return false;
    m->buttons = (u8)((m->buttons & ~BIT(button)) | (down ? BIT(button) : 0));
    report(m);
    return room && (m->reporting || m->remote);
}

/* -- Commands ----------------------------------------------------------------------------------- */

/* Rates nobody would set one after the other ask what the mouse is (PS/2 has no other way). */
static void set_rate(struct ps2_mouse *m, u8 rate)
{
    if (m->knock[0] == 200 && m->knock[1] == 100 && rate == 80)
        m->id = ID_WHEEL;
    else if (m->knock[0] == 200 && m->knock[1] == 200 && rate == 80)
        m->id = ID_EXPLORER;
    m->knock[0] = m->knock[1];
    m->knock[1] = m->rate = rate;
}

static void status(struct ps2_mouse *m)
{
    u8 b = m->buttons; /* here left is the highest */

    send(m, (u8)((b & 1) << 2 | (b & 4) >> 1 | (b & 2) >> 1 | (m->double_scale ? 0x10 : 0) |
                 (m->reporting ? 0x20 : 0) | (m->remote ? 0x40 : 0)));
    send(m, m->resolution);
    send(m, m->rate);
}

static void command(struct ps2_mouse *m, u8 value)
{
    send(m, ACK);
    switch (value) {
    case 0xe6: case 0xe7: m->double_scale = value & 1; break;
    case 0xe8: case 0xf3: m->command = value; break; /* resolution, rate: follows */
    case 0xe9: status(m); break;
    case 0xea: m->remote = false; break;
    case 0xeb: packet(m); break;
    case 0xec: m->wrap = false; break;
    case 0xee: m->wrap = true; break;
    case 0xf0: m->remote = true; break;
    case 0xf2: send(m, m->id); break;
    case 0xf4: m->reporting = true; break;
    case 0xf5: m->reporting = false; break;
    case 0xf6: defaults(m); break;
    case 0xff:
        ps2_mouse_reset(m);
        send(m, ACK);
        send(m, SELF_TEST_OK);
        send(m, ID_PLAIN);
        break;
    default: /* the ACK was too early */
        m->len = 0;
        send(m, RESEND);
        break;
    }
}

void ps2_mouse_write(struct ps2_mouse *m, u8 value)
{
    u8 waits = m->command;

    if (value == RESEND && !m->wrap)
        return send(m, m->last);
    m->len = 0; /* a byte from the host ends what was being sent */
    m->command = 0;
    if (m->wrap && value != 0xec && value != 0xff)
        return send(m, value);
    if (waits && value < 0xe6) {
        send(m, ACK);
        if (waits == 0xf3)
            set_rate(m, value);
        else
            m->resolution = value & 3;
        return;
    }
    command(m, value);
}

bool ps2_mouse_read(struct ps2_mouse *m, u8 *value)
{
    if (!m->len)
        report(m);
    if (!m->len)
        return false;
    *value = m->last = m->queue[m->head];
    m->head = (m->head + 1) % MOUSE_QUEUE;
    m->len--;
    return true;
}

bool ps2_mouse_possible(const struct ps2_mouse *m)
{
    return m->head < MOUSE_QUEUE && m->len <= MOUSE_QUEUE && m->dx >= -FAR && m->dx <= FAR && m->dy >= -FAR &&
           m->dy <= FAR && m->wheel >= -FAR && m->wheel <= FAR;
}
