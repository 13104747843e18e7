/* detach.h - a VM in the background: who started it hears whether it runs, then has its terminal back. */
#pragma once
#include "monitor/config.h"

struct detach {
    int ready_fd; /* -1: the starter knows */
    int log_fd;
};

/*
 * detach_fork - go on in a new session. In the child -1; in the parent, once the child runs or has failed, the
 * status to exit with. stderr is the starter's until detach_ready(), then NAME.log in the run folder.
 */
int detach_fork(struct detach *d, struct config *c);
/* detach_ready - the VM runs. Nothing if d is NULL, or on a second call. */
void detach_ready(struct detach *d);
