/*
 * test_cpuid.c - CPU models: nothing forbidden is advertised, levels contain what they promise, XSAVE sizes agree,
 * and the time scale keeps the frequency. On this host, and on made-up Intel and plain hosts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpuid.h"
#include "tests/lib/check.h"

enum { A, B, C, D };
struct bit { u32 leaf, subleaf; unsigned reg, bit; };

/* clang-format off */
static const struct bit forbidden[] = {
    { 1, 0, C, 5 }, { 1, 0, C, 6 }, { 1, 0, C, 15 },                                /* VMX SMX PDCM */
    { 1, 0, D, 21 }, { 1, 0, D, 22 }, { 1, 0, D, 29 },              /* DS ACPI TM */
    { 7, 0, B, 2 }, { 7, 0, B, 4 }, { 7, 0, B, 11 }, { 7, 0, B, 12 },               /* SGX HLE RTM PQM */
    { 7, 0, B, 14 }, { 7, 0, B, 25 },                                               /* MPX PT */
    { 7, 0, C, 3 }, { 7, 0, C, 5 }, { 7, 0, C, 7 }, { 7, 0, C, 16 },                /* PKU WAITPKG SHSTK LA57 */
    { 7, 0, D, 20 }, { 7, 0, D, 26 }, { 7, 0, D, 27 }, { 7, 0, D, 31 },             /* IBT SPEC_CTRL STIBP SSBD */
    { 7, 0, D, 22 }, { 7, 0, D, 24 }, { 7, 0, D, 25 },                              /* AMX */
    { 0x80000001, 0, C, 2 }, { 0x80000001, 0, C, 10 }, { 0x80000001, 0, C, 23 },    /* SVM IBS PERFCTR */
    { 0x80000001, 0, C, 24 }, { 0x80000001, 0, C, 29 }, { 0x80000001, 0, D, 25 },   /* PERFCTR_NB MWAITX FFXSR */
    { 0x80000008, 0, B, 12 }, { 0x80000008, 0, B, 14 }, { 0x80000008, 0, B, 15 },   /* IBPB IBRS STIBP */
    { 0x80000008, 0, B, 24 },                                                       /* SSBD */
};
static const struct { u8 level; struct bit b; } required[] = {
    { 2, { 1, 0, C, 0 } }, { 2, { 1, 0, C, 9 } }, { 2, { 1, 0, C, 13 } }, { 2, { 1, 0, C, 19 } },
    { 2, { 1, 0, C, 20 } }, { 2, { 1, 0, C, 23 } }, { 2, { 0x80000001, 0, C, 0 } },
    { 3, { 1, 0, C, 12 } }, { 3, { 1, 0, C, 22 } }, { 3, { 1, 0, C, 26 } }, { 3, { 1, 0, C, 28 } },
    { 3, { 1, 0, C, 29 } }, { 3, { 7, 0, B, 3 } }, { 3, { 7, 0, B, 5 } }, { 3, { 7, 0, B, 8 } },
    { 3, { 0x80000001, 0, C, 5 } },
    { 4, { 7, 0, B, 16 } }, { 4, { 7, 0, B, 17 } }, { 4, { 7, 0, B, 28 } }, { 4, { 7, 0, B, 30 } },
    { 4, { 7, 0, B, 31 } },
};
/* Instruction sets beyond x86-64-v4: only "host" may show them. */
static const struct bit beyond[] = {
    { 1, 0, C, 1 }, { 1, 0, C, 25 }, { 1, 0, C, 30 }, { 7, 0, B, 18 }, { 7, 0, B, 19 }, { 7, 0, B, 21 },
    { 7, 0, B, 23 }, { 7, 0, B, 24 }, { 7, 0, B, 29 }, { 7, 0, C, 1 }, { 7, 0, C, 6 }, { 7, 0, C, 8 }, { 7, 0, C, 9 },
    { 7, 0, C, 10 }, { 7, 0, C, 11 }, { 7, 0, C, 12 }, { 7, 0, C, 14 }, { 7, 1, A, 4 }, { 7, 1, A, 5 },
    { 0x80000001, 0, C, 6 }, { 0x80000001, 0, C, 8 }, { 0x80000008, 0, B, 0 },
};
static const struct bit always[] = {
    { 1, 0, C, 17 }, { 1, 0, C, 21 }, { 1, 0, C, 24 }, { 1, 0, C, 31 }, { 7, 0, B, 0 }, { 7, 0, B, 1 }, { 7, 0, B, 7 },
    { 7, 0, B, 9 }, { 7, 0, B, 10 }, { 7, 0, B, 20 }, { 7, 0, C, 2 }, { 7, 0, C, 22 }, { 7, 0, D, 4 }, { 6, 0, A, 2 },
    { 0x80000001, 0, D, 11 }, { 0x80000001, 0, D, 20 }, { 0x80000001, 0, D, 26 }, { 0x80000001, 0, D, 27 },
    { 0x80000001, 0, D, 29 }, { 0x80000007, 0, D, 8 },
};
/* clang-format on */

static void check_model(struct cpu_model *m, unsigned level, struct vcpu *v)
{
    u32 r[4], full[4];
    bool avx = m->xcr0_mask & 4;
    for (size_t i = 0; i < ARRAY_SIZE(forbidden); i++) {
        const struct bit *b = &forbidden[i];
        cpu_model_cpuid(m, v, b->leaf, b->subleaf, r);
        CHECK(!(r[b->reg] >> b->bit & 1));
    }
    for (size_t i = 0; i < ARRAY_SIZE(always); i++)
        CHECK(cpu_model_has(m, always[i].leaf, always[i].subleaf, always[i].reg, always[i].bit));
    if (level < 5) {
        for (size_t i = 0; i < ARRAY_SIZE(required); i++) {
            const struct bit *b = &required[i].b;
            CHECK(cpu_model_has(m, b->leaf, b->subleaf, b->reg, b->bit) == (required[i].level <= level));
        }
        for (size_t i = 0; i < ARRAY_SIZE(beyond); i++)
            CHECK(!cpu_model_has(m, beyond[i].leaf, beyond[i].subleaf, beyond[i].reg, beyond[i].bit));
    }
    /* XSAVE: the sum of components, for every XCR0 a guest can set. */
    CHECK(!!(m->cr4_mask & CR4_OSXSAVE) == avx);
    cpu_model_cpuid(m, v, 0xd, 0, full);
    CHECK(full[A] == (avx ? m->xcr0_mask : 0) && full[D] == 0);
    for (u64 xcr0 = 1; avx && xcr0 <= m->xcr0_mask; xcr0 = xcr0 == 1 ? 3 : xcr0 == 3 ? 7 : xcr0 == 7 ? 0xe7 : 0x100) {
        v->xcr0 = xcr0;
        cpu_model_cpuid(m, v, 0xd, 0, r);
        u32 end = 576, packed = 576;
        for (u32 i = 2; i < 8; i++) {
            u32 x[4];
            if (!(xcr0 >> i & 1))
                continue;
            cpu_model_cpuid(m, v, 0xd, i, x);
            CHECK(x[A] > 0 && x[B] >= 576);
            end = MAX(end, x[A] + x[B]);
            packed = (x[C] & 2 ? (packed + 63) & ~63u : packed) + x[A];
        }
        CHECK(r[B] == end && r[B] <= r[C]);
        cpu_model_cpuid(m, v, 0xd, 1, r);
        CHECK(!(r[A] & 8) || r[B] == packed);
        CHECK(r[C] == 0 && r[D] == 0);
    }
    v->xcr0 = 1;
    /* What follows the CPU's state. */
    v->index = 1;
    v->cr4 = 0;
    cpu_model_cpuid(m, v, 1, 0, r);
    CHECK(r[B] >> 24 == 1 && !(r[C] >> 27 & 1));
    v->cr4 = CR4_OSXSAVE;
    cpu_model_cpuid(m, v, 1, 0, r);
    CHECK(r[C] >> 27 & 1);
    cpu_model_cpuid(m, v, 0xb, 1, r);
    CHECK(r[B] == m->nr_cpus && (1u << r[A]) >= m->nr_cpus && r[D] == 1);
    v->index = 0;
    v->cr4 = 0;
    /* Performance counters, SVM leaf, out of range: zero. */
    static const u32 zero[] = { 0xa, 0x14, 0x8000000a, 0x8000001f, 0x80000022, 0x12345678, 0xc0000000, 0x20 };
    for (size_t i = 0; i < ARRAY_SIZE(zero); i++) {
        cpu_model_cpuid(m, v, zero[i], 0, r);
        CHECK(!(r[A] | r[B] | r[C] | r[D]));
    }
    cpu_model_cpuid(m, v, 0x80000008, 0, r);
    CHECK((r[A] & 0xff) == 41 && (r[A] >> 8 & 0xff) == 48);
    cpu_model_cpuid(m, v, 0x15, 0, r);
    CHECK((u64)r[C] * r[B] / r[A] == m->tsc_khz * 1000);
    /* The embedder's leaves: those given, and nothing else. */
    static const struct vitro_cpuid_leaf pv[] = { { 0x40000000, { 1, 2, 3, 4 } }, { 0x40000101, { 5, 6, 7, 8 } } };
    static const struct vitro_cpuid_leaf stray = { 0x40010000, { 0 } };
    CHECK(!cpu_model_set_pv(m, pv, 2));
    cpu_model_cpuid(m, v, 0x40000101, 7, r);
    CHECK(r[A] == 5 && r[B] == 6 && r[C] == 7 && r[D] == 8);
    cpu_model_cpuid(m, v, 0x40000001, 0, r);
    CHECK(!(r[A] | r[B] | r[C] | r[D]));
    CHECK(cpu_model_set_pv(m, &stray, 1) && cpu_model_set_pv(m, pv, VITRO_CPUID_PV_MAX + 1));
    CHECK(!cpu_model_set_pv(m, NULL, 0));
    cpu_model_cpuid(m, v, 0x40000000, 0, r);
    CHECK(!r[A]);
}

/* A host by table: every bit set, or none but the baseline; Intel. */
static void fake_host(void *opaque, u32 leaf, u32 subleaf, u32 r[4])
{
    bool rich = *(bool *)opaque;
    memset(r, 0, 16);
    switch (leaf) {
    case 0:
        r[A] = 0x20;
        memcpy(&r[B], "Genu", 4);
        memcpy(&r[D], "ineI", 4);
        memcpy(&r[C], "ntel", 4);
        break;
    case 0x80000000: r[A] = 0x80000008; break;
    case 1:
        r[A] = 0x806f8;
        r[C] = rich ? ~0u : 0;
        r[D] = 0x078bfbff;
        break;
    case 7:
        r[B] = r[C] = r[D] = rich ? ~0u : 0;
        r[A] = 2;
        break;
    case 0x80000001:
        r[C] = rich ? ~0u : 0;
        r[D] = ~0u;
        break;
    case 4:
        if (subleaf < 4)
            r[A] = (subleaf < 2 ? 1u : subleaf) << 5 | 1 | 0xfc000000;
        break;
    case 0xd:
        if (!rich)
            break;
        if (subleaf == 0)
            r[A] = 0x602e7;
        else if (subleaf == 1)
            r[A] = 0x1f;
        else if (subleaf == 2 || (subleaf >= 5 && subleaf < 8)) {
            static const u32 size[8] = { [2] = 256, [5] = 64, [6] = 512, [7] = 1024 };
            static const u32 offset[8] = { [2] = 576, [5] = 1088, [6] = 1152, [7] = 1664 };
            r[A] = size[subleaf];
            r[B] = offset[subleaf];
            r[C] = subleaf > 5 ? 2 : 0;
        }
        break;
    case 0x80000008: r[A] = 0x3934; r[B] = ~0u; break;
    }
}

int main(void)
{
    static const struct { const char *name; unsigned level; } models[] = {
        { "x86-64-v2", 2 }, { "x86-64-v3", 3 }, { "x86-64-v4", 4 }, { "host", 5 },
    };
    struct vcpu *v = calloc(1, sizeof *v);
    const char *error;
    u32 r[4];
    v->xcr0 = 1;
    for (size_t i = 0; i < ARRAY_SIZE(models); i++)
        for (unsigned nr = 2; nr <= 64; nr = nr * 3 + 1) {
            struct cpu_model *m = cpu_model_create(models[i].name, nr, 2596097, &error);
            if (m) {
                check_model(m, models[i].level, v);
                cpu_model_destroy(m);
            } else {
                CHECK(models[i].level < 5 && error);
            }
            bool rich = true;
            m = cpu_model_create_from(models[i].name, nr, 3000000, fake_host, &rich, &error);
            CHECK(m && m->vendor == CPU_VENDOR_INTEL && m->arch_caps);
            if (m) {
                check_model(m, models[i].level, v);
                cpu_model_cpuid(m, v, 4, 2, r);
                CHECK((r[0] >> 14 & 0xfff) == 0);
                cpu_model_cpuid(m, v, 4, 3, r);
                CHECK((r[0] >> 14 & 0xfff) + 1 >= nr);
            }
            cpu_model_destroy(m);
        }
    bool rich = false;
    CHECK(!cpu_model_create_from("x86-64-v2", 1, 3000000, fake_host, &rich, &error) && error);
    struct cpu_model *m = cpu_model_create_from(NULL, 1, 3000000, fake_host, &rich, &error);
    CHECK(m && m->xcr0_mask == 1 && !(m->cr4_mask & CR4_OSXSAVE));
    cpu_model_destroy(m);
    CHECK(!cpu_model_create("486", 1, 3000000, &error) && error);
    CHECK(!cpu_model_create("host", 0, 3000000, &error) && error);
    CHECK(!cpu_model_create("host", 1, 0, &error) && error);
    /* MONITOR and MWAIT: there, or hidden by the model's name or the embedder. */
    rich = true;
    v->misc_enable = ~0ull;
    for (unsigned hide = 0; hide < 3; hide++) {
        m = cpu_model_create_from(hide == 1 ? "x86-64-v3,-mwait" : "x86-64-v3", 1, 3000000, fake_host, &rich, &error);
        if (hide == 2)
            cpu_model_hide_mwait(m);
        cpu_model_cpuid(m, v, 5, 0, r);
        CHECK(hide ? !(r[A] | r[B] | r[C] | r[D]) : r[A] == 64 && r[B] == 64 && r[C] == 3);
        cpu_model_cpuid(m, v, 1, 0, r);
        CHECK((r[C] >> 3 & 1) == !hide);
        cpu_model_destroy(m);
    }
    CHECK(!cpu_model_create("host,-avx", 1, 3000000, &error) && error);
    free(v);
    return check_done("test_cpuid");
}
