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
    bool until_serial;  /* it makes way for the serial line */
    pthread_mutex_t lock;
    bool over;          /* has done so */
    /* What the terminal shows: to write only what has changed. */
    unsigned cols, rows, cursor;
    u16 *shown;
    struct key_decoder keys;
};

/*
 * screen_start - show the machine's VGA on the console, and type what comes from there. 0 or -errno.
 * @until_serial: only until screen_make_way()
 * screen_make_way - something came on the serial line, and is about to be written: the terminal is its from now on, and what
 * is typed there. Any thread, also with the UART's lock held; before screen_start() and after the first time nothing.
 * screen_stop - show what is there last; leave the terminal's cursor below it.
 */
int screen_start(struct screen *s, struct machine *machine, struct console *console, bool until_serial);
void screen_make_way(struct screen *s);
void screen_stop(struct screen *s);
/* screen_dump - write what is shown to a file: PNG if its name ends in .png, else characters (UTF-8). 0, or -errno and
 * *why says what is wrong. */
int screen_dump(struct vga *vga, const char *path, const char **why);
