/*
 * state.h - what a snapshot carries of one object, declared as data: rows of (name, offset, size). A saved
 * object is a sequence of records, so that a reader can tell what it does not know:
 *
 *     u8 name length, name, u32 size, bytes          little-endian, packed
 *
 * Loading wants exactly the rows of the table, in any order: a missing, unknown, repeated or resized field
 * is refused. Nothing is judged about the values: the owner does that before it believes them.
 */
#pragma once
#include "base/types.h"
#include <stdlib.h>

struct state_field {
    const char *name;
    u32 offset, size;
};
#define STATE(type, field) { #field, offsetof(type, field), sizeof(((type *)0)->field) }
#define STATE_END { NULL, 0, 0 }

/* Bytes that grow. On lack of memory `failed` is set and the rest dropped: one check at the end. */
struct state_buf {
    u8 *data;
    size_t len, cap;
    bool failed;
};

void state_put(struct state_buf *buf, const void *bytes, size_t len);
static inline void state_buf_free(struct state_buf *buf)
{
    free(buf->data);
    *buf = (struct state_buf){ 0 };
}

/* state_save - append the fields of obj. */
void state_save(struct state_buf *buf, const struct state_field *fields, const void *obj);
/*
 * state_load - the other way, from exactly len bytes. 0, or -EINVAL with a sentence in err; obj may then have
 * been written in part.
 */
int state_load(const struct state_field *fields, void *obj, const void *bytes, size_t len, char *err,
               size_t err_len);
