/*
 * state.h - what a snapshot carries of one object, declared as data: rows of (name, offset, size). A saved
 * object is a sequence of records, so that a reader can tell what it does not know:
 *
 *     u8 name length, name, u32 size, bytes          little-endian, packed
 *
 * Loading wants exactly the rows of the table, in any order: a missing, unknown, repeated or resized field
 * is refused. Nothing else is judged about the values: the owner does that before it believes them.
 * No pointers, and no structs with padding or bool inside: name their members (`ch[0].mode`).
 */
#pragma once
#include "base/types.h"
#include <stdlib.h>

struct state_field {
    const char *name;
    u32 offset, size;
    bool truth; /* its bytes are bool: loading refuses any but 0 and 1 */
};
/* clang-format off */
#define STATE(type, field) { #field, offsetof(type, field), sizeof(((type *)0)->field), \
                             _Generic(((type *)0)->field, bool: true, bool *: true, default: false) }
#define STATE_END { NULL, 0, 0, false }
/* clang-format on */

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

/* -- Sections: what several owners put aside under names -------------------------------------------- */

struct state_section {
    char name[32];
    void *data;
    size_t len;
    bool taken;
};
struct state_set {
    struct state_section *section;
    unsigned nr;
    bool failed; /* no memory: checked once, at the end */
};

/* state_set_add - copy len bytes under a name of at most 31 characters. */
void state_set_add(struct state_set *set, const char *name, const void *bytes, size_t len);
/* state_set_save - one object as a section. */
void state_set_save(struct state_set *set, const char *name, const struct state_field *fields, const void *obj);
/* state_set_take - the bytes under a name, marked as taken; NULL: none, or taken before. */
const void *state_set_take(struct state_set *set, const char *name, size_t *len);
/* state_set_has - there is such a section, and nobody took it. */
bool state_set_has(const struct state_set *set, const char *name);
/* state_set_load - one object from its section. 0, or -EINVAL with a sentence that names it. */
int state_set_load(struct state_set *set, const char *name, const struct state_field *fields, void *obj,
                   char *err, size_t err_len);
void state_set_free(struct state_set *set);
