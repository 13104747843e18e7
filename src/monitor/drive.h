/* drive.h - what --disk, --cdrom, --floppy and --boot ask for. */
#pragma once
#include "base/types.h"

#define DRIVES_MAX 16
#define DRIVE_PATH_MAX 4096
#define DRIVE_QUEUES_MAX 16

enum drive_kind { DRIVE_DISK, DRIVE_CDROM, DRIVE_FLOPPY };
enum drive_bus { DRIVE_IDE, DRIVE_FDC, DRIVE_VIRTIO, DRIVE_AHCI, DRIVE_PMEM, DRIVE_VITRO /* our own hypercalls */ };

/* Where a virtio device's registers are: behind a PCI function, or outside PCI. */
enum transport { TRANSPORT_AS_ALL /* what --virtio says */, TRANSPORT_PCI, TRANSPORT_MMIO };

struct drive {
    enum drive_kind kind;
    enum drive_bus bus;
    bool readonly;
    char format[16]; /* "": find out */
    bool bus_given; /* by if=; else config_complete() chooses */
    /* DRIVE_VIRTIO */
    unsigned queues;  /* 0: one */
    bool packed, threads;
    enum transport transport;
    bool persistent;  /* offer persistent grants; of a Xen PV guest's */
    bool snapshot;    /* throw writes away at the end */
    char serial[24];  /* "": none */
    char path[DRIVE_PATH_MAX];
};

struct boot_choice {
    char order[8]; /* letters of acdn, tried in this order; "": the firmware's own */
    bool menu;
    bool given;    /* --boot was there */
};

/* option_piece - the next piece up to a comma; two commas stand for one. Where to go on; NULL: it is too long. */
const char *option_piece(const char *s, char *out, size_t cap);
/* option_switch - on or off. Returns as drive_parse does. */
int option_switch(const char *option, const char *key, const char *value, bool *on);
/* option_transport - pci or mmio. False: it is neither. */
bool option_transport(const char *value, enum transport *t);
/*
 * drive_parse - FILE[,KEY=VALUE]... as --help describes it; a comma in FILE is written twice.
 * -1: done, else the exit status, with the mistake explained. @option: its name, for messages.
 */
int drive_parse(struct drive *drive, enum drive_kind kind, const char *option, const char *text);
/* boot_choice_parse - order=LETTERS,menu=on|off. Returns as drive_parse does. */
int boot_choice_parse(struct boot_choice *boot, const char *text);
