/*
 * The floppy controller with ISA DMA, through their ports: a read across sides, a write, errors, anything at random. A slow disk
 * holds up nobody.
 */
#include "machine/board.h"
#include "machine/layout.h"
#include "mem/ram.h"
#include "machine/state.h"
#include "storage/disk.h"
#include "tests/lib/check.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define RAM_SIZE (16u << 20)
#define SECTORS 2880u

struct mem_disk {
    struct disk disk;
    u64 bad; /* a sector that cannot be read or written; 0: none */
    pthread_mutex_t gate; /* who has it holds up all requests */
    u8 bytes[SECTORS * DISK_SECTOR];
};

static int pass(struct mem_disk *m, u64 sector, u32 n)
{
    pthread_mutex_lock(&m->gate);
    pthread_mutex_unlock(&m->gate);
    return m->bad && m->bad >= sector && m->bad < sector + n ? -EIO : 0;
}

static int mem_read(struct disk *d, u64 sector, void *buf, u32 n)
{
    struct mem_disk *m = (struct mem_disk *)d;
    int r = pass(m, sector, n);
    if (!r)
        memcpy(buf, m->bytes + sector * DISK_SECTOR, (size_t)n * DISK_SECTOR);
    return r;
}
static int mem_write(struct disk *d, u64 sector, const void *buf, u32 n)
{
    struct mem_disk *m = (struct mem_disk *)d;
    int r = pass(m, sector, n);
    if (!r)
        memcpy(m->bytes + sector * DISK_SECTOR, buf, (size_t)n * DISK_SECTOR);
    return r;
}
static const struct disk_ops ops = { .format = "mem", .read = mem_read, .write = mem_write };

static u64 no_time(void *opaque) { (void)opaque; return 0; }
static u64 no_tsc(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; return 0; }
static void no_kick(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; }
static void no_request(void *opaque, enum machine_request what, int status) { (void)opaque, (void)what, (void)status; }

static struct machine *machine_of(struct ram *ram, struct disk *disk)
{
    struct machine *m = NULL;
    const struct machine_config c = {
        .nr_cpus = 1, .ram_size = RAM_SIZE, .ram = ram, .tsc_khz = 1000000, .wall_ns = 1, .kick = no_kick,
        .tsc_now = no_tsc, .request = no_request, .clock_source = no_time, .floppy = { disk },
    };
    CHECK(!machine_create(&c, &m));
    return m;
}

static void out(struct machine *m, u16 port, u8 v) { machine_port_out(m, port, 1, v); }
static u8 in(struct machine *m, u16 port) { return (u8)machine_port_in(m, port, 1); }

/* Until it hears again. */
static void settle(struct machine *m)
{
    while ((in(m, 0x3f4) & 0x90) == 0x10)
        sched_yield();
}

static void send(struct machine *m, const u8 *bytes, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        CHECK((in(m, 0x3f4) & 0xc0) == 0x80);
        out(m, 0x3f5, bytes[i]);
    }
    settle(m);
}

static void result(struct machine *m, u8 *bytes, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        CHECK((in(m, 0x3f4) & 0xd0) == 0xd0);
        bytes[i] = in(m, 0x3f5);
    }
    CHECK((in(m, 0x3f4) & 0xd0) == 0x80);
}

/* Channel 2: from or to address, so many bytes. */
static void dma(struct machine *m, u32 address, u16 bytes, bool to_memory)
{
    out(m, 0x0a, 6), out(m, 0x0c, 0), out(m, 0x0b, to_memory ? 0x46 : 0x4a);
    out(m, 0x04, (u8)address), out(m, 0x04, (u8)(address >> 8)), out(m, 0x81, (u8)(address >> 16));
    out(m, 0x05, (u8)(bytes - 1)), out(m, 0x05, (u8)((bytes - 1) >> 8));
    out(m, 0x0a, 2);
}

static void seek(struct machine *m, u8 cylinder)
{
    u8 r[2];
    send(m, (u8[]){ 0x0f, 0, cylinder }, 3);
    CHECK(m->fdc.irq_level);
    send(m, (u8[]){ 0x08 }, 1);
    CHECK(!m->fdc.irq_level);
    result(m, r, 2);
    CHECK(r[0] == 0x20 && r[1] == cylinder);
}

static void test_transfers(struct machine *m, struct mem_disk *d, u8 *mem)
{
    u8 r[7];

    out(m, 0x3f2, 0x1c); /* out of reset, motor on */
    CHECK(m->fdc.irq_level);
    for (unsigned i = 0; i < 4; i++) {
        send(m, (u8[]){ 0x08 }, 1);
        result(m, r, 2);
        CHECK(r[0] == (0xc0 | i));
    }
    send(m, (u8[]){ 0x08 }, 1); /* nothing more to say */
    result(m, r, 1);
    CHECK(r[0] == 0x80);
    CHECK(in(m, 0x3f7) & 0x80);
    seek(m, 3);
    CHECK(!(in(m, 0x3f7) & 0x80));

    dma(m, 0x12345, 4 * 512, true); /* sectors 17, 18, and 1, 2 of the other side */
    send(m, (u8[]){ 0xe6, 0, 3, 0, 17, 2, 18, 0x1b, 0xff }, 9);
    CHECK(m->fdc.irq_level);
    result(m, r, 7);
    CHECK(r[0] == 0 && r[1] == 0 && r[3] == 3 && r[4] == 1 && r[5] == 3);
    CHECK(!memcmp(mem + 0x12345, d->bytes + ((3 * 2) * 18 + 16) * 512, 4 * 512));
    memset(mem + 0x20000, 0x77, 512);
    dma(m, 0x20000, 512, false);
    send(m, (u8[]){ 0xc5, 4, 3, 1, 9, 2, 18, 0x1b, 0xff }, 9);
    result(m, r, 7);
    CHECK(r[0] == 4 && r[1] == 0 && d->bytes[((3 * 2 + 1) * 18 + 8) * 512 + 511] == 0x77);

    dma(m, 0x12345, 512, true); /* no such sector; not on this cylinder */
    send(m, (u8[]){ 0xe6, 0, 3, 0, 19, 2, 19, 0x1b, 0xff }, 9);
    result(m, r, 7);
    CHECK((r[0] & 0xc0) == 0x40 && r[1] == 4);
    send(m, (u8[]){ 0xe6, 0, 4, 0, 1, 2, 18, 0x1b, 0xff }, 9);
    result(m, r, 7);
    CHECK((r[0] & 0xc0) == 0x40 && r[1] == 4);
    d->disk.readonly = true;
    dma(m, 0x20000, 512, false);
    send(m, (u8[]){ 0xc5, 0, 3, 0, 9, 2, 18, 0x1b, 0xff }, 9);
    result(m, r, 7);
    CHECK((r[0] & 0xc0) == 0x40 && r[1] == 2);
    d->disk.readonly = false;
    dma(m, 0xfff000, 512, true); /* at the end of memory, and where there is none */
    out(m, 0x81, 0xff);
    send(m, (u8[]){ 0xe6, 0, 3, 0, 1, 2, 18, 0x1b, 0xff }, 9);
    result(m, r, 7);
    send(m, (u8[]){ 0x07, 1 }, 2); /* there is no second drive */
    send(m, (u8[]){ 0x08 }, 1);
    result(m, r, 2);
    CHECK((r[0] & 0xf0) == 0x70);
    send(m, (u8[]){ 0x10 }, 1);
    result(m, r, 1);
    CHECK(r[0] == 0x90);
    send(m, (u8[]){ 0x1f }, 1);
    result(m, r, 1);
    CHECK(r[0] == 0x80);
}

/* The disk takes its time: the controller says that it is busy, and hears nothing but a reset. */
static void test_slow(struct machine *m, struct mem_disk *d, u8 *mem)
{
    const u8 read[9] = { 0xe6, 0, 7, 0, 1, 2, 18, 0x1b, 0xff };
    u8 r[7];

    seek(m, 7);
    for (unsigned reset = 0; reset < 2; reset++) {
        memset(mem + 0x12000, 0x5a, 3 * 512);
        dma(m, 0x12000, 3 * 512, true);
        pthread_mutex_lock(&d->gate);
        for (unsigned i = 0; i < 9; i++)
            out(m, 0x3f5, read[i]);
        CHECK(in(m, 0x3f4) == 0x10 && !m->fdc.irq_level);
        out(m, 0x3f5, 0x10); /* not heard */
        CHECK(in(m, 0x3f5) == 0 && in(m, 0x3f4) == 0x10);
        if (reset) {
            out(m, 0x3f2, 0);
            out(m, 0x3f2, 0x1c);
            CHECK(in(m, 0x3f4) == 0x10 && m->fdc.irq_level);
        }
        pthread_mutex_unlock(&d->gate);
        settle(m);
        CHECK(m->fdc.irq_level);
        if (!reset) {
            result(m, r, 7);
            CHECK(r[0] == 0 && r[1] == 0 && r[5] == 4 && !memcmp(mem + 0x12000, d->bytes + 7 * 2 * 18 * 512, 3 * 512));
        } else { /* nothing of it is left */
            CHECK(in(m, 0x3f4) == 0x80 && mem[0x12000] == 0x5a && !memcmp(mem + 0x12000, mem + 0x12001, 3 * 512 - 1));
            for (unsigned i = 0; i < 4; i++) {
                send(m, (u8[]){ 0x08 }, 1);
                result(m, r, 2);
                CHECK(r[0] == (0xc0 | i));
            }
        }
    }
    /* A sector that cannot be read, after one that could; one that cannot be written. */
    d->bad = 7 * 2 * 18 + 1;
    dma(m, 0x12000, 3 * 512, true);
    send(m, read, 9);
    result(m, r, 7);
    CHECK((r[0] & 0xc0) == 0x40 && r[1] == 0x20 && r[5] == 2 && !memcmp(mem + 0x12000, d->bytes + 7 * 2 * 18 * 512, 512));
    send(m, (u8[]){ 0x4d, 0, 2, 18, 0x1b, 0 }, 6); /* FORMAT */
    result(m, r, 7);
    CHECK((r[0] & 0xc0) == 0x40 && r[1] == 2);
    d->bad = 0;
    send(m, (u8[]){ 0x4d, 4, 2, 18, 0x1b, 0 }, 6); /* side 1 */
    result(m, r, 7);
    const u8 *track = d->bytes + (7 * 2 + 1) * 18 * 512;
    CHECK(r[0] == 4 && !track[0] && !memcmp(track, track + 1, 18 * 512 - 1) && track[18 * 512]);
}

static struct state_set saved(struct machine *m)
{
    struct state_set set = { 0 };
    char err[200];

    CHECK(!machine_stop(m) && !machine_save(m, &set, err, sizeof(err)) && !set.failed);
    machine_start(m);
    return set;
}

/* Saved between the bytes of a command and between those of its result; another machine goes on with the rest. */
static void test_state(struct ram *ram, struct machine *m, struct mem_disk *d, u8 *mem)
{
    const u8 read[9] = { 0xe6, 0, 5, 0, 2, 2, 18, 0x1b, 0xff };
    u8 r[7];
    char err[200];

    seek(m, 5);
    dma(m, 0x30000, 512, true);
    send(m, read, 4);
    struct state_set set = saved(m);
    struct machine *two = machine_of(ram, &d->disk);
    CHECK(!machine_stop(two));
    CHECK_MSG(!machine_load(two, &set, err, sizeof(err)), "%s", err);
    machine_start(two);
    state_set_free(&set);
    memset(mem + 0x30000, 0, 512);
    send(two, read + 4, 5);
    CHECK(two->fdc.irq_level && !memcmp(mem + 0x30000, d->bytes + ((5 * 2) * 18 + 1) * 512, 512));
    CHECK(in(two, 0x3f5) == 0 && !two->fdc.irq_level);

    set = saved(two);
    struct machine *three = machine_of(ram, &d->disk);
    CHECK(!machine_stop(three) && !machine_load(three, &set, err, sizeof(err)));
    machine_start(three);
    result(three, r, 6);
    CHECK(r[0] == 0 && r[2] == 5 && r[5] == 2);
    machine_destroy(three);

    /* Numbers that would be bounds of its arrays. */
    static const struct { const char *field; u8 value; } wrong[] = {
        { "nr_result", 17 }, { "at_result", 8 }, { "nr_command", 9 }, { "pending", 5 },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
        struct state_set bad = { 0 };
        for (unsigned k = 0; k < set.nr; k++) {
            state_set_add(&bad, set.section[k].name, set.section[k].data, set.section[k].len);
            struct state_section *s = &bad.section[k];
            u8 *at = strcmp(s->name, "fdc") ? NULL : memmem(s->data, s->len, wrong[i].field, strlen(wrong[i].field));
            if (at)
                at[strlen(wrong[i].field) + 4] = wrong[i].value;
        }
        struct machine *other = machine_of(ram, &d->disk);
        CHECK(!machine_stop(other));
        CHECK_MSG(machine_load(other, &bad, err, sizeof(err)) == -EINVAL && strstr(err, "fdc"), "%s: %s", wrong[i].field, err);
        machine_destroy(other);
        state_set_free(&bad);
    }
    state_set_free(&set);
    machine_destroy(two);
    for (unsigned i = 4; i < 9; i++) /* the first one's own */
        out(m, 0x3f5, read[i]);
    settle(m);
    result(m, r, 7);
}

static void test_hostile(struct machine *m)
{
    u64 x = 88172645463325252ull;

    for (unsigned i = 0; i < 300000; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        static const u16 first[] = { 0x3f0, 0x3f5, 0x3f5, 0x3f5, 0x00, 0x81 };
        static const u8 count[] = { 6, 1, 1, 1, 16, 15 };
        unsigned n = (unsigned)(x & 0xff) % 6;
        u16 port = (u16)(first[n] + (x >> 8 & 0xff) % count[n]);
        if (x >> 16 & 1)
            in(m, port);
        else
            out(m, port, (u8)(x >> 32));
    }
    out(m, 0x3f2, 0);
    out(m, 0x3f2, 0x0c);
    settle(m);
    CHECK(in(m, 0x3f4) == 0x80);
}

int main(void)
{
    struct mem_disk *d = calloc(1, sizeof(*d));
    u8 *mem = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct ram ram;

    d->disk = (struct disk){ .ops = &ops, .sectors = SECTORS };
    pthread_mutex_init(&d->gate, NULL);
    for (unsigned i = 0; i < sizeof(d->bytes); i++)
        d->bytes[i] = (u8)(i / 512 * 13 + i);
    ram_init(&ram);
    CHECK(!ram_add_slot(&ram, 0, RAM_SIZE, mem, false));
    struct machine *m = machine_of(&ram, &d->disk);
    test_transfers(m, d, mem);
    test_slow(m, d, mem);
    test_state(&ram, m, d, mem);
    test_hostile(m);
    machine_destroy(m);
    ram_fini(&ram);
    munmap(mem, RAM_SIZE);
    free(d);
    return check_done("unit/fdc");
}
