/*
 * crt.S - the ways in: _start from 64-bit mode (Vitro's loader), pvh_start in 32-bit protected mode (QEMU). Then traps, run(),
 * and the way to real mode and back.
 */
    .section .note.Xen, "a", @note
    .align 4
    .long 4, 8, 18              /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_start, 0

    .section .head, "ax"
    .code64
    .globl _start
_start:
    cli
    mov $boot_gdtr, %edi        /* no 64-bit relocations in this file */
    lgdt (%rdi)
    pushq $0x08
    mov $1f, %edi
    push %rdi
    lretq
    .code32
1:  mov $0x10, %eax             /* compatibility mode: paging off ends long mode */
    mov %eax, %ss
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x100, %eax
    wrmsr
    mov %cr4, %eax
    and $~0x20, %eax
    mov %eax, %cr4
    .globl pvh_start
pvh_start:
    cli
    cld
    lgdt boot_gdtr
    ljmp $0x08, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov $stack_top, %esp
    mov %cr0, %eax
    and $~0xc, %eax             /* EM, TS */
    or $0x22, %eax              /* NE, MP */
    mov %eax, %cr0
    mov %cr4, %eax
    or $0x600, %eax             /* OSFXSR, OSXMMEXCPT */
    mov %eax, %cr4
    mov $low_start, %edi
    mov $low_image, %esi
    mov $low_size, %ecx
    rep movsb
    call setup
    call main
    call guest_exit

    .align 8
boot_gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
boot_gdtr:
    .word . - boot_gdt - 1
    .long boot_gdt, 0
    .globl gdtr, idtr
gdtr:
    .word 0x200 - 1
    .long gdt
idtr:
    .word 256 * 8 - 1
    .long idt
real_idtr:
    .word 0x3ff
    .long 0

/* -- Traps: 16 bytes a stub ------------------------------------------------------------------- */
    .text
    .align 16
    .globl trap_stubs
trap_stubs:
    vec = 0
    .rept 256
    .align 16
    .if vec == 8 || (vec >= 10 && vec <= 14) || vec == 17
    nop
    .else
    push $0
    .endif
    push $vec
    jmp trap_entry
    vec = vec + 1
    .endr
trap_entry:
    pusha
    push %ds
    push %es
    push %fs
    push %gs
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    cld
    mov %esp, %eax
    push %eax
    call trap_c                 /* returns only to go on where it stood */
    pop %eax
    pop %gs
    pop %fs
    pop %es
    pop %ds
    popa
    add $8, %esp
    iret

/* unsigned run(const void *code, u32 arg) */
    .globl run, run_end
run:
    push %ebp
    push %ebx
    push %esi
    push %edi
    pushf
    mov %esp, run_esp
    mov 24(%esp), %edx
    mov 28(%esp), %eax
    call *%edx
    mov $0x200, %eax
/* void run_end(unsigned vec): from wherever a trap came; everything as it was at run() */
    jmp 1f
run_end:
    mov 4(%esp), %eax
1:  mov $0x10, %edx
    mov %edx, %ss
    mov run_esp, %esp
    mov %edx, %ds
    mov %edx, %es
    mov %edx, %fs
    mov %edx, %gs
    popf
    pop %edi
    pop %esi
    pop %ebx
    pop %ebp
    ret

/* int run_real(const void *code, u32 arg) */
    .globl run_real
run_real:
    push %ebp
    push %ebx
    push %esi
    push %edi
    pushf
    cli
    mov 24(%esp), %edx
    mov 28(%esp), %eax
    mov %esp, real_esp
    mov %eax, real_eax
    mov %edx, real_code
    lidt real_idtr
    ljmp $0x18, $go_real
back32:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov real_esp, %esp
    lgdt gdtr
    lidt idtr
    mov real_vec, %eax
    popf
    pop %edi
    pop %esi
    pop %ebx
    pop %ebp
    ret

    .section .low, "awx", @progbits
    .code16
go_real:
    mov $0x20, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov %cr0, %eax
    and $~1, %eax
    mov %eax, %cr0
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov $0x7c00, %sp
    movl $-1, real_vec
    mov real_eax, %eax
    call *real_code
real_back:
    cli
    mov %eax, %cs:real_eax
    xor %ax, %ax
    mov %ax, %ds
    lgdtl gdtr_low
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $0x08, $back32
/* The interrupt table's default handlers: note the vector and the IP, and end run_real(). */
    .globl real_stubs
real_stubs:
    vec = 0
    .rept 32
    .align 8
    pushw $vec
    jmp 1f
    vec = vec + 1
    .endr
1:  popw %cs:real_vec
    popw %cs:real_ip
    movw $0, %cs:real_vec + 2
    mov $0x7c00, %sp
    jmp real_back
    .align 4
    .globl gdtr_low
gdtr_low:
    .word 0x200 - 1
    .long gdt
real_esp: .long 0
real_code: .long 0
real_vec: .long 0
    .globl real_eax, real_ip
real_eax: .long 0
real_ip: .long 0
    .code32

    .bss
    .globl run_esp
run_esp: .long 0
    .align 16
    .skip 16384
    .globl stack_top
stack_top:
    .section .note.GNU-stack, "", @progbits
