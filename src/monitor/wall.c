#include "monitor/wall.h"
#include "base/sandbox.h"
#include "monitor/config.h"
#include "monitor/tty.h"
#include <string.h>
#include <unistd.h>

/* In a signal handler, on the thread that asked for it. */
static void on_refused(int nr, const char *thread)
{
    char line[200];
    int n = snprintf(line, sizeof(line), "vitro: sandbox: a %s thread wanted system call %d; if the guest is not hostile this "
                     "is a bug, please report it (--sandbox off runs without)\n", thread, nr);

    tty_restore();
    (void)!write(STDERR_FILENO, line, (size_t)n);
    _exit(STATUS_FAIL);
}

void wall_start(void)
{
    int r = sandbox_start(on_refused);

    if (r)
        say("no sandbox: the host refuses seccomp filters: %s; --sandbox off says that you know", strerror(-r));
}
