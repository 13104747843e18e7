/*
 * crt0.S - from Vitro's loader to main(): a stack, segments, a sane CPU; and the 256 interrupt stubs.
 *
 * Entered in 64-bit mode, interrupts off, the first 4 GiB mapped to themselves, RSI = struct boot_params
 * (docs/paravirt-abi.md, "How a guest starts").
 *
 * SPDX-License-Identifier: 0BSD
 */
    .section .head, "ax"
    .globl _start
_start:
    cld
    movq $boot_stack_top, %rsp
    movq %rsi, boot_params
    xorl %ebp, %ebp
    call cpu_setup
    call sdk_main               /* C: never returns */
    ud2

/* cpu_setup - CR0, CR4, EFER, GDT: of the first vCPU and of every other. Clobbers RAX, RCX, RDX. */
    .globl cpu_setup
cpu_setup:
    movq %cr0, %rax
    andl $~0xc, %eax            /* EM, TS */
    orl $0x10022, %eax          /* WP, NE, MP */
    movq %rax, %cr0
    movq %cr4, %rax
    orl $0x206a0, %eax          /* PCIDE, OSXMMEXCPT, OSFXSR, PGE, PAE */
    movq %rax, %cr4
    movl $0xc0000080, %ecx      /* EFER */
    rdmsr
    orl $0x801, %eax            /* NXE, SCE */
    wrmsr
    lgdt gdt_pointer
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    popq %rax
    pushq $0x10
    pushq %rax
    lretq

/* -- Interrupt stubs, 16 bytes each: all look alike to trap_entry (struct sdk_regs) ------------------------------ */
    .text
    .align 16
    .globl trap_stubs
trap_stubs:
    vec = 0
    .rept 256
    .align 16
    .if vec == 8 || (vec >= 10 && vec <= 14) || vec == 17 || vec == 21 || vec == 29 || vec == 30
    .byte 0x66, 0x90
    .else
    pushq $0
    .endif
    pushq $vec
    jmp trap_entry
    vec = vec + 1
    .endr

trap_entry:
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
    call sdk_trap
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
    iretq

    .section .rodata
    .align 8
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    /* 0x10: 64-bit code */
    .quad 0x00cf93000000ffff    /* 0x18: data */
gdt_pointer:
    .word . - gdt - 1
    .quad gdt

    .bss
    .align 16
    .skip 32768
boot_stack_top:
    .globl boot_params
boot_params: .skip 8
    .section .note.GNU-stack, "", @progbits
