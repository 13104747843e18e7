/*
 * inner.h - struct xen, shared by this folder's files only.
 *
 * Machine frames are the guest's page frames, one to one: the p2m list and the machine-to-physical table say so. Behind the
 * guest's memory lies a piece of our own:
 *
 *   own + 0          shared_info, then FRAMES_SHARED - 1 pages that may be shared: the guest may map these
 *   own + FRAMES_SHARED pages   level 3, 2 and 1 tables for the hole in the guest's address space; GDT pages
 *   2 MiB aligned    the machine-to-physical table
 */
#pragma once
#include "machine/clock.h"
#include "mem/ram.h"
#include "paravirt/xen/xen.h"
#include "vitro/xen.h"
#include "x86/x86.h"
#include <pthread.h>

#define FRAMES_SHARED 64u
#define GDT_AREA_STRIDE (16 * PAGE_SIZE)                 /* of address space for each vCPU */
#define GDT_AREA (XEN_VIRT_START + (1ull << 39))         /* level-4 slot 257 */
#define PTE_MFN(e) (((e) & 0x000ffffffffff000ull) >> PAGE_SHIFT)

/* What a frame is used as: a page table, a descriptor table and a writable page exclude each other. */
enum frame_type { FRAME_NONE, FRAME_L1, FRAME_L2, FRAME_L3, FRAME_L4, FRAME_WRITABLE, FRAME_DESC, FRAME_GONE /* not the guest's now */ };
struct frame {
    u32 count;   /* uses as that type */
    u8 type;
    u8 pinned;   /* one of them is the guest's pin */
    u8 group;    /* of a page table of user code's half: spaces.c */
    bool kernel : 1;  /* a table that an upper half has, or had */
    bool busy : 1;    /* about to become a table: its entries do not count yet */
    bool grouped : 1; /* a base table with something in user code's half */
};
_Static_assert(sizeof(struct frame) == 8, "one for each of the guest's frames");

/* spaces.c */
#define NR_GROUPS 256
#define GROUP_ALL 0 /* what is in all address spaces; as a frame's group: none */
#define NR_USER_SPACES 7 /* the engine has 8 */
struct user_space {
    u64 root; /* frame of the base table; 0: never used */
    u64 seen; /* changes that what is remembered is newer than */
    u64 used;
    u8 group;
};

struct trap_gate {
    u64 address; /* 0: none */
    u8 flags;    /* XEN_TI_* */
};

struct xen_cpu {
    struct xen *xen;
    unsigned index;
    struct vitro_vcpu *vcpu;
    struct xen_vcpu_info *info;      /* in memory the guest may write */
    u64 kernel_sp;
    struct trap_gate trap[256];
    struct { u64 address; bool mask; } callback[XEN_NR_CALLBACKS];
    u64 kernel_cr3, user_cr3;        /* 0: none */
    struct user_space space[NR_USER_SPACES];
    unsigned space_now;
    u64 space_clock;
    u64 kernel_seen;                 /* x->kernel_changes at the last flush of everything */
    u64 cr0, cr4;                    /* as the guest sees them */
    bool initialised;                /* it has a state to start from, or has started */
    bool started, up;
    struct vitro_sregs start_sregs;  /* until it starts */
    struct vitro_regs start_regs;
    u64 start_gs_user;
    struct xen_runstate_info runstate;
    u64 runstate_la;                 /* where the guest wants to see it; 0: nowhere */
    bool polling;                    /* in sched_op poll, or about to be */
    u32 gdt_frame[XEN_GDT_RESERVED_PAGE];
    unsigned nr_gdt;
    u32 virq_port[XEN_NR_VIRQS];     /* 0: not bound */
    struct vm_timer timer, poll_timer;
    u64 deadline;                    /* system time in ns; CLOCK_NEVER */
    u8 iopl;                         /* what user code may do with ports: ports.c */
    u64 iobitmap_la;
    u32 iobitmap_ports;
    u32 stays;                       /* how often its kernel was left, to user code or to sleep */
    u32 nr_gathering;                /* ports that are looked at again when it is left next */
    u32 gathering[8];
    bool gathered_late;              /* it has not been left for long: look now */
    u64 info_frame;                  /* where the guest put its vcpu_info, plus 1; 0: in shared_info */
};

struct port {
    u8 state;                        /* enum xen_evtchn_state */
    u8 vcpu;
    u8 virq;
    bool global;                     /* a VIRQ that one vCPU has for all */
    u16 remote;                      /* of unbound: who may bind it; of interdomain: always domain 0 */
    bool (*notify)(void *opaque, bool rest); /* of interdomain: who is told (port_bind); NULL: console or xenstore */
    void *opaque;
    u32 stay;                        /* xen_cpu.stays at the last bell */
    u8 gather;                       /* so many times more its requests are gathered; 0: each has its bell */
};

struct xen {
    struct xen_config c;
    struct vitro_outer outer;
    /*
     * lock: everything below, but what vCPUs keep for themselves. Its holder may wait for other vCPUs, so one that runs the
     * guest takes it by xen_lock(). mmu: frames and entries of page tables, by mmu.c; the holder of `lock` takes it last, and
     * never while waiting: a store into a page table must not wait for a vCPU that waits for it to end.
     */
    pthread_mutex_t lock, mmu;
    struct vitro_vcpu *holder;       /* whose hypercall it is; NULL: none */
    u64 nr_frames;                   /* of the guest's */
    struct frame *frame;             /* [nr_frames] */
    u64 nr_gone, gone_from;          /* frames that the guest gave back; none lies below gone_from */
    u8 *own;                         /* our own piece, */
    u64 own_size;
    gpa_t own_gpa;                   /* and where the guest's tables find it */
    u64 kernel_changes;              /* of entries of upper halves that flushes must not leave */
    u64 kernel_half[511 - XEN_HOLE_LAST]; /* level 4, as the base table in use has it */
    bool kernel_differs;
    u64 half_known[1024];            /* base tables whose upper half is that one: mfn + 1, by its low bits */
    struct { u64 changes; bool mixed; } group[NR_GROUPS];
    u8 last_group;
    u64 hole[2];                     /* what level-4 slots 256 and 257 hold */
    u64 gdt_l1;                      /* entry of the level 1 table behind GDT_AREA */
    u64 gdt_own;                     /* frame of the descriptors that are always there */
    u64 gdt_none;                    /* entry of a page of null descriptors */
    u64 *m2p;
    u64 m2p_at;                      /* where the guest is told that it finds it */
    struct xen_shared_info *shared;
    struct port port[XEN_EVTCHNS];
    u32 console_port, store_port;
    struct vm_timer gather_timer;
    bool gather_armed;
    bool suspend_asked;              /* by xen_ask_shutdown() */
    bool suspended;                  /* no vCPU runs until xen_wake() */
    struct xen_console_ring *console;
    struct store *store;
    struct grants *grants;
    struct bus *bus;
    u16 first_port, nr_ports;        /* of the machine's, that the guest was given */
    u64 tsc_base;
    u32 tsc_mul;
    s8 tsc_shift;
    struct xen_cpu cpu[];            /* [c.nr_cpus] */
};

static inline u64 *xen_table(struct xen *x, u64 mfn) { return (u64 *)(x->c.host + (mfn << PAGE_SHIFT)); }

/* -- What a call is: arguments in, result out. ------------------------------------------------------------ */
struct xen_call {
    struct xen_cpu *cpu;
    struct vitro_frame *frame;
    u64 a[5];
    bool halt;      /* sleep until an event */
    bool park;      /* ... until the vCPU is up again */
};
typedef s64 xen_call_fn(struct xen *x, struct xen_call *c);

/* -- mmu.c: page tables, frame types ---------------------------------------------------------------------------- */
xen_call_fn xen_mmu_update;
/* mmu_list - may the list of requests that mmu_update and mmuext_op are given be looked at? 0 or an error.
 * mmu_list_end - say how many were done, if the guest asks; r, or -EFAULT. */
s64 mmu_list(const struct xen_call *c);
s64 mmu_list_end(struct xen_call *c, u64 done, s64 r);
/* frame_get - one more use of a frame as a type; a page table is checked through and through first. 0, or -XEN_EINVAL: it is
 * not the guest's, is used as something else, or holds what may not be there. */
int frame_get(struct xen *x, u64 mfn, enum frame_type type);
void frame_put(struct xen *x, u64 mfn);
bool xen_write_fault(void *opaque, unsigned vcpu, u64 gpa);
/* mmu_table_of - the level 1 table that maps va in an address space. False: there is none. mmu_entry_write - an entry of a table
 * of the guest's becomes `e`: 0, or -XEN_EINVAL if it may not be. */
bool mmu_table_of(struct xen *x, u64 cr3, u64 va, u64 *mfn);
int mmu_entry_write(struct xen *x, u64 mfn, unsigned i, u64 e);
/* mmu_kernel_half - a vCPU goes to this base table, or (NULL) one is put down before any runs: is its upper half the one that
 * is known? */
void mmu_kernel_half(struct xen *x, struct xen_cpu *c, u64 mfn);
/* xen_lock - for a hypercall of c's. */
void xen_lock(struct xen *x, struct xen_cpu *c);
void xen_unlock(struct xen *x);

/* -- mmuext.c: flushes, base pointers, pins ------------------------------------------------------------------------------- */
xen_call_fn xen_update_va_mapping, xen_mmuext_op;
/* mmu_flush_asked - of struct vitro_outer: another vCPU's hypercall wants a flush, and waits with the lock held. */
void mmu_flush_asked(void *opaque, unsigned vcpu);
/* mmu_pin - one more use of a frame as a page table, which is the guest's pin. 0 or -XEN_EINVAL. */
int mmu_pin(struct xen *x, u64 mfn, enum frame_type type);
/* mmu_flush_page - of every vCPU's translations. */
void mmu_flush_page(struct xen *x, struct xen_cpu *c, u64 va);

/* -- spaces.c: translations of user code that are kept -------------------------------------------------------------- */
u8 group_new(struct xen *x);
static inline void group_set(struct frame *p, u8 group) { __atomic_store_n(&p->group, group, __ATOMIC_RELAXED); } /* fresh() looks without a lock */
/* group_for - of what entry i of a table links, if it is to be e. group_join - a table that is one already is linked there. */
u8 group_for(struct xen *x, u64 mfn, unsigned level, unsigned i, u64 e);
void group_join(struct xen *x, u64 mfn, u8 group);
/* group_entry - an entry went from old to new. group_put - a frame has one use less. */
void group_entry(struct xen *x, u64 mfn, unsigned level, unsigned i, u64 old, u64 new);
void group_put(struct xen *x, u64 mfn);
/* space_switch - c->user_cr3 is another one. space_refresh - a flush by the interface is due; space_flushed - it was done. */
void space_switch(struct xen_cpu *c);
void space_refresh(struct xen_cpu *c);
void space_flushed(struct xen_cpu *c);

/* -- memory.c: reservations, the machine-to-physical table, descriptor tables -------------------------------------- */
xen_call_fn xen_memory_op, xen_set_gdt, xen_update_descriptor, xen_vm_assist;
/* frame_gone - a frame is not the guest's any more. False: it is used, or was gone. */
bool frame_gone(struct xen *x, u64 mfn);
/* descriptor_fix - make a descriptor one that a guest may have. False: it may not. */
bool descriptor_fix(u64 *d);
int gdt_load(struct xen_cpu *c, const u64 *mfn, unsigned nr);
/* gdt_descriptor - as a vCPU finds it by a selector in its GDT; 0: none. */
u64 gdt_descriptor(const struct xen_cpu *c, u16 sel);

/* -- cpu.c: traps, frames, privileged instructions ------------------------------------------------------------------- */
xen_call_fn xen_set_trap_table, xen_set_callbacks, xen_callback_op, xen_stack_switch, xen_fpu_taskswitch, xen_set_debugreg,
    xen_get_debugreg, xen_set_segment_base;
void cpu_table(struct vitro_outer *o);
/* cpu_iret - the hypercall that goes where the frame on the kernel's stack says. cpu_upcall_due - an event is pending and not masked. */
enum vitro_crossing cpu_iret(struct xen_cpu *c, struct vitro_frame *f);
enum vitro_crossing cpu_syscall(struct xen_cpu *c, struct vitro_frame *f, bool code64);
/* xen_cpuid (version.c) - as the kernel sees it by the forced form. */
void xen_cpuid(struct xen_cpu *c, u32 leaf, u32 subleaf, u32 r[4]);
bool cpu_upcall_due(const struct xen_cpu *c);
bool cpu_canonical(u64 a);
/* cpu_runstate - runstate_set(), from code that leaves vector registers alone. */
void cpu_runstate(struct xen_cpu *c, unsigned state);
/* cpu_left - the kernel is left, to user code or to sleep: what was gathered is looked at. No lock held. */
void cpu_left(struct xen_cpu *c);
/* cpu_upcall - go to the event callback if one is due. */
enum vitro_crossing cpu_upcall(struct xen_cpu *c, struct vitro_frame *f);

/* -- calls.c: which function a hypercall is ---------------------------------------------------------------------------- */
enum vitro_crossing xen_syscall(void *opaque, unsigned vcpu, struct vitro_frame *f, bool code64);

/* -- ports.c --------------------------------------------------------------------------------------------------------------- */
xen_call_fn xen_physdev_op;
/* ports_access - VITRO_IN, VITRO_OUT. False: #GP. */
bool ports_access(struct xen_cpu *c, const struct vitro_frame *f, struct vitro_privileged *p);

/* -- evtchn.c ------------------------------------------------------------------------------------------------------------ */
xen_call_fn xen_event_channel_op;
/* port_raise - mark pending; any thread, with or without the lock. */
void port_raise(struct xen *x, u32 port);
void virq_raise(struct xen_cpu *c, unsigned virq);
/* port_open - a port of the guest's whose other end is ours. 0: none left. */
u32 port_open(struct xen *x);
/* ports_init - once. ports_left - c's kernel is about to be left, or was not for long: look again at what is gathered. No lock held. */
int ports_init(struct xen *x);
void ports_left(struct xen_cpu *c);
/* ports_look_later - somebody has gathered: look at it soon, if no kernel is left before. */
void ports_look_later(struct xen *x);
/* virq_is_global - one vCPU has it for all. */
bool virq_is_global(u32 virq);

/* -- vcpu.c: processors ----------------------------------------------------------------------------------------------------- */
xen_call_fn xen_vcpu_op;
#define CR4_GUESTS (CR4_TSD | CR4_DE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE | CR4_OSXSAVE)
#define CR4_ALWAYS (CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT)
#define CR0_ALWAYS (CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG) /* but for TS, all of it */
#define EFER_ALWAYS (EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE)
#define LDT_ATTR (SEG_P | 2u) /* the type of an LDT */
#define GDT_LIMIT ((XEN_GDT_RESERVED_PAGE + 1) * PAGE_SIZE - 1)
/* vcpu_sregs - what every vCPU of the guest has when it starts, but for its page tables, CS and SS. */
/* runstate_set - XEN_RUNSTATE_*; on the vCPU's thread. */
void runstate_set(struct xen_cpu *c, unsigned state);
void vcpu_sregs(struct xen_cpu *c, struct vitro_sregs *s);

/* -- sched.c: sleeping, timers -------------------------------------------------------------------------------- */
xen_call_fn xen_sched_op, xen_set_timer_op;
int sched_init(struct xen_cpu *c);
/* xen_now - system time: ns since the guest was made. */
u64 xen_now(const struct xen *x);
/* time_init - the TSC's scale; time_publish - a vCPU's time information; time_wall - the wall clock at system time 0. */
void time_init(struct xen *x);
void time_publish(struct xen_cpu *c);
void time_wall(struct xen *x);
struct xen_time_info time_info(const struct xen_cpu *c);
/* set_deadline - of the one-shot timer, in system time; CLOCK_NEVER. */
void set_deadline(struct xen_cpu *c, u64 deadline);

/* -- console.c ---------------------------------------------------------------------------------------------------------------- */
xen_call_fn xen_console_io, xen_xen_version;
void console_notified(struct xen *x);

/* -- store.c: xenstore ----------------------------------------------------------------------------------------------------------- */
struct store *store_create(struct xen *x);
void store_destroy(struct store *s);
void store_attach(struct store *s, struct xen_store_ring *ring);
struct xen_store_ring *store_ring(const struct store *s);
/* store_notified - the guest rang: serve its ring. With the lock held. */
void store_notified(struct store *s);
