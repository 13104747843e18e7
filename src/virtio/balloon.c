/*
 * balloon.c - virtio memory balloon with free page reporting. Source: virtio 1.2 §5.5. Guest memory is a shared mapping:
 * MADV_REMOVE gives the pages back; they read as zeros if the guest touches them again. Not offered: statistics, free page
 * hints, page poisoning. Threads: everything on vCPU threads; set() and actual() any.
 */
#include "virtio/balloon.h"
#include "base/state.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define F_DEFLATE_ON_OOM BITULL(2)
#define F_PAGE_REPORTING BITULL(5)

#define QUEUE_SIZE 128
#define PFNS 256u
#define INFLATE_MAX (1u << 18) /* bytes of page numbers taken from a request, 256 MiB of pages: it must end some time */
enum { Q_INFLATE, Q_DEFLATE, Q_STATS, Q_HINT, Q_REPORT, NR_QUEUES };

struct virtio_balloon {
    struct virtio_dev dev;
    struct { _Atomic u32 num_pages, actual; } config; /* §5.5.4 */
    struct vq_chain chain[NR_QUEUES];                 /* under each queue's lock */
};

static struct virtio_balloon *balloon_of(const struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_balloon, dev);
}

/* Whole pages of [gpa, gpa+len) back to the host. */
static void give_back(struct ram *ram, gpa_t gpa, u64 len)
{
    gpa_t first = (gpa + PAGE_SIZE - 1) & PAGE_MASK, end = (gpa + len) & PAGE_MASK;
    u8 *host = end > first ? ram_dma_ptr(ram, first, end - first) : NULL;
    if (!host || madvise(host, end - first, MADV_REMOVE))
        return;
    ram_written(ram, first, end - first);
}

static void inflate(struct virtio_balloon *b, const struct vq_chain *c)
{
    u32 pfn[PFNS];
    for (u64 at = 0; at < MIN(c->out_len, (u64)INFLATE_MAX); at += sizeof(pfn)) {
        u64 n = vq_copy_out(c, at, pfn, sizeof(pfn)) / 4;
        for (u64 i = 0; i < n;) { /* runs of neighbours in one go */
            u64 run = 1;
            while (i + run < n && pfn[i + run] == pfn[i] + run)
                run++;
            give_back(b->dev.ram, (gpa_t)pfn[i] << PAGE_SHIFT, run << PAGE_SHIFT);
            i += run;
        }
    }
}

static void report(struct virtio_balloon *b, const struct vq_chain *c) /* §5.5.6.7 */
{
    for (unsigned i = c->nr_out; i < (unsigned)c->nr_out + c->nr_in; i++)
        give_back(b->dev.ram, c->seg[i].gpa, c->seg[i].len);
}

static void balloon_notify(struct virtio_queue *q)
{
    struct virtio_balloon *b = balloon_of(q->dev);
    struct vq_chain *c = &b->chain[q->index];

    pthread_mutex_lock(&q->lock);
    while (virtio_pop(q, c) || (!virtio_idle(q) && virtio_pop(q, c))) {
        if (q->index == Q_INFLATE)
            inflate(b, c);
        else if (q->index >= Q_STATS) /* Linux numbers without gaps for what is not offered: it may be any of these */
            report(b, c);
        vq_push(&q->vq, c->id, c->nr_desc, 0);
    }
    virtio_interrupt(q);
    pthread_mutex_unlock(&q->lock);
}

static void config_read(struct virtio_dev *dev, unsigned off, unsigned size, void *value)
{
    u32 words[2] = { atomic_load(&balloon_of(dev)->config.num_pages), atomic_load(&balloon_of(dev)->config.actual) };
    memcpy(value, (u8 *)words + off, size);
}

static void config_write(struct virtio_dev *dev, unsigned off, unsigned size, const void *value)
{
    u32 word;
    if (off != 4 || size != 4)
        return;
    memcpy(&word, value, 4);
    atomic_store(&balloon_of(dev)->config.actual, word);
}

static void balloon_fini(struct virtio_dev *dev)
{
    free(balloon_of(dev));
}

static const struct state_field balloon_fields[] = {
    STATE(struct virtio_balloon, config.num_pages), STATE(struct virtio_balloon, config.actual), STATE_END
};
_Static_assert(offsetof(struct virtio_balloon, dev) == 0, "virtio_class.state");

static const struct virtio_class balloon_class = {
    .name = "virtio-balloon", .id = 5, .pci_class = 0x00ff00, .notify = balloon_notify, .config_read = config_read,
    .config_write = config_write, .fini = balloon_fini, .state = balloon_fields,
};

int virtio_balloon_create(struct ram *ram, struct virtio_dev **out)
{
    struct virtio_balloon *b = calloc(1, sizeof(*b));
    int err = b ? virtio_init(&b->dev, &balloon_class, ram, F_DEFLATE_ON_OOM | F_PAGE_REPORTING, NR_QUEUES, QUEUE_SIZE,
                              NULL, sizeof(b->config)) : -ENOMEM;
    if (err) {
        free(b);
        return err;
    }
    *out = &b->dev;
    return 0;
}

void virtio_balloon_set(struct virtio_dev *dev, u32 pages)
{
    atomic_store(&balloon_of(dev)->config.num_pages, pages);
    virtio_config_changed(dev);
}

u32 virtio_balloon_actual(struct virtio_dev *dev)
{
    return atomic_load(&balloon_of(dev)->config.actual);
}
