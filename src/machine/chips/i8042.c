/*
 * i8042.c - PC keyboard controller. Source: IBM PS/2 hardware interface reference, keyboard and
 * auxiliary device controller (1988). A keyboard and a mouse are attached only if the board says so: what
 * is sent to nobody comes back as "resend" with the time-out bit, which lets a probing driver give up
 * quickly.
 * Threads: vCPU threads, input from any thread; under k->lock.
 */
#include "machine/chips/i8042.h"
#include <errno.h>
#include <string.h>

#define STAT_OBF 0x01
#define STAT_SYS 0x04
#define STAT_CMD 0x08
#define STAT_UNLOCKED 0x10
#define STAT_AUX 0x20
#define STAT_TIMEOUT 0x40
#define CTR_IRQ1 0x01
#define CTR_IRQ12 0x02
#define CTR_KBD_OFF 0x10
#define CTR_AUX_OFF 0x20
#define CTR_XLATE 0x40
#define OUTPUT_RESET 0x01 /* output port: clear resets the CPU */
#define OUTPUT_A20 0x02

static void drive(struct irq_line *line, bool *was, bool level)
{
    if (level == *was)
        return;
    *was = level;
    irq_set(line, level);
}

static void update_irq(struct i8042 *k)
{
    bool aux = k->status & STAT_AUX;
    drive(&k->wiring.irq, &k->irq_level, (k->status & STAT_OBF) && !aux && (k->command_byte & CTR_IRQ1));
    drive(&k->wiring.mouse_irq, &k->mouse_irq_level, (k->status & STAT_OBF) && aux && (k->command_byte & CTR_IRQ12));
}

static void reply(struct i8042 *k, u8 data, u8 flags)
{
    k->data = data;
    k->status = (k->status & (u8)~(STAT_AUX | STAT_TIMEOUT)) | STAT_OBF | flags;
}

/* A byte of the keyboard into the output buffer; in set 1 if that is wanted. False: it has none. */
static bool pump_keyboard(struct i8042 *k)
{
    u8 value;

    while (ps2_kbd_read(&k->keyboard, &value)) {
        if (k->command_byte & CTR_XLATE) {
            if (value == 0xf0) {
                k->break_code = true;
                continue;
            }
            value = ps2_to_set1(value);
            if (k->break_code && value != 0xe0)
                value |= 0x80;
        }
        k->break_code = false;
        reply(k, value, 0);
        return true;
    }
    return false;
}

/* The next byte into the output buffer, if that is free. */
static void pump(struct i8042 *k)
{
    u8 value;

    if (k->status & STAT_OBF)
        return;
    if (!(k->command_byte & CTR_KBD_OFF) && pump_keyboard(k))
        return;
    if (!(k->command_byte & CTR_AUX_OFF) && ps2_mouse_read(&k->mouse, &value))
        reply(k, value, STAT_AUX);
}

static void set_a20(struct i8042 *k, bool on)
{
    k->a20 = on;
    k->wiring.a20(k->wiring.opaque, on);
}

static bool input_done(struct i8042 *k, bool taken)
{
    pump(k);
    update_irq(k);
    pthread_mutex_unlock(&k->lock);
    return taken;
}

bool i8042_key(struct i8042 *k, u8 set1, bool e0, bool down)
{
    pthread_mutex_lock(&k->lock);
    return input_done(k, k->wiring.attached && ps2_kbd_key(&k->keyboard, set1, e0, down));
}

bool i8042_keys_taken(struct i8042 *k)
{
    pthread_mutex_lock(&k->lock);
    bool taken = !k->keyboard.len && (k->status & (STAT_OBF | STAT_AUX)) != STAT_OBF;
    pthread_mutex_unlock(&k->lock);
    return taken;
}

bool i8042_button(struct i8042 *k, enum input_button button, bool down)
{
    pthread_mutex_lock(&k->lock);
    return input_done(k, k->wiring.attached && ps2_mouse_button(&k->mouse, button, down));
}

bool i8042_move(struct i8042 *k, int dx, int dy, int wheel)
{
    pthread_mutex_lock(&k->lock);
    return input_done(k, k->wiring.attached && ps2_mouse_move(&k->mouse, dx, dy, wheel));
}

static void command_write(struct i8042 *k, u8 command)
{
    k->status |= STAT_CMD;
    k->command = 0;
    switch (command) {
    case 0x20: reply(k, k->command_byte, 0); break;
    case 0xa9: reply(k, k->wiring.attached ? 0x00 : 0xff, 0); break; /* auxiliary interface test */
    case 0xaa:
        k->status |= STAT_SYS;
        reply(k, 0x55, 0);
        break;
    case 0xab: reply(k, 0x00, 0); break; /* keyboard interface test: no error */
    case 0xa7: k->command_byte |= CTR_AUX_OFF; break;
    case 0xa8: k->command_byte &= (u8)~CTR_AUX_OFF; break;
    case 0xad: k->command_byte |= CTR_KBD_OFF; break;
    case 0xae: k->command_byte &= (u8)~CTR_KBD_OFF; break;
    case 0xc0: reply(k, 0x80, 0); break; /* input port: not locked */
    case 0xd0: reply(k, OUTPUT_RESET | (k->a20 ? OUTPUT_A20 : 0), 0); break;
    case 0x60: case 0xd1: case 0xd2: case 0xd3: case 0xd4:
        k->command = command;
        break;
    case 0xf0 ... 0xff: /* pulse the output lines whose bit is clear */
        if (!(command & OUTPUT_RESET))
            k->wiring.reset(k->wiring.opaque);
        break;
    default: break;
    }
}

static void data_write(struct i8042 *k, u8 value)
{
    u8 command = k->command;
    k->status &= (u8)~STAT_CMD;
    k->command = 0;
    switch (command) {
    case 0x60:
        k->command_byte = value;
        k->status = (k->status & (u8)~STAT_SYS) | (value & STAT_SYS);
        break;
    case 0xd1:
        if (!(value & OUTPUT_RESET))
            k->wiring.reset(k->wiring.opaque);
        set_a20(k, value & OUTPUT_A20);
        break;
    case 0xd2: reply(k, value, 0); break;
    case 0xd3: reply(k, value, STAT_AUX); break;
    case 0xd4:
        if (k->wiring.attached) {
            k->command_byte &= (u8)~CTR_AUX_OFF;
            ps2_mouse_write(&k->mouse, value);
        } else {
            reply(k, 0xfe, STAT_AUX | STAT_TIMEOUT);
        }
        break;
    default:
        if (k->wiring.attached) {
            k->command_byte &= (u8)~CTR_KBD_OFF;
            ps2_kbd_write(&k->keyboard, value);
        } else {
            reply(k, 0xfe, STAT_TIMEOUT);
        }
        break;
    }
}

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct i8042 *k = dev;
    u8 value;
    (void)size;
    pthread_mutex_lock(&k->lock);
    if (off) {
        value = k->status;
    } else {
        value = k->data;
        k->status &= (u8)~(STAT_OBF | STAT_AUX | STAT_TIMEOUT);
        update_irq(k); /* each byte is an edge */
        pump(k);
    }
    update_irq(k);
    pthread_mutex_unlock(&k->lock);
    return value;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct i8042 *k = dev;
    (void)size;
    pthread_mutex_lock(&k->lock);
    if (off)
        command_write(k, (u8)value);
    else
        data_write(k, (u8)value);
    pump(k);
    update_irq(k);
    pthread_mutex_unlock(&k->lock);
}

static void kbd_reset(void *dev)
{
    struct i8042 *k = dev;
    pthread_mutex_lock(&k->lock);
    k->status = STAT_UNLOCKED;
    k->command_byte = 0x30; /* both interfaces disabled, no interrupts */
    k->command = k->data = 0;
    k->break_code = false;
    ps2_kbd_reset(&k->keyboard);
    ps2_mouse_reset(&k->mouse);
    set_a20(k, true);
    update_irq(k);
    pthread_mutex_unlock(&k->lock);
}

static int kbd_init(void *dev, const void *wiring)
{
    struct i8042 *k = dev;
    memset(k, 0, sizeof(*k));
    k->wiring = *(const struct kbd_wiring *)wiring;
    pthread_mutex_init(&k->lock, NULL);
    kbd_reset(k);
    return 0;
}

static void kbd_fini(void *dev)
{
    struct i8042 *k = dev;
    pthread_mutex_destroy(&k->lock);
}

static const struct state_field kbd_state[] = {
    STATE(struct i8042, irq_level), STATE(struct i8042, mouse_irq_level),
    STATE(struct i8042, status), STATE(struct i8042, command_byte), STATE(struct i8042, command),
    STATE(struct i8042, data), STATE(struct i8042, a20), STATE(struct i8042, break_code),
    STATE(struct i8042, keyboard.queue), STATE(struct i8042, keyboard.head), STATE(struct i8042, keyboard.len),
    STATE(struct i8042, keyboard.command), STATE(struct i8042, keyboard.last),
    STATE(struct i8042, keyboard.scanning),
    STATE(struct i8042, mouse.queue), STATE(struct i8042, mouse.head), STATE(struct i8042, mouse.len),
    STATE(struct i8042, mouse.command), STATE(struct i8042, mouse.last), STATE(struct i8042, mouse.id),
    STATE(struct i8042, mouse.rate), STATE(struct i8042, mouse.resolution), STATE(struct i8042, mouse.knock),
    STATE(struct i8042, mouse.reporting), STATE(struct i8042, mouse.remote), STATE(struct i8042, mouse.wrap),
    STATE(struct i8042, mouse.double_scale), STATE(struct i8042, mouse.buttons),
    STATE(struct i8042, mouse.sent_buttons), STATE(struct i8042, mouse.dx), STATE(struct i8042, mouse.dy),
    STATE(struct i8042, mouse.wheel), STATE_END
};

static int kbd_loaded(void *dev)
{
    const struct i8042 *k = dev;
    if (k->keyboard.head >= PS2_QUEUE || k->keyboard.len > PS2_QUEUE || !ps2_mouse_possible(&k->mouse))
        return -EINVAL;
    k->wiring.a20(k->wiring.opaque, k->a20); /* the engine has the gate's state too */
    return 0;
}

static const struct io_ops kbd_io = { "i8042", 1, 1, io_read, io_write };

const struct device_class i8042 = {
    .name = "i8042", .size = sizeof(struct i8042),
    .init = kbd_init, .reset = kbd_reset, .fini = kbd_fini,
    .state = kbd_state, .io = &kbd_io, .loaded = kbd_loaded,
};
