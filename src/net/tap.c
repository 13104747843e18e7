/*
 * tap.c - a tap device of the host's. Offloads go through as they are (IFF_VNET_HDR): the host's kernel does them.
 * Threads: one of its own reads; send() writes on vCPU threads, the kernel keeps frames apart.
 */
#include "net/net.h"
#include "base/sandbox.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FRAME_PARTS_MAX 300

struct tap {
    struct net_backend be;
    struct net_port port;
    int fd, wake_fd;
    pthread_t thread;
    bool running;
    atomic_bool stop;
    u8 buf[sizeof(struct net_hdr) + NET_FRAME_MAX];
};

static struct tap *tap_of(struct net_backend *be)
{
    return (struct tap *)be;
}

static void *tap_main(void *arg)
{
    struct tap *t = arg;
    ssize_t held = 0; /* bytes in buf the guest had no room for */
    u64 count;

    sandbox_enter(SANDBOX_TAP);
    while (!atomic_load(&t->stop)) {
        struct pollfd pfd[2] = { { .fd = t->wake_fd, .events = POLLIN }, { .fd = t->fd, .events = POLLIN } };
        poll(pfd, held ? 1 : 2, -1);
        if (pfd[0].revents)
            (void)!read(t->wake_fd, &count, sizeof(count));
        for (;;) {
            struct net_hdr hdr;
            if (!held)
                held = read(t->fd, t->buf, sizeof(t->buf));
            if (held <= (ssize_t)sizeof(hdr)) {
                held = 0;
                break;
            }
            memcpy(&hdr, t->buf, sizeof(hdr));
            if (!t->port.receive(t->port.card, &hdr, t->buf + sizeof(hdr), (size_t)held - sizeof(hdr)))
                break;
            held = 0;
        }
    }
    return NULL;
}

static void tap_wake(struct net_backend *be)
{
    u64 one = 1;
    (void)!write(tap_of(be)->wake_fd, &one, sizeof(one));
}

static int tap_start(struct net_backend *be, const struct net_port *port)
{
    struct tap *t = tap_of(be);
    sigset_t all, old;

    t->port = *port;
    atomic_store(&t->stop, false);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&t->thread, NULL, tap_main, t);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    t->running = !err;
    return -err;
}

static void tap_stop(struct net_backend *be)
{
    struct tap *t = tap_of(be);
    if (!t->running)
        return;
    atomic_store(&t->stop, true);
    tap_wake(be);
    pthread_join(t->thread, NULL);
    t->running = false;
}

static void tap_send(struct net_backend *be, const struct net_hdr *hdr, const struct iovec *frame, unsigned nr)
{
    struct iovec iov[FRAME_PARTS_MAX];
    struct net_hdr copy = *hdr;

    if (nr >= FRAME_PARTS_MAX)
        return;
    iov[0] = (struct iovec){ &copy, sizeof(copy) };
    memcpy(iov + 1, frame, nr * sizeof(*frame));
    (void)!writev(tap_of(be)->fd, iov, (int)nr + 1); /* a full or unplugged cable loses frames */
}

static void tap_set_offload(struct net_backend *be, unsigned offload)
{
    unsigned flags = 0;
    if (offload & NET_OFFLOAD_CSUM) {
        flags |= TUN_F_CSUM;
        flags |= offload & NET_OFFLOAD_TSO4 ? TUN_F_TSO4 : 0;
        flags |= offload & NET_OFFLOAD_TSO6 ? TUN_F_TSO6 : 0;
    }
    ioctl(tap_of(be)->fd, TUNSETOFFLOAD, (unsigned long)flags);
}

static void tap_free(struct net_backend *be)
{
    tap_stop(be);
    close(tap_of(be)->fd);
    close(tap_of(be)->wake_fd);
    free(be);
}

static const struct net_ops tap_ops = {
    .name = "tap", .start = tap_start, .stop = tap_stop, .send = tap_send, .room = tap_wake,
    .set_offload = tap_set_offload, .free = tap_free,
};

int net_tap_create(const char *ifname, struct net_backend **out, char *err)
{
    struct tap *t = calloc(1, sizeof(*t));
    struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
    int hdr_len = sizeof(struct net_hdr), r;

    if (!t)
        return -ENOMEM;
    if (strlen(ifname) >= IFNAMSIZ) {
        snprintf(err, NET_ERR_LEN, "--net tap: '%s' is too long for the name of a network device", ifname);
        free(t);
        return -EINVAL;
    }
    strcpy(ifr.ifr_name, ifname);
    t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    t->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (t->fd < 0 || t->wake_fd < 0) {
        r = -errno;
        snprintf(err, NET_ERR_LEN, "--net tap: cannot open /dev/net/tun: %s", strerror(-r));
        goto fail;
    }
    if (ioctl(t->fd, TUNSETIFF, &ifr) || ioctl(t->fd, TUNSETVNETHDRSZ, &hdr_len)) {
        r = -errno;
        snprintf(err, NET_ERR_LEN, "--net tap: cannot use %s: %s%s", ifname, strerror(-r),
                 r == -EPERM ? "; make it for this user: ip tuntap add mode tap user $USER name NAME" : "");
        goto fail;
    }
    t->be = (struct net_backend){
        .ops = &tap_ops, .takes = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6,
        .gives = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6, .mtu = 1500,
    };
    *out = &t->be;
    return 0;
fail:
    if (t->fd >= 0)
        close(t->fd);
    if (t->wake_fd >= 0)
        close(t->wake_fd);
    free(t);
    return r;
}
