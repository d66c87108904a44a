/* AVX2 products of the grid types (IQ1, IQ2, IQ3) and NVFP4.  Bit-equal to quant/mm_parts_ref.c.
 * Owns nothing but stack scratch.
 *
 * DESIGN: half a tile's super-block is taken apart at a time, into bytes and scales (struct flat),
 * and meets up to ROWS rows.  A weight plus 64 is at most 126, and a pair, 2 * 126 * 127 = 32,004,
 * fits int16. */
#include "quant/mm_avx2_int.h"
#include "quant/parts_int.h"

enum { ROWS = 64 };

/* ---- taking half a block column apart, eight rows at a time --------------------------------- */

#define STORE(to, v) _mm256_storeu_si256((__m256i *)(void *)(to), v)

INLINE __m256i bits_of(__m256i v, int at, int n)
{
    return _mm256_and_si256(_mm256_srli_epi32(v, at), _mm256_set1_epi32((1 << n) - 1));
}

/* Entries of a table of words. */
INLINE __m256i look_up(const uint16_t *table, __m256i index)
{
    return bits_of(_mm256_i32gather_epi32((const int *)(const void *)table, index, 2), 0, 16);
}

/* The low bits of v as four bytes: codes of two bits, or of three. */
INLINE __m256i four_codes(__m256i v, int bits)
{
    v = _mm256_or_si256(v, _mm256_slli_epi32(v, bits == 2 ? 12 : 10));
    v = _mm256_and_si256(v, _mm256_set1_epi32(bits == 2 ? 0x000f000f : 0x003f003f));
    v = _mm256_or_si256(v, _mm256_slli_epi32(v, bits == 2 ? 6 : 5));
    return _mm256_and_si256(v, _mm256_set1_epi32(bits == 2 ? 0x03030303 : 0x07070707));
}

/* Stores 64 + v, or 64 - v where the sign bits from `at` on of every lane are set. */
INLINE void put_four(uint8_t (*w)[4], __m256i v, __m256i signs, int at)
{
    const __m256i copy = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    const __m256i bit = _mm256_set1_epi32((int)(0x08040201u << at));
    __m256i s = _mm256_and_si256(_mm256_shuffle_epi8(signs, copy), bit);
    __m256i down = _mm256_cmpeq_epi8(s, bit);
    v = _mm256_sub_epi8(_mm256_xor_si256(v, down), down);
    STORE(w, _mm256_add_epi8(v, _mm256_set1_epi8(64)));
}

/* Seven sign bits; the eighth makes their number even. */
INLINE __m256i with_parity(__m256i s)
{
    __m256i odd = _mm256_xor_si256(s, _mm256_srli_epi32(s, 4));
    odd = _mm256_xor_si256(odd, _mm256_srli_epi32(odd, 2));
    odd = _mm256_xor_si256(odd, _mm256_srli_epi32(odd, 1));
    return _mm256_or_si256(s, _mm256_slli_epi32(bits_of(odd, 0, 1), 7));
}

/* Eight weights of IQ2 from their code and signs. */
INLINE void put_iq2(int h, struct flat *f, int i, __m256i code, __m256i signs)
{
    const __m256i values = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(8, 25, 43, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
    __m256i lo = four_codes(bits_of(code, 0, 8), 2), hi = four_codes(bits_of(code, 8, 8), 2);
    put_four(f->w[2 * i] + 8 * h, _mm256_shuffle_epi8(values, lo), signs, 0);
    put_four(f->w[2 * i + 1] + 8 * h, _mm256_shuffle_epi8(values, hi), signs, 4);
}

/* Eight weights of IQ3 from two codes. */
INLINE void put_iq3(enum qtype type, int h, struct flat *f, int i, __m256i a, __m256i b,
                    __m256i signs)
{
    const __m256i values =
        type == QTYPE_IQ3_S
            ? _mm256_broadcastsi128_si256(
                  _mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0))
            : _mm256_broadcastsi128_si256(
                  _mm_setr_epi8(4, 12, 20, 28, 36, 44, 52, 62, 0, 0, 0, 0, 0, 0, 0, 0));
    put_four(f->w[2 * i] + 8 * h, _mm256_shuffle_epi8(values, four_codes(a, 3)), signs, 0);
    put_four(f->w[2 * i + 1] + 8 * h, _mm256_shuffle_epi8(values, four_codes(b, 3)), signs, 4);
}

/* Eight weights of IQ1: 8 c - 8 + 1, or - 1 where down is 1. */
INLINE void put_iq1(int h, struct flat *f, int i, __m256i code, __m256i down)
{
    __m256i base = _mm256_sub_epi32(_mm256_set1_epi32(57), _mm256_slli_epi32(down, 1));
    base = _mm256_mullo_epi32(base, _mm256_set1_epi32(0x01010101));
    for (int k = 0; k < 2; k++) {
        __m256i c = four_codes(bits_of(code, 8 * k, 8), 2);
        STORE(f->w[2 * i + k] + 8 * h, _mm256_add_epi8(base, _mm256_slli_epi16(c, 3)));
    }
}

/* Sets scale s, for n sixteens, to 2 v + 1. */
INLINE void put_scale(__m256i *sc, int s, int n, __m256i v)
{
    v = _mm256_add_epi32(_mm256_slli_epi32(v, 1), _mm256_set1_epi32(1));
    for (int i = n * s; i < n * s + n; i++)
        sc[i / 4] = _mm256_or_si256(sc[i / 4], _mm256_slli_epi32(v, 8 * (i % 4)));
}

INLINE void flat_iq2(enum qtype type, const uint8_t *p, int h, struct flat *f, __m256i *sc)
{
    for (int i = 0; i < 32; i++) {
        const int s = i / 4, k = i % 4;
        if (type == QTYPE_IQ2_XXS) {
            __m256i u = load256(p + 64 * (2 * s + 1));
            __m256i at = bits_of(load256(p + 64 * (2 * s)), 8 * k, 8);
            if (!k) put_scale(sc, s, 2, bits_of(u, 28, 4));
            put_iq2(h, f, i, look_up(grid_iq2_xxs, at), with_parity(bits_of(u, 7 * k, 7)));
        } else if (type == QTYPE_IQ2_XS) {
            __m256i u = bits_of(load256(p + 64 * (i / 2)), 16 * (i % 2), 16);
            put_iq2(h, f, i, look_up(grid_iq2_xs, bits_of(u, 0, 9)), with_parity(bits_of(u, 9, 7)));
        } else {
            __m256i lo = bits_of(load256(p + 64 * s), 8 * k, 8);
            __m256i hi = bits_of(load256(p + 64 * (16 + s / 4)), 8 * (s % 4) + 2 * k, 2);
            lo = _mm256_or_si256(lo, _mm256_slli_epi32(hi, 8));
            put_iq2(h, f, i, look_up(grid_iq2_s, lo), bits_of(load256(p + 64 * (8 + s)), 8 * k, 8));
        }
    }
    const int at = type == QTYPE_IQ2_XS ? 16 : 18;
    for (int s = 0; type != QTYPE_IQ2_XXS && s < 16; s++)
        put_scale(sc, s, 1, bits_of(load256(p + 64 * (at + s / 8)), 4 * (s % 8), 4));
}

INLINE void flat_iq3(enum qtype type, const uint8_t *p, int h, struct flat *f, __m256i *sc)
{
    const uint16_t *grid = type == QTYPE_IQ3_S ? grid_iq3_s : grid_iq3_xxs;
    for (int i = 0; i < 32; i++) {
        const int s = i / 4, k = i % 4;
        __m256i q = load256(p + 64 * (i / 2)), signs;
        __m256i a = bits_of(q, 16 * (i % 2), 8), b = bits_of(q, 16 * (i % 2) + 8, 8);
        if (type == QTYPE_IQ3_S) {
            __m256i nine = bits_of(load256(p + 64 * (16 + s / 4)), 8 * (s % 4) + 2 * k, 2);
            a = _mm256_or_si256(a, _mm256_slli_epi32(bits_of(nine, 0, 1), 8));
            b = _mm256_or_si256(b, _mm256_slli_epi32(bits_of(nine, 1, 1), 8));
            signs = bits_of(load256(p + 64 * (18 + s)), 8 * k, 8);
            if (!k) put_scale(sc, s, 2, bits_of(load256(p + 64 * 26), 4 * s, 4));
        } else {
            __m256i u = load256(p + 64 * (16 + s));
            signs = with_parity(bits_of(u, 7 * k, 7));
            if (!k) put_scale(sc, s, 2, bits_of(u, 28, 4));
        }
        put_iq3(type, h, f, i, look_up(grid, a), look_up(grid, b), signs);
    }
}

INLINE void flat_iq1(enum qtype type, const uint8_t *p, int h, struct flat *f, __m256i *sc)
{
    for (int i = 0; i < 32; i++) {
        const int s = i / 4, k = i % 4;
        __m256i lo = bits_of(load256(p + 64 * s), 8 * k, 8), hi, down;
        if (type == QTYPE_IQ1_S) {
            __m256i u = bits_of(load256(p + 64 * (8 + s / 2)), 16 * (s % 2), 16);
            hi = bits_of(u, 3 * k, 3);
            down = bits_of(u, 15, 1);
            if (!k) put_scale(sc, s, 2, bits_of(u, 12, 3));
        } else {
            __m256i u = bits_of(load256(p + 64 * (8 + i / 8)), 4 * (i % 8), 4);
            hi = bits_of(u, 0, 3);
            down = bits_of(u, 3, 1);
        }
        put_iq1(h, f, i, look_up(grid_iq1, _mm256_or_si256(lo, _mm256_slli_epi32(hi, 8))), down);
    }
    for (int s = 0; type == QTYPE_IQ1_M && s < 16; s++)
        put_scale(sc, s, 1, bits_of(load256(p + 64 * (12 + s / 8)), 16 * (s / 4 % 2) + 3 * (s % 4),
                                    3));
}

/* IQ1_M: the scale's nibbles are the top ones of four words. */
INLINE __m256 iq1_m_scale(const uint8_t *p)
{
    __m256i a = load256(p + 64 * 12), b = load256(p + 64 * 13);
    __m256i v = bits_of(a, 12, 4);
    v = _mm256_or_si256(v, _mm256_slli_epi32(bits_of(a, 28, 4), 4));
    v = _mm256_or_si256(v, _mm256_slli_epi32(bits_of(b, 12, 4), 8));
    v = _mm256_or_si256(v, _mm256_slli_epi32(bits_of(b, 28, 4), 12));
    return _mm256_cvtph_ps(
        _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}

/* Half h of a block column of a grid type. */
INLINE void flatten(enum qtype type, const uint8_t *p, int h, struct flat *f)
{
    __m256i sc[4] = {zero(), zero(), zero(), zero()};
    __m256 d = type == QTYPE_IQ1_M ? iq1_m_scale(p + 32 * h) : load_halfs(p + 16 * h);
    p += (type == QTYPE_IQ1_M ? 0 : 32) + 32 * h;
    float unit = 0.125f;
    if (type == QTYPE_IQ3_S) unit = 1;
    if (type == QTYPE_IQ3_XXS) unit = 0.25f;
    _mm256_storeu_ps(f->d + 8 * h, _mm256_mul_ps(d, _mm256_set1_ps(unit)));
    if (type == QTYPE_IQ3_S || type == QTYPE_IQ3_XXS) flat_iq3(type, p, h, f, sc);
    else if (type == QTYPE_IQ1_S || type == QTYPE_IQ1_M) flat_iq1(type, p, h, f, sc);
    else flat_iq2(type, p, h, f, sc);
    for (int j = 0; j < 4; j++) STORE(f->scale[j] + 8 * h, sc[j]);
}

#undef STORE

/* ---- products ----------------------------------------------------------------------------- */

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

INLINE void mm_grid(enum qtype type, int n_cols, int n_tiles, const void *w, int n_rows,
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
                for (int h = 0; h < 2; h++) flatten(type, tile + (size_t)bytes * (size_t)b, h, &f);
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
