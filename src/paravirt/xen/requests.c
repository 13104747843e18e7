/* requests.c - what the guest asks of xenstore: nodes, permissions, watches, transactions. The rules are at the top of store.c. */
#include "paravirt/xen/store.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- Requests ------------------------------------------------------------------------------------------------------------ */

struct request {
    struct store *s;
    struct tx *tx;         /* NULL: outside */
    struct node *root;
    unsigned *count;
    const char *arg, *end; /* payload, which has a NUL behind it */
    char path[PATH_MAX_ABS + 1];
    u8 *out;               /* [XEN_STORE_PAYLOAD] */
    size_t out_len;
};

static const char *touch(struct request *q)
{
    struct store *s = q->s;

    if (!q->tx) {
        s->generation++;
        store_changed(s, q->path);
        return NULL;
    }
    struct change *c = malloc(sizeof(*c) + strlen(q->path) + 1);
    if (!c)
        return "ENOMEM";
    strcpy(c->path, q->path);
    c->next = q->tx->changes;
    q->tx->changes = c;
    return NULL;
}

void store_tx_drop(struct tx *t)
{
    node_free(t->root);
    while (t->changes) {
        struct change *c = t->changes;
        t->changes = c->next;
        free(c);
    }
    *t = (struct tx){ 0 };
}

static const char *ok(struct request *q)
{
    memcpy(q->out, "OK", 3);
    q->out_len = 3;
    return NULL;
}

static const char *read_node(struct request *q, struct node **n)
{
    *n = node_find(q->root, q->path);
    return !*n ? "ENOENT" : may(*n, 'r') ? NULL : "EACCES";
}

static const char *do_read(struct request *q)
{
    struct node *n;
    const char *why = read_node(q, &n);

    if (why)
        return why;
    if (n->len)
        memcpy(q->out, n->value, n->len);
    q->out_len = n->len;
    return NULL;
}

static const char *do_directory(struct request *q)
{
    struct node *n;
    const char *why = read_node(q, &n);

    if (why)
        return why;
    for (n = n->child; n; n = n->next) {
        size_t len = strlen(n->name) + 1;
        if (len > XEN_STORE_PAYLOAD - q->out_len)
            return "E2BIG";
        memcpy(q->out + q->out_len, n->name, len);
        q->out_len += len;
    }
    return NULL;
}

static const char *do_write(struct request *q, bool value)
{
    struct node *n = node_find(q->root, q->path);
    size_t len = value ? (size_t)(q->end - q->arg) : 0;

    if (n ? !may(n, 'w') : !may_create(q->root, q->path))
        return "EACCES";
    if (len > VALUE_MAX)
        return "ENOSPC";
    if (n && !value)
        return ok(q);
    if (!n && !(n = node_create(q->root, q->count, q->path)))
        return "ENOSPC";
    if (!set_value(n, q->arg, len))
        return "ENOMEM";
    const char *why = touch(q);
    return why ? why : ok(q);
}

static const char *do_rm(struct request *q)
{
    char *slash = strrchr(q->path, '/');

    if (!slash || slash == q->path)
        return "EINVAL";
    *slash = 0;
    struct node *parent = node_find(q->root, q->path);
    *slash = '/';
    if (!parent)
        return "ENOENT";
    struct node **at = child_at(parent, slash + 1, strlen(slash + 1)), *n = *at;
    if (!n)
        return ok(q); /* its parent is there: no error */
    if (!may(n, 'w'))
        return "EACCES";
    *at = n->next;
    n->next = NULL;
    *q->count -= node_count(n);
    node_free(n);
    const char *why = touch(q);
    return why ? why : ok(q);
}

static const char *do_get_perms(struct request *q)
{
    struct node *n;
    const char *why = read_node(q, &n);

    for (unsigned i = 0; !why && i < n->nr_perms; i++)
        q->out_len += (size_t)sprintf((char *)q->out + q->out_len, "%c%u", n->perm[i].what, n->perm[i].dom) + 1;
    return why;
}

static const char *do_set_perms(struct request *q)
{
    struct node *n = node_find(q->root, q->path);
    struct perm p[PERMS_MAX];
    unsigned nr = 0;

    if (!n)
        return "ENOENT";
    if (n->perm[0].dom != GUEST)
        return "EACCES";
    for (const char *a = q->arg; a < q->end; a += strlen(a) + 1) {
        char *rest;
        unsigned long dom = strtoul(a + (*a != 0), &rest, 10);
        if (nr == PERMS_MAX)
            return "ENOSPC";
        if (!*a || !strchr("nrwb", *a) || rest == a + 1 || *rest || dom > 0xffff)
            return "EINVAL";
        p[nr++] = (struct perm){ *a, (u16)dom };
    }
    if (!nr)
        return "EINVAL";
    if (p[0].dom != GUEST)
        return "EPERM"; /* only the privileged give nodes away */
    memcpy(n->perm, p, nr * sizeof(p[0]));
    n->nr_perms = nr;
    const char *why = touch(q);
    return why ? why : ok(q);
}

/* -- Watches and transactions ---------------------------------------------------------------------------------------------- */

static const char *do_watch(struct request *q, const char *path, const char *token)
{
    struct store *s = q->s;

    if (strcmp(path, "@introduceDomain") && strcmp(path, "@releaseDomain") && path[0] == '@')
        return "EINVAL";
    for (unsigned i = 0; i < s->nr_watches; i++)
        if (!strcmp(s->watch[i].path, path) && !strcmp(s->watch[i].token, token))
            return "EEXIST";
    if (s->nr_watches == WATCHES_MAX)
        return "E2BIG";
    struct watch w = { strdup(path), strdup(token) };
    if (!w.path || !w.token) {
        free(w.path);
        free(w.token);
        return "ENOMEM";
    }
    s->watch[s->nr_watches++] = w;
    return ok(q);
}

void store_unwatch(struct store *s, unsigned i)
{
    free(s->watch[i].path);
    free(s->watch[i].token);
    s->watch[i] = s->watch[--s->nr_watches];
}

static const char *do_unwatch(struct request *q, const char *path, const char *token)
{
    struct store *s = q->s;

    for (unsigned i = 0; i < s->nr_watches; i++)
        if (!strcmp(s->watch[i].path, path) && !strcmp(s->watch[i].token, token)) {
            store_unwatch(s, i);
            return ok(q);
        }
    return "ENOENT";
}

static const char *do_tx_start(struct request *q)
{
    struct store *s = q->s;
    struct tx *t = s->tx;

    if (q->tx)
        return "EBUSY";
    while (t < s->tx + TX_MAX && t->id)
        t++;
    if (t == s->tx + TX_MAX)
        return "ENOSPC";
    if (!node_copy(s->root, &t->root)) {
        store_tx_drop(t);
        return "ENOMEM";
    }
    s->next_tx += 1 + !(s->next_tx + 1);
    t->id = s->next_tx;
    t->nr_nodes = s->nr_nodes;
    t->generation = s->generation;
    q->out_len = (size_t)sprintf((char *)q->out, "%u", t->id) + 1;
    return NULL;
}

static const char *do_tx_end(struct request *q)
{
    struct store *s = q->s;
    struct tx *t = q->tx;

    if (!t)
        return "ENOENT";
    if (!strcmp(q->arg, "F")) {
        store_tx_drop(t);
        return ok(q);
    }
    if (strcmp(q->arg, "T"))
        return "EINVAL";
    if (t->changes && t->generation != s->generation) {
        store_tx_drop(t);
        return "EAGAIN";
    }
    if (t->changes) {
        struct node *old = s->root;
        s->root = t->root;
        t->root = old;
        s->nr_nodes = t->nr_nodes;
        s->generation++;
        for (struct change *c = t->changes; c; c = c->next)
            store_changed(s, c->path);
    }
    store_tx_drop(t);
    return ok(q);
}

/* -- One message ---------------------------------------------------------------------------------------------------------------- */

/* Take one NUL-terminated text off the payload. */
static const char *take(struct request *q)
{
    const char *a = q->arg, *nul = memchr(a, 0, (size_t)(q->end - a));

    if (!nul)
        return NULL;
    q->arg = nul + 1;
    return a;
}

static const char *dispatch(struct request *q, u32 type)
{
    const char *path, *token;

    switch (type) {
    case XS_TRANSACTION_START: return do_tx_start(q);
    case XS_TRANSACTION_END: return q->end > q->arg ? do_tx_end(q) : "EINVAL";
    case XS_RESET_WATCHES:
        while (q->s->nr_watches)
            store_unwatch(q->s, 0);
        return ok(q);
    case XS_GET_DOMAIN_PATH:
        if (!(path = take(q)))
            return "EINVAL";
        q->out_len = (size_t)snprintf((char *)q->out, XEN_STORE_PAYLOAD, "/local/domain/%u", (unsigned)atoi(path) & 0xffff) + 1;
        return NULL;
    case XS_WATCH: case XS_UNWATCH:
        path = take(q);
        token = path ? take(q) : NULL;
        if (!token || !store_absolute(q->path, path))
            return "EINVAL";
        return type == XS_WATCH ? do_watch(q, path, token) : do_unwatch(q, path, token);
    case XS_READ: case XS_DIRECTORY: case XS_WRITE: case XS_MKDIR: case XS_RM: case XS_GET_PERMS: case XS_SET_PERMS:
        break;
    default:
        return "ENOSYS";
    }
    path = take(q);
    if (!path || path[0] == '@' || !store_absolute(q->path, path))
        return "EINVAL";
    switch (type) {
    case XS_READ: return do_read(q);
    case XS_DIRECTORY: return do_directory(q);
    case XS_WRITE: return do_write(q, true);
    case XS_MKDIR: return do_write(q, false);
    case XS_RM: return do_rm(q);
    case XS_GET_PERMS: return do_get_perms(q);
    default: return do_set_perms(q);
    }
}

void store_serve(struct store *s)
{
    u8 out[XEN_STORE_PAYLOAD];
    struct request q = { .s = s, .root = s->root, .count = &s->nr_nodes, .arg = s->payload, .end = s->payload + s->in.len,
                         .out = out };
    const char *why = NULL;

    s->payload[s->in.len] = 0;
    if (s->in.tx_id) {
        for (unsigned i = 0; i < TX_MAX; i++)
            if (s->tx[i].id == s->in.tx_id)
                q.tx = &s->tx[i];
        if (q.tx) {
            q.root = q.tx->root;
            q.count = &q.tx->nr_nodes;
        } else {
            why = "ENOENT";
        }
    }
    if (!why)
        why = dispatch(&q, s->in.type);
    if (why)
        store_answer(s, XS_ERROR, s->in.req_id, s->in.tx_id, why, strlen(why) + 1);
    else
        store_answer(s, s->in.type, s->in.req_id, s->in.tx_id, out, q.out_len);
    /* A new watch fires once by itself. */
    if (!why && s->in.type == XS_WATCH)
        store_watch_fire(s, &s->watch[s->nr_watches - 1], q.path);
}
