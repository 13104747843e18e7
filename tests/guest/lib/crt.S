/*
 * crt.S - both ways into a test kernel, the 256 interrupt stubs, and the way into and out of ring 3.
 *
 * pvh_start: 32-bit protected mode without paging (PVH, how QEMU starts an ELF kernel). Builds the
 *   tables that the other entry finds ready and falls into it.
 * _start: 64-bit mode, first 4 GiB identity mapped, interrupts off, RSI = boot_params or 0.
 */

    .section .note.Xen, "a", @note
    .align 4
    .long 4, 8, 18              /* name size, desc size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_start

    .section .head, "ax"
    .code32
    .globl pvh_start
pvh_start:
    cli
    cld
    movl $boot_pml4, %edi       /* PML4[0] -> PDPT, PDPT[0..3] -> PDs */
    movl $boot_pdpt + 7, (%edi)
    movl $boot_pdpt, %edi
    movl $boot_pd + 7, %eax
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b
    movl $boot_pd, %edi         /* 2048 pages of 2 MiB */
    movl $0x87, %eax
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b
    movl %cr4, %eax
    orl $0x20, %eax             /* PAE */
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax            /* LME */
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    lgdt boot_gdtr
    xorl %esi, %esi
    ljmp $0x10, $_start

    .align 8
boot_gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
boot_gdtr:
    .word . - boot_gdt - 1
    .long boot_gdt

    .code64
    .globl _start
_start:
    cli
    cld
    movq $boot_stack_top, %rsp
    movq %rsi, boot_params_pa
    /* SSE and x87 on, nothing trapping; write protection on for the kernel too. */
    movq %cr0, %rax
    andq $~0xc, %rax            /* EM, TS */
    orq $0x10022, %rax          /* WP, NE, MP */
    movq %rax, %cr0
    movq %cr4, %rax
    orq $0x620, %rax            /* OSXMMEXCPT, OSFXSR, PAE */
    movq %rax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x801, %eax            /* NXE, SCE */
    wrmsr
    call guest_setup
    call main
    call guest_exit

/* reload_cs(selector): far return to the caller's own next instruction. */
    .text
    .globl reload_cs
reload_cs:
    popq %rax
    pushq %rdi
    pushq %rax
    lretq

/* -- Interrupt stubs, 16 bytes each ------------------------------------------------------ */
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
    pushq $vec                  /* sign-extended above 127; trap_entry truncates */
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
    movq %rsp, %rbx
    andq $-16, %rsp
    call trap_dispatch
    movq %rbx, %rsp
    .globl trap_restore
trap_restore:
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
    .globl trap_iret
trap_iret:
    iretq

/* -- Ring 3 -------------------------------------------------------------------------------- */
/* user_enter(regs): load all of *regs with iretq; returns when user_leave() is called. */
    .globl user_enter
user_enter:
    pushfq
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    cli
    movq %rsp, user_krsp
    movq %rsp, tss + 4          /* RSP0 */
    movq %rdi, %rsp
    jmp trap_restore

    .globl user_leave
user_leave:
    movq user_krsp, %rsp
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popfq
    ret

/* Leave ring 3 from a syscall or sysenter entry point: state as the entry found it, RSP the user's
 * (syscall) or SYSENTER_ESP. Fills trap.r as for vector VEC_SYSCALL and returns from user_enter(). */
    .globl syscall_leave
syscall_leave:
    movq %rsp, trap + 20 * 8    /* offsets: struct regs, struct trap */
    movq $trap + 15 * 8, %rsp
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
    movq user_krsp, %rsp
    pushfq
    popq trap + 19 * 8
    movq $0x100, trap + 15 * 8
    movl $0x100, trap + 25 * 8
    movw %cs, trap + 18 * 8
    movw %ss, trap + 21 * 8
    jmp user_leave

    .section .utext, "ax"
    .globl user_return
user_return:
    int $0x81
    .code32
    .globl user_return32
user_return32:
    int $0x81
    .code64

/* -- Context for setjmp-like use ------------------------------------------------------------ */
    .text
    .globl ctx_save
ctx_save:
    movq %rbx, (%rdi)
    movq %rbp, 8(%rdi)
    movq %r12, 16(%rdi)
    movq %r13, 24(%rdi)
    movq %r14, 32(%rdi)
    movq %r15, 40(%rdi)
    leaq 8(%rsp), %rax
    movq %rax, 48(%rdi)
    movq (%rsp), %rax
    movq %rax, 56(%rdi)
    xorl %eax, %eax
    ret
    .globl ctx_jump
ctx_jump:
    movl %esi, %eax
    movq (%rdi), %rbx
    movq 8(%rdi), %rbp
    movq 16(%rdi), %r12
    movq 24(%rdi), %r13
    movq 32(%rdi), %r14
    movq 40(%rdi), %r15
    movq 48(%rdi), %rsp
    jmp *56(%rdi)

    .bss
    .align 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 4 * 4096
    .skip 32768
    .globl boot_stack_top
boot_stack_top:
    .section .note.GNU-stack, "", @progbits
