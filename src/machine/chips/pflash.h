/*
 * pflash.h - a NOR flash chip for firmware's variables, its bytes in memory and in a file. Reads are the chip's array
 * until a command says otherwise.
 */
#pragma once
#include "base/types.h"
#include "machine/device.h"
#include <pthread.h>

#define PFLASH_BLOCK 4096u /* what is erased at once */

struct disk;

enum pflash_mode { PFLASH_ARRAY, PFLASH_STATUS, PFLASH_ID, PFLASH_CFI };

struct pflash {
    pthread_mutex_t lock;
    u8 *mem;
    u32 size;
    struct disk *disk;         /* NULL: what is written is gone at the end */
    u32 dirty_from, dirty_to;  /* bytes that the file does not have yet; empty: from >= to */
    u8 mode, pending, status;  /* pending: the command whose second write is to come; 0: none */
};

/* pflash_init - size is a multiple of PFLASH_BLOCK; image is copied. disk stays the caller's. 0 or -ENOMEM. */
int pflash_init(struct pflash *f, const u8 *image, u32 size, struct disk *disk);
void pflash_reset(struct pflash *f);
/* pflash_fini - what the file does not have yet is written. */
void pflash_fini(struct pflash *f);

extern const struct io_ops pflash_io;
extern const struct state_field pflash_state[];
int pflash_loaded(void *f);
/* pflash_quiesce - device_part.quiesce: the file has everything. */
void pflash_quiesce(void *f);
