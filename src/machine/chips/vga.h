/*
 * vga.h - VGA with the Bochs display interface for larger modes: "stdvga", as SeaVGABIOS and Linux's
 * bochs-drm know it. vga.c has the registers, vga_mem.c the memory's planes, vga_draw.c makes
 * characters or pixels of it.
 */
#pragma once
#include "base/types.h"
#include "machine/clock.h"
#include "machine/device.h"
#include "machine/pci.h"
#include <pthread.h>

#define VGA_MEMORY (16u << 20)
#define VGA_MAX_WIDTH 2560u
#define VGA_MAX_HEIGHT 1600u

enum { DISPI_ID, DISPI_XRES, DISPI_YRES, DISPI_BPP, DISPI_ENABLE, DISPI_BANK, DISPI_VIRT_WIDTH,
       DISPI_VIRT_HEIGHT, DISPI_X_OFFSET, DISPI_Y_OFFSET, DISPI_MEMORY, NR_DISPI };
#define DISPI_ENABLED 0x01u
#define DISPI_GETCAPS 0x02u
#define DISPI_8BIT_DAC 0x20u
#define DISPI_LFB 0x40u
#define DISPI_NOCLEAR 0x80u

struct vga {
    pthread_mutex_t lock;
    struct vm_clock *clock;
    struct pci_dev pci;
    void (*show)(void *opaque, void *host, u64 size, gpa_t gpa);
    void *opaque;
    u8 *mem; /* VGA_MEMORY bytes: byte 4n+p is byte n of plane p; linear in chained and large modes */
    u8 misc, feature;
    u8 seq_index, seq[8];
    u8 crtc_index, crtc[32];
    u8 gc_index, gc[16];
    u8 attr_index, attr[32];
    bool attr_data;  /* the next write to 0x3c0 is data */
    u8 dac_mask, dac_read, dac_write, dac_state, dac_sub;
    u8 dac[256][3];
    u8 latch[4];
    u16 dispi_index, dispi[NR_DISPI];
    u8 dispi_low; /* first half of data written to the odd port */
};

struct vga_wiring {
    struct pci_host *host;
    struct vm_clock *clock;
    /* The frame buffer as memory, at gpa from now on; ~0: nowhere. */
    void (*show)(void *opaque, void *host, u64 size, gpa_t gpa);
    void *opaque;
};

int vga_init(struct vga *v, const struct vga_wiring *wiring);
/* vga_keep - what a snapshot carries of it (state.h). 0 or -ENOMEM. */
struct machine;
int vga_keep(struct vga *v, struct machine *m);
void vga_reset(struct vga *v);
void vga_fini(struct vga *v);
extern const struct io_ops vga_io;     /* offset 0: port 0x3b0; 0x30 ports */
extern const struct io_ops vga_dispi;  /* offset 0: port 0x1ce; 4 ports */
extern const struct io_ops vga_window; /* 0xa0000..0xbffff */

/* -- vga_mem.c, under the lock: off counts from 0xa0000 -- */
u8 vga_mem_read(struct vga *v, u32 off);
void vga_mem_write(struct vga *v, u32 off, u8 value);

/* -- vga_draw.c: what is on the screen now. Any thread. ------------------------------------------ */
struct vga_text {
    unsigned cols, rows; /* 0: not a text mode, or blank */
    unsigned cursor;     /* cell number, or ~0: not shown */
    struct { u8 ch, attr; } *cell; /* [rows * cols] */
};
/* vga_text_get - the characters; free with vga_text_free(). 0 or -ENOMEM. */
int vga_text_get(struct vga *v, struct vga_text *out);
void vga_text_free(struct vga_text *text);
/* vga_image - pixels, 3 bytes each: red, green, blue; *rgb is malloc'ed. 0 or -ENOMEM. */
int vga_image(struct vga *v, unsigned *width, unsigned *height, u8 **rgb);
