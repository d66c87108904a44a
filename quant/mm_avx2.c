/* The AVX2 kernels (AVX2, FMA, F16C; no VNNI).  Bit-equal to quant/mm_ref.c in every output;
 * quant/README.md has the order.  Owns nothing.  Quantised types are in mm_avx2_int.h; the newer
 * ones are instantiated in the other _avx2 files. */
#include <immintrin.h>
#include <string.h>

#include "moe/base/f16.h"
#include "quant/mm_avx2_int.h"

/* ---- F32, F16, BF16 ----------------------------------------------------------------------- */

INLINE __m256 load_plain(enum qtype type, const uint8_t *p, int h)
{
    if (type == QTYPE_F32) return _mm256_loadu_ps((const float *)p + 8 * h);
    if (type == QTYPE_F16) return load_halfs(p + 16 * h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 16 * h))), 16));
}

/* T tiles against C rows (T * C <= 6), all sums in registers. */
INLINE void block_plain(enum qtype type, int T, int C, int n_cols, const uint8_t *p, size_t tile,
                        const void *const *x, float *const *y, int y_at)
{
    const size_t step = type == QTYPE_F32 ? 64 : 32;
    const size_t ahead = 2 * (size_t)AHEAD / (size_t)T;
    const char *a[3];
    __m256 acc[4][2][3];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
        a[c] = x[c];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) acc[t][0][c] = acc[t][1][c] = _mm256_setzero_ps();
    }
    for (int k = 0; k < n_cols; k++, p += step) {
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            if (type == QTYPE_F32 || !(k & 1))
                _mm_prefetch((const char *)(p + tile * (size_t)t + ahead), _MM_HINT_T0);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m256 v = load_plain(type, p + tile * (size_t)t, h);
#pragma GCC unroll 4
                for (int c = 0; c < C; c++)
                    acc[t][h][c] = _mm256_fmadd_ps(v, all_lanes_f32(a[c] + 4 * (size_t)k),
                                                   acc[t][h][c]);
            }
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++)
                _mm256_storeu_ps(y[c] + y_at + TILE_ROWS * t + 8 * h, acc[t][h][c]);
}

INLINE void rows_plain(enum qtype type, int T, int n_cols, const uint8_t *p, size_t tile, int n,
                       const void *const *x, float *const *y, int y_at)
{
    for (; n >= 3; n -= 3, x += 3, y += 3) block_plain(type, T, 3, n_cols, p, tile, x, y, y_at);
    if (n == 2) block_plain(type, T, 2, n_cols, p, tile, x, y, y_at);
    if (n == 1) block_plain(type, T, 1, n_cols, p, tile, x, y, y_at);
}

INLINE void mm_plain(enum qtype type, int n_cols, int n_tiles, const void *w, int n_rows,
                     const void *const *x, float *const *y)
{
    const size_t tile = tile_bytes(type, n_cols);
    const uint8_t *p = w;
    int t = 0;
    if (n_rows == 1)
        for (; t + 4 <= n_tiles; t += 4, p += 4 * tile)
            block_plain(type, 4, 1, n_cols, p, tile, x, y, TILE_ROWS * t);
    for (; t + 2 <= n_tiles; t += 2, p += 2 * tile)
        rows_plain(type, 2, n_cols, p, tile, n_rows, x, y, TILE_ROWS * t);
    if (t < n_tiles) rows_plain(type, 1, n_cols, p, tile, n_rows, x, y, TILE_ROWS * t);
}

#define MM_PLAIN(name, TYPE)                                                                     \
    static void mm_##name(int n_cols, int n_tiles, const void *w, int n_rows,                    \
                          const void *const *x, float *const *y)                                 \
    {                                                                                            \
        mm_plain(QTYPE_##TYPE, n_cols, n_tiles, w, n_rows, x, y);                                \
    }
MM_PLAIN(f32, F32)
MM_PLAIN(f16, F16)
MM_PLAIN(bf16, BF16)
MM_QUANT(q8_0, Q8_0, ACT_Q8_32)
MM_QUANT(q4_0, Q4_0, ACT_Q8_32)
MM_QUANT(q4_k, Q4_K, ACT_Q8_256)
MM_QUANT(q6_k, Q6_K, ACT_Q8_256)

/* ---- activations -------------------------------------------------------------------------- */

INLINE uint32_t max_bits(__m256i m)
{
    __m128i v = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    v = _mm_max_epu32(v, _mm_shuffle_epi32(v, 0x4e));
    v = _mm_max_epu32(v, _mm_shuffle_epi32(v, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(v);
}

/* Quantises 32 n values with one scale; returns the scale. */
INLINE float quantise(const float *x, int n, int8_t *q)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i m = zero();
    for (int i = 0; i < 32 * n; i += 8)
        m = _mm256_max_epu32(m, _mm256_and_si256(load256((const uint8_t *)(x + i)), magnitude));
    uint32_t bits = max_bits(m);
    if (bits >= 0x7f800000u || f32_from_bits(bits) < ACT_AMAX_MIN) {
        memset(q, 0, (size_t)(32 * n));
        return bits >= 0x7f800000u ? f32_from_bits(ACT_BAD_SCALE) : 0.0f;
    }
    float amax = f32_from_bits(bits);
    __m256 inv = _mm256_set1_ps(127.0f / amax);
    for (int i = 0; i < 32 * n; i += 32) {
        __m256i v[4];
        for (int j = 0; j < 4; j++)
            v[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), inv));
        __m256i b = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]),
                                       _mm256_packs_epi32(v[2], v[3]));
        b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(q + i), b);
    }
    return amax / 127.0f;
}

/* The sums of the two halves of 32 bytes. */
INLINE void sums_of_16(const int8_t *q, int *first, int *second)
{
    __m256i v = load256((const uint8_t *)q);
    __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), v),
                                  _mm256_set1_epi16(1));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    *first = _mm_cvtsi128_si32(_mm256_castsi256_si128(s));
    *second = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}

/* Blocks of 32 or 64, halves of 32. */
INLINE void act_q8(enum act_kind kind, int halves, int n_cols, const float *x, void *out)
{
    const int block = 32 * halves, n_blocks = n_cols / block;
    int8_t *q = out;
    char *d = (char *)out + n_cols, *sum = d + 4 * (size_t)n_blocks;
    for (int b = 0; b < n_blocks; b++) {
        float scale = quantise(x + block * b, halves, q + block * b);
        int32_t all = 0;
        for (int h = 0; h < halves; h++) {
            int s0, s1;
            sums_of_16(q + block * b + 32 * h, &s0, &s1);
            all += s0 + s1;
        }
        memcpy(d + 4 * (size_t)b, &scale, 4);
        memcpy(sum + 4 * (size_t)b, &all, 4);
    }
    size_t used = (size_t)n_cols + 8 * (size_t)n_blocks;
    memset((char *)out + used, 0, act_bytes(kind, n_cols) - used);
}

static void act_q8_32(int n_cols, const float *x, void *out)
{
    act_q8(ACT_Q8_32, 1, n_cols, x, out);
}

static void act_q8_64(int n_cols, const float *x, void *out)
{
    act_q8(ACT_Q8_64, 2, n_cols, x, out);
}

static void act_q8_256(int n_cols, const float *x, void *out)
{
    int n_blocks = n_cols / 256;
    int8_t *q = out;
    char *d = (char *)out + n_cols, *s16 = d + 4 * (size_t)n_blocks;
    char *s32 = s16 + n_cols / 16 * 2;
    for (int b = 0; b < n_blocks; b++) {
        float scale = quantise(x + 256 * b, 8, q + 256 * b);
        memcpy(d + 4 * (size_t)b, &scale, 4);
    }
    for (int i = 0; i < n_cols / 32; i++) {
        int s0, s1;
        sums_of_16(q + 32 * i, &s0, &s1);
        int16_t v[2] = {(int16_t)s0, (int16_t)s1}, both = (int16_t)(s0 + s1);
        memcpy(s16 + 4 * (size_t)i, v, 4);
        memcpy(s32 + 2 * (size_t)i, &both, 2);
    }
    size_t used = (size_t)(s32 - (char *)out) + (size_t)n_cols / 32 * 2;
    memset((char *)out + used, 0, act_bytes(ACT_Q8_256, n_cols) - used);
}

/* ---- the ceiling: bytes to words to dwords, as without VNNI ---------------------------------- */

static uint64_t peak(int n)
{
    enum { CHAINS = 6 };
    __m256i s[CHAINS], w = _mm256_set1_epi8(3), x = _mm256_set1_epi8(5);
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 6
    for (int i = 0; i < CHAINS; i++) s[i] = _mm256_setzero_si256();
    for (int k = 0; k < n; k++) {
#pragma GCC unroll 6
        for (int i = 0; i < CHAINS; i++) {
            __asm__ volatile("" : "+x"(w), "+x"(s[i])); /* every step is done, and none for two */
            __m256i two = _mm256_maddubs_epi16(w, x);
            s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(two, ones));
        }
    }
#pragma GCC unroll 6
    for (int i = 1; i < CHAINS; i++) s[0] = _mm256_xor_si256(s[0], s[i]);
    __asm__ volatile("" : : "x"(s[0]));
    return (uint64_t)n * CHAINS * 32;
}

const struct mm_kernels mm_kernels_avx2 = {
    .turn = turn_dwords_avx2,
    .nested = nested_avx2,
    .factored_tile = factored_tile_avx2,
    .peak = peak,
    .act = {[ACT_F32] = act_f32_ref,
            [ACT_Q8_32] = act_q8_32,
            [ACT_Q8_64] = act_q8_64,
            [ACT_Q8_256] = act_q8_256},
    .mm = {[QTYPE_F32] = mm_f32,
           [QTYPE_F16] = mm_f16,
           [QTYPE_BF16] = mm_bf16,
           [QTYPE_Q8_0] = mm_q8_0,
           [QTYPE_Q4_0] = mm_q4_0,
           [QTYPE_Q4_K] = mm_q4_k,
           [QTYPE_Q6_K] = mm_q6_k,
#define ROW(TYPE) [QTYPE_##TYPE] = mm_avx2_##TYPE,
           MM_PARTS_TYPES(ROW)},
#undef ROW
};
