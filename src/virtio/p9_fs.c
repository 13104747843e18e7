/*
 * p9_fs.c - a 9P2000.L server for one directory. Source: the 9P2000.L protocol as in Linux's include/net/9p/9p.h and the
 * diod project's protocol.md. Not done: extended attributes, locks between guest and host (each client is told it has
 * them), Trename and Tremove (their newer forms are), authentication.
 *
 * Confinement: a fid is an O_PATH descriptor; names are single components without "." and "..", opened with O_NOFOLLOW.
 * So no name and no symbolic link leads out of the directory. Only regular files and directories are opened, no device
 * nodes are made. Everything is done with this process's rights and ownership.
 */
#include "virtio/p9_inner.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define HEADER 7u   /* size[4] type[1] tag[2] */
#define NO_FID (~0u)
#define WALK_MAX 16u

enum {
    R_LERROR = 7, T_STATFS = 8, T_LOPEN = 12, T_LCREATE = 14, T_SYMLINK = 16, T_MKNOD = 18, T_READLINK = 22,
    T_GETATTR = 24, T_SETATTR = 26, T_READDIR = 40, T_FSYNC = 50, T_LOCK = 52, T_GETLOCK = 54, T_LINK = 70, T_MKDIR = 72,
    T_RENAMEAT = 74, T_UNLINKAT = 76, T_VERSION = 100, T_ATTACH = 104, T_FLUSH = 108, T_WALK = 110, T_READ = 116,
    T_WRITE = 118, T_CLUNK = 120,
};

/* A message being read, and one being written. The first mistake latches. */
struct in { const u8 *p; u32 left; bool bad; };
struct out { u8 *p; u32 len, room; bool full; };

static u64 get(struct in *in, unsigned size)
{
    u64 v = 0;
    if (in->left < size) {
        in->bad = true;
        in->left = 0;
        return 0;
    }
    memcpy(&v, in->p, size);
    in->p += size;
    in->left -= size;
    return v;
}

/* A string into a buffer of NAME_MAX + 1 or PATH_MAX bytes; no NUL inside. */
static void get_string(struct in *in, char *to, u32 cap)
{
    u32 n = (u32)get(in, 2);
    if (n >= cap || n > in->left || memchr(in->p, 0, n)) {
        in->bad = true;
        n = 0;
    }
    if (n)
        memcpy(to, in->p, n);
    to[n] = '\0';
    in->p += n;
    in->left -= n;
}

static void put(struct out *out, u64 v, unsigned size)
{
    if (out->room - out->len < size) {
        out->full = true;
        return;
    }
    memcpy(out->p + out->len, &v, size);
    out->len += size;
}

static void put_string(struct out *out, const char *s)
{
    u32 n = (u32)strlen(s);
    put(out, n, 2);
    if (out->full || out->room - out->len < n) {
        out->full = true;
        return;
    }
    memcpy(out->p + out->len, s, n);
    out->len += n;
}

static void put_qid(struct out *out, const struct stat *st)
{
    put(out, S_ISDIR(st->st_mode) ? 0x80 : S_ISLNK(st->st_mode) ? 0x02 : 0, 1);
    put(out, (u32)st->st_mtim.tv_nsec ^ (u32)st->st_size, 4);
    put(out, st->st_ino ^ (u64)st->st_dev << 48, 8);
}

/* -- Fids --------------------------------------------------------------------------------------- */

struct fid *p9_fid_find(struct p9_fs *fs, u32 id)
{
    struct fid *f = fs->fid[id % BUCKETS];
    while (f && f->id != id)
        f = f->next;
    return f;
}

static void close_file(struct fid *f)
{
    if (f->dir)
        closedir(f->dir);
    else if (f->file >= 0)
        close(f->file);
    f->dir = NULL;
    f->file = -1;
}

static void drop(struct p9_fs *fs, u32 id)
{
    for (struct fid **at = &fs->fid[id % BUCKETS]; *at; at = &(*at)->next) {
        struct fid *f = *at;
        if (f->id != id)
            continue;
        *at = f->next;
        close_file(f);
        close(f->path);
        free(f);
        fs->nr_fids--;
        return;
    }
}

int p9_fid_add(struct p9_fs *fs, u32 id, int path)
{
    struct fid *f = fs->nr_fids < FIDS_MAX && id != NO_FID && !p9_fid_find(fs, id) ? calloc(1, sizeof(*f)) : NULL;
    if (!f) {
        close(path);
        return -EMFILE;
    }
    *f = (struct fid){ .next = fs->fid[id % BUCKETS], .id = id, .path = path, .file = -1 };
    fs->fid[id % BUCKETS] = f;
    fs->nr_fids++;
    return 0;
}

void p9_fs_reset(struct p9_fs *fs)
{
    for (unsigned i = 0; i < BUCKETS; i++)
        while (fs->fid[i])
            drop(fs, fs->fid[i]->id);
    fs->msize = 8192;
}

bool p9_name_ok(const char *s)
{
    return *s && strcmp(s, ".") && strcmp(s, "..") && !strchr(s, '/');
}

/* Another way to the inode of an O_PATH descriptor, for calls that want a path. */
static const char *proc_path(int fd, char buf[32])
{
    snprintf(buf, 32, "/proc/self/fd/%d", fd);
    return buf;
}

/* -- Messages: each reads its arguments, writes its results, returns 0 or -errno ----------------- */

static int do_version(struct p9_fs *fs, struct in *in, struct out *out)
{
    char version[32];
    u32 msize = (u32)get(in, 4);
    get_string(in, version, sizeof(version));
    if (in->bad || msize < 4096)
        return -EINVAL;
    p9_fs_reset(fs);
    fs->msize = MIN(msize, P9_MSIZE_MAX);
    put(out, fs->msize, 4);
    put_string(out, strcmp(version, "9P2000.L") ? "unknown" : "9P2000.L");
    return 0;
}

static int do_attach(struct p9_fs *fs, struct in *in, struct out *out)
{
    char name[256];
    struct stat st;
    u32 id = (u32)get(in, 4);
    get(in, 4); /* afid: no authentication */
    get_string(in, name, sizeof(name));
    get_string(in, name, sizeof(name));
    get(in, 4);
    int fd = in->bad ? -1 : fcntl(fs->root, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return in->bad ? -EINVAL : -errno;
    if (fstat(fd, &st)) {
        close(fd);
        return -EIO;
    }
    put_qid(out, &st);
    return p9_fid_add(fs, id, fd);
}

static int do_walk(struct p9_fs *fs, struct in *in, struct out *out)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    u32 new_id = (u32)get(in, 4), nr = (u32)get(in, 2), count_at = out->len, done = 0;
    char name[NAME_MAX + 1];
    struct stat st;

    if (!f || in->bad || nr > WALK_MAX)
        return -EINVAL;
    int err = 0, fd = fcntl(f->path, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    put(out, 0, 2);
    while (done < nr && !err) {
        get_string(in, name, sizeof(name));
        int next = in->bad || !p9_name_ok(name) ? (errno = ENOENT, -1) : openat(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (next >= 0 && !fstat(next, &st)) {
            put_qid(out, &st);
            done++;
            close(fd);
            fd = next;
        } else {
            err = -errno;
            if (next >= 0)
                close(next);
        }
    }
    if (done < nr) { /* as far as it goes; nothing at all is an error */
        close(fd);
        if (!done)
            return err;
    } else {
        if (new_id == f->id)
            drop(fs, new_id);
        err = p9_fid_add(fs, new_id, fd);
        if (err)
            return err;
    }
    if (!out->full)
        memcpy(out->p + count_at, &done, 2);
    return 0;
}

static int open_flags(const struct p9_fs *fs, u32 flags)
{
    int f = (int)flags & (O_ACCMODE | O_TRUNC | O_APPEND | O_DSYNC | O_SYNC);
    return fs->readonly && (f & (O_ACCMODE | O_TRUNC)) ? -EROFS : f;
}

int p9_fid_open(struct fid *f, int flags)
{
    struct stat st;
    char proc[32];

    if (fstat(f->path, &st))
        return -errno;
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return -ENXIO;
    f->file = open(proc_path(f->path, proc), flags | O_CLOEXEC | (S_ISDIR(st.st_mode) ? O_DIRECTORY : 0));
    if (f->file < 0)
        return -errno;
    if (S_ISDIR(st.st_mode) && !(f->dir = fdopendir(f->file))) {
        close_file(f);
        return -ENOMEM;
    }
    return 0;
}

static int do_lopen(struct p9_fs *fs, struct in *in, struct out *out)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    int flags = open_flags(fs, (u32)get(in, 4));
    struct stat st;

    if (!f || in->bad || f->file >= 0)
        return -EBADF;
    int r = flags < 0 ? flags : p9_fid_open(f, flags);
    if (r)
        return r;
    if (fstat(f->path, &st))
        return -errno;
    put_qid(out, &st);
    put(out, 0, 4); /* iounit: as msize allows */
    return 0;
}

/* Make a new thing in fid's directory and open or stat it. kind: 'f', 'd', 'l', 'n'. */
static int do_create(struct p9_fs *fs, struct in *in, struct out *out, char kind)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    char name[NAME_MAX + 1], target[PATH_MAX] = "";
    u32 flags = 0, mode = 0;
    struct stat st;
    int fd = -1, r = 0;

    get_string(in, name, sizeof(name));
    if (kind == 'l')
        get_string(in, target, sizeof(target));
    if (kind == 'f')
        flags = (u32)get(in, 4);
    if (kind != 'l')
        mode = (u32)get(in, 4);
    if (kind == 'n')
        get(in, 8); /* major, minor: no devices */
    get(in, 4);     /* gid: ours */
    if (!f || in->bad || !p9_name_ok(name))
        return f ? -EINVAL : -EBADF;
    if (fs->readonly)
        return -EROFS;
    switch (kind) {
    case 'f':
        fd = openat(f->path, name, open_flags(fs, flags) | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC |
                    ((int)flags & O_EXCL), mode & 07777);
        r = fd < 0 ? -1 : 0;
        break;
    case 'd': r = mkdirat(f->path, name, mode & 07777); break;
    case 'l': r = symlinkat(target, f->path, name); break;
    default:
        if (!S_ISREG(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode))
            return -EPERM;
        r = mknodat(f->path, name, mode & (S_IFMT | 07777), 0);
    }
    if (r)
        return -errno;
    if (kind == 'f') {
        r = fstat(fd, &st) ? -errno : S_ISREG(st.st_mode) ? 0 : -ENXIO;
        int path = r ? -1 : openat(f->path, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (path < 0) {
            close(fd);
            return r ? r : -errno;
        }
        close_file(f);
        close(f->path);
        f->path = path; /* the fid is the new file now */
        f->file = fd;
    } else if (fstatat(f->path, name, &st, AT_SYMLINK_NOFOLLOW)) {
        return -errno;
    }
    put_qid(out, &st);
    if (kind == 'f')
        put(out, 0, 4);
    return 0;
}

static int do_read(struct p9_fs *fs, struct in *in, struct out *out)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    u64 at = get(in, 8);
    u32 count = (u32)get(in, 4), done = 0, count_at = out->len;

    if (!f || in->bad || f->file < 0 || f->dir)
        return -EBADF;
    put(out, 0, 4);
    count = MIN(count, out->room - out->len);
    while (done < count) {
        ssize_t n = pread(f->file, out->p + out->len, count - done, (off_t)(at + done));
        if (n < 0 && !done)
            return -errno;
        if (n <= 0)
            break;
        done += (u32)n;
        out->len += (u32)n;
    }
    memcpy(out->p + count_at, &done, 4);
    return 0;
}

static int do_write(struct p9_fs *fs, struct in *in, struct out *out)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    u64 at = get(in, 8);
    u32 count = (u32)get(in, 4), done = 0;

    if (!f || in->bad || f->file < 0 || f->dir)
        return -EBADF;
    count = MIN(count, in->left);
    while (done < count) {
        ssize_t n = pwrite(f->file, in->p + done, count - done, (off_t)(at + done));
        if (n < 0 && !done)
            return -errno;
        if (n <= 0)
            break;
        done += (u32)n;
    }
    put(out, done, 4);
    return 0;
}

static int do_readdir(struct p9_fs *fs, struct in *in, struct out *out)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    u64 at = get(in, 8);
    u32 count = (u32)get(in, 4), count_at = out->len;
    struct dirent *e;

    if (!f || in->bad || !f->dir)
        return -EBADF;
    put(out, 0, 4);
    u32 start = out->len, end = start + MIN(count, out->room - start);
    if (at)
        seekdir(f->dir, (long)at);
    else
        rewinddir(f->dir);
    while ((e = readdir(f->dir))) {
        struct stat st = { .st_ino = e->d_ino, .st_mode = e->d_type == DT_DIR ? S_IFDIR : S_IFREG };
        if (out->len + 13 + 8 + 1 + 2 + strlen(e->d_name) > end)
            break;
        if (strcmp(e->d_name, "..")) /* its inode is nobody's business */
            fstatat(f->file, e->d_name, &st, AT_SYMLINK_NOFOLLOW);
        put_qid(out, &st);
        put(out, (u64)telldir(f->dir), 8);
        put(out, e->d_type, 1);
        put_string(out, e->d_name);
    }
    u32 done = out->len - start;
    memcpy(out->p + count_at, &done, 4);
    return 0;
}

static int do_getattr(struct p9_fs *fs, struct in *in, struct out *out)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    struct stat st;

    if (!f || in->bad)
        return -EBADF;
    if (fstat(f->path, &st))
        return -errno;
    put(out, 0x7ff, 8); /* the basic ones */
    put_qid(out, &st);
    put(out, st.st_mode, 4);
    put(out, st.st_uid, 4);
    put(out, st.st_gid, 4);
    const u64 words[] = {
        st.st_nlink, st.st_rdev, (u64)st.st_size, (u64)st.st_blksize, (u64)st.st_blocks,
        (u64)st.st_atim.tv_sec, (u64)st.st_atim.tv_nsec, (u64)st.st_mtim.tv_sec, (u64)st.st_mtim.tv_nsec,
        (u64)st.st_ctim.tv_sec, (u64)st.st_ctim.tv_nsec, 0, 0, 0, 0,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        put(out, words[i], 8);
    return 0;
}

enum { A_MODE = 1, A_UID = 2, A_GID = 4, A_SIZE = 8, A_ATIME = 16, A_MTIME = 32, A_ATIME_SET = 128, A_MTIME_SET = 256 };

static int set_size(struct fid *f, u64 size)
{
    char proc[32];
    struct stat st;
    if (f->file >= 0 && !ftruncate(f->file, (off_t)size))
        return 0;
    if (fstat(f->path, &st) || !S_ISREG(st.st_mode))
        return -EINVAL;
    return truncate(proc_path(f->path, proc), (off_t)size) ? -errno : 0;
}

static int do_setattr(struct p9_fs *fs, struct in *in)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    u32 valid = (u32)get(in, 4), mode = (u32)get(in, 4), uid = (u32)get(in, 4), gid = (u32)get(in, 4);
    u64 size = get(in, 8), asec = get(in, 8), ansec = get(in, 8), msec = get(in, 8), mnsec = get(in, 8);
    char proc[32];
    struct stat st;

    if (!f || in->bad)
        return -EBADF;
    if (fs->readonly)
        return -EROFS;
    if (fstat(f->path, &st))
        return -errno;
    if ((valid & A_MODE) && (S_ISLNK(st.st_mode) ? (errno = EOPNOTSUPP, -1) : chmod(proc_path(f->path, proc), mode & 07777)))
        return -errno;
    if ((valid & (A_UID | A_GID)) && fchownat(f->path, "", valid & A_UID ? uid : (uid_t)-1,
                                              valid & A_GID ? gid : (gid_t)-1, AT_EMPTY_PATH))
        return -errno;
    int r = valid & A_SIZE ? set_size(f, size) : 0;
    if (r)
        return r;
    if (valid & (A_ATIME | A_MTIME)) {
        const struct timespec ts[2] = {
            { valid & A_ATIME_SET ? (time_t)asec : 0, valid & A_ATIME_SET ? (long)ansec : valid & A_ATIME ? UTIME_NOW : UTIME_OMIT },
            { valid & A_MTIME_SET ? (time_t)msec : 0, valid & A_MTIME_SET ? (long)mnsec : valid & A_MTIME ? UTIME_NOW : UTIME_OMIT },
        };
        if (!S_ISLNK(st.st_mode) && utimensat(AT_FDCWD, proc_path(f->path, proc), ts, 0))
            return -errno;
    }
    return 0;
}

static int do_statfs(struct p9_fs *fs, struct in *in, struct out *out)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    struct statfs st;
    if (!f || in->bad)
        return -EBADF;
    if (fstatfs(f->path, &st))
        return -errno;
    put(out, (u32)st.f_type, 4);
    put(out, (u32)st.f_bsize, 4);
    const u64 words[] = { st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, 0 };
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        put(out, words[i], 8);
    put(out, (u32)st.f_namelen, 4);
    return 0;
}

static int do_readlink(struct p9_fs *fs, struct in *in, struct out *out)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    char target[PATH_MAX];
    if (!f || in->bad)
        return -EBADF;
    ssize_t n = readlinkat(f->path, "", target, sizeof(target) - 1);
    if (n < 0)
        return -errno;
    target[n] = '\0';
    put_string(out, target);
    return 0;
}

static int do_link(struct p9_fs *fs, struct in *in)
{
    struct fid *d = p9_fid_find(fs, (u32)get(in, 4)), *f = p9_fid_find(fs, (u32)get(in, 4));
    char name[NAME_MAX + 1], proc[32];
    get_string(in, name, sizeof(name));
    if (!d || !f || in->bad || !p9_name_ok(name))
        return -EINVAL;
    if (fs->readonly)
        return -EROFS;
    return linkat(AT_FDCWD, proc_path(f->path, proc), d->path, name, AT_SYMLINK_FOLLOW) ? -errno : 0;
}

static int do_renameat(struct p9_fs *fs, struct in *in)
{
    char from[NAME_MAX + 1], to[NAME_MAX + 1];
    struct fid *a = p9_fid_find(fs, (u32)get(in, 4));
    get_string(in, from, sizeof(from));
    struct fid *b = p9_fid_find(fs, (u32)get(in, 4));
    get_string(in, to, sizeof(to));
    if (!a || !b || in->bad || !p9_name_ok(from) || !p9_name_ok(to))
        return -EINVAL;
    if (fs->readonly)
        return -EROFS;
    return renameat(a->path, from, b->path, to) ? -errno : 0;
}

static int do_unlinkat(struct p9_fs *fs, struct in *in)
{
    struct fid *d = p9_fid_find(fs, (u32)get(in, 4));
    char name[NAME_MAX + 1];
    get_string(in, name, sizeof(name));
    u32 flags = (u32)get(in, 4);
    if (!d || in->bad || !p9_name_ok(name))
        return -EINVAL;
    if (fs->readonly)
        return -EROFS;
    return unlinkat(d->path, name, flags & AT_REMOVEDIR) ? -errno : 0;
}

static int do_fsync(struct p9_fs *fs, struct in *in)
{
    struct fid *f = p9_fid_find(fs, (u32)get(in, 4));
    u32 data_only = in->left >= 4 ? (u32)get(in, 4) : 0;
    if (!f || in->bad || f->file < 0)
        return -EBADF;
    return (data_only ? fdatasync(f->file) : fsync(f->file)) ? -errno : 0;
}

/* Nobody else has a lock. */
static int do_getlock(struct in *in, struct out *out)
{
    char client[256];
    get(in, 4 + 1);
    u64 start = get(in, 8), length = get(in, 8), pid = get(in, 4);
    get_string(in, client, sizeof(client));
    if (in->bad)
        return -EINVAL;
    put(out, 2, 1); /* unlocked */
    put(out, start, 8);
    put(out, length, 8);
    put(out, pid, 4);
    put_string(out, client);
    return 0;
}

static int dispatch(struct p9_fs *fs, u8 type, struct in *in, struct out *out)
{
    u32 id;
    switch (type) {
    case T_VERSION: return do_version(fs, in, out);
    case T_ATTACH: return do_attach(fs, in, out);
    case T_FLUSH: return 0; /* requests are answered in order: that one has been */
    case T_WALK: return do_walk(fs, in, out);
    case T_LOPEN: return do_lopen(fs, in, out);
    case T_LCREATE: return do_create(fs, in, out, 'f');
    case T_MKDIR: return do_create(fs, in, out, 'd');
    case T_SYMLINK: return do_create(fs, in, out, 'l');
    case T_MKNOD: return do_create(fs, in, out, 'n');
    case T_READ: return do_read(fs, in, out);
    case T_WRITE: return do_write(fs, in, out);
    case T_READDIR: return do_readdir(fs, in, out);
    case T_GETATTR: return do_getattr(fs, in, out);
    case T_SETATTR: return do_setattr(fs, in);
    case T_STATFS: return do_statfs(fs, in, out);
    case T_READLINK: return do_readlink(fs, in, out);
    case T_LINK: return do_link(fs, in);
    case T_RENAMEAT: return do_renameat(fs, in);
    case T_UNLINKAT: return do_unlinkat(fs, in);
    case T_FSYNC: return do_fsync(fs, in);
    case T_LOCK:
        put(out, 0, 1);
        return 0;
    case T_GETLOCK: return do_getlock(in, out);
    case T_CLUNK:
        id = (u32)get(in, 4);
        if (!p9_fid_find(fs, id))
            return -EBADF;
        drop(fs, id);
        return 0;
    default: return -EOPNOTSUPP;
    }
}

u32 p9_fs_request(struct p9_fs *fs, const u8 *msg, u32 len, u8 *reply, u32 room)
{
    u32 size;
    if (len < HEADER || room < HEADER + 4)
        return 0;
    memcpy(&size, msg, 4);
    u8 type = msg[4];
    struct in in = { msg + HEADER, MIN(size, len) < HEADER ? 0 : MIN(size, len) - HEADER, false };
    struct out out = { reply, HEADER, MIN(room, type == T_VERSION ? P9_MSIZE_MAX : fs->msize), false };
    int r = dispatch(fs, type, &in, &out);
    if (!r && out.full)
        r = -ENOBUFS;
    reply[4] = (u8)(type + 1);
    if (r) {
        out = (struct out){ reply, HEADER, room, false };
        put(&out, (u32)-r, 4);
        reply[4] = R_LERROR;
    }
    memcpy(reply, &out.len, 4);
    memcpy(reply + 5, msg + 5, 2);
    return out.len;
}

int p9_fs_create(const char *dir, bool readonly, struct p9_fs **out)
{
    struct p9_fs *fs = calloc(1, sizeof(*fs));
    struct rlimit limit;

    if (!fs)
        return -ENOMEM;
    fs->readonly = readonly;
    fs->root = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fs->root < 0) {
        int err = -errno;
        free(fs);
        return err;
    }
    if (!getrlimit(RLIMIT_NOFILE, &limit)) { /* a descriptor or two a fid */
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    p9_fs_reset(fs);
    *out = fs;
    return 0;
}

void p9_fs_free(struct p9_fs *fs)
{
    if (!fs)
        return;
    p9_fs_reset(fs);
    close(fs->root);
    free(fs);
}
