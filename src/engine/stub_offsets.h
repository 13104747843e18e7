/* stub_offsets.h - jump-cache places for stubs.S; asserted against tlb.h in run.c. */
#define JC_OFF_K 0x44000
#define JC_MASK_K 0x1ffe
#define JC_OFF_KAC 0x54000
#define JC_MASK_KAC 0x1fe
#define JC_OFF_U 0xd7000
#define JC_MASK_U 0xfffe
#define JC_OFF_U32 0x157000
#define JC_MASK_U32 0x3fe

/* TLB places for stub_loop_*; asserted too. Entry: tag_r, tag_w, host, delta; copy: tag, host, delta, misses. */
#define TLB_OFF_K 0x4000
#define TLB_OFF_U 0x57000
#ifdef TORTURE
#define TLB_MASK_K 0xe0
#define TLB_MASK_U 0xe0
#else
#define TLB_MASK_K 0x3ffe0
#define TLB_MASK_U 0x7ffe0
#endif
#define LOOP_OFF_K 0x55000
#define LOOP_OFF_U 0x159000
#define TLB_TAG_R 0
#define TLB_TAG_W 8
#define TLB_HOST 16
#define TLB_DELTA 24
/* struct slow_site, behind the call and a jmp rel32 */
#define SITE_SIZE (5 + 4)
#define SITE_BITS (5 + 6)
#define SITE_FORM_DELTA 0x04
#define SITE_HASHED 0x80
#define SITE_LOOP (5 + 9)

/* struct vcpu members stubs.S uses beyond the disp8 ones; asserted in run.c */
#define V_CS_TAG 2280
#define V_SYSCALL_OK 2288
#define V_SYSRET_OK 2292
#define V_MODE_KERNEL 2296
#define V_MODE_USER 2300
#define V_HSP_SAVED 2304
#define V_HSP_BOTTOM 2320
#define V_HSTACK_USER 2336
#define V_MODE 2340
#define V_SYSCALL_CS 2344
#define V_SYSRET_CS 2392
#define V_SEG 2440
#define V_CPL 2784
#define V_LSTAR 2992
#define V_SFMASK 3008
/* 64 bytes behind struct vcpu */
#define VECTOR_SPILL 0x3fc0
