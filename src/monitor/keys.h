/* keys.h - what a terminal sends, as keys of a PC keyboard (US layout). */
#pragma once
#include "base/types.h"

struct key_decoder {
    u8 seq[8]; /* an escape sequence that is not complete */
    unsigned len;
};

/* A key by its code in set 1, and what must be held while it is pressed. */
struct key {
    u8 code; /* 0: none */
    bool e0, shift, ctrl, alt;
};

/* keys_from_keysym - an X11 key symbol (what VNC clients send): the key that carries it. False: there is none. The client sends
 * Shift and its like as keys of their own. */
bool keys_from_keysym(u32 keysym, struct key *key);

/*
 * keys_next - take one byte; true when *key is a key now. An escape sequence that never ends is given up by
 * keys_flush(), which says what the bytes so far are: call it until false when nothing came for a moment.
 */
bool keys_next(struct key_decoder *d, u8 byte, struct key *key);
bool keys_flush(struct key_decoder *d, struct key *key);
