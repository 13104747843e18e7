/* p9.h - virtio 9P device: a directory of the host's for the guest. Source: virtio 1.2 §5.9 (device 9), 9P2000.L. */
#pragma once
#include "virtio/virtio.h"

/* virtio_p9_create - serve dir under a mount tag (at most 31 bytes). 0 or -errno (-ENOTDIR, ...). */
int virtio_p9_create(struct ram *ram, const char *dir, const char *tag, bool readonly, struct virtio_dev **out);

/* -- p9_fs.c: the server; one thread at a time ---------------------------------------------------- */

#define P9_MSIZE_MAX (512u << 10)

struct p9_fs;
/* p9_fs_create - 0 or -errno. */
int p9_fs_create(const char *dir, bool readonly, struct p9_fs **out);
void p9_fs_free(struct p9_fs *fs);
/* p9_fs_reset - forget all fids. */
void p9_fs_reset(struct p9_fs *fs);
/*
 * p9_fs_request - answer one message. The reply's length, at most room (its buffer) and P9_MSIZE_MAX; 0: not even an error
 * can be said. Nothing in the message is trusted.
 */
u32 p9_fs_request(struct p9_fs *fs, const u8 *msg, u32 len, u8 *reply, u32 room);

/* -- p9_state.c: fids in snapshots; nothing is being answered --------------------------------------- */

struct state_buf;
/*
 * p9_fs_save - append which files the client has, by the ways to them. 0, or -EOPNOTSUPP with a sentence: one of them has
 * no name any more.
 */
int p9_fs_save(struct p9_fs *fs, struct state_buf *buf, const char **why);
/* p9_fs_load - from bytes that may be anybody's; files that are no more where they were are EBADF to the client. 0 or
 * -EINVAL. */
int p9_fs_load(struct p9_fs *fs, const void *bytes, size_t len);
