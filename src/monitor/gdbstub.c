/*
 * gdbstub.c - Source: GDB manual, appendix E (Remote Serial Protocol).
 * A gdb thread is a vCPU, from 1; all stop when one does (gdb_world.c).
 * Not done: vector registers beyond xmm, tracepoints, non-stop mode.
 */
#include "monitor/gdbstub.h"
#include "monitor/gdb_regs.h"
#include "monitor/gdb_world.h"
#include "base/sandbox.h"
#include "monitor/vm_inner.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define PACKET_MAX 16384

struct gdbstub {
    struct guest *vm;
    int listen_fd, fd, wake_fd;
    unsigned port;
    pthread_t thread;
    bool detached;
    int last_signal;
    struct gdb_world world;
    atomic_bool asked;    /* gdb wants a stop */
    struct vm_vcpu *said; /* who stopped last */
    struct vm_vcpu *cur;  /* whose registers and memory packets are about (Hg) */

    pthread_mutex_t lock; /* what follows */
    pthread_cond_t resumed;
    bool running, quit;

    u8 in[4096]; /* received, not yet parsed: [in_at, in_len) */
    size_t in_at, in_len;
    char packet[PACKET_MAX + 1];
    char reply[2 * PACKET_MAX];
};

/* -- Bytes and hex ---------------------------------------------------------------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static char *hex_put(char *to, const u8 *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        *to++ = digits[bytes[i] >> 4];
        *to++ = digits[bytes[i] & 15];
    }
    *to = '\0';
    return to;
}

/* Bytes written, stopping at the first that is not hex. */
static size_t hex_get(u8 *to, const char *from, size_t max)
{
    size_t n = 0;

    for (; n < max; n++) {
        int hi = hex_digit(from[2 * n]);
        int lo = hi < 0 ? -1 : hex_digit(from[2 * n + 1]);
        if (lo < 0)
            break;
        to[n] = (u8)(hi << 4 | lo);
    }
    return n;
}

/* A hex number; *s moves behind it. */
static u64 number(const char **s)
{
    u64 n = 0;

    while (hex_digit(**s) >= 0)
        n = n << 4 | (u64)hex_digit(*(*s)++);
    return n;
}

/* Skip one character if it is c. */
static bool skip(const char **s, char c)
{
    if (**s != c)
        return false;
    (*s)++;
    return true;
}

/* -- The line --------------------------------------------------------------------------------- */

static void hang_up(struct gdbstub *stub)
{
    if (stub->fd >= 0)
        close(stub->fd);
    stub->fd = -1;
    stub->in_at = stub->in_len = 0;
}

/* The next byte, or -1: gdb went away, or the VM has ended. */
static int get_byte(struct gdbstub *stub)
{
    while (stub->in_at == stub->in_len) {
        struct pollfd p[2] = { { .fd = stub->fd, .events = POLLIN },
                               { .fd = stub->wake_fd, .events = POLLIN } };
        if (stub->fd < 0 || vm_has_ended(stub->vm))
            return -1;
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return -1;
        if (!p[0].revents)
            continue;
        ssize_t n = recv(stub->fd, stub->in, sizeof(stub->in), 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            hang_up(stub);
            return -1;
        }
        stub->in_at = 0;
        stub->in_len = (size_t)n;
    }
    return stub->in[stub->in_at++];
}

static void put_bytes(struct gdbstub *stub, const char *bytes, size_t n)
{
    while (n && stub->fd >= 0) {
        ssize_t done = send(stub->fd, bytes, n, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            hang_up(stub);
            return;
        }
        bytes += done;
        n -= (size_t)done;
    }
}

/* $packet#checksum; 0 on success, -1 when the line is gone. Fills stub->packet. */
static int get_packet(struct gdbstub *stub)
{
    for (;;) {
        int c;
        do {
            c = get_byte(stub);
            if (c < 0)
                return -1;
        } while (c != '$');
        size_t n = 0;
        u8 sum = 0;
        while ((c = get_byte(stub)) >= 0 && c != '#') {
            sum = (u8)(sum + c);
            if (n < PACKET_MAX)
                stub->packet[n++] = (char)c;
        }
        int hi = get_byte(stub), lo = get_byte(stub);
        if (c < 0 || hi < 0 || lo < 0)
            return -1;
        stub->packet[n] = '\0';
        if (hex_digit((char)hi) == sum >> 4 && hex_digit((char)lo) == (sum & 15)) {
            put_bytes(stub, "+", 1);
            return 0;
        }
        put_bytes(stub, "-", 1);
    }
}

static void put_packet(struct gdbstub *stub, const char *text)
{
    u8 sum = 0;
    char tail[4];

    for (const char *p = text; *p; p++)
        sum = (u8)(sum + (u8)*p);
    snprintf(tail, sizeof(tail), "#%02x", sum);
    put_bytes(stub, "$", 1);
    put_bytes(stub, text, strlen(text));
    put_bytes(stub, tail, 3);
}

/* -- Requests --------------------------------------------------------------------------------- */

static void read_all_regs(struct gdbstub *stub, struct vm_vcpu *cpu)
{
    struct gdb_regfile f;
    char *to = stub->reply;
    u8 buf[16];

    gdb_regfile_load(&f, cpu->vcpu);
    for (unsigned i = 0; i < gdb_nr_regs; i++) {
        gdb_regfile_access(&f, &gdb_regs[i], buf, false);
        to = hex_put(to, buf, gdb_regs[i].size);
    }
}

static const char *write_all_regs(struct vm_vcpu *cpu, const char *hex)
{
    struct gdb_regfile f;
    u8 buf[16];

    gdb_regfile_load(&f, cpu->vcpu);
    for (unsigned i = 0; i < gdb_nr_regs; i++) {
        const struct gdb_reg *r = &gdb_regs[i];
        if (hex_get(buf, hex, r->size) != r->size)
            break;
        gdb_regfile_access(&f, r, buf, true);
        hex += 2 * r->size;
    }
    gdb_regfile_store(&f, cpu->vcpu, true);
    return "OK";
}

static const char *read_reg(struct gdbstub *stub, struct vm_vcpu *cpu, const char *s)
{
    struct gdb_regfile f;
    u8 buf[16];
    u64 n = number(&s);

    if (n >= gdb_nr_regs)
        return "E01";
    gdb_regfile_load(&f, cpu->vcpu);
    gdb_regfile_access(&f, &gdb_regs[n], buf, false);
    hex_put(stub->reply, buf, gdb_regs[n].size);
    return stub->reply;
}

static const char *write_reg(struct vm_vcpu *cpu, const char *s)
{
    struct gdb_regfile f;
    u8 buf[16];
    u64 n = number(&s);

    if (n >= gdb_nr_regs || !skip(&s, '=') ||
        hex_get(buf, s, gdb_regs[n].size) != gdb_regs[n].size)
        return "E01";
    gdb_regfile_load(&f, cpu->vcpu);
    gdb_regfile_access(&f, &gdb_regs[n], buf, true);
    gdb_regfile_store(&f, cpu->vcpu, gdb_regs[n].kind == G_BASE);
    return "OK";
}

static const char *read_memory(struct gdbstub *stub, struct vm_vcpu *cpu, const char *s)
{
    u8 buf[PACKET_MAX / 2];
    u64 la = number(&s);

    skip(&s, ',');
    u64 len = number(&s);
    len = MIN(len, (u64)sizeof(buf));
    /* What can be read: perhaps less than was asked for. */
    while (len && vitro_vcpu_read_la(cpu->vcpu, la, buf, len))
        len = len > 1 ? len / 2 : 0;
    if (!len)
        return "E14";
    hex_put(stub->reply, buf, len);
    return stub->reply;
}

static const char *write_memory(struct vm_vcpu *cpu, const char *s)
{
    u8 buf[PACKET_MAX / 2];
    u64 la = number(&s);

    skip(&s, ',');
    u64 len = number(&s);
    if (!skip(&s, ':') || len > sizeof(buf) || hex_get(buf, s, len) != len)
        return "E01";
    return len && vitro_vcpu_write_la(cpu->vcpu, la, buf, len) ? "E14" : "OK";
}

/* Z and z: 0 and 1 break, 2 watches writes, 3 and 4 accesses. On every vCPU, or on none. */
static int breakpoint_on(struct vm_vcpu *cpu, char type, u64 la, unsigned len, bool add)
{
    unsigned kind = type == '2' ? VITRO_WATCH_WRITE : VITRO_WATCH_ACCESS;

    if (type == '0' || type == '1')
        return add ? vitro_vcpu_add_breakpoint(cpu->vcpu, la) : vitro_vcpu_del_breakpoint(cpu->vcpu, la);
    return add ? vitro_vcpu_add_watchpoint(cpu->vcpu, la, len, kind) : vitro_vcpu_del_watchpoint(cpu->vcpu, la, len, kind);
}

static const char *breakpoint(struct guest *vm, const char *s, bool add)
{
    char type = *s++;
    int r = 0;

    skip(&s, ',');
    u64 la = number(&s);
    skip(&s, ',');
    unsigned len = (unsigned)number(&s);
    if (type < '0' || type > '4')
        return "";
    for (unsigned i = 0; i < vm->nr_vcpus && !r; i++) {
        r = breakpoint_on(&vm->vcpu[i], type, la, len, add);
        while (r && add && i-- > 0)
            breakpoint_on(&vm->vcpu[i], type, la, len, false);
    }
    return r ? "E22" : "OK";
}

/* -- Threads: vCPUs, by index + 1 -------------------------------------------------------------- */

static u64 all_vcpus(const struct gdbstub *stub)
{
    return ~0ull >> (64 - stub->vm->nr_vcpus);
}

/* A thread ID, perhaps with a process before it (p1.2); 0 and -1 mean any. NULL: there is none such. */
static struct vm_vcpu *thread_by_id(struct gdbstub *stub, const char **s, struct vm_vcpu *any)
{
    if (skip(s, 'p')) {
        number(s);
        if (!skip(s, '.'))
            return any;
    }
    if (skip(s, '-')) {
        number(s);
        return any;
    }
    u64 id = number(s);
    return !id ? any : id <= stub->vm->nr_vcpus ? &stub->vm->vcpu[id - 1] : NULL;
}

static const char *thread_list(struct gdbstub *stub)
{
    char *at = stub->reply;

    for (unsigned i = 0; i < stub->vm->nr_vcpus; i++)
        at += sprintf(at, "%c%x", i ? ',' : 'm', i + 1);
    return stub->reply;
}

static const char *thread_info(struct gdbstub *stub, const char *s)
{
    struct vm_vcpu *cpu = thread_by_id(stub, &s, NULL);
    char text[48];

    if (!cpu)
        return "E01";
    snprintf(text, sizeof(text), "CPU %u%s", cpu->index,
             cpu->waiting ? ", not started" : atomic_load(&cpu->asleep) ? ", halted" : "");
    hex_put(stub->reply, (const u8 *)text, strlen(text));
    return stub->reply;
}

/*
 * What comes behind vCont: actions with threads; each vCPU does what the first that names it says, those none names stay
 * where they are. Returns which stay; sets who steps.
 */
static u64 resume_actions(struct gdbstub *stub, const char *s)
{
    u64 todo = all_vcpus(stub), stepping = 0;

    while (todo && skip(&s, ';')) {
        char action = *s;
        u64 who = todo;
        if (!action)
            break;
        s++;
        if (action == 'C' || action == 'S')
            number(&s); /* a signal to give: guests know none */
        if (skip(&s, ':')) {
            struct vm_vcpu *cpu = thread_by_id(stub, &s, NULL);
            who = cpu ? todo & BITULL(cpu->index) : todo;
        }
        if (action == 's' || action == 'S')
            stepping |= who;
        todo &= ~who;
    }
    for (unsigned i = 0; i < stub->vm->nr_vcpus; i++)
        vitro_vcpu_single_step(stub->vm->vcpu[i].vcpu, stepping >> i & 1);
    return todo;
}

static const char *query(struct gdbstub *stub, const char *s)
{
    static const char xfer[] = "qXfer:features:read:target.xml:";

    if (!strncmp(s, "qSupported", 10)) {
        snprintf(stub->reply, sizeof(stub->reply),
                 "PacketSize=%x;qXfer:features:read+;vContSupported+", PACKET_MAX);
        return stub->reply;
    }
    if (!strncmp(s, xfer, sizeof(xfer) - 1)) {
        char xml[8192];
        gdb_target_xml(xml, sizeof(xml));
        s += sizeof(xfer) - 1;
        u64 at = number(&s), size = strlen(xml);
        skip(&s, ',');
        u64 len = number(&s); /* MIN() would parse it twice */
        len = MIN(len, (u64)PACKET_MAX - 16);
        if (at > size)
            return "E01";
        snprintf(stub->reply, sizeof(stub->reply), "%c%.*s",
                 len < size - at ? 'm' : 'l', (int)MIN(len, size - at), xml + at);
        return stub->reply;
    }
    if (!strcmp(s, "qAttached"))
        return "1";
    if (!strcmp(s, "qC")) {
        snprintf(stub->reply, sizeof(stub->reply), "QC%x", stub->cur->index + 1);
        return stub->reply;
    }
    if (!strcmp(s, "qfThreadInfo"))
        return thread_list(stub);
    if (!strncmp(s, "qThreadExtraInfo,", 17))
        return thread_info(stub, s + 17);
    if (!strcmp(s, "qsThreadInfo"))
        return "l";
    return "";
}

static const char *stop_reply(struct gdbstub *stub)
{
    struct vm_vcpu *cpu = stub->said;
    u64 hit = vitro_vcpu_watch_hit(cpu->vcpu);
    int sig = stub->last_signal ? stub->last_signal : 5;

    if (hit)
        snprintf(stub->reply, sizeof(stub->reply), "T%02xwatch:%llx;thread:%x;",
                 (unsigned)sig, (unsigned long long)hit, cpu->index + 1);
    else
        snprintf(stub->reply, sizeof(stub->reply), "T%02xthread:%x;", (unsigned)sig, cpu->index + 1);
    return stub->reply;
}

/* Answer one packet. False when the VM goes on, but for the vCPUs in *frozen. */
static bool answer(struct gdbstub *stub, u64 *frozen)
{
    const char *s = stub->packet, *reply = "";
    struct vm_vcpu *cpu = stub->cur, *other;
    char what;

    switch (*s++) {
    case '?':
        reply = stop_reply(stub);
        break;
    case 'g':
        read_all_regs(stub, cpu);
        reply = stub->reply;
        break;
    case 'G':
        reply = write_all_regs(cpu, s);
        break;
    case 'p':
        reply = read_reg(stub, cpu, s);
        break;
    case 'P':
        reply = write_reg(cpu, s);
        break;
    case 'm':
        reply = read_memory(stub, cpu, s);
        break;
    case 'M':
        reply = write_memory(cpu, s);
        break;
    case 'Z':
    case 'z':
        reply = breakpoint(stub->vm, s, s[-1] == 'Z');
        break;
    case 'q':
        reply = query(stub, s - 1);
        break;
    case 'H':
        what = *s++;
        other = thread_by_id(stub, &s, stub->said);
        if (other && what == 'g')
            stub->cur = other;
        reply = other ? "OK" : "E01";
        break;
    case 'T':
        reply = thread_by_id(stub, &s, stub->said) ? "OK" : "E01";
        break;
    case 'v':
        if (!strcmp(s, "Cont?")) {
            reply = "vCont;c;C;s;S";
            break;
        }
        if (strncmp(s, "Cont;", 5))
            break;
        *frozen = resume_actions(stub, s + 4);
        reply = "E01";
        if (*frozen == all_vcpus(stub)) /* nobody would ever stop */
            break;
        return false;
    case 's':
    case 'S': {
        char action[32];
        snprintf(action, sizeof(action), ";s:%x;c", cpu->index + 1);
        *frozen = resume_actions(stub, action);
        return false;
    }
    case 'c':
    case 'C':
        *frozen = resume_actions(stub, ";c");
        return false;
    case 'D':
        put_packet(stub, "OK");
        stub->detached = true;
        hang_up(stub);
        return false;
    case 'k':
        vm_end(stub->vm, VM_LEAVE, STATUS_OK, "%s", "");
        return false;
    default:
        break;
    }
    put_packet(stub, reply);
    return true;
}

/* -- Threads ---------------------------------------------------------------------------------- */

/* Wait for gdb to connect. False when the VM ended first. */
static bool answer_call(struct gdbstub *stub)
{
    struct pollfd p[2] = { { .fd = stub->listen_fd, .events = POLLIN },
                           { .fd = stub->wake_fd, .events = POLLIN } };
    int one = 1;

    while (stub->fd < 0) {
        if (vm_has_ended(stub->vm))
            return false;
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return false;
        if (p[0].revents)
            stub->fd = accept4(stub->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    }
    setsockopt(stub->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return true;
}

static void set_running(struct gdbstub *stub, bool running)
{
    pthread_mutex_lock(&stub->lock);
    stub->running = running;
    pthread_cond_broadcast(&stub->resumed);
    pthread_mutex_unlock(&stub->lock);
}

static void no_more_steps(struct gdbstub *stub)
{
    for (unsigned i = 0; i < stub->vm->nr_vcpus; i++)
        vitro_vcpu_single_step(stub->vm->vcpu[i].vcpu, false);
}

static void speak(struct gdbstub *stub, struct vm_vcpu *cpu, int sig, u64 *frozen)
{
    bool first = stub->fd < 0 && !stub->detached && !stub->last_signal;

    set_running(stub, false);
    if (stub->detached || (!first && stub->fd < 0)) {
        /* Nobody is there to ask: go on as if there had never been. */
        no_more_steps(stub);
        return;
    }
    if (first)
        say("waiting for gdb; in gdb: target remote :%u", stub->port);
    stub->last_signal = sig ? sig : 5;
    stub->said = stub->cur = cpu;
    if (!answer_call(stub))
        return;
    if (!first)
        put_packet(stub, stop_reply(stub));
    while (!get_packet(stub))
        if (!answer(stub, frozen))
            break;
    if (stub->fd < 0)
        no_more_steps(stub);
    set_running(stub, true);
}

void gdbstub_stopped(struct gdbstub *stub, struct vm_vcpu *cpu, int sig)
{
    u64 frozen = 0;

    gdb_world_stop(&stub->world, cpu);
    if (!vm_has_ended(cpu->vm))
        speak(stub, cpu, sig, &frozen);
    gdb_world_go(&stub->world, frozen);
}

bool gdbstub_wants_stop(struct gdbstub *stub)
{
    return atomic_exchange(&stub->asked, false);
}

void gdbstub_enter(struct gdbstub *stub, struct vm_vcpu *cpu)
{
    gdb_world_enter(&stub->world, cpu);
}

void gdbstub_leave(struct gdbstub *stub)
{
    gdb_world_leave(&stub->world);
}

/* While the vCPU runs, gdb sends one thing only: byte 3, stop. */
static void *listen_thread(void *arg)
{
    struct gdbstub *stub = arg;

    sandbox_enter(SANDBOX_GDB);
    for (;;) {
        pthread_mutex_lock(&stub->lock);
        while (!stub->running && !stub->quit)
            pthread_cond_wait(&stub->resumed, &stub->lock);
        bool quit = stub->quit;
        int fd = stub->fd;
        pthread_mutex_unlock(&stub->lock);
        if (quit)
            return NULL;
        struct pollfd p = { .fd = fd, .events = POLLIN };
        /* Short naps instead of a second wake-up channel: stopping is not in a hurry. */
        if (fd < 0 || poll(&p, 1, 50) <= 0) {
            if (fd < 0)
                poll(NULL, 0, 50);
            continue;
        }
        u8 byte;
        pthread_mutex_lock(&stub->lock);
        bool stop = stub->running && stub->fd == fd &&
                    recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
        if (stop && byte == 3) {
            ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT);
            (void)n;
        }
        if (stop)
            stub->running = false;
        pthread_mutex_unlock(&stub->lock);
        if (stop) {
            atomic_store(&stub->asked, true);
            for (unsigned i = 0; i < stub->vm->nr_vcpus; i++)
                vm_vcpu_kick(&stub->vm->vcpu[i], VITRO_KICK_STOP);
        } else {
            poll(NULL, 0, 50); /* gdb hung up; the next stop notices */
        }
    }
}

void gdbstub_wake(struct gdbstub *stub)
{
    u64 one = 1;
    ssize_t n = write(stub->wake_fd, &one, sizeof(one));
    (void)n;
    gdb_world_wake(&stub->world);
}

struct gdbstub *gdbstub_create(struct guest *vm, unsigned port)
{
    struct sockaddr_in a = { .sin_family = AF_INET,
                             .sin_port = htons((u16)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct gdbstub *stub = calloc(1, sizeof(*stub));
    int one = 1, r;

    if (!stub)
        return NULL;
    stub->vm = vm;
    stub->port = port;
    stub->fd = -1;
    stub->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    stub->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pthread_mutex_init(&stub->lock, NULL);
    pthread_cond_init(&stub->resumed, NULL);
    gdb_world_init(&stub->world);
    setsockopt(stub->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (stub->wake_fd < 0 || stub->listen_fd < 0 ||
        bind(stub->listen_fd, (struct sockaddr *)&a, sizeof(a)) ||
        listen(stub->listen_fd, 1)) {
        say("--gdb: cannot listen on port %u: %s; choose another", port,
            strerror(errno));
        goto fail;
    }
    r = pthread_create(&stub->thread, NULL, listen_thread, stub);
    if (r) {
        say("--gdb: %s", strerror(r));
        goto fail;
    }
    return stub;
fail:
    if (stub->listen_fd >= 0)
        close(stub->listen_fd);
    if (stub->wake_fd >= 0)
        close(stub->wake_fd);
    free(stub);
    return NULL;
}

void gdbstub_destroy(struct gdbstub *stub, int status)
{
    char text[8];

    pthread_mutex_lock(&stub->lock);
    stub->quit = true;
    pthread_cond_broadcast(&stub->resumed);
    pthread_mutex_unlock(&stub->lock);
    pthread_join(stub->thread, NULL);
    snprintf(text, sizeof(text), "W%02x", status & 0xff);
    if (stub->fd >= 0)
        put_packet(stub, text);
    hang_up(stub);
    close(stub->listen_fd);
    close(stub->wake_fd);
    gdb_world_fini(&stub->world);
    pthread_cond_destroy(&stub->resumed);
    pthread_mutex_destroy(&stub->lock);
    free(stub);
}
