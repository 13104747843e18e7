/*
 * payload.c - the kernel inside a bzImage: its ELF file, compressed as the build chose. Whoever boots a kernel by its own
 * start-up code never needs it; Xen's PV loader does. And the kernel inside a .gz file, as boot loaders take it.
 * Source: Linux Documentation/arch/x86/boot.rst (payload_offset, payload_length). The last four bytes of the payload
 * are the size of what comes out; RFC 1952 §2.3.1 (ISIZE) has the same for gzip.
 * Not done: bzip2, LZMA alone and LZO, which no distribution uses any more.
 */
#include "boot/boot.h"
#include "boot/params.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#ifdef HAVE_ZLIB
#include <zlib.h>
#endif
#ifdef HAVE_LZMA
#include <lzma.h>
#endif
#ifdef HAVE_ZSTD
#include <zstd.h>
#endif
#ifdef HAVE_LZ4
#include <lz4.h>
#endif

#define PAYLOAD_MAX (512u << 20) /* what may come out */

static u32 get32(const u8 *p)
{
    u32 v;
    memcpy(&v, p, 4);
    return v;
}

/* Each: false, or exactly out_len bytes came out. */
#ifdef HAVE_ZLIB
static bool unpack_gzip(const u8 *in, size_t len, u8 *out, size_t out_len)
{
    z_stream z = { .next_in = (u8 *)in, .avail_in = (unsigned)len, .next_out = out, .avail_out = (unsigned)out_len };
    if (inflateInit2(&z, 15 + 16) != Z_OK)
        return false;
    bool ok = inflate(&z, Z_FINISH) == Z_STREAM_END && !z.avail_out;
    inflateEnd(&z);
    return ok;
}
#endif
#ifdef HAVE_LZMA
static bool unpack_xz(const u8 *in, size_t len, u8 *out, size_t out_len)
{
    u64 memory = 256u << 20;
    size_t from = 0, to = 0;
    return lzma_stream_buffer_decode(&memory, 0, NULL, in, &from, len, out, &to, out_len) == LZMA_OK && to == out_len;
}
#endif
#ifdef HAVE_ZSTD
static bool unpack_zstd(const u8 *in, size_t len, u8 *out, size_t out_len)
{
    /* As a stream: behind the frame there are four more bytes, which ZSTD_decompress() would take for another. */
    ZSTD_DStream *s = ZSTD_createDStream();
    ZSTD_inBuffer from = { in, len, 0 };
    ZSTD_outBuffer to = { out, out_len, 0 };
    size_t left = 1;
    while (s && left && !ZSTD_isError(left)) {
        size_t was = from.pos + to.pos;
        left = ZSTD_decompressStream(s, &to, &from);
        if (left && from.pos + to.pos == was)
            break;
    }
    ZSTD_freeDStream(s);
    return s && !left && to.pos == out_len;
}
#endif
#ifdef HAVE_LZ4
/* The "legacy frame": blocks of at most 8 MiB, each behind its compressed size. */
static bool unpack_lz4(const u8 *in, size_t len, u8 *out, size_t out_len)
{
    size_t at = 4, to = 0;
    while (to < out_len) {
        if (len - at < 4)
            return false;
        u32 n = get32(in + at);
        at += 4;
        if (n > len - at)
            return false;
        int got = LZ4_decompress_safe((const char *)in + at, (char *)out + to, (int)n,
                                      (int)MIN(out_len - to, (size_t)8 << 20));
        if (got <= 0)
            return false;
        at += n;
        to += (size_t)got;
    }
    return true;
}
#endif

static const struct packing {
    const char *name, *package;
    u8 magic[6];
    unsigned magic_len;
    bool (*unpack)(const u8 *in, size_t len, u8 *out, size_t out_len); /* NULL: built without it */
} packings[] = {
    { "gzip", "zlib1g-dev", { 0x1f, 0x8b }, 2,
#ifdef HAVE_ZLIB
      unpack_gzip
#else
      NULL
#endif
    },
    { "xz", "liblzma-dev", { 0xfd, '7', 'z', 'X', 'Z', 0 }, 6,
#ifdef HAVE_LZMA
      unpack_xz
#else
      NULL
#endif
    },
    { "zstd", "libzstd-dev", { 0x28, 0xb5, 0x2f, 0xfd }, 4,
#ifdef HAVE_ZSTD
      unpack_zstd
#else
      NULL
#endif
    },
    { "lz4", "liblz4-dev", { 0x02, 0x21, 0x4c, 0x18 }, 4,
#ifdef HAVE_LZ4
      unpack_lz4
#else
      NULL
#endif
    },
};

bool payload_is_gzip(const u8 *image, u64 size)
{
    return size > 2 && image[0] == 0x1f && image[1] == 0x8b;
}

int payload_open(struct payload *p, const char *name, const u8 *image, u64 size, char *err)
{
    *p = (struct payload){ .elf = image, .size = size };
    u64 at = 0, len = size;
    if (bzimage_probe(image, size)) {
        if (size < BP_PAYLOAD_LENGTH + 4)
            goto damaged;
        u64 setup = ((image[BP_SETUP_SECTS] ? image[BP_SETUP_SECTS] : 4u) + 1u) * 512ull;
        at = setup + get32(image + BP_PAYLOAD_OFFSET);
        len = get32(image + BP_PAYLOAD_LENGTH);
    } else if (!payload_is_gzip(image, size)) {
        return 0;
    }
    if (len < 18 || len > 0xffffffff || at > size || len > size - at)
        goto damaged;

    const u8 *in = image + at;
    if (elf_probe(in, len)) {
        *p = (struct payload){ .elf = in, .size = len };
        return 0;
    }
    const struct packing *k = packings;
    while (k < packings + ARRAY_SIZE(packings) && memcmp(in, k->magic, k->magic_len))
        k++;
    if (k == packings + ARRAY_SIZE(packings))
        return boot_fail(err, -ENOEXEC, "%s: its kernel is compressed in a way that is not known here (%02x %02x); use one "
                         "with gzip, xz, zstd or lz4", name, in[0], in[1]);
    if (!k->unpack)
        return boot_fail(err, -ENOEXEC, "%s: its kernel is compressed with %s, which this vitro was built without; install "
                         "%s and build again", name, k->name, k->package);
    u32 out_len = get32(in + len - 4);
    if (!out_len || out_len > PAYLOAD_MAX)
        goto damaged;
    p->unpacked = malloc(out_len);
    if (!p->unpacked)
        return boot_fail(err, -ENOMEM, "%s: no memory to unpack its kernel (%u MiB)", name, out_len >> 20);
    if (!k->unpack(in, len, p->unpacked, out_len)) {
        payload_close(p);
        return boot_fail(err, -EINVAL, "%s: damaged: its kernel does not unpack (%s); get the file again", name, k->name);
    }
    p->elf = p->unpacked;
    p->size = out_len;
    return 0;
damaged:
    return boot_fail(err, -EINVAL, "%s: damaged: no compressed kernel where there should be one; get the file again", name);
}

void payload_close(struct payload *p)
{
    free(p->unpacked);
    *p = (struct payload){ 0 };
}
