/*
 * bus.c - xenbus: devices come, connect, let go and leave by what each end writes into its node "state".
 * Source: Xen's public io/xenbus.h; docs/misc/xenstore-paths.
 *
 *   ours   InitWait ---------> Connected -------> Closing -----> Closed     InitWait again if the front end begins anew,
 *   theirs    Initialised/Connected     Closing         Closed              or, if the device is to leave, no nodes at all
 *
 * A thread of its own looks at every device after the guest wrote below its "device" directory: to let go of one means to
 * wait for the host, which no vCPU should. What it sees there may be anything, at any time: each step is one that
 * is harmless.
 */
#include "paravirt/xen/io.h"
#include "base/sandbox.h"
#include "paravirt/xen/tree.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICES HOME "/device/"

struct bus {
    struct backend *first, **last; /* all that follows: under x->lock */
    pthread_t thread;
    pthread_cond_t cond;
    bool started, dirty, busy, stop, paused;
};

/* -- One device ------------------------------------------------------------------------------------------------- */

static enum xenbus_state theirs(struct backend *b)
{
    u64 state;
    return bus_read(b, b->front, "state", XENBUS_RECONFIGURED, &state) ? (enum xenbus_state)state : XENBUS_UNKNOWN;
}

static void set_state(struct backend *b, enum xenbus_state state)
{
    char path[96];

    b->state = state;
    snprintf(path, sizeof(path), "%s/state", b->back);
    store_put(b->x->store, false, path, "%u", state);
}

static void connect(struct backend *b)
{
    struct xen *x = b->x;
    char path[96];

    pthread_mutex_unlock(&x->lock);
    const char *wrong = b->class->connect(b);
    pthread_mutex_lock(&x->lock);
    b->connected = !wrong;
    if (wrong) {
        snprintf(path, sizeof(path), "%s/error", b->back);
        store_put(x->store, false, path, "%s", wrong);
    }
    set_state(b, wrong ? XENBUS_CLOSING : XENBUS_CONNECTED);
}

static void disconnect(struct backend *b)
{
    if (!b->connected)
        return;
    b->connected = false;
    pthread_mutex_unlock(&b->x->lock);
    b->class->disconnect(b);
    pthread_mutex_lock(&b->x->lock);
}

static void offer(struct backend *b)
{
    b->class->publish(b);
    set_state(b, XENBUS_INIT_WAIT);
}

static void leave(struct backend *b)
{
    pthread_mutex_unlock(&b->x->lock);
    b->class->end(b);
    pthread_mutex_lock(&b->x->lock);
    b->gone = true;
    store_rm(b->x->store, b->front);
    store_rm(b->x->store, b->back);
}

static void step(struct backend *b)
{
    enum xenbus_state front = theirs(b);

    if (b->forced) {
        disconnect(b);
        set_state(b, XENBUS_CLOSED);
        leave(b);
        return;
    }
    switch (b->state) {
    case XENBUS_INIT_WAIT:
        if (b->leaving)
            set_state(b, XENBUS_CLOSING);
        else if (front == XENBUS_INITIALISED || front == XENBUS_CONNECTED)
            connect(b);
        break;
    case XENBUS_CONNECTED:
        if (b->leaving || front == XENBUS_CLOSING)
            set_state(b, XENBUS_CLOSING);
        else if (front == XENBUS_INITIALISING || front == XENBUS_CLOSED || front == XENBUS_UNKNOWN)
            set_state(b, XENBUS_CLOSED);
        break;
    case XENBUS_CLOSING: /* a front end without a driver never says anything */
        if (front == XENBUS_CLOSED || front == XENBUS_UNKNOWN || front == XENBUS_INITIALISING)
            set_state(b, XENBUS_CLOSED);
        break;
    default:
        disconnect(b);
        if (b->leaving)
            leave(b);
        else if (front == XENBUS_INITIALISING)
            offer(b);
    }
}

/* -- All of them --------------------------------------------------------------------------------------------------- */

static void *bus_main(void *arg)
{
    struct xen *x = arg;
    struct bus *bus = x->bus;

    /* Connecting serves what is in the rings already: whatever a vCPU does for a device. */
    sandbox_enter(SANDBOX_VCPU | SANDBOX_DISK | SANDBOX_TAP | SANDBOX_USERNET);
    pthread_mutex_lock(&x->lock);
    while (!bus->stop) {
        if (!bus->dirty || bus->paused) {
            pthread_cond_wait(&bus->cond, &x->lock);
            continue;
        }
        bus->dirty = false;
        bus->busy = true;
        for (struct backend *b = bus->first; b; b = b->next)
            for (enum xenbus_state was = XENBUS_UNKNOWN; !b->gone && was != b->state;) {
                was = b->state;
                step(b);
            }
        store_flush(x->store);
        bus->busy = false;
        pthread_cond_broadcast(&bus->cond);
    }
    pthread_mutex_unlock(&x->lock);
    return NULL;
}

static int start(struct xen *x)
{
    sigset_t all, old;

    if (x->bus->started)
        return 0;
    sigfillset(&all); /* signals from outside are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&x->bus->thread, NULL, bus_main, x);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!r)
        pthread_setname_np(x->bus->thread, "vitro-xenbus");
    x->bus->started = !r;
    return -r;
}

static void wake(struct xen *x)
{
    x->bus->dirty = true;
    pthread_cond_broadcast(&x->bus->cond);
}

void bus_changed(struct xen *x, const char *path)
{
    if (x->bus && x->bus->started && !strncmp(path, DEVICES, sizeof(DEVICES) - 1))
        wake(x);
}

unsigned bus_free_id(struct xen *x, const struct backend_class *class, unsigned base, unsigned step)
{
    struct backend *b = NULL;
    unsigned id = base;

    pthread_mutex_lock(&x->lock);
    do {
        id += b ? step : 0;
        for (b = x->bus->first; b && (b->gone || b->class != class || b->id != id); b = b->next)
            ;
    } while (b);
    pthread_mutex_unlock(&x->lock);
    return id;
}

int bus_add(struct xen *x, struct backend *b)
{
    static const struct { const char *name, *value; } own[] = { { "frontend-id", "1" }, { "online", "1" } };
    struct store *s = x->store;
    char path[96];
    int r;

    b->x = x;
    snprintf(b->front, sizeof(b->front), DEVICES "%s/%u", b->class->type, b->id);
    snprintf(b->back, sizeof(b->back), "/local/domain/0/backend/%s/1/%u", b->class->type, b->id);
    pthread_mutex_lock(&x->lock);
    r = start(x);
    if (!r) {
        *x->bus->last = b;
        x->bus->last = &b->next;
        /* Its directory, and everything in it, is the guest's to write. */
        store_put(s, true, b->front, "%s", "");
        for (unsigned i = 0; i < ARRAY_SIZE(own); i++) {
            snprintf(path, sizeof(path), "%s/%s", b->back, own[i].name);
            store_put(s, false, path, "%s", own[i].value);
        }
        snprintf(path, sizeof(path), "%s/frontend", b->back);
        store_put(s, false, path, "%s", b->front);
        offer(b);
        snprintf(path, sizeof(path), "%s/backend", b->front);
        store_put(s, true, path, "%s", b->back);
        snprintf(path, sizeof(path), "%s/backend-id", b->front);
        store_put(s, true, path, "0");
        snprintf(path, sizeof(path), "%s/state", b->front);
        store_put(s, true, path, "%u", XENBUS_INITIALISING);
        store_flush(s);
    }
    pthread_mutex_unlock(&x->lock);
    return r;
}

int xen_detach(struct xen *x, const char *name, bool force)
{
    struct backend *b;
    char path[96];

    pthread_mutex_lock(&x->lock);
    for (b = x->bus->first; b && (b->gone || strcmp(b->name, name)); b = b->next)
        ;
    if (b) {
        b->leaving = true;
        b->forced |= force;
        snprintf(path, sizeof(path), "%s/online", b->back);
        store_put(x->store, false, path, "0");
        wake(x);
    }
    pthread_mutex_unlock(&x->lock);
    return b ? 0 : -ENOENT;
}

bool xen_attached(struct xen *x, const char *name)
{
    struct backend *b;

    pthread_mutex_lock(&x->lock);
    for (b = x->bus->first; b && (b->gone || strcmp(b->name, name)); b = b->next)
        ;
    pthread_mutex_unlock(&x->lock);
    return b;
}

bool xen_device(struct xen *x, unsigned i, char name[16])
{
    struct backend *b;

    pthread_mutex_lock(&x->lock);
    for (b = x->bus->first; b && (b->gone || i); b = b->next)
        i -= !b->gone;
    if (b)
        memcpy(name, b->name, sizeof(b->name));
    pthread_mutex_unlock(&x->lock);
    return b;
}

void xen_io_pause(struct xen *x, bool on)
{
    struct bus *bus = x->bus;

    pthread_mutex_lock(&x->lock);
    bus->paused = on;
    while (on && bus->busy)
        pthread_cond_wait(&bus->cond, &x->lock);
    pthread_cond_broadcast(&bus->cond);
    pthread_mutex_unlock(&x->lock);
    /* Nobody adds a device meanwhile: that takes the control socket, which pauses and resumes. */
    for (struct backend *b = bus->first; b; b = b->next)
        if (b->connected)
            b->class->pause(b, on);
}

/* -- Snapshots: each device's state; of one that is connected, its class's --------------------------------------- */

/* clang-format off */
static const struct state_field backend_fields[] = {
    STATE(struct backend, state), STATE(struct backend, connected), STATE(struct backend, leaving), STATE(struct backend, forced),
    STATE_END
};
/* clang-format on */

static void section_of(const struct backend *b, char name[20]) { snprintf(name, 20, "xen.%s.%u", b->class->type, b->id); }

void bus_save(struct xen *x, struct state_set *set)
{
    char name[20];

    for (struct backend *b = x->bus->first; b; b = b->next) {
        if (b->gone)
            continue;
        section_of(b, name);
        state_set_save(set, name, backend_fields, b);
        if (b->connected)
            b->class->save(b, set, name);
    }
}

int xen_flush(struct xen *x)
{
    int r = 0;

    for (struct backend *b = x->bus->first; b && !r; b = b->next)
        if (!b->gone && b->class->flush)
            r = b->class->flush(b);
    return r;
}

int bus_load(struct xen *x, struct state_set *set, char *err, size_t err_len)
{
    struct backend s = { 0 };
    char name[20];
    int r = 0;

    for (struct backend *b = x->bus->first; b && !r; b = b->next) {
        section_of(b, name);
        r = state_set_load(set, name, backend_fields, &s, err, err_len);
        if (r)
            break;
        bool served = s.state == XENBUS_CONNECTED || s.state == XENBUS_CLOSING || s.state == XENBUS_CLOSED;
        if ((s.connected ? !served : s.state == XENBUS_CONNECTED) || s.state < XENBUS_INIT_WAIT || s.state > XENBUS_CLOSED)
            return xen_impossible(err, err_len, name, "state");
        if (s.connected)
            r = b->class->load(b, set, name, err, err_len);
        b->connected = s.connected && !r;
        b->state = s.state;
        b->leaving = s.leaving;
        b->forced = s.forced;
    }
    x->bus->dirty = true; /* it may have been */
    return r;
}

/* -- What classes ask ------------------------------------------------------------------------------------------------- */

bool bus_read(struct backend *b, const char *dir, const char *name, u64 max, u64 *out)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return store_number(b->x->store, path, max, out);
}

unsigned bus_queues(struct backend *b, unsigned max)
{
    char path[96];
    u64 n;

    snprintf(path, sizeof(path), "%s/multi-queue-num-queues", b->front);
    if (!store_get(b->x->store, path, path, sizeof(path)))
        return 1;
    return bus_read(b, b->front, "multi-queue-num-queues", max, &n) ? (unsigned)n : 0;
}

void bus_queue_dir(const struct backend *b, unsigned queues, unsigned i, char dir[80])
{
    if (queues == 1)
        snprintf(dir, 80, "%s", b->front);
    else
        snprintf(dir, 80, "%s/queue-%u", b->front, i);
}

/* -- Life ---------------------------------------------------------------------------------------------------------------- */

int bus_create(struct xen *x)
{
    x->bus = calloc(1, sizeof(*x->bus));
    if (!x->bus)
        return -ENOMEM;
    pthread_cond_init(&x->bus->cond, NULL);
    x->bus->last = &x->bus->first;
    return 0;
}

void bus_destroy(struct xen *x)
{
    struct bus *bus = x->bus;

    if (!bus)
        return;
    if (bus->started) {
        pthread_mutex_lock(&x->lock);
        bus->stop = true;
        pthread_cond_broadcast(&bus->cond);
        pthread_mutex_unlock(&x->lock);
        pthread_join(bus->thread, NULL);
    }
    while (bus->first) {
        struct backend *b = bus->first;
        bus->first = b->next;
        if (b->connected)
            b->class->disconnect(b);
        if (!b->gone)
            b->class->end(b);
        b->class->free(b);
    }
    pthread_cond_destroy(&bus->cond);
    free(bus);
    x->bus = NULL;
}
