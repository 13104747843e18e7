/*
 * What firmware finds: fw_cfg by port and by DMA, the ACPI loader script carried out on the files it
 * names, SMBIOS structures, shadow RAM, PCI interrupt routing. No CPU: through the board's ports.
 */
#include "machine/board.h"
#include "machine/layout.h"
#include "mem/ram.h"
#include "tests/lib/check.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define RAM_SIZE (64ull << 20)

struct fixture {
    struct machine *m;
    struct ram ram;
    u8 *mem;
    unsigned shadow_calls, mode_f0000, mode_c4000;
};

static u64 no_time(void *opaque) { (void)opaque; return 0; }
static u64 no_tsc(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; return 0; }
static void no_kick(void *opaque, unsigned vcpu) { (void)opaque, (void)vcpu; }

static void on_shadow(void *opaque, gpa_t gpa, u64 size, unsigned mode)
{
    struct fixture *f = opaque;
    f->shadow_calls++;
    if (gpa == 0xf0000 && size == 0x10000)
        f->mode_f0000 = mode;
    if (gpa == 0xc4000 && size == 0x4000)
        f->mode_c4000 = mode;
}

static void setup(struct fixture *f, bool firmware)
{
    memset(f, 0, sizeof(*f));
    f->mem = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ram_init(&f->ram);
    struct machine_range r[MACHINE_MAX_RANGES];
    unsigned n = machine_ram_ranges(RAM_SIZE, r);
    for (unsigned i = 0; i < n; i++)
        CHECK(!ram_add_slot(&f->ram, r[i].gpa, r[i].size, f->mem + r[i].offset, false));
    const struct machine_config config = {
        .nr_cpus = 3, .ram_size = RAM_SIZE, .ram = &f->ram, .tsc_khz = 1000000, .wall_ns = 1,
        .opaque = f, .kick = no_kick, .tsc_now = no_tsc, .clock_source = no_time,
        .firmware = firmware, .shadow = on_shadow, .boot_order = "dca", .boot_menu = true,
    };
    CHECK(!machine_create(&config, &f->m));
}

static void teardown(struct fixture *f)
{
    machine_destroy(f->m);
    ram_fini(&f->ram);
    munmap(f->mem, RAM_SIZE);
}

static void out(struct fixture *f, u16 port, unsigned size, u32 v) { machine_port_out(f->m, port, size, v); }
static u32 in(struct fixture *f, u16 port, unsigned size) { return machine_port_in(f->m, port, size); }

static void item(struct fixture *f, u16 key, void *buf, size_t len)
{
    out(f, PORT_FW_CFG, 2, key);
    for (size_t i = 0; i < len; i++)
        ((u8 *)buf)[i] = (u8)in(f, PORT_FW_CFG + 1, 1);
}

/* A file's bytes (malloc), by the directory. */
static u8 *file(struct fixture *f, const char *name, u32 *size)
{
    u32 n;
    item(f, FW_CFG_FILE_DIR, &n, 4);
    n = __builtin_bswap32(n);
    CHECK(n > 0 && n < FW_CFG_ITEMS);
    for (u32 i = 0; i < n; i++) {
        struct { u32 size; u16 key, zero; char name[56]; } e;
        for (unsigned b = 0; b < sizeof(e); b++)
            ((u8 *)&e)[b] = (u8)in(f, PORT_FW_CFG + 1, 1);
        if (strcmp(e.name, name))
            continue;
        *size = __builtin_bswap32(e.size);
        u8 *data = malloc(*size + 1);
        item(f, __builtin_bswap16(e.key), data, *size);
        CHECK(in(f, PORT_FW_CFG + 1, 1) == 0); /* behind the end */
        return data;
    }
    CHECK_MSG(false, "no file %s", name);
    return NULL;
}

static void test_items(struct fixture *f)
{
    u8 b[8];
    u64 ram;

    item(f, FW_CFG_SIGNATURE, b, 8);
    CHECK(!memcmp(b, "QEMU\0\0\0\0", 8));
    item(f, FW_CFG_ID, b, 4);
    CHECK(b[0] == 3);
    item(f, FW_CFG_NB_CPUS, b, 2);
    CHECK(b[0] == 3 && b[1] == 0);
    item(f, FW_CFG_BOOT_MENU, b, 2);
    CHECK(b[0] == 1);
    item(f, FW_CFG_RAM_SIZE, &ram, 8);
    CHECK(ram == RAM_SIZE);
    item(f, 0x7777, b, 2);
    CHECK(b[0] == 0 && b[1] == 0);
    CHECK(in(f, PORT_FW_CFG, 1) == 0);
    out(f, PORT_FW_CFG + 1, 1, 0xff); /* writes to items are dropped */
    item(f, FW_CFG_SIGNATURE, b, 4);
    CHECK(!memcmp(b, "QEMU", 4));
    /* Boot order d, c, a: CD 3, disk 2, floppy 1. */
    out(f, PORT_RTC, 1, 0x3d);
    CHECK(in(f, PORT_RTC + 1, 1) == 0x23);
    out(f, PORT_RTC, 1, 0x38);
    CHECK(in(f, PORT_RTC + 1, 1) == 0x10);
}

static void dma(struct fixture *f, gpa_t at, u32 control, u32 length, u64 address)
{
    const struct { u32 control, length; u64 address; } r = {
        __builtin_bswap32(control), __builtin_bswap32(length), __builtin_bswap64(address)
    };
    ram_write(&f->ram, at, &r, sizeof(r));
    out(f, PORT_FW_CFG_DMA, 4, __builtin_bswap32((u32)(at >> 32)));
    out(f, PORT_FW_CFG_DMA + 4, 4, __builtin_bswap32((u32)at));
}

static u32 dma_status(struct fixture *f, gpa_t at)
{
    u32 v = 1;
    ram_read(&f->ram, at, &v, 4);
    return __builtin_bswap32(v);
}

static void test_dma(struct fixture *f)
{
    u8 b[16];

    CHECK(in(f, PORT_FW_CFG_DMA, 4) == 0x554d4551); /* "QEMU" */
    CHECK(in(f, PORT_FW_CFG_DMA + 4, 4) == 0x47464320); /* " CFG" */
    memset(f->mem + 0x2000, 0xee, 16);
    dma(f, 0x1000, FW_CFG_SIGNATURE << 16 | 0x0a, 8, 0x2000);
    CHECK(dma_status(f, 0x1000) == 0);
    CHECK(!ram_read(&f->ram, 0x2000, b, 16) && !memcmp(b, "QEMU\0\0\0\0\xee", 9));
    /* Skip two, then read two, across a page. */
    dma(f, 0x1000, FW_CFG_SIGNATURE << 16 | 0x0c, 2, 0);
    dma(f, 0x1000, 0x02, 2, 0x2fff);
    CHECK(f->mem[0x2fff] == 'M' && f->mem[0x3000] == 'U');
    /* Nowhere, above RAM, wrapping, of any length: an error, no more. */
    dma(f, 0x1000, FW_CFG_SIGNATURE << 16 | 0x0a, 4, 0xb0000);
    CHECK(dma_status(f, 0x1000) == 1);
    dma(f, 0x1000, 0x02, 0xffffffff, RAM_SIZE - 8);
    CHECK(dma_status(f, 0x1000) == 1);
    dma(f, 0x1000, 0x02, 0xffffffff, ~0ull - 4);
    CHECK(dma_status(f, 0x1000) == 1);
    dma(f, 0x1000, FW_CFG_SIGNATURE << 16 | 0x18, 4, 0x2000);
    CHECK(dma_status(f, 0x1000) == 1);
    dma(f, RAM_SIZE - 8, 0x02, 4, 0x2000);  /* a request that is not all in RAM */
    dma(f, ~0ull - 7, 0x02, 4, 0x2000);
    dma(f, 0x1000, 0x04, 0xffffffff, 0);    /* skip to behind the end */
    CHECK(in(f, PORT_FW_CFG + 1, 1) == 0);
    u16 nothing = 0x1234;
    out(f, PORT_FW_CFG_DMA + 4, 2, nothing); /* not how it is written: ignored */
}

/* The script on the files, as firmware would; then follow the pointers. */
static void test_acpi(struct fixture *f)
{
    const u64 tables_at = 0x3f00000, rsdp_at = 0xf5a00;
    u32 rsdp_len, tables_len, script_len;
    u8 *rsdp = file(f, "etc/acpi/rsdp", &rsdp_len);
    u8 *tables = file(f, "etc/acpi/tables", &tables_len);
    u8 *script = file(f, "etc/table-loader", &script_len);

    if (!rsdp || !tables || !script)
        return;
    CHECK(rsdp_len == 36 && script_len % 128 == 0);
    for (u8 *c = script; c < script + script_len; c += 128) {
        u32 command, v[3];
        memcpy(&command, c, 4);
        u8 *to = !strcmp((char *)c + 4, "etc/acpi/rsdp") ? rsdp : tables;
        u32 to_len = to == rsdp ? rsdp_len : tables_len;
        CHECK(to == rsdp || !strcmp((char *)c + 4, "etc/acpi/tables"));
        if (command == 2) {
            u32 off;
            u64 p = 0;
            CHECK(!strcmp((char *)c + 60, "etc/acpi/tables"));
            memcpy(&off, c + 116, 4);
            CHECK(off + c[120] <= to_len);
            memcpy(&p, to + off, c[120]);
            CHECK(p < tables_len);
            p += tables_at;
            memcpy(to + off, &p, c[120]);
        } else if (command == 3) {
            u8 sum = 0;
            memcpy(v, c + 60, 12);
            CHECK(v[0] >= v[1] && v[0] < v[1] + v[2] && v[1] + v[2] <= to_len);
            CHECK_MSG(to[v[0]] == 0, "OVMF sums what is there, SeaBIOS subtracts from it: only from 0 both come out right");
            for (u32 i = 0; i < v[2]; i++)
                sum = (u8)(sum + to[v[1] + i]);
            to[v[0]] = (u8)-sum;
        } else {
            CHECK(command == 1);
        }
    }
    (void)rsdp_at;
    u64 xsdt;
    u8 sum = 0;
    for (unsigned i = 0; i < 36; i++)
        sum = (u8)(sum + rsdp[i]);
    CHECK(!memcmp(rsdp, "RSD PTR ", 8) && sum == 0);
    memcpy(&xsdt, rsdp + 24, 8);
    u8 *x = tables + (xsdt - tables_at);
    CHECK(!memcmp(x, "XSDT", 4));
    u32 len;
    memcpy(&len, x + 4, 4);
    bool facp = false, apic = false;
    for (u32 at = 36; at < len; at += 8) {
        u64 p;
        memcpy(&p, x + at, 8);
        CHECK(p >= tables_at && p < tables_at + tables_len);
        u8 *t = tables + (p - tables_at);
        u32 n;
        memcpy(&n, t + 4, 4);
        sum = 0;
        for (u32 i = 0; i < n; i++)
            sum = (u8)(sum + t[i]);
        CHECK_MSG(sum == 0, "%.4s", (char *)t);
        apic |= !memcmp(t, "APIC", 4);
        if (memcmp(t, "FACP", 4))
            continue;
        facp = true;
        u32 dsdt;
        u64 x_dsdt;
        memcpy(&dsdt, t + 40, 4);
        memcpy(&x_dsdt, t + 140, 8);
        CHECK(dsdt == x_dsdt && !memcmp(tables + (dsdt - tables_at), "DSDT", 4));
    }
    CHECK(facp && apic);
    free(rsdp);
    free(tables);
    free(script);
}

static void test_smbios(struct fixture *f)
{
    u32 anchor_len, len, said, types = 0, cpus = 0;
    u8 *anchor = file(f, "etc/smbios/smbios-anchor", &anchor_len), sum = 0;
    u8 *t = file(f, "etc/smbios/smbios-tables", &len);

    if (!anchor || !t)
        return;
    CHECK(anchor_len == 24 && !memcmp(anchor, "_SM3_", 5));
    for (unsigned i = 0; i < 24; i++)
        sum = (u8)(sum + anchor[i]);
    CHECK(sum == 0);
    memcpy(&said, anchor + 12, 4);
    CHECK(said == len);
    u32 at = 0;
    while (at + 4 <= len) {
        u8 type = t[at], size = t[at + 1];
        static const struct { u8 type, size; } sizes[] = { /* DSP0134 for version 3.0 */
            { 0, 24 }, { 1, 27 }, { 3, 22 }, { 4, 42 }, { 16, 23 }, { 17, 34 }, { 19, 31 },
            { 32, 11 }, { 127, 4 },
        };
        for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++)
            CHECK_MSG(type != sizes[i].type || size == sizes[i].size, "type %u: %u", type, size);
        types |= type < 32 ? BIT(type) : 0;
        cpus += type == 4;
        at += size;
        while (at + 1 < len && (t[at] || t[at + 1]))
            at++;
        at += 2;
        if (type == 127)
            break;
    }
    CHECK(at == len && cpus == 3);
    CHECK((types & (BIT(0) | BIT(1) | BIT(3) | BIT(16) | BIT(17) | BIT(19))) ==
          (BIT(0) | BIT(1) | BIT(3) | BIT(16) | BIT(17) | BIT(19)));
    free(anchor);
    free(t);
}

static void config_w(struct fixture *f, unsigned devfn, unsigned off, u8 v)
{
    out(f, PORT_PCI_ADDR, 4, 0x80000000u | devfn << 8 | (off & ~3u));
    out(f, (u16)(PORT_PCI_DATA + (off & 3)), 1, v);
}

static void test_shadow(struct fixture *f)
{
    u8 b = 0;

    CHECK(f->shadow_calls == PAM_AREAS && f->mode_f0000 == 0);
    config_w(f, 0, 0x59, 0xff);
    CHECK(f->mode_f0000 == 3 && f->mode_c4000 == 0);
    config_w(f, 0, 0x5a, 0x20); /* PAM1 high: 0xc4000 written, not read */
    CHECK(f->mode_c4000 == SHADOW_WRITE && f->shadow_calls == PAM_AREAS + 2);
    /* The engine sends such a write to the bus: it must reach RAM, others must not. */
    b = 0x5a;
    machine_mmio_write(f->m, 0, 0xc4001, &b, 1);
    machine_mmio_write(f->m, 0, 0xc0001, &b, 1);
    machine_mmio_write(f->m, 0, 0xc7fff, "ab", 2); /* 0xc8000 is not switched */
    CHECK(f->mem[0xc4001] == 0x5a && f->mem[0xc0001] == 0);
    CHECK(f->mem[0xc7fff] == 'a' && f->mem[0xc8000] == 0);
    machine_reset(f->m);
    CHECK(f->mode_f0000 == 0 && f->mode_c4000 == 0);
}

static u8 pic_requests(struct fixture *f)
{
    out(f, PORT_PIC_SLAVE, 1, 0x0a); /* OCW3: read IRR */
    return (u8)in(f, PORT_PIC_SLAVE, 1);
}

static void test_pirq(struct fixture *f)
{
    const unsigned isa = PCI_DEVFN(PCI_SLOT_PIIX, 0);

    out(f, PORT_ELCR + 1, 1, 0x0e); /* 9, 10, 11 level */
    CHECK(pic_requests(f) == 0);
    machine_set_gsi(f->m, GSI_PCI + 1, true); /* slot 1, INTA: PIRQA, not routed after reset */
    CHECK(pic_requests(f) == 0);
    config_w(f, isa, 0x60, 11);
    CHECK(pic_requests(f) == 1 << 3);
    config_w(f, isa, 0x62, 11); /* PIRQC shares it */
    machine_set_gsi(f->m, GSI_PCI + 3, true);
    machine_set_gsi(f->m, GSI_PCI + 1, false);
    CHECK(pic_requests(f) == 1 << 3);
    config_w(f, isa, 0x62, 10);
    CHECK(pic_requests(f) == 1 << 2);
    config_w(f, isa, 0x62, 0x8a);
    CHECK(pic_requests(f) == 0);
    machine_set_gsi(f->m, GSI_PCI + 3, false);
}

int main(void)
{
    struct fixture f;

    setup(&f, true);
    CHECK(!machine_add_file(f.m, "opt/test", "hello", 5));
    CHECK(machine_add_file(f.m, "opt/test", "again", 5) < 0);
    CHECK(machine_add_file(f.m, "opt/a-name-that-is-longer-than-what-the-directory-can-hold", "", 0) < 0);
    CHECK(!machine_fill_firmware(f.m));
    u32 size = 0;
    u8 *hello = file(&f, "opt/test", &size);
    CHECK(size == 5 && hello && !memcmp(hello, "hello", 5));
    free(hello);
    test_items(&f);
    test_dma(&f);
    test_acpi(&f);
    test_smbios(&f);
    test_shadow(&f);
    test_pirq(&f);
    teardown(&f);

    setup(&f, false); /* a kernel that is booted directly finds all of it set up */
    CHECK(f.mode_f0000 == 3 && f.mode_c4000 == 3);
    machine_set_gsi(f.m, GSI_PCI + 1, true);
    CHECK(pic_requests(&f) == 1 << 2);
    teardown(&f);
    return check_done("test_firmware");
}
