/* stub_offsets.h - jump-cache places for stubs.S; asserted against tlb.h in run.c. */
#define JC_OFF_K 0x14000
#define JC_MASK_K 0x1ffe
#define JC_OFF_KAC 0x24000
#define JC_MASK_KAC 0x1fe
#define JC_OFF_U 0x46000
#define JC_MASK_U 0xfffe
#define JC_OFF_U32 0xc6000
#define JC_MASK_U32 0x3fe

/* struct vcpu members stubs.S uses beyond the disp8 ones; asserted in run.c */
#define V_CS_TAG 232
#define V_SYSCALL_OK 240
#define V_SYSRET_OK 244
#define V_MODE_KERNEL 248
#define V_MODE_USER 252
#define V_HSP_SAVED 256
#define V_HSP_BOTTOM 272
#define V_HSTACK_USER 288
#define V_MODE 292
#define V_SYSCALL_CS 296
#define V_SYSRET_CS 344
#define V_SEG 392
#define V_CPL 736
#define V_LSTAR 944
#define V_SFMASK 960
