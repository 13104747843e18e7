/* smbios.h - the SMBIOS tables of the board, as files for the firmware to place. Pure. */
#pragma once
#include "base/types.h"

struct smbios_config {
    u64 ram_size; /* bytes */
    unsigned nr_cpus;
    u8 uuid[16];
};

#define SMBIOS_ANCHOR_SIZE 24

/*
 * smbios_build - the structures into buf, the 64-bit entry point, with address 0 and its checksum for
 * that, into anchor. Bytes used, or 0 if cap is too small.
 */
size_t smbios_build(const struct smbios_config *config, u8 anchor[SMBIOS_ANCHOR_SIZE], void *buf,
                    size_t cap);
