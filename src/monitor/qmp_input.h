/* qmp_input.h - what input-send-event says, as keys and movements of the mouse. */
#pragma once
#include "monitor/control.h"

struct machine;

/* qmp_input - a list of events, in order, up to the first that is wrong. 0, or -1 with *e. What nobody takes is lost. */
int qmp_input(struct machine *m, const json_t *events, struct qmp_error *e);
