/* fdc.h - 82077AA floppy disk controller with up to two drives. */
#pragma once
#include "base/types.h"
#include "machine/chips/i8237.h"
#include "machine/device.h"
#include "machine/irq.h"
#include "storage/aio.h"
#include <pthread.h>

struct machine;

struct fdc_drive {
    struct disk *disk; /* NULL: there is no drive */
    struct disk_aio *aio;
    u8 cylinders, heads, sectors;
    u8 cylinder;       /* where the head is */
    bool changed;      /* the disk-change line: until a step with a disk in */
};

struct fdc {
    pthread_mutex_t lock;
    struct i8237 *dma;
    struct irq_line irq;
    struct fdc_drive drive[2];
    u8 dor, dsr, st0, config[3], lock_bit;
    u8 pending;                 /* after a reset: drives whose state SENSE INTERRUPT reports; 0: none */
    bool irq_level, interrupt;  /* interrupt: st0 waits for SENSE INTERRUPT */
    u8 command[16], result[16];
    u8 nr_command, wanted, nr_result, at_result;
    /* READ, WRITE and FORMAT; one sector is under way */
    u8 c, h, r;  /* which one */
    bool tc;     /* the DMA channel's count has run out */
    bool io;     /* req and buffer are the disk's: busy */
    bool dropped; /* a reset came meanwhile: the command is forgotten */
    struct disk_req req;
    struct iovec iov;
    u8 buffer[DISK_SECTOR];
};

struct fdc_wiring {
    struct irq_line irq;
    struct i8237 *dma;
    struct disk *disk[2];
};

/* fdc_init - 0, or -errno of what the disks' threads need. */
int fdc_init(struct fdc *f, const struct fdc_wiring *wiring);
/* fdc_reset - waits for what is under way. */
void fdc_reset(struct fdc *f);
void fdc_fini(struct fdc *f);
/* fdc_keep - snapshots of the machine carry it. 0 or -ENOMEM. */
int fdc_keep(struct fdc *f, struct machine *m);
/* fdc_cmos_type - what CMOS byte 0x10 calls a drive for a disk of that size: 0 none .. 5 2.88 MB. */
u8 fdc_cmos_type(const struct disk *disk);
/* Offsets: 0 is port 0x3f0. */
extern const struct io_ops fdc_io;
