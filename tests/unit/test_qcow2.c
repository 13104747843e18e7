/*
 * test_qcow2.c - qcow2 images made by qemu-img: random reads, writes, discards and flushes against a model in memory, looked
 * at afterwards by qemu-img check and compare; images that were damaged at random.
 */
#include "storage/disk.h"
#include "tests/lib/check.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECTORS 40960u /* 20 MiB */

static char dir[] = "/tmp/vitro-qcow2-XXXXXX";
static u64 state = 0x9e3779b97f4a7c15ull;

/* In libc's place: what reached the host's disk. */
static unsigned nr_fdatasync;
int fdatasync(int fd)
{
    nr_fdatasync++;
    return (int)syscall(SYS_fdatasync, fd);
}

static u32 rnd(u32 n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (u32)(state >> 20) % n;
}

/* Run a command in the folder; its status. */
static int sh(const char *fmt, ...)
{
    char line[1024], full[1200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    snprintf(full, sizeof(full), "cd %s && (%s) >out 2>&1", dir, line);
    int r = system(full);
    return WIFEXITED(r) ? WEXITSTATUS(r) : -1;
}

static const char *path(const char *name)
{
    static char p[256];
    snprintf(p, sizeof(p), "%s/%s", dir, name);
    return p;
}

static struct disk *open_disk(const char *name, bool snapshot, bool readonly)
{
    const struct disk_options o = { .readonly = readonly, .snapshot = snapshot };
    struct disk *d = NULL;
    char err[DISK_ERR_LEN] = "";
    int r = disk_open(path(name), &o, &d, err);
    if (r)
        printf("%s: %s\n", name, err);
    return r ? NULL : d;
}

static void one_write(struct disk *d, u8 *model, u32 limit)
{
    u32 count = 1 + rnd(limit), at = rnd(SECTORS - count);
    switch (rnd(8)) {
    case 0:
        CHECK(!disk_zero(d, at, count, rnd(2)));
        memset(model + at * 512ull, 0, count * 512ull);
        break;
    case 1:
        CHECK(!disk_flush(d));
        break;
    default: {
        u8 *buf = malloc(count * 512ull);
        for (u32 i = 0; i < count * 512; i += 4) {
            u32 v = rnd(~0u);
            memcpy(buf + i, &v, 4);
        }
        CHECK(!disk_write(d, at, buf, count));
        memcpy(model + at * 512ull, buf, count * 512ull);
        free(buf);
    }
    }
}

static bool same(struct disk *d, const u8 *model)
{
    u8 *buf = malloc(SECTORS * 512ull);
    bool ok = d && d->sectors == SECTORS && !disk_read(d, 0, buf, SECTORS) && !memcmp(buf, model, SECTORS * 512ull);
    for (unsigned i = 0; ok && i < 200; i++) { /* by extent where there is one */
        struct disk_extent e;
        u32 count = 1 + rnd(64), at = rnd(SECTORS - count);
        if (disk_extent(d, at, count, false, &e))
            ok = pread(e.fd, buf, count * 512ull, (off_t)e.offset) == (ssize_t)(count * 512ull) &&
                 !memcmp(buf, model + at * 512ull, count * 512ull);
    }
    free(buf);
    return ok;
}

static void model_write(const u8 *model, const char *name)
{
    FILE *f = fopen(path(name), "w");
    fwrite(model, 1, SECTORS * 512ull, f);
    fclose(f);
}

/* Random work on an image, opened several times; then qemu-img's opinion. */
static void torture(const char *what, const char *image, u8 *model, unsigned steps)
{
    for (unsigned round = 0; round < 3; round++) {
        struct disk *d = open_disk(image, false, false);
        CHECK_MSG(same(d, model), "%s: contents before round %u", what, round);
        for (unsigned i = 0; d && i < steps; i++)
            one_write(d, model, round ? 300 : 20);
        CHECK_MSG(same(d, model), "%s: contents in round %u", what, round);
        disk_close(d);
        int r = sh("qemu-img check -q %s", image);
        CHECK_MSG(!r, "%s: qemu-img check says %d in round %u", what, r, round);
    }
    model_write(model, "model");
    CHECK_MSG(!sh("qemu-img compare -f raw -F qcow2 model %s", image), "%s: qemu-img compare", what);
}

static void test_formats(void)
{
    static const char *const kinds[] = {
        "cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M", "compat=0.10",
        "cluster_size=64k,preallocation=metadata", "cluster_size=1k,lazy_refcounts=off",
    };
    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        u8 *model = calloc(SECTORS, 512);
        CHECK(!sh("rm -f a.qcow2; qemu-img create -q -f qcow2 -o %s a.qcow2 20M", kinds[i]));
        torture(kinds[i], "a.qcow2", model, 60);
        free(model);
    }
}

static void fill(u8 *model)
{
    for (u32 i = 0; i < SECTORS * 512u; i += 512)
        memset(model + i, (int)(i / 512 / 100), 512);
}

static void test_backing(void)
{
    u8 *model = calloc(SECTORS, 512);
    fill(model);
    model_write(model, "base.raw");
    CHECK(!sh("rm -f a.qcow2 b.qcow2; qemu-img create -q -f qcow2 -b base.raw -F raw b.qcow2 &&"
              "qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 -o cluster_size=8k a.qcow2"));
    torture("two backing files", "a.qcow2", model, 60);
    CHECK(!sh("qemu-img check -q b.qcow2"));

    fill(model);
    CHECK(!sh("rm a.qcow2; qemu-img convert -c -f raw -O qcow2 base.raw a.qcow2"));
    torture("compressed", "a.qcow2", model, 60);

    /* An internal snapshot keeps its contents while the disk changes. */
    fill(model);
    CHECK(!sh("rm a.qcow2; qemu-img convert -f raw -O qcow2 base.raw a.qcow2; qemu-img snapshot -c one a.qcow2"));
    torture("internal snapshot", "a.qcow2", model, 60);
    CHECK(!sh("qemu-img snapshot -a one a.qcow2; qemu-img compare -f raw -F qcow2 base.raw a.qcow2"));
    free(model);
}

static void test_unflushed(void)
{
    /* What a killed process leaves behind: the image as of the last flush. */
    u8 *model = calloc(SECTORS, 512);
    CHECK(!sh("rm -f a.qcow2; qemu-img create -q -f qcow2 a.qcow2 20M"));
    struct disk *d = open_disk("a.qcow2", false, false);
    for (unsigned i = 0; i < 50; i++)
        one_write(d, model, 50);
    CHECK(!disk_flush(d));
    unsigned lost = 0;
    for (u32 at = 0; at < SECTORS; at += 128) { /* clusters the flushed image has no use for */
        static const u8 sevens[512] = { 7, 7, 7, 7 };
        struct disk_extent e;
        if (!disk_extent(d, at, 1, false, &e)) {
            CHECK(!disk_write(d, at, sevens, 1));
            lost++;
        }
    }
    CHECK_MSG(lost > 20, "only %u writes were there to lose", lost);
    CHECK(!sh("cp a.qcow2 killed.qcow2; qemu-img check -q killed.qcow2; test $? = 0 -o $? = 3"));
    model_write(model, "model");
    CHECK(!sh("qemu-img compare -f raw -F qcow2 model killed.qcow2"));
    free(model);
    disk_close(d);
}

static void test_snapshot_option(void)
{
    u8 *model = calloc(SECTORS, 512);
    fill(model);
    model_write(model, "base.raw");
    struct disk *d = open_disk("base.raw", true, false);
    CHECK(same(d, model));
    for (unsigned i = 0; i < 100; i++)
        one_write(d, model, 300);
    CHECK(same(d, model));
    CHECK(!disk_flush(d));
    disk_close(d);
    fill(model);
    d = open_disk("base.raw", false, true);
    CHECK_MSG(same(d, model), "the file under a throw-away overlay was written");
    disk_close(d);
    free(model);
}

/* A guest's flush is the host's; but for what is gone at the end anyway. */
static void test_flush_reaches_the_medium(void)
{
    static const u8 sector[512] = { 1 };
    CHECK(!sh("truncate -s 1M flushed.raw; qemu-img create -q -f qcow2 flushed.qcow2 1M"));
    for (unsigned i = 0; i < 4; i++) {
        bool snapshot = i & 1;
        struct disk *d = open_disk(i & 2 ? "flushed.qcow2" : "flushed.raw", snapshot, false);
        CHECK(d && !disk_write(d, 1, sector, 1));
        nr_fdatasync = 0;
        CHECK(!disk_flush(d));
        CHECK_MSG(!nr_fdatasync == snapshot, "snapshot %d: %u times", snapshot, nr_fdatasync);
        disk_close(d);
    }
}

static void test_guessed_raw(void)
{
    u8 sector[512] = "QFI\xfb";
    CHECK(!sh("truncate -s 1M plain"));
    struct disk *d = open_disk("plain", false, false);
    CHECK(d && disk_write(d, 0, sector, 1) == -EPERM);
    CHECK(d && !disk_write(d, 1, sector, 1));
    disk_close(d);
}

static void test_damaged(void)
{
    u8 *model = calloc(SECTORS, 512), *buf = malloc(SECTORS * 512ull);
    fill(model);
    model_write(model, "base.raw");
    CHECK(!sh("rm -f a.qcow2; qemu-img convert -f raw -O qcow2 -o cluster_size=4k base.raw a.qcow2"));
    for (unsigned i = 0; i < 150; i++) {
        CHECK(!sh("cp a.qcow2 bad.qcow2"));
        int fd = open(path("bad.qcow2"), O_RDWR);
        for (unsigned n = 0; n < 6; n++) {
            u64 v = i & 1 ? rnd(~0u) : (u64)rnd(~0u) << 32 | rnd(~0u);
            off_t at = i % 3 ? (off_t)rnd(104) : (off_t)rnd(32768) & ~7;
            if (at < 8)
                at = 8;
            CHECK(pwrite(fd, &v, 1 + rnd(8), at) > 0);
        }
        close(fd);
        const struct disk_options o = { .format = "qcow2" };
        struct disk *d = NULL;
        char err[DISK_ERR_LEN];
        if (!disk_open(path("bad.qcow2"), &o, &d, err)) { /* whatever comes of it, nothing breaks here */
            for (unsigned n = 0; n < 40 && d->sectors > 64; n++) {
                u32 at = (u32)(d->sectors < SECTORS ? rnd((u32)d->sectors - 32) : rnd(SECTORS - 32));
                disk_read(d, at, buf, 32);
                disk_write(d, at, buf, 32);
            }
            disk_flush(d);
            disk_close(d);
        }
    }
    free(model);
    free(buf);
}

int main(void)
{
    if (system("qemu-img --version >/dev/null 2>&1")) {
        printf("no qemu-img: skipped\n");
        CHECK(true);
        return check_done("unit/qcow2");
    }
    bug_on(!mkdtemp(dir));
    test_formats();
    test_backing();
    test_unflushed();
    test_snapshot_option();
    test_flush_reaches_the_medium();
    test_guessed_raw();
    test_damaged();
    sh("rm -rf %s", dir);
    return check_done("unit/qcow2");
}
