/* ram.h: slots, the bounds of every look-up, and copies across slots. */
#include "mem/ram.h"
#include "mem/backing.h"
#include "tests/lib/check.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LOW 0x0ull
#define HIGH 0x100000000ull

static void test_add(struct backing *b)
{
    struct ram ram;
    u8 *h = b->host;

    ram_init(&ram);
    CHECK(ram_add_slot(&ram, 0x1000, 0x2000, h, false) == 0);
    CHECK(ram_add_slot(&ram, 0x1001, 0x1000, h, false) == -EINVAL);
    CHECK(ram_add_slot(&ram, 0x8000, 0x1001, h, false) == -EINVAL);
    CHECK(ram_add_slot(&ram, 0x8000, 0x1000, h + 1, false) == -EINVAL);
    CHECK(ram_add_slot(&ram, 0x8000, 0, h, false) == -EINVAL);
    CHECK(ram_add_slot(&ram, 0x8000, 0x1000, NULL, false) == -EINVAL);
    CHECK(ram_add_slot(&ram, 0x0, 0x2000, h, false) == -EINVAL);
    CHECK(ram_add_slot(&ram, 0x2000, 0x4000, h, false) == -EINVAL);
    CHECK(ram_add_slot(&ram, 0x0, 0x10000, h, false) == -EINVAL);
    CHECK(ram_add_slot(&ram, ~0xfffull, 0x2000, h, false) == -EINVAL);
    CHECK(ram_add_slot(&ram, ~0xfffull, 0x1000, h, false) == 0);
    CHECK(ram_add_slot(&ram, 0x3000, 0x1000, h, true) == 0);
    CHECK(ram.nr_slots == 3);
    for (unsigned i = 3; i < RAM_MAX_SLOTS; i++)
        CHECK(ram_add_slot(&ram, 0x100000 * i, 0x1000, h, false) == 0);
    CHECK(ram_add_slot(&ram, HIGH, 0x1000, h, false) == -ENOSPC);
    ram_fini(&ram);
    CHECK(ram.nr_slots == 0);
}

static void test_find(struct backing *b)
{
    struct ram ram;
    u8 *h = b->host;

    ram_init(&ram);
    CHECK(ram_find(&ram, 0) == NULL);
    CHECK(ram_add_slot(&ram, LOW, 0x4000, h, false) == 0);
    CHECK(ram_add_slot(&ram, HIGH, 0x4000, h + 0x4000, false) == 0);
    CHECK(ram_find(&ram, 0)->gpa == 0);
    CHECK(ram_find(&ram, 0x3fff)->gpa == 0);
    CHECK(ram_find(&ram, 0x4000) == NULL);
    CHECK(ram_find(&ram, HIGH - 1) == NULL);
    CHECK(ram_find(&ram, HIGH)->host == h + 0x4000);
    CHECK(ram_find(&ram, ~0ull) == NULL);

    CHECK(ram_ptr(&ram, 0, 1) == h);
    CHECK(ram_ptr(&ram, 0, 0x4000) == h);
    CHECK(ram_ptr(&ram, 0, 0x4001) == NULL);
    CHECK(ram_ptr(&ram, 0x3fff, 1) == h + 0x3fff);
    CHECK(ram_ptr(&ram, 0x3fff, 2) == NULL);
    CHECK(ram_ptr(&ram, 0x1000, ~0ull) == NULL);
    CHECK(ram_ptr(&ram, 0x1000, 0) == NULL);
    CHECK(ram_ptr(&ram, HIGH + 0x10, 0x10) == h + 0x4010);
    CHECK(ram_ptr(&ram, ~0ull, 1) == NULL);
    ram_fini(&ram);
}

static void test_copy(struct backing *b)
{
    struct ram ram;
    u8 *h = b->host, buf[64], back[64];

    /* Neighbours in the guest, the other way round in the host. */
    ram_init(&ram);
    CHECK(ram_add_slot(&ram, 0x1000, 0x1000, h + 0x1000, false) == 0);
    CHECK(ram_add_slot(&ram, 0x2000, 0x1000, h, false) == 0);
    for (unsigned i = 0; i < sizeof(buf); i++)
        buf[i] = (u8)(i + 1);
    CHECK(ram_write(&ram, 0x2000 - 20, buf, sizeof(buf)) == 0);
    CHECK(h[0x2000 - 20] == 1 && h[0x2000 - 1] == 20 && h[0] == 21);
    CHECK(ram_read(&ram, 0x2000 - 20, back, sizeof(back)) == 0);
    CHECK(!memcmp(buf, back, sizeof(buf)));
    /* Not even the part that would fit is copied. */
    memset(h, 0, 0x2000);
    CHECK(ram_write(&ram, 0x3000 - 8, buf, sizeof(buf)) == -EFAULT);
    CHECK(h[0x1000 - 8] == 0);
    CHECK(ram_read(&ram, 0x1000 - 1, back, 2) == -EFAULT);
    CHECK(ram_read(&ram, ~0ull, back, 2) == -EFAULT);
    CHECK(ram_read(&ram, 0x500000, back, 0) == 0);
    ram_fini(&ram);
}

/* How many pages of it the host has given. */
static unsigned nr_there(const u8 *host, unsigned nr)
{
    unsigned char there[64];
    unsigned n = 0;

    bug_on(nr > sizeof(there) || mincore((void *)host, nr * PAGE_SIZE, there));
    for (unsigned i = 0; i < nr; i++)
        n += there[i] & 1;
    return n;
}

/* Memory asked for ahead comes by pieces, within its slot only; the rest as it is touched. */
static void test_ahead(void)
{
    struct backing b;
    struct ram ram;

    CHECK(backing_init(&b, 3 * RAM_PIECE) == 0);
    u8 *h = b.host;
    ram_init(&ram);
    CHECK(ram_add_slot(&ram, 0, RAM_PIECE + PAGE_SIZE, h, false) == 0);
    CHECK(ram_add_slot(&ram, HIGH, RAM_PIECE, h + 2 * RAM_PIECE, false) == 0);
    CHECK(ram_ask_ahead(&ram, 0) == 0);
    CHECK(nr_there(h, 48) == 0);
    ram_touch(ram_find(&ram, 0), RAM_PIECE - 1);
    CHECK(nr_there(h, 16) == 16 && nr_there(h, 48) == 16);
    ram_touch(ram_find(&ram, 0), RAM_PIECE);
    CHECK(nr_there(h, 48) == 17);
    ram_touch(ram_find(&ram, HIGH), 0);
    CHECK(nr_there(h, 48) == 17);
    /* What was given back and is used again is there as before, but by the page. */
    CHECK(madvise(h, RAM_PIECE, MADV_REMOVE) == 0);
    ram_touch(ram_find(&ram, 0), 0);
    CHECK(nr_there(h, 16) == 0 && h[5] == 0 && nr_there(h, 16) == 1);
    ram_fini(&ram);
    backing_fini(&b);
}

static void test_backing(void)
{
    struct backing b;

    CHECK(backing_init(&b, 5) == 0);
    CHECK(b.size == PAGE_SIZE);
    u8 *p = b.host;
    CHECK(p[0] == 0 && p[4095] == 0);
    p[7] = 9;
    CHECK(backing_zero(&b) == 0);
    CHECK(p[7] == 0);
    backing_fini(&b);
    /* Costs nothing until touched. */
    CHECK(backing_init(&b, 64ull << 30) == 0);
    backing_fini(&b);
}

int main(void)
{
    struct backing b;

    if (backing_init(&b, 0x10000))
        return 1;
    test_add(&b);
    test_find(&b);
    test_copy(&b);
    test_ahead();
    test_backing();
    backing_fini(&b);
    return check_done("unit/ram");
}
