/*
 * libvitro.h - run x86 guests by binary translation, in this process, without virtualization hardware.
 *
 * The shape is KVM's: create a VM, give it memory slots, create vCPUs, set registers, run, look at the
 * exit reason. Devices are plain functions (struct vitro_ops) called on the vCPU's thread: a port or
 * MMIO access costs a call, not a trap. Any number of VMs fit in one process.
 *
 * Threads: one thread runs a vCPU at a time. Only vitro_vcpu_kick() may be called on a running vCPU from
 * elsewhere. Memory slots are set before the first run.
 * Errors: 0 or a negative errno; a clear sentence in the caller's `err` buffer where there is one.
 */
#ifndef LIBVITRO_H
#define LIBVITRO_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct vitro_vm;
struct vitro_vcpu;

/* What the engine asks of the world. Called on the vCPU's thread; `vcpu` is its index. NULL members: reads
 * return all ones, writes are dropped, MSRs fault, no interrupt is ever pending. */
struct vitro_ops {
    void *opaque;
    /* Ports; size 1, 2 or 4 bytes. */
    uint32_t (*port_in)(void *opaque, uint16_t port, unsigned size);
    void (*port_out)(void *opaque, uint16_t port, unsigned size, uint32_t value);
    /* Guest-physical accesses that are not RAM; len 1..64, within one page. */
    void (*mmio_read)(void *opaque, unsigned vcpu, uint64_t gpa, void *buf, unsigned len);
    void (*mmio_write)(void *opaque, unsigned vcpu, uint64_t gpa, const void *buf, unsigned len);
    /* MSRs the engine does not keep: APIC base, x2APIC, TSC deadline. 0, or negative: #GP(0). */
    int (*msr_read)(void *opaque, unsigned vcpu, uint32_t msr, uint64_t *value);
    int (*msr_write)(void *opaque, unsigned vcpu, uint32_t msr, uint64_t value);
    /* A maskable interrupt can be taken now: acknowledge and return its vector, or -1 for none. If another can be taken
     * after it, kick the vCPU (VITRO_KICK_INTR), from here or later: it is not asked again by itself. */
    int (*intr_ack)(void *opaque, unsigned vcpu);
    /* CR8: bits 7:4 of the task priority. */
    uint64_t (*cr8_read)(void *opaque, unsigned vcpu);
    void (*cr8_write)(void *opaque, unsigned vcpu, uint64_t value);
    /* The thread of a vCPU that came back with VITRO_EXIT_HLT is to look at vitro_vcpu_event_pending() again: a line that the
     * guest waits for in MWAIT was stored to. On any thread; may take no lock that is held around calls of the engine.
     * NULL: the guest is not offered MONITOR and MWAIT. */
    void (*wake)(void *opaque, unsigned vcpu);
};

/*
 * Paravirtualization: what a guest that knows it is one may ask. The engine knows no contract; this table is all
 * that it needs for any of them. docs/paravirt-abi.md says what the command `vitro` puts in it.
 */
struct vitro_hypercall {
    uint64_t *gpr; /* the guest's registers, in the order of struct vitro_regs; any but gpr[4] (RSP) may be written */
    unsigned vcpu; /* index */
    uint8_t cpl;
    bool code64;   /* 64-bit code; else only the low 32 bits of a register mean anything */
};
enum vitro_hc {
    VITRO_HC_DONE, /* go on behind the instruction */
    VITRO_HC_SLOW, /* hypercall_fast only: nothing was done, ask `hypercall` */
    VITRO_HC_HALT, /* go on behind it, but halt first as HLT does */
    VITRO_HC_NONE, /* no contract wants it: #UD */
};
struct vitro_cpuid_leaf {
    uint32_t leaf;
    uint32_t r[4]; /* EAX EBX ECX EDX */
};
/*
 * A guest whose kernel runs outside ring 0, as with Xen's PV interface. The engine runs that kernel at CPL 1 behind selectors
 * that show level 3, its user code at CPL 3, and hands every crossing between the two, and all that would need ring 0, to
 * this table. The board's interrupts are not asked for. GS's base is exchanged for the other one (MSR KERNEL_GS_BASE) when
 * `kernel` changes; selectors are looked up in the guest's GDT and LDT, and count as level 3. docs/engine.md has the rules.
 *
 * Called on the vCPU's thread. The vCPU's registers are in the frame meanwhile, except segments. The guest's vector registers
 * are in the host's: these functions, mmio_read and mmio_write of such a guest must be compiled with -mgeneral-regs-only, and
 * put them away (vitro_vcpu_vectors_away()) around what is not.
 *
 * Supervisor pages of the upper half of the address space count as global: the table's functions see each change of page
 * tables, and have them forgotten by vitro_vcpu_flush_all() where an architectural flush may follow one.
 */
struct vitro_frame {
    uint64_t *gpr;          /* the guest's registers, in the order of struct vitro_regs; RSP too may be written */
    uint64_t rip, rflags;   /* IF is always set */
    uint64_t cr3;           /* page tables in use: the kernel's or the user code's */
    uint16_t cs, ss;
    bool kernel;            /* the guest's kernel, not its user code */
};
enum vitro_crossing {
    VITRO_STAY,   /* go on behind the instruction; only registers but RSP were changed */
    VITRO_GO,     /* go on as the frame says now */
    VITRO_HALT,   /* the same, but halt first */
    VITRO_PARK,   /* the same, and a wake-up that came before does not count */
    VITRO_REFUSE, /* soft_interrupt, privileged: #GP, as on a CPU. syscall: #UD */
    VITRO_DEAD,   /* vitro_vcpu_fail() said why */
};
struct vitro_trap {
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t cr2, dr6; /* of #PF and #DB */
};
/* What would need ring 0. `reg` and `value`: of MSRs, control and debug registers, ports (size in bytes). */
enum vitro_privileged_op {
    VITRO_RDMSR, VITRO_WRMSR, VITRO_RDCR, VITRO_WRCR, VITRO_RDDR, VITRO_WRDR, VITRO_CLTS, VITRO_HLT, VITRO_CLI, VITRO_STI,
    VITRO_WBINVD, VITRO_INVLPG, VITRO_XSETBV, VITRO_IN, VITRO_OUT,
};
struct vitro_privileged {
    enum vitro_privileged_op op;
    uint32_t reg;
    uint8_t size;
    uint64_t value;    /* to be written; or what was read */
};
struct vitro_outer {
    void *opaque;
    enum vitro_crossing (*trap)(void *opaque, unsigned vcpu, struct vitro_frame *f, const struct vitro_trap *t);
    /* INT n, INT3, INTO; rip is behind it. */
    enum vitro_crossing (*soft_interrupt)(void *opaque, unsigned vcpu, struct vitro_frame *f, unsigned vector);
    /* SYSCALL, from the kernel too. rip is behind it, RCX and R11 are as SYSCALL leaves them. code64: from 64-bit code. */
    enum vitro_crossing (*syscall)(void *opaque, unsigned vcpu, struct vitro_frame *f, bool code64);
    /* Of the kernel; IN and OUT of user code too. */
    enum vitro_crossing (*privileged)(void *opaque, unsigned vcpu, struct vitro_frame *f, struct vitro_privileged *p);
    /* After VITRO_KICK_INTR: deliver an event if one is due. */
    enum vitro_crossing (*event)(void *opaque, unsigned vcpu, struct vitro_frame *f);
    /* VITRO_GO to a CS or SS that cannot be loaded; the frame is what it was to be. */
    enum vitro_crossing (*bad_frame)(void *opaque, unsigned vcpu, struct vitro_frame *f);
    /* The kernel writes where its page tables do not allow it. True: to be done as if it were memory-mapped I/O. */
    bool (*write_fault)(void *opaque, unsigned vcpu, uint64_t gpa);
    /* Another vCPU has asked (vitro_vcpu_flush_mask): forget what is no longer so. On the vCPU's thread; no lock may be taken. */
    void (*flush)(void *opaque, unsigned vcpu);
};

#define VITRO_CPUID_PV 0x40000000u   /* first and last leaf that may be given */
#define VITRO_CPUID_PV_LAST 0x4000ffffu
#define VITRO_CPUID_PV_MAX 32        /* how many */

struct vitro_pv {
    void *opaque;
    const struct vitro_outer *outer; /* NULL, or the guest's kernel runs outside ring 0; not copied */
    const struct vitro_cpuid_leaf *leaves; /* copied; others between the limits read as zero */
    unsigned nr_leaves;
    /*
     * VMCALL and VMMCALL, from any privilege. hypercall_fast comes first (may be NULL): it runs while the guest's
     * vector registers are in the host's, so it must be compiled with -mgeneral-regs-only and call nothing that is
     * not. `hypercall` is ordinary C. A hypercall that hypercall_fast answers costs some 10 ns, the other some 100 ns.
     */
    enum vitro_hc (*hypercall_fast)(void *opaque, const struct vitro_hypercall *call);
    enum vitro_hc (*hypercall)(void *opaque, const struct vitro_hypercall *call);
    /* MSRs 0x11, 0x12, 0x4b564d00-0x4b564dff (KVM's) and 0x56495400-0x564954ff (Vitro's). 0, or negative: #GP(0). */
    int (*msr_read)(void *opaque, unsigned vcpu, uint32_t msr, uint64_t *value);
    int (*msr_write)(void *opaque, unsigned vcpu, uint32_t msr, uint64_t value);
    /* A maskable interrupt can be taken now: the vector of one that needs no interrupt controller, or -1. Asked before
     * ops->intr_ack; VITRO_KICK_INTR makes the engine ask. Compiled as hypercall_fast. May be NULL. */
    int (*intr_ack)(void *opaque, unsigned vcpu);
    /* The guest moved its TSC (IA32_TSC or IA32_TSC_ADJUST). */
    void (*tsc_moved)(void *opaque, unsigned vcpu);
    /* From time to time while it runs: the engine is about to ask ops->intr_ack. */
    void (*tick)(void *opaque, unsigned vcpu);
    /* Around the moments at which the thread gives the host's CPU away while the guest waits in a loop. yield_end: true:
     * somebody saw that this vCPU does not run, and left a flush of its TLB. Both may be NULL. */
    void (*yield_begin)(void *opaque, unsigned vcpu);
    bool (*yield_end)(void *opaque, unsigned vcpu);
};

/* Halving aids: slower, same results. */
#define VITRO_DEBUG_ONE_INSN 0x1u  /* one-instruction blocks         */
#define VITRO_DEBUG_SLOW_PATH 0x2u /* every access through the walker */
#define VITRO_DEBUG_NO_CHAIN 0x4u  /* every block through the dispatcher */
#define VITRO_DEBUG_WINDOWS 0x8u   /* 64-bit user code by the host's MMU from its first instruction (window.h) */
/* Trace to config.trace_file */
#define VITRO_TRACE_EXC 0x100u     /* exceptions and interrupts      */
#define VITRO_TRACE_BLOCK 0x200u   /* every block entered (implies no chaining) */
#define VITRO_TRACE_SYS 0x400u     /* system instructions done by helpers */
#define VITRO_TRACE_XLAT 0x800u    /* translations made              */

struct vitro_config {
    const char *cpu_model; /* "host" (default when NULL), "x86-64-v2", "-v3", "-v4"; ",-mwait" behind it: without MWAIT; ",+mwait": with */
    unsigned nr_cpus;      /* advertised in CPUID; vCPUs may be created up to this number  */
    size_t cache_bytes;    /* code cache; 0: default                                       */
    unsigned debug;        /* VITRO_DEBUG_* | VITRO_TRACE_*                                */
    FILE *trace_file;
    const struct vitro_pv *pv; /* NULL: none; copied                                       */
};

struct vitro_vm *vitro_vm_create(const struct vitro_config *config, const struct vitro_ops *ops,
                                 char *err, size_t err_len);
void vitro_vm_destroy(struct vitro_vm *vm);

/* vitro_vm_add_memory - guest-physical [gpa, gpa+size) is host memory at `host` (page aligned, the caller's).
 * -EINVAL: misaligned or overlapping; -ENOSPC: too many slots; -ENOMEM. */
#define VITRO_MEM_READONLY 0x1u
#define VITRO_MEM_AHEAD 0x2u /* memory that is nothing yet, as of a new memfd: first uses bring it in by 64 KiB, not by the page */
int vitro_vm_add_memory(struct vitro_vm *vm, uint64_t gpa, uint64_t size, void *host, unsigned flags);

/* vitro_vm_set_memory - other host memory, of the same size, behind the slot that vitro_vm_add_memory() made at gpa.
 * From a port or MMIO handler, or while no vCPU runs. After a port write the vCPU sees it with its next instruction;
 * other vCPUs, and after an MMIO write this one, at their next event poll. -EINVAL: no slot starts there, misaligned. */
int vitro_vm_set_memory(struct vitro_vm *vm, uint64_t gpa, void *host, unsigned flags);

/* vitro_vm_show_memory - memory of a device, such as a frame buffer behind a PCI BAR, that the guest puts where it likes: at gpa now, and no longer
 * where it was. From where, and seen when, as vitro_vm_set_memory(). Errors as vitro_vm_add_memory(), and then it is nowhere: accesses
 * are MMIO's. A place once used is remembered until the VM ends; there is room for some twenty. */
#define VITRO_NOWHERE (~0ull)
int vitro_vm_show_memory(struct vitro_vm *vm, void *host, uint64_t size, uint64_t gpa);

/* vitro_vm_memory_written - any thread: a device has written guest memory [gpa, gpa+len) through its host mapping.
 * To be called after the bytes are there and before the guest is told: translations made from them are dropped before
 * any vCPU takes another event, so the guest cannot run the old code once it has seen an interrupt. Cheap (a load a
 * page) where no code was. */
void vitro_vm_memory_written(struct vitro_vm *vm, uint64_t gpa, uint64_t len);

/* vitro_vm_set_a20 - the A20 line: off, bit 20 of every guest-physical address that an instruction uses is zero (the walk of
 * page tables ignores it). On at first, and not changed by a vCPU's reset. Any thread, also from within struct vitro_ops;
 * the calling vCPU sees it with its next instruction, others soon. */
void vitro_vm_set_a20(struct vitro_vm *vm, bool on);

struct vitro_vcpu *vitro_vcpu_create(struct vitro_vm *vm, unsigned index, char *err, size_t err_len);
void vitro_vcpu_destroy(struct vitro_vcpu *vcpu);
/* vitro_vcpu_reset - power-on state (SDM vol. 3 table 9-1). */
void vitro_vcpu_reset(struct vitro_vcpu *vcpu);
/* vitro_vcpu_init - an INIT signal: reset, but the TSC, MSRs, vector state and pending kicks stay (the same table).
 * vitro_vcpu_start - a start-up IPI, after INIT: to run from vector << 12 in real mode (SDM vol. 3 §8.4.3). */
void vitro_vcpu_init(struct vitro_vcpu *vcpu);
void vitro_vcpu_start(struct vitro_vcpu *vcpu, unsigned vector);

struct vitro_regs {
    uint64_t gpr[16]; /* rax rcx rdx rbx rsp rbp rsi rdi r8-r15 */
    uint64_t rip, rflags;
};
struct vitro_segment {
    uint64_t base;
    uint32_t limit; /* bytes */
    uint32_t attr;  /* descriptor bits 40-55 with bits 48-51 clear; bit 16: unusable */
    uint16_t selector;
};
struct vitro_sregs {
    struct vitro_segment es, cs, ss, ds, fs, gs, ldt, tr;
    uint64_t gdt_base, idt_base;
    uint16_t gdt_limit, idt_limit;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, xcr0;
    uint64_t dr[8];
};
void vitro_vcpu_get_regs(struct vitro_vcpu *vcpu, struct vitro_regs *regs);
void vitro_vcpu_set_regs(struct vitro_vcpu *vcpu, const struct vitro_regs *regs);
void vitro_vcpu_get_sregs(struct vitro_vcpu *vcpu, struct vitro_sregs *sregs);
void vitro_vcpu_set_sregs(struct vitro_vcpu *vcpu, const struct vitro_sregs *sregs);
/* The guest's vector state as an XSAVE area in standard form; size from vitro_vcpu_xsave_size(). */
size_t vitro_vcpu_xsave_size(const struct vitro_vcpu *vcpu);
void *vitro_vcpu_xsave(struct vitro_vcpu *vcpu);

enum vitro_exit {
    VITRO_EXIT_HLT,      /* halted with interrupts on or off; run again after a kick */
    VITRO_EXIT_INTR,     /* vitro_vcpu_kick(VITRO_KICK_STOP) */
    VITRO_EXIT_SHUTDOWN, /* triple fault */
    VITRO_EXIT_DEBUG,    /* debugger breakpoint, watchpoint or step: see vitro_vcpu_debug_* */
    VITRO_EXIT_FAIL,     /* something no definition covers; vitro_vcpu_fail_message() says what */
};
/*
 * vitro_vcpu_run - run until something needs the caller. Takes over SIGSEGV, SIGFPE, SIGILL and SIGBUS of the
 * calling thread while translated code runs (faults elsewhere go to the previous handlers).
 * Returns an enum vitro_exit.
 */
enum vitro_exit vitro_vcpu_run(struct vitro_vcpu *vcpu);
const char *vitro_vcpu_fail_message(const struct vitro_vcpu *vcpu);

/* vitro_vcpu_kick - any thread: make a running (or the next run of a) vCPU look at something soon. */
#define VITRO_KICK_INTR 0x1u /* ask ops->intr_ack when the guest allows */
#define VITRO_KICK_NMI 0x2u  /* deliver an NMI */
#define VITRO_KICK_STOP 0x4u /* return VITRO_EXIT_INTR */
#define VITRO_KICK_WAKE 0x20u /* end its HLT, or its next one, as an interrupt would, without one */
#define VITRO_KICK_FLUSH 0x100u /* drop what it remembers of page tables, of every PCID, but for global mappings (INVPCID type 3) */
void vitro_vcpu_kick(struct vitro_vcpu *vcpu, unsigned why);
/* vitro_vcpu_event_pending - would a halted vCPU wake? (a kick arrived since it last ran) */
bool vitro_vcpu_event_pending(const struct vitro_vcpu *vcpu);

/* Guest TSC: the host's plus an offset; its frequency. */
uint64_t vitro_vcpu_tsc(const struct vitro_vcpu *vcpu);
uint64_t vitro_vcpu_tsc_offset(const struct vitro_vcpu *vcpu); /* guest TSC minus host TSC */
uint64_t vitro_tsc_khz(void);
/* Rate of the local APIC's timer before its divider, in kHz, as CPUID leaf 0x15 gives it. */
#define VITRO_APIC_KHZ 1000000u
/*
 * vitro_vm_clock_stop, _start - while no vCPU runs: every vCPU's TSC stands still in between. The latter returns how
 * many ticks of the host's TSC that was.
 */
void vitro_vm_clock_stop(struct vitro_vm *vm);
uint64_t vitro_vm_clock_start(struct vitro_vm *vm);

/* -- Snapshots: while no vCPU runs and the clock is stopped ----------------------------------------- */
/* vitro_vcpu_save - all that the guest can know of this vCPU, as *len bytes to be freed; NULL: no memory. */
void *vitro_vcpu_save(struct vitro_vcpu *vcpu, size_t *len);
/* vitro_vcpu_load - become what was saved. 0; -ENOMEM; -EINVAL with a sentence: no such vCPU is possible, and this one
 * is reset. */
int vitro_vcpu_load(struct vitro_vcpu *vcpu, const void *bytes, size_t len, char *err, size_t err_len);
/* vitro_vm_save_model, vitro_vm_check_model - the CPU that the guest saw; may it go on on this VM's? 0, or -EINVAL with
 * a sentence. */
void *vitro_vm_save_model(struct vitro_vm *vm, size_t *len);
int vitro_vm_check_model(struct vitro_vm *vm, const void *bytes, size_t len, char *err, size_t err_len);

/* How a vCPU's paging stands. */
struct vitro_paging {
    uint64_t cr0, cr3, cr4, efer;
};
void vitro_vcpu_get_paging(const struct vitro_vcpu *vcpu, struct vitro_paging *paging);
/* vitro_vcpu_load_cr3 - as MOV to CR3, bit 63 included. -EINVAL: it would be #GP. */
int vitro_vcpu_load_cr3(struct vitro_vcpu *vcpu, uint64_t cr3);
/* vitro_vcpu_flush_pages - forget `pages` 4 KiB pages from va on, of one PCID; with `global`, of global mappings too. */
void vitro_vcpu_flush_pages(struct vitro_vcpu *vcpu, unsigned pcid, uint64_t va, uint64_t pages, bool global);
/* vitro_vcpu_flush_others - every other vCPU forgets these ranges (each as vitro_vcpu_flush_pages has it), or with 0 or more
 * than VITRO_FLUSH_MAX of them all it knows of page tables; when it returns, none uses what it knew. */
#define VITRO_FLUSH_MAX 16
struct vitro_flush {
    uint64_t va, pages;
    unsigned pcid;
    bool global;
};
void vitro_vcpu_flush_others(struct vitro_vcpu *vcpu, const struct vitro_flush *list, unsigned nr);
/* vitro_vcpu_flush_mask - the same for vCPUs below 64 whose bit is set; the caller's own is not meant. With a struct vitro_outer, what all
 * is its flush() says. */
void vitro_vcpu_flush_mask(struct vitro_vcpu *vcpu, uint64_t which, const struct vitro_flush *list, unsigned nr);
/* vitro_vcpu_wait_begin, _end - around a wait for what another vCPU's callback may hold while it waits for this one (as
 * vitro_vcpu_flush_mask() does). */
void vitro_vcpu_wait_begin(struct vitro_vcpu *vcpu);
void vitro_vcpu_wait_end(struct vitro_vcpu *vcpu);
/* vitro_vcpu_shares_cpu - does another vCPU that runs want the host's CPU that the caller, this vCPU's thread, is on? By where
 * threads were seen last. */
bool vitro_vcpu_shares_cpu(struct vitro_vcpu *vcpu);
/* vitro_vcpu_yield - the guest waits for another vCPU: give the host's CPU away, with the calls of struct vitro_pv around it. */
void vitro_vcpu_yield(struct vitro_vcpu *vcpu);
/*
 * vitro_vcpu_populate - walk ahead: the next access to each page from va on, of the kind that the flags say, misses
 * nothing. Sets Accessed, and Dirty for writes. Pages that the access would fault on are passed over. At most as many
 * as the TLB holds. How many are there now.
 */
#define VITRO_POPULATE_WRITE 0x1u
#define VITRO_POPULATE_USER 0x2u /* the access comes from CPL 3 */
uint64_t vitro_vcpu_populate(struct vitro_vcpu *vcpu, uint64_t va, uint64_t pages, unsigned flags);

/* -- For struct vitro_outer, from within its functions ------------------------------------------------ */
/* vitro_vcpu_copy_in, _out - guest memory at a linear address, by the rights of the guest's kernel: 0 or -EFAULT. */
int vitro_vcpu_copy_in(struct vitro_vcpu *vcpu, uint64_t la, void *buf, size_t len);
int vitro_vcpu_copy_out(struct vitro_vcpu *vcpu, uint64_t la, const void *buf, size_t len);
/*
 * vitro_vcpu_peek - the host's address of memory that the guest's kernel may read, until the function of the table returns; NULL: the
 * TLB does not have it in one piece. Other vCPUs may write it meanwhile. vitro_vcpu_poke_begin - to write it, until
 * vitro_vcpu_poke_end(), which no NULL needs.
 */
const void *vitro_vcpu_peek(struct vitro_vcpu *vcpu, uint64_t la, size_t len);
void *vitro_vcpu_poke_begin(struct vitro_vcpu *vcpu, uint64_t la, size_t len);
void vitro_vcpu_poke_end(struct vitro_vcpu *vcpu);
/* vitro_vcpu_fail - stop with VITRO_EXIT_FAIL; the first message stays. */
void vitro_vcpu_fail(struct vitro_vcpu *vcpu, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void vitro_vcpu_cpuid(struct vitro_vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t r[4]);
/* vitro_vcpu_rdmsr, _wrmsr, _write_cr, _write_dr - as ring 0 does it; -EINVAL: it would be #GP. cr 9 stands for XCR0. */
int vitro_vcpu_rdmsr(struct vitro_vcpu *vcpu, uint32_t msr, uint64_t *value);
int vitro_vcpu_wrmsr(struct vitro_vcpu *vcpu, uint32_t msr, uint64_t value);
int vitro_vcpu_write_cr(struct vitro_vcpu *vcpu, unsigned cr, uint64_t value);
int vitro_vcpu_write_dr(struct vitro_vcpu *vcpu, unsigned dr, uint64_t value);
uint64_t vitro_vcpu_read_dr(struct vitro_vcpu *vcpu, unsigned dr);
/* vitro_vcpu_load_gs - GS of the side that does not run gets this selector's base. -EINVAL: no such segment. */
int vitro_vcpu_load_gs(struct vitro_vcpu *vcpu, uint16_t selector);
/* vitro_vcpu_descriptors_changed - in a GDT of some vCPU: what is remembered of them is looked up again. */
void vitro_vcpu_descriptors_changed(struct vitro_vcpu *vcpu);
/* vitro_vcpu_set_ldt - bytes 0: none. */
void vitro_vcpu_set_ldt(struct vitro_vcpu *vcpu, uint64_t base, uint32_t bytes);
/*
 * vitro_vcpu_kernel_space - other page tables of the kernel's from now on: what it knew of user code's half is forgotten. The
 * frame's cr3 is the caller's to set. vitro_vcpu_user_space - other ones of user code's. What is remembered of these belongs
 * to `number`; keep: that is still true, if there is any.
 */
void vitro_vcpu_kernel_space(struct vitro_vcpu *vcpu, uint64_t cr3);
void vitro_vcpu_user_space(struct vitro_vcpu *vcpu, uint16_t number, bool keep);
/* vitro_vcpu_flush_all - forget everything. vitro_vcpu_flush_user - only of user code's half, what the kernel knows of it and
 * (unless keep) what is remembered for the number in use. */
void vitro_vcpu_flush_all(struct vitro_vcpu *vcpu);
void vitro_vcpu_flush_user(struct vitro_vcpu *vcpu, bool keep);
/* vitro_vcpu_kernel_differs - vCPUs of the guest do not have the same upper half: from now on nothing in it is global. */
void vitro_vcpu_kernel_differs(struct vitro_vcpu *vcpu);
/* vitro_vcpu_vectors_away, _back - around a call of ordinary C. */
void vitro_vcpu_vectors_away(struct vitro_vcpu *vcpu);
void vitro_vcpu_vectors_back(struct vitro_vcpu *vcpu);
/* vitro_vcpu_use_cr3 - what vitro_vcpu_copy_out() goes by, of the two tables of this space, until the frame is entered. */
void vitro_vcpu_use_cr3(struct vitro_vcpu *vcpu, uint64_t cr3);
/* vitro_vcpu_data_selectors - of DS, ES, FS and GS. */
void vitro_vcpu_data_selectors(const struct vitro_vcpu *vcpu, uint64_t sel[4]);
/* vitro_vcpu_unwrite_page - no page table allows writing the page at gpa any more: when this returns no vCPU writes it by what
 * it remembers. May wait for other vCPUs, as vitro_vcpu_flush_mask() does. */
void vitro_vcpu_unwrite_page(struct vitro_vcpu *vcpu, uint64_t gpa);
/* vitro_vcpu_refuse_store - in mmio_write, for a store that write_fault() sent there: it is not to be. The guest's kernel gets the
 * page fault that it would have had, at the instruction, with nothing of it done. */
void vitro_vcpu_refuse_store(struct vitro_vcpu *vcpu);
/* vitro_vcpu_store_before - in mmio_write, with several vCPUs: what the instruction read where it now writes; NULL: it only writes.
 * vitro_vcpu_store_again - it is not that any more: nothing was written, and the instruction is to run again. */
const void *vitro_vcpu_store_before(const struct vitro_vcpu *vcpu);
void vitro_vcpu_store_again(struct vitro_vcpu *vcpu);

/* -- Debugger support (the gdb stub is its user) ------------------------------------------------ */
/* Copies of guest memory at linear addresses, no rights checked, no A/D bits: 0 or -EFAULT. */
int vitro_vcpu_read_la(struct vitro_vcpu *vcpu, uint64_t la, void *buf, size_t len);
int vitro_vcpu_write_la(struct vitro_vcpu *vcpu, uint64_t la, const void *buf, size_t len);
/* Breakpoints at linear addresses, invisible to the guest; watchpoints. -ENOSPC after 32 of either. */
int vitro_vcpu_add_breakpoint(struct vitro_vcpu *vcpu, uint64_t la);
int vitro_vcpu_del_breakpoint(struct vitro_vcpu *vcpu, uint64_t la);
#define VITRO_WATCH_WRITE 1u
#define VITRO_WATCH_ACCESS 2u
int vitro_vcpu_add_watchpoint(struct vitro_vcpu *vcpu, uint64_t la, unsigned len, unsigned kind);
int vitro_vcpu_del_watchpoint(struct vitro_vcpu *vcpu, uint64_t la, unsigned len, unsigned kind);
/* After VITRO_EXIT_DEBUG: the watched address hit, or 0. */
uint64_t vitro_vcpu_watch_hit(const struct vitro_vcpu *vcpu);
/* Return VITRO_EXIT_DEBUG after each instruction while on. */
void vitro_vcpu_single_step(struct vitro_vcpu *vcpu, bool on);

/* -- Seeing inside -------------------------------------------------------------------------------- */
/* vitro_vm_counters - how often guests had to be helped since they were made, all vCPUs together. Any thread; a vCPU that
 * runs meanwhile is seen as it was a moment ago. */
struct vitro_counters {
    uint64_t ports, mmio;  /* accesses to devices (a string instruction on a port is one) */
    uint64_t privileged;   /* MSRs, control registers, HLT, INVLPG, CPUID and the like, done in C */
    uint64_t hypercalls;
    uint64_t interrupts;   /* taken */
    uint64_t page_faults;  /* taken */
    uint64_t tlb_misses;   /* entries filled by a page walk */
    uint64_t carried;      /* system calls brought to a kernel that runs outside ring 0 (struct vitro_outer) */
};
void vitro_vm_counters(struct vitro_vm *vm, struct vitro_counters *out);
/* vitro_vm_stats - print counters, and the hottest guest pages; `symbol` (may be NULL) names an address. */
void vitro_vm_stats(struct vitro_vm *vm, FILE *out, const char *(*symbol)(void *opaque, uint64_t la),
                    void *opaque);

#endif
