/*
 * bzimage.c - Linux bzImage by the 64-bit or 32-bit boot protocol: the protected-mode part is copied to where it wants
 * to be and entered at its offset 0x200, or at its start if the kernel is a 32-bit one; the real-mode part is only read for
 * its header.
 * Source: Linux Documentation/arch/x86/boot.rst.
 * By the 16-bit protocol (bzimage_load_16) all of it is run, by a BIOS; the pieces are only prepared here. What has a header of before
 * 2.12 may have no other entry (iPXE's and SYSLINUX's images look like kernels, to be started by boot loaders).
 * Not done: the protocols before 2.02; loading above 4 GiB.
 */
#include "boot/boot.h"
#include "boot/params.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static u16 get16(const u8 *p)
{
    u16 v;
    memcpy(&v, p, 2);
    return v;
}

static u32 get32(const u8 *p)
{
    u32 v;
    memcpy(&v, p, 4);
    return v;
}

static u64 get64(const u8 *p)
{
    u64 v;
    memcpy(&v, p, 8);
    return v;
}

static void put32(u8 *p, u32 v)
{
    memcpy(p, &v, 4);
}

struct bzimage {
    u8 header[BP_SIZE]; /* zero padded copy of the first page */
    const u8 *code;     /* protected-mode part */
    u64 code_size;
    u64 pref, init_size;
    bool wide;          /* it has a 64-bit entry */
};

bool bzimage_probe(const u8 *image, u64 size)
{
    return size >= BP_MAGIC + 4 && get32(image + BP_MAGIC) == BP_MAGIC_VALUE &&
           get16(image + BP_BOOT_FLAG) == 0xaa55;
}

static u16 version_of(const u8 *image) { return get16(image + BP_VERSION); }

bool bzimage_needs_bios(const u8 *image, u64 size)
{
    return bzimage_probe(image, size) && version_of(image) >= BP_VERSION_16_MIN && version_of(image) < BP_VERSION_MIN;
}

/* What the fields say that the version in the header does not have yet. */
static void fill_old_header(u8 *h, u64 kernel_size, u64 setup)
{
    u16 version = version_of(h);
    if (version < 0x0204)
        put32(h + BP_SYSSIZE, kernel_size > setup ? (u32)((kernel_size - setup) / 16) : 0);
    if (version < 0x0203)
        put32(h + BP_INITRD_ADDR_MAX, 0x37ffffff);
    if (version < 0x0206)
        put32(h + BP_CMDLINE_SIZE, 255);
    if (version < 0x020a)
        memset(h + BP_PREF_ADDRESS, 0, 12); /* and init_size */
    if (version < 0x020c)
        memset(h + BP_XLOADFLAGS, 0, 2);
}

/* Check everything in the header that loading relies on. */
static int bzimage_parse(const struct boot_input *in, struct bzimage *k, bool by_bios, char *err)
{
    const char *name = in->kernel_name;
    const u8 *h = k->header;

    memset(k->header, 0, sizeof(k->header));
    memcpy(k->header, in->kernel, MIN(in->kernel_size, sizeof(k->header)));

    u16 version = version_of(h);
    if (version < (by_bios ? BP_VERSION_16_MIN : BP_VERSION_MIN))
        return boot_fail(err, -ENOEXEC,
                         "%s: boot protocol %u.%02u is too old; Linux 3.8 "
                         "(protocol 2.12) or later is needed",
                         name, version >> 8, version & 0xffu);
    if (in->kernel_size < BP_INIT_SIZE + 4)
        goto truncated;
    u64 setup = ((h[BP_SETUP_SECTS] ? h[BP_SETUP_SECTS] : 4u) + 1u) * 512ull;
    fill_old_header(k->header, in->kernel_size, setup);
    k->wide = get16(h + BP_XLOADFLAGS) & XLF_KERNEL_64;
    if (!(h[BP_LOADFLAGS] & LOADED_HIGH))
        return boot_fail(err, -EINVAL, "%s: a zImage, which loads low; use a "
                         "bzImage", name);

    u64 sys = get32(h + BP_SYSSIZE) * 16ull;
    if (setup + sys > in->kernel_size + (version < BP_VERSION_MIN ? 15 : 0)) /* sizes were rounded up */
        goto truncated;
    k->code = in->kernel + setup;
    k->code_size = MIN(sys, in->kernel_size - MIN(setup, in->kernel_size));
    if (k->code_size <= 0x200)
        return boot_fail(err, -EINVAL, "%s: damaged: no code behind the header; "
                         "get the file again", name);
    k->pref = get64(h + BP_PREF_ADDRESS);
    k->init_size = MAX((u64)get32(h + BP_INIT_SIZE), k->code_size);
    if (!k->pref)
        k->pref = 0x100000;
    if (k->pref < 0x100000 || k->pref >= BITULL(32))
        return boot_fail(err, -EINVAL, "%s: damaged: load address %#llx; get the "
                         "file again", name, (unsigned long long)k->pref);
    return 0;
truncated:
    return boot_fail(err, -EINVAL, "%s: truncated: %llu bytes are there, its "
                     "header promises more; get the file again", name,
                     (unsigned long long)in->kernel_size);
}

int bzimage_load(struct ram *ram, const struct boot_input *in,
                 struct boot_entry *entry, char *err)
{
    struct bzimage k;
    struct boot_entry e;
    gpa_t initrd;
    int r = bzimage_parse(in, &k, false, err);

    if (r)
        return r;
    /*
     * A relocatable kernel could go to 1 MiB, but it would only move itself up to pref_address: what
     * has to fit is the same.
     */
    if (!boot_ram_has(ram, in, k.pref, k.init_size))
        return boot_fail(err, -ENOMEM,
                         "%s: too little memory: the kernel needs %llu MiB to "
                         "unpack; give the guest more with --mem",
                         in->kernel_name,
                         (unsigned long long)(k.pref + k.init_size + 0xfffff) >>
                             20);
    u32 cmdline_max = get32(k.header + BP_CMDLINE_SIZE);
    r = boot_place_cmdline(ram, in, cmdline_max ? cmdline_max : 255, err);
    if (r)
        return r;
    u64 top = (u64)get32(k.header + BP_INITRD_ADDR_MAX) + 1;
    r = boot_place_initrd(ram, in, top, k.pref, k.pref + k.init_size, &initrd,
                          err);
    if (r)
        return r;
    r = boot_env(ram, &e, err);
    if (r)
        return r;

    memcpy(ram_ptr(ram, k.pref, k.code_size), k.code, k.code_size);

    u8 *bp = ram_ptr(ram, BOOT_PARAMS, BP_SIZE);
    if (!bp)
        return boot_fail(err, -ENOMEM, "no memory for boot_params");
    memset(bp, 0, BP_SIZE);
    u64 hdr_end = BP_MAGIC + k.header[BP_JUMP_LEN];
    memcpy(bp + BP_HDR, k.header + BP_HDR,
           MIN(hdr_end, (u64)BP_E820_TABLE) - BP_HDR);
    bp[BP_TYPE_OF_LOADER] = 0xff;
    put32(bp + BP_CMD_LINE_PTR, BOOT_CMDLINE);
    put32(bp + BP_RAMDISK_IMAGE, (u32)initrd);
    put32(bp + BP_RAMDISK_SIZE, initrd ? (u32)in->initrd_size : 0);
    r = boot_fill_params(in, bp, err);
    if (r)
        return r;

    if (!k.wide)
        boot_env_32(ram, &e);
    e.rip = k.pref + (k.wide ? 0x200 : 0);
    *entry = e;
    return 0;
}

/* The kernel is unpacked to pref_address whichever way it is entered; firmware keeps its tables right below the end of RAM. */
#define FIRMWARE_RESERVE 0x200000u
int bzimage_load_16(struct ram *ram, const struct boot_input *in, struct boot_16 *b, char *err)
{
    struct bzimage k;
    u64 ram_end = 0;

    memset(b, 0, sizeof(*b));
    if (!bzimage_probe(in->kernel, in->kernel_size))
        return boot_fail(err, -ENOEXEC, "%s: not a bzImage, and firmware starts nothing else by --kernel; leave out --firmware",
                         in->kernel_name);
    int r = bzimage_parse(in, &k, true, err);
    if (r)
        return r;
    if (!boot_ram_has(ram, in, k.pref, k.init_size))
        return boot_fail(err, -ENOMEM, "%s: too little memory: the kernel needs %llu MiB to unpack; give the guest more with --mem",
                         in->kernel_name, (unsigned long long)(k.pref + k.init_size + 0xfffff) >> 20);
    u32 cmdline_max = get32(k.header + BP_CMDLINE_SIZE);
    size_t cmdline = strlen(in->cmdline ? in->cmdline : "");
    if (cmdline > (cmdline_max ? cmdline_max : 255) || cmdline >= BOOT_CMDLINE_MAX)
        return boot_fail(err, -E2BIG, "the kernel command line has %zu bytes; this kernel takes %u; shorten --append", cmdline,
                         cmdline_max ? cmdline_max : 255);
    for (unsigned i = 0; i < in->nr_e820; i++)
        if (in->e820[i].type == BOOT_E820_RAM && in->e820[i].addr < BITULL(32))
            ram_end = MAX(ram_end, in->e820[i].addr + in->e820[i].size);
    if (in->initrd_name && in->initrd_size) {
        u64 size = (in->initrd_size + PAGE_SIZE - 1) & PAGE_MASK;
        u64 top = MIN((u64)get32(k.header + BP_INITRD_ADDR_MAX) + 1, ram_end > FIRMWARE_RESERVE ? ram_end - FIRMWARE_RESERVE : 0);
        b->initrd_at = (u32)boot_find_room(ram, in, size, top, BOOT_KERNEL_16, k.pref + k.init_size);
        b->initrd_size = (u32)in->initrd_size;
        if (!b->initrd_at)
            return boot_fail(err, -ENOMEM, "%s: the initrd (%llu KiB) does not fit beside the kernel and the firmware's tables; "
                             "give the guest more memory with --mem", in->initrd_name,
                             (unsigned long long)(in->initrd_size + 1023) / 1024);
    }
    b->cmdline_size = (u32)cmdline + 1;
    b->kernel = k.code;
    b->kernel_size = (u32)k.code_size;
    b->setup_size = (u32)(k.code - in->kernel);
    if (b->setup_size > 0x8200) /* boot.rst: at most 64 sectors behind the first */
        return boot_fail(err, -EINVAL, "%s: damaged: %u bytes of real-mode code; get the file again", in->kernel_name, b->setup_size);
    b->setup = malloc(b->setup_size);
    if (!b->setup)
        return boot_fail(err, -ENOMEM, "no memory for %s", in->kernel_name);
    memcpy(b->setup, in->kernel, b->setup_size);
    b->setup[BP_TYPE_OF_LOADER] = 0xff;
    b->setup[BP_LOADFLAGS] |= CAN_USE_HEAP;
    b->setup[BP_HEAP_END_PTR] = 0xf0;
    b->setup[BP_HEAP_END_PTR + 1] = 0xfd; /* the stack's top is at 0xfff0 */
    put32(b->setup + BP_CMD_LINE_PTR, BOOT_CMDLINE);
    put32(b->setup + BP_RAMDISK_IMAGE, b->initrd_at);
    put32(b->setup + BP_RAMDISK_SIZE, b->initrd_at ? b->initrd_size : 0);
    return 0;
}
