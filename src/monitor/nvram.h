/* nvram.h - UEFI firmware's variables: a flash chip right below the firmware's own, kept in a file. */
#pragma once

struct guest;
struct machine_config;

/*
 * nvram_load - after firmware_load(): read config->nvram (made from the template beside the firmware if it does not
 * exist) into vm->nvram. Without the option the template serves, and what is set is gone at the end; without a
 * template either there is no such chip. 0 or -errno, explained.
 */
int nvram_load(struct guest *vm);
void nvram_plug(struct guest *vm, struct machine_config *mc);
void nvram_free(struct guest *vm);
