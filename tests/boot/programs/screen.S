/*
 * A boot sector, and what it loads: goes through a table of video modes as the BIOS has them (int 10h; VESA BIOS Extension
 * Core Functions 3.0, §4), draws some dots in each, says so on COM1 by "[mode ok]" or "[mode bad]", and waits for a key.
 * The table is appended, from TABLE on: mode, way to draw, bits a pixel, width, height. The end is mode ffff.
 */
    .code16
    .text
    .set SECTORS, 7
    .set TABLE, 0x8600
    .set INFO, 0x9000       /* what VBE says of a mode */
    .globl _start
_start:
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    cld
    mov $0x0200 + SECTORS, %ax
    mov $0x7e00, %bx
    mov $0x0002, %cx
    xor %dh, %dh
    int $0x13
    jc bad
    mov $TABLE, %si
next:
    cmpw $-1, (%si)
    je done
    mov 2(%si), %bl
    xor %bh, %bh
    shl $1, %bx
    call *ways(%bx)
    call say
    push %si
    xor %ah, %ah
    int $0x16
    pop %si
    add $10, %si
    jmp next
done:
    mov $3, %ax
    int $0x10
    mov $end, %di
    call puts
    mov $21, %al
    mov $0x501, %dx
    out %al, %dx
bad:
    mov $error, %di
    call puts
1:  hlt
    jmp 1b

/* "[0101 ok]": CF says which. */
say:
    pushf
    mov $'[', %al
    call putc
    mov (%si), %cx
    mov $4, %bp
1:  rol $4, %cx
    mov %cl, %al
    and $15, %al
    cmp $10, %al
    sbb $0x69, %al
    das
    call putc
    dec %bp
    jnz 1b
    mov $good, %di
    popf
    jnc puts
    mov $wrong, %di
puts:
    mov (%di), %al
    inc %di
    test %al, %al
    jz 1f
    call putc
    jmp puts
1:  ret
putc:
    push %ax
    mov $0x3fd, %dx
1:  in %dx, %al
    test $0x20, %al
    jz 1b
    pop %ax
    mov $0x3f8, %dx
    out %al, %dx
    ret
good:  .asciz " ok]\n"
wrong: .asciz " bad]\n"
end:   .asciz "[end]\n"
error: .asciz "[no disk]\n"

    .org 0x1fe
    .word 0xaa55

ways:
    .word text, dots, linear, banked

/* Characters: a word at the end of the last line, by the frame buffer. */
text:
    mov (%si), %ax
    int $0x10
    mov $0xb800, %ax
    mov %ax, %es
    mov 6(%si), %ax         /* (width * height - 3) * 2 */
    mulw 8(%si)
    sub $3, %ax
    shl $1, %ax
    mov %ax, %di
    mov $0x1f45, %ax
    stosw
    mov $0x2e4e, %ax
    stosw
    mov $0x4f44, %ax
    stosw
    xor %ax, %ax
    mov %ax, %es
    clc
    ret

/* The BIOS's own dots. The n-th (from 0) has colour n + 1. */
dots:
    mov (%si), %ax
    int $0x10
    mov 6(%si), %ax
    mov %ax, width
    mov 8(%si), %ax
    mov %ax, height
    mov $bios_dot, %ax
    call each
    clc
    ret
bios_dot:
    mov %bl, %al
    inc %al
    mov $0x0c, %ah
    xor %bh, %bh
    int $0x10
    ret

/* VBE: asked for, compared with the table, set. CF: not as it should be. */
vbe:
    mov $0x4f01, %ax
    mov (%si), %cx
    mov $INFO, %di
    push %dx
    int $0x10
    pop %dx
    cmp $0x004f, %ax
    jne 1f
    mov INFO + 0x12, %ax
    mov %ax, width
    cmp 6(%si), %ax
    jne 1f
    mov INFO + 0x14, %ax
    mov %ax, height
    cmp 8(%si), %ax
    jne 1f
    mov INFO + 0x19, %al
    cmp 4(%si), %al
    jne 1f
    mov INFO, %ax           /* supported, colour, graphics */
    and $0x19, %ax
    cmp $0x19, %ax
    jne 1f
    mov $0x4f02, %ax
    mov (%si), %bx
    or %dx, %bx
    int $0x10
    cmp $0x004f, %ax
    jne 1f
    mov $0x4f03, %ax
    int $0x10
    and $0x1ff, %bx
    cmp (%si), %bx
    jne 1f
    clc
    ret
1:  stc
    ret

linear:
    mov $0x4000, %dx
    call vbe
    jc 1f
    mov $linear_dot, %ax
    call each
    clc
1:  ret
/* By a 4 GiB limit in FS, which is taken anew for each dot: the BIOS may have used FS. */
linear_dot:
    call address
    add INFO + 0x28, %eax
    mov %eax, %edi
    cli
    lgdtl gdtr
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    jmp 1f
1:  mov $8, %cx
    mov %cx, %fs
    and $0xfe, %al
    mov %eax, %cr0
    jmp 1f
1:  xor %cx, %cx
    mov %cx, %fs
    sti
    movzbl %bl, %eax        /* 24 bits or less: the n-th has n * 102f35 + 51f07, or n + 1 of a palette */
    cmpb $8, 4(%si)
    jne 1f
    inc %al
    mov %al, %fs:(%edi)
    ret
1:  imul $0x102f35, %eax, %eax
    add $0x051f07, %eax
    mov %ax, %fs:(%edi)
    cmpb $16, 4(%si)
    jbe 1f
    shr $16, %eax
    mov %al, %fs:2(%edi)
1:  ret

banked:
    xor %dx, %dx
    call vbe
    jc 1f
    mov $banked_dot, %ax
    call each
    clc
1:  ret
banked_dot:
    call address
    mov %ax, %di
    shr $16, %eax
    mov %ax, %dx
    push %bx
    mov $0x4f05, %ax
    xor %bx, %bx
    int $0x10
    pop %bx
    mov $0xa000, %ax
    mov %ax, %es
    inc %bl
    mov %bl, %es:(%di)
    xor %ax, %ax
    mov %ax, %es
    ret
/* EAX = where the dot at CX, DX is in the frame */
address:
    movzwl %dx, %eax
    movzwl INFO + 0x10, %edx
    imul %edx, %eax
    movzbl INFO + 0x19, %edx
    add $7, %edx
    shr $3, %edx
    movzwl %cx, %ecx
    imul %edx, %ecx
    add %ecx, %eax
    ret

/* Calls AX with BL = n, CX, DX = column, line: the corners, then eleven from the top left to the bottom right. */
each:
    mov %ax, dot
    movb $0, number
1:  mov number, %bl
    cmp $4, %bl
    jae 2f
    xor %cx, %cx
    xor %dx, %dx
    test $1, %bl
    jz 3f
    mov width, %cx
    dec %cx
3:  test $2, %bl
    jz 4f
    mov height, %dx
    dec %dx
    jmp 4f
2:  movzbw number, %di      /* (n - 3) * width / 12 */
    sub $3, %di
    mov width, %ax
    call scale
    mov %ax, %cx
    mov height, %ax
    call scale
    mov %ax, %dx
4:  push %si
    call *dot
    pop %si
    incb number
    cmpb $15, number
    jne 1b
    ret
scale:
    mul %di
    mov $12, %bp
    div %bp
    ret

    .align 8
gdt:
    .quad 0, 0x00cf93000000ffff
gdtr:
    .word . - gdt - 1
    .long gdt
width:  .word 0
height: .word 0
dot:    .word 0
number: .byte 0
