/* stats.c - what the engine counted, for people. */
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

struct id_count { unsigned id; u64 n; };
static int by_count(const void *a, const void *b)
{
    const struct id_count *x = a, *y = b;
    return x->n < y->n ? 1 : x->n > y->n ? -1 : 0;
}

static void vcpu_stats(const struct vcpu *v, FILE *out)
{
    const struct engine_vcpu *ev = v->eng;
    fprintf(out, "vcpu %u\n", v->index);
    fprintf(out, "  dispatches %llu, look-ups %llu, links %llu, polls taken %llu\n", (unsigned long long)ev->nr_dispatch,
            (unsigned long long)ev->nr_lookup, (unsigned long long)ev->nr_link, (unsigned long long)ev->nr_poll);
    fprintf(out, "  slow paths %llu, walks %llu, TLB fills %llu, writes to code pages %llu, bounced writes %llu, MMIO %llu\n",
            (unsigned long long)v->nr_slow, (unsigned long long)v->nr_walk, (unsigned long long)v->nr_tlb_fill,
            (unsigned long long)ev->nr_watched, (unsigned long long)ev->nr_commit, (unsigned long long)v->nr_mmio);
    if (ev->nr_windows)
        fprintf(out, "  address spaces given windows %llu, pages mapped %llu, instructions done without %llu\n", (unsigned long long)ev->nr_windows,
                (unsigned long long)ev->nr_window_fills, (unsigned long long)ev->nr_window_steps);
    if (v->vm->smp)
        fprintf(out, "  waits for other vCPUs %llu, asked by them %llu, pauses given away %llu\n", (unsigned long long)ev->smp.nr_waits,
                (unsigned long long)ev->smp.nr_asked, (unsigned long long)ev->smp.nr_yields);
    fprintf(out, "  interrupts %llu, exceptions", (unsigned long long)v->nr_intr);
    for (unsigned i = 0; i < 32; i++)
        if (v->nr_exc[i])
            fprintf(out, " #%u:%llu", i, (unsigned long long)v->nr_exc[i]);
    fprintf(out, ", host signals %llu\n  helpers", (unsigned long long)ev->nr_fault_signal);
    struct id_count top[NR_INSN_IDS];
    unsigned n = 0;
    for (unsigned i = 0; i < NR_INSN_IDS; i++)
        if (v->nr_sys[i])
            top[n++] = (struct id_count){ i, v->nr_sys[i] };
    qsort(top, n, sizeof(top[0]), by_count);
    for (unsigned i = 0; i < n && i < 24; i++)
        fprintf(out, " %s:%llu", insn_name(top[i].id), (unsigned long long)top[i].n);
    fprintf(out, "\n");
}

static u64 sum(const struct vcpu *v, const u16 *ids, unsigned nr)
{
    u64 n = 0;
    for (unsigned i = 0; i < nr; i++)
        n += __atomic_load_n(&v->nr_sys[ids[i]], __ATOMIC_RELAXED);
    return n;
}

void vitro_vm_counters(struct vitro_vm *pub, struct vitro_counters *out)
{
    static const u16 ports[] = { I_IN, I_OUT, I_INS, I_OUTS }, calls[] = { I_VMCALL, I_VMMCALL };
    static const u16 privileged[] = { I_RDMSR, I_WRMSR, I_MOV_CR_R, I_MOV_R_CR, I_MOV_DR_R, I_MOV_R_DR, I_LMSW, I_CLTS,
                                      I_INVLPG, I_INVPCID, I_INVD, I_WBINVD, I_HLT, I_MWAIT, I_CPUID, I_LGDT, I_LIDT, I_LLDT,
                                      I_LTR, I_XSETBV };
    struct vm *vm = (struct vm *)pub;
    *out = (struct vitro_counters){ 0 };
    for (unsigned i = 0; i < ARRAY_SIZE(vm->vcpu); i++) {
        const struct vcpu *v = vm->vcpu[i];
        if (!v)
            continue;
        out->ports += sum(v, ports, ARRAY_SIZE(ports));
        out->privileged += sum(v, privileged, ARRAY_SIZE(privileged));
        out->hypercalls += sum(v, calls, ARRAY_SIZE(calls)) + __atomic_load_n(&v->nr_outer_calls, __ATOMIC_RELAXED);
        out->carried += __atomic_load_n(&v->nr_outer_carried, __ATOMIC_RELAXED);
        out->mmio += __atomic_load_n(&v->nr_mmio, __ATOMIC_RELAXED);
        out->interrupts += __atomic_load_n(&v->nr_intr, __ATOMIC_RELAXED);
        out->page_faults += __atomic_load_n(&v->nr_exc[VEC_PF], __ATOMIC_RELAXED);
        out->tlb_misses += __atomic_load_n(&v->nr_tlb_fill, __ATOMIC_RELAXED);
    }
}

void vitro_vm_stats(struct vitro_vm *pub, FILE *out, const char *(*symbol)(void *, uint64_t), void *opaque)
{
    struct vm *vm = (struct vm *)pub;
    for (unsigned i = 0; i < vm->nr_vcpus; i++)
        if (vm->vcpu[i])
            vcpu_stats(vm->vcpu[i], out);
    cache_stats(vm->cache, out, symbol, opaque);
}
