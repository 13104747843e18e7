/* report.c - COM1 output, report lines, and the way out. Polled 16550; eight bits a character, the rest as firmware left it. */
#include "lib/guest.h"

#define COM1       0x3f8
#define DEBUG_EXIT 0x501

static unsigned nr_passed, nr_failed;

void *memset(void *d, int c, size_t n)
{
    void *p = d;
    asm volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
    return d;
}

void *memcpy(void *d, const void *s, size_t n)
{
    void *p = d;
    asm volatile("rep movsb" : "+D"(p), "+S"(s), "+c"(n)::"memory");
    return d;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const u8 *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i])
            return x[i] - y[i];
    return 0;
}

static void put_char(char c)
{
    static bool set_up;
    if (!set_up)
        outb(COM1 + 3, 3); /* LCR: 8 bits, no parity, 1 stop bit. Bochs leaves it at 5 */
    set_up = true;
    for (int i = 0; i < 100000 && !(inb(COM1 + 5) & 0x20); i++)
        ;
    outb(COM1, (u8)c);
}

static int put_number(char *out, u64 v, unsigned base, int width, char pad, bool neg)
{
    char tmp[24];
    int n = 0, len = 0;
    do
        tmp[n++] = "0123456789abcdef"[v % base];
    while (v /= base);
    if (neg)
        tmp[n++] = '-';
    while (n < width)
        tmp[n++] = pad;
    while (n)
        out[len++] = tmp[--n];
    return len;
}

/* %s %c %d %u %x %p, widths with 0 padding, l and ll and z ignored except for the size. */
static int vformat(char *buf, size_t size, const char *fmt, va_list ap)
{
    size_t n = 0;
    for (; *fmt && n + 1 < size; fmt++) {
        if (*fmt != '%') {
            buf[n++] = *fmt;
            continue;
        }
        char pad = ' ';
        int width = 0, longs = 0;
        if (*++fmt == '0')
            pad = *fmt++;
        while (*fmt >= '0' && *fmt <= '9')
            width = width * 10 + *fmt++ - '0';
        while (*fmt == 'l' || *fmt == 'z')
            longs++, fmt++;
        if (*fmt == 's') {
            for (const char *s = va_arg(ap, const char *); *s && n + 1 < size; s++)
                buf[n++] = *s;
        } else if (*fmt == 'c') {
            buf[n++] = (char)va_arg(ap, int);
        } else if (n + 32 >= size) {
            break; /* no room for any number */
        } else if (*fmt == 'd') {
            s64 v = longs ? va_arg(ap, s64) : va_arg(ap, int);
            n += put_number(buf + n, v < 0 ? -(u64)v : (u64)v, 10, width, pad, v < 0);
        } else if (*fmt == 'u' || *fmt == 'x' || *fmt == 'p') {
            u64 v = longs || *fmt == 'p' ? va_arg(ap, u64) : va_arg(ap, unsigned);
            n += put_number(buf + n, v, *fmt == 'u' ? 10 : 16, width, pad, false);
        } else {
            buf[n++] = *fmt;
        }
    }
    buf[n] = 0;
    return (int)n;
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
    char buf[512];
    vformat(buf, sizeof(buf), fmt, ap);
    for (char *p = buf; *p; p++) {
        if (*p == '\n')
            put_char('\r');
        put_char(*p);
    }
}

void print(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vprint(fmt, ap);
    va_end(ap);
}

void report(const char *name, bool cond)
{
    *(cond ? &nr_passed : &nr_failed) += 1;
    print("%s: %s\n", cond ? "PASS" : "FAIL", name);
}

void report_eq(const char *name, u64 got, u64 want)
{
    if (got != want)
        print("# %s: got %lx, want %lx\n", name, got, want);
    report(name, got == want);
}

void reportf(bool cond, const char *fmt, ...)
{
    char buf[256];
    va_list ap;
    va_start(ap, fmt);
    vformat(buf, sizeof(buf), fmt, ap);
    va_end(ap);
    report(buf, cond);
}

void skip(const char *name, const char *why)
{
    print("SKIP: %s (%s)\n", name, why);
}

void guest_exit(void)
{
    print("SUMMARY: %u passed, %u failed\n", nr_passed, nr_failed);
    outl(DEBUG_EXIT, nr_failed || !nr_passed);
    for (;;)
        asm volatile("cli; hlt");
}

void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vprint(fmt, ap);
    va_end(ap);
    report("no unexpected trap", false);
    guest_exit();
}
