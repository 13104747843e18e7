/*
 * x86.h - facts from the manuals: register bits, layouts, vectors. No state, no functions with effects.
 * Source: Intel SDM vol. 3 §2.5 (CRs), §3.4 (segments), §4 (paging), §6 (exceptions); vol. 1 §3.4.3 (EFLAGS).
 */
#pragma once
#include "base/types.h"

/* General registers in encoding order. */
enum gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, NR_GPR };
/* Segment registers in encoding order (SDM vol. 2 table B-8), then the two system segments. */
enum segreg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, NR_SEG };

/* EFLAGS */
#define EFL_CF 0x1u
#define EFL_R1 0x2u /* always one */
#define EFL_PF 0x4u
#define EFL_AF 0x10u
#define EFL_ZF 0x40u
#define EFL_SF 0x80u
#define EFL_TF 0x100u
#define EFL_IF 0x200u
#define EFL_DF 0x400u
#define EFL_OF 0x800u
#define EFL_IOPL 0x3000u
#define EFL_NT 0x4000u
#define EFL_RF 0x10000u
#define EFL_VM 0x20000u
#define EFL_AC 0x40000u
#define EFL_VIF 0x80000u
#define EFL_VIP 0x100000u
#define EFL_ID 0x200000u
#define EFL_ARITH (EFL_CF | EFL_PF | EFL_AF | EFL_ZF | EFL_SF | EFL_OF)

/* Control registers */
#define CR0_PE 0x1u
#define CR0_MP 0x2u
#define CR0_EM 0x4u
#define CR0_TS 0x8u
#define CR0_ET 0x10u
#define CR0_NE 0x20u
#define CR0_WP 0x10000u
#define CR0_AM 0x40000u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u
#define CR4_VME 0x1u
#define CR4_PVI 0x2u
#define CR4_TSD 0x4u
#define CR4_DE 0x8u
#define CR4_PSE 0x10u
#define CR4_PAE 0x20u
#define CR4_MCE 0x40u
#define CR4_PGE 0x80u
#define CR4_PCE 0x100u
#define CR4_OSFXSR 0x200u
#define CR4_OSXMMEXCPT 0x400u
#define CR4_UMIP 0x800u
#define CR4_LA57 0x1000u
#define CR4_FSGSBASE 0x10000u
#define CR4_PCIDE 0x20000u
#define CR4_OSXSAVE 0x40000u
#define CR4_SMEP 0x100000u
#define CR4_SMAP 0x200000u
#define CR4_PKE 0x400000u
#define CR3_NOFLUSH (1ull << 63)
#define EFER_SCE 0x1u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u
#define EFER_NXE 0x800u
#define EFER_SVME 0x1000u
#define EFER_FFXSR 0x4000u

/* Page-table entries (SDM vol. 3 §4.5) */
#define PTE_P 0x1ull
#define PTE_W 0x2ull
#define PTE_U 0x4ull
#define PTE_PWT 0x8ull
#define PTE_PCD 0x10ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)

/* Exception vectors (SDM vol. 3 table 6-1) */
enum vector {
    VEC_DE = 0, VEC_DB = 1, VEC_NMI = 2, VEC_BP = 3, VEC_OF = 4, VEC_BR = 5, VEC_UD = 6, VEC_NM = 7,
    VEC_DF = 8, VEC_TS = 10, VEC_NP = 11, VEC_SS = 12, VEC_GP = 13, VEC_PF = 14, VEC_MF = 16,
    VEC_AC = 17, VEC_MC = 18, VEC_XM = 19,
};
/* #PF error code (SDM vol. 3 §4.7) */
#define PF_P 0x1u
#define PF_W 0x2u
#define PF_U 0x4u
#define PF_RSVD 0x8u
#define PF_I 0x10u

/*
 * Segment attributes as held in struct seg.attr: descriptor bits 40-47 in bits 0-7 (type, S, DPL, P)
 * and bits 52-55 in bits 12-15 (AVL, L, D/B, G): the VMX access-rights form (SDM vol. 3 table 24-2).
 */
#define SEG_TYPE 0xfu
#define SEG_A 0x1u     /* accessed               */
#define SEG_W 0x2u     /* data: writable         */
#define SEG_R 0x2u     /* code: readable         */
#define SEG_E 0x4u     /* data: expand down      */
#define SEG_C 0x4u     /* code: conforming       */
#define SEG_CODE 0x8u
#define SEG_S 0x10u
#define SEG_DPL_SHIFT 5
#define SEG_P 0x80u
#define SEG_L 0x2000u
#define SEG_DB 0x4000u
#define SEG_G 0x8000u
#define SEG_UNUSABLE 0x10000u

/* Model-specific registers */
#define MSR_TSC 0x10
#define MSR_APIC_BASE 0x1b
#define MSR_TSC_ADJUST 0x3b
#define MSR_SPEC_CTRL 0x48
#define MSR_PRED_CMD 0x49
#define MSR_MTRRCAP 0xfe
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define MSR_MCG_CAP 0x179
#define MSR_MISC_ENABLE 0x1a0
#define MISC_ENABLE_MWAIT (1u << 18)
#define MSR_PAT 0x277
#define MSR_MTRR_DEF_TYPE 0x2ff
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC_FIRST 0x800
#define MSR_X2APIC_LAST 0x8ff
#define MSR_XSS 0xda0
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_SFMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_TSC_AUX 0xc0000103
