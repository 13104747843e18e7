/* file.h - a whole input file in memory, read only. */
#pragma once
#include "base/types.h"

struct file {
    const u8 *data;
    u64 size;
};

/* file_map - 0, or -errno after explaining it with say(). what: "kernel", "initrd". */
int file_map(struct file *f, const char *what, const char *path);
void file_unmap(struct file *f);
