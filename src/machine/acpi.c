/*
 * acpi.c - RSDP, XSDT, RSDT, FADT, FACS, MADT, MCFG and DSDT. Source: ACPI 6.4 §5.2 (tables), §6.1-6.2
 * (device objects), §6.2.13 (_PRT), §7.4.2 (\_S5); PCI Firmware 3.0 §4.1 (MCFG).
 * Left out: SRAT, processor devices, SSDTs. An 8042 without a keyboard is not announced: probing
 * it is slow.
 */
#include "machine/acpi.h"
#include "machine/aml.h"
#include "machine/chips/hpet.h"
#include "machine/layout.h"
#include "machine/pci.h"
#include <string.h>

#define ACPI_DSDT_MAX 0x4000u

struct acpi_header {
    char signature[4];
    u32 length;
    u8 revision, checksum;
    char oem_id[6], oem_table_id[8];
    u32 oem_revision;
    char creator_id[4];
    u32 creator_revision;
} __attribute__((packed));
_Static_assert(sizeof(struct acpi_header) == 36, "ACPI 6.4 table 5.4");

struct acpi_rsdp {
    char signature[8];
    u8 checksum;
    char oem_id[6];
    u8 revision;
    u32 rsdt, length;
    u64 xsdt;
    u8 checksum_all, reserved[3];
} __attribute__((packed));
_Static_assert(sizeof(struct acpi_rsdp) == 36, "ACPI 6.4 table 5.3");

struct acpi_gas { /* generic address */
    u8 space, bits, offset, access;
    u64 address;
} __attribute__((packed));

struct acpi_fadt {
    struct acpi_header h;
    u32 facs, dsdt;
    u8 reserved0, pm_profile;
    u16 sci;
    u32 smi_cmd;
    u8 acpi_enable, acpi_disable, s4bios, pstate;
    u32 pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm2_cnt, pm_tmr, gpe0, gpe1;
    u8 pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_len, gpe1_len, gpe1_base, cst;
    u16 c2_latency, c3_latency, flush_size, flush_stride;
    u8 duty_offset, duty_width, day_alarm, month_alarm, century;
    u16 boot_arch;
    u8 reserved1;
    u32 flags;
    struct acpi_gas reset;
    u8 reset_value;
    u16 arm_boot_arch;
    u8 minor;
    u64 x_facs, x_dsdt;
    struct acpi_gas x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr, x_gpe0,
        x_gpe1, sleep_control, sleep_status;
    u64 hypervisor;
} __attribute__((packed));
_Static_assert(sizeof(struct acpi_fadt) == 276, "ACPI 6.4 table 5.9");

#define FADT_WBINVD BIT(0)
#define FADT_PROC_C1 BIT(2)
#define FADT_NO_SLEEP_BUTTON BIT(5) /* no fixed one; the power button is fixed: bit 4 clear */
#define FADT_TMR_32BIT BIT(8)
#define FADT_RESET_REG BIT(10)
#define BOOT_LEGACY BIT(0)
#define BOOT_8042 BIT(1)
#define BOOT_NO_VGA BIT(2)

struct acpi_facs {
    char signature[4];
    u32 length, hardware_signature, waking_vector, global_lock, flags;
    u64 x_waking_vector;
    u8 version, reserved[31];
} __attribute__((packed));
_Static_assert(sizeof(struct acpi_facs) == 64, "ACPI 6.4 table 5.12");

struct build {
    u8 *buf;
    size_t len, cap;
    gpa_t base;
    struct acpi_links *links;
    bool failed;
};

static const char oem[] = "VITRO ";

static u8 checksum(const void *p, size_t len)
{
    u8 sum = 0;
    for (size_t i = 0; i < len; i++)
        sum = (u8)(sum + ((const u8 *)p)[i]);
    return (u8)-sum;
}

/* Room for a table, 64-byte aligned (the FACS asks for it); NULL when the buffer is full. */
static void *reserve(struct build *b, size_t size)
{
    size_t at = (b->len + 63) & ~(size_t)63;
    if (b->failed || at > b->cap || size > b->cap - at) {
        b->failed = true;
        return NULL;
    }
    b->len = at + size;
    return memset(b->buf + at, 0, size);
}

static u64 address(const struct build *b, const void *p)
{
    return b->base + (u64)((const u8 *)p - b->buf);
}

static u32 offset(const struct build *b, const void *p)
{
    return (u32)((const u8 *)p - b->buf);
}

/* Note that the field at p, of size bytes, points to a table. */
static void link_pointer(struct build *b, const void *p, u8 size)
{
    struct acpi_links *l = b->links;
    if (!l)
        return;
    bug_on(l->nr_pointers == ACPI_LINKS_MAX);
    l->pointer[l->nr_pointers].at = offset(b, p);
    l->pointer[l->nr_pointers++].size = size;
}

/* Note that the byte at p makes [start, start + length) add up to 0. */
static void link_sum(struct build *b, const void *p, const void *start, size_t length)
{
    struct acpi_links *l = b->links;
    if (!l)
        return;
    bug_on(l->nr_sums == ACPI_LINKS_MAX);
    l->sum[l->nr_sums].at = offset(b, p);
    l->sum[l->nr_sums].start = offset(b, start);
    l->sum[l->nr_sums++].length = (u32)length;
}

static void finish(struct build *b, struct acpi_header *h, const char *signature, u8 revision,
                   size_t length)
{
    memcpy(h->signature, signature, 4);
    h->length = (u32)length;
    h->revision = revision;
    memcpy(h->oem_id, oem, 6);
    memcpy(h->oem_table_id, "VITROPC ", 8);
    h->oem_revision = 1;
    memcpy(h->creator_id, "VTRO", 4);
    h->creator_revision = 1;
    h->checksum = 0;
    h->checksum = checksum(h, length);
    link_sum(b, &h->checksum, h, length);
}

/* -- DSDT ----------------------------------------------------------------- */

/* 32 slots * 4 pins: address, pin, no link device, interrupt. */
static void prt(struct aml *a, const char *name, bool apic)
{
    aml_name(a, name);
    aml_package(a, 128);
    for (unsigned slot = 0; slot < 32; slot++) {
        for (unsigned pin = 0; pin < 4; pin++) {
            unsigned gsi = pci_gsi(slot, pin);
            aml_package(a, 4);
            aml_int(a, slot << 16 | 0xffff);
            aml_int(a, pin);
            aml_int(a, 0);
            aml_int(a, apic ? gsi : PCI_PIC_IRQ(gsi));
            aml_end(a);
        }
    }
    aml_end(a);
}

static void pci_root(struct aml *a, const struct acpi_config *config)
{
    aml_device(a, "PCI0");
    aml_name(a, "_HID");
    aml_eisa_id(a, "PNP0A03");
    aml_name(a, "_UID");
    aml_int(a, 0);
    aml_name(a, "_BBN");
    aml_int(a, 0);
    aml_name(a, "_CRS");
    aml_resources(a);
    aml_res_bus_range(a, 0, 0xff);
    aml_res_io(a, PORT_PCI_ADDR, 8);
    aml_res_io_range(a, 0, PORT_PCI_ADDR - 1);
    aml_res_io_range(a, PORT_PCI_DATA + 4, 0xffff);
    aml_res_mem_range(a, LAYOUT_VGA_HOLE, LAYOUT_OPTION_ROM - 1);
    aml_res_mem_range(a, LAYOUT_PCI_MMIO, LAYOUT_PCI_MMIO_END - 1);
    aml_res_mem64_range(a, config->mmio64, config->mmio64 + LAYOUT_PCI_MMIO64_SIZE - 1);
    aml_end(a);

    prt(a, "PRTP", false);
    prt(a, "PRTA", true);
    aml_method(a, "_PRT", 0);
    aml_if_name(a, "\\PICM");
    aml_return(a);
    aml_ref(a, "PRTA");
    aml_end(a);
    aml_return(a);
    aml_ref(a, "PRTP");
    aml_end(a);
    aml_end(a);
}

static void device(struct aml *a, const char *name, const char *hid, u16 port, u8 nr_ports, int irq)
{
    aml_device(a, name);
    aml_name(a, "_HID");
    if (!memcmp(hid, "PNP", 3))
        aml_eisa_id(a, hid);
    else
        aml_string(a, hid);
    aml_name(a, "_UID");
    aml_int(a, 0);
    aml_name(a, "_STA");
    aml_int(a, 0x0f);
    aml_name(a, "_CRS");
    aml_resources(a);
    aml_res_io(a, port, nr_ports);
    if (irq >= 0)
        aml_res_irq(a, (unsigned)irq);
    aml_end(a);
    aml_end(a);
}

/* Two ports that are not neighbours. */
static void keyboard(struct aml *a)
{
    aml_device(a, "KBD");
    aml_name(a, "_HID");
    aml_eisa_id(a, "PNP0303");
    aml_name(a, "_STA");
    aml_int(a, 0x0f);
    aml_name(a, "_CRS");
    aml_resources(a);
    aml_res_io(a, PORT_KBD_DATA, 1);
    aml_res_io(a, PORT_KBD_STATUS, 1);
    aml_res_irq(a, GSI_KBD);
    aml_end(a);
    aml_end(a);
}

/* On the keyboard's ports. */
static void mouse(struct aml *a)
{
    aml_device(a, "MOU");
    aml_name(a, "_HID");
    aml_eisa_id(a, "PNP0F13");
    aml_name(a, "_STA");
    aml_int(a, 0x0f);
    aml_name(a, "_CRS");
    aml_resources(a);
    aml_res_irq(a, GSI_MOUSE);
    aml_end(a);
    aml_end(a);
}

/* Memory that PCI must not use: the ECAM window (MCFG is believed only if it is reserved). */
static void motherboard(struct aml *a)
{
    aml_device(a, "MBRD");
    aml_name(a, "_HID");
    aml_eisa_id(a, "PNP0C02");
    aml_name(a, "_UID");
    aml_int(a, 0);
    aml_name(a, "_CRS");
    aml_resources(a);
    aml_res_fixed_mem(a, LAYOUT_ECAM, LAYOUT_ECAM_SIZE);
    aml_res_io(a, PORT_PM1_EVT, PORT_PM_END - PORT_PM1_EVT);
    aml_res_io(a, PORT_ELCR, 2);
    aml_res_io(a, PORT_PM_OVMF, PORT_PM_TMR + 4 - PORT_PM1_EVT);
    aml_end(a);
    aml_end(a);
}

/* Linux's virtio_mmio driver goes by this name; the ID is Linaro's. */
static void virtio_mmio(struct aml *a, unsigned n)
{
    char name[5] = { 'V', 'I', 'O', "0123456789ABCDEF"[n], '\0' };
    aml_device(a, name);
    aml_name(a, "_HID");
    aml_string(a, "LNRO0005");
    aml_name(a, "_UID");
    aml_int(a, n);
    aml_name(a, "_CRS");
    aml_resources(a);
    aml_res_fixed_mem(a, (u32)(LAYOUT_VIRTIO_MMIO + n * PAGE_SIZE), (u32)PAGE_SIZE);
    aml_res_level_gsi(a, GSI_VIRTIO_MMIO);
    aml_end(a);
    aml_end(a);
}

static void hpet_device(struct aml *a)
{
    aml_device(a, "HPET");
    aml_name(a, "_HID");
    aml_eisa_id(a, "PNP0103");
    aml_name(a, "_CRS");
    aml_resources(a);
    aml_res_fixed_mem(a, (u32)LAYOUT_HPET, HPET_SIZE);
    aml_end(a);
    aml_end(a);
}

static void dsdt_body(struct aml *a, const struct acpi_config *config)
{
    aml_name(a, "PICM"); /* 0: 8259, 1: APIC; set by \_PIC */
    aml_int(a, 0);
    aml_method(a, "_PIC", 1);
    aml_store_arg0(a, "PICM");
    aml_end(a);

    aml_name(a, "_S5");
    aml_package(a, 4);
    aml_int(a, ACPI_SLP_TYP_S5);
    aml_int(a, ACPI_SLP_TYP_S5);
    aml_int(a, 0);
    aml_int(a, 0);
    aml_end(a);

    aml_scope(a, "\\_SB");
    motherboard(a);
    pci_root(a, config);
    for (unsigned n = 0; n < config->nr_virtio_mmio; n++)
        virtio_mmio(a, n);
    hpet_device(a);
    device(a, "COM1", "PNP0501", PORT_COM1, 8, GSI_COM1);
    device(a, "RTC", "PNP0B00", PORT_RTC, 2, GSI_RTC);
    if (config->keyboard) {
        keyboard(a);
        mouse(a);
    }
    device(a, "PEVT", "QEMU0001", PORT_PVPANIC, 1, -1);
    aml_end(a);
}

static u64 build_dsdt(struct build *b, const struct acpi_config *config)
{
    struct acpi_header *h = reserve(b, sizeof(*h));
    if (!h)
        return 0;
    struct aml a = { .buf = (u8 *)(h + 1), .cap = MIN(b->cap - b->len, (size_t)ACPI_DSDT_MAX) };
    dsdt_body(&a, config);
    b->failed |= a.failed || a.depth;
    b->len += a.len;
    finish(b, h, "DSDT", 2, sizeof(*h) + a.len);
    return address(b, h);
}

/* -- Tables with fixed layouts -------------------------------------------- */

static struct acpi_gas port(u16 port_nr, u8 bytes)
{
    return (struct acpi_gas){ /* access: 1 byte, 2 word, 3 dword */
        .space = 1, .bits = (u8)(bytes * 8), .access = bytes > 2 ? 3 : bytes, .address = port_nr };
}

static u64 build_fadt(struct build *b, const struct acpi_config *config, u64 facs, u64 dsdt)
{
    struct acpi_fadt *f = reserve(b, sizeof(*f));
    if (!f)
        return 0;
    f->facs = (u32)facs;
    f->dsdt = (u32)dsdt;
    f->x_dsdt = dsdt;
    link_pointer(b, &f->facs, 4);
    link_pointer(b, &f->dsdt, 4);
    link_pointer(b, &f->x_dsdt, 8);
    f->sci = GSI_SCI;
    f->pm1a_evt = PORT_PM1_EVT;
    f->pm1_evt_len = 4;
    f->pm1a_cnt = PORT_PM1_CNT;
    f->pm1_cnt_len = 2;
    f->pm_tmr = PORT_PM_TMR;
    f->pm_tmr_len = 4;
    f->gpe0 = PORT_GPE0;
    f->gpe0_len = 4;
    f->c2_latency = 0x0fff; /* no C2, no C3 */
    f->c3_latency = 0x0fff;
    f->century = 0x32;
    f->boot_arch = BOOT_LEGACY | (config->keyboard ? BOOT_8042 : 0) | (config->vga ? 0 : BOOT_NO_VGA);
    f->flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLEEP_BUTTON | FADT_TMR_32BIT | FADT_RESET_REG;
    f->reset = port(PORT_RESET, 1);
    f->reset_value = 0x06;
    f->minor = 4;
    f->x_pm1a_evt = port(PORT_PM1_EVT, 4);
    f->x_pm1a_evt.access = 2;
    f->x_pm1a_cnt = port(PORT_PM1_CNT, 2);
    f->x_pm_tmr = port(PORT_PM_TMR, 4);
    f->x_gpe0 = port(PORT_GPE0, 4);
    f->x_gpe0.access = 1;
    memcpy(&f->hypervisor, "Vitro\0\0", 8);
    finish(b, &f->h, "FACP", 6, sizeof(*f));
    return address(b, f);
}

static u64 build_facs(struct build *b)
{
    struct acpi_facs *f = reserve(b, sizeof(*f));
    if (!f)
        return 0;
    memcpy(f->signature, "FACS", 4); /* the only table without a checksum */
    f->length = sizeof(*f);
    f->version = 2;
    return address(b, f);
}

static u8 *put(u8 *p, u64 value, unsigned size)
{
    memcpy(p, &value, size);
    return p + size;
}

static u8 *put_override(u8 *p, u8 irq, u32 gsi, u16 flags)
{
    p = put(p, 2, 1);
    p = put(p, 10, 1);
    p = put(p, 0, 1); /* ISA */
    p = put(p, irq, 1);
    p = put(p, gsi, 4);
    return put(p, flags, 2);
}

static u64 build_madt(struct build *b, const struct acpi_config *config)
{
    size_t size = sizeof(struct acpi_header) + 8 + 12 + 2 * 10 + 6;
    for (unsigned i = 0; i < config->nr_cpus; i++)
        size += i < 255 ? 8 : 16;
    struct acpi_header *h = reserve(b, size);
    if (!h)
        return 0;
    u8 *p = (u8 *)(h + 1);
    p = put(p, LAYOUT_LAPIC, 4);
    p = put(p, 1, 4); /* 8259s are there too */
    for (unsigned i = 0; i < config->nr_cpus; i++) {
        if (i < 255) { /* local APIC: UID, APIC ID, enabled */
            p = put(p, 8 << 8 | 0, 2);
            p = put(p, i, 1);
            p = put(p, i, 1);
            p = put(p, 1, 4);
        } else { /* local x2APIC */
            p = put(p, 16 << 8 | 9, 4);
            p = put(p, i, 4);
            p = put(p, 1, 4);
            p = put(p, i, 4);
        }
    }
    p = put(p, 12 << 8 | 1, 2); /* I/O APIC: ID 0 */
    p = put(p, 0, 2);
    p = put(p, LAYOUT_IOAPIC, 4);
    p = put(p, 0, 4); /* GSI base */
    p = put_override(p, GSI_PIT, GSI_PIT_IOAPIC_PIN, 0);
    p = put_override(p, GSI_SCI, GSI_SCI, 0x0d); /* level, active high */
    p = put(p, 6 << 8 | 4, 2); /* NMI: all CPUs, LINT1 */
    p = put(p, 0xff, 1);
    p = put(p, 0, 2);
    p = put(p, 1, 1);
    bug_on((size_t)(p - (u8 *)h) != size);
    finish(b, h, "APIC", 4, size);
    return address(b, h);
}

static u64 build_mcfg(struct build *b)
{
    size_t size = sizeof(struct acpi_header) + 8 + 16;
    struct acpi_header *h = reserve(b, size);
    if (!h)
        return 0;
    u8 *p = (u8 *)(h + 1) + 8;
    p = put(p, LAYOUT_ECAM, 8);
    p = put(p, 0, 2);    /* segment */
    p = put(p, 0, 1);    /* buses */
    put(p, 0xff, 1);
    finish(b, h, "MCFG", 1, size);
    return address(b, h);
}

/* IA-PC HPET specification 1.0a §3.2.4. */
static u64 build_hpet(struct build *b)
{
    const struct acpi_gas gas = { .bits = 64, .address = LAYOUT_HPET };
    size_t size = sizeof(struct acpi_header) + 4 + sizeof(gas) + 4;
    struct acpi_header *h = reserve(b, size);
    if (!h)
        return 0;
    u8 *p = put((u8 *)(h + 1), HPET_ID, 4);
    memcpy(p, &gas, sizeof(gas));
    p = put(p + sizeof(gas), 0, 1); /* number 0 */
    p = put(p, 0x80, 2);            /* ticks: the least period */
    put(p, 0, 1);
    finish(b, h, "HPET", 1, size);
    return address(b, h);
}

size_t acpi_build(const struct acpi_config *config, void *buf, size_t cap, struct acpi_links *links)
{
    struct build b = { .buf = buf, .cap = cap, .base = config->base, .links = links };
    struct acpi_rsdp *rsdp = reserve(&b, sizeof(*rsdp));
    u64 facs = build_facs(&b);
    u64 dsdt = build_dsdt(&b, config);
    u64 table[] = { build_fadt(&b, config, facs, dsdt), build_madt(&b, config), build_mcfg(&b), build_hpet(&b) };
    size_t size = sizeof(struct acpi_header) + sizeof(table);
    size_t size32 = sizeof(struct acpi_header) + sizeof(table) / 2;
    struct acpi_header *xsdt = reserve(&b, size), *rsdt = reserve(&b, size32);
    if (b.failed || !rsdp || !xsdt || !rsdt)
        return 0;
    memcpy(xsdt + 1, table, sizeof(table));
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++)
        link_pointer(&b, (u8 *)(xsdt + 1) + i * 8, 8);
    finish(&b, xsdt, "XSDT", 1, size);
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++) { /* the same for those who know ACPI 1.0 */
        u32 at = (u32)table[i];
        memcpy((u8 *)(rsdt + 1) + i * 4, &at, 4);
        link_pointer(&b, (u8 *)(rsdt + 1) + i * 4, 4);
    }
    finish(&b, rsdt, "RSDT", 1, size32);

    memcpy(rsdp->signature, "RSD PTR ", 8);
    memcpy(rsdp->oem_id, oem, 6);
    rsdp->revision = 2;
    rsdp->length = sizeof(*rsdp);
    rsdp->xsdt = address(&b, xsdt);
    rsdp->rsdt = (u32)address(&b, rsdt);
    rsdp->checksum = checksum(rsdp, 20);
    rsdp->checksum_all = checksum(rsdp, sizeof(*rsdp));
    link_pointer(&b, &rsdp->xsdt, 8);
    link_pointer(&b, &rsdp->rsdt, 4);
    link_sum(&b, &rsdp->checksum, rsdp, 20); /* this one first: the other covers it */
    link_sum(&b, &rsdp->checksum_all, rsdp, sizeof(*rsdp));
    return b.len;
}
