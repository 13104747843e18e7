/*
 * check.h - the whole test framework: CHECK() counts, check_done() prints the summary line that
 * tests/run-all adds up (`name: N passed, M failed`) and gives main's exit status.
 */
#pragma once
#include <stdio.h>

static unsigned check_nr_passed, check_nr_failed;

#define CHECK_MSG(cond, ...)                                                   \
    do {                                                                       \
        if (cond) {                                                            \
            check_nr_passed++;                                                 \
        } else {                                                               \
            check_nr_failed++;                                                 \
            printf("%s:%d: failed: %s", __FILE__, __LINE__, #cond);            \
            printf(": " __VA_ARGS__);                                          \
            printf("\n");                                                      \
        }                                                                      \
    } while (0)
#define CHECK(cond)                                                            \
    do {                                                                       \
        if (cond) {                                                            \
            check_nr_passed++;                                                 \
        } else {                                                               \
            check_nr_failed++;                                                 \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #cond);          \
        }                                                                      \
    } while (0)

static inline int check_done(const char *name)
{
    printf("%s: %u passed, %u failed\n", name, check_nr_passed,
           check_nr_failed);
    return check_nr_failed != 0;
}
