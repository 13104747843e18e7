/*
 * layout.h - every guest address, port and interrupt number we choose. The one place to look, and
 * the one place to change: the board, the ACPI tables and the loaders all take them from here.
 *
 *   0x0000_0000  RAM to 640 KiB            0x000a_0000  VGA window
 *   0x000c_0000  RAM kept for firmware     0x000e_0000  ACPI tables, 64 KiB of it
 *   0x0010_0000  RAM to at most 2.75 GiB   0xb000_0000  ECAM, 256 buses * 1 MiB = 256 MiB
 *   0xc000_0000  PCI memory window         0xfec0_0000  I/O APIC
 *   0xfed0_0000  HPET                      0xfed4_0000  virtio devices outside PCI
 *   0xfee0_0000  local APICs
 *   0xff00_0000  firmware, at its end      0x1_0000_0000  the rest of RAM
 *
 * With firmware the PC's shadow control (chips/piix.h) decides who answers from 0xc_0000 to 1 MiB:
 * this RAM, or the firmware's last 128 KiB.
 */
#pragma once

#define LAYOUT_EBDA 0x9fc00u          /* the last KiB of conventional memory is reserved */
#define LAYOUT_VGA_HOLE 0xa0000u
#define LAYOUT_OPTION_ROM 0xc0000u    /* end of the VGA window */
#define LAYOUT_ACPI 0xe0000u          /* RSDP first: found by a scan of 0xe0000..0xfffff */
#define LAYOUT_ACPI_SIZE 0x10000u
#define LAYOUT_HIGH_RAM 0x100000u
#define LAYOUT_LOW_RAM_MAX 0xb0000000ull /* RAM below 4 GiB ends here at the latest */
#define LAYOUT_ECAM 0xb0000000ull
#define LAYOUT_ECAM_SIZE 0x10000000ull
#define LAYOUT_PCI_MMIO 0xc0000000ull    /* = ECAM + ECAM_SIZE */
#define LAYOUT_PCI_MMIO_END 0xfec00000ull
#define LAYOUT_IOAPIC 0xfec00000ull
#define LAYOUT_HPET 0xfed00000ull
#define LAYOUT_VIRTIO_MMIO 0xfed40000ull /* VIRTIO_MMIO_MAX pages */
#define VIRTIO_MMIO_MAX 16
#define LAYOUT_LAPIC 0xfee00000ull
#define LAYOUT_TESTDEV 0xff000000ull  /* with --testdev: 64 KiB */
#define LAYOUT_FIRMWARE 0xff000000ull /* 16 MiB: as much as fits above the local APICs */
#define LAYOUT_BIOS 0xe0000u          /* where its last 128 KiB appear below 1 MiB */
#define LAYOUT_4G 0x100000000ull
#define LAYOUT_PCI_MMIO64_ALIGN 0x800000000ull /* 64-bit window: next 32 GiB boundary above RAM */
#define LAYOUT_PCI_MMIO64_SIZE 0x800000000ull

/* Ports */
#define PORT_DMA1 0x00
#define PORT_PIC_MASTER 0x20
#define PORT_PIT 0x40
#define PORT_KBD_DATA 0x60
#define PORT_SYSTEM_B 0x61
#define PORT_KBD_STATUS 0x64
#define PORT_RTC 0x70
#define PORT_POST 0x80
#define PORT_DMA_PAGES 0x81  /* to 0x8f */
#define PORT_SYSTEM_A 0x92
#define PORT_PIC_SLAVE 0xa0
#define PORT_DMA2 0xc0
#define PORT_TESTDEV 0xe0    /* 4 */
#define PORT_DEBUGCON 0xe9
#define PORT_IDE2 0x170
#define PORT_DISPI 0x1ce
#define PORT_IDE1 0x1f0
#define PORT_IDE2_CONTROL 0x376
#define PORT_IDE1_CONTROL 0x3f6
#define PORT_VGA 0x3b0       /* to 0x3df */
#define PORT_FDC 0x3f0       /* but not 0x3f6, which is IDE's */
#define PORT_COM1 0x3f8
#define PORT_ELCR 0x4d0
#define PORT_FIRMWARE_LOG 0x402 /* what firmware says to developers */
#define PORT_DEBUG_EXIT 0x501
#define PORT_PVPANIC 0x505
#define PORT_FW_CFG 0x510    /* selector, data */
#define PORT_FW_CFG_DMA 0x514
#define PORT_COUNTERS 0x520  /* command 4, value 8: src/monitor/counters.h */
#define PORT_PM1_EVT 0x600   /* status 2, enable 2 */
#define PORT_PM1_CNT 0x604   /* 2 */
#define PORT_PM_TMR 0x608    /* 4 */
#define PORT_GPE0 0x620      /* status 2, enable 2 */
#define PORT_PM_END 0x630
#define PORT_PCI_ADDR 0xcf8
#define PORT_RESET 0xcf9
#define PORT_PCI_DATA 0xcfc
#define PORT_TESTDEV_IRQ 0x2000 /* 24: one for each GSI */
#define PORT_PM_OVMF 0xb000  /* the PM block again, to the timer: where OVMF takes a PIIX4 to have moved it */
#define PORT_PCI_BARS 0xc000 /* I/O BARs from here up, 0xc000..0xffff */

/* Global system interrupts. ISA interrupts are 0..15; 0 reaches the I/O APIC on pin 2. */
#define GSI_PIT 0
#define GSI_KBD 1
#define GSI_COM1 4
#define GSI_VIRTIO_MMIO 5    /* all of them */
#define GSI_FDC 6
#define GSI_RTC 8
#define GSI_SCI 9
#define GSI_MOUSE 12
#define GSI_IDE1 14
#define GSI_IDE2 15
#define GSI_PIT_IOAPIC_PIN 2
#define GSI_PCI 16           /* INTx swizzled over GSI 16..23 */
#define NR_GSI_PCI 8
#define NR_GSI 24
#define PIC_IRQ_PCI 10       /* with the 8259: PIRQA and B on 10, C and D on 11, as SeaBIOS does */
#define PCI_PIRQ(gsi) (((gsi) - GSI_PCI + 3) & 3) /* slot 1 INTA is PIRQA */
#define PCI_PIC_IRQ(gsi) (PIC_IRQ_PCI + PCI_PIRQ(gsi) / 2)

/* PCI slots of bus 0 */
#define PCI_SLOT_PIIX 1
#define PCI_SLOT_VGA 2

#define ACPI_SLP_TYP_S5 5
