/*
 * io_thread.h - the machine's one I/O thread: sleeps in poll(2) until a timer is due, a watched
 * descriptor is ready, or someone wakes it. Timers and fd callbacks run on it, with no lock held.
 */
#pragma once
#include "base/types.h"
#include "machine/clock.h"
#include <stdatomic.h>

#define IO_FD_MAX 32

typedef void io_fd_fn(void *opaque, int fd, unsigned revents);

struct io_fd {
    int fd;          /* -1: free slot */
    unsigned events; /* POLLIN, POLLOUT; 0: paused */
    io_fd_fn *fn;
    void *opaque;
};

struct io_thread {
    struct vm_clock *clock;
    int wake_fd;
    bool running;
    atomic_bool stop;
    pthread_t thread;
    pthread_mutex_t lock;
    struct io_fd fds[IO_FD_MAX];
};

int io_thread_init(struct io_thread *io, struct vm_clock *clock);
int io_thread_start(struct io_thread *io);
/* io_thread_stop - returns when the thread has ended: no callback runs after it. */
void io_thread_stop(struct io_thread *io);
void io_thread_fini(struct io_thread *io);

/* io_fd_add - watch fd; the caller keeps owning it. A slot number, or -ENOSPC. Any thread. */
int io_fd_add(struct io_thread *io, int fd, unsigned events, io_fd_fn *fn, void *opaque);
/* io_fd_set_events - change what is waited for; 0 pauses. Any thread. */
void io_fd_set_events(struct io_thread *io, int slot, unsigned events);
/* io_fd_remove - from a callback, or before start or after stop. */
void io_fd_remove(struct io_thread *io, int slot);
