/*
 * firmware.c - what firmware is told: the items and files of fw_cfg. Source: QEMU
 * docs/specs/fw_cfg.rst for the numbers; the file names and the format of etc/table-loader are what
 * SeaBIOS (src/fw/paravirt.c, romfile_loader.h) and OVMF read.
 */
#include "machine/acpi.h"
#include "machine/board.h"
#include "machine/layout.h"
#include "machine/smbios.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FILES_MAX 0x20000u

/* -- ACPI: the tables in one file, and a script that says how to place them --------------------- */

#define LOADER_FILE_NAME 56
enum { LOADER_ALLOCATE = 1, LOADER_ADD_POINTER = 2, LOADER_ADD_CHECKSUM = 3 };
enum { LOADER_HIGH = 1, LOADER_FSEG = 2 };

struct loader_command {
    u32 command;
    union {
        struct { char file[LOADER_FILE_NAME]; u32 align; u8 zone; } __attribute__((packed)) allocate;
        struct {
            char to[LOADER_FILE_NAME], from[LOADER_FILE_NAME];
            u32 offset;
            u8 size;
        } __attribute__((packed)) pointer; /* the field in `to` gets the address of `from` added */
        struct {
            char file[LOADER_FILE_NAME];
            u32 offset, start, length;
        } __attribute__((packed)) sum;
        char pad[124];
    };
} __attribute__((packed));
_Static_assert(sizeof(struct loader_command) == 128, "romfile_loader.h");

static const char rsdp_file[] = "etc/acpi/rsdp", tables_file[] = "etc/acpi/tables";

static const char *file_of(u32 offset)
{
    return offset < ACPI_TABLES ? rsdp_file : tables_file;
}

static u32 in_file(u32 offset)
{
    return offset < ACPI_TABLES ? offset : offset - ACPI_TABLES;
}

static int add_acpi(struct machine *m)
{
    /* With this base, a pointer's value is an offset in the file of tables. */
    const struct acpi_config config = {
        .nr_cpus = m->config.nr_cpus, .base = (gpa_t)0 - ACPI_TABLES, .mmio64 = m->pci.mmio64,
        .vga = m->config.vga, .keyboard = m->config.keyboard,
        .nr_virtio_mmio = m->nr_virtio_mmio,
    };
    struct acpi_links links = { 0 };
    struct loader_command script[2 + 2 * ACPI_LINKS_MAX] = { 0 }, *c = script;
    u8 *buf = calloc(1, LAYOUT_ACPI_SIZE);
    if (!buf)
        return -ENOMEM;
    size_t len = acpi_build(&config, buf, LAYOUT_ACPI_SIZE, &links);
    bug_on(!len);

    c->command = LOADER_ALLOCATE;
    strcpy(c->allocate.file, rsdp_file);
    c->allocate.align = 16;
    c->allocate.zone = LOADER_FSEG;
    c++;
    c->command = LOADER_ALLOCATE;
    strcpy(c->allocate.file, tables_file);
    c->allocate.align = 64;
    c->allocate.zone = LOADER_HIGH;
    c++;
    for (unsigned i = 0; i < links.nr_pointers; i++, c++) {
        c->command = LOADER_ADD_POINTER;
        strcpy(c->pointer.to, file_of(links.pointer[i].at));
        strcpy(c->pointer.from, tables_file);
        c->pointer.offset = in_file(links.pointer[i].at);
        c->pointer.size = links.pointer[i].size;
    }
    for (unsigned i = 0; i < links.nr_sums; i++, c++) {
        c->command = LOADER_ADD_CHECKSUM;
        strcpy(c->sum.file, file_of(links.sum[i].at));
        c->sum.offset = in_file(links.sum[i].at);
        c->sum.start = in_file(links.sum[i].start);
        c->sum.length = links.sum[i].length;
        buf[links.sum[i].at] = 0; /* SeaBIOS subtracts the sum from the byte; OVMF puts there what the sum lacks */
    }
    int r = fw_cfg_add_file(&m->fw_cfg, rsdp_file, buf, ACPI_RSDP_SIZE);
    if (!r)
        r = fw_cfg_add_file(&m->fw_cfg, tables_file, buf + ACPI_TABLES, len - ACPI_TABLES);
    if (!r)
        r = fw_cfg_add_file(&m->fw_cfg, "etc/table-loader", script,
                            (size_t)((u8 *)c - (u8 *)script));
    free(buf);
    return r;
}

/* -- The rest ----------------------------------------------------------------------------------- */

static int add_smbios(struct machine *m)
{
    const struct smbios_config config = {
        .ram_size = m->config.ram_size, .nr_cpus = m->config.nr_cpus,
    };
    u8 anchor[SMBIOS_ANCHOR_SIZE], *buf = malloc(FILES_MAX);
    if (!buf)
        return -ENOMEM;
    size_t len = smbios_build(&config, anchor, buf, FILES_MAX);
    bug_on(!len);
    int r = fw_cfg_add_file(&m->fw_cfg, "etc/smbios/smbios-anchor", anchor, sizeof(anchor));
    if (!r)
        r = fw_cfg_add_file(&m->fw_cfg, "etc/smbios/smbios-tables", buf, len);
    free(buf);
    return r;
}

/* RAM as slots of the board; what else is reserved firmware knows by itself. */
static int add_e820(struct machine *m)
{
    struct { u64 addr, size; u32 type; } __attribute__((packed)) e[3];
    u64 low = MIN(m->config.ram_size, LAYOUT_LOW_RAM_MAX);
    unsigned n = 0;

    e[n].addr = 0, e[n].size = low, e[n++].type = E820_RAM;
    if (m->config.ram_size > low)
        e[n].addr = LAYOUT_4G, e[n].size = m->config.ram_size - low, e[n++].type = E820_RAM;
    e[n].addr = LAYOUT_ECAM, e[n].size = LAYOUT_ECAM_SIZE, e[n++].type = E820_RESERVED;
    return fw_cfg_add_file(&m->fw_cfg, "etc/e820", e, n * sizeof(e[0]));
}

int machine_add_file(struct machine *m, const char *name, const void *data, size_t size)
{
    return fw_cfg_add_file(&m->fw_cfg, name, data, size);
}

int machine_add_item(struct machine *m, u16 key, const void *data, size_t size)
{
    return fw_cfg_add(&m->fw_cfg, key, data, size);
}

int machine_fill_firmware(struct machine *m)
{
    const u64 ram = MIN(m->config.ram_size, LAYOUT_LOW_RAM_MAX), none = 0;
    const u16 cpus = (u16)m->config.nr_cpus, menu = m->config.boot_menu;
    const u8 uuid[16] = { 0 }, irq0_override = 1;
    const struct { u16 key; const void *data; size_t size; } item[] = {
        { FW_CFG_UUID, uuid, sizeof(uuid) },       { FW_CFG_RAM_SIZE, &ram, 8 },
        { FW_CFG_NOGRAPHIC, &none, 2 },            { FW_CFG_NB_CPUS, &cpus, 2 },
        { FW_CFG_NUMA, &none, 8 },                 { FW_CFG_BOOT_MENU, &menu, 2 },
        { FW_CFG_MAX_CPUS, &cpus, 2 },             { FW_CFG_IRQ0_OVERRIDE, &irq0_override, 1 },
    };
    int r = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(item) && !r; i++)
        r = fw_cfg_add(&m->fw_cfg, item[i].key, item[i].data, item[i].size);
    if (!r)
        r = add_e820(m);
    if (!r)
        r = add_acpi(m);
    if (!r)
        r = add_smbios(m);
    return r ? r : fw_cfg_seal(&m->fw_cfg);
}
