/*
 * sockets.c - many short-lived sockets: ADDR TCP-PORT UDP-PORT COUNT, echo servers. Each connection is reset and a datagram
 * sent at once from a new socket, so that a stack on the host has a socket of the same number for something else. Prints
 * "echoed COUNT".
 *   sockets PORT COUNT     the other side of datagrams: sends back COUNT of them
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static struct sockaddr_in at(const char *addr, const char *port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port)) };
    inet_aton(addr, &a.sin_addr);
    return a;
}

static int echo(int fd, unsigned i)
{
    unsigned got = 0;
    return write(fd, &i, sizeof(i)) == sizeof(i) && read(fd, &got, sizeof(got)) == sizeof(got) && got == i;
}

static int serve(const char *port, int count)
{
    struct sockaddr_in a = at("0.0.0.0", port);
    socklen_t len = sizeof(a);
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    char buf[2048];

    if (bind(s, (struct sockaddr *)&a, sizeof(a)))
        return 1;
    printf("serving\n");
    fflush(stdout);
    while (count--) {
        ssize_t n = recvfrom(s, buf, sizeof(buf), 0, (struct sockaddr *)&a, &len);
        if (n < 0 || sendto(s, buf, (size_t)n, 0, (struct sockaddr *)&a, len) != n)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    const struct linger reset = { .l_onoff = 1 };
    const struct timeval patience = { .tv_sec = 30 };

    if (argc == 3)
        return serve(argv[1], atoi(argv[2]));
    if (argc != 5)
        return 2;
    struct sockaddr_in tcp = at(argv[1], argv[2]), udp = at(argv[1], argv[3]);
    unsigned count = (unsigned)atoi(argv[4]);
    for (unsigned i = 0; i < count; i++) {
        int t = socket(AF_INET, SOCK_STREAM, 0), u = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(t, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
        setsockopt(t, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
        setsockopt(u, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
        if (connect(t, (struct sockaddr *)&tcp, sizeof(tcp)) || !echo(t, i)) {
            printf("connection %u failed\n", i);
            return 1;
        }
        close(t);
        if (connect(u, (struct sockaddr *)&udp, sizeof(udp)) || !echo(u, i)) {
            printf("datagram %u failed\n", i);
            return 1;
        }
        close(u);
    }
    printf("echoed %u\n", count);
    return 0;
}
