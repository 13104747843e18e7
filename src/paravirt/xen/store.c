/*
 * store.c - xenstore for one guest: a small tree of names and values, read and written over a ring.
 * Source: Xen's docs/misc/xenstore.txt, public io/xs_wire.h.
 *
 * The guest is domain 1, and its part of the tree is HOME; paths that do not begin with '/' are below it. A transaction works
 * on a copy of the tree, which replaces the tree at its end if nothing changed meanwhile. Whoever may write a node is in
 * its permissions: an owner, who may do anything, and what others may.
 *
 * Limits, so that a guest costs us no more than this: NODES_MAX nodes, WATCHES_MAX watches, TX_MAX transactions, values of
 * VALUE_MAX bytes. Nodes that are not its own do not count. Nothing is answered while the ring has no room; no more requests are read then.
 */
#include "paravirt/xen/io.h"
#include "paravirt/xen/tree.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WATCHES_MAX 128
#define TX_MAX 10
#define VALUE_MAX 2048
#define OUT_MAX (64u << 10)

struct watch {
    char *path, *token;     /* as the guest gave them */
};
struct change { struct change *next; char path[]; };
struct tx {
    u32 id;
    struct node *root;
    unsigned nr_nodes;
    u64 generation;         /* of the tree it was copied from */
    struct change *changes;
};
struct store {
    struct xen *x;
    struct xen_store_ring *ring;
    struct node *root;
    unsigned nr_nodes;
    u64 generation;
    struct watch watch[WATCHES_MAX];
    unsigned nr_watches;
    struct tx tx[TX_MAX];
    u32 next_tx;
    struct xen_store_msg in;   /* the message that comes in, and how much of it is there */
    u32 in_at;
    char payload[XEN_STORE_PAYLOAD + 1];
    u8 *out;                   /* [OUT_MAX]: what waits for room in the ring */
    u32 out_len;
};

/* -- Answers ------------------------------------------------------------------------------------------------------ */

static void answer(struct store *s, u32 type, u32 req, u32 tx, const void *data, size_t len)
{
    const struct xen_store_msg h = { type, req, tx, (u32)len };

    if (s->out_len + sizeof(h) + len > OUT_MAX)
        return; /* watch events without end that nobody reads */
    memcpy(s->out + s->out_len, &h, sizeof(h));
    if (len)
        memcpy(s->out + s->out_len + sizeof(h), data, len);
    s->out_len += (u32)(sizeof(h) + len);
}

/* watch_fire - tell one watch of a change at path. */
static void watch_fire(struct store *s, const struct watch *w, const char *path)
{
    char buf[PATH_MAX_ABS + XEN_STORE_PAYLOAD + 2];
    bool relative = w->path[0] != '/' && w->path[0] != '@';

    if (relative && !strncmp(path, HOME "/", sizeof(HOME)))
        path += sizeof(HOME);
    int n = snprintf(buf, sizeof(buf), "%s%c%s", path, 0, w->token);
    if (n > 0 && n + 1 <= XEN_STORE_PAYLOAD)
        answer(s, XS_WATCH_EVENT, 0, 0, buf, (size_t)n + 1);
}

static bool absolute(char out[PATH_MAX_ABS + 1], const char *path);

static void changed(struct store *s, const char *path)
{
    char at[PATH_MAX_ABS + 1];

    for (unsigned i = 0; i < s->nr_watches; i++) {
        if (!absolute(at, s->watch[i].path))
            continue;
        size_t len = strlen(at);
        if (!strncmp(path, at, len) && (!path[len] || path[len] == '/' || !strcmp(at, "/")))
            watch_fire(s, &s->watch[i], path);
    }
    bus_changed(s->x, path);
}

/* -- Paths ------------------------------------------------------------------------------------------------------------ */

/* False: not a path. No "//", no '/' at the end, and letters that are allowed. */
static bool absolute(char out[PATH_MAX_ABS + 1], const char *path)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@";
    size_t len = strlen(path);

    if (!len || strspn(path, letters) != len || strstr(path, "//") || (len > 1 && path[len - 1] == '/'))
        return false;
    int n = snprintf(out, PATH_MAX_ABS + 1, path[0] == '/' || path[0] == '@' ? "%s" : HOME "/%s", path);
    return n > 0 && n <= PATH_MAX_ABS;
}

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
        changed(s, q->path);
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

static void tx_drop(struct tx *t)
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

static void unwatch(struct store *s, unsigned i)
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
            unwatch(s, i);
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
        tx_drop(t);
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
        tx_drop(t);
        return ok(q);
    }
    if (strcmp(q->arg, "T"))
        return "EINVAL";
    if (t->changes && t->generation != s->generation) {
        tx_drop(t);
        return "EAGAIN";
    }
    if (t->changes) {
        struct node *old = s->root;
        s->root = t->root;
        t->root = old;
        s->nr_nodes = t->nr_nodes;
        s->generation++;
        for (struct change *c = t->changes; c; c = c->next)
            changed(s, c->path);
    }
    tx_drop(t);
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
            unwatch(q->s, 0);
        return ok(q);
    case XS_GET_DOMAIN_PATH:
        if (!(path = take(q)))
            return "EINVAL";
        q->out_len = (size_t)snprintf((char *)q->out, XEN_STORE_PAYLOAD, "/local/domain/%u", (unsigned)atoi(path) & 0xffff) + 1;
        return NULL;
    case XS_WATCH: case XS_UNWATCH:
        path = take(q);
        token = path ? take(q) : NULL;
        if (!token || !absolute(q->path, path))
            return "EINVAL";
        return type == XS_WATCH ? do_watch(q, path, token) : do_unwatch(q, path, token);
    case XS_READ: case XS_DIRECTORY: case XS_WRITE: case XS_MKDIR: case XS_RM: case XS_GET_PERMS: case XS_SET_PERMS:
        break;
    default:
        return "ENOSYS";
    }
    path = take(q);
    if (!path || path[0] == '@' || !absolute(q->path, path))
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

static void serve(struct store *s)
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
        answer(s, XS_ERROR, s->in.req_id, s->in.tx_id, why, strlen(why) + 1);
    else
        answer(s, s->in.type, s->in.req_id, s->in.tx_id, out, q.out_len);
    /* A new watch fires once by itself. */
    if (!why && s->in.type == XS_WATCH)
        watch_fire(s, &s->watch[s->nr_watches - 1], q.path);
}

/* -- The ring ------------------------------------------------------------------------------------------------------------------------ */

/* What waits goes out as far as there is room. */
static bool push(struct store *s)
{
    struct xen_store_ring *r = s->ring;
    u32 prod = r->rsp_prod, used = prod - __atomic_load_n(&r->rsp_cons, __ATOMIC_ACQUIRE);
    u32 n = MIN(s->out_len, used > sizeof(r->rsp) ? 0 : (u32)sizeof(r->rsp) - used);

    for (u32 i = 0; i < n; i++)
        r->rsp[(prod + i) % sizeof(r->rsp)] = (char)s->out[i];
    __atomic_store_n(&r->rsp_prod, prod + n, __ATOMIC_RELEASE);
    memmove(s->out, s->out + n, s->out_len - n);
    s->out_len -= n;
    return n;
}

/* More bytes of a message. False: none there. */
static bool pull(struct store *s)
{
    struct xen_store_ring *r = s->ring;
    u32 cons = r->req_cons, n = __atomic_load_n(&r->req_prod, __ATOMIC_ACQUIRE) - cons;
    const u32 header = sizeof(s->in);

    if (n > sizeof(r->req)) { /* no ring looks like that: begin anew */
        __atomic_store_n(&r->req_cons, cons + n, __ATOMIC_RELEASE);
        s->in_at = 0;
        return false;
    }
    u32 want = s->in_at < header ? header - s->in_at : header + s->in.len - s->in_at;
    n = MIN(n, want);
    for (u32 i = 0; i < n; i++, s->in_at++) {
        char b = r->req[(cons + i) % sizeof(r->req)];
        if (s->in_at < header)
            ((char *)&s->in)[s->in_at] = b;
        else
            s->payload[s->in_at - header] = b;
    }
    __atomic_store_n(&r->req_cons, cons + n, __ATOMIC_RELEASE);
    if (s->in_at == header && s->in.len > XEN_STORE_PAYLOAD) { /* where the next one begins is not to be known */
        answer(s, XS_ERROR, s->in.req_id, s->in.tx_id, "EINVAL", 7);
        s->in_at = 0;
        __atomic_store_n(&r->req_cons, __atomic_load_n(&r->req_prod, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
        return true;
    }
    if (s->in_at >= header && s->in_at == header + s->in.len) {
        s->in_at = 0;
        serve(s);
        return true;
    }
    return n;
}

void store_notified(struct store *s)
{
    bool any = false, more;

    do {
        any |= push(s);
        more = s->out_len < OUT_MAX / 2 && pull(s);
        any |= more;
    } while (more);
    any |= push(s);
    if (any)
        port_raise(s->x, s->x->store_port);
}

void store_attach(struct store *s, struct xen_store_ring *ring)
{
    s->ring = ring;
}

/* -- As domain 0 ------------------------------------------------------------------------------------------------------------------ */

/* What is new belongs to `owner`; the other side may do `others`. */
static bool add(struct store *s, const char *path, const char *value, char others, u16 owner)
{
    bool there = node_find(s->root, path);
    struct node *n = node_create(s->root, NULL, path);

    if (!n || !set_value(n, value, strlen(value)))
        return false;
    if (!there) {
        n->perm[0] = (struct perm){ 'n', owner };
        n->perm[1] = (struct perm){ others, owner ? 0 : GUEST };
        n->nr_perms = 2;
        s->nr_nodes = node_count(s->root);
    }
    s->generation++;
    return true;
}

bool store_put(struct store *s, bool guests, const char *path, const char *fmt, ...)
{
    char value[VALUE_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(value, sizeof(value), fmt, ap);
    va_end(ap);
    if (!add(s, path, value, 'r', guests ? GUEST : 0))
        return false;
    changed(s, path);
    return true;
}

bool store_get(struct store *s, const char *path, char *buf, size_t len)
{
    const struct node *n = node_find(s->root, path);

    if (!n || n->len >= len)
        return false;
    if (n->len)
        memcpy(buf, n->value, n->len);
    buf[n->len] = 0;
    return strlen(buf) == n->len;
}

bool store_number(struct store *s, const char *path, u64 max, u64 *out)
{
    char text[24];

    if (!store_get(s, path, text, sizeof(text)) || !text[0] || strspn(text, "0123456789") != strlen(text))
        return false;
    errno = 0;
    u64 value = strtoull(text, NULL, 10);
    if (errno || value > max)
        return false;
    *out = value;
    return true;
}

void store_rm(struct store *s, const char *path)
{
    char up[PATH_MAX_ABS + 1];

    snprintf(up, sizeof(up), "%s", path);
    char *slash = strrchr(up, '/');
    *slash = 0;
    struct node *parent = node_find(s->root, up), **at = parent ? child_at(parent, slash + 1, strlen(slash + 1)) : NULL;
    if (!at || !*at)
        return;
    struct node *n = *at;
    *at = n->next;
    n->next = NULL;
    node_free(n);
    s->nr_nodes = node_count(s->root);
    s->generation++;
    changed(s, path);
}

void store_flush(struct store *s)
{
    if (s->ring && s->out_len && push(s))
        port_raise(s->x, s->x->store_port);
}

int xen_ask_shutdown(struct xen *x, const char *how)
{
    static const char node[] = HOME "/control/shutdown";
    struct store *s = x->store;
    char now[32], at[PATH_MAX_ABS + 1];
    bool listens = false;
    int r = -ENOTCONN;

    pthread_mutex_lock(&x->lock);
    for (unsigned i = 0; i < s->nr_watches; i++)
        listens |= absolute(at, s->watch[i].path) && !strcmp(at, node);
    if (listens)
        r = store_get(s, node, now, sizeof(now)) && now[0] ? -EBUSY : 0;
    if (!r && !store_put(s, true, node, "%s", how))
        r = -ENOMEM;
    store_flush(s);
    pthread_mutex_unlock(&x->lock);
    return r;
}

/* -- Life ---------------------------------------------------------------------------------------------------------------------------- */

struct store *store_create(struct xen *x)
{
    struct store *s = calloc(1, sizeof(*s));
    char kib[24];

    if (!s)
        return NULL;
    s->x = x;
    s->out = malloc(OUT_MAX);
    s->root = node_make("", 0);
    if (!s->out || !s->root)
        goto fail;
    s->root->perm[0] = (struct perm){ 'n', 0 };
    s->root->nr_perms = 1;
    /* What tools make for a guest: its own are where it says what it can do. */
    static const char *const own[] = {
        "control/shutdown", "control/feature-poweroff", "control/feature-reboot", "control/feature-suspend",
        "control/feature-s3", "control/feature-s4", "control/sysrq", "data", "attr", "error", "drivers", "feature",
    };
    snprintf(kib, sizeof(kib), "%llu", (unsigned long long)x->c.size >> 10);
    if (!add(s, "/local", "", 'r', 0) || !add(s, "/local/domain", "", 'r', 0) || !add(s, HOME, "", 'r', 0) ||
        !add(s, HOME "/domid", "1", 'r', 0) || !add(s, HOME "/name", "guest", 'r', 0) ||
        !add(s, HOME "/memory", "", 'r', 0) || !add(s, HOME "/memory/target", kib, 'r', 0) ||
        !add(s, HOME "/memory/static-max", kib, 'r', 0) ||
        !add(s, HOME "/vm", "/vm/00000000-0000-0000-0000-000000000001", 'r', 0) ||
        !add(s, HOME "/device", "", 'r', 0) || !add(s, HOME "/control", "", 'r', 0))
        goto fail;
    for (unsigned i = 0; i < ARRAY_SIZE(own); i++) {
        char path[64];
        snprintf(path, sizeof(path), HOME "/%s", own[i]);
        if (!add(s, path, "", 'n', GUEST))
            goto fail;
    }
    for (unsigned i = 0; i < x->c.nr_cpus; i++) {
        char path[64];
        snprintf(path, sizeof(path), HOME "/cpu/%u/availability", i);
        if (!add(s, path, "online", 'r', 0))
            goto fail;
    }
    return s;
fail:
    store_destroy(s);
    return NULL;
}

void store_destroy(struct store *s)
{
    if (!s)
        return;
    for (unsigned i = 0; i < TX_MAX; i++)
        tx_drop(&s->tx[i]);
    while (s->nr_watches)
        unwatch(s, 0);
    node_free(s->root);
    free(s->out);
    free(s);
}
