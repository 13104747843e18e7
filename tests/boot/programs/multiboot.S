/*
 * A kernel of a few lines with a Multiboot 1, Multiboot 2 or PVH entry (-DMB1, -DMB2, -DPVH): says on COM1 how it was
 * started, its command line and its first module, and leaves by the debug-exit port with 21 (status 43).
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
