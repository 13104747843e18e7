/* aml.c - see aml.h. Pure: writes only into the buffer it was given. */
#include "machine/aml.h"
#include <stdlib.h>
#include <string.h>

static void put(struct aml *a, const void *bytes, size_t n)
{
    if (a->failed || n > a->cap - a->len) {
        a->failed = true;
        return;
    }
    memcpy(a->buf + a->len, bytes, n);
    a->len += n;
}

static void put8(struct aml *a, u8 v) { put(a, &v, 1); }
static void put16(struct aml *a, u16 v) { put(a, &v, 2); }
static void put32(struct aml *a, u32 v) { put(a, &v, 4); }
static void put64(struct aml *a, u64 v) { put(a, &v, 8); }

/* -- Containers ----------------------------------------------------------- */

static void open_container(struct aml *a, bool resources)
{
    if (a->depth == ARRAY_SIZE(a->open)) {
        a->failed = true;
        return;
    }
    a->open[a->depth].at = a->len;
    a->open[a->depth++].resources = resources;
}

/* PkgLength (§20.2.4): counts itself; 6 bits in one byte, or 4 bits and 8 more for each further
 * one. */
static void insert_length(struct aml *a, size_t at)
{
    size_t body = a->len - at;
    u8 enc[4];
    size_t n = body + 1 < 64 ? 1 : body + 2 < 1 << 12 ? 2 : body + 3 < 1 << 20 ? 3 : 4;
    size_t total = body + n;
    if (n == 1) {
        enc[0] = (u8)total;
    } else {
        enc[0] = (u8)((n - 1) << 6 | (total & 15));
        for (size_t i = 1; i < n; i++)
            enc[i] = (u8)(total >> (4 + (i - 1) * 8));
    }
    put(a, enc, n); /* grows the buffer; then make room in front */
    if (a->failed)
        return;
    memmove(a->buf + at + n, a->buf + at, body);
    memcpy(a->buf + at, enc, n);
}

void aml_end(struct aml *a)
{
    if (a->failed || !a->depth) {
        a->failed = true;
        return;
    }
    size_t at = a->open[--a->depth].at;
    if (a->open[a->depth].resources) {
        put8(a, 0x79); /* end tag, checksum not used */
        put8(a, 0);
        u16 size = (u16)(a->len - at - 3);
        if (!a->failed)
            memcpy(a->buf + at + 1, &size, 2);
    }
    insert_length(a, at);
}

/* -- Names ---------------------------------------------------------------- */

/* "\\_SB.PCI0": root, then segments padded with '_' to four characters. */
void aml_ref(struct aml *a, const char *path)
{
    char seg[8 * 4];
    unsigned n = 0;
    if (*path == '\\') {
        put8(a, '\\');
        path++;
    }
    while (*path && n < 8) {
        for (unsigned i = 0; i < 4; i++)
            seg[n * 4 + i] = *path && *path != '.' ? *path++ : '_';
        n++;
        if (*path == '.')
            path++;
    }
    if (n == 0) {
        put8(a, 0);
    } else if (n == 2) {
        put8(a, 0x2e);
    } else if (n > 2) {
        put8(a, 0x2f);
        put8(a, (u8)n);
    }
    put(a, seg, n * 4);
}

void aml_scope(struct aml *a, const char *path)
{
    put8(a, 0x10);
    open_container(a, false);
    aml_ref(a, path);
}

void aml_device(struct aml *a, const char *name)
{
    put8(a, 0x5b);
    put8(a, 0x82);
    open_container(a, false);
    aml_ref(a, name);
}

void aml_method(struct aml *a, const char *name, unsigned nr_args)
{
    put8(a, 0x14);
    open_container(a, false);
    aml_ref(a, name);
    put8(a, (u8)nr_args);
}

void aml_package(struct aml *a, unsigned nr_elements)
{
    put8(a, 0x12);
    open_container(a, false);
    put8(a, (u8)nr_elements);
}

void aml_if_name(struct aml *a, const char *name)
{
    put8(a, 0xa0);
    open_container(a, false);
    aml_ref(a, name);
}

void aml_name(struct aml *a, const char *name)
{
    put8(a, 0x08);
    aml_ref(a, name);
}

void aml_return(struct aml *a)
{
    put8(a, 0xa4);
}

void aml_store_arg0(struct aml *a, const char *name)
{
    put8(a, 0x70);
    put8(a, 0x68);
    aml_ref(a, name);
}

/* -- Values --------------------------------------------------------------- */

void aml_int(struct aml *a, u64 value)
{
    if (value < 2) {
        put8(a, (u8)value);
    } else if (value <= 0xff) {
        put8(a, 0x0a);
        put8(a, (u8)value);
    } else if (value <= 0xffff) {
        put8(a, 0x0b);
        put16(a, (u16)value);
    } else if (value <= 0xffffffff) {
        put8(a, 0x0c);
        put32(a, (u32)value);
    } else {
        put8(a, 0x0e);
        put64(a, value);
    }
}

void aml_string(struct aml *a, const char *s)
{
    put8(a, 0x0d);
    put(a, s, strlen(s) + 1);
}

/* Three letters of 5 bits, four hex digits, big-endian (§19.3.4). */
void aml_eisa_id(struct aml *a, const char *id)
{
    u32 v = (u32)(id[0] - 0x40) << 26 | (u32)(id[1] - 0x40) << 21 | (u32)(id[2] - 0x40) << 16 |
            (u32)strtoul(id + 3, NULL, 16);
    put8(a, 0x0c);
    put32(a, __builtin_bswap32(v));
}

/* -- Resources ------------------------------------------------------------ */

void aml_resources(struct aml *a)
{
    put8(a, 0x11);
    open_container(a, true);
    put8(a, 0x0b); /* size, a word: filled in by aml_end() */
    put16(a, 0);
}

void aml_res_io(struct aml *a, u16 port, u8 len)
{
    put8(a, 0x47);
    put8(a, 1); /* decodes 16 bits */
    put16(a, port);
    put16(a, port);
    put8(a, 1);
    put8(a, len);
}

void aml_res_irq(struct aml *a, unsigned irq)
{
    put8(a, 0x22); /* edge, active high */
    put16(a, (u16)BIT(irq));
}

void aml_res_level_gsi(struct aml *a, u32 gsi)
{
    put8(a, 0x89);
    put16(a, 6);
    put8(a, 0x09);
    put8(a, 1);
    put32(a, gsi);
}

void aml_res_fixed_mem(struct aml *a, u32 base, u32 size)
{
    put8(a, 0x86);
    put16(a, 9);
    put8(a, 1); /* writable */
    put32(a, base);
    put32(a, size);
}

/* Flags of all ranges below: minimum and maximum fixed, positive decode, producer. */
static void word_range(struct aml *a, u8 type, u8 type_flags, u16 first, u16 last)
{
    put8(a, 0x88);
    put16(a, 13);
    put8(a, type);
    put8(a, 0x0c);
    put8(a, type_flags);
    put16(a, 0);
    put16(a, first);
    put16(a, last);
    put16(a, 0);
    put16(a, (u16)(last - first + 1));
}

void aml_res_bus_range(struct aml *a, u16 first, u16 last)
{
    word_range(a, 2, 0, first, last);
}

void aml_res_io_range(struct aml *a, u16 first, u16 last)
{
    word_range(a, 1, 3, first, last);
}

void aml_res_mem_range(struct aml *a, u32 first, u32 last)
{
    put8(a, 0x87);
    put16(a, 23);
    put8(a, 0);
    put8(a, 0x0c);
    put8(a, 1); /* writable, not cacheable */
    put32(a, 0);
    put32(a, first);
    put32(a, last);
    put32(a, 0);
    put32(a, last - first + 1);
}

void aml_res_mem64_range(struct aml *a, u64 first, u64 last)
{
    put8(a, 0x8a);
    put16(a, 43);
    put8(a, 0);
    put8(a, 0x0c);
    put8(a, 1);
    put64(a, 0);
    put64(a, first);
    put64(a, last);
    put64(a, 0);
    put64(a, last - first + 1);
}
