/*
 * rundir.h - where running VMs are found: a private folder with, for each VM, NAME.lock (held while it
 * runs; its pid inside), NAME.qmp (control socket), NAME.console (serial console) and NAME.log (what a
 * detached VM has to say).
 */
#pragma once
#include "base/types.h"
#include <sys/types.h>

#define VM_NAME_MAX 48

/* rundir_name_ok - letters, digits, '-', '_' and '.', beginning with a letter or digit. */
bool rundir_name_ok(const char *name);
/*
 * rundir_open - the folder, made if need be: $XDG_RUNTIME_DIR/vitro, /run/user/UID/vitro, or
 * /tmp/vitro-UID. It must be ours and closed to others. 0, or -errno with a sentence in err.
 */
int rundir_open(char *path, size_t len, char *err, size_t err_len);
/* rundir_file - the path of NAME.SUFFIX; 0, or -ENAMETOOLONG: longer than a socket's address. */
int rundir_file(char *path, size_t len, const char *dir, const char *name, const char *suffix);
/*
 * rundir_claim - take the name for this process: a locked descriptor to keep open. What a VM that was
 * killed left behind is removed. -EEXIST: a VM of that name runs.
 */
int rundir_claim(const char *dir, const char *name);
/* rundir_release - remove the files of the name, then give up the lock. */
void rundir_release(const char *dir, const char *name, int lock_fd);
/* rundir_is_running - is the name claimed by a live process? *pid: whose, or 0. */
bool rundir_is_running(const char *dir, const char *name, pid_t *pid);
/* rundir_listen, rundir_connect - a stream socket there: a descriptor or -errno. */
int rundir_listen(const char *path);
int rundir_connect(const char *path);
/* rundir_peer_ok - is the process at the other end of this socket run by us, or by root? */
bool rundir_peer_ok(int fd);
