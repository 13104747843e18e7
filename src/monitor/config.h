/*
 * config.h - what the user asked for: filled by cli.c, read by everyone in this folder.
 */
#pragma once
#include "base/types.h"
#include "monitor/drive.h"
#include <stdio.h>

/* Exit statuses, as documented in vitro(1). The guest's own debug-exit status passes through. */
#define STATUS_OK 0
#define STATUS_FAIL 1
#define STATUS_USAGE 2
#define STATUS_TRIPLE_FAULT 3

#define CONFIG_CMDLINE_MAX 4096

struct config {
    const char *kernel;
    const char *initrd; /* NULL: none */
    const char *append; /* what the user gave; NULL: nothing */
    const char *cpu;    /* CPU model; NULL: the host's */
    const char *symbols;
    const char *trace_file;
    u64 mem;            /* bytes, a multiple of 1 MiB */
    unsigned cpus;
    unsigned trace, debug; /* VITRO_TRACE_*, VITRO_DEBUG_* */
    unsigned gdb_port;     /* 0: no stub */
    u32 pv;                /* PV_BIT() (paravirt.h) */
    bool no_reboot, stats;
    unsigned nr_drives;
    struct drive drive[DRIVES_MAX]; /* in the order of the command line */
    struct boot_choice boot;
    char cmdline[CONFIG_CMDLINE_MAX];
    char kernel_path[4096], initrd_path[4096]; /* of the default guest */
};

/* say - one line on stderr with the program's name before it. */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/*
 * cli_parse - fill c from the command line. Returns -1 to go on, else the status to exit with (help
 * was printed: 0; a mistake was explained: 2).
 */
int cli_parse(struct config *c, int argc, char **argv);
/* config_complete - the default guest and the command line, after cli_parse. 0 or a status. */
int config_complete(struct config *c);
