/*
 * p9.c - virtio 9P device. Source: virtio 1.2 §5.9. Threads: one of its own works requests off, one at a time; notify()
 * wakes it. Guest memory is touched between pop and push only, and stop() waits for that.
 */
#include "virtio/p9.h"
#include "base/sandbox.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define F_MOUNT_TAG BITULL(0)
#define QUEUE_SIZE 128

struct virtio_p9 {
    struct virtio_dev dev;
    struct { u16 len; char tag[32]; } __attribute__((packed)) config;
    struct p9_fs *fs;
    struct vq_chain chain;  /* its thread's, as the next two */
    u8 *msg, *reply;
    pthread_t thread;
    bool running;
    pthread_mutex_t lock;   /* what follows */
    pthread_cond_t work, idle;
    bool notified, busy, reset, quit;
};

static struct virtio_p9 *p9_of(const struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_p9, dev);
}

static void work(struct virtio_p9 *p9)
{
    struct virtio_queue *q = &p9->dev.queue[0];
    struct vq_chain *c = &p9->chain;

    for (;;) {
        pthread_mutex_lock(&q->lock);
        bool got = virtio_pop(q, c) || (!virtio_idle(q) && virtio_pop(q, c));
        pthread_mutex_unlock(&q->lock);
        if (!got)
            return;
        u32 len = (u32)vq_copy_out(c, 0, p9->msg, P9_MSIZE_MAX);
        u32 n = p9_fs_request(p9->fs, p9->msg, len, p9->reply, (u32)MIN(c->in_len, (u64)P9_MSIZE_MAX));
        vq_copy_in(c, 0, p9->reply, n);
        vq_written(p9->dev.ram, c, n);
        pthread_mutex_lock(&q->lock);
        vq_push(&q->vq, c->id, c->nr_desc, n);
        virtio_interrupt(q);
        pthread_mutex_unlock(&q->lock);
    }
}

static void *p9_main(void *arg)
{
    struct virtio_p9 *p9 = arg;
    sandbox_enter(SANDBOX_SHARE);
    pthread_mutex_lock(&p9->lock);
    while (!p9->quit) {
        if (!p9->notified && !p9->reset) {
            pthread_cond_wait(&p9->work, &p9->lock);
            continue;
        }
        bool reset = p9->reset;
        p9->notified = p9->reset = false;
        p9->busy = true;
        pthread_mutex_unlock(&p9->lock);
        if (reset)
            p9_fs_reset(p9->fs);
        work(p9);
        pthread_mutex_lock(&p9->lock);
        p9->busy = false;
        pthread_cond_broadcast(&p9->idle);
    }
    pthread_mutex_unlock(&p9->lock);
    return NULL;
}

static void p9_notify(struct virtio_queue *q)
{
    struct virtio_p9 *p9 = p9_of(q->dev);
    pthread_mutex_lock(&p9->lock);
    p9->notified = true;
    pthread_cond_signal(&p9->work);
    pthread_mutex_unlock(&p9->lock);
}

static void p9_stop(struct virtio_dev *dev)
{
    struct virtio_p9 *p9 = p9_of(dev);
    pthread_mutex_lock(&p9->lock);
    p9->reset = true;
    pthread_cond_signal(&p9->work);
    while (p9->busy)
        pthread_cond_wait(&p9->idle, &p9->lock);
    pthread_mutex_unlock(&p9->lock);
}

/* vCPUs rest: what they have asked for is answered, and no more comes. */
static void p9_drain(struct virtio_dev *dev)
{
    struct virtio_p9 *p9 = p9_of(dev);
    pthread_mutex_lock(&p9->lock);
    while (p9->busy || p9->notified || p9->reset)
        pthread_cond_wait(&p9->idle, &p9->lock);
    pthread_mutex_unlock(&p9->lock);
}

static int p9_save(struct virtio_dev *dev, struct state_buf *buf, const char **why)
{
    return p9_fs_save(p9_of(dev)->fs, buf, why);
}

static int p9_load(struct virtio_dev *dev, const void *bytes, size_t len)
{
    return p9_fs_load(p9_of(dev)->fs, bytes, len);
}

static void p9_end(struct virtio_dev *dev)
{
    struct virtio_p9 *p9 = p9_of(dev);
    if (!p9->running)
        return;
    pthread_mutex_lock(&p9->lock);
    p9->quit = true;
    pthread_cond_signal(&p9->work);
    pthread_mutex_unlock(&p9->lock);
    pthread_join(p9->thread, NULL);
    p9->running = false;
}

static void p9_fini(struct virtio_dev *dev)
{
    struct virtio_p9 *p9 = p9_of(dev);
    p9_fs_free(p9->fs);
    free(p9->msg);
    free(p9->reply);
    pthread_cond_destroy(&p9->work);
    pthread_cond_destroy(&p9->idle);
    pthread_mutex_destroy(&p9->lock);
    free(p9);
}

static const struct virtio_class p9_class = {
    .name = "virtio-9p", .id = 9, .pci_class = 0x018000, .notify = p9_notify, .stop = p9_stop, .end = p9_end,
    .fini = p9_fini, .drain = p9_drain, .save = p9_save, .load = p9_load,
};

int virtio_p9_create(struct ram *ram, const char *dir, const char *tag, bool readonly, struct virtio_dev **out)
{
    struct virtio_p9 *p9 = calloc(1, sizeof(*p9));
    sigset_t all, old;

    if (!p9)
        return -ENOMEM;
    pthread_mutex_init(&p9->lock, NULL);
    pthread_cond_init(&p9->work, NULL);
    pthread_cond_init(&p9->idle, NULL);
    p9->msg = malloc(P9_MSIZE_MAX);
    p9->reply = malloc(P9_MSIZE_MAX);
    p9->config.len = (u16)strnlen(tag, sizeof(p9->config.tag));
    memcpy(p9->config.tag, tag, p9->config.len);
    int err = p9->msg && p9->reply ? p9_fs_create(dir, readonly, &p9->fs) : -ENOMEM;
    if (!err)
        err = virtio_init(&p9->dev, &p9_class, ram, F_MOUNT_TAG, 1, QUEUE_SIZE, &p9->config, 2u + p9->config.len);
    if (!err) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        err = -pthread_create(&p9->thread, NULL, p9_main, p9);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        p9->running = !err;
    }
    if (err) {
        p9_fini(&p9->dev);
        return err;
    }
    *out = &p9->dev;
    return 0;
}
