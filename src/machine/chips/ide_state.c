/* ide_state.c - what a snapshot carries of the IDE function: channels, drives, their buffers. */
#include "machine/chips/ide.h"
#include "machine/state.h"
#include <errno.h>
#include <stdio.h>

#define C(member) STATE(struct ide_channel, member)
static const struct state_field channel_fields[] = {
    C(select), C(control), C(irq_level), C(bm_command), C(bm_status), C(bm_prd), C(bm_element), C(bm_left), C(bm_next),
    C(bm_last), STATE_END
};
#undef C

#define D(member) STATE(struct ide_drive, member)
static const struct state_field drive_fields[] = {
    D(status), D(error), D(feature), D(nsector), D(lba_low), D(lba_mid), D(lba_high), D(device), D(hob_nsector),
    D(hob_low), D(hob_mid), D(hob_high), D(multiple), D(dma_mode), D(heads), D(sectors_per_track), D(at), D(len),
    D(to_drive), D(dma_wanted), D(sector), D(left), D(write_through), D(ext), D(packet), D(wants_packet), D(changed), D(sense_key), D(asc),
    D(reply), D(reply_at), STATE_END
};
#undef D

struct buffer {
    u8 bytes[IDE_BUFFER];
};
static const struct state_field buffer_fields[] = { STATE(struct buffer, bytes), STATE_END };

static int channel_loaded(void *dev)
{
    const struct ide_channel *c = dev;

    return c->select > 1 ? -EINVAL : 0;
}

static int drive_loaded(void *dev)
{
    const struct ide_drive *d = dev;
    bool geometry = d->kind->atapi || (d->heads >= 1 && d->heads <= 16 && d->sectors_per_track >= 1);

    return d->at > d->len || d->len > IDE_BUFFER || d->multiple > ATA_MULTIPLE_MAX || !geometry || d->left > 65536 ||
                   d->reply > IDE_BUFFER || d->reply_at > d->reply ?
               -EINVAL :
               0;
}

/* After this nothing is under way: no drive has `io`, and no DMA command has begun and not ended. */
static void quiesce(void *obj)
{
    ide_drain(obj);
}

int ide_keep(struct ide *ide, struct machine *m)
{
    struct device_part part;
    int r = 0;

    ide->pci.kept = true;
    for (unsigned i = 0; i < 4 && !r; i++) {
        struct ide_channel *c = &ide->channel[i / 2];
        struct ide_drive *d = &c->drive[i % 2];
        if (i % 2 == 0) {
            part = (struct device_part){ .state = channel_fields, .obj = c, .loaded = channel_loaded, .quiesce = quiesce };
            snprintf(part.name, sizeof(part.name), "ide.%u", i / 2);
            r = machine_add_part(m, &part);
        }
        if (r || !d->kind)
            continue;
        part = (struct device_part){ .state = drive_fields, .obj = d, .loaded = drive_loaded };
        snprintf(part.name, sizeof(part.name), "ide.%u.drive%u", i / 2, i % 2);
        r = machine_add_part(m, &part);
        if (r)
            break;
        part = (struct device_part){ .state = buffer_fields, .obj = d->buffer };
        snprintf(part.name, sizeof(part.name), "ide.%u.buffer%u", i / 2, i % 2);
        r = machine_add_part(m, &part);
    }
    return r;
}
