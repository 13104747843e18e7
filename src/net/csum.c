/* csum.c - checksums the guest left to the card. Source: RFC 1071, RFC 791, RFC 793; virtio 1.2 §5.1.6.2. */
#include "net/net.h"
#include <string.h>

static u16 get16(const u8 *p)
{
    return (u16)(p[0] << 8 | p[1]);
}

static void put16(u8 *p, unsigned v)
{
    p[0] = (u8)(v >> 8);
    p[1] = (u8)v;
}

u16 net_checksum(const u8 *p, size_t len, u64 sum)
{
    u64 words = 0;
    /* Sums of native words: one's complement addition does not care for the byte order until the end. */
    while (len >= 8) {
        u64 v;
        memcpy(&v, p, 8);
        words += (u32)v + (v >> 32);
        p += 8;
        len -= 8;
    }
    if (len) {
        u64 v = 0;
        memcpy(&v, p, len);
        words += (u32)v + (v >> 32);
    }
    while (words >> 16)
        words = (words & 0xffff) + (words >> 16);
    sum += (u64)__builtin_bswap16((u16)words);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (u16)~sum;
}

/* A segment of up to 64 KiB as one IPv4 packet. */
static bool finish_tcp4(u8 *frame, size_t len)
{
    if (len < 14 + 20 + 20 || get16(frame + 12) != 0x0800 || len - 14 > 65535)
        return false;
    u8 *ip = frame + 14, ihl = (u8)((ip[0] & 15) * 4);
    if (ip[0] >> 4 != 4 || ihl < 20 || ip[9] != 6 || len < 14u + ihl + 20)
        return false;
    u8 *tcp = ip + ihl;
    size_t tcp_len = len - 14 - ihl;
    put16(ip + 2, (unsigned)(len - 14));
    put16(ip + 10, 0);
    put16(ip + 10, net_checksum(ip, ihl, 0));
    put16(tcp + 16, 0);
    u64 pseudo = (u64)get16(ip + 12) + get16(ip + 14) + get16(ip + 16) + get16(ip + 18) + 6 + tcp_len;
    put16(tcp + 16, net_checksum(tcp, tcp_len, pseudo));
    return true;
}

bool net_finish(const struct net_hdr *hdr, u8 *frame, size_t len)
{
    switch (hdr->gso_type & ~NET_GSO_ECN) {
    case NET_GSO_NONE: break;
    case NET_GSO_TCPV4: return finish_tcp4(frame, len);
    default: return false;
    }
    if (!(hdr->flags & NET_NEEDS_CSUM))
        return true;
    size_t start = hdr->csum_start, at = start + hdr->csum_offset;
    if (start >= len || at + 2 > len)
        return false;
    u16 sum = net_checksum(frame + start, len - start, 0);
    put16(frame + at, sum ? sum : 0xffff); /* 0 would mean none for UDP */
    return true;
}
