/* AVX-512 products of the grid types (IQ1, IQ2, IQ3) and NVFP4.  Bit-equal to quant/mm_parts_ref.c.
 * Owns nothing but stack scratch.
 *
 * DESIGN: a tile's super-block is taken apart once into bytes (plus 64, to be unsigned) and signed
 * scales, the layout that Q6_K has in its tiles, and meets up to ROWS rows. */
#include "quant/mm_avx512_int.h"

enum { ROWS = 64 };

/* n rows against one flat super-block. */
static void meet(const struct flat *f, int b, int n_cols, int n, const void *const *x, __m512 *acc)
{
    const struct act256 o = act256(n_cols);
    struct super s;
    __m512i v[4], isum[ROWS];
    for (int j = 0; j < 4; j++) v[j] = load512((const uint8_t *)f->scale[j]);
    signed_head(v, &s);
    const __m512 d = _mm512_loadu_ps(f->d);
    for (int r = 0; r < n; r++) isum[r] = zero();
    for (int u = 0; u < 8; u++) {
        __m512i w[8];
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) w[j] = load512((const uint8_t *)f->w[8 * u + j]);
        for (int r = 0; r < n; r++)
            isum[r] = _mm512_add_epi32(isum[r], stretch_sum(QTYPE_Q6_K, w, s.scale, u,
                                                            (const char *)x[r] + 256 * b + 32 * u));
    }
    for (int r = 0; r < n; r++) {
        const char *a = x[r];
        __m512i off = pair_sum(s.pair, 8, a + o.s16 + 32 * (size_t)b);
        __m512i sum = _mm512_sub_epi32(isum[r], _mm512_slli_epi32(off, 6));
        __m512 p = _mm512_mul_ps(d, all_lanes_f32(a + o.d + 4 * (size_t)b));
        acc[r] = _mm512_fmadd_ps(p, _mm512_cvtepi32_ps(sum), acc[r]);
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
            __m512 acc[ROWS];
            for (int r = 0; r < n; r++) acc[r] = _mm512_setzero_ps();
            for (int b = 0; b < n_blocks; b++) {
                struct flat f;
                flat_of(type, tile + (size_t)bytes * (size_t)b, &f);
                meet(&f, b, n_cols, n, x + r0, acc);
            }
            for (int r = 0; r < n; r++) _mm512_storeu_ps(y[r0 + r] + TILE_ROWS * t, acc[r]);
        }
}

#define MM_GRID(TYPE)                                                                            \
    void mm_avx512_##TYPE(int n_cols, int n_tiles, const void *w, int n_rows,                    \
                          const void *const *x, float *const *y)                                 \
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

/* The four scales of a block column's rows. */
INLINE void nvfp4_scales(const uint8_t *p, __m512 *d)
{
    const __m512i v = load512(p);
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++) {
        __m512i e = byte_u8(v, s), man = _mm512_and_si512(e, _mm512_set1_epi32(7));
        __m512i exp = _mm512_and_si512(_mm512_srli_epi32(e, 3), _mm512_set1_epi32(15));
        __mmask16 normal = _mm512_test_epi32_mask(exp, exp);
        __mmask16 none = _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(0x7f));
        man = _mm512_mask_add_epi32(man, normal, man, _mm512_set1_epi32(8));
        exp = _mm512_max_epi32(exp, _mm512_set1_epi32(1));
        exp = _mm512_slli_epi32(_mm512_add_epi32(exp, _mm512_set1_epi32(127 - 11)), 23);
        d[s] = _mm512_maskz_mul_ps((__mmask16)~none, _mm512_cvtepi32_ps(man),
                                   _mm512_castsi512_ps(exp));
    }
}

/* n <= N rows against a tile; N is a constant. */
INLINE void nvfp4_rows(int N, int n_cols, const uint8_t *p, const void *const *x,
                       float *const *y, int y_at)
{
    const __m512i low = _mm512_set1_epi8(15), from = _mm512_set1_epi8(16);
    const __m512i table = nibble_table(QTYPE_MXFP4);
    __m512 acc[4];
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) acc[r] = _mm512_setzero_ps();
    for (int b = 0; b < n_cols / 64; b++, p += TNV4_BYTES) {
        __m512 d[4];
        prefetch(p + AHEAD, TNV4_BYTES);
        nvfp4_scales(p, d);
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            __m512i w[4];
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                __m512i v = load512(p + TNV4_Q + 64 * (2 * s + j));
                w[j] = _mm512_shuffle_epi8(table, _mm512_and_si512(v, low));
                v = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
                w[j + 2] = _mm512_shuffle_epi8(table, v);
            }
#pragma GCC unroll 4
            for (int r = 0; r < N; r++) {
                const char *a = x[r];
                __m512 da = all_lanes_f32(a + n_cols + 4 * (2 * b + s / 2));
                __m512i sum = zero(), off = zero();
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    __m512i v = all_lanes(a + 64 * b + 16 * s + 4 * j);
                    sum = _mm512_dpbusd_epi32(sum, w[j], v);
                    off = _mm512_dpbusd_epi32(off, from, v);
                }
                sum = _mm512_sub_epi32(sum, off);
                acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(d[s], da), _mm512_cvtepi32_ps(sum), acc[r]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) _mm512_storeu_ps(y[r] + y_at, acc[r]);
}

void mm_avx512_NVFP4(int n_cols, int n_tiles, const void *w, int n_rows, const void *const *x,
                     float *const *y)
{
    const uint8_t *p = w;
    for (int t = 0; t < n_tiles; t++, p += (size_t)TNV4_BYTES * (size_t)(n_cols / 64)) {
        int r = 0;
        for (; r + 4 <= n_rows; r += 4) nvfp4_rows(4, n_cols, p, x + r, y + r, TILE_ROWS * t);
        for (; r < n_rows; r++) nvfp4_rows(1, n_cols, p, x + r, y + r, TILE_ROWS * t);
    }
}
