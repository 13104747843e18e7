/*
 * shared.h - structures in guest memory that guest and Vitro share. The drawings are the authority; the C form is
 * asserted against them. Offsets in bytes, little-endian, no padding beyond what is drawn. Nothing here may lie in a
 * page that holds code.
 *
 * Rings: `head` is where the producer will put the next item and `tail` where the consumer takes the next; both are free
 * running 32-bit numbers, the place is number % size, head - tail items wait. The producer writes the item, then
 * head (release); the consumer reads head (acquire), takes the item, then writes tail (release). A head - tail that is
 * larger than the ring is an error: Vitro takes nothing more from that ring until it is set up again.
 *
 * SPDX-License-Identifier: 0BSD
 */
#ifndef VITRO_SHARED_H
#define VITRO_SHARED_H
#include <stddef.h>
#include <stdint.h>

/*
 * vt_call - one call of a multicall.
 *
 *    0  +----------------+----------------+
 *       | number (VT_*)  | reserved       |
 *    8  +----------------+----------------+
 *       | result: as RAX; written by Vitro|
 *   16  +---------------------------------+
 *       | arg[0] .. arg[4]                |
 *   56  +---------------------------------+
 *       | reserved                        |
 *   64  +---------------------------------+
 *
 * A multicall in a multicall is -VT_EINVAL, and so are the calls that do not return.
 */
struct vt_call {
    uint32_t number, reserved;
    int64_t result;
    uint64_t arg[5];
    uint64_t reserved2;
};
_Static_assert(sizeof(struct vt_call) == 64 && offsetof(struct vt_call, arg) == 16, "as drawn");

/*
 * vt_range - a run of pages: of MAP, UNMAP, PROTECT, FLUSH, POPULATE.
 *
 *    0  +---------------------------------+
 *       | va: first linear address        |  4 KiB aligned (2 MiB with VT_LARGE), canonical to its end
 *    8  +---------------------------------+
 *       | pa: first guest-physical address|  the same alignment; all of it RAM
 *   16  +----------------+----------------+
 *       | pages of 4 KiB | flags          |  pages >= 1 (512 * n with VT_LARGE)
 *   24  +----------------+----------------+
 *       | result: 0, -E* | reserved       |  result is written by Vitro
 *   32  +----------------+----------------+
 *
 * Each range is done as a whole or not at all. MAP: -VT_EEXIST if a page of it is mapped already (unless VT_REPLACE).
 * UNMAP, PROTECT: pages that are not mapped are passed over. A 2 MiB page that a range covers only in part is -VT_EINVAL.
 */
struct vt_range {
    uint64_t va, pa;
    uint32_t pages, flags;
    int32_t result;
    uint32_t reserved;
};
_Static_assert(sizeof(struct vt_range) == 32 && offsetof(struct vt_range, result) == 24, "as drawn");
#define VT_W 0x1u        /* may be written: PTE bit 1                     */
#define VT_U 0x2u        /* user may: PTE bit 2                           */
#define VT_X 0x4u        /* may be executed: PTE bit 63 clear             */
#define VT_G 0x8u        /* in every address space: PTE bit 8             */
#define VT_LARGE 0x10u   /* MAP: 2 MiB pages                              */
#define VT_REPLACE 0x20u /* MAP: over what is there (not over 2 MiB pages with 4 KiB ones, or the reverse) */
#define VT_LIST 0x80u    /* MAP: pa is where a list of frames is, u64[pages], at most VT_BATCH_MAX of them */
#define VT_FILL 0x40u     /* MAP, space 0 or current: POPULATE as well; BALLOON_TAKE: take host memory now */

/*
 * vt_extent - a run of guest-physical pages: of BALLOON_GIVE, BALLOON_TAKE, FREE_HINT.
 *
 *    0  +---------------------------------+
 *       | pa: page aligned                |
 *    8  +----------------+----------------+
 *       | pages of 4 KiB | flags          |
 *   16  +----------------+----------------+
 *       | result: 0, -E* | reserved       |  result is written by Vitro
 *   24  +----------------+----------------+
 */
struct vt_extent {
    uint64_t pa;
    uint32_t pages, flags;
    int32_t result;
    uint32_t reserved;
};
_Static_assert(sizeof(struct vt_extent) == 24, "as drawn");

/*
 * vt_time - what time it is, without a call. Anywhere within one page, 8-byte aligned; read-only for the guest.
 *
 *    0  +----------------+----------------+
 *       | seq            | flags          |  seq is odd while Vitro writes: read it before and after
 *    8  +----------------+----------------+
 *       | tsc                             |  the TSC at which mono_ns was
 *   16  +---------------------------------+
 *       | mono_ns                         |  ns since the machine was switched on
 *   24  +---------------------------------+
 *       | wall_ns                         |  UTC, ns since 1970, when the monotonic time was 0
 *   32  +----------------+----------------+
 *       | mul            | shift: signed  |
 *   40  +----------------+----------------+
 *       | tsc_khz        | reserved       |
 *   48  +----------------+----------------+
 *
 *   d = TSC - tsc;  d = shift < 0 ? d >> -shift : d << shift;
 *   monotonic = mono_ns + (d * mul >> 32)          with a 96-bit product
 *   wall clock = wall_ns + monotonic
 *
 * Written at TIME_PAGE; another TIME_PAGE refreshes it (the host's wall clock may have been set).
 */
struct vt_time {
    uint32_t seq, flags;
    uint64_t tsc, mono_ns, wall_ns;
    uint32_t mul;
    int32_t shift;
    uint32_t tsc_khz, reserved;
};
_Static_assert(sizeof(struct vt_time) == 48 && offsetof(struct vt_time, mul) == 32, "as drawn");
#define VT_TIME_STABLE 0x1u /* the same for all vCPUs: time read on one is never ahead of a later read on another */

/*
 * vt_timers - one-shot timers without a call. 64-byte aligned, within one page.
 *
 *     0  +---------------------------------+
 *        | timer[0].deadline_ns            |  0: off. Written by the guest; 0 when it fires
 *     8  +---------------------------------+
 *        | timer[0].armed_ns               |  when Vitro will look at deadline_ns next; 0: it will not. Written by Vitro
 *    16  +---------------------------------+
 *        | ... to timer[63]                |
 *  1024  +---------------------------------+
 *
 * A timer whose port a TIMER_SET has said (deadline 0 will do) is set by writing deadline_ns. Then, as one of these is
 * the case:
 *   - armed_ns is not 0 and not after the deadline: no call. At armed_ns Vitro looks, and waits for the deadline;
 *   - the vCPU halts next: no call. Vitro looks at all deadlines before a vCPU sleeps;
 *   - else TIMER_SET, which writes both numbers.
 * Between the write of deadline_ns and the read of armed_ns is a full fence. A periodic timer has 0 in both.
 */
struct vt_timers {
    struct {
        uint64_t deadline_ns, armed_ns;
    } timer[64];
};
_Static_assert(sizeof(struct vt_timers) == 1024, "as drawn");

/*
 * vt_events - which ports have something new. One page, page aligned.
 *
 *     0  +---------------------------------+
 *        | pending: one bit a port         |  set by Vitro, cleared by the guest: both atomically
 *    64  +---------------------------------+
 *        | mask: one bit a port            |  written by the guest: a set bit holds upcalls back
 *   128  +----------------+----------------+
 *        | vcpu[0].upcall | reserved       |  Vitro sets it to 1 and interrupts; the handler sets it to 0
 *   136  +----------------+----------------+
 *        | ... to vcpu[63]                 |
 *   640  +---------------------------------+
 *
 * An upcall is an interrupt with the vector of EVENT_VECTOR; it needs no end-of-interrupt. None comes while `upcall`
 * is 1. The handler: upcall = 0; then for each bit of pending & ~mask (of ports bound to it): clear it, then look at
 * what it stands for. Who clears a mask bit looks at its pending bit afterwards.
 */
struct vt_events {
    uint64_t pending[8], mask[8];
    struct {
        uint32_t upcall, reserved;
    } vcpu[64];
};
_Static_assert(sizeof(struct vt_events) == 640 && offsetof(struct vt_events, vcpu) == 128, "as drawn");

/*
 * vt_console - a terminal: one page, page aligned.
 *
 *      0  +-----------+-----------+-----------+-----------+
 *         | out_head  | out_tail  | in_head   | in_tail   |  the guest writes out_head and in_tail
 *     16  +-----------+-----------+-----------+-----------+
 *         | reserved                                      |
 *     64  +-----------------------------------------------+
 *         | out[2048]                                     |  taken at CONSOLE_BELL
 *   2112  +-----------------------------------------------+
 *         | in[1024]                                      |  the port is told when bytes come
 *   3136  +-----------------------------------------------+
 */
#define VT_CONSOLE_OUT 2048u
#define VT_CONSOLE_IN 1024u
struct vt_console {
    uint32_t out_head, out_tail, in_head, in_tail;
    uint8_t reserved[48];
    uint8_t out[VT_CONSOLE_OUT], in[VT_CONSOLE_IN];
};
_Static_assert(offsetof(struct vt_console, in) == 2112, "as drawn");

/*
 * vt_start - how a vCPU starts: 64-bit mode, interrupts off, CR0, CR4, EFER, GDT, IDT and segments the caller's, all
 * other registers 0.
 *
 *    0  +------+    8  +------+   16  +------+   24  +-----------+   32
 *       | rip  |       | rsp  |       | cr3  |       | arg: RDI  |
 *       +------+       +------+       +------+       +-----------+
 */
struct vt_start {
    uint64_t rip, rsp, cr3, arg;
};

/*
 * vt_block_info, vt_block_req, vt_block_done, vt_block_ring - a disk. Sectors are 512 bytes.
 *
 *   info:  0 sectors (8)     8 max_len: bytes in one request (4)    12 flags (4)    16 reserved (16)    32
 *   req:   0 id (8)          8 sector (8)         16 pa (8)         24 len in bytes (4)    28 op (4)
 *         32 result (4): written by BLOCK_SUBMIT only               36 reserved (4)    40
 *   done:  0 id (8)          8 result: 0 or -VT_E* (4)              12 reserved (4)    16
 *
 *   ring, page aligned, contiguous:
 *     0  +-----------+-----------+-----------+-----------+
 *        | req_head  | req_tail  | done_head | done_tail |  the guest writes req_head and done_tail
 *    16  +-----------+-----------+-----------+-----------+
 *        | size      | reserved                          |  size: a power of two, 2..256; read once, at BLOCK_RING
 *    64  +-----------+-----------------------------------+
 *        | req[size]                                     |
 *        +-----------------------------------------------+  64 + 40 * size
 *        | done[size]                                    |
 *        +-----------------------------------------------+  64 + 56 * size
 *
 * Requests of a ring may be done in any order. No more are taken than there is room for in done[].
 */
struct vt_block_info {
    uint64_t sectors;
    uint32_t max_len, flags;
    uint64_t reserved[2];
};
_Static_assert(sizeof(struct vt_block_info) == 32, "as drawn");
#define VT_BLOCK_READONLY 0x1u
struct vt_block_req {
    uint64_t id, sector, pa;
    uint32_t len, op;
    int32_t result;
    uint32_t reserved;
};
_Static_assert(sizeof(struct vt_block_req) == 40, "as drawn");
enum vt_block_op { VT_BLOCK_READ, VT_BLOCK_WRITE, VT_BLOCK_FLUSH };
struct vt_block_done {
    uint64_t id;
    int32_t result;
    uint32_t reserved;
};
_Static_assert(sizeof(struct vt_block_done) == 16, "as drawn");
struct vt_block_ring {
    uint32_t req_head, req_tail, done_head, done_tail;
    uint32_t size, reserved[11];
};
_Static_assert(sizeof(struct vt_block_ring) == 64, "as drawn");
#define VT_BLOCK_RING_MAX 256u
#define VT_BLOCK_RING_BYTES(size) (64u + 56u * (size))

/*
 * vt_net_info, vt_net_desc, vt_net_ring - a network card.
 *
 *   info:  0 mac[6]    6 mtu (2)    8 flags (4)    12 reserved (4)    16
 *   desc:  0 pa (8)    8 len: of the packet, or of the room for one (4)    12 result: written by Vitro (4)    16
 *
 *   ring, page aligned, contiguous:
 *     0  +-----------+-----------+-----------+-----------+
 *        | tx_head   | tx_tail   | rx_head   | rx_tail   |  the guest writes the heads, Vitro the tails
 *    16  +-----------+-----------+-----------+-----------+
 *        | size      | reserved                          |  size: a power of two, 2..256; read once, at NET_RING
 *    64  +-----------+-----------------------------------+
 *        | tx[size]: packets to send                     |  result: 0 or -VT_E*
 *        +-----------------------------------------------+  64 + 16 * size
 *        | rx[size]: room for packets                    |  result: bytes received, or -VT_E*
 *        +-----------------------------------------------+  64 + 32 * size
 *
 * Packets are Ethernet frames without their checksum, at most mtu + 18 bytes. Room that is too small for the packet that
 * comes loses it. The port is told when rx_tail moves. Ring the bell after filling tx[] and after adding to
 * rx[], once for all: a packet that found no room waits for it.
 */
struct vt_net_info {
    uint8_t mac[6];
    uint16_t mtu;
    uint32_t flags, reserved;
};
_Static_assert(sizeof(struct vt_net_info) == 16, "as drawn");
struct vt_net_desc {
    uint64_t pa;
    uint32_t len;
    int32_t result;
};
_Static_assert(sizeof(struct vt_net_desc) == 16, "as drawn");
struct vt_net_ring {
    uint32_t tx_head, tx_tail, rx_head, rx_tail;
    uint32_t size, reserved[11];
};
_Static_assert(sizeof(struct vt_net_ring) == 64, "as drawn");
#define VT_NET_RING_MAX 256u
#define VT_NET_RING_BYTES(size) (64u + 32u * (size))

#endif
