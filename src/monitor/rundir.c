#include "monitor/rundir.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

bool rundir_name_ok(const char *name)
{
    size_t len = strlen(name);

    if (!len || len > VM_NAME_MAX || strchr("-_.", name[0]))
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == len;
}

/* -- The folder -------------------------------------------------------------------------------- */

static bool is_our_folder(const char *path)
{
    struct stat st;

    return !lstat(path, &st) && S_ISDIR(st.st_mode) && st.st_uid == geteuid();
}

int rundir_open(char *path, size_t len, char *err, size_t err_len)
{
    const char *xdg = getenv("XDG_RUNTIME_DIR");
    char base[128];
    struct stat st;
    int n;

    snprintf(base, sizeof(base), "/run/user/%u", (unsigned)geteuid());
    if (xdg && xdg[0] == '/')
        n = snprintf(path, len, "%s/vitro", xdg);
    else if (is_our_folder(base))
        n = snprintf(path, len, "%s/vitro", base);
    else
        n = snprintf(path, len, "/tmp/vitro-%u", (unsigned)geteuid());
    if (n < 0 || (size_t)n >= len) {
        snprintf(err, err_len, "XDG_RUNTIME_DIR is too long");
        return -ENAMETOOLONG;
    }
    if (mkdir(path, 0700) && errno != EEXIST) {
        n = errno;
        snprintf(err, err_len, "cannot make %s: %s", path, strerror(n));
        return -n;
    }
    /* /tmp is everybody's: what is there may be somebody's trap. */
    if (lstat(path, &st)) {
        n = errno;
        snprintf(err, err_len, "%s: %s", path, strerror(n));
        return -n;
    }
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077)) {
        snprintf(err, err_len, "%s is not a folder that only you can enter; remove it, or set XDG_RUNTIME_DIR", path);
        return -EPERM;
    }
    return 0;
}

int rundir_file(char *path, size_t len, const char *dir, const char *name, const char *suffix)
{
    int n = snprintf(path, len, "%s/%s.%s", dir, name, suffix);

    return n < 0 || (size_t)n >= MIN(len, sizeof(((struct sockaddr_un *)0)->sun_path)) ? -ENAMETOOLONG : 0;
}

/* -- Names ------------------------------------------------------------------------------------- */

static const char *const suffixes[] = { "qmp", "console", "lock" };

static void remove_files(const char *dir, const char *name)
{
    char path[PATH_MAX];

    for (unsigned i = 0; i < ARRAY_SIZE(suffixes); i++)
        if (!rundir_file(path, sizeof(path), dir, name, suffixes[i]))
            unlink(path);
}

/* Is the file that we have locked still the one of that name? Its last owner may just have removed it. */
static bool still_there(int fd, const char *path)
{
    struct stat a, b;

    return !fstat(fd, &a) && !stat(path, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static int open_lock(const char *dir, const char *name, int flags)
{
    char path[PATH_MAX];
    int r = rundir_file(path, sizeof(path), dir, name, "lock");

    if (r)
        return r;
    for (;;) {
        int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
        if (fd < 0)
            return -errno;
        if (flock(fd, LOCK_EX | LOCK_NB)) {
            r = errno == EWOULDBLOCK ? -EEXIST : -errno;
            close(fd);
            return r;
        }
        if (still_there(fd, path))
            return fd;
        close(fd);
    }
}

int rundir_claim(const char *dir, const char *name)
{
    const struct timespec nap = { .tv_nsec = 20 * 1000 * 1000 };
    int fd = open_lock(dir, name, O_CREAT);
    char path[PATH_MAX];

    /* Whoever looks whether the name runs holds the lock for a moment. */
    for (unsigned i = 0; fd == -EEXIST && i < 5; i++) {
        nanosleep(&nap, NULL);
        fd = open_lock(dir, name, O_CREAT);
    }
    if (fd < 0)
        return fd;
    for (unsigned i = 0; i + 1 < ARRAY_SIZE(suffixes); i++)
        if (!rundir_file(path, sizeof(path), dir, name, suffixes[i]))
            unlink(path);
    if (ftruncate(fd, 0) || dprintf(fd, "%d\n", (int)getpid()) < 0) {
        int err = errno;
        rundir_release(dir, name, fd);
        return -err;
    }
    return fd;
}

void rundir_release(const char *dir, const char *name, int lock_fd)
{
    remove_files(dir, name);
    close(lock_fd);
}

bool rundir_is_running(const char *dir, const char *name, pid_t *pid)
{
    char path[PATH_MAX], text[24] = "";

    *pid = 0;
    int fd = open_lock(dir, name, 0);
    if (fd >= 0) { /* its owner is gone: clean up after it */
        rundir_release(dir, name, fd);
        return false;
    }
    if (fd != -EEXIST || rundir_file(path, sizeof(path), dir, name, "lock"))
        return false;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0) {
        ssize_t n = read(fd, text, sizeof(text) - 1);
        (void)n; /* nothing: not written yet */
        close(fd);
        *pid = (pid_t)atoi(text);
    }
    return true;
}

/* -- Sockets ------------------------------------------------------------------------------------ */

static int address(struct sockaddr_un *addr, const char *path)
{
    *addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof(addr->sun_path))
        return -ENAMETOOLONG;
    strcpy(addr->sun_path, path);
    return 0;
}

int rundir_listen(const char *path)
{
    struct sockaddr_un addr;
    int r = address(&addr, path);

    if (r)
        return r;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || chmod(path, 0600) || listen(fd, 8)) {
        r = -errno;
        close(fd);
        return r;
    }
    return fd;
}

int rundir_connect(const char *path)
{
    struct sockaddr_un addr;
    int r = address(&addr, path);

    if (r)
        return r;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
        r = -errno;
        close(fd);
        return r;
    }
    return fd;
}

bool rundir_peer_ok(int fd)
{
    struct ucred who;
    socklen_t len = sizeof(who);

    return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) && (who.uid == geteuid() || who.uid == 0);
}
