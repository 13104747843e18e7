/* stub_offsets.h - jump-cache places for stubs.S; asserted against tlb.h in run.c. */
#define JC_OFF_K 0x44000
#define JC_OFF_KAC 0x54000
#define JC_OFF_U 0x35c000
#define JC_OFF_U32 0x3dc000
#ifdef TORTURE
#define JC_MASK_K 0x3e
#define JC_MASK_KAC 0x1e
#define JC_MASK_U 0x3e
#define JC_MASK_U32 0x1e
#else
#define JC_MASK_K 0x1ffe
#define JC_MASK_KAC 0x1fe
#define JC_MASK_U 0xfffe
#define JC_MASK_U32 0x3fe
#endif

/* TLB places for stub_loop_*; asserted too. Entry: tag_r, tag_w, host, delta; copy: tag, host, delta, misses. */
#define TLB_OFF_K 0x4000
#define TLB_OFF_U 0x2dc000
#ifdef TORTURE
#define TLB_MASK_K 0xe0
#define TLB_MASK_U 0xe0
#else
#define TLB_MASK_K 0x3ffe0
#define TLB_MASK_U 0x7ffe0
#endif
#define LOOP_OFF_K 0x55000
#define LOOP_OFF_U 0x3de000
#define TLB_TAG_R 0
#define TLB_TAG_W 8
#define TLB_HOST 16
#define TLB_DELTA 24
#define OFF_WINDOWS 0x3ff000
/* struct slow_site, behind the call and a jmp rel32 */
#define SITE_SIZE (5 + 4)
#define SITE_BITS (5 + 6)
#define SITE_FORM_DELTA 0x04
#define SITE_HASHED 0x80
#define SITE_LOOP (5 + 9)

/*
 * The register that points to struct vcpu does so this far into it: what emitted code needs most has short displacements, and
 * its low six bits are a shift count (tr_window.c).
 */
#define VCPU_BIAS 168

/* struct vcpu members stubs.S uses beyond the disp8 ones; asserted in run.c */
#define V_CS_TAG 240
#define V_SYSCALL_OK 248
#define V_SYSRET_OK 252
#define V_MODE_KERNEL 256
#define V_MODE_USER 260
#define V_HSP_SAVED 264
#define V_HSP_BOTTOM 280
#define V_HSTACK_USER 296
#define V_MODE 300
#define V_SYSCALL_CS 304
#define V_SYSRET_CS 352
#define V_SEG 400
#define V_CPL 744
#define V_LSTAR 952
#define V_SFMASK 968
/* 64 bytes behind struct vcpu */
#define VECTOR_SPILL 0x3fc0
