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
#include "paravirt/xen/store.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- Answers ------------------------------------------------------------------------------------------------------ */

void store_answer(struct store *s, u32 type, u32 req, u32 tx, const void *data, size_t len)
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
void store_watch_fire(struct store *s, const struct watch *w, const char *path)
{
    char buf[PATH_MAX_ABS + XEN_STORE_PAYLOAD + 2];
    bool relative = w->path[0] != '/' && w->path[0] != '@';

    if (relative && !strncmp(path, HOME "/", sizeof(HOME)))
        path += sizeof(HOME);
    int n = snprintf(buf, sizeof(buf), "%s%c%s", path, 0, w->token);
    if (n > 0 && n + 1 <= XEN_STORE_PAYLOAD)
        store_answer(s, XS_WATCH_EVENT, 0, 0, buf, (size_t)n + 1);
}

void store_changed(struct store *s, const char *path)
{
    char at[PATH_MAX_ABS + 1];

    for (unsigned i = 0; i < s->nr_watches; i++) {
        if (!store_absolute(at, s->watch[i].path))
            continue;
        size_t len = strlen(at);
        if (!strncmp(path, at, len) && (!path[len] || path[len] == '/' || !strcmp(at, "/")))
            store_watch_fire(s, &s->watch[i], path);
    }
    bus_changed(s->x, path);
}

/* -- Paths ------------------------------------------------------------------------------------------------------------ */

/* False: not a path. No "//", no '/' at the end, and letters that are allowed. */
bool store_absolute(char out[PATH_MAX_ABS + 1], const char *path)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@";
    size_t len = strlen(path);

    if (!len || strspn(path, letters) != len || strstr(path, "//") || (len > 1 && path[len - 1] == '/'))
        return false;
    int n = snprintf(out, PATH_MAX_ABS + 1, path[0] == '/' || path[0] == '@' ? "%s" : HOME "/%s", path);
    return n > 0 && n <= PATH_MAX_ABS;
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
        store_answer(s, XS_ERROR, s->in.req_id, s->in.tx_id, "EINVAL", 7);
        s->in_at = 0;
        __atomic_store_n(&r->req_cons, __atomic_load_n(&r->req_prod, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
        return true;
    }
    if (s->in_at >= header && s->in_at == header + s->in.len) {
        s->in_at = 0;
        store_serve(s);
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

struct xen_store_ring *store_ring(const struct store *s)
{
    return s->ring;
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
    store_changed(s, path);
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
    store_changed(s, path);
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
        listens |= store_absolute(at, s->watch[i].path) && !strcmp(at, node);
    if (listens)
        r = store_get(s, node, now, sizeof(now)) && now[0] ? -EBUSY : 0;
    if (!r && !store_put(s, true, node, "%s", how))
        r = -ENOMEM;
    if (!r)
        x->suspend_asked = !strcmp(how, "suspend");
    store_flush(s);
    pthread_mutex_unlock(&x->lock);
    return r;
}

void xen_balloon_ask(struct xen *x, u64 bytes)
{
    pthread_mutex_lock(&x->lock);
    store_put(x->store, false, HOME "/memory/target", "%llu", (unsigned long long)MIN(bytes, x->c.size) >> 10);
    store_flush(x->store);
    pthread_mutex_unlock(&x->lock);
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
        store_tx_drop(&s->tx[i]);
    while (s->nr_watches)
        store_unwatch(s, 0);
    node_free(s->root);
    free(s->out);
    free(s);
}
