/* The AVX-512 kernels (F, BW, VL, DQ, VBMI, VNNI).  Bit-equal to quant/mm_ref.c in every output;
 * quant/README.md has the order.  Owns nothing but stack scratch of a few kilobytes.
 * The quantised types' products are in mm_avx512_int.h, the newer types' in the other
 * _avx512 files. */
#include <immintrin.h>
#include <string.h>

#include "moe/base/f16.h"
#include "quant/mm_avx512_int.h"

/* ---- F32, F16, BF16: one float step per weight ---------------------------------------------- */

INLINE __m512 load_plain(enum qtype type, const uint8_t *p)
{
    if (type == QTYPE_F32) return _mm512_loadu_ps((const float *)p);
    if (type == QTYPE_F16) return load_halfs(p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

/* T tiles against C rows, all sums in registers. */
INLINE void block_plain(enum qtype type, int T, int C, int n_cols, const uint8_t *p, size_t tile,
                        const void *const *x, float *const *y, int y_at)
{
    const size_t step = type == QTYPE_F32 ? 64 : 32;
    const size_t ahead = (size_t)AHEAD / (size_t)T;
    __m512 acc[4][8];
    const char *a[8];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
        a[c] = x[c];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) acc[t][c] = _mm512_setzero_ps();
    }
    for (int k = 0; k < n_cols; k++, p += step) {
        __m512 v[4];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            v[t] = load_plain(type, p + tile * (size_t)t);
            if (type == QTYPE_F32 || !(k & 1))
                _mm_prefetch((const char *)(p + tile * (size_t)t + ahead), _MM_HINT_T0);
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            __m512 b = all_lanes_f32(a[c] + 4 * (size_t)k);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) acc[t][c] = _mm512_fmadd_ps(v[t], b, acc[t][c]);
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            _mm512_storeu_ps(y[c] + y_at + TILE_ROWS * t, acc[t][c]);
}

INLINE void rows_plain(enum qtype type, int T, int n_cols, const uint8_t *p, size_t tile, int n,
                       const void *const *x, float *const *y, int y_at)
{
    for (; n >= 8; n -= 8, x += 8, y += 8) block_plain(type, T, 8, n_cols, p, tile, x, y, y_at);
    switch (n) {
#define ROWS(C)                                                                                  \
    case C: block_plain(type, T, C, n_cols, p, tile, x, y, y_at); break;
        ROWS(1)
        ROWS(2)
        ROWS(3)
        ROWS(4)
        ROWS(5)
        ROWS(6)
        ROWS(7)
#undef ROWS
    }
}

INLINE void mm_plain(enum qtype type, int n_cols, int n_tiles, const void *w, int n_rows,
                     const void *const *x, float *const *y)
{
    const size_t tile = tile_bytes(type, n_cols);
    const uint8_t *p = w;
    int t = 0;
    if (n_rows == 1)
        for (; t + 4 <= n_tiles; t += 4)
            block_plain(type, 4, 1, n_cols, p + tile * (size_t)t, tile, x, y, TILE_ROWS * t);
    for (; t + 2 <= n_tiles; t += 2)
        rows_plain(type, 2, n_cols, p + tile * (size_t)t, tile, n_rows, x, y, TILE_ROWS * t);
    if (t < n_tiles)
        rows_plain(type, 1, n_cols, p + tile * (size_t)t, tile, n_rows, x, y, TILE_ROWS * t);
}

#define MM_PLAIN(TYPE)                                                                           \
    void mm_avx512_##TYPE(int n_cols, int n_tiles, const void *w, int n_rows,                    \
                          const void *const *x, float *const *y)                                 \
    {                                                                                            \
        mm_plain(QTYPE_##TYPE, n_cols, n_tiles, w, n_rows, x, y);                                \
    }
MM_PLAIN(F32)
MM_PLAIN(F16)
MM_PLAIN(BF16)
MM_QUANT(q8_0, Q8_0, ACT_Q8_32)
MM_QUANT(q4_0, Q4_0, ACT_Q8_32)
MM_QUANT(q4_k, Q4_K, ACT_Q8_256)
MM_QUANT(q6_k, Q6_K, ACT_Q8_256)

/* ---- activations -------------------------------------------------------------------------- */

/* The bits of the largest magnitude among 32 n values. */
INLINE uint32_t top_bits(const float *x, int n)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i m = zero();
    for (int i = 0; i < 32 * n; i += 16)
        m = _mm512_max_epu32(m, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
    return _mm512_reduce_max_epu32(m);
}

/* Scales of sixteen blocks from their largest magnitudes: inv = 127 / amax, 0 where the block is
 * all zeros, too small or bad; d = amax / 127, 0 or NaN there. */
INLINE void scales_16(__m512i bits, __m512 *inv, __m512 *d)
{
    __m512 amax = _mm512_castsi512_ps(bits), top = _mm512_set1_ps(127.0f);
    __mmask16 bad = _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32(0x7f800000));
    __mmask16 good = _mm512_cmp_ps_mask(amax, _mm512_set1_ps(ACT_AMAX_MIN), _CMP_GE_OQ);
    good = (__mmask16)(good & ~bad);
    *inv = _mm512_maskz_div_ps(good, top, amax);
    *d = _mm512_maskz_div_ps(good, amax, top);
    *d = _mm512_castsi512_ps(_mm512_mask_mov_epi32(_mm512_castps_si512(*d), bad,
                                                   _mm512_set1_epi32((int)ACT_BAD_SCALE)));
}

/* 32 values times inv as bytes.  A bad block has inv = 0, and what is infinite or NaN in it
 * converts to INT_MIN, whose low byte is 0 like the rest. */
INLINE __m256i quantise(const float *x, float inv)
{
    __m512 a = _mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inv));
    __m512 b = _mm512_mul_ps(_mm512_loadu_ps(x + 16), _mm512_set1_ps(inv));
    return _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(b)),
                            _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}

/* The sums of both halves of 32 bytes. */
INLINE void sums_of_16(__m256i q, int32_t *first, int32_t *second)
{
    __m256i s = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    *first = _mm_cvtsi128_si32(_mm256_castsi256_si128(s));
    *second = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}

/* Blocks of 32 or 64, halves of 32; sixteen at a time, so that their divisions are two instructions. */
INLINE void act_q8(enum act_kind kind, int halves, int n_cols, const float *x, void *out)
{
    const int block = 32 * halves, n_blocks = n_cols / block;
    int8_t *q = out;
    char *d = (char *)out + n_cols, *sum = d + 4 * (size_t)n_blocks;
    for (int b0 = 0; b0 < n_blocks; b0 += 16) {
        int n = n_blocks - b0 < 16 ? n_blocks - b0 : 16;
        uint32_t bits[16] = {0};
        float inv[16];
        __m512 v_inv, v_d;
        for (int b = 0; b < n; b++) bits[b] = top_bits(x + block * (b0 + b), halves);
        scales_16(_mm512_loadu_si512(bits), &v_inv, &v_d);
        _mm512_storeu_ps(inv, v_inv);
        _mm512_mask_storeu_ps(d + 4 * (size_t)b0, (__mmask16)((1u << n) - 1), v_d);
        for (int b = 0; b < n; b++) {
            int32_t all = 0;
            for (int h = 0; h < halves; h++) {
                const int at = block * (b0 + b) + 32 * h;
                __m256i v = quantise(x + at, inv[b]);
                int32_t s0, s1;
                sums_of_16(v, &s0, &s1);
                all += s0 + s1;
                _mm256_storeu_si256((__m256i *)(q + at), v);
            }
            memcpy(sum + 4 * (size_t)(b0 + b), &all, 4);
        }
    }
    size_t used = (size_t)n_cols + 8 * (size_t)n_blocks;
    memset((char *)out + used, 0, act_bytes(kind, n_cols) - used);
}

void act_q8_32_avx512(int n_cols, const float *x, void *out)
{
    act_q8(ACT_Q8_32, 1, n_cols, x, out);
}

void act_q8_64_avx512(int n_cols, const float *x, void *out)
{
    act_q8(ACT_Q8_64, 2, n_cols, x, out);
}

void act_q8_256_avx512(int n_cols, const float *x, void *out)
{
    int n_blocks = n_cols / 256;
    int8_t *q = out;
    struct act256 o = act256(n_cols);
    char *base = out;
    for (int b = 0; b < n_blocks; b++) {
        __m512 inv, d;
        scales_16(_mm512_set1_epi32((int)top_bits(x + 256 * b, 8)), &inv, &d);
        _mm512_mask_storeu_ps(base + o.d + 4 * (size_t)b, 1, d);
        for (int k = 8 * b; k < 8 * b + 8; k++) {
            __m256i v = quantise(x + 32 * k, _mm512_cvtss_f32(inv));
            int32_t s0, s1;
            sums_of_16(v, &s0, &s1);
            int16_t pair[2] = {(int16_t)s0, (int16_t)s1}, both = (int16_t)(s0 + s1);
            _mm256_storeu_si256((__m256i *)(q + 32 * k), v);
            memcpy(base + o.s16 + 4 * (size_t)k, pair, 4);
            memcpy(base + o.s32 + 2 * (size_t)k, &both, 2);
        }
    }
    size_t used = o.s32 + (size_t)n_cols / 32 * 2;
    memset(base + used, 0, act_bytes(ACT_Q8_256, n_cols) - used);
}

/* ---- the ceiling --------------------------------------------------------------------------- */

static uint64_t peak(int n)
{
    const __m512i w = _mm512_set1_epi8(3), x = _mm512_set1_epi8(5);
    __m512i s[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) s[i] = zero();
    for (int k = 0; k < n; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __asm__ volatile("" : "+v"(s[i])); /* every step is done, and none for two */
            s[i] = _mm512_dpbusd_epi32(s[i], w, x);
        }
    }
#pragma GCC unroll 16
    for (int i = 1; i < 16; i++) s[0] = _mm512_xor_si512(s[0], s[i]);
    __asm__ volatile("" : : "v"(s[0]));
    return (uint64_t)n * 16 * 64;
}

const struct mm_kernels mm_kernels_avx512 = {
    .turn = turn_dwords_avx512,
    .nested = nested_avx512,
    .factored_tile = factored_tile_avx512,
    .factored_few = factored_few_avx512,
    .peak = peak,
    .act = {[ACT_F32] = act_f32_ref,
            [ACT_Q8_32] = act_q8_32_avx512,
            [ACT_Q8_64] = act_q8_64_avx512,
            [ACT_Q8_256] = act_q8_256_avx512},
    .mm = {[QTYPE_F32] = mm_avx512_F32,
           [QTYPE_F16] = mm_avx512_F16,
           [QTYPE_BF16] = mm_avx512_BF16,
           [QTYPE_Q8_0] = mm_q8_0,
           [QTYPE_Q4_0] = mm_q4_0,
           [QTYPE_Q4_K] = mm_q4_k,
           [QTYPE_Q6_K] = mm_q6_k,
#define ROW(TYPE) [QTYPE_##TYPE] = mm_avx512_##TYPE,
           MM_PARTS_TYPES(ROW)},
#undef ROW
};
