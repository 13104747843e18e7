/*
 * strings.c - the C library's string functions against plain loops: all small sizes, alignments, and
 * buffers that end at a page that is not mapped. gcc -O1 -fno-builtin strings.c
 * Which variant runs (SSE2, AVX2, EVEX, rep movsb ...) is chosen by GLIBC_TUNABLES.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <wchar.h>

typedef unsigned char u8;

#define AREA (1 << 20)
static u8 *edge(void) /* the end of AREA bytes, an unmapped page behind, another before */
{
    u8 *p = mmap(NULL, AREA + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + 4096, AREA, PROT_READ | PROT_WRITE))
        exit(2);
    return p + 4096 + AREA;
}

static uint32_t seed = 1;
static uint32_t rnd(void) { return seed = seed * 1664525 + 1013904223, seed >> 8; }
static unsigned long checks;
static void bad(const char *name, size_t n, size_t a)
{
    printf("FAILED: %s of %zu at %zu\n", name, n, a);
    exit(1);
}
#define CHECK(cond, name, n, a)     \
    do {                            \
        checks++;                   \
        if (!(cond))                \
            bad(name, n, a);        \
    } while (0)

static int sign(int x) { return (x > 0) - (x < 0); }

static void copies(u8 *a, u8 *b, u8 *want, size_t n, size_t da, size_t db)
{
    u8 *s = a - n - da, *d = b - n - db;
    for (size_t i = 0; i < n; i++)
        s[i] = (u8)(rnd() | 1);
    memset(want, 0x5a, n + 64);
    for (size_t i = 0; i < n + db; i++)
        d[i] = 0xa5;
    CHECK(memcpy(d, s, n) == d, "memcpy", n, da);
    for (size_t i = 0; i < n; i++)
        if (d[i] != s[i])
            bad("memcpy", n, da);
    for (size_t i = 0; i < db; i++)
        if (d[n + i] != 0xa5)
            bad("memcpy past the end", n, db);
    CHECK(mempcpy(d, s, n) == d + n, "mempcpy", n, da);
    CHECK(memcmp(d, s, n) == 0, "memcmp", n, da);
    if (n) {
        size_t k = rnd() % n;
        u8 old = d[k];
        d[k] = (u8)(rnd() | 1);
        CHECK(sign(memcmp(d, s, n)) == sign(d[k] - s[k]), "memcmp", n, k);
        d[k] = old;
        CHECK(memchr(s, 0, n) == NULL, "memchr of nothing", n, da);
        s[k] = 0;
        CHECK(memchr(s, 0, n) == s + k, "memchr", n, k);
        CHECK(memrchr(s, 0, n) == s + k, "memrchr", n, k);
        CHECK(rawmemchr(s, 0) == s + k, "rawmemchr", n, k);
        CHECK(strlen((char *)s) == k, "strlen", n, k);
        CHECK(strnlen((char *)s, n) == k, "strnlen", n, k);
        u8 c = k ? s[rnd() % k] : 1;
        u8 *first = NULL, *last = NULL;
        for (u8 *p = s; *p; p++)
            if (*p == c) {
                first = first ? first : p;
                last = p;
            }
        CHECK((u8 *)strchr((char *)s, c) == first, "strchr", n, k);
        CHECK((u8 *)strrchr((char *)s, c) == last, "strrchr", n, k);
        CHECK((u8 *)strchrnul((char *)s, c) == (first ? first : s + k), "strchrnul", n, k);
        CHECK((u8 *)stpcpy((char *)d, (char *)s) == d + k, "stpcpy", n, k);
        CHECK(strcmp((char *)d, (char *)s) == 0, "strcmp", n, k);
        CHECK(strncmp((char *)d, (char *)s, n) == 0, "strncmp", n, k);
        CHECK(strcasecmp((char *)d, (char *)s) == 0, "strcasecmp", n, k);
        if (k) {
            size_t m = rnd() % k;
            d[m] ^= 0x80;
            if (d[m])
                CHECK(sign(strcmp((char *)d, (char *)s)) == sign(d[m] - s[m]), "strcmp", n, m);
            CHECK(strncmp((char *)d, (char *)s, m) == 0, "strncmp", n, m);
        }
        u8 *e = d;
        memset(d, 7, n);
        CHECK((u8 *)strncpy((char *)d, (char *)s, n) == d, "strncpy", n, k);
        for (size_t i = 0; i < n; i++)
            if (e[i] != (i < k ? s[i] : 0))
                bad("strncpy", n, i);
    }
    memset(d, (int)n, n);
    for (size_t i = 0; i < n; i++)
        if (d[i] != (u8)n)
            bad("memset", n, i);
}

static void moves(u8 *b, u8 *want, size_t n, long shift)
{
    u8 *d = b - 2 * n - 600;
    for (size_t i = 0; i < 2 * n + 600; i++)
        d[i] = want[i] = (u8)rnd();
    u8 *from = d + 300, *to = from + shift;
    for (size_t i = 0; i < n; i++)
        want[300 + shift + i] = from[i];
    CHECK(memmove(to, from, n) == to, "memmove", n, shift);
    for (size_t i = 0; i < 2 * n + 600; i++)
        if (d[i] != want[i])
            bad("memmove", n, shift);
}

static void wide(u8 *a, size_t n)
{
    wchar_t *s = (wchar_t *)a - n - 1;
    for (size_t i = 0; i < n; i++)
        s[i] = 1 + rnd() % 1000;
    s[n] = 0;
    CHECK(wcslen(s) == n, "wcslen", n, 0);
    if (n) {
        size_t k = rnd() % n;
        wchar_t *w = s;
        while (*w != s[k])
            w++;
        CHECK(wcschr(s, s[k]) == w, "wcschr", n, k);
        CHECK(wmemchr(s, s[k], n) == w, "wmemchr", n, k);
    }
}

int main(void)
{
    u8 *a = edge(), *b = edge(), *want = malloc(AREA + 4096);
    for (size_t n = 0; n < 300; n++)
        for (size_t k = 0; k < 6; k++)
            copies(a, b, want, n, k == 0 ? 0 : rnd() % 70, k <= 1 ? 0 : rnd() % 70);
    for (size_t n = 300; n < 9000; n += 1 + n / 16)
        for (size_t k = 0; k < 3; k++)
            copies(a, b, want, n, k == 0 ? 0 : rnd() % 4096, k <= 1 ? 0 : rnd() % 4096);
    for (size_t n = 10000; n < 400000; n += n / 2 + 1)
        copies(a, b, want, n, rnd() % 100, rnd() % 100);
    for (size_t n = 0; n < 400; n += 1 + n / 32)
        for (int k = 0; k < 4; k++)
            moves(b, want, n, (long)(rnd() % 599) - 299);
    for (size_t n = 1000; n < 300000; n = n * 3 / 2)
        for (int k = 0; k < 4; k++)
            moves(b, want, n, (long)(rnd() % 599) - 299);
    for (size_t n = 0; n < 400; n++)
        wide(a, n);
    printf("strings: %lu checks passed\n", checks);
    return 0;
}
