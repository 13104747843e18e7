/*
 * vitro/xen.h - Xen's para-virtual (PV) guest interface for x86-64, as far as Vitro implements it: numbers, structures,
 * error codes. docs/xen.md says what each call does here. Written from Xen's public interface documentation; the names
 * are Xen's, in lower case for structures and with the prefix XEN_ where a constant's own name says too little.
 *
 * Freestanding: needs only <stdint.h>, and static_assert by C11 or C++. Everything is little-endian.
 *
 * SPDX-License-Identifier: 0BSD
 */
#ifndef VITRO_XEN_H
#define VITRO_XEN_H
#include <stdint.h>

#ifdef __cplusplus
#define XEN_ASSERT static_assert
#else
#define XEN_ASSERT _Static_assert
#endif

/* -- Calling --------------------------------------------------------------------------------------------
 * From the kernel: SYSCALL with the number in RAX and arguments in RDI, RSI, RDX, R10, R8. RCX and R11 are lost; the result
 * is in RAX, a negative one is an error. The hypercall page does that for number n at byte 32 * n. */
enum xen_hypercall {
    XEN_set_trap_table = 0, XEN_mmu_update = 1, XEN_set_gdt = 2, XEN_stack_switch = 3, XEN_set_callbacks = 4,
    XEN_fpu_taskswitch = 5, XEN_set_debugreg = 8, XEN_get_debugreg = 9, XEN_update_descriptor = 10,
    XEN_memory_op = 12, XEN_multicall = 13, XEN_update_va_mapping = 14, XEN_set_timer_op = 15, XEN_xen_version = 17,
    XEN_console_io = 18, XEN_grant_table_op = 20, XEN_vm_assist = 21, XEN_iret = 23, XEN_vcpu_op = 24,
    XEN_set_segment_base = 25, XEN_mmuext_op = 26, XEN_sched_op = 29, XEN_callback_op = 30, XEN_event_channel_op = 32,
    XEN_physdev_op = 33, XEN_nr_hypercalls = 64,
};

/* Errors, as Linux numbers them; a call returns one negated. */
#define XEN_EPERM 1
#define XEN_ENOENT 2
#define XEN_ESRCH 3
#define XEN_E2BIG 7
#define XEN_ENOMEM 12
#define XEN_EFAULT 14
#define XEN_EBUSY 16
#define XEN_EEXIST 17
#define XEN_EINVAL 22
#define XEN_ENOSPC 28
#define XEN_ENOSYS 38
#define XEN_EOPNOTSUPP 95
#define XEN_ETIME 62

#define XEN_DOMID_SELF 0x7ff0u

/* -- Descriptors and the address space --------------------------------------------------------------------
 * The kernel and its user code run outside ring 0. These selectors are always there; the first 14 pages of the GDT are the
 * guest's (set_gdt). */
#define XEN_FLAT_CS64 0xe033
#define XEN_FLAT_DS 0xe02b
#define XEN_FLAT_CS32 0xe023
#define XEN_GDT_RESERVED_PAGE 14
#define XEN_GDT_ENTRIES (XEN_GDT_RESERVED_PAGE * 512) /* of the guest's own */
/* Level-4 slots that belong to the hypervisor; what a guest writes there is dropped. */
#define XEN_HOLE_FIRST 256
#define XEN_HOLE_LAST 271
#define XEN_VIRT_START 0xffff800000000000ull
#define XEN_M2P_START XEN_VIRT_START /* the machine-to-physical table: one u64 for each machine frame, read-only */
#define XEN_M2P_END 0xffff804000000000ull

/* -- vcpu_info: 64 bytes -------------------------------------------------------------------------------------
 *   0 upcall_pending (u8)     1 upcall_mask (u8)      8 pending_sel: which words of evtchn_pending
 *  16 cr2 of the last page fault                     24 -
 *  32 time: version, -, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags */
struct xen_time_info {
    uint32_t version; /* odd while it changes */
    uint32_t pad0;
    uint64_t tsc_timestamp, system_time; /* ns, at that TSC */
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad1[2];
};
struct xen_vcpu_info {
    uint8_t upcall_pending, upcall_mask, pad[6];
    uint64_t pending_sel;
    uint64_t cr2, pad2;
    struct xen_time_info time;
};
XEN_ASSERT(sizeof(struct xen_vcpu_info) == 64, "vcpu_info");

/* -- shared_info: one page -------------------------------------------------------------------------------------
 *    0 vcpu_info of vCPUs 0..31         2048 evtchn_pending: 4096 bits     2560 evtchn_mask: 4096 bits
 * 3072 wc_version, wc_sec, wc_nsec, wc_sec_hi: wall clock at system time 0
 * 3088 max_pfn, p2m frame list list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation (the guest's, for tools) */
#define XEN_LEGACY_VCPUS 32
#define XEN_EVTCHNS 4096
struct xen_shared_info {
    struct xen_vcpu_info vcpu_info[XEN_LEGACY_VCPUS];
    uint64_t evtchn_pending[64], evtchn_mask[64];
    uint32_t wc_version, wc_sec, wc_nsec, wc_sec_hi;
    uint64_t max_pfn, p2m_frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation;
};
XEN_ASSERT(sizeof(struct xen_shared_info) == 3136, "shared_info");

/* -- start_info: what RSI points to at the kernel's entry ----------------------------------------------------------
 *    0 magic "xen-3.0-x86_64"      32 nr_pages           40 shared_info (machine address)     48 flags
 *   56 store_mfn                   64 store_evtchn       72 console_mfn                       80 console_evtchn
 *   88 pt_base                     96 nr_pt_frames      104 mfn_list                         112 mod_start
 *  120 mod_len                    128 cmd_line[1024]   1152 first_p2m_pfn                   1160 nr_p2m_frames */
struct xen_start_info {
    char magic[32];
    uint64_t nr_pages, shared_info;
    uint32_t flags, pad0;
    uint64_t store_mfn;
    uint32_t store_evtchn, pad1;
    uint64_t console_mfn;
    uint32_t console_evtchn, pad2;
    uint64_t pt_base, nr_pt_frames, mfn_list, mod_start, mod_len;
    char cmd_line[1024];
    uint64_t first_p2m_pfn, nr_p2m_frames;
};
XEN_ASSERT(sizeof(struct xen_start_info) == 1168, "start_info");
#define XEN_SIF_MOD_START_PFN 8u /* mod_start is a frame number, and the module is not mapped */

/* -- Traps -----------------------------------------------------------------------------------------------------------
 * set_trap_table: a list ended by address 0. Flags: bits 1:0 DPL for INT n, bit 2: mask events on the way in.
 * The frame on the kernel's stack, from RSP up: rcx, r11, [error code,] rip, cs, rflags, rsp, ss. */
struct xen_trap_info {
    uint8_t vector, flags;
    uint16_t cs;
    uint32_t pad;
    uint64_t address;
};
#define XEN_TI_DPL 3u
#define XEN_TI_MASK 4u
/* What the iret call takes from the stack. */
struct xen_iret_frame {
    uint64_t rax, r11, rcx, flags, rip, cs, rflags, rsp, ss;
};
#define XEN_VGCF_IN_SYSCALL 0x100u /* rcx and r11 of the frame are not to be restored */

/* What a new vCPU starts with (VCPUOP_initialise), 5168 bytes:
 *     0 vector state        512 flags               520 user_regs            720 trap[256], by vector  4816 ldt_base, ldt_ents
 *  4832 gdt_frames[16]     4960 gdt_ents           4968 kernel_ss, kernel_sp 4984 ctrlreg[8]: 3, the kernel's tables; 1, the
 *  user code's            5048 debugreg[8]        5112 event, failsafe, syscall callbacks         5136 vm_assist
 *  5144 fs_base, gs_base_kernel, gs_base_user */
struct xen_user_regs {
    uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    uint32_t error_code, entry_vector;
    uint64_t rip;
    uint16_t cs, pad0;
    uint8_t saved_upcall_mask, pad1[3];
    uint64_t rflags, rsp;
    uint16_t ss, pad2[3], es, pad3[3], ds, pad4[3], fs, pad5[3], gs, pad6[3];
};
struct xen_guest_context {
    uint8_t fpu[512];
    uint64_t flags;
    struct xen_user_regs user_regs;
    struct xen_trap_info trap[256];
    uint64_t ldt_base, ldt_ents, gdt_frames[16], gdt_ents, kernel_ss, kernel_sp, ctrlreg[8], debugreg[8];
    uint64_t event_callback, failsafe_callback, syscall_callback, vm_assist, fs_base, gs_base_kernel, gs_base_user;
};
XEN_ASSERT(sizeof(struct xen_user_regs) == 200 && sizeof(struct xen_guest_context) == 5168, "guest context");
#define XEN_VGCF_IN_KERNEL 0x4u
#define XEN_VGCF_FAILSAFE_MASKS 0x8u
#define XEN_VGCF_SYSCALL_MASKS 0x10u

enum xen_callback_type {
    XEN_CALLBACK_EVENT = 0, XEN_CALLBACK_FAILSAFE = 1, XEN_CALLBACK_SYSCALL = 2, XEN_CALLBACK_NMI = 4,
    XEN_CALLBACK_SYSENTER = 5, XEN_CALLBACK_SYSCALL32 = 7, XEN_NR_CALLBACKS = 8,
};
#define XEN_CALLBACKOP_register 0
#define XEN_CALLBACKOP_unregister 1
struct xen_callback_register {
    uint16_t type, flags; /* bit 0: mask events on the way in */
    uint32_t pad;
    uint64_t address;
};
#define XEN_CALLBACKF_MASK 1u

/* -- Memory ---------------------------------------------------------------------------------------------------------- */
struct xen_mmu_update {
    uint64_t ptr, val; /* bits 1:0 of ptr: what to do */
};
#define XEN_MMU_NORMAL_PT_UPDATE 0u
#define XEN_MMU_MACHPHYS_UPDATE 1u
#define XEN_MMU_PT_UPDATE_PRESERVE_AD 2u

struct xen_mmuext_op {
    uint32_t cmd, pad;
    uint64_t arg1; /* a frame, or a linear address */
    uint64_t arg2; /* entries, or a pointer to a mask of vCPUs, or a frame */
};
enum xen_mmuext {
    XEN_MMUEXT_PIN_L1 = 0, XEN_MMUEXT_PIN_L2 = 1, XEN_MMUEXT_PIN_L3 = 2, XEN_MMUEXT_PIN_L4 = 3, XEN_MMUEXT_UNPIN = 4,
    XEN_MMUEXT_NEW_BASEPTR = 5, XEN_MMUEXT_TLB_FLUSH_LOCAL = 6, XEN_MMUEXT_INVLPG_LOCAL = 7,
    XEN_MMUEXT_TLB_FLUSH_MULTI = 8, XEN_MMUEXT_INVLPG_MULTI = 9, XEN_MMUEXT_TLB_FLUSH_ALL = 10,
    XEN_MMUEXT_INVLPG_ALL = 11, XEN_MMUEXT_FLUSH_CACHE = 12, XEN_MMUEXT_SET_LDT = 13, XEN_MMUEXT_NEW_USER_BASEPTR = 15,
    XEN_MMUEXT_CLEAR_PAGE = 16, XEN_MMUEXT_COPY_PAGE = 17, XEN_MMUEXT_FLUSH_CACHE_GLOBAL = 18,
};
/* update_va_mapping's flags: bits 1:0; above them a pointer to a mask of vCPUs, or 0: this one, or 4: all. */
#define XEN_UVMF_TLB_FLUSH 1u
#define XEN_UVMF_INVLPG 2u
#define XEN_UVMF_ALL 4u

struct xen_multicall_entry {
    uint64_t op, result, args[6];
};

#define XENMEM_increase_reservation 0
#define XENMEM_decrease_reservation 1
#define XENMEM_maximum_ram_page 2
#define XENMEM_current_reservation 3
#define XENMEM_maximum_reservation 4
#define XENMEM_populate_physmap 6
#define XENMEM_memory_map 9
#define XENMEM_machphys_mapping 12
struct xen_memory_map {
    uint32_t nr_entries, pad;
    uint64_t buffer;
};
struct xen_e820_entry { /* packed: 20 bytes */
    uint64_t addr, size;
    uint32_t type;
} __attribute__((packed));
struct xen_machphys_mapping {
    uint64_t v_start, v_end, max_mfn;
};
struct xen_memory_reservation {
    uint64_t extent_start; /* pointer to frame numbers */
    uint64_t nr_extents;
    uint32_t extent_order, mem_flags;
    uint16_t domid, pad[3];
};

#define XEN_VMASST_4gb_segments 0
#define XEN_VMASST_4gb_segments_notify 1
#define XEN_VMASST_writable_pagetables 2
#define XEN_VMASST_pae_extended_cr3 3
#define XEN_VMASST_architectural_iopl 4
#define XEN_VMASST_runstate_update_flag 5
#define XEN_VMASST_m2p_strict 32

#define XEN_SEGBASE_FS 0
#define XEN_SEGBASE_GS_USER 1
#define XEN_SEGBASE_GS_KERNEL 2
#define XEN_SEGBASE_GS_USER_SEL 3

/* -- Version ---------------------------------------------------------------------------------------------------------- */
#define XENVER_version 0
#define XENVER_extraversion 1
#define XENVER_compile_info 2
#define XENVER_capabilities 3
#define XENVER_changeset 4
#define XENVER_platform_parameters 5
#define XENVER_get_features 6
#define XENVER_pagesize 7
#define XENVER_guest_handle 8
#define XEN_FEAT_mmu_pt_update_preserve_ad 5
#define XEN_FEAT_gnttab_map_avail_bits 7

/* -- Events ----------------------------------------------------------------------------------------------------------- */
enum xen_evtchnop {
    XEN_EVTCHNOP_bind_interdomain = 0, XEN_EVTCHNOP_bind_virq = 1, XEN_EVTCHNOP_bind_pirq = 2, XEN_EVTCHNOP_close = 3,
    XEN_EVTCHNOP_send = 4, XEN_EVTCHNOP_status = 5, XEN_EVTCHNOP_alloc_unbound = 6, XEN_EVTCHNOP_bind_ipi = 7,
    XEN_EVTCHNOP_bind_vcpu = 8, XEN_EVTCHNOP_unmask = 9, XEN_EVTCHNOP_reset = 10,
};
struct xen_evtchn_bind_virq { uint32_t virq, vcpu, port; };
struct xen_evtchn_bind_ipi { uint32_t vcpu, port; };
struct xen_evtchn_bind_vcpu { uint32_t port, vcpu; };
struct xen_evtchn_alloc_unbound { uint16_t dom, remote_dom; uint32_t port; };
struct xen_evtchn_status {
    uint16_t dom, pad;
    uint32_t port;
    uint32_t status, vcpu;
    union { struct { uint16_t dom, pad; uint32_t port; } peer; uint32_t virq; } u;
};
enum xen_evtchn_state {
    XEN_EVTCHN_closed = 0, XEN_EVTCHN_unbound = 1, XEN_EVTCHN_interdomain = 2, XEN_EVTCHN_pirq = 3, XEN_EVTCHN_virq = 4,
    XEN_EVTCHN_ipi = 5,
};
#define XEN_VIRQ_TIMER 0
#define XEN_VIRQ_DEBUG 1
#define XEN_VIRQ_CONSOLE 2
#define XEN_VIRQ_XENOPROF 7
#define XEN_VIRQ_XENPMU 13
#define XEN_NR_VIRQS 24

/* -- Scheduling ------------------------------------------------------------------------------------------------------- */
#define XEN_SCHEDOP_yield 0
#define XEN_SCHEDOP_block 1
#define XEN_SCHEDOP_shutdown 2
#define XEN_SCHEDOP_poll 3
struct xen_sched_poll { uint64_t ports; uint32_t nr_ports, pad; uint64_t timeout; };
#define XEN_SHUTDOWN_poweroff 0u
#define XEN_SHUTDOWN_reboot 1u
#define XEN_SHUTDOWN_suspend 2u
#define XEN_SHUTDOWN_crash 3u
#define XEN_SHUTDOWN_watchdog 4u

#define XEN_PHYSDEVOP_set_iopl 6
#define XEN_PHYSDEVOP_set_iobitmap 7
struct xen_physdev_iobitmap { uint64_t bitmap; uint32_t nr_ports, pad; };

enum xen_vcpuop {
    XEN_VCPUOP_initialise = 0, XEN_VCPUOP_up = 1, XEN_VCPUOP_down = 2, XEN_VCPUOP_is_up = 3,
    XEN_VCPUOP_get_runstate_info = 4, XEN_VCPUOP_register_runstate = 5, XEN_VCPUOP_set_periodic_timer = 6,
    XEN_VCPUOP_stop_periodic_timer = 7, XEN_VCPUOP_set_singleshot_timer = 8, XEN_VCPUOP_stop_singleshot_timer = 9,
    XEN_VCPUOP_register_vcpu_info = 10, XEN_VCPUOP_send_nmi = 11, XEN_VCPUOP_get_physid = 12,
    XEN_VCPUOP_register_time_info = 13,
};
#define XEN_RUNSTATE_running 0
#define XEN_RUNSTATE_runnable 1
#define XEN_RUNSTATE_blocked 2
#define XEN_RUNSTATE_offline 3
struct xen_runstate_info { uint32_t state, pad; uint64_t state_entry_time, time[4]; };
struct xen_set_singleshot { uint64_t timeout_abs_ns; uint32_t flags, pad; };
#define XEN_SSHOT_FUTURE 1u
struct xen_register_vcpu_info { uint64_t mfn; uint32_t offset, pad; };

/* -- Console, xenstore: rings in one page each --------------------------------------------------------------------------
 * Console: in[1024], out[2048], then in_cons, in_prod, out_cons, out_prod: free-running. "in" is what the guest reads.
 * Xenstore: req[1024], rsp[1024], then req_cons, req_prod, rsp_cons, rsp_prod, server_features, connection, error. */
struct xen_console_ring {
    char in[1024], out[2048];
    uint32_t in_cons, in_prod, out_cons, out_prod;
};
struct xen_store_ring {
    char req[1024], rsp[1024];
    uint32_t req_cons, req_prod, rsp_cons, rsp_prod, server_features, connection, error;
};
XEN_ASSERT(sizeof(struct xen_console_ring) == 3088 && sizeof(struct xen_store_ring) == 2076, "rings");
#define XEN_CONSOLEIO_write 0
#define XEN_CONSOLEIO_read 1

/* A message: this header, then len bytes (at most XEN_STORE_PAYLOAD). */
struct xen_store_msg { uint32_t type, req_id, tx_id, len; };
#define XEN_STORE_PAYLOAD 4096
enum xen_store_type {
    XS_CONTROL, XS_DIRECTORY, XS_READ, XS_GET_PERMS, XS_WATCH, XS_UNWATCH, XS_TRANSACTION_START, XS_TRANSACTION_END,
    XS_INTRODUCE, XS_RELEASE, XS_GET_DOMAIN_PATH, XS_WRITE, XS_MKDIR, XS_RM, XS_SET_PERMS, XS_WATCH_EVENT, XS_ERROR,
    XS_IS_DOMAIN_INTRODUCED, XS_RESUME, XS_SET_TARGET, XS_RESTRICT = 20, XS_RESET_WATCHES = 21,
    XS_DIRECTORY_PART = 22,
};

/* -- ELF notes (owner "Xen") ------------------------------------------------------------------------------------------ */
enum xen_note {
    XEN_NOTE_ENTRY = 1, XEN_NOTE_HYPERCALL_PAGE = 2, XEN_NOTE_VIRT_BASE = 3, XEN_NOTE_PADDR_OFFSET = 4,
    XEN_NOTE_XEN_VERSION = 5, XEN_NOTE_GUEST_OS = 6, XEN_NOTE_LOADER = 8, XEN_NOTE_PAE_MODE = 9, XEN_NOTE_FEATURES = 10,
    XEN_NOTE_HV_START_LOW = 12, XEN_NOTE_L1_MFN_VALID = 13, XEN_NOTE_SUSPEND_CANCEL = 14, XEN_NOTE_INIT_P2M = 15,
    XEN_NOTE_MOD_START_PFN = 16, XEN_NOTE_SUPPORTED_FEATURES = 17, XEN_NOTE_PHYS32_ENTRY = 18,
};
#endif
