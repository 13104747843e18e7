/*
 * test_fuzz_snapshot.c - files that say they are snapshots, with a right checksum so that the inside is looked at: they
 * are refused with a sentence, or what they hold fits into the file.
 */
#include "monitor/snapshot.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#define RAM 8192u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t file[1 << 17];
    struct snapshot s;
    char path[64], err[SNAPSHOT_ERR_LEN] = "";
    uint64_t meta = 0, sum, ram_sum, where;

    if (size < 2 || size > 60000)
        return 0;
    memset(file, 0, sizeof(file));
    unsigned flip = data[0], with = data[1];
    uint8_t *p = file + 64;
    /* Sections: of the input's bytes, as many as fit; then the memory's checksums as they should be. */
    uint32_t nr = 1;
    for (size_t at = 2; at + 4 < size && nr < 40; nr++) {
        uint8_t n = data[at] % 31;
        uint32_t len = data[at + 1] | (data[at + 2] & 3) << 8;
        at += 3;
        *p++ = n;
        for (unsigned i = 0; i < n; i++)
            *p++ = at < size ? data[at++] : 'x';
        memcpy(p, &len, 4);
        p += 4;
        for (unsigned i = 0; i < len; i++)
            *p++ = at < size ? data[at++] : 0;
    }
    memcpy(p, "\x08ram-sums\x08\0\0\0", 13);
    ram_sum = XXH3_64bits(file + 100000, RAM);
    memcpy(p + 13, &ram_sum, 8);
    p += 21;
    meta = (uint64_t)(p - file) - 64;
    where = (64 + meta + 4095) & ~4095ull;
    uint64_t total = where + RAM, ram = RAM;
    uint32_t version = 1, header = 64, chunk = 1 << 20;
    memcpy(file, "VITROSNP", 8);
    memcpy(file + 8, &version, 4);
    memcpy(file + 12, &header, 4);
    memcpy(file + 16, &meta, 8);
    memcpy(file + 24, &where, 8);
    memcpy(file + 32, &ram, 8);
    memcpy(file + 40, &chunk, 4);
    memcpy(file + 44, &nr, 4);
    memcpy(file + 48, &total, 8);
    if (flip < 200) /* something in the header, or in a length or name */
        file[flip] ^= (uint8_t)with;
    memset(file + 56, 0, 8);
    memcpy(&meta, file + 16, 8);
    sum = XXH3_64bits(file, meta < sizeof(file) - 64 ? 64 + meta : 64);
    memcpy(file + 56, &sum, 8);

    int fd = memfd_create("fuzz", 0);
    ssize_t n = write(fd, file, total);
    (void)n;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (snapshot_read(&s, path, err)) {
        bug_on(!strstr(err, path));
    } else {
        bug_on(s.ram_offset + s.ram_size != total);
        for (unsigned i = 0; i < s.set.nr; i++)
            bug_on(s.set.section[i].len > total);
        snapshot_close(&s);
    }
    close(fd);
    return 0;
}

FUZZ_MAIN("fuzz/snapshot", 4000, 3000)
