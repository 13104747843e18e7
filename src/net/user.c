/*
 * user.c - user networking: libslirp is the guest's router, its connections are sockets of this process.
 *
 * Threads: one of its own waits in poll(2); send() comes on vCPU threads and runs the stack there, so that a request is
 * on its way without waking anyone; the thread is woken only if there is now something else to wait for. u->lock guards the
 * stack (libslirp knows no threads), what is waited for, and the queue of frames for which the guest had no room. Lock order:
 * the card's transmit lock, u->lock, the card's receive lock.
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
#include <sys/timerfd.h>
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

struct polls { /* what the stack waits for */
    struct pollfd fd[1 + POLL_MAX];
    unsigned nr;
};

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
    bool running;
    atomic_bool stop;
    int alarm_fd;            /* wakes the thread; the first that it waits for */
    s64 alarm_ms;            /* when */
    struct polls wanted;     /* as the stack said last */
    struct polls waited;     /* what the thread waits for, or waited for last */
    bool asleep;             /* in poll(2) with `waited` */
    bool closed;             /* a socket, whose number may come back, since the thread began to wait */
};

static struct user *user_of(struct net_backend *be)
{
    return (struct user *)be;
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

static void on_open(int fd, void *opaque)
{
    (void)fd;
    (void)opaque;
}

static void on_close(int fd, void *opaque)
{
    (void)fd;
    ((struct user *)opaque)->closed = true;
}

static void on_notify(void *opaque)
{
    (void)opaque; /* of another wish, while the stack runs: whoever runs it looks at its wishes afterwards */
}

static const SlirpCb callbacks = {
    .send_packet = on_packet, .guest_error = on_guest_error, .clock_get_ns = on_clock, .timer_new = on_timer_new,
    .timer_free = on_timer_free, .timer_mod = on_timer_mod, .register_poll_fd = on_open,
    .unregister_poll_fd = on_close, .notify = on_notify,
};

/* -- The thread --------------------------------------------------------------------------------- */

static const struct { int slirp; short poll; } event_bits[] = {
    { SLIRP_POLL_IN, POLLIN }, { SLIRP_POLL_OUT, POLLOUT }, { SLIRP_POLL_PRI, POLLPRI },
    { SLIRP_POLL_ERR, POLLERR }, { SLIRP_POLL_HUP, POLLHUP },
};

static int on_add_poll(int fd, int events, void *opaque)
{
    struct polls *p = opaque;
    short wanted = 0;
    if (p->nr == ARRAY_SIZE(p->fd))
        return -1;
    for (unsigned i = 0; i < ARRAY_SIZE(event_bits); i++)
        if (events & event_bits[i].slirp)
            wanted |= event_bits[i].poll;
    p->fd[p->nr] = (struct pollfd){ .fd = fd, .events = wanted };
    return (int)p->nr++;
}

/* What happened to the stack's idx-th wish. It may have said others while the thread waited: then what is new has to wait. */
static int on_revents(int idx, void *opaque)
{
    const struct user *u = opaque;
    unsigned at = (unsigned)idx;
    int events = 0;

    if (idx <= 0 || at >= u->wanted.nr)
        return 0;
    const struct pollfd *want = &u->wanted.fd[at];
    if (at >= u->waited.nr || u->waited.fd[at].fd != want->fd)
        for (at = 1; at < u->waited.nr && u->waited.fd[at].fd != want->fd;)
            at++;
    if (at == u->waited.nr)
        return 0;
    short got = u->waited.fd[at].revents & (want->events | POLLERR | POLLHUP);
    for (unsigned i = 0; i < ARRAY_SIZE(event_bits); i++)
        if (got & event_bits[i].poll)
            events |= event_bits[i].slirp;
    return events;
}

static s64 now_ms(void)
{
    return on_clock(NULL) / 1000000;
}

static void run_timers(struct user *u)
{
    for (struct timer *t = u->timers; t; t = t->next) {
        if (t->due_ms >= 0 && t->due_ms <= now_ms()) {
            t->due_ms = -1;
            t->fn(t->opaque);
        }
    }
}

/* Have the thread woken no later than that. It costs less than waking it to have it wait for less long. With u->lock held. */
static void set_alarm(struct user *u, s64 at_ms)
{
    if (at_ms >= u->alarm_ms)
        return;
    const struct itimerspec at = { .it_value = { at_ms / 1000, at_ms % 1000 * 1000000 + 1 /* 0 would disarm it */ } };
    u->alarm_ms = at_ms;
    timerfd_settime(u->alarm_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

/* Ask the stack what to wait for, and until when. With u->lock held. */
static void ask(struct user *u)
{
    u32 timeout_ms = 60000;

    u->wanted.fd[0] = (struct pollfd){ .fd = u->alarm_fd, .events = POLLIN };
    u->wanted.nr = 1;
    slirp_pollfds_fill(u->slirp, &timeout_ms, on_add_poll, &u->wanted);
    set_alarm(u, now_ms() + timeout_ms);
    for (struct timer *t = u->timers; t; t = t->next)
        if (t->due_ms >= 0)
            set_alarm(u, t->due_ms);
}

/* Does the thread wait for all that is wanted? */
static bool waits_for_all(const struct user *u)
{
    if (u->closed || u->wanted.nr != u->waited.nr)
        return false;
    for (unsigned i = 0; i < u->wanted.nr; i++)
        if (u->wanted.fd[i].fd != u->waited.fd[i].fd || (u->wanted.fd[i].events & ~u->waited.fd[i].events))
            return false;
    return true;
}

static void *user_main(void *arg)
{
    struct user *u = arg;
    u64 count;

    sandbox_enter(SANDBOX_USERNET);
    while (!atomic_load(&u->stop)) {
        pthread_mutex_lock(&u->lock);
        run_timers(u);
        ask(u);
        u->waited.nr = u->wanted.nr;
        memcpy(u->waited.fd, u->wanted.fd, u->wanted.nr * sizeof(u->wanted.fd[0]));
        u->closed = false;
        u->asleep = true; /* from here on a change in the stack wakes us */
        pthread_mutex_unlock(&u->lock);

        int n = poll(u->waited.fd, u->waited.nr, -1);

        pthread_mutex_lock(&u->lock);
        u->asleep = false;
        if (u->waited.fd[0].revents && read(u->alarm_fd, &count, sizeof(count)) == sizeof(count))
            u->alarm_ms = INT64_MAX;
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
    if (!u->running)
        return;
    atomic_store(&u->stop, true);
    pthread_mutex_lock(&u->lock);
    set_alarm(u, 0);
    pthread_mutex_unlock(&u->lock);
    pthread_join(u->thread, NULL);
    u->running = false;
    pthread_mutex_lock(&u->lock);
    u->port.receive = NULL;
    pthread_mutex_unlock(&u->lock);
}

static void user_send(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *iov, unsigned nr)
{
    struct user *u = user_of(be);
    size_t len = 0;

    pthread_mutex_lock(&u->lock);
    for (unsigned i = 0; i < nr && len + iov[i].iov_len <= sizeof(u->out); len += iov[i++].iov_len)
        memcpy(u->out + len, iov[i].iov_base, iov[i].iov_len);
    if (net_finish(hdr, u->out, len))
        slirp_input(u->slirp, u->out, (int)len);
    pthread_mutex_unlock(&u->lock);
}

/* Mostly the thread need not know: waking it would cost more than the frames. */
static void user_sent(struct net_backend *be)
{
    struct user *u = user_of(be);

    pthread_mutex_lock(&u->lock);
    if (u->asleep) {
        ask(u);
        if (!waits_for_all(u)) {
            u->asleep = false; /* it will ask for itself: once is enough */
            set_alarm(u, 0);
        }
    }
    pthread_mutex_unlock(&u->lock);
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
    close(u->alarm_fd);
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
    u->alarm_ms = INT64_MAX;
    u->alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    u->be = (struct net_backend){ .ops = &user_ops, .takes = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4, .mtu = o->mtu };
    const SlirpConfig config = {
        .version = 4, .restricted = o->restricted, .in_enabled = true,
        .vnetwork.s_addr = htonl(0x0a000200), .vnetmask.s_addr = htonl(0xffffff00), .vhost.s_addr = htonl(0x0a000202),
        .vdhcp_start.s_addr = htonl(0x0a00020f), .vnameserver.s_addr = htonl(0x0a000203), .if_mtu = o->mtu,
        .if_mru = o->mtu,
    };
    u->slirp = u->alarm_fd < 0 ? NULL : slirp_new(&config, &callbacks, u);
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
