/*
 * vga.c - VGA registers, and those of the Bochs display interface. Source: IBM VGA technical
 * reference (1992) for the registers; QEMU docs/specs/standard-vga.rst and Bochs' VBE specification
 * ("dispi") for 0x1ce/0x1cf and the PCI function.
 * Not modelled: monochrome adapters' ports beyond what selects them, the panning of split screens,
 * timing (retrace is a clock of 60 Hz), interrupts.
 * Threads: vCPU threads, and whoever draws; under v->lock.
 */
#include "machine/chips/vga.h"
#include "machine/layout.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define DISPI_ID_OLDEST 0xb0c0
#define DISPI_ID_NOW 0xb0c5
#define FRAME_NS (NS_PER_SEC / 60)
#define CRTC_PROTECT 0x80 /* of register 0x11: registers 0 to 7 are read-only */

/* -- Bochs display interface -------------------------------------------------------------------- */

static u32 bytes_per_line(const struct vga *v, u32 pixels)
{
    return pixels * ((v->dispi[DISPI_BPP] + 7u) / 8);
}

static void dispi_enable(struct vga *v, u16 value)
{
    u16 *d = v->dispi;

    if (value & DISPI_ENABLED && !(d[DISPI_ENABLE] & DISPI_ENABLED)) {
        d[DISPI_VIRT_WIDTH] = d[DISPI_XRES];
        d[DISPI_X_OFFSET] = d[DISPI_Y_OFFSET] = 0;
        u32 line = bytes_per_line(v, d[DISPI_XRES]);
        d[DISPI_VIRT_HEIGHT] = line ? (u16)MIN(VGA_MEMORY / line, 0xffffu) : 0;
        if (!(value & DISPI_NOCLEAR))
            memset(v->mem, 0, VGA_MEMORY);
    }
    if (!(value & DISPI_ENABLED))
        d[DISPI_BANK] = 0;
    d[DISPI_ENABLE] = value & (DISPI_ENABLED | DISPI_GETCAPS | DISPI_8BIT_DAC | DISPI_LFB | DISPI_NOCLEAR);
}

static u16 dispi_read(const struct vga *v)
{
    static const u16 most[] = { [DISPI_XRES] = VGA_MAX_WIDTH, [DISPI_YRES] = VGA_MAX_HEIGHT, [DISPI_BPP] = 32 };
    u16 i = v->dispi_index;

    if (i >= NR_DISPI)
        return 0;
    if (v->dispi[DISPI_ENABLE] & DISPI_GETCAPS && i >= DISPI_XRES && i <= DISPI_BPP)
        return most[i];
    return i == DISPI_MEMORY ? VGA_MEMORY >> 16 : v->dispi[i];
}

static void dispi_write(struct vga *v, u16 value)
{
    u16 *d = v->dispi;
    bool off = !(d[DISPI_ENABLE] & DISPI_ENABLED);

    switch (v->dispi_index) {
    case DISPI_ID:
        if (value >= DISPI_ID_OLDEST && value <= DISPI_ID_NOW)
            d[DISPI_ID] = value;
        break;
    case DISPI_XRES:
        if (off && value <= VGA_MAX_WIDTH && !(value & 7))
            d[DISPI_XRES] = value;
        break;
    case DISPI_YRES:
        if (off && value <= VGA_MAX_HEIGHT)
            d[DISPI_YRES] = value;
        break;
    case DISPI_BPP:
        value = value ? value : 8;
        if (off && (value == 4 || value == 8 || value == 15 || value == 16 || value == 24 || value == 32))
            d[DISPI_BPP] = value;
        break;
    case DISPI_ENABLE:
        dispi_enable(v, value);
        break;
    case DISPI_BANK:
        d[DISPI_BANK] = value & ((VGA_MEMORY >> 16) - 1);
        break;
    case DISPI_VIRT_WIDTH:
        if (value >= d[DISPI_XRES] && bytes_per_line(v, value)) {
            d[DISPI_VIRT_WIDTH] = value;
            d[DISPI_VIRT_HEIGHT] = (u16)MIN(VGA_MEMORY / bytes_per_line(v, value), 0xffffu);
        }
        break;
    case DISPI_X_OFFSET:
    case DISPI_Y_OFFSET:
        d[v->dispi_index] = value;
        break;
    default:
        break;
    }
}

/*
 * Offsets: 0 the index, 2 the data, 2 bytes each; the data also at the odd port between them, where the bus
 * brings them as two bytes.
 */
static u64 dispi_io_read(void *dev, u64 off, unsigned size)
{
    struct vga *v = dev;

    pthread_mutex_lock(&v->lock);
    u16 data = dispi_read(v);
    u64 value = off == 0 ? v->dispi_index : size == 1 && off == 2 ? data >> 8 : data;
    pthread_mutex_unlock(&v->lock);
    return value;
}

static void dispi_io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct vga *v = dev;

    pthread_mutex_lock(&v->lock);
    if (off == 0)
        v->dispi_index = (u16)value;
    else if (off == 1)
        v->dispi_low = (u8)value;
    else if (off == 2)
        dispi_write(v, size == 1 ? (u16)(v->dispi_low | value << 8) : (u16)value);
    pthread_mutex_unlock(&v->lock);
}

const struct io_ops vga_dispi = { "vga dispi", 1, 2, dispi_io_read, dispi_io_write };

/* -- VGA registers ------------------------------------------------------------------------------ */

static u8 dac_data_read(struct vga *v)
{
    u8 value = v->dac[v->dac_read][v->dac_sub];

    if (++v->dac_sub == 3) {
        v->dac_sub = 0;
        v->dac_read++;
    }
    return value;
}

static void dac_data_write(struct vga *v, u8 value)
{
    v->dac[v->dac_write][v->dac_sub] = v->dispi[DISPI_ENABLE] & DISPI_8BIT_DAC ? value : value & 0x3f;
    if (++v->dac_sub == 3) {
        v->dac_sub = 0;
        v->dac_write++;
    }
}

/* Display enable and vertical retrace, as a program that waits for them expects. */
static u8 input_status1(const struct vga *v)
{
    u64 in_frame = clock_now(v->clock) % FRAME_NS, line = in_frame / (FRAME_NS / 525);
    bool blank = in_frame % (FRAME_NS / 525) > FRAME_NS / 525 * 4 / 5;

    return line >= 490 ? 0x09 : blank ? 0x01 : 0;
}

static bool is_mono(u64 off)
{
    return off < 0x10; /* 0x3b0 to 0x3bf */
}

static u8 reg_read(struct vga *v, u64 off)
{
    switch (off + 0x3b0) {
    case 0x3b4: case 0x3d4: return v->crtc_index;
    case 0x3b5: case 0x3d5: return v->crtc[v->crtc_index & 31];
    case 0x3ba: case 0x3da:
        v->attr_data = false;
        return input_status1(v);
    case 0x3c0: return v->attr_index;
    case 0x3c1: return v->attr[v->attr_index & 31];
    case 0x3c2: return 0x10; /* a colour monitor */
    case 0x3c4: return v->seq_index;
    case 0x3c5: return v->seq[v->seq_index & 7];
    case 0x3c6: return v->dac_mask;
    case 0x3c7: return v->dac_state;
    case 0x3c8: return v->dac_write;
    case 0x3c9: return dac_data_read(v);
    case 0x3ca: return v->feature;
    case 0x3cc: return v->misc;
    case 0x3ce: return v->gc_index;
    case 0x3cf: return v->gc[v->gc_index & 15];
    default: return 0xff;
    }
}

static void crtc_write(struct vga *v, u8 value)
{
    unsigned i = v->crtc_index & 31;

    if (i <= 7 && v->crtc[0x11] & CRTC_PROTECT) {
        if (i == 7) /* the line-compare bit can be written always */
            v->crtc[7] = (v->crtc[7] & (u8)~0x10) | (value & 0x10);
        return;
    }
    v->crtc[i] = value;
}

static void attr_write(struct vga *v, u8 value)
{
    if (!v->attr_data)
        v->attr_index = value & 0x3f;
    else if ((v->attr_index & 31) < 0x15)
        v->attr[v->attr_index & 31] = value & ((v->attr_index & 31) < 16 ? 0x3f : 0xff);
    v->attr_data = !v->attr_data;
}

static void reg_write(struct vga *v, u64 off, u8 value)
{
    switch (off + 0x3b0) {
    case 0x3b4: case 0x3d4: v->crtc_index = value; break;
    case 0x3b5: case 0x3d5: crtc_write(v, value); break;
    case 0x3ba: case 0x3da: v->feature = value; break;
    case 0x3c0: attr_write(v, value); break;
    case 0x3c2: v->misc = value; break;
    case 0x3c4: v->seq_index = value & 7; break;
    case 0x3c5: v->seq[v->seq_index] = value; break;
    case 0x3c6: v->dac_mask = value; break;
    case 0x3c7:
        v->dac_read = value;
        v->dac_sub = 0;
        v->dac_state = 3;
        break;
    case 0x3c8:
        v->dac_write = value;
        v->dac_sub = 0;
        v->dac_state = 0;
        break;
    case 0x3c9: dac_data_write(v, value); break;
    case 0x3ce: v->gc_index = value & 15; break;
    case 0x3cf: v->gc[v->gc_index] = value; break;
    default: break;
    }
}

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct vga *v = dev;
    u8 value = 0xff;

    (void)size;
    pthread_mutex_lock(&v->lock);
    if (off - 0x10 < 0x10 || is_mono(off) == !(v->misc & 1)) /* one of 0x3bX and 0x3dX answers */
        value = reg_read(v, off);
    pthread_mutex_unlock(&v->lock);
    return value;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct vga *v = dev;

    (void)size;
    pthread_mutex_lock(&v->lock);
    if (off - 0x10 < 0x10 || is_mono(off) == !(v->misc & 1))
        reg_write(v, off, (u8)value);
    pthread_mutex_unlock(&v->lock);
}

const struct io_ops vga_io = { "vga", 1, 1, io_read, io_write };

/* -- Memory ------------------------------------------------------------------------------------- */

static u64 window_read(void *dev, u64 off, unsigned size)
{
    struct vga *v = dev;
    u64 value = 0;

    pthread_mutex_lock(&v->lock);
    for (unsigned i = 0; i < size; i++)
        value |= (u64)vga_mem_read(v, (u32)off + i) << i * 8;
    pthread_mutex_unlock(&v->lock);
    return value;
}

static void window_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct vga *v = dev;

    pthread_mutex_lock(&v->lock);
    for (unsigned i = 0; i < size; i++)
        vga_mem_write(v, (u32)off + i, (u8)(value >> i * 8));
    pthread_mutex_unlock(&v->lock);
}

const struct io_ops vga_window = { "vga memory", 1, 8, window_read, window_write };

/* The linear frame buffer is memory, where there is room for that (linear_moved). Else accesses are aligned and of at most 8 bytes, so
 * that no lock is needed. */
static u64 linear_read(void *dev, u64 off, unsigned size)
{
    struct vga *v = dev;
    u64 value = 0;

    memcpy(&value, v->mem + (off & (VGA_MEMORY - 1)), size);
    return value;
}

static void linear_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct vga *v = dev;

    memcpy(v->mem + (off & (VGA_MEMORY - 1)), &value, size);
}

static const struct io_ops linear_io = { "vga frame buffer", 1, 8, linear_read, linear_write };

static void linear_moved(void *dev, u64 at)
{
    struct vga *v = dev;

    if (v->show)
        v->show(v->opaque, v->mem, VGA_MEMORY, at);
}

/* BAR 2: the VGA ports from 0x3c0 at 0x400, the display interface's registers at 0x500. */
static u64 bar_read(void *dev, u64 off, unsigned size)
{
    struct vga *v = dev;
    u64 value = ~0ull;

    pthread_mutex_lock(&v->lock);
    if (off >= 0x400 && off < 0x420) {
        value = reg_read(v, off - 0x400 + 0x10);
        if (size == 2)
            value |= (u64)reg_read(v, off - 0x400 + 0x11) << 8;
    } else if (off >= 0x500 && off < 0x500 + 2 * NR_DISPI && size == 2) {
        u16 keep = v->dispi_index;
        v->dispi_index = (u16)((off - 0x500) / 2);
        value = dispi_read(v);
        v->dispi_index = keep;
    }
    pthread_mutex_unlock(&v->lock);
    return value;
}

static void bar_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct vga *v = dev;

    pthread_mutex_lock(&v->lock);
    if (off >= 0x400 && off < 0x420) {
        reg_write(v, off - 0x400 + 0x10, (u8)value);
        if (size == 2)
            reg_write(v, off - 0x400 + 0x11, (u8)(value >> 8));
    } else if (off >= 0x500 && off < 0x500 + 2 * NR_DISPI && size == 2) {
        u16 keep = v->dispi_index;
        v->dispi_index = (u16)((off - 0x500) / 2);
        dispi_write(v, (u16)value);
        v->dispi_index = keep;
    }
    pthread_mutex_unlock(&v->lock);
}

static const struct io_ops bar_io = { "vga registers", 1, 2, bar_read, bar_write };

/* -- Making it ---------------------------------------------------------------------------------- */

void vga_reset(struct vga *v)
{
    pthread_mutex_lock(&v->lock);
    v->misc = v->feature = 0;
    v->seq_index = v->crtc_index = v->gc_index = v->attr_index = 0;
    v->attr_data = false;
    v->dac_mask = 0xff;
    v->dac_read = v->dac_write = v->dac_state = v->dac_sub = 0;
    memset(v->seq, 0, sizeof(v->seq));
    memset(v->crtc, 0, sizeof(v->crtc));
    memset(v->gc, 0, sizeof(v->gc));
    memset(v->attr, 0, sizeof(v->attr));
    memset(v->dac, 0, sizeof(v->dac));
    memset(v->latch, 0, sizeof(v->latch));
    memset(v->dispi, 0, sizeof(v->dispi));
    v->dispi_index = 0;
    v->dispi[DISPI_ID] = DISPI_ID_NOW;
    v->dispi[DISPI_BPP] = 8;
    memset(v->mem, 0, VGA_MEMORY);
    pthread_mutex_unlock(&v->lock);
}

int vga_init(struct vga *v, const struct vga_wiring *w)
{
    static const struct pci_ids ids = { .vendor = 0x1234, .device = 0x1111, .subsystem_vendor = 0x1af4,
                                        .subsystem = 0x1100, .class_code = 0x030000, .revision = 2 };

    memset(v, 0, sizeof(*v));
    v->clock = w->clock;
    v->show = w->show;
    v->opaque = w->opaque;
    /* Shared: a guest's process may map it, and windows (engine) map what is shared. */
    void *mem = mmap(NULL, VGA_MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (mem == MAP_FAILED)
        return -ENOMEM;
    v->mem = mem;
    pthread_mutex_init(&v->lock, NULL);
    pci_dev_init(&v->pci, "vga", &ids);
    pci_add_bar(&v->pci, 0, PCI_BAR_MEM32, VGA_MEMORY, &linear_io, v);
    v->pci.bar[0].moved = linear_moved;
    pci_add_bar(&v->pci, 2, PCI_BAR_MEM32, PAGE_SIZE, &bar_io, v);
    v->pci.config[PCI_BAR0] |= 8; /* prefetchable */
    int r = pci_add(w->host, PCI_DEVFN(PCI_SLOT_VGA, 0), &v->pci);
    if (r) {
        vga_fini(v);
        return r;
    }
    vga_reset(v);
    return 0;
}

void vga_fini(struct vga *v)
{
    pthread_mutex_destroy(&v->lock);
    munmap(v->mem, VGA_MEMORY);
}
