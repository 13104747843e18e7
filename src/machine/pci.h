/*
 * pci.h - the PCI host bridge: configuration space by ports 0xcf8/0xcfc and by ECAM, base address
 * registers, INTx. One bus, up to 32 slots * 8 functions.
 *
 * Writing a device: embed a struct pci_dev, pci_dev_init() it with its identity, add BARs and
 * capabilities, then pci_add(). All that before vCPUs run (cold plug). BAR handlers are called on
 * vCPU threads, several at once, with no lock held; config_write with the bridge's lock held.
 */
#pragma once
#include "base/types.h"
#include "machine/bus.h"
#include "machine/device.h"
#include "machine/irq.h"
#include <pthread.h>
#include <stdatomic.h>

#define PCI_BARS 6
#define PCI_DEVFN(slot, fn) ((unsigned)(slot) << 3 | (fn))

/* Configuration header, PCI 3.0 §6.1 */
#define PCI_VENDOR_ID 0x00
#define PCI_DEVICE_ID 0x02
#define PCI_COMMAND 0x04
#define PCI_COMMAND_IO 0x1
#define PCI_COMMAND_MEMORY 0x2
#define PCI_COMMAND_MASTER 0x4
#define PCI_COMMAND_INTX_OFF 0x400
#define PCI_STATUS 0x06
#define PCI_STATUS_INTX 0x08
#define PCI_STATUS_CAPS 0x10
#define PCI_REVISION 0x08
#define PCI_CLASS 0x09 /* 3 bytes: interface, subclass, base class */
#define PCI_HEADER_TYPE 0x0e
#define PCI_BAR0 0x10
#define PCI_SUBSYSTEM_VENDOR 0x2c
#define PCI_SUBSYSTEM 0x2e
#define PCI_CAP_POINTER 0x34
#define PCI_INT_LINE 0x3c
#define PCI_INT_PIN 0x3d

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };

struct pci_bar {
    enum pci_bar_kind kind;
    u64 size; /* power of two; memory at least 4 KiB, I/O at least 4 */
    const struct io_ops *ops;
    void *dev;
    /* Where it is mapped now, or PCI_UNMAPPED. Written under the bridge's lock, read without:
     * an access that races with a remapping sees the old place or the new one. */
    _Atomic u64 at;
    /* It moved; at may be PCI_UNMAPPED. Under the bridge's lock. NULL: nobody cares. */
    void (*moved)(void *dev, u64 at);
};
#define PCI_UNMAPPED (~0ull)

struct pci_host;

struct pci_ids {
    u16 vendor, device, subsystem_vendor, subsystem;
    u32 class_code; /* 24 bits */
    u8 revision;
    u8 int_pin;     /* 0 none, 1..4: INTA..INTD */
};

struct pci_dev {
    const char *name;
    struct pci_host *host; /* set by pci_add() */
    unsigned devfn;
    bool kept;             /* what is behind its BARs is saved as a struct device_part (state.h) */
    bool intx;             /* what the device drives, before PCI_COMMAND_INTX_OFF */
    u8 config[256];
    u8 writable[256];      /* mask of guest-writable bits */
    u8 cap_next;           /* where the next capability goes */
    struct pci_bar bar[PCI_BARS];
    /* After the guest has written config[off..off+size); may be NULL. */
    void (*config_write)(struct pci_dev *dev, unsigned off, unsigned size);
    /* Before the guest reads (for windows and status); may be NULL. */
    void (*config_read)(struct pci_dev *dev, unsigned off, unsigned size);
    /* The same two moments without the bridge's lock, for registers that reach into the device; may be NULL. */
    void (*config_window)(struct pci_dev *dev, unsigned off, unsigned size, bool write);
    void (*reset)(struct pci_dev *dev);
    void *owner;           /* for the callbacks; the chip's own */
    u8 reset_config[256];  /* config as it was at pci_add() */
};

struct pci_host {
    pthread_mutex_t lock;
    u32 address;             /* 0xcf8 */
    struct pci_dev *dev[256]; /* by devfn */
    struct pci_dev *list[256]; /* the same without gaps, in the order they were added */
    unsigned nr;
    struct irq_or intx[8];   /* GSI 16 + i */
    const struct io_ops *reset_io; /* byte port 0xcf9, inside the address register */
    void *reset_dev;
    unsigned reset_off;
    /* A device's message-signalled interrupt; any thread. */
    void (*msi)(void *opaque, u64 address, u32 data);
    void *msi_opaque;
    u64 mmio64;              /* the 64-bit window's start */
    struct pci_dev bridge;   /* 0:0.0 */
};

int pci_host_init(struct pci_host *host, const struct irq_line gsi[8]);
void pci_host_fini(struct pci_host *host);
void pci_host_reset(struct pci_host *host);
/* A bus_fallback_fn: finds the BAR that decodes an address. opaque is the struct pci_host. */
bool pci_decode(void *opaque, bool mmio, u64 addr, struct bus_region *out);
/* pci_assign_bars - give every BAR an address and switch decoding on, as firmware does. */
void pci_assign_bars(struct pci_host *host);

/*
 * pci_save, pci_load, pci_loaded - for snapshots: configuration spaces, BARs, INTx lines; a section for each function.
 * pci_save() gives 0, or -EOPNOTSUPP with a sentence if there is a function with registers that nobody saves (`kept`);
 * pci_load() 0, or -EINVAL with a sentence. pci_loaded(), when everything else is in place, tells functions that
 * their configuration was written.
 */
struct state_set;
int pci_save(struct pci_host *host, struct state_set *set, char *err, size_t err_len);
int pci_load(struct pci_host *host, struct state_set *set, char *err, size_t err_len);
void pci_loaded(struct pci_host *host);

void pci_dev_init(struct pci_dev *dev, const char *name, const struct pci_ids *ids);
/* pci_add_bar - a MEM64 BAR takes n and n+1. */
void pci_add_bar(struct pci_dev *dev, unsigned n, enum pci_bar_kind kind, u64 size,
                 const struct io_ops *ops, void *opaque);
/* pci_add_cap - reserve len bytes (with the 2-byte header) in the list; its offset. */
unsigned pci_add_cap(struct pci_dev *dev, u8 id, unsigned len);
/* pci_add - 0, -EEXIST. */
int pci_add(struct pci_host *host, unsigned devfn, struct pci_dev *dev);
/* pci_set_intx - drive the device's INTx pin. Any thread; takes the bridge's lock (which may be held: it is recursive). */
void pci_set_intx(struct pci_dev *dev, bool level);
/* pci_gsi - which GSI a slot's pin (0: INTA) is wired to; the ACPI tables ask too. */
unsigned pci_gsi(unsigned slot, unsigned pin);

extern const struct io_ops pci_address_io; /* 0xcf8, 4 ports */
extern const struct io_ops pci_data_io;    /* 0xcfc, 4 ports */
extern const struct io_ops pci_ecam;
