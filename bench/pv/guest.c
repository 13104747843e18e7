/*
 * guest.c - what `vitro bench pv` runs in the guest: the same work, whether the kernel knows of the hypervisor or not.
 * Usage: guest SCALE LINE[=ARGUMENT]...    Prints `pv: LINE OPERATIONS NS COUNTERS...`, see bench/pv/run.
 *
 * Counters are read at ports (src/monitor/counters.h), so root and `vitro run --counters` are needed; without them they
 * are all 0. One row of `lines` is one line of the table.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/membarrier.h>
#include <netinet/ip_icmp.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT_COUNTERS 0x520
#define PARTS 5 /* the work is done in parts, and the quickest one is reported: the host has other work too */
#define PART_NS 20000000ull /* none is shorter */
#define MAX_COUNTERS 16
enum { START = 1, STOP = 2, SELECT = 0x100 };

static unsigned nr_counters;
static unsigned long long counter[MAX_COUNTERS];

static void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf("pv: failed: ");
    vprintf(fmt, ap);
    printf("\n");
    exit(1);
}

/* The right to use ports is given back while the work is done: a Xen PV kernel makes a call at each return to a process that has it. */
static void counters_open(void)
{
    if (iopl(3))
        return;
    unsigned n = inl(PORT_COUNTERS);
    if (n <= MAX_COUNTERS)
        nr_counters = n;
    iopl(0);
}
static void counters_start(void)
{
    if (!nr_counters)
        return;
    iopl(3);
    outl(START, PORT_COUNTERS);
    iopl(0);
}
static void counters_stop(void)
{
    if (!nr_counters)
        return;
    iopl(3);
    outl(STOP, PORT_COUNTERS);
    for (unsigned i = 0; i < nr_counters; i++) {
        outl(SELECT + i, PORT_COUNTERS);
        counter[i] = inl(PORT_COUNTERS + 4);
        counter[i] |= (unsigned long long)inl(PORT_COUNTERS + 8) << 32;
    }
    iopl(0);
    if (counter[0])
        counter[0]--; /* the write that stopped */
}

static unsigned long long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_RAW, &t);
    return (unsigned long long)t.tv_sec * 1000000000u + (unsigned long long)t.tv_nsec;
}

static unsigned nr_cpus(void)
{
    return (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
}
static void pin(unsigned cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu % nr_cpus(), &set);
    sched_setaffinity(0, sizeof(set), &set);
}

/* -- One CPU ------------------------------------------------------------------------------------------ */

static void empty_syscall(unsigned long n)
{
    while (n--)
        syscall(SYS_getppid);
}

static void clock_read(unsigned long n)
{
    struct timespec t;
    while (n--)
        clock_gettime(CLOCK_MONOTONIC, &t);
}

/* Sooner than the kernel's tick, so that the hardware must be told each time; never due. */
static void timer_program(unsigned long n)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec when = { .it_value = { .tv_nsec = 500000 } };
    while (n--)
        timerfd_settime(fd, 0, &when, NULL);
    close(fd);
}

/* Program a timer, wait in idle, be woken by its interrupt. */
static void timer_sleep(unsigned long n)
{
    struct timespec nap = { 0, 1000 };
    prctl(PR_SET_TIMERSLACK, 1);
    while (n--)
        clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
}

static void context_switch(unsigned long n)
{
    int a[2], b[2];
    char c = 0;
    if (pipe(a) || pipe(b))
        die("pipe");
    pid_t child = fork();
    if (!child) {
        while (read(a[0], &c, 1) == 1 && c == 0)
            if (write(b[1], &c, 1) != 1)
                break;
        _exit(0);
    }
    for (unsigned long i = 0; i < n; i += 2) /* two switches a round */
        if (write(a[1], &c, 1) != 1 || read(b[0], &c, 1) != 1)
            die("pipe");
    c = 1;
    if (write(a[1], &c, 1) != 1)
        die("pipe");
    waitpid(child, NULL, 0);
    close(a[0]), close(a[1]), close(b[0]), close(b[1]);
}

static void fork_exec(unsigned long n)
{
    static char program[] = "/pvguest", leave[] = "exit";
    char *argv[] = { program, leave, NULL }, *env[] = { NULL };
    while (n--) {
        pid_t child;
        if (posix_spawn(&child, argv[0], NULL, NULL, argv, env))
            die("posix_spawn");
        waitpid(child, NULL, 0);
    }
}

static void demand_fault(unsigned long n)
{
    while (n) {
        unsigned long part = n < 4096 ? n : 4096;
        char *p = mmap(NULL, part << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            die("mmap");
        madvise(p, part << 12, MADV_NOHUGEPAGE);
        for (unsigned long i = 0; i < part; i++)
            p[i << 12] = 1;
        munmap(p, part << 12);
        n -= part;
    }
}

/* Map pages with something behind each, protect them, unmap them. */
static void map_pages(unsigned long n, size_t pages)
{
    while (n--) {
        void *p = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (p == MAP_FAILED || mprotect(p, pages << 12, PROT_READ) || munmap(p, pages << 12))
            die("mmap: %s", strerror(errno));
    }
}
static void map_1(unsigned long n) { map_pages(n, 1); }
static void map_64(unsigned long n) { map_pages(n, 64); }
static void map_4096(unsigned long n) { map_pages(n, 4096); }

static const char *argument;

/* Lines of 64 characters, each a write of its own, all out at the end. */
static void console_output(unsigned long n)
{
    static const char text[] = "................................................................";
    int fd = open(argument, O_WRONLY | O_NOCTTY);
    if (fd < 0)
        die("%s: %s", argument, strerror(errno));
    while (n--) {
        char line[64];
        memcpy(line, text, 63);
        line[63] = '\n';
        for (unsigned at = 0; at < 64;) {
            ssize_t done = write(fd, line + at, 64 - at);
            if (done <= 0)
                die("%s: %s", argument, strerror(errno));
            at += (unsigned)done;
        }
    }
    syscall(SYS_ioctl, fd, 0x5409, 1); /* TCSBRK: tcdrain */
    close(fd);
}

/* -- Several CPUs -------------------------------------------------------------------------------------- */

static atomic_bool spin_on;
static atomic_uint nr_spinning;
static pthread_t spinner[64];

static void *spin(void *arg)
{
    pin((unsigned)(long)arg);
    nr_spinning++;
    while (spin_on)
        __builtin_ia32_pause();
    return NULL;
}
/* A thread of this process on each other CPU, in user mode. Until it is there some of the guest's ticks may pass: 4 ms each. */
static void spinners_start(void)
{
    pin(0);
    spin_on = 1;
    nr_spinning = 0;
    for (unsigned i = 1; i < nr_cpus(); i++)
        pthread_create(&spinner[i], NULL, spin, (void *)(long)i);
    while (nr_spinning < nr_cpus() - 1)
        sched_yield();
}
static void spinners_stop(void)
{
    spin_on = 0;
    for (unsigned i = 1; i < nr_cpus(); i++)
        pthread_join(spinner[i], NULL);
}

/* membarrier: an IPI to each CPU that runs this process, and the wait for them. */
static void ipi_all(unsigned long n)
{
    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
    while (n--)
        if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0))
            die("membarrier");
}

/* Give a page away: every CPU that runs this process must forget it. */
static void shootdown(unsigned long n)
{
    char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (n--) {
        *(volatile char *)p = 1;
        madvise(p, 4096, MADV_DONTNEED);
    }
    munmap(p, 4096);
}

/* Two threads on two CPUs wake each other: an IPI to a CPU that sleeps. */
static atomic_uint turn;
static unsigned long wake_rounds;
static void *wake_other(void *arg)
{
    unsigned me = (unsigned)(long)arg;
    pin(me);
    for (unsigned long i = 0; i < wake_rounds; i++) {
        unsigned seen;
        while ((seen = turn) % 2 != me)
            syscall(SYS_futex, &turn, 0 /* WAIT */, seen, NULL, NULL, 0);
        turn++;
        syscall(SYS_futex, &turn, 1 /* WAKE */, 1, NULL, NULL, 0);
    }
    return NULL;
}
static void wake_sleeping(unsigned long n)
{
    pthread_t t;
    turn = 0;
    wake_rounds = n / 2;
    pthread_create(&t, NULL, wake_other, (void *)1l);
    wake_other((void *)0l);
    pthread_join(t, NULL);
}

/* Locks of one file, taken and left by every CPU: the kernel guards their list with spinlocks. */
static unsigned long lock_rounds;
static int lock_fd;
static void *lock_file(void *arg)
{
    long me = (long)arg;
    struct flock f = { .l_whence = SEEK_SET, .l_start = me * 16, .l_len = 8 };
    pin((unsigned)me);
    for (unsigned long i = 0; i < lock_rounds; i++) {
        f.l_type = F_WRLCK;
        if (fcntl(lock_fd, 37 /* F_OFD_SETLK */, &f))
            die("lock: %s", strerror(errno));
        f.l_type = F_UNLCK;
        fcntl(lock_fd, 37, &f);
    }
    return NULL;
}
static void spinlocks(unsigned long n)
{
    pthread_t t[64];
    unsigned cpus = nr_cpus();
    lock_fd = open("/tmp/lock", O_RDWR | O_CREAT, 0600);
    lock_rounds = n / cpus;
    for (unsigned i = 0; i < cpus; i++)
        pthread_create(&t[i], NULL, lock_file, (void *)(long)i);
    for (unsigned i = 0; i < cpus; i++)
        pthread_join(t[i], NULL);
    close(lock_fd);
}

/* -- Disks ------------------------------------------------------------------------------------------------ */

#define DISK_MIB 64u

/* What a line works with stays from part to part: making 4 MiB of pages for a few requests would be most of the time. */
static struct { int fd; aio_context_t ctx; unsigned depth; char *buf; size_t len; } one_disk = { .fd = -1 };

static void disk_open(unsigned depth, size_t len)
{
    if (one_disk.fd >= 0 && one_disk.len == len && one_disk.depth == depth)
        return;
    if (one_disk.fd >= 0) {
        syscall(SYS_io_destroy, one_disk.ctx);
        munmap(one_disk.buf, one_disk.len);
        close(one_disk.fd);
    }
    one_disk.ctx = 0;
    one_disk.fd = open(argument, O_RDWR | O_DIRECT);
    if (one_disk.fd < 0)
        die("%s: %s", argument, strerror(errno));
    if (syscall(SYS_io_setup, depth, &one_disk.ctx))
        die("io_setup");
    one_disk.buf = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (one_disk.buf == MAP_FAILED)
        die("mmap");
    one_disk.len = len;
    one_disk.depth = depth;
}

static void disk(unsigned long n, unsigned depth, unsigned size, int opcode)
{
    struct iocb cb[64], *ptr[64];
    struct io_event done[64];
    unsigned seed = 1;
    disk_open(depth, (size_t)size * depth);
    const aio_context_t ctx = one_disk.ctx;
    char *buf = one_disk.buf;
    unsigned long submitted = 0, finished = 0;
    unsigned free_slot[64], nr_free = depth;
    for (unsigned i = 0; i < depth; i++)
        free_slot[i] = i;
    while (finished < n) {
        unsigned batch = 0;
        while (nr_free && submitted < n) {
            unsigned s = free_slot[--nr_free];
            seed = seed * 1103515245 + 12345;
            cb[s] = (struct iocb){
                .aio_fildes = (unsigned)one_disk.fd, .aio_lio_opcode = (unsigned short)opcode, .aio_buf = (unsigned long)(buf + (size_t)s * size),
                .aio_nbytes = size, .aio_offset = (long long)((seed >> 8) % (DISK_MIB * 1048576u / size)) * size, .aio_data = s,
            };
            ptr[batch++] = &cb[s];
            submitted++;
        }
        for (unsigned at = 0; at < batch;) {
            long r = syscall(SYS_io_submit, ctx, (long)(batch - at), ptr + at);
            if (r <= 0)
                die("io_submit: %s", strerror(errno));
            at += (unsigned)r;
        }
        long got = syscall(SYS_io_getevents, ctx, 1L, 64L, done, NULL);
        for (long i = 0; i < got; i++) {
            if (done[i].res != (long long)size)
                die("%s: %lld of %u bytes", argument, (long long)done[i].res, size);
            free_slot[nr_free++] = (unsigned)done[i].data;
        }
        finished += (unsigned long)(got > 0 ? got : 0);
    }
}
static void read_4k(unsigned long n) { disk(n, 1, 4096, IOCB_CMD_PREAD); }
static void read_4k_16(unsigned long n) { disk(n, 16, 4096, IOCB_CMD_PREAD); }
static void write_4k_16(unsigned long n) { disk(n, 16, 4096, IOCB_CMD_PWRITE); }
static void read_1m(unsigned long n) { disk(n, 4, 1 << 20, IOCB_CMD_PREAD); }
static void write_1m(unsigned long n) { disk(n, 4, 1 << 20, IOCB_CMD_PWRITE); }

/* -- Network: ARGUMENT is address:port of something that takes what is sent there; for round trips it answers ---- */

static int net_open(int type, int protocol)
{
    char address[32];
    const char *colon = strchr(argument, ':');
    if (!colon || colon - argument >= (long)sizeof(address))
        die("'%s' is not an address and a port", argument);
    memcpy(address, argument, (size_t)(colon - argument));
    address[colon - argument] = '\0';
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(colon + 1)) };
    struct timeval patience = { 1, 0 };
    int fd = socket(AF_INET, type, protocol);
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connect(fd, (struct sockaddr *)&to, sizeof(to)))
        die("%s: %s", argument, strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    return fd;
}
static void udp_round_trip(unsigned long n)
{
    char data[64] = "ping";
    int fd = net_open(SOCK_DGRAM, 0), lost = 0;
    while (n--)
        if (send(fd, data, sizeof(data), 0) != sizeof(data) || recv(fd, data, sizeof(data), 0) != sizeof(data))
            if (++lost > 3)
                die("%s: no answer", argument);
    close(fd);
}
static void udp_send(unsigned long n)
{
    char data[64] = "";
    int fd = net_open(SOCK_DGRAM, 0);
    while (n--)
        if (send(fd, data, sizeof(data), 0) < 0 && errno != ECONNREFUSED && errno != ENOBUFS)
            die("%s: %s", argument, strerror(errno));
    close(fd);
}

/* An echo request and its answer. */
static void ping(unsigned long n)
{
    struct {
        struct icmphdr h;
        char data[56];
    } out = { .h = { .type = ICMP_ECHO, .un.echo.id = 0x5656 } };
    char in[256];
    int fd = net_open(SOCK_RAW, IPPROTO_ICMP), lost = 0;
    while (n--) {
        out.h.un.echo.sequence++;
        out.h.checksum = 0;
        unsigned sum = 0;
        for (unsigned i = 0; i < sizeof(out) / 2; i++)
            sum += ((unsigned short *)&out)[i];
        sum = (sum & 0xffff) + (sum >> 16);
        out.h.checksum = (unsigned short)~(sum + (sum >> 16));
        if (send(fd, &out, sizeof(out), 0) != sizeof(out))
            die("%s: %s", argument, strerror(errno));
        for (;;) {
            ssize_t len = recv(fd, in, sizeof(in), 0);
            const struct icmphdr *h = (const struct icmphdr *)(in + 20); /* behind the IP header */
            if (len < 0 && ++lost > 3)
                die("%s: no answer", argument);
            if (len < 0 || (len >= 28 && h->type == ICMP_ECHOREPLY && h->un.echo.sequence == out.h.un.echo.sequence))
                break;
        }
    }
    close(fd);
}
/* Bulk: n times 64 KiB, until the other side has all of it. */
static void tcp_send(unsigned long n)
{
    static char data[65536];
    int fd = net_open(SOCK_STREAM, 0);
    while (n--)
        for (size_t at = 0; at < sizeof(data);) {
            ssize_t done = send(fd, data + at, sizeof(data) - at, 0);
            if (done <= 0)
                die("%s: %s", argument, strerror(errno));
            at += (size_t)done;
        }
    shutdown(fd, SHUT_WR);
    if (recv(fd, data, 1, 0) != 0)
        die("%s: not all was taken: %s", argument, strerror(errno));
    close(fd);
}

/* -- Compiling: ARGUMENT is a C file ---------------------------------------------------------------------------- */

static void compile(unsigned long n)
{
    static char gcc[] = "/usr/bin/gcc", o2[] = "-O2", c[] = "-c", o[] = "-o", out[] = "/tmp/out.o";
    static char path[] = "PATH=/usr/bin:/bin";
    char *argv[] = { gcc, o2, c, strdup(argument), o, out, NULL }, *env[] = { path, NULL };
    while (n--) {
        pid_t child;
        int status;
        if (posix_spawn(&child, gcc, NULL, NULL, argv, env))
            die("posix_spawn: %s", gcc);
        waitpid(child, &status, 0);
        if (status)
            die("gcc: status %#x", (unsigned)status);
    }
}

/* -- The table -------------------------------------------------------------------------------------------- */

/* clang-format off */
static const struct line {
    const char *name;
    void (*run)(unsigned long operations);
    unsigned long operations; /* at scale 1 */
} lines[] = {
    { "clock",        clock_read,     2000000 },
    { "timer",        timer_program,  1000000 },
    { "sleep",        timer_sleep,    5000 },
    { "syscall",      empty_syscall,  2000000 },
    { "switch",       context_switch, 40000 },
    { "exec",         fork_exec,      500 },
    { "map-1",        map_1,          50000 },
    { "map-64",       map_64,         5000 },
    { "map-4096",     map_4096,       50 },
    { "fault",        demand_fault,   100000 },
    { "console",      console_output, 1000 },
    { "ipi",          ipi_all,        10000 },
    { "shootdown",    shootdown,      10000 },
    { "wake",         wake_sleeping,  10000 },
    { "spinlock",     spinlocks,      100000 },
    { "udp",          udp_round_trip, 5000 },
    { "udp-out",      udp_send,       50000 },
    { "ping",         ping,           5000 },
    { "tcp-out",      tcp_send,       2000 },
    { "compile",      compile,        10 },
    { "read4k",       read_4k,        5000 },
    { "read4k-16",    read_4k_16,     20000 },
    { "write4k-16",   write_4k_16,    20000 },
    { "read1m",       read_1m,        400 },
    { "write1m",      write_1m,       400 },
};
/* clang-format on */

/* The boot is over: what was counted since the machine was made (src/monitor/counters.h). How long it took only the host knows. */
static void say_boot(const char *name)
{
    static bool counted;
    if (!counted)
        counters_stop();
    counted = true;
    printf("pv: %s 1 0", name);
    for (unsigned i = 0; i < nr_counters; i++)
        printf(" %llu", counter[i]);
    printf("\n");
    fflush(stdout);
}

static void run(const struct line *line, double scale)
{
    unsigned long n = (unsigned long)((double)line->operations * scale);
    unsigned long long best = ~0ull, of_best[MAX_COUNTERS] = { 0 };
    n = n / PARTS + 2;
    bool others = line->run == ipi_all || line->run == shootdown;
    if (others)
        spinners_start();
    line->run(n); /* translate, allocate */
    for (unsigned long long t = 0; t < PART_NS;) { /* what a line sets up must not be what is measured */
        unsigned long long began = now_ns();
        line->run(n);
        t = now_ns() - began;
        if (t < PART_NS)
            n = t * 16 < PART_NS ? n * 16 : n * PART_NS / t + n / 8 + 1;
    }
    for (unsigned part = 0; part < PARTS; part++) {
        if (others) { /* on their CPUs just now: a part without them would be the quickest */
            spinners_stop();
            spinners_start();
        }
        counters_start();
        unsigned long long t = now_ns();
        line->run(n);
        t = now_ns() - t;
        counters_stop();
        if (t >= best)
            continue;
        best = t;
        memcpy(of_best, counter, sizeof(counter));
    }
    if (others)
        spinners_stop();
    printf("pv: %s %lu %llu", line->name, n, best);
    for (unsigned i = 0; i < nr_counters; i++)
        printf(" %llu", of_best[i]);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "exit"))
        return 0;
    if (argc < 3) {
        fprintf(stderr, "usage: %s SCALE LINE[=ARGUMENT]...\n", argv[0]);
        return 2;
    }
    counters_open();
    for (int i = 2; i < argc; i++) {
        char *arg = strchr(argv[i], '=');
        if (arg)
            *arg++ = '\0';
        argument = arg ? arg : "";
        if (!strncmp(argv[i], "boot", 4)) {
            say_boot(argv[i]);
            continue;
        }
        const struct line *found = NULL;
        for (size_t k = 0; k < sizeof(lines) / sizeof(lines[0]); k++)
            if (!strcmp(lines[k].name, argv[i]))
                found = &lines[k];
        if (!found)
            die("no line '%s'", argv[i]);
        run(found, atof(argv[1]));
    }
    printf("pv: done\n");
    return 0;
}
