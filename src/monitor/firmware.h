/* firmware.h - the firmware's image as the board's ROM, and the shadow RAM that replaces it below 1 MiB. */
#pragma once
#include "monitor/vm_inner.h"

/*
 * firmware_find - the path of a firmware image. A name with a slash is a path; one without is looked
 * for in the current folder and then where Debian's packages put firmware. NULL: the default, SeaBIOS.
 * False, explained, when there is none.
 */
bool firmware_find(const char *name, char *path, size_t len);
/* firmware_load - read config->firmware into vm->rom and add it to vm->view. 0 or -errno, explained. */
int firmware_load(struct guest *vm);
/* firmware_add_memory - give a slot of vm->view to the engine: cut where shadow RAM may be exchanged. */
int firmware_add_memory(struct guest *vm, const struct ram_slot *slot);
/* firmware_shadow - machine_config.shadow. */
void firmware_shadow(void *vm, gpa_t gpa, u64 size, unsigned mode);
/* firmware_files - option ROMs and settings, and what the board says, for the firmware to read. */
int firmware_files(struct guest *vm);
void firmware_free(struct guest *vm);
