/* stub_offsets.h - jump-cache places for stubs.S; asserted against tlb.h in run.c. */
#define JC_OFF_K 0x14000
#define JC_MASK_K 0x1ffe
#define JC_OFF_KAC 0x24000
#define JC_MASK_KAC 0x1fe
#define JC_OFF_U 0x46000
#define JC_MASK_U 0x1ffe
#define JC_OFF_U32 0x56000
#define JC_MASK_U32 0x3fe

/* struct vcpu members stubs.S uses beyond the disp8 ones; asserted in run.c */
#define V_SYSCALL_OK 232
#define V_SYSRET_OK 236
#define V_MODE_KERNEL 240
#define V_MODE_USER 244
#define V_HSP_SAVED 248
#define V_HSP_BOTTOM 264
#define V_HSTACK_USER 280
#define V_MODE 284
#define V_SYSCALL_CS 288
#define V_SYSRET_CS 336
#define V_SEG 384
#define V_CPL 728
#define V_LSTAR 936
#define V_SFMASK 952
