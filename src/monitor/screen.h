/* screen.h - the VGA's screen: in the terminal as characters, in a file as text or PNG. */
#pragma once
#include "base/types.h"
#include "monitor/keys.h"
#include <pthread.h>

struct console;
struct machine;
struct vga;

struct screen {
    struct machine *machine;
    struct console *console;
    pthread_t thread;
    int stop_fd;
    bool running;
    /* What the terminal shows: to write only what has changed. */
    unsigned cols, rows, cursor;
    u16 *shown;
    struct key_decoder keys;
};

/*
 * screen_start - show the machine's VGA on the console, and type what comes from there. 0 or -errno.
 * screen_stop - show what is there last; leave the terminal's cursor below it.
 */
int screen_start(struct screen *s, struct machine *machine, struct console *console);
void screen_stop(struct screen *s);
/* screen_dump - write what is shown to a file: PNG if its name ends in .png, else characters (UTF-8). 0, or -errno and
 * *why says what is wrong. */
int screen_dump(struct vga *vga, const char *path, const char **why);
