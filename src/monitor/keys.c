/*
 * keys.c - from bytes of a terminal to keys. Source: IBM PS/2 hardware interface reference (scan code set 1); XTerm
 * control sequences for the function keys.
 */
#include "monitor/keys.h"
#include <string.h>

#define ESC 0x1b
#define KEY_ESC 0x01
#define KEY_BACKSPACE 0x0e
#define KEY_ENTER 0x1c

/* The keys in the order of their codes, unshifted and shifted; a space is a key that types nothing here. */
static const char plain[] = "  1234567890-=  qwertyuiop[]  asdfghjkl;'` \\zxcvbnm,./";
static const char shifted[] = "  !@#$%^&*()_+  QWERTYUIOP{}  ASDFGHJKL:\"~ |ZXCVBNM<>?";

static bool from_char(u8 byte, struct key *key)
{
    const char *at;

    *key = (struct key){ 0 };
    switch (byte) {
    case ' ': key->code = 0x39; return true;
    case '\r': case '\n': key->code = KEY_ENTER; return true;
    case '\t': key->code = 0x0f; return true;
    case 0x7f: case 0x08: key->code = KEY_BACKSPACE; return true;
    case ESC: key->code = KEY_ESC; return true;
    default: break;
    }
    if (byte < 0x20) { /* Ctrl-A is 1 */
        key->ctrl = true;
        byte = (u8)(byte + 'a' - 1);
    }
    if ((at = strchr(plain, byte))) {
        key->code = (u8)(at - plain);
    } else if ((at = strchr(shifted, byte))) {
        key->code = (u8)(at - shifted);
        key->shift = true;
    }
    return key->code;
}

static const struct {
    const char *seq; /* behind ESC */
    u8 code;
    bool e0;
} sequences[] = {
    { "[A", 0x48, true },  { "[B", 0x50, true },  { "[C", 0x4d, true },  { "[D", 0x4b, true },
    { "OA", 0x48, true },  { "OB", 0x50, true },  { "OC", 0x4d, true },  { "OD", 0x4b, true },
    { "[H", 0x47, true },  { "[F", 0x4f, true },  { "[1~", 0x47, true }, { "[4~", 0x4f, true },
    { "[2~", 0x52, true }, { "[3~", 0x53, true }, { "[5~", 0x49, true }, { "[6~", 0x51, true },
    { "OP", 0x3b, false }, { "OQ", 0x3c, false }, { "OR", 0x3d, false }, { "OS", 0x3e, false },
    { "[15~", 0x3f, false }, { "[17~", 0x40, false }, { "[18~", 0x41, false }, { "[19~", 0x42, false },
    { "[20~", 0x43, false }, { "[21~", 0x44, false }, { "[23~", 0x57, false }, { "[24~", 0x58, false },
};

/* 1: *key; 0: it may become one; -1: it will not. */
static int from_sequence(const struct key_decoder *d, struct key *key)
{
    bool begins = d->len == 1;

    for (unsigned i = 0; i < ARRAY_SIZE(sequences); i++) {
        const char *s = sequences[i].seq;
        if (memcmp(d->seq + 1, s, MIN((size_t)d->len - 1, strlen(s))))
            continue;
        if (strlen(s) == d->len - 1) {
            *key = (struct key){ .code = sequences[i].code, .e0 = sequences[i].e0 };
            return 1;
        }
        begins |= strlen(s) > d->len - 1;
    }
    return begins ? 0 : -1;
}

bool keys_next(struct key_decoder *d, u8 byte, struct key *key)
{
    if (!d->len && byte != ESC)
        return from_char(byte, key);
    d->seq[d->len++] = byte;
    int r = from_sequence(d, key);
    if (!r && d->len < sizeof(d->seq))
        return false;
    if (r < 0 && d->len == 2) { /* ESC and a key: Alt with it */
        d->len = 0;
        bool found = from_char(byte, key);
        key->alt = true;
        return found;
    }
    d->len = 0;
    return r > 0;
}

bool keys_flush(struct key_decoder *d, struct key *key)
{
    if (!d->len)
        return false;
    d->len = 0; /* what followed ESC was no key: it is lost */
    return from_char(ESC, key);
}

/* Runs of key symbols (keysymdef.h) whose keys have consecutive codes, and single ones. */
static const struct {
    u16 first, last;
    u8 code;
    bool e0;
} symbols[] = {
    { 0xff08, 0xff08, 0x0e, false }, { 0xff09, 0xff09, 0x0f, false }, { 0xfe20, 0xfe20, 0x0f, false }, /* Tab, with Shift */
    { 0xff0d, 0xff0d, 0x1c, false }, { 0xff1b, 0xff1b, 0x01, false }, { 0xff14, 0xff14, 0x46, false },
    { 0xff50, 0xff50, 0x47, true }, { 0xff51, 0xff51, 0x4b, true }, { 0xff52, 0xff52, 0x48, true }, /* Home, Left, Up */
    { 0xff53, 0xff53, 0x4d, true }, { 0xff54, 0xff54, 0x50, true }, { 0xff55, 0xff55, 0x49, true }, /* Right, Down, PgUp */
    { 0xff56, 0xff56, 0x51, true }, { 0xff57, 0xff57, 0x4f, true }, { 0xff63, 0xff63, 0x52, true }, /* PgDn, End, Ins */
    { 0xffff, 0xffff, 0x53, true }, { 0xff61, 0xff61, 0x37, true }, { 0xff67, 0xff67, 0x5d, true }, /* Del, Print, Menu */
    { 0xffbe, 0xffc7, 0x3b, false }, { 0xffc8, 0xffc9, 0x57, false },                               /* F1 to F12 */
    { 0xffe1, 0xffe1, 0x2a, false }, { 0xffe2, 0xffe2, 0x36, false }, { 0xffe3, 0xffe3, 0x1d, false },
    { 0xffe4, 0xffe4, 0x1d, true }, { 0xffe5, 0xffe5, 0x3a, false }, { 0xffe7, 0xffe7, 0x38, false },
    { 0xffe9, 0xffe9, 0x38, false }, { 0xffe8, 0xffe8, 0x38, true }, { 0xffea, 0xffea, 0x38, true },
    { 0xfe03, 0xfe03, 0x38, true }, { 0xffeb, 0xffec, 0x5b, true }, { 0xff7f, 0xff7f, 0x45, false }, /* AltGr, Super, Num */
    { 0xff8d, 0xff8d, 0x1c, true }, { 0xffaa, 0xffaa, 0x37, false }, { 0xffab, 0xffab, 0x4e, false }, /* the keypad's */
    { 0xffad, 0xffad, 0x4a, false }, { 0xffae, 0xffae, 0x53, false }, { 0xffaf, 0xffaf, 0x35, true },
    { 0xffb0, 0xffb0, 0x52, false }, { 0xffb1, 0xffb3, 0x4f, false }, { 0xffb4, 0xffb6, 0x4b, false },
    { 0xffb7, 0xffb9, 0x47, false },
};

bool keys_from_keysym(u32 keysym, struct key *key)
{
    if (keysym >= ' ' && keysym < 0x7f)
        return from_char((u8)keysym, key);
    for (unsigned i = 0; i < ARRAY_SIZE(symbols); i++) {
        if (keysym < symbols[i].first || keysym > symbols[i].last)
            continue;
        *key = (struct key){ .code = (u8)(symbols[i].code + keysym - symbols[i].first), .e0 = symbols[i].e0 };
        return true;
    }
    return false;
}
