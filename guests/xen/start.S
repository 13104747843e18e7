/*
 * start.S - what C cannot say: the notes that make this file a Xen PV kernel, its entry, and the way in and out of handlers.
 *
 * SPDX-License-Identifier: 0BSD
 */
    .macro note type:req, desc:vararg   /* of owner "Xen" */
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:  \desc
2:  .align 4
    .endm

    .section .note.Xen, "a", @note
    note 5, .asciz "xen-3.0"            /* XEN_VERSION: this interface */
    note 6, .asciz "vitro-guest"        /* GUEST_OS: for people */
    note 8, .asciz "generic"            /* LOADER */
    note 3, .quad 0                     /* VIRT_BASE: where pseudo-physical 0 is mapped */
    note 1, .quad _start                /* ENTRY */

/* RSI = struct xen_start_info, RSP = a stack of a page: enough to get to our own. Events are masked. */
    .text
    .globl _start
_start:
    cld
    leaq stack_top(%rip), %rsp
    movq %rsi, %rdi
    xorl %ebp, %ebp
    call xen_main
    ud2

/*
 * Into a handler. Xen has pushed, from the top: ss, rsp, rflags, cs, rip, [an error code,] r11, rcx. Made of that: struct sdk_regs,
 * with an error code for everyone. Vector 256 is an event.
 */
    .align 16
    .globl trap_stubs
trap_stubs:
    vec = 0
    .rept 32
    .align 16
    popq %rcx
    popq %r11
    .if !(vec == 8 || (vec >= 10 && vec <= 14) || vec == 17)
    pushq $0
    .endif
    pushq $vec
    jmp trap_enter
    vec = vec + 1
    .endr

    .globl event_entry, failsafe_entry, trap_enter
event_entry:
    popq %rcx
    popq %r11
    pushq $0
    pushq $256
trap_enter:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbp
    andq $~15, %rsp
    call xen_trap
    movq %rbp, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
/* And out: struct xen_iret_frame. It takes RCX and R11 from the stack, and unmasks events if IF of these rflags is set. */
    pushq $0
    pushq %rcx
    pushq %r11
    pushq %rax
    movl $23, %eax
    syscall
    ud2

/* Selectors lie between r11 and rip: a frame that we gave to iret could not be loaded. We never give such a one. */
failsafe_entry:
    ud2

/* bool try_store(uint64_t *to, uint64_t value): false if that is a page fault (xen_trap). */
    .globl try_store, try_store_failed
try_store:
    movq %rsi, (%rdi)
    movl $1, %eax
    ret
try_store_failed:
    xorl %eax, %eax
    ret

    .bss
    .align 16
    .skip 32768
stack_top:
    .section .note.GNU-stack, "", @progbits
