/*
 * piix.c - bridges. Source: Intel 82441FX data sheet (290549) §3.2.11 PAM; 82371SB (290550) §2.2.6
 * PIRQRC; 82371AB (290562) §7.1 PMBA, PMREGMISC, DEVACTB. PCI's wiring of slots to PIRQs is ours.
 * Not modelled: moving the power management block (it answers at PORT_PM1_EVT whatever PMBA says,
 * which is where SeaBIOS puts it, and at PORT_PM_OVMF), SMM: DEVACTB.APMC_EN reads as set, so that firmware does not look
 * for it.
 * Threads: the callbacks of pci.h, under the PCI host's lock.
 */
#include "machine/chips/piix.h"
#include "machine/layout.h"
#include <string.h>

#define PM_PMBA 0x40
#define PM_DEVACTB 0x58
#define PM_APMC_EN 0x02000000u
#define PM_REGMISC 0x80

/* -- Shadow RAM --------------------------------------------------------------------------------- */

u64 piix_pam_area(unsigned n, gpa_t *gpa)
{
    *gpa = n ? 0xc0000 + (n - 1) * 0x4000ull : 0xf0000;
    return n ? 0x4000 : 0x10000;
}

static unsigned pam_mode(const struct pci_dev *bridge, unsigned n)
{
    u8 pam = bridge->config[PIIX_PAM0 + (n + 1) / 2];

    return (n & 1 ? pam : pam >> 4) & (SHADOW_READ | SHADOW_WRITE);
}

static void update_shadow(struct piix *p, bool all)
{
    for (unsigned n = 0; n < PAM_AREAS; n++) {
        unsigned mode = pam_mode(&p->wiring.host->bridge, n);
        gpa_t gpa;
        u64 size = piix_pam_area(n, &gpa);
        if (mode == p->shadow[n] && !all)
            continue;
        p->shadow[n] = (u8)mode;
        if (p->wiring.shadow)
            p->wiring.shadow(p->wiring.opaque, gpa, size, mode);
    }
}

static void bridge_written(struct pci_dev *bridge, unsigned off, unsigned size)
{
    if (off + size > PIIX_PAM0 && off < PIIX_PAM0 + 7)
        update_shadow(bridge->owner, false);
}

/* -- PCI interrupts on the 8259 ----------------------------------------------------------------- */

static void update_routes(struct piix *p)
{
    for (unsigned i = 0; i < 4; i++) {
        u8 r = p->isa.config[PIIX_PIRQRC + i];
        p->pirq[i] = r & 0x80 ? 0 : r & 15;
    }
    p->wiring.route(p->wiring.opaque);
}

static void isa_written(struct pci_dev *isa, unsigned off, unsigned size)
{
    if (off + size > PIIX_PIRQRC && off < PIIX_PIRQRC + 4)
        update_routes(isa->owner);
}

/* -- Making it ---------------------------------------------------------------------------------- */

static void put32(struct pci_dev *dev, unsigned off, u32 value, u32 writable)
{
    memcpy(dev->config + off, &value, 4);
    memcpy(dev->writable + off, &writable, 4);
}

void piix_reset(struct piix *p)
{
    update_shadow(p, true);
    update_routes(p);
}

int piix_init(struct piix *p, const struct piix_wiring *wiring)
{
    static const struct pci_ids isa = { .vendor = 0x8086, .device = 0x7000,
                                        .subsystem_vendor = 0x1af4, .subsystem = 0x1100,
                                        .class_code = 0x060100 };
    static const struct pci_ids pm = { .vendor = 0x8086, .device = 0x7113,
                                       .subsystem_vendor = 0x1af4, .subsystem = 0x1100,
                                       .class_code = 0x068000, .revision = 3 };

    memset(p, 0, sizeof(*p));
    p->wiring = *wiring;
    struct pci_dev *bridge = &wiring->host->bridge;
    for (unsigned i = 0; i < 7; i++)
        bridge->writable[PIIX_PAM0 + i] = i ? 0x33 : 0x30;
    bridge->owner = p;
    bridge->config_write = bridge_written;

    pci_dev_init(&p->isa, "piix3", &isa);
    p->isa.owner = p;
    p->isa.config_write = isa_written;
    put32(&p->isa, PIIX_PIRQRC, 0x80808080, 0x8f8f8f8f);
    p->isa.config[PCI_HEADER_TYPE] = 0x80;
    int r = pci_add(wiring->host, PCI_DEVFN(PCI_SLOT_PIIX, 0), &p->isa);
    if (r)
        return r;

    pci_dev_init(&p->pm, "piix4-pm", &pm);
    put32(&p->pm, PM_PMBA, PORT_PM1_EVT | 1, 0);
    put32(&p->pm, PM_DEVACTB, PM_APMC_EN, 0);
    put32(&p->pm, PM_REGMISC, 1, 0);
    p->pm.config[PCI_INT_PIN] = 0; /* the SCI is IRQ 9, not a PCI interrupt */
    p->pm.config[PCI_INT_LINE] = GSI_SCI;
    return pci_add(wiring->host, PCI_DEVFN(PCI_SLOT_PIIX, 3), &p->pm);
}
