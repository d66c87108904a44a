/* The reference kernels: plain C, one output element after another, exactly the order that
 * quant/README.md fixes and every other tier repeats.  Also the choice of a tier's table.
 * Owns nothing. */
#include <math.h>
#include <string.h>

#include "moe/base/err.h"
#include "moe/base/f16.h"
#include "quant/mm_int.h"
#include "quant/stack.h"

/* DESIGN, integer ranges: an activation is -127..127 and never -128, so
 *   Q8_0  |isum| <= 32 * 128 * 127              =     520,192
 *   Q4_0  |isum| <= 32 * 8 * 127                =      32,512
 *   Q4_K  |isum| <= 8 * 63 * (32 * 15 * 127)    =  30,723,840    |msum| <= 8 * 63 * (32 * 127)
 *   Q6_K  |isum| <= 16 * 128 * (16 * 32 * 127)  = 133,169,152
 * and with the weights read as unsigned, before their correction is taken off:
 *   Q8_0  32 * 255 * 127 = 1,036,320            Q6_K  16 * 128 * (16 * 63 * 127) = 262,176,768
 * (plus 133 million for the correction).  All stay well inside int32, so the order inside an
 * integer sum does not matter: only the float steps are ordered. */
_Static_assert(16LL * 128 * (16 * 63 * 127) + 32LL * 16 * 128 * (16 * 127) < INT32_MAX,
               "Q6_K sums fit int32");

/* ---- activations ------------------------------------------------------------------------ */

static void zero_tail(void *out, size_t used, size_t total)
{
    memset((char *)out + used, 0, total - used);
}

void act_f32_ref(int n_cols, const float *x, void *out)
{
    memcpy(out, x, 4 * (size_t)n_cols);
    zero_tail(out, 4 * (size_t)n_cols, act_bytes(ACT_F32, n_cols));
}

/* The largest magnitude as bits: compared as integers, infinities and NaNs are the largest. */
static uint32_t amax_bits(const float *x, int n)
{
    uint32_t m = 0;
    for (int i = 0; i < n; i++) {
        uint32_t a = f32_bits(x[i]) & 0x7fffffffu;
        if (a > m) m = a;
    }
    return m;
}

/* |v| is at most about 127: adding 1.5 * 2^23 leaves the rounded integer in the low bits. */
static int8_t round_even(float v)
{
    return (int8_t)(int32_t)(f32_bits(v + 0x1.8p23f) - f32_bits(0x1.8p23f));
}

/* Quantises n values with one scale; returns the scale. */
static float quantise(const float *x, int n, int8_t *q)
{
    uint32_t bits = amax_bits(x, n);
    if (bits >= 0x7f800000u || f32_from_bits(bits) < ACT_AMAX_MIN) {
        memset(q, 0, (size_t)n);
        return bits >= 0x7f800000u ? f32_from_bits(ACT_BAD_SCALE) : 0.0f;
    }
    float amax = f32_from_bits(bits), inv = 127.0f / amax;
    for (int i = 0; i < n; i++) q[i] = round_even(x[i] * inv);
    return amax / 127.0f;
}

static int sum_q(const int8_t *q, int n)
{
    int s = 0;
    for (int i = 0; i < n; i++) s += q[i];
    return s;
}

/* Blocks of 32 or 64. */
static void act_q8(enum act_kind kind, int block, int n_cols, const float *x, void *out)
{
    int n_blocks = n_cols / block;
    int8_t *q = out;
    char *d = (char *)out + n_cols, *sum = d + 4 * (size_t)n_blocks;
    for (int b = 0; b < n_blocks; b++) {
        float scale = quantise(x + block * b, block, q + block * b);
        int32_t s = sum_q(q + block * b, block);
        memcpy(d + 4 * b, &scale, 4);
        memcpy(sum + 4 * b, &s, 4);
    }
    zero_tail(out, (size_t)n_cols + 8 * (size_t)n_blocks, act_bytes(kind, n_cols));
}

void act_q8_32_ref(int n_cols, const float *x, void *out) { act_q8(ACT_Q8_32, 32, n_cols, x, out); }
void act_q8_64_ref(int n_cols, const float *x, void *out) { act_q8(ACT_Q8_64, 64, n_cols, x, out); }

void act_q8_256_ref(int n_cols, const float *x, void *out)
{
    int n_blocks = n_cols / 256;
    int8_t *q = out;
    char *d = (char *)out + n_cols, *s16 = d + 4 * (size_t)n_blocks;
    char *s32 = s16 + n_cols / 16 * 2;
    for (int b = 0; b < n_blocks; b++) {
        float scale = quantise(x + 256 * b, 256, q + 256 * b);
        memcpy(d + 4 * b, &scale, 4);
    }
    for (int i = 0; i < n_cols / 16; i++) {
        int16_t s = (int16_t)sum_q(q + 16 * i, 16);
        memcpy(s16 + 2 * i, &s, 2);
    }
    for (int i = 0; i < n_cols / 32; i++) {
        int16_t s = (int16_t)sum_q(q + 32 * i, 32);
        memcpy(s32 + 2 * i, &s, 2);
    }
    zero_tail(out, (size_t)(s32 - (char *)out) + (size_t)n_cols / 32 * 2,
              act_bytes(ACT_Q8_256, n_cols));
}

/* ---- products --------------------------------------------------------------------------- */

static float load_f32(const void *p)
{
    float v;
    memcpy(&v, p, 4);
    return v;
}

static int16_t load_i16(const void *p)
{
    int16_t v;
    memcpy(&v, p, 2);
    return v;
}

static float load_half(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return f16_to_f32(h);
}

/* One output element: row `lane` of a tile times a prepared row. */
typedef float element_fn(int n_cols, const uint8_t *tile, int lane, const void *x);

static float element_f32(int n_cols, const uint8_t *tile, int lane, const void *x)
{
    float acc = 0;
    for (int k = 0; k < n_cols; k++)
        acc = fmaf(load_f32(tile + 64 * (size_t)k + 4 * lane), ((const float *)x)[k], acc);
    return acc;
}

static float element_f16(int n_cols, const uint8_t *tile, int lane, const void *x)
{
    float acc = 0;
    for (int k = 0; k < n_cols; k++)
        acc = fmaf(load_half(tile + 32 * (size_t)k + 2 * lane), ((const float *)x)[k], acc);
    return acc;
}

static float element_bf16(int n_cols, const uint8_t *tile, int lane, const void *x)
{
    float acc = 0;
    for (int k = 0; k < n_cols; k++) {
        uint16_t h;
        memcpy(&h, tile + 32 * (size_t)k + 2 * lane, 2);
        acc = fmaf(bf16_to_f32(h), ((const float *)x)[k], acc);
    }
    return acc;
}

static float element_q8_0(int n_cols, const uint8_t *tile, int lane, const void *x)
{
    const int8_t *a = x;
    const char *da = (const char *)x + n_cols;
    float acc = 0;
    for (int b = 0; b < n_cols / 32; b++, tile += T8_0_BYTES, a += 32) {
        int32_t isum = 0;
        for (int k = 0; k < 32; k++)
            isum += (tile[T8_0_Q + k / 4 * 64 + lane * 4 + k % 4] - 128) * a[k];
        float p = load_half(tile + 2 * lane) * load_f32(da + 4 * b);
        acc = fmaf(p, (float)isum, acc);
    }
    return acc;
}

static float element_q4_0(int n_cols, const uint8_t *tile, int lane, const void *x)
{
    const int8_t *a = x;
    const char *da = (const char *)x + n_cols;
    float acc = 0;
    for (int b = 0; b < n_cols / 32; b++, tile += T4_0_BYTES, a += 32) {
        int32_t isum = 0;
        for (int k = 0; k < 16; k++) {
            int v = tile[T4_0_Q + k / 4 * 64 + lane * 4 + k % 4];
            isum += ((v & 15) - 8) * a[k] + ((v >> 4) - 8) * a[k + 16];
        }
        float p = load_half(tile + 2 * lane) * load_f32(da + 4 * b);
        acc = fmaf(p, (float)isum, acc);
    }
    return acc;
}

/* The 6-bit scale and min of sub-block s of one row; byte i of the row's twelve is at
 * sc[i/4][lane][i%4]. */
static void q4_k_scale(const uint8_t *sc, int lane, int s, int *scale, int *min)
{
    int i = s & 3;
    const uint8_t *p = sc + 4 * lane + i;
    if (s < 4) {
        *scale = p[0] & 63;
        *min = p[64] & 63;
    } else {
        *scale = (p[128] & 15) | (p[0] >> 6) << 4;
        *min = p[128] >> 4 | (p[64] >> 6) << 4;
    }
}

static float element_q4_k(int n_cols, const uint8_t *tile, int lane, const void *x)
{
    const int8_t *a = x;
    const char *da = (const char *)x + n_cols;
    const char *s32 = da + n_cols / 256 * 4 + n_cols / 16 * 2;
    float acc = 0;
    for (int b = 0; b < n_cols / 256; b++, tile += T4_K_BYTES, a += 256, s32 += 16) {
        int32_t isum = 0, msum = 0;
        for (int s = 0; s < 8; s++) {
            int dot = 0, scale, min;
            for (int k = 0; k < 32; k++) {
                int v = tile[T4_K_Q + (s / 2 * 8 + k / 4) * 64 + lane * 4 + k % 4];
                dot += (s & 1 ? v >> 4 : v & 15) * a[32 * s + k];
            }
            q4_k_scale(tile + T4_K_SC, lane, s, &scale, &min);
            isum += scale * dot;
            msum += min * load_i16(s32 + 2 * s);
        }
        float ad = load_f32(da + 4 * b);
        acc = fmaf(load_half(tile + 2 * lane) * ad, (float)isum, acc);
        acc = fmaf(-(load_half(tile + T4_K_DMIN + 2 * lane) * ad), (float)msum, acc);
    }
    return acc;
}

static float element_q6_k(int n_cols, const uint8_t *tile, int lane, const void *x)
{
    const int8_t *a = x;
    const char *da = (const char *)x + n_cols;
    float acc = 0;
    for (int b = 0; b < n_cols / 256; b++, tile += T6_K_BYTES, a += 256) {
        int32_t isum = 0;
        for (int k = 0; k < 256; k++) {
            int half = k >> 7, t = k >> 5 & 3, i = k & 31;
            int at = i / 4 * 64 + lane * 4 + i % 4, s = k / 16;
            int lo = tile[T6_K_QL + (half * 16 + (t & 1) * 8) * 64 + at] >> (t >> 1) * 4 & 15;
            int hi = tile[T6_K_QH + half * 8 * 64 + at] >> 2 * t & 3;
            int scale = (int8_t)tile[T6_K_SC + s / 4 * 64 + lane * 4 + s % 4];
            isum += scale * ((lo | hi << 4) - 32) * a[k];
        }
        acc = fmaf(load_half(tile + 2 * lane) * load_f32(da + 4 * b), (float)isum, acc);
    }
    return acc;
}

static void mm_elements(enum qtype type, element_fn *fn, int n_cols, int n_tiles, const void *w,
                        int n_rows, const void *const *x, float *const *y)
{
    const uint8_t *tile = w;
    for (int t = 0; t < n_tiles; t++, tile += tile_bytes(type, n_cols))
        for (int r = 0; r < n_rows; r++)
            for (int lane = 0; lane < TILE_ROWS; lane++)
                y[r][TILE_ROWS * t + lane] = fn(n_cols, tile, lane, x[r]);
}

#define MM(name, TYPE)                                                                           \
    static void mm_##name(int n_cols, int n_tiles, const void *w, int n_rows,                    \
                          const void *const *x, float *const *y)                                 \
    {                                                                                            \
        mm_elements(QTYPE_##TYPE, element_##name, n_cols, n_tiles, w, n_rows, x, y);             \
    }
MM(f32, F32)
MM(f16, F16)
MM(bf16, BF16)
MM(q8_0, Q8_0)
MM(q4_0, Q4_0)
MM(q4_k, Q4_K)
MM(q6_k, Q6_K)

const struct mm_kernels mm_kernels_ref = {
    .turn = turn_dwords_ref,
    .nested = nested_ref,
    .factored_tile = factored_tile_ref,
    .act = {[ACT_F32] = act_f32_ref,
            [ACT_Q8_32] = act_q8_32_ref,
            [ACT_Q8_64] = act_q8_64_ref,
            [ACT_Q8_256] = act_q8_256_ref},
    .mm = {[QTYPE_F32] = mm_f32,
           [QTYPE_F16] = mm_f16,
           [QTYPE_BF16] = mm_bf16,
           [QTYPE_Q8_0] = mm_q8_0,
           [QTYPE_Q4_0] = mm_q4_0,
           [QTYPE_Q4_K] = mm_q4_k,
           [QTYPE_Q6_K] = mm_q6_k,
#define ROW(TYPE) [QTYPE_##TYPE] = mm_ref_##TYPE,
           MM_PARTS_TYPES(ROW)},
#undef ROW
};

const struct mm_kernels *mm_kernels(enum cpu_tier tier)
{
#if defined(__x86_64__)
    if (tier == CPU_AMX) return &mm_kernels_amx;
    if (tier == CPU_AVX512) return &mm_kernels_avx512;
    if (tier == CPU_AVX2) return &mm_kernels_avx2;
#endif
    (void)tier;
    return &mm_kernels_ref;
}
