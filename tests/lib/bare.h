/*
 * bare.h - one user-mode code sequence, two machines: the host CPU itself and a guest of libvitro. Both have the
 * same pages at the same linear addresses, start from the same registers and end with an exception (int3 at the
 * end of a sequence); what is left is compared.
 *
 *   BARE_CODE   4 pages, readable and executable for the guest, filled with int3; unmapped on both sides
 *   BARE_DATA   4 pages RW, then one that is read-only; unmapped on both sides
 *   BARE_STACK  2 pages RW; unmapped on both sides
 *
 * Guest-physical pages behind neighbours are not neighbours. Host side: the bytes are jumped to; a signal handler
 * takes the registers out of the signal frame.
 */
#pragma once
#include "base/types.h"
#include "libvitro.h"

#define BARE_CODE 0x10000000ull
#define BARE_CODE_SIZE 0x4000u
#define BARE_DATA 0x20000000ull
#define BARE_DATA_RW 0x4000u
#define BARE_DATA_SIZE 0x5000u
#define BARE_STACK 0x30000000ull
#define BARE_STACK_SIZE 0x2000u

#define BARE_FPU_SIZE 4096u

/* Cases run as 64-bit code, or as 32-bit code of a 64-bit process (CS 23h: compatibility mode). */
extern bool bare_m32;
extern bool bare_can_m32; /* the host runs such code */
/*
 * With bare_m16 as well: 16-bit code in segments of an LDT, on both machines. CS, DS and ES, SS start at BARE_CODE,
 * BARE_DATA and BARE_STACK and end where these do; RIP is an offset. ESP's upper half must be BARE_ESP16: a return to a
 * 16-bit stack loads SP alone, so the guest keeps what its kernel had.
 */
extern bool bare_m16, bare_can_m16;
#define BARE_ESP16 0x80000000u

struct bare_state {
    u64 gpr[16], rip, rflags, fs, gs;
    /* results */
    u32 vector, error;
    u64 cr2;
    const char *broken; /* the machine did not end with an exception: why */
    u8 fpu[BARE_FPU_SIZE] __attribute__((aligned(64))); /* XSAVE area, standard form */
};

/* What this host has. */
extern u64 bare_xmask;          /* XCR0 bits in use: x87 .. AVX-512      */
extern unsigned bare_xsize;     /* bytes of the XSAVE area               */
extern unsigned bare_xoff[8];   /* offset of each component, 0 if absent */
extern bool bare_fsgs;          /* wrfsbase works here                   */
extern bool bare_linux_gdt;     /* its GDT has an ordinary Linux's segments */
extern u32 bare_mxcsr_mask;

/* bare_init - map everything and make the guest; @debug: VITRO_DEBUG_*. Exits on failure. */
void bare_init(unsigned debug);
void bare_fini(void);
/* bare_guest_reset - a fresh guest (after a crash); memory stays. */
void bare_guest_reset(void);

/* Memory, both machines at once. */
void bare_write(u64 la, const void *buf, unsigned len);
/* bare_code - the same, for code pages (the guest's translations of it go). */
void bare_code(u64 la, const void *buf, unsigned len);
/* bare_memory_differs - first differing address in data and stack, 0 if none. `from`: where to start. */
u64 bare_memory_differs(u64 from);
u8 bare_peek(u64 la, bool guest);
/* bare_save, bare_restore - contents of data and stack (restore: both machines). */
#define BARE_SNAP_SIZE (BARE_DATA_SIZE + BARE_STACK_SIZE)
void bare_save(u8 *snap);
void bare_restore(const u8 *snap);
/* bare_sync - make the guest's pages what the host's are. */
void bare_sync(void);

/* bare_host, bare_guest - run from `in`; in->rip etc. `out` is filled completely. */
void bare_host(const struct bare_state *in, struct bare_state *out);
void bare_guest(const struct bare_state *in, struct bare_state *out);
/* bare_guest_flush - forget the guest's TLB. */
void bare_guest_flush(void);

/* bare_fpu_normal - components in their initial state written out, fields nobody can compare cleared. */
void bare_fpu_normal(u8 *fpu);

/* -- One case: a state, code, and what came out on both machines -------------------------------------- */
struct bare_case {
    struct bare_state in, host, guest;
    u8 code[1024];
    unsigned len;
    struct { u64 la; unsigned len; } ignore[4]; /* memory that is not compared */
    unsigned nr_ignore;
    bool misaligned;     /* a page fault in the guest may stand for the host's #GP: both are due */
    unsigned loose_cr2;  /* which byte faults first is the CPU's business: 1 within a page, 2 within two pages */
    bool loose_vec;      /* on a fault, vector registers and masks need not match; */
    bool loose_gpr;      /* general registers neither */
    bool loose_fault;    /* the host may fault where the guest sees that nothing is accessed */
    bool dead_flags;     /* at a fault, flags that the code overwrites before it reads them are not compared */
    u64 undefined_flags; /* bits of rflags that are not compared */
    u8 snap[BARE_SNAP_SIZE]; /* memory before it (bare_run fills it) */
};
/* bare_run - memory as it stands, both machines; true if they agree. The memory of both is the host's afterwards. */
bool bare_run(struct bare_case *c);
extern unsigned bare_wavered; /* cases in which the host's registers were others when asked again */
/* bare_again - from the saved memory. */
bool bare_again(struct bare_case *c);
/* bare_print_diff - what differs after bare_run said false. */
void bare_print_diff(const struct bare_case *c, const char *indent);
void bare_print_input(const struct bare_case *c, const char *indent);
/* bare_set_vec - a vector register in an XSAVE image. */
void bare_set_vec(u8 *fpu, unsigned reg, const u8 *bytes, unsigned len);
