/*
 * fw_cfg.h - how firmware learns about the machine: numbered items and named files, read through a
 * port or by DMA. Everything is added before vCPUs run and never changes after that.
 */
#pragma once
#include "base/types.h"
#include "machine/device.h"
#include <pthread.h>

struct ram;

#define FW_CFG_SIGNATURE 0x00
#define FW_CFG_ID 0x01
#define FW_CFG_UUID 0x02
#define FW_CFG_RAM_SIZE 0x03
#define FW_CFG_NOGRAPHIC 0x04
#define FW_CFG_NB_CPUS 0x05
#define FW_CFG_NUMA 0x0d
#define FW_CFG_BOOT_MENU 0x0e
#define FW_CFG_MAX_CPUS 0x0f
#define FW_CFG_FILE_DIR 0x19
#define FW_CFG_FILE_FIRST 0x20
#define FW_CFG_IRQ0_OVERRIDE 0x8002

#define FW_CFG_ITEMS 64
#define FW_CFG_NAME 56

struct fw_cfg_item {
    u16 key;
    u32 size;
    u8 *data;
    char name[FW_CFG_NAME]; /* of a file; "" otherwise */
};

struct fw_cfg {
    pthread_mutex_t lock; /* selection, position, DMA address */
    struct ram *ram;
    u16 key;
    u32 at;
    u64 dma_address;
    unsigned nr;
    struct fw_cfg_item item[FW_CFG_ITEMS];
    u8 *directory;
    u32 directory_size;
};

int fw_cfg_init(struct fw_cfg *f, struct ram *ram);
void fw_cfg_fini(struct fw_cfg *f);
void fw_cfg_reset(struct fw_cfg *f);
/* fw_cfg_add - an item with a number. The bytes are copied. 0, -ENOMEM, -ENOSPC, -EEXIST. */
int fw_cfg_add(struct fw_cfg *f, u16 key, const void *data, size_t size);
/* fw_cfg_add_file - an item with a name of at most 55 characters (-EINVAL). */
int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t size);
/* fw_cfg_seal - make the directory, when the last file was added. 0 or -ENOMEM. */
int fw_cfg_seal(struct fw_cfg *f);

extern const struct io_ops fw_cfg_io;  /* 2 ports: selector (2 bytes), data (the second byte) */
extern const struct io_ops fw_cfg_dma; /* 8 ports */
extern const struct state_field fw_cfg_state[];
