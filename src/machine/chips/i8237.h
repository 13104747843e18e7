/* i8237.h - two cascaded DMA controllers and their page registers: ISA DMA, for the floppy controller. */
#pragma once
#include "base/types.h"
#include "machine/device.h"
#include <pthread.h>

struct ram;

struct i8237_channel {
    u16 base_address, base_count, address, count;
    u8 mode, page;
};

struct i8237 {
    pthread_mutex_t lock;
    struct ram *ram;
    struct i8237_channel ch[8]; /* 0-3 bytes, 4-7 words */
    u8 mask, status;            /* by channel; status: terminal counts reached */
    bool flip[2];               /* next byte is the high one */
    u8 pages[16];               /* 0x80..0x8f as written */
};

void i8237_init(struct i8237 *d, struct ram *ram);
void i8237_reset(struct i8237 *d);
void i8237_fini(struct i8237 *d);
/* i8237_transfer - a device on channel 0..3 moves len bytes. How many it could; *tc: the count has run out. Any thread,
 * also with a device's lock held. */
u32 i8237_transfer(struct i8237 *d, unsigned channel, u8 *buf, u32 len, bool to_memory, bool *tc);
/* Offsets: 0x00-0x0f the first controller, 0x10-0x2f the second (its ports are two apart), 0x40-0x4f pages. */
extern const struct io_ops i8237_io;
extern const struct state_field i8237_state[];
