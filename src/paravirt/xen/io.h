/*
 * io.h - what the back ends of split drivers share: grants, event channels, rings, xenstore as domain 0 sees it. Inside this
 * folder only.
 *
 * Locks: a device's own (of a ring, a queue) before x->lock; with x->lock held nobody calls a disk, a network or a device.
 */
#pragma once
#include "paravirt/xen/inner.h"
#include "vitro/xen_io.h"

#define GRANT_FRAMES 32u
#define GRANTS (GRANT_FRAMES * (u32)(PAGE_SIZE / sizeof(struct xen_grant_entry)))
#define DOM_GUEST 1u

/* -- grant.c; all with x->lock held ----------------------------------------------------------------------------- */
xen_call_fn xen_grant_table_op;
int grants_create(struct xen *x);
void grants_destroy(struct xen *x);
/*
 * grant_get - begin to use a page that the guest granted to domain 0: read it, or (write) read and write it. A page that
 * is written is no page table meanwhile.
 * @frame: out: which of the guest's
 *
 * XEN_GNTST_okay; bad_gntref: there is no such grant; permission_denied: not for us, or read-only; bad_page: it is not a
 * page of the guest's, or one that may not be written.
 */
enum xen_gntst grant_get(struct xen *x, u32 ref, bool write, u64 *frame);
/* grant_put - the end of it. written: the page's contents changed. */
void grant_put(struct xen *x, u32 ref, bool write, u64 frame, bool written);
/* grant_page - where a frame that grant_get() gave is. */
static inline u8 *grant_page(const struct xen *x, u64 frame) { return x->c.host + (frame << PAGE_SHIFT); }
