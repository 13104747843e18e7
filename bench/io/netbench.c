/*
 * netbench.c - times TCP from inside a guest: round trips of one byte, and bulk both ways, with a server on the host.
 *   netbench ADDR PORT SECONDS     the server (bench/net) does what the first byte says: e echo, s send, r receive
 * Prints `name value unit` lines.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int open_to(const char *addr, const char *port, char what)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };
    inet_aton(addr, &to.sin_addr);
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) || write(fd, &what, 1) != 1) {
        perror("connect");
        exit(1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

int main(int argc, char **argv)
{
    static char buf[1 << 16];
    char c = 'x';
    if (argc != 4)
        return 2;
    double seconds = atof(argv[3]), start, end;
    uint64_t count = 0;

    int fd = open_to(argv[1], argv[2], 'e');
    for (int i = 0; i < 20; i++)
        if (write(fd, &c, 1) != 1 || read(fd, &c, 1) != 1)
            return 1;
    start = now();
    end = start + seconds;
    for (; now() < end; count++)
        if (write(fd, &c, 1) != 1 || read(fd, &c, 1) != 1)
            return 1;
    printf("tcp-rr %.1f us\n", (now() - start) * 1e6 / (double)count);
    close(fd);

    fd = open_to(argv[1], argv[2], 's');
    ssize_t n;
    start = now();
    end = start + seconds;
    for (count = 0; now() < end && (n = read(fd, buf, sizeof(buf))) > 0;)
        count += (uint64_t)n;
    printf("tcp-receive %.0f MB/s\n", (double)count / (now() - start) / 1e6);
    close(fd);

    fd = open_to(argv[1], argv[2], 'r');
    start = now();
    end = start + seconds;
    for (count = 0; now() < end && (n = write(fd, buf, sizeof(buf))) > 0;)
        count += (uint64_t)n;
    shutdown(fd, SHUT_WR);
    while (read(fd, buf, sizeof(buf)) > 0) /* until everything has arrived */
        ;
    printf("tcp-send %.0f MB/s\n", (double)count / (now() - start) / 1e6);
    return 0;
}
