/*
 * vsock.c - virtio socket device, streams only. Source: virtio 1.2 §5.10. Threads: one of its own does everything; notify()
 * wakes it. So connections need no lock, and the queues' locks only keep it from a queue that is being reset.
 */
#include "virtio/vsock.h"
#include "base/park.h"
#include "base/sandbox.h"
#include "base/state.h"
#include "net/unixsock.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define QUEUE_SIZE 128
#define CONNS_MAX 128u
#define REPLIES_MAX 256u
#define BUFFER (256u << 10) /* bytes from the guest kept for a slow client: what buf_alloc says */
#define HOST_CID 2u
#define FIRST_HOST_PORT 0x40000000u
enum { Q_RX, Q_TX, Q_EVENT, NR_QUEUES };
#define EVENT_TRANSPORT_RESET 0u /* §5.10.6.7 */
enum { OP_REQUEST = 1, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST };
#define TYPE_STREAM 1
#define SHUT_RECEIVE 1u
#define SHUT_SEND 2u

struct vsock_hdr { /* §5.10.6 */
    u64 src_cid, dst_cid;
    u32 src_port, dst_port, len;
    u16 type, op;
    u32 flags, buf_alloc, fwd_cnt;
} __attribute__((packed));
_Static_assert(sizeof(struct vsock_hdr) == 44, "virtio 1.2 §5.10.6");

enum state { FREE, GREETING, CONNECTING, OPEN };

struct conn {
    enum state state;
    int fd;
    u32 guest_port, host_port;
    u32 sent, taken, told;      /* bytes to the guest; from it and passed on; of those, what it knows of */
    u32 peer_alloc, peer_taken; /* the guest's buffer, and what it has passed on */
    bool guest_done, guest_gone, ended; /* the guest sends no more; nor takes; the client has closed */
    char line[32];              /* GREETING: what the client has said */
    unsigned line_len;
    u8 *out;                    /* OPEN: BUFFER bytes, out_len used */
    u32 out_len;
};

struct virtio_vsock {
    struct virtio_dev dev;
    u64 config;                 /* guest_cid */
    struct vq_chain chain;      /* its thread's */
    char path[108];
    struct unixsock *listener;
    int wake_fd;
    pthread_t thread;
    bool running;
    atomic_bool quit, reset;
    atomic_bool tell_reset;     /* the guest does not know yet that its connections are gone */
    struct park park;
    u32 next_port;
    struct conn conn[CONNS_MAX];
    struct vsock_hdr reply[REPLIES_MAX]; /* headers without data, waiting for a buffer of the guest's */
    unsigned nr_replies;
};

static struct virtio_vsock *vsock_of(const struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_vsock, dev);
}

static void wake(struct virtio_vsock *v)
{
    u64 one = 1;
    (void)!write(v->wake_fd, &one, sizeof(one));
}

/* -- Towards the guest -------------------------------------------------------------------------- */

static struct vsock_hdr header(const struct virtio_vsock *v, struct conn *c, u16 op)
{
    c->told = c->taken;
    return (struct vsock_hdr){
        .src_cid = HOST_CID, .dst_cid = v->config, .src_port = c->host_port, .dst_port = c->guest_port,
        .type = TYPE_STREAM, .op = op, .buf_alloc = BUFFER, .fwd_cnt = c->taken,
        .flags = op == OP_SHUTDOWN ? SHUT_SEND : 0, /* it may still want to read */
    };
}

static void reply(struct virtio_vsock *v, struct conn *c, u16 op)
{
    if (v->nr_replies < REPLIES_MAX) /* transmit() stops long before */
        v->reply[v->nr_replies++] = header(v, c, op);
}

static void close_conn(struct conn *c)
{
    if (c->fd >= 0)
        close(c->fd);
    free(c->out);
    *c = (struct conn){ .fd = -1 };
}

/* Send waiting replies; how far the guest has buffers for. */
static void send_replies(struct virtio_vsock *v)
{
    struct virtio_queue *q = &v->dev.queue[Q_RX];
    unsigned done = 0;
    pthread_mutex_lock(&q->lock);
    while (atomic_load(&v->dev.running) && done < v->nr_replies &&
           (virtio_pop(q, &v->chain) || (!virtio_idle(q) && virtio_pop(q, &v->chain)))) {
        u64 n = vq_copy_in(&v->chain, 0, &v->reply[done++], sizeof(struct vsock_hdr));
        vq_written(q->dev->ram, &v->chain, n);
        vq_push(&q->vq, v->chain.id, v->chain.nr_desc, (u32)n);
    }
    if (done)
        virtio_interrupt(q);
    virtio_idle(q);
    pthread_mutex_unlock(&q->lock);
    memmove(v->reply, v->reply + done, (v->nr_replies - done) * sizeof(v->reply[0]));
    v->nr_replies -= done;
}

/* Connections do not outlive a snapshot: the guest ends its own, and asks for its CID again (§5.10.6.7). */
static void send_reset(struct virtio_vsock *v)
{
    struct virtio_queue *q = &v->dev.queue[Q_EVENT];
    const u32 id = EVENT_TRANSPORT_RESET;

    if (!atomic_load(&v->tell_reset))
        return;
    pthread_mutex_lock(&q->lock);
    if (atomic_load(&v->dev.running) && (virtio_pop(q, &v->chain) || (!virtio_idle(q) && virtio_pop(q, &v->chain)))) {
        u64 n = vq_copy_in(&v->chain, 0, &id, sizeof(id));
        vq_written(q->dev->ram, &v->chain, n);
        vq_push(&q->vq, v->chain.id, v->chain.nr_desc, (u32)n);
        virtio_interrupt(q);
        atomic_store(&v->tell_reset, false);
    }
    pthread_mutex_unlock(&q->lock);
}

static u32 credit(const struct conn *c)
{
    u32 out = c->sent - c->peer_taken; /* both wrap */
    return out < c->peer_alloc ? c->peer_alloc - out : 0;
}

/* The client has said something: into a buffer of the guest's. */
static void pump_in(struct virtio_vsock *v, struct conn *c)
{
    struct virtio_queue *q = &v->dev.queue[Q_RX];
    u8 buf[16384];
    pthread_mutex_lock(&q->lock);
    if (atomic_load(&v->dev.running) && credit(c) && virtio_pop(q, &v->chain)) {
        u64 room = v->chain.in_len > sizeof(struct vsock_hdr) ? v->chain.in_len - sizeof(struct vsock_hdr) : 0;
        size_t want = (size_t)MIN(MIN(room, (u64)credit(c)), (u64)sizeof(buf));
        ssize_t n = want ? recv(c->fd, buf, want, MSG_DONTWAIT) : -1;
        if (n > 0) {
            struct vsock_hdr h = header(v, c, OP_RW);
            h.len = (u32)n;
            vq_copy_in(&v->chain, 0, &h, sizeof(h));
            vq_copy_in(&v->chain, sizeof(h), buf, (u64)n);
            vq_written(q->dev->ram, &v->chain, sizeof(h) + (u64)n);
            vq_push(&q->vq, v->chain.id, v->chain.nr_desc, (u32)(sizeof(h) + (u64)n));
            virtio_interrupt(q);
            c->sent += (u32)n;
        } else {
            vq_unpop(&q->vq, v->chain.nr_desc);
            if (want && (n == 0 || (errno != EAGAIN && errno != EINTR)))
                c->ended = true;
        }
    }
    pthread_mutex_unlock(&q->lock);
    if (c->ended)
        reply(v, c, OP_SHUTDOWN);
}

/* -- From the guest ----------------------------------------------------------------------------- */

static struct conn *find(struct virtio_vsock *v, u32 guest_port, u32 host_port)
{
    for (unsigned i = 0; i < CONNS_MAX; i++)
        if (v->conn[i].state >= CONNECTING && v->conn[i].guest_port == guest_port && v->conn[i].host_port == host_port)
            return &v->conn[i];
    return NULL;
}

static struct conn *new_conn(struct virtio_vsock *v, int fd, enum state state)
{
    for (unsigned i = 0; i < CONNS_MAX; i++) {
        struct conn *c = &v->conn[i];
        if (c->state != FREE)
            continue;
        *c = (struct conn){ .state = state, .fd = fd, .out = malloc(BUFFER) };
        if (!c->out)
            break;
        return c;
    }
    return NULL;
}

/* The guest wants to reach a port of the host's. */
static void request(struct virtio_vsock *v, const struct vsock_hdr *h)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s_%u", v->path, h->dst_port);
    int fd = n < (int)sizeof(addr.sun_path) ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;
    struct conn *c = NULL, refused = { .guest_port = h->src_port, .host_port = h->dst_port, .fd = -1 };

    if (fd >= 0 && !connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
        c = new_conn(v, fd, OPEN);
    if (!c) {
        if (fd >= 0)
            close(fd);
        reply(v, &refused, OP_RST);
        return;
    }
    c->guest_port = h->src_port;
    c->host_port = h->dst_port;
    c->peer_alloc = h->buf_alloc;
    c->peer_taken = h->fwd_cnt;
    reply(v, c, OP_RESPONSE);
}

/* As much of what the guest sent as the client takes. */
static void pump_out(struct virtio_vsock *v, struct conn *c)
{
    ssize_t n = c->out_len ? send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    if (n > 0) {
        memmove(c->out, c->out + n, c->out_len - (size_t)n);
        c->out_len -= (u32)n;
        c->taken += (u32)n;
        if (c->taken - c->told >= BUFFER / 4) /* tell it before it runs dry */
            reply(v, c, OP_CREDIT_UPDATE);
    } else if (n < 0 && errno != EAGAIN && errno != EINTR) { /* it does not */
        reply(v, c, OP_RST);
        close_conn(c);
        return;
    }
    if (c->out_len)
        return;
    if (c->guest_gone) { /* and everything it sent is with the client */
        reply(v, c, OP_RST);
        close_conn(c);
    } else if (c->guest_done) {
        shutdown(c->fd, SHUT_WR);
    }
}

static void data(struct virtio_vsock *v, struct conn *c, const struct vsock_hdr *h)
{
    if (h->len > BUFFER - c->out_len) { /* more than it was allowed to */
        reply(v, c, OP_RST);
        close_conn(c);
        return;
    }
    c->out_len += (u32)vq_copy_out(&v->chain, sizeof(*h), c->out + c->out_len, h->len);
    pump_out(v, c);
}

static void packet(struct virtio_vsock *v, const struct vsock_hdr *h)
{
    struct conn *c = find(v, h->src_port, h->dst_port);
    struct conn nobody = { .guest_port = h->src_port, .host_port = h->dst_port, .fd = -1 };
    char ok[32];

    if (h->src_cid != v->config || h->dst_cid != HOST_CID || h->type != TYPE_STREAM ||
        h->len > v->chain.out_len - sizeof(*h))
        return;
    if (c) {
        c->peer_alloc = h->buf_alloc;
        c->peer_taken = h->fwd_cnt;
    }
    if (!c && h->op == OP_REQUEST) {
        request(v, h);
    } else if (!c) {
        if (h->op != OP_RST)
            reply(v, &nobody, OP_RST);
    } else if (h->op == OP_RESPONSE && c->state == CONNECTING) {
        c->state = OPEN;
        int n = snprintf(ok, sizeof(ok), "OK %u\n", c->host_port);
        (void)!send(c->fd, ok, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
    } else if (h->op == OP_RW && c->state == OPEN) {
        data(v, c, h);
    } else if (h->op == OP_CREDIT_REQUEST) {
        reply(v, c, OP_CREDIT_UPDATE);
    } else if (h->op == OP_SHUTDOWN) {
        c->guest_done |= (h->flags & SHUT_SEND) != 0;
        c->guest_gone |= (h->flags & (SHUT_SEND | SHUT_RECEIVE)) == (SHUT_SEND | SHUT_RECEIVE);
        pump_out(v, c);
    } else if (h->op == OP_RST || h->op == OP_REQUEST) {
        if (h->op == OP_REQUEST)
            reply(v, c, OP_RST);
        close_conn(c);
    }
}

static void transmit(struct virtio_vsock *v)
{
    struct virtio_queue *q = &v->dev.queue[Q_TX];
    struct vsock_hdr h;
    pthread_mutex_lock(&q->lock);
    while (atomic_load(&v->dev.running) && v->nr_replies < REPLIES_MAX / 2 &&
           (virtio_pop(q, &v->chain) || (!virtio_idle(q) && virtio_pop(q, &v->chain)))) {
        if (vq_copy_out(&v->chain, 0, &h, sizeof(h)) == sizeof(h))
            packet(v, &h);
        vq_push(&q->vq, v->chain.id, v->chain.nr_desc, 0);
    }
    virtio_interrupt(q);
    pthread_mutex_unlock(&q->lock);
}

/* -- Clients of the host's ---------------------------------------------------------------------- */

/* "CONNECT PORT\n": read byte by byte, what follows is for the guest. */
static void greet(struct virtio_vsock *v, struct conn *c)
{
    char ch, end;
    ssize_t n;
    while ((n = recv(c->fd, &ch, 1, MSG_DONTWAIT)) == 1) {
        if (ch != '\n') {
            if (c->line_len + 1 < sizeof(c->line)) {
                c->line[c->line_len++] = ch;
                continue;
            }
            close_conn(c);
            return;
        }
        if (sscanf(c->line, "CONNECT %u%c", &c->guest_port, &end) != 1 || !atomic_load(&v->dev.running)) {
            close_conn(c); /* nonsense; or there is no driver to ask */
            return;
        }
        c->host_port = FIRST_HOST_PORT + v->next_port++ % 0x3fffffff;
        c->state = CONNECTING;
        reply(v, c, OP_REQUEST);
        return;
    }
    if (n == 0 || (errno != EAGAIN && errno != EINTR))
        close_conn(c);
}

static void accept_client(struct virtio_vsock *v)
{
    int fd = accept4(unixsock_fd(v->listener), NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0 && !new_conn(v, fd, GREETING))
        close(fd);
}

static short wanted(const struct conn *c, bool room)
{
    bool read = c->state == GREETING || (c->state == OPEN && !c->ended && !c->guest_gone && room && credit(c));
    return (short)((read ? POLLIN : 0) | (c->state == OPEN && c->out_len ? POLLOUT : 0));
}

static void *vsock_main(void *arg)
{
    struct virtio_vsock *v = arg;
    u64 count;

    sandbox_enter(SANDBOX_UNIX);
    while (!atomic_load(&v->quit)) {
        park_point(&v->park);
        struct pollfd pfd[2 + CONNS_MAX];
        pthread_mutex_lock(&v->dev.queue[Q_RX].lock);
        bool room = vq_has_more(&v->dev.queue[Q_RX].vq); /* if not, the guest wakes us when it makes room */
        pthread_mutex_unlock(&v->dev.queue[Q_RX].lock);
        pfd[0] = (struct pollfd){ .fd = v->wake_fd, .events = POLLIN };
        bool accepts = v->nr_replies < REPLIES_MAX / 2; /* else the guest takes none */
        pfd[1] = (struct pollfd){ .fd = accepts ? unixsock_fd(v->listener) : -1, .events = POLLIN };
        for (unsigned i = 0; i < CONNS_MAX; i++) {
            const struct conn *c = &v->conn[i];
            short events = c->state == FREE ? 0 : wanted(c, room);
            pfd[2 + i] = (struct pollfd){ .fd = events || c->state == CONNECTING ? c->fd : -1, .events = events };
        }
        poll(pfd, ARRAY_SIZE(pfd), -1);
        if (pfd[0].revents)
            (void)!read(v->wake_fd, &count, sizeof(count));
        if (atomic_exchange(&v->reset, false)) { /* the driver knows of no connection any more */
            for (unsigned i = 0; i < CONNS_MAX; i++)
                close_conn(&v->conn[i]);
            v->nr_replies = 0;
            continue;
        }
        send_reset(v);
        if (pfd[1].revents)
            accept_client(v);
        for (unsigned i = 0; i < CONNS_MAX; i++) {
            struct conn *c = &v->conn[i];
            if (!pfd[2 + i].revents || c->state == FREE)
                continue;
            if (c->state == GREETING) {
                greet(v, c);
            } else if (c->state == CONNECTING) { /* it has not waited for the guest's answer */
                reply(v, c, OP_RST);
                close_conn(c);
            } else if (pfd[2 + i].revents & POLLOUT) {
                pump_out(v, c);
            } else {
                pump_in(v, c);
            }
        }
        transmit(v);
        send_replies(v);
        transmit(v); /* what waited for room among the replies */
        send_replies(v);
    }
    return NULL;
}

static void vsock_notify(struct virtio_queue *q)
{
    struct virtio_vsock *v = vsock_of(q->dev);

    if (q->index != Q_EVENT || atomic_load(&v->tell_reset))
        wake(v);
}

static void vsock_stop(struct virtio_dev *dev)
{
    atomic_store(&vsock_of(dev)->reset, true);
    wake(vsock_of(dev));
}

static void vsock_start(struct virtio_dev *dev)
{
    atomic_store(&vsock_of(dev)->tell_reset, false); /* a new driver has no connections */
}

static void vsock_restored(struct virtio_dev *dev)
{
    atomic_store(&vsock_of(dev)->tell_reset, true);
}

static void vsock_drain(struct virtio_dev *dev)
{
    struct virtio_vsock *v = vsock_of(dev);

    park_want(&v->park);
    wake(v);
    park_wait(&v->park);
}

static void vsock_resume(struct virtio_dev *dev)
{
    park_release(&vsock_of(dev)->park);
    wake(vsock_of(dev)); /* what came meanwhile */
}

static void vsock_end(struct virtio_dev *dev)
{
    struct virtio_vsock *v = vsock_of(dev);
    if (!v->running)
        return;
    atomic_store(&v->quit, true);
    park_release(&v->park);
    wake(v);
    pthread_join(v->thread, NULL);
    v->running = false;
}

static void vsock_fini(struct virtio_dev *dev)
{
    struct virtio_vsock *v = vsock_of(dev);
    for (unsigned i = 0; i < CONNS_MAX; i++)
        close_conn(&v->conn[i]);
    unixsock_close(v->listener);
    close(v->wake_fd);
    free(v);
}

static const struct state_field vsock_fields[] = { STATE(struct virtio_vsock, next_port), STATE_END };
_Static_assert(offsetof(struct virtio_vsock, dev) == 0, "virtio_class.state");

static const struct virtio_class vsock_class = {
    .name = "virtio-vsock", .id = 19, .pci_class = 0x028000, .notify = vsock_notify, .stop = vsock_stop,
    .end = vsock_end, .fini = vsock_fini, .start = vsock_start, .restored = vsock_restored, .state = vsock_fields,
    .drain = vsock_drain, .resume = vsock_resume,
};

int virtio_vsock_create(struct ram *ram, const char *path, u32 cid, struct virtio_dev **out)
{
    struct virtio_vsock *v = calloc(1, sizeof(*v));
    sigset_t all, old;

    if (!v)
        return -ENOMEM;
    for (unsigned i = 0; i < CONNS_MAX; i++)
        v->conn[i].fd = -1;
    v->config = cid;
    v->park = (struct park)PARK_INIT;
    snprintf(v->path, sizeof(v->path), "%s", path);
    v->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int err = v->wake_fd < 0 ? -errno : unixsock_listen(path, &v->listener);
    if (!err)
        err = virtio_init(&v->dev, &vsock_class, ram, 0, NR_QUEUES, QUEUE_SIZE, &v->config, sizeof(v->config));
    if (!err) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        err = -pthread_create(&v->thread, NULL, vsock_main, v);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        v->running = !err;
    }
    if (err) {
        vsock_fini(&v->dev);
        return err;
    }
    *out = &v->dev;
    return 0;
}
