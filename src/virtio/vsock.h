/* vsock.h - virtio socket device. Source: virtio 1.2 §5.10. */
#pragma once
#include "virtio/virtio.h"
/*
 * virtio_vsock_create - streams between the guest (context cid) and unix sockets of the host. A client of the socket at
 * `path` says "CONNECT PORT\n", gets "OK PORT\n" and is connected to that port of the guest. When the guest connects to
 * port N of the host (context 2), that goes to the unix socket `path`_N. 0 or -errno.
 */
int virtio_vsock_create(struct ram *ram, const char *path, u32 cid, struct virtio_dev **out);
