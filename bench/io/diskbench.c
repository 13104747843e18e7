/*
 * diskbench.c - times a disk from inside a guest, past the guest's page cache (O_DIRECT): 4 KiB random reads one at a
 * time and 16 at a time, and 1 MiB sequential reads.
 *   diskbench /dev/vda SECONDS
 * Prints `name value unit` lines. Static, no libraries: kernel AIO by system calls.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEPTH 16

static uint64_t state = 88172645463325252ull;
static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: diskbench DEVICE SECONDS\n");
        return 2;
    }
    double seconds = atof(argv[2]);
    int fd = open(argv[1], O_RDONLY | O_DIRECT);
    if (fd < 0)
        fail(argv[1]);
    uint64_t size = (uint64_t)lseek(fd, 0, SEEK_END), blocks = size / 4096;
    char *buf = aligned_alloc(4096, 1 << 20);

    for (int pass = 0; pass < 2; pass++) { /* the first one fills the host's page cache */
        double start = now(), end = start + seconds;
        uint64_t bytes = 0, at = 0;
        while (pass ? now() < end : at < size) {
            if (at + (1 << 20) > size)
                at = 0;
            ssize_t n = pread(fd, buf, 1 << 20, (off_t)at);
            if (n <= 0)
                fail("pread");
            at += (uint64_t)n;
            bytes += (uint64_t)n;
            if (!pass && at + (1 << 20) > size)
                break;
        }
        if (pass)
            printf("seq-1M %.0f MB/s\n", (double)bytes / (now() - start) / 1e6);
    }

    double start = now(), end = start + seconds;
    uint64_t count = 0;
    while (now() < end) {
        if (pread(fd, buf, 4096, (off_t)(next_random() % blocks * 4096)) != 4096)
            fail("pread");
        count++;
    }
    printf("rand-4k-depth-1 %.1f us\n", (now() - start) * 1e6 / (double)count);

    aio_context_t ctx = 0;
    struct iocb cb[DEPTH], *list[DEPTH];
    struct io_event event[DEPTH];
    if (syscall(SYS_io_setup, DEPTH, &ctx))
        fail("io_setup");
    for (int i = 0; i < DEPTH; i++) {
        cb[i] = (struct iocb){ .aio_fildes = (uint32_t)fd, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_nbytes = 4096,
                               .aio_buf = (uint64_t)(uintptr_t)(buf + i * 4096), .aio_data = (uint64_t)i };
        cb[i].aio_offset = (int64_t)(next_random() % blocks * 4096);
        list[i] = &cb[i];
    }
    start = now();
    end = start + seconds;
    count = 0;
    if (syscall(SYS_io_submit, ctx, DEPTH, list) != DEPTH)
        fail("io_submit");
    while (now() < end) {
        long n = syscall(SYS_io_getevents, ctx, 1, DEPTH, event, NULL);
        if (n <= 0)
            fail("io_getevents");
        for (long i = 0; i < n; i++) {
            if (event[i].res != 4096)
                fail("aio");
            list[i] = &cb[event[i].data];
            list[i]->aio_offset = (int64_t)(next_random() % blocks * 4096);
        }
        if (syscall(SYS_io_submit, ctx, n, list) != n)
            fail("io_submit");
        count += (uint64_t)n;
    }
    printf("rand-4k-depth-16 %.0f IOPS\n", (double)count / (now() - start));
    return 0;
}
