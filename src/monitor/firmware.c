/*
 * firmware.c - firmware for the board. Its image ends at 4 GiB; below 1 MiB its last 128 KiB are seen
 * until the firmware switches RAM in (82441FX PAM, machine/chips/piix.h).
 */
#include "monitor/firmware.h"
#include "boot/boot.h"
#include "machine/chips/piix.h"
#include "machine/layout.h"
#include "machine/machine.h"
#include "monitor/file.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BIOS_WINDOW (LAYOUT_HIGH_RAM - LAYOUT_BIOS)
#define SERIAL_CONSOLE PORT_COM1 /* SeaBIOS's etc/sercon-port */

static const char *const firmware_dirs[] = {
    ".", "/usr/local/share/vitro", "/usr/share/seabios", "/usr/share/qemu", "/usr/share/OVMF",
};
static const char *const default_names[] = { "bios-256k.bin", "bios.bin" };

static bool find_in_dirs(const char *name, unsigned first, char *path, size_t len)
{
    for (unsigned i = first; i < ARRAY_SIZE(firmware_dirs); i++) {
        int n = snprintf(path, len, "%s/%s", firmware_dirs[i], name);
        if (n > 0 && (size_t)n < len && !access(path, R_OK))
            return true;
    }
    return false;
}

bool firmware_find(const char *name, char *path, size_t len)
{
    if (name && strchr(name, '/')) {
        int n = snprintf(path, len, "%s", name);
        return n > 0 && (size_t)n < len;
    }
    if (name && !strcmp(name, "ovmf")) {
        if (find_in_dirs("OVMF_CODE_4M.fd", 1, path, len) || find_in_dirs("OVMF_CODE.fd", 1, path, len))
            return true;
        say("--firmware: no OVMF here; install Debian's package ovmf");
        return false;
    }
    if (name && find_in_dirs(name, 0, path, len))
        return true;
    if (name) {
        say("--firmware: no %s here, nor in /usr/local/share/vitro, /usr/share/seabios, "
            "/usr/share/qemu or /usr/share/OVMF", name);
        return false;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(default_names); i++)
        if (find_in_dirs(default_names[i], 1, path, len)) /* not whatever lies about here */
            return true;
    say("no firmware to boot a disk with; install Debian's package seabios, or name an image with "
        "--firmware FILE");
    return false;
}

int firmware_load(struct guest *vm)
{
    const char *path = vm->config->firmware;
    struct file f;
    int r = file_map(&f, "firmware", path);

    if (r)
        return r;
    r = -EINVAL;
    if (f.size < PAGE_SIZE || f.size % PAGE_SIZE || f.size > LAYOUT_4G - LAYOUT_FIRMWARE) {
        say("--firmware: %s is not a firmware image: its size is %llu bytes, not a multiple of "
            "4 KiB up to 16 MiB", path, (unsigned long long)f.size);
        goto out;
    }
    const u8 *vector = f.data + f.size - 16;
    bool empty = true;
    for (unsigned i = 1; i < 16; i++)
        empty &= vector[i] == vector[0];
    if (empty) {
        say("--firmware: %s is not a firmware image for a PC: there is nothing at the reset vector, "
            "16 bytes before its end", path);
        goto out;
    }
    /* The image, then what is read where there is nothing: ones. */
    vm->rom = mmap(NULL, f.size + BIOS_WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    if (vm->rom == MAP_FAILED) {
        vm->rom = NULL;
        r = -errno;
        say("--firmware: no memory for %s: %s", path, strerror(errno));
        goto out;
    }
    vm->rom_size = f.size;
    memcpy(vm->rom, f.data, f.size);
    memset(vm->rom + f.size, 0xff, BIOS_WINDOW);
    r = ram_add_slot(&vm->view, LAYOUT_4G - f.size, f.size, vm->rom, true);
out:
    file_unmap(&f);
    return r;
}

void firmware_free(struct guest *vm)
{
    if (vm->rom)
        munmap(vm->rom, vm->rom_size + BIOS_WINDOW);
}

/* -- Shadow RAM --------------------------------------------------------------------------------- */

/* What is read at gpa while RAM is switched off there; areas do not cross LAYOUT_BIOS. */
static u8 *rom_at(struct guest *vm, gpa_t gpa)
{
    u64 from_end = LAYOUT_HIGH_RAM - gpa;

    return gpa >= LAYOUT_BIOS && from_end <= vm->rom_size ? vm->rom + vm->rom_size - from_end
                                                          : vm->rom + vm->rom_size;
}

void firmware_shadow(void *opaque, gpa_t gpa, u64 size, unsigned mode)
{
    struct guest *vm = opaque;
    bool ram = mode & MACHINE_SHADOW_READ;

    if (!vm->vm || !vm->rom)
        return; /* the board is being made: firmware_add_memory() starts with ROM */
    void *host = ram ? ram_ptr(&vm->view, gpa, size) : rom_at(vm, gpa);
    bug_on(!host);
    int r = vitro_vm_set_memory(vm->vm, gpa, host,
                                ram && (mode & MACHINE_SHADOW_WRITE) ? 0 : VITRO_MEM_READONLY);
    bug_on(r);
}

int firmware_add_memory(struct guest *vm, const struct ram_slot *s)
{
    u64 end = s->gpa + s->size;
    bool is_ram = s->host - (u8 *)vm->ram.host < (s64)vm->ram.size && s->host >= (u8 *)vm->ram.host;
    unsigned flags = is_ram && vm->ram.fd >= 0 ? VITRO_MEM_AHEAD : 0; /* of a file, what is not used is not read */
    int r = 0;

    if (s->readonly)
        return vitro_vm_add_memory(vm->vm, s->gpa, s->size, s->host, VITRO_MEM_READONLY);
    if (s->gpa != LAYOUT_OPTION_ROM || end <= LAYOUT_HIGH_RAM)
        return vitro_vm_add_memory(vm->vm, s->gpa, s->size, s->host, flags);
    /* Most accesses are to the rest: it comes first, because look-ups go in order. */
    r = vitro_vm_add_memory(vm->vm, LAYOUT_HIGH_RAM, end - LAYOUT_HIGH_RAM,
                            s->host + (LAYOUT_HIGH_RAM - s->gpa), flags);
    for (unsigned n = 0; n < PAM_AREAS && !r; n++) {
        gpa_t gpa;
        u64 size = piix_pam_area(n, &gpa);
        r = vitro_vm_add_memory(vm->vm, gpa, size, rom_at(vm, gpa), VITRO_MEM_READONLY);
    }
    return r;
}

/* -- Files -------------------------------------------------------------------------------------- */

/* PC option ROM: 55 aa, its length in 512-byte blocks (PCI Firmware 3.0 §5.1). */
static int add_rom(struct guest *vm, const char *option, const char *path, const char *name)
{
    struct file f;
    int r = file_map(&f, option, path);

    if (r)
        return r;
    if (f.size < 3 || f.data[0] != 0x55 || f.data[1] != 0xaa || (u64)f.data[2] * 512 > f.size) {
        say("--%s: %s is not an option ROM: it does not begin with 55 aa, or is cut off", option, path);
        r = -EINVAL;
    } else {
        r = machine_add_file(vm->machine, name, f.data, f.size);
        if (r)
            say("--%s: cannot hand over %s: %s", option, path, strerror(-r));
    }
    file_unmap(&f);
    return r;
}

static int add_option_roms(struct guest *vm)
{
    for (unsigned i = 0; i < vm->config->nr_option_roms; i++) {
        char name[32];
        snprintf(name, sizeof(name), "genroms/rom%u", i);
        int r = add_rom(vm, "option-rom", vm->config->option_rom[i], name);
        if (r)
            return r;
    }
    return 0;
}

/* The addresses and sizes are for firmware that loads kernels itself, as OVMF does. */
static int add_pieces(struct guest *vm, const struct boot_input *in, const struct boot_16 *b)
{
    const u32 setup_at = BOOT_SETUP, kernel_at = BOOT_KERNEL_16, cmdline_at = BOOT_CMDLINE;
    const u32 initrd_size = b->initrd_at ? b->initrd_size : 0;
    static const char first[] = "/rom@genroms/linuxboot.bin"; /* before everything else */
    u8 rom[LINUXBOOT_ROM_SIZE];
    const struct { u16 key; const void *data; size_t size; } item[] = {
        { 0x07, &kernel_at, 4 },  { 0x08, &b->kernel_size, 4 },  { LINUXBOOT_KERNEL_DATA, b->kernel, b->kernel_size },
        { 0x0a, &b->initrd_at, 4 }, { 0x0b, &initrd_size, 4 },   { LINUXBOOT_INITRD_DATA, in->initrd, initrd_size },
        { 0x13, &cmdline_at, 4 }, { 0x14, &b->cmdline_size, 4 }, { LINUXBOOT_CMDLINE_DATA, in->cmdline, b->cmdline_size },
        { 0x16, &setup_at, 4 },   { 0x17, &b->setup_size, 4 },   { LINUXBOOT_SETUP_DATA, b->setup, b->setup_size },
    };
    int r = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(item) && !r; i++)
        r = machine_add_item(vm->machine, item[i].key, item[i].data ? item[i].data : "", item[i].size);
    linuxboot_rom_make(b, rom);
    if (!r)
        r = machine_add_file(vm->machine, "genroms/linuxboot.bin", rom, sizeof(rom));
    return r ? r : machine_add_file(vm->machine, "bootorder", first, sizeof(first));
}

/* --kernel beside --firmware: the firmware starts it. */
static int add_kernel(struct guest *vm)
{
    const struct config *c = vm->config;
    struct machine_range range[MACHINE_MAX_RANGES];
    struct boot_e820 e820[MACHINE_MAX_RANGES];
    struct file kernel, initrd = { 0 };
    struct boot_16 pieces = { 0 };
    char err[BOOT_ERR_LEN];

    int r = file_map(&kernel, "kernel", c->kernel);
    if (r)
        return r;
    if (c->initrd)
        r = file_map(&initrd, "initrd", c->initrd);
    if (r)
        goto out;
    unsigned nr = machine_e820(c->mem, range);
    for (unsigned i = 0; i < nr; i++)
        e820[i] = (struct boot_e820){ range[i].gpa, range[i].size, range[i].type };
    const struct boot_input in = {
        .kernel_name = c->kernel, .kernel = kernel.data, .kernel_size = kernel.size,
        .initrd_name = c->initrd, .initrd = initrd.data, .initrd_size = initrd.size,
        .cmdline = c->cmdline, .e820 = e820, .nr_e820 = nr,
    };
    r = bzimage_load_16(&vm->view, &in, &pieces, err);
    if (r) {
        say("%s", err);
    } else {
        r = add_pieces(vm, &in, &pieces);
        if (r)
            say("--kernel: cannot hand %s to the firmware: %s", c->kernel, strerror(-r));
    }
    free(pieces.setup);
    file_unmap(&initrd);
out:
    file_unmap(&kernel);
    return r;
}

int firmware_files(struct guest *vm)
{
    const u16 port = SERIAL_CONSOLE;
    int r = add_option_roms(vm);

    if (!r && vm->config->kernel)
        r = add_kernel(vm);

    if (r)
        return r;
    /* The card's BIOS, by the card's PCI identity. Without it the card is there, but nobody starts it. */
    char path[4096];
    if (find_in_dirs("vgabios-stdvga.bin", 1, path, sizeof(path)))
        r = add_rom(vm, "firmware", path, "pci1234,1111.rom");
    if (!r && !vm->screen_first)
        r = machine_add_file(vm->machine, "etc/sercon-port", &port, sizeof(port));
    if (!r)
        r = machine_fill_firmware(vm->machine);
    if (r)
        say("cannot tell the firmware about the machine: %s", strerror(-r));
    return r;
}
