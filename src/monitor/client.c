/*
 * client.c - `vitro ps`, `stop` and the others: each connects to a VM's control socket, asks, prints. A row for
 * each command; its help is the row.
 */
#include "monitor/client.h"
#include "monitor/config.h"
#include "monitor/qmp.h"
#include "monitor/rundir.h"
#include "monitor/tty.h"
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REPLY_S 30
#define SNAPSHOT_S 600
#define STOP_S 90 /* what a guest may take to shut down, unless --timeout says otherwise */

/* What the command line of one of these commands said. */
struct order {
    const char *name, *file;
    u64 size;
    bool force, quit, json, all;
    unsigned timeout_s;
};

/* -- Talking to a VM ---------------------------------------------------------------------------------- */

static u64 now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (u64)ts.tv_sec * 1000 + (u64)ts.tv_nsec / 1000000;
}

static int run_folder(char *dir, size_t len)
{
    char err[PATH_MAX + 128];

    if (!rundir_open(dir, len, err, sizeof(err)))
        return 0;
    say("%s", err);
    return -1;
}

/* The next message within the time: 0; -EPIPE: the VM is gone; -ETIMEDOUT. */
static int receive(struct qmp_conn *conn, json_t **msg, unsigned timeout_ms)
{
    u64 until = now_ms() + timeout_ms;
    char err[200];

    for (;;) {
        int r = conn->fd < 0 ? -EPIPE : qmp_next(conn, msg, err, sizeof(err));
        if (r)
            return r > 0 ? 0 : r;
        u64 now = now_ms();
        struct pollfd p = { .fd = conn->fd, .events = POLLIN };
        if (now >= until)
            return -ETIMEDOUT;
        if (poll(&p, 1, (int)(until - now)) > 0)
            qmp_read(conn);
    }
}

/* Send a command and wait for its answer; events in between are dropped. -1: explained, unless quiet. */
static int ask(struct qmp_conn *conn, const char *what, json_t *args, json_t **ret, unsigned timeout_s, bool quiet)
{
    json_t *msg = args ? json_pack("{s:s,s:o}", "execute", what, "arguments", args) :
                         json_pack("{s:s}", "execute", what);
    int r;

    *ret = NULL;
    qmp_send(conn, msg);
    while (!(r = receive(conn, &msg, timeout_s * 1000))) {
        json_t *good = json_object_get(msg, "return"), *bad = json_object_get(msg, "error");
        const char *desc = json_string_value(json_object_get(bad, "desc"));
        if (good)
            *ret = json_incref(good);
        if (bad && !quiet)
            say("%s", desc ? desc : "the VM refused");
        json_decref(msg);
        if (good || bad)
            return good ? 0 : -1;
    }
    if (!quiet)
        say("the VM %s", r == -ETIMEDOUT ? "does not answer" : "has ended");
    return -1;
}

static int connect_to(const char *name, struct qmp_conn *conn, bool quiet)
{
    char dir[PATH_MAX], path[PATH_MAX];
    json_t *msg, *ret;
    pid_t pid;
    int fd = -ENOENT;

    if (run_folder(dir, sizeof(dir)))
        return -1;
    if (rundir_name_ok(name) && !rundir_file(path, sizeof(path), dir, name, "qmp") &&
        rundir_is_running(dir, name, &pid))
        fd = rundir_connect(path);
    if (fd < 0) {
        if (!quiet)
            say("no VM named '%s' is running; `vitro ps` lists them", name);
        return -1;
    }
    if (!rundir_peer_ok(fd) || qmp_open(conn, fd)) {
        say("%s: the other end of this socket is somebody else's", path);
        close(fd);
        return -1;
    }
    if (!receive(conn, &msg, REPLY_S * 1000)) {
        bool greeted = json_object_get(msg, "QMP");
        json_decref(msg);
        if (greeted && !ask(conn, "qmp_capabilities", NULL, &ret, REPLY_S, quiet)) {
            json_decref(ret);
            return 0;
        }
    }
    if (!quiet)
        say("%s: the VM does not answer", name);
    qmp_close(conn);
    return -1;
}

/* Connect, ask one thing, part. The answer or NULL: explained. */
static json_t *ask_once(const struct order *o, const char *what, json_t *args, unsigned timeout_s)
{
    struct qmp_conn conn;
    json_t *ret = NULL;

    if (connect_to(o->name, &conn, false)) {
        json_decref(args);
        return NULL;
    }
    ask(&conn, what, args, &ret, timeout_s, false);
    qmp_close(&conn);
    return ret;
}

static int just_ask(const struct order *o, const char *what)
{
    json_t *ret = ask_once(o, what, NULL, REPLY_S);

    json_decref(ret);
    return ret ? STATUS_OK : STATUS_FAIL;
}

/* -- ps -------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names in a folder that end so, without that; sorted; the caller frees each and the list. */
static char **list_names(const char *dir, const char *ending, unsigned *nr)
{
    DIR *d = opendir(dir);
    char **names = NULL;
    struct dirent *e;

    *nr = 0;
    while (d && (e = readdir(d))) {
        size_t len = strlen(e->d_name), cut = strlen(ending);
        if (len <= cut || strcmp(e->d_name + len - cut, ending))
            continue;
        char **more = realloc(names, (*nr + 1) * sizeof(*names));
        char *name = strndup(e->d_name, len - cut);
        if (!more || !name) {
            free(name);
            names = more ? more : names;
            break;
        }
        names = more;
        names[(*nr)++] = name;
    }
    if (d)
        closedir(d);
    if (*nr)
        qsort(names, *nr, sizeof(*names), by_name);
    return names;
}

/* Its row, or NULL when it has ended meanwhile. */
static json_t *describe(const char *name, pid_t pid)
{
    struct qmp_conn conn;
    json_t *info = NULL;

    if (!connect_to(name, &conn, true)) {
        ask(&conn, "x-info", NULL, &info, 3, true);
        qmp_close(&conn);
    }
    if (!info)
        info = json_pack("{s:i,s:s}", "pid", (int)pid, "status", "starting or not answering");
    json_object_set_new(info, "name", json_string(name));
    return info;
}

static void print_row(const json_t *info)
{
    json_int_t s = json_integer_value(json_object_get(info, "seconds"));
    json_int_t mem = json_integer_value(json_object_get(info, "memory")) >> 20;
    char age[32], size[32];

    if (!json_object_get(info, "pid")) {
        printf("%-20s %8s %9s %4s %10s  %s\n", json_string_value(json_object_get(info, "name")), "-", "-", "-", "-",
               json_string_value(json_object_get(info, "status")));
        return;
    }
    snprintf(age, sizeof(age), "%d:%02d:%02d", (int)(s / 3600), (int)(s / 60 % 60), (int)(s % 60));
    snprintf(size, sizeof(size), "%dM", (int)mem);
    printf("%-20s %8d %9s %4d %10s  %s\n", json_string_value(json_object_get(info, "name")),
           (int)json_integer_value(json_object_get(info, "pid")), size,
           (int)json_integer_value(json_object_get(info, "cpus")), age,
           json_string_value(json_object_get(info, "status")));
}

/* The VMs that have a vm.conf and do not run. */
static void add_stopped(json_t *all, const char *run_dir)
{
    char dir[PATH_MAX], path[PATH_MAX];
    unsigned nr = 0;
    pid_t pid;

    if (config_vm_path(dir, sizeof(dir), ".", ""))
        return;
    char **names = list_names(dir, "", &nr);
    for (unsigned n = 0; n < nr; n++) {
        if (rundir_name_ok(names[n]) && !config_vm_path(path, sizeof(path), names[n], "vm.conf") && !access(path, R_OK) &&
            !rundir_is_running(run_dir, names[n], &pid))
            json_array_append_new(all, json_pack("{s:s,s:s}", "name", names[n], "status", "stopped"));
        free(names[n]);
    }
    free(names);
}

static int ps(const struct order *o)
{
    char dir[PATH_MAX];
    unsigned nr;
    json_t *all = json_array(), *info;
    size_t i;

    if (run_folder(dir, sizeof(dir)))
        return STATUS_FAIL;
    char **names = list_names(dir, ".lock", &nr);
    for (unsigned n = 0; n < nr; n++) {
        pid_t pid;
        if (rundir_name_ok(names[n]) && rundir_is_running(dir, names[n], &pid))
            json_array_append_new(all, describe(names[n], pid));
        free(names[n]);
    }
    free(names);
    if (o->all)
        add_stopped(all, dir);
    if (o->json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        printf("\n");
    } else {
        printf("%-20s %8s %9s %4s %10s  %s\n", "NAME", "PID", "MEMORY", "CPUS", "TIME", "STATUS");
        json_array_foreach (all, i, info)
            print_row(info);
    }
    json_decref(all);
    return STATUS_OK;
}

/* -- stop and its like ----------------------------------------------------------------------------------- */

/* Wait for the VM's end; on a terminal, a line that counts. */
static int wait_end(struct qmp_conn *conn, const struct order *o)
{
    u64 started = now_ms();
    bool tty = isatty(STDERR_FILENO);
    json_t *msg;
    int r;

    do {
        u64 gone = (now_ms() - started) / 1000;
        if (tty)
            fprintf(stderr, "\rwaiting for %s to shut down: %u s ", o->name, (unsigned)gone);
        if (gone >= o->timeout_s)
            break;
        r = receive(conn, &msg, 1000);
        if (!r)
            json_decref(msg);
    } while (conn->fd >= 0);
    if (tty)
        fprintf(stderr, "\r%60s\r", "");
    return conn->fd < 0 ? 0 : -1;
}

static int stop(const struct order *o)
{
    struct qmp_conn conn;
    json_t *ret;
    int status = STATUS_FAIL;

    if (connect_to(o->name, &conn, false))
        return STATUS_FAIL;
    if (o->force) {
        ask(&conn, "quit", NULL, &ret, REPLY_S, true);
        json_decref(ret);
    } else if (ask(&conn, "system_powerdown", NULL, &ret, REPLY_S, false)) {
        qmp_close(&conn);
        return STATUS_FAIL;
    } else {
        json_decref(ret);
    }
    if (!wait_end(&conn, o)) {
        status = STATUS_OK;
        printf("%s has ended\n", o->name);
    } else {
        say("%s did not shut down within %u s; `vitro stop %s --force` pulls the plug", o->name, o->timeout_s,
            o->name);
    }
    qmp_close(&conn);
    return status;
}

static int pause_vm(const struct order *o)
{
    return just_ask(o, "stop");
}

/* Ask, then look until it is so. */
static int suspend_vm(const struct order *o)
{
    struct qmp_conn conn;
    json_t *ret;
    u64 started = now_ms();
    int status = STATUS_FAIL;

    if (connect_to(o->name, &conn, false))
        return STATUS_FAIL;
    if (ask(&conn, "x-suspend", NULL, &ret, REPLY_S, false))
        goto out;
    for (;;) {
        json_decref(ret);
        if (ask(&conn, "query-status", NULL, &ret, REPLY_S, false))
            goto out;
        const char *now = json_string_value(json_object_get(ret, "status"));
        if (now && !strcmp(now, "suspended"))
            break;
        if ((now_ms() - started) / 1000 >= o->timeout_s) {
            say("%s did not suspend within %u s; its console may say why", o->name, o->timeout_s);
            json_decref(ret);
            goto out;
        }
        usleep(50000);
    }
    json_decref(ret);
    status = STATUS_OK;
    printf("%s is suspended; `vitro resume %s` lets it go on\n", o->name, o->name);
out:
    qmp_close(&conn);
    return status;
}

static int resume_vm(const struct order *o)
{
    return just_ask(o, "cont");
}

static int reset_vm(const struct order *o)
{
    return just_ask(o, "system_reset");
}

static int balloon(const struct order *o)
{
    json_t *ret = ask_once(o, "balloon", json_pack("{s:I}", "value", (json_int_t)o->size), REPLY_S);

    json_decref(ret);
    return ret ? STATUS_OK : STATUS_FAIL;
}

static int screenshot(const struct order *o)
{
    char path[PATH_MAX * 2], cwd[PATH_MAX];

    /* The VM's process may have another current folder. */
    if (o->file[0] == '/' || !getcwd(cwd, sizeof(cwd)))
        snprintf(path, sizeof(path), "%s", o->file);
    else
        snprintf(path, sizeof(path), "%s/%s", cwd, o->file);
    json_t *ret = ask_once(o, "screendump", json_pack("{s:s}", "filename", path), REPLY_S);

    if (!ret)
        return STATUS_FAIL;
    json_decref(ret);
    return STATUS_OK;
}

static int stats(const struct order *o)
{
    json_t *ret = ask_once(o, "x-stats", NULL, REPLY_S);

    if (!ret)
        return STATUS_FAIL;
    fputs(json_string_value(json_object_get(ret, "text")), stdout);
    json_decref(ret);
    return STATUS_OK;
}

/* -- snapshot ------------------------------------------------------------------------------------------- */

static int snapshot(const struct order *o)
{
    char path[PATH_MAX], cwd[PATH_MAX] = "";
    int n;

    if (o->file[0] == '/')
        n = snprintf(path, sizeof(path), "%s", o->file);
    else
        n = getcwd(cwd, sizeof(cwd)) ? snprintf(path, sizeof(path), "%s/%s", cwd, o->file) : -1;
    if (n < 0 || (size_t)n >= sizeof(path)) {
        say("%s: no such path", o->file);
        return STATUS_FAIL;
    }
    json_t *ret = ask_once(o, "x-snapshot", json_pack("{s:s,s:b}", "file", path, "quit", o->quit), SNAPSHOT_S);
    if (!ret)
        return STATUS_FAIL;
    json_decref(ret);
    printf("%s is in %s; `vitro run --restore %s` goes on from there\n", o->name, o->file, o->file);
    return STATUS_OK;
}

/* -- console ------------------------------------------------------------------------------------------------ */

#define CTRL_A 1

/* Keys to the VM; true when the user wants to leave. */
static bool typed(int fd, u8 *buf, size_t len, bool tty, bool *escape)
{
    u8 out[2048];
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        if (tty && !*escape && buf[i] == CTRL_A) {
            *escape = true;
            continue;
        }
        bool command = *escape && buf[i] != CTRL_A;
        *escape = false;
        if (command && (buf[i] == 'x' || buf[i] == 'X' || buf[i] == 'd' || buf[i] == 'D'))
            return true;
        if (!command)
            out[n++] = buf[i];
    }
    ssize_t done = write(fd, out, n);
    (void)done; /* a VM that has ended is noticed when reading */
    return false;
}

static bool write_all(const u8 *buf, size_t len)
{
    while (len) {
        ssize_t n = write(STDOUT_FILENO, buf, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        buf += n;
        len -= (size_t)n;
    }
    return true;
}

static int share(int fd, const char *name)
{
    bool tty, escape = false, left = false;
    struct pollfd p[2] = { { .fd = STDIN_FILENO, .events = POLLIN }, { .fd = fd, .events = POLLIN } };
    u8 buf[1024];

    tty_catch_signals();
    tty = tty_raw(STDIN_FILENO);
    if (tty)
        fprintf(stderr, "vitro: the console of %s; Ctrl-A X leaves it, the VM goes on\r\n", name);
    while (!left) {
        ssize_t n;
        if (poll(p, 2, -1) < 0 && errno == EINTR)
            continue;
        if (p[1].revents) {
            n = read(fd, buf, sizeof(buf));
            if (n <= 0 || !write_all(buf, (size_t)n))
                break;
        }
        if (p[0].revents) {
            n = read(STDIN_FILENO, buf, sizeof(buf));
            if (n <= 0)
                p[0].fd = -1; /* the end of a pipe: the console goes on */
            else
                left = typed(fd, buf, (size_t)n, tty, &escape);
        }
    }
    tty_restore();
    if (tty)
        fprintf(stderr, left ? "\r\n" : "\r\nvitro: %s has ended\r\n", name);
    return STATUS_OK;
}

static int console(const struct order *o)
{
    char dir[PATH_MAX], path[PATH_MAX];
    pid_t pid;
    int fd;

    if (run_folder(dir, sizeof(dir)))
        return STATUS_FAIL;
    if (!rundir_name_ok(o->name) || !rundir_is_running(dir, o->name, &pid)) {
        say("no VM named '%s' is running; `vitro ps` lists them", o->name);
        return STATUS_FAIL;
    }
    fd = rundir_file(path, sizeof(path), dir, o->name, "console") ? -ENAMETOOLONG : rundir_connect(path);
    if (fd < 0 || !rundir_peer_ok(fd)) {
        say("cannot reach the console of %s: %s", o->name, strerror(fd < 0 ? -fd : EPERM));
        return STATUS_FAIL;
    }
    int status = share(fd, o->name);
    close(fd);
    return status;
}

/* -- The commands -------------------------------------------------------------------------------------------- */

enum { WANT_NAME = 1, WANT_FILE = 2, MAY_FORCE = 4, MAY_TIMEOUT = 8, MAY_JSON = 16, MAY_QUIT = 32, WANT_SIZE = 64, MAY_ALL = 128 };

static const struct command {
    const char *name, *args;
    unsigned may;
    int (*run)(const struct order *o);
    const char *help;
    const char *more; /* the options' help, or NULL */
} commands[] = {
    { "ps", "[--all] [--json]", MAY_ALL | MAY_JSON, ps, "list running VMs",
      "  --all              also those with a vm.conf that do not run\n"
      "  --json             the same as JSON\n" },
    { "stop", "NAME [--force] [--timeout S]", WANT_NAME | MAY_FORCE | MAY_TIMEOUT, stop,
      "shut a VM down: press its power button and wait",
      "  --force            pull the plug: end it at once, without asking the guest\n"
      "  --timeout S        how long to wait, in seconds (default: 90)\n" },
    { "console", "NAME", WANT_NAME, console, "attach to a VM's serial console",
      "  Ctrl-A X           leaves the console; the VM goes on\n"
      "  Ctrl-A Ctrl-A      sends a Ctrl-A\n" },
    { "stats", "NAME", WANT_NAME, stats, "print a VM's counters", NULL },
    { "screenshot", "NAME FILE", WANT_NAME | WANT_FILE, screenshot, "write a VM's VGA screen to a file",
      "  FILE               PNG if it is called .png, else characters\n" },
    { "balloon", "NAME SIZE", WANT_NAME | WANT_SIZE, balloon, "have a VM started with --balloon, or with --pv xen, give memory back",
      "  SIZE               what is left to the guest, as of --mem: 256M, 1G; all of it, or more, takes the balloon away\n" },
    { "pause", "NAME", WANT_NAME, pause_vm, "hold a VM still; no time passes for it", NULL },
    { "suspend", "NAME [--timeout S]", WANT_NAME | MAY_TIMEOUT, suspend_vm, "have the kernel of a Xen PV guest suspend itself",
      "  --timeout S        how long to wait, in seconds (default: 90)\n" },
    { "resume", "NAME", WANT_NAME, resume_vm, "let a paused or suspended VM go on", NULL },
    { "snapshot", "NAME FILE [--quit]", WANT_NAME | WANT_FILE | MAY_QUIT, snapshot,
      "save a VM to a file, from which `vitro run --restore FILE` goes on",
      "  --quit             end the VM; without it, it goes on\n" },
    { "reset", "NAME", WANT_NAME, reset_vm, "press a VM's reset button", NULL },
};

void client_help(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        const struct command *c = &commands[i];
        char left[64];
        snprintf(left, sizeof(left), "vitro %s%s", c->name, c->may & WANT_NAME ? " NAME" : "");
        printf("  %-20s %s\n", left, c->help);
    }
}

static int usage(const struct command *c, const char *what, const char *arg)
{
    say("%s: %s%s; usage: vitro %s %s", c->name, what, arg, c->name, c->args);
    return STATUS_USAGE;
}

/* -1 to go on, or a status. */
static int parse(const struct command *c, struct order *o, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
            printf("usage: vitro %s %s\n\n%s.\n%s%s", c->name, c->args, c->help, c->more ? "\n" : "",
                   c->more ? c->more : "");
            return STATUS_OK;
        }
        if ((c->may & MAY_QUIT) && !strcmp(arg, "--quit")) {
            o->quit = true;
        } else if ((c->may & MAY_FORCE) && !strcmp(arg, "--force")) {
            o->force = true;
        } else if ((c->may & MAY_JSON) && !strcmp(arg, "--json")) {
            o->json = true;
        } else if ((c->may & MAY_ALL) && !strcmp(arg, "--all")) {
            o->all = true;
        } else if ((c->may & MAY_TIMEOUT) && !strcmp(arg, "--timeout")) {
            char *end = NULL;
            unsigned long s = i + 1 < argc && argv[i + 1][0] >= '0' && argv[i + 1][0] <= '9' ?
                                  strtoul(argv[++i], &end, 10) : 0;
            if (!end || *end || s > 86400)
                return usage(c, "--timeout wants a number of seconds", "");
            o->timeout_s = (unsigned)s;
        } else if (arg[0] == '-') {
            return usage(c, "no option ", arg);
        } else if ((c->may & WANT_NAME) && !o->name) {
            o->name = arg;
        } else if ((c->may & WANT_FILE) && !o->file) {
            o->file = arg;
        } else if ((c->may & WANT_SIZE) && !o->size) {
            if (size_parse(arg, &o->size) || !o->size || o->size >> 62)
                return usage(c, "no size of memory: ", arg);
        } else {
            return usage(c, "one argument too many: ", arg);
        }
    }
    if ((c->may & WANT_NAME) && !o->name)
        return usage(c, "name a VM", "");
    if ((c->may & WANT_FILE) && !o->file)
        return usage(c, "name a file", "");
    if ((c->may & WANT_SIZE) && !o->size)
        return usage(c, "say how much memory is left to the guest", "");
    return -1;
}

int client_run(const char *what, int argc, char **argv)
{
    struct order o = { .timeout_s = STOP_S };

    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        const struct command *c = &commands[i];
        if (strcmp(c->name, what))
            continue;
        int r = parse(c, &o, argc, argv);
        return r >= 0 ? r : c->run(&o);
    }
    char list[200] = "run, image, bench";
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        strcat(list, ", ");
        strncat(list, commands[i].name, sizeof(list) - strlen(list) - 3);
    }
    say("no command '%s'; there are: %s. See vitro --help", what, list);
    return STATUS_USAGE;
}
