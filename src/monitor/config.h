/*
 * config.h - what the user asked for: filled by cli.c, read by everyone in this folder.
 */
#pragma once
#include "base/types.h"
#include "monitor/drive.h"
#include "monitor/nic.h"
#include "monitor/share.h"
#include <stdio.h>

/* Exit statuses, as documented in vitro(1). The guest's own debug-exit status passes through. */
#define STATUS_OK 0
#define STATUS_FAIL 1
#define STATUS_USAGE 2
#define STATUS_TRIPLE_FAULT 3

#define CONFIG_CMDLINE_MAX 4096
#define OPTION_ROMS_MAX 8
#define MODULES_MAX 16

#define CONFIG_FILE_LINES 256
#define CONFIG_GIVEN_MAX 128

struct snapshot;

/* Is the VGA's text in the terminal, instead of the serial line? AUTO: until something comes on that. */
enum screen_when { SCREEN_AUTO, SCREEN_ON, SCREEN_OFF };

/* In config.trace, beside VITRO_TRACE_*: what the guest traces by hypercall. */
#define TRACE_GUEST 0x80000000u

struct config {
    const char *kernel;
    const char *initrd; /* NULL: none */
    const char *module[MODULES_MAX]; /* FILE, or FILE and what the kernel is told of it */
    unsigned nr_modules;
    const char *append; /* what the user gave; NULL: nothing */
    const char *cpu;    /* CPU model; NULL: the host's */
    const char *symbols;
    const char *trace_file;
    const char *firmware;  /* the image's name, then its path; NULL: --kernel is booted */
    const char *firmware_log;
    const char *nvram;     /* the file of UEFI's variables; NULL: not kept */
    const char *vnc;        /* where the screen is served */
    const char *screenshot; /* written at the end of the run */
    const char *option_rom[OPTION_ROMS_MAX]; /* paths */
    unsigned nr_option_roms;
    u64 mem;            /* bytes, a multiple of 1 MiB */
    u64 code_cache;     /* bytes, as mem; 0: the engine's default */
    unsigned cpus;
    unsigned trace, debug; /* VITRO_TRACE_*, VITRO_DEBUG_* */
    unsigned gdb_port;     /* 0: no stub */
    u32 pv;                /* PV_BIT() (paravirt.h) */
    bool testdev; /* the test kernels' device */
    enum screen_when screen;
    bool sandbox;
    bool no_reboot, stats, snapshot, counters;
    unsigned nr_drives;
    struct drive drive[DRIVES_MAX]; /* in the order of the command line */
    enum transport transport; /* of virtio devices whose own option does not say; TRANSPORT_AS_ALL: PCI */
    bool rng, balloon;
    const char *hvc, *vsock; /* NULL: none */
    unsigned nr_shares;
    struct share share[SHARES_MAX];
    unsigned nr_nics;
    struct nic nic[NICS_MAX];
    struct boot_choice boot;
    const char *name;      /* of this VM, for the control socket; NULL: none given */
    const char *file;      /* --config, or NAME's; NULL: none */
    bool detach;
    struct detach *parent; /* of a detached VM: who waits to hear that it runs; else NULL */
    const char *at_file;   /* the file and line that an option is being read from; NULL: command line */
    unsigned at_line;
    const char *restore;       /* --restore; NULL: a guest is booted */
    struct snapshot *saved; /* the file, until the VM is made from it */
    struct { const char *name, *value; } given[CONFIG_GIVEN_MAX]; /* options about the machine, in order */
    unsigned nr_given;
    char *lines[CONFIG_FILE_LINES]; /* what the file's options point into: kept to the end */
    unsigned nr_lines;
    char cmdline[CONFIG_CMDLINE_MAX];
    char kernel_path[4096], initrd_path[4096]; /* of the default guest */
    char firmware_path[4096];
};

/* say - one line on stderr with the program's name before it. */
/* size_parse - bytes of "512M", "2G", or a number of MiB. 0, -EINVAL, -ERANGE. */
int size_parse(const char *s, u64 *bytes);
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/*
 * cli_parse - fill c from the command line. Returns -1 to go on, else the status to exit with (help
 * was printed: 0; a mistake was explained: 2).
 */
int cli_parse(struct config *c, int argc, char **argv);
/*
 * option_set - one option by its long name, as from `--name value`; value NULL: a flag. -1 to go on, else a
 * status (explained).
 */
int option_set(struct config *c, const char *name, const char *value);
/*
 * config_read - set options from c->file: lines `option = value`, comments, an optional [vm] header. Paths are
 * relative to the file's folder. 0 or a status (explained).
 */
int config_read(struct config *c);
/* config_vm_path - where VM `name` keeps `file`: $XDG_DATA_HOME/vitro/NAME/FILE. 0 or -ENAMETOOLONG, -ENOENT. */
int config_vm_path(char *path, size_t len, const char *name, const char *file);
/* option_is_path - does this value of the option begin with a file's path? False too if there is no such option. */
bool option_is_path(const char *name, const char *value);

/* xen_refuses - with --pv xen: a sentence about what does not go with it, or NULL. */
const char *xen_refuses(const struct config *c);
/* config_complete - the default guest and the command line, after cli_parse. 0 or a status. */
int config_complete(struct config *c);
/* config_forget_snapshot - the VM was made from it, or not at all. */
void config_forget_snapshot(struct config *c);
