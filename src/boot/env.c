/*
 * env.c - what every loader shares: the 64-bit environment, the command line, the initrd, e820.
 * Source: Linux Documentation/arch/x86/boot.rst ("64-bit boot protocol").
 */
#include "boot/boot.h"
#include "boot/params.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

_Static_assert(BOOT_E820_RAM == 1, "as the firmware interface numbers it");

int boot_fail(char *err, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(err, BOOT_ERR_LEN, fmt, ap);
    va_end(ap);
    return code;
}

/* A flat descriptor: base 0, limit 4 GiB. */
static u64 flat_descriptor(u32 attr)
{
    return 0x000f00000000ffffull | (u64)(attr & 0xffu) << 40 |
           (u64)(attr & 0xf000u) << 40;
}

int boot_env(struct ram *ram, struct boot_entry *entry, char *err)
{
    const u32 cs = SEG_P | SEG_S | SEG_CODE | SEG_R | SEG_A | SEG_L | SEG_G;
    const u32 ds = SEG_P | SEG_S | SEG_W | SEG_A | SEG_DB | SEG_G;
    const u32 tr = SEG_P | 0xbu; /* busy 64-bit TSS; never used for a switch */
    u64 *gdt = ram_ptr(ram, BOOT_GDT, 0x1000);
    u64 *pml4 = ram_ptr(ram, BOOT_PML4, 0x6000);

    if (!gdt || !pml4)
        return boot_fail(err, -ENOMEM,
                         "the guest has no memory below 1 MiB; give it more "
                         "with --mem");

    memset(gdt, 0, 0x1000);
    gdt[BOOT_CS / 8] = flat_descriptor(cs);
    gdt[BOOT_DS / 8] = flat_descriptor(ds);
    gdt[BOOT_TSS / 8] = (u64)tr << 40 | 0x67;

    u64 *pdpt = pml4 + 512, *pd = pml4 + 1024;
    memset(pml4, 0, 0x2000);
    pml4[0] = BOOT_PDPT | PTE_P | PTE_W;
    for (unsigned i = 0; i < 4; i++)
        pdpt[i] = (BOOT_PD + i * PAGE_SIZE) | PTE_P | PTE_W;
    for (u64 i = 0; i < 2048; i++)
        pd[i] = i << 21 | PTE_P | PTE_W | PTE_PS;

    *entry = (struct boot_entry){
        .rsp = BOOT_STACK_TOP,
        .rsi = BOOT_PARAMS,
        .rflags = EFL_R1,
        .cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG,
        .cr3 = BOOT_PML4,
        .cr4 = CR4_PAE,
        .efer = EFER_LME | EFER_LMA,
        .gdt_base = BOOT_GDT,
        .gdt_limit = BOOT_TSS + 15,
        .cs = { .sel = BOOT_CS, .limit = 0xffffffffu, .attr = cs },
        .ds = { .sel = BOOT_DS, .limit = 0xffffffffu, .attr = ds },
        .tr = { .sel = BOOT_TSS, .limit = 0x67, .attr = tr },
    };
    return 0;
}

void boot_env_32(struct ram *ram, struct boot_entry *entry)
{
    const u32 cs = SEG_P | SEG_S | SEG_CODE | SEG_R | SEG_A | SEG_DB | SEG_G;
    const u32 tr = SEG_P | 0xbu;
    u64 *gdt = ram_ptr(ram, BOOT_GDT, 0x1000);

    gdt[BOOT_CS / 8] = flat_descriptor(cs);
    entry->cs.attr = cs;
    entry->tr.attr = tr;
    entry->cr0 = CR0_PE | CR0_ET | CR0_NE;
    entry->cr3 = entry->cr4 = entry->efer = 0;
}

int boot_env32(struct ram *ram, struct boot_entry *entry, char *err)
{
    const u32 cs = SEG_P | SEG_S | SEG_CODE | SEG_R | SEG_A | SEG_DB | SEG_G;
    const u32 tr = SEG_P | 0xbu; /* busy 32-bit TSS */
    int r = boot_env(ram, entry, err);

    if (r)
        return r;
    u64 *gdt = ram_ptr(ram, BOOT_GDT, 0x1000);
    gdt[BOOT_CS / 8] = flat_descriptor(cs);
    gdt[BOOT_TSS / 8] = (u64)tr << 40 | 0x67;
    entry->cs.attr = cs;
    entry->tr.attr = tr;
    entry->cr0 = CR0_PE | CR0_ET;
    entry->cr3 = entry->cr4 = entry->efer = 0;
    entry->rsi = 0;
    return 0;
}

int boot_place_cmdline(struct ram *ram, const struct boot_input *in, u64 max,
                       char *err)
{
    const char *cmdline = in->cmdline ? in->cmdline : "";
    u64 len = strlen(cmdline);

    max = MIN(max, BOOT_CMDLINE_MAX - 1);
    if (len > max)
        return boot_fail(err, -E2BIG,
                         "the command line is %llu bytes, %s takes %llu; "
                         "shorten --append",
                         (unsigned long long)len, in->kernel_name,
                         (unsigned long long)max);
    if (ram_write(ram, BOOT_CMDLINE, cmdline, len + 1))
        return boot_fail(err, -ENOMEM,
                         "no memory for the command line; give the guest more "
                         "with --mem");
    return 0;
}

bool boot_ram_has(struct ram *ram, const struct boot_input *in, gpa_t gpa,
                  u64 size)
{
    for (unsigned i = 0; i < in->nr_e820; i++) {
        const struct boot_e820 *e = &in->e820[i];
        if (e->type == BOOT_E820_RAM && gpa >= e->addr && gpa - e->addr < e->size &&
            size <= e->size - (gpa - e->addr))
            return ram_ptr(ram, gpa, size);
    }
    return false;
}

/* The highest place for size bytes (whole pages) that is RAM, below top and clear of [avoid, avoid_end); 0: none. */
gpa_t boot_find_room(struct ram *ram, const struct boot_input *in, u64 size, u64 top, u64 avoid, u64 avoid_end)
{
    gpa_t best = 0;

    for (unsigned i = 0; size && i < in->nr_e820; i++) {
        const struct boot_e820 *e = &in->e820[i];
        if (e->type != BOOT_E820_RAM || e->addr >= top)
            continue;
        u64 end = e->addr + MIN(e->size, top - e->addr);
        /* Above what is to be avoided, then below it. */
        for (int below = 0; below < 2; below++) {
            u64 lo = MAX(e->addr, 0x100000ull), hi = end & PAGE_MASK;
            if (below)
                hi = MIN(hi, avoid & PAGE_MASK);
            else
                lo = MAX(lo, avoid_end);
            lo = (lo + PAGE_SIZE - 1) & PAGE_MASK;
            if (hi > lo && hi - lo >= size && hi - size > best &&
                ram_ptr(ram, hi - size, size))
                best = hi - size;
        }
    }
    return best;
}

int boot_place_initrd(struct ram *ram, const struct boot_input *in, u64 top,
                      u64 avoid, u64 avoid_end, gpa_t *gpa, char *err)
{
    u64 size = (in->initrd_size + PAGE_SIZE - 1) & PAGE_MASK;

    *gpa = 0;
    if (!in->initrd_name || !in->initrd_size)
        return 0;
    gpa_t best = boot_find_room(ram, in, size, top, avoid, avoid_end);
    void *to = best ? ram_ptr(ram, best, in->initrd_size) : NULL;
    if (!to)
        return boot_fail(err, -ENOMEM,
                         "%s: the initrd (%llu KiB) does not fit beside the "
                         "kernel; give the guest more memory with --mem",
                         in->initrd_name,
                         (unsigned long long)(in->initrd_size + 1023) / 1024);
    memcpy(to, in->initrd, in->initrd_size);
    *gpa = best;
    return 0;
}

int boot_place_modules(struct ram *ram, const struct boot_input *in, u64 avoid, u64 avoid_end,
                       struct boot_placed placed[BOOT_MODULES_MAX + 1], char *err)
{
    struct boot_module all[BOOT_MODULES_MAX + 1];
    unsigned n = 0;
    u64 size = 0;

    if (in->initrd_name)
        all[n++] = (struct boot_module){ in->initrd_name, in->initrd, in->initrd_size };
    for (unsigned i = 0; i < in->nr_modules && n <= BOOT_MODULES_MAX; i++)
        all[n++] = in->module[i];
    for (unsigned i = 0; i < n; i++)
        size += (all[i].size + PAGE_SIZE - 1) & PAGE_MASK;
    gpa_t at = size ? boot_find_room(ram, in, size, BITULL(32), avoid, avoid_end) : 0;
    if (size && !at)
        return boot_fail(err, -ENOMEM, "%s: its %u modules (%llu KiB) do not fit beside it; give the guest more "
                         "memory with --mem", in->kernel_name, n, (unsigned long long)size / 1024);
    for (unsigned i = 0; i < n; i++) {
        placed[i] = (struct boot_placed){ (u32)at, (u32)all[i].size, all[i].cmdline };
        if (all[i].size)
            memcpy(ram_ptr(ram, at, all[i].size), all[i].data, all[i].size);
        at += (all[i].size + PAGE_SIZE - 1) & PAGE_MASK;
    }
    return (int)n;
}

int boot_fill_params(const struct boot_input *in, u8 *params, char *err)
{
    if (in->nr_e820 > BP_E820_MAX)
        return boot_fail(err, -EINVAL, "the memory map has %u entries, at most "
                         "%d fit", in->nr_e820, BP_E820_MAX);
    memcpy(params + BP_ACPI_RSDP, &in->rsdp, 8);
    params[BP_E820_ENTRIES] = (u8)in->nr_e820;
    for (unsigned i = 0; i < in->nr_e820; i++) {
        u8 *e = params + BP_E820_TABLE + i * BP_E820_STRIDE;
        memcpy(e, &in->e820[i].addr, 8);
        memcpy(e + 8, &in->e820[i].size, 8);
        memcpy(e + 16, &in->e820[i].type, 4);
    }
    return 0;
}

static int load(struct ram *ram, const struct boot_input *in, struct boot_entry *entry, char *err)
{
    bool bzimage = bzimage_probe(in->kernel, in->kernel_size);

    if (in->nr_modules > BOOT_MODULES_MAX)
        return boot_fail(err, -E2BIG, "%u modules; at most %d are possible", in->nr_modules, BOOT_MODULES_MAX);
    if (!bzimage && multiboot2_probe(in->kernel, in->kernel_size))
        return multiboot2_load(ram, in, entry, err);
    if (!bzimage && multiboot_probe(in->kernel, in->kernel_size))
        return multiboot_load(ram, in, entry, err);
    if (!bzimage && pvh_probe(in->kernel, in->kernel_size))
        return pvh_load(ram, in, entry, err);
    if (in->nr_modules && in->kernel_size)
        return boot_fail(err, -EINVAL, "%s: this kind of kernel takes no modules; leave out --module",
                         in->kernel_name);
    if (bzimage)
        return bzimage_load(ram, in, entry, err);
    if (elf_probe(in->kernel, in->kernel_size))
        return elf_load(ram, in, entry, err);
    if (!in->kernel_size)
        return boot_fail(err, -ENOEXEC, "%s: the file is empty; --kernel wants a bzImage "
                         "(such as /boot/vmlinuz-*) or a 64-bit ELF file", in->kernel_name);
    return boot_fail(err, -ENOEXEC,
                     "%s: not a kernel; --kernel wants a bzImage (such as "
                     "/boot/vmlinuz-*) or a 64-bit ELF file",
                     in->kernel_name);
}

int boot_load(struct ram *ram, const struct boot_input *in, struct boot_entry *entry, char *err)
{
    struct payload p;

    if (!payload_is_gzip(in->kernel, in->kernel_size))
        return load(ram, in, entry, err);
    int r = payload_open(&p, in->kernel_name, in->kernel, in->kernel_size, err);
    if (r)
        return r;
    struct boot_input unpacked = *in;
    unpacked.kernel = p.elf;
    unpacked.kernel_size = p.size;
    r = load(ram, &unpacked, entry, err);
    payload_close(&p);
    return r;
}
