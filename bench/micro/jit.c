/*
 * jit.c - code written at run time, in the ways that just-in-time compilers,
 * loaders and patchers write it. One operation is one write and one call,
 * unless said otherwise.
 *
 * The function written is
 *     b8 imm32     mov eax, imm32
 *     01 f8        add eax, edi
 *     6b c0 03     imul eax, eax, 3
 *     c3           ret
 * Writer and caller are the same CPU and the same linear address, so the
 * architecture asks for no more than the jump into it (Intel SDM vol. 3 8.1.3).
 */
#define _GNU_SOURCE
#include "vb.h"

#include <sys/mman.h>
#include <unistd.h>

#define PAGE       4096u
#define POOL_SLOT  64u
#define POOL_SLOTS 4096u

typedef u32 (*code_fn)(u32);

static const u8 template[] = {0xb8, 0,    0,    0, 0,   0x01,
                              0xf8, 0x6b, 0xc0, 3, 0xc3};

static void emit(u8 *at, u32 imm)
{
    memcpy(at, template, sizeof(template));
    memcpy(at + 1, &imm, sizeof(imm));
}

static u32 call(u8 *code, u32 arg)
{
    __asm__ volatile("" ::: "memory"); /* the code is written before this */
    return ((code_fn)(void *)code)(arg);
}

static u8 *map_code(size_t bytes)
{
    u8 *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        vb_die("mmap");
    memset(p, 0xcc, bytes);
    return p;
}

static u64 emit_call_run(u64 n)
{
    u8 *code = map_code(PAGE);
    u64 sum = 0;

    for (u64 op = 0; op < n; op++) {
        emit(code, (u32)op);
        sum += call(code, 5);
    }
    munmap(code, PAGE);
    return sum;
}

/* Written once: what a warm JIT's code costs. */
static u64 emit_once_run(u64 n)
{
    u8 *code = map_code(PAGE);
    u64 sum = 0;

    emit(code, 7);
    for (u64 op = 0; op < n; op++)
        sum += call(code, (u32)op);
    munmap(code, PAGE);
    return sum;
}

static u64 patch_imm_run(u64 n)
{
    u8 *code = map_code(PAGE);
    u64 sum = 0;

    emit(code, 0);
    for (u64 op = 0; op < n; op++) {
        u32 imm = (u32)op;

        memcpy(code + 1, &imm, sizeof(imm));
        sum += call(code, 9);
    }
    munmap(code, PAGE);
    return sum;
}

/* Never writable and executable at once. */
static u64 wx_toggle_run(u64 n)
{
    u8 *code = map_code(PAGE);
    u64 sum = 0;

    for (u64 op = 0; op < n; op++) {
        mprotect(code, PAGE, PROT_READ | PROT_WRITE);
        emit(code, (u32)op);
        mprotect(code, PAGE, PROT_READ | PROT_EXEC);
        sum += call(code, 11);
    }
    munmap(code, PAGE);
    return sum;
}

/* Always the next 64 bytes of 256 KiB: a compiler filling its cache. Each
 * function is called 8 times; the pages around it hold older code. */
static u64 emit_pool_run(u64 n)
{
    u8 *code = map_code(POOL_SLOTS * POOL_SLOT);
    u64 sum = 0;

    for (u64 op = 0; op < n; op++) {
        u8 *slot = code + op % POOL_SLOTS * POOL_SLOT;

        emit(slot, (u32)op);
        for (u32 i = 0; i < 8; i++)
            sum += call(slot, i);
    }
    munmap(code, POOL_SLOTS * POOL_SLOT);
    return sum;
}

/* Code and the variable it is called with, in one page, lines apart: only
 * data is written. Inline caches and old JITs do this. */
static u64 code_data_run(u64 n)
{
    u8 *code = map_code(PAGE);
    volatile u32 *data = (volatile u32 *)(void *)(code + 2048);
    u64 sum = 0;

    emit(code, 3);
    *data = 0;
    for (u64 op = 0; op < n; op++) {
        *data = call(code, *data + (u32)op) & 0xffff;
        sum += *data;
    }
    munmap(code, PAGE);
    return sum;
}

/* A function that writes the instruction it is about to execute. */
static u64 self_modify_run(u64 n)
{
    static const u8 text[] = {
        0x89, 0x3d, 3, 0, 0, 0, /* mov [rip + 3], edi: the imm32 below */
        0xeb, 0x00,             /* jmp to the next */
        0xb8, 0,    0, 0, 0,    /* mov eax, imm32 */
        0xc3,                   /* ret */
    };
    u8 *code = map_code(PAGE);
    u64 sum = 0;

    memcpy(code, text, sizeof(text));
    for (u64 op = 0; op < n; op++)
        sum += call(code, (u32)op * 3);
    munmap(code, PAGE);
    return sum;
}

/* The kernel writes the code: pread into the page, as loaders do. */
static int code_file = -1;

static int load_code_setup(void)
{
    u8 page[16 * POOL_SLOT] = {0};

    code_file = memfd_create("code", 0);
    if (code_file < 0)
        vb_die("memfd_create");
    for (u32 i = 0; i < 16; i++)
        emit(page + i * POOL_SLOT, i * 1000);
    if (write(code_file, page, sizeof(page)) != sizeof(page))
        vb_die("write");
    return 0;
}

static u64 load_code_run(u64 n)
{
    u8 *code = map_code(PAGE);
    u64 sum = 0;

    for (u64 op = 0; op < n; op++) {
        if (pread(code_file, code, POOL_SLOT, (off_t)(op % 16 * POOL_SLOT)) !=
            POOL_SLOT)
            vb_die("pread");
        sum += call(code, 13);
    }
    munmap(code, PAGE);
    return sum;
}

const struct vb_bench vb_jit[] = {
    {"emit_call", "jit", 500000, emit_call_run, NULL},
    {"emit_once", "jit", 100000000, emit_once_run, NULL},
    {"patch_imm", "jit", 500000, patch_imm_run, NULL},
    {"wx_toggle", "jit", 50000, wx_toggle_run, NULL},
    {"emit_pool", "jit", 500000, emit_pool_run, NULL},
    {"code_data", "jit", 4000000, code_data_run, NULL},
    {"self_modify", "jit", 500000, self_modify_run, NULL},
    {"load_code", "jit", 300000, load_code_run, load_code_setup},
    {0},
};
