#include "monitor/snapshot.h"
#include "machine/machine.h"
#include "machine/state.h"
#include "monitor/vm_inner.h"
#include "paravirt/paravirt.h"
#include "paravirt/xen/xen.h"
#include "storage/disk.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* -- Options: name, 0, 1 or 0 for "has a value", value, 0 ---------------------------------------------- */

static void put_text(struct state_buf *buf, const char *s)
{
    state_put(buf, s, strlen(s) + 1);
}

static void put_option(struct state_buf *buf, const char *name, const char *value, const char *cwd)
{
    u8 has = value != NULL;

    put_text(buf, name);
    state_put(buf, &has, 1);
    if (has && option_is_path(name, value) && value[0] != '/') {
        state_put(buf, cwd, strlen(cwd));
        state_put(buf, "/", 1);
    }
    put_text(buf, has ? value : "");
}

static int save_options(struct guest *vm, struct state_set *set)
{
    const struct config *c = vm->config;
    struct state_buf buf = { 0 };
    char cwd[PATH_MAX] = "";
    unsigned at = 0;

    if (!getcwd(cwd, sizeof(cwd)))
        return -errno;
    for (unsigned i = 0; i < c->nr_given; i++)
        if (!xen_wanted(c) || (strcmp(c->given[i].name, "disk") && strcmp(c->given[i].name, "net")))
            put_option(&buf, c->given[i].name, c->given[i].value, cwd);
    for (const struct xen_plug *p; (p = xen_plug(vm, &at));) /* they may be others now */
        put_option(&buf, p->option, p->value, cwd);
    set->failed |= buf.failed;
    state_set_add(set, "options", buf.data ? buf.data : (u8 *)"", buf.len);
    state_buf_free(&buf);
    return 0;
}

/* The next text before end, or NULL. */
static const char *next_text(const char **p, const char *end)
{
    const char *s = *p, *stop = memchr(s, 0, (size_t)(end - s));

    if (!stop)
        return NULL;
    *p = stop + 1;
    return s;
}

int snapshot_options(struct config *c)
{
    size_t len;
    const char *bytes = state_set_take(&c->saved->set, "options", &len), *p = bytes, *end;

    if (p && c->nr_lines < CONFIG_FILE_LINES) { /* the options point into it */
        p = c->lines[c->nr_lines++] = malloc(len + 1);
        if (p)
            memcpy((char *)p, bytes, len);
    }
    end = p ? p + len : NULL;
    if (c->nr_given) {
        say("--%s: the snapshot says what machine it is; leave this option out", c->given[0].name);
        return STATUS_USAGE;
    }
    while (p && p < end) {
        const char *name = next_text(&p, end), *value = NULL;
        bool has = name && p < end && *p++;
        if (name && p < end)
            value = next_text(&p, end);
        if (!value) {
            p = NULL;
            break;
        }
        c->at_file = c->saved->path;
        c->at_line = 0;
        int r = option_set(c, name, has ? value : NULL);
        c->at_file = NULL;
        if (r >= 0)
            return r;
    }
    if (!p || c->mem != c->saved->ram_size) {
        say("--restore: %s does not say what machine it is of", c->saved->path);
        return STATUS_FAIL;
    }
    return 0;
}

/* -- Disks: what is on them belongs to the state, but not to the file --------------------------------------- */

struct disk_id {
    u64 size, mtime_s, mtime_ns;
};

static int disk_look(const char *path, struct disk_id *id)
{
    struct stat st;

    if (stat(path, &st))
        return -errno;
    *id = (struct disk_id){ (u64)st.st_size, (u64)st.st_mtim.tv_sec, (u64)st.st_mtim.tv_nsec };
    return 0;
}

static const struct state_field disk_fields[] = {
    STATE(struct disk_id, size), STATE(struct disk_id, mtime_s), STATE(struct disk_id, mtime_ns), STATE_END
};

/* @lost: what the guest wrote there is thrown away at the end */
static int save_disk(struct state_set *set, const char *name, const char *path, struct disk *disk, bool lost, char *err)
{
    struct disk_id id;

    if (lost) {
        snprintf(err, SNAPSHOT_ERR_LEN, "what the guest wrote to %s is thrown away at the end (snapshot): it would be missing", path);
        return -EOPNOTSUPP;
    }
    int r = disk ? disk_flush(disk) : 0;
    if (!r)
        r = disk_look(path, &id);
    if (r) {
        snprintf(err, SNAPSHOT_ERR_LEN, "cannot bring %s up to date: %s", path, strerror(-r));
        return r;
    }
    state_set_save(set, name, disk_fields, &id);
    return 0;
}

static int check_disk(struct state_set *set, const char *name, const char *path, char *err)
{
    struct disk_id was, is;

    if (state_set_load(set, name, disk_fields, &was, err, SNAPSHOT_ERR_LEN))
        return -EINVAL;
    if (disk_look(path, &is) || memcmp(&was, &is, sizeof(was))) {
        snprintf(err, SNAPSHOT_ERR_LEN, "%s has changed since the snapshot was made: the guest would damage it", path);
        return -EINVAL;
    }
    return 0;
}

/* As the options will have them; the disks themselves are the guest's. */
static int save_xen_disks(struct guest *vm, struct state_set *set, char *err)
{
    unsigned at = 0, nr = 0;
    int r = xen_flush(paravirt_xen(vm->pv));

    if (r) {
        snprintf(err, SNAPSHOT_ERR_LEN, "cannot bring the disks up to date: %s", strerror(-r));
        return r;
    }
    r = xen_save_devices(vm, set);
    if (r) {
        snprintf(err, SNAPSHOT_ERR_LEN, "it has more devices than options can name");
        return r;
    }
    for (const struct xen_plug *p; !r && (p = xen_plug(vm, &at));) {
        char name[32];
        if (strcmp(p->option, "disk"))
            continue;
        snprintf(name, sizeof(name), "disk.%u", nr++);
        r = save_disk(set, name, p->drive.path, NULL, (vm->config->snapshot || p->drive.snapshot) && !p->drive.readonly, err);
    }
    return r;
}

static int save_disks(struct guest *vm, struct state_set *set, char *err)
{
    const struct config *c = vm->config;

    if (xen_wanted(c))
        return save_xen_disks(vm, set, err);
    int r = c->nvram ? save_disk(set, "nvram", c->nvram, vm->nvram_disk, c->snapshot, err) : 0;
    for (unsigned i = 0; i < c->nr_drives && !r; i++) {
        const struct drive *d = &c->drive[i];
        char name[32];
        snprintf(name, sizeof(name), "disk.%u", i);
        r = save_disk(set, name, d->path, vm->disk[i], (c->snapshot || d->snapshot) && !d->readonly, err);
    }
    return r;
}

static int check_disks(struct guest *vm, struct state_set *set, char *err)
{
    const struct config *c = vm->config;
    int r = c->nvram ? check_disk(set, "nvram", c->nvram, err) : 0;

    for (unsigned i = 0; i < c->nr_drives && !r; i++) {
        char name[32];
        snprintf(name, sizeof(name), "disk.%u", i);
        r = check_disk(set, name, c->drive[i].path, err);
    }
    return r;
}

/* -- The VM ---------------------------------------------------------------------------------------------------- */

struct monitor_cpu {
    bool waiting;
};
static const struct state_field monitor_cpu_fields[] = { STATE(struct monitor_cpu, waiting), STATE_END };

static void add_bytes(struct state_set *set, const char *name, void *bytes, size_t len)
{
    if (bytes)
        state_set_add(set, name, bytes, len);
    else
        set->failed = true;
    free(bytes);
}

/* Everything but memory. */
static int gather(struct guest *vm, struct state_set *set, char *err)
{
    char name[32];
    size_t len = 0;
    void *bytes;
    int r = save_options(vm, set);

    if (r) {
        snprintf(err, SNAPSHOT_ERR_LEN, "the current folder is gone: %s", strerror(-r));
        return r;
    }
    r = save_disks(vm, set, err);
    if (r)
        return r;
    paravirt_save(vm->pv, set);
    bytes = vitro_vm_save_model(vm->vm, &len);
    add_bytes(set, "cpu-model", bytes, len);
    r = machine_save(vm->machine, set, err, SNAPSHOT_ERR_LEN);
    if (r)
        return r;
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        const struct monitor_cpu m = { vm->vcpu[i].waiting };
        snprintf(name, sizeof(name), "cpu.%u", i);
        bytes = vitro_vcpu_save(vm->vcpu[i].vcpu, &len);
        add_bytes(set, name, bytes, len);
        snprintf(name, sizeof(name), "cpu-thread.%u", i);
        state_set_save(set, name, monitor_cpu_fields, &m);
    }
    return 0;
}

int snapshot_save(struct guest *vm, const char *path, bool keep_paused, char *err)
{
    bool was = vm->pause.paused;
    struct state_set set = { 0 };
    char temp[PATH_MAX];
    const char *why = "";
    int fd = -1, r = vm_pause(vm, &why);

    if (r) {
        snprintf(err, SNAPSHOT_ERR_LEN, "cannot pause: %s", why);
        return r;
    }
    r = gather(vm, &set, err);
    if (!r) {
        fd = snapshot_write(path, &set, vm->ram.host, vm->ram.size, vm->ram.fd, temp, sizeof(temp), err);
        r = fd < 0 ? fd : 0;
    }
    state_set_free(&set);
    if (!was && (r || !keep_paused))
        vm_resume(vm);
    return r ? r : snapshot_commit(fd, temp, path, err);
}

static int load_cpus(struct guest *vm, struct state_set *set, char *err)
{
    for (unsigned i = 0; i < vm->nr_vcpus; i++) {
        struct monitor_cpu m;
        char name[32], why[200];
        size_t len;
        snprintf(name, sizeof(name), "cpu.%u", i);
        const void *bytes = state_set_take(set, name, &len);
        snprintf(why, sizeof(why), "is missing");
        if (!bytes || vitro_vcpu_load(vm->vcpu[i].vcpu, bytes, len, why, sizeof(why))) {
            snprintf(err, SNAPSHOT_ERR_LEN, "%s: %s", name, why);
            return -EINVAL;
        }
        snprintf(name, sizeof(name), "cpu-thread.%u", i);
        if (state_set_load(set, name, monitor_cpu_fields, &m, err, SNAPSHOT_ERR_LEN))
            return -EINVAL;
        vm->vcpu[i].waiting = m.waiting && i;
    }
    return 0;
}

static int scatter(struct guest *vm, struct state_set *set, char *err)
{
    size_t len;
    const void *model = state_set_take(set, "cpu-model", &len);
    int r;

    if (!model) {
        snprintf(err, SNAPSHOT_ERR_LEN, "it does not say which CPU it was saved on");
        return -EINVAL;
    }
    r = vitro_vm_check_model(vm->vm, model, len, err, SNAPSHOT_ERR_LEN);
    if (!r)
        r = check_disks(vm, set, err);
    if (!r)
        r = load_cpus(vm, set, err);
    if (!r)
        r = machine_load(vm->machine, set, err, SNAPSHOT_ERR_LEN);
    if (!r)
        r = paravirt_load(vm->pv, set, err, SNAPSHOT_ERR_LEN);
    for (unsigned i = 0; i < set->nr && !r; i++) {
        if (set->section[i].taken)
            continue;
        snprintf(err, SNAPSHOT_ERR_LEN, "there is no %s in this machine", set->section[i].name);
        r = -EINVAL;
    }
    return r;
}

int snapshot_apply(struct guest *vm)
{
    struct snapshot *s = vm->config->saved;
    char err[SNAPSHOT_ERR_LEN] = "";
    int r = machine_stop(vm->machine);

    if (!r) {
        vitro_vm_clock_stop(vm->vm);
        vm->pause.paused = true;
        atomic_store(&vm->pause.wanted, true);
        r = scatter(vm, &s->set, err);
    }
    if (r)
        say("--restore: %s does not fit: %s", s->path, err);
    return r;
}
