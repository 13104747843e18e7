/*
 * dma.c - devices write guest memory behind the engine's back: translations made from those bytes must go.
 *
 * A device thread cannot drop a block that a vCPU may be running, so it leaves a note and sets an event bit before the guest
 * can learn of the data; each vCPU works the notes off at its next event poll. That comes before old code runs:
 * - told by an interrupt: that is an event too, and notes are looked at first (handle_events());
 * - by a port or a doorbell that returns when the data is there: events are looked at behind it (engine_sys(),
 *   engine_commit());
 * - by polling memory in a loop: its backward edge polls, and so does every indirect jump (ENTRY_IND);
 * - by one look at memory that finds it done, a direct forward jump or a return behind it: code that another agent wrote
 *   may be run only after a serializing instruction (SDM vol. 3 §8.1.3, "cross-modifying code"), and each of those
 *   (§8.3) ends its block or is a helper. Without one the old bytes may run here as there.
 * Threads: vitro_vm_memory_written() any; engine_drop_written() on a vCPU's, between two blocks.
 */
#include "libvitro.h"

#include "engine/engine.h"

void vitro_vm_memory_written(struct vitro_vm *pub, uint64_t gpa, uint64_t len)
{
    struct vm *vm = (struct vm *)pub; /* its only member */
    bool noted = false;
    while (len) {
        unsigned n = (unsigned)MIN(len, PAGE_SIZE - (gpa & ~PAGE_MASK));
        struct ram_slot *rs = ram_find(&vm->ram, gpa);
        unsigned state = rs ? __atomic_load_n(&rs->page_state[(gpa - rs->gpa) >> PAGE_SHIFT], __ATOMIC_ACQUIRE) : 0;
        if (state & PAGE_MONITORED)
            mwait_written(vm, gpa, n);
        if (state & PAGE_HAS_CODE) {
            pthread_mutex_lock(&vm->written.lock);
            if (vm->written.nr < ARRAY_SIZE(vm->written.range)) {
                vm->written.range[vm->written.nr].gpa = gpa;
                vm->written.range[vm->written.nr++].len = n;
            } else {
                vm->written.nr = ARRAY_SIZE(vm->written.range) + 1;
            }
            pthread_mutex_unlock(&vm->written.lock);
            noted = true;
        }
        gpa += n;
        len -= n;
    }
    for (unsigned i = 0; noted && i < ARRAY_SIZE(vm->vcpu); i++)
        if (vm->vcpu[i])
            __atomic_fetch_or(&vm->vcpu[i]->event, EVENT_RESCHED, __ATOMIC_SEQ_CST);
}

void engine_drop_written(struct vcpu *v)
{
    struct vm *vm = v->vm;
    pthread_mutex_lock(&vm->lock);
    pthread_mutex_lock(&vm->written.lock);
    if (vm->written.nr > ARRAY_SIZE(vm->written.range)) {
        cache_flush(v, vm->cache);
    } else {
        bool left;
        for (unsigned i = 0; i < vm->written.nr; i++)
            cache_kill_range(v, vm->cache, vm->written.range[i].gpa, vm->written.range[i].len, NULL, &left);
    }
    vm->written.nr = 0;
    pthread_mutex_unlock(&vm->written.lock);
    pthread_mutex_unlock(&vm->lock);
}
