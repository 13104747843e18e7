/*
 * vga_draw.c - the screen as characters or pixels. Source: IBM VGA technical reference (1992), "CRT
 * Controller", "Attribute Controller", "Video Modes". Pure over struct vga: the state is copied from
 * nothing, the caller's thread holds the lock while it draws.
 */
#include "machine/chips/vga.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ATTR_MODE 0x10
#define ATTR_MODE_BLINK 0x08
#define ATTR_MODE_PELS 0x40 /* 8 bits a pixel, two clocks each */
#define ATTR_MODE_P54 0x80
#define ATTR_PLANES 0x12
#define ATTR_COLOR 0x14
#define ATTR_SCREEN_ON 0x20
#define CRTC_MODE_NO_ROW0 0x01 /* of register 0x17 */
#define SEQ_ODD_EVEN_OFF 0x04  /* of register 4 */

static bool large(const struct vga *v)
{
    return v->dispi[DISPI_ENABLE] & DISPI_ENABLED;
}

static bool blank(const struct vga *v)
{
    return !large(v) && (!(v->attr_index & ATTR_SCREEN_ON) || v->seq[1] & 0x20);
}

static bool graphics(const struct vga *v)
{
    return large(v) || v->gc[6] & 1;
}

/* Lines that are displayed: bits 8 and 9 are in the overflow register. */
static unsigned scan_lines(const struct vga *v)
{
    return v->crtc[0x12] + ((v->crtc[7] & 0x02u) << 7) + ((v->crtc[7] & 0x40u) << 3) + 1;
}

static unsigned char_height(const struct vga *v)
{
    return (v->crtc[9] & 31u) + 1;
}

static u32 start_address(const struct vga *v)
{
    return (u32)v->crtc[0x0c] << 8 | v->crtc[0x0d];
}

/* A byte of a plane; planes are 64 KiB and wrap. */
static u8 plane(const struct vga *v, u32 at, unsigned p)
{
    return v->mem[(at & 0xffff) * 4 + p];
}

/* -- Characters --------------------------------------------------------------------------------- */

static void text_size(const struct vga *v, unsigned *cols, unsigned *rows)
{
    *cols = v->crtc[1] + 1u;
    *rows = scan_lines(v) / char_height(v);
    if (blank(v) || graphics(v) || *cols < 2)
        *cols = *rows = 0;
}

int vga_text_get(struct vga *v, struct vga_text *out)
{
    int r = 0;

    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&v->lock);
    text_size(v, &out->cols, &out->rows);
    out->cursor = ~0u;
    unsigned n = out->cols * out->rows;
    out->cell = calloc(n ? n : 1, sizeof(*out->cell));
    if (!out->cell) {
        r = -ENOMEM;
        goto out;
    }
    u32 start = start_address(v), pitch = v->crtc[0x13] * 2u;
    u32 cursor = (u32)v->crtc[0x0e] << 8 | v->crtc[0x0f];
    for (unsigned y = 0; y < out->rows; y++) {
        for (unsigned x = 0; x < out->cols; x++) {
            u32 at = start + y * pitch + x;
            out->cell[y * out->cols + x].ch = plane(v, at, 0);
            out->cell[y * out->cols + x].attr = plane(v, at, 1);
            if (at == cursor && !(v->crtc[0x0a] & 0x20))
                out->cursor = y * out->cols + x;
        }
    }
out:
    pthread_mutex_unlock(&v->lock);
    return r;
}

void vga_text_free(struct vga_text *text)
{
    free(text->cell);
    text->cell = NULL;
}

/* -- Pixels ------------------------------------------------------------------------------------- */

struct canvas {
    unsigned width, height;
    u8 *rgb;
};

static void put(const struct canvas *c, unsigned x, unsigned y, u8 r, u8 g, u8 b)
{
    if (x >= c->width || y >= c->height)
        return;
    u8 *p = c->rgb + ((size_t)y * c->width + x) * 3;
    p[0] = r, p[1] = g, p[2] = b;
}

/* A colour of the DAC: 6 bits a component, or 8. */
static void put_dac(const struct vga *v, const struct canvas *c, unsigned x, unsigned y, u8 index)
{
    const u8 *d = v->dac[index & v->dac_mask];

    if (large(v) && v->dispi[DISPI_ENABLE] & DISPI_8BIT_DAC)
        put(c, x, y, d[0], d[1], d[2]);
    else
        put(c, x, y, (u8)(d[0] << 2 | d[0] >> 4), (u8)(d[1] << 2 | d[1] >> 4), (u8)(d[2] << 2 | d[2] >> 4));
}

/* A 4-bit colour, through the attribute controller's palette. */
static void put_attr(const struct vga *v, const struct canvas *c, unsigned x, unsigned y, unsigned color)
{
    u8 p = v->attr[color & 15];

    if (v->attr[ATTR_MODE] & ATTR_MODE_P54)
        p = (u8)((p & 0x0f) | (v->attr[ATTR_COLOR] & 0x03) << 4);
    put_dac(v, c, x, y, (u8)((p & 0x3f) | (v->attr[ATTR_COLOR] & 0x0c) << 4));
}

static void draw_text(const struct vga *v, const struct canvas *c, unsigned cols, unsigned rows, unsigned cw)
{
    unsigned ch = char_height(v), map = v->seq[3];
    /* Character map select: where fonts A (attribute bit 3 set) and B begin, in 8 KiB. */
    static const u8 font_at[8] = { 0, 2, 4, 6, 1, 3, 5, 7 };
    u32 font_b = font_at[(map & 3) | (map >> 4 & 1) << 2] * 0x2000u;
    u32 font_a = font_at[(map >> 2 & 3) | (map >> 5 & 1) << 2] * 0x2000u;
    u32 start = start_address(v), pitch = v->crtc[0x13] * 2u;
    u32 cursor = (u32)v->crtc[0x0e] << 8 | v->crtc[0x0f];

    for (unsigned row = 0; row < rows; row++) {
        for (unsigned col = 0; col < cols; col++) {
            u32 at = start + row * pitch + col;
            u8 code = plane(v, at, 0), attr = plane(v, at, 1);
            unsigned bg = attr >> 4, fg = attr & 15;
            if (v->attr[ATTR_MODE] & ATTR_MODE_BLINK)
                bg &= 7;
            bool has_cursor = at == cursor && !(v->crtc[0x0a] & 0x20);
            for (unsigned y = 0; y < ch; y++) {
                u8 bits = plane(v, (attr & 8 ? font_a : font_b) + code * 32u + y, 2);
                if (has_cursor && y >= (v->crtc[0x0a] & 31u) && y <= (v->crtc[0x0b] & 31u))
                    bits = 0xff;
                for (unsigned x = 0; x < cw; x++) {
                    /* The ninth column: empty, but for line graphics it repeats the eighth. */
                    bool on = x < 8 ? bits >> (7 - x) & 1
                                    : v->attr[ATTR_MODE] & 4 && code >= 0xc0 && code <= 0xdf && bits & 1;
                    put_attr(v, c, col * cw + x, row * ch + y, on ? fg : bg);
                }
            }
        }
    }
}

/* Standard graphics modes: planes, CGA's packed pixels, 256 colours. */
static void draw_graphics(const struct vga *v, const struct canvas *c)
{
    unsigned shift = v->gc[5] >> 5 & 3;
    /* Each line is repeated: as the double-scan bit and the maximum scan line say. */
    unsigned repeat = (v->crtc[9] & 0x80 ? 2 : 1) * ((v->crtc[9] & 31u) + 1);
    u32 start = start_address(v), pitch = v->crtc[0x13] * 2u;
    /* CGA's way: the row counter's bit 0 is an address bit, odd lines are 8 KiB further on (in each of two planes, 4). */
    bool by_turns = !(v->crtc[0x17] & CRTC_MODE_NO_ROW0);
    u32 odd = v->seq[4] & SEQ_ODD_EVEN_OFF ? 0x2000 : 0x1000;

    if (by_turns)
        repeat = v->crtc[9] & 0x80 ? 2 : 1;
    for (unsigned y = 0; y < c->height; y++) {
        unsigned line = y / repeat;
        u32 at = start + line * pitch;
        if (by_turns)
            at = start + (line >> 1) * pitch + (line & 1) * odd;
        for (unsigned x = 0; x < c->width; x++) {
            if (shift >= 2) { /* 256 colours: one pixel in two clocks */
                put_dac(v, c, x, y, v->mem[(at * 4 + x / 2) & 0x3ffff]);
            } else if (shift == 1) { /* two bits a pixel, in bytes that alternate between planes 0 and 1 */
                u8 byte = plane(v, at + x / 8, x / 4 & 1);
                put_attr(v, c, x, y, byte >> (6 - x % 4 * 2) & 3);
            } else {
                unsigned bit = 7 - (x & 7), color = 0;
                for (unsigned p = 0; p < 4; p++)
                    color |= (plane(v, at + x / 8, p) >> bit & 1u) << p;
                put_attr(v, c, x, y, color & v->attr[ATTR_PLANES]);
            }
        }
    }
}

static void draw_large(const struct vga *v, const struct canvas *c)
{
    const u16 *d = v->dispi;
    unsigned bpp = d[DISPI_BPP], bytes = (bpp + 7) / 8;

    for (unsigned y = 0; y < c->height; y++) {
        for (unsigned x = 0; x < c->width; x++) {
            u64 pixel = (u64)(y + d[DISPI_Y_OFFSET]) * d[DISPI_VIRT_WIDTH] + x + d[DISPI_X_OFFSET];
            if (bpp == 4) {
                unsigned color = 0;
                for (unsigned p = 0; p < 4; p++)
                    color |= (v->mem[(pixel / 8 * 4 + p) & (VGA_MEMORY - 1)] >> (7 - (pixel & 7)) & 1u) << p;
                put_attr(v, c, x, y, color);
                continue;
            }
            u32 raw = 0;
            for (unsigned i = 0; i < bytes; i++)
                raw |= (u32)v->mem[(pixel * bytes + i) & (VGA_MEMORY - 1)] << i * 8;
            if (bpp == 8)
                put_dac(v, c, x, y, (u8)raw);
            else if (bpp == 15)
                put(c, x, y, (u8)(raw >> 7 & 0xf8), (u8)(raw >> 2 & 0xf8), (u8)(raw << 3));
            else if (bpp == 16)
                put(c, x, y, (u8)(raw >> 8 & 0xf8), (u8)(raw >> 3 & 0xfc), (u8)(raw << 3));
            else
                put(c, x, y, (u8)(raw >> 16), (u8)(raw >> 8), (u8)raw);
        }
    }
}

int vga_image(struct vga *v, unsigned *width, unsigned *height, u8 **rgb)
{
    unsigned cols, rows, cw = v->seq[1] & 1 ? 8 : 9;
    struct canvas c = { .width = 640, .height = 400 };

    pthread_mutex_lock(&v->lock);
    text_size(v, &cols, &rows);
    if (large(v)) {
        c.width = v->dispi[DISPI_XRES];
        c.height = v->dispi[DISPI_YRES];
    } else if (cols) {
        c.width = cols * cw;
        c.height = rows * char_height(v);
    } else if (!blank(v)) {
        c.width = (v->crtc[1] + 1u) * 8;
        c.height = scan_lines(v);
    }
    c.width = MAX(MIN(c.width, VGA_MAX_WIDTH), 1u);
    c.height = MAX(MIN(c.height, VGA_MAX_HEIGHT), 1u);
    c.rgb = calloc((size_t)c.width * c.height, 3);
    if (c.rgb && !blank(v)) {
        if (large(v))
            draw_large(v, &c);
        else if (cols)
            draw_text(v, &c, cols, rows, cw);
        else
            draw_graphics(v, &c);
    }
    pthread_mutex_unlock(&v->lock);
    *width = c.width;
    *height = c.height;
    *rgb = c.rgb;
    return c.rgb ? 0 : -ENOMEM;
}
