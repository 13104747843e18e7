/*
 * i8237.c - ISA DMA. Source: Intel 8237A data sheet (1993); page registers: Intel 82371AB (PIIX4) §4.1.
 * Not modelled: memory to memory, cascade and verify transfers, software requests, priorities.
 * Threads: vCPU threads; under d->lock, a leaf.
 */
#include "machine/chips/i8237.h"
#include "mem/ram.h"
#include <string.h>

#define MODE_DOWN 0x20
#define MODE_AUTO 0x10

/* Page register's port offset for each channel. */
static const u8 page_port[8] = { 7, 3, 1, 2, 15, 11, 9, 10 };

static u8 channel_read(struct i8237 *d, unsigned chip, unsigned reg)
{
    struct i8237_channel *c = &d->ch[chip * 4 + reg / 2];
    u16 value = reg & 1 ? c->count : c->address;

    d->flip[chip] = !d->flip[chip];
    return (u8)(d->flip[chip] ? value : value >> 8);
}

static void channel_write(struct i8237 *d, unsigned chip, unsigned reg, u8 value)
{
    struct i8237_channel *c = &d->ch[chip * 4 + reg / 2];
    u16 *base = reg & 1 ? &c->base_count : &c->base_address, *now = reg & 1 ? &c->count : &c->address;

    *base = d->flip[chip] ? (u16)((*base & 0xff) | value << 8) : (u16)((*base & 0xff00) | value);
    *now = *base;
    d->flip[chip] = !d->flip[chip];
}

static void control_write(struct i8237 *d, unsigned chip, unsigned reg, u8 value)
{
    unsigned shift = chip * 4, ch = shift + (value & 3);

    switch (reg) {
    case 0xa: /* one mask bit */
        d->mask = value & 4 ? d->mask | (u8)BIT(ch) : d->mask & (u8)~BIT(ch);
        break;
    case 0xb:
        d->ch[ch].mode = value;
        break;
    case 0xc:
        d->flip[chip] = false;
        break;
    case 0xd: /* master clear */
        d->flip[chip] = false;
        d->status &= (u8)~(15u << shift);
        d->mask |= (u8)(15u << shift);
        break;
    case 0xe:
        d->mask &= (u8)~(15u << shift);
        break;
    case 0xf:
        d->mask = (u8)((d->mask & ~(15u << shift)) | (value & 15u) << shift);
        break;
    default:
        break;
    }
}

static u64 io_read(void *dev, u64 off, unsigned size)
{
    struct i8237 *d = dev;
    u8 value = 0;

    (void)size;
    pthread_mutex_lock(&d->lock);
    if (off >= 0x40) {
        value = d->pages[off & 15];
    } else {
        unsigned chip = off >= 0x10, reg = chip ? (unsigned)(off - 0x10) / 2 : (unsigned)off;
        if (reg < 8) {
            value = channel_read(d, chip, reg);
        } else if (reg == 8) {
            value = d->status >> chip * 4 & 15;
            d->status &= (u8)~(15u << chip * 4);
        } else if (reg == 15) {
            value = d->mask >> chip * 4 & 15;
        }
    }
    pthread_mutex_unlock(&d->lock);
    return value;
}

static void io_write(void *dev, u64 off, unsigned size, u64 value)
{
    struct i8237 *d = dev;

    (void)size;
    pthread_mutex_lock(&d->lock);
    if (off >= 0x40) {
        d->pages[off & 15] = (u8)value;
        for (unsigned i = 0; i < 8; i++)
            if (page_port[i] == (off & 15))
                d->ch[i].page = (u8)value;
    } else {
        unsigned chip = off >= 0x10, reg = chip ? (unsigned)(off - 0x10) / 2 : (unsigned)off;
        if (reg < 8)
            channel_write(d, chip, reg, (u8)value);
        else
            control_write(d, chip, reg, (u8)value);
    }
    pthread_mutex_unlock(&d->lock);
}

const struct io_ops i8237_io = { "i8237", 1, 1, io_read, io_write };

u32 i8237_transfer(struct i8237 *d, unsigned channel, u8 *buf, u32 len, bool to_memory, bool *tc)
{
    struct i8237_channel *c = &d->ch[channel & 3];
    u32 done = 0;

    *tc = false;
    pthread_mutex_lock(&d->lock);
    while (done < len && !*tc && !(d->mask >> (channel & 3) & 1)) {
        gpa_t at = (gpa_t)c->page << 16 | c->address;
        u8 *p = to_memory ? ram_dma_ptr(d->ram, at, 1) : ram_ptr(d->ram, at, 1);
        if (p && to_memory)
            *p = buf[done];
        else if (!to_memory)
            buf[done] = p ? *p : 0xff;
        if (p && to_memory)
            ram_written(d->ram, at, 1);
        done++;
        c->address = (u16)(c->mode & MODE_DOWN ? c->address - 1 : c->address + 1);
        if (c->count-- == 0) {
            *tc = true;
            d->status |= (u8)BIT(channel & 3);
            if (c->mode & MODE_AUTO)
                c->address = c->base_address, c->count = c->base_count;
            else
                d->mask |= (u8)BIT(channel & 3);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return done;
}

void i8237_reset(struct i8237 *d)
{
    pthread_mutex_lock(&d->lock);
    memset(d->ch, 0, sizeof(d->ch));
    memset(d->pages, 0, sizeof(d->pages));
    d->mask = 0xff;
    d->status = 0;
    d->flip[0] = d->flip[1] = false;
    pthread_mutex_unlock(&d->lock);
}

void i8237_init(struct i8237 *d, struct ram *ram)
{
    memset(d, 0, sizeof(*d));
    d->ram = ram;
    pthread_mutex_init(&d->lock, NULL);
    i8237_reset(d);
}

void i8237_fini(struct i8237 *d)
{
    pthread_mutex_destroy(&d->lock);
}

const struct state_field i8237_state[] = {
    STATE(struct i8237, ch), STATE(struct i8237, mask), STATE(struct i8237, status), STATE(struct i8237, flip),
    STATE(struct i8237, pages), STATE_END
};
