/*
 * queue.c - split and packed virtqueues. Source: virtio 1.2 §2.7 (split), §2.8 (packed), §2.7.10 (event
 * suppression). Not supported: in-order use, notification data. See queue.h.
 */
#include "virtio/queue.h"
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u
#define DESC_AVAIL (1u << 7) /* packed */
#define DESC_USED (1u << 15)

#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY 1u
#define EVENT_ENABLE 0u /* packed: flags of an event suppression structure */
#define EVENT_DISABLE 1u
#define EVENT_DESC 2u

/* Both layouts are 16 bytes; the last two fields change meaning. */
struct desc {
    u64 addr;
    u32 len;
    u16 a; /* split: flags; packed: buffer id */
    u16 b; /* split: next; packed: flags */
};
_Static_assert(sizeof(struct desc) == 16, "virtio 1.2 §2.7.5");

static u16 load16(const u8 *p)
{
    return __atomic_load_n((const u16 *)p, __ATOMIC_ACQUIRE);
}

static void store16(u8 *p, u16 v)
{
    __atomic_store_n((u16 *)p, v, __ATOMIC_RELEASE);
}

/* Where things are in a split ring. */
static u8 *avail_idx(const struct vq *vq) { return vq->avail + 2; }
static u8 *avail_ring(const struct vq *vq, u16 i) { return vq->avail + 4 + 2 * (i & (vq->size - 1)); }
static u8 *used_event(const struct vq *vq) { return vq->avail + 4 + 2 * vq->size; }
static u8 *used_idx(const struct vq *vq) { return vq->used + 2; }
static u8 *avail_event(const struct vq *vq) { return vq->used + 4 + 8 * vq->size; }

int vq_init(struct vq *vq, struct ram *ram, const struct vq_setup *s)
{
    *vq = (struct vq){
        .size = s->size, .packed = s->packed, .event_idx = s->event_idx, .indirect = s->indirect,
        .avail_wrap = true, .used_wrap = true, .desc_gpa = s->desc, .used_gpa = s->used, .broken = true,
    };
    if (!s->size || s->size > VQ_SIZE_MAX || (!s->packed && (s->size & (s->size - 1))))
        return -EINVAL;
    if ((s->desc & 15) || (s->avail & (s->packed ? 3 : 1)) || (s->used & 3))
        return -EINVAL;
    u64 events = s->event_idx ? 2 : 0;
    vq->desc = s->packed ? ram_dma_ptr(ram, s->desc, 16ull * s->size) : ram_ptr(ram, s->desc, 16ull * s->size);
    vq->avail = ram_ptr(ram, s->avail, s->packed ? 4 : 4 + 2ull * s->size + events);
    vq->used = ram_dma_ptr(ram, s->used, s->packed ? 4 : 4 + 8ull * s->size + events);
    if (!vq->desc || !vq->avail || !vq->used)
        return -EINVAL;
    vq->broken = false;
    return 0;
}

/* -- Taking ----------------------------------------------------------------------------------- */

/* Add one descriptor's memory to the chain: it may lie in several slots. False: the driver is wrong. */
static bool add_seg(struct ram *ram, struct vq_chain *c, u64 gpa, u32 len, bool in)
{
    if (!len)
        return true; /* pointless, but §2.7.4 does not forbid it */
    if (!in && c->nr_in)
        return false; /* §2.7.4.2: readable ones come first */
    if (gpa + (len - 1) < gpa || c->out_len + c->in_len + len > 1ull << 32)
        return false;
    *(in ? &c->in_len : &c->out_len) += len;
    while (len) {
        struct ram_slot *slot = ram_find(ram, gpa);
        unsigned n = c->nr_out + c->nr_in;
        if (!slot || (in && slot->readonly) || n == VQ_SEGS_MAX)
            return false;
        u32 part = (u32)MIN((u64)len, slot->size - (gpa - slot->gpa));
        c->seg[n] = (struct vq_seg){ .host = slot->host + (gpa - slot->gpa), .gpa = gpa, .len = part };
        *(in ? &c->nr_in : &c->nr_out) += 1;
        gpa += part;
        len -= part;
    }
    return true;
}

static struct desc copy_desc(const u8 *table, unsigned i)
{
    struct desc d;
    /* One copy; what the guest changes afterwards is not looked at. */
    memcpy(&d, table + 16ull * i, sizeof(d));
    __asm__ volatile("" ::: "memory");
    return d;
}

/* An indirect table: a host pointer to a whole number of descriptors, or NULL. */
static const u8 *indirect_table(const struct vq *vq, struct ram *ram, const struct desc *d, unsigned *nr)
{
    *nr = d->len / 16;
    if (!vq->indirect || !d->len || d->len % 16 || *nr > 65536)
        return NULL;
    return ram_ptr(ram, d->addr, d->len);
}

static bool split_chain(struct vq *vq, struct ram *ram, u16 head, struct vq_chain *c)
{
    const u8 *table = vq->desc;
    unsigned nr = vq->size, i = head, steps = 0;
    bool inside = false;

    for (;;) {
        if (i >= nr || steps++ == nr) /* a loop visits more descriptors than there are */
            return false;
        struct desc d = copy_desc(table, i);
        if (d.a & DESC_INDIRECT) {
            if (inside || (d.a & DESC_NEXT)) /* §2.7.5.3.1 */
                return false;
            table = indirect_table(vq, ram, &d, &nr);
            if (!table)
                return false;
            inside = true;
            i = steps = 0;
            continue;
        }
        if (!add_seg(ram, c, d.addr, d.len, d.a & DESC_WRITE))
            return false;
        if (!(d.a & DESC_NEXT))
            return true;
        i = d.b;
    }
}

static int split_pop(struct vq *vq, struct ram *ram, struct vq_chain *c)
{
    u16 waiting = (u16)(load16(avail_idx(vq)) - vq->next_avail);
    if (!waiting)
        return 0;
    /* Neither more than the ring holds, nor more than can be out at once. */
    if (waiting > vq->size || vq->in_flight >= vq->size)
        return -EPROTO;
    c->id = load16(avail_ring(vq, vq->next_avail));
    c->nr_desc = 1;
    if (!split_chain(vq, ram, c->id, c))
        return -EPROTO;
    vq->next_avail++;
    return 1;
}

static bool packed_is_avail(const struct vq *vq, u16 flags)
{
    bool avail = flags & DESC_AVAIL, used = flags & DESC_USED;
    return avail != used && avail == vq->avail_wrap;
}

static void packed_advance(const struct vq *vq, u16 *at, bool *wrap, u16 by)
{
    *at = (u16)(*at + by); /* both at most VQ_SIZE_MAX */
    if (*at >= vq->size) {
        *at = (u16)(*at - vq->size);
        *wrap = !*wrap;
    }
}

static int packed_pop(struct vq *vq, struct ram *ram, struct vq_chain *c)
{
    if (!packed_is_avail(vq, load16(vq->desc + 16ull * vq->next_avail + 14)))
        return 0;
    u16 at = vq->next_avail, nr = 0;
    for (;;) {
        struct desc d = copy_desc(vq->desc, at);
        if (++nr > vq->size - vq->in_flight)
            return -EPROTO; /* a loop, or descriptors that are still ours */
        c->id = d.a; /* the last one's counts (§2.8.6) */
        if (d.b & DESC_INDIRECT) {
            unsigned inner;
            const u8 *table = indirect_table(vq, ram, &d, &inner);
            if (!table || nr > 1 || (d.b & DESC_NEXT)) /* §2.8.7 */
                return -EPROTO;
            for (unsigned i = 0; i < inner; i++) { /* in order; only WRITE counts */
                struct desc e = copy_desc(table, i);
                if (!add_seg(ram, c, e.addr, e.len, e.b & DESC_WRITE))
                    return -EPROTO;
            }
        } else if (!add_seg(ram, c, d.addr, d.len, d.b & DESC_WRITE)) {
            return -EPROTO;
        }
        if (!(d.b & DESC_NEXT))
            break;
        at = (u16)(at + 1 == vq->size ? 0 : at + 1);
    }
    if (c->id >= vq->size)
        return -EPROTO;
    c->nr_desc = nr;
    packed_advance(vq, &vq->next_avail, &vq->avail_wrap, nr);
    return 1;
}

int vq_pop(struct vq *vq, struct ram *ram, struct vq_chain *c)
{
    if (vq->broken)
        return -EPROTO;
    c->nr_out = c->nr_in = 0;
    c->out_len = c->in_len = 0;
    int r = vq->packed ? packed_pop(vq, ram, c) : split_pop(vq, ram, c);
    if (r < 0)
        vq->broken = true;
    else if (r)
        vq->in_flight = (u16)(vq->in_flight + c->nr_desc);
    return r;
}

bool vq_has_more(const struct vq *vq)
{
    if (vq->broken)
        return false;
    if (vq->packed)
        return packed_is_avail(vq, load16(vq->desc + 16ull * vq->next_avail + 14));
    return load16(avail_idx(vq)) != vq->next_avail;
}

void vq_unpop(struct vq *vq, u16 nr_desc)
{
    vq->in_flight = (u16)(vq->in_flight - nr_desc);
    if (!vq->packed) {
        vq->next_avail--;
    } else if (vq->next_avail >= nr_desc) {
        vq->next_avail = (u16)(vq->next_avail - nr_desc);
    } else {
        vq->next_avail = (u16)(vq->next_avail + vq->size - nr_desc);
        vq->avail_wrap = !vq->avail_wrap;
    }
}

/* -- Giving back ------------------------------------------------------------------------------ */

void vq_written(struct ram *ram, const struct vq_chain *c, u64 len)
{
    for (unsigned i = c->nr_out; i < (unsigned)c->nr_out + c->nr_in && len; i++) {
        u64 n = MIN(len, (u64)c->seg[i].len);
        ram_written(ram, c->seg[i].gpa, n);
        len -= n;
    }
}

void vq_fill(struct vq *vq, u16 id, u16 nr_desc, u32 len)
{
    if (vq->broken)
        return;
    vq->in_flight = (u16)(vq->in_flight - nr_desc);
    if (!vq->packed) {
        unsigned at = (u16)(vq->next_used + vq->filled++) & (vq->size - 1);
        u32 elem[2] = { id, len };
        memcpy(vq->used + 4 + 8 * at, elem, 8);
        return;
    }
    u8 *d = vq->desc + 16ull * vq->next_used;
    u16 flags = (u16)((vq->used_wrap ? DESC_AVAIL | DESC_USED : 0) | (len ? DESC_WRITE : 0));
    memcpy(d + 8, &len, 4);
    memcpy(d + 12, &id, 2);
    if (vq->filled++) {
        store16(d + 14, flags);
    } else { /* the driver looks at the first one: it must not find the others unwritten */
        vq->held_at = vq->next_used;
        vq->held_flags = flags;
    }
    packed_advance(vq, &vq->next_used, &vq->used_wrap, nr_desc);
}

void vq_publish(struct vq *vq)
{
    if (vq->broken || !vq->filled)
        return;
    if (!vq->packed) {
        vq->next_used = (u16)(vq->next_used + vq->filled);
        store16(used_idx(vq), vq->next_used);
    } else {
        store16(vq->desc + 16ull * vq->held_at + 14, vq->held_flags);
    }
    vq->filled = 0;
}

void vq_push(struct vq *vq, u16 id, u16 nr_desc, u32 len)
{
    vq_fill(vq, id, nr_desc, len);
    vq_publish(vq);
}

/* Has `event` been passed on the way from `old` to `now`? (§2.7.10, vring_need_event) */
static bool passed(u16 event, u16 now, u16 old)
{
    return (u16)(now - event - 1) < (u16)(now - old);
}

static bool packed_need_interrupt(struct vq *vq)
{
    u16 off_wrap, flags = load16(vq->avail + 2) & 3;
    if (flags != EVENT_DESC || !vq->event_idx)
        return flags != EVENT_DISABLE;
    off_wrap = load16(vq->avail);
    /* On a line without wrapping: an offset of the other lap lies one ring's length behind. */
    s32 event = off_wrap & 0x7fff, now = vq->next_used, old = vq->signalled;
    if (event >= vq->size)
        return true;
    if ((bool)(off_wrap >> 15) != vq->used_wrap)
        event -= vq->size;
    if (vq->signalled_wrap != vq->used_wrap)
        old -= vq->size;
    return !vq->signalled_valid || (event >= old && event < now);
}

bool vq_need_interrupt(struct vq *vq)
{
    bool yes;
    if (vq->broken)
        return false;
    /* What was pushed must be visible before the driver's wish is read. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (vq->packed)
        yes = packed_need_interrupt(vq);
    else if (!vq->event_idx)
        yes = !(load16(vq->avail) & AVAIL_NO_INTERRUPT);
    else
        yes = !vq->signalled_valid || passed(load16(used_event(vq)), vq->next_used, vq->signalled);
    vq->signalled = vq->next_used;
    vq->signalled_wrap = vq->used_wrap;
    vq->signalled_valid = true;
    return yes;
}

void vq_want_notify(struct vq *vq, bool want)
{
    if (vq->broken)
        return;
    if (vq->packed) {
        if (want && vq->event_idx)
            store16(vq->used, (u16)(vq->next_avail | (vq->avail_wrap ? 0x8000 : 0)));
        store16(vq->used + 2, want ? vq->event_idx ? EVENT_DESC : EVENT_ENABLE : EVENT_DISABLE);
    } else if (!vq->event_idx) {
        store16(vq->used, want ? 0 : USED_NO_NOTIFY);
    } else if (want) { /* else: an index that was passed long ago asks for nothing */
        store16(avail_event(vq), vq->next_avail);
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* -- Bytes ------------------------------------------------------------------------------------ */

int vq_slice(const struct vq_chain *c, bool in, u64 from, u64 len, struct iovec *iov, unsigned max)
{
    unsigned first = in ? c->nr_out : 0, end = first + (in ? c->nr_in : c->nr_out), n = 0;
    if (from + len < from || from + len > (in ? c->in_len : c->out_len))
        return -EINVAL;
    for (unsigned i = first; i < end && len; i++) {
        const struct vq_seg *s = &c->seg[i];
        if (from >= s->len) {
            from -= s->len;
            continue;
        }
        if (n == max)
            return -ENOSPC;
        u64 part = MIN(len, s->len - from);
        iov[n++] = (struct iovec){ s->host + from, part };
        len -= part;
        from = 0;
    }
    return (int)n;
}

static u64 copy(const struct vq_chain *c, bool in, u64 at, u8 *buf, u64 len)
{
    unsigned first = in ? c->nr_out : 0, end = first + (in ? c->nr_in : c->nr_out);
    u64 done = 0;
    for (unsigned i = first; i < end && done < len; i++) {
        const struct vq_seg *s = &c->seg[i];
        if (at >= s->len) {
            at -= s->len;
            continue;
        }
        u64 n = MIN(len - done, s->len - at);
        if (in)
            memcpy(s->host + at, buf + done, n);
        else
            memcpy(buf + done, s->host + at, n);
        done += n;
        at = 0;
    }
    return done;
}

u64 vq_copy_out(const struct vq_chain *c, u64 from, void *buf, u64 len)
{
    return copy(c, false, from, buf, len);
}

u64 vq_copy_in(const struct vq_chain *c, u64 at, const void *buf, u64 len)
{
    return copy(c, true, at, (u8 *)(uintptr_t)buf, len);
}
