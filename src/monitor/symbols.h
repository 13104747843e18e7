/* symbols.h - names for guest addresses, from a System.map or the symbol table of an ELF file (vmlinux). */
#pragma once
#include "base/types.h"

struct symbol {
    u64 addr;
    const char *name;
};

struct symbols {
    char *text;
    struct symbol *sym; /* ascending by address */
    size_t nr;
    char last[160]; /* what symbols_name() returned */
};

/* symbols_load - from a file of either kind. 0, or -errno after explaining it. */
int symbols_load(struct symbols *s, const char *path);
void symbols_free(struct symbols *s);
/* symbols_name - "name+0x12" until the next call, or NULL. opaque is the struct symbols. */
const char *symbols_name(void *opaque, u64 la);
