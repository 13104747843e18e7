/*
 * elf.c - ELF executables: their segments go to their physical addresses. Those without another boot protocol's
 * mark (pvh.c, multiboot.c) must be for x86-64 and are entered in 64-bit mode in the environment of boot.h (RSI =
 * boot_params): for small guests of one's own.
 * Source: System V ABI, chapters 4 and 5; its i386 and AMD64 supplements.
 * Not done: relocation, dynamic linking.
 */
#include "boot/boot.h"
#include "boot/params.h"
#include <elf.h>
#include <errno.h>
#include <string.h>

/* A header and a program header of either class, in the wider form. */
struct elf_file {
    const u8 *image;
    u64 size, entry, phoff;
    unsigned phnum, phentsize, type, machine;
    bool is64;
};

bool elf_probe(const u8 *image, u64 size)
{
    return size >= SELFMAG && !memcmp(image, ELFMAG, SELFMAG);
}

/* False: too short, or no ELF of this byte order. */
static bool elf_open(struct elf_file *f, const u8 *image, u64 size)
{
    Elf64_Ehdr h64;
    Elf32_Ehdr h32;

    if (size < sizeof(h64) || !elf_probe(image, size) || image[EI_DATA] != ELFDATA2LSB)
        return false;
    *f = (struct elf_file){ .image = image, .size = size, .is64 = image[EI_CLASS] == ELFCLASS64 };
    memcpy(&h64, image, sizeof(h64));
    memcpy(&h32, image, sizeof(h32));
    f->entry = f->is64 ? h64.e_entry : h32.e_entry;
    f->phoff = f->is64 ? h64.e_phoff : h32.e_phoff;
    f->phnum = f->is64 ? h64.e_phnum : h32.e_phnum;
    f->phentsize = f->is64 ? h64.e_phentsize : h32.e_phentsize;
    f->type = h64.e_type; /* the same place in both */
    f->machine = h64.e_machine;
    return f->is64 || image[EI_CLASS] == ELFCLASS32;
}

static bool elf_headers_ok(const struct elf_file *f)
{
    u64 each = f->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);

    return f->phnum && f->phentsize == each && f->phoff <= f->size && f->phnum * each <= f->size - f->phoff;
}

static Elf64_Phdr elf_segment(const struct elf_file *f, unsigned i)
{
    Elf64_Phdr p;
    Elf32_Phdr p32;

    if (f->is64) {
        memcpy(&p, f->image + f->phoff + i * sizeof(p), sizeof(p));
        return p;
    }
    memcpy(&p32, f->image + f->phoff + i * sizeof(p32), sizeof(p32));
    return (Elf64_Phdr){ .p_type = p32.p_type, .p_offset = p32.p_offset, .p_paddr = p32.p_paddr,
                         .p_filesz = p32.p_filesz, .p_memsz = p32.p_memsz, .p_align = p32.p_align };
}

static int elf_check(const struct boot_input *in, struct elf_file *f, char *err)
{
    const char *name = in->kernel_name;

    if (!elf_open(f, in->kernel, in->kernel_size)) {
        if (in->kernel_size < sizeof(Elf64_Ehdr))
            return boot_fail(err, -EINVAL, "%s: truncated ELF header; get the file again", name);
        return boot_fail(err, -ENOEXEC, "%s: an ELF file, but not for x86-64; build it with -m64", name);
    }
    if (f->type != ET_EXEC)
        return boot_fail(err, -ENOEXEC, "%s: an ELF file, but not a statically linked executable; link it with "
                         "-static -no-pie", name);
    if (!f->phnum || f->phentsize != (f->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
        return boot_fail(err, -EINVAL, "%s: an ELF file without program headers; link it", name);
    if (!elf_headers_ok(f))
        return boot_fail(err, -EINVAL, "%s: truncated: the program headers are behind its end; get the file again",
                         name);
    return 0;
}

/* Copy one PT_LOAD segment; widens [*lo, *hi) by it. */
static int elf_load_segment(struct ram *ram, const struct boot_input *in, const Elf64_Phdr *ph, u64 *lo, u64 *hi,
                            char *err)
{
    const char *name = in->kernel_name;

    if (ph->p_filesz > ph->p_memsz || ph->p_offset > in->kernel_size ||
        ph->p_filesz > in->kernel_size - ph->p_offset)
        return boot_fail(err, -EINVAL, "%s: truncated: a segment is behind its end; get the file again", name);
    if (ph->p_paddr < 0x100000)
        return boot_fail(err, -EINVAL, "%s: a segment at %#llx; addresses below 1 MiB are kept for start-up data, "
                         "link it higher", name, (unsigned long long)ph->p_paddr);
    if (!boot_ram_has(ram, in, ph->p_paddr, ph->p_memsz))
        return boot_fail(err, -ENOMEM, "%s: a segment of %llu KiB at %#llx is outside the guest's memory; give it "
                         "more with --mem", name, (unsigned long long)(ph->p_memsz + 1023) / 1024,
                         (unsigned long long)ph->p_paddr);
    u8 *to = ram_ptr(ram, ph->p_paddr, ph->p_memsz);
    memcpy(to, in->kernel + ph->p_offset, ph->p_filesz);
    memset(to + ph->p_filesz, 0, ph->p_memsz - ph->p_filesz);
    *lo = MIN(*lo, ph->p_paddr);
    *hi = MAX(*hi, ph->p_paddr + ph->p_memsz);
    return 0;
}

int elf_load_image(struct ram *ram, const struct boot_input *in, struct boot_image *image, char *err)
{
    struct elf_file f;
    int r = elf_check(in, &f, err);

    if (r)
        return r;
    *image = (struct boot_image){ .entry = f.entry, .lo = ~0ull };
    for (unsigned i = 0; i < f.phnum; i++) {
        Elf64_Phdr ph = elf_segment(&f, i);
        if (ph.p_type != PT_LOAD || !ph.p_memsz)
            continue;
        r = elf_load_segment(ram, in, &ph, &image->lo, &image->hi, err);
        if (r)
            return r;
    }
    if (image->lo > image->hi)
        return boot_fail(err, -EINVAL, "%s: an ELF file with nothing to load", in->kernel_name);
    return 0;
}

bool elf_note(const u8 *image, u64 size, u32 type, u32 *value)
{
    struct elf_file f;

    if (!elf_open(&f, image, size) || !elf_headers_ok(&f))
        return false;
    for (unsigned i = 0; i < f.phnum; i++) {
        Elf64_Phdr ph = elf_segment(&f, i);
        const u64 align = 4; /* Xen's notes, whatever p_align says (xen.c) */
        u64 at = ph.p_offset;
        if (ph.p_type != PT_NOTE || ph.p_offset > size || ph.p_filesz > size - ph.p_offset)
            continue;
        u64 end = at + ph.p_filesz;
        while (end - at >= sizeof(Elf64_Nhdr)) { /* the same in both classes */
            Elf64_Nhdr n;
            memcpy(&n, image + at, sizeof(n));
            u64 name = at + sizeof(n), desc = name + (((u64)n.n_namesz + align - 1) & ~(align - 1));
            u64 next = desc + (((u64)n.n_descsz + align - 1) & ~(align - 1));
            if (desc > end || n.n_descsz > end - desc)
                break;
            if (n.n_type == type && n.n_namesz == 4 && !memcmp(image + name, "Xen", 4) && n.n_descsz >= 4) {
                memcpy(value, image + desc, 4);
                return true;
            }
            if (next >= end)
                break;
            at = next;
        }
    }
    return false;
}

int elf_load(struct ram *ram, const struct boot_input *in, struct boot_entry *entry, char *err)
{
    struct boot_image image;
    struct elf_file f;
    struct boot_entry e;
    gpa_t initrd;

    if (elf_open(&f, in->kernel, in->kernel_size) && (!f.is64 || f.machine != EM_X86_64))
        return boot_fail(err, -ENOEXEC, "%s: an ELF file, but not for x86-64; build it with -m64", in->kernel_name);
    int r = elf_load_image(ram, in, &image, err);
    if (r)
        return r;
    if (image.entry < image.lo || image.entry >= image.hi)
        return boot_fail(err, -EINVAL, "%s: its entry point %#llx is outside what it loads; entry and segments must "
                         "be physical addresses", in->kernel_name, (unsigned long long)image.entry);

    r = boot_place_cmdline(ram, in, BOOT_CMDLINE_MAX - 1, err);
    if (!r)
        r = boot_place_initrd(ram, in, BITULL(32), image.lo, image.hi, &initrd, err);
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
    e.rip = image.entry;
    *entry = e;
    return 0;
}
