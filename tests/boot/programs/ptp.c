/*
 * ptp.c - the host's clock as /dev/ptp0 has it (Linux's ptp_kvm, by KVM's clock pairing): by itself, and with the system's
 * clock at the same moment (PTP_SYS_OFFSET_PRECISE). Prints both, in ns.
 */
#include <fcntl.h>
#include <linux/ptp_clock.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static long long ns(long long sec, unsigned nsec) { return sec * 1000000000 + nsec; }

int main(void)
{
    struct ptp_sys_offset_precise p = { 0 };
    struct timespec t;
    int fd = open("/dev/ptp0", O_RDONLY);

    if (fd < 0 || clock_gettime(((~(clockid_t)fd) << 3) | 3, &t) || ioctl(fd, PTP_SYS_OFFSET_PRECISE, &p)) {
        perror("ptp");
        return 1;
    }
    printf("ptp: device %lld precise %lld system %lld\n", ns(t.tv_sec, (unsigned)t.tv_nsec), ns(p.device.sec, p.device.nsec),
           ns(p.sys_realtime.sec, p.sys_realtime.nsec));
    return 0;
}
