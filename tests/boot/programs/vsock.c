/*
 * vsock.c - both ends of a virtio socket, for the guest. Plain static program.
 *   vsock echo PORT COUNT       serve COUNT connections one after the other: send back what comes
 *   vsock pipe PORT             connect to the host's port: standard input there, what comes back to standard output
 */
#define _GNU_SOURCE
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static void write_all(int fd, const char *p, ssize_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, p, (size_t)n);
        if (done <= 0)
            exit(fail("write"));
        p += done;
        n -= done;
    }
}

int main(int argc, char **argv)
{
    static char buf[65536];
    ssize_t n;
    if (argc < 3)
        return 2;
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    struct sockaddr_vm addr = { .svm_family = AF_VSOCK, .svm_port = (unsigned)atoi(argv[2]) };
    if (fd < 0)
        return fail("socket");
    if (!strcmp(argv[1], "echo")) {
        addr.svm_cid = VMADDR_CID_ANY;
        if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 4))
            return fail("listen");
        printf("listening\n");
        fflush(stdout);
        for (int left = atoi(argv[3]); left; left--) {
            int c = accept(fd, NULL, NULL);
            while ((n = read(c, buf, sizeof(buf))) > 0)
                write_all(c, buf, n);
            close(c);
        }
        return 0;
    }
    addr.svm_cid = VMADDR_CID_HOST;
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
        return fail("connect");
    /* Both ways at once: neither end may wait for the other to read. */
    static char out[65536];
    ssize_t len = 0, at = 0;
    struct pollfd pfd[2] = { { .fd = 0, .events = POLLIN }, { .fd = fd } };
    for (int eof = 0;;) {
        pfd[0].fd = eof || len ? -1 : 0;
        pfd[1].events = (short)(POLLIN | (len ? POLLOUT : 0));
        poll(pfd, 2, -1);
        if (pfd[0].fd == 0 && pfd[0].revents) {
            len = read(0, out, sizeof(out));
            at = 0;
            if (len <= 0) {
                len = 0;
                eof = 1;
                shutdown(fd, SHUT_WR);
            }
        }
        if (len && (pfd[1].revents & POLLOUT)) {
            n = send(fd, out + at, (size_t)(len - at), MSG_DONTWAIT);
            if (n > 0 && (at += n) == len)
                len = 0;
        }
        if (pfd[1].revents & (POLLIN | POLLHUP | POLLERR)) {
            n = read(fd, buf, sizeof(buf));
            if (n <= 0)
                return n ? fail("read") : 0;
            write_all(1, buf, n);
        }
    }
}
