/* state.c - see state.h. All bytes are read before any of them is believed: chips see each other when they work out
 * the rest. */
#include "machine/state.h"
#include "machine/board.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* -- Who has something to keep ----------------------------------------------------------------------- */

static const struct state_field board_state[] = {
    STATE(struct machine, pci_lines), STATE(struct machine, hpet_lines), STATE(struct machine, apics.turn), STATE_END
};

/* machine time, and what the host's clock showed then */
static const struct state_field time_state[] = {
    STATE(struct machine, clock.stopped_ns), STATE(struct machine, stopped_wall_ns), STATE_END
};

static int time_loaded(void *obj)
{
    struct machine *m = obj;
    return m->clock.stopped_ns < 1ull << 62 ? 0 : -EINVAL; /* 146 years: sums of times do not overflow */
}

static int hpet_legacy_loaded(void *obj)
{
    struct machine *m = obj;
    atomic_store(&m->hpet_legacy, m->hpet.config & 2);
    return 0;
}

typedef int part_fn(void *opaque, const struct device_part *part);

/* Call fn for every part, until one returns other than 0. */
static int each_part(struct machine *m, part_fn *fn, void *opaque)
{
    const struct device_part fixed[] = {
        { "time", time_state, .obj = m, .loaded = time_loaded },
        { "board", board_state, .obj = m },
        { .name = "hpet.legacy", .obj = m, .loaded = hpet_legacy_loaded },
        { "i8259", i8259_state, .obj = &m->pic, .loaded = i8259_loaded },
        { "ioapic", ioapic_state, .obj = &m->ioapic },
        { "i8237", i8237_state, .obj = &m->dma },
        { "fw_cfg", fw_cfg_state, .obj = &m->fw_cfg },
    };
    struct device_part part;
    int r = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(fixed) && !r; i++)
        r = fn(opaque, &fixed[i]);
    for (unsigned i = 0; i < m->apics.nr && !r; i++) {
        part = (struct device_part){ .state = lapic_state, .obj = &m->apics.cpu[i], .loaded = lapic_loaded };
        snprintf(part.name, sizeof(part.name), "lapic.%u", i);
        r = fn(opaque, &part);
    }
    for (unsigned i = 0; board_device(i) && !r; i++) {
        const struct board_device *d = board_device(i);
        part = (struct device_part){ .state = d->class->state, .obj = (char *)m + d->at,
                                     .loaded = d->class->loaded };
        snprintf(part.name, sizeof(part.name), "%s", d->class->name);
        r = fn(opaque, &part);
    }
    for (unsigned i = 0; i < m->nr_parts && !r; i++)
        r = fn(opaque, &m->part[i]);
    return r;
}

int machine_add_part(struct machine *m, const struct device_part *part)
{
    struct device_part *more = realloc(m->part, (m->nr_parts + 1) * sizeof(*more));

    if (!more)
        return -ENOMEM;
    m->part = more;
    m->part[m->nr_parts++] = *part;
    return 0;
}

void machine_quiesce(struct machine *m)
{
    for (unsigned i = 0; i < m->nr_parts; i++)
        if (m->part[i].quiesce)
            m->part[i].quiesce(m->part[i].obj);
}

void machine_unquiesce(struct machine *m)
{
    for (unsigned i = 0; i < m->nr_parts; i++)
        if (m->part[i].resume)
            m->part[i].resume(m->part[i].obj);
}

/* -- Saving, loading ------------------------------------------------------------------------------------ */

struct loading {
    struct state_set *set;
    char *err;
    size_t err_len;
};

static int save_bytes(const struct loading *l, const struct device_part *part)
{
    struct state_buf buf = { 0 };
    const char *why = "out of memory";
    int r = part->save(part->obj, &buf, &why);

    if (r)
        snprintf(l->err, l->err_len, "%s: %s", part->name, why);
    else
        state_set_add(l->set, part->name, buf.data ? buf.data : (u8 *)"", buf.len);
    l->set->failed |= buf.failed;
    state_buf_free(&buf);
    return r;
}

static int save_part(void *opaque, const struct device_part *part)
{
    const struct loading *l = opaque;
    const char *why = part->refuse ? part->refuse(part->obj) : NULL;

    if (why) {
        snprintf(l->err, l->err_len, "%s: %s", part->name, why);
        return -EOPNOTSUPP;
    }
    if (part->state)
        state_set_save(l->set, part->name, part->state, part->obj);
    return part->save ? save_bytes(l, part) : 0;
}

int machine_save(struct machine *m, struct state_set *set, char *err, size_t err_len)
{
    struct loading l = { set, err, err_len };

    uart_flush(&m->uart);
    pthread_mutex_lock(&m->irq_lock);
    for (unsigned i = 0; i < m->apics.nr; i++)
        lapic_settle(&m->apics.cpu[i]);
    pthread_mutex_unlock(&m->irq_lock);
    int r = each_part(m, save_part, &l);
    return r ? r : pci_save(&m->pci, set, err, err_len);
}

static int load_part(void *opaque, const struct device_part *part)
{
    const struct loading *l = opaque;
    size_t len;

    if (!part->load)
        return part->state ? state_set_load(l->set, part->name, part->state, part->obj, l->err, l->err_len) : 0;
    const void *bytes = state_set_take(l->set, part->name, &len);
    int r = bytes ? part->load(part->obj, bytes, len) : -EINVAL;
    if (r)
        snprintf(l->err, l->err_len, "%s: %s", part->name, bytes ? "no such state is possible" : "is missing");
    return r;
}

static int judge_part(void *opaque, const struct device_part *part)
{
    const struct loading *l = opaque;

    if (!part->loaded || !part->loaded(part->obj))
        return 0;
    snprintf(l->err, l->err_len, "%s: no such state is possible", part->name);
    return -EINVAL;
}

int machine_load(struct machine *m, struct state_set *set, char *err, size_t err_len)
{
    struct loading l = { set, err, err_len };
    int r = each_part(m, load_part, &l);

    if (!r)
        r = pci_load(&m->pci, set, err, err_len);
    if (!r)
        r = each_part(m, judge_part, &l);
    if (!r)
        pci_loaded(&m->pci);
    return r;
}
