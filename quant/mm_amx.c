/* The AMX kernels: products of many rows by the tile unit's integer dots (amx-tile, amx-int8), few
 * rows as AVX-512 does them.  Bit-equal to quant/mm_ref.c in every output, because integer sums are
 * exact; quant/README.md has the order.  Owns nothing but stack scratch of some 140 KB.
 *
 * DESIGN.  A tile register C is 16 activation rows x 16 output rows, A is 16 activation rows x 64
 * bytes of them, B 16 dwords of four weights x 16 output rows: what a tile of quant/mm.h is already.
 * Weights are unpacked to signed bytes once per ROWS rows.
 *   Blocks of 32: a product is 32 bytes deep, then one float step per block, lane = output row.  A
 *   stretch of a tile is unpacked first; then 16 rows at a time pass over it with their sums in
 *   registers, a block's products being converted while the tile unit does the next block's.
 *   Super-blocks of 256: a weight times its sub-block's integer scale has 13 bits; its low byte
 *   (unsigned) and the rest (signed) are two products 256 bytes deep, and isum = lo + 256 hi.  So
 *   there is one float step per super-block and no multiplication by sub-scales.  32 rows at a time.
 * Activations are copied to where a tile load finds 16 rows in 1 KiB; a stretch of columns at a
 * time, with the outputs themselves as accumulators between stretches.  Which rows share a tile
 * never changes a bit. */
#include <stdbool.h>

#include "quant/amx_int.h"
#include "quant/mm_avx512_int.h"

enum {
    ROWS = 64,   /* rows that share unpacked weights */
    /* Columns whose activations are copied at once.  In blocks of 32 what 16 rows need, weights and
     * activations, fits L1. */
    COLS_32 = 1024,
    COLS_256 = 2048,
    FEW_32 = 48, /* rows up to which blocks of 32 are as fast with AVX-512; super-blocks: FEW */
};

struct work_32 {
    int8_t a[ROWS / 16][COLS_32 / DEEP][16][DEEP]; /* activations */
    float da[ROWS / 16][COLS_32 / 32][16];         /* their scales */
    float sum[ROWS / 16][COLS_32 / 32][16];        /* and sums, where a type has minima */
    int8_t b[COLS_32 / 32][8][64];                 /* a stretch of a tile, unpacked */
    __m512 d[COLS_32 / 32], m[COLS_32 / 32];
    int32_t c[2][16][16];                          /* products */
} __attribute__((aligned(64)));

struct work_256 {
    int8_t a[ROWS / 16][COLS_256 / DEEP][16][DEEP];
    uint8_t lo[4][16][64]; /* a super-block, unpacked */
    int8_t hi[4][16][64];
    int32_t c[4][16][16];
    float acc[ROWS][16];
} __attribute__((aligned(64)));

/* ---- blocks of 32 -------------------------------------------------------------------------- */

INLINE int offset_of(enum qtype type)
{
    switch (type) {
    case QTYPE_Q8_0:
    case QTYPE_IQ4_NL:
    case QTYPE_IQ4_XS: return 128;
    case QTYPE_Q4_0: return 8;
    case QTYPE_Q5_0:
    case QTYPE_MXFP4: return 16;
    case QTYPE_Q6_K: return 32;
    case QTYPE_Q3_K: return 4;
    default: return 0;
    }
}

/* The rows' scales and sums of blocks b0 .. b0 + n_b - 1; rows beyond n have zeros. */
INLINE void copy_scales(enum qtype type, struct work_32 *s, const void *const *x, int n, int n_cols,
                        int b0, int n_b)
{
    for (int r = 0; r < (n + 15) / 16 * 16; r++) {
        const char *d = r < n ? (const char *)x[r] + n_cols + 4 * (size_t)b0 : NULL;
        const size_t to_s = (size_t)n_cols / 32 * 4;
        for (int b = 0; b < n_b; b++) {
            int32_t sum = 0;
            float da = 0;
            if (d) memcpy(&da, d + 4 * b, sizeof da);
            if (d && min_at(type)) memcpy(&sum, d + to_s + 4 * b, sizeof sum);
            s->da[r / 16][b][r % 16] = da;
            if (min_at(type)) s->sum[r / 16][b][r % 16] = (float)sum;
        }
    }
}

INLINE void unpack_stretch(enum qtype type, struct work_32 *s, const uint8_t *p, int n_b)
{
    const __m512i off = _mm512_set1_epi8((char)offset_of(type));
    for (int b = 0; b < n_b; b++, p += block_bytes(type)) {
        __m512i w[8];
        prefetch_stream(p, block_bytes(type));
        unpack_32(type, p, w);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            _mm512_store_si512(s->b[b][i], _mm512_sub_epi8(w[i], off));
        s->d[b] = scale_32(type, p);
        if (min_at(type)) s->m[b] = load_halfs(p + min_at(type));
    }
}

/* The float steps of block b for 16 rows. */
INLINE void convert_32(enum qtype type, const struct work_32 *s, int g, int b, __m512 *acc)
{
    const __m512 d = s->d[b];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) {
        const __m512 da = _mm512_set1_ps(s->da[g][b][r]);
        const __m512 isum = _mm512_cvtepi32_ps(_mm512_load_si512(s->c[b & 1][r]));
        acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(d, da), isum, acc[r]);
        if (min_at(type))
            acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(s->m[b], da), _mm512_set1_ps(s->sum[g][b][r]),
                                     acc[r]);
    }
}

/* 16 rows against the unpacked stretch; first: nothing has been summed yet. */
INLINE void rows_32(enum qtype type, struct work_32 *s, int g, int n_b, bool first, int n,
                    float *const *y, size_t y_at)
{
    __m512 acc[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++)
        acc[r] = first || r >= n ? _mm512_setzero_ps() : _mm512_loadu_ps(y[r] + y_at);
    for (int b = 0; b < n_b; b++) {
        TILE_LOAD(4, &s->a[g][b / 2][0][b % 2 * 32], DEEP);
        TILE_LOAD(6, s->b[b], 64);
        TILE_ZERO(0);
        TILE_DOT_SS(0, 4, 6);
        TILE_STORE(0, s->c[b & 1]);
        if (b) convert_32(type, s, g, b - 1, acc);
    }
    convert_32(type, s, g, n_b - 1, acc);
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++)
        if (r < n) _mm512_storeu_ps(y[r] + y_at, acc[r]);
}

/* ---- super-blocks of 256 ------------------------------------------------------------------- */

/* The scales of Q2_K times its weights fit a byte. */
INLINE int has_high(enum qtype type) { return type != QTYPE_Q2_K; }

/* Sub-block scales as two words of every lane. */
INLINE __m512i two_words(__m512i scale)
{
    return _mm512_mask_blend_epi16(0xaaaaaaaau, scale, _mm512_slli_epi32(scale, 16));
}

INLINE void unpack_scaled(enum qtype type, struct work_256 *s, const uint8_t *p, const struct super *h)
{
    const __m512i low = _mm512_set1_epi16(255), off = _mm512_set1_epi16((short)offset_of(type));
    for (int i = 0; i < 8 / phases(type); i++)
#pragma GCC unroll 4
        for (int k = 0; k < phases(type); k++) {
            const int u = i * phases(type) + k;
            __m512i w[8];
            prefetch_stream(p + super_bytes(type) / 8 * u, super_bytes(type) / 8);
            unpack_256(type, p, i, k, w);
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                const __m512i sc = two_words(h->scale[by_16(type) ? 2 * u + j / 4 : u]);
                __m512i even = _mm512_and_si512(w[j], low), odd = _mm512_srli_epi16(w[j], 8);
                if (offset_of(type)) {
                    even = _mm512_sub_epi16(even, off);
                    odd = _mm512_sub_epi16(odd, off);
                }
                even = _mm512_mullo_epi16(even, sc);
                odd = _mm512_mullo_epi16(odd, sc);
                /* low ? even : odd << 8, and low ? even >> 8 : odd */
                _mm512_store_si512(s->lo[u / 2][u % 2 * 8 + j],
                                   _mm512_ternarylogic_epi32(low, even, _mm512_slli_epi16(odd, 8),
                                                             0xca));
                if (has_high(type))
                    _mm512_store_si512(
                        s->hi[u / 2][u % 2 * 8 + j],
                        _mm512_ternarylogic_epi32(low, _mm512_srli_epi16(even, 8), odd, 0xca));
            }
        }
}

INLINE void convert_256(enum qtype type, struct work_256 *s, int r0, int n, const struct super *h,
                        const void *const *x, struct act256 o, int b)
{
    const int end = n - r0 < 32 ? n - r0 : 32;
    for (int r = 0; r < end; r++) {
        const char *a = x[r0 + r];
        const __m512 da = all_lanes_f32(a + o.d + 4 * (size_t)b);
        __m512i isum = _mm512_load_si512(s->c[r / 16][r % 16]);
        if (has_high(type))
            isum = _mm512_add_epi32(
                isum, _mm512_slli_epi32(_mm512_load_si512(s->c[2 + r / 16][r % 16]), 8));
        __m512 acc = _mm512_load_ps(s->acc[r0 + r]);
        acc = _mm512_fmadd_ps(_mm512_mul_ps(h->d, da), _mm512_cvtepi32_ps(isum), acc);
        if (has_min(type)) {
            const char *sums = by_16(type) ? a + o.s16 + 32 * (size_t)b : a + o.s32 + 16 * (size_t)b;
            const __m512i m = pair_sum(h->pair, by_16(type) ? 8 : 4, sums);
            acc = _mm512_fnmadd_ps(_mm512_mul_ps(h->dmin, da), _mm512_cvtepi32_ps(m), acc);
        }
        _mm512_store_ps(s->acc[r0 + r], acc);
    }
}

INLINE void tile_256(enum qtype type, struct work_256 *s, int n_cols, const uint8_t *p, int b0, int n_b,
                     int n, const void *const *x)
{
    const struct act256 o = act256(n_cols);
    for (int b = 0; b < n_b; b++, p += super_bytes(type)) {
        struct super h;
        super_head(type, p, &h);
        unpack_scaled(type, s, p, &h);
        for (int r0 = 0; r0 < n; r0 += 32) {
            const int g = r0 / 16, two = n - r0 > 16;
            TILE_ZERO(0);
            TILE_ZERO(1);
            TILE_ZERO(2);
            TILE_ZERO(3);
            for (int k = 0; k < 4; k++) {
                TILE_LOAD(4, s->a[g][4 * b + k], DEEP);
                TILE_LOAD(6, s->lo[k], 64);
                TILE_DOT_SU(0, 4, 6);
                if (has_high(type)) {
                    TILE_LOAD(7, s->hi[k], 64);
                    TILE_DOT_SS(2, 4, 7);
                }
                if (!two) continue;
                TILE_LOAD(5, s->a[g + 1][4 * b + k], DEEP);
                TILE_DOT_SU(1, 5, 6);
                if (has_high(type)) TILE_DOT_SS(3, 5, 7);
            }
            TILE_STORE(0, s->c[0]);
            if (two) TILE_STORE(1, s->c[1]);
            if (has_high(type)) TILE_STORE(2, s->c[2]);
            if (has_high(type) && two) TILE_STORE(3, s->c[3]);
            convert_256(type, s, r0, n, &h, x, o, b0 + b);
        }
    }
}

/* ---- the loops around ---------------------------------------------------------------------- */

INLINE void blocks_32(enum qtype type, int n_cols, int n_tiles, const uint8_t *w, int n,
                      const void *const *x, float *const *y)
{
    struct work_32 s;
    const size_t tile = tile_bytes(type, n_cols);
    for (int k0 = 0; k0 < n_cols; k0 += COLS_32) {
        const int n_k = n_cols - k0 < COLS_32 ? n_cols - k0 : COLS_32, n_b = n_k / 32;
        copy_rows(s.a[0], COLS_32 / DEEP, x, n, 16, k0, n_k);
        copy_scales(type, &s, x, n, n_cols, k0 / 32, n_b);
        for (int t = 0; t < n_tiles; t++) {
            unpack_stretch(type, &s, w + tile * (size_t)t + (size_t)(block_bytes(type) * (k0 / 32)),
                           n_b);
            for (int r = 0; r < n; r += 16)
                rows_32(type, &s, r / 16, n_b, !k0, n - r, y + r, (size_t)TILE_ROWS * (size_t)t);
        }
    }
}

INLINE void blocks_256(enum qtype type, int n_cols, int n_tiles, const uint8_t *w, int n,
                       const void *const *x, float *const *y)
{
    struct work_256 s;
    const size_t tile = tile_bytes(type, n_cols);
    for (int k0 = 0; k0 < n_cols; k0 += COLS_256) {
        const int n_k = n_cols - k0 < COLS_256 ? n_cols - k0 : COLS_256;
        copy_rows(s.a[0], COLS_256 / DEEP, x, n, 32, k0, n_k);
        for (int t = 0; t < n_tiles; t++) {
            const uint8_t *p = w + tile * (size_t)t + (size_t)(super_bytes(type) * (k0 / 256));
            for (int r = 0; r < n; r++)
                _mm512_store_ps(s.acc[r], k0 ? _mm512_loadu_ps(y[r] + TILE_ROWS * t)
                                             : _mm512_setzero_ps());
            tile_256(type, &s, n_cols, p, k0 / 256, n_k / 256, n, x);
            for (int r = 0; r < n; r++)
                _mm512_storeu_ps(y[r] + TILE_ROWS * t, _mm512_load_ps(s.acc[r]));
        }
    }
}

INLINE void mm_tiles(enum qtype type, int n_cols, int n_tiles, const void *w, int n_rows,
                     const void *const *x, float *const *y)
{
    const int super = super_bytes(type) != 0;
    if (n_rows <= (super ? FEW : FEW_32)) {
        mm_kernels_avx512.mm[type](n_cols, n_tiles, w, n_rows, x, y);
        return;
    }
    tiles_begin(super ? 64 : 32);
    /* Even shares, in whole tiles. */
    const int shares = (n_rows + ROWS - 1) / ROWS, each = (n_rows + shares - 1) / shares;
    const int step = (each + 15) / 16 * 16;
    for (int r = 0; r < n_rows; r += step) {
        const int n = n_rows - r < step ? n_rows - r : step;
        if (super) blocks_256(type, n_cols, n_tiles, w, n, x + r, y + r);
        else blocks_32(type, n_cols, n_tiles, w, n, x + r, y + r);
    }
    tiles_end();
}

#define AMX_TYPES(X)                                                                               \
    X(Q8_0) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(IQ4_NL) X(MXFP4)                                     \
    X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_XS)

#define MM_AMX(TYPE)                                                                               \
    static void mm_##TYPE(int n_cols, int n_tiles, const void *w, int n_rows,                      \
                          const void *const *x, float *const *y)                                   \
    {                                                                                              \
        mm_tiles(QTYPE_##TYPE, n_cols, n_tiles, w, n_rows, x, y);                                  \
    }
AMX_TYPES(MM_AMX)

/* Four independent products of full tiles. */
static uint64_t peak(int n)
{
    tiles_begin(64);
    n /= 16; /* as long as the other tiers' */
    TILE_ZERO(4);
    TILE_ZERO(5);
    TILE_ZERO(6);
    TILE_ZERO(7);
    for (int i = 0; i < n; i++) {
        TILE_DOT_SS(0, 4, 6);
        TILE_DOT_SS(1, 4, 7);
        TILE_DOT_SS(2, 5, 6);
        TILE_DOT_SS(3, 5, 7);
    }
    tiles_end();
    return (uint64_t)n * 4 * 16 * 16 * 64;
}

const struct mm_kernels mm_kernels_amx = {
    .turn = turn_dwords_avx512,
    .nested = nested_amx,
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
#define ROW(TYPE) [QTYPE_##TYPE] = mm_avx512_##TYPE,
           MM_GRID_TYPES(ROW)
#undef ROW
#define ROW(TYPE) [QTYPE_##TYPE] = mm_##TYPE,
           AMX_TYPES(ROW)},
#undef ROW
};
