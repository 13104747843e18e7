#include "monitor/snapshot.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define MAGIC "VITROSNP"
#define VERSION 1u
#define CHUNK (1u << 20)          /* bytes of memory under one checksum */
#define SECTIONS_MAX 4096u
#define META_MAX (256ull << 20)   /* checksums of 32 TiB */
#define SUMS "ram-sums"

struct header { /* docs/snapshot-format.md */
    char magic[8];
    u32 version, header_size;
    u64 meta_size;   /* bytes of sections, right behind the header */
    u64 ram_offset;  /* in the file, a multiple of 4096 */
    u64 ram_size;
    u32 chunk, nr_sections;
    u64 file_size;
    u64 checksum;    /* XXH3 of header and sections, with this 0 */
};
_Static_assert(sizeof(struct header) == 64, "docs/snapshot-format.md");

static int fail(char *err, int r, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static int fail(char *err, int r, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(err, SNAPSHOT_ERR_LEN, fmt, ap);
    va_end(ap);
    return r;
}

static u64 nr_chunks(u64 ram_size)
{
    return (ram_size + CHUNK - 1) / CHUNK;
}

static u64 checksum(const struct header *h, const u8 *meta)
{
    struct header copy = *h;
    XXH3_state_t *state = XXH3_createState();
    u64 sum = 0;

    copy.checksum = 0;
    if (state && !XXH3_64bits_reset(state)) {
        XXH3_64bits_update(state, &copy, sizeof(copy));
        XXH3_64bits_update(state, meta, h->meta_size);
        sum = XXH3_64bits_digest(state);
    }
    XXH3_freeState(state);
    return sum;
}

static int read_all(int fd, void *buf, size_t len, u64 at)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(fd, (u8 *)buf + done, len - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? -errno : -ENODATA;
        done += (size_t)n;
    }
    return 0;
}

static int write_all(int fd, const void *buf, size_t len, u64 at)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(fd, (const u8 *)buf + done, len - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

/* -- Reading ----------------------------------------------------------------------------------------- */

static int check_header(const struct header *h, u64 file_size, const char *path, char *err)
{
    if (memcmp(h->magic, MAGIC, 8))
        return fail(err, -EINVAL, "%s is no snapshot of Vitro's", path);
    if (h->version != VERSION || h->header_size != sizeof(*h))
        return fail(err, -EINVAL, "%s is of version %u; this Vitro reads version %u", path, h->version, VERSION);
    if (h->file_size != file_size)
        return fail(err, -EINVAL, "%s is truncated: it has %llu bytes and should have %llu", path,
                    (unsigned long long)file_size, (unsigned long long)h->file_size);
    if (h->meta_size > META_MAX || h->meta_size + sizeof(*h) > h->ram_offset || h->ram_offset % PAGE_SIZE ||
        h->ram_offset > file_size || !h->ram_size || h->ram_size % PAGE_SIZE ||
        h->ram_size != file_size - h->ram_offset || h->chunk != CHUNK || h->nr_sections > SECTIONS_MAX)
        return fail(err, -EINVAL, "%s is corrupted: its header contradicts itself", path);
    return 0;
}

static int parse_sections(struct snapshot *s, const struct header *h, const u8 *meta, char *err)
{
    const u8 *p = meta, *end = meta + h->meta_size;

    for (u32 i = 0; i < h->nr_sections; i++) {
        char name[32] = "";
        u32 len;
        if (p == end || *p >= sizeof(name) || (size_t)(end - p) < *p + 5u)
            return fail(err, -EINVAL, "%s is corrupted: its sections do not fit", s->path);
        memcpy(name, p + 1, *p);
        p += *p + 1;
        memcpy(&len, p, 4);
        p += 4;
        if ((size_t)(end - p) < len)
            return fail(err, -EINVAL, "%s is corrupted: section %s does not fit", s->path, name);
        state_set_add(&s->set, name, p, len);
        p += len;
    }
    if (p != end)
        return fail(err, -EINVAL, "%s is corrupted: there is something behind its sections", s->path);
    return s->set.failed ? fail(err, -ENOMEM, "no memory for %s", s->path) : 0;
}

/* Every byte once, through the page cache that the guest's memory will be mapped from. */
static int check_ram(struct snapshot *s, char *err)
{
    size_t len;
    const u8 *sums = state_set_take(&s->set, SUMS, &len);
    u64 nr = nr_chunks(s->ram_size), zero_sum, data = 0;
    u8 *buf = NULL;
    int r = 0;

    if (!sums || len != nr * 8)
        return fail(err, -EINVAL, "%s is corrupted: the checksums of its memory are not all there", s->path);
    buf = calloc(1, CHUNK);
    if (!buf)
        return fail(err, -ENOMEM, "no memory for %s", s->path);
    zero_sum = XXH3_64bits(buf, CHUNK);
    for (u64 i = 0; i < nr && !r; i++) {
        u64 at = i * CHUNK, n = MIN((u64)CHUNK, s->ram_size - at), want, got;
        memcpy(&want, sums + i * 8, 8);
        if (at >= data) { /* how far does the hole go? */
            off_t next = lseek(s->fd, (off_t)(s->ram_offset + at), SEEK_DATA);
            data = next >= 0 ? (u64)next - s->ram_offset : errno == ENXIO ? s->ram_size : at;
        }
        if (data >= at + n && n == CHUNK) {
            got = zero_sum;
        } else {
            r = read_all(s->fd, buf, n, s->ram_offset + at);
            if (r)
                return free(buf), fail(err, r, "cannot read %s: %s", s->path, strerror(-r));
            got = XXH3_64bits(buf, n);
            data = MAX(data, at + 1) > at + n ? data : at + n; /* ask again behind this chunk */
        }
        if (got != want)
            r = fail(err, -EINVAL, "%s is corrupted: its memory at %llu MiB has another checksum", s->path,
                     (unsigned long long)(at >> 20));
    }
    free(buf);
    return r;
}

int snapshot_read(struct snapshot *s, const char *path, char *err)
{
    struct header h;
    struct stat st;
    u8 *meta = NULL;
    int r;

    *s = (struct snapshot){ .path = path, .fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) };
    if (s->fd < 0 || fstat(s->fd, &st)) {
        r = errno;
        fail(err, 0, "cannot open %s: %s", path, strerror(r));
        r = -r;
        goto out;
    }
    if (!S_ISREG(st.st_mode) || (u64)st.st_size < sizeof(h)) {
        r = fail(err, -EINVAL, "%s is no snapshot of Vitro's", path);
        goto out;
    }
    r = read_all(s->fd, &h, sizeof(h), 0);
    if (r) {
        fail(err, 0, "cannot read %s: %s", path, strerror(-r));
        goto out;
    }
    r = check_header(&h, (u64)st.st_size, path, err);
    if (r)
        goto out;
    meta = malloc(h.meta_size ? h.meta_size : 1);
    r = meta ? read_all(s->fd, meta, h.meta_size, sizeof(h)) : -ENOMEM;
    if (r) {
        fail(err, 0, "cannot read %s: %s", path, strerror(-r));
        goto out;
    }
    if (checksum(&h, meta) != h.checksum) {
        r = fail(err, -EINVAL, "%s is corrupted: its description has another checksum", path);
        goto out;
    }
    s->ram_offset = h.ram_offset;
    s->ram_size = h.ram_size;
    r = parse_sections(s, &h, meta, err);
    if (!r)
        r = check_ram(s, err);
out:
    free(meta);
    if (r)
        snapshot_close(s);
    return r;
}

void snapshot_close(struct snapshot *s)
{
    state_set_free(&s->set);
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

/* -- Writing ------------------------------------------------------------------------------------------ */

static bool is_zero(const u8 *page)
{
    const u64 *p = (const u64 *)page;

    for (unsigned i = 0; i < PAGE_SIZE / 8; i += 8)
        if (p[i] | p[i + 1] | p[i + 2] | p[i + 3] | p[i + 4] | p[i + 5] | p[i + 6] | p[i + 7])
            return false;
    return true;
}

/* The chunk's pages that hold something; the rest stays a hole. */
static int write_chunk(int fd, const u8 *from, u64 n, u64 to)
{
    int r = 0;

    for (u64 at = 0; at < n && !r;) {
        u64 start = at;
        if (is_zero(from + at)) {
            at += PAGE_SIZE;
            continue;
        }
        while (at < n && !is_zero(from + at))
            at += PAGE_SIZE;
        r = write_all(fd, from + start, at - start, to + start);
    }
    return r;
}

static int write_ram(int fd, const u8 *ram, u64 ram_size, int ram_fd, u64 to, u64 *sums)
{
    u8 *zeros = calloc(1, CHUNK);
    u64 data = 0, zero_sum;
    int r = 0;

    if (!zeros)
        return -ENOMEM;
    zero_sum = XXH3_64bits(zeros, CHUNK);
    free(zeros);
    for (u64 i = 0, at = 0; at < ram_size && !r; i++, at += CHUNK) {
        u64 n = MIN((u64)CHUNK, ram_size - at);
        if (ram_fd >= 0 && at >= data) { /* reading what was never touched would make the host fill it */
            off_t next = lseek(ram_fd, (off_t)at, SEEK_DATA);
            data = next >= 0 ? (u64)next : errno == ENXIO ? ram_size : at;
        }
        if (ram_fd >= 0 && data >= at + n && n == CHUNK) {
            sums[i] = zero_sum;
            continue;
        }
        data = MAX(data, at + n);
        sums[i] = XXH3_64bits(ram + at, n);
        if (sums[i] != zero_sum || n != CHUNK)
            r = write_chunk(fd, ram + at, n, to + at);
    }
    return r;
}

static void put_sections(struct state_buf *meta, const struct state_set *set)
{
    for (unsigned i = 0; i < set->nr; i++) {
        const struct state_section *s = &set->section[i];
        u8 n = (u8)strlen(s->name);
        u32 len = (u32)s->len;
        state_put(meta, &n, 1);
        state_put(meta, s->name, n);
        state_put(meta, &len, 4);
        state_put(meta, s->data, s->len);
    }
}

static int write_file(int fd, struct state_set *set, const u8 *ram, u64 ram_size, int ram_fd)
{
    u64 nr = nr_chunks(ram_size), *sums = calloc(nr, 8);
    struct state_buf meta = { 0 };
    struct header h = { .magic = MAGIC, .version = VERSION, .header_size = sizeof(h), .ram_size = ram_size,
                        .chunk = CHUNK };
    int r = -ENOMEM;

    if (!sums)
        return r;
    /* First with sums of zero, to know how long it will be. */
    state_set_add(set, SUMS, sums, nr * 8);
    put_sections(&meta, set);
    if (set->failed || meta.failed)
        goto out;
    h.nr_sections = set->nr;
    h.meta_size = meta.len;
    h.ram_offset = (sizeof(h) + meta.len + PAGE_SIZE - 1) & PAGE_MASK;
    h.file_size = h.ram_offset + ram_size;
    r = ftruncate(fd, (off_t)h.file_size) ? -errno : write_ram(fd, ram, ram_size, ram_fd, h.ram_offset, sums);
    if (r)
        goto out;
    memcpy(set->section[set->nr - 1].data, sums, nr * 8);
    meta.len = 0;
    put_sections(&meta, set);
    h.checksum = checksum(&h, meta.data);
    r = write_all(fd, meta.data, meta.len, sizeof(h));
    if (!r)
        r = write_all(fd, &h, sizeof(h), 0);
out:
    free(sums);
    state_buf_free(&meta);
    return r;
}

int snapshot_write(const char *path, struct state_set *set, const u8 *ram, u64 ram_size, int ram_fd, char *temp,
                   size_t temp_len, char *err)
{
    int n = snprintf(temp, temp_len, "%s.part-%d", path, (int)getpid());

    if (n < 0 || (size_t)n >= temp_len)
        return fail(err, -ENAMETOOLONG, "%.100s...: the name is too long", path);
    int fd = open(temp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return fail(err, -errno, "cannot write %s: %s", path, strerror(errno));
    int r = write_file(fd, set, ram, ram_size, ram_fd);
    if (!r)
        return fd;
    fail(err, 0, "cannot write %s: %s", path, strerror(-r));
    close(fd);
    unlink(temp);
    return r;
}

int snapshot_commit(int fd, const char *temp, const char *path, char *err)
{
    int r = fsync(fd) || rename(temp, path) ? -errno : 0;

    close(fd);
    if (r) {
        unlink(temp);
        fail(err, 0, "cannot write %s: %s", path, strerror(-r));
    }
    return r;
}
