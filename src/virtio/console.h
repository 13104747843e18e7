/* console.h - virtio console with one port. Source: virtio 1.2 §5.3. */
#pragma once
#include "virtio/virtio.h"
/*
 * virtio_console_create - the host's end is a unix socket at path, made here and removed at the end; one client at a time.
 * Output while nobody is connected is lost. 0 or -errno (-EADDRINUSE: something is there that is no stale socket).
 */
int virtio_console_create(struct ram *ram, const char *path, struct virtio_dev **out);
