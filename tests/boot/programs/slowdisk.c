/*
 * slowdisk.c - for LD_PRELOAD: fdatasync(2) says in the FIFO SLOWDISK.began that it was called, and waits for a byte in
 * SLOWDISK.go. Opened at the start: later the process may open nothing.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int began = -1, go = -1;

static int fifo(const char *what)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s.%s", getenv("SLOWDISK"), what);
    return open(path, O_RDWR | O_CLOEXEC);
}

__attribute__((constructor)) static void start(void)
{
    if (getenv("SLOWDISK")) {
        began = fifo("began");
        go = fifo("go");
    }
}

int fdatasync(int fd)
{
    char c = 0;
    if (write(began, &c, 1) != 1 || read(go, &c, 1) != 1)
        return -1;
    return fsync(fd);
}
