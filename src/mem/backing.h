/*
 * backing.h - host memory to put behind a RAM slot: a memfd, so that it can be mapped more than once
 * and handed to another process. Pages cost nothing until they are touched.
 */
#pragma once
#include "base/types.h"

struct backing {
    int fd;     /* -1: of a file */
    void *host; /* page aligned, read-write, shared unless of a file */
    u64 size;
};

/* backing_init - size is rounded up to pages. 0, or -errno with *b unusable. */
int backing_init(struct backing *b, u64 size);
/*
 * backing_map_file - [offset, offset + size) of a file, read as it is touched; writes stay here. The file must not
 * shrink or change meanwhile. fd stays the caller's; b->fd is -1.
 */
int backing_map_file(struct backing *b, u64 size, int fd, u64 offset);
/* backing_zero - back to all-zero pages; gives the memory back to the host. */
int backing_zero(struct backing *b);
void backing_fini(struct backing *b);
