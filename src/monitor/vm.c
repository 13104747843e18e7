/*
 * vm.c - puts a VM together and takes it apart: RAM, board, engine, guest, console, in this order,
 * and backwards. The only file that knows all of them.
 */
#include "monitor/vm_inner.h"
#include "machine/layout.h"
#include "machine/machine.h"
#include "monitor/counters.h"
#include "monitor/control.h"
#include "monitor/detach.h"
#include "monitor/file.h"
#include "monitor/firmware.h"
#include "monitor/nvram.h"
#include "monitor/gdbstub.h"
#include "monitor/snapshot.h"
#include "vitro/abi.h"
#include "monitor/vnc.h"
#include "paravirt/paravirt.h"
#include "storage/disk.h"
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STOP_MS 10000 /* how long a vCPU may take to notice that the run is over, on a busy host */

/* -- The end of the run ------------------------------------------------------------------------ */

void vm_end(struct guest *vm, enum vm_outcome outcome, int status,
            const char *fmt, ...)
{
    va_list ap;

    pthread_mutex_lock(&vm->lock);
    bool first = vm->outcome == VM_RUNNING;
    if (first) {
        va_start(ap, fmt);
        vsnprintf(vm->message, sizeof(vm->message), fmt, ap);
        va_end(ap);
        vm->outcome = outcome;
        vm->status = status;
        atomic_store(&vm->over, true);
        pthread_cond_broadcast(&vm->ended);
    }
    pthread_mutex_unlock(&vm->lock);
    if (!first)
        return;
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        vm_vcpu_kick(&vm->vcpu[i], VITRO_KICK_STOP);
    vm_pause_wake(vm);
    if (vm->gdb)
        gdbstub_wake(vm->gdb);
}

bool vm_has_ended(struct guest *vm)
{
    return atomic_load(&vm->over);
}

/* -- What the board asks: often under a device's lock, so nothing here calls back ---------------- */

static void on_kick(void *opaque, unsigned vcpu)
{
    struct guest *vm = opaque;
    u32 pending;

    if (vcpu >= vm->nr_vcpus)
        return; /* the board is still being made */
    pending = machine_pending(vm->machine, vcpu);
    /* An NMI is taken from the board on the vCPU's own thread, between two runs. */
    vm_vcpu_kick(&vm->vcpu[vcpu],
                 pending & ~MACHINE_INTR ? VITRO_KICK_INTR | VITRO_KICK_STOP
                                         : VITRO_KICK_INTR);
    paravirt_vcpu_interrupted(vm->pv, vcpu);
}

static void on_wake(void *opaque, unsigned vcpu)
{
    vm_vcpu_kick(&((struct guest *)opaque)->vcpu[vcpu], 0);
}

static void on_request(void *opaque, enum machine_request what, int status)
{
    struct guest *vm = opaque;

    switch (what) {
    case MACHINE_POWEROFF:
        vm_end(vm, VM_POWER_OFF, STATUS_OK, "%s", "");
        break;
    case MACHINE_RESET:
        if (vm->panicked)
            vm_end(vm, vm->config->no_reboot ? VM_FAIL : VM_RESET, STATUS_FAIL,
                   "the guest's kernel panicked");
        else
            vm_end(vm, VM_RESET, STATUS_OK, "%s", "");
        break;
    case MACHINE_DEBUG_EXIT:
        vm_end(vm, VM_DEBUG_EXIT, status & 0xff, "%s", "");
        break;
    case MACHINE_PANICKED:
        vm->panicked = true;
        break;
    }
}

static u64 on_tsc(void *opaque, unsigned vcpu)
{
    struct guest *vm = opaque;

    return vcpu < vm->nr_vcpus ? vitro_vcpu_tsc(vm->vcpu[vcpu].vcpu) : 0;
}

static void on_output(void *opaque, const u8 *bytes, size_t len)
{
    struct guest *vm = opaque;

    control_console(vm->control, bytes, len);
    if (vm->config->screen == SCREEN_ON)
        return;
    screen_make_way(&vm->screen);
    console_write(&vm->console, bytes, len);
}

static void on_a20(void *opaque, bool on)
{
    struct guest *vm = opaque;

    if (vm->vm) /* NULL: the board is being made, and the gate is open */
        vitro_vm_set_a20(vm->vm, on);
}

static bool on_listening(void *opaque)
{
    struct guest *vm = opaque;

    return vm->screen_first || machine_console_listening(vm->machine) || paravirt_console_room(vm->pv) >= 0;
}

/* A guest of our own ABI may take its input from a ring. */
static long on_input_room(void *opaque)
{
    struct guest *vm = opaque;

    return vm->pv ? paravirt_console_room(vm->pv) : -1;
}

static void on_input(void *opaque, const u8 *bytes, size_t len)
{
    struct guest *vm = opaque;

    paravirt_console_feed(vm->pv, bytes, len);
}

/* Of struct ram: a device has written guest memory. */
static void on_written(void *opaque, gpa_t gpa, u64 len)
{
    vitro_vm_memory_written(opaque, gpa, len);
}

/* A device's memory has moved. Where there is no room for it (over RAM, too many places) the device does each access. */
static void on_show(void *opaque, void *host, u64 size, gpa_t gpa)
{
    struct guest *vm = opaque;

    if (vm->vm)
        vitro_vm_show_memory(vm->vm, host, size, gpa);
}

static void on_firmware_log(void *opaque, const u8 *bytes, size_t len)
{
    struct guest *vm = opaque;

    fwrite(bytes, 1, len, vm->firmware_log);
}

static void on_leave(void *opaque)
{
    vm_end(opaque, VM_LEAVE, STATUS_OK, "%s", "");
}

static void on_broken(void *opaque, const char *what)
{
    vm_end(opaque, VM_FAIL, STATUS_FAIL, "cannot write the output: %s", what);
}

/* -- Putting it together ------------------------------------------------------------------------- */

static int make_ram(struct guest *vm)
{
    struct machine_range range[MACHINE_MAX_RANGES];
    u64 size = vm->config->mem;
    const struct snapshot *snap = vm->config->saved;
    int r = snap ? backing_map_file(&vm->ram, size, snap->fd, snap->ram_offset) : backing_init(&vm->ram, size);

    if (r) {
        say("no %llu MiB for the guest: %s; ask for less with --mem",
            (unsigned long long)size >> 20, strerror(-r));
        return r;
    }
    if (xen_wanted(vm->config)) {
        r = xen_lay_out_ram(vm);
        if (r)
            say("cannot lay out the guest's memory: %s", strerror(-r));
        return r;
    }
    unsigned nr = machine_ram_ranges(size, range);
    for (unsigned i = 0; i < nr && !r; i++) {
        bug_on(range[i].offset + range[i].size > size);
        r = ram_add_slot(&vm->view, range[i].gpa, range[i].size,
                         (u8 *)vm->ram.host + range[i].offset, false);
    }
    if (r)
        say("cannot lay out the guest's memory: %s", strerror(-r));
    return r;
}

static int open_drives(struct guest *vm)
{
    char err[DISK_ERR_LEN];

    for (unsigned i = 0; i < vm->config->nr_drives; i++) {
        const struct drive *d = &vm->config->drive[i];
        const struct disk_options options = {
            .format = d->format[0] ? d->format : d->bus == DRIVE_PMEM ? "raw" : NULL, .readonly = d->readonly,
            .snapshot = (d->snapshot || vm->config->snapshot) && !d->readonly,
        };
        int r = disk_open(d->path, &options, &vm->disk[i], err);
        if (r) {
            say("%s", err);
            return r;
        }
    }
    return 0;
}

/* Disks from the primary master on, CD drives from the secondary master, as a PC is usually wired. */
static int plug_drives(struct guest *vm, struct machine_config *mc)
{
    static const u8 order[2][4] = { { 0, 1, 3, 2 }, { 2, 3, 1, 0 } };

    for (unsigned i = 0; i < vm->config->nr_drives; i++) {
        const struct drive *d = &vm->config->drive[i];
        unsigned n = 0, at = 0;
        if (d->bus == DRIVE_FDC) {
            if (mc->floppy[0] && mc->floppy[1]) {
                say("%s: there are two floppy drives, and they are taken", d->path);
                return -ENOSPC;
            }
            mc->floppy[mc->floppy[0] ? 1 : 0] = vm->disk[i];
        }
        if (d->bus != DRIVE_IDE)
            continue;
        while (n < 4 && mc->ide[at = order[d->kind == DRIVE_CDROM][n]].present)
            n++;
        if (n == 4) {
            say("%s: IDE has room for four drives, and they are taken", d->path);
            return -ENOSPC;
        }
        mc->ide[at].present = true;
        mc->ide[at].cdrom = d->kind == DRIVE_CDROM;
        mc->ide[at].disk = vm->disk[i];
    }
    return 0;
}

static int make_machine(struct guest *vm)
{
    struct machine_config mc = {
        .nr_cpus = vm->config->cpus,
        .ram_size = vm->config->mem,
        .ram = &vm->view,
        .tsc_khz = vitro_tsc_khz(),
        .opaque = vm,
        .kick = on_kick,
        .wake = on_wake,
        .request = on_request,
        .tsc_now = on_tsc,
        .console_tx = on_output,
        .console_room = on_input_room,
        .console_rx = on_input,
        .debugcon_tx = on_output,
        .a20 = on_a20,
        .testdev = vm->config->testdev,
        .firmware = vm->config->firmware,
        .vga = vm->config->firmware,
        .keyboard = vm->config->firmware,
        .shadow = firmware_shadow,
        .show = on_show,
        .firmware_log = vm->firmware_log ? on_firmware_log : NULL,
        .boot_order = vm->config->boot.order,
        .boot_menu = vm->config->boot.menu,
    };
    if (plug_drives(vm, &mc))
        return -ENOSPC;
    nvram_plug(vm, &mc);
    int r = machine_create(&mc, &vm->machine);

    if (r)
        say("cannot make the board: %s", strerror(-r));
    return r;
}

/* A hypercall wants a vCPU to look at something. */
static void on_pv_kick(void *opaque, unsigned vcpu, unsigned why)
{
    struct guest *vm = opaque;

    if (vcpu < vm->nr_vcpus)
        vm_vcpu_kick(&vm->vcpu[vcpu], why);
}

static bool on_pv_start(void *opaque, unsigned vcpu, const struct vitro_sregs *sregs, const struct vitro_regs *regs)
{
    struct guest *vm = opaque;

    return vm_vcpu_give(&vm->vcpu[vcpu], sregs, regs);
}

static void on_pv_stop(void *opaque, unsigned vcpu)
{
    struct guest *vm = opaque;

    vm_vcpu_wait(&vm->vcpu[vcpu]);
}

static void on_pv_log(void *opaque, unsigned level, const char *text, size_t len)
{
    static const char *const name[] = { "error: ", "warning: ", "", "debug: " };

    (void)opaque;
    say("guest: %s%.*s", name[level], (int)len, text);
}

static void on_pv_trace(void *opaque, unsigned vcpu, u64 mono_ns, u64 id, u64 a, u64 b)
{
    struct guest *vm = opaque;

    fprintf(vm->trace, "guest %llu.%09llu cpu %u: %llu %#llx %#llx\n", (unsigned long long)(mono_ns / 1000000000),
            (unsigned long long)(mono_ns % 1000000000), vcpu, (unsigned long long)id, (unsigned long long)a,
            (unsigned long long)b);
}

static void on_pv_shutdown(void *opaque, unsigned reason, unsigned code)
{
    struct guest *vm = opaque;

    switch ((enum vt_shutdown)reason) {
    case VT_SHUTDOWN_POWEROFF:
        on_request(vm, MACHINE_POWEROFF, 0);
        break;
    case VT_SHUTDOWN_CRASH:
        vm->panicked = true;
        on_request(vm, MACHINE_RESET, 0);
        break;
    case VT_SHUTDOWN_REBOOT:
        on_request(vm, MACHINE_RESET, 0);
        break;
    case VT_SHUTDOWN_EXIT:
        on_request(vm, MACHINE_DEBUG_EXIT, (int)(code << 1 | 1));
        break;
    }
}

static int make_paravirt(struct guest *vm)
{
    struct disk *disk[DRIVES_MAX];
    unsigned nr_disks = 0;
    for (unsigned i = 0; i < vm->config->nr_drives; i++)
        if (vm->config->drive[i].bus == DRIVE_VITRO)
            disk[nr_disks++] = vm->disk[i];
    struct paravirt_net nic[NICS_MAX];
    for (unsigned i = 0; i < vm->config->nr_nics; i++) {
        if (!vm->config->nic[i].vitro)
            continue;
        if (devices_net(&vm->config->nic[i], i, &nic[vm->nr_nets].be, nic[vm->nr_nets].mac))
            return -EINVAL;
        vm->net[vm->nr_nets] = nic[vm->nr_nets].be;
        vm->nr_nets++;
    }
    if ((nr_disks || vm->nr_nets) && !(vm->config->pv & PV_BIT(PV_VITRO))) {
        say("if=vitro needs Vitro's own guest ABI; switch it on with --pv");
        return -EINVAL;
    }
    const struct paravirt_config pc = {
        .features = vm->config->pv,
        .nr_cpus = vm->config->cpus,
        .tsc_khz = vitro_tsc_khz(),
        .ram = &vm->view,
        .machine = vm->machine,
        .opaque = vm,
        .kick = on_pv_kick,
        .console = on_output,
        .trace = vm->config->trace & TRACE_GUEST ? on_pv_trace : NULL,
        .log = on_pv_log,
        .shutdown = on_pv_shutdown,
        .start = on_pv_start,
        .stop = on_pv_stop,
        .host = vm->ram.host,
        .size = vm->config->mem,
        .disk = disk,
        .nr_disks = nr_disks,
        .nic = nic,
        .nr_nics = vm->nr_nets,
    };
    int r = paravirt_create(&pc, &vm->pv);

    if (r)
        say("cannot make the paravirtual interface: %s", strerror(-r));
    return r;
}

static int make_engine(struct guest *vm)
{
    const struct config *c = vm->config;
    struct vitro_ops ops = {
        .opaque = vm->machine,
        .port_in = machine_port_in,
        .port_out = machine_port_out,
        .mmio_read = machine_mmio_read,
        .mmio_write = machine_mmio_write,
        .msr_read = machine_msr_read,
        .msr_write = machine_msr_write,
        .intr_ack = machine_intr_ack,
        .cr8_read = machine_cr8_read,
        .cr8_write = machine_cr8_write,
        .wake = machine_wake,
    };
    char model[64];

    /* Linux leaves TLB flushes, IPIs and yielding to KVM's interface only where there is no MWAIT; KVM offers none either. */
    bool hide = !(c->cpu && strchr(c->cpu, ',')) && (c->pv & (PV_BIT(PV_TLB) | PV_BIT(PV_YIELD)));
    snprintf(model, sizeof(model), "%s%s", c->cpu ? c->cpu : "host", hide ? ",-mwait" : "");
    const struct vitro_config vc = {
        .cpu_model = model,
        .nr_cpus = c->cpus,
        .cache_bytes = c->code_cache,
        .debug = c->debug | (c->trace & ~TRACE_GUEST),
        .trace_file = vm->trace,
        .pv = paravirt_ops(vm->pv),
    };
    char err[256] = "";

    if (xen_wanted(c))
        xen_ops(vm, &ops);
    vm->vm = vitro_vm_create(&vc, &ops, err, sizeof(err));
    if (!vm->vm) {
        say("%s%s%s%s", c->cpu ? "--cpu " : "", c->cpu ? c->cpu : "",
            c->cpu ? ": " : "", err);
        return -EINVAL;
    }
    vm->view.written = on_written;
    vm->view.written_opaque = vm->vm;
    for (unsigned i = 0; i < vm->view.nr_slots; i++) {
        const struct ram_slot *s = &vm->view.slot[i];
        int r = vm->rom ? firmware_add_memory(vm, s)
                        : vitro_vm_add_memory(vm->vm, s->gpa, s->size, s->host, 0);
        if (r) {
            say("cannot give the engine the guest's memory: %s", strerror(-r));
            return r;
        }
    }
    if (xen_wanted(c) && xen_add_memory(vm)) {
        say("cannot give the engine the hypervisor's memory");
        return -ENOMEM;
    }
    for (unsigned i = 0; i < c->cpus; i++) {
        int r = vm_vcpu_init(vm, i);
        if (r)
            return r;
        vm->nr_vcpus = i + 1;
        paravirt_attach(vm->pv, i, vm->vcpu[i].vcpu);
    }
    return 0;
}

/* Each module is a file's name, and whatever follows a space. */
static int map_modules(const struct config *c, struct file *file, struct boot_module *module)
{
    for (unsigned i = 0; i < c->nr_modules; i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%.*s", (int)strcspn(c->module[i], " "), c->module[i]);
        int r = file_map(&file[i], "module", path);
        if (r)
            return r;
        module[i] = (struct boot_module){ c->module[i], file[i].data, file[i].size };
    }
    return 0;
}

static int load_guest(struct guest *vm)
{
    const struct config *c = vm->config;
    struct machine_range range[MACHINE_MAX_RANGES];
    struct boot_e820 e820[MACHINE_MAX_RANGES];
    struct boot_entry entry;
    struct file kernel, initrd = { 0 }, module_file[MODULES_MAX] = { 0 };
    struct boot_module module[MODULES_MAX];
    char err[BOOT_ERR_LEN];

    int r = file_map(&kernel, "kernel", c->kernel);
    if (!r && c->initrd)
        r = file_map(&initrd, "initrd", c->initrd);
    if (!r)
        r = map_modules(c, module_file, module);
    if (r)
        goto out;
    unsigned nr = machine_e820(c->mem, range);
    for (unsigned i = 0; i < nr; i++)
        e820[i] = (struct boot_e820){ range[i].gpa, range[i].size,
                                      range[i].type };
    const struct boot_input in = {
        .kernel_name = c->kernel,
        .kernel = kernel.data,
        .kernel_size = kernel.size,
        .initrd_name = c->initrd,
        .initrd = initrd.data,
        .initrd_size = initrd.size,
        .cmdline = c->cmdline,
        .e820 = e820,
        .nr_e820 = nr,
        .rsdp = machine_build_acpi(vm->machine),
        .module = module,
        .nr_modules = c->nr_modules,
    };
    r = boot_load(&vm->view, &in, &entry, err);
    if (r)
        say("%s", err);
    else
        vm_vcpu_enter(&vm->vcpu[0], &entry);
out:
    file_unmap(&kernel);
    file_unmap(&initrd);
    for (unsigned i = 0; i < c->nr_modules; i++)
        file_unmap(&module_file[i]);
    return r;
}

static int open_trace(struct guest *vm)
{
    const struct config *c = vm->config;

    vm->trace = stderr;
    if (c->trace_file) {
        vm->trace = fopen(c->trace_file, "we");
        if (!vm->trace) {
            say("--trace-file: cannot open %s: %s", c->trace_file,
                strerror(errno));
            return -errno;
        }
    }
    if (c->firmware_log) {
        vm->firmware_log = fopen(c->firmware_log, "we");
        if (!vm->firmware_log) {
            say("--firmware-log: cannot open %s: %s", c->firmware_log, strerror(errno));
            return -errno;
        }
        setvbuf(vm->firmware_log, NULL, _IOLBF, 0);
    }
    return c->symbols ? symbols_load(&vm->symbols, c->symbols) : 0;
}

static int start_vnc(struct guest *vm, struct vnc **vnc)
{
    int r = *vnc ? vnc_attach(*vnc, vm->machine) : vnc_start(vm->config->vnc, vm->machine, vnc);

    vm->vnc = *vnc;

    if (r)
        say("--vnc %s: %s", vm->config->vnc, r == -ENOSYS ? "this Vitro was built without libneatvnc" :
                                             r == -EADDRINUSE ? "cannot listen there; another process does, or it is no "
                                                                "address of this host's" : strerror(-r));
    return r;
}

static int start(struct guest *vm)
{
    const struct config *c = vm->config;
    const struct console_ops ops = { .opaque = vm,
                                     .listening = on_listening,
                                     .leave = on_leave,
                                     .broken = on_broken };
    int r = console_start(&vm->console, &ops, vm->config->detach);

    /* A guest that was saved while it used the serial line goes on there. */
    if (!r && vm->screen_first && !(c->screen == SCREEN_AUTO && c->restore && machine_console_listening(vm->machine)))
        r = screen_start(&vm->screen, vm->machine, &vm->console, c->screen == SCREEN_AUTO);
    else if (!r)
        r = machine_console_attach(vm->machine, vm->console.guest_fd);
    clock_gettime(CLOCK_MONOTONIC, &vm->started);
    for (unsigned i = 0; i < vm->nr_vcpus && !r; i++)
        r = vm_vcpu_start(&vm->vcpu[i]);
    if (!r && vm->pause.paused) /* made from a snapshot */
        r = vm_resume(vm);
    control_attach(vm->control, vm);
    if (r)
        vm_end(vm, VM_FAIL, STATUS_FAIL, "cannot start: %s", strerror(-r));
    return r;
}

/* -- Taking it apart --------------------------------------------------------------------------- */

/* Everything the guest said is out, the terminal is as it was, all vCPU threads have ended. */
static void stop(struct guest *vm)
{
    bool stopped = true;
    bool again = vm->outcome == VM_RESET && !vm->config->no_reboot;

    control_detach(vm->control, vm->outcome, again);
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        stopped &= vm_vcpu_join(&vm->vcpu[i], STOP_MS);
    if (stopped)
        machine_console_flush(vm->machine);
    bool tty = vm->console.is_tty;
    screen_stop(&vm->screen);
    console_stop(&vm->console);
    const char *why;
    if (vm->config->screenshot && !again &&
        screen_dump(machine_vga(vm->machine), vm->config->screenshot, &why))
        say("--screenshot: cannot write %s: %s", vm->config->screenshot, why);
    if (tty && vm->outcome == VM_LEAVE)
        fputs("\n", stderr); /* the guest left the cursor anywhere */
    if (vm->message[0])
        say("%s", vm->message);
    if (!stopped) {
        /* Its thread may still use everything: nothing can be freed. */
        say("a CPU did not stop within %d s; please report it", STOP_MS / 1000);
        fflush(NULL);
        _exit(vm->status ? vm->status : STATUS_FAIL);
    }
    if (vm->config->stats)
        vitro_vm_stats(vm->vm, stderr,
                       vm->symbols.nr ? symbols_name : NULL, &vm->symbols);
}

static void destroy(struct guest *vm)
{
    vnc_detach(vm->vnc);
    if (vm->gdb)
        gdbstub_destroy(vm->gdb, vm->status);
    devices_destroy(&vm->devices);
    /* The board's I/O thread calls what has timers and descriptors there; the threads of disks and cards that are reached by
     * hypercalls ask the board's clock. All of them may kick vCPUs and use the console. */
    if (vm->machine)
        machine_still(vm->machine);
    paravirt_destroy(vm->pv);
    if (vm->machine)
        machine_destroy(vm->machine);
    console_fini(&vm->console);
    for (unsigned i = 0; i < vm->nr_nets; i++)
        vm->net[i]->ops->free(vm->net[i]);
    for (unsigned i = 0; i < vm->config->cpus; i++)
        vm_vcpu_fini(&vm->vcpu[i]);
    if (vm->vm)
        vitro_vm_destroy(vm->vm);
    for (unsigned i = 0; i < vm->config->nr_drives; i++)
        disk_close(vm->disk[i]);
    xen_plugs_free(vm);
    counters_destroy(vm);
    ram_fini(&vm->view);
    pmem_unmap(vm);
    backing_fini(&vm->ram);
    symbols_free(&vm->symbols);
    if (vm->trace && vm->trace != stderr)
        fclose(vm->trace);
    if (vm->firmware_log)
        fclose(vm->firmware_log);
    firmware_free(vm);
    nvram_free(vm);
    vm_pause_fini(vm);
    pthread_cond_destroy(&vm->ended);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

enum vm_outcome vm_run(const struct config *c, struct control *ctl, struct vnc **vnc, int *status)
{
    struct guest *vm = calloc(1, sizeof(*vm));

    *status = STATUS_FAIL;
    if (!vm) {
        say("%s", strerror(ENOMEM));
        return VM_FAIL;
    }
    vm->config = c;
    vm->control = ctl;
    vm->ram.fd = -1;
    pthread_mutex_init(&vm->lock, NULL);
    pthread_cond_init(&vm->ended, NULL);
    vm_pause_init(vm);
    ram_init(&vm->view);
    vm->outcome = VM_RUNNING;
    vm->screen_first = c->screen == SCREEN_ON || (c->screen == SCREEN_AUTO && c->firmware && !c->detach &&
                                                  isatty(STDIN_FILENO) && isatty(STDOUT_FILENO));

    if (open_trace(vm) || open_drives(vm) || make_ram(vm) || pmem_map(vm) ||
        (c->firmware && (firmware_load(vm) || nvram_load(vm))) || make_machine(vm) ||
        make_paravirt(vm) || make_engine(vm) || (xen_wanted(c) ? xen_devices(vm) : devices_create(vm)) ||
        (c->counters && counters_create(vm)) || (c->firmware && firmware_files(vm)) ||
        (c->saved ? snapshot_apply(vm) : xen_wanted(c) ? xen_load_guest(vm) : !c->firmware && load_guest(vm)) ||
        (c->vnc && start_vnc(vm, vnc)) || (c->gdb_port && !(vm->gdb = gdbstub_create(vm, c->gdb_port)))) {
        destroy(vm);
        return VM_FAIL;
    }
    if (!start(vm))
        detach_ready(c->parent);
    pthread_mutex_lock(&vm->lock);
    while (vm->outcome == VM_RUNNING)
        pthread_cond_wait(&vm->ended, &vm->lock);
    pthread_mutex_unlock(&vm->lock);
    stop(vm);

    enum vm_outcome outcome = vm->outcome;
    *status = vm->status;
    destroy(vm);
    return outcome;
}
