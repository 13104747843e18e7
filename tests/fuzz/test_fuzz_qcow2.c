/*
 * test_fuzz_qcow2.c - files that say they are qcow2 images, used as a disk: read, written, discarded, flushed, opened again. What
 * was written is what is read, as long as nothing fails; a damaged image is refused or gives errors.
 */
#include "storage/disk.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SECTORS 512u

static void be32(u8 *to, u32 v)
{
    v = __builtin_bswap32(v);
    memcpy(to, &v, 4);
}
static void be64(u8 *to, u64 v)
{
    v = __builtin_bswap64(v);
    memcpy(to, &v, 8);
}

/* A sound image of 256 KiB with clusters of 512 bytes to 4 KiB: header, refcount table, block, L1, one L2. */
static size_t sound(u8 *image, unsigned bits, unsigned version)
{
    u64 cluster = 1u << bits, l2 = cluster / 8, l1 = SECTORS * 512 / (cluster * l2) + 1;
    memcpy(image, "QFI\xfb", 4);
    be32(image + 4, version);
    be32(image + 20, bits);
    be64(image + 24, SECTORS * 512);
    be32(image + 36, (u32)l1);
    be64(image + 40, 3 * cluster);
    be64(image + 48, cluster);
    be32(image + 56, 1);
    be32(image + 96, 4);
    be32(image + 100, 104);
    be64(image + cluster, 2 * cluster);
    for (unsigned i = 0; i < 5; i++)
        image[2 * cluster + i * 2 + 1] = 1;
    be64(image + 3 * cluster, 4 * cluster | 1ull << 63);
    return 5 * cluster;
}

static void use(struct disk *d, const uint8_t *data, size_t size, bool sane)
{
    static u8 shadow[SECTORS * 512], buf[64 * 512];
    static bool known[SECTORS];
    memset(known, 0, sizeof(known));
    for (size_t i = 0; i + 4 <= size; i += 4) {
        u64 sector = data[i + 1] * 2u + (data[i] >> 7), count = 1 + data[i + 2] % 63;
        if (!disk_has(d, sector, count) || sector + count > SECTORS)
            continue;
        int r = 0;
        switch (data[i] & 7) {
        case 0: case 1: case 2:
            memset(buf, data[i + 3], count * 512);
            r = disk_write(d, sector, buf, (u32)count);
            for (u64 s = sector; s < sector + count; s++) {
                known[s] = !r;
                memset(shadow + s * 512, data[i + 3], 512);
            }
            break;
        case 3:
            r = disk_zero(d, sector, count, data[i + 3] & 1);
            for (u64 s = sector; s < sector + count; s++) {
                known[s] = !r;
                memset(shadow + s * 512, 0, 512);
            }
            break;
        case 4:
            r = disk_discard(d, sector, count);
            for (u64 s = sector; s < sector + count; s++)
                known[s] = false;
            break;
        case 5: r = disk_flush(d); break;
        default:
            r = disk_read(d, sector, buf, (u32)count);
            for (u64 s = sector; s < sector + count && !r && sane; s++)
                bug_on(known[s] && memcmp(shadow + s * 512, buf + (s - sector) * 512, 512));
        }
        bug_on(r && sane);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static u8 image[1 << 16];
    char err[DISK_ERR_LEN] = "";
    struct disk *d;

    if (size < 4 || size > 8192)
        return 0;
    memset(image, 0, sizeof(image));
    unsigned damage = data[1] % 32, bits = 9 + data[0] % 4;
    size_t len = sound(image, bits, data[0] & 16 ? 2 : 3), at = 2;
    if (data[0] & 32) /* what is in the L2 table */
        for (unsigned i = 0; i < 32 && at < size; i++)
            image[(4u << bits) + i * 8 + data[at] % 8] = data[at + 1 < size ? at + 1 : at], at += 2;
    for (unsigned i = 0; i < damage && at + 3 < size; i++, at += 3)
        image[((u32)data[at] | (u32)data[at + 1] << 8) % (data[0] & 64 ? 112 : len)] = data[at + 2];
    for (unsigned again = 0; again < 2; again++) {
        int fd = memfd_create("image", MFD_CLOEXEC);
        bug_on(fd < 0 || write(fd, image, len) != (ssize_t)len);
        const struct disk_options options = { .readonly = data[0] & 128, .depth = 1 };
        if (qcow2_disk_open(dup(fd), "image", &options, NULL, &d, err)) {
            bug_on(!err[0]);
            close(fd);
            break;
        }
        use(d, data + at, at < size ? size - at : 0, !damage && !(data[0] & (32 | 128)) && !again);
        disk_close(d);
        ssize_t n = pread(fd, image, sizeof(image), 0); /* what it has become is an image, too */
        len = n > 0 ? (size_t)n : len;
        close(fd);
    }
    return 0;
}

FUZZ_MAIN("fuzz/qcow2", 2000, 600)
