/*
 * control.c - clients of the control socket and of the shared console, on one thread. Locks: `guest_lock` is
 * held while a command runs (the guest cannot go away meanwhile), `lock` protects clients' output and the
 * console's history. guest_lock before lock; `lock` is a leaf.
 */
#include "monitor/control.h"
#include "monitor/rundir.h"
#include "monitor/vm_inner.h"
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define CONTROL_CLIENTS 16
#define CONSOLE_CLIENTS 8
#define HISTORY 16384u             /* bytes of console output that a newcomer sees */
#define CONSOLE_BEHIND (1u << 20)  /* a console client that is further behind is let go */

struct control_client {
    struct qmp_conn conn; /* fd -1: free */
    bool negotiated;
};

struct console_client {
    int fd; /* -1: free */
    u8 *out;
    size_t out_len;
};

struct control {
    char dir[PATH_MAX], name[VM_NAME_MAX + 1];
    char console_path[PATH_MAX];
    int lock_fd, wake_fd, listen_fd, console_fd;
    pthread_t thread;
    bool running;
    atomic_bool stop;

    pthread_mutex_t guest_lock;
    struct guest *vm;

    pthread_mutex_t lock; /* what follows */
    struct control_client client[CONTROL_CLIENTS];
    struct console_client console[CONSOLE_CLIENTS];
    u8 history[HISTORY];
    u64 written; /* bytes ever; history holds the last of them */
};

const char *control_console_path(const struct control *ctl)
{
    return ctl->console_path;
}

static void wake(struct control *ctl)
{
    u64 one = 1;
    ssize_t n = write(ctl->wake_fd, &one, sizeof(one));
    (void)n; /* can only fail when already woken very often */
}

int control_fail(struct qmp_error *e, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(e->desc, sizeof(e->desc), fmt, ap);
    va_end(ap);
    e->class = "GenericError";
    return -1;
}

/* -- Messages ------------------------------------------------------------------------------------- */

static void greet(struct control_client *c)
{
    qmp_send(&c->conn, json_pack("{s:{s:{s:{s:i,s:i,s:i},s:s},s:[]}}", "QMP", "version", "qemu", "major", 0,
                                 "minor", 1, "micro", 0, "package", "vitro " VITRO_VERSION, "capabilities"));
}

void control_event(struct control *ctl, const char *name, json_t *data)
{
    struct timeval now;

    gettimeofday(&now, NULL);
    if (!data)
        data = json_object();
    pthread_mutex_lock(&ctl->lock);
    for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
        struct control_client *c = &ctl->client[i];
        if (c->conn.fd < 0 || !c->negotiated)
            continue;
        qmp_send(&c->conn, json_pack("{s:s,s:O,s:{s:I,s:I}}", "event", name, "data", data, "timestamp",
                                     "seconds", (json_int_t)now.tv_sec, "microseconds",
                                     (json_int_t)now.tv_usec));
    }
    pthread_mutex_unlock(&ctl->lock);
    json_decref(data);
}

/* Is `name` in the row's list? Marked with '!' there: must be given. */
static bool arg_known(const char *list, const char *name, size_t len)
{
    while (*list) {
        size_t n = strcspn(list, " ");
        size_t bare = n && list[n - 1] == '!' ? n - 1 : n;
        if (bare == len && !strncmp(list, name, len))
            return true;
        list += n + (list[n] == ' ');
    }
    return false;
}

static int check_args(const struct control_command *cmd, json_t *args, struct qmp_error *e)
{
    const char *key;
    json_t *value;

    json_object_foreach (args, key, value)
        if (!arg_known(cmd->args, key, strlen(key)))
            return control_fail(e, "%s has no argument '%s'", cmd->name, key);
    for (const char *p = cmd->args; *p;) {
        size_t n = strcspn(p, " ");
        char name[64];
        if (p[n - 1] == '!') {
            snprintf(name, sizeof(name), "%.*s", (int)n - 1, p);
            if (!json_object_get(args, name))
                return control_fail(e, "%s wants the argument '%s'", cmd->name, name);
        }
        p += n + (p[n] == ' ');
    }
    return 0;
}

static int execute(struct control *ctl, struct control_client *c, json_t *msg, json_t **ret,
                   struct qmp_error *e)
{
    const char *name = json_string_value(json_object_get(msg, "execute")), *key;
    json_t *args = json_object_get(msg, "arguments"), *value;
    const struct control_command *cmd = control_commands;

    if (!name)
        return control_fail(e, "a message needs \"execute\" with the name of a command");
    json_object_foreach (msg, key, value)
        if (strcmp(key, "execute") && strcmp(key, "arguments") && strcmp(key, "id"))
            return control_fail(e, "a message has no member '%s'", key);
    if (args && !json_is_object(args))
        return control_fail(e, "\"arguments\" must be an object");
    if (!strcmp(name, "qmp_capabilities") && !c->negotiated) {
        pthread_mutex_lock(&ctl->lock);
        c->negotiated = true;
        pthread_mutex_unlock(&ctl->lock);
        return 0;
    }
    if (!c->negotiated) {
        control_fail(e, "send qmp_capabilities first");
        e->class = "CommandNotFound";
        return -1;
    }
    while (cmd->name && strcmp(cmd->name, name))
        cmd++;
    if (!cmd->name) {
        control_fail(e, "The command %s has not been found", name);
        e->class = "CommandNotFound";
        return -1;
    }
    if (check_args(cmd, args, e))
        return -1;
    pthread_mutex_lock(&ctl->guest_lock);
    int r = cmd->needs_vm && (!ctl->vm || vm_has_ended(ctl->vm)) ?
                control_fail(e, "there is no running guest just now") :
                cmd->run(ctl, ctl->vm, args, ret, e);
    pthread_mutex_unlock(&ctl->guest_lock);
    return r;
}

static void serve(struct control *ctl, struct control_client *c)
{
    struct qmp_error e = { .class = "GenericError" };
    json_t *msg, *ret, *answer, *id;

    pthread_mutex_lock(&ctl->lock);
    qmp_read(&c->conn);
    while (c->conn.fd >= 0) {
        int r = qmp_next(&c->conn, &msg, e.desc, sizeof(e.desc));
        if (!r)
            break;
        id = ret = NULL;
        if (r > 0) {
            id = json_incref(json_object_get(msg, "id"));
            pthread_mutex_unlock(&ctl->lock);
            r = execute(ctl, c, msg, &ret, &e);
            json_decref(msg);
            pthread_mutex_lock(&ctl->lock);
        }
        if (r)
            answer = json_pack("{s:{s:s,s:s}}", "error", "class", e.class, "desc", e.desc);
        else
            answer = json_pack("{s:o}", "return", ret ? ret : json_object());
        if (id)
            json_object_set_new(answer, "id", id);
        qmp_send(&c->conn, answer);
    }
    pthread_mutex_unlock(&ctl->lock);
}

/* -- Console ---------------------------------------------------------------------------------------- */

static void console_close(struct console_client *c)
{
    close(c->fd);
    free(c->out);
    *c = (struct console_client){ .fd = -1 };
}

static void console_flush(struct console_client *c)
{
    while (c->fd >= 0 && c->out_len) {
        ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            console_close(c);
            return;
        }
        c->out_len -= (size_t)n;
        memmove(c->out, c->out + n, c->out_len);
    }
}

static void console_queue(struct console_client *c, const u8 *bytes, size_t len)
{
    if (c->fd < 0 || !len)
        return;
    u8 *out = c->out_len + len > CONSOLE_BEHIND ? NULL : realloc(c->out, c->out_len + len);
    if (!out) { /* waiting for this reader would stop the guest */
        console_close(c);
        return;
    }
    c->out = out;
    memcpy(out + c->out_len, bytes, len);
    c->out_len += len;
    console_flush(c);
}

void control_console(struct control *ctl, const u8 *bytes, size_t len)
{
    bool waiting = false;

    if (!ctl)
        return;
    pthread_mutex_lock(&ctl->lock);
    for (size_t i = 0; i < len; i++)
        ctl->history[ctl->written++ % HISTORY] = bytes[i];
    for (unsigned i = 0; i < CONSOLE_CLIENTS; i++) {
        console_queue(&ctl->console[i], bytes, len);
        waiting |= ctl->console[i].out_len != 0;
    }
    pthread_mutex_unlock(&ctl->lock);
    if (waiting)
        wake(ctl);
}

static void console_accept(struct control *ctl)
{
    int fd = accept4(ctl->console_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct console_client *c = NULL;

    if (fd < 0)
        return;
    pthread_mutex_lock(&ctl->lock);
    for (unsigned i = 0; i < CONSOLE_CLIENTS && !c; i++)
        if (ctl->console[i].fd < 0)
            c = &ctl->console[i];
    if (c && rundir_peer_ok(fd)) {
        c->fd = fd;
        u64 from = ctl->written > HISTORY ? ctl->written - HISTORY : 0;
        u32 at = from % HISTORY, n = (u32)(ctl->written - from), first = MIN(n, HISTORY - at);
        console_queue(c, ctl->history + at, first);
        console_queue(c, ctl->history, n - first);
    } else {
        close(fd);
    }
    pthread_mutex_unlock(&ctl->lock);
}

/* What a client typed. What the guest does not take is lost, as on a real line. */
static void console_input(struct control *ctl, struct console_client *c)
{
    u8 buf[1024];
    ssize_t n = read(c->fd, buf, sizeof(buf));

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        pthread_mutex_lock(&ctl->lock);
        console_close(c);
        pthread_mutex_unlock(&ctl->lock);
        return;
    }
    pthread_mutex_lock(&ctl->guest_lock);
    if (ctl->vm && !vm_has_ended(ctl->vm))
        console_feed(&ctl->vm->console, buf, (size_t)n);
    pthread_mutex_unlock(&ctl->guest_lock);
}

/* -- The thread ----------------------------------------------------------------------------------------- */

static void control_accept(struct control *ctl)
{
    int fd = accept4(ctl->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct control_client *c = NULL;

    if (fd < 0)
        return;
    for (unsigned i = 0; i < CONTROL_CLIENTS && !c; i++)
        if (ctl->client[i].conn.fd < 0)
            c = &ctl->client[i];
    if (!c || !rundir_peer_ok(fd)) {
        close(fd);
        return;
    }
    pthread_mutex_lock(&ctl->lock);
    c->negotiated = false;
    if (qmp_open(&c->conn, fd))
        close(fd);
    else
        greet(c);
    pthread_mutex_unlock(&ctl->lock);
}

static void turn(struct control *ctl)
{
    enum { WAKE, LISTEN, CONSOLE, CLIENT, SHARE = CLIENT + CONTROL_CLIENTS, NR = SHARE + CONSOLE_CLIENTS };
    struct pollfd p[NR];

    p[WAKE] = (struct pollfd){ .fd = ctl->wake_fd, .events = POLLIN };
    p[LISTEN] = (struct pollfd){ .fd = ctl->listen_fd, .events = POLLIN };
    p[CONSOLE] = (struct pollfd){ .fd = ctl->console_fd, .events = POLLIN };
    pthread_mutex_lock(&ctl->lock);
    for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
        const struct qmp_conn *c = &ctl->client[i].conn;
        p[CLIENT + i] = (struct pollfd){ .fd = c->fd, .events = c->out_len ? POLLIN | POLLOUT : POLLIN };
    }
    for (unsigned i = 0; i < CONSOLE_CLIENTS; i++) {
        const struct console_client *c = &ctl->console[i];
        p[SHARE + i] = (struct pollfd){ .fd = c->fd, .events = c->out_len ? POLLIN | POLLOUT : POLLIN };
    }
    pthread_mutex_unlock(&ctl->lock);
    if (poll(p, NR, -1) < 0)
        return; /* EINTR */
    if (p[WAKE].revents) {
        u64 count;
        ssize_t n = read(ctl->wake_fd, &count, sizeof(count));
        (void)n;
    }
    for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
        struct control_client *c = &ctl->client[i];
        pthread_mutex_lock(&ctl->lock);
        bool same = p[CLIENT + i].fd >= 0 && c->conn.fd == p[CLIENT + i].fd;
        if (same && (p[CLIENT + i].revents & POLLOUT))
            qmp_flush(&c->conn);
        same = same && c->conn.fd >= 0;
        pthread_mutex_unlock(&ctl->lock);
        if (same && (p[CLIENT + i].revents & (POLLIN | POLLHUP | POLLERR)))
            serve(ctl, c);
    }
    for (unsigned i = 0; i < CONSOLE_CLIENTS; i++) {
        struct console_client *c = &ctl->console[i];
        pthread_mutex_lock(&ctl->lock);
        bool same = p[SHARE + i].fd >= 0 && c->fd == p[SHARE + i].fd;
        if (same && (p[SHARE + i].revents & POLLOUT))
            console_flush(c);
        same = same && c->fd >= 0;
        pthread_mutex_unlock(&ctl->lock);
        if (same && (p[SHARE + i].revents & (POLLIN | POLLHUP | POLLERR)))
            console_input(ctl, c);
    }
    if (p[LISTEN].revents)
        control_accept(ctl);
    if (p[CONSOLE].revents)
        console_accept(ctl);
}

static void *control_thread(void *arg)
{
    struct control *ctl = arg;

    while (!atomic_load(&ctl->stop))
        turn(ctl);
    return NULL;
}

/* -- Life -------------------------------------------------------------------------------------------------- */

void control_attach(struct control *ctl, struct guest *vm)
{
    if (!ctl)
        return;
    pthread_mutex_lock(&ctl->guest_lock);
    ctl->vm = vm;
    pthread_mutex_unlock(&ctl->guest_lock);
}

void control_detach(struct control *ctl, enum vm_outcome outcome, bool again)
{
    static const char *const reason[] = {
        [VM_RUNNING] = "host-error", [VM_POWER_OFF] = "guest-shutdown", [VM_RESET] = "guest-reset",
        [VM_DEBUG_EXIT] = "guest-shutdown", [VM_TRIPLE_FAULT] = "guest-panic", [VM_LEAVE] = "host-ui",
        [VM_QUIT] = "host-qmp-quit", [VM_FAIL] = "host-error",
    };

    if (!ctl)
        return;
    pthread_mutex_lock(&ctl->guest_lock);
    ctl->vm = NULL;
    pthread_mutex_unlock(&ctl->guest_lock);
    control_event(ctl, again ? "RESET" : "SHUTDOWN",
                  json_pack("{s:b,s:s}", "guest", !strncmp(reason[outcome], "guest", 5), "reason",
                            reason[outcome]));
}

void control_destroy(struct control *ctl)
{
    if (!ctl)
        return;
    if (ctl->running) {
        atomic_store(&ctl->stop, true);
        wake(ctl);
        pthread_join(ctl->thread, NULL);
    }
    for (unsigned i = 0; i < CONTROL_CLIENTS; i++)
        qmp_close(&ctl->client[i].conn);
    for (unsigned i = 0; i < CONSOLE_CLIENTS; i++)
        if (ctl->console[i].fd >= 0)
            console_close(&ctl->console[i]);
    if (ctl->listen_fd >= 0)
        close(ctl->listen_fd);
    if (ctl->console_fd >= 0)
        close(ctl->console_fd);
    if (ctl->wake_fd >= 0)
        close(ctl->wake_fd);
    if (ctl->lock_fd >= 0)
        rundir_release(ctl->dir, ctl->name, ctl->lock_fd);
    pthread_mutex_destroy(&ctl->lock);
    pthread_mutex_destroy(&ctl->guest_lock);
    free(ctl);
}

/* 0, or -errno with a sentence. */
static int set_up(struct control *ctl, char *err, size_t err_len)
{
    char path[PATH_MAX];
    sigset_t all, old;
    int r = rundir_open(ctl->dir, sizeof(ctl->dir), err, err_len);

    if (r)
        return r;
    if (rundir_file(path, sizeof(path), ctl->dir, ctl->name, "qmp") ||
        rundir_file(ctl->console_path, sizeof(path), ctl->dir, ctl->name, "console")) {
        snprintf(err, err_len, "%s is too long for a socket's address; set XDG_RUNTIME_DIR", ctl->dir);
        return -ENAMETOOLONG;
    }
    ctl->lock_fd = rundir_claim(ctl->dir, ctl->name);
    if (ctl->lock_fd == -EEXIST) {
        snprintf(err, err_len, "a VM named %s is running already; `vitro ps` lists them", ctl->name);
        return -EEXIST;
    }
    r = ctl->lock_fd < 0 ? ctl->lock_fd : (ctl->listen_fd = rundir_listen(path));
    if (r >= 0)
        r = ctl->console_fd = rundir_listen(ctl->console_path);
    if (r >= 0) {
        ctl->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        r = ctl->wake_fd < 0 ? -errno : 0;
    }
    if (!r) {
        sigfillset(&all); /* signals from outside are the main thread's */
        pthread_sigmask(SIG_SETMASK, &all, &old);
        r = -pthread_create(&ctl->thread, NULL, control_thread, ctl);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    if (r)
        snprintf(err, err_len, "cannot make the control socket in %s: %s", ctl->dir, strerror(-r));
    ctl->running = !r;
    return r;
}

struct control *control_create(const struct config *c, int *status)
{
    struct control *ctl = calloc(1, sizeof(*ctl));
    char err[PATH_MAX + 128];

    *status = STATUS_OK;
    if (!ctl)
        return NULL;
    ctl->lock_fd = ctl->wake_fd = ctl->listen_fd = ctl->console_fd = -1;
    pthread_mutex_init(&ctl->lock, NULL);
    pthread_mutex_init(&ctl->guest_lock, NULL);
    for (unsigned i = 0; i < CONTROL_CLIENTS; i++)
        ctl->client[i].conn.fd = -1;
    for (unsigned i = 0; i < CONSOLE_CLIENTS; i++)
        ctl->console[i].fd = -1;
    if (c->name)
        snprintf(ctl->name, sizeof(ctl->name), "%s", c->name);
    else
        snprintf(ctl->name, sizeof(ctl->name), "vm-%d", (int)getpid());
    if (!set_up(ctl, err, sizeof(err)))
        return ctl;
    control_destroy(ctl);
    if (c->name) { /* without a name nobody asked for a socket */
        say("--name %s: %s", c->name, err);
        *status = STATUS_FAIL;
    }
    return NULL;
}
