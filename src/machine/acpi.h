/* acpi.h - the ACPI tables of the board. Pure: builds into a buffer; the caller puts it in RAM. */
#pragma once
#include "base/types.h"

struct acpi_config {
    unsigned nr_cpus;
    gpa_t base;     /* where the buffer will be in guest memory; 64-byte aligned */
    u64 mmio64;     /* the 64-bit PCI window's start */
};

/*
 * acpi_build - RSDP at offset 0, the other tables behind it. Bytes used, or 0 if cap is too small.
 */
size_t acpi_build(const struct acpi_config *config, void *buf, size_t cap);
