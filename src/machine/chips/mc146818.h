/* mc146818.h - real-time clock and CMOS RAM. */
#pragma once
#include "base/types.h"
#include "machine/clock.h"
#include "machine/device.h"
#include "machine/irq.h"

/* CMOS bytes that PC firmware and kernels know */
#define CMOS_SHUTDOWN 0x0f
#define CMOS_BASE_MEM 0x15   /* KiB, 16 bits */
#define CMOS_EXT_MEM 0x17    /* KiB above 1 MiB, 16 bits; again at 0x30 */
#define CMOS_EXT_MEM2 0x30
#define CMOS_CENTURY 0x32
#define CMOS_MEM_16M 0x34    /* 64 KiB units above 16 MiB, 16 bits */
#define CMOS_MEM_4G 0x5b     /* 64 KiB units above 4 GiB, 24 bits */
#define CMOS_BOOT3 0x38      /* high nibble: third boot device; bit 0: boot floppies without signature too */
#define CMOS_BOOT12 0x3d     /* first (low nibble) and second: 1 floppy, 2 disk, 3 CD, 4 network */
#define CMOS_NR_CPUS 0x5f    /* minus one */

struct rtc_wiring {
    struct irq_line irq;
    struct vm_clock *clock;
    u64 wall_ns;  /* UTC, ns since 1970, at machine time 0 */
    u64 low_ram, high_ram; /* bytes below and above 4 GiB */
    unsigned nr_cpus;
    u8 floppies;             /* CMOS types of drive A (high nibble) and B */
    const char *boot_order; /* letters of acdn; NULL: nothing said */
};

struct mc146818 {
    pthread_mutex_t lock;
    struct rtc_wiring wiring;
    u8 index;
    u8 cmos[128];
    u64 offset_ns;   /* guest's wall time = machine time + this */
    u64 seen_s;      /* wall second up to which updates and alarms have been looked at */
    u64 seen_period; /* the same for periodic interrupts, in periods */
    bool irq_level;
    struct vm_timer timer;
};

/* mc146818_skip - so much real time went by while the machine's clock stood: the battery kept this one going. */
void mc146818_skip(struct mc146818 *r, s64 ns);
/* Offsets: 0 index, 1 data. */
extern const struct device_class mc146818;
