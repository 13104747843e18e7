#include "monitor/console.h"
#include "base/sandbox.h"
#include "monitor/tty.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CTRL_A 1
#define DRAIN_MS 500 /* how long output may take at the end */
#define GATE_POLL_MS 10

static void console_wake(struct console *con)
{
    u64 one = 1;
    ssize_t n = write(con->wake_fd, &one, sizeof(one));
    (void)n; /* EAGAIN: the counter is full, so it is awake */
}

/* -- Output ------------------------------------------------------------------------------------ */

void console_write(struct console *con, const u8 *bytes, size_t len)
{
    pthread_mutex_lock(&con->lock);
    bool was_empty = con->head == con->tail;
    while (len && !con->out_broken) {
        u32 used = con->tail - con->head;
        if (used == CONSOLE_OUT_SIZE) {
            if (con->stop)
                break;
            pthread_cond_wait(&con->space, &con->lock);
            continue;
        }
        u32 at = con->tail % CONSOLE_OUT_SIZE;
        u32 n = MIN(CONSOLE_OUT_SIZE - used, CONSOLE_OUT_SIZE - at);
        n = (u32)MIN((size_t)n, len);
        memcpy(con->out + at, bytes, n);
        con->tail += n;
        bytes += n;
        len -= n;
        if (con->tail - con->head == CONSOLE_OUT_SIZE)
            console_wake(con);
    }
    pthread_mutex_unlock(&con->lock);
    if (was_empty)
        console_wake(con);
}

/* Write once what is there. False when nothing waits any more, or nobody will ever read it. */
static bool console_drain(struct console *con)
{
    pthread_mutex_lock(&con->lock);
    u32 used = con->tail - con->head, at = con->head % CONSOLE_OUT_SIZE;
    u32 n = MIN(used, CONSOLE_OUT_SIZE - at);
    pthread_mutex_unlock(&con->lock);
    if (!n)
        return false;

    /* Only this thread moves head, and writers never touch what lies before tail. */
    ssize_t done = write(STDOUT_FILENO, con->out + at, MIN(n, 4096u));
    if (done < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    pthread_mutex_lock(&con->lock);
    int err = errno;
    if (done < 0) {
        con->out_broken = true;
        con->head = con->tail;
    } else if (!con->out_broken) {
        con->head += (u32)done;
    }
    bool more = con->head != con->tail;
    pthread_cond_broadcast(&con->space);
    pthread_mutex_unlock(&con->lock);
    if (done < 0)
        con->ops.broken(con->ops.opaque, strerror(err));
    return more;
}

/* -- Input ------------------------------------------------------------------------------------- */

/* Nobody wants the rest of the output: whoever waits to write it goes on at once. */
static void console_discard(struct console *con)
{
    pthread_mutex_lock(&con->lock);
    con->out_broken = true;
    con->head = con->tail;
    pthread_cond_broadcast(&con->space);
    pthread_mutex_unlock(&con->lock);
}

static void console_say(struct console *con, const char *text)
{
    console_write(con, (const u8 *)text, strlen(text));
}

/* A key from a terminal: true if it goes to the guest. */
static bool console_key(struct console *con, u8 key)
{
    if (!con->escape) {
        con->escape = key == CTRL_A;
        return !con->escape;
    }
    con->escape = false;
    switch (key) {
    case 'x':
    case 'X':
        console_discard(con);
        con->ops.leave(con->ops.opaque);
        return false;
    case 'h':
    case 'H':
    case '?':
        console_say(con, "\r\nvitro: Ctrl-A X leaves, Ctrl-A Ctrl-A sends "
                         "Ctrl-A, Ctrl-A H is this help\r\n");
        return false;
    case CTRL_A:
        return true;
    default:
        return false;
    }
}

static void console_read(struct console *con)
{
    u8 buf[1024];
    size_t want = MIN(sizeof(buf), CONSOLE_IN_SIZE - con->in_len);
    ssize_t n = read(STDIN_FILENO, buf, want);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        con->in_open = false; /* end of a pipe or file: the guest goes on */
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        u8 key = buf[i];
        if (!con->is_tty)
            con->in[con->in_len++] = key;
        else if (console_key(con, key))
            con->in[con->in_len++] = key;
    }
}

/*
 * Serial drivers clear the receiver when they probe it and when they start. A person waits for the prompt; a
 * pipe's bytes are all there at once, so they are held back until the driver takes input, however long that is.
 */
static bool console_gate(struct console *con)
{
    if (con->gate_open)
        return true;
    con->gate_open = con->is_tty || con->ops.listening(con->ops.opaque);
    return con->gate_open;
}

static void console_offer(struct console *con)
{
    if (!con->in_len || !console_gate(con))
        return;
    ssize_t n = write(con->feed_fd, con->in, con->in_len);
    if (n <= 0)
        return; /* full: the guest is not reading */
    con->in_len -= (size_t)n;
    memmove(con->in, con->in + n, con->in_len);
}

/* -- The thread -------------------------------------------------------------------------------- */

static void *console_thread(void *arg)
{
    struct console *con = arg;

    sandbox_enter(SANDBOX_CONSOLE);
    for (;;) {
        pthread_mutex_lock(&con->lock);
        bool waiting = con->head != con->tail, stop = con->stop;
        pthread_mutex_unlock(&con->lock);
        if (stop)
            return NULL;
        /*
         * A terminal is read even while the guest takes nothing: Ctrl-A X must work. What it cannot
         * take of a full buffer is lost, as on a real line.
         */
        if (con->is_tty && con->in_len == CONSOLE_IN_SIZE)
            con->in_len = 0;
        bool reading = con->in_open && con->in_len < CONSOLE_IN_SIZE;
        struct pollfd p[4] = {
            { .fd = con->wake_fd, .events = POLLIN },
            { .fd = reading ? STDIN_FILENO : -1, .events = POLLIN },
            { .fd = waiting ? STDOUT_FILENO : -1, .events = POLLOUT },
            { .fd = con->in_len && con->gate_open ? con->feed_fd : -1,
              .events = POLLOUT },
        };
        bool gated = con->in_len && !con->gate_open;
        if (poll(p, 4, gated ? GATE_POLL_MS : -1) < 0 && errno != EINTR)
            return NULL;
        if (p[0].revents & POLLIN) {
            u64 count;
            ssize_t n = read(con->wake_fd, &count, sizeof(count));
            (void)n;
        }
        if (p[1].revents & POLLNVAL)
            con->in_open = false;
        else if (p[1].revents)
            console_read(con);
        console_offer(con);
        if (p[2].revents)
            console_drain(con);
    }
}

size_t console_feed(struct console *con, const u8 *bytes, size_t len)
{
    /* The pipe's end does not block, and writes of up to PIPE_BUF bytes are whole. */
    ssize_t n = write(con->feed_fd, bytes, MIN(len, (size_t)PIPE_BUF));

    return n > 0 ? (size_t)n : 0;
}

int console_start(struct console *con, const struct console_ops *ops, bool detached)
{
    int r, pipe_fd[2];

    memset(con, 0, sizeof(*con));
    con->ops = *ops;
    con->in_open = !detached;
    con->out_broken = detached;
    con->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (con->wake_fd < 0)
        return -errno;
    if (pipe2(pipe_fd, O_NONBLOCK | O_CLOEXEC)) {
        r = -errno;
        goto close_wake;
    }
    con->guest_fd = pipe_fd[0];
    con->feed_fd = pipe_fd[1];
    pthread_mutex_init(&con->lock, NULL);
    pthread_cond_init(&con->space, NULL);
    con->is_tty = !detached && tty_raw(STDIN_FILENO);
    r = pthread_create(&con->thread, NULL, console_thread, con);
    if (r) {
        r = -r;
        goto restore;
    }
    con->running = con->started = true;
    return 0;
restore:
    tty_restore();
    pthread_cond_destroy(&con->space);
    pthread_mutex_destroy(&con->lock);
    close(con->feed_fd);
    close(con->guest_fd);
close_wake:
    close(con->wake_fd);
    return r;
}

void console_stop(struct console *con)
{
    if (!con->running)
        return;
    pthread_mutex_lock(&con->lock);
    con->stop = true;
    pthread_cond_broadcast(&con->space);
    pthread_mutex_unlock(&con->lock);
    console_wake(con);
    pthread_join(con->thread, NULL);
    con->running = false;

    for (;;) {
        struct pollfd p = { .fd = STDOUT_FILENO, .events = POLLOUT };
        if (con->out_broken || con->head == con->tail ||
            poll(&p, 1, DRAIN_MS) <= 0 || !console_drain(con))
            break;
    }
    tty_restore();
}

void console_fini(struct console *con)
{
    if (!con->started)
        return;
    con->started = false;
    close(con->feed_fd);
    close(con->guest_fd);
    close(con->wake_fd);
    pthread_cond_destroy(&con->space);
    pthread_mutex_destroy(&con->lock);
}
