/* p9_inner.h - what p9_fs.c and p9_state.c share. */
#pragma once
#include "virtio/p9.h"
#include <dirent.h>

#define FIDS_MAX 4096u
#define BUCKETS 256u

struct fid {
    struct fid *next;
    u32 id;
    int path, file; /* O_PATH; opened, or -1. Path -1: out of a snapshot, and no more there: EBADF for whatever is asked */
    DIR *dir;       /* opened directory; owns file */
};

struct p9_fs {
    int root;
    bool readonly;
    u32 msize;
    unsigned nr_fids;
    struct fid *fid[BUCKETS];
};

struct fid *p9_fid_find(struct p9_fs *fs, u32 id);
/* p9_fid_add - takes path over, also on failure. 0 or -errno. */
int p9_fid_add(struct p9_fs *fs, u32 id, int path);
/* p9_fid_open - open what it names, a regular file or a directory. flags: of open(2). 0 or -errno. */
int p9_fid_open(struct fid *f, int flags);
/* p9_name_ok - a name that stays where it is. */
bool p9_name_ok(const char *s);
