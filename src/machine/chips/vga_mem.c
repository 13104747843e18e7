/*
 * vga_mem.c - the VGA's memory as the CPU sees it. Source: IBM VGA technical reference (1992),
 * "Graphics Controller" and "Memory Mapping"; FreeVGA's summary of the same registers.
 */
#include "machine/chips/vga.h"

#define SEQ_MAP_MASK 2
#define SEQ_MODE 4
#define SEQ_ODD_EVEN_OFF 0x04
#define SEQ_CHAIN4 0x08
#define GC_SET_RESET 0
#define GC_ENABLE_SET_RESET 1
#define GC_COMPARE 2
#define GC_ROTATE 3
#define GC_READ_PLANE 4
#define GC_MODE 5
#define GC_MISC 6
#define GC_DONT_CARE 7
#define GC_BIT_MASK 8

/* Where the access lands within 64 KiB planes; false: this range is not decoded now. */
static bool decode(const struct vga *v, u32 *off)
{
    static const struct { u32 first, size; } map[4] = {
        { 0, 0x20000 }, { 0, 0x10000 }, { 0x10000, 0x8000 }, { 0x18000, 0x8000 },
    };
    unsigned m = v->gc[GC_MISC] >> 2 & 3;

    if (*off < map[m].first || *off - map[m].first >= map[m].size)
        return false;
    *off -= map[m].first;
    return true;
}

static bool large(const struct vga *v)
{
    return v->dispi[DISPI_ENABLE] & DISPI_ENABLED && v->dispi[DISPI_BPP] != 4;
}

static u32 banked(const struct vga *v, u32 off)
{
    return (off + ((u32)v->dispi[DISPI_BANK] << 16)) & (VGA_MEMORY - 1);
}

u8 vga_mem_read(struct vga *v, u32 off)
{
    if (!decode(v, &off))
        return 0xff;
    if (large(v) || v->seq[SEQ_MODE] & SEQ_CHAIN4)
        return v->mem[banked(v, off)];
    if (!(v->seq[SEQ_MODE] & SEQ_ODD_EVEN_OFF)) {
        u32 plane = (v->gc[GC_READ_PLANE] & 2) | (off & 1);
        return v->mem[(off & ~1u) << 1 | plane];
    }
    u32 at = banked(v, off << 2);
    for (unsigned p = 0; p < 4; p++)
        v->latch[p] = v->mem[at + p];
    if (!(v->gc[GC_MODE] & 0x08))
        return v->latch[v->gc[GC_READ_PLANE] & 3];
    u8 same = 0xff; /* read mode 1: which pixels have the colour */
    for (unsigned p = 0; p < 4; p++)
        if (v->gc[GC_DONT_CARE] >> p & 1)
            same &= (u8)~(v->latch[p] ^ (v->gc[GC_COMPARE] >> p & 1 ? 0xff : 0));
    return same;
}

static u8 logic(const struct vga *v, u8 value, u8 latch)
{
    switch (v->gc[GC_ROTATE] >> 3 & 3) {
    case 1: return value & latch;
    case 2: return value | latch;
    case 3: return value ^ latch;
    default: return value;
    }
}

static u8 rotate(const struct vga *v, u8 value)
{
    unsigned n = v->gc[GC_ROTATE] & 7;

    return (u8)(value >> n | value << (8 - n));
}

static void planar_write(struct vga *v, u32 at, u8 value)
{
    unsigned mode = v->gc[GC_MODE] & 3;
    u8 mask = v->gc[GC_BIT_MASK];

    if (mode == 0)
        value = rotate(v, value);
    if (mode == 3)
        mask &= rotate(v, value);
    for (unsigned p = 0; p < 4; p++) {
        u8 byte, latch = v->latch[p], set = v->gc[GC_SET_RESET] >> p & 1 ? 0xff : 0;
        if (!(v->seq[SEQ_MAP_MASK] >> p & 1))
            continue;
        switch (mode) {
        case 0: byte = v->gc[GC_ENABLE_SET_RESET] >> p & 1 ? set : value; break;
        case 1: v->mem[at + p] = latch; continue;
        case 2: byte = value >> p & 1 ? 0xff : 0; break;
        default: byte = set; break;
        }
        byte = logic(v, byte, latch);
        v->mem[at + p] = (u8)((byte & mask) | (latch & ~mask));
    }
}

void vga_mem_write(struct vga *v, u32 off, u8 value)
{
    if (!decode(v, &off))
        return;
    if (large(v)) {
        v->mem[banked(v, off)] = value;
    } else if (v->seq[SEQ_MODE] & SEQ_CHAIN4) {
        if (v->seq[SEQ_MAP_MASK] >> (off & 3) & 1)
            v->mem[banked(v, off)] = value;
    } else if (!(v->seq[SEQ_MODE] & SEQ_ODD_EVEN_OFF)) {
        for (unsigned p = off & 1; p < 4; p += 2) /* text: planes 0 and 2, or 1 and 3 */
            if (v->seq[SEQ_MAP_MASK] >> p & 1)
                v->mem[(off & ~1u) << 1 | p] = value;
    } else {
        planar_write(v, banked(v, off << 2), value);
    }
}
