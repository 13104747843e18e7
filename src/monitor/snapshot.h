/*
 * snapshot.h - a VM in a file: docs/snapshot-format.md has the bytes. snapshot_file.c reads and writes files,
 * snapshot.c puts VMs into them and takes them out.
 */
#pragma once
#include "base/state.h"
#include "base/types.h"

struct config;
struct guest;

#define SNAPSHOT_ERR_LEN 400

/* A file that was opened and found to be whole. */
struct snapshot {
    const char *path;
    int fd;
    struct state_set set;
    u64 ram_offset, ram_size;
};

/* -- snapshot_file.c ------------------------------------------------------------------------------- */

/*
 * snapshot_read - open the file, read its sections, check every byte of it against its checksums. 0, or -errno
 * with a sentence in err (SNAPSHOT_ERR_LEN bytes).
 */
int snapshot_read(struct snapshot *s, const char *path, char *err);
void snapshot_close(struct snapshot *s);
/*
 * snapshot_write - write a new file beside `path`: its descriptor, and its name in temp; or -errno with a sentence.
 * set: sections, to which this adds the memory's checksums. ram_fd: behind ram, for skipping what was never
 * touched; -1: none.
 */
int snapshot_write(const char *path, struct state_set *set, const u8 *ram, u64 ram_size, int ram_fd, char *temp,
                   size_t temp_len, char *err);
/* snapshot_commit - the file is on the disk, and has its name. Closes fd. 0 or -errno with a sentence. */
int snapshot_commit(int fd, const char *temp, const char *path, char *err);

/* -- snapshot.c -------------------------------------------------------------------------------------- */

/*
 * snapshot_save - write the VM to a file. It is paused meanwhile, and stays so if it was or keep_paused is set. 0,
 * or -errno with a sentence.
 */
int snapshot_save(struct guest *vm, const char *path, bool keep_paused, char *err);
/* snapshot_options - set the options that the snapshot was saved with. 0 or a status (explained). */
int snapshot_options(struct config *c);
/* snapshot_apply - a VM just made, with the file's memory behind it, becomes what was saved, paused. 0 or -errno,
 * explained. */
int snapshot_apply(struct guest *vm);
