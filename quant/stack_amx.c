/* AMX products of the nested codec (quant/stack.h): more than FEW rows by the tile unit, fewer as AVX-512
 * does them.  Bit-equal to the reference.  Owns nothing but stack scratch of some 170 KB.
 *
 * DESIGN.  A block is 64 columns, as deep as a product of the tile unit: one float step for one
 * product.  A stretch of a tile of weights is unpacked to signed bytes, straight from its planes to
 * where tile loads find them; then 16 rows at a time pass over it with their sums in registers, a
 * block's products being converted while the tile unit does the next block's.  Activations and outputs
 * as in mm_amx.c. */
#include <stdbool.h>

#include "quant/amx_int.h"
#include "quant/stack_avx512_int.h"

#if defined(__AVX512VNNI__)

enum {
    ROWS = 128,   /* rows that share unpacked weights */
    COLS = 1024,  /* of a stretch: with the activations of 16 rows it fits L1 */
    BLOCKS = COLS / 64,
};

struct work {
    int8_t a[ROWS / 16][BLOCKS][16][DEEP]; /* activations */
    float da[ROWS / 16][BLOCKS][16];       /* their scales */
    int8_t b[BLOCKS][16][64];              /* a stretch of a tile, unpacked */
    __m512 d[BLOCKS];
    int32_t c[2][16][16];                  /* products */
} __attribute__((aligned(64)));

/* The rows' scales of blocks b0 .. b0 + n_b - 1; rows beyond n have zeros. */
INLINE void copy_scales(struct work *s, const void *const *x, int n, int n_cols, int b0, int n_b)
{
    for (int r = 0; r < (n + 15) / 16 * 16; r++)
        for (int b = 0; b < n_b; b++) {
            float d = 0;
            if (r < n) memcpy(&d, (const char *)x[r] + n_cols + 4 * (size_t)(b0 + b), sizeof d);
            s->da[r / 16][b][r % 16] = d;
        }
}

INLINE void unpack_stretch(int depth, struct work *s, struct planes p, __m512i table, int n_b)
{
    for (int b = 0; b < n_b; b++, planes_next(depth, &p)) {
        planes_prefetch(depth, &p);
        for (int h = 0; h < 2; h++) {
            __m512i w[8];
            unpack_nested(depth, &p, h, table, w);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) _mm512_store_si512(s->b[b][8 * h + i], w[i]);
        }
        s->d[b] = nest_scale(p.base);
    }
}

/* The float steps of block b for 16 rows. */
INLINE void convert(const struct work *s, int g, int b, __m512 *acc)
{
    const __m512 d = s->d[b];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++)
        acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(s->da[g][b][r])),
                                 _mm512_cvtepi32_ps(_mm512_load_si512(s->c[b & 1][r])), acc[r]);
}

/* 16 rows against the unpacked stretch; first: nothing has been summed yet. */
static void rows_of_16(struct work *s, int g, int n_b, bool first, int n, float *const *y, size_t y_at)
{
    __m512 acc[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++)
        acc[r] = first || r >= n ? _mm512_setzero_ps() : _mm512_loadu_ps(y[r] + y_at);
    for (int b = 0; b < n_b; b++) {
        TILE_LOAD(4, s->a[g][b], DEEP);
        TILE_LOAD(6, s->b[b], 64);
        TILE_ZERO(0);
        TILE_DOT_SS(0, 4, 6);
        TILE_STORE(0, s->c[b & 1]);
        if (b) convert(s, g, b - 1, acc);
    }
    convert(s, g, n_b - 1, acc);
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++)
        if (r < n) _mm512_storeu_ps(y[r] + y_at, acc[r]);
}

/* At most ROWS rows. */
INLINE void share(int depth, struct work *s, const struct stacked *m, int t0, int n_tiles, int n,
                  const void *const *x, float *const *y)
{
    const __m512i table = nest_values(depth, 0);
    for (int k0 = 0; k0 < m->n_cols; k0 += COLS) {
        const int n_k = m->n_cols - k0 < COLS ? m->n_cols - k0 : COLS, n_b = n_k / 64;
        copy_rows(s->a[0], BLOCKS, x, n, 16, k0, n_k);
        copy_scales(s, x, n, m->n_cols, k0 / 64, n_b);
        for (int t = 0; t < n_tiles; t++) {
            const size_t block = (size_t)(t0 + t) * (size_t)(m->n_cols / 64) + (size_t)(k0 / 64);
            unpack_stretch(depth, s, planes_at(depth, m, block), table, n_b);
            for (int r = 0; r < n; r += 16)
                rows_of_16(s, r / 16, n_b, !k0, n - r, y + r, (size_t)TILE_ROWS * (size_t)t);
        }
    }
}

void nested_amx(const struct stacked *w, int t0, int n_tiles, int n_rows, const void *const *x,
                float *const *y)
{
    if (n_rows <= FEW) {
        nested_avx512(w, t0, n_tiles, n_rows, x, y);
        return;
    }
    struct work s;
    tiles_begin(DEEP);
    /* Even shares, in whole tiles. */
    const int shares = (n_rows + ROWS - 1) / ROWS, each = (n_rows + shares - 1) / shares;
    const int step = (each + 15) / 16 * 16;
    for (int r = 0; r < n_rows; r += step) {
        const int n = n_rows - r < step ? n_rows - r : step;
        switch (w->depth) {
        case 0: share(0, &s, w, t0, n_tiles, n, x + r, y + r); break;
        case 1: share(1, &s, w, t0, n_tiles, n, x + r, y + r); break;
        case 2: share(2, &s, w, t0, n_tiles, n, x + r, y + r); break;
        case 3: share(3, &s, w, t0, n_tiles, n, x + r, y + r); break;
        default: share(4, &s, w, t0, n_tiles, n, x + r, y + r); break;
        }
    }
    tiles_end();
}

#endif
