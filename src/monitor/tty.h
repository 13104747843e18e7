/*
 * tty.h - the user's terminal in raw mode, and back again on every way out: return, exit(), a signal, a
 * crash. A process has one terminal, so this is the one file with process-wide state.
 */
#pragma once
#include "base/types.h"

/* tty_raw - if fd is a terminal, make it raw and arrange for its restoration. True if it is one. */
bool tty_raw(int fd);
void tty_restore(void);
/*
 * tty_catch_signals - restore on INT, TERM, HUP, QUIT, ABRT and the fault signals, then die of them as
 * usual. Before the engine sets its own fault handlers, which fall back on these.
 */
void tty_catch_signals(void);
