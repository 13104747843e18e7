/*
 * compute.c - loops that a compiler vectorizes in many ways, over integers and exactly representable
 * numbers: any correct build prints the same line.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define N 4099
static int32_t i32[N];
static int64_t i64[N];
static uint8_t u8[N];
static int16_t i16[N];
static float f32[N];
static double f64[N];

static uint64_t mix(uint64_t h, uint64_t x) { return (h ^ x) * 0x100000001b3ull; }

static uint64_t integers(int r)
{
    int64_t sum = 0, most = -1;
    for (int i = 0; i < N; i++) {
        i32[i] = (int32_t)((uint32_t)i * 2654435761u) >> (r & 7);
        u8[i] = (uint8_t)(i32[i] >> 5);
        i16[i] = (int16_t)(i32[i] >> 9);
        i64[i] = (int64_t)i32[i] * i16[i];
    }
    for (int i = 0; i < N; i++)
        sum += i32[i] > i16[i] ? i32[i] : -(int64_t)u8[i];
    for (int i = 0; i < N; i++)
        most = i64[i] > most ? i64[i] : most;
    int32_t dot = 0;
    for (int i = 0; i < N; i++)
        dot += i16[i] * i16[N - 1 - i];
    uint32_t sad = 0, bits = 0;
    for (int i = 0; i < N - 1; i++)
        sad += u8[i] > u8[i + 1] ? u8[i] - u8[i + 1] : u8[i + 1] - u8[i];
    for (int i = 0; i < N; i++)
        bits += (uint32_t)__builtin_popcount((unsigned)i32[i]) + (uint32_t)__builtin_clz((unsigned)i32[i] | 1);
    for (int i = 0; i < N; i++)
        i16[i] = (int16_t)(i16[i] + u8[i] > 20000 ? 20000 : i16[i] + u8[i]);
    int64_t gathered = 0;
    for (int i = 0; i < N; i++)
        gathered += i64[(uint32_t)i32[i] % N];
    for (int i = 0; i < N; i++)
        i64[i] = i64[i] << (i & 31) | (int64_t)((uint64_t)i64[i] >> (u8[i] & 63));
    uint64_t h = 1;
    for (int i = 0; i < N; i++)
        h = mix(h, (uint64_t)i64[i] ^ (uint64_t)i16[i]);
    return mix(mix(mix(mix(mix(h, (uint64_t)sum), (uint64_t)most), (uint32_t)dot), sad * 31ull + bits), (uint64_t)gathered);
}

static uint64_t floats(int r)
{
    for (int i = 0; i < N; i++) {
        f32[i] = (float)((i * 37 + r) % 1024) * 0.25f;
        f64[i] = (double)((i * 101 + r) % 4096) - 2048;
    }
    double sum = 0, most = 0;
    for (int i = 0; i < N; i++)
        sum += f64[i] * f32[i];
    for (int i = 0; i < N; i++)
        most = fabs(f64[i]) > most ? fabs(f64[i]) : most;
    long trunc_sum = 0, rounded = 0;
    for (int i = 0; i < N; i++)
        trunc_sum += (int)f32[i] + (int)(f64[i] / 3);
    for (int i = 0; i < N; i++)
        rounded += lrint(f64[i] * 0.125) + (long)floor(f64[i] * 0.375);
    float total = 0;
    for (int i = 0; i < 256; i++)
        total += f32[i] > 100 ? f32[i] : 0.5f;
    for (int i = 0; i < N; i++)
        f64[i] = sqrt(f64[i] * f64[i]) + (double)f32[i] / 1024;
    double again = 0;
    for (int i = 0; i < N; i++)
        again += f64[i];
    uint64_t h = 7, u;
    double all[] = { sum, most, (double)trunc_sum, (double)rounded, total, again };
    for (unsigned i = 0; i < sizeof(all) / sizeof(*all); i++) {
        memcpy(&u, &all[i], 8);
        h = mix(h, u);
    }
    return h;
}

int main(void)
{
    uint64_t h = 0;
    for (int r = 0; r < 200; r++)
        h = mix(mix(h, integers(r)), floats(r));
    printf("compute: %016llx\n", (unsigned long long)h);
    return 0;
}
