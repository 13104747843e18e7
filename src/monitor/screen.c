/*
 * screen.c - see screen.h. One thread looks at the screen 20 times a second and writes the cells that changed, by the
 * control sequences of ECMA-48 that every terminal knows; it also types. The lock is between what it writes and the serial
 * line's first byte; it is taken before the VGA's and the console's, and behind the UART's.
 */
#include "monitor/screen.h"
#include "base/sandbox.h"
#include "machine/chips/vga.h"
#include "machine/input.h"
#include "machine/machine.h"
#include "monitor/console.h"
#include <errno.h>
#include <poll.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define FRAME_MS 50
#define GAP 8 /* cells */
#define KEY_CTRL 0x1d
#define KEY_SHIFT 0x2a
#define KEY_ALT 0x38

/* -- Code page 437, the VGA's ------------------------------------------------------------------ */

static const char *const low_chars[32] = {
    " ", "☺", "☻", "♥", "♦", "♣", "♠", "•", "◘", "○", "◙", "♂", "♀", "♪", "♫", "☼",
    "►", "◄", "↕", "‼", "¶", "§", "▬", "↨", "↑", "↓", "→", "←", "∟", "↔", "▲", "▼",
};
static const char *const high_chars[128] = {
    "Ç", "ü", "é", "â", "ä", "à", "å", "ç", "ê", "ë", "è", "ï", "î", "ì", "Ä", "Å",
    "É", "æ", "Æ", "ô", "ö", "ò", "û", "ù", "ÿ", "Ö", "Ü", "¢", "£", "¥", "₧", "ƒ",
    "á", "í", "ó", "ú", "ñ", "Ñ", "ª", "º", "¿", "⌐", "¬", "½", "¼", "¡", "«", "»",
    "░", "▒", "▓", "│", "┤", "╡", "╢", "╖", "╕", "╣", "║", "╗", "╝", "╜", "╛", "┐",
    "└", "┴", "┬", "├", "─", "┼", "╞", "╟", "╚", "╔", "╩", "╦", "╠", "═", "╬", "╧",
    "╨", "╤", "╥", "╙", "╘", "╒", "╓", "╫", "╪", "┘", "┌", "█", "▄", "▌", "▐", "▀",
    "α", "ß", "Γ", "π", "Σ", "σ", "µ", "τ", "Φ", "Θ", "Ω", "δ", "∞", "φ", "ε", "∩",
    "≡", "±", "≥", "≤", "⌠", "⌡", "÷", "≈", "°", "∙", "·", "√", "ⁿ", "²", "■", " ",
};

static const char *utf8(u8 ch, char buf[2])
{
    if (ch < 32)
        return low_chars[ch];
    if (ch == 127)
        return "⌂";
    if (ch > 127)
        return high_chars[ch - 128];
    buf[0] = (char)ch;
    buf[1] = '\0';
    return buf;
}

/* -- In the terminal ---------------------------------------------------------------------------- */

static void out(struct screen *s, const char *text)
{
    console_write(s->console, (const u8 *)text, strlen(text));
}

static void out_attr(struct screen *s, u8 attr)
{
    static const u8 ansi[8] = { 0, 4, 2, 6, 1, 5, 3, 7 }; /* the VGA has blue first */
    char seq[32];

    snprintf(seq, sizeof(seq), "\033[0;%u;%um", (attr & 8 ? 90u : 30u) + ansi[attr & 7], 40u + ansi[attr >> 4 & 7]);
    out(s, seq);
}

static void out_goto(struct screen *s, unsigned cell)
{
    char seq[32];

    snprintf(seq, sizeof(seq), "\033[%u;%uH", cell / s->cols + 1, cell % s->cols + 1);
    out(s, seq);
}

static void out_cell(struct screen *s, u8 ch, u8 attr, int *last)
{
    char buf[2];

    if (attr != *last)
        out_attr(s, attr);
    *last = attr;
    out(s, utf8(ch, buf));
}

/* A new size: everything is drawn again. False: no memory. */
static bool resize(struct screen *s, unsigned cols, unsigned rows)
{
    u16 *shown = malloc((size_t)MAX(cols * rows, 1u) * sizeof(*shown));

    if (!shown)
        return false;
    memset(shown, 0xff, (size_t)MAX(cols * rows, 1u) * sizeof(*shown));
    free(s->shown);
    s->shown = shown;
    s->cols = cols;
    s->rows = rows;
    s->cursor = ~0u - 1;
    out(s, cols ? "\033[0m\033[2J\033[H" : "\033[0m\033[2J\033[H(graphics)");
    return true;
}

static void draw(struct screen *s)
{
    struct vga_text text;
    unsigned at = ~0u; /* where the terminal would write next */
    int attr = -1;

    if (vga_text_get(machine_vga(s->machine), &text))
        return;
    if (!s->shown || text.cols != s->cols || text.rows != s->rows)
        if (!resize(s, text.cols, text.rows))
            goto out;
    bool changed = false;
    for (unsigned i = 0; i < text.cols * text.rows; i++) {
        u16 cell = (u16)(text.cell[i].ch | text.cell[i].attr << 8);
        if (s->shown[i] == cell)
            continue;
        if (!changed)
            out(s, "\033[?25l");
        changed = true;
        if (at == ~0u || at / text.cols != i / text.cols || at % text.cols == 0 || i - at > GAP) {
            out_goto(s, i);
            at = i;
        }
        for (; at <= i; at++) /* what is between is written again: shorter than going there */
            out_cell(s, text.cell[at].ch, text.cell[at].attr, &attr);
        s->shown[i] = cell;
    }
    if (changed || text.cursor != s->cursor) {
        s->cursor = text.cursor;
        if (text.cursor != ~0u) {
            out_goto(s, text.cursor);
            out(s, "\033[?25h");
        }
    }
out:
    vga_text_free(&text);
}

/* -- Typing ------------------------------------------------------------------------------------- */

static void press(struct screen *s, const struct key *k)
{
    const struct { bool held; u8 code; } mods[] = {
        { k->ctrl, KEY_CTRL }, { k->alt, KEY_ALT }, { k->shift, KEY_SHIFT },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(mods); i++)
        if (mods[i].held)
            machine_key(s->machine, mods[i].code, false, true);
    machine_key(s->machine, k->code, k->e0, true);
    machine_key(s->machine, k->code, k->e0, false);
    for (unsigned i = ARRAY_SIZE(mods); i--;)
        if (mods[i].held)
            machine_key(s->machine, mods[i].code, false, false);
}

/* A few keys a frame, when those before have been read: what a BIOS's buffer of 15 takes while its reader keeps up. */
static void type(struct screen *s)
{
    u8 bytes[2];
    struct key key;

    if (!machine_keys_taken(s->machine))
        return;
    ssize_t n = read(s->console->guest_fd, bytes, sizeof(bytes));

    for (ssize_t i = 0; i < n; i++)
        if (keys_next(&s->keys, bytes[i], &key))
            press(s, &key);
    if (n <= 0 && keys_flush(&s->keys, &key))
        press(s, &key);
}

/* False: it has made way. */
static bool frame(struct screen *s)
{
    pthread_mutex_lock(&s->lock);
    bool over = s->over;
    if (!over)
        draw(s);
    pthread_mutex_unlock(&s->lock);
    return !over;
}

static void *screen_thread(void *arg)
{
    struct screen *s = arg;
    struct pollfd p = { .fd = s->stop_fd, .events = POLLIN };

    sandbox_enter(SANDBOX_CONSOLE);
    while (poll(&p, 1, FRAME_MS) <= 0) {
        type(s);
        frame(s);
    }
    if (!frame(s))
        machine_console_attach(s->machine, s->console->guest_fd);
    return NULL;
}

static void wake(struct screen *s)
{
    u64 one = 1;
    ssize_t n = write(s->stop_fd, &one, sizeof(one));
    (void)n;
}

int screen_start(struct screen *s, struct machine *machine, struct console *console, bool until_serial)
{
    memset(s, 0, sizeof(*s));
    s->machine = machine;
    s->console = console;
    s->until_serial = until_serial;
    s->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (s->stop_fd < 0)
        return -errno;
    pthread_mutex_init(&s->lock, NULL);
    int r = pthread_create(&s->thread, NULL, screen_thread, s);
    if (r) {
        pthread_mutex_destroy(&s->lock);
        close(s->stop_fd);
    }
    s->running = !r;
    return -r;
}

/* The terminal's cursor goes below what is shown. */
static void leave(struct screen *s)
{
    char seq[32];

    snprintf(seq, sizeof(seq), "\033[0m\033[?25h\033[%u;1H\r\n", MAX(s->rows, 1u));
    out(s, seq);
}

void screen_make_way(struct screen *s)
{
    if (!s->running || !s->until_serial)
        return;
    pthread_mutex_lock(&s->lock);
    if (!s->over) {
        s->over = true;
        if (s->shown)
            leave(s);
        wake(s);
    }
    pthread_mutex_unlock(&s->lock);
}

void screen_stop(struct screen *s)
{
    if (!s->running)
        return;
    wake(s);
    pthread_join(s->thread, NULL);
    if (frame(s))
        leave(s);
    pthread_mutex_destroy(&s->lock);
    close(s->stop_fd);
    free(s->shown);
    s->running = false;
}

/* -- In a file ---------------------------------------------------------------------------------- */

static int dump_text(struct vga *vga, FILE *f)
{
    struct vga_text text;
    char buf[2];
    int r = vga_text_get(vga, &text);

    if (r)
        return r;
    for (unsigned y = 0; y < text.rows; y++) {
        unsigned end = text.cols;
        while (end && (text.cell[y * text.cols + end - 1].ch | 0x20) == 0x20)
            end--;
        for (unsigned x = 0; x < end; x++)
            fputs(utf8(text.cell[y * text.cols + x].ch, buf), f);
        fputc('\n', f);
    }
    vga_text_free(&text);
    return 0;
}

static int dump_png(struct vga *vga, FILE *f)
{
    png_image image = { .version = PNG_IMAGE_VERSION, .format = PNG_FORMAT_RGB };
    unsigned width, height;
    u8 *rgb;
    int r = vga_image(vga, &width, &height, &rgb);

    if (r)
        return r;
    image.width = width;
    image.height = height;
    if (!png_image_write_to_stdio(&image, f, 0, rgb, 0, NULL))
        r = -EIO;
    free(rgb);
    return r;
}

int screen_dump(struct vga *vga, const char *path, const char **why)
{
    size_t len = strlen(path);
    FILE *f = vga ? fopen(path, "we") : NULL;
    int r = vga ? f ? 0 : -errno : -ENODEV;

    if (f) {
        r = len > 4 && !strcmp(path + len - 4, ".png") ? dump_png(vga, f) : dump_text(vga, f);
        if (fclose(f) && !r)
            r = -errno;
    }
    *why = r == -ENODEV ? "this machine has no VGA" : r ? strerror(-r) : NULL;
    return r;
}
