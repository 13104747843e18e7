/* unixsock.c - see unixsock.h. */
#include "net/unixsock.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct unixsock {
    int fd;
    struct sockaddr_un addr;
};

/* A socket file nobody listens on is left over from a process that was killed. */
static void remove_stale(const struct sockaddr_un *addr)
{
    struct stat st;
    if (lstat(addr->sun_path, &st) || !S_ISSOCK(st.st_mode))
        return;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) && errno == ECONNREFUSED)
        unlink(addr->sun_path);
    close(fd);
}

int unixsock_listen(const char *path, struct unixsock **out)
{
    struct unixsock *s = calloc(1, sizeof(*s));
    int err;

    if (!s)
        return -ENOMEM;
    s->addr.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(s->addr.sun_path)) {
        free(s);
        return -ENAMETOOLONG;
    }
    strcpy(s->addr.sun_path, path);
    remove_stale(&s->addr);
    s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0 || bind(s->fd, (const struct sockaddr *)&s->addr, sizeof(s->addr)) || listen(s->fd, 16)) {
        err = -errno;
        if (s->fd >= 0)
            close(s->fd);
        free(s);
        return err;
    }
    *out = s;
    return 0;
}

int unixsock_fd(const struct unixsock *s)
{
    return s->fd;
}

void unixsock_close(struct unixsock *s)
{
    if (!s)
        return;
    unlink(s->addr.sun_path);
    close(s->fd);
    free(s);
}
