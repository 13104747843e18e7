/*
 * boot.h - puts a guest in memory and says how to enter it. Pure over struct ram: no files, no
 * devices, no engine, so that tests and fuzzers can drive it with any bytes.
 *
 * Every loader hands over the same environment: 64-bit mode, interrupts off, the first 4 GiB mapped
 * to themselves with 2 MiB pages, a flat GDT, RSI = struct boot_params (Linux
 * Documentation/arch/x86/boot.rst and zero-page.rst). What it occupies below 1 MiB:
 *
 *   0x1000  GDT                      0x10000  boot_params
 *   0x8000  top of a 16 KiB stack    0x11000  the end marker of setup data (unused)
 *   0x9000  PML4, 0xa000 PDPT        0x20000  command line (up to 64 KiB)
 *   0xb000  4 page directories
 */
#pragma once
#include "base/types.h"
#include "mem/ram.h"
#include "x86/x86.h"

#define BOOT_GDT 0x1000u
#define BOOT_STACK_TOP 0x8000u
#define BOOT_PML4 0x9000u
#define BOOT_PDPT 0xa000u
#define BOOT_PD 0xb000u /* four of them, to 0xf000 */
#define BOOT_PARAMS 0x10000u
#define BOOT_CMDLINE 0x20000u
#define BOOT_CMDLINE_MAX 0x10000u

/* Selectors of the boot GDT; Linux wants exactly these (boot.rst, 64-bit boot protocol). */
#define BOOT_CS 0x10u
#define BOOT_DS 0x18u
#define BOOT_TSS 0x20u

#define BOOT_E820_RAM 1u
#define BOOT_E820_RESERVED 2u
#define BOOT_E820_ACPI 3u
#define BOOT_E820_NVS 4u

struct boot_e820 {
    u64 addr, size;
    u32 type;
};

struct boot_module {
    const char *cmdline; /* its name, and what else the kernel is told of it */
    const u8 *data;
    u64 size;
};
#define BOOT_MODULES_MAX 16

/* What to load. Names are for error messages only. */
struct boot_input {
    const char *kernel_name;
    const u8 *kernel;
    u64 kernel_size;
    const char *initrd_name; /* NULL: none */
    const u8 *initrd;
    u64 initrd_size;
    const char *cmdline; /* NULL: empty */
    const struct boot_e820 *e820;
    unsigned nr_e820;
    gpa_t rsdp; /* 0: no ACPI */
    /* Behind the initrd, for loaders that know modules. */
    const struct boot_module *module;
    unsigned nr_modules;
};

struct boot_seg {
    u16 sel;
    u64 base;
    u32 limit; /* bytes */
    u32 attr;  /* SEG_* */
};

/* How to enter: every register that is not 0. */
struct boot_entry {
    u64 rip, rsp, rax, rbx, rsi, rflags;
    u64 cr0, cr3, cr4, efer;
    u64 gdt_base;
    u16 gdt_limit;
    struct boot_seg cs, ds, tr; /* ds: also es, ss, fs, gs */
};

#define BOOT_ERR_LEN 320

/*
 * boot_load - look at what the kernel is (bzImage, Multiboot or ELF; these two may be gzipped) and load it.
 * @err: BOOT_ERR_LEN bytes; on failure one sentence that names the file and the remedy
 *
 * 0, or -ENOEXEC (not a kernel we know), -EINVAL (damaged), -ENOMEM (does not fit the guest's
 * memory), -E2BIG (command line too long). On failure RAM may be partly written; *entry is not.
 */
int boot_load(struct ram *ram, const struct boot_input *in,
              struct boot_entry *entry, char *err);

/* -- The loaders behind it ------------------------------------------------------------------- */

bool bzimage_probe(const u8 *image, u64 size);
/* bzimage_needs_bios - its header is of a protocol whose only sure entry is the 16-bit one (bzimage_load_16). */
bool bzimage_needs_bios(const u8 *image, u64 size);
/*
 * payload_open - the ELF file in a bzImage, unpacked if need be, or what a .gz file holds; all else is its own payload.
 * -ENOEXEC (a compression that is not known, or was not built in), -EINVAL, -ENOMEM. To be closed after 0.
 */
struct payload {
    const u8 *elf;
    u64 size;
    u8 *unpacked; /* NULL: elf points into the image */
};
bool payload_is_gzip(const u8 *image, u64 size);
int payload_open(struct payload *p, const char *name, const u8 *image, u64 size, char *err);
void payload_close(struct payload *p);
/* What a kernel's Xen notes say. Pseudo-physical address = virtual address - virt_base for [lo, hi), where it was loaded. */
struct boot_xen {
    u64 entry, virt_base, paddr_offset, hypercall_page /* 0: none */, p2m_base, hv_start_low;
    u64 lo, hi;
    bool pv, has_entry, has_virt_base, has_p2m_base, mod_start_pfn;
};
/*
 * xenimage_load - a kernel for Xen's PV interface, bare or in a bzImage, into memory. Entry and hypercall page are inside
 * of what was loaded. -ENOEXEC, -EINVAL, -ENOMEM as boot_load().
 */
int xenimage_load(struct ram *ram, const struct boot_input *in, struct boot_xen *x, char *err);
int bzimage_load(struct ram *ram, const struct boot_input *in,
                 struct boot_entry *entry, char *err);
/*
 * bzimage_load_16 - the pieces of a bzImage for its 16-bit entry under a BIOS; whoever starts it puts them where they belong:
 * the setup code at BOOT_SETUP, entered at its offset 0x200, the kernel at BOOT_KERNEL_16, the initrd at initrd_at (0: none),
 * the command line at BOOT_CMDLINE. `setup` is to be freed. Errors as boot_load().
 */
#define BOOT_SETUP 0x10000u
#define BOOT_KERNEL_16 0x100000u
struct boot_16 {
    u8 *setup;
    const u8 *kernel; /* in the image */
    u32 setup_size, kernel_size, initrd_at, initrd_size, cmdline_size;
};
int bzimage_load_16(struct ram *ram, const struct boot_input *in, struct boot_16 *b, char *err);
/* linuxboot_rom_make - an option ROM that does so, from items of fw_cfg with these keys (linuxboot.c). */
#define LINUXBOOT_ROM_SIZE 512
enum { LINUXBOOT_KERNEL_DATA = 0x11, LINUXBOOT_INITRD_DATA = 0x12, LINUXBOOT_CMDLINE_DATA = 0x15, LINUXBOOT_SETUP_DATA = 0x18 };
void linuxboot_rom_make(const struct boot_16 *b, u8 rom[LINUXBOOT_ROM_SIZE]);
/* ELF with a PVH note, or what has a Multiboot header of either version: entered in 32-bit protected mode. */
bool pvh_probe(const u8 *image, u64 size);
int pvh_load(struct ram *ram, const struct boot_input *in, struct boot_entry *entry, char *err);
bool multiboot_probe(const u8 *image, u64 size);
int multiboot_load(struct ram *ram, const struct boot_input *in, struct boot_entry *entry, char *err);
bool multiboot2_probe(const u8 *image, u64 size);
int multiboot2_load(struct ram *ram, const struct boot_input *in, struct boot_entry *entry, char *err);
bool elf_probe(const u8 *image, u64 size);
int elf_load(struct ram *ram, const struct boot_input *in,
             struct boot_entry *entry, char *err);

/* -- elf.c, for the others ---------------------------------------------------------------------- */

struct boot_image {
    u64 entry, lo, hi; /* as the header has it; what was loaded, physical */
};
/* elf_load_image - copy the segments of an ELF file of either class to their physical addresses. 0 or -errno. */
int elf_load_image(struct ram *ram, const struct boot_input *in, struct boot_image *image, char *err);
/* elf_note - the first 4 bytes of the note (name "Xen", type); false: there is none, or the file is damaged. */
bool elf_note(const u8 *image, u64 size, u32 type, u32 *value);

/* -- What they share (env.c) ----------------------------------------------------------------- */

/* boot_fail - format a message into err; returns code. */
int boot_fail(char *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* boot_env - page tables, GDT and the registers that go with them; rip is the caller's. */
int boot_env(struct ram *ram, struct boot_entry *entry, char *err);
/* boot_env_32 - after boot_env: 32-bit protected mode without paging instead. */
void boot_env_32(struct ram *ram, struct boot_entry *entry);
/* boot_env32 - the same for 32-bit protected mode without paging. */
int boot_env32(struct ram *ram, struct boot_entry *entry, char *err);
/* What boot_place_modules() did with each: initrd first, then the modules. */
struct boot_placed {
    u32 at, size;
    const char *cmdline;
};
/*
 * boot_place_modules - initrd and modules below 4 GiB, page aligned, not touching [avoid, avoid_end). Their number,
 * or -errno.
 */
int boot_place_modules(struct ram *ram, const struct boot_input *in, u64 avoid, u64 avoid_end,
                       struct boot_placed placed[BOOT_MODULES_MAX + 1], char *err);
/* boot_place_cmdline - copy the command line to BOOT_CMDLINE; max excludes the final NUL. */
int boot_place_cmdline(struct ram *ram, const struct boot_input *in, u64 max,
                       char *err);
/*
 * boot_place_initrd - as high as it goes in usable RAM, page aligned, ending at or below
 * top (exclusive) and not touching [avoid, avoid_end). *gpa is 0 when there is none.
 */
int boot_place_initrd(struct ram *ram, const struct boot_input *in, u64 top,
                      u64 avoid, u64 avoid_end, gpa_t *gpa, char *err);
/* boot_find_room - as boot_place_initrd, for `size` bytes; 0: there is none. */
gpa_t boot_find_room(struct ram *ram, const struct boot_input *in, u64 size, u64 top, u64 avoid, u64 avoid_end);
/* boot_ram_has - [gpa, gpa+size) lies in one usable e820 range, and is RAM. */
bool boot_ram_has(struct ram *ram, const struct boot_input *in, gpa_t gpa,
                  u64 size);
/* boot_fill_params - the fields of boot_params that do not depend on the kernel's header. */
int boot_fill_params(const struct boot_input *in, u8 *params, char *err);
