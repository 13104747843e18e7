/* cli.c - the command line. One row adds an option; --help is the table. */
#include "monitor/config.h"
#include "monitor/bench.h"
#include "monitor/client.h"
#include "monitor/image.h"
#include "monitor/rundir.h"
#include "libvitro.h"
#include "paravirt/paravirt.h"
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum opt_type {
    OPT_STR,
    OPT_SIZE,  /* u64, bytes; a bare number is MiB */
    OPT_COUNT, /* unsigned */
    OPT_PORT,  /* unsigned; its argument may be left out */
    OPT_WORDS, /* unsigned, bits by name, comma separated */
    OPT_PV,    /* u32, paravirt_parse() */
    OPT_FLAG,  /* bool */
    OPT_SCREEN, /* enum screen_when; its argument follows "=", or is left out: on */
    OPT_SWITCH, /* bool; its argument is on or off */
    OPT_TRANSPORT, /* enum transport */
    OPT_DRIVE, /* one more in config.drive; min: enum drive_kind */
    OPT_SHARE, /* one more in config.share */
    OPT_NIC,   /* one more in config.nic */
    OPT_BOOT,  /* struct boot_choice */
    OPT_ROM,   /* one more in config.option_rom */
    OPT_MODULE, /* one more in config.module */
    OPT_NAME,  /* const char *; a VM's name */
    OPT_THIS_RUN = 0x100, /* ORed in: not about the machine, so not kept in a snapshot */
};

struct word {
    const char *name;
    unsigned bits;
};

static const struct word trace_words[] = {
    { "exc", VITRO_TRACE_EXC },
    { "sys", VITRO_TRACE_SYS },
    { "block", VITRO_TRACE_BLOCK },
    { "xlat", VITRO_TRACE_XLAT },
    { "guest", TRACE_GUEST },
    { "all", VITRO_TRACE_EXC | VITRO_TRACE_SYS | VITRO_TRACE_BLOCK | VITRO_TRACE_XLAT | TRACE_GUEST },
    { NULL, 0 },
};
static const struct word debug_words[] = {
    { "one-insn", VITRO_DEBUG_ONE_INSN },
    { "slow-path", VITRO_DEBUG_SLOW_PATH },
    { "no-chain", VITRO_DEBUG_NO_CHAIN },
    { "windows", VITRO_DEBUG_WINDOWS },
    { NULL, 0 },
};

struct option {
    const char *name, *arg;
    unsigned type;
    size_t at;
    const struct word *words;
    u64 min, max;
    const char *help;
};

#define AT(field) offsetof(struct config, field)
#define MIB (1ull << 20)
#define CPUS_MAX 16

/* clang-format off */
static const struct option options[] = {
    { "config",     "FILE",   OPT_STR | OPT_THIS_RUN,   AT(file),       NULL, 0, 0,
      "read options from a file of `option = value` lines; the command line goes before it" },
    { "name",       "NAME",   OPT_NAME | OPT_THIS_RUN,  AT(name),       NULL, 0, 0,
      "what `vitro ps`, stop, console and the others call this VM (default: vm-PID)" },
    { "restore",    "FILE",   OPT_STR | OPT_THIS_RUN,   AT(restore),    NULL, 0, 0,
      "go on from a snapshot that `vitro snapshot` saved" },
    { "detach",     NULL,     OPT_FLAG | OPT_THIS_RUN,  AT(detach),     NULL, 0, 0,
      "run in the background; `vitro console NAME` shows its serial console" },
    { "kernel",     "FILE",   OPT_STR,   AT(kernel),     NULL, 0, 0,
      "bzImage, or a 64-bit ELF, Multiboot or PVH kernel, gzipped or not, to boot (default: the guest `make run` fetched)" },
    { "initrd",     "FILE",   OPT_STR,   AT(initrd),     NULL, 0, 0,
      "initial RAM disk" },
    { "module",     "FILE",   OPT_MODULE, 0, NULL, 0, 0,
      "a module for a Multiboot or PVH kernel; 'FILE ARGUMENTS' is told to it as a whole; may be repeated" },
    { "append",     "STR",    OPT_STR,   AT(append),     NULL, 0, 0,
      "kernel command line; console=ttyS0 is put before it unless it names a console" },
    { "firmware",   "FILE",   OPT_STR,   AT(firmware),   NULL, 0, 0,
      "firmware to start with; `ovmf`: Debian's UEFI (default when a drive is to be booted: SeaBIOS)" },
    { "nvram",      "FILE",   OPT_STR,   AT(nvram),      NULL, 0, 0,
      "keep UEFI's variables in a file, made from the firmware's template when it does not exist" },
    { "firmware-log", "FILE", OPT_STR,   AT(firmware_log), NULL, 0, 0,
      "where what the firmware says to developers (port 0x402) goes" },
    { "testdev",    NULL,     OPT_FLAG,  AT(testdev),    NULL, 0, 0,
      "a device for test kernels, as QEMU's pc-testdev: ports 0xe0 and 0x2000, memory at 0xff000000" },
    { "screen",     "on|off|auto", OPT_SCREEN,  AT(screen), NULL, 0, 0,
      "show the VGA's text screen in the terminal instead of the serial line, and type on its keyboard (default: auto, in a terminal until something comes on the serial line)" },
    { "vnc",        "WHERE",  OPT_STR | OPT_THIS_RUN, AT(vnc), NULL, 0, 0,
      "show the VGA's screen to VNC clients, at unix:PATH or a loopback ADDRESS:PORT; there is no password" },
    { "screenshot", "FILE",   OPT_STR | OPT_THIS_RUN, AT(screenshot), NULL, 0, 0,
      "at the end, write the VGA's screen to a file: PNG if it is called .png, else characters" },
    { "option-rom", "FILE",   OPT_ROM,   0, NULL, 0, 0,
      "an option ROM for the firmware to start, such as iPXE; may be given several times" },
    { "disk",       "FILE",   OPT_DRIVE, 0, NULL, DRIVE_DISK, 0,
      "a disk's image or block device; FILE[,if=virtio|ide|ahci|pmem|vitro][,format=raw|qcow2][,readonly=on]..." },
    { "net",        "KIND",   OPT_NIC,   0, NULL, 0, 0,
      "a network card: user[,hostfwd=tcp:[ADDR]:PORT-:PORT]..., tap,ifname=NAME, or null" },
    { "rng",        NULL,     OPT_FLAG,  AT(rng),        NULL, 0, 0,
      "a virtio source of random numbers" },
    { "balloon",    NULL,     OPT_FLAG,  AT(balloon),    NULL, 0, 0,
      "a virtio balloon: memory the guest does not use goes back to the host" },
    { "hvc",        "PATH",   OPT_STR,   AT(hvc),        NULL, 0, 0,
      "a virtio console, /dev/hvc0, whose other end is a unix socket made at PATH" },
    { "vsock",      "PATH",   OPT_STR,   AT(vsock),      NULL, 0, 0,
      "streams between guest and host by unix sockets; PATH[,cid=N]" },
    { "share",      "DIR",    OPT_SHARE, 0, NULL, 0, 0,
      "a directory of the host's for the guest (9p); DIR,tag=NAME[,readonly=on]" },
    { "virtio",     "pci|mmio", OPT_TRANSPORT, AT(transport), NULL, 0, 0,
      "where virtio devices are whose own option does not say transport=: behind PCI (default), or outside it, for guests without PCI" },
    { "snapshot",   NULL,     OPT_FLAG,  AT(snapshot),   NULL, 0, 0,
      "what the guest writes to its disks is gone at the end" },
    { "cdrom",      "FILE",   OPT_DRIVE, 0, NULL, DRIVE_CDROM, 0,
      "a CD's or DVD's image" },
    { "floppy",     "FILE",   OPT_DRIVE, 0, NULL, DRIVE_FLOPPY, 0,
      "a floppy disk's image; FILE[,readonly=on]" },
    { "boot",       "WHAT",   OPT_BOOT,  AT(boot),       NULL, 0, 0,
      "order=LETTERS (a floppy, c disk, d CD, n network), menu=on: the firmware's boot menu" },
    { "mem",        "SIZE",   OPT_SIZE,  AT(mem),        NULL, MIB, 1ull << 40,
      "guest memory: a number with K, M, G or T; without one, MiB (default: 512M)" },
    { "code-cache", "SIZE",   OPT_SIZE | OPT_THIS_RUN, AT(code_cache), NULL, MIB, 1ull << 30,
      "memory for translated code, used as it fills; when it is full the oldest goes (default: 192M)" },
    { "cpus",       "N",      OPT_COUNT, AT(cpus),       NULL, 1, CPUS_MAX,
      "virtual CPUs, 1 to 16 (default: 1); each is a thread" },
    { "cpu",        "MODEL",  OPT_STR,   AT(cpu),        NULL, 0, 0,
      "host (default), x86-64-v2, x86-64-v3 or x86-64-v4; ,+mwait or ,-mwait behind it: with MONITOR and MWAIT or without" },
    { "no-reboot",  NULL,     OPT_FLAG | OPT_THIS_RUN,  AT(no_reboot),  NULL, 0, 0,
      "leave with status 0 when the guest resets, instead of starting it again" },
    { "pv",         "WHAT",   OPT_PV,    AT(pv),         NULL, 0, 0,
      "what the guest may ask the hypervisor: kvm, vitro, none, or parts, as in kvm,-eoi; or xen: run it as a Xen PV guest" },
    { "stats",      NULL,     OPT_FLAG | OPT_THIS_RUN,  AT(stats),      NULL, 0, 0,
      "print counters to stderr at the end" },
    { "counters",   NULL,     OPT_FLAG | OPT_THIS_RUN,  AT(counters),   NULL, 0, 0,
      "let the guest read the engine's counters at port 0x520 (for benchmarks)" },
    { "symbols",    "FILE",   OPT_STR | OPT_THIS_RUN,   AT(symbols),    NULL, 0, 0,
      "System.map or vmlinux that names guest addresses in --stats" },
    { "trace",      "WHAT",   OPT_WORDS | OPT_THIS_RUN, AT(trace),      trace_words, 0, 0,
      "print as it happens: exc, sys, block, xlat, guest or all, comma separated" },
    { "trace-file", "FILE",   OPT_STR | OPT_THIS_RUN,   AT(trace_file), NULL, 0, 0,
      "where --trace goes (default: stderr)" },
    { "sandbox",    "on|off", OPT_SWITCH | OPT_THIS_RUN, AT(sandbox),   NULL, 0, 0,
      "each thread may make only the system calls it needs (default: on)" },
    { "gdb",        "PORT",   OPT_PORT | OPT_THIS_RUN,  AT(gdb_port),   NULL, 1, 65535,
      "wait for gdb on this local TCP port (default: 1234) before the first instruction" },
    { "debug",      "WHAT",   OPT_WORDS | OPT_THIS_RUN, AT(debug),      debug_words, 0, 0,
      "halve an engine bug: one-insn, slow-path, no-chain; slower, same results" },
};
/* clang-format on */

void say(const char *fmt, ...)
{
    char line[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    fprintf(stderr, "vitro: %s\n", line);
}

static int usage(const struct config *c, const char *fmt, const char *a, const char *b)
{
    char line[512];

    snprintf(line, sizeof(line), fmt, a, b);
    if (c->at_file)
        say("%s:%u: %s; see vitro run --help", c->at_file, c->at_line, line);
    else
        say("%s; see vitro run --help", line);
    return STATUS_USAGE;
}

static void help_main(void)
{
    printf("usage: vitro run [NAME] [OPTION]...\n"
           "       vitro COMMAND [NAME] [OPTION]...\n"
           "       vitro --help | --version\n"
           "\n"
           "Vitro runs unmodified x86-64 guests in an ordinary process, without\n"
           "virtualization hardware and without root.\n"
           "\n"
           "  vitro run            boot the default guest to a shell in this terminal\n"
           "  vitro run NAME       boot the VM described in NAME's vm.conf\n"
           "  vitro run --help     the options\n");
    client_help();
    printf("  vitro bench pv       what guests gain from knowing: a table\n");
    printf("  vitro image debian NAME\n"
           "                       make a VM with Debian on a disk of its own\n");
    printf("\nEach command has --help. `poweroff` in the guest ends it; Ctrl-A X leaves at any time.\n");
}

static bool is(const struct option *o, enum opt_type type)
{
    return (o->type & ~(unsigned)OPT_THIS_RUN) == type;
}

static void help_run(void)
{
    printf("usage: vitro run [NAME] [OPTION]...\n\n");
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        const struct option *o = &options[i];
        char left[40];
        snprintf(left, sizeof(left), is(o, OPT_PORT) ? "--%s [%s]" : is(o, OPT_SCREEN) ? "--%s[=%s]" :
                 o->arg ? "--%s %s" : "--%s", o->name, o->arg);
        printf("  %-18s %s\n", left, o->help);
    }
    printf("\nKeys, when input is a terminal:\n"
           "  Ctrl-A X           leave\n"
           "  Ctrl-A H           help\n"
           "  Ctrl-A Ctrl-A      send a Ctrl-A\n"
           "\nExit status:\n"
           "  0  the guest powered off, or the user left\n"
           "  1  it could not start or go on; the message says why\n"
           "  2  the command line was wrong\n"
           "  3  the guest triple-faulted\n"
           "  N  the guest wrote V to the debug-exit port 0x501: N = 2*V + 1\n");
}

static int parse_number(const char *s, u64 *value, const char **end)
{
    if (*s < '0' || *s > '9')
        return -EINVAL;
    errno = 0;
    *value = strtoull(s, (char **)end, 0);
    return errno ? -ERANGE : 0;
}

int size_parse(const char *s, u64 *bytes)
{
    static const char suffix[] = "KMGT";
    const char *end;
    u64 n;
    unsigned shift = 20;
    int r = parse_number(s, &n, &end);

    if (r)
        return r;
    if (*end) {
        char up = *end >= 'a' ? (char)(*end - 32) : *end;
        const char *p = strchr(suffix, up);
        if (!p)
            return -EINVAL;
        shift = 10 * (unsigned)(p - suffix + 1);
        end++;
        if (*end == 'i')
            end++;
        if (*end == 'B')
            end++;
        if (*end)
            return -EINVAL;
    }
    if (n > (~0ull >> shift))
        return -ERANGE;
    *bytes = n << shift;
    return 0;
}

static int parse_words(const struct config *c, const struct option *o, const char *s, unsigned *bits)
{
    while (*s) {
        size_t len = strcspn(s, ",");
        const struct word *w = o->words;
        while (w->name &&
               (strlen(w->name) != len || strncmp(w->name, s, len)))
            w++;
        if (!w->name) {
            char list[128] = "";
            for (w = o->words; w->name; w++) {
                strncat(list, w->name, sizeof(list) - strlen(list) - 3);
                strcat(list, w[1].name ? ", " : "");
            }
            char what[300];
            snprintf(what, sizeof(what), "--%s: no such word '%.*s'; there are: ", o->name,
                     (int)MIN(len, 100u), s);
            return usage(c, "%s%s", what, list);
        }
        *bits |= w->bits;
        s += len + (s[len] == ',');
    }
    return -1;
}

static int parse_drive(struct config *c, const struct option *o, const char *s)
{
    if (c->nr_drives == DRIVES_MAX)
        return usage(c, "--%s: %s is one drive too many; 16 are possible", o->name, s);
    return drive_parse(&c->drive[c->nr_drives++], (enum drive_kind)o->min, o->name, s);
}

static int parse_pv(const struct config *c, const struct option *o, const char *s, u32 *features)
{
    unsigned len;
    int at = paravirt_parse(s, features, &len);
    char list[256] = "";

    if (at < 0)
        return -1;
    for (const struct paravirt_word *w = paravirt_words; w->name; w++) {
        strncat(list, w->name, sizeof(list) - strlen(list) - 3);
        strcat(list, w[1].name ? ", " : "");
    }
    char what[200];
    snprintf(what, sizeof(what), "--%s: no such word '%.*s'; there are, each with or without '-': ", o->name,
             (int)MIN(len, 60u), s + at);
    return usage(c, "%s%s", what, list);
}

static int parse_screen(const struct config *c, const struct option *o, const char *s, enum screen_when *when)
{
    static const struct { const char *name; enum screen_when when; } words[] = {
        { "on", SCREEN_ON }, { "yes", SCREEN_ON }, { "true", SCREEN_ON }, { "off", SCREEN_OFF }, { "no", SCREEN_OFF },
        { "false", SCREEN_OFF }, { "auto", SCREEN_AUTO },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        if (!s || !strcmp(s, words[i].name)) {
            *when = words[i].when;
            return -1;
        }
    return usage(c, "--%s is on, off or auto, not '%s'", o->name, s);
}

static int parse_value(struct config *c, const struct option *o, const char *s)
{
    void *to = (char *)c + o->at;
    const char *end;
    u64 n;
    int r;

    switch (o->type & ~(unsigned)OPT_THIS_RUN) {
    case OPT_STR:
        *(const char **)to = s;
        return -1;
    case OPT_WORDS:
        return parse_words(c, o, s, to);
    case OPT_DRIVE:
        return parse_drive(c, o, s);
    case OPT_SHARE:
        if (c->nr_shares == SHARES_MAX)
            return usage(c, "--%s: too many directories%s", o->name, "");
        return share_parse(&c->share[c->nr_shares++], o->name, s);
    case OPT_NIC:
        if (c->nr_nics == NICS_MAX)
            return usage(c, "--%s: too many network cards%s", o->name, "");
        return nic_parse(&c->nic[c->nr_nics++], o->name, s);
    case OPT_MODULE:
        if (c->nr_modules == MODULES_MAX)
            return usage(c, "--%s: %s is one too many; 16 are possible", o->name, s);
        c->module[c->nr_modules++] = s;
        return -1;
    case OPT_ROM:
        if (c->nr_option_roms == OPTION_ROMS_MAX)
            return usage(c, "--%s: %s is one too many; 8 are possible", o->name, s);
        c->option_rom[c->nr_option_roms++] = s;
        return -1;
    case OPT_BOOT:
        return boot_choice_parse(to, s);
    case OPT_PV:
        return parse_pv(c, o, s, to);
    case OPT_SIZE:
        r = size_parse(s, &n);
        if (r == -EINVAL)
            return usage(c, "--%s: '%s' is not a size; write for example 512M", o->name, s);
        if (r || n < o->min || n > o->max) {
            char what[128];
            snprintf(what, sizeof(what), "--%s: '%.80s'", o->name, s);
            return usage(c, "%s is out of range (1M to %s)", what, o->max >> 40 ? "1T" : "1G");
        }
        *(u64 *)to = n & ~(MIB - 1);
        return -1;
    case OPT_COUNT:
    case OPT_PORT:
        if (parse_number(s, &n, &end) || *end)
            return usage(c, "--%s: '%s' is not a number", o->name, s);
        if (n < o->min || n > o->max) {
            char range[64];
            snprintf(range, sizeof(range), "is out of range (%llu to %llu)", (unsigned long long)o->min,
                     (unsigned long long)o->max);
            char what[128];
            snprintf(what, sizeof(what), "--%s: %.80s", o->name, s);
            return usage(c, "%s %s", what, range);
        }
        *(unsigned *)to = (unsigned)n;
        return -1;
    case OPT_NAME:
        if (!rundir_name_ok(s))
            return usage(c, "--%s: '%s' is no name for a VM: letters, digits, '-', '_' and '.', at most 48",
                         o->name, s);
        *(const char **)to = s;
        return -1;
    case OPT_SWITCH:
        if (strcmp(s, "on") && strcmp(s, "off"))
            return usage(c, "--%s is on or off, not '%s'", o->name, s);
        *(bool *)to = !strcmp(s, "on");
        return -1;
    case OPT_TRANSPORT:
        return option_transport(s, to) ? -1 : usage(c, "--%s is pci or mmio, not '%s'", o->name, s);
    case OPT_SCREEN:
        return parse_screen(c, o, s, to);
    case OPT_FLAG:
        break;
    }
    *(bool *)to = true;
    return -1;
}

static const struct option *find_option(const char *s, size_t len)
{
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++)
        if (strlen(options[i].name) == len && !strncmp(options[i].name, s, len))
            return &options[i];
    return NULL;
}

static int option_apply(struct config *c, const struct option *o, const char *value)
{
    if (is(o, OPT_PORT) && !value)
        value = "1234";
    if (!(o->type & OPT_THIS_RUN)) {
        if (c->nr_given == CONFIG_GIVEN_MAX)
            return usage(c, "--%s: too many options%s", o->name, "");
        c->given[c->nr_given].name = o->name;
        c->given[c->nr_given++].value = value;
    }
    return parse_value(c, o, value);
}

bool option_is_path(const char *name, const char *value)
{
    const struct option *o = find_option(name, strlen(name));

    if (o && o->at == AT(firmware) && !strchr(value, '/'))
        return false; /* looked for where firmware is */
    return o && o->arg && !strncmp(o->arg, "FILE", 4);
}

int option_set(struct config *c, const char *name, const char *value)
{
    const struct option *o = find_option(name, strlen(name));

    if (!o || o->at == AT(file))
        return usage(c, o ? "'%s' belongs on the command line%s" : "no option '%s'%s", name, "");
    if (is(o, OPT_FLAG) && value) {
        bool yes = !strcmp(value, "yes") || !strcmp(value, "true") || !strcmp(value, "on");
        if (!yes && strcmp(value, "no") && strcmp(value, "false") && strcmp(value, "off"))
            return usage(c, "%s is yes or no, not '%s'", name, value);
        if (yes)
            return option_apply(c, o, NULL);
        *(bool *)((char *)c + o->at) = false;
        return -1;
    }
    if (!is(o, OPT_FLAG) && !is(o, OPT_PORT) && !is(o, OPT_SCREEN) && !value)
        return usage(c, "%s wants a value: %s", name, o->arg);
    return option_apply(c, o, value);
}

/* One option of the command line, argv[*i]; moves *i past its value. */
static int parse_arg(struct config *c, int argc, char **argv, int *i)
{
    const char *arg = argv[*i];
    size_t len = strcspn(arg + 2, "=");
    const struct option *o = find_option(arg + 2, len);

    if (!o)
        return usage(c, "no option '%s'%s", arg, "");
    const char *value = arg[2 + len] == '=' ? arg + 2 + len + 1 : NULL;
    if (is(o, OPT_FLAG) && value)
        return usage(c, "--%s takes no value%s", o->name, "");
    if (is(o, OPT_PORT) && !value && (*i + 1 == argc || argv[*i + 1][0] == '-'))
        value = "1234";
    if (!is(o, OPT_FLAG) && !is(o, OPT_SCREEN) && !value) {
        if (*i + 1 == argc)
            return usage(c, "--%s wants a value: %s", o->name, o->arg);
        value = argv[++*i];
    }
    return option_apply(c, o, value);
}

static int parse_args(struct config *c, int argc, char **argv, const char **vm)
{
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
            help_run();
            return STATUS_OK;
        }
        if (arg[0] != '-' && !*vm) {
            if (!rundir_name_ok(arg))
                return usage(c, "'%s' is neither an option nor a VM's name%s", arg, "");
            *vm = arg;
            continue;
        }
        if (strncmp(arg, "--", 2) || !arg[2])
            return usage(c, "'%s' is not an option%s", arg, "");
        int r = parse_arg(c, argc, argv, &i);
        if (r >= 0)
            return r;
    }
    return -1;
}

static void set_defaults(struct config *c)
{
    memset(c, 0, sizeof(*c));
    c->mem = 512 * MIB;
    c->cpus = 1;
    c->sandbox = true;
    c->pv = paravirt_default();
}

/* The command line is read twice: for the name of the file, and again on top of what the file says. */
static int parse_run(struct config *c, int argc, char **argv)
{
    static char path[4096];
    const char *vm = NULL;
    int r = parse_args(c, argc, argv, &vm);

    if (r >= 0)
        return r;
    const char *file = c->file;
    if (vm && file)
        return usage(c, "give a VM's name (%s) or --config, not both%s", vm, "");
    if (vm) {
        r = config_vm_path(path, sizeof(path), vm, "vm.conf");
        if (r || access(path, R_OK)) {
            say("no VM named '%s': %s: %s; `vitro image debian NAME` makes one, `vitro ps --all` lists them", vm,
                path[0] ? path : "its folder is below $HOME", strerror(r ? -r : errno));
            return STATUS_USAGE;
        }
        file = path;
    }
    if (!file)
        return -1;
    set_defaults(c);
    c->file = file;
    r = config_read(c);
    if (r)
        return r;
    if (vm)
        c->name = vm;
    vm = NULL;
    return parse_args(c, argc, argv, &vm);
}

int cli_parse(struct config *c, int argc, char **argv)
{
    set_defaults(c);
    if (argc < 2) {
        say("nothing to do; `vitro run` boots a guest, `vitro --help` says more");
        return STATUS_USAGE;
    }
    const char *what = argv[1];
    if (!strcmp(what, "--help") || !strcmp(what, "-h") ||
        !strcmp(what, "help")) {
        help_main();
        return STATUS_OK;
    }
    if (!strcmp(what, "--version") || !strcmp(what, "version")) {
        printf("vitro %s\n", VITRO_VERSION);
        return STATUS_OK;
    }
    if (!strcmp(what, "bench"))
        return bench_run(argc - 2, argv + 2);
    if (!strcmp(what, "run"))
        return parse_run(c, argc - 2, argv + 2);
    if (!strcmp(what, "image"))
        return image_run(argc - 2, argv + 2);
    return client_run(what, argc - 2, argv + 2);
}
