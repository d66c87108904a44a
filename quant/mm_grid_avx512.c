/* AVX-512 products of the grid types (IQ1, IQ2, IQ3) and NVFP4.  Bit-equal to quant/mm_parts_ref.c.
 * Owns nothing but stack scratch.
 *
 * DESIGN: a tile's super-block is taken apart once into bytes (plus 64, to be unsigned) and signed
 * scales, the layout that Q6_K has in its tiles, and meets up to ROWS rows. */
#include "quant/mm_avx512_int.h"
#include "quant/parts_int.h"

enum { ROWS = 64 };

/* ---- taking a block column apart, sixteen rows at a time ------------------------------------ */

INLINE __m512i bits_of(__m512i v, int at, int n)
{
    return _mm512_and_si512(_mm512_srli_epi32(v, (unsigned)at), _mm512_set1_epi32((1 << n) - 1));
}

/* Entries of a table of words. */
INLINE __m512i look_up(const uint16_t *table, __m512i index)
{
    return bits_of(_mm512_i32gather_epi32(index, table, 2), 0, 16);
}

/* The low bits of v as four bytes: codes of two bits, or of three. */
INLINE __m512i four_codes(__m512i v, int bits)
{
    v = _mm512_or_si512(v, _mm512_slli_epi32(v, bits == 2 ? 12 : 10));
    v = _mm512_and_si512(v, _mm512_set1_epi32(bits == 2 ? 0x000f000f : 0x003f003f));
    v = _mm512_or_si512(v, _mm512_slli_epi32(v, bits == 2 ? 6 : 5));
    return _mm512_and_si512(v, _mm512_set1_epi32(bits == 2 ? 0x03030303 : 0x07070707));
}

/* Stores 64 + v, or 64 - v where the sign bits from `at` on of every lane are set. */
INLINE void put_four(uint8_t (*w)[4], __m512i v, __m512i signs, int at)
{
    const __m512i base = _mm512_set1_epi8(64);
    const __m512i copy = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    __m512i s = _mm512_shuffle_epi8(signs, copy);
    __mmask64 down = _mm512_test_epi8_mask(s, _mm512_set1_epi32((int)(0x08040201u << at)));
    v = _mm512_mask_sub_epi8(_mm512_add_epi8(base, v), down, base, v);
    _mm512_storeu_si512(w, v);
}

/* Seven sign bits; the eighth makes their number even. */
INLINE __m512i with_parity(__m512i s)
{
    __m512i odd = _mm512_xor_si512(s, _mm512_srli_epi32(s, 4));
    odd = _mm512_xor_si512(odd, _mm512_srli_epi32(odd, 2));
    odd = _mm512_xor_si512(odd, _mm512_srli_epi32(odd, 1));
    return _mm512_or_si512(s, _mm512_slli_epi32(bits_of(odd, 0, 1), 7));
}

/* Eight weights of IQ2 from their code and signs. */
INLINE void put_iq2(struct flat *f, int i, __m512i code, __m512i signs)
{
    const __m512i values = _mm512_broadcast_i32x4(
        _mm_setr_epi8(8, 25, 43, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
    __m512i lo = four_codes(bits_of(code, 0, 8), 2), hi = four_codes(bits_of(code, 8, 8), 2);
    put_four(f->w[2 * i], _mm512_shuffle_epi8(values, lo), signs, 0);
    put_four(f->w[2 * i + 1], _mm512_shuffle_epi8(values, hi), signs, 4);
}

/* Eight weights of IQ3 from two codes. */
INLINE void put_iq3(enum qtype type, struct flat *f, int i, __m512i a, __m512i b, __m512i signs)
{
    const __m512i values =
        type == QTYPE_IQ3_S
            ? _mm512_broadcast_i32x4(
                  _mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0))
            : _mm512_broadcast_i32x4(
                  _mm_setr_epi8(4, 12, 20, 28, 36, 44, 52, 62, 0, 0, 0, 0, 0, 0, 0, 0));
    put_four(f->w[2 * i], _mm512_shuffle_epi8(values, four_codes(a, 3)), signs, 0);
    put_four(f->w[2 * i + 1], _mm512_shuffle_epi8(values, four_codes(b, 3)), signs, 4);
}

/* Eight weights of IQ1: 8 c - 8 + 1, or - 1 where down is 1. */
INLINE void put_iq1(struct flat *f, int i, __m512i code, __m512i down)
{
    __m512i base = _mm512_sub_epi32(_mm512_set1_epi32(57), _mm512_slli_epi32(down, 1));
    base = _mm512_mullo_epi32(base, _mm512_set1_epi32(0x01010101));
    for (int k = 0; k < 2; k++) {
        __m512i c = four_codes(bits_of(code, 8 * k, 8), 2);
        _mm512_storeu_si512(f->w[2 * i + k], _mm512_add_epi8(base, _mm512_slli_epi16(c, 3)));
    }
}

/* Sets scale s, for n sixteens, to 2 v + 1. */
INLINE void put_scale(__m512i *sc, int s, int n, __m512i v)
{
    v = _mm512_add_epi32(_mm512_slli_epi32(v, 1), _mm512_set1_epi32(1));
    for (int i = n * s; i < n * s + n; i++)
        sc[i / 4] = _mm512_or_si512(sc[i / 4], _mm512_slli_epi32(v, (unsigned)(8 * (i % 4))));
}

INLINE void flat_iq2(enum qtype type, const uint8_t *p, struct flat *f, __m512i *sc)
{
    for (int i = 0; i < 32; i++) {
        const int s = i / 4, k = i % 4;
        if (type == QTYPE_IQ2_XXS) {
            __m512i u = load512(p + 64 * (2 * s + 1));
            __m512i at = bits_of(load512(p + 64 * (2 * s)), 8 * k, 8);
            if (!k) put_scale(sc, s, 2, bits_of(u, 28, 4));
            put_iq2(f, i, look_up(grid_iq2_xxs, at), with_parity(bits_of(u, 7 * k, 7)));
        } else if (type == QTYPE_IQ2_XS) {
            __m512i u = bits_of(load512(p + 64 * (i / 2)), 16 * (i % 2), 16);
            put_iq2(f, i, look_up(grid_iq2_xs, bits_of(u, 0, 9)), with_parity(bits_of(u, 9, 7)));
        } else {
            __m512i lo = bits_of(load512(p + 64 * s), 8 * k, 8);
            __m512i hi = bits_of(load512(p + 64 * (16 + s / 4)), 8 * (s % 4) + 2 * k, 2);
            lo = _mm512_or_si512(lo, _mm512_slli_epi32(hi, 8));
            put_iq2(f, i, look_up(grid_iq2_s, lo), bits_of(load512(p + 64 * (8 + s)), 8 * k, 8));
        }
    }
    const int at = type == QTYPE_IQ2_XS ? 16 : 18;
    for (int s = 0; type != QTYPE_IQ2_XXS && s < 16; s++)
        put_scale(sc, s, 1, bits_of(load512(p + 64 * (at + s / 8)), 4 * (s % 8), 4));
}

INLINE void flat_iq3(enum qtype type, const uint8_t *p, struct flat *f, __m512i *sc)
{
    const uint16_t *grid = type == QTYPE_IQ3_S ? grid_iq3_s : grid_iq3_xxs;
    for (int i = 0; i < 32; i++) {
        const int s = i / 4, k = i % 4;
        __m512i q = load512(p + 64 * (i / 2)), signs;
        __m512i a = bits_of(q, 16 * (i % 2), 8), b = bits_of(q, 16 * (i % 2) + 8, 8);
        if (type == QTYPE_IQ3_S) {
            __m512i h = bits_of(load512(p + 64 * (16 + s / 4)), 8 * (s % 4) + 2 * k, 2);
            a = _mm512_or_si512(a, _mm512_slli_epi32(bits_of(h, 0, 1), 8));
            b = _mm512_or_si512(b, _mm512_slli_epi32(bits_of(h, 1, 1), 8));
            signs = bits_of(load512(p + 64 * (18 + s)), 8 * k, 8);
            if (!k) put_scale(sc, s, 2, bits_of(load512(p + 64 * 26), 4 * s, 4));
        } else {
            __m512i u = load512(p + 64 * (16 + s));
            signs = with_parity(bits_of(u, 7 * k, 7));
            if (!k) put_scale(sc, s, 2, bits_of(u, 28, 4));
        }
        put_iq3(type, f, i, look_up(grid, a), look_up(grid, b), signs);
    }
}

INLINE void flat_iq1(enum qtype type, const uint8_t *p, struct flat *f, __m512i *sc)
{
    for (int i = 0; i < 32; i++) {
        const int s = i / 4, k = i % 4;
        __m512i lo = bits_of(load512(p + 64 * s), 8 * k, 8), hi, down;
        if (type == QTYPE_IQ1_S) {
            __m512i u = bits_of(load512(p + 64 * (8 + s / 2)), 16 * (s % 2), 16);
            hi = bits_of(u, 3 * k, 3);
            down = bits_of(u, 15, 1);
            if (!k) put_scale(sc, s, 2, bits_of(u, 12, 3));
        } else {
            __m512i u = bits_of(load512(p + 64 * (8 + i / 8)), 4 * (i % 8), 4);
            hi = bits_of(u, 0, 3);
            down = bits_of(u, 3, 1);
        }
        put_iq1(f, i, look_up(grid_iq1, _mm512_or_si512(lo, _mm512_slli_epi32(hi, 8))), down);
    }
    for (int s = 0; type == QTYPE_IQ1_M && s < 16; s++)
        put_scale(sc, s, 1, bits_of(load512(p + 64 * (12 + s / 8)), 16 * (s / 4 % 2) + 3 * (s % 4),
                                    3));
}

/* IQ1_M: the scale's nibbles are the top ones of four words. */
INLINE __m512 iq1_m_scale(const uint8_t *p)
{
    __m512i a = load512(p + 64 * 12), b = load512(p + 64 * 13);
    __m512i v = bits_of(a, 12, 4);
    v = _mm512_or_si512(v, _mm512_slli_epi32(bits_of(a, 28, 4), 4));
    v = _mm512_or_si512(v, _mm512_slli_epi32(bits_of(b, 12, 4), 8));
    v = _mm512_or_si512(v, _mm512_slli_epi32(bits_of(b, 28, 4), 12));
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
}

/* A block column of a grid type. */
INLINE void flatten(enum qtype type, const uint8_t *p, struct flat *f)
{
    __m512i sc[4] = {zero(), zero(), zero(), zero()};
    __m512 d = type == QTYPE_IQ1_M ? iq1_m_scale(p) : load_halfs(p);
    if (type != QTYPE_IQ1_M) p += 32;
    float unit = 0.125f;
    if (type == QTYPE_IQ3_S) unit = 1;
    if (type == QTYPE_IQ3_XXS) unit = 0.25f;
    _mm512_storeu_ps(f->d, _mm512_mul_ps(d, _mm512_set1_ps(unit)));
    if (type == QTYPE_IQ3_S || type == QTYPE_IQ3_XXS) flat_iq3(type, p, f, sc);
    else if (type == QTYPE_IQ1_S || type == QTYPE_IQ1_M) flat_iq1(type, p, f, sc);
    else flat_iq2(type, p, f, sc);
    for (int j = 0; j < 4; j++) _mm512_storeu_si512(f->scale[j], sc[j]);
}

/* ---- products ----------------------------------------------------------------------------- */

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

INLINE void mm_grid(enum qtype type, int n_cols, int n_tiles, const void *w, int n_rows,
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
                flatten(type, tile + (size_t)bytes * (size_t)b, &f);
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
        prefetch_stream(p, TNV4_BYTES);
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
