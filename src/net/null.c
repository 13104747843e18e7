/*
 * null.c - a cable that leads nowhere: frames are lost at once, none ever comes. For guests that want a card but no network,
 * and to measure cards without what is behind them. Threads: none of its own.
 */
#include "net/net.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int null_start(struct net_backend *be, const struct net_port *port)
{
    (void)be;
    (void)port;
    return 0;
}
static void null_stop(struct net_backend *be)
{
    (void)be;
}
static void null_send(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *frame, unsigned nr)
{
    (void)be;
    (void)hdr;
    (void)frame;
    (void)nr;
}
static void null_room(struct net_backend *be)
{
    (void)be;
}
static void null_free(struct net_backend *be)
{
    free(be);
}

static const struct net_ops null_ops = {
    .name = "null", .start = null_start, .stop = null_stop, .send = null_send, .room = null_room, .free = null_free,
};

int net_null_create(struct net_backend **out, char *err)
{
    struct net_backend *be = calloc(1, sizeof(*be));

    if (!be) {
        snprintf(err, NET_ERR_LEN, "--net null: out of memory");
        return -ENOMEM;
    }
    *be = (struct net_backend){ .ops = &null_ops, .takes = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4, .mtu = 1500 };
    *out = be;
    return 0;
}
