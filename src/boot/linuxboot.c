/*
 * linuxboot.c - a bzImage started as a boot loader under a BIOS does it: by its 16-bit entry, which asks the BIOS for memory, video
 * modes and disks. An option ROM of 512 bytes fetches the pieces by fw_cfg's DMA and jumps.
 * Sources: Linux Documentation/arch/x86/boot.rst (the 16-bit boot protocol, memory layout); Plug and Play BIOS
 * Specification 1.0A §3.2 (expansion header, bootstrap entry vector); QEMU docs/specs/fw_cfg.rst.
 */
#include "boot/boot.h"
#include "boot/params.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ROM_CHECKSUM 5       /* any byte that nothing reads will do */
#define ROM_PNP 0x20
#define ROM_PNP_CHECKSUM (ROM_PNP + 9)
#define ROM_TABLE 0x100      /* struct fw_cfg_dma_access: control, length, address, big-endian */
#define ROM_TABLE_MAX 5      /* the last has a control of 0 */

/* The ROM may be read-only, and the device writes to what it is told in: each request is copied to 0:0x7000 first. */
asm(".pushsection .rodata\n"
    ".code16\n"
    "linuxboot_rom:\n"
    "    .byte 0x55, 0xaa, 1\n"
    "    lret\n"             /* initialization has nothing to do */
    "    .org linuxboot_rom + 0x1a\n"
    "    .word 0x20\n"
    "    .org linuxboot_rom + 0x20\n"
    "    .ascii \"$PnP\"\n"
    "    .byte 1, 2\n"       /* revision; length / 16 */
    "    .word 0\n"
    "    .byte 0, 0\n"       /* reserved; checksum */
    "    .long 0\n"
    "    .word 0, linuxboot_name - linuxboot_rom\n"
    "    .byte 0, 0, 0, 0\n"
    "    .word 0, 0, linuxboot_bev - linuxboot_rom, 0, 0\n"
    "linuxboot_name:\n"
    "    .asciz \"Linux (--kernel)\"\n"
    "linuxboot_bev:\n"
    "    cli\n"
    "    cld\n"
    "    xorw %ax, %ax\n"
    "    movw %ax, %es\n"
    "    movw %ax, %ss\n"
    "    movw $0x7000, %sp\n"
    "    movw %cs, %ax\n"
    "    movw %ax, %ds\n"
    "    movw $0x100, %si\n"
    "1:  cmpl $0, (%si)\n"
    "    je 3f\n"
    "    movw $0x7000, %di\n"
    "    movw $8, %cx\n"
    "    rep movsw\n"
    "    movl $0x00700000, %eax\n" /* 0x7000, big-endian: this starts the transfer */
    "    movw $0x518, %dx\n"
    "    outl %eax, %dx\n"
    "2:  movl %es:0x7000, %eax\n"
    "    testl %eax, %eax\n"
    "    jz 1b\n"
    "    testl $0x01000000, %eax\n" /* the error bit */
    "    jz 2b\n"
    "    sti\n"
    "    int $0x18\n"        /* boot failure: the BIOS tries the next device */
    "3:  movw $0x1000, %ax\n" /* BOOT_SETUP: every segment but CS, which is 0x20 more */
    "    movw %ax, %ds\n"
    "    movw %ax, %es\n"
    "    movw %ax, %fs\n"
    "    movw %ax, %gs\n"
    "    movw %ax, %ss\n"
    "    movw $0xfff0, %sp\n"
    "    ljmp $0x1020, $0\n"
    "    .org linuxboot_rom + 512\n"
    ".code64\n"
    ".popsection\n");
extern const u8 linuxboot_rom[LINUXBOOT_ROM_SIZE];

static void table_add(u8 *rom, unsigned *n, u16 key, u32 size, u32 to)
{
    const u32 control = __builtin_bswap32((u32)key << 16 | 0x0a); /* select, read */
    const u32 length = __builtin_bswap32(size);
    const u64 address = __builtin_bswap64(to);
    u8 *e = rom + ROM_TABLE + 16 * (*n)++;

    bug_on(*n >= ROM_TABLE_MAX);
    memcpy(e, &control, 4);
    memcpy(e + 4, &length, 4);
    memcpy(e + 8, &address, 8);
}

static u8 checksum(const u8 *p, size_t n)
{
    u8 sum = 0;
    while (n--)
        sum = (u8)(sum + *p++);
    return (u8)-sum;
}

void linuxboot_rom_make(const struct boot_16 *b, u8 rom[LINUXBOOT_ROM_SIZE])
{
    unsigned n = 0;

    memcpy(rom, linuxboot_rom, LINUXBOOT_ROM_SIZE);
    table_add(rom, &n, LINUXBOOT_SETUP_DATA, b->setup_size, BOOT_SETUP);
    table_add(rom, &n, LINUXBOOT_KERNEL_DATA, b->kernel_size, BOOT_KERNEL_16);
    if (b->initrd_at)
        table_add(rom, &n, LINUXBOOT_INITRD_DATA, b->initrd_size, b->initrd_at);
    table_add(rom, &n, LINUXBOOT_CMDLINE_DATA, b->cmdline_size, BOOT_CMDLINE);
    rom[ROM_PNP_CHECKSUM] = checksum(rom + ROM_PNP, 32);
    rom[ROM_CHECKSUM] = checksum(rom, LINUXBOOT_ROM_SIZE);
}
