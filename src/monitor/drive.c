/* drive.c - parses what --disk, --cdrom, --floppy and --boot say. See drive.h. */
#include "monitor/drive.h"
#include "monitor/config.h"
#include <stdlib.h>
#include <string.h>

const char *option_piece(const char *s, char *out, size_t cap)
{
    size_t n = 0;

    for (; *s; s++) {
        if (*s == ',' && *++s != ',') {
            out[n] = '\0';
            return s;
        }
        if (n + 1 >= cap)
            return NULL;
        out[n++] = *s;
    }
    out[n] = '\0';
    return s;
}

static int wrong(const char *option, const char *piece, const char *there)
{
    say("--%s: '%s' is not understood; after the file there may be: %s", option, piece, there);
    return STATUS_USAGE;
}

bool option_transport(const char *value, enum transport *t)
{
    *t = !strcmp(value, "mmio") ? TRANSPORT_MMIO : TRANSPORT_PCI;
    return *t == TRANSPORT_MMIO || !strcmp(value, "pci");
}

int option_switch(const char *option, const char *key, const char *value, bool *on)
{
    *on = !strcmp(value, "on");
    if (*on || !strcmp(value, "off"))
        return -1;
    say("--%s: %s=%s; it is on or off", option, key, value);
    return STATUS_USAGE;
}

int drive_parse(struct drive *d, enum drive_kind kind, const char *option, const char *text)
{
    static const char keys[] = "if=virtio|ide|ahci|pmem|vitro, format=raw|qcow2, readonly=on, snapshot=on, and for virtio "
                               "serial=TEXT, queues=N, packed=on, aio=threads, transport=mmio; persistent=on for --pv xen";

    memset(d, 0, sizeof(*d));
    d->kind = kind;
    d->bus = kind == DRIVE_FLOPPY ? DRIVE_FDC : DRIVE_IDE;
    d->readonly = kind == DRIVE_CDROM;
    const char *s = option_piece(text, d->path, sizeof(d->path));
    if (!s || !d->path[0]) {
        say("--%s: %s; write --%s FILE", option, s ? "no file" : "the name is too long", option);
        return STATUS_USAGE;
    }
    while (*s) {
        char piece[64] = "";
        s = option_piece(s, piece, sizeof(piece));
        char *value = strchr(piece, '=');
        if (!s || !value)
            return wrong(option, piece, keys);
        *value++ = '\0';
        int r = -1;
        d->bus_given |= !strcmp(piece, "if");
        if (!strcmp(piece, "if") && kind == DRIVE_DISK && !strcmp(value, "ide")) {
            d->bus = DRIVE_IDE;
        } else if (!strcmp(piece, "if") && kind == DRIVE_DISK && !strcmp(value, "virtio")) {
            d->bus = DRIVE_VIRTIO;
        } else if (!strcmp(piece, "if") && kind == DRIVE_DISK && !strcmp(value, "ahci")) {
            d->bus = DRIVE_AHCI;
        } else if (!strcmp(piece, "if") && kind == DRIVE_DISK && !strcmp(value, "pmem")) {
            d->bus = DRIVE_PMEM;
        } else if (!strcmp(piece, "if") && kind == DRIVE_DISK && !strcmp(value, "vitro")) {
            d->bus = DRIVE_VITRO;
        } else if (!strcmp(piece, "serial") && strlen(value) <= 20) {
            strcpy(d->serial, value);
        } else if (!strcmp(piece, "queues") && strspn(value, "0123456789") == strlen(value) && atoi(value) > 0 &&
                   atoi(value) <= DRIVE_QUEUES_MAX) {
            d->queues = (unsigned)atoi(value);
        } else if (!strcmp(piece, "transport") && option_transport(value, &d->transport)) {
            r = -1;
        } else if (!strcmp(piece, "snapshot") && kind != DRIVE_CDROM) {
            r = option_switch(option, piece, value, &d->snapshot);
        } else if (!strcmp(piece, "packed")) {
            r = option_switch(option, piece, value, &d->packed);
        } else if (!strcmp(piece, "persistent")) {
            r = option_switch(option, piece, value, &d->persistent);
        } else if (!strcmp(piece, "aio") && !strcmp(value, "threads")) {
            d->threads = true;
        } else if (!strcmp(piece, "format") && strlen(value) < sizeof(d->format)) {
            strcpy(d->format, value);
        } else if (!strcmp(piece, "readonly") && kind != DRIVE_CDROM) {
            r = option_switch(option, piece, value, &d->readonly);
        } else {
            value[-1] = '=';
            r = wrong(option, piece, keys);
        }
        if (r >= 0)
            return r;
    }
    return -1;
}

int boot_choice_parse(struct boot_choice *boot, const char *text)
{
    *boot = (struct boot_choice){ .given = true };
    for (const char *s = text; *s;) {
        char piece[64] = "";
        int r = -1;
        s = option_piece(s, piece, sizeof(piece));
        if (s && !strncmp(piece, "order=", 6)) {
            size_t n = strlen(piece + 6);
            if (!n || n > 3 || strspn(piece + 6, "acdn") != n) {
                say("--boot: order=%s; it is one to three letters: a floppy, c disk, d CD, "
                    "n network", piece + 6);
                return STATUS_USAGE;
            }
            strcpy(boot->order, piece + 6);
        } else if (s && !strncmp(piece, "menu=", 5)) {
            r = option_switch("boot", "menu", piece + 5, &boot->menu);
        } else {
            say("--boot: '%s' is not understood; write for example order=dc,menu=on", piece);
            return STATUS_USAGE;
        }
        if (r >= 0)
            return r;
    }
    return -1;
}
