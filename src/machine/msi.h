/*
 * msi.h - message-signalled interrupts of one PCI function: MSI-X (PCI 3.0 §6.8.2), and MSI with one
 * vector (§6.8.1). A message is a write the interrupt controllers see: no thread is woken on the way.
 */
#pragma once
#include "machine/pci.h"

#define PCI_CAP_MSI 0x05
#define PCI_CAP_MSIX 0x11
#define MSIX_MAX 128u

struct msix {
    struct pci_dev *dev;
    unsigned cap, nr;     /* offset in configuration space; vectors */
    pthread_mutex_t lock; /* what follows */
    bool enabled, masked; /* message control: bit 15, bit 14 */
    u64 pending[MSIX_MAX / 64];
    struct { u64 address; u32 data, control; } entry[MSIX_MAX]; /* control bit 0: masked */
};

/* msix_init - add the capability, and a BAR of 4 KiB with table and pending bits. Before pci_add(). */
void msix_init(struct msix *x, struct pci_dev *dev, unsigned bar, unsigned nr_vectors);
void msix_fini(struct msix *x);
void msix_reset(struct msix *x);
/* msix_config_written - to be called from the device's config_write. */
void msix_config_written(struct msix *x, unsigned off, unsigned size);
/* msix_enabled - the driver uses MSI-X: INTx stays low. Any thread. */
bool msix_enabled(struct msix *x);
/* msix_raise - send a vector's message, or remember it while masked. A vector there is not: nothing. Any thread. */
void msix_raise(struct msix *x, unsigned vector);

/* msi_init - add the MSI capability: one vector, 64-bit address, maskable not. Its offset. */
unsigned msi_init(struct pci_dev *dev);
/* msi_raise - send the message. False: MSI is off, use INTx. Any thread; takes the bridge's lock. */
bool msi_raise(struct pci_dev *dev, unsigned cap);
