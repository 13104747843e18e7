/*
 * net.c - a web server with nothing beneath it: Ethernet, ARP, IPv4, ICMP and just enough TCP, over two rings shared with
 * Vitro. Start it with --net user,if=vitro,hostfwd=tcp:127.0.0.1:8080-:80 and ask for http://127.0.0.1:8080/
 * /quit ends it. --append ip=A.B.C.D gives it another address than 10.0.2.15.
 *
 * Left out of TCP (RFC 9293): retransmission, windows, options, more than one segment in an answer, connections of our own.
 * Whoever asks will ask again if something is lost.
 */
#include "sdk/sdk.h"

#define HTTP_PORT 80
#define RING 32
#define ROOM 2048 /* for one packet */
#define PORT_NET 3

/* -- Bytes on the wire: big-endian, at any address ---------------------------------------------------------------------- */

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}
static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v & 0xffff);
}

/* The Internet checksum (RFC 1071): `sum` is what a pseudo-header adds. */
static uint16_t checksum(const uint8_t *p, unsigned len, uint32_t sum)
{
    for (; len > 1; p += 2, len -= 2)
        sum += get16(p);
    if (len)
        sum += (uint32_t)p[0] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static uint32_t our_ip = 0x0a00020f; /* 10.0.2.15, which is what --net user expects */

static void choose_address(const char *s)
{
    for (; *s; s++) {
        if (memcmp(s, "ip=", 3))
            continue;
        for (our_ip = 0, s += 3; (*s >= '0' && *s <= '9') || *s == '.'; s++) {
            if (*s == '.')
                our_ip <<= 8;
            else
                our_ip = (our_ip & ~0xffu) | ((our_ip & 0xff) * 10 + (uint32_t)(*s - '0'));
        }
        return;
    }
}

/* -- The rings -------------------------------------------------------------------------------------------------------------- */

static struct vt_net_ring *ring;
static struct vt_net_desc *tx, *rx;
static uint8_t *tx_buf, *rx_buf;
static uint32_t rx_seen; /* how far we have looked */
static uint8_t mac[6];
static volatile unsigned events;

static void on_packet(void *arg)
{
    (void)arg;
    events++;
}

static void rx_add(uint32_t i)
{
    rx[i % RING] = (struct vt_net_desc){ .pa = (uint64_t)(rx_buf + i % RING * ROOM), .len = ROOM };
    __atomic_store_n(&ring->rx_head, i + 1, __ATOMIC_RELEASE);
}

static void net_setup(void)
{
    struct vt_net_info info;

    if (vt_call2(VT_NET_INFO, 0, &info))
        die("no network card: start me with --net user,if=vitro\n");
    memcpy(mac, info.mac, 6);
    ring = pages_alloc(1);
    tx = (struct vt_net_desc *)(ring + 1);
    rx = tx + RING;
    tx_buf = pages_alloc(RING * ROOM / PAGE);
    rx_buf = pages_alloc(RING * ROOM / PAGE);
    ring->size = RING;
    event_handle(PORT_NET, on_packet, NULL);
    if (vt_call3(VT_NET_RING, 0, ring, PORT_NET))
        die("no rings\n");
    for (uint32_t i = 0; i < RING; i++)
        rx_add(i);
    vt_call1(VT_NET_BELL, 0); /* a packet may have come before there was room, and waits */
    print("Card %02x:%02x:%02x:%02x:%02x:%02x, MTU %u.\n", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], info.mtu);
}

/* The next packet's place; Vitro copies it when the bell rings, so that it is free again at once. */
static uint8_t *tx_place(void)
{
    return tx_buf + ring->tx_head % RING * ROOM;
}
static void tx_send(unsigned len)
{
    if (len < 60) {
        memset(tx_place() + len, 0, 60 - len);
        len = 60; /* the shortest Ethernet frame, but for its checksum */
    }
    tx[ring->tx_head % RING] = (struct vt_net_desc){ .pa = (uint64_t)tx_place(), .len = len };
    __atomic_store_n(&ring->tx_head, ring->tx_head + 1, __ATOMIC_RELEASE);
    vt_call1(VT_NET_BELL, 0);
}

/* -- Ethernet and ARP (RFC 826) ---------------------------------------------------------------------------------------------- */

static void ethernet(uint8_t *p, const uint8_t *to, unsigned type)
{
    memcpy(p, to, 6);
    memcpy(p + 6, mac, 6);
    put16(p + 12, type);
}

static void arp(const uint8_t *in, unsigned len)
{
    uint8_t *p = tx_place();

    if (len < 42 || get16(in + 20) != 1 || get32(in + 38) != our_ip) /* a request, for us */
        return;
    ethernet(p, in + 6, 0x806);
    memcpy(p + 14, in + 14, 6);   /* Ethernet, IPv4 */
    put16(p + 20, 2);             /* reply */
    memcpy(p + 22, mac, 6);
    put32(p + 28, our_ip);
    memcpy(p + 32, in + 22, 10);  /* who asked */
    tx_send(42);
}

/* -- IPv4 (RFC 791): an answer to a packet, payload already at p + 34 --------------------------------------------------------- */

static void ip_answer(uint8_t *p, const uint8_t *in, unsigned protocol, unsigned payload)
{
    static uint16_t id;

    ethernet(p, in + 6, 0x800);
    memset(p + 14, 0, 20);
    p[14] = 0x45;
    put16(p + 16, 20 + payload);
    put16(p + 18, ++id);
    p[22] = 64; /* hops */
    p[23] = (uint8_t)protocol;
    put32(p + 26, our_ip);
    memcpy(p + 30, in + 26, 4);
    put16(p + 24, checksum(p + 14, 20, 0));
    tx_send(34 + payload);
}

static void icmp(const uint8_t *in, const uint8_t *data, unsigned len)
{
    uint8_t *p = tx_place(), *out = p + 34;

    if (len < 8 || data[0] != 8 || len > ROOM - 34) /* echo request (RFC 792) */
        return;
    memcpy(out, data, len);
    out[0] = 0;
    put16(out + 2, 0);
    put16(out + 2, checksum(out, len, 0));
    ip_answer(p, in, 1, len);
    print("Answered a ping.\n");
}

/* -- TCP -------------------------------------------------------------------------------------------------------------------------- */

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

static struct connection {
    bool used;
    uint32_t peer_ip, peer_next, our_next; /* next sequence numbers */
    uint16_t peer_port;
    unsigned len;
    char request[512];
} connections[16];

static bool quit;
static unsigned served;

static void tcp_answer(const uint8_t *in, const uint8_t *segment, uint32_t seq, uint32_t ack, unsigned flags, const char *data,
                       unsigned len)
{
    uint8_t *p = tx_place(), *out = p + 34;

    memset(out, 0, 20);
    put16(out, HTTP_PORT);
    memcpy(out + 2, segment, 2);
    put32(out + 4, seq);
    put32(out + 8, ack);
    out[12] = 5 << 4;
    out[13] = (uint8_t)flags;
    put16(out + 14, 4096); /* window */
    memcpy(out + 20, data, len);
    uint32_t pseudo = (our_ip >> 16) + (our_ip & 0xffff) + get16(in + 26) + get16(in + 28) + 6 + 20 + len;
    put16(out + 16, checksum(out, 20 + len, pseudo));
    ip_answer(p, in, 6, 20 + len);
}

static unsigned page(const char *request, char *out, unsigned size)
{
    char body[400];
    bool known = !memcmp(request, "GET / ", 6) || !memcmp(request, "GET /quit ", 10);
    uint64_t s = mono_ns() / 1000000;

    quit = !memcmp(request, "GET /quit ", 10);
    int len = known ? format(body, sizeof(body),
                             "<h1>Hello from a guest of Vitro</h1>\n<p>I have been up for %lu.%03lu s and this is request %u. Nothing "
                             "is beneath me but two rings.</p>\n", s / 1000, s % 1000, ++served)
                    : format(body, sizeof(body), "There is only one page.\n");
    return (unsigned)format(out, size, "HTTP/1.0 %s\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
                            known ? "200 OK" : "404 Not Found", len, body);
}

static struct connection *connection_of(uint32_t ip, uint16_t port, bool fresh)
{
    static unsigned next;

    for (unsigned i = 0; i < 16; i++)
        if (connections[i].used && connections[i].peer_ip == ip && connections[i].peer_port == port)
            return &connections[i];
    if (!fresh)
        return NULL;
    struct connection *c = &connections[next++ % 16]; /* the oldest goes */
    *c = (struct connection){ .used = true, .peer_ip = ip, .peer_port = port };
    return c;
}

static void tcp(const uint8_t *in, const uint8_t *segment, unsigned len)
{
    unsigned header = len >= 20 ? (unsigned)(segment[12] >> 4) * 4 : 0;
    if (header < 20 || header > len || get16(segment + 2) != HTTP_PORT)
        return;
    unsigned flags = segment[13], data = len - header;
    uint32_t seq = get32(segment + 4);
    struct connection *c = connection_of(get32(in + 26), get16(segment), flags & SYN);

    if (flags & RST) {
        if (c)
            c->used = false;
        return;
    }
    if (!c) { /* of a connection that we do not know */
        tcp_answer(in, segment, get32(segment + 8), seq + data, RST | ACK, NULL, 0);
        return;
    }
    if (flags & SYN) {
        c->len = 0;
        c->peer_next = seq + 1;
        c->our_next = (uint32_t)mono_ns();
        tcp_answer(in, segment, c->our_next, c->peer_next, SYN | ACK, NULL, 0);
        c->our_next++;
        return;
    }
    if (seq != c->peer_next) { /* again, or out of order: say what we want */
        if (data)
            tcp_answer(in, segment, c->our_next, c->peer_next, ACK, NULL, 0);
        return;
    }
    unsigned room = sizeof(c->request) - 1 - c->len, take = data < room ? data : room;
    memcpy(c->request + c->len, segment + header, take);
    c->len += take;
    c->request[c->len] = 0;
    c->peer_next += data + (flags & FIN ? 1 : 0);
    if (flags & FIN) {
        tcp_answer(in, segment, c->our_next, c->peer_next, ACK, NULL, 0);
        c->used = false;
        return;
    }
    bool whole = c->len == sizeof(c->request) - 1;
    for (unsigned i = 0; i + 4 <= c->len; i++)
        whole |= !memcmp(c->request + i, "\r\n\r\n", 4);
    if (data && whole) {
        char answer[800];
        unsigned n = page(c->request, answer, sizeof(answer));
        tcp_answer(in, segment, c->our_next, c->peer_next, PSH | FIN | ACK, answer, n);
        c->our_next += n + 1;
        c->len = 0;
    } else if (data) {
        tcp_answer(in, segment, c->our_next, c->peer_next, ACK, NULL, 0);
    }
}

/* -- All together ----------------------------------------------------------------------------------------------------------------- */

static void packet(const uint8_t *in, unsigned len)
{
    if (len < 34)
        return;
    if (get16(in + 12) == 0x806) {
        arp(in, len);
        return;
    }
    unsigned header = (in[14] & 15) * 4u, total = get16(in + 16);
    if (get16(in + 12) != 0x800 || in[14] >> 4 != 4 || header < 20 || total < header || total > len - 14 ||
        get32(in + 30) != our_ip || get16(in + 20) & 0x3fff /* a fragment */)
        return;
    if (in[23] == 1)
        icmp(in, in + 14 + header, total - header);
    else if (in[23] == 6)
        tcp(in, in + 14 + header, total - header);
}

int main(void)
{
    choose_address(command_line());
    net_setup();
    print("Serving http://%u.%u.%u.%u/\n", our_ip >> 24, our_ip >> 16 & 255, our_ip >> 8 & 255, our_ip & 255);
    while (!quit) {
        unsigned seen = events;
        uint32_t first = rx_seen;
        while (rx_seen != __atomic_load_n(&ring->rx_tail, __ATOMIC_ACQUIRE)) {
            const struct vt_net_desc *d = &rx[rx_seen % RING];
            if (d->result > 0)
                packet(rx_buf + rx_seen % RING * ROOM, (unsigned)d->result);
            rx_add(RING + rx_seen++);
        }
        if (rx_seen != first)
            vt_call1(VT_NET_BELL, 0); /* there is room again: once for all */
        if (!quit)
            wait_until(events != seen || rx_seen != ring->rx_tail);
    }
    /* The last answer is on its way; its reader may want to hear that we have heard the end. */
    uint64_t until = mono_ns() + 100000000;
    while (mono_ns() < until)
        for (; rx_seen != __atomic_load_n(&ring->rx_tail, __ATOMIC_ACQUIRE); rx_seen++)
            if (rx[rx_seen % RING].result > 0)
                packet(rx_buf + rx_seen % RING * ROOM, (unsigned)rx[rx_seen % RING].result);
    print("Served %u requests.\n", served);
    vt_call3(VT_NET_RING, 0, 0, 0);
    return 0;
}
