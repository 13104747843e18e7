/*
 * user.c - user networking: libslirp is the guest's router, its connections are sockets of this process.
 *
 * Threads: one of its own waits in poll(2); send() comes on vCPU threads and runs the stack there, so that a request is
 * on its way without waking anyone. u->lock guards the stack (libslirp knows no threads) and the queue of frames for
 * which the guest had no room. Lock order: the card's transmit lock, u->lock, the card's receive lock.
 */
#include "net/net.h"
#include "base/sandbox.h"
#include <errno.h>
#include <stdio.h>
#if !HAVE_SLIRP
int net_user_create(const struct net_user_options *options, struct net_backend **out, char *err)
{
    (void)options;
    (void)out;
    snprintf(err, NET_ERR_LEN, "--net user: built without libslirp; install libslirp-dev and build again");
    return -ENOTSUP;
}
#else
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define POLL_MAX 1024
#define WAITING_MAX (4u << 20) /* bytes of frames kept while the guest has no room */

struct frame {
    struct frame *next;
    size_t len;
    u8 bytes[];
};

struct timer {
    struct timer *next;
    SlirpTimerCb fn;
    void *opaque;
    s64 due_ms; /* -1: not set */
};

#define FLOWS 64u
#define FLOW_SECONDS 5

struct user {
    struct net_backend be;
    struct net_port port;
    pthread_mutex_t lock;
    Slirp *slirp;
    struct timer *timers;
    struct frame *waiting, **waiting_tail;
    size_t waiting_bytes;
    u8 out[NET_FRAME_MAX];   /* the frame being sent, in one piece */
    pthread_t thread;
    bool running, restricted;
    atomic_bool stop, polling;
    atomic_bool changed;       /* sockets to wait for, since the thread was last woken */
    struct flow { u8 bytes[12]; s64 seconds; } flow[FLOWS]; /* datagrams that were sent lately */
    int wake_fd;
    struct pollfd poll[1 + POLL_MAX];
    unsigned nr_poll;
};

static struct user *user_of(struct net_backend *be)
{
    return (struct user *)be;
}

static void wake(struct user *u)
{
    u64 one = 1;
    if (atomic_load(&u->polling))
        (void)!write(u->wake_fd, &one, sizeof(one));
}

/* -- Towards the guest; with u->lock held ------------------------------------------------------- */

static const struct net_hdr no_offload = { .flags = NET_DATA_VALID };

static void flush_waiting(struct user *u)
{
    while (u->waiting && u->port.receive(u->port.card, &no_offload, u->waiting->bytes, u->waiting->len)) {
        struct frame *f = u->waiting;
        u->waiting = f->next;
        if (!u->waiting)
            u->waiting_tail = &u->waiting;
        u->waiting_bytes -= f->len;
        free(f);
    }
}

static ssize_t on_packet(const void *buf, size_t len, void *opaque)
{
    struct user *u = opaque;
    if (!u->port.receive)
        return (ssize_t)len;
    if (!u->waiting && u->port.receive(u->port.card, &no_offload, buf, len))
        return (ssize_t)len;
    struct frame *f = u->waiting_bytes + len <= WAITING_MAX ? malloc(sizeof(*f) + len) : NULL;
    if (f) { /* else it is lost, as on a full cable */
        f->next = NULL;
        f->len = len;
        memcpy(f->bytes, buf, len);
        *u->waiting_tail = f;
        u->waiting_tail = &f->next;
        u->waiting_bytes += len;
    }
    return (ssize_t)len;
}

/* -- What libslirp asks for --------------------------------------------------------------------- */

static void on_guest_error(const char *msg, void *opaque)
{
    (void)msg; /* the guest sent nonsense: its business */
    (void)opaque;
}

static s64 on_clock(void *opaque)
{
    struct timespec ts;
    (void)opaque;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (s64)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void *on_timer_new(SlirpTimerCb fn, void *fn_opaque, void *opaque)
{
    struct user *u = opaque;
    struct timer *t = calloc(1, sizeof(*t));
    bug_on(!t);
    *t = (struct timer){ .next = u->timers, .fn = fn, .opaque = fn_opaque, .due_ms = -1 };
    return u->timers = t;
}

static void on_timer_free(void *timer, void *opaque)
{
    struct user *u = opaque;
    for (struct timer **at = &u->timers; *at; at = &(*at)->next) {
        if (*at == timer) {
            *at = (*at)->next;
            break;
        }
    }
    free(timer);
}

static void on_timer_mod(void *timer, s64 due_ms, void *opaque)
{
    (void)opaque;
    ((struct timer *)timer)->due_ms = due_ms;
}

static void on_poll_fd(int fd, void *opaque)
{
    (void)fd;
    (void)opaque;
}

static void on_notify(void *opaque)
{
    wake(opaque);
}

static const SlirpCb callbacks = {
    .send_packet = on_packet, .guest_error = on_guest_error, .clock_get_ns = on_clock, .timer_new = on_timer_new,
    .timer_free = on_timer_free, .timer_mod = on_timer_mod, .register_poll_fd = on_poll_fd,
    .unregister_poll_fd = on_poll_fd, .notify = on_notify,
};

/* -- The thread --------------------------------------------------------------------------------- */

static const struct { int slirp; short poll; } event_bits[] = {
    { SLIRP_POLL_IN, POLLIN }, { SLIRP_POLL_OUT, POLLOUT }, { SLIRP_POLL_PRI, POLLPRI },
    { SLIRP_POLL_ERR, POLLERR }, { SLIRP_POLL_HUP, POLLHUP },
};

static int on_add_poll(int fd, int events, void *opaque)
{
    struct user *u = opaque;
    short wanted = 0;
    if (u->nr_poll == 1 + POLL_MAX)
        return -1;
    for (unsigned i = 0; i < ARRAY_SIZE(event_bits); i++)
        if (events & event_bits[i].slirp)
            wanted |= event_bits[i].poll;
    u->poll[u->nr_poll] = (struct pollfd){ .fd = fd, .events = wanted };
    return (int)u->nr_poll++;
}

static int on_revents(int idx, void *opaque)
{
    struct user *u = opaque;
    int events = 0;
    for (unsigned i = 0; idx > 0 && i < ARRAY_SIZE(event_bits); i++)
        if (u->poll[idx].revents & event_bits[i].poll)
            events |= event_bits[i].slirp;
    return events;
}

static void run_timers(struct user *u, u32 *timeout_ms)
{
    s64 now = on_clock(NULL) / 1000000;
    for (struct timer *t = u->timers; t; t = t->next) {
        if (t->due_ms >= 0 && t->due_ms <= now) {
            t->due_ms = -1;
            t->fn(t->opaque);
        }
        if (t->due_ms >= 0)
            *timeout_ms = MIN(*timeout_ms, (u32)(t->due_ms - now));
    }
}

static void *user_main(void *arg)
{
    struct user *u = arg;
    u64 count;

    sandbox_enter(SANDBOX_USERNET);
    while (!atomic_load(&u->stop)) {
        u32 timeout_ms = 60000;
        pthread_mutex_lock(&u->lock);
        u->poll[0] = (struct pollfd){ .fd = u->wake_fd, .events = POLLIN };
        u->nr_poll = 1;
        atomic_store(&u->polling, true); /* from here on a change in the stack wakes us */
        slirp_pollfds_fill(u->slirp, &timeout_ms, on_add_poll, u);
        run_timers(u, &timeout_ms);
        unsigned nr = u->nr_poll;
        pthread_mutex_unlock(&u->lock);

        int n = poll(u->poll, nr, (int)timeout_ms);
        atomic_store(&u->polling, false);
        if (u->poll[0].revents)
            (void)!read(u->wake_fd, &count, sizeof(count));

        pthread_mutex_lock(&u->lock);
        flush_waiting(u);
        slirp_pollfds_poll(u->slirp, n < 0, on_revents, u);
        pthread_mutex_unlock(&u->lock);
    }
    return NULL;
}

/* -- struct net_ops ----------------------------------------------------------------------------- */

static int user_start(struct net_backend *be, const struct net_port *port)
{
    struct user *u = user_of(be);
    sigset_t all, old;

    u->port = *port;
    atomic_store(&u->stop, false);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&u->thread, NULL, user_main, u);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err)
        return -err;
    pthread_setname_np(u->thread, "vitro-net");
    u->running = true;
    return 0;
}

static void user_stop(struct net_backend *be)
{
    struct user *u = user_of(be);
    u64 one = 1;
    if (!u->running)
        return;
    atomic_store(&u->stop, true);
    (void)!write(u->wake_fd, &one, sizeof(one));
    pthread_join(u->thread, NULL);
    u->running = false;
    pthread_mutex_lock(&u->lock);
    u->port.receive = NULL;
    pthread_mutex_unlock(&u->lock);
}

/*
 * May the thread have something else to wait for after this frame? A connection's next wish may be another with each
 * segment, a datagram may be the first of a new socket. One that goes where others went lately (the stack keeps such a
 * socket for minutes) changes nothing: no wake-up, which would cost more than the frame.
 */
static bool changes_polls(struct user *u, const u8 *f, size_t len)
{
    bool ipv4 = len >= 38 && f[12] == 8 && !f[13] && (f[14] & 15) == 5;
    if (len >= 14 && f[12] == 8 && f[13] == 6) /* ARP */
        return false;
    if (ipv4 && u->restricted) /* only connections that came from outside have sockets */
        return f[23] == 6;
    if (!ipv4 || f[23] != 17)
        return true;
    struct flow key = { .seconds = on_clock(NULL) / 1000000000 };
    memcpy(key.bytes, f + 26, sizeof(key.bytes)); /* addresses and ports */
    u32 h = 0;
    for (unsigned i = 0; i < sizeof(key.bytes); i++)
        h = (h ^ key.bytes[i]) * 0x01000193u;
    struct flow *seen = &u->flow[(h ^ h >> 16) % FLOWS];
    bool same = !memcmp(seen->bytes, key.bytes, sizeof(key.bytes)) && key.seconds - seen->seconds < FLOW_SECONDS;
    *seen = key;
    return !same;
}

static void user_send(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *iov, unsigned nr)
{
    struct user *u = user_of(be);
    size_t len = 0;

    pthread_mutex_lock(&u->lock);
    for (unsigned i = 0; i < nr && len + iov[i].iov_len <= sizeof(u->out); len += iov[i++].iov_len)
        memcpy(u->out + len, iov[i].iov_base, iov[i].iov_len);
    if (net_finish(hdr, u->out, len)) {
        if (changes_polls(u, u->out, len))
            atomic_store(&u->changed, true);
        slirp_input(u->slirp, u->out, (int)len);
    }
    pthread_mutex_unlock(&u->lock);
}

static void user_sent(struct net_backend *be)
{
    struct user *u = user_of(be);
    if (atomic_load(&u->changed) && atomic_exchange(&u->changed, false))
        wake(u); /* there may be sockets to wait for */
}

static void user_room(struct net_backend *be)
{
    struct user *u = user_of(be);
    pthread_mutex_lock(&u->lock);
    if (u->waiting && u->port.receive)
        flush_waiting(u);
    pthread_mutex_unlock(&u->lock);
}

static void user_free(struct net_backend *be)
{
    struct user *u = user_of(be);
    user_stop(be);
    if (u->slirp)
        slirp_cleanup(u->slirp);
    while (u->timers)
        on_timer_free(u->timers, u);
    for (struct frame *f = u->waiting, *next; f; f = next) {
        next = f->next;
        free(f);
    }
    close(u->wake_fd);
    pthread_mutex_destroy(&u->lock);
    free(u);
}

static const struct net_ops user_ops = {
    .name = "user", .start = user_start, .stop = user_stop, .send = user_send, .sent = user_sent, .room = user_room,
    .free = user_free,
};

static int add_forward(struct user *u, const struct net_forward *f, char *err)
{
    struct in_addr host = { htonl(f->host_addr) }, guest = { htonl(f->guest_addr) };
    if (!slirp_add_hostfwd(u->slirp, f->udp, host, f->host_port, guest, f->guest_port))
        return 0;
    int r = errno ? -errno : -EINVAL;
    snprintf(err, NET_ERR_LEN, "--net hostfwd: cannot listen on %s port %u of %s: %s", f->udp ? "UDP" : "TCP",
             f->host_port, inet_ntoa(host), r == -EADDRINUSE ? "it is in use; choose another" : strerror(-r));
    return r;
}

int net_user_create(const struct net_user_options *o, struct net_backend **out, char *err)
{
    struct user *u = calloc(1, sizeof(*u));
    int r = -ENOMEM;

    if (!u)
        goto fail;
    pthread_mutex_init(&u->lock, NULL);
    u->waiting_tail = &u->waiting;
    u->restricted = o->restricted;
    u->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    u->be = (struct net_backend){ .ops = &user_ops, .takes = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4, .mtu = o->mtu };
    const SlirpConfig config = {
        .version = 4, .restricted = o->restricted, .in_enabled = true,
        .vnetwork.s_addr = htonl(0x0a000200), .vnetmask.s_addr = htonl(0xffffff00), .vhost.s_addr = htonl(0x0a000202),
        .vdhcp_start.s_addr = htonl(0x0a00020f), .vnameserver.s_addr = htonl(0x0a000203), .if_mtu = o->mtu,
        .if_mru = o->mtu,
    };
    u->slirp = u->wake_fd < 0 ? NULL : slirp_new(&config, &callbacks, u);
    if (!u->slirp) {
        user_free(&u->be);
        goto fail;
    }
    for (unsigned i = 0; i < o->nr_forwards; i++) {
        r = add_forward(u, &o->forward[i], err);
        if (r) {
            user_free(&u->be);
            return r;
        }
    }
    *out = &u->be;
    return 0;
fail:
    snprintf(err, NET_ERR_LEN, "--net user: cannot make the network: %s", strerror(-r));
    return r;
}
#endif
