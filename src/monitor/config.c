/* config.c - what the command line left open: the default guest, and the kernel's command line. */
#include "monitor/config.h"
#include "boot/boot.h"
#include "monitor/firmware.h"
#include "monitor/snapshot.h"
#include "monitor/vnc.h"
#include "paravirt/paravirt.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where the default guest may be, relative to the executable's folder. */
static const char *const guest_dirs[] = {
    "guest",          /* build/vitro -> build/guest              */
    "../build/guest", /* build-asan/vitro, build-torture/vitro   */
    "../share/vitro", /* PREFIX/bin/vitro                        */
};

/* "" when there is no such file in any of them. */
static void find_default(const char *exe_dir, const char *name, char *path,
                         size_t len)
{
    for (unsigned i = 0; i < ARRAY_SIZE(guest_dirs); i++) {
        int n = snprintf(path, len, "%s/%s/%s", exe_dir, guest_dirs[i], name);
        if (n > 0 && (size_t)n < len && !access(path, F_OK))
            return;
    }
    path[0] = '\0';
}

static bool names_console(const char *s)
{
    while ((s = strstr(s, "console="))) {
        if (s[-1] == ' ')
            return true;
        s++;
    }
    return false;
}

/* What the kernel is told: a console, for Linux and its like and unless the user names one, then the user's words. */
static int make_cmdline(struct config *c, bool linux_like)
{
    /* The leading space lets names_console look one byte back. */
    char user[CONFIG_CMDLINE_MAX];
    int n = snprintf(user, sizeof(user), " %s", c->append ? c->append : "");
    if (n >= 0 && (size_t)n < sizeof(user))
        n = snprintf(c->cmdline, sizeof(c->cmdline), "%s%s",
                     !linux_like || names_console(user) ? "" : c->pv & PV_BIT(PV_XEN) ? "console=hvc0" : "console=ttyS0",
                     user[1] ? user : "");
    if (n < 0 || (size_t)n >= sizeof(c->cmdline)) {
        say("--append: longer than any kernel takes (%d bytes)",
            CONFIG_CMDLINE_MAX - 1);
        return STATUS_USAGE;
    }
    if (c->cmdline[0] == ' ')
        memmove(c->cmdline, c->cmdline + 1, strlen(c->cmdline));
    return STATUS_OK;
}

/* What cannot be read is complained about when it is loaded. */
static bool kernel_needs_bios(const struct config *c)
{
    u8 head[1024] = { 0 };
    int fd = c->kernel && !(c->pv & PV_BIT(PV_XEN)) ? open(c->kernel, O_RDONLY | O_CLOEXEC) : -1;

    if (fd < 0)
        return false;
    ssize_t n = pread(fd, head, sizeof(head), 0);
    close(fd);
    return n > 0 && bzimage_needs_bios(head, (u64)n);
}

int config_complete(struct config *c)
{
    static struct snapshot snapshot;
    char err[SNAPSHOT_ERR_LEN];

    const char *why;

    if (c->vnc && vnc_check(c->vnc, &why)) {
        say("--vnc: '%s' is not understood: %s", c->vnc, why);
        return STATUS_USAGE;
    }
    if (c->restore) {
        if (snapshot_read(&snapshot, c->restore, err)) {
            say("--restore: %s", err);
            return STATUS_FAIL;
        }
        c->saved = &snapshot;
        int r = snapshot_options(c);
        if (r)
            return r;
    }
    const char *refused = c->pv & PV_BIT(PV_XEN) ? xen_refuses(c) : NULL;
    if (refused) {
        say("%s", refused);
        return STATUS_USAGE;
    }
    bool needs_bios = kernel_needs_bios(c);
    if (c->firmware || needs_bios || (!c->kernel && !c->initrd && !c->append && (c->nr_drives || c->nr_option_roms || c->boot.given || c->screen == SCREEN_ON || c->vnc))) {
        if (c->nr_modules || (!c->kernel && (c->initrd || c->append))) {
            say("--%s does not go with --firmware%s", c->nr_modules ? "module" : c->initrd ? "initrd" : "append",
                c->nr_modules ? "; leave one out" : " alone, which starts what is on a disk; name a --kernel, too");
            return STATUS_USAGE;
        }
        if (!firmware_find(c->firmware, c->firmware_path, sizeof(c->firmware_path)))
            return STATUS_FAIL;
        c->firmware = c->firmware_path;
        return c->kernel ? make_cmdline(c, !needs_bios) : STATUS_OK;
    }
    if (c->boot.given || c->nr_option_roms || c->screen == SCREEN_ON || c->screenshot || c->nvram || c->vnc) {
        say("--%s is for firmware; it does not go with --kernel without --firmware",
            c->boot.given ? "boot" : c->nr_option_roms ? "option-rom" : c->screen == SCREEN_ON ? "screen" :
            c->screenshot ? "screenshot" : c->vnc ? "vnc" : "nvram");
        return STATUS_USAGE;
    }
    if (!c->kernel) {
        char exe[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
        if (n <= 0)
            n = 0;
        exe[n] = '\0';
        char *slash = strrchr(exe, '/');
        if (slash)
            *slash = '\0';
        find_default(exe, "vmlinuz", c->kernel_path, sizeof(c->kernel_path));
        if (!c->kernel_path[0]) {
            say("no default guest here; `make run` fetches it, or name one "
                "with --kernel FILE");
            return STATUS_FAIL;
        }
        c->kernel = c->kernel_path;
        if (!c->initrd) {
            find_default(exe, "initrd.img", c->initrd_path,
                         sizeof(c->initrd_path));
            if (c->initrd_path[0])
                c->initrd = c->initrd_path;
        }
    }

    /* A kernel that is started without firmware is Linux or its like, which knows virtio; firmware starts anything. */
    for (unsigned i = 0; i < c->nr_drives; i++)
        if (c->drive[i].kind == DRIVE_DISK && !c->drive[i].bus_given)
            c->drive[i].bus = DRIVE_VIRTIO;

    return make_cmdline(c, true);
}

void config_forget_snapshot(struct config *c)
{
    if (c->saved)
        snapshot_close(c->saved);
    c->saved = NULL;
}

/* -- Files ---------------------------------------------------------------------------------------- */

int config_vm_path(char *path, size_t len, const char *name, const char *file)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    int n;

    path[0] = '\0';
    if (data && data[0] == '/')
        n = snprintf(path, len, "%s/vitro/%s/%s", data, name, file);
    else if (home && home[0] == '/')
        n = snprintf(path, len, "%s/.local/share/vitro/%s/%s", home, name, file);
    else
        return -ENOENT;
    return n < 0 || (size_t)n >= len ? -ENAMETOOLONG : 0;
}

static char *trim(char *s)
{
    s += strspn(s, " \t\r\n");
    size_t len = strlen(s);
    while (len && strchr(" \t\r\n", s[len - 1]))
        len--;
    s[len] = '\0';
    return s;
}

static int wrong(const struct config *c, const char *what, const char *line)
{
    say("%s:%u: %s: '%.100s'", c->file, c->at_line, what, line);
    return STATUS_USAGE;
}

/* A value that lives as long as the configuration; a path as seen from the file's folder. */
static const char *keep(struct config *c, const char *name, const char *value)
{
    const char *slash = strrchr(c->file, '/');
    char *kept;

    if (c->nr_lines == CONFIG_FILE_LINES)
        return NULL;
    if (!option_is_path(name, value) || value[0] == '/' || !slash)
        kept = strdup(value);
    else if (asprintf(&kept, "%.*s/%s", (int)(slash - c->file), c->file, value) < 0)
        kept = NULL;
    if (kept)
        c->lines[c->nr_lines++] = kept;
    return kept;
}

/* One line, modified. 0 or a status. */
static int read_line(struct config *c, char *text)
{
    char *key = trim(text), *value = NULL, *equals;

    if (!*key || *key == '#' || *key == ';')
        return 0;
    if (*key == '[')
        return strcmp(key, "[vm]") ? wrong(c, "the only section is [vm], not", key) : 0;
    equals = strchr(key, '=');
    if (equals) {
        *equals = '\0';
        value = trim(equals + 1);
        key = trim(key);
    }
    if (value) {
        const char *kept = keep(c, key, value);
        if (!kept)
            return wrong(c, "too many lines at", key);
        value = (char *)kept;
    }
    c->at_file = c->file;
    int r = option_set(c, key, value);
    c->at_file = NULL;
    return r < 0 ? 0 : r;
}

int config_read(struct config *c)
{
    FILE *f = fopen(c->file, "re");
    char *text = NULL;
    size_t cap = 0;
    int r = 0;

    if (!f) {
        say("--config: cannot open %s: %s", c->file, strerror(errno));
        return STATUS_FAIL;
    }
    c->at_line = 0;
    for (ssize_t n; !r && (n = getline(&text, &cap, f)) >= 0;) {
        c->at_line++;
        r = strlen(text) == (size_t)n ? read_line(c, text) : wrong(c, "this is no text file", "");
    }
    if (!r && ferror(f)) {
        say("--config: cannot read %s: %s", c->file, strerror(errno));
        r = STATUS_FAIL;
    }
    free(text);
    fclose(f);
    return r;
}
