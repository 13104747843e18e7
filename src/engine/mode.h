/*
 * mode.h - the part of the CPU's state that a translation is specialised for: a block's key, with its
 * guest-physical address. vcpu_mode_changed() computes it; the translator reads it.
 */
#pragma once
#include "base/types.h"

/* Bits 0-1: which TLB and jump cache the code uses. */
#define MODE_SLOT 0x3u
enum mode_slot {
    SLOT_K,   /* CPL 0-2, EFLAGS.AC clear (or SMAP off)             */
    SLOT_KAC, /* CPL 0-2, EFLAGS.AC set: may touch user pages       */
    SLOT_U,   /* CPL 3, 64-bit code                                 */
    SLOT_U32, /* CPL 3, 32- or 16-bit code: the TLB of SLOT_U       */
    NR_SLOTS
};
#define MODE_64 0x4u      /* CS.L                                              */
#define MODE_32 0x8u      /* CS.D                                              */
#define MODE_SS32 0x10u   /* SS.B                                              */
#define MODE_FLAT 0x20u   /* DS, ES, SS: base 0, limit 4 GiB                   */
#define MODE_TS 0x40u     /* CR0.TS                                            */
#define MODE_EM 0x80u     /* CR0.EM                                            */
#define MODE_SSE 0x100u   /* CR4.OSFXSR                                        */
#define MODE_AVX 0x200u   /* CR4.OSXSAVE and XCR0[2:1] = 3                     */
#define MODE_AVX512 0x400u
#define MODE_STEP 0x800u  /* EFLAGS.TF, debugger step: one-instruction blocks, each ends in C */
#define MODE_REAL 0x1000u /* CR0.PE clear, or VM86                             */
#define MODE_BRK 0x2000u  /* debug registers or debugger breakpoints are armed */
#define MODE_MP 0x4000u   /* CR0.MP: WAIT honours TS                           */
#define MODE_CPL0 0x8000u /* CPL is 0: privileged instructions may go in line  */
#define MODE_SMAP 0x20000u   /* CR4.SMAP                                          */
#define MODE_TSD 0x40000u    /* CR4.TSD                                           */
#define MODE_FSGS 0x80000u   /* CR4.FSGSBASE                                      */
#define MODE_NOSHARE 0x10000u /* no shared checks: what slow.c falls back on; only in keys of blocks */
#define MODE_CSFLAT 0x200000u /* CS: 32-bit code, base 0, limit 4 GiB             */
#define MODE_AC 0x100000u /* CPL 3, CR0.AM, EFLAGS.AC: every access by the slow path, which checks alignment */
#define MODE_64K 0x400000u /* outside 64-bit mode: 64 KiB of DS, ES and SS may be read and written */
#define MODE_EXTENT 0x1000000u /* CPL 0-2, outside 64-bit mode: accesses ask extents first (tlb.h) */
#define MODE_WINDOW 0x800000u /* SLOT_U, 64-bit code: accesses go through windows (window.h) */
