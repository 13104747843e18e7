/*
 * integer.c - small whole-number programs of the kind compilers, databases and
 * archivers are made of. One operation is one run of the program.
 *
 * Kept scalar: what the vectoriser would make of some loops is fp.c's subject.
 */
#pragma GCC optimize("no-tree-vectorize")

#include "vb.h"

/* -- crc32: a byte at a time from a table ---------------------------------- */

#define CRC_BYTES 65536u

static u64 crc_run(u64 n)
{
    static u8 data[CRC_BYTES];
    static u32 table[256];
    u64 seed = 1, sum = 0;

    for (u32 i = 0; i < 256; i++) {
        u32 c = i;

        for (int k = 0; k < 8; k++)
            c = (c >> 1) ^ (c & 1 ? 0xedb88320u : 0);
        table[i] = c;
    }
    for (u32 i = 0; i < CRC_BYTES; i++)
        data[i] = (u8)vb_rand(&seed);
    for (u64 op = 0; op < n; op++) {
        u32 crc = ~(u32)op;

        for (u32 i = 0; i < CRC_BYTES; i++)
            crc = (crc >> 8) ^ table[(crc ^ data[i]) & 255];
        sum = vb_mix(sum, ~crc);
    }
    return sum;
}

/* -- sieve: primes below 200 000 ------------------------------------------- */

#define SIEVE_MAX 200000u

static u64 sieve_run(u64 n)
{
    static u8 composite[SIEVE_MAX];
    u64 sum = 0;

    for (u64 op = 0; op < n; op++) {
        u64 primes = 0;

        memset(composite, 0, sizeof(composite));
        for (u32 i = 2; i < SIEVE_MAX; i++) {
            if (composite[i])
                continue;
            primes += i;
            for (u64 k = (u64)i * i; k < SIEVE_MAX; k += i)
                composite[k] = 1;
        }
        sum = vb_mix(sum, primes + op);
    }
    return sum;
}

/* -- matmul_int: 96 x 96 matrices of 32-bit integers ----------------------- */

#define MAT 96

static u64 matmul_int_run(u64 n)
{
    static u32 a[MAT][MAT], b[MAT][MAT], c[MAT][MAT];
    u64 seed = 2, sum = 0;

    for (int i = 0; i < MAT * MAT; i++) {
        a[i / MAT][i % MAT] = (u32)vb_rand(&seed);
        b[i / MAT][i % MAT] = (u32)vb_rand(&seed);
    }
    for (u64 op = 0; op < n; op++) {
        for (int i = 0; i < MAT; i++) {
            for (int j = 0; j < MAT; j++) {
                u32 dot = 0;

                for (int k = 0; k < MAT; k++)
                    dot += a[i][k] * b[k][j];
                c[i][j] = dot;
            }
        }
        a[op % MAT][op / MAT % MAT] ^= c[MAT - 1][op % MAT];
        sum = vb_mix(sum, c[op % MAT][MAT / 2]);
    }
    return sum;
}

/* -- sha256: FIPS 180-4 over 16 KiB ---------------------------------------- */

#define ROR(x, r) (((x) >> (r)) | ((x) << (32 - (r))))

/* The constants are the fractions of the cube roots of the first primes. */
static void sha256_constants(u32 k[64])
{
    int found = 0;

    for (u32 p = 2; found < 64; p++) {
        u32 d = 2;
        unsigned __int128 root = 0;

        while (d * d <= p && p % d)
            d++;
        if (d * d <= p)
            continue;
        /* floor(cbrt(p) * 2^32), bit by bit: root^3 <= p * 2^96 */
        for (int bit = 35; bit >= 0; bit--) {
            unsigned __int128 t = root | ((unsigned __int128)1 << bit);

            if (t * t * t <= (unsigned __int128)p << 96)
                root = t;
        }
        k[found++] = (u32)root;
    }
}

static void sha256_block(u32 h[8], const u8 *p, const u32 k[64])
{
    u32 w[64], s[8];

    for (int i = 0; i < 16; i++)
        w[i] = (u32)p[4 * i] << 24 | (u32)p[4 * i + 1] << 16 |
               (u32)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        u32 x = w[i - 15], y = w[i - 2];

        w[i] = w[i - 16] + w[i - 7] + (ROR(x, 7) ^ ROR(x, 18) ^ (x >> 3)) +
               (ROR(y, 17) ^ ROR(y, 19) ^ (y >> 10));
    }
    memcpy(s, h, sizeof(s));
    for (int i = 0; i < 64; i++) {
        u32 e = s[4], a = s[0], t1, t2;

        t1 = s[7] + (ROR(e, 6) ^ ROR(e, 11) ^ ROR(e, 25)) +
             ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
        t2 = (ROR(a, 2) ^ ROR(a, 13) ^ ROR(a, 22)) +
             ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
        for (int j = 7; j > 0; j--)
            s[j] = s[j - 1];
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        h[i] += s[i];
}

static u64 sha256_run(u64 n)
{
    static u8 data[16384];
    static u32 k[64];
    u32 h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    u64 seed = 3, sum = 0;

    sha256_constants(k);
    for (u32 i = 0; i < sizeof(data); i++)
        data[i] = (u8)vb_rand(&seed);
    for (u64 op = 0; op < n; op++)
        for (u32 i = 0; i < sizeof(data); i += 64)
            sha256_block(h, data + i, k);
    for (int i = 0; i < 8; i++)
        sum = vb_mix(sum, h[i]);
    return sum;
}

/* -- sort: quicksort with insertion sort below 16, 10 000 keys ------------- */

#define SORT_KEYS 10000

static void quicksort(u64 *v, long lo, long hi)
{
    while (hi - lo > 16) {
        u64 pivot = v[lo + (hi - lo) / 2], t;
        long i = lo, j = hi;

        while (i <= j) {
            while (v[i] < pivot)
                i++;
            while (v[j] > pivot)
                j--;
            if (i <= j) {
                t = v[i];
                v[i++] = v[j];
                v[j--] = t;
            }
        }
        quicksort(v, lo, j);
        lo = i;
    }
    for (long i = lo + 1; i <= hi; i++) {
        u64 key = v[i];
        long j = i;

        for (; j > lo && v[j - 1] > key; j--)
            v[j] = v[j - 1];
        v[j] = key;
    }
}

static u64 sort_run(u64 n)
{
    static u64 v[SORT_KEYS];
    u64 seed = 4, sum = 0;

    for (u64 op = 0; op < n; op++) {
        for (int i = 0; i < SORT_KEYS; i++)
            v[i] = vb_rand(&seed);
        quicksort(v, 0, SORT_KEYS - 1);
        for (int i = 0; i < SORT_KEYS; i += 100)
            sum = vb_mix(sum, v[i]);
    }
    return sum;
}

/* -- hash: open addressing, 16 384 slots, 8 192 inserts and look-ups ------- */

#define SLOTS 16384u

static u64 hash_run(u64 n)
{
    static struct {
        u64 key, value;
    } table[SLOTS];
    u64 sum = 0;

    for (u64 op = 0; op < n; op++) {
        u64 seed = op + 5;

        memset(table, 0, sizeof(table));
        for (u64 i = 0; i < SLOTS / 2; i++) {
            u64 key = vb_rand(&seed);
            u64 slot = key * 0x9e3779b97f4a7c15u >> 50;

            while (table[slot].key && table[slot].key != key)
                slot = (slot + 1) % SLOTS;
            table[slot].key = key;
            table[slot].value += i;
        }
        seed = op + 5;
        for (u64 i = 0; i < SLOTS / 2; i++) {
            u64 key = vb_rand(&seed) ^ (i & 1); /* half of them are absent */
            u64 slot = key * 0x9e3779b97f4a7c15u >> 50;

            while (table[slot].key && table[slot].key != key)
                slot = (slot + 1) % SLOTS;
            sum += table[slot].value;
        }
    }
    return sum;
}

/* -- nqueens: 9 queens by bit sets ----------------------------------------- */

static VB_NOINLINE u64 queens(u32 all, u32 cols, u32 left, u32 right)
{
    u32 free = all & ~(cols | left | right);
    u64 found = cols == all;

    while (free) {
        u32 bit = free & -free;

        free ^= bit;
        found += queens(all, cols | bit, (left | bit) << 1, (right | bit) >> 1);
    }
    return found;
}

static u64 nqueens_run(u64 n)
{
    u64 sum = 0;

    for (u64 op = 0; op < n; op++)
        sum += queens((1u << 9) - 1, 0, 0, 0);
    return sum;
}

/* -- lz: greedy matching with a hash of 4 bytes, 64 KiB of text-like data -- */

#define LZ_BYTES 65536u

/* Returns the length of what was written to out. */
static u32 lz_compress(const u8 *in, u8 *out, u32 *heads)
{
    u32 at = 0, literals = 0, len = 0;

    memset(heads, 0xff, 4096 * sizeof(*heads));
    while (at + 4 < LZ_BYTES) {
        u32 word, h, cand, match = 0;

        memcpy(&word, in + at, 4);
        h = word * 2654435761u >> 20;
        cand = heads[h];
        heads[h] = at;
        if (cand != ~0u && at - cand < 65536)
            while (at + match < LZ_BYTES && match < 255 &&
                   in[cand + match] == in[at + match])
                match++;
        if (match < 4) {
            out[len++] = in[at++];
            literals++;
            continue;
        }
        out[len++] = (u8)match;
        out[len++] = (u8)(at - cand);
        out[len++] = (u8)((at - cand) >> 8);
        at += match;
    }
    return len ^ literals << 16;
}

static u64 lz_run(u64 n)
{
    static const char words[8][8] = {"guest ", "memory ", "page ", "the ",
                                     "of ",    "host ",   "a ",    "fault "};
    static u8 in[LZ_BYTES + 8], out[LZ_BYTES * 2];
    static u32 heads[4096];
    u64 seed = 6, sum = 0;

    for (u32 at = 0; at < LZ_BYTES;) {
        const char *word = words[vb_rand(&seed) >> 61];

        while (*word && at < LZ_BYTES)
            in[at++] = (u8)*word++;
        if (at < LZ_BYTES && (seed >> 40 & 3) == 0)
            in[at++] = (u8)('0' + seed % 10);
    }
    for (u64 op = 0; op < n; op++) {
        u32 len = lz_compress(in, out, heads);

        sum = vb_mix(sum, len);
        sum = vb_mix(sum, out[(len & 0xffff) / 2]);
        in[op % LZ_BYTES] ^= 1;
    }
    return sum;
}

/* -- bigint: 2048 x 2048 bits, schoolbook ---------------------------------- */

#define LIMBS 32

static u64 bigint_run(u64 n)
{
    u64 a[LIMBS], b[LIMBS], c[2 * LIMBS], seed = 7, sum = 0;

    for (int i = 0; i < LIMBS; i++) {
        a[i] = vb_rand(&seed);
        b[i] = vb_rand(&seed);
    }
    for (u64 op = 0; op < n; op++) {
        memset(c, 0, sizeof(c));
        for (int i = 0; i < LIMBS; i++) {
            u64 carry = 0;

            for (int j = 0; j < LIMBS; j++) {
                unsigned __int128 t = (unsigned __int128)a[i] * b[j];

                t += c[i + j];
                t += carry;
                c[i + j] = (u64)t;
                carry = (u64)(t >> 64);
            }
            c[i + LIMBS] = carry;
        }
        memcpy(a, c + LIMBS / 2, sizeof(a));
        a[0] |= 1;
        sum = vb_mix(sum, c[LIMBS]);
    }
    return sum;
}

/* -- format: printf and strtol, as log files and protocols do -------------- */

static u64 format_run(u64 n)
{
    u64 seed = 8, sum = 0;
    char line[128];

    for (u64 op = 0; op < n; op++) {
        u64 r = vb_rand(&seed);
        int len = snprintf(line, sizeof(line), "%-10s %08x %lld.%03u %c",
                           (r & 1) ? "request" : "answer", (u32)r,
                           (long long)(r >> 34), (u32)(r >> 20) % 1000,
                           'a' + (int)(r % 26));

        sum = vb_mix(sum, (u64)len + strtoul(line + 11, NULL, 16));
    }
    return sum;
}

/* -- huffman: build a code for 64 KiB, encode, decode, compare ------------- */

#define HUFF_BYTES 32768u

struct huff_node {
    u32 weight;
    short child[2]; /* -1 in a leaf */
};

static void huff_codes(const struct huff_node *t, int node, u32 code, u32 len,
                       u32 *codes, u8 *lens)
{
    if (t[node].child[0] < 0) {
        codes[node] = code;
        lens[node] = (u8)len;
        return;
    }
    huff_codes(t, t[node].child[0], code, len + 1, codes, lens);
    huff_codes(t, t[node].child[1], code | 1u << len, len + 1, codes, lens);
}

/* Leaves are nodes 0-63; returns the root. */
static int huff_tree(struct huff_node *t)
{
    u8 used[128] = {0};
    int next = 64;

    while (1) {
        int least[2] = {-1, -1};

        for (int i = 0; i < next; i++) {
            if (used[i])
                continue;
            if (least[0] < 0 || t[i].weight < t[least[0]].weight) {
                least[1] = least[0];
                least[0] = i;
            } else if (least[1] < 0 || t[i].weight < t[least[1]].weight) {
                least[1] = i;
            }
        }
        if (least[1] < 0)
            return least[0];
        used[least[0]] = used[least[1]] = 1;
        t[next].weight = t[least[0]].weight + t[least[1]].weight;
        t[next].child[0] = (short)least[0];
        t[next].child[1] = (short)least[1];
        next++;
    }
}

static u64 huffman_run(u64 n)
{
    static u8 in[HUFF_BYTES], bits[HUFF_BYTES * 4];
    struct huff_node tree[128];
    u32 codes[64] = {0};
    u8 lens[64] = {0};
    u64 seed = 9, sum = 0;

    for (u32 i = 0; i < HUFF_BYTES; i++) {
        u64 r = vb_rand(&seed);

        in[i] = (u8)(r & (r >> 6) & 63);
    }
    for (u64 op = 0; op < n; op++) {
        u64 len = 0, at = 0, wrong = 0;
        int root;

        for (int i = 0; i < 64; i++)
            tree[i] = (struct huff_node){1, {-1, -1}};
        for (u32 i = 0; i < HUFF_BYTES; i++)
            tree[in[i]].weight++;
        root = huff_tree(tree);
        huff_codes(tree, root, 0, 0, codes, lens);
        memset(bits, 0, sizeof(bits));
        for (u32 i = 0; i < HUFF_BYTES; i++)
            for (u32 b = 0; b < lens[in[i]]; b++, len++)
                bits[len / 8] |= (u8)((codes[in[i]] >> b & 1) << len % 8);
        for (u32 i = 0; i < HUFF_BYTES; i++) {
            int node = root;

            for (; tree[node].child[0] >= 0; at++)
                node = tree[node].child[bits[at / 8] >> at % 8 & 1];
            wrong += node != in[i];
        }
        in[op % HUFF_BYTES] ^= 3;
        sum = vb_mix(sum, len + (wrong << 32));
    }
    return sum;
}

const struct vb_bench vb_integer[] = {
    {"crc32", "integer", 2000, crc_run, NULL},
    {"sieve", "integer", 600, sieve_run, NULL},
    {"matmul_int", "integer", 1500, matmul_int_run, NULL},
    {"sha256", "integer", 2000, sha256_run, NULL},
    {"sort", "integer", 500, sort_run, NULL},
    {"hash", "integer", 2000, hash_run, NULL},
    {"nqueens", "integer", 12000, nqueens_run, NULL},
    {"lz", "integer", 2000, lz_run, NULL},
    {"bigint", "integer", 300000, bigint_run, NULL},
    {"format", "integer", 1000000, format_run, NULL},
    {"huffman", "integer", 300, huffman_run, NULL},
    {0},
};
