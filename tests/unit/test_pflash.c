/* The flash of UEFI's variables: commands, what programming and erasing may do, the file, and bytes at random. */
#include "machine/chips/pflash.h"
#include "storage/disk.h"
#include "tests/lib/check.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIZE (3 * PFLASH_BLOCK)

static u64 rd(struct pflash *f, u64 at, unsigned n) { return pflash_io.read(f, at, n); }
static void wr(struct pflash *f, u64 at, u8 v) { pflash_io.write(f, at, 1, v); }
static void program(struct pflash *f, u64 at, u8 v) { wr(f, at, 0x40), wr(f, at, v); }

static u8 in_file(int fd, u64 at)
{
    u8 v = 0;
    CHECK(pread(fd, &v, 1, (off_t)at) == 1);
    return v;
}

static void test_commands(struct pflash *f)
{
    CHECK(rd(f, 0, 1) == 0x11 && rd(f, 4, 4) == 0x11111111);
    wr(f, 5, 0x90);
    CHECK(rd(f, 0, 1) == 0x89 && rd(f, 1, 1) == 0x16 && rd(f, PFLASH_BLOCK + 2, 1) == 0);
    wr(f, 5, 0x98);
    CHECK(rd(f, 0x10, 1) == 'Q' && rd(f, 0x11, 1) == 'R' && rd(f, 0x12, 1) == 'Y' && rd(f, 0x13, 1) == 1);
    CHECK(rd(f, 0x27, 1) == 14 && rd(f, 0x2a, 2) == 0 && rd(f, 0x2c, 1) == 1);
    CHECK(rd(f, 0x2d, 2) + 1 == 3 && rd(f, 0x2f, 2) * 256 == PFLASH_BLOCK);
    CHECK(rd(f, rd(f, 0x15, 2), 1) == 'P' && rd(f, 0xfff, 1) == 0);
    /* How OVMF tells flash from RAM and ROM. */
    wr(f, 5, 0x50);
    CHECK(rd(f, 5, 1) != 0x50);
    wr(f, 5, 0x70);
    CHECK(rd(f, 5, 1) == 0);
    wr(f, 5, 0xff);
    CHECK(rd(f, 5, 1) == 0x11);
    /* Bits are cleared only, and set by erasing the block. */
    program(f, 5, 0xf0);
    CHECK(rd(f, 5, 1) == 0x80);
    wr(f, 5, 0xff);
    CHECK(rd(f, 4, 4) == 0x11111011);
    wr(f, PFLASH_BLOCK, 0x20), wr(f, PFLASH_BLOCK, 0xd0), wr(f, 0, 0xff);
    CHECK(rd(f, PFLASH_BLOCK - 1, 1) == 0x11 && rd(f, PFLASH_BLOCK, 1) == 0xff);
    CHECK(rd(f, 2 * PFLASH_BLOCK - 1, 1) == 0xff && rd(f, 2 * PFLASH_BLOCK, 1) == 0x11);
    /* An erase that is not confirmed does nothing, and is told. */
    wr(f, 0, 0x20), wr(f, 0, 0xff);
    CHECK(rd(f, 0, 1) == 0xb0);
    wr(f, 0, 0x50), wr(f, 0, 0xff);
    CHECK(rd(f, 0, 1) == 0x11);
    CHECK(rd(f, SIZE - 4, 8) == 0x11111111); /* nothing behind it */
    pflash_io.write(f, SIZE, 1, 0x90);
    CHECK(rd(f, 0, 1) == 0x11);
}

static void test_file(struct pflash *f, int fd)
{
    program(f, 2 * PFLASH_BLOCK + 7, 0x01);
    wr(f, 0, 0xff);
    CHECK(in_file(fd, 2 * PFLASH_BLOCK + 7) == 0x01 && in_file(fd, 2 * PFLASH_BLOCK + 8) == 0x11);
    CHECK(in_file(fd, PFLASH_BLOCK) == 0xff && in_file(fd, 0) == 0x11);
    program(f, 9, 0x10); /* not read back: a reset comes */
    pflash_reset(f);
    CHECK(in_file(fd, 9) == 0x10 && rd(f, 9, 1) == 0x10);
    program(f, 10, 0x10);
    pflash_quiesce(f);
    CHECK(in_file(fd, 10) == 0x10);
}

static void test_read_only_file(void)
{
    char path[] = "/tmp/test_pflash.XXXXXX", err[DISK_ERR_LEN];
    const struct disk_options ro = { .format = "raw", .readonly = true };
    u8 image[PFLASH_BLOCK];
    struct disk *disk;
    struct pflash f;
    int fd = mkstemp(path);

    memset(image, 0xff, sizeof(image));
    CHECK(write(fd, image, sizeof(image)) == sizeof(image));
    CHECK(!disk_open(path, &ro, &disk, err) && !pflash_init(&f, image, sizeof(image), disk));
    program(&f, 0, 0), wr(&f, 0, 0xff), wr(&f, 0, 0x70);
    CHECK(rd(&f, 0, 1) == 0x90); /* what cannot be kept is told */
    pflash_fini(&f);
    disk_close(disk);
    unlink(path);
    close(fd);
}

static void test_hostile(struct pflash *f)
{
    static const u8 command[] = { 0x10, 0x20, 0x40, 0x50, 0x70, 0x90, 0x98, 0xd0 };
    u64 r = 88172645463325252ull;

    for (unsigned i = 0; i < 200000; i++) {
        r ^= r << 13, r ^= r >> 7, r ^= r << 17;
        unsigned size = 1u << (r >> 8 & 3);
        u64 at = (r >> 16) % SIZE & ~(u64)(size - 1);
        pflash_io.write(f, at, size, r & 1 ? command[r >> 1 & 7] : r >> 32);
        rd(f, at, size);
        f->dirty_from = f->dirty_to = 0; /* the medium is slow */
    }
    CHECK(!pflash_loaded(f));
    f->mode = 4;
    CHECK(pflash_loaded(f));
}

int main(void)
{
    char path[] = "/tmp/test_pflash.XXXXXX", err[DISK_ERR_LEN];
    const struct disk_options options = { .format = "raw" };
    u8 image[SIZE];
    struct disk *disk;
    struct pflash f;
    int fd = mkstemp(path);

    memset(image, 0x11, sizeof(image));
    CHECK(write(fd, image, sizeof(image)) == sizeof(image));
    CHECK(!disk_open(path, &options, &disk, err) && !pflash_init(&f, image, sizeof(image), disk));
    test_commands(&f);
    test_file(&f, fd);
    pflash_fini(&f);
    disk_close(disk);
    unlink(path);
    close(fd);
    test_read_only_file();
    CHECK(!pflash_init(&f, image, sizeof(image), NULL));
    test_hostile(&f);
    pflash_fini(&f);
    return check_done("test_pflash");
}
