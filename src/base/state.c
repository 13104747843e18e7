#include "base/state.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FIELDS_MAX 128

void state_put(struct state_buf *buf, const void *bytes, size_t len)
{
    if (buf->failed)
        return;
    if (buf->len + len > buf->cap) {
        size_t cap = MAX(buf->cap * 2, buf->len + len + 4096);
        u8 *data = realloc(buf->data, cap);
        if (!data) {
            buf->failed = true;
            return;
        }
        buf->data = data;
        buf->cap = cap;
    }
    memcpy(buf->data + buf->len, bytes, len);
    buf->len += len;
}

void state_save(struct state_buf *buf, const struct state_field *fields, const void *obj)
{
    for (const struct state_field *f = fields; f->name; f++) {
        u8 n = (u8)strlen(f->name);
        state_put(buf, &n, 1);
        state_put(buf, f->name, n);
        state_put(buf, &f->size, 4);
        state_put(buf, (const u8 *)obj + f->offset, f->size);
    }
}

int state_load(const struct state_field *fields, void *obj, const void *bytes, size_t len, char *err,
               size_t err_len)
{
    bool seen[FIELDS_MAX] = { false };
    const u8 *p = bytes, *end = p + len;
    unsigned nr = 0, i;

    while (fields[nr].name)
        nr++;
    bug_on(nr > FIELDS_MAX);
    while (p < end) {
        u8 n = *p++;
        u32 size;
        if ((size_t)(end - p) < n + 4u) {
            snprintf(err, err_len, "ends within a field");
            return -EINVAL;
        }
        const char *name = (const char *)p;
        memcpy(&size, p + n, 4);
        p += n + 4u;
        for (i = 0; i < nr; i++)
            if (strlen(fields[i].name) == n && !memcmp(fields[i].name, name, n))
                break;
        if (i == nr || seen[i] || fields[i].size != size || (size_t)(end - p) < size) {
            snprintf(err, err_len, "field '%.*s' %s", n, name,
                     i == nr ? "is not known here" : seen[i] ? "is there twice" : "has another size");
            return -EINVAL;
        }
        for (u32 b = 0; fields[i].truth && b < size; b++) {
            if (p[b] <= 1)
                continue;
            snprintf(err, err_len, "field '%s' is neither true nor false", fields[i].name);
            return -EINVAL;
        }
        seen[i] = true;
        memcpy((u8 *)obj + fields[i].offset, p, size);
        p += size;
    }
    for (i = 0; i < nr; i++) {
        if (seen[i])
            continue;
        snprintf(err, err_len, "field '%s' is missing", fields[i].name);
        return -EINVAL;
    }
    return 0;
}

/* -- Sections -------------------------------------------------------------------------------------- */

void state_set_add(struct state_set *set, const char *name, const void *bytes, size_t len)
{
    struct state_section *more = realloc(set->section, (set->nr + 1) * sizeof(*more));
    void *copy = malloc(len ? len : 1);

    bug_on(strlen(name) >= sizeof(more->name));
    if (more)
        set->section = more;
    if (!more || !copy) {
        free(copy);
        set->failed = true;
        return;
    }
    struct state_section *s = &set->section[set->nr++];
    *s = (struct state_section){ .data = memcpy(copy, bytes, len), .len = len };
    strcpy(s->name, name);
}

void state_set_save(struct state_set *set, const char *name, const struct state_field *fields, const void *obj)
{
    struct state_buf buf = { 0 };

    state_save(&buf, fields, obj);
    set->failed |= buf.failed;
    if (!buf.failed)
        state_set_add(set, name, buf.data, buf.len);
    state_buf_free(&buf);
}

static struct state_section *find(const struct state_set *set, const char *name)
{
    for (unsigned i = 0; i < set->nr; i++)
        if (!set->section[i].taken && !strcmp(set->section[i].name, name))
            return &set->section[i];
    return NULL;
}

bool state_set_has(const struct state_set *set, const char *name)
{
    return find(set, name);
}

const void *state_set_take(struct state_set *set, const char *name, size_t *len)
{
    struct state_section *s = find(set, name);

    if (!s)
        return NULL;
    s->taken = true;
    *len = s->len;
    return s->data;
}

int state_set_load(struct state_set *set, const char *name, const struct state_field *fields, void *obj,
                   char *err, size_t err_len)
{
    char why[200];
    size_t len;
    const void *bytes = state_set_take(set, name, &len);

    if (!bytes)
        snprintf(why, sizeof(why), "is missing");
    else if (!state_load(fields, obj, bytes, len, why, sizeof(why)))
        return 0;
    snprintf(err, err_len, "%s: %s", name, why);
    return -EINVAL;
}

void state_set_free(struct state_set *set)
{
    for (unsigned i = 0; i < set->nr; i++)
        free(set->section[i].data);
    free(set->section);
    *set = (struct state_set){ 0 };
}
