/* flow.c - which flow a frame belongs to. Source: RFC 791, RFC 793, RFC 768. */
#include "net/net.h"
#include <string.h>

u32 net_flow(const u8 *f, size_t len)
{
    u32 a, b, h;
    u16 p, q;

    if (len < NET_FLOW_BYTES || f[12] != 8 || f[13] || (f[14] & 15) != 5 || (f[23] != 6 && f[23] != 17))
        return 0;
    memcpy(&a, f + 26, 4);
    memcpy(&b, f + 30, 4);
    memcpy(&p, f + 34, 2);
    memcpy(&q, f + 36, 2);
    h = (a ^ b) * 0x9e3779b1u + (u32)(p ^ q) * 0x85ebca6bu;
    return h ^ h >> 15;
}
