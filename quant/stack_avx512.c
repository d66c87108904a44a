/* AVX-512 products of stacked matrices (quant/stack.h).  Bit-equal to the reference.  Owns nothing but
 * a tile's bytes on the stack.
 *
 * DESIGN.  Few rows: planes go straight into registers.  More: a tile is unpacked once, and FEW rows at
 * a time read its bytes. */
#include "quant/stack_avx512_int.h"

#if defined(__AVX512VNNI__)

/* Instead of a depth: the tile is unpacked, u8 q[columns / 4][16][4] | float scale[columns / 64][16]. */
enum { UNPACKED = -1 };

INLINE void few_nested(int depth, int C, __m512i table, const struct stacked *m, int t,
                       const uint8_t *tile, const void *const *x, float *const *y, int y_at)
{
    const int n_cols = m->n_cols, n_blocks = n_cols / 64;
    const uint8_t *scale = tile + TILE_ROWS * (size_t)n_cols;
    struct planes p = planes_at(depth, m, (size_t)t * (size_t)n_blocks);
    __m512 acc[FEW];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) acc[c] = _mm512_setzero_ps();
    for (int b = 0; b < n_blocks; b++) {
        const size_t at_d = (size_t)n_cols + 4 * (size_t)b, at_s = at_d + (size_t)n_cols / 64 * 4;
        const __m512 d = depth == UNPACKED ? _mm512_loadu_ps(scale + 64 * (size_t)b)
                                           : nest_scale(p.base);
        __m512i s[FEW];
        if (depth != UNPACKED) planes_prefetch(depth, &p);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) /* what reading weights as unsigned adds */
            s[c] = _mm512_sub_epi32(zero(), _mm512_slli_epi32(all_lanes((const char *)x[c] + at_s), 7));
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m512i w[8];
            if (depth != UNPACKED) {
                unpack_nested(depth, &p, h, table, w);
            } else {
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++, tile += 64) w[i] = load512(tile);
            }
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) {
                const char *q = (const char *)x[c] + 64 * b + 32 * h;
                s[c] = _mm512_add_epi32(dot(s[c], w, q, 4), dot(zero(), w + 4, q + 16, 4));
            }
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            acc[c] = _mm512_fmadd_ps(_mm512_mul_ps(d, all_lanes_f32((const char *)x[c] + at_d)),
                                     _mm512_cvtepi32_ps(s[c]), acc[c]);
        planes_next(depth, &p);
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) _mm512_storeu_ps(y[c] + y_at, acc[c]);
}

/* n <= FEW rows.  There is code for some counts only: a row computed twice, to the same place, fills
 * the gap. */
INLINE void few_rows_nested(int depth, const struct stacked *m, int t0, int n_tiles, int n,
                            const uint8_t *tile, const void *const *x, float *const *y, int y_at)
{
    const __m512i table = depth == UNPACKED ? zero() : nest_values(depth, 128);
    const void *xs[FEW];
    float *ys[FEW];
    for (int r = 0; r < FEW; r++) {
        xs[r] = x[r < n ? r : n - 1];
        ys[r] = y[r < n ? r : n - 1];
    }
    for (int t = 0; t < n_tiles; t++, y_at += TILE_ROWS) {
        if (n == 1) few_nested(depth, 1, table, m, t0 + t, tile, xs, ys, y_at);
        else if (n == 2) few_nested(depth, 2, table, m, t0 + t, tile, xs, ys, y_at);
        else if (n <= 4) few_nested(depth, 4, table, m, t0 + t, tile, xs, ys, y_at);
        else few_nested(depth, 8, table, m, t0 + t, tile, xs, ys, y_at);
    }
}

INLINE void expand_depth(int depth, __m512i table, const struct stacked *m, int t, uint8_t *tile)
{
    const int n_blocks = m->n_cols / 64;
    uint8_t *scale = tile + TILE_ROWS * (size_t)m->n_cols;
    struct planes p = planes_at(depth, m, (size_t)t * (size_t)n_blocks);
    for (int b = 0; b < n_blocks; b++, planes_next(depth, &p), scale += 64) {
        planes_prefetch(depth, &p);
        for (int h = 0; h < 2; h++, tile += 512) {
            __m512i w[8];
            unpack_nested(depth, &p, h, table, w);
            for (int i = 0; i < 8; i++) _mm512_storeu_si512(tile + 64 * i, w[i]);
        }
        _mm512_storeu_ps((float *)(void *)scale, nest_scale(p.base));
    }
}

INLINE void nested_depth(int depth, const struct stacked *m, int t0, int n_tiles, int n_rows,
                         const void *const *x, float *const *y)
{
    if (n_rows <= FEW) {
        few_rows_nested(depth, m, t0, n_tiles, n_rows, m->base, x, y, 0);
        return;
    }
    const __m512i table = nest_values(depth, 128);
    uint8_t *tile = __builtin_alloca_with_align(17 * (size_t)m->n_cols, 512);
    for (int t = 0; t < n_tiles; t++) {
        expand_depth(depth, table, m, t0 + t, tile);
        for (int r = 0; r < n_rows; r += FEW)
            few_rows_nested(UNPACKED, m, 0, 1, n_rows - r < FEW ? n_rows - r : FEW, tile, x + r, y + r,
                            TILE_ROWS * t);
    }
}

void nested_avx512(const struct stacked *w, int t0, int n_tiles, int n_rows, const void *const *x,
                   float *const *y)
{
    switch (w->depth) {
    case 0: nested_depth(0, w, t0, n_tiles, n_rows, x, y); break;
    case 1: nested_depth(1, w, t0, n_tiles, n_rows, x, y); break;
    case 2: nested_depth(2, w, t0, n_tiles, n_rows, x, y); break;
    case 3: nested_depth(3, w, t0, n_tiles, n_rows, x, y); break;
    default: nested_depth(4, w, t0, n_tiles, n_rows, x, y); break;
    }
}

/* ---- factored: a tile of weights, 32 columns at a time ------------------------------------ */

enum { PANEL = 32, SIDE = 8 /* columns whose sums run side by side */ };

/* w[c] = the weights of column c of 16 rows, for PANEL columns from `at` on. */
static void rebuild(const struct stacked *m, int t, int at, __m512 *w)
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
            const uint8_t *from = v + 2 * (r * n_cols + (size_t)at);
            _mm512_storeu_ps(vf[r], load_halfs(from));
            _mm512_storeu_ps(vf[r] + 16, load_halfs(from + 32));
            uf[r] = load_halfs(u + 2 * (tile * k + r) * TILE_ROWS);
        }
        const __m512i bits = load512(sign + (tile * (n_cols / 32) + (size_t)at / 32) * TSIGN1_BYTES);
        for (int c0 = 0; c0 < PANEL; c0 += SIDE) {
            __m512 sum[SIDE];
#pragma GCC unroll 8
            for (int i = 0; i < SIDE; i++) sum[i] = _mm512_setzero_ps();
            for (size_t r = 0; r < k; r++)
#pragma GCC unroll 8
                for (int i = 0; i < SIDE; i++)
                    sum[i] = _mm512_fmadd_ps(uf[r], _mm512_set1_ps(vf[r][c0 + i]), sum[i]);
#pragma GCC unroll 8
            for (int i = 0; i < SIDE; i++) {
                const int c = c0 + i;
                const __mmask16 plus = _mm512_test_epi32_mask(
                    bits, _mm512_set1_epi32((int)(1u << (c % 4 * 8 + c / 4))));
                const __m512i flipped = _mm512_mask_xor_epi32(
                    _mm512_castps_si512(sum[i]), (__mmask16)~plus, _mm512_castps_si512(sum[i]),
                    _mm512_set1_epi32((int)0x80000000u));
                w[c] = _mm512_add_ps(w[c], _mm512_castsi512_ps(flipped));
            }
        }
    }
}

void factored_tile_avx512(const struct stacked *m, int t, float *out)
{
    for (int c0 = 0; c0 < m->n_cols; c0 += PANEL, out += PANEL * TILE_ROWS) {
        __m512 w[PANEL];
        rebuild(m, t, c0, w);
        for (int c = 0; c < PANEL; c++) _mm512_storeu_ps(out + TILE_ROWS * c, w[c]);
    }
}

void factored_few_avx512(const struct stacked *m, int t0, int n_tiles, int n,
                         const void *const *x, float *const *y)
{
    for (int t = 0; t < n_tiles; t++) {
        __m512 acc[FACTORED_FEW], w[PANEL];
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

#endif
