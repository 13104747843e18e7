/*
 * fw_cfg.c - firmware configuration device. Source: QEMU docs/specs/fw_cfg.rst (register layout,
 * item numbers, directory, DMA control word).
 * Not modelled: writing items (the guest's writes are dropped, DMA writes fail).
 * Threads: vCPU threads, under f->lock.
 */
#include "machine/chips/fw_cfg.h"
#include "mem/ram.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ID_TRADITIONAL 0x1u
#define ID_DMA 0x2u

#define DMA_ERROR 0x01u
#define DMA_READ 0x02u
#define DMA_SKIP 0x04u
#define DMA_SELECT 0x08u
#define DMA_WRITE 0x10u
#define DMA_SIGNATURE 0x51454d5520434647ull /* "QEMU CFG", big-endian */

/* In guest memory, all fields big-endian. */
struct dma_request {
    u32 control, length;
    u64 address;
};

struct directory_entry { /* big-endian */
    u32 size;
    u16 select, reserved;
    char name[FW_CFG_NAME];
};
_Static_assert(sizeof(struct directory_entry) == 64, "struct FWCfgFile");

static const u8 *selected(const struct fw_cfg *f, u32 *size)
{
    *size = 0;
    if (f->key == FW_CFG_FILE_DIR) {
        *size = f->directory_size;
        return f->directory;
    }
    for (unsigned i = 0; i < f->nr; i++) {
        if (f->item[i].key == f->key) {
            *size = f->item[i].size;
            return f->item[i].data;
        }
    }
    return NULL;
}

static void select_item(struct fw_cfg *f, u16 key)
{
    f->key = key;
    f->at = 0;
}

/* -- DMA ---------------------------------------------------------------------------------------- */

/* Copy item bytes to the guest; what is behind the item's end reads as 0. */
static bool dma_read(struct fw_cfg *f, gpa_t to, u32 length)
{
    u32 size;
    const u8 *data = selected(f, &size);

    while (length) {
        u32 n = MIN(length, (u32)(PAGE_SIZE - (to & (PAGE_SIZE - 1))));
        u8 *page = ram_dma_ptr(f->ram, to, n);
        if (!page)
            return false;
        u32 have = f->at < size ? MIN(n, size - f->at) : 0;
        if (have)
            memcpy(page, data + f->at, have);
        memset(page + have, 0, n - have);
        ram_written(f->ram, to, n);
        f->at += have;
        to += n;
        length -= n;
    }
    return true;
}

static void dma_run(struct fw_cfg *f, gpa_t at)
{
    struct dma_request req;
    u32 size, result = 0;

    if (ram_read(f->ram, at, &req, sizeof(req)))
        return; /* nowhere to say so */
    u32 control = __builtin_bswap32(req.control), length = __builtin_bswap32(req.length);
    u64 address = __builtin_bswap64(req.address);
    if (control & DMA_SELECT)
        select_item(f, (u16)(control >> 16));
    if (control & DMA_READ) {
        if (!dma_read(f, address, length))
            result = DMA_ERROR;
    } else if (control & DMA_WRITE) {
        result = DMA_ERROR;
    } else if (control & DMA_SKIP) {
        selected(f, &size);
        f->at = f->at < size ? f->at + MIN(length, size - f->at) : f->at;
    }
    result = __builtin_bswap32(result);
    u32 *status = ram_dma_ptr(f->ram, at, sizeof(result));
    if (!status)
        return;
    memcpy(status, &result, sizeof(result));
    ram_written(f->ram, at, sizeof(result));
}

/* -- Ports -------------------------------------------------------------------------------------- */

/* The selector is two bytes at offset 0, write-only; data one byte at offset 1. */
static u64 io_read(void *dev, u64 off, unsigned width)
{
    struct fw_cfg *f = dev;
    u32 size;

    if (off != 1 || width != 1)
        return 0;
    pthread_mutex_lock(&f->lock);
    const u8 *data = selected(f, &size);
    u8 value = f->at < size ? data[f->at++] : 0;
    pthread_mutex_unlock(&f->lock);
    return value;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct fw_cfg *f = dev;

    if (off)
        return; /* data: read-only */
    pthread_mutex_lock(&f->lock);
    select_item(f, size == 2 ? (u16)value : (u8)value);
    pthread_mutex_unlock(&f->lock);
}

/* The registers are big-endian: the high half of the address first; the low half starts the transfer. */
static u64 dma_reg_read(void *dev, u64 off, unsigned size)
{
    u64 be = __builtin_bswap64(DMA_SIGNATURE);

    (void)dev, (void)size;
    return be >> off * 8;
}

static void dma_reg_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct fw_cfg *f = dev;

    if (size != 4)
        return;
    u32 half = __builtin_bswap32((u32)value);
    pthread_mutex_lock(&f->lock);
    if (off == 0) {
        f->dma_address = (u64)half << 32;
    } else {
        gpa_t at = f->dma_address | half;
        f->dma_address = 0;
        dma_run(f, at);
    }
    pthread_mutex_unlock(&f->lock);
}

const struct io_ops fw_cfg_io = { "fw_cfg", 1, 2, io_read, io_write };
const struct io_ops fw_cfg_dma = { "fw_cfg dma", 1, 4, dma_reg_read, dma_reg_write };

/* -- Filling ------------------------------------------------------------------------------------ */

static int add(struct fw_cfg *f, u16 key, const char *name, const void *data, size_t size)
{
    if (f->nr == FW_CFG_ITEMS || size > 0x7fffffff)
        return -ENOSPC;
    u8 *copy = malloc(size ? size : 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, data, size);
    struct fw_cfg_item *item = &f->item[f->nr++];
    *item = (struct fw_cfg_item){ .key = key, .size = (u32)size, .data = copy };
    strcpy(item->name, name);
    return 0;
}

int fw_cfg_add(struct fw_cfg *f, u16 key, const void *data, size_t size)
{
    for (unsigned i = 0; i < f->nr; i++)
        if (f->item[i].key == key)
            return -EEXIST;
    return add(f, key, "", data, size);
}

int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t size)
{
    unsigned files = 0;

    if (!name[0] || strlen(name) >= FW_CFG_NAME)
        return -EINVAL;
    for (unsigned i = 0; i < f->nr; i++) {
        if (!strcmp(f->item[i].name, name))
            return -EEXIST;
        files += f->item[i].name[0] != '\0';
    }
    return add(f, (u16)(FW_CFG_FILE_FIRST + files), name, data, size);
}

int fw_cfg_seal(struct fw_cfg *f)
{
    u32 files = 0;

    for (unsigned i = 0; i < f->nr; i++)
        files += f->item[i].name[0] != '\0';
    f->directory_size = 4 + files * (u32)sizeof(struct directory_entry);
    f->directory = malloc(f->directory_size);
    if (!f->directory)
        return -ENOMEM;
    u32 count = __builtin_bswap32(files);
    memcpy(f->directory, &count, 4);
    u8 *to = f->directory + 4;
    for (unsigned i = 0; i < f->nr; i++) {
        const struct fw_cfg_item *item = &f->item[i];
        if (!item->name[0])
            continue;
        struct directory_entry e = { .size = __builtin_bswap32(item->size),
                                     .select = __builtin_bswap16(item->key) };
        memcpy(e.name, item->name, sizeof(e.name));
        memcpy(to, &e, sizeof(e));
        to += sizeof(e);
    }
    return 0;
}

void fw_cfg_reset(struct fw_cfg *f)
{
    pthread_mutex_lock(&f->lock);
    select_item(f, FW_CFG_SIGNATURE);
    f->dma_address = 0;
    pthread_mutex_unlock(&f->lock);
}

int fw_cfg_init(struct fw_cfg *f, struct ram *ram)
{
    u32 id = ID_TRADITIONAL | (ram ? ID_DMA : 0);

    memset(f, 0, sizeof(*f));
    f->ram = ram;
    pthread_mutex_init(&f->lock, NULL);
    int r = fw_cfg_add(f, FW_CFG_SIGNATURE, "QEMU", 4);
    if (!r)
        r = fw_cfg_add(f, FW_CFG_ID, &id, 4);
    if (r)
        fw_cfg_fini(f);
    return r;
}

void fw_cfg_fini(struct fw_cfg *f)
{
    for (unsigned i = 0; i < f->nr; i++)
        free(f->item[i].data);
    free(f->directory);
    pthread_mutex_destroy(&f->lock);
}

const struct state_field fw_cfg_state[] = {
    STATE(struct fw_cfg, key), STATE(struct fw_cfg, at), STATE(struct fw_cfg, dma_address), STATE_END
};
