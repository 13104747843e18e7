/*
 * nvram.c - see nvram.h. Source: UEFI PI 1.7 vol. 3 §3.2.1 for the firmware volume's header that such a file begins with;
 * OVMF's layout: the variables' flash ends where the code's begins.
 */
#include "monitor/nvram.h"
#include "machine/chips/pflash.h"
#include "machine/layout.h"
#include "machine/machine.h"
#include "monitor/file.h"
#include "monitor/vm_inner.h"
#include "storage/disk.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* EFI_FIRMWARE_VOLUME_HEADER */
#define FV_GUID 16
#define FV_LENGTH 32
#define FV_SIGNATURE 40
#define FV_HEADER 56

/* EFI_SYSTEM_NV_DATA_FV_GUID: fff12b8d-7696-4c8b-a985-2747075b4f50 */
static const u8 nv_data_guid[16] = { 0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c,
                                     0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50 };

/* .../OVMF_CODE_4M.fd has its empty variables in .../OVMF_VARS_4M.fd. False: the name says of no such thing. */
static bool template_of(const char *firmware, char *path, size_t len)
{
    const char *slash = strrchr(firmware, '/'), *code = strstr(slash ? slash : firmware, "CODE");
    int n = code ? snprintf(path, len, "%.*sVARS%s", (int)(code - firmware), firmware, code + 4) : 0;

    if (n <= 0 || (size_t)n >= len)
        return false;
    if (access(path, R_OK)) { /* Secure Boot's firmware takes the same */
        char *more = strstr(path, ".secboot");
        if (more)
            memmove(more, more + 8, strlen(more + 8) + 1);
    }
    return !access(path, R_OK);
}

/* The file begins with a firmware volume of variables; it may be followed by what the firmware keeps beside it. */
static bool is_variables(const u8 *data, u64 size)
{
    u64 length;

    if (size < FV_HEADER || memcmp(data + FV_SIGNATURE, "_FVH", 4) || memcmp(data + FV_GUID, nv_data_guid, 16))
        return false;
    memcpy(&length, data + FV_LENGTH, sizeof(length));
    return length && length <= size;
}

static int judge(struct guest *vm, const char *path, const struct file *f, u64 want, const char *template)
{
    const u64 room = LAYOUT_4G - LAYOUT_FIRMWARE - vm->rom_size;

    if (want && f->size != want) {
        say("--nvram: %s is %llu bytes, but the variables of %s take %llu, as %s does; move the file away and another is made",
            path, (unsigned long long)f->size, vm->config->firmware, (unsigned long long)want, template);
        return -EINVAL;
    }
    if (!f->size || f->size % PFLASH_BLOCK || f->size > room) {
        say("--nvram: %s is %llu bytes, not a multiple of 4 KiB up to %llu: it is no copy of an OVMF_VARS file", path,
            (unsigned long long)f->size, (unsigned long long)room);
        return -EINVAL;
    }
    if (!is_variables(f->data, f->size)) {
        say("--nvram: %s does not hold UEFI variables: there is no firmware volume of them at its start; name a copy of an "
            "OVMF_VARS file, or a file that does not exist yet", path);
        return -EINVAL;
    }
    return 0;
}

/* All of it on the medium, or no file. */
static int create(const char *path, const struct file *from)
{
    char temp[PATH_MAX];
    int n = snprintf(temp, sizeof(temp), "%s.XXXXXX", path), r = 0;
    int fd = n > 0 && (size_t)n < sizeof(temp) ? mkostemp(temp, O_CLOEXEC) : -1;

    if (fd < 0) {
        r = n > 0 && (size_t)n < sizeof(temp) ? -errno : -ENAMETOOLONG;
        goto out;
    }
    for (u64 at = 0; at < from->size && !r;) {
        ssize_t done = write(fd, from->data + at, from->size - at);
        if (done > 0)
            at += (u64)done;
        else if (done == 0 || errno != EINTR)
            r = done == 0 ? -ENOSPC : -errno;
    }
    if (!r && (fsync(fd) || link(temp, path))) /* not over what another made meanwhile */
        r = -errno;
    close(fd);
    unlink(temp);
    if (r == -EEXIST)
        r = 0;
out:
    if (r)
        say("--nvram: cannot make %s: %s", path, strerror(-r));
    return r;
}

static int keep_image(struct guest *vm, const struct file *f)
{
    vm->nvram = malloc(f->size);
    if (!vm->nvram) {
        say("--nvram: %s", strerror(ENOMEM));
        return -ENOMEM;
    }
    memcpy(vm->nvram, f->data, f->size);
    vm->nvram_size = (u32)f->size;
    return 0;
}

/* Held open, for one VM at a time, before its bytes are read. */
static int use_file(struct guest *vm, const char *path, u64 want, const char *template)
{
    const struct disk_options options = { .format = "raw", .snapshot = vm->config->snapshot };
    char err[DISK_ERR_LEN];
    struct file f;
    int r = disk_open(path, &options, &vm->nvram_disk, err);

    if (r) {
        say("--nvram: %s", err);
        return r;
    }
    r = file_map(&f, "nvram", path);
    if (r)
        return r;
    r = judge(vm, path, &f, want, template);
    if (!r)
        r = keep_image(vm, &f);
    file_unmap(&f);
    return r;
}

int nvram_load(struct guest *vm)
{
    const char *path = vm->config->nvram;
    char template[PATH_MAX];
    struct file f = { 0 };
    int r = 0;

    if (template_of(vm->config->firmware, template, sizeof(template))) {
        r = file_map(&f, "nvram", template);
        if (!r)
            r = judge(vm, template, &f, 0, NULL);
    } else if (path && access(path, F_OK)) {
        say("--nvram: there is no %s, and no template to make it from beside %s; use --firmware ovmf (Debian's package ovmf), or "
            "copy the firmware's OVMF_VARS file there", path, vm->config->firmware);
        return -ENOENT;
    }
    if (!r && path && access(path, F_OK) && errno == ENOENT)
        r = create(path, &f);
    if (!r && path)
        r = use_file(vm, path, f.size, template);
    else if (!r && f.size)
        r = keep_image(vm, &f);
    file_unmap(&f);
    return r;
}

void nvram_plug(struct guest *vm, struct machine_config *mc)
{
    mc->flash.image = vm->nvram;
    mc->flash.size = vm->nvram_size;
    mc->flash.gpa = LAYOUT_4G - vm->rom_size - vm->nvram_size;
    mc->flash.disk = vm->nvram_disk;
}

void nvram_free(struct guest *vm)
{
    free(vm->nvram);
    disk_close(vm->nvram_disk);
}
