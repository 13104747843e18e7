/*
 * test_fuzz_boot.c - files that say they are kernels: bzImage, ELF of either class with and without a PVH note, Multiboot 1 and 2.
 * They are refused with a sentence, or loaded into memory and entered there. The first bytes say which parts are right already.
 */
#include "boot/boot.h"
#include "boot/params.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>
#include <sys/mman.h>

#define RAM_SIZE (4u << 20)

/* What makes a file one of those; the input goes over it, except where the magic numbers are. */
static size_t shape(u8 *image, unsigned kind, const uint8_t *data, size_t size)
{
    static const u32 multiboot[] = { 0x1badb002, 0x00010003, 0u - 0x1badb002 - 0x00010003, 0x100000, 0x100000, 0, 0x101000,
                                     0x100020 };
    static const u32 multiboot2[] = { 0xe85250d6, 0, 64, 0u - 0xe85250d6 - 64, 2, 24, 0x100000, 0x100000, 0, 0x101000,
                                      3, 12, 0x100040, 0, 0, 8 };
    static const u8 elf64[] = { 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x3e, 0, 1 };
    static const u8 elf32[] = { 0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 1 };
    size_t at = kind == 1 ? 0x1f0 : kind == 2 ? sizeof(elf64) : kind == 3 ? sizeof(elf32) : 0;

    memset(image, 0, 0x2000);
    memcpy(image + at, data, size);
    size_t len = at + size;
    switch (kind) {
    case 1: /* from the fields that matter on; the code behind them */
        image[BP_SETUP_SECTS] = data[0] & 7;
        memcpy(image + BP_MAGIC, "HdrS", 4);
        memcpy(image + BP_BOOT_FLAG, "\x55\xaa", 2);
        len = len < 0x1800 ? 0x1800 : len;
        break;
    case 2: case 3:
        memcpy(image, kind == 2 ? elf64 : elf32, sizeof(elf64));
        break;
    case 4:
        memcpy(image, multiboot, size & 1 ? sizeof(multiboot) : 12);
        if (data[0] & 1) { /* other flags, a right sum */
            u32 h[3] = { 0x1badb002, data[1] | (u32)data[2] << 16, 0 };
            h[2] = 0u - h[0] - h[1];
            memcpy(image, h, sizeof(h));
        }
        len = len < 64 ? 64 : len;
        break;
    case 5:
        memcpy(image, multiboot2, size & 1 ? sizeof(multiboot2) : 16);
        len = len < 128 ? 128 : len;
        break;
    }
    return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static u8 image[1 << 17];
    static const struct boot_e820 e820[] = { { 0, 0x9fc00, BOOT_E820_RAM }, { 0x100000, RAM_SIZE - 0x100000, BOOT_E820_RAM } };
    static u8 *all;
    static const char cmdline[] = "console=ttyS0 quiet";
    char err[BOOT_ERR_LEN] = "";
    struct boot_entry entry;
    struct ram ram;

    if (size < 8 || size > sizeof(image) - 0x2000)
        return 0;
    if (!all) {
        all = mmap(NULL, RAM_SIZE + 2 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        bug_on(all == MAP_FAILED || mprotect(all + PAGE_SIZE, RAM_SIZE, PROT_READ | PROT_WRITE));
    }
    ram_init(&ram);
    bug_on(ram_add_slot(&ram, 0, RAM_SIZE, all + PAGE_SIZE, false));
    size_t len = shape(image, data[0] >> 1 & 7, data + 2, size - 2);
    /* Of its own, so that reading behind the end is seen. */
    u8 *exact = malloc(len);
    memcpy(exact, image, len);
    const struct boot_module module[] = { { "first", data, size / 2 }, { "second with words", data, size } };
    const struct boot_input in = {
        .kernel_name = "kernel", .kernel = exact, .kernel_size = len, .initrd_name = data[1] & 1 ? "initrd" : NULL,
        .initrd = data[1] & 1 ? data : NULL, .initrd_size = data[1] & 1 ? size : 0, .cmdline = data[1] & 2 ? cmdline : NULL,
        .e820 = e820, .nr_e820 = 2, .rsdp = 0xe0000, .module = module, .nr_modules = data[1] >> 2 & 3 % 3,
    };
    if (boot_load(&ram, &in, &entry, err))
        bug_on(!err[0] || strlen(err) >= BOOT_ERR_LEN);
    free(exact);
    ram_fini(&ram);
    madvise(all + PAGE_SIZE, RAM_SIZE, MADV_DONTNEED);
    return 0;
}

FUZZ_MAIN("fuzz/boot", 10000, 900)
