/*
 * vb.h - what every benchmark of vbench shares.
 *
 * A benchmark is one function that does n units of fixed work and returns a
 * checksum over its results. The same n gives the same checksum on every
 * machine, native or translated, so that speed is never compared between two
 * different answers.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

struct vb_bench {
    const char *name;
    const char *group;
    u64 count;         /* operations at --scale 1: 0.2-0.5 s on a 2023 server */
    u64 (*run)(u64 n); /* does n operations, returns their checksum */
    int (*setup)(void); /* optional; nonzero: this CPU or host cannot run it */
};

/* One table per file, ended by a row without a name. */
extern const struct vb_bench vb_kernel[], vb_integer[], vb_control[],
    vb_memory[], vb_fp[], vb_jit[];

/* vb_die - report what the host refused, with errno, and leave with status 1.
 */
void vb_die(const char *what) __attribute__((noreturn));

/* vb_alloc - zeroed, page-aligned and already touched memory; never fails. */
void *vb_alloc(size_t bytes);

/* Fold one more result into a checksum; order matters. */
static inline u64 vb_mix(u64 sum, u64 value)
{
    sum = (sum ^ value) * 0x9e3779b97f4a7c15u;
    return sum ^ (sum >> 29);
}

/* The bits of a double, so that one rounding difference is seen. */
static inline u64 vb_bits(double value)
{
    u64 bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* xorshift64: the only source of "random" data; state must not be 0. */
static inline u64 vb_rand(u64 *state)
{
    u64 x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* Hide a value from the optimiser. */
#define VB_OPAQUE(v) __asm__ volatile("" : "+r"(v) : : "memory")
#define VB_NOINLINE  __attribute__((noinline, noclone))
