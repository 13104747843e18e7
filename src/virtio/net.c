/*
 * net.c - virtio network card. Source: virtio 1.2 §5.1. Queues: receive 0, transmit 0, receive 1, ..., control. Offloads
 * are what the back end knows. Not offered: receive filters, VLAN filters, RSS, guest announcement, UDP segmentation.
 *
 * Threads: transmit on vCPU threads, straight into the back end; receive() on the back end's thread or from within its
 * send(). Each queue has its lock; a transmit queue's may be held when a receive queue's is taken, never the reverse.
 */
#include "virtio/net.h"
#include "machine/clock.h"
#include "net/net.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define F_CSUM BITULL(0)
#define F_GUEST_CSUM BITULL(1)
#define F_MTU BITULL(3)
#define F_MAC BITULL(5)
#define F_GUEST_TSO4 BITULL(7)
#define F_GUEST_TSO6 BITULL(8)
#define F_HOST_TSO4 BITULL(11)
#define F_HOST_TSO6 BITULL(12)
#define F_MRG_RXBUF BITULL(15)
#define F_STATUS BITULL(16)
#define F_CTRL_VQ BITULL(17)
#define F_MQ BITULL(22)

#define QUEUE_SIZE 256
#define HDR_LEN sizeof(struct net_hdr)
_Static_assert(sizeof(struct net_hdr) == 12, "virtio 1.2 §5.1.6");
#define STATUS_LINK_UP 1
#define CTRL_MQ 4
#define CTRL_MQ_PAIRS_SET 0
#define FLOWS 256u

struct net_config { /* §5.1.4 */
    u8 mac[6];
    u16 status, max_pairs, mtu;
} __attribute__((packed));

struct virtio_net {
    struct virtio_dev dev;
    struct net_config config;
    struct net_backend *be;
    unsigned pairs_max;
    atomic_uint pairs;             /* in use */
    atomic_bool held;              /* the machine stands still: frames wait; written under the receive queues' locks */
    atomic_uchar flow[FLOWS];      /* the pair a flow was last sent by: answers go there */
    struct vq_chain *rx_chain[VIRTIO_NET_PAIRS_MAX][2]; /* first and current, under the queue's lock */
    struct vq_chain *tx_chain[VIRTIO_NET_PAIRS_MAX];
    struct vm_clock *clock;
    struct vm_timer tell;
    atomic_bool telling;           /* that timer is set */
    unsigned untold[VIRTIO_NET_PAIRS_MAX]; /* packets sent; this and the next under the transmit queue's lock */
    u64 sent_ns[VIRTIO_NET_PAIRS_MAX];
};

static struct virtio_net *net_of(const struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_net, dev);
}

/* -- Receive ------------------------------------------------------------------------------------ */

struct piece { u16 id, nr_desc; u32 len; };

/*
 * One frame into one buffer, or several if the driver merges them (§5.1.6.4). With q->lock held. False: not enough
 * buffers; those taken are back in the queue.
 */
static bool put_frame(struct virtio_queue *q, struct net_hdr hdr, const u8 *frame, size_t len)
{
    struct virtio_net *net = net_of(q->dev);
    struct vq_chain *first = net->rx_chain[q->index / 2][0], *next = net->rx_chain[q->index / 2][1];
    bool merge = virtio_has(q->dev, F_MRG_RXBUF);
    struct piece piece[QUEUE_SIZE];
    unsigned nr = 0;
    size_t done = 0;

    while (done < len) {
        struct vq_chain *c = nr ? next : first;
        if (nr == ARRAY_SIZE(piece) || !virtio_pop(q, c)) {
            while (nr)
                vq_unpop(&q->vq, piece[--nr].nr_desc);
            return false;
        }
        u64 at = nr ? 0 : HDR_LEN;
        if (c->in_len <= at) { /* §5.1.6.3: room for the header at least */
            q->vq.broken = true;
            virtio_broken(q->dev);
            return false;
        }
        u64 n = vq_copy_in(c, at, frame + done, len - done);
        done += n;
        piece[nr++] = (struct piece){ c->id, c->nr_desc, (u32)(at + n) };
        if (nr > 1)
            vq_written(q->dev->ram, c, n);
        if (!merge)
            break; /* what does not fit is lost: the driver gave too little */
    }
    hdr.num_buffers = (u16)nr;
    vq_copy_in(first, 0, &hdr, HDR_LEN);
    vq_written(q->dev->ram, first, piece[0].len);
    for (unsigned i = 0; i < nr; i++)
        vq_fill(&q->vq, piece[i].id, piece[i].nr_desc, piece[i].len);
    vq_publish(&q->vq);
    return true;
}

static bool net_receive(void *card, const struct net_hdr *hdr, const u8 *frame, size_t len)
{
    struct virtio_net *net = card;
    unsigned pairs = atomic_load(&net->pairs);
    unsigned pair = pairs > 1 ? atomic_load(&net->flow[net_flow(frame, len) % FLOWS]) % pairs : 0;
    struct virtio_queue *q = &net->dev.queue[2 * pair];
    struct net_hdr h = *hdr;
    bool taken = true;

    if (!virtio_has(&net->dev, F_GUEST_CSUM))
        h.flags = 0;
    pthread_mutex_lock(&q->lock);
    if (atomic_load(&net->held)) {
        taken = false; /* the back end asks again after room() */
    } else if (atomic_load(&net->dev.running) && !q->vq.broken) { /* else nobody listens: the frame is lost */
        taken = put_frame(q, h, frame, len);
        if (!taken && !q->vq.broken) {
            if (!virtio_idle(q)) /* buffers came in between */
                taken = put_frame(q, h, frame, len);
        }
        if (taken)
            virtio_interrupt(q);
    }
    pthread_mutex_unlock(&q->lock);
    return taken;
}

/* -- Transmit ----------------------------------------------------------------------------------- */

static bool hdr_is_sane(const struct virtio_net *net, const struct net_hdr *h)
{
    u8 gso = h->gso_type & (u8)~NET_GSO_ECN;
    if ((h->flags & NET_NEEDS_CSUM) && !virtio_has(&net->dev, F_CSUM))
        return false;
    return gso == NET_GSO_NONE || (gso == NET_GSO_TCPV4 && virtio_has(&net->dev, F_HOST_TSO4)) ||
           (gso == NET_GSO_TCPV6 && virtio_has(&net->dev, F_HOST_TSO6));
}

/* How long it was, whether it was sent or not. */
static u64 send_chain(struct virtio_net *net, unsigned pair, const struct vq_chain *c)
{
    struct iovec iov[VQ_SEGS_MAX];
    struct net_hdr hdr;
    u8 start[NET_FLOW_BYTES];

    if (vq_copy_out(c, 0, &hdr, HDR_LEN) != HDR_LEN || !hdr_is_sane(net, &hdr))
        return 0;
    u64 len = c->out_len - HDR_LEN;
    int n = vq_slice(c, false, HDR_LEN, len, iov, ARRAY_SIZE(iov));
    if (n <= 0 || len < 14 || len > NET_FRAME_MAX)
        return len;
    if (net->pairs_max > 1) {
        u64 got = vq_copy_out(c, HDR_LEN, start, sizeof(start));
        atomic_store(&net->flow[net_flow(start, got) % FLOWS], (unsigned char)pair);
    }
    hdr.num_buffers = 0;
    net->be->ops->send(net->be, &hdr, iov, (unsigned)n);
    return len;
}

/*
 * Linux's driver looks for what was sent whenever it sends something, and yet asks to be told of each packet: with small ones
 * the interrupt is a third of all the work. So of those that follow each other it is told TELL_NS later, if it has not found out
 * by then (its used_event has moved on). At once: of long ones, since a stream may wait for them before it sends more, of a quarter of the ring,
 * and of one that comes alone.
 */
#define TELL_NS 1000000
#define TELL_NEAR_NS 20000
#define TELL_LEN 256u

static void tell_now(struct virtio_net *net, unsigned pair)
{
    net->untold[pair] = 0;
    virtio_interrupt(&net->dev.queue[2 * pair + 1]);
}

static void tell_all(struct virtio_net *net)
{
    for (unsigned i = 0; i < net->pairs_max; i++) {
        struct virtio_queue *q = &net->dev.queue[2 * i + 1];
        pthread_mutex_lock(&q->lock);
        if (net->untold[i])
            tell_now(net, i);
        pthread_mutex_unlock(&q->lock);
    }
}

static void on_tell(void *opaque)
{
    struct virtio_net *net = opaque;
    atomic_store(&net->telling, false);
    tell_all(net);
}

/* q->lock held. */
static void sent(struct virtio_net *net, unsigned pair, unsigned nr, u64 longest)
{
    u64 now = net->clock ? clock_now(net->clock) : 0;
    bool near = net->clock && now - net->sent_ns[pair] < TELL_NEAR_NS;

    net->sent_ns[pair] = now;
    net->untold[pair] += nr;
    if (!near || longest > TELL_LEN || net->untold[pair] > net->dev.queue[2 * pair + 1].vq.size / 4u)
        tell_now(net, pair);
    else if (!atomic_exchange(&net->telling, true))
        timer_arm(net->clock, &net->tell, now + TELL_NS);
}

static void transmit(struct virtio_queue *q)
{
    struct virtio_net *net = net_of(q->dev);
    struct vq_chain *c = net->tx_chain[q->index / 2];
    unsigned nr = 0;
    u64 longest = 0;

    pthread_mutex_lock(&q->lock);
    do {
        vq_want_notify(&q->vq, false);
        while (virtio_pop(q, c)) {
            u64 len = send_chain(net, q->index / 2, c);
            vq_push(&q->vq, c->id, c->nr_desc, 0);
            longest = MAX(longest, len);
            nr++;
        }
    } while (!virtio_idle(q));
    if (nr)
        sent(net, q->index / 2, nr, longest);
    pthread_mutex_unlock(&q->lock);
    if (nr && net->be->ops->sent)
        net->be->ops->sent(net->be);
}

/* -- Control, §5.1.6.5 -------------------------------------------------------------------------- */

static void control(struct virtio_queue *q)
{
    struct virtio_net *net = net_of(q->dev);
    struct vq_chain *c = malloc(sizeof(*c));

    if (!c)
        return;
    pthread_mutex_lock(&q->lock);
    while (virtio_pop(q, c) || (!virtio_idle(q) && virtio_pop(q, c))) {
        struct { u8 class, command; u16 pairs; } __attribute__((packed)) m;
        u8 ack = 1; /* VIRTIO_NET_ERR */
        if (vq_copy_out(c, 0, &m, sizeof(m)) == sizeof(m) && m.class == CTRL_MQ && m.command == CTRL_MQ_PAIRS_SET &&
            m.pairs >= 1 && m.pairs <= net->pairs_max) {
            atomic_store(&net->pairs, m.pairs);
            ack = 0;
        }
        u64 n = vq_copy_in(c, 0, &ack, 1);
        vq_written(q->dev->ram, c, n);
        vq_push(&q->vq, c->id, c->nr_desc, (u32)n);
    }
    virtio_interrupt(q);
    pthread_mutex_unlock(&q->lock);
    free(c);
}

static void net_notify(struct virtio_queue *q)
{
    struct virtio_net *net = net_of(q->dev);
    /* Without MQ the control queue, were there one, would be queue 2: it is offered with MQ only. */
    unsigned control_queue = net->pairs_max > 1 ? (virtio_has(q->dev, F_MQ) ? 2 * net->pairs_max : 2) : ~0u;

    if (q->index == control_queue) {
        control(q);
    } else if (q->index & 1) {
        transmit(q);
    } else {
        pthread_mutex_lock(&q->lock);
        vq_want_notify(&q->vq, false);
        pthread_mutex_unlock(&q->lock);
        net->be->ops->room(net->be);
    }
}

/* -- Life --------------------------------------------------------------------------------------- */

static void net_start(struct virtio_dev *dev)
{
    struct virtio_net *net = net_of(dev);
    unsigned offload = (virtio_has(dev, F_GUEST_CSUM) ? NET_OFFLOAD_CSUM : 0) |
                       (virtio_has(dev, F_GUEST_TSO4) ? NET_OFFLOAD_TSO4 : 0) |
                       (virtio_has(dev, F_GUEST_TSO6) ? NET_OFFLOAD_TSO6 : 0);
    atomic_store(&net->pairs, 1);
    for (unsigned i = 0; i < net->pairs_max; i++) {
        pthread_mutex_lock(&dev->queue[2 * i + 1].lock);
        net->untold[i] = 0;
        pthread_mutex_unlock(&dev->queue[2 * i + 1].lock);
    }
    if (net->be->ops->set_offload)
        net->be->ops->set_offload(net->be, offload);
}

/* Frames may come at any time: none touches guest memory from here on. */
static void net_drain(struct virtio_dev *dev)
{
    struct virtio_net *net = net_of(dev);

    for (unsigned i = 0; i < net->pairs_max; i++)
        pthread_mutex_lock(&dev->queue[2 * i].lock);
    atomic_store(&net->held, true);
    for (unsigned i = 0; i < net->pairs_max; i++)
        pthread_mutex_unlock(&dev->queue[2 * i].lock);
    tell_all(net); /* then the timer finds nothing to tell */
}

static void net_resume(struct virtio_dev *dev)
{
    struct virtio_net *net = net_of(dev);

    atomic_store(&net->held, false);
    net->be->ops->room(net->be);
}

static void net_end(struct virtio_dev *dev)
{
    struct virtio_net *net = net_of(dev);
    if (net->clock)
        timer_cancel(net->clock, &net->tell);
    net->be->ops->stop(net->be);
}

static void net_fini(struct virtio_dev *dev)
{
    struct virtio_net *net = net_of(dev);
    net->be->ops->free(net->be);
    for (unsigned i = 0; i < net->pairs_max; i++) {
        free(net->rx_chain[i][0]);
        free(net->rx_chain[i][1]);
        free(net->tx_chain[i]);
    }
    free(net);
}

/* Nothing to stop: every access to guest memory is under a queue's lock and looks whether the queue works. */
static const struct virtio_class net_class = {
    .name = "virtio-net", .id = 1, .pci_class = 0x020000, .notify = net_notify, .start = net_start, .end = net_end, .fini = net_fini,
    .drain = net_drain, .resume = net_resume, /* what the guest said of pairs is forgotten: one will do */
};

int virtio_net_create(struct ram *ram, struct net_backend *be, const struct virtio_net_options *o,
                      struct virtio_dev **out)
{
    struct virtio_net *net = calloc(1, sizeof(*net));
    bug_on(!o->queues || o->queues > VIRTIO_NET_PAIRS_MAX);
    if (!net) {
        be->ops->free(be);
        return -ENOMEM;
    }
    net->be = be;
    net->pairs_max = o->queues;
    net->clock = o->clock;
    bool memory = !o->clock || !timer_init(o->clock, &net->tell, on_tell, net);
    for (unsigned i = 0; i < o->queues; i++) {
        memory &= (net->rx_chain[i][0] = malloc(sizeof(struct vq_chain))) != NULL;
        memory &= (net->rx_chain[i][1] = malloc(sizeof(struct vq_chain))) != NULL;
        memory &= (net->tx_chain[i] = malloc(sizeof(struct vq_chain))) != NULL;
    }
    memcpy(net->config.mac, o->mac, 6);
    net->config.status = STATUS_LINK_UP;
    net->config.max_pairs = (u16)o->queues;
    net->config.mtu = be->mtu;
    u64 features = F_MAC | F_STATUS | F_MRG_RXBUF | F_MTU | F_GUEST_CSUM |
                   (be->takes & NET_OFFLOAD_CSUM ? F_CSUM : 0) | (be->takes & NET_OFFLOAD_TSO4 ? F_HOST_TSO4 : 0) |
                   (be->takes & NET_OFFLOAD_TSO6 ? F_HOST_TSO6 : 0) | (be->gives & NET_OFFLOAD_TSO4 ? F_GUEST_TSO4 : 0) |
                   (be->gives & NET_OFFLOAD_TSO6 ? F_GUEST_TSO6 : 0) | (o->queues > 1 ? F_MQ | F_CTRL_VQ : 0) |
                   (o->packed ? VIRTIO_F_RING_PACKED : 0);
    unsigned queues = 2 * o->queues + (o->queues > 1);
    const struct net_port port = { net_receive, net };
    int err = memory ? virtio_init(&net->dev, &net_class, ram, features, queues, QUEUE_SIZE, &net->config,
                                   sizeof(net->config)) : -ENOMEM;
    if (!err)
        err = be->ops->start(be, &port);
    if (err) {
        net_fini(&net->dev);
        return err;
    }
    *out = &net->dev;
    return 0;
}
