/* cli.c - the command line. One row adds an option; --help is the table. */
#include "monitor/config.h"
#include "libvitro.h"
#include "paravirt/paravirt.h"
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum opt_type {
    OPT_STR,
    OPT_SIZE,  /* u64, bytes; a bare number is MiB */
    OPT_COUNT, /* unsigned */
    OPT_PORT,  /* unsigned; its argument may be left out */
    OPT_WORDS, /* unsigned, bits by name, comma separated */
    OPT_PV,    /* u32, paravirt_parse() */
    OPT_FLAG,  /* bool */
    OPT_DRIVE, /* one more in config.drive; min: enum drive_kind */
    OPT_BOOT,  /* struct boot_choice */
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
    { "all", VITRO_TRACE_EXC | VITRO_TRACE_SYS | VITRO_TRACE_BLOCK | VITRO_TRACE_XLAT },
    { NULL, 0 },
};
static const struct word debug_words[] = {
    { "one-insn", VITRO_DEBUG_ONE_INSN },
    { "slow-path", VITRO_DEBUG_SLOW_PATH },
    { "no-chain", VITRO_DEBUG_NO_CHAIN },
    { NULL, 0 },
};

struct option {
    const char *name, *arg;
    enum opt_type type;
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
    { "kernel",     "FILE",   OPT_STR,   AT(kernel),     NULL, 0, 0,
      "bzImage or 64-bit ELF to boot (default: the guest `make run` fetched)" },
    { "initrd",     "FILE",   OPT_STR,   AT(initrd),     NULL, 0, 0,
      "initial RAM disk" },
    { "append",     "STR",    OPT_STR,   AT(append),     NULL, 0, 0,
      "kernel command line; console=ttyS0 is put before it unless it names a console" },
    { "disk",       "FILE",   OPT_DRIVE, 0, NULL, DRIVE_DISK, 0,
      "a disk's image or block device; FILE[,if=virtio|ide][,format=raw][,readonly=on]..." },
    { "cdrom",      "FILE",   OPT_DRIVE, 0, NULL, DRIVE_CDROM, 0,
      "a CD's or DVD's image" },
    { "floppy",     "FILE",   OPT_DRIVE, 0, NULL, DRIVE_FLOPPY, 0,
      "a floppy disk's image; FILE[,readonly=on]" },
    { "boot",       "WHAT",   OPT_BOOT,  AT(boot),       NULL, 0, 0,
      "order=LETTERS (a floppy, c disk, d CD, n network), menu=on: the firmware's boot menu" },
    { "mem",        "SIZE",   OPT_SIZE,  AT(mem),        NULL, MIB, 1ull << 40,
      "guest memory: a number with K, M, G or T; without one, MiB (default: 512M)" },
    { "cpus",       "N",      OPT_COUNT, AT(cpus),       NULL, 1, CPUS_MAX,
      "virtual CPUs, 1 to 16 (default: 1); each is a thread" },
    { "cpu",        "MODEL",  OPT_STR,   AT(cpu),        NULL, 0, 0,
      "host (default), x86-64-v2, x86-64-v3 or x86-64-v4" },
    { "no-reboot",  NULL,     OPT_FLAG,  AT(no_reboot),  NULL, 0, 0,
      "leave with status 0 when the guest resets, instead of starting it again" },
    { "pv",         "WHAT",   OPT_PV,    AT(pv),         NULL, 0, 0,
      "what the guest may ask the hypervisor: kvm, vitro, none, or parts, as in kvm,-eoi" },
    { "stats",      NULL,     OPT_FLAG,  AT(stats),      NULL, 0, 0,
      "print counters to stderr at the end" },
    { "symbols",    "FILE",   OPT_STR,   AT(symbols),    NULL, 0, 0,
      "System.map that names guest addresses in --stats" },
    { "trace",      "WHAT",   OPT_WORDS, AT(trace),      trace_words, 0, 0,
      "print as it happens: exc, sys, block, xlat or all, comma separated" },
    { "trace-file", "FILE",   OPT_STR,   AT(trace_file), NULL, 0, 0,
      "where --trace goes (default: stderr)" },
    { "gdb",        "PORT",   OPT_PORT,  AT(gdb_port),   NULL, 1, 65535,
      "wait for gdb on this local TCP port (default: 1234) before the first instruction" },
    { "debug",      "WHAT",   OPT_WORDS, AT(debug),      debug_words, 0, 0,
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

static int usage(const char *fmt, const char *a, const char *b)
{
    char line[512];

    snprintf(line, sizeof(line), fmt, a, b);
    say("%s; see vitro run --help", line);
    return STATUS_USAGE;
}

static void help_main(void)
{
    printf("usage: vitro run [OPTION]...\n"
           "       vitro --help | --version\n"
           "\n"
           "Vitro runs unmodified x86-64 guests in an ordinary process, without\n"
           "virtualization hardware and without root.\n"
           "\n"
           "  vitro run            boot the default guest to a shell in this terminal\n"
           "  vitro run --help     the options\n"
           "\n"
           "`poweroff` in the guest ends it; Ctrl-A X leaves at any time.\n");
}

static void help_run(void)
{
    printf("usage: vitro run [OPTION]...\n\n");
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        const struct option *o = &options[i];
        char left[40];
        snprintf(left, sizeof(left), o->type == OPT_PORT ? "--%s [%s]" :
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

static int parse_size(const char *s, u64 *bytes)
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

static int parse_words(const struct option *o, const char *s, unsigned *bits)
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
            say("--%s: no such word '%.*s'; there are: %s", o->name, (int)len,
                s, list);
            return STATUS_USAGE;
        }
        *bits |= w->bits;
        s += len + (s[len] == ',');
    }
    return -1;
}

static int parse_drive(struct config *c, const struct option *o, const char *s)
{
    if (c->nr_drives == DRIVES_MAX)
        return usage("--%s: %s is one drive too many; 16 are possible", o->name, s);
    return drive_parse(&c->drive[c->nr_drives++], (enum drive_kind)o->min, o->name, s);
}

static int parse_pv(const struct option *o, const char *s, u32 *features)
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
    say("--%s: no such word '%.*s'; there are, each with or without '-': %s", o->name, (int)len, s + at, list);
    return STATUS_USAGE;
}

static int parse_value(struct config *c, const struct option *o, const char *s, void *to)
{
    const char *end;
    u64 n;
    int r;

    switch (o->type) {
    case OPT_STR:
        *(const char **)to = s;
        return -1;
    case OPT_WORDS:
        return parse_words(o, s, to);
    case OPT_DRIVE:
        return parse_drive(c, o, s);
    case OPT_BOOT:
        return boot_choice_parse(to, s);
    case OPT_PV:
        return parse_pv(o, s, to);
    case OPT_SIZE:
        r = parse_size(s, &n);
        if (r == -EINVAL)
            return usage("--%s: '%s' is not a size; write for example 512M", o->name, s);
        if (r || n < o->min || n > o->max)
            return usage("--%s: '%s' is out of range (1M to 1T)", o->name, s);
        *(u64 *)to = n & ~(MIB - 1);
        return -1;
    case OPT_COUNT:
    case OPT_PORT:
        if (parse_number(s, &n, &end) || *end)
            return usage("--%s: '%s' is not a number", o->name, s);
        if (n < o->min || n > o->max) {
            say("--%s: %s is out of range (%llu to %llu)", o->name, s,
                (unsigned long long)o->min, (unsigned long long)o->max);
            return STATUS_USAGE;
        }
        *(unsigned *)to = (unsigned)n;
        return -1;
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

static int parse_run(struct config *c, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
            help_run();
            return STATUS_OK;
        }
        if (strncmp(arg, "--", 2) || !arg[2])
            return usage("'%s' is not an option%s", arg, "");
        size_t len = strcspn(arg + 2, "=");
        const struct option *o = find_option(arg + 2, len);
        if (!o)
            return usage("no option '%s'%s", arg, "");
        const char *value = arg[2 + len] == '=' ? arg + 2 + len + 1 : NULL;
        if (o->type == OPT_FLAG && value)
            return usage("--%s takes no value%s", o->name, "");
        if (o->type == OPT_PORT && !value &&
            (i + 1 == argc || argv[i + 1][0] == '-'))
            value = "1234";
        if (o->type != OPT_FLAG && !value) {
            if (i + 1 == argc)
                return usage("--%s wants a value: %s", o->name, o->arg);
            value = argv[++i];
        }
        int r = parse_value(c, o, value, (char *)c + o->at);
        if (r >= 0)
            return r;
    }
    return -1;
}

int cli_parse(struct config *c, int argc, char **argv)
{
    memset(c, 0, sizeof(*c));
    c->mem = 512 * MIB;
    c->cpus = 1;
    c->pv = paravirt_default();

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
    if (!strcmp(what, "run"))
        return parse_run(c, argc - 2, argv + 2);
    say("no command '%s'; there is: run. See vitro --help", what);
    return STATUS_USAGE;
}
