/*
 * fuzz.h - a harness is a file with LLVMFuzzerTestOneInput() and, at its end, FUZZ_MAIN(). `make fuzz` builds it with
 * clang's libFuzzer; an ordinary build gives it a main() that tries random inputs, the same ones each time, or the files it
 * is told:  test_fuzz_X [FILE]...   FUZZ_RUNS=N for more of them.
 */
#pragma once
#include "tests/lib/check.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline uint64_t fuzz_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* Bytes that are often small, often the same: what tables of indexes and lengths look like. */
static inline void fuzz_fill(uint64_t *state, uint8_t *to, size_t len)
{
    for (size_t i = 0; i < len;) {
        uint64_t r = fuzz_random(state);
        unsigned run = 1 + (r >> 8) % 8, kind = r % 6;
        for (unsigned n = 0; n < run && i < len; n++) {
            uint64_t v = fuzz_random(state) >> 16;
            to[i++] = (uint8_t)(kind == 0 ? 0 : kind == 1 ? v % 4 : kind == 2 ? v % 16 : kind == 3 ? 0xff : v);
        }
    }
}

static inline int fuzz_main(const char *name, unsigned runs, size_t max, int argc, char **argv)
{
    static uint8_t buf[1 << 16];
    uint64_t state = 0x2545f4914f6cdd1dull;
    const char *more = getenv("FUZZ_RUNS");
    if (more)
        runs = (unsigned)atoi(more);
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (!f) {
            perror(argv[i]);
            return 1;
        }
        size_t n = fread(buf, 1, sizeof(buf), f);
        fclose(f);
        LLVMFuzzerTestOneInput(buf, n);
    }
    for (unsigned i = 0; argc < 2 && i < runs; i++) {
        size_t len = 1 + fuzz_random(&state) % max;
        fuzz_fill(&state, buf, len);
        LLVMFuzzerTestOneInput(buf, len);
    }
    CHECK(1); /* it would not be here otherwise */
    return check_done(name);
}

#ifdef LIBFUZZER
#define FUZZ_MAIN(name, runs, max)
#else
#define FUZZ_MAIN(name, runs, max) \
    int main(int argc, char **argv) { return fuzz_main(name, runs, max, argc, argv); }
#endif
