#include "monitor/detach.h"
#include "monitor/rundir.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The starter: a byte means that the VM runs; the pipe's end without one, that it has ended. */
static int wait_ready(const struct config *c, pid_t child, int fd)
{
    char byte;
    ssize_t n;
    int status;

    do
        n = read(fd, &byte, 1);
    while (n < 0 && errno == EINTR);
    if (n == 1) {
        printf("%s runs in the background: `vitro console %s` attaches, `vitro stop %s` ends it\n", c->name,
               c->name, c->name);
        return STATUS_OK;
    }
    if (waitpid(child, &status, 0) == child && WIFEXITED(status))
        return WEXITSTATUS(status);
    return STATUS_FAIL;
}

int detach_fork(struct detach *d, struct config *c)
{
    char dir[PATH_MAX], log[PATH_MAX], err[PATH_MAX + 128] = "the name is too long";
    int fd[2];

    if (!c->name) {
        say("--detach wants a --name to find the VM by");
        return STATUS_USAGE;
    }
    if (c->gdb_port) {
        say("--detach and --gdb do not go together");
        return STATUS_USAGE;
    }
    if (rundir_open(dir, sizeof(dir), err, sizeof(err)) || rundir_file(log, sizeof(log), dir, c->name, "log")) {
        say("--detach: %s", err);
        return STATUS_FAIL;
    }
    fflush(NULL);
    if (pipe2(fd, O_CLOEXEC)) {
        say("--detach: %s", strerror(errno));
        return STATUS_FAIL;
    }
    pid_t child = fork();
    if (child < 0) {
        say("--detach: %s", strerror(errno));
        return STATUS_FAIL;
    }
    if (child) {
        close(fd[1]);
        return wait_ready(c, child, fd[0]);
    }
    close(fd[0]);
    setsid();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        close(null);
    }
    *d = (struct detach){ .ready_fd = fd[1],
                          .log_fd = open(log, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) };
    c->parent = d;
    return -1;
}

void detach_ready(struct detach *d)
{
    if (!d || d->ready_fd < 0)
        return;
    if (d->log_fd >= 0) {
        int r = ftruncate(d->log_fd, 0); /* only now: it may have been that of a VM with our name */
        (void)r;
        dup2(d->log_fd, STDERR_FILENO);
        close(d->log_fd);
    }
    ssize_t n = write(d->ready_fd, "", 1);
    (void)n; /* the starter is gone: nobody waits */
    close(d->ready_fd);
    d->ready_fd = -1;
}
