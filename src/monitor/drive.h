/* drive.h - what --disk, --cdrom, --floppy and --boot ask for. */
#pragma once
#include "base/types.h"

#define DRIVES_MAX 16
#define DRIVE_PATH_MAX 4096

enum drive_kind { DRIVE_DISK, DRIVE_CDROM, DRIVE_FLOPPY };
enum drive_bus { DRIVE_IDE, DRIVE_FDC };

struct drive {
    enum drive_kind kind;
    enum drive_bus bus;
    bool readonly;
    char format[16]; /* "": find out */
    char path[DRIVE_PATH_MAX];
};

struct boot_choice {
    char order[8]; /* letters of acdn, tried in this order; "": the firmware's own */
    bool menu;
    bool given;    /* --boot was there */
};

/*
 * drive_parse - FILE[,KEY=VALUE]... as --help describes it; a comma in FILE is written twice.
 * -1: done, else the exit status, with the mistake explained. @option: its name, for messages.
 */
int drive_parse(struct drive *drive, enum drive_kind kind, const char *option, const char *text);
/* boot_choice_parse - order=LETTERS,menu=on|off. Returns as drive_parse does. */
int boot_choice_parse(struct boot_choice *boot, const char *text);
