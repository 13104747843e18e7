/* client.h - the commands that act on running VMs: ps, stop, console, stats and so on. */
#pragma once
#include "base/types.h"

/* client_run - do `vitro WHAT ARGS`; the exit status. */
int client_run(const char *what, int argc, char **argv);
/* client_help - a line for each command on stdout. */
void client_help(void);
