/*
 * memory.c - a little virtual memory system: address spaces, demand paging, copy on write; every change of a page
 * table made by Vitro, in batches. The guest never writes a page-table entry and never executes INVLPG.
 *
 * Regions live at REGION in each space; the SDK's own map (PML4 slot 0) is shared by all.
 */
#include "sdk/sdk.h"

#define REGION 0x8000000000ull /* PML4 slot 1: a space's own */
#define BATCH 64

/* -- Batches: collect ranges, hand them over when there are many, or at the end ------------------------------------ */

struct batch {
    unsigned number; /* VT_MAP, VT_UNMAP, VT_PROTECT */
    uint64_t space;
    unsigned nr;
    struct vt_range range[BATCH] __attribute__((aligned(8)));
};

static void batch_run(struct batch *b)
{
    if (!b->nr)
        return;
    int64_t done = vt_call3(b->number, b->space, b->range, b->nr);
    if (done != b->nr)
        die("batch of %u: %ld; item: %d\n", b->nr, done, done < 0 ? 0 : b->range[done].result);
    b->nr = 0;
}

static void batch_add(struct batch *b, uint64_t va, uint64_t pa, uint32_t pages, uint32_t flags)
{
    b->range[b->nr++] = (struct vt_range){ .va = va, .pa = pa, .pages = pages, .flags = flags };
    if (b->nr == BATCH)
        batch_run(b);
}

/* -- Frames, with a count of who uses them -------------------------------------------------------------------------- */

static uint8_t users[1 << 20]; /* one a page below 4 GiB */

static uint64_t frame_new(void)
{
    uint64_t pa = (uint64_t)pages_alloc(1);
    users[pa / PAGE] = 1;
    return pa;
}

/* -- A process: a space, and where its pages are --------------------------------------------------------------------- */

#define PAGES 256
struct process {
    uint64_t space;
    uint64_t frame[PAGES]; /* 0: not touched yet */
    bool shared[PAGES];    /* read-only until it is written: copy then */
    unsigned faults, copies;
};
static struct process *current;

static void process_make(struct process *p)
{
    memset(p, 0, sizeof(*p));
    int64_t space = vt_call2(VT_SPACE_CREATE, 0, 1);
    if (space < 0)
        die("no space: %ld\n", space);
    p->space = (uint64_t)space;
}

static void process_switch(struct process *p)
{
    if (vt_call1(VT_SPACE_SWITCH, p->space))
        die("cannot switch\n");
    current = p;
}

/* fork: the child has the same frames; both sides become read-only, in one batch each. */
static void process_fork(struct process *parent, struct process *child)
{
    static struct batch map, protect;

    process_make(child);
    map = (struct batch){ .number = VT_MAP, .space = child->space };
    protect = (struct batch){ .number = VT_PROTECT, .space = parent->space };
    for (unsigned i = 0; i < PAGES; i++) {
        if (!parent->frame[i])
            continue;
        child->frame[i] = parent->frame[i];
        child->shared[i] = parent->shared[i] = true;
        users[parent->frame[i] / PAGE]++;
        batch_add(&map, REGION + i * PAGE, parent->frame[i], 1, 0);
        batch_add(&protect, REGION + i * PAGE, 0, 1, 0);
    }
    batch_run(&map);
    batch_run(&protect);
}

/* -- Page faults: #PF, SDM vol. 3 §4.7 -------------------------------------------------------------------------------- */

static void on_page_fault(struct sdk_regs *r)
{
    static struct batch b;
    uint64_t va, frame;

    __asm__ volatile("mov %%cr2, %0" : "=r"(va));
    uint64_t i = (va - REGION) / PAGE;
    if (va < REGION || i >= PAGES || !current)
        die("fault at %lx, rip %lx\n", va, r->rip);
    b = (struct batch){ .number = VT_MAP, .space = current->space };
    if (!current->frame[i]) { /* first touch */
        current->faults++;
        current->frame[i] = frame_new();
        batch_add(&b, REGION + i * PAGE, current->frame[i], 1, VT_W | VT_FILL);
    } else if (r->error & 2 && current->shared[i]) { /* first write to what is shared */
        current->copies++;
        frame = current->frame[i];
        if (users[frame / PAGE] > 1) {
            users[frame / PAGE]--;
            current->frame[i] = frame_new();
            memcpy((void *)current->frame[i], (void *)frame, PAGE);
        }
        current->shared[i] = false;
        batch_add(&b, REGION + i * PAGE, current->frame[i], 1, VT_W | VT_REPLACE | VT_FILL);
    } else {
        die("fault at %lx, error %lx\n", va, r->error);
    }
    batch_run(&b);
}

/* -- The story ----------------------------------------------------------------------------------------------------------- */

static volatile uint64_t *word(unsigned page)
{
    return (volatile uint64_t *)(REGION + page * PAGE);
}

int main(void)
{
    static struct process first, second;
    bool good = true;

    trap_handle(14, on_page_fault);
    tables_give(64);

    process_make(&first);
    process_switch(&first);
    for (unsigned i = 0; i < PAGES; i++)
        *word(i) = i;
    print("Touched %u pages: %u faults.\n", PAGES, first.faults);
    check(first.faults == PAGES, "each page came at its first touch");

    process_fork(&first, &second);
    process_switch(&second);
    for (unsigned i = 0; i < PAGES; i++)
        good &= *word(i) == i;
    check(good && !second.copies, "the child reads what the parent wrote, with no copy");
    for (unsigned i = 0; i < PAGES; i += 2)
        *word(i) = 1000 + i;
    check(second.copies == PAGES / 2, "a write copies a page, once");
    process_switch(&first);
    for (unsigned i = 0, sum = 0; i < PAGES; i++)
        good &= *word(i) == i && ++sum;
    check(good, "the parent's pages are as they were");
    *word(1) = 7;
    check(first.copies == 1, "and its own writes copy too");
    process_switch(&second);
    check(*word(1) == 1, "which the child does not see");

    /* Give memory back: unmap a quarter in one call of one range, then let the host have the frames. */
    struct vt_range gone = { .va = REGION, .pages = PAGES / 4 };
    check(vt_call3(VT_UNMAP, second.space, &gone, 1) == 1, "one range of %u pages unmapped", PAGES / 4);
    static struct vt_extent give[PAGES / 4] __attribute__((aligned(8)));
    unsigned nr = 0;
    for (unsigned i = 0; i < PAGES / 4; i++) {
        if (!--users[second.frame[i] / PAGE])
            give[nr++] = (struct vt_extent){ .pa = second.frame[i], .pages = 1 };
        second.frame[i] = 0;
    }
    check(vt_call2(VT_BALLOON_GIVE, give, nr) == nr && vt_call0(VT_BALLOON_SIZE) == nr, "%u pages given to the host", nr);
    *word(0) = 5; /* comes back as a new page */
    check(*word(0) == 5 && *word(PAGES - 2) == 1000 + PAGES - 2, "the rest is still there");

    process_switch(&first);
    check(vt_call1(VT_SPACE_DESTROY, first.space) == -VT_EBUSY, "the current space cannot be destroyed");
    check(vt_call1(VT_SPACE_DESTROY, second.space) == 0, "another one can");
    return check_failed();
}
