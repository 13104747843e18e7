/* config.c - what the command line left open: the default guest, and the kernel's command line. */
#include "monitor/config.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where the default guest may be, relative to the executable's folder. */
static const char *const guest_dirs[] = {
    "guest",          /* build/vitro -> build/guest              */
    "../build/guest", /* build-asan/vitro, build-torture/vitro   */
    "../share/vitro", /* PREFIX/bin/vitro                        */
};

/* "" when there is no such file in any of them. */
static void find_default(const char *exe_dir, const char *name, char *path,
                         size_t len)
{
    for (unsigned i = 0; i < ARRAY_SIZE(guest_dirs); i++) {
        int n = snprintf(path, len, "%s/%s/%s", exe_dir, guest_dirs[i], name);
        if (n > 0 && (size_t)n < len && !access(path, F_OK))
            return;
    }
    path[0] = '\0';
}

static bool names_console(const char *s)
{
    while ((s = strstr(s, "console="))) {
        if (s[-1] == ' ')
            return true;
        s++;
    }
    return false;
}

int config_complete(struct config *c)
{
    if (!c->kernel) {
        char exe[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
        if (n <= 0)
            n = 0;
        exe[n] = '\0';
        char *slash = strrchr(exe, '/');
        if (slash)
            *slash = '\0';
        find_default(exe, "vmlinuz", c->kernel_path, sizeof(c->kernel_path));
        if (!c->kernel_path[0]) {
            say("no default guest here; `make run` fetches it, or name one "
                "with --kernel FILE");
            return STATUS_FAIL;
        }
        c->kernel = c->kernel_path;
        if (!c->initrd) {
            find_default(exe, "initrd.img", c->initrd_path,
                         sizeof(c->initrd_path));
            if (c->initrd_path[0])
                c->initrd = c->initrd_path;
        }
    }

    /* The leading space lets names_console look one byte back. */
    char user[CONFIG_CMDLINE_MAX];
    int n = snprintf(user, sizeof(user), " %s", c->append ? c->append : "");
    if (n >= 0 && (size_t)n < sizeof(user))
        n = snprintf(c->cmdline, sizeof(c->cmdline), "%s%s",
                     names_console(user) ? "" : "console=ttyS0",
                     user[1] ? user : "");
    if (n < 0 || (size_t)n >= sizeof(c->cmdline)) {
        say("--append: longer than any kernel takes (%d bytes)",
            CONFIG_CMDLINE_MAX - 1);
        return STATUS_USAGE;
    }
    if (c->cmdline[0] == ' ')
        memmove(c->cmdline, c->cmdline + 1, strlen(c->cmdline));
    return STATUS_OK;
}
