/* unixsock.h - a listening unix socket at a path, removed when it is closed. */
#pragma once

struct unixsock;
/* unixsock_listen - 0, -ENAMETOOLONG, -EADDRINUSE (somebody listens there, or it is not a socket), -errno. */
int unixsock_listen(const char *path, struct unixsock **out);
int unixsock_fd(const struct unixsock *s);
/* unixsock_close - NULL is allowed. */
void unixsock_close(struct unixsock *s);
