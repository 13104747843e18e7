/* acpi.h - the ACPI tables of the board. Pure: builds into a buffer; the caller puts it in RAM. */
#pragma once
#include "base/types.h"

struct acpi_config {
    unsigned nr_cpus;
    gpa_t base;     /* where the buffer will be in guest memory; 64-byte aligned */
    u64 mmio64;     /* the 64-bit PCI window's start */
    bool vga, keyboard, floppy; /* there is one */
    unsigned nr_virtio_mmio; /* devices at LAYOUT_VIRTIO_MMIO */
};

/* What whoever moves the tables has to repair; offsets into the buffer. */
#define ACPI_LINKS_MAX 48
struct acpi_links {
    unsigned nr_pointers, nr_sums;
    struct { u32 at; u8 size; } pointer[ACPI_LINKS_MAX];      /* holds base + offset of a table */
    struct { u32 at, start, length; } sum[ACPI_LINKS_MAX]; /* a byte that makes a range add up to 0 */
};
#define ACPI_TABLES 64 /* the RSDP is alone in what is before this offset */
#define ACPI_RSDP_SIZE 36

/*
 * acpi_build - RSDP at offset 0, the other tables behind it. Bytes used, or 0 if cap is too small.
 * @links: filled if not NULL
 */
size_t acpi_build(const struct acpi_config *config, void *buf, size_t cap, struct acpi_links *links);
