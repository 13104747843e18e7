/*
 * qmp_commands.c - what the control socket can be asked, a row for each command. Names and shapes are those of
 * QEMU's QMP reference where it has the command; what it does not have begins with "x-".
 */
#include "monitor/control.h"
#include "monitor/qmp_input.h"
#include "monitor/snapshot.h"
#include "monitor/vm_inner.h"
#include "machine/machine.h"
#include "paravirt/paravirt.h"
#include "paravirt/xen/xen.h"
#include "storage/disk.h"
#include "virtio/balloon.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CMD(name) static int name(struct control *ctl, struct guest *vm, json_t *args, json_t **ret, \
                                  struct qmp_error *e)

CMD(query_version)
{
    *ret = json_pack("{s:{s:i,s:i,s:i},s:s}", "qemu", "major", 0, "minor", 1, "micro", 0, "package",
                     "vitro " VITRO_VERSION);
    return 0;
}

CMD(query_commands)
{
    *ret = json_array();
    for (const struct control_command *c = control_commands; c->name; c++)
        json_array_append_new(*ret, json_pack("{s:s}", "name", c->name));
    return 0;
}

static const char *status(struct guest *vm)
{
    return !vm ? "shutdown" : vm->pause.paused ? "paused" :
           xen_wanted(vm->config) && xen_suspended(paravirt_xen(vm->pv)) ? "suspended" : "running";
}

CMD(query_status)
{
    const char *now = status(vm);

    *ret = json_pack("{s:b,s:b,s:s}", "running", !strcmp(now, "running"), "singlestep", false, "status", now);
    return 0;
}

CMD(query_name)
{
    *ret = vm->config->name ? json_pack("{s:s}", "name", vm->config->name) : json_object();
    return 0;
}

CMD(query_kvm)
{
    *ret = json_pack("{s:b,s:b}", "enabled", false, "present", false);
    return 0;
}

CMD(query_memory)
{
    *ret = json_pack("{s:I}", "base-memory", (json_int_t)vm->config->mem);
    return 0;
}

CMD(query_cpus)
{
    *ret = json_array();
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        json_array_append_new(*ret, json_pack("{s:i,s:i,s:s,s:s}", "cpu-index", (int)i, "thread-id", 0,
                                              "qom-path", "", "target", "x86_64"));
    return 0;
}

CMD(query_chardev)
{
    char where[4200];

    snprintf(where, sizeof(where), "unix:%s", control_console_path(ctl));
    *ret = json_pack("[{s:s,s:s,s:b}]", "label", "serial0", "filename", where, "frontend-open", true);
    return 0;
}

/* For `vitro ps`. */
CMD(x_info)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    *ret = json_pack("{s:i,s:I,s:i,s:I,s:s}", "pid", (int)getpid(), "memory", (json_int_t)vm->config->mem, "cpus",
                     (int)vm->nr_vcpus, "seconds", (json_int_t)(now.tv_sec - vm->started.tv_sec), "status",
                     status(vm));
    return 0;
}

static int pause_vm(struct guest *vm, struct qmp_error *e)
{
    const char *why = "";

    return vm_pause(vm, &why) ? control_fail(e, "cannot pause: %s", why) : 0;
}

CMD(stop)
{
    bool was = vm->pause.paused;

    if (pause_vm(vm, e))
        return -1;
    if (!was)
        control_event(ctl, "STOP", NULL);
    return 0;
}

CMD(cont)
{
    bool was = strcmp(status(vm), "running");

    if (xen_wanted(vm->config))
        xen_wake(paravirt_xen(vm->pv));
    if (vm_resume(vm))
        return control_fail(e, "cannot go on; see the VM's own output");
    if (was)
        control_event(ctl, "RESUME", NULL);
    return 0;
}

CMD(system_powerdown)
{
    if (vm->pause.paused)
        return control_fail(e, "the VM is paused: resume it first");
    const char *why = xen_wanted(vm->config) ? xen_ask(vm, "poweroff") : NULL;
    if (why)
        return control_fail(e, "%s", why);
    if (!xen_wanted(vm->config))
        machine_power_button(vm->machine);
    control_event(ctl, "POWERDOWN", NULL);
    return 0;
}

/* The guest is asked; it stands still when query-status says "suspended". */
CMD(x_suspend)
{
    if (!xen_wanted(vm->config))
        return control_fail(e, "only a VM started with --pv xen can be asked to suspend; stop it or pause it instead");
    if (vm->pause.paused)
        return control_fail(e, "the VM is paused: resume it first");
    const char *why = xen_suspended(paravirt_xen(vm->pv)) ? NULL : xen_ask(vm, "suspend");
    return why ? control_fail(e, "%s", why) : 0;
}

CMD(system_reset)
{
    vm_end(vm, VM_RESET, STATUS_OK, "%s", "");
    return 0;
}

CMD(quit)
{
    if (vm)
        vm_end(vm, VM_QUIT, STATUS_OK, "%s", "");
    return 0;
}

CMD(inject_nmi)
{
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        machine_nmi(vm->machine, i);
    return 0;
}

CMD(screendump)
{
    const char *why = NULL, *path = json_string_value(json_object_get(args, "filename"));

    if (!path)
        return control_fail(e, "filename: a string is wanted");
    if (screen_dump(machine_vga(vm->machine), path, &why))
        return control_fail(e, "cannot write %s: %s", path, why);
    return 0;
}

CMD(input_send_event)
{
    return qmp_input(vm->machine, json_object_get(args, "events"), e);
}

/* Counters are read while nothing runs. */
CMD(x_stats)
{
    bool was = vm->pause.paused;
    char *text = NULL;
    size_t len;
    FILE *f;

    if (pause_vm(vm, e))
        return -1;
    f = open_memstream(&text, &len);
    if (f) {
        vitro_vm_stats(vm->vm, f, vm->symbols.nr ? symbols_name : NULL, &vm->symbols);
        fclose(f);
    }
    if (!was)
        vm_resume(vm);
    if (!f)
        return control_fail(e, "out of memory");
    *ret = json_pack("{s:s}", "text", text);
    free(text);
    return *ret ? 0 : control_fail(e, "the counters are no text");
}

CMD(x_snapshot)
{
    const char *file = json_string_value(json_object_get(args, "file"));
    bool quit_after = json_is_true(json_object_get(args, "quit"));
    bool was = vm->pause.paused;
    char err[SNAPSHOT_ERR_LEN];

    if (!file || file[0] != '/')
        return control_fail(e, "x-snapshot wants 'file' to be an absolute path");
    if (snapshot_save(vm, file, quit_after, err)) {
        if (!was)
            vm_resume(vm); /* nothing, if it went on already */
        return control_fail(e, "%s", err);
    }
    if (quit_after)
        vm_end(vm, VM_QUIT, STATUS_OK, "%s", "");
    return 0;
}

/* As in QEMU, `value` is what is to be left to the guest, in bytes. A Xen PV guest has its own way to do that. */
CMD(balloon)
{
    json_t *value = json_object_get(args, "value");
    json_int_t mem = (json_int_t)vm->config->mem, left = json_integer_value(value);
    bool xen = xen_wanted(vm->config);

    if (!vm->devices.balloon && !xen)
        return control_fail(e, "this VM has no balloon: start it with --balloon");
    if (!json_is_integer(value) || left <= 0)
        return control_fail(e, "balloon wants 'value' to be a number of bytes above 0");
    if (xen)
        xen_balloon_ask(paravirt_xen(vm->pv), (u64)left);
    else
        virtio_balloon_set(vm->devices.balloon, left >= mem ? 0 : (u32)((mem - left) / (json_int_t)PAGE_SIZE));
    return 0;
}

CMD(query_balloon)
{
    if (xen_wanted(vm->config)) {
        *ret = json_pack("{s:I}", "actual", (json_int_t)xen_balloon_actual(paravirt_xen(vm->pv)));
        return 0;
    }
    if (!vm->devices.balloon)
        return control_fail(e, "this VM has no balloon: start it with --balloon");
    *ret = json_pack("{s:I}", "actual", (json_int_t)vm->config->mem -
                     (json_int_t)virtio_balloon_actual(vm->devices.balloon) * (json_int_t)PAGE_SIZE);
    return 0;
}

/* -- Devices that come and go: of a Xen PV guest ------------------------------------------------------------- */

static int needs_xen(struct guest *vm, struct qmp_error *e)
{
    return xen_wanted(vm->config) ? 0 : control_fail(e, "only a VM started with --pv xen takes devices while it runs");
}

CMD(x_attach)
{
    const char *disk = json_string_value(json_object_get(args, "disk")), *net = json_string_value(json_object_get(args, "net"));
    char name[16], err[DISK_ERR_LEN] = "";

    if (needs_xen(vm, e))
        return -1;
    if (!disk == !net)
        return control_fail(e, "x-attach wants 'disk' or 'net', as --disk and --net have it");
    if (disk && disk[0] != '/')
        return control_fail(e, "x-attach wants the disk's file as an absolute path");
    if (vm->pause.paused)
        return control_fail(e, "the VM is paused: resume it first");
    if (xen_attach_device(vm, disk, net, name, err))
        return control_fail(e, "%s", err);
    *ret = json_pack("{s:s}", "name", name);
    return 0;
}

/* The guest is asked (or not: force); the device is gone when x-query-devices does not name it any more. */
CMD(x_detach)
{
    const char *name = json_string_value(json_object_get(args, "name"));

    if (needs_xen(vm, e))
        return -1;
    if (!name || xen_detach(paravirt_xen(vm->pv), name, json_is_true(json_object_get(args, "force"))))
        return control_fail(e, "x-detach wants the 'name' of a device; x-query-devices lists them");
    return 0;
}

CMD(x_query_devices)
{
    char name[16];

    if (needs_xen(vm, e))
        return -1;
    *ret = json_array();
    for (unsigned i = 0; xen_device(paravirt_xen(vm->pv), i, name); i++)
        json_array_append_new(*ret, json_string(name));
    return 0;
}

/* clang-format off */
const struct control_command control_commands[] = {
    { "query-version",             "", query_version,    false },
    { "query-commands",            "", query_commands,   false },
    { "query-status",              "", query_status,     false },
    { "query-name",                "", query_name,       true },
    { "query-kvm",                 "", query_kvm,        false },
    { "query-memory-size-summary", "", query_memory,     true },
    { "query-cpus-fast",           "", query_cpus,       true },
    { "query-chardev",             "", query_chardev,    false },
    { "stop",                      "", stop,             true },
    { "cont",                      "", cont,             true },
    { "system_powerdown",          "", system_powerdown, true },
    { "system_reset",              "", system_reset,     true },
    { "inject-nmi",                "", inject_nmi,       true },
    { "screendump",                "filename!", screendump, true },
    { "input-send-event",          "events!", input_send_event, true },
    { "balloon",                   "value!", balloon,    true },
    { "query-balloon",             "", query_balloon,    true },
    { "quit",                      "", quit,             false },
    { "x-attach",                  "disk net", x_attach, true },
    { "x-detach",                  "name! force", x_detach, true },
    { "x-query-devices",           "", x_query_devices,  true },
    { "x-info",                    "", x_info,           true },
    { "x-snapshot",                "file! quit", x_snapshot, true },
    { "x-stats",                   "", x_stats,          true },
    { "x-suspend",                 "", x_suspend,        true },
    { NULL, NULL, NULL, false },
};
/* clang-format on */
