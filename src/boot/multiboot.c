/*
 * multiboot.c - kernels with a Multiboot header, versions 1 and 2, with modules. Source: Multiboot Specification
 * 0.6.96, §3; Multiboot2 Specification 2.0, §3.
 * Not done: the video mode and EFI parts of both; a header that insists on them is refused.
 */
#define _GNU_SOURCE
#include "boot/boot.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INFO 0x10000u
#define INFO_SIZE 0x10000u
#define LOADER_NAME "Vitro"

/* -- The information's area: a cursor that cannot leave it --------------------------------------- */

struct area {
    u8 *base;
    u32 len;
    bool failed;
};

static u32 area_put(struct area *a, const void *data, size_t size, u32 align)
{
    u32 at = (a->len + align - 1) & ~(align - 1);

    if (a->failed || size > INFO_SIZE - at) {
        a->failed = true;
        return 0;
    }
    if (size)
        memcpy(a->base + at, data, size);
    a->len = at + (u32)size;
    return INFO + at;
}

static u64 upper_kib(const struct boot_input *in)
{
    for (unsigned i = 0; i < in->nr_e820; i++) {
        const struct boot_e820 *e = &in->e820[i];
        if (e->type == BOOT_E820_RAM && e->addr <= 0x100000 && e->addr + e->size > 0x100000)
            return MIN((e->addr + e->size - 0x100000) >> 10, 0xffffffffull);
    }
    return 0;
}

static u64 lower_kib(const struct boot_input *in)
{
    return in->nr_e820 && in->e820[0].addr == 0 ? MIN(in->e820[0].size >> 10, 640ull) : 0;
}

static u32 get32(const u8 *p)
{
    u32 v;
    memcpy(&v, p, 4);
    return v;
}

/*
 * A Multiboot loader is a BIOS's: kernels look into the BIOS data area and may go back to real mode to ask for more, as Xen does for
 * memory, video and disks. There is no BIOS here, and that is what they are told: services come back with carry set, "not
 * supported", and interrupts of hardware change nothing. (Ralf Brown's Interrupt List, MEM.LST: 0040:0013; F000:FF53 is the IRET of
 * every BIOS.)
 */
#define BDA_BASE_MEMORY 0x413u /* u16, KiB */
#define BIOS_IRET 0xf000ff53u
#define BIOS_FAIL (BIOS_IRET + 1)
static int bios_absent(struct ram *ram, const struct boot_input *in, char *err)
{
    /* iret; then: push bp; mov bp, sp; or byte [bp + 6], 1; pop bp; iret */
    static const u8 code[] = { 0xcf, 0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xcf };
    u8 *low = ram_ptr(ram, 0, 0x500), *top = ram_ptr(ram, 0xfff53, sizeof(code));
    u16 base = (u16)lower_kib(in);

    if (!low || !top)
        return boot_fail(err, -ENOMEM, "no memory for the real-mode interrupt table");
    for (unsigned vector = 0; vector < 256; vector++) {
        bool irq = vector < 0x10 || (vector >= 0x70 && vector < 0x78);
        u32 to = irq ? BIOS_IRET : BIOS_FAIL;
        memcpy(low + 4 * vector, &to, sizeof(to));
    }
    memcpy(low + BDA_BASE_MEMORY, &base, sizeof(base));
    memcpy(top, code, sizeof(code));
    return 0;
}

/*
 * What both versions begin with. The command line starts with the kernel's name, as GRUB 0.97, SYSLINUX and QEMU have it; kernels drop
 * the first word of any loader that they do not know (Xen, xen/arch/x86/setup.c).
 */
static int prepare(struct ram *ram, const struct boot_input *in, const struct boot_image *image,
                   struct boot_entry *e, struct boot_placed *placed, struct area *a, char *err)
{
    struct boot_input named = *in;
    char *words = NULL;

    if (asprintf(&words, "%s%s%s", in->kernel_name, in->cmdline && *in->cmdline ? " " : "", in->cmdline ? in->cmdline : "") < 0)
        return boot_fail(err, -ENOMEM, "no memory for the command line");
    named.cmdline = words;
    int r = boot_place_cmdline(ram, &named, BOOT_CMDLINE_MAX - 1, err);
    free(words);

    if (!r)
        r = boot_env32(ram, e, err);
    if (!r)
        r = bios_absent(ram, in, err);
    if (r)
        return r;
    *a = (struct area){ .base = ram_ptr(ram, INFO, INFO_SIZE) };
    if (!a->base)
        return boot_fail(err, -ENOMEM, "no memory for the boot information");
    memset(a->base, 0, INFO_SIZE);
    e->rip = image->entry;
    e->rbx = INFO;
    return boot_place_modules(ram, in, image->lo, image->hi, placed, err);
}

static int check_entry(const struct boot_input *in, const struct boot_image *image, char *err)
{
    if (image->entry < image->lo || image->entry >= image->hi)
        return boot_fail(err, -EINVAL, "%s: its entry point %#llx is outside what it loads", in->kernel_name,
                         (unsigned long long)image->entry);
    return 0;
}

/* A file loaded as its header says: [load, load_end) from `from` on, zeros to bss_end; the ends may be 0. */
static int load_flat(struct ram *ram, const struct boot_input *in, u64 from, u32 load, u32 load_end, u32 bss_end,
                     struct boot_image *image, char *err)
{
    const char *name = in->kernel_name;
    u64 left = from <= in->kernel_size ? in->kernel_size - from : 0, bytes = load_end ? (u64)load_end - load : left;

    if (from > in->kernel_size || (load_end && load_end < load) || bytes > left)
        return boot_fail(err, -EINVAL, "%s: its Multiboot header asks for more than the file has", name);
    u64 end = MAX(load + bytes, (u64)bss_end);
    if (load < 0x100000 || end <= load || !boot_ram_has(ram, in, load, end - load))
        return boot_fail(err, -ENOMEM, "%s: wants to be loaded at %#x to %#llx, where the guest has no memory above "
                         "1 MiB; give it more with --mem", name, load, (unsigned long long)end);
    u8 *to = ram_ptr(ram, load, end - load);
    memcpy(to, in->kernel + from, bytes);
    memset(to + bytes, 0, end - load - bytes);
    image->lo = load;
    image->hi = end;
    return 0;
}

/* -- Version 1 ----------------------------------------------------------------------------------- */

#define MB1_MAGIC 0x1badb002u
#define MB1_EAX 0x2badb002u
#define MB1_SEARCH 8192u
#define MB1_KNOWN 0x00010003u /* page-aligned modules, memory information, load addresses */
#define MB1_MUST 0x0000ffffu
#define MB1_ADDRESSES 0x00010000u

static const u8 *mb1_header(const u8 *image, u64 size)
{
    for (u64 at = 0; at + 12 <= MIN(size, (u64)MB1_SEARCH); at += 4) {
        const u8 *h = image + at;
        if (get32(h) == MB1_MAGIC && !(get32(h) + get32(h + 4) + get32(h + 8)))
            return h;
    }
    return NULL;
}

bool multiboot_probe(const u8 *image, u64 size)
{
    return mb1_header(image, size);
}

struct mb1_info {
    u32 flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr,
        drives_length, drives_addr, config_table, loader_name, apm_table;
};

int multiboot_load(struct ram *ram, const struct boot_input *in, struct boot_entry *entry, char *err)
{
    const u8 *h = mb1_header(in->kernel, in->kernel_size);
    struct boot_placed placed[BOOT_MODULES_MAX + 1];
    struct boot_image image = { 0 };
    struct boot_entry e;
    struct area a;
    u64 at = h ? (u64)(h - in->kernel) : 0;

    if (!h)
        return boot_fail(err, -ENOEXEC, "%s: no Multiboot header", in->kernel_name);
    u32 flags = get32(h + 4);
    if (flags & MB1_MUST & ~MB1_KNOWN)
        return boot_fail(err, -EINVAL, "%s: its Multiboot header wants what is not here (flags %#x)", in->kernel_name,
                         flags);
    int r;
    if (flags & MB1_ADDRESSES) {
        if (at + 32 > in->kernel_size)
            return boot_fail(err, -EINVAL, "%s: its Multiboot header is cut off", in->kernel_name);
        u32 header = get32(h + 12), load = get32(h + 16);
        image.entry = get32(h + 28);
        if (load > header || header - load > at)
            return boot_fail(err, -EINVAL, "%s: its Multiboot addresses contradict each other", in->kernel_name);
        r = load_flat(ram, in, at - (header - load), load, get32(h + 20), get32(h + 24), &image, err);
    } else {
        r = elf_load_image(ram, in, &image, err);
    }
    if (!r)
        r = check_entry(in, &image, err);
    if (r)
        return r;
    int n = prepare(ram, in, &image, &e, placed, &a, err);
    if (n < 0)
        return n;

    struct mb1_info info = {
        .flags = 0x24d, /* memory, command line, modules, map, loader's name */
        .mem_lower = (u32)lower_kib(in), .mem_upper = (u32)upper_kib(in), .boot_device = 0xffffffff,
        .cmdline = BOOT_CMDLINE, .mods_count = (u32)n,
    };
    area_put(&a, &info, sizeof(info), 1);
    info.loader_name = area_put(&a, LOADER_NAME, sizeof(LOADER_NAME), 4);
    u32 mods[BOOT_MODULES_MAX + 1][4] = { 0 };
    for (int i = 0; i < n; i++) {
        mods[i][0] = placed[i].at;
        mods[i][1] = placed[i].at + placed[i].size;
        mods[i][2] = area_put(&a, placed[i].cmdline, strlen(placed[i].cmdline) + 1, 4);
    }
    info.mods_addr = area_put(&a, mods, (unsigned)n * sizeof(mods[0]), 4);
    info.mmap_length = in->nr_e820 * 24;
    for (unsigned i = 0; i < in->nr_e820; i++) {
        struct { u32 size; u64 addr, len; u32 type; } __attribute__((packed)) m = {
            20, in->e820[i].addr, in->e820[i].size, in->e820[i].type
        };
        u32 put = area_put(&a, &m, sizeof(m), 4);
        info.mmap_addr = i ? info.mmap_addr : put;
    }
    if (a.failed)
        return boot_fail(err, -E2BIG, "the modules' names are too long together");
    memcpy(a.base, &info, sizeof(info));
    e.rax = MB1_EAX;
    *entry = e;
    return 0;
}

/* -- Version 2 ----------------------------------------------------------------------------------- */

#define MB2_MAGIC 0xe85250d6u
#define MB2_EAX 0x36d76289u
#define MB2_SEARCH 32768u

enum { MB2_END = 0, MB2_REQUEST = 1, MB2_ADDRESS = 2, MB2_ENTRY = 3, MB2_CONSOLE = 4, MB2_FRAMEBUFFER = 5,
       MB2_ALIGN = 6, MB2_EFI_SERVICES = 7, MB2_RELOCATABLE = 10 };

static const u8 *mb2_header(const u8 *image, u64 size)
{
    for (u64 at = 0; at + 16 <= MIN(size, (u64)MB2_SEARCH); at += 8) {
        const u8 *h = image + at;
        u32 length = get32(h + 8);
        if (get32(h) == MB2_MAGIC && !get32(h + 4) && !(get32(h) + length + get32(h + 12)) && length >= 16 &&
            length <= size - at)
            return h;
    }
    return NULL;
}

bool multiboot2_probe(const u8 *image, u64 size)
{
    return mb2_header(image, size);
}

static void tag(struct area *a, u32 type, const void *data, size_t size)
{
    u32 head[2] = { type, (u32)(size + 8) };

    area_put(a, head, sizeof(head), 8);
    area_put(a, data, size, 1);
}

/* Type, size, then two words and a string: modules; without the words: command line, loader's name. */
static void tag_text(struct area *a, u32 type, const u32 *words, unsigned nr_words, const char *text)
{
    u32 head[2] = { type, (u32)(8 + nr_words * 4 + strlen(text) + 1) };

    area_put(a, head, sizeof(head), 8);
    area_put(a, words, nr_words * 4, 1);
    area_put(a, text, strlen(text) + 1, 1);
}

int multiboot2_load(struct ram *ram, const struct boot_input *in, struct boot_entry *entry, char *err)
{
    const u8 *h = mb2_header(in->kernel, in->kernel_size), *addresses = NULL;
    const char *name = in->kernel_name;
    struct boot_placed placed[BOOT_MODULES_MAX + 1];
    struct boot_image image = { 0 };
    struct boot_entry e;
    struct area a;
    u32 entry_at = 0;

    if (!h)
        return boot_fail(err, -ENOEXEC, "%s: no Multiboot2 header", name);
    u64 at = (u64)(h - in->kernel), end = at + get32(h + 8);
    for (u64 t = at + 16; t + 8 <= end;) {
        u32 type = get32(in->kernel + t) & 0xffff, flags = get32(in->kernel + t) >> 16, size = get32(in->kernel + t + 4);
        if (size < 8 || size > end - t)
            return boot_fail(err, -EINVAL, "%s: its Multiboot2 header is damaged", name);
        if (type == MB2_END)
            break;
        if (type == MB2_ADDRESS && size >= 24)
            addresses = in->kernel + t + 8;
        else if (type == MB2_ENTRY && size >= 12)
            entry_at = get32(in->kernel + t + 8);
        else if (type > MB2_RELOCATABLE || type == MB2_EFI_SERVICES)
            if (!(flags & 1)) /* not optional */
                return boot_fail(err, -EINVAL, "%s: its Multiboot2 header wants what is not here (tag %u)", name, type);
        t += (size + 7) & ~7u;
    }
    int r;
    if (addresses) {
        u32 header = get32(addresses), load = get32(addresses + 4);
        if (header != ~0u && load != ~0u && (load > header || header - load > at))
            return boot_fail(err, -EINVAL, "%s: its Multiboot2 addresses contradict each other", name);
        u64 from = load == ~0u ? 0 : at - (header - load);
        r = load_flat(ram, in, from, load == ~0u ? (u32)(header - at) : load, get32(addresses + 8),
                      get32(addresses + 12), &image, err);
    } else {
        r = elf_load_image(ram, in, &image, err);
    }
    if (entry_at)
        image.entry = entry_at;
    if (!r)
        r = check_entry(in, &image, err);
    if (r)
        return r;
    int n = prepare(ram, in, &image, &e, placed, &a, err);
    if (n < 0)
        return n;

    const u32 memory[2] = { (u32)lower_kib(in), (u32)upper_kib(in) };
    area_put(&a, (u32[2]){ 0 }, 8, 8); /* total size, filled in at the end */
    tag_text(&a, 1, NULL, 0, (const char *)ram_ptr(ram, BOOT_CMDLINE, BOOT_CMDLINE_MAX));
    tag_text(&a, 2, NULL, 0, LOADER_NAME);
    for (int i = 0; i < n; i++)
        tag_text(&a, 3, (u32[2]){ placed[i].at, placed[i].at + placed[i].size }, 2, placed[i].cmdline);
    tag(&a, 4, memory, sizeof(memory));
    area_put(&a, (u32[4]){ 6, 16 + in->nr_e820 * 24, 24, 0 }, 16, 8);
    for (unsigned i = 0; i < in->nr_e820; i++) {
        struct { u64 addr, len; u32 type, zero; } m = { in->e820[i].addr, in->e820[i].size, in->e820[i].type, 0 };
        area_put(&a, &m, sizeof(m), 8);
    }
    u8 *rsdp = in->rsdp ? ram_ptr(ram, in->rsdp, 36) : NULL;
    if (rsdp)
        tag(&a, 15, rsdp, 36);
    tag(&a, 0, NULL, 0);
    if (a.failed)
        return boot_fail(err, -E2BIG, "the command line and the modules' names are too long together; shorten --append");
    memcpy(a.base, &a.len, 4);
    e.rax = MB2_EAX;
    *entry = e;
    return 0;
}
