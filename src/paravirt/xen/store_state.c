/*
 * store_state.c - xenstore in a snapshot: its tree, watches, transactions under way, the message that comes in and what waits to
 * go out. The ring is in guest memory.
 *
 * A tree is its nodes, each followed by its children: struct saved_node, permissions (struct saved_perm), name, value.
 */
#include "paravirt/xen/store.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#define F(field) STATE(struct store, field)
static const struct state_field store_fields[] = {
    F(generation), F(next_tx), F(in.type), F(in.req_id), F(in.tx_id), F(in.len), F(in_at), F(payload), STATE_END
};
#undef F
#define F(field) STATE(struct tx, field)
static const struct state_field tx_fields[] = { F(id), F(generation), STATE_END };
#undef F
/* clang-format on */

struct saved_node {
    u32 value;           /* bytes */
    u16 name;
    u8 perms;
    u8 more;             /* MORE_* */
};
struct saved_perm {
    u8 what, zero;
    u16 dom;
};
#define MORE_NEXT 1u     /* there is one beside it, behind its children */
#define MORE_CHILD 2u

/* -- Saving --------------------------------------------------------------------------------------------------- */

static void put_nodes(struct state_buf *buf, const struct node *n)
{
    for (; n; n = n->next) {
        const struct saved_node s = { n->len, (u16)strlen(n->name), (u8)n->nr_perms,
                                      (u8)((n->next ? MORE_NEXT : 0) | (n->child ? MORE_CHILD : 0)) };
        state_put(buf, &s, sizeof(s));
        for (unsigned i = 0; i < n->nr_perms; i++)
            state_put(buf, &(struct saved_perm){ (u8)n->perm[i].what, 0, n->perm[i].dom }, sizeof(struct saved_perm));
        state_put(buf, n->name, s.name);
        if (n->len)
            state_put(buf, n->value, n->len);
        put_nodes(buf, n->child);
    }
}

static void tree_save(const struct node *root, struct state_set *set, const char *name)
{
    struct state_buf buf = { 0 };

    put_nodes(&buf, root);
    xen_save_list(set, name, &buf);
}

static void tx_save(const struct tx *t, unsigned i, struct state_set *set)
{
    struct state_buf buf = { 0 };
    char name[32];

    snprintf(name, sizeof(name), "xen.store.tx%u", i);
    state_set_save(set, name, tx_fields, t);
    snprintf(name, sizeof(name), "xen.store.tx%u.tree", i);
    tree_save(t->root, set, name);
    for (const struct change *c = t->changes; c; c = c->next)
        state_put(&buf, c->path, strlen(c->path) + 1);
    snprintf(name, sizeof(name), "xen.store.tx%u.changes", i);
    xen_save_list(set, name, &buf);
}

void store_save(const struct store *s, struct state_set *set)
{
    struct state_buf buf = { 0 };

    state_set_save(set, "xen.store", store_fields, s);
    state_set_add(set, "xen.store.out", s->out, s->out_len);
    tree_save(s->root, set, "xen.store.tree");
    for (unsigned i = 0; i < s->nr_watches; i++) {
        state_put(&buf, s->watch[i].path, strlen(s->watch[i].path) + 1);
        state_put(&buf, s->watch[i].token, strlen(s->watch[i].token) + 1);
    }
    xen_save_list(set, "xen.store.watches", &buf);
    for (unsigned i = 0; i < TX_MAX; i++)
        if (s->tx[i].id)
            tx_save(&s->tx[i], i, set);
}

/* -- Loading ---------------------------------------------------------------------------------------------------- */

struct reader {
    const u8 *at, *end;
};

static const void *take(struct reader *r, size_t len)
{
    const u8 *at = r->at;

    if ((size_t)(r->end - at) < len)
        return NULL;
    r->at += len;
    return at;
}

/* The next text; NULL: no more, or one without an end. */
static const char *take_text(struct reader *r)
{
    const u8 *nul = r->at < r->end ? memchr(r->at, 0, (size_t)(r->end - r->at)) : NULL;
    return nul ? take(r, (size_t)(nul - r->at) + 1) : NULL;
}

static bool name_good(const char *name, size_t len)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_@";

    for (size_t i = 0; i < len; i++)
        if (!name[i] || !strchr(letters, name[i]))
            return false;
    return len;
}

/* One node, without those around it. NULL: there cannot be such a one, or no memory. */
static struct node *take_node(struct reader *r, bool root, struct saved_node *s)
{
    const void *head = take(r, sizeof(*s));

    if (!head)
        return NULL;
    memcpy(s, head, sizeof(*s));
    const u8 *perms = take(r, s->perms * sizeof(struct saved_perm));
    const char *name = take(r, s->name);
    const void *value = take(r, s->value);
    if (!perms || !name || !value || !s->perms || s->perms > PERMS_MAX || s->value > VALUE_MAX ||
        (root ? s->name || s->more & MORE_NEXT : !name_good(name, s->name)))
        return NULL;
    struct node *n = node_make(name, s->name);
    if (!n || !set_value(n, value, s->value)) {
        node_free(n);
        return NULL;
    }
    for (unsigned i = 0; i < s->perms; i++) {
        struct saved_perm p;
        memcpy(&p, perms + i * sizeof(p), sizeof(p));
        n->perm[i] = (struct perm){ (char)p.what, p.dom };
        n->nr_perms = i + 1;
        if (!p.what || !strchr("nrwb", p.what)) {
            node_free(n);
            return NULL;
        }
    }
    return n;
}

/* Nodes beside each other, and below: paths of at most `room` bytes more. What there is hangs at *at, also if it fails. */
static bool take_nodes(struct reader *r, struct node **at, size_t room, bool root)
{
    struct saved_node s = { .more = MORE_NEXT };

    for (; s.more & MORE_NEXT; at = &(*at)->next) {
        *at = take_node(r, root, &s);
        if (!*at || s.name + 1u > room || (s.more & MORE_CHILD && !take_nodes(r, &(*at)->child, room - s.name - 1, false)))
            return false;
    }
    return true;
}

static int tree_load(struct node **root, struct state_set *set, const char *name, char *err, size_t err_len)
{
    size_t len;
    const u8 *bytes = xen_load_list(set, name, 1, &len, err, err_len);
    struct reader r = { bytes, bytes + len };

    if (!bytes)
        return -EINVAL;
    node_free(*root);
    *root = NULL;
    if (!take_nodes(&r, root, PATH_MAX_ABS + 1, true) || r.at != r.end || node_count(*root) > NODES_MAX) {
        if (!*root)
            *root = node_make("", 0); /* there always is one */
        return xen_impossible(err, err_len, name, "tree");
    }
    return 0;
}

static int watches_load(struct store *s, struct state_set *set, char *err, size_t err_len)
{
    size_t len;
    const u8 *bytes = xen_load_list(set, "xen.store.watches", 1, &len, err, err_len);
    struct reader r = { bytes, bytes + len };

    while (bytes && r.at < r.end) {
        char at[PATH_MAX_ABS + 1];
        const char *path = take_text(&r), *token = path ? take_text(&r) : NULL;
        if (!token || s->nr_watches == WATCHES_MAX || !store_absolute(at, path) || strlen(token) > XEN_STORE_PAYLOAD)
            return xen_impossible(err, err_len, "xen.store.watches", "watch");
        struct watch *w = &s->watch[s->nr_watches++];
        *w = (struct watch){ strdup(path), strdup(token) };
        if (!w->path || !w->token)
            return xen_impossible(err, err_len, "xen.store.watches", "watch");
    }
    return bytes ? 0 : -EINVAL;
}

static int tx_load(struct tx *t, unsigned i, struct state_set *set, char *err, size_t err_len)
{
    struct change **last = &t->changes;
    char name[32];
    size_t len;

    snprintf(name, sizeof(name), "xen.store.tx%u", i);
    if (!state_set_has(set, name))
        return 0;
    int r = state_set_load(set, name, tx_fields, t, err, err_len);
    if (!r && !t->id)
        r = xen_impossible(err, err_len, name, "number");
    snprintf(name, sizeof(name), "xen.store.tx%u.tree", i);
    if (!r)
        r = tree_load(&t->root, set, name, err, err_len);
    if (r)
        return r;
    t->nr_nodes = node_count(t->root);
    snprintf(name, sizeof(name), "xen.store.tx%u.changes", i);
    const u8 *bytes = xen_load_list(set, name, 1, &len, err, err_len);
    struct reader from = { bytes, bytes + len };
    while (bytes && from.at < from.end) {
        char at[PATH_MAX_ABS + 1];
        const char *path = take_text(&from);
        struct change *c = path && store_absolute(at, path) && path[0] == '/' ? malloc(sizeof(*c) + strlen(path) + 1) : NULL;
        if (!c)
            return xen_impossible(err, err_len, name, "path");
        c->next = NULL;
        strcpy(c->path, path);
        *last = c;
        last = &c->next;
    }
    return bytes ? 0 : -EINVAL;
}

int store_load(struct store *s, struct state_set *set, char *err, size_t err_len)
{
    const u32 header = sizeof(s->in);
    size_t len;
    int r = state_set_load(set, "xen.store", store_fields, s, err, err_len);

    if (r)
        return r;
    if (s->in_at >= header && (s->in.len > XEN_STORE_PAYLOAD || s->in_at >= header + s->in.len)) {
        s->in_at = 0;
        return xen_impossible(err, err_len, "xen.store", "message");
    }
    const u8 *out = xen_load_list(set, "xen.store.out", 1, &len, err, err_len);
    if (!out)
        return -EINVAL;
    if (len > OUT_MAX)
        return xen_impossible(err, err_len, "xen.store.out", "answer");
    memcpy(s->out, out, len);
    s->out_len = (u32)len;
    r = tree_load(&s->root, set, "xen.store.tree", err, err_len);
    s->nr_nodes = node_count(s->root);
    if (!r)
        r = watches_load(s, set, err, err_len);
    for (unsigned i = 0; i < TX_MAX && !r; i++)
        r = tx_load(&s->tx[i], i, set, err, err_len);
    return r;
}
