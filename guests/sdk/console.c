/*
 * console.c - print() and what it needs. Each print is one console_write().
 *
 * SPDX-License-Identifier: 0BSD
 */
#include "sdk/sdk.h"

void *memset(void *d, int c, size_t n)
{
    void *p = d;
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
    return d;
}
void *memcpy(void *d, const void *s, size_t n)
{
    void *p = d;
    __asm__ volatile("rep movsb" : "+D"(p), "+S"(s), "+c"(n)::"memory");
    return d;
}
int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}
size_t strlen(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

struct out {
    char *buf;
    size_t at, size;
};
static void put(struct out *o, char c)
{
    if (o->at + 1 < o->size)
        o->buf[o->at] = c;
    o->at++;
}
static void put_number(struct out *o, uint64_t v, unsigned base, unsigned width, char pad, bool minus)
{
    char digit[24];
    unsigned n = 0;

    do {
        digit[n++] = "0123456789abcdef"[v % base];
    } while (v /= base);
    if (minus && pad == '0')
        put(o, '-');
    for (unsigned i = n + minus; i < width; i++)
        put(o, pad);
    if (minus && pad != '0')
        put(o, '-');
    while (n)
        put(o, digit[--n]);
}

int vformat(char *buf, size_t size, const char *fmt, va_list ap)
{
    struct out o = { buf, 0, size };

    for (; *fmt; fmt++) {
        unsigned width = 0, longs = 0;
        char pad = ' ';
        if (*fmt != '%') {
            put(&o, *fmt);
            continue;
        }
        if (*++fmt == '0')
            pad = *fmt++;
        while (*fmt >= '0' && *fmt <= '9')
            width = width * 10 + (unsigned)(*fmt++ - '0');
        while (*fmt == 'l' || *fmt == 'z') {
            longs++;
            fmt++;
        }
        switch (*fmt) {
        case 'd': {
            int64_t v = longs ? va_arg(ap, int64_t) : va_arg(ap, int);
            put_number(&o, v < 0 ? -(uint64_t)v : (uint64_t)v, 10, width, pad, v < 0);
            break;
        }
        case 'u':
        case 'x':
            put_number(&o, longs ? va_arg(ap, uint64_t) : va_arg(ap, unsigned), *fmt == 'x' ? 16 : 10, width, pad, false);
            break;
        case 'p':
            put_number(&o, (uint64_t)va_arg(ap, void *), 16, width, pad, false);
            break;
        case 'c':
            put(&o, (char)va_arg(ap, int));
            break;
        case 's': {
            const char *s = va_arg(ap, const char *);
            size_t len = strlen(s);
            while (*s)
                put(&o, *s++);
            for (; len < width; len++)
                put(&o, ' ');
            break;
        }
        case '\0':
            fmt--;
            break;
        default:
            put(&o, *fmt);
        }
    }
    if (size)
        buf[o.at < size ? o.at : size - 1] = 0;
    return (int)o.at;
}

int format(char *buf, size_t size, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vformat(buf, size, fmt, ap);
    va_end(ap);
    return n;
}

static void vprint(const char *fmt, va_list ap)
{
    char line[1024], out[2 * sizeof(line)];
    unsigned n = 0;

    vformat(line, sizeof(line), fmt, ap);
    for (const char *s = line; *s; s++) { /* a terminal has a carriage to return */
        if (*s == '\n')
            out[n++] = '\r';
        out[n++] = *s;
    }
    if (n)
        console_write(out, n);
}

void print(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vprint(fmt, ap);
    va_end(ap);
}

void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vprint(fmt, ap);
    va_end(ap);
    leave(1);
}

static int failed;

void check(bool ok, const char *fmt, ...)
{
    char what[200];
    va_list ap;

    va_start(ap, fmt);
    vformat(what, sizeof(what), fmt, ap);
    va_end(ap);
    failed += !ok;
    print("%s - %s\n", ok ? "ok" : "FAILED", what);
}

int check_failed(void)
{
    return failed;
}
