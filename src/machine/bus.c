/* bus.c - port and MMIO dispatch. See bus.h. No state changes after the board is built. */
#include "machine/bus.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int bus_init(struct bus *bus)
{
    memset(bus, 0, sizeof(*bus));
    bus->port_map = calloc(1, 65536);
    return bus->port_map ? 0 : -ENOMEM;
}

void bus_fini(struct bus *bus)
{
    free(bus->port_map);
    bus->port_map = NULL;
}

void bus_add_ports(struct bus *bus, u16 first, unsigned size, u64 off, const struct io_ops *ops,
                   void *dev)
{
    bug_on(bus->nr_ports == BUS_MAX_REGIONS || first + size > 65536);
    bus->ports[bus->nr_ports++] =
        (struct bus_region){ .first = first, .size = size, .off = off, .ops = ops, .dev = dev };
    for (unsigned i = 0; i < size; i++) {
        bug_on(bus->port_map[first + i]);
        bus->port_map[first + i] = (u8)bus->nr_ports;
    }
}

void bus_add_mmio(struct bus *bus, gpa_t first, u64 size, u64 off, const struct io_ops *ops,
                  void *dev)
{
    bug_on(bus->nr_mmio == BUS_MAX_REGIONS);
    bus->mmio[bus->nr_mmio++] =
        (struct bus_region){ .first = first, .size = size, .off = off, .ops = ops, .dev = dev };
}

static bool find(struct bus *bus, bool mmio, u64 addr, struct bus_region *out)
{
    if (!mmio) {
        unsigned n = bus->port_map[addr];
        if (n) {
            *out = bus->ports[n - 1];
            return true;
        }
    } else {
        for (unsigned i = 0; i < bus->nr_mmio; i++) {
            if (addr - bus->mmio[i].first < bus->mmio[i].size) {
                *out = bus->mmio[i];
                return true;
            }
        }
    }
    return bus->fallback && bus->fallback(bus->fallback_opaque, mmio, addr, out);
}

static inline u64 ones(unsigned size)
{
    return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

/* The largest power of two <= left and max that addr is a multiple of. */
static unsigned piece_size(u64 addr, unsigned left, unsigned max)
{
    unsigned size = max;
    while (size > left || (addr & (size - 1)))
        size /= 2;
    return size;
}

/* One piece of a read: *size in: what is left; out: what was done. */
static u64 read_piece(struct bus *bus, bool mmio, u64 addr, unsigned *size)
{
    struct bus_region r;
    u64 value;
    if (!find(bus, mmio, addr, &r)) {
        *size = piece_size(addr, MIN(*size, 8u), mmio ? 8 : 1);
        value = ones(*size);
        if (unlikely(bus->trace != NULL))
            bus->trace(bus->trace_opaque, NULL, mmio, false, addr, *size, value);
        return value;
    }
    u64 at = addr - r.first + r.off, room = r.size - (addr - r.first);
    unsigned n = piece_size(at, (unsigned)MIN((u64)*size, room), r.ops->max_width);
    unsigned min = r.ops->min_width;
    *size = n;
    if (n >= min) {
        value = r.ops->read(r.dev, at, n) & ones(n);
    } else { /* narrower than the device takes: read what contains it, and extract */
        u64 down = at & ~(u64)(min - 1);
        value = r.ops->read(r.dev, down, min) >> ((at - down) * 8) & ones(n);
    }
    if (unlikely(bus->trace != NULL))
        bus->trace(bus->trace_opaque, r.ops->name, mmio, false, addr, n, value);
    return value;
}

static void write_piece(struct bus *bus, bool mmio, u64 addr, unsigned *size, u64 value)
{
    struct bus_region r;
    if (!find(bus, mmio, addr, &r)) {
        *size = piece_size(addr, MIN(*size, 8u), mmio ? 8 : 1);
        if (unlikely(bus->trace != NULL))
            bus->trace(bus->trace_opaque, NULL, mmio, true, addr, *size, value & ones(*size));
        return;
    }
    u64 at = addr - r.first + r.off, room = r.size - (addr - r.first);
    unsigned n = piece_size(at, (unsigned)MIN((u64)*size, room), r.ops->max_width);
    unsigned min = r.ops->min_width;
    *size = n;
    value &= ones(n);
    if (unlikely(bus->trace != NULL))
        bus->trace(bus->trace_opaque, r.ops->name, mmio, true, addr, n, value);
    if (n >= min) {
        r.ops->write(r.dev, at, n, value);
    } else { /* read, merge, write: no register of ours minds being read */
        u64 down = at & ~(u64)(min - 1);
        unsigned shift = (unsigned)(at - down) * 8;
        u64 old = r.ops->read(r.dev, down, min) & ~(ones(n) << shift);
        r.ops->write(r.dev, down, min, old | value << shift);
    }
}

u32 bus_port_in(struct bus *bus, u16 port, unsigned size)
{
    u32 value = 0;
    for (unsigned done = 0, n; done < size; done += n) {
        n = size - done;
        u64 piece = read_piece(bus, false, (u16)(port + done), &n);
        value |= (u32)piece << (done * 8);
    }
    return value;
}

void bus_port_out(struct bus *bus, u16 port, unsigned size, u32 value)
{
    for (unsigned done = 0, n; done < size; done += n) {
        n = size - done;
        write_piece(bus, false, (u16)(port + done), &n, value >> (done * 8));
    }
}

void bus_mmio_read(struct bus *bus, gpa_t gpa, void *buf, unsigned len)
{
    for (unsigned done = 0, n; done < len; done += n) {
        n = len - done;
        u64 piece = read_piece(bus, true, gpa + done, &n);
        memcpy((u8 *)buf + done, &piece, n);
    }
}

void bus_mmio_write(struct bus *bus, gpa_t gpa, const void *buf, unsigned len)
{
    for (unsigned done = 0, n; done < len; done += n) {
        u64 value = 0;
        n = len - done;
        memcpy(&value, (const u8 *)buf + done, MIN(n, 8u));
        write_piece(bus, true, gpa + done, &n, value);
    }
}
