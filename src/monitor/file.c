#include "monitor/file.h"
#include "monitor/config.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int file_map(struct file *f, const char *what, const char *path)
{
    struct stat st;
    int err = 0;

    *f = (struct file){ 0 };
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st)) {
        err = errno;
        say("--%s: cannot open %s: %s", what, path, strerror(err));
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        err = EINVAL;
        say("--%s: %s is %s, not a file", what, path,
            S_ISDIR(st.st_mode) ? "a directory" : "a special file");
        goto out;
    }
    f->size = (u64)st.st_size;
    if (!f->size)
        goto out;
    void *p = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
        err = errno;
        say("--%s: cannot read %s: %s", what, path, strerror(err));
        goto out;
    }
    f->data = p;
out:
    if (fd >= 0)
        close(fd);
    return -err;
}

void file_unmap(struct file *f)
{
    if (f->data)
        munmap((void *)f->data, f->size);
    *f = (struct file){ 0 };
}
