/*
 * The VGA through its ports and memory: text as characters and as pixels, planes, chained and large modes, and
 * registers set at random; the keyboard's and the mouse's bytes; what a terminal sends, as keys.
 */
#include "machine/board.h"
#include "machine/input.h"
#include "machine/layout.h"
#include "monitor/keys.h"
#include "tests/lib/check.h"
#include <stdlib.h>
#include <string.h>

struct fixture {
    struct machine *m;
    bool a20;
};

static u64 no_time(void *opaque) { (void)opaque; return 0; }
static u64 no_tsc(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; return 0; }
static void no_kick(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; }
static void on_a20(void *opaque, bool on) { ((struct fixture *)opaque)->a20 = on; }

static void out(struct fixture *f, u16 port, unsigned size, u32 v) { machine_port_out(f->m, port, size, v); }
static u32 in(struct fixture *f, u16 port, unsigned size) { return machine_port_in(f->m, port, size); }
static void put(struct fixture *f, u32 at, unsigned len, u64 v) { machine_mmio_write(f->m, 0, at, &v, len); }
static u64 get(struct fixture *f, u32 at, unsigned len)
{
    u64 v = 0;
    machine_mmio_read(f->m, 0, at, &v, len);
    return v;
}

static void setup(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    const struct machine_config config = {
        .nr_cpus = 1, .ram_size = 16 << 20, .tsc_khz = 1000000, .wall_ns = 1, .opaque = f,
        .kick = no_kick, .tsc_now = no_tsc, .clock_source = no_time, .a20 = on_a20,
        .vga = true, .keyboard = true,
    };
    CHECK(!machine_create(&config, &f->m));
}

static void indexed(struct fixture *f, u16 port, unsigned i, u8 v) { out(f, port, 2, i | (u32)v << 8); }

/* Mode 3: 80 * 25 characters of 9 * 16, as a VGA BIOS sets it. */
static void text_mode(struct fixture *f)
{
    static const u8 crtc[] = { 0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0,
                               0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff };
    static const u8 seq[] = { 3, 0, 3, 0, 2 }, gc[] = { 0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff };

    out(f, 0x3c2, 1, 0x67);
    for (unsigned i = 0; i < sizeof(seq); i++)
        indexed(f, 0x3c4, i, seq[i]);
    out(f, 0x3d4, 1, 0x11);
    out(f, 0x3d5, 1, 0); /* unprotect */
    for (unsigned i = 0; i < sizeof(crtc); i++)
        indexed(f, 0x3d4, i, crtc[i]);
    for (unsigned i = 0; i < sizeof(gc); i++)
        indexed(f, 0x3ce, i, gc[i]);
    in(f, 0x3da, 1);
    for (unsigned i = 0; i < 16; i++) {
        out(f, 0x3c0, 1, i);
        out(f, 0x3c0, 1, i);
    }
    out(f, 0x3c0, 1, 0x10), out(f, 0x3c0, 1, 0x0c);
    out(f, 0x3c0, 1, 0x12), out(f, 0x3c0, 1, 0x0f);
    out(f, 0x3c0, 1, 0x20); /* screen on */
    out(f, 0x3c8, 1, 0);
    for (unsigned i = 0; i < 16; i++) {
        out(f, 0x3c9, 1, i & 4 ? 42 : 0);
        out(f, 0x3c9, 1, i & 2 ? 42 : 0);
        out(f, 0x3c9, 1, i & 1 ? 63 : 0);
    }
}

static void test_text(struct fixture *f)
{
    struct vga_text t;
    unsigned w, h;
    u8 *rgb;

    CHECK(!vga_text_get(machine_vga(f->m), &t) && t.cols == 0); /* blank before a mode is set */
    vga_text_free(&t);
    text_mode(f);
    put(f, 0xb8000, 2, 0x1f41);            /* A, white on blue */
    put(f, 0xb8002, 8, 0x0744074307420741); /* ABCD at once */
    put(f, 0xb8000 + 2 * (24 * 80 + 79), 2, 0x4e7a);
    put(f, 0xa0000, 2, 0x1234); /* not decoded in this mode */
    CHECK(get(f, 0xb8002, 4) == 0x07420741 && get(f, 0xa0000, 2) == 0xffff);
    indexed(f, 0x3d4, 0x0f, 81);
    CHECK(!vga_text_get(machine_vga(f->m), &t));
    CHECK(t.cols == 80 && t.rows == 25 && t.cursor == 81);
    CHECK(t.cell[0].ch == 'A' && t.cell[0].attr == 0x1f && t.cell[3].ch == 'C' && t.cell[1999].ch == 'z');
    vga_text_free(&t);
    indexed(f, 0x3d4, 0x0d, 80); /* scrolled by a line */
    CHECK(!vga_text_get(machine_vga(f->m), &t) && t.cell[80 * 23 + 79].ch == 'z' && t.cursor == 1);
    vga_text_free(&t);
    indexed(f, 0x3d4, 0x0d, 0);

    /* A glyph into plane 2, as a BIOS loads a font: line 3 of 'A' is 0x81. */
    indexed(f, 0x3c4, 2, 4), indexed(f, 0x3c4, 4, 6), indexed(f, 0x3ce, 6, 4), indexed(f, 0x3ce, 5, 0);
    put(f, 0xa0000 + 'A' * 32 + 3, 1, 0x81);
    indexed(f, 0x3c4, 2, 3), indexed(f, 0x3c4, 4, 2), indexed(f, 0x3ce, 6, 0x0e), indexed(f, 0x3ce, 5, 0x10);
    CHECK(!vga_image(machine_vga(f->m), &w, &h, &rgb) && w == 720 && h == 400);
    static const u8 white[] = { 170, 170, 255 }, blue[] = { 0, 0, 255 }, black[] = { 0, 0, 0 };
    CHECK(!memcmp(rgb + 3 * 720 * 3, white, 3) && !memcmp(rgb + 3 * (720 * 3 + 1), blue, 3));
    CHECK(!memcmp(rgb + 3 * (720 * 3 + 7), white, 3) && !memcmp(rgb + 3 * (720 * 4), blue, 3));
    CHECK(!memcmp(rgb + 3 * (720 * 4 + 18), black, 3));
    free(rgb);
}

static void test_planes(struct fixture *f)
{
    unsigned w, h;
    u8 *rgb;

    /* 640 * 480 in 16 colours: write mode 2 through the bit mask, and what the latches keep. */
    indexed(f, 0x3c4, 2, 15), indexed(f, 0x3c4, 4, 6);
    indexed(f, 0x3ce, 6, 5), indexed(f, 0x3ce, 5, 2), indexed(f, 0x3ce, 8, 0x40);
    put(f, 0xa0000, 1, 9);
    CHECK(get(f, 0xa0000, 1) == 0x40);
    indexed(f, 0x3ce, 8, 0x01);
    get(f, 0xa0000, 1);
    put(f, 0xa0000, 1, 2);
    indexed(f, 0x3ce, 4, 1);
    CHECK(get(f, 0xa0000, 1) == 0x01);
    indexed(f, 0x3ce, 4, 3);
    CHECK(get(f, 0xa0000, 1) == 0x40);
    indexed(f, 0x3ce, 5, 8), indexed(f, 0x3ce, 2, 9), indexed(f, 0x3ce, 7, 15); /* which pixels have colour 9 */
    CHECK(get(f, 0xa0000, 1) == 0x40);
    indexed(f, 0x3ce, 5, 0), indexed(f, 0x3ce, 8, 0xff), indexed(f, 0x3ce, 3, 0x18); /* XOR */
    get(f, 0xa0000, 1);
    put(f, 0xa0000, 1, 0xff);
    indexed(f, 0x3ce, 4, 3);
    CHECK(get(f, 0xa0000, 1) == 0xbf);
    indexed(f, 0x3ce, 3, 0), indexed(f, 0x3ce, 5, 1); /* latches copied */
    get(f, 0xa0000, 1);
    put(f, 0xa0100, 1, 0);
    CHECK(get(f, 0xa0100, 1) == 0xbf);
    indexed(f, 0x3d4, 0x11, 0), indexed(f, 0x3d4, 9, 0x40), indexed(f, 0x3d4, 7, 0x3e), indexed(f, 0x3d4, 0x12, 0xdf);
    CHECK(!vga_image(machine_vga(f->m), &w, &h, &rgb) && w == 640 && h == 480);
    free(rgb);
}

static u16 dispi(struct fixture *f, u16 i)
{
    out(f, 0x1ce, 2, i);
    return (u16)in(f, 0x1cf, 2);
}
static void dispi_w(struct fixture *f, u16 i, u16 v)
{
    out(f, 0x1ce, 2, i);
    out(f, i & 1 ? 0x1cf : 0x1d0, 2, v); /* both ports are in use */
}

static void test_large(struct fixture *f)
{
    unsigned w, h;
    u8 *rgb;

    CHECK(dispi(f, DISPI_ID) == 0xb0c5 && dispi(f, DISPI_MEMORY) == 256);
    dispi_w(f, DISPI_XRES, 800), dispi_w(f, DISPI_YRES, 600), dispi_w(f, DISPI_BPP, 32);
    dispi_w(f, DISPI_ENABLE, 0x41);
    CHECK(dispi(f, DISPI_VIRT_WIDTH) == 800 && dispi(f, DISPI_XRES) == 800);
    dispi_w(f, DISPI_XRES, 640); /* not while it is enabled */
    CHECK(dispi(f, DISPI_XRES) == 800);
    out(f, PORT_PCI_ADDR, 4, 0x80000000u | PCI_DEVFN(PCI_SLOT_VGA, 0) << 8 | PCI_BAR0);
    u32 bar = in(f, PORT_PCI_DATA, 4) & ~15u;
    CHECK(bar >= LAYOUT_PCI_MMIO);
    put(f, bar + (599 * 800 + 799) * 4, 4, 0x00aabbcc);
    put(f, bar + VGA_MEMORY - 8, 8, 1);
    const u32 last = (599 * 800 + 799) * 4; /* by the window, too */
    dispi_w(f, DISPI_BANK, (u16)(last >> 16));
    CHECK(get(f, 0xa0000 + (last & 0xffff), 4) == 0x00aabbcc);
    CHECK(!vga_image(machine_vga(f->m), &w, &h, &rgb) && w == 800 && h == 600);
    static const u8 want[] = { 0xaa, 0xbb, 0xcc };
    CHECK(!memcmp(rgb + 3 * (599 * 800 + 799), want, 3));
    free(rgb);
    /* As far away as can be said: nothing outside the memory is read. */
    dispi_w(f, DISPI_VIRT_WIDTH, 0xffff), dispi_w(f, DISPI_X_OFFSET, 0xffff), dispi_w(f, DISPI_Y_OFFSET, 0xffff);
    CHECK(!vga_image(machine_vga(f->m), &w, &h, &rgb));
    free(rgb);
    dispi_w(f, DISPI_ENABLE, 0);
}

static void test_hostile(struct fixture *f)
{
    u64 x = 88172645463325252ull;
    unsigned w, h;
    u8 *rgb;
    struct vga_text t;

    for (unsigned i = 0; i < 200000; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        u32 v = (u32)(x >> 32);
        switch (x & 7) {
        case 0: out(f, (u16)(0x1ce + (x >> 8 & 3)), 1 + (x >> 12 & 1), v & 0x1f); break;
        case 1: out(f, (u16)(0x1ce + (x >> 8 & 3)), 1 + (x >> 12 & 1), v); break;
        case 2: put(f, 0xa0000 + (v & 0x1ffff), 1u << (x >> 8 & 3), x); break;
        case 3: get(f, 0xa0000 + (v & 0x1ffff), 1u << (x >> 8 & 3)); break;
        case 4: in(f, (u16)(0x3b0 + (x >> 8) % 0x30), 1); break;
        default: out(f, (u16)(0x3b0 + (x >> 8) % 0x30), 1 + (x >> 16 & 1), v); break;
        }
        if (i % 20000 == 0) {
            if (!vga_image(machine_vga(f->m), &w, &h, &rgb))
                free(rgb);
            if (!vga_text_get(machine_vga(f->m), &t))
                vga_text_free(&t);
        }
    }
    CHECK(true);
}

/* -- Keyboard ------------------------------------------------------------------------------------- */

static u32 kbd_byte(struct fixture *f)
{
    return in(f, 0x64, 1) & 1 ? in(f, 0x60, 1) : 0x100;
}

static void test_keyboard(struct fixture *f)
{
    CHECK(f->a20);
    out(f, 0x64, 1, 0x60), out(f, 0x60, 1, 0x41); /* interrupts, translation, on */
    out(f, 0x60, 1, 0xff);
    CHECK(kbd_byte(f) == 0xfa && kbd_byte(f) == 0xaa && kbd_byte(f) == 0x100);
    out(f, 0x60, 1, 0xf2);
    CHECK(kbd_byte(f) == 0xfa && kbd_byte(f) == 0xab && kbd_byte(f) == 0x41); /* 0x83, translated */
    out(f, 0x60, 1, 0xed);
    CHECK(kbd_byte(f) == 0xfa);
    out(f, 0x60, 1, 0x02);
    CHECK(kbd_byte(f) == 0xfa);
    CHECK(machine_keys_taken(f->m));
    CHECK(machine_key(f->m, 0x1e, false, true) && !machine_keys_taken(f->m) && machine_key(f->m, 0x1e, false, false));
    CHECK(machine_key(f->m, 0x48, true, true) && machine_key(f->m, 0x48, true, false));
    CHECK(kbd_byte(f) == 0x1e && kbd_byte(f) == 0x9e);
    CHECK(kbd_byte(f) == 0xe0 && kbd_byte(f) == 0x48 && kbd_byte(f) == 0xe0);
    CHECK(!machine_keys_taken(f->m) && kbd_byte(f) == 0xc8 && machine_keys_taken(f->m));
    out(f, 0x64, 1, 0x60), out(f, 0x60, 1, 0x01); /* set 2 as it is */
    machine_key(f->m, 0x1e, false, true), machine_key(f->m, 0x1e, false, false);
    CHECK(kbd_byte(f) == 0x1c && kbd_byte(f) == 0xf0 && kbd_byte(f) == 0x1c);
    out(f, 0x64, 1, 0xad); /* its clock is stopped: keys wait */
    machine_key(f->m, 0x02, false, true);
    CHECK(kbd_byte(f) == 0x100 && !machine_keys_taken(f->m));
    out(f, 0x64, 1, 0xae);
    in(f, 0x64, 1);
    machine_key(f->m, 0x02, false, false);
    CHECK(kbd_byte(f) == 0x16 && kbd_byte(f) == 0xf0 && kbd_byte(f) == 0x16);
    unsigned taken = 0;
    while (taken < 1000 && machine_key(f->m, 0x02, false, true))
        taken++;
    CHECK(taken > 16 && taken < 100); /* full at some time */
    out(f, 0x60, 1, 0xf5); /* not listening */
    CHECK(!machine_key(f->m, 0x02, false, true));
    /* A20, by either switch. */
    out(f, 0x64, 1, 0xd1), out(f, 0x60, 1, 0xdd);
    CHECK(!f->a20 && !(in(f, 0x92, 1) & 2));
    out(f, 0x92, 1, 2);
    CHECK(f->a20);
    out(f, 0x64, 1, 0xd0);
    while (in(f, 0x64, 1) & 1)
        if (in(f, 0x60, 1) & 2)
            taken = 0;
    CHECK(taken == 0);
}

/* -- Mouse ---------------------------------------------------------------------------------------- */

/* A byte of the mouse: the status register says whose it is. */
static u32 mouse_byte(struct fixture *f)
{
    return (in(f, 0x64, 1) & 0x21) == 0x21 ? in(f, 0x60, 1) : 0x100;
}

static u32 to_mouse(struct fixture *f, u8 value)
{
    out(f, 0x64, 1, 0xd4), out(f, 0x60, 1, value);
    return mouse_byte(f);
}

static bool mouse_sends(struct fixture *f, unsigned n, const u8 *want)
{
    bool same = true;
    for (unsigned i = 0; i < n; i++)
        same &= mouse_byte(f) == want[i];
    return same;
}
#define MOUSE_SENDS(f, ...) mouse_sends(f, sizeof((u8[]){ __VA_ARGS__ }), (u8[]){ __VA_ARGS__ })

static void mouse_knock(struct fixture *f, u8 a, u8 b, u8 c)
{
    const u8 rate[] = { a, b, c };
    for (unsigned i = 0; i < 3; i++)
        CHECK(to_mouse(f, 0xf3) == 0xfa && to_mouse(f, rate[i]) == 0xfa);
}

static void test_mouse(struct fixture *f)
{
    unsigned i;

    while (in(f, 0x64, 1) & 1)
        in(f, 0x60, 1);
    out(f, 0x64, 1, 0x60), out(f, 0x60, 1, 0x03);
    out(f, 0x64, 1, 0xa9);
    CHECK(in(f, 0x60, 1) == 0); /* there is one */
    CHECK(to_mouse(f, 0xff) == 0xfa && MOUSE_SENDS(f, 0xaa, 0x00) && mouse_byte(f) == 0x100);
    CHECK(!machine_move(f->m, 1, 1, 0)); /* not asked to report */
    CHECK(to_mouse(f, 0xf4) == 0xfa);
    CHECK(machine_move(f->m, 5, 7, 3)); /* no wheel yet */
    CHECK(f->m->kbd.mouse_irq_level && !f->m->kbd.irq_level);
    CHECK(MOUSE_SENDS(f, 0x28, 5, 0xf9) && mouse_byte(f) == 0x100 && !f->m->kbd.mouse_irq_level);
    CHECK(machine_move(f->m, -1, -2, 0) && MOUSE_SENDS(f, 0x18, 0xff, 2));
    CHECK(machine_move(f->m, 300, 0, 0) && MOUSE_SENDS(f, 0x08, 255, 0, 0x08, 45, 0));
    CHECK(machine_button(f->m, INPUT_LEFT, true) && machine_button(f->m, INPUT_RIGHT, true));
    CHECK(machine_button(f->m, INPUT_LEFT, false) && MOUSE_SENDS(f, 0x09, 0, 0, 0x0b, 0, 0, 0x0a, 0, 0));
    CHECK(to_mouse(f, 0xe9) == 0xfa && MOUSE_SENDS(f, 0x21, 2, 100));
    CHECK(machine_button(f->m, INPUT_RIGHT, false) && MOUSE_SENDS(f, 0x08, 0, 0));
    mouse_knock(f, 200, 100, 80);
    CHECK(to_mouse(f, 0xf2) == 0xfa && mouse_byte(f) == 3);
    CHECK(machine_move(f->m, 0, 0, 1) && MOUSE_SENDS(f, 0x08, 0, 0, 0xff));
    CHECK(machine_move(f->m, 0, 0, -2) && MOUSE_SENDS(f, 0x08, 0, 0, 2));
    mouse_knock(f, 200, 200, 80);
    CHECK(to_mouse(f, 0xf2) == 0xfa && mouse_byte(f) == 4);
    CHECK(machine_button(f->m, INPUT_EXTRA, true) && MOUSE_SENDS(f, 0x08, 0, 0, 0x20));
    CHECK(machine_button(f->m, INPUT_EXTRA, false) && MOUSE_SENDS(f, 0x08, 0, 0, 0));
    CHECK(machine_move(f->m, 0, 0, 9) && MOUSE_SENDS(f, 0x08, 0, 0, 0x09, 0x08, 0, 0, 0x0e));
    /* Remote: only when asked. */
    CHECK(to_mouse(f, 0xf0) == 0xfa && machine_move(f->m, 1, 0, 0) && mouse_byte(f) == 0x100);
    CHECK(to_mouse(f, 0xeb) == 0xfa && MOUSE_SENDS(f, 0x08, 1, 0, 0));
    CHECK(to_mouse(f, 0xea) == 0xfa);
    /* Wrap: everything comes back but its end. */
    CHECK(to_mouse(f, 0xee) == 0xfa && to_mouse(f, 0xf4) == 0xf4 && to_mouse(f, 0xec) == 0xfa);
    CHECK(to_mouse(f, 0x12) == 0xfe); /* no command */
    /* What finds no room is added up, within bounds. */
    for (i = 0; i < 1000; i++)
        machine_move(f->m, 100, -100, 0);
    long x = 0, y = 0, n = 0;
    for (u32 b; (b = mouse_byte(f)) != 0x100; n++) {
        x += (long)mouse_byte(f) - (b & 0x10 ? 256 : 0);
        y += (long)mouse_byte(f) - (b & 0x20 ? 256 : 0);
        mouse_byte(f);
    }
    CHECK_MSG(x == y && x > 0x8000 && x < 0x8000 + 10000, "%ld, %ld in %ld packets", x, y, n);
    /* The interface off, the keyboard's bytes still come; on again, the mouse's too. */
    out(f, 0x64, 1, 0xa7);
    CHECK(machine_move(f->m, 1, 0, 0) && mouse_byte(f) == 0x100);
    out(f, 0x60, 1, 0xee);
    CHECK(kbd_byte(f) == 0xee);
    out(f, 0x64, 1, 0xa8);
    CHECK(MOUSE_SENDS(f, 0x08, 1, 0, 0));
    for (i = 0; i < 100000; i++) { /* anything at all */
        to_mouse(f, (u8)(i * 2654435761u >> 16));
        machine_move(f->m, (int)(i << 20), (int)~(i << 19), (int)i);
        machine_button(f->m, (enum input_button)(i % 7), i & 8);
    }
    CHECK(ps2_mouse_possible(&f->m->kbd.mouse));
    to_mouse(f, 0xec), to_mouse(f, 0xff);
}

static void test_keys(void)
{
    struct key_decoder d = { 0 };
    struct key k;
    static const struct { const char *in; struct key want; } cases[] = {
        { "a", { .code = 0x1e } }, { "A", { .code = 0x1e, .shift = true } },
        { "1", { .code = 0x02 } }, { "!", { .code = 0x02, .shift = true } },
        { "\\", { .code = 0x2b } }, { "|", { .code = 0x2b, .shift = true } }, { "/", { .code = 0x35 } },
        { "~", { .code = 0x29, .shift = true } }, { " ", { .code = 0x39 } }, { "\r", { .code = 0x1c } },
        { "\x7f", { .code = 0x0e } }, { "\t", { .code = 0x0f } }, { "\x03", { .code = 0x2e, .ctrl = true } },
        { "\033[A", { .code = 0x48, .e0 = true } }, { "\033[15~", { .code = 0x3f } },
        { "\033OP", { .code = 0x3b } }, { "\033x", { .code = 0x2d, .alt = true } },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        unsigned keys = 0;
        for (const char *p = cases[i].in; *p; p++)
            keys += keys_next(&d, (u8)*p, &k);
        CHECK_MSG(keys == 1 && !memcmp(&k, &cases[i].want, sizeof(k)), "%u: %u keys, code %#x", i, keys, k.code);
    }
    CHECK(!keys_next(&d, 0x1b, &k) && keys_flush(&d, &k) && k.code == 1 && !keys_flush(&d, &k));
    CHECK(!keys_next(&d, 0xe4, &k)); /* not on this keyboard */
    for (unsigned i = 0; i < 256; i++)
        keys_next(&d, (u8)i, &k);
}

int main(void)
{
    struct fixture f;

    setup(&f);
    test_text(&f);
    test_planes(&f);
    test_large(&f);
    test_keyboard(&f);
    test_mouse(&f);
    test_hostile(&f);
    machine_destroy(f.m);
    test_keys();
    return check_done("test_vga");
}
