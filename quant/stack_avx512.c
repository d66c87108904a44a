/* AVX-512 products and expansion of stacked matrices (quant/stack.h).  Bit-equal to the reference.
 * Owns nothing.
 *
 * DESIGN.  vpermb looks 64 bytes up in a table of 64 by the low six bits of each: a nested code.  The
 * base gives bits 5 and 4; every level replaces one below; what is not loaded is left as it comes,
 * because a table of smaller depth does not look at it.  So a group of 64 weights takes a shift, two
 * operations per level, the look-up and a vpdpbusd.  Base and levels are separate streams of DRAM,
 * each prefetched like the only one of a plain type. */
#include "quant/mm_avx512_int.h"

#include "quant/stack.h"

#if defined(__AVX512VNNI__)

/* Values of a depth plus 128, for every code of six bits. */
static __m512i nest_values(int depth)
{
    _Alignas(64) uint8_t v[64];
    for (int i = 0; i < 64; i++) {
        const int m = nest_table[depth][(i & 31) >> (STACK_NESTED - depth)];
        v[i] = (uint8_t)(i & 32 ? 128 - m : 128 + m);
    }
    return _mm512_load_si512(v);
}

/* Half h of a block of 64 columns as unsigned bytes; q: its base's weights, p: its levels. */
INLINE void unpack_nested(int depth, const uint8_t *q, const uint8_t *const *p, int h,
                          __m512i table, __m512i *w)
{
    __m512i level[STACK_NESTED + 1];
#pragma GCC unroll 4
    for (int l = 1; l <= depth; l++) level[l] = load512(p[l] + 64 * h);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m512i v = load512(q + 128 * h + i / 4 * 64);
        if (i % 4 < 2) v = _mm512_slli_epi16(v, (unsigned)(i % 4 < 2 ? 4 - 2 * (i % 4) : 0));
        if (i % 4 == 3) v = _mm512_srli_epi16(v, 2);
#pragma GCC unroll 4
        for (int l = 1; l <= depth; l++) /* (v & ~bit) | (level & bit) */
            v = _mm512_ternarylogic_epi32(v, bit_to(level[l], i, STACK_NESTED - l),
                                          _mm512_set1_epi8((char)(1 << (STACK_NESTED - l))), 0xd8);
        w[i] = _mm512_permutexvar_epi8(v, table);
    }
}

INLINE __m512 nest_scale(const uint8_t *p)
{
    const __m256i e = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtph_ps(_mm256_slli_epi16(e, 7));
}

INLINE void few_nested(int depth, int C, const struct stacked *m, int t0, int n_tiles,
                       const void *const *x, float *const *y)
{
    const int n_cols = m->n_cols, n_blocks = n_cols / 64;
    const size_t first = (size_t)t0 * (size_t)n_blocks;
    const __m512i table = nest_values(depth);
    const uint8_t *base = (const uint8_t *)m->base + first * TNEST2_BYTES, *p[STACK_NESTED + 1];
    for (int l = 1; l <= depth; l++) p[l] = (const uint8_t *)m->level[l] + first * TNEST_LEVEL;
    const char *a[FEW];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) a[c] = x[c];
    for (int t = 0; t < n_tiles; t++) {
        __m512 acc[FEW];
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) acc[c] = _mm512_setzero_ps();
        for (int b = 0; b < n_blocks; b++, base += TNEST2_BYTES) {
            const __m512 d = nest_scale(base);
            prefetch_stream(base, TNEST2_BYTES);
#pragma GCC unroll 4
            for (int l = 1; l <= depth; l++) prefetch_stream(p[l], TNEST_LEVEL);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                const size_t at_d = (size_t)n_cols + 8 * (size_t)b + 4 * (size_t)h;
                const size_t at_s = at_d + (size_t)n_cols / 32 * 4;
                __m512i w[8];
                unpack_nested(depth, base + TNEST2_Q, p, h, table, w);
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) {
                    const char *q = a[c] + 64 * b + 32 * h;
                    __m512i s = dot(offset_32(QTYPE_Q8_0, a[c] + at_s), w, q, 4);
                    s = _mm512_add_epi32(s, dot(zero(), w + 4, q + 16, 4));
                    acc[c] = _mm512_fmadd_ps(_mm512_mul_ps(d, all_lanes_f32(a[c] + at_d)),
                                             _mm512_cvtepi32_ps(s), acc[c]);
                }
            }
#pragma GCC unroll 4
            for (int l = 1; l <= depth; l++) p[l] += TNEST_LEVEL;
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) _mm512_storeu_ps(y[c] + TILE_ROWS * t, acc[c]);
    }
}

INLINE void few_of_depth(int depth, const struct stacked *m, int t0, int n_tiles, int n,
                         const void *const *x, float *const *y)
{
    if (n == 1) few_nested(depth, 1, m, t0, n_tiles, x, y);
    else if (n == 2) few_nested(depth, 2, m, t0, n_tiles, x, y);
    else if (n <= 4) few_nested(depth, 4, m, t0, n_tiles, x, y);
    else few_nested(depth, 8, m, t0, n_tiles, x, y);
}

static void expand_nested(const struct stacked *m, int t, uint8_t *out)
{
    const int n_blocks = m->n_cols / 64;
    const size_t first = (size_t)t * (size_t)n_blocks;
    const __m512i table = nest_values(m->depth);
    const uint8_t *base = (const uint8_t *)m->base + first * TNEST2_BYTES, *p[STACK_NESTED + 1];
    for (int l = 1; l <= m->depth; l++) p[l] = (const uint8_t *)m->level[l] + first * TNEST_LEVEL;
    for (int b = 0; b < n_blocks; b++, base += TNEST2_BYTES) {
        const __m256i e = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)base));
        for (int h = 0; h < 2; h++, out += T8_0_BYTES) {
            __m512i w[8];
            switch (m->depth) {
            case 0: unpack_nested(0, base + TNEST2_Q, p, h, table, w); break;
            case 1: unpack_nested(1, base + TNEST2_Q, p, h, table, w); break;
            case 2: unpack_nested(2, base + TNEST2_Q, p, h, table, w); break;
            case 3: unpack_nested(3, base + TNEST2_Q, p, h, table, w); break;
            default: unpack_nested(4, base + TNEST2_Q, p, h, table, w); break;
            }
            _mm256_storeu_si256((__m256i *)out, _mm256_slli_epi16(e, 7));
            for (int i = 0; i < 8; i++) _mm512_storeu_si512(out + T8_0_Q + 64 * i, w[i]);
        }
        for (int l = 1; l <= m->depth; l++) p[l] += TNEST_LEVEL;
    }
}

/* ---- factored: a tile of weights, 32 columns at a time ------------------------------------ */

enum { PANEL = 32 };

/* w[c] = the weights of column c of 16 rows, for PANEL columns from c0 on. */
static void rebuild(const struct stacked *m, int t, int c0, __m512 *w)
{
    const size_t n_cols = (size_t)m->n_cols, k = (size_t)m->rank, tile = (size_t)t;
    const size_t at_u = fact_at_u(m->rank, m->n_cols);
    const size_t at_signs = fact_at_signs(m->rank, m->n_cols, m->n_rows);
    for (int c = 0; c < PANEL; c++) w[c] = _mm512_setzero_ps();
    for (int l = 0; l <= m->depth; l++) {
        const uint8_t *v = m->level[l], *u = v + at_u, *sign = l ? v + at_signs : m->base;
        float vf[STACK_RANK_MAX][PANEL];
        __m512 uf[STACK_RANK_MAX];
        for (size_t r = 0; r < k; r++) {
            const uint8_t *from = v + 2 * (r * n_cols + (size_t)c0);
            _mm512_storeu_ps(vf[r], load_halfs(from));
            _mm512_storeu_ps(vf[r] + 16, load_halfs(from + 32));
            uf[r] = load_halfs(u + 2 * (tile * k + r) * TILE_ROWS);
        }
        const __m512i bits = load512(sign + (tile * (n_cols / 32) + (size_t)c0 / 32) * TSIGN1_BYTES);
        for (int c = 0; c < PANEL; c++) {
            __m512 sum = _mm512_setzero_ps();
            for (size_t r = 0; r < k; r++)
                sum = _mm512_fmadd_ps(uf[r], _mm512_set1_ps(vf[r][c]), sum);
            const __mmask16 plus =
                _mm512_test_epi32_mask(bits, _mm512_set1_epi32((int)(1u << (c % 4 * 8 + c / 4))));
            const __m512i flipped = _mm512_mask_xor_epi32(
                _mm512_castps_si512(sum), (__mmask16)~plus, _mm512_castps_si512(sum),
                _mm512_set1_epi32((int)0x80000000u));
            w[c] = _mm512_add_ps(w[c], _mm512_castsi512_ps(flipped));
        }
    }
}

static void expand_factored(const struct stacked *m, int t, float *out)
{
    for (int c0 = 0; c0 < m->n_cols; c0 += PANEL, out += PANEL * TILE_ROWS) {
        __m512 w[PANEL];
        rebuild(m, t, c0, w);
        for (int c = 0; c < PANEL; c++) _mm512_storeu_ps(out + TILE_ROWS * c, w[c]);
    }
}

static void few_factored(const struct stacked *m, int t0, int n_tiles, int n,
                         const void *const *x, float *const *y)
{
    for (int t = 0; t < n_tiles; t++) {
        __m512 acc[STACK_FEW], w[PANEL];
        for (int r = 0; r < n; r++) acc[r] = _mm512_setzero_ps();
        for (int c0 = 0; c0 < m->n_cols; c0 += PANEL) {
            rebuild(m, t0 + t, c0, w);
            for (int r = 0; r < n; r++)
                for (int c = 0; c < PANEL; c++)
                    acc[r] = _mm512_fmadd_ps(
                        w[c], all_lanes_f32((const char *)x[r] + 4 * (size_t)(c0 + c)), acc[r]);
        }
        for (int r = 0; r < n; r++) _mm512_storeu_ps(y[r] + TILE_ROWS * t, acc[r]);
    }
}

/* ---- what the tiers have ------------------------------------------------------------------ */

void stack_expand_avx512(const struct stacked *w, int t, void *tile)
{
    if (w->type == QTYPE_NEST2) expand_nested(w, t, tile);
    else expand_factored(w, t, tile);
}

void stack_few_avx512(const struct stacked *w, int t0, int n_tiles, int n_rows,
                      const void *const *x, float *const *y)
{
    if (w->type != QTYPE_NEST2) {
        few_factored(w, t0, n_tiles, n_rows, x, y);
        return;
    }
    /* There is code for some counts only: a row computed twice, to the same place, fills the gap. */
    const void *xs[STACK_FEW];
    float *ys[STACK_FEW];
    for (int r = 0; r < STACK_FEW; r++) {
        xs[r] = x[r < n_rows ? r : n_rows - 1];
        ys[r] = y[r < n_rows ? r : n_rows - 1];
    }
    switch (w->depth) {
    case 0: few_of_depth(0, w, t0, n_tiles, n_rows, xs, ys); break;
    case 1: few_of_depth(1, w, t0, n_tiles, n_rows, xs, ys); break;
    case 2: few_of_depth(2, w, t0, n_tiles, n_rows, xs, ys); break;
    case 3: few_of_depth(3, w, t0, n_tiles, n_rows, xs, ys); break;
    default: few_of_depth(4, w, t0, n_tiles, n_rows, xs, ys); break;
    }
}

#endif
