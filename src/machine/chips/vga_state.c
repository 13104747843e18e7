/* vga_state.c - what a snapshot carries of the VGA card: registers, palette, memory. */
#include "machine/chips/vga.h"
#include "machine/state.h"
#include <errno.h>

#define V(member) STATE(struct vga, member)
static const struct state_field vga_fields[] = {
    V(misc), V(feature), V(seq_index), V(seq), V(crtc_index), V(crtc), V(gc_index), V(gc), V(attr_index), V(attr),
    V(attr_data), V(dac_mask), V(dac_read), V(dac_write), V(dac_state), V(dac_sub), V(dac), V(latch), V(dispi_index),
    V(dispi), V(dispi_low), STATE_END
};
#undef V

struct memory {
    u8 bytes[VGA_MEMORY];
};
static const struct state_field memory_fields[] = { STATE(struct memory, bytes), STATE_END };

static int loaded(void *dev)
{
    const struct vga *v = dev;
    const u16 *d = v->dispi, bpp = d[DISPI_BPP];
    bool depth = bpp == 4 || bpp == 8 || bpp == 15 || bpp == 16 || bpp == 24 || bpp == 32;

    return v->seq_index > 7 || v->gc_index > 15 || v->dac_sub > 2 || !depth || d[DISPI_XRES] > VGA_MAX_WIDTH ||
                   d[DISPI_YRES] > VGA_MAX_HEIGHT || d[DISPI_BANK] >= VGA_MEMORY >> 16 ?
               -EINVAL :
               0;
}

int vga_keep(struct vga *v, struct machine *m)
{
    const struct device_part registers = { .name = "vga", .state = vga_fields, .obj = v, .loaded = loaded };
    const struct device_part memory = { .name = "vga.memory", .state = memory_fields, .obj = v->mem };
    int r = machine_add_part(m, &registers);

    v->pci.kept = true;
    return r ? r : machine_add_part(m, &memory);
}
