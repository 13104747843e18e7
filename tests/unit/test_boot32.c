/*
 * Multiboot 1 and 2, and PVH: what the kernel is told, word by word; headers that lie; anything at random. The words
 * are what the specifications say, not what the loader's structs say.
 */
#include "boot/boot.h"
#include "mem/backing.h"
#include "tests/lib/check.h"
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)
#define LOAD 0x200000u

struct world {
    struct backing b;
    struct ram ram;
    struct boot_e820 e820[2];
    struct boot_module module[2];
    struct boot_input in;
    struct boot_entry entry;
    char err[BOOT_ERR_LEN];
};

static void world_init(struct world *w)
{
    memset(w, 0, sizeof(*w));
    if (backing_init(&w->b, 16 * MIB))
        abort();
    ram_init(&w->ram);
    u8 *h = w->b.host;
    CHECK(!ram_add_slot(&w->ram, 0, 0xa0000, h, false) && !ram_add_slot(&w->ram, 0xe0000, 0x20000, h + 0xe0000, false) &&
          !ram_add_slot(&w->ram, MIB, 15 * MIB, h + MIB, false));
    w->e820[0] = (struct boot_e820){ 0, 0x9fc00, BOOT_E820_RAM };
    w->e820[1] = (struct boot_e820){ MIB, 15 * MIB, BOOT_E820_RAM };
    w->module[0] = (struct boot_module){ "one arg", (const u8 *)"first module", 12 };
    w->module[1] = (struct boot_module){ "two", (const u8 *)"second", 6 };
    w->in = (struct boot_input){ .kernel_name = "kernel.img", .cmdline = "hello", .e820 = w->e820, .nr_e820 = 2,
                                 .module = w->module, .nr_modules = 2 };
}

static void world_fini(struct world *w)
{
    ram_fini(&w->ram);
    backing_fini(&w->b);
}

static int load(struct world *w, const void *kernel, u64 size)
{
    u8 *copy = malloc(size ? size : 1); /* exactly that size: ASan sees any read behind it */
    memcpy(copy, kernel, size);
    w->in.kernel = copy;
    w->in.kernel_size = size;
    memset(&w->entry, 0, sizeof(w->entry));
    memset(w->err, 0, sizeof(w->err));
    int r = boot_load(&w->ram, &w->in, &w->entry, w->err);
    free(copy);
    return r;
}

static u32 r32(struct world *w, gpa_t at)
{
    u32 v = 0xdeadbeef;
    ram_read(&w->ram, at, &v, 4);
    return v;
}
static u64 r64(struct world *w, gpa_t at) { return r32(w, at) | (u64)r32(w, at + 4) << 32; }
static const char *text(struct world *w, gpa_t at)
{
    const char *p = at ? ram_ptr(&w->ram, at, 64) : NULL;
    return p ? p : "(nowhere)";
}

/* A 32-bit ELF file of one segment with a note of PVH in it; words of a header at offset 0x100. */
struct elf {
    Elf32_Ehdr eh;
    Elf32_Phdr ph[2];
    u8 pad[0x100 - sizeof(Elf32_Ehdr) - 2 * sizeof(Elf32_Phdr)];
    u32 word[32];
    struct { Elf32_Nhdr n; char name[4]; u32 desc; } note;
};
_Static_assert(offsetof(struct elf, word) == 0x100, "");

static void make_elf(struct elf *e, bool note)
{
    memset(e, 0, sizeof(*e));
    memcpy(e->eh.e_ident, ELFMAG, SELFMAG);
    e->eh.e_ident[EI_CLASS] = ELFCLASS32;
    e->eh.e_ident[EI_DATA] = ELFDATA2LSB;
    e->eh.e_type = ET_EXEC;
    e->eh.e_machine = EM_386;
    e->eh.e_entry = LOAD + 0x40;
    e->eh.e_phoff = offsetof(struct elf, ph);
    e->eh.e_phentsize = sizeof(Elf32_Phdr);
    e->eh.e_phnum = note ? 2 : 1;
    e->ph[0] = (Elf32_Phdr){ .p_type = PT_LOAD, .p_paddr = LOAD, .p_filesz = sizeof(*e), .p_memsz = 0x2000 };
    e->ph[1] = (Elf32_Phdr){ .p_type = PT_NOTE, .p_offset = offsetof(struct elf, note), .p_filesz = sizeof(e->note),
                             .p_align = 4 };
    e->note.n = (Elf32_Nhdr){ 4, 4, 18 };
    memcpy(e->note.name, "Xen", 4);
    e->note.desc = LOAD + 0x80;
}

static void mb1(struct elf *e, u32 flags)
{
    e->word[0] = 0x1badb002;
    e->word[1] = flags;
    e->word[2] = 0 - 0x1badb002 - flags;
}

static bool flat32(const struct boot_entry *e)
{
    return e->cr0 == (CR0_PE | CR0_ET) && !e->cr4 && !e->efer && e->cs.limit == 0xffffffff &&
           (e->cs.attr & (SEG_DB | SEG_L)) == SEG_DB && !(e->rflags & EFL_IF);
}

static void test_mb1(void)
{
    struct world w;
    struct elf e;

    world_init(&w);
    make_elf(&e, false);
    mb1(&e, 3);
    CHECK_MSG(!load(&w, &e, sizeof(e)), "%s", w.err);
    CHECK(w.entry.rip == LOAD + 0x40 && w.entry.rax == 0x2badb002 && flat32(&w.entry));
    gpa_t i = w.entry.rbx;
    CHECK((r32(&w, i) & 0x4d) == 0x4d && r32(&w, i + 4) == 639 && r32(&w, i + 8) == 15 * 1024);
    CHECK(!strcmp(text(&w, r32(&w, i + 16)), "kernel.img hello") && r32(&w, i + 20) == 2);
    gpa_t m = r32(&w, i + 24), m0 = r32(&w, m), m1 = r32(&w, m + 16);
    CHECK(r32(&w, m + 4) - m0 == 12 && !memcmp(text(&w, m0), "first module", 12) && !(m0 & 4095));
    CHECK(!strcmp(text(&w, r32(&w, m + 8)), "one arg") && !strcmp(text(&w, r32(&w, m + 24)), "two"));
    CHECK(!memcmp(text(&w, m1), "second", 6) && (m0 >= LOAD + 0x2000 || m0 + 4096 <= LOAD));
    CHECK(r32(&w, i + 44) == 48);
    gpa_t map = r32(&w, i + 48);
    CHECK(r32(&w, map) == 20 && r64(&w, map + 4) == 0 && r64(&w, map + 12) == 0x9fc00 && r32(&w, map + 20) == 1);
    CHECK(r64(&w, map + 28) == MIB && r64(&w, map + 36) == 15 * MIB);

    make_elf(&e, false); /* by addresses: from 0x40 before the header on */
    mb1(&e, 0x10003);
    e.word[3] = LOAD + 0x40, e.word[4] = LOAD, e.word[5] = 0, e.word[6] = LOAD + 0x1000, e.word[7] = LOAD + 0x20;
    CHECK_MSG(!load(&w, &e, sizeof(e)), "%s", w.err);
    CHECK(w.entry.rip == LOAD + 0x20 && r32(&w, LOAD + 0x40) == 0x1badb002 && r32(&w, LOAD + 0xffc) == 0);
    e.word[3] = LOAD - 4;
    CHECK(load(&w, &e, sizeof(e)) == -EINVAL);
    e.word[3] = LOAD + 0x40, e.word[5] = LOAD + 0x100000;
    CHECK(load(&w, &e, sizeof(e)) == -EINVAL);
    e.word[5] = 0, e.word[6] = 0xfffff000;
    CHECK(load(&w, &e, sizeof(e)) == -ENOMEM);
    e.word[6] = 0, e.word[7] = 0x1234;
    CHECK(load(&w, &e, sizeof(e)) == -EINVAL);
    make_elf(&e, false);
    mb1(&e, 0x8003); /* a feature that nobody knows */
    CHECK(load(&w, &e, sizeof(e)) == -EINVAL && strstr(w.err, "kernel.img"));
    mb1(&e, 3);
    e.word[2]++;
    CHECK(load(&w, &e, sizeof(e)) < 0); /* no header then, and no 64-bit file */
    world_fini(&w);
}

static void test_mb2(void)
{
    struct world w;
    struct elf e;

    world_init(&w);
    make_elf(&e, false);
    const u32 h[] = { 0xe85250d6, 0, 16 + 24 + 8, 0 - 0xe85250d6 - 48, 1, 20, 4, 6, 3, 0, 0, 8 };
    memcpy(e.word, h, sizeof(h));
    CHECK_MSG(!load(&w, &e, sizeof(e)), "%s", w.err);
    CHECK(w.entry.rip == LOAD + 0x40 && w.entry.rax == 0x36d76289 && flat32(&w.entry));
    gpa_t i = w.entry.rbx;
    u32 total = r32(&w, i), seen = 0, modules = 0;
    CHECK(total > 8 && total < 0x1000 && !(i & 7));
    for (u32 t = 8; t < total; t += (r32(&w, i + t + 4) + 7) & ~7u) {
        u32 type = r32(&w, i + t), size = r32(&w, i + t + 4);
        seen |= 1u << type;
        if (!type)
            break;
        if (type == 1)
            CHECK(!strcmp(text(&w, i + t + 8), "kernel.img hello") && size == 25);
        if (type == 3) {
            CHECK(!strcmp(text(&w, i + t + 16), modules ? "two" : "one arg"));
            CHECK(!memcmp(text(&w, r32(&w, i + t + 8)), modules ? "second" : "first module", 6));
            modules++;
        }
        if (type == 4)
            CHECK(r32(&w, i + t + 8) == 639 && r32(&w, i + t + 12) == 15 * 1024);
        if (type == 6)
            CHECK(r32(&w, i + t + 8) == 24 && r64(&w, i + t + 16) == 0 && r64(&w, i + t + 40) == MIB && size == 64);
        CHECK(size >= 8);
    }
    CHECK((seen & 0x5f) == 0x5f && modules == 2);
    e.word[4] = 7; /* EFI boot services */
    CHECK(load(&w, &e, sizeof(e)) == -EINVAL);
    e.word[4] = 1, e.word[5] = 4;
    CHECK(load(&w, &e, sizeof(e)) == -EINVAL);
    world_fini(&w);
}

static void test_pvh(void)
{
    struct world w;
    struct elf e;

    world_init(&w);
    make_elf(&e, true);
    w.in.rsdp = 0xe0000;
    CHECK_MSG(!load(&w, &e, sizeof(e)), "%s", w.err);
    CHECK(w.entry.rip == LOAD + 0x80 && flat32(&w.entry));
    gpa_t i = w.entry.rbx, m = r64(&w, i + 16), map = r64(&w, i + 40);
    CHECK(r32(&w, i) == 0x336ec578 && r32(&w, i + 4) == 1 && r32(&w, i + 12) == 2);
    CHECK(!strcmp(text(&w, r64(&w, i + 24)), "hello") && r64(&w, i + 32) == 0xe0000 && r32(&w, i + 48) == 2);
    CHECK(r64(&w, m + 8) == 12 && !memcmp(text(&w, r64(&w, m)), "first module", 12));
    CHECK(!strcmp(text(&w, r64(&w, m + 16)), "one arg") && r64(&w, m + 40) == 6);
    CHECK(r64(&w, map + 24) == MIB && r64(&w, map + 32) == 15 * MIB && r32(&w, map + 40) == 1);
    e.note.desc = 0x1000;
    CHECK(load(&w, &e, sizeof(e)) == -EINVAL);
    e.note.n.n_namesz = 0xfffffff0;
    CHECK(load(&w, &e, sizeof(e)) == -EINVAL); /* no note, and modules with a plain ELF file */
    CHECK(strstr(w.err, "--module"));
    world_fini(&w);
}

static void test_random(void)
{
    struct world w;
    unsigned silent = 0;

    world_init(&w);
    srand(1);
    for (unsigned i = 0; i < 30000; i++) {
        struct elf e;
        make_elf(&e, i % 3 == 2);
        const u32 h[] = { 0xe85250d6, 0, 48, 0 - 0xe85250d6 - 48, 2, 24, 0, 0, LOAD, LOAD, 0, 8 };
        if (i % 3 == 1)
            memcpy(e.word, h, sizeof(h));
        else if (i % 3 == 0)
            mb1(&e, rand() & 1 ? 0x10003 : 3);
        for (int n = rand() % 5; n >= 0; n--)
            ((u8 *)&e)[(unsigned)rand() % sizeof(e)] = (u8)rand();
        if (i % 3 == 0 && rand() & 1)
            for (unsigned k = 3; k < 8; k++)
                e.word[k] = rand() & 1 ? LOAD + (u32)rand() % 0x4000 : (u32)rand() * 2;
        int r = load(&w, &e, rand() % 8 ? sizeof(e) : (unsigned)rand() % sizeof(e));
        silent += r ? !w.err[0] || w.entry.rip : !w.entry.rip;
    }
    CHECK(silent == 0);
    world_fini(&w);
}

int main(void)
{
    test_mb1();
    test_mb2();
    test_pvh();
    test_random();
    return check_done("unit/boot32");
}
