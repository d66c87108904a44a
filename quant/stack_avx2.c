/* AVX2 products of stacked matrices (quant/stack.h).  Bit-equal to the reference.  Owns nothing but a
 * tile's bytes on the stack.
 *
 * DESIGN.  A code's magnitude has five bits: two tables of sixteen for vpshufb and a blend by the
 * fifth; then the sign.  A tile is unpacked to signed bytes, which up to ROWS rows meet at a time. */
#include "quant/mm_avx2_int.h"

#include "quant/stack.h"

#if defined(__AVX2__)

/* Bit `at` of every byte moved to bit `to`, the others cleared. */
INLINE __m256i bit_at(__m256i v, int at, int to)
{
    const __m256i moved = at < to ? _mm256_slli_epi16(v, to - at) : _mm256_srli_epi16(v, at - to);
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)(1 << to)));
}

/* Rows 8 r .. of half h of a block of 64 columns as bytes. */
INLINE void unpack_nested(int depth, const uint8_t *q, const uint8_t *const *p, int h, int r,
                          const __m256i *table, __m256i *w)
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const __m256i base = load256(q + 128 * h + i / 4 * 64 + 32 * r);
        __m256i v = bit_at(base, i % 4 * 2, 4);
#pragma GCC unroll 4
        for (int l = 1; l <= depth; l++)
            v = _mm256_or_si256(v, bit_at(load256(p[l] + 64 * h + 32 * r), i, STACK_NESTED - l));
        const __m256i low = _mm256_shuffle_epi8(table[0], _mm256_and_si256(v, _mm256_set1_epi8(15)));
        const __m256i high =
            _mm256_shuffle_epi8(table[1], _mm256_and_si256(v, _mm256_set1_epi8(15)));
        const __m256i mag = _mm256_blendv_epi8(low, high, _mm256_slli_epi16(v, 3));
        const __m256i sign = bit_at(base, i % 4 * 2 + 1, 5);
        const __m256i minus = _mm256_cmpeq_epi8(sign, _mm256_set1_epi8(32));
        w[i] = _mm256_sub_epi8(_mm256_xor_si256(mag, minus), minus);
    }
}

/* A tile unpacked: int8 q[columns / 4][16][4] | float scale[columns / 64][16]. */
INLINE void expand_depth(int depth, const struct stacked *m, int t, uint8_t *out)
{
    float *scale = (float *)(void *)(out + TILE_ROWS * (size_t)m->n_cols);
    const int n_blocks = m->n_cols / 64;
    const size_t first = (size_t)t * (size_t)n_blocks;
    const uint8_t *base = (const uint8_t *)m->base + first * TNEST2_BYTES, *p[STACK_NESTED + 1];
    uint8_t mag[32];
    for (int i = 0; i < 32; i++) mag[i] = nest_table[depth][i >> (STACK_NESTED - depth)];
    const __m256i table[2] = {
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)mag)),
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(mag + 16)))};
    for (int l = 1; l <= depth; l++) p[l] = (const uint8_t *)m->level[l] + first * TNEST_LEVEL;
    for (int b = 0; b < n_blocks; b++, base += TNEST2_BYTES, scale += TILE_ROWS) {
        __m256i e = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)base));
        e = _mm256_slli_epi16(e, 7);
        _mm256_storeu_ps(scale, _mm256_cvtph_ps(_mm256_castsi256_si128(e)));
        _mm256_storeu_ps(scale + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(e, 1)));
        for (int h = 0; h < 2; h++, out += 512)
            for (int r = 0; r < 2; r++) {
                __m256i w[8];
                unpack_nested(depth, base + TNEST2_Q, p, h, r, table, w);
                for (int i = 0; i < 8; i++)
                    _mm256_storeu_si256((__m256i *)(out + 64 * i + 32 * r), w[i]);
            }
        for (int l = 1; l <= depth; l++) p[l] += TNEST_LEVEL;
    }
}

static void expand_nested(const struct stacked *m, int t, uint8_t *out)
{
    switch (m->depth) {
    case 0: expand_depth(0, m, t, out); break;
    case 1: expand_depth(1, m, t, out); break;
    case 2: expand_depth(2, m, t, out); break;
    case 3: expand_depth(3, m, t, out); break;
    default: expand_depth(4, m, t, out); break;
    }
}

enum { ROWS = 4 };

/* C rows against half h of an unpacked tile. */
INLINE void rows_nested(int C, int n_cols, const uint8_t *w, int h, const void *const *x,
                        float *const *y, int y_at)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const float *scale = (const float *)(const void *)(w + TILE_ROWS * (size_t)n_cols) + 8 * h;
    __m256 acc[ROWS];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) acc[c] = _mm256_setzero_ps();
    for (int b = 0; b < n_cols / 64; b++, scale += TILE_ROWS) {
        __m256i s[ROWS];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) s[c] = zero();
        for (int i = 0; i < 16; i++, w += 64) {
            const __m256i v = load256(w + 32 * h);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) {
                const __m256i a = all_lanes((const char *)x[c] + 64 * b + 4 * i);
                s[c] = _mm256_add_epi32(s[c], _mm256_madd_epi16(sign_products(v, a), ones));
            }
        }
        const __m256 d = _mm256_loadu_ps(scale);
#pragma GCC unroll 4
        for (int c = 0; c < C; c++)
            acc[c] = fma_step(d, all_lanes_f32((const char *)x[c] + n_cols + 4 * (size_t)b), s[c],
                              acc[c]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) _mm256_storeu_ps(y[c] + y_at + 8 * h, acc[c]);
}

void nested_avx2(const struct stacked *w, int t0, int n_tiles, int n_rows, const void *const *x,
                 float *const *y)
{
    uint8_t *tile = __builtin_alloca_with_align(17 * (size_t)w->n_cols, 512);
    for (int t = 0; t < n_tiles; t++) {
        expand_nested(w, t0 + t, tile);
        for (int r = 0; r < n_rows; r += ROWS)
            for (int h = 0; h < 2; h++)
                switch (n_rows - r) {
                case 1: rows_nested(1, w->n_cols, tile, h, x + r, y + r, TILE_ROWS * t); break;
                case 2: rows_nested(2, w->n_cols, tile, h, x + r, y + r, TILE_ROWS * t); break;
                case 3: rows_nested(3, w->n_cols, tile, h, x + r, y + r, TILE_ROWS * t); break;
                default: rows_nested(4, w->n_cols, tile, h, x + r, y + r, TILE_ROWS * t); break;
                }
    }
}

/* Eight rows of a column at a time. */
void factored_tile_avx2(const struct stacked *m, int t, float *out)
{
    const size_t n_cols = (size_t)m->n_cols, k = (size_t)m->rank, tile = (size_t)t;
    const size_t at_u = fact_at_u(m->rank, m->n_cols);
    const size_t at_signs = fact_at_signs(m->rank, m->n_cols, m->n_rows);
    for (int half = 0; half < 2; half++)
        for (size_t c = 0; c < n_cols; c++) {
            __m256 sum = _mm256_setzero_ps();
            for (int l = 0; l <= m->depth; l++) {
                const uint8_t *v = m->level[l], *u = v + at_u, *sign = l ? v + at_signs : m->base;
                __m256 mag = _mm256_setzero_ps();
                for (size_t r = 0; r < k; r++) {
                    uint16_t vh;
                    memcpy(&vh, v + 2 * (r * n_cols + c), 2);
                    const uint8_t *uh = u + 2 * ((tile * k + r) * TILE_ROWS + 8 * (size_t)half);
                    mag = _mm256_fmadd_ps(load_halfs(uh), _mm256_set1_ps(_cvtsh_ss(vh)), mag);
                }
                const __m256i bits =
                    load256(sign + (tile * (n_cols / 32) + c / 32) * TSIGN1_BYTES + 32 * half);
                const __m256i at = _mm256_set1_epi32((int)(1u << (c % 4 * 8 + c % 32 / 4)));
                const __m256i plus = _mm256_cmpeq_epi32(_mm256_and_si256(bits, at), at);
                const __m256i flip =
                    _mm256_andnot_si256(plus, _mm256_set1_epi32((int)0x80000000u));
                sum = _mm256_add_ps(sum, _mm256_xor_ps(mag, _mm256_castsi256_ps(flip)));
            }
            _mm256_storeu_ps(out + c * TILE_ROWS + 8 * half, sum);
        }
}

#endif
