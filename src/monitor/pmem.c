/* pmem.c - files of --disk FILE,if=pmem in the guest's address space, above its RAM. See vm_inner.h. */
#include "machine/layout.h"
#include "monitor/config.h"
#include "monitor/vm_inner.h"
#include "storage/disk.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define ALIGN (2ull << 20) /* of Linux's memory sections, in part */
#define APART (1ull << 30)

static gpa_t up(gpa_t gpa, u64 align)
{
    return (gpa + align - 1) & ~(align - 1);
}

/* Behind what there is, below the window for PCI. */
static gpa_t place(const struct guest *vm, u64 size)
{
    gpa_t ram_end = LAYOUT_4G, at = LAYOUT_4G;

    for (unsigned i = 0; i < vm->view.nr_slots; i++) {
        const struct ram_slot *s = &vm->view.slot[i];
        bool ours = false;
        for (unsigned n = 0; n < vm->config->nr_drives; n++)
            ours |= vm->pmem[n].host && vm->pmem[n].gpa == s->gpa;
        at = MAX(at, s->gpa + s->size);
        if (!ours)
            ram_end = MAX(ram_end, s->gpa + s->size);
    }
    at = up(at, APART);
    gpa_t end = up(ram_end, LAYOUT_PCI_MMIO64_ALIGN);
    return at < end && size <= end - at ? at : 0;
}

static int refuse(const struct drive *d, const char *why)
{
    say("--disk %s,if=pmem: %s", d->path, why);
    return -EINVAL;
}

/* A store to a page that the file system has no room for would kill us. 0 or errno. */
static int make_room(int fd, u64 size)
{
    struct stat st;

    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || (u64)st.st_blocks * 512 >= size)
        return 0; /* nothing is missing, and the file's time stays */
    int r = posix_fallocate(fd, 0, (off_t)size);
    return r == EOPNOTSUPP ? 0 : r;
}

static int map(struct guest *vm, unsigned i)
{
    const struct drive *d = &vm->config->drive[i];
    struct disk *disk = vm->disk[i];
    u64 size = disk->sectors * DISK_SECTOR;
    struct disk_extent whole;

    if (disk->readonly || d->snapshot || vm->config->snapshot)
        return refuse(d, "the guest's stores go to the file: neither readonly=on nor snapshot=on is possible");
    if (strcmp(disk->ops->format, "raw"))
        return refuse(d, "only the bytes of a raw file can be memory; make one with qemu-img convert -O raw");
    if (!size || size % ALIGN || disk->sectors > UINT32_MAX || !disk_extent(disk, 0, (u32)disk->sectors, true, &whole))
        return refuse(d, "its size must be a multiple of 2 MiB (truncate -s %2M FILE), of less than 2 TiB");
    gpa_t gpa = place(vm, size);
    if (!gpa)
        return refuse(d, "there is no room for it between the guest's RAM and the PCI window");
    int r = make_room(whole.fd, size);
    if (r)
        return refuse(d, strerror(r));
    u8 *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, whole.fd, 0);
    if (host == MAP_FAILED)
        return refuse(d, strerror(errno));
    madvise(host, size, MADV_DONTDUMP);
    r = ram_add_slot(&vm->view, gpa, size, host, false);
    if (r) {
        munmap(host, size);
        return refuse(d, strerror(-r));
    }
    vm->pmem[i] = (struct vm_pmem){ .host = host, .gpa = gpa, .size = size };
    return 0;
}

int pmem_map(struct guest *vm)
{
    for (unsigned i = 0; i < vm->config->nr_drives; i++) {
        if (vm->config->drive[i].bus != DRIVE_PMEM)
            continue;
        if (xen_wanted(vm->config))
            return refuse(&vm->config->drive[i], "not with --pv xen");
        int r = map(vm, i);
        if (r)
            return r;
    }
    return 0;
}

void pmem_unmap(struct guest *vm)
{
    for (unsigned i = 0; i < DRIVES_MAX; i++)
        if (vm->pmem[i].host)
            munmap(vm->pmem[i].host, vm->pmem[i].size);
}
