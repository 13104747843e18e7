/* test_fuzz_config.c - files that describe a VM, of anything: they are taken, or refused with the status of a mistake. */
#include "monitor/config.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Random bytes seldom are options: with an odd first byte they pick from what is in such files. */
static const char *const words[] = {
    "\n", "=", ",", " ", "on", "off", "1", "512M", "4096T", "\n#", "\n[vm]", "\n[other]", "/dev/null", "-1", ":", "\t", "..", "\xff",
    "\nkernel=", "\ninitrd=", "\nmodule=", "\nappend=", "\nmem=", "\ncpus=", "\ncpu=", "\ndisk=", "\ncdrom=", "\nfloppy=",
    "\nboot=", "\nnet=", "\nrng", "\nballoon", "\nhvc=", "\nvsock=", "\nshare=", "\npv=", "\ntrace=", "\ndebug=", "\ngdb=",
    "\nfirmware=", "\nnvram=", "\nvnc=", "\noption-rom=", "\nscreen", "\nsnapshot", "\nsandbox=", "\nno-reboot", "\nsymbols=",
    "if=virtio", "if=ide", "if=ahci", "readonly=on", "format=qcow2", "serial=", "queues=", "packed=on", "aio=threads",
    "transport=mmio", "\nvirtio=", "pci", "mmio", "user", "tap", "hostfwd=tcp:", "127.0.0.1:", "ifname=", "mac=", "52:54:00:12:34:56", "tag=", "cid=",
    "order=dc", "menu=on", "kvm", "all", "none", "xen", "unix:/tmp/x", "pmem=", "size=", "e1000", "mtu=", "0x", "999999999999999999999",
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct config c;
    static int quiet;
    char path[64];

    if (!size)
        return 0;
    if (!quiet) { /* what it says of mistakes goes nowhere */
        quiet = 1;
        stderr = fopen("/dev/null", "w");
        bug_on(!stderr);
    }
    int fd = memfd_create("config", MFD_CLOEXEC);
    for (size_t i = 1; i < size; i++) {
        const char *word = words[data[i] % ARRAY_SIZE(words)];
        ssize_t n = data[0] & 1 ? write(fd, word, strlen(word)) : write(fd, data + i, 1);
        bug_on(n < 0);
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    memset(&c, 0, sizeof(c));
    c.file = path;
    int r = config_read(&c);
    bug_on(r != STATUS_OK && r != STATUS_FAIL && r != STATUS_USAGE);
    bug_on(c.nr_drives > DRIVES_MAX || c.nr_nics > NICS_MAX || c.nr_shares > SHARES_MAX || c.nr_lines > CONFIG_FILE_LINES);
    for (unsigned i = 0; i < c.nr_lines; i++)
        free(c.lines[i]);
    close(fd);
    return 0;
}

FUZZ_MAIN("fuzz/config", 3000, 400)
