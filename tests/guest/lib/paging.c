/* paging.c - the kernel's own page tables and their editing. Intel SDM vol. 3 §4.5. */
#include "lib/guest.h"

extern char image_start[], image_end[], utext_start[], utext_end[];

static u64 pml4[512] __attribute__((aligned(4096)));
static u64 next_page = 16 << 20;

#define MEMORY_END (64ull << 20) /* tests run with at least this much */

u64 pages_alloc(size_t n, u64 align)
{
    u64 pa = (next_page + align - 1) & ~(align - 1);
    next_page = pa + n * PAGE;
    if (next_page > MEMORY_END)
        die("# out of pages\n");
    memset((void *)pa, 0, n * PAGE);
    return pa;
}

u64 page_alloc(void)
{
    return pages_alloc(1, PAGE);
}

u64 *pt_entry(const volatile void *va, int level)
{
    u64 *table = pml4;
    for (int l = 4;; l--) {
        u64 *e = &table[(u64)va >> (12 + 9 * (l - 1)) & 511];
        if (l == level)
            return e;
        if (!(*e & PTE_P))
            *e = page_alloc() | PTE_TABLE;
        else if (*e & PTE_PS)
            die("# pt_entry: %p is mapped by a large page\n", (void *)va);
        table = (u64 *)(*e & PTE_ADDR);
    }
}

void map_level(const volatile void *va, u64 pa, u64 flags, int level)
{
    *(volatile u64 *)pt_entry(va, level) = pa | flags | (level > 1 ? PTE_PS : 0);
    invlpg(va);
}

void map(const volatile void *va, u64 pa, u64 flags)
{
    map_level(va, pa, flags, 1);
}

void unmap(const volatile void *va)
{
    *(volatile u64 *)pt_entry(va, 1) = 0;
    invlpg(va);
}

void image_user(bool on)
{
    u64 first = (u64)image_start & ~(PAGE2 - 1), last = (u64)image_end;
    for (u64 va = 0; va < PAGE3; va += PAGE2) {
        if (va >= first && va <= last) {
            for (u64 p = va; p < va + PAGE2; p += PAGE) {
                bool user = on || (p >= (u64)utext_start && p < (u64)utext_end);
                *pt_entry((void *)p, 1) = p | PTE_P | PTE_W | (user ? PTE_U : 0);
            }
        } else {
            *pt_entry((void *)va, 2) = va | PTE_P | PTE_W | PTE_PS | (on ? PTE_U : 0);
        }
    }
    flush_tlb();
}

void paging_setup(void);
void paging_setup(void)
{
    image_user(true);
    for (u64 va = 3 * PAGE3; va < 4 * PAGE3; va += PAGE2)
        *pt_entry((void *)va, 2) = va | PTE_P | PTE_W | PTE_PS | PTE_PCD;
    WR(cr3, pml4);
}
