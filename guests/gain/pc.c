/* pc.c - see pc.h. */
#include "gain/pc.h"

#define IOAPIC(reg) (*(volatile uint32_t *)(0xfec00000ul + (reg)))

void irq_route(unsigned pin, unsigned vector, bool level)
{
    IOAPIC(0) = 0x11 + 2 * pin;
    IOAPIC(0x10) = 0; /* APIC ID 0 */
    IOAPIC(0) = 0x10 + 2 * pin;
    IOAPIC(0x10) = vector | (level ? 1u << 15 : 0);
}

uint32_t pci_read(int devfn, unsigned reg)
{
    outl(0xcf8, 0x80000000u | (uint32_t)devfn << 8 | (reg & 0xfc));
    return inl(0xcfc);
}
void pci_write(int devfn, unsigned reg, uint32_t v)
{
    outl(0xcf8, 0x80000000u | (uint32_t)devfn << 8 | (reg & 0xfc));
    outl(0xcfc, v);
}

int pci_find(uint16_t vendor, uint16_t device)
{
    for (int devfn = 0; devfn < 256; devfn++)
        if (pci_read(devfn, 0) == ((uint32_t)device << 16 | vendor))
            return devfn;
    return -1;
}

void pci_start(int devfn)
{
    pci_write(devfn, 4, (pci_read(devfn, 4) & 0xffff) | 7); /* ports, memory, bus master */
}

uint64_t pci_bar(int devfn, unsigned n)
{
    uint32_t low = pci_read(devfn, 0x10 + 4 * n);
    if (low & 1)
        return low & ~3u;
    return (low & ~15u) | ((low & 6) == 4 ? (uint64_t)pci_read(devfn, 0x14 + 4 * n) << 32 : 0);
}

unsigned pci_pin(int devfn)
{
    return 16 + ((unsigned)devfn >> 3 & 7); /* as the board's ACPI tables say, INTA */
}
