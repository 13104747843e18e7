#include "mem/ram.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void ram_init(struct ram *ram)
{
    memset(ram, 0, sizeof(*ram));
}

void ram_fini(struct ram *ram)
{
    for (unsigned i = 0; i < ram->nr_slots; i++) {
        free(ram->slot[i].page_state);
        free(ram->slot[i].touched);
    }
    memset(ram, 0, sizeof(*ram));
}

int ram_add_slot(struct ram *ram, gpa_t gpa, u64 size, void *host,
                 bool readonly)
{
    if (!size || !host || ((gpa | size | (uintptr_t)host) & ~PAGE_MASK) ||
        gpa + (size - 1) < gpa)
        return -EINVAL;
    for (unsigned i = 0; i < ram->nr_slots; i++) {
        const struct ram_slot *s = &ram->slot[i];
        if (gpa <= s->gpa + (s->size - 1) && s->gpa <= gpa + (size - 1))
            return -EINVAL;
    }
    if (ram->nr_slots == RAM_MAX_SLOTS)
        return -ENOSPC;
    u8 *state = calloc(size >> PAGE_SHIFT, 1);
    if (!state)
        return -ENOMEM;
    ram->slot[ram->nr_slots] = (struct ram_slot){
        .gpa = gpa,
        .size = size,
        .host = host,
        .readonly = readonly,
        .page_state = state,
    };
    __atomic_store_n(&ram->nr_slots, ram->nr_slots + 1, __ATOMIC_RELEASE);
    return 0;
}

int ram_ask_ahead(struct ram *ram, gpa_t gpa)
{
    struct ram_slot *s = ram_find(ram, gpa);

    s->touched = calloc((s->size + RAM_PIECE - 1) >> RAM_PIECE_SHIFT, 1);
    return s->touched ? 0 : -ENOMEM;
}

void ram_ask(struct ram_slot *s, u64 piece)
{
    u64 off = piece << RAM_PIECE_SHIFT;

    __atomic_store_n(&s->touched[piece], 1, __ATOMIC_RELAXED); /* threads that ask at once do no harm */
    madvise(s->host + off, MIN(RAM_PIECE, s->size - off), MADV_POPULATE_WRITE); /* before Linux 5.14: page by page */
}

struct ram_slot *ram_find(struct ram *ram, gpa_t gpa)
{
    for (unsigned i = 0, n = ram_nr_slots(ram); i < n; i++)
        if (ram_slot_has(&ram->slot[i], gpa))
            return &ram->slot[i];
    return NULL;
}

void *ram_ptr(struct ram *ram, gpa_t gpa, u64 len)
{
    struct ram_slot *s = ram_find(ram, gpa);

    if (!s || !len || len > s->size - (gpa - s->gpa))
        return NULL;
    return s->host + (gpa - s->gpa);
}

void *ram_dma_ptr(struct ram *ram, gpa_t gpa, u64 len)
{
    struct ram_slot *s = ram_find(ram, gpa);

    return s && !s->readonly ? ram_ptr(ram, gpa, len) : NULL;
}

/* Is every byte of [gpa, gpa+len) in some slot? */
static bool ram_covers(struct ram *ram, gpa_t gpa, u64 len)
{
    while (len) {
        struct ram_slot *s = ram_find(ram, gpa);
        if (!s)
            return false;
        u64 n = MIN(len, s->size - (gpa - s->gpa));
        gpa += n;
        len -= n;
    }
    return true;
}

int ram_read(struct ram *ram, gpa_t gpa, void *buf, u64 len)
{
    u8 *to = buf;

    if (!ram_covers(ram, gpa, len))
        return -EFAULT;
    while (len) {
        struct ram_slot *s = ram_find(ram, gpa);
        u64 n = MIN(len, s->size - (gpa - s->gpa));
        memcpy(to, s->host + (gpa - s->gpa), n);
        to += n;
        gpa += n;
        len -= n;
    }
    return 0;
}

int ram_write(struct ram *ram, gpa_t gpa, const void *buf, u64 len)
{
    const u8 *from = buf;

    if (!ram_covers(ram, gpa, len))
        return -EFAULT;
    while (len) {
        struct ram_slot *s = ram_find(ram, gpa);
        u64 n = MIN(len, s->size - (gpa - s->gpa));
        memcpy(s->host + (gpa - s->gpa), from, n);
        from += n;
        gpa += n;
        len -= n;
    }
    return 0;
}
