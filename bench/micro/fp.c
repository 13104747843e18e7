/*
 * fp.c - floating point and SIMD. Only operations that IEEE 754 rounds
 * exactly are used (no sin, no exp), so every machine owes the same bits.
 */
#include "vb.h"

#include <immintrin.h>

/* -- scalar doubles -------------------------------------------------------- */

#define MAT 96

static u64 matmul_run(u64 n)
{
    static double a[MAT][MAT], b[MAT][MAT], c[MAT][MAT];
    u64 seed = 15, sum = 0;

    for (int i = 0; i < MAT * MAT; i++) {
        a[i / MAT][i % MAT] = (double)(vb_rand(&seed) >> 40) / 65536;
        b[i / MAT][i % MAT] = (double)(vb_rand(&seed) >> 40) / 65536;
    }
    for (u64 op = 0; op < n; op++) {
        for (int i = 0; i < MAT; i++) {
            for (int j = 0; j < MAT; j++) {
                double dot = 0;

                for (int k = 0; k < MAT; k++)
                    dot += a[i][k] * b[k][j];
                c[i][j] = dot;
            }
        }
        a[op % MAT][0] = 1 / (1 + c[0][op % MAT]);
        sum = vb_mix(sum, vb_bits(c[op % MAT][MAT / 2]));
    }
    return sum;
}

struct body {
    double x[3], v[3], mass;
};

/* Five bodies; one operation is one step. */
static u64 nbody_run(u64 n)
{
    struct body b[5];
    u64 seed = 16;

    for (int i = 0; i < 5; i++) {
        for (int k = 0; k < 3; k++) {
            b[i].x[k] = (double)(vb_rand(&seed) >> 44) / 65536 + i * 9;
            b[i].v[k] = (double)(vb_rand(&seed) >> 48) / 1048576;
        }
        b[i].mass = 1.0 / (i + 1);
    }
    for (u64 op = 0; op < n; op++) {
        for (int i = 0; i < 5; i++) {
            for (int j = i + 1; j < 5; j++) {
                double d[3], r2 = 0.01, mag;

                for (int k = 0; k < 3; k++) {
                    d[k] = b[i].x[k] - b[j].x[k];
                    r2 += d[k] * d[k];
                }
                mag =
                    0.001 / (r2 * _mm_cvtsd_f64(_mm_sqrt_pd(_mm_set1_pd(r2))));
                for (int k = 0; k < 3; k++) {
                    b[i].v[k] -= d[k] * b[j].mass * mag;
                    b[j].v[k] += d[k] * b[i].mass * mag;
                }
            }
        }
        for (int i = 0; i < 5; i++)
            for (int k = 0; k < 3; k++)
                b[i].x[k] += 0.001 * b[i].v[k];
    }
    return vb_bits(b[0].x[0]) ^ vb_bits(b[4].v[2]);
}

/* One operation: one point, at most 200 turns. */
static u64 mandelbrot_run(u64 n)
{
    u64 sum = 0;

    for (u64 op = 0; op < n; op++) {
        double cx = (double)(op % 256) / 128 - 1.5;
        double cy = (double)(op / 256 % 256) / 128 - 1;
        double x = 0, y = 0;
        u64 turns = 0;

        while (x * x + y * y <= 4 && turns < 200) {
            double t = x * x - y * y + cx;

            y = 2 * x * y + cy;
            x = t;
            turns++;
        }
        sum += turns;
    }
    return sum;
}

/* Division and square root, each waiting for the one before. */
static u64 sqrt_div_run(u64 n)
{
    __m128d x = _mm_set1_pd(2);

    for (u64 op = 0; op < n; op++) {
        x = _mm_sqrt_sd(x, x);
        x = _mm_add_sd(_mm_div_sd(_mm_set_sd(7), x),
                       _mm_set_sd((double)(op & 15)));
    }
    return vb_bits(_mm_cvtsd_f64(x));
}

static u64 x87_run(u64 n)
{
    volatile long double seven = 7;
    long double x = 2, y = 1;

    for (u64 op = 0; op < n; op++) {
        x = x * 0.75L + seven / (y + 3);
        y = y * 0.5L + x + (long double)(int)(op & 15);
    }
    return vb_bits((double)(x * 1000003)) ^ vb_bits((double)y);
}

/* -- SIMD: each over 4 KiB per operation ----------------------------------- */

#define FLOATS 1024

static float fa[FLOATS] __attribute__((aligned(64)));
static float fb[FLOATS] __attribute__((aligned(64)));

static void fill(void)
{
    u64 seed = 17;

    for (int i = 0; i < FLOATS; i++) {
        fa[i] = (float)(vb_rand(&seed) >> 44) / 1048576;
        fb[i] = (float)(vb_rand(&seed) >> 44) / 1048576;
    }
}

static u64 sse2_int_run(u64 n)
{
    __m128i acc = _mm_setzero_si128(), odd = _mm_set1_epi32(0x01000193);
    const __m128i *p = (const __m128i *)fa;
    u64 out[2];

    fill();
    for (u64 op = 0; op < n; op++) {
        for (int i = 0; i < FLOATS / 4; i++) {
            __m128i v = _mm_xor_si128(_mm_load_si128(p + i), acc);

            v = _mm_add_epi16(_mm_mullo_epi16(v, odd), _mm_srli_epi32(v, 7));
            v = _mm_shuffle_epi32(v, 0x39);
            acc =
                _mm_add_epi64(_mm_subs_epu8(acc, v), _mm_unpacklo_epi8(v, acc));
        }
    }
    _mm_storeu_si128((__m128i *)out, acc);
    return vb_mix(out[0], out[1]);
}

__attribute__((target("avx2,fma"))) static u64 avx2_fma_run(u64 n)
{
    __m256 acc[4] = {_mm256_setzero_ps()};
    float out[8];
    u64 sum = 0;

    fill();
    for (int k = 0; k < 4; k++)
        acc[k] = _mm256_set1_ps((float)k);
    for (u64 op = 0; op < n; op++) {
        __m256 half = _mm256_set1_ps(0.5f);

        for (int i = 0; i < FLOATS; i += 32)
            for (int k = 0; k < 4; k++)
                acc[k] =
                    _mm256_fmadd_ps(_mm256_load_ps(fa + i + 8 * k),
                                    _mm256_load_ps(fb + i + 8 * k), acc[k]);
        for (int k = 0; k < 4; k++)
            acc[k] = _mm256_mul_ps(acc[k], half);
    }
    for (int k = 0; k < 4; k++) {
        _mm256_storeu_ps(out, acc[k]);
        for (int i = 0; i < 8; i++)
            sum = vb_mix(sum, vb_bits((double)out[i]));
    }
    return sum;
}

__attribute__((target("avx512f"))) static u64 avx512_run(u64 n)
{
    __m512 acc[4];
    float out[16];
    u64 sum = 0;

    fill();
    for (int k = 0; k < 4; k++)
        acc[k] = _mm512_set1_ps((float)k);
    for (u64 op = 0; op < n; op++) {
        __m512 half = _mm512_set1_ps(0.5f);

        for (int i = 0; i < FLOATS; i += 64) {
            for (int k = 0; k < 4; k++) {
                __m512 a = _mm512_load_ps(fa + i + 16 * k);
                __m512 b = _mm512_load_ps(fb + i + 16 * k);
                __mmask16 less = _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);

                acc[k] = _mm512_mask3_fmadd_ps(a, b, acc[k], less);
            }
        }
        for (int k = 0; k < 4; k++)
            acc[k] = _mm512_mul_ps(acc[k], half);
    }
    for (int k = 0; k < 4; k++) {
        _mm512_storeu_ps(out, acc[k]);
        for (int i = 0; i < 16; i++)
            sum = vb_mix(sum, vb_bits((double)out[i]));
    }
    return sum;
}

static int lacks_avx2(void)
{
    return !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma");
}

static int lacks_avx512(void)
{
    return !__builtin_cpu_supports("avx512f");
}

const struct vb_bench vb_fp[] = {
    {"matmul_double", "fp", 500, matmul_run, NULL},
    {"nbody", "fp", 3000000, nbody_run, NULL},
    {"mandelbrot", "fp", 1200000, mandelbrot_run, NULL},
    {"sqrt_div", "fp", 25000000, sqrt_div_run, NULL},
    {"x87", "fp", 20000000, x87_run, NULL},
    {"sse2_int", "fp", 300000, sse2_int_run, NULL},
    {"avx2_fma", "fp", 2500000, avx2_fma_run, lacks_avx2},
    {"avx512", "fp", 2000000, avx512_run, lacks_avx512},
    {0},
};
