/*
 * ring.c - shared rings of requests and responses, from the back end's side. Source: Xen's public io/ring.h.
 *
 * Barriers: a request is read after req_prod (acquire; the front end's is in its push), a response is written before rsp_prod
 * (release). Who sleeps says so in an event field, then looks at the other's producer once more; who produces looks at
 * the event field after it: both fully fenced.
 */
#include "paravirt/xen/io.h"
#include <string.h>

static struct xen_ring_header *header(const struct xen_ring *r) { return (struct xen_ring_header *)r->page[0]; }

/* Entry i lies where the header ends; it may lie across two pages, which need not follow each other. */
static void access(const struct xen_ring *r, u32 i, void *buf, size_t len, bool write)
{
    size_t at = sizeof(struct xen_ring_header) + (size_t)(i & (r->size - 1)) * r->entry;

    for (size_t done = 0; done < len;) {
        size_t n = MIN(len - done, PAGE_SIZE - ((at + done) & (PAGE_SIZE - 1)));
        u8 *p = r->page[(at + done) >> PAGE_SHIFT] + ((at + done) & (PAGE_SIZE - 1));
        memcpy(write ? p : (u8 *)buf + done, write ? (u8 *)buf + done : p, n);
        done += n;
    }
}

bool ring_map(struct xen *x, struct xen_ring *r, const u32 *ref, unsigned nr_pages, unsigned entry)
{
    *r = (struct xen_ring){ .entry = entry };
    bug_on(!nr_pages || nr_pages > RING_PAGES_MAX);
    for (unsigned i = 0; i < nr_pages; i++) {
        if (grant_get(x, ref[i], true, &r->frame[i])) {
            ring_unmap(x, r);
            return false;
        }
        r->ref[i] = ref[i];
        r->page[i] = grant_page(x, r->frame[i]);
        r->nr_pages = i + 1;
    }
    u64 fit = (nr_pages * PAGE_SIZE - sizeof(struct xen_ring_header)) / entry;
    for (r->size = 1; r->size * 2 <= fit; r->size *= 2)
        ;
    r->req_cons = r->rsp_prod = r->rsp_seen = __atomic_load_n(&header(r)->rsp_prod, __ATOMIC_ACQUIRE);
    return true;
}

void ring_unmap(struct xen *x, struct xen_ring *r)
{
    while (r->nr_pages) {
        r->nr_pages--;
        grant_put(x, r->ref[r->nr_pages], true, r->frame[r->nr_pages], true);
    }
}

u32 ring_waiting(struct xen_ring *r)
{
    u32 prod = __atomic_load_n(&header(r)->req_prod, __ATOMIC_ACQUIRE);

    if (prod - r->rsp_prod > r->size || prod - r->req_cons > r->size)
        r->broken = true;
    return r->broken ? 0 : prod - r->req_cons;
}

bool ring_take(struct xen_ring *r, void *req, size_t len)
{
    if (!ring_waiting(r))
        return false;
    access(r, r->req_cons++, req, len, false);
    return true;
}

bool ring_rest(struct xen_ring *r, u32 more)
{
    __atomic_store_n(&header(r)->req_event, r->req_cons + more + 1, __ATOMIC_SEQ_CST);
    return ring_waiting(r) > more;
}

void ring_answer(struct xen_ring *r, const void *rsp, size_t len)
{
    access(r, r->rsp_prod++, (void *)rsp, len, true);
}

bool ring_publish(struct xen_ring *r)
{
    u32 old = r->rsp_seen, new = r->rsp_prod;

    r->rsp_seen = new;
    __atomic_store_n(&header(r)->rsp_prod, new, __ATOMIC_SEQ_CST);
    return ring_awaits(r, old);
}

bool ring_awaits(const struct xen_ring *r, u32 told)
{
    return r->rsp_seen - __atomic_load_n(&header(r)->rsp_event, __ATOMIC_SEQ_CST) < r->rsp_seen - told;
}
