/*
 * vnc.c - see vnc.h. Protocol: RFC 6143 and neatvnc's manual page; key symbols: X11's keysymdef.h. Not there: a password
 * (of the library's ways, the old one is weak and the other wants certificates; a socket's rights and ssh serve better),
 * sound, the clipboard.
 */
#include "monitor/vnc.h"
#include "base/sandbox.h"
#include "machine/chips/vga.h"
#include "machine/input.h"
#include "machine/machine.h"
#include "machine/state.h"
#include "monitor/keys.h"
#include "net/unixsock.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* HOST and PORT of a TCP address; false: it is not one of ours. */
static bool tcp_address(const char *where, char host[64], unsigned *port)
{
    const char *colon = strrchr(where, ':');
    char *end;

    if (!colon || colon == where || (size_t)(colon - where) >= 64 || colon[1] < '0' || colon[1] > '9')
        return false;
    memcpy(host, where, (size_t)(colon - where));
    host[colon - where] = '\0';
    unsigned long n = strtoul(colon + 1, &end, 10);
    *port = (unsigned)n;
    return !*end && n && n < 65536;
}

int vnc_check(const char *where, const char **why)
{
    char host[64];
    unsigned port;

    if (!strncmp(where, "unix:", 5)) {
        *why = "a socket's path has 1 to 107 characters";
        return where[5] && strlen(where + 5) < 108 ? 0 : -EINVAL;
    }
    *why = "write unix:PATH or ADDRESS:PORT";
    if (!tcp_address(where, host, &port))
        return -EINVAL;
    *why = "there is no password, so only this host may connect: 127.0.0.1, ::1 or localhost; from elsewhere use ssh -L";
    return !strcmp(host, "127.0.0.1") || !strcmp(host, "::1") || !strcmp(host, "localhost") ? 0 : -EINVAL;
}

#if !HAVE_VNC

int vnc_start(const char *where, struct machine *machine, struct vnc **out)
{
    return -ENOSYS;
}

void vnc_detach(struct vnc *vnc)
{
}

int vnc_attach(struct vnc *vnc, struct machine *machine)
{
    return -ENOSYS;
}

void vnc_stop(struct vnc *vnc)
{
}

#else

#include <aml.h>
#include <neatvnc.h>
#include <pixman.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define FRAME_MS 40
#define BAND 16u                /* rows that are compared and sent together */
#define FORMAT_XRGB 0x34325258u /* DRM_FORMAT_XRGB8888 */

struct vnc {
    struct aml *aml;
    struct nvnc *server;
    struct nvnc_display *display;
    char path[108];   /* of the socket, or "" */
    int stop_fd;
    pthread_t thread;
    unsigned clients, fresh; /* fresh: of these have not asked for a picture yet */
    u8 *shown;        /* what clients were told last, 3 bytes a pixel */
    unsigned width, height;
    pthread_mutex_t lock;
    struct machine *machine; /* NULL: it restarts; under lock, as what follows */
    bool held;        /* the VM is paused, or not there: its keyboard is not touched */
    u8 down[2][16];   /* keys that are held, by code; [1]: with e0 */
    unsigned buttons;
    int x, y;         /* where the client's pointer was last; -1: nowhere */
};

/* -- The screen -------------------------------------------------------------------------------------- */

static struct nvnc_fb *make_fb(const u8 *rgb, unsigned width, unsigned height)
{
    struct nvnc_fb *fb = nvnc_fb_new((u16)width, (u16)height, FORMAT_XRGB, (u16)width);
    u32 *to = fb ? nvnc_fb_get_addr(fb) : NULL;

    for (size_t i = 0; to && i < (size_t)width * height; i++, rgb += 3)
        to[i] = (u32)rgb[0] << 16 | (u32)rgb[1] << 8 | rgb[2];
    return fb;
}

/* The upper left part of a picture, black where it has none, as a picture of another size. NULL: no memory. */
static u8 *fitted(const u8 *rgb, unsigned width, unsigned height, unsigned to_width, unsigned to_height)
{
    u8 *to = calloc((size_t)to_width * to_height, 3);

    for (unsigned y = 0; to && y < MIN(height, to_height); y++)
        memcpy(to + (size_t)y * to_width * 3, rgb + (size_t)y * width * 3, (size_t)MIN(width, to_width) * 3);
    return to;
}

/*
 * Tell clients what has changed. The library (0.5.4) follows a null pointer for a client that is told another size than at the
 * beginning before it has asked for its first picture: until it has, all are shown the new picture in the old size.
 */
static void draw(struct vnc *v)
{
    struct pixman_region16 damage;
    unsigned width, height;
    u8 *rgb;

    pthread_mutex_lock(&v->lock);
    bool none = !v->machine || vga_image(machine_vga(v->machine), &width, &height, &rgb);
    pthread_mutex_unlock(&v->lock);
    if (none)
        return;
    if (v->fresh && (width != v->width || height != v->height)) {
        u8 *part = fitted(rgb, width, height, v->width, v->height);
        free(rgb);
        if (!part)
            return;
        rgb = part;
        width = v->width;
        height = v->height;
    }
    bool all = !v->shown || width != v->width || height != v->height;
    pixman_region_init(&damage);
    for (unsigned y = 0; y < height; y += BAND) {
        unsigned rows = MIN(BAND, height - y);
        size_t at = (size_t)y * width * 3;
        if (all || memcmp(rgb + at, v->shown + at, (size_t)rows * width * 3))
            pixman_region_union_rect(&damage, &damage, 0, (int)y, width, rows);
    }
    if (pixman_region_not_empty(&damage)) {
        struct nvnc_fb *fb = make_fb(rgb, width, height);
        if (fb) {
            nvnc_display_feed_buffer(v->display, fb, &damage);
            nvnc_fb_unref(fb);
        }
    }
    pixman_region_fini(&damage);
    free(v->shown);
    v->shown = rgb;
    v->width = width;
    v->height = height;
}

/* -- Keyboard and mouse ------------------------------------------------------------------------------- */

static void set_key(struct vnc *v, u8 code, bool e0, bool down)
{
    u8 bit = (u8)(1 << (code & 7)), *held = &v->down[e0][code >> 3 & 15];

    if (!down && !(*held & bit))
        return;
    *held = (u8)(down ? *held | bit : *held & ~bit);
    machine_key(v->machine, code, e0, down);
}

static void on_key(struct nvnc_client *client, uint32_t keysym, bool down)
{
    struct vnc *v = nvnc_get_userdata(nvnc_client_get_server(client));
    struct key key;

    pthread_mutex_lock(&v->lock);
    if (!v->held && keys_from_keysym(keysym, &key))
        set_key(v, key.code, key.e0, down);
    pthread_mutex_unlock(&v->lock);
}

static void release_all(struct vnc *v)
{
    for (unsigned e0 = 0; e0 < 2; e0++)
        for (unsigned code = 0; code < 128; code++)
            set_key(v, (u8)code, e0, false);
}

static void on_pointer(struct nvnc_client *client, uint16_t x, uint16_t y, enum nvnc_button_mask mask)
{
    static const struct { unsigned bit; enum input_button button; } buttons[] = {
        { NVNC_BUTTON_LEFT, INPUT_LEFT }, { NVNC_BUTTON_MIDDLE, INPUT_MIDDLE }, { NVNC_BUTTON_RIGHT, INPUT_RIGHT },
    };
    struct vnc *v = nvnc_get_userdata(nvnc_client_get_server(client));
    unsigned pressed = (unsigned)mask & ~v->buttons, changed = (unsigned)mask ^ v->buttons;
    int wheel = (pressed & NVNC_SCROLL_UP ? 1 : 0) - (pressed & NVNC_SCROLL_DOWN ? 1 : 0);
    int dx = v->x < 0 ? 0 : x - v->x, dy = v->x < 0 ? 0 : y - v->y;

    v->x = x;
    v->y = y;
    pthread_mutex_lock(&v->lock);
    if (v->held)
        goto out;
    if (dx || dy || wheel)
        machine_move(v->machine, dx, dy, wheel);
    for (unsigned i = 0; i < ARRAY_SIZE(buttons); i++)
        if (changed & buttons[i].bit)
            machine_button(v->machine, buttons[i].button, mask & buttons[i].bit);
    v->buttons = (unsigned)mask;
out:
    pthread_mutex_unlock(&v->lock);
}

static void on_gone(struct nvnc_client *client)
{
    struct vnc *v = nvnc_get_userdata(nvnc_client_get_server(client));

    v->clients--;
    v->fresh -= !nvnc_get_userdata(client);
    v->x = -1;
    pthread_mutex_lock(&v->lock);
    if (!v->held)
        release_all(v); /* it may have held Shift */
    pthread_mutex_unlock(&v->lock);
}

static void on_client(struct nvnc_client *client)
{
    struct vnc *v = nvnc_get_userdata(nvnc_client_get_server(client));

    v->clients++;
    v->fresh++;
    nvnc_set_client_cleanup_fn(client, on_gone);
}

static void on_request(struct nvnc_client *client, bool incremental, uint16_t x, uint16_t y, uint16_t width, uint16_t height)
{
    struct vnc *v = nvnc_get_userdata(nvnc_client_get_server(client));

    (void)x, (void)y, (void)width, (void)height;
    if (incremental || nvnc_get_userdata(client))
        return;
    v->fresh--;
    nvnc_set_userdata(client, v, NULL); /* it is fresh no more */
}

/* -- Life ---------------------------------------------------------------------------------------------- */

static void *vnc_main(void *arg)
{
    struct vnc *v = arg;
    struct pollfd p[2] = { { .fd = v->stop_fd, .events = POLLIN }, { .fd = aml_get_fd(v->aml), .events = POLLIN } };

    sandbox_enter(SANDBOX_VNC);
    while (!p[0].revents) {
        poll(p, 2, v->clients ? FRAME_MS : 1000);
        if (p[1].revents)
            aml_poll(v->aml, 0);
        aml_dispatch(v->aml);
        draw(v);
    }
    return NULL;
}

static void hold(void *obj)
{
    struct vnc *v = obj;

    pthread_mutex_lock(&v->lock);
    v->held = true;
    pthread_mutex_unlock(&v->lock);
}

static void let_go(void *obj)
{
    struct vnc *v = obj;

    pthread_mutex_lock(&v->lock);
    v->held = false;
    pthread_mutex_unlock(&v->lock);
}

int vnc_attach(struct vnc *v, struct machine *machine)
{
    const struct device_part part = { .name = "vnc", .obj = v, .quiesce = hold, .resume = let_go };
    int r = machine_add_part(machine, &part);

    if (r)
        return r;
    pthread_mutex_lock(&v->lock);
    v->machine = machine;
    v->held = false;
    v->buttons = 0;
    memset(v->down, 0, sizeof(v->down)); /* no key of the new machine's is */
    pthread_mutex_unlock(&v->lock);
    return 0;
}

void vnc_detach(struct vnc *v)
{
    if (!v)
        return;
    pthread_mutex_lock(&v->lock);
    v->machine = NULL;
    v->held = true;
    pthread_mutex_unlock(&v->lock);
}

static int listen_at(struct vnc *v, const char *where)
{
    char host[64];
    unsigned port;

    if (!strncmp(where, "unix:", 5)) {
        /* The library would take the name from whoever listens there. */
        struct unixsock *probe;
        int r = unixsock_listen(where + 5, &probe);
        if (r)
            return r;
        unixsock_close(probe);
        mode_t old = umask(077);
        v->server = nvnc_open_unix(where + 5);
        umask(old);
        snprintf(v->path, sizeof(v->path), "%s", v->server ? where + 5 : "");
    } else {
        tcp_address(where, host, &port);
        v->server = nvnc_open(strcmp(host, "localhost") ? host : "127.0.0.1", (u16)port);
    }
    return v->server ? 0 : -EADDRINUSE;
}

int vnc_start(const char *where, struct machine *machine, struct vnc **out)
{
    struct vnc *v = calloc(1, sizeof(*v));
    sigset_t all, old;
    int r = -ENOMEM;

    if (!v)
        return r;
    pthread_mutex_init(&v->lock, NULL);
    v->x = -1;
    v->stop_fd = eventfd(0, EFD_CLOEXEC);
    v->aml = aml_new();
    v->display = nvnc_display_new(0, 0);
    if (v->stop_fd < 0 || !v->aml || !v->display)
        goto fail;
    nvnc_set_log_level(NVNC_LOG_PANIC);
    aml_set_default(v->aml);
    sigfillset(&all); /* signals from outside are the main thread's; the library starts threads too */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = listen_at(v, where);
    if (!r) {
        nvnc_set_userdata(v->server, v, NULL);
        nvnc_set_name(v->server, "Vitro");
        nvnc_set_key_fn(v->server, on_key);
        nvnc_set_pointer_fn(v->server, on_pointer);
        nvnc_set_new_client_fn(v->server, on_client);
        nvnc_set_fb_req_fn(v->server, on_request);
        nvnc_add_display(v->server, v->display);
        r = vnc_attach(v, machine);
    }
    if (!r) {
        draw(v); /* there must be something to show before somebody comes */
        r = -pthread_create(&v->thread, NULL, vnc_main, v);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!r) {
        *out = v;
        return 0;
    }
fail:
    v->thread = 0;
    vnc_stop(v);
    return r;
}

void vnc_stop(struct vnc *v)
{
    u64 one = 1;

    if (!v)
        return;
    if (v->thread) {
        (void)!write(v->stop_fd, &one, sizeof(one));
        pthread_join(v->thread, NULL);
    }
    if (v->server)
        nvnc_close(v->server);
    if (v->path[0])
        unlink(v->path);
    if (v->display)
        nvnc_display_unref(v->display);
    if (v->aml)
        aml_unref(v->aml);
    if (v->stop_fd >= 0)
        close(v->stop_fd);
    pthread_mutex_destroy(&v->lock);
    free(v->shown);
    free(v);
}

#endif
