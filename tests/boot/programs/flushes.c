/*
 * flushes.c - writes to a disk and says what has been flushed: what test_powercut.py holds the host's side to.
 *   flushes DEVICE BLOCKS ROUNDS STREAMS [discard]
 * Each stream is a process with a part of the disk of its own, BLOCKS blocks of 4 KiB. A round writes some of them, each
 * sector saying which block, sector and round it is of; every third round or so ends with fdatasync() and the line
 * "flushed STREAM ROUND." With `discard`, some rounds write zeros by BLKZEROOUT instead. The choice of blocks is that of
 * choose() in the test.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t step(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static int die(const char *what)
{
    perror(what);
    return 1;
}

static int stream(const char *device, unsigned blocks, unsigned rounds, unsigned number, int discard)
{
    static uint64_t buf[512] __attribute__((aligned(4096)));
    uint64_t state = 0x9e3779b97f4a7c15ull * (number + 1);
    int fd = open(device, O_RDWR | O_DIRECT);
    char line[64];

    if (fd < 0)
        return die(device);
    for (unsigned round = 1; round <= rounds; round++) {
        unsigned count = 1 + step(&state) % 6;
        int zero = discard && step(&state) % 4 == 0;
        for (unsigned i = 0; i < count; i++) {
            uint64_t block = step(&state) % blocks + (uint64_t)number * blocks;
            if (zero) {
                uint64_t range[2] = { block * 4096, 4096 };
                if (ioctl(fd, BLKZEROOUT, range))
                    return die("BLKZEROOUT");
                continue;
            }
            for (unsigned w = 0; w < 512; w += 4) {
                buf[w] = 0x766974726f666c75ull;
                buf[w + 1] = block;
                buf[w + 2] = w / 64;
                buf[w + 3] = round;
            }
            if (pwrite(fd, buf, 4096, (off_t)block * 4096) != 4096)
                return die("pwrite");
        }
        if (step(&state) % 3 == 0) {
            if (fdatasync(fd))
                return die("fdatasync");
            int n = snprintf(line, sizeof(line), "flushed %u %u.\n", number, round);
            if (write(1, line, (size_t)n) != n)
                return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    unsigned streams = (unsigned)atoi(argv[4]);
    int bad = 0, status;
    for (unsigned i = 0; i < streams; i++)
        if (!fork())
            _exit(stream(argv[1], (unsigned)atoi(argv[2]), (unsigned)atoi(argv[3]), i, argc > 5));
    while (wait(&status) > 0)
        bad |= status != 0;
    return bad;
}
