/*
 * ide.h - the 82371SB's IDE function: two channels of two drives, a disk (ata_disk.c) or a CD drive
 * (atapi.c) each, with PIO and bus-master DMA. Compatibility ports and interrupts.
 */
#pragma once
#include "base/types.h"
#include "machine/device.h"
#include "machine/irq.h"
#include "machine/pci.h"
#include "storage/aio.h"
#include <pthread.h>
#include <sys/uio.h>

struct ram;
struct ide_channel;
struct ide_drive;

/* Task file status and error bits (ATA/ATAPI-6 §7) */
#define ATA_ERR 0x01u
#define ATA_DRQ 0x08u
#define ATA_DSC 0x10u
#define ATA_DRDY 0x40u
#define ATA_BSY 0x80u
#define ATA_ERR_ABRT 0x04u
#define ATA_ERR_IDNF 0x10u
#define ATA_ERR_UNC 0x40u

#define IDE_BUFFER 0x10000u /* bytes: the largest piece moved at once */
#define ATA_MULTIPLE_MAX 16u

/* What a kind of drive does. Called with the channel's lock held. */
struct ide_kind {
    bool atapi;
    void (*signature)(struct ide_drive *d); /* after a reset: registers that tell what it is */
    void (*identify)(const struct ide_drive *d, u16 id[256]);
    /* A command that ide.c does not know itself; ends with ide_done(), ide_fail() or a transfer. */
    void (*command)(struct ide_drive *d, u8 command);
    /* The buffer was read or filled by PIO; go on. */
    void (*pio_done)(struct ide_drive *d);
    /* The bus master runs: move by ide_dma() what is left. */
    void (*dma)(struct ide_drive *d);
};
/* Goes on after ide_io(): 0 or -errno. With the channel's lock held. */
typedef void ide_then(struct ide_drive *d, int result);

struct ide_drive {
    const struct ide_kind *kind; /* NULL: nothing is connected */
    struct ide_channel *channel;
    struct disk *disk;           /* of a CD drive: NULL when it is empty */
    struct disk_aio *aio;        /* NULL with it */
    u8 unit;                     /* 0: master */
    char serial[21];

    u8 status, error, feature, nsector, lba_low, lba_mid, lba_high, device;
    u8 hob_nsector, hob_low, hob_mid, hob_high; /* what the registers held before: 48-bit commands */
    u8 multiple;                 /* sectors in a block of READ/WRITE MULTIPLE; 0: off */
    u8 dma_mode;                 /* as SET FEATURES chose: 0x20.. multiword, 0x40.. ultra */
    u16 heads, sectors_per_track; /* INITIALIZE DEVICE PARAMETERS */

    /* The transfer in progress */
    u8 *buffer;                  /* [IDE_BUFFER] */
    u32 at, len;                 /* PIO: next byte, end of the block */
    bool to_drive, dma_wanted;   /* direction; a DMA command waits for the bus master */
    u64 sector;                  /* ATA: next sector; ATAPI: next 2048-byte block */
    u32 left;                    /* units of the same that are not yet in the buffer */
    bool dma_running;            /* the bus master moves this drive's data */
    bool write_through;          /* the write cache is off: a write ends on the medium */
    bool ext;                    /* a 48-bit command: results go to 48-bit registers */

    /* The disk is at work for it, with the buffer: status is BSY. Nothing of this is in a snapshot. */
    bool io, reset_wanted;       /* reset_wanted: the guest did not wait; then as after a reset */
    struct disk_req req;
    struct iovec iov;
    ide_then *then;

    /* ATAPI */
    u8 packet[12];
    bool wants_packet, changed;  /* changed: UNIT ATTENTION waits */
    u8 sense_key, asc;
    u32 reply;                   /* bytes in the buffer to hand over */
    u32 reply_at;
};

struct ide_channel {
    pthread_mutex_t lock;
    struct ram *ram;
    struct irq_line irq;
    struct ide_drive drive[2];
    u8 select;       /* which one has the registers */
    u8 control;      /* nIEN, SRST */
    bool irq_level;
    u8 bm_command, bm_status; /* bus master, 82371SB §2.6 */
    u32 bm_prd;
    u32 bm_element, bm_left; /* while it runs: address and rest of the current region */
    u32 bm_next;
    bool bm_last;
};

struct ide {
    struct pci_dev pci;
    struct ide_channel channel[2];
};

struct ide_wiring {
    struct pci_host *host;
    struct ram *ram;
    struct irq_line irq[2];
    struct {
        bool present, cdrom;
        struct disk *disk;
    } drive[4]; /* primary master, primary slave, secondary master, secondary slave */
};

int ide_init(struct ide *ide, const struct ide_wiring *wiring);
/* ide_keep - what a snapshot carries of it (state.h). 0 or -ENOMEM. */
struct machine;
int ide_keep(struct ide *ide, struct machine *m);
/* ide_drain - returns when the disks do nothing for the channel. No vCPU writes its registers meanwhile. */
void ide_drain(struct ide_channel *c);
void ide_reset(struct ide *ide);
void ide_fini(struct ide *ide);

extern const struct io_ops ide_command_io; /* 8 ports; dev is the channel */
extern const struct io_ops ide_control_io; /* 1 port */

/* -- For the kinds of drives -------------------------------------------------------------------- */

extern const struct ide_kind ata_disk, atapi_cdrom;
/* ide_interrupt - assert the channel's interrupt (if it is enabled and the drive selected). */
void ide_interrupt(struct ide_drive *d);
/* ide_done - the command has ended well; ide_fail - ended with these error bits. Both interrupt. */
void ide_done(struct ide_drive *d);
void ide_fail(struct ide_drive *d, u8 error);
/* ide_pio - offer len bytes of the buffer, or ask for them (to_drive); no interrupt. */
void ide_pio(struct ide_drive *d, u32 len, bool to_drive);
/* ide_dma - move len bytes between buf and what the bus master's table describes. False: it ended
 * before, or names memory that is not there. */
bool ide_dma(struct ide_channel *c, u8 *buf, u32 len, bool to_memory);
/* ide_wait_dma - the command wants the bus master: now if it runs already. */
void ide_wait_dma(struct ide_drive *d);
/*
 * ide_io - read sectors into the buffer, write them from there, or flush. What takes no waiting is done at once: its result, 0 or
 * -errno. Else IDE_LATER: the drive is busy, and then() is called on a thread of the disk's.
 */
#define IDE_LATER 1
int ide_io(struct ide_drive *d, enum disk_op op, u64 sector, u32 count, ide_then *then);
/* ide_string - a model or serial number as IDENTIFY has it: bytes swapped, padded with spaces. */
void ide_string(u16 *id, unsigned words, const char *s);
