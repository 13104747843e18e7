/*
 * qmp_input.c - keys and the mouse by the control socket. Source: QEMU's QMP reference, input-send-event; QKeyCode for
 * the keys' names, scan code set 1 for their numbers. Not taken: absolute positions (there is no tablet).
 */
#include "monitor/qmp_input.h"
#include "machine/input.h"
#include <string.h>

#define E0 0x80 /* with the prefix */

static const struct { const char *name; u8 code; } keys[] = {
    { "esc", 0x01 }, { "1", 0x02 }, { "2", 0x03 }, { "3", 0x04 }, { "4", 0x05 }, { "5", 0x06 }, { "6", 0x07 },
    { "7", 0x08 }, { "8", 0x09 }, { "9", 0x0a }, { "0", 0x0b }, { "minus", 0x0c }, { "equal", 0x0d },
    { "backspace", 0x0e }, { "tab", 0x0f }, { "q", 0x10 }, { "w", 0x11 }, { "e", 0x12 }, { "r", 0x13 }, { "t", 0x14 },
    { "y", 0x15 }, { "u", 0x16 }, { "i", 0x17 }, { "o", 0x18 }, { "p", 0x19 }, { "bracket_left", 0x1a },
    { "bracket_right", 0x1b }, { "ret", 0x1c }, { "ctrl", 0x1d }, { "a", 0x1e }, { "s", 0x1f }, { "d", 0x20 },
    { "f", 0x21 }, { "g", 0x22 }, { "h", 0x23 }, { "j", 0x24 }, { "k", 0x25 }, { "l", 0x26 }, { "semicolon", 0x27 },
    { "apostrophe", 0x28 }, { "grave_accent", 0x29 }, { "shift", 0x2a }, { "backslash", 0x2b }, { "z", 0x2c },
    { "x", 0x2d }, { "c", 0x2e }, { "v", 0x2f }, { "b", 0x30 }, { "n", 0x31 }, { "m", 0x32 }, { "comma", 0x33 },
    { "dot", 0x34 }, { "slash", 0x35 }, { "shift_r", 0x36 }, { "kp_multiply", 0x37 }, { "alt", 0x38 }, { "spc", 0x39 },
    { "caps_lock", 0x3a }, { "f1", 0x3b }, { "f2", 0x3c }, { "f3", 0x3d }, { "f4", 0x3e }, { "f5", 0x3f },
    { "f6", 0x40 }, { "f7", 0x41 }, { "f8", 0x42 }, { "f9", 0x43 }, { "f10", 0x44 }, { "num_lock", 0x45 },
    { "scroll_lock", 0x46 }, { "kp_7", 0x47 }, { "kp_8", 0x48 }, { "kp_9", 0x49 }, { "kp_subtract", 0x4a },
    { "kp_4", 0x4b }, { "kp_5", 0x4c }, { "kp_6", 0x4d }, { "kp_add", 0x4e }, { "kp_1", 0x4f }, { "kp_2", 0x50 },
    { "kp_3", 0x51 }, { "kp_0", 0x52 }, { "kp_decimal", 0x53 }, { "less", 0x56 }, { "f11", 0x57 }, { "f12", 0x58 },
    { "kp_enter", E0 | 0x1c }, { "ctrl_r", E0 | 0x1d }, { "kp_divide", E0 | 0x35 }, { "alt_r", E0 | 0x38 },
    { "home", E0 | 0x47 }, { "up", E0 | 0x48 }, { "pgup", E0 | 0x49 }, { "left", E0 | 0x4b }, { "right", E0 | 0x4d },
    { "end", E0 | 0x4f }, { "down", E0 | 0x50 }, { "pgdn", E0 | 0x51 }, { "insert", E0 | 0x52 },
    { "delete", E0 | 0x53 }, { "meta_l", E0 | 0x5b }, { "meta_r", E0 | 0x5c }, { "menu", E0 | 0x5d },
};
static const char *const buttons[] = {
    [INPUT_LEFT] = "left", [INPUT_RIGHT] = "right", [INPUT_MIDDLE] = "middle", [INPUT_SIDE] = "side",
    [INPUT_EXTRA] = "extra",
};

static const char *text(const json_t *object, const char *name)
{
    const char *s = json_string_value(json_object_get(object, name));
    return s ? s : "";
}

static int send_key(struct machine *m, const json_t *key, bool down, struct qmp_error *e)
{
    const json_t *value = json_object_get(key, "data");
    json_int_t n = json_integer_value(value);

    if (!strcmp(text(key, "type"), "number") && n > 0 && n < 0x100) {
        machine_key(m, (u8)(n & 0x7f), n & E0, down);
        return 0;
    }
    for (unsigned i = 0; json_is_string(value) && i < ARRAY_SIZE(keys); i++)
        if (!strcmp(keys[i].name, json_string_value(value))) {
            machine_key(m, keys[i].code & 0x7f, keys[i].code & E0, down);
            return 0;
        }
    return control_fail(e, "no such key: 'key' wants a type, qcode or number, and as data its name or number");
}

static int send_button(struct machine *m, const char *name, bool down, struct qmp_error *e)
{
    bool up = !strcmp(name, "wheel-up");

    if (up || !strcmp(name, "wheel-down")) {
        if (down)
            machine_move(m, 0, 0, up ? 1 : -1);
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(buttons); i++)
        if (!strcmp(buttons[i], name)) {
            machine_button(m, (enum input_button)i, down);
            return 0;
        }
    return control_fail(e, "no such button: '%s'", name);
}

static int send_event(struct machine *m, const json_t *event, struct qmp_error *e)
{
    const json_t *data = json_object_get(event, "data");
    bool down = json_is_true(json_object_get(data, "down"));
    const char *type = text(event, "type"), *axis = text(data, "axis");
    json_int_t value = json_integer_value(json_object_get(data, "value"));

    if (!strcmp(type, "key"))
        return send_key(m, json_object_get(data, "key"), down, e);
    if (!strcmp(type, "btn"))
        return send_button(m, text(data, "button"), down, e);
    if (strcmp(type, "rel") || (strcmp(axis, "x") && strcmp(axis, "y")))
        return control_fail(e, "an event is of type key, btn, or rel with axis x or y; there is no tablet");
    int delta = (int)MAX(MIN(value, 30000), -30000);
    machine_move(m, *axis == 'x' ? delta : 0, *axis == 'y' ? delta : 0, 0);
    return 0;
}

int qmp_input(struct machine *m, const json_t *events, struct qmp_error *e)
{
    if (!json_is_array(events))
        return control_fail(e, "input-send-event wants 'events' to be a list");
    for (size_t i = 0; i < json_array_size(events); i++)
        if (send_event(m, json_array_get(events, i), e))
            return -1;
    return 0;
}
