/*
 * native_calls.c - the table of calls, and the calls about the system itself. Contract: include/vitro/abi.h.
 */
#include "paravirt/native_inner.h"
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* -- The table ------------------------------------------------------------------------------------- */

static const struct call {
    s64 (*fn)(struct native *n, unsigned vcpu, const u64 *a);
} calls[VT_NR_CALLS] = {
#define VT_CALL(number, name, nr_args, since, args, result, errors, cost) [number] = { native_##name },
#include "vitro/hypercalls.def"
#undef VT_CALL
};

/* The feature bit of a call's group; the ranges are those of abi.h. */
static u32 group_of(u64 number)
{
    static const struct {
        u8 first;
        u32 feature;
    } group[] = {
        { 0x58, VT_FEATURE_NET },   { 0x50, VT_FEATURE_BLOCK },   { 0x40, VT_FEATURE_VCPU },   { 0x38, VT_FEATURE_EVENT },
        { 0x30, VT_FEATURE_TIME },  { 0x20, VT_FEATURE_BALLOON }, { 0x10, VT_FEATURE_MEMORY },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(group); i++)
        if (number >= group[i].first)
            return group[i].feature;
    return VT_FEATURE_SYSTEM;
}

u32 native_features(const struct native *n)
{
    const struct native_ops *o = &n->ops;
    u32 f = VT_FEATURE_SYSTEM | VT_FEATURE_EVENT | VT_FEATURE_BALLOON;

    if (o->paging && o->load_root && o->flush && o->flush_others && o->populate)
        f |= VT_FEATURE_MEMORY;
    if (n->c.clock)
        f |= VT_FEATURE_TIME;
    if (o->start && o->stop)
        f |= VT_FEATURE_VCPU;
    if (n->c.nr_disks)
        f |= VT_FEATURE_BLOCK;
    if (n->c.nr_nics)
        f |= VT_FEATURE_NET;
    return f;
}

s64 native_call(struct native *n, unsigned vcpu, u64 number, const u64 arg[5])
{
    if (number >= VT_NR_CALLS || !calls[number].fn || !(native_features(n) & group_of(number)))
        return -VT_ENOCALL;
    return calls[number].fn(n, vcpu, arg);
}

/* -- Making and unmaking ------------------------------------------------------------------------------ */

int native_create(const struct native_config *config, struct native **out)
{
    struct native *n = calloc(1, sizeof(*n));
    u64 end = 0;

    if (!n)
        return -ENOMEM;
    n->c = *config;
    n->ops = config->ops;
    bug_on(!n->c.nr_cpus || n->c.nr_cpus > NATIVE_CPUS);
    pthread_mutex_init(&n->lock, NULL);
    for (unsigned i = 0; i < n->c.ram->nr_slots; i++)
        end = MAX(end, n->c.ram->slot[i].gpa + n->c.ram->slot[i].size);
    n->nr_use = end >> PAGE_SHIFT;
    n->use = mmap(NULL, MAX(n->nr_use, 1ull) * sizeof(*n->use), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (n->use == MAP_FAILED) {
        n->use = NULL;
        native_destroy(n);
        return -ENOMEM;
    }
    if (native_block_init(n) || native_net_init(n)) {
        native_destroy(n);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < VT_TIMERS; i++) {
        n->timer[i].n = n;
        n->timer[i].port = VT_PORTS;
    }
    *out = n;
    return 0;
}

void native_pause(struct native *n)
{
    native_block_pause(n, true);
    native_net_pause(n, true);
}

void native_resume(struct native *n)
{
    native_block_pause(n, false);
    native_net_pause(n, false);
}

void native_vcpu_reset(struct native *n, unsigned vcpu)
{
    __atomic_store_n(&n->cpu[vcpu].vector, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&n->cpu[vcpu].upcall, false, __ATOMIC_SEQ_CST);
}

void native_destroy(struct native *n)
{
    native_net_fini(n);
    native_block_fini(n);
    if (n->use)
        munmap(n->use, MAX(n->nr_use, 1ull) * sizeof(*n->use));
    free(n->pool);
    pthread_mutex_destroy(&n->lock);
    free(n);
}

/* -- Guest memory --------------------------------------------------------------------------------------- */

s64 native_copy_in(struct native *n, u64 pa, void *buf, u64 len)
{
    if (pa & 7)
        return -VT_EINVAL;
    return ram_read(n->c.ram, pa, buf, len) ? -VT_EFAULT : 0;
}

s64 native_copy_out(struct native *n, u64 pa, const void *buf, u64 len)
{
    if (!ram_dma_ptr(n->c.ram, pa, len))
        return -VT_EFAULT;
    ram_write(n->c.ram, pa, buf, len);
    ram_written(n->c.ram, pa, len);
    return 0;
}



#define CHUNK 4096u /* bytes of a batch that are on the stack at a time */

s64 native_batch(struct native *n, unsigned vcpu, u64 pa, u64 count, unsigned size, unsigned result_at, native_one *one,
                 void *opaque, pthread_mutex_t *lock)
{
    u8 buf[CHUNK] __attribute__((aligned(8)));
    unsigned per = CHUNK / size;

    if (pa & 7)
        return -VT_EINVAL;
    if (count > VT_BATCH_MAX)
        return -VT_E2BIG;
    u8 *host = ram_dma_ptr(n->c.ram, pa, count ? count * size : 1);
    if (!host)
        return -VT_EFAULT;
    for (u64 done = 0; done < count;) {
        unsigned nr = (unsigned)MIN(count - done, (u64)per), k = 0;
        s64 r = 0;

        memcpy(buf, host + done * size, nr * size);
        if (lock)
            pthread_mutex_lock(lock);
        while (k < nr && !r) {
            r = one(n, vcpu, buf + k * size, opaque);
            __atomic_store_n((s32 *)(host + (done + k) * size + result_at), (s32)r, __ATOMIC_RELAXED);
            k += !r;
        }
        if (lock)
            pthread_mutex_unlock(lock);
        ram_written(n->c.ram, pa + done * size, nr * size);
        done += k;
        if (r)
            return (s64)done;
    }
    return (s64)count;
}

/* -- Calls: the system ------------------------------------------------------------------------------------- */

s64 native_NOP(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)n, (void)vcpu, (void)a;
    return 0;
}

static bool may_nest(u64 number)
{
    return number != VT_MULTI && number != VT_SHUTDOWN && number != VT_VCPU_STOP;
}

s64 native_MULTI(struct native *n, unsigned vcpu, const u64 *a)
{
    u64 pa = a[0], count = a[1], first_bad;
    bool all = a[2] & VT_MULTI_ALL;

    if ((pa & 7) || (a[2] & ~(u64)VT_MULTI_ALL))
        return -VT_EINVAL;
    if (count > VT_MULTI_MAX)
        return -VT_E2BIG;
    if (count && !ram_dma_ptr(n->c.ram, pa, count * sizeof(struct vt_call)))
        return -VT_EFAULT;
    first_bad = count;
    for (u64 i = 0; i < count; i++) {
        u64 at = pa + i * sizeof(struct vt_call);
        struct vt_call c;
        ram_read(n->c.ram, at, &c, sizeof(c));
        c.result = c.reserved || c.reserved2 || !may_nest(c.number) ? -VT_EINVAL : native_call(n, vcpu, c.number, c.arg);
        native_copy_out(n, at + offsetof(struct vt_call, result), &c.result, sizeof(c.result));
        if (c.result < 0) {
            first_bad = MIN(first_bad, i);
            if (!all)
                break;
        }
    }
    return (s64)first_bad;
}

s64 native_SHUTDOWN(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)vcpu;
    if (a[0] > VT_SHUTDOWN_EXIT || a[1] > 127)
        return -VT_EINVAL;
    if (!n->ops.shutdown)
        return -VT_ENOCALL;
    n->ops.shutdown(n->ops.opaque, (enum vt_shutdown)a[0], (unsigned)a[1]);
    return 0;
}

s64 native_LOG(struct native *n, unsigned vcpu, const u64 *a)
{
    char text[VT_LOG_MAX];

    (void)vcpu;
    if (a[0] > VT_LOG_DEBUG || !a[2])
        return -VT_EINVAL;
    if (a[2] > VT_LOG_MAX)
        return -VT_E2BIG;
    if (ram_read(n->c.ram, a[1], text, a[2]))
        return -VT_EFAULT;
    /* What a guest says must not move the cursor of whoever reads the log. */
    for (u64 i = 0; i < a[2]; i++)
        if ((u8)text[i] < ' ' || (u8)text[i] == 0x7f)
            text[i] = ' ';
    if (n->ops.log)
        n->ops.log(n->ops.opaque, (unsigned)a[0], text, a[2]);
    return 0;
}

s64 native_TRACE(struct native *n, unsigned vcpu, const u64 *a)
{
    if (n->ops.trace)
        n->ops.trace(n->ops.opaque, vcpu, a[0], a[1], a[2]);
    return 0;
}

s64 native_VCPU_COUNT(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)vcpu, (void)a;
    return n->c.nr_cpus;
}

s64 native_VCPU_START(struct native *n, unsigned vcpu, const u64 *a)
{
    struct vt_start start;

    if (a[0] >= n->c.nr_cpus)
        return -VT_ENOENT;
    s64 r = native_copy_in(n, a[1], &start, sizeof(start));
    if (r)
        return r;
    /* Canonical, and tables in RAM: a vCPU that starts with a fault it cannot take would end the guest. */
    if ((u64)((s64)(start.rip << 16) >> 16) != start.rip || (start.cr3 & ~PAGE_MASK) ||
        !ram_ptr(n->c.ram, start.cr3, PAGE_SIZE))
        return -VT_EINVAL;
    return n->ops.start(n->ops.opaque, vcpu, (unsigned)a[0], &start);
}

s64 native_VCPU_STOP(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)a;
    return n->ops.stop(n->ops.opaque, vcpu);
}

s64 native_VCPU_YIELD(struct native *n, unsigned vcpu, const u64 *a)
{
    (void)n, (void)vcpu, (void)a;
    sched_yield();
    return 0;
}
