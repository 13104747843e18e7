/*
 * ring.c - shared rings of requests and responses, from the back end's side. Source: Xen's public io/ring.h.
 *
 * Barriers: a request is read after req_prod (acquire; the front end's is in its push), a response is written before rsp_prod
 * (release). Who sleeps says so in an event field, then looks at the other's producer once more; who produces looks at
 * the event field after it: both fully fenced.
 */
#include "paravirt/xen/io.h"
#include <stdio.h>
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

/* As many entries as fit, rounded down to a power of two. */
static void ring_size(struct xen_ring *r)
{
    u64 fit = (r->nr_pages * PAGE_SIZE - sizeof(struct xen_ring_header)) / r->entry;

    for (r->size = 1; r->size * 2 <= fit; r->size *= 2)
        ;
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
    ring_size(r);
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

/* -- Snapshots: where its pages are, and how far we are ------------------------------------------------------ */

/* clang-format off */
static const struct state_field ring_fields[] = {
    STATE(struct xen_ring, frame), STATE(struct xen_ring, ref), STATE(struct xen_ring, nr_pages), STATE(struct xen_ring, req_cons),
    STATE(struct xen_ring, rsp_prod), STATE(struct xen_ring, rsp_seen), STATE(struct xen_ring, broken), STATE_END
};
/* clang-format on */

void ring_save(const struct xen_ring *r, struct state_set *set, const char *name)
{
    state_set_save(set, name, ring_fields, r);
}

int ring_load(struct xen *x, struct xen_ring *r, unsigned pages_max, unsigned entry, struct state_set *set, const char *name,
              char *err, size_t err_len)
{
    struct xen_ring s = { 0 };
    int ret = state_set_load(set, name, ring_fields, &s, err, err_len);

    if (ret)
        return ret;
    if (!s.nr_pages || s.nr_pages > pages_max)
        return xen_impossible(err, err_len, name, "ring");
    *r = (struct xen_ring){ .entry = entry, .req_cons = s.req_cons, .rsp_prod = s.rsp_prod, .rsp_seen = s.rsp_seen,
                            .broken = s.broken };
    for (unsigned i = 0; i < s.nr_pages; i++) {
        if (!grant_load(x, s.ref[i], true, s.frame[i])) {
            ring_unmap(x, r);
            return xen_impossible(err, err_len, name, "page");
        }
        r->ref[i] = s.ref[i];
        r->frame[i] = s.frame[i];
        r->page[i] = grant_page(x, s.frame[i]);
        r->nr_pages = i + 1;
    }
    ring_size(r);
    return 0;
}
