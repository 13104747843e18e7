/*
 * p9_state.c - a 9P server's fids in snapshots. Descriptors do not outlive the process, so what is carried is the way to
 * each file from the shared directory and which file it was. When the VM goes on, the way is walked again, by the rules of
 * Twalk: no symbolic link is followed. A file that is not there any more, or is another one, becomes a fid without a file.
 *
 *     u32 msize; each fid: u32 id, u8 kind (0 not open, 1 open), u32 flags of open(2), u64 device, u64 inode,
 *     u16 length, the way: names separated by '/'; empty: the directory itself
 */
#include "base/state.h"
#include "virtio/p9_inner.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEPT_FLAGS (O_ACCMODE | O_APPEND | O_DSYNC | O_SYNC)

struct record {
    u32 id;
    u8 open;
    u32 flags;
    u64 dev, ino;
    u16 len;
} __attribute__((packed));

/* O_PATH descriptor at the end of a way, or -1. */
static int walk(const struct p9_fs *fs, const char *way)
{
    int fd = fcntl(fs->root, F_DUPFD_CLOEXEC, 0);

    while (fd >= 0 && *way) {
        char name[NAME_MAX + 1];
        size_t n = strcspn(way, "/");
        snprintf(name, sizeof(name), "%.*s", (int)MIN(n, sizeof(name) - 1), way);
        int next = n < sizeof(name) && p9_name_ok(name) ? openat(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC) : -1;
        close(fd);
        fd = next;
        way += n + (way[n] == '/');
    }
    return fd;
}

static bool is_file(int fd, u64 dev, u64 ino)
{
    struct stat st;

    return fd >= 0 && !fstat(fd, &st) && st.st_dev == dev && st.st_ino == ino;
}

static bool path_of(int fd, char path[PATH_MAX])
{
    char proc[32];

    snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(proc, path, PATH_MAX - 1);
    path[MAX(n, 0)] = '\0';
    return n > 0;
}

/* The way to a fid's file from the root, in path; NULL: there is none. */
static const char *way_to(const struct p9_fs *fs, const struct fid *f, const struct stat *st, char path[PATH_MAX])
{
    char root[PATH_MAX];
    size_t n;

    if (!path_of(fs->root, root) || !path_of(f->path, path))
        return NULL;
    n = strcmp(root, "/") ? strlen(root) : 0;
    if (strncmp(path, root, n) || (path[n] && path[n] != '/'))
        return NULL;
    const char *way = path + n + (path[n] == '/');
    int fd = walk(fs, way);
    bool same = is_file(fd, st->st_dev, st->st_ino); /* neither removed nor renamed meanwhile */
    if (fd >= 0)
        close(fd);
    return same ? way : NULL;
}

static int save_fid(const struct p9_fs *fs, const struct fid *f, struct state_buf *buf)
{
    char path[PATH_MAX];
    const char *way = "";
    struct record r = { .id = f->id, .open = f->file >= 0 };
    struct stat st;

    if (f->path >= 0) {
        way = fstat(f->path, &st) ? NULL : way_to(fs, f, &st, path);
        if (!way)
            return -EOPNOTSUPP;
        r.dev = st.st_dev;
        r.ino = st.st_ino;
    }
    if (f->file >= 0)
        r.flags = (u32)(fcntl(f->file, F_GETFL) & KEPT_FLAGS);
    r.len = (u16)strlen(way);
    state_put(buf, &r, sizeof(r));
    state_put(buf, way, r.len);
    return 0;
}

int p9_fs_save(struct p9_fs *fs, struct state_buf *buf, const char **why)
{
    state_put(buf, &fs->msize, sizeof(fs->msize));
    for (unsigned i = 0; i < BUCKETS; i++)
        for (const struct fid *f = fs->fid[i]; f; f = f->next)
            if (save_fid(fs, f, buf)) {
                *why = "the guest has a file of a shared directory open that was removed; close it first";
                return -EOPNOTSUPP;
            }
    return 0;
}

static int load_fid(struct p9_fs *fs, const struct record *r, const char *way)
{
    int fd = walk(fs, way);

    if (!is_file(fd, r->dev, r->ino)) {
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    if (p9_fid_add(fs, r->id, fd))
        return -EINVAL;
    bool writes = (r->flags & O_ACCMODE) != O_RDONLY;
    if (r->open && fd >= 0 && !(writes && fs->readonly))
        p9_fid_open(p9_fid_find(fs, r->id), (int)(r->flags & KEPT_FLAGS)); /* if not, it is as closed */
    return 0;
}

int p9_fs_load(struct p9_fs *fs, const void *bytes, size_t len)
{
    const u8 *p = bytes, *end = p + len;
    char way[PATH_MAX];
    u32 msize;

    if (len < sizeof(msize))
        return -EINVAL;
    p9_fs_reset(fs);
    memcpy(&msize, p, sizeof(msize));
    p += sizeof(msize);
    if (msize < 4096 || msize > P9_MSIZE_MAX)
        return -EINVAL;
    fs->msize = msize;
    while (p < end) {
        struct record r;
        if ((size_t)(end - p) < sizeof(r))
            return -EINVAL;
        memcpy(&r, p, sizeof(r));
        p += sizeof(r);
        if ((size_t)(end - p) < r.len || r.len >= sizeof(way) || r.open > 1 || memchr(p, 0, r.len))
            return -EINVAL;
        memcpy(way, p, r.len);
        way[r.len] = '\0';
        p += r.len;
        if (load_fid(fs, &r, way))
            return -EINVAL;
    }
    return 0;
}
