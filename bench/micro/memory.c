/*
 * memory.c - latency (group memlat): dependent and random loads over working
 * sets that fit L1, L2 and neither; and bulk (group membulk): the C library's
 * copies and the string instructions.
 */
#include "vb.h"

#define KIB 1024ul
#define MIB (1024ul * KIB)

/* -- linked lists: a random cycle over cache lines, one load per operation - */

struct line {
    struct line *next;
    u64 pad[7];
};

static struct line *chase_build(size_t bytes)
{
    size_t nr = bytes / sizeof(struct line);
    struct line *lines = vb_alloc(bytes);
    u32 *order = malloc(nr * sizeof(*order));
    u64 seed = 12;

    if (!order)
        vb_die("malloc");
    for (size_t i = 0; i < nr; i++)
        order[i] = (u32)i;
    for (size_t i = nr - 1; i > 0; i--) {
        size_t j = vb_rand(&seed) % (i + 1);
        u32 t = order[i];

        order[i] = order[j];
        order[j] = t;
    }
    for (size_t i = 0; i < nr; i++)
        lines[order[i]].next = &lines[order[(i + 1) % nr]];
    free(order);
    return lines;
}

static u64 chase(struct line *lines, u64 n)
{
    struct line *at = lines;

    for (u64 op = 0; op < n; op++)
        at = at->next;
    return (u64)(at - lines);
}

/* Built once, by setup, so that building it is not measured. */
static struct line *list_16k, *list_1m, *list_64m;
static u64 *random_words;

#define RANDOM_WORDS (16 * MIB / 8)

static int chase_16k_setup(void)
{
    list_16k = chase_build(16 * KIB);
    return 0;
}
static int chase_1m_setup(void)
{
    list_1m = chase_build(MIB);
    return 0;
}
static int chase_64m_setup(void)
{
    list_64m = chase_build(64 * MIB);
    return 0;
}
static int random_setup(void)
{
    random_words = vb_alloc(RANDOM_WORDS * 8);
    return 0;
}

static u64 chase_16k_run(u64 n)
{
    return chase(list_16k, n);
}
static u64 chase_1m_run(u64 n)
{
    return chase(list_1m, n);
}
static u64 chase_64m_run(u64 n)
{
    return chase(list_64m, n);
}

/* Independent read-modify-writes all over 16 MiB. */
static u64 random_rmw_run(u64 n)
{
    u64 seed = 13, sum = 0;

    memset(random_words, 0, RANDOM_WORDS * 8);
    for (u64 op = 0; op < n; op++) {
        u64 r = vb_rand(&seed);

        sum += random_words[r % RANDOM_WORDS] += r;
    }
    return sum;
}

/* -- bulk ------------------------------------------------------------------ */

#define BUF (256 * KIB)

static u8 src[BUF] __attribute__((aligned(64)));
static u8 dst[BUF] __attribute__((aligned(64)));

static void fill(void)
{
    u64 seed = 14;

    for (size_t i = 0; i < BUF; i++)
        src[i] = (u8)(vb_rand(&seed) | 1);
}

static u64 buf_sum(const u8 *p, u64 sum)
{
    for (size_t i = 0; i < BUF; i += 509)
        sum = vb_mix(sum, p[i]);
    return sum;
}

/* Sizes from 16 bytes to 32 KiB, as programs copy; by an opaque pointer so
 * that the C library's copy is called. */
static u64 memcpy_run(u64 n)
{
    void *(*copy)(void *, const void *, size_t) = memcpy;

    fill();
    VB_OPAQUE(copy);
    for (u64 op = 0; op < n; op++) {
        size_t size = 16ul << (op % 12);

        copy(dst + op % 61, src + op % 4096, size);
    }
    return buf_sum(dst, 0);
}

static u64 memset_run(u64 n)
{
    void *(*set)(void *, int, size_t) = memset;

    VB_OPAQUE(set);
    for (u64 op = 0; op < n; op++)
        set(dst + op % 61, (int)op, 16ul << (op % 12));
    return buf_sum(dst, 0);
}

/* Strings of 100 to 4 000 bytes. */
static u64 strlen_run(u64 n)
{
    size_t (*len)(const char *) = strlen;
    u64 sum = 0;

    fill();
    for (size_t at = 0, gap = 100; at < BUF; at += gap)
        src[at] = 0, gap = 100 + (gap * 37) % 3900;
    src[BUF - 1] = 0;
    VB_OPAQUE(len);
    for (u64 op = 0; op < n; op++)
        sum += len((const char *)src + op * 4099 % (BUF - 1));
    return sum;
}

static u64 rep_movsb_run(u64 n)
{
    fill();
    for (u64 op = 0; op < n; op++) {
        void *to = dst + op % 61, *from = src + op % 4096;
        size_t count = 16384;

        __asm__ volatile("rep movsb"
                         : "+D"(to), "+S"(from), "+c"(count)
                         :
                         : "memory");
    }
    return buf_sum(dst, 0);
}

static u64 rep_stosq_run(u64 n)
{
    for (u64 op = 0; op < n; op++) {
        void *to = dst + op % 61 * 8;
        size_t count = 2048;

        __asm__ volatile("rep stosq"
                         : "+D"(to), "+c"(count)
                         : "a"(op)
                         : "memory");
    }
    return buf_sum(dst, 0);
}

/* a[i] = b[i] + 3 * c[i] over 3 x 8 MiB; one operation is one pass. */
#define STREAM (8 * MIB / 8)

static u64 *stream_words;

static int stream_setup(void)
{
    stream_words = vb_alloc(3 * STREAM * 8);
    for (size_t i = 0; i < 3 * STREAM; i++)
        stream_words[i] = i;
    return 0;
}

static u64 stream_run(u64 n)
{
    u64 *a = stream_words, *b = a + STREAM, *c = b + STREAM, sum = 0;

    for (u64 op = 0; op < n; op++) {
        for (size_t i = 0; i < STREAM; i++)
            a[i] = b[i] + 3 * c[i];
        sum = vb_mix(sum, a[op * 4099 % STREAM]);
    }
    return sum;
}

const struct vb_bench vb_memory[] = {
    {"chase_16k", "memlat", 200000000, chase_16k_run, chase_16k_setup},
    {"chase_1m", "memlat", 25000000, chase_1m_run, chase_1m_setup},
    {"chase_64m", "memlat", 2000000, chase_64m_run, chase_64m_setup},
    {"random_rmw", "memlat", 15000000, random_rmw_run, random_setup},
    {"memcpy", "membulk", 2000000, memcpy_run, NULL},
    {"memset", "membulk", 3000000, memset_run, NULL},
    {"strlen", "membulk", 12000000, strlen_run, NULL},
    {"rep_movsb", "membulk", 1000000, rep_movsb_run, NULL},
    {"rep_stosq", "membulk", 1500000, rep_stosq_run, NULL},
    {"stream", "membulk", 400, stream_run, stream_setup},
    {0},
};
