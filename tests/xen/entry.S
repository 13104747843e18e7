/* entry.S - to user code and back, and the code itself (crossings.c); where another processor begins (processors.c). */
    .text
    .globl syscall_entry, run_user, run_user_back, cpu_entry
/* From user code, as start.S has events; vector 257. */
syscall_entry:
    popq %rcx
    popq %r11
    pushq $0
    pushq $257
    jmp trap_enter

/* void run_user(uint64_t rip, uint64_t rsp, struct xen_iret_frame *frame): the frame is filled up and taken. user_left() goes to
 * run_user_back with RSP = kept_rsp. */
run_user:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, kept_rsp(%rip)
    movq %rdx, %rsp
    movl $23, %eax
    syscall
    ud2
run_user_back:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

/* RDI = argument, RSP = a stack, events masked. */
cpu_entry:
    cld
    call cpu_main
    ud2

    .bss
    .align 8
    .globl kept_rsp
kept_rsp: .skip 8

/* User code: a page of its own. It is entered at user_code + 16 * n. */
    .section .text.user, "ax"
    .balign 4096
    .globl user_code
user_code:
    .balign 16 /* 0 */
    movl $0x1234, %eax
    syscall
    ud2
    .balign 16 /* 1: a gate of level 3 */
    int $0x80
    ud2
    .balign 16 /* 2: one of level 0 */
    int $14
    ud2
    .balign 16 /* 3 */
    movq kept_rsp, %rax
    ud2
    .balign 16 /* 4 */
    cli
    ud2
    .balign 16 /* 5 */
    movq %cr0, %rax
    ud2
    .balign 16 /* 6 */
    int3
    ud2
    .balign 16 /* 7 */
    pushq %rax
    popq %rbx
    syscall
    .balign 16 /* 8 */
    rdtsc
    syscall
    .balign 4096
    .section .note.GNU-stack, "", @progbits
