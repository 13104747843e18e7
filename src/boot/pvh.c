/*
 * pvh.c - ELF kernels with a Xen PHYS32_ENTRY note. Source: Xen docs/misc/pvh.pandoc (state at entry) and
 * xen/include/public/arch-x86/hvm/start_info.h (structures), elfnote.h (note 18).
 */
#include "boot/boot.h"
#include <errno.h>
#include <string.h>

#define PHYS32_ENTRY 18
#define START_INFO 0x10000u /* then the module list, the memory map, and modules' command lines */
#define MODLIST (START_INFO + 0x100)
#define MEMMAP (START_INFO + 0x400)
#define MOD_CMDLINES (START_INFO + 0x1000)
#define AREA 0x10000u
#define MAGIC 0x336ec578u

struct start_info {
    u32 magic, version, flags, nr_modules;
    u64 modlist, cmdline, rsdp, memmap;
    u32 memmap_entries, reserved;
};
_Static_assert(sizeof(struct start_info) == 56, "hvm_start_info, version 1");
struct modlist_entry {
    u64 at, size, cmdline, reserved;
};
struct memmap_entry {
    u64 addr, size;
    u32 type, reserved;
};
_Static_assert(MODLIST + (BOOT_MODULES_MAX + 1) * sizeof(struct modlist_entry) <= MEMMAP, "room");

bool pvh_probe(const u8 *image, u64 size)
{
    u32 entry;

    return elf_note(image, size, PHYS32_ENTRY, &entry);
}

int pvh_load(struct ram *ram, const struct boot_input *in, struct boot_entry *entry, char *err)
{
    struct boot_placed placed[BOOT_MODULES_MAX + 1];
    struct boot_image image;
    struct boot_entry e;
    u32 start = 0;

    if (!elf_note(in->kernel, in->kernel_size, PHYS32_ENTRY, &start))
        return boot_fail(err, -ENOEXEC, "%s: no PVH note", in->kernel_name);
    int r = elf_load_image(ram, in, &image, err);
    if (!r && (start < image.lo || start >= image.hi))
        r = boot_fail(err, -EINVAL, "%s: its PVH entry point %#x is outside what it loads", in->kernel_name, start);
    if (!r)
        r = boot_place_cmdline(ram, in, BOOT_CMDLINE_MAX - 1, err);
    if (!r)
        r = boot_env32(ram, &e, err);
    if (r)
        return r;
    int n = boot_place_modules(ram, in, image.lo, image.hi, placed, err);
    u8 *area = ram_ptr(ram, START_INFO, AREA);
    if (n < 0)
        return n;
    if (!area || in->nr_e820 > (MOD_CMDLINES - MEMMAP) / sizeof(struct memmap_entry))
        return boot_fail(err, -ENOMEM, "no memory for the start info");
    memset(area, 0, AREA);
    u32 text = MOD_CMDLINES;
    for (int i = 0; i < n; i++) {
        size_t len = strlen(placed[i].cmdline) + 1;
        if (len > START_INFO + AREA - text)
            return boot_fail(err, -E2BIG, "the modules' names are too long together");
        struct modlist_entry m = { .at = placed[i].at, .size = placed[i].size, .cmdline = text };
        memcpy(area + (MODLIST - START_INFO) + (unsigned)i * sizeof(m), &m, sizeof(m));
        memcpy(area + (text - START_INFO), placed[i].cmdline, len);
        text += (u32)len;
    }
    for (unsigned i = 0; i < in->nr_e820; i++) {
        struct memmap_entry m = { in->e820[i].addr, in->e820[i].size, in->e820[i].type, 0 };
        memcpy(area + (MEMMAP - START_INFO) + i * sizeof(m), &m, sizeof(m));
    }
    const struct start_info info = {
        .magic = MAGIC, .version = 1, .nr_modules = (u32)n, .modlist = n ? MODLIST : 0, .cmdline = BOOT_CMDLINE,
        .rsdp = in->rsdp, .memmap = MEMMAP, .memmap_entries = in->nr_e820,
    };
    memcpy(area, &info, sizeof(info));
    e.rip = start;
    e.rbx = START_INFO;
    *entry = e;
    return 0;
}
