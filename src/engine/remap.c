/*
 * remap.c - other memory at a guest-physical address while the guest runs: shadow RAM against ROM, a frame buffer
 * that moves. Translations of the old bytes go at once, under the cache's lock; each vCPU flushes its own TLB: the one
 * whose port write caused it before its next instruction, others at their next event poll.
 */
#include "libvitro.h"

#include <errno.h>

#include "engine/engine.h"

void engine_kill_code(struct vm *vm, const struct ram_slot *rs)
{
    for (u64 off = 0; off < rs->size; off += PAGE_SIZE) {
        bool left;
        if (rs->page_state[off >> PAGE_SHIFT] & PAGE_HAS_CODE)
            cache_kill_range(NULL, vm->cache, rs->gpa + off, PAGE_SIZE, NULL, &left);
    }
}

void engine_remapped(struct vm *vm)
{
    __atomic_fetch_add(&vm->map_gen, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&vm->lock);
    for (unsigned i = 0; i < ARRAY_SIZE(vm->vcpu); i++)
        if (vm->vcpu[i])
            __atomic_fetch_or(&vm->vcpu[i]->event, EVENT_RESCHED, __ATOMIC_SEQ_CST);
}

int vitro_vm_set_memory(struct vitro_vm *pub, uint64_t gpa, void *host, unsigned flags)
{
    struct vm *vm = (struct vm *)pub; /* its only member */
    struct ram_slot *rs = ram_find(&vm->ram, gpa);
    if (!rs || rs->gpa != gpa || ((u64)host & ~PAGE_MASK))
        return -EINVAL;
    pthread_mutex_lock(&vm->lock);
    engine_kill_code(vm, rs);
    rs->host = host;
    rs->readonly = flags & VITRO_MEM_READONLY;
    engine_remapped(vm);
    return 0;
}

void engine_see_remap(struct vcpu *v)
{
    u32 gen = __atomic_load_n(&v->vm->map_gen, __ATOMIC_ACQUIRE);
    if (gen == v->eng->map_seen)
        return;
    v->eng->map_seen = gen;
    v->eng->smp.split_of[0] = v->eng->smp.split_of[1] = NULL;
    tlb_flush_all(v, true);
}
