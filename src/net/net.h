/*
 * net.h - what is behind a network card: Ethernet frames to and from a host. A back end is made first, then given to a
 * card (struct net_port), which starts it.
 */
#pragma once
#include "base/types.h"
#include <sys/uio.h>

#define NET_FRAME_MAX (65536u + 64u)
#define NET_ERR_LEN 320

/* Offloads of a frame, laid out as in virtio 1.2 §5.1.6 and Linux's struct virtio_net_hdr. */
struct net_hdr {
    u8 flags, gso_type;
    u16 hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};
#define NET_NEEDS_CSUM 1u /* the checksum at csum_start + csum_offset covers the pseudo header only */
#define NET_DATA_VALID 2u
#define NET_GSO_NONE 0u
#define NET_GSO_TCPV4 1u
#define NET_GSO_UDP 3u
#define NET_GSO_TCPV6 4u
#define NET_GSO_ECN 0x80u

struct net_backend;

/* The card's end. Called on the back end's thread, and from within send(). */
struct net_port {
    /* A frame for the guest. False: no room; the back end keeps it until room() is called on it. */
    bool (*receive)(void *card, const struct net_hdr *hdr, const u8 *frame, size_t len);
    void *card;
};

struct net_ops {
    const char *name;
    /* Begin: port is valid until stop. 0 or -errno. */
    int (*start)(struct net_backend *be, const struct net_port *port);
    void (*stop)(struct net_backend *be); /* no call of the port after it returns */
    /* A frame from the guest; any thread, several at once. */
    void (*send)(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *frame, unsigned nr);
    /* A burst of send() is over. May be NULL. */
    void (*sent)(struct net_backend *be);
    /* The guest has made room again. Any thread. */
    void (*room)(struct net_backend *be);
    /* Which NET_OFFLOAD_* the guest can take. May be NULL. */
    void (*set_offload)(struct net_backend *be, unsigned offload);
    void (*free)(struct net_backend *be);
};

#define NET_OFFLOAD_CSUM 1u /* NET_NEEDS_CSUM */
#define NET_OFFLOAD_TSO4 2u
#define NET_OFFLOAD_TSO6 4u

struct net_backend {
    const struct net_ops *ops;
    unsigned takes, gives; /* NET_OFFLOAD_*: of frames it is sent, and that it may have for the guest */
    u16 mtu;               /* of the link behind it */
};

/* -- Back ends; each says in err (NET_ERR_LEN) what is wrong ------------------------------------ */

struct net_forward {
    bool udp;
    u32 host_addr, guest_addr; /* IPv4, host byte order */
    u16 host_port, guest_port;
};
#define NET_FORWARDS_MAX 32
struct net_user_options {
    bool restricted;           /* the guest reaches no more than the forwards */
    u16 mtu;
    unsigned nr_forwards;
    struct net_forward forward[NET_FORWARDS_MAX];
};
/* net_user_create - TCP and UDP by the host's own sockets, no rights needed (libslirp): 10.0.2.0/24, gateway and host
 * 10.0.2.2, DNS 10.0.2.3, DHCP from 10.0.2.15. 0, -ENOTSUP (built without libslirp), -EADDRINUSE (a forward). */
int net_user_create(const struct net_user_options *options, struct net_backend **out, char *err);
/* net_tap_create - a tap device of the host's by name. 0 or -errno. */
int net_tap_create(const char *ifname, struct net_backend **out, char *err);
/* net_null_create - a cable that leads nowhere. 0 or -ENOMEM. */
int net_null_create(struct net_backend **out, char *err);

/* -- flow.c ------------------------------------------------------------------------------------ */

/* net_flow - the same number for both directions of a TCP or UDP flow over IPv4, else 0; of a frame's first bytes. */
#define NET_FLOW_BYTES 38u
u32 net_flow(const u8 *frame, size_t len);

/* -- csum.c ------------------------------------------------------------------------------------ */

/*
 * net_finish - make a frame of the guest's stand on its own: complete the checksum that hdr asks for; a TCP segment
 * larger than the link becomes one large IP packet. False: what hdr says does not fit the frame.
 */
bool net_finish(const struct net_hdr *hdr, u8 *frame, size_t len);
/* net_checksum - Internet checksum (RFC 1071) of bytes, on top of a partial sum. */
u16 net_checksum(const u8 *bytes, size_t len, u64 sum);
