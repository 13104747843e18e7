#include "monitor/symbols.h"
#include "monitor/config.h"
#include "monitor/file.h"
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
    if (end == line || end[0] != ' ' || !end[1] || end[2] != ' ' || !end[3])
        return false;
    sym->name = end + 3;
    return true;
}

int symbols_load(struct symbols *s, const char *path)
{
    struct file f;
    size_t max = 0;
    int r = file_map(&f, "symbols", path);

    memset(s, 0, sizeof(*s));
    if (r)
        return r;
    s->text = malloc(f.size + 1);
    for (u64 i = 0; i < f.size; i++)
        max += f.data[i] == '\n';
    s->sym = calloc(max + 1, sizeof(*s->sym));
    if (!s->text || !s->sym) {
        file_unmap(&f);
        symbols_free(s);
        say("--symbols: %s", strerror(ENOMEM));
        return -ENOMEM;
    }
    if (f.size)
        memcpy(s->text, f.data, f.size);
    s->text[f.size] = '\0';
    file_unmap(&f);

    char *save, *line = strtok_r(s->text, "\n", &save);
    for (; line && s->nr <= max; line = strtok_r(NULL, "\n", &save))
        if (parse_line(line, &s->sym[s->nr]))
            s->nr++;
    if (!s->nr) {
        say("--symbols: %s is not a System.map (lines of address, type, name)",
            path);
        symbols_free(s);
        return -EINVAL;
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
