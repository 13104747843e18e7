/*
 * vm_inner.h - struct guest, shared by this folder's vm.c, vcpu.c and gdbstub.c only.
 */
#pragma once
#include "boot/boot.h"
#include "libvitro.h"
#include "mem/backing.h"
#include "monitor/console.h"
#include "monitor/devices.h"
#include "monitor/drive.h"
#include "monitor/screen.h"
#include "monitor/symbols.h"
#include "monitor/vm.h"
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

struct disk;
struct machine;
struct state_set;
struct paravirt;
struct gdbstub;
struct control;

#define VM_VCPUS_MAX 64

/* A vCPU's thread, and where it sleeps while the guest is halted. */
struct vm_vcpu {
    struct guest *vm;
    struct vitro_vcpu *vcpu;
    unsigned index;
    pthread_t thread;
    bool started;
    bool waiting; /* between INIT and a start-up IPI; its own thread, or while paused */
    /*
     * Sleep and wake, Dekker's way: the sleeper sets `asleep`, then looks for an event; a kicker
     * sets the event (vitro_vcpu_kick), then looks at `asleep`. Both are seq_cst, so one of them
     * sees the other. Wakers of a vCPU that runs touch no lock.
     */
    atomic_bool asleep;
    u64 poll_ns; /* how long it looks for an event before it sleeps */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    /* An application processor that waits to be started; how a hypercall starts it (under lock). */
    bool waits, given;
    struct vitro_sregs start_sregs;
    struct vitro_regs start_regs;
    atomic_bool stop; /* a hypercall wants it to wait again */
};

/* What pause.c keeps. */
struct vm_pause {
    atomic_bool wanted;
    bool paused;   /* vCPUs at rest, clocks and devices stopped; control thread, or before vCPUs run */
    unsigned at_rest; /* vCPUs in vm_pause_point(); under lock */
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

/* A file as memory. */
struct vm_pmem {
    u8 *host; /* NULL: none */
    gpa_t gpa;
    u64 size;
};

struct guest {
    const struct config *config;
    struct backing ram;
    struct ram view; /* the loaders' view of guest memory */
    u8 *rom;         /* the firmware's image, then BIOS_WINDOW bytes of ones; NULL: no firmware */
    u64 rom_size;
    u8 *nvram;       /* the firmware's variables as they were at the start; NULL: none */
    u32 nvram_size;
    struct disk *nvram_disk; /* NULL: not kept */
    FILE *firmware_log;
    struct disk *disk[DRIVES_MAX]; /* as config->drive; NULL: not opened */
    struct vm_pmem pmem[DRIVES_MAX]; /* the same, of those with if=pmem */
    struct machine *machine;
    struct devices devices;
    struct paravirt *pv;
    struct net_backend *net[NICS_MAX]; /* of cards with if=vitro */
    unsigned nr_nets;
    unsigned nr_attached; /* network cards that came while the guest ran */
    struct xen_plug *plug; /* [nr_plugs]: a Xen PV guest's devices; some may be gone */
    unsigned nr_plugs;
    struct counters *counters; /* NULL without --counters */
    struct vitro_vm *vm;
    struct vm_vcpu vcpu[VM_VCPUS_MAX];
    unsigned nr_vcpus;
    struct console console;
    struct vnc *vnc;
    bool screen_first;    /* the terminal shows the screen, at least at first */
    struct screen screen; /* with screen_first */
    struct symbols symbols;
    FILE *trace;
    struct gdbstub *gdb;
    struct control *control; /* may be NULL */
    struct vm_pause pause;
    struct timespec started; /* CLOCK_MONOTONIC */
    atomic_bool over; /* outcome is no longer VM_RUNNING */

    pthread_mutex_t lock; /* what follows */
    pthread_cond_t ended;
    enum vm_outcome outcome;
    bool panicked;
    int status;
    char message[400]; /* for VM_FAIL and VM_TRIPLE_FAULT; printed with the terminal restored */
};

/* vm_end - the run is over; the first caller wins. Any thread. */
void vm_end(struct guest *vm, enum vm_outcome outcome, int status,
            const char *fmt, ...) __attribute__((format(printf, 4, 5)));
bool vm_has_ended(struct guest *vm);

/* -- xen.c: with --pv xen ------------------------------------------------------------------------ */
bool xen_wanted(const struct config *c);
int xen_lay_out_ram(struct guest *vm);
void xen_ops(struct guest *vm, struct vitro_ops *ops);
/* xen_add_memory - to the engine, what is not the guest's own. */
int xen_add_memory(struct guest *vm);
int xen_load_guest(struct guest *vm);
/* xen_devices - its disks and network cards, before it is loaded. */
int xen_devices(struct guest *vm);
/* xen_attach_device - a disk or a network card, as --disk or --net have it, while the guest runs; what it is called. 0, or -errno and
 * a sentence in err (DISK_ERR_LEN). */
int xen_attach_device(struct guest *vm, const char *disk, const char *net, char name[16], char *err);
/* xen_plug - the first of its devices from *i on that is still there; *i is behind it then. NULL: no more. */
struct xen_plug {
    char name[16];
    const char *option;  /* "disk" or "net", and */
    char *value;         /* what makes it again with that */
    struct drive drive;  /* of a disk */
};
const struct xen_plug *xen_plug(struct guest *vm, unsigned *i);
void xen_plugs_free(struct guest *vm);
/* xen_save_devices - what they are called, for xen_devices() of another VM. 0, or -E2BIG: more than options can name. */
int xen_save_devices(struct guest *vm, struct state_set *set);
/* xen_ask - ask the guest to "poweroff" or "suspend"; NULL, or a sentence. */
const char *xen_ask(struct guest *vm, const char *what);

/* -- pmem.c ----------------------------------------------------------------------------------- */
/* pmem_map - disks with if=pmem: into vm->view, behind the RAM. 0, or -errno with the reason said. */
int pmem_map(struct guest *vm);
/* pmem_unmap - nobody uses guest memory any more. */
void pmem_unmap(struct guest *vm);

/* -- pause.c --------------------------------------------------------------------------------- */
void vm_pause_init(struct guest *vm);
void vm_pause_fini(struct guest *vm);
/* vm_pause - returns with the machine still. 0, or -errno and *why is a sentence. Twice is once. */
int vm_pause(struct guest *vm, const char **why);
/* vm_resume - go on. 0, or -errno: the VM has been ended. */
int vm_resume(struct guest *vm);
/* vm_pause_point - a vCPU's thread, between two runs: stay here while a pause is wanted. */
void vm_pause_point(struct vm_vcpu *cpu);
/* vm_pause_wake - the run is over: nobody stays. */
void vm_pause_wake(struct guest *vm);

/* -- vcpu.c ---------------------------------------------------------------------------------- */
int vm_vcpu_init(struct guest *vm, unsigned index);
int vm_vcpu_start(struct vm_vcpu *cpu);
/* vm_vcpu_kick - VITRO_KICK_*; wakes it if it sleeps. Any thread. */
void vm_vcpu_kick(struct vm_vcpu *cpu, unsigned why);
/* vm_vcpu_join - false if its thread has not ended within the time. */
bool vm_vcpu_join(struct vm_vcpu *cpu, unsigned timeout_ms);
void vm_vcpu_fini(struct vm_vcpu *cpu);
/* vm_vcpu_give - by hypercall: start a vCPU that waits. False: it runs. vm_vcpu_wait - the vCPU, on its own thread, is to wait
 * before its next instruction. */
bool vm_vcpu_give(struct vm_vcpu *cpu, const struct vitro_sregs *sregs, const struct vitro_regs *regs);
void vm_vcpu_wait(struct vm_vcpu *cpu);
/* vm_vcpu_enter - the state a loader asked for, on top of the reset state. */
void vm_vcpu_enter(struct vm_vcpu *cpu, const struct boot_entry *entry);
