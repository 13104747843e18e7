/*
 * xen.c - kernels with Xen's ELF notes, for Xen's PV interface: where their segments go, and what the notes ask for.
 * What such a guest needs beyond its kernel (page tables, start_info) is made by whoever speaks the interface.
 * Source: Xen's public elfnote.h; System V ABI, chapter 5.
 */
#include "boot/boot.h"
#include "vitro/xen.h"
#include <elf.h>
#include <errno.h>
#include <string.h>

/* One "Xen" note: a number of 4 or 8 bytes, or a text. */
static void note_take(struct boot_xen *x, u32 type, const u8 *desc, u32 len)
{
    u64 value = 0;

    memcpy(&value, desc, MIN(len, 8u));
    switch (type) {
    case XEN_NOTE_ENTRY: x->entry = value; x->has_entry = true; break;
    case XEN_NOTE_HYPERCALL_PAGE: x->hypercall_page = value; break;
    case XEN_NOTE_VIRT_BASE: x->virt_base = value; x->has_virt_base = true; break;
    case XEN_NOTE_PADDR_OFFSET: x->paddr_offset = value; break;
    case XEN_NOTE_INIT_P2M: x->p2m_base = value; x->has_p2m_base = true; break;
    case XEN_NOTE_MOD_START_PFN: x->mod_start_pfn = value & 1; break;
    case XEN_NOTE_HV_START_LOW: x->hv_start_low = value; break;
    case XEN_NOTE_XEN_VERSION: x->pv = len >= 7 && !memcmp(desc, "xen-3.0", 7); break;
    default: break; /* what only other ways to start a guest need, or what tells tools about the kernel */
    }
}

/* Names and descriptions are padded to 4 bytes, whatever the segment's alignment says (Xen's libelf; GRUB's has 8). */
static void notes_read(struct boot_xen *x, const u8 *at, u64 len)
{
    const u64 align = 4;
    while (len >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr n;
        memcpy(&n, at, sizeof(n));
        u64 desc = sizeof(n) + (((u64)n.n_namesz + align - 1) & ~(align - 1));
        u64 next = desc + (((u64)n.n_descsz + align - 1) & ~(align - 1));
        if (desc > len || n.n_descsz > len - desc)
            return;
        if (n.n_namesz == 4 && !memcmp(at + sizeof(n), "Xen", 4))
            note_take(x, n.n_type, at + desc, n.n_descsz);
        if (next >= len)
            return;
        at += next;
        len -= next;
    }
}

/* A segment, which may lie in several pieces of RAM. */
static int place(struct ram *ram, gpa_t at, const u8 *from, u64 filesz, u64 memsz)
{
    static const u8 zeros[PAGE_SIZE];
    int r = ram_write(ram, at, from, filesz);

    for (u64 n, done = filesz; !r && done < memsz; done += n) {
        n = MIN(memsz - done, sizeof(zeros));
        r = ram_write(ram, at + done, zeros, n);
    }
    return r;
}

int xenimage_load(struct ram *ram, const struct boot_input *in, struct boot_xen *x, char *err)
{
    const char *name = in->kernel_name;
    struct payload p;
    Elf64_Ehdr h;
    int r = payload_open(&p, name, in->kernel, in->kernel_size, err);

    if (r)
        return r;
    *x = (struct boot_xen){ .lo = ~0ull };
    u64 ram_end = in->nr_e820 ? in->e820[0].addr + in->e820[0].size : 0; /* such a guest has one piece */
    if (p.size < sizeof(h) || !elf_probe(p.elf, p.size)) {
        r = boot_fail(err, -ENOEXEC, "%s: neither a bzImage nor an ELF file", name);
        goto out;
    }
    memcpy(&h, p.elf, sizeof(h));
    if (h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_ident[EI_DATA] != ELFDATA2LSB || h.e_machine != EM_X86_64) {
        r = boot_fail(err, -ENOEXEC, "%s: its kernel is not for x86-64; Xen's PV interface is for 64-bit kernels here", name);
        goto out;
    }
    if (h.e_phentsize != sizeof(Elf64_Phdr) || h.e_phoff > p.size || h.e_phnum * sizeof(Elf64_Phdr) > p.size - h.e_phoff)
        goto damaged;
    Elf64_Phdr ph[64];
    if (!h.e_phnum || h.e_phnum > ARRAY_SIZE(ph))
        goto damaged;
    memcpy(ph, p.elf + h.e_phoff, h.e_phnum * sizeof(ph[0]));

    for (unsigned i = 0; i < h.e_phnum; i++) {
        if (ph[i].p_offset > p.size || ph[i].p_filesz > p.size - ph[i].p_offset)
            goto damaged;
        if (ph[i].p_type == PT_NOTE)
            notes_read(x, p.elf + ph[i].p_offset, ph[i].p_filesz);
    }
    if (!x->pv || !x->has_entry) {
        r = boot_fail(err, -ENOEXEC, "%s: no Xen PV kernel: it has no such ELF notes; Linux needs CONFIG_XEN_PV", name);
        goto out;
    }
    if (!x->has_virt_base)
        x->virt_base = 0;
    /* Everything is mapped from virt_base up: nothing may wrap, and all of it stays on one side of the hole. */
    if (x->virt_base & ~PAGE_MASK || (u64)((s64)(x->virt_base << 16) >> 16) != x->virt_base ||
        (x->has_p2m_base && ((x->p2m_base & (BITULL(30) - 1)) || (u64)((s64)(x->p2m_base << 16) >> 16) != x->p2m_base)) ||
        (x->has_p2m_base && x->p2m_base >> 39 == x->virt_base >> 39))
        goto damaged;

    for (unsigned i = 0; i < h.e_phnum; i++) {
        u64 at = ph[i].p_paddr - x->paddr_offset;
        if (ph[i].p_type != PT_LOAD || !ph[i].p_memsz)
            continue;
        if (ph[i].p_filesz > ph[i].p_memsz || ph[i].p_memsz > BITULL(40) || at > BITULL(40))
            goto damaged;
        if (at > ram_end || ph[i].p_memsz > ram_end - at || place(ram, at, p.elf + ph[i].p_offset, ph[i].p_filesz, ph[i].p_memsz)) {
            r = boot_fail(err, -ENOMEM, "%s: its kernel's segment of %llu KiB at %#llx is outside the guest's memory; give it "
                          "more with --mem", name, (unsigned long long)(ph[i].p_memsz + 1023) / 1024,
                          (unsigned long long)at);
            goto out;
        }
        x->lo = MIN(x->lo, at);
        x->hi = MAX(x->hi, at + ph[i].p_memsz);
    }
    if (x->lo >= x->hi)
        goto damaged;
    if (x->virt_base + x->hi < x->virt_base || x->entry < x->virt_base + x->lo || x->entry >= x->virt_base + x->hi ||
        (x->hypercall_page && (x->hypercall_page & ~PAGE_MASK || x->hypercall_page < x->virt_base + x->lo ||
                               x->hypercall_page - x->virt_base > x->hi - PAGE_SIZE)))
        goto damaged;
    goto out;
damaged:
    r = boot_fail(err, -EINVAL, "%s: damaged: its kernel's ELF headers or Xen notes make no sense; get the file again", name);
out:
    payload_close(&p);
    return r;
}
