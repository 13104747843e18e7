/*
 * abi.h - Vitro's own contract with guests that know it ("contract 2"): how to find it, how to call, what the
 * numbers mean. Freestanding C11, or the assembler with __ASSEMBLER__. docs/paravirt-abi.md explains.
 *
 * SPDX-License-Identifier: 0BSD
 * Use, copy and change this header and its neighbours in include/vitro for anything, without conditions or warranty.
 *
 * FINDING IT. Look at CPUID leaves 0x40000000, 0x40000100, ... 0x4000ff00 (other contracts may stand before ours)
 * for EBX, ECX, EDX = "VitroVMM", then zeroes. With that leaf as `base`:
 *
 *   base + 0   EAX: last leaf of the group
 *   base + 1   EAX: interface version   EBX: features, VT_FEATURE_*   ECX, EDX: 0
 *   base + 2   EAX: TSC in kHz           EBX: local APIC timer in kHz
 *
 * VERSIONS. The version grows by one when calls or structures are added. Nothing is taken away or changes its meaning:
 * code written for version n works with any later one. A feature bit says that a group of calls is answered here and
 * now (a user can switch groups off); without its bit each call of the group returns VT_ENOCALL.
 *
 * CALLING. In 64-bit mode at CPL 0: `vmcall` or `vmmcall` (either, on any host) with
 *
 *   RAX = VT_BASE + number    RDI, RSI, RDX, RCX, R8 = arguments
 *
 * which are the places where C puts a function's arguments. RAX returns the result: 0 or a count, or -VT_E*. All other
 * registers and the flags stay. At other privilege levels the result is -VT_EPERM. A call that returns an error has
 * changed nothing. Arguments beyond those that a call takes are not looked at.
 *
 * MEMORY. Pointers are guest-physical, and what they point to is RAM, not crossing the hole below 4 GiB. Arrays are 8-byte
 * aligned. Fields named `reserved` are zero, or the call returns -VT_EINVAL. Vitro copies each structure once and
 * checks the copy.
 */
#ifndef VITRO_ABI_H
#define VITRO_ABI_H

#define VT_SIGNATURE_EBX 0x72746956 /* "Vitr" */
#define VT_SIGNATURE_ECX 0x4d4d566f /* "oVMM" */
#define VT_SIGNATURE_EDX 0
#define VT_CPUID_FIRST 0x40000000
#define VT_CPUID_LAST 0x4000ff00
#define VT_CPUID_STEP 0x100

#define VT_VERSION 2

#define VT_FEATURE_SYSTEM 0x1  /* calls 0x00..0x0f */
#define VT_FEATURE_MEMORY 0x2  /* 0x10..0x1f       */
#define VT_FEATURE_BALLOON 0x4 /* 0x20..0x2f       */
#define VT_FEATURE_TIME 0x8    /* 0x30..0x37       */
#define VT_FEATURE_EVENT 0x10  /* 0x38..0x3f       */
#define VT_FEATURE_VCPU 0x20   /* 0x40..0x4f       */
#define VT_FEATURE_BLOCK 0x40  /* 0x50..0x57       */
#define VT_FEATURE_NET 0x80    /* 0x58..0x5f       */

#define VT_BASE 0x56540000 /* "VT" in the upper half: no other contract's numbers */
#define VT_NR_CALLS 0x60   /* numbers are below this; those without a row are -VT_ENOCALL */

#ifndef __ASSEMBLER__
enum vt_number {
#define VT_CALL(number, name, nr_args, since, args, result, errors, cost) VT_##name = number,
#include "vitro/hypercalls.def"
#undef VT_CALL
};

/* Errors: the result is the negative of one of these. */
enum vt_error {
    VT_ENOCALL = 1, /* no such call, or its group is not offered                       */
    VT_EPERM = 2,   /* not from this privilege level                                   */
    VT_EINVAL = 3,  /* an argument is out of range, misaligned, or has a reserved bit  */
    VT_EFAULT = 4,  /* an address is not RAM                                           */
    VT_ENOENT = 5,  /* no such space, timer, port, vCPU or device                      */
    VT_EEXIST = 6,  /* it is there already: mapped, given, set up, running             */
    VT_ENOMEM = 7,  /* no table page is left (TABLES_GIVE), or the host has no memory  */
    VT_EBUSY = 8,   /* in use                                                          */
    VT_EIO = 9,     /* the device failed                                               */
    VT_E2BIG = 10,  /* more than a call takes                                          */
    VT_EROFS = 11,  /* writing to a device that is read-only                           */
};

/* How much one call takes. */
#define VT_MULTI_MAX 256         /* calls in a multicall                              */
#define VT_BATCH_MAX 4096        /* ranges, extents, requests                         */
#define VT_PAGES_MAX 262144      /* 4 KiB pages in all ranges of one call: 1 GiB      */
#define VT_LOG_MAX 256           /* bytes                                             */
#define VT_CONSOLE_MAX 4096      /* bytes                                             */
#define VT_SPACES_MAX 1024
#define VT_TIMERS 64
#define VT_TIMER_MIN_NS 10000    /* the shortest period                               */
#define VT_PORTS 512

#define VT_MULTI_ALL 1u          /* go on after a call that failed                    */

enum vt_shutdown { VT_SHUTDOWN_POWEROFF, VT_SHUTDOWN_REBOOT, VT_SHUTDOWN_CRASH, VT_SHUTDOWN_EXIT };
enum vt_log { VT_LOG_ERROR, VT_LOG_WARNING, VT_LOG_INFO, VT_LOG_DEBUG };
#endif
#endif
