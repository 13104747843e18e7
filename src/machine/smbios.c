/*
 * smbios.c - System Management BIOS structures. Source: DMTF DSP0134 3.0: §5.2.2 (64-bit entry
 * point), §7.1 BIOS, §7.2 system, §7.4 chassis, §7.5 processor, §7.17 and 7.18 memory, §7.20 mapped
 * address, §7.33 boot, §7.45 end. All of what §6.2 requires, no more.
 */
#include "machine/smbios.h"
#include "machine/layout.h"
#include <string.h>

struct build {
    u8 *buf, *length; /* length: of the structure that is open */
    size_t len, cap;
    u8 nr_strings;
    char strings[160];
    size_t strings_len;
    u16 handle;
    bool failed;
};

static void put(struct build *b, u64 value, unsigned size)
{
    if (b->failed || size > b->cap - b->len) {
        b->failed = true;
        return;
    }
    memcpy(b->buf + b->len, &value, size);
    b->len += size;
    if (b->length)
        *b->length = (u8)(*b->length + size);
}

/* A structure: header, then put() and string(), then end(). Returns its handle. */
static u16 begin(struct build *b, u8 type)
{
    b->nr_strings = 0;
    b->strings_len = 0;
    b->length = NULL;
    put(b, type, 1);
    put(b, 4, 1);
    if (!b->failed)
        b->length = b->buf + b->len - 1;
    u16 handle = b->handle++;
    b->length ? *b->length = 2 : 0; /* what is put from here on is counted */
    put(b, handle, 2);
    return handle;
}

/* The number of a string, which follows the structure. */
static void string(struct build *b, const char *s)
{
    size_t len = strlen(s) + 1;
    bug_on(b->strings_len + len > sizeof(b->strings));
    memcpy(b->strings + b->strings_len, s, len);
    b->strings_len += len;
    put(b, ++b->nr_strings, 1);
}

static void end(struct build *b)
{
    b->length = NULL;
    for (size_t i = 0; i < b->strings_len; i++)
        put(b, (u8)b->strings[i], 1);
    put(b, 0, b->nr_strings ? 1 : 2);
}

static void bios(struct build *b)
{
    begin(b, 0);
    string(b, "Vitro");
    string(b, VITRO_VERSION);
    put(b, 0xe000, 2); /* starting segment */
    string(b, "01/01/2026");
    put(b, 0, 1);      /* ROM size: 64 KiB */
    put(b, BIT(3), 8); /* characteristics are not given */
    put(b, 0, 1);
    put(b, BIT(4) | BIT(2), 1); /* a virtual machine; content may be fetched by name */
    put(b, 0xffff, 2); /* release of BIOS and controller: none */
    put(b, 0xffff, 2);
    end(b);
}

static void system_info(struct build *b, const struct smbios_config *c)
{
    begin(b, 1);
    string(b, "Vitro");
    string(b, "Vitro PC");
    string(b, VITRO_VERSION);
    put(b, 0, 1); /* serial number */
    for (unsigned i = 0; i < 16; i++)
        put(b, c->uuid[i], 1);
    put(b, 6, 1); /* woken by the power switch */
    put(b, 0, 2); /* SKU, family */
    end(b);
}

static void chassis(struct build *b)
{
    begin(b, 3);
    string(b, "Vitro");
    put(b, 1, 1);        /* type: other */
    put(b, 0, 3);        /* version, serial, tag */
    put(b, 0x02030303, 4); /* states: safe, safe, safe; security: unknown */
    put(b, 0, 4);
    put(b, 0, 4);        /* height, cords, elements, their length */
    put(b, 0, 1);
    end(b);
}

static void processor(struct build *b, unsigned n)
{
    char socket[24] = "CPU ";
    socket[4] = (char)('0' + n / 100 % 10);
    socket[5] = (char)('0' + n / 10 % 10);
    socket[6] = (char)('0' + n % 10);
    begin(b, 4);
    string(b, socket);
    put(b, 3, 1);  /* central processor */
    put(b, 1, 1);  /* family: other */
    string(b, "Vitro");
    put(b, 0, 8);  /* ID */
    put(b, 0, 1);  /* version */
    put(b, 0, 1);  /* voltage */
    put(b, 0, 2);  /* external clock, speeds: unknown */
    put(b, 2000, 2);
    put(b, 2000, 2);
    put(b, 0x41, 1); /* populated, enabled */
    put(b, 1, 1);    /* upgrade: other */
    put(b, 0xffff, 2); /* caches: not given */
    put(b, 0xffff, 2);
    put(b, 0xffff, 2);
    put(b, 0, 3);    /* serial, tag, part */
    put(b, 1, 1);    /* cores, enabled, threads */
    put(b, 1, 1);
    put(b, 1, 1);
    put(b, 2, 2);    /* characteristics: unknown */
    put(b, 1, 2);    /* family */
    end(b);
}

static void mapped(struct build *b, u16 array, u64 from, u64 to)
{
    begin(b, 19);
    bool far = to >> 10 > 0xffffffff;
    put(b, far ? 0xffffffff : from >> 10, 4);
    put(b, far ? 0xffffffff : (to >> 10) - 1, 4);
    put(b, array, 2);
    put(b, 1, 1);
    put(b, far ? from : 0, 8);
    put(b, far ? to - 1 : 0, 8);
    end(b);
}

static void memory(struct build *b, const struct smbios_config *c)
{
    u64 mib = c->ram_size >> 20, low = MIN(c->ram_size, LAYOUT_LOW_RAM_MAX);
    bool large = mib > 0x7ffe;
    u16 array = begin(b, 16);
    put(b, 1, 1); /* location: other; use: system memory; no ECC */
    put(b, 3, 1);
    put(b, 3, 1);
    put(b, mib >= 1 << 21 ? 0x80000000 : mib << 10, 4);
    put(b, 0xfffe, 2); /* no error information */
    put(b, 1, 2);      /* devices */
    put(b, mib >= 1 << 21 ? c->ram_size : 0, 8);
    end(b);

    begin(b, 17);
    put(b, array, 2);
    put(b, 0xfffe, 2);
    put(b, 0xffff, 2); /* widths: unknown */
    put(b, 0xffff, 2);
    put(b, large ? 0x7fff : mib, 2);
    put(b, 9, 1);      /* DIMM */
    put(b, 0, 1);
    string(b, "DIMM 0");
    put(b, 0, 1);
    put(b, 7, 1);      /* RAM */
    put(b, 2, 2);      /* detail: other */
    put(b, 0, 2);      /* speed */
    put(b, 0, 4);      /* manufacturer, serial, tag, part */
    put(b, 0, 1);
    put(b, large ? mib : 0, 4);
    put(b, 0, 2);
    end(b);

    mapped(b, array, 0, low);
    if (c->ram_size > low)
        mapped(b, array, LAYOUT_4G, LAYOUT_4G + c->ram_size - low);
}

size_t smbios_build(const struct smbios_config *c, u8 anchor[SMBIOS_ANCHOR_SIZE], void *buf,
                    size_t cap)
{
    struct build b = { .buf = buf, .cap = cap };

    bios(&b);
    system_info(&b, c);
    chassis(&b);
    for (unsigned i = 0; i < c->nr_cpus; i++)
        processor(&b, i);
    memory(&b, c);
    begin(&b, 32);
    put(&b, 0, 6);
    put(&b, 0, 1); /* no errors detected */
    end(&b);
    begin(&b, 127);
    end(&b);
    if (b.failed)
        return 0;

    memset(anchor, 0, SMBIOS_ANCHOR_SIZE);
    memcpy(anchor, "_SM3_", 5);
    anchor[6] = SMBIOS_ANCHOR_SIZE;
    anchor[7] = 3; /* version 3.0 */
    anchor[10] = 1;
    u32 len = (u32)b.len;
    memcpy(anchor + 12, &len, 4);
    u8 sum = 0;
    for (unsigned i = 0; i < SMBIOS_ANCHOR_SIZE; i++)
        sum = (u8)(sum + anchor[i]);
    anchor[5] = (u8)-sum;
    return b.len;
}
