/*
 * A kernel of a few lines with a Multiboot 1, Multiboot 2 or PVH entry (-DMB1, -DMB2, -DPVH): says on COM1 how it was
 * started, its command line and its first module, and leaves by the debug-exit port with 21 (status 43). By Multiboot it goes back to
 * real mode first, and asks the BIOS for memory: the answer has to be "not supported", and nothing else may change.
 */
    .code32
    .text
#ifdef MB1
    .align 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)
#define MAGIC 0x2badb002
#elif defined(MB2)
    .align 8
head:
    .long 0xe85250d6, 0, tail - head, -(0xe85250d6 + (tail - head))
    .long 0, 8
tail:
#define MAGIC 0x36d76289
#else
#define MAGIC 0
#endif
    .globl _start
_start:
    mov $0x300000, %esp
    cmp $MAGIC, %eax
    jne bad
#ifdef MB1
    mov $mb1, %esi
    call puts
    mov 16(%ebx), %esi      /* cmdline */
    call puts
    mov 24(%ebx), %edi      /* modules */
    mov (%edi), %esi
    call puts
    mov 8(%edi), %esi
    call puts
#elif defined(MB2)
    mov $mb2, %esi
    call puts
    lea 8(%ebx), %edi
1:  mov (%edi), %eax
    test %eax, %eax
    jz leave
    lea 8(%edi), %esi
    cmp $1, %eax
    je 2f
    cmp $3, %eax
    jne 3f
    mov 8(%edi), %esi
    call puts
    lea 16(%edi), %esi
2:  call puts
3:  mov 4(%edi), %eax
    add $7, %eax
    and $-8, %eax
    add %eax, %edi
    jmp 1b
#else
    cmpl $0x336ec578, (%ebx)
    jne bad
    mov $pvh, %esi
    call puts
    mov 24(%ebx), %esi
    call puts
    mov 16(%ebx), %edi
    mov (%edi), %esi
    call puts
    mov 16(%edi), %esi
    call puts
#endif
leave:
    lidt none               /* the segments are what they should be: this reloads them */
    mov %ds, %ax
    mov %ax, %es
#if MAGIC
    mov $real, %esi
    mov $0x8000, %edi
    mov $real_end - real, %ecx
    rep movsb
    lgdt gdt
    lidt vectors
    ljmp $8, $0x8000
#endif
    mov $0x501, %dx
    mov $21, %eax
    out %eax, %dx
bad:
    mov $no, %esi
    call puts
    hlt
puts:
    mov $0x3f8, %dx
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  mov $'\n', %al
    out %al, %dx
    ret
    .code16
real:
    mov $16, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov %cr0, %eax
    and $~1, %al
    mov %eax, %cr0
    ljmp $0, $0x8000 + 1f - real
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7000, %sp
    mov $1, %edi            /* 21 + 0x10 * what is wrong */
    cmpw $639, 0x413        /* BIOS data area: KiB of base memory */
    jne 2f
    inc %edi
    mov $0xe820, %eax
    clc
    int $0x15
    jnc 2f
    cmp $0xe820, %eax
    jne 2f
    inc %edi
    stc
    int $8                  /* as the timer's interrupt would: carry stays what it was */
    jnc 2f
    clc
    int $8
    jc 2f
    xor %edi, %edi
2:  shl $4, %di
    lea 21(%edi), %eax
    mov $0x501, %dx
    out %eax, %dx
    hlt
real_end:
    .align 8
gdt:     .word 23
         .long gdt_table
gdt_table:
    .quad 0, 0x00009b000000ffff, 0x000093000000ffff
vectors: .word 0x3ff
         .long 0
    .code32
mb1: .asciz "multiboot 1"
mb2: .asciz "multiboot 2"
pvh: .asciz "pvh"
no:  .asciz "wrong magic"
none: .word 0
      .long 0
#ifdef PVH
    .section .note.Xen, "a", @note
    .align 4
    .long 4, 4, 18
    .asciz "Xen"
    .long _start
#endif
    .section .note.GNU-stack, "", @progbits
