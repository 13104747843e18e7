/*
 * device.h - what a chip is to the board: a class (data), its registers' access rules, its state.
 * A chip touches nothing it was not given: lines to raise, a clock, callbacks, all passed in its
 * `wiring` struct at init. Owner: board.c holds each instance by value and calls init, reset and
 * fini in table order; init 0 or -errno.
 */
#pragma once
#include "base/state.h"
#include "base/types.h"

/*
 * How a range of ports or MMIO is accessed. The bus calls with naturally aligned accesses of
 * min_width..max_width bytes and does the splitting and widening itself. `off` counts from where
 * bus_add_*() said. Read results are truncated to `size` by the bus.
 */
struct io_ops {
    const char *name;
    u8 min_width, max_width;
    u64 (*read)(void *dev, u64 off, unsigned size);
    void (*write)(void *dev, u64 off, unsigned size, u64 value);
};

struct device_class {
    const char *name;
    size_t size;
    int (*init)(void *dev, const void *wiring);
    void (*reset)(void *dev);
    void (*fini)(void *dev);
    const struct state_field *state; /* exactly what a snapshot carries */
    const struct io_ops *io;
    /*
     * After `state` was read from a snapshot, with the machine at rest: judge it (it may be anybody's
     * file), and work out again what it does not carry: timers, and lines without driving them. 0 or
     * -EINVAL. NULL: any bytes will do.
     */
    int (*loaded)(void *dev);
};
