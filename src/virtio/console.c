/*
 * console.c - virtio console, /dev/hvc0 in Linux. Source: virtio 1.2 §5.3; not offered: several ports, emergency writes.
 * Threads: one of its own for the socket. What the guest writes is put into a backlog on the vCPU's thread, and sent by that
 * thread GATHER_MS after the first byte: a system call, and the client's waking, for what came meanwhile, not for each line.
 * Lock order: a queue's lock, then con->lock.
 */
#include "virtio/console.h"
#include "base/park.h"
#include "base/sandbox.h"
#include "net/unixsock.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define QUEUE_SIZE 64
#define BACKLOG (64u << 10) /* bytes of output kept for a slow client */
#define GATHER_MS 1
#define GATHER_BYTES (BACKLOG / 4) /* so much is not gathered any longer */
enum { Q_RX, Q_TX, NR_QUEUES };

struct virtio_console {
    struct virtio_dev dev;
    struct { u16 cols, rows; u32 max_ports, emerg; } config;
    struct vq_chain chain[NR_QUEUES]; /* under each queue's lock */
    struct unixsock *listener;
    int wake_fd;
    pthread_t thread;
    bool running;
    atomic_bool quit;
    struct park park;
    pthread_mutex_t lock;             /* what follows */
    int client;                       /* -1: none */
    bool told;                        /* the thread knows that there is a backlog, or will find it */
    u8 backlog[BACKLOG];
    u32 len;
};

static struct virtio_console *console_of(const struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_console, dev);
}

static void wake(struct virtio_console *con)
{
    u64 one = 1;
    (void)!write(con->wake_fd, &one, sizeof(one));
}

/* With con->lock held: as much of the backlog as the client takes. */
static void flush_backlog(struct virtio_console *con)
{
    if (con->client < 0) {
        con->len = 0;
        con->told = false;
        return;
    }
    ssize_t n = con->len ? send(con->client, con->backlog, con->len, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    if (n > 0) {
        memmove(con->backlog, con->backlog + n, con->len - (size_t)n);
        con->len -= (u32)n;
    }
    if (!con->len)
        con->told = false;
}

static void flush(struct virtio_console *con)
{
    pthread_mutex_lock(&con->lock);
    flush_backlog(con);
    pthread_mutex_unlock(&con->lock);
}

/* Take output as long as there is room for it. */
static void transmit(struct virtio_console *con, bool send_now)
{
    struct virtio_queue *q = &con->dev.queue[Q_TX];
    struct vq_chain *c = &con->chain[Q_TX];

    pthread_mutex_lock(&q->lock);
    pthread_mutex_lock(&con->lock);
    if (send_now || con->client < 0)
        flush_backlog(con);
    while (virtio_pop(q, c) || (!virtio_idle(q) && virtio_pop(q, c))) {
        if (c->out_len > BACKLOG - con->len)
            flush_backlog(con);
        u64 room = BACKLOG - con->len;
        if (c->out_len > room && con->len) {
            vq_unpop(&q->vq, c->nr_desc); /* later, when the client has read */
            break;
        }
        con->len += (u32)vq_copy_out(c, 0, con->backlog + con->len, room); /* more at once than anybody sends is cut */
        if (send_now || con->client < 0 || con->len >= GATHER_BYTES)
            flush_backlog(con);
        vq_push(&q->vq, c->id, c->nr_desc, 0);
    }
    bool tell = con->len && !con->told;
    con->told = con->len;
    pthread_mutex_unlock(&con->lock);
    virtio_interrupt(q);
    pthread_mutex_unlock(&q->lock);
    if (tell)
        wake(con);
}

/* From the client to the guest. False: the guest has no buffer, or the client is gone (*gone). */
static bool receive(struct virtio_console *con, int client, bool *gone)
{
    struct virtio_queue *q = &con->dev.queue[Q_RX];
    struct vq_chain *c = &con->chain[Q_RX];
    bool taken = false;

    pthread_mutex_lock(&q->lock);
    if (atomic_load(&con->dev.running) && virtio_pop(q, c)) {
        u8 buf[1024];
        ssize_t n = recv(client, buf, (size_t)MIN(c->in_len, sizeof(buf)), MSG_DONTWAIT);
        if (n > 0) {
            vq_copy_in(c, 0, buf, (u64)n);
            vq_written(q->dev->ram, c, (u64)n);
            vq_push(&q->vq, c->id, c->nr_desc, (u32)n);
            virtio_interrupt(q);
            taken = true;
        } else {
            vq_unpop(&q->vq, c->nr_desc);
            *gone = c->in_len && (n == 0 || (errno != EAGAIN && errno != EINTR));
        }
    } else {
        taken = !virtio_idle(q);
    }
    pthread_mutex_unlock(&q->lock);
    return taken;
}

static void set_client(struct virtio_console *con, int fd)
{
    pthread_mutex_lock(&con->lock);
    if (con->client >= 0)
        close(con->client);
    con->client = fd;
    con->len = 0;
    con->told = false;
    pthread_mutex_unlock(&con->lock);
}

static void *console_main(void *arg)
{
    struct virtio_console *con = arg;
    bool room = true; /* the guest may have a buffer */
    bool due = false; /* what was gathered is to go out as soon as the client takes it */
    u64 count;

    sandbox_enter(SANDBOX_UNIX);
    while (!atomic_load(&con->quit)) {
        if (park_wanted(&con->park))
            flush(con);
        if (park_point(&con->park) && atomic_load(&con->dev.running)) {
            room = true;
            transmit(con, true); /* out of a snapshot: what waits there would wait for a client that is not there any more */
        }
        pthread_mutex_lock(&con->lock);
        int client = con->client;
        bool backlog = con->len;
        pthread_mutex_unlock(&con->lock);
        due = due && backlog;
        struct pollfd pfd[3] = {
            { .fd = con->wake_fd, .events = POLLIN },
            { .fd = client < 0 ? unixsock_fd(con->listener) : -1, .events = POLLIN },
            { .fd = client, .events = (short)((room ? POLLIN : 0) | (due ? POLLOUT : 0)) },
        };
        poll(pfd, 3, backlog && !due ? GATHER_MS : -1);
        due |= backlog;
        if (pfd[0].revents) {
            (void)!read(con->wake_fd, &count, sizeof(count));
            room = true;
        }
        if (pfd[1].revents) {
            int fd = accept4(unixsock_fd(con->listener), NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0)
                set_client(con, fd);
            room = true;
        }
        bool gone = pfd[2].revents & (POLLERR | POLLNVAL);
        if (pfd[2].revents & POLLOUT)
            transmit(con, true);
        if (pfd[2].revents & (POLLIN | POLLHUP))
            room = receive(con, client, &gone);
        if (gone || (!room && (pfd[2].revents & POLLHUP)))
            set_client(con, -1);
    }
    flush(con);
    return NULL;
}

static void console_notify(struct virtio_queue *q)
{
    if (q->index == Q_TX)
        transmit(console_of(q->dev), false);
    else
        wake(console_of(q->dev));
}

static void console_drain(struct virtio_dev *dev)
{
    struct virtio_console *con = console_of(dev);

    park_want(&con->park);
    wake(con);
    park_wait(&con->park);
}

static void console_resume(struct virtio_dev *dev)
{
    park_release(&console_of(dev)->park);
}

static void console_end(struct virtio_dev *dev)
{
    struct virtio_console *con = console_of(dev);
    if (!con->running)
        return;
    atomic_store(&con->quit, true);
    park_release(&con->park);
    wake(con);
    pthread_join(con->thread, NULL);
    con->running = false;
}

static void console_fini(struct virtio_dev *dev)
{
    struct virtio_console *con = console_of(dev);
    if (con->client >= 0)
        close(con->client);
    unixsock_close(con->listener);
    close(con->wake_fd);
    pthread_mutex_destroy(&con->lock);
    free(con);
}

static const struct virtio_class console_class = {
    .name = "virtio-console", .id = 3, .pci_class = 0x078000, .notify = console_notify, .end = console_end,
    .fini = console_fini, .drain = console_drain, .resume = console_resume,
};

int virtio_console_create(struct ram *ram, const char *path, struct virtio_dev **out)
{
    struct virtio_console *con = calloc(1, sizeof(*con));
    sigset_t all, old;

    if (!con)
        return -ENOMEM;
    con->client = -1;
    con->park = (struct park)PARK_INIT;
    pthread_mutex_init(&con->lock, NULL);
    con->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int err = con->wake_fd < 0 ? -errno : unixsock_listen(path, &con->listener);
    if (!err)
        err = virtio_init(&con->dev, &console_class, ram, 0, NR_QUEUES, QUEUE_SIZE, &con->config, sizeof(con->config));
    if (!err) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        err = -pthread_create(&con->thread, NULL, console_main, con);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        con->running = !err;
    }
    if (err) {
        console_fini(&con->dev);
        return err;
    }
    *out = &con->dev;
    return 0;
}
