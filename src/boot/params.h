/*
 * params.h - struct boot_params ("zero page") as offsets: the few fields we use.
 * Source: Linux Documentation/arch/x86/zero-page.rst, boot.rst; arch/x86/include/uapi/asm/bootparam.h.
 */
#pragma once

#define BP_SIZE 4096
#define BP_ACPI_RSDP 0x070       /* u64 */
#define BP_EXT_RAMDISK_IMAGE 0x0c0 /* u32, high halves */
#define BP_EXT_RAMDISK_SIZE 0x0c4
#define BP_EXT_CMDLINE 0x0c8
#define BP_E820_ENTRIES 0x1e8    /* u8 */
#define BP_E820_TABLE 0x2d0      /* { u64 addr, u64 size, u32 type } * 128, packed */
#define BP_E820_MAX 128
#define BP_E820_STRIDE 20

/* The setup header, at the same offset in the bzImage's first sectors and in boot_params. */
#define BP_HDR 0x1f1
#define BP_SETUP_SECTS 0x1f1     /* u8; 0 means 4 */
#define BP_SYSSIZE 0x1f4         /* u32, in 16-byte units */
#define BP_BOOT_FLAG 0x1fe       /* u16, 0xaa55 */
#define BP_JUMP_LEN 0x201        /* u8: the header ends at 0x202 + this */
#define BP_MAGIC 0x202           /* "HdrS" */
#define BP_VERSION 0x206         /* u16 */
#define BP_TYPE_OF_LOADER 0x210  /* u8; 0xff: no number assigned */
#define BP_LOADFLAGS 0x211       /* u8; bit 0: loaded high */
#define BP_RAMDISK_IMAGE 0x218   /* u32 */
#define BP_RAMDISK_SIZE 0x21c    /* u32 */
#define BP_HEAP_END_PTR 0x224    /* u16, from the real-mode part, less 0x200 */
#define BP_CMD_LINE_PTR 0x228    /* u32 */
#define BP_INITRD_ADDR_MAX 0x22c /* u32, last usable byte */
#define BP_KERNEL_ALIGNMENT 0x230 /* u32 */
#define BP_RELOCATABLE 0x234     /* u8 */
#define BP_XLOADFLAGS 0x236      /* u16 */
#define BP_CMDLINE_SIZE 0x238    /* u32, without the NUL */
#define BP_PAYLOAD_OFFSET 0x248  /* u32, from the protected-mode part */
#define BP_PAYLOAD_LENGTH 0x24c  /* u32 */
#define BP_PREF_ADDRESS 0x258    /* u64 */
#define BP_INIT_SIZE 0x260       /* u32 */

#define BP_MAGIC_VALUE 0x53726448u /* "HdrS" */
#define BP_VERSION_MIN 0x020c      /* 2.12: xloadflags */
#define BP_VERSION_16_MIN 0x0202   /* 2.02: cmd_line_ptr */
#define LOADED_HIGH 0x01
#define CAN_USE_HEAP 0x80
#define XLF_KERNEL_64 0x0001       /* 64-bit entry point at 0x200 */
#define XLF_CAN_BE_LOADED_ABOVE_4G 0x0002
