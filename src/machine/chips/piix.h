/*
 * piix.h - the PC's two bridges as PCI sees them: the 82441FX host bridge's shadow control (PAM), and
 * the south bridge: 82371SB ISA bridge with PCI interrupt routing, 82371AB power management.
 */
#pragma once
#include "base/types.h"
#include "machine/irq.h"
#include "machine/pci.h"

#define PIIX_PAM0 0x59   /* of the host bridge; high nibble: 0xf0000; PAM1..6: two areas, low nibble first */
#define PIIX_PIRQRC 0x60 /* of the ISA bridge, 4 registers: bit 7 off, 3:0 IRQ */

#define PAM_AREAS 13 /* 0xf0000 (64 KiB), then 0xc0000 to 0xeffff in pieces of 16 KiB */
#define SHADOW_READ 0x1u  /* reads are answered by DRAM; otherwise by the firmware's ROM */
#define SHADOW_WRITE 0x2u /* writes reach DRAM */

struct piix_wiring {
    struct pci_host *host;
    /* Who answers in [gpa, gpa + size) has changed; called with the PCI host's lock held. May be NULL. */
    void (*shadow)(void *opaque, gpa_t gpa, u64 size, unsigned mode);
    void (*route)(void *opaque); /* piix.pirq has changed; the same lock is held */
    void *opaque;
};

struct piix {
    struct piix_wiring wiring;
    struct pci_dev isa, pm;
    u8 shadow[PAM_AREAS]; /* SHADOW_*; what `shadow` was told last */
    u8 pirq[4];           /* 8259 input for PIRQA..D; 0: not routed */
};

/* piix_init - adds the two functions of slot 1; the host bridge is there. 0 or -errno. */
int piix_init(struct piix *p, const struct piix_wiring *wiring);
/* piix_reset - after pci_host_reset(): look at what the registers say now. */
void piix_reset(struct piix *p);
/* piix_pam_area - the area n, 0..PAM_AREAS-1; its size. */
u64 piix_pam_area(unsigned n, gpa_t *gpa);
