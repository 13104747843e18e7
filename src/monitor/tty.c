#include "monitor/tty.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

/* Process-wide, because the terminal is; read by signal handlers. */
static struct termios tty_saved, tty_now;
static volatile sig_atomic_t tty_is_raw;
static int tty_fd = -1;

void tty_restore(void)
{
    int saved_errno = errno;

    if (tty_is_raw) {
        tty_is_raw = 0;
        tcsetattr(tty_fd, TCSANOW, &tty_saved);
    }
    errno = saved_errno;
}

/* Continued after a stop: the shell may have changed the terminal meanwhile. */
static void on_continue(int sig)
{
    int saved_errno = errno;

    if (tty_is_raw)
        tcsetattr(tty_fd, TCSANOW, &tty_now);
    errno = saved_errno;
}

static void on_deadly(int sig)
{
    tty_restore();
    /* SA_RESETHAND put the default back: die of the same signal. */
    raise(sig);
}

void tty_catch_signals(void)
{
    static const int deadly[] = { SIGINT,  SIGTERM, SIGHUP, SIGQUIT, SIGABRT,
                                  SIGSEGV, SIGBUS,  SIGFPE, SIGILL };
    struct sigaction sa = { .sa_handler = on_deadly,
                            .sa_flags = (int)SA_RESETHAND | SA_ONSTACK };

    sigemptyset(&sa.sa_mask);
    for (unsigned i = 0; i < ARRAY_SIZE(deadly); i++) {
        struct sigaction old;
        sigaction(deadly[i], NULL, &old);
        /* What the parent had ignored (nohup) stays ignored. */
        if (old.sa_handler == SIG_DFL)
            sigaction(deadly[i], &sa, NULL);
    }
    sa.sa_handler = on_continue;
    sa.sa_flags = SA_RESTART | SA_ONSTACK;
    sigaction(SIGCONT, &sa, NULL);
    /* A closed pipe is a write error, not a reason to die with the terminal raw. */
    signal(SIGPIPE, SIG_IGN);
    atexit(tty_restore);
}

bool tty_raw(int fd)
{
    if (!isatty(fd) || tcgetattr(fd, &tty_saved))
        return false;
    tty_now = tty_saved;
    cfmakeraw(&tty_now);
    tty_now.c_cc[VMIN] = 1;
    tty_now.c_cc[VTIME] = 0;
    tty_fd = fd;
    /* In the background, changing the terminal would stop us; a shell restores it for us anyway. */
    tty_is_raw = 1;
    if (tcsetattr(fd, TCSANOW, &tty_now)) {
        tty_is_raw = 0;
        return false;
    }
    return true;
}
