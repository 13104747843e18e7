/*
 * The page walk over tables built by hand: every mode and page size, the whole matrix of rights against an
 * independent statement of the rules, error codes, Accessed and Dirty, and tables where there is no RAM.
 * Source of the expectations: Intel SDM vol. 3 §4.6-4.8.
 */
#include "engine/engine.h"
#include "engine/mmu.h"
#include "tests/lib/check.h"
#include <stdlib.h>
#include <string.h>

#define MEM 0x400000ull
#define PML4 0x1000ull
#define PDPT 0x2000ull
#define PD 0x3000ull
#define PT 0x4000ull
#define ROM_GPA 0x800000ull
#define ALL (PTE_P | PTE_W | PTE_U)

static struct vm vm;
static struct vcpu vcpu, *v = &vcpu;
static u8 *mem;

static u64 *e64(gpa_t a) { return (u64 *)(mem + a); }
static u32 *e32(gpa_t a) { return (u32 *)(mem + a); }

static void reset(void)
{
    memset(mem, 0, 0x8000); /* where every table is */
    memset(v, 0, sizeof(*v));
    v->vm = &vm;
}

static void long_mode(void)
{
    reset();
    v->cr0 = CR0_PE | CR0_PG | CR0_WP;
    v->cr4 = CR4_PAE | CR4_PGE;
    v->efer = EFER_LME | EFER_LMA | EFER_NXE;
    v->cr3 = PML4;
    *e64(PML4) = PDPT | ALL;
    *e64(PDPT) = PD | ALL;
    *e64(PD) = PT | ALL;
}

/* The error code of a faulting walk, or -1 if it succeeded. */
static int walk(gla_t la, unsigned acc, struct mmu_span *s)
{
    struct mmu_span dummy;
    memset(&v->exc, 0xaa, sizeof(v->exc));
    enum xret r = mmu_walk(v, la, acc, s ? s : &dummy);
    if (r == X_OK)
        return -1;
    CHECK(r == X_FAULT && v->exc.vector == VEC_PF && v->exc.has_error && v->exc.cr2 == la);
    return (int)v->exc.error;
}

static void test_none(void)
{
    struct mmu_span s;
    reset();
    CHECK(walk(0xfee01234, ACC_W, &s) == -1);
    CHECK(s.gpa == 0xfee01234 && s.page_size == PAGE_SIZE && s.writable && s.user && s.exec && !s.global);
    CHECK(walk(0x1fee01234, ACC_R | ACC_USER, &s) == -1 && s.gpa == 0xfee01234);
}

static void test_sizes(void)
{
    struct mmu_span s;
    gpa_t gpa;

    long_mode();
    *e64(PT + 5 * 8) = 0x123000 | ALL | PTE_G;
    CHECK(walk(0x5678, ACC_R, &s) == -1 && s.gpa == 0x123678 && s.page_size == PAGE_SIZE);
    CHECK(!s.writable && s.global && s.user && s.exec);
    CHECK(walk(0x5678, ACC_W, &s) == -1 && s.writable);
    CHECK(walk(0x5678, ACC_R, &s) == -1 && s.writable);
    CHECK(mmu_translate_debug(v, 0x5678, &gpa) && gpa == 0x123678);
    CHECK(!mmu_translate_debug(v, 0x6678, &gpa));
    v->cr4 &= ~(u64)CR4_PGE;
    CHECK(walk(0x5678, ACC_R, &s) == -1 && !s.global);
    /* 2 MiB, bit 12 is PAT */
    *e64(PD + 8) = 0x12345600000 | 0x1000 | ALL | PTE_PS;
    CHECK(walk(0x2abcde, ACC_R, &s) == -1 && s.gpa == 0x123456abcde && s.page_size == 2 << 20);
    CHECK(mmu_translate_debug(v, 0x2abcde, &gpa) && gpa == 0x123456abcde);
    /* 1 GiB */
    *e64(PDPT + 8) = 0x180000000 | 0x1000 | ALL | PTE_PS;
    CHECK(walk(0x6abcdef1, ACC_W, &s) == -1 && s.gpa == 0x1aabcdef1 && s.page_size == 1 << 30);
    CHECK(*e64(PDPT + 8) & PTE_D);
    CHECK(mmu_translate_debug(v, 0x6abcdef1, &gpa) && gpa == 0x1aabcdef1);
    /* the upper half */
    *e64(PML4 + 511 * 8) = PDPT | ALL;
    *e64(PDPT + 511 * 8) = PD | ALL;
    CHECK(walk(0xffffffffc0005678, ACC_R, &s) == -1 && s.gpa == 0x123678);
}

static void test_pae(void)
{
    struct mmu_span s;
    gpa_t gpa;

    reset();
    v->cr0 = CR0_PE | CR0_PG | CR0_WP;
    v->cr4 = CR4_PAE;
    v->efer = EFER_NXE;
    v->cr3 = 0x1020; /* 32-byte aligned */
    *e64(0x1020 + 2 * 8) = PD | PTE_P;
    *e64(PD) = PT | ALL;
    *e64(PT + 8) = 0x2000000000 | PTE_NX | ALL;
    CHECK(mmu_pdptes_valid(v, v->cr3));
    CHECK(walk(0x80001010, ACC_W | ACC_USER, &s) == -1 && s.gpa == 0x2000000010 && !s.exec && s.writable);
    CHECK(walk(0x80001010, ACC_X | ACC_USER, &s) == (PF_P | PF_U | PF_I));
    CHECK(*e64(0x1020 + 16) == (PD | PTE_P)); /* no A bit in a PDPTE */
    CHECK((*e64(PD) & PTE_A) && (*e64(PT + 8) & (PTE_A | PTE_D)) == (PTE_A | PTE_D));
    CHECK(walk(0x40000000, ACC_R, &s) == 0);
    *e64(PD + 8) = 0x2000000000 | PTE_PS | ALL;
    CHECK(walk(0x80200123, ACC_R, &s) == -1 && s.gpa == 0x2000000123 && s.page_size == 2 << 20);
    CHECK(mmu_translate_debug(v, 0x80200123, &gpa) && gpa == 0x2000000123);
    *e64(PD + 8) |= BITULL(52);
    CHECK(walk(0x80200123, ACC_R, &s) == (PF_P | PF_RSVD));
    *e64(0x1020 + 2 * 8) |= PTE_W;
    CHECK(!mmu_pdptes_valid(v, v->cr3));
    CHECK(walk(0x80001010, ACC_R, &s) == (PF_P | PF_RSVD));
}

static void test_32(void)
{
    struct mmu_span s;
    gpa_t gpa;

    reset();
    v->cr0 = CR0_PE | CR0_PG | CR0_WP;
    v->cr4 = CR4_PSE | CR4_PGE;
    v->cr3 = PD | 0x18;
    *e32(PD + 3 * 4) = PT | ALL;
    *e32(PT + 7 * 4) = 0xfed00000 | PTE_P | PTE_W | PTE_G;
    CHECK(walk(0xc07123, ACC_W, &s) == -1 && s.gpa == 0xfed00123 && s.writable && s.global && !s.user);
    CHECK((*e32(PD + 12) & 0x60) == 0x20 && (*e32(PT + 28) & 0x60) == 0x60);
    CHECK(*e32(PD + 16) == 0 && *e32(PT + 32) == 0); /* the neighbours */
    CHECK(walk(0xc07123, ACC_R | ACC_USER, &s) == (PF_P | PF_U));
    CHECK(mmu_translate_debug(v, 0xc07123, &gpa) && gpa == 0xfed00123);
    /* 4 MiB, with PSE-36 */
    *e32(PD + 4) = 0x00c00000 | 3 << 13 | 0x80 | 7;
    CHECK(walk(0x412345, ACC_R | ACC_USER, &s) == -1 && s.gpa == 0x300c12345 && s.page_size == 4 << 20);
    CHECK(mmu_translate_debug(v, 0x412345, &gpa) && gpa == 0x300c12345);
    *e32(PD + 4) |= 1 << 21;
    CHECK(walk(0x412345, ACC_R, &s) == (PF_P | PF_RSVD));
    /* without CR4.PSE the bit is ignored and the entry is a table's */
    v->cr4 = 0;
    *e32(PD + 4) = PT | 0x80 | 7;
    CHECK(walk(0x407010, ACC_R, &s) == -1 && s.gpa == 0xfed00010 && !s.global);
    /* fetches never set I without NX or SMEP */
    CHECK(walk(0, ACC_X, &s) == 0);
    v->cr4 = CR4_SMEP;
    CHECK(walk(0, ACC_X, &s) == PF_I);
}

/* The rules of §4.6.1 said once more, in another shape. */
static bool may(bool user_page, bool w, bool nx, bool cpl3, unsigned acc, bool sys)
{
    bool smap = v->cr4 & CR4_SMAP, smep = v->cr4 & CR4_SMEP, wp = v->cr0 & CR0_WP, ac = v->eflags & EFL_AC;
    if (cpl3)
        return user_page && (acc != ACC_W || w) && (acc != ACC_X || !nx);
    switch (acc) {
    case ACC_R: return !user_page || !smap || (ac && !sys);
    case ACC_W: return (!user_page || !smap || (ac && !sys)) && (w || !wp);
    default: return !nx && !(user_page && smep);
    }
}

static void test_rights(void)
{
    static const unsigned accs[] = { ACC_R, ACC_W, ACC_X };
    for (unsigned m = 0; m < 1u << 12; m++) {
        bool u = m & 1, w = m & 2, nx = m & 4, smep = m & 8, smap = m & 16, wp = m & 32, ac = m & 64;
        unsigned level = (m >> 7) & 3, who = (m >> 9) & 3;
        bool nxe = m & 1 << 11;
        if (who == 3 || (nx && !nxe))
            continue;
        for (unsigned i = 0; i < 3; i++) {
            unsigned acc = accs[i];
            struct mmu_span s;
            long_mode();
            static const gpa_t where[] = { PML4, PDPT, PD, PT };
            *e64(PT) = 0x9000 | ALL;
            /* one level carries the restriction, the others allow everything */
            u64 *e = e64(where[level]);
            *e = (*e & ~(PTE_U | PTE_W)) | (u ? PTE_U : 0) | (w ? PTE_W : 0) | (nx ? PTE_NX : 0);
            v->cr4 |= (smep ? CR4_SMEP : 0) | (smap ? CR4_SMAP : 0);
            v->cr0 = wp ? v->cr0 | CR0_WP : v->cr0 & ~(u64)CR0_WP;
            v->eflags = ac ? EFL_AC : 0;
            if (!nxe)
                v->efer &= ~(u64)EFER_NXE;
            unsigned flags = who == 0 ? 0 : who == 1 ? ACC_USER : ACC_SYS;
            bool user = who == 1, ok = may(u, w, nx, user, acc, who == 2);
            int code = walk(0x10, acc | flags, &s);
            int expect = ok ? -1 : (int)(PF_P | (acc == ACC_W ? PF_W : 0) | (user ? PF_U : 0) |
                                         (acc == ACC_X && (smep || nxe) ? PF_I : 0));
            CHECK_MSG(code == expect, "m=%x acc=%u code=%d expect=%d", m, acc, code, expect);
            u64 a = *e64(PML4) & *e64(PDPT) & *e64(PD) & *e64(PT) & PTE_A;
            u64 any = (*e64(PML4) | *e64(PDPT) | *e64(PD) | *e64(PT)) & (PTE_A | PTE_D);
            if (ok) {
                CHECK(a && !!(*e64(PT) & PTE_D) == (acc == ACC_W));
                CHECK(s.user == u && s.exec == may(u, w, nx, user, ACC_X, who == 2));
                CHECK(s.writable == (acc == ACC_W));
                CHECK(walk(0x10, acc | flags, &s) == -1);
                *e64(PT) |= PTE_D;
                CHECK(walk(0x10, acc | flags, &s) == -1 && s.writable == may(u, w, nx, user, ACC_W, who == 2));
            } else {
                CHECK(!any);
            }
        }
    }
}

static void test_reserved(void)
{
    static const gpa_t where[] = { PML4, PDPT, PD, PT };
    for (unsigned level = 0; level < 4; level++) {
        for (unsigned bit = 12; bit < 64; bit++) {
            long_mode();
            *e64(PT) = 0x9000 | ALL;
            *e64(where[level]) |= BITULL(bit);
            bool rsvd = bit >= MMU_PHYS_BITS && bit < 52;
            if (rsvd)
                CHECK_MSG(walk(0, ACC_W | ACC_USER, NULL) == (PF_P | PF_RSVD | PF_W | PF_U), "bit %u", bit);
            else if (bit >= 52)
                CHECK_MSG(walk(0, ACC_R, NULL) == -1, "bit %u", bit);
        }
        long_mode();
        *e64(PT) = 0x9000 | ALL;
        *e64(where[level]) |= PTE_NX;
        v->efer &= ~(u64)EFER_NXE;
        CHECK(walk(0, ACC_R, NULL) == (PF_P | PF_RSVD));
        /* not present says nothing of the rest */
        *e64(where[level]) = ~PTE_P;
        CHECK(walk(0, ACC_R, NULL) == 0);
        CHECK(walk(0, ACC_X | ACC_USER, NULL) == PF_U);
    }
    long_mode();
    *e64(PML4) |= PTE_PS;
    CHECK(walk(0, ACC_R, NULL) == (PF_P | PF_RSVD));
    for (unsigned bit = 13; bit < 30; bit++) {
        long_mode();
        *e64(PD) = PTE_PS | ALL | BITULL(bit);
        CHECK(walk(0, ACC_R, NULL) == (bit < 21 ? (int)(PF_P | PF_RSVD) : -1));
        *e64(PDPT) = PTE_PS | ALL | BITULL(bit);
        CHECK(walk(0, ACC_R, NULL) == (int)(PF_P | PF_RSVD));
    }
}

static void test_holes(void)
{
    struct mmu_span s;
    gpa_t gpa;

    long_mode();
    *e64(PDPT) = 0x40000000000 | ALL; /* no RAM there: all ones */
    CHECK(walk(0, ACC_R, &s) == (PF_P | PF_RSVD));
    CHECK(!mmu_translate_debug(v, 0, &gpa));
    v->cr3 = 0x3ffffffff000;
    CHECK(walk(0, ACC_R, &s) == (PF_P | PF_RSVD));
    v->cr3 = MEM - PAGE_SIZE; /* the last page of a slot */
    CHECK(walk(0xffffffffffffffff, ACC_R, &s) == 0);
    /* a table in ROM is read; A and D are dropped */
    long_mode();
    u64 *rom = (u64 *)ram_ptr(&vm.ram, ROM_GPA, 8);
    rom[0] = 0x9000 | ALL;
    *e64(PD) = ROM_GPA | ALL;
    CHECK(walk(0x20, ACC_W, &s) == -1 && s.gpa == 0x9020);
    CHECK(rom[0] == (0x9000 | ALL));
    /* flags kept in CR3 do not move the table */
    long_mode();
    *e64(PT) = 0x9000 | ALL;
    v->cr3 |= 0xfff;
    CHECK(walk(0x20, ACC_R, &s) == -1 && s.gpa == 0x9020);
}

int main(void)
{
    u8 *rom = aligned_alloc(PAGE_SIZE, PAGE_SIZE);
    mem = aligned_alloc(PAGE_SIZE, MEM);
    if (!rom || !mem)
        return 2;
    memset(rom, 0, PAGE_SIZE);
    ram_init(&vm.ram);
    /* slot 0 is looked up last by the walk, slot 1 first */
    if (ram_add_slot(&vm.ram, ROM_GPA, PAGE_SIZE, rom, true) || ram_add_slot(&vm.ram, 0, MEM, mem, false))
        return 2;
    test_none();
    test_sizes();
    test_pae();
    test_32();
    test_rights();
    test_reserved();
    test_holes();
    ram_fini(&vm.ram);
    free(mem);
    free(rom);
    return check_done("mmu");
}
