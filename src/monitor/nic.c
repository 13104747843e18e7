/* nic.c - parses --net. See nic.h. */
#include "monitor/nic.h"
#include "monitor/config.h"
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#define GUEST_ADDR 0x0a00020f /* 10.0.2.15: the first that DHCP gives */
#define QUEUES_MAX 8
/* No wire is behind it, so frames may be large: 4 times the rate of 1500. Above 32 KiB TCP stalls now and then. */
#define USER_MTU 16000

static bool number(const char *s, unsigned min, unsigned max, unsigned *out)
{
    char *end;
    unsigned long v = strtoul(s, &end, 10);
    *out = (unsigned)v;
    return *s >= '0' && *s <= '9' && !*end && v >= min && v <= max;
}

/* [ADDR]:PORT; no address: *addr stays. */
static bool address(const char *s, u32 *addr, u16 *port)
{
    const char *colon = strchr(s, ':');
    struct in_addr in;
    char text[32] = "";
    unsigned n;

    if (!colon || (size_t)(colon - s) >= sizeof(text) || !number(colon + 1, 1, 65535, &n))
        return false;
    memcpy(text, s, (size_t)(colon - s));
    if (text[0] && !inet_aton(text, &in))
        return false;
    if (text[0])
        *addr = ntohl(in.s_addr);
    *port = (u16)n;
    return true;
}

/* tcp:[ADDR]:PORT-[ADDR]:PORT */
static bool forward_parse(const char *s, struct net_forward *f)
{
    char text[96];
    *f = (struct net_forward){ .udp = !strncmp(s, "udp:", 4), .guest_addr = GUEST_ADDR };
    if ((!f->udp && strncmp(s, "tcp:", 4)) || strlen(s) >= sizeof(text))
        return false;
    strcpy(text, s + 4);
    char *dash = strchr(text, '-');
    if (!dash)
        return false;
    *dash = '\0';
    return address(text, &f->host_addr, &f->host_port) && address(dash + 1, &f->guest_addr, &f->guest_port);
}

static bool mac_parse(const char *s, u8 mac[6])
{
    for (unsigned i = 0; i < 6; i++) {
        char *end;
        unsigned long v = strtoul(s, &end, 16);
        if (end == s || end - s > 2 || v > 255 || *end != (i < 5 ? ':' : '\0'))
            return false;
        mac[i] = (u8)v;
        s = end + 1;
    }
    return !(mac[0] & 1); /* a group's address is nobody's own */
}

static int wrong(const char *option, const char *piece)
{
    say("--%s: '%s' is not understood; there are: hostfwd=tcp:[ADDR]:PORT-[ADDR]:PORT and restrict=on (user), "
        "ifname=NAME (tap), if=virtio|vitro, mac=XX:XX:XX:XX:XX:XX, queues=N, mtu=N, packed=on, transport=mmio", option, piece);
    return STATUS_USAGE;
}

/* One KEY=VALUE. As nic_parse. */
static int key_parse(struct nic *nic, const char *option, const char *piece)
{
    const char *value = strchr(piece, '=');
    size_t len = value ? (size_t)(value++ - piece) : 0;
    unsigned n;
#define IS(word) (len == strlen(word) && !strncmp(piece, word, len))

    if (IS("hostfwd") && nic->kind == NIC_USER) {
        if (nic->user.nr_forwards == NET_FORWARDS_MAX) {
            say("--%s: at most %u forwards", option, NET_FORWARDS_MAX);
            return STATUS_USAGE;
        }
        if (forward_parse(value, &nic->user.forward[nic->user.nr_forwards])) {
            nic->user.nr_forwards++;
            return -1;
        }
        say("--%s: '%s' is no forward; write for example hostfwd=tcp:127.0.0.1:2222-:22", option, piece);
        return STATUS_USAGE;
    }
    if (IS("restrict") && nic->kind == NIC_USER)
        return option_switch(option, "restrict", value, &nic->user.restricted);
    if (IS("if") && (!strcmp(value, "virtio") || !strcmp(value, "vitro") || !strcmp(value, "e1000"))) {
        nic->vitro = !strcmp(value, "vitro");
        nic->e1000 = !strcmp(value, "e1000");
        return -1;
    }
    if (IS("packed"))
        return option_switch(option, "packed", value, &nic->packed);
    if (IS("transport") && option_transport(value, &nic->transport))
        return -1;
    if (IS("mac") && mac_parse(value, nic->mac))
        return -1;
    if (IS("queues") && number(value, 1, QUEUES_MAX, &nic->queues))
        return -1;
    if (IS("mtu") && nic->kind == NIC_USER && number(value, 576, 65520, &n)) {
        nic->user.mtu = (u16)n;
        return -1;
    }
    if (IS("ifname") && nic->kind == NIC_TAP && *value && strlen(value) < sizeof(nic->ifname)) {
        strcpy(nic->ifname, value);
        return -1;
    }
#undef IS
    return wrong(option, piece);
}

int nic_parse(struct nic *nic, const char *option, const char *text)
{
    char piece[128];
    const char *s = option_piece(text, piece, sizeof(piece));

    *nic = (struct nic){ .queues = 1 };
    if (s && !strcmp(piece, "tap")) {
        nic->kind = NIC_TAP;
    } else if (s && !strcmp(piece, "null")) {
        nic->kind = NIC_NULL;
    } else if (!s || strcmp(piece, "user")) {
        say("--%s: no network '%s'; there are: user, tap, null", option, s ? piece : text);
        return STATUS_USAGE;
    }
    while (*s) {
        const char *at = s;
        s = option_piece(s, piece, sizeof(piece));
        int r = s ? key_parse(nic, option, piece) : wrong(option, at);
        if (r >= 0)
            return r;
    }
    if (!nic->user.mtu) /* guests that know us get room for packets from the ring's pages: ordinary ones */
        nic->user.mtu = nic->vitro || nic->e1000 ? 1500 : USER_MTU;
    if (nic->kind == NIC_TAP && !nic->ifname[0]) {
        say("--%s: which tap device? write --net tap,ifname=NAME", option);
        return STATUS_USAGE;
    }
    return -1;
}
