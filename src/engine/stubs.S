/*
 * stubs.S - the border between C and emitted code.
 *
 * Register assignment while emitted code runs:
 *
 *   guest rax rcx rdx rbx rbp rsi rdi r12 r13         the same host registers
 *   guest r14 r15                                     host r8 r9
 *   guest rsp                                         host r15
 *   guest r8 r9 r10 r11                               vcpu->regs (the four least used)
 *   r10 (s1), r11 (s2)                                scratch: addresses
 *   r14                                               struct vcpu + VCPU_BIAS in the current address space
 *   rsp                                               return-prediction stack (call and ret)
 *   xmm/ymm/zmm, k, x87, mxcsr                        the guest's own
 *
 * The implicit operands of x86 (rax, rcx, rdx, rbx, rsi, rdi) keep their names, so most instructions are
 * copied byte for byte. r14 and r15 are what deep functions keep their variables in; r8 to r11, which calls destroy, are used
 * a third as often in real programs (docs/decisions/0023). Guest rsp takes r15, not r13: [r15 + disp] needs no SIB and no forced displacement.
 * C runs on the stack that vitro_vcpu_run was called on.
 */
#include "engine/stub_offsets.h"
#define R(n) (8 * (n) - VCPU_BIAS)(%r14)
#define VBASE 0(%r14)
#define FL 8(%r14)
#define EVENT 12(%r14)
#define EFLAGS 16(%r14)
#define INTR_WAIT 20(%r14)
#define S1 -16(%r14)
#define S2 -8(%r14)
#define HOST_RSP 24(%r14)
#define C_RSP 32(%r14)
#define HSP_BASE 40(%r14)
#define REGION 48(%r14)
#define RIP 56(%r14)
#define SP_DISTANCE 64(%r14)
#define WINDOWS (OFF_WINDOWS - VCPU_BIAS)

.macro SAVE_ALL
    mov %rax, R(0)
    mov %rcx, R(1)
    mov %rdx, R(2)
    mov %rbx, R(3)
    mov %r15, R(4)
    mov %rbp, R(5)
    mov %rsi, R(6)
    mov %rdi, R(7)
    mov %r8, R(14)
    mov %r9, R(15)
    mov %r12, R(12)
    mov %r13, R(13)
.endm
.macro LOAD_ALL
    mov R(0), %rax
    mov R(1), %rcx
    mov R(2), %rdx
    mov R(3), %rbx
    mov R(4), %r15
    mov R(5), %rbp
    mov R(6), %rsi
    mov R(7), %rdi
    mov R(14), %r8
    mov R(15), %r9
    mov R(12), %r12
    mov R(13), %r13
.endm
.macro POISON               /* what the scratch registers hold is of no meaning: let it show who relies on it */
#ifdef TORTURE
    movabs $0xdead0001dead0001, %r10
    mov %r10, %r11
#endif
.endm
.macro TO_C                 /* vcpu as the first argument, the C stack */
    lea -VCPU_BIAS(%r14), %rdi
    mov %rsp, HOST_RSP
    mov C_RSP, %rsp
.endm

#define VV(off) ((off) - VCPU_BIAS)(%r14)
    .text
    .globl enter_code, stub_fault, stub_window, stub_table

/* void enter_code(struct vcpu *alias, void *code) */
enter_code:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    sub $8, %rsp
    lea VCPU_BIAS(%rdi), %r14
    mov %rsp, C_RSP
    mov %rsi, %rax
    jmp go

/* Resume where engine_dispatch says. rsp is the C stack here. */
stub_dispatch:
    lea -VCPU_BIAS(%r14), %rdi
    call engine_dispatch
    test %rax, %rax
    jz leave
go: /* enter rax, an ENTRY_IND or a stub_probe_*, with s1 = RIP and CS's tag */
    mov REGION, %r14
    mov %rax, S2
    mov HOST_RSP, %rsp
    LOAD_ALL
    POISON
    mov RIP, %r10
    add VV(V_CS_TAG), %r10
    jmp *S2
leave:
    mov C_RSP, %rsp
    add $8, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* call stub_slow; jmp resume; struct slow_site. Flags are dead or in fl. */
stub_slow:
    SAVE_ALL
    mov %r10, S1
    mov %r11, S2
    pop %rbx
    lea 5(%rbx), %rsi
    TO_C
    call engine_slow
    mov HOST_RSP, %rsp
    cmp $1, %rax
    je to_dispatch
    test %rax, %rax
    cmovz %rbx, %rax
    push %rax
    mov R(0), %rax
    mov R(1), %rcx
    mov R(2), %rdx
    mov R(3), %rbx
    mov R(6), %rsi
    mov R(7), %rdi
    mov R(14), %r8
    mov R(15), %r9
    mov S1, %r10
    mov S2, %r11
    ret
to_dispatch:
    mov C_RSP, %rsp
    jmp stub_dispatch

/*
 * call stub_loop_*; jmp resume; struct slow_site: an access's own copy of a TLB entry is not the one it needs. Look in the
 * table and copy that. s1 = EA - tag of the copy. Not there either: stub_slow, with s1 and s2 as other checks leave them.
 */
.macro LOOP name, off, mask, tag, used
\name:
    mov %rax, S1
    mov %rcx, S2
    mov (%rsp), %rax
    movslq SITE_LOOP(%rax), %rcx
    add %r14, %rcx
    add (%rcx), %r10
    testb $SITE_HASHED, SITE_BITS(%rax)
    jnz 3f
    rorx $7, %r10, %r11
1:  and $\mask, %r11d
    sub (\off + \tag - VCPU_BIAS)(%r14, %r11), %r10
    movzwl SITE_SIZE(%rax), %eax
    neg %eax
    add $4096, %eax
    cmp %rax, %r10
    ja 2f
    incl 24(%rcx)
    cmpl $256, 24(%rcx)
    jae 2f
    mov (\off + \tag - VCPU_BIAS)(%r14, %r11), %rax
    mov %rax, (%rcx)
    mov (\off + TLB_HOST - VCPU_BIAS)(%r14, %r11), %rax
    mov %rax, 8(%rcx)
    mov (\off + TLB_DELTA - VCPU_BIAS)(%r14, %r11), %r11
    mov %r11, 16(%rcx)
    movl $1, (\used - VCPU_BIAS)(%r14)
    mov (%rsp), %rcx
    testb $SITE_FORM_DELTA, SITE_BITS(%rcx)
    cmovz %rax, %r11
    mov S1, %rax
    mov S2, %rcx
    ret
2:  mov S1, %rax
    mov S2, %rcx
    jmp stub_slow
3:  rorx $10, %r10, %r11
    xor %r10, %r11
    rorx $7, %r11, %r11
    jmp 1b
.endm
    LOOP stub_loop_kr, TLB_OFF_K, TLB_MASK_K, TLB_TAG_R, LOOP_OFF_K
    LOOP stub_loop_kw, TLB_OFF_K, TLB_MASK_K, TLB_TAG_W, LOOP_OFF_K
    LOOP stub_loop_ur, TLB_OFF_U, TLB_MASK_U, TLB_TAG_R, LOOP_OFF_U
    LOOP stub_loop_uw, TLB_OFF_U, TLB_MASK_U, TLB_TAG_W, LOOP_OFF_U

/*
 * call stub_extent_*; jmp resume; struct slow_site: an access does not lie in its extent. s1 = EA, for writes
 * less the extent's start. Look in the table; now
 * and then, and if it is not there either: stub_slow.
 */
.macro EXTENT name, tag
\name:
    mov %rax, S1
    mov %rcx, S2
    mov (%rsp), %rax
    movslq SITE_LOOP(%rax), %rcx
    add %r14, %rcx
.if \tag == TLB_TAG_W
    add (%rcx), %r10
.endif
    testb $SITE_HASHED, SITE_BITS(%rax)
    jnz 3f
    rorx $7, %r10, %r11
1:  and $TLB_MASK_K, %r11d
    sub (TLB_OFF_K + \tag - VCPU_BIAS)(%r14, %r11), %r10
    movzwl SITE_SIZE(%rax), %eax
    neg %eax
    add $4096, %eax
    cmp %rax, %r10
    ja 2f
    incw 24(%rcx)
    testb $15, 24(%rcx)
    jz 2f
    mov (TLB_OFF_K + TLB_HOST - VCPU_BIAS)(%r14, %r11), %r11
    mov S1, %rax
    mov S2, %rcx
    ret
2:  mov S1, %rax
    mov S2, %rcx
    jmp stub_slow
3:  rorx $10, %r10, %r11
    xor %r10, %r11
    rorx $7, %r11, %r11
    jmp 1b
.endm
    EXTENT stub_extent_r, TLB_TAG_R
    EXTENT stub_extent_w, TLB_TAG_W

/* call stub_commit_*; jmp back; u8 distance from the jmp back to the record: a bounced operation has run. */
.macro COMMIT_SITE
    movzbl 5(%rbx), %esi
    neg %rsi
    add %rbx, %rsi
.endm
stub_commit_host:
    SAVE_ALL
    lahf
    seto %al
    mov %ax, FL
    pop %rbx
    COMMIT_SITE
    TO_C
    call engine_commit
    mov HOST_RSP, %rsp
    test %eax, %eax
    jnz to_dispatch
    push %rbx
    LOAD_ALL
    mov %rax, %r10
    movzwl FL, %eax
    add $0x7f, %al
    sahf
    mov %r10, %rax
    POISON
    ret
stub_commit_saved:
    SAVE_ALL
    pop %rbx
    COMMIT_SITE
    TO_C
    call engine_commit
    mov HOST_RSP, %rsp
    test %eax, %eax
    jnz to_dispatch
    push %rbx
    LOAD_ALL
    POISON
    ret

/* lea s1, site; call stub_sys: a helper does the instruction; flags in fl. */
stub_sys:
    SAVE_ALL
    popq S1
    mov %r10, %rsi
    TO_C
    call engine_sys
    mov REGION, %r14
    test %eax, %eax
    jnz 1f
    mov HOST_RSP, %rsp
    pushq S1
    LOAD_ALL
    POISON
    ret
1:  cmp $1, %eax
    je to_dispatch
    mov VV(V_MODE), %ecx      /* MODE_SLOT */
    and $3, %ecx
    lea stub_probes(%rip), %rax
    mov (%rax, %rcx, 8), %rax
    jmp go

/*
 * SYSCALL and SYSRET the short way: 64-bit user and kernel, nothing debugged (v->syscall_ok, sysret_ok, kept by
 * vcpu_mode_changed). What they do: SDM vol. 2, SYSCALL, SYSRET. Not ready: *_ok is 0 and the helper does it
 * (the caller tests). s1 = RIP of the next instruction for SYSCALL; flags in fl.
 */
.macro LOAD_CS_SS from
    mov VV(\from), %r11
    mov %r11, VV(V_SEG + 24)
    mov VV(\from + 8), %r11
    mov %r11, VV(V_SEG + 32)
    mov VV(\from + 16), %r11
    mov %r11, VV(V_SEG + 40)
    mov VV(\from + 24), %r11
    mov %r11, VV(V_SEG + 48)
    mov VV(\from + 32), %r11
    mov %r11, VV(V_SEG + 56)
    mov VV(\from + 40), %r11
    mov %r11, VV(V_SEG + 64)
.endm
stub_syscall:
    mov %r10, %rcx
    /* r11 = RFLAGS: eflags | AH of fl | OF */
    movzwl FL, %r11d
    mov %r11d, %r10d
    shr $8, %r10d
    shl $11, %r11d
    and $0x800, %r11d
    or %r11d, %r10d
    or $2, %r10d
    mov EFLAGS, %r11d
    and $~0x10000, %r11d
    or %r11d, %r10d
    mov %r10, R(11)
    /* RFLAGS &= ~SFMASK */
    mov VV(V_SFMASK), %r11
    not %r11d
    and %r11d, %r10d
    mov %r10d, %r11d
    and $~0x8d7, %r11d
    mov %r11d, EFLAGS
    mov %r10d, %r11d
    shr $11, %r11d
    and $1, %r11d
    mov %r11b, FL
    and $0xd5, %r10d
    or $2, %r10d
    mov %r10b, 9(%r14)
    LOAD_CS_SS V_SYSCALL_CS
    movb $0, VV(V_CPL)
    mov VV(V_MODE_KERNEL), %r11d
    mov %r11d, VV(V_MODE)
    movl $1, VV(V_SYSRET_OK)
    mov %rsp, VV(V_HSP_SAVED + 8)
    mov VV(V_HSP_SAVED), %rsp
    mov VV(V_HSP_BOTTOM), %r11
    mov %r11, HSP_BASE
    movl $0, VV(V_HSTACK_USER)
    mov VV(V_LSTAR), %r10
    jmp stub_probe_k

/* SYSRET with a 64-bit operand; the caller has checked CPL 0 and sysret_ok. Anything odd: stub_sysret_slow's
 * caller-supplied helper, by returning with ZF clear. call stub_sysret */
stub_sysret:
    mov %rcx, %r10
    shl $16, %r10
    sar $16, %r10
    cmp %rcx, %r10
    jne 9f
    mov R(11), %r10
    test $0x70100, %r10d          /* TF, RF, VM, AC */
    jnz 9f
    test $0x200, %r10d
    jz 1f
    cmpl $0, INTR_WAIT
    jne 9f
1:  add $8, %rsp                  /* the call's own return address */
    and $0x3c7fd7, %r10d
    mov %r10d, %r11d
    and $~0x8d7, %r11d
    mov %r11d, EFLAGS
    mov %r10d, %r11d
    shr $11, %r11d
    and $1, %r11d
    mov %r11b, FL
    and $0xd5, %r10d
    or $2, %r10d
    mov %r10b, 9(%r14)
    shrx %r14, %r15, %r11         /* as tr_window.c does */
    mov WINDOWS(%r14, %r11, 8), %r11
    mov %r11, SP_DISTANCE
    LOAD_CS_SS V_SYSRET_CS
    movb $3, VV(V_CPL)
    mov VV(V_MODE_USER), %r11d
    mov %r11d, VV(V_MODE)
    movl $1, VV(V_SYSCALL_OK)
    mov %rsp, VV(V_HSP_SAVED)
    mov VV(V_HSP_SAVED + 8), %rsp
    mov VV(V_HSP_BOTTOM + 8), %r11
    mov %r11, HSP_BASE
    movl $1, VV(V_HSTACK_USER)
    mov %rcx, %r10
    jmp stub_probe_u
9:  ret

/*
 * rep movs and rep stos with DF clear, by the host's own, in stretches that lie in one page of RAM on each side.
 * lea s1, table; mov s2d, mask | log2(element); call stub_*. ZF clear: the rest is for C (a page that is not in the table, an
 * element across pages, an event, DF). RSI, RDI and RCX are exact after each stretch. Flags are dead or in fl.
 */
#define DF 0x400
.macro REP_BEGIN
    mov %rax, R(0)
    mov %rdx, R(2)
    mov %rbx, R(3)
    mov %r8, R(14)
    testl $DF, EFLAGS
    jnz 9f
    test %rcx, %rcx
    jz 9f
.endm
.macro REP_PAGE la, tag, page /* la becomes the offset in its page, which is at `page` */
    rorx $7, \la, \page
    and %r11, \page
    and $~31, \page
    sub \tag(%r10, \page), \la
    cmp $4095, \la
    ja 9f
    mov TLB_HOST(%r10, \page), \page
.endm
.macro REP_STRETCH          /* ebx, an offset, becomes the number of elements from there */
    neg %ebx
    add $4096, %ebx
    shrx %r11d, %ebx, %ebx
    cmp %rcx, %rbx
    cmova %rcx, %rbx
    test %ebx, %ebx
    jz 9f
.endm
.macro REP_HOST insn        /* elements as the guest's: where source and destination overlap it matters */
    test $3, %r11b
    jz 1f
    test $1, %r11b
    jz 2f
    test $2, %r11b
    jz 3f
    rep \insn\()q
    jmp 4f
1:  rep \insn\()b
    jmp 4f
2:  rep \insn\()l
    jmp 4f
3:  rep \insn\()w
4:
.endm
.macro REP_END again
    test %rcx, %rcx
    jz 9f
    cmpl $0, EVENT
    je \again
9:  mov R(0), %rax
    mov R(2), %rdx
    mov R(3), %rbx
    mov R(14), %r8
    test %rcx, %rcx
    ret
.endm
/*
 * The same by moves of a vector register, without the time rep needs to start. zmm16: no vzeroupper is missed by SSE code.
 * 64 bytes or more, and moves only where nothing overlaps; else on to 6.
 */
.macro REP_BYTES            /* ebx becomes bytes */
    shlx %r11d, %ebx, %ebx
    cmp $64, %ebx
    jb 6f
.endm
.macro MOVS_VECTOR
    REP_BYTES
    mov %rdi, %rcx
    sub %rsi, %rcx
    cmp %rbx, %rcx
    jb 6f
    neg %rcx
    cmp %rbx, %rcx
    jb 6f
    vmovdqa64 %zmm16, VV(VECTOR_SPILL)
    lea -64(%rsi, %rbx), %rcx
    sub %rsi, %rdi
7:  vmovdqu64 (%rsi), %ymm16
    vmovdqu64 %ymm16, (%rsi, %rdi)
    vmovdqu64 32(%rsi), %ymm16
    vmovdqu64 %ymm16, 32(%rsi, %rdi)
    add $64, %rsi
    cmp %rcx, %rsi
    jb 7b
    mov %rcx, %rsi
    vmovdqu64 (%rsi), %ymm16
    vmovdqu64 %ymm16, (%rsi, %rdi)
    vmovdqu64 32(%rsi), %ymm16
    vmovdqu64 %ymm16, 32(%rsi, %rdi)
    vmovdqa64 VV(VECTOR_SPILL), %zmm16
    add $64, %rsi
    add %rsi, %rdi
    jmp 8f
6:  shrx %r11d, %ebx, %ecx
.endm
.macro STOS_VECTOR
    REP_BYTES
    vmovdqa64 %zmm16, VV(VECTOR_SPILL)
    vpbroadcastq %rax, %ymm16
    test $3, %r11b
    jz 1f
    test $1, %r11b
    jz 2f
    test $2, %r11b
    jnz 7f
    vpbroadcastw %eax, %ymm16
    jmp 7f
1:  vpbroadcastb %eax, %ymm16
    jmp 7f
2:  vpbroadcastd %eax, %ymm16
7:  lea -64(%rdi, %rbx), %rcx
7:  vmovdqu64 %ymm16, (%rdi)
    vmovdqu64 %ymm16, 32(%rdi)
    add $64, %rdi
    cmp %rcx, %rdi
    jb 7b
    vmovdqu64 %ymm16, (%rcx)
    vmovdqu64 %ymm16, 32(%rcx)
    lea 64(%rcx), %rdi
    vmovdqa64 VV(VECTOR_SPILL), %zmm16
    jmp 8f
6:  shrx %r11d, %ebx, %ecx
.endm
.macro NOTHING a, b
.endm
.macro MOVS name, wrap, vector
\name:
    \wrap %ecx, %ecx
    \wrap %esi, %esi
    \wrap %edi, %edi
    REP_BEGIN
5:  mov %rsi, %rax
    mov %rdi, %rbx
    REP_PAGE %rax, TLB_TAG_R, %r8
    REP_PAGE %rbx, TLB_TAG_W, %rdx
    add %rax, %r8
    add %rbx, %rdx
    cmp %eax, %ebx
    cmovb %eax, %ebx
    REP_STRETCH
    sub %r8, %rsi
    sub %rdx, %rdi
    xchg %r8, %rsi
    xchg %rdx, %rdi         /* r8, rdx: from the host's address to the guest's */
    mov %rcx, %rax
    sub %rbx, %rax
    mov %ebx, %ecx
    \vector
    REP_HOST movs
8:  mov %rax, %rcx
    add %r8, %rsi
    add %rdx, %rdi
    \wrap %esi, %esi
    \wrap %edi, %edi
    REP_END 5b
.endm
.macro STOS name, wrap, vector
\name:
    \wrap %ecx, %ecx
    \wrap %edi, %edi
    REP_BEGIN
5:  mov %rdi, %rbx
    REP_PAGE %rbx, TLB_TAG_W, %rdx
    add %rbx, %rdx
    REP_STRETCH
    sub %rdx, %rdi
    xchg %rdx, %rdi
    mov %rcx, %r8
    sub %rbx, %r8
    mov %ebx, %ecx
    \vector
    REP_HOST stos
8:  mov %r8, %rcx
    add %rdx, %rdi
    \wrap %edi, %edi
    REP_END 5b
.endm
    MOVS stub_movs, NOTHING, NOTHING
    MOVS stub_movs_32, mov, NOTHING
    STOS stub_stos, NOTHING, NOTHING
    STOS stub_stos_32, mov, NOTHING
    MOVS stub_movs_vector, NOTHING, MOVS_VECTOR
    MOVS stub_movs_32_vector, mov, MOVS_VECTOR
    STOS stub_stos_vector, NOTHING, STOS_VECTOR
    STOS stub_stos_32_vector, mov, STOS_VECTOR

/* lea s1, site; jmp stub_poll */
stub_poll:
    SAVE_ALL
    mov %r10, %rsi
    TO_C
    call engine_poll
    jmp stub_dispatch

/* lea s1, site; jmp stub_link_*: a direct branch not linked yet. */
stub_link_host:
    SAVE_ALL
    lahf
    seto %al
    mov %ax, FL
    jmp 1f
stub_link_saved:
    SAVE_ALL
1:  mov %r10, %rsi
    TO_C
    call engine_link
    test %rax, %rax
    jz stub_dispatch
    jmp go

/* A signal handler sends control here, on the C stack, after a host exception in emitted code. */
stub_fault:
    lea -VCPU_BIAS(%r14), %rdi
    call engine_fault
    jmp stub_dispatch
stub_window:
    lea -VCPU_BIAS(%r14), %rdi
    call engine_window
    jmp stub_dispatch

/* s1 = RIP, not in the jump cache (or not asked); flags in fl. */
stub_ret_empty:             /* the bottom of the prediction stack was popped: put it back */
    sub $8, %rsp
stub_lookup:
    SAVE_ALL
    mov %r10, %rsi
    TO_C
    call engine_lookup
    test %rax, %rax
    jz stub_dispatch
    jmp go

/* s1 = RIP: try the jump cache; flags in fl. */
.macro PROBE name, off, mask
\name:
    mov %r10, %r11
    shr $12, %r11
    xor %r10d, %r11d
    and $\mask, %r11d
    cmp %r10, (\off - VCPU_BIAS)(%r14, %r11, 8)
    jne 1f
    jmp *(\off - VCPU_BIAS + 8)(%r14, %r11, 8)
1:  xor $2, %r11d             /* its neighbour (jc_second) */
    cmp %r10, (\off - VCPU_BIAS)(%r14, %r11, 8)
    jne stub_lookup
    jmp *(\off - VCPU_BIAS + 8)(%r14, %r11, 8)
.endm
    PROBE stub_probe_k, JC_OFF_K, JC_MASK_K
    PROBE stub_probe_kac, JC_OFF_KAC, JC_MASK_KAC
    PROBE stub_probe_u, JC_OFF_U, JC_MASK_U
    PROBE stub_probe_u32, JC_OFF_U32, JC_MASK_U32

    .section .data.rel.ro, "aw"
    .balign 8
stub_table:                 /* enum stub */
    .quad stub_slow, stub_commit_host, stub_commit_saved, stub_sys, stub_poll, stub_link_host, stub_link_saved
    .quad stub_lookup, stub_dispatch
stub_probes:                /* by SLOT_* */
    .quad stub_probe_k, stub_probe_kac, stub_probe_u, stub_probe_u32
    .quad stub_loop_kr, stub_loop_kw, stub_loop_ur, stub_loop_uw, stub_extent_r, stub_extent_w
    .quad stub_ret_empty, stub_syscall, stub_sysret, stub_movs, stub_movs_32, stub_stos, stub_stos_32
    .quad stub_movs_vector, stub_movs_32_vector, stub_stos_vector, stub_stos_32_vector
    .section .note.GNU-stack, "", @progbits
