/* AVX2 products of the grid types (IQ1, IQ2, IQ3) and NVFP4.  Bit-equal to quant/mm_parts_ref.c.
 * Owns nothing but stack scratch.
 *
 * DESIGN: a tile's super-block is taken apart once into bytes and scales (struct flat) and meets up
 * to ROWS rows.  A weight plus 64 is at most 126, and a pair, 2 * 126 * 127 = 32,004, fits int16. */
#include "quant/mm_avx2_int.h"

enum { ROWS = 64 };

/* n rows against half h of one flat super-block. */
static void meet(const struct flat *f, int h, int b, int n_cols, int n, const void *const *x,
                 __m256 (*acc)[2])
{
    struct super s;
    __m256i v[4], isum[ROWS];
    for (int j = 0; j < 4; j++) v[j] = load256((const uint8_t *)f->scale[j] + 32 * h);
    signed_head(v, &s);
    const __m256 d = _mm256_loadu_ps(f->d + 8 * h);
    for (int r = 0; r < n; r++) isum[r] = zero();
    for (int u = 0; u < 16; u++) {
        __m256i w[4];
        for (int j = 0; j < 4; j++) w[j] = load256((const uint8_t *)f->w[4 * u + j] + 32 * h);
        for (int r = 0; r < n; r++) {
            const char *a = (const char *)x[r] + 256 * b + 16 * u;
            __m256i sum[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                sum[j] = _mm256_madd_epi16(_mm256_maddubs_epi16(w[j], all_lanes(a + 4 * j)),
                                           s.scale[u]);
            isum[r] = _mm256_add_epi32(isum[r], _mm256_add_epi32(_mm256_add_epi32(sum[0], sum[1]),
                                                                 _mm256_add_epi32(sum[2], sum[3])));
        }
    }
    for (int r = 0; r < n; r++) {
        const char *da = (const char *)x[r] + n_cols, *s16 = da + n_cols / 256 * 4;
        __m256i off = pair_sum(s.pair, 8, s16 + 32 * (size_t)b);
        __m256i sum = _mm256_sub_epi32(isum[r], _mm256_slli_epi32(off, 6));
        acc[r][h] = fma_step(d, all_lanes_f32(da + 4 * (size_t)b), sum, acc[r][h]);
    }
}

static void mm_grid(enum qtype type, int n_cols, int n_tiles, const void *w, int n_rows,
                    const void *const *x, float *const *y)
{
    const int bytes = TILE_ROWS * qtype_info((uint32_t)type)->block_bytes, n_blocks = n_cols / 256;
    const uint8_t *tile = w;
    for (int t = 0; t < n_tiles; t++, tile += (size_t)bytes * (size_t)n_blocks)
        for (int r0 = 0; r0 < n_rows; r0 += ROWS) {
            const int n = n_rows - r0 < ROWS ? n_rows - r0 : ROWS;
            __m256 acc[ROWS][2];
            for (int r = 0; r < n; r++) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
            for (int b = 0; b < n_blocks; b++) {
                struct flat f;
                flat_of(type, tile + (size_t)bytes * (size_t)b, &f);
                for (int h = 0; h < 2; h++) meet(&f, h, b, n_cols, n, x + r0, acc);
            }
            for (int r = 0; r < n; r++) {
                _mm256_storeu_ps(y[r0 + r] + TILE_ROWS * t, acc[r][0]);
                _mm256_storeu_ps(y[r0 + r] + TILE_ROWS * t + 8, acc[r][1]);
            }
        }
}

#define MM_GRID(TYPE)                                                                            \
    void mm_avx2_##TYPE(int n_cols, int n_tiles, const void *w, int n_rows,                      \
                        const void *const *x, float *const *y)                                   \
    {                                                                                            \
        mm_grid(QTYPE_##TYPE, n_cols, n_tiles, w, n_rows, x, y);                                 \
    }
MM_GRID(IQ3_S)
MM_GRID(IQ3_XXS)
MM_GRID(IQ2_S)
MM_GRID(IQ2_XS)
MM_GRID(IQ2_XXS)
MM_GRID(IQ1_S)
MM_GRID(IQ1_M)

/* ---- NVFP4 -------------------------------------------------------------------------------- */

/* The scale of 16 weights of eight rows: byte s of every lane of v. */
INLINE __m256 nvfp4_scale(__m256i v, int s)
{
    const __m256i e = _mm256_and_si256(_mm256_srli_epi32(v, 8 * s), _mm256_set1_epi32(255));
    __m256i man = _mm256_and_si256(e, _mm256_set1_epi32(7));
    __m256i exp = _mm256_and_si256(_mm256_srli_epi32(e, 3), _mm256_set1_epi32(15));
    __m256i normal = _mm256_cmpgt_epi32(exp, zero());
    __m256i none = _mm256_cmpeq_epi32(e, _mm256_set1_epi32(0x7f));
    man = _mm256_add_epi32(man, _mm256_and_si256(normal, _mm256_set1_epi32(8)));
    man = _mm256_andnot_si256(none, man);
    exp = _mm256_max_epi32(exp, _mm256_set1_epi32(1));
    exp = _mm256_slli_epi32(_mm256_add_epi32(exp, _mm256_set1_epi32(127 - 11)), 23);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(man), _mm256_castsi256_ps(exp));
}

/* N rows, a constant, against half h of a tile. */
INLINE void nvfp4_rows(int N, int n_cols, const uint8_t *p, int h, const void *const *x,
                       float *const *y, int y_at)
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    __m256 acc[2];
#pragma GCC unroll 2
    for (int r = 0; r < N; r++) acc[r] = _mm256_setzero_ps();
    for (int b = 0; b < n_cols / 64; b++, p += TNV4_BYTES) {
        const __m256i scales = load256(p + 32 * h);
        prefetch(p + AHEAD, TNV4_BYTES);
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            const __m256 d = nvfp4_scale(scales, s);
            __m256i w[4];
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                __m256i v = load256(p + TNV4_Q + 64 * (2 * s + j) + 32 * h);
                w[j] = _mm256_shuffle_epi8(table, _mm256_and_si256(v, low));
                v = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
                w[j + 2] = _mm256_shuffle_epi8(table, v);
            }
#pragma GCC unroll 2
            for (int r = 0; r < N; r++) {
                const char *a = x[r];
                __m256i sum = zero();
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    sum = _mm256_add_epi16(
                        sum, sign_products(w[j], all_lanes(a + 64 * b + 16 * s + 4 * j)));
                acc[r] = fma_step(d, all_lanes_f32(a + n_cols + 4 * (2 * b + s / 2)),
                                  _mm256_madd_epi16(sum, ones), acc[r]);
            }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < N; r++) _mm256_storeu_ps(y[r] + y_at, acc[r]);
}

void mm_avx2_NVFP4(int n_cols, int n_tiles, const void *w, int n_rows, const void *const *x,
                   float *const *y)
{
    const uint8_t *p = w;
    for (int t = 0; t < n_tiles; t++, p += (size_t)TNV4_BYTES * (size_t)(n_cols / 64))
        for (int h = 0; h < 2; h++) {
            const int at = TILE_ROWS * t + 8 * h;
            int r = 0;
            for (; r + 2 <= n_rows; r += 2) nvfp4_rows(2, n_cols, p, h, x + r, y + r, at);
            if (r < n_rows) nvfp4_rows(1, n_cols, p, h, x + r, y + r, at);
        }
}
