/*
 * The loaders over plain memory: good images, every truncation of them, and corrupt headers. What must hold for
 * any bytes: no access outside the input or the RAM (run it under ASan), an error is one sentence that names
 * the file, and an entry point is only given for an image that is all there.
 */
#include "boot/boot.h"
#include "boot/params.h"
#include "mem/backing.h"
#include "tests/lib/check.h"
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MIB 0x100000ull
#define KERNEL_SIZE (5 * 512 + 0x4000)

struct world {
    struct backing b;
    struct ram ram;
    struct boot_e820 e820[3];
    struct boot_input in;
    struct boot_entry entry;
    char err[BOOT_ERR_LEN];
};

static void world_init(struct world *w, u64 ram_bytes)
{
    memset(w, 0, sizeof(*w));
    if (backing_init(&w->b, ram_bytes))
        abort();
    ram_init(&w->ram);
    u8 *h = w->b.host;
    CHECK(!ram_add_slot(&w->ram, 0, MIN(ram_bytes, 0xa0000ull), h, false));
    w->e820[0] = (struct boot_e820){ 0, 0x9fc00, BOOT_E820_RAM };
    w->e820[1] = (struct boot_e820){ 0x9fc00, 0x400, BOOT_E820_RESERVED };
    if (ram_bytes > MIB) {
        CHECK(!ram_add_slot(&w->ram, MIB, ram_bytes - MIB, h + MIB, false));
        w->e820[2] = (struct boot_e820){ MIB, ram_bytes - MIB, BOOT_E820_RAM };
    }
    w->in = (struct boot_input){
        .kernel_name = "kernel.img",
        .cmdline = "console=ttyS0",
        .e820 = w->e820,
        .nr_e820 = ram_bytes > MIB ? 3 : 2,
        .rsdp = 0xe0000,
    };
}

static void world_fini(struct world *w)
{
    ram_fini(&w->ram);
    backing_fini(&w->b);
}

static int load(struct world *w, const u8 *kernel, u64 size)
{
    /* A copy of exactly that size, so that ASan sees any read behind it. */
    u8 *copy = malloc(size ? size : 1);
    if (size)
        memcpy(copy, kernel, size);
    w->in.kernel = copy;
    w->in.kernel_size = size;
    memset(&w->entry, 0, sizeof(w->entry));
    memset(w->err, 0, sizeof(w->err));
    int r = boot_load(&w->ram, &w->in, &w->entry, w->err);
    free(copy);
    return r;
}

static void put(u8 *p, u64 v, unsigned n)
{
    memcpy(p, &v, n);
}

/* A bzImage that is right in everything we look at. */
static void make_bzimage(u8 *k)
{
    memset(k, 0, KERNEL_SIZE);
    k[BP_SETUP_SECTS] = 4;
    put(k + BP_SYSSIZE, 0x4000 / 16, 4);
    put(k + BP_BOOT_FLAG, 0xaa55, 2);
    k[BP_JUMP_LEN] = 0x6a;
    put(k + BP_MAGIC, BP_MAGIC_VALUE, 4);
    put(k + BP_VERSION, 0x20f, 2);
    k[BP_LOADFLAGS] = LOADED_HIGH;
    put(k + BP_INITRD_ADDR_MAX, 0x7fffffff, 4);
    put(k + BP_KERNEL_ALIGNMENT, 0x200000, 4);
    k[BP_RELOCATABLE] = 1;
    put(k + BP_XLOADFLAGS, XLF_KERNEL_64, 2);
    put(k + BP_CMDLINE_SIZE, 2047, 4);
    put(k + BP_PREF_ADDRESS, 16 * MIB, 8);
    put(k + BP_INIT_SIZE, 8 * MIB, 4);
    for (unsigned i = 5 * 512; i < KERNEL_SIZE; i++)
        k[i] = (u8)(i * 7 + (i >> 8));
}

static void test_bzimage_good(void)
{
    static u8 k[KERNEL_SIZE], initrd[5000];
    struct world w;

    world_init(&w, 64 * MIB);
    make_bzimage(k);
    memset(initrd, 0x5a, sizeof(initrd));
    w.in.initrd_name = "initrd.img";
    w.in.initrd = initrd;
    w.in.initrd_size = sizeof(initrd);
    CHECK_MSG(load(&w, k, sizeof(k)) == 0, "%s", w.err);

    CHECK(w.entry.rip == 16 * MIB + 0x200);
    CHECK(w.entry.rsi == BOOT_PARAMS);
    CHECK(w.entry.cs.sel == 0x10 && w.entry.ds.sel == 0x18);
    CHECK((w.entry.cs.attr & (SEG_L | SEG_DB)) == SEG_L);
    CHECK(w.entry.cr0 & CR0_PG && w.entry.cr4 == CR4_PAE);
    CHECK(w.entry.efer == (EFER_LME | EFER_LMA));
    CHECK(!(w.entry.rflags & EFL_IF));
    CHECK(!memcmp(ram_ptr(&w.ram, 16 * MIB, 0x4000), k + 5 * 512, 0x4000));

    u8 *bp = ram_ptr(&w.ram, BOOT_PARAMS, BP_SIZE);
    u64 rsdp;
    u32 at, size, line;
    memcpy(&rsdp, bp + BP_ACPI_RSDP, 8);
    memcpy(&at, bp + BP_RAMDISK_IMAGE, 4);
    memcpy(&size, bp + BP_RAMDISK_SIZE, 4);
    memcpy(&line, bp + BP_CMD_LINE_PTR, 4);
    CHECK(rsdp == 0xe0000);
    CHECK(bp[BP_E820_ENTRIES] == 3);
    CHECK(bp[BP_TYPE_OF_LOADER] == 0xff);
    CHECK(!memcmp(bp + BP_E820_TABLE + 20, &w.e820[1].addr, 8));
    CHECK(!memcmp(bp + BP_MAGIC, "HdrS", 4));
    CHECK(size == sizeof(initrd) && at == 64 * MIB - 0x2000);
    CHECK(!memcmp(ram_ptr(&w.ram, at, size), initrd, size));
    CHECK(!strcmp(ram_ptr(&w.ram, line, 14), "console=ttyS0"));

    /* The identity map: page of 2 MiB at 3 GiB. */
    u64 *pml4 = ram_ptr(&w.ram, w.entry.cr3, 8);
    u64 *pdpt = ram_ptr(&w.ram, pml4[0] & PAGE_MASK, 32);
    u64 *pd = ram_ptr(&w.ram, pdpt[3] & PAGE_MASK, 4096);
    CHECK(pd[5] == (0xc0000000ull | 5 << 21 | PTE_P | PTE_W | PTE_PS));
    u64 *gdt = ram_ptr(&w.ram, w.entry.gdt_base, 64);
    CHECK(gdt[2] == 0x00af9b000000ffffull);
    CHECK(gdt[3] == 0x00cf93000000ffffull);
    world_fini(&w);
}

/* Without a 64-bit entry: flat 32-bit protected mode, at the start of the code. */
static void test_bzimage_32(void)
{
    static u8 k[KERNEL_SIZE];
    struct world w;

    world_init(&w, 64 * MIB);
    make_bzimage(k);
    put(k + BP_XLOADFLAGS, 0, 2);
    CHECK_MSG(load(&w, k, sizeof(k)) == 0, "%s", w.err);
    CHECK(w.entry.rip == 16 * MIB && w.entry.rsi == BOOT_PARAMS);
    CHECK((w.entry.cs.attr & (SEG_L | SEG_DB)) == SEG_DB);
    CHECK((w.entry.cr0 & (CR0_PE | CR0_PG)) == CR0_PE && !w.entry.cr4 && !w.entry.efer);
    u64 *gdt = ram_ptr(&w.ram, w.entry.gdt_base, 64);
    CHECK(gdt[2] == 0x00cf9b000000ffffull && gdt[3] == 0x00cf93000000ffffull);
    world_fini(&w);
}

static void test_bzimage_truncated(void)
{
    static u8 k[KERNEL_SIZE];
    struct world w;

    world_init(&w, 32 * MIB);
    make_bzimage(k);
    unsigned bad = 0;
    for (u64 n = 0; n < sizeof(k); n += n < 0x300 ? 1 : 97) {
        int r = load(&w, k, n);
        if (r >= 0 || !strstr(w.err, "kernel.img") || w.entry.rip)
            bad++;
    }
    CHECK(bad == 0);
    CHECK(load(&w, k, sizeof(k) - 1) == -EINVAL);
    CHECK(strstr(w.err, "truncated"));
    CHECK(load(&w, k, 0) == -ENOEXEC);
    CHECK(load(&w, k, sizeof(k)) == 0);
    world_fini(&w);
}

static void test_bzimage_corrupt(void)
{
    static const struct {
        unsigned at, n;
        u64 value;
        int want;
        const char *says;
    } row[] = {
        { BP_MAGIC, 4, 0x11111111, -ENOEXEC, "not a kernel" },
        { BP_BOOT_FLAG, 2, 0, -ENOEXEC, "not a kernel" },
        { BP_VERSION, 2, 0x20b, -ENOEXEC, "too old" },
        { BP_LOADFLAGS, 1, 0, -EINVAL, "bzImage" },
        { BP_SETUP_SECTS, 1, 255, -EINVAL, "truncated" },
        { BP_SYSSIZE, 4, 0xffffffff, -EINVAL, "truncated" },
        { BP_SYSSIZE, 4, 0, -EINVAL, "damaged" },
        { BP_PREF_ADDRESS, 8, ~0ull, -EINVAL, "damaged" },
        { BP_PREF_ADDRESS, 8, 0x8000, -EINVAL, "damaged" },
        { BP_PREF_ADDRESS, 8, 0xffffffff, -ENOMEM, "--mem" },
        { BP_PREF_ADDRESS, 8, 0, 0, NULL },
        { BP_INIT_SIZE, 4, 0xffffffff, -ENOMEM, "--mem" },
        { BP_INIT_SIZE, 4, 0, 0, NULL },
        { BP_CMDLINE_SIZE, 4, 4, -E2BIG, "--append" },
        { BP_JUMP_LEN, 1, 255, 0, NULL },
        { BP_JUMP_LEN, 1, 0, 0, NULL },
    };
    static u8 k[KERNEL_SIZE];
    struct world w;

    world_init(&w, 32 * MIB);
    for (unsigned i = 0; i < ARRAY_SIZE(row); i++) {
        make_bzimage(k);
        put(k + row[i].at, row[i].value, row[i].n);
        int r = load(&w, k, sizeof(k));
        CHECK_MSG(r == row[i].want, "row %u: %d %s", i, r, w.err);
        CHECK_MSG(!row[i].says || strstr(w.err, row[i].says), "row %u: %s", i,
                  w.err);
    }
    /* Random headers: any answer, but no crash and no silent error. */
    srand(1);
    unsigned silent = 0;
    for (unsigned i = 0; i < 20000; i++) {
        make_bzimage(k);
        for (int n = rand() % 6; n >= 0; n--)
            k[BP_HDR + (unsigned)rand() % 0x80] = (u8)rand();
        int r = load(&w, k, sizeof(k));
        silent += r ? !w.err[0] || w.entry.rip : !w.entry.rip;
    }
    CHECK(silent == 0);
    world_fini(&w);
}

/* Old headers do not say everything: what the version does not have yet is not looked at. */
static void test_bzimage_old(void)
{
    static const struct { u16 version; bool bios; u32 cmdline_max; } row[] = {
        { 0x20c, false, 2047 }, { 0x20b, true, 2047 }, { 0x207, true, 2047 }, { 0x205, true, 255 }, { 0x203, true, 255 },
        { 0x202, true, 255 }, { 0x201, false, 0 },
    };
    static char words[3000];
    static u8 k[KERNEL_SIZE];
    struct boot_16 b;
    struct world w;

    world_init(&w, 32 * MIB);
    for (unsigned i = 0; i < ARRAY_SIZE(row); i++) {
        u16 version = row[i].version;
        make_bzimage(k);
        put(k + BP_VERSION, version, 2);
        if (version < 0x20a)
            memset(k + BP_PREF_ADDRESS, 0xee, 12);
        if (version < 0x206)
            put(k + BP_CMDLINE_SIZE, 0xeeeeeeee, 4);
        if (version < 0x204)
            put(k + BP_SYSSIZE, 0xeeeeeeee, 4);
        CHECK(bzimage_needs_bios(k, sizeof(k)) == row[i].bios && !bzimage_needs_bios(k, 64));
        w.in.kernel = k;
        w.in.kernel_size = sizeof(k);
        w.in.cmdline = "hello";
        int r = bzimage_load_16(&w.ram, &w.in, &b, w.err);
        CHECK_MSG(r == (version < 0x202 ? -ENOEXEC : 0), "version %#x: %d %s", version, r, w.err);
        if (r)
            continue;
        CHECK(b.setup_size == 5 * 512 && b.kernel_size == 0x4000 && b.kernel == k + 5 * 512 && b.cmdline_size == 6);
        free(b.setup);
        w.in.kernel_size -= 15; /* rounded up, by those who made such */
        r = bzimage_load_16(&w.ram, &w.in, &b, w.err);
        CHECK(r == (version < 0x20c ? 0 : -EINVAL) && (r || b.kernel_size == 0x4000 - (version < 0x204 ? 16 : 15)));
        if (!r)
            free(b.setup);
        memset(words, 'x', sizeof(words) - 1);
        words[row[i].cmdline_max + 1] = '\0';
        w.in.cmdline = words;
        CHECK(bzimage_load_16(&w.ram, &w.in, &b, w.err) == (version < 0x20c ? -E2BIG : -EINVAL));
    }
    world_fini(&w);
}

static void test_does_not_fit(void)
{
    static u8 k[KERNEL_SIZE];
    u8 *initrd = calloc(1, 40 * MIB);
    struct world w;

    make_bzimage(k);
    world_init(&w, 16 * MIB);
    CHECK(load(&w, k, sizeof(k)) == -ENOMEM);
    CHECK(strstr(w.err, "needs 24 MiB"));
    world_fini(&w);

    world_init(&w, 512 * 1024);
    CHECK(load(&w, k, sizeof(k)) == -ENOMEM);
    world_fini(&w);

    world_init(&w, 32 * MIB);
    w.in.initrd_name = "initrd.img";
    w.in.initrd = initrd;
    w.in.initrd_size = 40 * MIB;
    CHECK(load(&w, k, sizeof(k)) == -ENOMEM);
    CHECK(strstr(w.err, "initrd.img") && strstr(w.err, "--mem"));
    w.in.initrd_size = ~0ull;
    CHECK(load(&w, k, sizeof(k)) == -ENOMEM);
    /* Above the kernel 8 MiB are free, below it 15. */
    w.in.initrd_size = 8 * MIB;
    CHECK(load(&w, k, sizeof(k)) == 0);
    w.in.initrd_size = 12 * MIB;
    CHECK(load(&w, k, sizeof(k)) == 0);
    u32 at;
    memcpy(&at, (u8 *)ram_ptr(&w.ram, BOOT_PARAMS, 4096) + BP_RAMDISK_IMAGE, 4);
    CHECK(at == 4 * MIB);
    w.in.initrd_size = 15 * MIB + 1;
    CHECK(load(&w, k, sizeof(k)) == -ENOMEM);
    /* initrd_addr_max holds it down. */
    w.in.initrd_size = 4 * MIB;
    put(k + BP_INITRD_ADDR_MAX, 30 * MIB - 1, 4);
    CHECK(load(&w, k, sizeof(k)) == 0);
    memcpy(&at, (u8 *)ram_ptr(&w.ram, BOOT_PARAMS, 4096) + BP_RAMDISK_IMAGE, 4);
    CHECK(at == 26 * MIB);
    world_fini(&w);
    free(initrd);
}

struct elf_image {
    Elf64_Ehdr eh;
    Elf64_Phdr ph[2];
    u8 text[256];
};

static void make_elf(struct elf_image *e)
{
    memset(e, 0, sizeof(*e));
    memcpy(e->eh.e_ident, ELFMAG, SELFMAG);
    e->eh.e_ident[EI_CLASS] = ELFCLASS64;
    e->eh.e_ident[EI_DATA] = ELFDATA2LSB;
    e->eh.e_machine = EM_X86_64;
    e->eh.e_type = ET_EXEC;
    e->eh.e_entry = 2 * MIB + 16;
    e->eh.e_phoff = offsetof(struct elf_image, ph);
    e->eh.e_phentsize = sizeof(Elf64_Phdr);
    e->eh.e_phnum = 2;
    e->ph[0] = (Elf64_Phdr){ .p_type = PT_LOAD,
                             .p_offset = offsetof(struct elf_image, text),
                             .p_paddr = 2 * MIB,
                             .p_filesz = 256,
                             .p_memsz = 0x3000 };
    e->ph[1] = (Elf64_Phdr){ .p_type = PT_NOTE };
    memset(e->text, 0x90, sizeof(e->text));
}

static void test_elf(void)
{
    struct elf_image e;
    struct world w;

    world_init(&w, 8 * MIB);
    make_elf(&e);
    memset(ram_ptr(&w.ram, 2 * MIB, 0x4000), 0xcc, 0x4000);
    CHECK_MSG(load(&w, (u8 *)&e, sizeof(e)) == 0, "%s", w.err);
    CHECK(w.entry.rip == 2 * MIB + 16 && w.entry.rsi == BOOT_PARAMS);
    u8 *t = ram_ptr(&w.ram, 2 * MIB, 0x4000);
    CHECK(t[0] == 0x90 && t[255] == 0x90 && t[256] == 0 && t[0x2fff] == 0 &&
          t[0x3000] == 0xcc);

    unsigned bad = 0;
    for (u64 n = 0; n < sizeof(e); n++)
        bad += load(&w, (u8 *)&e, n) >= 0 || !w.err[0];
    CHECK(bad == 0);

#define WITH(field, value, want)                                               \
    do {                                                                       \
        make_elf(&e);                                                          \
        e.field = (value);                                                     \
        CHECK_MSG(load(&w, (u8 *)&e, sizeof(e)) == (want), "%s", w.err);       \
    } while (0)
    WITH(eh.e_machine, EM_386, -ENOEXEC);
    WITH(eh.e_ident[EI_CLASS], ELFCLASS32, -ENOEXEC);
    WITH(eh.e_type, ET_DYN, -ENOEXEC);
    WITH(eh.e_phnum, 0, -EINVAL);
    WITH(eh.e_phnum, 0xffff, -EINVAL);
    WITH(eh.e_phoff, ~0ull, -EINVAL);
    WITH(eh.e_entry, 0x1000, -EINVAL);
    WITH(eh.e_entry, 2 * MIB + 0x3000, -EINVAL);
    WITH(ph[0].p_offset, ~0ull, -EINVAL);
    WITH(ph[0].p_filesz, 0x4000, -EINVAL);
    WITH(ph[0].p_filesz, ~0ull, -EINVAL);
    WITH(ph[0].p_memsz, ~0ull, -ENOMEM);
    WITH(ph[0].p_paddr, ~0ull, -ENOMEM);
    WITH(ph[0].p_paddr, 0x1000, -EINVAL);
    WITH(ph[0].p_paddr, 8 * MIB - 0x1000, -ENOMEM);
    WITH(ph[0].p_type, PT_NULL, -EINVAL);

    srand(2);
    unsigned silent = 0;
    for (unsigned i = 0; i < 20000; i++) {
        make_elf(&e);
        for (int n = rand() % 4; n >= 0; n--)
            ((u8 *)&e)[(unsigned)rand() % (sizeof(Elf64_Ehdr) + 56)] =
                (u8)rand();
        int r = load(&w, (u8 *)&e, sizeof(e));
        silent += r ? !w.err[0] || w.entry.rip : !w.entry.rip;
    }
    CHECK(silent == 0);
    world_fini(&w);
}

static void test_foreign(void)
{
    static const char *const file[] = { "#!/bin/sh\nexit 0\n", "MZ", "\x7f"
                                                                     "EL",
                                        "PK\3\4" };
    struct world w;

    world_init(&w, 8 * MIB);
    for (unsigned i = 0; i < ARRAY_SIZE(file); i++) {
        CHECK(load(&w, (const u8 *)file[i], strlen(file[i])) == -ENOEXEC);
        CHECK(strstr(w.err, "kernel.img: not a kernel"));
        CHECK(!strchr(w.err, '\n'));
    }
    w.in.cmdline = NULL;
    CHECK(load(&w, NULL, 0) == -ENOEXEC);
    world_fini(&w);
}

int main(void)
{
    test_bzimage_good();
    test_bzimage_32();
    test_bzimage_truncated();
    test_bzimage_corrupt();
    test_bzimage_old();
    test_does_not_fit();
    test_elf();
    test_foreign();
    return check_done("unit/boot");
}
