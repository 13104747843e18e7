/*
 * symbols.c - System.map's lines, or the functions and objects of an ELF64 file's .symtab (System V ABI, chapter 4).
 * The file is only text or a table to us: whatever is wrong in it leads to a message or to fewer names.
 */
#include "monitor/symbols.h"
#include "monitor/config.h"
#include "monitor/file.h"
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int by_address(const void *a, const void *b)
{
    const struct symbol *x = a, *y = b;
    return x->addr < y->addr ? -1 : x->addr > y->addr;
}

/* A line of System.map: "ffffffff81000000 T _text". */
static bool parse_line(char *line, struct symbol *sym)
{
    char *end;

    sym->addr = strtoull(line, &end, 16);
    if (end < line + 8 || end[0] != ' ' || !end[1] || end[2] != ' ' || !end[3])
        return false;
    sym->name = end + 3;
    return true;
}

/* Room for the names, ended by a zero, and for symbols. */
static int make_room(struct symbols *s, const u8 *text, u64 len, size_t nr)
{
    s->text = malloc(len + 1);
    s->sym = calloc(nr + 1, sizeof(*s->sym));
    if (!s->text || !s->sym)
        return -ENOMEM;
    if (len)
        memcpy(s->text, text, len);
    s->text[len] = '\0';
    return 0;
}

static int load_map(struct symbols *s, const struct file *f)
{
    size_t max = 0;

    for (u64 i = 0; i < f->size; i++)
        max += f->data[i] == '\n';
    int r = make_room(s, f->data, f->size, max);
    if (r)
        return r;
    char *save, *line = strtok_r(s->text, "\n", &save);
    for (; line && s->nr <= max; line = strtok_r(NULL, "\n", &save))
        if (parse_line(line, &s->sym[s->nr]))
            s->nr++;
    return 0;
}

static bool within(const struct file *f, u64 offset, u64 len)
{
    return offset <= f->size && len <= f->size - offset;
}

/* The section of that number, or of that type if index is 0. */
static bool elf_section(const struct file *f, const Elf64_Ehdr *eh, unsigned index, u32 type, Elf64_Shdr *sh)
{
    if (eh->e_shentsize != sizeof(*sh) || !within(f, eh->e_shoff, (u64)eh->e_shnum * sizeof(*sh)))
        return false;
    for (unsigned i = index; i < eh->e_shnum; i++) {
        memcpy(sh, f->data + eh->e_shoff + i * sizeof(*sh), sizeof(*sh));
        if (sh->sh_type == type)
            return within(f, sh->sh_offset, sh->sh_size);
        if (index)
            break;
    }
    return false;
}

static int load_elf(struct symbols *s, const struct file *f)
{
    Elf64_Ehdr eh;
    Elf64_Shdr tab, names;

    memcpy(&eh, f->data, sizeof(eh));
    if (eh.e_ident[EI_CLASS] != ELFCLASS64 || !elf_section(f, &eh, 0, SHT_SYMTAB, &tab) || !tab.sh_link ||
        !elf_section(f, &eh, tab.sh_link, SHT_STRTAB, &names))
        return 0;
    size_t nr = tab.sh_size / sizeof(Elf64_Sym);
    int r = make_room(s, f->data + names.sh_offset, names.sh_size, nr);
    if (r)
        return r;
    for (size_t i = 0; i < nr; i++) {
        Elf64_Sym sym;
        memcpy(&sym, f->data + tab.sh_offset + i * sizeof(sym), sizeof(sym));
        unsigned type = ELF64_ST_TYPE(sym.st_info);
        if (type > STT_FUNC || sym.st_shndx == SHN_UNDEF || sym.st_shndx == SHN_ABS || sym.st_name >= names.sh_size ||
            !s->text[sym.st_name])
            continue;
        s->sym[s->nr++] = (struct symbol){ sym.st_value, s->text + sym.st_name };
    }
    return 0;
}

int symbols_load(struct symbols *s, const char *path)
{
    struct file f;
    int r = file_map(&f, "symbols", path);

    memset(s, 0, sizeof(*s));
    if (r)
        return r;
    bool elf = f.size >= sizeof(Elf64_Ehdr) && !memcmp(f.data, ELFMAG, SELFMAG);
    r = elf ? load_elf(s, &f) : load_map(s, &f);
    file_unmap(&f);
    if (r) {
        say("--symbols: %s", strerror(-r));
    } else if (!s->nr) {
        say(elf ? "--symbols: %s has no symbol table (a vmlinux that was not stripped has)"
                : "--symbols: %s is neither a System.map (lines of address, type, name) nor an ELF file",
            path);
        r = -EINVAL;
    }
    if (r) {
        symbols_free(s);
        return r;
    }
    qsort(s->sym, s->nr, sizeof(*s->sym), by_address);
    return 0;
}

void symbols_free(struct symbols *s)
{
    free(s->text);
    free(s->sym);
    memset(s, 0, sizeof(*s));
}

const char *symbols_name(void *opaque, u64 la)
{
    struct symbols *s = opaque;
    size_t lo = 0, hi = s->nr;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (s->sym[mid].addr <= la)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (!lo || la - s->sym[lo - 1].addr > 0x100000)
        return NULL;
    snprintf(s->last, sizeof(s->last), "%s+%#llx", s->sym[lo - 1].name,
             (unsigned long long)(la - s->sym[lo - 1].addr));
    return s->last;
}
