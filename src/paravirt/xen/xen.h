/*
 * xen.h - Xen's PV interface (include/vitro/xen.h, docs/xen.md) for one guest: what the rest of Vitro calls.
 *
 * Threads: as in paravirt.h. Everything the guest asks for is done on its vCPUs' threads under one lock (xen->lock);
 * xen_console_feed() comes from the console's thread, timers from the machine's I/O thread.
 */
#pragma once
#include "base/types.h"
#include "libvitro.h"

struct disk;
struct machine;
struct net_backend;
struct ram;
struct xen;

struct xen_config {
    struct ram *ram;         /* the guest's memory: one piece from 0 on */
    u8 *host;                /* where that is, and how long, in bytes */
    u64 size;
    unsigned nr_cpus;
    u64 tsc_khz;
    struct machine *machine; /* for its clock */
    void *opaque;
    void (*kick)(void *opaque, unsigned vcpu, unsigned why);
    void (*console)(void *opaque, const u8 *bytes, size_t len);
    void *shutdown_opaque;
    void (*shutdown)(void *opaque, unsigned reason); /* XEN_SHUTDOWN_* */
    /* A vCPU that never ran is to start; as in paravirt.h. */
    bool (*start)(void *opaque, unsigned vcpu, const struct vitro_sregs *sregs, const struct vitro_regs *regs);
};

/* What a loader found, and what goes with it. */
struct xen_guest {
    u64 entry, virt_base, hypercall_page, p2m_base; /* hypercall_page 0: none */
    u64 lo, hi;             /* pseudo-physical: where the kernel is */
    bool has_p2m_base, mod_start_pfn;
    const u8 *initrd;
    u64 initrd_size;
    const char *cmdline;
};
#define XEN_ERR_LEN 160

int xen_create(const struct xen_config *config, struct xen **out);
void xen_destroy(struct xen *x);
/* xen_outer - for struct vitro_pv. */
const struct vitro_outer *xen_outer(struct xen *x);
/* xen_own_memory - a piece of guest-physical memory beside the guest's own: tables that only the hypervisor writes, and the
 * pages it shares. To be given to the engine. */
struct xen_memory {
    gpa_t gpa;
    u64 size;
    void *host;
    bool readonly; /* to the guest */
};
void xen_own_memory(struct xen *x, struct xen_memory m[2]);
void xen_attach(struct xen *x, unsigned index, struct vitro_vcpu *vcpu);
/* xen_build - page tables, start_info and all that for a kernel that was loaded, and the state of vCPU 0. 0, or -errno with
 * a sentence. */
int xen_build(struct xen *x, const struct xen_guest *g, char *err);
/* xen_mmio - the engine's memory-mapped I/O: writes to page tables that the engine was told to bring here. */
void xen_mmio_read(void *xen, unsigned vcpu, gpa_t gpa, void *buf, unsigned len);
void xen_mmio_write(void *xen, unsigned vcpu, gpa_t gpa, const void *buf, unsigned len);
/* xen_clock_skip - as paravirt_clock_skip(). */
void xen_clock_skip(struct xen *x, u64 ticks);
/* xen_give_ports - the guest may reach these ports of the machine's; others are not there. Before a vCPU runs. */
void xen_give_ports(struct xen *x, u16 first, u16 nr);
/* xen_console_room, _feed - as paravirt_console_room(). */
long xen_console_room(struct xen *x);
void xen_console_feed(struct xen *x, const u8 *bytes, size_t len);

/*
 * xen_ask_shutdown - ask the guest to end by itself, by xenstore: "poweroff", "reboot" or "halt"; or to "suspend": it stands still
 * when xen_suspended() says so, until xen_wake(). 0; -EBUSY: it has not taken what it was asked before; -ENOTCONN: nobody in
 * it listens yet.
 */
int xen_ask_shutdown(struct xen *x, const char *how);
bool xen_suspended(struct xen *x);
void xen_wake(struct xen *x);
/* xen_balloon_ask - how much memory the guest is to have, in bytes: its driver gives the rest back, by and by, or takes it again.
 * xen_balloon_actual - how much it has. */
void xen_balloon_ask(struct xen *x, u64 bytes);
u64 xen_balloon_actual(struct xen *x);

/* -- Devices of split drivers: at the start, or while the guest runs ------------------------------------------------- */

struct xen_disk {
    struct disk *disk;
    unsigned queues;
    bool threads;    /* no io_uring */
    bool persistent; /* offer persistent grants */
};
/* xen_disk_attach - a disk, and what it is called ("xvda"). On success the disk is the guest's, and closed with it.
 * @name: in: what it is to be called, or nothing: the first name that is free
 * 0; -ENOSPC: there are 16; -EINVAL: it cannot be called that; -errno. */
int xen_disk_attach(struct xen *x, const struct xen_disk *disk, char name[16]);
/* xen_net_attach - a network card, and what it is called ("vif0"), likewise. What is behind it is the guest's, also on failure. 0 or -errno. */
int xen_net_attach(struct xen *x, struct net_backend *be, const u8 mac[6], unsigned queues, char name[16]);
/* xen_detach - ask the guest to let go of a device, or (force) take it away at once; it is gone when xen_attached() says so. 0 or
 * -ENOENT. */
int xen_detach(struct xen *x, const char *name, bool force);
bool xen_attached(struct xen *x, const char *name);
/* xen_device - the name of the i-th device there is. False: there are not so many. */
bool xen_device(struct xen *x, unsigned i, char name[16]);
/* xen_flush - while everything is paused: what the guest wrote to its disks is in their files. 0 or -errno. */
int xen_flush(struct xen *x);
/*
 * xen_save, xen_load - for snapshots, while everything is paused; the latter in place of xen_build(), behind the vCPUs' own state and
 * the machine's, with the devices attached: it is paused afterwards. 0, or -EINVAL with a sentence.
 */
struct state_set;
void xen_save(struct xen *x, struct state_set *set);
int xen_load(struct xen *x, struct state_set *set, char *err, size_t err_len);
/* xen_io_pause - while no vCPU runs: back ends touch nothing of the guest's until it is switched off again. */
void xen_io_pause(struct xen *x, bool on);
