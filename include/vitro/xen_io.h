/*
 * vitro/xen_io.h - Xen's split drivers for x86-64, as far as Vitro implements their back ends: grant tables, the states of
 * xenbus, shared rings, the block and the network protocol. docs/xen.md says what is done. Written from Xen's public
 * interface documentation (grant_table.h, io/ring.h, io/xenbus.h, io/blkif.h, io/netif.h); names as in vitro/xen.h.
 *
 * Freestanding: needs only <stdint.h>. Everything is little-endian.
 *
 * SPDX-License-Identifier: 0BSD
 */
#ifndef VITRO_XEN_IO_H
#define VITRO_XEN_IO_H
#include "vitro/xen.h"

/* -- Grant tables, version 1 --------------------------------------------------------------------------------
 * An entry: which domain may do what with which frame. The first 8 are reserved for tools.
 *    0 flags (u16)   2 domid (u16)   4 frame (u32)
 * The owner writes frame and domid, then flags; whoever uses the frame sets reading or writing in flags meanwhile. */
struct xen_grant_entry {
    uint16_t flags, domid;
    uint32_t frame;
};
XEN_ASSERT(sizeof(struct xen_grant_entry) == 8, "grant entry");
#define XEN_GTF_type 3u
#define XEN_GTF_permit_access 1u
#define XEN_GTF_accept_transfer 2u
#define XEN_GTF_readonly 4u
#define XEN_GTF_reading 8u
#define XEN_GTF_writing 16u
#define XEN_GRANTS_RESERVED 8u

enum xen_gnttabop {
    XEN_GNTTABOP_map_grant_ref = 0, XEN_GNTTABOP_unmap_grant_ref = 1, XEN_GNTTABOP_setup_table = 2,
    XEN_GNTTABOP_dump_table = 3, XEN_GNTTABOP_transfer = 4, XEN_GNTTABOP_copy = 5, XEN_GNTTABOP_query_size = 6,
    XEN_GNTTABOP_unmap_and_replace = 7, XEN_GNTTABOP_set_version = 8, XEN_GNTTABOP_get_status_frames = 9,
    XEN_GNTTABOP_get_version = 10,
};
/* Each operation's structure has its own result, beside that of the call. */
enum xen_gntst {
    XEN_GNTST_okay = 0, XEN_GNTST_general_error = -1, XEN_GNTST_bad_domain = -2, XEN_GNTST_bad_gntref = -3,
    XEN_GNTST_bad_handle = -4, XEN_GNTST_bad_virt_addr = -5, XEN_GNTST_bad_dev_addr = -6, XEN_GNTST_no_device_space = -7,
    XEN_GNTST_permission_denied = -8, XEN_GNTST_bad_page = -9, XEN_GNTST_bad_copy_arg = -10, XEN_GNTST_address_too_big = -11,
};
struct xen_gnttab_map {
    uint64_t host_addr;
    uint32_t flags, ref;
    uint16_t dom;
    int16_t status;
    uint32_t handle;
    uint64_t dev_bus_addr;
};
#define XEN_GNTMAP_device_map 1u
#define XEN_GNTMAP_host_map 2u
#define XEN_GNTMAP_readonly 4u
#define XEN_GNTMAP_application_map 8u
#define XEN_GNTMAP_contains_pte 16u /* host_addr is the machine address of the page-table entry */
struct xen_gnttab_unmap {
    uint64_t host_addr, dev_bus_addr;
    uint32_t handle;
    int16_t status, pad;
};
struct xen_gnttab_setup {
    uint16_t dom, pad0;
    uint32_t nr_frames;
    int16_t status, pad1[3];
    uint64_t frame_list; /* out: the table's frames, a u64 each */
};
struct xen_gnttab_transfer {
    uint64_t mfn;
    uint16_t domid, pad0;
    uint32_t ref;
    int16_t status, pad1[3];
};
struct xen_gnttab_copy_side {
    uint64_t frame; /* or a grant in the lower half */
    uint16_t domid, offset;
    uint32_t pad;
};
struct xen_gnttab_copy {
    struct xen_gnttab_copy_side source, dest;
    uint16_t len, flags;
    int16_t status, pad;
};
#define XEN_GNTCOPY_source_gref 1u
#define XEN_GNTCOPY_dest_gref 2u
struct xen_gnttab_query {
    uint16_t dom, pad0;
    uint32_t nr_frames, max_nr_frames;
    int16_t status, pad1;
};
struct xen_gnttab_get_version {
    uint16_t dom, pad;
    uint32_t version;
};
XEN_ASSERT(sizeof(struct xen_gnttab_map) == 32 && sizeof(struct xen_gnttab_unmap) == 24 && sizeof(struct xen_gnttab_setup) == 24 &&
           sizeof(struct xen_gnttab_transfer) == 24 && sizeof(struct xen_gnttab_copy) == 40 &&
           sizeof(struct xen_gnttab_query) == 16, "grant table operations");

/* -- Xenbus: what a device's two ends say of themselves in their node "state" ----------------------------------- */
enum xenbus_state {
    XENBUS_UNKNOWN = 0, XENBUS_INITIALISING = 1, XENBUS_INIT_WAIT = 2, XENBUS_INITIALISED = 3, XENBUS_CONNECTED = 4,
    XENBUS_CLOSING = 5, XENBUS_CLOSED = 6, XENBUS_RECONFIGURING = 7, XENBUS_RECONFIGURED = 8,
};

/* -- Rings: the header, then as many entries as fit, rounded down to a power of two. Each entry is a request, later the
 * response in its place. Indices are free-running; event: "tell me when your producer passes this". */
struct xen_ring_header {
    uint32_t req_prod, req_event, rsp_prod, rsp_event;
    uint8_t pad[48];
};
XEN_ASSERT(sizeof(struct xen_ring_header) == 64, "ring header");

/* -- Block ------------------------------------------------------------------------------------------------------
 * Request:   0 operation   1 nr_segments   2 handle (u16)   4 -   8 id (u64)   16 sector   24 segments, 8 bytes each
 * Indirect:  0 6   1 operation   2 nr_segments (u16)   8 id   16 sector   24 handle (u16)   28 grants of pages of segments
 * Discard:   0 5   1 flag   8 id   16 sector   24 number of sectors                          Response: 0 id  8 op  10 status */
enum xen_blkif_op {
    XEN_BLKIF_READ = 0, XEN_BLKIF_WRITE = 1, XEN_BLKIF_WRITE_BARRIER = 2, XEN_BLKIF_FLUSH = 3, XEN_BLKIF_DISCARD = 5,
    XEN_BLKIF_INDIRECT = 6,
};
#define XEN_BLKIF_SEGMENTS 11
#define XEN_BLKIF_INDIRECT_PAGES 8
#define XEN_BLKIF_SEGMENTS_PER_PAGE 512
struct xen_blkif_segment {
    uint32_t gref;
    uint8_t first, last; /* sectors of the page, both included */
    uint16_t pad;
};
struct xen_blkif_request {
    uint8_t operation;
    union { uint8_t nr_segments, indirect_op, flag; };
    union { uint16_t handle, nr_indirect; };
    uint32_t pad;
    uint64_t id, sector;
    union {
        struct xen_blkif_segment seg[XEN_BLKIF_SEGMENTS];
        struct {
            uint16_t handle, pad;
            uint32_t gref[XEN_BLKIF_INDIRECT_PAGES];
        } indirect;
        uint64_t nr_sectors;
    } u;
};
struct xen_blkif_response {
    uint64_t id;
    uint8_t operation, pad0;
    int16_t status;
    uint32_t pad1;
};
XEN_ASSERT(sizeof(struct xen_blkif_request) == 112 && sizeof(struct xen_blkif_response) == 16, "block ring");
#define XEN_BLKIF_OKAY 0
#define XEN_BLKIF_ERROR (-1)
#define XEN_BLKIF_EOPNOTSUPP (-2)
#define XEN_VDISK_READONLY 4u

/* -- Network -------------------------------------------------------------------------------------------------------
 * A packet is one request or several (more_data); the first's size is the whole packet's. Between the first and the second
 * there may be entries of another kind (extra_info). */
struct xen_netif_tx_request {
    uint32_t gref;
    uint16_t offset, flags, id, size;
};
struct xen_netif_tx_response {
    uint16_t id;
    int16_t status;
};
struct xen_netif_rx_request {
    uint16_t id, pad;
    uint32_t gref;
};
struct xen_netif_rx_response {
    uint16_t id, offset, flags;
    int16_t status; /* bytes, or an error */
};
struct xen_netif_extra {
    uint8_t type, flags; /* flags bit 0: another extra follows */
    union {
        struct {
            uint16_t size; /* of XEN_NETIF_EXTRA_GSO: bytes of payload in each segment */
            uint8_t gso_type, pad;
            uint16_t features;
        };
        struct { uint8_t type, algorithm, value[4]; } hash; /* of XEN_NETIF_EXTRA_HASH; type: a bit's number */
    };
};
XEN_ASSERT(sizeof(struct xen_netif_tx_request) == 12 && sizeof(struct xen_netif_rx_response) == 8 &&
           sizeof(struct xen_netif_extra) == 8, "network ring");
#define XEN_NETTXF_csum_blank 1u     /* the checksum covers the pseudo header only */
#define XEN_NETTXF_data_validated 2u
#define XEN_NETRXF_data_validated 1u /* the other way round in this direction */
#define XEN_NETRXF_csum_blank 2u
#define XEN_NETIF_more_data 4u
#define XEN_NETIF_extra_info 8u
#define XEN_NETIF_EXTRA_GSO 1u
#define XEN_NETIF_EXTRA_HASH 4u
#define XEN_NETIF_EXTRA_MORE 1u
#define XEN_NETIF_GSO_TCPV4 1u
#define XEN_NETIF_GSO_TCPV6 2u
#define XEN_NETIF_OKAY 0
#define XEN_NETIF_ERROR (-1)
#define XEN_NETIF_DROPPED (-2)
#define XEN_NETIF_NULL 1            /* the response to an entry that held extra information */
#define XEN_NETIF_SLOTS 18u         /* of one packet: what every back end takes */

/* The control ring: how the back end chooses the queue of a packet for the guest. */
struct xen_netif_ctrl_request {
    uint16_t id, type;
    uint32_t data[3];
};
struct xen_netif_ctrl_response {
    uint16_t id, type;
    uint32_t status, data;
};
XEN_ASSERT(sizeof(struct xen_netif_ctrl_request) == 16 && sizeof(struct xen_netif_ctrl_response) == 12, "control ring");
enum xen_netif_ctrl {
    XEN_NETIF_CTRL_get_hash_flags = 1,    /* data: XEN_NETIF_HASH_* that can be had */
    XEN_NETIF_CTRL_set_hash_flags,        /* the ones that are wanted */
    XEN_NETIF_CTRL_set_hash_key,          /* grant of a page that it begins, bytes */
    XEN_NETIF_CTRL_get_hash_mapping_size, /* data: how many entries there can be */
    XEN_NETIF_CTRL_set_hash_mapping_size, /* entries; all are 0 then */
    XEN_NETIF_CTRL_set_hash_mapping,      /* grant of a page of numbers of queues, how many, from which entry on */
    XEN_NETIF_CTRL_set_hash_algorithm,
};
#define XEN_NETIF_CTRL_SUCCESS 0u
#define XEN_NETIF_CTRL_NOT_SUPPORTED 1u
#define XEN_NETIF_CTRL_INVALID 2u
#define XEN_NETIF_CTRL_OVERFLOW 3u
#define XEN_NETIF_HASH_IPV4 1u     /* of the two addresses */
#define XEN_NETIF_HASH_IPV4_TCP 2u /* and the two ports */
#define XEN_NETIF_HASH_IPV6 4u
#define XEN_NETIF_HASH_IPV6_TCP 8u
#define XEN_NETIF_HASH_NONE 0u     /* algorithms */
#define XEN_NETIF_HASH_TOEPLITZ 1u
#endif
