/*
 * input.h - what a person does at the machine: keys, and the mouse. Screens and the control socket call it, from any
 * thread; the board hands it to its i8042. Each function is false when the event was lost: there is no such
 * device, the guest does not listen, or a buffer is full. Movement is not lost for lack of room, but added up.
 */
#pragma once
#include "base/types.h"

struct machine;

enum input_button { INPUT_LEFT, INPUT_RIGHT, INPUT_MIDDLE, INPUT_SIDE, INPUT_EXTRA };

/* machine_key - a key goes down or up: its code in scan code set 1, with the e0 prefix or not. */
bool machine_key(struct machine *m, u8 set1, bool e0, bool down);
/* machine_keys_taken - the guest has read every key so far: who types by itself waits for that. */
bool machine_keys_taken(struct machine *m);
/* machine_button - a button of the mouse goes down or up. */
bool machine_button(struct machine *m, enum input_button button, bool down);
/* machine_move - dx to the right, dy towards the user (down on a screen), wheel clicks away from the user (up). */
bool machine_move(struct machine *m, int dx, int dy, int wheel);
