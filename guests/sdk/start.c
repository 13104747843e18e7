/*
 * start.c - what happens before and after main(): our own page tables, interrupts, Vitro found.
 *
 * SPDX-License-Identifier: 0BSD
 */
#include "sdk/sdk.h"

void sdk_main(void) __attribute__((noreturn));
void sdk_trap(struct sdk_regs *r);

extern char trap_stubs[];
extern const uint8_t *boot_params; /* Linux Documentation/arch/x86/zero-page.rst */
extern char image_end[];

/* -- Page tables: 4 GiB to themselves (Intel SDM vol. 3 §4.5) ------------------------------------------------ */

static uint64_t pml4[512] __attribute__((aligned(4096)));
static uint64_t pdpt[512] __attribute__((aligned(4096)));
static uint64_t pd[2048] __attribute__((aligned(4096)));

static void paging_setup(void)
{
    for (uint64_t i = 0; i < 2048; i++)
        pd[i] = i << 21 | 0x183; /* global, 2 MiB, writable, present */
    for (uint64_t i = 0; i < 4; i++)
        pdpt[i] = (uint64_t)&pd[i * 512] | 3;
    pml4[0] = (uint64_t)pdpt | 3;
    __asm__ volatile("mov %0, %%cr3" ::"r"(pml4) : "memory");
}

/* -- Pages: from the end of the image to the end of the RAM it is in ------------------------------------------- */

static uint64_t page_next, page_end;

static void memory_setup(void)
{
    unsigned nr = boot_params[0x1e8]; /* e820_entries; e820_table at 0x2d0: addr 8, size 8, type 4 */

    page_next = (uint64_t)image_end;
    for (unsigned i = 0; i < nr; i++) {
        uint64_t addr, size;
        uint32_t type;
        memcpy(&addr, boot_params + 0x2d0 + i * 20, 8);
        memcpy(&size, boot_params + 0x2d8 + i * 20, 8);
        memcpy(&type, boot_params + 0x2e0 + i * 20, 4);
        if (type == 1 && page_next >= addr && page_next < addr + size)
            page_end = (addr + size) & ~(PAGE - 1);
    }
}

void *pages_alloc(size_t n)
{
    void *p = (void *)page_next;

    if (n > pages_left())
        die("out of memory: %lu pages wanted, %lu left\n", n, pages_left());
    page_next += n * PAGE;
    return memset(p, 0, n * PAGE);
}

size_t pages_left(void)
{
    return (page_end - page_next) / PAGE;
}

void tables_give(size_t n)
{
    if (vt_call2(VT_TABLES_GIVE, pages_alloc(n), n))
        die("Vitro takes no pages for tables\n");
}

/* -- Traps ------------------------------------------------------------------------------------------------------- */

static struct {
    uint64_t lo, hi;
} idt[256] __attribute__((aligned(16)));
static trap_fn *handler[256];

static void idt_setup(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = { sizeof(idt) - 1, (uint64_t)idt };

    for (unsigned v = 0; v < 256; v++) { /* interrupt gate, present, CS 0x10 */
        uint64_t at = (uint64_t)trap_stubs + 16 * v;
        idt[v].lo = (at & 0xffff) | 0x10 << 16 | 0x8e00ull << 32 | (at >> 16 & 0xffff) << 48;
        idt[v].hi = at >> 32;
    }
    __asm__ volatile("lidt %0" ::"m"(pointer));
}

void trap_handle(unsigned vector, trap_fn *fn)
{
    handler[vector & 255] = fn;
}

void sdk_trap(struct sdk_regs *r)
{
    uint64_t cr2;

    if (handler[r->vector & 255]) {
        handler[r->vector & 255](r);
        return;
    }
    __asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
    die("exception %lu, error %lx, at %lx, address %lx\nrax %lx rbx %lx rcx %lx rdx %lx rsi %lx rdi %lx rsp %lx\n",
        r->vector, r->error, r->rip, cr2, r->rax, r->rbx, r->rcx, r->rdx, r->rsi, r->rdi, r->rsp);
}

/* -- Beginning and end ---------------------------------------------------------------------------------------------- */

const char *command_line(void)
{
    uint32_t at;

    memcpy(&at, boot_params + 0x228, 4);
    return (const char *)(uint64_t)at;
}

void console_write(const char *bytes, size_t n)
{
    vt_call2(VT_CONSOLE_WRITE, bytes, n);
}

void leave(int status)
{
    if (status)
        vt_call2(VT_SHUTDOWN, VT_SHUTDOWN_EXIT, status);
    vt_call2(VT_SHUTDOWN, VT_SHUTDOWN_POWEROFF, 0);
    for (;;)
        __asm__ volatile("cli; hlt");
}

void sdk_main(void)
{
    idt_setup();
    paging_setup();
    memory_setup();
    if (!vt_find()) { /* the one thing to say it with: the PC's first serial port */
        for (const char *s = "this guest needs Vitro (with --pv vitro)\r\n"; *s; s++)
            __asm__ volatile("outb %0, %1" ::"a"(*s), "d"((uint16_t)0x3f8));
        for (;;)
            __asm__ volatile("cli; hlt");
    }
    leave(main());
}
