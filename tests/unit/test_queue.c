/*
 * test_queue.c - virtqueues: a small driver on the other side of the rings, split and packed, with and without event index
 * and indirect descriptors; and drivers that lie.
 */
#include "virtio/queue.h"
#include "tests/lib/check.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define RAM_SIZE 0x40000u
#define DESC 0x1000u
#define AVAIL 0x5000u
#define USED 0x6000u
#define TABLES 0x10000u /* indirect tables, 512 bytes a head */
#define DATA 0x20000u   /* 256 bytes a head */

struct desc { u64 addr; u32 len; u16 a, b; };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4, AVAIL_BIT = 1 << 7, USED_BIT = 1 << 15 };

static struct ram ram;
static u8 *mem;
static u64 written_bytes;

static void on_written(void *opaque, gpa_t gpa, u64 len)
{
    (void)opaque;
    (void)gpa;
    written_bytes += len;
}

static void fresh(void)
{
    memset(mem, 0, RAM_SIZE);
}

static struct desc *desc_at(unsigned i)
{
    return (struct desc *)(mem + DESC) + i;
}

static u16 *word(u32 at)
{
    return (u16 *)(mem + at);
}

/* -- A driver ----------------------------------------------------------------------------------- */

struct driver {
    u16 size, next, used;       /* next free slot (packed) or available index (split); used seen */
    bool packed, event_idx, indirect, wrap, used_wrap;
};

/* Post one buffer: out bytes the device reads, then in bytes it writes. head: a slot nobody uses. */
static void post(struct driver *d, u16 head, const char *out, u32 in_len)
{
    u32 data = DATA + head * 256u;
    struct desc pieces[2] = {
        { data, (u32)strlen(out), 0, 0 }, { data + 128, in_len, 0, 0 },
    };
    memcpy(mem + data, out, strlen(out));
    if (d->packed) {
        u16 flags = d->wrap ? AVAIL_BIT : USED_BIT;
        if (d->indirect) {
            pieces[1].b = WRITE;
            memcpy(mem + TABLES + head * 512u, pieces, sizeof(pieces));
            *desc_at(d->next) = (struct desc){ TABLES + head * 512u, 32, head, (u16)(flags | INDIRECT) };
            d->next++;
        } else {
            u16 first = d->next;
            for (unsigned i = 0; i < 2; i++) {
                u16 f = (u16)((d->wrap ? AVAIL_BIT : USED_BIT) | (i ? WRITE : NEXT));
                struct desc *to = desc_at(d->next);
                u16 old = to->b;
                *to = pieces[i];
                to->a = head;
                to->b = i ? f : old;
                if (i == 0)
                    flags = f;
                if (++d->next == d->size) {
                    d->next = 0;
                    d->wrap = !d->wrap;
                }
            }
            desc_at(first)->b = flags;
        }
        if (d->next == d->size) {
            d->next = 0;
            d->wrap = !d->wrap;
        }
        return;
    }
    if (d->indirect) {
        pieces[0].a = NEXT;
        pieces[0].b = 1;
        pieces[1].a = WRITE;
        memcpy(mem + TABLES + head * 512u, pieces, sizeof(pieces));
        *desc_at(head) = (struct desc){ TABLES + head * 512u, 32, INDIRECT, 0 };
    } else { /* two descriptors: head and its partner in the upper half */
        u16 other = (u16)(head + d->size / 2);
        pieces[0].a = NEXT;
        pieces[0].b = other;
        pieces[1].a = WRITE;
        *desc_at(head) = pieces[0];
        *desc_at(other) = pieces[1];
    }
    *word(AVAIL + 4 + 2 * (d->next % d->size)) = head;
    *word(AVAIL + 2) = ++d->next;
}

/* The next used buffer: its head, or -1. */
static int reap(struct driver *d, u32 *len)
{
    if (d->packed) {
        struct desc *e = desc_at(d->used);
        bool avail = e->b & AVAIL_BIT, used = e->b & USED_BIT;
        if (avail != used || used != d->used_wrap)
            return -1;
        *len = e->len;
        int head = e->a;
        d->used = (u16)(d->used + (d->indirect ? 1 : 2));
        if (d->used >= d->size) {
            d->used = (u16)(d->used - d->size);
            d->used_wrap = !d->used_wrap;
        }
        return head;
    }
    if (*word(USED + 2) == d->used)
        return -1;
    u32 *e = (u32 *)(mem + USED + 4 + 8u * (d->used++ % d->size));
    *len = e[1];
    return (int)e[0];
}

static int setup(struct vq *vq, struct driver *d, u16 size, unsigned kind)
{
    fresh();
    *d = (struct driver){ .size = size, .packed = kind & 1, .event_idx = kind & 2, .indirect = kind & 4, .wrap = true,
                          .used_wrap = true };
    const struct vq_setup s = { .size = size, .packed = d->packed, .event_idx = d->event_idx, .indirect = d->indirect,
                                .desc = DESC, .avail = AVAIL, .used = USED };
    return vq_init(vq, &ram, &s);
}

/* Many buffers through each kind of ring, up to `depth` out at once, so that all counters wrap. */
static void test_round_trips(unsigned kind)
{
    struct vq vq;
    struct driver d;
    struct vq_chain c;
    char text[64], got[64];
    u32 len, bad = 0;

    CHECK(!setup(&vq, &d, 16, kind));
    for (unsigned n = 0; n < 70000; n += 5) {
        for (unsigned i = 0; i < 5; i++) {
            snprintf(text, sizeof(text), "buffer %u", n + i);
            post(&d, (u16)i, text, 100);
        }
        written_bytes = 0;
        for (unsigned i = 0; i < 5; i++) {
            snprintf(text, sizeof(text), "buffer %u", n + i);
            bad += vq_pop(&vq, &ram, &c) != 1 || c.id != i || c.out_len != strlen(text) || c.in_len != 100;
            memset(got, 0, sizeof(got));
            bad += vq_copy_out(&c, 0, got, sizeof(got)) != strlen(text) || strcmp(got, text);
            bad += vq_copy_in(&c, 0, text, strlen(text)) != strlen(text);
            vq_written(&ram, &c, strlen(text));
            vq_push(&vq, c.id, c.nr_desc, (u32)strlen(text));
        }
        bad += vq_pop(&vq, &ram, &c) != 0 || vq_has_more(&vq) || vq.in_flight;
        bad += written_bytes != 5 * strlen(text);
        for (unsigned i = 0; i < 5; i++) {
            snprintf(text, sizeof(text), "buffer %u", n + i);
            bad += reap(&d, &len) != (int)i || len != strlen(text) || memcmp(mem + DATA + i * 256 + 128, text, len);
        }
        bad += reap(&d, &len) != -1;
    }
    CHECK_MSG(!bad, "kind %u: %u wrong", kind, bad);
}

static void test_order_and_unpop(unsigned kind)
{
    struct vq vq;
    struct driver d;
    struct vq_chain c[3];
    u32 len;

    CHECK(!setup(&vq, &d, 8, kind));
    for (unsigned round = 0; round < 9; round++) {
        for (u16 i = 0; i < 3; i++)
            post(&d, i, "x", 16);
        for (unsigned i = 0; i < 3; i++)
            CHECK(vq_pop(&vq, &ram, &c[i]) == 1);
        vq_unpop(&vq, c[2].nr_desc);
        vq_unpop(&vq, c[1].nr_desc);
        CHECK(vq_pop(&vq, &ram, &c[1]) == 1 && c[1].id == 1);
        CHECK(vq_pop(&vq, &ram, &c[2]) == 1 && c[2].id == 2);
        /* Given back in another order, and seen at once. */
        vq_fill(&vq, c[2].id, c[2].nr_desc, 3);
        CHECK(reap(&d, &len) == -1);
        vq_fill(&vq, c[0].id, c[0].nr_desc, 1);
        vq_fill(&vq, c[1].id, c[1].nr_desc, 2);
        CHECK(reap(&d, &len) == -1);
        vq_publish(&vq);
        CHECK(reap(&d, &len) == 2 && len == 3);
        CHECK(reap(&d, &len) == 0 && len == 1);
        CHECK(reap(&d, &len) == 1 && len == 2);
    }
}

static void one(struct vq *vq, struct driver *d)
{
    struct vq_chain c;
    u32 len;
    post(d, 0, "x", 16);
    CHECK(vq_pop(vq, &ram, &c) == 1);
    vq_push(vq, c.id, c.nr_desc, 0);
    CHECK(reap(d, &len) == 0);
}

static void test_events(void)
{
    struct vq vq;
    struct driver d;

    /* Split, flags. */
    CHECK(!setup(&vq, &d, 8, 0));
    one(&vq, &d);
    CHECK(vq_need_interrupt(&vq));
    *word(AVAIL) = 1;
    one(&vq, &d);
    CHECK(!vq_need_interrupt(&vq));
    vq_want_notify(&vq, false);
    CHECK(*word(USED) == 1);
    vq_want_notify(&vq, true);
    CHECK(*word(USED) == 0);

    /* Split, event index: only when used_event is passed. */
    CHECK(!setup(&vq, &d, 8, 2));
    *word(AVAIL + 4 + 16) = 2;
    one(&vq, &d);
    CHECK(vq_need_interrupt(&vq)); /* the first always */
    one(&vq, &d);
    CHECK(!vq_need_interrupt(&vq));
    one(&vq, &d);
    CHECK(vq_need_interrupt(&vq));
    one(&vq, &d);
    CHECK(!vq_need_interrupt(&vq));
    vq_want_notify(&vq, true);
    CHECK(*word(USED + 4 + 64) == 4);

    /* Packed: flags, then a descriptor event, on both laps. */
    CHECK(!setup(&vq, &d, 8, 1));
    *word(AVAIL + 2) = 1;
    one(&vq, &d);
    CHECK(!vq_need_interrupt(&vq));
    *word(AVAIL + 2) = 0;
    one(&vq, &d);
    CHECK(vq_need_interrupt(&vq));
    CHECK(!setup(&vq, &d, 8, 1 | 2));
    *word(AVAIL + 2) = 2;
    *word(AVAIL) = 2 | 0x8000;
    one(&vq, &d); /* used slots 0, 1 */
    CHECK(vq_need_interrupt(&vq));
    one(&vq, &d); /* 2, 3 */
    CHECK(vq_need_interrupt(&vq));
    one(&vq, &d); /* 4, 5 */
    CHECK(!vq_need_interrupt(&vq));
    *word(AVAIL) = 0; /* slot 0 of the next lap */
    one(&vq, &d); /* 6, 7 */
    CHECK(!vq_need_interrupt(&vq));
    one(&vq, &d); /* 0, 1 */
    CHECK(vq_need_interrupt(&vq));
    vq_want_notify(&vq, true);
    CHECK(*word(USED) == 2 && *word(USED + 2) == 2);
    vq_want_notify(&vq, false);
    CHECK(*word(USED + 2) == 1);
}

/* -- Drivers that lie --------------------------------------------------------------------------- */

static void expect_broken(struct vq *vq, const char *what)
{
    struct vq_chain c;
    CHECK_MSG(vq_pop(vq, &ram, &c) == -EPROTO && vq->broken, "%s", what);
    CHECK_MSG(vq_pop(vq, &ram, &c) == -EPROTO, "%s, again", what);
    vq_push(vq, 0, 1, 0); /* nothing happens */
}

static void test_bad_setups(void)
{
    struct vq vq;
    const struct vq_setup good = { .size = 8, .desc = DESC, .avail = AVAIL, .used = USED };
    struct vq_setup s;
#define BAD(change) do { s = good; change; CHECK_MSG(vq_init(&vq, &ram, &s) == -EINVAL && vq.broken, #change); } while (0)
    CHECK(!vq_init(&vq, &ram, &good));
    BAD(s.size = 0);
    BAD(s.size = 7);
    BAD(s.size = 2048);
    BAD(s.desc = DESC + 8);
    BAD(s.avail = AVAIL + 1);
    BAD(s.used = USED + 2);
    BAD(s.desc = RAM_SIZE - 64);
    BAD(s.avail = RAM_SIZE);
    BAD(s.used = ~0ull & ~3ull);
    BAD(s.used = 0x100000); /* read-only memory */
    BAD((s.packed = true, s.desc = 0x100000));
#undef BAD
}

static void test_hostile_split(void)
{
    struct vq vq;
    struct driver d;
    struct vq_chain c;
#define AGAIN(kind) CHECK(!setup(&vq, &d, 8, kind)); *word(AVAIL + 2) = 1
    AGAIN(0);
    *word(AVAIL + 4) = 8;
    expect_broken(&vq, "a head that is not there");
    AGAIN(0);
    *desc_at(0) = (struct desc){ DATA, 4, NEXT, 8 };
    expect_broken(&vq, "a next that is not there");
    AGAIN(0);
    *desc_at(0) = (struct desc){ DATA, 4, NEXT, 1 };
    *desc_at(1) = (struct desc){ DATA, 4, NEXT, 0 };
    expect_broken(&vq, "a loop");
    AGAIN(0);
    *desc_at(0) = (struct desc){ DATA, 0, NEXT, 0 };
    expect_broken(&vq, "a loop of nothing");
    AGAIN(0);
    *word(AVAIL + 2) = 9;
    expect_broken(&vq, "more available than the ring holds");
    AGAIN(0);
    *desc_at(0) = (struct desc){ RAM_SIZE - 4, 8, 0, 0 };
    expect_broken(&vq, "past the end of memory");
    AGAIN(0);
    *desc_at(0) = (struct desc){ ~0ull - 4, 8, 0, 0 };
    expect_broken(&vq, "an address that wraps");
    AGAIN(0);
    *desc_at(0) = (struct desc){ DATA, 8, WRITE | NEXT, 1 };
    *desc_at(1) = (struct desc){ DATA, 8, 0, 0 };
    expect_broken(&vq, "readable behind writable");
    AGAIN(0);
    *desc_at(0) = (struct desc){ 0x100000, 8, WRITE, 0 };
    expect_broken(&vq, "writing to read-only memory");
    AGAIN(0);
    *desc_at(0) = (struct desc){ TABLES, 16, INDIRECT, 0 };
    expect_broken(&vq, "indirect without the feature");
    AGAIN(4);
    *desc_at(0) = (struct desc){ TABLES, 17, INDIRECT, 0 };
    expect_broken(&vq, "part of an indirect descriptor");
    AGAIN(4);
    *desc_at(0) = (struct desc){ TABLES, 0, INDIRECT, 0 };
    expect_broken(&vq, "an empty indirect table");
    AGAIN(4);
    *desc_at(0) = (struct desc){ TABLES, 16, INDIRECT | NEXT, 1 };
    expect_broken(&vq, "indirect and next");
    AGAIN(4);
    *desc_at(0) = (struct desc){ RAM_SIZE - 16, 32, INDIRECT, 0 };
    expect_broken(&vq, "an indirect table past the end of memory");
    AGAIN(4);
    *desc_at(0) = (struct desc){ TABLES, 16, INDIRECT, 0 };
    memcpy(mem + TABLES, &(struct desc){ TABLES, 16, INDIRECT, 0 }, 16);
    expect_broken(&vq, "indirect in indirect");
    AGAIN(4);
    *desc_at(0) = (struct desc){ TABLES, 0x8000, INDIRECT, 0 };
    for (unsigned i = 0; i < 0x800; i++)
        memcpy(mem + TABLES + 16 * i, &(struct desc){ DATA, 1, NEXT, (u16)(i + 1) }, 16);
    expect_broken(&vq, "more pieces than a buffer may have");
    AGAIN(4); /* 4 GiB and more in all: lengths that the memory could hold, many times */
    *desc_at(0) = (struct desc){ TABLES, 16, INDIRECT, 0 };
    memcpy(mem + TABLES, &(struct desc){ 0, 0xffffffff, WRITE, 0 }, 16);
    expect_broken(&vq, "longer than memory");
    AGAIN(0); /* the same head, over and over, never given back */
    *desc_at(0) = (struct desc){ DATA, 4, 0, 0 };
    *word(AVAIL + 2) = 8;
    for (unsigned i = 0; i < 8; i++)
        CHECK(vq_pop(&vq, &ram, &c) == 1);
    *word(AVAIL + 2) = 9;
    expect_broken(&vq, "more out than there are descriptors");
#undef AGAIN
}

static void test_hostile_packed(void)
{
    struct vq vq;
    struct driver d;
    CHECK(!setup(&vq, &d, 8, 1));
    for (unsigned i = 0; i < 8; i++)
        *desc_at(i) = (struct desc){ DATA, 4, 0, AVAIL_BIT | NEXT };
    expect_broken(&vq, "a chain as long as the ring that goes on");
    CHECK(!setup(&vq, &d, 8, 1));
    *desc_at(0) = (struct desc){ DATA, 4, 8, AVAIL_BIT };
    expect_broken(&vq, "an id that is not there");
    CHECK(!setup(&vq, &d, 8, 1));
    *desc_at(0) = (struct desc){ DATA, 16, 0, AVAIL_BIT | INDIRECT };
    expect_broken(&vq, "indirect without the feature");
    CHECK(!setup(&vq, &d, 8, 1 | 4));
    *desc_at(0) = (struct desc){ DATA, 4, 0, AVAIL_BIT | NEXT };
    *desc_at(1) = (struct desc){ TABLES, 16, 0, AVAIL_BIT | INDIRECT };
    expect_broken(&vq, "indirect behind another");
}

static void test_slice(void)
{
    struct vq_chain c = { .nr_out = 2, .nr_in = 1, .out_len = 30, .in_len = 5 };
    struct iovec iov[3];
    c.seg[0] = (struct vq_seg){ mem, 0, 10 };
    c.seg[1] = (struct vq_seg){ mem + 100, 100, 20 };
    c.seg[2] = (struct vq_seg){ mem + 200, 200, 5 };
    CHECK(vq_slice(&c, false, 4, 20, iov, 3) == 2);
    CHECK(iov[0].iov_base == mem + 4 && iov[0].iov_len == 6 && iov[1].iov_base == mem + 100 && iov[1].iov_len == 14);
    CHECK(vq_slice(&c, true, 0, 5, iov, 3) == 1 && iov[0].iov_base == mem + 200);
    CHECK(vq_slice(&c, true, 1, 5, iov, 3) == -EINVAL);
    CHECK(vq_slice(&c, false, ~0ull, 2, iov, 3) == -EINVAL);
    CHECK(vq_slice(&c, false, 0, 30, iov, 1) == -ENOSPC);
    CHECK(vq_slice(&c, false, 30, 0, iov, 3) == 0);
}

int main(void)
{
    static u8 rom[4096] __attribute__((aligned(4096)));
    mem = aligned_alloc(4096, RAM_SIZE);
    ram_init(&ram);
    ram.written = on_written;
    /* Two slots in a row: buffers may cross from one to the other. */
    bug_on(ram_add_slot(&ram, 0, DATA + 0x80, mem, false) != -EINVAL);
    bug_on(ram_add_slot(&ram, 0, 0x21000, mem, false) || ram_add_slot(&ram, 0x21000, RAM_SIZE - 0x21000, mem + 0x21000, false));
    bug_on(ram_add_slot(&ram, 0x100000, sizeof(rom), rom, true));
    for (unsigned kind = 0; kind < 8; kind++) {
        test_round_trips(kind);
        test_order_and_unpop(kind);
    }
    test_events();
    test_bad_setups();
    test_hostile_split();
    test_hostile_packed();
    test_slice();
    ram_fini(&ram);
    free(mem);
    return check_done("unit/queue");
}
