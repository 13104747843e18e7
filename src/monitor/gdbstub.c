/*
 * gdbstub.c - Source: GDB manual, appendix E (Remote Serial Protocol).
 * Not done: more than one vCPU, vector registers beyond xmm, tracepoints.
 */
#include "monitor/gdbstub.h"
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

    pthread_mutex_t lock; /* what follows */
    pthread_cond_t resumed;
    bool running, quit;

    u8 in[4096]; /* received, not yet parsed: [in_at, in_len) */
    size_t in_at, in_len;
    char packet[PACKET_MAX + 1];
    char reply[2 * PACKET_MAX];
};

/* -- Registers -------------------------------------------------------------------------------- */

/* How gdb numbers them, and in which order 'g' sends them. target.xml is made from this table. */
enum gdb_kind { G_GPR, G_RIP, G_EFLAGS, G_SEG, G_ST, G_FCTRL, G_XMM, G_MXCSR, G_BASE };
struct gdb_reg {
    const char *name;
    const char *type;
    u8 kind, index, size;
    u8 feature; /* 0 core, 1 sse, 2 segments */
};

/* clang-format off */
#define GPR(n, i) { n, "int64", G_GPR, i, 8, 0 }
#define SEGR(n, i) { n, "int32", G_SEG, i, 4, 0 }
#define ST(n, i) { n, "i387_ext", G_ST, i, 10, 0 }
#define FC(n, i) { n, "int", G_FCTRL, i, 4, 0 }
#define XMM(n, i) { n, "uint128", G_XMM, i, 16, 1 }
static const struct gdb_reg gdb_regs[] = {
    GPR("rax", RAX), GPR("rbx", RBX), GPR("rcx", RCX), GPR("rdx", RDX),
    GPR("rsi", RSI), GPR("rdi", RDI), { "rbp", "data_ptr", G_GPR, RBP, 8, 0 },
    { "rsp", "data_ptr", G_GPR, RSP, 8, 0 },
    GPR("r8", 8), GPR("r9", 9), GPR("r10", 10), GPR("r11", 11),
    GPR("r12", 12), GPR("r13", 13), GPR("r14", 14), GPR("r15", 15),
    { "rip", "code_ptr", G_RIP, 0, 8, 0 }, { "eflags", "int32", G_EFLAGS, 0, 4, 0 },
    SEGR("cs", SEG_CS), SEGR("ss", SEG_SS), SEGR("ds", SEG_DS), SEGR("es", SEG_ES),
    SEGR("fs", SEG_FS), SEGR("gs", SEG_GS),
    ST("st0", 0), ST("st1", 1), ST("st2", 2), ST("st3", 3),
    ST("st4", 4), ST("st5", 5), ST("st6", 6), ST("st7", 7),
    FC("fctrl", 0), FC("fstat", 1), FC("ftag", 2), FC("fiseg", 3),
    FC("fioff", 4), FC("foseg", 5), FC("fooff", 6), FC("fop", 7),
    XMM("xmm0", 0), XMM("xmm1", 1), XMM("xmm2", 2), XMM("xmm3", 3),
    XMM("xmm4", 4), XMM("xmm5", 5), XMM("xmm6", 6), XMM("xmm7", 7),
    XMM("xmm8", 8), XMM("xmm9", 9), XMM("xmm10", 10), XMM("xmm11", 11),
    XMM("xmm12", 12), XMM("xmm13", 13), XMM("xmm14", 14), XMM("xmm15", 15),
    { "mxcsr", "int32", G_MXCSR, 0, 4, 1 },
    { "fs_base", "int", G_BASE, SEG_FS, 8, 2 }, { "gs_base", "int", G_BASE, SEG_GS, 8, 2 },
};
#undef GPR
#undef SEGR
#undef ST
#undef FC
#undef XMM
/* clang-format on */

static const char *const gdb_features[] = {
    "org.gnu.gdb.i386.core",
    "org.gnu.gdb.i386.sse",
    "org.gnu.gdb.i386.segments",
};

static void make_target_xml(char *xml, size_t size)
{
    size_t at = (size_t)snprintf(
        xml, size,
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">"
        "<target><architecture>i386:x86-64</architecture>");
    for (unsigned f = 0; f < ARRAY_SIZE(gdb_features); f++) {
        at += (size_t)snprintf(xml + at, size - at, "<feature name=\"%s\">",
                               gdb_features[f]);
        for (unsigned i = 0; i < ARRAY_SIZE(gdb_regs); i++) {
            const struct gdb_reg *r = &gdb_regs[i];
            if (r->feature == f)
                at += (size_t)snprintf(
                    xml + at, size - at,
                    "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\" regnum=\"%u\"/>",
                    r->name, r->size * 8u, r->type, i);
        }
        at += (size_t)snprintf(xml + at, size - at, "</feature>");
    }
    snprintf(xml + at, size - at, "</target>");
}

/* A vCPU's registers taken out, to be read or changed, and put back. */
struct regfile {
    struct vitro_regs regs;
    struct vitro_sregs sregs;
    u8 *xsave; /* legacy area: x87 at 0..., xmm at 160 (SDM vol. 1 §10.5.1) */
};

static void regfile_load(struct regfile *f, struct vitro_vcpu *vcpu)
{
    vitro_vcpu_get_regs(vcpu, &f->regs);
    vitro_vcpu_get_sregs(vcpu, &f->sregs);
    f->xsave = vitro_vcpu_xsave(vcpu);
}

static struct vitro_segment *regfile_seg(struct regfile *f, unsigned index)
{
    struct vitro_sregs *s = &f->sregs;
    struct vitro_segment *const seg[] = { &s->es, &s->cs, &s->ss,
                                          &s->ds, &s->fs, &s->gs };
    return seg[index];
}

static void regfile_copy(void *field, u8 *buf, unsigned n, bool write)
{
    if (write)
        memcpy(field, buf, n);
    else
        memcpy(buf, field, n);
}

/* Selectors are shown, not loaded: writing one would need the descriptor. */
static void regfile_access(struct regfile *f, const struct gdb_reg *r, u8 *buf,
                           bool write)
{
    u32 sel;

    if (!write)
        memset(buf, 0, r->size);
    switch (r->kind) {
    case G_GPR:
        regfile_copy(&f->regs.gpr[r->index], buf, 8, write);
        break;
    case G_RIP:
        regfile_copy(&f->regs.rip, buf, 8, write);
        break;
    case G_EFLAGS:
        regfile_copy(&f->regs.rflags, buf, 4, write);
        break;
    case G_SEG:
        sel = regfile_seg(f, r->index)->selector;
        if (!write)
            memcpy(buf, &sel, 4);
        break;
    case G_BASE:
        regfile_copy(&regfile_seg(f, r->index)->base, buf, 8, write);
        break;
    case G_ST:
        if (f->xsave)
            regfile_copy(f->xsave + 32 + 16 * r->index, buf, 10, write);
        break;
    case G_FCTRL:
        if (f->xsave && r->index < 2)
            regfile_copy(f->xsave + 2 * r->index, buf, 2, write);
        break;
    case G_XMM:
        if (f->xsave)
            regfile_copy(f->xsave + 160 + 16 * r->index, buf, 16, write);
        break;
    case G_MXCSR:
        if (f->xsave)
            regfile_copy(f->xsave + 24, buf, 4, write);
        break;
    }
}

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
    struct regfile f;
    char *to = stub->reply;
    u8 buf[16];

    regfile_load(&f, cpu->vcpu);
    for (unsigned i = 0; i < ARRAY_SIZE(gdb_regs); i++) {
        regfile_access(&f, &gdb_regs[i], buf, false);
        to = hex_put(to, buf, gdb_regs[i].size);
    }
}

static void regfile_store(struct regfile *f, struct vm_vcpu *cpu, bool sregs)
{
    if (sregs)
        vitro_vcpu_set_sregs(cpu->vcpu, &f->sregs);
    vitro_vcpu_set_regs(cpu->vcpu, &f->regs);
}

static const char *write_all_regs(struct vm_vcpu *cpu, const char *hex)
{
    struct regfile f;
    u8 buf[16];

    regfile_load(&f, cpu->vcpu);
    for (unsigned i = 0; i < ARRAY_SIZE(gdb_regs); i++) {
        const struct gdb_reg *r = &gdb_regs[i];
        if (hex_get(buf, hex, r->size) != r->size)
            break;
        regfile_access(&f, r, buf, true);
        hex += 2 * r->size;
    }
    regfile_store(&f, cpu, true);
    return "OK";
}

static const char *read_reg(struct gdbstub *stub, struct vm_vcpu *cpu, const char *s)
{
    struct regfile f;
    u8 buf[16];
    u64 n = number(&s);

    if (n >= ARRAY_SIZE(gdb_regs))
        return "E01";
    regfile_load(&f, cpu->vcpu);
    regfile_access(&f, &gdb_regs[n], buf, false);
    hex_put(stub->reply, buf, gdb_regs[n].size);
    return stub->reply;
}

static const char *write_reg(struct vm_vcpu *cpu, const char *s)
{
    struct regfile f;
    u8 buf[16];
    u64 n = number(&s);

    if (n >= ARRAY_SIZE(gdb_regs) || !skip(&s, '=') ||
        hex_get(buf, s, gdb_regs[n].size) != gdb_regs[n].size)
        return "E01";
    regfile_load(&f, cpu->vcpu);
    regfile_access(&f, &gdb_regs[n], buf, true);
    regfile_store(&f, cpu, gdb_regs[n].kind == G_BASE);
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

/* Z and z: 0 and 1 break, 2 watches writes, 3 and 4 accesses. */
static const char *breakpoint(struct vm_vcpu *cpu, const char *s, bool add)
{
    char type = *s++;
    int r;

    skip(&s, ',');
    u64 la = number(&s);
    skip(&s, ',');
    unsigned len = (unsigned)number(&s);
    unsigned kind = type == '2' ? VITRO_WATCH_WRITE : VITRO_WATCH_ACCESS;
    if (type == '0' || type == '1')
        r = add ? vitro_vcpu_add_breakpoint(cpu->vcpu, la)
                : vitro_vcpu_del_breakpoint(cpu->vcpu, la);
    else if (type >= '2' && type <= '4')
        r = add ? vitro_vcpu_add_watchpoint(cpu->vcpu, la, len, kind)
                : vitro_vcpu_del_watchpoint(cpu->vcpu, la, len, kind);
    else
        return "";
    return r ? "E22" : "OK";
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
        make_target_xml(xml, sizeof(xml));
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
    if (!strcmp(s, "qC"))
        return "QC1";
    if (!strcmp(s, "qfThreadInfo"))
        return "m1";
    if (!strcmp(s, "qsThreadInfo"))
        return "l";
    return "";
}

static const char *stop_reply(struct gdbstub *stub, struct vm_vcpu *cpu)
{
    u64 hit = vitro_vcpu_watch_hit(cpu->vcpu);
    int sig = stub->last_signal ? stub->last_signal : 5;

    if (hit)
        snprintf(stub->reply, sizeof(stub->reply), "T%02xwatch:%llx;thread:1;",
                 (unsigned)sig, (unsigned long long)hit);
    else
        snprintf(stub->reply, sizeof(stub->reply), "T%02xthread:1;", (unsigned)sig);
    return stub->reply;
}

/* Answer one packet. False when the vCPU goes on. */
static bool answer(struct gdbstub *stub, struct vm_vcpu *cpu)
{
    const char *s = stub->packet, *reply = "";
    bool step = false;

    switch (*s++) {
    case '?':
        reply = stop_reply(stub, cpu);
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
        reply = breakpoint(cpu, s, s[-1] == 'Z');
        break;
    case 'q':
        reply = query(stub, s - 1);
        break;
    case 'H':
    case 'T':
        reply = "OK";
        break;
    case 'v':
        if (!strcmp(s, "Cont?")) {
            reply = "vCont;c;C;s;S";
            break;
        }
        if (strncmp(s, "Cont;", 5))
            break;
        s += 6;
        /* fallthrough */
    case 's':
    case 'c':
    case 'S':
    case 'C':
        step = s[-1] == 's' || s[-1] == 'S';
        vitro_vcpu_single_step(cpu->vcpu, step);
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

void gdbstub_stopped(struct gdbstub *stub, struct vm_vcpu *cpu, int sig)
{
    bool first = stub->fd < 0 && !stub->detached && !stub->last_signal;

    set_running(stub, false);
    if (stub->detached || (!first && stub->fd < 0)) {
        /* Nobody is there to ask: go on as if there had never been. */
        vitro_vcpu_single_step(cpu->vcpu, false);
        return;
    }
    if (first)
        say("waiting for gdb; in gdb: target remote :%u", stub->port);
    stub->last_signal = sig ? sig : 5;
    if (!answer_call(stub))
        return;
    if (!first)
        put_packet(stub, stop_reply(stub, cpu));
    while (!get_packet(stub))
        if (!answer(stub, cpu))
            break;
    if (stub->fd < 0)
        vitro_vcpu_single_step(cpu->vcpu, false);
    set_running(stub, true);
}

/* While the vCPU runs, gdb sends one thing only: byte 3, stop. */
static void *listen_thread(void *arg)
{
    struct gdbstub *stub = arg;

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
        if (stop)
            vm_vcpu_kick(&stub->vm->vcpu[0], VITRO_KICK_STOP);
        else
            poll(NULL, 0, 50); /* gdb hung up; the next stop notices */
    }
}

void gdbstub_wake(struct gdbstub *stub)
{
    u64 one = 1;
    ssize_t n = write(stub->wake_fd, &one, sizeof(one));
    (void)n;
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
    pthread_cond_destroy(&stub->resumed);
    pthread_mutex_destroy(&stub->lock);
    free(stub);
}
