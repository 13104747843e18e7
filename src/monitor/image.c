/*
 * image.c - `vitro image debian NAME`. Putting a distribution on a disk is a matter of its own tools, so that is a shell
 * script (tools/image-debian), found beside the executable or where `make install` puts it.
 */
#include "monitor/image.h"
#include "monitor/config.h"
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

/* Relative to the executable's folder. */
static const char *const tool_dirs[] = {
    "../tools",       /* build/vitro of the source tree */
    "../share/vitro", /* PREFIX/bin/vitro               */
};
static const char *const kinds[] = { "debian" };

static void help(void)
{
    printf("usage: vitro image debian NAME [OPTION]...\n\n"
           "make a VM with an operating system on a disk of its own, for `vitro run NAME`.\n\n"
           "  debian             Debian 12, from its packages; vitro image debian --help\n");
}

int image_run(int argc, char **argv)
{
    char exe[PATH_MAX], path[PATH_MAX + 64];
    bool known = false;

    if (argc && (!strcmp(argv[0], "--help") || !strcmp(argv[0], "-h"))) {
        help();
        return STATUS_OK;
    }
    for (unsigned i = 0; argc && i < ARRAY_SIZE(kinds); i++)
        known |= !strcmp(argv[0], kinds[i]);
    if (!known) {
        say("image: %s%s; there is: debian. See vitro image --help", argc ? "no image of " : "say of what",
            argc ? argv[0] : "");
        return STATUS_USAGE;
    }
    ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    exe[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(exe, '/');
    if (slash)
        *slash = '\0';
    for (unsigned i = 0; i < ARRAY_SIZE(tool_dirs); i++) {
        snprintf(path, sizeof(path), "%s/%s/image-%s", exe, tool_dirs[i], argv[0]);
        argv[0] = path;
        execv(path, argv); /* argv ends with NULL, as main's does */
        argv[0] = (char *)kinds[0];
    }
    say("image: cannot start %s: %s", path, strerror(errno));
    return STATUS_FAIL;
}
