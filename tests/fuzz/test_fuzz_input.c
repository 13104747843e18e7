/*
 * test_fuzz_input.c - what persons and programs send to keyboard and mouse: keys and pointers of VNC clients, bytes of a terminal,
 * input-send-event of the control socket; a guest reads some of it, or does not.
 */
#include "base/sandbox.h"
#include "machine/layout.h"
#include "machine/machine.h"
#include "monitor/keys.h"
#include "monitor/qmp_input.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>
#if HAVE_VNC
/* The callbacks as the library calls them, for a client that is not there. */
#include <neatvnc.h>
static void *fuzz_vnc;
#define nvnc_get_userdata(server) fuzz_vnc
#define nvnc_client_get_server(client) ((void)(client), NULL)
#include "monitor/vnc.c"
#endif

static u64 now;
static u64 fake_now(void *opaque) { return now; }
static u64 fake_tsc(void *opaque, unsigned vcpu) { return now * 2; }
static void kick(void *opaque, unsigned vcpu) { }
static void request(void *opaque, enum machine_request what, int status) { }

static void one_event(struct machine *m, const uint8_t *p)
{
    static const char *const types[] = { "key", "btn", "rel", "abs", "" };
    static const char *const names[] = { "esc", "a", "kp_enter", "wheel-up", "wheel-down", "left", "extra", "x", "y", "nothing" };
    struct qmp_error e = { 0 };
    json_error_t error;
    char text[256];

    snprintf(text, sizeof(text),
             "[{\"type\":\"%s\",\"data\":{\"down\":%s,\"key\":{\"type\":\"%s\",\"data\":%s%s%s},\"button\":\"%s\",\"axis\":\"%s\","
             "\"value\":%d}}%s]",
             types[p[0] % 5], p[1] & 1 ? "true" : p[1] & 2 ? "false" : "null", p[1] & 4 ? "number" : "qcode",
             p[1] & 4 ? "" : "\"", p[1] & 4 ? p[1] & 8 ? "17" : "-5" : names[p[2] % 10], p[1] & 4 ? "" : "\"",
             names[p[3] % 10], names[p[2] % 10], (int)((u32)p[2] << 24 | (u32)p[3] << 16), p[1] & 16 ? ",7" : "");
    json_t *events = json_loads(text, 0, &error);
    bug_on(!events);
    int r = qmp_input(m, events, &e);
    bug_on(r && r != -1);
    json_decref(events);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct machine_config config = { .nr_cpus = 1, .ram_size = 4 << 20, .tsc_khz = 2000000, .wall_ns = 1, .kick = kick,
                                           .request = request, .tsc_now = fake_tsc, .keyboard = true, .clock_source = fake_now };
    struct key_decoder decoder = { .len = 0 };
    struct machine *m;
    struct key key;

    now = 1000;
    bug_on(machine_create(&config, &m));
#if HAVE_VNC
    static struct vnc v;
    memset(&v, 0, sizeof(v));
    v = (struct vnc){ .machine = m, .x = -1, .clients = 1, .lock = PTHREAD_MUTEX_INITIALIZER };
    fuzz_vnc = &v;
#endif
    for (size_t i = 0; i + 5 <= size; i += 5) {
        const uint8_t *p = data + i + 1;
        u32 word = p[0] | (u32)p[1] << 8 | (u32)p[2] << 16 | (u32)p[3] << 24;
        switch (data[i] % 9) {
#if HAVE_VNC
        case 0: on_key(NULL, p[3] & 1 ? word : word & 0xffff, p[3] & 2); break;
        case 1: on_pointer(NULL, (u16)word, (u16)(word >> 16), (enum nvnc_button_mask)data[i] >> 2); break;
        case 2:
            if (p[0] & 1)
                hold(&v);
            else
                let_go(&v);
            break;
        case 3: /* the client goes, and another comes */
            on_gone(NULL);
            v.clients++;
            break;
#endif
        case 4:
            for (unsigned n = 0; n < 4; n++)
                if (keys_next(&decoder, p[n], &key))
                    bug_on(key.code > 0x7f);
            break;
        case 5:
            for (unsigned n = 0; keys_flush(&decoder, &key); n++)
                bug_on(n > 16);
            break;
        case 6: one_event(m, p); break;
        case 7: machine_port_out(m, PORT_KBD_DATA + (p[0] & 1) * 4, 1, p[1]); break;
        default:
            for (unsigned n = 0; n < p[0]; n++)
                machine_port_in(m, PORT_KBD_DATA + (p[1] & 1) * 4, 1);
        }
    }
    machine_destroy(m);
    return 0;
}

FUZZ_MAIN("fuzz/input", 3000, 600)
