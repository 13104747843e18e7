/*
 * native_state.c - contract 2's part of a snapshot: which pages are what, spaces, timers, events, the console's ring, and in
 * native_block.c and native_net.c the rings of devices. The structures themselves are in guest memory, and come with it.
 * Everything is paused. A file is believed no more than a guest.
 */
#include "base/state.h"
#include "paravirt/native_inner.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct saved {
    u64 events, console, timers; /* guest-physical; 0: none */
    u32 console_out_tail, console_in_head, console_port;
    u64 time_tsc, time_mono_ns, time_wall_ns;
    u32 time_mul;
    s32 time_shift;
    u64 root[VT_SPACES_MAX + 1]; /* 0: no such space; a root is never page 0 */
    u64 deadline_ns[VT_TIMERS], period_ns[VT_TIMERS];
    u32 timer_port[VT_TIMERS];
    u8 timer_ready[VT_TIMERS];
    u8 bind[VT_PORTS];
    u32 vector[NATIVE_CPUS];
    u8 upcall[NATIVE_CPUS];
};
/* clang-format off */
static const struct state_field fields[] = {
    STATE(struct saved, events), STATE(struct saved, console), STATE(struct saved, timers),
    STATE(struct saved, timer_ready), STATE(struct saved, console_out_tail),
    STATE(struct saved, console_in_head), STATE(struct saved, console_port), STATE(struct saved, time_tsc),
    STATE(struct saved, time_mono_ns), STATE(struct saved, time_wall_ns), STATE(struct saved, time_mul),
    STATE(struct saved, time_shift), STATE(struct saved, root), STATE(struct saved, deadline_ns),
    STATE(struct saved, period_ns), STATE(struct saved, timer_port), STATE(struct saved, bind), STATE(struct saved, vector),
    STATE(struct saved, upcall), STATE_END
};
/* clang-format on */

/* A page that is not simply the guest's. Those of the pool come first, in its order. */
struct saved_page {
    u32 page, use;
};

u64 native_pa(const struct native *n, const void *ptr)
{
    for (unsigned i = 0; ptr && i < n->c.ram->nr_slots; i++) {
        const struct ram_slot *s = &n->c.ram->slot[i];
        if ((u64)((const u8 *)ptr - s->host) < s->size)
            return s->gpa + (u64)((const u8 *)ptr - s->host);
    }
    return 0;
}

static void save_pages(const struct native *n, struct state_set *set)
{
    struct state_buf buf = { 0 };

    for (u64 i = 0; i < n->nr_pool; i++)
        state_put(&buf, &(struct saved_page){ n->pool[i], USE_POOL }, sizeof(struct saved_page));
    for (u64 i = 0; i < n->nr_use; i++)
        if (n->use[i] != USE_GUEST && n->use[i] != USE_POOL)
            state_put(&buf, &(struct saved_page){ (u32)i, n->use[i] }, sizeof(struct saved_page));
    set->failed |= buf.failed;
    state_set_add(set, "native.pages", buf.data ? buf.data : (u8 *)"", buf.len);
    state_buf_free(&buf);
}

void native_save(struct native *n, struct state_set *set)
{
    struct saved *s = calloc(1, sizeof(*s));

    if (!s) {
        set->failed = true;
        return;
    }
    s->events = native_pa(n, n->events);
    s->console = native_pa(n, n->console);
    s->timers = native_pa(n, n->timers);
    s->console_out_tail = n->console_out_tail;
    s->console_in_head = n->console_in_head;
    s->console_port = n->console_port;
    s->time_tsc = n->time.tsc;
    s->time_mono_ns = n->time.mono_ns;
    s->time_wall_ns = n->time.wall_ns;
    s->time_mul = n->time.mul;
    s->time_shift = n->time.shift;
    for (unsigned i = 1; i <= VT_SPACES_MAX; i++)
        s->root[i] = n->space[i].used ? n->space[i].root : 0;
    for (unsigned i = 0; i < VT_TIMERS; i++) {
        s->deadline_ns[i] = n->timer[i].deadline_ns;
        s->period_ns[i] = n->timer[i].period_ns;
        s->timer_port[i] = n->timer[i].port;
        s->timer_ready[i] = n->timer[i].ready;
    }
    memcpy(s->bind, n->bind, sizeof(s->bind));
    for (unsigned i = 0; i < NATIVE_CPUS; i++) {
        s->vector[i] = n->cpu[i].vector;
        s->upcall[i] = n->cpu[i].upcall;
    }
    state_set_save(set, "native", fields, s);
    free(s);
    save_pages(n, set);
    native_block_save(n, set);
    native_net_save(n, set);
}

static int impossible(char *err, size_t err_len, const char *what)
{
    snprintf(err, err_len, "native: no such %s is possible", what);
    return -EINVAL;
}

static int load_pages(struct native *n, struct state_set *set, char *err, size_t err_len)
{
    size_t len;
    const u8 *bytes = state_set_take(set, "native.pages", &len);
    u64 nr = len / sizeof(struct saved_page), owned = 0;

    if (!bytes || len % sizeof(struct saved_page) || nr > n->nr_use)
        return impossible(err, err_len, "list of pages");
    u32 *pool = malloc(MAX(nr, 1ull) * sizeof(*pool));
    if (!pool) {
        snprintf(err, err_len, "%s", strerror(ENOMEM));
        return -ENOMEM;
    }
    n->nr_pool = n->nr_balloon = 0;
    free(n->pool);
    n->pool = pool;
    for (u64 i = 0; i < nr; i++) {
        struct saved_page p;
        memcpy(&p, bytes + i * sizeof(p), sizeof(p));
        bool known = p.use == USE_BALLOON || p.use == USE_POOL || p.use == USE_OTHER || (p.use && p.use <= VT_SPACES_MAX);
        if (!known || p.page >= n->nr_use || n->use[p.page] != USE_GUEST ||
            !ram_dma_ptr(n->c.ram, (gpa_t)p.page << PAGE_SHIFT, PAGE_SIZE))
            return impossible(err, err_len, "page");
        n->use[p.page] = (u16)p.use;
        n->nr_balloon += p.use == USE_BALLOON;
        owned += p.use != USE_BALLOON;
        if (p.use == USE_POOL)
            pool[n->nr_pool++] = p.page;
    }
    n->cap_pool = owned;
    return 0;
}

static int load_timers(struct native *n, const struct saved *s, char *err, size_t err_len)
{
    for (unsigned i = 0; i < VT_TIMERS; i++) {
        u64 args[5] = { i, 0, s->period_ns[i], s->timer_port[i] };
        if (!s->deadline_ns[i] && !s->timer_ready[i])
            continue;
        if (!n->c.clock || s->deadline_ns[i] > (u64)INT64_MAX * 3 / 2)
            return impossible(err, err_len, "timer");
        s64 r = native_TIMER_SET(n, 0, args); /* off, and judged */
        if (r) {
            return impossible(err, err_len, "timer");
        }
        n->timer[i].deadline_ns = s->deadline_ns[i];
        if (s->deadline_ns[i])
            timer_arm(n->c.clock, &n->timer[i].timer, s->deadline_ns[i]);
    }
    /* Behind TIMER_SET, which would write there. */
    n->timers = s->timers & 63 || (s->timers & ~PAGE_MASK) > PAGE_SIZE - sizeof(*n->timers) || !s->timers ? NULL :
                ram_dma_ptr(n->c.ram, s->timers, sizeof(*n->timers));
    return !n->timers == !s->timers ? 0 : impossible(err, err_len, "address");
}

static int load_rest(struct native *n, const struct saved *s, char *err, size_t err_len)
{
    if ((s->events & ~PAGE_MASK) || (s->console & ~PAGE_MASK) || s->console_port > VT_PORTS)
        return impossible(err, err_len, "address");
    n->events = s->events ? ram_dma_ptr(n->c.ram, s->events, PAGE_SIZE) : NULL;
    n->console = s->console ? ram_dma_ptr(n->c.ram, s->console, PAGE_SIZE) : NULL;
    if (!n->events != !s->events || !n->console != !s->console)
        return impossible(err, err_len, "address");
    n->console_out_tail = s->console_out_tail;
    n->console_in_head = s->console_in_head;
    n->console_port = s->console_port;
    if (s->time_shift < -31 || s->time_shift > 31)
        return impossible(err, err_len, "time");
    n->time = (struct vt_time){ .tsc = s->time_tsc, .mono_ns = s->time_mono_ns, .wall_ns = s->time_wall_ns,
                                .mul = s->time_mul, .shift = s->time_shift };
    for (unsigned i = 1; i <= VT_SPACES_MAX; i++) {
        u64 page = s->root[i] >> PAGE_SHIFT;
        if (s->root[i] && ((s->root[i] & ~PAGE_MASK) || page >= n->nr_use || n->use[page] != i))
            return impossible(err, err_len, "space");
        n->space[i] = (struct native_space){ .root = s->root[i], .used = s->root[i] != 0 };
    }
    for (unsigned i = 0; i < VT_PORTS; i++) {
        if (s->bind[i] >= n->c.nr_cpus)
            return impossible(err, err_len, "port");
        n->bind[i] = s->bind[i];
    }
    for (unsigned i = 0; i < NATIVE_CPUS; i++) {
        if (s->vector[i] > 255 || (s->vector[i] && (s->vector[i] < 32 || i >= n->c.nr_cpus)) || s->upcall[i] > 1)
            return impossible(err, err_len, "upcall");
        n->cpu[i].vector = s->vector[i];
        n->cpu[i].upcall = s->upcall[i];
        if (s->upcall[i] && i < n->c.nr_cpus && n->ops.kick)
            n->ops.kick(n->ops.opaque, i);
    }
    return 0;
}

int native_load(struct native *n, struct state_set *set, char *err, size_t err_len)
{
    struct saved *s = calloc(1, sizeof(*s));
    int r = s ? state_set_load(set, "native", fields, s, err, err_len) : -ENOMEM;

    if (!r)
        r = load_pages(n, set, err, err_len);
    if (!r)
        r = load_rest(n, s, err, err_len);
    if (!r)
        r = load_timers(n, s, err, err_len);
    free(s);
    if (!r)
        r = native_block_load(n, set, err, err_len);
    return r ? r : native_net_load(n, set, err, err_len);
}
