/*
 * console.h - the guest's serial console on stdin and stdout, which may be a terminal, pipes, files
 * or closed. One thread moves bytes both ways, so that a stalled reader of our output stops neither
 * the keyboard nor the guest's devices; the guest waits only once the buffer is full.
 */
#pragma once
#include "base/types.h"
#include <pthread.h>

#define CONSOLE_OUT_SIZE 65536u /* a power of two */
#define CONSOLE_IN_SIZE 4096u

/* What the console wants from the rest; called on its thread with no lock held. */
struct console_ops {
    void *opaque;
    /* Does the guest's serial driver take input yet? What comes before is lost on a real line. */
    bool (*listening)(void *opaque);
    void (*leave)(void *opaque);                    /* Ctrl-A X */
    void (*broken)(void *opaque, const char *what); /* output is gone */
};

struct console {
    struct console_ops ops;
    pthread_t thread;
    int wake_fd;
    int guest_fd; /* input for the guest comes out of this pipe: for machine_console_attach() */
    int feed_fd;  /* the end the thread writes to; full while the guest takes nothing */
    bool is_tty, running;
    bool in_open;   /* console thread only, like what follows */
    bool started;
    bool escape;    /* Ctrl-A was typed */
    bool gate_open; /* input may go to the guest */
    u8 in[CONSOLE_IN_SIZE];
    size_t in_len;

    pthread_mutex_t lock; /* what follows */
    pthread_cond_t space;
    u8 out[CONSOLE_OUT_SIZE];
    u32 head, tail; /* free running; tail - head bytes wait */
    bool stop, out_broken;
};

/*
 * console_start - makes the terminal raw, starts the thread. detached: stdin and stdout are left alone, output
 * goes nowhere. 0 or -errno.
 */
int console_start(struct console *con, const struct console_ops *ops, bool detached);
/* console_feed - input from somewhere else, as if typed. How much was taken now. Any thread. */
size_t console_feed(struct console *con, const u8 *bytes, size_t len);
/* console_write - bytes from the guest; waits when the buffer is full. Any thread. */
void console_write(struct console *con, const u8 *bytes, size_t len);
/* console_stop - writes what waits (for at most a moment if nobody reads), restores the terminal. */
void console_stop(struct console *con);
/* console_fini - once nobody can write or read it any more: the machine is gone. */
void console_fini(struct console *con);
