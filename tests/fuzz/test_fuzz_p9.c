/* test_fuzz_p9.c - sequences of 9P messages with anything in them; nothing outside the directory is touched. */
#include "base/state.h"
#include "tests/fuzz/fuzz.h"
#include "virtio/p9.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/vitro-fuzz9-XXXXXX";

static void shell(const char *fmt)
{
    char command[256];
    snprintf(command, sizeof(command), fmt, dir, dir, dir, dir);
    if (system(command))
        perror("system");
}

static void remove_dir(void)
{
    shell("rm -rf %s");
}

/* One message: size[4] type[1] tag[2] body; the types that exist, mostly. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const u8 types[] = { 8, 12, 14, 16, 18, 20, 22, 24, 26, 30, 40, 50, 52, 54, 70, 72, 74, 76, 100, 104, 108, 110,
                                116, 118, 120, 122 };
    static u8 msg[4096], reply[8192];
    static bool made;
    struct p9_fs *fs;

    if (!made && (made = true)) {
        bug_on(!mkdtemp(dir));
        atexit(remove_dir);
        shell("mkdir %s/share %s/share/d; echo inside > %s/share/f; echo outside > %s/secret");
    }
    char share[64], secret[64], text[16] = "";
    snprintf(share, sizeof(share), "%s/share", dir);
    snprintf(secret, sizeof(secret), "%s/secret", dir);
    bug_on(p9_fs_create(share, size && data[0] & 1, &fs));
    /* Attached as fid 0; "f" walked to as fid 1. */
    static const u8 attach[] = { 26, 0, 0, 0, 104, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 };
    static const u8 walk[] = { 20, 0, 0, 0, 110, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 'f' };
    p9_fs_request(fs, attach, sizeof(attach), reply, sizeof(reply));
    p9_fs_request(fs, walk, sizeof(walk), reply, sizeof(reply));
    for (size_t at = 1; at + 2 <= size;) {
        u8 type = data[at] & 0x80 ? data[at] : types[data[at] % sizeof(types)];
        size_t n = data[at + 1];
        at += 2;
        if (n > size - at)
            n = size - at;
        u32 len = (u32)(7 + n);
        memcpy(msg, &len, 4);
        msg[4] = type;
        memcpy(msg + 5, "\1\0", 2);
        memcpy(msg + 7, data + at, n);
        u32 got = p9_fs_request(fs, msg, len, reply, n & 1 ? sizeof(reply) : (u32)n * 4);
        bug_on(got > (n & 1 ? sizeof(reply) : n * 4));
        at += n;
    }
    /* The same into a snapshot and out of it, with bytes changed: a way must not lead out either. */
    struct state_buf buf = { 0 };
    const char *why = "";
    if (!p9_fs_save(fs, &buf, &why) && !buf.failed) {
        bug_on(p9_fs_load(fs, buf.data, buf.len)); /* its own is always taken */
        for (size_t i = 0; i + 2 <= size && i < 16; i += 2)
            buf.data[data[i] % buf.len] ^= data[i + 1];
        p9_fs_load(fs, buf.data, buf.len);
        static const u8 read[] = { 23, 0, 0, 0, 116, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0 };
        u32 got = p9_fs_request(fs, read, sizeof(read), reply, sizeof(reply));
        for (u32 i = 0; i + 7 <= got; i++)
            bug_on(!memcmp(reply + i, "outside", 7));
    }
    state_buf_free(&buf);
    p9_fs_free(fs);
    int fd = open(secret, O_RDONLY);
    bug_on(fd < 0 || read(fd, text, sizeof(text)) != 8 || memcmp(text, "outside\n", 8));
    close(fd);
    return 0;
}

FUZZ_MAIN("fuzz/p9", 5000, 600)
