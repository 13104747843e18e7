/*
 * sdk.h - what a small guest stands on: main(), a console, pages, interrupts, events, time. The calls themselves are in
 * include/vitro; everything here is a thin layer over them, meant to be read, copied and changed.
 *
 * SPDX-License-Identifier: 0BSD
 *
 * The SDK's map: the first 4 GiB to themselves, global pages of 2 MiB, for the kernel only; the image at 2 MiB; the rest
 * of the address space is the guest's. Everything runs at CPL 0.
 */
#ifndef GUESTS_SDK_H
#define GUESTS_SDK_H
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "vitro/abi.h"
#include "vitro/call.h"
#include "vitro/shared.h"

#define PAGE 4096ull

/* main - the guest. What it returns is how the machine ends: 0 powers off, n makes vitro's exit status 2n+1. */
int main(void);

/* -- Console -------------------------------------------------------------------------------------- */
/* print - %d %u %x %lu %ld %lx %s %c %p %%, with width and 0; in one call to Vitro. */
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* console_write - bytes as they are. */
void console_write(const char *bytes, size_t n);
int format(char *buf, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int vformat(char *buf, size_t size, const char *fmt, va_list ap);
/* die - print, and end with status 1. */
void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
/* leave - as main() returning. */
void leave(int status) __attribute__((noreturn));
/* check - what a guest tests of itself: prints "ok - ..." or "FAILED - ..."; check_failed() is how many failed. */
void check(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int check_failed(void);
/* command_line - what --append gave. */
const char *command_line(void);

/* -- Memory ------------------------------------------------------------------------------------------ */
/* pages_alloc - n pages in a row, below 4 GiB, zeroed; address = guest-physical address. Never fails: dies. */
void *pages_alloc(size_t n);
/* pages_left - how many there are. */
size_t pages_left(void);
/* tables_give - n pages for Vitro to make page tables of. */
void tables_give(size_t n);

/* -- Interrupts and events ------------------------------------------------------------------------------ */
struct sdk_regs { /* crt0.S pushes it */
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};
/* trap_handle - a function for an exception or interrupt; without one, an exception ends the guest with a dump. */
typedef void trap_fn(struct sdk_regs *regs);
void trap_handle(unsigned vector, trap_fn *fn);
/* event_handle - call fn(arg), interrupts off, on the processor that asks for this, when the port has something new; sets
 * events up at its first use. */
typedef void event_fn(void *arg);
void event_handle(unsigned port, event_fn *fn, void *arg);
/* event_mask - whether the port interrupts: a driver that looks by itself saves that. Look once more after letting it again. */
void event_mask(unsigned port, bool masked);
static inline void irq_on(void) { __asm__ volatile("sti" ::: "memory"); }
static inline void irq_off(void) { __asm__ volatile("cli" ::: "memory"); }
/* wait_until - sleep in hlt until the condition holds; handlers make it hold. Interrupts are on afterwards. */
#define wait_until(condition) \
    do { \
        irq_off(); \
        while (!(condition)) \
            __asm__ volatile("sti; hlt; cli" ::: "memory"); \
        irq_on(); \
    } while (0)

/* -- Processors ------------------------------------------------------------------------------------------------ */
#define CPUS_MAX 64
/* cpu_index - which one runs this; cpu_count - how many there are. */
static inline unsigned cpu_index(void)
{
    uint32_t lo, hi, aux; /* TSC_AUX: 0 from reset, and cpu_start() sets the others' */
    __asm__ volatile("rdtscp" : "=a"(lo), "=d"(hi), "=c"(aux));
    return aux;
}
unsigned cpu_count(void);
/* cpu_start - run fn(arg) on another processor, with a stack of its own, interrupts off. 0, or -VT_E*. It stops when fn returns,
 * and can be started again. */
int cpu_start(unsigned cpu, void (*fn)(void *arg), void *arg);

/* -- Time ------------------------------------------------------------------------------------------------ */
/* mono_ns - ns since switching on; wall_ns - UTC ns since 1970. No call into Vitro. */
uint64_t mono_ns(void);
uint64_t wall_ns(void);

/* -- C we need anyway --------------------------------------------------------------------------------------- */
void *memset(void *d, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

#endif
