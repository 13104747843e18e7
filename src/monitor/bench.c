/* bench.c - `vitro bench NAME`: the programs of bench/ that drive this executable. See bench.h. */
#include "monitor/bench.h"
#include "monitor/config.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where they may be, relative to the executable's folder: in the source tree, or installed. */
static const char *const dirs[] = { "../bench", "../share/vitro/bench" };

int bench_run(int argc, char **argv)
{
    char exe[PATH_MAX], path[2 * PATH_MAX];

    if (argc < 1 || strspn(argv[0], "abcdefghijklmnopqrstuvwxyz") != strlen(argv[0])) {
        say("bench: which one? There is: pv");
        return STATUS_USAGE;
    }
    ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    if (n <= 0) {
        say("bench: cannot tell where this program is: %s", strerror(errno));
        return STATUS_FAIL;
    }
    exe[n] = '\0';
    setenv("VITRO", exe, 1);
    *strrchr(exe, '/') = '\0';
    for (unsigned i = 0; i < ARRAY_SIZE(dirs); i++) {
        snprintf(path, sizeof(path), "%s/%s/%s/run", exe, dirs[i], argv[0]);
        if (access(path, F_OK))
            continue;
        argv[0] = path;
        execv(path, argv);
        say("bench: cannot start %s: %s", path, strerror(errno));
        return STATUS_FAIL;
    }
    say("bench: there is no benchmark '%s'; there is: pv", argv[0]);
    return STATUS_USAGE;
}
