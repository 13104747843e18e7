/*
 * pflash.c - see pflash.h. Source: Intel StrataFlash (28F320J3) data sheet, §4 bus and commands; JEDEC JEP137 and
 * JESD68.01 (CFI, Intel's command set 0001) for the query table. One 8-bit chip, as OVMF's
 * QemuFlashFvbServicesRuntimeDxe expects it. Not modelled: write buffer (the query table offers none), suspending,
 * block locks, the time that things take.
 * OVMF takes it for flash if clearing the status register clears the ready bit too, until the next operation, as QEMU's chip
 * does. A byte that the guest has programmed is in the file, and on the medium, when the guest goes back to reading.
 * Threads: vCPU threads; under f->lock.
 */
#include "machine/chips/pflash.h"
#include "storage/disk.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CMD_PROGRAM_ALT 0x10
#define CMD_ERASE 0x20
#define CMD_PROGRAM 0x40
#define CMD_CLEAR_STATUS 0x50
#define CMD_STATUS 0x70
#define CMD_ID 0x90
#define CMD_CFI 0x98
#define CMD_CONFIRM 0xd0
#define CMD_ARRAY 0xff

#define SR_READY 0x80
#define SR_ERASE_ERROR 0x20
#define SR_PROGRAM_ERROR 0x10

#define CFI_FIRST 0x10

static u8 log2_up(u32 size)
{
    u8 n = 0;

    while (n < 32 && 1ull << n < size)
        n++;
    return n;
}

/* The query table, from 0x10. Voltages in BCD; times are powers of two. */
static u8 cfi(const struct pflash *f, u64 at)
{
    const u32 blocks = f->size / PFLASH_BLOCK - 1;
    const u8 table[] = {
        'Q', 'R', 'Y', 0x01, 0x00, 0x31, 0x00, 0, 0, 0, 0, /* Intel's command set; its own table is at 0x31 */
        0x27, 0x36, 0, 0,                                  /* 2.7 to 3.6 V */
        7, 0, 10, 0, 4, 0, 4, 0,                           /* program 128 us, no buffer, erase 1 s; at most 16 times that */
        log2_up(f->size), 0, 0, 0, 0,                      /* 8 bits wide, no write buffer */
        1, (u8)blocks, (u8)(blocks >> 8), (u8)(PFLASH_BLOCK / 256), (u8)(PFLASH_BLOCK / 256 >> 8),
        'P', 'R', 'I', '1', '0', 0, 0, 0, 0, 0, 0, 0, 0x33, 0,
    };

    return at >= CFI_FIRST && at - CFI_FIRST < sizeof(table) ? table[at - CFI_FIRST] : 0;
}

static u8 id(u64 at)
{
    return at == 0 ? 0x89 : at == 1 ? 0x16 : 0; /* Intel, 28F320J3; no block is locked */
}

/* -- The file ----------------------------------------------------------------------------------- */

static void dirty(struct pflash *f, u32 from, u32 to)
{
    bool none = f->dirty_from >= f->dirty_to;

    f->dirty_from = none ? from : MIN(f->dirty_from, from);
    f->dirty_to = none ? to : MAX(f->dirty_to, to);
}

/* What cannot be written stays dirty, and the guest is told. */
static void sync_file(struct pflash *f)
{
    u32 first = f->dirty_from / DISK_SECTOR, end = (f->dirty_to + DISK_SECTOR - 1) / DISK_SECTOR;

    if (!f->disk || f->dirty_from >= f->dirty_to)
        return;
    if (disk_write(f->disk, first, f->mem + (size_t)first * DISK_SECTOR, end - first) || disk_flush(f->disk))
        f->status |= SR_PROGRAM_ERROR;
    else
        f->dirty_from = f->dirty_to = 0;
}

void pflash_quiesce(void *dev)
{
    struct pflash *f = dev;

    pthread_mutex_lock(&f->lock);
    sync_file(f);
    pthread_mutex_unlock(&f->lock);
}

/* -- Reading, and commands ---------------------------------------------------------------------- */

static u8 read8(const struct pflash *f, u64 off)
{
    switch (f->mode) {
    case PFLASH_ARRAY: return f->mem[off];
    case PFLASH_ID: return id(off % PFLASH_BLOCK);
    case PFLASH_CFI: return cfi(f, off);
    default: return f->status;
    }
}

static u64 flash_read(void *dev, u64 off, unsigned size)
{
    struct pflash *f = dev;
    u64 value = 0;

    pthread_mutex_lock(&f->lock);
    for (unsigned i = 0; i < size && off + i < f->size; i++)
        value |= (u64)read8(f, off + i) << i * 8;
    pthread_mutex_unlock(&f->lock);
    return value;
}

/* Programming only clears bits. */
static void program(struct pflash *f, u64 off, unsigned size, u64 value)
{
    unsigned n = (unsigned)MIN((u64)size, f->size - off);

    for (unsigned i = 0; i < n; i++)
        f->mem[off + i] &= (u8)(value >> i * 8);
    dirty(f, (u32)off, (u32)off + n);
}

static void second(struct pflash *f, u8 command, u64 off, unsigned size, u64 value)
{
    f->mode = PFLASH_STATUS;
    f->status |= SR_READY;
    if (command != CMD_ERASE) {
        program(f, off, size, value);
    } else if ((u8)value == CMD_CONFIRM) {
        u32 block = (u32)off & ~(PFLASH_BLOCK - 1);
        memset(f->mem + block, 0xff, PFLASH_BLOCK);
        dirty(f, block, block + PFLASH_BLOCK);
    } else { /* no confirmation: a command sequence error */
        f->status |= SR_ERASE_ERROR | SR_PROGRAM_ERROR;
    }
}

static void first(struct pflash *f, u8 command)
{
    switch (command) {
    case CMD_PROGRAM: case CMD_PROGRAM_ALT: case CMD_ERASE:
        f->pending = command;
        f->mode = PFLASH_STATUS;
        break;
    case CMD_CLEAR_STATUS: f->status = 0; break;
    case CMD_STATUS: f->mode = PFLASH_STATUS; break;
    case CMD_ID: f->mode = PFLASH_ID; break;
    case CMD_CFI: f->mode = PFLASH_CFI; break;
    case CMD_ARRAY:
        sync_file(f);
        f->mode = PFLASH_ARRAY;
        break;
    default: break; /* not a command */
    }
}

static void flash_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct pflash *f = dev;
    u8 command;

    if (off >= f->size)
        return;
    pthread_mutex_lock(&f->lock);
    command = f->pending;
    f->pending = 0;
    if (command)
        second(f, command, off, size, value);
    else
        first(f, (u8)value);
    pthread_mutex_unlock(&f->lock);
}

const struct io_ops pflash_io = { "pflash", 1, 8, flash_read, flash_write };

/* -- Life --------------------------------------------------------------------------------------- */

void pflash_reset(struct pflash *f)
{
    pthread_mutex_lock(&f->lock);
    sync_file(f);
    f->mode = PFLASH_ARRAY;
    f->pending = 0;
    f->status = SR_READY;
    pthread_mutex_unlock(&f->lock);
}

int pflash_init(struct pflash *f, const u8 *image, u32 size, struct disk *disk)
{
    memset(f, 0, sizeof(*f));
    f->mem = malloc(size);
    if (!f->mem)
        return -ENOMEM;
    memcpy(f->mem, image, size);
    f->size = size;
    f->disk = disk;
    pthread_mutex_init(&f->lock, NULL);
    pflash_reset(f);
    return 0;
}

void pflash_fini(struct pflash *f)
{
    pflash_quiesce(f);
    free(f->mem);
    pthread_mutex_destroy(&f->lock);
}

/* The bytes are in the file, as a disk's are. */
const struct state_field pflash_state[] = {
    STATE(struct pflash, mode), STATE(struct pflash, pending), STATE(struct pflash, status), STATE_END
};

int pflash_loaded(void *dev)
{
    const struct pflash *f = dev;

    return f->mode > PFLASH_CFI ? -EINVAL : 0;
}
