/* types.h - fixed-width names for guest-visible values, and the few macros everyone needs. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

typedef u64 gva_t; /* offset within a segment */
typedef u64 gla_t; /* linear address          */
typedef u64 gpa_t; /* guest-physical address  */

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ull
#define PAGE_MASK (~(PAGE_SIZE - 1))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define CHOOSE_(a, op, b, x, y) ({ __auto_type x = (a); __auto_type y = (b); x op y ? x : y; })
#define CHOOSE(a, op, b, nr) CHOOSE_(a, op, b, PASTE(one_, nr), PASTE(other_, nr)) /* names of their own: they may stand in each other */
/* Each argument is looked at once: it may be something that the guest changes meanwhile. */
#define MIN(a, b) CHOOSE(a, <, b, __COUNTER__)
#define MAX(a, b) CHOOSE(a, >, b, __COUNTER__)
#define BIT(n) (1u << (n))
#define BITULL(n) (1ull << (n))

/* prefetch_write - the cache line is about to be written, and most likely another core has it. Never faults; nothing where a CPU
 * lacks the instruction (Intel SDM vol. 2, PREFETCHW). */
static inline void prefetch_write(const void *p)
{
    __asm__ volatile("prefetchw %0" : : "m"(*(const u8 *)p));
}

/* bug_on - stop at a mistake of ours. Never on a value the guest controls. */
#define bug_on(c) do { if (unlikely(c)) bug(#c, __FILE__, __LINE__); } while (0)
_Noreturn void bug(const char *what, const char *file, int line);
