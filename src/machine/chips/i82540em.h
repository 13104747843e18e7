/* i82540em.h - Intel 82540EM Gigabit Ethernet Controller ("e1000"), for guests without virtio. */
#pragma once
#include "base/types.h"

struct ram;
struct pci_host;
struct net_backend;
struct i82540em;
/*
 * i82540em_create - put a card into a PCI slot (function 0). Takes the back end over, also on failure. 0, -EEXIST (slot
 * taken), -ENOMEM, -errno of the back end.
 */
int i82540em_create(struct pci_host *host, unsigned slot, struct ram *ram, struct net_backend *be, const u8 mac[6],
                    struct i82540em **out);
/* i82540em_keep - have snapshots carry it. 0 or -ENOMEM. */
struct machine;
int i82540em_keep(struct i82540em *e, struct machine *m);
/* i82540em_free - no vCPU runs any more. NULL is allowed. */
void i82540em_free(struct i82540em *e);
