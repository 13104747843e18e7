/*
 * fuzz.h - a harness is a file with LLVMFuzzerTestOneInput() and, at its end, FUZZ_MAIN(). `make fuzz` builds it with
 * clang's libFuzzer; an ordinary build gives it a main() that tries the corpus and random inputs, the same ones each time, or
 * the files it is told:  test_fuzz_X [FILE]...   FUZZ_RUNS=N for more of them.
 */
#pragma once
#include "tests/lib/check.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static inline int fuzz_file(const char *path)
{
    static uint8_t buf[1 << 16];
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return 1;
    }
    size_t n = fread(buf, 1, sizeof(buf), f);
    fclose(f);
    LLVMFuzzerTestOneInput(buf, n);
    return 0;
}

/* What libFuzzer found worth keeping: tests/fuzz/corpus/NAME, a line of hexadecimal digits an input. A harness may have none. */
static inline void fuzz_corpus(const char *name)
{
    static uint8_t buf[1 << 16];
    char path[128], *line = NULL;
    size_t cap = 0;
    ssize_t digits;

    snprintf(path, sizeof(path), "tests/fuzz/corpus/%s", strchr(name, '/') + 1);
    FILE *f = fopen(path, "r"); /* from the top of the repository, where tests run */
    while (f && (digits = getline(&line, &cap, f)) >= 0) {
        size_t n = 0;
        while (n < sizeof(buf) && 2 * n + 1 < (size_t)digits && sscanf(line + 2 * n, "%2hhx", &buf[n]) == 1)
            n++;
        LLVMFuzzerTestOneInput(buf, n);
    }
    free(line);
    if (f)
        fclose(f);
}

static inline int fuzz_main(const char *name, unsigned runs, size_t max, int argc, char **argv)
{
    static uint8_t buf[1 << 16];
    uint64_t state = 0x2545f4914f6cdd1dull;
    const char *more = getenv("FUZZ_RUNS");
    if (more)
        runs = (unsigned)atoi(more);
    for (int i = 1; i < argc; i++)
        if (fuzz_file(argv[i]))
            return 1;
    if (argc < 2)
        fuzz_corpus(name);
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
