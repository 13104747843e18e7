/*
 * bus.h - who answers at a port or an MMIO address. Regions are added while the board is built and
 * never move after that, so look-ups take no lock; what moves (PCI BARs) is behind the fallback.
 * The bus splits an access into naturally aligned pieces of a width the device takes, and widens
 * those narrower than it takes. Reads that nobody claims return all ones; writes are dropped.
 */
#pragma once
#include "base/types.h"
#include "machine/device.h"

#define BUS_MAX_REGIONS 64

struct bus_region {
    u64 first, size;
    u64 off; /* what the handler sees for `first` */
    const struct io_ops *ops;
    void *dev;
};

/* A found region: what a fallback fills in, in the same terms. false: nobody is there. */
typedef bool bus_fallback_fn(void *opaque, bool mmio, u64 addr, struct bus_region *out);
typedef void bus_trace_fn(void *opaque, const char *name, bool mmio, bool write, u64 addr,
                          unsigned size, u64 value);

struct bus {
    u8 *port_map; /* port -> index into ports + 1; 0: unclaimed */
    struct bus_region ports[BUS_MAX_REGIONS], mmio[BUS_MAX_REGIONS];
    unsigned nr_ports, nr_mmio;
    bus_fallback_fn *fallback;
    void *fallback_opaque;
    bus_trace_fn *trace; /* called for each piece, unclaimed ones with name NULL */
    void *trace_opaque;
};

int bus_init(struct bus *bus);
void bus_fini(struct bus *bus);
/* bus_add_ports, bus_add_mmio - the handler sees `off` for the first byte. Overlaps are our bug. */
void bus_add_ports(struct bus *bus, u16 first, unsigned size, u64 off, const struct io_ops *ops,
                   void *dev);
void bus_add_mmio(struct bus *bus, gpa_t first, u64 size, u64 off, const struct io_ops *ops,
                  void *dev);
/* Any thread. size 1, 2 or 4; an access past port 0xffff wraps. */
u32 bus_port_in(struct bus *bus, u16 port, unsigned size);
void bus_port_out(struct bus *bus, u16 port, unsigned size, u32 value);
/* Any thread. Any length. */
void bus_mmio_read(struct bus *bus, gpa_t gpa, void *buf, unsigned len);
void bus_mmio_write(struct bus *bus, gpa_t gpa, const void *buf, unsigned len);
