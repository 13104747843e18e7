/* disk.h: the range and right checks that devices rely on, and raw files of odd sizes. */
#include "storage/disk.h"
#include "tests/lib/check.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void test_rw(const char *path)
{
    struct disk *d = NULL, *second = NULL;
    char err[DISK_ERR_LEN] = "";
    u8 buf[3 * DISK_SECTOR];

    CHECK(disk_open(path, &(struct disk_options){ 0 }, &d, err) == 0);
    if (!d)
        return;
    CHECK(d->sectors == 3); /* 1100 bytes */
    CHECK(disk_open(path, &(struct disk_options){ 0 }, &second, err) == -EBUSY);
    CHECK(strstr(err, path) != NULL);

    memset(buf, 0xee, sizeof(buf));
    CHECK(disk_read(d, 0, buf, 3) == 0);
    CHECK(buf[0] == 'a' && buf[1099] == 'a' && buf[1100] == 0 && buf[1535] == 0);
    CHECK(disk_read(d, 3, buf, 1) == -EINVAL);
    CHECK(disk_read(d, 1, buf, 3) == -EINVAL);
    CHECK(disk_read(d, ~0ull, buf, 2) == -EINVAL);
    CHECK(disk_read(d, 3, buf, 0) == 0);
    memset(buf, 'b', DISK_SECTOR);
    CHECK(disk_write(d, 1, buf, 1) == 0);
    CHECK(disk_write(d, 3, buf, 1) == -EINVAL);
    CHECK(disk_flush(d) == 0);
    CHECK(disk_read(d, 0, buf, 2) == 0);
    CHECK(buf[511] == 'a' && buf[512] == 'b' && buf[1023] == 'b');
    CHECK(disk_discard(d, 0, 3) == 0);
    CHECK(disk_discard(d, 2, ~0ull) == -EINVAL);
    CHECK(d->sectors == 3);
    disk_close(d);
}

static void test_readonly(const char *path)
{
    struct disk *d = NULL, *second = NULL;
    char err[DISK_ERR_LEN] = "";
    u8 buf[DISK_SECTOR] = { 0 };
    const struct disk_options ro = { .readonly = true };

    CHECK(disk_open(path, &ro, &d, err) == 0);
    CHECK(disk_open(path, &ro, &second, err) == 0); /* readers share */
    if (!d)
        return;
    CHECK(disk_write(d, 0, buf, 1) == -EROFS);
    CHECK(disk_discard(d, 0, 1) == -EROFS);
    CHECK(disk_flush(d) == 0);
    disk_close(second);
    disk_close(d);
}

static void test_refused(const char *path)
{
    struct disk *d = NULL;
    char err[DISK_ERR_LEN] = "";

    CHECK(disk_open("/nonexistent/disk", &(struct disk_options){ 0 }, &d, err) == -ENOENT);
    CHECK(strstr(err, "/nonexistent/disk") != NULL);
    CHECK(disk_open("/tmp", &(struct disk_options){ .readonly = true }, &d, err) == -EINVAL);
    CHECK(disk_open("/dev/null", &(struct disk_options){ 0 }, &d, err) == -EINVAL);
    CHECK(disk_open(path, &(struct disk_options){ .format = "vdi" }, &d, err) == -EINVAL);
    CHECK(d == NULL);
    disk_close(NULL);
}

/* In the place of libc's: a host that cannot write something out says so once. */
static bool host_fails;
int fdatasync(int fd)
{
    if (!host_fails)
        return fsync(fd);
    host_fails = false;
    errno = ENOSPC;
    return -1;
}

static void test_lost(const char *path)
{
    static const char *const formats[] = { "raw", "qcow2" };
    char err[DISK_ERR_LEN] = "", image[128], command[256];
    u8 buf[DISK_SECTOR] = { 1 };

    snprintf(image, sizeof(image), "%s.qcow2", path);
    snprintf(command, sizeof(command), "qemu-img create -q -f qcow2 %s 1M", image);
    for (unsigned i = 0; i < 2; i++) {
        struct disk *d = NULL;
        const struct disk_options options = { .format = formats[i] };
        if (i && system(command)) {
            printf("no qemu-img: qcow2 is left out\n");
            continue;
        }
        CHECK(disk_open(i ? image : path, &options, &d, err) == 0);
        if (!d)
            continue;
        CHECK(disk_write(d, 0, buf, 1) == 0 && disk_flush(d) == 0);
        host_fails = true;
        CHECK(disk_flush(d) == -ENOSPC);
        CHECK(!host_fails && disk_flush(d) == -EIO); /* the host has forgotten it; the guest must not believe otherwise */
        disk_close(d);
    }
    unlink(image);
}

int main(void)
{
    char path[] = "/tmp/vitro-test-disk-XXXXXX", text[1100];
    int fd = mkstemp(path);

    memset(text, 'a', sizeof(text));
    CHECK(fd >= 0 && write(fd, text, sizeof(text)) == sizeof(text));
    close(fd);
    test_rw(path);
    test_readonly(path);
    test_refused(path);
    test_lost(path);
    unlink(path);
    return check_done("test_disk");
}
