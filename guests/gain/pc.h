/*
 * pc.h - the lines of guests/gain, and what the drivers in this folder share: ports, the local and the I/O APIC, PCI.
 * "Unaware" work is done as on real hardware; these drivers know the machine's addresses, and leave out what a bench need not do.
 */
#ifndef GUESTS_GAIN_PC_H
#define GUESTS_GAIN_PC_H
#include "sdk/sdk.h"

static inline void outb(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static inline void outl(uint16_t port, uint32_t v) { __asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(port)); }
static inline uint8_t inb(uint16_t port)
{
    uint8_t v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline uint32_t inl(uint16_t port)
{
    uint32_t v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

/* -- The local APIC (SDM vol. 3 ch. 11), the I/O APIC (Intel 82093AA), PCI (3.0, mechanism #1) ------------------------ */

#define APIC(reg) (*(volatile uint32_t *)(0xfee00000ul + (reg)))
enum { APIC_EOI = 0xb0, APIC_SVR = 0xf0, APIC_ICR = 0x300, APIC_ICR2 = 0x310, APIC_TIMER = 0x320 };
enum { VECTOR_TIMER = 0x50, VECTOR_IPI, VECTOR_FLUSH, VECTOR_IDE, VECTOR_E1000, VECTOR_BLK, VECTOR_NET };

/* irq_route - a pin of the I/O APIC to a vector of the first processor; PCI's are level-triggered. */
void irq_route(unsigned pin, unsigned vector, bool level);
/* pci_find - device and function (devfn) of the first with these identities, or -1. */
int pci_find(uint16_t vendor, uint16_t device);
uint32_t pci_read(int devfn, unsigned reg);
void pci_write(int devfn, unsigned reg, uint32_t v);
/* pci_start - let it decode and master the bus. pci_bar - where a BAR is. pci_pin - its INTA's pin of the I/O APIC. */
void pci_start(int devfn);
uint64_t pci_bar(int devfn, unsigned n);
unsigned pci_pin(int devfn);

/* -- Devices: the same work by each way; start() is false if the machine has none of this kind ---------------------------- */

#define SECTOR 512u
#define DEPTH_MAX 16u
struct disk {
    const char *way;
    unsigned depth;     /* how many requests it takes at once */
    bool (*start)(void);
    /* put - a request in slot `slot`; kick - tell the device of those that were put. */
    void (*put)(unsigned slot, bool write, uint64_t sector, void *data, uint32_t len);
    void (*kick)(void);
    /* reap - the slot of one that is done, or -1; dies if it failed. */
    int (*reap)(void);
};
extern const struct disk disk_ide, disk_virtio, disk_calls;

struct net {
    const char *way;
    bool (*start)(uint8_t mac[6]);
    /* send - a frame, not to be changed until it is gone: the caller has 64 of them; kick - as above. */
    void (*send)(const void *frame, uint32_t len);
    void (*kick)(void);
    /* receive - a frame that came, or NULL; it is the card's again at the next call. */
    const void *(*receive)(uint32_t *len);
};
extern const struct net net_e1000, net_virtio, net_calls;

/* -- Lines -------------------------------------------------------------------------------------------------------------------- */

/* measure - time fn(operations) and count what it took; prints `sdk: LINE WAY OPERATIONS NS COUNTERS...`. */
void measure(const char *line, const char *way, uint32_t operations, void (*fn)(uint32_t n));
/* devices - the lines about the disks and network cards that are there; false: there are none. */
bool devices(void);

#endif
