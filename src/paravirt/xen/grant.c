/*
 * grant.c - grant tables, version 1: the guest says which of its pages another domain may use, our back ends use them.
 * Source: Xen's public grant_table.h.
 *
 * The other domain is domain 0, which is us: grant_get(). The hypercalls by which a guest uses grants of somebody else's work
 * for what it granted to itself; nobody else is there to grant it anything, or to take a page that is transferred.
 * Entries are the guest's to write at any time: one look, checked, and a private note of what was found in it.
 * Not done: version 2, status frames, unmap_and_replace, cache flushes.
 */
#include "paravirt/xen/io.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAPPINGS 4096u
#define LIST_MAX (1u << 16)

struct mapping {
    u64 frame, pte; /* pte: machine address of the entry that maps it; ~0: none, for a device only */
    u32 ref;
    bool used, write;
};

struct grants {
    struct xen_grant_entry *table;           /* in pages that the guest may map and write */
    u32 nr_frames;
    struct { u16 reads, writes; } use[GRANTS]; /* how often each is in use; reads: any use */
    struct mapping map[MAPPINGS];
};

int grants_create(struct xen *x)
{
    x->grants = calloc(1, sizeof(*x->grants));
    if (!x->grants)
        return -ENOMEM;
    x->grants->table = (struct xen_grant_entry *)(x->own + PAGE_SIZE);
    x->grants->nr_frames = 1;
    return 0;
}

void grants_destroy(struct xen *x)
{
    free(x->grants);
}

/* -- Using what was granted ----------------------------------------------------------------------------------- */

/* For domain `to`. */
static enum xen_gntst get(struct xen *x, u32 ref, u16 to, bool write, u64 *frame)
{
    struct grants *g = x->grants;

    if (ref >= g->nr_frames * (PAGE_SIZE / sizeof(g->table[0])) || g->use[ref].reads == 0xffff)
        return XEN_GNTST_bad_gntref;
    struct xen_grant_entry *e = &g->table[ref];
    u32 *word = (u32 *)e, old = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    u32 in_use = XEN_GTF_reading | (write ? XEN_GTF_writing : 0);
    do {
        if ((old & XEN_GTF_type) != XEN_GTF_permit_access)
            return XEN_GNTST_bad_gntref;
        if (old >> 16 != to || (write && (old & XEN_GTF_readonly)))
            return XEN_GNTST_permission_denied;
    } while (!__atomic_compare_exchange_n(word, &old, old | in_use, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE));

    u64 mfn = __atomic_load_n(&e->frame, __ATOMIC_RELAXED);
    if (mfn >= x->nr_frames || (write && frame_get(x, mfn, FRAME_WRITABLE))) {
        u32 left = (g->use[ref].reads ? XEN_GTF_reading : 0) | (g->use[ref].writes ? XEN_GTF_writing : 0);
        __atomic_fetch_and(&e->flags, (u16)~(in_use & ~left), __ATOMIC_SEQ_CST);
        return XEN_GNTST_bad_page;
    }
    g->use[ref].reads++;
    g->use[ref].writes += write;
    *frame = mfn;
    return XEN_GNTST_okay;
}

enum xen_gntst grant_get(struct xen *x, u32 ref, bool write, u64 *frame)
{
    return get(x, ref, 0, write, frame);
}

void grant_put(struct xen *x, u32 ref, bool write, u64 frame, bool written)
{
    struct grants *g = x->grants;
    u16 gone = 0;

    bug_on(ref >= GRANTS || !g->use[ref].reads || (write && !g->use[ref].writes));
    if (written)
        ram_written(x->c.ram, frame << PAGE_SHIFT, PAGE_SIZE);
    if (write) {
        frame_put(x, frame);
        if (!--g->use[ref].writes)
            gone |= XEN_GTF_writing;
    }
    if (!--g->use[ref].reads)
        gone |= XEN_GTF_reading;
    if (gone)
        __atomic_fetch_and(&g->table[ref].flags, (u16)~gone, __ATOMIC_SEQ_CST);
}

/* -- Snapshots ------------------------------------------------------------------------------------------------ */

static const struct state_field grant_fields[] = { STATE(struct grants, nr_frames), STATE_END };

struct saved_mapping {
    u64 frame, pte;
    u32 ref, handle;
    u64 write;
};

void grants_save(const struct xen *x, struct state_set *set)
{
    const struct grants *g = x->grants;
    struct state_buf buf = { 0 };

    state_set_save(set, "xen.grants", grant_fields, g);
    for (u32 i = 0; i < MAPPINGS; i++) {
        const struct mapping *m = &g->map[i];
        if (m->used)
            state_put(&buf, &(struct saved_mapping){ m->frame, m->pte, m->ref, i, m->write }, sizeof(struct saved_mapping));
    }
    xen_save_list(set, "xen.mappings", &buf);
}

bool grant_load(struct xen *x, u32 ref, bool write, u64 frame)
{
    struct grants *g = x->grants;

    if (ref >= g->nr_frames * (PAGE_SIZE / sizeof(g->table[0])) || g->use[ref].reads == 0xffff || frame >= x->nr_frames ||
        (write && frame_get(x, frame, FRAME_WRITABLE)))
        return false;
    g->use[ref].reads++;
    g->use[ref].writes += write;
    return true;
}

int grants_load(struct xen *x, struct state_set *set, char *err, size_t err_len)
{
    struct grants *g = x->grants;
    size_t nr;
    int r = state_set_load(set, "xen.grants", grant_fields, g, err, err_len);
    const u8 *bytes = r ? NULL : xen_load_list(set, "xen.mappings", sizeof(struct saved_mapping), &nr, err, err_len);

    if (!r && (!g->nr_frames || g->nr_frames > GRANT_FRAMES))
        return xen_impossible(err, err_len, "xen.grants", "table");
    for (size_t i = 0; bytes && i < nr; i++) {
        struct saved_mapping s;
        memcpy(&s, bytes + i * sizeof(s), sizeof(s));
        if (s.handle >= MAPPINGS || g->map[s.handle].used || s.write > 1 ||
            (s.pte != ~0ull && (s.pte & 7 || s.pte >> PAGE_SHIFT >= x->nr_frames)) || !grant_load(x, s.ref, s.write, s.frame))
            return xen_impossible(err, err_len, "xen.mappings", "mapping");
        g->map[s.handle] = (struct mapping){ .frame = s.frame, .pte = s.pte, .ref = s.ref, .used = true, .write = s.write };
    }
    return bytes ? 0 : -EINVAL;
}

/* -- The table ---------------------------------------------------------------------------------------------------- */

static bool is_self(u16 dom) { return dom == XEN_DOMID_SELF || dom == DOM_GUEST; }

static s64 setup_table(struct xen *x, struct vitro_vcpu *v, u64 at)
{
    struct xen_gnttab_setup s;

    if (vitro_vcpu_copy_in(v, at, &s, sizeof(s)))
        return -XEN_EFAULT;
    s.status = !is_self(s.dom) ? XEN_GNTST_bad_domain : s.nr_frames > GRANT_FRAMES ? XEN_GNTST_general_error : XEN_GNTST_okay;
    if (!s.status) {
        x->grants->nr_frames = MAX(x->grants->nr_frames, s.nr_frames);
        for (u32 i = 0; i < s.nr_frames; i++) {
            u64 mfn = (x->own_gpa >> PAGE_SHIFT) + 1 + i;
            if (vitro_vcpu_copy_out(v, s.frame_list + i * 8ull, &mfn, 8))
                return -XEN_EFAULT;
        }
    }
    return vitro_vcpu_copy_out(v, at, &s, sizeof(s)) ? -XEN_EFAULT : 0;
}

static s64 query_size(struct xen *x, struct vitro_vcpu *v, u64 at)
{
    struct xen_gnttab_query q;

    if (vitro_vcpu_copy_in(v, at, &q, sizeof(q)))
        return -XEN_EFAULT;
    q.nr_frames = x->grants->nr_frames;
    q.max_nr_frames = GRANT_FRAMES;
    q.status = is_self(q.dom) ? XEN_GNTST_okay : XEN_GNTST_bad_domain;
    return vitro_vcpu_copy_out(v, at, &q, sizeof(q)) ? -XEN_EFAULT : 0;
}

static s64 version(struct vitro_vcpu *v, u64 at, bool set)
{
    struct xen_gnttab_get_version q;
    u32 wanted;

    if (set) {
        if (vitro_vcpu_copy_in(v, at, &wanted, sizeof(wanted)))
            return -XEN_EFAULT;
        return wanted == 1 ? 0 : wanted == 2 ? -XEN_ENOSYS : -XEN_EINVAL;
    }
    if (vitro_vcpu_copy_in(v, at, &q, sizeof(q)))
        return -XEN_EFAULT;
    if (!is_self(q.dom))
        return -XEN_EPERM;
    q.version = 1;
    return vitro_vcpu_copy_out(v, at, &q, sizeof(q)) ? -XEN_EFAULT : 0;
}

/* -- A guest that uses grants itself --------------------------------------------------------------------------------- */

/* The machine address of the page-table entry that a mapping is to be in. */
static bool entry_at(struct xen *x, struct xen_cpu *c, u64 host_addr, bool contains_pte, u64 *pte)
{
    u64 table;

    if (contains_pte) {
        *pte = host_addr;
        return !(host_addr & 7) && host_addr >> PAGE_SHIFT < x->nr_frames;
    }
    if (host_addr & ~PAGE_MASK || !mmu_table_of(x, c->kernel_cr3, host_addr, &table))
        return false;
    *pte = (table << PAGE_SHIFT) + (host_addr >> PAGE_SHIFT & 511) * 8;
    return true;
}

static int set_entry(struct xen *x, struct xen_cpu *c, u64 pte, u64 e, u64 host_addr, bool contains_pte)
{
    u64 table = pte >> PAGE_SHIFT;
    int r = x->frame[table].type == FRAME_L1 ? mmu_entry_write(x, table, pte >> 3 & 511, e) : -XEN_EINVAL;

    if (!r)
        mmu_flush_page(x, c, contains_pte ? ~0ull : host_addr);
    return r;
}

static enum xen_gntst map_one(struct xen *x, struct xen_cpu *c, struct xen_gnttab_map *m)
{
    struct grants *g = x->grants;
    bool write = !(m->flags & XEN_GNTMAP_readonly), in_pte = m->flags & XEN_GNTMAP_contains_pte;
    u64 frame, pte = ~0ull;
    u32 h = 0;

    if (!is_self(m->dom))
        return XEN_GNTST_bad_domain;
    if (!(m->flags & (XEN_GNTMAP_host_map | XEN_GNTMAP_device_map)))
        return XEN_GNTST_bad_gntref;
    if ((m->flags & XEN_GNTMAP_host_map) && !entry_at(x, c, m->host_addr, in_pte, &pte))
        return XEN_GNTST_bad_virt_addr;
    while (h < MAPPINGS && g->map[h].used)
        h++;
    if (h == MAPPINGS)
        return XEN_GNTST_no_device_space;
    enum xen_gntst r = get(x, m->ref, DOM_GUEST, write, &frame);
    if (r)
        return r;
    u64 e = frame << PAGE_SHIFT | PTE_P | PTE_A | PTE_D | PTE_NX | (write ? PTE_W : 0) |
            (m->flags & XEN_GNTMAP_application_map ? PTE_U : 0);
    if (pte != ~0ull && set_entry(x, c, pte, e, m->host_addr, in_pte)) {
        grant_put(x, m->ref, write, frame, false);
        return XEN_GNTST_bad_virt_addr;
    }
    g->map[h] = (struct mapping){ .frame = frame, .pte = pte, .ref = m->ref, .used = true, .write = write };
    m->handle = h;
    m->dev_bus_addr = frame << PAGE_SHIFT;
    return XEN_GNTST_okay;
}

static enum xen_gntst unmap_one(struct xen *x, struct xen_cpu *c, const struct xen_gnttab_unmap *u)
{
    struct mapping *m = u->handle < MAPPINGS ? &x->grants->map[u->handle] : NULL;
    u64 pte;

    if (!m || !m->used)
        return XEN_GNTST_bad_handle;
    if (m->pte != ~0ull) {
        bool in_pte = u->host_addr == m->pte;
        if (!entry_at(x, c, u->host_addr, in_pte, &pte) || pte != m->pte)
            return XEN_GNTST_bad_virt_addr;
        u64 e = __atomic_load_n((u64 *)(x->c.host + pte), __ATOMIC_RELAXED);
        if (!(e & PTE_P) || PTE_MFN(e) != m->frame || set_entry(x, c, pte, 0, u->host_addr, in_pte))
            return XEN_GNTST_general_error;
    }
    grant_put(x, m->ref, m->write, m->frame, false);
    m->used = false;
    return XEN_GNTST_okay;
}

static enum xen_gntst side_get(struct xen *x, const struct xen_gnttab_copy_side *s, bool gref, bool write, u64 *frame)
{
    if (!is_self(s->domid))
        return XEN_GNTST_bad_domain;
    if (gref)
        return get(x, (u32)s->frame, DOM_GUEST, write, frame);
    *frame = s->frame;
    return s->frame >= x->nr_frames || (write && frame_get(x, s->frame, FRAME_WRITABLE)) ? XEN_GNTST_bad_page : XEN_GNTST_okay;
}

static void side_put(struct xen *x, const struct xen_gnttab_copy_side *s, bool gref, bool write, u64 frame, bool written)
{
    if (gref) {
        grant_put(x, (u32)s->frame, write, frame, written);
    } else if (write) {
        if (written)
            ram_written(x->c.ram, frame << PAGE_SHIFT, PAGE_SIZE);
        frame_put(x, frame);
    }
}

static enum xen_gntst copy_one(struct xen *x, const struct xen_gnttab_copy *p)
{
    bool from_ref = p->flags & XEN_GNTCOPY_source_gref, to_ref = p->flags & XEN_GNTCOPY_dest_gref;
    u64 from, to;

    if (p->source.offset + (u32)p->len > PAGE_SIZE || p->dest.offset + (u32)p->len > PAGE_SIZE)
        return XEN_GNTST_bad_copy_arg;
    enum xen_gntst r = side_get(x, &p->source, from_ref, false, &from);
    if (r)
        return r;
    r = side_get(x, &p->dest, to_ref, true, &to);
    if (!r) {
        memmove(grant_page(x, to) + p->dest.offset, grant_page(x, from) + p->source.offset, p->len);
        side_put(x, &p->dest, to_ref, true, to, true);
    }
    side_put(x, &p->source, from_ref, false, from, false);
    return r;
}

/* One element of a list: copied in, done, copied back with its status. */
static s64 one(struct xen *x, struct xen_call *c, u32 op, u64 at)
{
    struct vitro_vcpu *v = c->cpu->vcpu;
    union {
        struct xen_gnttab_map map;
        struct xen_gnttab_unmap unmap;
        struct xen_gnttab_copy copy;
        struct xen_gnttab_transfer transfer;
    } u;
    size_t len = op == XEN_GNTTABOP_map_grant_ref ? sizeof(u.map) : op == XEN_GNTTABOP_copy ? sizeof(u.copy) : sizeof(u.unmap);

    if (vitro_vcpu_copy_in(v, at, &u, len))
        return -XEN_EFAULT;
    switch (op) {
    case XEN_GNTTABOP_map_grant_ref: u.map.status = (s16)map_one(x, c->cpu, &u.map); break;
    case XEN_GNTTABOP_unmap_grant_ref: u.unmap.status = (s16)unmap_one(x, c->cpu, &u.unmap); break;
    case XEN_GNTTABOP_copy: u.copy.status = (s16)copy_one(x, &u.copy); break;
    default: /* nobody is there to take it */
        u.transfer.status = (s16)(u.transfer.mfn >= x->nr_frames ? XEN_GNTST_bad_page : XEN_GNTST_bad_domain);
    }
    return vitro_vcpu_copy_out(v, at, &u, len) ? -XEN_EFAULT : 0;
}

s64 xen_grant_table_op(struct xen *x, struct xen_call *c)
{
    static const u8 stride[] = {
        [XEN_GNTTABOP_map_grant_ref] = sizeof(struct xen_gnttab_map), [XEN_GNTTABOP_unmap_grant_ref] = sizeof(struct xen_gnttab_unmap),
        [XEN_GNTTABOP_transfer] = sizeof(struct xen_gnttab_transfer), [XEN_GNTTABOP_copy] = sizeof(struct xen_gnttab_copy),
    };
    u32 op = (u32)c->a[0], count = (u32)c->a[2];
    struct vitro_vcpu *v = c->cpu->vcpu;

    switch (op) {
    case XEN_GNTTABOP_setup_table: return count == 1 ? setup_table(x, v, c->a[1]) : -XEN_EINVAL;
    case XEN_GNTTABOP_query_size: return count == 1 ? query_size(x, v, c->a[1]) : -XEN_EINVAL;
    case XEN_GNTTABOP_set_version: return count == 1 ? version(v, c->a[1], true) : -XEN_EINVAL;
    case XEN_GNTTABOP_get_version: return count == 1 ? version(v, c->a[1], false) : -XEN_EINVAL;
    case XEN_GNTTABOP_map_grant_ref: case XEN_GNTTABOP_unmap_grant_ref: case XEN_GNTTABOP_transfer: case XEN_GNTTABOP_copy:
        break;
    default:
        return -XEN_ENOSYS;
    }
    if (count > LIST_MAX)
        return -XEN_E2BIG;
    for (u32 i = 0; i < count; i++) {
        s64 r = one(x, c, op, c->a[1] + (u64)i * stride[op]);
        if (r)
            return r;
    }
    return 0;
}
