/* io_thread.c - poll(2) and not epoll(7), because stdin may be a plain file. See io_thread.h. */
#define _GNU_SOURCE /* pthread_setname_np */
#include "machine/io_thread.h"
#include "base/sandbox.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void wake(struct io_thread *io)
{
    u64 one = 1;
    ssize_t n = write(io->wake_fd, &one, sizeof(one));
    (void)n; /* can only fail when already woken 2^64-2 times */
}

static void drain(int fd)
{
    u64 count;
    ssize_t n = read(fd, &count, sizeof(count));
    (void)n; /* nonblocking: nothing there is fine */
}

static void io_turn(struct io_thread *io)
{
    struct pollfd pfd[2 + IO_FD_MAX];
    int slot_of[2 + IO_FD_MAX];
    nfds_t n = 2;

    pfd[0] = (struct pollfd){ .fd = io->wake_fd, .events = POLLIN };
    pfd[1] = (struct pollfd){ .fd = io->clock->timer_fd, .events = POLLIN };
    pthread_mutex_lock(&io->lock);
    for (int i = 0; i < IO_FD_MAX; i++) {
        if (io->fds[i].fd < 0 || !io->fds[i].events)
            continue;
        slot_of[n] = i;
        pfd[n++] = (struct pollfd){ .fd = io->fds[i].fd, .events = (short)io->fds[i].events };
    }
    pthread_mutex_unlock(&io->lock);

    if (poll(pfd, n, -1) < 0)
        return; /* EINTR: look again */
    if (pfd[0].revents)
        drain(io->wake_fd);
    if (pfd[1].revents) {
        drain(io->clock->timer_fd);
        clock_run(io->clock);
    }
    for (nfds_t i = 2; i < n; i++) {
        if (!pfd[i].revents)
            continue;
        pthread_mutex_lock(&io->lock);
        struct io_fd watch = io->fds[slot_of[i]];
        pthread_mutex_unlock(&io->lock);
        if (watch.fd == pfd[i].fd && watch.events)
            watch.fn(watch.opaque, watch.fd, (unsigned)pfd[i].revents);
    }
}

static void *io_main(void *arg)
{
    struct io_thread *io = arg;
    sandbox_enter(SANDBOX_IO);
    while (!atomic_load(&io->stop))
        io_turn(io);
    return NULL;
}

int io_thread_init(struct io_thread *io, struct vm_clock *clock)
{
    *io = (struct io_thread){ .clock = clock };
    for (int i = 0; i < IO_FD_MAX; i++)
        io->fds[i].fd = -1;
    io->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (io->wake_fd < 0)
        return -errno;
    pthread_mutex_init(&io->lock, NULL);
    return 0;
}

int io_thread_start(struct io_thread *io)
{
    /* Signals from outside are for other threads; what code itself causes cannot be blocked. */
    sigset_t all, old;
    sigfillset(&all);
    static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT };
    for (unsigned i = 0; i < ARRAY_SIZE(own); i++)
        sigdelset(&all, own[i]);
    atomic_store(&io->stop, false);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&io->thread, NULL, io_main, io);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err)
        return -err;
    pthread_setname_np(io->thread, "vitro-io");
    io->running = true;
    return 0;
}

void io_thread_stop(struct io_thread *io)
{
    if (!io->running)
        return;
    atomic_store(&io->stop, true);
    wake(io);
    pthread_join(io->thread, NULL);
    io->running = false;
}

void io_thread_fini(struct io_thread *io)
{
    io_thread_stop(io);
    close(io->wake_fd);
    pthread_mutex_destroy(&io->lock);
}

int io_fd_add(struct io_thread *io, int fd, unsigned events, io_fd_fn *fn, void *opaque)
{
    int slot = -ENOSPC;
    pthread_mutex_lock(&io->lock);
    for (int i = 0; i < IO_FD_MAX; i++) {
        if (io->fds[i].fd >= 0)
            continue;
        io->fds[i] = (struct io_fd){ .fd = fd, .events = events, .fn = fn, .opaque = opaque };
        slot = i;
        break;
    }
    pthread_mutex_unlock(&io->lock);
    wake(io);
    return slot;
}

void io_fd_set_events(struct io_thread *io, int slot, unsigned events)
{
    pthread_mutex_lock(&io->lock);
    bool changed = io->fds[slot].fd >= 0 && io->fds[slot].events != events;
    if (changed)
        io->fds[slot].events = events;
    pthread_mutex_unlock(&io->lock);
    if (changed && !(io->running && pthread_equal(pthread_self(), io->thread)))
        wake(io);
}

void io_fd_remove(struct io_thread *io, int slot)
{
    pthread_mutex_lock(&io->lock);
    io->fds[slot].fd = -1;
    pthread_mutex_unlock(&io->lock);
}
