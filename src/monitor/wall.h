/* wall.h - switches the sandbox on, and tells the user what it refused. */
#pragma once

/* wall_start - the process's filter (base/sandbox.h). Before the first thread. Without seccomp on the host: says so. */
void wall_start(void);
