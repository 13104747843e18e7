/* stub_offsets.h - jump-cache places for stubs.S; asserted against tlb.h in run.c. */
#define JC_OFF_K 0xc000
#define JC_MASK_K 0x1ffe
#define JC_OFF_KAC 0x1c000
#define JC_MASK_KAC 0x1fe
#define JC_OFF_U 0x26000
#define JC_MASK_U 0xffe
#define JC_OFF_U32 0x2e000
#define JC_MASK_U32 0x3fe
