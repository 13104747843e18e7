/*
 * elf.c - ELF64 executables, entered in 64-bit mode in the environment of boot.h (RSI = boot_params):
 * for small guests of one's own. Segments go to their physical addresses.
 * Source: System V ABI, chapter 5; AMD64 supplement.
 * Not done: relocation, dynamic linking, PVH notes, 32-bit files.
 */
#include "boot/boot.h"
#include "boot/params.h"
#include <elf.h>
#include <errno.h>
#include <string.h>

bool elf_probe(const u8 *image, u64 size)
{
    return size >= SELFMAG && !memcmp(image, ELFMAG, SELFMAG);
}

static int elf_check(const struct boot_input *in, Elf64_Ehdr *eh, char *err)
{
    const char *name = in->kernel_name;

    if (in->kernel_size < sizeof(*eh))
        return boot_fail(err, -EINVAL, "%s: truncated ELF header; get the file "
                         "again", name);
    memcpy(eh, in->kernel, sizeof(*eh));
    if (eh->e_ident[EI_CLASS] != ELFCLASS64 ||
        eh->e_ident[EI_DATA] != ELFDATA2LSB || eh->e_machine != EM_X86_64)
        return boot_fail(err, -ENOEXEC, "%s: an ELF file, but not for x86-64; "
                         "build it with -m64", name);
    if (eh->e_type != ET_EXEC)
        return boot_fail(err, -ENOEXEC, "%s: an ELF file, but not a statically "
                         "linked executable; link it with -static -no-pie",
                         name);
    if (!eh->e_phnum || eh->e_phentsize != sizeof(Elf64_Phdr))
        return boot_fail(err, -EINVAL, "%s: an ELF file without program "
                         "headers; link it", name);
    if (eh->e_phoff > in->kernel_size ||
        (u64)eh->e_phnum * sizeof(Elf64_Phdr) > in->kernel_size - eh->e_phoff)
        return boot_fail(err, -EINVAL, "%s: truncated: the program headers are "
                         "behind its end; get the file again", name);
    return 0;
}

/* Copy one PT_LOAD segment; widens [*lo, *hi) by it. */
static int elf_load_segment(struct ram *ram, const struct boot_input *in,
                            const Elf64_Phdr *ph, u64 *lo, u64 *hi, char *err)
{
    const char *name = in->kernel_name;

    if (ph->p_filesz > ph->p_memsz || ph->p_offset > in->kernel_size ||
        ph->p_filesz > in->kernel_size - ph->p_offset)
        return boot_fail(err, -EINVAL, "%s: truncated: a segment is behind its "
                         "end; get the file again", name);
    if (ph->p_paddr < 0x100000)
        return boot_fail(err, -EINVAL, "%s: a segment at %#llx; addresses below "
                         "1 MiB are kept for start-up data, link it higher",
                         name, (unsigned long long)ph->p_paddr);
    if (!boot_ram_has(ram, in, ph->p_paddr, ph->p_memsz))
        return boot_fail(err, -ENOMEM, "%s: a segment of %llu KiB at %#llx is "
                         "outside the guest's memory; give it more with --mem",
                         name, (unsigned long long)(ph->p_memsz + 1023) / 1024,
                         (unsigned long long)ph->p_paddr);
    u8 *to = ram_ptr(ram, ph->p_paddr, ph->p_memsz);
    memcpy(to, in->kernel + ph->p_offset, ph->p_filesz);
    memset(to + ph->p_filesz, 0, ph->p_memsz - ph->p_filesz);
    *lo = MIN(*lo, ph->p_paddr);
    *hi = MAX(*hi, ph->p_paddr + ph->p_memsz);
    return 0;
}

int elf_load(struct ram *ram, const struct boot_input *in,
             struct boot_entry *entry, char *err)
{
    Elf64_Ehdr eh;
    struct boot_entry e;
    u64 lo = ~0ull, hi = 0;
    gpa_t initrd;
    int r = elf_check(in, &eh, err);

    if (r)
        return r;
    for (unsigned i = 0; i < eh.e_phnum; i++) {
        Elf64_Phdr ph;
        memcpy(&ph, in->kernel + eh.e_phoff + i * sizeof(ph), sizeof(ph));
        if (ph.p_type != PT_LOAD || !ph.p_memsz)
            continue;
        r = elf_load_segment(ram, in, &ph, &lo, &hi, err);
        if (r)
            return r;
    }
    if (lo > hi)
        return boot_fail(err, -EINVAL, "%s: an ELF file with nothing to load",
                         in->kernel_name);
    if (eh.e_entry < lo || eh.e_entry >= hi)
        return boot_fail(err, -EINVAL, "%s: its entry point %#llx is outside "
                         "what it loads; entry and segments must be physical "
                         "addresses", in->kernel_name,
                         (unsigned long long)eh.e_entry);

    r = boot_place_cmdline(ram, in, BOOT_CMDLINE_MAX - 1, err);
    if (!r)
        r = boot_place_initrd(ram, in, BITULL(32), lo, hi, &initrd, err);
    if (!r)
        r = boot_env(ram, &e, err);
    if (r)
        return r;

    u8 *bp = ram_ptr(ram, BOOT_PARAMS, BP_SIZE);
    if (!bp)
        return boot_fail(err, -ENOMEM, "no memory for boot_params");
    u32 cmdline = BOOT_CMDLINE, at = (u32)initrd;
    u32 size = initrd ? (u32)in->initrd_size : 0;
    memset(bp, 0, BP_SIZE);
    memcpy(bp + BP_CMD_LINE_PTR, &cmdline, 4);
    memcpy(bp + BP_RAMDISK_IMAGE, &at, 4);
    memcpy(bp + BP_RAMDISK_SIZE, &size, 4);
    r = boot_fill_params(in, bp, err);
    if (r)
        return r;
    e.rip = eh.e_entry;
    *entry = e;
    return 0;
}
