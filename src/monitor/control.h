/*
 * control.h - the control socket of a running VM: JSON in QMP's framing, so that QEMU's clients fit. One
 * thread serves up to CONTROL_CLIENTS clients; the table of commands is in qmp_commands.c. It outlives a reset
 * of the guest: main.c makes it once, vm.c attaches each guest to it.
 */
#pragma once
#include "monitor/qmp.h"
#include "monitor/vm.h"

struct control;
struct guest;
struct config;

/*
 * control_create - claim c's name and listen. NULL: *status is set and the reason was said; or, with *status 0,
 * there is none because c has no name and no socket can be made.
 */
struct control *control_create(const struct config *c, int *status);
void control_destroy(struct control *ctl);
/* control_attach - this guest takes the commands from now on; from the thread that runs it. NULL ctl: nothing. */
void control_attach(struct control *ctl, struct guest *vm);
/* control_detach - after it no command touches the guest. Tells clients how it ended. */
void control_detach(struct control *ctl, enum vm_outcome outcome, bool again);
/* control_console - output of the guest for whoever has attached to its console. Any thread. */
void control_console(struct control *ctl, const u8 *bytes, size_t len);

/* -- For commands (qmp_commands.c), on the control thread ----------------------------------------------- */

struct qmp_error {
    const char *class; /* QMP's: GenericError, CommandNotFound */
    char desc[400];
};
/* control_fail - fill in a GenericError; returns -1, for `return control_fail(...)`. */
int control_fail(struct qmp_error *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* control_event - tell every client; data may be NULL, and is consumed. */
void control_event(struct control *ctl, const char *name, json_t *data);

struct control_command {
    const char *name;
    const char *args; /* names that may be given, separated by spaces; those that must end in '!' */
    /* Returns 0 with *ret (NULL: an empty object), or -1 with *e filled in. vm is NULL between two guests. */
    int (*run)(struct control *ctl, struct guest *vm, json_t *args, json_t **ret, struct qmp_error *e);
    bool needs_vm;
};
/* control_commands - ended by a row without name. */
extern const struct control_command control_commands[];
const char *control_console_path(const struct control *ctl);
