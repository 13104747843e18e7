/* test_fuzz_xenimage.c - kernels for Xen's PV interface that are anything, bare and in a bzImage. */
#include "boot/boot.h"
#include "boot/params.h"
#include "mem/ram.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static u8 mem[1 << 20] __attribute__((aligned(4096))), image[1 << 16];
    static const struct boot_e820 e820 = { 0, sizeof(mem), BOOT_E820_RAM };
    char err[BOOT_ERR_LEN];
    struct boot_xen k;
    struct ram ram;

    if (size < 8 || size > sizeof(image) - 1024)
        return 0;
    ram_init(&ram);
    bug_on(ram_add_slot(&ram, 0, sizeof(mem), mem, false));
    /* data[0]: which parts of the way in are right already. */
    memset(image, 0, 1024);
    size_t at = data[0] & 1 ? 1024 : 0;
    memcpy(image + at, data + 1, size - 1);
    size_t len = at + size - 1;
    if (at) {
        image[BP_SETUP_SECTS] = 1;
        memcpy(image + BP_MAGIC, "HdrS", 4);
        memcpy(image + BP_BOOT_FLAG, "\x55\xaa", 2);
        u32 payload = (u32)(size - 1);
        memcpy(image + BP_PAYLOAD_LENGTH, &payload, 4);
    }
    static const char *const magic[] = { "", "\x7f" "ELF\2\1\1", "\x1f\x8b\x8", "\xfd" "7zXZ\0", "\x28\xb5\x2f\xfd", "\x02\x21\x4c\x18" };
    static const u8 magic_len[] = { 0, 7, 3, 6, 4, 4 };
    unsigned m = (data[0] >> 1) % 6;
    if (magic_len[m] < size)
        memcpy(image + at, magic[m], magic_len[m]);
    if (m > 1 && len >= 4) { /* not hundreds of megabytes each time */
        u32 out = data[1] * 64u;
        memcpy(image + len - 4, &out, 4);
    }
    const struct boot_input in = { .kernel_name = "k", .kernel = image, .kernel_size = len, .e820 = &e820, .nr_e820 = 1 };
    if (!xenimage_load(&ram, &in, &k, err))
        bug_on(k.hi > sizeof(mem) || k.lo >= k.hi || k.entry - k.virt_base >= k.hi);
    ram_fini(&ram);
    return 0;
}

FUZZ_MAIN("fuzz/xenimage", 20000, 900)
