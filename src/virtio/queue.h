/*
 * queue.h - a virtqueue as the device sees it: takes buffers the driver made available, gives them
 * back used. Split (virtio 1.2 §2.7) and packed (§2.8) rings, indirect descriptors, event index.
 *
 * Everything in guest memory is hostile and may change at any time: each descriptor is copied once,
 * and the copy is checked (index, length, loop, address). A driver that breaks the rules breaks its
 * queue: vq_pop() says so for ever after, until vq_init(). No locks here: one thread at a time.
 */
#pragma once
#include "base/types.h"
#include "mem/ram.h"

#define VQ_SIZE_MAX 1024u
#define VQ_SEGS_MAX 258u /* pieces of guest memory in one buffer: 256 pages, header and status */

struct vq_seg {
    u8 *host;
    gpa_t gpa;
    u32 len;
};

/* A buffer taken from the queue: first nr_out pieces the device reads, then nr_in it writes. */
struct vq_chain {
    u16 id;          /* for vq_push() */
    u16 nr_desc;     /* packed: descriptors it takes up in the ring */
    u16 nr_out, nr_in;
    u64 out_len, in_len; /* bytes, at most 4 GiB together */
    struct vq_seg seg[VQ_SEGS_MAX];
};

struct vq {
    /* What the driver set up. */
    u16 size; /* descriptors, 1..VQ_SIZE_MAX; a power of two when split */
    bool packed, event_idx, indirect;
    /* The three areas, within one memory slot each (§2.7: table, available, used; §2.8: ring, driver, device). */
    u8 *desc, *avail, *used;
    gpa_t used_gpa, desc_gpa;
    /* Where we are. */
    bool broken;
    u16 next_avail;  /* split: free running; packed: slot */
    u16 next_used;
    bool avail_wrap, used_wrap;
    u16 signalled;   /* next_used when the driver was last interrupted */
    bool signalled_valid, signalled_wrap;
    u16 in_flight;   /* descriptors (packed) or chains (split) taken and not given back */
    u16 filled;      /* buffers filled and not published */
    u16 held_at, held_flags; /* packed: of the first of them; written last */
};

struct vq_setup {
    u16 size;
    bool packed, event_idx, indirect;
    gpa_t desc, avail, used;
};

/*
 * vq_init - start at the beginning of the rings. 0, or -EINVAL: a size no queue has, a misaligned area, or one that is
 * not memory; then the queue is broken.
 */
int vq_init(struct vq *vq, struct ram *ram, const struct vq_setup *setup);

/* vq_pop - the next available buffer. 1: *chain is filled; 0: none; -EPROTO: the queue is broken. */
int vq_pop(struct vq *vq, struct ram *ram, struct vq_chain *chain);
/* vq_has_more - would vq_pop() find a buffer (or a mistake)? */
bool vq_has_more(const struct vq *vq);
/* vq_unpop - put the buffer that was popped last back, and then the one before, ...; nr_desc: its chain's. */
void vq_unpop(struct vq *vq, u16 nr_desc);

/* vq_written - the device has written the first len bytes of the chain's writable part. Before vq_push(). */
void vq_written(struct ram *ram, const struct vq_chain *chain, u64 len);
/* vq_push - give a buffer back; len: bytes written from its first writable one on. */
void vq_push(struct vq *vq, u16 id, u16 nr_desc, u32 len);
/* vq_fill, vq_publish - the same in two steps: the driver sees all that were filled at once. */
void vq_fill(struct vq *vq, u16 id, u16 nr_desc, u32 len);
void vq_publish(struct vq *vq);
/* vq_need_interrupt - does the driver want to hear of what was pushed since the last time this said yes? */
bool vq_need_interrupt(struct vq *vq);
/* vq_want_notify - does the device want to hear of new buffers? After switching it on, look once more. */
void vq_want_notify(struct vq *vq, bool want);

/* vq_copy_out - up to len bytes at `from` of the readable part; how many there were. */
u64 vq_copy_out(const struct vq_chain *chain, u64 from, void *buf, u64 len);
/* vq_copy_in - up to len bytes to `at` of the writable part; how many fitted. Calls no vq_written(). */
u64 vq_copy_in(const struct vq_chain *chain, u64 at, const void *buf, u64 len);
/* vq_slice - the pieces of [from, from+len) of the readable (in: writable) part. Their number, or -ENOSPC, -EINVAL. */
struct iovec;
int vq_slice(const struct vq_chain *chain, bool in, u64 from, u64 len, struct iovec *iov, unsigned max);
